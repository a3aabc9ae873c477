//! The one interface between the pipeline and the data path.

use std::error::Error;
use std::fmt;

use crate::model::{Family, NamespacedName, Protocol};
use crate::plan::{At, LOCALHOST, NodeFacts, Packet, Plan, ServicePlan};

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

    /// What the mechanism cannot do at all. Everything else has to work.
    fn gaps(&self) -> &'static [Gap] {
        &[]
    }

    /// Removes everything that this backend ever installed, also by an earlier process. Goes on
    /// after a failure.
    ///
    /// # Errors
    /// The failures, when something of it is still there.
    fn cleanup(&mut self) -> Result<(), BackendError>;
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
}

impl Capability {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::LocalhostNodePorts => "localhost-node-ports",
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
        }
    }

    /// Whether what happens to a packet depends on it.
    pub fn concerns(self, packet: &Packet<'_>) -> bool {
        match self {
            Self::Sctp => packet.protocol == Protocol::Sctp,
            Self::LocalhostNodePorts => packet.destination == LOCALHOST,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "SCTP",
            Self::LocalhostNodePorts => "node ports on 127.0.0.1",
        })
    }
}

/// Why a backend failed; it says itself what was attempted and on which object.
pub type BackendError = Box<dyn Error + Send + Sync>;
