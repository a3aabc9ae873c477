//! The backends that this binary has: one table, no registration.
//!
//! A backend is one crate, one variant of [`Choice`] and one row of [`ALL`].

mod healthchecks;

use anyhow::{Context, bail};
use kpng_core::Backend;
use kpng_core::backend::Gap;
use kpng_core::plan::Plan;
use kpng_iptables::Iptables;
use kpng_nft::Nft;
use tracing::debug;

pub use healthchecks::Healthchecks;

/// A backend, and how it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `to-nft`.
    Nft(kpng_nft::Config),
    /// `to-iptables`.
    Iptables(kpng_iptables::Config),
    /// `to-healthchecks`.
    Healthchecks,
}

/// What is known of a backend without using it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, which follows `to-` on the command line.
    pub name: &'static str,
    /// What it is made of, for people.
    pub about: &'static str,
    /// What kube-proxy calls such a mode (`/proxyMode`), or our name for it.
    pub mode: &'static str,
    /// What it cannot do.
    pub gaps: &'static [Gap],
    /// The backend with its defaults.
    pub default: fn() -> Choice,
}

/// All backends, the best first.
pub const ALL: &[Row] = &[
    Row {
        name: "nft",
        about: "nf_tables over netlink; changes are elements of maps",
        mode: "nftables",
        gaps: kpng_nft::GAPS,
        default: || Choice::Nft(kpng_nft::Config::default()),
    },
    Row {
        name: "iptables",
        about: "iptables-restore, legacy or nft variant; dispatch by a tree of chains",
        mode: "iptables",
        gaps: kpng_iptables::GAPS,
        default: || Choice::Iptables(kpng_iptables::Config::default()),
    },
    Row {
        name: "healthchecks",
        about: "no data path: only health check node ports are answered",
        mode: "healthchecks",
        gaps: &[],
        default: || Choice::Healthchecks,
    },
];

impl Choice {
    /// Its row of [`ALL`].
    pub fn row(&self) -> &'static Row {
        match self {
            Self::Nft(_) => &ALL[0],
            Self::Iptables(_) => &ALL[1],
            Self::Healthchecks => &ALL[2],
        }
    }

    /// It decides what becomes of packets, so the connections and parameters of the kernel that go with
    /// that are its business too.
    pub fn has_data_path(&self) -> bool {
        !matches!(self, Self::Healthchecks)
    }

    /// Makes it ready. Changes nothing on the node.
    ///
    /// # Errors
    /// When this node or this process lacks what it needs.
    pub fn open(&self) -> anyhow::Result<Box<dyn Backend>> {
        Ok(match self {
            Self::Nft(config) => Box::new(Nft::open(config.clone()).context(
                "cannot use nf_tables: it takes root (CAP_NET_ADMIN) and a kernel with \
                 CONFIG_NF_TABLES",
            )?),
            Self::Iptables(config) => {
                Box::new(Iptables::open(config.clone()).context("cannot use iptables")?)
            }
            Self::Healthchecks => Box::new(Healthchecks),
        })
    }

    /// What it would write for `plan`, as text.
    pub fn ruleset_text(&self, plan: &Plan) -> String {
        match self {
            Self::Nft(config) => kpng_nft::ruleset_text(plan, config),
            Self::Iptables(config) => kpng_iptables::ruleset_text(plan, config),
            Self::Healthchecks => String::new(),
        }
    }

    /// Removes everything that it ever wrote, with whatever configuration.
    ///
    /// # Errors
    /// When something of it is left.
    pub fn cleanup(&self) -> anyhow::Result<()> {
        cleanup(&mut *self.open()?, self.row())
    }
}

fn cleanup(backend: &mut dyn Backend, row: &Row) -> anyhow::Result<()> {
    let removed = backend.cleanup().map_err(anyhow::Error::from_boxed);
    removed.with_context(|| format!("cannot remove what to-{} wrote", row.name))
}

/// Removes everything that any backend wrote, but `kept`. A backend that this node has not what it
/// needs for has left nothing either.
///
/// # Errors
/// When something is left. All are tried first.
pub fn cleanup_all(kept: Option<&Choice>) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for row in ALL.iter().filter(|row| kept.is_none_or(|kept| kept.row().name != row.name)) {
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
        text += &format!("to-{name:<12} {about}\n");
        for Gap { what, why } in *gaps {
            text += &format!("{:15} not: {what} ({why})\n", "");
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
