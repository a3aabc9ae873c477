//! The IPVS backend: makes the kernel do what a plan says, by virtual services.
//!
//! ```text
//! Plan ──▶ render (pure: one service's frontends) ──▶ state, ledger (what differs)
//!      ──▶ new virtual services ──▶ nf_tables ──▶ addresses ──▶ what goes
//! ```
//!
//! IPVS chooses endpoints and translates. What it cannot say is in a table of ours in nf_tables: who may
//! come in, what is refused, what is masqueraded, and which packets go to a firewall-mark service,
//! where lists of endpoints depend on where a packet comes from. Virtual addresses are on a dummy link.
//! The README of this crate explains the packet's path and what others may rely on.
//!
//! ```no_run
//! use kpng_core::{Backend, Plan};
//! use kpng_ipvs::{Config, Ipvs};
//!
//! let mut ipvs = Ipvs::open(Config::default())?;
//! ipvs.sync(&Plan::default(), None)?;
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

mod audit;
mod config;
mod counters;
mod dry_run;
mod ledger;
mod link;
mod marks;
pub mod names;
mod render;
mod skeleton;
mod state;
mod system;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::backend::{Audit, Backend, BackendError, Capability, Gap, Traffic};
use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{FrontendKey, Plan, Target};
use kpng_linux::ipvs::{Command, Destination, Ipvs as Kernel, ServiceKey};
use kpng_linux::nft::{Change, Content, Element, OwnedTable, Value};
use tracing::warn;

pub use config::{Config, SCHEDULERS};
pub use dry_run::ruleset_text;

use counters::Counters;
use ledger::{Commands, Ledger};
use link::AddressLink;
use names::{ORIGINS, Set};
use render::Spot;
use state::{FoundMarks, State, Work};

/// What this backend cannot do.
pub const GAPS: &[Gap] = &[Gap {
    what: Capability::LocalhostNodePorts,
    why: "IPVS drops packets from a loopback address to another node's or a pod's",
}];

/// The shortest time between two listings of virtual services, to see whether somebody changed them:
/// IPVS reports nothing.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How much longer than the last listing took the time until the next is, at least.
const CHECK_SHARE: u32 = 100;

/// The destinations of how many services are looked at, each time that somebody asks for disturbances.
const SERVICES_PER_CHECK: usize = 100;

/// What can go wrong. Every error of the kernel names the object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),

    /// The name of our link is taken.
    #[error(
        "link {} is a {kind}, not a dummy, so it is not ours: remove or rename it",
        names::LINK
    )]
    LinkTaken {
        /// What it is.
        kind: String,
    },

    /// Not all of what we wrote could be removed.
    #[error("cannot remove everything: {problems}")]
    Leftovers {
        /// The failures.
        problems: String,
    },
}

/// The backend.
#[derive(Debug)]
pub struct Ipvs {
    config: Config,
    kernel: Kernel,
    counters: Arc<Counters>,
    link: AddressLink,
    tables: Vec<(Family, OwnedTable)>,
    /// What was written; `None` when that is not known.
    written: Option<State>,
    /// What was written before that became unknown: since when destinations wait.
    before: Option<Ledger>,
    next_check: Option<Instant>,
}

impl Ipvs {
    /// Connects to IPVS, links and nf_tables of the network namespace of the calling thread. Changes
    /// nothing.
    ///
    /// # Errors
    /// When the kernel has no IPVS or no nf_tables, or the process may not use them.
    pub fn open(config: Config) -> Result<Self, Error> {
        let mut tables = Vec::new();
        for family in Family::ALL {
            let sets = Set::all().map(Set::def);
            tables.push((family, OwnedTable::open(names::table(family), sets)?));
        }
        Ok(Self {
            config,
            kernel: Kernel::open()?,
            counters: Arc::new(Counters::open()?),
            link: AddressLink::open()?,
            tables,
            written: None,
            before: None,
            next_check: None,
        })
    }

    fn sync_changed(&mut self, plan: &Plan, changed: &[NamespacedName]) -> Result<(), Error> {
        // A state that is half written is taken for unknown: it is put back when all is well.
        let Some(mut state) = self.written.take() else { return self.sync_all(plan) };
        if state.facts() != &**plan.facts() {
            self.before = Some(state.ledger);
            return self.sync_all(plan);
        }
        let services = changed.iter().map(|key| (key, plan.service(key)));
        let work = state.change(services, Instant::now());
        self.write_for(state, work, None)?;
        self.tell_counters(Some(changed));
        Ok(())
    }

    fn sync_all(&mut self, plan: &Plan) -> Result<(), Error> {
        if let Some(state) = self.written.take() {
            self.before = Some(state.ledger);
        }
        let now = Instant::now();
        system::set_up(&self.config)?;
        let found_addresses = self.link.read()?;
        let found_marks = self.found_marks()?;
        let mut first = Commands::default();
        let ledger = self.adopt(plan, now, &mut first)?;
        let (config, facts) = (&self.config, plan.facts());
        let (bound, nodes) = (found_addresses.bound, found_addresses.others);
        let mut state = State::new(config, facts, ledger, bound, nodes);
        let mut work = state.fill(plan.by_importance(), found_marks, now);
        first.grow.append(&mut work.commands.grow);
        work.commands.grow = first.grow;
        self.write_for(state, work, Some(plan))?;
        self.tell_counters(None);
        self.before = None;
        self.next_check = Some(Instant::now() + CHECK_INTERVAL);
        Ok(())
    }

    /// Tells who counts where the frontends of the changed services are, or of all.
    fn tell_counters(&self, changed: Option<&[NamespacedName]>) {
        let Some(state) = &self.written else { return };
        let of = |key: &NamespacedName| (key.clone(), state.places(key));
        match changed {
            Some(changed) => self.counters.set(false, changed.iter().map(of)),
            None => self.counters.set(true, state.services().map(of)),
        }
    }

    /// Writes work, after which the state is in force.
    fn write_for(
        &mut self,
        mut state: State,
        work: Work,
        whole: Option<&Plan>,
    ) -> Result<(), Error> {
        match self.write(work, whole) {
            Ok(refused) => {
                for (key, to) in refused {
                    let target = Target { address: to.address, port: to.port };
                    state.ledger.refused(key, &target);
                }
                self.written = Some(state);
                Ok(())
            }
            Err(error) => {
                self.before = Some(state.ledger);
                Err(error)
            }
        }
    }

    /// Takes our virtual services over, and finds those of others that are where ours should be.
    fn adopt(
        &mut self,
        plan: &Plan,
        now: Instant,
        commands: &mut Commands,
    ) -> Result<Ledger, Error> {
        let mut ledger = Ledger::new(self.config.rules());
        for service in self.kernel.services()? {
            let key = service.key;
            // Somebody who changes a service of ours takes the flag away.
            let was_ours = self.before.as_ref().is_some_and(|before| before.has(key));
            let is_ours = service.tagged || was_ours;
            if self.config.excludes(&key) {
                ledger.leave(key);
            } else if is_ours || self.config.take_over && is_wanted(plan, &key) {
                let destinations = self.kernel.destinations(key)?;
                ledger.adopt(service, &destinations, self.before.as_ref(), now, commands);
            } else {
                if is_wanted(plan, &key) {
                    warn!(
                        "virtual service {service} is somebody else's and is left alone: delete \
                           it, or take it over by --replace-kube-proxy"
                    );
                }
                ledger.leave(key);
            }
        }
        Ok(ledger)
    }

    /// The marks that frontends have in the kernel's maps.
    fn found_marks(&mut self) -> Result<FoundMarks, Error> {
        let mut found = FoundMarks::new();
        for (family, table) in &mut self.tables {
            for (index, from) in ORIGINS.into_iter().enumerate() {
                let elements = match table.elements(Set::Marks(from).name()) {
                    Ok(elements) => elements,
                    // Another version's table, or somebody's: it is replaced.
                    Err(error) if error.is_not_there() => Vec::new(),
                    Err(error) => return Err(error.into()),
                };
                let marks = elements.iter().filter_map(|element| found_mark(*family, element));
                found.extend(marks.map(|(spot, mark)| ((spot, index), mark)));
            }
        }
        Ok(found)
    }

    /// Writes work. With a plan, it is all that is wanted. Gives the destinations that the kernel does
    /// not take, as they can be no endpoints.
    fn write(
        &mut self,
        work: Work,
        whole: Option<&Plan>,
    ) -> Result<Vec<(ServiceKey, Destination)>, Error> {
        let refused = self.apply(&work.commands.grow)?;
        for (family, table) in &mut self.tables {
            let of = |elements: &state::Elements| -> Vec<(&'static str, Element)> {
                let of_family = elements.iter().filter(|(of, ..)| of == family);
                of_family.map(|(_, set, element)| (set.name(), element.clone())).collect()
            };
            let (add, remove) = (of(&work.add), of(&work.remove));
            if let Some(plan) = whole {
                let facts = plan.facts();
                let chains = skeleton::chains(facts, &self.config);
                let node = skeleton::elements(*family, facts).into_iter();
                let mut elements: Vec<_> = node.map(|(set, e)| (set.name(), e)).collect();
                elements.extend(add);
                let content = Content { chains, elements };
                self.counters.keep(table, |table| table.replace(&content))?;
            } else if !add.is_empty() || !remove.is_empty() {
                let change = Change { remove, add, ..Change::default() };
                self.counters.keep(table, |table| table.change(&change))?;
            }
        }
        self.link.bind(&work.bind)?;
        self.apply(&work.commands.shrink)?;
        self.link.unbind(&work.unbind)?;
        Ok(refused)
    }

    /// Carries commands out. A bad endpoint shall not keep others from being served.
    fn apply(&mut self, commands: &[Command]) -> Result<Vec<(ServiceKey, Destination)>, Error> {
        let mut left_out = Vec::new();
        for (number, error) in self.kernel.apply(commands)? {
            match &commands[number] {
                Command::AddDestination(key, to) if error.is_invalid() => {
                    let error: &dyn std::error::Error = &error;
                    warn!(error, "an endpoint is left out: its address is that of no host");
                    left_out.push((*key, *to));
                }
                _ => return Err(error.into()),
            }
        }
        Ok(left_out)
    }

    /// Lets destinations go whose connections have ended.
    fn drain(&mut self, now: Instant) -> Result<(), Error> {
        let Some(state) = &mut self.written else { return Ok(()) };
        let keys = state.ledger.draining(SERVICES_PER_CHECK);
        let mut work = Work::default();
        for key in keys {
            let found = self.kernel.destinations(key)?;
            state.ledger.drained(key, &found, now, &mut work.commands);
            state.settle_unused_address(key, &mut work);
        }
        self.write(work, None)?;
        Ok(())
    }

    /// Whether the kernel's virtual services are not those that were written.
    fn is_ipvs_disturbed(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(state) = &mut self.written else { return Ok(false) };
        for key in state.ledger.next_to_check(SERVICES_PER_CHECK) {
            let found = self.kernel.destinations(key)?;
            if !state.ledger.has_exactly(key, &found) {
                return Ok(true);
            }
        }
        if self.next_check.is_some_and(|next| now < next) {
            return Ok(false);
        }
        let services = self.kernel.services()?;
        let took = now.elapsed();
        self.next_check = Some(Instant::now() + CHECK_INTERVAL.max(took * CHECK_SHARE));
        Ok(!state.ledger.agrees_with(&services))
    }

    fn delete_services(&mut self) -> Result<(), Error> {
        let services = self.kernel.services()?;
        let ours = services.iter().filter(|service| service.tagged);
        let commands: Vec<_> = ours.map(|ours| Command::DeleteService(ours.key)).collect();
        self.apply(&commands)?;
        Ok(())
    }

    fn check(&mut self) -> Result<bool, Error> {
        let now = Instant::now();
        let Some(state) = &self.written else { return Ok(self.before.is_some()) };
        if self.link.disturbed(state)? {
            return Ok(true);
        }
        for (_, table) in &mut self.tables {
            if table.disturbed()? {
                return Ok(true);
            }
        }
        if self.is_ipvs_disturbed(now)? {
            return Ok(true);
        }
        // Somebody may be quicker than this check: then all is written again.
        Ok(self.drain(now).is_err())
    }
}

impl Backend for Ipvs {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        match changed {
            Some(changed) => self.sync_changed(plan, changed)?,
            None => self.sync_all(plan)?,
        }
        Ok(())
    }

    fn disturbed(&mut self) -> Result<bool, BackendError> {
        Ok(self.check()?)
    }

    fn audit(&mut self, plan: &Plan) -> Result<Option<Audit>, BackendError> {
        Ok(Some(self.compare(plan)?))
    }

    fn holds(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Option<Vec<String>>, BackendError> {
        Ok(Some(self.describe(plan, frontend)?))
    }

    fn gaps(&self) -> &'static [Gap] {
        GAPS
    }

    fn traffic(&self) -> Option<Arc<dyn Traffic>> {
        Some(Arc::<Counters>::clone(&self.counters) as _)
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        (self.written, self.before) = (None, None);
        let mut problems = Vec::new();
        problems.extend(self.delete_services().err());
        for (_, table) in &mut self.tables {
            problems.extend(table.delete().err().map(Error::from));
        }
        problems.extend(self.link.delete().err());
        if problems.is_empty() {
            return Ok(());
        }
        let problems: Vec<_> = problems.iter().map(Error::to_string).collect();
        Err(Error::Leftovers { problems: problems.join("; ") }.into())
    }
}

/// Whether a service's frontend is, or could be, where this virtual service is.
fn is_wanted(plan: &Plan, key: &ServiceKey) -> bool {
    use kpng_core::plan::{At, FrontendKey};
    let ServiceKey::Address { address, protocol, port } = *key else { return false };
    let Some(protocol) = Protocol::ALL.into_iter().find(|p| p.number() == protocol) else {
        return false;
    };
    let owns = |at| plan.owner(&FrontendKey { at, protocol, port }).is_some();
    let family = Family::of(address);
    let node_port = || render::node_port_addresses(plan.facts(), family).contains(&address);
    owns(At::Vip(address)) || node_port() && owns(At::NodePort(family))
}

/// The frontend and the mark of an element of a map of marks.
fn found_mark(family: Family, element: &Element) -> Option<(Spot, u32)> {
    let Value::Data(mark) = &element.value else { return None };
    let mark = u32::from_ne_bytes(mark.as_slice().try_into().ok()?);
    Some((spot_of(family, element.key.as_slice())?, mark))
}

/// The spot with this key in our sets.
fn spot_of(family: Family, key: &[u8]) -> Option<Spot> {
    let (address, rest) = match family {
        Family::V4 => {
            let (address, rest) = key.split_first_chunk::<4>()?;
            (std::net::IpAddr::from(*address), rest)
        }
        Family::V6 => {
            let (address, rest) = key.split_first_chunk::<16>()?;
            (std::net::IpAddr::from(*address), rest)
        }
    };
    let &[number, _, _, _, high, low, _, _] = rest else { return None };
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)?;
    Some(Spot { address, protocol, port: u16::from_be_bytes([high, low]) })
}

/// Addresses, sorted.
type Addresses = BTreeSet<std::net::IpAddr>;
