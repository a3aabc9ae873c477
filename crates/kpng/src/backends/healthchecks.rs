//! `to-healthchecks`: no data path at all.

use kpng_core::backend::{Backend, BackendError};
use kpng_core::model::NamespacedName;
use kpng_core::plan::Plan;

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "healthchecks",
    about: "no data path: only health check node ports are answered",
    mode: "healthchecks",
    gaps: &[],
    has_data_path: false,
    uses_conntrack: false,
    default: || Box::new(Healthchecks),
};

/// Programs nothing: for those who have a data path of their own and want the health check node ports
/// of Services answered, which is done beside every backend.
#[derive(Clone, Copy, Debug)]
pub struct Healthchecks;

impl Choice for Healthchecks {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        Ok(Box::new(*self))
    }

    fn ruleset_text(&self, _: &Plan) -> String {
        String::new()
    }
}

impl Backend for Healthchecks {
    fn sync(&mut self, _: &Plan, _: Option<&[NamespacedName]>) -> Result<(), BackendError> {
        Ok(())
    }

    fn cleanup(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}
