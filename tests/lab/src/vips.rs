//! Virtual addresses: what dcos-net does with IPVS, done with DNAT rules in the network namespace of the master and of every agent.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use crate::{
    Result,
    host::Machine,
    process::{ProcessId, run_with_input},
};

/// A virtual address and the tasks behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The address that clients use.
    pub address: Ipv4Addr,
    /// The port that clients use.
    pub port: u16,
    /// Address and port of every healthy task; none: connections are refused.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

/// The address of a named VIP (`<label>.<framework>`): in 11.0.0.0/8 as in DC/OS, by a hash of the name.
pub fn named_vip_address(name: &str) -> Ipv4Addr {
    // FNV-1a; dcos-net takes another hash, and nobody may rely on the result.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, b, c, d] = hash.to_be_bytes();
    Ipv4Addr::new(11, b, c, d.clamp(1, 254))
}

/// The rules as they stand in each network namespace.
#[derive(Debug)]
pub struct VipTable {
    machine: Machine,
    applied: BTreeMap<Option<Ipv4Addr>, (Option<ProcessId>, String)>,
}

impl VipTable {
    /// Knows of no rules yet: the first [`VipTable::apply`] writes them everywhere.
    pub fn new(machine: Machine) -> Self {
        Self { machine, applied: BTreeMap::new() }
    }

    /// Makes the VIPs valid on the master and on the given agents; cheap when nothing changed. An agent that came back has an empty
    /// table, which is noticed. An agent that is down is passed over.
    ///
    /// # Errors
    /// iptables refused the rules.
    pub fn apply(&mut self, vips: &[Vip], agents: &[Ipv4Addr]) -> Result<()> {
        let rules = rules(vips);
        self.apply_to(None, None, &rules)?;
        for &agent in agents {
            if let Some(holder) = self.machine.holder(agent) {
                self.apply_to(Some(agent), Some(holder), &rules)?;
            }
        }
        Ok(())
    }

    fn apply_to(&mut self, agent: Option<Ipv4Addr>, holder: Option<ProcessId>, rules: &str) -> Result<()> {
        if self.applied.get(&agent).is_some_and(|(at, applied)| *at == holder && applied == rules) {
            return Ok(());
        }
        restore(holder, rules)?;
        // A chain that is declared is emptied by the restore; the jumps into it are made once per namespace.
        if self.applied.get(&agent).is_none_or(|(at, _)| *at != holder) {
            for (table, hook) in [("nat", "PREROUTING"), ("nat", "OUTPUT"), ("filter", "FORWARD"), ("filter", "OUTPUT")] {
                let jump = format!("{hook} -j {CHAIN}");
                if iptables(holder, table, &format!("-C {jump}")).is_err() {
                    iptables(holder, table, &format!("-I {jump}"))?;
                }
            }
        }
        self.applied.insert(agent, (holder, rules.to_owned()));
        Ok(())
    }
}

const CHAIN: &str = "LAB-VIP";

/// The chains in the format of iptables-restore. A backend gets its equal share: the first of n takes 1/n, the next 1/(n-1) of the rest …
///
/// Without one, a client is told at once, as IPVS does when every backend has the weight 0. Were its first packet dropped, the connection
/// would hang for two minutes: the kernel does not look at the rules again for a packet that is repeated.
fn rules(vips: &[Vip]) -> String {
    let mut rules = format!("*nat\n:{CHAIN} - [0:0]\n");
    for vip in vips {
        for (index, (address, port)) in vip.backends.iter().enumerate() {
            let _ = write!(rules, "-A {CHAIN} -d {}/32 -p tcp -m tcp --dport {}", vip.address, vip.port);
            let left = vip.backends.len() - index;
            if left > 1 {
                let _ = write!(rules, " -m statistic --mode random --probability {:.8}", 1.0 / left as f64);
            }
            let _ = writeln!(rules, " -j DNAT --to-destination {address}:{port}");
        }
    }
    let _ = write!(rules, "COMMIT\n*filter\n:{CHAIN} - [0:0]\n");
    for vip in vips.iter().filter(|vip| vip.backends.is_empty()) {
        let to = format!("-d {}/32 -p tcp -m tcp --dport {}", vip.address, vip.port);
        let _ = writeln!(rules, "-A {CHAIN} {to} -j REJECT --reject-with icmp-port-unreachable");
    }
    rules.push_str("COMMIT\n");
    rules
}

fn restore(holder: Option<ProcessId>, table: &str) -> Result<()> {
    let command = ["iptables-restore", "--noflush", "--wait"];
    in_namespace(holder, &command, table)
}

fn iptables(holder: Option<ProcessId>, table: &str, arguments: &str) -> Result<()> {
    let command: Vec<&str> = ["iptables", "--wait", "-t", table].into_iter().chain(arguments.split(' ')).collect();
    in_namespace(holder, &command, "")
}

/// Runs a command in a machine's network, or the master's.
pub(crate) fn in_namespace(holder: Option<ProcessId>, command: &[&str], input: &str) -> Result<()> {
    let (program, rest) = command.split_first().expect("a command has a first word");
    match holder {
        None => run_with_input(program, rest, input)?,
        Some(holder) => {
            let target = holder.pid.to_string();
            run_with_input("nsenter", ["--target", &target, "--net", "--"].iter().chain(command), input)?
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(backends: &[(Ipv4Addr, u16)]) -> Vip {
        Vip { address: Ipv4Addr::new(192, 168, 0, 1), port: 443, backends: backends.to_vec() }
    }

    #[test]
    fn a_vip_without_a_healthy_task_refuses_connections() {
        let rules = rules(&[vip(&[])]);
        assert!(!rules.contains("DNAT"), "{rules}");
        assert!(
            rules.contains("-A LAB-VIP -d 192.168.0.1/32 -p tcp -m tcp --dport 443 -j REJECT --reject-with icmp-port-unreachable\n"),
            "{rules}"
        );
    }

    #[test]
    fn the_last_backend_takes_all_that_the_others_left() {
        let agent = Ipv4Addr::new(192, 168, 1, 80);
        let rules = rules(&[vip(&[(agent, 1), (agent, 2)])]);
        let lines: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A")).collect();
        assert_eq!(
            lines,
            [
                "-A LAB-VIP -d 192.168.0.1/32 -p tcp -m tcp --dport 443 -m statistic --mode random --probability 0.50000000 -j DNAT --to-destination 192.168.1.80:1",
                "-A LAB-VIP -d 192.168.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.168.1.80:2",
            ]
        );
    }

    #[test]
    fn a_named_vip_always_has_the_same_address_in_11() {
        let address = named_vip_address("registry.marathon");
        assert_eq!(address, named_vip_address("registry.marathon"));
        assert_ne!(address, named_vip_address("other.marathon"));
        assert_eq!(address.octets()[0], 11);
    }
}
