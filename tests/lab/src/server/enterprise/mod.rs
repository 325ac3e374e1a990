//! What DC/OS Enterprise adds: accounts and their permissions, the secret store, and a certificate authority.
//!
//! Enterprise is closed; what is here follows the vendor's documentation and what open clients of it send and expect.

pub(crate) mod ca;
pub mod certificates;
pub(crate) mod doors;
pub(crate) mod iam;
pub(crate) mod secrets;
#[cfg(test)]
#[path = "tests.rs"]
mod through_doors;
pub(crate) mod tls;
pub(crate) mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use axum::http::HeaderMap;
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

/// The superuser that every cluster begins with; its password is `deleteme`.
pub const BOOTSTRAP_USER: &str = "bootstrapuser";
/// As whom Admin Router asks Marathon for the services.
pub(crate) const ADMIN_ROUTER: &str = "dcos_adminrouter";
/// As whom the lab's Marathon-LB asks Marathon for apps.
pub(crate) const MARATHON_LB: &str = "marathon-lb";
/// Everything that Marathon runs is below this resource.
pub(crate) const SERVICES: &str = "dcos:service:marathon:marathon:services:";
/// As of Marathon, for Metronome; one job's resource has its id behind a colon.
pub(crate) const JOBS: &str = "dcos:service:metronome:metronome:jobs";

/// A user, or a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    /// For people.
    pub description: String,
    /// Of a user. A lab has nothing to hide from who can read its state.
    pub password: Option<String>,
    /// Of a service: RSA, in PEM.
    pub public_key: Option<String>,
}

/// Accounts, permissions and secrets. Empty in open DC/OS.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Enterprise {
    /// By uid.
    pub accounts: BTreeMap<String, Account>,
    /// Resources that permissions can be granted upon.
    pub resources: BTreeSet<String>,
    /// Those of [`Enterprise::secrets`] that were stored as bytes, not as JSON.
    pub binary: BTreeSet<String>,
    /// Signs tokens. Another key, and all tokens are void.
    pub(crate) key: Vec<u8>,
    /// Secrets by path without a leading slash.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The store is sealed: it answers 503.
    pub sealed: bool,
    /// Accounts and what they are granted: account, resource (`dcos:…`), actions (`create`, `read`, `update`, `delete`, `full`).
    pub grants: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Enterprise {
    /// What a fresh cluster has: the superuser, and the accounts of the platform.
    pub fn new(security: Security) -> Self {
        let mut new = Self::default();
        if security == Security::Open {
            return new;
        }
        new.key = tokens::new_key();
        for (uid, description) in [
            ("dcos_marathon", "Marathon"),
            ("dcos_metronome", "Metronome"),
            (ADMIN_ROUTER, "Admin Router"),
            (MARATHON_LB, "Marathon-LB of the lab"),
        ] {
            new.accounts.insert(uid.to_owned(), Account { description: description.to_owned(), ..Account::default() });
        }
        let superuser = Account { description: "Initial superuser".to_owned(), password: Some("deleteme".to_owned()), public_key: None };
        new.accounts.insert(BOOTSTRAP_USER.to_owned(), superuser);
        for (uid, resource, action) in [
            (BOOTSTRAP_USER, SUPERUSER, "full"),
            (ADMIN_ROUTER, SUPERUSER, "full"),
            (MARATHON_LB, "dcos:service:marathon:marathon:services:/", "read"),
        ] {
            new.grant(uid, resource, action);
        }
        new
    }

    /// Grants a permission, whatever it is on.
    pub fn grant(&mut self, account: &str, resource: &str, action: &str) {
        self.resources.insert(resource.to_owned());
        let grants = self.grants.entry(account.to_owned()).or_default();
        grants.entry(resource.to_owned()).or_default().insert(action.to_owned());
    }

    /// Who shows a token: an account, or nobody when none is shown.
    ///
    /// # Errors
    /// The token is not one of this cluster, has expired, or is of an account that is gone.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Option<String>, tokens::Invalid> {
        tokens::shown(headers).map(|token| self.account_of(&token)).transpose()
    }

    /// As [`Enterprise::allows`], where a grant on `/a` is one on `/a/b`, too, and one on `/` is for all.
    pub(crate) fn allows_service(&self, account: &str, id: &str, action: &str) -> bool {
        let mut id = id.trim_end_matches('/');
        loop {
            let resource = if id.is_empty() { format!("{SERVICES}/") } else { format!("{SERVICES}{id}") };
            if self.allows(account, &resource, action) {
                return true;
            }
            match id.rfind('/') {
                Some(end) => id = &id[..end],
                None => return false,
            }
        }
    }

    /// As [`Enterprise::allows`], where a grant on the job `a` is one on `a.b`, too.
    pub(crate) fn allows_job(&self, account: &str, id: &str, action: &str) -> bool {
        let ends = id.match_indices('.').map(|(at, _)| at).chain([id.len()]);
        self.allows(account, JOBS, action) || ends.into_iter().any(|end| self.allows(account, &format!("{JOBS}:{}", &id[..end]), action))
    }

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
    fn a_grant_on_a_group_is_one_on_all_that_is_below_it() {
        let mut enterprise = Enterprise::new(Security::Strict);
        enterprise.grant("ci", &format!("{SERVICES}/infra"), "read");
        enterprise.grant("ci", &format!("{JOBS}:infra"), "full");
        enterprise.grant("all", &format!("{SERVICES}/"), "full");
        assert!(enterprise.allows_service("ci", "/infra/registry/node", "read") && enterprise.allows_service("ci", "/infra", "read"));
        assert!(!enterprise.allows_service("ci", "/infrastructure", "read") && !enterprise.allows_service("ci", "/infra", "update"));
        assert!(!enterprise.allows_service("ci", "/", "read"));
        assert!(enterprise.allows_service("all", "/a", "delete") && enterprise.allows_service("all", "/", "full"));
        assert!(enterprise.allows_job("ci", "infra.proof", "create") && !enterprise.allows_job("ci", "infrastructure", "read"));
    }

    #[test]
    fn the_platforms_own_accounts_are_no_superusers() {
        let enterprise = Enterprise::new(Security::Permissive);
        assert!(enterprise.allows(BOOTSTRAP_USER, "dcos:anything", "update"));
        for account in ["dcos_marathon", "dcos_metronome"] {
            assert!(enterprise.accounts.contains_key(account));
            assert!(!enterprise.allows(account, "dcos:mesos:master:task:user:root", "create"));
        }
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
