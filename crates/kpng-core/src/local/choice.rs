//! Which endpoints of one service port may be chosen, and why the others may not.
//!
//! A rule says *why not* ([`Excluded`]); that an endpoint is chosen means that no rule says anything.
//! So there is one set of rules for packets and for explanations.

use std::fmt;

use super::{Place, is_local};
use crate::model::{Endpoint, Service, TrafficPolicy};

/// Why an endpoint is not in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Excluded {
    /// Its slice has no port with the name and protocol of the service port.
    NoSuchPort,
    /// Another entry has the same address and port, and is the one that counts.
    Duplicate,
    /// It is not ready.
    NotReady,
    /// It is terminating and does not serve any more.
    Terminating,
    /// It is terminating, and others are ready.
    Draining,
    /// Node hints keep it for other nodes (KEP-3015).
    OtherNode,
    /// Zone hints keep it for other zones (KEP-2433).
    OtherZone,
    /// It runs on another node, and the policy is Local.
    NotLocal,
    /// No policy of the Service is Local, so there is no local list.
    NoLocalList,
    /// The kpng server that worked out this node's view left it out.
    LeftOutByServer,
}

impl Excluded {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSuchPort => "no-such-port",
            Self::Duplicate => "duplicate",
            Self::NotReady => "not-ready",
            Self::Terminating => "terminating",
            Self::Draining => "draining",
            Self::OtherNode => "other-node",
            Self::OtherZone => "other-zone",
            Self::NotLocal => "not-local",
            Self::NoLocalList => "no-local-list",
            Self::LeftOutByServer => "left-out-by-server",
        }
    }
}

/// The reason with the fields of the API that make it so.
impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPort => {
                "wrong port: its EndpointSlice has no port with this spec.ports[].name and protocol"
            }
            Self::Duplicate => "another entry with this address and port counts instead",
            Self::NotReady => "not ready (conditions.ready is false)",
            Self::Terminating => {
                "terminating (conditions.terminating is true, conditions.serving is false)"
            }
            Self::Draining => "terminating (conditions.terminating is true), and others are ready",
            Self::OtherNode => "for other nodes (hints.forNodes does not name this node)",
            Self::OtherZone => "for other zones (hints.forZones does not name this node's zone)",
            Self::NotLocal => "not local (nodeName is not this node, and the policy is Local)",
            Self::NoLocalList => "no traffic policy of the Service is Local",
            Self::LeftOutByServer => {
                "left out by the kpng server (ready, but its hints are for others)"
            }
        })
    }
}

/// Which endpoints topology allows, decided per service port from its ready endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyMode {
    /// Only endpoints hinted for this node (KEP-3015).
    SameNode,
    /// Only endpoints hinted for this zone (KEP-2433).
    SameZone,
    /// All endpoints.
    All,
}

impl TopologyMode {
    /// Chooses the mode. One ready endpoint without a hint, or no hint that names us, turns the
    /// kind of hint off.
    pub fn choose<'a>(ready: impl IntoIterator<Item = &'a Endpoint>, here: &Place) -> Self {
        Hints::of(ready, here).mode()
    }

    /// Whether the mode allows `endpoint` here.
    pub fn allows(self, endpoint: &Endpoint, here: &Place) -> bool {
        match self {
            Self::SameNode => endpoint.node_hints.contains(&here.node),
            Self::SameZone => {
                here.zone.as_ref().is_some_and(|zone| endpoint.zone_hints.contains(zone))
            }
            Self::All => true,
        }
    }

    /// What the mode says of an endpoint that it does not allow.
    fn exclusion(self) -> Excluded {
        if self == Self::SameNode { Excluded::OtherNode } else { Excluded::OtherZone }
    }
}

/// What becomes of one kind of hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintUse {
    /// It decides which endpoints are allowed.
    Applied,
    /// Not all ready endpoints have such a hint, so it does not count.
    Incomplete,
    /// No such hint of a ready endpoint names this place, so it does not count.
    NotForUs,
}

/// What becomes of the hints of the ready endpoints of one service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forNodes`; they go before those for zones.
    pub nodes: HintUse,
    /// `hints.forZones`.
    pub zones: HintUse,
}

impl Hints {
    /// Judges the hints of the `ready` endpoints.
    pub fn of<'a>(ready: impl IntoIterator<Item = &'a Endpoint>, here: &Place) -> Self {
        let (mut all_name_nodes, mut all_name_zones) = (true, true);
        let (mut this_node, mut this_zone) = (false, false);
        for endpoint in ready {
            all_name_nodes &= !endpoint.node_hints.is_empty();
            all_name_zones &= !endpoint.zone_hints.is_empty();
            this_node |= TopologyMode::SameNode.allows(endpoint, here);
            this_zone |= TopologyMode::SameZone.allows(endpoint, here);
        }
        let judge = |all, this| match (all, this) {
            (true, true) => HintUse::Applied,
            (false, _) => HintUse::Incomplete,
            (true, false) => HintUse::NotForUs,
        };
        Self { nodes: judge(all_name_nodes, this_node), zones: judge(all_name_zones, this_zone) }
    }

    /// The mode that follows.
    pub fn mode(self) -> TopologyMode {
        match self {
            Self { nodes: HintUse::Applied, .. } => TopologyMode::SameNode,
            Self { zones: HintUse::Applied, .. } => TopologyMode::SameZone,
            _ => TopologyMode::All,
        }
    }
}

/// What the two lists of one service port are made by.
pub(super) struct Lists<'a> {
    here: &'a Place,
    pub(super) hints: Hints,
    mode: TopologyMode,
    /// Some endpoint is ready and allowed.
    any_in_cluster: bool,
    /// Some endpoint on this node is ready.
    any_local_ready: bool,
    has_local_list: bool,
}

impl<'a> Lists<'a> {
    /// Looks at the endpoints that are usable and have the port.
    pub(super) fn new<'e>(
        usable: impl Iterator<Item = &'e Endpoint> + Clone,
        service: &Service,
        here: &'a Place,
    ) -> Self {
        let ready = usable.filter(|endpoint| endpoint.conditions.ready);
        let hints = Hints::of(ready.clone(), here);
        let mode = hints.mode();
        Self {
            here,
            hints,
            mode,
            any_in_cluster: ready.clone().any(|endpoint| mode.allows(endpoint, here)),
            any_local_ready: ready.clone().any(|endpoint| is_local(endpoint, here)),
            has_local_list: service.internal_traffic_policy == TrafficPolicy::Local
                || service.external_traffic_policy == TrafficPolicy::Local,
        }
    }

    /// Why a usable endpoint is not in the cluster list.
    pub(super) fn not_in_cluster(&self, endpoint: &Endpoint) -> Option<Excluded> {
        if !self.any_in_cluster {
            return self.unless_draining(endpoint);
        }
        if !endpoint.conditions.ready {
            return Some(Excluded::Draining);
        }
        (!self.mode.allows(endpoint, self.here)).then(|| self.mode.exclusion())
    }

    /// Why a usable endpoint is not in the local list.
    pub(super) fn not_in_local(&self, endpoint: &Endpoint) -> Option<Excluded> {
        if !self.has_local_list {
            return Some(Excluded::NoLocalList);
        }
        if !is_local(endpoint, self.here) {
            return Some(Excluded::NotLocal);
        }
        if !self.any_local_ready {
            return self.unless_draining(endpoint);
        }
        (!endpoint.conditions.ready).then_some(Excluded::Draining)
    }

    fn unless_draining(&self, endpoint: &Endpoint) -> Option<Excluded> {
        (!endpoint.conditions.serving_terminating()).then_some(Excluded::NotReady)
    }
}
