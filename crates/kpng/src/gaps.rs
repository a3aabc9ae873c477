//! Which services need what the backend cannot do.

use std::collections::{BTreeMap, BTreeSet};

use kpng_core::backend::{Capability, Gap};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{NodeFacts, Plan, ServicePlan};

/// Remembers the services that need a gap of a backend.
#[derive(Debug)]
pub(crate) struct GapWatch {
    gaps: &'static [Gap],
    needing: BTreeMap<Capability, BTreeSet<NamespacedName>>,
}

impl GapWatch {
    /// The gaps of a backend, which nothing needs yet.
    pub(crate) fn new(gaps: &'static [Gap]) -> Self {
        let needing = gaps.iter().map(|gap| (gap.what, BTreeSet::new())).collect();
        Self { gaps, needing }
    }

    /// How many services need each gap.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Capability, usize)> {
        self.needing.iter().map(|(what, services)| (*what, services.len()))
    }

    /// Takes note of a plan that is in force, and returns who needs a gap newly. `changed` names the
    /// services that differ from the last call; `None` means all.
    pub(crate) fn update(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Vec<(NamespacedName, Gap)> {
        let mut new = Vec::new();
        if self.gaps.is_empty() {
            return new;
        }
        match changed {
            Some(changed) => {
                for key in changed {
                    self.note(key, plan.service(key).map(|plan| &**plan), plan.facts(), &mut new);
                }
            }
            None => {
                for services in self.needing.values_mut() {
                    services.retain(|key| plan.service(key).is_some());
                }
                for (key, service) in plan.services() {
                    self.note(key, Some(service), plan.facts(), &mut new);
                }
            }
        }
        new
    }

    fn note(
        &mut self,
        key: &NamespacedName,
        service: Option<&ServicePlan>,
        facts: &NodeFacts,
        new: &mut Vec<(NamespacedName, Gap)>,
    ) {
        for gap in self.gaps {
            let services = self.needing.entry(gap.what).or_default();
            if !service.is_some_and(|plan| gap.what.is_needed_by(plan, facts)) {
                services.remove(key);
            } else if services.insert(key.clone()) {
                new.push((key.clone(), *gap));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kpng_testkit::conformance::plan_of;

    use super::*;

    const GAPS: &[Gap] = &[Gap { what: Capability::Sctp, why: "a test" }];
    const CLUSTER: &str = "
        service t/a cluster=cluster.1 port=s:80/SCTP
        service t/b cluster=cluster.2 port=s:80/TCP";

    fn names(new: Vec<(NamespacedName, Gap)>) -> Vec<String> {
        new.into_iter().map(|(key, _)| key.to_string()).collect()
    }

    #[test]
    fn who_needs_a_gap_is_told_once_and_counted_while_it_does() {
        let (both, other) = (plan_of(CLUSTER), plan_of(&CLUSTER.replace("SCTP", "UDP")));
        let (both, other) = (both.plan(), other.plan());
        let changed = [NamespacedName::new("t", "a"), NamespacedName::new("t", "b")];
        let mut watch = GapWatch::new(GAPS);
        assert_eq!(names(watch.update(both, None)), ["t/a"]);
        assert_eq!(watch.counts().collect::<Vec<_>>(), [(Capability::Sctp, 1)]);
        assert_eq!(names(watch.update(both, Some(&changed))), [""; 0]);
        assert_eq!(names(watch.update(both, None)), [""; 0]);
        assert_eq!(names(watch.update(other, Some(&changed))), [""; 0]);
        assert_eq!(watch.counts().collect::<Vec<_>>(), [(Capability::Sctp, 0)]);
        assert_eq!(names(watch.update(both, Some(&changed))), ["t/a"]);
        assert_eq!(names(watch.update(other, None)), [""; 0]);
        assert_eq!(watch.counts().collect::<Vec<_>>(), [(Capability::Sctp, 0)]);
    }
}
