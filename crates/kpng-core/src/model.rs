//! What the cluster says: Services, their EndpointSlices, and Nodes, reduced to what a proxy needs.
//!
//! Equality is always derived: a fact that is in the model is a fact that makes a revision.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// The key of a namespaced object (Kubernetes calls it `NamespacedName` too). Orders by namespace,
/// then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that a Service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP (KEP-614).
    Sctp,
}

impl Protocol {
    /// All of them, in the order of their protocol numbers' names.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Kubernetes' name: `TCP`, `UDP` or `SCTP`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol number in the IP header (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with Kubernetes' name `name`; the empty string means TCP, as in the API.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An IP family. The two are equal everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// kube-proxy's name in metric labels: `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServiceType {
    /// Reached by its cluster IPs (and external IPs).
    #[default]
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by load balancer addresses.
    LoadBalancer,
    /// A DNS alias: nothing for a proxy to do.
    ExternalName,
}

impl ServiceType {
    /// Kubernetes' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        }
    }

    /// The type with Kubernetes' name `name`; the empty string means ClusterIP.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "ClusterIP" => Some(Self::ClusterIp),
            "NodePort" => Some(Self::NodePort),
            "LoadBalancer" => Some(Self::LoadBalancer),
            "ExternalName" => Some(Self::ExternalName),
            _ => None,
        }
    }
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node that the packet reached.
    Local,
}

/// A Service, as far as a proxy needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`; empty for a headless Service (`clusterIP: None`).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[]` that have an IP.
    pub load_balancer_ips: Vec<LoadBalancerIp>,
    /// `spec.loadBalancerSourceRanges`; `None` when the field is empty (no restriction). Entries
    /// that are no CIDRs are left out at the border, so `Some` of nothing admits nobody.
    pub load_balancer_source_ranges: Option<Vec<IpNet>>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy` (KEP-2086).
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// The timeout of `sessionAffinity: ClientIP`; `None` for no affinity.
    pub session_affinity: Option<Duration>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// Labels selected by `--with-service-labels`.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Annotations selected by `--with-service-annotations`.
    pub annotations: BTreeMap<Box<str>, Box<str>>,
    /// `metadata.creationTimestamp` in seconds since the Unix epoch; decides who owns a frontend
    /// that two Services claim. `None` sorts after every known time.
    pub created: Option<i64>,
}

impl Service {
    /// The default timeout of ClientIP affinity, 3 hours (Kubernetes' API default).
    pub const DEFAULT_AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);
}

/// An address of `status.loadBalancer.ingress[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadBalancerIp {
    /// The address.
    pub ip: IpAddr,
    /// `ipMode` is `Proxy`: the load balancer wants to see this traffic itself, nobody captures it
    /// (KEP-1860).
    pub proxied: bool,
}

/// One entry of `spec.ports` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port's name, which slices refer to; may be empty.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on cluster, external and load balancer IPs.
    pub port: u16,
    /// The port on node addresses, if allocated.
    pub node_port: Option<u16>,
    /// `targetPort`, informative: the port that counts is the slice's.
    pub target_port: TargetPort,
}

/// `targetPort` of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// Not given: the same as the port.
    #[default]
    Unset,
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

/// An EndpointSlice of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `endpoints`, one per address that counts (the first of `addresses`).
    pub endpoints: Vec<Endpoint>,
    /// `ports`. Entries without a port number are left out at the border.
    pub ports: Vec<SlicePort>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Which Service port this belongs to; may be empty.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: u16,
}

/// One endpoint address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones`, sorted.
    pub zone_hints: Box<[Arc<str>]>,
    /// `hints.forNodes`, sorted (KEP-3015).
    pub node_hints: Box<[Arc<str>]>,
    /// `hostname`.
    pub hostname: Option<Box<str>>,
    /// The name of the Pod in `targetRef`.
    pub pod: Option<Box<str>>,
}

impl Endpoint {
    /// A ready endpoint at `address` about which nothing else is known.
    pub fn at(address: IpAddr) -> Self {
        Self {
            address,
            conditions: Conditions::READY,
            node: None,
            zone: None,
            zone_hints: Box::default(),
            node_hints: Box::default(),
            hostname: None,
            pod: None,
        }
    }
}

/// `conditions` of an endpoint, with the API's defaults applied: `ready` unset means true,
/// `serving` unset means true, `terminating` unset means false.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// May receive new connections.
    pub ready: bool,
    /// Passes its readiness probe, terminating or not.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

impl Conditions {
    /// Ready, serving, not terminating.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };

    /// The conditions of an API object whose fields may be unset.
    pub fn from_api(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        Self {
            ready: ready.unwrap_or(true),
            serving: serving.unwrap_or(true),
            terminating: terminating.unwrap_or(false),
        }
    }

    /// Serving and terminating: used when nothing is ready (KEP-1669).
    pub fn serving_terminating(self) -> bool {
        self.serving && self.terminating
    }

    /// May receive traffic in some situation.
    pub fn usable(self) -> bool {
        self.ready || self.serving_terminating()
    }
}

/// A Node, as far as a proxy needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The label `topology.kubernetes.io/zone`; `None` when missing or empty.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The node is being deleted, or carries the taint `ToBeDeletedByClusterAutoscaler`: load
    /// balancers shall not choose it any more (KEP-3836).
    pub going_away: bool,
    /// Labels selected by `--with-node-labels`.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// Annotations selected by `--with-node-annotations`.
    pub annotations: BTreeMap<Box<str>, Box<str>>,
}

/// A Service with everything that belongs to it: the unit of change.
///
/// Slices may arrive before their Service; then `service` is `None` and nothing is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// The Service object.
    pub service: Option<Arc<Service>>,
    /// Its EndpointSlices, sorted by name.
    pub slices: Vec<(Arc<str>, Arc<EndpointSlice>)>,
}

impl ServiceState {
    /// Neither the Service nor a slice exists.
    pub fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }
}
