//! A ruleset as text that `nft -f` reads and people do too.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Bytes;
use super::model::{
    Chain, Connection, Data, Element, Field, Rule, SetDef, Statement, Table, TableFamily, Value,
    Verdict,
};

/// Everything in a table.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// The table.
    pub table: Table,
    /// Sets and maps with their elements.
    pub sets: Vec<(SetDef, Vec<Element>)>,
    /// Chains with their rules.
    pub chains: Vec<(Chain, Vec<Rule>)>,
}

/// The text of a table. Loading it replaces the table of the same name.
pub fn render(ruleset: &Ruleset) -> String {
    let mut out = String::new();
    Renderer { ruleset, family: ruleset.table.family, out: &mut out }
        .table()
        .expect("writing to a string cannot fail");
    out
}

/// The text of one element of a set or map of a table of this family.
pub fn element(family: TableFamily, set: &SetDef, element: &Element) -> String {
    let mut text = values(family, &set.key, &element.key, element.last.as_ref());
    match (&element.value, &set.data) {
        (Value::Data(data), Data::Fields(fields)) => {
            text = format!("{text} : {}", values(family, fields, data, None));
        }
        (Value::Verdict(verdict), _) => text = format!("{text} : {}", verdict_text(verdict)),
        _ => {}
    }
    text
}

/// The text of one rule of a table of this family.
pub fn rule(family: TableFamily, rule: &Rule) -> String {
    let statements: Vec<_> = rule.statements.iter().map(|s| statement(family, s)).collect();
    statements.join(" ")
}

struct Renderer<'a> {
    ruleset: &'a Ruleset,
    family: TableFamily,
    out: &'a mut String,
}

impl Renderer<'_> {
    fn table(&mut self) -> std::fmt::Result {
        let ruleset = self.ruleset;
        let (family, name) = (self.family.name(), &ruleset.table.name);
        // Declared first so that the deletion cannot fail.
        writeln!(self.out, "table {family} {name}\ndelete table {family} {name}")?;
        writeln!(self.out, "table {family} {name} {{")?;
        for (set, elements) in &ruleset.sets {
            self.set(set, elements)?;
        }
        for (chain, rules) in &ruleset.chains {
            self.chain(chain, rules)?;
        }
        writeln!(self.out, "}}")
    }

    fn set(&mut self, set: &SetDef, elements: &[Element]) -> std::fmt::Result {
        let name = set.name;
        let kind = if set.data == Data::None { "set" } else { "map" };
        let key = key_text(self.family, &declared(&set.key));
        write!(self.out, "\t{kind} {name} {{\n\t\ttypeof {key}")?;
        match &set.data {
            Data::None => {}
            Data::Fields(fields) => write!(self.out, " : {}", key_text(self.family, fields))?,
            Data::Verdict => write!(self.out, " : verdict")?,
        }
        writeln!(self.out)?;
        if let Some(size) = set.dynamic {
            writeln!(self.out, "\t\tsize {size}\n\t\tflags dynamic,timeout")?;
        }
        if set.interval {
            writeln!(self.out, "\t\tflags interval")?;
        }
        if set.counted {
            writeln!(self.out, "\t\tcounter")?;
        }
        if !set.comment.is_empty() {
            writeln!(self.out, "\t\tcomment \"{}\"", set.comment)?;
        }
        if !elements.is_empty() {
            write!(self.out, "\t\telements = {{ ")?;
            for (index, element) in elements.iter().enumerate() {
                let separator = if index == 0 { "" } else { ",\n\t\t             " };
                let text = self::element(self.family, set, element);
                write!(self.out, "{separator}{text}")?;
            }
            writeln!(self.out, " }}")?;
        }
        writeln!(self.out, "\t}}\n")
    }

    fn chain(&mut self, chain: &Chain, rules: &[Rule]) -> std::fmt::Result {
        writeln!(self.out, "\tchain {} {{", chain.name)?;
        if let Some(hook) = chain.hook {
            let (kind, point, priority) = (hook.kind.name(), hook.point.name(), hook.priority);
            writeln!(self.out, "\t\ttype {kind} hook {point} priority {priority}; policy accept;")?;
        }
        for rule in rules {
            writeln!(self.out, "\t\t{}", self::rule(self.family, rule))?;
        }
        writeln!(self.out, "\t}}\n")
    }
}

/// The parts of a key, each as nft writes it; ranges as `first-last` where they differ.
fn values(family: TableFamily, fields: &[Field], first: &Bytes, last: Option<&Bytes>) -> String {
    let mut at = 0;
    let mut parts = Vec::with_capacity(fields.len());
    for field in fields {
        let length = field.len(family) as usize;
        let of = |bytes: &Bytes| value(*field, bytes.as_slice().get(at..at + length));
        let mut part = of(first);
        if let Some(last) = last.map(of).filter(|last| *last != part) {
            part = format!("{part}-{last}");
        }
        parts.push(part);
        at += length.next_multiple_of(4);
    }
    parts.join(" . ")
}

fn statement(of: TableFamily, statement: &Statement) -> String {
    let family = of.name();
    match statement {
        Statement::Connection(Connection::New) => "ct state new".to_owned(),
        Statement::Connection(Connection::Invalid) => "ct state invalid".to_owned(),
        Statement::Connection(Connection::Dnat) => "ct status dnat".to_owned(),
        Statement::InSet { key, set, negate } => {
            format!("{}{} @{set}", key_text(of, key), if *negate { " !=" } else { "" })
        }
        Statement::L4Proto(number) => format!("meta l4proto {}", protocol(*number)),
        Statement::DaddrInLoopbackNet => format!("{family} daddr 127.0.0.0/8"),
        Statement::NotFromLoopback => "iif != \"lo\"".to_owned(),
        Statement::Iifname { name, prefix } => {
            format!("iifname \"{name}{}\"", if *prefix { "*" } else { "" })
        }
        Statement::SourceIsLocal => "fib saddr type local".to_owned(),
        Statement::OnceIn(modulus) => format!("numgen random mod {modulus} 0"),
        Statement::MarkHas(bit) => format!("meta mark & {bit:#x} == {bit:#x}"),
        Statement::SetMark(bit) => format!("meta mark set meta mark | {bit:#x}"),
        Statement::ClearMark(bit) => format!("meta mark set meta mark & {:#x}", !bit),
        Statement::MarkIs { mask, value } => format!("meta mark & {mask:#x} == {value:#x}"),
        Statement::MarkFrom { key, map } => {
            format!("meta mark set {} map @{map}", key_text(of, key))
        }
        Statement::SetPriority { key, map } => {
            format!("meta priority set {} map @{map}", key_text(of, key))
        }
        Statement::PriorityTo(0) => "meta priority set none".to_owned(),
        Statement::PriorityTo(number) => format!("meta priority set {}", priority(*number)),
        Statement::PriorityIs(number) => format!("meta priority {}", priority(*number)),
        Statement::VerdictMap { key, map } => format!("{} vmap @{map}", key_text(of, key)),
        Statement::Update { set, key, timeout } => {
            format!("update @{set} {{ {} timeout {}s }}", key_text(of, key), timeout.as_secs())
        }
        Statement::DnatMap { key, map } => {
            format!("dnat {family} to {} map @{map}", key_text(of, key))
        }
        Statement::Dnat { address: IpAddr::V4(address), port } => {
            format!("dnat {family} to {address}:{port}")
        }
        Statement::Dnat { address: IpAddr::V6(address), port } => {
            format!("dnat {family} to [{address}]:{port}")
        }
        Statement::ToTransparentSocket => "socket transparent 1 socket wildcard 0".to_owned(),
        Statement::Tproxy { address, port } => {
            format!("tproxy to {}", SocketAddr::new(*address, *port))
        }
        Statement::Masquerade => "masquerade fully-random".to_owned(),
        Statement::RejectWithReset => "reject with tcp reset".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Verdict(verdict) => verdict_text(verdict),
    }
}

fn key_text(family: TableFamily, fields: &[Field]) -> String {
    let family = family.name();
    let parts: Vec<_> = fields
        .iter()
        .map(|field| match field {
            Field::Saddr => format!("{family} saddr"),
            Field::Daddr => format!("{family} daddr"),
            Field::L4Proto => "meta l4proto".to_owned(),
            Field::Dport => "th dport".to_owned(),
            Field::OriginalDaddr => format!("ct original {family} daddr"),
            Field::Priority => "meta priority".to_owned(),
            Field::Mark => "meta mark".to_owned(),
            Field::Random(modulus) => format!("numgen random mod {modulus}"),
            Field::Constant(number) => format!("numgen random mod 1 offset {number}"),
        })
        .collect();
    parts.join(" . ")
}

/// The fields as a declaration names them: for numbers only the type counts.
fn declared(fields: &[Field]) -> Vec<Field> {
    let declared = |field: &Field| match field {
        Field::Random(_) | Field::Constant(_) => Field::Random(2),
        other => *other,
    };
    fields.iter().map(declared).collect()
}

fn value(field: Field, bytes: Option<&[u8]>) -> String {
    let number = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).unwrap_or_default();
    match (field, bytes) {
        (_, None) => "?".to_owned(),
        (Field::Saddr | Field::Daddr | Field::OriginalDaddr, Some(bytes)) => {
            match <[u8; 4]>::try_from(bytes) {
                Ok(v4) => Ipv4Addr::from(v4).to_string(),
                Err(_) => <[u8; 16]>::try_from(bytes)
                    .map_or_else(|_| "?".to_owned(), |v6| Ipv6Addr::from(v6).to_string()),
            }
        }
        (Field::L4Proto, Some(bytes)) => protocol(bytes[0]),
        (Field::Dport, Some(bytes)) => u16::from_be_bytes([bytes[0], bytes[1]]).to_string(),
        (Field::Priority, Some(bytes)) => priority(number(bytes)),
        (Field::Mark, Some(bytes)) => format!("{:#010x}", number(bytes)),
        (Field::Random(_) | Field::Constant(_), Some(bytes)) => number(bytes).to_string(),
    }
}

/// As `tc` writes the handles of its classes.
fn priority(number: u32) -> String {
    format!("{:x}:{:x}", number >> 16, number & 0xffff)
}

fn protocol(number: u8) -> String {
    match number {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}
