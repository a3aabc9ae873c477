//! What one table holds, as far as we wrote it, and the changes that make it hold something else.
//!
//! Nothing here talks to the kernel. After a start, what the kernel holds is "unclaimed": what is
//! wanted and there is claimed without being written, the rest is removed at the end.

mod audit;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{NodeFacts, ServicePlan, Target};
use kpng_linux::nft::{Batch, Bytes, Chain, Element, Rule, SetDef, Table, TableFamily, Value};

use crate::class::{Class, Numbers, Place, list_of};
use crate::names::{self, Set};
use crate::render::{self, ServiceObjects, Skeleton, shared_element};

/// How long a class that nothing uses is kept. A rule with a map makes the kernel walk all elements
/// of the map when it is added (`nf_tables_bind_set`), so a class is dear to make and cheap to keep:
/// pools grow and shrink by steps.
const IDLE_CLASS_GRACE: Duration = Duration::from_secs(300);

/// How many classes that nothing uses are kept at most.
const IDLE_CLASSES: usize = 64;

/// A service as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) plan: std::sync::Arc<ServicePlan>,
    /// The endpoints of each pool by number; `None` when they are as in the plan.
    order: Option<Vec<Vec<Target>>>,
}

impl Written {
    /// The plan with these numbers.
    pub(crate) fn new(plan: std::sync::Arc<ServicePlan>, order: Vec<Vec<Target>>) -> Self {
        let as_planned = plan.pools.iter().zip(&order).all(|(pool, order)| pool.targets == *order);
        Self { plan, order: (!as_planned).then_some(order) }
    }

    /// The endpoints of each pool by number.
    pub(crate) fn order(&self) -> Vec<Vec<Target>> {
        match &self.order {
            Some(order) => order.clone(),
            None => self.plan.pools.iter().map(|pool| pool.targets.clone()).collect(),
        }
    }

    pub(crate) fn objects(
        &self,
        key: &NamespacedName,
        family: Family,
        counting: bool,
    ) -> ServiceObjects {
        render::service(key, &self.plan, &self.order(), family, counting)
    }
}

/// One table.
#[derive(Debug)]
pub(crate) struct TableState {
    family: Family,
    table: Table,
    mark: u32,
    /// Connections are counted.
    counting: bool,
    defs: HashMap<Set, SetDef>,
    /// How many services need an address in a shared set.
    shared: HashMap<(Set, IpAddr), u32>,
    /// How many services use a class; 0 for those that are idle.
    classes: HashMap<Class, u32>,
    /// The classes that nothing uses, and since when; the oldest first.
    idle: VecDeque<(Instant, Class)>,
    chains: HashMap<String, ChainState>,
    /// The numbers of the classes.
    numbers: Numbers,
    skeleton: Skeleton,
    unclaimed: Unclaimed,
    pending: Pending,
}

#[derive(Debug)]
struct ChainState {
    fingerprints: Vec<u64>,
    users: u32,
}

/// What was found in the kernel and is not known to be wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unclaimed {
    pub(crate) elements: HashMap<(Set, Bytes), Element>,
    pub(crate) chains: BTreeMap<String, Vec<u64>>,
}

impl Unclaimed {
    /// Whether connections to the frontends that are there are counted; `None` without any.
    pub(crate) fn counts(&self) -> Option<bool> {
        let has_one_of = |sets: &[Set]| self.elements.keys().any(|(set, _)| sets.contains(set));
        if has_one_of(&[Set::ForwardedServices, Set::ForwardedNodePorts]) {
            return Some(true);
        }
        let frontends = [
            Set::ServiceIps,
            Set::ServiceNodePorts,
            Set::RejectedServices,
            Set::RejectedNodePorts,
            Set::DroppedServices,
            Set::DroppedNodePorts,
        ];
        has_one_of(&frontends).then_some(false)
    }
}

/// Elements to be written.
#[derive(Debug, Default)]
struct Pending {
    delete: BTreeMap<Set, Vec<Element>>,
    add: BTreeMap<Set, Vec<Element>>,
    count: usize,
}

impl TableState {
    /// A table of which nothing is written.
    pub(crate) fn new(family: Family, mark: u32, counting: bool, unclaimed: Unclaimed) -> Self {
        let routes = unclaimed.elements.iter().filter(|((set, _), _)| *set == Set::Routes);
        let routes = routes.map(|(_, element)| element);
        Self {
            family,
            table: names::table(family),
            mark,
            counting,
            defs: Set::ALL.into_iter().map(|set| (set, set.def())).collect(),
            shared: HashMap::new(),
            classes: HashMap::new(),
            idle: VecDeque::new(),
            chains: HashMap::new(),
            numbers: Numbers::found(routes),
            skeleton: Skeleton::default(),
            unclaimed,
            pending: Pending::default(),
        }
    }

    /// How many elements wait to be written.
    pub(crate) fn pending(&self) -> usize {
        self.pending.count
    }

    /// Makes the constant part what it shall be.
    pub(crate) fn write_skeleton(&mut self, batch: &mut Batch, new: Skeleton, facts: &NodeFacts) {
        for (chain, _) in &new.chains {
            let name = &chain.name;
            if !self.chains.contains_key(name) && !self.unclaimed.chains.contains_key(name) {
                batch.add_chain(&self.table, chain);
                self.chains.insert(name.clone(), ChainState { fingerprints: vec![], users: 1 });
            }
        }
        for (chain, rules) in &new.chains {
            self.write_chain(batch, &chain.name, rules);
        }
        let elements = new.elements.clone();
        let old = std::mem::replace(&mut self.skeleton, new);
        self.replace_elements(old.elements, elements);
        let classes: Vec<_> = self.classes.keys().cloned().collect();
        for class in classes {
            for (name, rules) in class.chains(self.family, facts, self.mark) {
                self.write_chain(batch, &name, &rules);
            }
        }
    }

    /// Makes the objects of one service what they shall be.
    pub(crate) fn write_service(
        &mut self,
        batch: &mut Batch,
        key: &NamespacedName,
        old: Option<&Written>,
        new: Option<&Written>,
        facts: &NodeFacts,
        stale: &mut Vec<String>,
    ) {
        let objects = |written: &Written| written.objects(key, self.family, self.counting);
        let mut old = old.map(objects).unwrap_or_default();
        let mut new = new.map(objects).unwrap_or_default();
        for (name, rules) in &new.chains {
            self.write_chain(batch, name, rules);
        }
        for class in new.classes().difference(&old.classes()) {
            self.acquire_class(batch, class, facts);
        }
        let before = old.take_elements(&self.numbers);
        let after = new.take_elements(&self.numbers);
        self.replace_elements(before, after);
        for (set, address) in new.shared.difference(&old.shared) {
            let users = self.shared.entry((*set, *address)).or_insert(0);
            *users += 1;
            if *users == 1 {
                self.add(*set, shared_element(*set, *address));
            }
        }
        for (set, address) in old.shared.difference(&new.shared) {
            self.release_shared(*set, *address);
        }
        for class in old.classes().difference(&new.classes()) {
            self.release_class(class);
        }
        for (name, _) in &old.chains {
            if new.chains.iter().all(|(other, _)| other != name) {
                self.retire_classes_through(name, batch, facts, stale);
                self.retire_chain(batch, name, stale);
            }
        }
    }

    /// Puts the waiting elements into the batch.
    pub(crate) fn flush(&mut self, batch: &mut Batch) {
        let pending = std::mem::take(&mut self.pending);
        for (set, elements) in &pending.delete {
            batch.delete_elements(&self.table, &self.defs[set], elements);
        }
        for (set, elements) in &pending.add {
            batch.add_elements(&self.table, &self.defs[set], elements);
        }
    }

    /// Removes what was found in the kernel and never claimed.
    pub(crate) fn remove_unclaimed(&mut self, batch: &mut Batch, stale: &mut Vec<String>) {
        self.numbers.forget_found();
        let unclaimed = std::mem::take(&mut self.unclaimed);
        let mut elements: Vec<_> = unclaimed.elements.into_iter().collect();
        elements.sort_unstable_by_key(|(key, _)| *key);
        for ((set, _), element) in elements {
            self.pending.delete.entry(set).or_default().push(element);
            self.pending.count += 1;
        }
        for name in unclaimed.chains.into_keys() {
            batch.flush_chain(&self.table, &name);
            stale.push(name);
        }
    }

    /// The elements to be deleted and those to be added then, which do not wait any more.
    #[cfg(test)]
    pub(crate) fn take_pending(&mut self) -> [Vec<(Set, Element)>; 2] {
        let Pending { delete, add, .. } = std::mem::take(&mut self.pending);
        [delete, add].map(|sets| {
            let of =
                |(set, elements): (Set, Vec<Element>)| elements.into_iter().map(move |e| (set, e));
            sets.into_iter().flat_map(of).collect()
        })
    }

    /// The chains in use and the fingerprints of their rules.
    #[cfg(test)]
    pub(crate) fn chains(&self) -> BTreeMap<String, Vec<u64>> {
        self.chains.iter().map(|(name, c)| (name.clone(), c.fingerprints.clone())).collect()
    }

    /// Whether a chain with this name is in use.
    pub(crate) fn uses_chain(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }

    /// The numbers that the kernel's elements give to the endpoints of a service's pools.
    pub(crate) fn found_order(&self, plan: &ServicePlan, order: &mut [Vec<Target>]) {
        let unclaimed = &self.unclaimed.elements;
        if unclaimed.is_empty() {
            return;
        }
        for frontend in plan.frontends.iter().filter(|f| f.at.family() == self.family) {
            let key = render::frontend_key(frontend);
            for action in frontend.route.actions() {
                let kpng_core::plan::Action::Forward { pool, .. } = action else { continue };
                let order = &mut order[usize::from(pool.0)];
                if order.is_empty() {
                    let set = list_of(&frontend.route, action).set(Place::of(frontend.at));
                    let found = (0..).map_while(|n| unclaimed.get(&(set, key.number(n))));
                    order.extend(found.filter_map(target));
                }
            }
        }
    }

    fn replace_elements(&mut self, old: Vec<(Set, Element)>, new: Vec<(Set, Element)>) {
        let mut old = old.into_iter().peekable();
        let mut new = new.into_iter().peekable();
        loop {
            let key = |(set, element): &(Set, Element)| (*set, element.key);
            let order = match (old.peek().map(key), new.peek().map(key)) {
                (None, None) => return,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(&new),
            };
            let old_one = if order.is_le() { old.next() } else { None };
            let new_one = if order.is_ge() { new.next() } else { None };
            if old_one == new_one {
                continue;
            }
            if let Some((set, element)) = old_one {
                self.delete(set, element);
            }
            if let Some((set, element)) = new_one {
                self.add(set, element);
            }
        }
    }

    fn add(&mut self, set: Set, element: Element) {
        match self.unclaimed.elements.remove(&(set, element.key)) {
            Some(found) if found == element => return,
            Some(found) => self.delete(set, found),
            None => {}
        }
        self.pending.add.entry(set).or_default().push(element);
        self.pending.count += 1;
    }

    fn delete(&mut self, set: Set, element: Element) {
        self.pending.delete.entry(set).or_default().push(element);
        self.pending.count += 1;
    }

    fn release_shared(&mut self, set: Set, address: IpAddr) {
        if let Some(users) = self.shared.get_mut(&(set, address)) {
            *users -= 1;
            if *users == 0 {
                self.shared.remove(&(set, address));
                self.delete(set, shared_element(set, address));
            }
        }
    }

    fn acquire_class(&mut self, batch: &mut Batch, class: &Class, facts: &NodeFacts) {
        if let Some(users) = self.classes.get_mut(class) {
            *users += 1;
            if *users == 1 {
                self.idle.retain(|(_, idle)| idle != class);
            }
            return;
        }
        self.classes.insert(class.clone(), 1);
        for (name, rules) in class.chains(self.family, facts, self.mark) {
            self.write_chain(batch, &name, &rules);
            self.chains.entry(name).and_modify(|chain| chain.users += 1);
        }
        let number = self.numbers.assign(class);
        self.add(Set::Routes, class.route(number));
    }

    fn release_class(&mut self, class: &Class) {
        let Some(users) = self.classes.get_mut(class) else { return };
        *users -= 1;
        if *users == 0 {
            self.idle.push_back((Instant::now(), class.clone()));
        }
    }

    /// Removes the classes that nothing has used for long.
    pub(crate) fn retire_idle_classes(
        &mut self,
        now: Instant,
        batch: &mut Batch,
        facts: &NodeFacts,
        stale: &mut Vec<String>,
    ) {
        let is_due = |idle: &VecDeque<(Instant, Class)>| {
            let oldest = idle.front();
            idle.len() > IDLE_CLASSES
                || oldest.is_some_and(|(since, _)| now.duration_since(*since) >= IDLE_CLASS_GRACE)
        };
        while is_due(&self.idle)
            && let Some((_, class)) = self.idle.pop_front()
        {
            self.retire_class(batch, &class, facts, stale);
        }
    }

    /// Removes the idle classes that lead through a chain: the kernel deletes no chain that a rule
    /// jumps to.
    fn retire_classes_through(
        &mut self,
        chain: &str,
        batch: &mut Batch,
        facts: &NodeFacts,
        stale: &mut Vec<String>,
    ) {
        let idle = std::mem::take(&mut self.idle).into_iter();
        let (gone, idle): (VecDeque<_>, VecDeque<_>) =
            idle.partition(|(_, class)| class.leads_through(chain));
        self.idle = idle;
        for (_, class) in gone {
            self.retire_class(batch, &class, facts, stale);
        }
    }

    fn retire_class(
        &mut self,
        batch: &mut Batch,
        class: &Class,
        facts: &NodeFacts,
        stale: &mut Vec<String>,
    ) {
        self.classes.remove(class);
        if let Some(number) = self.numbers.get(class) {
            self.delete(Set::Routes, class.route(number));
            self.numbers.release(class);
        }
        for (name, _) in class.chains(self.family, facts, self.mark) {
            let Some(chain) = self.chains.get_mut(&name) else { continue };
            chain.users -= 1;
            if chain.users == 0 {
                self.retire_chain(batch, &name, stale);
            }
        }
    }

    fn write_chain(&mut self, batch: &mut Batch, name: &str, rules: &[Rule]) {
        let family = match self.family {
            Family::V4 => TableFamily::Ip,
            Family::V6 => TableFamily::Ip6,
        };
        let fingerprints: Vec<_> = rules.iter().map(|rule| rule.fingerprint(family)).collect();
        let (before, users) = match self.chains.get(name) {
            Some(chain) => (Some(chain.fingerprints.clone()), chain.users),
            None => (self.unclaimed.chains.remove(name), 0),
        };
        if before.as_ref() != Some(&fingerprints) {
            if before.is_none() {
                batch.add_chain(&self.table, &Chain { name: name.to_owned(), hook: None });
            }
            if before.is_some_and(|before| !before.is_empty()) {
                batch.flush_chain(&self.table, name);
            }
            for rule in rules {
                batch.add_rule(&self.table, name, rule);
            }
        }
        self.chains.insert(name.to_owned(), ChainState { fingerprints, users });
    }

    /// Empties a chain that nothing refers to any more. It is deleted later: before Linux 6.2,
    /// deleting a chain in the transaction that deletes the last reference to it can fail.
    fn retire_chain(&mut self, batch: &mut Batch, name: &str, stale: &mut Vec<String>) {
        if self.chains.remove(name).is_some() {
            batch.flush_chain(&self.table, name);
            stale.push(name.to_owned());
        }
    }
}

/// Creates the table and its sets.
pub(crate) fn create(table: &Table, batch: &mut Batch) {
    batch.add_table(table);
    for set in Set::ALL {
        batch.add_set(table, &set.def());
    }
}

/// The endpoint that an element stands for.
fn target(element: &Element) -> Option<Target> {
    let Value::Data(data) = &element.value else { return None };
    let bytes = data.as_slice();
    let (address, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some(Target { address, port: u16::from_be_bytes([port[0], port[1]]) })
}
