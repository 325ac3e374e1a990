//! The store of the images of a running installation: which one it is, and what of it changes only by the operator's word.
//!
//! Pure, as the planner. A registry that is pointed at another store has lost its images as far as anybody who pulls can see, so the
//! plan goes on only when `storage.abandon` names the store that is left. That word is used up by the change: the next one has
//! another store to name.

use serde_json::Value;

use crate::documents;
use crate::names::Host;
use crate::options::{Fault, Options, StorageKind};
use crate::plan::{self, Observed};

/// Label of the registry app: the store that it was made for.
pub const LABEL: &str = "PRIVATE_REGISTRY_STORE";

const PERSISTENT: &str = "persistent_volume";

/// The store that the options name, the same text as long as it is the same store. `host`: the agent of a registry that belongs to one.
pub fn store(options: &Options, host: &Host) -> String {
    let storage = &options.storage;
    let in_bucket = || format!("{}/{}", storage.bucket, storage.root);
    match storage.kind {
        StorageKind::HostPath => format!("host_path {host}:{}", options.registry.storage_path),
        StorageKind::PersistentVolume => PERSISTENT.into(),
        StorageKind::ExternalVolume => format!("external_volume {}:{}", storage.volume_driver, storage.volume_name),
        StorageKind::S3 if storage.endpoint.is_empty() => format!("s3 {}", in_bucket()),
        StorageKind::S3 => format!("s3 {}/{}", storage.endpoint.trim_end_matches('/'), in_bucket()),
        StorageKind::Gcs => format!("gcs {}", in_bucket()),
        StorageKind::Azure => format!("azure {}:{}", storage.account, in_bucket()),
    }
}

/// What the options would lose or Marathon would refuse.
pub fn faults(options: &Options, observed: &Observed) -> Vec<Fault> {
    let app = observed.registry.as_ref().filter(|app| documents::is_made_by(&app.spec, options));
    let Some((app, former)) = app.and_then(|app| Some((app, app.spec["labels"][LABEL].as_str()?))) else { return Vec::new() };
    let is_abandoned = options.storage.abandon == former;
    let fault = |field: &str, value: String, reason: String, remedy: String| vec![Fault { field: field.into(), value, reason, remedy }];
    if !options.registry.enabled {
        return if former == PERSISTENT && !is_abandoned {
            let reason = "Marathon deletes a persistent volume, and all images in it, together with the app";
            let remedy = format!(
                "Copy the images first (docs/backup-and-migrate.md), then set storage.abandon to {former}; or set it to true again."
            );
            fault("registry.enabled", "false".into(), reason.into(), remedy)
        } else {
            Vec::new()
        };
    }
    let present = store(options, &plan::registry_host(observed, options));
    if present == former {
        return if former == PERSISTENT { changes_of_reserved(options, &app.spec) } else { Vec::new() };
    }
    if former == PERSISTENT || present == PERSISTENT {
        let word = if former == PERSISTENT { format!(" and storage.abandon to {former}") } else { String::new() };
        let remedy = format!(
            "Copy the images first (docs/backup-and-migrate.md). Then set registry.enabled to false{word}, wait until the app is gone, and set it to true again. Or set it back."
        );
        let reason = format!("the images lie in {former}, and Marathon neither gives an app a persistent volume later nor takes it away");
        return fault("storage.kind", present, reason, remedy);
    }
    if is_abandoned {
        return Vec::new();
    }
    let reason = format!("the images lie in {former}; none of them could be pulled from there any more");
    let remedy = format!("Copy the images first (docs/backup-and-migrate.md), then set storage.abandon to \"{former}\"; or set it back.");
    fault(changed_field(former, &present), present, reason, remedy)
}

/// The option that most likely makes the difference.
fn changed_field(former: &str, present: &str) -> &'static str {
    let parts = |text: &str| text.split_once(' ').map(|(kind, place)| (kind.to_string(), place.to_string())).unwrap_or_default();
    let ((kind, old), (now, new)) = (parts(former), parts(present));
    let before_path = |place: &str| place.split(":/").next().map(str::to_string);
    match now.as_str() {
        _ if kind != now => "storage.kind",
        "host_path" if before_path(&old) != before_path(&new) => "registry.host",
        "host_path" => "registry.storage_path",
        "external_volume" => "storage.volume_name",
        _ => "storage.bucket",
    }
}

/// What Marathon does not change about an app whose task has reserved its place.
fn changes_of_reserved(options: &Options, app: &Value) -> Vec<Fault> {
    let container = &app["container"];
    let volumes = container["volumes"].as_array().into_iter().flatten();
    let size = volumes.filter_map(|volume| volume["persistent"]["size"].as_f64()).next();
    let mappings = container["portMappings"].as_array().or_else(|| container["docker"]["portMappings"].as_array());
    let port = mappings.and_then(|mappings| mappings.first()?["hostPort"].as_f64());
    let compared = [
        ("registry.cpus", options.registry.cpus, app["cpus"].as_f64()),
        ("registry.mem", options.registry.mem.into(), app["mem"].as_f64()),
        ("storage.volume_mib", options.storage.volume_mib.into(), size),
        ("exposure.host_port", options.exposure.host_port.into(), port),
    ];
    let changed =
        compared.into_iter().filter_map(|(field, wanted, stored)| Some((field, wanted, stored.filter(|stored| *stored != wanted)?)));
    let fault = |(field, wanted, stored): (&str, f64, f64)| Fault {
        field: field.into(),
        value: wanted.to_string(),
        reason: format!("it is {stored}, and Marathon does not change that for an app with a persistent volume"),
        remedy: format!("Set it back to {stored}; to change it, copy the images elsewhere and install anew (docs/storage.md)."),
    };
    changed.map(fault).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dcos::marathon::App;

    const HOST: &str = "10.0.0.1";

    fn options(given: Value) -> Options {
        Options::from_json(&given).unwrap()
    }

    /// A registry as it was made by these options, on [`HOST`].
    fn running(given: Value) -> Observed {
        let options = options(given);
        let volumes = crate::settings::volumes(&options);
        let spec = json!({
            "cpus": options.registry.cpus, "mem": options.registry.mem,
            "labels": { documents::SERVICE_LABEL: "private-registry", LABEL: store(&options, &HOST.parse().unwrap()) },
            "constraints": [["hostname", "LIKE", "^10\\.0\\.0\\.1$"]],
            "container": { "portMappings": [{ "hostPort": 0 }], "volumes": volumes },
        });
        Observed { registry: Some(App { spec, tasks: vec![] }), ..Observed::default() }
    }

    /// Field and remedy of what is refused.
    fn refused(given: Value, observed: &Observed) -> Vec<(String, String)> {
        faults(&options(given), observed).into_iter().map(|fault| (fault.field, fault.remedy)).collect()
    }

    fn field(given: Value, observed: &Observed) -> String {
        refused(given, observed).into_iter().map(|(field, _)| field).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn another_store_is_refused_until_the_operator_names_the_one_that_is_left() {
        let observed = running(json!({}));
        assert_eq!(field(json!({}), &observed), "");
        assert_eq!(field(json!({ "registry": { "host": HOST } }), &observed), "");
        assert_eq!(field(json!({ "registry": { "storage_path": "/data/other" } }), &observed), "registry.storage_path");
        assert_eq!(field(json!({ "registry": { "host": "10.0.0.2" } }), &observed), "registry.host");
        let s3 = |more: Value| {
            let mut s3 = json!({ "kind": "s3", "bucket": "b" });
            s3.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            json!({ "storage": s3 })
        };
        let (field_of_s3, remedy) = refused(s3(json!({})), &observed).remove(0);
        assert_eq!(field_of_s3, "storage.kind");
        assert!(remedy.contains("set storage.abandon to \"host_path 10.0.0.1:/data/docker-registry\""), "{remedy}");
        assert_eq!(field(s3(json!({ "abandon": "host_path 10.0.0.1:/data/docker-registry" })), &observed), "");
        // That word is about that store only.
        let moved = running(s3(json!({})));
        let word = json!({ "bucket": "other", "abandon": "host_path 10.0.0.1:/data/docker-registry" });
        assert_eq!(field(s3(word), &moved), "storage.bucket");
        assert_eq!(field(s3(json!({ "redirect": true })), &moved), "", "the same store");
        assert_eq!(faults(&options(s3(json!({}))), &Observed::default()), vec![]);
    }

    #[test]
    fn a_persistent_volume_is_neither_added_nor_left_nor_changed_in_place() {
        let kept = |more: Value| {
            let mut all = json!({ "storage": { "kind": "persistent_volume" }, "uninstall": { "delete_data": true } });
            for (section, values) in more.as_object().unwrap() {
                for (key, value) in values.as_object().unwrap() {
                    all[section][key] = value.clone();
                }
            }
            all
        };
        let observed = running(kept(json!({})));
        assert_eq!(field(kept(json!({})), &observed), "");
        assert_eq!(field(kept(json!({ "registry": { "mem": 1024 } })), &observed), "registry.mem");
        assert_eq!(field(kept(json!({ "storage": { "volume_mib": 20_000 } })), &observed), "storage.volume_mib");
        assert_eq!(field(kept(json!({})), &running(json!({}))), "storage.kind");
        let abandoned = json!({ "storage": { "abandon": "persistent_volume" } });
        assert_eq!(field(abandoned, &observed), "storage.kind", "Marathon would refuse it");
        assert_eq!(field(kept(json!({ "registry": { "enabled": false } })), &observed), "registry.enabled");
        let off = json!({ "registry": { "enabled": false }, "storage": { "abandon": "persistent_volume" } });
        assert_eq!(field(kept(off), &observed), "");
    }
}
