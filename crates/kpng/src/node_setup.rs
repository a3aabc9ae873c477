//! Kernel parameters that the data path needs, and those that the operator asks for.
//!
//! A parameter that has its value already is not written, so a node that was prepared needs to grant
//! nothing. One that cannot be set is no reason to stop: the data path may work in part, and somebody
//! else may set it. The caller tells the operator what will not work.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use kpng_linux::conntrack::Conntrack;
use kpng_linux::{Error, rtnetlink, sysctl};

/// What the kernel shall be set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Node ports are served on 127.0.0.1: packets from there may then be routed.
    pub localhost_node_ports: bool,
    /// What the operator wants of connection tracking.
    pub conntrack: ConntrackConfig,
}

/// What the operator wants of connection tracking: nothing that is not said. As in kube-proxy's
/// configuration a 0 says nothing either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// The least number of connections that can be tracked, per core. With 0, `min` does not count.
    pub max_per_core: Option<u32>,
    /// The least number of connections that can be tracked.
    pub min: Option<u32>,
    /// How long an idle TCP connection is remembered.
    pub tcp_timeout_established: Option<Duration>,
    /// How long a half-closed TCP connection is remembered.
    pub tcp_timeout_close_wait: Option<Duration>,
    /// How long a UDP flow without an answer is remembered.
    pub udp_timeout: Option<Duration>,
    /// How long a UDP flow with answers is remembered.
    pub udp_timeout_stream: Option<Duration>,
    /// TCP packets outside of the window belong to their connection all the same.
    pub tcp_be_liberal: bool,
}

/// A parameter that is not as it should be.
#[derive(Debug)]
pub struct Problem {
    /// Why it could not be set, and what to do.
    pub error: Error,
    /// What does not work therefore.
    pub consequence: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; until then {}", self.error, self.consequence)
    }
}

/// A parameter and what it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parameter {
    name: &'static str,
    value: u64,
    /// A higher value does as well.
    or_more: bool,
    consequence: &'static str,
}

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const CONNTRACK: &str = "net/netfilter/nf_conntrack_";

/// Sets the parameters of the network namespace of the calling thread. What could not be set is
/// returned; the rest is in force.
pub fn apply(config: &Config) -> Vec<Problem> {
    let parameters = parameters(config, cores());
    if parameters.iter().any(|parameter| parameter.name.starts_with(CONNTRACK)) {
        load_conntrack();
    }
    parameters.iter().filter_map(|parameter| set(parameter).err()).collect()
}

fn set(parameter: &Parameter) -> Result<(), Problem> {
    let Parameter { name, value, or_more, consequence } = parameter;
    let result = match sysctl::get(name) {
        Ok(current) if current == value.to_string() => Ok(()),
        Ok(current) if *or_more && current.parse().is_ok_and(|current: u64| current >= *value) => {
            Ok(())
        }
        Ok(_) => sysctl::set(name, &value.to_string()),
        // A kernel without IPv6 has nothing to forward.
        Err(Error::File { source, .. })
            if *name == FORWARD_V6 && source.kind() == ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    };
    result.map_err(|error| Problem { error, consequence })
}

/// All that is to be set on a machine with this many cores, in order.
fn parameters(config: &Config, cores: u64) -> Vec<Parameter> {
    let exactly = |name, value, consequence| Parameter { name, value, or_more: false, consequence };
    let mut parameters = vec![
        exactly(FORWARD_V4, 1, "IPv4 packets reach no pods and are not passed on to other nodes"),
        exactly(FORWARD_V6, 1, "IPv6 packets reach no pods and are not passed on to other nodes"),
    ];
    if config.localhost_node_ports {
        parameters.push(exactly(ROUTE_LOCALNET, 1, "node ports do not work on 127.0.0.1"));
    }
    let ConntrackConfig {
        max_per_core: _,
        min: _,
        tcp_timeout_established,
        tcp_timeout_close_wait,
        udp_timeout,
        udp_timeout_stream,
        tcp_be_liberal,
    } = config.conntrack;
    if let Some(max) = conntrack_max(&config.conntrack, cores) {
        // The kernel's own ratio; with more connections per bucket each packet costs more.
        for (name, value) in [
            ("net/netfilter/nf_conntrack_buckets", max.div_ceil(4)),
            ("net/netfilter/nf_conntrack_max", max),
        ] {
            let consequence = "fewer connections can be tracked than was asked for";
            parameters.push(Parameter { name, value, or_more: true, consequence });
        }
    }
    for (name, timeout) in [
        ("net/netfilter/nf_conntrack_tcp_timeout_established", tcp_timeout_established),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", tcp_timeout_close_wait),
        ("net/netfilter/nf_conntrack_udp_timeout", udp_timeout),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", udp_timeout_stream),
    ] {
        let seconds = timeout.map_or(0, |timeout| timeout.as_secs());
        if seconds > 0 {
            parameters.push(exactly(name, seconds, "the kernel's own timeout is in force"));
        }
    }
    if tcp_be_liberal {
        let name = "net/netfilter/nf_conntrack_tcp_be_liberal";
        parameters.push(exactly(name, 1, "TCP packets outside of the window are invalid"));
    }
    parameters
}

fn conntrack_max(config: &ConntrackConfig, cores: u64) -> Option<u64> {
    if config.max_per_core == Some(0) {
        return None;
    }
    let per_core = config.max_per_core.map_or(0, |per_core| u64::from(per_core) * cores);
    Some(per_core.max(config.min.unwrap_or(0).into())).filter(|max| *max > 0)
}

/// The parameters exist only once the kernel's module is there, and asking it loads it.
fn load_conntrack() {
    let ask = |mut table: Conntrack| {
        let nothing = (None, 0);
        table.dump_to(rtnetlink::Family::V4, 0, nothing, |_| Ok(()))
    };
    // If it fails, setting the parameters fails too, and says so.
    Conntrack::open().and_then(ask).unwrap_or(());
}

/// The cores of the machine, whatever part of them this process may use.
fn cores() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online");
    let cores = online.ok().and_then(|list| count(list.trim()));
    cores.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

/// How many numbers are in a list such as `0-3,8`.
fn count(list: &str) -> Option<u64> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    };
    list.split(',').map(range).sum()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use kpng_linux::namespace::NetNs;

    use super::*;

    fn check(config: &Config, expected: Expect) {
        let line = |parameter: &Parameter| {
            let Parameter { name, value, or_more, .. } = parameter;
            format!("{name} = {value}{}\n", if *or_more { " or more" } else { "" })
        };
        expected.assert_eq(&parameters(config, 4).iter().map(line).collect::<String>());
    }

    fn conntrack(conntrack: ConntrackConfig) -> Config {
        Config { conntrack, ..Config::default() }
    }

    #[test]
    fn only_what_is_needed_or_asked_for() {
        check(
            &Config::default(),
            expect![[r#"
            net/ipv4/ip_forward = 1
            net/ipv6/conf/all/forwarding = 1
        "#]],
        );
        check(
            &Config { localhost_node_ports: true, ..Config::default() },
            expect![[r#"
            net/ipv4/ip_forward = 1
            net/ipv6/conf/all/forwarding = 1
            net/ipv4/conf/all/route_localnet = 1
        "#]],
        );
        let all = ConntrackConfig {
            max_per_core: Some(32_768),
            min: Some(100_001),
            tcp_timeout_established: Some(Duration::from_secs(86_400)),
            tcp_timeout_close_wait: Some(Duration::from_secs(3600)),
            udp_timeout: Some(Duration::from_secs(10)),
            udp_timeout_stream: Some(Duration::ZERO),
            tcp_be_liberal: true,
        };
        check(
            &conntrack(all),
            expect![[r#"
            net/ipv4/ip_forward = 1
            net/ipv6/conf/all/forwarding = 1
            net/netfilter/nf_conntrack_buckets = 32768 or more
            net/netfilter/nf_conntrack_max = 131072 or more
            net/netfilter/nf_conntrack_tcp_timeout_established = 86400
            net/netfilter/nf_conntrack_tcp_timeout_close_wait = 3600
            net/netfilter/nf_conntrack_udp_timeout = 10
            net/netfilter/nf_conntrack_tcp_be_liberal = 1
        "#]],
        );
    }

    #[test]
    fn the_limit_of_connections() {
        for (max_per_core, min, expected) in [
            (None, None, None),
            (Some(1000), None, Some(4000)),
            (Some(1000), Some(5000), Some(5000)),
            (Some(1000), Some(3000), Some(4000)),
            (None, Some(5000), Some(5000)),
            (Some(0), Some(5000), None),
            (Some(u32::MAX), None, Some(4 * u64::from(u32::MAX))),
        ] {
            let config = ConntrackConfig { max_per_core, min, ..ConntrackConfig::default() };
            assert_eq!(conntrack_max(&config, 4), expected, "{config:?}");
        }
    }

    #[test]
    fn lists_of_cores() {
        for (list, expected) in
            [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(list), expected, "{list}");
        }
        assert!(cores() > 0);
    }

    /// A namespace forwards nothing at first, and has connection tracking of its own, whose size is
    /// the machine's to decide.
    #[test]
    fn a_namespace_is_set_up() {
        let namespace = match NetNs::new() {
            Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => return,
            namespace => namespace.unwrap(),
        };
        let config = Config {
            localhost_node_ports: true,
            conntrack: ConntrackConfig {
                min: Some(u32::MAX),
                udp_timeout: Some(Duration::from_secs(17)),
                ..ConntrackConfig::default()
            },
        };
        let run = || {
            let problems: Vec<_> = apply(&config).iter().map(Problem::to_string).collect();
            let read = |name| sysctl::get(name).unwrap();
            let values = [FORWARD_V4, FORWARD_V6, ROUTE_LOCALNET].map(read).join(" ");
            let timeout = read("net/netfilter/nf_conntrack_udp_timeout");
            // Again nothing is to be done, so nothing else can fail.
            assert_eq!(apply(&config).len(), problems.len());
            (problems.join("\n"), values, timeout)
        };
        let (problems, values, timeout) = namespace.run(run).unwrap();
        assert_eq!((values.as_str(), timeout.as_str()), ("1 1 1", "17"));
        expect![[r#"
            cannot write "1073741824" to /proc/sys/net/netfilter/nf_conntrack_buckets: needs root on the node; run as root, or set the value on the node beforehand; until then fewer connections can be tracked than was asked for
            cannot write "4294967295" to /proc/sys/net/netfilter/nf_conntrack_max: needs root on the node; run as root, or set the value on the node beforehand; until then fewer connections can be tracked than was asked for"#]].assert_eq(&problems);
    }
}
