//! What the tables hold, and what changes in them when a service does.
//!
//! Order makes changes safe for packets: what frontends refer to is written before them, and deleted
//! a while after they have stopped referring to it. A pool never changes: another takes its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kpng_core::model::NamespacedName;
use kpng_core::plan::{NodeFacts, Pool, ServicePlan, Target};

use crate::layout::{
    self, Address, Endpoint, Frontend, FrontendKey, MemberKey, RangeKey, TargetKey,
};
use crate::render;

/// How long programs may still look at what nothing refers to any more. They run for microseconds.
const GRACE: Duration = Duration::from_secs(1);

/// Elements to write and to delete, by map.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) targets: Vec<(TargetKey, Endpoint)>,
    pub(crate) members: Vec<MemberKey>,
    pub(crate) ranges: Vec<RangeKey>,
    pub(crate) addresses: BTreeMap<Address, u32>,
    /// Written last, in this order. One may be there twice.
    pub(crate) frontends: Vec<(FrontendKey, Frontend)>,
    /// Deleted after that, and at once.
    pub(crate) gone_frontends: BTreeSet<FrontendKey>,
    /// Endpoints that UDP flows may no longer use, deleted at once.
    pub(crate) gone_members: Vec<(MemberKey, Target)>,
}

/// Elements that nothing refers to any more.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    pub(crate) targets: Vec<TargetKey>,
    pub(crate) members: Vec<MemberKey>,
    pub(crate) ranges: Vec<RangeKey>,
}

/// How many elements the tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) frontends: usize,
    pub(crate) targets: usize,
    pub(crate) members: usize,
    pub(crate) ranges: usize,
    pub(crate) addresses: usize,
}

/// A service as it was written.
#[derive(Debug)]
struct Written {
    plan: Arc<ServicePlan>,
    /// The numbers of the plan's pools.
    pools: Vec<u32>,
    /// Sorted. A map would take ten times the memory of the one or two that most services have.
    frontends: Box<[(FrontendKey, Frontend)]>,
    /// Sets of ranges that frontends refer to.
    sources: BTreeMap<Vec<IpNet>, u32>,
    serving: BTreeMap<MemberKey, Target>,
}

/// What was written into the tables.
#[derive(Debug, Default)]
pub(crate) struct State {
    services: HashMap<NamespacedName, Written>,
    /// Services by the cluster IPs that they close.
    closed: HashMap<FrontendKey, usize>,
    last_pool: u32,
    last_sources: u32,
    sizes: Sizes,
    garbage: Vec<(Instant, Garbage)>,
}

impl State {
    /// Nothing is written but what the node's facts ask for, which `changes` has to write.
    pub(crate) fn new(facts: &NodeFacts, changes: &mut Changes) -> Self {
        let node = render::node(facts);
        let mut state = Self { last_sources: layout::FIRST_SOURCES, ..Self::default() };
        state.sizes.addresses = node.addresses.len();
        state.sizes.ranges = node.ranges.len();
        changes.addresses = node.addresses;
        changes.ranges = node.ranges;
        state
    }

    /// How many elements there are once all changes are made.
    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Notes what changes when a service gets another plan, or none.
    /// A plan with the same content changes nothing.
    pub(crate) fn set_service(
        &mut self,
        key: &NamespacedName,
        plan: Option<&Arc<ServicePlan>>,
        changes: &mut Changes,
    ) {
        let old = self.services.remove(key);
        let new = plan.map(|plan| self.write(key, plan, old.as_ref(), changes));
        let old_frontends = old.as_ref().map_or(&[][..], |old| &old.frontends);
        let new_frontends = new.as_ref().map_or(&[][..], |new| &new.frontends);
        for (frontend, value) in new_frontends {
            if find(old_frontends, frontend) != Some(value) {
                changes.frontends.push((*frontend, *value));
            }
        }
        for (frontend, _) in old_frontends {
            if find(new_frontends, frontend).is_none() {
                changes.gone_frontends.insert(*frontend);
            }
        }
        self.sizes.frontends += new_frontends.len();
        self.sizes.frontends -= old_frontends.len();
        self.close(old.as_ref(), new.as_ref(), changes);
        self.set_serving(old.as_ref(), new.as_ref(), changes);
        if let Some(old) = &old {
            self.retire(old, new.as_ref());
        }
        if let Some(new) = new {
            self.services.insert(key.clone(), new);
        }
    }

    /// Writes what frontends refer to, and works frontends out.
    fn write(
        &mut self,
        key: &NamespacedName,
        plan: &Arc<ServicePlan>,
        old: Option<&Written>,
        changes: &mut Changes,
    ) -> Written {
        let pools = plan.pools.iter().map(|pool| match old.and_then(|old| old.number(pool)) {
            Some(number) => number,
            None => self.write_pool(pool, changes),
        });
        let pools: Vec<_> = pools.collect();
        let mut sources = BTreeMap::new();
        for ranges in plan.frontends.iter().filter_map(|frontend| frontend.sources.as_ref()) {
            if !sources.contains_key(ranges) {
                let number = match old.and_then(|old| old.sources.get(ranges)) {
                    Some(number) => *number,
                    None => self.write_sources(ranges, changes),
                };
                sources.insert(ranges.clone(), number);
            }
        }
        let numbered = |id: kpng_core::plan::PoolId| {
            let pool = usize::from(id.0);
            render::numbered(pools[pool], &plan.pools[pool])
        };
        let served = plan.frontends.iter().filter(|frontend| render::is_served(frontend.protocol));
        let frontends = served.map(|frontend| {
            let sources = frontend.sources.as_ref().map_or(0, |ranges| sources[ranges]);
            let value = render::frontend_value(key, plan, frontend, numbered, sources);
            (render::frontend_key(frontend), value)
        });
        let mut frontends: Vec<_> = frontends.collect();
        frontends.sort_unstable();
        let frontends = frontends.into_boxed_slice();
        let serving = render::serving(key, plan);
        Written { plan: Arc::clone(plan), pools, frontends, sources, serving }
    }

    fn write_pool(&mut self, pool: &Pool, changes: &mut Changes) -> u32 {
        self.last_pool += 1;
        let (targets, members) = elements(self.last_pool, pool);
        self.sizes.targets += targets.len();
        self.sizes.members += members.len();
        changes.targets.extend(
            targets
                .into_iter()
                .zip(&pool.targets)
                .map(|(key, target)| (key, layout::endpoint(*target))),
        );
        changes.members.extend(members);
        self.last_pool
    }

    fn write_sources(&mut self, ranges: &[IpNet], changes: &mut Changes) -> u32 {
        self.last_sources += 1;
        self.sizes.ranges += ranges.len();
        changes.ranges.extend(render::ranges(self.last_sources, ranges));
        self.last_sources
    }

    /// Closes the other ports of the service's cluster IPs.
    fn close(&mut self, old: Option<&Written>, new: Option<&Written>, changes: &mut Changes) {
        let keys = |written: Option<&Written>| -> BTreeSet<FrontendKey> {
            let ips = written.into_iter().flat_map(|written| &written.plan.cluster_ips);
            ips.map(|ip| layout::closed_key(*ip)).collect()
        };
        let (old, new) = (keys(old), keys(new));
        for key in new.difference(&old) {
            let count = self.closed.entry(*key).or_default();
            *count += 1;
            if *count == 1 {
                self.sizes.frontends += 1;
                changes.frontends.push((*key, layout::closed()));
            }
        }
        for key in old.difference(&new) {
            let Some(count) = self.closed.get_mut(key) else { continue };
            *count -= 1;
            if *count == 0 {
                self.closed.remove(key);
                self.sizes.frontends -= 1;
                changes.gone_frontends.insert(*key);
            }
        }
    }

    fn set_serving(&mut self, old: Option<&Written>, new: Option<&Written>, changes: &mut Changes) {
        let none = BTreeMap::new();
        let old = old.map_or(&none, |old| &old.serving);
        let new = new.map_or(&none, |new| &new.serving);
        changes.members.extend(new.keys().filter(|key| !old.contains_key(*key)));
        let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
        changes.gone_members.extend(gone.map(|(key, target)| (*key, *target)));
        self.sizes.members += new.len();
        self.sizes.members -= old.len();
    }

    /// Takes what `new` does not use any more for garbage.
    fn retire(&mut self, old: &Written, new: Option<&Written>) {
        let mut garbage = Garbage::default();
        for (pool, number) in old.plan.pools.iter().zip(&old.pools) {
            if !new.is_some_and(|new| new.pools.contains(number)) {
                let (targets, members) = elements(*number, pool);
                garbage.targets.extend(targets);
                garbage.members.extend(members);
            }
        }
        for (ranges, number) in &old.sources {
            if !new.is_some_and(|new| new.sources.values().any(|other| other == number)) {
                garbage.ranges.extend(render::ranges(*number, ranges));
            }
        }
        if garbage.targets.len() + garbage.ranges.len() > 0 {
            self.garbage.push((Instant::now(), garbage));
        }
    }

    /// Hands out what may be deleted now.
    pub(crate) fn take_garbage(&mut self, now: Instant) -> Garbage {
        let ripe = |(since, _): &(Instant, Garbage)| now.duration_since(*since) >= GRACE;
        let ripe = self.garbage.iter().take_while(|garbage| ripe(garbage)).count();
        let mut all = Garbage::default();
        for (_, garbage) in self.garbage.drain(..ripe) {
            all.targets.extend(garbage.targets);
            all.members.extend(garbage.members);
            all.ranges.extend(garbage.ranges);
        }
        self.sizes.targets -= all.targets.len();
        self.sizes.members -= all.members.len();
        self.sizes.ranges -= all.ranges.len();
        all
    }
}

impl Written {
    /// The number of the pool that is equal to this one.
    fn number(&self, pool: &Pool) -> Option<u32> {
        let at = self.plan.pools.iter().position(|other| other == pool)?;
        Some(self.pools[at])
    }
}

/// The keys of a pool's elements.
fn elements(number: u32, pool: &Pool) -> (Vec<TargetKey>, Vec<MemberKey>) {
    let targets = (0..).zip(&pool.targets).map(|(index, _)| layout::target_key(number, index));
    let sticky = pool.affinity.map(|_| &pool.targets).into_iter().flatten();
    let members = sticky.map(|target| layout::member_key(number.into(), *target));
    (targets.collect(), members.collect())
}

/// The value of a frontend among those of a service.
fn find<'a>(frontends: &'a [(FrontendKey, Frontend)], key: &FrontendKey) -> Option<&'a Frontend> {
    let at = frontends.binary_search_by_key(key, |(key, _)| *key).ok()?;
    Some(&frontends[at].1)
}
