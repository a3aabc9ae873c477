//! Bytes and hashes that KPNG's Go code produced.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use kpng_core::local::{EndpointPort, LocalEndpoint, LocalService};
use kpng_core::model::{
    Conditions, Endpoint, NamespacedName, Node, Protocol, Service, ServicePort, ServiceType,
    TargetPort, TrafficPolicy,
};
use prost::Message as _;

use super::{Ops, unframe};
use crate::proto::localv1::op_item::Op;
use crate::proto::localv1::{EmptyOp, Position};
use crate::proto::{globalv1, localv1};
use crate::wire::ops::hash;
use crate::wire::{
    SliceEndpoint, decode_endpoint_info, decode_node_info, decode_service, decode_service_info,
    global_node_ops, local_ops, reset, sync, triggered,
};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.as_bytes().chunks(2).collect();
    digits.iter().map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The message of this type with these bytes, which it gives again.
fn message<M: prost::Message + Default>(hex: &str) -> M {
    let message = M::decode(&*bytes(hex)).unwrap();
    assert_eq!(message.encode_to_vec(), bytes(hex));
    message
}

const SERVICE_INFO: &str = "124a0a026e731201611a084e6f6465506f7274220e0a0a0a0831302e302e302e3112\
    0032110a0468747470100118502080eb0128903f380142060a016112013142060a01621201325a02080a";

#[test]
fn service_with_everything() {
    message::<globalv1::ServiceInfo>(SERVICE_INFO);
    assert_eq!(hash(&bytes(SERVICE_INFO)), 0x5e3a_a598_981f_4ed0);
    let (key, service) = decode_service_info(&bytes(SERVICE_INFO)).unwrap();
    assert_eq!(key, NamespacedName::new("ns", "a"));
    let expected = Service {
        service_type: ServiceType::NodePort,
        cluster_ips: vec![ip("10.0.0.1")],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
            target_port: TargetPort::Number(8080),
        }],
        external_traffic_policy: TrafficPolicy::Local,
        session_affinity: Some(Duration::from_secs(10)),
        labels: [("a".into(), "1".into()), ("b".into(), "2".into())].into(),
        ..Service::default()
    };
    assert_eq!(service, expected);

    let state =
        kpng_core::model::ServiceState { service: Some(service.into()), slices: Vec::new() };
    let ops = crate::wire::global_ops(&key, None, Some(&state), false);
    let [item] = unframe(ops.group(1)).try_into().unwrap();
    let Some(Op::Set(value)) = item.op else { panic!("{item:?}") };
    assert_eq!(value.r#ref.unwrap().path, "ns|a||");
    let sent = globalv1::ServiceInfo::decode(&*value.bytes).unwrap();
    assert_eq!(sent.hash, 0x5e3a_a598_981f_4ed0);
    let without_hash = globalv1::ServiceInfo { hash: 0, ..sent };
    assert_eq!(without_hash.encode_to_vec(), bytes(SERVICE_INFO));
}

/// Go writes the affinity, field 11, after the fields 12 and 13. We do not, so our hashes of such
/// Services are others; they are opaque.
#[test]
fn service_with_affinity_in_the_order_of_go() {
    const GO: &str = "0a026e73120161600168055a02080a";
    let (_, service) = decode_service(&bytes(GO)).unwrap();
    assert_eq!(service.session_affinity, Some(Duration::from_secs(10)));
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, Some(5));
    let again = localv1::Service::decode(&*bytes(GO)).unwrap().encode_to_vec();
    assert_eq!(again, bytes("0a026e731201615a02080a60016805"));
    let in_info = bytes(&format!("12{:02x}{GO}", GO.len() / 2));
    assert_eq!(hash(&in_info), 0x9fc2_795c_a814_1780);
}

#[test]
fn anonymous_endpoint() {
    const ENDPOINT: &str = "12090a07312e312e312e322a0408011001";
    message::<localv1::Endpoint>(ENDPOINT);
    let port =
        EndpointPort { service_port: 0, port: 80, in_cluster_list: true, in_local_list: false };
    let mut local = LocalService {
        key: NamespacedName::new("ns", "a"),
        service: Service::default().into(),
        endpoints: vec![LocalEndpoint {
            address: ip("1.1.1.2"),
            local: false,
            conditions: Conditions::READY,
            hostname: None,
            pod: None,
            // Of a port that the Service does not have, so it is not in the message.
            ports: vec![port],
        }],
    };
    let endpoint = |local: &LocalService| {
        let ops = local_ops(None, Some(local), false);
        let [item] = unframe(ops.group(4)).try_into().unwrap();
        let Some(Op::Set(value)) = item.op else { panic!("{item:?}") };
        (value.r#ref.unwrap().path, value.bytes)
    };
    let expected = ("ns/a/c99877707b70351a".to_owned(), bytes(ENDPOINT));
    assert_eq!(endpoint(&local), expected);
    local.endpoints[0].address = ip("::ffff:1.1.1.2");
    assert_eq!(endpoint(&local), expected);
    assert_eq!(hash(&[]), 0xef46_db37_51d8_e999);
}

#[test]
fn endpoint_info() {
    const INFO: &str = "321612090a07312e312e312e3222090a046874747010903f3a0208014a040a026e32";
    message::<globalv1::EndpointInfo>(INFO);
    // Of nothing but the fields that KPNG hashes.
    assert_eq!(hash(&bytes(INFO)), 0x58f9_49b7_7b43_8f59);
    // "ns", "a-1", "a"
    let named = format!("12026e731a03612d31220161{INFO}");
    let info: SliceEndpoint = decode_endpoint_info(&bytes(&named)).unwrap();
    assert_eq!((&*info.namespace, &*info.slice, &*info.service), ("ns", "a-1", "a"));
    let expected = Endpoint { node: Some("n2".into()), ..Endpoint::at(ip("1.1.1.2")) };
    assert_eq!(info.endpoints, [expected]);
    // The protocol is not said, so it is all of them.
    let ports: Vec<_> = info.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    let all = Protocol::ALL.map(|protocol| ("http", protocol, 8080));
    assert_eq!(ports, all);
}

#[test]
fn node() {
    const NODE: &str =
        "0a026e31121c0a166b756265726e657465732e696f2f686f73746e616d6512026e3122080a026e3112027a31";
    message::<globalv1::Node>(NODE);
    assert_eq!(hash(&bytes(NODE)), 0x476f_d3d0_0117_1940);
    let node = Node {
        zone: Some("z1".into()),
        labels: [("kubernetes.io/hostname".into(), "n1".into())].into(),
        internal_ips: vec![ip("10.0.0.1")],
        ..Node::default()
    };
    let ops = global_node_ops("n1", None, Some(&node), false);
    let [item] = unframe(ops.group(0)).try_into().unwrap();
    let Some(Op::Set(value)) = item.op else { panic!("{item:?}") };
    assert_eq!(value.r#ref.unwrap().path, "|n1||");
    let info = globalv1::NodeInfo::decode(&*value.bytes).unwrap();
    assert_eq!(info.hash, 0x476f_d3d0_0117_1940);
    assert_eq!(info.node.unwrap().encode_to_vec(), bytes(NODE));
    let (name, decoded) = decode_node_info(&value.bytes).unwrap();
    assert_eq!((&*name, decoded), ("n1", Node { internal_ips: vec![], ..node }));
}

#[test]
fn frames() {
    assert_eq!(*reset(), *bytes("00000000022200"));
    assert_eq!(*sync(None, None), *bytes("00000000020a00"));
    let position = Position { instance: "i".to_owned(), revision: 7 };
    let time = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    let [item] = unframe(&sync(Some(position.clone()), Some(time))).try_into().unwrap();
    let Some(Op::Sync(end)) = item.op else { panic!("{item:?}") };
    assert_eq!(triggered(&end), Some(time));
    assert_eq!(end.position, Some(position));
    assert_eq!(triggered(&EmptyOp::default()), None);
    assert_eq!(triggered(&EmptyOp { triggered: -5, ..EmptyOp::default() }), None);
    assert_eq!(local_ops(None, None, true), Ops::default());
    assert!(Ops::default().is_empty());
}
