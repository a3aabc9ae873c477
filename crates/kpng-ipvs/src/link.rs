//! The dummy link that has the virtual addresses, so that the kernel takes packets to them for its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kpng_linux::rtnetlink::{AddressChange, AddressMonitor, Rtnetlink};

use crate::state::State;
use crate::{Addresses, Error, names};

/// kube-proxy's link for the same purpose: its addresses are not the node's own.
const KUBE_PROXYS: &str = "kube-ipvs0";

/// The link, and what happens to links and addresses.
#[derive(Debug)]
pub(crate) struct AddressLink {
    rtnetlink: Rtnetlink,
    monitor: AddressMonitor,
    /// The index of the link.
    index: u32,
    seen: Seen,
}

/// What was reported, and not compared with what shall be yet.
#[derive(Debug, Default)]
struct Seen {
    /// Addresses on our link. What came and went meanwhile is as it was.
    is_there: BTreeMap<IpAddr, bool>,
    /// Addresses that came to or went from other links.
    elsewhere: Addresses,
    is_down: bool,
    anything: bool,
}

/// After how many changes of our own the kernel's reports of them are read: they fill a buffer.
const CHANGES_PER_READING: usize = 256;

/// How long to wait until the kernel takes packets to new IPv6 addresses for its own.
const SETTLING: Duration = Duration::from_secs(1);

/// Addresses of this node.
#[derive(Debug, Default)]
pub(crate) struct FoundAddresses {
    /// On our link.
    pub(crate) bound: Addresses,
    /// On others.
    pub(crate) others: Addresses,
}

impl AddressLink {
    /// Opens a connection to the network namespace of the calling thread. Changes nothing.
    pub(crate) fn open() -> Result<Self, Error> {
        let (rtnetlink, monitor) = (Rtnetlink::open()?, AddressMonitor::open()?);
        Ok(Self { rtnetlink, monitor, index: 0, seen: Seen::default() })
    }

    /// Makes the link where it is missing, and lists addresses.
    pub(crate) fn read(&mut self) -> Result<FoundAddresses, Error> {
        self.monitor.changed()?;
        self.seen = Seen::default();
        let link = match self.rtnetlink.link(names::LINK) {
            Err(kpng_linux::Error::NoLink { .. }) => {
                self.rtnetlink.add_dummy(names::LINK)?;
                self.rtnetlink.link(names::LINK)?
            }
            found => found?,
        };
        if link.kind.as_deref() != Some("dummy") {
            let kind = link.kind.unwrap_or_else(|| "physical link".to_owned());
            return Err(Error::LinkTaken { kind });
        }
        self.index = link.index;
        if !link.is_up() {
            self.rtnetlink.set_up(link.index)?;
        }
        self.find()
    }

    /// Lists addresses.
    pub(crate) fn find(&mut self) -> Result<FoundAddresses, Error> {
        let mut found = FoundAddresses::default();
        for address in self.rtnetlink.addresses()?.into_iter().filter(|a| a.name != KUBE_PROXYS) {
            let list = match address.name == names::LINK {
                true => &mut found.bound,
                false => &mut found.others,
            };
            // The link's own IPv6 address is none of a service.
            if !is_link_local(address.address) {
                list.insert(address.address);
            }
        }
        Ok(found)
    }

    /// Gives the link addresses. When it returns, packets to them are the node's own; the kernel does
    /// not masquerade with them.
    pub(crate) fn bind(&mut self, addresses: &Addresses) -> Result<(), Error> {
        for (number, address) in addresses.iter().enumerate() {
            let result = self.rtnetlink.add_inner_address(self.index, *address);
            unless(kpng_linux::Error::is_there_already, result)?;
            if number % CHANGES_PER_READING == 0 {
                self.look()?;
            }
        }
        // The kernel finishes IPv6 addresses in the background, in order, and tells.
        let Some(last) = addresses.iter().rfind(|address| address.is_ipv6()) else { return Ok(()) };
        let deadline = Instant::now() + SETTLING;
        self.look()?;
        while self.seen.is_there.get(last) != Some(&true) {
            let rest = deadline.saturating_duration_since(Instant::now());
            if !self.monitor.wait_readable(rest)? {
                break; // it had the address before
            }
            self.look()?;
        }
        Ok(())
    }

    /// Takes addresses from the link.
    pub(crate) fn unbind(&mut self, addresses: &Addresses) -> Result<(), Error> {
        for (number, address) in addresses.iter().enumerate() {
            let result = self.rtnetlink.delete_address(self.index, *address, prefix(*address));
            unless(kpng_linux::Error::is_not_there, result)?;
            if number % CHANGES_PER_READING == 0 {
                self.look()?;
            }
        }
        Ok(())
    }

    /// Deletes the link, if it is there.
    pub(crate) fn delete(&mut self) -> Result<(), Error> {
        match self.rtnetlink.link(names::LINK) {
            Err(kpng_linux::Error::NoLink { .. }) => Ok(()),
            Ok(link) if link.kind.as_deref() != Some("dummy") => Ok(()),
            found => Ok(self.rtnetlink.delete_link(found?.index)?),
        }
    }

    /// Whether the link is not what it shall be, or another has one of its addresses. Our own changes
    /// are reported too, and are as they shall be.
    pub(crate) fn disturbed(&mut self, state: &State) -> Result<bool, Error> {
        self.look()?;
        let Seen { is_there, elsewhere, is_down, anything } = std::mem::take(&mut self.seen);
        let differs = |(address, is_there): (&IpAddr, &bool)| {
            !is_link_local(*address) && state.is_bound(*address) != *is_there
        };
        let is_ours = |address: &IpAddr| state.has_address(*address);
        Ok(anything || is_down || elsewhere.iter().any(is_ours) || is_there.iter().any(differs))
    }

    /// Takes note of what the kernel has reported.
    fn look(&mut self) -> Result<(), Error> {
        let (index, seen) = (self.index, &mut self.seen);
        Ok(self.monitor.read(|change| match change {
            AddressChange::Link(link) if link.index == index => seen.is_down = !link.is_up(),
            AddressChange::LinkGone(link) if link.index == index => seen.is_down = true,
            AddressChange::Link(_) | AddressChange::LinkGone(_) => {}
            AddressChange::Address(found) if found.index == index => {
                seen.is_there.insert(found.address, true);
            }
            AddressChange::AddressGone(found) if found.index == index => {
                seen.is_there.insert(found.address, false);
            }
            AddressChange::Address(found) | AddressChange::AddressGone(found) => {
                seen.elsewhere.insert(found.address);
            }
            _ => seen.anything = true,
        })?)
    }
}

/// The result, but for an error that does no harm.
fn unless(
    is_harmless: fn(&kpng_linux::Error) -> bool,
    result: kpng_linux::Result<()>,
) -> kpng_linux::Result<()> {
    match result {
        Err(error) if is_harmless(&error) => Ok(()),
        other => other,
    }
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
