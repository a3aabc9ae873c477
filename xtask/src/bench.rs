//! Benchmarks: what clusters of several sizes cost.
//!
//! Each size is measured by a process of its own, so that memory figures are honest. Figures are
//! compared with targets, and with the smallest size of the same run.

mod backends;
mod cluster;
mod core;
mod ebpf;
mod fanout;
mod haproxy;
mod kube;
mod kube_proxy;
mod nft;
mod process;
mod table;
mod traffic;

use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

pub(crate) use self::fanout::{WatchersArguments, watchers};
use self::table::{Figures, Table};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// The store and the planner.
    Core,
    /// The nftables backend, with the kernel.
    Nft,
    /// The eBPF backend, with the kernel.
    Ebpf,
    /// Lists of the API server, decoded into a store.
    Kube,
    /// The gRPC server, with many watchers.
    Fanout,
    /// All backends: control plane and packets.
    Backends,
    /// The process beside kube-proxy in the mode alike, with a real API server (iptables, nft).
    KubeProxy,
    /// The packets of one backend.
    #[value(hide = true)]
    Traffic,
}

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to measure.
    subject: Subject,
    /// Numbers of services, ascending; `44k` and `5k` or `5kx50` (endpoints for each service).
    #[arg(long, visible_alias = "services", value_delimiter = ',')]
    sizes: Option<Vec<Size>>,
    #[command(flatten)]
    load: fanout::Load,
    #[command(flatten)]
    which: backends::Which,
    /// Print JSON instead of tables (backends).
    #[arg(long)]
    json: bool,
    /// Measure little and fast, to see whether it works.
    #[arg(long)]
    quick: bool,
}

/// Arguments of a process that measures one size.
#[derive(Debug, Args)]
pub(crate) struct MeasureArguments {
    subject: Subject,
    size: Size,
    changes: usize,
    #[command(flatten)]
    load: fanout::Load,
    #[command(flatten)]
    which: backends::Which,
}

/// The size of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    services: usize,
    /// Endpoints of each service.
    endpoints: usize,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    /// `SERVICES` or `SERVICESxENDPOINTS`, where services may end in `k`.
    fn from_str(text: &str) -> Result<Self> {
        let (services, endpoints) = text.split_once('x').unwrap_or((text, "2"));
        let (services, factor) = match services.strip_suffix('k') {
            Some(thousands) => (thousands, 1000),
            None => (services, 1),
        };
        let services = services.parse::<usize>().with_context(|| format!("no size: {text}"))?;
        let endpoints = endpoints.parse().with_context(|| format!("no size: {text}"))?;
        ensure!((1..=60_000).contains(&services), "1 to 60k services, not {text}");
        ensure!((1..=200).contains(&endpoints), "1 to 200 endpoints for each service, not {text}");
        Ok(Self { services: services * factor, endpoints })
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { services, endpoints } = self;
        match services % 1000 {
            0 => write!(f, "{}kx{endpoints}", services / 1000),
            _ => write!(f, "{services}x{endpoints}"),
        }
    }
}

/// Measures all sizes and prints a table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let default = match (arguments.subject, arguments.quick) {
        (_, true) => "1k,4k",
        (Subject::Nft, false) => "1k,10k,44k,5kx50",
        (_, false) => "1k,10k,44k",
    };
    let sizes = match &arguments.sizes {
        Some(sizes) => sizes.clone(),
        None => default.split(',').map(str::parse).collect::<Result<_>>()?,
    };
    if arguments.subject == Subject::Kube {
        let sizes: Vec<_> = sizes.iter().map(|size| size.services).collect();
        return kube::run(&sizes);
    }
    let changes = if arguments.quick { 20 } else { 300 };
    if arguments.subject == Subject::KubeProxy {
        return kube_proxy::run(&arguments.which, arguments.sizes.as_deref(), arguments.quick);
    }
    if matches!(arguments.subject, Subject::Backends | Subject::Traffic) {
        return all_backends(arguments, &sizes, changes);
    }
    let targets = match arguments.subject {
        Subject::Nft => nft::TARGETS,
        Subject::Ebpf => ebpf::TARGETS,
        Subject::Fanout => fanout::TARGETS,
        _ => core::TARGETS,
    };
    let mut table = Table::new(targets);
    for size in sizes {
        table.add(
            size,
            in_own_process(arguments.subject, size, changes, arguments.load.arguments().into())?,
        );
    }
    process::print(&table.to_string());
    Ok(())
}

/// Measures the backends that this kernel can run, each at all sizes and with packets.
fn all_backends(arguments: &Arguments, sizes: &[Size], changes: usize) -> Result<()> {
    let mut all = Vec::new();
    for row in arguments.which.rows()? {
        if let Err(error) = (row.default)().open() {
            process::print(&format!("to-{} cannot be measured here: {error:#}\n", row.name));
            continue;
        }
        let which = vec![format!("--backend={}", row.name)];
        let mut json = serde_json::json!({ "backend": row.name });
        if arguments.subject == Subject::Backends {
            let mut table = Table::new(backends::targets(row.name));
            for size in sizes {
                let figures = in_own_process(Subject::Backends, *size, changes, which.clone())?;
                json["sizes"][size.to_string()] = figures.json();
                table.add(size, figures);
            }
            print_table(arguments, &format!("to-{}\n{table}", row.name));
        }
        let figures = in_own_process(Subject::Traffic, sizes[0], changes, which)?;
        json["packets"] = figures.json();
        let mut table = Table::new(traffic::targets(row.name));
        table.add("pod to pod", figures);
        print_table(arguments, &format!("to-{}\n{table}", row.name));
        all.push(json);
    }
    if arguments.json {
        process::print(&format!("{:#}", serde_json::Value::from(all)));
    }
    Ok(())
}

fn print_table(arguments: &Arguments, text: &str) {
    if !arguments.json {
        process::print(text);
    }
}

/// Measures one size and prints the figures for the process that asked.
pub(crate) fn measure(arguments: &MeasureArguments) -> Result<()> {
    let MeasureArguments { subject, size, changes, load, ref which } = *arguments;
    let figures = match subject {
        Subject::Core => core::measure(size, changes)?,
        Subject::Nft => nft::measure(size, changes)?,
        Subject::Ebpf => ebpf::measure(size, changes)?,
        Subject::Fanout => fanout::measure(size, load)?,
        Subject::Backends => backends::measure(which, size, changes)?,
        Subject::Traffic => traffic::measure(which, changes < 100)?,
        Subject::Kube | Subject::KubeProxy => bail!("it measures in one process"),
    };
    process::print(&figures.to_string());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this is no part of kpng")]
fn in_own_process(
    subject: Subject,
    size: Size,
    changes: usize,
    more: Vec<String>,
) -> Result<Figures> {
    let program = std::env::current_exe().context("find this program")?;
    let subject = subject.to_possible_value().context("no subject is hidden")?;
    let output = Command::new(program)
        .args(["measure", subject.get_name(), &size.to_string(), &changes.to_string()])
        .args(more)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("start a process that measures")?;
    ensure!(output.status.success(), "measuring {size} failed");
    String::from_utf8(output.stdout)?.parse()
}
