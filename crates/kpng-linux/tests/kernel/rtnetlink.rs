use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use expect_test::expect;
use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::{
    AddressChange, AddressMonitor, Family, InterfaceAddress, NextHop, Route, Rtnetlink, Rule,
};
use kpng_linux::{Error, sysctl};
use rustix::io::Errno;

use crate::{in_namespace, namespace, output};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn loopback_up(rtnetlink: &mut Rtnetlink) {
    let index = rtnetlink_index(rtnetlink, "lo");
    rtnetlink.set_up(index).unwrap();
}

fn rtnetlink_index(rtnetlink: &mut Rtnetlink, name: &str) -> u32 {
    rtnetlink.link(name).unwrap().index
}

#[test]
fn links_are_created_changed_and_removed() {
    in_namespace(|| {
        let peer_namespace = NetNs::new().unwrap();
        let mut links = Rtnetlink::open().unwrap();
        links.add_veth("a0", "b0", &peer_namespace).unwrap();
        links.add_bridge("br0").unwrap();
        let (veth, bridge) =
            (rtnetlink_index(&mut links, "a0"), rtnetlink_index(&mut links, "br0"));
        links.set_up(veth).unwrap();
        links.set_mtu(veth, 1400).unwrap();
        links.set_master(veth, Some(bridge)).unwrap();
        let link = links.link("a0").unwrap();
        assert!(link.is_up() && !link.is_running() && !link.is_loopback());
        assert_eq!(
            (link.mtu, link.master, link.kind.as_deref()),
            (1400, Some(bridge), Some("veth"))
        );
        let shown = output(&["ip", "-o", "link", "show", "dev", "a0"]);
        assert!(shown.contains("mtu 1400") && shown.contains("master br0"), "{shown}");
        let peer = peer_namespace.run(|| Rtnetlink::open().unwrap().link("b0").unwrap()).unwrap();
        assert_eq!(peer.kind.as_deref(), Some("veth"));

        links.set_down(veth).unwrap();
        links.set_master(veth, None).unwrap();
        links.rename(veth, "a1").unwrap();
        let link = links.link("a1").unwrap();
        assert_eq!((link.is_up(), link.master, link.index), (false, None, veth));
        assert!(matches!(links.link("a0"), Err(Error::NoLink { .. })));
        assert_eq!(links.add_bridge("a1").unwrap_err().errno(), Some(Errno::EXIST));

        links.delete_link(veth).unwrap();
        let names: Vec<_> = links.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["lo", "br0"]);
    });
}

#[test]
fn addresses_of_both_families_are_listed_as_ip_shows_them() {
    in_namespace(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        loopback_up(&mut rtnetlink);
        rtnetlink.add_bridge("br0").unwrap();
        let bridge = rtnetlink_index(&mut rtnetlink, "br0");
        rtnetlink.add_address(bridge, ip("192.0.2.1"), 24).unwrap();
        rtnetlink.add_address(bridge, ip("192.0.2.2"), 24).unwrap();
        rtnetlink.add_address(bridge, ip("2001:db8::1"), 64).unwrap();
        output(&["ip", "addr", "add", "10.9.0.1", "peer", "10.9.0.2/32", "dev", "br0"]);
        let again = rtnetlink.add_address(bridge, ip("192.0.2.2"), 24).unwrap_err();
        assert_eq!(again.errno(), Some(Errno::EXIST));
        let list = |rtnetlink: &mut Rtnetlink| {
            let addresses = rtnetlink.addresses().unwrap();
            let line = |a: &InterfaceAddress| {
                let (global, usable) = (a.is_global(), a.is_usable());
                let text = format!("{} {}/{}", a.name, a.address, a.prefix_len);
                format!("{text} global={global} usable={usable}\n")
            };
            let mut lines: Vec<_> = addresses.iter().map(line).collect();
            lines.sort();
            lines.concat()
        };
        expect![[r#"
            br0 10.9.0.1/32 global=true usable=true
            br0 192.0.2.1/24 global=true usable=true
            br0 192.0.2.2/24 global=true usable=true
            br0 2001:db8::1/64 global=true usable=true
            lo 127.0.0.1/8 global=false usable=true
            lo ::1/128 global=false usable=true
        "#]]
        .assert_eq(&list(&mut rtnetlink));
        rtnetlink.delete_address(bridge, ip("192.0.2.2"), 24).unwrap();
        rtnetlink.delete_address(bridge, ip("2001:db8::1"), 64).unwrap();
        let list = list(&mut rtnetlink);
        assert!(!list.contains("192.0.2.2") && !list.contains("2001:db8"), "{list}");
    });
}

#[test]
fn the_monitor_tells_of_links_and_addresses_and_only_then() {
    in_namespace(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let mut monitor = AddressMonitor::open().unwrap();
        assert!(!monitor.wait(Duration::from_millis(20)).unwrap());
        rtnetlink.add_bridge("br0").unwrap();
        assert!(monitor.wait(Duration::from_secs(5)).unwrap());
        assert!(!monitor.changed().unwrap());
        let bridge = rtnetlink_index(&mut rtnetlink, "br0");
        for address in ["192.0.2.1", "2001:db8::1"] {
            rtnetlink.add_address(bridge, ip(address), 32).unwrap();
            assert!(monitor.wait(Duration::from_secs(5)).unwrap(), "{address}");
            assert!(!monitor.changed().unwrap());
        }
    });
}

#[test]
fn the_monitor_tells_what_changed() {
    let Some(namespace) = namespace() else { return };
    let run = || {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let mut monitor = AddressMonitor::open().unwrap();
        // The kernel tells of IPv6 addresses when it has looked after them, in the background.
        let mut is_told = |fits: &dyn Fn(&AddressChange) -> bool| {
            let mut told = false;
            while !told && monitor.wait_readable(Duration::from_secs(5)).unwrap() {
                monitor.read(|change| told |= fits(&change)).unwrap();
            }
            told
        };
        rtnetlink.add_bridge("b0").unwrap();
        let index = rtnetlink_index(&mut rtnetlink, "b0");
        assert!(is_told(&|c| matches!(c, AddressChange::Link(l) if l.index == index)));
        for address in ["10.0.0.1", "fd00::1"].map(ip) {
            let of = |found: &InterfaceAddress| found.index == index && found.address == address;
            let whole = if address.is_ipv4() { 32 } else { 128 };
            rtnetlink.add_address(index, address, whole).unwrap();
            assert!(is_told(&|c| matches!(c, AddressChange::Address(a) if of(a))), "{address}");
            rtnetlink.delete_address(index, address, whole).unwrap();
            assert!(is_told(&|c| matches!(c, AddressChange::AddressGone(a) if of(a))), "{address}");
        }
        rtnetlink.delete_link(index).unwrap();
        assert!(is_told(&|c| matches!(c, AddressChange::LinkGone(l) if l.name == "b0")));
    };
    namespace.run(run).unwrap();
}

#[test]
fn an_overrun_of_notifications_counts_as_a_change() {
    in_namespace(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        let mut monitor = AddressMonitor::open().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&monitor, 0).unwrap();
        for number in 0..64 {
            rtnetlink.add_bridge(&format!("br{number}")).unwrap();
        }
        assert!(monitor.changed().unwrap());
        assert!(!monitor.changed().unwrap());
    });
}

#[test]
fn the_primary_address_is_that_of_the_default_route() {
    in_namespace(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        loopback_up(&mut rtnetlink);
        for family in [Family::V4, Family::V6] {
            assert_eq!(rtnetlink.primary_address(family).unwrap(), None);
        }
        for (name, v4, v6) in [("br0", "10.1.0.1", "fd01::1"), ("br1", "10.2.0.1", "fd02::1")] {
            rtnetlink.add_bridge(name).unwrap();
            let index = rtnetlink_index(&mut rtnetlink, name);
            rtnetlink.set_up(index).unwrap();
            rtnetlink.add_address(index, ip(v4), 24).unwrap();
            rtnetlink.add_address(index, ip(v6), 64).unwrap();
        }
        // No default route: the first address.
        assert_eq!(rtnetlink.primary_address(Family::V4).unwrap(), Some(ip("10.1.0.1")));
        assert_eq!(rtnetlink.primary_address(Family::V6).unwrap(), Some(ip("fd01::1")));
        let default = |destination: &str, gateway: &str| Route {
            destination: (ip(destination), 0),
            gateway: Some(ip(gateway)),
            interface: None,
            source: None,
            on_link: false,
        };
        let (v4, v6) = (default("0.0.0.0", "10.2.0.254"), default("::", "fd02::ff"));
        rtnetlink.add_route(&v4).unwrap();
        rtnetlink.add_route(&v6).unwrap();
        assert_eq!(rtnetlink.primary_address(Family::V4).unwrap(), Some(ip("10.2.0.1")));
        assert_eq!(rtnetlink.primary_address(Family::V6).unwrap(), Some(ip("fd02::1")));
        rtnetlink.delete_route(&v4).unwrap();
        assert_eq!(rtnetlink.primary_address(Family::V4).unwrap(), Some(ip("10.1.0.1")));
    });
}

#[test]
fn two_namespaces_talk_over_a_routed_veth() {
    let Some(left) = namespace() else { return };
    let right = NetNs::new().unwrap();
    left.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        rtnetlink.add_veth("v0", "v1", &right).unwrap();
        configure(&mut rtnetlink, "v0", ["192.0.2.1", "2001:db8::1"], ["10.8.0.1", "fd08::1"]);
    })
    .unwrap();
    let listener = right.run(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        configure(&mut rtnetlink, "v1", ["10.8.0.1", "fd08::1"], ["192.0.2.1", "2001:db8::1"]);
        TcpListener::bind("[::]:7000").unwrap()
    });
    for (from, to) in [("192.0.2.1", "10.8.0.1:7000"), ("2001:db8::1", "[fd08::1]:7000")] {
        let to = to.parse().unwrap();
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        let _stream = left.run(connect).unwrap();
        let (_stream, peer) = listener.as_ref().unwrap().accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), ip(from));
    }
}

/// Gives `link` two single addresses, and routes to two others.
fn configure(rtnetlink: &mut Rtnetlink, link: &str, addresses: [&str; 2], others: [&str; 2]) {
    let index = rtnetlink_index(rtnetlink, link);
    sysctl::set(&format!("net/ipv6/conf/{link}/accept_dad"), "0").unwrap();
    rtnetlink.set_up(index).unwrap();
    for (address, other) in addresses.map(ip).into_iter().zip(others.map(ip)) {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        rtnetlink.add_address(index, address, whole).unwrap();
        let route = Route {
            destination: (other, whole),
            gateway: None,
            interface: Some(index),
            source: Some(address),
            on_link: false,
        };
        rtnetlink.add_route(&route).unwrap();
    }
}

#[test]
fn marked_packets_end_here() {
    in_namespace(|| {
        let mut rtnetlink = Rtnetlink::open().unwrap();
        loopback_up(&mut rtnetlink);
        let rule = Rule { priority: 50, mark: 0x4000, mask: 0x4000, table: 27_504 };
        for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            assert!(!rtnetlink.is_local_by_mark(family, 0x4000).unwrap());
            assert_eq!(rtnetlink.rules(family).unwrap(), []);
            rtnetlink.add_rule(family, &rule).unwrap();
            assert!(rtnetlink.add_rule(family, &rule).unwrap_err().is_there_already());
            assert!(!rtnetlink.is_local_by_mark(family, 0x4000).unwrap());
            rtnetlink.add_local_route(family, rule.table).unwrap();
            rtnetlink.add_local_route(family, rule.table).unwrap();
            assert!(rtnetlink.is_local_by_mark(family, 0x4000).unwrap());
            assert!(!rtnetlink.is_local_by_mark(family, 0x8000).unwrap());
            assert_eq!(rtnetlink.rules(family).unwrap(), [rule]);
            let shown = output(&["ip", option, "rule", "show"]);
            assert!(shown.contains("50:\tfrom all fwmark 0x4000/0x4000 lookup 27504"), "{shown}");
            let shown = output(&["ip", option, "route", "show", "table", "27504"]);
            assert!(shown.starts_with("local default dev lo"), "{shown}");

            rtnetlink.delete_rule(family, &rule).unwrap();
            assert!(rtnetlink.delete_rule(family, &rule).unwrap_err().is_not_there());
            rtnetlink.delete_local_route(family, rule.table).unwrap();
            assert!(rtnetlink.delete_local_route(family, rule.table).unwrap_err().is_not_there());
        }
    });
}

#[test]
fn the_next_hop_is_a_router_or_the_destination_itself() {
    in_namespace(|| {
        let (mut rtnetlink, peer) = (Rtnetlink::open().unwrap(), NetNs::new().unwrap());
        loopback_up(&mut rtnetlink);
        rtnetlink.add_veth("a0", "b0", &peer).unwrap();
        let link = rtnetlink_index(&mut rtnetlink, "a0");
        rtnetlink.set_up(link).unwrap();
        for [own, other, world] in
            [["10.0.0.1", "10.0.0.2", "192.0.2.1"], ["fd00::1", "fd00::2", "2001:db8::1"]]
        {
            let bits = if ip(own).is_ipv4() { 24 } else { 64 };
            rtnetlink.add_address(link, ip(own), bits).unwrap();
            assert_eq!(rtnetlink.next_hop(ip(world)).unwrap(), None);
            let any = ip(if bits == 24 { "0.0.0.0" } else { "::" });
            let (gateway, interface, source) = (Some(ip(other)), Some(link), None);
            let route = Route { destination: (any, 0), gateway, interface, source, on_link: true };
            rtnetlink.add_route(&route).unwrap();
            let mut hop = |to| rtnetlink.next_hop(ip(to)).unwrap().unwrap();
            let direct = NextHop { interface: link, is_router: false, is_local: false };
            assert_eq!(hop(other), direct);
            assert_eq!(hop(world), NextHop { is_router: true, ..direct });
            assert!(hop(if bits == 24 { "127.0.0.1" } else { "::1" }).is_local);
        }
    });
}

/// Without it, a node would send from such an address wherever the way out has none of its own.
#[test]
fn an_inner_address_is_no_source_for_others() {
    in_namespace(|| {
        let (mut rtnetlink, peer) = (Rtnetlink::open().unwrap(), NetNs::new().unwrap());
        loopback_up(&mut rtnetlink);
        let loopback = rtnetlink_index(&mut rtnetlink, "lo");
        for name in ["eth0", "pod0"] {
            rtnetlink.add_veth(name, name, &peer).unwrap();
            let link = rtnetlink_index(&mut rtnetlink, name);
            rtnetlink.set_up(link).unwrap();
        }
        let [eth, pod] = ["eth0", "pod0"].map(|name| rtnetlink_index(&mut rtnetlink, name));
        for [inner, own, other] in
            [["169.254.107.1", "192.0.2.1", "10.0.0.1"], ["fd6b::1", "2001:db8::1", "fd00::1"]]
        {
            let bits = if ip(own).is_ipv4() { 32 } else { 128 };
            rtnetlink.add_inner_address(loopback, ip(inner)).unwrap();
            let again = rtnetlink.add_inner_address(loopback, ip(inner)).unwrap_err();
            assert!(again.is_there_already());
            rtnetlink.add_address(eth, ip(own), bits).unwrap();
            let (destination, interface) = ((ip(other), bits), Some(pod));
            let route =
                Route { destination, gateway: None, interface, source: None, on_link: false };
            rtnetlink.add_route(&route).unwrap();
            let socket = std::net::UdpSocket::bind(if bits == 32 { "0.0.0.0:0" } else { "[::]:0" });
            let socket = socket.unwrap();
            socket.connect((ip(other), 9)).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), ip(own));
            TcpListener::bind((ip(inner), 0)).expect("it can be listened on");
            rtnetlink.delete_address(loopback, ip(inner), bits).unwrap();
        }
    });
}
