//! Which versions the servers pretend to be, and what depends on it.

use serde::{Deserialize, Serialize};

use super::enterprise::Security;

/// The posed cluster. Everything that differs between versions of DC/OS is a field here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pose {
    /// DC/OS version, for `dcos-metadata`.
    pub dcos: String,
    /// Open, or an Enterprise mode.
    #[serde(default)]
    pub security: Security,
    /// Marathon version.
    pub marathon: String,
    /// Mesos version.
    pub mesos: String,
    /// Metronome version.
    pub metronome: String,
    /// Whether a new top-level group enforces its name as role (`marathon_new_group_enforce_role: top`).
    pub enforce_role_in_new_groups: bool,
    /// Features that Marathon announces.
    pub features: Vec<String>,
    /// Longest backoff in seconds when a definition names none.
    pub max_launch_delay_seconds: f64,
}

/// The newest DC/OS that there is a pose of.
pub const NEWEST: &str = "2.2.1";

impl Pose {
    /// Versions of DC/OS that there is a pose of.
    pub fn versions() -> Vec<&'static str> {
        vec![NEWEST]
    }

    /// That version of DC/OS in that security mode; none if there is no pose of it.
    pub fn of(dcos: &str, security: Security) -> Option<Self> {
        let mut pose = (dcos == NEWEST).then(Self::open_2_2)?;
        if security != Security::Open {
            pose.security = security;
            pose.features.push("secrets".to_owned());
        }
        Some(pose)
    }

    /// Every PUT of a pod makes UNIQUE forget the instances that are there (Marathon before 1.4.10 and 1.5.3; seen on a real 1.4.2).
    pub(crate) fn pods_forget_unique_when_scaled(&self) -> bool {
        ["1.4.", "1.5."].iter().zip([10, 3]).any(|(line, mended)| {
            let patch = self.marathon.strip_prefix(line).and_then(|patch| patch.split(['.', '-']).next()?.parse::<u32>().ok());
            patch.is_some_and(|patch| patch < mended)
        })
    }

    /// Open DC/OS 2.2: no secrets, roles enforced in new groups.
    pub fn open_2_2() -> Self {
        Self {
            dcos: NEWEST.to_owned(),
            security: Security::Open,
            marathon: "1.11.24".to_owned(),
            mesos: "1.11.0".to_owned(),
            metronome: "0.6.70".to_owned(),
            enforce_role_in_new_groups: true,
            features: ["vips", "task_killing", "external_volumes", "gpu_resources"].map(str::to_owned).to_vec(),
            max_launch_delay_seconds: 300.0,
        }
    }
}
