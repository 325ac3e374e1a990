//! Images of other registries that are to be copied in: what the option says, and what is told of it. Pure.

use crate::options::{AuthKind, Fault, Options};
use crate::plan::RegistryTask;
use crate::protocol::{NodeStatus, PreloadImage, PreloadOrder, PreloadState, PreloadedImage, RegistryPhase};
use crate::settings;

const FIELD: &str = "preload.images";
/// Where docker looks for an image that names no registry.
const DOCKER_HUB: &str = "docker.io";

/// How what is wrong with the registry's own account begins.
pub const LOGIN: &str = "the registry's own login";

/// What is wrong with the images.
pub fn faults(images: &[String]) -> Vec<Fault> {
    let fault = |image: &str, reason: &str, remedy: &str| Fault {
        field: FIELD.into(),
        value: image.into(),
        reason: reason.into(),
        remedy: remedy.into(),
    };
    let (mut faults, mut targets) = (Vec::new(), std::collections::BTreeSet::new());
    for image in images {
        match parse(image) {
            Err(reason) => faults.push(fault(image, reason, "Give registry, path and tag, as in docker.io/library/alpine:3.20.")),
            Ok(parsed) if !targets.insert(parsed.to.clone()) => {
                faults.push(fault(image, "another image of the list has the same path and tag", "Leave one of them out."));
            }
            Ok(_) => {}
        }
    }
    faults
}

/// An image of the option: where it is, and its path and tag, which it keeps.
///
/// # Errors
/// What is wrong with it.
pub fn parse(image: &str) -> Result<PreloadImage, &'static str> {
    if !settings::is_image(image) {
        return Err("it is no reference of an image");
    }
    if image.contains('@') {
        return Err("it is given by its digest, which copying changes where layers are compressed anew");
    }
    let (name, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).ok_or("it has no tag")?;
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (host, path),
        _ => (DOCKER_HUB, name),
    };
    let path = if registry == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.into() };
    Ok(PreloadImage { from: format!("{registry}/{path}:{tag}"), to: format!("{path}:{tag}"), known: None })
}

/// Why no image is copied, if so.
pub fn refused(options: &Options) -> Option<String> {
    let by_hand = "push them by hand (docs/images.md), or leave preload.images empty";
    match () {
        () if options.preload.is_empty() => None,
        () if !options.registry.enabled => Some(format!("{FIELD}: this service runs no registry; {by_hand}")),
        () if !options.proxy.remote_url.is_empty() => {
            Some(format!("{FIELD}: this registry is a cache, which takes no pushes; leave it empty"))
        }
        () if options.registry.read_only => Some(format!("{FIELD}: the registry is read-only (registry.read_only) and takes no pushes")),
        () if options.auth.kind == AuthKind::Token => Some(format!(
            "{FIELD}: the images are not copied, because with auth.kind token only the authorisation server lets in, and the service has \
             no account there; {by_hand}"
        )),
        () if options.auth.kind == AuthKind::Htpasswd && !settings::is_pinned(options) => Some(format!(
            "{FIELD}: the images are not copied, because the registry may run on any agent and leaves its login on none; {}{by_hand}",
            if options.registry.replicas > 1 { "" } else { "give registry.host, or " }
        )),
        () => None,
    }
}

/// What is to be copied to where, and on which agent that is done; none while there is no registry that serves.
pub fn wanted(options: &Options, tasks: &[RegistryTask]) -> Option<(String, PreloadOrder)> {
    if options.preload.is_empty() || refused(options).is_some() {
        return None;
    }
    let host = &tasks.iter().find(|task| task.status.phase == RegistryPhase::Serving)?.status.host;
    let names = options.trusted_names(&host.parse().ok()?);
    let name = &names.iter().find(|name| name.inside)?.name;
    let registry = if options.is_insecure() { name.plain_spellings() } else { name.spellings() }.into_iter().next()?;
    // Those that cannot be read are refused with the other options.
    let images = options.preload.iter().filter_map(|image| parse(image).ok()).collect();
    Some((host.clone(), PreloadOrder { registry, login: options.auth.kind == AuthKind::Htpasswd, images }))
}

/// Lines about what is under way, and about what has failed.
pub fn lines(status: Option<&NodeStatus>) -> (Vec<String>, Vec<String>) {
    let images = status.and_then(|status| status.preload.as_ref()).map(|preload| preload.images.as_slice()).unwrap_or_default();
    let of = |wanted: fn(&PreloadState) -> bool| images.iter().filter(move |image| wanted(&image.state));
    let open = of(|state| matches!(state, PreloadState::Waiting | PreloadState::Copying));
    let failed = of(|state| *state == PreloadState::Failed);
    (open.map(going).collect(), failed.map(|image| format!("{FIELD}: {}: {}", image.image, image.detail)).collect())
}

fn going(image: &PreloadedImage) -> String {
    match (image.state, image.detail.as_str()) {
        (PreloadState::Copying, detail) => format!("copying {} into the registry: {detail}", image.image),
        _ => format!("copying {} into the registry, after the others", image.image),
    }
}

/// What an error of docker's means for whoever has to do something about it.
pub fn remedy(error: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    match () {
        () if error.starts_with(LOGIN) => "it is another one at every start of the registry, and is tried again",
        () if has(&["toomanyrequests", "rate limit"]) => {
            "that registry limits pulls; it is tried again later, or push it by hand (docs/images.md)"
        }
        () if has(&["x509", "certificate"]) => "name that registry and its CA in other_registries",
        () if has(&["unauthorized", "denied", "authentication required", "no basic auth"]) => {
            "this agent has no password there, or there is no such image; push it by hand (docs/images.md)"
        }
        () if has(&["not found", "manifest unknown", "no such image"]) => "look whether the name and the tag in preload.images are right",
        () if has(&["no space left"]) => "make room on the registry's agent",
        () => "it is tried again; from a cluster without a way out, push it by hand (docs/images.md)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Authority;
    use serde_json::json;

    #[test]
    fn an_image_keeps_its_path_and_tag_and_docker_hub_is_spelled_out() {
        for (given, from, to) in [
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20", "library/alpine:3.20"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "library/alpine:3.20"),
            ("prom/prometheus:v2", "docker.io/prom/prometheus:v2", "prom/prometheus:v2"),
            ("quay.io:443/a/b:1", "quay.io:443/a/b:1", "a/b:1"),
            ("10.0.0.1:5000/x:1", "10.0.0.1:5000/x:1", "x:1"),
        ] {
            let parsed = parse(given).unwrap();
            assert_eq!((parsed.from.as_str(), parsed.to.as_str()), (from, to));
        }
        let digest = format!("alpine:3@sha256:{}", "ab".repeat(32));
        for bad in ["alpine", "quay.io:443/a/b", "A:1", digest.as_str()] {
            assert!(parse(bad).is_err(), "{bad}");
            assert_eq!(faults(&[bad.to_string()])[0].field, "preload.images");
        }
        assert_eq!(faults(&["alpine:1".into(), "docker.io/library/alpine:1".into()]).len(), 1);
    }

    #[test]
    fn what_no_agent_can_push_is_said_with_the_other_way() {
        let options = |more: serde_json::Value| {
            let mut given = json!({ "preload": { "images": "alpine:1" } });
            given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Options::from_json(&given).unwrap()
        };
        assert_eq!(refused(&options(json!({}))), None);
        assert_eq!(refused(&options(json!({ "auth": { "kind": "htpasswd" } }))), None);
        // Where the registry may be on any agent, its password is in memory alone.
        let store = json!({ "kind": "s3", "bucket": "b" });
        let anywhere = |registry: serde_json::Value| {
            refused(&options(json!({ "auth": { "kind": "htpasswd" }, "storage": store, "registry": registry })))
        };
        assert!(anywhere(json!({})).unwrap().contains("give registry.host, or push them by hand (docs/images.md)"));
        assert!(!anywhere(json!({ "replicas": 2 })).unwrap().contains("give registry.host"));
        assert_eq!(anywhere(json!({ "host": "10.0.0.1" })), None);
        let ca = Authority::create("test", 1, &["10.0.0.1:443".parse().unwrap()], 1_700_000_000, 3650).unwrap().certificate().pem();
        let token =
            json!({ "kind": "token", "token_realm": "https://a", "token_service": "s", "token_issuer": "i", "token_certificates": ca });
        assert!(refused(&options(json!({ "auth": token }))).unwrap().contains("no account there; push them by hand (docs/images.md)"));
        assert!(refused(&options(json!({ "proxy": { "remote_url": "https://r" } }))).unwrap().contains("cache"));
        assert!(refused(&options(json!({ "registry": { "read_only": true } }))).unwrap().contains("read_only"));
    }
}
