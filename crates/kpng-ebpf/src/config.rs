//! How the data path is built, beside what the plan says.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use kpng_linux::rtnetlink::Link;
use kpng_linux::sysctl;

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
    /// How programs are attached to devices.
    pub attach: Attach,
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

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// By what the kernel has, the first of these.
    #[default]
    Auto,
    /// By tcx (Linux 6.6), beside the programs of others.
    Tcx,
    /// By filters of the qdisc `clsact`, beside those of others. It is added where it is not.
    Clsact,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/sys/fs/bpf/kpng".into(),
            cgroup_root: None,
            devices: Vec::new(),
            attach: Attach::Auto,
            snat_ports: 61_000..=65_535,
            flows: 1 << 18,
            affinities: 1 << 16,
            peers: 1 << 16,
        }
    }
}

impl Config {
    /// Warns when the node's own connections may use the ports of masqueraded ones: an answer to one
    /// would be taken for an answer to the other.
    pub(crate) fn warn_of_shared_ports(&self) {
        const OWN: &str = "net/ipv4/ip_local_port_range";
        let range = sysctl::get(OWN).unwrap_or_default();
        if shares_ports(&self.snat_ports, &range) {
            let (first, last) = (self.snat_ports.start(), self.snat_ports.end());
            tracing::warn!(
                "the ports {first} to {last} of masqueraded connections are among those of the \
                 node's own ({range}); change net.ipv4.ip_local_port_range, or --snat-ports"
            );
        }
    }

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

/// Whether ports are in a range as the kernel writes it: the first and the last port.
fn shares_ports(ports: &RangeInclusive<u16>, range: &str) -> bool {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return false };
    first <= *ports.end() && *ports.start() <= last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_ports_are_noticed() {
        let ports = Config::default().snat_ports;
        assert!(!shares_ports(&ports, "32768\t60999"), "the kernel's own range");
        assert!(shares_ports(&ports, "1024\t65535"));
        assert!(shares_ports(&ports, "61000\t61000"));
        assert!(!shares_ports(&ports, ""));
    }
}
