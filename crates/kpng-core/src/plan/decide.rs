//! The plan, executed: the specification that every backend is tested against.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, At, Frontend, FrontendKey, LOCALHOST, NodeFacts, Plan, Pool, ServicePlan, Target,
};
use crate::model::{Family, NamespacedName, Protocol};

/// Where a packet comes from, as routes tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pod of the cluster.
    Pod,
    /// The node itself.
    Node,
    /// Anywhere else, or anywhere when pods cannot be detected.
    Outside,
}

impl Origin {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Outside => "outside",
        }
    }
}

/// The first packet of a connection, as it reaches the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The source address.
    pub source: IpAddr,
    /// The interface it came in through; `None` when it was made on this node.
    pub interface: Option<&'a str>,
    /// The source is an address of this node.
    pub from_node: bool,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// What must happen to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is none of our business.
    Pass,
    /// It goes to one of the pool's targets.
    Forward {
        /// The Service that it belongs to.
        service: &'a NamespacedName,
        /// Where it may go.
        pool: &'a Pool,
        /// Masqueraded whatever the target is. See [`Verdict::masquerades`].
        masquerade: bool,
    },
    /// It is refused.
    Reject,
    /// It disappears.
    Drop,
}

impl Verdict<'_> {
    /// Whether the packet is masqueraded when `target` is chosen: always on a hairpin.
    pub fn masquerades(&self, packet: &Packet<'_>, target: Target) -> bool {
        match self {
            Self::Forward { masquerade, .. } => *masquerade || packet.source == target.address,
            _ => false,
        }
    }
}

impl NodeFacts {
    /// Where `packet` comes from. Pods are looked for first, as a node's bridge has a pod's address.
    pub fn origin(&self, packet: &Packet<'_>) -> Origin {
        if self.pods.matches(packet.source, packet.interface) {
            Origin::Pod
        } else if packet.from_node {
            Origin::Node
        } else {
            Origin::Outside
        }
    }

    /// Node ports are served at the packet's destination, for this protocol and a packet of this origin.
    pub(crate) fn serves_node_ports_at(&self, packet: &Packet<'_>) -> bool {
        if packet.destination == LOCALHOST {
            return self.localhost_node_ports && packet.interface.is_none();
        }
        self.node_port_addresses.contains(&packet.destination)
    }
}

/// What decides about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// A frontend.
    Frontend {
        /// The Service that has it.
        service: &'a NamespacedName,
        /// The plan of that Service.
        plan: &'a ServicePlan,
        /// The frontend.
        frontend: &'a Frontend,
        /// The source is one of those that may come in.
        admitted: bool,
        /// Where the packet comes from.
        origin: Origin,
    },
    /// The destination is a cluster IP of this Service, which has no such port.
    ClusterIp(&'a NamespacedName),
    /// The destination is in the range of cluster IPs, and no Service has it.
    ServiceCidr(&'a IpNet),
    /// Nothing of ours.
    Nothing,
}

impl<'a> Decision<'a> {
    /// What must happen to the packet.
    pub fn verdict(&self) -> Verdict<'a> {
        match *self {
            Self::Frontend { admitted: false, .. } | Self::ServiceCidr(_) => Verdict::Drop,
            Self::Frontend { service, plan, frontend, origin, .. } => {
                match frontend.route.from(origin) {
                    Action::Forward { pool, masquerade } => {
                        let pool = &plan.pools[usize::from(pool.0)];
                        Verdict::Forward { service, pool, masquerade }
                    }
                    Action::Reject => Verdict::Reject,
                    Action::Drop => Verdict::Drop,
                }
            }
            Self::ClusterIp(_) => Verdict::Reject,
            Self::Nothing => Verdict::Pass,
        }
    }
}

impl Plan {
    /// What must happen to `packet`. Costs a look-up, and for packets that belong to no frontend a
    /// walk over all services: for explanations and tests, not for a data path.
    pub fn decide(&self, packet: &Packet<'_>) -> Verdict<'_> {
        self.decision(packet).verdict()
    }

    /// What decides about `packet`.
    pub fn decision(&self, packet: &Packet<'_>) -> Decision<'_> {
        let Packet { destination, protocol, port, .. } = *packet;
        let key = |at| FrontendKey { at, protocol, port };
        let mut owner = self.owner(&key(At::Vip(destination)));
        if owner.is_none() && self.facts().serves_node_ports_at(packet) {
            owner = self.owner(&key(At::NodePort(Family::of(destination))));
        }
        let Some((service, plan, frontend)) = owner else {
            return self.decide_unclaimed(destination);
        };
        let admitted = frontend
            .sources
            .as_ref()
            .is_none_or(|sources| sources.iter().any(|range| range.contains(&packet.source)));
        let origin = self.facts().origin(packet);
        Decision::Frontend { service, plan, frontend, admitted, origin }
    }

    fn decide_unclaimed(&self, destination: IpAddr) -> Decision<'_> {
        let mut services = self.services().iter();
        if let Some((service, _)) =
            services.find(|(_, plan)| plan.cluster_ips.contains(&destination))
        {
            return Decision::ClusterIp(service);
        }
        let mut cidrs = self.facts().service_cidrs.iter();
        match cidrs.find(|cidr| cidr.contains(&destination)) {
            Some(cidr) => Decision::ServiceCidr(cidr),
            None => Decision::Nothing,
        }
    }
}
