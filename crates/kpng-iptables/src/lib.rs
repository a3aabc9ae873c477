//! The iptables backend: makes the kernel do what a plan says, by `iptables-restore`.
//!
//! ```text
//! Plan ──▶ render (pure: chains of one service) ──▶ state (which differ) ──▶ text ──▶ iptables-restore
//!                                  tree (the way to them) ┘
//! ```
//!
//! Only chains that differ are written, and only our own. After each input the kernel works, as
//! chains are written before those that lead to them. The README of this crate explains the
//! packet's path and what others may rely on.
//!
//! ```no_run
//! use kpng_core::{Backend, Plan};
//! use kpng_iptables::{Config, Iptables};
//!
//! let mut iptables = Iptables::open(Config::default())?;
//! iptables.sync(&Plan::default(), None)?;
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

mod audit;
mod dry_run;
mod names;
mod program;
mod recent;
mod render;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use kpng_core::backend::{Audit, Backend, BackendError, Gap};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{FrontendKey, NodeFacts, Plan, ServicePlan};

pub use dry_run::ruleset_text;
pub use program::Variant;

use program::Programs;
use state::{Change, State};
use watch::Watch;

/// What this backend cannot do: nothing that a plan can ask for.
pub const GAPS: &[Gap] = &[];

/// How the data path is built, beside what the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which bit of the packet mark means "to be masqueraded" (0 to 31). It is cleared before the
    /// packet leaves; other bits are not touched.
    pub masquerade_bit: u8,
    /// Let packets pass that fit no connection, as asymmetric routes make them.
    pub conntrack_be_liberal: bool,
    /// Which iptables; `None` for that which others use on this node.
    pub variant: Option<Variant>,
}

impl Default for Config {
    /// kube-proxy's defaults: bit 14, invalid packets are dropped, the variant is found.
    fn default() -> Self {
        Self { masquerade_bit: 14, conntrack_be_liberal: false, variant: None }
    }
}

impl Config {
    fn mark(&self) -> u32 {
        1 << (self.masquerade_bit & 31)
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// iptables is not installed, or not in this variant.
    #[error("cannot find {name} in PATH; install iptables, or choose the other variant")]
    NoProgram {
        /// The program.
        name: String,
    },
    /// A program could not be run.
    #[error("cannot run {}", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program reported a failure.
    #[error("{program} failed ({status}){line}: {complaint}")]
    Failed {
        /// The program with its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it said.
        complaint: String,
        /// The line of its input that it blamed, or nothing.
        line: String,
    },
    /// Notifications of the kernel cannot be read.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),
}

/// The backend.
#[derive(Debug)]
pub struct Iptables {
    config: Config,
    programs: Programs,
    written: Option<Whole>,
    /// The services whose clients stick to one of several endpoints.
    sticky: BTreeSet<NamespacedName>,
    warning: Option<String>,
}

/// Everything that was written.
#[derive(Debug)]
struct Whole {
    facts: Arc<NodeFacts>,
    states: BTreeMap<Family, State>,
    watch: Watch,
}

impl Iptables {
    /// Finds iptables. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NoProgram`] when it is not installed.
    pub fn open(config: Config) -> Result<Self, Error> {
        let programs = match config.variant {
            Some(variant) => Programs::find(variant)?,
            None => Programs::detect()?,
        };
        tracing::debug!(variant = programs.variant.name(), "iptables was found");
        Ok(Self { config, programs, written: None, sticky: BTreeSet::new(), warning: None })
    }

    /// The variant that is used.
    pub fn variant(&self) -> Variant {
        self.programs.variant
    }

    /// What an operator should know about the last successful `sync`: that the kernel keeps the
    /// affinity of few clients only. It is logged too, when it arises.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn sync_changed(&mut self, plan: &Plan, changed: &[NamespacedName]) -> Result<(), Error> {
        // A state that is half written is taken for unknown: it is put back when all is well.
        let Some(mut whole) = self.written.take() else { return self.sync_all(plan) };
        whole.watch.about_to_write()?;
        let new_facts = whole.facts != *plan.facts();
        whole.facts = Arc::clone(plan.facts());
        let facts = &whole.facts;
        for (family, state) in &mut whole.states {
            let change = if new_facts {
                let mut keys: BTreeSet<_> = state.services().cloned().collect();
                keys.extend(plan.services().keys().cloned());
                let mut change = state.write_services(facts, planned(plan, &keys));
                change.merge(state.write_skeleton(facts, &self.config));
                change
            } else {
                state.write_services(facts, planned(plan, changed))
            };
            write(&self.programs, &mut whole.watch, *family, &change)?;
        }
        self.written = Some(whole);
        for key in changed {
            self.note_sticky(key, plan.service(key));
        }
        Ok(())
    }

    fn sync_all(&mut self, plan: &Plan) -> Result<(), Error> {
        self.written = None;
        // Whoever changes something after it was read is noticed.
        let variant = self.programs.variant;
        let mut watch = Watch::open(variant)?;
        let facts = Arc::clone(plan.facts());
        let mut states = BTreeMap::new();
        for family in self.programs.families() {
            let found = self.programs.read(family)?;
            let mut state = State::new(family, found);
            // Over what is there everything is written at once: else the first root of the tree
            // would cut off what is not written yet.
            let size = if state.is_found() { usize::MAX } else { variant.services_per_input() };
            let all = plan.by_importance();
            let mut groups = all.chunks(size);
            let mut first = Some(groups.next().unwrap_or_default());
            while let Some(group) = first.take().or_else(|| groups.next()) {
                let group = group.iter().map(|(key, plan)| (*key, Some(&***plan)));
                let mut change = state.write_services(&facts, group);
                if !state.has_skeleton() {
                    change.merge(state.write_skeleton(&facts, &self.config));
                }
                write(&self.programs, &mut watch, family, &change)?;
            }
            match write(&self.programs, &mut watch, family, &state.remove_unclaimed()) {
                // Somebody's rule leads to one of them. They do no harm.
                Err(failure @ Error::Failed { .. }) => {
                    tracing::warn!(%failure, "chains that are not needed any more stay");
                }
                result => result?,
            }
            states.insert(family, state);
        }
        self.written = Some(Whole { facts, states, watch });
        self.sticky.clear();
        for (key, plan) in plan.services() {
            self.note_sticky(key, Some(plan));
        }
        Ok(())
    }

    fn note_sticky(&mut self, key: &NamespacedName, plan: Option<&Arc<ServicePlan>>) {
        if plan.is_some_and(|plan| recent::needs_lists(plan)) {
            self.sticky.insert(key.clone());
        } else {
            self.sticky.remove(key);
        }
    }

    fn warn(&mut self) {
        let warning = recent::warning(recent::limit(), &self.sticky);
        if let (Some(warning), None) = (&warning, &self.warning) {
            tracing::warn!("{warning}");
        }
        self.warning = warning;
    }

    /// Removes ours from what is there of a variant.
    fn clean(&self, programs: &Programs) -> Result<(), Error> {
        for family in programs.families() {
            let mut found = match programs.read_existing(family) {
                // The kernel need not have the variant that is not used.
                Err(Error::Failed { .. }) if programs.variant != self.programs.variant => continue,
                found => found?,
            };
            let mut change = Change::default();
            for hook in found.hooks.drain(..) {
                let line = format!("-D {} {}", hook.from, hook.rule);
                change.hooks.push((hook.table, line));
            }
            // A jump to our chains is one of ours, whoever wrote it, and no use without them.
            for (table, rule) in found.foreign.drain(..) {
                change.hooks.push((table, format!("-D {rule}")));
            }
            change.gone = State::new(family, found).remove_unclaimed().gone;
            for input in text::inputs(&change, programs.variant.lines_per_input()) {
                programs.restore(family, &input)?;
            }
        }
        Ok(())
    }
}

/// The services with what is planned for them.
fn planned<'a>(
    plan: &'a Plan,
    keys: impl IntoIterator<Item = &'a NamespacedName>,
) -> impl Iterator<Item = (&'a NamespacedName, Option<&'a ServicePlan>)> {
    keys.into_iter().map(|key| (key, plan.service(key).map(|plan| &**plan)))
}

fn write(
    programs: &Programs,
    watch: &mut Watch,
    family: Family,
    change: &Change,
) -> Result<(), Error> {
    for input in text::inputs(change, programs.variant.lines_per_input()) {
        tracing::debug!(family = family.name(), bytes = input.len(), "write chains");
        watch.about_to_write()?;
        let writer = programs.restore(family, &input)?;
        watch.wrote(writer)?;
    }
    Ok(())
}

impl Backend for Iptables {
    fn sync(
        &mut self,
        plan: &Plan,
        changed: Option<&[NamespacedName]>,
    ) -> Result<(), BackendError> {
        match changed {
            Some(changed) => self.sync_changed(plan, changed)?,
            None => self.sync_all(plan)?,
        }
        self.warn();
        Ok(())
    }

    fn disturbed(&mut self) -> Result<bool, BackendError> {
        let Some(whole) = &mut self.written else { return Ok(false) };
        Ok(whole.watch.disturbed(&self.programs, &whole.states)?)
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

    fn cleanup(&mut self) -> Result<(), BackendError> {
        self.written = None;
        self.sticky.clear();
        let variants = Variant::ALL.map(Programs::find).into_iter().flatten();
        let failures: Vec<_> =
            variants.filter_map(|programs| self.clean(&programs).err()).collect();
        match failures.into_iter().next() {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }
}
