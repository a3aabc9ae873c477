//! The flags of `to-ipvs`, by kube-proxy's names and KPNG's.

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use ipnet::IpNet;

use super::BackendArgs;
use crate::cli::LocalArgs;
use crate::cli::values::{List, cidr_list, duration};

/// Flags of `to-ipvs`.
#[derive(Clone, Debug, Args)]
pub struct IpvsArgs {
    /// Those of every backend.
    #[command(flatten)]
    pub common: BackendArgs,
    /// How endpoints are chosen; services with affinity use mh
    #[arg(
        long,
        visible_alias = "scheduling-method",
        default_value = "rr",
        value_parser = PossibleValuesParser::new(kpng_ipvs::SCHEDULERS),
        value_name = "SCHEDULER"
    )]
    pub ipvs_scheduler: String,
    /// Weight of each endpoint
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..65_536), value_name = "N")]
    pub weight: u32,
    /// How long an endpoint that goes keeps its connections at most
    #[arg(long, value_parser = duration, default_value = "15m", value_name = "TIME")]
    pub graceful_timeout: Duration,
    /// Do not answer ARP for virtual addresses [arp_ignore=1, arp_announce=2]
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub ipvs_strict_arp: bool,
    /// Timeout of idle TCP connections; 0 leaves it as it is
    #[arg(long, value_parser = duration, default_value = "0s", value_name = "TIME")]
    pub ipvs_tcp_timeout: Duration,
    /// Timeout of TCP connections of which one side has ended; 0 leaves it as it is
    #[arg(long, value_parser = duration, default_value = "0s", value_name = "TIME")]
    pub ipvs_tcpfin_timeout: Duration,
    /// Timeout of UDP flows; 0 leaves it as it is
    #[arg(long, value_parser = duration, default_value = "0s", value_name = "TIME")]
    pub ipvs_udp_timeout: Duration,
    /// Never touch virtual services at these addresses
    #[arg(long, value_parser = cidr_list, value_name = "CIDRS")]
    pub ipvs_exclude_cidrs: Option<List<IpNet>>,
}

impl IpvsArgs {
    /// The configuration that these flags say.
    pub(super) fn config(&self, local: &LocalArgs) -> kpng_ipvs::Config {
        let timeout = |timeout: Duration| (!timeout.is_zero()).then_some(timeout);
        kpng_ipvs::Config {
            scheduler: self.ipvs_scheduler.clone(),
            weight: self.weight,
            graceful_timeout: self.graceful_timeout,
            timeouts: kpng_linux::ipvs::Timeouts {
                tcp: timeout(self.ipvs_tcp_timeout),
                tcp_fin: timeout(self.ipvs_tcpfin_timeout),
                udp: timeout(self.ipvs_udp_timeout),
            },
            strict_arp: self.ipvs_strict_arp,
            exclude_cidrs: self.ipvs_exclude_cidrs.clone().map(|list| list.0).unwrap_or_default(),
            take_over: self.common.replace_kube_proxy,
            masquerade_bit: self.common.masquerade_bit,
            conntrack_be_liberal: local.conntrack.conntrack_be_liberal,
        }
    }
}
