//! Images in the Mesos containerizer (UCR): pulled by DC/OS' own curl, which has no insecure mode, and unpacked; no docker takes part.
//!
//! Which manifests are understood is the version's: Mesos up to 1.7 only those of schema 1, from 1.8 on (MESOS-6934) also schema 2;
//! none an index of the OCI. The scheme follows the port, as in Mesos (src/docker/spec.cpp, `getRegistryScheme`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::executor::SANDBOX_IN_CONTAINER;
use crate::process::spawn_error;

/// DC/OS' curl, which Mesos' fetcher and puller run.
const CURL: &str = "/opt/mesosphere/bin/curl";
const SCHEMA_1: [&str; 2] =
    ["application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws"];
const SCHEMA_2: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image that a task wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As in the definition: `host[:port]/repository[:tag]`.
    pub reference: String,
    /// Whether this Mesos understands manifests of schema 2.
    pub schema_2: bool,
}

/// Pulls an image and unpacks it below `sandbox`: the path of its root.
///
/// # Errors
/// For people, as Mesos' agent would log it.
pub(crate) fn provide(image: &Image, config: Option<&[u8]>, sandbox: &Path) -> Result<PathBuf, String> {
    let place = Place::parse(&image.reference).ok_or_else(|| format!("'{}' is no image of a registry", image.reference))?;
    let login = config.and_then(|config| login(config, place.registry));
    let store = sandbox.join("provisioner");
    let root = store.join("rootfs");
    fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let accepted: Vec<&str> = image.schema_2.then_some(SCHEMA_2).into_iter().chain(SCHEMA_1).collect();
    let manifest = store.join("manifest");
    let kind = get(&place.url(&format!("manifests/{}", place.tag)), Some(&accepted.join(",")), login.as_deref(), &manifest)?;
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !accepted.contains(&kind) {
        return Err(format!("unsupported manifest '{kind}' of '{}'", image.reference));
    }
    let text = fs::read(&manifest).map_err(|error| error.to_string())?;
    let manifest: Value = serde_json::from_slice(&text).map_err(|error| format!("failed to parse the manifest: {error}"))?;
    for (index, digest) in layers(&manifest)?.iter().enumerate() {
        let layer = store.join(format!("layer-{index}"));
        get(&place.url(&format!("blobs/{digest}")), None, login.as_deref(), &layer)?;
        run(Command::new("tar").arg("-xzf").arg(&layer).arg("-C").arg(&root))?;
        fs::remove_file(&layer).map_err(|error| error.to_string())?;
    }
    fs::create_dir_all(root.join(SANDBOX_IN_CONTAINER.trim_start_matches('/'))).map_err(|error| error.to_string())?;
    Ok(root)
}

/// Digests of the layers, the lowest first.
fn layers(manifest: &Value) -> Result<Vec<String>, String> {
    // Schema 1 has the newest first.
    let (list, key) = match manifest["schemaVersion"].as_u64() {
        Some(1) => (manifest["fsLayers"].as_array().map(|layers| layers.iter().rev().collect::<Vec<_>>()), "blobSum"),
        _ => (manifest["layers"].as_array().map(|layers| layers.iter().collect()), "digest"),
    };
    let list = list.ok_or("the manifest has no layers")?;
    let digests = list.into_iter().map(|layer| layer[key].as_str().map(str::to_owned));
    digests.collect::<Option<_>>().ok_or_else(|| "a layer has no digest".to_owned())
}

/// User and password (base64) for a registry in docker's `config.json`. Mesos compares the hosts, whatever else the keys say.
fn login(config: &[u8], registry: &str) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let host =
        |key: &str| key.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
    let auths = config["auths"].as_object().or_else(|| config.as_object())?;
    auths.iter().find(|(key, _)| host(key) == registry).and_then(|(_, entry)| entry["auth"].as_str()).map(str::to_owned)
}

/// Fetches into a file; the media type of the answer. A registry that asks for it gets the login, or a token that it is good for.
fn get(url: &str, accept: Option<&str>, login: Option<&str>, into: &Path) -> Result<String, String> {
    let ask = |authorization: Option<String>| {
        let mut curl = Command::new(CURL);
        // As the fetcher of Mesos, a download that stalls is given up, and the task is started anew.
        curl.args(["--connect-timeout", "10", "--speed-limit", "1", "--speed-time", "10"]);
        curl.args(["-s", "-S", "-L", "-w", "%{http_code} %{content_type}", "-D"]).arg(into.with_extension("headers")).arg("-o").arg(into);
        if let Some(accept) = accept {
            curl.args(["-H", &format!("Accept: {accept}")]);
        }
        if let Some(authorization) = authorization {
            curl.args(["-H", &format!("Authorization: {authorization}")]);
        }
        let said = run(curl.arg(url))?;
        let (code, kind) = said.split_once(' ').unwrap_or((&said, ""));
        Ok::<_, String>((code.to_owned(), kind.to_owned()))
    };
    let (mut code, mut kind) = ask(None)?;
    if code == "401" {
        let headers = fs::read_to_string(into.with_extension("headers")).map_err(|error| error.to_string())?;
        (code, kind) = ask(Some(authorization(&headers, login)?))?;
    }
    // A file beside the layers is none of the image.
    fs::remove_file(into.with_extension("headers")).map_err(|error| error.to_string())?;
    if code.starts_with('2') { Ok(kind) } else { Err(format!("unexpected HTTP response '{code}' from '{url}'")) }
}

/// What a challenge is answered with.
fn authorization(headers: &str, login: Option<&str>) -> Result<String, String> {
    let challenge = headers.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"));
    let (scheme, parameters) = challenge.and_then(|(_, value)| value.trim().split_once(' ')).ok_or("no challenge in a response '401'")?;
    if scheme == "Basic" {
        return login.map(|login| format!("Basic {login}")).ok_or_else(|| "the registry asks for a login, and there is none".to_owned());
    }
    let parameter = |name: &str| parameters.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let mut curl = Command::new(CURL);
    curl.args(["-s", "-S", "-f"]);
    if let Some(login) = login {
        curl.args(["-H", &format!("Authorization: Basic {login}")]);
    }
    let url = format!("{}?service={}&scope={}", parameter("realm"), parameter("service"), parameter("scope"));
    let answer: Value = serde_json::from_str(&run(curl.arg(url))?).map_err(|error| format!("failed to parse the token: {error}"))?;
    answer["token"].as_str().map(|token| format!("Bearer {token}")).ok_or_else(|| "no token in the answer".to_owned())
}

fn run(program: &mut Command) -> Result<String, String> {
    let name = program.get_program().to_string_lossy().into_owned();
    let output = program.output().map_err(|source| spawn_error(&name, source).to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("failed to perform '{name}': {}", text(&output.stderr))) }
}

#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    registry: &'a str,
    repository: &'a str,
    tag: &'a str,
}

impl<'a> Place<'a> {
    fn parse(reference: &'a str) -> Option<Self> {
        let (registry, rest) = reference.split_once('/')?;
        let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
        let is_host = registry.contains(['.', ':']) || registry == "localhost";
        (is_host && !repository.is_empty() && !tag.is_empty()).then_some(Self { registry, repository, tag })
    }

    fn url(&self, what: &str) -> String {
        let scheme = if self.registry.ends_with(":80") { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{what}", self.registry, self.repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_scheme_follows_the_port_and_a_reference_without_a_registry_is_none_of_ours() {
        let url = |reference| Place::parse(reference).map(|place| place.url("x"));
        assert_eq!(url("192.168.0.1/team/app:1").unwrap(), "https://192.168.0.1/v2/team/app/x");
        assert_eq!(url("registry.example.com:5000/app").unwrap(), "https://registry.example.com:5000/v2/app/x");
        assert_eq!(url("registry.example.com:80/app:2").unwrap(), "http://registry.example.com:80/v2/app/x");
        assert_eq!(url("busybox"), None);
    }

    #[test]
    fn a_challenge_is_answered_with_the_login_of_that_registry() {
        let config = br#"{"auths": {"https://192.168.0.1/v1/": {"auth": "YTpi"}, "other": {"auth": "x"}}}"#;
        assert_eq!((login(config, "192.168.0.1").as_deref(), login(config, "192.168.0.2")), (Some("YTpi"), None));
        let headers = "HTTP/1.1 401 Unauthorized\r\nWww-Authenticate: Basic realm=\"r\"\r\n";
        assert_eq!(authorization(headers, Some("YTpi")).unwrap(), "Basic YTpi");
        assert!(authorization(headers, None).is_err() && authorization("HTTP/1.1 401 Unauthorized\r\n", Some("YTpi")).is_err());
    }

    #[test]
    fn layers_are_unpacked_from_the_lowest_up_whichever_way_the_manifest_lists_them() {
        let first = json!({ "schemaVersion": 1, "fsLayers": [{ "blobSum": "top" }, { "blobSum": "low" }] });
        let second = json!({ "schemaVersion": 2, "layers": [{ "digest": "low" }, { "digest": "top" }] });
        assert_eq!(
            (layers(&first).unwrap(), layers(&second).unwrap()),
            (vec!["low".into(), "top".into()], vec!["low".into(), "top".into()])
        );
        assert!(layers(&json!({ "schemaVersion": 2 })).is_err());
    }
}
