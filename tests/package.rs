//! The package itself: what the catalog, Cosmos and Admin Router need of the files in `universe/`. Every rule is also tried on
//! files that break it.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use regex_lite::Regex;
use serde_json::{Value, json};

fn bytes(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(name: &str) -> String {
    String::from_utf8(bytes(name)).unwrap()
}

/// The four files as one document, so that one pointer says which place of which file.
fn package() -> Value {
    let parsed = |name: &str| serde_json::from_str::<Value>(&text(name)).unwrap();
    json!({
        "package": parsed("universe/package.json"),
        "config": parsed("universe/config.json"),
        "resource": parsed("universe/resource.json"),
        "template": text("universe/marathon.json.mustache"),
    })
}

/// A copy with `value` at `pointer`; null takes away what is there.
fn spoiled(package: &Value, pointer: &str, value: &Value) -> Value {
    let mut package = package.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = package.pointer_mut(parent).unwrap_or_else(|| panic!("nothing is at {parent}")).as_object_mut().unwrap();
    if value.is_null() {
        assert!(parent.remove(key).is_some(), "nothing is at {pointer}");
    } else {
        parent.insert(key.to_owned(), value.clone());
    }
    package
}

/// The package has none of the faults that `rule` finds, and each of `spoilers` is such a fault.
fn holds(rule: fn(&Value) -> Vec<String>, spoilers: &[(&str, Value)]) {
    let package = package();
    let faults = rule(&package);
    assert!(faults.is_empty(), "{faults:#?}");
    for (pointer, value) in spoilers {
        assert!(!rule(&spoiled(&package, pointer, value)).is_empty(), "{value} at {pointer} was not found");
    }
}

/// A spoiler: the template with `what` replaced by `with`.
fn template(what: &str, with: &str) -> (&'static str, Value) {
    let template = text("universe/marathon.json.mustache");
    assert!(template.contains(what), "the template has no {what}");
    ("/template", json!(template.replace(what, with)))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

fn matches(pattern: &str, value: &Value) -> bool {
    value.as_str().is_some_and(|text| Regex::new(pattern).unwrap().is_match(text))
}

fn only(known: &[&str], at: &str, value: &Value) -> Vec<String> {
    keys(value).iter().filter(|key| !known.contains(key)).map(|key| format!("{at} has {key}")).collect()
}

/// Every section with its name.
fn sections(package: &Value) -> impl Iterator<Item = (&String, &Value)> {
    package["config"]["properties"].as_object().unwrap().iter()
}

/// Every option with its name, as `section.key`.
fn options(package: &Value) -> Vec<(String, &Value)> {
    sections(package)
        .flat_map(|(section, value)| {
            let properties = value["properties"].as_object().into_iter().flatten();
            properties.map(move |(key, option)| (format!("{section}.{key}"), option))
        })
        .collect()
}

// The files.

/// What older versions of Cosmos, which read files in whatever encoding the master has, do not read as it was written.
fn foreign(content: &str) -> bool {
    !content.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)) || content.contains("\\u")
}

#[test]
fn every_text_file_is_pure_ascii() {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("universe")).unwrap();
    let mut read = 0;
    for path in files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_none_or(|extension| extension != "png")) {
        assert!(!foreign(&fs::read_to_string(&path).unwrap()), "{} is not ASCII", path.display());
        read += 1;
    }
    assert!(read >= 4);
    assert!(foreign("caf\u{e9}") && foreign(r"caf\u00e9") && foreign("\t"));
}

// config.json

fn untidy_sections(package: &Value) -> Vec<String> {
    let mut faults = only(&["type", "additionalProperties", "properties"], "the form", &package["config"]);
    for (at, object) in sections(package) {
        faults.extend(only(&["type", "title", "description", "additionalProperties", "properties"], at, object));
        if !filled(&object["title"]) || !filled(&object["description"]) {
            faults.push(format!("{at} has no title or no description"));
        }
    }
    let form = ("the form".to_owned(), &package["config"]);
    for (at, object) in sections(package).map(|(at, object)| (at.clone(), object)).chain([form]) {
        if object["type"] != "object" || keys(&object["properties"]).is_empty() {
            faults.push(format!("{at} is not an object with properties"));
        }
        if object["additionalProperties"] != false {
            faults.push(format!("{at} lets a misspelt option through"));
        }
    }
    faults
}

#[test]
fn the_form_is_made_of_sections_that_say_what_they_are_and_let_no_misspelt_option_through() {
    holds(
        untidy_sections,
        &[
            ("/config/$schema", json!("http://json-schema.org/schema#")),
            ("/config/additionalProperties", json!(true)),
            ("/config/properties/cpus", json!({ "type": "number", "description": "No section.", "default": 1 })),
            ("/config/properties/names/title", Value::Null),
            ("/config/properties/names/description", json!(" ")),
            ("/config/properties/names/additionalProperties", Value::Null),
            ("/config/properties/names/required", json!(["vip"])),
            ("/config/properties/names/properties", json!({})),
        ],
    );
}

fn badly_named(package: &Value) -> Vec<String> {
    let names = sections(package).map(|(name, _)| name.clone()).chain(options(package).into_iter().map(|(name, _)| name));
    let snake = Regex::new("^[a-z][a-z0-9]*(_[a-z0-9]+)*([.][a-z][a-z0-9]*(_[a-z0-9]+)*)?$").unwrap();
    // An option of this name would hide what the template takes from resource.json.
    names.filter(|name| !snake.is_match(name) || name == "resource").collect()
}

#[test]
fn the_form_shows_every_name_as_words() {
    holds(
        badly_named,
        &[
            ("/config/properties/namesOfIt", json!({})),
            ("/config/properties/resource", json!({})),
            ("/config/properties/names/properties/namedVip", json!({})),
            ("/config/properties/names/properties/named-vip", json!({})),
        ],
    );
}

/// Fields of the catalog's form for things of DC/OS Enterprise; elsewhere they are plain text fields.
const MEDIA_TYPES: [&str; 2] = ["application/x-secret+string", "application/x-service-account+string"];

fn unusable_options(package: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for (at, option) in options(package) {
        let of_type = match option["type"].as_str() {
            Some("string") => &["pattern", "maxLength", "enum", "media"][..],
            Some("integer" | "number") => &["minimum", "maximum"],
            Some("boolean") => &[],
            _ => {
                faults.push(format!("{at} has no type that the form has a field for"));
                continue;
            }
        };
        faults.extend(only(&[&["type", "description", "default"], of_type].concat(), &at, option));
        if !filled(&option["description"]) {
            faults.push(format!("{at} has no description"));
        }
        if option.get("media").is_some_and(|media| !media["type"].as_str().is_some_and(|kind| MEDIA_TYPES.contains(&kind))) {
            faults.push(format!("{at} has a media type that the form has no field for"));
        }
        if let Some(choices) = option.get("enum") {
            // Up to four are shown side by side, more as a list to choose from.
            let choices = choices.as_array().map(Vec::as_slice).unwrap_or_default();
            if !(1..=8).contains(&choices.len()) || !choices.iter().all(filled) {
                faults.push(format!("{at} has not one to eight choices"));
            }
        }
        if let Some(pattern) = option.get("pattern").map(|pattern| pattern.as_str().unwrap_or("("))
            && (pattern.contains("(?") || Regex::new(pattern).is_err())
        {
            // Cosmos then answers every installation with an error of its own.
            faults.push(format!("{at} has a pattern that not every engine reads"));
        }
    }
    faults
}

#[test]
fn every_option_has_a_type_a_description_and_only_keywords_that_the_form_and_cosmos_know() {
    holds(
        unusable_options,
        &[
            ("/config/properties/service/properties/cpus/type", Value::Null),
            ("/config/properties/service/properties/cpus/type", json!("array")),
            ("/config/properties/service/properties/cpus/type", json!("object")),
            ("/config/properties/service/properties/cpus/required", json!(false)),
            ("/config/properties/service/properties/cpus/pattern", json!("^1$")),
            ("/config/properties/service/properties/cpus/description", Value::Null),
            ("/config/properties/service/properties/log_level/enum", json!(["1", "2", "3", "4", "5", "6", "7", "8", "9"])),
            ("/config/properties/service/properties/log_level/enum", json!([1, 2])),
            ("/config/properties/service/properties/log_level/enum", json!([])),
            ("/config/properties/service/properties/service_account_secret/media", json!({ "type": "application/x-secrets+string" })),
            ("/config/properties/service/properties/cpus/media", json!({ "type": "application/x-secret+string" })),
            ("/config/properties/service/properties/name/pattern", json!("(?<!-)$")),
            ("/config/properties/service/properties/name/pattern", json!("(?i)^a$")),
            ("/config/properties/service/properties/name/pattern", json!("^(a$")),
        ],
    );
}

fn refused_defaults(package: &Value) -> Vec<String> {
    let refused = |option: &Value| {
        let default = &option["default"];
        let of_type = match option["type"].as_str() {
            Some("string") => default.is_string(),
            Some("integer") => default.is_i64(),
            Some("number") => default.is_number(),
            Some("boolean") => default.is_boolean(),
            _ => false,
        };
        let below = option["minimum"].as_f64().is_some_and(|least| default.as_f64().is_none_or(|number| number < least));
        let above = option["maximum"].as_f64().is_some_and(|most| default.as_f64().is_none_or(|number| number > most));
        let long = option["maxLength"].as_u64().is_some_and(|most| default.as_str().is_none_or(|text| text.len() as u64 > most));
        let other = option["pattern"].as_str().is_some_and(|pattern| !matches(pattern, default));
        let unlisted = option["enum"].as_array().is_some_and(|choices| !choices.contains(default));
        !of_type || below || above || long || other || unlisted
    };
    options(package).into_iter().filter(|(_, option)| refused(option)).map(|(name, _)| name).collect()
}

#[test]
fn every_option_has_a_default_that_it_would_accept() {
    holds(
        refused_defaults,
        &[
            ("/config/properties/service/properties/host/default", Value::Null),
            ("/config/properties/service/properties/mem/default", json!(64.5)),
            ("/config/properties/service/properties/mem/default", json!("64")),
            ("/config/properties/service/properties/mem/minimum", json!(65)),
            ("/config/properties/exposure/properties/service_port/maximum", json!(4999)),
            ("/config/properties/service/properties/name/maxLength", json!(8)),
            ("/config/properties/service/properties/name/default", json!("Private registry")),
            ("/config/properties/service/properties/log_level/default", json!("trace")),
        ],
    );
}

// package.json

fn unfit_description(package: &Value) -> Vec<String> {
    let known = [
        "packagingVersion",
        "name",
        "version",
        "maintainer",
        "description",
        "tags",
        "scm",
        "website",
        "framework",
        "preInstallNotes",
        "postInstallNotes",
        "postUninstallNotes",
        "selected",
        "licenses",
        "minDcosReleaseVersion",
        "hasKnownIssues",
        "lastUpdated",
        "upgradesFrom",
        "downgradesTo",
    ];
    let package = &package["package"];
    let list = |key: &str| package[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut faults = only(&known, "package.json", package);
    let mut must = |holds: bool, what: &str| {
        if !holds {
            faults.push(what.to_owned());
        }
    };
    must(package["packagingVersion"] == "4.0", "packagingVersion");
    must(matches("^[a-z][a-z0-9-]*[a-z0-9]$", &package["name"]), "name");
    must(matches("^[-a-zA-Z0-9.]+$", &package["version"]) && package["version"] == env!("CARGO_PKG_VERSION"), "version");
    must(matches("^(0|[1-9][0-9]*)([.](0|[1-9][0-9]*))*$", &package["minDcosReleaseVersion"]), "minDcosReleaseVersion");
    must(filled(&package["maintainer"]) && filled(&package["description"]), "maintainer, description");
    must(!list("tags").is_empty() && list("tags").iter().all(|tag| matches(r"^[^\s]+$", tag)), "tags");
    let named = |license: &Value| filled(&license["name"]) && matches(r"^https?://\S+$", &license["url"]) && keys(license).len() == 2;
    must(!list("licenses").is_empty() && list("licenses").iter().all(named), "licenses");
    for key in ["preInstallNotes", "postInstallNotes", "postUninstallNotes"] {
        must(filled(&package[key]) && package[key].as_str().is_some_and(|notes| notes.trim() == notes), key);
    }
    for key in ["framework", "selected"] {
        must(package[key].is_boolean(), key);
    }
    for key in ["upgradesFrom", "downgradesTo"] {
        must(list(key).iter().all(|version| matches("^([*]|[-a-zA-Z0-9.]+)$", version)), key);
    }
    faults
}

#[test]
fn the_description_has_the_fields_of_packaging_version_4_and_the_version_of_the_program() {
    holds(
        unfit_description,
        &[
            ("/package/packagingVersion", json!("5.0")),
            ("/package/manager", json!({ "packageName": "private-registry" })),
            ("/package/name", json!("Private_Registry")),
            ("/package/version", json!("0.0.9")),
            ("/package/minDcosReleaseVersion", json!("1.09")),
            ("/package/maintainer", Value::Null),
            ("/package/description", json!("")),
            ("/package/tags", json!(["container images"])),
            ("/package/tags", Value::Null),
            ("/package/licenses", json!([{ "name": "Apache" }])),
            ("/package/licenses", json!([{ "name": "Apache", "url": "www.apache.org" }])),
            ("/package/postInstallNotes", json!("Done.\n")),
            ("/package/preInstallNotes", Value::Null),
            ("/package/selected", json!("false")),
            ("/package/upgradesFrom", json!([1])),
        ],
    );
}

// resource.json

/// Where `ci/package` puts the address of the release.
const RELEASE: &str = "http://release.invalid/";

fn unfit_resources(package: &Value) -> Vec<String> {
    let resource = &package["resource"];
    let mut faults = only(&["assets", "images", "cli"], "resource.json", resource);
    faults.extend(only(&["container", "uris"], "assets", &resource["assets"]));
    faults.extend(only(&["docker"], "assets.container", &resource["assets"]["container"]));
    faults.extend(only(&["icon-small", "icon-medium", "icon-large", "screenshots"], "images", &resource["images"]));
    let aliases = keys(&resource["assets"]["container"]["docker"]).into_iter().chain(keys(&resource["assets"]["uris"]));
    // A dot leads the template to something that is not there.
    faults.extend(aliases.filter(|alias| alias.contains('.')).map(|alias| format!("the asset {alias} has a dot in its name")));

    let cli = &resource["cli"];
    faults.extend(only(&["binaries"], "cli", cli));
    faults.extend(only(&["linux", "darwin", "windows"], "cli.binaries", &cli["binaries"]));
    let program = &cli["binaries"]["linux"]["x86-64"];
    faults.extend(only(&["x86-64"], "cli.binaries.linux", &cli["binaries"]["linux"]));
    faults.extend(only(&["contentHash", "kind", "url"], "cli.binaries.linux.x86-64", program));
    if !["executable", "zip"].iter().any(|kind| program["kind"] == *kind) || !filled(&program["url"]) {
        faults.push("the program for Linux has no kind or no URL".to_owned());
    }
    if program["contentHash"] != json!([{ "algo": "sha256", "value": "@SHA256@" }]) {
        faults.push("the program for Linux has no hash".to_owned());
    }

    let uris = resource["assets"]["uris"].as_object().into_iter().flatten().map(|(_, uri)| uri);
    for uri in uris.chain(pictures(package).into_iter().map(|(uri, _)| uri)).chain([&program["url"]]) {
        if !uri.as_str().and_then(|uri| uri.strip_prefix(RELEASE)).is_some_and(|name| !name.is_empty() && !name.contains('/')) {
            faults.push(format!("{uri} is not a file of the release"));
        }
    }
    faults
}

#[test]
fn the_resources_are_those_that_the_schema_knows_and_lie_in_the_release() {
    holds(
        unfit_resources,
        &[
            ("/resource/command", json!({})),
            ("/resource/assets/images", json!({})),
            ("/resource/assets/uris/tool-1.0", json!("http://release.invalid/tool")),
            ("/resource/assets/container/docker/registry-2.8", json!("registry:2.8.3")),
            ("/resource/assets/uris/binary", json!("http://elsewhere.example/private-registry")),
            ("/resource/images/icon-huge", json!("http://release.invalid/icon-huge.png")),
            ("/resource/images/icon-small", json!("icon-small.png")),
            ("/resource/cli/binaries/linux/x86-64", Value::Null),
            ("/resource/cli/binaries/linux/arm64", json!({})),
            ("/resource/cli/binaries/linux/x86-64/contentHash", json!([])),
            ("/resource/cli/binaries/linux/x86-64/kind", json!("script")),
        ],
    );
}

/// Every picture with the size that it must have.
fn pictures(package: &Value) -> Vec<(&Value, (u32, u32))> {
    let images = &package["resource"]["images"];
    let icons = [("icon-small", 48), ("icon-medium", 96), ("icon-large", 256)].map(|(name, size)| (&images[name], (size, size)));
    let screenshots = images["screenshots"].as_array().into_iter().flatten().map(|shot| (shot, (1200, 675)));
    icons.into_iter().chain(screenshots).collect()
}

/// Width and height of a PNG: behind its signature, and the length and the name of its first chunk.
fn size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let (width, rest) = header.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

fn unfit_pictures(package: &Value) -> Vec<String> {
    let fits = |uri: &Value, wanted| {
        let name = uri.as_str().and_then(|uri| uri.strip_prefix(RELEASE))?;
        (size(&bytes(&format!("universe/{name}")))? == wanted).then_some(())
    };
    pictures(package).into_iter().filter(|(uri, wanted)| fits(uri, *wanted).is_none()).map(|(uri, _)| uri.to_string()).collect()
}

#[test]
fn all_three_icons_and_the_screenshots_have_the_size_that_the_catalog_shows() {
    assert_eq!(size(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x30\0\0\0\x60"), Some((48, 96)));
    assert_eq!(size(b"GIF89a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), None);
    // The catalog shows none of the icons if one of them is missing.
    holds(
        unfit_pictures,
        &[
            ("/resource/images/icon-small", Value::Null),
            ("/resource/images/icon-medium", json!("http://release.invalid/icon-large.png")),
            ("/resource/images/icon-large", json!("http://release.invalid/icon.svg")),
            ("/resource/images/screenshots", json!(["http://release.invalid/icon-large.png"])),
        ],
    );
}

// marathon.json.mustache

/// Names in the template, without the marks of sections.
fn tags(package: &Value) -> Vec<String> {
    let template = package["template"].as_str().unwrap();
    let tags = template.split("{{").skip(1).map(|rest| rest.split_once("}}").expect("a tag is not closed").0);
    tags.map(|tag| tag.trim_start_matches(['#', '^', '/']).to_owned()).collect()
}

fn unknown_tags(package: &Value) -> Vec<String> {
    let options: BTreeSet<String> = options(package).into_iter().map(|(name, _)| name).collect();
    let exists = |tag: &str| match tag.strip_prefix("resource.") {
        Some(path) => package["resource"].pointer(&format!("/{}", path.replace('.', "/"))).is_some_and(Value::is_string),
        None => options.contains(tag),
    };
    tags(package).into_iter().filter(|tag| !exists(tag)).collect()
}

#[test]
fn everything_that_the_template_asks_for_exists() {
    holds(
        unknown_tags,
        &[
            template("{{names.vip}}", "{{names.vpi}}"),
            template("{{names.vip}}", "{{names}}"),
            template("{{#service.host}}", "{{#service.hosts}}"),
            template("{{resource.assets.uris.binary}}", "{{resource.assets.uris.program}}"),
            template("{{resource.assets.uris.binary}}", "{{resource.assets.uris}}"),
            ("/resource/assets/container/docker/registry", Value::Null),
        ],
    );
}

fn unused_options(package: &Value) -> Vec<String> {
    let tags: BTreeSet<String> = tags(package).into_iter().collect();
    options(package).into_iter().map(|(name, _)| name).filter(|name| !tags.contains(name)).collect()
}

#[test]
fn every_option_reaches_the_controller() {
    holds(
        unused_options,
        &[template("{{names.vip}}", "192.168.0.1:443"), ("/config/properties/names/properties/idle", json!({ "type": "string" }))],
    );
}

/// What the template becomes with every option filled in. What comes from resource.json stays recognizable.
fn filled_in(package: &Value) -> Result<Value, String> {
    let types: Vec<(String, &Value)> = options(package);
    let value = |tag: &str| match types.iter().find(|(name, _)| name == tag).map(|(_, option)| option["type"].as_str().unwrap_or_default())
    {
        Some("integer" | "number") => "0",
        Some("boolean") => "true",
        // A string without quotes around it is not JSON.
        Some(_) => "text",
        None if tag.starts_with("resource.") => RESOURCE,
        None => "",
    };
    let template = package["template"].as_str().unwrap();
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_once("}}").ok_or("a tag is not closed")?;
        text += value(tag);
        text += rest;
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

const RESOURCE: &str = "from resource.json";

fn outside_of_resources(package: &Value) -> Vec<String> {
    fn search(at: &str, value: &Value, faults: &mut Vec<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| search(key, value, faults)),
            Value::Array(array) => array.iter().for_each(|value| search(at, value, faults)),
            Value::String(text) => {
                let name = at.to_ascii_lowercase();
                // What an operator gives is his own affair.
                let fetched = !name.starts_with("option_")
                    && ["image", "uri", "uris"].iter().any(|end| name == *end || name.ends_with(&format!("_{end}")));
                if text.contains("://") || (fetched && text != RESOURCE) {
                    faults.push(format!("{at} is {text}"));
                }
            }
            _ => {}
        }
    }
    let mut faults = Vec::new();
    match filled_in(package) {
        Ok(app) => search("the app", &app, &mut faults),
        Err(error) => faults.push(error),
    }
    faults
}

#[test]
fn the_template_becomes_json_and_takes_every_image_and_file_from_resource_json() {
    holds(
        outside_of_resources,
        &[
            template("\"{{names.vip}}\"", "{{names.vip}}"),
            template("\"instances\": 1,", "\"instances\": 1,,"),
            template("\"{{resource.assets.uris.binary}}\"", "\"http://elsewhere.example/private-registry\""),
            template("{{resource.assets.container.docker.registry}}", "registry:2.8.3"),
            template("./private-registry controller", "./private-registry controller --from https://elsewhere.example"),
        ],
    );
}

fn wrong_labels(package: &Value) -> Vec<String> {
    let Ok(app) = filled_in(package) else { return vec!["the template is not JSON".to_owned()] };
    let labels = &app["labels"];
    let mut faults: Vec<String> = ["DCOS_SERVICE_NAME", "DCOS_SERVICE_SCHEME", "DCOS_COMMONS_UNINSTALL", "DCOS_PACKAGE_FRAMEWORK_NAME"]
        .iter()
        .filter(|label| !filled(&labels[**label]))
        .map(|label| format!("{label} is missing"))
        .collect();
    // Admin Router finds the service, and Cosmos its plan for the removal, by the id of the app.
    if labels["DCOS_SERVICE_NAME"].as_str().map(|name| format!("/{name}")).as_deref() != app["id"].as_str() {
        faults.push("DCOS_SERVICE_NAME is not the id".to_owned());
    }
    let port = labels["DCOS_SERVICE_PORT_INDEX"].as_str().and_then(|index| index.parse::<usize>().ok());
    if port.and_then(|index| app["portDefinitions"].get(index)).is_none() {
        faults.push("DCOS_SERVICE_PORT_INDEX is not the number of a port".to_owned());
    }
    // The UI takes the link to the service away from what has this label.
    if labels.get("DCOS_COMMONS_API_VERSION").is_some() {
        faults.push("DCOS_COMMONS_API_VERSION must not be there".to_owned());
    }
    faults.extend(
        labels.as_object().into_iter().flatten().filter(|(_, value)| !value.is_string()).map(|(name, _)| format!("{name} is no string")),
    );
    faults
}

#[test]
fn the_labels_lead_admin_router_to_the_service_and_cosmos_to_its_removal() {
    let mut spoilers: Vec<_> =
        ["DCOS_SERVICE_NAME", "DCOS_SERVICE_PORT_INDEX", "DCOS_SERVICE_SCHEME", "DCOS_COMMONS_UNINSTALL", "DCOS_PACKAGE_FRAMEWORK_NAME"]
            .iter()
            .map(|label| template(&format!("\"{label}\""), "\"OTHER\""))
            .collect();
    spoilers.extend([
        template("\"DCOS_SERVICE_NAME\": \"{{service.name}}\"", "\"DCOS_SERVICE_NAME\": \"{{registry.name}}-x\""),
        template("\"DCOS_SERVICE_PORT_INDEX\": \"0\"", "\"DCOS_SERVICE_PORT_INDEX\": \"1\""),
        template("\"MARATHON_SINGLE_INSTANCE_APP\"", "\"DCOS_COMMONS_API_VERSION\""),
        template("\"MARATHON_SINGLE_INSTANCE_APP\": \"true\"", "\"MARATHON_SINGLE_INSTANCE_APP\": true"),
    ]);
    holds(wrong_labels, &spoilers);
}

// What ci/package makes of it.

#[test]
fn the_list_of_crates_names_what_the_program_is_made_of_and_nothing_that_only_tests_use() {
    let list: Value = serde_json::from_slice(&bytes("target/package/private-registry.cdx.json")).unwrap();
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
    let named = |name: &str| list["components"].as_array().unwrap().iter().find(|component| component["name"] == name);
    let rustls = named("rustls").expect("rustls is missing");
    assert_eq!(rustls["purl"], format!("pkg:cargo/rustls@{}", rustls["version"].as_str().unwrap()));
    assert!(filled(&rustls["licenses"][0]["expression"]), "{rustls}");
    for other in ["tempfile", "lab", "cc", "serde_derive"] {
        assert!(named(other).is_none(), "{other} is not part of the program");
    }
    let program = &list["metadata"]["component"];
    assert_eq!(program["version"], env!("CARGO_PKG_VERSION"));
    let sha256 = text("target/package/private-registry.sha256");
    assert_eq!(program["hashes"], json!([{ "alg": "SHA-256", "content": sha256.split_whitespace().next().unwrap() }]));
}
