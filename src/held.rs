//! What the operator keeps and the registry reads: in a secret (DC/OS Enterprise), or in a file on the registry's agent.
//!
//! An option names where it is, never what it is. A secret comes as a variable of the task's environment; of a file the container
//! gets the directory to read, since a file that is replaced is another file, which a mount of the old one would not show.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::dcos::secrets;
use crate::distribution::Published;
use crate::names::Host;
use crate::options::Fault;
use crate::protocol::HeldAt;

/// What to do about an option that names no place.
pub const EITHER: &str = "Give the name of a secret, or the absolute path of a file on the registry's agent.";

/// One such thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is called in the registry's definition: lower case, dashes.
    pub name: &'static str,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A file on the registry's agent.
    File(PathBuf),
    /// A path in the secret store.
    Secret(String),
}

impl Held {
    /// What an option's text names; none if it is empty.
    pub fn of(name: &'static str, text: &str) -> Option<Self> {
        let place = match text {
            "" => return None,
            path if path.starts_with('/') => Place::File(PathBuf::from(path)),
            path => Place::Secret(path.into()),
        };
        Some(Self { name, place })
    }

    /// Where the registry finds it, as its container sees it.
    pub fn at(&self) -> HeldAt {
        match &self.place {
            Place::File(path) => HeldAt::File(self.mount().join(path.file_name().unwrap_or_default())),
            Place::Secret(_) => HeldAt::Variable(self.variable()),
        }
    }

    /// The variable that it comes in, and what the definition holds for that; none for a file.
    pub fn published(&self) -> Option<(String, Published)> {
        match &self.place {
            Place::File(_) => None,
            Place::Secret(path) => {
                let secret = Some((self.name.to_string(), path.clone()));
                Some((self.variable(), Published { variable: json!({ "secret": self.name }), secret }))
            }
        }
    }

    /// The volume that shows its directory; none for a secret.
    pub fn volume(&self) -> Option<Value> {
        match &self.place {
            Place::File(path) => Some(json!({ "containerPath": self.mount(), "hostPath": path.parent(), "mode": "RO" })),
            Place::Secret(_) => None,
        }
    }

    /// Whether it is a secret: a task has what it was when the task started.
    pub fn is_secret(&self) -> bool {
        matches!(self.place, Place::Secret(_))
    }

    /// Where it is, for people. `host`: the registry's agent.
    pub fn words(&self, host: &Host) -> String {
        match &self.place {
            Place::File(path) => format!("the file {} on {host}", path.display()),
            Place::Secret(path) => format!("the secret {path}"),
        }
    }

    fn mount(&self) -> PathBuf {
        Path::new("/run/private-registry").join(self.name)
    }

    fn variable(&self) -> String {
        format!("PRIVATE_REGISTRY_HELD_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }
}

/// What is wrong with an option that names a secret or a file; nothing if it is empty. `registry`: id of the registry's app;
/// `has_account`: whether there is a service account.
pub fn fault(field: &str, text: &str, registry: &str, has_account: bool) -> Option<Fault> {
    let fault = |value: &str, reason: String, remedy: String| Some(Fault { field: field.into(), value: value.into(), reason, remedy });
    match text {
        "" => None,
        _ if text.contains(['\n', '\r']) || text.contains("-----BEGIN") || text.trim_start().starts_with('{') => {
            // Not shown again: a key may be in it.
            fault("(not shown)", "it is the text itself".into(), "Store it in a secret or a file, and give its name.".into())
        }
        path if path.starts_with('/') => {
            let odd = path.contains([':', '"', '\\']) || path.chars().any(char::is_control);
            if odd || path.ends_with('/') || path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
                let reason = "it is no plain path: a colon, quote, control character, '.', '..' or an empty part is in it";
                fault(path, reason.into(), "Give the plain absolute path of the file.".into())
            } else if Path::new(path).parent() == Some(Path::new("/")) {
                let reason = "its directory, which the registry's container gets to read, would be the whole disk";
                fault(path, reason.into(), "Put it into a directory of its own.".into())
            } else {
                None
            }
        }
        _ if !has_account => {
            let remedy = "Give service.service_account_secret too, or the absolute path of a file on the registry's agent.";
            fault(text, "there are secrets in DC/OS Enterprise only, and with a service account".into(), remedy.into())
        }
        path if !secrets::may_see(registry, path) => {
            let remedy = format!("Store it as {registry}/<name>, or as a name without a folder.");
            fault(path, "the secret store shows this secret only to services in its folder".into(), remedy)
        }
        _ => None,
    }
}
