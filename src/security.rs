//! Whose certificate the registry serves with (section `security` of the options): what can be said of it without asking anybody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::certificates::{Certificate, KeyType};
use crate::dcos::secrets;
use crate::distribution::Published;
use crate::names::Host;
use crate::options::{Fault, Options, Security, SecurityMode};
use crate::protocol::{Provided, ProvidedAt, RegistryStatus, TrustedName, env};

/// A certificate that nobody renews by himself is a problem this many days before its end.
const WARN_DAYS: i64 = 30;
const DAY: i64 = 24 * 60 * 60;

/// What whoever asks for the CA is told when there is none to trust.
pub const PUBLIC_CA: &str = "the registry's certificate is from a public CA, which clients trust already: there is nothing to do";

/// Where the directories of the operator's files are in the registry's container.
const MOUNTS: [&str; 2] = ["/run/private-registry/certificate", "/run/private-registry/key"];
/// What the operator's secrets are called in the registry's definition.
const SECRETS: [&str; 2] = ["provided-certificate", "provided-key"];
const VARIABLES: [&str; 2] = [env::PROVIDED_CERTIFICATE, env::PROVIDED_KEY];

/// Where the operator has stored certificate or key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored<'a> {
    /// A file on the registry's agent.
    File(&'a Path),
    /// A path in the secret store.
    Secret(&'a str),
}

/// Certificate and key, in this order; none in another mode.
fn stored(security: &Security) -> Option<[Stored<'_>; 2]> {
    (security.mode == SecurityMode::Provided).then(|| [&security.certificate, &security.key].map(|text| place(text)))
}

fn place(text: &str) -> Stored<'_> {
    if text.starts_with('/') { Stored::File(Path::new(text)) } else { Stored::Secret(text) }
}

/// What is wrong with the section. `registry`: id of the registry's app; `has_account`: whether there is a service account.
pub fn faults(security: &Security, registry: &str, has_account: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, value: &str, reason: String, remedy: &str| {
        let field = format!("security.{field}");
        faults.push(Fault { field, value: value.into(), reason, remedy: remedy.into() });
    };
    const EITHER: &str = "Give the name of a secret, or the absolute path of a file on the registry's agent.";
    let provided = security.mode == SecurityMode::Provided;
    for (field, text) in [("certificate", &security.certificate), ("key", &security.key)] {
        match place(text) {
            _ if !provided && !text.is_empty() => {
                fault(field, text, "it is for the mode provided only".into(), "Set security.mode to provided, or leave it empty.");
            }
            _ if !provided => {}
            Stored::Secret("") => fault(field, text, "the mode provided needs it".into(), EITHER),
            Stored::Secret(_) if text.contains("-----BEGIN") => {
                // Not shown again: a key may be in it.
                fault(field, "-----BEGIN …", "it is the text itself".into(), "Store it in a secret or a file, and give its name.");
            }
            Stored::Secret(_) if !has_account => {
                let remedy = "Give service.service_account_secret too, or the absolute path of a file on the registry's agent.";
                fault(field, text, "there are secrets in DC/OS Enterprise only, and with a service account".into(), remedy);
            }
            Stored::Secret(path) if !secrets::may_see(registry, path) => {
                let reason = "the secret store shows this secret only to services in its folder".into();
                fault(field, text, reason, &format!("Store it as {registry}/<name>, or as a name without a folder."));
            }
            Stored::Secret(_) => {}
            Stored::File(path) => {
                let odd = text.contains([':', '"', '\\']) || text.chars().any(char::is_control);
                if odd || text.ends_with('/') || text.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
                    let reason = "it is no plain path: a colon, quote, control character, '.', '..' or an empty part is in it".into();
                    fault(field, text, reason, "Give the plain absolute path of the file.");
                } else if path.parent() == Some(Path::new("/")) {
                    let reason = "its directory, which the registry's container gets to read, would be the whole disk".into();
                    fault(field, text, reason, "Put it into a directory of its own.");
                }
            }
        }
    }
    if provided {
        if let Err((reason, remedy)) = checked_ca(&security.ca) {
            fault("ca", &security.ca, reason, remedy);
        }
        if security.key_type != KeyType::default() {
            let reason = "in the mode provided the key is yours".into();
            fault("key_type", "p384", reason, "Leave it out; yours may be P-256, P-384 or RSA.");
        }
    } else if !security.ca.is_empty() {
        let reason = "it is for the mode provided only".into();
        fault(
            "ca",
            &security.ca,
            reason,
            "Set security.mode to provided, or leave it empty; for other registries there is other_registries.ca.",
        );
    }
    if security.mode == SecurityMode::DcosCa && !has_account {
        let reason = "the CA of DC/OS Enterprise signs only for a service account".into();
        fault("mode", "dcos_ca", reason, "Give service.service_account_secret, or choose another mode.");
    }
    faults
}

/// The certificates of `security.ca`, one PEM text each; none for a public CA.
fn checked_ca(text: &str) -> Result<Vec<String>, (String, &'static str)> {
    const REMEDY: &str = "Give the certificates of the CA in PEM, and nothing else; leave it empty for a public CA.";
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let certificates = Certificate::parse_bundle(text).map_err(|error| (error.to_string(), REMEDY))?;
    match certificates.iter().find(|certificate| !certificate.is_ca()) {
        Some(other) => {
            Err((format!("{} is no CA certificate", other.subject()), "Give the certificate of the CA that has signed yours, not yours."))
        }
        None => Ok(certificates.iter().map(Certificate::pem).collect()),
    }
}

/// The CA of the operator's certificate, PEM, one each; none for a public CA.
pub fn private_ca(security: &Security) -> Vec<String> {
    checked_ca(&security.ca).unwrap_or_default()
}

/// Where the registry finds the operator's certificate and key; none in another mode.
pub fn provided(security: &Security) -> Option<Provided> {
    let at = |index: usize, stored: &Stored<'_>| match stored {
        Stored::File(path) => ProvidedAt::File(PathBuf::from(MOUNTS[index]).join(path.file_name().unwrap_or_default())),
        Stored::Secret(_) => ProvidedAt::Variable(VARIABLES[index].into()),
    };
    stored(security).map(|[certificate, key]| Provided { certificate: at(0, &certificate), key: at(1, &key) })
}

/// Variables of the registry that come from the operator's secrets.
pub fn published(security: &Security) -> BTreeMap<&'static str, Published> {
    let of_secret = |(index, stored): (usize, Stored<'_>)| match stored {
        Stored::Secret(path) => {
            let published =
                Published { variable: json!({ "secret": SECRETS[index] }), secret: Some((SECRETS[index].into(), path.to_string())) };
            Some((VARIABLES[index], published))
        }
        Stored::File(_) => None,
    };
    stored(security).into_iter().flat_map(|both| both.into_iter().enumerate()).filter_map(of_secret).collect()
}

/// What the registry's container gets to read for the operator's files: their directories, since a file that is replaced is another
/// file, which a mount of the old one would not show.
pub fn volumes(security: &Security) -> Vec<Value> {
    let mount = |(index, stored): (usize, Stored<'_>)| match stored {
        Stored::File(path) => Some(json!({ "containerPath": MOUNTS[index], "hostPath": path.parent(), "mode": "RO" })),
        Stored::Secret(_) => None,
    };
    stored(security).into_iter().flat_map(|both| both.into_iter().enumerate()).filter_map(mount).collect()
}

/// What a run of the job that replaces the CA does where that is not the service's own, in one sentence; none where it is.
pub fn what_a_rotation_does(options: &Options, registry_host: &Host) -> Option<String> {
    if !options.registry.enabled {
        let what =
            "Nothing was replaced: no registry is to run (registry.enabled); a CA of another registry is replaced in other_registries.";
        return Some(what.into());
    }
    let registry = &options.registry.name;
    let place = |stored: &Stored<'_>| match stored {
        Stored::File(path) => format!("the file {} on {registry_host}", path.display()),
        Stored::Secret(path) => format!("the secret {path}"),
    };
    match options.security.mode {
        SecurityMode::SelfSigned => None,
        SecurityMode::DcosCa => {
            let what = "The CA is that of the cluster and stays; the registry got another certificate of it.";
            Some(what.into())
        }
        SecurityMode::Insecure => Some("Nothing was replaced: without TLS (security.mode) there is no certificate.".into()),
        SecurityMode::Provided => {
            let both = stored(&options.security)?;
            let places = both.each_ref().map(place).join(" and ");
            let then = match both.iter().any(|stored| matches!(stored, Stored::Secret(_))) {
                // A secret is in the task's environment, which is that of its start.
                true => format!("then restart the app /{registry}"),
                false => "which the registry then serves with by itself".into(),
            };
            Some(format!("Nothing was replaced: the certificate is yours; renew {places}, {then}."))
        }
    }
}

/// Names that the certificate which is served is not for, in words.
pub fn names_lacking(names: &[TrustedName], status: &RegistryStatus) -> Vec<String> {
    if status.leaf_fingerprint.is_none() {
        return Vec::new();
    }
    let mut hosts: Vec<&Host> = Vec::new();
    for host in names.iter().map(|trusted| &trusted.name.host) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    let lacking = hosts.into_iter().filter(|host| !status.leaf_names.iter().any(|name| speaks_for(name, host)));
    let problem = |host: &Host| {
        format!("the certificate does not speak for {host}: add it to its subject alternative names or leave the name out of the options")
    };
    lacking.map(problem).collect()
}

/// That the certificate which is served ends soon, in words.
pub fn end_nearing(status: &RegistryStatus, now: i64) -> Option<String> {
    let end = status.leaf_not_after.filter(|end| end - now < WARN_DAYS * DAY)?;
    let date = OffsetDateTime::from_unix_timestamp(end).map_or_else(|_| end.to_string(), |moment| moment.date().to_string());
    let verb = if end <= now { "has ended" } else { "ends" };
    Some(format!("the registry's certificate {verb} on {date}: renew it, and put the new one in place of the old one"))
}

/// Whether a subject alternative name is for this host, as clients see it: a star stands for one whole label, the first.
fn speaks_for(name: &str, host: &Host) -> bool {
    let host = host.to_string();
    match name.strip_prefix("*.") {
        Some(rest) => host.split_once('.').is_some_and(|(first, tail)| !first.is_empty() && tail.eq_ignore_ascii_case(rest)),
        None => host.eq_ignore_ascii_case(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{Authority, RegistryKey};
    use crate::protocol::RegistryPhase;

    fn fields(given: Value) -> Vec<String> {
        match Options::from_json(&given) {
            Ok(_) => Vec::new(),
            Err(faults) => {
                assert!(faults.0.iter().all(|fault| !fault.remedy.is_empty()), "{faults}");
                faults.0.into_iter().map(|fault| fault.field).collect()
            }
        }
    }

    fn options(security: Value) -> Options {
        Options::from_json(&json!({ "security": security, "service": { "service_account_secret": "account" } })).unwrap()
    }

    fn authority() -> Authority {
        Authority::create("s", 1, &["192.168.0.1:443".parse().unwrap()], 1_800_000_000, 365).unwrap()
    }

    #[test]
    fn certificate_key_and_ca_belong_to_the_mode_provided() {
        let account = json!({ "service_account_secret": "account" });
        let with = |security: Value| fields(json!({ "security": security, "service": account }));
        let ca = authority().certificate().pem();
        assert_eq!(with(json!({ "mode": "provided" })), ["security.certificate", "security.key"]);
        assert_eq!(with(json!({ "certificate": "x", "key": "x", "ca": ca })), ["security.certificate", "security.key", "security.ca"]);
        let files = json!({ "mode": "provided", "certificate": "/etc/tls/a.pem", "key": "/etc/tls/a.key", "ca": ca });
        assert_eq!(fields(json!({ "security": files })), Vec::<String>::new());
        let secrets = json!({ "mode": "provided", "certificate": "registry/tls", "key": "tls-key" });
        assert_eq!(with(secrets.clone()), Vec::<String>::new());
        assert_eq!(fields(json!({ "security": secrets })), ["security.certificate", "security.key"], "without an account");
        for bad in ["infra/tls", "/a.pem", "/etc/../a.pem", "/etc//a", "/etc/a:b", "/etc/tls/", "-----BEGIN CERTIFICATE-----"] {
            let given = json!({ "mode": "provided", "certificate": bad, "key": "/etc/tls/a.key" });
            assert_eq!(with(given), ["security.certificate"], "{bad}");
        }
        assert_eq!(fields(json!({ "security": { "mode": "dcos_ca" } })), ["security.mode"]);
        assert_eq!(with(json!({ "mode": "dcos_ca", "key_type": "p384" })), Vec::<String>::new());
    }

    #[test]
    fn the_private_ca_holds_ca_certificates_and_nothing_else() {
        let ca = authority();
        let csr = RegistryKey::generate().unwrap().csr("s").unwrap();
        let chain = ca.sign_leaf(&csr, &["192.168.0.1:443".parse().unwrap()], 1_800_000_000, 90).unwrap();
        for bad in [chain.as_str(), "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            let given = json!({ "mode": "provided", "certificate": "/t/c", "key": "/t/k", "ca": bad });
            assert_eq!(fields(json!({ "security": given })), ["security.ca"], "{bad}");
        }
        let two = format!("{}\n{}", ca.certificate().pem(), authority().certificate().pem());
        let given = json!({ "mode": "provided", "certificate": "/t/c", "key": "/t/k", "ca": two });
        assert_eq!(private_ca(&options(given).security).len(), 2);
    }

    #[test]
    fn files_are_mounted_by_their_directories_and_secrets_come_as_variables() {
        let security = options(json!({ "mode": "provided", "certificate": "/etc/tls/a.pem", "key": "registry/key" })).security;
        assert_eq!(volumes(&security), [json!({ "containerPath": MOUNTS[0], "hostPath": "/etc/tls", "mode": "RO" })]);
        let provided = provided(&security).unwrap();
        assert_eq!(provided.certificate, ProvidedAt::File("/run/private-registry/certificate/a.pem".into()));
        assert_eq!(provided.key, ProvidedAt::Variable(env::PROVIDED_KEY.into()));
        let published = published(&security);
        assert_eq!(published.len(), 1);
        assert_eq!(published[env::PROVIDED_KEY].secret, Some(("provided-key".into(), "registry/key".into())));
        let own = options(json!({})).security;
        assert!(super::provided(&own).is_none() && volumes(&own).is_empty() && super::published(&own).is_empty());
    }

    #[test]
    fn a_rotation_of_what_is_not_ours_says_where_it_is_replaced() {
        let says = |given: Value| {
            let account = json!({ "service_account_secret": "account" });
            let mut given = given;
            given["service"] = account;
            what_a_rotation_does(&Options::from_json(&given).unwrap(), &"192.168.1.80".parse().unwrap())
        };
        assert_eq!(says(json!({})), None);
        let provided = |certificate: &str, key: &str| json!({ "mode": "provided", "certificate": certificate, "key": key });
        assert_eq!(
            says(json!({ "security": provided("/etc/tls/a.pem", "/etc/tls/a.key") })).unwrap(),
            "Nothing was replaced: the certificate is yours; renew the file /etc/tls/a.pem on 192.168.1.80 and the file /etc/tls/a.key on \
             192.168.1.80, which the registry then serves with by itself."
        );
        let secret = says(json!({ "security": provided("registry/tls", "/etc/tls/a.key") })).unwrap();
        assert!(secret.contains("the secret registry/tls and the file") && secret.ends_with("restart the app /registry."), "{secret}");
        assert!(says(json!({ "security": { "mode": "dcos_ca" } })).unwrap().contains("another certificate"));
        assert!(says(json!({ "security": { "mode": "insecure" } })).unwrap().contains("security.mode"));
        assert!(says(json!({ "registry": { "enabled": false } })).unwrap().contains("other_registries"));
    }

    #[test]
    fn names_that_the_certificate_lacks_and_its_near_end_are_problems() {
        let names = options(json!({})).trusted_names(&"192.168.1.80".parse().unwrap());
        let mut status = RegistryStatus {
            service: "s".into(),
            task: String::new(),
            host: String::new(),
            phase: RegistryPhase::Serving,
            request: None,
            leaf_fingerprint: Some("x".into()),
            leaf_not_after: Some(1_800_000_000),
            leaf_names: vec!["192.168.0.1".into(), "*.marathon.l4lb.thisdcos.directory".into()],
            order_version: 0,
            starts: 1,
            errors: vec![],
        };
        assert_eq!(names_lacking(&names, &status), Vec::<String>::new());
        assert_eq!(end_nearing(&status, 1_800_000_000 - 31 * DAY), None);
        assert!(end_nearing(&status, 1_800_000_000 - 29 * DAY).unwrap().contains("ends on 2027-01-15"));
        status.leaf_names = vec!["*.directory".into()];
        let lacking = names_lacking(&names, &status);
        assert!(lacking.len() == 2 && lacking[0].starts_with("the certificate does not speak for 192.168.0.1: add"), "{lacking:?}");
    }
}
