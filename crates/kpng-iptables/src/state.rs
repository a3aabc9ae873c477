//! What is written, and what has to be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{NodeFacts, ServicePlan};
use kpng_linux::nft::fnv1a;

use crate::Config;
use crate::names::{self, HOOKS, Hook, Table};
use crate::render::{self, Chain, TreeId, node_rank};
use crate::text::Found;
use crate::tree::{Entry, Key, Node, Tree};

/// Which chain.
pub(crate) type ChainKey = (Table, String);

/// One family's chains.
#[derive(Debug)]
pub(crate) struct State {
    family: Family,
    services: HashMap<NamespacedName, Owned>,
    trees: BTreeMap<TreeId, Tree>,
    /// How many services have a cluster IP.
    cluster_ips: HashMap<IpAddr, u32>,
    /// The fingerprints of all chains that are written or about to be.
    written: HashMap<ChainKey, u64>,
    /// What the kernel had before, and nobody has asked for yet.
    found: HashMap<ChainKey, u64>,
    /// Corrections of the jumps to our chains.
    hooks: Vec<(Table, String)>,
}

/// What belongs to one service.
#[derive(Debug, Default)]
struct Owned {
    chains: Vec<ChainKey>,
    keys: Vec<(TreeId, Key)>,
    cluster_ips: Vec<IpAddr>,
}

/// What has to be written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// Chains to be made, or made anew, those first that others lead to.
    pub(crate) chains: Vec<Chain>,
    /// Chains that nothing leads to any more when those are written.
    pub(crate) gone: Vec<ChainKey>,
    /// Lines that make or remove jumps to our chains.
    pub(crate) hooks: Vec<(Table, String)>,
}

impl Change {
    /// Adds another change of the same state.
    pub(crate) fn merge(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.chains.sort_by_key(|chain| chain.rank);
        self.gone.extend(other.gone);
        self.hooks.extend(other.hooks);
    }
}

/// Work in progress on one change.
#[derive(Default)]
struct Round {
    before: BTreeSet<ChainKey>,
    after: BTreeMap<ChainKey, Chain>,
    entries: BTreeMap<(TreeId, Key), Option<Entry>>,
    /// Cluster IPs that a service has lost or got.
    cluster_ips: BTreeSet<IpAddr>,
}

impl State {
    /// The state of a kernel that holds `found`.
    pub(crate) fn new(family: Family, found: Found) -> Self {
        let trees = Table::ALL
            .into_iter()
            .flat_map(|table| [false, true].map(|by_node_port| TreeId { table, by_node_port }));
        let tree = |id: TreeId| {
            let tree =
                if id.by_node_port { Tree::by_node_port(family) } else { Tree::by_vip(family) };
            (id, tree)
        };
        let hooks = HOOKS.iter().flat_map(|hook| correct(hook, &found)).collect();
        Self {
            family,
            services: HashMap::new(),
            trees: trees.map(tree).collect(),
            cluster_ips: HashMap::new(),
            written: HashMap::new(),
            found: found.chains,
            hooks,
        }
    }

    /// Whether the kernel had our chains when this began.
    pub(crate) fn is_found(&self) -> bool {
        !self.found.is_empty()
    }

    /// All services that are written.
    pub(crate) fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.services.keys()
    }

    /// Whether [`write_skeleton`](Self::write_skeleton) was called.
    pub(crate) fn has_skeleton(&self) -> bool {
        self.written.contains_key(&(Table::Nat, names::PREROUTING.to_owned()))
    }

    /// How many chains are written or about to be.
    pub(crate) fn written_chains(&self) -> usize {
        self.written.len()
    }

    /// What has to be written so that the chains that depend on no service are there.
    pub(crate) fn write_skeleton(&mut self, facts: &NodeFacts, config: &Config) -> Change {
        let mut round = Round::default();
        for chain in render::skeleton(self.family, facts, config) {
            round.after.insert((chain.table, chain.name.clone()), chain);
        }
        for (id, tree) in &self.trees {
            let root = chain_of(*id, tree, &Node::root());
            round.after.insert((root.table, root.name.clone()), root);
        }
        Change { hooks: std::mem::take(&mut self.hooks), ..self.finish(round) }
    }

    /// What has to be written so that these services are as planned. Takes it for written.
    pub(crate) fn write_services<'a>(
        &mut self,
        facts: &NodeFacts,
        services: impl IntoIterator<Item = (&'a NamespacedName, Option<&'a ServicePlan>)>,
    ) -> Change {
        let mut round = Round::default();
        let services: Vec<_> = services.into_iter().collect();
        for (key, _) in &services {
            self.withdraw(key, &mut round);
        }
        for (key, plan) in services {
            if let Some(plan) = plan {
                self.claim(key, plan, facts, &mut round);
            }
        }
        for ip in std::mem::take(&mut round.cluster_ips) {
            let (id, key, entry) = render::closed(ip);
            let entry = self.cluster_ips.contains_key(&ip).then_some(entry);
            round.entries.insert((id, key), entry);
        }
        self.change_trees(&mut round);
        self.finish(round)
    }

    /// What the kernel had that nobody asked for.
    pub(crate) fn remove_unclaimed(&mut self) -> Change {
        let mut gone: Vec<_> = std::mem::take(&mut self.found).into_keys().collect();
        gone.sort_unstable();
        Change { gone, ..Change::default() }
    }

    fn withdraw(&mut self, key: &NamespacedName, round: &mut Round) {
        let Some(old) = self.services.remove(key) else { return };
        round.before.extend(old.chains);
        round.entries.extend(old.keys.into_iter().map(|key| (key, None)));
        for ip in old.cluster_ips {
            round.cluster_ips.insert(ip);
            if let Some(users) = self.cluster_ips.get_mut(&ip) {
                *users -= 1;
                if *users == 0 {
                    self.cluster_ips.remove(&ip);
                }
            }
        }
    }

    fn claim(
        &mut self,
        key: &NamespacedName,
        plan: &ServicePlan,
        facts: &NodeFacts,
        round: &mut Round,
    ) {
        let wanted = render::service(key, plan, facts, self.family);
        let of_family = |ip: &&IpAddr| Family::of(**ip) == self.family;
        let mut owned = Owned {
            cluster_ips: plan.cluster_ips.iter().filter(of_family).copied().collect(),
            ..Owned::default()
        };
        for ip in &owned.cluster_ips {
            round.cluster_ips.insert(*ip);
            *self.cluster_ips.entry(*ip).or_insert(0) += 1;
        }
        for chain in wanted.chains {
            let name = (chain.table, chain.name.clone());
            owned.chains.push(name.clone());
            round.after.insert(name, chain);
        }
        for (id, key, entry) in wanted.entries {
            owned.keys.push((id, key.clone()));
            round.entries.insert((id, key), Some(entry));
        }
        self.services.insert(key.clone(), owned);
    }

    fn change_trees(&mut self, round: &mut Round) {
        let entries = std::mem::take(&mut round.entries);
        let differs = |((id, key), entry): &((TreeId, Key), Option<Entry>)| {
            self.trees[id].get(key) != entry.as_ref()
        };
        let entries: Vec<_> = entries.into_iter().filter(differs).collect();
        let affected = |trees: &BTreeMap<TreeId, Tree>| {
            let nodes = |(id, tree): (&TreeId, &Tree)| {
                let keys = entries.iter().filter(|((of, _), _)| of == id);
                (*id, tree.affected_by(keys.map(|((_, key), _)| key)))
            };
            trees.iter().map(nodes).collect::<Vec<_>>()
        };
        for (id, nodes) in affected(&self.trees) {
            let tree = &self.trees[&id];
            round.before.extend(nodes.iter().map(|node| (id.table, tree.chain(node))));
        }
        for ((id, key), entry) in entries.iter().cloned() {
            self.trees.get_mut(&id).expect("there are all trees").set(key, entry);
        }
        for (id, nodes) in affected(&self.trees) {
            let chains = nodes.iter().map(|node| chain_of(id, &self.trees[&id], node));
            round.after.extend(chains.map(|chain| ((chain.table, chain.name.clone()), chain)));
        }
    }

    fn finish(&mut self, round: Round) -> Change {
        let gone = round.before.into_iter().filter(|name| !round.after.contains_key(name));
        let gone: Vec<_> = gone.filter(|name| self.written.remove(name).is_some()).collect();
        let mut chains = Vec::new();
        for (name, chain) in round.after {
            let fingerprint = fingerprint(&chain.rules);
            let before = match self.found.remove(&name) {
                Some(found) => Some(found),
                None => self.written.get(&name).copied(),
            };
            if before != Some(fingerprint) {
                chains.push(chain);
            }
            self.written.insert(name, fingerprint);
        }
        chains.sort_by_key(|chain| chain.rank);
        Change { chains, gone, hooks: Vec::new() }
    }

    /// Whether the kernel holds what was written.
    pub(crate) fn is_intact(&self, found: &Found) -> bool {
        self.written.iter().all(|(name, sum)| found.chains.get(name) == Some(sum))
            && HOOKS.iter().all(|hook| correct(hook, found).is_empty())
    }
}

fn chain_of(id: TreeId, tree: &Tree, node: &Node) -> Chain {
    Chain {
        table: id.table,
        name: tree.chain(node),
        rank: node_rank(node.depth()),
        rules: tree.rules(node),
    }
}

/// The lines that make a jump be there once.
fn correct(hook: &Hook, found: &Found) -> Vec<(Table, String)> {
    let count = found.hooks.iter().filter(|found| *found == hook).count();
    let line = |verb| (hook.table, format!("{verb} {} {}", hook.from, hook.rule));
    match count {
        0 => vec![line("-I")],
        count => (1..count).map(|_| line("-D")).collect(),
    }
}

/// What tells the rules of a chain from others.
pub(crate) fn fingerprint(rules: &[String]) -> u64 {
    rules.iter().fold(0, |sum, rule| add_to_fingerprint(sum, rule))
}

/// The fingerprint of a chain with one more rule.
pub(crate) fn add_to_fingerprint(sum: u64, rule: &str) -> u64 {
    fnv1a(rule.as_bytes()).wrapping_add(sum).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}
