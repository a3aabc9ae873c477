//! The global sets: Services, the endpoints of their slices, and Nodes.
//!
//! Every value carries its hash, and an endpoint's path is its hash: an endpoint cannot change, only
//! be replaced. Hashes cover everything in a value.

use std::sync::Arc;

use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, NamespacedName, Node, Protocol, Service, ServiceState,
    SlicePort,
};
use prost::Message as _;

use super::ops::{Draft, Groups, Messages, Ops, hash};
use super::{Invalid, fields, service};
use crate::proto::localv1::Set;
use crate::proto::{globalv1, localv1};

const ZONE: &str = "topology.kubernetes.io/zone";

/// The groups of [`global_ops`] and [`global_node_ops`], in the order in which KPNG sends them.
const NODES: Groups = Groups { set: 0, delete: 5 };
const SERVICES: Groups = Groups { set: 1, delete: 4 };
const ENDPOINTS: Groups = Groups { set: 2, delete: 3 };

/// What leads a client from `old` to `new`, two states of the Service `key` and its slices. Without
/// `details` the messages are KPNG's, and endpoints are also at a path without the Service's name.
///
/// Nothing is encoded for slices that are what they were. Endpoints are sent with or without a
/// Service.
pub(crate) fn global_ops(
    key: &NamespacedName,
    old: Option<&ServiceState>,
    new: Option<&ServiceState>,
    details: bool,
) -> Ops {
    let mut draft = Draft::default();
    let service = |state: Option<&ServiceState>| state.and_then(|state| state.service.clone());
    let (service_old, service_new) = (service(old), service(new));
    if service_old != service_new {
        let message = |service: Option<Arc<Service>>| -> Messages {
            let path = || format!("{}|{}||", key.namespace, key.name);
            let encode = |service: Arc<Service>| encode_service_info(key, &service, details);
            service.map(|service| (path(), encode(service))).into_iter().collect()
        };
        let (before, after) = (message(service_old), message(service_new));
        draft.difference(SERVICES, Set::GlobalServiceInfos, &before, after);
    }

    let encode_changed = |these, those| {
        let mut messages = Messages::new();
        for (name, slice) in changed_slices(these, those) {
            add_endpoints(&mut messages, key, name, slice, details);
        }
        messages
    };
    let (before, after) = (encode_changed(old, new), encode_changed(new, old));
    draft.difference(ENDPOINTS, Set::GlobalEndpointInfos, &before, after);
    draft.finish()
}

/// The slices of `these` that are not the same in `those`.
fn changed_slices<'a>(
    these: Option<&'a ServiceState>,
    those: Option<&'a ServiceState>,
) -> impl Iterator<Item = &'a (Arc<str>, Arc<EndpointSlice>)> {
    let those = those.map_or(&[][..], |state| &state.slices);
    let is_same = |(name, slice): &(Arc<str>, Arc<EndpointSlice>)| {
        let found = those.binary_search_by(|(other, _)| other.cmp(name));
        found.is_ok_and(|at| Arc::ptr_eq(&those[at].1, slice))
    };
    let these = these.map_or(&[][..], |state| &state.slices);
    these.iter().filter(move |entry| !is_same(entry))
}

fn encode_service_info(key: &NamespacedName, service: &Service, details: bool) -> Vec<u8> {
    let service = Some(service::encode(key, service, details));
    let mut info = globalv1::ServiceInfo { hash: 0, service };
    info.hash = hash(&info.encode_to_vec());
    info.encode_to_vec()
}

fn add_endpoints(
    messages: &mut Messages,
    key: &NamespacedName,
    source: &str,
    slice: &EndpointSlice,
    details: bool,
) {
    let NamespacedName { namespace, name } = key;
    for endpoint in &slice.endpoints {
        let mut info = encode_endpoint_info(key, source, endpoint, &slice.ports, details);
        info.hash = hash(&info.encode_to_vec());
        let bytes = info.encode_to_vec();
        if !details {
            messages.insert(format!("{namespace}||{source}|{:x}", info.hash), bytes.clone());
        }
        messages.insert(format!("{namespace}|{name}|{source}|{:x}", info.hash), bytes);
    }
}

fn encode_endpoint_info(
    key: &NamespacedName,
    source: &str,
    endpoint: &Endpoint,
    ports: &[SlicePort],
    details: bool,
) -> globalv1::EndpointInfo {
    let Endpoint { address, conditions, node, zone, zone_hints, node_hints, hostname, pod } =
        endpoint;
    let texts = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect();
    let hints = globalv1::TopologyHints {
        zones: texts(zone_hints),
        nodes: if details { texts(node_hints) } else { Vec::new() },
    };
    let port = |port: &SlicePort| localv1::PortName {
        name: port.name.to_string(),
        port: port.port.into(),
        protocol: if details { fields::protocol_number(port.protocol) } else { 0 },
    };
    globalv1::EndpointInfo {
        hash: 0,
        namespace: key.namespace.to_string(),
        source_name: source.to_owned(),
        service_name: key.name.to_string(),
        endpoint: Some(localv1::Endpoint {
            hostname: fields::text(hostname.as_deref()),
            i_ps: Some(fields::ip_set([*address])),
            port_overrides: ports.iter().map(port).collect(),
            ..localv1::Endpoint::default()
        }),
        conditions: Some(globalv1::EndpointConditions {
            ready: conditions.ready,
            serving: details.then_some(conditions.serving),
            terminating: details && conditions.terminating,
        }),
        pod_name: fields::text(pod.as_deref()),
        // KPNG's clients rely on its being there, though empty.
        topology: Some(globalv1::TopologyInfo {
            node: fields::text(node.as_deref()),
            zone: fields::text(zone.as_deref()),
        }),
        hints: (hints != globalv1::TopologyHints::default()).then_some(hints),
    }
}

/// What leads a client from `old` to `new`, two states of the Node `name`.
pub(crate) fn global_node_ops(
    name: &str,
    old: Option<&Node>,
    new: Option<&Node>,
    details: bool,
) -> Ops {
    let mut draft = Draft::default();
    if old != new {
        let message = |node: Option<&Node>| -> Messages {
            let entry = |node| (format!("|{name}||"), encode_node_info(name, node, details));
            node.map(entry).into_iter().collect()
        };
        draft.difference(NODES, Set::GlobalNodeInfos, &message(old), message(new));
    }
    draft.finish()
}

fn encode_node_info(name: &str, node: &Node, details: bool) -> Vec<u8> {
    let Node { zone, internal_ips, pod_cidrs, going_away, labels, annotations } = node;
    let node = globalv1::Node {
        name: name.to_owned(),
        labels: fields::string_map(labels),
        annotations: fields::string_map(annotations),
        topology: Some(globalv1::TopologyInfo {
            node: name.to_owned(),
            zone: fields::text(zone.as_deref()),
        }),
        internal_i_ps: if details { fields::address_texts(internal_ips) } else { Vec::new() },
        pod_cid_rs: if details { fields::network_texts(pod_cidrs) } else { Vec::new() },
        going_away: details && *going_away,
    };
    let hash = hash(&node.encode_to_vec());
    globalv1::NodeInfo { hash, node: Some(node) }.encode_to_vec()
}

/// Decodes a value of `GlobalServiceInfos`.
pub(crate) fn decode_service_info(bytes: &[u8]) -> Result<(NamespacedName, Service), Invalid> {
    let info = globalv1::ServiceInfo::decode(bytes)?;
    service::decode(info.service.ok_or_else(|| missing("Service"))?)
}

/// What one `EndpointInfo` says of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    /// The namespace of both the Service and the slice.
    pub(crate) namespace: Arc<str>,
    /// The name of the Service.
    pub(crate) service: Arc<str>,
    /// The name of the slice.
    pub(crate) slice: Arc<str>,
    /// One for each address; they differ in nothing else.
    pub(crate) endpoints: Vec<Endpoint>,
    /// The ports of the slice.
    pub(crate) ports: Vec<SlicePort>,
}

/// Decodes a value of `GlobalEndpointInfos`.
pub(crate) fn decode_endpoint_info(bytes: &[u8]) -> Result<SliceEndpoint, Invalid> {
    let info = globalv1::EndpointInfo::decode(bytes)?;
    let message = info.endpoint.ok_or_else(|| missing("Endpoint"))?;
    let topology = info.topology.unwrap_or_default();
    let hints = info.hints.unwrap_or_default();
    let conditions = info.conditions.map_or(Conditions::READY, |conditions| Conditions {
        ready: conditions.ready,
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating,
    });
    // All but the address.
    let common = Endpoint {
        conditions,
        node: fields::name(topology.node),
        zone: fields::name(topology.zone),
        zone_hints: sorted_names(hints.zones),
        node_hints: sorted_names(hints.nodes),
        hostname: fields::name(message.hostname),
        pod: fields::name(info.pod_name),
        ..Endpoint::at(std::net::Ipv4Addr::UNSPECIFIED.into())
    };
    let addresses = fields::addresses_of(message.i_ps).into_iter();
    Ok(SliceEndpoint {
        namespace: fields::object_name("Namespace", info.namespace)?,
        service: fields::object_name("ServiceName", info.service_name)?,
        slice: fields::object_name("SourceName", info.source_name)?,
        endpoints: addresses.map(|address| Endpoint { address, ..common.clone() }).collect(),
        ports: decode_slice_ports(message.port_overrides)?,
    })
}

/// A port whose protocol an old server does not know has that number in all of them: Services ask by
/// name and protocol.
fn decode_slice_ports(overrides: Vec<localv1::PortName>) -> Result<Vec<SlicePort>, Invalid> {
    let mut ports = Vec::with_capacity(overrides.len());
    for port in fields::port_overrides("Endpoint.PortOverrides", overrides)? {
        let Some(number) = port.port else { continue };
        let name: Arc<str> = port.name.into();
        let protocols = match &port.protocol {
            Some(protocol) => std::slice::from_ref(protocol),
            None => &Protocol::ALL,
        };
        ports.extend(protocols.iter().map(|protocol| SlicePort {
            name: Arc::clone(&name),
            protocol: *protocol,
            port: number,
        }));
    }
    Ok(ports)
}

fn sorted_names(names: Vec<String>) -> Box<[Arc<str>]> {
    let mut names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
    names.sort_unstable();
    names.into()
}

/// Decodes a value of `GlobalNodeInfos`.
pub(crate) fn decode_node_info(bytes: &[u8]) -> Result<(Arc<str>, Node), Invalid> {
    let info = globalv1::NodeInfo::decode(bytes)?;
    let message = info.node.ok_or_else(|| missing("Node"))?;
    let zone = match message.topology {
        Some(topology) => topology.zone,
        None => message.labels.get(ZONE).cloned().unwrap_or_default(),
    };
    let node = Node {
        zone: fields::name(zone),
        internal_ips: fields::address_list(&message.internal_i_ps),
        pod_cidrs: fields::network_list(&message.pod_cid_rs),
        going_away: message.going_away,
        labels: fields::boxed_map(message.labels),
        annotations: fields::boxed_map(message.annotations),
    };
    Ok((fields::object_name("Node.Name", message.name)?, node))
}

fn missing(field: &str) -> Invalid {
    Invalid::Missing { field: field.to_owned() }
}
