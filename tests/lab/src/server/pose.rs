//! Which versions the servers pretend to be, and what depends on it.
//!
//! Everything that differs between versions of DC/OS is a field or a method of [`Pose`]. "Recorded" means seen on the real server of
//! that version; the rest is read in the sources of the tagged releases.

use serde::{Deserialize, Serialize};

use super::enterprise::Security;

/// The posed cluster.
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
    /// Whether a new top-level group enforces its name as role: `marathon_new_group_enforce_role`, `top` from DC/OS 2.0 on.
    pub enforce_role_in_new_groups: bool,
    /// Features that Marathon announces.
    pub features: Vec<String>,
    /// Longest backoff in seconds when a definition names none: an hour (recorded on 1.4.2 and 1.7.202), five minutes from Marathon 1.8 on.
    pub max_launch_delay_seconds: f64,
}

/// The newest DC/OS that there is a pose of.
pub const NEWEST: &str = "2.2.1";

/// DC/OS, Marathon, Mesos, Metronome: the `buildinfo.json` files of the releases. Of Mesos they tell a commit, so its last number is
/// the one that the recordings have, or 0. The newest Marathon and Metronome are those that were recorded.
const RELEASES: [[&str; 4]; 8] = [
    ["1.9.0", "1.4.2", "1.2.0", "0.2.2"],
    ["1.9.10", "1.4.12", "1.2.0", "0.3.6"],
    ["1.10.4", "1.5.5", "1.4.0", "0.3.2"],
    ["1.11.0", "1.6.322", "1.5.0", "0.4.0"],
    ["1.12.0", "1.7.174", "1.7.0", "0.5.71"],
    ["1.13.0", "1.8.180", "1.8.0", "0.6.21"],
    ["2.0.0", "1.9.100", "1.9.0", "0.6.33"],
    [NEWEST, "1.11.24", "1.11.0", "0.6.70"],
];

/// Marathon's minor versions, which is what most of its quirks hang on.
const MARATHON_1_5: [u32; 3] = [1, 5, 0];

/// Up to three numbers; what follows them does not count: `1.5.0-SNAPSHOT-713` is 1.5.0.
fn numbers(version: &str) -> [u32; 3] {
    let mut all = [0; 3];
    for (number, part) in all.iter_mut().zip(version.split('.')) {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        *number = digits.parse().unwrap_or(0);
    }
    all
}

impl Pose {
    /// Versions of DC/OS that there is a pose of.
    pub fn versions() -> Vec<&'static str> {
        RELEASES.iter().map(|[dcos, ..]| *dcos).collect()
    }

    /// That version of DC/OS in that security mode; none if there is no pose of it.
    pub fn of(dcos: &str, security: Security) -> Option<Self> {
        let [dcos, marathon, mesos, metronome] = RELEASES.iter().find(|[known, ..]| *known == dcos)?.map(str::to_owned);
        let mut features = ["vips", "task_killing", "external_volumes", "gpu_resources"].map(str::to_owned).to_vec();
        if security != Security::Open {
            features.push("secrets".to_owned());
        }
        let mut pose = Self {
            enforce_role_in_new_groups: numbers(&dcos) >= [2, 0, 0],
            max_launch_delay_seconds: 300.0,
            dcos,
            security,
            marathon,
            mesos,
            metronome,
            features,
        };
        if !pose.marathon_from([1, 8, 0]) {
            pose.max_launch_delay_seconds = 3600.0;
        }
        Some(pose)
    }

    /// Open DC/OS 2.2: no secrets, roles enforced in new groups.
    pub fn open_2_2() -> Self {
        #[expect(clippy::expect_used, reason = "it is in the table above")]
        Self::of(NEWEST, Security::Open).expect("there is a pose of the newest version")
    }

    pub(crate) fn marathon_from(&self, version: [u32; 3]) -> bool {
        numbers(&self.marathon) >= version
    }

    pub(crate) fn mesos_from(&self, version: [u32; 3]) -> bool {
        numbers(&self.mesos) >= version
    }

    pub(crate) fn metronome_from(&self, version: [u32; 3]) -> bool {
        numbers(&self.metronome) >= version
    }

    // --- Marathon -----------------------------------------------------------------------------------------------------------

    /// Every PUT of a pod makes UNIQUE forget the instances that are there (Marathon before 1.4.10 and 1.5.3; seen on a real 1.4.2).
    pub(crate) fn pods_forget_unique_when_scaled(&self) -> bool {
        let version = numbers(&self.marathon);
        let line = |mended: [u32; 3]| version[..2] == mended[..2] && version < mended;
        line([1, 4, 10]) || line([1, 5, 3])
    }

    /// Marathon 1.4 has readers and checks of its own for apps: `uris` beside `fetch`, the network inside of `container.docker`, no
    /// `networks`; and what has a wrong type is a 400, not a 422. Recorded on 1.4.2 and, as no longer so, on 1.7.202; the change came
    /// with the RAML of 1.5.
    pub(crate) fn has_apps_of_1_4(&self) -> bool {
        !self.marathon_from(MARATHON_1_5)
    }

    /// An unknown URI is a 404 that names it; later a 500 that does not. Recorded on 1.4.2, 1.7.202 and 1.11.24.
    pub(crate) fn names_unknown_uris(&self) -> bool {
        !self.marathon_from(MARATHON_1_5)
    }

    /// GROUP_BY without a value divides by zero and stops the launcher (commit ddd6b19b1: recorded on 1.11.24; not on 1.4.2 and 1.7.202).
    pub(crate) fn divides_by_zero(&self) -> bool {
        self.marathon_from([1, 11, 0])
    }

    /// Numbers of definitions that are whole are shown without a decimal point (recorded on 1.4.2 and 1.7.202; with one on 1.11.24).
    /// That 1.8 began it is a guess.
    pub(crate) fn prints_whole_numbers_plainly(&self) -> bool {
        !self.marathon_from([1, 8, 0])
    }

    /// Some 404 have an empty list of details. Recorded on 1.11.24, not on 1.7.202; that 1.8 began it is a guess.
    pub(crate) fn absent_has_details(&self) -> bool {
        self.marathon_from([1, 8, 0])
    }

    /// Apps, pods and what is shown of them have a role (multi-role Marathon, 1.9).
    pub(crate) fn has_roles(&self) -> bool {
        self.marathon_from([1, 9, 0])
    }

    /// What a group's enforced role does not allow among `acceptedResourceRoles` is left out in silence (Marathon 1.9); 1.10 and later
    /// refuse it (recorded on 1.11.24). Marathon without roles takes any (recorded on 1.4.2 and 1.7.202).
    pub(crate) fn strips_accepted_roles(&self) -> bool {
        self.has_roles() && !self.marathon_from([1, 10, 0])
    }

    /// The unreachable strategy of who names none, in seconds: 300 and 600 before Marathon 1.4.6 (recorded on 1.4.2).
    pub(crate) fn unreachable_default(&self) -> (u32, u32) {
        if self.marathon_from([1, 4, 6]) { (0, 0) } else { (300, 600) }
    }

    /// The Mesos containerizer understands images of schema 2 (MESOS-6934, Mesos 1.8); before, only those of schema 1.
    pub(crate) fn pulls_schema_2(&self) -> bool {
        self.mesos_from([1, 8, 0])
    }

    /// Agents with GPUs are kept for those who ask for some, or who have the label `GPU_SCHEDULING_BEHAVIOR: unrestricted`: the
    /// behaviour `restricted`, DC/OS' setting from 1.13 on.
    pub(crate) fn keeps_gpus_for_those_who_ask(&self) -> bool {
        self.marathon_from([1, 8, 0])
    }

    /// Agents in another region than the master's take only who has a constraint on `@region` or `@zone` (Marathon 1.6).
    pub(crate) fn knows_regions(&self) -> bool {
        self.marathon_from([1, 6, 0])
    }

    /// `agentId` and `localVolumes` of instances (1.5; recorded without on 1.4.2, with on 1.7.202).
    pub(crate) fn shows_agents_and_volumes_of_instances(&self) -> bool {
        self.marathon_from(MARATHON_1_5)
    }

    /// Command health checks of pods need Mesos 1.3 ("Mesos Master (1.2.0) does not support Command Health Checks", recorded), and no
    /// Marathon 1.4 lets them pass (`MinCommandCheckMesosVersion`).
    pub(crate) fn pods_have_command_checks(&self) -> bool {
        self.marathon_from(MARATHON_1_5) && self.mesos_from([1, 3, 0])
    }

    // --- Mesos --------------------------------------------------------------------------------------------------------------

    /// SUBSCRIBE of the operator API beats its heart (1.5; recorded without on 1.2.0, with on 1.11.0).
    pub(crate) fn has_heartbeats(&self) -> bool {
        self.mesos_from([1, 5, 0])
    }

    /// The master can deactivate and drain agents, and lists whether it has (1.9).
    pub(crate) fn deactivates_agents(&self) -> bool {
        self.mesos_from([1, 9, 0])
    }

    /// Before 1.4 the master shows little of itself and its agents: no capabilities, no time of a registration anew that never was,
    /// no `checkpoint` (recorded on 1.2.0; that 1.4 began it is a guess).
    pub(crate) fn shows_capabilities(&self) -> bool {
        self.mesos_from([1, 4, 0])
    }

    /// Agents have a region and a zone (`domain`, 1.5).
    pub(crate) fn has_fault_domains(&self) -> bool {
        self.mesos_from([1, 5, 0])
    }

    /// The default executor ends a pod's tasks with SIGKILL at once: recorded on 1.2.0, and no longer so on 1.11.0, where SIGTERM and
    /// the grace period come first.
    pub fn kills_pods_outright(&self) -> bool {
        !self.mesos_from([1, 4, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dcos: &str) -> Pose {
        Pose::of(dcos, Security::Open).unwrap()
    }

    /// Which poses have it, by version of DC/OS.
    fn from(has: impl Fn(&Pose) -> bool) -> Vec<&'static str> {
        Pose::versions().into_iter().filter(|dcos| has(&open(dcos))).collect()
    }

    #[test]
    fn every_version_has_a_pose_and_no_other_has() {
        for dcos in Pose::versions() {
            assert_eq!(open(dcos).dcos, dcos);
            assert!(!open(dcos).features.contains(&"secrets".to_owned()));
        }
        assert!(Pose::of("1.8.8", Security::Open).is_none());
        assert_eq!(Pose::open_2_2().marathon, "1.11.24");
    }

    /// DC/OS 1.9 has Marathon 1.4, 1.10 has 1.5, 1.11 has 1.6, 1.12 has 1.7, 1.13 has 1.8, 2.0 to 2.2 have 1.9 to 1.11.
    #[test]
    fn every_pose_keeps_to_the_map_of_versions() {
        let minors = [(9, 4, 2), (9, 4, 2), (10, 5, 4), (11, 6, 5), (12, 7, 7), (13, 8, 8)];
        for (dcos, (minor, marathon, mesos)) in Pose::versions().into_iter().zip(minors) {
            let pose = open(dcos);
            assert_eq!(numbers(dcos)[1], minor);
            assert_eq!((numbers(&pose.marathon)[1], numbers(&pose.mesos)[1]), (marathon, mesos), "{dcos}");
        }
        assert_eq!((open("2.0.0").marathon.as_str(), open("2.0.0").mesos.as_str()), ("1.9.100", "1.9.0"));
        let metronomes: Vec<[u32; 3]> = Pose::versions().iter().map(|dcos| numbers(&open(dcos).metronome)).collect();
        // 1.9 kept up with 1.10 by patch releases.
        assert_eq!(metronomes.windows(2).filter(|pair| pair[0] > pair[1]).count(), 1);
    }

    #[test]
    fn what_came_with_a_version_is_there_from_then_on() {
        assert_eq!(from(Pose::pods_forget_unique_when_scaled), ["1.9.0"]);
        assert_eq!(from(Pose::has_apps_of_1_4), ["1.9.0", "1.9.10"]);
        assert_eq!(from(Pose::kills_pods_outright), ["1.9.0", "1.9.10"]);
        assert_eq!(from(|pose| pose.unreachable_default() != (0, 0)), ["1.9.0"]);
        assert_eq!(from(|pose| !pose.pods_have_command_checks()), ["1.9.0", "1.9.10"]);
        assert_eq!(from(|pose| !pose.has_heartbeats()), ["1.9.0", "1.9.10", "1.10.4"]);
        assert_eq!(from(|pose| !pose.knows_regions()), ["1.9.0", "1.9.10", "1.10.4"]);
        assert_eq!(from(Pose::keeps_gpus_for_those_who_ask), ["1.13.0", "2.0.0", "2.2.1"]);
        assert_eq!(from(Pose::pulls_schema_2), ["1.13.0", "2.0.0", "2.2.1"]);
        assert_eq!(from(|pose| pose.max_launch_delay_seconds < 3600.0), ["1.13.0", "2.0.0", "2.2.1"]);
        assert_eq!(from(Pose::has_roles), ["2.0.0", "2.2.1"]);
        assert_eq!(from(Pose::deactivates_agents), ["2.0.0", "2.2.1"]);
        assert_eq!(from(|pose| pose.enforce_role_in_new_groups), ["2.0.0", "2.2.1"]);
        assert_eq!(from(Pose::strips_accepted_roles), ["2.0.0"]);
    }

    #[test]
    fn snapshots_and_builds_have_the_numbers_of_their_release() {
        assert_eq!(numbers("1.5.0-SNAPSHOT-713"), [1, 5, 0]);
        assert_eq!(numbers("1.5.1.2"), [1, 5, 1]);
        let mut pose = open("1.10.4");
        for (marathon, forgets) in [("1.4.9", true), ("1.4.10", false), ("1.5.0-SNAPSHOT-713", true), ("1.5.2", true), ("1.5.3", false)] {
            pose.marathon = marathon.to_owned();
            assert_eq!(pose.pods_forget_unique_when_scaled(), forgets, "{marathon}");
        }
    }
}
