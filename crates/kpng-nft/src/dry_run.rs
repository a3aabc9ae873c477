//! The whole ruleset as text, without touching a kernel.

use std::collections::BTreeSet;

use kpng_core::model::Family;
use kpng_core::plan::Plan;
use kpng_linux::nft::{Chain, Element, text};

use crate::Config;
use crate::class::{Class, Numbers};
use crate::names::{self, Set};
use crate::render;

/// What `nft -f` reads to make a node do what `plan` says: both tables, replacing those of the same
/// name.
pub fn ruleset_text(plan: &Plan, config: &Config) -> String {
    Family::ALL.into_iter().map(|family| text::render(&ruleset(plan, config, family))).collect()
}

/// All objects of one family.
pub(crate) fn ruleset(plan: &Plan, config: &Config, family: Family) -> text::Ruleset {
    let facts = plan.facts();
    let counting = config.counting.counts(plan.service_ports(), None);
    let skeleton = render::skeleton(family, facts, config);
    let mut elements: Vec<(Set, Element)> = skeleton.elements;
    let mut shared = BTreeSet::new();
    let mut classes: BTreeSet<Class> = BTreeSet::new();
    let mut numbers = Numbers::default();
    let mut chains = Vec::new();
    for (key, service) in plan.services() {
        let order: Vec<_> = service.pools.iter().map(|pool| pool.targets.clone()).collect();
        let mut objects = render::service(key, service, &order, family, counting);
        for class in objects.classes() {
            numbers.assign(class);
            classes.insert(class.clone());
        }
        elements.extend(objects.take_elements(&numbers));
        shared.extend(objects.shared);
        chains.extend(objects.chains);
    }
    elements.extend(shared.into_iter().map(|(set, ip)| (set, render::shared_element(set, ip))));
    for class in &classes {
        elements.push((Set::Routes, class.route(numbers.assign(class))));
        for (name, rules) in class.chains(family, facts, config.mark()) {
            if chains.iter().all(|(other, _)| *other != name) {
                chains.push((name, rules));
            }
        }
    }
    let elements_of = |set: Set| {
        elements.iter().filter(|(of, _)| *of == set).map(|(_, element)| element.clone()).collect()
    };
    let named = |(name, rules)| (Chain { name, hook: None }, rules);
    text::Ruleset {
        table: names::table(family),
        sets: Set::ALL.into_iter().map(|set| (set.def(), elements_of(set))).collect(),
        chains: chains.into_iter().map(named).chain(skeleton.chains).collect(),
    }
}
