//! What chains are called.
//!
//! Names are part of what others see and must not change between versions: a restarted process
//! recognizes its chains by them. The kernel takes 28 characters.

use kpng_core::model::Family;
use kpng_linux::nft::fnv1a;

/// How all our chains start.
pub(crate) const PREFIX: &str = "KPNG-";

/// The tables in which we have chains, in the order in which they are written: a frontend that
/// loses its last endpoint is refused before it is no longer forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Table {
    Filter,
    Nat,
}

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

pub(crate) const INPUT: &str = "KPNG-INPUT";
pub(crate) const FORWARD: &str = "KPNG-FORWARD";
pub(crate) const OUTPUT: &str = "KPNG-OUTPUT";
pub(crate) const PREROUTING: &str = "KPNG-PREROUTING";
pub(crate) const POSTROUTING: &str = "KPNG-POSTROUTING";
/// The root of the tree by virtual address, in both tables.
pub(crate) const VIPS: &str = "KPNG-VIPS";
/// The root of the tree by node port, in both tables.
pub(crate) const NODE_PORTS: &str = "KPNG-NODEPORTS";
/// filter: what becomes of packets to frontends that were not forwarded.
pub(crate) const REFUSED: &str = "KPNG-REFUSED";
/// filter: refuses.
pub(crate) const REJECT: &str = "KPNG-REJECT";
/// nat: everything that comes here is masqueraded.
pub(crate) const MARK: &str = "KPNG-MARK";

/// The chains whose names have a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A branch or leaf of the tree by virtual address.
    Vip,
    /// A branch or leaf of the tree by node port.
    NodePort,
    /// Who may come in to a frontend.
    Guard,
    /// What happens by where a packet comes from.
    Route,
    /// The choice of an endpoint.
    Pool,
    /// An endpoint.
    Endpoint,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::Vip => 'V',
            Self::NodePort => 'N',
            Self::Guard => 'G',
            Self::Route => 'R',
            Self::Pool => 'P',
            Self::Endpoint => 'E',
        }
    }
}

/// The name of the chain of this kind for what `identity` describes.
pub(crate) fn chain(kind: Kind, identity: &str) -> String {
    format!("{PREFIX}{}-{}", kind.letter(), hash(identity.as_bytes()))
}

/// The name of the list of clients that stick to an endpoint, in `/proc/net/xt_recent`.
pub(crate) fn recent_list(identity: &str) -> String {
    format!("{PREFIX}{}", hash(identity.as_bytes()))
}

/// 64 bits as 13 characters.
fn hash(identity: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = fnv1a(identity);
    let digit = |at: u32| ALPHABET[(hash >> (5 * at) & 31) as usize];
    (0..13).map(|at| char::from(digit(at))).collect()
}

/// The jump from a built-in chain to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) table: Table,
    /// The built-in chain.
    pub(crate) from: &'static str,
    /// The rule, as `iptables-save` prints it.
    pub(crate) rule: &'static str,
}

macro_rules! established {
    () => {
        "-m conntrack ! --ctstate RELATED,ESTABLISHED -m comment --comment "
    };
}

/// All jumps to our chains.
pub(crate) const HOOKS: [Hook; 6] = [
    Hook {
        table: Table::Filter,
        from: "INPUT",
        rule: concat!(established!(), "\"kpng: refused services\" -j KPNG-INPUT"),
    },
    Hook {
        table: Table::Filter,
        from: "FORWARD",
        rule: concat!(established!(), "\"kpng: refused services\" -j KPNG-FORWARD"),
    },
    Hook {
        table: Table::Filter,
        from: "OUTPUT",
        rule: concat!(established!(), "\"kpng: refused services\" -j KPNG-OUTPUT"),
    },
    Hook {
        table: Table::Nat,
        from: "PREROUTING",
        rule: "-m comment --comment \"kpng: services\" -j KPNG-PREROUTING",
    },
    Hook {
        table: Table::Nat,
        from: "OUTPUT",
        rule: "-m comment --comment \"kpng: services\" -j KPNG-OUTPUT",
    },
    Hook {
        table: Table::Nat,
        from: "POSTROUTING",
        rule: "-m comment --comment \"kpng: masquerading\" -j KPNG-POSTROUTING",
    },
];

/// `ip` or `ip6`: how the programs of a family start.
pub(crate) fn program_prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn names_are_stable_and_short() {
        let name = chain(Kind::Endpoint, "default/web/80/TCP/10.0.0.1:8080");
        expect!["KPNG-E-JDZNOBQRMA3UA"].assert_eq(&name);
        assert!(name.len() <= 28);
    }
}
