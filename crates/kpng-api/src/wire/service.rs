//! Services: the same message in both APIs, but for what a node's view adds.

use std::sync::Arc;
use std::time::Duration;

use kpng_core::local::LocalService;
use kpng_core::model::{
    LoadBalancerIp, NamespacedName, Service, ServicePort, ServiceType, TargetPort, TrafficPolicy,
};
use prost::Message as _;

use super::{Invalid, fields};
use crate::proto::localv1;

const MAX_AFFINITY_SECONDS: u64 = 86_400;

/// The message of the local sets. KPNG's clients need a number in `TargetPort`.
pub(super) fn encode_local(local: &LocalService, details: bool) -> localv1::Service {
    let mut message = encode(&local.key, &local.service, details);
    for (mapping, port) in message.ports.iter_mut().zip(&local.service.ports) {
        if port.target_port == TargetPort::Unset {
            mapping.target_port = port.port.into();
        }
    }
    message.has_endpoints = details && !local.endpoints.is_empty();
    message
}

/// The message of the global sets.
pub(super) fn encode(key: &NamespacedName, service: &Service, details: bool) -> localv1::Service {
    let Service {
        service_type,
        cluster_ips,
        external_ips,
        load_balancer_ips,
        load_balancer_source_ranges,
        ports,
        internal_traffic_policy,
        external_traffic_policy,
        session_affinity,
        health_check_node_port,
        labels,
        annotations,
        created,
    } = service;
    let balancers = |proxied| {
        let ips = load_balancer_ips.iter().filter(move |ip| ip.proxied == proxied);
        let set = fields::ip_set(ips.map(|ip| ip.ip));
        (set != localv1::IpSet::default()).then_some(set)
    };
    localv1::Service {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        r#type: service_type.name().to_owned(),
        i_ps: Some(localv1::ServiceIPs {
            // KPNG's clients rely on these two being there, though empty.
            cluster_i_ps: Some(fields::ip_set(cluster_ips.iter().copied())),
            external_i_ps: Some(fields::ip_set(external_ips.iter().copied())),
            headless: cluster_ips.is_empty() && *service_type != ServiceType::ExternalName,
            load_balancer_i_ps: balancers(false),
        }),
        map_ip: false,
        ports: ports.iter().map(encode_port).collect(),
        external_traffic_to_local: *external_traffic_policy == TrafficPolicy::Local,
        labels: fields::string_map(labels),
        annotations: fields::string_map(annotations),
        ip_filters: load_balancer_source_ranges
            .iter()
            .map(|ranges| localv1::IpFilter {
                target_i_ps: None,
                source_ranges: fields::network_texts(ranges),
            })
            .collect(),
        internal_traffic_to_local: *internal_traffic_policy == TrafficPolicy::Local,
        health_check_node_port: health_check_node_port.map_or(0, i32::from),
        created: created.filter(|_| details),
        proxied_load_balancer_i_ps: balancers(true).filter(|_| details),
        has_endpoints: false,
        session_affinity: session_affinity.map(|timeout| {
            let timeout_seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
            localv1::service::SessionAffinity::ClientIp(localv1::ClientIpAffinity {
                timeout_seconds,
            })
        }),
    }
}

fn encode_port(port: &ServicePort) -> localv1::PortMapping {
    let (target_port, target_port_name) = match &port.target_port {
        TargetPort::Unset => (0, String::new()),
        TargetPort::Number(number) => (i32::from(*number), String::new()),
        TargetPort::Name(name) => (0, name.to_string()),
    };
    localv1::PortMapping {
        name: port.name.to_string(),
        protocol: fields::protocol_number(port.protocol),
        port: port.port.into(),
        node_port: port.node_port.map_or(0, i32::from),
        target_port,
        target_port_name,
    }
}

/// Decodes a value of `ServicesSet`.
pub(crate) fn decode_service(bytes: &[u8]) -> Result<(NamespacedName, Service), Invalid> {
    decode(localv1::Service::decode(bytes)?)
}

pub(super) fn decode(message: localv1::Service) -> Result<(NamespacedName, Service), Invalid> {
    let key = NamespacedName {
        namespace: fields::object_name("Namespace", message.namespace)?,
        name: fields::object_name("Name", message.name)?,
    };
    let Some(service_type) = ServiceType::from_name(&message.r#type) else {
        let value = format!("{:?}", message.r#type);
        return Err(Invalid::Unknown { field: "Type".to_owned(), value });
    };
    let ips = message.i_ps.unwrap_or_default();
    let balancers = |set, proxied| {
        let addresses = fields::addresses_of(set).into_iter();
        addresses.map(move |ip| LoadBalancerIp { ip, proxied })
    };
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let service = Service {
        service_type,
        cluster_ips: decode_cluster_ips(ips.cluster_i_ps)?,
        external_ips: fields::addresses_of(ips.external_i_ps),
        load_balancer_ips: balancers(ips.load_balancer_i_ps, false)
            .chain(balancers(message.proxied_load_balancer_i_ps, true))
            .collect(),
        load_balancer_source_ranges: (!message.ip_filters.is_empty()).then(|| {
            let ranges = message.ip_filters.iter();
            ranges.flat_map(|filter| fields::network_list(&filter.source_ranges)).collect()
        }),
        ports: decode_ports(message.ports)?,
        internal_traffic_policy: policy(message.internal_traffic_to_local),
        external_traffic_policy: policy(message.external_traffic_to_local),
        session_affinity: message.session_affinity.map(decode_affinity),
        health_check_node_port: fields::optional_port(
            format_args!("HealthCheckNodePort"),
            message.health_check_node_port,
        )?,
        labels: fields::boxed_map(message.labels),
        annotations: fields::boxed_map(message.annotations),
        created: message.created,
    };
    Ok((key, service))
}

/// A Service whose cluster IPs all are unreadable must not turn into a headless one.
fn decode_cluster_ips(set: Option<localv1::IpSet>) -> Result<Vec<std::net::IpAddr>, Invalid> {
    let first = set.as_ref().and_then(|set| set.v4.iter().chain(&set.v6).next().cloned());
    let addresses = fields::addresses_of(set);
    match first {
        Some(value) if addresses.is_empty() => {
            Err(Invalid::Address { field: "IPs.ClusterIPs".to_owned(), value })
        }
        _ => Ok(addresses),
    }
}

fn decode_ports(mappings: Vec<localv1::PortMapping>) -> Result<Vec<ServicePort>, Invalid> {
    let ports = mappings.len();
    if ports > usize::from(u16::MAX) + 1 {
        return Err(Invalid::TooManyPorts { ports });
    }
    mappings.into_iter().enumerate().map(|(at, mapping)| decode_port(at, mapping)).collect()
}

fn decode_port(at: usize, mapping: localv1::PortMapping) -> Result<ServicePort, Invalid> {
    let protocol_field = format_args!("Ports[{at}].Protocol");
    let protocol = fields::optional_protocol(protocol_field, mapping.protocol)?
        .ok_or_else(|| Invalid::Missing { field: format!("Ports[{at}].Protocol") })?;
    let number =
        fields::optional_port(format_args!("Ports[{at}].TargetPort"), mapping.target_port)?;
    let target_port = match (fields::name(mapping.target_port_name), number) {
        (Some(name), _) => TargetPort::Name(name),
        (None, Some(number)) => TargetPort::Number(number),
        (None, None) => TargetPort::Unset,
    };
    Ok(ServicePort {
        name: Arc::from(mapping.name),
        protocol,
        port: fields::port(format_args!("Ports[{at}].Port"), mapping.port)?,
        node_port: fields::optional_port(format_args!("Ports[{at}].NodePort"), mapping.node_port)?,
        target_port,
    })
}

/// An impossible timeout is taken as the default, as for Kubernetes' own objects.
fn decode_affinity(affinity: localv1::service::SessionAffinity) -> Duration {
    let localv1::service::SessionAffinity::ClientIp(client_ip) = affinity;
    let seconds = u64::try_from(client_ip.timeout_seconds).unwrap_or(0);
    match seconds {
        1..=MAX_AFFINITY_SECONDS => Duration::from_secs(seconds),
        _ => Service::DEFAULT_AFFINITY_TIMEOUT,
    }
}
