//! Ends UDP flows that go to endpoints which serve no longer.
//!
//! The kernel translates the first packet of a flow and remembers the choice for the rest. A UDP
//! flow has no end, so a client that keeps its port would send to a dead endpoint for ever. So after
//! every sync that took something away, entries of our frontends whose choice is not serving any
//! more are deleted from the connection tracking table, and the next packet is chosen for again.
//!
//! The invariant: an entry is deleted only if its original destination is one of our UDP frontends,
//! or was one until just now, and its answers come from none of the frontend's serving targets. TCP,
//! SCTP and everybody else's entries are not even looked at.
//!
//! What is to be done is found by comparing plans ([`Reconciler`], no I/O). It is done by a [`Pass`]
//! over the table, which streams: its memory does not depend on the size of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{At, Frontend, FrontendKey, LOCALHOST, NodeFacts, Plan, ServicePlan, Target};
use kpng_linux::Result;
use kpng_linux::conntrack::{Conntrack, Entry};
use kpng_linux::rtnetlink;
use tokio::sync::Notify;

/// The shortest time from the start of a pass to the start of the next.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait after a failed pass.
const RETRY: Duration = Duration::from_secs(10);

/// Up to how many stale frontends of a family are asked for one by one. Then the kernel still walks
/// its table for each, but shows next to nothing; showing is what costs.
const ASKED_ONE_BY_ONE: usize = 8;

/// Knows which entries may be out of date, from one plan to the next.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// The services that have UDP frontends.
    services: HashMap<NamespacedName, Arc<ServicePlan>>,
    /// Their UDP frontends. Shared with a running pass, and copied only when it changes meanwhile.
    frontends: Arc<HashMap<FrontendKey, Serving>>,
    facts: Arc<NodeFacts>,
    stale: Stale,
    started: bool,
    /// A pass has been taken and not been given back.
    running: bool,
    not_before: Option<Instant>,
}

/// Whose entries may be out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stale {
    everything: bool,
    /// Frontends that lost a target, are new or gone, or got their first target.
    frontends: BTreeSet<FrontendKey>,
}

impl Stale {
    fn is_empty(&self) -> bool {
        !self.everything && self.frontends.is_empty()
    }
}

/// The serving targets of a frontend: those of a port of a service.
#[derive(Clone, Debug)]
struct Serving {
    plan: Arc<ServicePlan>,
    port: u16,
}

impl Serving {
    /// Sorted. Of both families.
    fn targets(&self) -> &[Target] {
        &self.plan.ports[usize::from(self.port)].serving
    }

    fn of_family(&self, family: Family) -> impl Iterator<Item = &Target> {
        self.targets().iter().filter(move |target| Family::of(target.address) == family)
    }
}

impl Reconciler {
    /// A reconciler that knows nothing; the first plan makes it look at everything once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns what is in force now. To be called after every successful sync, with the plan and the
    /// services that were synced (`None`: all).
    pub fn update(&mut self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        match changed {
            Some(changed) => self.replace(plan, changed),
            None => {
                let known = self.services.keys().chain(plan.services().keys());
                let all: BTreeSet<_> = known.cloned().collect();
                self.replace(plan, &Vec::from_iter(all));
            }
        }
        let addresses =
            |facts: &NodeFacts| (facts.node_port_addresses.clone(), facts.localhost_node_ports);
        if !self.started || addresses(&self.facts) != addresses(plan.facts()) {
            self.stale.everything = true;
            self.started = true;
        }
        self.facts = Arc::clone(plan.facts());
    }

    /// Takes over the frontends of these services.
    fn replace(&mut self, plan: &Plan, services: &[NamespacedName]) {
        // A frontend may move from one service to another: so first all go, then all come.
        let mut before: BTreeMap<FrontendKey, Option<Serving>> = BTreeMap::new();
        for service in services {
            let Some(old) = self.services.remove(service) else { continue };
            let frontends = Arc::make_mut(&mut self.frontends);
            for key in udp_frontends(&old).map(Frontend::key) {
                before.insert(key, frontends.remove(&key));
            }
        }
        for service in services {
            let Some(new) = plan.service(service) else { continue };
            if udp_frontends(new).next().is_none() {
                continue;
            }
            let frontends = Arc::make_mut(&mut self.frontends);
            for frontend in udp_frontends(new) {
                let serving = Serving { plan: Arc::clone(new), port: frontend.service_port };
                frontends.insert(frontend.key(), serving);
                before.entry(frontend.key()).or_insert(None);
            }
            self.services.insert(service.clone(), Arc::clone(new));
        }
        for (key, before) in before {
            if is_stale(key.at.family(), before.as_ref(), self.frontends.get(&key)) {
                self.stale.frontends.insert(key);
            }
        }
    }

    /// When the next pass may begin. `None` when there is nothing to do, or a pass is running.
    pub fn due(&self) -> Option<Instant> {
        let wanted = !self.running && !self.stale.is_empty();
        wanted.then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    /// Takes what is to be done. To be given back to [`finish`](Self::finish), whatever comes of it.
    /// `None` when nothing is to be done.
    pub fn start(&mut self) -> Option<Pass> {
        if self.running || self.stale.is_empty() {
            return None;
        }
        self.running = true;
        Some(Pass {
            frontends: Arc::clone(&self.frontends),
            facts: Arc::clone(&self.facts),
            stale: std::mem::take(&mut self.stale),
        })
    }

    /// Takes note of how a pass went. What a failed one did not do is done by the next.
    pub fn finish(&mut self, pass: Pass, result: &Result<Report>) {
        self.running = false;
        let pause = match result {
            // A slow pass is followed by a pause as long: half a core is enough for this.
            Ok(Report { duration, .. }) => MIN_INTERVAL.saturating_sub(*duration).max(*duration),
            Err(_) => {
                self.stale.everything |= pass.stale.everything;
                self.stale.frontends.extend(pass.stale.frontends);
                RETRY
            }
        };
        self.not_before = Some(Instant::now() + pause);
    }
}

fn udp_frontends(plan: &ServicePlan) -> impl Iterator<Item = &Frontend> {
    plan.frontends.iter().filter(|frontend| frontend.protocol == Protocol::Udp)
}

/// Whether entries made before may be wrong now.
fn is_stale(family: Family, before: Option<&Serving>, now: Option<&Serving>) -> bool {
    match (before, now) {
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
        (Some(before), Some(now)) => {
            let lost = |target: &Target| now.targets().binary_search(target).is_err();
            let had_none = before.of_family(family).next().is_none();
            let first = had_none && now.of_family(family).next().is_some();
            first || before.of_family(family).any(lost)
        }
    }
}

/// One pass over the kernel's table: which frontends to look at, and what they should be.
#[derive(Debug)]
pub struct Pass {
    frontends: Arc<HashMap<FrontendKey, Serving>>,
    facts: Arc<NodeFacts>,
    stale: Stale,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many entries the kernel showed.
    pub visited: u64,
    /// How many listings were asked for.
    pub listings: u32,
    /// How many IPv4 entries were deleted.
    pub deleted_v4: u64,
    /// How many IPv6 entries were deleted.
    pub deleted_v6: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Report {
    /// How many entries were deleted.
    pub fn deleted(&self) -> u64 {
        self.deleted_v4 + self.deleted_v6
    }
}

impl Pass {
    /// Deletes what is out of date in the network namespace of the calling thread. It blocks: for
    /// some seconds per million UDP entries when it looks at all of them, else for less than one.
    ///
    /// # Errors
    /// When the table cannot be read or changed. Then it may have been done in part.
    pub fn run(&self) -> Result<Report> {
        let start = Instant::now();
        let mut work = Work {
            pass: self,
            table: Conntrack::open()?,
            deleter: Conntrack::open()?,
            report: Report::default(),
        };
        for family in Family::ALL {
            work.clean(family)?;
        }
        Ok(Report { duration: start.elapsed(), ..work.report })
    }

    fn must_go(&self, entry: &Entry) -> bool {
        // Zones are somebody's own tables. What was not translated there may not have met our rules.
        if entry.zone != 0 && !entry.is_dnat() {
            return false;
        }
        let by = entry.reply.source;
        let target = Target { address: by.ip(), port: by.port() };
        self.serving_at(entry.original.destination)
            .is_some_and(|serving| serving.binary_search(&target).is_err())
    }

    /// Who serves at a destination; `None` when it is not ours.
    fn serving_at(&self, to: SocketAddr) -> Option<&[Target]> {
        let serving = |at| {
            let key = FrontendKey { at, protocol: Protocol::Udp, port: to.port() };
            let gone = || self.stale.frontends.contains(&key).then_some(&[][..]);
            self.frontends.get(&key).map(Serving::targets).or_else(gone)
        };
        let node_port = || {
            self.has_node_ports(to.ip())
                .then(|| serving(At::NodePort(Family::of(to.ip()))))
                .flatten()
        };
        serving(At::Vip(to.ip())).or_else(node_port)
    }

    fn has_node_ports(&self, address: IpAddr) -> bool {
        self.facts.node_port_addresses.contains(&address)
            || self.facts.localhost_node_ports && address == LOCALHOST
    }
}

/// A pass under way.
struct Work<'a> {
    pass: &'a Pass,
    table: Conntrack,
    /// Another connection, as that of `table` is busy with the listing.
    deleter: Conntrack,
    report: Report,
}

impl Work<'_> {
    fn clean(&mut self, family: Family) -> Result<()> {
        let Stale { everything, frontends } = &self.pass.stale;
        let of_family = |key: &&FrontendKey| key.at.family() == family;
        let stale: Vec<_> = frontends.iter().filter(of_family).collect();
        let any = !stale.is_empty()
            || *everything && self.pass.frontends.keys().any(|key| of_family(&key));
        if !any {
            return Ok(());
        }
        if *everything || stale.len() > ASKED_ONE_BY_ONE {
            return self.list(family, None);
        }
        for key in stale {
            if !self.table.filters_in_kernel() {
                return self.list(family, None);
            }
            self.list(family, Some(key))?;
        }
        Ok(())
    }

    /// Lists the entries of one frontend or of all, and deletes those that must go.
    fn list(&mut self, family: Family, frontend: Option<&FrontendKey>) -> Result<()> {
        let Self { pass, table, deleter, report } = self;
        report.listings += 1;
        let deleted = match family {
            Family::V4 => &mut report.deleted_v4,
            Family::V6 => &mut report.deleted_v6,
        };
        let visit = |entry: &Entry| {
            report.visited += 1;
            if pass.must_go(entry) {
                deleter.delete(entry)?;
                *deleted += 1;
            }
            Ok(())
        };
        let family = match family {
            Family::V4 => rtnetlink::Family::V4,
            Family::V6 => rtnetlink::Family::V6,
        };
        let udp = Protocol::Udp.number();
        match frontend.map(|key| (key.at, key.port)) {
            None => table.dump(family, udp, visit),
            Some((At::Vip(ip), port)) => table.dump_to(family, udp, (Some(ip), port), visit),
            Some((At::NodePort(_), port)) => table.dump_to(family, udp, (None, port), visit),
        }
    }
}

/// A [`Reconciler`] that works by itself: syncs tell it, passes run on blocking threads.
#[derive(Debug, Default)]
pub struct Cleaner {
    reconciler: Mutex<Reconciler>,
    changed: Notify,
}

impl Cleaner {
    /// A cleaner that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Reconciler::update`]. Takes no longer than to compare the plans.
    pub fn update(&self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        self.lock().update(plan, changed);
        self.changed.notify_one();
    }

    /// Does what is to be done, for ever: at once, but at most one pass a second. A failed pass is
    /// tried again after 10 s. Every outcome is shown to `observe`, which logs and counts it.
    pub async fn run(&self, mut observe: impl FnMut(&Result<Report>)) {
        loop {
            let due = self.lock().due();
            match due {
                None => self.changed.notified().await,
                Some(due) => {
                    tokio::time::sleep_until(due.into()).await;
                    self.pass(&mut observe).await;
                }
            }
        }
    }

    async fn pass(&self, observe: &mut impl FnMut(&Result<Report>)) {
        let Some(pass) = self.lock().start() else { return };
        let job = tokio::task::spawn_blocking(move || {
            let result = pass.run();
            (pass, result)
        });
        let (pass, result) = job.await.expect("a pass does not panic");
        observe(&result);
        self.lock().finish(pass, &result);
    }

    fn lock(&self) -> MutexGuard<'_, Reconciler> {
        // Nothing in the reconciler panics, so a poisoned lock holds good data.
        self.reconciler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
