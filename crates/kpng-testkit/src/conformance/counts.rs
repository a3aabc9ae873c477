//! What a backend counts at frontends, against what the plan decides for each packet.

use std::collections::BTreeMap;

use kpng_core::backend::{Counts, Gap, Traffic};
use kpng_core::model::Family;
use kpng_core::plan::{Decision, Verdict};

use super::{each_probe, plan, send};
use crate::cases::Case;
use crate::network::Network;

/// Sends each packet of a case once, and returns what was counted differently from what the plan decides
/// for it. What `traffic` does not count at all, and
/// what belongs to a gap, is not compared.
///
/// # Panics
/// When the counts cannot be read.
pub fn check_counts(
    case: &Case,
    network: &Network,
    traffic: &dyn Traffic,
    gaps: &[Gap],
) -> Vec<String> {
    let planner = plan(case);
    let read =
        || -> BTreeMap<_, _> { traffic.read().expect("counts can be read").into_iter().collect() };
    let mut wrong = Vec::new();
    let mut expected = read();
    each_probe(case, |text, probe, packet| {
        if gaps.iter().any(|gap| gap.what.concerns(packet)) {
            return;
        }
        let outcome = send(probe, network, Family::of(packet.destination));
        if let Decision::Frontend { frontend, .. } = planner.plan().decision(packet) {
            let verdict = planner.plan().decide(packet);
            expected.entry(frontend.key()).and_modify(|counts| count(counts, &verdict));
        }
        let found = read();
        for (key, counts) in found.iter().filter(|(key, counts)| expected.get(key) != Some(counts))
        {
            let planned = expected.get(key);
            wrong.push(format!(
                "{}: {text} ({outcome:?}): {key}: {counts:?}, not {planned:?}",
                case.name
            ));
        }
        if found.len() != expected.len() {
            wrong.push(format!("{}: {} frontends, not {}", case.name, found.len(), expected.len()));
        }
        expected = found;
    });
    let frontends = planner.plan().services().values().map(|plan| plan.frontends.len());
    if expected.len() != frontends.sum::<usize>() {
        wrong.push(format!("{}: not all frontends are counted", case.name));
    }
    wrong
}

fn count(counts: &mut Counts, verdict: &Verdict<'_>) {
    match verdict {
        Verdict::Pass => {}
        Verdict::Forward { .. } => counts.connections += 1,
        Verdict::Reject => counts.rejected.iter_mut().for_each(|rejected| *rejected += 1),
        Verdict::Drop => counts.dropped.iter_mut().for_each(|dropped| *dropped += 1),
    }
}
