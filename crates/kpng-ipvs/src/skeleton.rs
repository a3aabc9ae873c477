//! The constant part of our tables: chains, and what describes the node.
//!
//! IPVS has its hooks in input at 98 and in output at -98. What is refused never gets there, what is
//! to be masqueraded is marked just before, and a packet that it has rewritten is masqueraded in
//! postrouting. It sends such a packet through output again, where nothing of ours is about it: its
//! destination is an endpoint then.

use std::net::IpAddr;

use ipnet::IpNet;
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{NodeFacts, Origin, PodDetection};
use kpng_linux::nft::{
    Bytes, Chain, Connection, Element, Field, Hook, HookKind, HookPoint, Rule, Statement, Value,
    Verdict,
};

use crate::Config;
use crate::marks;
use crate::names::{self, ORIGINS, Set};

/// All chains with their rules. Those that others jump to come first.
pub(crate) fn chains(facts: &NodeFacts, config: &Config) -> Vec<(Chain, Vec<Rule>)> {
    let mut inner = vec![(names::REJECT, reject()), (names::CLOSED, close())];
    for from in ORIGINS {
        inner.push((names::refused(from), refuse(from)));
        inner.push((names::marked(from), mark(from, config.masquerade_mark())));
    }
    let mut refused = vec![drop_strangers()];
    refused.extend(by_origin(&facts.pods, names::refused));
    inner.push((names::REFUSED, refused));
    inner.push((names::MARKS, by_origin(&facts.pods, names::marked)));
    let named = |(name, rules): (&str, _)| (Chain { name: name.to_owned(), hook: None }, rules);
    inner.into_iter().map(named).chain(base_chains(config)).collect()
}

/// Where packets come in.
fn base_chains(config: &Config) -> Vec<(Chain, Vec<Rule>)> {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting};
    let new = |chain| Rule::new([Statement::Connection(Connection::New), jump(chain)]);
    let mut input = Vec::new();
    let mut forward = Vec::new();
    if !config.conntrack_be_liberal {
        input.push(drop_invalid(in_set(vec![Field::Daddr], Set::ServiceIps)));
        forward.push(drop_invalid(in_set(vec![Field::Saddr, Field::Saddr], Set::Hairpin)));
    }
    input.push(new(names::REFUSED));
    forward.push(new(names::CLOSED));
    let base = |name: &str, kind, point, priority, rules| {
        let hook = Some(Hook { kind, point, priority });
        (Chain { name: name.to_owned(), hook }, rules)
    };
    vec![
        base(names::FILTER_INPUT, Filter, Input, -110, input),
        base(names::FILTER_FORWARD, Filter, Forward, -110, forward),
        base(names::FILTER_OUTPUT, Filter, Output, -110, vec![new(names::REFUSED)]),
        base(names::MARK_INPUT, Filter, Input, 97, vec![new(names::MARKS)]),
        base(names::MARK_OUTPUT, Filter, Output, -100, vec![new(names::MARKS)]),
        base(names::MARK_POSTROUTING, Filter, Postrouting, 99, vec![clear_mark(config)]),
        base(names::NAT_POSTROUTING, Nat, Postrouting, 100, masquerade(config.masquerade_mark())),
    ]
}

fn reject() -> Vec<Rule> {
    let tcp = Statement::L4Proto(Protocol::Tcp.number());
    vec![Rule::new([tcp, Statement::RejectWithReset]), Rule::new([Statement::Reject])]
}

/// What becomes of packets to cluster IPs that belong to no frontend.
fn close() -> Vec<Rule> {
    let daddr = || vec![Field::Daddr];
    vec![
        Rule::new([in_set(names::frontend_key(), Set::Services), verdict(Verdict::Return)]),
        Rule::new([in_set(daddr(), Set::ClusterIps), goto(names::REJECT)]),
        Rule::new([in_set(daddr(), Set::ServiceCidrs), verdict(Verdict::Drop)]),
    ]
}

fn drop_strangers() -> Rule {
    let set = Set::SourceRanges.name();
    let stranger = Statement::InSet { key: names::guard_key(), set, negate: true };
    let frontend = |set| in_set(names::frontend_key(), set);
    // The last look-up counts.
    let (guarded, counts) = (frontend(Set::Guarded), frontend(Set::Strangers));
    Rule::new([guarded, stranger, counts, verdict(Verdict::Drop)])
}

fn refuse(from: Origin) -> Vec<Rule> {
    let at = |set| in_set(names::frontend_key(), set);
    vec![
        Rule::new([at(Set::Rejected(from)), goto(names::REJECT)]),
        Rule::new([at(Set::Dropped(from)), verdict(Verdict::Drop)]),
        Rule::new([goto(names::CLOSED)]),
    ]
}

/// IPVS looks for the service of the whole mark, so that comes last.
fn mark(from: Origin, masquerade: u32) -> Vec<Rule> {
    let key = names::frontend_key;
    let map = Set::Marks(from).name();
    vec![
        Rule::new([in_set(key(), Set::Masqueraded(from)), Statement::SetMark(masquerade)]),
        Rule::new([Statement::MarkFrom { key: key(), map }]),
    ]
}

/// Leads packets to the chain of their origin. Pods are looked for first, as a node's bridge has a
/// pod's address.
fn by_origin(pods: &PodDetection, chain: fn(Origin) -> &'static str) -> Vec<Rule> {
    let iifname = |name: &str, prefix| Statement::Iifname { name: name.to_owned(), prefix };
    let is_pod = match pods {
        PodDetection::None => None,
        PodDetection::Cidrs(_) => Some(in_set(vec![Field::Saddr], Set::PodCidrs)),
        PodDetection::Bridge(name) => Some(iifname(name, false)),
        PodDetection::InterfacePrefix(prefix) => Some(iifname(prefix, true)),
    };
    let mut rules = Vec::new();
    rules.extend(is_pod.map(|is_pod| Rule::new([is_pod, goto(chain(Origin::Pod))])));
    rules.push(Rule::new([Statement::SourceIsLocal, goto(chain(Origin::Node))]));
    rules.push(Rule::new([goto(chain(Origin::Outside))]));
    rules
}

/// Packets of our connections that fit none: they would reach the other side without address
/// translation, which answers with a reset.
fn drop_invalid(ours: Statement) -> Rule {
    Rule::new([Statement::Connection(Connection::Invalid), ours, verdict(Verdict::Drop)])
}

/// Once IPVS has seen it, nobody needs the mark of a firewall-mark service.
fn clear_mark(config: &Config) -> Rule {
    let (mask, value) = marks::range(config.masquerade_mark());
    let ours = Statement::MarkIs { mask, value };
    Rule::new([ours, Statement::ClearMark(!config.masquerade_mark())])
}

fn masquerade(mark: u32) -> Vec<Rule> {
    let came_to = |set| in_set(vec![Field::OriginalDaddr], set);
    let hairpin = || in_set(vec![Field::Saddr, Field::Daddr], Set::Hairpin);
    vec![
        Rule::new([Statement::MarkHas(mark), Statement::ClearMark(mark), Statement::Masquerade]),
        Rule::new([hairpin(), came_to(Set::ServiceIps), Statement::Masquerade]),
        Rule::new([hairpin(), came_to(Set::NodeIps), Statement::Masquerade]),
        // Who connects to an address of this node has that address itself, unless it chose another.
        Rule::new([in_set(vec![Field::Saddr], Set::ServiceIps), Statement::Masquerade]),
    ]
}

fn verdict(verdict: Verdict) -> Statement {
    Statement::Verdict(verdict)
}

fn jump(chain: &str) -> Statement {
    verdict(Verdict::Jump(chain.to_owned()))
}

fn goto(chain: &str) -> Statement {
    verdict(Verdict::Goto(chain.to_owned()))
}

fn in_set(key: Vec<Field>, set: Set) -> Statement {
    Statement::InSet { key, set: set.name(), negate: false }
}

/// Elements that describe the node.
pub(crate) fn elements(family: Family, facts: &NodeFacts) -> Vec<(Set, Element)> {
    let pod_cidrs = match &facts.pods {
        PodDetection::Cidrs(cidrs) => &cidrs[..],
        _ => &[],
    };
    let mut elements = Vec::new();
    for (set, cidrs) in [(Set::PodCidrs, pod_cidrs), (Set::ServiceCidrs, &facts.service_cidrs)] {
        let cidrs: Vec<IpNet> =
            cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).copied().collect();
        for cidr in IpNet::aggregate(&cidrs) {
            let key = Bytes::EMPTY.address(cidr.network());
            let last = Some(Bytes::EMPTY.address(cidr.broadcast()));
            elements.push((set, Element { key, last, value: Value::None }));
        }
    }
    elements
}

/// The element of a set of addresses.
pub(crate) fn address(ip: IpAddr) -> Element {
    Element { key: Bytes::EMPTY.address(ip), last: None, value: Value::None }
}
