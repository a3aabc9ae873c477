//! The way from a packet's destination to the rule of its frontend: a tree of chains.
//!
//! A key is the destination in digits of four bits: address (where the tree is by address),
//! protocol, port. A node of the tree holds its rules itself when they are few, or else leads on by
//! the first digit in which its keys differ. So the shape depends on nothing but the set of keys,
//! and a packet meets at most 16 rules for each factor of 16 in the number of frontends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use kpng_core::model::{Family, Protocol};

use crate::names::{self, Kind};

/// A node with more keys than this leads on to others.
const LEAF: usize = 8;

/// The digit that stands for every protocol: such a key matches an address whatever the port. It is
/// the largest, so that it comes after all others of the address.
const ANY_PROTOCOL: u8 = 15;

/// A destination, in digits of four bits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// A port of an address.
    pub(crate) fn vip(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        let mut digits = address_digits(address);
        push_port(&mut digits, protocol, port);
        Self(digits)
    }

    /// All of an address that no port's key matches.
    pub(crate) fn any_port(address: IpAddr) -> Self {
        let mut digits = address_digits(address);
        digits.push(ANY_PROTOCOL);
        Self(digits)
    }

    /// A node port.
    pub(crate) fn node_port(protocol: Protocol, port: u16) -> Self {
        let mut digits = Vec::with_capacity(5);
        push_port(&mut digits, protocol, port);
        Self(digits)
    }
}

fn address_digits(address: IpAddr) -> Vec<u8> {
    let halves = |byte: u8| [byte >> 4, byte & 15];
    match address {
        IpAddr::V4(ip) => ip.octets().into_iter().flat_map(halves).collect(),
        IpAddr::V6(ip) => ip.octets().into_iter().flat_map(halves).collect(),
    }
}

fn push_port(digits: &mut Vec<u8>, protocol: Protocol, port: u16) {
    digits.push(match protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Sctp => 3,
    });
    digits.extend([12, 8, 4, 0].map(|shift| (port >> shift & 15) as u8));
}

fn protocol_name(digit: u8) -> Option<&'static str> {
    match digit {
        1 => Some("tcp"),
        2 => Some("udp"),
        3 => Some("sctp"),
        _ => None,
    }
}

/// A node, by the digits that all its keys begin with. The root has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(Vec<u8>);

impl Node {
    /// The node where all begins.
    pub(crate) fn root() -> Self {
        Self(Vec::new())
    }

    /// How far from the root it is, at most.
    pub(crate) fn depth(&self) -> usize {
        self.0.len()
    }
}

/// What the rule of a frontend does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// For people.
    pub(crate) comment: String,
    /// What follows the match, for instance `-j ACCEPT`.
    pub(crate) target: String,
}

/// One tree.
#[derive(Debug)]
pub(crate) struct Tree {
    family: Family,
    kind: Kind,
    entries: BTreeMap<Key, Entry>,
}

impl Tree {
    /// The tree by virtual address.
    pub(crate) fn by_vip(family: Family) -> Self {
        Self { family, kind: Kind::Vip, entries: BTreeMap::new() }
    }

    /// The tree by node port.
    pub(crate) fn by_node_port(family: Family) -> Self {
        Self { family, kind: Kind::NodePort, entries: BTreeMap::new() }
    }

    /// Replaces what stands at a key.
    pub(crate) fn set(&mut self, key: Key, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.entries.insert(key, entry),
            None => self.entries.remove(&key),
        };
    }

    /// What stands at a key.
    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The nodes whose rules can depend on what stands at these keys: those on the way to them and,
    /// as one of them may have arisen from a leaf or become one, those next to the way.
    pub(crate) fn affected_by<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k Key>,
    ) -> BTreeSet<Node> {
        let (mut nodes, mut expanded) = (BTreeSet::new(), BTreeSet::new());
        for Key(key) in keys {
            let mut node = Node::root();
            while let Some(fork) = self.fork(&node).filter(|fork| key.starts_with(fork)) {
                if expanded.insert(node.clone()) {
                    nodes.extend(self.children(fork).map(|child| self.named(child)));
                }
                nodes.insert(node);
                // No key begins with another, so this one is longer than what some share with it.
                node = self.named(Node(key[..=fork.len()].to_vec()));
            }
            if node == Node::root() || self.below(&node.0).next().is_some() {
                nodes.insert(node);
            }
        }
        nodes
    }

    /// A node that leads on is known by all that its keys share.
    fn named(&self, node: Node) -> Node {
        match self.fork(&node) {
            Some(fork) => Node(fork.to_vec()),
            None => node,
        }
    }

    /// The name of a node's chain.
    pub(crate) fn chain(&self, node: &Node) -> String {
        if node.0.is_empty() {
            let root = if self.kind == Kind::Vip { names::VIPS } else { names::NODE_PORTS };
            return root.to_owned();
        }
        let digits = node.0.iter().filter_map(|digit| char::from_digit(u32::from(*digit), 16));
        names::chain(self.kind, &digits.collect::<String>())
    }

    /// The rules of a node.
    pub(crate) fn rules(&self, node: &Node) -> Vec<String> {
        let Some(fork) = self.fork(node) else {
            let rule = |(key, entry): (&Key, &Entry)| {
                let matches = self.matches(&key.0, &entry.comment);
                format!("{matches} {}", entry.target)
            };
            return self.below(&node.0).map(rule).collect();
        };
        // What matches no port must come back for the rule of the whole address.
        let verb = if fork.len() == self.address_digits() { "-j" } else { "-g" };
        let rule = |child: Node| {
            let matches = self.matches(&child.0, "");
            format!("{matches} {verb} {}", self.chain(&self.named(child)))
        };
        self.children(fork).map(rule).collect()
    }

    /// What all keys below a node that leads on have in common. `None` for a leaf.
    fn fork(&self, node: &Node) -> Option<&[u8]> {
        let mut keys = self.below(&node.0).map(|(key, _)| &*key.0);
        let first = keys.next()?;
        keys.nth(LEAF - 1)?;
        let (last, _) = self.below(&node.0).next_back()?;
        let common = first.iter().zip(&last.0).take_while(|(a, b)| a == b).count();
        Some(&first[..common])
    }

    fn children<'a>(&'a self, fork: &'a [u8]) -> impl Iterator<Item = Node> + 'a {
        let child = |digit: u8| Node(fork.iter().copied().chain([digit]).collect());
        (0..16).map(child).filter(|child| self.below(&child.0).next().is_some())
    }

    fn below(&self, prefix: &[u8]) -> impl DoubleEndedIterator<Item = (&Key, &Entry)> {
        // No digit is 16, so this is behind everything that begins with the prefix.
        let end = Key(prefix.iter().copied().chain([16]).collect());
        let start = Key(prefix.to_vec());
        self.entries.range((Bound::Included(start), Bound::Excluded(end)))
    }

    fn address_digits(&self) -> usize {
        match (self.kind, self.family) {
            (Kind::Vip, Family::V4) => 8,
            (Kind::Vip, Family::V6) => 32,
            _ => 0,
        }
    }

    /// The matches of all destinations that begin with `digits`, as `iptables-save` prints them.
    fn matches(&self, digits: &[u8], comment: &str) -> String {
        let (address, rest) = digits.split_at(digits.len().min(self.address_digits()));
        let mut matches = Vec::with_capacity(4);
        if !address.is_empty() {
            matches.push(format!("-d {}/{}", self.address(address), 4 * address.len()));
        }
        let protocol = rest.first().and_then(|digit| protocol_name(*digit));
        matches.extend(protocol.map(|name| format!("-p {name}")));
        if !comment.is_empty() {
            matches.push(format!("-m comment --comment \"{comment}\""));
        }
        if let (Some(protocol), Some(port)) = (protocol, rest.get(1..).filter(|d| !d.is_empty())) {
            let wild = 4 * (4 - port.len());
            let low = port.iter().fold(0, |sum, digit| sum << 4 | u32::from(*digit)) << wild;
            let high = low + (1 << wild) - 1;
            let range = if low == high { low.to_string() } else { format!("{low}:{high}") };
            matches.push(format!("-m {protocol} --dport {range}"));
        }
        matches.join(" ")
    }

    fn address(&self, digits: &[u8]) -> IpAddr {
        let value = digits.iter().fold(0_u128, |sum, digit| sum << 4 | u128::from(*digit));
        let wild = 4 * (self.address_digits() - digits.len());
        match self.family {
            Family::V4 => Ipv4Addr::from((value << wild) as u32).into(),
            Family::V6 => Ipv6Addr::from(value << wild).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_nodes(tree: &Tree, node: Node, nodes: &mut BTreeMap<String, Vec<String>>) {
        nodes.insert(tree.chain(&node), tree.rules(&node));
        let Some(fork) = tree.fork(&node) else { return };
        for child in tree.children(fork) {
            all_nodes(tree, tree.named(child), nodes);
        }
    }

    fn key(address: u8, port: u8) -> Key {
        let address = [10, 96, address >> 6, address & 63];
        match port {
            0 => Key::any_port(address.into()),
            port => Key::vip(address.into(), Protocol::Tcp, u16::from(port)),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Writing the affected nodes and deleting those that are gone gives the tree of the set.
        #[test]
        fn a_change_affects_what_it_says(
            changes in proptest::collection::vec((0_u8..80, 0_u8..16, any::<bool>()), 1..150),
        ) {
            let mut tree = Tree::by_vip(Family::V4);
            let mut written = BTreeMap::from([(names::VIPS.to_owned(), Vec::new())]);
            for (address, port, there) in changes {
                let key = key(address, port);
                let entry = Entry { comment: "c".to_owned(), target: "-j ACCEPT".to_owned() };
                let before = tree.affected_by([&key]);
                let before: BTreeSet<_> = before.iter().map(|node| tree.chain(node)).collect();
                tree.set(key.clone(), there.then_some(entry));
                let after = tree.affected_by([&key]);
                written.retain(|name, _| !before.contains(name));
                for node in &after {
                    written.insert(tree.chain(node), tree.rules(node));
                }
                let mut whole = BTreeMap::new();
                all_nodes(&tree, Node(Vec::new()), &mut whole);
                prop_assert_eq!(&written, &whole);
            }
        }
    }
}
