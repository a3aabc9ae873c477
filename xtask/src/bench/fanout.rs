//! The gRPC server: what it costs to tell a thousand nodes of each change, and how long it takes.
//!
//! The server is in this process, the watchers are in another, on TCP. Both read the same clock
//! (`CLOCK_MONOTONIC`), so a latency is from the write into the store to the last watcher's Sync.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use kpng_api::proto::localv1::op_item::Op;
use kpng_api::proto::localv1::sets_client::SetsClient;
use kpng_api::proto::localv1::{Position, WatchReq};
use kpng_api::server::{Config, Server, Stats};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use super::Size;
use super::cluster::Cluster;
use super::process::{ms, print, resident, us};
use super::table::{Figures, Limit, Target};

/// What ARCHITECTURE.md promises, for 1,000 watchers and 50 changes a second.
pub(crate) const TARGETS: &[Target] = &[
    Target { figure: "latency to the last watcher, p99 ms", size: "", limit: Limit::Below(100.0) },
    Target { figure: "server, cores", size: "", limit: Limit::Below(1.0) },
    Target { figure: "server RSS per idle watcher, KiB", size: "", limit: Limit::Below(40.0) },
    Target { figure: "CPU per change, us", size: "44kx2", limit: Limit::TimesFirst(1.5) },
];

/// How many watchers, and what happens.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Load {
    /// fanout: how many nodes watch.
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    /// fanout: changes a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// fanout: for how long.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

impl Load {
    /// The arguments that mean this.
    pub(crate) fn arguments(&self) -> [String; 3] {
        let Self { watchers, rate, seconds } = self;
        [format!("--watchers={watchers}"), format!("--rate={rate}"), format!("--seconds={seconds}")]
    }
}

/// Arguments of the process in which the watchers are.
#[derive(Debug, Args)]
pub(crate) struct WatchersArguments {
    /// Where the server is.
    address: String,
    /// How many watch.
    watchers: usize,
}

/// How long a server needs to forget what it encoded for the watchers that just came.
const SETTLE: Duration = Duration::from_secs(12);

/// Measures one size.
pub(crate) fn measure(size: Size, load: Load) -> Result<Figures> {
    let runtime = runtime()?;
    let (mut cluster, store) = Cluster::new(size);
    let stats = Arc::<Stats>::default();
    let config = Config {
        listen: vec!["tcp://127.0.0.1:0".parse()?],
        tls: None,
        local_api: true,
        global_api: true,
        authorization: None,
        default_node: None,
        max_connections: 20_000,
    };
    let server = runtime.block_on(Server::bind(config, Arc::clone(&stats)))?;
    let address = server.addresses()[0].to_string().replace("tcp://", "http://");
    runtime.spawn(server.run(store.clone(), std::future::pending()));

    let (before, _) = resident()?;
    let start = now()?;
    let cpu = process_cpu()?;
    let mut watchers = Watchers::start(&address, load.watchers)?;
    let mut figures = Figures::default();
    figures.push("all watchers have the state, wall ms", ms(now()? - start));
    figures.push("... CPU of the server, ms", ms(process_cpu()? - cpu));
    let (_, peak) = resident()?;
    std::thread::sleep(SETTLE);
    kpng_linux::memory::give_back(); // as `kpng … to-api` does after a crowd
    let (idle, _) = resident()?;
    figures.push("server RSS before, MiB", before);
    figures.push("server RSS peak, MiB", peak);
    #[expect(clippy::cast_precision_loss, reason = "few watchers")]
    let per_watcher = (idle - before) * 1024.0 / load.watchers as f64;
    figures.push("server RSS per idle watcher, KiB", per_watcher);

    let first = store.revision();
    let (cpu, encodings) = (process_cpu()?, stats.encodings.get());
    let begun = now()?;
    let mut written = Vec::new();
    for change in 0..load.rate * load.seconds {
        let due = begun + Duration::from_secs(1) * change / load.rate;
        std::thread::sleep(due.saturating_sub(now()?));
        let n = change as usize * 7919 % size.services;
        written.push(now()?);
        cluster.set_endpoints(n, size.endpoints, change as usize + 1);
    }
    let took = now()? - begun;
    let mut answers = 0;
    while std::mem::replace(&mut answers, stats.answers.get()) != stats.answers.get() {
        std::thread::sleep(Duration::from_secs(1)); // until the last watcher has the last change
    }
    let used = process_cpu()? - cpu;
    let encoded = stats.encodings.get() - encodings;
    let arrived = watchers.stop()?;

    let mut latencies = Vec::new();
    for (index, written) in written.iter().enumerate() {
        let revision = first + 1 + index as u64;
        let arrived = arrived.get(&revision).with_context(|| format!("{revision} is missing"))?;
        latencies.push(arrived.saturating_sub(*written));
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)];
    figures.push("latency to the last watcher, median ms", ms(at(50)));
    figures.push("latency to the last watcher, p99 ms", ms(at(99)));
    figures.push("server, cores", used.as_secs_f64() / took.as_secs_f64());
    let changes = f64::from(load.rate * load.seconds);
    figures.push("CPU per change, us", us(used) / changes);
    #[expect(clippy::cast_precision_loss, reason = "few watchers")]
    figures.push("CPU per change and watcher, us", us(used) / changes / load.watchers as f64);
    #[expect(clippy::cast_precision_loss, reason = "few changes")]
    figures.push("views encoded per change", encoded as f64 / changes);
    Ok(figures)
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("start a runtime")
}

fn now() -> Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).context("read the clock")
}

fn process_cpu() -> Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).context("read the process's clock")
}

/// The other process.
struct Watchers {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Watchers {
    /// Returns when all have the state.
    #[expect(clippy::disallowed_methods, reason = "this is no part of kpng")]
    fn start(address: &str, watchers: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .args(["watchers", address, &watchers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the watchers")?;
        let output = child.stdout.take().context("standard output is a pipe")?;
        let mut this = Self { child, output: BufReader::new(output) };
        let mut line = String::new();
        this.output.read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the watchers failed: {line}");
        Ok(this)
    }

    /// Ends them. For each revision: when the last watcher had it.
    fn stop(&mut self) -> Result<std::collections::HashMap<u64, Duration>> {
        let mut input = self.child.stdin.take().context("standard input is a pipe")?;
        input.write_all(b"stop\n")?;
        drop(input);
        let mut arrived = std::collections::HashMap::new();
        for line in (&mut self.output).lines() {
            let line = line?;
            let (revision, nanoseconds) = line.split_once(' ').context("REVISION TIME")?;
            arrived.insert(revision.parse()?, Duration::from_nanos(nanoseconds.parse()?));
        }
        self.child.wait()?;
        Ok(arrived)
    }
}

/// Watches until standard input has a line, then prints when the last watcher had each revision.
pub(crate) fn watchers(arguments: &WatchersArguments) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ready, mut all_ready) = tokio::sync::mpsc::unbounded_channel();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..arguments.watchers {
            let (address, ready, mut stopped) =
                (arguments.address.clone(), ready.clone(), stopped.clone());
            tasks.spawn(async move {
                let mut log = Vec::new();
                tokio::select! {
                    result = watch(address, number, &ready, &mut log) => result?,
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
                Ok::<_, anyhow::Error>(log)
            });
        }
        for _ in 0..arguments.watchers {
            tokio::select! {
                _ = all_ready.recv() => {}
                Some(failed) = tasks.join_next() => { failed??; }
            }
        }
        print("ready");
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
        stop.send_replace(true);
        let mut logs = Vec::new();
        while let Some(log) = tasks.join_next().await {
            logs.push(log??);
        }
        print(&last_arrivals(&logs));
        Ok(())
    })
}

type Log = Vec<(u64, Duration)>;

async fn watch(
    address: String,
    number: usize,
    ready: &tokio::sync::mpsc::UnboundedSender<()>,
    log: &mut Log,
) -> Result<()> {
    let channel = Endpoint::from_shared(address)?.connect().await?;
    let request = WatchReq {
        node_name: format!("node-{number}"),
        push: true,
        have: Some(Position::default()),
        details: true,
    };
    let requests = stream::once(std::future::ready(request)).chain(stream::pending());
    let mut answers = SetsClient::new(channel).watch(requests).await?.into_inner();
    while let Some(item) = answers.message().await? {
        if let Some(Op::Sync(sync)) = item.op {
            if log.is_empty() {
                ready.send(())?;
            }
            log.push((sync.position.context("we asked for positions")?.revision, now()?));
        }
    }
    anyhow::bail!("the server ended the stream")
}

/// A watcher has a revision with the first Sync of it or of a later one.
fn last_arrivals(logs: &[Log]) -> String {
    let first = logs.iter().filter_map(|log| log.first()).map(|(revision, _)| *revision).min();
    let last = logs.iter().filter_map(|log| log.last()).map(|(revision, _)| *revision).min();
    let (Some(first), Some(last)) = (first, last) else { return String::new() };
    let mut text = String::new();
    for revision in first..=last {
        let arrival = |log: &Log| {
            let at = log.partition_point(|(other, _)| *other < revision);
            log[at].1
        };
        if let Some(latest) = logs.iter().map(arrival).max() {
            text += &format!("{revision} {}\n", latest.as_nanos());
        }
    }
    text.truncate(text.trim_end().len());
    text
}
