//! Operations as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem;
use std::time::{Duration, SystemTime};

use kpng_api::proto::FILE_DESCRIPTOR_SET;
use kpng_api::proto::localv1::op_item::Op;
use kpng_api::proto::localv1::{Ref, Set};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, Value};
use serde_json::json;

use crate::rfc3339;

/// Makes text of a stream.
pub(super) trait Printer {
    /// `server` has accepted that `api` was asked for.
    fn requested(&mut self, out: &mut String, api: &str, server: &str);

    /// An answer begins.
    fn received(&mut self, out: &mut String, now: SystemTime);

    /// An operation of an answer that began so long ago.
    fn operation(&mut self, out: &mut String, op: &Op, since: Duration);
}

/// The types of values.
struct Types(DescriptorPool);

impl Types {
    fn new() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET);
        Self(pool.expect("the build made the descriptors"))
    }

    /// The value of a set. `None` if this version does not know the set, or cannot read the value.
    fn decode(&self, set: Set, bytes: &[u8]) -> Option<DynamicMessage> {
        let name = match set {
            Set::UnknownSet => return None,
            Set::ServicesSet => "localv1.Service",
            Set::EndpointsSet => "localv1.Endpoint",
            Set::LocalNodesSet => "localv1.Node",
            Set::GlobalServiceInfos => "globalv1.ServiceInfo",
            Set::GlobalEndpointInfos => "globalv1.EndpointInfo",
            Set::GlobalNodeInfos => "globalv1.NodeInfo",
        };
        let descriptor = self.0.get_message_by_name(name).expect("the API has this message");
        DynamicMessage::decode(descriptor, bytes).ok()
    }
}

fn set_name(set: i32) -> String {
    Set::try_from(set).map_or_else(|_| set.to_string(), |set| set.as_str_name().to_owned())
}

/// One JSON object for each operation, with the canonical JSON of values.
pub(super) struct Json {
    types: Types,
}

impl Json {
    pub(super) fn new() -> Self {
        Self { types: Types::new() }
    }

    fn value(&self, set: i32, bytes: &[u8]) -> serde_json::Value {
        let message = Set::try_from(set).ok().and_then(|set| self.types.decode(set, bytes));
        // What cannot be read is null.
        message.and_then(|message| serde_json::to_value(message).ok()).unwrap_or_default()
    }
}

impl Printer for Json {
    fn requested(&mut self, _: &mut String, _: &str, _: &str) {}

    fn received(&mut self, _: &mut String, _: SystemTime) {}

    fn operation(&mut self, out: &mut String, op: &Op, _: Duration) {
        let object = match op {
            Op::Reset(_) => json!({"op": "reset"}),
            Op::Set(value) => {
                let Ref { set, path } = value.r#ref.clone().unwrap_or_default();
                let value = self.value(set, &value.bytes);
                json!({"op": "set", "set": set_name(set), "path": path, "value": value})
            }
            Op::Delete(Ref { set, path }) => {
                json!({"op": "delete", "set": set_name(*set), "path": path})
            }
            Op::Sync(sync) => match &sync.position {
                None => json!({"op": "sync"}),
                Some(position) => json!({
                    "op": "sync",
                    "instance": position.instance,
                    "revision": position.revision,
                }),
            },
        };
        writeln!(out, "{object}").expect("a string takes all");
    }
}

/// Lines for people: what is new (`+`), what changed (`~`), and what is gone (`-`). What is said again
/// as it was, such as after a Reset, is left out.
pub(super) struct Readable {
    types: Types,
    /// What is known, as it was printed.
    known: BTreeMap<(i32, String), String>,
    /// After a Reset: what was known before and was not said again yet.
    before: BTreeMap<(i32, String), String>,
}

impl Readable {
    pub(super) fn new() -> Self {
        Self { types: Types::new(), known: BTreeMap::new(), before: BTreeMap::new() }
    }

    fn value(&self, set: i32, bytes: &[u8]) -> String {
        let message = Set::try_from(set).ok().and_then(|set| self.types.decode(set, bytes));
        let mut text = String::new();
        match message {
            Some(message) => write_message(&mut text, &message),
            None => text = format!("{} bytes that this version cannot read", bytes.len()),
        }
        text
    }
}

impl Printer for Readable {
    fn requested(&mut self, out: &mut String, api: &str, server: &str) {
        writeln!(out, "< req {api} from {server}").expect("a string takes all");
    }

    fn received(&mut self, out: &mut String, now: SystemTime) {
        writeln!(out, "< recv at {}", rfc3339::format(Some(now))).expect("a string takes all");
    }

    fn operation(&mut self, out: &mut String, op: &Op, since: Duration) {
        let mut line = |sign, (set, path): &(i32, String), value: Option<&str>| {
            write!(out, "{sign} {} {path}", set_name(*set)).expect("a string takes all");
            value.into_iter().for_each(|value| out.extend([" -> ", value]));
            out.push('\n');
        };
        match op {
            Op::Reset(_) => {
                let mut known = mem::take(&mut self.known);
                self.before.append(&mut known);
            }
            Op::Set(value) => {
                let text = self.value(value.r#ref.as_ref().map_or(0, |r| r.set), &value.bytes);
                let Ref { set, path } = value.r#ref.clone().unwrap_or_default();
                let key = (set, path);
                let old = self.before.remove(&key).or_else(|| self.known.remove(&key));
                match old {
                    None => line('+', &key, Some(&text)),
                    Some(old) if old != text => line('~', &key, Some(&text)),
                    Some(_) => {}
                }
                self.known.insert(key, text);
            }
            Op::Delete(Ref { set, path }) => {
                let key = (*set, path.clone());
                self.known.remove(&key);
                self.before.remove(&key);
                line('-', &key, None);
            }
            Op::Sync(_) => {
                mem::take(&mut self.before).keys().for_each(|key| line('-', key, None));
                writeln!(out, "> sync after {since:?}").expect("a string takes all");
            }
        }
    }
}

/// `{Name: web, Ports: [{Port: 80}]}`: fields that are set, in their order.
fn write_message(out: &mut String, message: &DynamicMessage) {
    let fields = message.fields().map(|(field, value)| (field.name().to_owned(), field, value));
    braces(out, '{', '}', fields, |out, (name, field, value)| {
        out.extend([&*name, ": "]);
        write_value(out, value, &field.kind());
    });
}

fn write_value(out: &mut String, value: &Value, kind: &Kind) {
    match value {
        Value::Message(message) => write_message(out, message),
        Value::List(values) => {
            braces(out, '[', ']', values, |out, value| write_value(out, value, kind));
        }
        Value::Map(map) => {
            let entry = kind.as_message().expect("a map is a list of messages");
            let kind = entry.map_entry_value_field().kind();
            let entries = map.iter().map(|(key, value)| (map_key(key), value));
            braces(out, '{', '}', entries.collect::<BTreeMap<_, _>>(), |out, (key, value)| {
                out.extend([&*key, ": "]);
                write_value(out, value, &kind);
            });
        }
        Value::EnumNumber(number) => {
            let of = kind.as_enum().and_then(|of| of.get_value(*number));
            out.push_str(&of.map_or_else(|| number.to_string(), |value| value.name().to_owned()));
        }
        Value::String(text) => write_text(out, text),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::I32(number) => out.push_str(&number.to_string()),
        Value::I64(number) => out.push_str(&number.to_string()),
        Value::U32(number) => out.push_str(&number.to_string()),
        Value::U64(number) => out.push_str(&number.to_string()),
        Value::F32(number) => out.push_str(&number.to_string()),
        Value::F64(number) => out.push_str(&number.to_string()),
        Value::Bytes(bytes) => write!(out, "{bytes:?}").expect("a string takes all"),
    }
}

fn map_key(key: &prost_reflect::MapKey) -> String {
    let mut text = String::new();
    match key {
        prost_reflect::MapKey::String(key) => write_text(&mut text, key),
        other => write!(text, "{other:?}").expect("a string takes all"),
    }
    text
}

/// Quoted only where it could be taken for something else, or for more than one line.
fn write_text(out: &mut String, text: &str) {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && !"{}[],\"".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        out.push_str(text);
    } else {
        write!(out, "{text:?}").expect("a string takes all");
    }
}

fn braces<T>(
    out: &mut String,
    open: char,
    close: char,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    out.push(open);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write(out, item);
    }
    out.push(close);
}

#[cfg(test)]
mod tests;
