//! Follows a store as one node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{LocalService, Place, Vantages, localize};
use crate::model::{NamespacedName, ServiceState};
use crate::store::Update;

/// What a store can hold for each Service: something that a node's view follows from.
pub trait Localize: PartialEq + Send + Sync + 'static {
    /// What the Service means at `here`; `None` when there is no Service object (yet).
    fn localize(self: &Arc<Self>, key: &NamespacedName, here: &Place) -> Option<Arc<LocalService>>;

    /// Which places see it differently.
    fn vantages(&self) -> Vantages;
}

impl Localize for ServiceState {
    fn localize(self: &Arc<Self>, key: &NamespacedName, here: &Place) -> Option<Arc<LocalService>> {
        localize(key, self, here).map(Arc::new)
    }

    fn vantages(&self) -> Vantages {
        Vantages::of(self)
    }
}

/// Worked out already, for one node.
impl Localize for LocalService {
    fn localize(self: &Arc<Self>, _: &NamespacedName, _: &Place) -> Option<Arc<Self>> {
        Some(Arc::clone(self))
    }

    fn vantages(&self) -> Vantages {
        Vantages::default()
    }
}

/// One node's view of a store, kept by updates: work is proportional to what changed, unless the
/// node itself changed its zone.
#[derive(Debug)]
pub struct LocalView<V = ServiceState> {
    node: Arc<str>,
    place: Place,
    states: BTreeMap<NamespacedName, Arc<V>>,
}

impl<V: Localize> LocalView<V> {
    /// The view of the node `node`, of an empty cluster.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        let node = node.into();
        Self { place: Place::of(&node, None), node, states: BTreeMap::new() }
    }

    /// Where the node is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Takes over what a reader said, and returns the services that may look different now, sorted;
    /// see [`get`](Self::get).
    pub fn update(&mut self, update: &Update<V>) -> BTreeSet<NamespacedName> {
        let mut affected: BTreeSet<_> =
            update.services.iter().map(|(key, _)| key.clone()).collect();
        if update.full {
            let gone: Vec<_> =
                self.states.keys().filter(|key| !affected.contains(key)).cloned().collect();
            for key in gone {
                self.states.remove(&key);
                affected.insert(key);
            }
        }
        for (key, change) in &update.services {
            match &change.new {
                Some(state) => self.states.insert(key.clone(), Arc::clone(state)),
                None => self.states.remove(key),
            };
        }
        let own = update.nodes.iter().find(|(name, _)| *name == self.node);
        let place = match own {
            Some((_, change)) => Place::of(&self.node, change.new.as_deref()),
            None if update.full => Place::of(&self.node, None),
            None => self.place.clone(),
        };
        if place != self.place {
            self.place = place;
            affected.extend(self.states.keys().cloned());
        }
        affected
    }

    /// The service as the node sees it now.
    pub fn get(&self, key: &NamespacedName) -> Option<Arc<LocalService>> {
        self.states.get(key)?.localize(key, &self.place)
    }

    /// All services that are known, with or without a Service object.
    pub fn keys(&self) -> impl Iterator<Item = &NamespacedName> {
        self.states.keys()
    }
}
