//! The store: one writer, many readers, a bounded journal between them.
//!
//! A reader's whole state is one revision number. It asks for what changed since then and gets each
//! key at most once, whatever happened in between; when it fell behind the journal it gets the full
//! state. So a slow reader costs nothing, and memory is bounded.

mod reader;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

pub use reader::{Reader, Update};

use crate::model::{EndpointSlice, NamespacedName, Node, Service, ServiceState};

/// A point in the history of one store. Revision 0 is the empty store before anything was written.
pub type Revision = u64;

/// The kinds of objects that a source lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Nodes.
    Nodes,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Services, Self::EndpointSlices, Self::Nodes];
}

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

/// What [`Writer::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision afterwards.
    pub revision: Revision,
    /// How many keys really changed. With 0 there is no new revision.
    pub changed: usize,
}

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Service(NamespacedName),
    Node(Arc<str>),
}

/// Old and new value of a key.
#[derive(Clone, Debug)]
enum Values {
    Service(Change<ServiceState>),
    Node(Change<Node>),
}

/// A value before and after.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// The value that the reader saw last; `None` when there was none, or in a full state.
    pub old: Option<Arc<T>>,
    /// The value now; `None` when it is gone.
    pub new: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self { old: self.old.clone(), new: self.new.clone() }
    }
}

#[derive(Debug)]
struct Entry {
    revision: Revision,
    key: Key,
    values: Values,
    triggered: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: Revision,
    services: BTreeMap<NamespacedName, Arc<ServiceState>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    owners: HashMap<NamespacedName, Arc<str>>,
    synced: HashSet<Kind>,
    journal: VecDeque<Entry>,
    journal_capacity: usize,
    /// The newest revision that is not, or not wholly, in the journal.
    forgotten: Revision,
}

impl Inner {
    fn is_synced(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.synced.contains(kind))
    }
}

/// What readers wait on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    revision: Revision,
    synced: bool,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    progress: watch::Sender<Progress>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a write, so a poisoned lock holds good data.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading side: makes readers and looks up single values.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

/// The writing side. There is one per store.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// How many changes the journal of [`Store::new`] holds: at 50 changes a second a reader may sleep
/// for 80 seconds before it is given the full state.
pub const JOURNAL_CAPACITY: usize = 4096;

impl Store {
    /// An empty store with the default journal.
    pub fn new() -> (Writer, Self) {
        Self::with_journal(JOURNAL_CAPACITY)
    }

    /// An empty store whose journal holds `capacity` changes.
    pub fn with_journal(capacity: usize) -> (Writer, Self) {
        let inner = Inner { journal_capacity: capacity, ..Inner::default() };
        let progress = watch::Sender::new(Progress { revision: 0, synced: false, closed: false });
        let shared = Arc::new(Shared { inner: Mutex::new(inner), progress });
        (Writer(Arc::clone(&shared)), Self(shared))
    }

    /// A reader that starts from the full state.
    pub fn reader(&self) -> Reader {
        Reader::new(self.clone())
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.0.progress.borrow().revision
    }

    /// All kinds have been listed.
    pub fn is_synced(&self) -> bool {
        self.0.progress.borrow().synced
    }

    /// The writer is gone: nothing will change any more.
    pub fn is_closed(&self) -> bool {
        self.0.progress.borrow().closed
    }

    /// The current value of one Service.
    pub fn service(&self, key: &NamespacedName) -> Option<Arc<ServiceState>> {
        self.0.lock().services.get(key).cloned()
    }

    /// The current value of one Node.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.0.lock().nodes.get(name).cloned()
    }

    /// How many Services (or orphaned slices' owners) and Nodes are known.
    pub fn len(&self) -> (usize, usize) {
        let inner = self.0.lock();
        (inner.services.len(), inner.nodes.len())
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }
}

impl Writer {
    /// Applies all of `batch` as one revision. A batch that changes nothing makes none.
    pub fn apply(&mut self, batch: Batch) -> Applied {
        let (progress, changed) = {
            let mut inner = self.0.lock();
            let next = inner.revision + 1;
            let mut tx =
                Transaction { inner: &mut inner, next, triggered: batch.triggered, changed: 0 };
            for op in batch.ops {
                tx.apply(op);
            }
            let changed = tx.changed;
            if changed > 0 {
                inner.revision = next;
            }
            inner.trim_journal();
            let (revision, synced) = (inner.revision, inner.is_synced());
            (Progress { revision, synced, closed: false }, changed)
        };
        self.0.progress.send_if_modified(|p| std::mem::replace(p, progress) != progress);
        Applied { revision: progress.revision, changed }
    }

    /// A handle for readers.
    pub fn store(&self) -> Store {
        Store(Arc::clone(&self.0))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.progress.send_modify(|progress| progress.closed = true);
    }
}

impl Inner {
    fn trim_journal(&mut self) {
        while self.journal.len() > self.journal_capacity {
            if let Some(oldest) = self.journal.pop_front() {
                self.forgotten = oldest.revision;
            }
        }
    }

    fn snapshot(&self) -> Update {
        let service = |(key, state): (&NamespacedName, &Arc<ServiceState>)| {
            (key.clone(), Change { old: None, new: Some(Arc::clone(state)) })
        };
        let node = |(name, node): (&Arc<str>, &Arc<Node>)| {
            (Arc::clone(name), Change { old: None, new: Some(Arc::clone(node)) })
        };
        Update {
            revision: self.revision,
            full: true,
            services: self.services.iter().map(service).collect(),
            nodes: self.nodes.iter().map(node).collect(),
            triggered: None,
        }
    }

    fn since(&self, seen: Revision) -> Option<Update> {
        if seen < self.forgotten {
            return None;
        }
        let start = self.journal.partition_point(|entry| entry.revision <= seen);
        let mut update = Update::empty(self.revision);
        let mut services = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for entry in self.journal.range(start..) {
            match (&entry.key, &entry.values) {
                (Key::Service(key), Values::Service(change)) => {
                    coalesce(&mut services, key, change)
                }
                (Key::Node(name), Values::Node(change)) => coalesce(&mut nodes, name, change),
                _ => unreachable!("a key and its values have the same kind"),
            }
            let earliest = |t: SystemTime| update.triggered.map_or(t, |earlier| earlier.min(t));
            update.triggered = entry.triggered.map(earliest).or(update.triggered);
        }
        update.services = services.into_iter().filter(|(_, c)| c.old != c.new).collect();
        update.nodes = nodes.into_iter().filter(|(_, c)| c.old != c.new).collect();
        Some(update)
    }
}

fn coalesce<K: Ord + Clone, T>(into: &mut BTreeMap<K, Change<T>>, key: &K, change: &Change<T>) {
    match into.get_mut(key) {
        Some(earlier) => earlier.new = change.new.clone(),
        None => {
            into.insert(key.clone(), change.clone());
        }
    }
}

struct Transaction<'a> {
    inner: &'a mut Inner,
    next: Revision,
    triggered: Option<SystemTime>,
    changed: usize,
}

impl Transaction<'_> {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Service(key, service) => self.change_service(key, |state| state.service = service),
            Op::Slice { slice, owner, value } => self.change_slice(slice, owner, value),
            Op::Node(name, node) => self.change_node(name, node),
            Op::RetainServices(keys) => {
                let gone = |(key, state): (&NamespacedName, &Arc<ServiceState>)| {
                    (state.service.is_some() && !keys.contains(key)).then(|| key.clone())
                };
                let gone: Vec<_> = self.inner.services.iter().filter_map(gone).collect();
                for key in gone {
                    self.change_service(key, |state| state.service = None);
                }
            }
            Op::RetainSlices(keys) => {
                let mut gone: Vec<_> =
                    self.inner.owners.keys().filter(|key| !keys.contains(key)).cloned().collect();
                gone.sort_unstable();
                for slice in gone {
                    self.change_slice(slice, None, None);
                }
            }
            Op::RetainNodes(names) => {
                let gone: Vec<_> = self
                    .inner
                    .nodes
                    .keys()
                    .filter(|name| !names.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.change_node(name, None);
                }
            }
            Op::Synced(kind) => {
                self.inner.synced.insert(kind);
            }
        }
    }

    fn change_slice(
        &mut self,
        slice: NamespacedName,
        owner: Option<Arc<str>>,
        value: Option<Arc<EndpointSlice>>,
    ) {
        let previous = match &owner {
            Some(owner) => self.inner.owners.insert(slice.clone(), Arc::clone(owner)),
            None => self.inner.owners.remove(&slice),
        };
        let key = |name| NamespacedName { namespace: Arc::clone(&slice.namespace), name };
        if let Some(previous) = previous
            && owner.as_ref() != Some(&previous)
        {
            self.change_service(key(previous), |state| put_slice(state, &slice.name, None));
        }
        if let Some(owner) = owner {
            self.change_service(key(owner), |state| put_slice(state, &slice.name, value));
        }
    }

    fn change_service(&mut self, key: NamespacedName, change: impl FnOnce(&mut ServiceState)) {
        let old = self.inner.services.get(&key).cloned();
        let mut state = old.as_deref().cloned().unwrap_or_default();
        change(&mut state);
        let new = (!state.is_empty()).then(|| Arc::new(state));
        if old == new {
            return;
        }
        match &new {
            Some(state) => self.inner.services.insert(key.clone(), Arc::clone(state)),
            None => self.inner.services.remove(&key),
        };
        self.record(Key::Service(key), Values::Service(Change { old, new }));
    }

    fn change_node(&mut self, name: Arc<str>, new: Option<Arc<Node>>) {
        let old = match &new {
            Some(node) => self.inner.nodes.insert(Arc::clone(&name), Arc::clone(node)),
            None => self.inner.nodes.remove(&name),
        };
        if old != new {
            self.record(Key::Node(name), Values::Node(Change { old, new }));
        }
    }

    fn record(&mut self, key: Key, values: Values) {
        self.changed += 1;
        let (revision, triggered) = (self.next, self.triggered);
        if !self.inner.is_synced() {
            // Nobody reads yet, and who comes gets the full state.
            self.inner.forgotten = revision;
            return;
        }
        self.inner.journal.push_back(Entry { revision, key, values, triggered });
        self.inner.trim_journal();
    }
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
