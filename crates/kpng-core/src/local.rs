//! What a Service means on one node: which of its endpoints may serve whom.
//!
//! [`localize`] is where topology hints, readiness and termination are decided, once for all
//! backends and for the gRPC API. The rules are those of kube-proxy's `CategorizeEndpoints`
//! (KEP-2433, KEP-3015, KEP-1669), per service port and IP family.

mod choice;
mod consider;
mod vantage;
mod view;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Conditions, Endpoint, EndpointSlice, Family, NamespacedName, Node, Protocol, Service,
    ServicePort, ServiceState,
};

pub use choice::{Excluded, HintUse, Hints, TopologyMode};
pub use consider::{Consider, Considered, PortEndpoints};
pub use vantage::{Vantage, Vantages};
pub use view::{LocalView, Localize};

use choice::Lists;

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

/// What the Service means at `here`. `None` when there is no Service object (yet).
pub fn localize(key: &NamespacedName, state: &ServiceState, here: &Place) -> Option<LocalService> {
    let service = state.service.as_ref()?;
    let slices = Slices::of(state);
    let mut endpoints: Vec<(&Endpoint, Vec<EndpointPort>)> =
        slices.endpoints().map(|endpoint| (endpoint, Vec::new())).collect();
    for (index, port) in service.ports.iter().enumerate() {
        let index = u16::try_from(index).expect("the API allows far fewer ports");
        for family in Family::ALL {
            let (_, candidates) = categorize(&slices, service, port, family, here, |_, _| {});
            for candidate in candidates {
                endpoints[candidate.position].1.push(candidate.endpoint_port(index));
            }
        }
    }
    let used = endpoints.into_iter().filter(|(_, ports)| !ports.is_empty());
    let endpoints = used.map(|(endpoint, ports)| local_endpoint(endpoint, ports, here)).collect();
    Some(LocalService::new(key.clone(), Arc::clone(service), endpoints))
}

/// The slices of a Service, their endpoints counted through.
struct Slices<'a> {
    all: &'a [(Arc<str>, Arc<EndpointSlice>)],
    /// The position of each slice's first endpoint.
    first: Vec<usize>,
}

impl<'a> Slices<'a> {
    fn of(state: &'a ServiceState) -> Self {
        let mut next = 0;
        let first = state.slices.iter().map(|(_, slice)| {
            let first = next;
            next += slice.endpoints.len();
            first
        });
        Self { first: first.collect(), all: &state.slices }
    }

    /// All endpoints, in the order of their positions.
    fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> + use<'a> {
        self.all.iter().flat_map(|(_, slice)| &slice.endpoints)
    }
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

/// An endpoint that has the port in question and is usable.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    position: usize,
    port: u16,
    not_in_cluster: Option<Excluded>,
    not_in_local: Option<Excluded>,
}

impl Candidate<'_> {
    fn endpoint_port(&self, service_port: u16) -> EndpointPort {
        EndpointPort {
            service_port,
            port: self.port,
            in_cluster_list: self.not_in_cluster.is_none(),
            in_local_list: self.not_in_local.is_none(),
        }
    }
}

/// The usable endpoints of one service port in one family, sorted into the two lists. `left_out` is
/// told the positions of the others of that family.
fn categorize<'a>(
    slices: &Slices<'a>,
    service: &Service,
    port: &ServicePort,
    family: Family,
    here: &Place,
    left_out: impl FnMut(usize, Excluded),
) -> (Hints, Vec<Candidate<'a>>) {
    let mut candidates = candidates(slices, port, family, left_out);
    let lists = Lists::new(candidates.iter().map(|c| c.endpoint), service, here);
    for candidate in &mut candidates {
        candidate.not_in_cluster = lists.not_in_cluster(candidate.endpoint);
        candidate.not_in_local = lists.not_in_local(candidate.endpoint);
    }
    (lists.hints, candidates)
}

/// The usable endpoints that have this port; the same address and port counts once.
fn candidates<'a>(
    slices: &Slices<'a>,
    service_port: &ServicePort,
    family: Family,
    mut left_out: impl FnMut(usize, Excluded),
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::new();
    let mut seen: HashMap<(IpAddr, u16), usize> = HashMap::new();
    for ((_, slice), first) in slices.all.iter().zip(&slices.first) {
        let port = target_port(slice, &service_port.name, service_port.protocol);
        // The API has slices of one family only.
        if port.is_some()
            && slice.endpoints.first().is_some_and(|e| Family::of(e.address) == family)
        {
            found.reserve(slice.endpoints.len());
            seen.reserve(slice.endpoints.len());
        }
        for (offset, endpoint) in slice.endpoints.iter().enumerate() {
            if Family::of(endpoint.address) != family {
                continue;
            }
            let position = first + offset;
            let Some(port) = port else {
                left_out(position, Excluded::NoSuchPort);
                continue;
            };
            let candidate =
                Candidate { endpoint, position, port, not_in_cluster: None, not_in_local: None };
            match seen.entry((endpoint.address, port)) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(found.len());
                    found.push(candidate);
                }
                std::collections::hash_map::Entry::Occupied(entry) => {
                    let other = &mut found[*entry.get()];
                    let mut duplicate = candidate;
                    if presence(endpoint) > presence(other.endpoint) {
                        std::mem::swap(other, &mut duplicate);
                    }
                    left_out(duplicate.position, Excluded::Duplicate);
                }
            }
        }
    }
    found.retain(|candidate| {
        let conditions = candidate.endpoint.conditions;
        if !conditions.usable() {
            let terminating = conditions.terminating;
            let why = if terminating { Excluded::Terminating } else { Excluded::NotReady };
            left_out(candidate.position, why);
        }
        conditions.usable()
    });
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
