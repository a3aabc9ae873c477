//! A virtual network: a node, pods and a client, each a network namespace, with servers and probes.
//!
//! No child processes, nothing outside the namespaces, and everything ends when the values are
//! dropped, or with the process. The node forwards but runs no proxy: that is what its user brings.
//!
//! ```text
//!  client 203.0.113.2, 203.0.113.130 (meant to be blocked), 2001:db8:203::2, 2001:db8:203:8000::2
//!    │ eth0   default route: the node
//!    │
//!    │ eth0   default route: the client, which forwards nothing
//!  node 192.168.0.2 (primary), 192.168.1.2, 2001:db8::1 (primary), 2001:db8::2
//!    │ veth-pod1, veth-pod2, …      │ remote1, remote2, …
//!    │                              │
//!  pods 10.180.0.N, fd00:180::N   remote pods 10.180.1.N, fd00:180:1::N (on "another node")
//! ```
//!
//! More pods come and go with [`Network::connect`] and [`Network::disconnect`], at any address.
//!
//! Addresses of services are up to the user: whatever is none of the above is routed to the node
//! by pods and client, and from the node to the client, where it ends.

mod host;
mod icmp;
mod probe;
mod sctp;
mod server;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::{Link, Route, Rtnetlink};
use kpng_linux::sysctl;

pub use host::Host;
pub use probe::{Outcome, TIMEOUT, TcpFlow, UdpFlow};

/// The addresses of the virtual network.
pub mod addresses {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The node's primary IPv4 address.
    pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
    /// The node's other IPv4 address.
    pub const NODE_ALT_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
    /// The node's primary IPv6 address.
    pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    /// The node's other IPv6 address.
    pub const NODE_ALT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
    /// The client's usual IPv4 address, in 203.0.113.0/25.
    pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
    /// Another address of the client, not in 203.0.113.0/25.
    pub const BLOCKED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 130);
    /// The client's usual IPv6 address, in 2001:db8:203::/64.
    pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 2);
    /// Another address of the client, not in 2001:db8:203::/64.
    pub const BLOCKED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0x8000, 0, 0, 0, 2);
    /// The network of all pods of the cluster.
    pub const POD_NETWORK_V4: &str = "10.0.0.0/8";
    /// The network of all pods of the cluster.
    pub const POD_NETWORK_V6: &str = "fd00:180::/32";
    /// How the names of the node's interfaces to its own pods start.
    pub const POD_INTERFACE_PREFIX: &str = "veth-pod";
}

use addresses::{
    BLOCKED_V4, BLOCKED_V6, CLIENT_V4, CLIENT_V6, NODE_ALT_V4, NODE_ALT_V6, NODE_V4, NODE_V6,
    POD_INTERFACE_PREFIX,
};

/// How many pods there are.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Pods on the node, called `pod1`, `pod2`, ….
    pub pods: u8,
    /// Pods on another node, called `remote1`, `remote2`, ….
    pub remote_pods: u8,
}

/// The virtual network. Fields are dropped in order: the pods before the node.
#[derive(Debug)]
pub struct Network {
    /// The pods of the node.
    pub pods: Vec<Host>,
    /// The pods of another node.
    pub remote_pods: Vec<Host>,
    /// A host outside of the cluster.
    pub client: Host,
    /// The node: the place for the rules under test.
    pub node: Host,
}

impl Network {
    /// Builds the network. `None`, with the reason printed, when this process may not create
    /// network namespaces and the environment says `KPNG_SKIP_NET=1`.
    ///
    /// # Panics
    /// When the process may not create network namespaces otherwise: a test that did not run
    /// must not look like one that passed.
    pub fn new(topology: Topology) -> Option<Self> {
        permitted().then(|| build(topology))
    }

    /// The network without pods.
    ///
    /// # Errors
    /// When this process may not create network namespaces.
    ///
    /// # Panics
    /// When the kernel lacks what such a network is made of (veth pairs).
    pub fn bare() -> kpng_linux::Result<Self> {
        NetNs::new()?;
        Ok(build(Topology { pods: 0, remote_pods: 0 }))
    }

    /// Makes a pod with these addresses, at the node's interface `interface`.
    ///
    /// # Errors
    /// When the kernel refuses one of the addresses or the name; what was made is gone again.
    pub fn connect(
        &self,
        name: &str,
        interface: &str,
        addresses: &[IpAddr],
    ) -> kpng_linux::Result<Host> {
        let pod = Host::new(name, addresses.to_vec());
        connect_pod(&self.node, &pod, interface)?;
        let interface = interface.to_owned();
        self.node.try_configure(move |rtnetlink| {
            while !rtnetlink.link(&interface)?.is_running() {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        Ok(pod)
    }

    /// Takes a pod away that [`Network::connect`] made. Its routes are gone when this returns.
    ///
    /// # Errors
    /// When the node has no such interface.
    pub fn disconnect(&self, pod: Host, interface: &str) -> kpng_linux::Result<()> {
        let interface = interface.to_owned();
        let removed = self.node.try_configure(move |rtnetlink| {
            let link = rtnetlink.link(&interface)?.index;
            rtnetlink.delete_link(link)
        });
        drop(pod);
        removed
    }

    /// The pod `number`, counted from 1 as its name and addresses are.
    pub fn pod(&self, number: usize) -> &Host {
        &self.pods[number - 1]
    }

    /// The remote pod `number`, counted from 1.
    pub fn remote_pod(&self, number: usize) -> &Host {
        &self.remote_pods[number - 1]
    }
}

/// Whether network namespaces can be had.
#[expect(clippy::print_stdout, reason = "the test harness shows it")]
fn permitted() -> bool {
    let Err(error) = NetNs::new() else { return true };
    let skip = std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1");
    assert!(skip, "{error}; or set KPNG_SKIP_NET=1 to skip tests with packets");
    println!("skipped: {error}");
    false
}

/// Why a pod with a name and addresses of ours can be connected.
const CONNECTED: &str = "the node's namespace is ours, and the kernel has veth pairs";

fn build(topology: Topology) -> Network {
    let node = Host::new(
        "node",
        vec![NODE_V4.into(), NODE_ALT_V4.into(), NODE_V6.into(), NODE_ALT_V6.into()],
    );
    let client = Host::new(
        "client",
        vec![CLIENT_V4.into(), BLOCKED_V4.into(), CLIENT_V6.into(), BLOCKED_V6.into()],
    );
    node.configure(|_| {
        sysctl::set("net/ipv4/ip_forward", "1")?;
        sysctl::set("net/ipv6/conf/all/forwarding", "1")
    });
    connect_client(&node, &client);
    let pods = (1..=topology.pods).map(|n| {
        let pod = pod(&format!("pod{n}"), 0, n);
        connect_pod(&node, &pod, &format!("{POD_INTERFACE_PREFIX}{n}")).expect(CONNECTED);
        pod
    });
    let pods = pods.collect();
    let remote_pods = (1..=topology.remote_pods).map(|n| {
        let pod = pod(&format!("remote{n}"), 1, n);
        connect_pod(&node, &pod, pod.name()).expect(CONNECTED);
        pod
    });
    let remote_pods = remote_pods.collect();
    // The node's ends of the links were switched on first, without another end. Such a link drops
    // packets until the kernel has noticed the other end, which it does in the background.
    node.configure(|rtnetlink| {
        while !rtnetlink.links()?.iter().all(Link::is_running) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    Network { pods, remote_pods, client, node }
}

fn pod(name: &str, node: u8, number: u8) -> Host {
    let v4 = Ipv4Addr::new(10, 180, node, number);
    let v6 = Ipv6Addr::new(0xfd00, 0x180, node.into(), 0, 0, 0, 0, number.into());
    Host::new(name, vec![v4.into(), v6.into()])
}

/// Links node and client, each the other's default router.
fn connect_client(node: &Host, client: &Host) {
    let peer = client.namespace().try_clone().expect("file descriptors are left");
    node.configure(move |rtnetlink| rtnetlink.add_veth("eth0", "eth0", &peer));
    for (host, router) in [(node, client), (client, node)] {
        let (own, others) = (host.addresses().to_vec(), router.addresses().to_vec());
        host.configure(move |rtnetlink| {
            let link = add_addresses(rtnetlink, "eth0", &own)?;
            for other in &others {
                let source = primary(&own, *other);
                rtnetlink.add_route(&direct(*other, link, source))?;
            }
            for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
                let (gateway, source) = (primary(&others, any), primary(&own, any));
                rtnetlink.add_route(&default(any, link, gateway, source))?;
            }
            Ok(())
        });
    }
}

/// Links a pod to the node as point-to-point CNI plugins do: the pod has single addresses and a
/// router that exists on the link only, the node has one route per pod.
fn connect_pod(node: &Host, pod: &Host, interface: &str) -> kpng_linux::Result<()> {
    const ROUTER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
    const ROUTER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    let peer = pod.namespace().try_clone().expect("file descriptors are left");
    let (interface, addresses) = (interface.to_owned(), pod.addresses().to_vec());
    node.try_configure(move |rtnetlink| {
        rtnetlink.add_veth(&interface, "eth0", &peer)?;
        let link = rtnetlink.link(&interface)?.index;
        // The node answers for the router's address, which it does not have, at once.
        sysctl::set(&format!("net/ipv4/conf/{interface}/proxy_arp"), "1")?;
        sysctl::set(&format!("net/ipv4/neigh/{interface}/proxy_delay"), "0")?;
        rtnetlink.set_up(link)?;
        rtnetlink.add_address(link, ROUTER_V6, 64)?;
        for address in addresses {
            rtnetlink.add_route(&direct(address, link, None))?;
        }
        Ok(())
    })?;
    let addresses = pod.addresses().to_vec();
    pod.try_configure(move |rtnetlink| {
        let link = add_addresses(rtnetlink, "eth0", &addresses)?;
        rtnetlink.add_route(&direct(ROUTER_V4, link, None))?;
        for router in [ROUTER_V4, ROUTER_V6] {
            let any = if router.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            rtnetlink.add_route(&default(any, link, Some(router), None))?;
        }
        Ok(())
    })
}

/// Switches a link on, gives it the addresses, each without a network, and returns its index.
fn add_addresses(
    rtnetlink: &mut Rtnetlink,
    name: &str,
    addresses: &[IpAddr],
) -> kpng_linux::Result<u32> {
    let link = rtnetlink.link(name)?.index;
    rtnetlink.set_up(link)?;
    // Of several addresses that fit, the kernel takes the first IPv4 and the last IPv6 address.
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| address.is_ipv4());
    for address in v4.into_iter().chain(v6.into_iter().rev()) {
        rtnetlink.add_address(link, address, single(address))?;
    }
    Ok(link)
}

/// A route to one address on the link.
fn direct(address: IpAddr, interface: u32, source: Option<IpAddr>) -> Route {
    let destination = (address, single(address));
    Route { destination, gateway: None, interface: Some(interface), source, on_link: false }
}

/// A default route; `any` is the unspecified address of its family.
fn default(any: IpAddr, link: u32, gateway: Option<IpAddr>, source: Option<IpAddr>) -> Route {
    Route { destination: (any, 0), gateway, interface: Some(link), source, on_link: true }
}

/// The first of the addresses that has the family of `like`.
fn primary(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
}

/// The prefix length of a single address.
fn single(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
