//! What a Service means on one node: which of its endpoints may serve whom.
//!
//! [`localize`] is where topology hints, readiness and termination are decided, once for all
//! backends and for the gRPC API. The rules are those of kube-proxy's `CategorizeEndpoints`
//! (KEP-2433, KEP-3015, KEP-1669), per service port and IP family.

mod vantage;
mod view;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Conditions, Endpoint, EndpointSlice, Family, NamespacedName, Node, Protocol, Service,
    ServicePort, ServiceState, TrafficPolicy,
};

pub use vantage::{Vantage, Vantages};
pub use view::{LocalView, Localize};

/// Where we are, as far as the choice of endpoints is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The name of this node.
    pub node: Arc<str>,
    /// Its zone, if known.
    pub zone: Option<Arc<str>>,
}

impl Place {
    /// The place of the node `name`, which the cluster may not (yet) know.
    pub fn of(name: &Arc<str>, node: Option<&Node>) -> Self {
        Self { node: Arc::clone(name), zone: node.and_then(|node| node.zone.clone()) }
    }
}

/// A Service as seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// Which Service.
    pub key: NamespacedName,
    /// The Service itself.
    pub service: Arc<Service>,
    /// Every endpoint that serves somebody or could, sorted by address, then by its first port.
    pub endpoints: Vec<LocalEndpoint>,
}

impl LocalService {
    /// The parts put together, with the endpoints in order.
    pub fn new(
        key: NamespacedName,
        service: Arc<Service>,
        mut endpoints: Vec<LocalEndpoint>,
    ) -> Self {
        endpoints.sort_by_key(|endpoint| {
            let first = endpoint.ports.first();
            (endpoint.address, first.map(|port| (port.port, port.service_port)))
        });
        Self { key, service, endpoints }
    }

    /// Some endpoint exists for `service_port` in `family`, on any node: then a Local policy drops
    /// instead of rejecting.
    pub fn has_any(&self, service_port: usize, family: Family) -> bool {
        self.ports_of(service_port, family).next().is_some()
    }

    /// The endpoints of one service port and family, with what they are to it.
    pub fn ports_of(
        &self,
        service_port: usize,
        family: Family,
    ) -> impl Iterator<Item = (&LocalEndpoint, &EndpointPort)> {
        self.endpoints
            .iter()
            .filter(move |endpoint| Family::of(endpoint.address) == family)
            .flat_map(|endpoint| endpoint.ports.iter().map(move |port| (endpoint, port)))
            .filter(move |(_, port)| usize::from(port.service_port) == service_port)
    }
}

/// An endpoint as seen from one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The address.
    pub address: IpAddr,
    /// It runs on this node.
    pub local: bool,
    /// Its conditions.
    pub conditions: Conditions,
    /// `hostname`.
    pub hostname: Option<Box<str>>,
    /// The name of its Pod.
    pub pod: Option<Box<str>>,
    /// Its ports, by service port.
    pub ports: Vec<EndpointPort>,
}

/// What an endpoint is to one port of its Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Index into [`Service::ports`].
    pub service_port: u16,
    /// The port on the endpoint.
    pub port: u16,
    /// In the cluster list: what policy Cluster may use on this node.
    pub in_cluster_list: bool,
    /// In the local list: what policy Local may use on this node.
    pub in_local_list: bool,
}

/// Which endpoints topology allows, decided per service port from its ready endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyMode {
    /// Only endpoints hinted for this node (KEP-3015).
    SameNode,
    /// Only endpoints hinted for this zone (KEP-2433).
    SameZone,
    /// All endpoints.
    All,
}

impl TopologyMode {
    /// Chooses the mode. One ready endpoint without a hint, or no hint that names us, turns the
    /// kind of hint off.
    pub fn choose<'a>(ready: impl IntoIterator<Item = &'a Endpoint>, here: &Place) -> Self {
        let (mut all_name_nodes, mut all_name_zones) = (true, true);
        let (mut this_node, mut this_zone) = (false, false);
        for endpoint in ready {
            all_name_nodes &= !endpoint.node_hints.is_empty();
            all_name_zones &= !endpoint.zone_hints.is_empty();
            this_node |= Self::SameNode.allows(endpoint, here);
            this_zone |= Self::SameZone.allows(endpoint, here);
        }
        if all_name_nodes && this_node {
            Self::SameNode
        } else if all_name_zones && this_zone {
            Self::SameZone
        } else {
            Self::All
        }
    }

    /// Whether the mode allows `endpoint` here.
    pub fn allows(self, endpoint: &Endpoint, here: &Place) -> bool {
        match self {
            Self::SameNode => endpoint.node_hints.contains(&here.node),
            Self::SameZone => {
                here.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.contains(zone))
            }
            Self::All => true,
        }
    }
}

/// What the Service means at `here`. `None` when there is no Service object (yet).
pub fn localize(key: &NamespacedName, state: &ServiceState, here: &Place) -> Option<LocalService> {
    let service = state.service.as_ref()?;
    let mut endpoints: Vec<(&Endpoint, Vec<EndpointPort>)> = Vec::new();
    let mut first_of_slice = Vec::with_capacity(state.slices.len());
    for (_, slice) in &state.slices {
        first_of_slice.push(endpoints.len());
        endpoints.extend(slice.endpoints.iter().map(|endpoint| (endpoint, Vec::new())));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let index = u16::try_from(index).expect("the API allows far fewer ports");
        for family in Family::ALL {
            for candidate in categorize(&state.slices, &first_of_slice, service, port, family, here)
            {
                endpoints[candidate.position].1.push(candidate.endpoint_port(index));
            }
        }
    }
    let used = endpoints.into_iter().filter(|(_, ports)| !ports.is_empty());
    let endpoints = used.map(|(endpoint, ports)| local_endpoint(endpoint, ports, here)).collect();
    Some(LocalService::new(key.clone(), Arc::clone(service), endpoints))
}

fn local_endpoint(endpoint: &Endpoint, ports: Vec<EndpointPort>, here: &Place) -> LocalEndpoint {
    LocalEndpoint {
        address: endpoint.address,
        local: is_local(endpoint, here),
        conditions: endpoint.conditions,
        hostname: endpoint.hostname.clone(),
        pod: endpoint.pod.clone(),
        ports,
    }
}

fn is_local(endpoint: &Endpoint, here: &Place) -> bool {
    endpoint.node.as_ref() == Some(&here.node)
}

/// An endpoint that has the port in question, on its way to being categorized.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    position: usize,
    port: u16,
    in_cluster_list: bool,
    in_local_list: bool,
}

impl Candidate<'_> {
    fn endpoint_port(&self, service_port: u16) -> EndpointPort {
        let Self { port, in_cluster_list, in_local_list, .. } = *self;
        EndpointPort { service_port, port, in_cluster_list, in_local_list }
    }
}

/// The usable endpoints of one service port in one family, sorted into the two lists.
fn categorize<'a>(
    slices: &'a [(Arc<str>, Arc<EndpointSlice>)],
    first_of_slice: &[usize],
    service: &Service,
    port: &ServicePort,
    family: Family,
    here: &Place,
) -> Vec<Candidate<'a>> {
    let mut candidates = candidates(slices, first_of_slice, port, family);
    let ready = candidates.iter().filter(|c| c.endpoint.conditions.ready).map(|c| c.endpoint);
    let mode = TopologyMode::choose(ready, here);

    let in_cluster =
        |c: &Candidate<'_>| c.endpoint.conditions.ready && mode.allows(c.endpoint, here);
    let any_in_cluster = candidates.iter().any(in_cluster);
    let local_ready = |c: &Candidate<'_>| c.endpoint.conditions.ready && is_local(c.endpoint, here);
    let any_local_ready = candidates.iter().any(local_ready);
    let uses_local_list = service.internal_traffic_policy == TrafficPolicy::Local
        || service.external_traffic_policy == TrafficPolicy::Local;

    for candidate in &mut candidates {
        let draining = candidate.endpoint.conditions.serving_terminating();
        candidate.in_cluster_list = if any_in_cluster { in_cluster(candidate) } else { draining };
        candidate.in_local_list = uses_local_list
            && if any_local_ready {
                local_ready(candidate)
            } else {
                draining && is_local(candidate.endpoint, here)
            };
    }
    candidates
}

/// The usable endpoints that have this port; the same address and port counts once.
fn candidates<'a>(
    slices: &'a [(Arc<str>, Arc<EndpointSlice>)],
    first_of_slice: &[usize],
    service_port: &ServicePort,
    family: Family,
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::new();
    let mut seen: HashMap<(IpAddr, u16), usize> = HashMap::new();
    for ((_, slice), first) in slices.iter().zip(first_of_slice) {
        let Some(port) = target_port(slice, &service_port.name, service_port.protocol) else {
            continue;
        };
        for (offset, endpoint) in slice.endpoints.iter().enumerate() {
            if Family::of(endpoint.address) != family {
                continue;
            }
            let candidate = Candidate {
                endpoint,
                position: first + offset,
                port,
                in_cluster_list: false,
                in_local_list: false,
            };
            match seen.entry((endpoint.address, port)) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(found.len());
                    found.push(candidate);
                }
                std::collections::hash_map::Entry::Occupied(entry) => {
                    let other = &mut found[*entry.get()];
                    if presence(endpoint) > presence(other.endpoint) {
                        *other = candidate;
                    }
                }
            }
        }
    }
    found.retain(|candidate| candidate.endpoint.conditions.usable());
    found
}

/// Which of two endpoints with one address is there: a pod's address can be used again before the old
/// pod is gone, so it is the one that is not terminating, even if it is not ready yet.
fn presence(endpoint: &Endpoint) -> (bool, bool) {
    (!endpoint.conditions.terminating, endpoint.conditions.usable())
}

fn target_port(slice: &EndpointSlice, name: &str, protocol: Protocol) -> Option<u16> {
    slice
        .ports
        .iter()
        .find(|port| *port.name == *name && port.protocol == protocol)
        .map(|port| port.port)
}
