//! The backend against a real kernel: the conformance table by real packets.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{self, Map, MapData};
use kpng_core::Backend;
use kpng_core::model::{Family, Protocol};
use kpng_core::plan::{At, FrontendKey, Planner};
use kpng_ebpf::{Attach, Config, Ebpf, GAPS};
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::conformance::{Conformance, OnNode, all_services, network, plan_of};
use kpng_testkit::fixture::address;
use kpng_testkit::network::{Host, Network, Outcome};
use rustix::net::{AddressFamily, SocketType, socket};

fn config(place: &BpfPlace) -> Config {
    Config {
        root: place.pins.clone(),
        cgroup_root: Some(place.cgroup.clone()),
        ..Config::default()
    }
}

fn ebpf(place: &BpfPlace) -> impl FnOnce() -> Box<dyn Backend> + Send + use<> {
    attached(place, Attach::Auto)
}

/// The same with filters instead of tcx, as on older kernels.
fn by_filters(place: &BpfPlace) -> impl FnOnce() -> Box<dyn Backend> + Send + use<> {
    attached(place, Attach::Clsact)
}

fn attached(place: &BpfPlace, attach: Attach) -> impl FnOnce() -> Box<dyn Backend> + Send + use<> {
    let config = Config { attach, ..config(place) };
    move || Box::new(Ebpf::open(config).unwrap())
}

#[test]
fn packets_go_where_the_plan_says() {
    every_case(Attach::Auto);
}

#[test]
fn packets_go_where_the_plan_says_by_filters() {
    every_case(Attach::Clsact);
}

fn every_case(attach: Attach) {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, attached(&place, attach));
    let mut conformance = Conformance::new(GAPS);
    node.through_cases(|case, plan| {
        conformance.check(case, &network);
        let audit = node.audit(plan).unwrap();
        assert!(audit.is_equal() && audit.found == audit.wanted, "{}: {audit:?}", case.name);
    });
    let wrong = conformance.finish();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A service of these pods, on TCP and UDP, with a node port.
fn web(pods: &str) -> Planner {
    plan_of(&format!(
        "service t/web cluster=cluster.1 port=http:80:30001 port=dns:53/UDP:30053
         slice t/web http=8080 dns=53/UDP
         {pods}
         service t/sticky cluster=cluster.2 port=http:80 affinity=600
         slice t/sticky http=8080
         {pods}"
    ))
}

fn at(name: &str, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(address(name, family), port)
}

/// The files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let Ok(list) = std::fs::read_dir(directory) else { return BTreeSet::new() };
    let entries = list.map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}

#[test]
fn applications_see_the_frontend_that_they_asked_for() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    node.sync(web("pod1\nremote1").plan(), None);
    for host in [network.pod(3), &network.node] {
        for family in Family::ALL {
            let web = at("cluster.1", family, 80);
            let stream = host.run(move || TcpStream::connect(web)).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), web);
            let dns = at("cluster.1", family, 53);
            let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = host.run(move || UdpSocket::bind(any)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut answer = [0; 100];
            socket.send_to(b"?", dns).unwrap();
            assert_eq!(socket.recv_from(&mut answer).unwrap().1, dns, "{}", host.name());
            socket.connect(dns).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), dns);
            socket.send(b"?").unwrap();
            assert_eq!(socket.recv_from(&mut answer).unwrap().1, dns, "{}", host.name());
        }
    }
}

#[test]
fn a_restart_keeps_connections_and_affinity() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    network.pod(1).serve_echo(&[7000]);
    let planner = plan_of(
        "service t/web cluster=cluster.1 port=http:80:30001
         slice t/web http=7000
         pod1
         service t/sticky cluster=cluster.2 port=http:80 affinity=600
         slice t/sticky http=8080
         pod1\npod2\npod3\nremote1\nremote2",
    );
    let first = OnNode::new(&network, ebpf(&place));
    first.sync(planner.plan(), None);
    let mut flows: Vec<_> = Family::ALL
        .into_iter()
        .map(|family| network.client.tcp_flow(None, at("node", family, 30001)).unwrap())
        .collect();
    let sticky = |host: &Host| {
        let answer = host.tcp(None, at("cluster.2", Family::V4, 80));
        answer.answered_by().map(str::to_owned)
    };
    let hosts = [network.pod(4), &network.node, &network.client];
    let before = hosts.map(sticky);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    let pins = files(&place.pins);
    for _ in 0..5 {
        let next = OnNode::new(&network, ebpf(&place));
        next.sync(planner.plan(), None);
        assert!(!next.disturbed());
        assert_eq!(files(&place.pins), pins);
        assert_eq!(hosts.map(sticky), before);
        flows.iter_mut().for_each(|flow| flow.echo("still here").unwrap());
    }
    drop(first);
    // Without any process the data path goes on.
    assert_eq!(hosts.map(sticky), before);
}

#[test]
fn what_others_take_away_comes_back_and_cleanup_leaves_nothing() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    let planner = web("pod1");
    node.sync(planner.plan(), None);
    let works = || {
        let pod = network.pod(3).tcp(None, at("cluster.1", Family::V4, 80));
        let client = network.client.tcp(None, at("node", Family::V6, 30001));
        pod.answered_by().is_some() && client.answered_by().is_some()
    };
    assert!(works() && !node.disturbed());
    let pins = files(&place.pins);
    std::fs::write(place.pins.parent().unwrap().join("theirs"), "").unwrap_err();
    std::fs::create_dir(place.pins.parent().unwrap().join("theirs")).unwrap();
    for gone in pins.iter().filter(|path| path.parent().unwrap().ends_with("links")) {
        std::fs::remove_file(gone).unwrap();
        assert!(node.disturbed(), "{}", gone.display());
        node.sync(planner.plan(), None);
        assert_eq!(files(&place.pins), pins);
        assert!(!node.disturbed());
    }
    assert!(works());
    node.cleanup();
    assert!(!place.pins.exists());
    assert!(place.pins.parent().unwrap().join("theirs").exists());
    // The kernel detaches what lost its last name in the background.
    let start = Instant::now();
    while works() {
        assert!(start.elapsed() < Duration::from_secs(5), "it still works");
    }
}

#[test]
fn another_process_sees_what_differs_and_disturbs_nobody() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    let other = OnNode::new(&network, ebpf(&place));
    let planner = plan_of(
        "service t/web cluster=cluster.1 lb=lb.1 ranges=client-net port=http:80:30001 affinity=60
         slice t/web http=8080
         pod1\npod2",
    );
    let audit = || other.audit(planner.plan()).unwrap();
    let nothing = audit();
    assert!(nothing.found == 0 && nothing.missing.count == nothing.wanted, "{nothing:?}");
    node.sync(planner.plan(), None);
    let all = audit();
    assert!(all.is_equal() && all.found == all.wanted, "{all:?}");
    assert!(all.wanted > nothing.wanted && !node.disturbed());

    let at = At::Vip(address("lb.1", Family::V4));
    let key = FrontendKey { at, protocol: Protocol::Tcp, port: 80 };
    let holds = || other.holds(planner.plan(), key).unwrap();
    let lines = holds();
    assert!(!lines.iter().any(|line| line.contains("missing") || line.contains("differs")));
    let [pod1, pod2] =
        ["pod1", "pod2"].map(|name| SocketAddr::new(address(name, Family::V4), 8080));
    let ends_with = |list: &str| lines.iter().any(|line| line.ends_with(list));
    assert!(lines[0].contains(", affinity 60 s, from ranges "), "{lines:?}");
    assert!(ends_with(&format!("{pod1} {pod2}")) && ends_with("/25"), "{lines:?}");

    // Somebody deletes an element, changes one, adds one, and takes a program away.
    let table = |name: &str| MapData::from_pin(place.pins.join("tables").join(name)).unwrap();
    let frontends = Map::HashMap(table("frontends"));
    let mut frontends = maps::HashMap::<_, [u8; 20], [u8; 40]>::try_from(frontends).unwrap();
    let mut key_of_lb = [0; 20];
    let IpAddr::V4(ip) = address("lb.1", Family::V4) else { unreachable!("it is of IPv4") };
    key_of_lb[..16].copy_from_slice(&ip.to_ipv6_mapped().octets());
    key_of_lb[16..19].copy_from_slice(&[0, 80, 6]);
    let value = frontends.get(&key_of_lb, 0).unwrap();
    frontends.remove(&key_of_lb).unwrap();
    let missing = audit();
    assert_eq!(missing.missing.names, [format!("frontends {ip}:80/TCP")]);
    assert!(holds()[0].ends_with("(missing)"), "{:?}", holds());
    let (mut shorter, mut stranger) = (value, key_of_lb);
    shorter[32] -= 1; // seconds of affinity
    stranger[17] = 81; // the port
    frontends.insert(key_of_lb, shorter, 0).unwrap();
    frontends.insert(stranger, value, 0).unwrap();
    let targets = Map::HashMap(table("targets"));
    let mut targets = maps::HashMap::<_, [u8; 8], [u8; 20]>::try_from(targets).unwrap();
    let first = targets.keys().next().unwrap().unwrap();
    targets.remove(&first).unwrap();
    std::fs::remove_file(place.pins.join("links/kpng_connect6")).unwrap();
    let differs = audit();
    assert_eq!(differs.differing.names[0], format!("frontends {ip}:80/TCP"));
    assert_eq!(differs.foreign.names, [format!("frontends {ip}:81/TCP")]);
    let names = &differs.missing.names;
    assert_eq!(names[0], "attachment of kpng_connect6 to the control group");
    assert!(names.len() == 2 && names[1].starts_with("targets pool "), "{names:?}");
    assert!(holds().iter().any(|line| line.ends_with("control group (missing)")));

    // The one at work notices what is gone, and all is well again.
    assert!(node.disturbed());
    let [ours, aside] = ["tables/frontends", "before"].map(|name| place.pins.join(name));
    std::fs::rename(&ours, &aside).unwrap();
    node.sync(planner.plan(), None);
    assert!(audit().is_equal() && !node.disturbed());

    // As after a process that was killed when programs had new tables, but names the old ones.
    std::fs::rename(&aside, &ours).unwrap();
    let differs = audit().differing.names;
    let first = "attachment of kpng_connect4 to the control group: it looks at other tables";
    assert_eq!(differs.first().map(String::as_str), Some(first), "{differs:?}");
    assert!(holds().iter().any(|line| line.ends_with("(looks at other tables)")), "{:?}", holds());
    node.sync(planner.plan(), None);
    assert!(audit().is_equal());
}

/// Runs a program on the node; gives what it prints.
fn run(network: &Network, words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    network.node.run(move || {
        #[expect(clippy::disallowed_methods, reason = "the kernel's own tools are the oracle")]
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    })
}

#[test]
fn filters_live_beside_those_of_others_and_follow_devices() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node_runs = |line: &str| run(&network, &line.split(' ').collect::<Vec<_>>());
    let qdiscs = || node_runs("tc qdisc show");
    let before = qdiscs();
    // Theirs, which lets all packets pass, on a device of which the qdisc is theirs too.
    node_runs("tc qdisc add dev eth0 clsact");
    for (priority, direction) in [("1", "ingress"), ("27", "ingress"), ("100", "egress")] {
        let add = ["tc", "filter", "add", "dev", "eth0", direction, "prio", priority];
        run(&network, &[&add[..], &["bpf", "bytecode", "1,6 0 0 0,"]].concat());
    }
    let filters = |device: &str| {
        ["ingress", "egress"]
            .map(|direction| run(&network, &["tc", "filter", "show", "dev", device, direction]))
    };
    let (their_filters, their_qdiscs) = (filters("eth0"), qdiscs());

    let planner = web("pod1");
    let works = || {
        let pod = network.pod(3).tcp(None, at("cluster.1", Family::V4, 80));
        let client = network.client.tcp(None, at("node", Family::V6, 30001));
        pod.answered_by().is_some() && client.answered_by().is_some()
    };
    let node = OnNode::new(&network, by_filters(&place));
    node.sync(planner.plan(), None);
    assert!(works() && !node.disturbed());
    let attached = filters("eth0");
    assert!(attached[0].contains("kpng_ingress direct-action"), "{}", attached[0]);
    assert!(attached[1].contains("kpng_egress direct-action"), "{}", attached[1]);
    assert!(qdiscs().contains("clsact ffff: dev veth-pod1"), "{}", qdiscs());

    // Filters that somebody deletes come back.
    node_runs("tc qdisc del dev veth-pod1 clsact");
    assert!(node.disturbed());
    assert_eq!(node.audit(planner.plan()).unwrap().missing.count, 2);
    node.sync(planner.plan(), None);
    assert!(!node.disturbed() && node.audit(planner.plan()).unwrap().is_equal());

    // A device that comes is followed, one that goes takes its filters with it.
    node_runs("ip link add new type bridge");
    node_runs("ip link set new up");
    assert!(!node.disturbed());
    assert!(filters("new")[1].contains("kpng_egress"), "{:?}", filters("new"));
    node_runs("ip link set new down");
    assert!(!node.disturbed());
    assert!(!qdiscs().contains("clsact ffff: dev new"), "{}", qdiscs());
    node_runs("ip link delete new");
    assert!(!node.disturbed() && works());

    // Another process by tcx takes over, and back again.
    let by_tcx = OnNode::new(&network, ebpf(&place));
    by_tcx.sync(planner.plan(), None);
    assert_eq!((filters("eth0"), qdiscs()), (their_filters.clone(), their_qdiscs.clone()));
    assert!(works() && !by_tcx.disturbed());
    let node = OnNode::new(&network, by_filters(&place));
    node.sync(planner.plan(), None);
    let links = files(&place.pins.join("links"));
    assert!(!links.iter().any(|link| link.ends_with("kpng_ingress-2")), "{links:?}");
    assert!(works() && !node.disturbed() && node.audit(planner.plan()).unwrap().is_equal());

    node.cleanup();
    assert_eq!((filters("eth0"), qdiscs()), (their_filters, their_qdiscs));
    node_runs("tc qdisc del dev eth0 clsact");
    assert_eq!(qdiscs(), before);
    assert!(!place.pins.exists());
}

#[test]
fn filters_for_arriving_packets_can_be_had_from_the_older_qdisc() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let tc = |line: &str| run(&network, &line.split(' ').collect::<Vec<_>>());
    tc("tc qdisc add dev eth0 ingress");
    let before = tc("tc qdisc show");
    let planner = web("pod1");
    let node = OnNode::new(&network, by_filters(&place));
    node.sync(planner.plan(), None);
    assert!(!node.disturbed());
    for family in Family::ALL {
        assert!(network.client.tcp(None, at("node", family, 30001)).answered_by().is_some());
    }
    let missing = node.audit(planner.plan()).unwrap().missing.names;
    assert_eq!(missing, ["attachment of kpng_egress to device eth0"]);
    assert!(tc("tc filter show dev eth0 ingress").contains("kpng_ingress"));
    node.cleanup();
    assert_eq!(tc("tc filter show dev eth0 ingress"), "");
    assert_eq!(tc("tc qdisc show"), before);
}

#[test]
fn a_restart_by_filters_loses_no_packet() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let planner = web("pod1");
    let mut node = OnNode::new(&network, by_filters(&place));
    node.sync(planner.plan(), None);
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut asked = 0;
            while !ends.load(Ordering::Relaxed) {
                let outcome = network.client.tcp(None, at("node", Family::V4, 30001));
                assert!(outcome.answered_by().is_some(), "{outcome:?} after {asked}");
                asked += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            asked
        });
        let (start, mut restarts) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(4) {
            node = OnNode::new(&network, by_filters(&place));
            node.sync(planner.plan(), None);
            restarts += 1;
        }
        ends.store(true, Ordering::Relaxed);
        let asked = client.join().unwrap();
        assert!(asked > 100 && restarts > 3, "{asked} {restarts}");
    });
    node.cleanup();
}

#[test]
fn tables_grow_and_devices_are_followed() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    let small = web("pod1");
    node.sync(small.plan(), None);
    let mut text = String::new();
    for n in 0..2000 {
        text += &format!(
            "service t/web{n} cluster=cluster.{} port=http:{}\nslice t/web{n} http=8080\npod1\npod2\n",
            10 + n % 100,
            1000 + n
        );
    }
    let large = plan_of(&text);
    node.sync(large.plan(), Some(all_services(small.plan(), large.plan())));
    for n in [0, 999, 1999] {
        let to = at(&format!("cluster.{}", 10 + n % 100), Family::V6, 1000 + n);
        assert!(network.pod(3).tcp(None, to).answered_by().is_some());
    }
    assert_eq!(
        network.pod(3).tcp(None, at("cluster.1", Family::V4, 80)),
        Outcome::TimedOut,
        "the old services are gone"
    );
    let links = files(&place.pins.join("links")).len();
    network.node.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        rtnetlink.add_bridge("new").unwrap();
        let link = rtnetlink.link("new").unwrap().index;
        rtnetlink.set_up(link).unwrap();
    });
    assert!(!node.disturbed());
    assert_eq!(files(&place.pins.join("links")).len(), links + 2);
    network.node.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let link = rtnetlink.link("new").unwrap().index;
        rtnetlink.delete_link(link).unwrap();
    });
    assert!(!node.disturbed());
    assert_eq!(files(&place.pins.join("links")).len(), links);
}

#[test]
fn nobody_is_refused_while_endpoints_and_processes_come_and_go() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let mut node = OnNode::new(&network, ebpf(&place));
    let (one, four) = (web("pod1"), web("pod1\npod2\npod3\nremote1"));
    node.sync(one.plan(), None);
    let ends = AtomicBool::new(false);
    let ask = |host: &Host, to: SocketAddr| {
        let mut asked = 0;
        while !ends.load(Ordering::Relaxed) {
            let outcome = host.tcp(None, to);
            assert!(outcome.answered_by().is_some(), "{outcome:?}, {to}, after {asked}");
            asked += 1;
            // A masqueraded connection has a port of its own for a while, also when it is closed.
            std::thread::sleep(Duration::from_millis(3));
        }
        asked
    };
    std::thread::scope(|scope| {
        let pod = scope.spawn(|| ask(network.pod(4), at("cluster.1", Family::V4, 80)));
        let client = scope.spawn(|| ask(&network.client, at("node", Family::V6, 30001)));
        let (start, mut changes) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(5) {
            for (before, after) in [(&one, &four), (&four, &one)] {
                node.sync(after.plan(), Some(all_services(before.plan(), after.plan())));
                changes += 1;
            }
            if changes % 50 == 0 {
                node = OnNode::new(&network, ebpf(&place));
                node.sync(one.plan(), None);
            }
        }
        ends.store(true, Ordering::Relaxed);
        let asked = [pod.join().unwrap(), client.join().unwrap()];
        assert!(asked.iter().all(|asked| *asked > 100) && changes > 100, "{asked:?} {changes}");
    });
}

#[test]
fn udp_sockets_to_an_endpoint_that_is_gone_end() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    let (one, other) = (web("pod1"), web("pod2"));
    node.sync(one.plan(), None);
    let dns = at("cluster.1", Family::V6, 53);
    let pod1 = SocketAddr::new(network.pod(1).v6(), 53);
    let connect = |host: &Host, to: SocketAddr| {
        // It has no port yet: a socket of IPv6 that has one is left to the wire.
        let socket = host.run(|| socket(AddressFamily::INET6, SocketType::DGRAM, None)).unwrap();
        let socket = UdpSocket::from(socket);
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    let flow = network.client.udp_flow(None, at("node", Family::V4, 30053));
    assert_eq!(flow.probe().answered_by(), Some("pod1"));
    let sockets = [network.pod(3), &network.node].map(|host| connect(host, dns));
    let direct = connect(network.pod(3), pod1);
    node.sync(other.plan(), Some(all_services(one.plan(), other.plan())));
    for socket in sockets {
        let error = socket.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    }
    // One that chose the endpoint itself goes on, and one from outside goes to the new endpoint.
    direct.send(b"?").unwrap();
    assert!(direct.recv(&mut [0; 100]).is_ok());
    assert_eq!(flow.probe().answered_by(), Some("pod2"));
}

#[test]
fn a_pod_chooses_itself_as_often_as_others() {
    let Some(network) = network() else { return };
    let place = BpfPlace::new(&network);
    let node = OnNode::new(&network, ebpf(&place));
    node.sync(web("pod1\npod2").plan(), None);
    for family in Family::ALL {
        let ask = || network.pod(1).tcp(None, at("cluster.1", family, 80));
        let itself = (0..400).filter(|_| ask().answered_by() == Some("pod1")).count();
        // Five standard deviations are 50.
        assert!((150..=250).contains(&itself), "{itself} of 400 ({})", family.name());
    }
}
