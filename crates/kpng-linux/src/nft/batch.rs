//! Transactions: everything in a [`Batch`] happens at once, or nothing does.
//!
//! A batch is one datagram (the kernel takes it in one `sendmsg`), asks for an ACK on its last
//! message only (one per message overflows the receive buffer), and cuts long lists of elements, as
//! the length of an attribute has 16 bits.

use std::fmt;

use super::expression::{put_rule, put_verdict};
use super::model::{Chain, Data, Element, Field, Rule, SetDef, Table, TableFamily, Value};
use super::{Message, Taken, userdata};
use crate::error::{Error, Result};
use crate::netlink::{MessageBuf, Protocol, RECEIVE_BUFFER, Socket, messages};

/// Elements are cut in lists of this many bytes at most; an attribute holds 65,531.
const ELEMENTS_PER_LIST: usize = 60_000;

/// The counters of so many deleted elements are asked for at most, in one batch: all answers have to fit
/// the receive buffer, which is small in a user namespace.
const MAX_TAKEN: usize = 1000;

const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const VALUE: u16 = 1;
const LIST_ELEMENT: u16 = 1;

/// Changes that are made at once.
#[derive(Debug)]
pub struct Batch {
    m: MessageBuf,
    /// What each message does, for errors; the first is the begin of the batch.
    what: Vec<What>,
    next_set_id: u32,
    elements: usize,
    taken: usize,
}

/// What a message does to which object.
#[derive(Clone, Debug)]
struct What {
    verb: &'static str,
    object: String,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        let mut m = MessageBuf::new();
        m.begin(BATCH_BEGIN, 0);
        m.put_raw(&header(0, super::SUBSYSTEM));
        let what = vec![What { verb: "begin", object: "the transaction".to_owned() }];
        Self { m, what, next_set_id: 1, elements: 0, taken: 0 }
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.what.len() == 1
    }

    /// The length of the messages, in bytes.
    pub fn len(&self) -> usize {
        self.m.len()
    }

    /// How many elements it adds and deletes.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Creates the table, unless it is there.
    pub fn add_table(&mut self, table: &Table) {
        self.begin(Message::NewTable, NLM_F_CREATE, table, "add", format_args!(""));
        self.m.put_str(1, &table.name);
    }

    /// Deletes the table with everything in it. It must exist.
    pub fn delete_table(&mut self, table: &Table) {
        self.begin(Message::DeleteTable, 0, table, "delete", format_args!(""));
        self.m.put_str(1, &table.name);
    }

    /// Creates a chain, unless it is there.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        let name = &chain.name;
        self.begin(Message::NewChain, NLM_F_CREATE, table, "add", format_args!("chain {name}"));
        self.m.put_str(1, &table.name);
        self.m.put_str(3, name);
        if let Some(hook) = chain.hook {
            self.m.nest(4, |m| {
                m.put_u32_be(1, hook.point.number());
                m.put_u32_be(2, hook.priority.cast_unsigned());
            });
            self.m.put_str(7, hook.kind.name());
        }
    }

    /// Deletes a chain that nothing refers to, with its rules.
    pub fn delete_chain(&mut self, table: &Table, name: &str) {
        self.begin(Message::DeleteChain, 0, table, "delete", format_args!("chain {name}"));
        self.m.put_str(1, &table.name);
        self.m.put_str(3, name);
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, name: &str) {
        self.begin(Message::DeleteRule, 0, table, "flush", format_args!("chain {name}"));
        self.m.put_str(1, &table.name);
        self.m.put_str(2, name);
    }

    /// Deletes one rule by its handle.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        let object = format_args!("rule {handle} of chain {chain}");
        self.begin(Message::DeleteRule, 0, table, "delete", object);
        self.m.put_str(1, &table.name);
        self.m.put_str(2, chain);
        self.m.put_u64_be(3, handle);
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let object = format_args!("rule to chain {chain}");
        self.begin(Message::NewRule, NLM_F_CREATE | NLM_F_APPEND, table, "add", object);
        self.m.put_str(1, &table.name);
        self.m.put_str(2, chain);
        let start = self.m.len();
        put_rule(&mut self.m, 4, table.family, rule);
        let fingerprint = fnv1a(&self.m.as_bytes()[start..]);
        self.m.put_bytes(7, &userdata::of_rule(fingerprint));
    }

    /// Creates a set or map, unless it is there.
    pub fn add_set(&mut self, table: &Table, set: &SetDef) {
        let object = format_args!("set {}", set.name);
        self.begin(Message::NewSet, NLM_F_CREATE, table, "add", object);
        let shape = SetShape::of(table.family, set);
        let m = &mut self.m;
        m.put_str(1, &table.name);
        m.put_str(2, set.name);
        m.put_u32_be(3, shape.flags);
        m.put_u32_be(4, shape.key_type);
        m.put_u32_be(5, shape.key_len);
        if let Some((kind, length)) = shape.data {
            m.put_u32_be(6, kind);
            m.put_u32_be(7, length);
        }
        m.put_u32_be(10, self.next_set_id);
        self.next_set_id += 1;
        let ranges_of_tuples = set.interval && set.key.len() > 1;
        if set.dynamic.is_some() || ranges_of_tuples {
            m.nest(9, |m| {
                if let Some(size) = set.dynamic {
                    m.put_u32_be(1, size);
                }
                if ranges_of_tuples {
                    m.nest(2, |m| {
                        for field in &set.key {
                            m.nest(LIST_ELEMENT, |m| m.put_u32_be(1, field.len(table.family)));
                        }
                    });
                }
            });
        }
        m.put_bytes(13, &userdata::of_set(table.family, set));
        if set.counted {
            m.nest(17, put_counter);
        }
    }

    /// Deletes a set that nothing refers to, with its elements.
    pub fn delete_set(&mut self, table: &Table, name: &str) {
        self.begin(Message::DeleteSet, 0, table, "delete", format_args!("set {name}"));
        self.m.put_str(1, &table.name);
        self.m.put_str(2, name);
    }

    /// Adds elements. Adding one that is there with the same value changes nothing; with another
    /// value the batch fails.
    pub fn add_elements<'e>(
        &mut self,
        table: &Table,
        set: &SetDef,
        elements: impl IntoIterator<Item = &'e Element>,
    ) {
        self.put_elements(Message::NewElements, table, set, elements, "add");
    }

    /// Deletes elements, which must be there. What those of a counted set had counted is in the answer,
    /// see [`Nftables::commit_and_take`].
    pub fn delete_elements<'e>(
        &mut self,
        table: &Table,
        set: &SetDef,
        elements: impl IntoIterator<Item = &'e Element>,
    ) {
        self.put_elements(Message::DeleteElements, table, set, elements, "delete");
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &SetDef) {
        let object = format_args!("set {}", set.name);
        self.begin(Message::DeleteElements, 0, table, "flush", object);
        self.m.put_str(1, &table.name);
        self.m.put_str(2, set.name);
    }

    fn put_elements<'e>(
        &mut self,
        message: Message,
        table: &Table,
        set: &SetDef,
        elements: impl IntoIterator<Item = &'e Element>,
        verb: &'static str,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let takes = set.counted && self.taken < MAX_TAKEN;
            let flags = match message {
                Message::NewElements => NLM_F_CREATE,
                _ if takes => NLM_F_ECHO,
                _ => 0,
            };
            let before = self.elements;
            self.begin(message, flags, table, verb, format_args!("elements of {}", set.name));
            self.m.put_str(1, &table.name);
            self.m.put_str(2, set.name);
            let list = self.m.open(3);
            let room = if flags == NLM_F_ECHO { MAX_TAKEN - self.taken } else { usize::MAX };
            while self.m.payload_len(&list) < ELEMENTS_PER_LIST
                && self.elements - before < room
                && let Some(element) = elements.next()
            {
                put_element(&mut self.m, table.family, set, element);
                self.elements += 1;
            }
            self.m.close(list);
            if flags == NLM_F_ECHO {
                self.taken += self.elements - before;
            }
        }
    }

    fn begin(
        &mut self,
        message: Message,
        flags: u16,
        table: &Table,
        verb: &'static str,
        object: fmt::Arguments<'_>,
    ) {
        self.m.begin(message.kind(), flags);
        self.m.put_raw(&header(table.family.number(), 0));
        let of = if object.as_str() == Some("") { "" } else { " of " };
        let object = format!("{object}{of}table {} {}", table.family.name(), table.name);
        self.what.push(What { verb, object });
    }
}

fn put_element(m: &mut MessageBuf, family: TableFamily, set: &SetDef, element: &Element) {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    const INTERVAL_END: u32 = 1;
    let key = element.key.as_slice();
    m.nest(LIST_ELEMENT, |m| {
        m.nest(KEY, |m| m.put_bytes(VALUE, unpadded(family, set, key)));
        if let Some(last) = &element.last
            && set.key.len() > 1
        {
            m.nest(KEY_END, |m| m.put_bytes(VALUE, last.as_slice()));
        }
        match &element.value {
            Value::None => {}
            Value::Data(data) => m.nest(DATA, |m| m.put_bytes(VALUE, data.as_slice())),
            Value::Verdict(verdict) => m.nest(DATA, |m| put_verdict(m, verdict)),
        }
    });
    // A range of single values is two elements: its start, and the first value behind it.
    if let Some(last) = &element.last
        && set.key.len() == 1
        && let Some(behind) = successor(last.as_slice())
    {
        m.nest(LIST_ELEMENT, |m| {
            m.nest(KEY, |m| m.put_bytes(VALUE, &behind));
            m.put_u32_be(FLAGS, INTERVAL_END);
        });
    }
}

/// The expression of a counter.
fn put_counter(m: &mut MessageBuf) {
    m.put_str(1, "counter");
    m.nest(2, |_| {});
}

/// A key of one field is not padded to whole registers.
fn unpadded<'k>(family: TableFamily, set: &SetDef, key: &'k [u8]) -> &'k [u8] {
    match set.key[..] {
        [field] => &key[..field.len(family) as usize],
        _ => key,
    }
}

/// The next number in network order, or `None` after the last.
fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

/// What the kernel knows of a set's shape. Two sets with the same shape can hold the same elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetShape {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_len: u32,
    pub(super) data: Option<(u32, u32)>,
    pub(super) counted: bool,
}

impl SetShape {
    pub(super) const INTERVAL: u32 = 0x4;
    pub(super) const MAP: u32 = 0x8;
    const TIMEOUT: u32 = 0x10;
    const EVAL: u32 = 0x20;
    const CONCAT: u32 = 0x80;
    pub(super) const VERDICT: u32 = 0xffff_ff00;

    pub(super) fn of(family: TableFamily, set: &SetDef) -> Self {
        let mut flags = 0;
        if set.interval {
            flags |= Self::INTERVAL | if set.key.len() > 1 { Self::CONCAT } else { 0 };
        }
        if set.dynamic.is_some() {
            flags |= Self::TIMEOUT | Self::EVAL;
        }
        let data = match &set.data {
            Data::None => None,
            Data::Fields(fields) => Some((types(family, fields), length(family, fields))),
            Data::Verdict => Some((Self::VERDICT, 16)),
        };
        if data.is_some() {
            flags |= Self::MAP;
        }
        let (key_type, key_len) = (types(family, &set.key), length(family, &set.key));
        Self { flags, key_type, key_len, data, counted: set.counted }
    }
}

/// nft's number of the type of a tuple: 6 bits for each field.
fn types(family: TableFamily, fields: &[Field]) -> u32 {
    let of = |field: &Field| match (field, family) {
        (Field::Saddr | Field::Daddr | Field::OriginalDaddr, TableFamily::Ip) => 7,
        (Field::Saddr | Field::Daddr | Field::OriginalDaddr, TableFamily::Ip6) => 8,
        (Field::L4Proto, _) => 12,
        (Field::Dport, _) => 13,
        (Field::Priority, _) => 23,
        (Field::Mark, _) => 19,
        (Field::Random(_) | Field::Constant(_), _) => 4,
    };
    fields.iter().fold(0, |types, field| (types << 6) | of(field))
}

fn length(family: TableFamily, fields: &[Field]) -> u32 {
    match fields {
        [field] => field.len(family),
        _ => fields.iter().map(|field| 4 * field.registers(family)).sum(),
    }
}

/// `struct nfgenmsg`.
pub(super) fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Rule {
    /// What [`Batch::add_rule`] leaves in the kernel to know the rule by.
    pub fn fingerprint(&self, family: TableFamily) -> u64 {
        let mut m = MessageBuf::new();
        m.begin(0, 0);
        let start = m.len();
        put_rule(&mut m, 4, family, self);
        fnv1a(&m.as_bytes()[start..])
    }
}

/// FNV-1a: the same on every machine and in every version.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A connection to nf_tables of one network namespace.
#[derive(Debug)]
pub struct Nftables {
    pub(super) socket: Socket,
    buffer: Vec<u8>,
}

impl Nftables {
    /// Connects to the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel has no netfilter netlink.
    pub fn open() -> Result<Self> {
        let socket = Socket::open(Protocol::Netfilter, 0)?;
        Ok(Self { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Makes all changes of `batch`, or none.
    ///
    /// # Errors
    /// [`Error::Kernel`] that names the first object that the kernel refused.
    pub fn commit(&mut self, batch: Batch) -> Result<()> {
        self.commit_and_take(batch).map(drop)
    }

    /// Makes all changes of `batch`, or none, and tells what the elements had counted that were deleted
    /// from counted sets: of those that there were too many of, nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`] that names the first object that the kernel refused.
    pub fn commit_and_take(&mut self, mut batch: Batch) -> Result<Vec<Taken>> {
        let mut taken = Vec::new();
        if batch.is_empty() {
            return Ok(taken);
        }
        batch.m.change_flags(NLM_F_ACK, 0);
        batch.m.begin(BATCH_END, 0);
        batch.m.put_raw(&header(0, super::SUBSYSTEM));
        let what = format!("commit {} changes to nf_tables", batch.what.len() - 1);
        let first = self.socket.send_batch(&what, &mut batch.m)?;
        let mut acknowledged = false;
        let mut failure = None;
        // The kernel works in our sendmsg: its answers are all there.
        while let Some(datagram) = self.socket.recv(&mut self.buffer)? {
            for message in messages(datagram) {
                let index = message.sequence.wrapping_sub(first) as usize;
                match message.acknowledgement() {
                    Some(Ok(())) => acknowledged = true,
                    Some(Err(refusal)) => {
                        failure.get_or_insert_with(|| refused(&batch.what, index, refusal));
                    }
                    None => taken.extend(Taken::of(&message).into_iter().flatten()),
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if acknowledged => Ok(taken),
            None => Err(Error::NoAnswer { what }),
        }
    }
}

fn refused(what: &[What], index: usize, refusal: crate::netlink::Refusal) -> Error {
    let what = match what.get(index) {
        Some(What { verb, object }) => format!("{verb} {object}"),
        None => "commit the transaction".to_owned(),
    };
    Error::Kernel { what, message: refusal.message, offset: refusal.offset, errno: refusal.errno }
}
