//! Explanations: that they say what is decided, and what they say of states that puzzle people.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use kpng_core::explain::{Explanation, Finding, Here, Outcome, Query, explain};
use kpng_core::local::{Consider, LocalService, Place, localize};
use kpng_core::model::{Family, Node, Protocol};
use kpng_core::plan::{Packet, Plan, Target, Verdict};
use kpng_core::store::{LocalBatch, Store};
use kpng_testkit::cases::{CASES, Case};
use kpng_testkit::conformance::{each_packet, plan, plan_of};
use kpng_testkit::fixture::{Fixture, NODE, address, fixture};
use kpng_testkit::random::cluster;
use proptest::prelude::*;

fn here(fixture: &Fixture) -> Here {
    let names = ["node", "node-alt"];
    let addresses = names.map(|name| Family::ALL.map(|family| address(name, family)));
    let addresses = addresses.into_iter().flatten().collect();
    Here { node: NODE.into(), facts: fixture.facts.clone(), addresses }
}

/// Asks `FROM -> TO:PORT[/PROTOCOL]` of a cluster, by the names of fixtures.
fn ask(cluster: &str, packet: &str, family: Family) -> Explanation {
    let fixture = fixture(cluster);
    let (from, to) = packet.split_once(" -> ").unwrap();
    let (to, port) = to.rsplit_once(':').unwrap();
    let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
    let (from, interface) = from.split_once('%').map_or((from, None), |(a, b)| (a, Some(b)));
    let query = Query {
        source: address(from, family),
        interface: interface.map(Into::into),
        destination: address(to, family),
        protocol: Protocol::from_name(protocol).unwrap(),
        port: port.parse().unwrap(),
    };
    explain(&fixture.store, &here(&fixture), &query).unwrap()
}

fn check(cluster: &str, packet: &str, expected: Expect) {
    expected.assert_eq(&ask(cluster, packet, Family::V4).to_string());
}

fn check_v6(cluster: &str, packet: &str, expected: Expect) {
    expected.assert_eq(&ask(cluster, packet, Family::V6).to_string());
}

/// An explanation says what the plan decides, and its endpoints are those of the plan.
fn assert_agrees(plan: &Plan, packet: &Packet<'_>, explanation: &Explanation, what: &str) {
    let decided = match plan.decide(packet) {
        Verdict::Pass => Outcome::Pass,
        Verdict::Reject => Outcome::Reject,
        Verdict::Drop => Outcome::Drop,
        Verdict::Forward { pool, masquerade, .. } => {
            Outcome::Forward { targets: pool.targets.clone(), masquerade }
        }
    };
    assert_eq!(explanation.outcome, decided, "{what}\n{explanation}");
    let Finding::Frontend(found) = &explanation.finding else { return };
    if !found.admitted {
        return;
    }
    let endpoints = found.endpoints.endpoints.iter();
    let may = endpoints.filter(|endpoint| found.exclusion(endpoint).is_none());
    let target = |port: Option<u16>, address| Target { address, port: port.unwrap() };
    let may: BTreeSet<_> = may.map(|e| target(e.port, e.address)).collect();
    let targets = match decided {
        Outcome::Forward { targets, masquerade } => {
            assert_eq!(found.treatment.masquerade.applies(), masquerade, "{what}\n{explanation}");
            targets
        }
        _ => Vec::new(),
    };
    assert_eq!(may.into_iter().collect::<Vec<_>>(), targets, "{what}\n{explanation}");
}

fn check_case(case: &Case) {
    let fixture = fixture(case.cluster);
    let here = here(&fixture);
    check_store(case, &fixture.store, &here);
    check_store(case, &worked_out(&fixture.store), &here);
}

/// The same state as a server gives it to one node.
fn worked_out(store: &Store) -> Store<LocalService> {
    let snapshot = store.snapshot().unwrap();
    let node = snapshot.nodes.get(NODE).unwrap();
    let place = Place::of(&NODE.into(), Some(node));
    let (mut writer, local) = Store::local();
    let mut batch = LocalBatch::new();
    batch.set_node(NODE, Node::clone(node));
    for (key, state) in &snapshot.services {
        batch.set_service(localize(key, state, &place).unwrap());
    }
    batch.mark_synced();
    writer.apply(batch);
    local
}

fn check_store<V: Consider>(case: &Case, store: &Store<V>, here: &Here) {
    let planner = plan(case);
    each_packet(case, |text, packet| {
        let Packet { source, interface, destination, protocol, port, .. } = *packet;
        let interface = interface.map(Into::into);
        let query = Query { source, interface, destination, protocol, port };
        let explanation = explain(store, here, &query).unwrap();
        assert_agrees(planner.plan(), packet, &explanation, &format!("{}: {text}", case.name));
    });
}

#[test]
fn every_case_is_explained_as_it_is_decided() {
    CASES.iter().for_each(check_case);
}

#[test]
fn an_incomplete_store_is_not_explained() {
    let (_writer, store) = Store::new();
    let source = address("pod1", Family::V4);
    let query =
        Query { source, interface: None, destination: source, protocol: Protocol::Tcp, port: 80 };
    assert_eq!(explain(&store, &Here::default(), &query), None);
}

#[test]
fn zone_hints_that_are_incomplete() {
    check(
        "node zone=a
         service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1 zone=a hint=a
           remote1 zone=b",
        "pod2 -> cluster.1:80",
        expect![[r#"
            10.180.0.2 -> 172.30.0.1:80/TCP on node-a: forwarded to one of 2 endpoints, not masqueraded

            from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            topology    hints.forZones does not count: only 1 of 2 ready endpoints have it
            masquerade  no: a pod of the cluster to a cluster IP
            endpoints   2 of 2 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node), zone a, for zones a
              yes 10.180.1.1:8080 pod remote1, node-b, zone b
        "#]],
    );
}

#[test]
fn zone_hints_that_count_and_an_endpoint_that_reaches_itself() {
    check(
        "node zone=a
         service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1 zone=a hint=a
           pod2 zone=a hint=a notready
           remote1 zone=b hint=b",
        "pod1 -> cluster.1:80",
        expect![[r#"
            10.180.0.1 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded (hairpin)

            from        a pod (pod1): the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            topology    only endpoints for this node's zone (hints.forZones, by spec.trafficDistribution or service.kubernetes.io/topology-mode)
            masquerade  no: a pod of the cluster to a cluster IP
            endpoints   1 of 3 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node), zone a, for zones a: the source itself, so masqueraded (hairpin)
              no  10.180.0.2:8080 pod pod2, node-a (this node), zone a, for zones a: not ready (conditions.ready is false)
              no  10.180.1.1:8080 pod remote1, node-b, zone b, for zones b: for other zones (hints.forZones does not name this node's zone)
        "#]],
    );
}

#[test]
fn node_hints_for_another_node_and_zone_hints_for_another_zone() {
    check(
        "node zone=c
         service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1 nodehint=node-b hint=a
           remote1 nodehint=node-b hint=b",
        "client -> cluster.1:80",
        expect![[r#"
            203.0.113.2 -> 172.30.0.1:80/TCP on node-a: forwarded to one of 2 endpoints, masqueraded

            from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            topology    hints.forNodes does not count: none names this node
            masquerade  yes: what comes to a cluster IP from no pod has to be answered through this node
            endpoints   2 of 2 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node), for nodes node-b, for zones a
              yes 10.180.1.1:8080 pod remote1, node-b, for nodes node-b, for zones b
        "#]],
    );
}

#[test]
fn nobody_is_ready_but_some_still_serve() {
    check(
        "service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1 serving-terminating
           pod2 terminating
           remote1 notready",
        "node -> cluster.1:80",
        expect![[r#"
            192.168.0.2 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

            from        this node: the address is one of this node's
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            masquerade  yes: what comes to a cluster IP from no pod has to be answered through this node
            endpoints   1 of 3 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node): serving while it terminates, as no other is ready
              no  10.180.0.2:8080 pod pod2, node-a (this node): terminating (conditions.terminating is true, conditions.serving is false)
              no  10.180.1.1:8080 pod remote1, node-b: not ready (conditions.ready is false)
        "#]],
    );
}

#[test]
fn external_policy_local_without_endpoints_here() {
    let cluster = "service t/web cluster=cluster.1 lb=lb.1 port=http:80:30080 etp=Local
         slice t/web http=8080
           pod1 notready
           remote1";
    check(
        cluster,
        "client -> lb.1:80",
        expect![[r#"
        203.0.113.2 -> 198.51.100.1:80/TCP on node-a: dropped

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        policy      spec.externalTrafficPolicy is Local: endpoints on this node
        dropped     no endpoint on this node may be chosen, but others exist
        endpoints   0 of 2 may be chosen
          no  10.180.0.1:8080 pod pod1, node-a (this node): not ready (conditions.ready is false)
          no  10.180.1.1:8080 pod remote1, node-b: not local (nodeName is not this node, and the policy is Local)
    "#]],
    );
    check(
        cluster,
        "pod2 -> lb.1:80",
        expect![[r#"
        10.180.0.2 -> 198.51.100.1:80/TCP on node-a: forwarded to 10.180.1.1:8080, not masqueraded

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        policy      spec.externalTrafficPolicy is Local: but to pods all endpoints of the cluster are open
        masquerade  no: a pod of the cluster to an external address with spec.externalTrafficPolicy Local
        endpoints   1 of 2 may be chosen
          no  10.180.0.1:8080 pod pod1, node-a (this node): not ready (conditions.ready is false)
          yes 10.180.1.1:8080 pod remote1, node-b
    "#]],
    );
    check(
        cluster,
        "node -> node:30080",
        expect![[r#"
        192.168.0.2 -> 192.168.0.2:30080/TCP on node-a: forwarded to 10.180.1.1:8080, masqueraded

        from        this node: the address is one of this node's
        frontend    IPv4 node port 30080/TCP of t/web, port http (spec.ports[].nodePort)
        policy      spec.externalTrafficPolicy is Local: but to the node itself all endpoints of the cluster are open
        masquerade  yes: the node's own packet to an external address has to be answered through this node
        endpoints   1 of 2 may be chosen
          no  10.180.0.1:8080 pod pod1, node-a (this node): not ready (conditions.ready is false)
          yes 10.180.1.1:8080 pod remote1, node-b
    "#]],
    );
}

#[test]
fn external_policy_local_when_pods_cannot_be_told() {
    check(
        "node pods=none
         service t/web cluster=cluster.1 lb=lb.1 port=http:80 etp=Local
         slice t/web http=8080
           pod1
           remote1",
        "pod2 -> lb.1:80",
        expect![[r#"
            10.180.0.2 -> 198.51.100.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, not masqueraded

            from        outside: not an address of this node; pods cannot be told from others (--detect-local-mode)
            frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
            policy      spec.externalTrafficPolicy is Local: endpoints on this node, for everybody but the node itself, as pods cannot be told from others (--detect-local-mode)
            masquerade  no: spec.externalTrafficPolicy is Local, which preserves the client's address
            endpoints   1 of 2 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node)
              no  10.180.1.1:8080 pod remote1, node-b: not local (nodeName is not this node, and the policy is Local)
        "#]],
    );
}

#[test]
fn internal_policy_local_without_any_endpoint() {
    check(
        "service t/web cluster=cluster.1 port=http:80 itp=Local
         slice t/web http=8080
           remote1 notready",
        "pod1 -> cluster.1:80",
        expect![[r#"
            10.180.0.1 -> 172.30.0.1:80/TCP on node-a: rejected (TCP reset)

            from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Local: endpoints on this node
            rejected    no endpoint is ready, nor serving while it terminates, anywhere
            endpoints   0 of 1 may be chosen
              no  10.180.1.1:8080 pod remote1, node-b: not ready (conditions.ready is false)
        "#]],
    );
}

#[test]
fn source_ranges_of_the_other_family_and_strangers() {
    let cluster = "service t/web cluster=cluster.1 lb=lb.1 port=http:80 ranges=client-net4
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "blocked -> lb.1:80",
        expect![[r#"
        203.0.113.130 -> 198.51.100.1:80/TCP on node-a: dropped

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        admitted    only from 203.0.113.0/25 (spec.loadBalancerSourceRanges): it is not, so it is dropped
    "#]],
    );
    check_v6(
        cluster,
        "client -> lb.1:80",
        expect![[r#"
        2001:db8:203::2 -> [2001:db8:100::1]:80/TCP on node-a: dropped

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    [2001:db8:100::1]:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        admitted    only from nobody (spec.loadBalancerSourceRanges): it is not, so it is dropped
        note        loadBalancerSourceRanges has no IPv6 range, so nobody may reach its IPv6 load balancer addresses; add a range of that family to admit clients
    "#]],
    );
    check(
        cluster,
        "client -> lb.1:80",
        expect![[r#"
        203.0.113.2 -> 198.51.100.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        admitted    only from 203.0.113.0/25 (spec.loadBalancerSourceRanges): it is
        policy      spec.externalTrafficPolicy is Cluster: all endpoints of the cluster
        masquerade  yes: spec.externalTrafficPolicy is Cluster, so an endpoint may be on another node and has to answer through this one
        endpoints   1 of 1 may be chosen
          yes 10.180.0.1:8080 pod pod1, node-a (this node)
    "#]],
    );
}

#[test]
fn a_port_that_slices_do_not_have() {
    check(
        "service t/web cluster=cluster.1 port=http:80 port=https:443
         slice t/web http=8080 web-tls=8443
           pod1
         slice t/web https=8443
           pod2 notready",
        "pod3 -> cluster.1:443",
        expect![[r#"
            10.180.0.3 -> 172.30.0.1:443/TCP on node-a: rejected (TCP reset)

            from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:443/TCP of t/web, port https (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            rejected    no endpoint is ready, nor serving while it terminates, anywhere
            endpoints   0 of 2 may be chosen
              no  10.180.0.1 pod pod1, node-a (this node): wrong port: its EndpointSlice has no port with this spec.ports[].name and protocol, only "http"/TCP, "web-tls"/TCP
              no  10.180.0.2:8443 pod pod2, node-a (this node): not ready (conditions.ready is false)
        "#]],
    );
}

#[test]
fn an_address_that_two_slices_have() {
    check(
        "service t/web cluster=cluster.1 port=http:80
         slice t/web http=8080
           pod1 terminating
         slice t/web http=8080
           pod1",
        "pod3 -> cluster.1:80",
        expect![[r#"
            10.180.0.3 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, not masqueraded

            from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            masquerade  no: a pod of the cluster to a cluster IP
            endpoints   1 of 2 may be chosen
              no  10.180.0.1:8080 pod pod1, node-a (this node): another entry with this address and port counts instead
              yes 10.180.0.1:8080 pod pod1, node-a (this node)
        "#]],
    );
}

#[test]
fn a_frontend_that_two_services_claim() {
    check(
        "service t/old ext=ext.1 port=http:80 created=1
         slice t/old http=8080
           pod1
         service t/new ext=ext.1 port=http:80 created=2
         slice t/new http=8080
           pod2",
        "client -> ext.1:80",
        expect![[r#"
            203.0.113.2 -> 198.18.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

            from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    198.18.0.1:80/TCP of t/old, port http (spec.externalIPs)
            policy      spec.externalTrafficPolicy is Cluster: all endpoints of the cluster
            masquerade  yes: spec.externalTrafficPolicy is Cluster, so an endpoint may be on another node and has to answer through this one
            endpoints   1 of 1 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node)
            note        t/new claims this frontend too, but t/old is older (metadata.creationTimestamp, then namespace and name)
        "#]],
    );
}

#[test]
fn ports_and_protocols_that_are_not_served() {
    let cluster = "service t/dns cluster=cluster.1 ext=ext.1 port=dns:53/UDP:30053 port=m:9153
         slice t/dns dns=5353/UDP m=9153
           pod1";
    check(
        cluster,
        "pod2 -> cluster.1:53",
        expect![[r#"
        10.180.0.2 -> 172.30.0.1:53/TCP on node-a: rejected (TCP reset)

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    a cluster IP of t/dns, without this port
        served      172.30.0.1:9153/TCP, 172.30.0.1:53/UDP
    "#]],
    );
    check(
        cluster,
        "pod2 -> ext.1:53",
        expect![[r#"
        10.180.0.2 -> 198.18.0.1:53/TCP on node-a: not ours

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        served instead: 198.18.0.1:9153/TCP, 198.18.0.1:53/UDP
    "#]],
    );
    check(
        cluster,
        "client -> node:30053",
        expect![[r#"
        203.0.113.2 -> 192.168.0.2:30053/TCP on node-a: not ours

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        served instead: IPv4 node port 30053/UDP
    "#]],
    );
    check(
        cluster,
        "pod2 -> cluster.9:53",
        expect![[r#"
        10.180.0.2 -> 172.30.0.9:53/TCP on node-a: dropped

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: an address in 172.30.0.0/16 (--service-cidrs) that no Service has
        note        no Service that kpng proxies has this address and port; it leaves alone those of type ExternalName, headless ones (clusterIP: None), and those with the label service.kubernetes.io/service-proxy-name (but see --service-proxy-name)
    "#]],
    );
}

#[test]
fn node_ports_that_are_not_served() {
    let cluster = "service t/web cluster=cluster.1 port=http:80:30080
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "client -> node-alt:30080",
        expect![[r#"
        203.0.113.2 -> 192.168.1.2:30080/TCP on node-a: not ours

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        it is a node port of t/web, but not on this address: --nodeport-addresses covers 192.168.0.2
    "#]],
    );
    check(
        cluster,
        "node -> localhost:30080",
        expect![[r#"
        192.168.0.2 -> 127.0.0.1:30080/TCP on node-a: not ours

        from        this node: the address is one of this node's
        frontend    none: kpng does nothing to the packet
        note        it is a node port of t/web, but on loopback addresses node ports are served only on 127.0.0.1, to the node itself, with --localhost-nodeports
    "#]],
    );
    check(
        cluster,
        "node-alt -> node:30080",
        expect![[r#"
        192.168.1.2 -> 192.168.0.2:30080/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

        from        this node: the address is one of this node's
        frontend    IPv4 node port 30080/TCP of t/web, port http (spec.ports[].nodePort)
        policy      spec.externalTrafficPolicy is Cluster: all endpoints of the cluster
        masquerade  yes: spec.externalTrafficPolicy is Cluster, so an endpoint may be on another node and has to answer through this one
        endpoints   1 of 1 may be chosen
          yes 10.180.0.1:8080 pod pod1, node-a (this node)
    "#]],
    );
}

#[test]
fn addresses_that_are_left_alone() {
    let cluster = "service t/web cluster4=cluster.1 ext=ext.1 proxy-lb=lb.1 port=http:80
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "client -> lb.1:80",
        expect![[r#"
        203.0.113.2 -> 198.51.100.1:80/TCP on node-a: not ours

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        it is a load balancer address of t/web with ipMode Proxy (status.loadBalancer.ingress[].ipMode): the load balancer sees this traffic itself
    "#]],
    );
    check_v6(
        cluster,
        "client -> ext.1:80",
        expect![[r#"
        2001:db8:203::2 -> [2001:db8:18::1]:80/TCP on node-a: not ours

        from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        t/web has this address, but no cluster IP of family IPv6, so it does not live in IPv6 (spec.ipFamilies)
    "#]],
    );
    check(
        cluster,
        "pod2 -> pod1:8080",
        expect![[r#"
        10.180.0.2 -> 10.180.0.1:8080/TCP on node-a: not ours

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        the destination is pod pod1, an endpoint of t/web: it is reached directly
    "#]],
    );
    check(
        cluster,
        "pod2 -> lb.9:80",
        expect![[r#"
        10.180.0.2 -> 198.51.100.9:80/TCP on node-a: not ours

        from        a pod: the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        no Service that kpng proxies has this address and port; it leaves alone those of type ExternalName, headless ones (clusterIP: None), and those with the label service.kubernetes.io/service-proxy-name (but see --service-proxy-name)
    "#]],
    );
}

#[test]
fn pods_told_by_their_interfaces() {
    let cluster = "node pods=interface
         service t/web cluster=cluster.1 port=http:80 affinity=600
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "pod1 -> cluster.1:80",
        expect![[r#"
            10.180.0.1 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded (hairpin)

            from        a pod (pod1): the address is an endpoint's on this node, so the interface is taken to be veth-pod or to begin so (--detect-local-mode); say --interface if it is another
            frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
            policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
            masquerade  no: a pod of the cluster to a cluster IP
            affinity    ClientIP: a client stays with its endpoint while it may be chosen, 600 s after its last connection (spec.sessionAffinity)
            endpoints   1 of 1 may be chosen
              yes 10.180.0.1:8080 pod pod1, node-a (this node): the source itself, so masqueraded (hairpin)
        "#]],
    );
    check(
        cluster,
        "pod2 -> cluster.1:80",
        expect![[r#"
        10.180.0.2 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

        from        outside: not an address of this node, and the interface does not begin with veth-pod (--pod-interface-name-prefix); the interface was not given (--interface)
        frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
        policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
        masquerade  yes: what comes to a cluster IP from no pod has to be answered through this node
        affinity    ClientIP: a client stays with its endpoint while it may be chosen, 600 s after its last connection (spec.sessionAffinity)
        endpoints   1 of 1 may be chosen
          yes 10.180.0.1:8080 pod pod1, node-a (this node)
    "#]],
    );
    check(
        cluster,
        "pod2%veth-pod2 -> cluster.1:80",
        expect![[r#"
        10.180.0.2 -> 172.30.0.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, not masqueraded

        from        a pod: the interface is veth-pod or begins so (--detect-local-mode)
        frontend    172.30.0.1:80/TCP of t/web, port http (spec.clusterIPs)
        policy      spec.internalTrafficPolicy is Cluster: all endpoints of the cluster
        masquerade  no: a pod of the cluster to a cluster IP
        affinity    ClientIP: a client stays with its endpoint while it may be chosen, 600 s after its last connection (spec.sessionAffinity)
        endpoints   1 of 1 may be chosen
          yes 10.180.0.1:8080 pod pod1, node-a (this node)
    "#]],
    );
}

const NAMES: &[&str] =
    &["pod1", "pod2", "remote1", "node", "node-alt", "client", "blocked", "cluster.1", "lb.1"];
const DESTINATIONS: &[&str] = &[
    "cluster.1",
    "cluster.2",
    "cluster.9",
    "ext.1",
    "lb.1",
    "lb.2",
    "node",
    "node-alt",
    "localhost",
    "pod1",
];
const PORTS: &[u16] = &[80, 81, 443, 30001, 30002];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Only what concerns the packet is planned again, and still the answer is that of the whole plan.
    #[test]
    fn random_clusters_are_explained_as_they_are_decided(cluster in cluster()) {
        let planner = plan_of(&cluster);
        let fixture = fixture(&cluster);
        let here = here(&fixture);
        for (from, to) in NAMES.iter().flat_map(|from| DESTINATIONS.iter().map(move |to| (from, to))) {
            for (family, port) in Family::ALL.into_iter().flat_map(|f| PORTS.iter().map(move |p| (f, *p))) {
                let (source, destination) = (address(from, family), address(to, family));
                let from_node = from.starts_with("node");
                let interface = if from.starts_with("pod") { "veth-pod1" } else { "eth0" };
                let protocol = Protocol::Tcp;
                let packet = Packet {
                    source,
                    interface: (!from_node).then_some(interface),
                    from_node,
                    destination,
                    protocol,
                    port,
                };
                let interface = Some(interface.into());
                let query = Query { source, interface, destination, protocol, port };
                let explanation = explain(&fixture.store, &here, &query).unwrap();
                assert_agrees(planner.plan(), &packet, &explanation, &cluster);
            }
        }
    }
}

#[test]
fn health_checks_and_the_own_address_among_the_sources() {
    let cluster = "service t/web cluster=cluster.1 lb=lb.1 port=http:80 etp=Local health=32000 \
                   ranges=node-net
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "client -> node:32000",
        expect![[r#"
            203.0.113.2 -> 192.168.0.2:32000/TCP on node-a: not ours

            from        outside: not an address of this node, nor in 10.0.0.0/8, fd00:180::/32 (--cluster-cidrs, or spec.podCIDRs of the Node)
            frontend    none: kpng does nothing to the packet
            note        it is the health check of t/web (spec.healthCheckNodePort), which kpng answers where it serves node ports (--nodeport-addresses): 200 while a ready endpoint is on this node, else 503
        "#]],
    );
    check(
        cluster,
        "node -> lb.1:80",
        expect![[r#"
        192.168.0.2 -> 198.51.100.1:80/TCP on node-a: forwarded to 10.180.0.1:8080, masqueraded

        from        this node: the address is one of this node's
        frontend    198.51.100.1:80/TCP of t/web, port http (status.loadBalancer.ingress[].ip)
        admitted    only from 192.168.0.0/24, 198.51.100.1/32 (spec.loadBalancerSourceRanges): it is
        policy      spec.externalTrafficPolicy is Local: but to the node itself all endpoints of the cluster are open
        masquerade  yes: the node's own packet to an external address has to be answered through this node
        endpoints   1 of 1 may be chosen
          yes 10.180.0.1:8080 pod pod1, node-a (this node)
        note        the frontend's own address may come in too, because the node's address may: the node reaches it with either
    "#]],
    );
}

#[test]
fn a_node_port_of_another_node() {
    let cluster = "service t/web cluster=cluster.1 port=http:80:30080
         slice t/web http=8080
           pod1";
    check(
        cluster,
        "pod1 -> client:30080",
        expect![[r#"
        10.180.0.1 -> 203.0.113.2:30080/TCP on node-a: not ours

        from        a pod (pod1): the address is in 10.0.0.0/8 (--cluster-cidrs, or spec.podCIDRs of the Node)
        frontend    none: kpng does nothing to the packet
        note        the port is a node port of t/web, but the address is none of this node's
    "#]],
    );
}
