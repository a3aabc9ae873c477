//! What the kernel holds, compared with a plan, without changing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kpng_core::backend::Audit;
use kpng_core::model::Family;
use kpng_core::plan::{At, FrontendKey, Plan};
use kpng_linux::ipvs::{Command, Destination, FoundDestination, Service, ServiceKey};
use kpng_linux::nft::{Content, Element};

use crate::ledger::Ledger;
use crate::names;
use crate::render::{self, Spot};
use crate::state::{State, Work};
use crate::{Error, Ipvs, dry_run, skeleton};

/// Virtual services that are wanted, with their destinations.
type Wanted = BTreeMap<ServiceKey, (Service, BTreeSet<String>)>;

impl Ipvs {
    /// How the kernel differs from `plan`.
    pub(crate) fn compare(&mut self, plan: &Plan) -> Result<Audit, Error> {
        let mut audit = Audit::default();
        let work = self.whole(plan)?;
        let bound = self.link.find()?.bound;
        for address in &work.bind {
            audit.count(bound.contains(address), || on_link(address));
        }
        let of_draining = self.compare_services(&wanted(&work), &mut audit)?;
        for address in bound.difference(&work.bind) {
            match of_draining.contains(address) {
                true => audit.unused += 1,
                false => audit.foreign.add(|| on_link(address)),
            }
        }
        for (family, table) in &mut self.tables {
            let chains = skeleton::chains(plan.facts(), &self.config);
            let elements = dry_run::elements(&work, plan, *family);
            let found = table.compare(&Content { chains, elements })?;
            audit.wanted += found.wanted;
            audit.found += found.found;
            audit.missing.extend(found.missing);
            audit.differing.extend(found.differing);
            audit.foreign.extend(found.foreign);
        }
        Ok(audit)
    }

    /// Compares virtual services; gives the addresses of those that wait for their connections.
    fn compare_services(
        &mut self,
        wanted: &Wanted,
        audit: &mut Audit,
    ) -> Result<crate::Addresses, Error> {
        let mut draining = BTreeSet::new();
        let mut missing: BTreeSet<_> = wanted.keys().copied().collect();
        for found in self.kernel.services()? {
            let key = found.key;
            if self.config.excludes(&key) || !found.tagged && !wanted.contains_key(&key) {
                missing.remove(&key);
                continue;
            }
            let destinations = self.kernel.destinations(key)?;
            let waits = |found: &FoundDestination| found.destination.weight == 0;
            let Some((service, targets)) = wanted.get(&key) else {
                if destinations.iter().all(waits) {
                    audit.unused += 1;
                    draining.extend(address_of(&key));
                } else {
                    audit.foreign.add(|| format!("virtual service {found}"));
                }
                continue;
            };
            missing.remove(&key);
            audit.wanted += 1;
            match *service == found {
                true => audit.found += 1,
                false => audit.differing.add(|| format!("virtual service {found}")),
            }
            let lines =
                destinations.iter().map(|found| (found.destination.to_string(), waits(found)));
            let lines: BTreeMap<_, _> = lines.collect();
            for target in targets {
                audit.count(lines.contains_key(target), || format!("{key} {target}"));
            }
            for (line, waits) in lines.iter().filter(|(line, _)| !targets.contains(*line)) {
                match waits {
                    true => audit.unused += 1,
                    false => audit.foreign.add(|| format!("{key} {line}")),
                }
            }
        }
        for key in missing {
            let (service, targets) = &wanted[&key];
            audit.count(false, || format!("virtual service {service}"));
            audit.wanted += targets.len();
            audit.missing.count += targets.len();
        }
        Ok(draining)
    }

    /// What the kernel holds for a frontend, line by line.
    pub(crate) fn describe(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Vec<String>, Error> {
        let work = self.whole(plan)?;
        let FrontendKey { at, protocol, port } = *frontend;
        let addresses = match at {
            At::Vip(ip) => vec![ip],
            At::NodePort(family) => render::node_port_addresses(plan.facts(), family),
        };
        let family = at.family();
        let wanted = wanted(&work);
        let bound = self.link.find()?.bound;
        let state = |is_there: bool| if is_there { "" } else { " (missing)" };
        let mut lines = Vec::new();
        for address in addresses {
            let spot = Spot { address, protocol, port };
            if work.bind.contains(&address) {
                lines.push(format!("{}{}", on_link(&address), state(bound.contains(&address))));
            }
            let mut keys = vec![spot.service_key()];
            for (set, element) in dry_run::elements(&work, plan, family) {
                if !element.key.as_slice().starts_with(spot.key().as_slice()) {
                    continue;
                }
                keys.extend(marked(family, &element));
                let held = self.elements(family, set)?;
                let table = format!("{} element {set}", title(family));
                let text = kpng_linux::nft::text::element(
                    names::table(family).family,
                    &names::Set::named(set).def(),
                    &element,
                );
                lines.push(format!("{table} {{ {text} }}{}", state(held.contains(&element))));
            }
            for key in keys {
                let Some((service, targets)) = wanted.get(&key) else { continue };
                lines.push(match self.kernel.service(key)? {
                    Some(found) if found == *service => format!("ipvs {service}"),
                    Some(found) => format!("ipvs {service} (differs: {found})"),
                    None => format!("ipvs {service} (missing)"),
                });
                let held = self.kernel.destinations(key)?;
                let held: BTreeMap<_, _> = held
                    .iter()
                    .map(|found| (found.destination.to_string(), found.connections))
                    .collect();
                lines.extend(targets.iter().map(|target| match held.get(target) {
                    Some(connections) => format!("ipvs {key} {target}: {connections} connections"),
                    None => format!("ipvs {key} {target} (missing)"),
                }));
            }
        }
        lines.dedup();
        Ok(lines)
    }

    /// All that is wanted, with the marks that the kernel's maps have.
    fn whole(&mut self, plan: &Plan) -> Result<Work, Error> {
        let ledger = Ledger::new(self.config.rules());
        let others = self.link.find()?.others;
        let marks = self.found_marks()?;
        let mut state =
            State::new(&self.config, plan.facts(), ledger, crate::Addresses::new(), others);
        Ok(state.fill(plan.by_importance(), marks, Instant::now()))
    }

    fn elements(&mut self, family: Family, set: &'static str) -> Result<Vec<Element>, Error> {
        let table = self.tables.iter_mut().find(|(of, _)| *of == family);
        let (_, table) = table.expect("both families have a table");
        match table.elements(set) {
            Err(error) if error.is_not_there() => Ok(Vec::new()),
            other => Ok(other?),
        }
    }
}

/// The virtual services that commands make.
fn wanted(work: &Work) -> Wanted {
    let mut wanted = Wanted::new();
    for command in &work.commands.grow {
        match command {
            Command::AddService(service) => {
                wanted.insert(service.key, (service.clone(), BTreeSet::new()));
            }
            Command::AddDestination(key, to) => {
                if let Some((_, targets)) = wanted.get_mut(key) {
                    targets.insert(Destination::to_string(to));
                }
            }
            _ => {}
        }
    }
    wanted
}

fn on_link(address: &std::net::IpAddr) -> String {
    format!("address {address} of link {}", names::LINK)
}

fn title(family: Family) -> String {
    format!("table {} {}", names::table(family).family.name(), names::TABLE)
}

fn address_of(key: &ServiceKey) -> Option<std::net::IpAddr> {
    match key {
        ServiceKey::Address { address, .. } => Some(*address),
        ServiceKey::Mark { .. } => None,
    }
}

/// The firewall-mark service that an element of a map of marks leads to.
fn marked(family: Family, element: &Element) -> Option<ServiceKey> {
    let (_, mark) = crate::found_mark(family, element)?;
    Some(ServiceKey::Mark { family: render::kernel_family(family), mark })
}
