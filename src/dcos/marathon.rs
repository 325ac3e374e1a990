//! The root Marathon: apps, pods and what runs of them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Api, ApiError, versions};
use crate::names::Host;
use crate::protocol::NODE_ENDPOINT;

/// Client of the root Marathon.
#[derive(Debug, Clone)]
pub struct Marathon(pub Api);

/// An app as far as it can clash with ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppClaims {
    /// Absolute id.
    pub id: String,
    /// Service ports, which Marathon-LB binds.
    pub service_ports: Vec<u16>,
    /// Values of its VIP labels.
    pub vips: Vec<String>,
    /// Paths of its agents that it has mounted.
    pub mounts: Vec<String>,
    /// Ports that it wants of its agent, and no others.
    pub fixed_ports: Vec<u16>,
    /// The one agent that its constraints leave it.
    pub host: Option<Host>,
    /// It runs on public agents alone.
    pub public_only: bool,
    /// It is a Marathon-LB that serves our group.
    pub marathon_lb: bool,
    /// How many tasks of it run.
    pub tasks_running: u64,
}

/// A running task of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppTask {
    /// Mesos task id.
    pub id: String,
    /// Agent.
    pub host: Host,
    /// Host ports in the order of the app's port mappings.
    pub ports: Vec<u16>,
    /// Whether its health check has passed the last time; never where there is none.
    pub healthy: bool,
}

/// A pod's instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Marathon's id, which ends in a UUID.
    pub id: String,
    /// Agent, once it is placed.
    pub host: Option<Host>,
    /// Port of the node's status endpoint, once it runs.
    pub port: Option<u16>,
}

const BEFORE_UUID: &str = "instance-";

impl Instance {
    /// The UUID that ids of the instance, its tasks and its executor have in common.
    pub fn uuid(&self) -> &str {
        self.id.rsplit_once(BEFORE_UUID).map_or(self.id.as_str(), |(_, uuid)| uuid)
    }

    /// Whether [`Instance::uuid`] is this one.
    pub fn has_uuid(&self, uuid: &str) -> bool {
        self.id.strip_suffix(uuid).is_some_and(|before| before.is_empty() || before.ends_with(BEFORE_UUID))
    }
}

/// A pod: its stored definition and its instances.
#[derive(Clone)]
pub struct Pod {
    /// The definition as Marathon stores it, with its defaults. Who has looked at this very one need not look again.
    pub spec: Arc<Value>,
    /// What runs of it.
    pub instances: Vec<Instance>,
}

impl Pod {
    /// How many instances it is scaled to.
    pub fn scale(&self) -> u64 {
        self.spec["scaling"]["instances"].as_u64().unwrap_or(0)
    }
}

/// An app: its stored definition and its tasks.
#[derive(Clone)]
pub struct App {
    /// The definition as Marathon stores it, with its defaults.
    pub spec: Value,
    /// Running tasks.
    pub tasks: Vec<AppTask>,
}

// Environments hold secrets, ours and those of others.

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod").field("id", &self.spec["id"]).field("instances", &self.instances).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("id", &self.spec["id"]).field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

impl Marathon {
    /// An app with its running tasks; `None` if there is none of that id.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn app(&self, id: &str) -> Result<Option<App>, ApiError> {
        let answer: Option<AppAnswer> = absent_is_none(self.0.get(&format!("/v2/apps{id}?embed=app.tasks")).await)?;
        Ok(answer.map(AppAnswer::app))
    }

    /// Which Marathon this is. A version that cannot be read counts as a recent one.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn version(&self) -> Result<versions::Marathon, ApiError> {
        let info: Value = self.0.get("/v2/info").await?;
        Ok(version_in(&info))
    }

    /// What every app claims: service ports and VIPs.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn claims(&self) -> Result<Vec<AppClaims>, ApiError> {
        let answer: Value = self.0.get("/v2/apps").await?;
        Ok(claims_in(&answer))
    }

    /// A pod with its instances; `None` if there is none of that id.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn pod(&self, id: &str) -> Result<Option<Pod>, ApiError> {
        let answer: Option<PodStatus> = absent_is_none(self.0.get(&format!("/v2/pods{id}::status")).await)?;
        Ok(answer.map(PodStatus::pod))
    }

    /// All pods that `wanted` says to take, by their ids, with their instances.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn pods(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Pod>, ApiError> {
        let mut pods = Vec::new();
        let each = |_: &str, element: &[u8]| {
            // Others' pods are none of our business, and not worth reading but for their ids.
            if wanted(&crate::json::of_bytes::<PodId>(element)?.spec.id) {
                pods.push(crate::json::of_bytes::<PodStatus>(element)?.pod());
            }
            Ok(())
        };
        self.0.get_each("/v2/pods/::status", "", each).await?;
        Ok(pods)
    }

    /// Ids of the apps and pods that a running deployment touches, and so locks.
    ///
    /// # Errors
    /// When Marathon does not answer.
    pub async fn locked(&self) -> Result<Vec<String>, ApiError> {
        let deployments: Vec<Deployment> = self.0.get("/v2/deployments").await?;
        Ok(deployments.into_iter().flat_map(|d| d.affected_apps.into_iter().chain(d.affected_pods)).collect())
    }

    /// Creates or replaces an app.
    ///
    /// # Errors
    /// [`ApiError::is_conflict`] while a deployment of the app runs and `force` is not set.
    pub async fn put_app(&self, id: &str, app: &Value, force: bool) -> Result<(), ApiError> {
        self.0.call::<Value>("PUT", &format!("/v2/apps{id}?partialUpdate=false&force={force}"), Some(app)).await.map(drop)
    }

    /// Changes only the given fields of an app.
    ///
    /// # Errors
    /// As [`Marathon::put_app`].
    pub async fn patch_app(&self, id: &str, fields: &Value, force: bool) -> Result<(), ApiError> {
        self.0.call::<Value>("PUT", &format!("/v2/apps{id}?force={force}"), Some(fields)).await.map(drop)
    }

    /// Deletes an app; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When Marathon does not answer or refuses.
    pub async fn delete_app(&self, id: &str) -> Result<(), ApiError> {
        absent_is_none(self.0.call::<Value>("DELETE", &format!("/v2/apps{id}?force=true"), None).await).map(drop)
    }

    /// Creates or replaces a pod and returns what Marathon stored, which may lack fields that it does not know.
    ///
    /// # Errors
    /// [`ApiError::is_conflict`] while a deployment of the pod runs and `force` is not set.
    pub async fn put_pod(&self, id: &str, pod: &Value, force: bool) -> Result<Value, ApiError> {
        self.0.call("PUT", &format!("/v2/pods{id}?force={force}"), Some(pod)).await
    }

    /// Deletes a pod; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When Marathon does not answer or refuses.
    pub async fn delete_pod(&self, id: &str) -> Result<(), ApiError> {
        absent_is_none(self.0.call::<Value>("DELETE", &format!("/v2/pods{id}?force=true"), None).await).map(drop)
    }
}

pub(super) fn absent_is_none<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct AppAnswer {
    app: Value,
}

impl AppAnswer {
    fn app(self) -> App {
        let tasks = self.app["tasks"].as_array().map(|tasks| tasks.iter().filter_map(app_task).collect()).unwrap_or_default();
        App { spec: self.app, tasks }
    }
}

fn version_in(info: &Value) -> versions::Marathon {
    let version = info["version"].as_str().and_then(|text| text.parse().ok()).unwrap_or(versions::NEWEST_SEEN);
    versions::Marathon { version }
}

fn claims_in(answer: &Value) -> Vec<AppClaims> {
    answer["apps"].as_array().map(|apps| apps.iter().map(app_claims).collect()).unwrap_or_default()
}

#[derive(Deserialize)]
struct PodId {
    spec: PodSpecId,
}

#[derive(Deserialize)]
struct PodSpecId {
    id: String,
}

#[derive(Deserialize)]
struct PodStatus {
    spec: Value,
    #[serde(default)]
    instances: Vec<PodInstance>,
}

impl PodStatus {
    fn pod(self) -> Pod {
        Pod { spec: Arc::new(self.spec), instances: self.instances.into_iter().map(PodInstance::instance).collect() }
    }
}

#[derive(Deserialize)]
struct PodInstance {
    id: String,
    #[serde(rename = "agentHostname", default)]
    host: Option<String>,
    #[serde(default)]
    containers: Vec<PodContainer>,
}

#[derive(Deserialize)]
struct PodContainer {
    #[serde(default)]
    status: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    name: String,
    #[serde(rename = "allocatedHostPort", default)]
    port: Option<u16>,
}

impl PodInstance {
    fn instance(self) -> Instance {
        let running = self.containers.iter().filter(|c| c.status == "TASK_RUNNING");
        let port = running.flat_map(|c| &c.endpoints).find(|e| e.name == NODE_ENDPOINT).and_then(|e| e.port);
        Instance { id: self.id, host: self.host.and_then(|h| h.parse().ok()), port }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deployment {
    #[serde(default)]
    affected_apps: Vec<String>,
    #[serde(default)]
    affected_pods: Vec<String>,
}

fn app_task(task: &Value) -> Option<AppTask> {
    if task["state"] != "TASK_RUNNING" {
        return None;
    }
    let ports = task["ports"].as_array()?.iter().filter_map(|p| p.as_u64().and_then(|p| u16::try_from(p).ok())).collect();
    let healthy = task["healthCheckResults"].as_array().is_some_and(|results| results.iter().any(|result| result["alive"] == true));
    Some(AppTask { id: task["id"].as_str()?.into(), host: task["host"].as_str()?.parse().ok()?, ports, healthy })
}

fn app_claims(app: &Value) -> AppClaims {
    let mappings = |value: &Value| value.as_array().cloned().unwrap_or_default();
    // Where port mappings stand differs by version: in `container` from Marathon 1.5 on, in `container.docker` before.
    let container = &app["container"];
    let all =
        [mappings(&container["portMappings"]), mappings(&container["docker"]["portMappings"]), mappings(&app["portDefinitions"])].concat();
    let port = |value: &Value| value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    let requires = app["requirePorts"] == true;
    let pin = |c: &&Value| c[0] == "hostname" && ["CLUSTER", "IS", "LIKE"].iter().any(|operator| c[1] == *operator);
    let pinned = app["constraints"].as_array().into_iter().flatten().find(pin);
    AppClaims {
        id: app["id"].as_str().unwrap_or_default().to_string(),
        service_ports: all.iter().filter_map(|m| port(&m["servicePort"]).or_else(|| port(&m["port"]))).collect(),
        vips: all
            .iter()
            .filter_map(|m| m["labels"].as_object())
            .flatten()
            .filter(|(key, _)| key.to_ascii_uppercase().starts_with("VIP"))
            .filter_map(|(_, value)| value.as_str().map(String::from))
            .collect(),
        mounts: mappings(&container["volumes"]).iter().filter_map(|volume| volume["hostPath"].as_str().map(String::from)).collect(),
        fixed_ports: all.iter().filter_map(|m| port(&m["hostPort"]).or_else(|| port(&m["port"]).filter(|_| requires))).collect(),
        host: pinned.and_then(|c| c[2].as_str()?.trim_matches(['^', '$']).replace('\\', "").parse().ok()),
        public_only: app["acceptedResourceRoles"] == serde_json::json!(["slave_public"]),
        marathon_lb: is_marathon_lb(app),
        tasks_running: app["tasksRunning"].as_u64().unwrap_or_default(),
    }
}

/// Group of apps that the registry belongs to at Marathon-LB.
pub const MARATHON_LB_GROUP: &str = "external";

/// Whether an app is the package `marathon-lb`, or runs its image, and serves our group: an internal one serves another.
fn is_marathon_lb(app: &Value) -> bool {
    let image = app["container"]["docker"]["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().and_then(|name| name.split([':', '@']).next());
    if app["labels"]["DCOS_PACKAGE_NAME"] != "marathon-lb" && name != Some("marathon-lb") {
        return false;
    }
    let args: Vec<&str> = app["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let groups: Vec<&str> = args.windows(2).filter(|pair| pair[0] == "--group").map(|pair| pair[1]).collect();
    // "*" serves every group.
    groups.is_empty() || groups.iter().any(|group| [MARATHON_LB_GROUP, "*"].contains(group))
}

/// For fuzzing: reads whatever Marathon could answer to any question.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_anything(answer: &[u8]) -> (Option<App>, Option<Pod>, Vec<AppClaims>) {
    let Ok(value) = crate::json::of_bytes::<Value>(answer) else { return (None, None, Vec::new()) };
    let _ = crate::json::of_value::<Vec<Deployment>>(&value);
    let _ = version_in(&value).pulls_schema_2();
    let app = crate::json::of_value::<AppAnswer>(&value).ok().map(AppAnswer::app);
    let pod = crate::json::of_value::<PodStatus>(&value).ok().map(PodStatus::pod);
    let _ = crate::json::of_value::<Vec<PodStatus>>(&value);
    (app, pod, claims_in(&value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marathon_lb_is_known_by_its_package_or_image_unless_it_serves_another_group() {
        let with = |labels: Value, image: &str, args: Value| {
            app_claims(&json!({ "id": "/lb", "labels": labels, "container": { "docker": { "image": image } }, "args": args })).marathon_lb
        };
        let package = json!({ "DCOS_PACKAGE_NAME": "marathon-lb" });
        assert!(with(package.clone(), "mesosphere/marathon-lb:v1.15.0", json!(["sse", "--group", "external"])));
        assert!(with(json!({}), "registry.example.com:5000/mesosphere/marathon-lb@sha256:00", Value::Null));
        assert!(!with(package, "mesosphere/marathon-lb:v1.15.0", json!(["sse", "--group", "internal"])));
        assert!(!with(json!({}), "example/not-marathon-lb:1", Value::Null));
    }

    #[test]
    fn what_an_app_claims_is_read_from_the_old_and_the_new_syntax() {
        let app = json!({
            "id": "/web", "requirePorts": true, "acceptedResourceRoles": ["slave_public"], "tasksRunning": 2,
            "constraints": [["hostname", "LIKE", "^10\\.0\\.0\\.9$"]],
            "portDefinitions": [{ "port": 10050, "labels": { "VIP_0": "/web:80" } }],
            "container": { "docker": { "portMappings": [{ "containerPort": 80, "hostPort": 5000, "servicePort": 10001 }] } },
        });
        let claims = app_claims(&app);
        assert_eq!((claims.service_ports, claims.fixed_ports), (vec![10001, 10050], vec![5000, 10050]));
        assert_eq!(claims.host, Some("10.0.0.9".parse().unwrap()));
        assert!(claims.public_only && !claims.marathon_lb && claims.tasks_running == 2);
        assert!(app_claims(&json!({ "portDefinitions": [{ "port": 10050 }] })).fixed_ports.is_empty());
    }
}
