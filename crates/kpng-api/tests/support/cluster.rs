//! A cluster that a test writes down, served by our server.

use std::sync::Arc;

use kpng_api::address::ListenAddress;
use kpng_api::server::{Config, Server};
use kpng_core::model::{EndpointSlice, NamespacedName, Node, Service};
use kpng_core::store::{Batch, Kind, Store, Writer};
use kpng_testkit::fixture::fixture;

/// A server, and what it serves.
pub(crate) struct Cluster {
    writer: Writer,
    addresses: Vec<ListenAddress>,
}

impl Cluster {
    /// Serves a cluster without Nodes and Services.
    pub(crate) async fn serve_nothing(listen: &[&str]) -> Self {
        let config = Config {
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            tls: None,
            local_api: true,
            global_api: true,
            authorization: None,
            default_node: None,
            max_connections: 100,
        };
        let server = Server::bind(config, Arc::default()).await.unwrap();
        let addresses = server.addresses().to_vec();
        let (mut writer, store) = Store::new();
        let mut batch = Batch::new();
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        tokio::spawn(server.run(store, std::future::pending()));
        Self { writer, addresses }
    }

    /// Serves a cluster in the language of [`fixture`], where an endpoint `extN` is no Pod.
    pub(crate) async fn serve(listen: &[&str], text: &str) -> Self {
        let mut cluster = Self::serve_nothing(listen).await;
        cluster.becomes(text);
        cluster
    }

    /// The cluster is another one, in one step.
    pub(crate) fn becomes(&mut self, text: &str) {
        let objects = Objects::of(text);
        let mut batch = Batch::new();
        batch.retain_services(objects.services.iter().map(|(key, _)| key.clone()).collect());
        batch.retain_slices(objects.slices.iter().map(|(key, ..)| key.clone()).collect());
        batch.retain_nodes(objects.nodes.iter().map(|(name, _)| Arc::clone(name)).collect());
        for (key, service) in objects.services {
            batch.set_service(key, service);
        }
        for (key, owner, slice) in objects.slices {
            batch.set_slice(key, owner, slice);
        }
        for (name, node) in objects.nodes {
            batch.set_node(name, node);
        }
        self.writer.apply(batch);
    }

    /// The server's first address as `HOST:PORT`.
    pub(crate) fn host_and_port(&self) -> String {
        self.addresses[0].to_string().trim_start_matches("tcp://").to_owned()
    }
}

/// What the API server would have.
pub(crate) struct Objects {
    pub(crate) nodes: Vec<(Arc<str>, Node)>,
    pub(crate) services: Vec<(NamespacedName, Service)>,
    /// With the names of their Services.
    pub(crate) slices: Vec<(NamespacedName, Arc<str>, EndpointSlice)>,
}

impl Objects {
    /// Reads a cluster.
    pub(crate) fn of(text: &str) -> Self {
        let state = fixture(text).store.reader().try_next().expect("fixtures are complete");
        let nodes = state.nodes.into_iter().filter_map(|(name, change)| {
            let node = change.new?;
            Some((name, Node::clone(&node)))
        });
        let mut objects = Self { nodes: nodes.collect(), services: vec![], slices: vec![] };
        for (key, change) in state.services {
            let Some(state) = change.new else { continue };
            for (name, slice) in &state.slices {
                let slice_key = NamespacedName::new(Arc::clone(&key.namespace), Arc::clone(name));
                let mut slice = EndpointSlice::clone(slice);
                for endpoint in &mut slice.endpoints {
                    if endpoint.pod.as_ref().is_some_and(|pod| pod.starts_with("ext")) {
                        (endpoint.pod, endpoint.node) = (None, None);
                    }
                }
                objects.slices.push((slice_key, Arc::clone(&key.name), slice));
            }
            if let Some(service) = &state.service {
                objects.services.push((key, Service::clone(service)));
            }
        }
        objects
    }
}
