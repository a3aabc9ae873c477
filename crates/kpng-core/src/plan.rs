//! What must happen to packets: policy turned into a table, so that backends need none.
//!
//! After [`plan_service`] nobody knows what a traffic policy, a topology hint or a readiness bit is.
//! A service is a list of [`Frontend`]s; each says what happens to a packet by where it comes from.
//! The one rule that is left to backends is the hairpin: a packet whose chosen target is its own
//! source is masqueraded whatever the route says.

mod decide;
mod planner;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use decide::{Origin, Packet, Verdict};
pub use planner::{Changes, Conflict, Plan, Planner};

use crate::local::{EndpointPort, LocalEndpoint, LocalService};
use crate::model::{Family, Protocol, Service, TrafficPolicy};

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

/// What the Service asks of this node's data path.
pub fn plan_service(local: &LocalService, facts: &NodeFacts) -> ServicePlan {
    let service = &*local.service;
    let mut plan = ServicePlan {
        cluster_ips: service.cluster_ips.clone(),
        created: service.created,
        health_check: health_check(local),
        has_local_endpoint: local.endpoints.iter().any(|endpoint| endpoint.local),
        ..ServicePlan::default()
    };
    for (index, port) in service.ports.iter().enumerate() {
        plan.ports.push(PortPlan {
            name: Arc::clone(&port.name),
            protocol: port.protocol,
            port: port.port,
            serving: serving(local, index, port.protocol),
        });
        for family in Family::ALL {
            PortPlanner { local, facts, index, family, plan: &mut plan }.add();
        }
    }
    let mut seen = HashSet::with_capacity(plan.frontends.len());
    plan.frontends.retain(|frontend| seen.insert(frontend.key()));
    plan
}

fn health_check(local: &LocalService) -> Option<HealthCheck> {
    let service = &*local.service;
    if service.external_traffic_policy != TrafficPolicy::Local {
        return None;
    }
    let port = service.health_check_node_port?;
    let ready: BTreeSet<_> = local
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.local && endpoint.conditions.ready)
        .map(|endpoint| endpoint.address)
        .collect();
    // A pod of both families is one endpoint, and not every slice names its pods.
    let (v4, v6): (Vec<_>, Vec<_>) = ready.into_iter().partition(|address| address.is_ipv4());
    let local_ready = u32::try_from(v4.len().max(v6.len())).unwrap_or(u32::MAX);
    Some(HealthCheck { port, local_ready })
}

fn serving(local: &LocalService, index: usize, protocol: Protocol) -> Vec<Target> {
    if protocol != Protocol::Udp {
        return Vec::new();
    }
    let of = |family| local.ports_of(index, family).map(target);
    let serving: BTreeSet<_> = Family::ALL.into_iter().flat_map(of).collect();
    serving.into_iter().collect()
}

fn target((endpoint, port): (&LocalEndpoint, &EndpointPort)) -> Target {
    Target { address: endpoint.address, port: port.port }
}

/// One port of a Service in one family.
struct PortPlanner<'a> {
    local: &'a LocalService,
    facts: &'a NodeFacts,
    index: usize,
    family: Family,
    plan: &'a mut ServicePlan,
}

impl PortPlanner<'_> {
    fn add(&mut self) {
        let service = Arc::clone(&self.local.service);
        let port = &service.ports[self.index];
        let family = self.family;
        if !serves_family(&service, family) {
            return;
        }
        let cluster_ips = of_family(&service.cluster_ips, family);
        let load_balancer_ips: Vec<_> =
            service.load_balancer_ips.iter().filter(|ip| !ip.proxied).map(|ip| ip.ip).collect();
        let load_balancer_ips = of_family(&load_balancer_ips, family);
        let external_ips = of_family(&service.external_ips, family);
        let node_port = port.node_port;
        let external =
            !load_balancer_ips.is_empty() || !external_ips.is_empty() || node_port.is_some();
        if cluster_ips.is_empty() && !external {
            return;
        }

        let internal_local = service.internal_traffic_policy == TrafficPolicy::Local;
        let external_local = external && service.external_traffic_policy == TrafficPolicy::Local;
        let cluster = self.pool_or_refusal(|port| port.in_cluster_list);
        let local = if internal_local || external_local {
            self.pool_or_refusal(|port| port.in_local_list)
        } else {
            cluster
        };
        let internal = self.internal_route(if internal_local { local } else { cluster });
        for ip in cluster_ips {
            self.frontend(At::Vip(ip), port.port, internal, None);
        }
        if !external {
            return;
        }
        let route = self.external_route(cluster, external_local.then_some(local));
        for ip in load_balancer_ips {
            let sources = self.sources(&service, ip);
            self.frontend(At::Vip(ip), port.port, route, sources);
        }
        for ip in external_ips {
            self.frontend(At::Vip(ip), port.port, route, None);
        }
        if let Some(node_port) = node_port {
            self.frontend(At::NodePort(family), node_port, route, None);
        }
    }

    fn internal_route(&self, to: Choice) -> Route {
        let detects = self.facts.pods.works_for(self.family);
        let all = self.facts.masquerade_all;
        Route {
            pod: to.action(all),
            node: to.action(all || detects),
            outside: to.action(all || detects),
        }
    }

    fn external_route(&self, cluster: Choice, local: Option<Choice>) -> Route {
        let Some(local) = local else { return Route::all(cluster.action(true)) };
        let detects = self.facts.pods.works_for(self.family);
        Route {
            // Inside the cluster the policy does not apply: such traffic short-circuits the load
            // balancer, which could have chosen any node.
            pod: if detects { cluster.action(false) } else { local.action(false) },
            // The node's own address is the virtual one here, so the answer would get lost.
            node: cluster.action(true),
            outside: local.action(false),
        }
    }

    fn pool_or_refusal(&mut self, in_list: impl Fn(&EndpointPort) -> bool) -> Choice {
        let all = self.local.ports_of(self.index, self.family);
        let mut targets: Vec<_> = all.filter(|(_, port)| in_list(port)).map(target).collect();
        targets.sort_unstable();
        targets.dedup();
        if targets.is_empty() {
            let exists = self.local.has_any(self.index, self.family);
            // Dropping gives a load balancer time to notice; a reset would reach the client.
            return if exists { Choice::Drop } else { Choice::Reject };
        }
        let service_port = u16::try_from(self.index).expect("localize checked the number of ports");
        let affinity = self.local.service.session_affinity;
        let pool = Pool { service_port, family: self.family, targets, affinity };
        let pools = &mut self.plan.pools;
        let at = pools.iter().position(|other| *other == pool).unwrap_or_else(|| {
            pools.push(pool);
            pools.len() - 1
        });
        Choice::Pool(PoolId(u16::try_from(at).expect("four pools a port at most")))
    }

    fn sources(&mut self, service: &Service, ip: IpAddr) -> Option<Vec<IpNet>> {
        let ranges = service.load_balancer_source_ranges.as_ref()?;
        let mut ranges: Vec<_> = ranges
            .iter()
            .filter(|range| Family::of_net(range) == self.family)
            .map(IpNet::trunc)
            .collect();
        if ranges.is_empty() {
            let warning = Warning::NoSourceRangeOfFamily(self.family);
            if !self.plan.warnings.contains(&warning) {
                self.plan.warnings.push(warning);
            }
        }
        let admits = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        if self.facts.primary_ips.iter().any(admits) {
            ranges.push(IpNet::from(ip));
        }
        Some(IpNet::aggregate(&ranges))
    }

    fn frontend(&mut self, at: At, port: u16, route: Route, sources: Option<Vec<IpNet>>) {
        let protocol = self.local.service.ports[self.index].protocol;
        let service_port = u16::try_from(self.index).expect("localize checked the number of ports");
        self.plan.frontends.push(Frontend { at, protocol, port, service_port, sources, route });
    }
}

/// A Service lives in the families of its cluster IPs; one without any, in both.
fn serves_family(service: &Service, family: Family) -> bool {
    service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|ip| Family::of(*ip) == family)
}

fn of_family(ips: &[IpAddr], family: Family) -> Vec<IpAddr> {
    ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect()
}

/// The outcome of one list.
#[derive(Clone, Copy)]
enum Choice {
    Pool(PoolId),
    Reject,
    Drop,
}

impl Choice {
    fn action(self, masquerade: bool) -> Action {
        match self {
            Self::Pool(pool) => Action::Forward { pool, masquerade },
            Self::Reject => Action::Reject,
            Self::Drop => Action::Drop,
        }
    }
}

/// 127.0.0.1, on which node ports are served on request.
pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
