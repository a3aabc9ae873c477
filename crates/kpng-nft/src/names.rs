//! Every name that is written into the kernel, and what the sets are.
//!
//! Names are stable across versions: operators and other programs read them, and a restarted
//! process finds its objects by them. They are listed in this crate's README.

use kpng_core::model::Family;
use kpng_linux::nft::{Data, Field, SetDef, Table, TableFamily};

/// The name of our tables, one in `ip` and one in `ip6`.
pub const TABLE: &str = "kpng";

pub(crate) const NAT_PREROUTING: &str = "nat-prerouting";
pub(crate) const NAT_OUTPUT: &str = "nat-output";
pub(crate) const NAT_POSTROUTING: &str = "nat-postrouting";
pub(crate) const FILTER_PREROUTING: &str = "filter-prerouting";
pub(crate) const FILTER_INPUT: &str = "filter-input";
pub(crate) const FILTER_FORWARD: &str = "filter-forward";
pub(crate) const FILTER_OUTPUT: &str = "filter-output";
pub(crate) const SERVICES: &str = "services";
pub(crate) const REFUSED: &str = "refused-services";
pub(crate) const PERMITTED: &str = "permitted-sources";
pub(crate) const CLOSED: &str = "cluster-ips-check";
pub(crate) const REJECT: &str = "reject-chain";

/// The largest number of clients whose affinity is remembered, per family.
const AFFINITY_SIZE: u32 = 1 << 20;

/// The table of a family.
pub(crate) fn table(family: Family) -> Table {
    match family {
        Family::V4 => Table::new(TableFamily::Ip, TABLE),
        Family::V6 => Table::new(TableFamily::Ip6, TABLE),
    }
}

/// Our sets and maps: a constant number of them, whatever the number of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Set {
    /// Frontends on virtual addresses, and the class of what happens there.
    ServiceIps,
    /// Frontends on node ports, and the class of what happens there.
    ServiceNodePorts,
    /// Where a class forwards to.
    Routes,
    /// Frontends on virtual addresses whose connections are counted.
    ForwardedServices,
    /// Node ports whose connections are counted.
    ForwardedNodePorts,
    /// Frontends that admit only permitted sources.
    GuardedServices,
    /// Frontends on virtual addresses that refuse what was not forwarded.
    RejectedServices,
    /// Frontends on virtual addresses that drop what was not forwarded.
    DroppedServices,
    /// Node ports that refuse what was not forwarded.
    RejectedNodePorts,
    /// Node ports that drop what was not forwarded.
    DroppedNodePorts,
    /// The endpoints of frontends on virtual addresses, numbered.
    Endpoints,
    /// The same for packets from outside, where those have a list of their own.
    OutsideEndpoints,
    /// The endpoints of node ports, numbered.
    NodePortEndpoints,
    /// The same for packets from outside, where those have a list of their own.
    OutsideNodePortEndpoints,
    /// Who may reach a frontend that not everybody may reach.
    SourceRanges,
    /// The addresses of all endpoints, each with itself.
    Hairpin,
    /// All cluster IPs.
    ClusterIps,
    /// The addresses on which node ports are served.
    NodePortIps,
    /// Where pods have their addresses.
    PodCidrs,
    /// Where cluster IPs come from.
    ServiceCidrs,
    /// Which client sticks to which endpoint.
    Affinity,
}

impl Set {
    /// All sets, in the order in which they are declared.
    pub(crate) const ALL: [Self; 21] = [
        Self::ServiceIps,
        Self::ServiceNodePorts,
        Self::Routes,
        Self::ForwardedServices,
        Self::ForwardedNodePorts,
        Self::GuardedServices,
        Self::RejectedServices,
        Self::DroppedServices,
        Self::RejectedNodePorts,
        Self::DroppedNodePorts,
        Self::Endpoints,
        Self::OutsideEndpoints,
        Self::NodePortEndpoints,
        Self::OutsideNodePortEndpoints,
        Self::SourceRanges,
        Self::Hairpin,
        Self::ClusterIps,
        Self::NodePortIps,
        Self::PodCidrs,
        Self::ServiceCidrs,
        Self::Affinity,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::Routes => "routes",
            Self::ForwardedServices => "forwarded-services",
            Self::ForwardedNodePorts => "forwarded-nodeports",
            Self::GuardedServices => "guarded-services",
            Self::RejectedServices => "rejected-services",
            Self::DroppedServices => "dropped-services",
            Self::RejectedNodePorts => "rejected-nodeports",
            Self::DroppedNodePorts => "dropped-nodeports",
            Self::Endpoints => "endpoints",
            Self::OutsideEndpoints => "outside-endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::OutsideNodePortEndpoints => "nodeport-outside-endpoints",
            Self::SourceRanges => "source-ranges",
            Self::Hairpin => "hairpin",
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "nodeport-ips",
            Self::PodCidrs => "pod-cidrs",
            Self::ServiceCidrs => "service-cidrs",
            Self::Affinity => "affinity",
        }
    }

    /// The definition.
    pub(crate) fn def(self) -> SetDef {
        let class = || Data::Fields(vec![Field::Priority]);
        let target = || Data::Fields(vec![Field::Daddr, Field::Dport]);
        let (key, data, comment) = match self {
            Self::ServiceIps => (vip_key(), class(), "frontend : class"),
            Self::ServiceNodePorts => (node_port_key(), class(), "node port : class"),
            Self::Routes => (vec![Field::Priority], Data::Verdict, "class : where it forwards"),
            Self::ForwardedServices => (vip_key(), Data::None, "connections"),
            Self::ForwardedNodePorts => (node_port_key(), Data::None, "connections"),
            Self::GuardedServices => (vip_key(), Data::None, "dropped unless in source-ranges"),
            Self::RejectedServices => (vip_key(), Data::None, "rejected unless forwarded"),
            Self::DroppedServices => (vip_key(), Data::None, "dropped unless forwarded"),
            Self::RejectedNodePorts => (node_port_key(), Data::None, "rejected unless forwarded"),
            Self::DroppedNodePorts => (node_port_key(), Data::None, "dropped unless forwarded"),
            Self::Endpoints | Self::OutsideEndpoints => {
                (numbered(vip_key()), target(), "frontend . number : endpoint")
            }
            Self::NodePortEndpoints | Self::OutsideNodePortEndpoints => {
                (numbered(node_port_key()), target(), "node port . number : endpoint")
            }
            Self::SourceRanges => (guard_key(), Data::None, "frontend . permitted source"),
            Self::Hairpin => (vec![Field::Saddr, Field::Daddr], Data::None, "endpoints, twice"),
            Self::ClusterIps => (vec![Field::Daddr], Data::None, "closed but for its ports"),
            Self::NodePortIps => (vec![Field::Daddr], Data::None, "where node ports are served"),
            Self::PodCidrs => (vec![Field::Saddr], Data::None, "addresses of pods"),
            Self::ServiceCidrs => (vec![Field::Daddr], Data::None, "addresses of services"),
            Self::Affinity => (affinity_key(0, 0), Data::None, "client . service port . endpoint"),
        };
        let interval = matches!(self, Self::SourceRanges | Self::PodCidrs | Self::ServiceCidrs);
        let dynamic = (self == Self::Affinity).then_some(AFFINITY_SIZE);
        let counted = matches!(
            self,
            Self::ForwardedServices
                | Self::ForwardedNodePorts
                | Self::GuardedServices
                | Self::RejectedServices
                | Self::DroppedServices
                | Self::RejectedNodePorts
                | Self::DroppedNodePorts
        );
        SetDef { name: self.name(), key, data, interval, dynamic, counted, comment }
    }
}

/// What identifies a frontend on a virtual address.
pub(crate) fn vip_key() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

/// What identifies a node port.
pub(crate) fn node_port_key() -> Vec<Field> {
    vec![Field::L4Proto, Field::Dport]
}

/// A frontend on a virtual address, and who comes.
pub(crate) fn guard_key() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport, Field::Saddr]
}

/// A client, the service port it comes to, and an endpoint.
pub(crate) fn affinity_key(service_port: u32, endpoint: u32) -> Vec<Field> {
    vec![Field::Saddr, Field::Constant(service_port), Field::Constant(endpoint)]
}

fn numbered(mut key: Vec<Field>) -> Vec<Field> {
    key.push(Field::Random(2));
    key
}
