//! Everything that is named in the kernel and belongs to this backend.
//!
//! All of it is below one directory of a BPF file system, but for filters on kernels without tcx, which
//! have a place and a name of their own. Nothing is known by other marks, so what others pin or attach
//! cannot be taken for ours.

use std::path::{Path, PathBuf};

/// A map that programs write themselves, which outlives the programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    pub(crate) name: &'static str,
    /// The length of its keys, in bytes.
    pub(crate) key: u32,
    /// The length of its values, in bytes.
    pub(crate) value: u32,
}

/// The maps that programs write themselves.
pub(crate) const STATES: &[State] = &[
    State { name: "affinity", key: 24, value: 32 },
    State { name: "peers", key: 32, value: 20 },
    State { name: "flows", key: 40, value: 56 },
    State { name: "fragments", key: 44, value: 4 },
];

/// The maps that say what the plan says.
pub(crate) const TABLES: [&str; 6] =
    ["frontends", "targets", "members", "ranges", "addresses", "pod_devices"];

/// Programs at sockets, and the kernel's number of their hooks (`enum bpf_attach_type`).
pub(crate) const SOCKET_HOOKS: [(&str, u32); 8] = [
    ("kpng_connect4", 10),
    ("kpng_connect6", 11),
    ("kpng_sendmsg4", 14),
    ("kpng_sendmsg6", 15),
    ("kpng_recvmsg4", 19),
    ("kpng_recvmsg6", 20),
    ("kpng_peername4", 29),
    ("kpng_peername6", 30),
];

/// The programs of a device, for packets that arrive and that leave.
#[derive(Debug)]
pub(crate) struct DevicePrograms {
    pub(crate) ingress: &'static str,
    pub(crate) egress: &'static str,
}

/// Where frames begin with an Ethernet header.
pub(crate) const ETHERNET: DevicePrograms =
    DevicePrograms { ingress: "kpng_ingress", egress: "kpng_egress" };
/// Where frames begin with the IP header.
pub(crate) const BARE: DevicePrograms =
    DevicePrograms { ingress: "kpng_ip_ingress", egress: "kpng_ip_egress" };

/// The priority of our filters among those of a device: before those to which `tc` gives one itself (from
/// 49152 down), which may let packets pass that we have to see, and after those that want to be first.
pub(crate) const FILTER_PRIORITY: u16 = 27;
/// Their number among filters of that priority.
pub(crate) const FILTER_HANDLE: u32 = 0x6b70;

/// The directories below the backend's own.
pub(crate) const DIRECTORIES: [&str; 3] = ["maps", "tables", "links"];

/// Where a map that programs write is pinned.
pub(crate) fn state(root: &Path, name: &str) -> PathBuf {
    root.join("maps").join(name)
}

/// Where a map that says what the plan says is pinned.
pub(crate) fn table(root: &Path, name: &str) -> PathBuf {
    root.join("tables").join(name)
}

/// Where the attachment of a program is pinned.
pub(crate) fn link(root: &Path, name: &str) -> PathBuf {
    root.join("links").join(name)
}

const QDISC: &str = "clsact-";

/// What is pinned while the qdisc of a device is ours.
pub(crate) fn qdisc(root: &Path, device: u32) -> PathBuf {
    link(root, &format!("{QDISC}{device}"))
}

/// The device whose qdisc this name among attachments is the mark of.
pub(crate) fn qdisc_device(name: &str) -> Option<u32> {
    name.strip_prefix(QDISC)?.parse().ok()
}
