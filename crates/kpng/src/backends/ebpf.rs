//! `to-ebpf`.

use std::path::Path;

use anyhow::Context;
use kpng_core::Backend;
use kpng_core::plan::Plan;
use kpng_ebpf::{Config, Ebpf};

use super::{Choice, Row};

pub(super) const ROW: Row = Row {
    name: "ebpf",
    about: "eBPF programs at sockets and devices; connections inside the node cost nothing",
    mode: "ebpf",
    gaps: kpng_ebpf::GAPS,
    has_data_path: true,
    uses_conntrack: false,
    default: || Box::new(Config::default()),
};

impl Choice for Config {
    fn row(&self) -> Row {
        ROW
    }

    fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        Ok(Box::new(Ebpf::open(self.clone()).context("cannot use eBPF")?))
    }

    fn ruleset_text(&self, plan: &Plan) -> String {
        kpng_ebpf::ruleset_text(plan, self)
    }

    fn within(&self, cgroup: &Path) -> Option<Box<dyn Choice>> {
        Some(Box::new(Self { cgroup_root: Some(cgroup.to_owned()), ..self.clone() }))
    }
}
