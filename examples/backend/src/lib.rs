//! A whole backend in an afternoon: one nf_tables chain for each frontend, by [`OwnedTable`].
//!
//! It passes the conformance table, and a change costs what the changed service costs. What
//! `kpng-nft` does better: chains grow with the number of services here, and with that of endpoints
//! the rules that a first packet meets. `docs/backends.md` walks through it.

mod render;
mod skeleton;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kpng_core::backend::{Backend, BackendError};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{NodeFacts, Plan, ServicePlan};
use kpng_linux::nft::{Change, OwnedTable};

use render::render;

/// Bit 14 of the packet mark means "to be masqueraded", as in kube-proxy.
const MASQUERADE: u32 = 1 << 14;

/// The backend.
#[derive(Debug)]
pub struct Example {
    tables: Vec<(Family, OwnedTable)>,
    /// What was written; `None` when that is not known.
    written: Option<Written>,
}

/// The plans that were written, to know what of them has to go.
#[derive(Debug)]
struct Written {
    facts: Arc<NodeFacts>,
    services: HashMap<NamespacedName, Arc<ServicePlan>>,
}

impl Example {
    /// Connects to nf_tables of the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not use it.
    pub fn open() -> Result<Self, kpng_linux::Error> {
        let open =
            |family| Ok((family, OwnedTable::open(skeleton::table(family), skeleton::sets())?));
        let tables = Family::ALL.into_iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { tables, written: None })
    }
}

impl Example {
    fn write_all(&mut self, plan: &Plan) -> Result<Written, kpng_linux::Error> {
        let facts = Arc::clone(plan.facts());
        for (family, table) in &mut self.tables {
            let mut content = skeleton::content(*family, &facts);
            for (key, service) in plan.by_importance() {
                let more = render(key, service, &facts, *family);
                content.chains.extend(more.chains);
                content.elements.extend(more.elements);
            }
            table.replace(&content)?;
        }
        let services = plan.services().iter().map(|(key, plan)| (key.clone(), Arc::clone(plan)));
        Ok(Written { facts, services: services.collect() })
    }

    fn write_changes(
        &mut self,
        plan: &Plan,
        changed: &[NamespacedName],
        Written { facts, mut services }: Written,
    ) -> Result<Written, kpng_linux::Error> {
        for (family, table) in &mut self.tables {
            let mut change = Change::default();
            for key in changed {
                let of = |service: Option<&Arc<ServicePlan>>| {
                    service.map(|plan| render(key, plan, &facts, *family)).unwrap_or_default()
                };
                let (old, new) = (of(services.get(key)), of(plan.service(key)));
                change.remove_chains.extend(old.chains.into_iter().map(|(chain, _)| chain.name));
                change.remove.extend(old.elements);
                change.add.extend(new.elements);
                change.chains.extend(new.chains);
            }
            let kept: BTreeSet<_> = change.chains.iter().map(|(chain, _)| &chain.name).collect();
            change.remove_chains.retain(|name| !kept.contains(name));
            table.change(&change)?;
        }
        for key in changed {
            match plan.service(key) {
                Some(service) => services.insert(key.clone(), Arc::clone(service)),
                None => services.remove(key),
            };
        }
        Ok(Written { facts, services })
    }
}

impl Backend for Example {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        // Whatever goes wrong from here on, all is written the next time.
        let written = self.written.take().filter(|written| written.facts == *plan.facts());
        self.written = Some(match (changed, written) {
            (Some(changed), Some(written)) => self.write_changes(plan, changed, written)?,
            _ => self.write_all(plan)?,
        });
        Ok(())
    }

    fn disturbed(&mut self) -> Result<bool, BackendError> {
        let mut disturbed = false;
        for (_, table) in &mut self.tables {
            disturbed |= table.disturbed()?;
        }
        Ok(disturbed)
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        self.written = None;
        let results: Vec<_> = self.tables.iter_mut().map(|(_, table)| table.delete()).collect();
        Ok(results.into_iter().collect::<Result<_, _>>()?)
    }
}
