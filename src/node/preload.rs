//! Copies images of other registries into ours, by the docker daemon of this host: it has the trust for both, and the way out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::board::Board;
use super::files::{Found, HostFiles};
use super::pass::Host;
use crate::preload::{LOGIN, remedy};
use crate::protocol::{Copied, PreloadImage, PreloadOrder, PreloadState, PreloadedImage};

const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(900);
/// The daemon says something more often, as long as anything moves.
const PATIENCE: Duration = Duration::from_secs(600);
/// A line of progress is shorter; an answer that is no stream of them, too.
const LONGEST_LINE: usize = 1024 * 1024;

/// Required for a push, though it says nothing: base64 of {}.
const NOBODY: &str = "e30=";

/// Copies what the last order says, and tries again what has failed, for ever.
pub(super) async fn keep(board: Arc<Board>, host: Host) {
    let mut taken = None;
    loop {
        // Of a node before this one, or of a copy that was broken off.
        let clean = clean(&host).await;
        let present = board.preload_order();
        match present.filter(|(version, _)| taken != Some(*version)) {
            None => tokio::select! {
                () = board.preload_changed.notified() => {}
                () = sleep(LONGEST_WAIT), if !clean => {}
            },
            Some((version, order)) => {
                taken = Some(version);
                tokio::select! {
                    () = copy_all(&board, &host, version, &order) => {}
                    () = board.preload_changed.notified() => taken = None,
                }
            }
        }
    }
}

/// Has docker remove what was brought into it. Says whether nothing is left.
async fn clean(host: &Host) -> bool {
    let leftovers = host.leftovers.clone();
    match off_thread(move || leftovers.clean()).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}

/// A disk or a docker that hangs must not make the node look dead.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

async fn copy_all(board: &Arc<Board>, host: &Host, version: u64, order: &PreloadOrder) {
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
        let copier = Copier { board, host, version, order };
        let done = copier.copy(&order.images[index], &mut tell).await;
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

/// What every image of an order needs.
struct Copier<'a> {
    board: &'a Arc<Board>,
    host: &'a Host,
    version: u64,
    order: &'a PreloadOrder,
}

impl Copier<'_> {
    async fn copy(&self, image: &PreloadImage, tell: &mut impl FnMut(String)) -> Result<Done, String> {
        let (from, to) = (&image.from, format!("{}/{}", self.order.registry, image.to));
        tell("looking whether it is there already".into());
        let theirs = Docker { socket: self.host.root.docker_socket(), login: HeaderValue::from_static(NOBODY) };
        // Read for each image: it is another one when the registry has been started anew.
        let ours = Docker { socket: self.host.root.docker_socket(), login: self.login().await? };
        let (source, target) = (theirs.digest(from).await, ours.digest(&to).await);
        if let Some(target) = target {
            let is_known =
                image.known.as_ref().is_some_and(|known| known.target == target && source.as_ref().is_none_or(|s| *s == known.source));
            if is_known || source.as_ref() == Some(&target) {
                let source = source.or_else(|| image.known.as_ref().map(|known| known.source.clone())).unwrap_or_default();
                return Ok(Done { copied: Some(Copied { source, target }), bytes: None, said: "it was there already" });
            }
        }
        // What the host had before it keeps, and nothing else.
        let mut brought = Vec::new();
        for name in [from, &to] {
            if !theirs.has(name).await? {
                brought.push(name.clone());
            }
        }
        let (leftovers, board, version) = (self.host.leftovers.clone(), Arc::clone(self.board), self.version);
        let is_wanted = move || board.preload_order().is_some_and(|(present, _)| present == version);
        off_thread(move || leftovers.note(&brought, is_wanted)).await?;
        let done = pull_and_push(&theirs, &ours, image, &to, tell).await;
        clean(self.host).await;
        let (target, bytes) = done?;
        let copied = source.map(|source| Copied { source, target });
        Ok(Done { copied, bytes, said: "copied" })
    }

    /// How docker logs in at our registry.
    async fn login(&self) -> Result<HeaderValue, String> {
        if !self.order.login {
            return Ok(HeaderValue::from_static(NOBODY));
        }
        let (host, registry) = (self.host.clone(), self.order.registry.clone());
        off_thread(move || account(&host, &registry)).await
    }
}

/// The account that the registry has left on this host, as docker wants it.
fn account(host: &Host, registry: &str) -> Result<HeaderValue, String> {
    let path = host.root.registry_account(&host.service);
    let found = HostFiles::open(&host.root, "").and_then(|files| files.look(&path)).map_err(|error| error.to_string())?;
    let Found::File(text) = found else { return Err(format!("{LOGIN} is not in {} yet", path.display())) };
    let text = String::from_utf8_lossy(&text);
    let (name, password) = text.split_once(':').ok_or_else(|| format!("{LOGIN} in {} cannot be read", path.display()))?;
    let login = json!({ "username": name, "password": password, "serveraddress": registry }).to_string();
    let mut value = HeaderValue::from_str(&URL_SAFE.encode(login)).map_err(|error| format!("{LOGIN} cannot be sent: {error}"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn pull_and_push(
    theirs: &Docker,
    ours: &Docker,
    image: &PreloadImage,
    to: &str,
    tell: &mut impl FnMut(String),
) -> Result<(String, Option<u64>), String> {
    let split = |name: &str| name.rsplit_once(':').map(|(name, tag)| (name.to_string(), tag.to_string())).unwrap_or_default();
    let (name, tag) = split(&image.from);
    theirs.stream(&format!("/images/create?fromImage={name}&tag={tag}"), "pulled", tell).await?;
    let (repo, tag) = split(to);
    theirs.call(Method::POST, &format!("/images/{}/tag?repo={repo}&tag={tag}", image.from)).await?;
    let pushed = ours.stream(&format!("/images/{repo}/push?tag={tag}"), "pushed", tell).await;
    let refused = |error: &String| ours.login.is_sensitive() && ["unauthorized", "no basic auth"].iter().any(|word| error.contains(word));
    let last = pushed.map_err(|error| if refused(&error) { format!("{LOGIN} was not taken: {error}") } else { error })?;
    let digest = last["aux"]["Digest"].as_str().map(str::to_string);
    let digest = match digest {
        Some(digest) => digest,
        // An old daemon says it in words only.
        None => ours.digest(to).await.unwrap_or_default(),
    };
    let found = ours.call(Method::GET, &format!("/images/{to}/json")).await?;
    Ok((digest, found["Size"].as_u64()))
}

/// The docker daemon, and as whom it is to ask a registry.
struct Docker {
    socket: PathBuf,
    login: HeaderValue,
}

impl Docker {
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
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| words(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "docker")
            .header("X-Registry-Auth", self.login.clone())
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
                    if let Ok(value) = crate::json::of_bytes(&line) {
                        heard(&value);
                        last = value;
                    }
                }
                if buffer.len() > LONGEST_LINE {
                    return Err(words(&"its answer has a line without an end"));
                }
            }
            if let Ok(value) = crate::json::of_bytes(&buffer) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::fs;
    use std::path::Path;
    use std::sync::Mutex;

    use http_body_util::Full;
    use hyper::Response;
    use hyper::service::service_fn;
    use tokio::net::UnixListener;

    use super::*;
    use crate::certificates::{OrderKey, OrderSigner};
    use crate::host_paths::HostRoot;
    use crate::node::config::NodeConfig;
    use crate::node::converge::Running;
    use crate::node::orders;
    use crate::protocol::{Order, OrderKind, SignedOrder, TrustBundle};

    const SERVICE: &str = "private-registry";
    const FROM: &str = "quay.io/base/hello:1";
    const TO: &str = "192.168.0.1/base/hello:1";

    /// A docker daemon with some images.
    #[derive(Default)]
    struct Daemon {
        images: Mutex<BTreeSet<String>>,
        /// A push takes for ever.
        hangs: Mutex<bool>,
        /// Every request that goes to a registry, and with which login.
        sent: Mutex<Vec<(String, String)>>,
    }

    impl Daemon {
        fn start(root: &Path) -> Arc<Self> {
            let daemon = Arc::new(Self::default());
            fs::create_dir_all(root.join("var/run")).unwrap();
            let listener = UnixListener::bind(root.join("var/run/docker.sock")).unwrap();
            let shared = Arc::clone(&daemon);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let daemon = Arc::clone(&shared);
                    let service = service_fn(move |request| Arc::clone(&daemon).answer(request));
                    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                }
            });
            daemon
        }

        async fn answer(self: Arc<Self>, request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
            let (path, query) = (request.uri().path().to_string(), request.uri().query().unwrap_or_default().to_string());
            let login = request.headers().get("X-Registry-Auth").map(|value| value.to_str().unwrap().to_string()).unwrap_or_default();
            let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}="))).unwrap().to_string();
            let name = || path.strip_prefix("/images/").unwrap().trim_end_matches("/json").to_string();
            if path == "/images/create" || path.ends_with("/push") || path.starts_with("/distribution/") {
                self.sent.lock().unwrap().push((path.clone(), login));
            }
            let (status, text) = match request.method().as_str() {
                "DELETE" => (if self.images.lock().unwrap().remove(&name()) { 200 } else { 404 }, "[]"),
                "GET" if path.starts_with("/distribution/") => (404, "{}"),
                "GET" => (if self.images.lock().unwrap().contains(&name()) { 200 } else { 404 }, "{\"Size\": 7}"),
                _ if path == "/images/create" => {
                    self.images.lock().unwrap().insert(format!("{}:{}", value("fromImage"), value("tag")));
                    (200, "{}")
                }
                _ if path.ends_with("/tag") => {
                    self.images.lock().unwrap().insert(format!("{}:{}", value("repo"), value("tag")));
                    (201, "")
                }
                _ => {
                    while *self.hangs.lock().unwrap() {
                        sleep(Duration::from_millis(10)).await;
                    }
                    (200, "{\"aux\": {\"Digest\": \"sha256:1\"}}")
                }
            };
            Ok(Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
        }

        fn images(&self) -> Vec<String> {
            self.images.lock().unwrap().iter().cloned().collect()
        }
    }

    struct TestHost {
        dir: tempfile::TempDir,
        signer: OrderSigner,
        docker: Arc<Daemon>,
    }

    impl TestHost {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["etc/docker", "etc/sysctl.d", "var/lib"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            let docker = Daemon::start(dir.path());
            Self { dir, signer: OrderSigner::generate().unwrap(), docker }
        }

        fn host(&self) -> Host {
            Host::new(HostRoot::at(self.dir.path()), SERVICE.into())
        }

        fn order(&self, version: u64, kind: OrderKind) -> SignedOrder {
            self.signer.sign(&Order { service: SERVICE.into(), version, kind })
        }

        /// A node that has made the host trust and is told to copy the image.
        fn node(&self, login: bool) -> (Arc<Board>, Running) {
            let first_order = self.order(1, OrderKind::Trust(TrustBundle::default()));
            let config = NodeConfig {
                root: HostRoot::at(self.dir.path()),
                service: SERVICE.into(),
                order_key: OrderKey::from_base64(&self.signer.verifying_key_base64()).unwrap(),
                first_order: first_order.clone(),
                port: 0,
                host: "127.0.0.1".parse().unwrap(),
                executor: "instance-1".into(),
            };
            let accepted = orders::open(&config, first_order.clone()).unwrap();
            let orders::Task::Trust(bundle) = &accepted.task else { panic!("{accepted:?}") };
            let host = self.host();
            assert!(host.apply(&first_order, bundle).in_place);
            let board = Arc::new(Board::new(config, accepted));
            let image = PreloadImage { from: FROM.into(), to: "base/hello:1".into(), known: None };
            let order = PreloadOrder { registry: "192.168.0.1".into(), login, images: vec![image] };
            board.take(self.order(2, OrderKind::Preload(order))).unwrap();
            let running = Running::start(keep(Arc::clone(&board), host));
            (board, running)
        }

        /// A node that is killed while docker pushes.
        async fn killed(&self) {
            self.docker.sent.lock().unwrap().clear();
            *self.docker.hangs.lock().unwrap() = true;
            let (_, running) = self.node(false);
            until("the push", || self.docker.sent.lock().unwrap().iter().any(|(path, _)| path.ends_with("/push"))).await;
            drop(running);
            assert_eq!(self.docker.images(), [TO, FROM]);
            *self.docker.hangs.lock().unwrap() = false;
        }

        fn record(&self) -> PathBuf {
            self.dir.path().join("var/lib/private-registry/private-registry/node/preload.json")
        }
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..1000 {
            if done() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {what}");
    }

    fn shown(board: &Board) -> PreloadedImage {
        board.status().preload.unwrap().images.into_iter().next().unwrap_or_else(|| panic!("{:?}", board.status()))
    }

    fn shows(board: &Board, state: PreloadState) -> bool {
        board.status().preload.is_some_and(|preload| preload.images.iter().any(|image| image.state == state))
    }

    #[tokio::test]
    async fn docker_logs_in_at_our_registry_alone_with_the_account_that_lies_on_this_host() {
        let host = TestHost::new();
        let (board, running) = host.node(true);
        until("the word that there is no account", || shows(&board, PreloadState::Failed)).await;
        let detail = shown(&board).detail;
        assert!(detail.contains("private-registry/registry/account yet; it is another one at every start"), "{detail}");
        assert!(host.docker.sent.lock().unwrap().is_empty());
        drop(running);

        let path = HostRoot::at(host.dir.path()).registry_account(SERVICE);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "internal:pass:word").unwrap();
        let (board, _running) = host.node(true);
        until("the image", || shows(&board, PreloadState::Done)).await;
        let login = json!({ "username": "internal", "password": "pass:word", "serveraddress": "192.168.0.1" });
        let sent = host.docker.sent.lock().unwrap().clone();
        for (path, with) in &sent {
            let with: Value = serde_json::from_slice(&URL_SAFE.decode(with).unwrap()).unwrap();
            assert_eq!(with, if path.contains("192.168.0.1") { login.clone() } else { json!({}) }, "{path}");
        }
        assert_eq!(sent.len(), 4, "{sent:?}");
        assert!(!serde_json::to_string(&board.status()).unwrap().contains("pass:word"));
        assert!(host.docker.images().is_empty() && !host.record().exists());
    }

    #[tokio::test]
    async fn what_a_killed_node_has_pulled_goes_when_it_comes_back_or_the_host_is_restored_and_the_operators_stays() {
        let host = TestHost::new();
        host.killed().await;
        assert!(host.record().exists());
        let (board, running) = host.node(false);
        until("the image", || shows(&board, PreloadState::Done)).await;
        assert!(host.docker.images().is_empty() && !host.record().exists(), "{:?}", host.docker.images());
        drop(running);

        host.docker.images.lock().unwrap().insert(FROM.into());
        host.killed().await;
        let restored = |host: &TestHost| {
            let (order, host) = (host.order(3, OrderKind::Restore), host.host());
            tokio::task::spawn_blocking(move || host.restore(&order).errors)
        };
        // As long as docker does not answer, it is on record.
        let (socket, away) = (host.dir.path().join("var/run/docker.sock"), host.dir.path().join("var/run/away"));
        fs::rename(&socket, &away).unwrap();
        let errors = restored(&host).await.unwrap();
        assert!(errors.len() == 1 && errors[0].starts_with(&format!("{TO}, which was copied into the registry, is still")), "{errors:?}");
        fs::rename(&away, &socket).unwrap();
        assert_eq!(restored(&host).await.unwrap(), Vec::<String>::new());
        assert_eq!(host.docker.images(), [FROM]);
        assert!(!host.dir.path().join("var/lib/private-registry").exists());
    }

    #[tokio::test]
    async fn a_copy_that_is_broken_off_by_another_order_leaves_nothing_in_docker() {
        let host = TestHost::new();
        *host.docker.hangs.lock().unwrap() = true;
        let (board, _running) = host.node(false);
        until("the push", || host.docker.sent.lock().unwrap().iter().any(|(path, _)| path.ends_with("/push"))).await;
        let order = PreloadOrder { registry: "192.168.0.1".into(), login: false, images: Vec::new() };
        board.take(host.order(3, OrderKind::Preload(order))).unwrap();
        until("docker to be clean", || host.docker.images().is_empty() && !host.record().exists()).await;
    }
}
