//! The conformance table, run: by the plan itself, and by any backend with real packets.
//!
//! A packet is written `FROM -> TO:PORT[/PROTOCOL] = OUTCOME`, where the outcome is `reject`,
//! `drop`, `pass`, or the pods that may answer, each with `*` when its packets are masqueraded.

mod counts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use kpng_core::Backend;
use kpng_core::backend::{Audit, BackendError, Capability, Gap, Traffic};
use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{FrontendKey, Packet, Plan, Planner, Verdict};
use kpng_linux::rtnetlink::Rtnetlink;

pub use counts::{Telling, check_counts};

use crate::cases::{CASES, Case, PORTS};
use crate::fixture::{NODE, address, fixture};
use crate::network::{Host, Network, Outcome, Topology};

/// The network of the cases, with everything that pods serve. `None` when the environment asks to skip.
///
/// # Panics
/// When it cannot be made.
pub fn network() -> Option<Network> {
    let network = Network::new(Topology { pods: 4, remote_pods: 2 })?;
    for pod in network.pods.iter().chain(&network.remote_pods) {
        pod.serve(PORTS);
    }
    network.node.run(|| {
        kpng_linux::sysctl::set("net/ipv4/conf/all/route_localnet", "1")
            .expect("the namespace is ours");
    });
    Some(network)
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Reject,
    Drop,
    Pass,
    /// The pods that answer, and whether they see a masqueraded source.
    Answers(BTreeMap<String, bool>),
}

struct Probe<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    protocol: Protocol,
    expected: Expected,
}

impl<'a> Probe<'a> {
    fn parse(text: &'a str) -> Self {
        let (from, rest) = text.split_once(" -> ").expect("a packet has a source");
        let (to, outcome) = rest.split_once(" = ").expect("a packet has an outcome");
        let expected = match outcome {
            "reject" => Expected::Reject,
            "drop" => Expected::Drop,
            "pass" => Expected::Pass,
            pods => Expected::Answers(
                pods.split(',')
                    .map(|pod| (pod.trim_end_matches('*').to_owned(), pod.ends_with('*')))
                    .collect(),
            ),
        };
        Self::new(from, to, expected)
    }

    /// `to` is `TO:PORT[/PROTOCOL]`.
    fn new(from: &'a str, to: &'a str, expected: Expected) -> Self {
        let (to, port) = to.rsplit_once(':').expect("a packet has a port");
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        Self {
            from,
            to,
            port: port.parse().expect("a port"),
            protocol: Protocol::from_name(protocol).expect("a protocol"),
            expected,
        }
    }

    /// The interface that packets from there come in through.
    fn interface(&self) -> String {
        match self.from {
            from if from.starts_with("pod") => format!("veth-{from}"),
            _ => "eth0".to_owned(),
        }
    }

    fn packet(&self, family: Family, interface: &'a str) -> Packet<'a> {
        let from_node = self.from.starts_with("node");
        Packet {
            source: address(self.from, family),
            interface: (!from_node).then_some(interface),
            from_node,
            destination: address(self.to, family),
            protocol: self.protocol,
            port: self.port,
        }
    }
}

/// The plan of a case.
pub fn plan(case: &Case) -> Planner {
    plan_of(case.cluster)
}

/// The plan of a cluster in the language of fixtures.
pub fn plan_of(cluster: &str) -> Planner {
    let fixture = fixture(cluster);
    let mut planner = Planner::new(NODE, fixture.facts);
    let update = fixture.store.reader().try_next().expect("the fixture is synced");
    planner.update(&update);
    planner
}

/// Compares the case with what `Plan::decide` says.
///
/// # Panics
/// When they differ.
pub fn check_plan(case: &Case) {
    let planner = plan(case);
    each_probe(case, |text, probe, packet| {
        let family = Family::of(packet.destination);
        let found = decided(planner.plan(), packet, family);
        assert_eq!(found, probe.expected, "{}: {text} ({})", case.name, family.name());
    });
}

/// Gives all packets of a case, in both families, with their texts.
///
/// # Panics
/// When the case makes no sense.
pub fn each_packet(case: &Case, mut check: impl FnMut(&str, &Packet<'_>)) {
    each_probe(case, |text, _, packet| check(text, packet));
}

fn each_probe(case: &Case, mut check: impl FnMut(&str, &Probe<'_>, &Packet<'_>)) {
    for text in case.packets {
        let probe = Probe::parse(text);
        for family in families(&probe) {
            check(text, &probe, &probe.packet(family, &probe.interface()));
        }
    }
}

/// The node's loopback can be had for IPv4 only.
fn families(probe: &Probe<'_>) -> impl Iterator<Item = Family> + use<> {
    let only_v4 = probe.to == "localhost";
    Family::ALL.into_iter().filter(move |family| !only_v4 || *family == Family::V4)
}

fn decided(plan: &Plan, packet: &Packet<'_>, family: Family) -> Expected {
    let verdict = plan.decide(packet);
    match &verdict {
        Verdict::Pass => Expected::Pass,
        Verdict::Reject => Expected::Reject,
        Verdict::Drop => Expected::Drop,
        Verdict::Forward { pool, .. } => Expected::Answers(
            pool.targets
                .iter()
                .map(|target| {
                    let name = pod_name(target.address, family);
                    (name, verdict.masquerades(packet, *target))
                })
                .collect(),
        ),
    }
}

fn pod_name(ip: IpAddr, family: Family) -> String {
    let names = (1..=9).flat_map(|n| [format!("pod{n}"), format!("remote{n}")]);
    let mut names = names.filter(|name| address(name, family) == ip);
    names.next().unwrap_or_else(|| ip.to_string())
}

/// A backend on the node of a virtual network. All its calls happen in the node's namespace.
pub struct OnNode<'a> {
    network: &'a Network,
    backend: Arc<Mutex<Box<dyn Backend>>>,
}

impl<'a> OnNode<'a> {
    /// Makes the backend in the node's namespace.
    pub fn new(
        network: &'a Network,
        make: impl FnOnce() -> Box<dyn Backend> + Send + 'static,
    ) -> Self {
        Self { network, backend: Arc::new(Mutex::new(network.node.run(make))) }
    }

    /// Calls the backend's `sync`.
    ///
    /// # Panics
    /// When it fails.
    pub fn sync(&self, plan: &Plan, changed: Option<Vec<NamespacedName>>) {
        self.try_sync(plan, changed).expect("the backend accepts every plan");
    }

    /// Calls the backend's `sync`.
    ///
    /// # Errors
    /// When it fails.
    pub fn try_sync(
        &self,
        plan: &Plan,
        changed: Option<Vec<NamespacedName>>,
    ) -> Result<(), BackendError> {
        let (backend, plan) = (Arc::clone(&self.backend), plan.clone());
        self.network.node.run(move || {
            let mut backend = backend.lock().expect("no call panicked");
            backend.sync(&plan, changed.as_deref())
        })
    }

    /// Brings the backend from nothing to each case of the table, straight from one to the next: the
    /// difference is what gets written. `check` looks at each case when it is in force.
    ///
    /// # Panics
    /// When a sync fails.
    pub fn through_cases(&self, mut check: impl FnMut(&Case, &Plan)) {
        let mut before = Plan::default();
        self.sync(&before, None);
        for case in CASES {
            let planner = plan(case);
            let plan = planner.plan();
            self.sync(plan, Some(all_services(&before, plan)));
            check(case, plan);
            before = plan.clone();
        }
    }

    /// Calls the backend's `disturbed`.
    ///
    /// # Panics
    /// When it fails.
    pub fn disturbed(&self) -> bool {
        let backend = Arc::clone(&self.backend);
        self.network.node.run(move || {
            let mut backend = backend.lock().expect("no call panicked");
            backend.disturbed().expect("the backend knows")
        })
    }

    /// Calls the backend's `audit`.
    ///
    /// # Panics
    /// When it fails.
    pub fn audit(&self, plan: &Plan) -> Option<Audit> {
        let (backend, plan) = (Arc::clone(&self.backend), plan.clone());
        self.network.node.run(move || {
            let mut backend = backend.lock().expect("no call panicked");
            backend.audit(&plan).expect("the kernel can be read")
        })
    }

    /// Calls the backend's `holds`.
    ///
    /// # Panics
    /// When it fails.
    pub fn holds(&self, plan: &Plan, frontend: FrontendKey) -> Option<Vec<String>> {
        let (backend, plan) = (Arc::clone(&self.backend), plan.clone());
        self.network.node.run(move || {
            let mut backend = backend.lock().expect("no call panicked");
            backend.holds(&plan, &frontend).expect("the kernel can be read")
        })
    }

    /// Calls the backend's `traffic`.
    pub fn traffic(&self) -> Option<Arc<dyn Traffic>> {
        self.backend.lock().expect("no call panicked").traffic()
    }

    /// Calls the backend's `gaps`.
    pub fn gaps(&self) -> &'static [Gap] {
        self.backend.lock().expect("no call panicked").gaps()
    }

    /// Calls the backend's `cleanup`.
    ///
    /// # Panics
    /// When it fails.
    pub fn cleanup(&self) {
        let backend = Arc::clone(&self.backend);
        self.network.node.run(move || {
            let mut backend = backend.lock().expect("no call panicked");
            backend.cleanup().expect("cleanup works");
        });
    }
}

/// The outcome of the conformance table for a backend with declared gaps: what belongs to a gap may
/// fail, and something of each gap that is tried must.
#[derive(Debug)]
pub struct Conformance {
    gaps: &'static [Gap],
    wrong: Vec<String>,
    tried: BTreeSet<Capability>,
    failed: BTreeSet<Capability>,
}

impl Conformance {
    /// Nothing was tried yet.
    pub fn new(gaps: &'static [Gap]) -> Self {
        let (tried, failed) = (BTreeSet::new(), BTreeSet::new());
        Self { gaps, wrong: Vec::new(), tried, failed }
    }

    /// Sends the packets of a case through the network.
    pub fn check(&mut self, case: &Case, network: &Network) {
        for text in case.packets {
            let probe = Probe::parse(text);
            for family in families(&probe) {
                self.check_probe(&format!("{}: {text}", case.name), &probe, family, network);
            }
        }
    }

    /// Sends a packet `FROM -> TO:PORT[/PROTOCOL]` in both families, and compares what becomes of it
    /// with what the plan decides. `what` says where the plan is from.
    ///
    /// # Panics
    /// When the packet makes no sense.
    pub fn check_decided(&mut self, what: &str, plan: &Plan, packet: &str, network: &Network) {
        let (from, to) = packet.split_once(" -> ").expect("a packet has a source");
        let mut probe = Probe::new(from, to, Expected::Pass);
        for family in families(&probe) {
            probe.expected = decided(plan, &probe.packet(family, &probe.interface()), family);
            let text = format!("{what}: {packet} = {:?}", probe.expected);
            self.check_probe(&text, &probe, family, network);
        }
    }

    fn check_probe(&mut self, what: &str, probe: &Probe<'_>, family: Family, network: &Network) {
        let whose = |found| format!("{what} ({}): {found}", family.name());
        let outcome = match check_packet(probe, network, family) {
            Ok(wrong_source) => {
                self.note_source(wrong_source.map(whose));
                Ok(())
            }
            Err(found) => Err(whose(found)),
        };
        self.note(&probe.packet(family, ""), outcome);
    }

    /// A packet reached who it should; an endpoint may have seen a wrong source.
    fn note_source(&mut self, wrong: Option<String>) {
        let what = Capability::ClientAddress;
        let is_gap = self.gaps.iter().any(|gap| gap.what == what);
        self.tried.extend(is_gap.then_some(what));
        if let Some(found) = wrong {
            if is_gap {
                self.failed.insert(what);
            } else {
                self.wrong.push(found);
            }
        }
    }

    fn note(&mut self, packet: &Packet<'_>, outcome: Result<(), String>) {
        let gaps = self.gaps.iter().map(|gap| gap.what);
        let gaps: Vec<_> = gaps.filter(|what| what.concerns(packet)).collect();
        self.tried.extend(&gaps);
        if let Err(found) = outcome {
            if gaps.is_empty() {
                self.wrong.push(found);
            }
            self.failed.extend(gaps);
        }
    }

    /// What is not as it must be, of some packets: no gap has to show in them.
    pub fn finish_some(self) -> Vec<String> {
        self.wrong
    }

    /// What is not as it must be.
    pub fn finish(mut self) -> Vec<String> {
        for what in self.tried.difference(&self.failed) {
            self.wrong.push(format!("{what:?} is declared to be a gap, but works"));
        }
        self.wrong
    }
}

/// Of these packets `FROM -> TO:PORT[/PROTOCOL]` all that are forwarded, and so many of each other
/// outcome: a packet that nobody answers takes its time.
///
/// # Panics
/// When a packet makes no sense.
pub fn worth_sending<'p>(plan: &Plan, packets: &'p [String], others: usize) -> Vec<&'p str> {
    let mut seen = [0; 3];
    let mut is_worth = |packet: &&str| {
        let (from, to) = packet.split_once(" -> ").expect("a packet has a source");
        let probe = Probe::new(from, to, Expected::Pass);
        let outcomes = Family::ALL
            .map(|family| decided(plan, &probe.packet(family, &probe.interface()), family));
        let other = outcomes.iter().find_map(|outcome| match outcome {
            Expected::Pass => Some(0),
            Expected::Drop => Some(1),
            Expected::Reject => Some(2),
            Expected::Answers(_) => None,
        });
        other.is_none_or(|other| {
            seen[other] += 1;
            seen[other] <= others
        })
    };
    packets.iter().map(String::as_str).filter(|packet| is_worth(packet)).collect()
}

/// All services of two plans: what a pipeline would say changed at most.
pub fn all_services(before: &Plan, after: &Plan) -> Vec<NamespacedName> {
    let keys: BTreeSet<_> = before.services().keys().chain(after.services().keys()).collect();
    keys.into_iter().cloned().collect()
}

/// Sends the packets of a case through the network, and returns what is not as it must be.
pub fn check_packets(case: &Case, network: &Network) -> Vec<String> {
    let mut wrong = Vec::new();
    for text in case.packets {
        let probe = Probe::parse(text);
        for family in families(&probe) {
            let found = check_packet(&probe, network, family).unwrap_or_else(Some);
            let whose = |found| format!("{}: {text} ({}): {found}", case.name, family.name());
            wrong.extend(found.map(whose));
        }
    }
    wrong
}

/// Sends one packet.
fn send(probe: &Probe<'_>, network: &Network, family: Family) -> Outcome {
    let from = host(network, probe.from);
    let explicit = matches!(probe.from, "blocked" | "node-alt");
    let source = explicit.then(|| address(probe.from, family));
    let to = SocketAddr::new(address(probe.to, family), probe.port);
    match probe.protocol {
        Protocol::Tcp => from.tcp(source, to),
        Protocol::Udp => from.udp(source, to),
        Protocol::Sctp => from.sctp(source, to),
    }
}

fn host<'n>(network: &'n Network, name: &str) -> &'n Host {
    let number = || name.trim_start_matches(char::is_alphabetic).parse().expect("a pod's number");
    match name {
        "client" | "blocked" => &network.client,
        name if name.starts_with("node") => &network.node,
        name if name.starts_with("pod") => network.pod(number()),
        _ => network.remote_pod(number()),
    }
}

/// Sends a packet, and again until all who may have answered. What is wrong with the source that one of
/// them saw is no failure by itself.
fn check_packet(
    probe: &Probe<'_>,
    network: &Network,
    family: Family,
) -> Result<Option<String>, String> {
    let send = || send(probe, network, family);
    let pods = match &probe.expected {
        Expected::Answers(pods) => pods,
        // The kernel refuses the node's own datagrams before they are sent (EPERM).
        Expected::Reject if probe.from.starts_with("node") => {
            return expect(send(), &|o| matches!(o, Outcome::Refused | Outcome::Unreachable));
        }
        Expected::Reject => return expect(send(), &|o| matches!(o, Outcome::Refused)),
        Expected::Drop if probe.from.starts_with("node") => {
            return expect(send(), &|o| matches!(o, Outcome::TimedOut | Outcome::Unreachable));
        }
        Expected::Drop => return expect(send(), &|o| matches!(o, Outcome::TimedOut)),
        // The node's own stack or the way out decides; only nobody of the cluster answers.
        Expected::Pass => return expect(send(), &|o| !matches!(o, Outcome::Answered { .. })),
    };
    let nodes_own = addresses(&network.node);
    let (mut missing, mut wrong_source) = (pods.keys().collect::<BTreeSet<_>>(), None);
    // Each of N pods is missed by K packets with a probability of ((N-1)/N)^K: below 1e-9 here.
    for _ in 0..(24 * pods.len()) {
        let outcome = send();
        let Outcome::Answered { by, seen_source } = &outcome else {
            return Err(format!("{outcome:?}"));
        };
        let Some((pod, masqueraded)) = pods.get_key_value(by) else {
            return Err(format!("{by} answered"));
        };
        // For the node itself both may be true: it masquerades with addresses of its own.
        let is_right = if *masqueraded {
            nodes_own.contains(seen_source)
        } else {
            *seen_source == address(probe.from, family)
        };
        if !is_right {
            wrong_source.get_or_insert_with(|| format!("{by} saw the source {seen_source}"));
        }
        missing.remove(pod);
        if missing.is_empty() {
            return Ok(wrong_source);
        }
    }
    Err(format!("{missing:?} never answered"))
}

/// All addresses of a host, but those of services that a backend gives it.
fn addresses(host: &Host) -> BTreeSet<IpAddr> {
    let addresses = host.run(|| Rtnetlink::open()?.addresses()).expect("namespaces have rtnetlink");
    let own = addresses.into_iter().filter(|own| !own.name.starts_with("kpng"));
    own.map(|own| own.address).collect()
}

fn expect(outcome: Outcome, fits: &dyn Fn(&Outcome) -> bool) -> Result<Option<String>, String> {
    if fits(&outcome) { Ok(None) } else { Err(format!("{outcome:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAPS: &[Gap] = &[Gap { what: Capability::Sctp, why: "a test" }];

    fn check(outcomes: &[(&str, bool)], wrong: usize) {
        let mut conformance = Conformance::new(GAPS);
        for (text, works) in outcomes {
            let outcome = if *works { Ok(()) } else { Err((*text).to_owned()) };
            conformance.note(&Probe::parse(text).packet(Family::V4, ""), outcome);
        }
        assert_eq!(conformance.finish().len(), wrong, "{outcomes:?}");
    }

    #[test]
    fn gaps_may_fail_and_nothing_else_may_and_they_must() {
        let (sctp, more_sctp, tcp) = (
            "pod1 -> cluster.1:80/SCTP = pod2",
            "pod1 -> cluster.1:80/SCTP = drop",
            "pod1 -> cluster.1:80 = pod2",
        );
        check(&[], 0);
        check(&[(tcp, true)], 0);
        check(&[(tcp, false)], 1);
        check(&[(sctp, false), (more_sctp, true), (tcp, true)], 0);
        check(&[(sctp, true), (tcp, true)], 1);
        check(&[(sctp, false), (tcp, false)], 1);
    }

    #[test]
    fn a_wrong_source_is_an_error_unless_the_backend_keeps_none() {
        const NO_SOURCES: &[Gap] = &[Gap { what: Capability::ClientAddress, why: "a test" }];
        let wrong = |gaps, sources: &[Option<&str>]| {
            let mut conformance = Conformance::new(gaps);
            for source in sources {
                conformance.note_source(source.map(str::to_owned));
            }
            conformance.finish().len()
        };
        assert_eq!(wrong(&[], &[None, Some("wrong")]), 1);
        assert_eq!(wrong(NO_SOURCES, &[None, Some("wrong"), Some("wrong")]), 0);
        assert_eq!(wrong(NO_SOURCES, &[None]), 1, "it is declared to be a gap, but works");
        assert_eq!(wrong(NO_SOURCES, &[]), 0);
    }
}
