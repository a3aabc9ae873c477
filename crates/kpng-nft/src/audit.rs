//! What the kernel holds, compared with a plan, without changing anything.
//!
//! It begins as a start does: what is found is claimed by what is wanted. What would have to be written
//! then differs, and what nobody claims is foreign.

use std::sync::Arc;

use kpng_core::backend::Audit;
use kpng_core::model::Family;
use kpng_core::plan::{FrontendKey, NodeFacts, Plan};
use kpng_linux::nft::{Batch, Element, FoundTable, Rule, TableFamily, text};

use crate::class::Place;
use crate::names::{self, Set};
use crate::render;
use crate::state::Unclaimed;
use crate::{Config, Error, Nft, Whole, has_our_shape};

/// What a table is, when it is not one that we would take over.
enum Found {
    Nothing,
    OtherShape,
    Ours { unclaimed: Unclaimed, strangers: Vec<String> },
}

impl Nft {
    /// How the kernel's tables differ from `plan`.
    pub(crate) fn compare(&mut self, plan: &Plan) -> Result<Audit, Error> {
        let mut audit = Audit::default();
        for family in Family::ALL {
            let (held, strangers) = match self.find(family, &Set::ALL)? {
                Found::Nothing => Default::default(),
                Found::Ours { unclaimed, strangers } => (unclaimed, strangers),
                Found::OtherShape => {
                    audit.wanted += 1;
                    audit.differing.add(|| format!("{}: sets or hooks are others", table(family)));
                    continue;
                }
            };
            for stranger in strangers {
                audit.foreign.add(|| format!("{} {stranger}", table(family)));
            }
            let counting = self.config.counting.counts(plan.service_ports(), held.counts());
            let mut whole = self.claim(plan, family, held.clone(), counting);
            for (key, service) in plan.by_importance() {
                whole.write_found(&mut Batch::default(), key, service, &mut Vec::new());
            }
            whole.tables[&family].audit(&held, &mut audit);
        }
        Ok(audit)
    }

    /// What the kernel holds for a frontend, line by line.
    pub(crate) fn describe(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Vec<String>, Error> {
        let Some((key, service, frontend)) = plan.owner(frontend) else { return Ok(Vec::new()) };
        let family = frontend.at.family();
        let place_sets = sets_of(Place::of(frontend.at));
        let sets: Vec<_> = place_sets.iter().copied().chain([Set::Routes]).collect();
        let held = match self.find(family, &sets)? {
            Found::Ours { unclaimed, .. } => unclaimed,
            Found::Nothing => return Ok(vec![format!("{} is not there", table(family))]),
            Found::OtherShape => {
                return Ok(vec![format!("{} is not as kpng makes it", table(family))]);
            }
        };
        // The plan need not have all services, on whose number it depends.
        let counting = held.counts() == Some(true);
        let mut whole = self.claim(plan, family, held.clone(), counting);
        let service = Arc::new(service.clone());
        whole.write_found(&mut Batch::default(), key, &service, &mut Vec::new());
        let state = &whole.tables[&family];
        let mut objects = whole.services[key].objects(key, family, counting);
        let frontend_key = render::frontend_key(frontend);
        let class = objects.class_of(&frontend_key).cloned();

        let mut lines = Vec::new();
        let wanted = objects.take_elements(state.numbers()).into_iter();
        let of_frontend = wanted.filter(|(set, element)| {
            place_sets.contains(set) && element.key.as_slice().starts_with(frontend_key.as_slice())
        });
        let route = class
            .iter()
            .filter_map(|class| Some((Set::Routes, class.route(state.numbers().get(class)?))));
        for (set, element) in of_frontend.chain(route) {
            lines.push(held.element_line(family, set, &element));
        }
        let class_chains =
            class.iter().flat_map(|class| class.chains(family, plan.facts(), self.config.mark()));
        let sticky = objects
            .chains
            .iter()
            .filter(|(name, _)| class.as_ref().is_some_and(|class| class.leads_through(name)));
        for (name, rules) in sticky.cloned().chain(class_chains) {
            lines.extend(held.chain_lines(family, &name, &rules));
        }
        Ok(lines)
    }

    fn find(&mut self, family: Family, sets: &[Set]) -> Result<Found, Error> {
        let Some(found) = self.nft.read_table(&names::table(family))? else {
            return Ok(Found::Nothing);
        };
        if !has_our_shape(family, &found) {
            return Ok(Found::OtherShape);
        }
        let strangers = strangers(&found);
        Ok(Found::Ours { unclaimed: self.read_unclaimed(family, found, sets)?, strangers })
    }

    /// The state of a start that found `held`, with the constant part claimed.
    fn claim(&self, plan: &Plan, family: Family, held: Unclaimed, counting: bool) -> Whole {
        let mut whole = Whole::found(plan, &self.config, counting, [(family, held)]);
        whole.write_skeletons(&self.config, &mut Batch::default());
        whole
    }
}

/// Sets and base chains in a table of ours that we never make.
fn strangers(found: &FoundTable) -> Vec<String> {
    let our_set = |name: &String| Set::ALL.iter().any(|set| set.name() == name);
    let skeleton = render::skeleton(Family::V4, &NodeFacts::default(), &Config::default());
    let our_chain = |name: &String| skeleton.chains.iter().any(|(chain, _)| chain.name == *name);
    let sets = found.sets.keys().filter(|name| !our_set(name)).map(|name| format!("set {name}"));
    let base = found.chains.iter().filter(|(name, chain)| chain.hook.is_some() && !our_chain(name));
    sets.chain(base.map(|(name, _)| format!("base chain {name}"))).collect()
}

/// A table as `nft` is asked for it.
fn table(family: Family) -> String {
    format!("table {} {}", table_family(family).name(), names::TABLE)
}

fn table_family(family: Family) -> TableFamily {
    names::table(family).family
}

impl Unclaimed {
    /// An element, and whether it is held.
    fn element_line(&self, family: Family, set: Set, wanted: &Element) -> String {
        let line = element_text(family, set, wanted);
        match self.elements.get(&(set, wanted.key)) {
            Some(held) if held == wanted => line,
            Some(held) => format!("{line} (differs: {})", element_text(family, set, held)),
            None => format!("{line} (missing)"),
        }
    }

    /// A chain with its rules, and whether it is held.
    fn chain_lines(&self, family: Family, name: &str, rules: &[Rule]) -> Vec<String> {
        let of = table_family(family);
        let wanted: Vec<_> = rules.iter().map(|rule| rule.fingerprint(of)).collect();
        let state = match self.chains.get(name) {
            Some(held) if *held == wanted => "",
            Some(_) => " (differs)",
            None => " (missing)",
        };
        let title = format!("{}{state}", chain_text(family, name));
        let rules = rules.iter().map(|rule| format!("  {}", text::rule(of, rule)));
        std::iter::once(title).chain(rules).collect()
    }
}

/// Where the elements of a frontend are.
fn sets_of(place: Place) -> &'static [Set] {
    match place {
        Place::Vip => &[
            Set::ServiceIps,
            Set::ForwardedServices,
            Set::GuardedServices,
            Set::SourceRanges,
            Set::RejectedServices,
            Set::DroppedServices,
            Set::Endpoints,
            Set::OutsideEndpoints,
        ],
        Place::NodePort => &[
            Set::ServiceNodePorts,
            Set::ForwardedNodePorts,
            Set::RejectedNodePorts,
            Set::DroppedNodePorts,
            Set::NodePortEndpoints,
            Set::OutsideNodePortEndpoints,
        ],
    }
}

/// A chain as a line: `ip kpng chain NAME`.
pub(crate) fn chain_text(family: Family, name: &str) -> String {
    format!("{} {} chain {name}", table_family(family).name(), names::TABLE)
}

/// An element as a line: `ip kpng service-ips { KEY : VALUE }`.
pub(crate) fn element_text(family: Family, set: Set, element: &Element) -> String {
    let of = table_family(family);
    let text = text::element(of, &set.def(), element);
    format!("{} {} {} {{ {text} }}", of.name(), names::TABLE, set.name())
}
