//! The local API: what Services mean on one node.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use kpng_core::local::LocalService;
use kpng_core::model::NamespacedName;
use kpng_core::store::{LocalBatch, LocalWriter};

use super::connect::Connection;
use super::follow::{Api, Place, Rejected};
use super::replica::Values;
use super::stream::OpStream;
use crate::error::Error;
use crate::proto::localv1::{Position, Set, WatchReq};
use crate::wire;

/// The view of one node, and the store that it goes to.
pub(super) struct Local {
    node: Arc<str>,
    writer: LocalWriter,
}

impl Local {
    pub(super) fn new(node: Arc<str>, writer: LocalWriter) -> Self {
        Self { node, writer }
    }
}

/// What is rebuilt as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    Node(Arc<str>),
    /// The Service by the empty name, and its endpoints.
    Service(NamespacedName),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Service(key) => write!(f, "service {key}"),
        }
    }
}

impl Api for Local {
    type Unit = Unit;
    type Request = WatchReq;
    type Batch = LocalBatch;

    fn request(&self, have: Option<Position>) -> WatchReq {
        WatchReq {
            node_name: self.node.to_string(),
            push: true,
            have: Some(have.unwrap_or_default()),
            details: true,
        }
    }

    async fn open(&self, connection: &Connection, request: WatchReq) -> Result<OpStream, Error> {
        connection.local(request).await
    }

    fn place(set: Set, path: &str) -> Place<'_, Unit> {
        let place = match set {
            Set::ServicesSet => service_key(path).map(|key| (Unit::Service(key), "")),
            Set::EndpointsSet => path.rsplit_once('/').and_then(|(service, endpoint)| {
                let key = service_key(service).filter(|_| !endpoint.is_empty())?;
                Some((Unit::Service(key), endpoint))
            }),
            Set::LocalNodesSet => (!path.is_empty()).then(|| (Unit::Node(path.into()), "")),
            _ => return Place::Nowhere,
        };
        place.map_or(Place::Malformed, |(unit, name)| Place::In(unit, name))
    }

    fn rebuild(&self, unit: &Unit, values: &Values, batch: &mut LocalBatch) -> Vec<Rejected> {
        match unit {
            Unit::Service(key) => self.rebuild_service(key, values, batch),
            Unit::Node(name) => match values {
                [] => {
                    batch.delete_node(Arc::clone(name));
                    Vec::new()
                }
                [(_, bytes), ..] => match decode_node(name, bytes) {
                    Ok(node) => {
                        batch.set_node(Arc::clone(name), node);
                        Vec::new()
                    }
                    Err(reason) => vec![Rejected { name: "".into(), reason }],
                },
            },
        }
    }

    fn apply(&mut self, mut batch: LocalBatch, triggered: Option<SystemTime>, first: bool) {
        if let Some(triggered) = triggered {
            batch.triggered_at(triggered);
        }
        if first {
            batch.mark_synced();
        }
        self.writer.apply(batch);
    }
}

impl Local {
    /// A Service that makes no sense keeps its last good state, with the endpoints of now.
    fn rebuild_service(
        &self,
        key: &NamespacedName,
        values: &Values,
        batch: &mut LocalBatch,
    ) -> Vec<Rejected> {
        let [(first, bytes), endpoint_values @ ..] = values else {
            batch.delete_service(key.clone());
            return Vec::new();
        };
        if !first.is_empty() {
            // Endpoints without a Service.
            batch.delete_service(key.clone());
            return Vec::new();
        }
        let mut rejected = Vec::new();
        let service = match decode_service(key, bytes) {
            Ok(service) => Arc::new(service),
            Err(reason) => {
                rejected.push(Rejected { name: "".into(), reason });
                match self.writer.store().service(key) {
                    Some(last) => Arc::clone(&last.service),
                    None => return rejected,
                }
            }
        };
        let mut endpoints = Vec::new();
        for (name, bytes) in endpoint_values {
            match wire::decode_local_endpoints(bytes, &service) {
                Ok(decoded) => endpoints.extend(decoded),
                Err(invalid) => {
                    rejected.push(Rejected { name: name.clone(), reason: invalid.to_string() });
                }
            }
        }
        batch.set_service(LocalService::new(key.clone(), service, endpoints));
        rejected
    }
}

/// The key in `namespace/name`.
fn service_key(path: &str) -> Option<NamespacedName> {
    let (namespace, name) = path.split_once('/')?;
    let is_key = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
    is_key.then(|| NamespacedName::new(namespace, name))
}

fn decode_service(key: &NamespacedName, bytes: &[u8]) -> Result<kpng_core::model::Service, String> {
    let (inner, service) = wire::decode_service(bytes).map_err(|invalid| invalid.to_string())?;
    if inner == *key { Ok(service) } else { Err(format!("it says that it is {inner}")) }
}

fn decode_node(name: &str, bytes: &[u8]) -> Result<kpng_core::model::Node, String> {
    let (inner, node) = wire::decode_local_node(bytes).map_err(|invalid| invalid.to_string())?;
    if *inner == *name { Ok(node) } else { Err(format!("it says that it is {inner}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str) -> Unit {
        Unit::Service(NamespacedName::new(namespace, name))
    }

    #[test]
    fn paths_lead_to_services_and_nodes() {
        use Place::{In, Malformed, Nowhere};
        for (set, path, expected) in [
            (Set::ServicesSet, "ns/name", In(service("ns", "name"), "")),
            (Set::EndpointsSet, "ns/name/pod-1", In(service("ns", "name"), "pod-1")),
            (Set::LocalNodesSet, "node-1", In(Unit::Node("node-1".into()), "")),
            (Set::ServicesSet, "", Malformed),
            (Set::ServicesSet, "name", Malformed),
            (Set::ServicesSet, "ns/", Malformed),
            (Set::ServicesSet, "/name", Malformed),
            (Set::ServicesSet, "ns/name/more", Malformed),
            (Set::EndpointsSet, "ns/name", Malformed),
            (Set::EndpointsSet, "ns/name/", Malformed),
            (Set::EndpointsSet, "ns/name/pod/1", Malformed),
            (Set::LocalNodesSet, "", Malformed),
            (Set::GlobalServiceInfos, "ns|name||", Nowhere),
            (Set::UnknownSet, "anything", Nowhere),
        ] {
            assert_eq!(Local::place(set, path), expected, "{set:?} {path:?}");
        }
    }
}
