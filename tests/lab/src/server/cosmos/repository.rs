//! Package repositories: one JSON file each, fetched anew for every call.

use std::io::Read;
use std::time::Duration;

use axum::http::header;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::Error;
use super::media::MediaType;

/// What Cosmos says it is; DC/OS' Universe server decides by it.
const USER_AGENT: &str = "cosmos/0.6.3 dcos/2.2.0";
const ACCEPT: &str = "application/vnd.dcos.universe.repo+json;charset=utf-8;version=v5,application/vnd.dcos.universe.repo+json;charset=utf-8;version=v4,application/vnd.dcos.universe.repo+json;charset=utf-8;version=v3";
/// The real one waits 5 s between its three further attempts after a 5xx.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const RETRIES: u32 = 3;

/// An entry of the repository list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repository {
    pub(crate) name: String,
    pub(crate) uri: String,
}

/// A version of a package and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Package {
    /// As in the repository file.
    pub(crate) json: Value,
    /// URI of the repository.
    pub(crate) source: String,
}

impl Package {
    /// A field that is a string; empty when absent.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    /// The higher, the newer, whatever the version says.
    pub(crate) fn release(&self) -> i64 {
        self.json["releaseVersion"].as_i64().unwrap_or_default()
    }
}

/// All packages of all repositories: of the same name and version the first counts. Sorted by repository, then newest first.
///
/// # Errors
/// Any one repository that cannot be had or read: the real one answers nothing then, either.
pub(crate) async fn packages(client: &reqwest::Client, repositories: &[Repository]) -> Result<Vec<Package>, Error> {
    let mut all: Vec<Package> = Vec::new();
    for repository in repositories {
        let mut packages = fetch(client, repository).await.map_err(Error::of_listed_repository)?;
        packages.sort_by_key(|package| std::cmp::Reverse(package.release()));
        for package in packages {
            let known = |other: &Package| other.text("name") == package.text("name") && other.text("version") == package.text("version");
            if !all.iter().any(known) {
                all.push(package);
            }
        }
    }
    Ok(all)
}

/// One repository's packages.
///
/// # Errors
/// As the real one words them: not reachable, not a package repository by its media type, not decodable.
pub(crate) async fn fetch(client: &reqwest::Client, repository: &Repository) -> Result<Vec<Package>, Error> {
    let scheme = repository.uri.split(':').next().unwrap_or_default();
    if scheme != "http" && scheme != "https" {
        let message = format!("Repository URI [{}] uses an unsupported scheme. Only http and https are supported", repository.uri);
        return Err(Error::new("UnsupportedRepositoryUri", message).data(json!({ "uri": repository.uri })));
    }
    let response = get(client, repository).await?;
    if response.status().is_redirection() {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let actual = location.split(':').next().unwrap_or_default();
        let message = format!("Unsupported redirect scheme - supported: [{scheme}] actual: {actual}");
        return Err(Error::new("UnsupportedRedirect", message).data(json!({ "supported": [scheme], "actual": actual })));
    }
    if response.status() != 200 {
        return Err(http_error(repository, response.status().as_u16()));
    }
    check_media_type(response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()))?;
    let gzip = response.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let bytes = response.bytes().await.map_err(|error| connection(repository, &error))?;
    let text = if gzip { unpack(&bytes) } else { String::from_utf8(bytes.into()).map_err(std::io::Error::other) };
    let text = text.map_err(|error| Error::unhandled(format!("{error} (of class java.io.IOException)")))?;
    Ok(decode(&text)?.into_iter().map(|json| Package { json, source: repository.uri.clone() }).collect())
}

async fn get(client: &reqwest::Client, repository: &Repository) -> Result<reqwest::Response, Error> {
    let mut attempt = 0;
    loop {
        let request = client
            .get(&repository.uri)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, ACCEPT)
            .header(header::ACCEPT_ENCODING, "gzip");
        let response = request.send().await.map_err(|error| connection(repository, &error))?;
        if !response.status().is_server_error() || attempt == RETRIES {
            return Ok(response);
        }
        attempt += 1;
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

fn http_error(repository: &Repository, status: u16) -> Error {
    let Repository { name, uri } = repository;
    let message = format!("Unexpected upstream http error while fetching repository '{name}' at {uri}: GET {status}");
    let data = json!({ "packageRepository": repository, "method": "GET", "clientStatus": status, "status": 400 });
    Error::new("UniverseClientHttpError", message).data(data)
}

fn connection(repository: &Repository, error: &reqwest::Error) -> Error {
    let Repository { name, uri } = repository;
    let cause = if error.is_connect() { "Connection refused".to_owned() } else { error.to_string() };
    let message = format!("Could not access data at URI for repository [{name}]: {uri}");
    Error::new("RepositoryUriConnection", message).data(json!({ "repository": repository, "cause": cause }))
}

/// Versions 3 to 5, or none at all; a file server's `application/json` does not do.
fn check_media_type(sent: Option<&str>) -> Result<(), Error> {
    const SUPPORTED: [&str; 2] = [
        "application/vnd.dcos.universe.repo+json;charset=utf-8;version=v4",
        "application/vnd.dcos.universe.repo+json;charset=utf-8;version=v3",
    ];
    let Some(sent) = sent else {
        return Err(Error::unhandled(
            "java.lang.NullPointerException: Cannot invoke \"String.trim()\" because \"s$1\" is null (of class java.lang.NullPointerException)",
        ));
    };
    let class = "com.mesosphere.http.MediaTypeParseError";
    let media_type = MediaType::parse(sent)
        .ok_or_else(|| Error::unhandled(format!("{class}: Unable to parse MediaType for input: '{sent}' (of class {class})")))?;
    let version_fits = matches!(media_type.parameter("version"), None | Some("v3" | "v4" | "v5"));
    let charset_fits = matches!(media_type.parameter("charset"), None | Some("utf-8"));
    if media_type.essence == "application/vnd.dcos.universe.repo+json" && version_fits && charset_fits {
        return Ok(());
    }
    let message = format!("Unsupported Content-Type: {sent} Accept: [{}]", SUPPORTED.join(", "));
    Err(Error::new("UnsupportedContentType", message).data(json!({ "supported": SUPPORTED, "actual": sent })))
}

fn unpack(bytes: &[u8]) -> std::io::Result<String> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text)?;
    Ok(text)
}

fn decode(text: &str) -> Result<Vec<Value>, Error> {
    let repository = parse(text)?;
    let model = "com.mesosphere.universe.v4.model.Repository";
    let fault = |message: String| not_decoded(model, &message, text);
    let failed_cursor = || fault("Attempt to decode value on failed cursor".to_owned());
    let packages = repository.get("packages").and_then(Value::as_array).ok_or_else(failed_cursor)?;
    for package in packages {
        let version = package["packagingVersion"].as_str().unwrap_or_default();
        if !["2.0", "3.0", "4.0", "5.0"].contains(&version) {
            return Err(fault(format!("Expected one of [2.0, 3.0, 4.0, 5.0] for packaging version, but found [{version}]")));
        }
        let required = ["name", "version", "maintainer", "description", "tags", "releaseVersion"];
        if required.iter().any(|field| package.get(field).is_none()) {
            return Err(failed_cursor());
        }
    }
    Ok(packages.clone())
}

/// Strict JSON, with the error that Cosmos' parser would give.
///
/// # Errors
/// `JsonParsingError`.
pub(crate) fn parse(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| {
        let (kind, message) = if error.is_eof() {
            ("IncompleteParseException", "exhausted input".to_owned())
        } else {
            let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
            let rest: String = line.chars().skip(error.column().saturating_sub(1)).take(6).collect();
            ("ParseException", format!("expected json value got '{rest}' (line {}, column {})", error.line(), error.column()))
        };
        let data = json!({ "underlyingType": format!("org.typelevel.jawn.{kind}"), "parsingErrorMessage": message, "parsingInput": text });
        Error::new("JsonParsingError", "Unable to parse the string as a JSON value").data(data)
    })
}

/// `JsonDecodingError`.
pub(crate) fn not_decoded(model: &str, message: &str, input: &str) -> Error {
    let data = json!({ "typeName": model, "decodingErrorMessage": message, "decodeInput": input });
    Error::new("JsonDecodingError", format!("Unable to decode the JSON value as a {model}")).data(data)
}
