//! Copies images of other registries into ours, by the docker daemon of this host: it has the trust for both, and the way out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::board::Board;
use crate::preload::remedy;
use crate::protocol::{Copied, PreloadImage, PreloadOrder, PreloadState, PreloadedImage};

const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(900);
/// The daemon says something more often, as long as anything moves.
const PATIENCE: Duration = Duration::from_secs(600);
/// A line of progress is shorter; an answer that is no stream of them, too.
const LONGEST_LINE: usize = 1024 * 1024;

/// Copies what the last order says, and tries again what has failed, for ever.
pub(super) async fn keep(board: Arc<Board>, socket: PathBuf) {
    let mut taken = None;
    loop {
        let present = board.preload_order();
        match present.filter(|(version, _)| taken != Some(*version)) {
            None => board.preload_changed.notified().await,
            Some((version, order)) => {
                taken = Some(version);
                tokio::select! {
                    () = copy_all(&board, &socket, version, &order) => {}
                    () = board.preload_changed.notified() => taken = None,
                }
            }
        }
    }
}

async fn copy_all(board: &Board, socket: &Path, version: u64, order: &PreloadOrder) {
    let docker = Docker { socket };
    let entry = |image: &PreloadImage| PreloadedImage {
        image: image.from.clone(),
        state: PreloadState::Waiting,
        bytes: None,
        copied: None,
        detail: String::new(),
    };
    let mut shown: Vec<PreloadedImage> = order.images.iter().map(entry).collect();
    let mut due: Vec<(Instant, Duration, usize)> = (0..shown.len()).map(|index| (Instant::now(), FIRST_WAIT, index)).collect();
    board.show_preload(version, &shown);
    while let Some(next) = due.iter().map(|(at, ..)| *at).min() {
        sleep_until(next).await;
        let now = Instant::now();
        let Some(position) = due.iter().position(|(at, ..)| *at <= now) else { continue };
        let (_, wait, index) = due.remove(position);
        shown[index].state = PreloadState::Copying;
        let mut tell = |detail: String| {
            shown[index].detail = detail;
            board.show_preload(version, &shown);
        };
        let done = copy(&docker, &order.registry, &order.images[index], &mut tell).await;
        let (state, detail, copied, bytes) = match done {
            Ok(Done { copied, bytes, said }) => (PreloadState::Done, said.to_string(), copied, bytes),
            Err(error) => {
                tracing::warn!(image = order.images[index].from, error, "the image could not be copied");
                due.push((Instant::now() + wait, (wait * 2).min(LONGEST_WAIT), index));
                (PreloadState::Failed, format!("{error}; {}", remedy(&error)), None, None)
            }
        };
        let image = order.images[index].from.clone();
        shown[index] = PreloadedImage { image, state, bytes, copied, detail };
        board.show_preload(version, &shown);
    }
}

/// What has come of it.
struct Done {
    copied: Option<Copied>,
    bytes: Option<u64>,
    said: &'static str,
}

async fn copy(docker: &Docker<'_>, registry: &str, image: &PreloadImage, tell: &mut impl FnMut(String)) -> Result<Done, String> {
    let (from, to) = (&image.from, format!("{registry}/{}", image.to));
    tell("looking whether it is there already".into());
    let (source, target) = (docker.digest(from).await, docker.digest(&to).await);
    if let Some(target) = target {
        let is_known =
            image.known.as_ref().is_some_and(|known| known.target == target && source.as_ref().is_none_or(|s| *s == known.source));
        if is_known || source.as_ref() == Some(&target) {
            let source = source.or_else(|| image.known.as_ref().map(|known| known.source.clone())).unwrap_or_default();
            return Ok(Done { copied: Some(Copied { source, target }), bytes: None, said: "it was there already" });
        }
    }
    let (had_from, had_to) = (docker.has(from).await?, docker.has(&to).await?);
    let done = pull_and_push(docker, image, &to, tell).await;
    // What the host had before it keeps, and nothing else.
    for name in [(!had_to).then_some(&to), (!had_from).then_some(from)].into_iter().flatten() {
        if let Err(error) = docker.remove(name).await {
            tracing::warn!(name, error, "the image stays in this host's docker");
        }
    }
    let (target, bytes) = done?;
    let copied = source.map(|source| Copied { source, target });
    Ok(Done { copied, bytes, said: "copied" })
}

async fn pull_and_push(
    docker: &Docker<'_>,
    image: &PreloadImage,
    to: &str,
    tell: &mut impl FnMut(String),
) -> Result<(String, Option<u64>), String> {
    let split = |name: &str| name.rsplit_once(':').map(|(name, tag)| (name.to_string(), tag.to_string())).unwrap_or_default();
    let (name, tag) = split(&image.from);
    docker.stream(&format!("/images/create?fromImage={name}&tag={tag}"), "pulled", tell).await?;
    let (repo, tag) = split(to);
    docker.call(Method::POST, &format!("/images/{}/tag?repo={repo}&tag={tag}", image.from)).await?;
    let last = docker.stream(&format!("/images/{repo}/push?tag={tag}"), "pushed", tell).await?;
    let digest = last["aux"]["Digest"].as_str().map(str::to_string);
    let digest = match digest {
        Some(digest) => digest,
        // An old daemon says it in words only.
        None => docker.digest(to).await.unwrap_or_default(),
    };
    let found = docker.call(Method::GET, &format!("/images/{to}/json")).await?;
    Ok((digest, found["Size"].as_u64()))
}

/// The docker daemon.
struct Docker<'a> {
    socket: &'a Path,
}

impl Docker<'_> {
    /// Digest of an image in its registry, if the daemon is told of one.
    async fn digest(&self, name: &str) -> Option<String> {
        let found = self.call(Method::GET, &format!("/distribution/{name}/json")).await.ok()?;
        found["Descriptor"]["digest"].as_str().map(str::to_string)
    }

    /// Whether the host has an image.
    async fn has(&self, name: &str) -> Result<bool, String> {
        match self.exchange(Method::GET, &format!("/images/{name}/json"), &mut |_| {}).await? {
            (200, _) => Ok(true),
            (404, _) => Ok(false),
            (status, last) => Err(said(status, &last)),
        }
    }

    async fn remove(&self, name: &str) -> Result<(), String> {
        match self.exchange(Method::DELETE, &format!("/images/{name}"), &mut |_| {}).await? {
            (200 | 404, _) => Ok(()),
            (status, last) => Err(said(status, &last)),
        }
    }

    async fn call(&self, method: Method, path: &str) -> Result<Value, String> {
        let (status, last) = self.exchange(method, path, &mut |_| {}).await?;
        if (200..300).contains(&status) { Ok(last) } else { Err(said(status, &last)) }
    }

    /// Pulls or pushes, and tells how many bytes have moved. Returns the last line that says more than progress.
    async fn stream(&self, path: &str, verb: &str, tell: &mut impl FnMut(String)) -> Result<Value, String> {
        let (mut moved, mut failure, mut aux) = (BTreeMap::new(), None, Value::Null);
        let mut told = Instant::now();
        let (status, last) = self
            .exchange(Method::POST, path, &mut |line: &Value| {
                if let Some(error) = line["error"].as_str() {
                    failure = Some(error.to_string());
                }
                if line["aux"].is_object() {
                    aux = line.clone();
                }
                if let (Some(id), Some(bytes)) = (line["id"].as_str(), line["progressDetail"]["current"].as_u64()) {
                    let most: &mut u64 = moved.entry(id.to_string()).or_default();
                    *most = bytes.max(*most);
                }
                if told.elapsed() >= Duration::from_secs(1) {
                    told = Instant::now();
                    tell(format!("{verb} {}", crate::collection::size(moved.values().sum())));
                }
            })
            .await?;
        match failure {
            Some(error) => Err(error),
            None if (200..300).contains(&status) => Ok(aux),
            None => Err(said(status, &last)),
        }
    }

    /// One request. Its answer is a JSON document, or a line of it for each step, each of which `heard` gets; the last is returned.
    async fn exchange(&self, method: Method, path: &str, heard: &mut impl FnMut(&Value)) -> Result<(u16, Value), String> {
        let words = |error: &dyn std::fmt::Display| format!("the docker daemon does not answer at {}: {error}", self.socket.display());
        let stream = UnixStream::connect(self.socket).await.map_err(|error| words(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "docker")
            // Required for a push, though it says nothing: base64 of {}.
            .header("X-Registry-Auth", "e30=")
            .body(Empty::<Bytes>::new())
            .map_err(|error| words(&error))?;
        let answer = async {
            let slow = |_| words(&format!("not a word for {} s", PATIENCE.as_secs()));
            let answer = timeout(PATIENCE, sender.send_request(request)).await.map_err(slow)?.map_err(|error| words(&error))?;
            let (status, mut body) = (answer.status().as_u16(), answer.into_body());
            let (mut buffer, mut last) = (Vec::new(), Value::Null);
            while let Some(frame) = timeout(PATIENCE, body.frame()).await.map_err(slow)? {
                buffer.extend_from_slice(&frame.map_err(|error| words(&error))?.into_data().unwrap_or_default());
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    if let Ok(value) = serde_json::from_slice(&line) {
                        heard(&value);
                        last = value;
                    }
                }
                if buffer.len() > LONGEST_LINE {
                    return Err(words(&"its answer has a line without an end"));
                }
            }
            if let Ok(value) = serde_json::from_slice(&buffer) {
                heard(&value);
                last = value;
            }
            Ok((status, last))
        };
        tokio::pin!(connection);
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // It may end before the last of its answer has been read.
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(words(&error)),
            },
        }
    }
}

fn said(status: u16, answer: &Value) -> String {
    answer["message"].as_str().map_or_else(|| format!("the docker daemon answers {status}"), str::to_string)
}
