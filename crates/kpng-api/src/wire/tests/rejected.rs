//! Messages that make no sense, and what is said about them.

use expect_test::{Expect, expect};
use kpng_core::model::{Protocol, Service, ServicePort, TargetPort};
use prost::Message as _;

use crate::proto::{globalv1, localv1};
use crate::wire::{
    Invalid, decode_endpoint_info, decode_local_endpoints, decode_local_node, decode_node_info,
    decode_service, decode_service_info,
};

fn check<T: std::fmt::Debug>(result: Result<T, Invalid>, expected: Expect) {
    expected.assert_eq(&result.unwrap_err().to_string());
}

fn check_service(edit: impl Fn(&mut localv1::Service), expected: Expect) {
    let port = localv1::PortMapping { protocol: 1, port: 80, ..localv1::PortMapping::default() };
    let mut message = localv1::Service {
        namespace: "ns".to_owned(),
        name: "a".to_owned(),
        ports: vec![port; 3],
        ..localv1::Service::default()
    };
    decode_service(&message.encode_to_vec()).unwrap();
    edit(&mut message);
    let alone = decode_service(&message.encode_to_vec());
    let info = globalv1::ServiceInfo { hash: 0, service: Some(message) };
    assert_eq!(alone, decode_service_info(&info.encode_to_vec()));
    check(alone, expected);
}

#[test]
fn services() {
    check(
        decode_service(b"\x0a\x05"),
        expect![
            "cannot be decoded: failed to decode Protobuf message: Service.namespace: buffer underflow"
        ],
    );
    check(decode_service_info(b""), expect!["Service is missing"]);
    check_service(|service| service.name.clear(), expect!["Name is missing"]);
    check_service(
        |service| service.namespace = "a/b".to_owned(),
        expect![[r#"Namespace "a/b" is no name of an object"#]],
    );
    check_service(
        |service| service.r#type = "Magic".to_owned(),
        expect![[r#"Type "Magic" is unknown"#]],
    );
    check_service(
        |service| service.ports[2].protocol = 7,
        expect!["Ports[2].Protocol 7 is unknown"],
    );
    check_service(|service| service.ports[0].protocol = 0, expect!["Ports[0].Protocol is missing"]);
    check_service(
        |service| service.ports[0].port = 0,
        expect!["Ports[0].Port 0 is no port number"],
    );
    check_service(
        |service| service.ports[1].port = 65_536,
        expect!["Ports[1].Port 65536 is no port number"],
    );
    check_service(
        |service| service.ports[1].node_port = -1,
        expect!["Ports[1].NodePort -1 is no port number"],
    );
    check_service(
        |service| service.ports[1].target_port = 100_000,
        expect!["Ports[1].TargetPort 100000 is no port number"],
    );
    check_service(
        |service| service.health_check_node_port = 100_000,
        expect!["HealthCheckNodePort 100000 is no port number"],
    );
    check_service(
        |service| service.ports = vec![service.ports[0].clone(); 65_537],
        expect!["Ports has 65537 entries: at most 65536 can be told apart"],
    );
    let no_address = localv1::IpSet { v4: vec!["10.0.0".to_owned()], v6: Vec::new() };
    let ips = localv1::ServiceIPs { cluster_i_ps: Some(no_address), ..Default::default() };
    check_service(
        |service| service.i_ps = Some(ips.clone()),
        expect![[r#"IPs.ClusterIPs "10.0.0" is no IP address"#]],
    );
}

/// As for Kubernetes' own objects.
#[test]
fn what_is_tolerated() {
    let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let set = localv1::IpSet {
        v4: strings(&["10.0.0.1", "10.0.0.256"]),
        v6: strings(&["::ffff:10.0.0.2"]),
    };
    let ips = localv1::ServiceIPs { cluster_i_ps: Some(set), ..Default::default() };
    let timeout = localv1::ClientIpAffinity { timeout_seconds: 0 };
    let message = localv1::Service {
        namespace: "ns".to_owned(),
        name: "a".to_owned(),
        i_ps: Some(ips),
        ip_filters: vec![localv1::IpFilter { target_i_ps: None, source_ranges: strings(&["bad"]) }],
        session_affinity: Some(localv1::service::SessionAffinity::ClientIp(timeout)),
        ..localv1::Service::default()
    };
    let (_, service) = decode_service(&message.encode_to_vec()).unwrap();
    let expected = Service {
        cluster_ips: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
        // Nobody, not everybody.
        load_balancer_source_ranges: Some(Vec::new()),
        session_affinity: Some(Service::DEFAULT_AFFINITY_TIMEOUT),
        ..Service::default()
    };
    assert_eq!(service, expected);
}

fn check_endpoint(edit: impl Fn(&mut localv1::EndpointAddress), expected: Expect) {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        target_port: TargetPort::Unset,
    };
    let service = Service { ports: vec![port], ..Service::default() };
    let mut address = localv1::EndpointAddress {
        ip: "10.0.0.1".to_owned(),
        ports: vec![localv1::EndpointPort { port: 80, ..Default::default() }],
        ..localv1::EndpointAddress::default()
    };
    let decode = |address: &localv1::EndpointAddress| {
        let addresses = vec![address.clone()];
        let message = localv1::Endpoint { addresses, ..localv1::Endpoint::default() };
        decode_local_endpoints(&message.encode_to_vec(), &service)
    };
    decode(&address).unwrap();
    edit(&mut address);
    check(decode(&address), expected);
}

#[test]
fn endpoints() {
    check_endpoint(
        |address| address.ip = "ten".to_owned(),
        expect![[r#"Addresses[0].IP "ten" is no IP address"#]],
    );
    check_endpoint(
        |address| address.ports[0].port = 0,
        expect!["Addresses[0].Ports[0].Port 0 is no port number"],
    );
    check_endpoint(
        |address| address.ports[0].port = u32::MAX,
        expect!["Addresses[0].Ports[0].Port 4294967295 is no port number"],
    );
    check_endpoint(
        |address| address.ports[0].service_port = 1,
        expect!["Addresses[0].Ports[0].ServicePort 1 does not exist: the Service has 1 ports"],
    );
    check_endpoint(
        |address| address.ports[0].service_port = 65_536,
        expect!["Addresses[0].Ports[0].ServicePort 65536 does not exist: the Service has 1 ports"],
    );
}

#[test]
fn endpoint_infos_and_nodes() {
    let info = globalv1::EndpointInfo {
        namespace: "ns".to_owned(),
        source_name: "a|b".to_owned(),
        service_name: "a".to_owned(),
        endpoint: Some(localv1::Endpoint::default()),
        ..globalv1::EndpointInfo::default()
    };
    check(
        decode_endpoint_info(&info.encode_to_vec()),
        expect![[r#"SourceName "a|b" is no name of an object"#]],
    );
    check(decode_endpoint_info(b""), expect!["Endpoint is missing"]);
    let port = localv1::PortName { name: "a".to_owned(), port: 1, protocol: 9 };
    let endpoint = localv1::Endpoint { port_overrides: vec![port], ..Default::default() };
    let info =
        globalv1::EndpointInfo { source_name: "a-1".to_owned(), endpoint: Some(endpoint), ..info };
    check(
        decode_endpoint_info(&info.encode_to_vec()),
        expect!["Endpoint.PortOverrides[0].Protocol 9 is unknown"],
    );
    check(decode_node_info(b""), expect!["Node is missing"]);
    check(decode_local_node(b""), expect!["Name is missing"]);
}
