//! Flags that say what a node knows of itself.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::values::{List, NodePortAddresses, address_list, cidr_list};

/// What a node is told about itself.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Name of this node in the cluster [default: the host name]
    #[arg(long, visible_alias = "hostname-override", global = true, value_name = "NAME")]
    pub node_name: Option<String>,
    /// This node's own addresses, at most one per family [default: of its Node object, then of its
    /// default routes]
    #[arg(long, global = true, value_parser = address_list, value_name = "IPS")]
    pub bind_address: Option<List<IpAddr>>,
    /// How packets from pods are told from others [default: cluster-cidr with --cluster-cidrs, else
    /// none]
    #[arg(long, global = true, value_enum, ignore_case = true, value_name = "MODE")]
    pub detect_local_mode: Option<DetectLocalMode>,
    /// Where all pods of the cluster have their addresses
    #[arg(long, visible_alias = "cluster-cidr", global = true, value_parser = cidr_list, value_name = "CIDRS")]
    pub cluster_cidrs: Option<List<IpNet>>,
    /// The bridge that pods are on, for --detect-local-mode=bridge-interface
    #[arg(long, global = true, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// How names of pods' interfaces start, for --detect-local-mode=interface-name-prefix
    #[arg(long, global = true, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Where Services have their addresses: packets to unallocated ones are dropped
    #[arg(long, visible_alias = "service-cluster-ip-range", global = true, value_parser = cidr_list, value_name = "CIDRS")]
    pub service_cidrs: Option<List<IpNet>>,
    /// Addresses on which node ports are served: `primary`, `all`, or CIDRs
    #[arg(long, global = true, default_value = "primary", value_name = "WHERE")]
    pub nodeport_addresses: NodePortAddresses,
    /// Serve node ports on 127.0.0.1 too
    #[arg(
        long,
        visible_alias = "iptables-localhost-nodeports",
        global = true,
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL"
    )]
    pub localhost_nodeports: bool,
    /// Masquerade everything that goes to cluster IPs
    #[arg(long, global = true, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub masquerade_all: bool,
}

/// `--detect-local-mode`, by kube-proxy's names too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DetectLocalMode {
    /// By --cluster-cidrs.
    #[value(alias = "ClusterCIDR")]
    ClusterCidr,
    /// By the pod CIDRs of this node's Node object.
    #[value(alias = "NodeCIDR")]
    NodeCidr,
    /// By --pod-bridge-interface.
    #[value(alias = "BridgeInterface")]
    BridgeInterface,
    /// By --pod-interface-name-prefix.
    #[value(alias = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// Not at all.
    None,
}
