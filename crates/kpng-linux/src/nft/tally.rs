//! What elements of counted sets have counted, over all their lives.
//!
//! An element that goes takes its counter along. What it had counted is kept here for as long as its
//! owner says, and added to what an element with the same key counts later.

use std::collections::HashMap;

use super::{Bytes, Nftables, SetDef, Table, TableFamily, Taken};
use crate::error::Result;

/// Packets that elements of counted sets have counted.
#[derive(Debug)]
pub struct Tally {
    /// A connection of its own: who reads is independent of who writes the tables.
    nft: Nftables,
    tables: Vec<(Table, Vec<SetDef>)>,
    carried: HashMap<Counted, u64>,
}

/// What counts: an element, by the family of its table, its set and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    /// The family of the table.
    pub family: TableFamily,
    /// The name of the set.
    pub set: &'static str,
    /// The key.
    pub key: Bytes,
}

impl Tally {
    /// Of these tables, each of another family; of their sets, those that are counted. In the network
    /// namespace of the calling thread.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel has no netfilter netlink.
    pub fn open(tables: impl IntoIterator<Item = (Table, Vec<SetDef>)>) -> Result<Self> {
        let mut tables: Vec<_> = tables.into_iter().collect();
        tables.iter_mut().for_each(|(_, sets)| sets.retain(|set| set.counted));
        Ok(Self { nft: Nftables::open()?, tables, carried: HashMap::new() })
    }

    /// Keeps what deleted elements had counted.
    pub fn keep(&mut self, taken: Vec<Taken>) {
        for Taken { family, set, key, packets } in taken {
            let of_family = self.tables.iter().filter(|(table, _)| table.family == family);
            let mut sets = of_family.flat_map(|(_, sets)| sets);
            if let Some(def) = sets.find(|def| def.name == set) {
                *self.carried.entry(Counted { family, set: def.name, key }).or_default() += packets;
            }
        }
    }

    /// Forgets what deleted elements had counted that belong to nobody any more. Looks at all that is kept.
    pub fn retain(&mut self, belongs: impl Fn(&Counted) -> bool) {
        self.carried.retain(|counted, _| belongs(counted));
    }

    /// Gives all counts to `visit`, those of one element perhaps in two parts. Nobody changes the tables
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Nftables::counters`].
    pub fn read(&mut self, mut visit: impl FnMut(&Counted, u64)) -> Result<()> {
        for (table, sets) in &self.tables {
            let family = table.family;
            if !self.nft.tables(family)?.contains(&table.name) {
                continue;
            }
            for set in sets {
                for (key, packets) in self.nft.counters(table, set)? {
                    visit(&Counted { family, set: set.name, key }, packets);
                }
            }
        }
        self.carried.iter().for_each(|(counted, packets)| visit(counted, *packets));
        Ok(())
    }
}
