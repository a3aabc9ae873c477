//! What is in the tables whatever services exist: sets, hooks, and the way to the chains of frontends.

use kpng_core::model::Family;
use kpng_core::plan::{At, Frontend, LOCALHOST, NodeFacts, PodDetection};
use kpng_linux::nft::{
    Bytes, Chain, Connection, Content, Data, Element, Field, Hook, HookKind, HookPoint, Rule,
    SetDef, Statement, Table, TableFamily, Value, Verdict,
};

use crate::MASQUERADE;

const VIP: [Field; 3] = [Field::Daddr, Field::L4Proto, Field::Dport];
const TCP: u8 = 6;
const NODE_PORT: [Field; 2] = [Field::L4Proto, Field::Dport];

pub(crate) fn table(family: Family) -> Table {
    let family = match family {
        Family::V4 => TableFamily::Ip,
        Family::V6 => TableFamily::Ip6,
    };
    Table::new(family, "kpng-example")
}

pub(crate) fn sets() -> Vec<SetDef> {
    let set = |name, key: &[Field], data, interval| {
        let (key, dynamic) = (key.to_vec(), None);
        SetDef { name, key, data, interval, dynamic, counted: false, comment: "" }
    };
    let guarded = [&VIP[..], &[Field::Saddr]].concat();
    let stuck = [Field::Saddr, Field::Constant(0), Field::Constant(0)];
    vec![
        set("vips", &VIP, Data::Verdict, false),
        set("node-ports", &NODE_PORT, Data::Verdict, false),
        set("refused-vips", &VIP, Data::Verdict, false),
        set("refused-node-ports", &NODE_PORT, Data::Verdict, false),
        set("sources", &guarded, Data::None, true),
        set("hairpin", &[Field::Saddr, Field::Daddr], Data::None, false),
        set("cluster-ips", &[Field::Daddr], Data::None, false),
        set("node-ips", &[Field::Daddr], Data::None, false),
        set("pods", &[Field::Saddr], Data::None, true),
        set("service-cidrs", &[Field::Daddr], Data::None, true),
        SetDef { dynamic: Some(1 << 16), ..set("affinity", &stuck, Data::None, false) },
    ]
}

/// The chains that do not belong to a service, and the elements that describe the node.
pub(crate) fn content(family: Family, facts: &NodeFacts) -> Content {
    let localhost = facts.localhost_node_ports && family == Family::V4;
    let chains = inner_chains().into_iter().chain(base_chains(localhost)).collect();
    Content { chains, elements: node(family, facts) }
}

fn inner_chains() -> [(Chain, Vec<Rule>); 3] {
    let chain = |name: &str, rules: [Rule; 2]| {
        (Chain { name: name.to_owned(), hook: None }, Vec::from(rules))
    };
    let vmap = |key: &[Field], map| Statement::VerdictMap { key: key.to_vec(), map };
    let look_up = |vips, node_ports| {
        let to_node = in_set(vec![Field::Daddr], "node-ips");
        [Rule::new([vmap(&VIP, vips)]), Rule::new([to_node, vmap(&NODE_PORT, node_ports)])]
    };
    let with_reset = Rule::new([Statement::L4Proto(TCP), Statement::RejectWithReset]);
    [
        chain("reject", [with_reset, Rule::new([Statement::Reject])]),
        chain("services", look_up("vips", "node-ports")),
        chain("refuse", look_up("refused-vips", "refused-node-ports")),
    ]
}

/// Where packets come in. NAT is where kube-proxy has it; refusals are decided in the filter hooks,
/// where what was forwarded has another destination already.
fn base_chains(localhost: bool) -> Vec<(Chain, Vec<Rule>)> {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let base = |name: &str, kind, point, priority, rules| {
        let hook = Some(Hook { kind, point, priority });
        (Chain { name: name.to_owned(), hook }, rules)
    };
    let drop = || Statement::Verdict(Verdict::Drop);
    let new = || Statement::Connection(Connection::New);
    let services = || vec![Rule::new([jump("services")])];
    let refuse = || Rule::new([new(), jump("refuse")]);
    let close = || {
        let daddr_in = |set| in_set(vec![Field::Daddr], set);
        let closed = Rule::new([new(), daddr_in("cluster-ips"), goto("reject")]);
        [refuse(), closed, Rule::new([new(), daddr_in("service-cidrs"), drop()])]
    };
    let from_endpoint = in_set(vec![Field::Saddr, Field::Saddr], "hairpin");
    let invalid = [Statement::Connection(Connection::Invalid), from_endpoint, drop()];
    let to_itself = in_set(vec![Field::Saddr, Field::Daddr], "hairpin");
    let hairpin = [Statement::Connection(Connection::Dnat), to_itself, Statement::Masquerade];
    let (marked, clear) = (Statement::MarkHas(MASQUERADE), Statement::ClearMark(MASQUERADE));
    let masquerade = [marked, clear, Statement::Masquerade];
    // The parameter route_localnet lets packets to 127.0.0.1 in from outside (CVE-2020-8558).
    let martian = [Statement::NotFromLoopback, Statement::DaddrInLoopbackNet, drop()];
    let martians = localhost.then(|| Rule::new(martian)).into_iter().collect();
    let forward = [vec![Rule::new(invalid)], close().to_vec()].concat();
    vec![
        base("martians", Filter, Prerouting, -110, martians),
        base("input", Filter, Input, -110, vec![refuse()]),
        base("forward", Filter, Forward, -110, forward),
        base("output", Filter, Output, -90, close().to_vec()),
        base("nat-prerouting", Nat, Prerouting, -100, services()),
        base("nat-output", Nat, Output, -100, services()),
        base(
            "nat-postrouting",
            Nat,
            Postrouting,
            100,
            vec![Rule::new(masquerade), Rule::new(hairpin)],
        ),
    ]
}

fn node(family: Family, facts: &NodeFacts) -> Vec<(&'static str, Element)> {
    let localhost = facts.localhost_node_ports.then_some(LOCALHOST);
    let ips = facts.node_port_addresses.iter().copied().chain(localhost);
    let ips = ips.filter(|ip| Family::of(*ip) == family);
    let mut elements: Vec<_> = ips.map(|ip| set_of("node-ips", Bytes::EMPTY.address(ip))).collect();
    let pods = match &facts.pods {
        PodDetection::Cidrs(cidrs) => &cidrs[..],
        _ => &[],
    };
    for (set, cidrs) in [("pods", pods), ("service-cidrs", &facts.service_cidrs)] {
        for cidr in cidrs.iter().filter(|cidr| Family::of_net(cidr) == family) {
            let key = Bytes::EMPTY.address(cidr.network());
            let last = Some(Bytes::EMPTY.address(cidr.broadcast()));
            elements.push((set, Element { key, last, value: Value::None }));
        }
    }
    elements
}

/// Holds for packets from sources that may not reach the frontend. Only virtual addresses have such.
pub(crate) fn stranger(frontend: &Frontend) -> Statement {
    debug_assert!(matches!(frontend.at, At::Vip(_)), "source ranges guard load balancer addresses");
    let key = [&VIP[..], &[Field::Saddr]].concat();
    Statement::InSet { key, set: "sources", negate: true }
}

pub(crate) fn in_set(key: Vec<Field>, set: &'static str) -> Statement {
    Statement::InSet { key, set, negate: false }
}

pub(crate) fn set_of(set: &'static str, key: Bytes) -> (&'static str, Element) {
    (set, Element { key, last: None, value: Value::None })
}

pub(crate) fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.to_owned()))
}

fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.to_owned()))
}
