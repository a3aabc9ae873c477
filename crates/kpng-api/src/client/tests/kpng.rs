//! KPNG's own servers, as they behave: one answer for each request, no positions, and their quirks.

use expect_test::expect;

use super::script::*;
use crate::proto::localv1::{Position, Set, WatchReq};
use crate::proto::{globalv1, localv1};

/// Services, pods, then endpoints that are no pods.
fn give_first_state(stream: &ServerStream<WatchReq>) {
    stream.set(Set::ServicesSet, "default/api", &service("default/api", "10.0.0.1"));
    stream.set(Set::ServicesSet, "default/web", &service("default/web", "10.0.0.2"));
    stream.set(Set::EndpointsSet, "default/web/pod-1", &endpoint(&["10.1.0.1"]));
    stream.set(Set::EndpointsSet, "default/web/pod-2", &endpoint(&["10.1.0.2"]));
    stream.set(Set::EndpointsSet, "default/api/ab12", &endpoint(&["192.0.2.1"]));
    stream.sync();
}

#[tokio::test]
async fn a_server_of_kpng_is_followed() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let mut stream = server.stream().await;
    let asked = WatchReq {
        node_name: "node-a".into(),
        push: true,
        have: Some(Position::default()),
        details: true,
    };
    assert_eq!(stream.request().await, asked);

    // Reset comes at once, before the server knows anything, and changes nothing.
    stream.reset();
    assert!(!stream.is_asked().await);
    assert_eq!(following.state(), "not synced");
    assert!(following.stats.is_connected());

    give_first_state(&stream);
    following.synced(1).await;
    expect![[r"
        default/api 10.0.0.1: 192.0.2.1:8080
        default/web 10.0.0.2: 10.1.0.1:8080 10.1.0.2:8080
    "]]
    .assert_eq(&following.state());

    // It is an old one, which the client's connection does not suit; so everything comes again.
    let revision = following.store.revision();
    let mut stream = server.stream().await;
    assert_eq!(stream.request().await, asked);
    stream.reset();
    give_first_state(&stream);
    following.synced(2).await;
    assert_eq!(following.store.revision(), revision);

    // The next answer must be asked for, once.
    assert_eq!(stream.request().await, asked);
    assert!(!stream.is_asked().await);

    // An endpoint without a name has another one when it changes; a pod is gone.
    stream.delete(Set::EndpointsSet, "default/api/ab12");
    stream.delete(Set::EndpointsSet, "default/web/pod-2");
    let here = localv1::Endpoint { local: true, ..endpoint(&["192.0.2.1"]) };
    stream.set(Set::EndpointsSet, "default/api/cd34", &here);
    stream.sync();
    following.synced(3).await;
    expect![[r"
        default/api 10.0.0.1: 192.0.2.1:8080(local)
        default/web 10.0.0.2: 10.1.0.1:8080
    "]]
    .assert_eq(&following.state());

    // The two families of a pod are sent as one and the other, again and again: the last one wins,
    // and no revision comes of it when that is the one from before.
    stream.request().await;
    let revision = following.store.revision();
    stream.set(Set::EndpointsSet, "default/web/pod-1", &endpoint(&["fd00::1"]));
    stream.set(Set::EndpointsSet, "default/web/pod-1", &endpoint(&["10.1.0.1"]));
    stream.sync();
    following.synced(4).await;
    assert_eq!(following.store.revision(), revision);

    // Endpoints go before their Service.
    stream.request().await;
    stream.delete(Set::EndpointsSet, "default/api/cd34");
    stream.delete(Set::ServicesSet, "default/api");
    stream.sync();
    following.synced(5).await;
    assert_eq!(following.state(), "default/web 10.0.0.2: 10.1.0.1:8080\n");
}

#[tokio::test]
async fn after_a_server_of_kpng_one_starts_from_nothing() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let mut stream = server.second_stream().await;
    stream.request().await;
    stream.reset();
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.1"]);
    stream.sync();
    following.synced(2).await;
    drop(stream);

    let mut stream = server.stream().await;
    assert_eq!(stream.request().await.have, Some(Position::default()));
    stream.reset();
    stream.set_service("default/other", "10.0.0.2", &[]);
    stream.sync();
    following.synced(3).await;
    assert_eq!(following.state(), "default/other 10.0.0.2:\n");
}

#[tokio::test]
async fn the_global_sets_of_kpng_are_followed() {
    let mut server = Server::start_global().await;
    let following = follow_global(&[&server.target]);
    // The client notices that this is an old server, and comes again.
    let stream = server.stream().await;
    stream.reset();
    stream.sync();
    let mut stream = server.stream().await;
    let request = stream.request().await;
    assert!(request.push && request.details && request.have.is_some());

    let endpoint = |address: &str, node: &str| globalv1::EndpointInfo {
        namespace: "default".into(),
        source_name: "web-x1".into(),
        service_name: "web".into(),
        endpoint: Some(endpoint(&[address])),
        conditions: Some(globalv1::EndpointConditions { ready: true, ..Default::default() }),
        topology: Some(globalv1::TopologyInfo { node: node.into(), zone: "z".into() }),
        ..Default::default()
    };
    let node = globalv1::NodeInfo {
        hash: 1,
        node: Some(globalv1::Node { name: "node-a".into(), ..Default::default() }),
    };
    let web = service("default/web", "10.0.0.1");
    stream.reset();
    stream.set(Set::GlobalNodeInfos, "|node-a||", &node);
    let info = globalv1::ServiceInfo { hash: 2, service: Some(web) };
    stream.set(Set::GlobalServiceInfos, "default|web||", &info);
    // Each endpoint comes twice.
    for (hash, address, node) in [("b1", "10.1.0.2", "node-b"), ("c2", "10.1.0.1", "node-a")] {
        for path in [format!("default||web-x1|{hash}"), format!("default|web|web-x1|{hash}")] {
            stream.set(Set::GlobalEndpointInfos, &path, &endpoint(address, node));
        }
    }
    stream.sync();
    following.synced(2).await;

    assert!(following.store.node("node-a").is_some());
    let state = || {
        let key = kpng_core::model::NamespacedName::new("default", "web");
        let Some(state) = following.store.service(&key) else { return "gone".to_owned() };
        let mut text = format!("service: {}\n", state.service.is_some());
        for (name, slice) in &state.slices {
            text += &format!("{name} ports={}", slice.ports.len());
            for endpoint in &slice.endpoints {
                let node = endpoint.node.as_deref().unwrap();
                text += &format!(" {}@{node}", endpoint.address);
            }
        }
        text
    };
    // A port whose protocol KPNG does not tell has it in all three.
    expect![[r"
        service: true
        web-x1 ports=3 10.1.0.1@node-a 10.1.0.2@node-b"]]
    .assert_eq(&state());

    stream.request().await;
    stream.delete(Set::GlobalEndpointInfos, "default|web|web-x1|b1");
    stream.delete(Set::GlobalEndpointInfos, "default||web-x1|b1");
    stream.sync();
    following.synced(3).await;
    expect![[r"
        service: true
        web-x1 ports=3 10.1.0.1@node-a"]]
    .assert_eq(&state());

    stream.request().await;
    stream.delete(Set::GlobalEndpointInfos, "default|web|web-x1|c2");
    stream.delete(Set::GlobalServiceInfos, "default|web||");
    stream.delete(Set::GlobalNodeInfos, "|node-a||");
    stream.sync();
    following.synced(4).await;
    assert_eq!(state(), "gone");
    assert!(following.store.is_empty());
}
