//! What is said about mistakes: place, field, reason, and what to do.

use expect_test::{Expect, expect};

use crate::{Options, parse};

/// Each mistake, and below it what is said about it.
#[track_caller]
fn check(context: impl Fn(&str) -> String, mistakes: &[&str], expected: Expect) {
    let mut out = String::new();
    for mistake in mistakes {
        let problem = parse(&context(mistake), &Options::default());
        let problem = problem.expect_err(mistake);
        out.push_str(&format!("{}\n    {problem}\n", mistake.replace('\n', "\\n")));
    }
    expected.assert_eq(&out);
}

fn document(mistake: &str) -> String {
    mistake.to_owned()
}

/// A Service with one more field, which starts at 2:24.
fn service(field: &str) -> String {
    format!("services:\n- service: {{name: web, {field}}}\n")
}

/// A Service with one endpoint, which starts at 4:5.
fn endpoint(endpoint: &str) -> String {
    format!("services:\n- service: {{name: web}}\n  endpoints:\n  - {endpoint}\n")
}

/// A manifest whose `spec` starts at 4:8.
fn service_manifest(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n")
}

/// A manifest that goes on in line 4.
fn slice_manifest(rest: &str) -> String {
    let labels = "{kubernetes.io/service-name: web}";
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a, labels: \
         {labels}}}\n{rest}"
    )
}

#[test]
fn syntax() {
    let mistakes = [
        "services: [",
        "services:\n  - a\n - b\n",
        "a: b: c",
        "services: *nothing",
        "services: []\nservices: []\n",
        "services: []\nSERVICES: []\n",
        "services: \"\\z\"",
        "? []\n: 1",
        "a: {<<: 1}",
        "services: []\n---\nservices: \n\t- x",
        "services: [{service: {\"na\\nme\": x}}]",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    check(
        document,
        &mistakes,
        expect![[r#"
            services: [
                1:11: unclosed bracket '['
            services:\n  - a\n - b\n
                3:2: while parsing a block mapping, did not find expected key
            a: b: c
                1:5: mapping values are not allowed in this context
            services: *nothing
                1:11: reference to unknown value
            services: []\nservices: []\n
                2:1: the field "services" is given twice: remove one
            services: []\nSERVICES: []\n
                2:1: SERVICES: the field "SERVICES" is given twice: remove one
            services: "\z"
                1:11: while parsing a quoted scalar, found unknown escape character
            ? []\n: 1
                1:3: expected string scalar
            a: {<<: 1}
                1:9: YAML merge value must be mapping or sequence of mappings
            services: []\n---\nservices: \n	- x
                4:2: tabs disallowed within this context (block indentation)
            services: [{service: {"na\nme": x}}]
                1:23: services[0].service.na\nme: unknown field "na\nme": the fields here are namespace, name, type, ips, mapip, ports, externaltraffictolocal, internaltraffictolocal, labels, annotations, ipfilters, sessionaffinity, clientip, healthchecknodeport, created
            [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
                1:40: unclosed bracket '['
        "#]],
    );
    // Cut off by the parser itself.
    check(
        |open| open.repeat(1000),
        &["["],
        expect![[r#"
        [
            1:256: recursion limit exceeded
    "#]],
    );
}

#[test]
fn nothing_or_something_else() {
    let mistakes = [
        "",
        "# services: []\n---\n",
        "hello",
        "services: []\n---\n- 1\n",
        "kind: Service",
        "service: {}",
        "services: {}",
        "services: [web]",
        "services: [{}]",
    ];
    check(
        document,
        &mistakes,
        expect![[r#"

                1:1: there is nothing in it: an empty cluster is written "services: []"
            # services: []\n---\n
                1:1: there is nothing in it: an empty cluster is written "services: []"
            hello
                1:1: this is neither a KPNG state (a mapping with "services" and "nodes") nor a Kubernetes object (a mapping with "apiVersion" and "kind")
            services: []\n---\n- 1\n
                3:1: this is neither a KPNG state (a mapping with "services" and "nodes") nor a Kubernetes object (a mapping with "apiVersion" and "kind")
            kind: Service
                1:1: the field "apiVersion" is missing
            service: {}
                1:1: service: unknown field "service": the fields here are nodes, services, seenfrom
            services: {}
                1:11: services: expected a list, found a mapping
            services: [web]
                1:12: services[0]: expected a mapping, found the string "web"
            services: [{}]
                1:12: services[0]: the field "service" is missing
        "#]],
    );
}

#[test]
fn wrong_services() {
    let mistakes = [
        "prots: []",
        "namespace: a/b",
        "type: Nodeport",
        "ipfilters: [{sourceranges: [10.0.0.0/33]}]",
        "ipfilters: [{targetips: [10.0.0.1]}]",
        "sessionaffinity: ip",
        "sessionaffinity: {clientip: {timeoutseconds: 0}}",
        "sessionaffinity: {}, clientip: {}",
        "externaltraffictolocal: yes",
        "healthchecknodeport: -1",
        "created: yesterday",
        "labels: {version: 1.10}",
    ];
    check(
        service,
        &mistakes,
        expect![[r#"
        prots: []
            2:24: services[0].service.prots: unknown field "prots": the fields here are namespace, name, type, ips, mapip, ports, externaltraffictolocal, internaltraffictolocal, labels, annotations, ipfilters, sessionaffinity, clientip, healthchecknodeport, created
        namespace: a/b
            2:35: services[0].service.namespace: "a/b" is no name of an object: names have letters, digits, '-', '_' and '.'
        type: Nodeport
            2:30: services[0].service.type: unknown type "Nodeport": the types are ClusterIP, NodePort, LoadBalancer and ExternalName
        ipfilters: [{sourceranges: [10.0.0.0/33]}]
            2:52: services[0].service.ipfilters[0].sourceranges[0]: "10.0.0.0/33" is no CIDR: write one like 10.0.0.0/8 or "fd00::/64"
        ipfilters: [{targetips: [10.0.0.1]}]
            2:48: services[0].service.ipfilters[0].targetips: source ranges hold for all load balancer IPs of a Service: remove "targetips"
        sessionaffinity: ip
            2:41: services[0].service.sessionaffinity: unknown affinity "ip": use None or ClientIP
        sessionaffinity: {clientip: {timeoutseconds: 0}}
            2:69: services[0].service.sessionaffinity.clientip.timeoutseconds: 0 is no affinity timeout: give 1 to 86400 seconds
        sessionaffinity: {}, clientip: {}
            2:41: services[0].service.sessionaffinity: the affinity is given twice: remove this or "clientip"
        externaltraffictolocal: yes
            2:48: services[0].service.externaltraffictolocal: expected true or false, found the string "yes"
        healthchecknodeport: -1
            2:45: services[0].service.healthchecknodeport: -1 is no port: give a number from 1 to 65535
        created: yesterday
            2:33: services[0].service.created: "yesterday" is no time: write one like 2026-11-25T08:17:00Z
        labels: {version: 1.10}
            2:42: services[0].service.labels.version: expected a string (put it in quotes), found the number 1.1
    "#]],
    );
}

#[test]
fn wrong_ports() {
    let mistakes = [
        "ports: {port: 80}",
        "ports: [{port: 80}, {port: 0}]",
        "ports: [{port: 65536}]",
        "ports: [{port: '80'}]",
        "ports: [{port: 80.5}]",
        "ports: [{port: 99999999999999999999999999999999999999999}]",
        "ports: [{name: 80, port: 80}]",
        "ports: [{name: http}]",
        "ports: [{port: 80, protocol: tcp}]",
        "ports: [{port: 80, protocol: 4}]",
        "ports: [{name: a, port: 1}, {name: a, port: 2}]",
        "ports: [{name: a, port: 1}, {name: b, port: 1}]",
    ];
    check(
        service,
        &mistakes,
        expect![[r#"
        ports: {port: 80}
            2:31: services[0].service.ports: expected a list, found a mapping
        ports: [{port: 80}, {port: 0}]
            2:51: services[0].service.ports[1].port: 0 is no port: give a number from 1 to 65535
        ports: [{port: 65536}]
            2:39: services[0].service.ports[0].port: 65536 is no port: give a number from 1 to 65535
        ports: [{port: '80'}]
            2:39: services[0].service.ports[0].port: expected a whole number, found the string "80"
        ports: [{port: 80.5}]
            2:39: services[0].service.ports[0].port: expected a whole number, found the number 80.5
        ports: [{port: 99999999999999999999999999999999999999999}]
            2:39: services[0].service.ports[0].port: expected a whole number, found the number 100000000000000000000000000000000000000000
        ports: [{name: 80, port: 80}]
            2:39: services[0].service.ports[0].name: expected a string (put it in quotes), found the number 80
        ports: [{name: http}]
            2:32: services[0].service.ports[0]: the field "port" is missing
        ports: [{port: 80, protocol: tcp}]
            2:53: services[0].service.ports[0].protocol: unknown protocol "tcp": the protocols are TCP, UDP and SCTP
        ports: [{port: 80, protocol: 4}]
            2:53: services[0].service.ports[0].protocol: unknown protocol 4: use TCP, UDP or SCTP, or their numbers here, 1, 2 and 3
        ports: [{name: a, port: 1}, {name: a, port: 2}]
            2:52: services[0].service.ports[1]: another TCP port is named "a": rename one
        ports: [{name: a, port: 1}, {name: b, port: 1}]
            2:52: services[0].service.ports[1]: another port is 1/TCP: remove one
    "#]],
    );
}

#[test]
fn wrong_addresses() {
    let mistakes = [
        "ips: {clusterips: {v4: [10.0.0.256]}}",
        "ips: {clusterips: {v4: ['fd00::1']}}",
        "ips: {clusterips: {v6: ['::ffff:10.0.0.1']}}",
        "ips: {clusterips: {v5: []}}",
        "ips: {clusterips: {v4: [10.0.0.1]}, headless: true}",
        "ips: {proxiedips: [10.0.0.1]}",
    ];
    check(
        service,
        &mistakes,
        expect![[r#"
        ips: {clusterips: {v4: [10.0.0.256]}}
            2:48: services[0].service.ips.clusterips.v4[0]: "10.0.0.256" is no IP address: write one like 10.0.0.1 or "fd00::1"
        ips: {clusterips: {v4: ['fd00::1']}}
            2:48: services[0].service.ips.clusterips.v4[0]: fd00::1 is no IPv4 address
        ips: {clusterips: {v6: ['::ffff:10.0.0.1']}}
            2:48: services[0].service.ips.clusterips.v6[0]: 10.0.0.1 is no IPv6 address
        ips: {clusterips: {v5: []}}
            2:43: services[0].service.ips.clusterips.v5: unknown field "v5": the fields here are v4, v6
        ips: {clusterips: {v4: [10.0.0.1]}, headless: true}
            2:70: services[0].service.ips.headless: a headless Service has no cluster IPs: remove one of the two
        ips: {proxiedips: [10.0.0.1]}
            2:42: services[0].service.ips.proxiedips: 10.0.0.1 is not in "loadbalancerips": add it there, proxiedips only marks addresses
    "#]],
    );
}

#[test]
fn wrong_nodes() {
    let mistakes = [
        "nodes: [{name: a}, {nmae: b}]",
        "nodes: [{name: a, podcidrs: [10.0.0.0]}]",
        "nodes: [{topology: {node: a}}]",
        "nodes: [{name: a, internalips: a}]",
    ];
    check(
        document,
        &mistakes,
        expect![[r#"
        nodes: [{name: a}, {nmae: b}]
            1:21: nodes[1].nmae: unknown field "nmae": the fields here are name, labels, annotations, topology, internalips, podcidrs, goingaway
        nodes: [{name: a, podcidrs: [10.0.0.0]}]
            1:30: nodes[0].podcidrs[0]: "10.0.0.0" is no CIDR: write one like 10.0.0.0/8 or "fd00::/64"
        nodes: [{topology: {node: a}}]
            1:9: nodes[0]: the field "name" is missing
        nodes: [{name: a, internalips: a}]
            1:32: nodes[0].internalips: expected a list, found the string "a"
    "#]],
    );
}

#[test]
fn wrong_endpoints() {
    let mistakes = [
        "{endpoint: {}}",
        "{podname: a}",
        "{endpoint: {ips: [10.0.0.1]}, conditions: {redy: true}}",
        "{endpoint: {ips: [10.0.0.1], portoverrides: [{name: a, port: 1}, {name: a, port: 2}]}}",
        "{endpoint: {ips: [10.0.0.1], portoverrides: [{name: a}]}}",
        "{endpoint: {ips: [10.0.0.1]}, hints: {zones: a}}",
    ];
    check(
        endpoint,
        &mistakes,
        expect![[r#"
        {endpoint: {}}
            4:16: services[0].endpoints[0].endpoint: the endpoint has no address: give it "ips"
        {podname: a}
            4:5: services[0].endpoints[0]: the field "endpoint" is missing
        {endpoint: {ips: [10.0.0.1]}, conditions: {redy: true}}
            4:48: services[0].endpoints[0].conditions.redy: unknown field "redy": the fields here are ready, serving, terminating
        {endpoint: {ips: [10.0.0.1], portoverrides: [{name: a, port: 1}, {name: a, port: 2}]}}
            4:70: services[0].endpoints[0].endpoint.portoverrides[1]: another override is for the port "a": remove one
        {endpoint: {ips: [10.0.0.1], portoverrides: [{name: a}]}}
            4:50: services[0].endpoints[0].endpoint.portoverrides[0]: the field "port" is missing
        {endpoint: {ips: [10.0.0.1]}, hints: {zones: a}}
            4:50: services[0].endpoints[0].hints.zones: expected a list, found the string "a"
    "#]],
    );
}

#[test]
fn wrong_service_manifests() {
    let mistakes = [
        "clusterIP: 10.0.0",
        "clusterIPs: [10.0.0.1, none]",
        "type: clusterip",
        "ports: [{port: 70000}]",
        "ports: [{port: 80, protocol: HTTP}]",
        "ports: [{port: 80, targetPort: 1.5}]",
        "externalTrafficPolicy: local",
        "sessionAffinity: ClientIp",
        "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
        "loadBalancerSourceRanges: [everybody]",
    ];
    check(
        service_manifest,
        &mistakes,
        expect![[r#"
        clusterIP: 10.0.0
            4:19: spec.clusterIP: "10.0.0" is no IP address: write one like 10.0.0.1 or "fd00::1"
        clusterIPs: [10.0.0.1, none]
            4:31: spec.clusterIPs[1]: "none" is no IP address: write one like 10.0.0.1 or "fd00::1"
        type: clusterip
            4:14: spec.type: unknown type "clusterip": the types are ClusterIP, NodePort, LoadBalancer and ExternalName
        ports: [{port: 70000}]
            4:23: spec.ports[0].port: 70000 is no port: give a number from 1 to 65535
        ports: [{port: 80, protocol: HTTP}]
            4:37: spec.ports[0].protocol: unknown protocol "HTTP": the protocols are TCP, UDP and SCTP
        ports: [{port: 80, targetPort: 1.5}]
            4:39: spec.ports[0].targetPort: expected a whole number, found the number 1.5
        externalTrafficPolicy: local
            4:31: spec.externalTrafficPolicy: unknown policy "local": use Cluster or Local
        sessionAffinity: ClientIp
            4:25: spec.sessionAffinity: unknown affinity "ClientIp": use None or ClientIP
        sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}
            4:86: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is no affinity timeout: give 1 to 86400 seconds
        loadBalancerSourceRanges: [everybody]
            4:35: spec.loadBalancerSourceRanges[0]: "everybody" is no CIDR: write one like 10.0.0.0/8 or "fd00::/64"
    "#]],
    );
}

#[test]
fn wrong_slice_manifests() {
    let mistakes = [
        "",
        "addressType: ipv4",
        "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
        "addressType: IPv4\nendpoints: [{addresses: []}]",
        "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: [z]}}]",
        "addressType: IPv4\nports: [{port: 0}]",
    ];
    check(
        slice_manifest,
        &mistakes,
        expect![[r#"

            1:1: the field "addressType" is missing
        addressType: ipv4
            4:14: addressType: unknown address type "ipv4": the types are IPv4, IPv6 and FQDN
        addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]
            5:26: endpoints[0].addresses[0]: fd00::1 is no address of the slice's type IPv4
        addressType: IPv4\nendpoints: [{addresses: []}]
            5:13: endpoints[0]: the endpoint has no address: give one in "addresses"
        addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: [z]}}]
            5:56: endpoints[0].hints.forZones[0]: expected a mapping, found the string "z"
        addressType: IPv4\nports: [{port: 0}]
            5:16: ports[0].port: 0 is no port: give a number from 1 to 65535
    "#]],
    );
}

#[test]
fn wrong_manifests() {
    let mistakes = [
        "apiVersion: v1\nkind: Service\nspec: {}",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}",
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice",
        "apiVersion: v1\nkind: List\nitems:\n- {}",
        "apiVersion: v1\nkind: NodeList\nitems:\n- {metadata: {name: a}, status: {addresses: \
         [{type: InternalIP, address: a}]}}",
    ];
    check(
        document,
        &mistakes,
        expect![[r#"
        apiVersion: v1\nkind: Service\nspec: {}
            1:1: the field "metadata" is missing
        apiVersion: v1\nkind: Service\nmetadata: {name: a}
            1:1: the field "spec" is missing
        apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice
            1:1: unsupported version "discovery.k8s.io/v1beta1" of EndpointSlice: write it as discovery.k8s.io/v1
        apiVersion: v1\nkind: List\nitems:\n- {}
            4:3: items[0]: the field "kind" is missing
        apiVersion: v1\nkind: NodeList\nitems:\n- {metadata: {name: a}, status: {addresses: [{type: InternalIP, address: a}]}}
            4:74: items[0].status.addresses[0].address: "a" is no IP address: write one like 10.0.0.1 or "fd00::1"
    "#]],
    );
}

#[test]
fn what_is_defined_twice() {
    let mistakes = [
        "services:\n- service: {name: a}\n- service: {name: a, namespace: default}\n",
        "nodes:\n- name: a\n---\nnodes:\n- name: a\n",
        "nodes:\n- name: a\n---\n{apiVersion: v1, kind: Node, metadata: {name: a}}",
    ];
    check(
        document,
        &mistakes,
        expect![[r#"
        services:\n- service: {name: a}\n- service: {name: a, namespace: default}\n
            3:3: services[1]: the Service default/a is defined twice, first in line 2: remove one
        nodes:\n- name: a\n---\nnodes:\n- name: a\n
            5:3: nodes[0]: the Node a is defined twice, first in line 2: remove one
        nodes:\n- name: a\n---\n{apiVersion: v1, kind: Node, metadata: {name: a}}
            4:1: the Node a is defined twice, first in line 2: remove one
    "#]],
    );
    let twice = |rest: &str| [slice_manifest(rest), slice_manifest(rest)].join("---\n");
    check(
        twice,
        &["addressType: IPv4\n"],
        expect![[r#"
        addressType: IPv4\n
            6:1: the EndpointSlice default/a is defined twice, first in line 1: remove one
    "#]],
    );
}
