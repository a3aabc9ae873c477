//! The virtual services that the kernel holds for us, and what has to be done for them to be others.
//!
//! Connections are never cut to make a change: a destination that is not wanted any more gets the
//! weight 0, so it keeps the connections that it has, and goes when they have ended or a limit has
//! passed. So does a virtual service. UDP has no connections that could end: there it goes at once, and
//! the next packet finds another.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use kpng_core::model::Protocol;
use kpng_core::plan::Target;
use kpng_linux::ipvs::{Command, Destination, FoundDestination, Service, ServiceKey};

use crate::render::Virtual;

/// Commands, in two parts: what adds comes before packets are led to it, what takes away comes after.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Commands {
    pub(crate) grow: Vec<Command>,
    pub(crate) shrink: Vec<Command>,
}

/// How destinations come and go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The weight of each destination.
    pub(crate) weight: u32,
    /// How long a destination waits for the end of its connections at most.
    pub(crate) graceful_timeout: Duration,
}

/// A virtual service in the kernel.
#[derive(Clone, Debug)]
struct Held {
    service: Service,
    destinations: BTreeMap<Target, Place>,
    is_wanted: bool,
}

/// A destination in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    weight: u32,
    /// Since when it only waits for the end of its connections.
    draining: Option<Instant>,
}

/// What the kernel holds.
#[derive(Debug)]
pub(crate) struct Ledger {
    rules: Rules,
    held: BTreeMap<ServiceKey, Held>,
    /// How many services are at an address.
    at: HashMap<IpAddr, u32>,
    /// Services that have something to wait for.
    draining: BTreeSet<ServiceKey>,
    /// Wanted services that somebody else has: they are left alone.
    others: HashSet<ServiceKey>,
    /// Where the rounds of checking are.
    cursor: Option<ServiceKey>,
    /// Where the rounds of looking for ended connections are.
    draining_cursor: Option<ServiceKey>,
}

impl Ledger {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            held: BTreeMap::new(),
            at: HashMap::new(),
            draining: BTreeSet::new(),
            others: HashSet::new(),
            cursor: None,
            draining_cursor: None,
        }
    }

    /// Takes a service over that the kernel has. What `before` knows of waiting destinations is kept.
    pub(crate) fn adopt(
        &mut self,
        service: Service,
        destinations: &[FoundDestination],
        before: Option<&Self>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let key = service.key;
        let known = before.and_then(|before| before.held.get(&key));
        let mut places = BTreeMap::new();
        for found in destinations {
            let to = found.destination;
            if !found.is_translated {
                commands.grow.push(Command::DeleteDestination(key, to));
                continue;
            }
            let target = Target { address: to.address, port: to.port };
            let since = known.and_then(|held| held.destinations.get(&target)?.draining);
            let draining = (to.weight == 0).then(|| since.unwrap_or(now));
            places.insert(target, Place { weight: to.weight, draining });
        }
        self.insert(key, Held { service, destinations: places, is_wanted: false });
    }

    /// The service is somebody else's.
    pub(crate) fn leave(&mut self, key: ServiceKey) {
        self.others.insert(key);
    }

    /// Whether the service is ours, wanted or not.
    pub(crate) fn has(&self, key: ServiceKey) -> bool {
        self.held.contains_key(&key)
    }

    /// Whether a service is at the address, wanted or not.
    pub(crate) fn is_at(&self, address: IpAddr) -> bool {
        self.at.contains_key(&address)
    }

    /// Services that were taken over and are not wanted.
    pub(crate) fn unwanted(&self) -> Vec<ServiceKey> {
        self.held.iter().filter(|(_, held)| !held.is_wanted).map(|(key, _)| *key).collect()
    }

    /// Makes a service what it shall be.
    pub(crate) fn set(
        &mut self,
        key: ServiceKey,
        wanted: Option<&Virtual>,
        now: Instant,
        commands: &mut Commands,
    ) {
        if self.others.contains(&key) {
            return;
        }
        match (self.held.remove(&key), wanted) {
            (None, None) => {}
            (held, Some(wanted)) => {
                let held = self.change(key, held, wanted, now, commands);
                self.note(key, held);
            }
            (Some(mut held), None) => {
                held.is_wanted = false;
                let places = &mut held.destinations;
                if self.rules.waits(&key) {
                    drain(key, places, |_| false, now, &mut commands.shrink);
                } else {
                    places.clear();
                }
                if places.is_empty() {
                    commands.shrink.push(Command::DeleteService(key));
                    self.forget(key);
                } else {
                    self.note(key, held);
                }
            }
        }
    }

    fn change(
        &mut self,
        key: ServiceKey,
        held: Option<Held>,
        wanted: &Virtual,
        now: Instant,
        commands: &mut Commands,
    ) -> Held {
        let service = service(key, wanted);
        let mut held = match held {
            None => {
                commands.grow.push(Command::AddService(service.clone()));
                self.count(key);
                Held { service, destinations: BTreeMap::new(), is_wanted: true }
            }
            Some(mut held) => {
                if held.service != service {
                    commands.grow.push(Command::SetService(service.clone()));
                    held.service = service;
                }
                held
            }
        };
        held.is_wanted = true;
        let weight = self.rules.weight;
        for target in &*wanted.targets {
            let to = destination(target, weight);
            let place = Place { weight, draining: None };
            match held.destinations.insert(*target, place) {
                None => commands.grow.push(Command::AddDestination(key, to)),
                Some(before) if before.weight != weight => {
                    commands.grow.push(Command::SetDestination(key, to));
                }
                Some(_) => {}
            }
        }
        // Targets of a pool are sorted.
        let is_wanted = |target: &Target| wanted.targets.binary_search(target).is_ok();
        if self.rules.waits(&key) {
            drain(key, &mut held.destinations, is_wanted, now, &mut commands.shrink);
        } else {
            held.destinations.retain(|target, _| {
                let keep = is_wanted(target);
                if !keep {
                    let delete = Command::DeleteDestination(key, destination(target, 0));
                    commands.shrink.push(delete);
                }
                keep
            });
        }
        held
    }

    /// Services with destinations that wait for the end of their connections, up to `limit` of them,
    /// from where the last call ended.
    pub(crate) fn draining(&mut self, limit: usize) -> Vec<ServiceKey> {
        let after = self.draining_cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.draining.range((after, Bound::Unbounded));
        let keys: Vec<_> = behind.chain(&self.draining).copied().take(limit).collect();
        self.draining_cursor = keys.last().copied();
        // In a round that is smaller than the limit some come twice.
        Vec::from_iter(BTreeSet::from_iter(keys))
    }

    /// Lets go what has waited enough, given the destinations of a service as the kernel has them now.
    pub(crate) fn drained(
        &mut self,
        key: ServiceKey,
        found: &[FoundDestination],
        now: Instant,
        commands: &mut Commands,
    ) {
        let limit = self.rules.graceful_timeout;
        let Some(mut held) = self.held.remove(&key) else { return };
        let busy: HashSet<_> = found
            .iter()
            .filter(|found| found.connections > 0)
            .map(|found| (found.destination.address, found.destination.port))
            .collect();
        held.destinations.retain(|target, place| {
            let Some(since) = place.draining else { return true };
            let waits = busy.contains(&(target.address, target.port));
            if waits && now.saturating_duration_since(since) < limit {
                return true;
            }
            commands.shrink.push(Command::DeleteDestination(key, destination(target, 0)));
            false
        });
        if held.destinations.is_empty() && !held.is_wanted {
            commands.shrink.push(Command::DeleteService(key));
            self.forget(key);
        } else {
            self.note(key, held);
        }
    }

    /// The kernel did not take a destination.
    pub(crate) fn refused(&mut self, key: ServiceKey, target: &Target) {
        if let Some(held) = self.held.get_mut(&key) {
            held.destinations.remove(target);
        }
    }

    /// Whether these are all our services, as they shall be.
    pub(crate) fn agrees_with(&self, found: &[Service]) -> bool {
        let ours: Vec<_> = found.iter().filter(|service| service.tagged).collect();
        ours.len() == self.held.len()
            && ours
                .iter()
                .all(|found| self.held.get(&found.key).is_some_and(|held| held.service == **found))
    }

    /// The next services to look at, in rounds.
    pub(crate) fn next_to_check(&mut self, limit: usize) -> Vec<ServiceKey> {
        let after = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.held.range((after, Bound::Unbounded)).map(|(key, _)| key);
        let limit = limit.min(self.held.len());
        let keys: Vec<_> = behind.chain(self.held.keys()).copied().take(limit).collect();
        self.cursor = keys.last().copied();
        keys
    }

    /// Whether a service has these destinations.
    pub(crate) fn has_exactly(&self, key: ServiceKey, found: &[FoundDestination]) -> bool {
        let Some(held) = self.held.get(&key) else { return found.is_empty() };
        held.destinations.len() == found.len()
            && found.iter().all(|found| {
                let to = found.destination;
                let target = Target { address: to.address, port: to.port };
                let place = held.destinations.get(&target);
                found.is_translated && place.is_some_and(|place| place.weight == to.weight)
            })
    }

    fn insert(&mut self, key: ServiceKey, held: Held) {
        self.count(key);
        self.note(key, held);
    }

    fn note(&mut self, key: ServiceKey, held: Held) {
        if held.destinations.values().any(|place| place.draining.is_some()) || !held.is_wanted {
            self.draining.insert(key);
        } else {
            self.draining.remove(&key);
        }
        self.held.insert(key, held);
    }

    fn count(&mut self, key: ServiceKey) {
        if let ServiceKey::Address { address, .. } = key {
            *self.at.entry(address).or_default() += 1;
        }
    }

    fn forget(&mut self, key: ServiceKey) {
        self.draining.remove(&key);
        if let ServiceKey::Address { address, .. } = key
            && let Some(count) = self.at.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.at.remove(&address);
            }
        }
    }
}

impl Rules {
    /// Whether destinations of a service wait for the end of their connections.
    fn waits(&self, key: &ServiceKey) -> bool {
        let is_udp = |protocol: u8| protocol == Protocol::Udp.number();
        let udp = matches!(key, ServiceKey::Address { protocol, .. } if is_udp(*protocol));
        !udp && !self.graceful_timeout.is_zero()
    }
}

/// Gives what is not wanted the weight 0.
fn drain(
    key: ServiceKey,
    places: &mut BTreeMap<Target, Place>,
    is_wanted: impl Fn(&Target) -> bool,
    now: Instant,
    commands: &mut Vec<Command>,
) {
    for (target, place) in places.iter_mut().filter(|(target, _)| !is_wanted(target)) {
        if place.weight != 0 {
            commands.push(Command::SetDestination(key, destination(target, 0)));
        }
        *place = Place { weight: 0, draining: place.draining.or(Some(now)) };
    }
}

fn destination(target: &Target, weight: u32) -> Destination {
    Destination { address: target.address, port: target.port, weight }
}

fn service(key: ServiceKey, wanted: &Virtual) -> Service {
    let Virtual { scheduler, persistence, .. } = wanted;
    Service {
        key,
        scheduler: scheduler.clone(),
        persistence: *persistence,
        // Else clients of a destination that waits for its last connections would be refused.
        falls_back: matches!(&**scheduler, "sh" | "mh"),
        tagged: true,
    }
}
