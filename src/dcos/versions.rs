//! What depends on the versions of Marathon and Metronome: one table.
//!
//! DC/OS 1.9 has Marathon 1.4, 1.10 has 1.5, 1.11 has 1.6, 1.12 has 1.7, 1.13 has 1.8, 2.0 to 2.2 have 1.9 to 1.11.

use std::fmt;
use std::str::FromStr;

/// A version as far as it matters: `1.5.0-SNAPSHOT-713` is 1.5.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// It does not begin with two numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version")]
pub struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let number = |part: Option<&str>| {
            let part = part?;
            let digits = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            digits.parse().ok()
        };
        let mut parts = text.splitn(3, '.');
        let (major, minor) = (number(parts.next()), number(parts.next()));
        match (major, minor) {
            (Some(major), Some(minor)) => Ok(Self(major, minor, number(parts.next()).unwrap_or(0))),
            _ => Err(NoVersion(text.to_string())),
        }
    }
}

/// What a Marathon can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marathon {
    /// Its version.
    pub version: Version,
}

/// First version of each line of Marathon in which a pod's UNIQUE constraint counts the instances that are there already when the
/// pod is scaled (commit 47101d923, "Pods do not respect hostname: UNIQUE constraint"; seen wrong on a real 1.4.2, right on 1.7.202).
const UNIQUE_WHEN_SCALED: [Version; 2] = [Version(1, 4, 10), Version(1, 5, 3)];

/// The newest Marathon that this program has been run against.
pub const NEWEST_SEEN: Version = Version(1, 11, 24);

/// First version with pods.
const PODS: Version = Version(1, 4, 0);

/// First version whose pods get secrets as files and run in strict mode (vendor's documentation of 1.9: pods are unsupported in strict
/// mode; apps take file secrets from DC/OS 1.10 on).
const ENTERPRISE_PODS: Version = Version(1, 5, 0);

/// First version beside a Mesos (1.8) whose image puller reads schema 2 (MESOS-9675, MESOS-6934); the ones before read schema 1 only.
const PULLER_OF_SCHEMA_2: Version = Version(1, 8, 0);

/// First Metronome that hands secrets to jobs (its jobspec.schema.json; absent from 0.3.6, 0.4.0 and 0.4.1).
const JOB_SECRETS: Version = Version(0, 4, 2);

/// What a Metronome can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metronome {
    /// Its version.
    pub version: Version,
}

impl Default for Metronome {
    fn default() -> Self {
        Self { version: Version(0, 6, 70) }
    }
}

impl Metronome {
    /// Whether a job's run may use secrets; older ones refuse the word.
    pub fn has_secrets(&self) -> bool {
        self.version >= JOB_SECRETS
    }
}

impl Default for Marathon {
    fn default() -> Self {
        Self { version: NEWEST_SEEN }
    }
}

impl Marathon {
    /// Whether there are pods at all: the node is one.
    pub fn has_pods(&self) -> bool {
        self.version >= PODS
    }

    /// Whether a service account makes sense: before, pods do not run in strict mode, and permissive mode asks for no account.
    pub fn has_pods_with_an_account(&self) -> bool {
        self.version >= ENTERPRISE_PODS
    }

    /// Whether Mesos' image puller in this DC/OS reads manifests of schema 2. Where it does not, the registry must be able to answer in
    /// schema 1, which generation 2 of the stock registry does and generation 3 does not.
    pub fn pulls_schema_2(&self) -> bool {
        self.version >= PULLER_OF_SCHEMA_2
    }

    /// Whether scaling a pod keeps to UNIQUE. Where it does not, two instances may land on one agent, unless the definition changes
    /// as well: then all instances are replaced, and placed anew against each other.
    pub fn keeps_unique_when_scaled(&self) -> bool {
        let line = |first: &&Version| (first.0, first.1) == (self.version.0, self.version.1);
        UNIQUE_WHEN_SCALED.iter().find(line).is_none_or(|first| self.version >= *first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marathon(text: &str) -> Marathon {
        Marathon { version: text.parse().unwrap() }
    }

    #[test]
    fn versions_of_releases_and_snapshots_are_read() {
        assert_eq!("1.11.24".parse(), Ok(Version(1, 11, 24)));
        assert_eq!("1.5.0-SNAPSHOT-713-g5b7c".parse(), Ok(Version(1, 5, 0)));
        assert_eq!("1.5.1.2".parse(), Ok(Version(1, 5, 1)));
        assert_eq!("1.4".parse(), Ok(Version(1, 4, 0)));
        assert!("master".parse::<Version>().is_err());
    }

    #[test]
    fn the_scaling_of_pods_is_broken_in_two_lines_up_to_the_release_that_mended_each() {
        let broken = ["1.4.2", "1.4.9", "1.5.0-SNAPSHOT-713", "1.5.2"];
        let sound = ["1.4.11", "1.5.5", "1.6.322", "1.7.174", "1.8.180", "1.11.24"];
        assert!(broken.iter().all(|version| !marathon(version).keeps_unique_when_scaled()));
        assert!(sound.iter().all(|version| marathon(version).keeps_unique_when_scaled()));
    }

    #[test]
    fn mesos_own_puller_reads_schema_2_from_dcos_1_13_on() {
        assert!(!marathon("1.4.2").pulls_schema_2() && !marathon("1.7.202").pulls_schema_2());
        assert!(marathon("1.8.180").pulls_schema_2() && marathon("1.11.24").pulls_schema_2());
    }

    #[test]
    fn pods_came_with_dcos_1_9() {
        assert!(!marathon("1.3.10").has_pods() && marathon("1.4.0").has_pods());
    }
}
