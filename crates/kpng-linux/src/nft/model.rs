//! The language: tables, sets, chains, rules and elements.

use std::net::IpAddr;
use std::time::Duration;

use super::Bytes;

/// The family of a table, which decides what an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    /// `ip`: IPv4.
    Ip,
    /// `ip6`: IPv6.
    Ip6,
}

impl TableFamily {
    /// The kernel's number (`NFPROTO_*`).
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// The family with the kernel's number `number`.
    pub(super) fn of_number(number: u8) -> Option<Self> {
        [Self::Ip, Self::Ip6].into_iter().find(|family| family.number() == number)
    }

    /// nft's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// The length of an address, in bytes.
    pub(super) fn address_len(self) -> u32 {
        match self {
            Self::Ip => 4,
            Self::Ip6 => 16,
        }
    }
}

/// A table: the unit of ownership.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: String,
}

impl Table {
    /// The table `name` of `family`.
    pub fn new(family: TableFamily, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

/// Something a packet has, as a part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ip saddr`, `ip6 saddr`.
    Saddr,
    /// `ip daddr`, `ip6 daddr`.
    Daddr,
    /// `ct original ip daddr`: the destination of the connection's first packet as it came in. Not
    /// for declarations.
    OriginalDaddr,
    /// `meta l4proto`.
    L4Proto,
    /// `th dport`.
    Dport,
    /// `meta priority`: what the kernel's queueing disciplines sort by.
    Priority,
    /// `meta mark`: a number that the packet carries within this kernel.
    Mark,
    /// `numgen random mod N`: a uniform random number below N.
    Random(u32),
    /// `numgen random mod 1 offset N`: always N. A constant that nft can read as part of a key.
    Constant(u32),
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDef {
    /// Its name.
    pub name: &'static str,
    /// What its keys are made of.
    pub key: Vec<Field>,
    /// What it maps to.
    pub data: Data,
    /// `flags interval`: elements are ranges of keys.
    pub interval: bool,
    /// `flags dynamic,timeout`, with the largest number of elements: rules add elements.
    pub dynamic: Option<u32>,
    /// `counter`: each element counts the packets that were found by it, but not in a look-up that asks
    /// whether something is not in the set.
    pub counted: bool,
    /// What it is for.
    pub comment: &'static str,
}

/// What a set maps its keys to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: it is a set.
    None,
    /// The values of such fields.
    Fields(Vec<Field>),
    /// What to do with a packet.
    Verdict,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The key, or the first key of the range.
    pub key: Bytes,
    /// The last key of the range, in an interval set.
    pub last: Option<Bytes>,
    /// What it maps to.
    pub value: Value,
}

/// What one element maps its key to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Nothing: it is in the set.
    None,
    /// These bytes.
    Data(Bytes),
    /// This verdict.
    Verdict(Verdict),
}

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// `accept`: leave this hook.
    Accept,
    /// `drop`.
    Drop,
    /// `return`: go on after the jump that led here.
    Return,
    /// `jump CHAIN`.
    Jump(String),
    /// `goto CHAIN`.
    Goto(String),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None` when only rules lead there.
    pub hook: Option<Hook>,
}

/// Where packets enter a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `type`.
    pub kind: HookKind,
    /// `hook`.
    pub point: HookPoint,
    /// `priority`: lower comes first; destination NAT happens at -100, source NAT at 100.
    pub priority: i32,
}

impl Hook {
    /// The hook number and priority, as [`super::FoundChain`] has them.
    pub fn position(&self) -> (u32, i32) {
        (self.point.number(), self.priority)
    }
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// `filter`.
    Filter,
    /// `nat`: sees the first packet of a connection only.
    Nat,
    /// `route`: a packet whose mark it changes is routed again. For hook `output` only.
    Route,
}

impl HookKind {
    /// nft's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// A place on a packet's way through the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// `prerouting`: everything that comes in.
    Prerouting,
    /// `input`: what is for this node.
    Input,
    /// `forward`: what passes through.
    Forward,
    /// `output`: what this node made.
    Output,
    /// `postrouting`: everything that goes out.
    Postrouting,
}

impl HookPoint {
    /// The kernel's number (`NF_INET_*`).
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// nft's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A rule: when every condition holds, every action is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions and actions, in order.
    pub statements: Vec<Statement>,
}

impl Rule {
    /// The rule with these statements.
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into() }
    }
}

/// What connection tracking knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// `ct state new`: the first packet of a connection.
    New,
    /// `ct state invalid`: it fits no connection.
    Invalid,
    /// `ct status dnat`: its destination was rewritten.
    Dnat,
}

/// A condition or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ct state new`, `ct state invalid`, `ct status dnat`.
    Connection(Connection),
    /// `KEY @SET`, or `KEY != @SET`.
    InSet {
        /// The key.
        key: Vec<Field>,
        /// The set.
        set: &'static str,
        /// Holds when the key is not in the set.
        negate: bool,
    },
    /// `meta l4proto PROTO`.
    L4Proto(u8),
    /// `ip daddr 127.0.0.0/8`.
    DaddrInLoopbackNet,
    /// `iif != "lo"`.
    NotFromLoopback,
    /// `iifname "NAME"`, or `iifname "NAME*"` with `prefix`.
    Iifname {
        /// The name or its beginning, at most 15 bytes.
        name: String,
        /// Any interface whose name starts like this.
        prefix: bool,
    },
    /// `fib saddr type local`: the source is an address of this node.
    SourceIsLocal,
    /// `numgen random mod N 0`: holds once in N times.
    OnceIn(u32),
    /// `meta mark & BIT == BIT`.
    MarkHas(u32),
    /// `meta mark set meta mark | BIT`.
    SetMark(u32),
    /// `meta mark set meta mark & ~BIT`.
    ClearMark(u32),
    /// `meta mark & MASK == VALUE`.
    MarkIs {
        /// Which bits are looked at.
        mask: u32,
        /// What they are.
        value: u32,
    },
    /// `meta mark set KEY map @MAP`: all bits of it. Does not hold when the key is not in the map.
    MarkFrom {
        /// The key.
        key: Vec<Field>,
        /// A map to a mark.
        map: &'static str,
    },
    /// `meta priority set KEY map @MAP`. Does not hold when the key is not in the map.
    SetPriority {
        /// The key.
        key: Vec<Field>,
        /// A map to a priority.
        map: &'static str,
    },
    /// `meta priority set N`, where 0 is `none`.
    PriorityTo(u32),
    /// `meta priority N`.
    PriorityIs(u32),
    /// `KEY vmap @MAP`.
    VerdictMap {
        /// The key.
        key: Vec<Field>,
        /// A map to a verdict.
        map: &'static str,
    },
    /// `update @SET { KEY timeout T }`: adds the key, or starts its timeout again. Does not hold
    /// when the set is full.
    Update {
        /// The dynamic set.
        set: &'static str,
        /// The key.
        key: Vec<Field>,
        /// When the element goes.
        timeout: Duration,
    },
    /// `dnat to KEY map @MAP`, where the map gives an address and a port.
    DnatMap {
        /// The key.
        key: Vec<Field>,
        /// The map.
        map: &'static str,
    },
    /// `dnat to ADDRESS:PORT`. Needs an `L4Proto` before it.
    Dnat {
        /// The new destination address.
        address: IpAddr,
        /// The new destination port.
        port: u16,
    },
    /// `socket transparent 1 socket wildcard 0`: a socket of this node takes the packet, also when the
    /// address is not the node's. It is bound to an address, and has asked for that (`IP_TRANSPARENT`).
    /// Needs Linux 5.11.
    ToTransparentSocket,
    /// `tproxy to ADDRESS:PORT`: the socket that takes it, or else the one that listens there, gets the
    /// packet, unchanged, once it is routed to this node. Does not hold when nobody listens. Needs an
    /// `L4Proto` of TCP or UDP before it.
    Tproxy {
        /// Where it listens.
        address: IpAddr,
        /// The port.
        port: u16,
    },
    /// `masquerade fully-random`.
    Masquerade,
    /// `reject with tcp reset`. Needs an `L4Proto` of TCP before it.
    RejectWithReset,
    /// `reject`: ICMP port unreachable.
    Reject,
    /// A verdict.
    Verdict(Verdict),
}
