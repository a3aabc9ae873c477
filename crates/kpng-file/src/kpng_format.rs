//! KPNG's state files: `nodes: [Node]` and `services: [{service, endpoints}]`.
//!
//! The keys are those of KPNG's protobuf messages in any mix of upper and lower case: KPNG itself
//! writes lower case, protobuf's JSON writes `ClusterIPs`. An unknown key is a fault. What KPNG's
//! messages cannot say has keys of its own, listed in the crate's documentation.
//!
//! A file says of each endpoint which number each Service port has there. Endpoints that agree on
//! all of them share a slice per family; so slices are a function of what the file says, not of the
//! order in which it does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kpng_core::model::{
    self, Conditions, Endpoint, EndpointSlice, Family, LoadBalancerIp, NamespacedName, Protocol,
    Service, ServicePort, SlicePort, TargetPort, TrafficPolicy,
};

use crate::dump_format;
use crate::kubernetes::service_type;
use crate::parse::Builder;
use crate::values;
use crate::yaml::{Fields, Node, Read, Value};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Reads one document.
pub(crate) fn read<'a>(document: &'a Node, state: &mut Builder) -> Read<'a, ()> {
    let fields = document.strict_object(&["nodes", "services", "seenfrom"])?;
    if let Some(node) = fields.get("seenfrom") {
        state.set_here(node, dump_format::read_here(node)?)?;
    }
    for node in fields.list("nodes")? {
        read_node(node, state)?;
    }
    for node in fields.list("services")? {
        read_service(node, state)?;
    }
    Ok(())
}

fn read_node<'a>(node: &'a Node, state: &mut Builder) -> Read<'a, ()> {
    let fields = node.strict_object(&[
        "name",
        "labels",
        "annotations",
        "topology",
        "internalips",
        "podcidrs",
        "goingaway",
    ])?;
    let name = values::object_name(fields.require("name")?)?;
    let labels = fields.read("labels", values::string_map)?.unwrap_or_default();
    let zone = match fields.read("topology", topology)? {
        Some(topology) => topology.zone,
        None => labels.get(ZONE).filter(|zone| !zone.is_empty()).map(|zone| Arc::from(&**zone)),
    };
    let value = model::Node {
        zone,
        internal_ips: fields.each("internalips", values::address)?,
        pod_cidrs: fields.each("podcidrs", values::network)?,
        going_away: fields.read("goingaway", Node::boolean)?.unwrap_or(false),
        labels,
        annotations: fields.read("annotations", values::string_map)?.unwrap_or_default(),
    };
    state.add_node(node, name.into(), value)
}

#[derive(Default)]
struct Topology {
    node: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

fn topology(node: &Node) -> Read<'_, Topology> {
    let fields = node.strict_object(&["node", "zone"])?;
    Ok(Topology {
        node: fields.text("node")?.map(Arc::from),
        zone: fields.text("zone")?.map(Arc::from),
    })
}

fn read_service<'a>(node: &'a Node, state: &mut Builder) -> Read<'a, ()> {
    let fields = node.strict_object(&["service", "endpoints", "slices"])?;
    let (key, service) = service(fields.require("service")?)?;
    for node in fields.list("slices")? {
        let (name, slice) = dump_format::read_slice(node)?;
        let slice_key = NamespacedName::new(Arc::clone(&key.namespace), name);
        state.add_slice(node, slice_key, Arc::clone(&key.name), slice)?;
    }
    let mut groups = Groups::default();
    for node in fields.list("endpoints")? {
        add_endpoint(node, &service.ports, &mut groups)?;
    }
    for (name, slice) in groups.into_slices(&key.name, &service.ports) {
        let slice_key = NamespacedName::new(Arc::clone(&key.namespace), name);
        state.add_slice(node, slice_key, Arc::clone(&key.name), slice)?;
    }
    state.add_service(node, key, service)
}

fn service(node: &Node) -> Read<'_, (NamespacedName, Service)> {
    let fields = node.strict_object(&[
        "namespace",
        "name",
        "type",
        "ips",
        "mapip",
        "ports",
        "externaltraffictolocal",
        "internaltraffictolocal",
        "labels",
        "annotations",
        "ipfilters",
        "sessionaffinity",
        "clientip",
        "healthchecknodeport",
        "created",
    ])?;
    let namespace = fields.read("namespace", values::object_name)?.unwrap_or("default");
    let key = NamespacedName::new(namespace, values::object_name(fields.require("name")?)?);
    let ips = fields.read("ips", service_ips)?.unwrap_or_default();
    let ports = fields.list("ports")?;
    let policy = |name| {
        let local = fields.read(name, Node::boolean)?.unwrap_or(false);
        Ok(if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster })
    };
    let service = Service {
        service_type: fields.read("type", service_type)?.unwrap_or_default(),
        cluster_ips: ips.cluster,
        external_ips: ips.external,
        load_balancer_ips: ips.load_balancer,
        load_balancer_source_ranges: source_ranges(fields)?,
        ports: ports.iter().map(service_port).collect::<Read<'_, _>>()?,
        internal_traffic_policy: policy("internaltraffictolocal")?,
        external_traffic_policy: policy("externaltraffictolocal")?,
        session_affinity: session_affinity(fields)?,
        health_check_node_port: fields
            .read("healthchecknodeport", values::optional_port)?
            .flatten(),
        labels: fields.read("labels", values::string_map)?.unwrap_or_default(),
        annotations: fields.read("annotations", values::string_map)?.unwrap_or_default(),
        created: fields.read("created", values::timestamp)?,
    };
    values::check_ports(ports, &service.ports)?;
    Ok((key, service))
}

#[derive(Default)]
struct ServiceIps {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    load_balancer: Vec<LoadBalancerIp>,
}

fn service_ips(node: &Node) -> Read<'_, ServiceIps> {
    let fields = node.strict_object(&[
        "clusterips",
        "externalips",
        "loadbalancerips",
        "proxiedips",
        "headless",
    ])?;
    let set = |name| Ok(fields.read(name, ip_set)?.unwrap_or_default());
    let (cluster, balancer, proxied) =
        (set("clusterips")?, set("loadbalancerips")?, set("proxiedips")?);
    if let Some(headless) = fields.get("headless")
        && headless.boolean()?
        && !cluster.is_empty()
    {
        return Err(headless.fault("a headless Service has no cluster IPs: remove one of the two"));
    }
    if let Some(stray) = proxied.iter().find(|ip| !balancer.contains(ip)) {
        return Err(fields.require("proxiedips")?.fault(format!(
            "{stray} is not in \"loadbalancerips\": add it there, proxiedips only marks addresses"
        )));
    }
    let mark = |ip| LoadBalancerIp { ip, proxied: proxied.contains(&ip) };
    Ok(ServiceIps {
        cluster,
        external: set("externalips")?,
        load_balancer: balancer.into_iter().map(mark).collect(),
    })
}

/// `{v4: [...], v6: [...]}`, in the order in which it is written, or a plain list.
fn ip_set(node: &Node) -> Read<'_, Vec<IpAddr>> {
    if matches!(node.value, Value::Sequence(_)) {
        return node.list()?.iter().map(values::address).collect();
    }
    let mut addresses = Vec::new();
    let fields = node.strict_object(&["v4", "v6"])?;
    for (key, _) in node.entries()? {
        let family = if key.name.eq_ignore_ascii_case("v4") { Family::V4 } else { Family::V6 };
        for node in fields.list(&key.name)? {
            let address = values::address(node)?;
            if Family::of(address) != family {
                return Err(node.fault(format!("{address} is no {} address", family.name())));
            }
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn source_ranges(service: Fields<'_>) -> Read<'_, Option<Vec<ipnet::IpNet>>> {
    let filters = service.list("ipfilters")?;
    let mut ranges = Vec::new();
    for filter in filters {
        let fields = filter.strict_object(&["targetips", "sourceranges"])?;
        if let Some(targets) = fields.get("targetips")
            && !ip_set(targets)?.is_empty()
        {
            return Err(targets.fault(
                "source ranges hold for all load balancer IPs of a Service: remove \"targetips\"",
            ));
        }
        ranges.extend(fields.each("sourceranges", values::network)?);
    }
    Ok((!filters.is_empty()).then_some(ranges))
}

/// `sessionaffinity: {clientip: {timeoutseconds: 10}}` as yaml.v2 writes a oneof,
/// `clientip: {timeoutseconds: 10}` as protobuf's JSON does, or `sessionaffinity: ClientIP` as in
/// Kubernetes.
fn session_affinity(service: Fields<'_>) -> Read<'_, Option<Duration>> {
    let direct = service.get("clientip");
    let Some(affinity) = service.get("sessionaffinity") else {
        return direct.map(client_ip).transpose();
    };
    if direct.is_some() {
        return Err(affinity.fault("the affinity is given twice: remove this or \"clientip\""));
    }
    match &affinity.value {
        Value::Text(name) if name == "None" => Ok(None),
        Value::Text(name) if name == "ClientIP" => Ok(Some(Service::DEFAULT_AFFINITY_TIMEOUT)),
        Value::Text(name) => {
            Err(affinity.fault(format!("unknown affinity {name:?}: use None or ClientIP")))
        }
        _ => affinity.strict_object(&["clientip"])?.read("clientip", client_ip),
    }
}

fn client_ip(node: &Node) -> Read<'_, Duration> {
    let timeout = node
        .strict_object(&["timeoutseconds"])?
        .read("timeoutseconds", values::affinity_timeout)?;
    Ok(timeout.unwrap_or(Service::DEFAULT_AFFINITY_TIMEOUT))
}

fn service_port(node: &Node) -> Read<'_, ServicePort> {
    let fields = node.strict_object(&[
        "name",
        "protocol",
        "port",
        "nodeport",
        "targetport",
        "targetportname",
    ])?;
    let number = fields.read("targetport", values::optional_port)?.flatten();
    let target_port = match (fields.text("targetportname")?, number) {
        (Some(name), _) => TargetPort::Name(name.into()),
        (None, Some(number)) => TargetPort::Number(number),
        (None, None) => TargetPort::Unset,
    };
    Ok(ServicePort {
        name: fields.text("name")?.unwrap_or_default().into(),
        protocol: fields.read("protocol", protocol)?.unwrap_or(Protocol::Tcp),
        port: values::port(fields.require("port")?)?,
        node_port: fields.read("nodeport", values::optional_port)?.flatten(),
        target_port,
    })
}

/// A number of KPNG's enum, or its name.
pub(crate) fn protocol(node: &Node) -> Read<'_, Protocol> {
    match &node.value {
        Value::Integer(1) => Ok(Protocol::Tcp),
        Value::Integer(2) => Ok(Protocol::Udp),
        Value::Integer(3) => Ok(Protocol::Sctp),
        Value::Integer(other) => Err(node.fault(format!(
            "unknown protocol {other}: use TCP, UDP or SCTP, or their numbers here, 1, 2 and 3"
        ))),
        _ => values::protocol_name(node),
    }
}

/// The number of a port on one endpoint.
struct Override<'a> {
    name: &'a str,
    /// `None` for any.
    protocol: Option<Protocol>,
    /// `None` when the endpoint does not have this port.
    port: Option<u16>,
}

fn port_overrides(endpoint: Fields<'_>) -> Read<'_, Vec<Override<'_>>> {
    let mut overrides: Vec<Override<'_>> = Vec::new();
    for node in endpoint.list("portoverrides")? {
        let fields = node.strict_object(&["name", "protocol", "port"])?;
        let name = fields.text("name")?.unwrap_or_default();
        let protocol = fields.read("protocol", protocol)?;
        if overrides.iter().any(|other| other.name == name && other.protocol == protocol) {
            return Err(
                node.fault(format!("another override is for the port {name:?}: remove one"))
            );
        }
        overrides.push(Override {
            name,
            protocol,
            port: values::optional_port(fields.require("port")?)?,
        });
    }
    Ok(overrides)
}

/// Which number a Service port has on an endpoint: the override with its name, else the one with
/// the name of its target, else its target's number, else its own.
fn resolve(port: &ServicePort, overrides: &[Override<'_>]) -> Option<u16> {
    let named = |name: &str| {
        overrides
            .iter()
            .find(|o| o.name == name && o.protocol.is_none_or(|protocol| protocol == port.protocol))
    };
    if let Some(found) = named(&port.name) {
        return found.port;
    }
    match &port.target_port {
        TargetPort::Unset => Some(port.port),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => named(name).map_or(Some(port.port), |found| found.port),
    }
}

fn add_endpoint<'a>(
    node: &'a Node,
    service_ports: &[ServicePort],
    groups: &mut Groups,
) -> Read<'a, ()> {
    let (fields, endpoints) = endpoints(node)?;
    let overrides = port_overrides(fields)?;
    let ports: Vec<_> = service_ports.iter().map(|port| resolve(port, &overrides)).collect();
    for endpoint in endpoints {
        groups.0.entry((Family::of(endpoint.address), ports.clone())).or_default().push(endpoint);
    }
    Ok(())
}

/// One endpoint for each address that is given, and where the rest is written.
pub(crate) fn endpoints(node: &Node) -> Read<'_, (Fields<'_>, Vec<Endpoint>)> {
    // The first four are copies of what is said elsewhere.
    let info = node.strict_object(&[
        "hash",
        "namespace",
        "sourcename",
        "servicename",
        "endpoint",
        "conditions",
        "podname",
        "topology",
        "hints",
    ])?;
    // "local" and "scopes" are one node's view, which is not what this file is about.
    let fields = info.require("endpoint")?.strict_object(&[
        "hostname",
        "ips",
        "local",
        "portoverrides",
        "scopes",
    ])?;
    let addresses = fields.read("ips", ip_set)?.unwrap_or_default();
    if addresses.is_empty() {
        return Err(info
            .require("endpoint")?
            .fault("the endpoint has no address: give it \"ips\""));
    }
    let topology = info.read("topology", topology)?.unwrap_or_default();
    let hints = info.read("hints", hints)?.unwrap_or_default();
    let mut endpoints = Vec::with_capacity(addresses.len());
    for address in addresses {
        endpoints.push(Endpoint {
            address,
            conditions: info.read("conditions", conditions)?.unwrap_or(Conditions::READY),
            node: topology.node.clone(),
            zone: topology.zone.clone(),
            zone_hints: hints.0.clone(),
            node_hints: hints.1.clone(),
            hostname: fields.text("hostname")?.map(Box::from),
            pod: info.text("podname")?.map(Box::from),
        });
    }
    Ok((fields, endpoints))
}

fn conditions(node: &Node) -> Read<'_, Conditions> {
    let fields = node.strict_object(&["ready", "serving", "terminating"])?;
    let get = |name| fields.read(name, Node::boolean);
    Ok(Conditions::from_api(get("ready")?, get("serving")?, get("terminating")?))
}

type Names = Box<[Arc<str>]>;

fn hints(node: &Node) -> Read<'_, (Names, Names)> {
    let fields = node.strict_object(&["zones", "nodes"])?;
    let names = |name| {
        let mut names = fields.each(name, |node| node.text().map(Arc::<str>::from))?;
        names.sort_unstable();
        Ok(names.into())
    };
    Ok((names("zones")?, names("nodes")?))
}

/// The endpoints of one Service by family and by the number that each Service port has there.
#[derive(Default)]
struct Groups(BTreeMap<(Family, Vec<Option<u16>>), Vec<Endpoint>>);

impl Groups {
    /// With names like `web-v4-1`, numbered per family.
    fn into_slices(
        self,
        service: &str,
        service_ports: &[ServicePort],
    ) -> Vec<(String, EndpointSlice)> {
        let mut slices = Vec::with_capacity(self.0.len());
        let (mut number, mut previous) = (0, None);
        for ((family, numbers), mut endpoints) in self.0 {
            number = if previous == Some(family) { number + 1 } else { 1 };
            previous = Some(family);
            endpoints.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
            let port = |(port, number): (&ServicePort, Option<u16>)| {
                let (name, protocol) = (Arc::clone(&port.name), port.protocol);
                number.map(|port| SlicePort { name, protocol, port })
            };
            let ports = service_ports.iter().zip(numbers).filter_map(port).collect();
            let name = format!("{service}-{}-{number}", family_name(family));
            slices.push((name, EndpointSlice { endpoints, ports }));
        }
        slices
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

/// Everything about an endpoint, the address first.
fn sort_key(endpoint: &Endpoint) -> impl Ord + '_ {
    let Endpoint { address, conditions, node, zone, zone_hints, node_hints, hostname, pod } =
        endpoint;
    let Conditions { ready, serving, terminating } = *conditions;
    (address, pod, hostname, node, zone, zone_hints, node_hints, (ready, serving, terminating))
}
