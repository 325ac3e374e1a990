//! Has the images of `preload.images` copied in by the node on the registry's agent.

use super::{Controller, ControllerError, Report, observe};
use crate::names::Host;
use crate::plan::Observed;
use crate::preload;
use crate::protocol::{NodePhase, OrderKind, PreloadOrder, PreloadState, SignedOrder};

/// What the controller knows of them.
#[derive(Default)]
pub(super) struct Preloads {
    /// What was asked of which agent.
    asked: Option<(Host, PreloadOrder, SignedOrder, u64)>,
}

impl Preloads {
    /// Whether any was.
    pub(super) fn concern_any(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether this agent's node was asked to copy images.
    pub(super) fn concern(&self, host: &Host) -> bool {
        self.asked.as_ref().is_some_and(|(asked, ..)| asked == host)
    }
}

impl Controller {
    /// Gives the order where it is not known, and remembers what was copied.
    pub(super) async fn preload(&mut self, observed: &Observed) -> Result<(), ControllerError> {
        let Some((host, mut order)) = preload::wanted(&self.options, &observed.registries) else { return Ok(()) };
        let (Ok(host), Some(state)) = (host.parse::<Host>(), &mut self.state) else { return Ok(()) };
        // Without the trust it could only fail.
        let Some(node) = observed.nodes.get(&host).filter(|node| node.phase == NodePhase::Trusted) else { return Ok(()) };
        let images = node.preload.iter().flat_map(|preload| &preload.images);
        let copied = images.filter(|image| image.state == PreloadState::Done).filter_map(|i| Some((i.image.clone(), i.copied.clone()?)));
        state.note_preloaded(copied).await?;
        let same = |known: &(Host, PreloadOrder, SignedOrder, u64)| {
            let froms = |order: &PreloadOrder| order.images.iter().map(|image| image.from.clone()).collect::<Vec<_>>();
            let place = |order: &PreloadOrder| (order.registry.clone(), order.login);
            known.0 == host && place(&known.1) == place(&order) && froms(&known.1) == froms(&order)
        };
        if !self.preloads.asked.as_ref().is_some_and(same) {
            for image in &mut order.images {
                image.known = state.preloaded(&image.from).cloned();
            }
            let signed = state.order(OrderKind::Preload(order.clone())).await?;
            self.preloads.asked = Some((host.clone(), order, signed, state.version()));
        }
        if let Some((_, _, signed, version)) = &self.preloads.asked {
            let taken = node.preload.as_ref().map(|preload| preload.version);
            if taken != Some(*version) {
                // Others' orders may have come in between: what is older than the one it has is never taken.
                if taken.is_some_and(|taken| taken > *version) {
                    self.preloads.asked = None;
                    return Ok(());
                }
                observe::send_to_nodes(&self.cluster, observed, vec![&host], signed).await;
            }
        }
        Ok(())
    }

    /// Says how it stands. A failure is a problem and keeps nothing else from being done.
    pub(super) fn report_preload(&self, observed: &Observed, report: &mut Report) {
        report.problems.extend(preload::refused(&self.options));
        let Some((host, ..)) = &self.preloads.asked else { return };
        let node = observed.nodes.get(host);
        let (going, failed) = preload::lines(node.map(AsRef::as_ref));
        report.next.extend(going);
        report.problems.extend(failed);
        report.preload = node.and_then(|node| node.preload.clone()).map(|preload| preload.images).unwrap_or_default();
    }
}
