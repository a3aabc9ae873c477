//! One service's plan, as what the maps shall hold for it.
//!
//! Pure: numbers that the maps need (of pools and of sets of ranges) are given out by `state`.

use std::collections::BTreeMap;
use std::hash::Hasher;

use ipnet::IpNet;
use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{
    Action, At, Frontend, NodeFacts, PodDetection, Pool, PoolId, ServicePlan, Target,
};
use twox_hash::XxHash64;

use crate::layout::{self, Address, Choice, FrontendKey, MemberKey, RangeKey};

/// Marks the identity of a service port, so that it is no pool's number.
const SERVICE_PORT: u64 = 1 << 63;

/// SCTP sockets have no hooks, and programs no way to compute SCTP's checksum.
pub(crate) fn is_served(protocol: Protocol) -> bool {
    protocol != Protocol::Sctp
}

/// The identity of a service port: the same in every process, so that affinity and connections
/// survive restarts.
pub(crate) fn service_port(key: &NamespacedName, plan: &ServicePlan, index: u16) -> u64 {
    let port = &plan.ports[usize::from(index)];
    let mut hash = XxHash64::with_seed(0);
    for part in [&*key.namespace, &*key.name, &*port.name, port.protocol.name()] {
        hash.write(part.as_bytes());
        hash.write_u8(0);
    }
    hash.write_u16(port.port);
    hash.finish() | SERVICE_PORT
}

/// Whether a set of members is that of a service port.
pub(crate) fn is_service_port(set: u64) -> bool {
    set & SERVICE_PORT != 0
}

/// The key of a frontend.
pub(crate) fn frontend_key(frontend: &Frontend) -> FrontendKey {
    let at = match frontend.at {
        At::Vip(ip) => layout::address(ip),
        At::NodePort(family) => layout::any(family),
    };
    layout::frontend_key(at, frontend.port, Some(frontend.protocol))
}

/// The value of a frontend. `pool` gives the number and size of a pool, `sources` is that of the
/// set of ranges that may come in, 0 for all.
pub(crate) fn frontend_value(
    key: &NamespacedName,
    plan: &ServicePlan,
    frontend: &Frontend,
    pool: impl Fn(PoolId) -> (u32, u16),
    sources: u32,
) -> layout::Frontend {
    let actions = frontend.route.actions();
    let choices = actions.map(|action| match action {
        Action::Forward { pool: id, masquerade } => {
            let (pool, count) = pool(id);
            Choice::Forward { pool, count, masquerade }
        }
        Action::Reject => Choice::Reject,
        Action::Drop => Choice::Drop,
    });
    let affinity = actions.iter().find_map(|action| match action {
        Action::Forward { pool, .. } => plan.pools[usize::from(pool.0)].affinity,
        _ => None,
    });
    let seconds = affinity.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    layout::frontend(choices, service_port(key, plan, frontend.service_port), seconds, sources)
}

/// A pool as frontends refer to it: its number, and how many targets it has.
pub(crate) fn numbered(number: u32, pool: &Pool) -> (u32, u16) {
    (number, u16::try_from(pool.targets.len()).unwrap_or(u16::MAX))
}

/// The endpoints that a UDP flow of the service may still go to.
pub(crate) fn serving(key: &NamespacedName, plan: &ServicePlan) -> BTreeMap<MemberKey, Target> {
    let ports = plan.ports.iter().enumerate().filter(|(_, port)| port.protocol == Protocol::Udp);
    let members = ports.flat_map(|(index, port)| {
        let index = u16::try_from(index).expect("localize checked the number of ports");
        let set = service_port(key, plan, index);
        port.serving.iter().map(move |target| (layout::member_key(set, *target), *target))
    });
    members.collect()
}

/// What the node's own facts ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Flags by the node's addresses.
    pub(crate) addresses: BTreeMap<Address, u32>,
    /// The ranges of pods and of cluster IPs.
    pub(crate) ranges: Vec<RangeKey>,
}

/// What the node's own facts ask for.
pub(crate) fn node(facts: &NodeFacts) -> Node {
    let mut node = Node::default();
    for ip in &facts.node_port_addresses {
        node.addresses.insert(layout::address(*ip), layout::NODE_PORTS);
    }
    let localhost = layout::address(kpng_core::plan::LOCALHOST);
    node.addresses.remove(&localhost);
    if facts.localhost_node_ports {
        node.addresses.insert(localhost, layout::NODE_PORTS | layout::ONLY_NODE);
    }
    if let PodDetection::Cidrs(cidrs) = &facts.pods {
        node.ranges.extend(ranges(layout::POD_RANGES, cidrs));
    }
    node.ranges.extend(ranges(layout::SERVICE_RANGES, &facts.service_cidrs));
    node
}

/// The keys of a set of ranges.
pub(crate) fn ranges(set: u32, ranges: &[IpNet]) -> impl Iterator<Item = RangeKey> {
    ranges.iter().map(move |range| layout::range_key(set, *range))
}

/// What programs take for constant.
pub(crate) fn constants(
    facts: &NodeFacts,
    config: &crate::Config,
    node_netns: u64,
) -> layout::Constants {
    let (first, last) = (*config.snat_ports.start(), *config.snat_ports.end());
    let node = |family: Family| {
        let ip = facts.primary_ips.iter().find(|ip| Family::of(**ip) == family);
        ip.map_or_else(|| layout::any(family), |ip| layout::address(*ip))
    };
    layout::Constants {
        node_netns,
        node: Family::ALL.map(node),
        snat_first: first,
        snat_count: (last - first).saturating_add(1),
        detects_pods: Family::ALL.map(|family| facts.pods.works_for(family)),
        pods_by_device: !matches!(facts.pods, PodDetection::None | PodDetection::Cidrs(_)),
    }
}
