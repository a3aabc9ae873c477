//! Parameters of the kernel that IPVS needs. All belong to the network namespace.

use kpng_linux::ipvs::{Ipvs, Timeouts};
use kpng_linux::{Result, sysctl};

use crate::Config;

/// The parameters, and what they have to be.
pub(crate) fn parameters(config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut parameters = vec![
        // The rest of the network stack shall see IPVS's connections: nf_tables masquerades them.
        ("net/ipv4/vs/conntrack", "1"),
        // A packet to an endpoint that has gone ends the connection instead of waiting for its timeout.
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        // A client that sticks to an endpoint with weight 0 gets another one.
        ("net/ipv4/vs/expire_quiescent_template", "1"),
    ];
    if config.strict_arp {
        parameters.push(("net/ipv4/conf/all/arp_ignore", "1"));
        parameters.push(("net/ipv4/conf/all/arp_announce", "2"));
    }
    parameters
}

/// Sets what is not set yet.
pub(crate) fn set_up(config: &Config) -> Result<()> {
    for (name, value) in parameters(config) {
        sysctl::set_if_needed(name, value)?;
    }
    if reuses_slowly(&sysctl::get("kernel/osrelease")?) {
        sysctl::set_if_needed("net/ipv4/vs/conn_reuse_mode", "0")?;
    }
    if config.timeouts != Timeouts::default() {
        Ipvs::open()?.set_timeouts(&config.timeouts)?;
    }
    Ok(())
}

/// Before Linux 5.9, a new connection from a port that was used before waits a second
/// (<https://github.com/kubernetes/kubernetes/issues/81775>), unless reuse is not noticed.
fn reuses_slowly(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (next(), next()) else { return false };
    (major, minor) < (5, 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_with_slow_reuse() {
        for (release, slow) in [
            ("4.19.0-27-amd64", true),
            ("5.8.18", true),
            ("5.9.0", false),
            ("5.10.0-30-amd64", false),
            ("6.1.176", false),
            ("strange", false),
        ] {
            assert_eq!(reuses_slowly(release), slow, "{release}");
        }
    }
}
