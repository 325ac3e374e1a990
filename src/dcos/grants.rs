//! Permissions that the service account needs in DC/OS Enterprise, and the commands that give them: one table.
//!
//! Names are those of the vendor's permissions reference (1.13).

use std::fmt;

use crate::controller::store::Entry;
use crate::documents;
use crate::options::{CaSource, Options, SecurityMode};

/// A service of the cluster, as far as permissions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The leading Mesos master.
    Mesos,
    /// The root Marathon.
    Marathon,
    /// Metronome.
    Metronome,
    /// The secret store.
    Secrets,
    /// The cluster's CA.
    Ca,
    /// Something that asks for no permission: our own tasks.
    Own,
}

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// `dcos:…`
    pub resource: String,
    /// `read`, `create` or `full`.
    pub action: &'static str,
}

impl Grant {
    fn full(resource: impl Into<String>) -> Self {
        Self { resource: resource.into(), action: "full" }
    }

    fn read(resource: impl Into<String>) -> Self {
        Self { resource: resource.into(), action: "read" }
    }

    /// The command that gives it.
    pub fn command(&self, account: &str) -> String {
        format!("dcos security org users grant {account} {} {}", self.resource, self.action)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource, self.action)
    }
}

const MARATHON: &str = "dcos:service:marathon:marathon";
const METRONOME: &str = "dcos:service:metronome:metronome:jobs";

/// What a call needs: the way through Admin Router, and the thing itself.
pub fn for_call(door: Door, path: &str) -> Vec<Grant> {
    let path = path.split(['?']).next().unwrap_or_default();
    match door {
        Door::Own => Vec::new(),
        Door::Mesos => vec![Grant::full("dcos:adminrouter:ops:mesos")],
        Door::Marathon => {
            let thing = match path {
                "/v2/info" => Grant::read(format!("{MARATHON}:admin:config")),
                // `/v2/pods/::status` is a list.
                _ => match path.strip_prefix("/v2/apps/").or_else(|| path.strip_prefix("/v2/pods/").filter(|id| !id.starts_with("::"))) {
                    Some(id) => Grant::full(format!("{MARATHON}:services:/{}", id.split("::").next().unwrap_or(id))),
                    // Lists: what may not be read is left out in silence.
                    None => Grant::read(format!("{MARATHON}:services:/")),
                },
            };
            vec![Grant::full("dcos:adminrouter:service:marathon"), thing]
        }
        Door::Metronome => {
            // Its version is for all who come in.
            let id = path.strip_prefix("/v1/jobs/").and_then(|rest| rest.split('/').next());
            let job = id.map(|id| Grant::full(format!("{METRONOME}:{id}")));
            [Grant::full("dcos:adminrouter:service:metronome")].into_iter().chain(job).collect()
        }
        Door::Ca => vec![Grant::full("dcos:adminrouter:ops:ca:rw")],
        Door::Secrets => {
            let path = path.strip_prefix("/secret/default/").unwrap_or(path);
            vec![Grant::full(format!("dcos:secrets:default:/{path}"))]
        }
    }
}

/// Everything that a service's account needs.
pub fn all(options: &Options) -> Vec<Grant> {
    let pods = options.trust.shards.names().shards().into_iter().map(|shard| format!("{}{}", documents::pod_id(options), shard.suffix()));
    let apps = [format!("/{}", options.service.name)].into_iter().chain(pods).chain([documents::registry_id(options)]);
    let marathon = apps.map(|id| format!("/v2/apps{id}"));
    let marathon = marathon.chain(["/v2/info".to_string(), "/v2/apps".into()]).flat_map(|path| for_call(Door::Marathon, &path));
    let jobs = documents::job_ids(options).into_iter().flat_map(|id| for_call(Door::Metronome, &format!("/v1/jobs/{id}")));
    let secrets = secret_paths(options).into_iter().flat_map(|path| for_call(Door::Secrets, &format!("/secret/default/{path}")));
    let ca = if options.security.mode == SecurityMode::DcosCa { for_call(Door::Ca, "/sign") } else { Vec::new() };
    let others = other_secrets(options).map(|path| Grant::read(format!("dcos:secrets:default:/{path}")));
    let mut grants: Vec<Grant> = Vec::new();
    for grant in for_call(Door::Mesos, "/slaves").into_iter().chain(marathon).chain(jobs).chain(secrets).chain(ca).chain(others) {
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    grants
}

/// Everything of a service in the secret store.
fn secret_paths(options: &Options) -> Vec<String> {
    let published = documents::published_paths(options, options.trust.shards.names());
    Entry::ALL.iter().map(|entry| entry.secret_path(&options.service.name)).chain(published).collect()
}

/// Secrets of the operator that hold CAs of other registries.
fn other_secrets(options: &Options) -> impl Iterator<Item = &String> {
    options.others.iter().filter_map(|other| match &other.ca {
        CaSource::Secret(path) => Some(path),
        CaSource::Pem(_) | CaSource::Pinned(_) => None,
    })
}

/// What the platform's own accounts need in strict mode, where a task that asks for root is refused without it: account and grant.
pub fn platform() -> Vec<(&'static str, Grant)> {
    let create = |resource: &str| Grant { resource: resource.to_string(), action: "create" };
    vec![
        ("dcos_marathon", create("dcos:mesos:master:task:user:root")),
        // DC/OS 1.10 asks for it as well (DCOS-15682); later ones do not mind.
        ("dcos_marathon", create("dcos:mesos:agent:task:user:root")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_names_the_way_and_the_thing() {
        let names = |door, path| for_call(door, path).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            names(Door::Marathon, "/v2/pods/private-registry-node::status"),
            ["dcos:adminrouter:service:marathon full", "dcos:service:marathon:marathon:services:/private-registry-node full"]
        );
        assert_eq!(
            names(Door::Marathon, "/v2/pods/::status"),
            ["dcos:adminrouter:service:marathon full", "dcos:service:marathon:marathon:services:/ read"]
        );
        assert_eq!(
            names(Door::Metronome, "/v1/jobs/infra.images.init/runs"),
            ["dcos:adminrouter:service:metronome full", "dcos:service:metronome:metronome:jobs:infra.images.init full"]
        );
        assert_eq!(names(Door::Secrets, "/secret/default/private-registry/ca"), ["dcos:secrets:default:/private-registry/ca full"]);
        assert_eq!(names(Door::Own, "/v1/status"), Vec::<String>::new());
    }

    #[test]
    fn the_secrets_of_other_registries_are_only_read() {
        let options = Options::from_json(&json!({ "other_registries": { "list": "gitlab.example.com:5050 secret:gitlab-ca" } })).unwrap();
        assert!(all(&options).iter().any(|grant| grant.to_string() == "dcos:secrets:default:/gitlab-ca read"));
    }

    #[test]
    fn every_one_of_several_pods_is_granted_and_the_one_secret_that_they_read() {
        let grants = |shards: &str| {
            let options = Options::from_json(&json!({ "trust": { "shards": shards } })).unwrap();
            let all = all(&options).into_iter().map(|grant| grant.resource);
            all.filter(|resource| resource.contains("-node")).map(|resource| resource.rsplit(":/").next().unwrap().to_string()).collect()
        };
        let one: Vec<String> = grants("1");
        assert_eq!(one, ["private-registry-node", "private-registry-node/first-order"]);
        assert_eq!(grants("auto"), one);
        let ten = grants("10");
        assert_eq!((ten.len(), ten[0].as_str(), ten[10].as_str()), (12, "private-registry-node-0", "private-registry-node-other"));
        assert_eq!(ten[11], "private-registry-node_first-order");
        assert_eq!(grants("100").len(), 102);
    }

    #[test]
    fn the_list_of_all_holds_no_grant_twice_and_none_above_what_is_ours() {
        let options = Options::from_json(&json!({})).unwrap();
        let grants: Vec<String> = all(&options).iter().map(ToString::to_string).collect();
        let mut unique = grants.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), grants.len());
        assert!(
            !grants.iter().any(|grant| grant.contains("superuser") || grant.ends_with("services:/ full") || grant.ends_with(":jobs full"))
        );
        let given = json!({ "security": { "mode": "dcos_ca" }, "service": { "service_account_secret": "account" } });
        let with_ca = all(&Options::from_json(&given).unwrap());
        assert!(with_ca.iter().any(|grant| grant.to_string() == "dcos:adminrouter:ops:ca:rw full"));
        assert!(!grants.iter().any(|grant| grant.contains("ops:ca")));
        assert_eq!(grants.iter().filter(|grant| grant.starts_with("dcos:secrets:")).count(), secret_paths(&options).len());
    }
}
