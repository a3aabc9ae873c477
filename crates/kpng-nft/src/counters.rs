//! What the elements of frontends have counted, over all their lives.
//!
//! An element that goes takes its counter along, and one that comes back begins at 0: what those that
//! went had counted is kept here, so the sum is that of the frontend's life.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{BackendError, Counts, Traffic};
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Plan};
use kpng_linux::nft::{Batch, Bytes, Nftables, TableFamily, Taken};

use crate::Error;
use crate::names::{self, Set};

/// The counts, shared by the backend and its readers.
#[derive(Debug)]
pub(crate) struct Counters(Mutex<Books>);

#[derive(Debug)]
struct Books {
    /// A connection of its own: readers are independent of the backend's owner.
    nft: Nftables,
    /// What elements that went had counted. Only for frontends that are there.
    carried: HashMap<FrontendKey, Sums>,
}

/// Packets by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    forwarded: u64,
    rejected: u64,
    dropped: u64,
}

/// What it means to be found in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Forwarded,
    Rejected,
    Dropped,
}

/// The counted sets. Those that tell which frontends are counted come first: a count that is read
/// later is never smaller.
const COUNTED: [(Set, Meaning); 7] = [
    (Set::ForwardedServices, Meaning::Forwarded),
    (Set::ForwardedNodePorts, Meaning::Forwarded),
    (Set::RejectedServices, Meaning::Rejected),
    (Set::RejectedNodePorts, Meaning::Rejected),
    (Set::DroppedServices, Meaning::Dropped),
    (Set::DroppedNodePorts, Meaning::Dropped),
    (Set::GuardedServices, Meaning::Dropped),
];

impl Counters {
    /// Of the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self(Mutex::new(Books { nft: Nftables::open()?, carried: HashMap::new() })))
    }

    /// Commits, and keeps what the deleted elements had counted at the frontends of `plan`. Nobody
    /// reads meanwhile.
    pub(crate) fn commit(
        &self,
        nft: &mut Nftables,
        batch: Batch,
        plan: &Plan,
    ) -> Result<(), Error> {
        let mut books = self.books();
        let taken = nft.commit_and_take(batch)?;
        books.keep(&taken);
        for (key, _) in taken.iter().filter_map(frontend_of) {
            if plan.owner(&key).is_none() {
                books.carried.remove(&key);
            }
        }
        Ok(())
    }

    /// Counting is off, or began just now.
    pub(crate) fn forget(&self) {
        self.books().carried = HashMap::new();
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic for Counters {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let mut all = Vec::new();
        for family in Family::ALL {
            // Between the two the backend may go on.
            all.extend(self.books().read(family)?);
        }
        Ok(all)
    }
}

impl Books {
    fn keep(&mut self, taken: &[Taken]) {
        for one in taken.iter().filter(|one| one.packets > 0) {
            if let Some((key, meaning)) = frontend_of(one) {
                self.carried.entry(key).or_default().add(meaning, one.packets);
            }
        }
    }

    fn read(&mut self, family: Family) -> Result<BTreeMap<FrontendKey, Counts>, Error> {
        let table = names::table(family);
        let mut sums = BTreeMap::new();
        if !self.nft.tables(table.family)?.contains(&table.name) {
            return Ok(BTreeMap::new());
        }
        for (set, meaning) in COUNTED {
            if meaning != Meaning::Forwarded && sums.is_empty() {
                break; // counting is off
            }
            for (key, packets) in self.nft.counters(&table, &set.def())? {
                let Some(key) = frontend_key(family, &key) else { continue };
                if meaning == Meaning::Forwarded {
                    sums.insert(key, self.carried.get(&key).copied().unwrap_or_default());
                }
                // Others are not counted, or were on their way out.
                if let Some(sums) = sums.get_mut(&key) {
                    sums.add(meaning, packets);
                }
            }
        }
        Ok(sums.into_iter().map(|(key, sums)| (key, sums.into())).collect())
    }
}

impl Sums {
    fn add(&mut self, meaning: Meaning, packets: u64) {
        *match meaning {
            Meaning::Forwarded => &mut self.forwarded,
            Meaning::Rejected => &mut self.rejected,
            Meaning::Dropped => &mut self.dropped,
        } += packets;
    }
}

impl From<Sums> for Counts {
    fn from(sums: Sums) -> Self {
        Self {
            connections: sums.forwarded,
            rejected: Some(sums.rejected),
            dropped: Some(sums.dropped),
        }
    }
}

/// The frontend that a deleted element belonged to, and what it had counted.
fn frontend_of(taken: &Taken) -> Option<(FrontendKey, Meaning)> {
    let family = match taken.family {
        TableFamily::Ip => Family::V4,
        TableFamily::Ip6 => Family::V6,
    };
    let (_, meaning) = COUNTED.into_iter().find(|(set, _)| set.name() == taken.set)?;
    Some((frontend_key(family, &taken.key)?, meaning))
}

/// The frontend that an element with this key belongs to: the reverse of [`crate::render::frontend_key`].
fn frontend_key(family: Family, key: &Bytes) -> Option<FrontendKey> {
    let (address, rest) = key.as_slice().split_at_checked(key.as_slice().len().checked_sub(8)?)?;
    let at = match address.len() {
        0 => At::NodePort(family),
        4 => At::Vip(IpAddr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => At::Vip(IpAddr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == rest[0])?;
    Some(FrontendKey { at, protocol, port: u16::from_be_bytes([rest[4], rest[5]]) })
}
