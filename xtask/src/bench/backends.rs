//! Every backend of the binary, on the node of a virtual network: what the control plane costs at
//! several sizes, and what a packet costs beside a direct connection.
//!
//! Costs of the control plane are those of the whole process and of the programs that it starts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use kpng::backends::{ALL, Choice, Row};
use kpng_core::backend::BackendError;
use kpng_core::store::Reader;
use kpng_core::{Backend, Planner};
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::network::{Network, Topology};

use super::Size;
use super::cluster::{Cluster, NODE, facts};
use super::process::{Cost, ms, process_cost, push_spread, resident};
use super::table::{Figures, Limit, Target};

/// How long one kind of change is measured at most: programs that are started are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which backends.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// Backends to measure, by the names that `kpng backends` lists [default: all with a data path].
    #[arg(long, value_delimiter = ',')]
    pub(crate) backend: Vec<String>,
}

impl Which {
    /// The rows that were asked for.
    pub(crate) fn rows(&self) -> Result<Vec<&'static Row>> {
        if self.backend.is_empty() {
            return Ok(ALL.iter().filter(|row| row.has_data_path).collect());
        }
        let row = |name: &String| {
            let row = ALL.iter().find(|row| row.name == name);
            row.with_context(|| format!("no backend is called {name}; `kpng backends` lists them"))
        };
        self.backend.iter().map(row).collect()
    }
}

/// What the backends promise, of those that have a promise.
pub(crate) fn targets(backend: &str) -> &'static [Target] {
    match backend {
        "ebpf" => &[
            Target { figure: CHANGE_CPU, size: "44kx2", limit: Limit::Below(1000.0) },
            Target { figure: START_CPU, size: "44kx2", limit: Limit::Below(2000.0) },
        ],
        "nft" => &[
            Target { figure: CHANGE_CPU, size: "44kx2", limit: Limit::TimesFirst(1.5) },
            Target { figure: START_CPU, size: "44kx2", limit: Limit::Below(2000.0) },
        ],
        "userspacelin" => {
            &[Target { figure: CHANGE_CPU, size: "44kx2", limit: Limit::TimesFirst(1.5) }]
        }
        _ => &[],
    }
}

const START_CPU: &str = "cold start, CPU ms";
const CHANGE_CPU: &str = "replace endpoint, CPU median us";

/// Measures one backend at one size.
pub(crate) fn measure(which: &Which, size: Size, changes: usize) -> Result<Figures> {
    let rows = which.rows()?;
    ensure!(rows.len() == 1, "one backend is measured at a time");
    let network = Network::new(Topology { pods: 1, remote_pods: 0 }).context("no namespaces")?;
    let place = place(rows[0], &network);
    let choice = choice(rows[0], place.as_ref());
    network.node.namespace().run(|| Node::start(&*choice, size)?.measure(changes))?
}

/// What a backend needs that must not have the whole machine.
pub(super) fn place(row: &Row, network: &Network) -> Option<BpfPlace> {
    (row.name == "ebpf").then(|| BpfPlace::new(network))
}

/// The backend with its defaults, but for its place.
pub(super) fn choice(row: &Row, place: Option<&BpfPlace>) -> Box<dyn Choice> {
    let Some(place) = place else { return (row.default)() };
    let (root, cgroup_root) = (place.pins.clone(), Some(place.cgroup.clone()));
    Box::new(kpng_ebpf::Config { root, cgroup_root, ..Default::default() })
}

/// A pipeline without its loop.
struct Node<'a> {
    size: Size,
    choice: &'a dyn Choice,
    cluster: Cluster,
    reader: Reader,
    planner: Planner,
    backend: Box<dyn Backend>,
    figures: Figures,
}

impl<'a> Node<'a> {
    fn start(choice: &'a dyn Choice, size: Size) -> Result<Self> {
        let mut figures = Figures::default();
        let (cluster, store) = Cluster::new(size);
        let mut reader = store.reader();
        let mut planner = Planner::new(NODE, facts());
        let mut backend = choice.open()?;
        let (start, ()) = process_cost(|| {
            let update = reader.try_next().context("the store is synced")?;
            planner.update(&update);
            backend.sync(planner.plan(), None).map_err(boxed)
        })?;
        figures.push("cold start, wall ms", ms(start.wall));
        figures.push(START_CPU, ms(start.cpu));
        Ok(Self { size, choice, cluster, reader, planner, backend, figures })
    }

    fn measure(mut self, changes: usize) -> Result<Figures> {
        let Size { services, endpoints } = self.size;
        let mut costs = Vec::new();
        let start = Instant::now();
        for change in 0..changes {
            if start.elapsed() > PATIENCE && change > 2 {
                break;
            }
            let n = change * 7919 % services;
            costs.push(self.change(|c| c.set_endpoints(n, endpoints, change + 1))?);
        }
        push_spread(&mut self.figures, "replace endpoint", &costs);
        let (mut costs, start) = (Vec::new(), Instant::now());
        for change in 0..changes {
            if start.elapsed() > PATIENCE && change > 2 {
                break;
            }
            let n = services + change;
            costs.push(self.change(|cluster| cluster.add_service(n))?);
            costs.push(self.change(|cluster| cluster.remove_service(n))?);
        }
        push_spread(&mut self.figures, "add/remove service", &costs);
        let (now, peak) = resident()?;
        self.figures.push("RSS, MiB", now);
        self.figures.push("RSS peak, MiB", peak);
        let mut restarted = self.choice.open()?;
        let plan = self.planner.plan();
        let (restart, ()) = process_cost(|| restarted.sync(plan, None).map_err(boxed))?;
        self.figures.push("restart, wall ms", ms(restart.wall));
        self.figures.push("restart, CPU ms", ms(restart.cpu));
        restarted.cleanup().map_err(boxed)?;
        Ok(self.figures)
    }

    /// From the write into the store to the backend's answer.
    fn change(&mut self, write: impl FnOnce(&mut Cluster)) -> Result<Cost> {
        let (cost, ()) = process_cost(|| {
            write(&mut self.cluster);
            let update = self.reader.try_next().context("something changed")?;
            let changes = self.planner.update(&update);
            self.backend.sync(self.planner.plan(), Some(&changes.services)).map_err(boxed)
        })?;
        Ok(cost)
    }
}

pub(super) fn boxed(error: BackendError) -> anyhow::Error {
    anyhow::anyhow!(error)
}
