//! `to-nft`.

use anyhow::Context;
use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_nft::{Config, Nft};

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "nft",
    about: "nf_tables over netlink; changes are elements of maps",
    mode: "nftables",
    gaps: kpng_nft::GAPS,
    has_data_path: true,
    uses_conntrack: true,
    default: || Box::new(Config::default()),
};

impl Choice for Config {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        let nft = Nft::open(self.clone());
        Ok(Box::new(nft.context(
            "cannot use nf_tables: it takes root (CAP_NET_ADMIN) and a kernel with CONFIG_NF_TABLES",
        )?))
    }

    fn ruleset_text(&self, plan: &Plan) -> String {
        kpng_nft::ruleset_text(plan, self)
    }
}
