//! How things stand, for people and programs: what `/v1/status` answers and what the job's table shows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::others::{self, Others};
use super::parts::{CertificateReport, RegistryReport, RotationReport};
use super::rows::{Agents, Tally};
use super::state::Stage;
use super::users::UsersReport;
use crate::certificates::{Certificate, CertificateError};
use crate::names::{Host, HostPort};
use crate::options::{Faults, Options, OtherRegistry};
use crate::plan::{self, Observed, Plan, RegistryTask, RowState, Wanted};
use crate::protocol::{CopyKind, NodeStatus, PreloadedImage, Proof, ProofOutcome, RegistryPhase, SysctlState};
use crate::security;

/// The answer of `GET /v1/status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Name of the service.
    pub service: String,
    /// The state in one sentence.
    pub summary: String,
    /// Whether every active agent is proven, the registry serves without a problem, and nothing is left to do.
    pub converged: bool,
    /// Whether the options were refused; `problems` then has one line a fault.
    pub refused: bool,
    /// Every registered agent.
    pub agents: Vec<Arc<AgentReport>>,
    /// Registries that this package has not installed.
    #[serde(default)]
    pub others: Vec<OtherReport>,
    /// The registry in one sentence.
    pub registry: String,
    /// Names that clients may use.
    pub names: Vec<String>,
    /// Fingerprint (SHA-256, hex) of the CA.
    pub ca_fingerprint: Option<String>,
    /// CA certificates, PEM, newest first.
    pub ca: String,
    /// Whether the registry's certificate is from a public CA, which clients trust already.
    #[serde(default)]
    pub public_ca: bool,
    /// Unix time at which the registry's certificate ends.
    pub leaf_not_after: Option<i64>,
    /// Whether the registry speaks plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Whether the registry takes no pushes.
    #[serde(default)]
    pub read_only: bool,
    /// Who may use the registry.
    #[serde(default)]
    pub users: UsersReport,
    /// What is being done or waited for.
    pub next: Vec<String>,
    /// What stands in the way.
    pub problems: Vec<String>,
    /// What works, and can be done better.
    #[serde(default)]
    pub advice: Vec<String>,
    /// Why the last pass failed, if it did; the rest is then what the pass before saw.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Active runs of the init job.
    pub orders: Vec<OrderReport>,
    /// What a run of the job `….rotate` does, where the CA is not this service's own to replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
    /// Garbage collections that are asked for, and the last one that has ended.
    #[serde(default)]
    pub collections: Vec<CollectionReport>,
    /// Backups and restores that are asked for, and the last one that has ended.
    #[serde(default)]
    pub copies: Vec<CopyReport>,
    /// Images of other registries that are copied in.
    #[serde(default)]
    pub preload: Vec<PreloadedImage>,
    /// Version of the registry that runs, as it says itself.
    #[serde(default)]
    pub registry_version: Option<String>,
    /// CA certificates in force, newest first.
    #[serde(default)]
    pub certificates: Vec<CertificateReport>,
    /// How far the replacement of the CA is, while it is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotating: Option<RotationReport>,
    /// The registry's tasks that answer.
    #[serde(default)]
    pub registries: Vec<RegistryReport>,
    /// What the agents' rows come to, for the metrics.
    #[serde(skip)]
    pub tally: Arc<Tally>,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Host name as Mesos shows it.
    pub host: String,
    /// `public` or `private`.
    pub role: String,
    /// `trusted`, `pending` or `failed`.
    pub state: String,
    /// Why, and what to do.
    pub detail: String,
    /// The sysctl: `set`, `already set`, `pending`, `failed`, `unmanaged`, or `unknown`; after a colon, why it is not set.
    pub sysctl: String,
    /// Path of the private key of a registry made by hand that lies there for whoever gets to read it.
    #[serde(default)]
    pub exposed_key: Option<String>,
    /// What was removed there of such a registry.
    #[serde(default)]
    pub cleaned: Vec<String>,
    /// Unix time at which a client here has last accepted the certificate of a registry.
    #[serde(default)]
    pub proven_at: Option<u64>,
}

/// Another registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OtherReport {
    /// Where it is.
    pub name: String,
    /// Where its CA comes from, in the words of the options.
    pub source: String,
    /// Fingerprints (SHA-256, hex) of the certificates that it is trusted by; none while they cannot be had.
    pub fingerprints: Vec<String>,
    /// On how many agents every client has contacted it and accepted its certificate.
    pub proven: usize,
    /// What stands in the way, and where.
    pub detail: String,
}

/// A run that asks for a garbage collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionReport {
    /// Metronome's id of the run.
    pub run: String,
    /// Whether nothing is deleted.
    pub dry_run: bool,
    /// How it stands, or what has come of it.
    pub said: String,
    /// Whether it has come to its end.
    pub ended: bool,
    /// Whether it has failed.
    pub failed: bool,
}

/// A run that asks for a backup or restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Metronome's id of the run.
    pub run: String,
    /// From where to where.
    pub kind: CopyKind,
    /// How it stands, or what has come of it.
    pub said: String,
    /// Whether it has come to its end.
    pub ended: bool,
    /// Whether it has failed.
    pub failed: bool,
}

/// What any run that is waited for by itself has in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct RunReport {
    pub run: String,
    pub said: String,
    pub ended: bool,
    pub failed: bool,
}

impl Report {
    /// Garbage collections, backups and restores.
    pub fn works(&self) -> impl Iterator<Item = RunReport> + '_ {
        let collections = self.collections.iter().map(|c| (&c.run, &c.said, c.ended, c.failed));
        let copies = self.copies.iter().map(|c| (&c.run, &c.said, c.ended, c.failed));
        collections.chain(copies).map(|(run, said, ended, failed)| RunReport { run: run.clone(), said: said.clone(), ended, failed })
    }
}

/// A run that asked for convergence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OrderReport {
    /// Metronome's id of the run.
    pub run: String,
    /// Whether every agent has been proven anew since it was seen.
    pub fresh: bool,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        wanted: &Wanted,
        observed: &Observed,
        plan: &Plan,
        Agents { rows: agents, tally }: Agents,
        runs: Vec<(String, bool)>,
        certificates: &[String],
    ) -> Result<Self, CertificateError> {
        let trusted = tally.count(RowState::Trusted);
        let (registry, serving) = registry(wanted, observed);
        let registry = if options.registry.read_only && serving { format!("{registry}, for pulls only") } else { registry };
        // Each says that the registry does not do what it is there for, or not as the options have it. Whom agents trust is another matter.
        let well = observed.registries.iter().all(|task| task.status.errors.is_empty());
        let as_wanted = if wanted.registry { serving && well } else { observed.registry.is_none() };
        let upstream = &options.proxy.remote_url;
        let registry =
            if serving && !upstream.is_empty() { format!("{registry}, a cache of {upstream} that takes no pushes") } else { registry };
        let converged = trusted == agents.len() && !agents.is_empty() && as_wanted && plan.actions.is_empty() && plan.waiting.is_empty();
        let total = agents.len();
        let summary = match wanted.ca.rotation.as_ref() {
            None if wanted.registry => format!("{trusted} of {total} agents are proven to trust the registry; the registry is {registry}."),
            None if observed.registry.is_none() => format!("{trusted} of {total} agents are as wanted; no registry is to run."),
            None => format!("{trusted} of {total} agents are as wanted; the registry is being switched off."),
            // Agents that have not got the newest bundle yet trust what is served all the same.
            Some(rotation) => {
                let what = match rotation.stage {
                    Stage::Published => format!("the new one is known beside it on {trusted} of {total} agents"),
                    Stage::Switched => "the new one signs, and the old one goes when it is proven everywhere".into(),
                };
                format!("The CA is being replaced, because {}: {what}; the registry is {registry}.", rotation.reason)
            }
        };
        let exposed = (tally.exposed > 0).then(|| exposed_keys(options, &agents)).flatten();
        let warning: String = options.warnings().iter().map(|warning| format!("{warning} ")).collect();
        let names = options.trusted_names(&plan::registry_host(observed, options)).iter().map(|name| name.name.to_string()).collect();
        let newest = certificates.first().map(|pem| Certificate::parse_pem(pem)).transpose()?;
        Ok(Self {
            service: options.service.name.clone(),
            summary: warning + &summary + if exposed.is_some() { " A private key is exposed." } else { "" },
            insecure: options.is_insecure(),
            read_only: options.registry.read_only,
            users: UsersReport::default(),
            converged,
            refused: false,
            agents,
            others: Vec::new(),
            registry,
            names,
            ca_fingerprint: newest.map(|certificate| certificate.fingerprint()),
            ca: certificates.concat(),
            public_ca: false,
            leaf_not_after: observed.registries.iter().filter_map(|task| task.status.leaf_not_after).min(),
            next: plan
                .actions
                .iter()
                .map(ToString::to_string)
                .chain(plan.waiting.iter().map(|what| format!("waiting for {what}")))
                .collect(),
            problems: options
                .warnings()
                .into_iter()
                .map(String::from)
                .chain(observed.registries.iter().flat_map(|task| task.status.errors.clone()))
                .chain(exposed)
                .collect(),
            advice: Vec::new(),
            trouble: None,
            orders: runs.into_iter().map(|(run, fresh)| OrderReport { run, fresh }).collect(),
            rotation: security::what_a_rotation_does(options, &plan::registry_host(observed, options)),
            collections: Vec::new(),
            copies: Vec::new(),
            preload: Vec::new(),
            registry_version: None,
            certificates: CertificateReport::of(certificates)?,
            rotating: wanted.ca.rotation.as_ref().map(RotationReport::new),
            registries: observed.registries.iter().map(RegistryReport::new).collect(),
            tally: Arc::new(tally),
        })
    }

    /// Adds how the other registries stand. None of them keeps the service from being done: they are others' affair.
    pub(super) fn with_others(mut self, options: &Options, wanted: &Wanted, observed: &Observed, others: &Others) -> Self {
        if options.others.is_empty() {
            return self;
        }
        let digest = plan::order_digest(&wanted.trust);
        let nodes: Vec<(&Host, &Arc<NodeStatus>)> = observed.nodes.iter().filter(|(_, status)| status.order_digest == digest).collect();
        let known = others.trusted();
        let mut registries: Vec<&OtherRegistry> = options.others.iter().collect();
        crate::in_order::sort_by(&mut registries, |a, b| a.name.cmp(&b.name));
        self.others = registries
            .into_iter()
            .map(|other| {
                let trust = known.iter().find(|trust| trust.name == other.name);
                let pems = trust.iter().flat_map(|trust| &trust.certificates);
                let fingerprints = pems.filter_map(|pem| Certificate::parse_pem(pem).ok()).map(|certificate| certificate.fingerprint());
                let seen = Seen::on(&nodes, &other.name);
                OtherReport {
                    name: other.name.to_string(),
                    source: others::source(&other.ca),
                    fingerprints: fingerprints.collect(),
                    proven: if trust.is_some() { seen.proven } else { 0 },
                    detail: others.problem(&other.name).or_else(|| seen.problem()).unwrap_or_default(),
                }
            })
            .collect();
        let problem = |other: &OtherReport| format!("{}: {}", other.name, other.detail);
        self.problems.extend(self.others.iter().filter(|other| !other.detail.is_empty()).map(problem));
        let proven = self.others.iter().filter(|other| other.proven == self.agents.len()).count();
        self.summary += &format!(" Every agent is proven to trust {proven} of {} other registries.", self.others.len());
        self
    }

    pub(super) fn starting(options: &Options, awaited: &str) -> Self {
        Self {
            service: options.service.name.clone(),
            summary: format!("Nothing is done yet; waiting for {awaited}."),
            next: vec![format!("waiting for {awaited}")],
            ..Self::default()
        }
    }

    pub(super) fn refused(faults: &Faults) -> Self {
        Self {
            summary: "The options cannot be used; nothing in the cluster was changed.".into(),
            refused: true,
            problems: faults.0.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    /// The state in one line, with the agents that are waited for: a few by name.
    pub fn progress(&self) -> String {
        let waiting: Vec<&str> = self.agents.iter().filter(|agent| agent.state != "trusted").map(|agent| agent.host.as_str()).collect();
        if waiting.is_empty() { self.summary.clone() } else { format!("{} Waiting for {}.", self.summary, few(&waiting)) }
    }

    /// One row per agent, aligned, for a log or a terminal; and where there are other registries, one row for each of them.
    pub fn table(&self) -> String {
        let agent = |a: &Arc<AgentReport>| [a.host.clone(), a.role.clone(), a.state.clone(), a.sysctl.clone(), a.detail.clone()];
        let agents = aligned(["AGENT", "ROLE", "STATE", "SYSCTL", "DETAIL"], self.agents.iter().map(agent));
        if self.others.is_empty() {
            return agents;
        }
        let of = self.agents.len();
        let other = |o: &OtherReport| [o.name.clone(), format!("{} of {of}", o.proven), o.source.clone(), o.detail.clone()];
        agents + "\n" + &aligned(["OTHER REGISTRY", "PROVEN", "CA FROM", "DETAIL"], self.others.iter().map(other))
    }
}

/// A table whose columns are aligned, but for the last one.
pub(crate) fn aligned<const N: usize>(title: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(title.map(String::from)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N - 1).map(width).collect();
    let line = |row: &[String; N]| {
        let mut text: String = (0..N - 1).map(|i| format!("{:<w$}  ", row[i], w = widths[i])).collect();
        text += &row[N - 1];
        text.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

/// What the agents' clients have seen of another registry.
#[derive(Default)]
struct Seen {
    proven: usize,
    refused: Vec<String>,
    unreachable: Vec<String>,
}

impl Seen {
    fn on(nodes: &[(&Host, &Arc<NodeStatus>)], name: &HostPort) -> Self {
        let (spellings, mut seen) = (name.spellings(), Self::default());
        for (host, status) in nodes {
            let proofs: Vec<&Proof> = status.proofs.iter().filter(|proof| spellings.contains(&proof.name)).collect();
            let first = |outcome| proofs.iter().find(|proof| proof.outcome == outcome);
            let said = |proof: &Proof| format!("{} on {host} says: {}", proof.client, proof.detail.as_deref().unwrap_or("nothing"));
            if let Some(proof) = first(ProofOutcome::Untrusted) {
                seen.refused.push(said(proof));
            } else if let Some(proof) = first(ProofOutcome::Unreachable) {
                seen.unreachable.push(said(proof));
            } else if !proofs.is_empty() {
                seen.proven += 1;
            }
        }
        seen
    }

    fn problem(&self) -> Option<String> {
        let more = |all: &[String]| if all.len() > 1 { format!(" (and {} more)", all.len() - 1) } else { String::new() };
        if let Some(first) = self.refused.first() {
            return Some(format!(
                "its certificate is not accepted: {first}{}; compare the CA with the one that it is signed by",
                more(&self.refused)
            ));
        }
        self.unreachable.first().map(|first| format!("it cannot be reached: {first}{}", more(&self.unreachable)))
    }
}

/// The registry in one sentence, and whether all of it serves.
fn registry(wanted: &Wanted, observed: &Observed) -> (String, bool) {
    let is_serving = |task: &&RegistryTask| task.status.phase == RegistryPhase::Serving;
    let total = observed.registry.as_ref().map_or(0, |app| app.tasks.len()).max(observed.registries.len());
    let serving = observed.registries.iter().filter(is_serving).count();
    let wanted_number = wanted.documents.registry["instances"].as_u64().map_or(1, |number| number as usize);
    let hosts: Vec<&str> = observed.registries.iter().filter(is_serving).map(|task| task.status.host.as_str()).collect();
    let other = observed.registries.iter().find(|task| !is_serving(task)).map(|RegistryTask { status, .. }| {
        status.errors.first().cloned().unwrap_or_else(|| format!("{} on {}", words(&status.phase), status.host))
    });
    let sentence = match other {
        _ if total == 0 && !wanted.registry => "switched off".to_string(),
        None if serving > 0 && serving == total.max(wanted_number) => format!("serving on {}", hosts.join(" and ")),
        Some(other) if total.max(wanted_number) == 1 => other,
        None if wanted.takeover.is_some() => "still the one made by hand".to_string(),
        None if serving == 0 => "starting, or it does not answer".to_string(),
        other => {
            let rest = other.unwrap_or_else(|| "another one is starting, or does not answer".into());
            format!("serving on {serving} of {} agents; {rest}", total.max(wanted_number))
        }
    };
    // Where one does not serve, the sentence says why already.
    let troubled = observed.registries.iter().filter(is_serving).find_map(|task| Some((&task.status.host, task.status.errors.first()?)));
    let sentence = match troubled {
        Some((host, error)) => format!("{sentence}, with a problem on {host}: {error}"),
        None => sentence,
    };
    (sentence, wanted.registry && serving > 0 && serving == total.max(wanted_number))
}

/// Whoever has read the key of a registry made by hand is that registry to every agent that trusts its certificate.
fn exposed_keys(options: &Options, agents: &[Arc<AgentReport>]) -> Option<String> {
    let holders = || agents.iter().filter_map(|agent| Some((agent.exposed_key.as_deref()?, agent.host.as_str())));
    let (path, _) = holders().next()?;
    let hosts: Vec<&str> = holders().map(|(_, host)| host).collect();
    let remedy = match options.takeover.clean_agents {
        true => "It is removed, together with that certificate, as soon as the registry serves with its new one",
        false => "Set takeover.clean_agents to true to have it removed, together with that certificate",
    };
    Some(format!(
        "EXPOSED KEY: {path} on {} is the private key of a registry made by hand; whoever has read it can pretend to be the registry \
         to all agents that trust the certificate beside it. {remedy}.",
        few(&hosts)
    ))
}

/// A few by name, the rest by number.
fn few(names: &[&str]) -> String {
    match names.len() {
        n if n <= 8 => names.join(", "),
        n => format!("{} and {} more", names[..8].join(", "), n - 8),
    }
}

impl AgentReport {
    /// `node`: what the agent's node says.
    pub(super) fn new(row: plan::Row, node: Option<&NodeStatus>) -> Self {
        let sysctl = node.map_or("unknown".to_string(), sysctl_words);
        let role = if row.public { "public" } else { "private" };
        let exposed_key = node.and_then(|status| status.exposed_key.clone());
        let cleaned = node.map(|status| status.cleaned.clone()).unwrap_or_default();
        let accepted = node.iter().flat_map(|status| &status.proofs).filter(|proof| proof.outcome == ProofOutcome::Trusted);
        let proven_at = accepted.map(|proof| proof.at).max();
        let mut detail = row.detail;
        if exposed_key.is_some() {
            detail += "; holds an exposed key";
        }
        if !cleaned.is_empty() {
            detail += &format!("; removed what the tutorial had put there: {}", cleaned.join(", "));
        }
        Self {
            host: row.host.to_string(),
            role: role.into(),
            state: row.state.word().into(),
            detail,
            sysctl,
            exposed_key,
            cleaned,
            proven_at,
        }
    }
}

fn sysctl_words(status: &NodeStatus) -> String {
    let looked = status.passes > 0 && status.errors.is_empty();
    match (status.sysctl.state, status.sysctl.value.as_deref()) {
        (SysctlState::Set, _) => "set".into(),
        (SysctlState::AlreadySet, None | Some("1")) => "already set".into(),
        (SysctlState::AlreadySet, Some(value)) => format!("already set: {value}"),
        (SysctlState::Pending, _) if looked => "pending: nf_conntrack is not loaded".into(),
        (SysctlState::Pending, _) => "pending".into(),
        (SysctlState::Failed, Some(value)) => format!("failed: still {value}"),
        (SysctlState::Failed, None) => "failed".into(),
        (SysctlState::Unmanaged, Some(value)) => format!("unmanaged: {value}"),
        (SysctlState::Unmanaged, None) => "unmanaged".into(),
    }
}

pub(super) fn words(phase: &RegistryPhase) -> &'static str {
    match phase {
        RegistryPhase::AwaitingCertificate => "waiting for its certificate",
        RegistryPhase::Serving => "serving",
        RegistryPhase::Restarting => "restarting",
        RegistryPhase::Retired => "retired",
        RegistryPhase::Failed => "failing",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::rows::Rows;
    use super::*;

    #[test]
    fn progress_names_a_few_agents_and_counts_the_rest() {
        let agent = |n: usize| AgentReport {
            host: format!("10.0.0.{n}"),
            role: "private".into(),
            state: "pending".into(),
            detail: String::new(),
            sysctl: "set".into(),
            exposed_key: None,
            cleaned: vec![],
            proven_at: None,
        };
        let report = Report { summary: "Twenty.".into(), agents: (0..20).map(agent).map(Arc::new).collect(), ..Report::default() };
        assert_eq!(
            report.progress(),
            "Twenty. Waiting for 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7 and 12 more."
        );
    }

    #[test]
    fn a_registry_whose_store_does_not_answer_is_not_converged_though_every_agent_trusts_it() {
        use crate::dcos::marathon::App;
        use crate::plan::tests::{agent, answering, node, registry_status, task, wanted};
        use crate::protocol::{NodePhase, RegistryStatus};
        let wanted = wanted();
        let full = "the disk of /data is full: 3 MiB are left; make room";
        let report = |errors: &[&str]| {
            let errors = errors.iter().map(ToString::to_string).collect();
            let observed = Observed {
                agents: vec![agent("10.0.0.1")],
                nodes: answering([node("10.0.0.1", &plan::order_digest(&wanted.trust), NodePhase::Trusted, 1)]),
                registry: Some(App { spec: wanted.documents.registry.clone(), tasks: vec![] }),
                registries: vec![task(RegistryStatus { host: "10.0.0.1".into(), errors, ..registry_status("leaf") })],
                ..Observed::default()
            };
            let options = Options::from_json(&serde_json::json!({})).unwrap();
            let rows = Rows::default().look(&wanted, &observed, Instant::now());
            Report::new(&options, &wanted, &observed, &Plan::default(), rows, vec![], &[]).unwrap()
        };
        let well = report(&[]);
        assert!(well.converged, "{well:#?}");
        assert_eq!(well.summary, "1 of 1 agents are proven to trust the registry; the registry is serving on 10.0.0.1.");
        let ill = report(&[full]);
        assert!(!ill.converged && ill.problems.contains(&full.to_string()));
        assert_eq!(ill.agents[0].state, "trusted");
        assert_eq!(
            ill.summary,
            "1 of 1 agents are proven to trust the registry; the registry is serving on 10.0.0.1, with a problem on 10.0.0.1: the disk \
             of /data is full: 3 MiB are left; make room."
        );
    }

    #[test]
    fn exposed_keys_are_a_problem_with_agents_reason_and_remedy() {
        let agent = |n: usize| AgentReport {
            host: format!("10.0.0.{n}"),
            exposed_key: (n > 1).then(|| "/etc/privateregistry/certs/domain.key".into()),
            ..crate::json::of_text(r#"{"host":"","role":"","state":"","detail":"","sysctl":""}"#).unwrap()
        };
        let said = |agents: usize, clean: bool| {
            let options = Options::from_json(&serde_json::json!({ "takeover": { "clean_agents": clean } })).unwrap();
            exposed_keys(&options, &(0..agents).map(agent).map(Arc::new).collect::<Vec<_>>())
        };
        assert_eq!(said(2, false), None);
        assert_eq!(
            said(4, false).unwrap(),
            "EXPOSED KEY: /etc/privateregistry/certs/domain.key on 10.0.0.2, 10.0.0.3 is the private key of a registry made by hand; whoever \
             has read it can pretend to be the registry to all agents that trust the certificate beside it. Set takeover.clean_agents to true \
             to have it removed, together with that certificate."
        );
        assert!(said(20, true).unwrap().contains("10.0.0.9 and 10 more is the private key"));
        assert!(
            said(20, true)
                .unwrap()
                .ends_with("It is removed, together with that certificate, as soon as the registry serves with its new one.")
        );
    }

    #[test]
    fn why_the_sysctl_is_not_set_is_told() {
        let mut status: NodeStatus = serde_json::from_value(serde_json::json!({
            "service": "s", "executor": "", "host": "", "order_version": 1, "order_digest": "", "phase": "trusted", "files": [],
            "sysctl": { "state": "pending", "value": null, "found": null }, "proofs": [], "errors": [], "passes": 0,
        }))
        .unwrap();
        assert_eq!(sysctl_words(&status), "pending");
        status.passes = 1;
        assert_eq!(sysctl_words(&status), "pending: nf_conntrack is not loaded");
        (status.sysctl.state, status.sysctl.value) = (SysctlState::Failed, Some("0".into()));
        assert_eq!(sysctl_words(&status), "failed: still 0");
        status.sysctl.state = SysctlState::Unmanaged;
        assert_eq!(sysctl_words(&status), "unmanaged: 0");
    }

    #[test]
    fn the_table_is_aligned_and_has_one_row_per_agent() {
        let agent = |host: &str, detail: &str| AgentReport {
            host: host.into(),
            role: "private".into(),
            state: "trusted".into(),
            detail: detail.into(),
            sysctl: "set".into(),
            exposed_key: None,
            cleaned: vec![],
            proven_at: None,
        };
        let agents = [agent("10.0.0.1", "proven by docker"), agent("10.0.0.100", "")].map(Arc::new).to_vec();
        let report = Report { agents, ..Report::default() };
        assert_eq!(
            report.table(),
            "AGENT       ROLE     STATE    SYSCTL  DETAIL\n\
             10.0.0.1    private  trusted  set     proven by docker\n\
             10.0.0.100  private  trusted  set\n"
        );
    }
}
