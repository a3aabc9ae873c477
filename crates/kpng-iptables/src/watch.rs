//! Notices when others change our chains.
//!
//! nf_tables reports every change, with who made it; x_tables reports nothing, so there it takes
//! looking.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kpng_core::model::Family;
use kpng_linux::Error as KernelError;
use kpng_linux::netlink::{Protocol, RECEIVE_BUFFER, Socket, attrs};

use crate::Error;
use crate::names::{self, HOOKS, PREFIX, Table};
use crate::program::{Programs, Variant};
use crate::state::State;

/// How one notices.
#[derive(Debug)]
pub(crate) enum Watch {
    /// By the kernel's notifications.
    Nft(NftWatch),
    /// By looking.
    Legacy(LegacyWatch),
}

impl Watch {
    /// Notices what happens from now on.
    pub(crate) fn open(variant: Variant) -> Result<Self, Error> {
        Ok(match variant {
            Variant::Nft => Self::Nft(NftWatch::open()?),
            Variant::Legacy => Self::Legacy(LegacyWatch::new()),
        })
    }

    /// The process `writer`, which we started, has written.
    pub(crate) fn wrote(&mut self, writer: u32) -> Result<(), Error> {
        match self {
            Self::Nft(watch) => watch.read(Some(writer)),
            Self::Legacy(_) => Ok(()),
        }
    }

    /// Takes in what has happened, before somebody is started who writes for us.
    pub(crate) fn about_to_write(&mut self) -> Result<(), Error> {
        match self {
            Self::Nft(watch) => watch.read(None),
            Self::Legacy(_) => Ok(()),
        }
    }

    /// Whether others have changed something of ours, or may have.
    pub(crate) fn disturbed(
        &mut self,
        programs: &Programs,
        states: &BTreeMap<Family, State>,
    ) -> Result<bool, Error> {
        match self {
            Self::Nft(watch) => {
                watch.read(None)?;
                Ok(watch.disturbed)
            }
            Self::Legacy(watch) => watch.disturbed(programs, states),
        }
    }
}

/// `NFNLGRP_NFTABLES` as a bit of the group mask.
const GROUP: u32 = 1 << 6;
/// The number of nf_tables among the subsystems of nfnetlink.
const SUBSYSTEM: u16 = 10;
// `NFT_MSG_*` (linux/netfilter/nf_tables.h).
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
const TABLE_NAME: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const RULE_CHAIN: u16 = 2;
/// `NFTA_CHAIN_NAME`.
const CHAIN_NAME: u16 = 3;

/// Reads nf_tables' notifications.
#[derive(Debug)]
pub(crate) struct NftWatch {
    socket: Socket,
    buffer: Vec<u8>,
    disturbed: bool,
}

impl NftWatch {
    fn open() -> Result<Self, Error> {
        let socket = Socket::open(Protocol::Netfilter, GROUP)?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER], disturbed: false })
    }

    /// Reads everything that waits. Changes by `writer` are ours: iptables' netlink socket has its
    /// process's id for a port. When it has another, or notifications were lost in the mass of
    /// them, there is a false alarm, after which nothing is found to be written.
    fn read(&mut self, writer: Option<u32>) -> Result<(), Error> {
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(Some(datagram)) => self.disturbed |= is_disturbance(datagram, writer),
                Ok(None) => return Ok(()),
                Err(KernelError::Overrun { .. }) => self.disturbed = true,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_disturbance(mut datagram: &[u8], writer: Option<u32>) -> bool {
    while let Some((header, rest)) = datagram.split_at_checked(16) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let length = word(0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let payload = rest.get(..length.saturating_sub(16)).unwrap_or_default();
        if kind >> 8 == SUBSYSTEM && Some(word(12)) != writer && concerns_us(kind & 255, payload) {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    false
}

fn concerns_us(message: u16, payload: &[u8]) -> bool {
    let text = |kind: u16| {
        let mut attrs = attrs(payload.get(4..).unwrap_or_default());
        attrs.find(|attr| attr.kind == kind).and_then(|attr| attr.str()).unwrap_or_default()
    };
    let Some(table) = Table::ALL.into_iter().find(|table| table.name() == text(TABLE_NAME)) else {
        return false;
    };
    let ours = |chain: &str| chain.starts_with(PREFIX);
    let has_hook = |chain: &str| HOOKS.iter().any(|hook| (hook.table, hook.from) == (table, chain));
    match message {
        DELETE_TABLE => true,
        NEW_CHAIN => ours(text(CHAIN_NAME)),
        DELETE_CHAIN => ours(text(CHAIN_NAME)) || has_hook(text(CHAIN_NAME)),
        NEW_RULE => ours(text(RULE_CHAIN)),
        DELETE_RULE => ours(text(RULE_CHAIN)) || has_hook(text(RULE_CHAIN)),
        _ => false,
    }
}

/// How often the kernel is looked at, if it is cheap.
const PERIOD: Duration = Duration::from_secs(2);
/// How often it is looked at whatever it costs.
const LONGEST_PERIOD: Duration = Duration::from_secs(4);
/// Otherwise looking takes at most one part in so many of the time.
const SHARE: u32 = 50;

/// Looks at the kernel: often whether everything was flushed, and as often as it is cheap whether
/// everything is as it was written.
#[derive(Debug)]
pub(crate) struct LegacyWatch {
    next: Instant,
    next_thorough: Instant,
}

impl LegacyWatch {
    fn new() -> Self {
        let next = Instant::now() + PERIOD;
        Self { next, next_thorough: next }
    }

    fn disturbed(
        &mut self,
        programs: &Programs,
        states: &BTreeMap<Family, State>,
    ) -> Result<bool, Error> {
        let start = Instant::now();
        if start < self.next {
            return Ok(false);
        }
        let thorough = start >= self.next_thorough;
        for (family, state) in states {
            let intact = if thorough {
                state.is_intact(&programs.read(*family)?)
            } else {
                programs.accepts(*family, &canary())?
            };
            if !intact {
                return Ok(true);
            }
        }
        let pause = (start.elapsed() * SHARE).max(PERIOD);
        self.next = Instant::now() + pause.min(LONGEST_PERIOD);
        if thorough {
            self.next_thorough = start + pause;
        }
        Ok(false)
    }
}

/// Rules that are not there when somebody has flushed a table. `-C` fails without them.
fn canary() -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let hooks = HOOKS.iter().filter(|hook| hook.table == table);
        let hooks: String = hooks.map(|hook| format!("-C {} {}\n", hook.from, hook.rule)).collect();
        let root = match table {
            Table::Filter => names::REFUSED,
            Table::Nat => names::PREROUTING,
        };
        let root = format!("-C {root} -j {}\n", names::VIPS);
        text += &format!("*{}\n{hooks}{root}COMMIT\n", table.name());
    }
    text
}
