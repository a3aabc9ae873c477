//! Which mark each firewall-mark service has.
//!
//! Marks are of one range, and none has the bit that means "to be masqueraded" unless it does mean
//! that. A service keeps its mark as long as it is wanted, also over a restart: there the marks that
//! the kernel's maps have are asked for first.

use std::collections::{BTreeSet, HashMap};

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::Origin;

/// The bits that tell our marks from others'.
const MASK: u32 = 0xfff0_0000;
/// What those bits are: `kp`, rounded.
const BASE: u32 = 0x6b70_0000;

/// What a firewall-mark service is for: packets of one origin to the external frontends of one service
/// port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Purpose {
    pub(crate) service: NamespacedName,
    pub(crate) service_port: u16,
    pub(crate) family: Family,
    pub(crate) from: Origin,
    pub(crate) masquerade: bool,
}

/// The marks that are in use.
#[derive(Debug)]
pub(crate) struct Marks {
    masquerade: u32,
    of: HashMap<Purpose, u32>,
    taken: BTreeSet<u32>,
    /// Where to look for a free one.
    next: u32,
}

impl Marks {
    /// No marks. `masquerade` is the bit that means "to be masqueraded".
    pub(crate) fn new(masquerade: u32) -> Self {
        Self { masquerade, of: HashMap::new(), taken: BTreeSet::new(), next: 0 }
    }

    /// The mark of a purpose: the one it has, or `wished`, if that is free, or a new one. `None` when a
    /// million are taken.
    pub(crate) fn take(&mut self, purpose: &Purpose, wished: Option<u32>) -> Option<u32> {
        if let Some(mark) = self.of.get(purpose) {
            return Some(*mark);
        }
        let wished = wished.filter(|mark| self.fits(*mark, purpose));
        let mark = wished.or_else(|| self.free(purpose))?;
        self.of.insert(purpose.clone(), mark);
        self.taken.insert(mark);
        Some(mark)
    }

    /// The mark of a purpose is not needed any more.
    pub(crate) fn release(&mut self, purpose: &Purpose) {
        if let Some(mark) = self.of.remove(purpose) {
            self.taken.remove(&mark);
        }
    }

    fn fits(&self, mark: u32, purpose: &Purpose) -> bool {
        let masquerades = mark & self.masquerade != 0;
        let (mask, base) = range(self.masquerade);
        mark & mask == base && masquerades == purpose.masquerade && !self.taken.contains(&mark)
    }

    fn free(&mut self, purpose: &Purpose) -> Option<u32> {
        let with_bit = if purpose.masquerade { self.masquerade } else { 0 };
        for _ in 0..=!MASK {
            self.next = (self.next + 1) & !MASK;
            let mark = (BASE | self.next) & !self.masquerade | with_bit;
            if self.next != 0 && self.fits(mark, purpose) {
                return Some(mark);
            }
        }
        None
    }
}

/// The bits that tell our marks from others', and what they are, when the bit `masquerade` means "to be
/// masqueraded".
pub(crate) fn range(masquerade: u32) -> (u32, u32) {
    (MASK & !masquerade, BASE & !masquerade)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(number: u16, masquerade: bool) -> Purpose {
        Purpose {
            service: NamespacedName::new("t", "web"),
            service_port: number,
            family: Family::V4,
            from: Origin::Outside,
            masquerade,
        }
    }

    #[test]
    fn marks_are_kept_reused_and_of_the_range() {
        for bit in [0, 14, 19, 20, 28, 31] {
            let masquerade = 1 << bit;
            let (mask, base) = range(masquerade);
            let mut marks = Marks::new(masquerade);
            let mut all = BTreeSet::new();
            for number in 0..40_000 {
                let purpose = purpose(number, number % 2 == 1);
                let mark = marks.take(&purpose, None).unwrap();
                assert_eq!(marks.take(&purpose, Some(mark + 1)), Some(mark));
                assert_eq!(mark & mask, base);
                assert_eq!(mark & masquerade != 0, purpose.masquerade);
                assert!(all.insert(mark), "{mark:#x} twice");
            }
            let mark = marks.take(&purpose(7, true), None).unwrap();
            marks.release(&purpose(7, true));
            assert_eq!(marks.take(&purpose(50_000, true), Some(mark)), Some(mark));
            assert_ne!(marks.take(&purpose(7, true), Some(mark)), Some(mark), "it is taken");
            assert_ne!(marks.take(&purpose(8, false), Some(0x1234)), Some(0x1234), "not of ours");
        }
    }
}
