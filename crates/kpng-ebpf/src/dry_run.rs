//! What the tables would hold for a plan, as text.

use std::fmt::Write as _;

use kpng_core::plan::{Action, Frontend, Plan, PoolId, ServicePlan};

use crate::{Config, render};

/// What the tables would hold for `plan`, for people: a line for each frontend, with what happens by
/// where a packet comes from, and one for each pool.
pub fn ruleset_text(plan: &Plan, config: &Config) -> String {
    let mut text =
        format!("# snat ports {}-{}\n", config.snat_ports.start(), config.snat_ports.end());
    for ip in &plan.facts().node_port_addresses {
        line(&mut text, format_args!("node-port-address {ip}"));
    }
    for cidr in &plan.facts().service_cidrs {
        line(&mut text, format_args!("service-range {cidr} drop"));
    }
    for (key, service) in plan.services() {
        line(&mut text, format_args!("\nservice {key}"));
        for ip in &service.cluster_ips {
            line(&mut text, format_args!("  closed {ip} reject"));
        }
        for frontend in service.frontends.iter().filter(|f| render::is_served(f.protocol)) {
            line(&mut text, format_args!("  frontend {}", describe(service, frontend)));
        }
        for (index, pool) in service.pools.iter().enumerate() {
            let targets = pool.targets.iter();
            let targets: Vec<_> = targets
                .map(|target| std::net::SocketAddr::new(target.address, target.port).to_string())
                .collect();
            line(&mut text, format_args!("  pool {index} {}", targets.join(" ")));
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

fn describe(service: &ServicePlan, frontend: &Frontend) -> String {
    let action = |action: Action| match action {
        Action::Forward { pool: PoolId(pool), masquerade } => {
            format!("pool {pool}{}", if masquerade { " masquerade" } else { "" })
        }
        Action::Reject => "reject".to_owned(),
        Action::Drop => "drop".to_owned(),
    };
    let [pod, node, outside] = frontend.route.actions().map(action);
    let mut text = format!("{}: pod {pod}, node {node}, outside {outside}", frontend.key());
    let affinity = service.pools.iter().find(|pool| pool.service_port == frontend.service_port);
    if let Some(time) = affinity.and_then(|pool| pool.affinity) {
        write!(text, ", affinity {} s", time.as_secs()).expect("a string takes everything");
    }
    if let Some(sources) = &frontend.sources {
        let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
        write!(text, ", from {}", sources.join(" ")).expect("a string takes everything");
    }
    text
}
