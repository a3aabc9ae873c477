//! Tests of the conversions, and what they have in common: a client's copy of the sets, and text for
//! operations.

mod golden;
mod properties;
mod rejected;
mod tables;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;

use super::Ops;
use crate::proto::localv1::op_item::Op;
use crate::proto::localv1::{OpItem, Set};
use crate::proto::{globalv1, localv1};

/// Takes framed operations apart.
fn unframe(mut bytes: &[u8]) -> Vec<OpItem> {
    let mut items = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        assert_eq!(head[0], 0, "nothing is compressed");
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let (item, rest) = rest.split_at(length as usize);
        items.push(OpItem::decode(item).unwrap());
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame is left: {bytes:?}");
    items
}

fn set_of(number: i32) -> Set {
    Set::try_from(number).unwrap()
}

/// A client's copy of the sets.
#[derive(Clone, Debug, Default, PartialEq)]
struct Copy(BTreeMap<(Set, String), Vec<u8>>);

impl Copy {
    /// Applies one operation, which must change something.
    fn apply(&mut self, item: OpItem) {
        match item.op.unwrap() {
            Op::Set(value) => {
                let at = value.r#ref.unwrap();
                let old = self.0.insert((set_of(at.set), at.path.clone()), value.bytes.clone());
                assert_ne!(old, Some(value.bytes), "{} was set to what it is", at.path);
            }
            Op::Delete(at) => {
                let old = self.0.remove(&(set_of(at.set), at.path.clone()));
                assert!(old.is_some(), "{} was deleted but is not there", at.path);
            }
            other => panic!("not about a value: {other:?}"),
        }
    }

    /// The values of one set.
    fn values(&self, set: Set) -> impl Iterator<Item = (&str, &[u8])> {
        let of_set = self.0.iter().filter(move |((other, _), _)| *other == set);
        of_set.map(|((_, path), bytes)| (path.as_str(), bytes.as_slice()))
    }
}

/// One line for each operation, with the number of its group, and more lines for what only clients
/// that ask for details get.
fn show(ops: &Ops) -> String {
    let mut out = String::new();
    let mut count = 0;
    for group in 0..Ops::GROUPS {
        for item in unframe(ops.group(group)) {
            count += 1;
            match item.op.unwrap() {
                Op::Delete(at) => writeln!(out, "{group} delete {}", at.path).unwrap(),
                Op::Set(value) => {
                    let at = value.r#ref.unwrap();
                    let value = show_value(set_of(at.set), &value.bytes);
                    writeln!(out, "{group} set {} {value}", at.path).unwrap();
                }
                other => panic!("not about a value: {other:?}"),
            }
        }
    }
    assert_eq!(ops.count(), count);
    assert_eq!(ops.is_empty(), count == 0);
    assert_eq!(ops.len(), (0..Ops::GROUPS).map(|n| ops.group(n).len()).sum::<usize>());
    out
}

fn show_value(set: Set, bytes: &[u8]) -> String {
    let mut words = Vec::new();
    match set {
        Set::ServicesSet => service(&mut words, localv1::Service::decode(bytes).unwrap()),
        Set::EndpointsSet => endpoint(&mut words, localv1::Endpoint::decode(bytes).unwrap()),
        Set::GlobalServiceInfos => {
            service(&mut words, globalv1::ServiceInfo::decode(bytes).unwrap().service.unwrap());
        }
        Set::GlobalEndpointInfos => {
            endpoint_info(&mut words, globalv1::EndpointInfo::decode(bytes).unwrap());
        }
        Set::GlobalNodeInfos => {
            words.push(format!("{:?}", globalv1::NodeInfo::decode(bytes).unwrap().node.unwrap()));
        }
        Set::LocalNodesSet => words.push(format!("{:?}", localv1::Node::decode(bytes).unwrap())),
        Set::UnknownSet => panic!("a set that nobody knows"),
    }
    words.join(" ").replace(" \n", "\n")
}

type Words = Vec<String>;

fn flag(words: &mut Words, name: &str, value: bool) {
    words.extend(value.then(|| name.to_owned()));
}

fn ips(words: &mut Words, name: &str, set: Option<localv1::IpSet>) {
    if let Some(set) = set {
        words.push(format!("{name}={}", [set.v4, set.v6].concat().join(",")));
    }
}

fn service(words: &mut Words, service: localv1::Service) {
    words.push(service.r#type);
    let set = service.i_ps.unwrap();
    ips(words, "cluster", set.cluster_i_ps);
    ips(words, "external", set.external_i_ps);
    ips(words, "balancer", set.load_balancer_i_ps);
    flag(words, "headless", set.headless);
    for port in service.ports {
        let protocol = localv1::Protocol::try_from(port.protocol).unwrap().as_str_name();
        let target = match port.target_port_name.as_str() {
            "" => port.target_port.to_string(),
            name => name.to_owned(),
        };
        let node_port = port.node_port;
        words.push(format!("{}:{}/{protocol}:{node_port}->{target}", port.name, port.port));
    }
    flag(words, "internal-local", service.internal_traffic_to_local);
    flag(words, "external-local", service.external_traffic_to_local);
    words
        .extend(service.ip_filters.iter().map(|f| format!("ranges={}", f.source_ranges.join(","))));
    words.extend(service.session_affinity.map(|affinity| format!("{affinity:?}")));
    if service.health_check_node_port != 0 {
        words.push(format!("health={}", service.health_check_node_port));
    }
    words.extend(service.created.map(|created| format!("created={created}")));
    ips(words, "proxied", service.proxied_load_balancer_i_ps);
    flag(words, "has-endpoints", service.has_endpoints);
}

fn endpoint(words: &mut Words, endpoint: localv1::Endpoint) {
    ips(words, "ips", endpoint.i_ps);
    if !endpoint.hostname.is_empty() {
        words.push(format!("hostname={}", endpoint.hostname));
    }
    flag(words, "local", endpoint.local);
    for port in endpoint.port_overrides {
        let protocol = match localv1::Protocol::try_from(port.protocol).unwrap() {
            localv1::Protocol::UnknownProtocol => String::new(),
            protocol => format!("/{}", protocol.as_str_name()),
        };
        words.push(format!("{:?}={}{protocol}", port.name, port.port));
    }
    if let Some(scopes) = endpoint.scopes {
        flag(words, "internal", scopes.internal);
        flag(words, "external", scopes.external);
    }
    if !endpoint.pod_name.is_empty() {
        words.push(format!("pod={}", endpoint.pod_name));
    }
    for address in endpoint.addresses {
        words.push(format!("\n     {}", address.ip));
        flag(words, "ready", address.ready);
        flag(words, "serving", address.serving);
        flag(words, "terminating", address.terminating);
        for port in address.ports {
            words.push(format!("{}:{}", port.service_port, port.port));
            flag(words, "cluster", port.in_cluster_list);
            flag(words, "local", port.in_local_list);
        }
    }
}

fn endpoint_info(words: &mut Words, info: globalv1::EndpointInfo) {
    endpoint(words, info.endpoint.unwrap());
    let conditions = info.conditions.unwrap();
    flag(words, "ready", conditions.ready);
    words.extend(conditions.serving.map(|serving| format!("serving={serving}")));
    flag(words, "terminating", conditions.terminating);
    let topology = info.topology.unwrap();
    words.push(format!("at={:?}/{:?} pod={:?}", topology.node, topology.zone, info.pod_name));
    words
        .extend(info.hints.map(|hints| format!("zones={:?} nodes={:?}", hints.zones, hints.nodes)));
}
