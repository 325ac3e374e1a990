//! The heartbeat: reads what executors report, moves deployments and runs on, launches and kills, publishes names.

use std::time::Duration;

use super::SharedState;

/// One round.
pub fn tick(_shared: &SharedState) {}

/// A round every 100 ms, until the process ends.
pub async fn tick_forever(shared: SharedState) {
    loop {
        let round = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || tick(&round)).await {
            tracing::error!(%error, "tick failed");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
