//! The composition root: what was typed becomes running parts.

mod inspect;
mod node;
mod observe;
#[cfg(feature = "playground")]
mod playground;
mod serving;
mod source;
mod watch;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use kpng_api::{client, tls};
use kpng_core::local::Localize;
use kpng_core::store::Store;
use kpng_kube::NodeScope;
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

use crate::backends;
use crate::cli::{ApiArgs, BackendCommand, Chosen, Cli, Command, LocalArgs, Output, Sink, Work};
use crate::logging;
use crate::signals::Shutdown;
use crate::sinks::{exec, file, json};

use serving::{Beside, Serve};
use source::{Cluster, Remote, Source};

/// So many threads send to clients at most: with more, what they share is in their way.
const MAX_WORKERS: usize = 4;

/// Does what the command line says, until it is done or a signal comes.
///
/// # Errors
/// What the person who typed the command has to know; the causes belong to it.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let printed = match cli.command {
        Command::Version => Some(print(&version())),
        Command::Backends { output: Output::Text } => Some(print(&backends::text())),
        Command::Backends { output: Output::Json } => Some(print(&backends::json())),
        Command::Backends { output: Output::Markdown } => Some(print(&backends::markdown())),
        Command::Completion { shell } => Some(print_completion(shell)),
        _ => None,
    };
    if let Some(printed) = printed {
        return printed.map(|()| ExitCode::SUCCESS);
    }
    #[cfg(feature = "playground")]
    if let Command::Playground(args) = cli.command {
        return playground::run(args, cli.logging);
    }
    logging::start(&cli.logging);
    let runtime = runtime(&cli.command)?;
    let result = runtime.block_on(dispatch(cli.command));
    // What still blocks (a write into the kernel) is bounded; it does not keep us.
    runtime.shutdown_background();
    result
}

/// What the process ends with when a command fails: 2 where 1 is an answer.
pub fn failure_code(command: &Command) -> ExitCode {
    match command {
        Command::Diff(_) | Command::Check(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// One thread is enough for a node, and keeps memory small; long work goes to blocking threads. Only
/// who serves many nodes has work for more.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let serves = matches!(
        command,
        Command::Kube { sink: Sink::ToApi(_), .. }
            | Command::File { sink: Sink::ToApi(_), .. }
            | Command::Api { sink: Sink::ToApi(_), .. }
    );
    if !serves {
        return Builder::new_current_thread().enable_all().build();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread().worker_threads(cores.min(MAX_WORKERS)).enable_all().build()
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Explain(args) => inspect::explain(args).await,
        Command::Dump(args) => inspect::dump(args).await,
        Command::Diff(args) => inspect::diff(&args),
        Command::Check(args) => inspect::check(args).await,
        command => follow(command).await.map(|()| ExitCode::SUCCESS),
    }
}

/// Does what goes on until a signal comes, and what ends by itself.
async fn follow(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Kube { kube, local, sink } => {
            // Only its own Node matters to a node.
            let nodes = match sink {
                Sink::ToLocal { .. } => NodeScope::Only(own_name(&local)?.to_string()),
                Sink::ToApi(_) | Sink::ToFile(_) => NodeScope::All,
            };
            let events_of =
                (kube.events && sink.goes_on()).then(|| own_name(&local)).transpose()?;
            from_cluster(Cluster::kube(kube, nodes, events_of)?, local, sink).await
        }
        Command::File { file, local, sink } => {
            if let Sink::ToFile(to) = &sink {
                file::check_distinct(&file.input, &to.output)?;
            }
            from_cluster(Cluster::File(file), local, sink).await
        }
        Command::Api { api, local, sink } => {
            from_cluster(Cluster::Api(api_config(api)?), local, sink).await
        }
        Command::Local { api, local, backend } => {
            let remote = Remote { config: api_config(api)?, node: own_name(&local)? };
            to_local(remote, local, backend).await
        }
        Command::Watch { api, watch, what } => watch::run(&api_config(api)?, &watch, what).await,
        Command::Cleanup => backends::cleanup_all(None),
        // The rest is done by now.
        _ => Ok(()),
    }
}

fn own_name(local: &LocalArgs) -> anyhow::Result<Arc<str>> {
    node::name(local.node.node_name.as_deref())
}

/// How to reach servers. TLS files that cannot be used are an error before anything is done.
fn api_config(api: ApiArgs) -> anyhow::Result<client::Config> {
    let config = api.config();
    if config.tls.is_set() {
        drop(tls::client_config(&config.tls)?);
    }
    Ok(config)
}

fn signals() -> anyhow::Result<Shutdown> {
    Shutdown::on_signals().context("cannot listen to signals")
}

async fn from_cluster(source: Cluster, local: LocalArgs, sink: Sink) -> anyhow::Result<()> {
    match sink {
        Sink::ToLocal { backend } => to_local(source, local, backend).await,
        Sink::ToApi(args) => serving::to_api(source, local, args, signals()?).await,
        Sink::ToFile(args) => {
            let shutdown = signals()?;
            let source = source.start(shutdown.clone())?;
            let store = source.store.clone();
            let sink = file::run(store.reader(), &args.output, args.once, shutdown.wait());
            source.beside(sink).await
        }
    }
}

async fn to_local<S: Source<Value: Serve>>(
    source: S,
    local: LocalArgs,
    backend: BackendCommand,
) -> anyhow::Result<()> {
    let (shutdown, node) = (signals()?, own_name(&local)?);
    match backend.chosen(&local) {
        Chosen::Backend(choice, work) => match work {
            Work::Cleanup => choice.cleanup(),
            Work::DryRun => node::dry_run(source, node, &local, &*choice, shutdown).await,
            Work::Run { replace_kube_proxy } => {
                node::run(source, node, local, choice.into(), replace_kube_proxy, shutdown).await
            }
        },
        Chosen::Json => {
            let api = Beside::bind(&local, &node).await?;
            let source = source.start(shutdown.clone())?;
            let store = source.store.clone();
            let api = api.serve(&store);
            source.beside(to_json(&store, node, shutdown)).await?;
            api.end().await
        }
        Chosen::Exec(command) => {
            let api = Beside::bind(&local, &node).await?;
            let source = source.start(shutdown.clone())?;
            let store = source.store.clone();
            let api = api.serve(&store);
            source.beside(exec::run(&store, node, &command, shutdown.wait())).await?;
            api.end().await
        }
    }
}

async fn to_json<V: Localize>(
    store: &Store<V>,
    node: Arc<str>,
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
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
