//! The real machines behind [`Host`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Host, Network, Role};
use crate::dns::Zone;
use crate::faults::FaultTable;
use crate::host::{AgentRole, MASTER, Machine};
use crate::task::{Secrets, TaskStatus};
use crate::vips::{Vip, VipTable, named_vip_address};

/// Names that every cluster has.
const FIXED_NAMES: [&str; 4] = ["leader.mesos", "master.mesos", "marathon.mesos", "metronome.mesos"];

/// The web server from which the package is installed; in the lab it is on the master, too.
const UNIVERSE: &str = "universe.lab";

/// Registries that other people run: addresses that a test may give to the machine outside.
const OTHER_REGISTRIES: [(&str, Ipv4Addr); 5] = [
    ("dtr.example.com", Ipv4Addr::new(192, 168, 1, 201)),
    ("harbor.example.com", Ipv4Addr::new(192, 168, 1, 202)),
    ("artifactory.example.com", Ipv4Addr::new(192, 168, 1, 203)),
    ("gitlab.example.com", Ipv4Addr::new(192, 168, 1, 204)),
    ("nexus.example.com", Ipv4Addr::new(192, 168, 1, 205)),
];

/// Domain of named VIPs.
const VIP_DOMAIN: &str = "marathon.l4lb.thisdcos.directory";

/// [`Host`] over [`Machine`], the DNS zone and the VIP rules.
pub struct Machines {
    machine: Machine,
    zone: Zone,
    vips: Mutex<VipTable>,
    faults: Mutex<FaultTable>,
}

impl Machines {
    /// Over the lab in this folder.
    pub fn new(lab_dir: &Path, zone: Zone) -> Self {
        let machine = Machine::new(lab_dir);
        Self { vips: Mutex::new(VipTable::new(machine.clone())), faults: Mutex::new(FaultTable::new(machine.clone())), machine, zone }
    }

    /// Agents that are there already.
    pub fn agents(&self) -> Vec<(Ipv4Addr, Role)> {
        let role = |role| match role {
            AgentRole::Private => Role::Private,
            AgentRole::Public => Role::Public,
        };
        self.machine.agents().into_iter().map(|agent| (agent.ip, role(agent.role))).collect()
    }
}

impl Host for Machines {
    fn add_agent(&self, role: Role, disk_mib: Option<u32>) -> Result<Ipv4Addr, String> {
        let role = match role {
            Role::Private => AgentRole::Private,
            Role::Public => AgentRole::Public,
        };
        let ip = self.machine.free_address(role).ok_or_else(|| "no address is left".to_owned())?;
        self.machine.add_agent(ip, role, disk_mib).map_err(|error| error.to_string())?;
        Ok(ip)
    }

    fn stop_agent(&self, agent: Ipv4Addr) -> Result<(), String> {
        self.machine.stop_agent(agent).map_err(|error| error.to_string())
    }

    fn kill_agent(&self, agent: Ipv4Addr) -> Result<(), String> {
        self.machine.kill_agent(agent).map_err(|error| error.to_string())
    }

    fn revive_agent(&self, agent: Ipv4Addr, fresh_disk: bool) -> Result<(), String> {
        self.machine.revive_agent(agent, fresh_disk).map_err(|error| error.to_string())
    }

    fn sandbox_root(&self, agent: Ipv4Addr) -> PathBuf {
        self.machine.sandbox_root(agent)
    }

    fn launch(&self, agent: Ipv4Addr, sandbox: &Path, secrets: &Secrets) -> Result<(), String> {
        self.machine.launch(agent, sandbox, secrets).map_err(|error| error.to_string())
    }

    fn executor_alive(&self, status: &TaskStatus) -> bool {
        self.machine.executor_alive(status)
    }

    fn publish(&self, network: &Network, agents: &[Ipv4Addr]) {
        if let Err(error) = self.machine.publish_ca(agents) {
            tracing::error!(%error, "CA not handed out");
        }
        let (names, vips) = addresses(network);
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = names;
        if let Err(error) = self.vips.lock().unwrap_or_else(PoisonError::into_inner).apply(&vips, agents) {
            tracing::error!(%error, "VIPs not applied");
        }
        if let Err(error) = self.faults.lock().unwrap_or_else(PoisonError::into_inner).apply(&network.faults, agents) {
            tracing::error!(%error, "faults not applied");
        }
    }
}

/// Names with their addresses, and VIPs, as every machine of the cluster knows them.
pub(crate) fn addresses(network: &Network) -> (BTreeMap<String, Vec<Ipv4Addr>>, Vec<Vip>) {
    let mut names: BTreeMap<String, Vec<Ipv4Addr>> =
        FIXED_NAMES.iter().chain([&UNIVERSE]).map(|name| ((*name).to_owned(), vec![MASTER])).collect();
    names.extend(network.names.iter().map(|(name, addresses)| (format!("{name}.marathon.mesos"), addresses.clone())));
    names.extend(OTHER_REGISTRIES.map(|(name, address)| (name.to_owned(), vec![address])));
    let mut vips = Vec::new();
    for vip in &network.vips {
        let address = match (&vip.address, &vip.name) {
            (Some(address), _) => *address,
            (None, Some(name)) => {
                let full = format!("{name}.{VIP_DOMAIN}");
                let address = named_vip_address(&full);
                names.insert(full, vec![address]);
                address
            }
            (None, None) => continue,
        };
        vips.push(Vip { address, port: vip.port, backends: vip.backends.clone() });
    }
    (names, vips)
}
