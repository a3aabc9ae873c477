//! The global API: what the cluster says.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use kpng_core::model::{Conditions, Endpoint, EndpointSlice, NamespacedName};
use kpng_core::store::{Batch, Kind, Writer};

use super::connect::Connection;
use super::follow::{Api, Place, Rejected};
use super::replica::Values;
use super::stream::OpStream;
use crate::error::Error;
use crate::proto::globalv1::GlobalWatchReq;
use crate::proto::localv1::{Position, Set};
use crate::wire;

/// The cluster, and the store that it goes to.
pub(super) struct Global {
    writer: Writer,
}

impl Global {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer }
    }
}

/// What is rebuilt as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unit {
    Node(Arc<str>),
    Service(NamespacedName),
    /// All endpoints of a slice, by `SERVICE|SLICE|HASH`.
    Slice(NamespacedName),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::Slice(key) => write!(f, "slice {key}"),
        }
    }
}

impl Api for Global {
    type Unit = Unit;
    type Request = GlobalWatchReq;
    type Batch = Batch;

    fn request(&self, have: Option<Position>) -> GlobalWatchReq {
        GlobalWatchReq { push: true, have: Some(have.unwrap_or_default()), details: true }
    }

    async fn open(
        &self,
        connection: &Connection,
        request: GlobalWatchReq,
    ) -> Result<OpStream<GlobalWatchReq>, Error> {
        connection.global(request).await
    }

    fn place(set: Set, path: &str) -> Place<'_, Unit> {
        if !matches!(set, Set::GlobalServiceInfos | Set::GlobalEndpointInfos | Set::GlobalNodeInfos)
        {
            return Place::Nowhere;
        }
        let parts: Vec<&str> = path.split('|').collect();
        let [first, second, third, fourth] = parts[..] else { return Place::Malformed };
        let filled = [first, second, third, fourth].map(|part| !part.is_empty());
        match (set, filled) {
            (Set::GlobalNodeInfos, [false, true, false, false]) => {
                Place::In(Unit::Node(second.into()), "")
            }
            (Set::GlobalServiceInfos, [true, true, false, false]) => {
                Place::In(Unit::Service(NamespacedName::new(first, second)), "")
            }
            (Set::GlobalEndpointInfos, [true, true, true, true]) => {
                let name = &path[first.len() + 1..];
                Place::In(Unit::Slice(NamespacedName::new(first, third)), name)
            }
            // KPNG sends each endpoint a second time, at a path without its Service.
            (Set::GlobalEndpointInfos, [true, false, true, true]) => Place::Nowhere,
            _ => Place::Malformed,
        }
    }

    fn rebuild(&self, unit: &Unit, values: &Values, batch: &mut Batch) -> Vec<Rejected> {
        let result = match (unit, values) {
            (Unit::Slice(key), _) => return rebuild_slice(key, values, batch),
            (Unit::Service(key), []) => {
                batch.delete_service(key.clone());
                Ok(())
            }
            (Unit::Node(name), []) => {
                batch.delete_node(Arc::clone(name));
                Ok(())
            }
            (Unit::Service(key), [(_, bytes), ..]) => set_service(key, bytes, batch),
            (Unit::Node(name), [(_, bytes), ..]) => set_node(name, bytes, batch),
        };
        let rejected = |reason| Rejected { name: "".into(), reason };
        result.err().map(rejected).into_iter().collect()
    }

    fn apply(&mut self, mut batch: Batch, triggered: Option<SystemTime>, first: bool) {
        if let Some(triggered) = triggered {
            batch.triggered_at(triggered);
        }
        if first {
            Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        }
        self.writer.apply(batch);
    }
}

/// An order of endpoints that depends on nothing but them. It is that of `kpng-file`.
fn sort_key(endpoint: &Endpoint) -> impl Ord + '_ {
    let Endpoint { address, conditions, node, zone, zone_hints, node_hints, hostname, pod } =
        endpoint;
    let Conditions { ready, serving, terminating } = *conditions;
    (address, pod, hostname, node, zone, zone_hints, node_hints, (ready, serving, terminating))
}

/// A Service that makes no sense keeps its last good state.
fn set_service(key: &NamespacedName, bytes: &[u8], batch: &mut Batch) -> Result<(), String> {
    let (inner, service) =
        wire::decode_service_info(bytes).map_err(|invalid| invalid.to_string())?;
    if inner != *key {
        return Err(format!("it says that it is {inner}"));
    }
    batch.set_service(inner, service);
    Ok(())
}

/// A Node that makes no sense keeps its last good state.
fn set_node(name: &str, bytes: &[u8], batch: &mut Batch) -> Result<(), String> {
    let (inner, node) = wire::decode_node_info(bytes).map_err(|invalid| invalid.to_string())?;
    if *inner != *name {
        return Err(format!("it says that it is {inner}"));
    }
    batch.set_node(inner, node);
    Ok(())
}

/// Puts a slice together from its endpoints.
fn rebuild_slice(key: &NamespacedName, values: &Values, batch: &mut Batch) -> Vec<Rejected> {
    let mut slice = EndpointSlice::default();
    let mut owner: Option<Arc<str>> = None;
    let mut rejected = Vec::new();
    for (name, bytes) in values {
        match decode_endpoint(key, name, owner.as_deref(), bytes) {
            Ok(found) => {
                owner.get_or_insert(found.service);
                slice.endpoints.extend(found.endpoints);
                if slice.ports.is_empty() {
                    slice.ports = found.ports;
                }
            }
            Err(reason) => rejected.push(Rejected { name: name.clone(), reason }),
        }
    }
    slice.endpoints.sort_by(|one, other| sort_key(one).cmp(&sort_key(other)));
    match owner {
        Some(owner) => batch.set_slice(key.clone(), owner, slice),
        None => batch.delete_slice(key.clone()),
    }
    rejected
}

fn decode_endpoint(
    key: &NamespacedName,
    name: &str,
    owner: Option<&str>,
    bytes: &[u8],
) -> Result<wire::SliceEndpoint, String> {
    let found = wire::decode_endpoint_info(bytes).map_err(|invalid| invalid.to_string())?;
    let wire::SliceEndpoint { namespace, service, slice, .. } = &found;
    let is_at_its_path = (namespace, slice) == (&key.namespace, &key.name)
        && name.split('|').next() == Some(&**service);
    if !is_at_its_path {
        return Err(format!("it says that it is in slice {namespace}/{slice} of {service}"));
    }
    match owner {
        Some(owner) if owner != &**service => {
            Err(format!("its slice belongs to the service {owner}"))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_services_slices_and_nodes() {
        use Place::{In, Malformed, Nowhere};
        let key = NamespacedName::new;
        for (set, path, expected) in [
            (Set::GlobalServiceInfos, "ns|name||", In(Unit::Service(key("ns", "name")), "")),
            (
                Set::GlobalEndpointInfos,
                "ns|name|slice|5e",
                In(Unit::Slice(key("ns", "slice")), "name|slice|5e"),
            ),
            (Set::GlobalNodeInfos, "|node-1||", In(Unit::Node("node-1".into()), "")),
            (Set::GlobalEndpointInfos, "ns||slice|5e", Nowhere),
            (Set::ServicesSet, "ns/name", Nowhere),
            (Set::UnknownSet, "", Nowhere),
            (Set::GlobalServiceInfos, "ns|name|", Malformed),
            (Set::GlobalServiceInfos, "ns|name|||", Malformed),
            (Set::GlobalServiceInfos, "ns|name|slice|", Malformed),
            (Set::GlobalServiceInfos, "|name||", Malformed),
            (Set::GlobalEndpointInfos, "ns|name|slice|", Malformed),
            (Set::GlobalNodeInfos, "ns|node-1||", Malformed),
            (Set::GlobalNodeInfos, "node-1", Malformed),
        ] {
            assert_eq!(Global::place(set, path), expected, "{set:?} {path:?}");
        }
    }
}
