//! How the data path is built, beside what the plan says.

use std::time::Duration;

use ipnet::IpNet;
use kpng_linux::ipvs::{ServiceKey, Timeouts};

use crate::ledger::Rules;

/// The schedulers that can be chosen, by the kernel's names.
pub const SCHEDULERS: [&str; 8] = ["rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq"];

/// How the data path is built, beside what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The scheduler of services without affinity, one of [`SCHEDULERS`].
    pub scheduler: String,
    /// The weight of each endpoint, not 0.
    pub weight: u32,
    /// How long an endpoint that is not wanted any more keeps its connections at most.
    pub graceful_timeout: Duration,
    /// How long IPVS remembers connections without packets.
    pub timeouts: Timeouts,
    /// Do not answer ARP for virtual addresses, nor announce them: needed where others do (MetalLB).
    pub strict_arp: bool,
    /// Virtual services at these addresses are never touched.
    pub exclude_cidrs: Vec<IpNet>,
    /// Take over virtual services of others that are where ours should be.
    pub take_over: bool,
    /// Which bit of the packet mark means "to be masqueraded" (0 to 31). It is cleared before the
    /// packet leaves.
    pub masquerade_bit: u8,
    /// Let packets pass that fit no connection, as asymmetric routes make them.
    pub conntrack_be_liberal: bool,
}

impl Default for Config {
    /// kube-proxy's defaults.
    fn default() -> Self {
        Self {
            scheduler: "rr".to_owned(),
            weight: 1,
            graceful_timeout: Duration::from_secs(15 * 60),
            timeouts: Timeouts::default(),
            strict_arp: false,
            exclude_cidrs: Vec::new(),
            take_over: false,
            masquerade_bit: 14,
            conntrack_be_liberal: false,
        }
    }
}

impl Config {
    pub(crate) fn masquerade_mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { weight: self.weight, graceful_timeout: self.graceful_timeout }
    }

    /// Whether a virtual service is none of our business.
    pub(crate) fn excludes(&self, key: &ServiceKey) -> bool {
        let ServiceKey::Address { address, .. } = key else { return false };
        self.exclude_cidrs.iter().any(|cidr| cidr.contains(address))
    }
}
