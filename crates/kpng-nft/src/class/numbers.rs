//! The numbers by which frontends refer to their classes.
//!
//! A class's number is the hash of its name, so that every process chooses the same one. Should two
//! classes have one hash, the later one takes the next free number; a process that takes over a table
//! takes over its numbers.

use std::collections::{HashMap, HashSet};

use kpng_linux::nft::{Bytes, Element, Value, Verdict};

use super::Class;

/// The numbers of one table.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    of: HashMap<Class, u32>,
    taken: HashSet<u32>,
    /// Numbers that were found in the kernel, by the chain that they lead to.
    found: HashMap<String, u32>,
}

impl Numbers {
    /// Numbers that a table has already: elements of its map of routes.
    pub(crate) fn found<'e>(routes: impl Iterator<Item = &'e Element>) -> Self {
        let number = |element: &Element| match &element.value {
            Value::Verdict(Verdict::Goto(chain)) => {
                let bytes = element.key.as_slice().try_into().ok()?;
                Some((chain.clone(), u32::from_ne_bytes(bytes)))
            }
            _ => None,
        };
        let found: HashMap<_, _> = routes.filter_map(number).collect();
        Self { taken: found.values().copied().collect(), found, ..Self::default() }
    }

    /// The number of the class, as an element key. A class that has none gets one.
    pub(crate) fn assign(&mut self, class: &Class) -> Bytes {
        if let Some(number) = self.of.get(class) {
            return key(*number);
        }
        let number = self.found.remove(&class.route_chain()).unwrap_or_else(|| {
            let mut number = class.hash();
            // 0 stands for no class.
            while number == 0 || self.taken.contains(&number) {
                number = number.wrapping_add(1);
            }
            number
        });
        self.taken.insert(number);
        self.of.insert(class.clone(), number);
        key(number)
    }

    /// The number of a class that has one.
    pub(crate) fn get(&self, class: &Class) -> Option<Bytes> {
        self.of.get(class).copied().map(key)
    }

    /// The class is not used any more.
    pub(crate) fn release(&mut self, class: &Class) {
        if let Some(number) = self.of.remove(class) {
            self.taken.remove(&number);
        }
    }

    /// What was found and not assigned is free.
    pub(crate) fn forget_found(&mut self) {
        for number in std::mem::take(&mut self.found).into_values() {
            self.taken.remove(&number);
        }
    }
}

fn key(number: u32) -> Bytes {
    Bytes::EMPTY.number(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::tests::class_of_size;

    #[test]
    fn a_number_that_is_taken_is_not_given_again() {
        let (one, two) = (class_of_size(1), class_of_size(2));
        let mut numbers = Numbers::default();
        numbers.taken.insert(two.hash());
        assert_eq!(numbers.assign(&one), key(one.hash()));
        assert_eq!(numbers.assign(&two), key(two.hash().wrapping_add(1)));
        assert_eq!(numbers.get(&two), Some(key(two.hash().wrapping_add(1))));
        numbers.release(&two);
        assert_eq!(numbers.get(&two), None);
    }

    #[test]
    fn numbers_of_a_table_are_taken_over() {
        let (one, two) = (class_of_size(1), class_of_size(2));
        // Somebody gave class one the number that class two would get.
        let chain = Verdict::Goto(one.route_chain());
        let route = Element { key: key(two.hash()), last: None, value: Value::Verdict(chain) };
        let mut numbers = Numbers::found([&route].into_iter());
        assert_eq!(numbers.assign(&two), key(two.hash().wrapping_add(1)));
        assert_eq!(numbers.assign(&one), key(two.hash()));
    }
}
