//! The numbering of a pool's endpoints.
//!
//! The kernel picks a number; the element with that number is the endpoint. So that a change of one
//! endpoint changes one or two elements, endpoints keep their numbers: a new one takes the next
//! number, and when one goes, the last moves into its place.

use kpng_core::plan::{Pool, Target};

/// The endpoints of `pool` in the order of their numbers, given the order before.
pub(crate) fn renumber(before: &[Target], pool: &Pool) -> Vec<Target> {
    let wanted = &pool.targets;
    if before.is_empty() || before == wanted {
        return wanted.clone();
    }
    let is_wanted = |target: &Target| wanted.binary_search(target).is_ok();
    let mut sorted_before = before.to_vec();
    sorted_before.sort_unstable();
    sorted_before.dedup();
    let mut new = wanted.iter().copied().filter(|t| sorted_before.binary_search(t).is_err());

    let mut order: Vec<Target> = Vec::with_capacity(wanted.len());
    let mut kept = before.to_vec();
    let mut at = 0;
    while at < kept.len() {
        if is_wanted(&kept[at]) {
            order.push(kept[at]);
        } else if let Some(new) = new.next() {
            order.push(new);
        } else {
            // Nothing new is left for this number: the last one that stays moves here.
            while kept.len() > at + 1 && !is_wanted(&kept[kept.len() - 1]) {
                kept.pop();
            }
            let last = kept.pop().filter(|last| kept.len() > at && is_wanted(last));
            order.extend(last);
        }
        at += 1;
    }
    order.extend(new);
    debug_assert_eq!(order.len(), wanted.len());
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpng_core::model::Family;
    use proptest::prelude::*;

    fn target(last: u8) -> Target {
        Target { address: [10, 0, 0, last].into(), port: 80 }
    }

    fn pool(targets: &[u8]) -> Pool {
        let mut targets: Vec<_> = targets.iter().map(|last| target(*last)).collect();
        targets.sort_unstable();
        targets.dedup();
        Pool { service_port: 0, family: Family::V4, targets, affinity: None }
    }

    fn check(before: &[u8], wanted: &[u8], expected: &[u8]) {
        let before: Vec<_> = before.iter().map(|last| target(*last)).collect();
        let expected: Vec<_> = expected.iter().map(|last| target(*last)).collect();
        assert_eq!(renumber(&before, &pool(wanted)), expected);
    }

    #[test]
    fn endpoints_keep_their_numbers() {
        check(&[], &[3, 1, 2], &[1, 2, 3]);
        check(&[3, 1], &[1, 2, 3], &[3, 1, 2]);
        check(&[3, 1, 2], &[1, 2], &[2, 1]);
        check(&[3, 1, 2], &[3, 1], &[3, 1]);
        check(&[3, 1, 2], &[3, 4, 2], &[3, 4, 2]);
        check(&[1, 2, 3, 4], &[4], &[4]);
        check(&[1, 2, 3, 4], &[9], &[9]);
    }

    proptest! {
        #[test]
        fn the_order_is_always_a_permutation_of_the_pool(
            before in proptest::collection::btree_set(0_u8..20, 0..12),
            rotate in 0_usize..12,
            wanted in proptest::collection::vec(0_u8..20, 1..12),
        ) {
            let mut before: Vec<_> = before.into_iter().map(target).collect();
            if !before.is_empty() {
                let by = rotate % before.len();
                before.rotate_left(by);
            }
            let pool = pool(&wanted);
            let order = renumber(&before, &pool);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &pool.targets);
            let moved = order.iter().zip(&before).filter(|(new, old)| new != old).count();
            let gone = before.iter().filter(|t| !pool.targets.contains(t)).count();
            prop_assert!(moved <= gone);
        }
    }
}
