//! What must happen to packets: policy turned into a table, so that backends need none.
//!
//! After [`plan_service`] nobody knows what a traffic policy, a topology hint or a readiness bit is.
//! A service is a list of [`Frontend`]s; each says what happens to a packet by where it comes from.
//! The one rule that is left to backends is the hairpin: a packet whose chosen target is its own
//! source is masqueraded whatever the route says.

mod decide;
mod planner;
mod policy;
mod service;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use decide::{Decision, Origin, Packet, Verdict};
pub use planner::{Changes, Conflict, Plan, Planner};
pub use policy::{FrontendKind, List, Masquerade, Policy, Treatment};
pub(crate) use service::serves_family;
pub use service::{plan_service, policies};

use crate::model::{Family, NamespacedName, Protocol};

/// Everything about the node and its configuration that a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// How packets from pods are told from others.
    pub pods: PodDetection,
    /// The node's own primary addresses, at most one per family. Whoever may reach a load balancer
    /// address as the node may do so with that address as its source too.
    pub primary_ips: Vec<IpAddr>,
    /// The addresses of this node on which node ports are served.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Node ports are also served on 127.0.0.1, for this node itself (the kernel cannot route ::1).
    pub localhost_node_ports: bool,
    /// Everything that goes to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// The ranges that cluster IPs come from: unallocated addresses in them lead nowhere.
    pub service_cidrs: Vec<IpNet>,
}

/// How to tell that a packet comes from a pod of the cluster (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodDetection {
    /// There is no way to tell.
    #[default]
    None,
    /// By source address. A family without a range has no detection.
    Cidrs(Vec<IpNet>),
    /// By the bridge that it comes in through.
    Bridge(Arc<str>),
    /// By a prefix of the interface that it comes in through.
    InterfacePrefix(Arc<str>),
}

impl PodDetection {
    /// Pods of this family can be told from others.
    pub fn works_for(&self, family: Family) -> bool {
        match self {
            Self::None => false,
            Self::Cidrs(cidrs) => cidrs.iter().any(|cidr| Family::of_net(cidr) == family),
            Self::Bridge(_) | Self::InterfacePrefix(_) => true,
        }
    }

    /// A packet from `source` that came in through `interface` (none: made on this node) is from a
    /// pod.
    pub fn matches(&self, source: IpAddr, interface: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::Cidrs(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&source)),
            Self::Bridge(name) => interface == Some(name),
            Self::InterfacePrefix(prefix) => {
                interface.is_some_and(|name| name.starts_with(&**prefix))
            }
        }
    }
}

/// What one Service asks of the data path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Where packets for it arrive, and what happens to them. Keys are unique.
    pub frontends: Vec<Frontend>,
    /// What the routes of the frontends refer to.
    pub pools: Vec<Pool>,
    /// Its ports, which frontends and pools refer to.
    pub ports: Vec<PortPlan>,
    /// Its cluster IPs: a packet to another port of them is rejected.
    pub cluster_ips: Vec<IpAddr>,
    /// What load balancers ask this node about it.
    pub health_check: Option<HealthCheck>,
    /// An endpoint of it runs on this node: it comes early when much is to be written.
    pub has_local_endpoint: bool,
    /// `creationTimestamp`, for the choice between claimants of one frontend.
    pub created: Option<i64>,
    /// What is wrong with the Service, for people.
    pub warnings: Vec<Warning>,
}

impl ServicePlan {
    /// The identity of a port of the Service `key` as it is the same in every process:
    /// `namespace/name/port/protocol`. A file may give two ports the same number and protocol, which
    /// the API server refuses: all but the first have their place among those at the end.
    pub fn port_identity(&self, key: &NamespacedName, index: u16) -> String {
        let index = usize::from(index);
        let PortPlan { port, protocol, .. } = self.ports[index];
        let alike = |other: &&PortPlan| (other.port, other.protocol) == (port, protocol);
        let mut identity = format!("{key}/{port}/{}", protocol.name().to_ascii_lowercase());
        match self.ports[..index].iter().filter(alike).count() {
            0 => {}
            earlier => identity += &format!("/{earlier}"),
        }
        identity
    }
}

/// Something that an operator should know about a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Warning {
    /// `loadBalancerSourceRanges` has no range of this family, so the family is closed.
    NoSourceRangeOfFamily(Family),
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSourceRangeOfFamily(family) => write!(
                f,
                "loadBalancerSourceRanges has no {} range, so nobody may reach its {} load \
                 balancer addresses; add a range of that family to admit clients",
                family.name(),
                family.name()
            ),
        }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Its name, possibly empty.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port number on virtual addresses.
    pub port: u16,
    /// All endpoints that still serve, on any node, sorted. A UDP flow to any other is dead. Filled
    /// only for UDP: nobody touches the connections of other protocols.
    pub serving: Vec<Target>,
}

/// Where packets for a Service arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The destination address.
    pub at: At,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
    /// Index into [`ServicePlan::ports`].
    pub service_port: u16,
    /// Who may come in; others are dropped. `None` means everybody.
    pub sources: Option<Vec<IpNet>>,
    /// What happens to those who may.
    pub route: Route,
}

impl Frontend {
    /// What identifies the frontend on a node.
    pub fn key(&self) -> FrontendKey {
        FrontendKey { at: self.at, protocol: self.protocol, port: self.port }
    }
}

/// The identity of a frontend: at most one Service owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The destination address.
    pub at: At,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

impl std::fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            At::Vip(ip @ IpAddr::V6(_)) => write!(f, "[{ip}]:{}/{}", self.port, self.protocol),
            At::Vip(ip) => write!(f, "{ip}:{}/{}", self.port, self.protocol),
            At::NodePort(family) => {
                write!(f, "{} node port {}/{}", family.name(), self.port, self.protocol)
            }
        }
    }
}

/// A destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum At {
    /// One address: a cluster, external or load balancer IP.
    Vip(IpAddr),
    /// The node port addresses of one family, see [`NodeFacts::node_port_addresses`].
    NodePort(Family),
}

impl At {
    /// The family of the address.
    pub fn family(self) -> Family {
        match self {
            Self::Vip(ip) => Family::of(ip),
            Self::NodePort(family) => family,
        }
    }
}

/// What happens to a packet, by where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// From a pod of the cluster.
    pub pod: Action,
    /// From the node itself.
    pub node: Action,
    /// From anywhere else.
    pub outside: Action,
}

impl Route {
    /// The same for everybody.
    pub fn all(action: Action) -> Self {
        Self { pod: action, node: action, outside: action }
    }

    /// The action for one origin.
    pub fn from(&self, origin: Origin) -> Action {
        match origin {
            Origin::Pod => self.pod,
            Origin::Node => self.node,
            Origin::Outside => self.outside,
        }
    }

    /// The three actions: pod, node, outside.
    pub fn actions(&self) -> [Action; 3] {
        [self.pod, self.node, self.outside]
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes to a target of the pool, chosen uniformly at random.
    Forward {
        /// Which pool; never an empty one.
        pool: PoolId,
        /// With a source address of this node, so that the answer comes back here.
        masquerade: bool,
    },
    /// It is refused: TCP reset, or ICMP port unreachable.
    Reject,
    /// It is dropped silently.
    Drop,
}

/// Index into [`ServicePlan::pools`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u16);

/// Targets to choose from. Pools of the same service port and family share affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Index into [`ServicePlan::ports`].
    pub service_port: u16,
    /// The family of the targets.
    pub family: Family,
    /// Never empty, sorted, unique.
    pub targets: Vec<Target>,
    /// How long a client's address sticks to its target, if at all.
    pub affinity: Option<Duration>,
}

/// An address and port to send packets to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// `healthCheckNodePort` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port to answer on.
    pub port: u16,
    /// How many endpoints on this node are ready.
    pub local_ready: u32,
}

/// 127.0.0.1, on which node ports are served on request.
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
