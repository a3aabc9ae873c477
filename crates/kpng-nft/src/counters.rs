//! What the elements of frontends have counted, over all their lives.
//!
//! A frontend is counted as long as it is in a set of forwarded ones, and has all of its counts for as
//! long.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{BackendError, Counts, Traffic};
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Plan};
use kpng_linux::nft::{Batch, Counted, Nftables, TableFamily, Tally};

use crate::Error;
use crate::names::{self, Set};

/// The counts, shared by the backend and its readers.
#[derive(Debug)]
pub(crate) struct Counters(Mutex<Tally>);

impl Counters {
    /// Of the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Error> {
        // Forwarded ones come first in it.
        let sets = || Set::ALL.map(Set::def).to_vec();
        let tables = Family::ALL.map(|family| (names::table(family), sets()));
        Ok(Self(Mutex::new(Tally::open(tables)?)))
    }

    /// Commits, and keeps what the deleted elements had counted at the frontends of `counted`, if any
    /// are counted. Nobody reads meanwhile.
    pub(crate) fn commit(
        &self,
        nft: &mut Nftables,
        batch: Batch,
        counted: Option<&Plan>,
    ) -> Result<(), Error> {
        let mut tally = self.tally();
        let taken = nft.commit_and_take(batch)?;
        // A frontend does not go without its elements.
        if !taken.is_empty() {
            tally.keep(taken);
            let is_there =
                |key: FrontendKey| counted.is_some_and(|plan| plan.owner(&key).is_some());
            tally.retain(|counted| frontend(counted).is_some_and(is_there));
        }
        Ok(())
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic for Counters {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let forwarded = [Set::ForwardedServices, Set::ForwardedNodePorts].map(Set::name);
        let rejected = [Set::RejectedServices, Set::RejectedNodePorts].map(Set::name);
        let none = Counts { connections: 0, rejected: Some(0), dropped: Some(0) };
        let mut all: HashMap<_, Counts> = HashMap::new();
        self.tally().read(|counted, packets| {
            let Some(key) = frontend(counted) else { return };
            if forwarded.contains(&counted.set) {
                all.entry(key).or_insert(none).connections += packets;
            } else if let Some(counts) = all.get_mut(&key) {
                let is_rejected = rejected.contains(&counted.set);
                let of = if is_rejected { &mut counts.rejected } else { &mut counts.dropped };
                *of.get_or_insert(0) += packets;
            }
        })?;
        Ok(all.into_iter().collect())
    }
}

/// The frontend that an element of a counted set belongs to: the reverse of
/// [`crate::render::frontend_key`].
fn frontend(counted: &Counted) -> Option<FrontendKey> {
    let family = match counted.family {
        TableFamily::Ip => Family::V4,
        TableFamily::Ip6 => Family::V6,
    };
    let (address, number, port) = counted.key.destination()?;
    let at = address.map_or(At::NodePort(family), At::Vip);
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
    Some(FrontendKey { at, protocol, port })
}
