//! Random states of a cluster, one after the other, and every packet that matters: what becomes of it by
//! the virtual services, addresses and elements that were written is what the plan decides.
//!
//! The rules are constant, and real packets test them (`tests/kernel.rs`); here they are written down
//! once more, as a program.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{NodeFacts, Origin, Packet, Plan, Target, Verdict};
use kpng_linux::ipvs::{Command, ServiceKey};
use kpng_linux::nft::{Bytes, Element, Value};
use kpng_testkit::cases::CASES;
use kpng_testkit::conformance::{all_services, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::random::cluster;
use proptest::prelude::*;

use crate::Config;
use crate::ledger::{Ledger, Rules};
use crate::names::Set;
use crate::render::{self, Spot};
use crate::state::{FoundMarks, State, Work};

const SOURCES: [&str; 7] = ["pod1", "pod2", "remote1", "client", "blocked", "node", "node-alt"];
const DESTINATIONS: [&str; 10] = [
    "cluster.1",
    "cluster.2",
    "cluster.50",
    "lb.1",
    "lb.2",
    "ext.1",
    "node",
    "node-alt",
    "pod1",
    "client",
];
const PORTS: [u16; 6] = [80, 81, 8080, 30_001, 30_002, 30_003];

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Pass,
    Reject,
    Drop,
    Forward { target: Target, masquerade: bool },
}

/// A kernel as it is after all that was written.
#[derive(Debug, Default)]
struct Kernel {
    facts: Arc<NodeFacts>,
    elements: HashMap<(Set, Bytes), (Element, usize)>,
    services: BTreeMap<ServiceKey, BTreeMap<Target, u32>>,
    addresses: BTreeSet<IpAddr>,
}

impl Kernel {
    fn write(&mut self, work: Work) {
        work.commands.grow.iter().for_each(|command| self.command(command));
        for (_, set, element) in work.remove {
            let key = (set, element.key);
            let (_, owners) = self.elements.get_mut(&key).expect("what is removed is there");
            *owners -= 1;
            if *owners == 0 {
                self.elements.remove(&key);
            }
        }
        for (_, set, element) in work.add {
            let entry = self.elements.entry((set, element.key));
            let (held, owners) = entry.or_insert_with(|| (element.clone(), 0));
            (*held, *owners) = (element, *owners + 1);
        }
        for address in work.bind {
            assert!(self.addresses.insert(address), "{address} is there already");
        }
        work.commands.shrink.iter().for_each(|command| self.command(command));
        for address in work.unbind {
            assert!(self.addresses.remove(&address), "{address} is not there");
        }
    }

    /// Does what the kernel does, which refuses what makes no sense.
    fn command(&mut self, command: &Command) {
        let target =
            |to: &kpng_linux::ipvs::Destination| Target { address: to.address, port: to.port };
        match command {
            Command::AddService(service) => {
                assert!(self.services.insert(service.key, BTreeMap::new()).is_none(), "{command}");
            }
            Command::SetService(service) => drop(self.of(&service.key).len()),
            Command::DeleteService(key) => drop(self.services.remove(key).expect("it is there")),
            Command::AddDestination(key, to) => {
                assert!(self.of(key).insert(target(to), to.weight).is_none(), "{command}");
            }
            Command::SetDestination(key, to) => {
                assert!(self.of(key).insert(target(to), to.weight).is_some(), "{command}");
            }
            Command::DeleteDestination(key, to) => {
                assert!(self.of(key).remove(&target(to)).is_some(), "{command}");
            }
        }
    }

    fn of(&mut self, key: &ServiceKey) -> &mut BTreeMap<Target, u32> {
        self.services.get_mut(key).unwrap_or_else(|| panic!("there is no {key}"))
    }

    fn has(&self, set: Set, key: Bytes) -> bool {
        self.elements.contains_key(&(set, key))
    }

    /// What becomes of a packet.
    fn trace(&self, packet: &Packet<'_>) -> BTreeSet<Fate> {
        let Packet { destination, protocol, port, source, .. } = *packet;
        let spot = Spot { address: destination, protocol, port };
        let origin = self.facts.origin(packet);
        let nodes = ["node", "node-alt"].map(|name| address(name, Family::of(destination)));
        if !self.addresses.contains(&destination) && !nodes.contains(&destination) {
            return [self.closed(&spot).unwrap_or(Fate::Pass)].into();
        }
        if let Some(refused) = self.refused(&spot, source, origin) {
            return [refused].into();
        }
        let (mut key, mut masquerade) = (spot.service_key(), false);
        if self.has(Set::Masqueraded(origin), spot.key()) {
            masquerade = true;
        }
        if let Some((element, _)) = self.elements.get(&(Set::Marks(origin), spot.key())) {
            let Value::Data(mark) = element.value else { panic!("{element:?}") };
            let mark = u32::from_ne_bytes(mark.as_slice().try_into().unwrap());
            let family = render::kernel_family(Family::of(destination));
            key = ServiceKey::Mark { family, mark };
            masquerade = mark & Config::default().masquerade_mark() != 0;
        }
        let Some(targets) = self.services.get(&key).filter(|_| self.is_open(&spot)) else {
            return [Fate::Pass].into();
        };
        let to_service = |set| self.has(set, Bytes::EMPTY.address(destination));
        let ours = to_service(Set::ServiceIps) || to_service(Set::NodeIps);
        let fate = |target: &Target| {
            let itself = Bytes::EMPTY.address(source).address(target.address);
            let hairpin = ours && self.has(Set::Hairpin, itself);
            Fate::Forward { target: *target, masquerade: masquerade || hairpin }
        };
        targets.iter().filter(|(_, weight)| **weight > 0).map(|(target, _)| fate(target)).collect()
    }

    fn refused(&self, spot: &Spot, source: IpAddr, origin: Origin) -> Option<Fate> {
        let permits = |(set, first): &(Set, Bytes), element: &Element| {
            let who = spot.key().address(source);
            *set == Set::SourceRanges && *first <= who && element.last.is_some_and(|l| who <= l)
        };
        let permitted = || self.elements.iter().any(|(key, (element, _))| permits(key, element));
        if self.has(Set::Guarded, spot.key()) && !permitted() {
            return Some(Fate::Drop);
        }
        if self.has(Set::Rejected(origin), spot.key()) {
            return Some(Fate::Reject);
        }
        if self.has(Set::Dropped(origin), spot.key()) {
            return Some(Fate::Drop);
        }
        self.closed(spot)
    }

    fn is_open(&self, spot: &Spot) -> bool {
        self.has(Set::Services, spot.key())
    }

    fn closed(&self, spot: &Spot) -> Option<Fate> {
        let is_service = |cidr: &ipnet::IpNet| cidr.contains(&spot.address);
        if self.is_open(spot) {
            None
        } else if self.has(Set::ClusterIps, Bytes::EMPTY.address(spot.address)) {
            Some(Fate::Reject)
        } else {
            self.facts.service_cidrs.iter().any(is_service).then_some(Fate::Drop)
        }
    }
}

fn packets() -> impl Iterator<Item = Packet<'static>> {
    let all = Family::ALL.into_iter().flat_map(|family| {
        SOURCES.into_iter().flat_map(move |source| {
            DESTINATIONS.into_iter().flat_map(move |destination| {
                [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(move |protocol| {
                    PORTS.map(|port| (family, source, destination, protocol, port))
                })
            })
        })
    });
    all.map(|(family, source, destination, protocol, port)| {
        let from_node = source.starts_with("node");
        let interface = if source.starts_with("pod") { "veth-pod" } else { "eth0" };
        Packet {
            source: address(source, family),
            interface: (!from_node).then_some(interface),
            from_node,
            destination: address(destination, family),
            protocol,
            port,
        }
    })
}

fn expected(plan: &Plan, packet: &Packet<'_>) -> BTreeSet<Fate> {
    let verdict = plan.decide(packet);
    match verdict {
        Verdict::Pass => [Fate::Pass].into(),
        Verdict::Reject => [Fate::Reject].into(),
        Verdict::Drop => [Fate::Drop].into(),
        Verdict::Forward { pool, .. } => {
            let masquerade = |target| verdict.masquerades(packet, target);
            let fate = |target| Fate::Forward { target, masquerade: masquerade(target) };
            pool.targets.iter().map(|target| fate(*target)).collect()
        }
    }
}

/// Writes one state after the other.
fn check(clusters: &[&str]) {
    let config = Config::default();
    let (now, mut kernel) = (Instant::now(), Kernel::default());
    let mut before: Option<(State, Plan)> = None;
    for (number, cluster) in clusters.iter().enumerate() {
        let planner = plan_of(cluster);
        let plan = planner.plan();
        let state = match before.take() {
            Some((mut state, old)) if old.facts() == plan.facts() => {
                let changed = all_services(&old, plan);
                let services = changed.iter().map(|key| (key, plan.service(key)));
                kernel.write(state.change(services, now));
                state
            }
            _ => {
                // Facts that changed are a start on a node that has nothing, here.
                kernel = Kernel { facts: Arc::clone(plan.facts()), ..Kernel::default() };
                let rules = Rules { graceful_timeout: Duration::from_secs(9), ..config.rules() };
                let (ledger, none) = (Ledger::new(rules), BTreeSet::new);
                let mut state = State::new(&config, plan.facts(), ledger, none(), none());
                kernel.write(state.fill(plan.by_importance(), FoundMarks::new(), now));
                state
            }
        };
        for packet in packets() {
            let (found, expected) = (kernel.trace(&packet), expected(plan, &packet));
            assert_eq!(found, expected, "state {number} of {clusters:#?}: {packet:?}");
        }
        before = Some((state, plan.clone()));
    }
    // When all is gone, nothing is left but what waits for its connections.
    if let Some((mut state, old)) = before {
        let keys: Vec<_> = old.services().keys().collect();
        kernel.write(state.change(keys.into_iter().map(|key| (key, None)), now));
        let mut work = Work::default();
        for key in state.ledger.draining(usize::MAX / 2) {
            state.ledger.drained(key, &[], now, &mut work.commands);
            state.settle_unused_address(key, &mut work);
        }
        kernel.write(work);
        assert!(kernel.elements.is_empty(), "{:?}", kernel.elements);
        assert!(kernel.services.is_empty() && kernel.addresses.is_empty(), "{kernel:?}");
    }
}

#[test]
fn cases_are_traced_as_planned_from_each_to_the_next() {
    let clusters: Vec<_> = CASES.iter().map(|case| case.cluster).collect();
    check(&clusters);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_are_traced_as_planned(
        clusters in proptest::collection::vec(cluster(), 1..4),
        node in cluster(),
    ) {
        // The facts of one, so that what follows is written as changes.
        let facts = node.lines().next().unwrap_or_default().to_owned();
        let services = |cluster: &String| cluster.split_once('\n').map_or("", |(_, rest)| rest).to_owned();
        let clusters: Vec<_> =
            clusters.iter().map(|cluster| format!("{facts}\n{}", services(cluster))).collect();
        check(&clusters.iter().map(String::as_str).collect::<Vec<_>>());
    }
}
