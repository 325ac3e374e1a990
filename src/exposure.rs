//! How machines outside and agents reach the registry: what the options may say of it, what clashes with the cluster, and how
//! Marathon-LB stands.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::dcos::marathon::AppClaims;
use crate::options::{Exposure, Fault, Faults, Options};
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
        remedy: "Choose one of these, below 32768 best, or 0 for any port.".into(),
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

/// Looks for Marathon-LB: `answering` says whether one answers on a public agent, whoever has started it.
pub(crate) fn marathon_lb(options: &Options, observed: &Observed, answering: bool) -> MarathonLb {
    let apps: Vec<&AppClaims> = observed.claims.iter().filter(|app| app.marathon_lb).collect();
    if !options.exposure.marathon_lb || !options.registry.enabled || answering || apps.iter().any(|app| app.tasks_running > 0) {
        return MarathonLb::Fine;
    }
    apps.first().map_or(MarathonLb::Absent, |app| MarathonLb::Idle(app.id.clone()))
}

impl MarathonLb {
    /// What to tell people, if anything.
    pub(crate) fn problem(&self, options: &Options) -> Option<String> {
        let silence = "or set exposure.marathon_lb to false if nobody outside needs the registry";
        match self {
            Self::Fine => None,
            Self::Idle(id) => Some(format!(
                "Marathon-LB's app {id} runs no task, so the registry cannot be reached from outside: see in the UI what it waits for \
                 (it needs a public agent whose ports 80, 443, 9090, 9091 and 10000 to 10100 are free), {silence}"
            )),
            Self::Absent => {
                let option =
                    if options.has_account() { "" } else { " (or set exposure.install_marathon_lb to true, and the controller installs it)" };
                Some(format!(
                    "Marathon-LB is not installed, so the registry cannot be reached from outside: \
                     install it with `dcos package install marathon-lb`{option}, {silence}"
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
