//! The package's options, typed.
//!
//! `universe/config.json` is the one place of defaults, types and ranges: Cosmos validates against it and so does this module.
//! What a schema cannot say (is this an address, do two ports clash) is checked here, and every fault is reported at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::certificates::{Certificate, KeyType};
use crate::dcos::secrets;
use crate::exposure::{self, Network};
use crate::names::{Host, HostPort};
use crate::protocol::TrustedName;
use crate::security;
use crate::settings;
use crate::shards;

/// The schema that Cosmos shows as a form and validates with.
pub const CONFIG_SCHEMA: &str = include_str!("../universe/config.json");

/// Domain of named VIPs of the root Marathon (dcos-net, `dcos_l4lb.hrl`).
pub(crate) const NAMED_VIP_DOMAIN: &str = "marathon.l4lb.thisdcos.directory";

/// One thing wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path of the option, as in `options.json`.
    pub field: String,
    /// What was given, as JSON.
    pub value: String,
    /// Why it cannot be used.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}. {}", self.field, self.value, self.reason, self.remedy)
    }
}

/// All that is wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults(pub Vec<Fault>);

/// The options, complete and checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// Section `service`.
    pub service: Service,
    /// VIP address and port inside the cluster, if any.
    pub vip: Option<HostPort>,
    /// Named VIP as `name:port`, if any.
    pub named_vip: Option<(String, u16)>,
    /// Address or name of Marathon-LB for the outside, if any.
    pub external_host: Option<Host>,
    /// Names of the operator's own DNS by which agents reach the registry; every agent proves them.
    pub inside: Vec<HostPort>,
    /// Further names.
    pub extra: Vec<HostPort>,
    /// Section `security`.
    pub security: Security,
    /// Other registries that every agent is to trust.
    pub others: Vec<OtherRegistry>,
    /// Section `exposure`.
    pub exposure: Exposure,
    /// Who may come in through Marathon-LB; none: everybody.
    pub allowed_sources: Vec<Network>,
    /// Section `registry`.
    pub registry: Registry,
    /// Section `storage`.
    pub storage: Storage,
    /// Section `auth`.
    pub auth: Auth,
    /// Section `garbage_collection`.
    pub garbage_collection: GarbageCollection,
    /// Section `proxy`.
    pub proxy: Proxy,
    /// Section `backup`.
    pub backup: Backup,
    /// Images to be copied in, as docker names them.
    pub preload: Vec<String>,
    /// Section `trust`.
    pub trust: Trust,
    /// Section `takeover`.
    pub takeover: Takeover,
    /// Section `uninstall`.
    pub uninstall: Uninstall,
    /// Section `dcos`.
    pub dcos: Dcos,
}

/// See `service` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Service {
    pub name: String,
    #[serde(deserialize_with = "optional_host")]
    pub host: Option<Host>,
    pub cpus: f64,
    pub mem: u32,
    pub log_level: String,
    pub service_account: String,
    pub service_account_secret: String,
}

/// See `security` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Security {
    pub mode: SecurityMode,
    pub certificate: String,
    pub key: String,
    pub ca: String,
    pub key_type: KeyType,
    pub organization: String,
}

/// Whose certificate the registry serves with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityMode {
    /// A CA of the service's own.
    SelfSigned,
    /// The operator's certificate and key.
    Provided,
    /// The CA of DC/OS Enterprise.
    DcosCa,
    /// Plain HTTP.
    Insecure,
}

/// A registry that this package has not installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherRegistry {
    /// Where it is.
    pub name: HostPort,
    /// Where its CA comes from.
    pub ca: CaSource,
}

/// Where the CA of another registry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaSource {
    /// The option `other_registries.ca`, PEM.
    Pem(String),
    /// A secret that holds PEM.
    Secret(String),
    /// The certificate with this SHA-256 (hex, lower case) among those that the registry shows; fetched once and kept.
    Pinned(String),
}

/// See `exposure` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Exposure {
    pub marathon_lb: bool,
    pub service_port: u16,
    /// As it was written; [`Options::allowed_sources`] has it parsed.
    allowed_sources: String,
    pub install_marathon_lb: bool,
    pub host_port: u16,
}

/// See `registry` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Registry {
    pub enabled: bool,
    pub generation: Generation,
    pub image: String,
    pub name: String,
    #[serde(deserialize_with = "optional_host")]
    pub host: Option<Host>,
    pub replicas: u32,
    pub storage_path: String,
    pub cpus: f64,
    pub mem: u32,
    pub log_level: String,
    pub delete_enabled: bool,
    pub read_only: bool,
    pub access_log: bool,
    pub upload_purge_hours: u32,
    pub drain_seconds: u64,
}

/// Which generation of distribution runs; their configurations differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Generation {
    /// 2.8
    #[serde(rename = "2")]
    Two,
    /// 3.x
    #[serde(rename = "3")]
    Three,
}

/// See `storage` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Storage {
    pub kind: StorageKind,
    pub volume_mib: u32,
    pub volume_name: String,
    pub volume_driver: String,
    pub bucket: String,
    pub root: String,
    pub region: String,
    pub endpoint: String,
    pub account: String,
    pub access_key: String,
    pub secret_key: String,
    pub credentials: String,
    pub redirect: bool,
    pub abandon: String,
}

/// Where the images lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum StorageKind {
    HostPath,
    PersistentVolume,
    ExternalVolume,
    S3,
    Gcs,
    Azure,
}

impl StorageKind {
    /// Whether several registries can use it at the same time.
    pub fn is_shared(self) -> bool {
        // Of an external volume Marathon lets an app with one instance only have the use.
        self.is_object_store()
    }

    /// Whether it is a service of its own, and no directory.
    pub fn is_object_store(self) -> bool {
        matches!(self, Self::S3 | Self::Gcs | Self::Azure)
    }
}

/// See `auth` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Auth {
    pub kind: AuthKind,
    pub htpasswd: String,
    pub token_realm: String,
    pub token_service: String,
    pub token_issuer: String,
    pub token_certificates: String,
}

/// Who may pull and push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthKind {
    /// Everybody who reaches the registry.
    None,
    /// Users with passwords.
    Htpasswd,
    /// Whoever has a token of an authorisation server.
    Token,
}

/// See `garbage_collection` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct GarbageCollection {
    pub schedule: String,
    pub time_zone: String,
    pub delete_untagged: bool,
}

/// See `proxy` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Proxy {
    pub remote_url: String,
    pub username: String,
    pub password: String,
}

/// See `backup` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Backup {
    pub path: String,
    pub schedule: String,
}

/// See `trust` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Trust {
    pub ca_days: u32,
    pub leaf_days: u32,
    pub containerd: bool,
    pub podman: bool,
    pub system: bool,
    pub rotation_deadline_seconds: u64,
    pub conntrack_be_liberal: bool,
    pub shards: shards::Asked,
}

/// See `takeover` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Takeover {
    pub adopt: bool,
    pub clean_agents: bool,
}

/// See `uninstall` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Uninstall {
    pub delete_data: bool,
    pub deadline_seconds: u64,
}

/// See `dcos` in config.json.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Dcos {
    pub mesos_url: String,
    pub marathon_url: String,
    pub metronome_url: String,
    pub admin_router_url: String,
    pub secrets_url: String,
    pub login_url: String,
    pub ca_file: String,
}

/// Where the cluster's services are, after all options have been put together.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Endpoints {
    pub mesos: String,
    pub marathon: String,
    pub metronome: String,
    pub secrets: String,
    pub ca: String,
    pub cosmos: String,
    /// None: the one in the service account's credential.
    pub login: Option<String>,
}

/// The sections as they stand in the JSON, before names are put together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    service: Service,
    names: RawNames,
    security: Security,
    other_registries: RawOthers,
    exposure: Exposure,
    registry: Registry,
    storage: Storage,
    auth: Auth,
    garbage_collection: GarbageCollection,
    proxy: Proxy,
    backup: Backup,
    preload: RawPreload,
    trust: Trust,
    takeover: Takeover,
    uninstall: Uninstall,
    dcos: Dcos,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPreload {
    images: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOthers {
    list: String,
    ca: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNames {
    vip: String,
    named_vip: String,
    external_host: String,
    inside: String,
    extra: String,
}

/// What is said wherever people look, as long as the registry speaks plain HTTP.
pub const INSECURE: &str = "INSECURE: images and passwords travel unencrypted; whoever is on the network can read and change them. \
                            Use security.mode insecure for throw-away clusters only, and spell the registry's names with their port.";

impl Options {
    /// Whether the registry speaks plain HTTP.
    pub fn is_insecure(&self) -> bool {
        self.security.mode == SecurityMode::Insecure
    }

    /// What can be done but should be thought over.
    pub fn warnings(&self) -> Vec<&'static str> {
        if self.is_insecure() { vec![INSECURE] } else { Vec::new() }
    }

    /// Reads what an operator wrote (`options.json`), filling in the defaults.
    ///
    /// # Errors
    /// Every fault, each with its field and remedy.
    pub fn from_json(given: &Value) -> Result<Self, Faults> {
        let schema = schema();
        let mut faults = Vec::new();
        let merged = merge(&schema, given);
        validate(&schema, &merged, "", &mut faults);
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        let raw = serde_path(&merged)?;
        Self::checked(raw)
    }

    /// Reads what the package's template put into the environment: `OPTION_<SECTION>_<KEY>`, everything as text.
    ///
    /// # Errors
    /// As [`Options::from_json`].
    pub fn from_env(vars: &BTreeMap<String, String>) -> Result<Self, Faults> {
        let schema = schema();
        let mut given = Map::new();
        for (section, section_schema) in properties(&schema) {
            let mut values = Map::new();
            for (key, key_schema) in properties(section_schema) {
                if let Some(text) = vars.get(&variable(section, key)) {
                    values.insert(key.clone(), typed(text, key_schema));
                }
            }
            given.insert(section.clone(), Value::Object(values));
        }
        Self::from_json(&Value::Object(given))
    }

    /// As [`Options::from_env`], but with the default in place of what cannot be used. The service's name is never guessed, lest
    /// another service be removed: it is that of the controller's app.
    ///
    /// # Errors
    /// When there is a fault even so.
    pub fn for_removal(vars: &BTreeMap<String, String>, app_id: &str) -> Result<Self, Faults> {
        let mut vars = vars.clone();
        vars.insert(variable("service", "name"), app_id.trim_start_matches('/').to_string());
        loop {
            let faults = match Self::from_env(&vars) {
                Ok(options) => return Ok(options),
                Err(faults) => faults,
            };
            let before = vars.len();
            for field in faults.0.iter().flat_map(|fault| fault.field.split(" or ")) {
                if let Some((section, key)) = field.split_once('.') {
                    vars.remove(&variable(section, key));
                    // What a mode lacks has no default; a removal does without the mode.
                    if section == "security" {
                        vars.remove(&variable(section, "mode"));
                    }
                }
            }
            if vars.len() == before {
                return Err(faults);
            }
        }
    }

    fn checked(raw: Raw) -> Result<Self, Faults> {
        let mut faults = Faults(Vec::new());
        let vip = match raw.names.vip.as_str() {
            "" => None,
            vip => faults.parse("names.vip", vip, "Give an unused IPv4 address and a port, as in 192.168.0.1:443."),
        };
        let named_vip = raw.names.named_vip.rsplit_once(':').and_then(|(name, port)| {
            let checked: Option<HostPort> =
                faults.parse("names.named_vip", &format!("{name}.{NAMED_VIP_DOMAIN}:{port}"), "Give name:port, as in registry:5000.");
            checked.map(|c| (name.to_string(), c.port))
        });
        let external_host = match raw.names.external_host.as_str() {
            "" => None,
            host => faults.parse(
                "names.external_host",
                host,
                "Give the address or DNS name of the agent that runs Marathon-LB, without a port.",
            ),
        };
        let mut names = |field: &str, text: &str| -> Vec<HostPort> {
            list(text).iter().filter_map(|name| faults.parse(field, name, "Give host:port, separated by commas.")).collect()
        };
        let own_names = names("names.inside", &raw.names.inside);
        let extra = names("names.extra", &raw.names.extra);
        let others = faults.others(&raw.other_registries);
        let allowed_sources =
            exposure::checked(&raw.exposure, &raw.exposure.allowed_sources, !raw.service.service_account_secret.is_empty(), &mut faults);
        let inside = !(raw.names.vip.is_empty() && raw.names.named_vip.is_empty()) || raw.exposure.host_port > 0;
        if raw.registry.enabled && !inside {
            faults.add(
                "names.vip",
                "\"\"",
                "names.named_vip is empty and exposure.host_port is 0, too, so no agent could reach the registry",
                "Give at least one of the three: names.vip, as in 192.168.0.1:443; names.named_vip, as in registry:5000; or exposure.host_port.",
            );
        }
        let (account, secret) = (&raw.service.service_account, &raw.service.service_account_secret);
        if secret.is_empty() && !account.is_empty() {
            faults.add(
                "service.service_account",
                account,
                "there is no service.service_account_secret, so nobody can log in as this account",
                "Give the name of the secret that `dcos security secrets create-sa-secret` made, or leave both empty.",
            );
        }
        if !secrets::may_see(&raw.service.name, secret) {
            faults.add(
                "service.service_account_secret",
                secret,
                "the secret store shows this secret only to services in its folder",
                &format!("Store it as {}/<name>, or as a name without a folder.", raw.service.name),
            );
        }
        faults.0.extend(security::faults(&raw.security, &raw.registry.name, !secret.is_empty()));
        faults.0.extend(settings::faults(settings::Sections {
            security: &raw.security,
            exposure: &raw.exposure,
            registry: &raw.registry,
            storage: &raw.storage,
            auth: &raw.auth,
            proxy: &raw.proxy,
            garbage_collection: &raw.garbage_collection,
            backup: &raw.backup,
            uninstall: &raw.uninstall,
            has_account: !secret.is_empty(),
        }));
        faults.0.extend(crate::preload::faults(&list(&raw.preload.images)));
        let path = &raw.registry.storage_path;
        if path.split('/').any(|part| part == ".." || part == ".") {
            faults.add("registry.storage_path", path, "it contains '.' or '..'", "Give the plain absolute path of the directory.");
        }
        match faults.0.is_empty() {
            true => Ok(Self {
                service: raw.service,
                vip,
                named_vip,
                external_host,
                inside: own_names,
                extra,
                security: raw.security,
                others,
                exposure: raw.exposure,
                allowed_sources,
                registry: raw.registry,
                storage: raw.storage,
                auth: raw.auth,
                garbage_collection: raw.garbage_collection,
                proxy: raw.proxy,
                backup: raw.backup,
                preload: list(&raw.preload.images),
                trust: raw.trust,
                takeover: raw.takeover,
                uninstall: raw.uninstall,
                dcos: raw.dcos,
            }),
            false => Err(faults),
        }
    }

    /// Whether there is a service account, and with it the secret store.
    pub fn has_account(&self) -> bool {
        !self.service.service_account_secret.is_empty()
    }

    /// Where the cluster's services are: where the options say, else directly, or with a service account through Admin Router, which
    /// is the one way that every mode of DC/OS Enterprise has.
    pub fn endpoints(&self) -> Endpoints {
        let dcos = &self.dcos;
        let router = dcos.admin_router_url.trim_end_matches('/');
        let choose = |given: &str, direct: &str, behind: &str| match (given, self.has_account()) {
            ("", false) => direct.to_string(),
            ("", true) => format!("{router}{behind}"),
            (given, _) => given.to_string(),
        };
        Endpoints {
            mesos: choose(&dcos.mesos_url, "http://leader.mesos:5050", "/mesos"),
            marathon: choose(&dcos.marathon_url, "http://marathon.mesos:8080", "/service/marathon"),
            metronome: choose(&dcos.metronome_url, "http://metronome.mesos:9000", "/service/metronome"),
            secrets: if dcos.secrets_url.is_empty() { format!("{router}/secrets/v1") } else { dcos.secrets_url.clone() },
            ca: format!("{router}/ca/api/v2"),
            cosmos: match router.strip_prefix("https:") {
                // Open DC/OS: nobody knows who has signed its certificate, and there is nothing to hide.
                Some(rest) if !self.has_account() && dcos.ca_file.is_empty() => format!("http:{rest}"),
                _ => router.to_string(),
            },
            login: (!dcos.login_url.is_empty()).then(|| dcos.login_url.clone()),
        }
    }

    /// Every name that clients may use, given the agent that runs the registry. SANs, the CA's constraints and the
    /// directories on the agents all come from this list. None where no registry is to run.
    pub fn trusted_names(&self, registry_host: &Host) -> Vec<TrustedName> {
        let inside = |name| TrustedName { name, inside: true };
        if !self.registry.enabled {
            return Vec::new();
        }
        let mut names = if self.only_own_names() { Vec::new() } else { self.names_by_the_platform(registry_host) };
        names.extend(self.inside.iter().cloned().map(inside));
        if let (true, Some(host)) = (self.exposure.marathon_lb, &self.external_host) {
            names.push(TrustedName { name: HostPort::new(host.clone(), self.exposure.service_port), inside: false });
        }
        names.extend(self.extra.iter().cloned().map(|name| TrustedName { name, inside: false }));
        // Of a name that is given twice the first counts.
        let mut seen = BTreeSet::new();
        names.retain(|trusted| seen.insert(trusted.name.clone()));
        names
    }

    /// Whether what DC/OS gives the registry is only the way to it, and none of its names: no public CA signs for a VIP or a name below
    /// `.directory`, so whoever brings a certificate may name in `names.inside` what it is for.
    pub(crate) fn only_own_names(&self) -> bool {
        self.security.mode == SecurityMode::Provided && !self.inside.is_empty()
    }

    /// VIPs, Mesos-DNS' name, and the agent's own port.
    fn names_by_the_platform(&self, registry_host: &Host) -> Vec<TrustedName> {
        let inside = |name| TrustedName { name, inside: true };
        let mut names: Vec<TrustedName> = self.vip.iter().cloned().map(inside).collect();
        if let Some((name, port)) = &self.named_vip {
            names.push(inside(HostPort::new(Host::Dns(format!("{name}.{NAMED_VIP_DOMAIN}")), *port)));
        }
        if self.exposure.host_port > 0 {
            let port = self.exposure.host_port;
            names.push(inside(HostPort::new(Host::Dns(format!("{}.marathon.mesos", self.registry.name)), port)));
            // Where the registry may be on any agent, only its Mesos-DNS name says on which.
            if settings::is_pinned(self) {
                names.push(inside(HostPort::new(registry_host.clone(), port)));
            }
        }
        names
    }
}

/// The entries of a list that is separated by commas.
fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_string).collect()
}

impl Faults {
    pub(crate) fn add(&mut self, field: &str, value: impl fmt::Display, reason: &str, remedy: &str) {
        self.0.push(Fault { field: field.into(), value: value.to_string(), reason: reason.into(), remedy: remedy.into() });
    }

    /// The list of other registries: every entry, or every fault.
    fn others(&mut self, raw: &RawOthers) -> Vec<OtherRegistry> {
        const FORM: &str = "Give host[:port], and after it secret:PATH or sha256:HEX if it has a CA of its own, as in gitlab.example.com:5050 secret:gitlab-ca.";
        let mut others: Vec<OtherRegistry> = Vec::new();
        if !raw.ca.trim().is_empty()
            && let Err(error) = Certificate::parse_bundle(&raw.ca)
        {
            // Not the value: it may hold a private key.
            let remedy = "Give one or more CA certificates as PEM, or the certificate of a registry that is signed by itself, with the line breaks (in JSON: \\n).";
            self.add("other_registries.ca", "(not shown)", &error.to_string(), remedy);
        }
        for entry in raw.list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let mut words = entry.split_whitespace();
            let name = words.next().unwrap_or_default();
            // Without a port it is that of https, as docker has it.
            let name = if name.contains(':') { name.to_string() } else { format!("{name}:443") };
            let ca = match (words.next(), words.next()) {
                (None, _) if raw.ca.trim().is_empty() => Err("it names no CA, and other_registries.ca is empty"),
                (None, _) => Ok(CaSource::Pem(raw.ca.clone())),
                (Some(source), None) => match source.split_once(':') {
                    Some(("secret", path)) if !path.is_empty() => Ok(CaSource::Secret(path.to_string())),
                    Some(("sha256", hex)) => {
                        let hex: String = hex.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
                        let is_digest = hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit());
                        if is_digest { Ok(CaSource::Pinned(hex)) } else { Err("the fingerprint does not have 64 hexadecimal digits") }
                    }
                    _ => Err("its CA comes neither from a secret nor by a fingerprint"),
                },
                (Some(_), Some(_)) => Err("there are too many words"),
            };
            match ca {
                Ok(ca) => match self.parse::<HostPort>("other_registries.list", &name, FORM) {
                    Some(name) if others.iter().any(|other| other.name == name) => {
                        self.add("other_registries.list", entry, "this registry is listed twice", "Take one of the two out.");
                    }
                    name => others.extend(name.map(|name| OtherRegistry { name, ca })),
                },
                Err(reason) => self.add("other_registries.list", entry, reason, FORM),
            }
        }
        others
    }

    pub(crate) fn parse<T: std::str::FromStr>(&mut self, field: &str, text: &str, remedy: &str) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        text.parse().map_err(|error: T::Err| self.add(field, text, &error.to_string(), remedy)).ok()
    }
}

/// Name of the environment variable that carries an option.
pub fn variable(section: &str, key: &str) -> String {
    format!("OPTION_{section}_{key}").to_ascii_uppercase()
}

/// Whether an environment variable carries an option.
pub fn is_variable(name: &str) -> bool {
    name.starts_with("OPTION_")
}

/// The option that a variable carries, as `section.key`.
pub fn option_of(name: &str) -> Option<String> {
    let schema = schema();
    let mut all = properties(&schema).flat_map(|(section, schema)| properties(schema).map(move |(key, _)| (section, key)));
    all.find(|(section, key)| variable(section, key) == name).map(|(section, key)| format!("{section}.{key}"))
}

/// The variables of all options with their defaults.
pub fn default_variables() -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    put_variables(&mut vars, &merge(&schema(), &Value::Null));
    vars
}

/// Puts options as an operator wrote them over variables.
pub fn put_variables(vars: &mut BTreeMap<String, String>, given: &Value) {
    for (section, values) in given.as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            vars.insert(variable(section, key), text);
        }
    }
}

fn schema() -> Value {
    crate::json::of_text(CONFIG_SCHEMA).expect("config.json is part of the program and checked by a test")
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// A text from the environment as the type that the schema asks for; left as text where it does not fit, which the validation then says.
fn typed(text: &str, schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("integer" | "number" | "boolean") => crate::json::of_text(text).unwrap_or_else(|_| Value::from(text)),
        _ => Value::from(text),
    }
}

/// The given options over the schema's defaults, as Cosmos merges them.
fn merge(schema: &Value, given: &Value) -> Value {
    let mut merged = given.as_object().cloned().unwrap_or_default();
    for (key, sub) in properties(schema) {
        let value = match (merged.get(key), sub.get("default")) {
            (Some(value), None) if value.is_object() => merge(sub, value),
            (Some(value), _) => value.clone(),
            (None, Some(default)) => default.clone(),
            (None, None) => merge(sub, &Value::Null),
        };
        merged.insert(key.clone(), value);
    }
    Value::Object(merged)
}

fn validate(schema: &Value, value: &Value, path: &str, faults: &mut Vec<Fault>) {
    let mut fault = |reason: String, remedy: String| faults.push(Fault { field: path.into(), value: value.to_string(), reason, remedy });
    let help = || schema["description"].as_str().unwrap_or_default().to_string();
    let kind = schema["type"].as_str().unwrap_or("object");
    let fits = match kind {
        "object" => value.is_object(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => value.is_number(),
    };
    if !fits {
        return fault(format!("it must be of type {kind}"), help());
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let words: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        return fault("it is none of the allowed words".into(), format!("Use one of: {}.", words.join(", ")));
    }
    if let Some(number) = value.as_f64() {
        if schema["minimum"].as_f64().is_some_and(|min| number < min) {
            return fault(format!("it is below {}", schema["minimum"]), help());
        }
        if schema["maximum"].as_f64().is_some_and(|max| number > max) {
            return fault(format!("it is above {}", schema["maximum"]), help());
        }
    }
    if let Some(text) = value.as_str() {
        if schema["maxLength"].as_u64().is_some_and(|max| text.chars().count() as u64 > max) {
            return fault(format!("it is longer than {} characters", schema["maxLength"]), help());
        }
        if let Some(pattern) = schema["pattern"].as_str() {
            let pattern = regex_lite::Regex::new(pattern).expect("the patterns of config.json are checked by a test");
            if !pattern.is_match(text) {
                let reason = if text.is_empty() { "it is empty".into() } else { "it does not have the right form".into() };
                return fault(reason, help());
            }
        }
    }
    for (key, sub) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match schema["properties"].get(key) {
            Some(sub_schema) => validate(sub_schema, sub, &path, faults),
            None => {
                let known: Vec<_> = properties(schema).map(|(name, _)| name.as_str()).collect();
                faults.push(Fault {
                    field: path,
                    value: sub.to_string(),
                    reason: "there is no such option".into(),
                    remedy: format!("The options here are: {}.", known.join(", ")),
                });
            }
        }
    }
}

fn serde_path(merged: &Value) -> Result<Raw, Faults> {
    crate::json::of_value::<Raw>(merged).map_err(|error| {
        Faults(vec![Fault {
            field: "service.host or registry.host".into(),
            value: merged["service"]["host"].to_string() + " / " + &merged["registry"]["host"].to_string(),
            reason: error.to_string(),
            remedy: "Give the agent's host name as Mesos shows it, on DC/OS its IP address.".into(),
        }])
    })
}

fn optional_host<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Host>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// The options in which these have a fault, for tests; each fault must have a remedy.
#[cfg(test)]
pub(crate) fn faulty_fields(given: Value) -> Vec<String> {
    let faults = Options::from_json(&given).err().map(|faults| faults.0).unwrap_or_default();
    assert!(faults.iter().all(|fault| !fault.remedy.is_empty()), "{faults:?}");
    faults.into_iter().map(|fault| fault.field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(given: Value) -> Vec<Fault> {
        Options::from_json(&given).expect_err("the options were accepted").0
    }

    #[test]
    fn the_defaults_are_usable() {
        let options = Options::from_json(&json!({})).unwrap();
        assert_eq!(options.vip.unwrap().to_string(), "192.168.0.1:443");
        assert_eq!(options.service.host, None);
    }

    #[test]
    fn each_bad_option_is_named_with_a_remedy() {
        for (given, field) in [
            (json!({"names": {"vip": "192.168.0.300:443"}}), "names.vip"),
            (json!({"names": {"vip": "registry"}}), "names.vip"),
            (json!({"names": {"vipp": "192.168.0.1:443"}}), "names.vipp"),
            (json!({"name": {}}), "name"),
            (json!({"names": {"external_host": "bad_host"}}), "names.external_host"),
            (json!({"names": {"extra": "a.example.com"}}), "names.extra"),
            (json!({"registry": {"storage_path": ""}}), "registry.storage_path"),
            (json!({"registry": {"storage_path": "data"}}), "registry.storage_path"),
            (json!({"registry": {"storage_path": "/da\nta"}}), "registry.storage_path"),
            (json!({"registry": {"storage_path": "/data/../etc"}}), "registry.storage_path"),
            (json!({"registry": {"mem": "512"}}), "registry.mem"),
            (json!({"registry": {"log_level": "loud"}}), "registry.log_level"),
            (json!({"exposure": {"service_port": 443}}), "exposure.service_port"),
            (json!({"exposure": {"service_port": 0}}), "exposure.service_port"),
            (json!({"service": {"host": "no_such_host"}}), "service.host or registry.host"),
            (json!({"service": {"service_account": "registry"}}), "service.service_account"),
            (json!({"service": {"service_account_secret": "infra/registry"}}), "service.service_account_secret"),
            (json!({"dcos": {"secrets_url": "master.mesos"}}), "dcos.secrets_url"),
        ] {
            let found = faults(given.clone());
            assert!(found.iter().any(|f| f.field == field), "{given}: {found:?}");
            assert!(found.iter().all(|f| !f.remedy.is_empty() && !f.reason.is_empty()), "{found:?}");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let found = faults(json!({"names": {"vip": "x"}, "registry": {"mem": 1, "colour": "red"}}));
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn the_environment_of_the_template_covers_every_option() {
        let template = include_str!("../universe/marathon.json.mustache");
        let schema = schema();
        let mut count = 0;
        for (section, sub) in properties(&schema) {
            for (key, _) in properties(sub) {
                let line = format!("\"{}\": \"{{{{{section}.{key}}}}}\"", variable(section, key));
                assert!(template.contains(&line), "the template lacks {line}");
                count += 1;
            }
        }
        assert_eq!(count, template.matches("\"OPTION_").count(), "the template passes an option that config.json does not have");
    }

    #[test]
    fn what_the_environment_carries_is_read_with_its_type() {
        let vars = BTreeMap::from([
            ("OPTION_REGISTRY_MEM".to_string(), "1024".to_string()),
            ("OPTION_EXPOSURE_MARATHON_LB".to_string(), "false".to_string()),
        ]);
        let options = Options::from_env(&vars).unwrap();
        assert_eq!((options.registry.mem, options.exposure.marathon_lb), (1024, false));
        let vars = BTreeMap::from([("OPTION_REGISTRY_MEM".to_string(), "much".to_string())]);
        assert_eq!(Options::from_env(&vars).unwrap_err().0[0].field, "registry.mem");
    }

    #[test]
    fn for_a_removal_the_default_stands_in_for_what_cannot_be_used() {
        let vars = BTreeMap::from([
            ("OPTION_NAMES_VIP".to_string(), "registry".to_string()),
            ("OPTION_REGISTRY_HOST".to_string(), "no_such_host".to_string()),
            ("OPTION_REGISTRY_NAME".to_string(), "images".to_string()),
            ("OPTION_SERVICE_NAME".to_string(), "Not A Name".to_string()),
            ("OPTION_SECURITY_MODE".to_string(), "provided".to_string()),
            ("OPTION_SECURITY_CA".to_string(), "not PEM".to_string()),
        ]);
        let options = Options::for_removal(&vars, "/infra/images").unwrap();
        assert_eq!(options.service.name, "infra/images", "the default would be another service");
        assert_eq!(
            (options.vip.unwrap().to_string(), options.registry.host, options.registry.name.as_str()),
            ("192.168.0.1:443".into(), None, "images")
        );
    }

    #[test]
    fn other_registries_say_where_their_ca_comes_from() {
        let fingerprint = "AB:".repeat(32);
        let list = format!("gitlab.example.com:5050 secret:gitlab-ca, harbor.example.com, nexus.example.com:8443 sha256:{fingerprint}");
        let name = "a.example.com:443".parse().unwrap();
        let pem = crate::certificates::Authority::create("x", 1, &[name], 1_800_000_000, 365).unwrap().certificate().pem();
        let given = json!({ "other_registries": { "list": list, "ca": pem } });
        let others = Options::from_json(&given).unwrap().others;
        assert_eq!(
            others.iter().map(|other| other.name.to_string()).collect::<Vec<_>>(),
            ["gitlab.example.com:5050", "harbor.example.com:443", "nexus.example.com:8443"]
        );
        let expected = [CaSource::Secret("gitlab-ca".into()), CaSource::Pem(pem), CaSource::Pinned("ab".repeat(32))];
        assert_eq!(others.into_iter().map(|other| other.ca).collect::<Vec<_>>(), expected);
        for bad in [
            "a.example.com",
            "a.example.com:x sha256:00",
            "a.example.com secret:",
            "a.example.com file:/x",
            "a b c",
            "a.example.com secret:x,A.example.com:443 secret:x",
        ] {
            assert_eq!(faults(json!({ "other_registries": { "list": bad } }))[0].field, "other_registries.list", "{bad}");
        }
        for bad in ["PEM", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"] {
            let found = faults(json!({ "other_registries": { "list": "a.example.com", "ca": bad } }));
            assert_eq!((found.len(), found[0].field.as_str()), (1, "other_registries.ca"));
            assert!(!found[0].to_string().contains("c2VjcmV0"), "{}", found[0]);
        }
    }

    #[test]
    fn a_service_account_leads_through_admin_router_unless_an_url_is_given() {
        let open = Options::from_json(&json!({})).unwrap().endpoints();
        assert_eq!((open.mesos.as_str(), open.marathon.as_str()), ("http://leader.mesos:5050", "http://marathon.mesos:8080"));
        assert_eq!(open.cosmos, "http://master.mesos");
        let given = json!({
            "service": { "service_account_secret": "private-registry/account" },
            "dcos": { "mesos_url": "https://leader.mesos:5050" },
        });
        let enterprise = Options::from_json(&given).unwrap().endpoints();
        assert_eq!(enterprise.mesos, "https://leader.mesos:5050");
        assert_eq!(enterprise.marathon, "https://master.mesos/service/marathon");
        assert_eq!(enterprise.secrets, "https://master.mesos/secrets/v1");
        for url in [open.mesos, open.marathon, open.metronome] {
            assert!(CONFIG_SCHEMA.contains(&format!("Empty: {url}, or")), "config.json does not say that {url} is the default");
        }
    }

    #[test]
    fn a_certificate_of_the_operators_is_for_the_names_that_he_names_and_every_other_one_for_these_too() {
        let names = |mode: &str| {
            let files = json!({ "mode": mode, "certificate": "/etc/tls/a.pem", "key": "/etc/tls/a.key" });
            let security = if mode == "provided" { files } else { json!({ "mode": mode }) };
            let given = json!({
                "names": {
                    "external_host": "registry.example.com",
                    "inside": "registry.example.com:443, 192.168.0.1:443",
                    "extra": "registry.example.com:443",
                },
                "security": security,
            });
            let names = Options::from_json(&given).unwrap().trusted_names(&"192.168.1.80".parse().unwrap());
            names.iter().map(|trusted| (trusted.name.to_string(), trusted.inside)).collect::<Vec<_>>()
        };
        let (vip, own) = (("192.168.0.1:443".to_string(), true), ("registry.example.com:443".to_string(), true));
        let (named, outside) =
            (("registry.marathon.l4lb.thisdcos.directory:5000".to_string(), true), ("registry.example.com:5000".to_string(), false));
        assert_eq!(names("provided"), [own.clone(), vip.clone(), outside.clone()]);
        assert_eq!(names("self_signed"), [vip, named, own, outside]);
        assert_eq!(faults(json!({"names": {"inside": "registry.example.com"}}))[0].field, "names.inside");
    }

    #[test]
    fn names_follow_from_the_options() {
        let options = Options::from_json(&json!({"names": {"external_host": "192.168.1.50"}, "exposure": {"host_port": 5000}})).unwrap();
        let names: Vec<String> = options.trusted_names(&"192.168.1.80".parse().unwrap()).iter().map(|n| n.name.to_string()).collect();
        assert_eq!(
            names,
            [
                "192.168.0.1:443",
                "registry.marathon.l4lb.thisdcos.directory:5000",
                "registry.marathon.mesos:5000",
                "192.168.1.80:5000",
                "192.168.1.50:5000"
            ]
        );
    }
}
