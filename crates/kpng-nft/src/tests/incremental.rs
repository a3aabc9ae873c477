//! Written by differences, taken over by a new process or written from nothing: the same objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::model::Family;
use kpng_core::plan::Plan;
use kpng_linux::nft::{Batch, Bytes, Element};
use kpng_testkit::conformance::{all_services, plan_of};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::names::Set;
use crate::state::Unclaimed;
use crate::{Config, Whole};
use kpng_testkit::random::cluster;

/// The elements that a kernel would hold, which is as strict as the kernel.
#[derive(Debug, Default, PartialEq)]
struct Elements(BTreeMap<(Family, Set, Bytes), Element>);

impl Elements {
    /// Does what a transaction with the waiting elements would do.
    fn commit(&mut self, whole: &mut Whole) -> usize {
        let mut changes = 0;
        for (family, table) in &mut whole.tables {
            let [delete, add] = table.take_pending();
            changes += delete.len() + add.len();
            for (set, element) in delete {
                let deleted = self.0.remove(&(*family, set, element.key));
                assert_eq!(deleted, Some(element), "only what is there is deleted");
            }
            for (set, element) in add {
                let before = self.0.insert((*family, set, element.key), element);
                assert_eq!(before, None, "only what is not there is added");
            }
        }
        changes
    }
}

fn whole(plan: &Plan, unclaimed: impl Fn(Family) -> Unclaimed) -> Whole {
    let found = Family::ALL.map(|family| (family, unclaimed(family)));
    Whole::found(plan, &Config::default(), true, found)
}

/// What a process with an empty memory makes of what is there.
fn take_over(plan: &Plan, before: &Whole, elements: &mut Elements) -> (Whole, usize) {
    let found = |family| Unclaimed {
        elements: elements
            .0
            .iter()
            .filter(|((of, ..), _)| *of == family)
            .map(|((_, set, key), element)| ((*set, *key), element.clone()))
            .collect(),
        chains: before.tables[&family].chains(),
    };
    let mut whole = whole(plan, found);
    let (mut batch, mut stale) = (Batch::new(), Vec::new());
    whole.write_skeletons(&Config::default(), &mut batch);
    for (key, service) in plan.services() {
        whole.write_found(&mut batch, key, service, &mut stale);
    }
    whole.remove_unclaimed(&mut batch, &mut stale);
    let changes = elements.commit(&mut whole);
    let messages = if batch.is_empty() { 0 } else { 1 };
    (whole, changes + messages)
}

/// The same objects with the same numbers, written into empty tables.
fn from_nothing(plan: &Plan, like: &Whole) -> (Whole, Elements) {
    let mut whole = whole(plan, |_| Unclaimed::default());
    let (mut batch, mut stale, mut elements) = (Batch::new(), Vec::new(), Elements::default());
    whole.write_skeletons(&Config::default(), &mut batch);
    for key in plan.services().keys() {
        let written = like.services[key].clone();
        whole.write_service(&mut batch, key, Some(written), &mut stale);
    }
    elements.commit(&mut whole);
    (whole, elements)
}

fn check(clusters: &[(String, bool)]) {
    let mut elements = Elements::default();
    let mut before = Plan::default();
    let mut whole = whole(&before, |_| Unclaimed::default());
    for (cluster, restart) in clusters {
        let plan = plan_of(cluster).plan().clone();
        let (mut batch, mut stale) = (Batch::new(), Vec::new());
        if *restart {
            whole = take_over(&plan, &whole, &mut elements).0;
        } else {
            whole.facts = Arc::clone(plan.facts());
            whole.write_skeletons(&Config::default(), &mut batch);
            for key in all_services(&before, &plan) {
                whole.write_changed(&mut batch, &key, plan.service(&key), &mut stale);
            }
            elements.commit(&mut whole);
        }
        before = plan;
    }
    // Idle classes are kept for a while; without them everything is as if written from nothing.
    let later = Instant::now() + Duration::from_secs(3600);
    whole.retire_idle_classes(later, &mut Batch::new(), &mut Vec::new());
    elements.commit(&mut whole);
    let (fresh, expected) = from_nothing(&before, &whole);
    assert_eq!(elements, expected);
    for family in Family::ALL {
        assert_eq!(whole.tables[&family].chains(), fresh.tables[&family].chains());
    }
    let (_, changes) = take_over(&before, &whole, &mut elements);
    assert_eq!(changes, 0, "a restart with the same state changes nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_states_ends_as_the_last_one(
        clusters in vec((cluster(), prop::bool::weighted(0.3)), 1..6),
    ) {
        check(&clusters);
    }
}
