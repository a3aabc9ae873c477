//! Properties of the store, its readers and the planner, whatever is written and however slowly it
//! is read: what arrives by differences is what the contents are, computed from nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::local::{Place, Vantage, Vantages, localize};
use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, Family, LoadBalancerIp, NamespacedName, Node, Protocol,
    Service, ServicePort, ServiceState, SlicePort, TargetPort, TrafficPolicy,
};
use kpng_core::plan::{
    Changes, Conflict, FrontendKey, NodeFacts, Packet, Plan, Planner, PodDetection, ServicePlan,
    Verdict, Warning,
};
use kpng_core::store::{Batch, Kind, Reader, Store, Update, Writer};
use kpng_testkit::fixture::address;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// The node that is planned for; it is one of the nodes that come and go.
const HERE: &str = "node-0";
/// How many services, slices and nodes there can be. Few, so that they meet.
const NAMES: u8 = 4;

#[derive(Clone, Debug)]
enum Write {
    Service(u8, Option<Service>),
    Slice(u8, Option<(u8, EndpointSlice)>),
    Node(u8, Option<Node>),
    RetainServices(BTreeSet<u8>),
    RetainSlices(BTreeSet<u8>),
    RetainNodes(BTreeSet<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Write>),
    Read(usize),
    Facts(usize, NodeFacts),
    Rewind(usize),
}

/// What a history starts with and what happens.
#[derive(Clone, Debug)]
struct History {
    journal: usize,
    before_sync: Vec<Vec<Write>>,
    steps: Vec<Step>,
}

const READERS: usize = 3;

fn key(kind: &str, number: u8) -> NamespacedName {
    NamespacedName::new("t", format!("{kind}-{number}"))
}

fn node_name(number: u8) -> Arc<str> {
    format!("node-{number}").into()
}

fn policy() -> impl Strategy<Value = TrafficPolicy> + Clone {
    select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..])
}

fn addresses(names: &'static [&'static str]) -> impl Strategy<Value = Vec<std::net::IpAddr>> {
    let both = |name: &str| Family::ALL.map(|family| address(name, family)).to_vec();
    let one = |name: &str| vec![address(name, Family::V4)];
    (select(names), any::<bool>()).prop_map(move |(name, dual)| match name {
        "" => Vec::new(),
        name if dual => both(name),
        name => one(name),
    })
}

fn service() -> impl Strategy<Value = Service> {
    let port = (select(&Protocol::ALL[..2]), 80_u16..82, option::of(30_001_u16..30_003));
    let ports = vec(port, 1..3).prop_map(|ports| {
        let port = |(index, (protocol, port, node_port))| ServicePort {
            name: format!("p{index}").into(),
            protocol,
            port,
            node_port,
            target_port: TargetPort::Unset,
        };
        ports.into_iter().enumerate().map(port).collect::<Vec<_>>()
    });
    let ranges = select(&[None, Some("203.0.113.0/25"), Some("2001:db8::/32")][..]);
    (
        addresses(&["", "cluster.1", "cluster.2"]),
        addresses(&["", "", "ext.1"]),
        addresses(&["", "lb.1"]),
        ports,
        (policy(), policy()),
        ranges,
        option::of(0_i64..3),
        option::of(Just(Duration::from_secs(10))),
    )
        .prop_map(
            |(
                cluster,
                external,
                lb,
                ports,
                (internal_policy, external_policy),
                ranges,
                created,
                affinity,
            )| {
                let range = |range: &str| range.parse::<IpNet>().unwrap();
                Service {
                    cluster_ips: cluster,
                    external_ips: external,
                    load_balancer_ips: lb
                        .into_iter()
                        .map(|ip| LoadBalancerIp { ip, proxied: false })
                        .collect(),
                    load_balancer_source_ranges: ranges.map(|text| vec![range(text)]),
                    ports,
                    internal_traffic_policy: internal_policy,
                    external_traffic_policy: external_policy,
                    session_affinity: affinity,
                    health_check_node_port: Some(32_000),
                    created,
                    ..Service::default()
                }
            },
        )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let conditions = select(
        &[
            Conditions::READY,
            Conditions::READY,
            Conditions { ready: false, serving: true, terminating: true },
            Conditions { ready: false, serving: false, terminating: false },
        ][..],
    );
    let zones = select(vec![&[] as &[&str], &["a"], &["b"], &["a", "b"]]);
    let nodes = select(vec![&[] as &[u8], &[], &[0], &[1], &[0, 2]]);
    let endpoint = (0_u8..4, 0_u8..2, any::<bool>(), conditions, zones, nodes).prop_map(
        |(number, node, v6, conditions, zones, nodes)| {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let mut endpoint = Endpoint::at(address(&format!("pod{number}"), family));
            endpoint.node = Some(node_name(node));
            endpoint.conditions = conditions;
            endpoint.zone_hints = zones.iter().copied().map(Arc::from).collect();
            endpoint.node_hints = nodes.iter().copied().map(node_name).collect();
            endpoint
        },
    );
    let ports = vec((0_u8..2, select(&Protocol::ALL[..2]), 8080_u16..8082), 1..3);
    (vec(endpoint, 0..4), ports).prop_map(|(endpoints, ports)| {
        let port =
            |(name, protocol, port)| SlicePort { name: format!("p{name}").into(), protocol, port };
        EndpointSlice { endpoints, ports: ports.into_iter().map(port).collect() }
    })
}

fn node() -> impl Strategy<Value = Node> {
    select(&[None, Some("a"), Some("b")][..])
        .prop_map(|zone| Node { zone: zone.map(Arc::from), ..Node::default() })
}

fn write() -> impl Strategy<Value = Write> {
    let some = || btree_set(0..NAMES, 0..5);
    prop_oneof![
        6 => (0..NAMES, service()).prop_map(|(name, value)| Write::Service(name, Some(value))),
        1 => (0..NAMES).prop_map(|name| Write::Service(name, None)),
        6 => (0..NAMES, 0..NAMES, slice()).prop_map(|(name, owner, value)| Write::Slice(name, Some((owner, value)))),
        1 => (0..NAMES).prop_map(|name| Write::Slice(name, None)),
        2 => (0..NAMES, node()).prop_map(|(name, value)| Write::Node(name, Some(value))),
        1 => (0..NAMES).prop_map(|name| Write::Node(name, None)),
        1 => some().prop_map(Write::RetainServices),
        1 => some().prop_map(Write::RetainSlices),
        1 => some().prop_map(Write::RetainNodes),
    ]
}

fn facts() -> impl Strategy<Value = NodeFacts> {
    let pods = select(vec![PodDetection::None, PodDetection::InterfacePrefix("veth".into())]);
    (pods, any::<bool>(), any::<bool>()).prop_map(|(pods, masquerade_all, primary)| NodeFacts {
        pods,
        masquerade_all,
        primary_ips: if primary { vec!["203.0.113.7".parse().unwrap()] } else { Vec::new() },
        node_port_addresses: Family::ALL.map(|family| address("node", family)).into(),
        ..NodeFacts::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(write(), 1..4).prop_map(Step::Write),
        4 => (0..READERS).prop_map(Step::Read),
        1 => (0..READERS, facts()).prop_map(|(reader, facts)| Step::Facts(reader, facts)),
        1 => (0..READERS).prop_map(Step::Rewind),
    ]
}

fn history() -> impl Strategy<Value = History> {
    let journal = select(&[0_usize, 1, 2, 5, 4096][..]);
    (journal, vec(vec(write(), 0..4), 0..3), vec(step(), 0..30))
        .prop_map(|(journal, before_sync, steps)| History { journal, before_sync, steps })
}

/// The objects as they were written, and the state that they make, computed from nothing.
#[derive(Clone, Debug, Default)]
struct Objects {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<u8, (u8, EndpointSlice)>,
    nodes: BTreeMap<u8, Node>,
}

type Contents = (BTreeMap<NamespacedName, Arc<ServiceState>>, BTreeMap<Arc<str>, Arc<Node>>);

fn put<T: Clone>(into: &mut BTreeMap<u8, T>, name: u8, value: Option<&T>) {
    match value {
        Some(value) => into.insert(name, value.clone()),
        None => into.remove(&name),
    };
}

impl Objects {
    fn write(&mut self, write: &Write) {
        match write {
            Write::Service(name, value) => put(&mut self.services, *name, value.as_ref()),
            Write::Slice(name, value) => put(&mut self.slices, *name, value.as_ref()),
            Write::Node(name, value) => put(&mut self.nodes, *name, value.as_ref()),
            Write::RetainServices(names) => self.services.retain(|name, _| names.contains(name)),
            Write::RetainSlices(names) => self.slices.retain(|name, _| names.contains(name)),
            Write::RetainNodes(names) => self.nodes.retain(|name, _| names.contains(name)),
        }
    }

    fn contents(&self) -> Contents {
        let mut services: BTreeMap<NamespacedName, ServiceState> = BTreeMap::new();
        for (name, service) in &self.services {
            services.entry(key("service", *name)).or_default().service =
                Some(Arc::new(service.clone()));
        }
        for (name, (owner, slice)) in &self.slices {
            let state = services.entry(key("service", *owner)).or_default();
            state.slices.push((key("slice", *name).name, Arc::new(slice.clone())));
        }
        let node = |(name, node): (&u8, &Node)| (node_name(*name), Arc::new(node.clone()));
        let services = services.into_iter().map(|(key, state)| (key, Arc::new(state))).collect();
        (services, self.nodes.iter().map(node).collect())
    }

    /// A list of everything that is there, as a source writes it after it was away.
    fn list(&self) -> Vec<Write> {
        let services = self.services.iter().map(|(name, s)| Write::Service(*name, Some(s.clone())));
        let slices = self.slices.iter().map(|(name, s)| Write::Slice(*name, Some(s.clone())));
        let nodes = self.nodes.iter().map(|(name, n)| Write::Node(*name, Some(n.clone())));
        let retain = [
            Write::RetainServices(self.services.keys().copied().collect()),
            Write::RetainSlices(self.slices.keys().copied().collect()),
            Write::RetainNodes(self.nodes.keys().copied().collect()),
        ];
        services.chain(slices).chain(nodes).chain(retain).collect()
    }
}

fn batch(writes: &[Write]) -> Batch {
    let mut batch = Batch::new();
    for write in writes {
        let keys = |kind: &str, names: &BTreeSet<u8>| names.iter().map(|n| key(kind, *n)).collect();
        match write.clone() {
            Write::Service(name, Some(value)) => batch.set_service(key("service", name), value),
            Write::Service(name, None) => batch.delete_service(key("service", name)),
            Write::Slice(name, Some((owner, value))) => {
                batch.set_slice(key("slice", name), key("service", owner).name, value);
            }
            Write::Slice(name, None) => batch.delete_slice(key("slice", name)),
            Write::Node(name, Some(value)) => batch.set_node(node_name(name), value),
            Write::Node(name, None) => batch.delete_node(node_name(name)),
            Write::RetainServices(names) => batch.retain_services(keys("service", &names)),
            Write::RetainSlices(names) => batch.retain_slices(keys("slice", &names)),
            Write::RetainNodes(names) => {
                batch.retain_nodes(names.iter().map(|name| node_name(*name)).collect());
            }
        }
    }
    batch
}

/// A store beside what it must hold.
struct Twin {
    writer: Writer,
    objects: Objects,
}

impl Twin {
    fn apply(&mut self, writes: &[Write]) {
        let before = (self.objects.contents(), self.writer.store().revision());
        writes.iter().for_each(|write| self.objects.write(write));
        let applied = self.writer.apply(batch(writes));
        let differs = self.objects.contents() != before.0;
        assert_eq!(applied.revision, self.writer.store().revision());
        assert_eq!(applied.revision, before.1 + u64::from(applied.changed > 0));
        assert!(applied.changed > 0 || !differs, "a change was lost");
        if let [_] = writes {
            assert_eq!(applied.changed > 0, differs, "a write that changes nothing is no change");
        }
        let again = self.writer.apply(batch(&self.objects.list()));
        assert_eq!(again.changed, 0, "writing everything again changes nothing");
        assert_eq!(again.revision, applied.revision);
    }
}

/// Somebody who knows only what its reader said.
struct Follower {
    reader: Reader,
    services: BTreeMap<NamespacedName, Arc<ServiceState>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    planner: Planner,
    facts: NodeFacts,
}

impl Follower {
    fn new(store: &Store) -> Self {
        Self {
            reader: store.reader(),
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            planner: Planner::new(HERE, NodeFacts::default()),
            facts: NodeFacts::default(),
        }
    }

    fn read(&mut self) -> bool {
        let Some(update) = self.reader.try_next() else { return false };
        assert!(update.services.is_sorted_by(|a, b| a.0 < b.0), "each key once, in order");
        assert!(update.nodes.is_sorted_by(|a, b| a.0 < b.0), "each key once, in order");
        if update.full {
            self.services.clear();
            self.nodes.clear();
        }
        take_over(&mut self.services, &update.services);
        take_over(&mut self.nodes, &update.nodes);
        self.change_plan(|planner| planner.update(&update));
        true
    }

    fn set_facts(&mut self, facts: NodeFacts) {
        self.facts = facts.clone();
        self.change_plan(|planner| planner.set_facts(facts));
    }

    /// What a change says of itself is what changed.
    fn change_plan(&mut self, change: impl FnOnce(&mut Planner) -> Changes) {
        let services = self.planner.plan().services().clone();
        let (conflicts, warnings) = (self.planner.conflicts(), warnings(&services));
        let changes = change(&mut self.planner);
        let now = self.planner.plan().services();
        let keys: BTreeSet<_> = services.keys().chain(now.keys()).collect();
        let differ = keys.into_iter().filter(|key| services.get(*key) != now.get(*key));
        assert_eq!(changes.services, differ.cloned().collect::<Vec<_>>());
        assert_eq!(changes.conflicts, new_ones(self.planner.conflicts(), &conflicts));
        let mut arose = changes.warnings;
        arose.sort_by_key(|warning| format!("{warning:?}"));
        assert_eq!(arose, new_ones(warnings_of(&self.planner), &warnings));
    }

    fn check(&self, objects: &Objects) {
        assert_eq!((self.services.clone(), self.nodes.clone()), objects.contents());
        check_plan(self.planner.plan(), &self.planner.conflicts(), &self.facts, objects);
    }
}

fn take_over<K: Ord + Clone, T: PartialEq + std::fmt::Debug>(
    known: &mut BTreeMap<K, Arc<T>>,
    changed: &[(K, kpng_core::store::Change<T>)],
) {
    for (key, change) in changed {
        assert_eq!(known.get(key), change.old.as_ref(), "the old value is the one seen last");
        assert_ne!(change.old, change.new, "only what differs is said");
        match &change.new {
            Some(value) => known.insert(key.clone(), Arc::clone(value)),
            None => known.remove(key),
        };
    }
}

fn warnings(plans: &BTreeMap<NamespacedName, Arc<ServicePlan>>) -> Vec<(NamespacedName, Warning)> {
    let of = |(key, plan): (&NamespacedName, &Arc<ServicePlan>)| {
        let key = key.clone();
        plan.warnings.clone().into_iter().map(move |warning| (key.clone(), warning))
    };
    let mut warnings: Vec<_> = plans.iter().flat_map(of).collect();
    warnings.sort_by_key(|warning| format!("{warning:?}"));
    warnings
}

fn warnings_of(planner: &Planner) -> Vec<(NamespacedName, Warning)> {
    warnings(planner.plan().services())
}

fn new_ones<T: PartialEq>(now: Vec<T>, before: &[T]) -> Vec<T> {
    now.into_iter().filter(|one| !before.contains(one)).collect()
}

/// A plan that came about by changes is the plan of the whole state.
fn check_plan(plan: &Plan, conflicts: &[Conflict], facts: &NodeFacts, objects: &Objects) {
    let (mut writer, store) = Store::new();
    let mut batch = batch(&objects.list());
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    let mut planner = Planner::new(HERE, facts.clone());
    planner.update(&store.reader().try_next().expect("synced"));

    let expected = planner.plan();
    assert_eq!(plan.facts(), expected.facts());
    assert_eq!(plan.services(), expected.services());
    assert_eq!(conflicts, planner.conflicts());
    let mut owned = BTreeSet::new();
    for (service, plan_of_it) in plan.services() {
        for frontend in plan_of_it.frontends.iter().map(|frontend| frontend.key()) {
            assert!(owned.insert(frontend), "{frontend} belongs to two services");
            assert_eq!(plan.owner(&frontend).map(|owner| owner.0), Some(service));
        }
    }
    for packet in packets() {
        let (found, expected) = (plan.decide(&packet), expected.decide(&packet));
        assert_eq!(found, expected, "{packet:?}");
        if let Verdict::Forward { service, .. } = found {
            assert!(plan.service(service).is_some());
        }
    }
}

fn packets() -> Vec<Packet<'static>> {
    let mut packets = Vec::new();
    for name in ["cluster.1", "cluster.2", "ext.1", "lb.1", "node"] {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in [80, 81, 30_001, 30_002] {
                    packets.push(Packet {
                        source: address("client", family),
                        interface: Some("eth0"),
                        from_node: false,
                        destination: address(name, family),
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    packets
}

fn run(history: &History) {
    let (writer, store) = Store::with_journal(history.journal);
    let mut twin = Twin { writer, objects: Objects::default() };
    let mut followers: Vec<_> = (0..READERS).map(|_| Follower::new(&store)).collect();
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        if let Some(writes) = history.before_sync.get(index) {
            twin.apply(writes);
        }
        assert!(followers.iter_mut().all(|follower| !follower.read()), "not all kinds are listed");
        let mut listed = Batch::new();
        listed.mark_synced(kind);
        twin.writer.apply(listed);
    }
    for step in &history.steps {
        match step {
            Step::Write(writes) => twin.apply(writes),
            Step::Read(reader) => {
                followers[*reader].read();
                followers[*reader].check(&twin.objects);
            }
            Step::Facts(reader, facts) => followers[*reader].set_facts(facts.clone()),
            Step::Rewind(reader) => followers[*reader].reader.rewind(),
        }
    }
    for follower in &mut followers {
        follower.read();
        assert!(!follower.read(), "there is nothing more to say");
        assert_eq!(follower.reader.lag(), 0);
        follower.check(&twin.objects);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_readers_and_planners_are_told_is_the_whole_truth(history in history()) {
        run(&history);
    }
}

/// All that matters to a choice of endpoints: where a node is, that there may or may not be.
fn places() -> Vec<Place> {
    let zones = [None, Some("a"), Some("b"), Some("c")].map(|zone| zone.map(Arc::from));
    let place = |number| zones.clone().map(|zone| Place { node: node_name(number), zone });
    (0..NAMES + 1).flat_map(place).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_vantages_give_equal_views(service in service(), slices in vec(slice(), 0..3)) {
        let slices = slices.into_iter().enumerate().map(|(number, slice)| {
            (Arc::from(number.to_string()), Arc::new(slice))
        });
        let state =
            ServiceState { service: Some(Arc::new(service)), slices: slices.collect() };
        let vantages = Vantages::of(&state);
        let key = key("service", 0);
        let mut views: Vec<(Vantage, _)> = Vec::new();
        for here in places() {
            let (vantage, view) = (vantages.from(&here), localize(&key, &state, &here));
            match views.iter().find(|(other, _)| *other == vantage) {
                Some((_, other)) => prop_assert_eq!(other, &view, "at {:?}", here),
                None => views.push((vantage, view)),
            }
        }
        // Nodes 3 and 4, zone c and no zone matter to nobody: 3 nodes times 3 zones, 2 zones, and
        // elsewhere are all that there can be, of 20 places.
        prop_assert!(views.len() <= 12, "{views:?}");
        if state.slices.is_empty() {
            prop_assert_eq!(views.len(), 1);
        }
    }
}

fn synced(journal: usize) -> (Writer, Store) {
    let (mut writer, store) = Store::with_journal(journal);
    let mut batch = Batch::new();
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    (writer, store)
}

#[test]
fn an_empty_cluster_is_told_too() {
    let (_writer, store) = synced(8);
    let Update { revision, full, services, nodes, .. } = store.reader().try_next().unwrap();
    assert_eq!((revision, full, services.len(), nodes.len()), (0, true, 0, 0));
}

#[test]
fn the_journal_keeps_as_many_old_values_as_it_holds_and_no_more() {
    const JOURNAL: usize = 8;
    let (mut writer, store) = synced(JOURNAL);
    let mut reader = store.reader();
    let mut values: Vec<Weak<Node>> = Vec::new();
    for number in 0..100_u8 {
        let mut batch = Batch::new();
        let zone = Some(format!("zone-{number}").into());
        batch.set_node("node", Node { zone, ..Node::default() });
        writer.apply(batch);
        let update = reader.try_next().unwrap();
        values.extend(
            update.nodes.iter().flat_map(|(_, change)| change.new.as_ref()).map(Arc::downgrade),
        );
    }
    assert_eq!(values.len(), 100);
    let alive = values.iter().filter(|value| value.upgrade().is_some()).count();
    // Each entry has the value before and after.
    assert_eq!(alive, JOURNAL + 1);
}

#[test]
fn changes_that_cancel_out_are_not_told() {
    let (mut writer, store) = synced(8);
    let mut reader = store.reader();
    reader.try_next().unwrap();
    for zone in [Some("a".into()), Some("b".into())] {
        let mut batch = Batch::new();
        batch.set_node("node", Node { zone, ..Node::default() });
        writer.apply(batch);
    }
    let mut batch = Batch::new();
    batch.delete_node("node");
    writer.apply(batch);
    assert!(reader.try_next().unwrap().is_empty());
}

#[test]
fn one_changed_service_among_many_is_planned_alone() {
    let (mut writer, store) = synced(8);
    let mut planner = Planner::new(HERE, NodeFacts::default());
    let service = |port| Service {
        cluster_ips: vec!["10.0.0.1".parse().unwrap()],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
            node_port: None,
            target_port: TargetPort::Unset,
        }],
        ..Service::default()
    };
    let name = |number: u16| NamespacedName::new("t", format!("service-{number}"));
    let mut batch = Batch::new();
    for number in 1..=1000 {
        batch.set_service(name(number), service(number));
    }
    writer.apply(batch);
    let mut reader = store.reader();
    assert_eq!(planner.update(&reader.try_next().unwrap()).planned, 1000);

    let mut batch = Batch::new();
    batch.set_service(name(7), service(2000));
    writer.apply(batch);
    let changes = planner.update(&reader.try_next().unwrap());
    assert_eq!((changes.planned, changes.services), (1, vec![name(7)]));
    let key = |port| FrontendKey {
        at: kpng_core::plan::At::Vip("10.0.0.1".parse().unwrap()),
        protocol: Protocol::Tcp,
        port,
    };
    assert!(planner.plan().owner(&key(7)).is_none());
    assert_eq!(planner.plan().owner(&key(2000)).unwrap().0, &name(7));
}
