//! The programs for packets: what the conformance table does not see of them.
//!
//! Clients are outside of the cluster, or pods whose connections are masqueraded, so that sockets
//! have no part in it. Senders fill in checksums themselves, so that receivers check ours.

#![expect(clippy::disallowed_methods, reason = "ip and ethtool set up what a test needs")]
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_ebpf::{Config, Ebpf};
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_linux::sysctl;
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::conformance::{OnNode, all_services, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Outcome, Topology};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit};

const PATIENCE: Duration = Duration::from_secs(10);

/// Masqueraded at node ports, with the client's own address at lb.2.
const CLUSTER: &str = "
    service t/masqueraded cluster=cluster.1 port=tcp:80:30001 port=udp:53/UDP:30053
    slice t/masqueraded tcp=9000 udp=9053/UDP
      pod1
    service t/plain cluster=cluster.2 lb=lb.2 port=tcp:80 port=udp:53/UDP port=more:54/UDP etp=Local
    slice t/plain tcp=9000 udp=9053/UDP more=9053/UDP
      pod1";

/// Where the pod is reached: masqueraded, and with the client's own address.
const TCP: [(&str, u16); 2] = [("node", 30001), ("lb.2", 80)];
const UDP: [(&str, u16); 2] = [("node", 30053), ("lb.2", 53)];

fn network() -> Option<Network> {
    let network = Network::new(Topology { pods: 3, remote_pods: 1 })?;
    for host in network.pods.iter().chain(&network.remote_pods).chain([&network.client]) {
        run(host, "ethtool -K eth0 tx off");
    }
    Some(network)
}

fn run(host: &Host, command: &str) {
    let command = command.to_owned();
    host.run(move || {
        let mut words = command.split_whitespace();
        let mut program = Command::new(words.next().unwrap());
        let output = program.args(words).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
    });
}

fn frontend((name, port): (&str, u16), family: Family) -> SocketAddr {
    SocketAddr::new(address(name, family), port)
}

/// Packets that a host threw away for their checksums.
fn damaged(host: &Host) -> u64 {
    host.run(|| {
        let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let v4 = read("snmp");
        let lines: Vec<_> = v4.lines().map(|line| line.split_whitespace()).collect();
        let pairs = lines.chunks(2).flat_map(|pair| pair[0].clone().zip(pair[1].clone()));
        let v6 = read("snmp6");
        let all = v6.lines().filter_map(|line| line.split_once(char::is_whitespace)).chain(pairs);
        let counters = all.filter(|(name, _)| name.ends_with("CsumErrors"));
        counters.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    })
}

fn assert_undamaged(network: &Network) {
    for host in network.pods.iter().chain([&network.client, &network.node]) {
        assert_eq!(damaged(host), 0, "{} got packets with wrong checksums", host.name());
    }
}

/// A connection of `client` to `to`, and what `server` sees of it at port 9000.
fn connect(client: &Host, to: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = client.run(move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (near, far)
}

fn listen(server: &Host) -> TcpListener {
    server.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 9000))).unwrap()
}

/// Bytes that repeat themselves late.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let step = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24) as u8)
    };
    std::iter::repeat_n((), length).scan(seed, |state, ()| step(state)).collect()
}

/// Sends bytes one way, then others back.
fn transfer(near: &mut TcpStream, far: &mut TcpStream, length: usize) {
    send(near, far, &bytes(1, length));
    send(far, near, &bytes(2, length));
}

fn send(from: &mut TcpStream, to: &mut TcpStream, sent: &[u8]) {
    let mut received = vec![0; sent.len()];
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(sent).unwrap());
        to.read_exact(&mut received).unwrap();
    });
    assert!(sent == received, "the bytes arrive as they were sent");
}

fn udp(host: &Host, at: SocketAddr) -> UdpSocket {
    let socket = host.run(move || UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// A UDP socket of `client` that is connected to `to`.
fn udp_client(client: &Host, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = udp(client, any.parse().unwrap());
    socket.connect(to).unwrap();
    socket
}

fn udp_server(server: &Host, family: Family) -> UdpSocket {
    udp(server, SocketAddr::new(address(server.name(), family), 9053))
}

/// Sends a datagram there and back.
fn exchange(client: &UdpSocket, server: &UdpSocket, length: usize) -> std::io::Result<()> {
    let sent = bytes(3, length);
    let mut received = vec![0; length + 1];
    client.send(&sent)?;
    let (there, peer) = server.recv_from(&mut received)?;
    assert!(received[..there] == sent, "the datagram arrives as it was sent");
    server.send_to(&sent, peer)?;
    let back = client.recv(&mut received)?;
    assert!(received[..back] == sent, "the answer arrives as it was sent");
    Ok(())
}

fn backend(place: &BpfPlace) -> impl FnOnce() -> Box<dyn Backend> + Send + 'static {
    let config = Config {
        root: place.pins.clone(),
        cgroup_root: Some(place.cgroup.clone()),
        ..Config::default()
    };
    move || Box::new(Ebpf::open(config).unwrap())
}

#[test]
fn what_arrives_is_what_was_sent() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(CLUSTER).plan(), None);
    let listener = listen(network.pod(1));
    for family in Family::ALL {
        for to in TCP {
            let (mut near, mut far) = connect(&network.client, frontend(to, family), &listener);
            transfer(&mut near, &mut far, 4 << 20);
        }
        let server = udp_server(network.pod(1), family);
        for to in UDP {
            let client = udp_client(&network.client, frontend(to, family));
            // The last one is sent in parts.
            for length in [0, 1, 1400, 9000] {
                exchange(&client, &server, length).unwrap();
            }
        }
    }
    // Pods whose connections are masqueraded, one with itself.
    for (pod, family) in [(1, Family::V4), (2, Family::V4), (1, Family::V6), (2, Family::V6)] {
        let (mut near, mut far) = connect(network.pod(pod), frontend(TCP[0], family), &listener);
        assert!(network.node.addresses().contains(&far.peer_addr().unwrap().ip().to_canonical()));
        transfer(&mut near, &mut far, 1 << 20);
    }
    assert_undamaged(&network);
}

#[test]
fn senders_learn_of_narrow_ways() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(CLUSTER).plan(), None);
    let listener = listen(network.pod(1));
    for (host, device) in [("pod1", "veth-pod1"), ("client", "eth0")] {
        for family in Family::ALL {
            let to = address(host, family);
            // The way that is left unchanged has the packets of the other direction.
            let (ip, lock) = if to.is_ipv4() { ("ip -4", "lock ") } else { ("ip -6", "") };
            run(&network.node, &format!("{ip} route flush {to}"));
            run(&network.node, &format!("{ip} route add {to} dev {device} mtu {lock}1300"));
            for to in TCP {
                let (mut near, mut far) = connect(&network.client, frontend(to, family), &listener);
                transfer(&mut near, &mut far, 1 << 20);
            }
            let server = udp_server(network.pod(1), family);
            for to in UDP {
                let client = udp_client(&network.client, frontend(to, family));
                // The first one may be what it is learnt from.
                let arrived = (0..3).filter(|_| exchange(&client, &server, 1400).is_ok()).count();
                assert!(arrived >= 2, "{family:?} datagrams to {to:?} with a narrow way to {host}");
            }
            run(&network.node, &format!("{ip} route flush {to}"));
            run(&network.node, &format!("{ip} route add {to} dev {device}"));
        }
    }
    assert_undamaged(&network);
}

/// Puts an endpoint, the address of remote2, behind remote1, whose way to it is narrow. The endpoint
/// is pod3, which answers by its own way.
fn build_narrow_router(network: &Network) {
    let (router, far) = (network.remote_pod(1), network.pod(3));
    let peer = far.namespace().try_clone().unwrap();
    router.run(move || {
        Rtnetlink::open().unwrap().add_veth("down", "up", &peer).unwrap();
        sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        sysctl::set("net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    run(router, "ip link set dev down up");
    run(far, "ip link set dev up up");
    for family in Family::ALL {
        let ip = if family == Family::V4 { "ip -4" } else { "ip -6" };
        let (target, via) = (address("remote2", family), address("remote1", family));
        let node_route = format!("{ip} route add {target} via {via} dev remote1 onlink");
        run(&network.node, &node_route);
        run(far, &format!("{ip} address add {target} dev up"));
        run(router, &format!("{ip} route add {target} dev down mtu 1300"));
    }
}

#[test]
fn senders_learn_of_narrow_ways_behind_routers() {
    let Some(network) = network() else { return };
    build_narrow_router(&network);
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    let cluster = "
        service t/far cluster=cluster.1 port=tcp:80:30001 port=udp:53/UDP:30053
        slice t/far tcp=9000 udp=9053/UDP
          remote2";
    node.sync(plan_of(cluster).plan(), None);
    let listener = listen(network.pod(3));
    for family in Family::ALL {
        let server = udp(network.pod(3), SocketAddr::new(address("remote2", family), 9053));
        let client = udp_client(&network.client, frontend(UDP[0], family));
        // The router tells the node, which tells the client, which sends smaller parts.
        assert!(exchange(&client, &server, 1400).is_err(), "the first one is lost");
        client.take_error().unwrap();
        exchange(&client, &server, 1400).unwrap();
        let (mut near, mut far) = connect(&network.client, frontend(TCP[0], family), &listener);
        transfer(&mut near, &mut far, 1 << 20);
    }
    assert_undamaged(&network);
}

#[test]
fn many_connections_of_one_client_are_kept_apart() {
    const CONNECTIONS: usize = 1000;
    let Some(network) = network() else { return };
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .unwrap();
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(CLUSTER).plan(), None);
    let listener = listen(network.pod(1));
    for family in Family::ALL {
        let to = frontend(TCP[0], family);
        let mut connections: Vec<_> =
            (0..CONNECTIONS).map(|_| connect(&network.client, to, &listener)).collect();
        let peers = connections.iter().map(|(_, far)| far.peer_addr().unwrap());
        assert_eq!(peers.collect::<BTreeSet<_>>().len(), CONNECTIONS);
        for (number, (near, far)) in connections.iter_mut().enumerate() {
            let text = number.to_be_bytes();
            let mut received = [0; 8];
            near.write_all(&text).unwrap();
            far.read_exact(&mut received).unwrap();
            assert_eq!(text, received);
            far.write_all(&text).unwrap();
            near.read_exact(&mut received).unwrap();
            assert_eq!(text, received);
        }
    }
}

#[test]
fn one_port_of_a_client_may_use_two_frontends_of_a_target() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(CLUSTER).plan(), None);
    for family in Family::ALL {
        let server = udp_server(network.pod(1), family);
        let client = udp(&network.client, SocketAddr::new(address("client", family), 5000));
        let frontends = [frontend(("lb.2", 53), family), frontend(("lb.2", 54), family)];
        let mut buffer = [0; 16];
        for to in [frontends, frontends].concat() {
            client.send_to(b"question", to).unwrap();
            let (_, peer) = server.recv_from(&mut buffer).unwrap();
            server.send_to(b"answer", peer).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap().1, to);
        }
    }
}

#[test]
fn datagrams_go_to_targets_that_serve() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let cluster = |pods: &str| {
        plan_of(&format!(
            "service t/dns cluster=cluster.1 lb=lb.1 port=dns:53/UDP:30053
             slice t/dns dns=53/UDP
             {pods}"
        ))
    };
    for pod in &network.pods {
        pod.serve(&[53]);
    }
    let node = OnNode::new(&network, backend(&place));
    let mut before = cluster("pod1").plan().clone();
    node.sync(&before, None);
    let flows = Family::ALL.map(|family| {
        ["node:30053", "lb.1:53"].map(|to| {
            let (name, port) = to.split_once(':').unwrap();
            let to = SocketAddr::new(address(name, family), port.parse().unwrap());
            network.client.udp_flow(None, to)
        })
    });
    for (pods, answers) in [
        ("pod1", Some("pod1")),
        ("pod2", Some("pod2")),
        ("pod1\npod2", Some("pod2")),
        ("", None),
        ("pod1", Some("pod1")),
        ("pod1 serving-terminating\npod3", Some("pod1")),
        ("pod3", Some("pod3")),
    ] {
        let after = cluster(pods).plan().clone();
        node.sync(&after, Some(all_services(&before, &after)));
        before = after;
        for flow in flows.iter().flatten() {
            let outcome = flow.probe();
            assert_eq!(outcome.answered_by(), answers, "{outcome:?} of {pods:?}");
            assert!(answers.is_some() || outcome == Outcome::Refused, "{outcome:?}");
        }
    }
}

#[test]
fn errors_of_targets_and_the_node_reach_clients() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    // Nobody listens.
    node.sync(plan_of(CLUSTER).plan(), None);
    for family in Family::ALL {
        for to in UDP {
            assert_eq!(network.client.udp(None, frontend(to, family)), Outcome::Refused, "{to:?}");
        }
        for to in TCP {
            assert_eq!(network.client.tcp(None, frontend(to, family)), Outcome::Refused, "{to:?}");
        }
    }
    assert_undamaged(&network);
}

#[test]
fn servers_in_the_network_of_the_node_are_reached() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let cluster = "
        service t/host cluster=cluster.1 lb=lb.1 port=tcp:80:30001 port=udp:53/UDP:30053
        slice t/host tcp=9000 udp=9053/UDP
          node-alt";
    network.node.serve(&[9000, 9053]);
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(cluster).plan(), None);
    for family in Family::ALL {
        for from in [&network.client, network.pod(1)] {
            for name in ["node", "lb.1"] {
                let ports = if name == "node" { (30001, 30053) } else { (80, 53) };
                let tcp = from.tcp(None, frontend((name, ports.0), family));
                let udp = from.udp(None, frontend((name, ports.1), family));
                assert_eq!(tcp.answered_by(), Some("node"), "{tcp:?} at {name} from {from:?}");
                assert_eq!(udp.answered_by(), Some("node"), "{udp:?} at {name} from {from:?}");
            }
        }
    }
}

/// Opens a device of IP packets, without a link layer, which is `host`'s. Its other end is the file.
#[expect(unsafe_code, reason = "no library in use wraps this request")]
fn open_tunnel(host: &Host) -> File {
    let file = host.run(|| {
        let options = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        let file = options.unwrap();
        let mut request = [0u8; 40];
        request[..4].copy_from_slice(b"tun0");
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
        // SAFETY: the request is as long as the kernel's `struct ifreq`, and outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        file
    });
    run(host, "ip link set tun0 up");
    file
}

/// Tells threads to end when it is dropped, also after a panic.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Carries packets from one tunnel device to the other until told to end.
fn carry(from: &File, to: &File, ended: &AtomicBool) {
    let mut packet = [0; 65_536];
    let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !ended.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from, PollFlags::IN)];
        if poll(&mut ready, Some(&wait)).unwrap() > 0 {
            let length = (&mut &*from).read(&mut packet).unwrap();
            (&mut &*to).write_all(&packet[..length]).unwrap();
        }
    }
}

#[test]
fn devices_without_a_link_layer_are_served() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let (near, far) = (open_tunnel(&network.client), open_tunnel(&network.node));
    for family in Family::ALL {
        let ip = if family == Family::V4 { "ip -4" } else { "ip -6" };
        let (client, vip) = (address("blocked", family), address("lb.2", family));
        run(&network.node, &format!("{ip} route replace {client} dev tun0"));
        run(&network.client, &format!("{ip} route replace {vip} dev tun0 src {client}"));
    }
    let node = OnNode::new(&network, backend(&place));
    node.sync(plan_of(CLUSTER).plan(), None);
    let listener = listen(network.pod(1));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndOf(&ended);
        scope.spawn(|| carry(&near, &far, &ended));
        scope.spawn(|| carry(&far, &near, &ended));
        for family in Family::ALL {
            let (mut near, mut far) =
                connect(&network.client, frontend(("lb.2", 80), family), &listener);
            assert_eq!(far.peer_addr().unwrap().ip().to_canonical(), address("blocked", family));
            transfer(&mut near, &mut far, 1 << 20);
            // Nobody listens at the target.
            let udp = network.client.udp(None, frontend(("lb.2", 54), family));
            assert_eq!(udp, Outcome::Refused);
        }
        drop(end);
    });
    assert_undamaged(&network);
}

#[test]
fn programs_are_replaced_under_load() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, backend(&place));
    let planner = plan_of(CLUSTER);
    node.sync(planner.plan(), None);
    let listener = listen(network.pod(1));
    let server = udp_server(network.pod(1), Family::V4);
    let client = udp_client(&network.client, frontend(UDP[0], Family::V4));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _end = EndOf(&ended);
            for to in TCP {
                for family in Family::ALL {
                    let to = frontend(to, family);
                    let (mut near, mut far) = connect(&network.client, to, &listener);
                    (0..8).for_each(|_| transfer(&mut near, &mut far, 2 << 20));
                }
            }
        });
        let exchanges = scope.spawn(|| {
            let mut exchanges = 0;
            while !ended.load(Ordering::Relaxed) {
                exchange(&client, &server, 100).expect("no packet is lost");
                exchanges += 1;
            }
            exchanges
        });
        let mut restarts = 0;
        while !ended.load(Ordering::Relaxed) {
            let restarted = OnNode::new(&network, backend(&place));
            restarted.sync(planner.plan(), None);
            restarts += 1;
        }
        let exchanges = exchanges.join().unwrap();
        assert!(restarts > 3 && exchanges > 100, "{restarts} restarts, {exchanges} exchanges");
    });
    assert_undamaged(&network);
}
