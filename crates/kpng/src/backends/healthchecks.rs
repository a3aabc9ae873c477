//! `to-healthchecks`: no data path at all.

use kpng_core::backend::{Backend, BackendError};
use kpng_core::model::NamespacedName;
use kpng_core::plan::Plan;

/// Programs nothing: for those who have a data path of their own and want the health check node ports
/// of Services answered, which is done beside every backend.
#[derive(Clone, Copy, Debug)]
pub struct Healthchecks;

impl Backend for Healthchecks {
    fn sync(&mut self, _: &Plan, _: Option<&[NamespacedName]>) -> Result<(), BackendError> {
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}
