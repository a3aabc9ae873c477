//! A table that is kept equal to what its owner wants.
//!
//! For whoever has constant chains and many elements. What is wanted is compared with what the kernel
//! holds at first and after a failure, and with what was written before otherwise: only differences
//! are written, and a restart that wants the same writes nothing.

mod compare;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

pub use compare::Comparison;

use super::{
    Batch, Bytes, Chain, Element, FoundTable, Monitor, Nftables, Rule, SetDef, Table, Taken, text,
};
use crate::error::{Error, Result};

/// How many elements one transaction writes at most, on the way to a full state: what comes first
/// works before the rest is written.
const ELEMENTS_PER_TRANSACTION: usize = 20_000;

/// From how many changed elements on it is cheaper not to listen to the kernel's report of each.
const QUIET_CHANGES: usize = 2_000;

/// Everything that a table shall hold.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// All chains with their rules. Those that others jump to come first.
    pub chains: Vec<(Chain, Vec<Rule>)>,
    /// The elements of each set, the important ones first. One that is there twice is wanted by two.
    /// Nothing is said of dynamic sets, whose elements come from rules.
    pub elements: Vec<(&'static str, Element)>,
}

/// How what a table shall hold differs from before.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Chains whose rules may be others now.
    pub chains: Vec<(Chain, Vec<Rule>)>,
    /// Elements that one owner less wants. An element goes with the last.
    pub remove: Vec<(&'static str, Element)>,
    /// Elements that one owner more wants, as seen after `remove`.
    pub add: Vec<(&'static str, Element)>,
    /// Chains that nothing leads to any more.
    pub remove_chains: Vec<String>,
}

/// A table that belongs to its user wholly: whatever else is in it is removed.
#[derive(Debug)]
pub struct OwnedTable {
    nft: Nftables,
    table: Table,
    sets: BTreeMap<&'static str, SetDef>,
    monitor: Option<Monitor>,
    disturbed: bool,
    /// What the kernel holds; `None` when that is not known.
    written: Option<Written>,
    /// What deleted elements of counted sets had counted.
    taken: Vec<Taken>,
}

/// What was written.
#[derive(Debug, Default)]
struct Written {
    /// The fingerprints of each chain's rules.
    chains: BTreeMap<String, Vec<u64>>,
    /// Elements, and how many want each.
    elements: HashMap<(&'static str, Bytes), (Element, u32)>,
}

/// What the kernel holds, and nobody has asked for yet.
#[derive(Debug, Default)]
struct Found {
    chains: BTreeMap<String, Vec<u64>>,
    elements: HashMap<(&'static str, Bytes), Element>,
}

/// Elements to be written.
#[derive(Debug, Default)]
struct Pending {
    delete: BTreeMap<&'static str, Vec<Element>>,
    add: BTreeMap<&'static str, Vec<Element>>,
    count: usize,
}

impl OwnedTable {
    /// The table `table` with these sets, in the network namespace of the calling thread. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel has no nf_tables, or the process may not use it.
    pub fn open(table: Table, sets: impl IntoIterator<Item = SetDef>) -> Result<Self> {
        let mut nft = Nftables::open()?;
        nft.tables(table.family)?;
        let sets = sets.into_iter().map(|set| (set.name, set)).collect();
        Ok(Self {
            nft,
            table,
            sets,
            monitor: None,
            disturbed: false,
            written: None,
            taken: Vec::new(),
        })
    }

    /// Makes the table hold exactly this, whatever it holds now.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses an object; then some of it may be written.
    pub fn replace(&mut self, wanted: &Content) -> Result<()> {
        self.written = None;
        self.read_monitor()?;
        self.disturbed = false;
        let mut batch = Batch::new();
        let found = self.adopt(wanted, &mut batch)?;
        let mut found = found.unwrap_or_default();
        let mut written = Written::default();
        for (chain, _) in &wanted.chains {
            if let Some(rules) = found.chains.remove(&chain.name) {
                written.chains.insert(chain.name.clone(), rules);
            }
        }
        self.add_chains(&mut written, &wanted.chains, &mut batch);
        let mut order = Vec::with_capacity(wanted.elements.len());
        for (set, element) in &wanted.elements {
            if written.want(set, element) {
                order.push((*set, element.key));
            }
        }
        let mut pending = Pending::default();
        for key in order {
            pending.replace(key.0, found.elements.remove(&key), Some(&written.elements[&key].0));
            if pending.count >= ELEMENTS_PER_TRANSACTION {
                self.flush(&mut pending, &mut batch);
                self.commit(std::mem::take(&mut batch))?;
                self.read_monitor()?;
            }
        }
        let mut unwanted: Vec<_> = found.elements.into_iter().collect();
        unwanted.sort_unstable_by_key(|(key, _)| *key);
        for ((set, _), element) in unwanted {
            pending.replace(set, Some(element), None);
        }
        self.flush(&mut pending, &mut batch);
        self.write_rules(&mut written, &wanted.chains, &mut batch);
        let unwanted: Vec<_> = found.chains.into_keys().collect();
        self.commit_without(&unwanted, batch)?;
        self.written = Some(written);
        self.watch()
    }

    /// Writes a difference, in one transaction; chains go in a second.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the last write failed or there was none: then [`Self::replace`] is
    /// needed. [`Error::Kernel`] when the kernel refuses an object; nothing is changed then.
    pub fn change(&mut self, change: &Change) -> Result<()> {
        let Some(mut written) = self.written.take() else {
            let what = format!("change table {} {}", self.table.family.name(), self.table.name);
            return Err(Error::Unknown { what });
        };
        if change.add.len() + change.remove.len() >= QUIET_CHANGES {
            self.read_monitor()?;
            self.monitor = None;
        }
        let mut batch = Batch::new();
        let mut before: BTreeMap<(&'static str, Bytes), Option<Element>> = BTreeMap::new();
        for (set, element) in change.remove.iter().chain(&change.add) {
            let key = (*set, element.key);
            before.entry(key).or_insert_with(|| written.elements.get(&key).map(|e| e.0.clone()));
        }
        for (set, element) in &change.remove {
            written.release(set, element);
        }
        for (set, element) in &change.add {
            written.want(set, element);
        }
        let mut pending = Pending::default();
        for (key, before) in before {
            pending.replace(key.0, before, written.elements.get(&key).map(|(element, _)| element));
        }
        self.add_chains(&mut written, &change.chains, &mut batch);
        self.flush(&mut pending, &mut batch);
        self.write_rules(&mut written, &change.chains, &mut batch);
        let known = |name: &&String| written.chains.contains_key(*name);
        let unwanted: Vec<_> = change.remove_chains.iter().filter(known).cloned().collect();
        for name in &unwanted {
            written.chains.remove(name);
        }
        self.commit_without(&unwanted, batch)?;
        self.written = Some(written);
        self.watch()
    }

    /// Whether somebody else changed the table since it was last written, or may have. Asks the
    /// kernel nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel's reports cannot be read.
    pub fn disturbed(&mut self) -> Result<bool> {
        self.read_monitor()?;
        Ok(self.monitor.is_some() && (self.disturbed || self.written.is_none()))
    }

    /// The elements of one of the sets as the kernel holds them now; none when the table is not there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    ///
    /// # Panics
    /// When the table has no such set.
    pub fn elements(&mut self, set: &'static str) -> Result<Vec<Element>> {
        if !self.nft.tables(self.table.family)?.contains(&self.table.name) {
            return Ok(Vec::new());
        }
        self.nft.elements(&self.table, &self.sets[set])
    }

    /// What elements of counted sets had counted that were deleted since the last call. Whoever has such
    /// sets calls it after each change.
    pub fn taken(&mut self) -> Vec<Taken> {
        std::mem::take(&mut self.taken)
    }

    /// Deletes the table, if it is there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn delete(&mut self) -> Result<()> {
        self.monitor = None;
        self.written = None;
        let mut batch = Batch::new();
        if self.nft.tables(self.table.family)?.contains(&self.table.name) {
            batch.delete_table(&self.table);
        }
        self.nft.commit(batch)
    }

    /// Takes over the table that is there. `None` when there is none, or one of another shape, which
    /// is replaced in the coming transaction.
    fn adopt(&mut self, wanted: &Content, batch: &mut Batch) -> Result<Option<Found>> {
        let table = self.nft.read_table(&self.table)?;
        let fitting = table.as_ref().filter(|found| self.fits(wanted, found));
        let Some(fitting) = fitting else {
            if table.is_some() {
                batch.delete_table(&self.table);
            }
            batch.add_table(&self.table);
            for set in self.sets.values() {
                batch.add_set(&self.table, set);
            }
            return Ok(None);
        };
        // Whoever changes the table from now on is noticed.
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.nft, [self.table.clone()])?);
        }
        let mut found = Found::default();
        for (name, chain) in &fitting.chains {
            // A rule of somebody else's has no fingerprint: 0 is that of no rule.
            let rules = chain.rules.iter().map(|rule| rule.fingerprint.unwrap_or(0));
            found.chains.insert(name.clone(), rules.collect());
        }
        for (name, set) in self.sets.iter().filter(|(_, set)| set.dynamic.is_none()) {
            for element in self.nft.elements(&self.table, set)? {
                found.elements.insert((name, element.key), element);
            }
        }
        Ok(Some(found))
    }

    fn fits(&self, wanted: &Content, found: &FoundTable) -> bool {
        let set_fits = |set: &SetDef| {
            found.sets.get(set.name).is_some_and(|found| found.fits(self.table.family, set))
        };
        let chain_fits = |chain: &Chain| match found.chains.get(&chain.name) {
            Some(found) => found.hook == chain.hook.map(|hook| hook.position()),
            None => true,
        };
        // A base chain that is not wanted any more would keep its hook.
        let is_wanted = |name: &str| wanted.chains.iter().any(|(chain, _)| chain.name == name);
        self.sets.values().all(set_fits)
            && wanted.chains.iter().all(|(chain, _)| chain_fits(chain))
            && found.chains.iter().all(|(name, chain)| chain.hook.is_none() || is_wanted(name))
    }

    /// Adds the chains that are not there, with their rules: elements may lead to them.
    fn add_chains(&self, written: &mut Written, chains: &[(Chain, Vec<Rule>)], batch: &mut Batch) {
        let is_new = |chain: &Chain| !written.chains.contains_key(&chain.name);
        let new: Vec<_> = chains.iter().filter(|(chain, _)| is_new(chain)).cloned().collect();
        for (chain, _) in &new {
            batch.add_chain(&self.table, chain);
        }
        self.write_rules(written, &new, batch);
    }

    /// Commits, and deletes these chains. Before Linux 6.2 a chain cannot go in the transaction that
    /// removes the last jump to it, so there are two.
    fn commit_without(&mut self, chains: &[String], mut batch: Batch) -> Result<()> {
        chains.iter().for_each(|name| batch.flush_chain(&self.table, name));
        self.commit(batch)?;
        let mut batch = Batch::new();
        chains.iter().for_each(|name| batch.delete_chain(&self.table, name));
        self.commit(batch)
    }

    fn commit(&mut self, batch: Batch) -> Result<()> {
        self.taken.extend(self.nft.commit_and_take(batch)?);
        Ok(())
    }

    fn write_rules(&self, written: &mut Written, chains: &[(Chain, Vec<Rule>)], batch: &mut Batch) {
        for (chain, rules) in chains {
            let fingerprints: Vec<_> =
                rules.iter().map(|rule| rule.fingerprint(self.table.family)).collect();
            let before = written.chains.get(&chain.name);
            if before == Some(&fingerprints) {
                continue;
            }
            if before.is_some_and(|before| !before.is_empty()) {
                batch.flush_chain(&self.table, &chain.name);
            }
            for rule in rules {
                batch.add_rule(&self.table, &chain.name, rule);
            }
            written.chains.insert(chain.name.clone(), fingerprints);
        }
    }

    /// Puts the waiting elements into the batch.
    fn flush(&self, pending: &mut Pending, batch: &mut Batch) {
        let Pending { delete, add, .. } = std::mem::take(pending);
        for (set, elements) in &delete {
            batch.delete_elements(&self.table, &self.sets[set], elements);
        }
        for (set, elements) in &add {
            batch.add_elements(&self.table, &self.sets[set], elements);
        }
    }

    /// Reads what the kernel has reported, before it is more than the socket's buffer holds: it
    /// reports our own changes too.
    fn read_monitor(&mut self) -> Result<()> {
        if let Some(monitor) = &mut self.monitor {
            self.disturbed |= monitor.disturbed()?;
        }
        Ok(())
    }

    /// Listens to the kernel's notifications from now on.
    fn watch(&mut self) -> Result<()> {
        self.read_monitor()?;
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::open(&self.nft, [self.table.clone()])?);
            if !self.nft.tables(self.table.family)?.contains(&self.table.name) {
                self.written = None; // deleted before we listened
            }
        }
        Ok(())
    }
}

impl Written {
    /// One owner more wants the element. Whether it is the first one.
    fn want(&mut self, set: &'static str, element: &Element) -> bool {
        match self.elements.entry((set, element.key)) {
            Entry::Occupied(mut entry) => {
                let (written, owners) = entry.get_mut();
                written.clone_from(element);
                *owners += 1;
                false
            }
            Entry::Vacant(entry) => {
                entry.insert((element.clone(), 1));
                true
            }
        }
    }

    /// One owner less wants the element.
    fn release(&mut self, set: &'static str, element: &Element) {
        if let Entry::Occupied(mut entry) = self.elements.entry((set, element.key)) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }
}

impl Pending {
    fn replace(&mut self, set: &'static str, old: Option<Element>, new: Option<&Element>) {
        if old.as_ref() == new {
            return;
        }
        if let Some(old) = old {
            self.delete.entry(set).or_default().push(old);
            self.count += 1;
        }
        if let Some(new) = new {
            self.add.entry(set).or_default().push(new.clone());
            self.count += 1;
        }
    }
}

/// What `nft -f` reads to make the table hold `content`.
pub fn owned_text(
    table: &Table,
    sets: impl IntoIterator<Item = SetDef>,
    content: &Content,
) -> String {
    let mut elements: BTreeMap<&str, BTreeMap<Bytes, &Element>> = BTreeMap::new();
    for (set, element) in &content.elements {
        elements.entry(set).or_default().insert(element.key, element);
    }
    let elements_of = |set: SetDef| {
        let elements = elements.get(set.name).into_iter().flat_map(BTreeMap::values);
        let elements = elements.map(|element| (*element).clone()).collect();
        (set, elements)
    };
    text::render(&text::Ruleset {
        table: table.clone(),
        sets: sets.into_iter().map(elements_of).collect(),
        chains: content.chains.clone(),
    })
}
