//! What the kernel holds, compared with a plan, without changing anything.
//!
//! The proxy may be that of another process: its ports, which the rules lead to, are asked for. Where
//! no process serves, rules lead nowhere, and so they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kpng_core::backend::Audit;
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{Action, At, FrontendKey, Plan};
use kpng_linux::nft::{Element, SetDef, text};
use kpng_linux::rtnetlink::Rtnetlink;

use crate::engine::Ports;
use crate::{Error, Userspace, names, own_addresses, render, serving, transparent, whole};

/// Nobody listens there.
const NOWHERE: Ports = Ports { tcp: 0, udp: 0 };

impl Userspace {
    /// How the kernel differs from `plan`.
    pub(crate) fn compare(&mut self, plan: &Plan) -> Result<Audit, Error> {
        let mut audit = Audit::default();
        let ports = serving()?;
        audit.count(ports.is_some(), || "the proxy: no process serves this node".to_owned());
        let held = addresses_of_loopback()?;
        for address in own_addresses() {
            audit.count(held.contains(&address), || format!("address {address} of link lo"));
        }
        if self.config.transparent {
            let mark = self.config.answer_mark();
            audit.count(transparent::is_way_back(mark)?, || format!("rule for mark {mark:#x}"));
        }
        for (family, table) in &mut self.tables {
            let wanted = whole(plan, *family, &self.config, ports.unwrap_or(NOWHERE));
            let found = table.compare(&wanted)?;
            audit.wanted += found.wanted;
            audit.found += found.found;
            audit.missing.extend(found.missing);
            audit.differing.extend(found.differing);
            audit.foreign.extend(found.foreign);
        }
        Ok(audit)
    }

    /// What the kernel holds for a frontend, line by line.
    pub(crate) fn describe(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Vec<String>, Error> {
        let Some((_, service, frontend)) = plan.owner(frontend) else { return Ok(Vec::new()) };
        let family = frontend.at.family();
        let mut alone = service.clone();
        alone.frontends = vec![frontend.clone()];
        alone.cluster_ips.retain(|ip| At::Vip(*ip) == frontend.at);
        let sets: BTreeMap<_, _> = names::sets().into_iter().map(|set| (set.name, set)).collect();
        let mut held = BTreeMap::new();
        let mut lines = Vec::new();
        for (name, element) in render::service(&alone, family) {
            if !held.contains_key(name) {
                held.insert(name, self.elements(family, name)?);
            }
            let state = if held[name].contains(&element) { "" } else { " (missing)" };
            lines.push(format!("{}{state}", line(family, &sets[name], &element)));
        }
        let forwards = |action| matches!(action, Action::Forward { .. });
        if frontend.route.actions().into_iter().any(forwards) {
            lines.push(proxy(serving()?, frontend.protocol));
        }
        Ok(lines)
    }

    fn elements(&mut self, family: Family, set: &'static str) -> Result<Vec<Element>, Error> {
        let table = self.tables.iter_mut().find(|(of, _)| *of == family);
        let (_, table) = table.expect("both families have a table");
        match table.elements(set) {
            Err(error) if error.is_not_there() => Ok(Vec::new()),
            elements => Ok(elements?),
        }
    }
}

/// An element as a line: `table ip kpng-userspace element services { KEY }`.
fn line(family: Family, set: &SetDef, element: &Element) -> String {
    let table = names::table(family);
    let text = text::element(table.family, set, element);
    format!("table {} {} element {} {{ {text} }}", table.family.name(), table.name, set.name)
}

/// Where the frontend's packets are led to.
fn proxy(ports: Option<Ports>, protocol: Protocol) -> String {
    match (ports, protocol) {
        (None, _) => "the proxy (missing: no process serves this node)".to_owned(),
        (Some(ports), Protocol::Tcp) => format!("the proxy, at TCP port {}", ports.tcp),
        (Some(ports), Protocol::Udp) => format!("the proxy, at UDP port {}", ports.udp),
        (Some(_), Protocol::Sctp) => "the proxy, which does not speak SCTP".to_owned(),
    }
}

fn addresses_of_loopback() -> Result<BTreeSet<IpAddr>, Error> {
    let mut rtnetlink = Rtnetlink::open()?;
    let loopback = rtnetlink.link("lo")?.index;
    let addresses = rtnetlink.addresses()?.into_iter();
    Ok(addresses.filter(|own| own.index == loopback).map(|own| own.address).collect())
}
