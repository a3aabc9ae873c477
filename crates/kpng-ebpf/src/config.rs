//! How the data path is built, beside what the plan says.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use kpng_linux::rtnetlink::Link;

/// How the data path is built, beside what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory of a BPF file system that is this backend's alone.
    pub root: PathBuf,
    /// The control group (version 2) whose sockets are served; by default where the hierarchy is
    /// mounted, so all.
    pub cgroup_root: Option<PathBuf>,
    /// The devices at which packets are served: names, or prefixes of names with `+` behind. Empty
    /// means all that are up and belong to no bridge or bond.
    pub devices: Vec<String>,
    /// The source ports of masqueraded connections. Nobody else may use them: they are to be outside
    /// of `net.ipv4.ip_local_port_range` and of node ports.
    pub snat_ports: RangeInclusive<u16>,
    /// How many flows are remembered; a connection has two.
    pub flows: u32,
    /// How many clients' affinities are remembered.
    pub affinities: u32,
    /// How many sockets' peers are remembered.
    pub peers: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/sys/fs/bpf/kpng".into(),
            cgroup_root: None,
            devices: Vec::new(),
            snat_ports: 61_000..=65_535,
            flows: 1 << 18,
            affinities: 1 << 16,
            peers: 1 << 16,
        }
    }
}

impl Config {
    /// How many elements a map holds that programs write themselves.
    pub(crate) fn capacity(&self, state: &str) -> u32 {
        match state {
            "affinity" => self.affinities,
            "peers" => self.peers,
            "fragments" => 4096,
            _ => self.flows,
        }
    }

    /// The devices to attach to.
    pub(crate) fn chosen(&self, mut devices: Vec<Link>) -> Vec<Link> {
        let named = |device: &Link| {
            self.devices.iter().any(|pattern| match pattern.strip_suffix('+') {
                Some(prefix) => device.name.starts_with(prefix),
                None => device.name == *pattern,
            })
        };
        devices.retain(|device| {
            let chosen =
                if self.devices.is_empty() { device.master.is_none() } else { named(device) };
            let known = device.is_ethernet() || device.is_bare();
            device.is_up() && known && (chosen || device.is_loopback())
        });
        devices
    }
}
