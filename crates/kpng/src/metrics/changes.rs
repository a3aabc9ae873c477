//! How many changes of the cluster's objects an update carries.

use std::fmt::Debug;

use kpng_core::local::{LocalService, Localize};
use kpng_core::model::ServiceState;
use kpng_core::store::{Change, Update};

/// What a store holds for each Service, where its changes can be counted.
pub trait Counted: Localize + Debug {
    /// How many changes of Services, and of endpoints, this one is.
    fn count(change: &Change<Self>) -> (u64, u64)
    where
        Self: Sized;
}

/// Each EndpointSlice counts.
impl Counted for ServiceState {
    fn count(change: &Change<Self>) -> (u64, u64) {
        let [old, new] = [&change.old, &change.new].map(Option::as_deref);
        let service = |state: Option<&Self>| state.and_then(|state| state.service.clone());
        let services = u64::from(service(old) != service(new));
        let [old, new] = [old, new].map(|state| state.map_or(&[][..], |state| &state.slices));
        let lacks = |all: &[_], slice| !all.contains(slice);
        let put = new.iter().filter(|slice| lacks(old, slice)).count();
        let named = |name| new.iter().any(|(other, _)| other == name);
        let deleted = old.iter().filter(|(name, _)| !named(name)).count();
        (services, (put + deleted) as u64)
    }
}

/// Nothing is known of slices: all endpoints of a Service count as one.
impl Counted for LocalService {
    fn count(change: &Change<Self>) -> (u64, u64) {
        let [old, new] = [&change.old, &change.new].map(Option::as_deref);
        let [old_service, new_service] = [old, new].map(|local| local.map(|local| &local.service));
        let [old, new] = [old, new].map(|local| local.map_or(&[][..], |local| &local.endpoints));
        (u64::from(old_service != new_service), u64::from(old != new))
    }
}

/// How many changes of Services, and of endpoints, an update carries.
pub fn count_changes<V: Counted>(update: &Update<V>) -> (u64, u64) {
    let counts = update.services.iter().map(|(_, change)| V::count(change));
    counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}
