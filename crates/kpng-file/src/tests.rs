//! Tests by example: what the two formats say, and what is said about mistakes.

mod errors;
mod formats;
mod properties;
mod reload;

use std::fmt::Write as _;

use kpng_core::model::{Endpoint, EndpointSlice, Node, Service, TargetPort};

use crate::{Options, State, parse};

fn parse_ok(text: &str) -> State {
    parse(text, &Options::default()).unwrap_or_else(|problem| panic!("{problem} in {text}"))
}

/// A state in a few words per object. Fields with their defaults are not shown.
fn describe(state: &State) -> String {
    let mut out = String::new();
    for (name, node) in &state.nodes {
        writeln!(out, "node {name}{}", describe_node(node)).unwrap();
    }
    for (key, service) in &state.services {
        let description = service.service.as_ref().map(|service| describe_service(service));
        writeln!(out, "service {key}{}", description.as_deref().unwrap_or(": no object")).unwrap();
        for (name, slice) in &service.slices {
            writeln!(out, "  slice {name}{}", describe_slice(slice)).unwrap();
        }
    }
    out
}

fn describe_node(node: &Node) -> String {
    let default = Node::default();
    let mut out = String::new();
    let Node { zone, internal_ips, pod_cidrs, going_away, labels, annotations } = node;
    show(&mut out, "zone", zone, &default.zone);
    show(&mut out, "ips", internal_ips, &default.internal_ips);
    show(&mut out, "pods", pod_cidrs, &default.pod_cidrs);
    show(&mut out, "going away", going_away, &false);
    show(&mut out, "labels", labels, &default.labels);
    show(&mut out, "annotations", annotations, &default.annotations);
    out
}

fn show<T: PartialEq + std::fmt::Debug>(out: &mut String, name: &str, value: &T, default: &T) {
    if value != default {
        write!(out, "; {name} {value:?}").unwrap();
    }
}

fn describe_service(service: &Service) -> String {
    let default = Service::default();
    let mut out = format!(" {}", service.service_type.name());
    show(&mut out, "cluster", &service.cluster_ips, &default.cluster_ips);
    show(&mut out, "external", &service.external_ips, &default.external_ips);
    for balancer in &service.load_balancer_ips {
        let how = if balancer.proxied { " (proxied)" } else { "" };
        write!(out, "; balancer {}{how}", balancer.ip).unwrap();
    }
    show(&mut out, "ranges", &service.load_balancer_source_ranges, &None);
    show(&mut out, "internal", &service.internal_traffic_policy, &default.internal_traffic_policy);
    show(&mut out, "external", &service.external_traffic_policy, &default.external_traffic_policy);
    show(&mut out, "affinity", &service.session_affinity, &None);
    show(&mut out, "health", &service.health_check_node_port, &None);
    show(&mut out, "labels", &service.labels, &default.labels);
    show(&mut out, "annotations", &service.annotations, &default.annotations);
    show(&mut out, "created", &service.created, &None);
    for port in &service.ports {
        write!(out, "; port {:?} {}/{}", port.name, port.port, port.protocol).unwrap();
        match &port.target_port {
            TargetPort::Unset => {}
            TargetPort::Number(number) => write!(out, " -> {number}").unwrap(),
            TargetPort::Name(name) => write!(out, " -> {name:?}").unwrap(),
        }
        port.node_port.iter().for_each(|port| write!(out, " node port {port}").unwrap());
    }
    out
}

fn describe_slice(slice: &EndpointSlice) -> String {
    let mut out = String::new();
    for port in &slice.ports {
        write!(out, "; port {:?} {}/{}", port.name, port.port, port.protocol).unwrap();
    }
    for endpoint in &slice.endpoints {
        let default = Endpoint::at(endpoint.address);
        write!(out, "\n    {}", endpoint.address).unwrap();
        show(&mut out, "conditions", &endpoint.conditions, &default.conditions);
        show(&mut out, "node", &endpoint.node, &None);
        show(&mut out, "zone", &endpoint.zone, &None);
        show(&mut out, "zone hints", &endpoint.zone_hints, &default.zone_hints);
        show(&mut out, "node hints", &endpoint.node_hints, &default.node_hints);
        show(&mut out, "hostname", &endpoint.hostname, &None);
        show(&mut out, "pod", &endpoint.pod, &None);
    }
    out
}
