//! What happened on the node lately, for those who look.
//!
//! Work is proportional to what changed, and what is kept is bounded, however much happens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use kpng_core::backend::{Capability, Objects};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{Changes, Conflict, Plan, Warning};
use kpng_core::store::Revision;

use super::difference::Difference;
use crate::pipeline::{Event, Synced};

/// So many entries are kept.
pub(super) const ENTRIES: usize = 200;

/// With more services in one sync than this, they are one entry.
const FEW: usize = 50;

/// What happened lately. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Lately>>);

/// What is known of the node's work.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately {
    /// The last sync that succeeded.
    pub(super) sync: Option<Sync>,
    /// Why the last sync failed, if it did.
    pub(super) failure: Option<String>,
    /// How many claims to frontends are not met.
    pub(super) conflicts: usize,
    /// How many services need what the backend cannot do.
    pub(super) gaps: Vec<(Capability, usize)>,
    /// The newest entry is the last.
    pub(super) entries: VecDeque<Arc<Entry>>,
    /// How many entries there ever were.
    pub(super) count: u64,
}

/// A sync that succeeded.
#[derive(Clone, Debug)]
pub(super) struct Sync {
    pub(super) at: SystemTime,
    pub(super) duration: Duration,
    pub(super) revision: Revision,
    /// All services were synced.
    pub(super) full: bool,
    /// How many services changed.
    pub(super) changed: usize,
    /// How many services there are.
    pub(super) services: usize,
}

/// Something that happened.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: SystemTime,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// The plan of a service changed.
    Service(NamespacedName, Difference),
    /// The plans of many services changed at once.
    Services { added: Objects, removed: Objects, changed: Objects },
    /// What is known of the node itself changed.
    Facts,
    /// A service claims a frontend that another has.
    Conflict(Conflict),
    /// Something is wrong with a service.
    Warning(NamespacedName, Warning),
    /// Somebody else changed the backend's objects.
    Disturbed,
    /// A sync failed.
    Failed(String),
}

impl Board {
    /// Takes note of an event of the pipeline.
    pub fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Queued => {}
            Event::Unchanged { changes, conflicts, .. } => self.lock().doubt(changes, *conflicts),
            Event::Disturbed => self.lock().add(What::Disturbed),
            Event::Synced(synced) => self.synced(synced),
        }
    }

    /// So many services need each of the things that the backend cannot do.
    pub fn set_gaps(&self, counts: impl Iterator<Item = (Capability, usize)>) {
        let gaps = counts.collect();
        self.lock().gaps = gaps;
    }

    /// All of it, as it is now.
    pub(super) fn lately(&self) -> Lately {
        self.lock().clone()
    }

    fn synced(&self, synced: &Synced<'_>) {
        let Synced { plan, changes, .. } = *synced;
        // Made before anybody is kept waiting.
        let news = news(plan, changes);
        let mut lately = self.lock();
        news.into_iter().for_each(|what| lately.add(what));
        lately.doubt(changes, synced.conflicts);
        match synced.result {
            Ok(()) => {
                lately.failure = None;
                lately.sync = Some(Sync {
                    at: SystemTime::now(),
                    duration: synced.duration,
                    revision: synced.revision,
                    full: synced.full,
                    changed: changes.services.len(),
                    services: plan.services().len(),
                });
            }
            Err(error) => {
                let error: &dyn std::error::Error = &**error;
                let causes = std::iter::successors(error.source(), |error| error.source());
                let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
                if lately.failure.as_ref() != Some(&text) {
                    lately.add(What::Failed(text.clone()));
                }
                lately.failure = Some(text);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lately> {
        // Whatever happened to a holder, each of the values makes sense.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lately {
    /// What is served otherwise than somebody wanted.
    fn doubt(&mut self, changes: &Changes, conflicts: usize) {
        self.conflicts = conflicts;
        for conflict in changes.conflicts.iter().take(FEW) {
            self.add(What::Conflict(conflict.clone()));
        }
        for (key, warning) in changes.warnings.iter().take(FEW) {
            self.add(What::Warning(key.clone(), *warning));
        }
    }

    fn add(&mut self, what: What) {
        if self.entries.len() == ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Arc::new(Entry { at: SystemTime::now(), what }));
        self.count += 1;
    }
}

fn news(plan: &Plan, changes: &Changes) -> Vec<What> {
    let mut news = Vec::new();
    if changes.facts {
        news.push(What::Facts);
    }
    if changes.services.len() > FEW {
        news.push(many(plan, changes));
    } else {
        news.extend(changes.services.iter().map(|key| {
            let (old, new) = (changes.before.get(key), plan.service(key));
            let [old, new] = [old, new].map(|plan| plan.map(|plan| &**plan));
            What::Service(key.clone(), Difference::between(old, new))
        }));
    }
    news
}

fn many(plan: &Plan, changes: &Changes) -> What {
    let (mut added, mut removed, mut changed) =
        (Objects::default(), Objects::default(), Objects::default());
    for key in &changes.services {
        let kind = match (changes.before.contains_key(key), plan.service(key)) {
            (false, _) => &mut added,
            (true, None) => &mut removed,
            (true, Some(_)) => &mut changed,
        };
        kind.add(|| key.to_string());
    }
    What::Services { added, removed, changed }
}
