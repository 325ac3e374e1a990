//! Faults of the network: rules in the network namespaces of the agents that they concern.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::{
    Result,
    host::{MASTER, Machine},
    process::ProcessId,
    server::NetworkFaults,
    vips::in_namespace,
};

/// Port of the master where every download comes damaged.
pub(crate) const DAMAGER: u16 = 7071;

/// The rules as they stand on every agent.
#[derive(Debug)]
pub(crate) struct FaultTable {
    machine: Machine,
    applied: BTreeMap<Ipv4Addr, (ProcessId, String)>,
}

impl FaultTable {
    /// Knows of no rules yet.
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, applied: BTreeMap::new() }
    }

    /// Puts the faults in force on the given agents; cheap when nothing changed. An agent that came back has no rules, which is noticed.
    ///
    /// # Errors
    /// iptables refused the rules.
    pub(crate) fn apply(&mut self, faults: &NetworkFaults, agents: &[Ipv4Addr]) -> Result<()> {
        for &agent in agents {
            let Some(holder) = self.machine.holder(agent) else { continue };
            let rules = rules(faults, agent);
            let known = self.applied.get(&agent).filter(|(at, _)| *at == holder);
            if known.is_some_and(|(_, applied)| *applied == rules) || (known.is_none() && *faults == NetworkFaults::default()) {
                continue;
            }
            in_namespace(Some(holder), &["iptables-restore", "--noflush", "--wait"], &rules)?;
            if known.is_none() {
                for (table, hook) in [("filter", "INPUT"), ("filter", "OUTPUT"), ("filter", "FORWARD"), ("nat", "OUTPUT")] {
                    in_namespace(Some(holder), &["iptables", "--wait", "-t", table, "-I", hook, "-j", CHAIN], "")?;
                }
            }
            self.applied.insert(agent, (holder, rules));
        }
        Ok(())
    }
}

const CHAIN: &str = "LAB-FAULT";

/// Both tables of an agent in the format of iptables-restore; a chain that is declared is emptied first.
fn rules(faults: &NetworkFaults, agent: Ipv4Addr) -> String {
    let mut filter = Vec::new();
    if faults.dns_gone {
        filter.extend(["udp", "tcp"].map(|protocol| format!("-d {MASTER}/32 -p {protocol} --dport 53 -j DROP")));
    }
    for (one, other) in &faults.parted {
        let far = if *one == agent { other } else { one };
        if [one, other].contains(&&agent) {
            filter.extend([format!("-s {far}/32 -j DROP"), format!("-d {far}/32 -j DROP")]);
        }
    }
    let mut nat = Vec::new();
    if faults.damaged.contains(&agent) {
        // The controller's named VIP, and the package's web server.
        nat.extend(
            ["-d 11.0.0.0/8 -p tcp --dport 80".to_owned(), format!("-d {MASTER}/32 -p tcp --dport 8000")]
                .map(|to| format!("{to} -j DNAT --to-destination {MASTER}:{DAMAGER}")),
        );
    }
    let table = |name: &str, rules: &[String]| {
        let lines: String = rules.iter().map(|rule| format!("-A {CHAIN} {rule}\n")).collect();
        format!("*{name}\n:{CHAIN} - [0:0]\n{lines}COMMIT\n")
    };
    table("filter", &filter) + &table("nat", &nat)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 80);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 81);

    #[test]
    fn without_faults_the_chains_are_empty() {
        let expected = "*filter\n:LAB-FAULT - [0:0]\nCOMMIT\n*nat\n:LAB-FAULT - [0:0]\nCOMMIT\n";
        assert_eq!(rules(&NetworkFaults::default(), AGENT), expected);
    }

    #[test]
    fn a_partition_has_rules_on_both_sides_and_nowhere_else() {
        let faults = NetworkFaults { parted: vec![(AGENT, OTHER)], ..NetworkFaults::default() };
        assert!(rules(&faults, AGENT).contains("-A LAB-FAULT -s 192.168.1.81/32 -j DROP\n-A LAB-FAULT -d 192.168.1.81/32 -j DROP\n"));
        assert!(rules(&faults, OTHER).contains("-s 192.168.1.80/32") && !rules(&faults, OTHER).contains("-s 192.168.1.81/32"));
        assert!(!rules(&faults, Ipv4Addr::new(192, 168, 1, 82)).contains("DROP"));
    }
}
