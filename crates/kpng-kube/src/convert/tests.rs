//! Each case is JSON; it is converted as JSON and, encoded from the same message, as protobuf.

use expect_test::{Expect, expect};
use kpng_core::model::{Conditions, EndpointSlice, Node, Service};
use kpng_core::store::Store;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::selectors::Glob;

fn selection() -> Selection {
    let globs = |patterns: &[&str]| patterns.iter().map(|p| Glob::new(p).unwrap()).collect();
    Selection {
        service_labels: globs(&["app*"]),
        service_annotations: globs(&["*"]),
        node_labels: globs(&["*/zone"]),
        node_annotations: Vec::new(),
    }
}

fn encodings(kind: Kind, object: &Value) -> [RawObject; 2] {
    let bytes = Bytes::from(object.to_string());
    let json = RawObject { encoding: Encoding::Json, bytes };
    let protobuf = match kind {
        Kind::Services => json.decode::<wire::Service>().unwrap().encode_to_vec(),
        Kind::EndpointSlices => json.decode::<wire::EndpointSlice>().unwrap().encode_to_vec(),
        Kind::Nodes => json.decode::<wire::Node>().unwrap().encode_to_vec(),
    };
    [json, RawObject { encoding: Encoding::Protobuf, bytes: protobuf.into() }]
}

/// What a store has after `object` was put into it, and what was complained about.
fn put(kind: Kind, object: &RawObject) -> (Store, Outcome) {
    let (mut writer, store) = Store::new();
    let mut batch = Batch::new();
    let outcome = Converter::new(selection()).put(kind, object, &mut batch);
    writer.apply(batch);
    (store, outcome)
}

fn complaint(outcome: &Outcome) -> String {
    let Some(complaint) = &outcome.complaint else { return String::new() };
    let reason = complaint.rejected.map_or("left out", RejectReason::name);
    format!("\n{reason}: {}", complaint.details.join("; "))
}

fn key() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

#[track_caller]
fn check_service(spec: Value, status: Value, expected: Expect) {
    let metadata = json!({
        "namespace": "shop", "name": "web", "resourceVersion": "5",
        "creationTimestamp": "2026-11-25T08:17:00Z",
        "labels": {"app": "web", "team": "a"}, "annotations": {"note": "x"},
    });
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    let shown = encodings(Kind::Services, &object).map(|object| {
        let (store, outcome) = put(Kind::Services, &object);
        assert_eq!(outcome.key, Some(key()));
        assert_eq!(outcome.resource_version, "5");
        let service = store.service(&key()).and_then(|state| state.service.clone());
        let service = service.map_or_else(|| "no Service".to_owned(), |s| show_service(&s));
        format!("{service}{}", complaint(&outcome))
    });
    assert_eq!(shown[0], shown[1], "JSON and protobuf differ");
    expected.assert_eq(&shown[0]);
}

/// Everything that differs from the default.
fn show_service(service: &Service) -> String {
    let shown = format!("{service:#?}");
    let default = format!("{:#?}", Service::default());
    let defaults: Vec<_> = default.lines().collect();
    let lines = shown.lines().filter(|line| !defaults.contains(line) || line.len() < 3);
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_ordinary_service() {
    check_service(
        json!({
            "type": "ClusterIP",
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00::7"],
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080},
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
            ],
        }),
        json!({"loadBalancer": {}}),
        expect![[
            r#"cluster_ips: [ 10.96.0.7, fd00::7, ], ports: [ ServicePort { name: "http", protocol: Tcp, port: 80, node_port: None, target_port: Number( 8080, ), }, ServicePort { name: "dns", protocol: Udp, port: 53, node_port: None, target_port: Name( "dns", ), }, ], labels: { "app": "web", }, annotations: { "note": "x", }, created: Some( 1795594620, ), }"#
        ]],
    );
}

#[test]
fn everything_a_load_balancer_can_have() {
    check_service(
        json!({
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.7"],
            "externalIPs": ["192.0.2.1"],
            "loadBalancerSourceRanges": [" 10.0.0.1/8 ", "::/0"],
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Local",
            "healthCheckNodePort": 30100,
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
        json!({"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1", "ipMode": "VIP"},
            {"ip": "198.51.100.2", "ipMode": "Proxy"},
            {"ip": "198.51.100.3"},
            {"hostname": "lb.example"},
        ]}}),
        expect![[
            r#"service_type: LoadBalancer, cluster_ips: [ 10.96.0.7, ], external_ips: [ 192.0.2.1, ], load_balancer_ips: [ LoadBalancerIp { ip: 198.51.100.1, proxied: false, }, LoadBalancerIp { ip: 198.51.100.2, proxied: true, }, LoadBalancerIp { ip: 198.51.100.3, proxied: false, }, ], load_balancer_source_ranges: Some( [ 10.0.0.0/8, ::/0, ], ), ports: [ ServicePort { name: "", protocol: Tcp, port: 80, node_port: Some( 30080, ), target_port: Unset, }, ], internal_traffic_policy: Local, external_traffic_policy: Local, session_affinity: Some( 60s, ), health_check_node_port: Some( 30100, ), labels: { "app": "web", }, annotations: { "note": "x", }, created: Some( 1795594620, ), }"#
        ]],
    );
}

#[test]
fn services_without_anything_to_do() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"clusterIP": ""}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
    ] {
        check_service(spec, json!(null), expect!["no Service"]);
    }
}

#[test]
fn what_is_wrong_is_left_out_and_said() {
    check_service(
        json!({
            "clusterIPs": ["10.96.0.7", "10.96.0.700"],
            "externalIPs": ["::ffff:192.0.2.1", ""],
            "loadBalancerSourceRanges": ["10.0.0.0"],
            "externalTrafficPolicy": "Nearest",
            "healthCheckNodePort": 70000,
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
            "ports": [
                {"port": 0},
                {"port": 80, "protocol": "QUIC"},
                {"port": 81, "nodePort": -1, "targetPort": 70000},
            ],
        }),
        json!({"loadBalancer": {"ingress": [{"ip": "x"}]}}),
        expect![[r#"
            cluster_ips: [ 10.96.0.7, ], external_ips: [ 192.0.2.1, ], load_balancer_source_ranges: Some( [], ), ports: [ ServicePort { name: "", protocol: Tcp, port: 81, node_port: None, target_port: Unset, }, ], session_affinity: Some( 10800s, ), labels: { "app": "web", }, annotations: { "note": "x", }, created: Some( 1795594620, ), }
            left out: spec.clusterIPs "10.96.0.700" is no IP address; spec.externalIPs "" is no IP address; status.loadBalancer.ingress "x" is no IP address; spec.loadBalancerSourceRanges "10.0.0.0" is no CIDR; spec.ports[0] has the impossible port 0; spec.ports[1] has the unknown protocol "QUIC"; spec.ports[2].nodePort has the impossible port -1; spec.ports[2].targetPort has the impossible port 70000; spec.externalTrafficPolicy "Nearest" is unknown, taken as "Cluster"; the affinity timeout 0 is not between 1 and 86400 seconds, taken as the default; spec.healthCheckNodePort has the impossible port 70000"#]],
    );
}

#[test]
fn what_leaves_nothing_of_use_is_rejected() {
    check_service(
        json!({"clusterIP": "ten"}),
        json!({}),
        expect![[r#"
        no Service
        no_usable_address: none of its cluster IPs can be used: spec.clusterIPs "ten" is no IP address"#]],
    );
    check_service(
        json!({"clusterIP": "10.96.0.7", "type": "Magic"}),
        json!({}),
        expect![[r#"
        no Service
        unknown_type: spec.type "Magic" is unknown"#]],
    );
}

#[track_caller]
fn check_slice(slice: Value, expected: Expect) {
    let mut object = slice;
    object["metadata"] = json!({
        "namespace": "shop", "name": "web-1", "resourceVersion": "6",
        "labels": {"kubernetes.io/service-name": "web"},
    });
    let shown = encodings(Kind::EndpointSlices, &object).map(|object| {
        let (store, outcome) = put(Kind::EndpointSlices, &object);
        let slice = store.service(&key()).map(|state| state.slices[0].1.clone());
        let slice = slice.map_or_else(|| "no slice".to_owned(), |slice| show_slice(&slice));
        format!("{slice}{}", complaint(&outcome))
    });
    assert_eq!(shown[0], shown[1], "JSON and protobuf differ");
    expected.assert_eq(&shown[0]);
}

fn show_slice(slice: &EndpointSlice) -> String {
    let ports = slice.ports.iter().map(|p| format!("port {:?} {} {}", p.name, p.port, p.protocol));
    let endpoints = slice.endpoints.iter().map(|endpoint| {
        let Conditions { ready, serving, terminating } = endpoint.conditions;
        let flags = [(ready, "ready"), (serving, "serving"), (terminating, "terminating")];
        let flags: Vec<_> = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).collect();
        let mut line = format!("{} {}", endpoint.address, flags.join("+"));
        let name = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
        let text = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
        let hints = |hints: &[Arc<str>]| (!hints.is_empty()).then(|| hints.join(","));
        for (label, value) in [
            ("node", name(&endpoint.node)),
            ("zone", name(&endpoint.zone)),
            ("zones", hints(&endpoint.zone_hints)),
            ("nodes", hints(&endpoint.node_hints)),
            ("hostname", text(&endpoint.hostname)),
            ("pod", text(&endpoint.pod)),
        ] {
            line.extend(value.map(|value| format!(" {label}={value}")));
        }
        line
    });
    ports.chain(endpoints).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_ordinary_slice() {
    check_slice(
        json!({
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "conditions": {"ready": true},
                 "nodeName": "node-1", "zone": "a", "hostname": "web-0",
                 "targetRef": {"kind": "Pod", "name": "web-0-xyz"},
                 "hints": {"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "node-1"}]}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.4"], "targetRef": {"kind": "Node", "name": "n"}},
                {"addresses": ["10.0.0.5"], "conditions": {"ready": false, "terminating": true}},
                {"addresses": ["10.0.0.6"], "conditions": {"ready": false, "serving": false}},
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        }),
        expect![[r#"
            port "http" 8080 TCP
            port "" 53 UDP
            10.0.0.1 ready+serving node=node-1 zone=a zones=a,b nodes=node-1 hostname=web-0 pod=web-0-xyz
            10.0.0.3 serving+terminating
            10.0.0.4 ready+serving
            10.0.0.5 serving+terminating
            10.0.0.6 "#]],
    );
}

#[test]
fn slices_with_odd_parts() {
    check_slice(json!({"addressType": "IPv6", "endpoints": null, "ports": null}), expect![""]);
    check_slice(
        json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]}),
        expect!["no slice"],
    );
    check_slice(
        json!({"addressType": "MAC"}),
        expect![[r#"
        no slice
        unknown_type: addressType "MAC" is unknown"#]],
    );
    check_slice(
        json!({
            "addressType": "IPv6",
            "endpoints": [{"addresses": []}, {"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::zz"]},
                          {"addresses": ["fd00::1"]}],
            "ports": [{"name": "all"}, {"port": 0}, {"port": 80, "protocol": "X"}, {"name": null, "port": 81}],
        }),
        expect![[r#"
            port "" 81 TCP
            fd00::1 ready+serving
            left out: endpoints[0] has no address; endpoints[1].addresses[0] "10.0.0.1" is not IPv6; endpoints[2].addresses[0] "fd00::zz" is no IP address; ports[1] has the impossible port 0; ports[2] has the unknown protocol "X""#]],
    );
}

#[test]
fn a_slice_of_no_service_is_not_ours() {
    let object = json!({"metadata": {"namespace": "shop", "name": "own"}, "addressType": "IPv4"});
    for object in encodings(Kind::EndpointSlices, &object) {
        let (store, outcome) = put(Kind::EndpointSlices, &object);
        assert!(store.is_empty() && outcome.complaint.is_none());
        assert_eq!(outcome.key, Some(NamespacedName::new("shop", "own")));
    }
}

#[test]
fn a_slice_says_when_its_change_happened() {
    let object = json!({"metadata": {"namespace": "shop", "name": "s", "annotations": {
        "endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:09.5Z",
    }}});
    for object in encodings(Kind::EndpointSlices, &object) {
        let expected = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(9500);
        assert_eq!(put(Kind::EndpointSlices, &object).1.triggered, Some(expected));
    }
}

#[track_caller]
fn check_node(metadata: Value, spec: Value, status: Value, expected: &Node, complaints: Expect) {
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    let complained = encodings(Kind::Nodes, &object).map(|object| {
        let (store, outcome) = put(Kind::Nodes, &object);
        assert_eq!(store.node("node-1").as_deref(), Some(expected));
        complaint(&outcome)
    });
    assert_eq!(complained[0], complained[1], "JSON and protobuf differ");
    complaints.assert_eq(&complained[0]);
}

#[test]
fn nodes() {
    check_node(
        json!({"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a", "x": "y"}}),
        json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"]}),
        json!({"addresses": [
            {"type": "Hostname", "address": "node-1"},
            {"type": "InternalIP", "address": "192.168.0.1"},
            {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd02::1"},
        ]}),
        &Node {
            zone: Some("a".into()),
            internal_ips: vec!["192.168.0.1".parse().unwrap(), "fd02::1".parse().unwrap()],
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
            labels: [("topology.kubernetes.io/zone".into(), "a".into())].into(),
            ..Node::default()
        },
        expect![""],
    );
    check_node(json!({"name": "node-1"}), json!(null), json!(null), &Node::default(), expect![""]);
    check_node(
        json!({"name": "node-1"}),
        json!({"podCIDR": "10.1.0.0"}),
        json!({"addresses": [{"type": "InternalIP", "address": ""}]}),
        &Node::default(),
        expect![[r#"

            left out: status.addresses of type InternalIP "" is no IP address; spec.podCIDRs "10.1.0.0" is no CIDR"#]],
    );
}

#[test]
fn nodes_that_go_away() {
    let going = Node { going_away: true, ..Node::default() };
    let deleted = json!({"name": "node-1", "deletionTimestamp": "2026-11-25T08:17:00Z"});
    check_node(deleted, json!({}), json!({}), &going, expect![""]);
    let tainted =
        json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    check_node(json!({"name": "node-1"}), tainted, json!({}), &going, expect![""]);
}

#[test]
fn a_bad_object_spoils_no_other_and_keeps_its_last_state() {
    let good = |name: &str| json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": "10.96.0.7"}});
    let bad = json!({"metadata": {"namespace": "shop", "name": "web", "resourceVersion": "9"}, "spec": {"ports": 7}});
    let nameless = json!({"spec": {"clusterIP": "10.96.0.9"}});
    let (mut writer, store) = Store::new();
    let mut converter = Converter::new(Selection::default());
    let mut page = |items: &[Value]| {
        let body =
            json!({"metadata": {"resourceVersion": "10", "continue": "more"}, "items": items});
        let mut batch = Batch::new();
        let body = Bytes::from(body.to_string());
        let page = converter.page(Kind::Services, Encoding::Json, &body, &mut batch).unwrap();
        writer.apply(batch);
        page
    };
    page(&[good("web")]);
    let page = page(&[good("a"), bad, json!(7), nameless, good("b")]);
    assert_eq!(store.len(), (3, 0));
    assert_eq!(
        (page.resource_version.as_str(), page.continue_token.as_deref()),
        ("10", Some("more"))
    );
    let keys: Vec<_> = page.keys.iter().map(ToString::to_string).collect();
    assert_eq!(keys, ["shop/a", "shop/web", "shop/b"]);
    let complaints = page.complaints.iter().map(|complaint| format!("{complaint:?}\n"));
    expect![[r#"
        Complaint { key: Some(NamespacedName { namespace: "shop", name: "web" }), resource_version: "9", rejected: Some(Undecodable), details: ["invalid type: integer `7`, expected a sequence at line 1 column 85"] }
        Complaint { key: None, resource_version: "", rejected: Some(Undecodable), details: ["invalid type: integer `7`, expected struct Service at line 1 column 1"] }
        Complaint { key: None, resource_version: "", rejected: Some(Unnamed), details: ["it has no name"] }
    "#]].assert_eq(&complaints.collect::<String>());
}

#[test]
fn repeated_names_are_in_memory_once() {
    let slice = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n"}, {"addresses": ["10.0.0.2"], "nodeName": "n"}],
    });
    let [object, _] = encodings(Kind::EndpointSlices, &slice);
    let (store, _) = put(Kind::EndpointSlices, &object);
    let state = store.service(&key()).unwrap();
    let [first, second] = state.slices[0].1.endpoints.as_slice() else { panic!("two endpoints") };
    assert!(Arc::ptr_eq(first.node.as_ref().unwrap(), second.node.as_ref().unwrap()));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        garbage in vec(any::<u8>(), 0..80),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web", "labels": {"kubernetes.io/service-name": "web"},
                         "creationTimestamp": "2026-11-25T08:17:00Z"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "targetPort": 8080}]},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}],
        });
        for kind in Kind::ALL {
            for mut object in encodings(kind, &object) {
                let mut mutated = object.bytes.to_vec();
                let at = at.index(mutated.len());
                mutated[at] = byte;
                object.bytes = mutated.into();
                drop(put(kind, &object));
                object.bytes = garbage.clone().into();
                drop(put(kind, &object));
                drop(Converter::new(selection()).delete(kind, &object, &mut Batch::new()));
            }
        }
    }
}
