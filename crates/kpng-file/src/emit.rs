//! Writes YAML: values to text, in the style of KPNG's own files.
//!
//! Whatever could be read as something else than the string that it is gets quotes.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use kpng_core::model::Family;

/// A YAML value to be written.
pub(crate) enum Yaml {
    Text(String),
    Number(i64),
    Bool(bool),
    /// A list on one line.
    Flow(Vec<Self>),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl From<Fields> for Yaml {
    fn from(fields: Fields) -> Self {
        Self::Map(fields.0)
    }
}

/// A mapping in the making. Empty values are left out.
#[derive(Default)]
pub(crate) struct Fields(Vec<(String, Yaml)>);

impl Fields {
    pub(crate) fn push(&mut self, name: &str, value: Yaml) {
        self.0.push((name.to_owned(), value));
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.push(name, Yaml::Text(value.to_owned()));
    }

    pub(crate) fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.push(name, Yaml::Bool(true));
        }
    }

    pub(crate) fn number(&mut self, name: &str, value: Option<u16>) {
        value.into_iter().for_each(|value| self.push(name, Yaml::Number(value.into())));
    }

    pub(crate) fn map(&mut self, name: &str, value: Self) {
        if !value.0.is_empty() {
            self.push(name, Yaml::Map(value.0));
        }
    }

    pub(crate) fn list(&mut self, name: &str, items: impl IntoIterator<Item = Yaml>) {
        let items: Vec<_> = items.into_iter().collect();
        if !items.is_empty() {
            self.push(name, Yaml::List(items));
        }
    }

    pub(crate) fn flow(&mut self, name: &str, items: impl IntoIterator<Item = String>) {
        let items: Vec<_> = items.into_iter().map(Yaml::Text).collect();
        if !items.is_empty() {
            self.push(name, Yaml::Flow(items));
        }
    }

    pub(crate) fn strings(&mut self, name: &str, map: &BTreeMap<Box<str>, Box<str>>) {
        let mut entries = Self::default();
        map.iter().for_each(|(key, value)| entries.text(key, value));
        self.map(name, entries);
    }

    /// As `{v4: [...], v6: [...]}` where that keeps their order, otherwise as a list.
    pub(crate) fn addresses(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: Vec<_> = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
        let families: Vec<_> =
            addresses.chunk_by(|a, b| Family::of(*a) == Family::of(*b)).collect();
        if families.len() > 2 {
            return self.flow(name, addresses.iter().map(ToString::to_string));
        }
        let mut set = Self::default();
        for family in families {
            let key = if family[0].is_ipv4() { "v4" } else { "v6" };
            set.flow(key, family.iter().map(ToString::to_string));
        }
        self.map(name, set);
    }
}

/// Writes a mapping under a name of its own, at the left margin.
pub(crate) fn write_map(out: &mut String, name: &str, fields: Fields) {
    write_fields(out, 0, &[(name.to_owned(), fields.into())]);
}

pub(crate) fn write_item(out: &mut String, indent: usize, item: &Yaml) {
    out.push_str(&" ".repeat(indent));
    out.push_str("- ");
    match item {
        Yaml::Map(fields) => write_fields(out, indent + 2, fields),
        scalar => {
            write_flow(out, scalar);
            out.push('\n');
        }
    }
}

/// Writes the fields of a mapping whose first line is already indented.
fn write_fields(out: &mut String, indent: usize, fields: &[(String, Yaml)]) {
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            out.push_str(&" ".repeat(indent));
        }
        write_text(out, name);
        out.push(':');
        match value {
            Yaml::Map(fields) => {
                out.push('\n');
                out.push_str(&" ".repeat(indent + 2));
                write_fields(out, indent + 2, fields);
            }
            Yaml::List(items) => {
                out.push('\n');
                items.iter().for_each(|item| write_item(out, indent, item));
            }
            scalar => {
                out.push(' ');
                write_flow(out, scalar);
                out.push('\n');
            }
        }
    }
}

fn write_flow(out: &mut String, value: &Yaml) {
    match value {
        Yaml::Text(text) => write_text(out, text),
        Yaml::Number(number) => out.push_str(&number.to_string()),
        Yaml::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Yaml::Flow(items) | Yaml::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_flow(out, item);
            }
            out.push(']');
        }
        Yaml::Map(fields) => {
            out.push('{');
            for (index, (name, value)) in fields.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_text(out, name);
                out.push_str(": ");
                write_flow(out, value);
            }
            out.push('}');
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    if is_plain(text) {
        return out.push_str(text);
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if c.is_alphanumeric() => out.push(c),
            c if u32::from(c) <= 0xffff => {
                write_escape(out, format_args!("\\u{:04x}", u32::from(c)))
            }
            c => write_escape(out, format_args!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
}

fn write_escape(out: &mut String, escape: fmt::Arguments<'_>) {
    out.write_fmt(escape).expect("writing to a String does not fail");
}

/// No reader of YAML, old or new, takes it for anything but this string.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    let is_word = || {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
            && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
    };
    // Four numbers with three dots are no number, and "10.0.0.0/8" is none either.
    is_word() || text.parse::<Ipv4Addr>().is_ok() || text.parse::<Ipv4Net>().is_ok()
}
