//! Looks whether Marathon-LB is there, and has it installed where the options ask for that.

use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};

use super::cluster::Cluster;
use crate::dcos::cosmos::{Cosmos, CosmosError};
use crate::exposure::{self, MarathonLb};
use crate::options::Options;
use crate::plan::Observed;

/// The package's name.
const PACKAGE: &str = "marathon-lb";
/// Where every Marathon-LB answers, whoever has started it: its HAProxy's statistics.
const HEALTH: &str = ":9090/_haproxy_health_check";
/// HAProxy answers at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks at the public agents.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Pause after an installation that failed.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What is known of Marathon-LB.
#[derive(Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    answering: bool,
    installation: Installation,
}

/// The one that the options may ask for. Its success is final: who removes Marathon-LB afterwards has a reason.
#[derive(Default)]
enum Installation {
    #[default]
    Due,
    Running(JoinHandle<Result<(), CosmosError>>),
    Failed(Instant, CosmosError),
    Done,
}

impl Watch {
    /// Looks; never takes longer than [`PATIENCE`].
    pub(super) async fn look(&mut self, cluster: &Cluster, options: &Options, observed: &Observed) {
        if exposure::marathon_lb(options, observed, false) == MarathonLb::Fine {
            return;
        }
        // Another Marathon, or nobody's, may run it.
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            self.answering = answers(&cluster.http, observed).await;
            self.looked = Some(Instant::now());
        }
        if options.exposure.install_marathon_lb && exposure::marathon_lb(options, observed, self.answering) == MarathonLb::Absent {
            self.install(&cluster.cosmos).await;
        }
    }

    async fn install(&mut self, cosmos: &Cosmos) {
        self.installation = match std::mem::take(&mut self.installation) {
            Installation::Running(job) if job.is_finished() => match job.await {
                Ok(Ok(())) => {
                    tracing::info!("Marathon-LB is installed");
                    Installation::Done
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "Marathon-LB is not installed");
                    Installation::Failed(Instant::now(), error)
                }
                // It was cut off: the program ends.
                Err(_) => Installation::Due,
            },
            Installation::Failed(at, error) if at.elapsed() < TRY_AGAIN => Installation::Failed(at, error),
            Installation::Due | Installation::Failed(..) => {
                tracing::info!("installing Marathon-LB, as exposure.install_marathon_lb asks");
                let cosmos = cosmos.clone();
                Installation::Running(tokio::spawn(async move { cosmos.install(PACKAGE).await }))
            }
            other => other,
        };
    }

    /// What to tell people, if anything.
    pub(super) fn problem(&self, options: &Options, observed: &Observed) -> Option<String> {
        let state = exposure::marathon_lb(options, observed, self.answering);
        match (&state, &self.installation) {
            (MarathonLb::Absent, Installation::Running(_)) => Some("Marathon-LB is being installed".into()),
            (MarathonLb::Absent, Installation::Failed(_, error)) => Some(exposure::not_installed(error)),
            _ => state.problem(options),
        }
    }
}

/// Whether a Marathon-LB answers on a public agent.
async fn answers(http: &reqwest::Client, observed: &Observed) -> bool {
    let mut asked = JoinSet::new();
    for agent in observed.agents.iter().filter(|agent| agent.public) {
        let request = http.get(format!("http://{}{HEALTH}", agent.host)).timeout(PATIENCE);
        asked.spawn(async move { request.send().await.is_ok_and(|answer| answer.status().is_success()) });
    }
    while let Some(answer) = asked.join_next().await {
        if matches!(answer, Ok(true)) {
            return true;
        }
    }
    false
}
