//! The userspace backend: rules lead all services to one listening socket per family and protocol,
//! and a proxy takes it from there.
//!
//! ```text
//! Plan ─┬─▶ render ──▶ OwnedTable     which packets are led here, refused or dropped (nf_tables)
//!       └─▶ Routes  ──▶ tcp, udp       where a connection goes: looked up by its original destination
//! ```
//!
//! What only a proxy of userspace can do: another endpoint is tried when one refuses or does not
//! answer. What it can do for pods of this node only: keep the client's address. The cost of a change, and of a connection,
//! does not depend on the number of services.

mod activity;
mod affinity;
mod audit;
mod counters;
mod engine;
mod names;
mod pipes;
mod relay;
mod render;
mod routes;
mod rules;
mod stats;
mod successor;
mod tcp;
mod transparent;
mod udp;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kpng_core::backend::{Audit, Backend, BackendError, Capability, Gap, Metrics, Traffic};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{FrontendKey, NodeFacts, Plan, ServicePlan};
use kpng_linux::nft::{Change, Content, OwnedTable, owned_text};
use kpng_linux::rtnetlink::Rtnetlink;

use counters::Counters;
use engine::{Engine, Ports};
use routes::Routes;

/// What this backend cannot do.
pub const GAPS: &[Gap] = &[
    Gap {
        what: Capability::ClientAddress,
        why: "endpoints see connections that the proxy makes, from an address of the node",
    },
    NO_SCTP,
];

/// What it cannot do with [`Config::transparent`].
pub const TRANSPARENT_GAPS: &[Gap] = &[NO_SCTP];

const NO_SCTP: Gap = Gap { what: Capability::Sctp, why: "the proxy speaks TCP and UDP only" };

/// How the proxy works, beside what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which bit of the packet mark (0 to 31) tells the proxy's own packets from others, so that they
    /// are not led to it again. It is cleared before the packet leaves.
    pub masquerade_bit: u8,
    /// Let packets pass that fit no connection, as asymmetric routes make them.
    pub conntrack_be_liberal: bool,
    /// How many connections and UDP flows there may be at a time; `None` for as many as the limit of
    /// open files allows.
    pub max_connections: Option<u32>,
    /// How long a TCP connection may be without a byte.
    pub tcp_idle_timeout: Duration,
    /// How long a UDP flow may be without a datagram.
    pub udp_idle_timeout: Duration,
    /// How long connections may go on when the process shall end.
    pub drain_timeout: Duration,
    /// Where affinity is kept over a restart.
    pub state_dir: PathBuf,
    /// Endpoints see the client's address where the plan says so and their answers come back to this
    /// node: pods of this node. It takes the bit of the packet mark after [`Self::masquerade_bit`]
    /// too, and a routing rule.
    pub transparent: bool,
}

impl Default for Config {
    /// Bit 14 as kube-proxy; a day for TCP and 60 s for UDP; 30 s to drain; `/run/kpng`.
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            conntrack_be_liberal: false,
            max_connections: None,
            tcp_idle_timeout: Duration::from_secs(24 * 3600),
            udp_idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            state_dir: "/run/kpng".into(),
            transparent: false,
        }
    }
}

impl Config {
    fn mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }

    /// The mark of answers that end here though they are for a client.
    fn answer_mark(&self) -> u32 {
        self.mark().rotate_left(1)
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),
    /// A socket could not be opened.
    #[error("cannot open the proxy's {what}")]
    Socket {
        /// Which one.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The backend.
#[derive(Debug)]
pub struct Userspace {
    config: Config,
    tables: Vec<(Family, OwnedTable)>,
    routes: Arc<Routes>,
    counters: Arc<Counters>,
    stats: Arc<stats::Stats>,
    engine: Option<Engine>,
    /// Another process serves this node now: the rules are its own.
    retired: Arc<AtomicBool>,
    /// What was written; `None` when that is not known.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    facts: Arc<NodeFacts>,
    services: HashMap<NamespacedName, Arc<ServicePlan>>,
}

impl Userspace {
    /// Connects to nf_tables of the network namespace of the calling thread. Changes nothing; the
    /// proxy starts with the first `sync`.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or the process may not use it.
    pub fn open(config: Config) -> Result<Self, Error> {
        let open = |family| Ok((family, OwnedTable::open(names::table(family), names::sets())?));
        let tables = Family::ALL.into_iter().map(open).collect::<Result<_, Error>>()?;
        let (routes, stats) = (Arc::default(), Arc::default());
        let counters = Arc::new(Counters::open(Arc::clone(&routes))?);
        let (engine, retired, written) = (None, Arc::default(), None);
        Ok(Self { config, tables, routes, counters, stats, engine, retired, written })
    }

    fn write_all(&mut self, plan: &Plan) -> Result<Written, Error> {
        add_addresses()?;
        if self.config.transparent {
            transparent::add_way_back(self.config.answer_mark())?;
        } else {
            transparent::remove_way_back()?;
        }
        let ports = match &self.engine {
            Some(engine) => engine.ports,
            None => {
                succeed()?;
                let (routes, stats) = (Arc::clone(&self.routes), Arc::clone(&self.stats));
                let retired = Arc::clone(&self.retired);
                self.engine.insert(Engine::start(&self.config, routes, stats, retired)?).ports
            }
        };
        let facts = Arc::clone(plan.facts());
        // The proxy knows where a connection goes before any is led to it.
        self.routes.replace(plan);
        for (family, table) in &mut self.tables {
            let content = whole(plan, *family, &self.config, ports);
            self.counters.keep(table, plan, |table| table.replace(&content))?;
        }
        let services = plan.services().iter().map(|(key, plan)| (key.clone(), Arc::clone(plan)));
        Ok(Written { facts, services: services.collect() })
    }

    fn write_changes(
        &mut self,
        plan: &Plan,
        changed: &[NamespacedName],
        Written { facts, mut services }: Written,
    ) -> Result<Written, Error> {
        for key in changed {
            let old = services.get(key).map(|plan| &**plan);
            self.routes.change(key, old, plan.service(key).map(|plan| &**plan));
        }
        for (family, table) in &mut self.tables {
            let mut change = Change::default();
            for key in changed {
                let of = |service: Option<&Arc<ServicePlan>>| {
                    service.map(|plan| render::service(plan, *family)).unwrap_or_default()
                };
                change.remove.extend(of(services.get(key)));
                change.add.extend(of(plan.service(key)));
            }
            self.counters.keep(table, plan, |table| table.change(&change))?;
        }
        for key in changed {
            match plan.service(key) {
                Some(service) => services.insert(key.clone(), Arc::clone(service)),
                None => services.remove(key),
            };
        }
        Ok(Written { facts, services })
    }
}

impl Backend for Userspace {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        if self.retired.load(Ordering::Acquire) {
            return Ok(());
        }
        // Whatever goes wrong from here on, all is written the next time.
        let written = self.written.take().filter(|written| written.facts == *plan.facts());
        self.written = Some(match (changed, written) {
            (Some(changed), Some(written)) => self.write_changes(plan, changed, written)?,
            _ => self.write_all(plan)?,
        });
        Ok(())
    }

    fn disturbed(&mut self) -> Result<bool, BackendError> {
        if self.retired.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut disturbed = false;
        for (_, table) in &mut self.tables {
            disturbed |= table.disturbed()?;
        }
        if self.config.transparent && self.written.is_some() {
            disturbed |= !transparent::is_way_back(self.config.answer_mark())?;
        }
        Ok(disturbed)
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
        if self.config.transparent { TRANSPARENT_GAPS } else { GAPS }
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(Arc::<stats::Stats>::clone(&self.stats) as _)
    }

    fn traffic(&self) -> Option<Arc<dyn Traffic>> {
        Some(Arc::<Counters>::clone(&self.counters) as _)
    }

    fn drain(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.drain(self.config.drain_timeout);
        }
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        self.written = None;
        if self.engine.take().is_none() {
            succeed()?;
        }
        let tables: Vec<_> = self.tables.iter_mut().map(|(_, table)| table.delete()).collect();
        let removed = [remove_addresses(), transparent::remove_way_back().map_err(Error::from)];
        tables.into_iter().collect::<Result<(), _>>()?;
        Ok(removed.into_iter().collect::<Result<(), _>>()?)
    }
}

/// What `nft -f` reads to lead packets to a proxy that listens on port 1 of TCP and 2 of UDP.
pub fn ruleset_text(plan: &Plan, config: &Config) -> String {
    let ports = Ports { tcp: 1, udp: 2 };
    let text = |family| {
        owned_text(&names::table(family), names::sets(), &whole(plan, family, config, ports))
    };
    Family::ALL.into_iter().map(text).collect()
}

/// Everything that the table of a family shall hold.
fn whole(plan: &Plan, family: Family, config: &Config, ports: Ports) -> Content {
    let mut content = rules::content(family, plan.facts(), config, ports);
    for (_, service) in plan.by_importance() {
        content.elements.extend(render::service(service, family));
    }
    content
}

const TO_SERVING: &str = "connection to the process that serves this node";

fn succeed() -> Result<(), Error> {
    successor::succeed().map_err(|source| Error::Socket { what: TO_SERVING, source })
}

fn serving() -> Result<Option<Ports>, Error> {
    successor::serving().map_err(|source| Error::Socket { what: TO_SERVING, source })
}

fn own_addresses() -> impl Iterator<Item = IpAddr> {
    Family::ALL.into_iter().flat_map(|family| routes::ORIGINS.map(|o| names::address(family, o)))
}

/// How long an address may take until packets to it end here.
const PATIENCE: Duration = Duration::from_secs(1);

/// Gives the loopback the addresses that packets are led to. They are no source of anybody's packets.
/// When this returns, packets to them end here: of IPv6, the kernel sees to that in the background.
fn add_addresses() -> Result<(), Error> {
    let mut rtnetlink = Rtnetlink::open()?;
    let loopback = rtnetlink.link("lo")?.index;
    for address in own_addresses() {
        match rtnetlink.add_inner_address(loopback, address) {
            Err(error) if error.errno() == Some(rustix::io::Errno::EXIST) => {}
            result => result?,
        }
    }
    let start = Instant::now();
    for address in own_addresses() {
        while !rtnetlink.next_hop(address)?.is_some_and(|hop| hop.is_local)
            && start.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn remove_addresses() -> Result<(), Error> {
    let mut rtnetlink = Rtnetlink::open()?;
    let loopback = rtnetlink.link("lo")?.index;
    for address in own_addresses() {
        match rtnetlink.delete_address(loopback, address, names::single(address)) {
            Err(error) if error.errno() == Some(rustix::io::Errno::ADDRNOTAVAIL) => {}
            result => result?,
        }
    }
    Ok(())
}
