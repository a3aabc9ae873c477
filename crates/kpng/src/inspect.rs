//! What can be asked of a kpng: why, what it knows, and whether the kernel holds what it shall.
//!
//! A [`Subject`] is a store with the node that it is seen from: of a running process or of a file. It is
//! only read; what needs a plan makes one of its own, so nobody at work is in anybody's way.

mod check;
pub mod diff;
mod explain;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use kpng_core::backend::Audit;
use kpng_core::explain::{Here, Query, explain_by_plan};
use kpng_core::local::{Consider, LocalService, Place};
use kpng_core::model::{NamespacedName, ServiceState};
use kpng_core::plan::{Plan, Planner};
use kpng_core::store::Store;

use crate::backends::Choice;
use crate::cli::DumpWhat;
use crate::sinks::json;

pub use check::Checked;
pub use explain::Explained;
pub(crate) use explain::{considered_json, exclusion_json, hints_json, traffic_policy};
pub(crate) use plan::facts as facts_text;

/// What a store can hold for each Service, where it can be asked about.
pub trait Inspect: Consider {
    /// What the cluster says, if it is known here.
    fn state(self: &Arc<Self>) -> Option<&Arc<ServiceState>>;
}

impl Inspect for ServiceState {
    fn state(self: &Arc<Self>) -> Option<&Arc<ServiceState>> {
        Some(self)
    }
}

/// Worked out elsewhere: only the view of one node is known.
impl Inspect for LocalService {
    fn state(self: &Arc<Self>) -> Option<&Arc<ServiceState>> {
        None
    }
}

/// Of what something is asked.
#[derive(Clone, Debug)]
pub struct Subject<V = ServiceState> {
    /// What is known of the cluster.
    pub store: Store<V>,
    /// The node that it is seen from.
    pub here: Here,
    /// The backend of that node.
    pub choice: Arc<dyn Choice>,
}

/// How many values are read from the store at once.
const PAGE: usize = 1000;

/// A text in pieces, so that nobody has to hold all of it.
pub type Pieces = Box<dyn Iterator<Item = String> + Send>;

impl<V: Inspect> Subject<V> {
    /// Why something happens to a packet. With `of_kernel`, also what this machine's kernel holds for
    /// it.
    ///
    /// # Errors
    /// When nothing is known of the cluster yet.
    pub fn explain(&self, query: &Query, of_kernel: bool) -> anyhow::Result<Explained> {
        let explained = explain_by_plan(&self.store, &self.here, query);
        let (explanation, plan) = explained.ok_or_else(not_complete)?;
        let kernel = of_kernel.then(|| explain::kernel(&explanation, &plan, &*self.choice));
        Ok(Explained { explanation, kernel: kernel.flatten() })
    }

    /// What is asked for, as text.
    ///
    /// # Errors
    /// When nothing is known of the cluster yet, or not what is asked for.
    pub fn dump(&self, what: DumpWhat) -> anyhow::Result<Pieces> {
        Ok(match what {
            DumpWhat::Plan => plan::text(&self.plan()?),
            DumpWhat::Ruleset => Box::new(std::iter::once(self.choice.ruleset_text(&self.plan()?))),
            DumpWhat::Services => {
                let snapshot = self.store.snapshot().ok_or_else(not_complete)?;
                let node = snapshot.nodes.get(&self.here.node);
                let place = Place::of(&self.here.node, node.map(|node| &**node));
                let line = move |(key, state): (NamespacedName, Arc<V>)| {
                    Some(json::line(&*state.localize(&key, &place)?) + "\n")
                };
                Box::new(snapshot.services.into_iter().filter_map(line))
            }
            DumpWhat::State => self.state()?,
        })
    }

    /// How the kernel of this machine differs from the plan; `None` when the backend cannot tell.
    ///
    /// # Errors
    /// When nothing is known of the cluster yet, or the kernel cannot be read.
    pub fn check(&self) -> anyhow::Result<Option<Audit>> {
        let plan = self.plan()?;
        let audit = self.choice.open()?.audit(&plan).map_err(anyhow::Error::from_boxed);
        audit.context("cannot read what the kernel holds")
    }

    /// The plan of everything.
    ///
    /// # Errors
    /// When nothing is known of the cluster yet.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        let mut planner = Planner::new(Arc::clone(&self.here.node), self.here.facts.clone());
        let mut reader = self.store.reader();
        loop {
            // The store is not locked for longer than a page takes.
            let page = reader.try_next_page(PAGE).ok_or_else(not_complete)?;
            planner.update(&page);
            if page.complete {
                return Ok(planner.plan().clone());
            }
        }
    }

    fn state(&self) -> anyhow::Result<Pieces> {
        let snapshot = self.store.snapshot().ok_or_else(not_complete)?;
        let mut services = BTreeMap::new();
        for (key, state) in snapshot.services {
            let state = state.state().context(
                "this kpng follows a server that works out the view of one node, and does not know \
                 the state of the cluster; `kpng api … to-file` gets that from the server",
            )?;
            services.insert(key, Arc::clone(state));
        }
        Ok(Box::new(kpng_file::dump(self.here.clone(), snapshot.nodes, services)))
    }
}

pub(crate) fn not_complete() -> anyhow::Error {
    anyhow!("kpng has not got the complete state of the cluster yet; try again in a moment")
}
