//! From a [`State`] to a file in KPNG's format: the inverse of [`crate::parse`].
//!
//! The text is a function of the state alone. It says everything about Services and Nodes, and of
//! slices what they mean: which number each port of the Service has on each endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use kpng_core::explain::Here;
use kpng_core::model::{
    Conditions, Endpoint, NamespacedName, Node, Protocol, Service, ServicePort, ServiceState,
    ServiceType, SlicePort, TargetPort, TrafficPolicy,
};

use crate::dump_format;
use crate::emit::{self, Fields, Yaml};
use crate::state::State;
use crate::time;

/// Writes `state` in KPNG's format.
///
/// Reading it back gives an equal state, but for slices: their names, how endpoints are distributed
/// over them, and ports that the Service does not have are not written, so slices come back as
/// [`crate::parse`] makes them. A state that was read from KPNG's format comes back equal as a
/// whole. Slices without a Service, which mean nothing, are not written.
pub fn render(state: &State) -> String {
    let mut out = String::new();
    let nodes = state.nodes.iter().map(|(name, node)| render_node(name, node));
    write_section(&mut out, "nodes", nodes);
    let services = state
        .services
        .iter()
        .filter_map(|(key, state)| Some(render_service(key, state.service.as_ref()?, state)));
    write_section(&mut out, "services", services);
    out
}

/// Writes a state exactly, as it is seen from `here`, in pieces: KPNG's format with what a bug report
/// needs beyond it. Reading it gives the same [`State`]; but slices without a Service are not written.
pub fn dump(
    here: Here,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    services: BTreeMap<NamespacedName, Arc<ServiceState>>,
) -> impl Iterator<Item = String> + Send {
    let head = std::iter::once_with(move || {
        let mut head = String::new();
        emit::write_map(&mut head, "seenfrom", dump_format::here_fields(&here));
        let nodes = nodes.iter().map(|(name, node)| render_node(name, node));
        write_section(&mut head, "nodes", nodes);
        head
    });
    let has_service = |(_, state): &(NamespacedName, Arc<ServiceState>)| state.service.is_some();
    let mut services = services.into_iter().filter(has_service).peekable();
    let title = if services.peek().is_some() { "services:\n" } else { "services: []\n" };
    let services = services.filter_map(|(key, state)| dump_service(&key, &state));
    head.chain([title.to_owned()]).chain(services)
}

fn dump_service(key: &NamespacedName, state: &ServiceState) -> Option<String> {
    let mut fields = Fields::default();
    fields.map("service", service_fields(key, state.service.as_ref()?));
    let slices = state.slices.iter().map(|(name, slice)| dump_format::slice_fields(name, slice));
    fields.list("slices", slices);
    let mut out = String::new();
    emit::write_item(&mut out, 0, &fields.into());
    Some(out)
}

fn write_section(out: &mut String, name: &str, items: impl Iterator<Item = Yaml>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return out.push_str(&format!("{name}: []\n"));
    }
    out.push_str(&format!("{name}:\n"));
    items.for_each(|item| emit::write_item(out, 0, &item));
}

fn render_node(name: &Arc<str>, node: &Node) -> Yaml {
    let Node { zone, internal_ips, pod_cidrs, going_away, labels, annotations } = node;
    let mut fields = Fields::default();
    fields.text("name", name);
    fields.strings("labels", labels);
    fields.strings("annotations", annotations);
    fields.map("topology", topology(Some(name), zone.as_ref()));
    fields.flow("internalips", internal_ips.iter().map(|ip| ip.to_canonical().to_string()));
    fields.flow("podcidrs", pod_cidrs.iter().map(ToString::to_string));
    fields.flag("goingaway", *going_away);
    fields.into()
}

fn topology(node: Option<&Arc<str>>, zone: Option<&Arc<str>>) -> Fields {
    let mut fields = Fields::default();
    node.into_iter().for_each(|node| fields.text("node", node));
    zone.into_iter().for_each(|zone| fields.text("zone", zone));
    fields
}

fn render_service(key: &NamespacedName, service: &Service, state: &ServiceState) -> Yaml {
    let mut fields = Fields::default();
    fields.map("service", service_fields(key, service));
    fields.list("endpoints", endpoint_infos(service, state));
    fields.into()
}

fn service_fields(key: &NamespacedName, service: &Service) -> Fields {
    let mut fields = Fields::default();
    fields.text("namespace", &key.namespace);
    fields.text("name", &key.name);
    fields.text("type", service.service_type.name());
    fields.strings("labels", &service.labels);
    fields.strings("annotations", &service.annotations);
    fields.map("ips", service_ips(service));
    fields.list("ports", service.ports.iter().map(service_port));
    fields.flag("externaltraffictolocal", service.external_traffic_policy == TrafficPolicy::Local);
    fields.flag("internaltraffictolocal", service.internal_traffic_policy == TrafficPolicy::Local);
    if let Some(ranges) = &service.load_balancer_source_ranges {
        let mut filter = Fields::default();
        let ranges = ranges.iter().map(|range| Yaml::Text(range.to_string()));
        filter.push("sourceranges", Yaml::Flow(ranges.collect()));
        fields.list("ipfilters", [filter.into()]);
    }
    if let Some(timeout) = service.session_affinity {
        let (mut affinity, mut client_ip) = (Fields::default(), Fields::default());
        let seconds = timeout.as_secs().try_into().unwrap_or(i64::MAX);
        client_ip.push("timeoutseconds", Yaml::Number(seconds));
        affinity.map("clientip", client_ip);
        fields.map("sessionaffinity", affinity);
    }
    fields.number("healthchecknodeport", service.health_check_node_port);
    if let Some(created) = service.created {
        let value = time::format_rfc3339(created).map_or(Yaml::Number(created), Yaml::Text);
        fields.push("created", value);
    }
    fields
}

fn service_ips(service: &Service) -> Fields {
    let mut fields = Fields::default();
    let balancer = &service.load_balancer_ips;
    let proxied = balancer.iter().filter(|ip| ip.proxied).map(|ip| ip.ip);
    fields.addresses("clusterips", service.cluster_ips.iter().copied());
    fields.addresses("externalips", service.external_ips.iter().copied());
    fields.addresses("loadbalancerips", balancer.iter().map(|ip| ip.ip));
    fields.addresses("proxiedips", proxied);
    let headless =
        service.cluster_ips.is_empty() && service.service_type != ServiceType::ExternalName;
    fields.flag("headless", headless);
    fields
}

fn service_port(port: &ServicePort) -> Yaml {
    let mut fields = Fields::default();
    if !port.name.is_empty() {
        fields.text("name", &port.name);
    }
    let protocol = match port.protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Sctp => 3,
    };
    fields.number("protocol", Some(protocol));
    fields.number("port", Some(port.port));
    fields.number("nodeport", port.node_port);
    match &port.target_port {
        TargetPort::Unset => {}
        TargetPort::Number(number) => fields.number("targetport", Some(*number)),
        TargetPort::Name(name) => fields.text("targetportname", name),
    }
    fields.into()
}

/// An endpoint with what each port of its Service is there.
#[derive(PartialEq)]
struct Resolved<'a> {
    endpoint: &'a Endpoint,
    ports: Vec<Option<u16>>,
}

/// All endpoints, the two families of one pod in one entry.
fn endpoint_infos(service: &Service, state: &ServiceState) -> Vec<Yaml> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (_, slice) in &state.slices {
        let number = |port: &ServicePort| {
            let same =
                |other: &&SlicePort| other.name == port.name && other.protocol == port.protocol;
            slice.ports.iter().find(same).map(|port| port.port)
        };
        let ports: Vec<_> = service.ports.iter().map(number).collect();
        for endpoint in &slice.endpoints {
            let list = if endpoint.address.to_canonical().is_ipv4() { &mut v4 } else { &mut v6 };
            list.push(Resolved { endpoint, ports: ports.clone() });
        }
    }
    let mut partners = Partners::of(&v6);
    let mut infos = Vec::with_capacity(v4.len().max(v6.len()));
    for first in &v4 {
        infos.push(endpoint_info(service, first, partners.take(first)));
    }
    let alone = v6.iter().zip(partners.taken).filter(|(_, taken)| !taken);
    infos.extend(alone.map(|(endpoint, _)| endpoint_info(service, endpoint, None)));
    infos
}

/// The IPv6 endpoints of pods, to be joined with the IPv4 endpoints of the same pods.
struct Partners<'a> {
    all: &'a [Resolved<'a>],
    by_pod: BTreeMap<&'a str, Vec<usize>>,
    taken: Vec<bool>,
}

impl<'a> Partners<'a> {
    fn of(all: &'a [Resolved<'a>]) -> Self {
        let mut by_pod: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (index, resolved) in all.iter().enumerate() {
            if let Some(pod) = &resolved.endpoint.pod {
                by_pod.entry(&**pod).or_default().push(index);
            }
        }
        Self { all, by_pod, taken: vec![false; all.len()] }
    }

    /// One that differs from `first` in nothing but the address.
    fn take(&mut self, first: &Resolved<'_>) -> Option<IpAddr> {
        let of_pod = self.by_pod.get(&**first.endpoint.pod.as_ref()?)?;
        let is_partner = |index: &&usize| {
            let other = &self.all[**index];
            let moved = Endpoint { address: other.endpoint.address, ..first.endpoint.clone() };
            !self.taken[**index] && other.ports == first.ports && *other.endpoint == moved
        };
        let index = *of_pod.iter().find(is_partner)?;
        self.taken[index] = true;
        Some(self.all[index].endpoint.address)
    }
}

fn endpoint_info(service: &Service, resolved: &Resolved<'_>, second: Option<IpAddr>) -> Yaml {
    let Resolved { endpoint, ports } = resolved;
    let mut inner = Fields::default();
    endpoint.hostname.iter().for_each(|hostname| inner.text("hostname", hostname));
    inner.addresses("ips", [endpoint.address].into_iter().chain(second));
    let overrides = service.ports.iter().zip(ports);
    inner.list(
        "portoverrides",
        overrides.map(|(port, number)| port_override(service, port, *number)),
    );

    endpoint_fields(endpoint, inner).into()
}

/// Everything about an endpoint; `inner` is what its key `endpoint` says.
pub(crate) fn endpoint_fields(endpoint: &Endpoint, inner: Fields) -> Fields {
    let Conditions { ready, serving, terminating } = endpoint.conditions;
    let mut conditions = Fields::default();
    conditions.push("ready", Yaml::Bool(ready));
    if !(ready && serving) {
        conditions.push("serving", Yaml::Bool(serving));
    }
    conditions.flag("terminating", terminating);

    let mut hints = Fields::default();
    hints.flow("zones", endpoint.zone_hints.iter().map(ToString::to_string));
    hints.flow("nodes", endpoint.node_hints.iter().map(ToString::to_string));

    let mut fields = Fields::default();
    fields.map("endpoint", inner);
    fields.map("conditions", conditions);
    endpoint.pod.iter().for_each(|pod| fields.text("podname", pod));
    fields.map("topology", topology(endpoint.node.as_ref(), endpoint.zone.as_ref()));
    fields.map("hints", hints);
    fields
}

/// Number 0 says that the endpoint does not have the port. The protocol is written only where the
/// name alone does not tell which port is meant: KPNG's own format does not know it here.
fn port_override(service: &Service, port: &ServicePort, number: Option<u16>) -> Yaml {
    let mut fields = Fields::default();
    fields.text("name", &port.name);
    if service.ports.iter().filter(|other| other.name == port.name).count() > 1 {
        fields.text("protocol", port.protocol.name());
    }
    fields.number("port", Some(number.unwrap_or(0)));
    fields.into()
}
