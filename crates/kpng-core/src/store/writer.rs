//! Writing what the cluster says: Services, slices and Nodes arrive one by one, and are put together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::history::Transaction;
use super::{Applied, Kind, Store};
use crate::model::{EndpointSlice, NamespacedName, Node, Service, ServiceState};

/// A set of writes that readers see at once. Built without holding any lock.
#[derive(Debug, Default)]
pub struct Batch {
    ops: Vec<Op>,
    triggered: Option<SystemTime>,
}

#[derive(Debug)]
enum Op {
    Service(NamespacedName, Option<Arc<Service>>),
    Slice { slice: NamespacedName, owner: Option<Arc<str>>, value: Option<Arc<EndpointSlice>> },
    Node(Arc<str>, Option<Arc<Node>>),
    RetainServices(HashSet<NamespacedName>),
    RetainSlices(HashSet<NamespacedName>),
    RetainNodes(HashSet<Arc<str>>),
    Synced(Kind),
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing was put into it.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Creates or replaces a Service.
    pub fn set_service(&mut self, key: NamespacedName, service: Service) {
        self.ops.push(Op::Service(key, Some(Arc::new(service))));
    }

    /// Deletes a Service. Deleting what does not exist is not a change.
    pub fn delete_service(&mut self, key: NamespacedName) {
        self.ops.push(Op::Service(key, None));
    }

    /// Creates or replaces the slice `slice`, which belongs to the Service `service` of the same
    /// namespace. A slice that changes its Service is taken from the old one.
    pub fn set_slice(
        &mut self,
        slice: NamespacedName,
        service: impl Into<Arc<str>>,
        value: EndpointSlice,
    ) {
        let (owner, value) = (Some(service.into()), Some(Arc::new(value)));
        self.ops.push(Op::Slice { slice, owner, value });
    }

    /// Deletes a slice.
    pub fn delete_slice(&mut self, slice: NamespacedName) {
        self.ops.push(Op::Slice { slice, owner: None, value: None });
    }

    /// Creates or replaces a Node.
    pub fn set_node(&mut self, name: impl Into<Arc<str>>, node: Node) {
        self.ops.push(Op::Node(name.into(), Some(Arc::new(node))));
    }

    /// Deletes a Node.
    pub fn delete_node(&mut self, name: impl Into<Arc<str>>) {
        self.ops.push(Op::Node(name.into(), None));
    }

    /// Deletes every Service that is not in `keys`: the end of a list.
    pub fn retain_services(&mut self, keys: HashSet<NamespacedName>) {
        self.ops.push(Op::RetainServices(keys));
    }

    /// Deletes every slice that is not in `keys`: the end of a list.
    pub fn retain_slices(&mut self, keys: HashSet<NamespacedName>) {
        self.ops.push(Op::RetainSlices(keys));
    }

    /// Deletes every Node that is not in `names`: the end of a list.
    pub fn retain_nodes(&mut self, names: HashSet<Arc<str>>) {
        self.ops.push(Op::RetainNodes(names));
    }

    /// All objects of this kind have been listed once. Readers see nothing until all kinds are.
    pub fn mark_synced(&mut self, kind: Kind) {
        self.ops.push(Op::Synced(kind));
    }

    /// When the cluster made the change that this batch carries (the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`); the earliest one counts.
    pub fn triggered_at(&mut self, time: SystemTime) {
        self.triggered = Some(self.triggered.map_or(time, |earlier| earlier.min(time)));
    }
}

/// The writing side of a store of what the cluster says. There is one per store.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    /// Which Service each slice belongs to.
    owners: HashMap<NamespacedName, Arc<str>>,
}

impl Writer {
    pub(super) fn new(store: Store) -> Self {
        Self { store, owners: HashMap::new() }
    }

    /// Applies all of `batch` as one revision. A batch that changes nothing makes none.
    pub fn apply(&mut self, batch: Batch) -> Applied {
        let owners = &mut self.owners;
        self.store.0.transact(batch.triggered, |tx| {
            for op in batch.ops {
                apply(tx, owners, op);
            }
        })
    }

    /// A handle for readers.
    pub fn store(&self) -> Store {
        self.store.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.store.0.close();
    }
}

type Owners = HashMap<NamespacedName, Arc<str>>;

fn apply(tx: &mut Transaction<'_, ServiceState>, owners: &mut Owners, op: Op) {
    match op {
        Op::Service(key, service) => change_service(tx, key, |state| state.service = service),
        Op::Slice { slice, owner, value } => change_slice(tx, owners, slice, owner, value),
        Op::Node(name, node) => tx.put_node(name, node),
        Op::RetainServices(keys) => {
            let gone = |(key, state): (&NamespacedName, &Arc<ServiceState>)| {
                (state.service.is_some() && !keys.contains(key)).then(|| key.clone())
            };
            let gone: Vec<_> = tx.services().filter_map(gone).collect();
            for key in gone {
                change_service(tx, key, |state| state.service = None);
            }
        }
        Op::RetainSlices(keys) => {
            let mut gone: Vec<_> =
                owners.keys().filter(|key| !keys.contains(key)).cloned().collect();
            gone.sort_unstable();
            for slice in gone {
                change_slice(tx, owners, slice, None, None);
            }
        }
        Op::RetainNodes(names) => tx.retain_nodes(&names),
        Op::Synced(kind) => tx.mark_synced(kind),
    }
}

fn change_slice(
    tx: &mut Transaction<'_, ServiceState>,
    owners: &mut Owners,
    slice: NamespacedName,
    owner: Option<Arc<str>>,
    value: Option<Arc<EndpointSlice>>,
) {
    let previous = match &owner {
        Some(owner) => owners.insert(slice.clone(), Arc::clone(owner)),
        None => owners.remove(&slice),
    };
    let key = |name| NamespacedName { namespace: Arc::clone(&slice.namespace), name };
    if let Some(previous) = previous
        && owner.as_ref() != Some(&previous)
    {
        change_service(tx, key(previous), |state| put_slice(state, &slice.name, None));
    }
    if let Some(owner) = owner {
        change_service(tx, key(owner), |state| put_slice(state, &slice.name, value));
    }
}

fn change_service(
    tx: &mut Transaction<'_, ServiceState>,
    key: NamespacedName,
    change: impl FnOnce(&mut ServiceState),
) {
    let mut state = tx.service(&key).map(|state| ServiceState::clone(state)).unwrap_or_default();
    change(&mut state);
    let new = (!state.is_empty()).then(|| Arc::new(state));
    tx.put_service(key, new);
}

fn put_slice(state: &mut ServiceState, name: &Arc<str>, value: Option<Arc<EndpointSlice>>) {
    let found = state.slices.binary_search_by(|(other, _)| other.cmp(name));
    match (found, value) {
        (Ok(at), Some(value)) => state.slices[at].1 = value,
        (Ok(at), None) => drop(state.slices.remove(at)),
        (Err(at), Some(value)) => state.slices.insert(at, (Arc::clone(name), value)),
        (Err(_), None) => {}
    }
}
