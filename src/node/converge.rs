//! The loop: apply, prove, wait. No fault of the host ends it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::board::Board;
use super::orders::{Accepted, Task};
use super::pass::{Host, Report};
use super::proof::{Clients, DockerState, NO_DAEMON, Whose};
use super::trust::{Bundle, Other};
use super::watch::Watch;
use crate::protocol::{NodePhase, Proof, ProofOutcome, SysctlState};

/// The registry often begins to serve moments after the node.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Between two looks at files and sysctl of a host that is well.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two looks whether docker is there.
const DOCKER_EVERY: Duration = Duration::from_secs(10);
/// Between two proofs of a host that is well.
const PROVE_EVERY: Duration = Duration::from_secs(600);
/// Between two proofs, whoever asks for them.
const SOONEST: Duration = Duration::from_secs(1);

/// Keeps the host as the order in force says, for ever.
pub(crate) async fn converge(board: Arc<Board>, host: Host) {
    let mut kept = Kept::default();
    let mut watch = Watch::new();
    loop {
        let order = board.order();
        if kept.digest != order.digest {
            kept = Kept { digest: order.digest.clone(), ..Kept::default() };
        }
        let phase = tokio::select! {
            phase = pass(&board, &host, &order, &mut kept) => phase,
            () = newer_order(&board, &order) => continue,
        };
        watch.follow(kept.files.iter().map(PathBuf::as_path));
        let pause = kept.pause(phase);
        let asked = tokio::select! {
            () = sleep(pause) => false,
            () = docker_changed(&host, &kept) => false,
            () = watch.changed() => false,
            () = newer_order(&board, &order) => false,
            () = asked_anew(&board, &kept) => true,
        };
        if asked {
            kept.proven_at = None;
        }
    }
}

/// Waits until docker comes, goes, falls silent or answers again.
async fn docker_changed(host: &Host, kept: &Kept) {
    loop {
        sleep(DOCKER_EVERY).await;
        if kept.docker.is_some() && kept.docker != Some(Clients::on(&host.root).docker_state().await) {
            return;
        }
    }
}

/// Whoever has the order in force, which is no secret, can ask for a proof, and that is work for docker: one a second at most.
async fn asked_anew(board: &Board, kept: &Kept) {
    // What is asked meanwhile is kept for the next wait, also if something else ends this one.
    if let Some(at) = kept.proven_at {
        sleep_until(at + SOONEST).await;
    }
    board.check_asked.notified().await;
}

async fn newer_order(board: &Board, order: &Accepted) {
    while board.order().digest == order.digest {
        board.order_changed.notified().await;
    }
}

/// What one pass leaves to the next while the same order is in force.
#[derive(Default)]
struct Kept {
    digest: String,
    proofs: Vec<Proof>,
    proven_at: Option<Instant>,
    notes: Vec<String>,
    wait: Option<Duration>,
    restored: bool,
    /// How docker stood when it was asked last.
    docker: Option<DockerState>,
    /// Files of ours, as far as they are known.
    files: Vec<PathBuf>,
}

impl Kept {
    fn pause(&mut self, phase: NodePhase) -> Duration {
        match phase {
            NodePhase::Trusted => {
                self.wait = None;
                LOOK_EVERY
            }
            // Nothing is left to look at; only an order can change that.
            NodePhase::Restored => PROVE_EVERY,
            NodePhase::Pending | NodePhase::Failed => {
                // Slow growth: the wait is about a quarter of the time that has passed, so little is lost by it.
                let wait = self.wait.map_or(FIRST_WAIT, |wait| (wait * 5 / 4).min(LONGEST_WAIT));
                self.wait = Some(wait);
                wait
            }
        }
    }

    fn note(&mut self, report: &Report) {
        for note in &report.notes {
            if !self.notes.contains(note) {
                self.notes.push(note.clone());
            }
        }
    }
}

async fn pass(board: &Board, host: &Host, order: &Arc<Accepted>, kept: &mut Kept) -> NodePhase {
    match &order.task {
        Task::Trust(bundle) => trust(board, host, order, bundle, kept).await,
        Task::Restore if kept.restored => {
            board.count_pass();
            NodePhase::Restored
        }
        Task::Restore => restore(board, host, order, kept).await,
    }
}

async fn trust(board: &Board, host: &Host, order: &Arc<Accepted>, bundle: &Bundle, kept: &mut Kept) -> NodePhase {
    let report = on_host(host, order, |host, order| match &order.task {
        Task::Trust(bundle) => host.apply(&order.signed, bundle),
        Task::Restore => host.restore(&order.signed),
    })
    .await;
    kept.note(&report);
    board.note_cleaned(&report.cleaned);
    report.cleaned.iter().for_each(|path| tracing::info!(path, "removed: the tutorial had put it here for a registry made by hand"));
    // Another registry that does not answer is asked more often: it counts from the moment on at which it does.
    let others = kept.proofs.iter().filter(|proof| !bundle.is_own(&proof.name));
    let every = if others.into_iter().all(|proof| proof.outcome == ProofOutcome::Trusted) { PROVE_EVERY } else { LOOK_EVERY };
    let clients = Clients::on(&host.root);
    let docker = clients.docker_state().await;
    let due = kept.proven_at.is_none_or(|at| at.elapsed() >= every) || kept.docker != Some(docker);
    kept.docker = Some(docker);
    if !report.files.is_empty() {
        kept.files = report.files.iter().map(|file| PathBuf::from(&file.path)).collect();
    }
    let well = !due && !report.changed && judge(bundle, &report, &kept.proofs).0 == NodePhase::Trusted;
    if !well {
        // Files and errors of this pass are worth showing before clients that do not answer have timed out.
        show(board, order, bundle, &report, kept);
        let mut proofs = clients.prove(bundle, Whose::Own).await;
        if !bundle.others.is_empty() {
            // Ours counts before others have been waited for.
            let earlier = kept.proofs.iter().filter(|proof| !bundle.is_own(&proof.name)).cloned();
            kept.proofs = proofs.iter().cloned().chain(earlier).collect();
            show(board, order, bundle, &report, kept);
            proofs.extend(clients.prove(bundle, Whose::Others).await);
        }
        kept.proofs = proofs;
        kept.proven_at = Some(Instant::now());
    }
    let phase = show(board, order, bundle, &report, kept);
    if !well {
        board.count_pass();
    }
    phase
}

fn show(board: &Board, order: &Accepted, bundle: &Bundle, report: &Report, kept: &Kept) -> NodePhase {
    let (phase, mut errors) = judge(bundle, report, &kept.proofs);
    errors.extend(kept.notes.iter().cloned());
    board.show(order, report, &kept.proofs, phase, errors);
    phase
}

async fn restore(board: &Board, host: &Host, order: &Arc<Accepted>, kept: &mut Kept) -> NodePhase {
    let report = on_host(host, order, |host, order| host.restore(&order.signed)).await;
    kept.note(&report);
    kept.restored = report.errors.is_empty();
    let phase = if kept.restored { NodePhase::Restored } else { NodePhase::Failed };
    let errors = report.errors.iter().chain(&kept.notes).cloned().collect();
    board.show(order, &report, &[], phase, errors);
    board.count_pass();
    phase
}

/// Work on the host's files, off the thread that answers: a disk that hangs must not make the node look dead.
async fn on_host(host: &Host, order: &Arc<Accepted>, work: fn(&Host, &Accepted) -> Report) -> Report {
    let (host, order) = (host.clone(), Arc::clone(order));
    match tokio::task::spawn_blocking(move || work(&host, &order)).await {
        Ok(report) => report,
        Err(error) => Report::broken(error.to_string()),
    }
}

/// The phase in one word, and why it is not better.
pub(crate) fn judge(bundle: &Bundle, report: &Report, proofs: &[Proof]) -> (NodePhase, Vec<String>) {
    let mut errors = report.errors.clone();
    // What another registry serves does not spoil the trust in ours; where there is none of ours, it is all that there is.
    let alone = bundle.names.is_empty();
    let refused = proofs.iter().filter(|proof| proof.outcome == ProofOutcome::Untrusted && (alone || bundle.is_own(&proof.name)));
    errors.extend(refused.map(refusal));
    if !errors.is_empty() || report.sysctl.state == SysctlState::Failed {
        return (NodePhase::Failed, errors);
    }
    if alone {
        let asked = |other: &Other| proofs.iter().any(|proof| other.name.spellings().contains(&proof.name));
        return (if bundle.others.iter().all(asked) { NodePhase::Trusted } else { NodePhase::Pending }, errors);
    }
    // Trusted by curl alone is not enough where there is a docker that would pull.
    if let Some(silent) = proofs.iter().find(|proof| is_docker_alone_kept_out(bundle, proofs, proof)) {
        return (NodePhase::Pending, vec![kept_out(silent)]);
    }
    let mut inside = bundle.names.iter().filter(|trusted| trusted.inside).peekable();
    if inside.peek().is_none() {
        return (NodePhase::Pending, vec!["no name of the bundle is reachable from agents, so nothing can be proven".into()]);
    }
    let proven = |spellings: &[String]| proofs.iter().any(|p| p.outcome == ProofOutcome::Trusted && spellings.contains(&p.name));
    let all = inside.all(|trusted| proven(&bundle.spellings(&trusted.name)));
    (if all { NodePhase::Trusted } else { NodePhase::Pending }, errors)
}

/// Whether docker has not come as far as the certificate of a name, though another client has accepted it.
fn is_docker_alone_kept_out(bundle: &Bundle, proofs: &[Proof], proof: &Proof) -> bool {
    let is_same =
        |other: &Proof| bundle.names.iter().any(|t| [&proof.name, &other.name].iter().all(|n| bundle.spellings(&t.name).contains(n)));
    proof.client == "docker"
        && proof.outcome == ProofOutcome::Unreachable
        && proofs.iter().any(|other| other.client != "docker" && other.outcome == ProofOutcome::Trusted && is_same(other))
}

fn kept_out(proof: &Proof) -> String {
    let detail = proof.detail.as_deref().unwrap_or("no reason given");
    if detail.starts_with(NO_DAEMON) {
        return format!("{detail}; start docker: nothing else is to be done");
    }
    format!("docker does not reach {}, though other clients here do: {detail}; look at the proxy that dockerd uses", proof.name)
}

fn refusal(proof: &Proof) -> String {
    let detail = proof.detail.as_deref().unwrap_or("no reason given");
    let remedy = match proof.client.as_str() {
        "docker" => "look for foreign .cert or .key files in its directory below /etc/docker/certs.d",
        _ => "look for foreign files in /var/lib/dcos/pki/tls/certs",
    };
    format!("{} does not trust {}: {detail}; {remedy}, and compare the certificate that the registry serves", proof.client, proof.name)
}

/// Starts a task that ends with the handle: nothing of a node outlives it.
pub(crate) struct Running(tokio::task::JoinHandle<()>);

impl Running {
    /// Starts it.
    pub(crate) fn start(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Authority;
    use crate::protocol::{SysctlStatus, TrustBundle, TrustedName};

    fn bundle() -> Bundle {
        let name: crate::names::HostPort = "192.168.0.1:443".parse().unwrap();
        let ca = Authority::create("test", 1, std::slice::from_ref(&name), 1_700_000_000, 3650).unwrap().certificate().pem();
        Bundle::parse(&TrustBundle { names: vec![TrustedName { name, inside: true }], certificates: vec![ca], ..TrustBundle::default() })
            .unwrap()
    }

    fn proof(client: &str, name: &str, outcome: ProofOutcome, detail: &str) -> Proof {
        Proof { client: client.into(), name: name.into(), outcome, detail: Some(detail.into()), at: 0 }
    }

    fn judged(proofs: &[Proof]) -> (NodePhase, Vec<String>) {
        let sysctl = SysctlStatus { state: SysctlState::Set, value: None, found: None };
        judge(&bundle(), &Report { errors: vec![], sysctl, ..Report::broken(String::new()) }, proofs)
    }

    #[test]
    fn curl_alone_does_not_speak_for_a_docker_that_is_there_and_gets_nowhere() {
        let by_curl = proof("curl", "192.168.0.1:443", ProofOutcome::Trusted, "");
        assert_eq!(judged(std::slice::from_ref(&by_curl)), (NodePhase::Trusted, vec![]), "there is no docker");

        let dead = "the docker daemon does not answer at /var/run/docker.sock: Connection refused";
        let dead = proof("docker", "192.168.0.1", ProofOutcome::Unreachable, dead);
        let (phase, said) = judged(&[dead.clone(), by_curl.clone()]);
        assert_eq!((phase, said.len()), (NodePhase::Pending, 1));
        assert!(said[0].ends_with("Connection refused; start docker: nothing else is to be done"), "{said:?}");

        let lost = proof("docker", "192.168.0.1", ProofOutcome::Unreachable, "proxyconnect tcp: no route to host");
        let (phase, said) = judged(&[lost, by_curl]);
        assert_eq!(phase, NodePhase::Pending);
        assert!(said[0].contains("docker does not reach 192.168.0.1") && said[0].contains("proxy that dockerd uses"), "{said:?}");

        // The registry does not answer anybody: that is no fault of this host.
        let by_nobody = proof("curl", "192.168.0.1:443", ProofOutcome::Unreachable, "");
        assert_eq!(judged(&[dead, by_nobody]), (NodePhase::Pending, vec![]));
    }
}
