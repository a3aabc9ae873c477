//! From the API's objects to the model: the border at which everything foreign is judged.
//!
//! What cannot be used is left out and noted; what leaves nothing of use is rejected as a whole, and
//! the store keeps the last good state of that object. One bad object never touches another.

mod names;
mod objects;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use kpng_core::model::NamespacedName;
use kpng_core::store::{Batch, Kind};

use crate::envelope::{self, Encoding, RawObject};
use crate::selectors::Selection;
use crate::stats::RejectReason;
use crate::wire::{self, ObjectMeta};
use crate::{Error, time};
use names::Names;

/// The Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the change that a slice carries happened in the cluster.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Turns API objects into writes. Holds the names that repeat, so that each is in memory once.
#[derive(Debug)]
pub struct Converter {
    selection: Selection,
    names: Names,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// `metadata.resourceVersion` of the list.
    pub resource_version: String,
    /// The token that asks for the next page; `None` on the last.
    pub continue_token: Option<String>,
    /// The keys of all objects on the page, whatever became of them. Nodes have an empty namespace.
    pub keys: Vec<NamespacedName>,
    /// What was wrong with some of the objects.
    pub complaints: Vec<Complaint>,
}

/// Something wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Complaint {
    /// The object, if at least that could be read.
    pub key: Option<NamespacedName>,
    /// `metadata.resourceVersion` of the object.
    pub resource_version: String,
    /// Why the object was rejected; `None` when only parts were left out.
    pub rejected: Option<RejectReason>,
    /// What is wrong, one sentence each.
    pub details: Vec<String>,
}

/// What became of an object.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) key: Option<NamespacedName>,
    pub(crate) resource_version: String,
    /// When the cluster made this change.
    pub(crate) triggered: Option<SystemTime>,
    pub(crate) complaint: Option<Complaint>,
}

/// Why an object is rejected, and the sentence about it.
type Rejection = (RejectReason, String);

/// What was left out of an object, one sentence each.
type Notes = Vec<String>;

impl Converter {
    /// A converter that keeps the labels and annotations of `selection`.
    pub fn new(selection: Selection) -> Self {
        Self { selection, names: Names::default() }
    }

    /// Puts all objects of one page of a list into `batch`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when `body` is no list. Bad objects in a good list are complaints.
    pub fn page(
        &mut self,
        kind: Kind,
        encoding: Encoding,
        body: &Bytes,
        batch: &mut Batch,
    ) -> Result<Page, Error> {
        let list = envelope::list(encoding, body)?;
        let token = list.metadata.continue_token;
        let mut page = Page {
            resource_version: list.metadata.resource_version,
            continue_token: (!token.is_empty()).then_some(token),
            keys: Vec::with_capacity(list.items.len()),
            complaints: Vec::new(),
        };
        for bytes in list.items {
            let outcome = self.put(kind, &RawObject { encoding, bytes }, batch);
            page.keys.extend(outcome.key);
            page.complaints.extend(outcome.complaint);
        }
        Ok(page)
    }

    /// Puts an object as it is now into `batch`: creates, replaces, or deletes it when it is none
    /// that a proxy has to do with.
    pub(crate) fn put(&mut self, kind: Kind, object: &RawObject, batch: &mut Batch) -> Outcome {
        match kind {
            Kind::Services => self.put_service(object, batch),
            Kind::EndpointSlices => self.put_slice(object, batch),
            Kind::Nodes => self.put_node(object, batch),
        }
    }

    /// Deletes an object, of which the last state is given.
    pub(crate) fn delete(&mut self, kind: Kind, object: &RawObject, batch: &mut Batch) -> Outcome {
        let Some(metadata) = object.metadata() else {
            return self.undecodable(kind, object, "its metadata cannot be read".to_owned());
        };
        let outcome = self.outcome(kind, metadata, Ok(Notes::new()));
        if let Some(key) = outcome.key.clone() {
            delete(kind, key, batch);
        }
        outcome
    }

    fn put_service(&mut self, object: &RawObject, batch: &mut Batch) -> Outcome {
        let mut service: wire::Service = match object.decode() {
            Ok(service) => service,
            Err(error) => return self.undecodable(Kind::Services, object, error),
        };
        let metadata = service.metadata.take().unwrap_or_default();
        let mut notes = Notes::new();
        let converted = self.service(&metadata, service, &mut notes);
        self.finish(Kind::Services, metadata, converted, notes, batch, |key, service, batch| {
            batch.set_service(key, service);
        })
    }

    fn put_slice(&mut self, object: &RawObject, batch: &mut Batch) -> Outcome {
        let mut slice: wire::EndpointSlice = match object.decode() {
            Ok(slice) => slice,
            Err(error) => return self.undecodable(Kind::EndpointSlices, object, error),
        };
        let metadata = slice.metadata.take().unwrap_or_default();
        let mut notes = Notes::new();
        let owner = metadata.labels.get(SERVICE_NAME).filter(|name| !name.is_empty());
        let converted = match owner {
            Some(owner) => {
                let owner = self.names.intern(owner);
                self.slice(slice, &mut notes).map(|slice| Some((owner, slice?)))
            }
            None => Ok(None),
        };
        let kind = Kind::EndpointSlices;
        self.finish(kind, metadata, converted, notes, batch, |key, (owner, slice), batch| {
            batch.set_slice(key, owner, slice);
        })
    }

    fn put_node(&mut self, object: &RawObject, batch: &mut Batch) -> Outcome {
        let mut node: wire::Node = match object.decode() {
            Ok(node) => node,
            Err(error) => return self.undecodable(Kind::Nodes, object, error),
        };
        let metadata = node.metadata.take().unwrap_or_default();
        let mut notes = Notes::new();
        let converted = self.node(&metadata, node, &mut notes);
        self.finish(Kind::Nodes, metadata, Ok(Some(converted)), notes, batch, |key, node, batch| {
            batch.set_node(key.name, node);
        })
    }

    /// Writes what conversion gave: an object, nothing that concerns us, or a rejection.
    fn finish<T>(
        &mut self,
        kind: Kind,
        metadata: ObjectMeta,
        converted: Result<Option<T>, Rejection>,
        notes: Notes,
        batch: &mut Batch,
        set: impl FnOnce(NamespacedName, T, &mut Batch),
    ) -> Outcome {
        let (value, verdict) = match converted {
            Ok(value) => (Some(value), Ok(notes)),
            Err(rejection) => (None, Err(rejection)),
        };
        let outcome = self.outcome(kind, metadata, verdict);
        match (outcome.key.clone(), value) {
            (Some(key), Some(Some(value))) => set(key, value, batch),
            (Some(key), Some(None)) => delete(kind, key, batch),
            // A rejected object keeps its last good state.
            (_, None) | (None, _) => {}
        }
        outcome
    }

    fn undecodable(&mut self, kind: Kind, object: &RawObject, error: String) -> Outcome {
        // Often it is only one field that is bad, and the metadata tells whose.
        let metadata = object.metadata().unwrap_or_default();
        self.outcome(kind, metadata, Err((RejectReason::Undecodable, error)))
    }

    fn outcome(
        &mut self,
        kind: Kind,
        metadata: ObjectMeta,
        verdict: Result<Notes, Rejection>,
    ) -> Outcome {
        let key = self.key(kind, &metadata);
        let (rejected, details) = match (verdict, &key) {
            (Err((reason, sentence)), _) => (Some(reason), vec![sentence]),
            (Ok(_), None) => (Some(RejectReason::Unnamed), vec!["it has no name".to_owned()]),
            (Ok(notes), Some(_)) => (None, notes),
        };
        let resource_version = metadata.resource_version;
        let complaint = (rejected.is_some() || !details.is_empty()).then(|| Complaint {
            key: key.clone(),
            resource_version: resource_version.clone(),
            rejected,
            details,
        });
        let triggered = metadata.annotations.get(LAST_CHANGE);
        let triggered = triggered.and_then(|text| time::parse_system_time(text));
        Outcome { key, resource_version, triggered, complaint }
    }

    fn key(&mut self, kind: Kind, metadata: &ObjectMeta) -> Option<NamespacedName> {
        let namespaced = kind != Kind::Nodes;
        if metadata.name.is_empty() || (namespaced && metadata.namespace.is_empty()) {
            return None;
        }
        let namespace = if namespaced { metadata.namespace.as_str() } else { "" };
        let namespace = self.names.intern(namespace);
        let name = match kind {
            // Slices and endpoints refer to Services and Nodes; nothing refers to slices.
            Kind::Services | Kind::Nodes => self.names.intern(&metadata.name),
            Kind::EndpointSlices => Arc::from(metadata.name.as_str()),
        };
        Some(NamespacedName { namespace, name })
    }
}

fn delete(kind: Kind, key: NamespacedName, batch: &mut Batch) {
    match kind {
        Kind::Services => batch.delete_service(key),
        Kind::EndpointSlices => batch.delete_slice(key),
        Kind::Nodes => batch.delete_node(key.name),
    }
}

#[cfg(test)]
mod tests;
