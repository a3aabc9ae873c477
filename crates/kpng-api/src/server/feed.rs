//! What a stream is fed from: the state as one client sees it, a page at a time.

use std::sync::Arc;
use std::time::SystemTime;

use kpng_core::local::{Localize, Place, Vantage, Vantages};
use kpng_core::model::{NamespacedName, Node, ServiceState};
use kpng_core::store::{Change, Reader, Revision, Store, Update};

use super::cache::{Cache, Encode};
use super::page::Page;
use super::stats::Stats;
use crate::wire::{self, Ops};

/// How many services a reader is given at once, of those that it has not seen. A client that does not
/// read holds on to no more than these.
const PAGE: usize = 32;

/// Some of what a client shall be told.
pub(super) struct Portion {
    /// It starts from nothing.
    pub(super) full: bool,
    /// With this the client has all of the revision; otherwise more follows.
    pub(super) complete: bool,
    pub(super) revision: Revision,
    /// When the cluster made the earliest of the changes.
    pub(super) triggered: Option<SystemTime>,
    /// Encoded operations that come before the page.
    pub(super) head: bytes::Bytes,
    pub(super) page: Page,
}

/// The state as one client sees it.
pub(super) trait Feed: Send {
    /// Waits for news. `false` when none will come.
    fn ready(&mut self) -> impl Future<Output = bool> + Send;

    /// The next portion, if there is news.
    fn next(&mut self) -> Option<Portion>;

    /// Names the view: who has seen a revision of it can go on from there.
    fn name(&self) -> String;
}

/// A change of a Service, for those who see it from a node.
#[derive(Debug)]
pub(super) struct LocalChange<V> {
    key: NamespacedName,
    change: Change<V>,
    /// Of the old and the new value.
    vantages: [Vantages; 2],
}

impl<V: Localize> Encode for LocalChange<V> {
    type View = LocalPoint;

    fn encode(&self, point: &LocalPoint) -> Ops {
        let local = |value: &Option<Arc<V>>| {
            value.as_ref().and_then(|value| value.localize(&self.key, &point.place))
        };
        let (old, new) = (local(&self.change.old), local(&self.change.new));
        wire::local_ops(old.as_deref(), new.as_deref(), point.details)
    }
}

/// From where a change is seen. Two places are one point if the change looks the same from both.
#[derive(Clone, Debug)]
pub(super) struct LocalPoint {
    /// Of the old and the new value.
    vantages: [Vantage; 2],
    details: bool,
    /// One of the places.
    place: Place,
}

impl PartialEq for LocalPoint {
    fn eq(&self, other: &Self) -> bool {
        (&self.vantages, self.details) == (&other.vantages, other.details)
    }
}

impl Eq for LocalPoint {}

impl std::hash::Hash for LocalPoint {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.vantages, self.details).hash(state);
    }
}

/// What the streams of the local API share.
#[derive(Debug)]
pub(super) struct LocalViews<V: Localize> {
    pub(super) store: Store<V>,
    pub(super) cache: Cache<LocalChange<V>>,
}

/// The services as seen from a node, and the node.
pub(super) struct LocalFeed<V: Localize> {
    views: Arc<LocalViews<V>>,
    reader: Reader<V>,
    /// From where the client sees what it has.
    place: Place,
    /// From where it shall see it, if that is another place.
    next_place: Option<Place>,
    details: bool,
    /// The client has services.
    begun: bool,
}

const LOCAL_DELETIONS: [bool; Ops::GROUPS] = [false, true, false, true, false, true];
const GLOBAL_DELETIONS: [bool; Ops::GROUPS] = [false, false, false, true, true, true];

impl<V: Localize> LocalFeed<V> {
    /// What `node` sees, from the beginning or after the revision `seen`.
    pub(super) fn new(
        views: &Arc<LocalViews<V>>,
        node: Arc<str>,
        details: bool,
        seen: Option<Revision>,
    ) -> Self {
        let (reader, place) = match seen {
            Some(seen) => {
                let reader = views.store.reader_at(seen);
                (reader, Place::of(&node, views.store.node(&node).as_deref()))
            }
            None => (views.store.reader(), Place::of(&node, None)),
        };
        let (views, begun) = (Arc::clone(views), seen.is_some());
        Self { views, reader, place, next_place: None, details, begun }
    }

    /// Takes note of the own Node: with another zone all services may look different.
    fn follow_node(&mut self, update: &Update<V>) {
        if update.full {
            (self.begun, self.next_place) = (false, None);
            self.place.zone = None;
        }
        let Some(change) = own_node(update, &self.place.node) else { return };
        let place = |node: &Option<Arc<Node>>| Place::of(&self.place.node, node.as_deref());
        let (old, new) = (place(&change.old), place(&change.new));
        if !self.begun {
            self.place = new;
            return;
        }
        if self.next_place.is_none() {
            self.place = old;
        }
        self.next_place = (new != self.place).then_some(new);
    }

    /// Looks at everything from the next place. `None` if there are news to be told first.
    ///
    /// This is rare (a node is labelled with its zone while it is watched), so it is not shared.
    fn change_place(&mut self) -> Option<Portion> {
        let all = self.views.store.reader().try_next()?;
        if Some(all.revision) != self.reader.revision() {
            return None;
        }
        let new_place = self.next_place.take()?;
        let old_place = std::mem::replace(&mut self.place, new_place);
        let ops = all.services.iter().filter_map(|(key, change)| {
            let value = change.new.as_ref()?;
            let vantages = value.vantages();
            if vantages.from(&old_place) == vantages.from(&self.place) {
                return None;
            }
            let [old, new] = [&old_place, &self.place].map(|place| value.localize(key, place));
            Some(Arc::new(wire::local_ops(old.as_deref(), new.as_deref(), self.details)))
        });
        let page = Page::new(ops.collect(), LOCAL_DELETIONS);
        Some(Portion {
            full: false,
            complete: true,
            revision: all.revision,
            triggered: None,
            head: bytes::Bytes::new(),
            page,
        })
    }

    fn node_op(&self, update: &Update<V>) -> bytes::Bytes {
        match own_node(update, &self.place.node) {
            Some(change) if self.details => {
                wire::local_node_op(&self.place.node, change.new.as_deref())
            }
            _ => bytes::Bytes::new(),
        }
    }

    fn ops(&self, key: &NamespacedName, change: &Change<V>) -> Arc<Ops> {
        let cache = &self.views.cache;
        let entry = cache.entry(change, || LocalChange {
            key: key.clone(),
            vantages: [&change.old, &change.new]
                .map(|value| value.as_ref().map(|value| value.vantages()).unwrap_or_default()),
            change: change.clone(),
        });
        let vantages = entry.change.vantages.each_ref().map(|all| all.from(&self.place));
        let point = LocalPoint { vantages, details: self.details, place: self.place.clone() };
        entry.ops(&point, cache)
    }
}

fn own_node<'a, V>(update: &'a Update<V>, node: &Arc<str>) -> Option<&'a Change<Node>> {
    update.nodes.iter().find(|(name, _)| name == node).map(|(_, change)| change)
}

impl<V: Localize> Feed for LocalFeed<V> {
    async fn ready(&mut self) -> bool {
        self.reader.ready().await
    }

    fn next(&mut self) -> Option<Portion> {
        let update = loop {
            if let Some(update) = self.reader.try_next_page(PAGE) {
                break update;
            }
            self.next_place.as_ref()?;
            if let Some(portion) = self.change_place() {
                return Some(portion);
            }
        };
        self.follow_node(&update);
        let head = self.node_op(&update);
        let ops: Vec<_> =
            update.services.iter().map(|(key, change)| self.ops(key, change)).collect();
        self.begun |= !ops.is_empty() || update.complete;
        Some(Portion {
            full: update.full,
            complete: update.complete && self.next_place.is_none(),
            revision: update.revision,
            triggered: update.triggered,
            head,
            page: Page::new(ops, LOCAL_DELETIONS),
        })
    }

    fn name(&self) -> String {
        format!("local/{}/{}", self.place.node, self.details)
    }
}

/// A change of a Service, as it is.
#[derive(Debug)]
pub(super) struct GlobalChange {
    key: NamespacedName,
    change: Change<ServiceState>,
}

impl Encode for GlobalChange {
    /// With details.
    type View = bool;

    fn encode(&self, details: &bool) -> Ops {
        let Change { old, new } = &self.change;
        wire::global_ops(&self.key, old.as_deref(), new.as_deref(), *details)
    }
}

/// A change of a Node, as it is.
#[derive(Debug)]
pub(super) struct NodeChange {
    name: Arc<str>,
    change: Change<Node>,
}

impl Encode for NodeChange {
    /// With details.
    type View = bool;

    fn encode(&self, details: &bool) -> Ops {
        let Change { old, new } = &self.change;
        wire::global_node_ops(&self.name, old.as_deref(), new.as_deref(), *details)
    }
}

/// What the streams of the global API share.
#[derive(Debug)]
pub(super) struct GlobalViews {
    pub(super) store: Store,
    pub(super) services: Cache<GlobalChange>,
    pub(super) nodes: Cache<NodeChange>,
}

impl GlobalViews {
    pub(super) fn new(store: Store, stats: &Arc<Stats>) -> Self {
        let (services, nodes) = (Cache::new(Arc::clone(stats)), Cache::new(Arc::clone(stats)));
        Self { store, services, nodes }
    }
}

/// All services and nodes.
pub(super) struct GlobalFeed {
    views: Arc<GlobalViews>,
    reader: Reader,
    details: bool,
}

impl GlobalFeed {
    /// Everything, from the beginning or after the revision `seen`.
    pub(super) fn new(views: &Arc<GlobalViews>, details: bool, seen: Option<Revision>) -> Self {
        let reader = match seen {
            Some(seen) => views.store.reader_at(seen),
            None => views.store.reader(),
        };
        Self { views: Arc::clone(views), reader, details }
    }
}

impl Feed for GlobalFeed {
    async fn ready(&mut self) -> bool {
        self.reader.ready().await
    }

    fn next(&mut self) -> Option<Portion> {
        let update = self.reader.try_next_page(PAGE)?;
        let GlobalViews { services, nodes, .. } = &*self.views;
        let node = |(name, change): &(Arc<str>, Change<Node>)| {
            let make = || NodeChange { name: Arc::clone(name), change: change.clone() };
            nodes.entry(change, make).ops(&self.details, nodes)
        };
        let service = |(key, change): &(NamespacedName, Change<ServiceState>)| {
            let make = || GlobalChange { key: key.clone(), change: change.clone() };
            services.entry(change, make).ops(&self.details, services)
        };
        let ops = update.nodes.iter().map(node).chain(update.services.iter().map(service));
        Some(Portion {
            full: update.full,
            complete: update.complete,
            revision: update.revision,
            triggered: update.triggered,
            head: bytes::Bytes::new(),
            page: Page::new(ops.collect(), GLOBAL_DELETIONS),
        })
    }

    fn name(&self) -> String {
        format!("global/{}", self.details)
    }
}
