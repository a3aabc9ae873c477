//! YAML documents as trees that remember where everything was written.
//!
//! Both formats are read from these trees and not by derived deserializers: so every complaint, also
//! about a value that is well-formed but wrong, knows its line, its column and the path of its field.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{MessageFormatter as _, Spanned, UserMessageFormatter};

use crate::error::Problem;

/// A value, and where it was written (counted from 1).
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// A key of a mapping, and where it was written.
#[derive(Debug)]
pub(crate) struct Key {
    line: u32,
    column: u32,
    pub(crate) name: String,
}

/// How deep a document may be nested. What counts here needs 9 levels, other kinds of objects in a
/// list some 20. Each level takes 40 KiB of stack in a debug build, of the 2 MiB that a thread has.
const MAX_DEPTH: usize = 32;

/// The documents of `text`. Empty ones are left out.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, Problem> {
    // The limits of the reader's defaults are those of configuration files. A state has millions of
    // nodes, and aliases are limited anyway.
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| syntax_problem(&error))
}

fn syntax_problem(error: &serde_saphyr::Error) -> Problem {
    let location = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
    let reason = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the field {key:?} is given twice: remove one")
        }
        serde_saphyr::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            format!("this is nested more than {MAX_DEPTH} levels deep: nothing that counts here is")
        }
        error => {
            let message = UserMessageFormatter.format_message(error);
            // It may quote the text, and shall be one line.
            message.replace(|c: char| c.is_control(), " ")
        }
    };
    let (line, column) = position(location);
    Problem { line, column, field: String::new(), reason }
}

/// 0:0 when it is not known.
fn position(location: serde_saphyr::Location) -> (u32, u32) {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (number(location.line()), number(location.column()))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        let (line, column) = position(referenced);
        Ok(Self { line, column, value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        let (line, column) = position(referenced);
        Ok(Self { line, column, name: value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Integer(value.try_into().unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element()? {
            sequence.push(item);
        }
        Ok(Value::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut mapping = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            mapping.push(entry);
        }
        Ok(Value::Mapping(mapping))
    }
}

/// What is wrong with one part of a document. Where that part is in the document is searched only
/// when it matters: see [`Fault::locate`].
#[derive(Debug)]
pub(crate) struct Fault<'a> {
    at: Part<'a>,
    reason: String,
}

#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Node(&'a Node),
    Key(&'a Key),
}

pub(crate) type Read<'a, T> = Result<T, Fault<'a>>;

impl Fault<'_> {
    /// Says where in `document` the fault is.
    pub(crate) fn locate(self, document: &Node) -> Problem {
        let mut field = String::new();
        find(document, self.at, &mut field);
        let (line, column) = match self.at {
            Part::Node(node) => (node.line, node.column),
            Part::Key(key) => (key.line, key.column),
        };
        Problem { line, column, field, reason: self.reason }
    }
}

/// Extends `path` to the path of `part` in `node`, if it is there.
fn find(node: &Node, part: Part<'_>, path: &mut String) -> bool {
    let length = path.len();
    match &node.value {
        _ if matches!(part, Part::Node(searched) if std::ptr::eq(searched, node)) => return true,
        Value::Sequence(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                if find(item, part, path) {
                    return true;
                }
                path.truncate(length);
            }
        }
        Value::Mapping(entries) => {
            for (key, value) in entries {
                if length > 0 {
                    path.push('.');
                }
                path.extend(key.name.escape_debug()); // the path is one line
                let is_key = matches!(part, Part::Key(searched) if std::ptr::eq(searched, key));
                if is_key || find(value, part, path) {
                    return true;
                }
                path.truncate(length);
            }
        }
        _ => {}
    }
    false
}

impl Node {
    pub(crate) fn fault(&self, reason: impl Into<String>) -> Fault<'_> {
        Fault { at: Part::Node(self), reason: reason.into() }
    }

    fn expected(&self, what: &str) -> Fault<'_> {
        let found = match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => format!("the string {value:?}"),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        };
        self.fault(format!("expected {what}, found {found}"))
    }

    fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(crate) fn text(&self) -> Read<'_, &str> {
        match &self.value {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                Err(self.expected("a string (put it in quotes)"))
            }
            _ => Err(self.expected("a string")),
        }
    }

    pub(crate) fn boolean(&self) -> Read<'_, bool> {
        match self.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.expected("true or false")),
        }
    }

    pub(crate) fn integer(&self) -> Read<'_, i128> {
        match self.value {
            Value::Integer(value) => Ok(value),
            _ => Err(self.expected("a whole number")),
        }
    }

    pub(crate) fn list(&self) -> Read<'_, &[Self]> {
        match &self.value {
            Value::Sequence(items) => Ok(items),
            _ => Err(self.expected("a list")),
        }
    }

    pub(crate) fn entries(&self) -> Read<'_, &[(Key, Self)]> {
        match &self.value {
            Value::Mapping(entries) => Ok(entries),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// The fields of an object of which only some are of interest, by their exact names.
    pub(crate) fn object(&self) -> Read<'_, Fields<'_>> {
        Ok(Fields { node: self, entries: self.entries()?, ignore_case: false })
    }

    /// The fields of an object that has no others than `known` (given in lower case). Upper and
    /// lower case are not told apart.
    pub(crate) fn strict_object(&self, known: &[&str]) -> Read<'_, Fields<'_>> {
        let entries = self.entries()?;
        for (index, (key, _)) in entries.iter().enumerate() {
            let fault = |reason| Err(Fault { at: Part::Key(key), reason });
            if !known.iter().any(|known| key.name.eq_ignore_ascii_case(known)) {
                let (name, known) = (&key.name, known.join(", "));
                return fault(format!("unknown field {name:?}: the fields here are {known}"));
            }
            if entries[..index].iter().any(|(other, _)| other.name.eq_ignore_ascii_case(&key.name))
            {
                return fault(format!("the field {:?} is given twice: remove one", key.name));
            }
        }
        Ok(Fields { node: self, entries, ignore_case: true })
    }
}

/// The fields of an object. A field whose value is `null` counts as missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    node: &'a Node,
    entries: &'a [(Key, Node)],
    ignore_case: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&'a Node> {
        let is_it = |key: &Key| {
            key.name == name || (self.ignore_case && key.name.eq_ignore_ascii_case(name))
        };
        let (_, node) = self.entries.iter().find(|(key, _)| is_it(key))?;
        (!node.is_null()).then_some(node)
    }

    pub(crate) fn require(&self, name: &str) -> Read<'a, &'a Node> {
        self.get(name).ok_or_else(|| self.node.fault(format!("the field {name:?} is missing")))
    }

    /// Reads a field with `read`, if it is there.
    pub(crate) fn read<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Node) -> Read<'a, T>,
    ) -> Read<'a, Option<T>> {
        self.get(name).map(read).transpose()
    }

    /// The items of a list; none when it is missing.
    pub(crate) fn list(&self, name: &str) -> Read<'a, &'a [Node]> {
        Ok(self.read(name, Node::list)?.unwrap_or_default())
    }

    /// A string that is not empty.
    pub(crate) fn text(&self, name: &str) -> Read<'a, Option<&'a str>> {
        Ok(self.read(name, Node::text)?.filter(|text| !text.is_empty()))
    }

    /// The items of a list, each read with `read`.
    pub(crate) fn each<T>(
        &self,
        name: &str,
        read: impl FnMut(&'a Node) -> Read<'a, T>,
    ) -> Read<'a, Vec<T>> {
        self.list(name)?.iter().map(read).collect()
    }
}
