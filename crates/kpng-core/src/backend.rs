//! The one interface between the pipeline and the data path.

use std::error::Error;

use crate::model::NamespacedName;
use crate::plan::Plan;

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

    /// Removes everything that this backend ever installed, also by an earlier process. Goes on
    /// after a failure.
    ///
    /// # Errors
    /// The failures, when something of it is still there.
    fn cleanup(&mut self) -> Result<(), BackendError>;
}

/// Why a backend failed; it says itself what was attempted and on which object.
pub type BackendError = Box<dyn Error + Send + Sync>;
