//! The state of a cluster as one plain value.
//!
//! It is what a store holds, without the history: [`State::apply`] follows a store, and
//! [`State::into_batch`] makes a store equal to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kpng_core::explain::Here;
use kpng_core::model::{NamespacedName, Node, ServiceState};
use kpng_core::store::{Batch, Kind, Update};

/// All Services with their EndpointSlices, and all Nodes; and from where they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The Services. One whose `service` is `None` has slices only.
    pub services: BTreeMap<NamespacedName, Arc<ServiceState>>,
    /// The Nodes.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// The node on which the state was dumped. It is for explanations, and no part of the cluster.
    pub here: Option<Here>,
}

impl State {
    /// Follows a store: applies what a reader of it was told.
    pub fn apply(&mut self, update: &Update) {
        if update.full {
            self.services.clear();
            self.nodes.clear();
        }
        for (key, change) in &update.services {
            match &change.new {
                Some(service) => self.services.insert(key.clone(), Arc::clone(service)),
                None => self.services.remove(key),
            };
        }
        for (name, change) in &update.nodes {
            match &change.new {
                Some(node) => self.nodes.insert(Arc::clone(name), Arc::clone(node)),
                None => self.nodes.remove(name),
            };
        }
    }

    /// A batch that makes any store equal to this state, and synced.
    pub fn into_batch(self) -> Batch {
        let mut batch = Batch::new();
        let has_service = |(_, state): &(&_, &Arc<ServiceState>)| state.service.is_some();
        let services = self.services.iter().filter(has_service).map(|(key, _)| key.clone());
        batch.retain_services(services.collect());
        let slice_of = |key: &NamespacedName, name: &Arc<str>| {
            NamespacedName::new(Arc::clone(&key.namespace), Arc::clone(name))
        };
        let slices = self
            .services
            .iter()
            .flat_map(|(key, state)| state.slices.iter().map(move |(name, _)| slice_of(key, name)));
        batch.retain_slices(slices.collect());
        batch.retain_nodes(self.nodes.keys().cloned().collect());
        for (key, state) in self.services {
            let ServiceState { service, slices } = Arc::unwrap_or_clone(state);
            for (name, slice) in slices {
                let slice = Arc::unwrap_or_clone(slice);
                batch.set_slice(slice_of(&key, &name), Arc::clone(&key.name), slice);
            }
            if let Some(service) = service {
                batch.set_service(key, Arc::unwrap_or_clone(service));
            }
        }
        for (name, node) in self.nodes {
            batch.set_node(name, Arc::unwrap_or_clone(node));
        }
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        batch
    }
}
