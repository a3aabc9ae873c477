//! What kube-proxy's ipvs mode left beside chains.

use std::collections::BTreeSet;

use kpng_linux::Result;
use kpng_linux::ipvs::{Command, Ipvs, ServiceKey};
use kpng_linux::rtnetlink::Rtnetlink;

/// kube-proxy's link for virtual addresses.
const LINK: &str = "kube-ipvs0";

/// Removes kube-proxy's link, and the virtual services at its addresses that are not ours.
pub(super) fn remove() -> Result<Vec<String>> {
    let mut rtnetlink = Rtnetlink::open()?;
    let link = match rtnetlink.link(LINK) {
        Err(kpng_linux::Error::NoLink { .. }) => return Ok(Vec::new()),
        link => link?,
    };
    let addresses = rtnetlink.addresses()?;
    let theirs: BTreeSet<_> = addresses
        .iter()
        .filter(|address| address.index == link.index)
        .map(|address| address.address)
        .collect();
    let mut ipvs = Ipvs::open()?;
    let mut removed = Vec::new();
    let mut commands = Vec::new();
    for service in ipvs.services()?.into_iter().filter(|service| !service.tagged) {
        if let ServiceKey::Address { address, .. } = service.key
            && theirs.contains(&address)
        {
            removed.push(format!("virtual service {}", service.key));
            commands.push(Command::DeleteService(service.key));
        }
    }
    if let Some((_, error)) = ipvs.apply(&commands)?.into_iter().next() {
        return Err(error);
    }
    rtnetlink.delete_link(link.index)?;
    removed.push(format!("link {LINK}"));
    Ok(removed)
}
