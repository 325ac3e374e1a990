//! The page for people at `/`: one file without anything from elsewhere, and the parts of it that change while it is open.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use handlebars::Handlebars;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::discovery::Discovery;
use super::report::{AgentReport, Report};
use super::unix_now;
use crate::exposure::Way;
use crate::in_order::InOrder as _;
use crate::operator::snippets::{self, Snippet};
use crate::operator::{Client, instructions};
use crate::options::AuthKind;

const STYLE: &str = include_str!("../templates/page.css");
const SCRIPT: &str = include_str!("../templates/page.js");
const ICON: &str = include_str!("../../universe/icon.svg");
/// Without JavaScript there are no more rows than these.
const ROWS: usize = 200;
const DAY: i64 = 24 * 60 * 60;

/// Ids of the elements that the parts are the inside of, and their templates.
const PARTS: [(&str, &str); 3] = [
    ("top", include_str!("../templates/page-top.html.hbs")),
    ("middle", include_str!("../templates/page-middle.html.hbs")),
    ("bottom", include_str!("../templates/page-bottom.html.hbs")),
];

static TEMPLATES: LazyLock<Handlebars<'static>> = LazyLock::new(|| {
    let mut templates = Handlebars::new();
    for (name, text) in PARTS.into_iter().chain([("page", include_str!("../templates/page.html.hbs"))]) {
        templates.register_template_string(name, text).expect("the templates are part of this program and tested");
    }
    templates
});

/// The page's own style and script are named by their digests: whatever else got into it would do nothing.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |text: &str| STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types parts",
        digest(STYLE),
        digest(SCRIPT)
    )
});

/// The headers that the page comes with.
pub(super) fn headers() -> [(HeaderName, &'static str); 4] {
    [
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
}

/// Renders the page. Every value is escaped by the template engine.
pub(super) fn render(report: &Report, discovery: Option<&Discovery>, actions: &[String]) -> String {
    let mut agents: Vec<&AgentReport> = report.agents.iter().map(AsRef::as_ref).collect();
    let urgency = |agent: &AgentReport| ["failed", "pending"].iter().position(|state| *state == agent.state).unwrap_or(2);
    crate::in_order::sort_by(&mut agents, |one, other| urgency(one).cmp(&urgency(other)));
    let row = |agent: &&AgentReport| {
        let AgentReport { host, role, state, detail, sysctl, proven_at, .. } = agent;
        let proven = proven_at.and_then(|at| i64::try_from(at).ok()).map_or("none".into(), |at| date(at, true));
        json!({ "host": host, "role": role, "state": state, "detail": detail, "sysctl": sysctl, "proven": proven })
    };
    fill(
        "page",
        &json!({
            "service": if report.service.is_empty() { "private-registry" } else { &report.service },
            "icon": STANDARD.encode(ICON),
            "style": STYLE,
            "script": SCRIPT,
            "parts": parts(report, discovery, actions),
            "rows": agents.iter().take(ROWS).map(row).collect::<Vec<_>>(),
            "shown": ROWS,
            "total": agents.len(),
            "cut": agents.len() > ROWS,
        }),
    )
}

/// What changes while the page is open, but for the agents: HTML by the id of the element that it is the inside of.
pub(super) fn parts(report: &Report, discovery: Option<&Discovery>, actions: &[String]) -> BTreeMap<&'static str, String> {
    let count = |state: &str| report.agents.iter().filter(|agent| agent.state == state).count();
    let (total, trusted, pending, failed) = (report.agents.len(), count("trusted"), count("pending"), count("failed"));
    let (level, word) = level(report, failed);
    // One agent of ten thousand is to be seen, too.
    let width = |count: usize| if count == 0 { 0 } else { (count * 1000 / total.max(1)).max(4) };
    let now = unix_now();
    let values = json!({
        "report": short(report),
        "level": level,
        "word": word,
        "total": total, "trusted": trusted, "pending": pending, "failed": failed,
        "bar": {
            "trusted": 1000 - width(pending) - width(failed),
            "pending": width(pending),
            "rest": 1000 - width(failed),
            "failed": width(failed),
        },
        "rotating": report.rotating.as_ref().map(|rotating| json!({
            "reason": rotating.reason,
            "since": date(rotating.since, true),
            "steps": steps(rotating.switched),
        })),
        "authorities": authorities(report, now),
        "leaves": report.registries.iter().filter(|task| task.fingerprint.is_some()).map(|task| json!({
            "host": task.host, "names": task.names, "fingerprint": task.fingerprint, "ends": task.not_after.map(|end| until(end, now)),
        })).collect::<Vec<_>>(),
        "rooms": report.registries.iter().filter_map(|task| Some(json!({ "host": task.host, "text": task.room_in_words()? }))).collect::<Vec<_>>(),
        "ca": !report.ca.is_empty() && !report.insecure,
        "sentence": sentence(&report.registry),
        "login": login(report, discovery),
        "cache_of": discovery.and_then(|discovery| discovery.cache_of.as_ref()),
        "names": discovery.map(addresses),
        "snippets": shown_snippets(report, discovery),
        "actions": actions,
    });
    PARTS.into_iter().map(|(id, _)| (id, fill(id, &values))).in_order()
}

fn fill(template: &str, values: &Value) -> String {
    TEMPLATES.render(template, values).unwrap_or_else(|error| format!("the page's template is broken: {error}"))
}

/// The report without its agents, which may be ten thousand, and which no part shows.
fn short(report: &Report) -> Value {
    json!({
        "summary": report.summary, "trouble": report.trouble, "problems": report.problems, "advice": report.advice, "next": report.next,
        "insecure": report.insecure, "public_ca": report.public_ca, "read_only": report.read_only, "rotation": report.rotation,
        "registries": report.registries, "others": report.others, "collections": report.collections, "copies": report.copies, "preload": report.preload,
    })
}

/// The state in a word, and how it is coloured.
fn level(report: &Report, failed: usize) -> (&'static str, &'static str) {
    match report {
        Report { refused: true, .. } => ("bad", "Options refused"),
        Report { trouble: Some(_), .. } => ("bad", "Cluster does not answer"),
        _ if failed > 0 => ("bad", "Needs you"),
        Report { converged: false, .. } => ("wait", "At work"),
        Report { problems, .. } if !problems.is_empty() => ("wait", "Works, with problems"),
        _ => ("good", "All is well"),
    }
}

fn steps(switched: bool) -> Value {
    let all = ["next CA made known", "next CA signs", "earlier CA trusted no more"];
    let at = if switched { 1 } else { 0 };
    let step = |(n, text)| json!({ "text": text, "current": n == at, "state": if n < at { "past" } else { "" } });
    all.into_iter().enumerate().map(step).collect()
}

/// Which of the CA certificates signs, and what the others are there for.
fn authorities(report: &Report, now: i64) -> Vec<Value> {
    let signs = report.certificates.iter().position(|certificate| Some(&certificate.fingerprint) == report.ca_fingerprint.as_ref());
    let role = |at: usize| match signs {
        Some(signs) if at < signs => "next",
        Some(signs) if at > signs => "earlier, still trusted",
        Some(_) => "signs",
        None => "trusted",
    };
    let certificates = report.certificates.iter().enumerate();
    let one = |(at, c): (usize, &super::CertificateReport)| json!({ "role": role(at), "subject": c.subject, "fingerprint": c.fingerprint, "ends": until(c.not_after, now) });
    certificates.map(one).collect()
}

fn addresses(discovery: &Discovery) -> Vec<Value> {
    let by = |way: Way| match way {
        Way::Vip => "VIP",
        Way::NamedVip => "named VIP",
        Way::MesosDns => "Mesos-DNS",
        Way::HostPort => "the agent's own port",
        Way::MarathonLb => "Marathon-LB",
        Way::Inside => "names.inside",
        Way::Extra => "names.extra",
    };
    let from = |from: &str| match from {
        "inside" => "inside",
        "outside" => "outside",
        _ => "not known",
    };
    discovery.names.iter().map(|name| json!({ "name": name.name, "by": by(name.by), "from": from(&name.from) })).collect()
}

fn login(report: &Report, discovery: Option<&Discovery>) -> String {
    match discovery.map(|discovery| discovery.login) {
        None => "not known yet".into(),
        Some(AuthKind::None) => "none: everybody may come in".into(),
        Some(AuthKind::Token) => "tokens of an authorisation server".into(),
        Some(AuthKind::Htpasswd) => {
            let users = &report.users;
            let who = match &users.elsewhere {
                Some(held) => format!("users in {held}"),
                None => format!("{} users", users.names.len()),
            };
            if users.settled { who } else { format!("{who}; the registry is about to learn them") }
        }
    }
}

fn shown_snippets(report: &Report, discovery: Option<&Discovery>) -> Vec<Value> {
    let Some(inside) = snippets::prefix(report) else { return Vec::new() };
    let takes_login = discovery.is_some_and(|discovery| discovery.login != AuthKind::None);
    let pushes = !discovery.map_or(report.read_only, |discovery| discovery.read_only);
    let commands = |name: &str| {
        let mut text = if takes_login { format!("docker login {name}\n") } else { String::new() };
        if pushes {
            // Writing to a string cannot fail.
            let _ = write!(text, "docker tag app:1 {name}/team/app:1\ndocker push {name}/team/app:1\n");
        }
        text + &format!("docker pull {name}/team/app:1")
    };
    let mut all = Vec::new();
    let mut add = |id: &str, title: &str, note: &str, text: Option<String>| {
        let text = text.as_deref().map(str::trim_end).filter(|text| !text.is_empty());
        all.extend(text.map(|text| json!({ "id": id, "title": title, "note": note, "text": text, "open": id == "use-inside" })));
    };
    add("use-inside", "On every agent", "Nothing has to be installed or restarted for it.", Some(commands(&inside)));
    let outside = discovery.and_then(|discovery| discovery.preferred_outside.as_deref());
    add("use-outside", "On a machine outside, that trusts the CA", "", outside.map(commands));
    if !report.public_ca {
        for (id, title, client) in [
            ("trust-docker", "Let docker outside trust it", Client::Docker),
            ("trust-podman", "Let podman and skopeo outside trust it", Client::Podman),
            ("trust-containerd", "Let containerd outside trust it", Client::Containerd),
            ("trust-macos", "Let Docker Desktop on a Mac trust it", Client::Macos),
            ("trust-windows", "Let Docker Desktop on Windows trust it", Client::Windows),
        ] {
            add(id, title, "", Some(instructions(client, report)));
        }
    }
    let app = if takes_login { Snippet::MarathonAppLogin } else { Snippet::MarathonApp };
    add(
        "use-app",
        "In an app of Marathon",
        if takes_login { "file:///etc/docker.tar.gz has .docker/config.json in it." } else { "" },
        snippets::snippet(app, report),
    );
    let mount = format!("docker run --privileged --volume {} \u{2026}", snippets::mount());
    add(
        "use-mount",
        "In a docker that runs inside a container",
        "The whole folder, so that it follows when the CA is replaced.",
        Some(mount),
    );
    add("use-dind", "As an app with a dockerd of its own", "", snippets::snippet(Snippet::DockerInDocker, report));
    add("use-jenkins", "In Jenkins", "", snippets::snippet(Snippet::Jenkins, report));
    add("use-gitlab", "In a GitLab runner", "", snippets::snippet(Snippet::GitlabRunner, report));
    all
}

/// With a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(
        || "Nothing is known of it yet.".into(),
        |first| format!("{}{}.", first.to_uppercase(), rest.as_str().trim_end_matches('.')),
    )
}

fn date(unix: i64, with_time: bool) -> String {
    let Ok(at) = OffsetDateTime::from_unix_timestamp(unix) else { return "at no time".into() };
    let day = at.date();
    if with_time { format!("{day} {:02}:{:02} UTC", at.hour(), at.minute()) } else { day.to_string() }
}

fn until(end: i64, now: i64) -> String {
    let when = match end.saturating_sub(now).div_euclid(DAY) {
        ..0 => "it has ended".to_string(),
        0 => "in less than a day".into(),
        1 => "in a day".into(),
        days if days >= 730 => format!("in {} years", days / 365),
        days => format!("in {days} days"),
    };
    format!("{} ({when})", date(end, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    #[test]
    fn what_comes_from_outside_is_escaped_and_links_are_relative() {
        let hostile = "<script>alert(1)</script>\"onload='x'";
        let agent =
            serde_json::from_value(json!({ "host": hostile, "role": hostile, "state": hostile, "detail": hostile, "sysctl": hostile }));
        let report = Report {
            service: hostile.into(),
            summary: hostile.into(),
            problems: vec![hostile.into()],
            agents: vec![agent.unwrap()],
            ..Report::default()
        };
        let page = render(&report, None, &[hostile.into()]);
        assert_eq!(page.matches("<script>").count(), 1, "{page}");
        assert!(page.contains("&lt;script&gt;") && !page.contains("onload='x'"), "{page}");
        for outside in ["href=\"/", "src=", "http://", "https://", "//cdn", "url("] {
            assert!(!page.replace(SCRIPT, "").contains(outside), "the page leads elsewhere: {outside}");
        }
        assert!(page.contains("The registry has no name yet."), "{page}");
    }

    #[test]
    fn the_policy_names_the_script_and_the_style_that_the_page_has() {
        let page = render(&Report::default(), None, &[]);
        for (begin, end) in [("<style>", "</style>"), ("<script>", "</script>")] {
            let text = page.split_once(begin).unwrap().1.split_once(end).unwrap().0;
            let digest = STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
            assert!(POLICY.contains(&format!("'sha256-{digest}'")), "{begin}");
        }
        assert!(!POLICY.contains("unsafe") && !page.contains(" style=") && !page.contains(" onclick="));
    }

    #[test]
    fn the_page_says_how_the_registry_is_used_by_its_own_name() {
        let report = Report { names: vec!["images.example.com:5000".into()], ..Report::default() };
        let page = render(&report, None, &[]);
        assert!(page.contains("docker push images.example.com:5000/team/app:1"), "{page}");
        assert!(page.contains("&quot;image&quot;: &quot;images.example.com:5000/team/app:1&quot;"), "{page}");
        assert!(page.contains("--volume /etc/docker/certs.d:/etc/docker/certs.d:ro"), "{page}");
    }

    #[test]
    fn whoever_has_to_log_in_or_cannot_push_is_not_told_otherwise() {
        let given =
            json!({ "auth": { "kind": "htpasswd" }, "registry": { "read_only": true }, "names": { "external_host": "203.0.113.5" } });
        let options = Options::from_json(&given).unwrap();
        let report = Report { names: vec!["192.168.0.1:443".into()], ..Report::default() };
        let discovery = Discovery::new(&options, &"10.0.0.1".parse().unwrap(), &report);
        let page = parts(&report, Some(&discovery), &[]).remove("bottom").unwrap();
        assert!(page.contains("docker login 192.168.0.1\ndocker pull 192.168.0.1/team/app:1") && !page.contains("docker push"), "{page}");
        assert!(page.contains("docker login 203.0.113.5:5000"), "{page}");
        assert!(page.contains("file:///etc/docker.tar.gz"), "{page}");
    }

    #[test]
    fn without_script_the_first_agents_are_those_that_need_somebody_and_the_page_says_how_many_there_are() {
        let agent = |n: usize| {
            let state = if n == 900 { "failed" } else { "trusted" };
            serde_json::from_value(
                json!({ "host": format!("10.0.0.{n}"), "role": "private", "state": state, "detail": "", "sysctl": "set" }),
            )
            .unwrap()
        };
        let report = Report { agents: (0..1000).map(agent).collect(), ..Report::default() };
        let page = render(&report, None, &[]);
        assert!(page.contains("It shows the first 200 of 1000 agents"), "{page}");
        assert_eq!(page.matches("<tr role=\"row\"><th scope=\"row\"").count(), 200);
        assert!(page.find("10.0.0.900<").unwrap() < page.find("10.0.0.1<").unwrap());
        assert!(page.contains("999 trusted \u{b7} 0 pending \u{b7} 1 failed") && page.contains(">Needs you<"), "{page}");
    }

    #[test]
    fn the_state_is_told_in_a_word() {
        let converged = || Report { converged: true, ..Report::default() };
        assert_eq!(level(&converged(), 0), ("good", "All is well"));
        assert_eq!(level(&converged(), 1).0, "bad");
        assert_eq!(level(&Report { problems: vec![String::new()], ..converged() }, 0).0, "wait");
        assert_eq!(level(&Report::default(), 0), ("wait", "At work"));
        assert_eq!(level(&Report { trouble: Some(String::new()), ..converged() }, 0).1, "Cluster does not answer");
        assert_eq!(level(&Report { refused: true, ..Report::default() }, 0).1, "Options refused");
    }

    #[test]
    fn what_is_copied_in_is_shown_with_what_went_wrong() {
        let image = json!({ "image": "docker.io/library/redis:7", "state": "failed", "bytes": null, "copied": null, "detail": "no route" });
        let report = Report { preload: vec![serde_json::from_value(image).unwrap()], ..Report::default() };
        let part = parts(&report, None, &[]).remove("middle").unwrap();
        assert!(part.contains("<li class=\"bad\"><code>docker.io/library/redis:7</code>: failed; no route</li>"), "{part}");
    }

    #[test]
    fn it_is_told_which_ca_signs_and_when_each_ends() {
        let one = |fingerprint: &str| super::super::CertificateReport {
            subject: "CN=x".into(),
            fingerprint: fingerprint.into(),
            not_after: 100 * DAY,
        };
        let report = Report { certificates: vec![one("b"), one("a")], ca_fingerprint: Some("a".into()), ..Report::default() };
        let roles =
            |report: &Report| authorities(report, DAY).iter().map(|ca| ca["role"].as_str().unwrap().to_string()).collect::<Vec<_>>();
        assert_eq!(roles(&report), ["next", "signs"]);
        assert_eq!(roles(&Report { ca_fingerprint: Some("b".into()), ..report.clone() }), ["signs", "earlier, still trusted"]);
        assert_eq!(authorities(&report, DAY)[0]["ends"], "1970-04-11 (in 99 days)");
        assert!(until(5, 6).ends_with("(it has ended)"));
    }
}
