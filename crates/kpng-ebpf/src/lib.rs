//! The eBPF backend: services at the sockets of pods and node, and in packets from elsewhere.
//!
//! ```text
//! Plan ──▶ render (pure) ──▶ state (what differs) ──▶ object (maps, in batches) ──▶ programs
//! ```
//!
//! A socket that connects to a service is connected to an endpoint instead, so its packets cost
//! nothing. Packets from outside, and what depends on a pod's address, are translated where they come
//! in. The README of this crate has the packet's path, all names, and the limits.
//!
//! ```no_run
//! use kpng_core::{Backend, Plan};
//! use kpng_ebpf::{Config, Ebpf};
//!
//! let mut ebpf = Ebpf::open(Config::default())?;
//! ebpf.sync(&Plan::default(), None)?;
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

mod audit;
mod config;
mod dry_run;
mod error;
mod filters;
mod layout;
mod links;
mod metrics;
mod names;
mod object;
mod render;
mod root;
mod state;
mod sys;
mod udp;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use kpng_core::backend::{Audit, Backend, BackendError, Capability, Gap, Metrics, Usage};
use kpng_core::model::NamespacedName;
use kpng_core::plan::{FrontendKey, NodeFacts, Plan, PodDetection};
use kpng_linux::rtnetlink::{AddressMonitor, Link, Rtnetlink};

pub use config::{Attach, Config};
pub use dry_run::ruleset_text;
pub use error::Error;

use filters::Filters;
use links::Links;
use metrics::Gauges;
use object::Object;
use state::{Changes, State};

/// What this backend cannot do.
pub const GAPS: &[Gap] = &[Gap {
    what: Capability::Sctp,
    why: "the kernel has no hooks at SCTP sockets, and no help with SCTP's checksum",
}];

/// The backend.
#[derive(Debug)]
pub struct Ebpf {
    config: Config,
    devices: Rtnetlink,
    /// Tells when devices come and go.
    monitor: AddressMonitor,
    written: Option<Whole>,
    gauges: Arc<Gauges>,
}

/// Everything that is in the kernel.
#[derive(Debug)]
struct Whole {
    facts: Arc<NodeFacts>,
    state: State,
    object: Object,
    links: Links,
}

impl Ebpf {
    /// Looks for what it takes, in the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// When there is no control group of version 2, or the process may not use BPF.
    pub fn open(config: Config) -> Result<Self, Error> {
        Links::open(&config)?;
        config.warn_of_shared_ports();
        let monitor = AddressMonitor::open()?;
        let (devices, gauges) = (Rtnetlink::open()?, Arc::default());
        Ok(Self { config, devices, monitor, written: None, gauges })
    }

    fn sync_changed(&mut self, plan: &Plan, changed: &[NamespacedName]) -> Result<(), Error> {
        let Some(whole) = &mut self.written else { return self.sync_all(plan) };
        if whole.facts != *plan.facts() {
            return self.sync_all(plan);
        }
        // A new pod's packets have to be served before it is an endpoint.
        self.follow_devices()?;
        let Some(whole) = &mut self.written else { return self.sync_all(plan) };
        let garbage = whole.state.take_garbage(Instant::now());
        let mut changes = Changes::default();
        for key in changed {
            whole.state.set_service(key, plan.service(key), &mut changes);
        }
        if !whole.object.capacity().holds(whole.state.sizes()) {
            return self.sync_all(plan);
        }
        let written = whole
            .object
            .discard(&garbage)
            .and_then(|()| whole.object.write(&changes))
            .and_then(|()| udp::end_sockets(&whole.object, &changes.gone_members));
        if written.is_err() {
            self.written = None; // what the tables hold is not known
        }
        written
    }

    /// Fills new tables with everything, and then lets the programs that use them take the place of
    /// those that are attached, whoever attached them.
    fn sync_all(&mut self, plan: &Plan) -> Result<(), Error> {
        self.written = None;
        root::prepare(&self.config.root)?;
        let facts = Arc::clone(plan.facts());
        let mut changes = Changes::default();
        let mut state = State::new(&facts, &mut changes);
        for (key, service) in plan.by_importance() {
            state.set_service(key, Some(service), &mut changes);
        }
        let netns = sys::netns_cookie().map_err(|source| Error::NetworkNamespace { source })?;
        let constants = render::constants(&facts, &self.config, netns);
        let object = Object::load(&self.config, &constants, state.sizes())?;
        object.write(&changes)?;
        let mut links = Links::open(&self.config)?;
        self.monitor.changed()?;
        let devices = self.devices.links()?;
        object.set_pod_devices(&pod_devices(&facts, &devices))?;
        links.attach(&object, &self.config.chosen(devices))?;
        object.pin_tables(&self.config.root)?;
        self.gauges.follow(object.maps());
        self.written = Some(Whole { facts, state, object, links });
        Ok(())
    }

    /// Attaches the programs to devices that are new.
    fn follow_devices(&mut self) -> Result<(), Error> {
        let Some(whole) = &mut self.written else { return Ok(()) };
        if self.monitor.changed()? {
            let devices = self.devices.links()?;
            whole.object.set_pod_devices(&pod_devices(&whole.facts, &devices))?;
            whole.links.follow(&whole.object, &self.config.chosen(devices), false)?;
        }
        Ok(())
    }

    /// Looks after what changes by itself: devices, and what is to be deleted later.
    fn keep_up(&mut self) -> Result<bool, Error> {
        self.follow_devices()?;
        let Some(whole) = &mut self.written else { return Ok(true) };
        whole.object.discard(&whole.state.take_garbage(Instant::now()))?;
        Ok(!whole.links.are_intact())
    }
}

/// The devices that packets of pods come in through, where that is how one knows.
fn pod_devices(facts: &NodeFacts, devices: &[Link]) -> Vec<u32> {
    let detects = |device: &&Link| match &facts.pods {
        PodDetection::Bridge(name) => device.name == **name,
        PodDetection::InterfacePrefix(prefix) => device.name.starts_with(&**prefix),
        PodDetection::None | PodDetection::Cidrs(_) => false,
    };
    devices.iter().filter(detects).map(|device| device.index).collect()
}

impl Backend for Ebpf {
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
        Ok(self.keep_up()?)
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

    fn usage(&self) -> Vec<Usage> {
        let Some(Whole { state, object, .. }) = &self.written else { return Vec::new() };
        let (sizes, capacity) = (state.sizes(), object.capacity());
        let usage = |table: &'static str| {
            Some(Usage { table, elements: sizes.of(table)?, capacity: capacity.of(table)? })
        };
        names::TABLES.into_iter().filter_map(usage).collect()
    }

    fn gaps(&self) -> &'static [Gap] {
        GAPS
    }

    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        Some(Arc::<Gauges>::clone(&self.gauges) as _)
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        self.written = None;
        // The marks of our qdiscs go with the names.
        let filters = Filters::open(self.config.root.clone())
            .and_then(|mut filters| filters.retain(&BTreeSet::new()));
        let names = root::remove(&self.config.root);
        Ok(filters.and(names)?)
    }
}
