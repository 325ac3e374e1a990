//! The images of the registry, and whether the cluster's own pullers can read them.

use serde::{Deserialize, Serialize};

use super::{Controller, unix_now};
use crate::certificates::EnrolmentKey;
use crate::dcos::{chain, read_to_end, versions};
use crate::plan::Observed;
use crate::protocol::{Image, ImagesPage, MAC_HEADER, RegistryPhase, TIME_HEADER, asked, media};

/// A part of the list is about 40 kB.
const MAX_PAGE: usize = 1024 * 1024;
/// The registry's task ends a part after 10 s by itself.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What a request asks for.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// Where the part before has ended.
    #[serde(default)]
    last: String,
}

/// Where images are listed, and what judges them.
#[derive(Clone)]
pub(super) struct Source {
    http: reqwest::Client,
    /// `host:port` of a registry's task.
    address: String,
    key: EnrolmentKey,
    marathon: versions::Marathon,
    /// Version of the registry.
    version: String,
    /// How long a part may take.
    patience: std::time::Duration,
}

#[cfg(test)]
impl Source {
    /// One that asks whoever answers there.
    pub(super) fn at(address: String, patience: std::time::Duration) -> Self {
        let marathon = versions::Marathon { version: "1.11.24".parse().unwrap() };
        Self {
            http: crate::dcos::Api::client().unwrap(),
            address,
            key: EnrolmentKey::generate().unwrap(),
            marathon,
            version: "2.8.3".into(),
            patience,
        }
    }
}

/// A part of the list of images.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImagesReport {
    /// Tags, by repository and name.
    pub images: Vec<ImageReport>,
    /// What to give as `last` for the next part.
    pub next: Option<String>,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// What is known of it.
    #[serde(flatten)]
    pub image: Image,
    /// Why the image puller of this cluster's Mesos (UCR) cannot read it; none if it can.
    pub unreadable: Option<String>,
    /// What to do about that.
    pub fix: Option<String>,
}

impl Controller {
    /// Lets the server list images while a registry answers.
    pub(super) fn offer_images(&self, observed: &Observed) {
        let serving = observed.registries.iter().find(|task| task.status.phase == RegistryPhase::Serving);
        let source = serving.zip(self.state.as_ref()).map(|(task, state)| Source {
            http: self.cluster.http.clone(),
            address: task.address.clone(),
            key: state.enrolment_key().clone(),
            marathon: observed.marathon,
            version: task.status.version.clone().unwrap_or_default(),
            patience: PATIENCE,
        });
        self.shared.offer_images(source);
    }
}

/// Asks the registry's task for a part of the list.
///
/// # Errors
/// Why there is none, for people.
pub(super) async fn list(source: &Source, asked_for: &Asked) -> Result<ImagesReport, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:~".contains(c);
    if !asked_for.last.chars().all(allowed) {
        return Err("last is none that was given".into());
    }
    let path = format!("/images?last={}", asked_for.last);
    let now = unix_now();
    let request = source.http.get(format!("http://{}{path}", source.address)).timeout(source.patience);
    let request = request.header(TIME_HEADER, now).header(MAC_HEADER, source.key.mac(&asked("GET", &path, now)));
    let answer = request.send().await.map_err(|error| format!("the registry's task does not answer: {}", chain(&error.without_url())))?;
    let status = answer.status();
    let text = read_to_end(answer, MAX_PAGE).await.map_err(|_| "the registry's answer breaks off, or is too long".to_string())?;
    if !status.is_success() {
        return Err(text.trim().into());
    }
    let page: ImagesPage = crate::json::of_text(&text).map_err(|error| format!("the registry's answer cannot be read: {error}"))?;
    let images = page.images.into_iter().map(|image| judged(image, source.marathon, &source.version)).collect();
    Ok(ImagesReport { images, next: page.next })
}

/// How an image is made readable to every puller.
const AS_SCHEMA_2: &str = "push it as Docker's schema 2: skopeo copy --format v2s2, or docker buildx build --provenance=false \
    --output type=registry,oci-mediatypes=false";

/// Whether the Mesos beside this Marathon reads what this version of the registry answers to it.
fn judged(image: Image, marathon: versions::Marathon, version: &str) -> ImageReport {
    let only_schema_1 = !marathon.pulls_schema_2() && !version.starts_with("2.");
    let found = match (image.media_type.as_str(), image.amd64.as_deref()) {
        (media::SCHEMA_1 | media::SIGNED_SCHEMA_1, _) => None,
        (media::OCI, _) => Some(("it is a manifest of the OCI, which no Mesos reads".to_string(), AS_SCHEMA_2)),
        (media::OCI_INDEX, _) => Some(("it is an index of the OCI, which no Mesos reads".to_string(), AS_SCHEMA_2)),
        (media::LIST, None) => Some(("it has no image for linux/amd64".into(), "push one for linux/amd64 under this tag, too")),
        (media::LIST, Some(kind)) if kind != media::SCHEMA_2 => {
            Some((format!("its image for linux/amd64 is of the kind {kind}, which no Mesos reads"), AS_SCHEMA_2))
        }
        (media::LIST | media::SCHEMA_2, _) if only_schema_1 => Some((
            "Mesos before DC/OS 1.13 reads schema 1 only, in which this version of the registry does not answer".into(),
            "set registry.generation to 2, which does",
        )),
        (media::LIST | media::SCHEMA_2, _) => None,
        (kind, _) => Some((format!("it is of the kind {kind}, which no Mesos reads"), AS_SCHEMA_2)),
    };
    let (unreadable, fix) = found.map(|(why, fix)| (why, fix.to_string())).unzip();
    ImageReport { image, unreadable, fix }
}

/// For fuzzing: judges whatever a registry's task has listed, for the oldest cluster and the newest.
#[cfg(any(test, fuzzing))]
pub(super) fn judge_anything(image: Image) {
    let oldest = versions::Marathon { version: versions::Version(1, 4, 0) };
    for (marathon, version) in [(oldest, "3.0.0"), (versions::Marathon::default(), "2.8.3")] {
        let report = judged(image.clone(), marathon, version);
        assert_eq!(report.unreadable.is_some(), report.fix.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mesos_reads_depends_on_its_version_the_registrys_and_the_manifest() {
        let reads = |kind: &str, amd64: Option<&str>, marathon: &str, registry: &str| {
            let image = Image {
                repository: "a".into(),
                tag: "1".into(),
                digest: "sha256:0".into(),
                media_type: kind.into(),
                amd64: amd64.map(String::from),
                size: 1,
            };
            let report = judged(image, versions::Marathon { version: marathon.parse().unwrap() }, registry);
            assert_eq!(report.unreadable.is_some(), report.fix.is_some());
            report.unreadable.is_none()
        };
        for (marathon, old) in [("1.4.2", true), ("1.7.202", true), ("1.8.180", false), ("1.11.24", false)] {
            assert!(reads(media::SCHEMA_2, None, marathon, "2.8.3"));
            assert!(reads(media::LIST, Some(media::SCHEMA_2), marathon, "2.8.3"));
            assert_eq!(reads(media::SCHEMA_2, None, marathon, "3.1.1"), !old);
            assert_eq!(reads(media::LIST, Some(media::SCHEMA_2), marathon, "3.1.1"), !old);
            assert!(reads(media::SIGNED_SCHEMA_1, None, marathon, "2.8.3"));
            for kind in [media::OCI, media::OCI_INDEX, "application/vnd.example"] {
                assert!(!reads(kind, Some(media::OCI), marathon, "2.8.3"), "{kind}");
            }
            assert!(!reads(media::LIST, None, marathon, "2.8.3") && !reads(media::LIST, Some(media::OCI), marathon, "2.8.3"));
        }
    }
}
