//! A copy of a server's sets, as bytes.
//!
//! Operations are staged until Sync. Then the units in which something differs come out, and nothing
//! else is decoded: a Reset that is followed by the same values changes nothing.

use std::collections::BTreeMap;

/// Encoded values by the last part of their path, sorted.
pub(super) type Values = [(Box<str>, Bytes)];

/// An encoded value. There are many, and none is shared.
type Bytes = Box<[u8]>;

/// New values by the last part of their path; `None` for those that are gone.
type Staged = BTreeMap<Box<str>, Option<Bytes>>;

/// The values of a set or several, in units that are used as a whole.
#[derive(Debug)]
pub(super) struct Replica<U> {
    units: BTreeMap<U, Vec<(Box<str>, Bytes)>>,
    staged: BTreeMap<U, Staged>,
    staged_bytes: usize,
    /// What is staged is everything.
    reset: bool,
}

/// Memory of a staged operation beside its value.
const OVERHEAD: usize = 128;

impl<U: Ord + Clone> Replica<U> {
    pub(super) fn new() -> Self {
        Self { units: BTreeMap::new(), staged: BTreeMap::new(), staged_bytes: 0, reset: false }
    }

    /// Stages that everything follows.
    pub(super) fn reset(&mut self) {
        self.abandon();
        self.reset = true;
    }

    /// Stages a new value, or that there is none any more.
    pub(super) fn put(&mut self, unit: U, name: &str, value: Option<Vec<u8>>) {
        let value = value.map(Vec::into_boxed_slice);
        let length = |value: &Option<Bytes>| value.as_ref().map_or(0, |bytes| bytes.len());
        self.staged_bytes += length(&value) + OVERHEAD;
        if let Some(before) = self.staged.entry(unit).or_default().insert(name.into(), value) {
            self.staged_bytes -= length(&before) + OVERHEAD;
        }
    }

    /// About how much memory is taken by what is staged.
    pub(super) fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// Forgets what is staged.
    pub(super) fn abandon(&mut self) {
        self.staged.clear();
        self.staged_bytes = 0;
        self.reset = false;
    }

    /// Puts what is staged in force. Returns the units in which something differs, sorted.
    pub(super) fn commit(&mut self) -> Vec<U> {
        let mut changed = Vec::new();
        if self.reset {
            let gone = |unit: &U| !self.staged.contains_key(unit);
            changed.extend(self.units.extract_if(.., |unit, _| gone(unit)).map(|(unit, _)| unit));
        }
        for (unit, staged) in std::mem::take(&mut self.staged) {
            let before = self.units.remove(&unit).unwrap_or_default();
            let (after, differs) =
                if self.reset { replace(&before, staged) } else { merge(before, staged) };
            if differs {
                changed.push(unit.clone());
            }
            if !after.is_empty() {
                self.units.insert(unit, after);
            }
        }
        self.abandon();
        changed.sort_unstable();
        changed
    }

    /// The values of a unit.
    pub(super) fn values(&self, unit: &U) -> &Values {
        self.units.get(unit).map_or(&[], Vec::as_slice)
    }
}

/// The staged values, and whether they differ from those before.
fn replace(before: &Values, staged: Staged) -> (Vec<(Box<str>, Bytes)>, bool) {
    let values = staged.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let mut after: Vec<_> = values.collect();
    after.shrink_to_fit();
    let differs = after != before;
    (after, differs)
}

/// The values before with the staged changes, and whether they differ.
fn merge(mut values: Vec<(Box<str>, Bytes)>, staged: Staged) -> (Vec<(Box<str>, Bytes)>, bool) {
    let mut differs = false;
    for (name, value) in staged {
        match (values.binary_search_by(|(other, _)| other.cmp(&name)), value) {
            (Ok(at), Some(value)) if values[at].1 == value => continue,
            (Ok(at), Some(value)) => values[at].1 = value,
            (Ok(at), None) => drop(values.remove(at)),
            (Err(at), Some(value)) => values.insert(at, (name, value)),
            (Err(_), None) => continue,
        }
        differs = true;
    }
    (values, differs)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Applies words: `a.x=1` sets the value `x` of unit `a`, `a.x-` deletes it, `reset`, `sync`,
    /// `cut`. Shows the units that differ at each sync.
    fn check(words: &str, expected: Expect) {
        let mut replica = Replica::new();
        let mut shown = String::new();
        for word in words.split_whitespace() {
            match word {
                "reset" => replica.reset(),
                "cut" => replica.abandon(),
                "sync" => {
                    let changed = replica.commit();
                    let values = |unit: &&str| {
                        let values = replica.values(unit).iter();
                        let text = |(name, value): &(Box<str>, Box<[u8]>)| {
                            format!("{name}={}", String::from_utf8_lossy(value))
                        };
                        format!("{unit}: [{}]", values.map(text).collect::<Vec<_>>().join(" "))
                    };
                    shown += &changed.iter().map(values).collect::<Vec<_>>().join(", ");
                    shown += "\n";
                    assert_eq!(replica.staged_bytes(), 0);
                }
                put => {
                    let (unit, rest) = put.split_once('.').unwrap();
                    match rest.split_once('=') {
                        Some((name, value)) => replica.put(unit, name, Some(value.into())),
                        None => replica.put(unit, rest.trim_end_matches('-'), None),
                    }
                }
            }
        }
        expected.assert_eq(shown.trim_end());
    }

    #[test]
    fn what_differs_comes_out_at_sync() {
        check(
            "b.y=1 a.x=1 a.z=2 sync  a.x=1 sync  a.x=3 a.z- a.q- c.x- sync  b.y- sync",
            expect![[r"
                a: [x=1 z=2], b: [y=1]

                a: [x=3]
                b: []"]],
        );
    }

    #[test]
    fn a_reset_with_the_same_values_changes_nothing() {
        check(
            "a.x=1 b.x=1 sync  reset a.x=1 b.x=1 sync  reset b.x=2 c.x=1 sync  reset sync",
            expect![[r"
                a: [x=1], b: [x=1]

                a: [], b: [x=2], c: [x=1]
                b: [], c: []"]],
        );
    }

    #[test]
    fn a_reset_drops_values_of_a_unit_that_stays() {
        check(
            "a.x=1 a.y=1 sync  reset a.y=1 sync  reset a.y=1 a.y- sync",
            expect![[r"
                a: [x=1 y=1]
                a: [y=1]
                a: []"]],
        );
    }

    #[test]
    fn what_comes_before_a_reset_or_a_cut_leaves_no_trace() {
        check(
            "a.x=1 sync  a.x=2 b.x=1 cut sync  reset b.x=1 cut sync  a.x=3 reset a.x=1 sync",
            expect!["a: [x=1]"],
        );
    }
}
