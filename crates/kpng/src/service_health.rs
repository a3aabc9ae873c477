//! What load balancers ask a node about one Service: `healthCheckNodePort`.
//!
//! Each port is listened on at the node port addresses, whatever becomes of the others. Work is
//! proportional to what changed in the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{HealthCheck, NodeFacts, Plan};

use crate::events::Events;
use crate::health::{ProxyHealth, json_answer};
use crate::http::{Answer, Handler, Server, at_once};

/// How many endpoints stand behind this node, so that load balancers may weigh it.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health check node ports of a plan. Dropping it closes all.
#[derive(Debug)]
pub struct ServiceHealth {
    proxy: ProxyHealth,
    events: Events,
    facts: Arc<NodeFacts>,
    addresses: BTreeSet<IpAddr>,
    /// What the services ask for.
    checks: BTreeMap<NamespacedName, HealthCheck>,
    ports: BTreeMap<u16, Port>,
}

#[derive(Debug)]
struct Port {
    /// Who asks for it. The first has it, the others wait.
    claimants: Vec<NamespacedName>,
    shown: Arc<Mutex<Shown>>,
    servers: BTreeMap<IpAddr, Server>,
}

/// What a port answers.
#[derive(Clone, Debug)]
struct Shown {
    service: NamespacedName,
    local_ready: u32,
}

impl ServiceHealth {
    /// Listens on nothing yet. All services are as unhealthy as `proxy` is. What goes wrong is told to
    /// `events`.
    pub fn new(proxy: ProxyHealth, events: Events) -> Self {
        Self {
            proxy,
            events,
            facts: Arc::default(),
            addresses: BTreeSet::new(),
            checks: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// Follows `plan`. `changed` names the services that differ from the last call; `None` means
    /// all. Must be called inside a tokio runtime.
    pub fn update(&mut self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        let mut touched = self.adopt_addresses(plan.facts());
        let keys = match changed {
            Some(keys) => keys.to_vec(),
            None => self.all_keys(plan),
        };
        let check = |key: &NamespacedName| plan.service(key).and_then(|plan| plan.health_check);
        // Ports are given up before they are claimed, so that they can change hands.
        for key in &keys {
            self.withdraw(key, check(key), &mut touched);
        }
        for key in keys {
            if let Some(check) = check(&key) {
                self.claim(key, check, &mut touched);
            }
        }
        for port in touched {
            self.settle(port);
        }
    }

    /// The ports that are listened on, or tried to, with the services that have them.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &NamespacedName)> {
        self.ports.iter().filter_map(|(number, port)| Some((*number, port.claimants.first()?)))
    }

    /// Returns the ports that must be settled: all if the addresses changed.
    fn adopt_addresses(&mut self, facts: &Arc<NodeFacts>) -> BTreeSet<u16> {
        if Arc::ptr_eq(&self.facts, facts) {
            return BTreeSet::new();
        }
        self.facts = Arc::clone(facts);
        let usable = facts.node_port_addresses.iter().copied().filter(|ip| !is_link_local(*ip));
        let addresses = usable.collect();
        if self.addresses == addresses {
            return BTreeSet::new();
        }
        self.addresses = addresses;
        self.ports.keys().copied().collect()
    }

    fn all_keys(&self, plan: &Plan) -> Vec<NamespacedName> {
        let asking = plan.services().iter().filter(|(_, plan)| plan.health_check.is_some());
        let keys: BTreeSet<_> = asking.map(|(key, _)| key).chain(self.checks.keys()).collect();
        keys.into_iter().cloned().collect()
    }

    fn withdraw(
        &mut self,
        key: &NamespacedName,
        new: Option<HealthCheck>,
        touched: &mut BTreeSet<u16>,
    ) {
        let Some(old) = self.checks.get(key).copied() else { return };
        if new.is_some_and(|new| new.port == old.port) {
            return;
        }
        self.checks.remove(key);
        if let Some(port) = self.ports.get_mut(&old.port) {
            port.claimants.retain(|claimant| claimant != key);
            touched.insert(old.port);
        }
    }

    fn claim(&mut self, key: NamespacedName, check: HealthCheck, touched: &mut BTreeSet<u16>) {
        touched.insert(check.port);
        let port = self.ports.entry(check.port).or_insert_with(|| Port::new(key.clone()));
        if self.checks.insert(key.clone(), check).is_some() {
            return;
        }
        if let Some(owner) = port.claimants.first() {
            tracing::warn!(
                service = %key,
                "healthCheckNodePort {} belongs to {owner}; load balancers get no answer about \
                 {key} until {owner} gives it up",
                check.port
            );
            self.events.health_port_taken(&key, check.port, owner);
        }
        port.claimants.push(key);
    }

    /// Makes a port answer for its first claimant on all addresses, or closes it.
    fn settle(&mut self, number: u16) {
        let Some(port) = self.ports.get_mut(&number) else { return };
        let Some(owner) = port.claimants.first().cloned() else {
            self.ports.remove(&number);
            return;
        };
        let local_ready = self.checks[&owner].local_ready;
        let what = format!("health checks of {owner}");
        port.show(Shown { service: owner.clone(), local_ready });
        port.servers.retain(|address, _| self.addresses.contains(address));
        for address in &self.addresses {
            port.servers.entry(*address).or_insert_with(|| {
                let address = SocketAddr::new(*address, number);
                let (events, service) = (self.events.clone(), owner.clone());
                let tell = move |error: &io::Error| {
                    events.health_port_failed(&service, address, error);
                };
                let handler = handler(&port.shown, &self.proxy);
                Server::start_telling(what.clone(), address, handler, tell)
            });
        }
    }
}

impl Port {
    fn new(service: NamespacedName) -> Self {
        Self {
            claimants: Vec::new(),
            shown: Arc::new(Mutex::new(Shown { service, local_ready: 0 })),
            servers: BTreeMap::new(),
        }
    }

    fn show(&self, shown: Shown) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

fn handler(shown: &Arc<Mutex<Shown>>, proxy: &ProxyHealth) -> Handler {
    let (shown, proxy) = (Arc::clone(shown), proxy.clone());
    at_once(move |_| {
        let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        answer(&shown, proxy.is_healthy())
    })
}

/// kube-proxy's answer, to the byte.
fn answer(shown: &Shown, proxy_healthy: bool) -> Answer {
    let Shown { service, local_ready } = shown;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (namespace, name) = (quoted(&service.namespace), quoted(&service.name));
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
         \t\"localEndpoints\": {local_ready},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}"
    );
    let healthy = *local_ready > 0 && proxy_healthy;
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut answer = json_answer(status, body);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(*local_ready));
    answer
}

/// Such an address means nothing without an interface, and no load balancer reaches it.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests;
