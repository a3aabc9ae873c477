//! Everything as text, without touching a kernel.

use kpng_core::model::Family;
use kpng_core::plan::Plan;

use crate::Config;
use crate::names::program_prefix;
#[cfg(test)]
use crate::render::Chain;
use crate::state::{Change, State};
use crate::text::{self, Found};

/// What `iptables-restore --noflush`, and then `ip6tables-restore --noflush`, read to make a node
/// that has nothing of ours do what `plan` says.
pub fn ruleset_text(plan: &Plan, config: &Config) -> String {
    let family = |family: Family| {
        let program = format!("{}tables-restore", program_prefix(family));
        let inputs = text::inputs(&everything(plan, config, family), usize::MAX).concat();
        format!("# {program} --noflush\n{inputs}")
    };
    Family::ALL.map(family).join("\n")
}

fn everything(plan: &Plan, config: &Config, family: Family) -> Change {
    let mut state = State::new(family, Found::default());
    let services = plan.services().iter().map(|(key, plan)| (key, Some(&**plan)));
    let mut change = state.write_services(plan.facts(), services);
    change.merge(state.write_skeleton(plan.facts(), config));
    change
}

/// All chains of one family.
#[cfg(test)]
pub(crate) fn chains(plan: &Plan, config: &Config, family: Family) -> Vec<Chain> {
    everything(plan, config, family).chains
}
