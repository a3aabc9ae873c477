//! Removes what kube-proxy's ipvs mode left behind, on request.

use std::collections::BTreeSet;

use kpng_linux::ipvs::{Command, Ipvs, ServiceKey};
use kpng_linux::rtnetlink::Rtnetlink;

use crate::Error;

/// kube-proxy's link for virtual addresses.
const LINK: &str = "kube-ipvs0";

/// Removes kube-proxy's link `kube-ipvs0`, and the virtual services at its addresses that are not ours.
/// Returns what was removed.
///
/// Virtual services of node ports, which are at the node's own addresses, could be anybody's: those that
/// are wanted were taken over (see [`crate::Config::take_over`]), others stay. So do ipsets whose names
/// start with `KUBE-`; `kube-proxy --cleanup` removes them.
///
/// # Errors
/// When the kernel refuses; what was removed until then stays removed.
pub fn remove_kube_proxy() -> Result<Vec<String>, Error> {
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
    for service in ipvs.services()? {
        if let ServiceKey::Address { address, .. } = service.key
            && !service.tagged
            && theirs.contains(&address)
        {
            removed.push(format!("virtual service {}", service.key));
            commands.push(Command::DeleteService(service.key));
        }
    }
    ipvs.apply(&commands)?;
    rtnetlink.delete_link(link.index)?;
    removed.push(format!("link {LINK}"));
    Ok(removed)
}
