//! kpng's chores: `cargo xtask bench`, `cargo xtask pictures` and `cargo xtask tidy`.
//!
//! Whatever can be a test is one: `tidy` runs inside `cargo test` too. Benchmarks are apart, as they
//! take long and their figures belong to one machine.

mod bench;
mod pictures;
mod tidy;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

/// kpng's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Measure what clusters of several sizes cost, and compare with the targets.
    Bench(bench::Arguments),
    /// Draw the pictures of the documentation anew.
    Pictures,
    /// Look for what does not belong into the sources.
    Tidy,
    /// Measure one size, in a process of its own.
    #[command(hide = true)]
    Measure(bench::MeasureArguments),
    /// Be `kpng`, beside another proxy.
    #[command(hide = true)]
    Kpng(Box<kpng::cli::Cli>),
    /// Watch a server as many nodes, in a process of its own.
    #[command(hide = true)]
    Watchers(bench::WatchersArguments),
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Measure(arguments) => bench::measure(&arguments),
        Chore::Kpng(arguments) => kpng::app::run(*arguments).map(|_| ()),
        Chore::Watchers(arguments) => bench::watchers(&arguments),
        Chore::Pictures => pictures::write(&tidy::root()).map(drop),
        Chore::Tidy => {
            let complaints = tidy::check(&tidy::root())?;
            ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
            Ok(())
        }
    }
}
