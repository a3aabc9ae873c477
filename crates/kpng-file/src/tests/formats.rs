//! What is read from both formats, and what is written.

use expect_test::{Expect, expect, expect_file};

use super::{describe, parse_ok};
use crate::{Options, State, parse, render};

#[track_caller]
fn check(text: &str, expected: Expect) {
    expected.assert_eq(&describe(&parse_ok(text)));
}

const CLUSTER: &str = include_str!("../../../../examples/cluster.yaml");
const STATE: &str = include_str!("../../../../examples/state.yaml");

#[test]
fn the_example_of_manifests() {
    check(
        CLUSTER,
        expect![[r#"
            node node-a; zone Some("zone-a"); ips [192.168.0.2, 2001:db8::1]; pods [10.180.0.0/24, fd00:180::/64]; labels {"topology.kubernetes.io/zone": "zone-a"}
            service default/dual ClusterIP; cluster [172.30.0.20, fd00:172:30::20]; port "" 80/TCP -> 8080
              slice dual-ipv4; port "" 8080/TCP
                10.180.0.4; node Some("node-a"); pod Some("api-0")
              slice dual-ipv6; port "" 8080/TCP
                fd00:180::4; node Some("node-a"); pod Some("api-0")
            service default/empty ClusterIP; cluster [172.30.0.12]; port "" 80/TCP
            service default/shop LoadBalancer; cluster [172.30.0.22]; balancer 198.51.100.1; ranges Some([203.0.113.0/25]); external Local; health Some(32000); port "http" 80/TCP -> 8080 node port 30081
              slice shop-ipv4; port "http" 8080/TCP
                10.180.0.1; node Some("node-a"); pod Some("web-0")
                10.180.0.2; conditions Conditions { ready: false, serving: true, terminating: true }; node Some("node-a"); pod Some("web-1")
            service default/sticky ClusterIP; cluster [172.30.0.21]; affinity Some(600s); port "" 80/TCP -> 8080
              slice sticky-ipv4; port "" 8080/TCP
                10.180.0.1; node Some("node-a"); pod Some("web-0")
                10.180.0.2; node Some("node-a"); pod Some("web-1")
            service default/web ClusterIP; cluster [172.30.0.10]; port "http" 80/TCP -> 8080
              slice web-ipv4; port "http" 8080/TCP
                10.180.0.1; node Some("node-a"); zone Some("zone-a"); pod Some("web-0")
                10.180.0.2; node Some("node-a"); zone Some("zone-a"); pod Some("web-1")
            service default/web-nodeport NodePort; cluster [172.30.0.11]; port "http" 80/TCP -> 8080 node port 30080
              slice web-nodeport-ipv4; port "http" 8080/TCP
                10.180.0.1; node Some("node-a"); pod Some("web-0")
                10.180.0.2; node Some("node-a"); pod Some("web-1")
            service kube-system/dns ClusterIP; cluster [172.30.0.53]; port "dns" 53/UDP -> 5353; port "dns-tcp" 53/TCP -> 5353
              slice dns-ipv4; port "dns" 5353/UDP; port "dns-tcp" 5353/TCP
                10.180.0.3; node Some("node-a"); pod Some("dns-0")
        "#]],
    );
}

/// But for the names of slices, which only manifests have.
#[test]
fn both_examples_say_the_same() {
    assert_eq!(parse_ok(&render(&parse_ok(CLUSTER))), parse_ok(STATE));
}

/// Every key that KPNG's `to-file` writes, as yaml.v2 writes it.
#[test]
fn what_kpng_writes() {
    check(
        include_str!("data/kpng.yaml"),
        expect![[r#"
        node node-1; zone Some("zone-a"); labels {"kubernetes.io/hostname": "node-1"}
        service ns/web LoadBalancer; cluster [10.0.0.1]; external [fd00::1]; balancer 10.2.0.1; ranges Some([10.0.0.0/8, fd00::/8]); internal Local; external Local; affinity Some(10s); health Some(32000); labels {"a": "1"}; port "http" 80/TCP -> 8080 node port 30080; port "dns" 53/UDP -> "domain"
          slice web-v4-1; port "http" 8080/TCP; port "dns" 53/UDP
            10.1.0.2
          slice web-v4-2; port "http" 8081/TCP; port "dns" 5353/UDP
            10.1.0.1; node Some("node-1"); zone Some("zone-a"); zone hints ["zone-a", "zone-b"]; hostname Some("h"); pod Some("web-0")
          slice web-v6-1; port "http" 8081/TCP; port "dns" 5353/UDP
            fd00:1::1; node Some("node-1"); zone Some("zone-a"); zone hints ["zone-a", "zone-b"]; hostname Some("h"); pod Some("web-0")
    "#]],
    );
}

/// Protobuf's JSON has other names for the same things.
#[test]
fn names_of_protobuf_json() {
    let text = r#"{"nodes": [{"Name": "n", "Topology": {"Zone": "z"}}], "services": [{
        "service": {"Name": "web", "IPs": {"ClusterIPs": {"V4": ["10.0.0.1"]}},
                    "Ports": [{"Name": "http", "Protocol": "SCTP", "Port": 80, "targetPort": 8080}],
                    "ClientIP": {"TimeoutSeconds": 5}, "ExternalTrafficToLocal": true},
        "endpoints": [{"Endpoint": {"iPs": {"V6": ["fd00::1"]}},
                       "Conditions": {"Ready": false, "Serving": true, "Terminating": true}}]}]}"#;
    check(
        text,
        expect![[r#"
        node n; zone Some("z")
        service default/web ClusterIP; cluster [10.0.0.1]; external Local; affinity Some(5s); port "http" 80/SCTP -> 8080
          slice web-v6-1; port "http" 8080/SCTP
            fd00::1; conditions Conditions { ready: false, serving: true, terminating: true }
    "#]],
    );
}

#[test]
fn spellings_of_affinity() {
    let affinity = |text: &str| {
        let state = parse_ok(&format!("services: [{{service: {{name: a, {text}}}}}]"));
        let service = state.services.first_key_value().unwrap().1.service.clone().unwrap();
        service.session_affinity.map(|timeout| timeout.as_secs())
    };
    assert_eq!(affinity("sessionaffinity: null"), None);
    assert_eq!(affinity("sessionaffinity: None"), None);
    assert_eq!(affinity("sessionaffinity: ClientIP"), Some(10_800));
    assert_eq!(affinity("sessionaffinity: {clientip: {}}"), Some(10_800));
    assert_eq!(affinity("sessionAffinity: {ClientIP: {TimeoutSeconds: 7}}"), Some(7));
    assert_eq!(affinity("clientip: {timeoutseconds: 86400}"), Some(86_400));
}

/// The order of the rule: override by the port's name, by its target's name, the target's number,
/// the port's own. Each endpoint lands in a slice with its own numbers.
#[test]
fn target_ports() {
    let text = "
services:
- service:
    name: web
    ports:
    - {name: a, port: 1}
    - {name: b, port: 2, targetport: 22}
    - {name: c, port: 3, targetportname: c-target}
    - {port: 4, protocol: TCP}
    - {port: 4, protocol: UDP}
  endpoints:
  - endpoint: {ips: {v4: [10.0.0.3]}}
  - endpoint: {ips: {v4: [10.0.0.2]}, portoverrides: [{name: c-target, port: 33}]}
  - endpoint:
      ips: {v4: [10.0.0.1], v6: ['fd00::1']}
      portoverrides:
      - {name: a, port: 0}
      - {name: c, port: 333}
      - {name: c-target, port: 33}
      - {name: '', protocol: UDP, port: 44}
  - endpoint: {ips: {v4: [10.0.0.4, 10.0.0.0]}}
";
    check(
        text,
        expect![[r#"
        service default/web ClusterIP; port "a" 1/TCP; port "b" 2/TCP -> 22; port "c" 3/TCP -> "c-target"; port "" 4/TCP; port "" 4/UDP
          slice web-v4-1; port "b" 22/TCP; port "c" 333/TCP; port "" 4/TCP; port "" 44/UDP
            10.0.0.1
          slice web-v4-2; port "a" 1/TCP; port "b" 22/TCP; port "c" 3/TCP; port "" 4/TCP; port "" 4/UDP
            10.0.0.0
            10.0.0.3
            10.0.0.4
          slice web-v4-3; port "a" 1/TCP; port "b" 22/TCP; port "c" 33/TCP; port "" 4/TCP; port "" 4/UDP
            10.0.0.2
          slice web-v6-1; port "b" 22/TCP; port "c" 333/TCP; port "" 4/TCP; port "" 44/UDP
            fd00::1
    "#]],
    );
}

#[test]
fn small_states() {
    check("services: []", expect![[""]]);
    check("nodes:\nservices:", expect![[""]]);
    check(
        "nodes: [{name: a}]\n---\n---\n# nothing\nnodes: [{name: b}]",
        expect![[r#"
        node a
        node b
    "#]],
    );
    check(
        "nodes: [{name: a, labels: {topology.kubernetes.io/zone: z}}, {name: b, goingaway: true}]",
        expect![[r#"
            node a; zone Some("z"); labels {"topology.kubernetes.io/zone": "z"}
            node b; going away true
        "#]],
    );
    check(
        "services: [{service: {name: web, type: ExternalName}}]",
        expect![[r#"
        service default/web ExternalName
    "#]],
    );
    check(
        "services: [{service: {name: w, ips: {clusterips: ['fd00::1', 10.0.0.1], \
         externalips: {v6: ['fd00::9'], v4: ['::ffff:10.0.0.9']}}}}]",
        expect![[r#"
            service default/w ClusterIP; cluster [fd00::1, 10.0.0.1]; external [fd00::9, 10.0.0.9]
        "#]],
    );
    check(
        "services: [{service: {name: w, created: '2026-11-25T08:17:00Z', ipfilters: [{}], ips: \
         {loadbalancerips: {v4: [10.0.0.1, 10.0.0.2]}, proxiedips: {v4: [10.0.0.2]}}}}]",
        expect![[r#"
            service default/w ClusterIP; balancer 10.0.0.1; balancer 10.0.0.2 (proxied); ranges Some([]); created Some(1795594620)
        "#]],
    );
}

/// As `kubectl get services,endpointslices,nodes -o yaml` prints, shortened.
#[test]
fn a_list_of_kubectl() {
    check(
        include_str!("data/kubectl.yaml"),
        expect![[r#"
        node node-1; zone Some("z"); ips [192.168.0.2, 2001:db8::2]; pods [10.244.0.0/24, fd00:244::/64]; going away true; labels {"topology.kubernetes.io/zone": "z"}
        service ns/web LoadBalancer; cluster [10.96.0.7, fd00::7]; external [192.0.2.1]; balancer 192.0.2.7; balancer 192.0.2.8 (proxied); ranges Some([10.0.0.0/8]); external Local; affinity Some(60s); health Some(32000); labels {"app": "web"}; annotations {"note": "x"}; created Some(1795594620); port "http" 80/TCP -> "web" node port 30080; port "dns" 53/UDP -> 5353
          slice web-abc; port "http" 8080/TCP; port "dns" 5353/UDP; port "" 1/TCP
            10.244.0.1; conditions Conditions { ready: false, serving: true, terminating: true }; node Some("node-1"); zone Some("z"); zone hints ["z1", "z2"]; node hints ["node-1"]; hostname Some("web-0"); pod Some("web-0")
            10.244.0.2
    "#]],
    );
}

/// Items of a list as the API server sends it do not say what they are.
#[test]
fn typed_lists() {
    let text = "
apiVersion: v1
kind: NodeList
items:
- metadata: {name: a, deletionTimestamp: '2026-11-25T08:17:00Z'}
- metadata: {name: b}
  spec: {podCIDR: 10.0.0.0/24}
---
{apiVersion: v1, kind: ServiceList, items: [{metadata: {name: web}, spec: {clusterIP: 10.0.0.1}}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSliceList
items:
- metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv6
  endpoints: [{addresses: ['fd00::1']}]
";
    check(
        text,
        expect![[r#"
        node a; going away true
        node b; pods [10.0.0.0/24]
        service default/web ClusterIP; cluster [10.0.0.1]
          slice web-1
            fd00::1
    "#]],
    );
}

fn manifest(name: &str, labels: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, labels: {{{labels}}}}}, \
         spec: {{{spec}}}}}\n"
    )
}

#[test]
fn services_that_do_not_count() {
    let proxy = "service.kubernetes.io/service-proxy-name: other";
    let text = [
        manifest("plain", "", "clusterIP: 10.0.0.1"),
        manifest("headless", "", "clusterIP: None"),
        manifest("headless-too", "", "clusterIPs: [None]"),
        manifest("labelled", "service.kubernetes.io/headless: ''", "clusterIP: 10.0.0.2"),
        manifest("alias", "", "type: ExternalName, externalName: example.com"),
        manifest("others", proxy, "clusterIP: 10.0.0.3"),
        manifest("unallocated", "", "clusterIP: ''"),
    ]
    .concat();
    check(
        &text,
        expect![[r#"
        service default/plain ClusterIP; cluster [10.0.0.1]
        service default/unallocated ClusterIP
    "#]],
    );
    let options = Options { service_proxy_name: Some("other".to_owned()) };
    expect![[r#"
        service default/others ClusterIP; cluster [10.0.0.3]; labels {"service.kubernetes.io/service-proxy-name": "other"}
    "#]].assert_eq(&describe(&parse(&text, &options).unwrap()));
}

#[test]
fn endpoints_count_without_slices() {
    let endpoints = |name: &str| {
        format!(
            "---
apiVersion: v1
kind: Endpoints
metadata: {{name: {name}}}
subsets:
- addresses:
  - {{ip: 10.0.0.1, nodeName: n, targetRef: {{kind: Pod, name: p}}}}
  - {{ip: 'fd00::1'}}
  notReadyAddresses: [{{ip: 10.0.0.2, hostname: h}}]
  ports: [{{port: 8080}}]
"
        )
    };
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b-1, labels: {kubernetes.io/service-name: b}}
addressType: IPv4
";
    check(
        &[&endpoints("a"), &endpoints("b"), slice].concat(),
        expect![[r#"
        service default/a: no object
          slice a:endpoints-0-IPv4; port "" 8080/TCP
            10.0.0.1; node Some("n"); pod Some("p")
            10.0.0.2; conditions Conditions { ready: false, serving: false, terminating: false }; hostname Some("h")
          slice a:endpoints-0-IPv6; port "" 8080/TCP
            fd00::1
        service default/b: no object
          slice b-1
    "#]],
    );
}

#[test]
fn anchors_and_merges() {
    let text = "
services:
- service: &web {name: web, ports: &ports [{port: 80}]}
- service: {<<: *web, name: web-2}
- service: {name: web-3, ports: *ports}
";
    check(
        text,
        expect![[r#"
        service default/web ClusterIP; port "" 80/TCP
        service default/web-2 ClusterIP; port "" 80/TCP
        service default/web-3 ClusterIP; port "" 80/TCP
    "#]],
    );
}

#[test]
fn rendered() {
    expect![[r#"
        nodes: []
        services: []
    "#]]
    .assert_eq(&render(&State::default()));
    expect_file!["data/rendered-example.yaml"].assert_eq(&render(&parse_ok(STATE)));
    let kpng = parse_ok(include_str!("data/kpng.yaml"));
    expect_file!["data/rendered-kpng.yaml"].assert_eq(&render(&kpng));
}

/// Strings that YAML could take for something else keep what they are.
#[test]
fn strings_that_need_quotes() {
    let mut state = State::default();
    let values = [
        "",
        "true",
        "No",
        "null",
        "~",
        "1",
        "1.10",
        "0x10",
        ".inf",
        "1e3",
        "2026-01-01",
        "a b",
        "a: b",
        "- a",
        "#",
        "\"",
        "\\",
        "\n",
        "\t",
        "é",
        "\u{1f600}",
        "\u{feff}",
        "fd00::",
        "=",
        "<<",
        "e1",
        "_",
        "10.0.0.0/8",
        "1.2.3.4",
        "0o7",
        "[a]",
        "{",
        "\u{85}",
        "\u{2028}",
        "'",
        "nan",
        "inf",
        "Infinity",
        "1_000",
        "0b1",
        "12:30:45",
    ];
    let node = kpng_core::model::Node {
        labels: values.iter().map(|value| (Box::from(*value), Box::from(*value))).collect(),
        zone: Some("on".into()),
        ..Default::default()
    };
    state.nodes.insert("1".into(), node.into());
    assert_eq!(parse_ok(&render(&state)), state, "{}", render(&state));
}
