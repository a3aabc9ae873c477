//! `to-userspacelin`.

use anyhow::Context;
use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_userspace::{Config, Userspace};

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "userspacelin",
    about: "a proxy in this process, to which nf_tables leads services; splices TCP",
    mode: "userspace",
    gaps: kpng_userspace::GAPS,
    has_data_path: true,
    // The proxy knows itself which endpoints are gone, but datagrams that conntrack has led elsewhere
    // since another backend, or no service, was there never come to it.
    uses_conntrack: true,
    default: || Box::new(Config::default()),
};

impl Choice for Config {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        let userspace = Userspace::open(self.clone());
        Ok(Box::new(userspace.context(
            "cannot use nf_tables: it takes root (CAP_NET_ADMIN) and a kernel with CONFIG_NF_TABLES",
        )?))
    }

    fn ruleset_text(&self, plan: &Plan) -> String {
        kpng_userspace::ruleset_text(plan, self)
    }
}
