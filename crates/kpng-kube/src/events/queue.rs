//! One queue of Events on its way to the API server.
//!
//! What it costs the API server is bounded: by a rate, and, where thousands of nodes have the same to
//! say, by waiting the longer the more often another one was first.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use kpng_core::backoff::random;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::object::{Speaker, events_path, series};
use super::{Event, Queued, Scope};
use crate::request::{self, Failure, Write};
use crate::watcher::Session;

/// What all nodes say alike begins within this time, so that they do not all ask at once.
const SPREAD: Duration = Duration::from_secs(10);
/// Who was not first waits up to twice this, and twice as long each time it was not.
const LATE_PAUSE: Duration = Duration::from_secs(2);
/// A node that never comes first looks no less often than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// So many Events at once, and then one in each [`REFILL`].
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(2);
/// An Event that comes again and again is counted up this often.
const SERIES_PAUSE: Duration = Duration::from_secs(60);
/// So many Events are remembered, to know which come again.
const MAX_REMEMBERED: usize = 1024;
/// So often a request is tried that fails for a reason that may pass.
const ATTEMPTS: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(10);

/// Events of one scope.
#[derive(Debug)]
pub(super) struct Queue {
    receiver: mpsc::Receiver<Queued>,
    next: Option<Next>,
    said: HashMap<String, Said>,
    rate: Rate,
    /// How often in a row another node was first, and when that was last.
    late: u32,
    last: Option<Instant>,
    is_allowed: bool,
}

/// What is to be written next.
#[derive(Clone, Debug)]
struct Next {
    event: Event,
    due: Instant,
    /// How often it failed.
    failures: u32,
}

/// An Event that the API server has.
#[derive(Debug)]
struct Said {
    /// We wrote it; otherwise it is another node's.
    ours: bool,
    count: u32,
    counted: Instant,
}

/// What became of an attempt to write an Event.
enum Written {
    /// It is there, and it is ours.
    Created,
    /// It was there.
    Exists,
    /// There is no such object any more.
    Pointless,
}

impl Queue {
    pub(super) fn new(receiver: mpsc::Receiver<Queued>) -> Self {
        Self {
            receiver,
            next: None,
            said: HashMap::new(),
            rate: Rate::new(Instant::now()),
            late: 0,
            last: None,
            is_allowed: true,
        }
    }

    /// Writes one Event after the other, until it is dropped.
    pub(super) async fn run(&mut self, speaker: &Speaker, session: &Session<'_>) -> Infallible {
        loop {
            let next = self.next().await;
            sleep_until(next.due).await;
            sleep_until(self.rate.next(Instant::now())).await;
            let result = self.say(speaker, session, &next.event).await;
            self.next = match &result {
                Err(failure) if is_passing(failure) && next.failures + 1 < ATTEMPTS => {
                    debug!(%failure, "cannot write an Event; trying again");
                    let pause = session.timing.backoff.0 * 2_u32.pow(next.failures);
                    let (due, failures) = (Instant::now() + pause, next.failures + 1);
                    Some(Next { due, failures, ..next.clone() })
                }
                _ => None,
            };
            if let (None, Err(failure)) = (&self.next, result) {
                self.failed(session, &next.event, &failure);
            }
        }
    }

    /// What is to be written next. It stays that until something has become of it.
    async fn next(&mut self) -> Next {
        if let Some(next) = &self.next {
            return next.clone();
        }
        let Some(queued) = self.receiver.recv().await else {
            return std::future::pending().await;
        };
        let due = self.due(&queued);
        self.next.insert(Next { event: queued.event, due, failures: 0 }).clone()
    }

    /// When it is this Event's turn.
    fn due(&self, Queued { event, at }: &Queued) -> Instant {
        if event.scope == Scope::Node {
            return *at;
        }
        let after_others = self.last.filter(|_| self.late > 0).map(|last| {
            let pause =
                LATE_PAUSE.saturating_mul(2_u32.saturating_pow(self.late)).min(LONGEST_PAUSE);
            last + pause.mul_f64(random())
        });
        after_others.max(Some(*at + SPREAD.mul_f64(random()))).unwrap_or(*at)
    }

    async fn say(
        &mut self,
        speaker: &Speaker,
        session: &Session<'_>,
        event: &Event,
    ) -> Result<(), Failure> {
        let Some(uid) = uid(session, event).await? else {
            return Ok(());
        };
        let name = speaker.name_of(event, uid.as_deref());
        match self.said.get_mut(&name) {
            Some(said) if !said.ours => {
                session.events().said_by_others.add(1);
                return Ok(());
            }
            Some(said) => {
                if said.count_up(session, event, &name).await? {
                    return Ok(());
                }
                self.said.remove(&name); // the API server has forgotten it
            }
            None => {}
        }
        let written = create(speaker, session, event, &name, uid.as_deref()).await?;
        self.is_allowed = true;
        let ours = match written {
            Written::Created => true,
            Written::Exists => false,
            Written::Pointless => return Ok(()),
        };
        if ours {
            session.events().written.add(1);
            self.late = 0;
        } else {
            session.events().said_by_others.add(1);
            self.late = self.late.saturating_add(1);
        }
        let now = Instant::now();
        self.last = Some(now);
        if self.said.len() >= MAX_REMEMBERED {
            self.said.clear();
        }
        self.said.insert(name, Said { ours, count: 1, counted: now });
        Ok(())
    }

    fn failed(&mut self, session: &Session<'_>, event: &Event, failure: &Failure) {
        if let Failure::Forbidden(message) = failure {
            session.events().refused.add(1);
            if std::mem::replace(&mut self.is_allowed, false) {
                warn!(
                    "not allowed to write Events: bind the ClusterRole system:node-proxier to this \
                     identity, or allow it to create and patch events of the API group \
                     events.k8s.io, or say --events=false ({message})"
                );
            }
            return;
        }
        session.events().failed.add(1);
        debug!(reason = event.reason, %failure, "an Event could not be written");
    }
}

impl Said {
    /// Says that it came again. `false` if the API server does not have it any more.
    async fn count_up(
        &mut self,
        session: &Session<'_>,
        event: &Event,
        name: &str,
    ) -> Result<bool, Failure> {
        self.count = self.count.saturating_add(1);
        let is_first = self.count == 2;
        if !is_first && self.counted.elapsed() < SERIES_PAUSE {
            return Ok(true);
        }
        let path = format!("{}/{name}", events_path(event));
        let result = write(session, Write::MergePatch, &path, &series(self.count)).await;
        match result {
            Ok(()) => {
                self.counted = Instant::now();
                session.events().repeated.add(1);
                Ok(true)
            }
            Err(Failure::Refused(_)) => Ok(false),
            Err(failure) => {
                self.count -= 1;
                Err(failure)
            }
        }
    }
}

async fn create(
    speaker: &Speaker,
    session: &Session<'_>,
    event: &Event,
    name: &str,
    uid: Option<&str>,
) -> Result<Written, Failure> {
    let object = speaker.object(event, name, uid);
    match write(session, Write::Create, &events_path(event), &object).await {
        Ok(()) => Ok(Written::Created),
        Err(Failure::Conflict(_)) => Ok(Written::Exists),
        // A namespace that is going away takes nothing new.
        Err(Failure::Forbidden(message)) if message.contains("being terminated") => {
            Ok(Written::Pointless)
        }
        Err(failure) => Err(failure),
    }
}

/// The `uid` of the object, by which `kubectl describe` finds what was said about it. `None` if it is
/// gone, so that nobody will look; `Some(None)` if we may not know.
async fn uid(session: &Session<'_>, event: &Event) -> Result<Option<Option<String>>, Failure> {
    let path = event.regarding.list_path();
    let body = match request::list_metadata(session.client(), &path, PATIENCE).await {
        Ok(body) => body,
        Err(Failure::Forbidden(_)) => return Ok(Some(None)),
        Err(failure) => return Err(failure),
    };
    let list: Value = serde_json::from_slice(&body).unwrap_or_default();
    let object = list["items"].get(0);
    Ok(object.map(|object| object["metadata"]["uid"].as_str().map(str::to_owned)))
}

async fn write(
    session: &Session<'_>,
    what: Write,
    path: &str,
    object: &Value,
) -> Result<(), Failure> {
    request::write(session.client(), what, path, object.to_string(), PATIENCE).await
}

/// Whether the same request may succeed later.
fn is_passing(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Unauthorized(_)
            | Failure::Busy { .. }
            | Failure::Server(_)
            | Failure::Connection(_)
            | Failure::Malformed(_)
    )
}

/// So many at once, and then so many in a time.
#[derive(Debug)]
struct Rate {
    /// When the burst would be whole again.
    full: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// When the next may be. It is taken.
    fn next(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + REFILL;
        let allowance = REFILL * BURST;
        self.full.checked_sub(allowance).map_or(now, |earliest| earliest.max(now))
    }
}

#[cfg(test)]
mod tests {
    use kpng_core::model::NamespacedName;

    use super::super::Regarding;
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_there_is_a_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..BURST {
            assert_eq!(rate.next(start), start);
        }
        assert_eq!(rate.next(start) - start, REFILL);
        assert_eq!(rate.next(start) - start, 2 * REFILL);
        let later = start + 1000 * REFILL;
        assert_eq!(rate.next(later), later);
    }

    #[test]
    fn who_is_never_first_asks_less_often() {
        let (_sender, receiver) = mpsc::channel(1);
        let mut queue = Queue::new(receiver);
        let mut event = Event {
            regarding: Regarding::Service(NamespacedName::new("shop", "web")),
            related: None,
            reason: "Reason",
            action: "Act",
            note: String::new(),
            scope: Scope::Cluster,
        };
        let now = Instant::now();
        let mut mean = |queue: &Queue, scope| {
            event.scope = scope;
            let wait = |_| queue.due(&Queued { event: event.clone(), at: now }) - now;
            (0..1000).map(wait).sum::<Duration>() / 1000
        };
        assert!((4..=5).contains(&mean(&queue, Scope::Cluster).as_secs()));
        queue.last = Some(now);
        queue.late = 4;
        assert!((14..=19).contains(&mean(&queue, Scope::Cluster).as_secs()));
        queue.late = u32::MAX;
        assert!((130..=170).contains(&mean(&queue, Scope::Cluster).as_secs()));
        assert_eq!(mean(&queue, Scope::Node), Duration::ZERO);
    }
}
