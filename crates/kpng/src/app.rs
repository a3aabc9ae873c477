//! The composition root: what was typed becomes running parts.

mod node;
mod observe;
mod source;

use anyhow::Context;
use clap::CommandFactory;
use kpng_core::store::Store;
use tokio::io::AsyncWriteExt;

use crate::backends;
use crate::cli::{BackendCommand, Cli, Command, LocalArgs, NftArgs, Sink};
use crate::logging;
use crate::signals::Shutdown;
use crate::sinks::{exec, json};

use source::Source;

/// Does what the command line says, until it is done or a signal comes.
///
/// # Errors
/// What the person who typed the command has to know; the causes belong to it.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let (source, local, sink) = match cli.command {
        Command::Version => return print(&version()),
        Command::Completion { shell } => return print_completion(shell),
        Command::Kube { kube, local, sink } => (Source::kube(kube, &local)?, local, sink),
        Command::File { file, local, sink } => (Source::file(file), local, sink),
    };
    logging::start(&cli.logging);
    // One thread is enough, and keeps memory small; long work goes to blocking threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Sink::ToLocal { backend } = sink;
    let result = runtime.block_on(to_local(source, local, backend));
    // What still blocks (a write into the kernel) is bounded; it does not keep us.
    runtime.shutdown_background();
    result
}

async fn to_local(source: Source, local: LocalArgs, backend: BackendCommand) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals().context("cannot listen to signals")?;
    match backend {
        BackendCommand::ToNft(NftArgs { cleanup: true, .. }) => backends::nft_cleanup(),
        BackendCommand::ToNft(nft) if nft.dry_run => {
            node::dry_run(source, &local, &nft, shutdown).await
        }
        BackendCommand::ToNft(nft) => node::run(source, local, nft, shutdown).await,
        BackendCommand::ToJson => {
            let node = node::name(&local)?;
            let (store, source) = source.start(shutdown.clone())?;
            let sink = to_json(&store, node, shutdown);
            source.beside(sink).await
        }
        BackendCommand::ToExec { command } => {
            let node = node::name(&local)?;
            let (store, source) = source.start(shutdown.clone())?;
            let sink = exec::run(&store, node, &command, shutdown.wait());
            source.beside(sink).await
        }
    }
}

async fn to_json(
    store: &Store,
    node: std::sync::Arc<str>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut out = tokio::io::stdout();
    match json::run(store.reader(), node, &mut out, shutdown.wait()).await {
        // Who read has gone: the end of a shell's pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => {
            other.context("cannot write to standard output")?;
            Ok(out.flush().await?)
        }
    }
}

/// The text of `kpng version`.
fn version() -> String {
    let commit = option_env!("KPNG_COMMIT").unwrap_or("unknown");
    format!("kpng {} (commit {commit})\n", env!("CARGO_PKG_VERSION"))
}

fn print_completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kpng", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
