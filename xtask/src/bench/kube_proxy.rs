//! kpng beside kube-proxy in the mode alike: one after the other on the node of a virtual network,
//! with the same real API server and the same services. Both have their defaults.
//!
//! Processor time is that of the process and of the programs that it starts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kpng_testkit::apiserver::{ApiServer, Rest, kube_proxy};
use kpng_testkit::network::{Network, Topology};
use serde_json::{Value, json};

use super::Size;
use super::backends::Which;
use super::process::{cpu_time_of, ms, print, resident_of};
use super::table::{Figures, Limit, Table, Target};

const NAMESPACE: &str = "s";
const NODE: &str = "node-a";
/// Every service of this many is asked whether it works.
const ASKED: usize = 40;
/// Who writes the services at the same time.
const WRITERS: usize = 4;
/// How long a proxy may take until everything works.
const PATIENCE: Duration = Duration::from_secs(600);
/// From one change to the next: longer than kube-proxy gathers changes.
const PAUSE: Duration = Duration::from_secs(3);

const CHANGE_CPU: &str = "one endpoint changes, CPU mean ms";

/// An iptables change takes a fifth of kube-proxy's, an nftables one no more than kube-proxy's.
fn targets(backend: &str) -> &'static [Target] {
    match backend {
        "iptables" => &[Target { figure: CHANGE_CPU, size: "kpng", limit: Limit::TimesFirst(0.2) }],
        _ => &[Target { figure: CHANGE_CPU, size: "kpng", limit: Limit::TimesFirst(1.0) }],
    }
}

/// Compares at all sizes and prints a table for each.
pub(super) fn run(which: &Which, sizes: Option<&[Size]>, quick: bool) -> Result<()> {
    let program = kube_proxy().map_err(anyhow::Error::msg)?;
    let default = ["1k".parse()?, "10k".parse()?];
    let sizes = sizes.unwrap_or(if quick { &default[..1] } else { &default });
    let backends: &[&str] = match &which.backend[..] {
        [] => &["iptables", "nft"],
        [one] if one == "iptables" => &["iptables"],
        [one] if one == "nft" => &["nft"],
        _ => anyhow::bail!("kube-proxy is like iptables and nft: say one of them"),
    };
    for size in sizes {
        let world = World::new(size.services)?;
        for backend in backends {
            let mut table = Table::new(targets(backend));
            let peer = world.kube_proxy(&program, backend);
            table.add("kube-proxy", world.measure(&peer, if quick { 3 } else { 12 })?);
            let mut cleanup = peer;
            cleanup.arguments.push("--cleanup".to_owned());
            world.start(&cleanup)?.child.wait().context("wait for kube-proxy's cleanup")?;
            let own = world.kpng(backend)?;
            table.add("kpng", world.measure(&own, if quick { 3 } else { 12 })?);
            let cleanup = Proxy { program: own.program, arguments: kpng(&["cleanup"]) };
            world.start(&cleanup)?.child.wait().context("wait for kpng's cleanup")?;
            print(&format!("to-{backend}, {} services\n{table}", size.services));
        }
    }
    Ok(())
}

/// A cluster, and the node on which one proxy after the other runs.
struct World {
    network: Network,
    api: ApiServer,
    services: usize,
    folder: tempfile::TempDir,
}

/// A program to start.
struct Proxy {
    program: PathBuf,
    arguments: Vec<String>,
}

/// A running proxy. It ends when it is dropped.
struct Running {
    child: Child,
}

impl World {
    fn new(services: usize) -> Result<Self> {
        let topology = Topology { pods: 3, remote_pods: 0 };
        let network = Network::new(topology).context("no namespaces")?;
        for pod in 1..=2 {
            network.pod(pod).serve(&[8080]);
        }
        let api = network.node.run(ApiServer::start).context("no API server")?;
        let world = Self { network, api, services, folder: tempfile::tempdir()? };
        world.fill();
        Ok(world)
    }

    fn fill(&self) {
        self.rest().run(|api| {
            let namespace = json!({"metadata": {"name": NAMESPACE}});
            api.create("/api/v1/namespaces", namespace);
            api.create("/api/v1/nodes", json!({"metadata": {"name": NODE}}));
            let addresses = json!([{"type": "InternalIP", "address": "192.168.0.2"}]);
            let status = json!({"status": {"addresses": addresses}});
            api.patch(&format!("/api/v1/nodes/{NODE}/status"), status);
        });
        let writers = (0..WRITERS).map(|writer| {
            let (rest, services) = (self.rest(), self.services);
            std::thread::spawn(move || {
                rest.run(|api| (writer..services).step_by(WRITERS).for_each(|n| create(api, n)));
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.join().expect("the API server takes services");
        }
    }

    fn rest(&self) -> Client {
        Client {
            namespace: self.network.node.namespace().try_clone().expect("it is open"),
            port: self.api.port(),
            ca: self.api.ca_path(),
            token: self.api.token(),
        }
    }

    /// kube-proxy with its defaults, and what this network needs.
    fn kube_proxy(&self, program: &Path, backend: &str) -> Proxy {
        let keep = json!({"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s"});
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.api.kubeconfig_path()},
            "hostnameOverride": NODE, "clusterCIDR": "10.0.0.0/8", "conntrack": keep,
            "mode": if backend == "nft" { "nftables" } else { backend },
        });
        let path = self.folder.path().join("kube-proxy.json");
        fs::write(&path, config.to_string()).expect("the temporary directory is writable");
        let arguments = vec![format!("--config={}", path.display())];
        Proxy { program: program.to_owned(), arguments }
    }

    /// This program as kpng.
    fn kpng(&self, backend: &str) -> Result<Proxy> {
        let kubeconfig = format!("--kubeconfig={}", self.api.kubeconfig_path().display());
        let to = format!("to-{backend}");
        let mut arguments = kpng(&[
            "kube",
            &kubeconfig,
            "to-local",
            "--admin-socket=",
            "--cluster-cidrs=10.0.0.0/8",
        ]);
        arguments.extend([format!("--node-name={NODE}"), to]);
        if backend == "iptables" {
            // What kube-proxy finds on Debian, and what a node without hints is taken to have.
            arguments.push("--iptables-variant=nft".to_owned());
        }
        Ok(Proxy { program: std::env::current_exe().context("find this program")?, arguments })
    }

    #[expect(clippy::disallowed_methods, reason = "this is no part of kpng")]
    fn start(&self, proxy: &Proxy) -> Result<Running> {
        let (program, arguments) = (proxy.program.clone(), proxy.arguments.clone());
        let log = fs::File::create(self.folder.path().join("log"))?;
        let child = self.network.node.run(move || {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.spawn()
        });
        Ok(Running { child: child.context("start a proxy")? })
    }

    /// Cold start, then single changes, then memory.
    fn measure(&self, proxy: &Proxy, changes: usize) -> Result<Figures> {
        let mut figures = Figures::default();
        let (mut running, start) = (self.start(proxy)?, Instant::now());
        for n in (0..self.services).step_by((self.services / ASKED).max(1)) {
            while self.answers(n).is_none() {
                let ended = running.child.try_wait()?;
                ensure!(ended.is_none(), "the proxy ended: {}", self.log_tail());
                ensure!(start.elapsed() < PATIENCE, "service {n} does not work");
            }
        }
        figures.push("cold start, wall s", start.elapsed().as_secs_f64());
        let idle = running.wait_until_idle()?;
        figures.push("cold start, CPU s", idle.as_secs_f64());
        let mut latencies = Vec::new();
        for change in 0..changes {
            latencies.push(self.change(change * 7919 % self.services)?);
            std::thread::sleep(PAUSE);
        }
        let used = running.wait_until_idle()?.saturating_sub(idle);
        figures.push(CHANGE_CPU, ms(used) / changes as f64);
        latencies.sort_unstable();
        figures.push("from the API's answer to packets, median ms", ms(latencies[changes / 2]));
        figures.push("RSS, MiB", resident_of(running.child.id())?.0);
        Ok(figures)
    }

    /// Moves a service from one pod to the other. The time until a client notices.
    fn change(&self, n: usize) -> Result<Duration> {
        let pods = [("pod1", self.network.pod(1).v4()), ("pod2", self.network.pod(2).v4())];
        let before = self.answers(n).context("the service worked")?;
        let other = pods.iter().find(|(name, _)| *name != before);
        let (name, address) = *other.context("there are two pods")?;
        self.rest().run(|api| {
            api.patch(&slice_path(n), json!({"endpoints": [{"addresses": [address]}]}));
        });
        let start = Instant::now();
        while self.answers(n).as_deref() != Some(name) {
            ensure!(start.elapsed() < PATIENCE, "the change of service {n} is not in force");
        }
        Ok(start.elapsed())
    }

    /// Who answers at the address of service `n`.
    fn answers(&self, n: usize) -> Option<String> {
        let to = SocketAddr::new(cluster_ip(n), 80);
        // What is not known yet takes its time to be refused.
        let patience = Duration::from_millis(200);
        let known = move || TcpStream::connect_timeout(&to, patience).is_ok();
        if !self.network.pod(3).run(known) {
            return None;
        }
        self.network.pod(3).tcp(None, to).answered_by().map(str::to_owned)
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Running {
    /// Waits until nothing was used for some seconds; the processor time so far.
    fn wait_until_idle(&self) -> Result<Duration> {
        let mut last = cpu_time_of(self.child.id())?;
        loop {
            std::thread::sleep(Duration::from_secs(5));
            let now = cpu_time_of(self.child.id())?;
            // A tick or two is what waiting costs.
            if now.saturating_sub(last) < Duration::from_millis(50) {
                return Ok(now);
            }
            last = now;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How to reach the API server, from any thread.
struct Client {
    namespace: kpng_linux::namespace::NetNs,
    port: u16,
    ca: PathBuf,
    token: &'static str,
}

impl Client {
    fn run<T: Send>(&self, talk: impl FnOnce(&Rest) -> T + Send) -> T {
        let talk = || talk(&Rest::new(self.port, &self.ca, self.token));
        self.namespace.run(talk).expect("the node's namespace is there")
    }
}

fn kpng(arguments: &[&str]) -> Vec<String> {
    ["kpng"].iter().chain(arguments).map(|&argument| argument.to_owned()).collect()
}

fn cluster_ip(n: usize) -> IpAddr {
    let n = u32::try_from(n).expect("a cluster has fewer services");
    // The API server's own service has one of the first.
    Ipv4Addr::from_bits(u32::from_be_bytes([10, 96, 16, 0]) + n).into()
}

fn slice_path(n: usize) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/service-{n}")
}

fn create(api: &Rest, n: usize) {
    let name = format!("service-{n}");
    let spec = json!({"clusterIP": cluster_ip(n), "ports": [{"name": "http", "port": 80}]});
    let service = json!({"metadata": {"name": name}, "spec": spec});
    api.create(&format!("/api/v1/namespaces/{NAMESPACE}/services"), service);
    let slice: Value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.180.0.1"]}],
    });
    api.create(&format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"), slice);
}
