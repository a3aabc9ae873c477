//! How the node does, and what happened lately, as JSON.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use kpng_api::client;
use kpng_core::model::NamespacedName;
use kpng_core::store::Kind;
use serde_json::{Value, json};

use super::Web;
use super::board::{Entry, Lately, What};
use super::difference::objects_json;
use crate::inspect::{Inspect, facts_text};
use crate::rfc3339;

/// Where the state of the cluster comes from, as far as it tells how it does.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The watcher of an API server, if there is one.
    pub kube: Option<Arc<kpng_kube::Stats>>,
    /// The client of a kpng server, if there is one.
    pub client: Option<Arc<client::Stats>>,
}

impl Source {
    /// What keeps it from being up to date, if that is known.
    fn problem(&self) -> Option<String> {
        if let Some(stats) = &self.kube {
            return stats.problem().map(|problem| problem.to_string());
        }
        let is_cut_off = self.client.as_ref().is_some_and(|stats| !stats.is_connected());
        is_cut_off.then(|| "no connection to a kpng server".to_owned())
    }

    /// When the API server was last heard about all kinds of objects.
    fn last_contact(&self) -> Option<SystemTime> {
        let stats = self.kube.as_ref()?;
        Kind::ALL.iter().filter_map(|&kind| stats.kind(kind).last_contact()).min()
    }
}

impl<V: Inspect> Web<V> {
    pub(super) fn status(&self) -> Value {
        let Self { process, board, source, health, .. } = self;
        let store = &process.store;
        let (services, nodes) = store.len();
        let lately = board.lately();
        let revision = store.revision();
        let row = process.choice.row();
        let facts = process.facts().map(|facts| facts_text(&facts)).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": &*process.node,
            "facts": facts.lines().collect::<Vec<_>>(),
            "backend": { "name": row.name, "about": row.about },
            "healthy": health.is_healthy(),
            "ready": health.is_ready(),
            "source": {
                "complete": store.is_synced(),
                "revision": revision,
                "services": services,
                "nodes": nodes,
                "problem": source.problem(),
                "lastContact": source.last_contact().map(time),
            },
            "sync": lately.sync.as_ref().map(|sync| json!({
                "at": time(sync.at),
                "milliseconds": sync.duration.as_secs_f64() * 1000.0,
                "full": sync.full,
                "changed": sync.changed,
                "services": sync.services,
                "revision": sync.revision,
            })),
            "backlog": revision.saturating_sub(process.synced.load(Ordering::Acquire)),
            "failure": lately.failure,
            "conflicts": lately.conflicts,
            "gaps": lately.gaps.iter().map(|(what, services)| {
                let gap = row.gaps.iter().find(|gap| gap.what == *what);
                json!({ "what": what.to_string(), "why": gap.map(|gap| gap.why), "services": services })
            }).collect::<Vec<_>>(),
            "changes": lately.count,
        })
    }
}

impl Lately {
    /// What happened lately, the newest first.
    pub(super) fn json(&self) -> Value {
        let numbers = (0..self.count).rev();
        let entries = self.entries.iter().rev().zip(numbers);
        json!({
            "count": self.count,
            "changes": entries.map(|(entry, number)| entry.json(number)).collect::<Vec<_>>(),
        })
    }
}

impl Entry {
    fn json(&self, number: u64) -> Value {
        let mut value = match &self.what {
            What::Service(key, difference) => {
                let mut value = difference.json();
                value["service"] = name(key);
                value
            }
            What::Services { added, removed, changed } => json!({
                "is": "many",
                "services": {
                    "added": objects_json(added),
                    "removed": objects_json(removed),
                    "changed": objects_json(changed),
                },
            }),
            What::Facts => json!({ "is": "node" }),
            What::Conflict(conflict) => {
                json!({ "is": "conflict", "service": name(&conflict.loser), "text": conflict.to_string() })
            }
            What::Warning(key, warning) => {
                json!({ "is": "warning", "service": name(key), "text": warning.to_string() })
            }
            What::Disturbed => json!({ "is": "disturbed" }),
            What::Failed(text) => json!({ "is": "failed", "text": text }),
        };
        value["number"] = json!(number);
        value["at"] = json!(time(self.at));
        value
    }
}

fn name(key: &NamespacedName) -> Value {
    json!({ "namespace": &*key.namespace, "name": &*key.name })
}

fn time(time: SystemTime) -> String {
    rfc3339::format(Some(time))
}
