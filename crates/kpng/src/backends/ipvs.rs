//! `to-ipvs`.

use anyhow::Context;
use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_ipvs::{Config, Ipvs};

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "ipvs",
    about: "IPVS over netlink, with its schedulers; refusals and masquerading by nf_tables",
    mode: "ipvs",
    gaps: kpng_ipvs::GAPS,
    has_data_path: true,
    uses_conntrack: true,
    default: || Box::new(Config::default()),
};

impl Choice for Config {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        let ipvs = Ipvs::open(self.clone());
        Ok(Box::new(ipvs.context(
            "cannot use IPVS: it takes root (CAP_NET_ADMIN) and a kernel with CONFIG_IP_VS, \
             CONFIG_DUMMY and CONFIG_NF_TABLES",
        )?))
    }

    fn ruleset_text(&self, plan: &Plan) -> String {
        kpng_ipvs::ruleset_text(plan, self)
    }
}
