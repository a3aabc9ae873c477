//! What a proxy has to get right beside the conformance table: connections as they are in life.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kpng_core::Backend;
use kpng_core::model::Family;
use kpng_testkit::conformance::{OnNode, network, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Outcome};
use kpng_userspace::{Config, Userspace};

fn config(folder: &tempfile::TempDir) -> Config {
    let drain_timeout = Duration::from_secs(2);
    Config { state_dir: folder.path().to_owned(), drain_timeout, ..Config::default() }
}

fn start<'n>(network: &'n Network, config: &Config, cluster: &str) -> OnNode<'n> {
    let config = config.clone();
    let make = || Box::new(Userspace::open(config).unwrap()) as Box<dyn Backend>;
    let node = OnNode::new(network, make);
    node.sync(plan_of(cluster).plan(), None);
    node
}

const ONE: &str = "
    service t/web cluster=cluster.1 port=http:80
    slice t/web http=9000
      pod1";

fn vip() -> SocketAddr {
    SocketAddr::new(address("cluster.1", Family::V4), 80)
}

/// Accepts connections to port 9000 of the host.
fn accept(host: &Host) -> Receiver<TcpStream> {
    let at = SocketAddr::new(host.v4(), 9000);
    let listener = host.run(move || TcpListener::bind(at).unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if sender.send(stream).is_err() {
                return;
            }
        }
    });
    receiver
}

fn connect(host: &Host) -> TcpStream {
    let stream = host.run(|| TcpStream::connect_timeout(&vip(), Duration::from_secs(5)).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Both ends of a connection through the proxy.
fn pair(network: &Network, server: &Receiver<TcpStream>) -> (TcpStream, TcpStream) {
    let client = connect(network.pod(3));
    let server = server.recv_timeout(Duration::from_secs(5)).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (client, server)
}

fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(seed), next).map(|state| (state >> 56) as u8)
}

#[test]
fn large_transfers_arrive_unchanged_both_ways_and_a_half_closed_side_still_hears() {
    const LENGTH: usize = 50 << 20;
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    let _node = start(&network, &config(&folder), ONE);
    let listener = accept(network.pod(1));
    let (client, server) = pair(&network, &listener);
    std::thread::scope(|scope| {
        for (mut end, seed) in [(&client, 1), (&server, 2)] {
            scope.spawn(move || {
                let bytes: Vec<_> = noise(seed).take(LENGTH).collect();
                end.write_all(&bytes).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
        }
        for (mut end, seed) in [(&server, 1), (&client, 2)] {
            scope.spawn(move || {
                let mut bytes = Vec::new();
                end.read_to_end(&mut bytes).unwrap();
                assert!(bytes.into_iter().eq(noise(seed).take(LENGTH)));
            });
        }
    });

    let (mut client, mut server) = pair(&network, &listener);
    client.write_all(b"all I have to say").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "all I have to say");
    std::thread::sleep(Duration::from_millis(200));
    server.write_all(b"an answer").unwrap();
    drop(server);
    heard.clear();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "an answer");
}

fn is_reset(result: io::Result<usize>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_reaches_the_other_side() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    let _node = start(&network, &config(&folder), ONE);
    let listener = accept(network.pod(1));
    let (mut client, server) = pair(&network, &listener);
    reset(server);
    assert!(is_reset(client.read(&mut [0])));
    let (client, mut server) = pair(&network, &listener);
    reset(client);
    assert!(is_reset(server.read(&mut [0])));
}

#[test]
fn another_endpoint_is_tried_when_one_refuses_or_is_silent() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    network.pod(2).serve(&[9000]);
    let refusing = "
        service t/web cluster=cluster.1 port=http:80 port=dns:80/UDP
        slice t/web http=9000 dns=9000/UDP
          pod1
          pod2";
    let node = start(&network, &config(&folder), refusing);
    for _ in 0..20 {
        assert_eq!(network.pod(3).tcp(None, vip()).answered_by(), Some("pod2"));
        assert_eq!(network.pod(3).udp(None, vip()).answered_by(), Some("pod2"));
    }
    // Nobody has this pod's address: packets to it end nowhere.
    let silent = refusing.replace("pod1", "pod9");
    node.sync(plan_of(&silent).plan(), None);
    for _ in 0..4 {
        let start = Instant::now();
        let mut stream = connect(network.pod(3));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("pod2"), "{answer}");
        assert!(start.elapsed() < Duration::from_secs(3));
    }
    // Nobody is left: the client learns it.
    let nobody = refusing.replace("pod2", "pod4");
    node.sync(plan_of(&nobody).plan(), None);
    assert_eq!(network.pod(3).tcp(None, vip()), Outcome::Refused);
}

#[test]
fn datagrams_find_the_endpoint_that_is_left_at_once_and_clients_are_kept_apart() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    for pod in [1, 2] {
        network.pod(pod).serve(&[9000]);
    }
    let both = "
        service t/dns cluster=cluster.1 port=dns:80/UDP
        slice t/dns dns=9000/UDP
          pod1
          pod2
        service t/other cluster=cluster.2 port=dns:80/UDP
        slice t/other dns=9000/UDP
          pod2";
    let node = start(&network, &config(&folder), both);
    let flows: Vec<_> = (0..40).map(|_| network.pod(3).udp_flow(None, vip())).collect();
    let answers = || flows.iter().map(|flow| flow.probe().answered_by().unwrap().to_owned());
    let first: Vec<_> = answers().collect();
    assert!(first.iter().any(|pod| pod == "pod1") && first.iter().any(|pod| pod == "pod2"));
    assert_eq!(answers().collect::<Vec<_>>(), first, "a flow stays where it is");
    let one = both.replacen("pod1", "", 1);
    let changed = vec![kpng_core::model::NamespacedName::new("t", "dns")];
    node.sync(plan_of(&one).plan(), Some(changed));
    assert!(answers().all(|pod| pod == "pod2"));
}

#[test]
fn a_client_that_turns_to_another_frontend_is_not_taken_for_who_it_was() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    for pod in [1, 2] {
        network.pod(pod).serve(&[9000]);
    }
    let _node = start(
        &network,
        &config(&folder),
        "
        service t/one cluster=cluster.1 port=dns:80/UDP
        slice t/one dns=9000/UDP
          pod1
        service t/two cluster=cluster.2 port=dns:80/UDP
        slice t/two dns=9000/UDP
          pod2",
    );
    network.node.run(|| {
        for name in ["udp_timeout", "udp_timeout_stream"] {
            kpng_linux::sysctl::set(&format!("net/netfilter/nf_conntrack_{name}"), "2").unwrap();
        }
    });
    let at = network.pod(3).v4();
    let socket = network.pod(3).run(move || UdpSocket::bind((at, 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ask = |frontend: &str| {
        let to = SocketAddr::new(address(frontend, Family::V4), 80);
        socket.send_to(b"who?", to).unwrap();
        let mut buffer = [0; 100];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to);
        String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap().to_owned()
    };
    assert_eq!(ask("cluster.1"), "pod1");
    assert_eq!(ask("cluster.2"), "pod2", "while connection tracking remembers the first");
    assert_eq!(ask("cluster.1"), "pod1");
    // When it does not, the client has the same address for the proxy at both.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(ask("cluster.2"), "pod2");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(ask("cluster.1"), "pod1");
}

#[test]
fn affinity_survives_a_restart_and_a_successor_takes_over_without_a_refusal() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    for pod in [1, 2] {
        network.pod(pod).serve(&[9000]);
    }
    let cluster = "
        service t/web cluster=cluster.1 port=http:80 affinity=3600
        slice t/web http=9000
          pod1
          pod2";
    let ask = || network.pod(3).tcp(None, vip()).answered_by().map(str::to_owned);
    let mut before = start(&network, &config(&folder), cluster);
    let chosen = ask().unwrap();
    for _ in 0..6 {
        let after = start(&network, &config(&folder), cluster);
        for _ in 0..5 {
            assert_eq!(ask(), Some(chosen.clone()));
            assert!(!before.disturbed() && !after.disturbed());
        }
        before = after;
    }
    before.cleanup();
    let left = network.node.run(|| {
        let mut rtnetlink = kpng_linux::rtnetlink::Rtnetlink::open().unwrap();
        let addresses = rtnetlink.addresses().unwrap();
        addresses.into_iter().filter(|address| address.name == "lo").count()
    });
    assert_eq!(left, 2, "127.0.0.1 and ::1");
}

#[test]
fn there_are_no_more_connections_than_there_may_be_and_others_wait() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    let few = Config { max_connections: Some(2), ..config(&folder) };
    let _node = start(&network, &few, ONE);
    let listener = accept(network.pod(1));
    let (first, _second) = (pair(&network, &listener), pair(&network, &listener));
    let _third = connect(network.pod(3));
    assert!(listener.recv_timeout(Duration::from_millis(500)).is_err(), "it waits");
    drop(first);
    listener.recv_timeout(Duration::from_secs(5)).unwrap();
}

#[test]
fn draining_lets_connections_end_and_takes_no_new_ones() {
    let (Some(network), folder) = (network(), tempfile::tempdir().unwrap()) else { return };
    let config = config(&folder);
    let plan = plan_of(ONE).plan().clone();
    let listener = accept(network.pod(1));
    let (to_node, orders) = channel::<()>();
    let (drained, told) = channel();
    network.node.run({
        let config = config.clone();
        move || {
            let mut userspace = Userspace::open(config).unwrap();
            userspace.sync(&plan, None).unwrap();
            std::thread::spawn(move || {
                orders.recv().unwrap();
                let start = Instant::now();
                userspace.drain();
                drained.send(start.elapsed()).unwrap();
            });
        }
    });
    let (mut client, mut server) = pair(&network, &listener);
    to_node.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let refused = network.pod(3).run(|| TcpStream::connect_timeout(&vip(), Duration::from_secs(1)));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    client.write_all(b"still").unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).unwrap();
    drop((client, server));
    let took = told.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(took < config.drain_timeout, "it does not wait for nobody: {took:?}");
}
