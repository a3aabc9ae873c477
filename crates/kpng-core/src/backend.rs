//! The one interface between the pipeline and the data path.

mod traffic;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

pub use traffic::{Counting, Counts, Traffic};

use crate::model::{Family, NamespacedName, Protocol};
use crate::plan::{Action, At, FrontendKey, LOCALHOST, NodeFacts, Packet, Plan, ServicePlan};

/// A mechanism that makes a node behave as a [`Plan`] says.
///
/// A backend knows nothing of Kubernetes and decides no policy. It remembers what it last wrote and
/// writes the difference; it does not retry, as the pipeline calls again after a failure, with
/// `changed` being `None`.
pub trait Backend: Send {
    /// Makes the node equal to `plan`. `changed` names the services that differ from the last
    /// successful call; `None` means all, and that what the kernel holds is not known.
    ///
    /// # Errors
    /// When the node may differ from the plan afterwards.
    fn sync(&mut self, plan: &Plan, changed: Option<&[NamespacedName]>)
    -> Result<(), BackendError>;

    /// Whether somebody else changed what this backend installed, or may have, since the last
    /// successful `sync`. Asked every second, so it costs next to nothing; the answer yes makes the
    /// pipeline call `sync` with `None`.
    ///
    /// # Errors
    /// When it cannot be known any more.
    fn disturbed(&mut self) -> Result<bool, BackendError> {
        Ok(false)
    }

    /// How what the kernel holds differs from `plan`; `None` when the mechanism cannot tell. Reads
    /// everything from the kernel and changes nothing, neither there nor in the backend.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn audit(&mut self, _plan: &Plan) -> Result<Option<Audit>, BackendError> {
        Ok(None)
    }

    /// What the kernel holds for a frontend of `plan`, line by line for people, and what it lacks;
    /// `None` when the mechanism cannot tell. Reads from the kernel and changes nothing. `plan` need
    /// not have other Services than the frontend's.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn holds(
        &mut self,
        _plan: &Plan,
        _frontend: &FrontendKey,
    ) -> Result<Option<Vec<String>>, BackendError> {
        Ok(None)
    }

    /// How full the mechanism's own tables are, for those that have a size. Asked after each sync, so
    /// it costs next to nothing.
    fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }

    /// What the mechanism cannot do at all. Everything else has to work.
    fn gaps(&self) -> &'static [Gap] {
        &[]
    }

    /// The numbers that it keeps, for monitoring; `None` when it keeps none. Asked once.
    fn metrics(&self) -> Option<Arc<dyn Metrics>> {
        None
    }

    /// What happens at frontends, for monitoring; `None` when nobody counts it. Asked once.
    fn traffic(&self) -> Option<Arc<dyn Traffic>> {
        None
    }

    /// The process is about to end: finishes what goes through it. Takes no longer than the backend's
    /// configuration says. What is installed stays.
    fn drain(&mut self) {}

    /// Removes everything that this backend ever installed, also by an earlier process. Goes on
    /// after a failure.
    ///
    /// # Errors
    /// The failures, when something of it is still there.
    fn cleanup(&mut self) -> Result<(), BackendError>;
}

/// How what the kernel holds differs from a plan, in terms of the mechanism's objects: elements,
/// chains, rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// How many objects the plan asks for.
    pub wanted: usize,
    /// How many of them the kernel holds just so.
    pub found: usize,
    /// Those that it does not hold.
    pub missing: Objects,
    /// Those that it holds differently.
    pub differing: Objects,
    /// What nobody asked for.
    pub foreign: Objects,
    /// What is ours and does nothing: left for a while to be used again, or about to be deleted.
    pub unused: usize,
}

impl Audit {
    /// The kernel holds what the plan says, and nothing else that matters.
    pub fn is_equal(&self) -> bool {
        self.missing.count + self.differing.count + self.foreign.count == 0
    }

    /// Counts an object that the plan asks for. Its name is made only if it is wanted.
    pub fn count(&mut self, is_there: bool, name: impl FnOnce() -> String) {
        self.wanted += 1;
        match is_there {
            true => self.found += 1,
            false => self.missing.add(name),
        }
    }
}

/// Some objects: how many, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// How many.
    pub count: usize,
    /// The first [`Objects::NAMED`] of them.
    pub names: Vec<String>,
}

impl Objects {
    /// So many are named.
    pub const NAMED: usize = 20;

    /// Adds one. Its name is made only if it is wanted.
    pub fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.names.len() < Self::NAMED {
            self.names.push(name());
        }
    }
}

impl Extend<String> for Objects {
    fn extend<T: IntoIterator<Item = String>>(&mut self, names: T) {
        names.into_iter().for_each(|name| self.add(|| name));
    }
}

/// How full a table of a mechanism is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The table's name.
    pub table: &'static str,
    /// How many elements it holds.
    pub elements: usize,
    /// How many it can hold.
    pub capacity: usize,
}

/// Something that a backend cannot do, because its mechanism cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What it cannot do.
    pub what: Capability,
    /// Why the mechanism cannot do it, for people.
    pub why: &'static str,
}

/// What a plan can ask of a backend that not every mechanism can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Capability {
    /// Frontends of protocol SCTP.
    Sctp,
    /// Node ports on 127.0.0.1.
    LocalhostNodePorts,
    /// Endpoints see the addresses of clients where a plan does not masquerade.
    ClientAddress,
}

impl Capability {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::LocalhostNodePorts => "localhost-node-ports",
            Self::ClientAddress => "client-address",
        }
    }

    /// Whether a service asks for it.
    pub fn is_needed_by(self, plan: &ServicePlan, facts: &NodeFacts) -> bool {
        let mut frontends = plan.frontends.iter();
        match self {
            Self::Sctp => frontends.any(|frontend| frontend.protocol == Protocol::Sctp),
            Self::LocalhostNodePorts => {
                let at_node = |at| matches!(at, At::NodePort(Family::V4));
                facts.localhost_node_ports && frontends.any(|frontend| at_node(frontend.at))
            }
            // External policy Local is asked for to have them.
            Self::ClientAddress => frontends.any(|frontend| {
                let is_internal =
                    matches!(frontend.at, At::Vip(ip) if plan.cluster_ips.contains(&ip));
                let kept =
                    matches!(frontend.route.outside, Action::Forward { masquerade: false, .. });
                !is_internal && kept
            }),
        }
    }

    /// Whether what happens to a packet, beside its source address, depends on it.
    pub fn concerns(self, packet: &Packet<'_>) -> bool {
        match self {
            Self::Sctp => packet.protocol == Protocol::Sctp,
            Self::LocalhostNodePorts => packet.destination == LOCALHOST,
            Self::ClientAddress => false,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "SCTP",
            Self::LocalhostNodePorts => "node ports on 127.0.0.1",
            Self::ClientAddress => "client addresses",
        })
    }
}

/// Numbers that a backend keeps while it works. Read from any thread, at any time.
pub trait Metrics: fmt::Debug + Send + Sync {
    /// All of them as they are now.
    fn read(&self) -> Vec<Metric>;
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name as Prometheus' conventions have it, without the prefix of the program and, for a
    /// counter, without `_total`.
    pub name: &'static str,
    /// What it tells, for people.
    pub help: &'static str,
    /// It only grows.
    pub is_counter: bool,
    /// What tells it from others of the same name.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// Why a backend failed; it says itself what was attempted and on which object.
pub type BackendError = Box<dyn Error + Send + Sync>;
