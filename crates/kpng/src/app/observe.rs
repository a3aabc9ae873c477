//! What a pipeline's events mean to everybody around it: health, metrics, conntrack, the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kpng_core::backend::Gap;
use kpng_core::plan::Changes;
use kpng_core::store::Revision;
use kpng_linux::memory::give_back;
use tracing::{debug, error, info, warn};

use crate::conntrack::Cleaner;
use crate::events::Events;
use crate::gaps::GapWatch;
use crate::health::ProxyHealth;
use crate::memory::LARGE_CHANGE;
use crate::metrics::Metrics;
use crate::pipeline::{Event, Synced};
use crate::service_health::ServiceHealth;
use crate::web::Board;

/// Tells everybody.
pub(super) struct Observer {
    pub(super) health: ProxyHealth,
    pub(super) metrics: Metrics,
    pub(super) service_health: ServiceHealth,
    pub(super) gaps: GapWatch,
    pub(super) events: Events,
    pub(super) board: Board,
    /// Up to which revision of the store the kernel follows.
    pub(super) synced: Arc<AtomicU64>,
    /// Of those who decide what becomes of packets.
    pub(super) cleaner: Option<Arc<Cleaner>>,
    /// Called once, after the first successful sync.
    pub(super) at_first_sync: Option<Box<dyn FnOnce()>>,
}

impl Observer {
    /// Takes note of an event.
    pub(super) fn observe(&mut self, event: &Event<'_>) {
        self.board.observe(event);
        match event {
            Event::Queued => {
                self.health.queued();
                self.metrics.queued();
            }
            Event::Unchanged { changes, conflicts, revision } => {
                self.doubts(changes, *conflicts);
                self.in_force(*revision);
                self.health.synced();
            }
            Event::Disturbed => {
                warn!("somebody else changed kpng's objects in the kernel; they are repaired");
            }
            Event::Synced(synced) => self.synced(synced),
        }
    }

    /// What is served otherwise than somebody wanted.
    fn doubts(&self, changes: &Changes, conflicts: usize) {
        self.metrics.set_conflicts(conflicts);
        for conflict in &changes.conflicts {
            warn!("{conflict}");
            self.events.conflict(conflict);
        }
        for (service, warning) in &changes.warnings {
            warn!(%service, "{warning}");
            self.events.planned_with(service, *warning);
        }
    }

    /// The kernel follows up to this revision of the store.
    fn in_force(&self, revision: Revision) {
        self.metrics.set_synced_revision(revision);
        self.synced.store(revision, Ordering::Release);
    }

    fn synced(&mut self, synced: &Synced<'_>) {
        let Synced { plan, changes, full, duration, .. } = *synced;
        self.metrics.changes(synced.taken.0, synced.taken.1);
        self.metrics.sync_done(full, duration, synced.result);
        let services = if full { plan.services().len() } else { changes.services.len() };
        self.metrics.sync_size(services);
        self.metrics.set_usage(&synced.usage);
        self.doubts(changes, synced.conflicts);
        if let Err(error) = synced.result {
            error!(
                error = &**error as &dyn std::error::Error,
                "cannot update the kernel; trying again"
            );
            return;
        }
        let changed = (!full).then_some(&changes.services[..]);
        for (service, gap) in self.gaps.update(plan, changed) {
            let Gap { what, why } = &gap;
            warn!(%service, "this backend cannot do {what}: {why}");
            self.events.gap(&service, &gap);
        }
        self.metrics.set_gaps(self.gaps.counts());
        self.board.set_gaps(self.gaps.counts());
        self.metrics.planned(plan, changed);
        self.in_force(synced.revision);
        if let Some(triggered) = synced.triggered {
            self.metrics.programmed(triggered, plan, &changes.services);
        }
        if let Some(cleaner) = &self.cleaner {
            cleaner.update(plan, changed);
        }
        self.service_health.update(plan, changed);
        self.health.synced();
        let (services, milliseconds) = (plan.services().len(), duration.as_millis());
        if full {
            info!(services, milliseconds, "all services are in force");
        } else {
            debug!(changed = changes.services.len(), milliseconds, "changes are in force");
        }
        if full || changes.services.len() >= LARGE_CHANGE {
            drop(tokio::task::spawn_blocking(give_back));
        }
        if let Some(then) = self.at_first_sync.take() {
            then();
        }
    }
}
