//! The page in a real browser: Chromium, spoken to by its debugging protocol over a pipe. What the page shows is a report made up here,
//! of as many agents as a test needs; server, events and page are the controller's own.
//!
//! `ci/page` runs these tests. Where `PAGE_PICTURES` names a directory, pictures of the page are put there.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use serde_json::{Value, json};

use super::discovery::Discovery;
use super::images::Source;
use super::report::{AgentReport, CollectionReport, Report};
use super::serve::{self, Shared};
use super::unix_now;
use super::users::UsersReport;
use super::{CertificateReport, RegistryReport, RotationReport};
use crate::options::Options;
use crate::protocol::{Image, ImagesPage, Room, media};

const PATIENCE: Duration = Duration::from_secs(30);
const HOSTILE: &str = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>{{x}}'\"`&amp;";

// What is shown.

/// An agent of a cluster of any size: of a hundred, one has failed and two are pending.
fn agent(n: usize) -> AgentReport {
    let (state, detail, sysctl) = match n % 100 {
        41 => (
            "failed",
            "/etc/docker is on a file system that is mounted read-only; mount it for writing, the node tries again by itself",
            "set",
        ),
        17 => ("pending", "not proven yet", "set"),
        73 => ("pending", "Marathon is starting the node", "unknown"),
        _ => ("trusted", "proven by curl and docker", if n.is_multiple_of(7) { "already set" } else { "set" }),
    };
    AgentReport {
        host: format!("10.{}.{}.{}", n / 62500, n / 250 % 250, n % 250 + 1),
        role: if n.is_multiple_of(10) { "public" } else { "private" }.into(),
        state: state.into(),
        detail: detail.into(),
        sysctl: sysctl.into(),
        exposed_key: None,
        cleaned: vec![],
        proven_at: (state == "trusted").then(|| u64::try_from(unix_now()).unwrap() - n as u64 % 240),
    }
}

/// A report of so many agents.
fn report(agents: usize) -> Report {
    let day = 24 * 60 * 60;
    let agents: Vec<Arc<AgentReport>> = (0..agents).map(agent).map(Arc::new).collect();
    let trusted = agents.iter().filter(|agent| agent.state == "trusted").count();
    let certificate = |n: u32, fingerprint: &str| CertificateReport {
        subject: format!("CN=private-registry CA {n}"),
        fingerprint: fingerprint.repeat(32),
        not_after: unix_now() + 3650 * day,
    };
    let names = ["192.168.0.1:443", "registry.marathon.l4lb.thisdcos.directory:5000", "203.0.113.5:5000"].map(String::from).to_vec();
    Report {
        service: "private-registry".into(),
        summary: format!("{trusted} of {} agents are proven to trust the registry; the registry is serving on 10.0.0.2.", agents.len()),
        converged: trusted == agents.len(),
        agents,
        registry: "serving on 10.0.0.2".into(),
        names: names.clone(),
        ca: "PEM".into(),
        ca_fingerprint: Some("5b".repeat(32)),
        certificates: vec![certificate(1, "5b")],
        registries: vec![RegistryReport {
            host: "10.0.0.2".into(),
            status_address: "192.168.1.80:31001".into(),
            phase: "serving".into(),
            version: Some("2.8.3".into()),
            starts: 1,
            names: ["192.168.0.1", "registry.marathon.l4lb.thisdcos.directory", "203.0.113.5"].map(String::from).to_vec(),
            fingerprint: Some("c4".repeat(32)),
            not_after: Some(unix_now() + 89 * day + 5),
            room: Some(Room { total_bytes: 100_000_000_000, free_bytes: 40_100_000_000, images_bytes: Some(1_234_000_000) }),
        }],
        users: UsersReport {
            kind: "htpasswd".into(),
            names: ["ci", "dev"].map(String::from).to_vec(),
            settled: true,
            ..UsersReport::default()
        },
        collections: vec![CollectionReport {
            run: "1".into(),
            dry_run: false,
            said: "42 blobs and 3 manifests were deleted; the store has shrunk by 1.9 GB in 12 s.".into(),
            ended: true,
            failed: false,
        }],
        ..Report::default()
    }
}

fn discovery(report: &Report) -> Discovery {
    let options = json!({ "auth": { "kind": "htpasswd" }, "names": { "external_host": "203.0.113.5" } });
    Discovery::new(&Options::from_json(&options).unwrap(), &"10.0.0.2".parse().unwrap(), report)
}

/// What the registry's task answers: two parts, an image that Mesos cannot read, and one with a name that no registry would take.
async fn listed(query: axum::extract::RawQuery) -> axum::Json<ImagesPage> {
    let image = |repository: &str, tag: &str, kind: &str| Image {
        repository: repository.into(),
        tag: tag.into(),
        digest: format!("sha256:{}", "9f".repeat(32)),
        media_type: kind.into(),
        amd64: None,
        size: 73_400_320,
    };
    axum::Json(if query.0.unwrap_or_default().ends_with("last=") {
        let images = [("base/debian", "12", media::SCHEMA_2), ("team/app", "1", media::SCHEMA_2), ("team/app", "2", media::OCI)];
        ImagesPage { images: images.map(|(repository, tag, kind)| image(repository, tag, kind)).to_vec(), next: Some("team/app:2".into()) }
    } else {
        ImagesPage { images: vec![image(HOSTILE, HOSTILE, media::SCHEMA_2)], next: None }
    })
}

/// The controller's server, and a task of the registry.
struct Server {
    shared: Arc<Shared>,
    url: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn new(report: Report) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared::new(Vec::new(), String::new()));
        let bind = || runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (listener, task) = (bind(), bind());
        let url = format!("http://{}/", listener.local_addr().unwrap());
        shared.offer_images(Some(Source::at(task.local_addr().unwrap().to_string(), std::time::Duration::from_secs(30))));
        runtime.spawn(async move { axum::serve(task, Router::new().route("/images", get(listed))).await });
        runtime.spawn(serve::serve(listener, Arc::clone(&shared)));
        for action in ["run the registry: it does not run yet", "sign a certificate for the registry: it has none"] {
            shared.acted(action.into());
        }
        shared.describe(discovery(&report));
        shared.publish(report);
        Self { shared, url, runtime: Some(runtime) }
    }

    /// A proxy before it that passes on nothing before an answer has ended.
    fn behind_a_proxy_that_holds_answers_back(&self) -> String {
        let runtime = self.runtime.as_ref().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, upstream) = (listener.local_addr().unwrap(), self.url.trim_end_matches('/').to_string());
        let http = reqwest::Client::new();
        let pass = move |uri: axum::http::Uri| async move {
            let answer = http.get(format!("{upstream}{uri}")).send().await.unwrap();
            let kind = answer.headers()["content-type"].clone();
            ([("content-type", kind)], answer.bytes().await.unwrap())
        };
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(pass)).await });
        format!("http://{address}/")
    }

    fn end(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

// The browser.

struct Browser {
    child: Child,
    /// Its profile; gone with it.
    _dir: tempfile::TempDir,
    to: ChildStdin,
    from: Receiver<Value>,
    events: VecDeque<Value>,
    session: String,
    last: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends all of its processes by itself; killed, it would leave some.
        let _ = writeln!(self.to, "{}\0", json!({ "id": 0, "method": "Browser.close" }));
        let since = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // The protocol is spoken on the descriptors 3 and 4.
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"])
            .args(["--remote-debugging-pipe", "--disable-background-networking", "--disable-extensions"])
            .arg(format!("--user-data-dir={}", dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { child, _dir: dir, to, from: receiver, events: VecDeque::new(), session: String::new(), last: 0 };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = session["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.size(1200, 900);
        browser
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        write!(self.to, "{message}\0").unwrap();
        self.to.flush().unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Disconnected) => panic!("chromium does not run; ci/page installs it"),
                Err(RecvTimeoutError::Timeout) => panic!("no answer to {method}"),
            };
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.events.push_back(answer);
        }
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] }));
    }

    fn eval(&mut self, script: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({ "expression": script, "returnByValue": true, "awaitPromise": true }));
        assert!(result["exceptionDetails"].is_null(), "{script}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    fn text(&mut self, script: &str) -> String {
        let value = self.eval(script);
        value.as_str().unwrap_or_else(|| panic!("{script} gives {value}")).into()
    }

    fn wait_for(&mut self, script: &str) {
        let since = Instant::now();
        while self.eval(script) != true {
            assert!(since.elapsed() < PATIENCE, "waited in vain for {script}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn opened_live(&mut self, server: &Server) {
        self.open(&server.url);
        self.wait_for("document.querySelector('#link')?.textContent === 'Live'");
    }

    fn key(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        let code = match key {
            "Tab" => 9,
            "Escape" => 27,
            "Backspace" => 8,
            _ => 0,
        };
        let press = json!({ "type": "keyDown", "key": key, "text": text, "windowsVirtualKeyCode": code });
        self.call("Input.dispatchKeyEvent", press);
        self.call("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code }));
    }

    fn picture(&mut self, name: &str, whole: bool) {
        let Some(dir) = std::env::var_os("PAGE_PICTURES") else { return };
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": whole }));
        let png = base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), png).unwrap();
    }

    /// What the browser has complained about since it was asked last: violations of the policy, exceptions, files that are not there.
    fn complaints(&mut self) -> Vec<Value> {
        self.eval("0");
        let is_complaint = |event: &Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
            _ => false,
        };
        self.events.drain(..).filter(is_complaint).collect()
    }
}

const ROWS: &str = "document.querySelectorAll('#rows > tr').length";

#[test]
#[ignore = "needs chromium: ci/page"]
fn a_keystroke_among_ten_thousand_agents_is_drawn_within_100_ms() {
    let server = Server::new(report(10_000));
    let mut browser = Browser::start();
    let since = Instant::now();
    browser.opened_live(&server);
    browser.wait_for("document.querySelector('#count').textContent === '10,000 agents'");
    println!("10,000 agents are there after {:.1} s", since.elapsed().as_secs_f64());
    browser.picture("ten-thousand", false);
    assert_eq!(browser.eval(ROWS), 100);
    assert_eq!(browser.text("document.querySelector('#rows td').textContent"), "failed");
    browser.eval(
        "window.took = []; new PerformanceObserver((list) => { for (const entry of list.getEntries()) if (entry.name === 'keydown' || \
         entry.name === 'input') took.push(entry.duration); }).observe({ type: 'event', durationThreshold: 16 }); 0",
    );
    browser.key("/");
    assert_eq!(browser.text("document.activeElement.id"), "search");
    let mut pressed = 0;
    for _ in 0..3 {
        for key in ["1", "0", ".", "0", ".", "3", "9", ".", "Backspace", "Backspace", "Backspace", "Escape"] {
            browser.key(key);
            // Long enough for it to be drawn before the next.
            browser.eval("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))");
            pressed += 1;
        }
    }
    let mut took: Vec<u64> =
        browser.eval("took").as_array().unwrap().iter().filter_map(Value::as_f64).map(|duration| duration as u64).collect();
    took.sort_unstable();
    println!("{pressed} keys; those of more than 16 ms, from the key to the picture, in ms: {took:?}");
    assert!(took.is_empty() || took[took.len() * 9 / 10] < 100, "a keystroke takes too long: {took:?}");
    // Without the machine's other work: the script and the layout alone.
    let worked = browser.eval(
        "(() => { const field = document.querySelector('#search'), all = []; for (const text of ['1', '10.0', '10.0.3', 'file system', '']) { \
         const began = performance.now(); field.value = text; field.dispatchEvent(new Event('input')); document.body.offsetHeight; \
         all.push(Math.round(performance.now() - began)); } return all; })()",
    );
    println!("script and layout of a keystroke in ms: {worked}");

    for key in "file 10.0".chars() {
        browser.key(&key.to_string());
    }
    browser.wait_for("document.querySelector('#count').textContent === '100 of 10,000 agents'");
    browser.picture("ten-thousand-searched", false);
    browser.key("Escape");
    browser.eval("document.querySelector('#states input[value=pending]').click(), 0");
    browser.wait_for("document.querySelector('#count').textContent === '200 of 10,000 agents'");
    browser.eval("document.querySelector('#states input[value=\"\"]').click(), 0");
    browser.eval(
        "(() => { const role = document.querySelector('#role'); role.value = 'public'; role.dispatchEvent(new Event('change')); })()",
    );
    browser.wait_for("document.querySelector('#count').textContent === '1,000 of 10,000 agents'");
    // More rows come as they are scrolled to.
    browser.eval("document.querySelector('#scroll').scrollTop = 1e6, 0");
    browser.wait_for(&format!("{ROWS} === 200"));
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
#[ignore = "needs chromium: ci/page"]
fn news_come_by_themselves_and_leave_search_scroll_and_focus_alone() {
    let mut server = Server::new(report(300));
    let mut browser = Browser::start();
    browser.opened_live(&server);
    browser.wait_for("document.querySelector('#count').textContent === '300 agents'");
    for key in "/10.".chars() {
        browser.key(&key.to_string());
    }
    browser.eval(
        "document.querySelector('#scroll').scrollTop = 900, window.scrollTo(0, 200), document.querySelector('#use-app').open = true, 0",
    );
    browser.wait_for("document.querySelector('#scroll').scrollTop === 900");
    browser.eval("window.first = document.querySelector('#rows > tr'), 0");

    // A rotation begins, an agent goes, one comes, one becomes trusted: all of the page changes.
    let mut next = report(301);
    next.summary = "The CA is being replaced.".into();
    next.agents.remove(5);
    Arc::make_mut(&mut next.agents[40]).state = "trusted".into();
    next.problems = vec!["Something stands in the way.".into()];
    next.rotating = Some(RotationReport { switched: true, reason: "it was asked for".into(), since: unix_now() });
    let newest = CertificateReport { subject: "CN=private-registry CA 2".into(), fingerprint: "6c".repeat(32), not_after: unix_now() };
    next.certificates.insert(0, newest);
    next.ca_fingerprint = Some("6c".repeat(32));
    server.shared.publish(next.clone());
    server.shared.acted("sign with the new CA: it is known to every agent".into());
    browser.wait_for("document.querySelector('#sentence').textContent === 'The CA is being replaced.'");
    browser.wait_for("document.querySelector('#done li').textContent.startsWith('sign with the new CA')");
    assert_eq!(browser.text("document.activeElement.id"), "search");
    assert_eq!(browser.text("document.querySelector('#search').value"), "10.");
    assert_eq!(browser.eval("document.querySelector('#scroll').scrollTop"), 900);
    assert_eq!(browser.eval("document.querySelector('#use-app').open"), true);
    assert_eq!(browser.text("document.querySelector('[aria-current=step]').textContent"), "next CA signs");
    let page = browser.text("document.querySelector('#certificates').innerText");
    assert!(page.contains("earlier, still trusted") && page.contains("CA, signs"), "{page}");
    browser.picture("rotation", true);

    // An agent alone, with the focus on something that is drawn anew around it.
    browser.eval("document.querySelector('#use-app .copy').focus(), 0");
    next.problems.clear();
    Arc::make_mut(&mut next.agents[41]).detail = "all new".into();
    next.converged = true;
    next.agents.iter_mut().for_each(|agent| Arc::make_mut(agent).state = "trusted".into());
    server.shared.publish(next);
    browser.wait_for("document.querySelector('.badge').textContent === 'All is well' && !document.querySelector('#problems')");
    browser.wait_for("[...document.querySelectorAll('#rows tr')].some((row) => row.textContent.includes('all new'))");
    assert_eq!(browser.eval("document.activeElement.matches('#use-app .copy')"), true);
    assert_eq!(browser.complaints(), Vec::<Value>::new());

    // The controller goes; the page says so, and keeps what it has.
    server.end();
    browser.wait_for("document.querySelector('#link').textContent.startsWith('No answer since')");
    assert_eq!(browser.text("document.querySelector('.badge').textContent"), "All is well");
    assert!(browser.eval("document.querySelector('#link').className === 'lost'") == true);
}

#[test]
#[ignore = "needs chromium: ci/page"]
fn behind_a_proxy_that_holds_answers_back_the_page_asks_again_and_again() {
    let server = Server::new(report(3));
    let mut browser = Browser::start();
    browser.open(&server.behind_a_proxy_that_holds_answers_back());
    browser.wait_for("document.querySelector('#link')?.textContent === 'Asks every 5 s'");
    server.shared.publish(Report { summary: "Something else.".into(), ..report(4) });
    browser.wait_for("document.querySelector('#sentence').textContent === 'Something else.'");
    browser.wait_for("document.querySelector('#count').textContent === '4 agents'");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
#[ignore = "needs chromium: ci/page"]
fn what_hosts_images_and_others_are_called_is_text_and_nothing_else() {
    let mut hostile = report(2);
    let first = Arc::make_mut(&mut hostile.agents[0]);
    first.host = HOSTILE.into();
    first.detail = HOSTILE.into();
    (hostile.service, hostile.summary) = (HOSTILE.into(), HOSTILE.into());
    Arc::make_mut(&mut hostile.agents[1]).state = HOSTILE.into();
    hostile.problems = vec![HOSTILE.into()];
    hostile.names = vec!["192.168.0.1:443".into(), HOSTILE.into()];
    hostile.registries[0].host = HOSTILE.into();
    hostile.registries[0].names = vec![HOSTILE.into()];
    hostile.certificates[0].subject = HOSTILE.into();
    let server = Server::new(hostile);
    server.shared.acted(HOSTILE.into());
    let mut browser = Browser::start();
    browser.opened_live(&server);
    browser.eval("document.querySelector('#load').click(), 0");
    browser.wait_for("document.querySelector('#image-count').textContent === '3 tags in 2 repositories so far'");
    assert!(browser.text("document.querySelector('#image-rows').innerText").contains("no: it is a manifest of the OCI"));
    browser.picture("images", true);
    browser.eval("document.querySelector('#more').click(), 0");
    browser.wait_for("document.querySelector('#image-count').textContent === '4 tags in 3 repositories'");
    let title = browser.text("document.title");
    assert_eq!(title, HOSTILE);
    for place in ["#rows", "#sentence", "#problems", "#registry", "#certificates", "#done", "#image-rows", "h1"] {
        let text = browser.text(&format!("document.querySelector('{place}').textContent"));
        assert!(text.contains(HOSTILE), "{place}: {text}");
    }
    assert_eq!(browser.eval("document.querySelectorAll('img, body script:not(:last-child), #rows script').length"), 0);
    assert_eq!(browser.complaints(), Vec::<Value>::new());

    // The policy stops what would get in all the same.
    browser.eval("(() => { const bad = document.createElement('script'); try { bad.text = 'document.title=1'; } catch {} document.body.append(bad); })()");
    browser.eval("(() => { try { document.querySelector('h1').innerHTML = '<b>x</b>'; } catch { document.body.dataset.stopped = 1; } })()");
    assert_eq!(browser.text("document.body.dataset.stopped"), "1");
    assert_eq!(browser.text("document.title"), HOSTILE);
}

#[test]
#[ignore = "needs chromium: ci/page"]
fn it_is_read_in_light_and_dark_on_narrow_screens_by_keyboard_and_by_ear() {
    let server = Server::new(report(42));
    let mut browser = Browser::start();
    browser.opened_live(&server);
    browser.eval("document.querySelector('#load').click(), 0");
    browser.wait_for("!document.querySelector('#image-scroll').hidden");
    for (dark, width) in [(false, 1200), (true, 1200), (false, 375), (true, 375)] {
        browser.dark(dark);
        browser.size(width, 900);
        let name = format!("{}-{width}", if dark { "dark" } else { "light" });
        browser.picture(&name, true);
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true, "{name}: the page is wider than the screen");
        let faint = browser.eval(
            "(() => { const numbers = (color) => color.match(/[\\d.]+/g).map(Number); \
             const light = (color) => { const [r, g, b] = numbers(color).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); \
             return 0.2126 * r + 0.7152 * g + 0.0722 * b; }; \
             const behind = (element) => { for (; element; element = element.parentElement) { const color = getComputedStyle(element).backgroundColor; \
             const [, , , alpha] = numbers(color); if (alpha !== 0) return color; } return 'rgb(255, 255, 255)'; }; \
             const faint = new Set(); const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); \
             for (let node; (node = texts.nextNode());) { const element = node.parentElement; if (!node.data.trim() || !element.checkVisibility() || \
             element.closest('script, noscript, .hidden, .skip, option')) continue; \
             const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x); \
             const contrast = (a + 0.05) / (b + 0.05); if (contrast < 4.5) faint.add(`${element.tagName}.${element.className} ${contrast.toFixed(2)}`); } \
             return [...faint]; })()",
        );
        assert_eq!(faint, json!([]), "{name}: text without contrast");
    }
    browser.size(1200, 900);

    // By keyboard: the skip link first, then all that can be reached, in the order of the page.
    browser.eval("document.activeElement.blur(), window.scrollTo(0, 0), 0");
    let mut reached = Vec::new();
    for _ in 0..22 {
        browser.key("Tab");
        reached.push(
            browser.text(
                "(document.activeElement.id || document.activeElement.name || document.activeElement.textContent).trim().slice(0, 20)",
            ),
        );
    }
    assert_eq!(reached[0], "Skip to the agents", "{reached:?}");
    let place = |name: &str| reached.iter().position(|at| at == name).unwrap_or_else(|| panic!("{name} is not reached: {reached:?}"));
    assert!(place("search") < place("state") && place("state") < place("role") && place("role") < place("scroll"), "{reached:?}");
    browser.eval("document.activeElement.blur(), 0");
    browser.key("/");
    assert_eq!(browser.text("document.activeElement.id"), "search");

    // By ear: what the browser tells a screen reader.
    browser.call("Accessibility.enable", json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes: Vec<(String, String)> = tree["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["ignored"] == false)
        .map(|node| {
            let word = |key: &str| node[key]["value"].as_str().unwrap_or_default().to_string();
            (word("role"), word("name"))
        })
        .collect();
    let has = |role: &str, name: &str| nodes.iter().any(|(r, n)| r == role && n == name);
    for (role, name) in [
        ("banner", ""),
        ("main", ""),
        ("contentinfo", ""),
        ("navigation", "Sections"),
        ("search", ""),
        ("heading", "Agents"),
        ("searchbox", "Search agents by host, state or reason"),
        ("radio", "failed 1"),
        ("combobox", "Role"),
        ("region", "Table of agents"),
        ("columnheader", "Why, and what to do"),
        ("rowheader", "10.0.0.2"),
        ("status", ""),
        ("image", "40 trusted, 1 pending, 1 failed"),
        ("button", "Copy: On every agent"),
    ] {
        let said: Vec<&String> = nodes.iter().filter(|(r, _)| r == role).map(|(_, n)| n).collect();
        assert!(has(role, name), "no {role} called {name:?}; there are {said:?}");
    }
    let nameless: Vec<_> =
        nodes.iter().filter(|(role, name)| ["button", "link", "searchbox", "radio"].contains(&&**role) && name.is_empty()).collect();
    assert_eq!(nameless, Vec::<&(String, String)>::new());

    // A copy, by keyboard and where there is no clipboard but the old one.
    browser.eval("document.querySelector('#use-inside .copy').click(), 0");
    browser.wait_for("['Copied', 'Selected: press Ctrl+C'].includes(document.querySelector('#use-inside .copy').textContent)");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
#[ignore = "needs chromium: ci/page"]
fn without_script_it_is_a_table_that_says_how_much_of_it_there_is() {
    let server = Server::new(report(500));
    let mut browser = Browser::start();
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.open(&server.url);
    browser.wait_for("document.readyState === 'complete' && !!document.querySelector('#rows')");
    let text = browser.text("document.body.innerText");
    assert!(text.contains("It shows the first 200 of 500 agents"), "{text}");
    assert!(text.contains("10.0.0.42") && !text.contains("Show repositories") && !text.contains("Copy\n"), "{text}");
    assert_eq!(browser.eval(ROWS), 200);
    browser.picture("without-script", false);
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

/// The pictures of README.md and of the catalog: a cluster of twelve agents, of which one has just come.
#[test]
#[ignore = "needs chromium: ci/page"]
fn the_pictures_for_the_documentation() {
    let mut twelve = report(12);
    let twelfth = Arc::make_mut(&mut twelve.agents[11]);
    twelfth.state = "pending".into();
    twelfth.detail = "not proven yet".into();
    twelfth.proven_at = None;
    twelve.summary = "11 of 12 agents are proven to trust the registry; the registry is serving on 10.0.0.2.".into();
    twelve.converged = false;
    twelve.next = vec!["waiting for 10.0.0.12 to prove that it trusts the registry".into()];
    let server = Server::new(twelve);
    let mut browser = Browser::start();
    browser.size(1200, 675);
    browser.opened_live(&server);
    browser.wait_for("document.querySelector('#count').textContent === '12 agents'");
    browser.picture("screenshot", false);
    browser.size(1200, 1150);
    browser.picture("page", false);
    if let Some(dir) = std::env::var_os("PAGE_PICTURES") {
        let size = std::fs::metadata(std::path::Path::new(&dir).join("page.png")).unwrap().len();
        assert!(size < 200_000, "README.md's picture has {size} bytes");
    }
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}
