//! From a store to a backend: the one long-lived loop of a node.
//!
//! ```text
//! Reader ──▶ Planner ──▶ Backend::sync        facts of the node ──▶ Planner
//! ```
//!
//! A sync happens when something changed, when somebody disturbed the backend's objects, and again,
//! with back-off, after a failure; never because time passed. Planning and syncing run on a blocking
//! thread, so a long first sync stalls nobody.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kpng_core::backend::{Backend, BackendError, Usage};
use kpng_core::backoff::Backoff;
use kpng_core::model::ServiceState;
use kpng_core::plan::{Changes, NodeFacts, Plan, Planner};
use kpng_core::store::{Reader, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::{Counted, count_changes};

/// How often the backend is asked whether somebody disturbed it.
const DISTURBANCE_CHECK: Duration = Duration::from_secs(1);

/// Who disturbs again and again, such as a second proxy on this node that wants something else, is
/// answered ever more slowly, down to this: neither would ever have the last word.
const SLOWEST_DISTURBANCE_CHECK: Duration = Duration::from_secs(20);

/// After this long without a disturbance the next one is the first again.
const CALM: Duration = Duration::from_secs(60);

/// A node's pipeline.
pub struct Pipeline<V = ServiceState> {
    /// Where changes come from.
    pub reader: Reader<V>,
    /// The name of the node.
    pub node: Arc<str>,
    /// What the plan depends on beside the store. Nothing is synced before there are facts.
    pub facts: watch::Receiver<Option<NodeFacts>>,
    /// Who makes it happen.
    pub backend: Box<dyn Backend>,
    /// The shortest time between the starts of two syncs; changes gather meanwhile.
    pub min_sync_period: Duration,
}

/// What an observer of the pipeline learns.
#[derive(Debug)]
pub enum Event<'a> {
    /// A change waits to be synced.
    Queued,
    /// A sync ended.
    Synced(&'a Synced<'a>),
    /// What waited came to nothing in the kernel: what the plan serves is as it was.
    Unchanged {
        /// What may have changed nevertheless: who wants what others have.
        changes: &'a Changes,
        /// How many claims to frontends are not met.
        conflicts: usize,
        /// Everything up to this revision of the store was planned.
        revision: Revision,
    },
    /// Somebody else changed the backend's objects; a full sync follows.
    Disturbed,
}

/// The end of a sync.
#[derive(Debug)]
pub struct Synced<'a> {
    /// What shall be in force.
    pub plan: &'a Plan,
    /// What changed in the plan since the last sync.
    pub changes: &'a Changes,
    /// All services were synced, not only those that changed.
    pub full: bool,
    /// How long it took to plan and to sync.
    pub duration: Duration,
    /// When the cluster made the earliest of the changes, where it said so.
    pub triggered: Option<SystemTime>,
    /// How many changes of Services and EndpointSlices were taken over.
    pub taken: (u64, u64),
    /// Everything up to this revision of the store was planned.
    pub revision: Revision,
    /// How many claims to frontends are not met.
    pub conflicts: usize,
    /// How full the backend's tables are.
    pub usage: Vec<Usage>,
    /// What the backend said.
    pub result: &'a Result<(), BackendError>,
}

/// What moves to the blocking thread and back.
struct Work<V> {
    reader: Reader<V>,
    planner: Planner<V>,
    backend: Box<dyn Backend>,
    /// The next sync is a full one.
    full: bool,
    revision: Revision,
}

struct Outcome {
    changes: Changes,
    full: bool,
    duration: Duration,
    triggered: Option<SystemTime>,
    taken: (u64, u64),
    revision: Revision,
    /// `None` when there was nothing to sync.
    result: Option<Result<(), BackendError>>,
}

impl<V: Counted> Pipeline<V> {
    /// Runs until `shutdown` completes, or until the source is gone and everything was synced. A
    /// sync that has begun is finished; what was written stays, and the backend drains.
    pub async fn run(self, observe: impl FnMut(&Event<'_>), shutdown: impl Future<Output = ()>) {
        let mut backend = self.follow(observe, shutdown).await;
        let drained = tokio::task::spawn_blocking(move || backend.drain());
        drained.await.expect("ending does not panic");
    }

    /// Runs, and gives the backend back.
    async fn follow(
        self,
        mut observe: impl FnMut(&Event<'_>),
        shutdown: impl Future<Output = ()>,
    ) -> Box<dyn Backend> {
        let Self { reader, node, mut facts, backend, min_sync_period } = self;
        tokio::pin!(shutdown);
        let first_facts = tokio::select! {
            () = &mut shutdown => return backend,
            facts = facts.wait_for(Option::is_some) => match facts {
                Ok(facts) => facts.clone().unwrap_or_default(),
                Err(_) => return backend,
            },
        };
        let planner = Planner::new(node, first_facts);
        let mut work = Work { reader, planner, backend, full: true, revision: 0 };
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut retry: Option<Instant> = None;
        let mut last_sync: Option<Instant> = None;
        let mut disturbances = Disturbances::new();

        loop {
            tokio::select! {
                () = &mut shutdown => return work.backend,
                more = work.reader.ready() => if !more && retry.is_none() { return work.backend },
                changed = facts.changed() => if changed.is_err() { return work.backend },
                () = at(retry) => {}
                () = tokio::time::sleep_until(disturbances.next_check) => {
                    if !disturbances.check(&mut work) { continue }
                    observe(&Event::Disturbed);
                }
            }
            observe(&Event::Queued);
            let earliest = [last_sync.map(|last| last + min_sync_period), retry];
            if let Some(earliest) = earliest.into_iter().flatten().max() {
                tokio::select! {
                    () = &mut shutdown => return work.backend,
                    () = tokio::time::sleep_until(earliest) => {}
                }
            }
            last_sync = Some(Instant::now());
            let facts = facts.borrow_and_update().clone();
            let job = tokio::task::spawn_blocking(move || {
                let outcome = work.sync(facts);
                (work, outcome)
            });
            let (back, outcome) = job.await.expect("planning and syncing do not panic");
            work = back;
            let Some(result) = &outcome.result else {
                let (changes, conflicts) = (&outcome.changes, work.planner.conflict_count());
                observe(&Event::Unchanged { changes, conflicts, revision: outcome.revision });
                continue;
            };
            retry = match result {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(_) => Some(Instant::now() + backoff.next_delay()),
            };
            observe(&Event::Synced(&Synced {
                plan: work.planner.plan(),
                changes: &outcome.changes,
                full: outcome.full,
                duration: outcome.duration,
                triggered: outcome.triggered,
                taken: outcome.taken,
                revision: outcome.revision,
                conflicts: work.planner.conflict_count(),
                usage: work.backend.usage(),
                result,
            }));
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// When to ask the backend whether somebody disturbed it.
struct Disturbances {
    next_check: Instant,
    last: Option<Instant>,
    backoff: Backoff,
}

impl Disturbances {
    fn new() -> Self {
        let backoff = Backoff::new(DISTURBANCE_CHECK, SLOWEST_DISTURBANCE_CHECK);
        Self { next_check: Instant::now(), last: None, backoff }
    }

    /// Whether a full sync is needed that is not coming anyway. A backend that cannot tell is taken
    /// for disturbed.
    fn check<V>(&mut self, work: &mut Work<V>) -> bool {
        let now = Instant::now();
        self.next_check = now + DISTURBANCE_CHECK;
        if work.full || !work.backend.disturbed().unwrap_or(true) {
            return false;
        }
        self.noticed(now);
        work.full = true;
        true
    }

    fn noticed(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now - last > CALM) {
            self.backoff.reset();
        }
        self.last = Some(now);
        self.next_check = now + self.backoff.next_delay();
    }
}

impl<V: Counted> Work<V> {
    fn sync(&mut self, facts: Option<NodeFacts>) -> Outcome {
        let start = std::time::Instant::now();
        let mut changes = Changes::default();
        let mut triggered = None;
        let (mut services, mut slices) = (0, 0);
        if let Some(facts) = facts {
            changes = self.planner.set_facts(facts);
        }
        while let Some(update) = self.reader.try_next() {
            changes.merge(self.planner.update(&update));
            let taken = count_changes(&update);
            services += taken.0;
            slices += taken.1;
            self.revision = update.revision;
            triggered = [triggered, update.triggered].into_iter().flatten().min();
        }
        let full = self.full;
        let plan = self.planner.plan();
        let result = if full {
            Some(self.backend.sync(plan, None))
        } else if changes.is_empty() {
            None
        } else {
            Some(self.backend.sync(plan, Some(&changes.services)))
        };
        self.full = matches!(result, Some(Err(_)));
        let (duration, revision) = (start.elapsed(), self.revision);
        Outcome { changes, full, duration, triggered, taken: (services, slices), revision, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_disturbs_all_the_time_is_answered_ever_more_slowly() {
        let mut disturbances = Disturbances::new();
        let start = Instant::now();
        let mut answers = Vec::new();
        let mut now = start;
        while now < start + Duration::from_secs(300) {
            answers.push(now - start);
            disturbances.noticed(now);
            now = disturbances.next_check;
        }
        assert!(answers[2] <= Duration::from_secs(3), "the first are answered soon: {answers:?}");
        assert!((15..=28).contains(&answers.len()), "{answers:?}");

        now += CALM + Duration::from_secs(1);
        disturbances.noticed(now);
        assert!(disturbances.next_check - now <= DISTURBANCE_CHECK, "a new one is the first again");
    }
}
