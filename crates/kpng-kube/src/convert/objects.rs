//! Field by field: Service, EndpointSlice and Node of the API to those of the model.
//!
//! `Ok(None)` is an object that a proxy has nothing to do with.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, Family, LoadBalancerIp, Node, Protocol, Service,
    ServicePort, ServiceType, SlicePort, TargetPort, TrafficPolicy,
};

use super::{Converter, Notes, Rejection};
use crate::selectors::select;
use crate::stats::RejectReason;
use crate::wire::{self, ObjectMeta};

const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's taint on a node that it is about to remove.
const GOING_AWAY: &str = "ToBeDeletedByClusterAutoscaler";
const MAX_AFFINITY: i32 = 86_400;

impl Converter {
    pub(super) fn service(
        &mut self,
        metadata: &ObjectMeta,
        service: wire::Service,
        notes: &mut Notes,
    ) -> Result<Option<Service>, Rejection> {
        let spec = service.spec.unwrap_or_default();
        let Some(service_type) = ServiceType::from_name(&spec.service_type) else {
            let sentence = format!("spec.type {:?} is unknown", spec.service_type);
            return Err((RejectReason::UnknownType, sentence));
        };
        let mut cluster_ips = spec.cluster_ips;
        if cluster_ips.is_empty() {
            cluster_ips = vec![spec.cluster_ip];
        }
        cluster_ips.retain(|ip| !ip.is_empty() && ip != "None");
        if service_type == ServiceType::ExternalName || cluster_ips.is_empty() {
            return Ok(None);
        }
        let cluster_ips = addresses("spec.clusterIPs", &cluster_ips, notes);
        if cluster_ips.is_empty() {
            let sentence = format!("none of its cluster IPs can be used: {}", notes.join("; "));
            return Err((RejectReason::NoUsableAddress, sentence));
        }
        let timeout = spec.session_affinity_config.and_then(|config| config.client_ip);
        let ingress = service.status.and_then(|status| status.load_balancer).unwrap_or_default();
        let internal = spec.internal_traffic_policy.unwrap_or_default();
        Ok(Some(Service {
            service_type,
            cluster_ips,
            external_ips: addresses("spec.externalIPs", &spec.external_ips, notes),
            load_balancer_ips: load_balancer_ips(&ingress.ingress, notes),
            load_balancer_source_ranges: source_ranges(&spec.load_balancer_source_ranges, notes),
            ports: self.service_ports(spec.ports, notes),
            internal_traffic_policy: policy("spec.internalTrafficPolicy", &internal, notes),
            external_traffic_policy: policy(
                "spec.externalTrafficPolicy",
                &spec.external_traffic_policy,
                notes,
            ),
            session_affinity: affinity(
                &spec.session_affinity,
                timeout.and_then(|client_ip| client_ip.timeout_seconds),
                notes,
            ),
            health_check_node_port: optional_port(
                "spec.healthCheckNodePort",
                spec.health_check_node_port,
                notes,
            ),
            labels: select(&self.selection.service_labels, &metadata.labels),
            annotations: select(&self.selection.service_annotations, &metadata.annotations),
            created: metadata.creation_timestamp.map(|time| time.seconds),
        }))
    }

    fn service_ports(
        &mut self,
        ports: Vec<wire::ServicePort>,
        notes: &mut Notes,
    ) -> Vec<ServicePort> {
        let mut converted = Vec::with_capacity(ports.len());
        for (at, port) in ports.into_iter().enumerate() {
            let field = format!("spec.ports[{at}]");
            let protocol = protocol(&field, &port.protocol, notes);
            let number = required_port(&field, port.port, notes);
            let (Some(protocol), Some(number)) = (protocol, number) else { continue };
            converted.push(ServicePort {
                name: self.names.intern(&port.name),
                protocol,
                port: number,
                node_port: optional_port(&format!("{field}.nodePort"), port.node_port, notes),
                target_port: self.target_port(&field, port.target_port, notes),
            });
        }
        converted
    }

    fn target_port(
        &mut self,
        field: &str,
        port: Option<wire::IntOrString>,
        notes: &mut Notes,
    ) -> TargetPort {
        let Some(port) = port else { return TargetPort::Unset };
        if port.kind == 0 {
            let number = optional_port(&format!("{field}.targetPort"), port.number, notes);
            return number.map_or(TargetPort::Unset, TargetPort::Number);
        }
        if port.string.is_empty() {
            return TargetPort::Unset;
        }
        TargetPort::Name(self.names.intern(&port.string))
    }

    pub(super) fn slice(
        &mut self,
        slice: wire::EndpointSlice,
        notes: &mut Notes,
    ) -> Result<Option<EndpointSlice>, Rejection> {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return Ok(None),
            other => {
                let sentence = format!("addressType {other:?} is unknown");
                return Err((RejectReason::UnknownType, sentence));
            }
        };
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for (at, endpoint) in slice.endpoints.into_iter().enumerate() {
            endpoints.extend(self.endpoint(at, family, endpoint, notes));
        }
        let mut ports = Vec::with_capacity(slice.ports.len());
        for (at, port) in slice.ports.into_iter().enumerate() {
            ports.extend(self.slice_port(at, port, notes));
        }
        Ok(Some(EndpointSlice { endpoints, ports }))
    }

    fn endpoint(
        &mut self,
        at: usize,
        family: Family,
        endpoint: wire::Endpoint,
        notes: &mut Notes,
    ) -> Option<Endpoint> {
        // All addresses of an endpoint reach the same; consumers use the first (KEP-752).
        let Some(text) = endpoint.addresses.first() else {
            notes.push(format!("endpoints[{at}] has no address"));
            return None;
        };
        let address = address(&format!("endpoints[{at}].addresses[0]"), text, notes)?;
        if Family::of(address) != family {
            let (expected, text) = (family.name(), text.as_str());
            notes.push(format!("endpoints[{at}].addresses[0] {text:?} is not {expected}"));
            return None;
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let hints = endpoint.hints.unwrap_or_default();
        let pod = endpoint.target_ref.filter(|target| target.kind == "Pod").map(|pod| pod.name);
        Some(Endpoint {
            address,
            conditions: Conditions::from_api(
                conditions.ready,
                conditions.serving,
                conditions.terminating,
            ),
            node: self.optional_name(endpoint.node_name),
            zone: self.optional_name(endpoint.zone),
            zone_hints: self.hints(&hints.for_zones),
            node_hints: self.hints(&hints.for_nodes),
            hostname: endpoint.hostname.filter(|name| !name.is_empty()).map(Into::into),
            pod: pod.filter(|name| !name.is_empty()).map(Into::into),
        })
    }

    fn slice_port(
        &mut self,
        at: usize,
        port: wire::EndpointPort,
        notes: &mut Notes,
    ) -> Option<SlicePort> {
        let field = format!("ports[{at}]");
        // Without a number it means all ports, which no Service can use.
        let number = required_port(&field, port.port?, notes)?;
        let protocol = protocol(&field, &port.protocol.unwrap_or_default(), notes)?;
        let name = self.names.intern(&port.name.unwrap_or_default());
        Some(SlicePort { name, protocol, port: number })
    }

    pub(super) fn node(
        &mut self,
        metadata: &ObjectMeta,
        node: wire::Node,
        notes: &mut Notes,
    ) -> Node {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let mut pod_cidrs = spec.pod_cidrs;
        if pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
            pod_cidrs = vec![spec.pod_cidr];
        }
        let internal = status.addresses.into_iter().filter(|a| a.address_type == "InternalIP");
        let internal: Vec<_> = internal.map(|address| address.address).collect();
        Node {
            zone: self.optional_name(metadata.labels.get(ZONE).cloned()),
            internal_ips: addresses("status.addresses of type InternalIP", &internal, notes),
            pod_cidrs: networks("spec.podCIDRs", &pod_cidrs, notes),
            going_away: metadata.deletion_timestamp.is_some()
                || spec.taints.iter().any(|taint| taint.key == GOING_AWAY),
            labels: select(&self.selection.node_labels, &metadata.labels),
            annotations: select(&self.selection.node_annotations, &metadata.annotations),
        }
    }

    fn optional_name(&mut self, name: Option<String>) -> Option<Arc<str>> {
        name.filter(|name| !name.is_empty()).map(|name| self.names.intern(&name))
    }

    fn hints(&mut self, hints: &[wire::Named]) -> Box<[Arc<str>]> {
        let mut hints: Vec<_> = hints.iter().map(|hint| self.names.intern(&hint.name)).collect();
        hints.sort_unstable();
        hints.into()
    }
}

fn address(field: &str, text: &str, notes: &mut Notes) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            notes.push(format!("{field} {text:?} is no IP address"));
            None
        }
    }
}

fn addresses(field: &str, texts: &[String], notes: &mut Notes) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| address(field, text, notes)).collect()
}

fn networks(field: &str, texts: &[String], notes: &mut Notes) -> Vec<IpNet> {
    let network = |text: &String| match text.trim().parse::<IpNet>() {
        Ok(network) => Some(network.trunc()),
        Err(_) => {
            notes.push(format!("{field} {text:?} is no CIDR"));
            None
        }
    };
    texts.iter().filter_map(network).collect()
}

/// `None` for no restriction. Ranges that cannot be read admit nobody.
fn source_ranges(texts: &[String], notes: &mut Notes) -> Option<Vec<IpNet>> {
    (!texts.is_empty()).then(|| networks("spec.loadBalancerSourceRanges", texts, notes))
}

fn load_balancer_ips(
    ingress: &[wire::LoadBalancerIngress],
    notes: &mut Notes,
) -> Vec<LoadBalancerIp> {
    let with_ip = ingress.iter().filter(|ingress| !ingress.ip.is_empty());
    let convert = |ingress: &wire::LoadBalancerIngress| {
        let ip = address("status.loadBalancer.ingress", &ingress.ip, notes)?;
        Some(LoadBalancerIp { ip, proxied: ingress.ip_mode.as_deref() == Some("Proxy") })
    };
    with_ip.filter_map(convert).collect()
}

fn policy(field: &str, name: &str, notes: &mut Notes) -> TrafficPolicy {
    match name {
        "Local" => TrafficPolicy::Local,
        "" | "Cluster" => TrafficPolicy::Cluster,
        other => {
            notes.push(format!("{field} {other:?} is unknown, taken as \"Cluster\""));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(name: &str, timeout: Option<i32>, notes: &mut Notes) -> Option<Duration> {
    match name {
        "ClientIP" => match timeout {
            None => Some(Service::DEFAULT_AFFINITY_TIMEOUT),
            Some(seconds @ 1..=MAX_AFFINITY) => {
                Some(Duration::from_secs(u64::from(seconds.unsigned_abs())))
            }
            Some(other) => {
                notes.push(format!("the affinity timeout {other} is not between 1 and 86400 seconds, taken as the default"));
                Some(Service::DEFAULT_AFFINITY_TIMEOUT)
            }
        },
        "" | "None" => None,
        other => {
            notes.push(format!("spec.sessionAffinity {other:?} is unknown, taken as \"None\""));
            None
        }
    }
}

fn protocol(field: &str, name: &str, notes: &mut Notes) -> Option<Protocol> {
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        notes.push(format!("{field} has the unknown protocol {name:?}"));
    }
    protocol
}

fn required_port(field: &str, number: i32, notes: &mut Notes) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|&port| port != 0);
    if port.is_none() {
        notes.push(format!("{field} has the impossible port {number}"));
    }
    port
}

/// Zero is unset.
fn optional_port(field: &str, number: i32, notes: &mut Notes) -> Option<u16> {
    if number == 0 { None } else { required_port(field, number, notes) }
}
