//! One service: its frontends with what becomes of packets to them, and its endpoints with why each may
//! be chosen or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use kpng_core::local::{Considered, Place, PortEndpoints};
use kpng_core::model::{Family, NamespacedName, Service, ServicePort};
use kpng_core::plan::{
    Action, At, FrontendKey, List, Plan, Planner, Policy, ServicePlan, policies,
};
use kpng_core::store::Snapshot;
use serde_json::{Value, json};

use super::list::{head, lists};
use super::search::addresses;
use crate::admin::Admin;
use crate::inspect::{
    Inspect, considered_json, exclusion_json, hints_json, not_complete, traffic_policy,
};
use crate::metrics::{Metrics, Port};

/// So many endpoints of each port and family are a page at most.
const ENDPOINTS: usize = 200;

/// A service with many ports has about so many in a page, of all ports together.
const ALL_ENDPOINTS: usize = 2000;

/// The service `key`, with the page `page`, counted from 1, of its endpoints; one beyond the end is the
/// last, and what was counted at its ports. `None` if there is no such service.
pub(super) fn detail<V: Inspect>(
    process: &Admin<V>,
    metrics: &Metrics,
    key: &NamespacedName,
    page: usize,
) -> anyhow::Result<Option<Value>> {
    let facts = process.facts()?;
    let (store, place) = (&process.store, process.place());
    let revision = store.revision();
    if !store.is_synced() {
        return Err(not_complete());
    }
    let Some(state) = store.service(key) else { return Ok(None) };
    let Some(local) = state.localize(key, &place) else { return Ok(None) };
    let service = &*local.service;
    let mut planner = Planner::new(Arc::clone(&process.node), facts);
    planner.update(&rivals(process, key, service).into_update());
    let plan = planner.plan();
    let policies = policies(&local, plan.facts());
    let endpoints = Endpoints::of(&*state, service, &place);
    let pages = endpoints.pages();
    let page = page.clamp(1, pages);

    let mut value = head(key, service);
    value["revision"] = json!(revision);
    value["page"] = json!(page);
    value["pages"] = json!(pages);
    let conflicts = planner.conflicts().into_iter();
    let ours = conflicts.filter(|conflict| conflict.loser == *key || conflict.owner == *key);
    value["conflicts"] = ours.map(|conflict| conflict.to_string()).collect();
    if let Some(planned) = plan.service(key) {
        let gaps = process.choice.row().gaps.iter();
        let gaps = gaps.filter(|gap| gap.what.is_needed_by(planned, plan.facts()));
        value["gaps"] =
            gaps.map(|gap| json!({ "what": gap.what.to_string(), "why": gap.why })).collect();
        value["warnings"] = planned.warnings.iter().map(ToString::to_string).collect();
        let check = planned.health_check;
        let check = check.map(|it| json!({ "port": it.port, "localReady": it.local_ready }));
        value["healthCheck"] = check.into();
    }
    let traffic = metrics.traffic(key);
    let port = |(index, port): (usize, &ServicePort)| {
        let of_port = policies.iter().filter(|(key, _)| port_of(service, key) == Some(index));
        let of_port: Vec<_> = of_port.collect();
        let lists = |family| lists(of_port.iter().copied(), family);
        let frontends = of_port.iter().map(|(at, policy)| frontend_json(at, policy, key, plan));
        json!({
            "name": &*port.name,
            "protocol": port.protocol.name(),
            "port": port.port,
            "nodePort": port.node_port,
            "traffic": traffic.iter().find(|(of, _)| is_port(of, port)).map(|(_, counts)| json!({
                "connections": counts.connections,
                "rejected": counts.rejected,
                "dropped": counts.dropped,
            })),
            "frontends": frontends.collect::<Vec<_>>(),
            "endpoints": endpoints.json(index, page, lists),
        })
    };
    value["ports"] = service.ports.iter().enumerate().map(port).collect();
    Ok(Some(value))
}

/// What is planned for a service depends on those that claim the same frontends, and on no others.
fn rivals<V: Inspect>(process: &Admin<V>, key: &NamespacedName, service: &Service) -> Snapshot<V> {
    let node_ports = |service: &Service| -> Vec<_> {
        service.ports.iter().filter_map(|port| port.node_port).collect()
    };
    let ours: BTreeSet<IpAddr> = addresses(service).collect();
    let our_ports: BTreeSet<u16> = node_ports(service).into_iter().collect();
    let claims = |service: &Arc<Service>| {
        addresses(service).any(|ip| ours.contains(&ip))
            || node_ports(service).iter().any(|port| our_ports.contains(port))
    };
    let mut services = BTreeMap::new();
    process.store.look_through(|other, state| {
        if other == key || state.service().is_some_and(claims) {
            services.insert(other.clone(), Arc::clone(state));
        }
    });
    let node = process.store.node(&process.node);
    let nodes = node.into_iter().map(|node| (Arc::clone(&process.node), node)).collect();
    Snapshot { revision: process.store.revision(), services, nodes }
}

fn is_port(counted: &Port, port: &ServicePort) -> bool {
    (counted.number, counted.protocol, &counted.name) == (port.port, port.protocol, &port.name)
}

/// Which port of the service a frontend is for. Of several alike the first counts.
fn port_of(service: &Service, frontend: &FrontendKey) -> Option<usize> {
    service.ports.iter().position(|port| {
        let number = match frontend.at {
            At::Vip(_) => Some(port.port),
            At::NodePort(_) => port.node_port,
        };
        port.protocol == frontend.protocol && number == Some(frontend.port)
    })
}

fn frontend_json(at: &FrontendKey, policy: &Policy, key: &NamespacedName, plan: &Plan) -> Value {
    let address = match at.at {
        At::Vip(ip) => Some(ip),
        At::NodePort(family) => {
            let mut addresses = plan.facts().node_port_addresses.iter();
            addresses.find(|ip| Family::of(**ip) == family).copied()
        }
    };
    let mut value = json!({
        "is": at.to_string(),
        "address": address,
        "port": at.port,
        "protocol": at.protocol.name(),
        "kind": policy.kind.name(),
        "field": policy.kind.field(),
        "trafficPolicy": traffic_policy(policy.traffic),
        "owner": Value::Null,
    });
    let Some((owner, planned, frontend)) = plan.owner(at) else { return value };
    value["owner"] = json!(owner.to_string());
    if owner == key {
        let sources = frontend.sources.as_ref();
        let sources = sources.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        let [pod, node, outside] =
            frontend.route.actions().map(|action| action_json(action, planned));
        value["sources"] = json!(sources);
        value["from"] = json!({ "pod": pod, "node": node, "outside": outside });
    }
    value
}

fn action_json(action: Action, planned: &ServicePlan) -> Value {
    match action {
        Action::Forward { pool, masquerade } => {
            let endpoints = planned.pools[usize::from(pool.0)].targets.len();
            json!({ "is": "forward", "endpoints": endpoints, "masquerade": masquerade })
        }
        Action::Reject => json!({ "is": "reject" }),
        Action::Drop => json!({ "is": "drop" }),
    }
}

/// All endpoints of a service.
struct Endpoints {
    /// By the index of the port and their family.
    all: Vec<(usize, Family, PortEndpoints)>,
    /// How many of each are a page.
    page: usize,
}

impl Endpoints {
    fn of(state: &impl Inspect, service: &Service, place: &Place) -> Self {
        let ports = 0..service.ports.len();
        let both = ports.flat_map(|index| Family::ALL.map(|family| (index, family)));
        let all = both.map(|(index, family)| (index, family, state.consider(index, family, place)));
        let all: Vec<_> = all.filter(|(_, _, found)| !found.endpoints.is_empty()).collect();
        let page = ALL_ENDPOINTS.checked_div(all.len()).unwrap_or(1).clamp(1, ENDPOINTS);
        Self { all, page }
    }

    fn pages(&self) -> usize {
        let longest = self.all.iter().map(|(_, _, found)| found.endpoints.len()).max();
        longest.unwrap_or(0).div_ceil(self.page).max(1)
    }

    /// Those of one port, of which the frontends of a family use these `lists`.
    fn json(&self, port: usize, page: usize, lists: impl Fn(Family) -> Vec<List>) -> Value {
        let of_port = self.all.iter().filter(|(index, ..)| *index == port);
        let family = |(_, family, found): &(usize, Family, PortEndpoints)| {
            let lists = lists(*family);
            let all = found.endpoints.iter();
            let shown = all.clone().skip((page - 1) * self.page).take(self.page);
            let chosen = all.filter(|endpoint| may_be_chosen(endpoint, &lists)).count();
            json!({
                "family": family.name(),
                "all": found.endpoints.len(),
                "chosen": chosen,
                "lists": lists.iter().map(|list| list.name()).collect::<Vec<_>>(),
                "hints": found.hints.map(hints_json),
                "page": shown.map(|endpoint| endpoint_json(endpoint, &lists)).collect::<Vec<_>>(),
            })
        };
        of_port.map(family).collect()
    }
}

fn may_be_chosen(endpoint: &Considered, lists: &[List]) -> bool {
    lists.iter().any(|list| list.excludes(endpoint).is_none())
}

fn endpoint_json(endpoint: &Considered, lists: &[List]) -> Value {
    let mut value = considered_json(endpoint);
    value["mayBeChosen"] = json!(may_be_chosen(endpoint, lists));
    let why = |list: &List| (list.name(), list.excludes(endpoint).map(exclusion_json));
    value["excluded"] = json!(lists.iter().map(why).collect::<BTreeMap<_, _>>());
    value
}
