//! What of a package the calls show, and how it becomes a Marathon app.

use std::io::{Read, Write};

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use serde_json::{Map, Value, json};

use super::error::Error;
use super::repository::{Package, not_decoded, parse};
use super::{mustache, options};

/// The fields of a package in the order in which Cosmos writes them, and the packaging version that brought each.
const FIELDS: &[(&str, char)] = &[
    ("packagingVersion", '2'),
    ("name", '2'),
    ("version", '2'),
    ("releaseVersion", '2'),
    ("maintainer", '2'),
    ("description", '2'),
    ("tags", '2'),
    ("selected", '2'),
    ("scm", '2'),
    ("website", '2'),
    ("framework", '2'),
    ("preInstallNotes", '2'),
    ("postInstallNotes", '2'),
    ("postUninstallNotes", '2'),
    ("licenses", '2'),
    ("minDcosReleaseVersion", '3'),
    ("marathon", '2'),
    ("resource", '2'),
    ("config", '2'),
    ("command", '2'),
    ("lastUpdated", '3'),
    ("hasKnownIssues", '3'),
    ("upgradesFrom", '4'),
    ("downgradesTo", '4'),
    ("manager", '5'),
];

/// The definition of what `/package/list` shows.
const LISTED: &[&str] = &[
    "packagingVersion",
    "name",
    "version",
    "maintainer",
    "description",
    "tags",
    "selected",
    "scm",
    "website",
    "framework",
    "preInstallNotes",
    "postInstallNotes",
    "postUninstallNotes",
    "licenses",
];

impl Package {
    fn packaging(&self) -> char {
        self.text("packagingVersion").chars().next().unwrap_or('4')
    }

    /// All known fields that are set; unknown ones are gone, as in Cosmos.
    pub(crate) fn definition(&self) -> Value {
        let packaging = self.packaging();
        // Pip subcommands ended with version 4.
        let known = FIELDS.iter().filter(|(field, since)| *since <= packaging && (*field != "command" || packaging < '4'));
        let fields = known.filter_map(|(field, _)| Some(((*field).to_owned(), without_nulls(self.json.get(field)?)?)));
        Value::Object(fields.collect())
    }

    /// The answer of `/package/describe` in its version 3.
    pub(crate) fn described(&self, origin: &str) -> Value {
        let mut definition = self.definition();
        proxy_urls(&mut definition, origin);
        definition
    }

    /// The same in version 2, flat.
    ///
    /// # Errors
    /// A package of packaging version 4 or 5 cannot be shown so.
    pub(crate) fn described_v2(&self, origin: &str) -> Result<Value, Error> {
        let packaging = self.packaging();
        if packaging > '3' {
            let message = format!("A v{packaging} package cannot be converted into a v2 DescribeResponse");
            return Err(Error::new("ConversionFromPackageToV2DescribeResponse", message));
        }
        let mut described = self.described(origin);
        if let Some(fields) = described.as_object_mut() {
            fields.remove("releaseVersion");
            fields.entry("selected").or_insert(json!(false));
            fields.entry("framework").or_insert(json!(false));
        }
        Ok(described)
    }

    /// What the catalog's search shows of the newest version, with all `versions`.
    pub(crate) fn found(&self, versions: Map<String, Value>, origin: &str) -> Value {
        let mut found = json!({
            "name": self.json["name"],
            "currentVersion": self.json["version"],
            "versions": versions,
            "description": self.json["description"],
            "framework": self.json["framework"].as_bool().unwrap_or(false),
            "tags": self.json["tags"],
        });
        if let Some(selected) = self.json.get("selected").filter(|value| !value.is_null()) {
            found["selected"] = selected.clone();
        }
        if let Some(images) = self.json.pointer("/resource/images").and_then(without_nulls) {
            let mut resource = json!({ "resource": { "images": images } });
            proxy_urls(&mut resource, origin);
            found["images"] = resource["resource"]["images"].take();
        }
        found
    }

    /// What `/package/list` shows.
    pub(crate) fn information(&self, origin: &str) -> Value {
        let mut definition = self.definition();
        let mut listed: Map<String, Value> =
            LISTED.iter().filter_map(|field| Some(((*field).to_owned(), definition.get(field)?.clone()))).collect();
        listed.entry("selected").or_insert(json!(false));
        listed.entry("framework").or_insert(json!(false));
        let mut information = json!({ "packageDefinition": listed });
        proxy_urls(&mut definition, origin);
        if let Some(Value::Object(mut resource)) = definition.get_mut("resource").map(Value::take) {
            resource.remove("cli");
            if !resource.is_empty() {
                information["resourceDefinition"] = Value::Object(resource);
            }
        }
        information
    }

    /// The Marathon app that `given` options make, labels included. None for a package without a template.
    ///
    /// # Errors
    /// Options that the schema refuses, or a template that does not make an app.
    pub(crate) fn render(&self, given: &Value, app_id: Option<&str>) -> Result<Option<Value>, Error> {
        let options = options::resolve(self.json.get("config").filter(|config| !config.is_null()), given)?;
        let Some(template) = self.json.pointer("/marathon/v2AppMustacheTemplate").and_then(Value::as_str) else { return Ok(None) };
        let template = STANDARD.decode(template).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let template = template.ok_or_else(|| Error::unhandled("the template is not base64 of a text"))?;
        let resource = self.json.get("resource").unwrap_or(&Value::Null);
        let options = options::merge(options, &json!({ "resource": resource }));
        let text = mustache::render(&template, &options).map_err(|error| Error::unhandled(error.to_string()))?;
        let mut app = parse(&text)?;
        let Some(fields) = app.as_object_mut() else {
            return Err(Error::new("MarathonTemplateMustBeJsonObject$", "Rendered Marathon JSON must be a JSON object"));
        };
        if let Some(app_id) = app_id {
            fields.insert("id".to_owned(), json!(app_id));
        }
        let mut labels = match fields.get("labels") {
            None => Map::new(),
            Some(Value::Object(labels)) if labels.values().all(Value::is_string) => labels.clone(),
            Some(_) => return Err(not_decoded("scala.collection.immutable.Map", "String", &app.to_string())),
        };
        labels.insert("DCOS_PACKAGE_OPTIONS".to_owned(), json!(STANDARD.encode(given.to_string())));
        labels.insert("DCOS_PACKAGE_SOURCE".to_owned(), json!(self.source));
        labels.insert("DCOS_PACKAGE_DEFINITION".to_owned(), json!(self.label()?));
        labels.insert("DCOS_PACKAGE_VERSION".to_owned(), self.json["version"].clone());
        labels.insert("DCOS_PACKAGE_NAME".to_owned(), self.json["name"].clone());
        fields.insert("labels".to_owned(), Value::Object(labels));
        Ok(Some(app))
    }

    /// `DCOS_PACKAGE_DEFINITION`: the package rides along, compressed, in the app it became.
    fn label(&self) -> Result<String, Error> {
        let fields = self.definition();
        let packed = || -> std::io::Result<Vec<u8>> {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(fields.to_string().as_bytes())?;
            encoder.finish()
        };
        let packed = packed().map_err(|error| Error::unhandled(error.to_string()))?;
        let media_type = format!("application/vnd.dcos.universe.package+json;charset=utf-8;version=v{}", self.packaging());
        let label = json!({ "metadata": { "Content-Type": media_type, "Content-Encoding": "gzip" }, "data": STANDARD.encode(packed) });
        Ok(STANDARD.encode(label.to_string()))
    }

    /// The package that an app was made of; None for an app that no package made.
    pub(crate) fn of_app(app: &Value) -> Option<Self> {
        let label = STANDARD.decode(app.pointer("/labels/DCOS_PACKAGE_DEFINITION")?.as_str()?).ok()?;
        let label: Value = serde_json::from_slice(&label).ok()?;
        let packed = STANDARD.decode(label["data"].as_str()?).ok()?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).ok()?;
        let source = app.pointer("/labels/DCOS_PACKAGE_SOURCE").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self { json: serde_json::from_str(&text).ok()?, source })
    }
}

/// The options that the user gave when the app was installed or last updated.
pub(crate) fn options_of_app(app: &Value) -> Value {
    let label = app.pointer("/labels/DCOS_PACKAGE_OPTIONS").and_then(Value::as_str);
    label.and_then(|label| serde_json::from_slice(&STANDARD.decode(label).ok()?).ok()).unwrap_or_else(|| json!({}))
}

/// `MarathonBadResponse` and its like: what an answer of Marathon becomes when it is not a success.
pub(crate) fn marathon_error(status: StatusCode, body: &Value) -> Error {
    let of_service = |kind, word: &str| {
        let message = format!("Unable to complete request due to {word} response from service [marathon]");
        Error::new(kind, message).status(status).data(json!({ "serviceName": "marathon", "status": status.as_u16() }))
    };
    match status {
        StatusCode::UNAUTHORIZED => of_service("Unauthorized", "Unauthorized"),
        StatusCode::FORBIDDEN => of_service("Forbidden", "Forbidden"),
        status if status.is_client_error() => {
            let message = body["message"].as_str().unwrap_or_default();
            let error = Error::new("MarathonBadResponse", message);
            match body.get("details") {
                Some(details) => error.data(json!({ "errors": details })),
                None => error,
            }
        }
        status => Error::new("MarathonBadGateway", format!("Received response status code {} from Marathon", status.as_u16()))
            .status(StatusCode::BAD_GATEWAY)
            .data(json!({ "marathonStatus": status.as_u16(), "status": 502 })),
    }
}

/// Every URL of a package's resources.
pub(crate) fn resource_urls(package: &Value) -> Vec<String> {
    let mut package = package.clone();
    let mut urls = Vec::new();
    each_url(&mut package, &mut |url| urls.push(url.clone()));
    urls
}

/// Icons, artifacts and CLI binaries are shown as URLs below Cosmos itself, which fetches them.
fn proxy_urls(package: &mut Value, origin: &str) {
    each_url(package, &mut |url| *url = format!("{origin}/package/resource?url={url}"));
}

fn each_url(package: &mut Value, change: &mut impl FnMut(&mut String)) {
    for pointer in ["/resource/images", "/resource/assets/uris"] {
        if let Some(urls) = package.pointer_mut(pointer) {
            each_text(urls, change);
        }
    }
    for (_, platform) in package.pointer_mut("/resource/cli/binaries").and_then(Value::as_object_mut).into_iter().flatten() {
        for (_, binary) in platform.as_object_mut().into_iter().flatten() {
            if let Some(Value::String(url)) = binary.get_mut("url") {
                change(url);
            }
        }
    }
}

fn each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, item)| each_text(item, change)),
        _ => {}
    }
}

fn without_nulls(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(fields) => {
            Some(Value::Object(fields.iter().filter_map(|(key, value)| Some((key.clone(), without_nulls(value)?))).collect()))
        }
        other => Some(other.clone()),
    }
}
