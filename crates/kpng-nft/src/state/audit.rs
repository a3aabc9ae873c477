//! What a table that was claimed by a plan lacks, and has too much.

use std::collections::{BTreeMap, BTreeSet};

use kpng_core::backend::Audit;
use kpng_linux::nft::{Element, Value, Verdict};

use super::{TableState, Unclaimed};
use crate::audit::{chain_text, element_text};
use crate::class::Numbers;
use crate::names::Set;

/// How the names of chains begin that come and go with services.
const COMING_AND_GOING: [&str; 4] = ["service-", "nodeport-", "sticky-", "pick-"];

impl TableState {
    /// The numbers of the classes.
    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Adds how `held`, from which the plan claimed, differs from what the plan asks for.
    pub(crate) fn audit(&self, held: &Unclaimed, audit: &mut Audit) {
        self.audit_elements(held, audit);
        let chains: BTreeMap<_, _> = self.chains.iter().collect();
        for (name, wanted) in chains {
            audit.wanted += 1;
            let text = || chain_text(self.family, name);
            match held.chains.get(name) {
                Some(fingerprints) if *fingerprints == wanted.fingerprints => audit.found += 1,
                Some(_) => audit.differing.add(text),
                None => audit.missing.add(text),
            }
        }
        self.audit_unclaimed(audit);
    }

    fn audit_elements(&self, held: &Unclaimed, audit: &mut Audit) {
        let mut replaced = 0;
        for (set, elements) in &self.pending.add {
            let deleted = self.pending.delete.get(set).into_iter().flatten();
            let deleted: BTreeSet<_> = deleted.map(|element| element.key).collect();
            for element in elements {
                let text = || element_text(self.family, *set, element);
                if deleted.contains(&element.key) {
                    replaced += 1;
                    audit.differing.add(text);
                } else {
                    audit.missing.add(text);
                }
            }
            audit.wanted += elements.len();
        }
        let found = held.elements.len() - self.unclaimed.elements.len() - replaced;
        audit.wanted += found;
        audit.found += found;
    }

    /// What nobody claimed is foreign, but for classes that are kept for a while, and chains of ours
    /// on their way out.
    fn audit_unclaimed(&self, audit: &mut Audit) {
        let Unclaimed { elements, chains } = &self.unclaimed;
        let comes_and_goes =
            |name: &str| COMING_AND_GOING.iter().any(|prefix| name.starts_with(prefix));
        // An empty one does nothing: it was emptied, and is deleted with the next change.
        let is_ours = |name: &str, fingerprints: &[u64]| {
            fingerprints.is_empty() || comes_and_goes(name) && !fingerprints.contains(&0)
        };
        // Also to one in use: a class can be a part of another.
        let leads_to_ours = |element: &Element| match &element.value {
            Value::Verdict(Verdict::Goto(chain)) => match chains.get(chain) {
                Some(fingerprints) => is_ours(chain, fingerprints),
                None => comes_and_goes(chain) && self.chains.contains_key(chain),
            },
            _ => false,
        };
        let elements: BTreeMap<_, _> = elements.iter().collect();
        for ((set, _), element) in elements {
            if *set == Set::Routes && leads_to_ours(element) {
                audit.unused += 1;
            } else {
                audit.foreign.add(|| element_text(self.family, *set, element));
            }
        }
        for (name, fingerprints) in chains {
            if is_ours(name, fingerprints) {
                audit.unused += 1;
            } else {
                audit.foreign.add(|| chain_text(self.family, name));
            }
        }
    }
}
