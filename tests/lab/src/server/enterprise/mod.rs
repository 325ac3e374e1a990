//! What DC/OS Enterprise adds: accounts and their permissions, and the secret store.
//!
//! Enterprise is closed; what is here follows the vendor's documentation and what open clients of it send and expect.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The security mode of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Open DC/OS: no accounts, no secret store.
    #[default]
    Open,
    /// Enterprise: whoever shows a token needs permissions; calls from inside without one are a superuser's. Plain HTTP is served.
    Permissive,
    /// Enterprise: a token for everything, TLS only, and tasks run as `nobody` unless their framework may use another user.
    Strict,
}

impl Security {
    /// As the command line says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        }
    }
}

/// A permission to do anything.
pub const SUPERUSER: &str = "dcos:superuser";

/// Accounts, permissions and secrets. Empty in open DC/OS.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Enterprise {
    /// Secrets by path without a leading slash.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The store is sealed: it answers 503.
    pub sealed: bool,
    /// Accounts and what they are granted: account, resource (`dcos:…`), actions (`create`, `read`, `update`, `delete`, `full`).
    pub grants: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Enterprise {
    /// Whether an account may do this: it has the action or `full` on the resource, or is a superuser.
    pub fn allows(&self, account: &str, resource: &str, action: &str) -> bool {
        let grants = self.grants.get(account);
        let has = |resource: &str, action: &str| {
            grants.and_then(|grants| grants.get(resource)).is_some_and(|actions| actions.contains(action) || actions.contains("full"))
        };
        has(resource, action) || has(SUPERUSER, "full")
    }

    /// A secret for a task of this app, pod or job (`/a/b`; of a job `a.b` the id is `/a/b`).
    ///
    /// # Errors
    /// The store is sealed, or has no such secret in a place that this reader may see.
    pub fn secret_for(&self, reader: &str, path: &str) -> Result<&[u8], String> {
        let path = path.trim_start_matches('/');
        if self.sealed {
            return Err("the secret store is sealed".to_owned());
        }
        if !may_see(reader, path) {
            return Err(format!("'{reader}' may not read the secret '{path}'"));
        }
        self.secrets.get(path).map(Vec::as_slice).ok_or_else(|| format!("there is no secret '{path}'"))
    }
}

/// The rule of spaces: a secret is for those whose id lies in the secret's folder, or is the folder; one in no folder is for all.
fn may_see(reader: &str, path: &str) -> bool {
    let Some((folder, _)) = path.rsplit_once('/') else { return true };
    let reader = reader.trim_start_matches('/');
    reader == folder || reader.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_seen_from_its_folder_and_below() {
        assert!(may_see("/registry", "registry/key") && may_see("/registry/a/b", "registry/key") && may_see("/any", "key"));
        assert!(!may_see("/registry-node", "registry/key") && !may_see("/infra/registry", "registry/key"));
        assert!(may_see("/infra/registry", "infra/key") && !may_see("/infra", "infra/registry/key"));
    }

    #[test]
    fn a_grant_is_for_one_resource_and_full_is_every_action() {
        let mut enterprise = Enterprise::default();
        let grants = enterprise.grants.entry("ci".to_owned()).or_default();
        grants.entry("dcos:a".to_owned()).or_default().insert("read".to_owned());
        grants.entry("dcos:b".to_owned()).or_default().insert("full".to_owned());
        assert!(enterprise.allows("ci", "dcos:a", "read") && !enterprise.allows("ci", "dcos:a", "update"));
        assert!(enterprise.allows("ci", "dcos:b", "delete") && !enterprise.allows("someone", "dcos:b", "read"));
    }
}
