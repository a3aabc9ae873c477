//! What a backend counts at frontends, against what the plan decides for each packet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kpng_core::backend::{Counts, Gap, Traffic};
use kpng_core::model::Family;
use kpng_core::plan::{Decision, Frontend, FrontendKey, Plan, Verdict};

use super::{each_probe, plan, send};
use crate::cases::Case;
use crate::network::Network;

/// What a backend tells of what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// At which frontend, at once.
    Exact,
    /// At some frontend of the same service port and family, a few seconds later.
    Rough,
}

/// How long it takes at most until what happened is told roughly.
const DELAY: Duration = Duration::from_secs(6);

/// Sends each packet of a case once, and returns what was counted differently from what the plan decides
/// for it. What `traffic` does not count at all, and what belongs to a gap, is not compared.
///
/// # Panics
/// When the counts cannot be read.
pub fn check_counts(
    case: &Case,
    network: &Network,
    traffic: &dyn Traffic,
    gaps: &[Gap],
    telling: Telling,
) -> Vec<String> {
    let planner = plan(case);
    let plan = planner.plan();
    let place = |key| if telling == Telling::Exact { key } else { first(plan, key) };
    let read = || {
        let mut sums: BTreeMap<_, Counts> = BTreeMap::new();
        for (key, counts) in traffic.read().expect("counts can be read") {
            sums.entry(place(key)).and_modify(|sum| add(sum, &counts)).or_insert(counts);
        }
        sums
    };
    let frontends = plan.services().values().flat_map(|plan| &plan.frontends);
    let places: BTreeSet<_> = frontends.map(|frontend| place(frontend.key())).collect();
    let mut wrong = Vec::new();
    let mut expected = read();
    if !places.iter().eq(expected.keys()) {
        wrong.push(format!("{}: not all frontends are counted: {expected:?}", case.name));
    }
    each_probe(case, |text, probe, packet| {
        if gaps.iter().any(|gap| gap.what.concerns(packet)) {
            return;
        }
        let outcome = send(probe, network, Family::of(packet.destination));
        if let Decision::Frontend { frontend, .. } = plan.decision(packet) {
            let verdict = plan.decide(packet);
            expected.entry(place(frontend.key())).and_modify(|counts| count(counts, &verdict));
        }
        if telling == Telling::Exact {
            let found = read();
            let what = format!("{}: {text} ({outcome:?})", case.name);
            wrong.extend(differences(&what, &expected, &found));
            expected = found;
        }
    });
    if telling == Telling::Rough {
        let end = Instant::now() + DELAY;
        let mut found = read();
        while found != expected && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            found = read();
        }
        wrong.extend(differences(case.name, &expected, &found));
    }
    wrong
}

type Sums = BTreeMap<FrontendKey, Counts>;

fn differences(what: &str, expected: &Sums, found: &Sums) -> Vec<String> {
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differ = keys.into_iter().filter(|key| expected.get(key) != found.get(key));
    let text = |key| format!("{what}: {key}: {:?}, not {:?}", found.get(key), expected.get(key));
    differ.map(text).collect()
}

/// The first frontend of the service port and family of this one.
fn first(plan: &Plan, key: FrontendKey) -> FrontendKey {
    let (_, service, frontend) = plan.owner(&key).expect("what is counted is planned");
    let alike = |other: &&Frontend| {
        (other.service_port, other.at.family()) == (frontend.service_port, frontend.at.family())
    };
    service.frontends.iter().find(alike).map_or(key, Frontend::key)
}

fn add(sum: &mut Counts, counts: &Counts) {
    let packets = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
    sum.connections += counts.connections;
    sum.rejected = packets(sum.rejected, counts.rejected);
    sum.dropped = packets(sum.dropped, counts.dropped);
}

fn count(counts: &mut Counts, verdict: &Verdict<'_>) {
    match verdict {
        Verdict::Pass => {}
        Verdict::Forward { .. } => counts.connections += 1,
        Verdict::Reject => counts.rejected.iter_mut().for_each(|rejected| *rejected += 1),
        Verdict::Drop => counts.dropped.iter_mut().for_each(|dropped| *dropped += 1),
    }
}
