//! What the registry is told, from the options: pure, and without asking anybody.
//!
//! Sections `registry`, `storage`, `auth`, `proxy`, `garbage_collection` and `backup`: what is wrong with them, what the registry's
//! process gets as [`RegistrySettings`], and what its container gets to read of the operator's.

use std::path::Path;

use serde_json::{Value, json};

use crate::certificates::Certificate;
use crate::held::{self, Held};
use crate::host_paths::HostRoot;
use crate::names::{Host, HostPort};
use crate::options::{
    Auth, AuthKind, Backup, Exposure, Fault, GarbageCollection, Generation, Options, Proxy, Registry, Security, SecurityMode, Storage,
    StorageKind, Uninstall,
};
use crate::protocol::{AuthBy, ProxyOf, RegistrySettings, StorageAt};
use crate::security;

/// Directory of the images in the registry's container, unless they lie in a persistent volume.
pub const IMAGES: &str = "/var/lib/registry";
/// Directory of key, certificate and `config.yml` in the registry's container.
pub const STATE: &str = "/var/lib/private-registry";
/// Directory of backups in the registry's container.
pub const BACKUP: &str = "/var/lib/private-registry-backup";
/// A persistent volume's directory in the sandbox.
const VOLUME: &str = "images";

/// The sections that belong together.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Sections<'a> {
    pub security: &'a Security,
    pub exposure: &'a Exposure,
    pub registry: &'a Registry,
    pub storage: &'a Storage,
    pub auth: &'a Auth,
    pub proxy: &'a Proxy,
    pub garbage_collection: &'a GarbageCollection,
    pub backup: &'a Backup,
    pub uninstall: &'a Uninstall,
    /// Whether there is a service account, and with it the secret store.
    pub has_account: bool,
}

/// What is wrong with them.
pub fn faults(sections: Sections<'_>) -> Vec<Fault> {
    let mut faults = Faults(Vec::new(), sections);
    faults.image();
    faults.replicas();
    faults.storage();
    faults.auth();
    faults.proxy();
    faults.schedules();
    faults.0
}

struct Faults<'a>(Vec<Fault>, Sections<'a>);

impl Faults<'_> {
    fn add(&mut self, field: &str, value: &str, reason: &str, remedy: &str) {
        self.0.push(Fault { field: field.into(), value: value.into(), reason: reason.into(), remedy: remedy.into() });
    }

    fn held(&mut self, field: &str, text: &str) {
        self.0.extend(held::fault(field, text, &self.1.registry.name, self.1.has_account));
    }

    fn url(&mut self, field: &str, text: &str) {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
        if host.is_empty() || host.starts_with('/') || text.contains(char::is_whitespace) || text.contains('"') {
            self.add(field, text, "it is no URL", "Give http:// or https://, and a host, as in https://store.example.com:9000.");
        }
    }

    fn image(&mut self) {
        let image = &self.1.registry.image;
        if !image.is_empty() && !is_image(image) {
            self.add(
                "registry.image",
                image,
                "it is no reference of an image",
                "Give it as docker takes it, in lower case, best with its digest, as in registry@sha256:<64 digits>; or leave it empty.",
            );
        }
    }

    fn replicas(&mut self) {
        let Sections { registry, storage, exposure, .. } = self.1;
        if registry.replicas > 1 && !storage.kind.is_shared() {
            self.add(
                "registry.replicas",
                &registry.replicas.to_string(),
                "this kind of storage belongs to one agent",
                "Set it to 1, or choose s3, gcs or azure as storage.kind.",
            );
        }
        if let Some(host) = registry.host.as_ref().filter(|_| registry.replicas > 1) {
            self.add("registry.host", &host.to_string(), "several registries cannot all be on one agent", "Leave it empty.");
        }
        if exposure.host_port > 0 && registry.replicas > 1 && registry.name.is_empty() {
            self.add("exposure.host_port", &exposure.host_port.to_string(), "the registry has no name", "Give registry.name.");
        }
    }

    fn storage(&mut self) {
        let Sections { storage, uninstall, .. } = self.1;
        let kind = storage.kind;
        let only_for: [(&str, &str, &[StorageKind]); 7] = [
            ("bucket", &storage.bucket, &[StorageKind::S3, StorageKind::Gcs, StorageKind::Azure]),
            ("root", &storage.root, &[StorageKind::S3, StorageKind::Gcs, StorageKind::Azure]),
            ("endpoint", &storage.endpoint, &[StorageKind::S3, StorageKind::Azure]),
            ("account", &storage.account, &[StorageKind::Azure]),
            ("access_key", &storage.access_key, &[StorageKind::S3]),
            ("secret_key", &storage.secret_key, &[StorageKind::S3, StorageKind::Azure]),
            ("credentials", &storage.credentials, &[StorageKind::Gcs]),
        ];
        for (key, text, kinds) in only_for {
            if !text.is_empty() && !kinds.contains(&kind) {
                self.add(
                    &format!("storage.{key}"),
                    text,
                    "this kind of storage has none",
                    "Set storage.kind to the store you mean, or leave it empty.",
                );
            }
        }
        if kind.is_object_store() {
            if storage.bucket.is_empty() {
                self.add("storage.bucket", "", "an object store needs it", "Give the name of the bucket (s3, gcs) or container (azure).");
            }
            if storage.root.starts_with('/') || storage.root.split('/').any(|part| matches!(part, "." | "..")) {
                self.add(
                    "storage.root",
                    &storage.root,
                    "it begins with a slash, or has '.' or '..' in it",
                    "Give a plain path, as in registries/one.",
                );
            }
            for (field, text) in
                [("access_key", &storage.access_key), ("secret_key", &storage.secret_key), ("credentials", &storage.credentials)]
            {
                self.held(&format!("storage.{field}"), text);
            }
        }
        match kind {
            StorageKind::S3 => {
                if !storage.endpoint.is_empty() {
                    self.url("storage.endpoint", &storage.endpoint);
                }
                if storage.region.is_empty() {
                    self.add("storage.region", "", "s3 needs it", "Give the bucket's region; a store of your own takes any, as us-east-1.");
                }
                if storage.access_key.is_empty() != storage.secret_key.is_empty() {
                    let (field, value) =
                        if storage.access_key.is_empty() { ("storage.access_key", "") } else { ("storage.secret_key", "") };
                    self.add(
                        field,
                        value,
                        "one of the two keys is given and the other is not",
                        "Give both, or none for the agent's own role.",
                    );
                }
            }
            StorageKind::Azure => {
                for (field, text) in [("storage.account", &storage.account), ("storage.secret_key", &storage.secret_key)] {
                    if text.is_empty() {
                        self.add(field, "", "azure needs it", "Give the storage account, and where its key is kept.");
                    }
                }
            }
            StorageKind::ExternalVolume if storage.volume_name.is_empty() => {
                self.add("storage.volume_name", "", "an external volume needs it", "Give the volume's name at the volume driver.");
            }
            _ => {}
        }
        if uninstall.delete_data && (kind.is_object_store() || kind == StorageKind::ExternalVolume) {
            let reason = "the images lie in a store of yours, which this package does not delete";
            self.add(
                "uninstall.delete_data",
                "true",
                reason,
                "Set it to false; delete the bucket or volume yourself when nothing needs it any more.",
            );
        }
        if kind == StorageKind::PersistentVolume && !uninstall.delete_data {
            let reason = "Marathon deletes a persistent volume, and all images in it, together with the app";
            self.add("uninstall.delete_data", "false", reason, "Set it to true to say that you know, or choose another storage.kind.");
        }
    }

    fn auth(&mut self) {
        let Sections { auth, security, .. } = self.1;
        if auth.kind != AuthKind::None && security.mode == SecurityMode::Insecure {
            let reason = "docker sends no password over plain HTTP, and would be heard if it did";
            self.add("auth.kind", word(auth.kind), reason, "Choose another security.mode, or none.");
        }
        if auth.kind == AuthKind::Htpasswd {
            self.held("auth.htpasswd", &auth.htpasswd);
        } else if !auth.htpasswd.is_empty() {
            self.add("auth.htpasswd", &auth.htpasswd, "it is for the kind htpasswd only", "Set auth.kind to htpasswd, or leave it empty.");
        }
        let of_token = [("token_realm", &auth.token_realm), ("token_service", &auth.token_service), ("token_issuer", &auth.token_issuer)];
        for (key, text) in of_token.into_iter().chain([("token_certificates", &auth.token_certificates)]) {
            let field = format!("auth.{key}");
            match auth.kind {
                AuthKind::Token if text.is_empty() => {
                    self.add(&field, "", "the kind token needs it", "Give what the authorisation server is set up with.")
                }
                AuthKind::Token => {}
                _ if !text.is_empty() => {
                    self.add(&field, "(given)", "it is for the kind token only", "Set auth.kind to token, or leave it empty.")
                }
                _ => {}
            }
        }
        if auth.kind == AuthKind::Token && !auth.token_realm.is_empty() {
            self.url("auth.token_realm", &auth.token_realm);
        }
        if auth.kind == AuthKind::Token
            && !auth.token_certificates.is_empty()
            && let Err(error) = Certificate::parse_bundle(&auth.token_certificates)
        {
            self.add(
                "auth.token_certificates",
                "(not shown)",
                &error.to_string(),
                "Give the server's certificates as PEM, with the line breaks (in JSON: \\n).",
            );
        }
    }

    fn proxy(&mut self) {
        let Sections { proxy, .. } = self.1;
        if proxy.remote_url.is_empty() {
            for (field, text) in [("proxy.username", &proxy.username), ("proxy.password", &proxy.password)] {
                if !text.is_empty() {
                    self.add(field, text, "there is no proxy.remote_url", "Give the URL of the other registry, or leave this empty.");
                }
            }
            return;
        }
        self.url("proxy.remote_url", &proxy.remote_url);
        self.held("proxy.password", &proxy.password);
        if proxy.username.is_empty() != proxy.password.is_empty() {
            let field = if proxy.username.is_empty() { "proxy.username" } else { "proxy.password" };
            self.add(field, "", "one of user and password is given and the other is not", "Give both, or none.");
        }
    }

    fn schedules(&mut self) {
        let Sections { garbage_collection, backup, storage, registry, proxy, .. } = self.1;
        for (field, text) in [("garbage_collection.schedule", &garbage_collection.schedule), ("backup.schedule", &backup.schedule)] {
            if !text.is_empty() && !is_cron(text) {
                self.add(
                    field,
                    text,
                    "it is no cron line with five fields",
                    "Give minute, hour, day, month and day of the week, as in 0 3 * * 0.",
                );
            }
        }
        let collection = garbage_collection;
        let zone = &collection.time_zone;
        if zone.is_empty() || !zone.chars().all(|c| c.is_ascii_alphanumeric() || "/_+-".contains(c)) {
            self.add("garbage_collection.time_zone", zone, "it is no time zone", "Give UTC, or one as in Europe/Berlin.");
        }
        if collection.delete_untagged && registry.generation == Generation::Two {
            self.add(
                "garbage_collection.delete_untagged",
                "true",
                "generation 2 would also delete the images that a tag for several platforms \
                consists of, because these have no tag of their own",
                "Set it to false, or registry.generation to 3 (DC/OS 1.13 and later).",
            );
        }
        if !proxy.remote_url.is_empty() && !collection.schedule.is_empty() {
            self.add(
                "garbage_collection.schedule",
                &collection.schedule,
                "a cache deletes by itself what nobody asks for any more",
                "Leave it empty.",
            );
        }
        let path = &backup.path;
        if path.is_empty() {
            if !backup.schedule.is_empty() {
                self.add("backup.schedule", &backup.schedule, "there is no backup.path", "Give the directory for the backups too.");
            }
            return;
        }
        if storage.kind.is_object_store() && !backup.schedule.is_empty() {
            self.add(
                "backup.schedule",
                &backup.schedule,
                "the images lie in an object store, of which no backup is made",
                "Use that store's own versions and copies, and leave it empty. backup.path may stay, for restore-images.",
            );
        }
        let odd = path.contains([':', '"', '\\']) || path.chars().any(char::is_control) || !path.starts_with('/');
        if odd || path.ends_with('/') || path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
            self.add("backup.path", path, "it is no plain absolute path", "Give the directory as in /mnt/backup/registry.");
        } else if Path::new(path).starts_with(&registry.storage_path) || Path::new(&registry.storage_path).starts_with(path) {
            self.add("backup.path", path, "it and registry.storage_path lie in each other", "Give a directory of another disk or share.");
        }
    }
}

/// The word of the option.
pub(crate) fn word(kind: AuthKind) -> &'static str {
    match kind {
        AuthKind::None => "none",
        AuthKind::Htpasswd => "htpasswd",
        AuthKind::Token => "token",
    }
}

/// Whether docker takes this for an image: `[host[:port]/]name[/name…][:tag][@sha256:digest]`.
pub(crate) fn is_image(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_digest = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    // A colon behind the last slash is the tag's.
    let (name, tag) = match name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((name, tag)) => (name, Some(tag)),
        None => (name, None),
    };
    let is_tag = |tag: &str| {
        let rest = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['.', '-']) && tag.chars().all(rest)
    };
    let is_part = |part: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(ends) && part.ends_with(ends) && part.chars().all(inside)
    };
    let path = match name.split_once('/') {
        Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => {
            if host.parse::<HostPort>().is_err() && host.parse::<Host>().is_err() {
                return false;
            }
            path
        }
        _ => name,
    };
    path.split('/').all(is_part) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

/// Whether this is a cron line as Metronome takes it: five fields of numbers, names, stars, ranges, lists and steps.
fn is_cron(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let is_field = |field: &&str| field.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '*' | '/' | '-' | ',' | '?' | '#'));
    fields.len() == 5 && fields.iter().all(is_field)
}

/// Whether the registry belongs to one agent, which the controller knows before it runs.
pub fn is_pinned(options: &Options) -> bool {
    options.storage.kind == StorageKind::HostPath || options.registry.host.is_some()
}

/// All that the operator keeps elsewhere for the registry.
pub fn held(options: &Options) -> Vec<Held> {
    let mut all = security::held(&options.security);
    let Options { storage, auth, proxy, .. } = options;
    let others = [
        ("storage-access-key", &storage.access_key),
        ("storage-secret-key", &storage.secret_key),
        ("storage-credentials", &storage.credentials),
        ("auth-htpasswd", &auth.htpasswd),
        ("proxy-password", &proxy.password),
    ];
    all.extend(others.into_iter().filter_map(|(name, text)| Held::of(name, text)));
    all
}

/// Where the registry is that this one is a cache of.
pub fn upstream(proxy: &Proxy) -> Option<HostPort> {
    let url = &proxy.remote_url;
    let (rest, port) = url.strip_prefix("https://").map(|rest| (rest, 443)).or_else(|| Some((url.strip_prefix("http://")?, 80)))?;
    let host = rest.split('/').next().unwrap_or_default();
    host.parse().ok().or_else(|| format!("{host}:{port}").parse().ok())
}

/// What the registry is told. `upstream_certificates`: see [`ProxyOf::certificates`].
pub fn settings(options: &Options, upstream_certificates: &str) -> RegistrySettings {
    let Options { registry, security, storage, auth, proxy, .. } = options;
    let all = held(options);
    let at = |name: &str| all.iter().find(|held| held.name == name).map(Held::at);
    let (bucket, root, redirect) = (storage.bucket.clone(), storage.root.clone(), storage.redirect);
    RegistrySettings {
        log_level: registry.log_level.clone(),
        delete_enabled: registry.delete_enabled,
        drain_seconds: registry.drain_seconds,
        insecure: options.is_insecure(),
        key_type: security.key_type,
        provided: security::provided(security),
        read_only: registry.read_only,
        replicated: registry.replicas > 1,
        access_log: registry.access_log,
        upload_purge_hours: registry.upload_purge_hours,
        storage: match storage.kind {
            StorageKind::HostPath | StorageKind::ExternalVolume => StorageAt::Directory,
            StorageKind::PersistentVolume => StorageAt::Sandbox { directory: VOLUME.into() },
            StorageKind::S3 => StorageAt::S3 {
                bucket,
                root,
                redirect,
                region: storage.region.clone(),
                endpoint: storage.endpoint.clone(),
                access_key: at("storage-access-key"),
                secret_key: at("storage-secret-key"),
            },
            StorageKind::Gcs => StorageAt::Gcs { bucket, root, redirect, credentials: at("storage-credentials") },
            StorageKind::Azure => StorageAt::Azure {
                root,
                redirect,
                account: storage.account.clone(),
                container: bucket,
                realm: storage.endpoint.clone(),
                account_key: at("storage-secret-key"),
            },
        },
        auth: match auth.kind {
            AuthKind::None => AuthBy::Nobody,
            AuthKind::Htpasswd => AuthBy::Htpasswd { file: at("auth-htpasswd") },
            AuthKind::Token => AuthBy::Token {
                realm: auth.token_realm.clone(),
                service: auth.token_service.clone(),
                issuer: auth.token_issuer.clone(),
                certificates: auth.token_certificates.clone(),
            },
        },
        proxy: (!proxy.remote_url.is_empty()).then(|| ProxyOf {
            url: proxy.remote_url.clone(),
            username: proxy.username.clone(),
            password: at("proxy-password"),
            certificates: upstream_certificates.into(),
        }),
        backup: !options.backup.path.is_empty(),
    }
}

/// The volumes of the registry's container.
pub fn volumes(options: &Options) -> Vec<Value> {
    let Options { storage, .. } = options;
    let images = match storage.kind {
        StorageKind::HostPath => Some(json!({ "containerPath": IMAGES, "hostPath": options.registry.storage_path, "mode": "RW" })),
        StorageKind::PersistentVolume => {
            Some(json!({ "containerPath": VOLUME, "persistent": { "size": storage.volume_mib }, "mode": "RW" }))
        }
        StorageKind::ExternalVolume => {
            let driver = json!({ "dvdi/driver": storage.volume_driver });
            let external = json!({ "name": storage.volume_name, "provider": "dvdi", "options": driver });
            Some(json!({ "containerPath": IMAGES, "external": external, "mode": "RW" }))
        }
        _ => None,
    };
    // Where the registry may be on any agent, its key is in memory alone: see `parameters`.
    let state = is_pinned(options)
        .then(|| json!({ "containerPath": STATE, "hostPath": HostRoot::default().registry_state(&options.service.name), "mode": "RW" }));
    let backup = &options.backup.path;
    // Of an object store nothing is backed up: it only gets images from there.
    let mode = if storage.kind.is_object_store() { "RO" } else { "RW" };
    let backup = (!backup.is_empty()).then(|| json!({ "containerPath": BACKUP, "hostPath": backup, "mode": mode }));
    images.into_iter().chain(backup).chain(state).chain(held(options).iter().filter_map(Held::volume)).collect()
}

/// What docker is told besides. Where the registry may be on any agent, its key is in memory alone and gone with its container, also
/// where an agent dies and leaves the container's disk behind.
pub fn parameters(options: &Options) -> Vec<Value> {
    if is_pinned(options) { Vec::new() } else { vec![json!({ "key": "tmpfs", "value": format!("{STATE}:mode=0700,size=16m") })] }
}

/// Where the registry may run. `host`: the agent that it belongs to, if it belongs to one.
pub fn constraints(options: &Options, host: &Host) -> Value {
    if is_pinned(options) { json!([["hostname", "LIKE", crate::documents::exactly(host)]]) } else { json!([["hostname", "UNIQUE"]]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::faulty_fields as fields;

    fn options(given: Value) -> Options {
        Options::from_json(&given).unwrap()
    }

    #[test]
    fn every_kind_of_storage_says_what_it_lacks_and_what_it_has_no_use_for() {
        let with = |storage: Value| fields(json!({ "storage": storage }));
        assert_eq!(with(json!({ "kind": "s3" })), ["storage.bucket"]);
        assert_eq!(with(json!({ "kind": "s3", "bucket": "b" })), Vec::<String>::new());
        assert_eq!(with(json!({ "kind": "s3", "bucket": "b", "access_key": "/k/id" })), ["storage.secret_key"]);
        assert_eq!(with(json!({ "kind": "s3", "bucket": "b", "endpoint": "minio:9000" })), ["storage.endpoint"]);
        assert_eq!(with(json!({ "kind": "s3", "bucket": "b", "root": "../x" })), ["storage.root"]);
        assert_eq!(
            with(json!({ "kind": "s3", "bucket": "b", "access_key": "id", "secret_key": "key" })),
            ["storage.access_key", "storage.secret_key"]
        );
        assert_eq!(with(json!({ "kind": "azure", "bucket": "b" })), ["storage.account", "storage.secret_key"]);
        assert_eq!(with(json!({ "kind": "gcs", "bucket": "b", "account": "x" })), ["storage.account"]);
        assert_eq!(
            with(json!({ "kind": "gcs", "bucket": "b", "credentials": "{\"type\": \"service_account\"}" })),
            ["storage.credentials"]
        );
        assert_eq!(with(json!({ "kind": "external_volume" })), ["storage.volume_name"]);
        assert_eq!(with(json!({ "kind": "persistent_volume" })), ["uninstall.delete_data"]);
        assert_eq!(with(json!({ "bucket": "b" })), ["storage.bucket"]);
        assert_eq!(
            fields(json!({ "storage": { "kind": "s3", "bucket": "b" }, "uninstall": { "delete_data": true } })),
            ["uninstall.delete_data"]
        );
    }

    #[test]
    fn several_replicas_need_a_store_that_they_share() {
        let s3 = json!({ "kind": "s3", "bucket": "b" });
        assert_eq!(fields(json!({ "registry": { "replicas": 2 } })), ["registry.replicas"]);
        assert_eq!(fields(json!({ "registry": { "replicas": 2 }, "storage": s3 })), Vec::<String>::new());
        let volume = json!({ "kind": "external_volume", "volume_name": "v" });
        assert_eq!(fields(json!({ "registry": { "replicas": 2 }, "storage": volume })), ["registry.replicas"]);
        assert_eq!(fields(json!({ "registry": { "replicas": 2, "host": "10.0.0.1" }, "storage": s3 })), ["registry.host"]);
        let host: Host = "10.0.0.1".parse().unwrap();
        assert_eq!(constraints(&options(json!({ "registry": { "replicas": 2 }, "storage": s3 })), &host), json!([["hostname", "UNIQUE"]]));
        assert_eq!(constraints(&options(json!({})), &host), json!([["hostname", "LIKE", "^10\\.0\\.0\\.1$"]]));
        assert_eq!(volumes(&options(json!({ "storage": s3 }))), Vec::<Value>::new(), "no key stays behind on an agent");
        assert_eq!(parameters(&options(json!({ "storage": s3 })))[0]["key"], "tmpfs");
        assert_eq!(parameters(&options(json!({}))), Vec::<Value>::new());
    }

    #[test]
    fn authentication_says_what_it_lacks_and_goes_with_tls_only() {
        let with = |auth: Value| fields(json!({ "auth": auth }));
        assert_eq!(with(json!({ "kind": "htpasswd" })), Vec::<String>::new());
        assert_eq!(with(json!({ "kind": "htpasswd", "htpasswd": "users" })), ["auth.htpasswd"], "a secret without an account");
        assert_eq!(with(json!({ "htpasswd": "/etc/registry/users" })), ["auth.htpasswd"]);
        assert_eq!(with(json!({ "kind": "token" })).len(), 4);
        assert_eq!(with(json!({ "token_realm": "https://auth" })), ["auth.token_realm"]);
        let insecure =
            json!({ "auth": { "kind": "htpasswd" }, "security": { "mode": "insecure" }, "names": { "vip": "192.168.0.1:5000" } });
        assert_eq!(fields(insecure), ["auth.kind"]);
    }

    #[test]
    fn a_cache_names_its_registry_and_schedules_are_cron_lines() {
        assert_eq!(fields(json!({ "proxy": { "username": "u" } })), ["proxy.username"]);
        assert_eq!(fields(json!({ "proxy": { "remote_url": "https://r", "username": "u" } })), ["proxy.password"]);
        assert_eq!(fields(json!({ "proxy": { "remote_url": "r" } })), ["proxy.remote_url"]);
        for (good, text) in
            [(true, "0 3 * * 0"), (true, "*/15 0-6 1,15 * mon-fri"), (false, "daily"), (false, "0 3 * *"), (false, "0 3 * * 0 2026")]
        {
            assert_eq!(fields(json!({ "garbage_collection": { "schedule": text } })).is_empty(), good, "{text}");
        }
        assert_eq!(fields(json!({ "backup": { "schedule": "0 3 * * 0" } })), ["backup.schedule"]);
        assert_eq!(fields(json!({ "backup": { "path": "/data/docker-registry/copy" } })), ["backup.path"]);
        assert_eq!(fields(json!({ "backup": { "path": "/mnt/../x" } })), ["backup.path"]);
        assert_eq!(fields(json!({ "backup": { "path": "/mnt/backup" } })), Vec::<String>::new());
        let store = |schedule: &str| json!({ "storage": { "kind": "s3", "bucket": "b" }, "backup": { "path": "/mnt/backup", "schedule": schedule } });
        assert_eq!(fields(store("")), Vec::<String>::new());
        assert_eq!(fields(store("0 3 * * 0")), ["backup.schedule"]);
    }

    #[test]
    fn the_registry_that_a_cache_is_of_is_found_among_the_others_by_host_and_port() {
        let at = |url: &str| {
            let options = options(json!({ "proxy": { "remote_url": url } }));
            upstream(&options.proxy).map(|name| name.to_string())
        };
        assert_eq!(at("https://harbor.example.com/").as_deref(), Some("harbor.example.com:443"));
        assert_eq!(at("https://10.0.0.1:5443").as_deref(), Some("10.0.0.1:5443"));
        assert_eq!(at("http://plain.example.com").as_deref(), Some("plain.example.com:80"));
        assert_eq!(at(""), None);
        let given = options(json!({ "proxy": { "remote_url": "https://r" }, "backup": { "path": "/mnt/b" } }));
        assert_eq!(settings(&given, "PEM").proxy.unwrap().certificates, "PEM");
        let mounted = volumes(&given);
        assert!(mounted.iter().any(|volume| volume["hostPath"] == "/mnt/b" && volume["containerPath"] == BACKUP), "{mounted:?}");
    }

    #[test]
    fn an_image_is_given_as_docker_takes_it() {
        let digest = "ab".repeat(32);
        for good in
            ["registry", "registry:3.1.1", &format!("registry@sha256:{digest}"), &format!("r.example.com:5000/a/b_c:1@sha256:{digest}")]
        {
            assert!(is_image(good), "{good}");
        }
        for bad in [
            "Registry",
            "registry:",
            "registry@sha256:abc",
            "a//b",
            "/a",
            "a b",
            "registry:3 \"",
            "http://r/a",
            "r.example.com:x/a",
            "a@b@c",
        ] {
            assert!(!is_image(bad), "{bad}");
            assert_eq!(fields(json!({ "registry": { "image": bad } })), ["registry.image"]);
        }
    }

    #[test]
    fn what_would_delete_images_that_are_in_use_is_refused() {
        let collection = |generation: &str, more: Value| {
            let mut given = json!({ "registry": { "generation": generation }, "garbage_collection": { "delete_untagged": true } });
            for (key, value) in more.as_object().unwrap() {
                given[key] = value.clone();
            }
            fields(given)
        };
        assert_eq!(collection("2", json!({})), ["garbage_collection.delete_untagged"]);
        assert_eq!(collection("3", json!({})), Vec::<String>::new());
        let cache = json!({ "proxy": { "remote_url": "https://r" }, "garbage_collection": { "schedule": "0 3 * * 0" } });
        assert_eq!(fields(cache), ["garbage_collection.schedule"]);
        assert_eq!(fields(json!({ "garbage_collection": { "time_zone": "no\"" } })), ["garbage_collection.time_zone"]);
    }

    #[test]
    fn files_are_mounted_by_their_directories_and_secrets_come_as_variables() {
        let security = json!({ "mode": "provided", "certificate": "/etc/tls/a.pem", "key": "registry/key" });
        let options = options(json!({ "security": security, "service": { "service_account_secret": "account" } }));
        let mounted: Vec<Value> = volumes(&options).into_iter().filter(|volume| volume["mode"] == "RO").collect();
        assert_eq!(
            mounted,
            [json!({ "containerPath": "/run/private-registry/provided-certificate", "hostPath": "/etc/tls", "mode": "RO" })]
        );
        let provided = settings(&options, "").provided.unwrap();
        assert_eq!(provided.certificate, crate::protocol::HeldAt::File("/run/private-registry/provided-certificate/a.pem".into()));
        assert_eq!(provided.key, crate::protocol::HeldAt::Variable("PRIVATE_REGISTRY_HELD_PROVIDED_KEY".into()));
        let published: Vec<_> = held(&options).iter().filter_map(Held::published).collect();
        assert_eq!(published[0].1.secret, Some(("provided-key".into(), "registry/key".into())));
        assert_eq!(published.len(), 1);
    }
}
