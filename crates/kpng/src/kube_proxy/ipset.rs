//! The ipsets of kube-proxy's ipvs mode.

use std::time::Duration;

use kpng_linux::Result;
use kpng_linux::ipset::Ipsets;
use rustix::io::Errno;
use tracing::warn;

/// kube-proxy's sets, after `KUBE-` and in IPv6 `KUBE-6-`.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];

/// A rule that was deleted lets go of its set some time after the kernel's acknowledgement.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Removes kube-proxy's sets. Those that rules still refer to stay, and a warning says so.
pub(super) fn remove() -> Result<Vec<String>> {
    let mut sets = Ipsets::open()?;
    let mut removed = Vec::new();
    for name in sets.names()?.into_iter().filter(|name| is_kube_proxys(name)) {
        if destroy(&mut sets, &name)? {
            removed.push(format!("ipset {name}"));
        } else {
            warn!(
                ipset = name,
                "kube-proxy's ipset stays, as a rule refers to it, perhaps one of legacy iptables; \
                 `kube-proxy --cleanup` removes both"
            );
        }
    }
    Ok(removed)
}

/// False when something refers to the set.
fn destroy(sets: &mut Ipsets, name: &str) -> Result<bool> {
    for _ in 0..ATTEMPTS {
        match sets.destroy(name) {
            Err(error) if error.errno() == Some(Errno::PROTO) => std::thread::sleep(PAUSE),
            result => return result.map(|()| true),
        }
    }
    Ok(false)
}

fn is_kube_proxys(set: &str) -> bool {
    let name = set.strip_prefix("KUBE-").map(|name| name.strip_prefix("6-").unwrap_or(name));
    name.is_some_and(|name| SETS.contains(&name))
}
