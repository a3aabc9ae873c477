//! By which policy packets to a frontend are treated as they are: the table of traffic policies.
//!
//! Routes follow from it, so what an explanation names as the reason is the reason.

use super::Origin;
use crate::local::{Considered, Excluded};
use crate::model::TrafficPolicy;

/// What a frontend is to its Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// An address of `spec.clusterIPs`.
    ClusterIp,
    /// An address of `status.loadBalancer.ingress[]`.
    LoadBalancerIp,
    /// An address of `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl FrontendKind {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::LoadBalancerIp => "load-balancer-ip",
            Self::ExternalIp => "external-ip",
            Self::NodePort => "node-port",
        }
    }

    /// The field of the API that makes it.
    pub fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::LoadBalancerIp => "status.loadBalancer.ingress[].ip",
            Self::ExternalIp => "spec.externalIPs",
            Self::NodePort => "spec.ports[].nodePort",
        }
    }
}

/// Which list of endpoints packets choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum List {
    /// Those of the whole cluster, as far as topology allows.
    Cluster,
    /// Those on this node.
    Local,
}

impl List {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        }
    }

    /// Why an endpoint is not in it; `None` when it is.
    pub fn excludes(self, endpoint: &Considered) -> Option<Excluded> {
        match self {
            Self::Cluster => endpoint.not_in_cluster,
            Self::Local => endpoint.not_in_local,
        }
    }
}

/// Whether packets are masqueraded whatever they choose, and why. (A packet that chooses its own
/// source is masqueraded anyway.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Masquerade {
    /// Yes: `--masquerade-all`.
    Everything,
    /// Yes: from no pod to a cluster IP, so an endpoint elsewhere would not answer through this node.
    NotFromPod,
    /// Yes: an external frontend with policy Cluster, so the answer has to come back here.
    ExternalCluster,
    /// Yes: from the node itself to an external frontend, whose address the node takes for its own.
    OwnTraffic,
    /// No: from a pod to a cluster IP.
    FromPod,
    /// No: to a cluster IP, and pods cannot be told from others.
    NoDetection,
    /// No: from a pod to an external frontend with policy Local, which the pod reaches directly.
    ShortCircuit,
    /// No: external policy Local preserves the client's address.
    PreservesSource,
}

impl Masquerade {
    /// Whether they are.
    pub fn applies(self) -> bool {
        match self {
            Self::Everything | Self::NotFromPod | Self::ExternalCluster | Self::OwnTraffic => true,
            Self::FromPod | Self::NoDetection | Self::ShortCircuit | Self::PreservesSource => false,
        }
    }

    /// The name of the reason for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Everything => "masquerade-all",
            Self::NotFromPod => "not-from-pod",
            Self::ExternalCluster => "external-policy-cluster",
            Self::OwnTraffic => "own-traffic",
            Self::FromPod => "from-pod",
            Self::NoDetection => "no-pod-detection",
            Self::ShortCircuit => "short-circuit",
            Self::PreservesSource => "preserves-source",
        }
    }
}

/// The reason, with the flags and fields that make it so.
impl std::fmt::Display for Masquerade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Everything => "--masquerade-all masquerades everything to cluster IPs",
            Self::NotFromPod => {
                "what comes to a cluster IP from no pod has to be answered through this node"
            }
            Self::ExternalCluster => {
                "spec.externalTrafficPolicy is Cluster, so an endpoint may be on another node and \
                 has to answer through this one"
            }
            Self::OwnTraffic => {
                "the node's own packet to an external address has to be answered through this node"
            }
            Self::FromPod => "a pod of the cluster to a cluster IP",
            Self::NoDetection => {
                "pods cannot be told from others (--detect-local-mode), so nothing to a cluster IP \
                 is masqueraded"
            }
            Self::ShortCircuit => {
                "a pod of the cluster to an external address with spec.externalTrafficPolicy Local"
            }
            Self::PreservesSource => {
                "spec.externalTrafficPolicy is Local, which preserves the client's address"
            }
        })
    }
}

/// What happens to packets of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Treatment {
    /// What they choose from. An empty list rejects or drops them.
    pub list: List,
    /// Whether they are masqueraded.
    pub masquerade: Masquerade,
}

/// What happens to packets to one frontend, by where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What the frontend is.
    pub kind: FrontendKind,
    /// The traffic policy of the Service for such frontends.
    pub traffic: TrafficPolicy,
    /// From a pod of the cluster.
    pub pod: Treatment,
    /// From the node itself.
    pub node: Treatment,
    /// From anywhere else.
    pub outside: Treatment,
}

impl Policy {
    /// That of a cluster IP. `detects`: pods can be told from others.
    pub(super) fn internal(traffic: TrafficPolicy, detects: bool, masquerade_all: bool) -> Self {
        let list = list_of(traffic);
        let unless_all =
            |otherwise| if masquerade_all { Masquerade::Everything } else { otherwise };
        let (pod, other) = match detects {
            true => (Masquerade::FromPod, Masquerade::NotFromPod),
            false => (Masquerade::NoDetection, Masquerade::NoDetection),
        };
        let pod = Treatment { list, masquerade: unless_all(pod) };
        let other = Treatment { list, masquerade: unless_all(other) };
        Self { kind: FrontendKind::ClusterIp, traffic, pod, node: other, outside: other }
    }

    /// That of a node port, an external IP or a load balancer IP.
    pub(super) fn external(kind: FrontendKind, traffic: TrafficPolicy, detects: bool) -> Self {
        let (pod, node, outside) = match traffic {
            TrafficPolicy::Cluster => {
                let all =
                    Treatment { list: List::Cluster, masquerade: Masquerade::ExternalCluster };
                (all, all, all)
            }
            TrafficPolicy::Local => {
                let outside =
                    Treatment { list: List::Local, masquerade: Masquerade::PreservesSource };
                // Inside the cluster the policy does not apply: such traffic short-circuits the load
                // balancer, which could have chosen any node.
                let pod = Treatment { list: List::Cluster, masquerade: Masquerade::ShortCircuit };
                // The node's own address is the virtual one here, so the answer would get lost.
                let node = Treatment { list: List::Cluster, masquerade: Masquerade::OwnTraffic };
                (if detects { pod } else { outside }, node, outside)
            }
        };
        Self { kind, traffic, pod, node, outside }
    }

    /// What happens to packets of one origin.
    pub fn from(&self, origin: Origin) -> Treatment {
        match origin {
            Origin::Pod => self.pod,
            Origin::Node => self.node,
            Origin::Outside => self.outside,
        }
    }

    /// The three treatments: pod, node, outside.
    pub fn treatments(&self) -> [Treatment; 3] {
        [self.pod, self.node, self.outside]
    }
}

fn list_of(policy: TrafficPolicy) -> List {
    match policy {
        TrafficPolicy::Cluster => List::Cluster,
        TrafficPolicy::Local => List::Local,
    }
}
