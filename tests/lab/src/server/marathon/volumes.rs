//! Persistent volumes: what an instance has reserved for good, on one agent, and the directories of its own there.
//!
//! An instance reserves where it is launched first and is launched nowhere else from then on; what it has reserved is nobody else's
//! while it does not run, its host ports included. With the instance go reservation and directories. None of this was recorded: it
//! is as in Marathon's documentation (`persistent-volumes.md`) and in its sources up to 1.11.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Instance;
use super::instances::safe;
use crate::executor::SANDBOX_IN_CONTAINER;
use crate::server::Host;
use crate::server::scheduler::Placement;
use crate::server::state::{Agent, Resources, State};
use crate::task::Volume;

/// Where Mesos keeps everything on an agent of the lab.
const WORK_DIR: &str = "/var/lib/mesos";

/// What an instance has for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub(crate) agent: Ipv4Addr,
    /// An agent that comes back under another id has nothing of it any more.
    pub(crate) agent_id: String,
    /// Everything that the task takes, its volumes included.
    pub(crate) resources: Resources,
    pub(crate) role: String,
    volumes: Vec<LocalVolume>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LocalVolume {
    path: String,
    uuid: String,
    size: f64,
}

/// The persistent ones among the volumes of an app's container.
fn declared(definition: &Value) -> impl Iterator<Item = &Value> {
    definition["container"]["volumes"].as_array().into_iter().flatten().filter(|volume| volume["persistent"].is_object())
}

/// Whether instances of it keep what they have.
pub(crate) fn is_resident(definition: &Value) -> bool {
    declared(definition).next().is_some()
}

fn size(volume: &Value) -> f64 {
    volume["persistent"]["size"].as_f64().unwrap_or_default()
}

/// MB that the volumes of a definition take of a disk.
pub(crate) fn disk(definition: &Value) -> f64 {
    declared(definition).map(size).sum()
}

/// Reserves for an instance that is about to be launched for the first time.
pub(crate) fn reserve(instance: &mut Instance, placement: &Placement, agent_id: &str, resources: Resources) {
    if instance.reservation.is_some() || !is_resident(&instance.definition) {
        return;
    }
    let volumes = declared(&instance.definition).map(|volume| LocalVolume {
        path: volume["containerPath"].as_str().unwrap_or_default().to_owned(),
        uuid: uuid::Uuid::now_v1(&[2, 66, 254, 30, 192, 139]).to_string(),
        size: size(volume),
    });
    instance.reservation = Some(Reservation {
        agent: placement.agent,
        agent_id: agent_id.to_owned(),
        resources,
        role: instance.definition["role"].as_str().unwrap_or("*").to_owned(),
        volumes: volumes.collect(),
    });
}

impl Instance {
    fn persistence_id(&self, volume: &LocalVolume) -> String {
        format!("{}#{}#{}", safe(&self.spec), volume.path, volume.uuid)
    }

    /// The directories of its volumes below Mesos' own, and where the container sees them.
    fn directories(&self) -> Vec<(PathBuf, String)> {
        let of = |reservation: &Reservation| {
            let roles = Path::new("volumes/roles").join(&reservation.role);
            let volumes = reservation.volumes.iter();
            volumes.map(|volume| (roles.join(self.persistence_id(volume)), volume.path.clone())).collect()
        };
        self.reservation.as_ref().map(of).unwrap_or_default()
    }

    /// As tasks and pods show them.
    pub(crate) fn local_volumes(&self) -> Value {
        let volumes = self.reservation.iter().flat_map(|reservation| &reservation.volumes);
        let view = |volume: &LocalVolume| {
            let id = self.persistence_id(volume);
            json!({ "runSpecId": self.spec, "containerPath": volume.path, "uuid": volume.uuid, "persistenceId": id })
        };
        volumes.map(view).collect()
    }

    /// What docker mounts of them: below the sandbox.
    pub(crate) fn mounts(&self) -> Vec<Volume> {
        let mount = |(directory, path): (PathBuf, String)| Volume {
            container_path: format!("{SANDBOX_IN_CONTAINER}/{path}"),
            host_path: Path::new(WORK_DIR).join(directory).display().to_string(),
            read_only: false,
        };
        self.directories().into_iter().map(mount).collect()
    }
}

/// Makes the directories of an instance; those that are there stay as they are.
pub(crate) fn make(instance: &Instance, host: &dyn Host) -> std::io::Result<()> {
    let Some(reservation) = &instance.reservation else { return Ok(()) };
    let root = host.sandbox_root(reservation.agent);
    instance.directories().iter().try_for_each(|(directory, _)| std::fs::create_dir_all(root.join(directory)))
}

/// Removes the directories of instances that are no more.
pub(crate) fn destroy(state: &mut State, host: &dyn Host) {
    for instance in std::mem::take(&mut state.marathon.destroyed) {
        let Some(reservation) = &instance.reservation else { continue };
        let root = host.sandbox_root(reservation.agent);
        for (directory, _) in instance.directories() {
            if let Err(error) = std::fs::remove_dir_all(root.join(&directory)) {
                tracing::error!(%error, directory = %directory.display(), "persistent volume not removed");
            }
        }
    }
}

/// What is reserved on an agent, by role, whether it is used or not.
pub(crate) fn reserved<'a>(state: &'a State, agent: &'a Agent) -> impl Iterator<Item = (&'a Instance, &'a Reservation)> {
    let with = |instance: &'a Instance| instance.reservation.as_ref().map(|reservation| (instance, reservation));
    state.marathon.instances.values().filter_map(with).filter(|(_, reservation)| reservation.agent_id == agent.id)
}

/// What nobody but instances that do not run at present may take; `own`: the instance that asks.
pub(crate) fn kept_for_others(state: &State, agent: &Agent, own: Option<&str>) -> Resources {
    let mut kept = Resources::default();
    for (instance, reservation) in reserved(state, agent) {
        if instance.present_tasks(state).next().is_none() && own != Some(instance.id.as_str()) {
            kept.add(&reservation.resources);
        }
    }
    kept
}
