//! What our tasks wrote, read as `dcos task log` does: the task from the master's state, its folder from the agent's, and the files
//! through the agent's files API. All of it passes Admin Router, and every DC/OS since 1.9 has it.

use std::time::Duration;

use serde::Deserialize;

use super::{OperatorError, Service};
use crate::documents::{SERVICE_LABEL, is_node_task};

/// The files that a task has.
const FILES: [&str; 2] = ["stdout", "stderr"];
/// What `logs` asks at a time; Mesos gives no more than 16 pages.
const CHUNK: u64 = 32 * 1024;
/// So much is enough for any number of lines that a person reads.
const MOST_BYTES: u64 = 8 * 1024 * 1024;
/// Between two looks while logs are followed.
const PAUSE: Duration = Duration::from_secs(1);
/// After so many looks it is asked whether the task was replaced: the master's state is large.
const LOOKS: u32 = 15;
/// Label of the controller's app.
const CONTROLLER_LABEL: &str = "DCOS_SERVICE_NAME";

/// Whose logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The controller's.
    Controller,
    /// The registry's.
    Registry,
    /// Those of the node on the agent with this host name.
    Agent(String),
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        match text.as_str() {
            "controller" => Self::Controller,
            "registry" => Self::Registry,
            _ => Self::Agent(text),
        }
    }
}

/// The last lines of a task.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Logs {
    /// Host name of the agent.
    pub agent: String,
    /// Mesos' id of the task.
    pub task: String,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// A task and where its files are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    task: String,
    host: String,
    agent_id: String,
    folder: String,
}

#[derive(Deserialize)]
struct MasterState {
    slaves: Vec<Slave>,
    frameworks: Vec<Framework>,
}

#[derive(Deserialize)]
struct Slave {
    id: String,
    hostname: String,
}

#[derive(Deserialize)]
struct Framework {
    name: String,
    #[serde(default)]
    tasks: Vec<Task>,
    #[serde(default)]
    completed_tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: String,
    slave_id: String,
    #[serde(default)]
    statuses: Vec<Status>,
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Status {
    timestamp: f64,
}

#[derive(Deserialize)]
struct Label {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct AgentState {
    frameworks: Vec<AgentFramework>,
}

#[derive(Deserialize)]
struct AgentFramework {
    executors: Vec<Executor>,
    #[serde(default)]
    completed_executors: Vec<Executor>,
}

#[derive(Deserialize)]
struct Executor {
    directory: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    tasks: Vec<TaskId>,
    #[serde(default)]
    queued_tasks: Vec<TaskId>,
    #[serde(default)]
    completed_tasks: Vec<TaskId>,
}

#[derive(Deserialize)]
struct TaskId {
    id: String,
}

#[derive(Deserialize)]
struct Part {
    data: String,
    offset: u64,
}

impl Target {
    fn is_task(&self, task: &Task, service: &str) -> bool {
        let labelled = |key: &str| task.labels.iter().any(|label| label.key == key && label.value.trim_matches('/') == service);
        match self {
            Self::Controller => labelled(CONTROLLER_LABEL),
            Self::Registry => labelled(SERVICE_LABEL),
            // Marathon puts the labels of a pod on its executor, so the id has to do.
            Self::Agent(_) => is_node_task(service, &task.id),
        }
    }
}

impl Service {
    /// The last lines that a task wrote.
    ///
    /// # Errors
    /// When there is no such task, or somebody does not answer.
    pub async fn logs(&self, target: &Target, lines: usize) -> Result<Logs, OperatorError> {
        let place = self.place(target).await?;
        let mut texts = FILES.map(|_| String::new());
        for (text, file) in texts.iter_mut().zip(FILES) {
            *text = self.tail(&place, file, lines).await?.0;
        }
        let [stdout, stderr] = texts;
        Ok(Logs { agent: place.host, task: place.task, stdout, stderr })
    }

    /// Tells `print` the last lines of a task and, without an end, what it writes further: agent, task, file and text.
    ///
    /// # Errors
    /// As [`Service::logs`].
    pub async fn follow(
        &self,
        target: &Target,
        lines: usize,
        mut print: impl FnMut(&str, &str, &str, &str),
    ) -> Result<std::convert::Infallible, OperatorError> {
        let mut place = self.place(target).await?;
        let mut lines = lines;
        loop {
            let mut seen = [0; FILES.len()];
            for (seen, file) in seen.iter_mut().zip(FILES) {
                let (text, end) = self.tail(&place, file, lines).await?;
                print(&place.host, &place.task, file, &text);
                *seen = end;
            }
            place = loop {
                for _ in 0..LOOKS {
                    tokio::time::sleep(PAUSE).await;
                    for (seen, file) in seen.iter_mut().zip(FILES) {
                        let size = self.size(&place, file).await?;
                        // A smaller file is a new one: the agent rotates them.
                        let begin = if size < *seen { 0 } else { *seen };
                        let text = self.read(&place, file, begin, size).await?;
                        if !text.is_empty() {
                            print(&place.host, &place.task, file, &String::from_utf8_lossy(&text));
                        }
                        *seen = size;
                    }
                }
                let now = self.place(target).await?;
                if now != place {
                    break now;
                }
            };
            // All that its successor wrote.
            lines = usize::MAX;
        }
    }

    async fn place(&self, target: &Target) -> Result<Place, OperatorError> {
        let state: MasterState = self.read_cluster("/mesos/master/state").await?;
        let mut hosts: Vec<&str> = state.slaves.iter().map(|slave| slave.hostname.as_str()).collect();
        crate::in_order::sort_by(&mut hosts, Ord::cmp);
        if let Target::Agent(host) = target
            && !hosts.contains(&host.as_str())
        {
            return Err(OperatorError::NoAgent { agent: host.clone(), agents: hosts.join(", ") });
        }
        let absent = || OperatorError::NoTask { what: target.to_string(), service: self.name.clone() };
        let (task, slave) = chosen(&state, target, &self.name).ok_or_else(absent)?;
        let agent: AgentState = self.read_cluster(&format!("/agent/{}/state", slave.id)).await?;
        // Agents forget the folders of tasks that have ended long ago.
        let folder = folder(&agent, &task.id).ok_or_else(absent)?;
        Ok(Place { task: task.id.clone(), host: slave.hostname.clone(), agent_id: slave.id.clone(), folder })
    }

    /// The last lines of a file, and where it ended then.
    async fn tail(&self, place: &Place, file: &str, lines: usize) -> Result<(String, u64), OperatorError> {
        let size = self.size(place, file).await?;
        let mut begin = size;
        let mut text = Vec::new();
        while begin > 0 && size - begin < MOST_BYTES && newlines(&text) <= lines {
            let end = begin;
            begin = end.saturating_sub(CHUNK);
            let mut part = self.read(place, file, begin, end).await?;
            part.append(&mut text);
            text = part;
        }
        Ok((String::from_utf8_lossy(last_lines(&text, lines)).into_owned(), size))
    }

    async fn size(&self, place: &Place, file: &str) -> Result<u64, OperatorError> {
        match self.part(place, file, "offset=-1").await {
            Ok((_, size)) => Ok(size),
            // A task that is only being started has none yet.
            Err(OperatorError::Cluster(source)) if source.is_absent() => Ok(0),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, place: &Place, file: &str, begin: u64, end: u64) -> Result<Vec<u8>, OperatorError> {
        let mut bytes = Vec::new();
        let mut offset = begin;
        while offset < end {
            // Counted by what was asked: a character cut in two comes as something longer.
            let length = CHUNK.min(end - offset);
            bytes.extend(self.part(place, file, &format!("offset={offset}&length={length}")).await?.0);
            offset += length;
        }
        Ok(bytes)
    }

    async fn part(&self, place: &Place, file: &str, range: &str) -> Result<(Vec<u8>, u64), OperatorError> {
        let path = escaped(&format!("{}/{file}", place.folder));
        let answer: Part = self.read_cluster(&format!("/agent/{}/files/read?path={path}&{range}", place.agent_id)).await?;
        Ok((answer.data.into_bytes(), answer.offset))
    }
}

/// The running task, or the one that ended last.
fn chosen<'a>(state: &'a MasterState, target: &Target, service: &str) -> Option<(&'a Task, &'a Slave)> {
    let frameworks = || state.frameworks.iter().filter(|framework| framework.name == "marathon");
    let on = |task: &Task| state.slaves.iter().find(|slave| slave.id == task.slave_id);
    let newest = |tasks: &mut dyn Iterator<Item = &'a Task>| {
        let here = |slave: &Slave| !matches!(target, Target::Agent(host) if *host != slave.hostname);
        let wanted = tasks.filter(|task| target.is_task(task, service)).filter_map(|task| Some((task, on(task)?)));
        wanted.filter(|(_, slave)| here(slave)).max_by(|(a, _), (b, _)| last_update(a).total_cmp(&last_update(b)))
    };
    newest(&mut frameworks().flat_map(|framework| &framework.tasks))
        .or_else(|| newest(&mut frameworks().flat_map(|framework| &framework.completed_tasks)))
}

fn last_update(task: &Task) -> f64 {
    task.statuses.iter().map(|status| status.timestamp).fold(0.0, f64::max)
}

/// The folder of a task on its agent. A pod's tasks share an executor.
fn folder(agent: &AgentState, task: &str) -> Option<String> {
    let executors = agent.frameworks.iter().flat_map(|framework| framework.executors.iter().chain(&framework.completed_executors));
    let mut executors = executors.filter(|executor| {
        let tasks = executor.tasks.iter().chain(&executor.queued_tasks).chain(&executor.completed_tasks);
        tasks.into_iter().any(|known| known.id == task)
    });
    let executor = executors.next()?;
    let folder = executor.directory.trim_end_matches('/');
    Some(if executor.kind == "DEFAULT" { format!("{folder}/tasks/{task}") } else { folder.to_string() })
}

fn newlines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    // A newline at the very end begins no line.
    let ends = text.iter().enumerate().rev().filter(|(at, byte)| **byte == b'\n' && at + 1 < text.len());
    let begin = match lines.checked_sub(1) {
        Some(before) => ends.map(|(at, _)| at + 1).nth(before).unwrap_or(0),
        None => text.len(),
    };
    &text[begin..]
}

/// As a value in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Controller => f.write_str("the controller"),
            Self::Registry => f.write_str("the registry"),
            Self::Agent(host) => write!(f, "the node on {host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn recorded<T: serde::de::DeserializeOwned>(file: &str) -> T {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn state() -> MasterState {
        let task = |id: &str, agent: &str, at: f64| serde_json::json!({"id": id, "slave_id": agent, "statuses": [{"timestamp": at}]});
        let labelled = |mut task: serde_json::Value, key: &str, value: &str| {
            task["labels"] = serde_json::json!([{"key": key, "value": value}]);
            task
        };
        parsed(serde_json::json!({
            "slaves": [{"id": "S0", "hostname": "10.0.0.1"}, {"id": "S1", "hostname": "10.0.0.2"}],
            "frameworks": [
                {"name": "marathon",
                    "tasks": [
                        task("images-node.instance-1.node", "S0", 5.0),
                        task("infra.images-node.instance-2.node", "S0", 5.0),
                        labelled(task("store.1", "S1", 1.0), "PRIVATE_REGISTRY_SERVICE", "infra/images"),
                        labelled(task("infra_images.1", "S1", 1.0), "DCOS_SERVICE_NAME", "/infra/images"),
                    ],
                    "completed_tasks": [
                        task("infra.images-node.instance-0.node", "S0", 9.0),
                        task("infra.images-node.instance-3.node", "S1", 1.0),
                        task("infra.images-node.instance-4.node", "S1", 3.0),
                    ]},
                {"name": "metronome", "tasks": [task("infra.images-node.1", "S0", 99.0)]},
            ],
        }))
    }

    #[test]
    fn a_target_is_the_running_task_of_this_service_and_else_the_one_that_ended_last() {
        let state = state();
        let id = |target: &str, service: &str| chosen(&state, &Target::from(target.to_string()), service).map(|(task, _)| task.id.as_str());
        assert_eq!(id("10.0.0.1", "infra/images"), Some("infra.images-node.instance-2.node"));
        assert_eq!(id("10.0.0.2", "infra/images"), Some("infra.images-node.instance-4.node"));
        assert_eq!(id("10.0.0.1", "images"), Some("images-node.instance-1.node"));
        assert_eq!(id("registry", "infra/images"), Some("store.1"));
        assert_eq!(id("controller", "infra/images"), Some("infra_images.1"));
        assert_eq!(id("registry", "images"), None);
        for (task, is_ours) in
            [("images-node-3.instance-1.node", true), ("images-node-other.instance-1.node", true), ("images-node-x.instance-1.node", false)]
        {
            assert_eq!(is_node_task("images", task), is_ours, "{task}");
        }
    }

    #[test]
    fn the_states_of_real_masters_and_agents_are_read_and_a_pods_task_has_a_folder_of_its_own() {
        let master: MasterState = recorded("mesos-1.11.0/master-state.json");
        assert!(master.slaves.iter().all(|slave| !slave.id.is_empty()) && !master.frameworks.is_empty());
        let agent: AgentState = recorded("mesos-1.11.0/agent-state.json");
        assert!(folder(&agent, "long-cmd").unwrap().ends_with("/executors/long-cmd/runs/24e64c7d-6562-4053-971a-0c1abf6e509f"));
        assert!(folder(&agent, "pod-a").unwrap().ends_with("/runs/c8da15fc-fea8-489b-b401-56fad4c41d9c/tasks/pod-a"));
        assert_eq!(folder(&agent, "nobody"), None);
    }

    #[test]
    fn the_last_lines_are_whole_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\nb\n", 9), b"a\nb\n");
        assert_eq!(last_lines(b"a\n", 0), b"");
        assert_eq!(last_lines(b"", 5), b"");
    }

    #[test]
    fn a_path_is_escaped_for_a_query() {
        assert_eq!(escaped("/var/a b&c=d"), "/var/a%20b%26c%3Dd");
    }
}
