//! The services of a node, a page at a time.
//!
//! Only the rows of a page are worked out; of the others no more is looked at than the search needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use kpng_core::local::{Considered, Excluded, Place};
use kpng_core::model::{Family, NamespacedName, Service};
use kpng_core::plan::{FrontendKey, FrontendKind, List, NodeFacts, Policy, policies};
use serde_json::{Value, json};

use super::search::Search;
use crate::admin::Admin;
use crate::inspect::{Inspect, not_complete, traffic_policy};

/// So many rows are a page.
pub(super) const ROWS: usize = 50;

/// So many frontends are in a row at most.
const FRONTENDS: usize = 12;

/// The page `page`, counted from 1, of the services that `search` finds. One beyond the end is the last.
pub(super) fn list<V: Inspect>(
    process: &Admin<V>,
    search: &Search,
    page: usize,
) -> anyhow::Result<Value> {
    let facts = process.facts()?;
    let (revision, place) = (process.store.revision(), process.place());
    let mut found = Found::look(process, search, &place, page)?;
    if page > found.pages() {
        found = Found::look(process, search, &place, found.pages())?;
    }
    let rows =
        found.shown.iter().map(|(key, service, state)| row(key, service, state, &place, &facts));
    Ok(json!({
        "revision": revision,
        "all": found.all,
        "found": found.count,
        "page": found.page,
        "pages": found.pages(),
        "services": rows.collect::<Vec<_>>(),
    }))
}

/// What a search has found.
struct Found<V> {
    all: usize,
    count: usize,
    page: usize,
    /// Those of the page.
    shown: Vec<(NamespacedName, Arc<Service>, Arc<V>)>,
}

impl<V: Inspect> Found<V> {
    fn look(
        process: &Admin<V>,
        search: &Search,
        place: &Place,
        page: usize,
    ) -> anyhow::Result<Self> {
        let page = page.max(1);
        let mut found = Self { all: 0, count: 0, page, shown: Vec::new() };
        let is_complete = process.store.look_through(|key, state| {
            let Some(service) = state.service() else { return };
            found.all += 1;
            if search.finds(key, service, &**state, place) {
                if found.count / ROWS == page - 1 {
                    found.shown.push((key.clone(), Arc::clone(service), Arc::clone(state)));
                }
                found.count += 1;
            }
        });
        if is_complete { Ok(found) } else { Err(not_complete()) }
    }

    fn pages(&self) -> usize {
        self.count.div_ceil(ROWS).max(1)
    }
}

fn row<V: Inspect>(
    key: &NamespacedName,
    service: &Service,
    state: &Arc<V>,
    place: &Place,
    facts: &NodeFacts,
) -> Value {
    let local = state.localize(key, place);
    let policies = local.map(|local| policies(&local, facts)).unwrap_or_default();
    let names = policies.iter().take(FRONTENDS).map(|(key, _)| key.to_string());
    let mut value = head(key, service);
    value["frontends"] = json!({ "count": policies.len(), "names": names.collect::<Vec<_>>() });
    let is_external = policies.iter().any(|(_, policy)| policy.kind != FrontendKind::ClusterIp);
    if !is_external {
        value["externalTrafficPolicy"] = Value::Null;
    }
    value["endpoints"] = endpoints(service, &**state, place, |family| lists(&policies, family));
    value
}

/// What the Service object says, in short.
pub(super) fn head(key: &NamespacedName, service: &Service) -> Value {
    json!({
        "namespace": &*key.namespace,
        "name": &*key.name,
        "type": service.service_type.name(),
        "internalTrafficPolicy": traffic_policy(service.internal_traffic_policy),
        "externalTrafficPolicy": traffic_policy(service.external_traffic_policy),
        "affinitySeconds": service.session_affinity.map(|time| time.as_secs()),
    })
}

/// The lists of endpoints that frontends of one family use.
pub(super) fn lists<'a>(
    policies: impl IntoIterator<Item = &'a (FrontendKey, Policy)>,
    family: Family,
) -> Vec<List> {
    let of_family = policies.into_iter().filter(|(key, _)| key.at.family() == family);
    let used =
        of_family.flat_map(|(_, policy)| policy.treatments()).map(|treatment| treatment.list);
    let used: Vec<_> = used.collect();
    [List::Cluster, List::Local].into_iter().filter(|list| used.contains(list)).collect()
}

/// An endpoint's address, whatever its ports.
#[derive(Clone, Copy, Default)]
struct Counted {
    ready: bool,
    serving: bool,
    chosen: bool,
}

/// How many endpoints there are, by address, and how many of them may be chosen by some frontend.
fn endpoints(
    service: &Service,
    state: &impl Inspect,
    place: &Place,
    lists: impl Fn(Family) -> Vec<List>,
) -> Value {
    let mut all: BTreeMap<IpAddr, Counted> = BTreeMap::new();
    for family in Family::ALL {
        let lists = lists(family);
        for index in 0..service.ports.len() {
            let endpoints = state.consider(index, family, place).endpoints;
            let counts = |e: &&Considered| e.not_in_cluster != Some(Excluded::Duplicate);
            for endpoint in endpoints.iter().filter(counts) {
                let counted = all.entry(endpoint.address).or_default();
                counted.ready |= endpoint.conditions.ready;
                counted.serving |= endpoint.conditions.serving;
                counted.chosen |= lists.iter().any(|list| list.excludes(endpoint).is_none());
            }
        }
    }
    let count = |is: fn(&Counted) -> bool| all.values().filter(|counted| is(counted)).count();
    json!({
        "all": all.len(),
        "ready": count(|endpoint| endpoint.ready),
        "serving": count(|endpoint| endpoint.serving),
        "chosen": count(|endpoint| endpoint.chosen),
    })
}
