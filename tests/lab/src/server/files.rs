//! What Admin Router forwards to an agent's own server: its state, and the files of its sandboxes (Mesos' files API).

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::routing::{any, get};
use serde_json::{Value, json};

use super::http::{Answer, Request, unknown_route};
use super::mesos::{agent_executors, agent_state};
use super::state::State;
use super::{Host, SharedState};

/// Where an agent sees its sandboxes.
const WORK_DIR: &str = "/var/lib/mesos";
/// No answer holds more of a file: 16 pages.
const MOST_BYTES: u64 = 16 * 4096;
const TEXT: &str = "text/plain; charset=utf-8";

/// `/agent/<id>/…`, the older `/slave/<id>/…`, and where the CLI reads that logs are files there and not in the journal.
pub(crate) fn router(state: SharedState) -> Router {
    let strategy = json!({ "uiConfiguration": { "plugins": { "mesos": { "enabled": true, "logging-strategy": "logrotate" } } } });
    Router::new()
        .route("/dcos-metadata/ui-config.json", get(axum::Json(strategy)))
        .route("/agent/{id}/{*path}", any(handle))
        .route("/slave/{id}/{*path}", any(handle))
        .with_state(state)
}

async fn handle(Extracted(shared): Extracted<SharedState>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let request = Request::new(method, &uri, headers, body);
    let answer = tokio::task::spawn_blocking(move || answer(&shared, &request)).await;
    answer.unwrap_or_else(|error| Answer::message(500, error.to_string())).into_response()
}

fn answer(shared: &SharedState, request: &Request) -> Answer {
    let mut segments = request.path.splitn(4, '/').skip(2);
    let (id, path) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let own_state = shared.read(|state| {
        let agent = state.agents.values().find(|agent| agent.id == id && agent.is_listed())?;
        Some(agent_state(state, agent, &*shared.host))
    });
    // Admin Router looks the agent up in the master's state.
    let Some(own_state) = own_state else { return Answer::empty(404) };
    let path = path.strip_prefix("slave(1)/").unwrap_or(path);
    match (request.method.as_str(), path.strip_suffix(".json").unwrap_or(path)) {
        ("GET", "state") => Answer::json(200, &own_state),
        ("GET", "version") => Answer::json(200, &shared.read(super::mesos::version)),
        ("GET", "files/read") => read(shared, id, request),
        ("GET", "files/browse") => browse(shared, id, request),
        _ => unknown_route(request),
    }
}

/// A folder on an agent's disk by the path that it has there.
pub(crate) fn as_agent_sees(folder: &Path, agent: Ipv4Addr, host: &dyn Host) -> PathBuf {
    Path::new(WORK_DIR).join(folder.strip_prefix(host.sandbox_root(agent)).unwrap_or(folder))
}

/// The file behind a path of the agent's. As Mesos' agent, it shows only what lies in an executor's sandbox.
fn resolve(state: &State, host: &dyn Host, id: &str, path: &str) -> Option<PathBuf> {
    let executors = agent_executors(state, id);
    let (run, rest, tasks) = executors.iter().find_map(|((_, run), tasks)| {
        let rest = Path::new(path).strip_prefix(as_agent_sees(run, tasks.first()?.agent, host)).ok()?;
        Some((*run, rest, tasks))
    })?;
    // Mesos links tasks/<task id> to the task's own sandbox in containers/<container id>.
    let of_task =
        rest.strip_prefix("tasks").ok().and_then(|rest| tasks.iter().find_map(|task| Some((task, rest.strip_prefix(&task.id).ok()?))));
    let file = match of_task {
        Some((task, rest)) => task.sandbox.join(rest),
        None => run.join(rest),
    };
    // Neither `..` nor links that a task made lead out of the sandbox.
    let real = file.canonicalize().ok()?;
    real.starts_with(run.canonicalize().ok()?).then_some(real)
}

/// The requested file, or the answer that there is none.
fn requested(shared: &SharedState, id: &str, request: &Request) -> Result<PathBuf, Answer> {
    let path = request.param("path").filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| Answer::text(400, TEXT, "Expecting 'path=value' in query.\n"))?;
    shared.read(|state| resolve(state, &*shared.host, id, path)).ok_or_else(|| Answer::empty(404))
}

fn read(shared: &SharedState, id: &str, request: &Request) -> Answer {
    let number = |name: &str| match request.param(name).map(str::parse::<i64>) {
        None => Ok(-1),
        Some(Ok(number)) if number >= -1 => Ok(number),
        Some(Ok(number)) => Err(Answer::text(400, TEXT, &format!("Negative {name} provided: {number}.\n"))),
        Some(Err(error)) => Err(Answer::text(400, TEXT, &format!("Failed to parse {name}: {error}.\n"))),
    };
    let asked = || Ok((requested(shared, id, request)?, number("offset")?, number("length")?));
    let (path, offset, length) = match asked() {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    if path.is_dir() {
        return Answer::text(400, TEXT, "Cannot read a directory.\n");
    }
    match read_part(&path, offset, length) {
        Ok((offset, data)) => Answer::json(200, &json!({ "data": data, "offset": offset })),
        Err(error) if error.kind() == ErrorKind::NotFound => Answer::empty(404),
        Err(error) => Answer::text(500, TEXT, &error.to_string()),
    }
}

/// An offset of -1 asks for the size only, a length of -1 for all there is.
fn read_part(path: &Path, offset: i64, length: i64) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let offset = match u64::try_from(offset) {
        Ok(offset) if offset < size => offset,
        _ => return Ok((size, String::new())),
    };
    file.seek(SeekFrom::Start(offset))?;
    let length = u64::try_from(length).unwrap_or(u64::MAX).min(MOST_BYTES);
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data)?;
    Ok((offset, String::from_utf8_lossy(&data).into_owned()))
}

fn browse(shared: &SharedState, id: &str, request: &Request) -> Answer {
    let folder = match requested(shared, id, request) {
        Ok(folder) => folder,
        Err(refusal) => return refusal,
    };
    let shown = request.param("path").unwrap_or_default().trim_end_matches('/').to_owned();
    let mut files: Vec<Value> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| describe(&shown, &entry)).collect();
    files.sort_by_key(|file| file["path"].to_string());
    Answer::json(200, &Value::from(files))
}

fn describe(folder: &str, entry: &std::fs::DirEntry) -> Option<Value> {
    let meta = entry.metadata().ok()?;
    // The lab's users are root and the one who started it; to a task both are root.
    Some(json!({
        "path": format!("{folder}/{}", entry.file_name().to_string_lossy()),
        "nlink": meta.nlink(),
        "size": meta.len(),
        "mtime": meta.mtime(),
        "mode": mode(meta.mode()),
        "uid": "root",
        "gid": "root",
    }))
}

/// As `ls -l` shows it.
fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        _ => '-',
    };
    let bits = (0..9).map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] });
    std::iter::once(kind).chain(bits).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::server::pretence::Pretence;
    use crate::server::state::Options;
    use crate::server::{Role, Shared, agents, marathon, tick};

    const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 80);

    struct Cluster {
        shared: SharedState,
        _dir: tempfile::TempDir,
    }

    /// An agent with an app's task and a pod's task, both of which have written something.
    fn cluster() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let host = Pretence { dir: dir.path().join("agents"), ..Pretence::default() };
        let shared = Shared::open(dir.path(), Arc::new(host), Options::default()).unwrap();
        shared.change(|state| agents::register(state, AGENT, Role::Private));
        let app = json!({ "id": "/app", "cmd": "x", "cpus": 0.1, "mem": 32 });
        let container = json!({ "name": "main", "exec": { "command": { "shell": "x" } }, "resources": { "cpus": 0.1, "mem": 32 } });
        let pod = json!({ "id": "/pod", "containers": [container], "networks": [{ "mode": "host" }] });
        for (path, body) in [("/v2/apps", app), ("/v2/pods", pod)] {
            let request = axum::http::Request::post(path).header("content-type", "application/json").body(Body::from(body.to_string()));
            assert_eq!(call(marathon::router(shared.clone()), request.unwrap()).0, 201);
        }
        tick(&shared);
        for sandbox in shared.read(|state| state.tasks.values().map(|task| task.sandbox.clone()).collect::<Vec<_>>()) {
            std::fs::write(sandbox.join("stdout"), "first\nsecond\n").unwrap();
            std::os::unix::fs::symlink("/etc/passwd", sandbox.join("outside")).unwrap();
        }
        Cluster { shared, _dir: dir }
    }

    fn call(router: Router, request: axum::http::Request<Body>) -> (u16, Value) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
            let status = answer.status().as_u16();
            let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        })
    }

    impl Cluster {
        fn get(&self, path: &str) -> (u16, Value) {
            call(router(self.shared.clone()), axum::http::Request::get(path).body(Body::empty()).unwrap())
        }

        /// Task of the app or pod.
        fn task(&self, of: &str) -> String {
            self.shared.read(|state| state.tasks.keys().find(|id| id.starts_with(of)).unwrap().clone())
        }

        fn agent(&self) -> String {
            format!("/slave/{}", self.shared.read(|state| state.agents[&AGENT].id.clone()))
        }

        /// The executor's folder, as the agent's state shows it.
        fn directory(&self, of: &str) -> String {
            let task = self.task(of);
            let (_, state) = self.get(&format!("{}/state.json", self.agent()));
            let executors = state["frameworks"][0]["executors"].as_array().unwrap();
            executors.iter().find(|executor| executor["tasks"][0]["id"] == *task).unwrap()["directory"].as_str().unwrap().to_owned()
        }

        fn read(&self, path: &str, rest: &str) -> (u16, Value) {
            self.get(&format!("{}/files/read.json?path={path}&{rest}", self.agent()))
        }
    }

    #[test]
    fn an_app_writes_into_the_folder_of_its_executor_and_a_pod_below_tasks() {
        let cluster = cluster();
        let app = cluster.directory("app");
        assert!(app.starts_with("/var/lib/mesos/slaves/"), "{app}");
        assert_eq!(cluster.read(&format!("{app}/stdout"), "offset=0&length=-1").1, json!({ "data": "first\nsecond\n", "offset": 0 }));
        let pod = cluster.directory("pod");
        assert_eq!(
            cluster.read(&format!("{pod}/tasks/{}/stdout", cluster.task("pod")), "offset=6&length=3").1,
            json!({ "data": "sec", "offset": 6 })
        );
        let listed = cluster.get(&format!("{}/files/browse?path={app}", cluster.agent())).1;
        let file = listed.as_array().unwrap().iter().find(|file| file["path"] == *format!("{app}/stdout")).unwrap();
        assert_eq!((file["size"].as_u64(), file["mode"].as_str()), (Some(13), Some("-rw-r--r--")));
    }

    #[test]
    fn an_offset_of_minus_one_or_beyond_the_end_tells_the_size() {
        let cluster = cluster();
        let file = format!("{}/stdout", cluster.directory("app"));
        for offset in ["-1", "13", "99"] {
            let (status, answer) = cluster.read(&file, &format!("offset={offset}&length=10"));
            assert_eq!((status, answer), (200, json!({ "data": "", "offset": 13 })));
        }
        assert_eq!(cluster.read(&file, "offset=-2").0, 400);
        assert_eq!(cluster.read(&file, "offset=x").0, 400);
    }

    #[test]
    fn nothing_outside_a_sandbox_is_read() {
        let cluster = cluster();
        let app = cluster.directory("app");
        for path in ["/etc/passwd", &format!("{app}/outside"), &format!("{app}/../../../../../../../../../../etc/passwd"), "/var/lib/mesos"]
        {
            assert_eq!(cluster.read(path, "offset=0").0, 404, "{path}");
        }
        assert_eq!(cluster.get("/slave/nobody/files/read?path=/etc/passwd").0, 404);
    }

    #[test]
    fn an_agents_state_has_the_form_of_a_real_ones() {
        use crate::journal::{Content, Exchange};
        let cluster = cluster();
        let path = format!("{}/state.json", cluster.agent());
        let recordings = crate::recordings::Recordings::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")).unwrap();
        let exchange = Exchange {
            service: "admin_router".into(),
            method: "GET".into(),
            response_body: Content::Json(cluster.get(&path).1),
            path,
            query: String::new(),
            request_type: None,
            accept: None,
            request_body: Content::Empty,
            status: 200,
            response_type: Some("application/json".into()),
            unknown: false,
        };
        let verdict = recordings.check(&exchange);
        assert!(matches!(verdict, crate::recordings::Verdict::Matches(_)), "{verdict:?}");
    }
}
