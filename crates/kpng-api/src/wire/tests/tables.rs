//! Operations and decoded endpoints, readably.

use std::sync::Arc;

use expect_test::{Expect, expect};
use kpng_core::local::{LocalService, Place, localize};
use kpng_core::model::{NamespacedName, Node, Service, ServicePort, TargetPort};
use kpng_testkit::fixture::{NODE, fixture};
use prost::Message as _;

use super::{show, unframe};
use crate::proto::localv1;
use crate::proto::localv1::op_item::Op;
use crate::wire::{
    decode_local_endpoints, decode_local_node, decode_node_info, global_node_ops, global_ops,
    local_node_op, local_ops,
};

fn web() -> NamespacedName {
    NamespacedName::new("t", "web")
}

/// The Service `t/web` of a fixture.
fn local(text: &str) -> Option<LocalService> {
    let store = fixture(text).store;
    let here = Place::of(&Arc::from(NODE), store.node(NODE).as_deref());
    localize(&web(), &*store.service(&web())?, &here)
}

/// The same with endpoints that are no Pods.
fn anonymous(text: &str) -> Option<LocalService> {
    let mut local = local(text)?;
    local.endpoints.iter_mut().for_each(|endpoint| endpoint.pod = None);
    Some(local)
}

fn check(old: Option<LocalService>, new: Option<LocalService>, details: bool, expected: Expect) {
    expected.assert_eq(&show(&local_ops(old.as_ref(), new.as_ref(), details)));
}

fn check_global(old: &str, new: &str, details: bool, expected: Expect) {
    let state = |text| fixture(text).store.service(&web());
    let ops = global_ops(&web(), state(old).as_deref(), state(new).as_deref(), details);
    expected.assert_eq(&show(&ops));
}

const DUAL_STACK: &str = "
    service t/web cluster=cluster.1 lb=lb.1 proxy-lb=lb.2 port=http:80:30001 created=5
    slice t/web http=8080
      pod1
      remote1
";

#[test]
fn both_families_of_a_pod_are_one_endpoint() {
    check(
        None,
        local(DUAL_STACK),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= balancer=198.51.100.1,2001:db8:100::1 http:80/TCP:30001->80
        2 set t/web/pod1 ips=10.180.0.1,fd00:180::1 local "http"=8080 internal external
        2 set t/web/remote1 ips=10.180.1.1,fd00:180:1::1 "http"=8080 internal external
    "#]],
    );
}

#[test]
fn details_say_everything() {
    check(
        None,
        local(DUAL_STACK),
        true,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= balancer=198.51.100.1,2001:db8:100::1 http:80/TCP:30001->80 created=5 proxied=198.51.100.2,2001:db8:100::2 has-endpoints
        2 set t/web/pod1 ips=10.180.0.1,fd00:180::1 local "http"=8080 internal external pod=pod1
             10.180.0.1 ready serving 0:8080 cluster
             fd00:180::1 ready serving 0:8080 cluster
        2 set t/web/remote1 ips=10.180.1.1,fd00:180:1::1 "http"=8080 internal external pod=remote1
             10.180.1.1 ready serving 0:8080 cluster
             fd00:180:1::1 ready serving 0:8080 cluster
    "#]],
    );
}

#[test]
fn a_pod_that_loses_an_address_is_set_again() {
    let less = DUAL_STACK.replace("remote1", "remote1 v4");
    check(
        local(DUAL_STACK),
        local(&less),
        false,
        expect![[r#"
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 internal external
    "#]],
    );
}

#[test]
fn anonymous_endpoints_are_replaced() {
    let before = "
        service t/web cluster=cluster.1 port=http:80
        slice t/web http=8080
          remote1 v4
          remote2 v4
    ";
    let after = &before.replace("remote1", "remote3");
    check(
        anonymous(before),
        anonymous(after),
        false,
        expect![[r#"
        1 delete t/web/8e511272d14d8caa
        4 set t/web/a678cb6a15724045 ips=10.180.1.3 "http"=8080 internal external
    "#]],
    );
    check(
        anonymous(before),
        local(before),
        false,
        expect![[r#"
        1 delete t/web/d51c2d098e36c049
        1 delete t/web/8e511272d14d8caa
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 internal external
        2 set t/web/remote2 ips=10.180.1.2 "http"=8080 internal external
    "#]],
    );
    check(
        anonymous(before),
        None,
        false,
        expect![[r#"
        1 delete t/web/d51c2d098e36c049
        1 delete t/web/8e511272d14d8caa
        5 delete t/web
    "#]],
    );
}

const POLICY_LOCAL: &str = "
    service t/web cluster=cluster.1 port=http:80:30001 etp=Local
    slice t/web http=8080
      pod1 v4
      pod2 v4 serving-terminating
      remote1 v4
      remote2 v4 serving-terminating
";

#[test]
fn policy_local() {
    check(
        None,
        local(POLICY_LOCAL),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:30001->80 external-local
        2 set t/web/pod1 ips=10.180.0.1 local "http"=8080 internal external
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 internal
    "#]],
    );
    let neither = POLICY_LOCAL.replace("etp=Local", "");
    check(
        local(POLICY_LOCAL),
        local(&neither),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:30001->80
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 internal external
    "#]],
    );
    let internal = POLICY_LOCAL.replace("etp=Local", "itp=Local");
    check(
        local(POLICY_LOCAL),
        local(&internal),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:30001->80 internal-local
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 external
    "#]],
    );
    // Both: the endpoints elsewhere go.
    let both = POLICY_LOCAL.replace("etp=Local", "etp=Local itp=Local");
    check(
        local(POLICY_LOCAL),
        local(&both),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:30001->80 internal-local external-local
        3 delete t/web/remote1
    "#]],
    );
    check(
        local(POLICY_LOCAL),
        local(&both),
        true,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:30001->80 internal-local external-local has-endpoints
        2 set t/web/remote1 ips=10.180.1.1 "http"=8080 pod=remote1
             10.180.1.1 ready serving 0:8080 cluster
    "#]],
    );
}

#[test]
fn terminating_endpoints_serve_when_nothing_else_does() {
    let alone = POLICY_LOCAL.replace("  pod1 v4\n", "").replace("  remote1 v4\n", "");
    check(
        local(POLICY_LOCAL),
        local(&alone),
        false,
        expect![[r#"
        2 set t/web/pod2 ips=10.180.0.2 local "http"=8080 internal external
        2 set t/web/remote2 ips=10.180.1.2 "http"=8080 internal
        3 delete t/web/remote1
        3 delete t/web/pod1
    "#]],
    );
}

#[test]
fn a_port_that_serves_nobody_is_not_in_kpngs_message() {
    let text = "
        node zone=a
        service t/web cluster=cluster.1 port=http:80 port=metrics:90
        slice t/web http=8080
          pod1 v4 hint=a
          remote1 v4 hint=b
        slice t/web metrics=9090
          pod1 v4
          remote1 v4
    ";
    check(
        None,
        local(text),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= http:80/TCP:0->80 metrics:90/TCP:0->90
        2 set t/web/pod1 ips=10.180.0.1 local "http"=8080 "metrics"=9090 internal external
        2 set t/web/remote1 ips=10.180.1.1 "metrics"=9090 internal external
    "#]],
    );
}

#[test]
fn a_port_without_name_is_found_by_its_targets_name() {
    let text = "
        service t/web cluster=cluster.1 port=:80
        slice t/web =8080
          remote1 v4
    ";
    let mut named = local(text).unwrap();
    let mut service = Service::clone(&named.service);
    service.ports[0].target_port = TargetPort::Name("http".into());
    named.service = service.into();
    check(
        local(text),
        Some(named),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= :80/TCP:0->http
        2 set t/web/remote1 ips=10.180.1.1 ""=8080 "http"=8080 internal external
    "#]],
    );
}

/// A Pod whose name was used before, on another node.
#[test]
fn pods_of_one_name_in_two_places() {
    let mut local = local(DUAL_STACK).unwrap();
    local.endpoints.iter_mut().for_each(|endpoint| endpoint.pod = Some("web-0".into()));
    check(
        None,
        Some(local),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= balancer=198.51.100.1,2001:db8:100::1 http:80/TCP:30001->80
        2 set t/web/web-0 ips=10.180.0.1,fd00:180::1 local "http"=8080 internal external
        4 set t/web/38da514dfb9078e3 ips=fd00:180:1::1 "http"=8080 internal external
        4 set t/web/8e511272d14d8caa ips=10.180.1.1 "http"=8080 internal external
    "#]],
    );
}

#[test]
fn services_of_all_sorts() {
    let text = "
        service t/web cluster=cluster.1 ext=ext.2,ext.10 lb=lb.1 port=a:53/UDP port=b:53:30053
        service t/web etp=Local itp=Local affinity=10 health=30100 ranges=client-net
    ";
    let headless = "service t/web ranges=nobody";
    let first = text.lines().nth(1).unwrap();
    check(
        None,
        local(first),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster=172.30.0.1,fd00:172:30::1 external=198.18.0.10,198.18.0.2,2001:db8:18::2,2001:db8:18::a balancer=198.51.100.1,2001:db8:100::1 a:53/UDP:0->53 b:53/TCP:30053->53
    "#]],
    );
    check(
        local(first),
        local(text),
        false,
        expect![[r#"
        0 set t/web ClusterIP cluster= external= headless internal-local external-local ranges=203.0.113.0/25,2001:db8:203::/64 ClientIp(ClientIpAffinity { timeout_seconds: 10 }) health=30100
    "#]],
    );
    check(
        local(text),
        local(headless),
        true,
        expect![[r#"
        0 set t/web ClusterIP cluster= external= headless ranges=
    "#]],
    );
}

#[test]
fn global_sets() {
    check_global(
        "",
        DUAL_STACK,
        false,
        expect![[r#"
        1 set t|web|| ClusterIP cluster=172.30.0.1,fd00:172:30::1 external= balancer=198.51.100.1,2001:db8:100::1 http:80/TCP:30001->0
        2 set t|web|web-1|4f622ef40c49b0be ips=10.180.0.1 "http"=8080 ready at="node-a"/"" pod="pod1"
        2 set t|web|web-1|8c48dfa73ddcb7ee ips=10.180.1.1 "http"=8080 ready at="node-b"/"" pod="remote1"
        2 set t|web|web-2|2b5e312185eebf85 ips=fd00:180:1::1 "http"=8080 ready at="node-b"/"" pod="remote1"
        2 set t|web|web-2|ff1726d3f325b20e ips=fd00:180::1 "http"=8080 ready at="node-a"/"" pod="pod1"
        2 set t||web-1|4f622ef40c49b0be ips=10.180.0.1 "http"=8080 ready at="node-a"/"" pod="pod1"
        2 set t||web-1|8c48dfa73ddcb7ee ips=10.180.1.1 "http"=8080 ready at="node-b"/"" pod="remote1"
        2 set t||web-2|2b5e312185eebf85 ips=fd00:180:1::1 "http"=8080 ready at="node-b"/"" pod="remote1"
        2 set t||web-2|ff1726d3f325b20e ips=fd00:180::1 "http"=8080 ready at="node-a"/"" pod="pod1"
    "#]],
    );
    let hinted = DUAL_STACK.replace("remote1", "remote1 v4 hint=b nodehint=node-b terminating");
    check_global(
        DUAL_STACK,
        &hinted,
        true,
        expect![[r#"
        2 set t|web|web-1|2fe36e019e3b59d8 ips=10.180.1.1 "http"=8080/TCP serving=false terminating at="node-b"/"" pod="remote1" zones=["b"] nodes=["node-b"]
        3 delete t|web|web-2|20a36b4aab475b40
        3 delete t|web|web-1|99987a1a175d742e
    "#]],
    );
    // Slices alone.
    let orphan = "
        slice t/web http=8080
          pod1 v4
    ";
    check_global(
        "",
        orphan,
        false,
        expect![[r#"
        2 set t|web|web-1|4f622ef40c49b0be ips=10.180.0.1 "http"=8080 ready at="node-a"/"" pod="pod1"
        2 set t||web-1|4f622ef40c49b0be ips=10.180.0.1 "http"=8080 ready at="node-a"/"" pod="pod1"
    "#]],
    );
    check_global(
        orphan,
        "",
        true,
        expect![[r#"
        3 delete t|web|web-1|1cda38630bdb661b
    "#]],
    );
}

#[test]
fn nodes() {
    let node = Node {
        zone: Some("a".into()),
        internal_ips: vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        going_away: true,
        labels: [("l".into(), "1".into())].into(),
        annotations: [("a".into(), "2".into())].into(),
    };
    let value = |bytes: &[u8]| {
        let [item] = unframe(bytes).try_into().unwrap();
        let Some(Op::Set(value)) = item.op else { panic!("{item:?}") };
        (value.r#ref.unwrap(), value.bytes)
    };
    let (at, bytes) = value(&local_node_op("n", Some(&node)));
    assert_eq!((at.set(), &*at.path), (localv1::Set::LocalNodesSet, "n"));
    assert_eq!(decode_local_node(&bytes), Ok(("n".into(), node.clone())));
    let ops = global_node_ops("n", None, Some(&node), true);
    assert_eq!(decode_node_info(&value(ops.group(0)).1), Ok(("n".into(), node.clone())));
    let known_to_kpng = Node { zone: Some("b".into()), ..node.clone() };
    expect![[r#"
        0 set |n|| Node { name: "n", labels: {"l": "1"}, annotations: {"a": "2"}, topology: Some(TopologyInfo { node: "n", zone: "b" }), internal_i_ps: [], pod_cid_rs: [], going_away: false }
    "#]].assert_eq(&show(&global_node_ops("n", Some(&node), Some(&known_to_kpng), false)));
    let unknown_to_kpng = Node { going_away: false, ..node.clone() };
    expect![""].assert_eq(&show(&global_node_ops("n", Some(&node), Some(&unknown_to_kpng), false)));
    expect![[r#"
        5 delete |n||
    "#]]
    .assert_eq(&show(&global_node_ops("n", Some(&node), None, false)));
    let [item] = unframe(&local_node_op("n", None)).try_into().unwrap();
    assert!(matches!(item.op, Some(Op::Delete(at)) if at.path == "n"));
}

/// What a client makes of an endpoint of a server that does not know addresses.
fn check_old(
    service: &str,
    targets: &[TargetPort],
    edit: impl Fn(&mut localv1::Endpoint),
    expected: Expect,
) {
    let mut service = Service::clone(&local(service).unwrap().service);
    for (port, target) in service.ports.iter_mut().zip(targets) {
        *port = ServicePort { target_port: target.clone(), ..port.clone() };
    }
    let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    let override_of =
        |(name, port): (&str, i32)| localv1::PortName { name: name.to_owned(), port, protocol: 0 };
    let mut message = localv1::Endpoint {
        hostname: "h".to_owned(),
        i_ps: Some(localv1::IpSet { v4: strings(&["10.1.1.1", "bad"]), v6: strings(&["fd00::1"]) }),
        local: true,
        port_overrides: [("metrics", 1011), ("http2", 888)].map(override_of).to_vec(),
        scopes: Some(localv1::EndpointScopes { internal: true, external: false }),
        addresses: Vec::new(),
        pod_name: String::new(),
    };
    edit(&mut message);
    let text = match decode_local_endpoints(&message.encode_to_vec(), &service) {
        Ok(endpoints) => endpoints.iter().map(|e| format!("{e:?}\n")).collect(),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&text);
}

#[test]
fn an_old_servers_endpoints() {
    let service = "service t/web cluster=cluster.1 port=http2:80 port=none:81";
    check_old(
        service,
        &[],
        |_| {},
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: false }] }
        LocalEndpoint { address: fd00::1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
    // Nothing that the Service has.
    check_old("service t/web port=none:81", &[TargetPort::Number(1)], |_| {}, expect![""]);
    check_old(
        service,
        &[],
        |endpoint| endpoint.port_overrides[1].port = 70_000,
        expect!["PortOverrides[1].Port 70000 is no port number"],
    );
    check_old(service, &[], |endpoint| endpoint.port_overrides[1].port = 0, expect![""]);
}

#[test]
fn an_old_servers_ports_without_name() {
    let service = "service t/web port=:80";
    let one_address = |endpoint: &mut localv1::Endpoint| {
        endpoint.i_ps.as_mut().unwrap().v6.clear();
        endpoint.scopes = None;
    };
    check_old(
        service,
        &[TargetPort::Unset],
        one_address,
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 80, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
    check_old(
        service,
        &[TargetPort::Number(8080)],
        one_address,
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 8080, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
    check_old(
        service,
        &[TargetPort::Name("metrics".into())],
        one_address,
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 1011, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
    check_old(service, &[TargetPort::Name("unknown".into())], one_address, expect![""]);
    let own = |endpoint: &mut localv1::Endpoint| {
        one_address(endpoint);
        endpoint.port_overrides[0].name.clear();
    };
    check_old(
        service,
        &[TargetPort::Number(8080)],
        own,
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 1011, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
}

#[test]
fn an_old_servers_scopes() {
    let one_address = |internal, external| {
        move |endpoint: &mut localv1::Endpoint| {
            endpoint.i_ps.as_mut().unwrap().v6.clear();
            endpoint.scopes = Some(localv1::EndpointScopes { internal, external });
        }
    };
    let external_local = "service t/web port=http2:80 etp=Local";
    check_old(
        external_local,
        &[],
        one_address(true, true),
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: true }] }
    "#]],
    );
    let remote = |endpoint: &mut localv1::Endpoint| {
        one_address(true, false)(endpoint);
        endpoint.local = false;
    };
    check_old(
        external_local,
        &[],
        remote,
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: false, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: false }] }
    "#]],
    );
    let internal_local = "service t/web port=http2:80 itp=Local";
    check_old(
        internal_local,
        &[],
        one_address(false, true),
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: true }] }
    "#]],
    );
    let both_local = "service t/web port=http2:80 itp=Local etp=Local";
    check_old(
        both_local,
        &[],
        one_address(true, false),
        expect![[r#"
        LocalEndpoint { address: 10.1.1.1, local: true, conditions: Conditions { ready: true, serving: true, terminating: false }, hostname: Some("h"), pod: None, ports: [EndpointPort { service_port: 0, port: 888, in_cluster_list: true, in_local_list: true }] }
    "#]],
    );
}
