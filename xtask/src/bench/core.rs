//! The store and the planner: one change of endpoints, from the write to the new plan.

use anyhow::{Context as _, Result, ensure};
use kpng_core::Planner;

use super::Size;
use super::cluster::{Cluster, NODE, facts};
use super::process::{cost, ms, push_spread, resident};
use super::table::{Figures, Limit, Target};

/// "44,000 services fit in well under 100 MiB, and one change costs microseconds at any size."
pub(crate) const TARGETS: &[Target] = &[
    Target { figure: "store, MiB", size: "44kx2", limit: Limit::Below(100.0) },
    Target { figure: "one change, CPU median us", size: "", limit: Limit::Below(100.0) },
];

/// Measures one size.
pub(crate) fn measure(size: Size, changes: usize) -> Result<Figures> {
    let mut figures = Figures::default();
    let (empty, _) = resident()?;
    let (write, (mut cluster, store)) = cost(|| Ok(Cluster::new(size)))?;
    let (stored, _) = resident()?;
    let mut reader = store.reader();
    let mut planner = Planner::new(NODE, facts());
    let (plan, _) = cost(|| {
        let update = reader.try_next().context("the store is synced")?;
        Ok(planner.update(&update))
    })?;
    let (planned, _) = resident()?;

    let mut costs = Vec::new();
    for change in 0..10 * changes {
        let n = change * 7919 % size.services;
        let (cost, planned) = cost(|| {
            cluster.set_endpoints(n, size.endpoints, change + 1);
            let update = reader.try_next().context("something changed")?;
            Ok(planner.update(&update).planned)
        })?;
        ensure!(planned == 1, "one change planned {planned} services");
        costs.push(cost);
    }
    figures.push("write everything, CPU ms", ms(write.cpu));
    figures.push("plan everything, CPU ms", ms(plan.cpu));
    push_spread(&mut figures, "one change", &costs);
    figures.push("store, MiB", stored - empty);
    figures.push("store and plan, MiB", planned - empty);
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let services = size.services as f64;
    figures.push("store and plan, bytes per service", (planned - empty) * 1048576.0 / services);
    Ok(figures)
}
