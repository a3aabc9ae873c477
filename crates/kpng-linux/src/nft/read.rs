//! Reading back what the kernel holds, in the terms of the model.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::batch::{SetShape, header};
use super::model::{Element, SetDef, Table, TableFamily, Value, Verdict};
use super::{Bytes, Message, Nftables, userdata};
use crate::error::{Error, Result};
use crate::netlink::{Attr, MessageBuf, attrs};

/// How often a listing is done again that a rehash has torn.
const LISTING_ATTEMPTS: usize = 50;

/// How long a rehash may go on before it is worth to look again.
const REHASHING: Duration = Duration::from_millis(20);

/// `struct nfgenmsg`, in bytes.
const HEADER: usize = 4;

/// What is in a table, without the elements of its sets.
#[derive(Debug, Default)]
pub struct FoundTable {
    /// Chains by name.
    pub chains: BTreeMap<String, FoundChain>,
    /// Sets by name, without anonymous ones.
    pub sets: BTreeMap<String, FoundSet>,
}

/// A chain in the kernel.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FoundChain {
    /// The hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
    /// Its rules, in order.
    pub rules: Vec<FoundRule>,
}

/// A rule in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// Its handle.
    pub handle: u64,
    /// The fingerprint that [`super::Batch::add_rule`] left; `None` for rules of others.
    pub fingerprint: Option<u64>,
    /// The chains that it jumps to unconditionally or at its end.
    pub targets: Vec<String>,
}

/// A set in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSet(SetShape);

impl FoundSet {
    /// Whether it can hold the elements of `set`.
    pub fn fits(&self, family: TableFamily, set: &SetDef) -> bool {
        self.0 == SetShape::of(family, set)
    }
}

/// What an element had counted when it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The family of the table.
    pub family: TableFamily,
    /// The name of the set.
    pub set: String,
    /// The key of the element.
    pub key: Bytes,
    /// How many packets were found by it.
    pub packets: u64,
}

impl Taken {
    /// The elements that a message tells the deletion of.
    pub(super) fn of<'m>(
        message: &crate::netlink::Message<'m>,
    ) -> Option<impl Iterator<Item = Self> + use<'m>> {
        if message.kind != Message::DeleteElements.kind() {
            return None;
        }
        let family = TableFamily::of_number(*message.payload.first()?)?;
        let set = text(message.attrs(HEADER), 2)?;
        let lists = message.attrs(HEADER).filter(|attr| attr.kind == 3);
        let counters = lists.flat_map(|list| list.attrs().filter_map(decode_counter));
        Some(counters.map(move |(key, packets)| Self { family, set: set.clone(), key, packets }))
    }
}

impl Nftables {
    /// The names of all tables of a family.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel has no nf_tables or refuses.
    pub fn tables(&mut self, family: TableFamily) -> Result<Vec<String>> {
        let mut m = request(Message::GetTable, family);
        let name = |attrs: crate::netlink::Attrs<'_>| text(attrs, 1);
        self.socket.list(&"list nf_tables tables", &mut m, |message| name(message.attrs(HEADER)))
    }

    /// What is in `table`, or `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel has no nf_tables or refuses.
    pub fn read_table(&mut self, table: &Table) -> Result<Option<FoundTable>> {
        if !self.tables(table.family)?.contains(&table.name) {
            return Ok(None);
        }
        let mut found = FoundTable::default();
        for (name, chain) in self.list_in(table, Message::GetChain, "chains", chain)? {
            found.chains.insert(name, chain);
        }
        for (name, rule) in self.list_in(table, Message::GetRule, "rules", rule)? {
            found.chains.entry(name).or_default().rules.push(rule);
        }
        for (name, set) in self.list_in(table, Message::GetSet, "sets", set)? {
            if !name.starts_with("__") {
                found.sets.insert(name, set);
            }
        }
        Ok(Some(found))
    }

    /// All elements of `set`. Those of a dynamic set may come and go meanwhile.
    ///
    /// A hash table that grew a moment ago is rehashed in the background, and a listing that is under
    /// way then has some elements twice and lacks as many others, which the kernel does not say. Such
    /// a listing is done again.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses, [`Error::Interrupted`] when the set changed too
    /// often.
    pub fn elements(&mut self, table: &Table, set: &SetDef) -> Result<Vec<Element>> {
        let elements =
            self.list_elements(table, set, |e| decode_element(e, set), |element| element.key)?;
        Ok(join_ranges(set, elements))
    }

    /// How many packets were found by each element of a counted set that is no interval.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub fn counters(&mut self, table: &Table, set: &SetDef) -> Result<Vec<(Bytes, u64)>> {
        self.list_elements(table, set, decode_counter, |(key, _)| *key)
    }

    fn list_elements<T>(
        &mut self,
        table: &Table,
        set: &SetDef,
        decode: impl Fn(Attr<'_>) -> Option<T>,
        key: impl Fn(&T) -> Bytes,
    ) -> Result<Vec<T>> {
        for _ in 0..LISTING_ATTEMPTS {
            let elements = self.list_elements_once(table, set, &decode)?;
            let mut seen = HashSet::with_capacity(elements.len());
            if set.interval || elements.iter().all(|element| seen.insert(key(element))) {
                return Ok(elements);
            }
            std::thread::sleep(REHASHING);
        }
        Err(Error::Interrupted { what: format!("list the elements of {}", set.name) })
    }

    fn list_elements_once<T>(
        &mut self,
        table: &Table,
        set: &SetDef,
        decode: impl Fn(Attr<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut m = request(Message::GetElements, table.family);
        m.put_str(1, &table.name);
        m.put_str(2, set.name);
        let what = format!("list the elements of {}", set.name);
        let lists = self.socket.list(&what, &mut m, |message| {
            let lists = message.attrs(HEADER).filter(|attr| attr.kind == 3);
            Some(lists.flat_map(|list| list.attrs().filter_map(&decode)).collect::<Vec<_>>())
        })?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn list_in<T>(
        &mut self,
        table: &Table,
        message: Message,
        objects: &str,
        decode: impl Fn(crate::netlink::Attrs<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut m = request(message, table.family);
        m.put_str(1, &table.name);
        let what = format!("list {objects} of table {} {}", table.family.name(), table.name);
        self.socket.list(&what, &mut m, |message| {
            let attrs = message.attrs(HEADER);
            (text(attrs.clone(), 1)? == table.name).then(|| decode(attrs)).flatten()
        })
    }
}

fn request(message: Message, family: TableFamily) -> MessageBuf {
    let mut m = MessageBuf::new();
    m.begin(message.kind(), 0);
    m.put_raw(&header(family.number(), 0));
    m
}

fn text(mut attrs: crate::netlink::Attrs<'_>, kind: u16) -> Option<String> {
    attrs.find(|attr| attr.kind == kind)?.str().map(str::to_owned)
}

fn chain(all: crate::netlink::Attrs<'_>) -> Option<(String, FoundChain)> {
    let name = text(all.clone(), 3)?;
    let hook = all.clone().find(|attr| attr.kind == 4).map(|hook| {
        let value =
            |kind| hook.attrs().find(|attr| attr.kind == kind).and_then(|attr| attr.u32_be());
        (value(1).unwrap_or_default(), value(2).unwrap_or_default().cast_signed())
    });
    Some((name, FoundChain { hook, rules: Vec::new() }))
}

fn rule(all: crate::netlink::Attrs<'_>) -> Option<(String, FoundRule)> {
    let chain = text(all.clone(), 2)?;
    let handle = all.clone().find(|attr| attr.kind == 3)?.u64_be()?;
    let userdata = all.clone().find(|attr| attr.kind == 7);
    let fingerprint = userdata.and_then(|attr| userdata::fingerprint(attr.payload));
    let mut targets = Vec::new();
    for expressions in all.filter(|attr| attr.kind == 4) {
        targets.extend(expressions.attrs().filter_map(jump_target));
    }
    Some((chain, FoundRule { handle, fingerprint, targets }))
}

/// The chain that an `immediate` expression jumps to.
fn jump_target(expression: Attr<'_>) -> Option<String> {
    if text(expression.attrs(), 1)? != "immediate" {
        return None;
    }
    let data = expression.attrs().find(|attr| attr.kind == 2)?;
    let value = data.attrs().find(|attr| attr.kind == 2)?;
    match decode_verdict(value.attrs().find(|attr| attr.kind == 2)?)? {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

fn set(all: crate::netlink::Attrs<'_>) -> Option<(String, FoundSet)> {
    let number = |kind| all.clone().find(|attr| attr.kind == kind).and_then(|attr| attr.u32_be());
    let shape = SetShape {
        flags: number(3).unwrap_or_default(),
        key_type: number(4)?,
        key_len: number(5)?,
        data: number(6).zip(number(7)),
        counted: all.clone().any(|attr| attr.kind == 17 && is_counter(attr)),
    };
    Some((text(all.clone(), 2)?, FoundSet(shape.without_verdict_length())))
}

impl SetShape {
    /// Kernels differ in the length that they report for verdicts.
    fn without_verdict_length(mut self) -> Self {
        if let Some((Self::VERDICT, length)) = &mut self.data {
            *length = 16;
        }
        self
    }
}

fn decode_element(element: Attr<'_>, set: &SetDef) -> Option<Element> {
    let mut key = None;
    let mut last = None;
    let mut value = Value::None;
    let mut end = false;
    for attr in element.attrs() {
        match attr.kind {
            1 => key = data(attr),
            10 => last = data(attr),
            2 => value = decode_value(attr)?,
            3 => end = attr.u32_be()? & 1 != 0,
            _ => {}
        }
    }
    let key = key?;
    if set.interval && set.key.len() == 1 {
        // Marks the end of a range until `join_ranges` has seen both.
        last = end.then_some(key);
    }
    Some(Element { key, last, value })
}

fn is_counter(expression: Attr<'_>) -> bool {
    text(expression.attrs(), 1).is_some_and(|name| name == "counter")
}

/// The key of an element, and the packets that its counter has counted.
fn decode_counter(element: Attr<'_>) -> Option<(Bytes, u64)> {
    let find = |kind| element.attrs().find(|attr| attr.kind == kind);
    let counter = find(7).filter(|expression| is_counter(*expression))?;
    let numbers = counter.attrs().find(|attr| attr.kind == 2)?;
    let packets = numbers.attrs().find(|attr| attr.kind == 2)?.u64_be()?;
    Some((data(find(1)?)?, packets))
}

/// Pairs of start and end, as the kernel keeps ranges of single values, become one element each.
fn join_ranges(set: &SetDef, mut elements: Vec<Element>) -> Vec<Element> {
    if !set.interval || set.key.len() != 1 {
        return elements;
    }
    elements.sort_by_key(|element| (element.key, element.last.is_none()));
    let mut joined: Vec<Element> = Vec::new();
    for element in elements {
        match (element.last, joined.last_mut()) {
            (Some(end), Some(open)) if open.last.is_none() => open.last = predecessor(&end),
            (Some(_), _) => {}
            (None, _) => joined.push(element),
        }
    }
    for open in &mut joined {
        if open.last.is_none() {
            open.last = Bytes::from_slice(&vec![0xff; open.key.as_slice().len()]);
        }
    }
    joined
}

fn predecessor(bytes: &Bytes) -> Option<Bytes> {
    let mut previous = bytes.as_slice().to_vec();
    for byte in previous.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    Bytes::from_slice(&previous)
}

fn data(attr: Attr<'_>) -> Option<Bytes> {
    Bytes::from_slice(attr.attrs().find(|attr| attr.kind == 1)?.payload)
}

fn decode_value(attr: Attr<'_>) -> Option<Value> {
    let inner = attr.attrs().next()?;
    match inner.kind {
        1 => Bytes::from_slice(inner.payload).map(Value::Data),
        2 => decode_verdict(inner).map(Value::Verdict),
        _ => None,
    }
}

fn decode_verdict(verdict: Attr<'_>) -> Option<Verdict> {
    let parts = attrs(verdict.payload);
    let code = parts.clone().find(|attr| attr.kind == 1)?.u32_be()?.cast_signed();
    let chain = text(parts, 2);
    match code {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -3 => chain.map(Verdict::Jump),
        -4 => chain.map(Verdict::Goto),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}
