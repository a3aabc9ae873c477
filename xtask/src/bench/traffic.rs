//! What packets cost through a service, beside a direct connection in the same run: new connections,
//! and bytes.
//!
//! Everything is in this process: clients, servers, the kernel's work for them, and the proxies of
//! userspace. So a processor time is that of all of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kpng_core::model::Family;
use kpng_testkit::conformance::{OnNode, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Topology};
use rustix::net::sockopt::set_socket_linger;

use super::backends::Which;
use super::process::process_cost;
use super::table::{Figures, Limit, Target};

const CLUSTER: &str = "
    service t/web cluster=cluster.1 port=http:80 port=sink:81
    slice t/web http=8080 sink=8081
      pod1";
const GIB: u64 = 1 << 30;
/// Connections are made in turns, so that both ways meet the same noise.
const TURNS: usize = 40;

/// What the backends promise, of those that have a promise.
pub(crate) fn targets(backend: &str) -> &'static [Target] {
    match backend {
        "nft" => &[Target { figure: NEW, size: "", limit: Limit::Below(1.03) }],
        "ebpf" => &[
            Target { figure: NEW, size: "", limit: Limit::Below(1.03) },
            Target { figure: BYTES, size: "", limit: Limit::Below(1.03) },
        ],
        _ => &[],
    }
}

const NEW: &str = "connection, time, service : direct";
const BYTES: &str = "GiB, time, service : direct";

/// Measures the packets of one backend.
pub(crate) fn measure(which: &Which, quick: bool) -> Result<Figures> {
    let rows = which.rows()?;
    ensure!(rows.len() == 1, "one backend is measured at a time");
    let row = rows[0];
    let network =
        Network::new(Topology { pods: 2, remote_pods: 0 }).context("network namespaces")?;
    let node = OnNode::new(&network, || (row.default)().open().expect("it was opened before"));
    node.sync(plan_of(CLUSTER).plan(), None);
    let (client, server) = (network.pod(2), network.pod(1));
    let (pod, vip) = (server.v4(), address("cluster.1", Family::V4));
    accept(server, SocketAddr::new(pod, 8080), greet);
    accept(server, SocketAddr::new(pod, 8081), swallow);
    let mut figures = Figures::default();
    let both = [SocketAddr::new(pod, 8080), SocketAddr::new(vip, 80)];
    connections(client, both, if quick { 50 } else { 500 }, &mut figures)?;
    let both = [SocketAddr::new(pod, 8081), SocketAddr::new(vip, 81)];
    bytes(client, both, if quick { 1 } else { 5 }, &mut figures)?;
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
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
    drop(stream.write(b"!"));
}

fn connections(
    client: &Host,
    both: [SocketAddr; 2],
    many: usize,
    figures: &mut Figures,
) -> Result<()> {
    let (mut ratios, mut sums) = (Vec::new(), [Duration::ZERO; 2]);
    for turn in 0..TURNS {
        let mut times = [Duration::ZERO; 2];
        // The first of a turn is the other one in the next.
        for way in [turn % 2, 1 - turn % 2] {
            let to = both[way];
            times[way] = client.run(move || connect(to, many))?;
            sums[way] += times[way];
        }
        ratios.push(times[1].as_secs_f64() / times[0].as_secs_f64());
    }
    let rate = |sum: Duration| (many * TURNS) as f64 / sum.as_secs_f64();
    figures.push("connections per second, direct", rate(sums[0]));
    figures.push("connections per second, service", rate(sums[1]));
    figures.push(NEW, median(&mut ratios));
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

fn bytes(client: &Host, both: [SocketAddr; 2], rounds: usize, figures: &mut Figures) -> Result<()> {
    let (mut times, mut costs) = (Vec::new(), Vec::new());
    let (mut rates, mut cpus) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        for (way, to) in both.into_iter().enumerate() {
            let (cost, ()) = process_cost(|| client.run(move || send(to, GIB)))?;
            rates[way].push(1.0 / cost.wall.as_secs_f64());
            cpus[way].push(cost.cpu.as_secs_f64());
        }
        let last = |of: &[Vec<f64>; 2]| of[1].last().zip(of[0].last()).map(|(a, b)| a / b);
        times.extend(last(&rates).map(|ratio| 1.0 / ratio));
        costs.extend(last(&cpus));
    }
    let [direct, service] = &mut rates;
    figures.push("GiB per second, direct", median(direct));
    figures.push("GiB per second, service", median(service));
    figures.push(BYTES, median(&mut times));
    let [direct, service] = &mut cpus;
    figures.push("CPU s per GiB, direct", median(direct));
    figures.push("CPU s per GiB, service", median(service));
    figures.push("GiB, CPU, service : direct", median(&mut costs));
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
