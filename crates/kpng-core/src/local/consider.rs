//! All endpoints of a service port, with why each may be chosen or not: for explanations.
//!
//! It is the same code as that of [`localize`](super::localize), which here writes its reasons down.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Excluded, Hints, LocalEndpoint, LocalService, Localize, Place, Slices, categorize, is_local,
    target_port,
};
use crate::model::{Conditions, Endpoint, Family, Service, ServiceState, SlicePort};

/// The endpoints of one service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortEndpoints {
    /// What becomes of hints; `None` when they are not known here.
    pub hints: Option<Hints>,
    /// All endpoints, sorted by address and port.
    pub endpoints: Vec<Considered>,
}

/// An endpoint, and why it may be chosen or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The name of its slice, if known.
    pub slice: Option<Arc<str>>,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` when it does not have the service port.
    pub port: Option<u16>,
    /// The ports that its slice has instead of the service port.
    pub other_ports: Vec<SlicePort>,
    /// Its conditions.
    pub conditions: Conditions,
    /// The name of its Pod.
    pub pod: Option<Box<str>>,
    /// `nodeName`, if known.
    pub node: Option<Arc<str>>,
    /// It runs on this node.
    pub local: bool,
    /// `zone`, if known.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones`.
    pub zone_hints: Box<[Arc<str>]>,
    /// `hints.forNodes`.
    pub node_hints: Box<[Arc<str>]>,
    /// Why it is not in the cluster list.
    pub not_in_cluster: Option<Excluded>,
    /// Why it is not in the local list.
    pub not_in_local: Option<Excluded>,
}

/// What a store can hold for each Service, as far as explanations look into it.
pub trait Consider: Localize {
    /// The Service object, if there is one.
    fn service(&self) -> Option<&Arc<Service>>;

    /// All endpoints of a port of the Service, by its index, in one family.
    fn consider(&self, service_port: usize, family: Family, here: &Place) -> PortEndpoints;

    /// Whether it has an endpoint with this address and, if so, its Pod and whether it runs here.
    fn endpoint_at(&self, address: IpAddr, here: &Place) -> Option<(Option<&str>, bool)>;
}

impl Consider for ServiceState {
    fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    fn consider(&self, service_port: usize, family: Family, here: &Place) -> PortEndpoints {
        let Some(service) = &self.service else { return PortEndpoints::default() };
        let Some(port) = service.ports.get(service_port) else { return PortEndpoints::default() };
        let slices = Slices::of(self);
        let origins = self.slices.iter().flat_map(|(name, slice)| {
            slice.endpoints.iter().map(move |endpoint| (name, slice, endpoint))
        });
        let origins: Vec<_> = origins.collect();
        let mut endpoints = Vec::new();
        let (hints, candidates) =
            categorize(&slices, service, port, family, here, |position, why| {
                let (slice, ports, endpoint) = origins[position];
                let mut considered = considered(slice, endpoint, here);
                considered.port = target_port(ports, &port.name, port.protocol);
                if why == Excluded::NoSuchPort {
                    considered.other_ports = ports.ports.clone();
                }
                (considered.not_in_cluster, considered.not_in_local) = (Some(why), Some(why));
                endpoints.push(considered);
            });
        endpoints.extend(candidates.into_iter().map(|candidate| Considered {
            port: Some(candidate.port),
            not_in_cluster: candidate.not_in_cluster,
            not_in_local: candidate.not_in_local,
            ..considered(origins[candidate.position].0, candidate.endpoint, here)
        }));
        sort(&mut endpoints);
        PortEndpoints { hints: Some(hints), endpoints }
    }

    fn endpoint_at(&self, address: IpAddr, here: &Place) -> Option<(Option<&str>, bool)> {
        let mut endpoints = Slices::of(self).endpoints();
        let found = endpoints.find(|endpoint| endpoint.address == address)?;
        Some((found.pod.as_deref(), is_local(found, here)))
    }
}

fn considered(slice: &Arc<str>, endpoint: &Endpoint, here: &Place) -> Considered {
    Considered {
        slice: Some(Arc::clone(slice)),
        address: endpoint.address,
        port: None,
        other_ports: Vec::new(),
        conditions: endpoint.conditions,
        pod: endpoint.pod.clone(),
        node: endpoint.node.clone(),
        local: is_local(endpoint, here),
        zone: endpoint.zone.clone(),
        zone_hints: endpoint.zone_hints.clone(),
        node_hints: endpoint.node_hints.clone(),
        not_in_cluster: None,
        not_in_local: None,
    }
}

/// Worked out elsewhere: what the server decided is known, and only some of its reasons.
impl Consider for LocalService {
    fn service(&self) -> Option<&Arc<Service>> {
        Some(&self.service)
    }

    fn consider(&self, service_port: usize, family: Family, _: &Place) -> PortEndpoints {
        let mut endpoints: Vec<_> = self
            .ports_of(service_port, family)
            .map(|(endpoint, port)| {
                let excluded = |in_list: bool, mine: bool| match endpoint.conditions.ready {
                    _ if in_list => None,
                    _ if !mine => Some(Excluded::NotLocal),
                    true => Some(Excluded::LeftOutByServer),
                    false => Some(Excluded::Draining),
                };
                Considered {
                    port: Some(port.port),
                    not_in_cluster: excluded(port.in_cluster_list, true),
                    not_in_local: excluded(port.in_local_list, endpoint.local),
                    ..known(endpoint)
                }
            })
            .collect();
        sort(&mut endpoints);
        PortEndpoints { hints: None, endpoints }
    }

    fn endpoint_at(&self, address: IpAddr, _: &Place) -> Option<(Option<&str>, bool)> {
        let found = self.endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some((found.pod.as_deref(), found.local))
    }
}

fn known(endpoint: &LocalEndpoint) -> Considered {
    Considered {
        slice: None,
        address: endpoint.address,
        port: None,
        other_ports: Vec::new(),
        conditions: endpoint.conditions,
        pod: endpoint.pod.clone(),
        node: None,
        local: endpoint.local,
        zone: None,
        zone_hints: Box::default(),
        node_hints: Box::default(),
        not_in_cluster: None,
        not_in_local: None,
    }
}

fn sort(endpoints: &mut [Considered]) {
    endpoints.sort_by(|a, b| {
        let key = |endpoint: &Considered| (endpoint.address, endpoint.port);
        key(a).cmp(&key(b)).then_with(|| a.slice.cmp(&b.slice))
    });
}
