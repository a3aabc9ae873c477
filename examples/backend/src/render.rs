//! From a service's plan to chains and elements: pure functions, and so easy to test.

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{Action, At, Frontend, NodeFacts, Origin, PodDetection, Pool, ServicePlan};
use kpng_linux::nft::{
    Bytes, Chain, Content, Element, Field, Rule, Statement, Value, Verdict, fnv1a,
};

use crate::MASQUERADE;
use crate::skeleton::{goto, in_set, set_of, stranger};

/// What one service needs in one family.
pub(crate) fn render(
    key: &NamespacedName,
    plan: &ServicePlan,
    facts: &NodeFacts,
    family: Family,
) -> Content {
    let mut content = Content::default();
    for ip in plan.cluster_ips.iter().filter(|ip| Family::of(**ip) == family) {
        content.elements.push(set_of("cluster-ips", Bytes::EMPTY.address(*ip)));
    }
    for pool in plan.pools.iter().filter(|pool| pool.family == family) {
        for target in &pool.targets {
            let itself = Bytes::EMPTY.address(target.address).address(target.address);
            content.elements.push(set_of("hairpin", itself));
        }
    }
    for frontend in plan.frontends.iter().filter(|frontend| frontend.at.family() == family) {
        let name = format!("{:016x}-{key}", fnv1a(frontend.key().to_string().as_bytes()));
        let name = name[..name.len().min(100)].to_owned(); // the kernel takes 127 bytes
        let to = |prefix: &str| Value::Verdict(Verdict::Goto(format!("{prefix}-{name}")));
        let chain = |prefix: &str| Chain { name: format!("{prefix}-{name}"), hook: None };
        let (guard, maps) = match frontend.at {
            At::Vip(ip) => (Bytes::EMPTY.address(ip), ["vips", "refused-vips"]),
            At::NodePort(_) => (Bytes::EMPTY, ["node-ports", "refused-node-ports"]),
        };
        let at = guard.protocol(frontend.protocol.number()).port(frontend.port);
        for range in frontend.sources.iter().flatten() {
            let (key, last) = (at.address(range.network()), Some(at.address(range.broadcast())));
            content.elements.push(("sources", Element { key, last, value: Value::None }));
        }
        let [forward, refuse] = [forward(key, plan, frontend, facts), refuse(frontend, facts)];
        for (map, prefix, rules) in [(maps[0], "to", forward), (maps[1], "no", refuse)] {
            let element = Element { key: at, last: None, value: to(prefix) };
            content.elements.push((map, element));
            content.chains.push((chain(prefix), rules));
        }
    }
    content
}

/// Which packets come from where; the last is everything else. One that does not tell them apart has
/// one row.
fn origins(frontend: &Frontend, facts: &NodeFacts) -> Vec<(Vec<Statement>, Action)> {
    let pod = match &facts.pods {
        PodDetection::None => None,
        PodDetection::Cidrs(_) => Some(in_set(vec![Field::Saddr], "pods")),
        PodDetection::Bridge(name) => {
            Some(Statement::Iifname { name: name.to_string(), prefix: false })
        }
        PodDetection::InterfacePrefix(name) => {
            Some(Statement::Iifname { name: name.to_string(), prefix: true })
        }
    };
    let pod = pod.map(|is_pod| (vec![is_pod], frontend.route.from(Origin::Pod)));
    let node = (vec![Statement::SourceIsLocal], frontend.route.from(Origin::Node));
    let outside = (Vec::new(), frontend.route.from(Origin::Outside));
    pod.into_iter().chain([node, outside]).collect()
}

/// The rules that rewrite the destination. What may not come in, or is refused, leaves the hook.
fn forward(
    key: &NamespacedName,
    plan: &ServicePlan,
    frontend: &Frontend,
    facts: &NodeFacts,
) -> Vec<Rule> {
    let leave = Statement::Verdict(Verdict::Accept);
    let mut rules = Vec::new();
    if frontend.sources.is_some() {
        rules.push(Rule::new([stranger(frontend), leave.clone()]));
    }
    for (origin, action) in origins(frontend, facts) {
        let rule = |more: &[Statement]| Rule::new([&origin[..], more].concat());
        let Action::Forward { pool, masquerade } = action else {
            rules.push(rule(std::slice::from_ref(&leave)));
            continue;
        };
        if masquerade {
            rules.push(rule(&[Statement::SetMark(MASQUERADE)]));
        }
        let pool = &plan.pools[usize::from(pool.0)];
        rules.extend(choices(key, plan, pool).iter().map(|choice| rule(choice)));
    }
    rules
}

/// What chooses a target: the one that the client sticks to, else any with the same probability.
fn choices(key: &NamespacedName, plan: &ServicePlan, pool: &Pool) -> Vec<Vec<Statement>> {
    let port = &plan.ports[usize::from(pool.service_port)];
    let hash = |text: String| fnv1a(text.as_bytes()) as u32 >> 1; // nft reads 31 bits
    let service = hash(format!("{key} {} {}", port.port, port.protocol));
    let (mut sticky, mut others) = (Vec::new(), Vec::new());
    for (left, target) in (1..=pool.targets.len() as u32).rev().zip(&pool.targets) {
        let protocol = Statement::L4Proto(port.protocol.number());
        let mut choose = vec![protocol.clone()];
        if left > 1 {
            choose.push(Statement::OnceIn(left));
        }
        let dnat = Statement::Dnat { address: target.address, port: target.port };
        if let Some(timeout) = pool.affinity {
            let target = hash(format!("{} {}", target.address, target.port));
            let key = vec![Field::Saddr, Field::Constant(service), Field::Constant(target)];
            let remember = Statement::Update { set: "affinity", key: key.clone(), timeout };
            sticky.push(vec![protocol, in_set(key, "affinity"), remember.clone(), dnat.clone()]);
            choose.push(remember);
        }
        choose.push(dnat);
        others.push(choose);
    }
    sticky.append(&mut others);
    sticky
}

/// The rules for packets that still have the frontend as their destination in the filter hooks.
fn refuse(frontend: &Frontend, facts: &NodeFacts) -> Vec<Rule> {
    let drop = || Statement::Verdict(Verdict::Drop);
    let mut rules = Vec::new();
    if frontend.sources.is_some() {
        rules.push(Rule::new([stranger(frontend), drop()]));
    }
    for (origin, action) in origins(frontend, facts) {
        let verdict = match action {
            Action::Forward { .. } => Statement::Verdict(Verdict::Return),
            Action::Reject => goto("reject"),
            Action::Drop => drop(),
        };
        rules.push(Rule::new([&origin[..], &[verdict]].concat()));
    }
    rules
}
