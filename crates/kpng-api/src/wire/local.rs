//! The local sets: what Services mean on one node.
//!
//! All addresses of a Pod are one message. What belongs to no Pod is a message for each address, and
//! its path is the hash of that message: it cannot change, only be replaced.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use kpng_core::local::{EndpointPort, LocalEndpoint, LocalService};
use kpng_core::model::{Conditions, Node, Service, ServicePort, TargetPort, TrafficPolicy};
use prost::Message as _;

use super::fields::Override;
use super::ops::{Draft, Groups, Messages, Ops, hash, single};
use super::{Invalid, fields, service};
use crate::proto::localv1;
use crate::proto::localv1::Set;

/// The groups of [`local_ops`], in the order in which KPNG sends them.
const SERVICES: Groups = Groups { set: 0, delete: 5 };
const ANONYMOUS: Groups = Groups { set: 4, delete: 1 };
const NAMED: Groups = Groups { set: 2, delete: 3 };

/// What leads a client from `old` to `new`, two states of one Service. Without `details` the
/// messages are KPNG's, and the endpoints those that it would send.
///
/// Nothing is encoded for endpoints that are what they were.
pub(crate) fn local_ops(
    old: Option<&LocalService>,
    new: Option<&LocalService>,
    details: bool,
) -> Ops {
    let mut draft = Draft::default();
    let same_service = old.zip(new).is_some_and(|(old, new)| {
        old.service == new.service && old.endpoints.is_empty() == new.endpoints.is_empty()
    });
    if !same_service {
        let message = |local: Option<&LocalService>| -> Messages {
            let encode = |local| service::encode_local(local, details).encode_to_vec();
            local.map(|local| (local.key.to_string(), encode(local))).into_iter().collect()
        };
        draft.difference(SERVICES, Set::ServicesSet, &message(old), message(new));
    }

    let same_frame =
        old.zip(new).is_some_and(|(old, new)| frames_alike(&old.service, &new.service));
    let (parts_old, parts_new) = (parts(old), parts(new));
    let encode_changed = |local: Option<&LocalService>, these: &Parts<'_>, those: &Parts<'_>| {
        let mut messages = EndpointMessages::default();
        for (key, part) in these {
            if !(same_frame && those.get(key) == Some(part)) {
                let local = local.expect("what has parts is there");
                messages.add(local, key, part, details);
            }
        }
        messages
    };
    let before = encode_changed(old, &parts_old, &parts_new);
    let after = encode_changed(new, &parts_new, &parts_old);
    draft.difference(NAMED, Set::EndpointsSet, &before.named, after.named);
    draft.difference(ANONYMOUS, Set::EndpointsSet, &before.anonymous, after.anonymous);
    draft.finish()
}

/// Two states of a Service put the same endpoint into the same message.
fn frames_alike(old: &Service, new: &Service) -> bool {
    old.ports == new.ports
        && old.internal_traffic_policy == new.internal_traffic_policy
        && old.external_traffic_policy == new.external_traffic_policy
}

/// Who an endpoint's messages are about; what is not under the same key shares no message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Pod(&'a str),
    Address(IpAddr),
}

type Parts<'a> = BTreeMap<Key<'a>, Vec<&'a LocalEndpoint>>;

/// Endpoints by key. Two that have the name of a Pod in common but not the place are two Pods, one
/// of them about to disappear: then only the first goes under the name.
fn parts(local: Option<&LocalService>) -> Parts<'_> {
    let mut parts = Parts::new();
    for endpoint in local.into_iter().flat_map(|local| &local.endpoints) {
        let same_pod = |part: &Vec<&LocalEndpoint>| {
            part[0].local == endpoint.local && part[0].hostname == endpoint.hostname
        };
        let key = match pod_in_path(endpoint) {
            Some(pod) if parts.get(&Key::Pod(pod)).is_none_or(same_pod) => Key::Pod(pod),
            _ => Key::Address(endpoint.address),
        };
        parts.entry(key).or_default().push(endpoint);
    }
    parts
}

/// The name of the Pod, if it can be the last part of a path.
fn pod_in_path(endpoint: &LocalEndpoint) -> Option<&str> {
    endpoint.pod.as_deref().filter(|pod| !pod.is_empty() && !pod.contains('/'))
}

/// Encoded values of `EndpointsSet` by path, those of Pods and the others.
#[derive(Default)]
struct EndpointMessages {
    named: Messages,
    anonymous: Messages,
}

impl EndpointMessages {
    fn add(&mut self, local: &LocalService, key: &Key<'_>, part: &[&LocalEndpoint], details: bool) {
        let encode = |part| encode_endpoint(&local.service, part, details);
        match key {
            Key::Pod(pod) => {
                let bytes = encode(part).map(|message| message.encode_to_vec());
                self.named.extend(bytes.map(|bytes| (format!("{}/{pod}", local.key), bytes)));
            }
            Key::Address(_) => {
                for message in part.chunks(1).filter_map(encode) {
                    let bytes = message.encode_to_vec();
                    let path = format!("{}/{:x}", local.key, hash(&bytes));
                    self.anonymous.insert(path, bytes);
                }
            }
        }
    }
}

/// The message of endpoints that are one to a client. Without `details` what may get no traffic is
/// left out, and `None` means that nothing is left.
fn encode_endpoint(
    service: &Service,
    endpoints: &[&LocalEndpoint],
    details: bool,
) -> Option<localv1::Endpoint> {
    let internal = |port: &EndpointPort| in_list_of(service.internal_traffic_policy, port);
    let external = |port: &EndpointPort| in_list_of(service.external_traffic_policy, port);
    let counts = |port: &EndpointPort| details || internal(port) || external(port);
    let sent: Vec<&LocalEndpoint> =
        endpoints.iter().copied().filter(|e| e.ports.iter().any(counts)).collect();
    let first = sent.first()?;
    let ports = || sent.iter().flat_map(|endpoint| &endpoint.ports).filter(|port| counts(port));
    Some(localv1::Endpoint {
        hostname: fields::text(first.hostname.as_deref()),
        i_ps: Some(fields::ip_set(sent.iter().map(|endpoint| endpoint.address))),
        local: first.local,
        port_overrides: port_overrides(service, ports),
        scopes: Some(localv1::EndpointScopes {
            internal: ports().any(internal),
            external: ports().any(external),
        }),
        addresses: if details {
            sent.iter().copied().map(encode_address).collect()
        } else {
            vec![]
        },
        pod_name: fields::text(first.pod.as_deref().filter(|_| details)),
    })
}

fn in_list_of(policy: TrafficPolicy, port: &EndpointPort) -> bool {
    match policy {
        TrafficPolicy::Cluster => port.in_cluster_list,
        TrafficPolicy::Local => port.in_local_list,
    }
}

/// The numbers of the Service's ports by name. KPNG's clients look up a port without a name by the
/// name of its target.
fn port_overrides<'a, I>(service: &Service, ports: impl Fn() -> I) -> Vec<localv1::PortName>
where
    I: Iterator<Item = &'a EndpointPort>,
{
    let mut overrides: Vec<localv1::PortName> = Vec::new();
    let mut add = |name: &str, index: usize| {
        let served = ports().find(|port| usize::from(port.service_port) == index);
        if let Some(served) = served
            && !overrides.iter().any(|other| other.name == name)
        {
            let (name, port) = (name.to_owned(), served.port.into());
            overrides.push(localv1::PortName { name, port, protocol: 0 });
        }
    };
    for (index, port) in service.ports.iter().enumerate() {
        add(&port.name, index);
    }
    for (index, port) in service.ports.iter().enumerate() {
        if let ("", TargetPort::Name(target)) = (&*port.name, &port.target_port) {
            add(target, index);
        }
    }
    overrides
}

fn encode_address(endpoint: &LocalEndpoint) -> localv1::EndpointAddress {
    let Conditions { ready, serving, terminating } = endpoint.conditions;
    let port = |port: &EndpointPort| localv1::EndpointPort {
        service_port: port.service_port.into(),
        port: port.port.into(),
        in_cluster_list: port.in_cluster_list,
        in_local_list: port.in_local_list,
    };
    localv1::EndpointAddress {
        ip: endpoint.address.to_canonical().to_string(),
        ready,
        serving,
        terminating,
        ports: endpoint.ports.iter().map(port).collect(),
    }
}

/// Decodes a value of `EndpointsSet`, one of `service`: all endpoints that it is about.
///
/// A server that sends no `Addresses` does not say everything: then an endpoint counts as ready, and
/// the lists are guessed from the scopes.
pub(crate) fn decode_local_endpoints(
    bytes: &[u8],
    service: &Service,
) -> Result<Vec<LocalEndpoint>, Invalid> {
    let mut message = localv1::Endpoint::decode(bytes)?;
    if message.addresses.is_empty() {
        return decode_without_addresses(message, service);
    }
    let addresses = std::mem::take(&mut message.addresses);
    let hostname: Option<Box<str>> = fields::name(message.hostname);
    let pod: Option<Box<str>> = fields::name(message.pod_name);
    let convert = |(at, address): (usize, localv1::EndpointAddress)| {
        let Some(ip) = fields::parse_address(&address.ip) else {
            let field = format!("Addresses[{at}].IP");
            return Err(Invalid::Address { field, value: address.ip });
        };
        let localv1::EndpointAddress { ready, serving, terminating, ports, .. } = address;
        let ports = ports.iter().enumerate().map(|(index, port)| {
            decode_port(format_args!("Addresses[{at}].Ports[{index}]"), port, service)
        });
        Ok(LocalEndpoint {
            address: ip,
            local: message.local,
            conditions: Conditions { ready, serving, terminating },
            hostname: hostname.clone(),
            pod: pod.clone(),
            ports: ports.collect::<Result<_, _>>()?,
        })
    };
    addresses.into_iter().enumerate().map(convert).collect()
}

fn decode_port(
    field: std::fmt::Arguments<'_>,
    port: &localv1::EndpointPort,
    service: &Service,
) -> Result<EndpointPort, Invalid> {
    let (value, ports) = (port.service_port, service.ports.len());
    let index = u16::try_from(value).ok().filter(|index| usize::from(*index) < ports);
    let Some(service_port) = index else {
        return Err(Invalid::PortIndex { field: format!("{field}.ServicePort"), value, ports });
    };
    Ok(EndpointPort {
        service_port,
        port: fields::port(format_args!("{field}.Port"), port.port)?,
        in_cluster_list: port.in_cluster_list,
        in_local_list: port.in_local_list,
    })
}

fn decode_without_addresses(
    message: localv1::Endpoint,
    service: &Service,
) -> Result<Vec<LocalEndpoint>, Invalid> {
    use TrafficPolicy::{Cluster, Local};

    // KPNG's server always fills them; other servers may not know them, as its clients do not.
    let everything = localv1::EndpointScopes { internal: true, external: true };
    let localv1::EndpointScopes { internal, external } = message.scopes.unwrap_or(everything);
    let policies = (service.internal_traffic_policy, service.external_traffic_policy);
    let in_cluster_list = match policies {
        (Cluster, _) => internal,
        (Local, Cluster) => external,
        (Local, Local) => internal || external,
    };
    let in_local_list = message.local && policies != (Cluster, Cluster) && (internal || external);

    let overrides = fields::port_overrides("PortOverrides", message.port_overrides)?;
    let mut ports = Vec::with_capacity(service.ports.len());
    for (service_port, port) in (0..).zip(&service.ports) {
        if let Some(port) = resolve(port, &overrides) {
            ports.push(EndpointPort { service_port, port, in_cluster_list, in_local_list });
        }
    }
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let hostname: Option<Box<str>> = fields::name(message.hostname);
    let endpoint = |address| LocalEndpoint {
        address,
        local: message.local,
        conditions: Conditions::READY,
        hostname: hostname.clone(),
        pod: None,
        ports: ports.clone(),
    };
    Ok(fields::addresses_of(message.i_ps).into_iter().map(endpoint).collect())
}

/// Which number a Service port has on an endpoint.
///
/// As in KPNG an endpoint which does not name a port that has a name does not have it. A port
/// without a name may be there under the empty name, under its target's name, or as its target's
/// number. (KPNG looked at the last two only, and so missed what a slice said of such a port.)
fn resolve(port: &ServicePort, overrides: &[Override]) -> Option<u16> {
    let find = |name: &str| overrides.iter().find(|other| other.name == name);
    if let Some(found) = find(&port.name) {
        return found.port;
    }
    if !port.name.is_empty() {
        return None;
    }
    match &port.target_port {
        TargetPort::Unset => Some(port.port),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(target) => find(target)?.port,
    }
}

/// The framed operation that says what the view's node is.
pub(crate) fn local_node_op(name: &str, node: Option<&Node>) -> Bytes {
    let bytes = node.map(|node| encode_node(name, node).encode_to_vec());
    single(Set::LocalNodesSet, name.to_owned(), bytes)
}

fn encode_node(name: &str, node: &Node) -> localv1::Node {
    let Node { zone, internal_ips, pod_cidrs, going_away, labels, annotations } = node;
    localv1::Node {
        name: name.to_owned(),
        zone: fields::text(zone.as_deref()),
        internal_i_ps: fields::address_texts(internal_ips),
        pod_cid_rs: fields::network_texts(pod_cidrs),
        going_away: *going_away,
        labels: fields::string_map(labels),
        annotations: fields::string_map(annotations),
    }
}

/// Decodes a value of `LocalNodesSet`.
pub(crate) fn decode_local_node(bytes: &[u8]) -> Result<(Arc<str>, Node), Invalid> {
    let message = localv1::Node::decode(bytes)?;
    let node = Node {
        zone: fields::name(message.zone),
        internal_ips: fields::address_list(&message.internal_i_ps),
        pod_cidrs: fields::network_list(&message.pod_cid_rs),
        going_away: message.going_away,
        labels: fields::boxed_map(message.labels),
        annotations: fields::boxed_map(message.annotations),
    };
    Ok((fields::object_name("Name", message.name)?, node))
}
