//! The local API.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect, expect};

use super::ANY_PORT;
use super::client::{Client, Op, text};
use super::cluster::Cluster;

const NODE: &str = "node-a";

/// Two kinds of endpoints, and a Service that has everything that KPNG knows of.
const FIRST: &str = "
    service default/web cluster=cluster.1 port=http:80 port=dns:53/UDP
    slice default/web http=8080 dns=5353/UDP
      pod1
      remote1
      ext7 v4
    service default/all cluster=cluster.2 ext=ext.1 lb=lb.1 port=http:80:30080 etp=Local itp=Local affinity=30 health=32000 ranges=client-net
    slice default/all http=8080
      pod2
      remote2
";

/// Shows all answers to a client that asks again and again while the cluster changes.
async fn check(states: &[&str], expected: Expect) {
    let mut cluster = Cluster::serve_nothing(&[ANY_PORT]).await;
    let mut client = Client::local(&cluster.host_and_port()).await;
    let mut shown = String::new();
    for state in states {
        cluster.becomes(state);
        client.ask_local(NODE);
        let answer = client.answer().await;
        shown += &client.show(&answer);
    }
    expected.assert_eq(&shown);
}

#[tokio::test]
async fn a_first_answer_begins_with_reset() {
    check(&[FIRST], expect![[r#"
        reset
        + ServicesSet default/all {Namespace:default,Name:all,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.2],V6:[fd00:172:30::2]},ExternalIPs:{V4:[198.18.0.1],V6:[2001:db8:18::1]},LoadBalancerIPs:{V4:[198.51.100.1],V6:[2001:db8:100::1]}},Ports:[{Name:http,Protocol:TCP,Port:80,NodePort:30080,TargetPort:80}],ExternalTrafficToLocal:true,IPFilters:[{SourceRanges:[203.0.113.0/25,2001:db8:203::/64]}],ClientIP:{TimeoutSeconds:30},InternalTrafficToLocal:true,HealthCheckNodePort:32000}
        + ServicesSet default/web {Namespace:default,Name:web,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.1],V6:[fd00:172:30::1]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80},{Name:dns,Protocol:UDP,Port:53,TargetPort:53}]}
        + EndpointsSet default/all/pod2 {IPs:{V4:[10.180.0.2],V6:[fd00:180::2]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/remote1 {IPs:{V4:[10.180.1.1],V6:[fd00:180:1::1]},PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#1 {IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        sync
    "#]]).await;
}

#[tokio::test]
async fn an_empty_state_is_an_answer() {
    check(&["", FIRST, ""], expect![[r#"
        reset
        sync
        + ServicesSet default/all {Namespace:default,Name:all,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.2],V6:[fd00:172:30::2]},ExternalIPs:{V4:[198.18.0.1],V6:[2001:db8:18::1]},LoadBalancerIPs:{V4:[198.51.100.1],V6:[2001:db8:100::1]}},Ports:[{Name:http,Protocol:TCP,Port:80,NodePort:30080,TargetPort:80}],ExternalTrafficToLocal:true,IPFilters:[{SourceRanges:[203.0.113.0/25,2001:db8:203::/64]}],ClientIP:{TimeoutSeconds:30},InternalTrafficToLocal:true,HealthCheckNodePort:32000}
        + ServicesSet default/web {Namespace:default,Name:web,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.1],V6:[fd00:172:30::1]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80},{Name:dns,Protocol:UDP,Port:53,TargetPort:53}]}
        + EndpointsSet default/all/pod2 {IPs:{V4:[10.180.0.2],V6:[fd00:180::2]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/remote1 {IPs:{V4:[10.180.1.1],V6:[fd00:180:1::1]},PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#1 {IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:8080},{Name:dns,Port:5353}],Scopes:{Internal:true,External:true}}
        sync
        - EndpointsSet default/web/#1
        - EndpointsSet default/web/remote1
        - EndpointsSet default/web/pod1
        - EndpointsSet default/all/pod2
        - ServicesSet default/web
        - ServicesSet default/all
        sync
    "#]]).await;
}

#[tokio::test]
async fn endpoints_without_a_name_are_replaced() {
    let with = |port: &str, conditions: &str| {
        format!(
            "service default/web cluster=cluster.1 port=http:80
             slice default/web http={port}
               pod1 {conditions}
               ext7 v4
               ext8 v4
               remote1 v4"
        )
    };
    let states = [with("8080", ""), with("9090", ""), with("9090", "notready")];
    check(&states.each_ref().map(String::as_str), expect![[r#"
        reset
        + ServicesSet default/web {Namespace:default,Name:web,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.1],V6:[fd00:172:30::1]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80}]}
        + EndpointsSet default/web/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/remote1 {IPs:{V4:[10.180.1.1]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#1 {IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#2 {IPs:{V4:[198.18.0.8]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        sync
        - EndpointsSet default/web/#2
        - EndpointsSet default/web/#1
        + EndpointsSet default/web/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:9090}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/remote1 {IPs:{V4:[10.180.1.1]},PortOverrides:[{Name:http,Port:9090}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#3 {IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:9090}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/web/#4 {IPs:{V4:[198.18.0.8]},PortOverrides:[{Name:http,Port:9090}],Scopes:{Internal:true,External:true}}
        sync
        - EndpointsSet default/web/pod1
        sync
    "#]]).await;
}

#[tokio::test]
async fn services_are_set_first_and_deleted_last() {
    let before = "
        service default/a cluster=cluster.1 port=http:80
        slice default/a http=8080
          pod1
          ext1 v4
          ext2 v4
        service default/b cluster=cluster.2 port=http:80
        slice default/b http=8080
          pod2
          pod3
    ";
    let after = "
        service default/c cluster=cluster.3 port=http:80
        slice default/c http=8080
          pod1
          ext1 v4
        service default/d cluster=cluster.4 port=http:80
    ";
    check(&[before, after], expect![[r#"
        reset
        + ServicesSet default/a {Namespace:default,Name:a,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.1],V6:[fd00:172:30::1]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80}]}
        + ServicesSet default/b {Namespace:default,Name:b,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.2],V6:[fd00:172:30::2]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80}]}
        + EndpointsSet default/a/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/b/pod2 {IPs:{V4:[10.180.0.2],V6:[fd00:180::2]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/b/pod3 {IPs:{V4:[10.180.0.3],V6:[fd00:180::3]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/a/#1 {IPs:{V4:[198.18.0.1]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        + EndpointsSet default/a/#2 {IPs:{V4:[198.18.0.2]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        sync
        + ServicesSet default/c {Namespace:default,Name:c,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.3],V6:[fd00:172:30::3]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80}]}
        + ServicesSet default/d {Namespace:default,Name:d,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.4],V6:[fd00:172:30::4]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80,TargetPort:80}]}
        - EndpointsSet default/a/#2
        - EndpointsSet default/a/#1
        + EndpointsSet default/c/pod1 {IPs:{V4:[10.180.0.1],V6:[fd00:180::1]},Local:true,PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        - EndpointsSet default/b/pod3
        - EndpointsSet default/b/pod2
        - EndpointsSet default/a/pod1
        + EndpointsSet default/c/#1 {IPs:{V4:[198.18.0.1]},PortOverrides:[{Name:http,Port:8080}],Scopes:{Internal:true,External:true}}
        - ServicesSet default/b
        - ServicesSet default/a
        sync
    "#]]).await;
}

#[tokio::test]
async fn a_request_has_one_answer_and_nothing_is_sent_unasked() {
    let web = |number: u8| format!("service default/web cluster=cluster.{number} port=http:80");
    let mut cluster = Cluster::serve(&[ANY_PORT], &web(1)).await;
    let mut client = Client::local(&cluster.host_and_port()).await;
    client.hears_nothing().await;
    client.ask_local(NODE);
    let first = client.answer().await;
    assert_eq!(first.len(), 2, "{}", client.show(&first));

    // What happens while nobody asks is answered once, in its last state.
    (2..=20).for_each(|number| cluster.becomes(&web(number)));
    client.hears_nothing().await;
    client.ask_local(NODE);
    let second = client.answer().await;
    assert_eq!(second.len(), 1);
    let shown = client.show(&second);
    assert!(shown.contains("172.30.0.20"), "{shown}");
    client.hears_nothing().await;

    // An answer is owed until there is something to say.
    client.ask_local(NODE);
    client.hears_nothing().await;
    cluster.becomes(&format!("{}\nslice default/nobody http=80\npod1", web(20)));
    client.hears_nothing().await;
    cluster.becomes(&web(21));
    assert_eq!(client.answer().await.len(), 1);

    // Requests wait for their turn.
    (0..3).for_each(|_| client.ask_local(NODE));
    for number in 22..=24 {
        client.hears_nothing().await;
        cluster.becomes(&web(number));
        assert_eq!(client.answer().await.len(), 1);
    }
    cluster.becomes(&web(25));
    client.hears_nothing().await;

    // The answer that is owed when the server's source ends is the end.
    client.ask_local(NODE);
    assert_eq!(client.answer().await.len(), 1);
    client.ask_local(NODE);
    drop(cluster);
    client.hears_the_end().await;
}

#[tokio::test]
async fn what_came_and_went_while_nobody_asked_is_no_answer() {
    let mut cluster = Cluster::serve(&[ANY_PORT], FIRST).await;
    let mut client = Client::local(&cluster.host_and_port()).await;
    client.ask_local(NODE);
    client.answer().await;
    cluster.becomes("");
    cluster.becomes(FIRST);
    client.ask_local(NODE);
    client.hears_nothing().await;
    cluster.becomes("");
    client.answer().await;
}

#[tokio::test]
async fn another_node_is_another_view() {
    let cluster = Cluster::serve(&[ANY_PORT], FIRST).await;
    let mut client = Client::local(&cluster.host_and_port()).await;
    let mut fresh = Client::local(&cluster.host_and_port()).await;
    client.ask_local(NODE);
    client.answer().await;
    client.ask_local("node-b");
    fresh.ask_local("node-b");
    let (changed, first) = (client.answer().await, fresh.answer().await);
    assert!(matches!(changed[0], Op::Reset));
    assert_eq!(fresh.show(&changed), fresh.show(&first));
}

/// Answers of many pages: whatever the order, a client never has an endpoint without its Service.
#[tokio::test]
async fn no_orphan_is_ever_seen() {
    let state = |services: std::ops::Range<u32>, port: u32| {
        let service = |number| {
            format!(
                "service ns/s{number} cluster=cluster.{} port=http:80
                 slice ns/s{number} http={port}
                   pod1
                   remote2
                   ext3\n",
                number % 250
            )
        };
        services.map(service).collect::<String>()
    };
    let mut cluster = Cluster::serve_nothing(&[ANY_PORT]).await;
    let mut client = Client::local(&cluster.host_and_port()).await;
    let mut services = BTreeSet::new();
    let mut endpoints = BTreeMap::new();
    for (range, port) in [(0..300, 8080), (100..400, 8080), (100..400, 9090), (350..360, 1)] {
        let count = range.len();
        cluster.becomes(&state(range, port));
        client.ask_local(NODE);
        for op in client.answer().await {
            match op {
                Op::Reset => assert!(services.is_empty()),
                Op::Set { set, path, .. } if set == "ServicesSet" => {
                    services.insert(path);
                }
                Op::Set { path, value, .. } => {
                    let (service, _) = path.rsplit_once('/').unwrap();
                    assert!(services.contains(service), "{path}");
                    endpoints.insert(path, text(&value));
                }
                Op::Delete { set, path } if set == "ServicesSet" => {
                    let prefix = format!("{path}/");
                    assert!(!endpoints.keys().any(|other| other.starts_with(&prefix)), "{path}");
                    assert!(services.remove(&path), "{path}");
                }
                Op::Delete { path, .. } => {
                    assert!(endpoints.remove(&path).is_some(), "{path}");
                }
            }
        }
        // Two Pods, and an address in each family that is no Pod's.
        assert_eq!((services.len(), endpoints.len()), (count, 4 * count));
        let ports = format!("PortOverrides:[{{Name:http,Port:{port}}}]");
        assert!(endpoints.values().all(|endpoint| endpoint.contains(&ports)));
    }
}
