//! The services of `cluster.yaml`, in force: a node, its four pods and a client, each a network
//! namespace, the nftables backend on the node, and requests that go where the services say.
//!
//! It takes an ordinary user and a kernel that allows user namespaces, or root. Everything ends with
//! the process; nothing outside of the namespaces is touched.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a person")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use kpng_core::Planner;
use kpng_core::model::Protocol;
use kpng_core::plan::{NodeFacts, PodDetection};
use kpng_core::store::Store;
use kpng_linux::namespace::{NetNs, enter_user_namespace, may_make_namespaces};
use kpng_linux::sysctl;
use kpng_nft::{Config, Nft};
use kpng_testkit::conformance::OnNode;
use kpng_testkit::network::{Host, Network, Outcome, Topology, addresses};

const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/cluster.yaml");
const NODE: &str = "node-a";

/// The pods of the file, in the order of their addresses.
const PODS: [&str; 4] = ["web-0", "web-1", "dns-0", "api-0"];

/// How often a request is sent to see a choice. Each of two pods is missed with a probability of
/// 2^-31.
const MANY: usize = 32;

/// A request, and what must become of it.
struct Request {
    what: &'static str,
    from: From,
    to: &'static str,
    protocol: Protocol,
    times: usize,
    expected: Expected,
}

enum From {
    /// One of [`PODS`].
    Pod(&'static str),
    Client,
    /// The client, with an address that `shop` does not let in.
    Stranger,
    Node,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// These pods answer, and see this source.
    Answers(&'static [&'static str], &'static str),
    /// One of these pods, always the same, and it sees this source.
    Sticks(&'static [&'static str], &'static str),
    Refused,
    Silence,
}

const REQUESTS: &[Request] = &[
    Request {
        what: "A pod asks the cluster IP of `web`. Either pod answers, at random, and sees who asks.",
        from: From::Pod("dns-0"),
        to: "172.30.0.10:80",
        protocol: Protocol::Tcp,
        times: MANY,
        expected: Expected::Answers(&["web-0", "web-1"], "10.180.0.3"),
    },
    Request {
        what: "The node itself asks the same cluster IP.",
        from: From::Node,
        to: "172.30.0.10:80",
        protocol: Protocol::Tcp,
        times: MANY,
        expected: Expected::Answers(&["web-0", "web-1"], "192.168.0.2"),
    },
    Request {
        what: "A client outside asks the node port. The node masquerades, so that answers come back.",
        from: From::Client,
        to: "192.168.0.2:30080",
        protocol: Protocol::Tcp,
        times: MANY,
        expected: Expected::Answers(&["web-0", "web-1"], "192.168.0.2"),
    },
    Request {
        what: "A pod asks the IPv6 cluster IP of `dual`.",
        from: From::Pod("web-0"),
        to: "[fd00:172:30::20]:80",
        protocol: Protocol::Tcp,
        times: 1,
        expected: Expected::Answers(&["api-0"], "fd00:180::1"),
    },
    Request {
        what: "A pod reaches itself through the Service: masqueraded, or it would answer to itself.",
        from: From::Pod("api-0"),
        to: "172.30.0.20:80",
        protocol: Protocol::Tcp,
        times: 1,
        expected: Expected::Answers(&["api-0"], "192.168.0.2"),
    },
    Request {
        what: "A pod asks `dns` over UDP; the pod listens on another port, 5353.",
        from: From::Pod("web-0"),
        to: "172.30.0.53:53",
        protocol: Protocol::Udp,
        times: 1,
        expected: Expected::Answers(&["dns-0"], "10.180.0.1"),
    },
    Request {
        what: "`sticky` has session affinity: a client stays with the pod that it got first.",
        from: From::Pod("api-0"),
        to: "172.30.0.21:80",
        protocol: Protocol::Tcp,
        times: MANY,
        expected: Expected::Sticks(&["web-0", "web-1"], "10.180.0.4"),
    },
    Request {
        what: "The load balancer IP of `shop` has policy Local: no masquerading, and no terminating pod.",
        from: From::Client,
        to: "198.51.100.1:80",
        protocol: Protocol::Tcp,
        times: MANY,
        expected: Expected::Answers(&["web-0"], "203.0.113.2"),
    },
    Request {
        what: "A client that is not in loadBalancerSourceRanges of `shop` gets no answer.",
        from: From::Stranger,
        to: "198.51.100.1:80",
        protocol: Protocol::Tcp,
        times: 1,
        expected: Expected::Silence,
    },
    Request {
        what: "`empty` has no endpoints: refused at once, instead of timing out.",
        from: From::Pod("web-0"),
        to: "172.30.0.12:80",
        protocol: Protocol::Tcp,
        times: 1,
        expected: Expected::Refused,
    },
    Request {
        what: "`web` has no port 81: refused too.",
        from: From::Client,
        to: "172.30.0.10:81",
        protocol: Protocol::Tcp,
        times: 1,
        expected: Expected::Refused,
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("first_run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How many requests went wrong.
fn run() -> anyhow::Result<usize> {
    // First, because only a process with a single thread may.
    if !may_make_namespaces() {
        enter_user_namespace()?;
    }
    NetNs::new()?.run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
    let planner = plan(Path::new(CLUSTER))?;

    let network = Network::new(Topology { pods: 4, remote_pods: 0 })
        .context("KPNG_SKIP_NET is set, so there is no network")?;
    for (pod, name) in network.pods.iter().zip(PODS) {
        pod.serve(if name == "dns-0" { &[5353] } else { &[8080] });
    }
    let nft = network.node.run(|| Nft::open(Config::default()))?;
    let node = OnNode::new(&network, || Box::new(nft));
    let start = Instant::now();
    node.sync(planner.plan(), None);
    println!(
        "A node, the pods {} and a client, each in a network namespace.\n\
         The {} services of examples/cluster.yaml are in force on the node, by nftables, after {:.1} ms.\n",
        PODS.join(", "),
        planner.plan().services().len(),
        start.elapsed().as_secs_f64() * 1000.0
    );
    let wrong = REQUESTS.iter().filter(|request| !request.check(&network)).count();
    match wrong {
        0 => println!("All as expected. Nothing is left behind."),
        _ => println!("{wrong} of {} requests went wrong.", REQUESTS.len()),
    }
    Ok(wrong)
}

/// What the file asks of the node.
fn plan(path: &Path) -> anyhow::Result<Planner> {
    let state = kpng_file::read(path, &kpng_file::Options::default())?;
    let (mut writer, store) = Store::new();
    writer.apply(state.into_batch());
    let node = store.node(NODE).context("the file has no node-a")?;
    let facts = NodeFacts {
        pods: PodDetection::Cidrs(node.pod_cidrs.clone()),
        primary_ips: node.internal_ips.clone(),
        node_port_addresses: node.internal_ips.iter().copied().collect(),
        ..NodeFacts::default()
    };
    let mut planner = Planner::new(NODE, facts);
    planner.update(&store.reader().try_next().context("the store is not complete")?);
    Ok(planner)
}

impl Request {
    /// Sends it, prints what became of it, and says whether that is as it must be.
    fn check(&self, network: &Network) -> bool {
        let outcomes: Vec<_> = (0..self.times).map(|_| self.send(network)).collect();
        let seen = Seen::new(&outcomes);
        let arrow = format!("{} -> {} {}", self.from.name(), self.to, self.protocol);
        println!("{}\n  {arrow:<40} {}", self.what, seen.describe());
        let good = self.expected.fits(&seen);
        if !good {
            println!("  THIS IS WRONG. Expected: {:?}", self.expected);
        }
        println!();
        good
    }

    fn send(&self, network: &Network) -> Outcome {
        let (host, source): (&Host, Option<IpAddr>) = match self.from {
            From::Pod(name) => {
                let number = PODS.iter().position(|pod| *pod == name).expect("it is one of PODS");
                (&network.pods[number], None)
            }
            From::Client => (&network.client, None),
            From::Stranger => (&network.client, Some(addresses::BLOCKED_V4.into())),
            From::Node => (&network.node, None),
        };
        let to: SocketAddr = self.to.parse().expect("the table has addresses and ports");
        match self.protocol {
            Protocol::Tcp => host.tcp(source, to),
            Protocol::Udp => host.udp(source, to),
            Protocol::Sctp => host.sctp(source, to),
        }
    }
}

impl From {
    fn name(&self) -> &'static str {
        match self {
            Self::Pod(name) => name,
            Self::Client => "client",
            Self::Stranger => "stranger",
            Self::Node => NODE,
        }
    }
}

/// What became of some requests.
#[derive(Default)]
struct Seen {
    /// Who answered, and how often.
    answers: BTreeMap<String, usize>,
    sources: BTreeSet<String>,
    refused: usize,
    silence: usize,
}

impl Seen {
    fn new(outcomes: &[Outcome]) -> Self {
        let mut seen = Self::default();
        for outcome in outcomes {
            match outcome {
                Outcome::Answered { by, seen_source } => {
                    *seen.answers.entry(pod_name(by)).or_default() += 1;
                    seen.sources.insert(seen_source.to_string());
                }
                Outcome::Refused => seen.refused += 1,
                Outcome::Unreachable | Outcome::TimedOut => seen.silence += 1,
            }
        }
        seen
    }

    fn describe(&self) -> String {
        let answer = |(pod, times): (&String, &usize)| match times {
            1 => pod.clone(),
            times => format!("{pod} {times} times"),
        };
        let mut parts: Vec<_> = self.answers.iter().map(answer).collect();
        if self.refused > 0 {
            parts.push("refused".to_owned());
        }
        if self.silence > 0 {
            parts.push("no answer".to_owned());
        }
        let sources = Vec::from_iter(self.sources.iter().cloned()).join(", ");
        let saw = if sources.is_empty() { sources } else { format!("; saw {sources}") };
        parts.join(", ") + &saw
    }
}

/// The name in the file of the test network's `pod1`, `pod2`, ….
fn pod_name(host: &str) -> String {
    let number: Option<usize> = host.strip_prefix("pod").and_then(|number| number.parse().ok());
    let name = number.and_then(|number| PODS.get(number - 1));
    name.map_or_else(|| host.to_owned(), |name| (*name).to_owned())
}

impl Expected {
    fn fits(&self, seen: &Seen) -> bool {
        let pods: Vec<_> = seen.answers.keys().map(String::as_str).collect();
        let only = |source: &str| seen.sources.iter().eq([source]);
        let silent = seen.answers.is_empty();
        match self {
            Self::Answers(expected, source) => {
                pods == *expected && only(source) && seen.refused + seen.silence == 0
            }
            Self::Sticks(candidates, source) => {
                pods.len() == 1
                    && candidates.contains(&pods[0])
                    && only(source)
                    && seen.refused + seen.silence == 0
            }
            Self::Refused => silent && seen.silence == 0,
            Self::Silence => silent && seen.refused == 0,
        }
    }
}
