//! How machines outside and agents reach the registry: what the options may say of it, what clashes with the cluster, and how
//! Marathon-LB stands.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dcos::cosmos::CosmosError;
use crate::dcos::marathon::AppClaims;
use crate::names::{Host, HostPort};
use crate::options::{Exposure, Fault, Faults, NAMED_VIP_DOMAIN, Options};
use crate::plan::{self, Observed};

/// Ports that Marathon-LB itself listens on (package `marathon-lb`: http and https by host name, statistics, and those by app id).
const MARATHON_LB_PORTS: [u16; 4] = [80, 443, 9090, 9091];

/// Advice that every fault of the service port ends with. The package `marathon-lb` keeps this range from other tasks.
const OWN_RANGE: &str = "best from 10000 to 10100, which the package marathon-lb keeps for itself";

/// IPv4 addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not an address at all.
    #[error("it is no IPv4 address or network")]
    Address,
    /// What stands behind the slash.
    #[error("the length behind the slash must be a number from 0 to 32")]
    Prefix,
    /// Bits behind the prefix: a slip of one of the two.
    #[error("{0} is an address within the network {1}; say {0} for this machine alone, or {1} for the whole network")]
    Within(Ipv4Addr, Network),
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| NetworkError::Address)?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or(NetworkError::Prefix)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let network = Self { address: Ipv4Addr::from(u32::from(address) & mask), prefix };
        if network.address == address { Ok(network) } else { Err(NetworkError::Within(address, network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            32 => write!(f, "{}", self.address),
            prefix => write!(f, "{}/{prefix}", self.address),
        }
    }
}

/// Checks the section `exposure` and returns who may come in.
pub(crate) fn checked(raw: &Exposure, allowed_sources: &str, has_account: bool, faults: &mut Faults) -> Vec<Network> {
    if raw.marathon_lb && MARATHON_LB_PORTS.contains(&raw.service_port) {
        faults.add(
            "exposure.service_port",
            raw.service_port,
            "Marathon-LB uses this port itself",
            &format!("Choose another one, {OWN_RANGE}."),
        );
    }
    let sources: Vec<&str> = allowed_sources.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if !raw.marathon_lb && !sources.is_empty() {
        faults.add(
            "exposure.allowed_sources",
            allowed_sources,
            "exposure.marathon_lb is false, and only Marathon-LB looks at where a connection comes from",
            "Set exposure.marathon_lb to true, or leave this empty; for the VIPs and the host port use the firewall of the agents.",
        );
    }
    if raw.install_marathon_lb && !raw.marathon_lb {
        faults.add(
            "exposure.install_marathon_lb",
            true,
            "exposure.marathon_lb is false, so the registry would not use it",
            "Set exposure.marathon_lb to true, or this to false.",
        );
    }
    if raw.install_marathon_lb && has_account {
        faults.add(
            "exposure.install_marathon_lb",
            true,
            "on DC/OS Enterprise Marathon-LB needs a service account of its own, which only a superuser can make",
            "Set this to false and install marathon-lb with its own options marathon-lb.secret_name.",
        );
    }
    let form = "Give IPv4 addresses or networks, separated by commas, as in 10.1.0.0/16, 192.0.2.7.";
    sources.into_iter().filter_map(|entry| faults.parse("exposure.allowed_sources", entry, form)).collect()
}

/// What another app claims that the options ask for, too.
pub(crate) fn clashes_with(other: &AppClaims, options: &Options, observed: &Observed) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    let (id, port) = (&other.id, options.exposure.service_port);
    // The ports of Marathon-LB's own app are those that it keeps free for the apps that it serves.
    if options.exposure.marathon_lb && !other.marathon_lb && other.service_ports.contains(&port) {
        let reason = format!("the app {id} has this service port");
        faults.add("exposure.service_port", port, &reason, &format!("Choose a port that no app has, {OWN_RANGE}."));
    }
    let taken = |vip: &str| other.vips.iter().any(|label| plain(label) == plain(vip));
    let has_it = format!("the app {id} has this VIP");
    if let Some(vip) = options.vip.as_ref().map(ToString::to_string).filter(|vip| taken(vip)) {
        faults.add("names.vip", vip, &has_it, "Choose another address or port.");
    }
    if let Some(vip) = options.named_vip.as_ref().map(|(name, port)| format!("{name}:{port}")).filter(|vip| taken(vip)) {
        faults.add("names.named_vip", vip, &has_it, "Choose another name or port.");
    }
    let port = options.exposure.host_port;
    let may_meet = || {
        let host = plan::registry_host(observed, options);
        !other.public_only && other.host.as_ref().is_none_or(|other| *other == host)
    };
    if port > 0 && other.fixed_ports.contains(&port) && !runs_with(port, observed) && may_meet() {
        let reason = format!("the app {id} asks for this port of its agent, too, and may run on the registry's agent");
        let remedy = "Choose a port that no app asks for, or pin that app to another agent.";
        faults.add("exposure.host_port", port, &reason, remedy);
    }
    faults.0
}

/// A VIP as dcos-net reads it: it drops the slashes of names.
fn plain(vip: &str) -> String {
    vip.replace('/', "").to_ascii_lowercase()
}

/// Whether the registry has the host port already: then nobody else on its agent can have it.
fn runs_with(port: u16, observed: &Observed) -> bool {
    observed.registry.iter().flat_map(|app| &app.tasks).any(|task| task.ports.first() == Some(&port))
}

/// The host port, if the agent that the registry runs on does not offer it to tasks; without such an agent, if none does.
pub(crate) fn not_offered(options: &Options, observed: &Observed) -> Option<Fault> {
    let port = options.exposure.host_port;
    if port == 0 || runs_with(port, observed) {
        return None;
    }
    let host = plan::registry_host(observed, options);
    // Public agents are refused as the registry's host elsewhere; an agent that shows no ports says nothing.
    let candidates: Vec<_> = observed.agents.iter().filter(|agent| !agent.public && !agent.ports.is_empty()).collect();
    let agents: Vec<_> = match candidates.iter().find(|agent| agent.host == host) {
        Some(agent) => vec![*agent],
        None => candidates,
    };
    let (first, offered) = (agents.first()?, agents.iter().any(|agent| agent.ports.contains(port)));
    if offered {
        return None;
    }
    let reason = format!("Mesos does not offer this port of {}; it offers {}", first.host, first.ports);
    Some(Fault {
        field: "exposure.host_port".into(),
        value: port.to_string(),
        reason,
        remedy: "Choose one of these, or 0 for any port.".into(),
    })
}

/// How Marathon-LB stands, as far as it can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarathonLb {
    /// The registry does not use it, or it works.
    Fine,
    /// Its app runs no task.
    Idle(String),
    /// There is none.
    Absent,
}

/// What leads to the registry by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Way {
    Vip,
    NamedVip,
    /// Mesos-DNS names the agent, and the port is fixed.
    MesosDns,
    /// The agent's own address, and the same port.
    HostPort,
    MarathonLb,
    /// A name of the operator's own DNS, which agents use.
    Inside,
    /// Whatever the operator has made.
    Extra,
}

/// The way that one of the options' names takes.
pub(crate) fn way(options: &Options, registry_host: &Host, name: &HostPort) -> Way {
    let host = name.host.to_string();
    if options.vip.as_ref() == Some(name) {
        Way::Vip
    } else if options.named_vip.as_ref().is_some_and(|(vip, port)| host == format!("{vip}.{NAMED_VIP_DOMAIN}") && *port == name.port) {
        Way::NamedVip
    } else if name.port == options.exposure.host_port && host == format!("{}.marathon.mesos", options.registry.name) {
        Way::MesosDns
    } else if name.port == options.exposure.host_port && name.host == *registry_host {
        Way::HostPort
    } else if options.exposure.marathon_lb
        && name.port == options.exposure.service_port
        && options.external_host.as_ref() == Some(&name.host)
    {
        Way::MarathonLb
    } else if options.inside.contains(name) {
        Way::Inside
    } else {
        Way::Extra
    }
}

/// Looks for Marathon-LB: `answering` says whether one answers on a public agent, whoever has started it.
pub(crate) fn marathon_lb(options: &Options, observed: &Observed, answering: bool) -> MarathonLb {
    let apps: Vec<&AppClaims> = observed.claims.iter().filter(|app| app.marathon_lb).collect();
    if !options.exposure.marathon_lb || !options.registry.enabled || answering || apps.iter().any(|app| app.tasks_running > 0) {
        return MarathonLb::Fine;
    }
    apps.first().map_or(MarathonLb::Absent, |app| MarathonLb::Idle(app.id.clone()))
}

/// What ends every word about a missing Marathon-LB.
const SILENCE: &str = "or set exposure.marathon_lb to false if nobody outside needs the registry";

/// What to tell people when the installation that they have asked for fails.
pub(crate) fn not_installed(error: &CosmosError) -> String {
    format!("Marathon-LB cannot be installed: {error}. Install it yourself with `dcos package install marathon-lb`, {SILENCE}")
}

impl MarathonLb {
    /// What to tell people, if anything.
    pub(crate) fn problem(&self, options: &Options) -> Option<String> {
        match self {
            Self::Fine => None,
            Self::Idle(id) => Some(format!(
                "Marathon-LB's app {id} runs no task, so the registry cannot be reached from outside: see in the UI what it waits for \
                 (it needs a public agent whose ports 80, 443, 9090, 9091 and 10000 to 10100 are free), {SILENCE}"
            )),
            Self::Absent => {
                let option = if options.has_account() || options.exposure.install_marathon_lb {
                    ""
                } else {
                    " (or set exposure.install_marathon_lb to true, and the controller installs it)"
                };
                Some(format!(
                    "Marathon-LB is not installed, so the registry cannot be reached from outside: \
                     install it with `dcos package install marathon-lb`{option}, {SILENCE}"
                ))
            }
        }
    }
}

/// What can be done better, though it works: a service port that a public agent may give to a task at any time.
pub(crate) fn advice(options: &Options, observed: &Observed) -> Option<String> {
    let port = options.exposure.service_port;
    let is_kept = || observed.claims.iter().any(|app| app.marathon_lb && app.fixed_ports.contains(&port));
    if !options.exposure.marathon_lb || !options.registry.enabled || is_kept() {
        return None;
    }
    let agent = observed.agents.iter().find(|agent| agent.public && agent.ports.contains(port))?;
    Some(format!(
        "exposure.service_port = {port}: the public agent {} offers this port to tasks. While one has it, Marathon-LB cannot serve there. \
         Choose one {}.",
        agent.host,
        OWN_RANGE.trim_start_matches("best ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::dcos::marathon::{App, AppTask};
    use crate::dcos::mesos::{Agent, Ports, Resources};

    fn options(given: Value) -> Options {
        Options::from_json(&given).unwrap()
    }

    fn faults(given: Value) -> Vec<Fault> {
        Options::from_json(&given).unwrap_err().0
    }

    fn agent(host: &str, public: bool, ports: &str) -> Agent {
        let ports = Ports::parse(ports);
        Agent { id: host.into(), host: host.parse().unwrap(), public, active: true, free: Resources::default(), ports }
    }

    fn clashes(given: Value, other: AppClaims, observed: &Observed) -> Vec<String> {
        clashes_with(&other, &options(given), observed).into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn sources_are_addresses_and_networks_and_every_fault_names_its_entry() {
        let given = json!({ "exposure": { "allowed_sources": "10.1.0.0/16, 192.0.2.7,0.0.0.0/0" } });
        let sources: Vec<String> = options(given).allowed_sources.iter().map(ToString::to_string).collect();
        assert_eq!(sources, ["10.1.0.0/16", "192.0.2.7", "0.0.0.0/0"]);
        for (entry, reason) in [
            ("10.1.0.0/33", "from 0 to 32"),
            ("10.1.0.0/", "from 0 to 32"),
            ("example.com", "no IPv4 address"),
            ("fd00::/8", "no IPv4 address"),
            ("10.1.2.3/16", "say 10.1.2.3 for this machine alone, or 10.1.0.0/16 for the whole network"),
        ] {
            let found = faults(json!({ "exposure": { "allowed_sources": format!("192.0.2.7, {entry}") } }));
            assert_eq!((found.len(), found[0].field.as_str(), found[0].value.as_str()), (1, "exposure.allowed_sources", entry));
            assert!(found[0].reason.contains(reason), "{}", found[0]);
        }
    }

    #[test]
    fn what_only_marathon_lb_can_do_is_refused_without_it() {
        let found = faults(json!({ "exposure": { "marathon_lb": false, "allowed_sources": "10.0.0.1", "install_marathon_lb": true } }));
        let fields: Vec<&str> = found.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["exposure.allowed_sources", "exposure.install_marathon_lb"]);
        let account = json!({ "service": { "service_account_secret": "account" }, "exposure": { "install_marathon_lb": true } });
        assert!(faults(account)[0].reason.contains("a service account of its own"));
    }

    #[test]
    fn a_registry_that_no_agent_could_reach_is_refused() {
        let nothing = json!({ "names": { "vip": "", "named_vip": "" } });
        let found = faults(nothing);
        assert_eq!((found.len(), found[0].field.as_str()), (1, "names.vip"));
        assert!(found[0].remedy.contains("names.named_vip, as in registry:5000"), "{}", found[0]);
        options(json!({ "names": { "vip": "", "named_vip": "" }, "exposure": { "host_port": 5000 } }));
        options(json!({ "names": { "vip": "", "named_vip": "" }, "registry": { "enabled": false } }));
    }

    #[test]
    fn vips_of_other_apps_clash_also_by_name_however_they_are_spelled() {
        let other = |vip: &str| AppClaims { id: "/web".into(), vips: vec![vip.into()], ..AppClaims::default() };
        let observed = Observed::default();
        for vip in ["/registry:5000", "registry:5000", "/re/gistry:5000"] {
            assert_eq!(clashes(json!({}), other(vip), &observed), ["names.named_vip"], "{vip}");
        }
        assert_eq!(clashes(json!({}), other("192.168.0.1:443"), &observed), ["names.vip"]);
        assert!(clashes(json!({}), other("/registry:5001"), &observed).is_empty());
        assert!(clashes(json!({ "names": { "vip": "", "named_vip": "images:5000" } }), other("192.168.0.1:443"), &observed).is_empty());
    }

    #[test]
    fn the_range_that_marathon_lb_keeps_is_for_the_apps_that_it_serves() {
        let ports: Vec<u16> = (10_000..=10_100).collect();
        let lb = AppClaims {
            id: "/marathon-lb".into(),
            service_ports: ports.clone(),
            fixed_ports: ports,
            marathon_lb: true,
            ..AppClaims::default()
        };
        let given = json!({ "exposure": { "service_port": 10_050 } });
        let public = agent("10.0.0.9", true, "[1-21, 23-5050, 5052-32000]");
        let observed = Observed { agents: vec![public], claims: vec![lb.clone()], ..Observed::default() };
        assert!(clashes(given.clone(), lb.clone(), &observed).is_empty());
        assert_eq!(clashes(given.clone(), AppClaims { marathon_lb: false, ..lb }, &observed), ["exposure.service_port"]);
        assert_eq!(advice(&options(given), &observed), None);
        let said = advice(&options(json!({})), &observed).unwrap();
        assert!(said.contains("exposure.service_port = 5000: the public agent 10.0.0.9 offers") && said.contains("from 10000 to 10100"));
        assert_eq!(advice(&options(json!({ "exposure": { "service_port": 5051 } })), &observed), None);
    }

    #[test]
    fn a_host_port_that_the_registrys_agent_does_not_offer_is_refused_with_what_it_offers() {
        let observed = Observed {
            agents: vec![
                agent("10.0.0.1", false, "[1025-2180]"),
                agent("10.0.0.2", false, "[5000-6000]"),
                agent("10.0.0.9", true, "[1-32000]"),
            ],
            ..Observed::default()
        };
        let on = |host: &str, port: u16| options(json!({ "registry": { "host": host }, "exposure": { "host_port": port } }));
        let found = not_offered(&on("10.0.0.1", 5000), &observed).unwrap();
        assert_eq!(found.reason, "Mesos does not offer this port of 10.0.0.1; it offers 1025-2180");
        assert_eq!(not_offered(&on("10.0.0.2", 5000), &observed), None);
        assert_eq!(not_offered(&on("", 5000), &observed), None, "the registry may run on either");
        assert!(not_offered(&on("", 80), &observed).is_some(), "public agents are not for the registry");
        assert_eq!(not_offered(&on("", 80), &Observed::default()), None, "nothing is known");
    }

    #[test]
    fn a_host_port_that_another_app_wants_of_the_same_agent_is_refused() {
        let given = json!({ "registry": { "host": "10.0.0.1" }, "exposure": { "host_port": 5000 } });
        let other = AppClaims { id: "/web".into(), fixed_ports: vec![5000], ..AppClaims::default() };
        let none = Observed::default();
        assert_eq!(clashes(given.clone(), other.clone(), &none), ["exposure.host_port"]);
        let elsewhere = AppClaims { host: Some("10.0.0.2".parse().unwrap()), ..other.clone() };
        assert!(clashes(given.clone(), elsewhere, &none).is_empty());
        assert!(clashes(given.clone(), AppClaims { public_only: true, ..other.clone() }, &none).is_empty());
        let task = AppTask { id: "registry.1".into(), host: "10.0.0.1".parse().unwrap(), ports: vec![5000, 1025], healthy: true };
        let running = Observed { registry: Some(App { spec: json!({}), tasks: vec![task] }), ..Observed::default() };
        assert!(clashes(given, other, &running).is_empty(), "who has the port keeps it");
    }

    #[test]
    fn a_missing_marathon_lb_is_told_with_what_helps_and_one_that_answers_or_is_not_wanted_is_not() {
        let with = |tasks_running| {
            let app = AppClaims { id: "/lb".into(), marathon_lb: true, tasks_running, ..AppClaims::default() };
            Observed { claims: vec![app], ..Observed::default() }
        };
        let defaults = options(json!({}));
        let absent = marathon_lb(&defaults, &Observed::default(), false).problem(&defaults).unwrap();
        for what in ["`dcos package install marathon-lb`", "exposure.install_marathon_lb", "exposure.marathon_lb to false"] {
            assert!(absent.contains(what), "{absent}");
        }
        assert_eq!(marathon_lb(&defaults, &Observed::default(), true), MarathonLb::Fine);
        assert_eq!(marathon_lb(&defaults, &with(1), false), MarathonLb::Fine);
        assert!(marathon_lb(&defaults, &with(0), false).problem(&defaults).unwrap().contains("app /lb runs no task"));
        for given in [json!({ "exposure": { "marathon_lb": false } }), json!({ "registry": { "enabled": false } })] {
            assert_eq!(marathon_lb(&options(given), &Observed::default(), false), MarathonLb::Fine);
        }
    }

    /// What each way in asks of Marathon, and which names it gives.
    #[test]
    fn every_way_in_stands_alone_and_beside_the_others() {
        const NAMED: &str = "registry.marathon.l4lb.thisdcos.directory:5000";
        let vip = json!({ "names": { "named_vip": "" }, "exposure": { "marathon_lb": false } });
        let named = json!({ "names": { "vip": "" }, "exposure": { "marathon_lb": false } });
        let host = json!({ "names": { "vip": "", "named_vip": "" }, "exposure": { "marathon_lb": false, "host_port": 5000 } });
        let lb = json!({
            "names": { "vip": "", "external_host": "203.0.113.5" },
            "exposure": { "service_port": 10_050, "allowed_sources": "10.1.0.0/16, 192.0.2.7" },
        });
        let all = json!({ "names": { "external_host": "203.0.113.5" }, "exposure": { "host_port": 5000 } });
        for (given, names, labels, ports) in [
            (vip, vec!["192.168.0.1:443"], json!({ "VIP_0": "192.168.0.1:443" }), (0, 0)),
            (named, vec![NAMED], json!({ "VIP_1": "/registry:5000" }), (0, 0)),
            (host, vec!["registry.marathon.mesos:5000", "10.0.0.1:5000"], Value::Null, (5000, 0)),
            (lb.clone(), vec![NAMED, "203.0.113.5:10050"], json!({ "VIP_1": "/registry:5000" }), (0, 10_050)),
            (
                all,
                vec!["192.168.0.1:443", NAMED, "registry.marathon.mesos:5000", "10.0.0.1:5000", "203.0.113.5:5000"],
                json!({ "VIP_0": "192.168.0.1:443", "VIP_1": "/registry:5000" }),
                (5000, 5000),
            ),
        ] {
            let (options, app) = (options(given.clone()), crate::documents::tests::documents(given).registry);
            let trusted = options.trusted_names(&"10.0.0.1".parse().unwrap());
            assert_eq!(trusted.iter().map(|name| name.name.to_string()).collect::<Vec<_>>(), names);
            let port = &app["container"]["docker"]["portMappings"][0];
            assert_eq!((&port["labels"], &port["hostPort"], &port["servicePort"]), (&labels, &json!(ports.0), &json!(ports.1)));
            assert_eq!(app["labels"].get("HAPROXY_GROUP").is_some(), ports.1 > 0);
        }
        let app = crate::documents::tests::documents(lb).registry;
        assert_eq!(app["labels"]["HAPROXY_0_BACKEND_NETWORK_ALLOWED_ACL"], "10.1.0.0/16 192.0.2.7");
    }
}
