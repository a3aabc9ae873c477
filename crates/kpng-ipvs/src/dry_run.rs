//! What would be written, as text, without touching a kernel.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use kpng_core::model::Family;
use kpng_core::plan::Plan;
use kpng_linux::nft::{Content, owned_text};

use crate::ledger::Ledger;
use crate::names::{self, Set};
use crate::state::{FoundMarks, State, Work};
use crate::{Config, skeleton, system};

/// What would make a node that has nothing do what `plan` says: addresses as `ip -b` reads them, virtual
/// services as `ipvsadm -R` does, parameters as `sysctl -p` does, and tables as `nft -f` does.
pub fn ruleset_text(plan: &Plan, config: &Config) -> String {
    let (work, facts) = (whole(plan, config), plan.facts());
    let link = names::LINK;
    let mut text = format!("# ip -b -\nlink add {link} type dummy\nlink set {link} up\n");
    for address in &work.bind {
        let length = if address.is_ipv4() { "32" } else { "128 nodad" };
        line(&mut text, format_args!("address add {address}/{length} dev {link}"));
    }
    // The parameters of IPVS are there when its module is.
    line(&mut text, format_args!("\n# ipvsadm -R"));
    for command in &work.commands.grow {
        line(&mut text, format_args!("{command}"));
    }
    line(&mut text, format_args!("\n# sysctl -p -"));
    for (name, value) in system::parameters(config) {
        line(&mut text, format_args!("{} = {value}", name.replace('/', ".")));
    }
    for family in Family::ALL {
        line(&mut text, format_args!("\n# nft -f -"));
        text += &owned_text(
            &names::table(family),
            Set::all().map(Set::def),
            &Content {
                chains: skeleton::chains(facts, config),
                elements: elements(&work, plan, family),
            },
        );
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("strings take everything");
}

/// All work of a node that has nothing.
pub(crate) fn whole(plan: &Plan, config: &Config) -> Work {
    let (ledger, nothing) = (Ledger::new(config.rules()), BTreeSet::new);
    let mut state = State::new(config, &Arc::clone(plan.facts()), ledger, nothing(), nothing());
    state.fill(plan.by_importance(), FoundMarks::new(), Instant::now())
}

/// All elements of the table of a family.
pub(crate) fn elements(
    work: &Work,
    plan: &Plan,
    family: Family,
) -> Vec<(&'static str, kpng_linux::nft::Element)> {
    let node = skeleton::elements(family, plan.facts()).into_iter();
    let of_family = work.add.iter().filter(|(of, ..)| *of == family);
    let services = of_family.map(|(_, set, element)| (*set, element.clone()));
    node.chain(services).map(|(set, element)| (set.name(), element)).collect()
}
