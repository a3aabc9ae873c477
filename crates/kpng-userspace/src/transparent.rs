//! Keeping the client's address: the proxy connects from it, and answers have to come back to the proxy.
//!
//! They do when this node is the endpoint's way out. A rule marks what a socket of the proxy waits for,
//! and a routing rule lets marked packets end here, whatever their destination. An endpoint of
//! another node would answer to the client itself, which knows nothing of it: there, the proxy's
//! address is used.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kpng_core::model::Family;
use kpng_linux::rtnetlink::{self, Rtnetlink, Rule};

use crate::names::{ROUTE_PRIORITY, ROUTE_TABLE};

/// How long it is taken for true which way leads to an endpoint.
const FRESH: Duration = Duration::from_secs(10);

/// The ways to so many endpoints are remembered.
const CAPACITY: usize = 10_000;

/// Knows to which endpoints the client's address can be kept.
#[derive(Debug)]
pub(crate) struct Transparent {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rtnetlink: Rtnetlink,
    /// By endpoint: whether its answers come back here, and since when that is known.
    known: HashMap<IpAddr, (Instant, bool)>,
}

impl Transparent {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn open() -> kpng_linux::Result<Self> {
        let inner = Inner { rtnetlink: Rtnetlink::open()?, known: HashMap::new() };
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Whether answers to `client` of the endpoint at `target` come back to this node.
    pub(crate) fn leads_back(&self, client: IpAddr, target: IpAddr) -> bool {
        // An endpoint that reaches itself would take the answer for its own.
        if client == target || client.is_loopback() || client.is_unspecified() {
            return false;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.known.get(&target).filter(|(since, _)| since.elapsed() < FRESH);
        if let Some((_, leads_back)) = known {
            return *leads_back;
        }
        let leads_back = inner.ask(target).unwrap_or(false);
        if inner.known.len() >= CAPACITY {
            inner.known.clear();
        }
        inner.known.insert(target, (Instant::now(), leads_back));
        leads_back
    }
}

impl Inner {
    /// Pods of this node are next to it, and not where the world is; this node itself answers to the
    /// client without anybody seeing it.
    fn ask(&mut self, target: IpAddr) -> kpng_linux::Result<bool> {
        let Some(hop) = self.rtnetlink.next_hop(target)? else { return Ok(false) };
        // Any address on the Internet does: nothing is sent.
        let world: IpAddr = match target {
            IpAddr::V4(_) => Ipv4Addr::new(1, 1, 1, 1).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111).into(),
        };
        let way_out = self.rtnetlink.next_hop(world)?.map(|hop| hop.interface);
        Ok(!hop.is_local && !hop.is_router && Some(hop.interface) != way_out)
    }
}

fn rule(mark: u32) -> Rule {
    Rule { priority: ROUTE_PRIORITY, mark, mask: mark, table: ROUTE_TABLE }
}

/// Lets packets with this mark end on this node. They may do so already.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn add_way_back(mark: u32) -> kpng_linux::Result<()> {
    let mut rtnetlink = Rtnetlink::open()?;
    for family in [rtnetlink::Family::V4, rtnetlink::Family::V6] {
        rtnetlink.add_local_route(family, ROUTE_TABLE)?;
        match rtnetlink.add_rule(family, &rule(mark)) {
            Err(error) if error.is_there_already() => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes what [`add_way_back`] has added, with whatever mark.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn remove_way_back() -> kpng_linux::Result<()> {
    let mut rtnetlink = Rtnetlink::open()?;
    for family in [rtnetlink::Family::V4, rtnetlink::Family::V6] {
        for rule in rtnetlink.rules(family)?.iter().filter(|rule| rule.table == ROUTE_TABLE) {
            rtnetlink.delete_rule(family, rule)?;
        }
        match rtnetlink.delete_local_route(family, ROUTE_TABLE) {
            Err(error) if error.is_not_there() => {}
            result => result?,
        }
    }
    Ok(())
}

/// Whether packets with this mark end on this node.
///
/// # Errors
/// When the kernel cannot be asked.
pub(crate) fn is_way_back(mark: u32) -> kpng_linux::Result<bool> {
    let mut rtnetlink = Rtnetlink::open()?;
    Ok(rtnetlink.is_local_by_mark(rtnetlink::Family::V4, mark)?
        && rtnetlink.is_local_by_mark(rtnetlink::Family::V6, mark)?)
}

/// The family, as the kernel's interfaces have it.
pub(crate) fn family_of(address: IpAddr) -> rtnetlink::Family {
    match Family::of(address) {
        Family::V4 => rtnetlink::Family::V4,
        Family::V6 => rtnetlink::Family::V6,
    }
}
