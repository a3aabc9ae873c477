//! What happened at frontends: the proxy counts connections, the kernel counts what it refuses.
//!
//! An element that goes takes its counter along: what those that went had counted is kept here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{BackendError, Counts, Traffic};
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Plan};
use kpng_linux::nft::{Bytes, Nftables, OwnedTable, TableFamily};

use crate::names;
use crate::routes::Routes;

/// The counts, shared by the backend and its readers.
#[derive(Debug)]
pub(crate) struct Counters {
    routes: Arc<Routes>,
    refused: Mutex<Refused>,
}

#[derive(Debug)]
struct Refused {
    /// A connection of its own: readers are independent of the backend's owner.
    nft: Nftables,
    /// What elements that went had counted, at frontends that are there.
    carried: HashMap<FrontendKey, Packets>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Packets {
    rejected: u64,
    dropped: u64,
}

impl Packets {
    fn add(&mut self, set: &str, packets: u64) {
        let is_rejected = [names::REJECTED, names::REJECTED_NODE_PORTS].contains(&set);
        *if is_rejected { &mut self.rejected } else { &mut self.dropped } += packets;
    }
}

impl Counters {
    /// Of the network namespace of the calling thread.
    pub(crate) fn open(routes: Arc<Routes>) -> kpng_linux::Result<Self> {
        let refused = Refused { nft: Nftables::open()?, carried: HashMap::new() };
        Ok(Self { routes, refused: Mutex::new(refused) })
    }

    /// Changes the table, and keeps what the deleted elements had counted at the frontends of `plan`.
    /// Nobody reads meanwhile.
    pub(crate) fn keep(
        &self,
        table: &mut OwnedTable,
        plan: &Plan,
        change: impl FnOnce(&mut OwnedTable) -> kpng_linux::Result<()>,
    ) -> kpng_linux::Result<()> {
        let mut refused = self.refused();
        let result = change(table);
        for taken in table.taken() {
            let Some(key) = frontend(family(taken.family), &taken.set, &taken.key) else {
                continue;
            };
            if plan.owner(&key).is_some() {
                refused.carried.entry(key).or_default().add(&taken.set, taken.packets);
            }
        }
        refused.carried.retain(|key, _| plan.owner(key).is_some());
        result
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic for Counters {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let mut packets = HashMap::new();
        for family in Family::ALL {
            self.refused().read(family, &mut packets)?;
        }
        let counts = |(key, connections)| {
            let Packets { rejected, dropped } = packets.get(&key).copied().unwrap_or_default();
            (key, Counts { connections, rejected: Some(rejected), dropped: Some(dropped) })
        };
        Ok(self.routes.connections().into_iter().map(counts).collect())
    }
}

impl Refused {
    fn read(
        &mut self,
        of: Family,
        packets: &mut HashMap<FrontendKey, Packets>,
    ) -> kpng_linux::Result<()> {
        let table = names::table(of);
        if !self.nft.tables(table.family)?.contains(&table.name) {
            return Ok(());
        }
        packets.extend(self.carried.iter().filter(|(key, _)| key.at.family() == of));
        for set in names::sets().iter().filter(|set| set.counted) {
            for (key, count) in self.nft.counters(&table, set)? {
                if let Some(key) = frontend(of, set.name, &key) {
                    packets.entry(key).or_default().add(set.name, count);
                }
            }
        }
        Ok(())
    }
}

fn family(family: TableFamily) -> Family {
    match family {
        TableFamily::Ip => Family::V4,
        TableFamily::Ip6 => Family::V6,
    }
}

/// The frontend that an element of a counted set belongs to. All but strangers are told by their origin
/// too, which stands at the end.
fn frontend(family: Family, set: &str, key: &Bytes) -> Option<FrontendKey> {
    let origin = if set == names::STRANGERS { 0 } else { 4 };
    let key = key.as_slice();
    let key = key.get(..key.len().checked_sub(origin)?)?;
    let (address, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let at = match address.len() {
        0 => At::NodePort(family),
        4 => At::Vip(IpAddr::from(<[u8; 4]>::try_from(address).ok()?)),
        16 => At::Vip(IpAddr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == rest[0])?;
    Some(FrontendKey { at, protocol, port: u16::from_be_bytes([rest[4], rest[5]]) })
}
