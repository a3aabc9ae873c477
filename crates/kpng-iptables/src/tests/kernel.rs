//! A kernel that takes what we give to `iptables-restore`, and sends packets through it.
//!
//! Chance is followed in every direction. What it does not know is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kpng_core::model::Family;
use kpng_core::plan::Target;

use crate::names::Table;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// It goes where it was going.
    Pass,
    Reject,
    Drop,
    Forward {
        target: Target,
        masquerade: bool,
    },
}

/// The first packet of a connection, on its way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    source: IpAddr,
    interface: Option<String>,
    from_node: bool,
    destination: IpAddr,
    protocol: String,
    port: u16,
    mark: u32,
    rewritten: bool,
    /// How many rules it has met.
    pub(super) met: usize,
}

impl Packet {
    pub(super) fn new(packet: &kpng_core::plan::Packet<'_>, mark: u32) -> Self {
        Self {
            source: packet.source,
            interface: packet.interface.map(str::to_owned),
            from_node: packet.from_node,
            destination: packet.destination,
            protocol: packet.protocol.name().to_ascii_lowercase(),
            port: packet.port,
            mark,
            rewritten: false,
            met: 0,
        }
    }
}

/// How a walk through a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Back where the chain was jumped to.
    Return,
    Accept,
    Drop,
    Reject,
    Masquerade,
}

/// The tables of one family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kernel {
    family: Family,
    chains: BTreeMap<(Table, String), Vec<String>>,
}

const BUILT_IN: [(Table, &str); 6] = [
    (Table::Filter, "INPUT"),
    (Table::Filter, "FORWARD"),
    (Table::Filter, "OUTPUT"),
    (Table::Nat, "PREROUTING"),
    (Table::Nat, "OUTPUT"),
    (Table::Nat, "POSTROUTING"),
];

impl Kernel {
    /// Built-in chains, empty.
    pub(super) fn new(family: Family) -> Self {
        let chains = BUILT_IN.map(|(table, name)| ((table, name.to_owned()), Vec::new())).into();
        Self { family, chains }
    }

    /// Does what `iptables-restore --noflush` does. Fails where it fails.
    pub(super) fn restore(&mut self, input: &str) {
        let mut table = None;
        for line in input.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name);
            } else if line == "COMMIT" {
                self.check(table.expect("a table is open"), line);
            } else {
                self.line(table.expect("a table is open"), line);
            }
        }
    }

    fn line(&mut self, table: Table, line: &str) {
        if let Some(chain) = line.strip_prefix(':') {
            let name = chain.strip_suffix(" - [0:0]").expect("a chain without policy");
            assert!(name.len() <= 28, "{name}");
            self.chains.insert((table, name.to_owned()), Vec::new());
            return;
        }
        let (verb, rest) = line.split_once(' ').expect("a command has a chain");
        let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
        let key = (table, name.to_owned());
        let chain = self.chains.get_mut(&key).unwrap_or_else(|| panic!("no chain: {line}"));
        match verb {
            "-A" => chain.push(rule.to_owned()),
            "-I" => chain.insert(0, rule.to_owned()),
            "-X" => {
                assert!(chain.is_empty(), "not empty: {line}");
                self.chains.remove(&key);
            }
            _ => panic!("unknown: {line}"),
        }
    }

    /// All jumps lead somewhere.
    fn check(&self, of: Table, line: &str) {
        for ((table, name), rules) in self.chains.iter().filter(|((table, _), _)| *table == of) {
            for rule in rules {
                let target = rule.rsplit(' ').next().unwrap_or_default();
                let there = self.chains.contains_key(&(*table, target.to_owned()));
                assert!(!target.starts_with("KPNG-") || there, "{name}: {rule} ({line})");
            }
        }
    }

    /// The names of chains that nothing leads to.
    pub(super) fn unreferenced(&self) -> Vec<&(Table, String)> {
        let target = |((table, _), rule): ((Table, &String), &String)| {
            (table, rule.rsplit(' ').next().unwrap_or_default().to_owned())
        };
        let rules = self.chains.iter().flat_map(|((table, name), rules)| {
            rules.iter().map(move |rule| ((*table, name), rule))
        });
        let targets: BTreeSet<_> = rules.map(target).collect();
        self.chains.keys().filter(|key| !targets.contains(key)).collect()
    }

    /// The rules of all chains.
    pub(super) fn chains(&self) -> &BTreeMap<(Table, String), Vec<String>> {
        &self.chains
    }

    /// All that can become of a packet on a node with these addresses, and how many rules it can
    /// meet.
    pub(super) fn trace(
        &self,
        packet: &Packet,
        local: &BTreeSet<IpAddr>,
    ) -> (BTreeSet<Fate>, usize) {
        let first = if packet.interface.is_some() { "PREROUTING" } else { "OUTPUT" };
        let (mut fates, mut met) = (BTreeSet::new(), 0);
        for (packet, end) in self.walk(Table::Nat, first, packet.clone(), local) {
            assert!(matches!(end, End::Return | End::Accept), "{end:?} in nat");
            let filter = match (&packet.interface, local.contains(&packet.destination)) {
                (None, _) => "OUTPUT",
                (_, true) => "INPUT",
                (_, false) => "FORWARD",
            };
            for (packet, end) in self.walk(Table::Filter, filter, packet, local) {
                met = met.max(packet.met);
                let fate = match end {
                    End::Drop => Fate::Drop,
                    End::Reject => Fate::Reject,
                    _ => self.leave(packet, local),
                };
                fates.insert(fate);
            }
        }
        (fates, met)
    }

    fn leave(&self, packet: Packet, local: &BTreeSet<IpAddr>) -> Fate {
        let foreign = packet.mark & !MARK;
        let ends = self.walk(Table::Nat, "POSTROUTING", packet, local);
        let [(packet, end)] = &ends[..] else { panic!("no chance in POSTROUTING") };
        assert_eq!(packet.mark, foreign, "our mark is cleared, others stay");
        let target = Target { address: packet.destination, port: packet.port };
        let masquerade = *end == End::Masquerade;
        assert!(packet.rewritten || !masquerade, "what is not ours is masqueraded");
        if packet.rewritten { Fate::Forward { target, masquerade } } else { Fate::Pass }
    }

    fn walk(
        &self,
        table: Table,
        chain: &str,
        packet: Packet,
        local: &BTreeSet<IpAddr>,
    ) -> Vec<(Packet, End)> {
        let (mut here, mut done) = (vec![packet], Vec::new());
        let rules = self.chains.get(&(table, chain.to_owned()));
        for rule in rules.unwrap_or_else(|| panic!("no chain {chain}")) {
            let words: Vec<_> = rule.split(' ').collect();
            for mut packet in std::mem::take(&mut here) {
                packet.met += 1;
                let Some((target, by_chance)) = matches(&words, &packet, local) else {
                    here.push(packet);
                    continue;
                };
                if by_chance {
                    here.push(packet.clone());
                }
                match *target {
                    ["-j", "ACCEPT"] => done.push((packet, End::Accept)),
                    ["-j", "DROP"] => done.push((packet, End::Drop)),
                    ["-j", "RETURN"] => done.push((packet, End::Return)),
                    ["-j", "REJECT", ..] => done.push((packet, End::Reject)),
                    ["-j", "MASQUERADE", "--random-fully"] => done.push((packet, End::Masquerade)),
                    ["-j", "MARK", "--set-xmark", value] => {
                        let (value, mask) = value.split_once('/').unwrap();
                        packet.mark = (packet.mark & !hex(mask)) ^ hex(value);
                        here.push(packet);
                    }
                    ["-j", "DNAT", "--to-destination", to] => {
                        let (address, port) = to.rsplit_once(':').unwrap();
                        packet.destination = address.trim_matches(['[', ']']).parse().unwrap();
                        packet.port = port.parse().unwrap();
                        packet.rewritten = true;
                        done.push((packet, End::Accept));
                    }
                    ["-j", chain] => {
                        for (packet, end) in self.walk(table, chain, packet, local) {
                            match end {
                                End::Return => here.push(packet),
                                end => done.push((packet, end)),
                            }
                        }
                    }
                    ["-g", chain] => done.extend(self.walk(table, chain, packet, local)),
                    _ => panic!("unknown target: {rule}"),
                }
            }
        }
        done.extend(here.into_iter().map(|packet| (packet, End::Return)));
        done
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }
}

/// The bit of the default configuration.
const MARK: u32 = 0x4000;

fn hex(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// If the packet fits, the target, and whether it fits by chance.
fn matches<'a>(
    mut words: &'a [&'a str],
    packet: &Packet,
    local: &BTreeSet<IpAddr>,
) -> Option<(&'a [&'a str], bool)> {
    let within = |net: &str, address: IpAddr| net.parse::<IpNet>().unwrap().contains(&address);
    let mut by_chance = false;
    loop {
        let (fits, length) = match *words {
            ["-s", net, ..] => (within(net, packet.source), 2),
            ["-d", net, ..] => (within(net, packet.destination), 2),
            ["-p", protocol, ..] => (packet.protocol == protocol, 2),
            ["-i", name, ..] => (fits_interface(name, packet), 2),
            ["!", "-i", name, ..] => {
                (packet.interface.is_some() && !fits_interface(name, packet), 3)
            }
            ["-m", "comment", "--comment", text, ref rest @ ..] => {
                let mut length = 4;
                if !text.ends_with('"') {
                    length += 1 + rest.iter().position(|word| word.ends_with('"')).unwrap();
                }
                (true, length)
            }
            ["-m", protocol, "--dport", range, ..] => {
                assert_eq!(protocol, packet.protocol, "-p comes first");
                let (low, high) = range.split_once(':').unwrap_or((range, range));
                let range: std::ops::RangeInclusive<u16> =
                    low.parse().unwrap()..=high.parse().unwrap();
                (range.contains(&packet.port), 4)
            }
            ["-m", "addrtype", "--src-type", "LOCAL", ..] => (packet.from_node, 4),
            ["-m", "addrtype", "!", "--dst-type", "LOCAL", ..] => {
                (!local.contains(&packet.destination), 5)
            }
            ["-m", "conntrack", "--ctstate", "NEW", ..] => (true, 4),
            ["-m", "conntrack", "--ctstate", "INVALID", ..] => (false, 4),
            ["-m", "conntrack", "--ctstate", "DNAT", ..] => (packet.rewritten, 4),
            ["-m", "conntrack", "!", "--ctstate", "DNAT", ..] => (!packet.rewritten, 5),
            ["-m", "conntrack", "!", "--ctstate", "RELATED,ESTABLISHED", ..] => (true, 5),
            ["-m", "mark", "!", "--mark", value, ..] => {
                let (value, mask) = value.split_once('/').unwrap();
                (packet.mark & hex(mask) != hex(value), 5)
            }
            ["-m", "statistic", "--mode", "random", "--probability", _, ..] => {
                by_chance = true;
                (true, 6)
            }
            ["-m", "recent", "--rcheck", "--seconds", _, "--reap", "--name", ..] => (false, 12),
            ["-m", "recent", "--set", "--name", _, "--mask", _, "--rsource", ..] => (true, 8),
            ["-j" | "-g", ..] => return Some((words, by_chance)),
            _ => panic!("unknown match: {words:?}"),
        };
        if !fits {
            return None;
        }
        words = &words[length..];
    }
}

fn fits_interface(pattern: &str, packet: &Packet) -> bool {
    packet.interface.as_deref().is_some_and(|name| match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    })
}
