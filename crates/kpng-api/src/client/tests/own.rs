//! Our own server, and a relay between it and the client.

use std::path::Path;
use std::sync::Arc;

use kpng_core::local::{LocalService, Place, localize};
use kpng_core::model::{NamespacedName, Service, TargetPort};
use kpng_core::store::{Batch, Kind, Store, Writer};
use kpng_testkit::fixture::{NODE, fixture};
use tokio::task::JoinSet;

use super::script::*;
use crate::address::{ListenAddress, Target};
use crate::server;

/// Serves both APIs from `store` on a socket.
async fn serve(store: Store, path: &Path) -> JoinSet<()> {
    let config = server::Config {
        listen: vec![ListenAddress::Unix(path.to_owned())],
        tls: None,
        local_api: true,
        global_api: true,
        authorization: None,
        default_node: None,
        max_connections: 10,
    };
    let server = server::Server::bind(config, Arc::default()).await.unwrap();
    let mut work = JoinSet::new();
    work.spawn(server.run(store, std::future::pending()));
    work
}

/// A cluster that can be changed.
fn cluster(text: &str) -> (Writer, Store) {
    let state = fixture(text).store.reader().try_next().unwrap();
    let mut batch = Batch::new();
    for (name, change) in state.nodes {
        batch.set_node(name, (*change.new.unwrap()).clone());
    }
    for (key, change) in state.services {
        let service = change.new.unwrap();
        for (name, slice) in &service.slices {
            let slice_key = NamespacedName::new(Arc::clone(&key.namespace), Arc::clone(name));
            batch.set_slice(slice_key, Arc::clone(&key.name), (**slice).clone());
        }
        if let Some(service) = &service.service {
            let mut service = (**service).clone();
            // The API server says which one it is, and so does KPNG's schema.
            for port in &mut service.ports {
                if port.target_port == TargetPort::Unset {
                    port.target_port = TargetPort::Number(port.port);
                }
            }
            batch.set_service(key, service);
        }
    }
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    let (mut writer, store) = Store::new();
    writer.apply(batch);
    (writer, store)
}

/// Whether `local` is what `cluster` means on the node.
fn agree(cluster: &Store, local: &Store<LocalService>) -> bool {
    let state = cluster.reader().try_next().unwrap();
    let place = Place::of(&NODE.into(), cluster.node(NODE).as_deref());
    let meant = state.services.iter().filter_map(|(key, change)| {
        localize(key, change.new.as_ref()?, &place).map(|local| (key.clone(), local))
    });
    let Some(known) = local.reader().try_next() else { return false };
    let known =
        known.services.into_iter().map(|(key, change)| (key, (*change.new.unwrap()).clone()));
    meant.eq(known) && cluster.node(NODE) == local.node(NODE)
}

const CLUSTER: &str = "
    node zone=a
    service default/web cluster=cluster.41 lb=lb.1 port=http:80:3001 etp=Local ranges=client-net
    slice default/web http=8080
      pod1 zone=a hint=a
      pod2 zone=a hint=a terminating
      remote1 zone=b hint=b
    service default/dns cluster=cluster.42 port=dns:53/UDP
    slice default/dns dns=5353/UDP
      remote1
      remote2
    service default/empty cluster=cluster.43 port=http:80
";

#[tokio::test]
async fn a_cluster_arrives_through_a_relay_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.sock"), folder.path().join("second.sock"));
    let (mut writer, store) = cluster(CLUSTER);
    let _first = serve(store.clone(), &first).await;
    let relay = follow_global(&[&Target::Unix(first)]);
    let _second = serve(relay.store.clone(), &second).await;
    let following = follow(&[&Target::Unix(second.clone())]);
    until("agreement", || agree(&store, &following.store)).await;
    assert_eq!(following.store.len(), (3, 1));

    let mut batch = Batch::new();
    batch.delete_service(NamespacedName::new("default", "dns"));
    let address = "10.9.9.9".parse().unwrap();
    let service = Service { cluster_ips: vec![address], ..Service::default() };
    batch.set_service(NamespacedName::new("default", "empty"), service);
    batch.delete_node(NODE);
    writer.apply(batch);
    until("agreement", || agree(&store, &following.store)).await;
    assert_eq!(following.store.len(), (2, 0));
    assert_eq!(following.stats.rejected.get() + relay.stats.rejected.get(), 0);
}

#[tokio::test]
async fn another_server_with_the_same_state_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpng.sock");
    let (_writer, store) = cluster(CLUSTER);
    let server = serve(store.clone(), &path).await;
    let following = follow(&[&Target::Unix(path.clone())]);
    following.synced(1).await;
    let revision = following.store.revision();
    drop(server);

    let (_writer, store) = cluster(CLUSTER);
    let _server = serve(store.clone(), &path).await;
    following.synced(2).await;
    assert_eq!(following.store.revision(), revision);
    assert!(agree(&store, &following.store));
}
