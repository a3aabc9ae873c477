//! The network: a client, a node, a pod that only asks, and the pods that the state file tells of.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use kpng_core::model::Protocol;
use kpng_file::State;
use kpng_linux::namespace::NetNs;
use kpng_vnet::addresses::{
    BLOCKED_V4, BLOCKED_V6, CLIENT_V4, CLIENT_V6, NODE_ALT_V4, NODE_ALT_V6, NODE_V4, NODE_V6,
    POD_INTERFACE_PREFIX,
};
use kpng_vnet::{Host, Network, Outcome};

use crate::Result;
use crate::flow::{Flow, Seen, Sender};
use crate::group::join_with_thread;
use crate::pods::{MAX_PODS, Pod, pods};

/// The address of the pod that only asks.
pub(crate) const VISITOR_V4: Ipv4Addr = Ipv4Addr::new(10, 180, 0, 250);
/// The address of the pod that only asks.
pub(crate) const VISITOR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x180, 0, 0, 0, 0, 0, 0xfa);
/// The node's interface to the pod that only asks.
pub(crate) const VISITOR_INTERFACE: &str = "veth-pod0";

/// The network and everybody in it.
#[derive(Debug)]
pub struct World {
    /// Dropped before the node is.
    pods: BTreeMap<String, Running>,
    visitor: Host,
    network: Network,
    /// The control group of the node and its pods.
    group: Option<PathBuf>,
    /// How many interfaces to pods were made: each has a name of its own.
    made: u32,
}

#[derive(Debug)]
struct Running {
    host: Host,
    interface: String,
    pod: Pod,
}

impl World {
    /// The client, the node, and the pod that only asks. The sockets of the node and its pods belong to
    /// the control group `group`, if there is one.
    ///
    /// # Errors
    /// When this process may not create network namespaces, or enter the control group.
    pub fn new(group: Option<PathBuf>) -> Result<Self> {
        let network = Network::bare()?;
        let visitor = network.connect(
            "visitor",
            VISITOR_INTERFACE,
            &[VISITOR_V4.into(), VISITOR_V6.into()],
        )?;
        let world = Self { pods: BTreeMap::new(), visitor, network, group, made: 0 };
        world.group(&world.network.node)?;
        world.group(&world.visitor)?;
        Ok(world)
    }

    /// Moves a host's thread into the control group: what sockets it opens belong there.
    fn group(&self, host: &Host) -> Result<()> {
        match self.group.clone() {
            Some(group) => host.run(move || join_with_thread(&group)),
            None => Ok(()),
        }
    }

    /// The namespace of the node, where the proxy belongs.
    ///
    /// # Errors
    /// When no file descriptors are left.
    pub fn node_namespace(&self) -> Result<NetNs> {
        Ok(self.network.node.namespace().try_clone()?)
    }

    /// How the names of the interfaces to the node's own pods start, as the proxy is told.
    pub fn pod_interface_prefix() -> &'static str {
        POD_INTERFACE_PREFIX
    }

    /// The name that the state gives to the node that we are: the one that has its address, else the
    /// first.
    pub fn node_name(state: &State) -> Option<String> {
        let ours = |address: &IpAddr| [IpAddr::from(NODE_V4), NODE_V6.into()].contains(address);
        let has = |name: &&std::sync::Arc<str>| state.nodes[&**name].internal_ips.iter().any(ours);
        let name = state.nodes.keys().find(has).or_else(|| state.nodes.keys().next());
        name.map(|name| name.to_string())
    }

    /// Makes the pods that `state` tells of, and takes others away. Says what it did, for people.
    pub(crate) fn follow(&mut self, state: &State, node: &str) -> Vec<String> {
        let wanted = pods(state, node);
        let mut notes = Vec::new();
        let mut kept = BTreeMap::new();
        for (name, running) in std::mem::take(&mut self.pods) {
            let same = |pod: &&Pod| {
                (&pod.addresses, pod.here) == (&running.pod.addresses, running.pod.here)
            };
            if let Some(pod) = wanted.get(&name).filter(same) {
                kept.insert(name, running.listening(pod));
                continue;
            }
            notes.push(format!("pod {name} is gone"));
            if let Err(error) = self.network.disconnect(running.host, &running.interface) {
                notes.push(error.to_string());
            }
        }
        self.pods = kept;
        for (name, pod) in wanted {
            if self.pods.contains_key(&name) {
                continue;
            }
            if self.pods.len() >= MAX_PODS {
                notes.push(format!("more than {MAX_PODS} pods: {name} and others are not made"));
                break;
            }
            notes.push(match self.add(&name, pod) {
                Ok(()) => format!("pod {name} is there"),
                Err(why) => format!("pod {name} is not made: {why}"),
            });
        }
        notes
    }

    fn add(&mut self, name: &str, pod: Pod) -> Result<(), String> {
        if let Some(address) = pod.addresses.iter().find(|address| !is_for_pods(**address)) {
            return Err(format!("{address} is no address for a pod here"));
        }
        self.made += 1;
        let prefix = if pod.here { POD_INTERFACE_PREFIX } else { "remote" };
        let interface = format!("{prefix}{}", self.made);
        let host = self.network.connect(name, &interface, &pod.addresses);
        let host = host.map_err(|error| error.to_string())?;
        if pod.here {
            self.group(&host).map_err(|error| error.to_string())?;
        }
        host.serve(&Vec::from_iter(pod.ports.iter().copied()));
        self.pods.insert(name.to_owned(), Running { host, interface, pod });
        Ok(())
    }

    /// The pods: names, addresses, and whether they run on this node.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&str, &[IpAddr], bool)> {
        self.pods
            .iter()
            .map(|(name, running)| (&**name, &running.pod.addresses[..], running.pod.here))
    }

    /// The name of the pod that has this address.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<&str> {
        let mut pods = self.pods();
        pods.find(|(_, addresses, _)| addresses.contains(&address)).map(|(name, ..)| name)
    }

    /// Opens one connection, or sends one datagram, and tells what became of it.
    pub(crate) fn send(&self, flow: &Flow) -> Seen {
        let host = match flow.from {
            Sender::Visitor => &self.visitor,
            Sender::Client | Sender::Stranger => &self.network.client,
        };
        let source = flow.source();
        let probe: fn(&Host, Option<IpAddr>, SocketAddr) -> Outcome = match flow.protocol {
            Protocol::Tcp => Host::tcp,
            Protocol::Udp => Host::udp,
            Protocol::Sctp => Host::sctp,
        };
        match probe(host, Some(source), flow.to) {
            Outcome::Answered { by, seen_source } => {
                Seen::Answered { by, masqueraded: seen_source != source }
            }
            Outcome::Refused => Seen::Refused,
            Outcome::Unreachable | Outcome::TimedOut => Seen::Silence,
        }
    }
}

impl Running {
    /// The pod with the ports that it is to have.
    fn listening(mut self, pod: &Pod) -> Self {
        if self.pod.ports != pod.ports {
            self.host.stop_serving();
            self.host.serve(&Vec::from_iter(pod.ports.iter().copied()));
            self.pod = pod.clone();
        }
        self
    }
}

/// Whether a pod can have the address, beside what else is in the network.
fn is_for_pods(address: IpAddr) -> bool {
    let taken: [IpAddr; 10] = [
        VISITOR_V4.into(),
        VISITOR_V6.into(),
        NODE_V4.into(),
        NODE_V6.into(),
        NODE_ALT_V4.into(),
        NODE_ALT_V6.into(),
        CLIENT_V4.into(),
        CLIENT_V6.into(),
        BLOCKED_V4.into(),
        BLOCKED_V6.into(),
    ];
    let usual = match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    };
    let special = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    usual && !special && !taken.contains(&address)
}
