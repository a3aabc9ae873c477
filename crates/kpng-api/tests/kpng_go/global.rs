//! The global API, for clients that keep a store as KPNG's api2store does.

use std::collections::BTreeMap;

use bytes::Bytes;
use expect_test::expect;
use prost_reflect::{DynamicMessage, Value};

use super::ANY_PORT;
use super::client::{Client, Op};
use super::cluster::{Cluster, Objects};

const FIRST: &str = "
    node zone=a
    service default/web cluster=cluster.1 port=http:80
    slice default/web http=8080
      pod1 zone=a hint=a
      remote1 zone=b hint=b nodehint=node-b
      ext7 v4 serving-terminating
    service default/empty cluster=cluster.2 lb=lb.1 proxy-lb=lb.2 port=http:80 created=7
    slice default/nobody http=8080
      pod2 v4 notready
";

/// What api2store keeps.
#[derive(Default)]
struct Replica {
    values: BTreeMap<(String, String), (u64, Bytes)>,
    unchanged: usize,
}

impl Replica {
    /// Applies an answer, in order. A value that has the hash of the one before counts as the same.
    fn apply(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Reset => self.values.clear(),
                Op::Delete { set, path } => {
                    assert!(
                        self.values.remove(&(set, path.clone())).is_some(),
                        "{path} is unknown"
                    );
                }
                Op::Set { set, path, bytes, value } => {
                    let hash = number(&value, "Hash");
                    assert_ne!(hash, 0, "{path}");
                    if set == "GlobalEndpointInfos" {
                        assert!(path.ends_with(&format!("|{hash:x}")), "{path} has hash {hash:x}");
                    }
                    let before = self.values.insert((set, path.clone()), (hash, bytes.clone()));
                    if let Some((_, old)) = before.filter(|(before, _)| *before == hash) {
                        assert_eq!(old, bytes, "{path} differs, but its hash does not");
                        self.unchanged += 1;
                    }
                }
            }
        }
    }

    /// Paths without hashes, and how often they occur.
    fn paths(&self) -> BTreeMap<String, usize> {
        let mut paths = BTreeMap::new();
        for (set, path) in self.values.keys() {
            let (path, _) = path.rsplit_once('|').unwrap();
            *paths.entry(format!("{set} {path}")).or_default() += 1;
        }
        paths
    }
}

fn number(message: &DynamicMessage, field: &str) -> u64 {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::U64(number)) => *number,
        other => panic!("{field} is {other:?}"),
    }
}

/// The paths that a cluster has: endpoints are at two each.
fn paths_of(text: &str) -> BTreeMap<String, usize> {
    let Objects { nodes, services, slices } = Objects::of(text);
    let mut paths = BTreeMap::new();
    paths.extend(nodes.iter().map(|(name, _)| (format!("GlobalNodeInfos |{name}|"), 1)));
    for (key, _) in &services {
        paths.insert(format!("GlobalServiceInfos {}|{}|", key.namespace, key.name), 1);
    }
    for (key, service, slice) in slices {
        for owner in ["", &*service] {
            let path = format!("GlobalEndpointInfos {}|{owner}|{}", key.namespace, key.name);
            paths.insert(path, slice.endpoints.len());
        }
    }
    paths.retain(|_, count| *count > 0);
    paths
}

#[tokio::test]
async fn a_first_answer_has_every_endpoint_twice() {
    let mut cluster = Cluster::serve_nothing(&[ANY_PORT]).await;
    let mut client = Client::global(&cluster.host_and_port()).await;
    let mut shown = String::new();
    for state in [None, Some(FIRST), Some("")] {
        state.into_iter().for_each(|state| cluster.becomes(state));
        client.ask_global();
        let answer = client.answer().await;
        shown += &client.show(&answer);
    }
    expect![[r#"
        reset
        sync
        + GlobalNodeInfos |node-a|| {Hash:#1,Node:{Name:node-a,Topology:{Node:node-a,Zone:a}}}
        + GlobalServiceInfos default|empty|| {Hash:#2,Service:{Namespace:default,Name:empty,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.2],V6:[fd00:172:30::2]},ExternalIPs:{},LoadBalancerIPs:{V4:[198.51.100.1],V6:[2001:db8:100::1]}},Ports:[{Name:http,Protocol:TCP,Port:80}]}}
        + GlobalServiceInfos default|web|| {Hash:#3,Service:{Namespace:default,Name:web,Type:ClusterIP,IPs:{ClusterIPs:{V4:[172.30.0.1],V6:[fd00:172:30::1]},ExternalIPs:{}},Ports:[{Name:http,Protocol:TCP,Port:80}]}}
        + GlobalEndpointInfos default|nobody|nobody-3|#4 {Hash:#4,Namespace:default,SourceName:nobody-3,ServiceName:nobody,Endpoint:{IPs:{V4:[10.180.0.2]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{},PodName:pod2,Topology:{Node:node-a}}
        + GlobalEndpointInfos default||nobody-3|#4 {Hash:#4,Namespace:default,SourceName:nobody-3,ServiceName:nobody,Endpoint:{IPs:{V4:[10.180.0.2]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{},PodName:pod2,Topology:{Node:node-a}}
        + GlobalEndpointInfos default|web|web-1|#5 {Hash:#5,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[10.180.0.1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:pod1,Topology:{Node:node-a,Zone:a},Hints:{Zones:[a]}}
        + GlobalEndpointInfos default|web|web-1|#6 {Hash:#6,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{},Topology:{}}
        + GlobalEndpointInfos default|web|web-1|#7 {Hash:#7,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[10.180.1.1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:remote1,Topology:{Node:node-b,Zone:b},Hints:{Zones:[b]}}
        + GlobalEndpointInfos default|web|web-2|#8 {Hash:#8,Namespace:default,SourceName:web-2,ServiceName:web,Endpoint:{IPs:{V6:[fd00:180:1::1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:remote1,Topology:{Node:node-b,Zone:b},Hints:{Zones:[b]}}
        + GlobalEndpointInfos default|web|web-2|#9 {Hash:#9,Namespace:default,SourceName:web-2,ServiceName:web,Endpoint:{IPs:{V6:[fd00:180::1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:pod1,Topology:{Node:node-a,Zone:a},Hints:{Zones:[a]}}
        + GlobalEndpointInfos default||web-1|#5 {Hash:#5,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[10.180.0.1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:pod1,Topology:{Node:node-a,Zone:a},Hints:{Zones:[a]}}
        + GlobalEndpointInfos default||web-1|#6 {Hash:#6,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[198.18.0.7]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{},Topology:{}}
        + GlobalEndpointInfos default||web-1|#7 {Hash:#7,Namespace:default,SourceName:web-1,ServiceName:web,Endpoint:{IPs:{V4:[10.180.1.1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:remote1,Topology:{Node:node-b,Zone:b},Hints:{Zones:[b]}}
        + GlobalEndpointInfos default||web-2|#8 {Hash:#8,Namespace:default,SourceName:web-2,ServiceName:web,Endpoint:{IPs:{V6:[fd00:180:1::1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:remote1,Topology:{Node:node-b,Zone:b},Hints:{Zones:[b]}}
        + GlobalEndpointInfos default||web-2|#9 {Hash:#9,Namespace:default,SourceName:web-2,ServiceName:web,Endpoint:{IPs:{V6:[fd00:180::1]},PortOverrides:[{Name:http,Port:8080}]},Conditions:{Ready:true},PodName:pod1,Topology:{Node:node-a,Zone:a},Hints:{Zones:[a]}}
        sync
        + GlobalNodeInfos |node-a|| {Hash:#10,Node:{Name:node-a,Topology:{Node:node-a}}}
        - GlobalEndpointInfos default||web-2|#9
        - GlobalEndpointInfos default||web-2|#8
        - GlobalEndpointInfos default||web-1|#7
        - GlobalEndpointInfos default||web-1|#6
        - GlobalEndpointInfos default||web-1|#5
        - GlobalEndpointInfos default|web|web-2|#9
        - GlobalEndpointInfos default|web|web-2|#8
        - GlobalEndpointInfos default|web|web-1|#7
        - GlobalEndpointInfos default|web|web-1|#6
        - GlobalEndpointInfos default|web|web-1|#5
        - GlobalEndpointInfos default||nobody-3|#4
        - GlobalEndpointInfos default|nobody|nobody-3|#4
        - GlobalServiceInfos default|web||
        - GlobalServiceInfos default|empty||
        sync
    "#]].assert_eq(&shown);
}

#[tokio::test]
async fn a_store_that_applies_all_answers_is_right() {
    let web = |port: u32, endpoints: &str| {
        format!(
            "node zone=a
             service default/web cluster=cluster.1 port=http:80
             slice default/web http={port}
             {endpoints}
             service other/web cluster=cluster.9 port=http:80"
        )
    };
    let states = [
        FIRST.to_owned(),
        web(8080, "pod1 zone=a\nremote1 zone=b\next7 v4"),
        // The same but a hint, which KPNG's hash does not cover.
        web(8080, "pod1 zone=a hint=a\nremote1 zone=b hint=b\next7 v4"),
        web(9090, "pod1 zone=a hint=a\nremote1 zone=b hint=b\next7 v4 notready"),
        web(9090, "remote1\nremote2\npod3"),
        String::new(),
        FIRST.to_owned(),
    ];
    let mut cluster = Cluster::serve_nothing(&[ANY_PORT]).await;
    let mut client = Client::global(&cluster.host_and_port()).await;
    let mut replica = Replica::default();
    client.ask_global();
    replica.apply(client.answer().await);
    assert!(replica.values.is_empty());
    for state in &states {
        client.ask_global();
        client.hears_nothing().await;
        cluster.becomes(state);
        replica.apply(client.answer().await);
        assert_eq!(replica.paths(), paths_of(state));

        // Whoever comes now gets the same.
        let mut fresh = Client::global(&cluster.host_and_port()).await;
        fresh.ask_global();
        let mut first = Replica::default();
        first.apply(fresh.answer().await);
        assert_eq!(replica.values, first.values);
    }
    assert_eq!(replica.unchanged, 0, "what has not changed is not sent");
}
