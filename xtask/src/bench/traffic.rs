//! What packets cost through a service, beside a direct connection in the same run: new connections,
//! and bytes. The proxy of userspace is measured beside HAProxy too, where that is installed.
//!
//! Clients, servers, the kernel's work for them and our own proxy are in this process, so its
//! processor time is that of all of it. HAProxy's is added.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kpng_core::model::Family;
use kpng_testkit::conformance::{OnNode, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Topology};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, getrlimit};

use super::backends::{Which, choice, place};
use super::haproxy::Haproxy;
use super::process::{process_cost, resident};
use super::table::{Figures, Limit, Target};

const CLUSTER: &str = "
    service t/web cluster=cluster.1 port=http:80 port=sink:81
    slice t/web http=8080 sink=8081
      pod1";
const GIB: u64 = 1 << 30;
/// Connections are made in turns, so that all ways meet the same noise.
const TURNS: usize = 40;
/// How many idle connections a proxy holds, where the limit of open files allows it: all four ends are
/// in this process.
const IDLE: usize = 10_000;
const FILES_PER_CONNECTION: u64 = 4;
/// Files that are open for other reasons, at most.
const OTHER_FILES: u64 = 500;

/// What the backends promise, of those that have a promise.
pub(crate) fn targets(backend: &str) -> &'static [Target] {
    match backend {
        "nft" => &[Target { figure: NEW, size: "", limit: Limit::Below(1.03) }],
        "ebpf" => &[
            Target { figure: NEW, size: "", limit: Limit::Below(1.03) },
            Target { figure: BYTES, size: "", limit: Limit::Below(1.03) },
        ],
        "userspacelin" => &[
            Target { figure: NEW_PEER, size: "", limit: Limit::Below(1.0) },
            Target { figure: CPU_PEER, size: "", limit: Limit::Below(1.0) },
            // 100 MiB for 10,000.
            Target { figure: IDLE_MEMORY, size: "", limit: Limit::Below(10.24) },
        ],
        _ => &[],
    }
}

const NEW: &str = "connection, time, service : direct";
const BYTES: &str = "GiB, time, service : direct";
const NEW_PEER: &str = "connection, time, service : HAProxy";
const CPU_PEER: &str = "GiB, CPU, service : HAProxy";
const IDLE_MEMORY: &str = "RSS for each idle connection, KiB";

/// One way to the server.
struct Way {
    name: &'static str,
    greeter: SocketAddr,
    sink: SocketAddr,
}

/// Measures the packets of one backend.
pub(crate) fn measure(which: &Which, quick: bool) -> Result<Figures> {
    let rows = which.rows()?;
    ensure!(rows.len() == 1, "one backend is measured at a time");
    let row = rows[0];
    let network =
        Network::new(Topology { pods: 2, remote_pods: 0 }).context("network namespaces")?;
    let place = place(row, &network);
    let choice = choice(row, place.as_ref());
    let node = OnNode::new(&network, move || choice.open().expect("it was opened before"));
    node.sync(plan_of(CLUSTER).plan(), None);
    let (client, server) = (network.pod(2), network.pod(1));
    let (pod, vip) = (server.v4(), address("cluster.1", Family::V4));
    accept(server, SocketAddr::new(pod, 8080), greet);
    accept(server, SocketAddr::new(pod, 8081), swallow);
    let at = |name, ip, greeter, sink| Way {
        name,
        greeter: SocketAddr::new(ip, greeter),
        sink: SocketAddr::new(ip, sink),
    };
    let mut ways = vec![at("direct", pod, 8080, 8081), at("service", vip, 80, 81)];
    let is_proxy = row.name == "userspacelin";
    let haproxy = if is_proxy { Haproxy::start(&network.node, pod, [8080, 8081])? } else { None };
    if haproxy.is_some() {
        let [greeter, sink] = Haproxy::PORTS;
        ways.push(at("HAProxy", network.node.v4(), greeter, sink));
    }
    let mut figures = Figures::default();
    connections(client, &ways, if quick { 50 } else { 500 }, &mut figures)?;
    bytes(client, &ways, haproxy.as_ref(), if quick { 1 } else { 5 }, &mut figures)?;
    if is_proxy {
        let (connections, growth) = idle_memory(client, ways[1].sink)?;
        figures.push("idle connections", connections as f64);
        figures.push(IDLE_MEMORY, growth * 1024.0 / connections as f64);
    }
    node.cleanup();
    Ok(figures)
}

/// Serves connections until this process ends.
fn accept(host: &Host, at: SocketAddr, serve: fn(TcpStream)) {
    let listener = host.run(move || TcpListener::bind(at).expect("the port is free"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            serve(stream);
        }
    });
}

/// So the client knows that it was served.
fn greet(mut stream: TcpStream) {
    drop(stream.write(b"!"));
}

/// Reads everything, then says so.
fn swallow(mut stream: TcpStream) {
    let work = move || {
        let mut first = [0];
        if stream.read(&mut first).is_ok_and(|length| length > 0) {
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            drop(stream.write(b"!"));
        }
    };
    drop(std::thread::Builder::new().stack_size(64 * 1024).spawn(work));
}

fn connections(client: &Host, ways: &[Way], many: usize, figures: &mut Figures) -> Result<()> {
    let mut times = vec![Vec::new(); ways.len()];
    for turn in 0..TURNS {
        for number in 0..ways.len() {
            // The first of a turn is another one in the next.
            let way = (turn + number) % ways.len();
            let to = ways[way].greeter;
            times[way].push(client.run(move || connect(to, many))?.as_secs_f64());
        }
    }
    for (way, times) in ways.iter().zip(&times) {
        let rate = many as f64 / median(times.iter().copied());
        figures.push(format!("connections per second, {}", way.name), rate);
    }
    let ratio = |other: usize| median(times[1].iter().zip(&times[other]).map(|(a, b)| a / b));
    figures.push(NEW, ratio(0));
    if ways.len() > 2 {
        figures.push(NEW_PEER, ratio(2));
    }
    Ok(())
}

/// Makes connections one after the other, each until the server has said something. They end with a
/// reset, so that no port waits.
fn connect(to: SocketAddr, many: usize) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..many {
        let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
        stream.read_exact(&mut [0]).with_context(|| format!("a greeting from {to}"))?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(start.elapsed())
}

fn bytes(
    client: &Host,
    ways: &[Way],
    haproxy: Option<&Haproxy>,
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    let (mut times, mut cpus) = (vec![Vec::new(); ways.len()], vec![Vec::new(); ways.len()]);
    for _ in 0..rounds {
        for (number, way) in ways.iter().enumerate() {
            let before = haproxy.map(Haproxy::cpu_time).transpose()?.unwrap_or_default();
            let to = way.sink;
            let (cost, ()) = process_cost(|| client.run(move || send(to, GIB)))?;
            let after = haproxy.map(Haproxy::cpu_time).transpose()?.unwrap_or_default();
            times[number].push(cost.wall.as_secs_f64());
            cpus[number].push((cost.cpu + after.saturating_sub(before)).as_secs_f64());
        }
    }
    let ratio = |of: &[Vec<f64>], other: usize| {
        median(of[1].iter().zip(&of[other]).map(|(service, other)| service / other))
    };
    for (way, times) in ways.iter().zip(&times) {
        let rate = 1.0 / median(times.iter().copied());
        figures.push(format!("GiB per second, {}", way.name), rate);
    }
    figures.push(BYTES, ratio(&times, 0));
    for (way, cpus) in ways.iter().zip(&cpus) {
        figures.push(format!("CPU s per GiB, {}", way.name), median(cpus.iter().copied()));
    }
    figures.push("GiB, CPU, service : direct", ratio(&cpus, 0));
    if ways.len() > 2 {
        figures.push(CPU_PEER, ratio(&cpus, 2));
    }
    Ok(())
}

/// Sends so many bytes, and waits until they were read.
fn send(to: SocketAddr, count: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    let chunk = vec![0x5a; 1 << 18];
    for _ in 0..count / chunk.len() as u64 {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(())
}

/// Opens many connections that say nothing: how many, and by how many MiB this process grows, both their
/// ends included.
fn idle_memory(client: &Host, to: SocketAddr) -> Result<(usize, f64)> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let many = limit.saturating_sub(OTHER_FILES) / FILES_PER_CONNECTION;
    let many = usize::try_from(many).unwrap_or(IDLE).min(IDLE);
    let (before, _) = resident()?;
    let open = move || (0..many).map(|_| TcpStream::connect(to)).collect::<Result<Vec<_>, _>>();
    let streams = client.run(open).context("open many connections")?;
    std::thread::sleep(Duration::from_secs(1));
    let (after, _) = resident()?;
    drop(streams);
    Ok((many, after - before))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
