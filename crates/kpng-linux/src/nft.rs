//! nf_tables: a small language of rules, and its two encodings.
//!
//! ```text
//! SetDef, Chain, Rule, Element ──┬─▶ Batch ──▶ Nftables::commit   (netlink, what runs)
//!                                └─▶ text::render                 (what `nft -f` reads)
//! ```
//!
//! There is one model of a ruleset and there are two encoders, never two renderers. The language
//! has what kpng needs and nothing else; each [`Statement`] says what it means in nft's own syntax.
//! What the kernel holds is read back by [`Nftables`] in the same terms. [`OwnedTable`] keeps a whole
//! table equal to what its owner wants.

mod batch;
mod bytes;
mod expression;
mod model;
mod monitor;
mod owned;
mod read;
mod tally;
#[cfg(test)]
mod tests;
pub mod text;
mod userdata;

pub use batch::{Batch, Nftables, fnv1a};
pub use bytes::Bytes;
pub use model::{
    Chain, Connection, Data, Element, Field, Hook, HookKind, HookPoint, Rule, SetDef, Statement,
    Table, TableFamily, Value, Verdict,
};
pub use monitor::Monitor;
pub use owned::{Change, Comparison, Content, OwnedTable, owned_text};
pub use read::{FoundChain, FoundRule, FoundSet, FoundTable, Taken};
pub use tally::{Counted, Tally};

/// Netlink message types of nf_tables, without the subsystem (`NFT_MSG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Message {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    GetSet = 10,
    DeleteSet = 11,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
}

/// The number of the nf_tables subsystem of nfnetlink (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;

impl Message {
    fn kind(self) -> u16 {
        (SUBSYSTEM << 8) | u16::from(self as u8)
    }
}
