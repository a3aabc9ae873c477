//! `explain`, `dump`, `diff` and `check`: whom to ask, and how the answer ends the process.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use hyper::StatusCode;
use kpng_core::explain::Here;
use kpng_core::store::Store;
use kpng_file::State;
use kpng_linux::rtnetlink::InterfaceAddress;

use crate::admin::{self, Question};
use crate::backends::{self, Choice};
use crate::cli::{AskArgs, CheckArgs, DiffArgs, DumpArgs, ExplainArgs, NodeArgs, Output};
use crate::inspect::{Checked, Subject, diff};
use crate::node_facts::{self, Interfaces};

use super::{node, print};

/// Something differs.
const DIFFERS: u8 = 1;

/// Nobody can tell.
const UNKNOWN: u8 = 2;

pub(super) async fn explain(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let ExplainArgs { source, destination, interface, output, ask } = args;
    let question = Question::Explain { source, destination, interface, output };
    let Some(subject) = file(&ask)? else { return running(&ask, &question).await };
    let explained = subject.explain(&question.query(&subject.here)?, false)?;
    print_as(output, &explained.to_string(), || explained.json())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn dump(args: DumpArgs) -> anyhow::Result<ExitCode> {
    let Some(subject) = file(&args.ask)? else {
        return running(&args.ask, &Question::Dump(args.what)).await;
    };
    for piece in subject.dump(args.what)? {
        print(&piece)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn check(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let Some(subject) = file(&args.ask)? else {
        return running(&args.ask, &Question::Check(args.output)).await;
    };
    let checked = Checked(subject.check()?);
    print_as(args.output, &checked.to_string(), || checked.json())?;
    Ok(exit_code(checked.status()))
}

pub(super) fn diff(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| {
        let state = read(path, args.service_proxy_name.as_deref())?;
        let choice = (backends::ALL[0].default)().into();
        if state.here.is_none() && args.node.node_name.is_none() {
            return Ok(nowhere(state, choice));
        }
        subject(state, &args.node, choice)
    };
    let difference = diff::diff(&read(&args.before)?, &read(&args.after)?)?;
    print_as(args.output, &difference.to_string(), || difference.json())?;
    Ok(if difference.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

fn print_as(
    output: Output,
    text: &str,
    json: impl FnOnce() -> serde_json::Value,
) -> anyhow::Result<()> {
    match output {
        Output::Text | Output::Markdown => print(text),
        Output::Json => print(&format!("{:#}\n", json())),
    }
}

fn exit_code(status: StatusCode) -> ExitCode {
    match status {
        StatusCode::OK => ExitCode::SUCCESS,
        StatusCode::CONFLICT => ExitCode::from(DIFFERS),
        _ => ExitCode::from(UNKNOWN),
    }
}

/// Asks a running process.
async fn running(ask: &AskArgs, question: &Question) -> anyhow::Result<ExitCode> {
    let status = admin::ask(&ask.admin_socket, question, super::print_bytes).await?;
    Ok(exit_code(status))
}

/// The file to be asked, if one is.
fn file(ask: &AskArgs) -> anyhow::Result<Option<Subject>> {
    let Some(path) = &ask.file else { return Ok(None) };
    let row = backends::ALL.iter().find(|row| row.name == ask.backend).with_context(|| {
        let names: Vec<_> = backends::ALL.iter().map(|row| row.name).collect();
        format!("there is no backend {:?}: there are {}", ask.backend, names.join(", "))
    })?;
    let state = read(path, ask.service_proxy_name.as_deref())?;
    subject(state, &ask.node, (row.default)().into()).map(Some)
}

fn read(path: &Path, service_proxy_name: Option<&str>) -> anyhow::Result<State> {
    let service_proxy_name = service_proxy_name.map(str::to_owned);
    Ok(kpng_file::read(path, &kpng_file::Options { service_proxy_name })?)
}

/// What a state is about, seen from the node that a dump names or the flags do.
fn subject(mut state: State, args: &NodeArgs, choice: Arc<dyn Choice>) -> anyhow::Result<Subject> {
    let here = match state.here.take() {
        Some(here) => dumped(here, args)?,
        None => told(&state, args)?,
    };
    let (mut writer, store) = Store::new();
    writer.apply(state.into_batch());
    Ok(Subject { store, here, choice })
}

/// The cluster as such, seen from no node.
fn nowhere(state: State, choice: Arc<dyn Choice>) -> Subject {
    let (mut writer, store) = Store::new();
    writer.apply(state.into_batch());
    Subject { store, here: Here::default(), choice }
}

/// A dump says itself how its node was.
fn dumped(here: Here, args: &NodeArgs) -> anyhow::Result<Here> {
    match &args.node_name {
        Some(name) if node::name(Some(name))? != here.node => bail!(
            "the file is a dump of node {}, and says nothing of how node {name} is; leave out \
             --node-name, or remove \"seenfrom\" from the file",
            here.node
        ),
        _ => Ok(here),
    }
}

/// The node as flags and its Node object say. Where the file is about another machine than this one,
/// the addresses of the Node object are taken for those of its interfaces.
fn told(state: &State, args: &NodeArgs) -> anyhow::Result<Here> {
    let name = match (&args.node_name, state.nodes.len()) {
        (None, 1) => state.nodes.keys().next().map(Arc::clone),
        _ => None,
    };
    let name = match name {
        Some(only) => only,
        None => node::name(args.node_name.as_deref())?,
    };
    let object = state.nodes.get(&name).map(|node| &**node);
    if object.is_none() && !state.nodes.is_empty() {
        let names: Vec<_> = state.nodes.keys().map(|name| &**name).collect();
        bail!("the file has no Node {name:?}: say --node-name; it has {}", names.join(", "));
    }
    let internal_ips = object.map(|node| &node.internal_ips[..]).unwrap_or_default();
    let here = Interfaces::read()?;
    let is_here = here.addresses.iter().any(|own| internal_ips.contains(&own.address));
    let interfaces = if is_here || internal_ips.is_empty() {
        here
    } else {
        let addresses = internal_ips.iter().map(|address| InterfaceAddress {
            index: 0,
            name: String::new(),
            address: *address,
            prefix_len: if address.is_ipv4() { 32 } else { 128 },
            scope: 0, // RT_SCOPE_UNIVERSE
            flags: 0,
        });
        Interfaces { addresses: addresses.collect(), towards_world: Vec::new() }
    };
    let facts = node_facts::facts(&node::settings(args)?, object, &interfaces);
    let addresses = interfaces.addresses.iter().map(|own| own.address).collect();
    Ok(Here { node: name, facts, addresses })
}
