use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kpng_linux::rtnetlink::{Family, Rtnetlink};

use super::*;

fn network(pods: u8, remote_pods: u8) -> Option<Network> {
    Network::new(Topology { pods, remote_pods })
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn answered(by: &str, seen_source: impl Into<IpAddr>) -> Outcome {
    Outcome::Answered { by: by.into(), seen_source: seen_source.into() }
}

type Probe = fn(&Host, Option<IpAddr>, SocketAddr) -> Outcome;
type Own = fn(&Host) -> IpAddr;
const PROBES: [(&str, Probe); 3] = [("tcp", Host::tcp), ("udp", Host::udp), ("sctp", Host::sctp)];

#[test]
fn everybody_reaches_everybody_with_their_own_address() {
    let Some(network) = network(2, 1) else { return };
    let hosts = [&network.node, network.pod(1), network.pod(2), network.remote_pod(1)];
    for host in hosts {
        host.serve(&[8080]);
    }
    for from in hosts.into_iter().chain([&network.client]) {
        for to in hosts {
            for (name, probe) in PROBES {
                if (name, to.name()) == ("sctp", "node") || std::ptr::eq(from, to) {
                    continue; // the raw SCTP server of a host with several addresses guesses
                }
                for (source, to_address) in [(from.v4(), to.v4()), (from.v6(), to.v6())] {
                    let outcome = probe(from, None, at(to_address, 8080));
                    let context = format!("{name} from {} to {to_address}", from.name());
                    assert_eq!(outcome, answered(to.name(), source), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_source_can_be_chosen() {
    let Some(network) = network(1, 0) else { return };
    let pod = network.pod(1);
    pod.serve(&[8080]);
    for (name, probe) in PROBES {
        for (source, to) in
            [(IpAddr::from(BLOCKED_V4), pod.v4()), (IpAddr::from(BLOCKED_V6), pod.v6())]
        {
            let outcome = probe(&network.client, Some(source), at(to, 8080));
            assert_eq!(outcome, answered("pod1", source), "{name}");
        }
    }
}

#[test]
fn closed_ports_refuse_and_unknown_addresses_are_silent() {
    let Some(network) = network(1, 0) else { return };
    network.pod(1).serve(&[8080]);
    for from in [&network.client, &network.node] {
        for to in network.pod(1).addresses() {
            for (name, probe) in PROBES {
                // More often than the kernel's limit of ICMP errors per second would allow.
                for _ in 0..10 {
                    assert_eq!(probe(from, None, at(*to, 8081)), Outcome::Refused, "{name}");
                }
            }
        }
    }
    for (name, probe) in PROBES {
        for to in ["172.30.0.50", "fd00:172:30::50"] {
            let outcome = probe(network.pod(1), None, at(to.parse::<IpAddr>().unwrap(), 80));
            assert_eq!(outcome, Outcome::TimedOut, "{name} to {to}");
        }
    }
}

#[test]
fn flows_keep_their_port_and_connections_stay_open() {
    let Some(network) = network(1, 0) else { return };
    let pod = network.pod(1);
    pod.serve(&[8080]);
    pod.serve_echo(&[7]);
    for address in pod.addresses() {
        let flow = network.client.udp_flow(None, at(*address, 8080));
        let port = flow.local_addr().unwrap().port();
        for _ in 0..3 {
            assert_eq!(flow.probe().answered_by(), Some("pod1"));
            assert_eq!(flow.local_addr().unwrap().port(), port);
        }
        assert!(network.client.udp_flow(None, at(*address, 7)).echo("hello").unwrap());
        let mut flow = network.client.tcp_flow(None, at(*address, 7)).unwrap();
        let mut other = network.client.tcp_flow(None, at(*address, 7)).unwrap();
        for _ in 0..3 {
            flow.echo("hello").unwrap();
            other.echo("again").unwrap();
        }
        let refused = network.client.tcp_flow(None, at(*address, 9)).unwrap_err();
        assert_eq!(refused, Outcome::Refused);
    }
    let mut flow = network.client.tcp_flow(None, at(pod.v4(), 7)).unwrap();
    flow.echo("hello").unwrap();
    pod.stop_serving();
    flow.echo("hello").unwrap_err();
    assert_eq!(network.client.tcp(None, at(pod.v4(), 8080)), Outcome::Refused);
    pod.serve(&[8080]);
    assert_eq!(network.client.tcp(None, at(pod.v4(), 8080)).answered_by(), Some("pod1"));
}

#[test]
fn the_node_knows_its_primary_addresses_and_pod_interfaces() {
    let Some(network) = network(2, 1) else { return };
    let (v4, v6, links) = network.node.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let links: Vec<_> = rtnetlink.links().unwrap().into_iter().map(|link| link.name).collect();
        let mut primary = |family| rtnetlink.primary_address(family).unwrap();
        (primary(Family::V4), primary(Family::V6), links)
    });
    assert_eq!((v4, v6), (Some(NODE_V4.into()), Some(NODE_V6.into())));
    assert_eq!(links, ["lo", "eth0", "veth-pod1", "veth-pod2", "remote1"]);
}

/// Everything that a backend does to packets, done here by `nft`, which shares no code with us.
#[test]
fn translated_refused_and_dropped_packets_are_told_apart() {
    const RULES: &str = "
        table inet test {
            chain destination {
                type nat hook prerouting priority dstnat;
                ip daddr 172.30.0.1 meta l4proto { tcp, udp, sctp } th dport 80 dnat ip to 10.180.0.1:8080
                ip6 daddr fd00:172:30::1 meta l4proto { tcp, udp, sctp } th dport 80 dnat ip6 to [fd00:180::1]:8080
            }
            chain source {
                type nat hook postrouting priority srcnat;
                ct original ip daddr 172.30.0.1 ip saddr 10.180.0.1 ip daddr 10.180.0.1 masquerade
                ct original ip6 daddr fd00:172:30::1 ip6 saddr fd00:180::1 ip6 daddr fd00:180::1 masquerade
                ip saddr 203.0.113.130 masquerade
                ip6 saddr 2001:db8:203:8000::2 masquerade
            }
            chain filter {
                type filter hook forward priority filter;
                ip daddr 172.30.0.2 reject
                ip6 daddr fd00:172:30::2 reject
                ip daddr 172.30.0.3 drop
                ip6 daddr fd00:172:30::3 drop
            }
        }";
    let Some(network) = network(2, 0) else { return };
    let pod = network.pod(1);
    pod.serve(&[8080]);
    network.node.run(|| nft(RULES));
    let families: [(&str, Own, [IpAddr; 2]); 2] = [
        ("172.30.0.", Host::v4, [NODE_V4.into(), BLOCKED_V4.into()]),
        ("fd00:172:30::", Host::v6, [NODE_V6.into(), BLOCKED_V6.into()]),
    ];
    for (prefix, own, [node, blocked]) in families {
        let vip = |n: u8| at(format!("{prefix}{n}").parse::<IpAddr>().unwrap(), 80);
        for (name, probe) in PROBES {
            let context = format!("{name} to {prefix}");
            let client = &network.client;
            assert_eq!(probe(client, None, vip(1)), answered("pod1", own(client)), "{context}");
            let masqueraded = probe(client, Some(blocked), vip(1));
            assert_eq!(masqueraded, answered("pod1", node), "{context}");
            let other = network.pod(2);
            assert_eq!(probe(other, None, vip(1)), answered("pod1", own(other)), "{context}");
            assert_eq!(probe(pod, None, vip(1)), answered("pod1", node), "{context}");
            assert_eq!(probe(client, None, vip(2)), Outcome::Refused, "{context}");
            assert_eq!(probe(client, None, vip(3)), Outcome::TimedOut, "{context}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the oracle shares no code with kpng")]
fn nft(rules: &str) {
    let output = std::process::Command::new("nft").arg(rules).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn probes_run_side_by_side() {
    let Some(network) = network(2, 0) else { return };
    for pod in &network.pods {
        pod.serve(&[8080]);
    }
    let mut answers = BTreeMap::new();
    thread::scope(|scope| {
        let probes: Vec<_> = (0..200)
            .map(|n| {
                let pod = network.pod(1 + n % 2);
                let to = at(if n % 4 < 2 { pod.v4() } else { pod.v6() }, 8080);
                let (network, probe) = (&network, PROBES[n % 3].1);
                scope.spawn(move || probe(&network.client, None, to))
            })
            .collect();
        for probe in probes {
            let by = probe.join().unwrap().answered_by().map(str::to_owned);
            *answers.entry(by).or_insert(0) += 1;
        }
    });
    assert_eq!(answers, BTreeMap::from([(Some("pod1".into()), 100), (Some("pod2".into()), 100)]));
}

#[test]
fn dropping_a_host_ends_its_threads() {
    // The other tests run meanwhile, so only names that they do not use count.
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| ["pod23", "pod23 server"].contains(&name.trim())).count()
    };
    let Some(mut network) = network(23, 0) else { return };
    network.pod(23).serve(&[8080]);
    // Once it answers, the server's thread has its name.
    assert!(network.node.tcp(None, at(network.pod(23).v4(), 8080)).answered_by().is_some());
    assert_eq!(named(), 2);
    network.pods.pop();
    assert_eq!(named(), 0);
}
