//! Kubernetes Events: what somebody who looks at an object should know of what became of it here.
//!
//! Saying something never waits and never fails: it is queued, and left out when the queue is full.
//! What every node of the cluster would say alike is written by one of them. An Event's name follows
//! from what it says, so the API server refuses the second one that says the same.

mod object;
mod queue;

use std::convert::Infallible;
use std::sync::Arc;

use kpng_core::model::NamespacedName;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::stats::{EventStats, Stats};
use crate::watcher::Session;
use object::Speaker;
use queue::Queue;

/// So many Events wait at most, of each [`Scope`].
const MAX_WAITING: usize = 256;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regarding {
    /// A Service.
    Service(NamespacedName),
    /// An `EndpointSlice`.
    EndpointSlice(NamespacedName),
}

/// Who would say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every node that sees the object.
    Cluster,
    /// This node only.
    Node,
}

/// A warning for people who look at an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The object.
    pub regarding: Regarding,
    /// Another object that has to do with it.
    pub related: Option<Regarding>,
    /// Why, in a CamelCase word that programs can look for.
    pub reason: &'static str,
    /// What was attempted, in such a word.
    pub action: &'static str,
    /// What happened and what to do, for people. The API server takes 1 KiB; the rest is left out.
    pub note: String,
    /// Who would say the same.
    pub scope: Scope,
}

/// Takes Events. Clones share the queues.
#[derive(Clone, Debug)]
pub struct Recorder {
    cluster: mpsc::Sender<Queued>,
    node: mpsc::Sender<Queued>,
    stats: Arc<Stats>,
}

#[derive(Debug)]
struct Queued {
    event: Event,
    at: Instant,
}

impl Recorder {
    /// Will have the Event written, soon. Returns at once.
    pub fn record(&self, event: Event) {
        let queue = match event.scope {
            Scope::Cluster => &self.cluster,
            Scope::Node => &self.node,
        };
        if queue.try_send(Queued { event, at: Instant::now() }).is_err() {
            self.stats.events().dropped.add(1);
        }
    }
}

/// Writes what recorders took.
#[derive(Debug)]
pub(crate) struct Writer {
    speaker: Speaker,
    // What concerns this node alone does not wait behind what others say too.
    cluster: Queue,
    node: Queue,
}

/// A recorder, and who writes what it takes as `instance`.
pub(crate) fn channel(instance: &str, stats: Arc<Stats>) -> (Recorder, Writer) {
    let (cluster, cluster_receiver) = mpsc::channel(MAX_WAITING);
    let (node, node_receiver) = mpsc::channel(MAX_WAITING);
    let writer = Writer {
        speaker: Speaker::new(instance),
        cluster: Queue::new(cluster_receiver),
        node: Queue::new(node_receiver),
    };
    (Recorder { cluster, node, stats }, writer)
}

impl Writer {
    /// Writes until it is dropped. What was not written then is next.
    pub(crate) async fn run(&mut self, session: &Session<'_>) -> Infallible {
        tokio::select! {
            never = self.cluster.run(&self.speaker, session) => never,
            never = self.node.run(&self.speaker, session) => never,
        }
    }
}

impl Session<'_> {
    fn events(&self) -> &EventStats {
        self.stats.events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_nobody_waits() {
        let stats = Arc::<Stats>::default();
        let (recorder, _writer) = channel("node-a", Arc::clone(&stats));
        let event = |scope| Event {
            regarding: Regarding::Service(NamespacedName::new("shop", "web")),
            related: None,
            reason: "Reason",
            action: "Act",
            note: String::new(),
            scope,
        };
        for _ in 0..MAX_WAITING + 3 {
            recorder.record(event(Scope::Cluster));
        }
        recorder.record(event(Scope::Node));
        assert_eq!(stats.events().dropped.get(), 3);
    }
}
