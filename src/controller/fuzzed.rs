//! For fuzzing: what tasks say of themselves, or whoever answers in their place, and what of it the page shows.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::events::View;
use super::metrics::Metrics;
use super::page;
use super::report::Report;
use super::rows::Rows;
use crate::dcos::marathon::App;
use crate::dcos::mesos::{Agent, Ports, Resources};
use crate::distribution::Published;
use crate::documents::{self, Facts};
use crate::names::Host;
use crate::options::Options;
use crate::plan::{self, Ca, Leaf, Observed, RegistryTask, Wanted};
use crate::protocol::{ImagesPage, NodeStatus, RegistryStatus, SignedOrder};
use crate::{preload, security};

/// Unix time of all that happens here.
const NOW: i64 = 1_800_000_000;
const ADDRESS: &str = "10.0.0.1:31000";

/// The documents of the default options.
static WANTED: LazyLock<(Options, Wanted)> = LazyLock::new(|| {
    let options = Options::from_json(&json!({})).expect("the defaults are valid");
    let documents = documents::render(&options, &facts()).expect("the templates are part of this program");
    let trust = SignedOrder { payload: "e30=".into(), signature: String::new() };
    let leaves = [(ADDRESS.to_string(), Leaf { fingerprint: "leaf".into(), renew_at: NOW + 1 })].into();
    let ca = Ca { deadline: 60, ..Ca::default() };
    (
        options,
        Wanted {
            documents,
            trust,
            now: NOW,
            leaves,
            ca,
            registry: true,
            retirement: 0,
            retirement_is_late: false,
            takeover: None,
            users: None,
        },
    )
});

/// What documents need beside options.
pub(crate) fn facts() -> Facts {
    let published = |text: &str| Published { variable: text.into(), secret: None };
    Facts {
        registry_host: Host::Ip([10, 0, 0, 1].into()),
        home: Host::Ip([10, 0, 0, 1].into()),
        binary_sha256: "00".into(),
        registry_image: "registry:2.8.3".into(),
        upstream_certificates: String::new(),
        order_key: String::new(),
        package_uri: "http://universe.example.com/private-registry".into(),
        options: BTreeMap::new(),
        jobs_have_secrets: true,
        first_order: published("{}"),
        layout: crate::shards::Layout::One,
        enrolment_key: published(""),
        enrolment_id: String::new(),
    }
}

/// Statuses, one JSON after the other: what follows from them is planned, reported, measured and shown.
pub(crate) fn status(answers: &[u8]) {
    let (options, wanted) = &*WANTED;
    let mut observed = Observed::default();
    for answer in serde_json::Deserializer::from_slice(answers).into_iter::<Value>().flatten().take(8) {
        if let Ok(status) = serde_json::from_value::<NodeStatus>(answer.clone()) {
            let host = Host::Ip([10, 0, 0, observed.agents.len() as u8 + 1].into());
            let free = Resources { cpus: 1.0, mem: 1000.0, disk: 1000.0 };
            observed.agents.push(Agent {
                id: String::new(),
                host: host.clone(),
                public: false,
                active: true,
                recovered: false,
                free,
                ports: Ports::default(),
            });
            let _ = preload::lines(Some(&status));
            observed.nodes.insert(host, status.into());
        } else if let Ok(status) = serde_json::from_value::<RegistryStatus>(answer.clone()) {
            let _ = (security::names_lacking(&[], &status), security::end_nearing(&status, NOW));
            observed.registries.push(RegistryTask { address: ADDRESS.into(), status });
        } else if let Ok(page) = serde_json::from_value::<ImagesPage>(answer) {
            page.images.into_iter().for_each(super::images::judge_anything);
        }
    }
    observed.registry = Some(App { spec: wanted.documents.registry.clone(), tasks: Vec::new() });
    let plan = plan::converge(wanted, &observed);
    let rows = Rows::default().look(wanted, &observed, std::time::Instant::now());
    let report = Report::new(options, wanted, &observed, &plan, rows, Vec::new(), &[]);
    let report = report.expect("there is no certificate that could be damaged");
    let _ = (report.table(), report.progress());
    let metrics = Metrics::default();
    metrics.see(wanted, &observed, &report);
    let text = metrics.text("00");
    assert!(
        text.lines().all(|line| line.starts_with("# ") || line.starts_with("private_registry_") || line.starts_with("process_")),
        "{text}"
    );
    shown(&report, &[]);
}

/// Texts, one a line, in every place of the page that shows text from elsewhere.
pub(crate) fn page(texts: &[u8]) {
    let texts: Vec<String> = String::from_utf8_lossy(texts).split('\n').map(String::from).take(32).collect();
    let text = |n: usize| texts[n % texts.len()].clone();
    let report = filled(&text);
    shown(&report, &[text(20), text(21)]);
    // The same page with harmless texts has as many brackets and quotes: nothing that was filled in has become HTML.
    let harmless = filled(&|n| if text(n).is_empty() { String::new() } else { "x".into() });
    let of = |report: &Report, action: String| page::render(report, None, &[action]);
    let action = if text(20).is_empty() { "" } else { "x" };
    let (one, other) = (of(&report, text(20)), of(&harmless, action.into()));
    for sign in ["<", ">", "\"", "'", "`"] {
        assert_eq!(one.matches(sign).count(), other.matches(sign).count(), "{sign} in {one}");
    }
}

/// A report with texts in all its places.
fn filled(text: &dyn Fn(usize) -> String) -> Report {
    let report = json!({
        "service": text(0), "summary": text(1), "converged": true, "refused": false, "registry": text(2), "names": [], "ca_fingerprint": null,
        "ca": "pem", "leaf_not_after": null, "next": [text(3)], "problems": [text(4)], "advice": [text(5)], "trouble": text(6), "orders": [],
        "rotation": text(7),
        "agents": [{ "host": text(8), "role": text(9), "state": text(10), "detail": text(11), "sysctl": text(12), "proven_at": u64::MAX }],
        "others": [{ "name": text(13), "source": text(14), "fingerprints": [text(15)], "proven": 0, "detail": text(16) }],
        "certificates": [{ "subject": text(17), "fingerprint": text(18), "not_after": i64::MIN }],
        "registries": [{ "host": text(22), "status_address": text(23), "phase": text(24), "version": text(25), "starts": 7, "names": [text(26)],
            "fingerprint": text(27), "not_after": i64::MAX }],
        "preload": [{ "image": text(28), "state": "failed", "bytes": null, "copied": null, "detail": text(29) }],
    });
    serde_json::from_value(report).expect("it has the form of a report")
}

fn shown(report: &Report, actions: &[String]) {
    let html = page::render(report, None, actions);
    assert_eq!(html.matches("<script").count(), 1, "{html}");
    let view = View {
        parts: page::parts(report, None, actions),
        agents: report.agents.iter().map(|agent| (agent.host.clone(), View::row(agent))).collect(),
    };
    let event = view.event(None).expect("the first one has everything");
    assert!(event.starts_with("data: {") && event.trim_end_matches('\n').lines().count() == 1, "{event}");
}
