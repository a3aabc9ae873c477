//! What happened at frontends: the proxy counts connections, the kernel counts what it refuses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{BackendError, Counts, Traffic};
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Plan};
use kpng_linux::nft::{Bytes, Counted, OwnedTable, TableFamily, Tally};

use crate::names;
use crate::routes::Routes;

/// The counts, shared by the backend and its readers.
#[derive(Debug)]
pub(crate) struct Counters {
    routes: Arc<Routes>,
    refused: Mutex<Tally>,
}

impl Counters {
    /// Of the network namespace of the calling thread.
    pub(crate) fn open(routes: Arc<Routes>) -> kpng_linux::Result<Self> {
        let tables = Family::ALL.map(|family| (names::table(family), names::sets()));
        Ok(Self { routes, refused: Mutex::new(Tally::open(tables)?) })
    }

    /// Changes a table, and keeps what the deleted elements had counted at the frontends of `plan`.
    /// Nobody reads meanwhile.
    pub(crate) fn keep(
        &self,
        table: &mut OwnedTable,
        plan: &Plan,
        change: impl FnOnce(&mut OwnedTable) -> kpng_linux::Result<()>,
    ) -> kpng_linux::Result<()> {
        let mut refused = self.refused();
        let result = change(table);
        refused.keep(table.taken());
        let is_there = |key: FrontendKey| plan.owner(&key).is_some();
        refused.retain(|counted| frontend(counted).is_some_and(is_there));
        result
    }

    fn refused(&self) -> MutexGuard<'_, Tally> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic for Counters {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let connections = self.routes.connections().into_iter();
        let counts =
            |(key, connections)| (key, Counts { connections, rejected: Some(0), dropped: Some(0) });
        let mut all: HashMap<_, _> = connections.map(counts).collect();
        self.refused().read(|counted, packets| {
            let Some(counts) = frontend(counted).and_then(|key| all.get_mut(&key)) else { return };
            let is_rejected = [names::REJECTED, names::REJECTED_NODE_PORTS].contains(&counted.set);
            let of = if is_rejected { &mut counts.rejected } else { &mut counts.dropped };
            *of.get_or_insert(0) += packets;
        })?;
        Ok(all.into_iter().collect())
    }
}

/// The frontend that an element of a counted set belongs to. All but strangers are told by their origin
/// too, which stands at the end.
fn frontend(counted: &Counted) -> Option<FrontendKey> {
    let family = match counted.family {
        TableFamily::Ip => Family::V4,
        TableFamily::Ip6 => Family::V6,
    };
    let origin = if counted.set == names::STRANGERS { 0 } else { 4 };
    let key = counted.key.as_slice();
    let key = Bytes::from_slice(key.get(..key.len().checked_sub(origin)?)?)?;
    let (address, number, port) = key.destination()?;
    let at = address.map_or(At::NodePort(family), At::Vip);
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
    Some(FrontendKey { at, protocol, port })
}
