//! Which places see a Service alike.
//!
//! Thousands of nodes see most Services in the same few ways: a node matters only where an endpoint
//! runs or is hinted for, a zone only where hints name it. Whoever serves many nodes works out one
//! view for each [`Vantage`], not for each node.

use std::collections::HashSet;
use std::sync::Arc;

use super::Place;
use crate::model::ServiceState;

/// All that a place matters to one Service. Equal vantages give equal views ([`super::localize`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Vantage {
    /// This node, since an endpoint is on it or hinted for it. In this zone, if that matters too.
    Node(Arc<str>, Option<Arc<str>>),
    /// Any node in this zone that endpoints are hinted for.
    Zone(Arc<str>),
    /// Anywhere else.
    #[default]
    Elsewhere,
}

/// The nodes and zones that matter to one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vantages {
    nodes: HashSet<Arc<str>>,
    zones: HashSet<Arc<str>>,
}

impl Vantages {
    /// Those of a Service.
    pub fn of(state: &ServiceState) -> Self {
        let mut vantages = Self::default();
        let slices = state.slices.iter().flat_map(|(_, slice)| &slice.endpoints);
        for endpoint in slices {
            vantages.nodes.extend(endpoint.node.iter().chain(&endpoint.node_hints).cloned());
            vantages.zones.extend(endpoint.zone_hints.iter().cloned());
        }
        vantages
    }

    /// How `here` sees the Service.
    pub fn from(&self, here: &Place) -> Vantage {
        let zone = here.zone.as_ref().filter(|zone| self.zones.contains(*zone));
        match (self.nodes.contains(&here.node), zone) {
            (true, zone) => Vantage::Node(Arc::clone(&here.node), zone.cloned()),
            (false, Some(zone)) => Vantage::Zone(Arc::clone(zone)),
            (false, None) => Vantage::Elsewhere,
        }
    }
}
