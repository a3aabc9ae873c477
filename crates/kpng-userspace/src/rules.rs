//! The rules, which do not depend on the services, and the elements that describe the node.
//!
//! Packets to a frontend get as their destination the address of the loopback that stands for where
//! they come from. What is refused is decided in the filter hooks.

use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{LOCALHOST, NodeFacts, Origin, PodDetection};
use kpng_linux::nft::{
    Bytes, Chain, Connection, Content, Element, Field, Hook, HookKind, HookPoint, Rule, Statement,
    Value, Verdict,
};

use crate::Config;
use crate::engine::Ports;
use crate::names;
use crate::render::in_set as element;
use crate::routes::ORIGINS;

/// Everything but what services need.
pub(crate) fn content(family: Family, facts: &NodeFacts, config: &Config, ports: Ports) -> Content {
    let mut chains = vec![chain("reject", reject())];
    for origin in ORIGINS {
        chains.push(chain(&steer_chain(origin), steer(family, origin, ports)));
        chains.push(chain(&refuse_chain(origin), refuse(origin)));
    }
    chains.push(chain("services", dispatch(facts, config, steer_chain)));
    chains.push(chain("refuse", guard_and_refuse(facts)));
    let localhost = facts.localhost_node_ports && family == Family::V4;
    chains.extend(base_chains(localhost, config));
    chains.extend(config.transparent.then(|| answers(family, config.answer_mark())));
    Content { chains, elements: node(family, facts) }
}

fn steer_chain(origin: Origin) -> String {
    format!("from-{}", name(origin))
}

fn refuse_chain(origin: Origin) -> String {
    format!("refuse-{}", name(origin))
}

fn name(origin: Origin) -> &'static str {
    match origin {
        Origin::Pod => "pods",
        Origin::Node => "node",
        Origin::Outside => "outside",
    }
}

fn chain(name: &str, rules: Vec<Rule>) -> (Chain, Vec<Rule>) {
    (Chain { name: name.to_owned(), hook: None }, rules)
}

/// Leads packets of one origin to the proxy.
fn steer(family: Family, origin: Origin, ports: Ports) -> Vec<Rule> {
    let address = names::address(family, origin);
    let mut rules = Vec::new();
    for (protocol, port) in [(Protocol::Tcp, ports.tcp), (Protocol::Udp, ports.udp)] {
        let to_proxy = |served: Vec<Statement>| {
            let start = [Statement::L4Proto(protocol.number())];
            let end = [Statement::Dnat { address, port }];
            Rule::new([&start[..], &served, &end].concat())
        };
        rules.push(to_proxy(vec![vip(names::SERVICES, origin)]));
        rules.push(to_proxy(vec![
            in_set(vec![Field::Daddr], names::NODE_IPS),
            // A node's address can be an external IP of a service too, which comes first.
            not(vip(names::REJECTED, origin)),
            not(vip(names::DROPPED, origin)),
            node_port(names::NODE_PORTS, origin),
        ]));
    }
    rules
}

/// Tells where packets come from. The proxy's own are left alone, and those of strangers.
fn dispatch(facts: &NodeFacts, config: &Config, to: fn(Origin) -> String) -> Vec<Rule> {
    let leave = || Statement::Verdict(Verdict::Accept);
    let mut rules = vec![
        Rule::new([Statement::MarkHas(config.mark()), leave()]),
        Rule::new([in_set(names::vip_key(), names::GUARDED), stranger(), leave()]),
    ];
    rules.extend(by_origin(facts, to));
    rules
}

fn by_origin(facts: &NodeFacts, to: fn(Origin) -> String) -> Vec<Rule> {
    let from = |origin| Statement::Verdict(Verdict::Goto(to(origin)));
    let pod = match &facts.pods {
        PodDetection::None => None,
        PodDetection::Cidrs(_) => Some(in_set(vec![Field::Saddr], names::PODS)),
        PodDetection::Bridge(name) => {
            Some(Statement::Iifname { name: name.to_string(), prefix: false })
        }
        PodDetection::InterfacePrefix(name) => {
            Some(Statement::Iifname { name: name.to_string(), prefix: true })
        }
    };
    let pod = pod.map(|is_pod| Rule::new([is_pod, from(Origin::Pod)]));
    let node = Rule::new([Statement::SourceIsLocal, from(Origin::Node)]);
    pod.into_iter().chain([node, Rule::new([from(Origin::Outside)])]).collect()
}

fn reject() -> Vec<Rule> {
    let tcp = Statement::L4Proto(Protocol::Tcp.number());
    vec![Rule::new([tcp, Statement::RejectWithReset]), Rule::new([Statement::Reject])]
}

/// What becomes of packets of one origin that were not led to the proxy.
fn refuse(origin: Origin) -> Vec<Rule> {
    let to_node = || in_set(vec![Field::Daddr], names::NODE_IPS);
    let reject = || Statement::Verdict(Verdict::Goto("reject".to_owned()));
    vec![
        Rule::new([vip(names::REJECTED, origin), reject()]),
        Rule::new([vip(names::DROPPED, origin), drop()]),
        Rule::new([to_node(), node_port(names::REJECTED_NODE_PORTS, origin), reject()]),
        Rule::new([to_node(), node_port(names::DROPPED_NODE_PORTS, origin), drop()]),
    ]
}

fn guard_and_refuse(facts: &NodeFacts) -> Vec<Rule> {
    let vip = |set| in_set(names::vip_key(), set);
    // The last look-up counts.
    let guard = Rule::new([vip(names::GUARDED), stranger(), vip(names::STRANGERS), drop()]);
    [vec![guard], by_origin(facts, refuse_chain)].concat()
}

/// NAT is where kube-proxy has it, filters just before and after.
fn base_chains(localhost: bool, config: &Config) -> Vec<(Chain, Vec<Rule>)> {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let base = |name: &str, kind, point, priority, rules| {
        let hook = Some(Hook { kind, point, priority });
        (Chain { name: name.to_owned(), hook }, rules)
    };
    let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.to_owned()));
    let new = || Statement::Connection(Connection::New);
    let services = || vec![Rule::new([jump("services")])];
    let refuse = || Rule::new([new(), jump("refuse")]);
    let close = || {
        let daddr_in = |set| in_set(vec![Field::Daddr], set);
        let reject = Statement::Verdict(Verdict::Goto("reject".to_owned()));
        let closed = Rule::new([new(), daddr_in(names::CLUSTER_IPS), reject]);
        vec![refuse(), closed, Rule::new([new(), daddr_in(names::SERVICE_CIDRS), drop()])]
    };
    let mut forward = close();
    if !config.conntrack_be_liberal {
        let to_cluster_ip = in_set(vec![Field::Daddr], names::CLUSTER_IPS);
        let invalid = Statement::Connection(Connection::Invalid);
        forward.insert(0, Rule::new([invalid, to_cluster_ip, drop()]));
    }
    // The parameter route_localnet lets packets to 127.0.0.1 in from outside (CVE-2020-8558).
    let martian = [Statement::NotFromLoopback, Statement::DaddrInLoopbackNet, drop()];
    let martians = localhost.then(|| Rule::new(martian)).into_iter().collect();
    let mark = config.mark();
    let unmark = Rule::new([Statement::MarkHas(mark), Statement::ClearMark(mark)]);
    vec![
        base("filter-prerouting", Filter, Prerouting, -110, martians),
        base("filter-input", Filter, Input, -110, vec![refuse()]),
        base("filter-forward", Filter, Forward, -110, forward),
        base("filter-output", Filter, Output, -90, close()),
        base("filter-postrouting", Filter, Postrouting, 100, vec![unmark]),
        base("nat-prerouting", Nat, Prerouting, -100, services()),
        base("nat-output", Nat, Output, -100, services()),
    ]
}

/// Answers for sockets of the proxy that have the address of a client are routed to this node, and so
/// are the errors of routers about what they sent.
fn answers(family: Family, mark: u32) -> (Chain, Vec<Rule>) {
    let icmp = match family {
        Family::V4 => 1,
        Family::V6 => 58,
    };
    let rule = |protocol| {
        Rule::new([
            Statement::L4Proto(protocol),
            Statement::ToTransparentSocket,
            Statement::SetMark(mark),
        ])
    };
    let rules = [Protocol::Tcp.number(), Protocol::Udp.number(), icmp].map(rule).into();
    // Routing comes after it; other marks are set from here on too.
    let hook = Hook { kind: HookKind::Filter, point: HookPoint::Prerouting, priority: -150 };
    (Chain { name: "answers-prerouting".to_owned(), hook: Some(hook) }, rules)
}

fn vip(set: &'static str, origin: Origin) -> Statement {
    in_set(names::from(names::vip_key(), origin), set)
}

fn node_port(set: &'static str, origin: Origin) -> Statement {
    in_set(names::from(names::node_port_key(), origin), set)
}

/// Holds for packets from sources that may not reach the frontend.
fn stranger() -> Statement {
    not(in_set([names::vip_key(), vec![Field::Saddr]].concat(), names::SOURCES))
}

fn in_set(key: Vec<Field>, set: &'static str) -> Statement {
    Statement::InSet { key, set, negate: false }
}

fn not(statement: Statement) -> Statement {
    match statement {
        Statement::InSet { key, set, negate } => Statement::InSet { key, set, negate: !negate },
        other => other,
    }
}

fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}

fn node(family: Family, facts: &NodeFacts) -> Vec<(&'static str, Element)> {
    let localhost = facts.localhost_node_ports.then_some(LOCALHOST);
    let ips = facts.node_port_addresses.iter().copied().chain(localhost);
    let ips = ips.filter(|ip| Family::of(*ip) == family);
    let mut elements: Vec<_> =
        ips.map(|ip| element(names::NODE_IPS, Bytes::EMPTY.address(ip))).collect();
    let pods = match &facts.pods {
        PodDetection::Cidrs(cidrs) => &cidrs[..],
        _ => &[],
    };
    for (set, cidrs) in [(names::PODS, pods), (names::SERVICE_CIDRS, &facts.service_cidrs)] {
        for cidr in cidrs.iter().filter(|cidr| Family::of_net(cidr) == family) {
            let key = Bytes::EMPTY.address(cidr.network());
            let last = Some(Bytes::EMPTY.address(cidr.broadcast()));
            elements.push((set, Element { key, last, value: Value::None }));
        }
    }
    elements
}
