//! `to-json`: one line of JSON for each service whose local view changed.
//!
//! A line holds a service with everything that belongs to it, so it can be acted on by itself; a
//! service that is gone has `"Deleted": true`. Field names are those of KPNG's messages in Go.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kpng_core::local::{LocalEndpoint, LocalService, LocalView, Localize};
use kpng_core::model::{NamespacedName, Service, ServiceState, TargetPort, TrafficPolicy};
use kpng_core::store::{Reader, Update};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Writes lines to `out` until `shutdown` completes, or the source is gone. Who reads slowly gets
/// each service once, in its last state.
///
/// # Errors
/// When `out` cannot be written.
pub async fn run<V: Localize>(
    mut reader: Reader<V>,
    node: Arc<str>,
    out: &mut (impl AsyncWrite + Unpin),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut lines = Lines::new(node);
    tokio::pin!(shutdown);
    loop {
        let update = tokio::select! {
            () = &mut shutdown => return Ok(()),
            update = reader.next() => update,
        };
        let Some(update) = update else { return Ok(()) };
        let text = lines.of(&update);
        out.write_all(text.as_bytes()).await?;
        out.flush().await?;
    }
}

/// Makes lines of updates, and only of what looks different from this node.
pub struct Lines<V = ServiceState> {
    view: LocalView<V>,
    /// The hash of the last line of each service.
    written: HashMap<NamespacedName, u64>,
    hasher: RandomState,
}

impl<V: Localize> Lines<V> {
    /// Nothing is written yet; `node` is the node from which services are seen.
    pub fn new(node: Arc<str>) -> Self {
        Self { view: LocalView::new(node), written: HashMap::new(), hasher: RandomState::new() }
    }

    /// The lines for what an update changed, each with its newline.
    pub fn of(&mut self, update: &Update<V>) -> String {
        let mut out = String::new();
        for key in self.view.update(update) {
            let Some(local) = self.view.get(&key) else {
                if self.written.remove(&key).is_some() {
                    push(&mut out, &deleted_line(&key));
                }
                continue;
            };
            let line = line(&local);
            let hash = self.hasher.hash_one(&line);
            if self.written.insert(key, hash) != Some(hash) {
                push(&mut out, &line);
            }
        }
        out
    }
}

fn push(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// The line of a service.
pub fn line(local: &LocalService) -> String {
    let service = &*local.service;
    let endpoints = local.endpoints.iter().map(|e| EndpointJson::new(e, service)).collect();
    let line = Line { service: ServiceJson::new(&local.key, service), endpoints, deleted: false };
    serde_json::to_string(&line).expect("plain values have a JSON form")
}

fn deleted_line(key: &NamespacedName) -> String {
    let nothing = Service::default();
    let line =
        Line { service: ServiceJson::new(key, &nothing), endpoints: Vec::new(), deleted: true };
    serde_json::to_string(&line).expect("plain values have a JSON form")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    service: ServiceJson<'a>,
    endpoints: Vec<EndpointJson<'a>>,
    #[serde(skip_serializing_if = "is_false")]
    deleted: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceJson<'a> {
    namespace: &'a str,
    name: &'a str,
    r#type: &'static str,
    #[serde(rename = "IPs")]
    ips: ServiceIps,
    ports: Vec<PortJson<'a>>,
    external_traffic_to_local: bool,
    internal_traffic_to_local: bool,
    #[serde(rename = "IPFilters")]
    ip_filters: Vec<IpFilter>,
    #[serde(rename = "ClientIP", skip_serializing_if = "Option::is_none")]
    client_ip: Option<ClientIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check_node_port: Option<u16>,
    labels: &'a BTreeMap<Box<str>, Box<str>>,
    annotations: &'a BTreeMap<Box<str>, Box<str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceIps {
    #[serde(rename = "ClusterIPs")]
    cluster_ips: IpSet,
    #[serde(rename = "ExternalIPs")]
    external_ips: IpSet,
    #[serde(rename = "LoadBalancerIPs")]
    load_balancer_ips: IpSet,
}

#[derive(Serialize)]
struct IpSet {
    #[serde(rename = "V4")]
    v4: Vec<IpAddr>,
    #[serde(rename = "V6")]
    v6: Vec<IpAddr>,
}

impl IpSet {
    fn new(ips: impl Iterator<Item = IpAddr>) -> Self {
        let (v4, v6) = ips.partition(IpAddr::is_ipv4);
        Self { v4, v6 }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpFilter {
    source_ranges: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ClientIp {
    timeout_seconds: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortJson<'a> {
    name: &'a str,
    protocol: &'static str,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_port_name: Option<&'a str>,
}

fn filter(ranges: &[IpNet]) -> IpFilter {
    IpFilter { source_ranges: ranges.iter().map(IpNet::to_string).collect() }
}

impl<'a> ServiceJson<'a> {
    fn new(key: &'a NamespacedName, service: &'a Service) -> Self {
        let captured = service.load_balancer_ips.iter().filter(|ip| !ip.proxied).map(|ip| ip.ip);
        let ports = service.ports.iter().map(|port| PortJson {
            name: &port.name,
            protocol: port.protocol.name(),
            port: port.port,
            node_port: port.node_port,
            target_port: match &port.target_port {
                TargetPort::Number(number) => Some(*number),
                _ => None,
            },
            target_port_name: match &port.target_port {
                TargetPort::Name(name) => Some(name),
                _ => None,
            },
        });
        let ranges = service.load_balancer_source_ranges.as_deref();
        Self {
            namespace: &key.namespace,
            name: &key.name,
            r#type: service.service_type.name(),
            ips: ServiceIps {
                cluster_ips: IpSet::new(service.cluster_ips.iter().copied()),
                external_ips: IpSet::new(service.external_ips.iter().copied()),
                load_balancer_ips: IpSet::new(captured),
            },
            ports: ports.collect(),
            external_traffic_to_local: service.external_traffic_policy == TrafficPolicy::Local,
            internal_traffic_to_local: service.internal_traffic_policy == TrafficPolicy::Local,
            ip_filters: ranges.map(filter).into_iter().collect(),
            client_ip: service
                .session_affinity
                .map(|timeout| ClientIp { timeout_seconds: timeout.as_secs() }),
            health_check_node_port: service.health_check_node_port,
            labels: &service.labels,
            annotations: &service.annotations,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointJson<'a> {
    #[serde(rename = "IPs")]
    ips: IpSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    ports: Vec<EndpointPortJson<'a>>,
}

/// A port of an endpoint, and for which of the Service's policies it may be used on this node.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointPortJson<'a> {
    name: &'a str,
    protocol: &'static str,
    port: u16,
    in_cluster_list: bool,
    in_local_list: bool,
}

impl<'a> EndpointJson<'a> {
    fn new(endpoint: &'a LocalEndpoint, service: &'a Service) -> Self {
        let ports = endpoint.ports.iter().map(|port| {
            let of = &service.ports[usize::from(port.service_port)];
            EndpointPortJson {
                name: &of.name,
                protocol: of.protocol.name(),
                port: port.port,
                in_cluster_list: port.in_cluster_list,
                in_local_list: port.in_local_list,
            }
        });
        Self {
            ips: IpSet::new(std::iter::once(endpoint.address)),
            hostname: endpoint.hostname.as_deref(),
            pod_name: endpoint.pod.as_deref(),
            local: endpoint.local,
            ready: endpoint.conditions.ready,
            serving: endpoint.conditions.serving,
            terminating: endpoint.conditions.terminating,
            ports: ports.collect(),
        }
    }
}
