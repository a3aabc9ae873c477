//! `to-iptables`.

use anyhow::Context;
use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_iptables::{Config, Iptables};

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "iptables",
    about: "iptables-restore, legacy or nft variant; dispatch by a tree of chains",
    mode: "iptables",
    gaps: kpng_iptables::GAPS,
    has_data_path: true,
    uses_conntrack: true,
    default: || Box::new(Config::default()),
};

impl Choice for Config {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        Ok(Box::new(Iptables::open(self.clone()).context("cannot use iptables")?))
    }

    fn ruleset_text(&self, plan: &Plan) -> String {
        kpng_iptables::ruleset_text(plan, self)
    }
}
