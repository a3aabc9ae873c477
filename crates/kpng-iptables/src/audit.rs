//! What the kernel holds, compared with a plan, without changing anything.
//!
//! It begins as a start does: what would have to be written then differs, and what nobody asks for is
//! foreign.

use std::collections::HashMap;

use kpng_core::backend::Audit;
use kpng_core::plan::{FrontendKey, Plan};

use crate::names::{Table, program_prefix};
use crate::render;
use crate::state::{ChainKey, State, fingerprint};
use crate::text::Found;
use crate::{Error, Iptables, planned};

impl Iptables {
    /// How the kernel's chains differ from `plan`.
    pub(crate) fn compare(&self, plan: &Plan) -> Result<Audit, Error> {
        let mut audit = Audit::default();
        for family in self.programs.families() {
            let mut found = self.programs.read_existing(family)?;
            let text = |(table, name): &ChainKey| {
                let program = program_prefix(family);
                format!("{program}tables -t {} chain {name}", table.name())
            };
            for (table, rule) in std::mem::take(&mut found.foreign) {
                let program = program_prefix(family);
                audit.foreign.add(|| format!("{program}tables -t {} -A {rule}", table.name()));
            }
            let held: HashMap<ChainKey, u64> = found.chains.clone();
            let mut state = State::new(family, found);
            let mut change =
                state.write_services(plan.facts(), planned(plan, plan.services().keys()));
            change.merge(state.write_skeleton(plan.facts(), &self.config));
            for chain in &change.chains {
                let key = (chain.table, chain.name.clone());
                if held.contains_key(&key) {
                    audit.differing.add(|| text(&key));
                } else {
                    audit.missing.add(|| text(&key));
                }
            }
            for (table, line) in &change.hooks {
                let program = program_prefix(family);
                audit.differing.add(|| {
                    format!("{program}tables -t {}: to be corrected by {line}", table.name())
                });
            }
            let wanted = state.written_chains();
            audit.wanted += wanted;
            audit.found += wanted - change.chains.len();
            for key in &state.remove_unclaimed().gone {
                audit.foreign.add(|| text(key));
            }
        }
        Ok(audit)
    }

    /// What the kernel holds for a frontend, line by line.
    pub(crate) fn describe(
        &self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Vec<String>, Error> {
        let Some((key, service, frontend)) = plan.owner(frontend) else { return Ok(Vec::new()) };
        let family = frontend.at.family();
        if !self.programs.families().any(|other| other == family) {
            return Ok(vec![format!("this node has no {}", family.name())]);
        }
        let found: Found = self.programs.read_existing(family)?;
        let mut alone = service.clone();
        alone.frontends = vec![frontend.clone()];
        let wanted = render::service(key, &alone, plan.facts(), family);
        let program = format!("{}tables", program_prefix(family));
        let mut lines = Vec::new();
        for (id, _, entry) in &wanted.entries {
            let who = if id.table == Table::Filter { ", what nat did not forward" } else { "" };
            lines.push(format!("{program} -t {}{who}: {}", id.table.name(), entry.target));
        }
        for chain in &wanted.chains {
            let state = match found.chains.get(&(chain.table, chain.name.clone())) {
                Some(sum) if *sum == fingerprint(&chain.rules) => "",
                Some(_) => " (differs)",
                None => " (missing)",
            };
            lines.push(format!("{program} -t {} chain {}{state}", chain.table.name(), chain.name));
            lines.extend(chain.rules.iter().map(|rule| format!("  {rule}")));
        }
        Ok(lines)
    }
}
