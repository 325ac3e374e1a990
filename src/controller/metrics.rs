//! What the controller counts and measures, for Prometheus: `GET /metrics`. `docs/metrics.md` explains every name.
//!
//! Nothing has a label with more than a few values, so that a cluster of 10,000 agents makes as many series as one of ten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;

use super::report::Report;
use crate::certificates::Certificate;
use crate::dcos::calls::{BUCKETS, Calls, Histogram};
use crate::names::Host;
use crate::plan::{Action, Observed, Wanted};
use crate::protocol::{NodePhase, Order, RegistryPhase};

/// Every name with its type and what it says. The order is that of the page.
const NAMES: [(&str, &str, &str); 17] = [
    ("private_registry_build_info", "gauge", "Always 1; the labels say which program the controller is."),
    ("private_registry_converged", "gauge", "1 if every agent is proven, the registry serves and nothing is left to do."),
    ("private_registry_agents", "gauge", "Registered agents by state and role."),
    ("private_registry_oldest_proof_age_seconds", "gauge", "Seconds since the agent that was proven longest ago was proven."),
    ("private_registry_bundle_version", "gauge", "Version of the trust bundle that every agent should have."),
    (
        "private_registry_bundle_agents",
        "gauge",
        "Agents that answer, by the version of the trust bundle they have; `other` is an older one than the two newest.",
    ),
    ("private_registry_registry_up", "gauge", "1 if every registry that is wanted serves; 0 also where none is wanted."),
    ("private_registry_registries", "gauge", "Tasks of the registry that answer, by phase."),
    (
        "private_registry_certificate_expiry_timestamp_seconds",
        "gauge",
        "Unix time at which the first certificate that a registry serves with ends.",
    ),
    ("private_registry_ca_expiry_timestamp_seconds", "gauge", "Unix time at which the CA that signs ends."),
    ("private_registry_ca_certificates", "gauge", "CA certificates that agents trust; more than one while a CA is replaced."),
    ("private_registry_last_pass_timestamp_seconds", "gauge", "Unix time of the last pass that came to its end."),
    ("private_registry_reconcile_duration_seconds", "histogram", "Duration of the controller's passes."),
    ("private_registry_reconcile_errors_total", "counter", "Passes that have failed."),
    ("private_registry_api_call_duration_seconds", "histogram", "Duration of calls of the cluster's services, by service and outcome."),
    ("private_registry_actions_total", "counter", "What the controller has done, by kind."),
    ("private_registry_jobs_total", "counter", "Garbage collections, backups and restores that have ended, by kind and outcome."),
];

/// What is counted since the controller's start, and how things stood at the last pass.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Calls of the cluster's services.
    pub(super) calls: Arc<Calls>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    passes: Histogram,
    failed: u64,
    actions: BTreeMap<&'static str, u64>,
    jobs: BTreeMap<(&'static str, &'static str), u64>,
    /// Runs of jobs that are counted and still known.
    runs: BTreeSet<String>,
    /// When each node's passes were last seen to grow, and what they were.
    proofs: BTreeMap<Host, (u64, Instant)>,
    seen: Option<Seen>,
}

/// How things stood at the last pass that came to its end.
struct Seen {
    at: i64,
    converged: bool,
    agents: BTreeMap<(&'static str, &'static str), usize>,
    newest: u64,
    bundles: BTreeMap<u64, usize>,
    up: bool,
    registries: BTreeMap<&'static str, usize>,
    leaf_ends: Option<i64>,
    ca_ends: Option<i64>,
    cas: usize,
}

impl Metrics {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Nothing panics while it holds the lock.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn passed(&self, took: Duration, well: bool) {
        let mut counted = self.counted();
        counted.passes.add(took);
        counted.failed += u64::from(!well);
        if let Some(seen) = counted.seen.as_mut().filter(|_| !well) {
            seen.converged = false;
        }
    }

    pub(super) fn acted(&self, action: &Action) {
        *self.counted().actions.entry(kind(action)).or_default() += 1;
    }

    pub(super) fn see(&self, wanted: &Wanted, observed: &Observed, report: &Report) {
        let mut counted = self.counted();
        let now = Instant::now();
        let known: BTreeSet<&str> = report.agents.iter().map(|agent| agent.host.as_str()).collect();
        counted.proofs.retain(|host, _| known.contains(host.to_string().as_str()));
        for (host, status) in observed.nodes.iter().filter(|(_, status)| status.phase == NodePhase::Trusted) {
            let proof = counted.proofs.entry(host.clone()).or_insert((status.passes, now));
            if proof.0 != status.passes {
                *proof = (status.passes, now);
            }
        }
        let collections = report.collections.iter().filter(|c| !c.dry_run).map(|c| (&c.run, "collection", c.ended, c.failed));
        let copies = report.copies.iter().map(|c| (&c.run, "copy", c.ended, c.failed));
        let ended: Vec<_> = collections.chain(copies).filter(|(_, _, ended, _)| *ended).collect();
        for (run, kind, _, failed) in &ended {
            if !counted.runs.contains(*run) {
                *counted.jobs.entry((kind, if *failed { "failed" } else { "done" })).or_default() += 1;
            }
        }
        counted.runs = ended.into_iter().map(|(run, ..)| run.clone()).collect();
        counted.seen = Some(Seen::new(wanted, observed, report));
    }

    /// The page, in Prometheus' text format.
    pub(super) fn text(&self, binary_sha256: &str) -> String {
        let counted = self.counted();
        let mut page = Page(String::new());
        page.one("private_registry_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("sha256", binary_sha256)], 1);
        if let Some(seen) = &counted.seen {
            seen.write(&mut page);
            let oldest = counted.proofs.values().map(|(_, at)| at.elapsed()).max();
            if let Some(oldest) = oldest {
                page.one("private_registry_oldest_proof_age_seconds", &[], oldest.as_secs());
            }
        }
        page.title("private_registry_reconcile_duration_seconds");
        page.histogram("private_registry_reconcile_duration_seconds", &[], &counted.passes);
        page.one("private_registry_reconcile_errors_total", &[], counted.failed);
        page.title("private_registry_api_call_duration_seconds");
        for ((service, outcome), histogram) in self.calls.all() {
            let labels = [("service", service), ("outcome", outcome)];
            page.histogram("private_registry_api_call_duration_seconds", &labels, &histogram);
        }
        page.title("private_registry_actions_total");
        for (kind, count) in &counted.actions {
            page.sample("private_registry_actions_total", &[("kind", kind)], count);
        }
        page.title("private_registry_jobs_total");
        for ((kind, outcome), count) in &counted.jobs {
            page.sample("private_registry_jobs_total", &[("kind", kind), ("outcome", outcome)], count);
        }
        page.0
    }
}

impl Seen {
    fn new(wanted: &Wanted, observed: &Observed, report: &Report) -> Self {
        let mut agents: BTreeMap<_, _> = BTreeMap::new();
        for state in ["trusted", "pending", "failed"] {
            for role in ["private", "public"] {
                let count = report.agents.iter().filter(|agent| agent.state == state && agent.role == role).count();
                agents.insert((state, role), count);
            }
        }
        let mut bundles = BTreeMap::new();
        observed.nodes.values().for_each(|status| *bundles.entry(status.order_version).or_default() += 1);
        let phase = |phase: &RegistryPhase| match phase {
            RegistryPhase::AwaitingCertificate => "awaiting_certificate",
            RegistryPhase::Serving => "serving",
            RegistryPhase::Restarting => "restarting",
            RegistryPhase::Retired => "retired",
            RegistryPhase::Failed => "failed",
        };
        let mut registries = BTreeMap::from(["awaiting_certificate", "serving", "restarting", "retired", "failed"].map(|word| (word, 0)));
        observed.registries.iter().for_each(|task| *registries.entry(phase(&task.status.phase)).or_default() += 1);
        let instances = wanted.documents.registry["instances"].as_u64().map_or(1, |number| number as usize);
        let cas = Certificate::parse_bundle(&report.ca).unwrap_or_default();
        let signing = cas.iter().find(|ca| report.ca_fingerprint.as_ref() == Some(&ca.fingerprint()));
        Self {
            at: wanted.now,
            converged: report.converged,
            agents,
            newest: version_of(wanted).unwrap_or(0),
            bundles,
            up: wanted.registry && observed.all_registries_answer() && registries["serving"] >= instances,
            registries,
            leaf_ends: report.leaf_not_after,
            ca_ends: signing.or(cas.first()).map(Certificate::not_after),
            cas: cas.len(),
        }
    }

    fn write(&self, page: &mut Page) {
        page.one("private_registry_converged", &[], u8::from(self.converged));
        page.title("private_registry_agents");
        for ((state, role), count) in &self.agents {
            page.sample("private_registry_agents", &[("state", state), ("role", role)], count);
        }
        page.one("private_registry_bundle_version", &[], self.newest);
        page.title("private_registry_bundle_agents");
        // Versions go on for ever, and a series for each of them would, too.
        let mut versions: Vec<_> = self.bundles.iter().rev().collect();
        let older: usize = versions.drain(versions.len().min(2)..).map(|(_, count)| count).sum();
        for (version, count) in versions {
            page.sample("private_registry_bundle_agents", &[("version", &version.to_string())], count);
        }
        page.sample("private_registry_bundle_agents", &[("version", "other")], older);
        page.one("private_registry_registry_up", &[], u8::from(self.up));
        page.title("private_registry_registries");
        for (phase, count) in &self.registries {
            page.sample("private_registry_registries", &[("phase", phase)], count);
        }
        if let Some(end) = self.leaf_ends {
            page.one("private_registry_certificate_expiry_timestamp_seconds", &[], end);
        }
        if let Some(end) = self.ca_ends {
            page.one("private_registry_ca_expiry_timestamp_seconds", &[], end);
        }
        page.one("private_registry_ca_certificates", &[], self.cas);
        page.one("private_registry_last_pass_timestamp_seconds", &[], self.at);
    }
}

/// Version of the order that every node should have taken.
fn version_of(wanted: &Wanted) -> Option<u64> {
    let payload = base64::engine::general_purpose::STANDARD.decode(&wanted.trust.payload).ok()?;
    Some(serde_json::from_slice::<Order>(&payload).ok()?.version)
}

/// An action's kind in one word.
fn kind(action: &Action) -> &'static str {
    match action {
        Action::PutPod { .. } => "put_pod",
        Action::PutRegistry { .. } => "put_registry",
        Action::TakeOver { .. } => "take_over",
        Action::RetireRegistry => "retire_registry",
        Action::DeleteRegistry => "delete_registry",
        Action::PutJob { .. } => "put_job",
        Action::PutSchedule { .. } => "put_schedule",
        Action::DropSchedule { .. } => "drop_schedule",
        Action::StartRun { .. } => "start_run",
        Action::SendTrust { .. } => "send_trust",
        Action::BeginRotation { .. } => "begin_rotation",
        Action::DropRotation => "drop_rotation",
        Action::SwitchCa { .. } => "switch_ca",
        Action::RetireCa { .. } => "retire_ca",
        Action::SendUsers { .. } => "send_users",
        Action::Certify { .. } => "certify",
    }
}

/// Text in Prometheus' exposition format (version 0.0.4).
struct Page(String);

impl Page {
    /// What stands before the samples of a name.
    fn title(&mut self, name: &str) {
        let (_, kind, help) = NAMES.iter().find(|(known, ..)| *known == name).unwrap_or(&("", "untyped", ""));
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.line(format_args!("{name}{labels} {value}\n"));
    }

    fn one(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.title(name);
        self.sample(name, labels, value);
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        for (end, count) in BUCKETS.iter().zip(histogram.within) {
            self.sample(&bucket, &[labels, &[("le", &end.to_string())]].concat(), count);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), histogram.count);
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
        self.sample(&format!("{name}_count"), labels, histogram.count);
    }

    fn line(&mut self, text: std::fmt::Arguments) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(text);
    }
}
