//! Kubernetes manifests: Service, EndpointSlice, Endpoints and Node objects, and lists of them.
//!
//! The rules are those of the API and of a proxy that watches it. Fields that a proxy does not need
//! are not looked at, objects of other kinds are skipped.

use std::sync::Arc;
use std::time::Duration;

use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, Family, LoadBalancerIp, NamespacedName, Protocol, Service,
    ServicePort, ServiceType, SlicePort, TargetPort, TrafficPolicy,
};

use crate::parse::{Builder, Options};
use crate::values::{self, StringMap};
use crate::yaml::{Fields, Node, Read, Value};

/// Marks Services (and, mirrored, their slices) that another proxy implements (KEP-2447).
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Marks Services without cluster IPs and their slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// A taint: the node is about to go.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// kubectl's copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Reads an object or a list of objects.
pub(crate) fn read<'a>(node: &'a Node, options: &Options, state: &mut Builder) -> Read<'a, ()> {
    let fields = node.object()?;
    let kind = fields.require("kind")?.text()?;
    let version = fields.require("apiVersion")?.text()?;
    match kind.strip_suffix("List") {
        Some(item_kind) => {
            for item in fields.list("items")? {
                let item_fields = item.object()?;
                if item_fields.get("kind").is_some() || item_kind.is_empty() {
                    read(item, options, state)?;
                } else {
                    // Items of a typed list need not repeat what they are.
                    read_object(item, version, item_kind, options, state)?;
                }
            }
            Ok(())
        }
        None => read_object(node, version, kind, options, state),
    }
}

fn read_object<'a>(
    node: &'a Node,
    version: &str,
    kind: &str,
    options: &Options,
    state: &mut Builder,
) -> Read<'a, ()> {
    match (version, kind) {
        ("v1", "Service") => read_service(node, options, state),
        ("v1", "Endpoints") => read_endpoints(node, options, state),
        ("v1", "Node") => read_node(node, state),
        ("discovery.k8s.io/v1", "EndpointSlice") => read_slice(node, options, state),
        (_, "EndpointSlice") => {
            let advice = "write it as discovery.k8s.io/v1";
            Err(node.fault(format!("unsupported version {version:?} of EndpointSlice: {advice}")))
        }
        _ => {
            tracing::debug!(version, kind, line = node.line, "skipped an object of a foreign kind");
            Ok(())
        }
    }
}

/// `metadata` of an object.
struct Metadata<'a> {
    fields: Fields<'a>,
    name: &'a str,
    labels: Option<Fields<'a>>,
}

impl<'a> Metadata<'a> {
    fn of(object: Fields<'a>) -> Read<'a, Self> {
        let fields = object.require("metadata")?.object()?;
        let name = values::object_name(fields.require("name")?)?;
        Ok(Self { fields, name, labels: fields.read("labels", Node::object)? })
    }

    fn key(&self) -> Read<'a, NamespacedName> {
        let namespace = self.fields.read("namespace", values::object_name)?;
        Ok(NamespacedName::new(namespace.unwrap_or("default"), self.name))
    }

    /// A label that is not empty.
    fn label(&self, name: &str) -> Read<'a, Option<&'a str>> {
        self.labels.map_or(Ok(None), |labels| labels.text(name))
    }

    fn labels(&self) -> Read<'a, StringMap> {
        Ok(self.fields.read("labels", values::string_map)?.unwrap_or_default())
    }

    fn annotations(&self) -> Read<'a, StringMap> {
        let annotations = self.fields.read("annotations", values::string_map)?;
        let mut annotations = annotations.unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        Ok(annotations)
    }

    /// It is for this proxy and no headless Service's.
    fn is_ours(&self, options: &Options) -> Read<'a, bool> {
        let headless = self.labels.is_some_and(|labels| labels.get(HEADLESS).is_some());
        let ours = options.service_proxy_name.as_deref().filter(|name| !name.is_empty());
        let theirs =
            self.labels.map_or(Ok(None), |labels| labels.read(SERVICE_PROXY_NAME, Node::text));
        Ok(!headless && theirs? == ours)
    }
}

fn read_service<'a>(node: &'a Node, options: &Options, state: &mut Builder) -> Read<'a, ()> {
    let object = node.object()?;
    let metadata = Metadata::of(object)?;
    let key = metadata.key()?;
    let spec = object.require("spec")?.object()?;
    let service_type = match spec.get("type") {
        None => ServiceType::default(),
        Some(node) => service_type(node)?,
    };
    let headless = cluster_ip_texts(spec)?.iter().any(|node| is_none(node));
    if !metadata.is_ours(options)? || headless || service_type == ServiceType::ExternalName {
        return Ok(());
    }
    let ports = spec.list("ports")?;
    let ranges = spec.each("loadBalancerSourceRanges", values::network)?;
    let service = Service {
        service_type,
        cluster_ips: cluster_ip_texts(spec)?
            .into_iter()
            .map(values::address)
            .collect::<Read<'_, _>>()?,
        external_ips: spec.each("externalIPs", values::address)?,
        load_balancer_ips: load_balancer_ips(object)?,
        load_balancer_source_ranges: (!ranges.is_empty()).then_some(ranges),
        ports: ports.iter().map(service_port).collect::<Read<'_, _>>()?,
        internal_traffic_policy: policy(spec, "internalTrafficPolicy")?,
        external_traffic_policy: policy(spec, "externalTrafficPolicy")?,
        session_affinity: session_affinity(spec)?,
        health_check_node_port: spec.read("healthCheckNodePort", values::optional_port)?.flatten(),
        labels: metadata.labels()?,
        annotations: metadata.annotations()?,
        created: metadata.fields.read("creationTimestamp", values::timestamp)?,
    };
    values::check_ports(ports, &service.ports)?;
    if service.cluster_ips.is_empty() {
        tracing::warn!(
            service = %key,
            "the manifest has no spec.clusterIP, and nobody allocates one for a file: the Service \
             has no cluster IP",
        );
    }
    state.add_service(node, key, service)
}

/// `spec.clusterIPs`, or `spec.clusterIP` when it is missing.
fn cluster_ip_texts(spec: Fields<'_>) -> Read<'_, Vec<&Node>> {
    let many: Vec<&Node> = spec.list("clusterIPs")?.iter().collect();
    let one =
        spec.get("clusterIP").filter(|node| !matches!(&node.value, Value::Text(t) if t.is_empty()));
    Ok(if many.is_empty() { one.into_iter().collect() } else { many })
}

fn is_none(node: &Node) -> bool {
    matches!(&node.value, Value::Text(text) if text == "None")
}

pub(crate) fn service_type(node: &Node) -> Read<'_, ServiceType> {
    let name = node.text()?;
    ServiceType::from_name(name).ok_or_else(|| {
        node.fault(format!(
            "unknown type {name:?}: the types are ClusterIP, NodePort, LoadBalancer and ExternalName"
        ))
    })
}

fn load_balancer_ips(object: Fields<'_>) -> Read<'_, Vec<LoadBalancerIp>> {
    let status = object.read("status", Node::object)?;
    let balancer =
        status.and_then(|status| status.get("loadBalancer")).map(Node::object).transpose()?;
    let Some(balancer) = balancer else { return Ok(Vec::new()) };
    let mut ips = Vec::new();
    for ingress in balancer.list("ingress")? {
        let ingress = ingress.object()?;
        // Some load balancers have a host name and no address.
        if ingress.text("ip")?.is_none() {
            continue;
        }
        let ip = values::address(ingress.require("ip")?)?;
        let proxied = match ingress.get("ipMode") {
            None => false,
            Some(mode) => match mode.text()? {
                "VIP" => false,
                "Proxy" => true,
                other => {
                    return Err(mode.fault(format!("unknown ipMode {other:?}: use VIP or Proxy")));
                }
            },
        };
        ips.push(LoadBalancerIp { ip, proxied });
    }
    Ok(ips)
}

fn service_port(node: &Node) -> Read<'_, ServicePort> {
    let fields = node.object()?;
    Ok(ServicePort {
        name: fields.text("name")?.unwrap_or_default().into(),
        protocol: fields.read("protocol", values::protocol_name)?.unwrap_or(Protocol::Tcp),
        port: values::port(fields.require("port")?)?,
        node_port: fields.read("nodePort", values::optional_port)?.flatten(),
        target_port: fields.read("targetPort", target_port)?.unwrap_or_default(),
    })
}

fn target_port(node: &Node) -> Read<'_, TargetPort> {
    match &node.value {
        Value::Text(name) if name.is_empty() => Ok(TargetPort::Unset),
        Value::Text(name) => Ok(TargetPort::Name(name.as_str().into())),
        _ => Ok(values::optional_port(node)?.map_or(TargetPort::Unset, TargetPort::Number)),
    }
}

fn policy<'a>(spec: Fields<'a>, name: &str) -> Read<'a, TrafficPolicy> {
    let Some(node) = spec.get(name) else { return Ok(TrafficPolicy::Cluster) };
    match node.text()? {
        "" | "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => Err(node.fault(format!("unknown policy {other:?}: use Cluster or Local"))),
    }
}

fn session_affinity(spec: Fields<'_>) -> Read<'_, Option<Duration>> {
    let Some(node) = spec.get("sessionAffinity") else { return Ok(None) };
    match node.text()? {
        "" | "None" => return Ok(None),
        "ClientIP" => {}
        other => {
            return Err(node.fault(format!("unknown affinity {other:?}: use None or ClientIP")));
        }
    }
    let config = spec.read("sessionAffinityConfig", Node::object)?;
    let client_ip =
        config.and_then(|config| config.get("clientIP")).map(Node::object).transpose()?;
    let timeout = client_ip.and_then(|client_ip| client_ip.get("timeoutSeconds"));
    let timeout = timeout.map(values::affinity_timeout).transpose()?;
    Ok(Some(timeout.unwrap_or(Service::DEFAULT_AFFINITY_TIMEOUT)))
}

fn read_slice<'a>(node: &'a Node, options: &Options, state: &mut Builder) -> Read<'a, ()> {
    let object = node.object()?;
    let metadata = Metadata::of(object)?;
    let key = metadata.key()?;
    let address_type = object.require("addressType")?;
    let family = match address_type.text()? {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return Ok(()),
        other => {
            let advice = "the types are IPv4, IPv6 and FQDN";
            return Err(address_type.fault(format!("unknown address type {other:?}: {advice}")));
        }
    };
    let Some(service) = metadata.label(SERVICE_NAME)? else {
        tracing::debug!(slice = %key, "skipped an EndpointSlice without the label {SERVICE_NAME}");
        return Ok(());
    };
    if !metadata.is_ours(options)? {
        return Ok(());
    }
    let endpoints = object.each("endpoints", |node| slice_endpoint(node, family))?;
    let slice = EndpointSlice { endpoints, ports: slice_ports(object)? };
    state.add_slice(node, key, service, slice)
}

fn slice_endpoint(node: &Node, family: Family) -> Read<'_, Endpoint> {
    let fields = node.object()?;
    // Only the first address counts: the API says of the others that they are fungible.
    let [first, ..] = fields.require("addresses")?.list()? else {
        return Err(node.fault("the endpoint has no address: give one in \"addresses\""));
    };
    let address = values::address(first)?;
    if Family::of(address) != family {
        let family = family.name();
        return Err(first.fault(format!("{address} is no address of the slice's type {family}")));
    }
    let conditions = fields.read("conditions", Node::object)?;
    let condition =
        |name| conditions.map_or(Ok(None), |conditions| conditions.read(name, Node::boolean));
    let hints = fields.read("hints", Node::object)?;
    let hints_for = |name| hints.map(|hints| hint_names(hints, name)).transpose();
    Ok(Endpoint {
        address,
        conditions: Conditions::from_api(
            condition("ready")?,
            condition("serving")?,
            condition("terminating")?,
        ),
        node: fields.text("nodeName")?.map(Arc::from),
        zone: fields.text("zone")?.map(Arc::from),
        zone_hints: hints_for("forZones")?.unwrap_or_default(),
        node_hints: hints_for("forNodes")?.unwrap_or_default(),
        hostname: fields.text("hostname")?.map(Box::from),
        pod: pod_name(fields)?,
    })
}

fn hint_names<'a>(hints: Fields<'a>, name: &str) -> Read<'a, Box<[Arc<str>]>> {
    let mut names =
        hints.each(name, |hint| hint.object()?.require("name")?.text().map(Arc::<str>::from))?;
    names.sort_unstable();
    Ok(names.into())
}

fn pod_name(endpoint: Fields<'_>) -> Read<'_, Option<Box<str>>> {
    let Some(target) = endpoint.read("targetRef", Node::object)? else { return Ok(None) };
    let is_pod = target.text("kind")? == Some("Pod");
    Ok(target.text("name")?.filter(|_| is_pod).map(Box::from))
}

fn slice_ports(object: Fields<'_>) -> Read<'_, Vec<SlicePort>> {
    let mut ports = Vec::new();
    for node in object.list("ports")? {
        let fields = node.object()?;
        // A port without a number stands for all ports: nothing that a Service port refers to.
        let Some(port) = fields.read("port", values::port)? else { continue };
        ports.push(SlicePort {
            name: fields.text("name")?.unwrap_or_default().into(),
            protocol: fields.read("protocol", values::protocol_name)?.unwrap_or(Protocol::Tcp),
            port,
        });
    }
    Ok(ports)
}

/// An object of the old kind Endpoints, as the slices that the control plane would mirror it to.
fn read_endpoints<'a>(node: &'a Node, options: &Options, state: &mut Builder) -> Read<'a, ()> {
    let object = node.object()?;
    let metadata = Metadata::of(object)?;
    let key = metadata.key()?;
    if !metadata.is_ours(options)? {
        return Ok(());
    }
    let mut slices = Vec::new();
    for (index, subset) in object.list("subsets")?.iter().enumerate() {
        let subset = subset.object()?;
        let ports = slice_ports(subset)?;
        let mut endpoints = subset.each("addresses", |node| subset_endpoint(node, true))?;
        endpoints.extend(subset.each("notReadyAddresses", |node| subset_endpoint(node, false))?);
        for family in Family::ALL {
            let of_family = |endpoint: &&Endpoint| Family::of(endpoint.address) == family;
            let endpoints: Vec<_> = endpoints.iter().filter(of_family).cloned().collect();
            if !endpoints.is_empty() {
                // No slice of the API can have this name.
                let name = format!("{}:endpoints-{index}-{}", key.name, family.name());
                let slice = EndpointSlice { endpoints, ports: ports.clone() };
                slices.push((name.into(), Arc::new(slice)));
            }
        }
    }
    state.add_endpoints(node, key, slices)
}

fn subset_endpoint(node: &Node, ready: bool) -> Read<'_, Endpoint> {
    let fields = node.object()?;
    Ok(Endpoint {
        conditions: Conditions::from_api(Some(ready), Some(ready), None),
        node: fields.text("nodeName")?.map(Arc::from),
        hostname: fields.text("hostname")?.map(Box::from),
        pod: pod_name(fields)?,
        ..Endpoint::at(values::address(fields.require("ip")?)?)
    })
}

fn read_node<'a>(node: &'a Node, state: &mut Builder) -> Read<'a, ()> {
    let object = node.object()?;
    let metadata = Metadata::of(object)?;
    let spec = object.read("spec", Node::object)?;
    let status = object.read("status", Node::object)?;

    let mut internal_ips = Vec::new();
    for address in status.map_or(Ok(&[][..]), |status| status.list("addresses"))? {
        let address = address.object()?;
        if address.text("type")? == Some("InternalIP") {
            internal_ips.push(values::address(address.require("address")?)?);
        }
    }
    let mut pod_cidrs = spec.map_or(Ok(Vec::new()), |s| s.each("podCIDRs", values::network))?;
    if let Some(spec) = spec
        && pod_cidrs.is_empty()
        && spec.text("podCIDR")?.is_some()
    {
        pod_cidrs.extend(spec.read("podCIDR", values::network)?);
    }
    let mut going_away = metadata.fields.get("deletionTimestamp").is_some();
    for taint in spec.map_or(Ok(&[][..]), |spec| spec.list("taints"))? {
        going_away |= taint.object()?.text("key")? == Some(TO_BE_DELETED);
    }
    let value = kpng_core::model::Node {
        zone: metadata.label(ZONE)?.map(Arc::from),
        internal_ips,
        pod_cidrs,
        going_away,
        labels: metadata.labels()?,
        annotations: metadata.annotations()?,
    };
    state.add_node(node, metadata.name.into(), value)
}
