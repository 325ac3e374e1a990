//! What tools that use the registry need to know of it: the answer of `GET /v1/discovery`.

use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::exposure::{self, Way};
use crate::names::Host;
use crate::options::{AuthKind, Options};

/// Grows when a field changes its meaning or goes; new fields come without it.
const VERSION: u32 = 1;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// Version of the document's form.
    pub version: u32,
    /// Name of the service.
    pub service: String,
    /// What images are best named after inside the cluster, without a port where none is needed; none where no registry runs.
    pub preferred: Option<String>,
    /// The same for machines outside.
    pub preferred_outside: Option<String>,
    /// Every name that the certificate is for.
    pub names: Vec<Name>,
    /// The registry speaks http and not https.
    pub plain_http: bool,
    /// What to trust it by; none over plain http, and where a public CA has signed.
    pub ca: Option<Ca>,
    /// The certificate is from a public CA.
    pub public_ca: bool,
    /// Who may come in: `none` (everybody), `htpasswd` or `token`.
    pub login: AuthKind,
    /// It takes no pushes.
    pub read_only: bool,
    /// The registry that it is a cache of.
    pub cache_of: Option<String>,
    /// What it does not do.
    pub limits: Limits,
    /// Where there is more.
    pub links: Links,
}

/// One of the registry's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// `host:port`.
    pub name: String,
    /// What leads to the registry by this name.
    pub by: Way,
    /// From where it can be reached: `inside` the cluster, `outside`, or `unknown`.
    pub from: String,
}

/// See [`Discovery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// SHA-256 (hex) of the certificate that signs.
    pub sha256: String,
    /// PEM; more than one certificate while the CA is replaced.
    pub pem: String,
}

/// See [`Discovery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Addresses and networks outside that Marathon-LB lets in; none: all.
    pub outside_sources: Vec<String>,
    /// Images can be deleted through the API.
    pub deletes: bool,
    /// An upload that is not finished after so many hours is thrown away.
    pub upload_hours: u32,
}

/// Relative to the document, so that they hold through Admin Router and through the controller's VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// The page for people.
    pub page: String,
    /// How things stand, as JSON.
    pub status: String,
    /// The CA's certificates, PEM.
    pub ca: String,
    /// Command that says how a machine outside is made to trust the registry.
    pub help: String,
}

impl Discovery {
    pub(super) fn new(options: &Options, registry_host: &Host, report: &Report) -> Self {
        let names = options.trusted_names(registry_host);
        // As people write it: docker takes 443 for granted, but not over plain http.
        let short = |by: &dyn Fn(Way) -> bool| {
            let name = names.iter().find(|name| by(exposure::way(options, registry_host, &name.name)))?;
            let spellings = if report.insecure { name.name.plain_spellings() } else { name.name.spellings() };
            spellings.into_iter().min_by_key(String::len)
        };
        let entry = |name: &crate::protocol::TrustedName| {
            let by = exposure::way(options, registry_host, &name.name);
            let from = match by {
                Way::MarathonLb => "outside",
                Way::Extra => "unknown",
                _ => "inside",
            };
            Name { name: name.name.to_string(), by, from: from.into() }
        };
        let sha256 = report.ca_fingerprint.clone().filter(|_| !report.ca.is_empty());
        let cache_of = Some(options.proxy.remote_url.clone()).filter(|url| !url.is_empty());
        let name = if report.service == "private-registry" { String::new() } else { format!(" --name {}", report.service) };
        Self {
            version: VERSION,
            service: options.service.name.clone(),
            preferred: short(&|by| !matches!(by, Way::MarathonLb | Way::Extra)),
            preferred_outside: short(&|by| by == Way::MarathonLb),
            names: names.iter().map(entry).collect(),
            plain_http: report.insecure,
            ca: sha256.map(|sha256| Ca { sha256, pem: report.ca.clone() }),
            public_ca: report.public_ca,
            login: options.auth.kind,
            read_only: options.registry.read_only || cache_of.is_some(),
            cache_of,
            limits: Limits {
                outside_sources: options.allowed_sources.iter().map(ToString::to_string).collect(),
                deletes: options.registry.delete_enabled,
                upload_hours: options.registry.upload_purge_hours,
            },
            links: Links {
                page: "..".into(),
                status: "status".into(),
                ca: "ca".into(),
                help: format!("dcos private-registry ca --for docker{name}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_learn_names_ca_and_limits_in_a_stable_order() {
        let given = json!({
            "names": { "external_host": "203.0.113.5", "inside": "registry.example.com:443", "extra": "registry.example.org:443" },
            "exposure": { "host_port": 5000, "allowed_sources": "10.1.0.0/16" },
            "auth": { "kind": "htpasswd" },
            "proxy": { "remote_url": "https://registry-1.docker.io" },
        });
        let options = Options::from_json(&given).unwrap();
        let report =
            Report { service: "private-registry".into(), ca: "PEM".into(), ca_fingerprint: Some("ab".repeat(32)), ..Report::default() };
        let text = serde_json::to_string(&Discovery::new(&options, &"10.0.0.1".parse().unwrap(), &report)).unwrap();
        let name = |name: &str, by: &str, from: &str| format!(r#"{{"name":"{name}","by":"{by}","from":"{from}"}}"#);
        let names = [
            name("192.168.0.1:443", "vip", "inside"),
            name("registry.marathon.l4lb.thisdcos.directory:5000", "named_vip", "inside"),
            name("registry.marathon.mesos:5000", "mesos_dns", "inside"),
            name("10.0.0.1:5000", "host_port", "inside"),
            name("registry.example.com:443", "inside", "inside"),
            name("203.0.113.5:5000", "marathon_lb", "outside"),
            name("registry.example.org:443", "extra", "unknown"),
        ];
        let expected = [
            r#"{"version":1,"service":"private-registry","preferred":"192.168.0.1","preferred_outside":"203.0.113.5:5000","#.to_string(),
            format!(
                r#""names":[{}],"plain_http":false,"ca":{{"sha256":"{}","pem":"PEM"}},"public_ca":false,"#,
                names.join(","),
                "ab".repeat(32)
            ),
            r#""login":"htpasswd","read_only":true,"cache_of":"https://registry-1.docker.io","#.into(),
            format!(
                r#""limits":{{"outside_sources":["10.1.0.0/16"],"deletes":{},"upload_hours":{}}},"#,
                options.registry.delete_enabled, options.registry.upload_purge_hours
            ),
            r#""links":{"page":"..","status":"status","ca":"ca","help":"dcos private-registry ca --for docker"}}"#.into(),
        ];
        assert_eq!(text, expected.concat());
    }

    #[test]
    fn without_an_ip_vip_a_name_with_its_port_is_preferred_and_without_a_registry_none() {
        let host = "10.0.0.1".parse().unwrap();
        let of = |given| Discovery::new(&Options::from_json(&given).unwrap(), &host, &Report { insecure: true, ..Report::default() });
        let named = of(json!({ "names": { "vip": "" }, "security": { "mode": "insecure" } }));
        assert_eq!(named.preferred.as_deref(), Some("registry.marathon.l4lb.thisdcos.directory:5000"));
        assert_eq!((named.preferred_outside, named.ca), (None, None));
        assert_eq!(of(json!({ "registry": { "enabled": false } })).preferred, None);
    }
}
