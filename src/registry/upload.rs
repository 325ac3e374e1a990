//! Gives the images of a backup to a registry through its own API, where they do not lie in files: `copy` says when.
//!
//! The registry goes on serving and taking pushes. What it has beside the backup stays; what it has already is not sent again, so that
//! what was killed is simply done again. Blobs go before the manifests that name them, and manifests before indexes and tags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use ring::digest::{Context, SHA256};
use serde_json::Value;
use tokio::time::sleep;

use super::access::Access;
use super::backup::{CopyError, Index, MAX_MANIFEST, NAMED, Repository, Result, Watcher, blob_of, is_digest, needs};
use super::config::RegistryConfig;
use crate::dcos::{Api, chain, read_to_end};
use crate::digest::{hex, sha256_hex};
use crate::in_order::InOrder as _;
use crate::protocol::{CopyCounts, media};

/// All but the content of a blob is answered in less.
const PATIENCE: Duration = Duration::from_secs(120);
/// An object store may move a large blob for minutes before the registry answers.
const STALLED: Duration = Duration::from_secs(1800);
/// A registry that is started anew for its certificate, and a store that is too busy, do better later.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(5);
/// Bytes that are read at a time.
const PIECE: u64 = 256 * 1024;
/// What a registry complains about is no longer.
const MAX_COMPLAINT: usize = 300;

/// The registry, and how this role gets in.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    base: String,
    access: Access,
}

impl Registry {
    pub(super) fn of(config: &RegistryConfig, access: &Access) -> Self {
        Self { base: config.own_url(), access: access.clone() }
    }
}

/// Gives the registry what the backup has and it does not. Made for a thread of its own.
pub(super) fn upload(backup: &Path, registry: &Registry, called_off: &AtomicBool, watcher: &dyn Watcher) -> Result<CopyCounts> {
    let index = Index::open(backup)?;
    // Its certificate is for the names that others use. This is our own child, and nothing leaves the container.
    let client = Api::builder().danger_accept_invalid_certs(true).timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|error| CopyError::Registry(chain(&error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CopyError::Registry(format!("no runtime can be made: {error}")))?;
    let counts = CopyCounts::default();
    let mut upload = Upload { backup, index: &index, client, registry, called_off, watcher, counts, homes: BTreeMap::new() };
    runtime.block_on(upload.all())?;
    Ok(upload.counts)
}

struct Upload<'a> {
    backup: &'a Path,
    index: &'a Index,
    client: reqwest::Client,
    registry: &'a Registry,
    called_off: &'a AtomicBool,
    watcher: &'a dyn Watcher,
    counts: CopyCounts,
    /// Blobs that the registry is known to have, and a repository that has each.
    homes: BTreeMap<String, String>,
}

/// How one attempt has failed.
enum Failure {
    /// Another one may do better.
    Passing(String),
    Lasting(CopyError),
}

impl Upload<'_> {
    async fn all(&mut self) -> Result<()> {
        for (name, repository) in &self.index.repositories {
            self.repository(name, repository).await?;
        }
        self.watcher.told(&self.counts);
        Ok(())
    }

    async fn repository(&mut self, name: &str, repository: &Repository) -> Result<()> {
        let (mut blobs, mut children) = (repository.layers.clone(), BTreeMap::new());
        for digest in &repository.revisions {
            let manifest = self.manifest(digest)?;
            blobs.extend(needs(&manifest).into_iter().filter(|digest| self.index.blobs.contains_key(digest)));
            children.insert(digest.clone(), children_of(&manifest));
        }
        for digest in &blobs {
            self.blob(name, digest).await?;
        }
        let mut refused = BTreeMap::new();
        for digest in children_first(&children) {
            if let Err(reason) = self.put_manifest(name, &format!("sha256:{digest}"), &digest).await? {
                refused.insert(digest, reason);
            }
        }
        for (tag, of_tag) in &repository.tags {
            if !refused.contains_key(&of_tag.current) {
                match self.put_manifest(name, tag, &of_tag.current).await? {
                    Ok(()) => self.counts.images += 1,
                    Err(reason) => self.refused(format!("{name}:{tag}: {reason}")),
                }
            }
        }
        for (digest, reason) in refused {
            let tags = repository.tags.iter().filter(|(_, tag)| tag.current == digest).map(|(tag, _)| format!("{name}:{tag}"));
            let named: Vec<String> = tags.collect();
            let named = if named.is_empty() { format!("{name}@sha256:{digest}") } else { named.join(", ") };
            self.refused(format!("{named}: {reason}"));
        }
        Ok(())
    }

    fn refused(&mut self, said: String) {
        tracing::error!("the registry has refused an image of the backup: {said}");
        self.counts.damaged += 1;
        if self.counts.damaged_images.len() < NAMED {
            self.counts.damaged_images.push(said);
        }
    }

    /// A manifest of the backup, if it has its digest.
    fn manifest(&self, digest: &str) -> Result<Vec<u8>> {
        let damaged = |reason: String| CopyError::Damaged(digest.into(), reason);
        if self.index.blobs.get(digest).is_none_or(|size| *size > MAX_MANIFEST) {
            return Err(damaged("it is longer than any manifest is".into()));
        }
        let text = fs::read(blob_of(self.backup, digest)).map_err(|error| damaged(error.to_string()))?;
        let found = sha256_hex(&text);
        if found == digest { Ok(text) } else { Err(damaged(format!("its content has the digest sha256:{found}"))) }
    }

    /// The registry has a blob, in this repository.
    fn has(&mut self, name: &str, digest: &str, copied: bool) {
        if self.homes.insert(digest.into(), name.into()).is_none() {
            self.counts.blobs += 1;
            self.counts.bytes += self.index.blobs.get(digest).copied().unwrap_or_default();
        }
        self.counts.blobs_copied += u64::from(copied);
        self.watcher.told(&self.counts);
    }

    /// Puts a manifest under its digest or a tag; or says why the registry does not take it.
    async fn put_manifest(&mut self, name: &str, reference: &str, digest: &str) -> Result<std::result::Result<(), String>> {
        let path = format!("/v2/{name}/manifests/{reference}");
        let answer = self.ask(|| self.request(Method::HEAD, &path).header(ACCEPT, media::ALL.join(", "))).await?;
        let present = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        if answer.status().is_success() && present.and_then(|present| present.strip_prefix("sha256:")) == Some(digest) {
            self.has(name, digest, false);
            return Ok(Ok(()));
        }
        let text = self.manifest(digest)?;
        let kind = media_type(&text);
        let put = || self.request(Method::PUT, &path).header(CONTENT_TYPE, &kind).body(text.clone());
        let answer = self.ask(put).await?;
        match answer.status() {
            status if status.is_success() => {
                let is_new = !self.homes.contains_key(digest);
                self.counts.bytes_copied += if is_new { text.len() as u64 } else { 0 };
                self.has(name, digest, is_new);
                Ok(Ok(()))
            }
            // What it does not take, as an image for several platforms some of which have been deleted.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Ok(Err(complaint(answer).await)),
            status => Err(CopyError::Registry(format!("it answers {status} to a push of {name}: {}", complaint(answer).await))),
        }
    }

    async fn blob(&mut self, name: &str, digest: &str) -> Result<()> {
        let path = format!("/v2/{name}/blobs/sha256:{digest}");
        let answer = self.ask(|| self.request(Method::HEAD, &path)).await?;
        let size = self.index.blobs.get(digest).copied().unwrap_or_default();
        match answer.status() {
            StatusCode::OK => {
                let found = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
                if found.is_some_and(|found| found != size) {
                    return Err(CopyError::Registry(format!(
                        "its blob sha256:{digest} has {} bytes instead of {size}, and it takes no other; remove that blob from the object store",
                        found.unwrap_or_default()
                    )));
                }
                self.has(name, digest, false);
                return Ok(());
            }
            // The object store gives it to clients itself.
            status if status.is_redirection() => {
                self.has(name, digest, false);
                return Ok(());
            }
            StatusCode::NOT_FOUND => {}
            status => return Err(CopyError::Registry(format!("it answers {status} to {path}"))),
        }
        for left in (0..TRIES).rev() {
            match self.send(name, digest, size).await {
                Ok(copied) => {
                    self.has(name, digest, copied);
                    return Ok(());
                }
                Err(Failure::Passing(reason)) if left > 0 => self.pause(&reason).await?,
                Err(Failure::Passing(reason)) => return Err(CopyError::Registry(reason)),
                Err(Failure::Lasting(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends a blob, unless the registry can take it from another of its repositories. Returns whether it was sent.
    async fn send(&mut self, name: &str, digest: &str, size: u64) -> std::result::Result<bool, Failure> {
        let from = self.homes.get(digest).map(|home| format!("?mount=sha256:{digest}&from={home}"));
        let path = format!("/v2/{name}/blobs/uploads/{}", from.unwrap_or_default());
        let answer = self.ask(|| self.request(Method::POST, &path)).await.map_err(Failure::Lasting)?;
        match answer.status() {
            StatusCode::CREATED => return Ok(false),
            StatusCode::ACCEPTED => {}
            status => {
                let text = format!("it answers {status} to a push to {name}: {}", complaint(answer).await);
                return Err(Failure::Lasting(CopyError::Registry(text)));
            }
        }
        let upload = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let path = upload.and_then(|location| self.place(location, None)).ok_or_else(nowhere)?;
        let file = File::open(blob_of(self.backup, digest)).map_err(|error| damaged(digest, &error.to_string()))?;
        let (sent, fault) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let content = Content {
            file,
            digest: digest.into(),
            left: size,
            context: Context::new(&SHA256),
            sent: Arc::clone(&sent),
            fault: Arc::clone(&fault),
        };
        let request = self.request(Method::PATCH, &path).header(CONTENT_TYPE, "application/octet-stream");
        // How long it may take is not known; below, it may only not stand still.
        let request = request.timeout(Duration::from_secs(7 * 24 * 3600)).body(reqwest::Body::wrap(content)).send();
        let answer = self.watched(request, &sent).await;
        if let Some(reason) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(damaged(digest, &reason));
        }
        let mut answer = answer?;
        // In two steps, as docker does: it is what every registry and store is used to.
        if answer.status() == StatusCode::ACCEPTED {
            let next = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let path = next.and_then(|location| self.place(location, Some(digest))).ok_or_else(nowhere)?;
            let end = self.request(Method::PUT, &path).header(CONTENT_LENGTH, 0).timeout(STALLED).send();
            answer = self.watched(end, &sent).await?;
        }
        match answer.status() {
            StatusCode::CREATED => {
                self.counts.bytes_copied += size;
                Ok(true)
            }
            status => {
                let text = format!("it answers {status} to the blob sha256:{digest}: {}", complaint(answer).await);
                // An upload that another start of the registry does not know any more is begun again, too.
                let passing = is_passing(status) || status == StatusCode::NOT_FOUND;
                Err(if passing { Failure::Passing(text) } else { Failure::Lasting(CopyError::Registry(text)) })
            }
        }
    }

    /// Waits for the answer to a request whose content may take hours, and tells how it goes on.
    async fn watched(
        &self,
        request: impl Future<Output = reqwest::Result<Response>>,
        sent: &AtomicU64,
    ) -> std::result::Result<Response, Failure> {
        let mut request = std::pin::pin!(request);
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            tokio::select! {
                answer = &mut request => {
                    return answer.map_err(|error| Failure::Passing(format!("it does not answer: {}", chain(&error))));
                }
                () = sleep(Duration::from_secs(1)) => {}
            }
            self.go_on().map_err(Failure::Lasting)?;
            let now = sent.load(Ordering::Relaxed);
            if now != last {
                (last, moved) = (now, Instant::now());
            } else if moved.elapsed() > STALLED {
                return Err(Failure::Passing(format!("it has taken nothing for {} s", STALLED.as_secs())));
            }
            let bytes_copied = self.counts.bytes_copied + now;
            self.watcher.told(&CopyCounts { bytes_copied, ..self.counts.clone() });
        }
    }

    /// Where a blob is sent, or with its digest, ended: a path, whatever host the registry believes to be.
    fn place(&self, location: &str, digest: Option<&str>) -> Option<String> {
        let mut url = Url::parse(&self.registry.base).ok()?.join(location).ok()?;
        if let Some(digest) = digest {
            url.query_pairs_mut().append_pair("digest", &format!("sha256:{digest}"));
        }
        Some(format!("{}?{}", url.path(), url.query().unwrap_or_default()))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.registry.access.on(self.client.request(method, format!("{}{path}", self.registry.base)))
    }

    /// Asks until there is an answer that another attempt would not change.
    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let mut left = TRIES;
        loop {
            self.go_on()?;
            left -= 1;
            let reason = match request().send().await {
                Ok(answer) if !is_passing(answer.status()) => return Ok(answer),
                Ok(answer) => format!("it answers {}: {}", answer.status(), complaint(answer).await),
                Err(error) => format!("it does not answer: {}", chain(&error)),
            };
            if left == 0 {
                return Err(CopyError::Registry(reason));
            }
            self.pause(&reason).await?;
        }
    }

    async fn pause(&self, reason: &str) -> Result<()> {
        tracing::warn!("the registry is asked again in {} s: {reason}", PAUSE.as_secs());
        sleep(PAUSE).await;
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        if self.called_off.load(Ordering::Relaxed) { Err(CopyError::CalledOff) } else { Ok(()) }
    }
}

fn damaged(digest: &str, reason: &str) -> Failure {
    Failure::Lasting(CopyError::Damaged(digest.into(), reason.into()))
}

fn nowhere() -> Failure {
    Failure::Lasting(CopyError::Registry("it does not say where a blob is to be sent".into()))
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// What a registry says about a request that it does not do.
async fn complaint(answer: Response) -> String {
    let text = read_to_end(answer, 64 * 1024).await.unwrap_or_default();
    let parsed: Value = crate::json::of_text(&text).unwrap_or_default();
    let first = &parsed["errors"][0];
    let said = match (first["message"].as_str(), &first["detail"]) {
        (Some(message), Value::Null) => message.to_string(),
        (Some(message), detail) => format!("{message} ({detail})"),
        (None, _) => text,
    };
    said.trim().chars().take(MAX_COMPLAINT).collect()
}

/// Under which type a manifest is pushed: Docker's say it themselves, OCI's may leave it out.
fn media_type(manifest: &[u8]) -> String {
    let manifest: Value = crate::json::of_bytes(manifest).unwrap_or_default();
    let known = match manifest["mediaType"].as_str() {
        Some(own) => return own.into(),
        None if manifest["schemaVersion"] == 1 && manifest.get("signatures").is_some() => media::SIGNED_SCHEMA_1,
        None if manifest["schemaVersion"] == 1 => media::SCHEMA_1,
        None if manifest.get("manifests").is_some() => media::OCI_INDEX,
        None => media::OCI,
    };
    known.into()
}

/// Manifests that an index names.
fn children_of(manifest: &[u8]) -> BTreeSet<String> {
    let manifest: Value = crate::json::of_bytes(manifest).unwrap_or_default();
    let digests = manifest["manifests"].as_array().into_iter().flatten().filter_map(|child| child["digest"].as_str());
    digests.filter_map(|digest| digest.strip_prefix("sha256:")).filter(|digest| is_digest(digest)).map(String::from).in_order()
}

/// All manifests, each behind those of its children that are there.
fn children_first(children: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
    let mut ahead: Vec<(&String, bool)> = children.keys().rev().map(|digest| (digest, false)).collect();
    while let Some((digest, is_due)) = ahead.pop() {
        if is_due {
            ordered.push(digest.clone());
        } else if let Some(inner) = children.get(digest).filter(|_| seen.insert(digest)) {
            ahead.push((digest, true));
            ahead.extend(inner.iter().map(|child| (child, false)));
        }
    }
    ordered
}

/// A blob on its way from the file. Its last bytes are let go only when all of it has its digest.
struct Content {
    file: File,
    digest: String,
    left: u64,
    context: Context,
    sent: Arc<AtomicU64>,
    /// What is wrong with the file.
    fault: Arc<Mutex<Option<String>>>,
}

impl Content {
    fn next(&mut self) -> std::result::Result<Vec<u8>, String> {
        let mut piece = Vec::new();
        let most = self.left.min(PIECE);
        (&mut self.file).take(most).read_to_end(&mut piece).map_err(|error| error.to_string())?;
        if (piece.len() as u64) < most {
            return Err("it has become shorter".into());
        }
        self.context.update(&piece);
        self.left -= most;
        if self.left == 0 {
            let found = hex(self.context.clone().finish().as_ref());
            if found != self.digest {
                return Err(format!("its content has the digest sha256:{found}"));
            }
        }
        self.sent.fetch_add(most, Ordering::Relaxed);
        Ok(piece)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    // It reads the file while it is asked: the thread has nothing else to do.
    fn poll_frame(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let content = self.get_mut();
        if content.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(content.next().map(|piece| Frame::data(piece.into())).map_err(|reason| {
            let mut fault = content.fault.lock().unwrap_or_else(PoisonError::into_inner);
            io::Error::other(fault.insert(reason).clone())
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::registry::backup::Tag;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// The stock registry with a directory, seen only through its API.
    struct Stock(Child, Registry);

    impl Drop for Stock {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    impl Stock {
        fn start(directory: &Path) -> Self {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = directory.with_extension("yml");
            let storage = format!("{{filesystem: {{rootdirectory: {}}}, cache: {{blobdescriptor: inmemory}}}}", directory.display());
            fs::write(&config, format!("version: 0.1\nstorage: {storage}\nhttp: {{addr: '{address}', relativeurls: true}}\n")).unwrap();
            let mut command = Command::new("/usr/bin/docker-registry");
            let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while std::net::TcpStream::connect(address).is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
            Self(child, Registry { base: format!("http://{address}"), access: Access::Open })
        }

        fn take(&self, backup: &Backup) -> Result<CopyCounts> {
            upload(&backup.path(), &self.1, &NEVER, &|_: &CopyCounts| {})
        }

        fn digest_of(&self, image: &str) -> String {
            let url = format!("{}/v2/{image}", self.1.base);
            let accept = format!("Accept: {}", media::ALL.join(", "));
            let output = Command::new("curl").args(["-sf", "-H", &accept, &url]).output().unwrap();
            sha256_hex(&output.stdout)
        }
    }

    struct Backup(tempfile::TempDir, Index);

    impl Backup {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap(), Index::default())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("backup")
        }

        fn blob(&mut self, content: &[u8]) -> String {
            let digest = sha256_hex(content);
            let path = blob_of(&self.path(), &digest);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            self.1.blobs.insert(digest.clone(), content.len() as u64);
            digest
        }

        fn manifest(&mut self, name: &str, tag: Option<&str>, text: &Value) -> String {
            let digest = self.blob(text.to_string().as_bytes());
            let repository = self.1.repositories.entry(name.into()).or_default();
            repository.revisions.insert(digest.clone());
            if let Some(tag) = tag {
                repository.tags.insert(tag.into(), Tag { current: digest.clone(), index: BTreeSet::new() });
            }
            digest
        }

        /// An image of OCI's, which does not say its type.
        fn image(&mut self, name: &str, tag: Option<&str>, layer: &[u8]) -> String {
            let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
            let part = |kind: &str, digest: &str, size: usize| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size });
            let (config, layer) =
                (part("config.v1+json", &self.blob(config), config.len()), part("layer.v1.tar", &self.blob(layer), layer.len()));
            self.manifest(name, tag, &serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [layer] }))
        }

        fn list(&mut self, name: &str, tag: &str, children: &[&str]) -> String {
            let child = |digest: &&str| {
                let platform = serde_json::json!({ "os": "linux", "architecture": "amd64" });
                serde_json::json!({ "mediaType": media::OCI, "digest": format!("sha256:{digest}"), "size": self.1.blobs.get(*digest).unwrap_or(&7), "platform": platform })
            };
            let children: Vec<Value> = children.iter().map(child).collect();
            let list = serde_json::json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": children });
            self.manifest(name, Some(tag), &list)
        }

        fn done(&self) {
            fs::write(self.path().join("index"), self.1.text()).unwrap();
        }
    }

    #[test]
    fn a_registry_gets_what_it_does_not_have_and_keeps_what_it_has() {
        let mut backup = Backup::new();
        let large = vec![7; 3 * PIECE as usize + 1];
        let one = backup.image("team/app", Some("1"), &large);
        let other = backup.image("team/app", None, b"another layer");
        let both = backup.list("team/app", "both", &[&one, &other]);
        let elsewhere = backup.image("copy", Some("x"), &large);
        backup.done();
        let stock = Stock::start(&backup.0.path().join("data"));
        let counts = stock.take(&backup).unwrap();
        // Two layers, a configuration, two manifests and the index; the other repository has the same.
        assert_eq!((counts.images, counts.blobs, counts.blobs_copied, counts.damaged), (3, 6, 6, 0), "{counts:?}");
        assert_eq!((counts.bytes, counts.bytes_copied), (backup.1.blobs.values().sum(), counts.bytes));
        let images = [("team/app/manifests/both", &both), ("copy/manifests/x", &elsewhere), ("team/app/manifests/1", &one)];
        images.iter().for_each(|(image, digest)| assert_eq!(stock.digest_of(image), **digest, "{image}"));
        assert_eq!(stock.digest_of(&format!("team/app/manifests/sha256:{other}")), other);

        let again = stock.take(&backup).unwrap();
        assert_eq!((again.images, again.blobs, again.blobs_copied, again.bytes_copied), (3, 6, 0, 0));

        // A later backup, from before a tag was moved.
        let mut later = Backup::new();
        let moved = later.image("team/app", Some("1"), b"moved");
        later.done();
        assert_eq!(stock.take(&later).unwrap().images, 1);
        assert_eq!(stock.digest_of("team/app/manifests/1"), moved);
        assert_eq!(stock.digest_of("team/app/manifests/both"), both);
    }

    #[test]
    fn an_image_that_the_registry_refuses_is_named_and_does_not_keep_the_others_out() {
        let mut backup = Backup::new();
        let image = backup.image("a", Some("good"), b"layer");
        backup.list("a", "sparse", &[&image, &"ab".repeat(32)]);
        backup.done();
        let stock = Stock::start(&backup.0.path().join("data"));
        let counts = stock.take(&backup).unwrap();
        assert_eq!((counts.images, counts.damaged), (1, 1));
        assert!(counts.damaged_images[0].starts_with("a:sparse: ") && counts.damaged_images[0].contains("unknown"), "{counts:?}");
    }

    #[test]
    fn a_damaged_blob_is_named_and_never_arrives() {
        let mut backup = Backup::new();
        let layer = vec![7; 2 * PIECE as usize];
        backup.image("a", Some("1"), &layer);
        backup.done();
        let (digest, stock) = (sha256_hex(&layer), Stock::start(&backup.0.path().join("data")));
        let path = blob_of(&backup.path(), &digest);
        fs::write(&path, &layer[1..]).unwrap();
        let error = stock.take(&backup).unwrap_err();
        assert!(matches!(&error, CopyError::Blob(..)), "before anything is pushed: {error}");
        let mut wrong = layer.clone();
        wrong[9] = 8;
        fs::write(&path, wrong).unwrap();
        let error = stock.take(&backup).unwrap_err();
        assert!(matches!(&error, CopyError::Damaged(named, _) if *named == digest), "{error}");
        let url = format!("{}/v2/a/blobs/sha256:{digest}", stock.1.base);
        assert!(!Command::new("curl").args(["-sfI", "-o", "/dev/null", &url]).status().unwrap().success());
        fs::write(&path, layer).unwrap();
        assert_eq!(stock.take(&backup).unwrap().images, 1, "and it is simply done again");
    }

    #[test]
    fn an_index_comes_behind_what_it_names_even_in_an_index() {
        let set = |all: &[&str]| all.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let children = BTreeMap::from([("a", set(&["b", "z"])), ("b", set(&["c", "d"])), ("c", set(&[])), ("d", set(&["c"]))]);
        let children = children.into_iter().map(|(name, inner)| (name.to_string(), inner)).collect();
        assert_eq!(children_first(&children), ["c", "d", "b", "a"]);
    }
}
