//! The network: a client, a node, a pod that only asks, and the pods that the state file tells of.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Pods that the state does not have any more.
    leaving: Vec<(String, Running)>,
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
    /// What it listens on: more than it has to, during a change.
    ports: BTreeSet<u16>,
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
        let (pods, leaving) = (BTreeMap::new(), Vec::new());
        let world = Self { pods, leaving, visitor, network, group, made: 0 };
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

    /// Makes the pods that `state` tells of. Those that it does not have any more stay until
    /// [`World::settle`], as those do that terminate. Says what it did, for people.
    pub(crate) fn prepare(&mut self, state: &State, node: &str) -> Vec<String> {
        let wanted = pods(state, node);
        let mut notes = Vec::new();
        for (name, mut running) in std::mem::take(&mut self.pods) {
            let same = |pod: &&Pod| {
                (&pod.addresses, pod.here) == (&running.pod.addresses, running.pod.here)
            };
            let is_taken = |address| wanted.values().any(|pod| pod.addresses.contains(address));
            if let Some(pod) = wanted.get(&name).filter(same) {
                running.listen(&running.ports | &pod.ports);
                running.pod = pod.clone();
                self.pods.insert(name, running);
            } else if running.pod.addresses.iter().any(is_taken) {
                notes.extend(self.remove(&name, running));
            } else {
                self.leaving.push((name, running));
            }
        }
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

    /// Takes the pods away that the last state did not have, and ports that they need not listen on.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        let leaving = std::mem::take(&mut self.leaving);
        let notes = leaving.into_iter().flat_map(|(name, running)| self.remove(&name, running));
        let notes = notes.collect();
        for running in self.pods.values_mut() {
            running.listen(running.pod.ports.clone());
        }
        notes
    }

    fn remove(&self, name: &str, running: Running) -> Vec<String> {
        let removed = self.network.disconnect(running.host, &running.interface);
        let problem = removed.err().map(|error| error.to_string());
        [format!("pod {name} is gone")].into_iter().chain(problem).collect()
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
        let wanted = pod.ports.clone();
        let mut running = Running { host, interface, pod, ports: BTreeSet::new() };
        running.listen(wanted);
        self.pods.insert(name.to_owned(), running);
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
    /// Listens on these ports, and on no others.
    fn listen(&mut self, ports: BTreeSet<u16>) {
        if self.ports != ports {
            self.host.stop_serving();
            self.host.serve(&Vec::from_iter(ports.iter().copied()));
            self.ports = ports;
        }
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
