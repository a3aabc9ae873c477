//! The nftables backend: makes the kernel do what a plan says, by nf_tables over netlink.
//!
//! ```text
//! Plan ──▶ render (pure: wanted objects of one service) ──▶ state (what differs) ──▶ one transaction
//! ```
//!
//! What grows with the cluster is elements of a constant number of maps, never chains or rules: a
//! frontend's element holds the number of its class, a class has a chain that leads to
//! `dnat to FRONTEND . numgen random mod N map @endpoints`. Changing one endpoint changes a few
//! elements. The README of this crate explains the packet's path and what others may rely on.
//!
//! ```no_run
//! use kpng_core::{Backend, Plan};
//! use kpng_nft::{Config, Nft};
//!
//! let mut nft = Nft::open(Config::default())?;
//! nft.sync(&Plan::default(), None)?;
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

mod audit;
mod class;
mod counters;
mod dry_run;
pub mod names;
mod order;
mod render;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::backend::{Audit, Backend, BackendError, Counting, Gap, Metrics, Traffic};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{FrontendKey, NodeFacts, Plan, ServicePlan, Target};
use kpng_linux::nft::{Batch, FoundTable, Monitor, Nftables};

pub use dry_run::ruleset_text;

use counters::Counters;
use names::Set;
use state::{TableState, Unclaimed, Written};
use stats::Stats;

/// How many elements one transaction changes at most, on the way to a full state: what is important
/// works before the rest is written.
const ELEMENTS_PER_TRANSACTION: usize = 20_000;

/// From how many changed services on it is cheaper not to listen to the kernel's report of each.
const QUIET_CHANGES: usize = 500;

/// How long an emptied chain waits for its deletion.
const CHAIN_GRACE: Duration = Duration::from_secs(1);

/// What this backend cannot do: nothing that a plan can ask for.
pub const GAPS: &[Gap] = &[];

/// How the data path is built, beside what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which bit of the packet mark means "to be masqueraded" (0 to 31). It is cleared before the
    /// packet leaves; other bits are not touched.
    pub masquerade_bit: u8,
    /// Let packets pass that fit no connection, as asymmetric routes make them.
    pub conntrack_be_liberal: bool,
    /// Whether connections, and what is refused, are counted by frontend: see [`Backend::traffic`].
    pub counting: Counting,
}

impl Default for Config {
    /// kube-proxy's defaults: bit 14, invalid packets are dropped. Counting where it is cheap.
    fn default() -> Self {
        Self { masquerade_bit: 14, conntrack_be_liberal: false, counting: Counting::Auto }
    }
}

impl Config {
    fn mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}

/// What can go wrong. Every error of the kernel names the object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),
}

/// The backend.
#[derive(Debug)]
pub struct Nft {
    config: Config,
    nft: Nftables,
    counters: Arc<Counters>,
    stats: Arc<Stats>,
    monitor: Option<Monitor>,
    /// Somebody else changed our tables since they were last made what they shall be.
    disturbed: bool,
    written: Option<Whole>,
    /// Chains to delete, in which table and since when they are empty.
    stale: Vec<(Instant, Family, String)>,
}

/// Everything that was written.
#[derive(Debug)]
struct Whole {
    facts: Arc<NodeFacts>,
    /// Connections are counted.
    counting: bool,
    services: HashMap<NamespacedName, Written>,
    tables: BTreeMap<Family, TableState>,
}

impl Nft {
    /// Connects to nf_tables of the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not use it.
    pub fn open(config: Config) -> Result<Self, Error> {
        let mut nft = Nftables::open()?;
        nft.tables(kpng_linux::nft::TableFamily::Ip)?;
        let counters = Arc::new(Counters::open()?);
        Ok(Self {
            config,
            nft,
            counters,
            stats: Arc::default(),
            monitor: None,
            disturbed: false,
            written: None,
            stale: Vec::new(),
        })
    }

    fn sync_changed(&mut self, plan: &Plan, changed: &[NamespacedName]) -> Result<(), Error> {
        // A state that is half written is taken for unknown: it is put back when all is well.
        let Some(mut whole) = self.written.take() else { return self.sync_all(plan) };
        let counting = self.config.counting.counts(plan.service_ports(), Some(whole.counting));
        if counting != whole.counting {
            return self.sync_all(plan);
        }
        if changed.len() >= QUIET_CHANGES {
            self.read_monitor()?;
            self.monitor = None;
        }
        let mut batch = Batch::default();
        self.delete_stale_chains(&whole, &mut batch);
        whole.retire_idle_classes(Instant::now(), &mut batch, &mut self.stale);
        if whole.facts != *plan.facts() {
            whole.facts = Arc::clone(plan.facts());
            whole.write_skeletons(&self.config, &mut batch);
        }
        for key in changed {
            whole.write_changed(&mut batch, key, plan.service(key), &mut self.stale);
            if whole.pending() >= ELEMENTS_PER_TRANSACTION {
                // What moves from one service to another has to do so in one transaction. Against
                // the kernel's state, where it is there once, it does in any number of them.
                return self.sync_all(plan);
            }
        }
        whole.flush(&mut batch);
        self.commit(batch, counting.then_some(plan))?;
        self.written = Some(whole);
        self.watch()
    }

    fn commit(&mut self, batch: Batch, counted: Option<&Plan>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.stats.count(&batch);
        self.counters.commit(&mut self.nft, batch, counted)
    }

    fn sync_all(&mut self, plan: &Plan) -> Result<(), Error> {
        let before = self.written.take().map(|whole| whole.counting);
        self.stale.clear();
        self.read_monitor()?;
        self.disturbed = false;
        let mut batch = Batch::default();
        let mut found = BTreeMap::new();
        for family in Family::ALL {
            found.insert(family, self.adopt(family, &mut batch)?);
        }
        let before = before.or_else(|| found.values().filter_map(Unclaimed::counts).max());
        let counting = self.config.counting.counts(plan.service_ports(), before);
        let counted = counting.then_some(plan);
        let mut whole = Whole::found(plan, &self.config, counting, found);
        whole.write_skeletons(&self.config, &mut batch);
        for (key, service) in plan.by_importance() {
            whole.write_found(&mut batch, key, service, &mut self.stale);
            if whole.pending() >= ELEMENTS_PER_TRANSACTION {
                whole.flush(&mut batch);
                self.commit(std::mem::take(&mut batch), counted)?;
                self.read_monitor()?;
            }
        }
        whole.remove_unclaimed(&mut batch, &mut self.stale);
        whole.flush(&mut batch);
        self.commit(batch, counted)?;
        self.written = Some(whole);
        self.watch()
    }

    /// Takes over the table that is there, if it has the shape that we give tables; else replaces
    /// it in the coming transaction.
    fn adopt(&mut self, family: Family, batch: &mut Batch) -> Result<Unclaimed, Error> {
        let table = names::table(family);
        let found = self.nft.read_table(&table)?;
        let is_there = found.is_some();
        let Some(found) = found.filter(|found| has_our_shape(family, found)) else {
            if is_there {
                batch.delete_table(&table);
            }
            state::create(&table, batch);
            return Ok(Unclaimed::default());
        };
        // Whoever changes the table from now on is noticed.
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.nft, Family::ALL.map(names::table))?);
        }
        self.read_unclaimed(family, found, &Set::ALL)
    }

    /// What is in a table that has our shape: its chains, and the elements of these sets.
    fn read_unclaimed(
        &mut self,
        family: Family,
        found: FoundTable,
        sets: &[Set],
    ) -> Result<Unclaimed, Error> {
        let table = names::table(family);
        let mut unclaimed = Unclaimed::default();
        for (name, chain) in found.chains {
            // A rule of somebody else's has no fingerprint: 0 is that of no rule.
            let fingerprints = chain.rules.iter().map(|rule| rule.fingerprint.unwrap_or(0));
            unclaimed.chains.insert(name, fingerprints.collect());
        }
        // Who sticks to what is not ours to know.
        for set in sets.iter().filter(|set| **set != Set::Affinity) {
            for element in self.nft.elements(&table, &set.def())? {
                unclaimed.elements.insert((*set, element.key), element);
            }
        }
        Ok(unclaimed)
    }

    /// Reads what the kernel has reported, before it is more than the socket's buffer holds: it
    /// reports our own changes too.
    fn read_monitor(&mut self) -> Result<(), Error> {
        if let Some(monitor) = &mut self.monitor {
            self.disturbed |= monitor.disturbed()?;
        }
        Ok(())
    }

    /// Listens to the kernel's notifications from now on.
    fn watch(&mut self) -> Result<(), Error> {
        self.read_monitor()?;
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.nft, Family::ALL.map(names::table))?);
            for family in Family::ALL {
                let table = names::table(family);
                if !self.nft.tables(table.family)?.contains(&table.name) {
                    self.written = None; // deleted before we listened
                }
            }
        }
        Ok(())
    }

    fn delete_stale_chains(&mut self, whole: &Whole, batch: &mut Batch) {
        let in_use = |family: &Family, name: &str| whole.tables[family].uses_chain(name);
        self.stale.retain(|(since, family, name)| {
            if in_use(family, name) {
                return false;
            }
            let ripe = since.elapsed() >= CHAIN_GRACE;
            if ripe {
                batch.delete_chain(&names::table(*family), name);
            }
            !ripe
        });
    }
}

impl Backend for Nft {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        match changed {
            Some(changed) => self.sync_changed(plan, changed)?,
            None => self.sync_all(plan)?,
        }
        Ok(())
    }

    fn disturbed(&mut self) -> Result<bool, BackendError> {
        self.read_monitor()?;
        Ok(self.monitor.is_some() && (self.disturbed || self.written.is_none()))
    }

    fn audit(&mut self, plan: &Plan) -> Result<Option<Audit>, BackendError> {
        Ok(Some(self.compare(plan)?))
    }

    fn holds(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Option<Vec<String>>, BackendError> {
        Ok(Some(self.describe(plan, frontend)?))
    }

    fn gaps(&self) -> &'static [Gap] {
        GAPS
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(Arc::clone(&self.stats) as Arc<dyn Metrics>)
    }

    fn traffic(&self) -> Option<Arc<dyn Traffic>> {
        Some(Arc::clone(&self.counters) as Arc<dyn Traffic>)
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        self.monitor = None;
        self.written = None;
        self.stale.clear();
        let mut batch = Batch::default();
        for family in Family::ALL {
            let table = names::table(family);
            if self.nft.tables(table.family)?.contains(&table.name) {
                batch.delete_table(&table);
            }
        }
        Ok(self.nft.commit(batch)?)
    }
}

impl Whole {
    /// Nothing is written, and this was found.
    fn found(
        plan: &Plan,
        config: &Config,
        counting: bool,
        found: impl IntoIterator<Item = (Family, Unclaimed)>,
    ) -> Self {
        let table = |(family, unclaimed)| {
            (family, TableState::new(family, config.mark(), counting, unclaimed))
        };
        let tables = found.into_iter().map(table).collect();
        Self { facts: Arc::clone(plan.facts()), counting, services: HashMap::new(), tables }
    }

    fn pending(&self) -> usize {
        self.tables.values().map(TableState::pending).sum()
    }

    fn flush(&mut self, batch: &mut Batch) {
        for table in self.tables.values_mut() {
            table.flush(batch);
        }
    }

    fn write_skeletons(&mut self, config: &Config, batch: &mut Batch) {
        for (family, table) in &mut self.tables {
            let skeleton = render::skeleton(*family, &self.facts, config);
            table.write_skeleton(batch, skeleton, &self.facts);
        }
    }

    fn remove_unclaimed(&mut self, batch: &mut Batch, stale: &mut Vec<(Instant, Family, String)>) {
        for (family, table) in &mut self.tables {
            let mut removed = Vec::new();
            table.remove_unclaimed(batch, &mut removed);
            stale.extend(removed.into_iter().map(|chain| (Instant::now(), *family, chain)));
        }
    }

    fn retire_idle_classes(
        &mut self,
        now: Instant,
        batch: &mut Batch,
        stale: &mut Vec<(Instant, Family, String)>,
    ) {
        for (family, table) in &mut self.tables {
            let mut retired = Vec::new();
            table.retire_idle_classes(now, batch, &self.facts, &mut retired);
            stale.extend(retired.into_iter().map(|chain| (Instant::now(), *family, chain)));
        }
    }

    /// Writes how a service differs from what was written before.
    fn write_changed(
        &mut self,
        batch: &mut Batch,
        key: &NamespacedName,
        plan: Option<&Arc<ServicePlan>>,
        stale: &mut Vec<(Instant, Family, String)>,
    ) {
        let before = self.services.get(key).map(|before| (&before.plan, before.order()));
        let new = plan.map(|plan| {
            let before = |pool| match &before {
                Some((old, order)) => matching_order(old, order, plan, pool),
                None => Vec::new(),
            };
            written(plan, before)
        });
        self.write_service(batch, key, new, stale);
    }

    /// Writes how a service differs from what was found in the kernel.
    fn write_found(
        &mut self,
        batch: &mut Batch,
        key: &NamespacedName,
        plan: &Arc<ServicePlan>,
        stale: &mut Vec<(Instant, Family, String)>,
    ) {
        let mut order = vec![Vec::new(); plan.pools.len()];
        for table in self.tables.values() {
            table.found_order(plan, &mut order);
        }
        let new = written(plan, |pool| std::mem::take(&mut order[pool]));
        self.write_service(batch, key, Some(new), stale);
    }

    fn write_service(
        &mut self,
        batch: &mut Batch,
        key: &NamespacedName,
        new: Option<Written>,
        stale: &mut Vec<(Instant, Family, String)>,
    ) {
        let old = self.services.get(key);
        for (family, table) in &mut self.tables {
            let mut retired = Vec::new();
            table.write_service(batch, key, old, new.as_ref(), &self.facts, &mut retired);
            stale.extend(retired.into_iter().map(|chain| (Instant::now(), *family, chain)));
        }
        match new {
            Some(new) => self.services.insert(key.clone(), new),
            None => self.services.remove(key),
        };
    }
}

/// A service to be written, its endpoints numbered as near as can be to how they were before.
fn written(plan: &Arc<ServicePlan>, mut before: impl FnMut(usize) -> Vec<Target>) -> Written {
    let pools = plan.pools.iter().enumerate();
    let order = pools.map(|(index, pool)| order::renumber(&before(index), pool)).collect();
    Written::new(Arc::clone(plan), order)
}

/// The order before of the pool of `new` with this index: that of the pool with the same place
/// among those of its service port and family.
fn matching_order(
    old: &ServicePlan,
    order: &[Vec<Target>],
    new: &ServicePlan,
    index: usize,
) -> Vec<Target> {
    let pool = &new.pools[index];
    let place = |other: &kpng_core::plan::Pool| {
        (other.service_port, other.family) == (pool.service_port, pool.family)
    };
    let rank = new.pools[..index].iter().filter(|other| place(other)).count();
    let matching = old.pools.iter().zip(order).filter(|(other, _)| place(other));
    matching.map(|(_, order)| order.clone()).nth(rank).unwrap_or_default()
}

fn has_our_shape(family: Family, found: &FoundTable) -> bool {
    let table = names::table(family);
    let fits = |set: Set| {
        found.sets.get(set.name()).is_some_and(|found| found.fits(table.family, &set.def()))
    };
    let skeleton = render::skeleton(family, &NodeFacts::default(), &Config::default());
    let same_hook = |chain: &kpng_linux::nft::Chain| match found.chains.get(&chain.name) {
        Some(found) => found.hook == chain.hook.map(|hook| hook.position()),
        None => true,
    };
    Set::ALL.into_iter().all(fits) && skeleton.chains.iter().all(|(chain, _)| same_hook(chain))
}
