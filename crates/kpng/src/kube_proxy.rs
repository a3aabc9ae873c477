//! What kube-proxy left on this node, removed on request.

mod ipset;
mod ipvs;

use std::collections::BTreeMap;

use kpng_linux::nft::{Batch, FoundTable, Nftables, Table, TableFamily};

/// The tables of iptables-nft in which kube-proxy has chains.
const IPTABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// Removes kube-proxy's tables (nftables mode), and its chains with the rules that jump to them
/// (iptables and ipvs mode with iptables-nft), its ipsets, and its link `kube-ipvs0` with the virtual
/// services at its addresses. Everything else stays, also chains of kubelet and of CNIs whose names
/// start with `KUBE-`. Returns what was removed.
///
/// Chains of legacy iptables are out of nf_tables' reach, with the ipsets that they refer to, and
/// virtual services of node ports could be anybody's; `kube-proxy --cleanup` removes them.
///
/// # Errors
/// When the kernel refuses; what was removed until then stays removed.
pub fn remove() -> kpng_linux::Result<Vec<String>> {
    let mut nft = Nftables::open()?;
    let mut removed = ipvs::remove()?;
    for family in [TableFamily::Ip, TableFamily::Ip6] {
        for name in nft.tables(family)? {
            let table = Table::new(family, name);
            let mut batch = Batch::default();
            if table.name == "kube-proxy" {
                batch.delete_table(&table);
                removed.push(format!("table {} kube-proxy", family.name()));
            } else if IPTABLES.contains(&&*table.name)
                && let Some(found) = nft.read_table(&table)?
            {
                removed.extend(remove_chains(&table, &found, &mut batch));
            }
            nft.commit(batch)?;
        }
    }
    removed.extend(ipset::remove()?);
    Ok(removed)
}

/// kube-proxy's chains in iptables and ipvs mode. A prefix would take in those of others: kubelet has
/// `KUBE-FIREWALL` and `KUBE-IPTABLES-HINT`, kube-router `KUBE-ROUTER-…` and `KUBE-POD-FW-…`.
const CHAINS: [&str; 13] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
];

/// How kube-proxy's chains for single service ports and endpoints start.
const PREFIXES: [&str; 6] =
    ["KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-"];

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

fn remove_chains(table: &Table, found: &FoundTable, batch: &mut Batch) -> Vec<String> {
    let theirs: BTreeMap<_, _> =
        found.chains.iter().filter(|(name, _)| is_kube_proxys(name)).collect();
    for (name, chain) in &found.chains {
        if is_kube_proxys(name) {
            batch.flush_chain(table, name);
            continue;
        }
        let jumps = |rule: &&kpng_linux::nft::FoundRule| {
            rule.targets.iter().any(|target| theirs.contains_key(target))
        };
        for rule in chain.rules.iter().filter(jumps) {
            batch.delete_rule(table, name, rule.handle);
        }
    }
    for name in theirs.keys() {
        batch.delete_chain(table, name);
    }
    theirs
        .keys()
        .map(|name| format!("chain {name} of {} {}", table.family.name(), table.name))
        .collect()
}
