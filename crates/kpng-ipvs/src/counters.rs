//! What happened at frontends: IPVS counts connections, our tables count what they refuse.
//!
//! A virtual service that is made anew begins at 0. A firewall-mark service serves several frontends of
//! a service port: its connections count at one of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kpng_core::backend::{BackendError, Counts, Traffic};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::FrontendKey;
use kpng_linux::ipvs::{Ipvs as Kernel, ServiceKey};
use kpng_linux::nft::{Counted, OwnedTable, TableFamily, Tally};

use crate::names::{self, ORIGINS, Set};
use crate::render::{Claim, Spot};
use crate::spot_of;

/// The counts, shared by the backend and its readers.
#[derive(Debug)]
pub(crate) struct Counters(Mutex<Books>);

#[derive(Debug)]
struct Books {
    /// Connections of its own: readers are independent of the backend's owner.
    kernel: Kernel,
    refused: Tally,
    frontends: Frontends,
}

/// Where a frontend is: an address, or a mark, and by which claim.
pub(crate) type Place = (ServiceKey, Claim, FrontendKey);

/// Which frontend is where.
#[derive(Debug, Default)]
struct Frontends {
    /// By claim, the stronger first.
    at: HashMap<ServiceKey, [Option<FrontendKey>; 2]>,
    of: HashMap<NamespacedName, Vec<Place>>,
}

impl Frontends {
    fn remove(&mut self, service: &NamespacedName) {
        for (key, claim, _) in self.of.remove(service).into_iter().flatten() {
            if let Some(claims) = self.at.get_mut(&key) {
                claims[claim as usize] = None;
                if claims.iter().all(Option::is_none) {
                    self.at.remove(&key);
                }
            }
        }
    }

    fn insert(&mut self, service: &NamespacedName, places: Vec<Place>) {
        for (key, claim, frontend) in &places {
            self.at.entry(*key).or_default()[*claim as usize] = Some(*frontend);
        }
        if !places.is_empty() {
            self.of.insert(service.clone(), places);
        }
    }

    fn get(&self, key: &ServiceKey) -> Option<FrontendKey> {
        self.at.get(key)?.iter().flatten().next().copied()
    }
}

impl Counters {
    /// Of the network namespace of the calling thread.
    pub(crate) fn open() -> kpng_linux::Result<Self> {
        let sets = || Set::all().map(Set::def).collect();
        let tables = Family::ALL.map(|family| (names::table(family), sets()));
        let (kernel, refused) = (Kernel::open()?, Tally::open(tables)?);
        Ok(Self(Mutex::new(Books { kernel, refused, frontends: Frontends::default() })))
    }

    /// Changes a table, and keeps what the deleted elements had counted. Nobody reads meanwhile.
    pub(crate) fn keep(
        &self,
        table: &mut OwnedTable,
        change: impl FnOnce(&mut OwnedTable) -> kpng_linux::Result<()>,
    ) -> kpng_linux::Result<()> {
        let mut books = self.books();
        let result = change(table);
        books.refused.keep(table.taken());
        result
    }

    /// The frontends of these services are there now; with `all`, no others are.
    pub(crate) fn set(
        &self,
        all: bool,
        services: impl IntoIterator<Item = (NamespacedName, Vec<Place>)>,
    ) {
        let mut books = self.books();
        let Books { refused, frontends, .. } = &mut *books;
        if all {
            *frontends = Frontends::default();
        }
        // A frontend may move from one service to another: so first all go, then all come.
        let services: Vec<_> = services.into_iter().collect();
        services.iter().for_each(|(service, _)| frontends.remove(service));
        for (service, places) in services {
            frontends.insert(&service, places);
        }
        refused.retain(|counted| frontend(counted, frontends).is_some());
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traffic for Counters {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        let mut books = self.books();
        let Books { kernel, refused, frontends } = &mut *books;
        let none = Counts { connections: 0, rejected: Some(0), dropped: Some(0) };
        let there = frontends.at.values().filter_map(|claims| claims.iter().flatten().next());
        let mut all: HashMap<_, _> = there.map(|frontend| (*frontend, none)).collect();
        for (key, connections) in kernel.connections()? {
            if let Some(counts) = frontends.get(&key).and_then(|key| all.get_mut(&key)) {
                counts.connections += connections;
            }
        }
        refused.read(|counted, packets| {
            let key = frontend(counted, frontends);
            let Some(counts) = key.and_then(|key| all.get_mut(&key)) else { return };
            let is_rejected = ORIGINS.iter().any(|o| Set::Rejected(*o).name() == counted.set);
            let of = if is_rejected { &mut counts.rejected } else { &mut counts.dropped };
            *of.get_or_insert(0) += packets;
        })?;
        Ok(all.into_iter().collect())
    }
}

/// The frontend that an element of a counted set belongs to.
fn frontend(counted: &Counted, frontends: &Frontends) -> Option<FrontendKey> {
    let family = match counted.family {
        TableFamily::Ip => Family::V4,
        TableFamily::Ip6 => Family::V6,
    };
    let spot: Spot = spot_of(family, counted.key.as_slice())?;
    frontends.get(&spot.service_key())
}
