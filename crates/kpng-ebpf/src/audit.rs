//! What the kernel holds, compared with a plan, without changing anything.
//!
//! Everything is read through the names in the BPF file system, so it does not matter which process
//! wrote it. The numbers of pools and of sets of ranges are another process's choice: what frontends
//! refer to is taken for theirs, and has to be what the plan says. What no frontend leads to does not
//! count.

mod describe;
mod held;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::SocketAddr;

use ipnet::IpNet;
use kpng_core::backend::{Audit, Objects};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{Action, Frontend, Plan, Pool, PoolId, ServicePlan, Target};

use crate::layout::{self, Choice};
use crate::links::{Links, State};
use crate::{Ebpf, Error, names, pod_devices, render, sys};

use held::Held;

/// The numbers that the kernel's frontends have for what a service needs.
#[derive(Debug, Default)]
struct Numbers {
    /// By pool of the plan; `None` where no frontend tells.
    pools: Vec<Option<u32>>,
    sources: BTreeMap<Vec<IpNet>, u32>,
}

/// A comparison under way.
struct Comparison<'a> {
    held: &'a Held,
    /// What nobody has asked for yet.
    rest: Held,
    audit: Audit,
}

impl Ebpf {
    /// How the kernel differs from `plan`.
    pub(crate) fn compare(&mut self, plan: &Plan) -> Result<Audit, Error> {
        let held = Held::read(&self.config.root)?;
        let (rest, audit) = (held.clone(), Audit::default());
        let mut comparison = Comparison { held: &held, rest, audit };
        self.compare_attachments(&held, &mut comparison.audit)?;
        self.compare_maps(&held, &mut comparison.audit)?;
        for (key, service) in plan.by_importance() {
            comparison.service(key, service);
        }
        comparison.closed(plan);
        let devices = pod_devices(plan.facts(), &self.devices.links()?);
        comparison.node(&render::node(plan.facts()), &devices);
        Ok(comparison.finish())
    }

    /// Compares the attachments of programs.
    fn compare_attachments(&mut self, held: &Held, audit: &mut Audit) -> Result<(), Error> {
        let mut links = Links::open(&self.config)?;
        let devices = self.config.chosen(self.devices.links()?);
        let wanted = links.wanted(&devices);
        for attachment in &wanted {
            let name = || format!("attachment of {attachment}");
            let differs = match links.state(attachment)? {
                State::Missing => {
                    audit.count(false, name);
                    continue;
                }
                State::Elsewhere => Some("it is elsewhere, or has ended"),
                State::Here(program) if held.are_used_by(program)? => None,
                State::Here(_) => Some("it looks at other tables"),
            };
            match differs {
                None => audit.count(true, name),
                Some(why) => {
                    audit.wanted += 1;
                    audit.differing.add(|| format!("{}: {why}", name()));
                }
            }
        }
        let strangers = links.strangers(&wanted)?.into_iter();
        audit.foreign.extend(strangers.map(|name| format!("attachment {name}")));
        Ok(())
    }

    /// Compares the maps as such.
    fn compare_maps(&self, held: &Held, audit: &mut Audit) -> Result<(), Error> {
        for name in names::TABLES {
            audit.count(held.tables.contains_key(name), || format!("table {name}"));
        }
        for state in names::STATES {
            let path = names::state(&self.config.root, state.name);
            let failed = |source| Error::Pin { what: "open", path: path.clone(), source };
            let found = sys::pinned(&path).map_err(failed)?.is_some();
            audit.count(found, || format!("map {}", state.name));
        }
        Ok(())
    }
}

impl Comparison<'_> {
    fn service(&mut self, key: &NamespacedName, service: &ServicePlan) {
        let numbers = Numbers::of(service, self.held);
        for frontend in served(service) {
            let at = render::frontend_key(frontend);
            let value = numbers.value(key, service, frontend);
            let found = self.rest.frontends.remove(&at);
            let name = || format!("frontends {}", layout::frontend_text(&at));
            self.element(&value, found.as_ref(), name);
        }
        for (pool, number) in service.pools.iter().zip(&numbers.pools) {
            if let Some(number) = number {
                self.pool(*number, pool);
            }
        }
        for (ranges, number) in &numbers.sources {
            self.ranges(*number, ranges);
        }
        for (member, target) in render::serving(key, service) {
            let found = self.rest.members.remove(&member);
            self.audit.count(found, || format!("members {}, serving {key}", text(target)));
        }
    }

    fn pool(&mut self, number: u32, pool: &Pool) {
        for (index, target) in (0..).zip(&pool.targets) {
            let key = layout::target_key(number, index);
            let found = self.rest.targets.remove(&key);
            let name = || format!("targets pool {number} number {index} {}", text(*target));
            self.element(&layout::endpoint(*target), found.as_ref(), name);
        }
        for target in pool.affinity.iter().flat_map(|_| &pool.targets) {
            let found = self.rest.members.remove(&layout::member_key(number.into(), *target));
            self.audit.count(found, || format!("members pool {number} {}", text(*target)));
        }
    }

    fn ranges(&mut self, number: u32, ranges: &[IpNet]) {
        for (range, key) in ranges.iter().zip(render::ranges(number, ranges)) {
            let found = self.rest.ranges.remove(&key);
            self.audit.count(found, || format!("ranges set {number} {range}"));
        }
    }

    /// Compares what closes the other ports of cluster IPs.
    fn closed(&mut self, plan: &Plan) {
        let closed = plan.services().values().flat_map(|service| &service.cluster_ips);
        let closed: std::collections::BTreeSet<_> = closed.collect();
        for ip in closed {
            let at = layout::closed_key(*ip);
            let found = self.rest.frontends.remove(&at);
            let name = || format!("frontends {}", layout::frontend_text(&at));
            self.element(&layout::closed(), found.as_ref(), name);
        }
    }

    /// Compares what the node's own facts ask for.
    fn node(&mut self, node: &render::Node, devices: &[u32]) {
        for (address, flags) in &node.addresses {
            let found = self.rest.addresses.remove(address);
            let name = || format!("addresses {}", layout::address_of(address));
            self.element(&flags.to_ne_bytes(), found.as_ref(), name);
        }
        for key in &node.ranges {
            let found = self.rest.ranges.remove(key);
            self.audit.count(found, || range_text(key));
        }
        for device in devices {
            let found = self.rest.pod_devices.remove(&device.to_ne_bytes());
            self.audit.count(found, || format!("pod_devices {device}"));
        }
    }

    fn element<V: PartialEq>(&mut self, wanted: &V, found: Option<&V>, name: impl Fn() -> String) {
        let differs = found.is_some_and(|found| found != wanted);
        if differs {
            self.audit.wanted += 1;
            self.audit.differing.add(name);
        } else {
            self.audit.count(found.is_some(), name);
        }
    }

    /// What nobody asked for is foreign where packets may meet it. Programs look at a target, member or
    /// range only if a frontend leads there: others wait to be deleted.
    fn finish(self) -> Audit {
        let Self { rest, mut audit, .. } = self;
        let foreign = &mut audit.foreign;
        add_sorted(foreign, rest.frontends.into_keys(), |key| {
            format!("frontends {}", layout::frontend_text(key))
        });
        add_sorted(foreign, rest.addresses.into_keys(), |key| {
            format!("addresses {}", layout::address_of(key))
        });
        add_sorted(foreign, rest.pod_devices, |key| {
            format!("pod_devices {}", u32::from_ne_bytes(*key))
        });
        let is_met = |key: &layout::RangeKey| layout::range_of(key).0 < layout::FIRST_SOURCES;
        let (met, unused): (Vec<_>, Vec<_>) = rest.ranges.into_iter().partition(is_met);
        add_sorted(foreign, met, range_text);
        audit.unused += unused.len() + rest.targets.len();
        let is_serving =
            |key: &layout::MemberKey| render::is_service_port(layout::member_of(key).0);
        let (met, unused): (Vec<_>, Vec<_>) = rest.members.into_iter().partition(is_serving);
        add_sorted(foreign, met, |key| format!("members {}, serving", layout::member_of(key).1));
        audit.unused += unused.len();
        audit
    }
}

impl Numbers {
    /// Reads them from the frontends of the service that the kernel holds.
    fn of(service: &ServicePlan, held: &Held) -> Self {
        let mut numbers = Self { pools: vec![None; service.pools.len()], sources: BTreeMap::new() };
        for frontend in served(service) {
            let Some(value) = held.frontends.get(&render::frontend_key(frontend)) else { continue };
            let found = layout::frontend_of(value);
            for (action, choice) in frontend.route.actions().into_iter().zip(found.choices) {
                if let Action::Forward { pool: PoolId(pool), .. } = action
                    && let Some(Choice::Forward { pool: number, .. }) = choice
                {
                    numbers.pools[usize::from(pool)].get_or_insert(number);
                }
            }
            if let Some(ranges) = &frontend.sources
                && found.sources > 0
            {
                numbers.sources.entry(ranges.clone()).or_insert(found.sources);
            }
        }
        numbers
    }

    /// What the kernel shall hold for a frontend, with these numbers; 0 where none is known.
    fn value(
        &self,
        key: &NamespacedName,
        service: &ServicePlan,
        frontend: &Frontend,
    ) -> layout::Frontend {
        let pool = |PoolId(pool): PoolId| {
            let pool = usize::from(pool);
            render::numbered(self.pools[pool].unwrap_or(0), &service.pools[pool])
        };
        let sources = frontend.sources.as_ref().and_then(|ranges| self.sources.get(ranges));
        render::frontend_value(key, service, frontend, pool, sources.copied().unwrap_or(0))
    }
}

/// The frontends that programs serve.
fn served(service: &ServicePlan) -> impl Iterator<Item = &Frontend> {
    service.frontends.iter().filter(|frontend| render::is_served(frontend.protocol))
}

fn add_sorted<K: Ord + Hash>(
    to: &mut Objects,
    keys: impl IntoIterator<Item = K>,
    name: impl Fn(&K) -> String,
) {
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_unstable();
    keys.iter().for_each(|key| to.add(|| name(key)));
}

fn range_text(key: &layout::RangeKey) -> String {
    match layout::range_of(key) {
        (set, Some(range)) => format!("ranges set {set} {range}"),
        (set, None) => format!("ranges set {set} {key:02x?}"),
    }
}

fn text(target: Target) -> SocketAddr {
    SocketAddr::new(target.address, target.port)
}
