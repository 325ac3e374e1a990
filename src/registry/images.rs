//! Lists what lies in the registry, by asking it as any client would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::access::Access;
use super::config::RegistryConfig;
use crate::dcos::{Api, chain, read_to_end};
use crate::protocol::{Image, ImagesPage, media};

/// Tags in one answer: about 40 kB.
const PAGE: usize = 200;
/// An answer is given after so long, with what is known by then.
const PAGE_TIME: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(15);
/// Repositories that are asked for at a time.
const REPOSITORIES: usize = 100;
/// The registry takes no larger manifest.
const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// All tags of a repository come in one answer.
const MAX_TAGS: usize = 16 * 1024 * 1024;
/// Manifests that are remembered, about 200 bytes each.
const REMEMBERED: usize = 10_000;

/// What is known of a manifest. Its digest says that it never changes.
#[derive(Debug, Clone)]
struct Known {
    media_type: String,
    amd64: Option<String>,
    size: u64,
}

/// Asks the registry of this task.
#[derive(Clone)]
pub(super) struct Lister {
    client: reqwest::Client,
    base: String,
    access: Access,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

impl Lister {
    pub(super) fn new(config: &RegistryConfig, access: Access) -> Result<Self, reqwest::Error> {
        // Its certificate is for the names that others use. This is our own child, and nothing leaves the container.
        let builder = Api::builder().danger_accept_invalid_certs(true).timeout(PATIENCE);
        let client = builder.redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { client, base: config.own_url(), access, known: Arc::default() })
    }

    /// Every request goes this way.
    async fn ask(&self, method: Method, path: &str) -> Result<Response, String> {
        let accepted = media::ALL.join(", ");
        let request = self.client.request(method, format!("{}{path}", self.base)).header(ACCEPT, accepted);
        self.access.on(request).send().await.map_err(|error| format!("the registry does not answer: {}", chain(&error)))
    }

    async fn read<T: for<'a> Deserialize<'a>>(&self, path: &str, most: usize) -> Result<Option<T>, String> {
        let answer = self.ask(Method::GET, path).await?;
        match answer.status() {
            // What has been deleted meanwhile.
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let text = read_to_end(answer, most).await.map_err(|_| format!("{path}: the answer breaks off, or is too long"))?;
                crate::json::of_text(&text).map(Some).map_err(|error| format!("{path}: {error}"))
            }
            status => Err(format!("the registry answers {status} to {path}")),
        }
    }

    /// The part of the list behind `last`, a `repository:tag`.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) async fn page(&self, last: Option<&str>) -> Result<ImagesPage, String> {
        if self.access == Access::NotPossible {
            return Err("only the authorisation server could let this service list the images (auth.kind token); ask the registry with a \
                        login of yours, as in skopeo list-tags"
                .into());
        }
        let end = Instant::now() + PAGE_TIME;
        let (mut page, mut after) = (ImagesPage::default(), last.unwrap_or_default().to_string());
        // First the rest of a repository that has been begun.
        let begun = last.and_then(|last| last.split_once(':')).map(|(repository, _)| repository.to_string());
        let mut ahead: Vec<String> = begun.into_iter().collect();
        loop {
            for repository in std::mem::take(&mut ahead) {
                // There may be thousands without a tag.
                if Instant::now() > end {
                    page.next = Some(after);
                    return Ok(page);
                }
                let done = after.strip_prefix(&repository).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default().to_string();
                for tag in self.tags(&repository).await?.into_iter().filter(|tag| *tag > done) {
                    if page.images.len() == PAGE || Instant::now() > end {
                        page.next = Some(after);
                        return Ok(page);
                    }
                    after = format!("{repository}:{tag}");
                    page.images.extend(self.image(&repository, &tag).await?);
                }
                after = format!("{repository}:{BEHIND_ALL_TAGS}");
            }
            let begun = after.split_once(':').map_or("", |(repository, _)| repository);
            let path = format!("/v2/_catalog?n={REPOSITORIES}&last={begun}");
            ahead = self.read::<Catalog>(&path, MAX_MANIFEST).await?.map(|c| c.repositories).unwrap_or_default();
            // Whoever gives again what was given already is asked no more.
            ahead.retain(|repository| repository != begun);
            if ahead.is_empty() {
                return Ok(page);
            }
        }
    }

    async fn tags(&self, repository: &str) -> Result<Vec<String>, String> {
        // One whose tags are all deleted has none, or is not known any more.
        let found: Option<Tags> = self.read(&format!("/v2/{repository}/tags/list"), MAX_TAGS).await?;
        let mut tags = found.and_then(|tags| tags.tags).unwrap_or_default();
        crate::in_order::sort_by(&mut tags, Ord::cmp);
        Ok(tags)
    }

    async fn image(&self, repository: &str, tag: &str) -> Result<Option<Image>, String> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.ask(Method::HEAD, &path).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let digest = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        let Some(digest) = digest.map(String::from) else {
            return Err(format!("the registry answers {} to {path} without a digest", answer.status()));
        };
        let Some(known) = self.known(repository, &digest).await? else { return Ok(None) };
        let Known { media_type, amd64, size } = known;
        Ok(Some(Image { repository: repository.into(), tag: tag.into(), digest, media_type, amd64, size }))
    }

    /// What is known of a manifest, and of what it refers to for linux/amd64.
    async fn known(&self, repository: &str, digest: &str) -> Result<Option<Known>, String> {
        let Some((mut known, manifest)) = self.looked_up(repository, digest).await? else { return Ok(None) };
        let Some(manifest) = manifest else { return Ok(Some(known)) };
        if let Some(child) = manifest.for_amd64() {
            // A tag for several platforms may be pushed without some of them.
            let found = self.looked_up(repository, child).await?;
            known.amd64 = found.as_ref().map(|(child, _)| child.media_type.clone());
            known.size = found.map_or(0, |(child, _)| child.size);
        }
        self.remember(digest, &known);
        Ok(Some(known))
    }

    /// The manifest itself comes only where it was not known yet.
    async fn looked_up(&self, repository: &str, digest: &str) -> Result<Option<(Known, Option<Manifest>)>, String> {
        let remembered = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        if let Some(known) = remembered {
            return Ok(Some((known, None)));
        }
        let path = format!("/v2/{repository}/manifests/{digest}");
        let answer = self.ask(Method::GET, &path).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let media_type = kind.split(';').next().unwrap_or_default().trim().to_string();
        let text = read_to_end(answer, MAX_MANIFEST).await.map_err(|_| format!("{path}: the answer breaks off, or is too long"))?;
        let manifest: Manifest = crate::json::of_text(&text).map_err(|error| format!("{path}: {error}"))?;
        let size = manifest.size();
        Ok(Some((Known { media_type, amd64: None, size }, Some(manifest))))
    }

    fn remember(&self, digest: &str, known: &Known) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(digest.into(), known.clone());
    }
}

/// Greater than every tag, which consist of letters, digits, and `.-_`.
const BEHIND_ALL_TAGS: &str = "~";

#[derive(Deserialize)]
struct Catalog {
    repositories: Vec<String>,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

/// What matters of a manifest of any kind.
#[derive(Deserialize)]
struct Manifest {
    config: Option<Part>,
    layers: Option<Vec<Part>>,
    manifests: Option<Vec<Child>>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    size: u64,
}

#[derive(Deserialize)]
struct Child {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Whether a text has the form of a digest: `sha256:` and hex.
fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(kind, hex)| [kind, hex].iter().all(|part| part.bytes().all(|b| b.is_ascii_alphanumeric())))
}

impl Manifest {
    /// Bytes of all its parts.
    fn size(&self) -> u64 {
        self.config.iter().chain(self.layers.iter().flatten()).fold(0, |sum, part| sum.saturating_add(part.size))
    }

    fn for_amd64(&self) -> Option<&str> {
        // It becomes a part of a path.
        let fits = |child: &&Child| {
            is_digest(&child.digest) && child.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
        };
        self.manifests.iter().flatten().find(fits).map(|child| child.digest.as_str())
    }
}

/// For fuzzing: reads whatever a registry could answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) {
    let _ = crate::json::of_bytes::<Catalog>(answer).map(|catalog| catalog.repositories);
    let _ = crate::json::of_bytes::<Tags>(answer).map(|tags| tags.tags);
    if let Ok(manifest) = crate::json::of_bytes::<Manifest>(answer) {
        manifest.size();
        assert!(manifest.for_amd64().is_none_or(|digest| digest.contains(':') && !digest.contains(['/', '.', '?', '#', '%'])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_index_the_image_for_linux_on_amd64_counts() {
        let text = r#"{"manifests":[
            {"digest":"sha256:a","platform":{"architecture":"arm64","os":"linux"}},
            {"digest":"sha256:b","platform":{"architecture":"amd64","os":"linux"}},
            {"digest":"sha256:c","platform":{"architecture":"unknown","os":"unknown"}}]}"#;
        let index: Manifest = crate::json::of_text(text).unwrap();
        assert_eq!(index.for_amd64(), Some("sha256:b"));
        let image: Manifest = crate::json::of_text(r#"{"config":{"size":3},"layers":[{"size":4}]}"#).unwrap();
        assert_eq!(image.for_amd64(), None);
    }
}
