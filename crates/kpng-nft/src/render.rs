//! From plans to kernel objects: pure functions.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{
    Action, At, Frontend, NodeFacts, PodDetection, Pool, PoolId, ServicePlan, Target,
};
use kpng_linux::nft::{
    Bytes, Chain, Connection, Element, Field, Hook, HookKind, HookPoint, Rule, Statement, Value,
    Verdict, fnv1a,
};

use crate::Config;
use crate::class::{Class, LISTS, Numbers, Place, fnv1a_32, list_of, pick_rules};
use crate::names::{self, Set};

/// What one service needs in one family.
#[derive(Debug, Default)]
pub(crate) struct ServiceObjects {
    /// Elements that belong to this service alone, but for those of its frontends.
    elements: Vec<(Set, Element)>,
    /// The frontends that forward: in which map, by which key, and their classes.
    frontends: Vec<(Set, Bytes, Class)>,
    /// Addresses in sets that other services may need too.
    pub(crate) shared: BTreeSet<(Set, IpAddr)>,
    /// Chains of its own: those that look for affinity.
    pub(crate) chains: Vec<(String, Vec<Rule>)>,
}

impl ServiceObjects {
    /// The classes of its frontends.
    pub(crate) fn classes(&self) -> BTreeSet<&Class> {
        self.frontends.iter().map(|(.., class)| class).collect()
    }

    /// The class of the frontend with this key, if it forwards.
    pub(crate) fn class_of(&self, frontend: &Bytes) -> Option<&Class> {
        let mut frontends = self.frontends.iter();
        frontends.find(|(_, key, _)| key == frontend).map(|(.., class)| class)
    }

    /// Takes out the elements that belong to this service alone, sorted. Its classes have numbers.
    pub(crate) fn take_elements(&mut self, numbers: &Numbers) -> Vec<(Set, Element)> {
        let frontend = |(set, key, class): &(Set, Bytes, Class)| {
            let number = numbers.get(class).expect("a class in use has a number");
            (*set, Element { key: *key, last: None, value: Value::Data(number) })
        };
        let mut elements = std::mem::take(&mut self.elements);
        elements.extend(self.frontends.iter().map(frontend));
        elements.sort_unstable_by_key(|(set, element)| (*set, element.key));
        elements
    }
}

/// The objects of a service in one family. `order` gives the endpoints of each pool by number;
/// connections are counted if `counting`.
pub(crate) fn service(
    key: &NamespacedName,
    plan: &ServicePlan,
    order: &[Vec<Target>],
    family: Family,
    counting: bool,
) -> ServiceObjects {
    let mut objects = ServiceObjects::default();
    for ip in plan.cluster_ips.iter().filter(|ip| Family::of(**ip) == family) {
        objects.shared.insert((Set::ClusterIps, *ip));
    }
    let renderer = Renderer { key, plan, order, counting };
    for frontend in plan.frontends.iter().filter(|frontend| frontend.at.family() == family) {
        renderer.frontend(frontend, &mut objects);
    }
    objects
}

/// The element of a set that is a key and nothing else.
fn in_it(key: Bytes) -> Element {
    Element { key, last: None, value: Value::None }
}

/// The element of a shared set for an address.
pub(crate) fn shared_element(set: Set, address: IpAddr) -> Element {
    let once = Bytes::EMPTY.address(address);
    in_it(if set == Set::Hairpin { once.address(address) } else { once })
}

/// The key of a frontend in the map of its place.
pub(crate) fn frontend_key(frontend: &Frontend) -> Bytes {
    let key = match frontend.at {
        At::Vip(ip) => Bytes::EMPTY.address(ip),
        At::NodePort(_) => Bytes::EMPTY,
    };
    key.protocol(frontend.protocol.number()).port(frontend.port)
}

struct Renderer<'a> {
    key: &'a NamespacedName,
    plan: &'a ServicePlan,
    order: &'a [Vec<Target>],
    counting: bool,
}

impl Renderer<'_> {
    fn frontend(&self, frontend: &Frontend, objects: &mut ServiceObjects) {
        let size = |pool: PoolId| {
            u32::try_from(self.order[usize::from(pool.0)].len()).expect("endpoints fit in memory")
        };
        let class = Class::of(frontend, size, |pool| self.sticky_chain(pool));
        let place = Place::of(frontend.at);
        let set = match place {
            Place::Vip => Set::ServiceIps,
            Place::NodePort => Set::ServiceNodePorts,
        };
        let key = frontend_key(frontend);
        if self.counting {
            objects.elements.push((place.forwarded(), in_it(key)));
        }
        if let Some(set) = class.refusal() {
            objects.elements.push((set, in_it(key)));
        }
        if frontend.sources.is_some() {
            objects.elements.push((Set::GuardedServices, in_it(key)));
        }
        if class.forwards() {
            objects.frontends.push((set, key, class));
        }
        objects.elements.extend(source_ranges(frontend).map(|range| (Set::SourceRanges, range)));

        let mut done = Vec::new();
        for action in frontend.route.actions() {
            if let Action::Forward { pool, .. } = action
                && !done.contains(&pool)
            {
                done.push(pool);
                let set = list_of(&frontend.route, action).set(place);
                self.pool(pool, set, key, objects);
            }
        }
    }

    fn pool(&self, pool: PoolId, set: Set, key: Bytes, objects: &mut ServiceObjects) {
        let order = &self.order[usize::from(pool.0)];
        for (number, target) in (0..).zip(order) {
            let value = Value::Data(Bytes::EMPTY.address(target.address).port(target.port));
            objects.elements.push((set, Element { key: key.number(number), last: None, value }));
            objects.shared.insert((Set::Hairpin, target.address));
        }
        if let Some(chain) = self.sticky_chain(pool)
            && objects.chains.iter().all(|(name, _)| *name != chain)
        {
            objects.chains.push((chain, self.sticky_rules(pool)));
        }
    }

    /// The name of the chain that looks for the endpoint a client sticks to:
    /// `sticky-HASH-namespace/name/port/list`. The hash makes it unique, the rest is for people.
    fn sticky_chain(&self, id: PoolId) -> Option<String> {
        let pool = &self.plan.pools[usize::from(id.0)];
        pool.affinity?;
        let alike =
            |other: &&Pool| (other.service_port, other.family) == (pool.service_port, pool.family);
        let position = self.plan.pools[..usize::from(id.0)].iter().filter(alike).count();
        let name = format!("{}/{position}", self.service_port_name(pool));
        let mut chain = format!("sticky-{:016x}-{name}", fnv1a(name.as_bytes()));
        chain.truncate(120); // the kernel takes 127 bytes
        Some(chain)
    }

    fn service_port_name(&self, pool: &Pool) -> String {
        self.plan.port_identity(self.key, pool.service_port)
    }

    /// One rule for each endpoint that looks whether the client sticks to it, and one for each that
    /// chooses it, with the right probability when it is reached. Both remember the choice. When
    /// the set is full, nothing is remembered and the caller's next rule chooses.
    fn sticky_rules(&self, id: PoolId) -> Vec<Rule> {
        let pool = &self.plan.pools[usize::from(id.0)];
        let order = &self.order[usize::from(id.0)];
        let timeout = pool.affinity.unwrap_or_default();
        let protocol = self.plan.ports[usize::from(pool.service_port)].protocol.number();
        let service_port = fnv1a_32(self.service_port_name(pool).as_bytes());
        let remember_and_go = |target: &Target| {
            let endpoint = fnv1a_32(format!("{} {}", target.address, target.port).as_bytes());
            let key = names::affinity_key(service_port, endpoint);
            let update = Statement::Update { set: Set::Affinity.name(), key: key.clone(), timeout };
            let dnat = Statement::Dnat { address: target.address, port: target.port };
            (key, [update, dnat])
        };
        let mut rules = Vec::with_capacity(2 * order.len());
        for target in order {
            let (key, [update, dnat]) = remember_and_go(target);
            let sticks = Statement::InSet { key, set: Set::Affinity.name(), negate: false };
            rules.push(Rule::new([Statement::L4Proto(protocol), sticks, update, dnat]));
        }
        for (left, target) in (1..=order.len()).rev().zip(order) {
            let (_, [update, dnat]) = remember_and_go(target);
            let left = u32::try_from(left).expect("endpoints fit in memory");
            let mut statements = vec![Statement::L4Proto(protocol)];
            if left > 1 {
                statements.push(Statement::OnceIn(left));
            }
            statements.extend([update, dnat]);
            rules.push(Rule::new(statements));
        }
        rules
    }
}

fn source_ranges(frontend: &Frontend) -> impl Iterator<Item = Element> {
    let key = frontend_key(frontend);
    frontend.sources.iter().flatten().map(move |range| Element {
        key: key.address(range.network()),
        last: Some(key.address(range.broadcast())),
        value: Value::None,
    })
}

/// What is there whatever services exist.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Skeleton {
    /// Chains and their rules; those that others refer to come first.
    pub(crate) chains: Vec<(Chain, Vec<Rule>)>,
    /// Elements of the sets that describe the node.
    pub(crate) elements: Vec<(Set, Element)>,
}

/// The constant part of a table. Chains that others refer to come first.
pub(crate) fn skeleton(family: Family, facts: &NodeFacts, config: &Config) -> Skeleton {
    let inner = [
        (names::REJECT, reject()),
        (names::SERVICES, dispatch()),
        (names::PERMITTED, refuse_permitted()),
        (names::REFUSED, refuse()),
        (names::CLOSED, close()),
    ];
    let pick = LISTS.map(|(place, list)| (list.pick_chain(place), pick_rules(place, list)));
    let named = |(name, rules): (&str, _)| (Chain { name: name.to_owned(), hook: None }, rules);
    let inner = pick.into_iter().chain(inner).map(named);
    let localhost = facts.localhost_node_ports && family == Family::V4;
    let chains = inner.chain(base_chains(localhost, config)).collect();
    Skeleton { chains, elements: node_elements(family, facts) }
}

/// Where packets come in. The priorities are those that kube-proxy documents: ours happen just
/// before and after the kernel's destination NAT at -100.
fn base_chains(localhost: bool, config: &Config) -> Vec<(Chain, Vec<Rule>)> {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let new = |chain| Rule::new([Statement::Connection(Connection::New), jump(chain)]);
    let refuse_and_close = || vec![new(names::REFUSED), new(names::CLOSED)];
    let mut forward = if config.conntrack_be_liberal { Vec::new() } else { drop_invalid() };
    forward.extend(refuse_and_close());
    let martians = if localhost { drop_martians() } else { Vec::new() };
    let services = || vec![Rule::new([jump(names::SERVICES)])];
    let base = |name: &str, kind, point, priority, rules| {
        let hook = Some(Hook { kind, point, priority });
        (Chain { name: name.to_owned(), hook }, rules)
    };
    vec![
        base(names::FILTER_PREROUTING, Filter, Prerouting, -110, martians),
        base(names::FILTER_INPUT, Filter, Input, -110, vec![new(names::REFUSED)]),
        base(names::FILTER_FORWARD, Filter, Forward, -110, forward),
        base(names::FILTER_OUTPUT, Filter, Output, -90, refuse_and_close()),
        base(names::NAT_PREROUTING, Nat, Prerouting, -100, services()),
        base(names::NAT_OUTPUT, Nat, Output, -100, services()),
        base(names::NAT_POSTROUTING, Nat, Postrouting, 100, masquerade(config.mark())),
    ]
}

fn reject() -> Vec<Rule> {
    let tcp = Statement::L4Proto(Protocol::Tcp.number());
    vec![Rule::new([tcp, Statement::RejectWithReset]), Rule::new([Statement::Reject])]
}

/// The look-up of a packet's frontend, first by its address, then by its node port. A class number
/// has to be somewhere between the map that gives it and the map that takes it, and nft 1.0.6 ends
/// with a failed assertion when it lists a rule that keeps it in a register: so it passes through
/// the packet's priority, which is cleared when the class's chain is reached.
fn dispatch() -> Vec<Rule> {
    let classify = |key, map: Set| Statement::SetPriority { key, map: map.name() };
    let go = || Statement::VerdictMap { key: vec![Field::Priority], map: Set::Routes.name() };
    let to_node = in_set(vec![Field::Daddr], Set::NodePortIps);
    // A node's address can be an external IP of a service too, which comes first.
    let unless = |set| not_in_set(names::vip_key(), set);
    vec![
        Rule::new([classify(names::vip_key(), Set::ServiceIps), go()]),
        Rule::new([
            to_node,
            unless(Set::RejectedServices),
            unless(Set::DroppedServices),
            classify(names::node_port_key(), Set::ServiceNodePorts),
            go(),
        ]),
    ]
}

/// What becomes of packets to frontends that were not forwarded. The last look-up counts, so it finds
/// only what is dropped for its source.
fn refuse() -> Vec<Rule> {
    let permitted = in_set(names::guard_key(), Set::SourceRanges);
    vec![
        Rule::new([not_in_set(names::vip_key(), Set::GuardedServices), goto(names::PERMITTED)]),
        Rule::new([permitted, goto(names::PERMITTED)]),
        Rule::new([in_set(names::vip_key(), Set::GuardedServices), drop()]),
    ]
}

/// The same for packets from sources that may come in.
fn refuse_permitted() -> Vec<Rule> {
    let vip = |set| in_set(names::vip_key(), set);
    let node_port = |set, verdict| {
        let to_node = in_set(vec![Field::Daddr], Set::NodePortIps);
        Rule::new([to_node, in_set(names::node_port_key(), set), verdict])
    };
    vec![
        Rule::new([vip(Set::RejectedServices), goto(names::REJECT)]),
        Rule::new([vip(Set::DroppedServices), drop()]),
        node_port(Set::RejectedNodePorts, goto(names::REJECT)),
        node_port(Set::DroppedNodePorts, drop()),
    ]
}

/// What becomes of packets to cluster IPs that belong to no frontend.
fn close() -> Vec<Rule> {
    let daddr = || vec![Field::Daddr];
    vec![
        Rule::new([in_set(daddr(), Set::ClusterIps), goto(names::REJECT)]),
        Rule::new([in_set(daddr(), Set::ServiceCidrs), drop()]),
    ]
}

/// Packets of our connections that fit none: they would reach the other side without address
/// translation, which answers with a reset. A packet belongs to us when it comes from an endpoint or
/// goes to a cluster IP.
fn drop_invalid() -> Vec<Rule> {
    let invalid = || Statement::Connection(Connection::Invalid);
    let from_endpoint = in_set(vec![Field::Saddr, Field::Saddr], Set::Hairpin);
    let to_cluster_ip = in_set(vec![Field::Daddr], Set::ClusterIps);
    vec![
        Rule::new([invalid(), from_endpoint, drop()]),
        Rule::new([invalid(), to_cluster_ip, drop()]),
    ]
}

/// With route_localnet, which node ports on 127.0.0.1 need, the kernel would let packets to it in
/// from outside (CVE-2020-8558).
fn drop_martians() -> Vec<Rule> {
    vec![Rule::new([Statement::NotFromLoopback, Statement::DaddrInLoopbackNet, drop()])]
}

fn masquerade(mark: u32) -> Vec<Rule> {
    let marked = [Statement::MarkHas(mark), Statement::ClearMark(mark), Statement::Masquerade];
    let hairpin = in_set(vec![Field::Saddr, Field::Daddr], Set::Hairpin);
    vec![
        Rule::new(marked),
        Rule::new([Statement::Connection(Connection::Dnat), hairpin, Statement::Masquerade]),
    ]
}

fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.to_owned()))
}

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.to_owned()))
}

fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}

fn not_in_set(key: Vec<Field>, set: Set) -> Statement {
    Statement::InSet { key, set: set.name(), negate: true }
}

fn in_set(key: Vec<Field>, set: Set) -> Statement {
    Statement::InSet { key, set: set.name(), negate: false }
}

fn node_elements(family: Family, facts: &NodeFacts) -> Vec<(Set, Element)> {
    let mut elements = Vec::new();
    let localhost = facts.localhost_node_ports.then_some(kpng_core::plan::LOCALHOST);
    let node_ips: BTreeSet<IpAddr> =
        facts.node_port_addresses.iter().copied().chain(localhost).collect();
    for ip in node_ips.into_iter().filter(|ip| Family::of(*ip) == family) {
        elements.push((Set::NodePortIps, in_it(Bytes::EMPTY.address(ip))));
    }
    let pod_cidrs = match &facts.pods {
        PodDetection::Cidrs(cidrs) => &cidrs[..],
        _ => &[],
    };
    for (set, cidrs) in [(Set::PodCidrs, pod_cidrs), (Set::ServiceCidrs, &facts.service_cidrs)] {
        let cidrs: Vec<IpNet> =
            cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).copied().collect();
        for cidr in IpNet::aggregate(&cidrs) {
            let key = Bytes::EMPTY.address(cidr.network());
            let last = Some(Bytes::EMPTY.address(cidr.broadcast()));
            elements.push((set, Element { key, last, value: Value::None }));
        }
    }
    elements
}
