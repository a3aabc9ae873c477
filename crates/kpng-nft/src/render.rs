//! From plans to kernel objects: pure functions.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{
    Action, At, Frontend, NodeFacts, PodDetection, Pool, PoolId, ServicePlan, Target,
};
use kpng_linux::nft::{
    Bytes, Chain, Connection, Element, Field, Hook, HookKind, HookPoint, Rule, Statement, Value,
    Verdict,
};

use crate::class::{Class, Place, fnv1a, list_of};
use crate::names::{self, Set};

/// What one service needs in one family.
#[derive(Debug, Default)]
pub(crate) struct ServiceObjects {
    /// Elements that belong to this service alone, sorted.
    pub(crate) elements: Vec<(Set, Element)>,
    /// Addresses in sets that other services may need too.
    pub(crate) shared: BTreeSet<(Set, IpAddr)>,
    /// The classes of its frontends.
    pub(crate) classes: BTreeSet<Class>,
    /// Chains of its own: those that look for affinity.
    pub(crate) chains: Vec<(String, Vec<Rule>)>,
}

/// The objects of a service in one family. `order` gives the endpoints of each pool by number.
pub(crate) fn service(
    key: &NamespacedName,
    plan: &ServicePlan,
    order: &[Vec<Target>],
    family: Family,
) -> ServiceObjects {
    let mut objects = ServiceObjects::default();
    for ip in plan.cluster_ips.iter().filter(|ip| Family::of(**ip) == family) {
        objects.shared.insert((Set::ClusterIps, *ip));
    }
    let renderer = Renderer { key, plan, order };
    for frontend in plan.frontends.iter().filter(|frontend| frontend.at.family() == family) {
        renderer.frontend(frontend, &mut objects);
    }
    objects.elements.sort_unstable_by_key(|(set, element)| (*set, element.key));
    objects
}

/// The element of a shared set for an address.
pub(crate) fn shared_element(set: Set, address: IpAddr) -> Element {
    let once = Bytes::EMPTY.address(address);
    let key = if set == Set::Hairpin { once.address(address) } else { once };
    Element { key, last: None, value: Value::None }
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
        objects.elements.push((set, Element { key, last: None, value: Value::Data(class.key()) }));
        objects.classes.insert(class);
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
        let mut chain = format!("sticky-{:08x}-{name}", fnv1a(name.as_bytes()));
        chain.truncate(120); // the kernel takes 127 bytes
        Some(chain)
    }

    fn service_port_name(&self, pool: &Pool) -> String {
        let port = &self.plan.ports[usize::from(pool.service_port)];
        let protocol = port.protocol.name().to_ascii_lowercase();
        format!("{}/{}/{protocol}", self.key, port.port)
    }

    /// One rule for each endpoint that looks whether the client sticks to it, and one for each that
    /// chooses it, with the right probability when it is reached. Both remember the choice. When
    /// the set is full, nothing is remembered and the caller's next rule chooses.
    fn sticky_rules(&self, id: PoolId) -> Vec<Rule> {
        let pool = &self.plan.pools[usize::from(id.0)];
        let order = &self.order[usize::from(id.0)];
        let timeout = pool.affinity.unwrap_or_default();
        let protocol = self.plan.ports[usize::from(pool.service_port)].protocol.number();
        let service_port = fnv1a(self.service_port_name(pool).as_bytes());
        let remember_and_go = |target: &Target| {
            let endpoint = fnv1a(format!("{} {}", target.address, target.port).as_bytes());
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

/// The constant part of a table.
pub(crate) fn skeleton(family: Family, facts: &NodeFacts, config: &crate::Config) -> Skeleton {
    let mut skeleton = Skeleton::default();
    let mut chain = |name: &str, hook: Option<(HookKind, HookPoint, i32)>, rules: Vec<Rule>| {
        let hook = hook.map(|(kind, point, priority)| Hook { kind, point, priority });
        skeleton.chains.push((Chain { name: name.to_owned(), hook }, rules));
    };
    let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.to_owned()));
    let goto = |chain: &str| Statement::Verdict(Verdict::Goto(chain.to_owned()));
    let drop = || Statement::Verdict(Verdict::Drop);
    let new = || Statement::Connection(Connection::New);
    let daddr_in = |set: Set| in_set(vec![Field::Daddr], set);

    chain(
        names::REJECT,
        None,
        vec![
            Rule::new([Statement::L4Proto(6), Statement::RejectWithReset]),
            Rule::new([Statement::Reject]),
        ],
    );
    let stranger =
        Statement::InSet { key: names::guard_key(), set: Set::SourceRanges.name(), negate: true };
    chain(
        names::GUARDED_REJECT,
        None,
        vec![Rule::new([stranger, drop()]), Rule::new([goto(names::REJECT)])],
    );
    chain(names::SERVICES, None, dispatch(Set::Routes));
    chain(names::REFUSED, None, dispatch(Set::Refusals));
    chain(
        names::CLOSED,
        None,
        vec![
            Rule::new([daddr_in(Set::ClusterIps), goto(names::REJECT)]),
            Rule::new([daddr_in(Set::ServiceCidrs), drop()]),
        ],
    );

    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let mut martians = Vec::new();
    if facts.localhost_node_ports && family == Family::V4 {
        // With route_localnet the kernel would route these from outside (CVE-2020-8558).
        let statements = [Statement::NotFromLoopback, Statement::DaddrInLoopbackNet, drop()];
        martians.push(Rule::new(statements));
    }
    chain(names::FILTER_PREROUTING, Some((Filter, Prerouting, -110)), martians);
    chain(
        names::FILTER_INPUT,
        Some((Filter, Input, -110)),
        vec![Rule::new([new(), jump(names::REFUSED)])],
    );
    let mut forward = Vec::new();
    if !config.conntrack_be_liberal {
        let invalid = || Statement::Connection(Connection::Invalid);
        let from_endpoint = in_set(vec![Field::Saddr, Field::Saddr], Set::Hairpin);
        forward.push(Rule::new([invalid(), from_endpoint, drop()]));
        forward.push(Rule::new([invalid(), daddr_in(Set::ClusterIps), drop()]));
    }
    forward.push(Rule::new([new(), jump(names::REFUSED)]));
    forward.push(Rule::new([new(), jump(names::CLOSED)]));
    chain(names::FILTER_FORWARD, Some((Filter, Forward, -110)), forward);
    chain(
        names::FILTER_OUTPUT,
        Some((Filter, Output, -90)),
        vec![Rule::new([new(), jump(names::REFUSED)]), Rule::new([new(), jump(names::CLOSED)])],
    );
    chain(
        names::NAT_PREROUTING,
        Some((Nat, Prerouting, -100)),
        vec![Rule::new([jump(names::SERVICES)])],
    );
    chain(names::NAT_OUTPUT, Some((Nat, Output, -100)), vec![Rule::new([jump(names::SERVICES)])]);
    let hairpin = in_set(vec![Field::Saddr, Field::Daddr], Set::Hairpin);
    chain(
        names::NAT_POSTROUTING,
        Some((Nat, Postrouting, 100)),
        vec![
            Rule::new([
                Statement::MarkHas(config.mark()),
                Statement::ClearMark(config.mark()),
                Statement::Masquerade,
            ]),
            Rule::new([Statement::Connection(Connection::Dnat), hairpin, Statement::Masquerade]),
        ],
    );
    skeleton.elements = node_elements(family, facts);
    skeleton
}

/// The look-up of a packet's frontend, first by its address, then by its node port.
fn dispatch(verdicts: Set) -> Vec<Rule> {
    let look_up =
        |key, map: Set| Statement::Dispatch { key, map: map.name(), verdicts: verdicts.name() };
    vec![
        Rule::new([look_up(names::vip_key(), Set::ServiceIps)]),
        Rule::new([
            in_set(vec![Field::Daddr], Set::NodePortIps),
            look_up(names::node_port_key(), Set::ServiceNodePorts),
        ]),
    ]
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
        let key = Bytes::EMPTY.address(ip);
        elements.push((Set::NodePortIps, Element { key, last: None, value: Value::None }));
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
