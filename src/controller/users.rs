//! Users of the registry whom the service itself keeps: in the controller's store, for as long as `auth.htpasswd` names no file or
//! secret of the operator's. Who may change them is decided by the platform: they are changed through its secret store, or by a
//! Metronome job on the controller's host.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::state::{State, StateError};
use super::store::{Entry, Store};
use super::{CALM, ControllerError};
use crate::host_paths::HostRoot;
use crate::options::{AuthKind, Options};
use crate::plan::Observed;
use crate::protocol::{RegistryStatus, SignedOrder, env};
use crate::secret::Secret;
use crate::users::{CHANGE_VARIABLE, Change, Users};

/// How long a run waits for another one. A change takes no time at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who may use the registry, as far as it is decided here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersReport {
    /// `none`, `htpasswd` or `token`.
    pub kind: String,
    /// Those whom the service keeps.
    pub names: Vec<String>,
    /// The secret that the service keeps them in; none on open DC/OS, where they lie on the controller's host.
    pub secret: Option<String>,
    /// The operator's own file or secret, where that is what counts.
    pub elsewhere: Option<String>,
    /// Tells this list from another; it says nothing about the hashes.
    pub digest: Option<String>,
    /// Whether every registry lets in these and nobody else.
    pub settled: bool,
}

/// Those whom the service keeps, as the controller has last seen them.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    users: Users,
    problems: Vec<String>,
    looked: Option<Instant>,
    /// The last order: for which digest, what version.
    order: Option<(String, SignedOrder, u64)>,
}

impl Kept {
    /// Looks at the store, and says by which digest a registry names this list; none where others keep the users.
    pub(crate) async fn look(&mut self, options: &Options, state: &State) -> Result<Option<String>, StateError> {
        if !are_kept(options) {
            return Ok(None);
        }
        // The secret store is asked over the network.
        if !options.has_account() || self.looked.is_none_or(|looked| looked.elapsed() >= CALM) {
            let text = state.users().await?;
            let (users, problems) = Users::parse(text.as_ref().map_or("", |text| text.expose()));
            self.problems = problems.into_iter().map(|problem| format!("the users that this service keeps: {problem}")).collect();
            (self.users, self.looked) = (users, Some(Instant::now()));
        }
        Ok(Some(state.enrolment_key().digest(&self.users.text())))
    }

    /// The order for a task that lets in others: the last one again, if the task would take it.
    pub(crate) async fn order_for(&mut self, status: &RegistryStatus, state: &mut State) -> Result<SignedOrder, StateError> {
        let digest = state.enrolment_key().digest(&self.users.text());
        if let Some((given, order, version)) = &self.order
            && *given == digest
            && status.order_version <= *version
        {
            return Ok(order.clone());
        }
        let order = state.users_order(&self.users.text()).await?;
        self.order = Some((digest, order.clone(), state.version()));
        Ok(order)
    }

    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        self.problems.iter().cloned()
    }

    pub(crate) fn report(&self, options: &Options, observed: &Observed, digest: Option<&String>) -> UsersReport {
        let kept = are_kept(options);
        UsersReport {
            kind: crate::settings::word(options.auth.kind).into(),
            names: if kept { self.users.names().cloned().collect() } else { Vec::new() },
            secret: (kept && options.has_account()).then(|| Entry::Users.secret_path(&options.service.name)),
            elsewhere: (!options.auth.htpasswd.is_empty()).then(|| options.auth.htpasswd.clone()),
            digest: digest.cloned(),
            settled: observed.all_registries_answer() && observed.registries.iter().all(|task| task.status.users.as_ref() == digest),
        }
    }
}

fn are_kept(options: &Options) -> bool {
    options.registry.enabled && options.auth.kind == AuthKind::Htpasswd && options.auth.htpasswd.is_empty()
}

/// The run of the job that `user add` and `user remove` make: changes the users on the controller's host.
///
/// # Errors
/// A change that cannot be made, or a host that is not the controller's.
pub async fn apply() -> Result<(), ControllerError> {
    let var = |name: &'static str| std::env::var(name).map_err(|_| ControllerError::Environment(name));
    let (service, change) = (var(env::SERVICE)?, Secret::new(var(CHANGE_VARIABLE)?));
    // The reader's error could quote a hash.
    let change: Change = crate::json::of_text(change.expose()).map_err(|_| ControllerError::Environment(CHANGE_VARIABLE))?;
    apply_on(&HostRoot::default(), &service, &change).await?;
    println!("{}: done; the controller hands it to the registry", change.name());
    Ok(())
}

async fn apply_on(root: &HostRoot, service: &str, change: &Change) -> Result<(), ControllerError> {
    let dir = root.controller_state(service);
    if !dir.is_dir() {
        return Err(ControllerError::NoState(service.into()));
    }
    let _lock = lock(&dir).await?;
    let store = Store::on_host(root, service)?;
    let text = store.read(Entry::Users).await?;
    let (mut users, _) = Users::parse(text.as_ref().map_or("", |text| text.expose()));
    users.apply(change)?;
    Ok(store.write(Entry::Users, &users.text()).await?)
}

/// The directory itself is what is locked; nothing is left behind.
async fn lock(dir: &Path) -> Result<Flock<std::fs::File>, ControllerError> {
    let failed = |error: std::io::Error| ControllerError::State(StateError::File(Box::new(error)));
    let started = Instant::now();
    let mut file = std::fs::File::open(dir).map_err(failed)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, errno)) if started.elapsed() > PATIENCE => return Err(failed(errno.into())),
            Err((given_back, _)) => file = given_back,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::hash;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn add(name: &str) -> Change {
        Change::Add { name: name.into(), hash: hash(&Secret::new("x".into())).unwrap(), replace: false }
    }

    #[tokio::test]
    async fn a_change_is_made_where_the_controllers_state_is_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let stranger = apply_on(&root, "private-registry", &add("alice")).await.unwrap_err();
        assert!(stranger.to_string().contains("private-registry"), "{stranger}");
        assert!(!root.controller_state("private-registry").exists());
        Store::on_host(&root, "private-registry").unwrap();
        let changes = ["alice", "bob", "carol"].map(add);
        let (a, b, c) = tokio::join!(
            apply_on(&root, "private-registry", &changes[0]),
            apply_on(&root, "private-registry", &changes[1]),
            apply_on(&root, "private-registry", &changes[2])
        );
        [a, b, c].into_iter().for_each(Result::unwrap);
        assert!(apply_on(&root, "private-registry", &changes[0]).await.unwrap_err().to_string().contains("--replace"));
        let file = root.controller_state("private-registry").join("users");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
    }

    #[tokio::test]
    async fn an_order_is_given_again_until_the_users_change_or_a_task_has_taken_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::at(dir.path());
        let store = Store::on_host(&root, "private-registry").unwrap();
        let mut state = State::open(store, None, 0).await.unwrap();
        let options = Options::from_json(&json!({ "auth": { "kind": "htpasswd" } })).unwrap();
        let mut kept = Kept::default();
        let nobody = kept.look(&options, &state).await.unwrap().unwrap();
        apply_on(&root, "private-registry", &add("alice")).await.unwrap();
        let alice = kept.look(&options, &state).await.unwrap().unwrap();
        assert_ne!(nobody, alice);
        let mut status: RegistryStatus = serde_json::from_value(json!({
            "service": "s", "task": "", "host": "", "phase": "serving", "request": null, "leaf_fingerprint": null,
            "leaf_not_after": null, "order_version": 0, "starts": 1, "errors": [],
        }))
        .unwrap();
        let first = kept.order_for(&status, &mut state).await.unwrap();
        assert_eq!(kept.order_for(&status, &mut state).await.unwrap(), first);
        status.order_version = state.version() + 1;
        assert_ne!(kept.order_for(&status, &mut state).await.unwrap(), first);
        let other = Options::from_json(&json!({ "auth": { "kind": "htpasswd", "htpasswd": "/etc/registry/users" } })).unwrap();
        assert_eq!(kept.look(&other, &state).await.unwrap(), None);
    }
}
