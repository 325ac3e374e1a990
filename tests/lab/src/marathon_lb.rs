//! `lab marathon-lb`: what the package marathon-lb is on a public agent. It asks Marathon for apps and runs the real HAProxy with what
//! their labels say.
//!
//! Known are the group `external` and the labels `HAPROXY_GROUP`, `HAPROXY_{n}_GROUP`, `HAPROXY_{n}_MODE`, `HAPROXY_{n}_PORT`,
//! `HAPROXY_{n}_ENABLED` and `HAPROXY_{n}_BACKEND_NETWORK_ALLOWED_ACL`, for apps whose ports are ports of the agent.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    Error, Result,
    process::{run as run_to_end, spawn_error, write_atomically},
};

/// Says where Marathon is, and what opens it.
const DOOR: &str = "http://192.168.1.69:7070/enterprise/marathon-lb";
/// Where the apps are.
const APPS: &str = "/v2/apps?embed=apps.tasks";
/// Pause between two looks at Marathon. The real one listens to events, which is as quick.
const PAUSE: Duration = Duration::from_millis(500);
/// Marathon must have answered by then.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Apps of this group are exposed.
const GROUP: &str = "external";
/// Empty at every start of the machine.
const FOLDER: &str = "/run/marathon-lb";

/// Without the real one's Lua scripts, and without its `maxconn 50000`: HAProxy then takes what the machine's limit of files allows.
const HEAD: &str = "\
global
  log stdout format raw daemon notice
  spread-checks 5
  max-spread-checks 15000
defaults
  log global
  retries 3
  backlog 10000
  maxconn 10000
  timeout connect 3s
  timeout client 30s
  timeout server 30s
  timeout tunnel 3600s
  timeout http-keep-alive 1s
  timeout http-request 15s
  timeout queue 30s
  timeout tarpit 60s
  option dontlognull
  option http-server-close
  option redispatch

listen stats
  bind 0.0.0.0:9090
  balance
  mode http
  stats enable
  monitor-uri /_haproxy_health_check

";

/// Runs until the machine ends. Whatever Marathon says, or says not, HAProxy goes on with the last good configuration.
///
/// # Errors
/// It cannot begin.
pub fn run() -> Result<()> {
    let mut haproxy = Haproxy::new(Path::new(FOLDER))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| spawn_error("marathon-lb", source))?;
    runtime.block_on(async {
        let mut trouble = None;
        loop {
            let apps = apps().await;
            let now = apps.as_ref().err().map(ToString::to_string);
            if now != trouble {
                eprintln!("marathon-lb: {}", now.as_deref().unwrap_or("Marathon answers again"));
                trouble = now;
            }
            if let Ok(apps) = apps
                && let Err(error) = haproxy.run_with(&configuration(&apps))
            {
                eprintln!("marathon-lb: {error}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Asked anew each time: the token may have expired, or the whole cluster be another one.
async fn apps() -> reqwest::Result<Value> {
    let client = || reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
    let door: Value = client().build()?.get(DOOR).send().await?.error_for_status()?.json().await?;
    let text = |field: &str| door[field].as_str();
    let mut client = client();
    if let Some(ca) = text("ca") {
        client = client.add_root_certificate(reqwest::Certificate::from_pem(ca.as_bytes())?);
    }
    let mut request = client.build()?.get(format!("{}{APPS}", text("marathon").unwrap_or_default()));
    if let Some(token) = text("token") {
        request = request.header("authorization", format!("token={token}"));
    }
    request.send().await?.error_for_status()?.json().await
}

/// HAProxy in master-worker mode: on SIGUSR2 the master starts a new worker, which takes over the listening sockets, and lets the old
/// one finish its connections. When the new one cannot start, the old one goes on.
struct Haproxy {
    file: PathBuf,
    master: Option<Child>,
    /// The configuration of the last attempt; a bad one is not tried twice.
    tried: String,
}

impl Haproxy {
    fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        Ok(Self { file: folder.join("haproxy.cfg"), master: None, tried: String::new() })
    }

    /// Makes this the running configuration, unless it is or HAProxy refuses it. Starts HAProxy again when it has ended.
    fn run_with(&mut self, configuration: &str) -> Result<()> {
        let runs = self.master.as_mut().is_some_and(|master| matches!(master.try_wait(), Ok(None)));
        if self.tried != configuration {
            configuration.clone_into(&mut self.tried);
            let candidate = self.file.with_extension("candidate");
            fs::write(&candidate, configuration).map_err(Error::io("writing", &candidate))?;
            run_to_end("haproxy", [Path::new("-c"), Path::new("-f"), &candidate])?;
            write_atomically(&self.file, configuration.as_bytes())?;
            if runs {
                eprintln!("marathon-lb: reloading HAProxy");
                return self.reload();
            }
        }
        if runs || !self.file.exists() { Ok(()) } else { self.start() }
    }

    fn start(&mut self) -> Result<()> {
        eprintln!("marathon-lb: starting HAProxy");
        let mut haproxy = Command::new("haproxy");
        haproxy.args(["-W", "-f"]).arg(&self.file).stdin(Stdio::null());
        self.master = Some(haproxy.spawn().map_err(|source| spawn_error("haproxy", source))?);
        Ok(())
    }

    fn reload(&self) -> Result<()> {
        if let Some(pid) = self.master.as_ref().and_then(|master| i32::try_from(master.id()).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGUSR2)?;
        }
        Ok(())
    }
}

/// One port of an app as HAProxy serves it.
struct Service {
    /// Of the frontend and of the backend.
    name: String,
    port: u64,
    mode: String,
    /// Networks that may connect, separated by blanks; empty: all.
    allowed: String,
    check: Value,
    /// Address and port of every task that counts.
    servers: Vec<(String, u64)>,
}

/// The whole configuration for the apps that Marathon listed.
fn configuration(apps: &Value) -> String {
    format!("{HEAD}{}", proxies(apps))
}

/// All frontends and then all backends, in the order of app ids and ports.
fn proxies(apps: &Value) -> String {
    // Sorted by the app's id and the port it got, not by their common name.
    let services: BTreeMap<(String, u64), Service> = array(&apps["apps"]).iter().flat_map(services).collect();
    let frontends = services.values().map(Service::frontend);
    let backends = services.values().map(Service::backend);
    frontends.chain(backends).collect::<Vec<_>>().join("\n")
}

/// The ports of an app that are exposed and have a task behind them.
fn services(app: &Value) -> Vec<((String, u64), Service)> {
    let id = app["id"].as_str().unwrap_or_default();
    let label = |name: &str| app["labels"][name].as_str();
    let in_group = |groups: Option<&str>| groups.is_some_and(|groups| groups.split(',').any(|group| group == GROUP));
    let mut services = Vec::new();
    for (index, port) in service_ports(app).into_iter().enumerate() {
        let of_port = |name: &str| label(&format!("HAPROXY_{index}_{name}"));
        let enabled =
            of_port("ENABLED").is_none_or(|value| !["false", "f", "no", "n", "off", "0"].contains(&value.to_lowercase().as_str()));
        let Some(port) = of_port("PORT").and_then(|port| port.parse().ok()).or(port) else { continue };
        if !enabled || !in_group(of_port("GROUP").or_else(|| label("HAPROXY_GROUP"))) {
            continue;
        }
        let check = array(&app["healthChecks"]).iter().find(|check| check["portIndex"].as_u64() == u64::try_from(index).ok());
        let check = check.cloned().unwrap_or(Value::Null);
        // Marathon's own HTTP check alone does this, and an explicit mode wins.
        let mode = of_port("MODE").unwrap_or(if check["protocol"] == "HTTP" { "http" } else { "tcp" }).to_owned();
        let allowed = of_port("BACKEND_NETWORK_ALLOWED_ACL").unwrap_or_default().to_owned();
        let tasks = array(&app["tasks"]).iter().filter(|task| counts(app, task));
        let mut servers: Vec<(String, u64)> =
            tasks.filter_map(|task| Some((task["host"].as_str()?.to_owned(), task["ports"].get(index)?.as_u64()?))).collect();
        servers.sort();
        if !servers.is_empty() {
            let name = format!("{}_{port}", id.trim_start_matches('/').replace('/', "_"));
            services.push(((id.to_owned(), port), Service { name, port, mode, allowed, check, servers }));
        }
    }
    services
}

/// What Marathon reserved for each port of the app; none for a port that is not to be balanced.
fn service_ports(app: &Value) -> Vec<Option<u64>> {
    let old = array(&app["container"]["docker"]["portMappings"]);
    let mappings = if old.is_empty() { array(&app["container"]["portMappings"]) } else { old };
    if mappings.is_empty() {
        return array(&app["portDefinitions"]).iter().map(|definition| definition["port"].as_u64()).collect();
    }
    mappings.iter().map(|mapping| mapping["servicePort"].as_u64()).collect()
}

/// A task runs as far as anybody knows, and is alive if the app has health checks.
fn counts(app: &Value, task: &Value) -> bool {
    let runs = ["TASK_RUNNING", "TASK_UNREACHABLE", "TASK_LOST"].iter().any(|state| task["state"] == *state);
    let alive = || array(&task["healthCheckResults"]).iter().any(|result| result["alive"] == true);
    runs && (array(&app["healthChecks"]).is_empty() || alive())
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Service {
    fn frontend(&self) -> String {
        let Self { name, port, mode, .. } = self;
        format!("frontend {name}\n  bind *:{port}\n  mode {mode}\n  use_backend {name}\n")
    }

    fn backend(&self) -> String {
        let Self { name, mode, check, .. } = self;
        let http = mode == "http";
        let mut text = format!("backend {name}\n  balance roundrobin\n  mode {mode}\n");
        if http {
            text.push_str("  option forwardfor\n");
            text.push_str("  http-request set-header X-Forwarded-Port %[dst_port]\n");
            text.push_str("  http-request add-header X-Forwarded-Proto https if { ssl_fc }\n");
        }
        for network in self.allowed.split_whitespace() {
            let _ = writeln!(text, "  acl network_allowed src {network}");
        }
        if !self.allowed.trim().is_empty() {
            text.push_str(if http {
                "  http-request allow if network_allowed\n  http-request deny\n"
            } else {
                "  tcp-request content accept if network_allowed\n  tcp-request content reject\n"
            });
        }
        let connecting = ["TCP", "MESOS_TCP"].iter().any(|protocol| check["protocol"] == *protocol);
        if http && !check.is_null() && !connecting {
            let path = check["path"].as_str().unwrap_or("/");
            let _ = writeln!(text, "  option  httpchk GET {path}\n  timeout check {}s", check["timeoutSeconds"]);
        }
        for (host, port) in &self.servers {
            let server: String =
                format!("{host}_{port}").chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
            let _ = write!(text, "  server {server} {host}:{port}");
            if !check.is_null() {
                let falls = check["maxConsecutiveFailures"].as_u64().unwrap_or_default() + 1;
                let _ = write!(text, " check inter {}s fall {falls}", check["intervalSeconds"]);
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::host::wait_until;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/marathon-lb");

    fn recorded_apps() -> Value {
        serde_json::from_slice(&fs::read(format!("{FIXTURES}/apps.json")).unwrap()).unwrap()
    }

    /// Without what the lab's lacks: the servers' `id`s, by which the real one finds a server's state again after a reload. The lab's
    /// HAProxy numbers them itself and checks anew.
    fn recorded_proxies(name: &str) -> String {
        let text = fs::read_to_string(format!("{FIXTURES}/{name}")).unwrap();
        regex_lite::Regex::new(" id [0-9]+").unwrap().replace_all(&text, "").into_owned()
    }

    /// One app with one task on 192.168.1.80.
    fn app(labels: Value) -> Value {
        json!({ "apps": [{
            "id": "/registry",
            "labels": labels,
            "container": { "portMappings": [{ "servicePort": 5000 }, { "servicePort": 10101 }] },
            "portDefinitions": null,
            "healthChecks": [{ "protocol": "MESOS_TCP", "portIndex": 0, "intervalSeconds": 5, "maxConsecutiveFailures": 3 }],
            "tasks": [{
                "host": "192.168.1.80", "ports": [7001, 7002], "state": "TASK_RUNNING", "healthCheckResults": [{ "alive": true }],
            }],
        }]})
    }

    fn ports(apps: &Value) -> Vec<String> {
        proxies(apps).lines().filter_map(|line| line.strip_prefix("  bind *:").map(str::to_owned)).collect()
    }

    #[test]
    fn the_recorded_apps_give_the_recorded_proxies() {
        assert_eq!(proxies(&recorded_apps()), recorded_proxies("haproxy-http-and-tcp-checks.txt"));
    }

    /// These proxies were recorded in another minute, when other tasks ran: the tasks are taken from the recording.
    #[test]
    fn the_proxies_of_apps_with_checks_by_mesos_are_as_recorded() {
        let recorded = recorded_proxies("haproxy-mesos-tcp-checks.txt");
        let line = regex_lite::Regex::new("backend (.+)_[0-9]+\n(?:  .*\n)*?  server [^ ]+ ([^:]+):([0-9]+)").unwrap();
        let running: BTreeMap<String, (String, u64)> = line
            .captures_iter(&recorded)
            .map(|found| (format!("/{}", &found[1]), (found[2].to_owned(), found[3].parse().unwrap())))
            .collect();
        assert_eq!(running.len(), 6);
        let mut apps = recorded_apps();
        for app in apps["apps"].as_array_mut().unwrap() {
            app["tasks"] = match running.get(app["id"].as_str().unwrap()) {
                Some((host, port)) => {
                    json!([{ "host": host, "ports": [port], "state": "TASK_RUNNING", "healthCheckResults": [{ "alive": true }] }])
                }
                None => json!([]),
            };
        }
        assert_eq!(proxies(&apps), recorded);
    }

    /// Answers `/<answered>` on the port with 200.
    fn answering(port: u16, answered: &str) -> String {
        format!(
            "defaults\n  timeout connect 3s\n  timeout client 30s\n  timeout server 30s\n\nlisten x\n  bind 127.0.0.1:{port}\n  mode http\n  monitor-uri /{answered}\n"
        )
    }

    fn answers(port: u16, path: &str) -> bool {
        let url = format!("http://127.0.0.1:{port}/{path}");
        run_to_end("curl", ["--silent", "--fail", "--noproxy", "*", "--max-time", "5", &url]).is_ok()
    }

    #[test]
    fn haproxy_takes_a_good_configuration_and_keeps_it_when_the_next_one_is_bad() {
        let folder = std::env::temp_dir().join(format!("lab-marathon-lb-{}", std::process::id()));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut haproxy = Haproxy::new(&folder).unwrap();
        let soon = |path| wait_until(Duration::from_secs(10), || answers(port, path));
        haproxy.run_with(&answering(port, "first")).unwrap();
        let first = soon("first");
        let refused = haproxy.run_with("frontend without-a-port\n  bind *\n");
        let still = answers(port, "first");
        haproxy.run_with(&answering(port, "second")).unwrap();
        let second = soon("second");
        let mut master = haproxy.master.take().unwrap();
        kill(Pid::from_raw(i32::try_from(master.id()).unwrap()), Signal::SIGTERM).unwrap();
        master.wait().unwrap();
        fs::remove_dir_all(folder).unwrap();
        assert!(first && still && second);
        assert!(refused.unwrap_err().to_string().contains("haproxy.candidate"));
    }

    #[test]
    fn a_port_of_another_group_or_one_that_is_not_enabled_is_not_exposed() {
        assert_eq!(ports(&app(json!({ "HAPROXY_GROUP": "internal,external" }))), ["5000", "10101"]);
        assert_eq!(ports(&app(json!({ "HAPROXY_GROUP": "external", "HAPROXY_1_GROUP": "none" }))), ["5000"]);
        assert_eq!(ports(&app(json!({ "HAPROXY_GROUP": "external", "HAPROXY_1_ENABLED": "false" }))), ["5000"]);
        assert_eq!(ports(&app(json!({ "HAPROXY_1_GROUP": "external" }))), ["10101"]);
        assert_eq!(ports(&app(json!({ "HAPROXY_GROUP": "internal" }))), [""; 0]);
    }

    #[test]
    fn a_task_is_left_out_while_it_starts_or_ends_and_until_its_check_succeeds() {
        let mut apps = app(json!({ "HAPROXY_GROUP": "external", "HAPROXY_1_GROUP": "none" }));
        for state in ["TASK_STAGING", "TASK_STARTING", "TASK_KILLING", "TASK_FAILED"] {
            apps["apps"][0]["tasks"][0]["state"] = state.into();
            assert_eq!(proxies(&apps), "", "{state}");
        }
        apps["apps"][0]["tasks"][0]["state"] = "TASK_UNREACHABLE".into();
        assert!(proxies(&apps).contains("server 192_168_1_80_7001 192.168.1.80:7001 check inter 5s fall 4\n"));
        apps["apps"][0]["tasks"][0]["healthCheckResults"] = json!([{ "alive": false }]);
        assert_eq!(proxies(&apps), "");
        apps["apps"][0]["tasks"][0]["healthCheckResults"] = json!([]);
        assert_eq!(proxies(&apps), "");
        apps["apps"][0]["healthChecks"] = json!([]);
        assert!(proxies(&apps).contains("server 192_168_1_80_7001 192.168.1.80:7001\n"));
    }
}
