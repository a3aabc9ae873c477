//! What it costs to write many services: `cargo run --release -p kpng-iptables --example measure`,
//! with the numbers of services for arguments, and `legacy` for the other variant. Everything
//! happens in a network namespace of its own.

#![expect(clippy::print_stdout, reason = "the output is what it is for")]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::model::{
    Endpoint, EndpointSlice, Family, NamespacedName, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use kpng_core::plan::{NodeFacts, Planner, PodDetection};
use kpng_core::store::{Batch, Kind, Store, Writer};
use kpng_iptables::{Config, Iptables, Variant};
use kpng_linux::namespace::NetNs;

/// Endpoints of each service.
const ENDPOINTS: u32 = 2;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut variant = Variant::Nft;
    let mut sizes = Vec::new();
    for argument in std::env::args().skip(1) {
        match Variant::from_name(&argument) {
            Some(named) => variant = named,
            None => sizes.push(argument.parse()?),
        }
    }
    if sizes.is_empty() {
        sizes = vec![1_000, 10_000];
    }
    for services in sizes {
        NetNs::new()?.run(|| measure(services, variant))??;
    }
    Ok(())
}

fn measure(services: u32, variant: Variant) -> Result<(), Box<dyn Error + Send + Sync>> {
    println!("{services} services, {ENDPOINTS} endpoints each, both families, {}:", variant.name());
    let (mut writer, store) = Store::new();
    let mut reader = store.reader();
    writer.apply(cluster(services));
    let mut planner = Planner::new("node-a", facts()?);
    planner.update(&reader.try_next().ok_or("the store is synced")?);
    let config = Config { variant: Some(variant), ..Config::default() };
    let mut iptables = Iptables::open(config.clone())?;
    timed("cold start", || iptables.sync(planner.plan(), None))?;
    println!("  disturbed after it: {}", iptables.disturbed()?);
    let mut restarted = Iptables::open(config)?;
    timed("restart", || restarted.sync(planner.plan(), None))?;
    for (what, pods) in [("one endpoint less", 1), ("one endpoint more", 2)] {
        change(&mut writer, services / 2, pods);
        let changes = planner.update(&reader.try_next().ok_or("something changed")?);
        timed(what, || restarted.sync(planner.plan(), Some(&changes.services)))?;
    }
    for what in ["looking for disturbances", "looking again"] {
        let disturbed = timed(what, || restarted.disturbed())?;
        println!("  disturbed: {disturbed}");
        std::thread::sleep(Duration::from_millis(4100));
    }
    timed("cleanup", || restarted.cleanup())
}

/// Prints the wall time, and the processor time of this process and of those that it started.
fn timed<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let (start, before) = (Instant::now(), cpu_seconds());
    let result = work();
    let wall = 1000.0 * start.elapsed().as_secs_f64();
    let after = cpu_seconds();
    let [own, children] = [0, 1].map(|who| 1000.0 * (after[who] - before[who]));
    println!("  {what}: {wall:.0} ms; processors {own:.0} ms here, {children:.0} ms in iptables");
    result
}

fn cpu_seconds() -> [f64; 2] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // utime, stime, cutime, cstime are the fields 14 to 17, in hundredths of a second.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks: Vec<f64> =
        fields.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    [ticks.iter().take(2).sum::<f64>() / 100.0, ticks.iter().skip(2).sum::<f64>() / 100.0]
}

fn facts() -> Result<NodeFacts, Box<dyn Error + Send + Sync>> {
    let pods = vec!["10.244.0.0/16".parse()?, "fd00:244::/32".parse()?];
    Ok(NodeFacts { pods: PodDetection::Cidrs(pods), ..NodeFacts::default() })
}

fn address(v4: u32, v6: u128, n: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(v4 + n).into(),
        Family::V6 => Ipv6Addr::from((v6 << 96) + u128::from(n)).into(),
    }
}

fn key(n: u32) -> NamespacedName {
    NamespacedName::new(format!("namespace-{}", n % 100), format!("service-{n}"))
}

fn cluster(services: u32) -> Batch {
    let mut batch = Batch::new();
    for n in 0..services {
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            target_port: TargetPort::Unset,
        };
        // Spread over a /16, as the allocator does it.
        let ip = |family| address(0x0a60_0000, 0xfd00_0096, n * 40_503 % 65_536, family);
        let cluster_ips = Family::ALL.map(ip).to_vec();
        let service = Service { cluster_ips, ports: vec![port], ..Service::default() };
        batch.set_service(key(n), service);
        set_endpoints(&mut batch, n, ENDPOINTS);
    }
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    batch
}

fn set_endpoints(batch: &mut Batch, n: u32, count: u32) {
    for family in Family::ALL {
        let endpoint = |i| {
            let ip = address(0x0af4_0000, 0xfd00_0244, ENDPOINTS * n + i, family);
            Endpoint::at(ip)
        };
        let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
        let slice =
            EndpointSlice { endpoints: (0..count).map(endpoint).collect(), ports: vec![port] };
        let key = key(n);
        let name = NamespacedName::new(key.namespace, format!("{}-{}", key.name, family.name()));
        batch.set_slice(name, key.name, slice);
    }
}

fn change(writer: &mut Writer, n: u32, endpoints: u32) {
    let mut batch = Batch::new();
    set_endpoints(&mut batch, n, endpoints);
    writer.apply(batch);
}
