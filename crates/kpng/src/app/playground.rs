//! `kpng playground`: the real pipeline on the node of a network of namespaces.

use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kpng_core::Backend;
use kpng_core::backend::Capability;
use kpng_core::store::Store;
use kpng_linux::namespace::{
    NetNs, enter_user_namespace, may_make_namespaces, mount_private_bpf, mount_private_memory,
};
use kpng_linux::sysctl;
use kpng_playground::{
    Command, ControlGroup, InForce, Picture, Playground, Proxy, Row, SCENARIOS, Scenario,
    StateFile, World, shell, show, sweep,
};
use tokio::sync::watch;

use crate::backends::{self, Choice};
use crate::cli::{LoggingArgs, NodePortAddresses, PlaygroundArgs, PlaygroundCommand};
use crate::conntrack::Cleaner;
use crate::logging;
use crate::node_facts::{self, NodeSettings, PodDetectionMode};
use crate::pipeline::{Event, Pipeline};
use crate::signals::Shutdown;

/// The name of all threads of the proxy. A pod cannot have it.
const PROXY: &str = "kpng proxy";

/// Where the state file is in memory, for this process only.
const MEMORY: &str = "/run";

/// Where a BPF file system belongs, and this process has one of its own.
const BPF: &str = "/sys/fs/bpf";

/// How long to wait between two packets.
const PAUSE: Duration = Duration::from_millis(15);

/// How long traffic flows before it is told of in lines.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Does what was asked for. No thread may have been started yet: ordinary users enter a user
/// namespace, and that takes a process with a single thread.
pub(super) fn run(args: PlaygroundArgs, logging: LoggingArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(PlaygroundCommand::Shell { host, command }) => {
            shell::enter(&host)?;
            return Err(exec(command));
        }
        Some(PlaygroundCommand::Sweep { group }) => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            sweep(&group)?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    if args.list {
        super::print(&Scenario::list())?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = args.plain || args.once || !std::io::stdout().is_terminal();
    if lines {
        // Warnings, unless somebody wants more; they would be all over the drawing.
        let verbosity = logging.verbosity.saturating_sub(1);
        logging::start(&LoggingArgs { verbosity, ..logging });
    }
    let choice = choice(&args.backend)?;
    let scenario = scenario(&args)?;
    let (choice, group) = confine(choice)?;
    enter_own_world()?;
    if group.is_some() {
        mount_private_bpf(Path::new(BPF))?;
    }
    let (file, state) = state_file(args.state, scenario)?;
    let node = World::node_name(&state).unwrap_or_else(|| "node-a".to_owned());

    let world = World::new(group.as_ref().map(|group| group.hosts.clone()))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (proxy, _end) = start_proxy(world.node_namespace()?, &node, choice, &stop)?;
    let mut playground = Playground::new(world, proxy, node, file, scenario)?;
    if args.once {
        return once(&mut playground, scenario, &stop);
    }
    if lines {
        plain(&mut playground, scenario, &stop)?;
    } else {
        draw(playground, &stop)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn choice(name: &str) -> anyhow::Result<Box<dyn Choice>> {
    let row = backends::ALL.iter().find(|row| row.name == name && row.has_data_path);
    let names = backends::ALL.iter().filter(|row| row.has_data_path).map(|row| row.name);
    let names = || names.collect::<Vec<_>>().join(", ");
    let row = row.with_context(|| {
        format!("no backend to play with is called {name:?}; there are {}", names())
    })?;
    Ok((row.default)())
}

/// The scenario to play, if the state is not given.
fn scenario(args: &PlaygroundArgs) -> anyhow::Result<Option<Scenario>> {
    let given = args.state.as_deref().is_some_and(Path::exists);
    match &args.scenario {
        Some(_) if given => bail!("the state file exists; remove it, or leave out --scenario"),
        Some(name) => Scenario::find(name).map(Some).with_context(|| {
            format!("no scenario is called {name:?}; there are:\n{}", Scenario::list().trim_end())
        }),
        None => Ok((!given).then_some(SCENARIOS[0])),
    }
}

/// A control group of the playground's own, and the process that removes it in the end.
struct Confined {
    _group: ControlGroup,
    /// Where the sockets of the node and its pods are.
    hosts: PathBuf,
    /// Its standard input ends when this process does, however that is.
    _sweeper: Child,
}

/// Gives a backend that serves the sockets of a control group one that has nobody else's.
fn confine(choice: Box<dyn Choice>) -> anyhow::Result<(Box<dyn Choice>, Option<Confined>)> {
    let place = ControlGroup::place();
    let hosts = place.as_deref().map(ControlGroup::hosts).unwrap_or_default();
    let Some(confined) = choice.within(&hosts) else { return Ok((choice, None)) };
    let place = place?;
    // It must be there first, and see what everybody sees.
    let _sweeper = start_sweeper(&place)?;
    let _group = ControlGroup::new(&place).context(
        "this backend serves the sockets of a control group (version 2), and takes root to make one",
    )?;
    Ok((confined, Some(Confined { _group, hosts, _sweeper })))
}

/// Starts the process that outlives this one. No signal that is meant for this one reaches it.
#[expect(clippy::disallowed_methods, reason = "nobody can remove what it is in, after a SIGKILL")]
fn start_sweeper(group: &Path) -> anyhow::Result<Child> {
    let mut sweeper = std::process::Command::new("/proc/self/exe");
    sweeper.args(["playground", "sweep"]).arg(group).arg0("kpng").process_group(0);
    sweeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    sweeper.spawn().context("cannot start the process that removes the control group")
}

/// Namespaces can be had from here on.
fn enter_own_world() -> anyhow::Result<()> {
    if !may_make_namespaces() {
        enter_user_namespace()?;
    }
    let writable = || sysctl::set("net/ipv4/ip_forward", "1");
    NetNs::new()?.run(writable)?.context("a node must be able to forward packets")
}

/// The state file, and the state that it has or is about to have.
fn state_file(
    path: Option<PathBuf>,
    scenario: Option<Scenario>,
) -> anyhow::Result<(StateFile, kpng_file::State)> {
    let file = match path {
        Some(path) => StateFile::new(path.clone(), path),
        None => {
            mount_private_memory(Path::new(MEMORY)).context("give a file with --state")?;
            let path = Path::new(MEMORY).join("cluster.yaml");
            // Who edits it is in the mount namespace of everybody else.
            let root = format!("/proc/{}/root", std::process::id());
            StateFile::new(path.clone(), PathBuf::from(root + &path.to_string_lossy()))
        }
    };
    let options = kpng_file::Options::default();
    let state = match scenario {
        Some(scenario) => kpng_file::parse(scenario.steps[0].0, &options)?,
        None => kpng_file::read(file.shown(), &options)?,
    };
    Ok((file, state))
}

/// Starts a pipeline in the node's namespace. It ends with the process, or when the sender is gone.
fn start_proxy(
    namespace: NetNs,
    node: &str,
    choice: Box<dyn Choice>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(Proxy, watch::Sender<()>)> {
    let (writer, store) = Store::new();
    let (sender, events) = channel();
    let (opened, is_open) = channel();
    let (end, ended) = watch::channel(());
    let row = choice.row();
    let backend = row.name.to_owned();
    let keeps_sources = row.gaps.iter().all(|gap| gap.what != Capability::ClientAddress);
    let (node, stop): (Arc<str>, _) = (node.into(), Arc::clone(stop));
    let work = move || {
        let open = || namespace.enter().map_err(Into::into).and_then(|()| choice.open());
        let result = open().and_then(|backend| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .thread_name(PROXY)
                .build()?;
            Ok((runtime, backend))
        });
        let (result, parts) = match result {
            Ok(parts) => (Ok(()), Some(parts)),
            Err(error) => (Err(error), None),
        };
        // Who started us waits.
        if opened.send(result).is_ok()
            && let Some((runtime, backend)) = parts
        {
            let cleaner = row.uses_conntrack.then(Cleaner::new);
            runtime.block_on(pipeline(store, node, backend, cleaner, sender, stop, ended));
        }
    };
    thread::Builder::new().name(PROXY.to_owned()).spawn(work).context("cannot start a thread")?;
    is_open.recv().context("the proxy's thread ended")??;
    Ok((Proxy { backend, keeps_sources, writer, events }, end))
}

/// What runs on the node: as in `kpng file to-local`, without what only operators need.
async fn pipeline(
    store: Store,
    node: Arc<str>,
    backend: Box<dyn Backend>,
    cleaner: Option<Cleaner>,
    events: Sender<InForce>,
    stop: Arc<AtomicBool>,
    mut ended: watch::Receiver<()>,
) {
    let settings = NodeSettings {
        pods: PodDetectionMode::InterfaceNamePrefix(World::pod_interface_prefix().to_owned()),
        node_port_addresses: NodePortAddresses::Primary,
        localhost_node_ports: false,
        masquerade_all: false,
        service_cidrs: Vec::new(),
        bind_addresses: Vec::new(),
    };
    let (facts, receiver) = watch::channel(None);
    let pipeline = Pipeline {
        reader: store.reader(),
        node: Arc::clone(&node),
        facts: receiver,
        backend,
        min_sync_period: Duration::ZERO,
    };
    let observe = |event: &Event<'_>| {
        if let (Some(cleaner), Event::Synced(synced)) = (&cleaner, event)
            && synced.result.is_ok()
        {
            let changed = (!synced.full).then_some(&synced.changes.services[..]);
            cleaner.update(synced.plan, changed);
        }
        if let Some(event) = in_force(event) {
            // Nobody listens any more when the playground ends.
            drop(events.send(event));
        }
    };
    let signals = async {
        match Shutdown::on_signals() {
            Ok(shutdown) => shutdown.wait().await,
            Err(error) => tracing::warn!("cannot listen to signals: {error}"),
        }
        stop.store(true, Ordering::Release);
        std::future::pending::<()>().await;
    };
    let end = async move { drop(ended.changed().await) };
    let clean = async {
        match &cleaner {
            Some(cleaner) => cleaner.run(|_| {}).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = pipeline.run(observe, end) => {}
        () = node_facts::follow(&settings, &node, &store, &facts) => {}
        () = clean => {}
        () = signals => {}
    }
}

fn in_force(event: &Event<'_>) -> Option<InForce> {
    match event {
        Event::Unchanged { .. } => Some(InForce::Unchanged),
        Event::Synced(synced) => Some(match synced.result {
            Err(error) => InForce::Failed(with_causes(&**error)),
            Ok(()) => InForce::Plan {
                plan: synced.plan.clone(),
                revision: synced.revision,
                duration: synced.duration,
            },
        }),
        _ => None,
    }
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<_> = causes.map(ToString::to_string).collect();
    // Some tell their cause themselves.
    texts.dedup_by(|cause, error| error.contains(&**cause));
    texts.join(": ")
}

/// Goes through all steps and checks each, and what happens between them.
fn once(
    playground: &mut Playground,
    scenario: Option<Scenario>,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let mut wrong = 0;
    for number in 0..scenario.map_or(1, |scenario| scenario.steps.len()) {
        if number > 0 {
            playground.command(Command::Next)?;
            playground.follow_file_to_the_end()?;
        }
        print_heading(&playground.picture())?;
        let meanwhile = playground.meanwhile();
        if let Some(summary) = meanwhile.summary() {
            let is_good = meanwhile.failed.is_empty();
            wrong += usize::from(!is_good);
            super::print(&format!("  {} {summary}\n", sign(is_good)))?;
        }
        for flow in playground.check() {
            if stop.load(Ordering::Acquire) {
                bail!("stopped before everything was checked");
            }
            wrong += usize::from(!flow.good);
            let mut line = line(&flow.row, flow.good);
            if !flow.good {
                line += &format!("  WRONG, expected: {}", flow.expected);
            }
            super::print(&(line + "\n"))?;
        }
        super::print("\n")?;
    }
    super::print(&match wrong {
        0 => "All is as the Services say. Nothing is left behind.\n".to_owned(),
        wrong => format!("{wrong} of these went wrong.\n"),
    })?;
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

/// Goes through the scenario by itself, and then follows the file, in lines.
fn plain(
    playground: &mut Playground,
    scenario: Option<Scenario>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let picture = playground.picture();
    let mut left = scenario.map_or(0, |scenario| scenario.steps.len() - 1);
    let (mut said, mut problem) = (picture.said, None);
    let mut due = Some(Instant::now() + SHOWN_AFTER);
    let show = |text: &str| match std::io::stdout().write_all(text.as_bytes()) {
        // Who read has gone.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.context("cannot write to standard output").map(|()| true),
    };
    if !show(&format!("state file: {}\n\n{}", picture.file, heading(&picture)))? {
        return Ok(());
    }
    while !stop.load(Ordering::Acquire) {
        playground.turn();
        thread::sleep(PAUSE);
        let picture = playground.picture();
        let mut text = String::new();
        let new = (picture.said - said).min(picture.log.len());
        for line in &picture.log[picture.log.len() - new..] {
            text += &format!("  {line}\n");
        }
        if picture.problem != problem {
            let what = picture.problem.as_deref().unwrap_or("the state file is valid again");
            text += &format!("  {what}\n");
        }
        if !text.is_empty() {
            due = Some(Instant::now() + SHOWN_AFTER);
        }
        (said, problem) = (picture.said, picture.problem.clone());
        if due.is_some_and(|due| due <= Instant::now()) {
            due = None;
            for row in &picture.rows {
                text += &(line(row, row.counts.wrong == 0) + "\n");
            }
            text += "\n";
            if left > 0 && !playground.is_edited() {
                left -= 1;
                playground.command(Command::Next)?;
                text += &heading(&playground.picture());
            }
        }
        if !show(&text)? {
            return Ok(());
        }
    }
    Ok(())
}

fn print_heading(picture: &Picture) -> anyhow::Result<()> {
    super::print(&heading(picture))
}

fn heading(picture: &Picture) -> String {
    if picture.step.is_empty() {
        return format!("{}, backend {}\n", picture.file, picture.backend);
    }
    format!("{}: {}\n{}\n", picture.step, picture.title, picture.look)
}

fn line(row: &Row, good: bool) -> String {
    let Row { service, from, to, counts } = row;
    let sign = sign(good);
    let source = counts.source();
    let source = if source.is_empty() { String::new() } else { format!("  source {source}") };
    format!("  {sign} {service:<16} {from:<8} → {to:<24} {}{source}", counts.outcome("  "))
}

fn sign(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

/// Draws until somebody quits.
fn draw(mut playground: Playground, stop: &AtomicBool) -> anyhow::Result<()> {
    let picture = &Mutex::new(playground.picture());
    let (sender, commands) = channel();
    let mut work = move || {
        while !stop.load(Ordering::Acquire) {
            for command in commands.try_iter() {
                playground.command(command)?;
            }
            playground.turn();
            *picture.lock().unwrap_or_else(PoisonError::into_inner) = playground.picture();
            thread::sleep(PAUSE);
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let result = work();
            stop.store(true, Ordering::Release);
            result
        });
        let shown = show(picture, &sender, stop);
        stop.store(true, Ordering::Release);
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(shown?)
    })
}

/// Becomes the command. Returns only if that fails.
#[expect(clippy::disallowed_methods, reason = "it becomes what was asked for, and starts no child")]
fn exec(mut command: Vec<String>) -> anyhow::Error {
    if command.is_empty() {
        command.push(std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned()));
    }
    let error = std::process::Command::new(&command[0]).args(&command[1..]).exec();
    anyhow::Error::new(error).context(format!("cannot run {:?}", command[0]))
}
