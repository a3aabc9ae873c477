//! Encodes each change once for each way in which somebody sees it, and shares the result.
//!
//! A change is known by its two values: watchers that are told of the same step of the same Service
//! have the very same `Arc`s in their hands. What nobody has asked for in a while is forgotten, and
//! encoded again when somebody does, so a cache is bounded and never wrong.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kpng_core::store::Change;

use super::stats::Stats;
use crate::wire::Ops;

/// A change that can be encoded.
pub(super) trait Encode {
    /// What the operations depend on beside the change.
    type View: Clone + Debug + Eq + Hash;

    /// The operations that tell of the change.
    fn encode(&self, view: &Self::View) -> Ops;
}

/// Something encoded for those who share a view.
#[derive(Debug)]
pub(super) struct Encoded<T: Encode> {
    /// What is encoded. It holds the values, so that their addresses mean them.
    pub(super) change: T,
    views: Mutex<HashMap<T::View, Arc<Ops>>>,
}

impl<T: Encode> Encoded<T> {
    /// The operations as `view` sees them.
    pub(super) fn ops(&self, view: &T::View, cache: &Cache<T>) -> Arc<Ops> {
        let mut views = lock(&self.views);
        if let Some(ops) = views.get(view) {
            return Arc::clone(ops);
        }
        let ops = Arc::new(self.change.encode(view));
        views.insert(view.clone(), Arc::clone(&ops));
        drop(views);
        cache.stats.encodings.add(1);
        cache.weigh(ops.len());
        ops
    }
}

/// The addresses of the old and the new value; 0 for none.
type Identity = (usize, usize);

fn identity<V>(change: &Change<V>) -> Identity {
    let address = |value: &Option<Arc<V>>| value.as_ref().map_or(0, |arc| Arc::as_ptr(arc).addr());
    (address(&change.old), address(&change.new))
}

/// Encoded changes.
#[derive(Debug)]
pub(super) struct Cache<T: Encode> {
    generations: Mutex<Generations<T>>,
    stats: Arc<Stats>,
}

/// What was used lately, and what was used before that.
#[derive(Debug)]
struct Generations<T: Encode> {
    young: HashMap<Identity, Arc<Encoded<T>>>,
    old: HashMap<Identity, Arc<Encoded<T>>>,
    /// Bytes that were encoded since the young generation began.
    weight: usize,
}

/// Bytes after which a new generation begins. A cache holds up to twice as much: the full state of a
/// cluster with tens of thousands of services, so that nodes that all come at once share it.
const GENERATION: usize = 32 << 20;

/// What an entry costs beside the bytes in it, roughly.
const OVERHEAD: usize = 400;

impl<T: Encode> Cache<T> {
    pub(super) fn new(stats: Arc<Stats>) -> Self {
        let generations = Generations { young: HashMap::new(), old: HashMap::new(), weight: 0 };
        Self { generations: Mutex::new(generations), stats }
    }

    /// The entry of a change; `make` makes what is encoded when there is none.
    pub(super) fn entry<V>(&self, change: &Change<V>, make: impl FnOnce() -> T) -> Arc<Encoded<T>> {
        let identity = identity(change);
        let mut generations = lock(&self.generations);
        if let Some(entry) = generations.young.get(&identity) {
            return Arc::clone(entry);
        }
        let entry = generations.old.remove(&identity).unwrap_or_else(|| {
            generations.weight += OVERHEAD;
            Arc::new(Encoded { change: make(), views: Mutex::default() })
        });
        generations.young.insert(identity, Arc::clone(&entry));
        entry
    }

    fn weigh(&self, bytes: usize) {
        let mut generations = lock(&self.generations);
        generations.weight += bytes;
        if generations.weight > GENERATION {
            generations.age();
        }
    }

    /// Forgets what was not used since the last call. To be called now and then.
    pub(super) fn age(&self) {
        lock(&self.generations).age();
    }
}

impl<T: Encode> Generations<T> {
    fn age(&mut self) {
        self.old = std::mem::take(&mut self.young);
        self.weight = 0;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way through a write, so a poisoned lock holds good data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
