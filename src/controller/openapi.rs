//! The description of all that the controller answers, as an OpenAPI document.

/// Written by hand; the tests hold it against the router and against real answers.
pub(super) const DOCUMENT: &str = include_str!("../templates/openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::controller::discovery::Discovery;
    use crate::controller::images::ImagesReport;
    use crate::controller::report::Report;
    use crate::options::Options;

    fn document() -> Value {
        crate::json::of_text(DOCUMENT).unwrap()
    }

    /// Every difference between a value and its schema.
    fn differences(document: &Value, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let reference = schema["$ref"].as_str().or(schema["allOf"][0]["$ref"].as_str());
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        if let Some(reference) = reference {
            let target = document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} is nowhere"));
            return differences(document, target, value, path, found);
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            other => panic!("{path} has the type {other:?}"),
        };
        let allowed = schema["enum"].as_array().is_none_or(|words| words.contains(value));
        if !fits || !allowed {
            found.push(format!("{path} is {value}"));
        }
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(field).is_none() {
                found.push(format!("{path}.{field} is missing"));
            }
        }
        for (field, value) in value.as_object().into_iter().flatten() {
            match schema["properties"].get(field) {
                Some(schema) => differences(document, schema, value, &format!("{path}.{field}"), found),
                None => found.push(format!("{path}.{field} is not described")),
            }
        }
        for value in value.as_array().into_iter().flatten() {
            differences(document, &schema["items"], value, &format!("{path}[]"), found);
        }
    }

    /// The document's schema describes the answer whole.
    fn describes(path: &str, answer: impl serde::Serialize) {
        let document = document();
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let (answer, mut found) = (serde_json::to_value(answer).unwrap(), Vec::new());
        differences(&document, schema, &answer, path, &mut found);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn every_path_of_the_router_is_described_and_no_other() {
        let routed: BTreeSet<String> =
            include_str!("serve.rs").split(".route(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_string())).collect();
        let document = document();
        let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        assert!(!routed.is_empty());
        assert_eq!(routed, described);
        for path in document["paths"].as_object().unwrap().values() {
            assert_eq!(path.as_object().unwrap().keys().collect::<Vec<_>>(), ["get"], "everything is read-only");
        }
    }

    #[test]
    fn a_report_is_described_whole_with_everything_in_it_and_with_nothing() {
        describes("/v1/status", Report::default_with_service());
        describes("/v1/status", full_report());
    }

    #[test]
    fn a_discovery_is_described_whole() {
        let options =
            Options::from_json(&json!({ "names": { "external_host": "203.0.113.5" }, "proxy": { "remote_url": "https://x.example.com" } }));
        let options = options.unwrap();
        for report in [Report::default_with_service(), full_report()] {
            describes("/v1/discovery", Discovery::new(&options, &"10.0.0.1".parse().unwrap(), &report));
        }
    }

    #[test]
    fn a_list_of_images_is_described_whole() {
        describes("/v1/images", ImagesReport::default());
        let image = json!({
            "repository": "a", "tag": "1", "digest": "sha256:0", "media_type": "x", "amd64": "y", "size": 1, "unreadable": "why", "fix": "what",
        });
        describes("/v1/images", serde_json::from_value::<ImagesReport>(json!({ "images": [image], "next": "a:1" })).unwrap());
    }

    impl Report {
        fn default_with_service() -> Self {
            Self { service: "private-registry".into(), ..Self::default() }
        }
    }

    /// Every list has an entry, and every optional field is there.
    fn full_report() -> Report {
        let mut report = serde_json::to_value(Report::default_with_service()).unwrap();
        let filled = json!({
            "agents": [{ "host": "10.0.0.1", "role": "public", "state": "failed", "detail": "d", "sysctl": "set", "exposed_key": "/k", "cleaned": ["/c"], "proven_at": 1 }],
            "others": [{ "name": "a:1", "source": "s", "fingerprints": ["f"], "proven": 1, "detail": "d" }],
            "names": ["192.168.0.1:443"], "ca_fingerprint": "f", "ca": "PEM", "leaf_not_after": 1, "next": ["n"], "problems": ["p"], "advice": ["a"],
            "trouble": "t", "orders": [{ "run": "r", "fresh": true }], "rotation": "r", "registry_version": "2.8.3",
            "collections": [{ "run": "r", "dry_run": true, "said": "s", "ended": true, "failed": false }],
            "preload": [{ "image": "i", "state": "done", "bytes": 1, "copied": { "source": "s", "target": "t" }, "detail": "d" }],
            "certificates": [{ "subject": "s", "fingerprint": "f", "not_after": 1 }], "rotating": { "switched": true, "reason": "r", "since": 1 },
            "registries": [{ "host": "10.0.0.1", "phase": "serving", "version": "2.8.3", "starts": 1, "names": ["n"], "fingerprint": "f", "not_after": 1, "room": { "total_bytes": 3, "free_bytes": 2, "images_bytes": 1 } }],
            "copies": [{ "run": "r", "kind": "verified-backup", "said": "s", "ended": true, "failed": false }],
        });
        for (field, value) in filled.as_object().unwrap() {
            report[field] = value.clone();
        }
        let report: Report = serde_json::from_value(report).unwrap();
        let again = serde_json::to_value(&report).unwrap();
        assert!(again.as_object().unwrap().values().all(|value| !value.is_null()), "a field that can be empty is not filled: {again}");
        report
    }
}
