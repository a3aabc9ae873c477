//! The API's objects as they travel, reduced to the fields that the model needs.
//!
//! Each struct is both the protobuf message and the JSON object: tags are those of the
//! `generated.proto` files of k8s.io/api and k8s.io/apimachinery, names their JSON names. Unknown
//! fields are skipped without allocating. Nothing is checked here: whatever decodes is converted,
//! and judged, by [`crate::convert`], so both encodings meet the same rules.

mod json;

use std::collections::BTreeMap;

use prost::Message;
use serde::Deserialize;

/// `meta/v1.ObjectMeta`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ObjectMeta {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(string, tag = "6")]
    pub(crate) resource_version: String,
    #[prost(message, optional, tag = "8")]
    #[serde(deserialize_with = "json::time")]
    pub(crate) creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    #[serde(deserialize_with = "json::time")]
    pub(crate) deletion_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// `meta/v1.Time`. In JSON it is an RFC 3339 string.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Time {
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

/// `meta/v1.ListMeta`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListMeta {
    #[prost(string, tag = "2")]
    pub(crate) resource_version: String,
    /// The token that asks for the next page; empty on the last one.
    #[prost(string, tag = "3")]
    #[serde(rename = "continue")]
    pub(crate) continue_token: String,
}

/// `meta/v1.Status`: what the server says when it refuses.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    #[prost(string, tag = "3")]
    pub(crate) message: String,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
    #[prost(message, optional, tag = "5")]
    pub(crate) details: Option<StatusDetails>,
    #[prost(int32, tag = "6")]
    pub(crate) code: i32,
}

/// `meta/v1.StatusDetails`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusDetails {
    #[prost(int32, tag = "5")]
    pub(crate) retry_after_seconds: i32,
}

/// Any object of which only the metadata is of interest.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct AnyObject {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
}

/// `core/v1.Service`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<ServiceStatus>,
}

/// `core/v1.ServiceSpec`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) ports: Vec<ServicePort>,
    #[prost(string, tag = "3")]
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: String,
    #[prost(string, tag = "4")]
    #[serde(rename = "type")]
    pub(crate) service_type: String,
    #[prost(string, repeated, tag = "5")]
    #[serde(rename = "externalIPs", deserialize_with = "json::or_default")]
    pub(crate) external_ips: Vec<String>,
    #[prost(string, tag = "7")]
    pub(crate) session_affinity: String,
    #[prost(string, repeated, tag = "9")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) load_balancer_source_ranges: Vec<String>,
    #[prost(string, tag = "11")]
    pub(crate) external_traffic_policy: String,
    #[prost(int32, tag = "12")]
    pub(crate) health_check_node_port: i32,
    #[prost(message, optional, tag = "14")]
    pub(crate) session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    #[serde(rename = "clusterIPs", deserialize_with = "json::or_default")]
    pub(crate) cluster_ips: Vec<String>,
    #[prost(string, optional, tag = "22")]
    pub(crate) internal_traffic_policy: Option<String>,
}

/// `core/v1.ServicePort`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServicePort {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) protocol: String,
    #[prost(int32, tag = "3")]
    pub(crate) port: i32,
    #[prost(message, optional, tag = "4")]
    #[serde(deserialize_with = "json::int_or_string")]
    pub(crate) target_port: Option<IntOrString>,
    #[prost(int32, tag = "5")]
    pub(crate) node_port: i32,
}

/// `util/intstr.IntOrString`. In JSON it is a number or a string.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct IntOrString {
    /// 0 for a number, 1 for a string.
    #[prost(int64, tag = "1")]
    pub(crate) kind: i64,
    #[prost(int32, tag = "2")]
    pub(crate) number: i32,
    #[prost(string, tag = "3")]
    pub(crate) string: String,
}

/// `core/v1.SessionAffinityConfig`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "clientIP")]
    pub(crate) client_ip: Option<ClientIpConfig>,
}

/// `core/v1.ClientIPConfig`.
#[derive(Clone, Copy, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    pub(crate) timeout_seconds: Option<i32>,
}

/// `core/v1.ServiceStatus`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    pub(crate) load_balancer: Option<LoadBalancerStatus>,
}

/// `core/v1.LoadBalancerStatus`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) ingress: Vec<LoadBalancerIngress>,
}

/// `core/v1.LoadBalancerIngress`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LoadBalancerIngress {
    #[prost(string, tag = "1")]
    pub(crate) ip: String,
    #[prost(string, optional, tag = "3")]
    pub(crate) ip_mode: Option<String>,
}

/// `discovery/v1.EndpointSlice`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) ports: Vec<EndpointPort>,
    #[prost(string, tag = "4")]
    pub(crate) address_type: String,
}

/// `discovery/v1.Endpoint`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub(crate) conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "3")]
    pub(crate) hostname: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(crate) target_ref: Option<ObjectReference>,
    #[prost(string, optional, tag = "6")]
    pub(crate) node_name: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(crate) zone: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) hints: Option<EndpointHints>,
}

/// `discovery/v1.EndpointConditions`.
#[derive(Clone, Copy, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    pub(crate) ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(crate) serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(crate) terminating: Option<bool>,
}

/// `core/v1.ObjectReference`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct ObjectReference {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

/// `discovery/v1.EndpointHints`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) for_zones: Vec<Named>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) for_nodes: Vec<Named>,
}

/// `discovery/v1.ForZone` and `ForNode`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct Named {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `discovery/v1.EndpointPort`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(crate) port: Option<i32>,
}

/// `core/v1.Node`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(crate) spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    pub(crate) status: Option<NodeStatus>,
}

/// `core/v1.NodeSpec`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    #[prost(string, tag = "1")]
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: String,
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) taints: Vec<Taint>,
    #[prost(string, repeated, tag = "7")]
    #[serde(rename = "podCIDRs", deserialize_with = "json::or_default")]
    pub(crate) pod_cidrs: Vec<String>,
}

/// `core/v1.Taint`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct Taint {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
}

/// `core/v1.NodeStatus`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "json::or_default")]
    pub(crate) addresses: Vec<NodeAddress>,
}

/// `core/v1.NodeAddress`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAddress {
    #[prost(string, tag = "1")]
    #[serde(rename = "type")]
    pub(crate) address_type: String,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
}
