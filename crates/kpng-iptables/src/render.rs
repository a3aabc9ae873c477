//! From plans to chains: pure functions. Rules are written as `iptables-save` prints them, so that
//! what the kernel holds can be compared with what it should hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{
    Action, At, Frontend, LOCALHOST, NodeFacts, PodDetection, Pool, PoolId, Route, ServicePlan,
    Target,
};

use crate::Config;
use crate::names::{self, Kind, Table};
use crate::tree::{Entry, Key};

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) table: Table,
    pub(crate) name: String,
    /// Chains of a lower rank are written before; rules only lead to chains of lower ranks.
    pub(crate) rank: u8,
    pub(crate) rules: Vec<String>,
}

/// Ranks, see [`Chain::rank`]. Nodes of trees lie between [`RANK_GUARD`] and [`RANK_BASE`].
pub(crate) const RANK_HELPER: u8 = 0;
const RANK_ENDPOINT: u8 = 1;
const RANK_POOL: u8 = 2;
const RANK_ROUTE: u8 = 3;
const RANK_GUARD: u8 = 4;
const RANK_BASE: u8 = 255;

/// The rank of a tree's node: the leaves come first, the root last.
pub(crate) fn node_rank(depth: usize) -> u8 {
    RANK_BASE - 1 - u8::try_from(depth).expect("a key has at most 37 digits")
}

/// Which of the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TreeId {
    pub(crate) table: Table,
    pub(crate) by_node_port: bool,
}

/// What one service needs in one family.
#[derive(Debug, Default)]
pub(crate) struct ServiceChains {
    /// Chains of its own.
    pub(crate) chains: Vec<Chain>,
    /// Its rules in the trees.
    pub(crate) entries: Vec<(TreeId, Key, Entry)>,
}

/// The chains of a service in one family.
pub(crate) fn service(
    key: &NamespacedName,
    plan: &ServicePlan,
    facts: &NodeFacts,
    family: Family,
) -> ServiceChains {
    let pods = pod_matches(&facts.pods, family);
    let mut renderer = Renderer { key, plan, pods, done: ServiceChains::default() };
    for frontend in plan.frontends.iter().filter(|frontend| frontend.at.family() == family) {
        renderer.frontend(frontend);
    }
    renderer.done
}

/// The rule that closes a cluster IP, but for its ports. An address that is the node's own is not
/// ours to close.
pub(crate) fn closed(address: IpAddr) -> (TreeId, Key, Entry) {
    let id = TreeId { table: Table::Filter, by_node_port: false };
    let target = format!("-m addrtype ! --dst-type LOCAL -j {}", names::REJECT);
    let entry = Entry { comment: "kpng: no such port".to_owned(), target };
    (id, Key::any_port(address), entry)
}

struct Renderer<'a> {
    key: &'a NamespacedName,
    plan: &'a ServicePlan,
    /// One match for each way to tell a pod.
    pods: Vec<String>,
    done: ServiceChains,
}

/// What a rule does with a packet, as iptables writes it.
fn goto(chain: &str) -> String {
    format!("-g {chain}")
}

/// The end of a packet's way in nat: it keeps its destination, by which filter refuses it.
const NOT_FORWARDED: &str = "-j ACCEPT";
const DROP: &str = "-j DROP";

impl Renderer<'_> {
    fn frontend(&mut self, frontend: &Frontend) {
        let comment = self.comment(frontend.service_port);
        let by_node_port = matches!(frontend.at, At::NodePort(_));
        let key = match frontend.at {
            At::Vip(ip) => Key::vip(ip, frontend.protocol, frontend.port),
            At::NodePort(_) => Key::node_port(frontend.protocol, frontend.port),
        };
        let targets = [
            (Table::Nat, Some(self.forwarding(frontend))),
            (Table::Filter, self.refusal(frontend)),
        ];
        for (table, target) in targets {
            let Some(target) = target else { continue };
            let entry = Entry { comment: comment.clone(), target };
            self.done.entries.push((TreeId { table, by_node_port }, key.clone(), entry));
        }
    }

    /// Where nat sends packets to a frontend.
    fn forwarding(&mut self, frontend: &Frontend) -> String {
        let route = &frontend.route;
        let forwards =
            route.actions().iter().any(|action| matches!(action, Action::Forward { .. }));
        if !forwards {
            return NOT_FORWARDED.to_owned();
        }
        let inner = self.route(frontend.service_port, route);
        self.guarded(Table::Nat, frontend, inner, NOT_FORWARDED)
    }

    /// What filter does with packets to a frontend that were not forwarded.
    fn refusal(&mut self, frontend: &Frontend) -> Option<String> {
        let target = |action| match action {
            Action::Reject => Some(goto(names::REJECT)),
            Action::Drop => Some(DROP.to_owned()),
            Action::Forward { .. } => None,
        };
        let targets = frontend.route.actions().map(target);
        let kinds: BTreeSet<_> = targets.iter().flatten().collect();
        let inner = match Vec::from_iter(kinds)[..] {
            [] if frontend.sources.is_some() => return Some(DROP.to_owned()),
            [] => return None,
            [kind] => kind.clone(),
            // Nobody is refused here who is forwarded: he has another destination by now.
            _ => {
                let [pod, node, outside] = targets.each_ref().map(|t| t.as_deref().unwrap_or(""));
                let rules = self.by_origin(pod, node, outside);
                let identity = format!("{}/{targets:?}", self.port_name(frontend.service_port));
                let rules = commented(rules, &self.comment(frontend.service_port));
                self.chain(Table::Filter, Kind::Route, &identity, RANK_ROUTE, rules)
            }
        };
        Some(self.guarded(Table::Filter, frontend, inner, DROP))
    }

    /// `inner` for those who may come in, `others` for all others.
    fn guarded(
        &mut self,
        table: Table,
        frontend: &Frontend,
        inner: String,
        others: &str,
    ) -> String {
        let Some(sources) = &frontend.sources else { return inner };
        if inner == others {
            return inner;
        }
        let mut rules: Vec<_> = sources.iter().map(|range| join(&source(range), &inner)).collect();
        rules.push(others.to_owned());
        let rules = commented(rules, &self.comment(frontend.service_port));
        let identity = format!("{}/{}", self.key, frontend.key());
        self.chain(table, Kind::Guard, &identity, RANK_GUARD, rules)
    }

    /// Where packets go by their origin, and which of them are masqueraded.
    fn route(&mut self, service_port: u16, route: &Route) -> String {
        let targets = route.actions().map(|action| match action {
            Action::Forward { pool, .. } => self.pool(pool),
            Action::Reject | Action::Drop => NOT_FORWARDED.to_owned(),
        });
        let masquerade = route
            .actions()
            .map(|action| matches!(action, Action::Forward { masquerade: true, .. }));
        let [pod, node, outside] = &targets;
        let mut rules = self.by_origin(pod, node, outside);
        if let Some(chain) = mark_chain(masquerade) {
            rules.insert(0, format!("-j {chain}"));
        }
        if let [only] = &rules[..] {
            return only.clone();
        }
        let rules = commented(rules, &self.comment(service_port));
        let identity = format!("{}/{targets:?}/{masquerade:?}", self.port_name(service_port));
        self.chain(Table::Nat, Kind::Route, &identity, RANK_ROUTE, rules)
    }

    /// Rules that send packets to one of three targets. No target means back.
    fn by_origin(&self, pod: &str, node: &str, outside: &str) -> Vec<String> {
        let or_return = |target: &str| {
            if target.is_empty() { "-j RETURN".to_owned() } else { target.to_owned() }
        };
        let mut rules = Vec::new();
        if [node, outside] != [pod, pod] {
            rules.extend(self.pods.iter().map(|from| join(from, &or_return(pod))));
        }
        if node != outside {
            rules.push(format!("{FROM_NODE} {}", or_return(node)));
        }
        rules.push(or_return(outside));
        rules
    }

    /// Where packets go that may go to any endpoint of a pool.
    fn pool(&mut self, id: PoolId) -> String {
        let plan = self.plan;
        let pool = &plan.pools[usize::from(id.0)];
        let port_name = self.port_name(pool.service_port);
        let endpoints: Vec<_> =
            pool.targets.iter().map(|target| self.endpoint(pool, target)).collect();
        if let [only] = &endpoints[..] {
            return goto(&only.chain);
        }
        let mut rules = Vec::new();
        if let Some(timeout) = pool.affinity {
            // What Kubernetes allows; iptables refuses 0.
            let seconds = timeout.as_secs().clamp(1, 86_400);
            let sticky = |endpoint: &Endpoint| {
                let list = recent_list(&endpoint.list, pool.family);
                let chain = &endpoint.chain;
                format!("-m recent --rcheck --seconds {seconds} --reap {list} -g {chain}")
            };
            rules.extend(endpoints.iter().map(sticky));
        }
        for (left, endpoint) in (1..=endpoints.len()).rev().zip(&endpoints) {
            let goto = goto(&endpoint.chain);
            rules.push(if left > 1 { join(&once_in(left), &goto) } else { goto });
        }
        let alike =
            |other: &&Pool| (other.service_port, other.family) == (pool.service_port, pool.family);
        let position = plan.pools[..usize::from(id.0)].iter().filter(alike).count();
        let rules = commented(rules, &self.comment(pool.service_port));
        let identity = format!("{port_name}/{position}");
        self.chain(Table::Nat, Kind::Pool, &identity, RANK_POOL, rules)
    }

    fn endpoint(&mut self, pool: &Pool, target: &Target) -> Endpoint {
        let port = &self.plan.ports[usize::from(pool.service_port)];
        let to = match (target.address, target.port) {
            // No port is 0, and iptables would refuse all that is written along with it.
            (ip, 0) => ip.to_string(),
            (IpAddr::V4(ip), port) => format!("{ip}:{port}"),
            (IpAddr::V6(ip), port) => format!("[{ip}]:{port}"),
        };
        let identity = format!("{}/{to}", self.port_name(pool.service_port));
        let list = names::recent_list(&identity);
        let protocol = port.protocol.name().to_ascii_lowercase();
        let comment = comment_match(&self.comment(pool.service_port));
        let remember = match pool.affinity {
            Some(_) => format!(" -m recent --set {}", recent_list(&list, pool.family)),
            None => String::new(),
        };
        let rules = vec![
            format!("{} -j {}", source(&target.address.into()), names::MARK),
            format!("-p {protocol} {comment}{remember} -j DNAT --to-destination {to}"),
        ];
        self.chain(Table::Nat, Kind::Endpoint, &identity, RANK_ENDPOINT, rules);
        Endpoint { chain: names::chain(Kind::Endpoint, &identity), list }
    }

    /// Adds a chain, once, and returns the way to it.
    fn chain(
        &mut self,
        table: Table,
        kind: Kind,
        identity: &str,
        rank: u8,
        rules: Vec<String>,
    ) -> String {
        let name = names::chain(kind, identity);
        let chains = &mut self.done.chains;
        let goto = goto(&name);
        if chains.iter().all(|chain| (chain.table, &chain.name) != (table, &name)) {
            chains.push(Chain { table, name, rank, rules });
        }
        goto
    }

    /// The identity of a service port.
    fn port_name(&self, service_port: u16) -> String {
        self.plan.port_identity(self.key, service_port)
    }

    /// namespace/name:port, for people.
    fn comment(&self, service_port: u16) -> String {
        let port = &self.plan.ports[usize::from(service_port)];
        let mut comment = if port.name.is_empty() {
            self.key.to_string()
        } else {
            format!("{}:{}", self.key, port.name)
        };
        let harmless = |c: char| c.is_ascii_alphanumeric() || "-./:_".contains(c);
        comment = comment.chars().map(|c| if harmless(c) { c } else { '_' }).collect();
        comment.truncate(250); // the kernel takes 255
        comment
    }
}

struct Endpoint {
    chain: String,
    list: String,
}

const FROM_NODE: &str = "-m addrtype --src-type LOCAL";

/// The matches of packets that come from a pod, any of which will do.
fn pod_matches(pods: &PodDetection, family: Family) -> Vec<String> {
    match pods {
        PodDetection::None => Vec::new(),
        PodDetection::Cidrs(cidrs) => {
            cidrs.iter().filter(|cidr| Family::of_net(cidr) == family).map(source).collect()
        }
        PodDetection::Bridge(name) => vec![format!("-i {name}")],
        PodDetection::InterfacePrefix(prefix) => vec![format!("-i {prefix}+")],
    }
}

/// The match of a source. iptables prints no match of everything.
fn source(range: &IpNet) -> String {
    if range.prefix_len() == 0 { String::new() } else { format!("-s {}", range.trunc()) }
}

fn join(matches: &str, target: &str) -> String {
    if matches.is_empty() { target.to_owned() } else { format!("{matches} {target}") }
}

fn comment_match(comment: &str) -> String {
    format!("-m comment --comment \"{comment}\"")
}

/// Puts a comment into the first rule.
fn commented(mut rules: Vec<String>, comment: &str) -> Vec<String> {
    if let Some(first) = rules.first_mut() {
        // iptables prints addresses and interfaces before all other matches.
        let mut words: Vec<_> = first.split(' ').collect();
        let at = words.iter().position(|word| matches!(*word, "-m" | "-j" | "-g"));
        let comment = comment_match(comment);
        words.insert(at.unwrap_or(0), &comment);
        *first = words.join(" ");
    }
    rules
}

/// The match that holds for one of `n` packets. The kernel counts in parts of 2^31.
fn once_in(n: usize) -> String {
    const WHOLE: f64 = (1_u64 << 31) as f64;
    let probability = (WHOLE / n as f64).round() / WHOLE;
    format!("-m statistic --mode random --probability {probability:.11}")
}

fn recent_list(name: &str, family: Family) -> String {
    let mask = match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    };
    format!("--name {name} --mask {mask} --rsource")
}

/// The chain that marks the packets of these origins (pod, node, outside) for masquerading.
fn mark_chain(origins: [bool; 3]) -> Option<String> {
    match origins {
        [false, false, false] => None,
        [true, true, true] => Some(names::MARK.to_owned()),
        origins => {
            let letters = origins.iter().zip(["P", "N", "O"]).filter(|(marked, _)| **marked);
            let letters: String = letters.map(|(_, letter)| letter).collect();
            Some(format!("{}-{letters}", names::MARK))
        }
    }
}

/// The chains that are there whatever services exist.
pub(crate) fn skeleton(family: Family, facts: &NodeFacts, config: &Config) -> Vec<Chain> {
    let helper = |table, name: &str, rules| {
        let name = name.to_owned();
        Chain { table, name, rank: RANK_HELPER, rules }
    };
    let base = |table, name: &str, rules| {
        let name = name.to_owned();
        Chain { table, name, rank: RANK_BASE, rules }
    };
    let mark = format!("0x{:x}", config.mark());
    let set = vec![format!("-j MARK --set-xmark {mark}/{mark}")];
    let mut chains = vec![
        helper(Table::Filter, names::REJECT, reject(family)),
        helper(Table::Nat, names::MARK, set),
    ];
    let combination = |n: u8| [n & 1 != 0, n & 2 != 0, n & 4 != 0];
    for origins in (1..7).map(combination) {
        let name = mark_chain(origins).expect("somebody is masqueraded");
        chains.push(helper(Table::Nat, &name, mark_by_origin(origins, facts, family)));
    }
    let masquerade = vec![
        format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
        format!("-j MARK --set-xmark {mark}/0x0"),
        "-j MASQUERADE --random-fully".to_owned(),
    ];
    let [input, forward, output] = filters(family, facts, config);
    chains.extend([
        base(Table::Filter, names::REFUSED, refused(family, facts)),
        base(Table::Filter, names::INPUT, input),
        base(Table::Filter, names::FORWARD, forward),
        base(Table::Filter, names::OUTPUT, output),
        base(Table::Nat, names::PREROUTING, dispatch(family, facts, false)),
        base(Table::Nat, names::OUTPUT, dispatch(family, facts, true)),
        base(Table::Nat, names::POSTROUTING, masquerade),
    ]);
    chains
}

fn reject(family: Family) -> Vec<String> {
    let unreachable = match family {
        Family::V4 => "icmp-port-unreachable",
        Family::V6 => "icmp6-port-unreachable",
    };
    vec![
        "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
        format!("-j REJECT --reject-with {unreachable}"),
    ]
}

fn mark_by_origin(
    [pod, node, outside]: [bool; 3],
    facts: &NodeFacts,
    family: Family,
) -> Vec<String> {
    let then = |marked: bool| {
        if marked { goto(names::MARK) } else { "-j RETURN".to_owned() }
    };
    let pods = pod_matches(&facts.pods, family);
    let mut rules: Vec<_> = pods.iter().map(|from| join(from, &then(pod))).collect();
    if node != outside {
        rules.push(format!("{FROM_NODE} {}", then(node)));
    }
    rules.push(then(outside));
    rules
}

/// The way from nat's built-in chains to the trees. An address of the node that is a service's too
/// is the service's first.
fn dispatch(family: Family, facts: &NodeFacts, from_node: bool) -> Vec<String> {
    let mut rules = vec![format!("-j {}", names::VIPS)];
    rules.extend(node_ports(family, facts));
    if from_node && family == Family::V4 && facts.localhost_node_ports {
        rules.push(format!("-d {LOCALHOST}/32 -j {}", names::NODE_PORTS));
    }
    rules
}

fn node_ports(family: Family, facts: &NodeFacts) -> impl Iterator<Item = String> {
    let addresses = facts.node_port_addresses.iter().filter(move |ip| Family::of(**ip) == family);
    addresses.map(|ip| format!("-d {} -j {}", IpNet::from(*ip), names::NODE_PORTS))
}

/// The way from filter's chains to the trees. What was forwarded has another destination by now.
fn refused(family: Family, facts: &NodeFacts) -> Vec<String> {
    let mut rules = vec!["-m conntrack --ctstate DNAT -j RETURN".to_owned()];
    rules.extend(dispatch(family, facts, true));
    rules
}

fn filters(family: Family, facts: &NodeFacts, config: &Config) -> [Vec<String>; 3] {
    let refuse = format!("-m conntrack --ctstate NEW -j {}", names::REFUSED);
    let ranges = facts.service_cidrs.iter().filter(|range| Family::of_net(range) == family);
    let unallocated: Vec<_> = ranges
        .map(|range| format!("-d {} -m conntrack --ctstate NEW -j DROP", range.trunc()))
        .collect();
    let mut input = Vec::new();
    if facts.localhost_node_ports && family == Family::V4 {
        // With route_localnet, which node ports on 127.0.0.1 need, the kernel would let packets to
        // it in from outside (CVE-2020-8558).
        input.push("-d 127.0.0.0/8 ! -i lo -m conntrack ! --ctstate DNAT -j DROP".to_owned());
    }
    input.push(refuse.clone());
    let mut forward = Vec::new();
    if !config.conntrack_be_liberal {
        forward.push("-m conntrack --ctstate INVALID -j DROP".to_owned());
    }
    forward.push(refuse.clone());
    forward.extend(unallocated.iter().cloned());
    let mut output = vec![refuse];
    output.extend(unallocated);
    [input, forward, output]
}
