//! Whose certificate the registry serves with (section `security` of the options): what can be said of it without asking anybody.

use time::OffsetDateTime;

use crate::certificates::{Certificate, KeyType};
use crate::held::{self, Held};
use crate::names::Host;
use crate::options::{Fault, Options, Security, SecurityMode};
use crate::protocol::{Provided, RegistryStatus, TrustedName};

/// A certificate that nobody renews by himself is a problem this many days before its end.
const WARN_DAYS: i64 = 30;
const DAY: i64 = 24 * 60 * 60;

/// What whoever asks for the CA is told when there is none to trust.
pub const PUBLIC_CA: &str = "the registry's certificate is from a public CA, which clients trust already: there is nothing to do";

/// Certificate and key, in this order; none in another mode.
pub fn held(security: &Security) -> Vec<Held> {
    let both = [("provided-certificate", &security.certificate), ("provided-key", &security.key)];
    let provided = both.into_iter().filter(|_| security.mode == SecurityMode::Provided);
    provided.filter_map(|(name, text)| Held::of(name, text)).collect()
}

/// What is wrong with the section. `registry`: id of the registry's app; `has_account`: whether there is a service account.
pub fn faults(security: &Security, registry: &str, has_account: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, value: &str, reason: String, remedy: &str| {
        let field = format!("security.{field}");
        faults.push(Fault { field, value: value.into(), reason, remedy: remedy.into() });
    };
    let provided = security.mode == SecurityMode::Provided;
    let mut elsewhere = Vec::new();
    for (field, text) in [("certificate", &security.certificate), ("key", &security.key)] {
        match text.as_str() {
            "" if provided => fault(field, text, "the mode provided needs it".into(), held::EITHER),
            "" => {}
            _ if provided => elsewhere.extend(held::fault(&format!("security.{field}"), text, registry, has_account)),
            _ => fault(field, text, "it is for the mode provided only".into(), "Set security.mode to provided, or leave it empty."),
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
    faults.extend(elsewhere);
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
    match held(security).as_slice() {
        [certificate, key] => Some(Provided { certificate: certificate.at(), key: key.at() }),
        _ => None,
    }
}

/// What a run of the job that replaces the CA does where that is not the service's own, in one sentence; none where it is.
pub fn what_a_rotation_does(options: &Options, registry_host: &Host) -> Option<String> {
    if !options.registry.enabled {
        let what =
            "Nothing was replaced: no registry is to run (registry.enabled); a CA of another registry is replaced in other_registries.";
        return Some(what.into());
    }
    let registry = &options.registry.name;
    match options.security.mode {
        SecurityMode::SelfSigned => None,
        SecurityMode::DcosCa => {
            let what = "The CA is that of the cluster and stays; the registry got another certificate of it.";
            Some(what.into())
        }
        SecurityMode::Insecure => Some("Nothing was replaced: without TLS (security.mode) there is no certificate.".into()),
        SecurityMode::Provided => {
            let both = held(&options.security);
            let places = both.iter().map(|held| held.words(registry_host)).collect::<Vec<_>>().join(" and ");
            let then = match both.iter().any(Held::is_secret) {
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
        format!(
            "the certificate does not speak for {host}: add it to its subject alternative names, or name in names.inside what it is for"
        )
    };
    lacking.map(problem).collect()
}

/// That the certificate which is served ends soon, in words.
pub fn end_nearing(status: &RegistryStatus, now: i64) -> Option<String> {
    let end = status.leaf_not_after.filter(|end| end.saturating_sub(now) < WARN_DAYS * DAY)?;
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
    use serde_json::{Value, json};

    use super::*;
    use crate::certificates::{Authority, RegistryKey};
    use crate::options::faulty_fields as fields;
    use crate::protocol::RegistryPhase;

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
            phase: RegistryPhase::Serving,
            leaf_fingerprint: Some("x".into()),
            leaf_not_after: Some(1_800_000_000),
            leaf_names: vec!["192.168.0.1".into(), "*.marathon.l4lb.thisdcos.directory".into()],
            starts: 1,
            ..RegistryStatus::first("s", "", "")
        };
        assert_eq!(names_lacking(&names, &status), Vec::<String>::new());
        assert_eq!(end_nearing(&status, 1_800_000_000 - 31 * DAY), None);
        assert!(end_nearing(&status, 1_800_000_000 - 29 * DAY).unwrap().contains("ends on 2027-01-15"));
        status.leaf_names = vec!["*.directory".into()];
        let lacking = names_lacking(&names, &status);
        assert!(lacking.len() == 2 && lacking[0].starts_with("the certificate does not speak for 192.168.0.1: add"), "{lacking:?}");
    }
}
