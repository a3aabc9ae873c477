//! From a text to a [`State`].
//!
//! Each document of the text is in one of two formats; all of them together are one state. A text is
//! taken as a whole or not at all.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use kpng_core::explain::Here;
use kpng_core::model::{EndpointSlice, NamespacedName, Node, Service, ServiceState};

use crate::error::Problem;
use crate::state::State;
use crate::yaml::{self, Read};
use crate::{kpng_format, kubernetes};

/// How to read a text.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--service-proxy-name`: of Kubernetes manifests, only Services (and slices) with this value
    /// of the label `service.kubernetes.io/service-proxy-name` count. Without it only those without
    /// the label do. KPNG's format has no such Services.
    pub service_proxy_name: Option<String>,
}

/// Reads a text of one or more YAML (or JSON) documents: KPNG's state files and Kubernetes
/// manifests, also mixed.
///
/// # Errors
/// The first [`Problem`]. A text without any document is one: it is rather a file that is just
/// being written than an empty cluster, which is written `services: []`.
pub fn parse(text: &str, options: &Options) -> Result<State, Problem> {
    let documents = yaml::documents(text)?;
    if documents.is_empty() {
        let reason = "there is nothing in it: an empty cluster is written \"services: []\"";
        return Err(Problem {
            line: 1,
            column: 1,
            field: String::new(),
            reason: reason.to_owned(),
        });
    }
    let mut state = Builder::default();
    for document in &documents {
        read_document(document, options, &mut state).map_err(|fault| fault.locate(document))?;
    }
    Ok(state.finish())
}

fn read_document<'a>(
    document: &'a yaml::Node,
    options: &Options,
    state: &mut Builder,
) -> Read<'a, ()> {
    let fields = document.object().map_err(|_| {
        document.fault(
            "this is neither a KPNG state (a mapping with \"services\" and \"nodes\") nor a \
             Kubernetes object (a mapping with \"apiVersion\" and \"kind\")",
        )
    })?;
    if fields.get("apiVersion").is_some() || fields.get("kind").is_some() {
        kubernetes::read(document, options, state)
    } else {
        kpng_format::read(document, state)
    }
}

/// A state in the making. Nothing can be put into it twice.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    services: BTreeMap<NamespacedName, Defined<Arc<Service>>>,
    slices: BTreeMap<NamespacedName, Defined<OwnedSlice>>,
    nodes: BTreeMap<Arc<str>, Defined<Arc<Node>>>,
    /// Objects of kind Endpoints, which count for Services without slices: the slices that they
    /// would be mirrored to.
    endpoints: BTreeMap<NamespacedName, Defined<NamedSlices>>,
    here: Option<Defined<Here>>,
}

/// A slice and the name of its Service.
type OwnedSlice = (Arc<str>, Arc<EndpointSlice>);

/// Slices of one Service and their names.
pub(crate) type NamedSlices = Vec<(Arc<str>, Arc<EndpointSlice>)>;

/// A value and the line of its definition.
#[derive(Debug)]
struct Defined<T> {
    line: u32,
    value: T,
}

impl Builder {
    pub(crate) fn add_service<'a>(
        &mut self,
        at: &'a yaml::Node,
        key: NamespacedName,
        service: Service,
    ) -> Read<'a, ()> {
        add(&mut self.services, at, "Service", key, Arc::new(service))
    }

    pub(crate) fn add_slice<'a>(
        &mut self,
        at: &'a yaml::Node,
        key: NamespacedName,
        service: impl Into<Arc<str>>,
        slice: EndpointSlice,
    ) -> Read<'a, ()> {
        add(&mut self.slices, at, "EndpointSlice", key, (service.into(), Arc::new(slice)))
    }

    pub(crate) fn add_node<'a>(
        &mut self,
        at: &'a yaml::Node,
        name: Arc<str>,
        node: Node,
    ) -> Read<'a, ()> {
        add(&mut self.nodes, at, "Node", name, Arc::new(node))
    }

    pub(crate) fn add_endpoints<'a>(
        &mut self,
        at: &'a yaml::Node,
        service: NamespacedName,
        slices: NamedSlices,
    ) -> Read<'a, ()> {
        add(&mut self.endpoints, at, "Endpoints", service, slices)
    }

    pub(crate) fn set_here<'a>(&mut self, at: &'a yaml::Node, here: Here) -> Read<'a, ()> {
        if let Some(first) = &self.here {
            let line = first.line;
            return Err(at.fault(format!("this is given twice, first in line {line}: remove one")));
        }
        self.here = Some(Defined { line: at.line, value: here });
        Ok(())
    }

    fn finish(self) -> State {
        let mut services: BTreeMap<NamespacedName, ServiceState> = BTreeMap::new();
        for (key, service) in self.services {
            services.entry(key).or_default().service = Some(service.value);
        }
        // In the order of their names, as a ServiceState wants them.
        for (NamespacedName { namespace, name }, slice) in self.slices {
            let (service, slice) = slice.value;
            let key = NamespacedName { namespace, name: service };
            services.entry(key).or_default().slices.push((name, slice));
        }
        for (key, endpoints) in self.endpoints {
            let state = services.entry(key).or_default();
            if state.slices.is_empty() {
                state.slices = endpoints.value;
                state.slices.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
        }
        services.retain(|_, state| !state.is_empty());
        let services = services.into_iter().map(|(key, state)| (key, Arc::new(state))).collect();
        let nodes = self.nodes.into_iter().map(|(name, node)| (name, node.value)).collect();
        State { services, nodes, here: self.here.map(|here| here.value) }
    }
}

fn add<'a, K: Ord + std::fmt::Display, V>(
    objects: &mut BTreeMap<K, Defined<V>>,
    at: &'a yaml::Node,
    kind: &str,
    key: K,
    value: V,
) -> Read<'a, ()> {
    match objects.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Defined { line: at.line, value });
            Ok(())
        }
        Entry::Occupied(entry) => Err(at.fault(format!(
            "the {kind} {} is defined twice, first in line {}: remove one",
            entry.key(),
            entry.get().line
        ))),
    }
}
