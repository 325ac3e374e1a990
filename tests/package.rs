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
fn sections(package: &Value) -> Vec<(&String, &Value)> {
    package["config"]["properties"].as_object().unwrap().iter().collect()
}

/// Every option with its name, as `section.key`.
fn options(package: &Value) -> Vec<(String, &Value)> {
    let of = |(section, value): (&String, &'_ Value)| {
        let properties = value["properties"].as_object().cloned().unwrap_or_default();
        properties.keys().map(|key| (format!("{section}.{key}"), section.clone(), key.clone())).collect::<Vec<_>>()
    };
    let names = sections(package).into_iter().flat_map(of);
    names.map(|(name, section, key)| (name, &package["config"]["properties"][section]["properties"][key])).collect()
}

