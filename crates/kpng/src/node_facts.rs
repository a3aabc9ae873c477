//! What a plan has to know about this node: from flags, the Node object and the interfaces.
//!
//! The decision is a pure function ([`facts`]); [`follow`] keeps its result up to date. A problem
//! with reading the interfaces never takes away facts that are in force.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::local::Localize;
use kpng_core::model::{Family, Node};
use kpng_core::plan::{NodeFacts, PodDetection};
use kpng_core::store::{Reader, Store};
use kpng_linux::rtnetlink::{self, AddressMonitor, InterfaceAddress, Rtnetlink};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::cli::NodePortAddresses;

/// How long to wait after a change of addresses: an interface that comes up makes several.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// How often to look when the kernel does not tell of changes, and after a failure.
const POLL: Duration = Duration::from_secs(10);

/// What the operator said about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// How packets from pods are told from others.
    pub pods: PodDetectionMode,
    /// On which of the node's addresses node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Node ports are served on 127.0.0.1 too.
    pub localhost_node_ports: bool,
    /// Everything that goes to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// The ranges that cluster IPs come from.
    pub service_cidrs: Vec<IpNet>,
    /// The node's primary addresses, where they are not to be found out. 0.0.0.0 and :: say nothing.
    pub bind_addresses: Vec<IpAddr>,
}

/// How packets from pods are told from others (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodDetectionMode {
    /// Not at all.
    None,
    /// All pods of the cluster have addresses in these ranges.
    ClusterCidr(Vec<IpNet>),
    /// The pods of this node have addresses in the `podCIDRs` of its Node.
    NodeCidr,
    /// The pods of this node are on this bridge.
    BridgeInterface(String),
    /// The names of the interfaces of this node's pods start like this.
    InterfaceNamePrefix(String),
}

/// What is to be seen of the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The addresses of all interfaces.
    pub addresses: Vec<InterfaceAddress>,
    /// The addresses that the node uses towards the world, at most one per family.
    pub towards_world: Vec<IpAddr>,
}

impl Interfaces {
    /// Those of the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read() -> kpng_linux::Result<Self> {
        let mut rtnetlink = Rtnetlink::open()?;
        let mut towards_world = Vec::new();
        for family in [rtnetlink::Family::V4, rtnetlink::Family::V6] {
            match rtnetlink.primary_address(family) {
                Ok(address) => towards_world.extend(address),
                // A kernel that was started with `ipv6.disable=1` knows no IPv6 routes.
                Err(error)
                    if matches!(error.errno(), Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { addresses: rtnetlink.addresses()?, towards_world })
    }
}

/// Everything about the node that plans depend on. `node` is its Node object, if there is one.
///
/// The primary address of a family is, in this order: the operator's word, the first InternalIP of
/// the Node that an interface has, the address that the node uses towards the world.
pub fn facts(settings: &NodeSettings, node: Option<&Node>, interfaces: &Interfaces) -> NodeFacts {
    let primary_ips: Vec<_> = Family::ALL
        .into_iter()
        .filter_map(|family| primary_ip(family, settings, node, interfaces))
        .collect();
    let primary = || primary_ips.iter().copied().collect();
    let node_port_addresses = match &settings.node_port_addresses {
        NodePortAddresses::Primary => primary(),
        NodePortAddresses::All => own_addresses(interfaces).collect(),
        NodePortAddresses::Cidrs(cidrs) => {
            let within = |address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
            own_addresses(interfaces).filter(within).collect()
        }
    };
    NodeFacts {
        pods: pods(&settings.pods, node),
        primary_ips,
        node_port_addresses,
        localhost_node_ports: settings.localhost_node_ports,
        masquerade_all: settings.masquerade_all,
        service_cidrs: settings.service_cidrs.clone(),
    }
}

fn pods(mode: &PodDetectionMode, node: Option<&Node>) -> PodDetection {
    match mode {
        PodDetectionMode::None => PodDetection::None,
        PodDetectionMode::ClusterCidr(cidrs) => PodDetection::Cidrs(cidrs.clone()),
        PodDetectionMode::NodeCidr => {
            PodDetection::Cidrs(node.map(|node| node.pod_cidrs.clone()).unwrap_or_default())
        }
        PodDetectionMode::BridgeInterface(name) => PodDetection::Bridge(name.as_str().into()),
        PodDetectionMode::InterfaceNamePrefix(prefix) => {
            PodDetection::InterfacePrefix(prefix.as_str().into())
        }
    }
}

fn primary_ip(
    family: Family,
    settings: &NodeSettings,
    node: Option<&Node>,
    interfaces: &Interfaces,
) -> Option<IpAddr> {
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let told = settings.bind_addresses.iter().filter(of_family);
    let told = told.filter(|address| !address.is_unspecified());
    let has = |address: &&IpAddr| interfaces.addresses.iter().any(|own| own.address == **address);
    let internal = node.iter().flat_map(|node| &node.internal_ips).filter(of_family).filter(has);
    let towards_world = interfaces.towards_world.iter().filter(of_family);
    told.chain(internal).chain(towards_world).next().copied()
}

/// The addresses by which others can reach this node: no loopback, nothing that is valid on one link
/// only. (Every pod's interface has such an address; facts would change with every pod.)
fn own_addresses(interfaces: &Interfaces) -> impl Iterator<Item = IpAddr> {
    let fits =
        |own: &&InterfaceAddress| own.is_global() && own.is_usable() && !own.address.is_loopback();
    interfaces.addresses.iter().filter(fits).map(|own| own.address)
}

/// Keeps `facts` equal to what is known about the node called `name`: as soon as the store is
/// complete, and whenever its Node or the addresses of this network namespace change.
///
/// It goes on when the store is closed, and never ends by itself.
pub async fn follow<V: Localize>(
    settings: &NodeSettings,
    name: &str,
    store: &Store<V>,
    facts: &watch::Sender<Option<NodeFacts>>,
) {
    let mut addresses = AddressChanges::open();
    let mut nodes = NodeChanges { reader: store.reader(), name: name.into() };
    nodes.changed().await;
    if store.node(name).is_none() {
        warn!("the cluster has no Node {name:?}; if it calls this node otherwise, say --node-name");
    }
    loop {
        let failed = match Interfaces::read() {
            Ok(interfaces) => {
                let node = store.node(name);
                publish(self::facts(settings, node.as_deref(), &interfaces), facts);
                false
            }
            Err(error) => {
                warn!("{error}; the node's addresses are taken to be as they were");
                true
            }
        };
        tokio::select! {
            () = nodes.changed() => {}
            () = addresses.changed() => {}
            () = sleep(POLL), if failed => {}
        }
    }
}

fn publish(new: NodeFacts, facts: &watch::Sender<Option<NodeFacts>>) {
    facts.send_if_modified(|old| {
        if old.as_ref() == Some(&new) {
            return false;
        }
        info!(
            primary = %list(&new.primary_ips),
            node_ports = %list(&new.node_port_addresses),
            "the node's addresses"
        );
        if new.primary_ips.is_empty() {
            warn!("this node has no address that others could reach; say one with --bind-address");
        }
        if new.pods == PodDetection::Cidrs(Vec::new()) {
            warn!("the node's Node object has no podCIDRs, so pods are not told from others");
        }
        *old = Some(new);
        true
    });
}

fn list<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> String {
    let texts: BTreeSet<_> = addresses.into_iter().map(IpAddr::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { Vec::from_iter(texts).join(",") }
}

/// Changes of one Node in a store.
struct NodeChanges<V> {
    reader: Reader<V>,
    name: Arc<str>,
}

impl<V: Localize> NodeChanges<V> {
    /// Waits for the next change, the first of which is that the store is complete.
    async fn changed(&mut self) {
        while let Some(update) = self.reader.next().await {
            if update.full || update.nodes.iter().any(|(name, _)| *name == self.name) {
                return;
            }
        }
        std::future::pending().await
    }
}

/// Changes of the addresses of a network namespace.
struct AddressChanges(Option<AsyncFd<AddressMonitor>>);

impl AddressChanges {
    fn open() -> Self {
        let monitor = AddressMonitor::open().map_err(|error| error.to_string());
        let monitor = monitor.and_then(|monitor| {
            #[expect(unsafe_code, reason = "tokio cannot see that the descriptor stays open")]
            // SAFETY: the monitor owns one socket for as long as it lives, and shows no other.
            let monitor = unsafe { AsyncFd::register_with_interest(monitor, Interest::READABLE) };
            monitor.map_err(|error| error.to_string())
        });
        match monitor {
            Ok(monitor) => Self(Some(monitor)),
            Err(error) => {
                warn!("{error}; the node's addresses are looked at every {POLL:?} instead");
                Self(None)
            }
        }
    }

    /// Waits until something may have changed, and for a while more. It can be cancelled: what was
    /// not waited for is noticed the next time.
    async fn changed(&mut self) {
        let Some(monitor) = &mut self.0 else { return sleep(POLL).await };
        let result = match monitor.readable_mut().await {
            Ok(mut ready) => {
                // Notifications are taken only now, so nothing is lost if this is cancelled.
                sleep(DEBOUNCE).await;
                let result = ready.get_inner_mut().changed();
                ready.clear_ready();
                result.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = result {
            warn!("{error}; the node's addresses are looked at every {POLL:?} from now on");
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests;
