//! What the controller counts and measures, for Prometheus: `GET /metrics`. `docs/metrics.md` explains every name.
//!
//! Nothing has a label with more than a few values, so that a cluster of 10,000 agents makes as many series as one of ten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;

use super::report::Report;
use super::rows::Tally;
use crate::certificates::Certificate;
use crate::dcos::calls::{BUCKETS, Calls, Histogram};
use crate::in_order::InOrder as _;
use crate::plan::{Action, Observed, Wanted};
use crate::protocol::{Order, RegistryPhase, Room};

/// Every name with its type and what it says. The order is that of the page.
const NAMES: [(&str, &str, &str); 20] = [
    ("private_registry_build_info", "gauge", "Always 1; the labels say which program the controller is."),
    ("private_registry_converged", "gauge", "1 if every agent is proven, the registry serves without a problem and nothing is left to do."),
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
    ("private_registry_storage_size_bytes", "gauge", "Size of the disk on which the images lie; not there for object stores."),
    ("private_registry_storage_free_bytes", "gauge", "What is free of that disk."),
    ("private_registry_images_bytes", "gauge", "What the images take of that disk, counted about every quarter of an hour."),
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
    seen: Option<Seen>,
}

/// How things stood at the last pass that came to its end.
struct Seen {
    at: i64,
    converged: bool,
    tally: Arc<Tally>,
    newest: u64,
    up: bool,
    registries: BTreeMap<&'static str, usize>,
    leaf_ends: Option<i64>,
    ca_ends: Option<i64>,
    cas: usize,
    room: Option<Room>,
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
        let collections = report.collections.iter().filter(|c| !c.dry_run).map(|c| (&c.run, "collection", c.ended, c.failed));
        let copies = report.copies.iter().map(|c| (&c.run, "copy", c.ended, c.failed));
        let ended: Vec<_> = collections.chain(copies).filter(|(_, _, ended, _)| *ended).collect();
        for (run, kind, _, failed) in &ended {
            if !counted.runs.contains(*run) {
                *counted.jobs.entry((kind, if *failed { "failed" } else { "done" })).or_default() += 1;
            }
        }
        counted.runs = ended.into_iter().map(|(run, ..)| run.clone()).in_order();
        counted.seen = Some(Seen::new(wanted, observed, report));
    }

    /// The page, in Prometheus' text format.
    pub(super) fn text(&self, binary_sha256: &str) -> String {
        let counted = self.counted();
        let mut page = Page(String::new());
        page.one("private_registry_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("sha256", binary_sha256)], 1);
        if let Some(seen) = &counted.seen {
            seen.write(&mut page);
            if let Some(oldest) = seen.tally.oldest_proof {
                page.one("private_registry_oldest_proof_age_seconds", &[], oldest.elapsed().as_secs());
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
            tally: Arc::clone(&report.tally),
            newest: version_of(wanted).unwrap_or(0),
            up: wanted.registry && observed.all_registries_answer() && registries["serving"] >= instances,
            registries,
            leaf_ends: report.leaf_not_after,
            ca_ends: signing.or(cas.first()).map(Certificate::not_after),
            cas: cas.len(),
            // Only one registry has a disk.
            room: observed.registries.iter().find_map(|task| task.status.room),
        }
    }

    fn write(&self, page: &mut Page) {
        page.one("private_registry_converged", &[], u8::from(self.converged));
        page.title("private_registry_agents");
        for ((state, role), count) in &self.tally.agents {
            page.sample("private_registry_agents", &[("state", state), ("role", role)], count);
        }
        page.one("private_registry_bundle_version", &[], self.newest);
        page.title("private_registry_bundle_agents");
        // Versions go on for ever, and a series for each of them would, too.
        let mut versions: Vec<_> = self.tally.bundles.iter().rev().collect();
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
        if let Some(room) = self.room {
            page.one("private_registry_storage_size_bytes", &[], room.total_bytes);
            page.one("private_registry_storage_free_bytes", &[], room.free_bytes);
            if let Some(bytes) = room.images_bytes {
                page.one("private_registry_images_bytes", &[], bytes);
            }
        }
        page.one("private_registry_last_pass_timestamp_seconds", &[], self.at);
    }
}

/// Version of the order that every node should have taken.
fn version_of(wanted: &Wanted) -> Option<u64> {
    let payload = base64::engine::general_purpose::STANDARD.decode(&wanted.trust.payload).ok()?;
    Some(crate::json::of_bytes::<Order>(&payload).ok()?.version)
}

/// An action's kind in one word.
pub(crate) fn kind(action: &Action) -> &'static str {
    match action {
        Action::PutPod { .. } => "put_pod",
        Action::PutRegistry { .. } => "put_registry",
        Action::TakeOver { .. } => "take_over",
        Action::RetireRegistry => "retire_registry",
        Action::DeleteRegistry { .. } => "delete_registry",
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
        Action::Restart { .. } => "restart",
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;

    /// Reads the text format strictly: names, and every series once.
    fn series(text: &str) -> BTreeMap<String, f64> {
        let (mut all, mut title) = (BTreeMap::new(), String::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                title = help.split_once(' ').unwrap().0.to_string();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                assert_eq!(kind.split_once(' ').unwrap().0, title);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let rest = name.strip_prefix(&title).unwrap_or_else(|| panic!("{name} stands below {title}"));
                assert!(["", "_bucket", "_sum", "_count"].contains(&rest), "{line}");
                assert!(series.len() == name.len() || series.ends_with("\"}"), "{line}");
                let value: f64 = value.parse().unwrap();
                assert!(all.insert(series.to_string(), value).is_none(), "{series} is there twice");
            }
        }
        all
    }

    fn seen() -> Seen {
        Seen {
            at: 1000,
            converged: true,
            tally: Arc::new(Tally {
                agents: BTreeMap::from([(("trusted", "private"), 3)]),
                bundles: BTreeMap::from([(9, 3), (8, 1), (7, 1), (2, 1)]),
                oldest_proof: Some(Instant::now()),
                exposed: 0,
            }),
            newest: 9,
            up: true,
            registries: BTreeMap::from([("serving", 1)]),
            leaf_ends: Some(2000),
            ca_ends: Some(3000),
            cas: 1,
            room: Some(Room { total_bytes: 100, free_bytes: 40, images_bytes: Some(7) }),
        }
    }

    fn filled() -> Metrics {
        let metrics = Metrics::default();
        metrics.counted().seen = Some(seen());
        metrics.counted().jobs.insert(("copy", "failed"), 1);
        metrics.acted(&Action::RetireRegistry);
        metrics.passed(Duration::from_millis(300), true);
        metrics
    }

    #[test]
    fn the_page_says_how_things_stand_and_counts_what_was_done() {
        let metrics = filled();
        metrics.acted(&Action::RetireRegistry);
        let page = series(&metrics.text("ab\"c"));
        for (name, value) in [
            ("private_registry_converged", 1.0),
            (r#"private_registry_agents{state="trusted",role="private"}"#, 3.0),
            (r#"private_registry_bundle_agents{version="9"}"#, 3.0),
            (r#"private_registry_bundle_agents{version="other"}"#, 2.0),
            ("private_registry_ca_expiry_timestamp_seconds", 3000.0),
            ("private_registry_storage_free_bytes", 40.0),
            ("private_registry_images_bytes", 7.0),
            (r#"private_registry_actions_total{kind="retire_registry"}"#, 2.0),
            (r#"private_registry_reconcile_duration_seconds_bucket{le="0.25"}"#, 0.0),
            (r#"private_registry_reconcile_duration_seconds_bucket{le="0.5"}"#, 1.0),
            (r#"private_registry_reconcile_duration_seconds_bucket{le="+Inf"}"#, 1.0),
        ] {
            assert_eq!(page.get(name), Some(&value), "{name} in {page:#?}");
        }
        assert!(page.keys().any(|name| name.contains(r#"sha256="ab\"c""#)));
        metrics.passed(Duration::ZERO, false);
        let page = series(&metrics.text(""));
        assert_eq!((page["private_registry_converged"], page["private_registry_reconcile_errors_total"]), (0.0, 1.0));
    }

    #[test]
    fn every_name_is_on_the_page_and_documented_and_no_other() {
        let page = filled().text("");
        let titles: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(titles.iter().collect::<BTreeSet<_>>().len(), titles.len());
        let documented = include_str!("../../docs/metrics.md");
        for (name, kind, help) in NAMES {
            assert!(titles.contains(&name), "{name} is not on the page");
            assert!(documented.contains(&format!("| `{name}` | {kind} | {help} |")), "docs/metrics.md lacks or belies {name}");
        }
        assert_eq!(documented.lines().filter(|line| line.starts_with("| `private_registry_")).count(), NAMES.len());
        assert_eq!(titles.len(), NAMES.len());
    }

    /// Names of ours in an expression.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("private_registry_")).collect()
    }

    fn is_known(name: &str) -> bool {
        NAMES.iter().any(|(known, kind, _)| {
            let parts: &[&str] = if *kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            name.strip_prefix(known).is_some_and(|rest| parts.contains(&rest))
        })
    }

    #[test]
    fn dashboard_and_alerts_ask_for_names_that_there_are() {
        let board: Value = crate::json::of_text(include_str!("../../docs/monitoring/dashboard.json")).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let asked: BTreeSet<String> = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().unwrap())
            .map(|target| target["expr"].as_str().unwrap().to_string())
            .collect();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len());
        assert_eq!(board["templating"]["list"][1]["query"]["query"], json!("label_values(private_registry_build_info, job)"));
        let alerts = include_str!("../../docs/monitoring/alerts.yml");
        let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
        assert!(rules.len() >= 10);
        let mut expressions = asked;
        for rule in rules {
            for key in ["expr: ", "severity: ", "summary: ", "description: "] {
                assert_eq!(rule.matches(key).count(), 1, "{key}in {rule}");
            }
            expressions.insert(rule.lines().find_map(|line| line.trim().strip_prefix("expr: ")).unwrap().to_string());
        }
        for expression in &expressions {
            let names = names(expression);
            assert!(!names.is_empty(), "{expression}");
            names.iter().for_each(|name| assert!(is_known(name), "{name} in {expression}"));
            assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{expression}");
        }
        let used: BTreeSet<&str> = expressions.iter().flat_map(|expression| names(expression)).collect();
        for (name, ..) in NAMES {
            assert!(used.iter().any(|used| used.starts_with(name)), "nobody looks at {name}");
        }
    }
}
