//! The backends that this binary has: one table, no registration.
//!
//! A backend is one crate, one feature of this one, one module here with a [`Row`], and its flags in
//! `cli::backends`.

#[cfg(feature = "ebpf")]
mod ebpf;
mod healthchecks;
#[cfg(feature = "iptables")]
mod iptables;
#[cfg(feature = "ipvs")]
mod ipvs;
#[cfg(feature = "nft")]
mod nft;
#[cfg(feature = "userspacelin")]
mod userspacelin;

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use kpng_core::Backend;
use kpng_core::backend::Gap;
use kpng_core::plan::Plan;
use tracing::debug;

pub use healthchecks::Healthchecks;

/// What is known of a backend without using it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, which follows `to-` on the command line.
    pub name: &'static str,
    /// What it is made of, for people.
    pub about: &'static str,
    /// What kube-proxy calls such a mode (`/proxyMode`), or our name for it.
    pub mode: &'static str,
    /// What it cannot do, as its defaults are.
    pub gaps: &'static [Gap],
    /// What becomes of packets is decided, or done, by the node's own stack: parameters of the kernel
    /// that go with that are its business.
    pub has_data_path: bool,
    /// Connections to services are entries of conntrack that lead to endpoints: those of dead UDP
    /// flows have to go.
    pub uses_conntrack: bool,
    /// The backend with its defaults.
    pub default: fn() -> Box<dyn Choice>,
}

/// All backends, the best first.
pub const ALL: &[Row] = &[
    #[cfg(feature = "nft")]
    nft::ROW,
    #[cfg(feature = "iptables")]
    iptables::ROW,
    #[cfg(feature = "ebpf")]
    ebpf::ROW,
    #[cfg(feature = "ipvs")]
    ipvs::ROW,
    #[cfg(feature = "userspacelin")]
    userspacelin::ROW,
    healthchecks::ROW,
];

/// A backend that was chosen, with its configuration.
pub trait Choice: fmt::Debug + Send + Sync {
    /// Its row of [`ALL`].
    fn row(&self) -> Row;

    /// Makes it ready. Changes nothing on the node.
    ///
    /// # Errors
    /// When this node or this process lacks what it needs.
    fn open(&self) -> anyhow::Result<Box<dyn Backend>>;

    /// What it would write for `plan`, as text.
    fn ruleset_text(&self, plan: &Plan) -> String;

    /// The same, for the sockets of the control group in this directory only, with pins where they are
    /// by default. `None` when it does not go beyond its network namespace anyway.
    fn within(&self, _cgroup: &Path) -> Option<Box<dyn Choice>> {
        None
    }
}

impl dyn Choice {
    /// Removes everything that it ever wrote, with whatever configuration.
    ///
    /// # Errors
    /// When something of it is left.
    pub fn cleanup(&self) -> anyhow::Result<()> {
        cleanup(&mut *self.open()?, &self.row())
    }
}

fn cleanup(backend: &mut dyn Backend, row: &Row) -> anyhow::Result<()> {
    let removed = backend.cleanup().map_err(anyhow::Error::from_boxed);
    removed.with_context(|| format!("cannot remove what to-{} wrote", row.name))
}

/// Removes everything that any backend wrote, but the one named `kept`. A backend that this node has
/// not what it needs for has left nothing either.
///
/// # Errors
/// When something is left. All are tried first.
pub fn cleanup_all(kept: Option<&str>) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for row in ALL.iter().filter(|row| kept != Some(row.name)) {
        match (row.default)().open() {
            Ok(mut backend) => problems.extend(cleanup(&mut *backend, row).err()),
            Err(error) => debug!("{error:#}"),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = problems.iter().map(|problem| format!("{problem:#}")).collect();
    bail!("{}", problems.join("; "))
}

/// The table of backends, for people.
pub fn text() -> String {
    let mut text = String::new();
    for Row { name, about, gaps, .. } in ALL {
        text += &format!("to-{name:<14} {about}\n");
        for Gap { what, why } in *gaps {
            text += &format!("{:17} not: {what} ({why})\n", "");
        }
    }
    text
}

/// The table of backends, for programs.
pub fn json() -> String {
    let gap = |Gap { what, why }: &Gap| serde_json::json!({ "what": what.name(), "why": why });
    let row = |row: &Row| {
        let gaps: Vec<_> = row.gaps.iter().map(gap).collect();
        serde_json::json!({
            "name": row.name,
            "command": format!("to-{}", row.name),
            "about": row.about,
            "gaps": gaps,
        })
    };
    let rows: Vec<_> = ALL.iter().map(row).collect();
    format!("{:#}\n", serde_json::Value::from(rows))
}

/// The table of backends, for documents.
pub fn markdown() -> String {
    let mut text = String::from("| command | how | what it cannot do |\n|---|---|---|\n");
    for Row { name, about, gaps, .. } in ALL {
        let gaps: Vec<_> = gaps.iter().map(|Gap { what, why }| format!("{what}: {why}")).collect();
        let gaps = if gaps.is_empty() { "–".to_owned() } else { gaps.join("; ") };
        text += &format!("| `to-{name}` | {about} | {gaps} |\n");
    }
    text
}
