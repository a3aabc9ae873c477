//! From a Service on one node to what it asks of the data path.
//!
//! The planner tells whoever wants to know by which [`Policy`] each frontend got its route: nobody on
//! the way to packets, [`policies`] for explanations.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{
    Action, At, Frontend, FrontendKey, FrontendKind, HealthCheck, List, NodeFacts, Policy, Pool,
    PoolId, PortPlan, Route, ServicePlan, Target, Warning,
};
use crate::local::{EndpointPort, LocalEndpoint, LocalService};
use crate::model::{Family, Protocol, Service, TrafficPolicy};

/// What the Service asks of this node's data path.
pub fn plan_service(local: &LocalService, facts: &NodeFacts) -> ServicePlan {
    plan_and_tell(local, facts, |_, _| {})
}

/// The policies by which the frontends of the Service got their routes, in the order of
/// [`ServicePlan::frontends`].
pub fn policies(local: &LocalService, facts: &NodeFacts) -> Vec<(FrontendKey, Policy)> {
    let mut policies: Vec<(FrontendKey, Policy)> = Vec::new();
    plan_and_tell(local, facts, |key, policy| {
        // The first is the one that counts.
        if policies.iter().all(|(other, _)| *other != key) {
            policies.push((key, *policy));
        }
    });
    policies
}

fn plan_and_tell(
    local: &LocalService,
    facts: &NodeFacts,
    mut tell: impl FnMut(FrontendKey, &Policy),
) -> ServicePlan {
    let service = &*local.service;
    let mut plan = ServicePlan {
        cluster_ips: service.cluster_ips.clone(),
        created: service.created,
        health_check: health_check(local),
        has_local_endpoint: local.endpoints.iter().any(|endpoint| endpoint.local),
        ..ServicePlan::default()
    };
    for (index, port) in service.ports.iter().enumerate() {
        plan.ports.push(PortPlan {
            name: Arc::clone(&port.name),
            protocol: port.protocol,
            port: port.port,
            serving: serving(local, index, port.protocol),
        });
        for family in Family::ALL {
            let (plan, tell) = (&mut plan, &mut tell);
            PortPlanner { local, facts, index, family, plan, tell }.add();
        }
    }
    let mut seen = HashSet::with_capacity(plan.frontends.len());
    plan.frontends.retain(|frontend| seen.insert(frontend.key()));
    plan
}

fn health_check(local: &LocalService) -> Option<HealthCheck> {
    let service = &*local.service;
    if service.external_traffic_policy != TrafficPolicy::Local {
        return None;
    }
    let port = service.health_check_node_port?;
    let ready: BTreeSet<_> = local
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.local && endpoint.conditions.ready)
        .map(|endpoint| endpoint.address)
        .collect();
    // A pod of both families is one endpoint, and not every slice names its pods.
    let (v4, v6): (Vec<_>, Vec<_>) = ready.into_iter().partition(|address| address.is_ipv4());
    let local_ready = u32::try_from(v4.len().max(v6.len())).unwrap_or(u32::MAX);
    Some(HealthCheck { port, local_ready })
}

fn serving(local: &LocalService, index: usize, protocol: Protocol) -> Vec<Target> {
    if protocol != Protocol::Udp {
        return Vec::new();
    }
    let of = |family| local.ports_of(index, family).map(target);
    let serving: BTreeSet<_> = Family::ALL.into_iter().flat_map(of).collect();
    serving.into_iter().collect()
}

fn target((endpoint, port): (&LocalEndpoint, &EndpointPort)) -> Target {
    Target { address: endpoint.address, port: port.port }
}

/// One port of a Service in one family.
struct PortPlanner<'a, F> {
    local: &'a LocalService,
    facts: &'a NodeFacts,
    index: usize,
    family: Family,
    plan: &'a mut ServicePlan,
    tell: &'a mut F,
}

impl<F: FnMut(FrontendKey, &Policy)> PortPlanner<'_, F> {
    fn add(&mut self) {
        let service = Arc::clone(&self.local.service);
        let port = &service.ports[self.index];
        let family = self.family;
        if !serves_family(&service, family) {
            return;
        }
        let cluster_ips = of_family(&service.cluster_ips, family);
        let load_balancer_ips: Vec<_> =
            service.load_balancer_ips.iter().filter(|ip| !ip.proxied).map(|ip| ip.ip).collect();
        let load_balancer_ips = of_family(&load_balancer_ips, family);
        let external_ips = of_family(&service.external_ips, family);
        let node_port = port.node_port;
        let external =
            !load_balancer_ips.is_empty() || !external_ips.is_empty() || node_port.is_some();
        if cluster_ips.is_empty() && !external {
            return;
        }

        let detects = self.facts.pods.works_for(family);
        let internal_policy = service.internal_traffic_policy;
        let internal = Policy::internal(internal_policy, detects, self.facts.masquerade_all);
        let external_policy = service.external_traffic_policy;
        let any_local = internal_policy == TrafficPolicy::Local
            || external && external_policy == TrafficPolicy::Local;
        let cluster = self.pool_or_refusal(|port| port.in_cluster_list);
        let local =
            if any_local { self.pool_or_refusal(|port| port.in_local_list) } else { cluster };
        let list = |list| if list == List::Local { local } else { cluster };
        for ip in cluster_ips {
            self.frontend(At::Vip(ip), port.port, &internal, list, None);
        }
        if !external {
            return;
        }
        let external = |kind| Policy::external(kind, external_policy, detects);
        for ip in load_balancer_ips {
            let sources = self.sources(&service, ip);
            let policy = external(FrontendKind::LoadBalancerIp);
            self.frontend(At::Vip(ip), port.port, &policy, list, sources);
        }
        for ip in external_ips {
            let policy = external(FrontendKind::ExternalIp);
            self.frontend(At::Vip(ip), port.port, &policy, list, None);
        }
        if let Some(node_port) = node_port {
            let policy = external(FrontendKind::NodePort);
            self.frontend(At::NodePort(family), node_port, &policy, list, None);
        }
    }

    fn pool_or_refusal(&mut self, in_list: impl Fn(&EndpointPort) -> bool) -> Choice {
        let all = self.local.ports_of(self.index, self.family);
        let mut targets: Vec<_> = all.filter(|(_, port)| in_list(port)).map(target).collect();
        targets.sort_unstable();
        targets.dedup();
        if targets.is_empty() {
            let exists = self.local.has_any(self.index, self.family);
            // Dropping gives a load balancer time to notice; a reset would reach the client.
            return if exists { Choice::Drop } else { Choice::Reject };
        }
        let service_port = u16::try_from(self.index).expect("localize checked the number of ports");
        let affinity = self.local.service.session_affinity;
        let pool = Pool { service_port, family: self.family, targets, affinity };
        let pools = &mut self.plan.pools;
        let at = pools.iter().position(|other| *other == pool).unwrap_or_else(|| {
            pools.push(pool);
            pools.len() - 1
        });
        Choice::Pool(PoolId(u16::try_from(at).expect("four pools a port at most")))
    }

    fn sources(&mut self, service: &Service, ip: IpAddr) -> Option<Vec<IpNet>> {
        let ranges = service.load_balancer_source_ranges.as_ref()?;
        let mut ranges: Vec<_> = ranges
            .iter()
            .filter(|range| Family::of_net(range) == self.family)
            .map(IpNet::trunc)
            .collect();
        if ranges.is_empty() {
            let warning = Warning::NoSourceRangeOfFamily(self.family);
            if !self.plan.warnings.contains(&warning) {
                self.plan.warnings.push(warning);
            }
        }
        let admits = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        if self.facts.primary_ips.iter().any(admits) {
            ranges.push(IpNet::from(ip));
        }
        Some(IpNet::aggregate(&ranges))
    }

    fn frontend(
        &mut self,
        at: At,
        port: u16,
        policy: &Policy,
        list: impl Fn(List) -> Choice,
        sources: Option<Vec<IpNet>>,
    ) {
        let protocol = self.local.service.ports[self.index].protocol;
        let service_port = u16::try_from(self.index).expect("localize checked the number of ports");
        let [pod, node, outside] = policy
            .treatments()
            .map(|treatment| list(treatment.list).action(treatment.masquerade.applies()));
        let route = Route { pod, node, outside };
        let frontend = Frontend { at, protocol, port, service_port, sources, route };
        (self.tell)(frontend.key(), policy);
        self.plan.frontends.push(frontend);
    }
}

/// A Service lives in the families of its cluster IPs; one without any, in both.
pub(crate) fn serves_family(service: &Service, family: Family) -> bool {
    service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|ip| Family::of(*ip) == family)
}

fn of_family(ips: &[IpAddr], family: Family) -> Vec<IpAddr> {
    ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect()
}

/// The outcome of one list.
#[derive(Clone, Copy)]
enum Choice {
    Pool(PoolId),
    Reject,
    Drop,
}

impl Choice {
    fn action(self, masquerade: bool) -> Action {
        match self {
            Self::Pool(pool) => Action::Forward { pool, masquerade },
            Self::Reject => Action::Reject,
            Self::Drop => Action::Drop,
        }
    }
}
