//! A table compared with what is wanted, without changing anything.

use std::collections::BTreeMap;

use super::{Content, OwnedTable};
use crate::error::Result;
use crate::nft::{Element, text};

/// How a table differs from what is wanted. Objects are named as an operator would ask nft for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many objects are wanted: chains and elements.
    pub wanted: usize,
    /// How many of them the kernel holds just so.
    pub found: usize,
    /// Those that are not there.
    pub missing: Vec<String>,
    /// Those that are there differently.
    pub differing: Vec<String>,
    /// What nobody asked for.
    pub foreign: Vec<String>,
}

impl OwnedTable {
    /// Compares the table in the kernel with what is wanted. Changes nothing.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] when the kernel cannot be read.
    pub fn compare(&mut self, wanted: &Content) -> Result<Comparison> {
        let title = format!("table {} {}", self.table.family.name(), self.table.name);
        let mut elements: BTreeMap<_, &Element> = BTreeMap::new();
        for (set, element) in &wanted.elements {
            elements.insert((*set, element.key), element);
        }
        let count = wanted.chains.len() + elements.len();
        let mut out = Comparison { wanted: count, ..Comparison::default() };
        let Some(found) = self.nft.read_table(&self.table)? else {
            out.missing.push(title);
            return Ok(out);
        };
        if !self.fits(wanted, &found) {
            out.differing.push(format!("{title}: sets or hooks are others"));
            return Ok(out);
        }
        let mut chains = found.chains;
        for (chain, rules) in &wanted.chains {
            let name = format!("{title} chain {}", chain.name);
            let Some(found) = chains.remove(&chain.name) else {
                out.missing.push(name);
                continue;
            };
            let wanted = rules.iter().map(|rule| Some(rule.fingerprint(self.table.family)));
            match wanted.eq(found.rules.iter().map(|rule| rule.fingerprint)) {
                true => out.found += 1,
                false => out.differing.push(name),
            }
        }
        out.foreign.extend(chains.into_keys().map(|name| format!("{title} chain {name}")));
        let strangers = found.sets.keys().filter(|name| !self.sets.contains_key(&***name));
        out.foreign.extend(strangers.map(|name| format!("{title} set {name}")));
        for (name, set) in self.sets.iter().filter(|(_, set)| set.dynamic.is_none()) {
            let line = |element: &Element| {
                let text = text::element(self.table.family, set, element);
                format!("{title} element {name} {{ {text} }}")
            };
            for element in self.nft.elements(&self.table, set)? {
                match elements.remove(&(*name, element.key)) {
                    Some(wanted) if *wanted == element => out.found += 1,
                    Some(_) => out.differing.push(line(&element)),
                    None => out.foreign.push(line(&element)),
                }
            }
            let missing = elements.extract_if(.., |(of, _), _| of == name);
            out.missing.extend(missing.map(|(_, element)| line(element)));
        }
        Ok(out)
    }
}
