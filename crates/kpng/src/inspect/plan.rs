//! A plan as text for people: what `kpng dump plan` prints.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use kpng_core::model::NamespacedName;
use kpng_core::plan::{Action, Frontend, NodeFacts, Plan, PodDetection, Pool, ServicePlan, Target};

use super::Pieces;

/// The plan, the node's own part first, then one piece for each Service.
pub(super) fn text(plan: &Plan) -> Pieces {
    let head = facts(plan.facts());
    let services: Vec<_> =
        plan.services().iter().map(|(key, plan)| (key.clone(), Arc::clone(plan))).collect();
    let services = services.into_iter().map(|(key, plan)| service(&key, &plan));
    Box::new(std::iter::once(head).chain(services))
}

/// What plans depend on beside Services.
pub(crate) fn facts(facts: &NodeFacts) -> String {
    let NodeFacts {
        pods,
        primary_ips,
        node_port_addresses,
        localhost_node_ports,
        masquerade_all,
        service_cidrs,
    } = facts;
    let pods = match pods {
        PodDetection::None => "not told from others".to_owned(),
        PodDetection::Cidrs(cidrs) => format!("in {}", list(cidrs)),
        PodDetection::Bridge(name) => format!("on bridge {name}"),
        PodDetection::InterfacePrefix(prefix) => format!("on interfaces {prefix}*"),
    };
    let localhost = if *localhost_node_ports { ", and on 127.0.0.1" } else { "" };
    let mut out = format!(
        "pods: {pods}\nprimary addresses: {}\nnode ports on: {}{localhost}\n",
        list(primary_ips),
        list(node_port_addresses)
    );
    if *masquerade_all {
        out += "everything to cluster IPs is masqueraded\n";
    }
    if !service_cidrs.is_empty() {
        out += &format!("cluster IPs come from: {}\n", list(service_cidrs));
    }
    out
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn service(key: &NamespacedName, plan: &ServicePlan) -> String {
    let mut out = format!("\n{key}\n");
    let mut line = |text: String| writeln!(out, "  {text}").expect("a string takes everything");
    for frontend in &plan.frontends {
        line(frontend_text(frontend));
    }
    for (number, pool) in plan.pools.iter().enumerate() {
        line(pool_text(number, pool, plan));
    }
    for port in plan.ports.iter().filter(|port| !port.serving.is_empty()) {
        line(format!("{}/{} is served by {}", port.port, port.protocol, targets(&port.serving)));
    }
    if let Some(health) = plan.health_check {
        line(format!("health check on {}: {} ready here", health.port, health.local_ready));
    }
    for warning in &plan.warnings {
        line(format!("warning: {warning}"));
    }
    out
}

fn frontend_text(frontend: &Frontend) -> String {
    let [pod, node, outside] = frontend.route.actions();
    let route = if pod == node && node == outside {
        action(pod)
    } else {
        format!("pod: {}, node: {}, outside: {}", action(pod), action(node), action(outside))
    };
    let sources = frontend.sources.as_ref();
    let sources = sources.map(|sources| format!(", only from {}", list(sources)));
    format!("{} -> {route}{}", frontend.key(), sources.unwrap_or_default())
}

fn action(action: Action) -> String {
    match action {
        Action::Forward { pool, masquerade: true } => format!("pool {} masqueraded", pool.0),
        Action::Forward { pool, masquerade: false } => format!("pool {}", pool.0),
        Action::Reject => "reject".to_owned(),
        Action::Drop => "drop".to_owned(),
    }
}

fn pool_text(number: usize, pool: &Pool, plan: &ServicePlan) -> String {
    let port = &plan.ports[usize::from(pool.service_port)];
    let affinity = pool.affinity.map(|time| format!(", clients stick for {} s", time.as_secs()));
    let (port, protocol, targets) = (port.port, port.protocol, targets(&pool.targets));
    format!("pool {number} of {port}/{protocol}: {targets}{}", affinity.unwrap_or_default())
}

fn targets(targets: &[Target]) -> String {
    let addresses = targets.iter().map(|target| SocketAddr::new(target.address, target.port));
    let addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
    addresses.join(" ")
}
