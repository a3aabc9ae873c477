//! Servers that push and give positions, and connections that come and go.

use super::script::*;
use crate::proto::localv1::{Node, Set};

#[tokio::test]
async fn what_is_pushed_needs_no_request() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let mut stream = server.stream().await;
    stream.request().await;
    stream.reset();
    stream.set(Set::LocalNodesSet, "node-a", &Node { name: "node-a".into(), ..Node::default() });
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.1"]);
    stream.sync_at(1);
    following.synced(1).await;
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.2"]);
    stream.delete(Set::LocalNodesSet, "node-a");
    stream.delete(Set::ServicesSet, "default/never-there");
    stream.sync_at(2);
    following.synced(2).await;
    assert_eq!(following.state(), "default/web 10.0.0.1: 10.1.0.1:8080 10.1.0.2:8080\n");
    assert!(!stream.is_asked().await);
    assert_eq!(following.stats.operations.get(), 7);
}

#[tokio::test]
async fn an_empty_state_is_a_state() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let stream = server.stream().await;
    stream.reset();
    stream.sync_at(1);
    following.synced(1).await;
    assert_eq!(following.state(), "");
}

#[tokio::test]
async fn a_server_that_remembers_sends_the_difference_only() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let mut stream = server.stream().await;
    stream.request().await;
    stream.reset();
    stream.set_service("default/api", "10.0.0.1", &["10.1.0.1"]);
    stream.set_service("default/web", "10.0.0.2", &[]);
    stream.sync_at(7);
    following.synced(1).await;
    drop(stream);

    let mut stream = server.stream().await;
    assert_eq!(stream.request().await.have, Some(position(7)));
    stream.delete(Set::ServicesSet, "default/web");
    stream.sync_at(8);
    following.synced(2).await;
    assert_eq!(following.state(), "default/api 10.0.0.1: 10.1.0.1:8080\n");
}

#[tokio::test]
async fn a_reset_changes_what_differs_only() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let stream = server.stream().await;
    stream.reset();
    stream.set_service("default/api", "10.0.0.1", &["10.1.0.1"]);
    stream.set_service("default/web", "10.0.0.2", &["10.1.0.2", "10.1.0.3"]);
    stream.sync_at(1);
    following.synced(1).await;
    let revision = following.store.revision();
    let mut reader = following.store.reader_at(revision);

    stream.reset();
    stream.set_service("default/api", "10.0.0.1", &["10.1.0.1"]);
    stream.set_service("default/web", "10.0.0.2", &["10.1.0.2", "10.1.0.3"]);
    stream.sync_at(1);
    following.synced(2).await;
    assert_eq!(following.store.revision(), revision, "the same state makes no revision");

    stream.reset();
    stream.set_service("default/web", "10.0.0.2", &["10.1.0.3"]);
    stream.sync_at(2);
    following.synced(3).await;
    assert_eq!(following.state(), "default/web 10.0.0.2: 10.1.0.3:8080\n");
    assert_eq!(following.store.revision(), revision + 1);
    assert_eq!(reader.try_next().unwrap().services.len(), 2);
}

#[tokio::test]
async fn a_stream_that_breaks_before_sync_leaves_no_trace() {
    let mut server = Server::start().await;
    let following = follow(&[&server.target]);
    let stream = server.stream().await;
    stream.reset();
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.1"]);
    stream.sync_at(1);
    following.synced(1).await;

    stream.set_service("default/lost", "10.0.0.9", &[]);
    stream.reset();
    until("operations", || following.stats.operations.get() == 3).await;
    drop(stream);

    let mut stream = server.stream().await;
    assert_eq!(stream.request().await.have, Some(position(1)));
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.2"]);
    stream.sync_at(2);
    following.synced(2).await;
    assert_eq!(following.state(), "default/web 10.0.0.1: 10.1.0.1:8080 10.1.0.2:8080\n");
}

/// A server ends and another one begins at the same place. The state stays.
async fn check_restart(mut server: Server, restart: impl AsyncFnOnce() -> Server) {
    let following = follow(&[&server.target]);
    let stream = server.stream().await;
    stream.reset();
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.1"]);
    stream.sync_at(1);
    following.synced(1).await;
    let state = following.state();

    drop((stream, server));
    until("the loss", || following.stats.failures.get() > 1).await;
    assert!(!following.stats.is_connected());
    assert_eq!(following.state(), state);

    let mut server = restart().await;
    let stream = server.stream().await;
    stream.reset();
    stream.set_service("default/web", "10.0.0.1", &["10.1.0.1"]);
    stream.sync_at(99);
    following.synced(2).await;
    assert!(following.stats.is_connected());
    assert_eq!(following.state(), state);
    assert_eq!(following.stats.connects.get(), 2);
}

#[tokio::test]
async fn a_server_on_a_port_comes_back() {
    let server = Server::start().await;
    let address = server.target.to_string();
    check_restart(server, async move || Server::start_at(&address, None).await).await;
}

#[tokio::test]
async fn a_server_on_a_socket_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpng.sock");
    let server = Server::start_unix(path.clone());
    check_restart(server, async move || Server::start_unix(path)).await;
}
