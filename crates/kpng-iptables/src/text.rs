//! What `iptables-restore` reads and `iptables-save` prints.

use std::collections::HashMap;
use std::fmt::Write;

use crate::names::{HOOKS, Hook, PREFIX, Table};
use crate::render::Chain;
use crate::state::{ChainKey, Change, add_to_fingerprint};

/// The inputs that make a change, in order, of about so many lines. After each of them everything
/// that worked before still works, as chains are written before those that lead to them.
pub(crate) fn inputs(change: &Change, lines: usize) -> Vec<String> {
    pieces(change, lines).iter().map(Piece::text).collect()
}

/// One input.
#[derive(Default)]
struct Piece<'a> {
    chains: Vec<&'a Chain>,
    hooks: Vec<&'a (Table, String)>,
    flush: Vec<&'a ChainKey>,
    delete: Vec<&'a ChainKey>,
    lines: usize,
}

fn pieces(change: &Change, limit: usize) -> Vec<Piece<'_>> {
    let mut pieces = vec![Piece::default()];
    for chain in &change.chains {
        let lines = 1 + chain.rules.len();
        next(&mut pieces, lines, limit).chains.push(chain);
    }
    for hook in &change.hooks {
        next(&mut pieces, 1, limit).hooks.push(hook);
    }
    // A chain can be deleted when no rule of any other leads to it.
    let gone = 2 * change.gone.len();
    if pieces.last().is_some_and(|last| last.lines + gone <= limit) {
        let last = next(&mut pieces, gone, limit);
        last.flush.extend(&change.gone);
        last.delete.extend(&change.gone);
    } else {
        for chain in &change.gone {
            next(&mut pieces, 1, limit).flush.push(chain);
        }
        pieces.push(Piece::default());
        for chain in &change.gone {
            next(&mut pieces, 1, limit).delete.push(chain);
        }
    }
    pieces.retain(|piece| piece.lines > 0);
    pieces
}

/// The piece that takes so many lines more.
fn next<'p, 'a>(pieces: &'p mut Vec<Piece<'a>>, lines: usize, limit: usize) -> &'p mut Piece<'a> {
    if pieces.last().is_none_or(|last| last.lines > 0 && last.lines + lines > limit) {
        pieces.push(Piece::default());
    }
    let last = pieces.last_mut().expect("there is one");
    last.lines += lines;
    last
}

impl Piece<'_> {
    fn text(&self) -> String {
        Table::ALL.into_iter().map(|table| self.table(table)).collect()
    }

    fn table(&self, table: Table) -> String {
        let chains = || self.chains.iter().filter(move |chain| chain.table == table);
        let of_table = |keys: &[&ChainKey]| -> Vec<String> {
            keys.iter().filter(|key| key.0 == table).map(|key| key.1.clone()).collect()
        };
        let mut body = String::new();
        let empty = chains().map(|chain| chain.name.clone()).chain(of_table(&self.flush));
        empty.for_each(|name| line(&mut body, format_args!(":{name} - [0:0]")));
        for chain in chains() {
            for rule in &chain.rules {
                line(&mut body, format_args!("-A {} {rule}", chain.name));
            }
        }
        for (_, hook) in self.hooks.iter().filter(|(of, _)| *of == table) {
            line(&mut body, format_args!("{hook}"));
        }
        for name in of_table(&self.delete) {
            line(&mut body, format_args!("-X {name}"));
        }
        if body.is_empty() { body } else { format!("*{}\n{body}COMMIT\n", table.name()) }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

/// What a kernel holds of ours.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The fingerprints of our chains.
    pub(crate) chains: HashMap<ChainKey, u64>,
    /// The jumps to them from built-in chains, as often as they are there.
    pub(crate) hooks: Vec<Hook>,
    /// Rules of others that lead to our chains: no chain can be deleted that they lead to.
    pub(crate) foreign: Vec<(Table, String)>,
}

impl Found {
    /// Adds what `iptables-save` printed of a table.
    pub(crate) fn add(&mut self, table: Table, saved: &str) {
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                if name.starts_with(PREFIX) {
                    self.chains.entry((table, name.to_owned())).or_insert(0);
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                self.rule(table, rule);
            }
        }
    }

    fn rule(&mut self, table: Table, text: &str) {
        let Some((chain, rule)) = text.split_once(' ') else { return };
        if chain.starts_with(PREFIX) {
            let sum = self.chains.entry((table, chain.to_owned())).or_insert(0);
            *sum = add_to_fingerprint(*sum, rule);
            return;
        }
        let is = |hook: &&Hook| (hook.table, hook.from, hook.rule) == (table, chain, rule);
        if let Some(hook) = HOOKS.iter().find(is) {
            self.hooks.push(*hook);
        } else if leads_to_us(rule) {
            self.foreign.push((table, text.to_owned()));
        }
    }
}

fn leads_to_us(rule: &str) -> bool {
    let mut words = rule.split(' ').rev();
    words.next().is_some_and(|last| last.starts_with(PREFIX))
        && words.next().is_some_and(|word| word == "-j" || word == "-g")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn chain(name: &str, rank: u8) -> Chain {
        let rules = vec!["-j ACCEPT".to_owned(), "-j DROP".to_owned()];
        Chain { table: Table::Nat, name: name.to_owned(), rank, rules }
    }

    #[test]
    fn inputs_are_bounded_and_in_order() {
        let change = Change {
            chains: vec![chain("KPNG-A", 0), chain("KPNG-B", 1)],
            gone: vec![(Table::Nat, "KPNG-X".to_owned()), (Table::Nat, "KPNG-Y".to_owned())],
            hooks: vec![(Table::Nat, "-I OUTPUT -j KPNG-B".to_owned())],
        };
        let texts = inputs(&change, 4);
        expect![[r"
            *nat
            :KPNG-A - [0:0]
            -A KPNG-A -j ACCEPT
            -A KPNG-A -j DROP
            COMMIT
            ---
            *nat
            :KPNG-B - [0:0]
            -A KPNG-B -j ACCEPT
            -A KPNG-B -j DROP
            -I OUTPUT -j KPNG-B
            COMMIT
            ---
            *nat
            :KPNG-X - [0:0]
            :KPNG-Y - [0:0]
            COMMIT
            ---
            *nat
            -X KPNG-X
            -X KPNG-Y
            COMMIT
        "]]
        .assert_eq(&texts.join("---\n"));
        assert_eq!(inputs(&change, 100).len(), 1);
        assert_eq!(inputs(&Change::default(), 100), [""; 0]);
    }

    #[test]
    fn what_is_printed_is_what_was_written() {
        let change = Change { chains: vec![chain("KPNG-A", 0)], ..Change::default() };
        let mut found = Found::default();
        found.add(Table::Nat, &inputs(&change, 100).concat());
        let fingerprint = crate::state::fingerprint(&change.chains[0].rules);
        assert_eq!(found.chains[&(Table::Nat, "KPNG-A".to_owned())], fingerprint);
    }

    #[test]
    fn hooks_are_told_from_other_jumps() {
        let mut found = Found::default();
        found.add(
            Table::Nat,
            "*nat\n:OUTPUT ACCEPT [0:0]\n:KPNG-OUTPUT - [0:0]\n\
             -A OUTPUT -m comment --comment \"kpng: services\" -j KPNG-OUTPUT\n\
             -A OUTPUT -d 10.0.0.1/32 -j KPNG-OUTPUT\n\
             -A OUTPUT -m comment --comment \"not -j KPNG-OUTPUT\" -j ACCEPT\nCOMMIT\n",
        );
        assert_eq!(found.hooks.len(), 1);
        assert_eq!(
            found.foreign,
            [(Table::Nat, "OUTPUT -d 10.0.0.1/32 -j KPNG-OUTPUT".to_owned())]
        );
    }
}
