//! The nftables backend, and by the same steps any other, with the kernel, in a network namespace of
//! its own.

use anyhow::{Context as _, Result, ensure};
use kpng_core::store::Reader;
use kpng_core::{Backend, Planner};
use kpng_linux::namespace::NetNs;
use kpng_nft::{Config, Nft};

use super::Size;
use super::cluster::{Cluster, MORE, NODE, facts};
use super::process::{Cost, cost, ms, push_spread, resident};
use super::table::{Figures, Limit, Target};

const CHANGES: [&str; 4] = [
    "replace endpoint",
    "add/remove endpoint",
    "add/remove service",
    // A chain is made, whose rule makes the kernel walk the map of all endpoints.
    "first pool of its size",
];

/// What ARCHITECTURE.md promises.
pub(crate) const TARGETS: &[Target] = &[
    Target { figure: "cold start, CPU ms", size: "10kx2", limit: Limit::Below(500.0) },
    Target { figure: "cold start, CPU ms", size: "44kx2", limit: Limit::Below(2000.0) },
    Target { figure: "cold start, CPU ms", size: "5kx50", limit: Limit::Below(4000.0) },
    Target { figure: "RSS, MiB", size: "44kx2", limit: Limit::Below(150.0) },
    Target { figure: "RSS, MiB", size: "5kx50", limit: Limit::Below(250.0) },
    Target { figure: "replace endpoint, CPU median us", size: "", limit: Limit::Below(2000.0) },
    Target {
        figure: "replace endpoint, CPU median us",
        size: "44kx2",
        limit: Limit::TimesFirst(1.5),
    },
    Target { figure: "add/remove endpoint, CPU median us", size: "", limit: Limit::Below(2000.0) },
    Target {
        figure: "add/remove endpoint, CPU median us",
        size: "44kx2",
        limit: Limit::TimesFirst(1.5),
    },
    Target { figure: "add/remove service, CPU median us", size: "", limit: Limit::Below(2000.0) },
    Target {
        figure: "add/remove service, CPU median us",
        size: "44kx2",
        limit: Limit::TimesFirst(1.5),
    },
];

/// Measures one size.
pub(crate) fn measure(size: Size, changes: usize) -> Result<Figures> {
    measure_backend(size, changes, || Ok(Box::new(Nft::open(Config::default())?)))
}

/// Opens a backend.
pub(super) type Open<'a> = &'a (dyn Fn() -> Result<Box<dyn Backend>> + Sync);

/// Measures one size of any backend.
pub(super) fn measure_backend(
    size: Size,
    changes: usize,
    open: impl Fn() -> Result<Box<dyn Backend>> + Sync,
) -> Result<Figures> {
    let namespace = NetNs::new().context("a network namespace needs root")?;
    namespace.run(|| Node::start(size, &open)?.measure(changes))?
}

/// Everything that runs on a node.
struct Node<'a> {
    open: Open<'a>,
    size: Size,
    cluster: Cluster,
    reader: Reader,
    planner: Planner,
    backend: Box<dyn Backend>,
    figures: Figures,
}

impl<'a> Node<'a> {
    fn start(size: Size, open: Open<'a>) -> Result<Self> {
        let mut figures = Figures::default();
        let (cluster, store) = Cluster::new(size);
        let mut reader = store.reader();
        let mut planner = Planner::new(NODE, facts());
        let mut backend = open()?;
        let (plan, _) = cost(|| {
            let update = reader.try_next().context("the store is synced")?;
            Ok(planner.update(&update))
        })?;
        let (_, before) = resident()?;
        let (write, ()) = cost(|| backend.sync(planner.plan(), None).map_err(boxed))?;
        figures.push("cold start, wall ms", ms(plan.wall + write.wall));
        figures.push("cold start, CPU ms", ms(plan.cpu + write.cpu));
        figures.push("... of it planning, CPU ms", ms(plan.cpu));
        kpng_linux::memory::give_back(); // as kpng does when everything is in force
        let (now, peak) = resident()?;
        figures.push("RSS before, MiB", before);
        figures.push("RSS, MiB", now);
        figures.push("RSS peak, MiB", peak);
        Ok(Self { open, size, cluster, reader, planner, backend, figures })
    }

    fn measure(mut self, changes: usize) -> Result<Figures> {
        let Size { services, endpoints } = self.size;
        self.restart()?;
        let spread = |change: usize| change * 7919 % services;
        let mut costs = [const { Vec::new() }; 4];
        for change in 0..changes {
            let n = spread(change);
            costs[0].push(self.change(|c| c.set_endpoints(n, endpoints, change + 1))?);
        }
        for change in 0..changes {
            let n = spread(change);
            costs[1].push(self.change(|c| c.set_endpoints(n, endpoints + 1, change + 1))?);
            costs[1].push(self.change(|c| c.set_endpoints(n, endpoints, change + 1))?);
        }
        for change in 0..changes {
            let n = services + change;
            costs[2].push(self.change(|cluster| cluster.add_service(n))?);
            costs[2].push(self.change(|cluster| cluster.remove_service(n))?);
        }
        for change in 2..MORE {
            costs[3].push(self.change(|c| c.set_endpoints(0, endpoints + change, 0))?);
        }
        ensure!(
            !self.backend.disturbed().map_err(boxed)?,
            "a change of ours was taken for another's"
        );
        for (name, costs) in CHANGES.iter().zip(&costs) {
            push_spread(&mut self.figures, name, costs);
        }
        Ok(self.figures)
    }

    /// From the write into the store to the kernel's acknowledgement.
    fn change(&mut self, write: impl FnOnce(&mut Cluster)) -> Result<Cost> {
        let (cost, ()) = cost(|| {
            write(&mut self.cluster);
            let update = self.reader.try_next().context("something changed")?;
            let changes = self.planner.update(&update);
            ensure!(changes.services.len() == 1, "one service changed: {:?}", changes.services);
            self.backend.sync(self.planner.plan(), Some(&changes.services)).map_err(boxed)
        })?;
        Ok(cost)
    }

    /// A new process takes over what is there, and changes nothing.
    fn restart(&mut self) -> Result<()> {
        ensure!(!self.backend.disturbed().map_err(boxed)?, "somebody else is in our namespace");
        let mut restarted = (self.open)()?;
        let (cost, ()) = cost(|| restarted.sync(self.planner.plan(), None).map_err(boxed))?;
        ensure!(!self.backend.disturbed().map_err(boxed)?, "a restart changed something");
        self.figures.push("restart, wall ms", ms(cost.wall));
        self.figures.push("restart, CPU ms", ms(cost.cpu));
        Ok(())
    }
}

fn boxed(error: kpng_core::backend::BackendError) -> anyhow::Error {
    anyhow::anyhow!(error)
}
