//! Classes: frontends that are treated alike, whatever their addresses and endpoints.
//!
//! A class is a [`Route`] in which pools are only known by their sizes (`numgen`'s modulus is a
//! constant of the expression). There are few classes, so that is where chains and rules are; what
//! grows with the cluster is elements.

mod numbers;

use std::fmt;

use kpng_core::model::Family;
use kpng_core::plan::{Action, At, Frontend, NodeFacts, PodDetection, Route};
use kpng_linux::nft::{Bytes, Element, Field, Rule, Statement, Value, Verdict, fnv1a};

pub(crate) use numbers::Numbers;

use crate::names::{self, Set};

/// A kind of treatment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Class {
    at: Place,
    /// Only permitted sources may come in.
    guarded: bool,
    pod: Step,
    node: Step,
    outside: Step,
}

/// Where frontends of a class are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    Vip,
    NodePort,
}

/// What a class does with packets of one origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    Forward(Forward),
    Reject,
    Drop,
}

impl Step {
    fn forward(&self) -> Option<&Forward> {
        match self {
            Self::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Forward {
    list: List,
    size: u32,
    masquerade: bool,
    /// The chain that looks for the endpoint that a client sticks to.
    sticky: Option<String>,
}

/// Which list of endpoints of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum List {
    /// The list for everybody.
    Main,
    /// The list for packets from outside, where theirs is another one.
    Outside,
}

impl List {
    /// The map with this list of frontends at `place`.
    pub(crate) fn set(self, place: Place) -> Set {
        match (place, self) {
            (Place::Vip, Self::Main) => Set::Endpoints,
            (Place::Vip, Self::Outside) => Set::OutsideEndpoints,
            (Place::NodePort, Self::Main) => Set::NodePortEndpoints,
            (Place::NodePort, Self::Outside) => Set::OutsideNodePortEndpoints,
        }
    }
}

impl List {
    /// The chain that chooses an endpoint of such a list.
    pub(crate) fn pick_chain(self, place: Place) -> &'static str {
        match (place, self) {
            (Place::Vip, Self::Main) => "pick-endpoint",
            (Place::Vip, Self::Outside) => "pick-outside-endpoint",
            (Place::NodePort, Self::Main) => "pick-nodeport-endpoint",
            (Place::NodePort, Self::Outside) => "pick-nodeport-outside-endpoint",
        }
    }
}

/// All lists at all places: each has a map and a chain.
pub(crate) const LISTS: [(Place, List); 4] = [
    (Place::Vip, List::Main),
    (Place::Vip, List::Outside),
    (Place::NodePort, List::Main),
    (Place::NodePort, List::Outside),
];

impl Place {
    pub(crate) fn of(at: At) -> Self {
        match at {
            At::Vip(_) => Self::Vip,
            At::NodePort(_) => Self::NodePort,
        }
    }

    fn key(self) -> Vec<Field> {
        match self {
            Self::Vip => names::vip_key(),
            Self::NodePort => names::node_port_key(),
        }
    }

    /// The set that counts the connections of frontends there.
    pub(crate) fn forwarded(self) -> Set {
        match self {
            Self::Vip => Set::ForwardedServices,
            Self::NodePort => Set::ForwardedNodePorts,
        }
    }
}

/// Which list an action's pool is in: the pool for packets from outside has one of its own if there
/// is another pool.
pub(crate) fn list_of(route: &Route, action: Action) -> List {
    let pool = |action| match action {
        Action::Forward { pool, .. } => Some(pool),
        _ => None,
    };
    let outside = pool(route.outside);
    let others = [pool(route.pod), pool(route.node)];
    let shared = others.into_iter().flatten().all(|other| Some(other) == outside);
    if outside.is_some() && !shared && pool(action) == outside { List::Outside } else { List::Main }
}

impl Class {
    /// The class of a frontend. `size` and `sticky` tell the size of a pool and the chain of its
    /// affinity, if it has one.
    pub(crate) fn of(
        frontend: &Frontend,
        size: impl Fn(kpng_core::plan::PoolId) -> u32,
        sticky: impl Fn(kpng_core::plan::PoolId) -> Option<String>,
    ) -> Self {
        let step = |action| match action {
            Action::Forward { pool, masquerade } => Step::Forward(Forward {
                list: list_of(&frontend.route, action),
                size: size(pool),
                masquerade,
                sticky: sticky(pool),
            }),
            Action::Reject => Step::Reject,
            Action::Drop => Step::Drop,
        };
        Self {
            at: Place::of(frontend.at),
            guarded: frontend.sources.is_some(),
            pod: step(frontend.route.pod),
            node: step(frontend.route.node),
            outside: step(frontend.route.outside),
        }
    }

    /// The number that the class gets unless another class has it.
    fn hash(&self) -> u32 {
        fnv1a_32(self.to_string().as_bytes())
    }

    /// The chain that the class's number leads to.
    fn route_chain(&self) -> String {
        match self.steps().into_iter().find_map(Step::forward) {
            Some(forward) if self.is_uniform() => forward.chain(self.at),
            _ => self.to_string(),
        }
    }

    fn steps(&self) -> [&Step; 3] {
        [&self.pod, &self.node, &self.outside]
    }

    fn is_uniform(&self) -> bool {
        !self.guarded && self.pod == self.node && self.node == self.outside
    }

    /// The chains that the class needs, with their rules; those it refers to come first. `mark` is
    /// the bit by which packets are marked for masquerading.
    pub(crate) fn chains(
        &self,
        family: Family,
        facts: &NodeFacts,
        mark: u32,
    ) -> Vec<(String, Vec<Rule>)> {
        let mut chains = Vec::new();
        let mut need = |name: String, rules: Vec<Rule>| {
            if chains.iter().all(|(other, _)| *other != name) {
                chains.push((name, rules));
            }
        };
        for forward in self.steps().into_iter().filter_map(Step::forward) {
            if forward.size > COMMON_SIZES {
                let dnat = pick(self.at, forward.list, forward.size);
                need(
                    forward.pick_chain(self.at),
                    vec![Rule::new([dnat]), first_endpoint(self.at, forward.list)],
                );
            }
            need(forward.chain(self.at), forward.rules(self.at, mark));
        }
        if !chains.is_empty() && !self.is_uniform() {
            chains.push((self.to_string(), self.rules(family, facts)));
        }
        chains
    }

    /// The class leads through the chain of some service's affinity that has this name.
    pub(crate) fn leads_through(&self, chain: &str) -> bool {
        let mut forwards = self.steps().into_iter().filter_map(Step::forward);
        forwards.any(|forward| forward.sticky.as_deref() == Some(chain))
    }

    /// The class forwards packets of some origin.
    pub(crate) fn forwards(&self) -> bool {
        self.steps().into_iter().any(|step| step.forward().is_some())
    }

    /// The element of [`Set::Routes`] of a class that forwards, under its number.
    pub(crate) fn route(&self, number: Bytes) -> Element {
        let value = Value::Verdict(Verdict::Goto(self.route_chain()));
        Element { key: number, last: None, value }
    }

    /// The set in which frontends of the class are if they refuse anything. What reaches the filter
    /// hooks with the frontend's address was not forwarded.
    pub(crate) fn refusal(&self) -> Option<Set> {
        let refuses = |how: Step| self.steps().contains(&&how);
        match (self.at, refuses(Step::Drop), refuses(Step::Reject)) {
            (Place::Vip, true, _) => Some(Set::DroppedServices),
            (Place::Vip, false, true) => Some(Set::RejectedServices),
            (Place::NodePort, true, _) => Some(Set::DroppedNodePorts),
            (Place::NodePort, false, true) => Some(Set::RejectedNodePorts),
            (_, false, false) => None,
        }
    }

    /// The rules that tell packets apart by where they come from.
    fn rules(&self, family: Family, facts: &NodeFacts) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.guarded {
            rules.push(Rule::new([
                Statement::InSet {
                    key: names::guard_key(),
                    set: Set::SourceRanges.name(),
                    negate: true,
                },
                Statement::Verdict(Verdict::Return),
            ]));
        }
        let verdict = |step: &Step| match step {
            Step::Forward(forward) => Statement::Verdict(Verdict::Goto(forward.chain(self.at))),
            _ => Statement::Verdict(Verdict::Return),
        };
        let all_alike = self.pod == self.node && self.node == self.outside;
        if let Some(from_pod) = from_pod(family, &facts.pods)
            && !all_alike
        {
            rules.push(Rule::new([from_pod, verdict(&self.pod)]));
        }
        if self.node != self.outside {
            rules.push(Rule::new([Statement::SourceIsLocal, verdict(&self.node)]));
        }
        if matches!(self.outside, Step::Forward(_)) {
            rules.push(Rule::new([verdict(&self.outside)]));
        }
        rules
    }
}

/// The class's name, which is also its chain's: `service-pod-3-node-3m-outside-o2-guarded`, where
/// `3` stands for a list of three endpoints, `o` for the list of outside, `m` for masqueraded.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, guarded, pod, node, outside } = self;
        write!(f, "{at}-pod-{pod}-node-{node}-outside-{outside}")?;
        if *guarded { f.write_str("-guarded") } else { Ok(()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vip => "service",
            Self::NodePort => "nodeport",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward(forward) => write!(f, "{forward}"),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = if self.list == List::Outside { "o" } else { "" };
        let masquerade = if self.masquerade { "m" } else { "" };
        write!(f, "{list}{}{masquerade}", self.size)?;
        match &self.sticky {
            // The hash in the name of a sticky chain is enough to tell it from others.
            Some(chain) => write!(f, "s{}", chain.split('-').nth(1).unwrap_or(chain)),
            None => Ok(()),
        }
    }
}

impl Forward {
    fn chain(&self, at: Place) -> String {
        format!("{at}-to-{self}")
    }

    /// The chain that chooses an endpoint of a list of this size.
    fn pick_chain(&self, at: Place) -> String {
        let common = self.list.pick_chain(at);
        if self.size <= COMMON_SIZES {
            common.to_owned()
        } else {
            format!("{common}-{}", self.size)
        }
    }

    /// Counts the connection, marks the packet for masquerading, looks for affinity, and has an endpoint
    /// chosen.
    fn rules(&self, at: Place, mark: u32) -> Vec<Rule> {
        let count = Statement::InSet { key: at.key(), set: at.forwarded().name(), negate: false };
        let mut first = Vec::new();
        if self.masquerade {
            first.push(Statement::SetMark(mark));
        }
        if let Some(chain) = &self.sticky {
            first.push(Statement::PriorityTo(0));
            first.push(Statement::Verdict(Verdict::Jump(chain.clone())));
        }
        let size = if self.size <= COMMON_SIZES { self.size } else { 0 };
        let pick = Statement::Verdict(Verdict::Goto(self.pick_chain(at)));
        let last = [Statement::PriorityTo(size), pick];
        if self.sticky.is_some() {
            vec![Rule::new([count]), Rule::new(first), Rule::new(last)]
        } else {
            first.extend(last);
            vec![Rule::new([count]), Rule::new(first)]
        }
    }
}

/// Lists up to this size have their rules from the beginning. Whenever a rule begins to use a map,
/// the kernel looks at all of the map's elements (3 ms at 90,000 of them): then there are none.
const COMMON_SIZES: u32 = 32;

/// The rules that choose an endpoint of a list by its size (`numgen`'s modulus is a constant of the
/// rule). The priority brings the size.
pub(crate) fn pick_rules(at: Place, list: List) -> Vec<Rule> {
    let rule = |size| {
        let (has, clear) = (Statement::PriorityIs(size), Statement::PriorityTo(0));
        Rule::new([has, clear, pick(at, list, size)])
    };
    (1..=COMMON_SIZES).map(rule).chain([first_endpoint(at, list)]).collect()
}

/// The rule for packets that were on their way when the list became shorter: they have the size that
/// it had, and their number is gone. Without it they would stay as they are, and with them, by way of
/// conntrack, the whole connection.
fn first_endpoint(at: Place, list: List) -> Rule {
    Rule::new([pick(at, list, 1)])
}

fn pick(at: Place, list: List, size: u32) -> Statement {
    let mut key = at.key();
    key.push(Field::Random(size));
    Statement::DnatMap { key, map: list.set(at).name() }
}

/// The condition that holds for packets from pods, if they can be told.
fn from_pod(family: Family, pods: &PodDetection) -> Option<Statement> {
    let interface = |name: &str, prefix| Statement::Iifname { name: name.to_owned(), prefix };
    match pods {
        _ if !pods.works_for(family) => None,
        PodDetection::None => None,
        PodDetection::Cidrs(_) => Some(Statement::InSet {
            key: vec![Field::Saddr],
            set: Set::PodCidrs.name(),
            negate: false,
        }),
        PodDetection::Bridge(name) => Some(interface(name, false)),
        PodDetection::InterfacePrefix(prefix) => Some(interface(prefix, true)),
    }
}

/// [`fnv1a`], folded to 32 bits.
pub(crate) fn fnv1a_32(bytes: &[u8]) -> u32 {
    let hash = fnv1a(bytes);
    (hash ^ (hash >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpng_core::model::Protocol;
    use kpng_core::plan::PoolId;

    /// The class of an ordinary frontend with so many endpoints.
    pub(super) fn class_of_size(size: u32) -> Class {
        let forward = |masquerade| Action::Forward { pool: PoolId(0), masquerade };
        let frontend = Frontend {
            at: At::Vip([10, 0, 0, 1].into()),
            protocol: Protocol::Tcp,
            port: 80,
            service_port: 0,
            sources: None,
            route: Route { pod: forward(false), node: forward(true), outside: forward(true) },
        };
        Class::of(&frontend, |_| size, |_| None)
    }

    #[test]
    fn a_rare_size_has_a_chain_of_its_own() {
        let chains = |size| {
            let chains = class_of_size(size).chains(Family::V4, &NodeFacts::default(), 1);
            chains.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let whole = "service-pod-32-node-32m-outside-32m";
        assert_eq!(chains(32), ["service-to-32", "service-to-32m", whole]);
        let whole = "service-pod-33-node-33m-outside-33m";
        assert_eq!(chains(33), ["pick-endpoint-33", "service-to-33", "service-to-33m", whole]);
    }

    #[test]
    fn names_say_what_a_class_does() {
        assert_eq!(class_of_size(3).to_string(), "service-pod-3-node-3m-outside-3m");
    }
}
