//! A lab with the package at hand, and what tests ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::recordings::{Recordings, UNRECORDED, Verdict};
use lab::server::{NEWEST, Pose, Security};
use lab::{ExecOutput, Lab, LabOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::key_watch::processes_of;

pub(crate) mod guide;

/// Admin Router, as a user of the cluster knows it.
pub(crate) const ADMIN: &str = "http://192.168.1.69";
/// Where the package repository of the lab is.
/// How many times slower than an idle machine one may be on which several labs run at once.
const PATIENCE: u64 = 3;
const UNIVERSE: &str = "http://universe.lab:8000/repo.json";

/// What lies on a disk: path to mode and content.
pub(crate) type Picture = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// A lab, and an operator in front of it.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    dcos: String,
    home: tempfile::TempDir,
    security: Security,
}

impl Cluster {
    /// A cluster that knows the package, with a dcos CLI that knows the cluster.
    pub(crate) fn start(agents: u8, public: u8) -> Self {
        Self::start_on(NEWEST, agents, public)
    }

    /// The same for another version of DC/OS.
    pub(crate) fn start_on(dcos: &str, agents: u8, public: u8) -> Self {
        Self::start_as(agents, public, dcos, Security::Open)
    }

    /// A cluster without Marathon-LB, whose package it knows.
    pub(crate) fn start_without_marathon_lb(agents: u8, public: u8) -> Self {
        let options = LabOptions { agents, public, marathon_lb: false, ..LabOptions::default() };
        let cluster = Self::start_lab(&[], options);
        cluster.dcos_ok(&["package", "repo", "add", "marathon-lb", "http://universe.lab:8000/marathon-lb.json"]);
        cluster
    }

    /// The same as Enterprise; there the CLI is logged in as the superuser.
    pub(crate) fn start_as(agents: u8, public: u8, dcos: &str, security: Security) -> Self {
        Self::start_with(&[], agents, public, dcos, security)
    }

    /// The same with further images of `ci/images`, as in `&["registry3.tar"]`, which every agent loads.
    pub(crate) fn start_with(images: &[&str], agents: u8, public: u8, dcos: &str, security: Security) -> Self {
        Self::start_lab(images, LabOptions { agents, public, dcos: dcos.to_owned(), security, ..LabOptions::default() })
    }

    fn start_lab(images: &[&str], options: LabOptions) -> Self {
        let images = ["registry.tar", "canary.tar"].iter().chain(images).map(|name| made(&format!("target/images/{name}"))).collect();
        let home = tempfile::tempdir().unwrap();
        let dir = PathBuf::from(format!("/var/tmp/private-registry-test-{}", home.path().file_name().unwrap().to_string_lossy()));
        let package = Some(made("target/package"));
        let (dcos, security) = (options.dcos.clone(), options.security);
        let options = LabOptions { dir: Some(dir), images, package, ..options };
        let cluster = Self { lab: Lab::start(options).unwrap_or_else(|error| panic!("{error}")), dcos, home, security };
        cluster.dcos_ok(&["config", "set", "core.dcos_url", cluster.admin()]);
        if security != Security::Open {
            cluster.dcos_ok(&["config", "set", "core.ssl_verify", cluster.ca().to_str().unwrap()]);
            cluster.dcos_ok(&["config", "set", "core.dcos_acs_token", &cluster.token("bootstrapuser", "deleteme")]);
        }
        cluster.dcos_ok(&["package", "repo", "add", "lab", UNIVERSE, "--index=0"]);
        cluster
    }

    /// Admin Router, with TLS in Enterprise.
    pub(crate) fn admin(&self) -> &'static str {
        if self.security == Security::Open { ADMIN } else { "https://192.168.1.69" }
    }

    /// The cluster's authority, in Enterprise.
    pub(crate) fn ca(&self) -> PathBuf {
        lab::server::enterprise::certificates::ca_file(self.lab.path())
    }

    /// A fresh token of a user.
    pub(crate) fn token(&self, uid: &str, password: &str) -> String {
        let login = json!({ "uid": uid, "password": password });
        let (code, text) = self.http_with(None, "POST", "/acs/api/v1/auth/login", Some(&login));
        assert_eq!(code, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["token"].as_str().unwrap().to_owned()
    }

    /// A request to Admin Router from the master; in Enterprise as the superuser.
    pub(crate) fn http(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let token = (self.security != Security::Open).then(|| self.token("bootstrapuser", "deleteme"));
        self.http_with(token.as_deref(), method, path, body)
    }

    /// The same with this token or none.
    pub(crate) fn http_with(&self, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let (url, ca) = (format!("{}{path}", self.admin()), self.ca());
        let mut argv =
            vec!["curl", "--silent", "--show-error", "--max-time", "150", "--write-out", "\n%{http_code}", "--request", method, &url];
        if self.security != Security::Open {
            argv.extend(["--cacert", ca.to_str().unwrap()]);
        }
        let authorization = token.map(|token| format!("Authorization: token={token}"));
        argv.extend(authorization.iter().flat_map(|header| ["--header", header]));
        let body = body.map(Value::to_string);
        argv.extend(body.iter().flat_map(|body| ["--header", "Content-Type: application/json", "--data-binary", body]));
        let output = self.lab.exec("master", &argv).unwrap();
        assert!(output.status.success(), "{method} {url}: {}", output.stderr);
        let (text, code) = output.stdout.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), text.to_owned())
    }

    /// Runs the real dcos CLI.
    pub(crate) fn dcos(&self, arguments: &[&str]) -> ExecOutput {
        let cli = made("target/dcos-cli/bin/dcos");
        let home = self.home.path().to_str().unwrap();
        let (home_var, config) = (format!("HOME={home}"), format!("DCOS_CONFIG={home}/dcos.toml"));
        // The plugin asks the CLI, which it finds on the path.
        let path = format!("PATH={}:/usr/bin:/bin", cli.parent().unwrap().display());
        let mut argv = vec!["env", &home_var, &config, &path, "LC_ALL=C.UTF-8", "LANG=C.UTF-8", cli.to_str().unwrap()];
        argv.extend(arguments);
        self.lab.exec("master", &argv).unwrap()
    }

    /// Runs the CLI and returns what it printed; a failure of it fails the test.
    pub(crate) fn dcos_ok(&self, arguments: &[&str]) -> String {
        let output = self.dcos(arguments);
        assert!(output.status.success(), "dcos {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
        output.stdout
    }

    /// `dcos package install private-registry --options=…`
    pub(crate) fn install(&self, options: &Value) -> ExecOutput {
        let path = self.home.path().join("options.json");
        fs::write(&path, options.to_string()).unwrap();
        self.dcos(&["package", "install", "private-registry", &format!("--options={}", path.display()), "--yes"])
    }

    /// Installs, and waits until every agent is proven.
    pub(crate) fn install_and_wait(&self, options: &Value) {
        let output = self.install(options);
        assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
        self.wait_converged();
    }

    pub(crate) fn wait_converged(&self) {
        self.wait("every agent to be trusted", 120, || self.status().is_some_and(|status| status["converged"] == true));
    }

    /// Uninstalls through Cosmos and waits until nothing is left in Marathon and Metronome.
    pub(crate) fn uninstall(&self) {
        self.dcos_ok(&["package", "uninstall", "private-registry", "--yes"]);
        self.wait("the end of the uninstall", 120, || self.ids_at_marathon().is_empty() && self.jobs().is_empty() && self.is_calm());
    }

    /// Whether no deployment is under way: as long as one is, Marathon answers 409 to whoever wants its ids.
    pub(crate) fn is_calm(&self) -> bool {
        self.get("/marathon/v2/deployments") == json!([])
    }

    /// The controller's report through Admin Router; none while it does not answer.
    pub(crate) fn status(&self) -> Option<Value> {
        let (code, text) = self.http("GET", "/service/private-registry/v1/status", None);
        (code == 200).then(|| serde_json::from_str(&text).ok())?
    }

    /// How an agent stands.
    pub(crate) fn agent_state(&self, agent: &str) -> Option<(String, String)> {
        let status = self.status()?;
        let row = status["agents"].as_array()?.iter().find(|row| row["host"] == agent)?;
        Some((row["state"].as_str()?.to_owned(), row["detail"].as_str()?.to_owned()))
    }

    /// A read of Marathon or Metronome through Admin Router.
    pub(crate) fn get(&self, path: &str) -> Value {
        let (code, text) = self.http("GET", &format!("/service{path}"), None);
        assert_eq!(code, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A write to Marathon.
    pub(crate) fn marathon(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (code, text) = self.http(method, &format!("/service/marathon/v2{path}"), Some(body));
        (code, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Apps and pods.
    pub(crate) fn ids_at_marathon(&self) -> Vec<String> {
        let (apps, pods) = (self.get("/marathon/v2/apps"), self.get("/marathon/v2/pods"));
        let all = apps["apps"].as_array().unwrap().iter().chain(pods.as_array().unwrap());
        all.map(|document| document["id"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn jobs(&self) -> Vec<String> {
        self.get("/metronome/v1/jobs").as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Addresses of all agents.
    pub(crate) fn agents(&self) -> Vec<String> {
        let agents = self.lab.control("GET", "/agents", None).unwrap();
        agents.as_array().unwrap().iter().map(|agent| agent["ip"].as_str().unwrap().to_owned()).collect()
    }

    /// Runs a shell line on a machine.
    pub(crate) fn sh(&self, machine: &str, line: &str) -> ExecOutput {
        self.lab.exec(machine, &["sh", "-c", line]).unwrap()
    }

    /// Runs a shell line on a machine and returns what it printed; its failure fails the test.
    pub(crate) fn sh_ok(&self, machine: &str, line: &str) -> String {
        let output = self.sh(machine, line);
        assert!(output.status.success(), "{machine}: {line}: {}{}", output.stdout, output.stderr);
        output.stdout.trim().to_owned()
    }

    /// Waits, `PATIENCE` times as long as an idle machine needs; a failure names what was waited for, and shows the controller's last report.
    pub(crate) fn wait(&self, what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
        let seconds = seconds * PATIENCE;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !condition() {
            if Instant::now() > deadline {
                self.explain();
                panic!("waited {seconds} s in vain for {what}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Kills the program in this role with SIGKILL, everywhere or on one agent. Says whether there was one.
    pub(crate) fn kill_role(&self, role: &str, agent: Option<&str>) -> bool {
        let host = agent.map(|agent| format!("HOST={agent}"));
        let is_it = |pid: &u32| {
            let parts = |name: &str| {
                let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>()
            };
            let words = parts("cmdline");
            let runs = words[0].ends_with("private-registry") && words.get(1).is_some_and(|word| word == role);
            runs && host.as_ref().is_none_or(|host| parts("environ").contains(host))
        };
        let found: Vec<u32> = processes_of(self.lab.path()).into_iter().filter(is_it).collect();
        // One may end by itself at this very moment.
        found.iter().filter(|pid| kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok()).count() > 0
    }

    /// Prints what helps to understand a failure: the report, and the ends of the logs.
    pub(crate) fn explain(&self) {
        eprintln!("report: {:#}", self.status().unwrap_or(Value::Null));
        let tasks = self.lab.control("GET", "/tasks", None).unwrap_or(Value::Null);
        for task in tasks.as_array().into_iter().flatten() {
            eprintln!("{} on {}: {} {}", task["id"], task["agent"], task["state"], task["message"]);
            let stderr = task["sandbox"].as_str().map(|sandbox| Path::new(sandbox).join("stderr"));
            let text = stderr.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].iter().for_each(|line| eprintln!("    {line}"));
        }
    }

    /// What an agent's disk holds of its own, but for what dockerd and Mesos keep for themselves.
    pub(crate) fn picture(&self, agent: &str) -> Picture {
        let root = self.lab.path().join("agents").join(agent).join("root");
        let mut picture = picture(&root);
        let volatile = ["var/lib/docker/", "var/lib/mesos/", "run/", "tmp/", "root/", "var/run", "var/cache", "etc/docker/key.json"];
        picture.retain(|path, _| !volatile.iter().any(|prefix| path.starts_with(prefix.trim_end_matches('/'))));
        picture
    }

    /// All agents' disks.
    pub(crate) fn pictures(&self) -> BTreeMap<String, Picture> {
        self.agents().into_iter().map(|agent| (agent.clone(), self.picture(&agent))).collect()
    }

    /// Fails unless these agents are as they were then, but for the images, which an uninstall keeps.
    pub(crate) fn assert_as_before(&self, before: &BTreeMap<String, Picture>) {
        for (agent, before) in before {
            let without_images = |picture: &Picture| picture.clone().into_iter().filter(|(path, _)| !path.starts_with("data")).collect();
            let (before, after): (Picture, Picture) = (without_images(before), without_images(&self.picture(agent)));
            let changed: BTreeSet<_> = before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
            assert!(changed.is_empty(), "{agent}: {changed:?}");
            assert_eq!(self.sysctl(agent), "0", "{agent}");
        }
    }

    /// Ids of the node pod's instances and of the registry's task: they change when something is replaced.
    pub(crate) fn running(&self) -> (Vec<String>, String) {
        let status = self.get("/marathon/v2/pods/private-registry-node::status");
        let mut nodes: Vec<String> = status["instances"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect();
        nodes.sort();
        let registry = self.get("/marathon/v2/apps/registry")["app"]["tasks"][0]["id"].as_str().unwrap().to_owned();
        (nodes, registry)
    }

    /// `POST /cosmos/service/update`, as the UI sends it when options are edited.
    pub(crate) fn update(&self, options: &Value) {
        self.update_service("private-registry", options);
    }

    /// The same for a service of another name.
    pub(crate) fn update_service(&self, service: &str, options: &Value) {
        let body = json!({ "appId": format!("/{service}"), "options": options, "replace": false }).to_string();
        let media = |kind: &str| format!("application/vnd.dcos.service.update-{kind}+json;charset=utf-8;version=v1");
        let (sent, wanted) = (format!("Content-Type: {}", media("request")), format!("Accept: {}", media("response")));
        let url = format!("{ADMIN}/cosmos/service/update");
        let argv = ["curl", "-s", "-o", "/dev/stderr", "-w", "%{http_code}", "-H", &sent, "-H", &wanted, "--data-binary", &body, &url];
        let output = self.lab.exec("master", &argv).unwrap();
        assert_eq!(output.stdout, "200", "{}", output.stderr);
    }

    /// What `dcos security org service-accounts create` and `dcos security secrets create-sa-secret` do.
    pub(crate) fn make_account(&self, account: &str, secret: &str) {
        let key = |name: &str| fs::read_to_string(made("tests/fixtures/service-account").join(name)).unwrap();
        let described = json!({ "description": "Private registry", "public_key": key("public-key.pem") });
        assert_eq!(self.http("PUT", &format!("/acs/api/v1/users/{account}"), Some(&described)).0, 201);
        let credential = json!({
            "scheme": "RS256",
            "uid": account,
            "private_key": key("private-key.pem"),
            "login_endpoint": "https://master.mesos/acs/api/v1/auth/login",
        });
        self.store_secret(secret, &credential.to_string());
    }

    /// What `dcos security secrets create` does.
    pub(crate) fn store_secret(&self, path: &str, text: &str) {
        assert_eq!(self.http("PUT", &format!("/secrets/v1/secret/default/{path}"), Some(&json!({ "value": text }))).0, 201);
    }

    /// What `dcos security org users grant` does.
    pub(crate) fn grant(&self, account: &str, resource: &str, action: &str) {
        let acl = format!("/acs/api/v1/acls/{}", resource.replace('/', "%252F"));
        let made = self.http("PUT", &acl, Some(&json!({ "description": "" }))).0;
        assert!([201, 409].contains(&made), "{acl}: {made}");
        let granted = self.http("PUT", &format!("{acl}/users/{account}/{action}"), None).0;
        assert!([204, 409].contains(&granted), "{acl}: {granted}");
    }

    /// `net.netfilter.nf_conntrack_tcp_be_liberal`.
    pub(crate) fn sysctl(&self, agent: &str) -> String {
        self.sh_ok(agent, "cat /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
    }

    /// Every exchange of this lab is one that the real servers have, and nothing that was sent would be lost on them.
    pub(crate) fn assert_servers_answered_as_the_real_ones(&self) {
        let pose = Pose::of(&self.dcos, Security::Open).unwrap();
        let recordings = Recordings::of(&made("tests/fixtures"), &pose).unwrap();
        let listed: Vec<&str> = UNRECORDED.iter().map(|(call, _)| *call).collect();
        let mut faults: BTreeMap<String, usize> = BTreeMap::new();
        let journal = self.lab.journal().unwrap();
        let (mut matching, mut unheard) = (0, 0);
        for exchange in &journal {
            let call = format!("{} {} {}?{} {}", exchange.service, exchange.method, exchange.path, exchange.query, exchange.status);
            if exchange.unknown {
                *faults.entry(format!("{call}: the lab does not know this call")).or_default() += 1;
                continue;
            }
            match recordings.check(exchange) {
                Verdict::Matches(_) => matching += 1,
                // There is no recording of this version of the server: not a word can be said about its answers.
                Verdict::OtherVersion(_) => unheard += 1,
                Verdict::OfThePackage | Verdict::OfEnterprise => {}
                Verdict::Unrecorded(what) if listed.contains(&what.as_str()) => {}
                Verdict::Unrecorded(what) => *faults.entry(format!("{call}: no recording of {what}")).or_default() += 1,
                Verdict::Differs(how) => *faults.entry(format!("{call}: {}", how.join("; "))).or_default() += 1,
            }
        }
        let compared = matching + faults.len();
        // Of what was not recorded in this version, there is nothing to compare; of the newest, everything was.
        assert!(unheard == 0 || self.dcos != NEWEST, "{unheard} exchanges of the newest version were not recorded");
        assert!(compared + unheard > 20, "only {compared} of {} exchanges could be compared", journal.len());
        let faults: Vec<String> = faults.into_iter().map(|(fault, times)| format!("{times} x {fault}")).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        self.assert_nothing_was_lost();
    }

    /// The servers knew every call, and would have swallowed nothing of what they were sent.
    pub(crate) fn assert_nothing_was_lost(&self) {
        let unknown: Vec<String> = self.lab.journal().unwrap().into_iter().filter(|e| e.unknown).map(|e| e.path).collect();
        assert_eq!(unknown, Vec::<String>::new());
        assert_eq!(self.lab.control("GET", "/violations", None).unwrap(), json!([]));
    }
}

/// A file or folder that `ci/test` makes before the tests run.
pub(crate) fn made(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing: run ci/test, which makes it", path.display());
    path
}

/// Every path below a folder with kind, mode and content.
fn picture(root: &Path) -> Picture {
    let mut picture = Picture::new();
    let mut rest = vec![root.to_owned()];
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let below = path.strip_prefix(root).unwrap().to_owned();
            if ["var/lib/docker", "var/lib/mesos"].iter().any(|skipped| below == Path::new(skipped)) {
                continue;
            }
            // What ends while we look is as good as not there.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let content = if meta.is_symlink() {
                fs::read_link(&path).map(|target| target.into_os_string().into_encoded_bytes()).unwrap_or_default()
            } else if meta.is_dir() {
                rest.push(path.clone());
                Vec::new()
            } else if meta.is_file() {
                fs::read(&path).unwrap_or_default()
            } else {
                Vec::new()
            };
            picture.insert(below, (meta.permissions().mode(), content));
        }
    }
    picture
}
