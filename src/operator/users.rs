//! Who may use the registry: `user add`, `user remove` and `user list`.
//!
//! The controller takes no orders from people: the platform decides who may change the users. In DC/OS Enterprise the secret that holds
//! them is written with the operator's own token; on open DC/OS a Metronome job does it on the controller's host, made for this one
//! change and deleted right after.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{OperatorError, PAUSE, Service, refusal};
use crate::controller::{Report, UsersReport};
use crate::dcos::ApiError;
use crate::dcos::grants::{self, Door, Grant};
use crate::dcos::secrets::Secrets;
use crate::digest::hex;
use crate::protocol::env;
use crate::secret::Secret;
use crate::users::{self, CHANGE_VARIABLE, Change, UserError, Users};

/// How long the run of the job may take: the agent may have to fetch the program first.
const RUN_DEADLINE: Duration = Duration::from_secs(120);
/// How long the registries may take to hear of it.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// Why a user was not added, removed or shown.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The name, the password, or the user itself.
    #[error(transparent)]
    User(#[from] UserError),
    /// The registry knows no users.
    #[error("the registry has no users of its own: auth.kind is {0}; set it to htpasswd in the package's options first")]
    OtherKind(String),
    /// Nothing is known of the options yet.
    #[error("the controller has only just started and has not looked at its options yet; try again in some seconds")]
    TooEarly,
    /// The operator keeps them.
    #[error("the users are those of {0}, as auth.htpasswd says: change them there (htpasswd -B); the registry takes it within seconds")]
    Elsewhere(String),
    /// No terminal to ask at.
    #[error("there is no terminal to ask for the password: give it by --password-stdin")]
    NoTerminal,
    /// Asked twice, answered differently.
    #[error("the two passwords are not the same")]
    Differ,
    /// The terminal or standard input.
    #[error("the password cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// Ctrl-C.
    #[error("interrupted; `user list` says whether it was done before")]
    Interrupted,
    /// This user may not.
    #[error("you may not do that: it takes {}", .grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "))]
    Forbidden {
        /// What is needed.
        grants: Vec<Grant>,
    },
    /// The job's run.
    #[error("the job {0} could not make the change: is the controller's agent up, and was {1} changed by somebody else at the same time?")]
    RunFailed(String, String),
    /// The run takes too long.
    #[error("the job {job} has not ended after {} s; it is deleted; `user list` says whether it was done before", RUN_DEADLINE.as_secs())]
    RunLate {
        /// Its id.
        job: String,
    },
    /// A registry does not take it.
    #[error("it is kept, but not every registry has taken it after {} s; `status` says why, and they take it as soon as they can", SETTLE_DEADLINE.as_secs())]
    NotSettled,
}

impl UsersError {
    /// Whether it is the input that cannot be used.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::User(_) | Self::OtherKind(_) | Self::Elsewhere(_) | Self::NoTerminal | Self::Differ)
    }
}

impl Service {
    /// The users whom the service keeps.
    ///
    /// # Errors
    /// Others keep them, or there are none.
    pub async fn users(&self) -> Result<UsersReport, OperatorError> {
        let users = self.report().await?.users;
        match &users.elsewhere {
            Some(place) => Err(UsersError::Elsewhere(place.clone()).into()),
            None if users.kind.is_empty() => Err(UsersError::TooEarly.into()),
            None if users.kind != "htpasswd" => Err(UsersError::OtherKind(users.kind).into()),
            None => Ok(users),
        }
    }

    /// Lets somebody in with a password that is asked for.
    ///
    /// # Errors
    /// The name is there already, the password cannot be used, or the change cannot be made.
    pub async fn add_user(&self, name: &str, replace: bool, from_stdin: bool) -> Result<Report, OperatorError> {
        users::check_name(name).map_err(UsersError::User)?;
        let known = self.users().await?;
        if !replace && known.names.iter().any(|known| known == name) {
            return Err(UsersError::User(UserError::Exists(name.into())).into());
        }
        let hash = users::hash(&password(name, from_stdin)?).map_err(UsersError::User)?;
        self.change(&known, &Change::Add { name: name.into(), hash, replace }).await
    }

    /// Lets somebody in no more.
    ///
    /// # Errors
    /// There is no such user, or the change cannot be made.
    pub async fn remove_user(&self, name: &str) -> Result<Report, OperatorError> {
        let known = self.users().await?;
        if !known.names.iter().any(|known| known == name) {
            return Err(UsersError::User(UserError::Unknown(name.into())).into());
        }
        self.change(&known, &Change::Remove { name: name.into() }).await
    }

    /// Makes a change and waits until every registry has taken it.
    async fn change(&self, known: &UsersReport, change: &Change) -> Result<Report, OperatorError> {
        match &known.secret {
            Some(path) => self.change_secret(path, change).await?,
            None => self.change_by_job(change).await?,
        }
        let started = Instant::now();
        loop {
            // A hash is salted, so every change changes the digest.
            let report = self.report().await?;
            if report.users.settled && report.users.digest != known.digest {
                return Ok(report);
            }
            if started.elapsed() > SETTLE_DEADLINE {
                return Err(UsersError::NotSettled.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn change_secret(&self, path: &str, change: &Change) -> Result<(), OperatorError> {
        let grants = grants::for_call(Door::Secrets, &format!("/secret/default/{path}"));
        let failed = |error| self.denied(error, &grants);
        let secrets = Secrets(self.secrets.clone());
        let text = secrets.get(path).await.map_err(failed)?;
        let (mut users, _) = Users::parse(text.as_ref().map_or("", |text| text.expose()));
        users.apply(change).map_err(UsersError::User)?;
        secrets.put(path, &users.text()).await.map_err(failed)
    }

    async fn change_by_job(&self, change: &Change) -> Result<(), OperatorError> {
        let dotted = self.name.replace('/', ".");
        // Another operator's job, whom this one must not delete, has another id.
        let mut random = [0_u8; 8];
        SystemRandom::new().fill(&mut random).map_err(|_| UsersError::User(UserError::Hash("there are no random numbers".into())))?;
        let id = format!("{dotted}.user-{}", hex(&random));
        let grants = grants::for_call(Door::Metronome, &format!("/v1/jobs/{id}"));
        let failed = |error| self.denied(error, &grants);
        let stored = async |word: &str| self.metronome.get::<Value>(&format!("/v1/jobs/{dotted}.{word}")).await;
        let (program, place) = (stored("init").await.map_err(failed)?, stored("uninstall").await.map_err(failed)?);
        let job = job(&id, &self.name, &program, &place, change);
        // From the first moment on: the hash in the job must not stay there.
        let stop = |kind| signal(kind).map_err(|error| OperatorError::Users(UsersError::Unreadable(error)));
        let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
        let mut hangup = stop(SignalKind::hangup())?;
        let ran = tokio::select! {
            ran = self.run_job(&id, &job, change.name(), &grants) => ran,
            _ = interrupt.recv() => Err(UsersError::Interrupted.into()),
            _ = terminate.recv() => Err(UsersError::Interrupted.into()),
            _ = hangup.recv() => Err(UsersError::Interrupted.into()),
        };
        let deleted = self.metronome.call::<Value>("DELETE", &format!("/v1/jobs/{id}?stopCurrentJobRuns=true"), None).await;
        match deleted {
            Err(error) if !error.is_absent() => {
                eprintln!("The job {id} could not be deleted and holds a hash: run `dcos job remove {id} --stop-current-job-runs`.");
                ran.and(Err(failed(error)))
            }
            _ => ran,
        }
    }

    async fn run_job(&self, id: &str, job: &Value, name: &str, grants: &[Grant]) -> Result<(), OperatorError> {
        let failed = |error| self.denied(error, grants);
        tracing::info!("POST /service/metronome/v1/jobs ({id})");
        self.metronome.call::<Value>("POST", "/v1/jobs", Some(job)).await.map_err(failed)?;
        let path = format!("/v1/jobs/{id}/runs");
        let run: Value = self.metronome.call("POST", &path, None).await.map_err(failed)?;
        let run = run["id"].as_str().unwrap_or_default().to_string();
        let started = Instant::now();
        while self.is_active(&format!("{path}/{run}")).await? {
            if started.elapsed() > RUN_DEADLINE {
                return Err(UsersError::RunLate { job: id.into() }.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        let ended: Value = self.metronome.get(&format!("/v1/jobs/{id}?embed=history")).await.map_err(failed)?;
        let good = ended["history"]["successfulFinishedRuns"].as_array().is_some_and(|runs| runs.iter().any(|ended| ended["id"] == *run));
        if good { Ok(()) } else { Err(UsersError::RunFailed(id.into(), name.into()).into()) }
    }

    fn denied(&self, error: ApiError, grants: &[Grant]) -> OperatorError {
        match error {
            ApiError::Refused { status: 403, .. } => UsersError::Forbidden { grants: grants.to_vec() }.into(),
            error => refusal(error, OperatorError::Cluster),
        }
    }
}

/// The job that makes a change: the program as `program` has it, and as root on the controller's host, as `place` runs there.
fn job(id: &str, service: &str, program: &Value, place: &Value, change: &Change) -> Value {
    let mut run = json!({
        "cmd": program["run"]["cmd"].as_str().unwrap_or_default().strip_suffix("init").unwrap_or_default().to_string() + "users-apply",
        "cpus": program["run"]["cpus"],
        "mem": program["run"]["mem"],
        "disk": program["run"]["disk"],
        "user": place["run"]["user"],
        "artifacts": program["run"]["artifacts"],
        "env": {
            env::SERVICE: service,
            CHANGE_VARIABLE: json!(change).to_string(),
            env::SHA256: program["run"]["env"][env::SHA256],
            env::URI: program["run"]["env"][env::URI],
        },
        "maxLaunchDelay": 60,
        "placement": place["run"]["placement"],
        "restart": { "policy": "NEVER" },
    });
    if let Some(fields) = run.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    json!({ "id": id, "description": "Changes who may use the registry; deleted right after.", "labels": program["labels"], "run": run })
}

/// The password: from standard input, or asked for twice.
fn password(name: &str, from_stdin: bool) -> Result<Secret<String>, UsersError> {
    let stdin = std::io::stdin();
    if from_stdin {
        let mut text = String::new();
        stdin.lock().take(4096).read_line(&mut text).map_err(UsersError::Unreadable)?;
        return Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_string()));
    }
    if !stdin.is_terminal() {
        return Err(UsersError::NoTerminal);
    }
    let first = ask(&format!("Password of {name}: "))?;
    if first == ask("Once more: ")? { Ok(first) } else { Err(UsersError::Differ) }
}

/// Reads a line that the terminal does not show.
fn ask(prompt: &str) -> Result<Secret<String>, UsersError> {
    let quiet = Quiet::begin().map_err(UsersError::Unreadable)?;
    eprint!("{prompt}");
    let _ = std::io::stderr().flush();
    let mut line = Vec::new();
    let ended = loop {
        let mut byte = [0_u8];
        match std::io::stdin().lock().read(&mut byte).map_err(UsersError::Unreadable) {
            Err(error) => break Err(error),
            Ok(0) => break Ok(()),
            Ok(_) => match byte[0] {
                b'\n' | b'\r' | 4 => break Ok(()),
                3 => break Err(UsersError::Interrupted),
                // What the last key made: a whole character.
                8 | 127 => while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
                other => line.push(other),
            },
        }
    };
    drop(quiet);
    eprintln!();
    ended?;
    let text = String::from_utf8(line).map_err(|_| UsersError::User(UserError::Password))?;
    Ok(Secret::new(text))
}

/// The terminal shows nothing as long as this lives. Keys come as they are, Ctrl-C too: a signal would leave the terminal mute.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> std::io::Result<Self> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal has gone.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_runs_the_same_program_as_root_on_the_controllers_host() {
        let artifacts = json!([{ "uri": "http://c/private-registry", "executable": true }]);
        let env = json!({ "PRIVATE_REGISTRY_SHA256": "ab", "PRIVATE_REGISTRY_URI": "http://c/private-registry", "OTHER": "x" });
        let program = json!({
            "id": "r.init", "labels": { "PRIVATE_REGISTRY_SERVICE": "r" },
            "run": { "cmd": "check; exec ./private-registry init", "cpus": 0.05, "mem": 64, "disk": 32, "artifacts": artifacts, "env": env },
        });
        let placement = json!({ "constraints": [{ "attribute": "hostname", "operator": "LIKE", "value": "^10\\.0\\.0\\.1$" }] });
        let place = json!({ "run": { "user": "root", "placement": placement } });
        let job = job("r.user-1", "r", &program, &place, &Change::Remove { name: "alice".into() });
        assert_eq!(job["run"]["cmd"], "check; exec ./private-registry users-apply");
        assert_eq!((&job["run"]["user"], &job["run"]["placement"]), (&json!("root"), &placement));
        assert_eq!(job["run"]["env"]["PRIVATE_REGISTRY_USERS_CHANGE"], r#"{"do":"remove","name":"alice"}"#);
        assert_eq!((&job["run"]["artifacts"], &job["run"]["env"]["OTHER"]), (&artifacts, &Value::Null));
        assert_eq!(job["labels"]["PRIVATE_REGISTRY_SERVICE"], "r");
    }

    #[test]
    fn what_the_input_does_wrong_is_told_from_what_the_cluster_does() {
        assert!(UsersError::User(UserError::Internal).is_input() && UsersError::NoTerminal.is_input());
        assert!(!UsersError::NotSettled.is_input() && !UsersError::Interrupted.is_input());
        let grants = grants::for_call(Door::Secrets, "/secret/default/r/users");
        assert_eq!(UsersError::Forbidden { grants }.to_string(), "you may not do that: it takes dcos:secrets:default:/r/users full");
    }
}
