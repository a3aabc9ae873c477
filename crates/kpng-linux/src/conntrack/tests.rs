use super::*;
use crate::namespace::NetNs;

/// The table's user cannot tell who filtered, so this looks at what the kernel sends.
#[test]
fn the_kernel_filters_by_protocol_since_linux_5_8() {
    let namespace = match NetNs::new() {
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => return,
        namespace => namespace.unwrap(),
    };
    let count = |protocol| {
        let mut socket = Socket::open(Protocol::Netfilter, 0).unwrap();
        for (family, source, destination) in [
            (Family::V4, "10.0.0.1:1000", "172.30.0.1:53"),
            (Family::V6, "[fd00::1]:1000", "[fd00:172:30::1]:53"),
        ] {
            for protocol in [17, 132, 17] {
                let original = Tuple {
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                };
                let _exists = socket.request(&"insert", &mut insertion(family, protocol, original));
            }
        }
        let mut seen = Vec::new();
        let note = |message: Message<'_>| {
            seen.extend(decode(message).map(|entry| (entry.family(), entry.protocol)));
            Ok(())
        };
        socket.dump(&"list", &mut filtered_dump(Family::V6, protocol), note).unwrap();
        seen
    };
    for protocol in [17, 132] {
        assert_eq!(namespace.run(|| count(protocol)).unwrap(), [(Family::V6, protocol)]);
    }
    assert_eq!(namespace.run(|| count(6)).unwrap(), []);
}

#[test]
fn the_kernel_filters_by_destination() {
    let namespace = match NetNs::new() {
        Err(_) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => return,
        namespace => namespace.unwrap(),
    };
    let family = |to: &str| Family::of(to.parse::<SocketAddr>().unwrap().ip());
    let shown = namespace.run(|| {
        let mut table = Conntrack::open().unwrap();
        for to in
            ["172.30.0.1:53", "172.30.0.2:53", "172.30.0.1:54", "[fd00::1]:53", "[fd00::2]:53"]
        {
            let source = if family(to) == Family::V4 { "10.0.0.1:1000" } else { "[fd00::9]:1000" };
            let original =
                Tuple { source: source.parse().unwrap(), destination: to.parse().unwrap() };
            for protocol in [17, 6] {
                // TCP entries need more than this and are refused; UDP is what counts.
                let _result =
                    table.socket.request(&"insert", &mut insertion(family(to), protocol, original));
            }
        }
        let mut shown = |family, address: Option<&str>, port| {
            let mut shown = Vec::new();
            let note = |entry: &Entry| {
                shown.push(entry.original.destination.to_string());
                Ok(())
            };
            let address = address.map(|address| address.parse().unwrap());
            table.dump_to(family, 17, (address, port), note).unwrap();
            assert!(table.filters_in_kernel());
            shown.sort_unstable();
            shown.join(" ")
        };
        [
            shown(Family::V4, Some("172.30.0.1"), 53),
            shown(Family::V4, None, 53),
            shown(Family::V4, Some("172.30.0.3"), 53),
            shown(Family::V6, Some("fd00::2"), 53),
            shown(Family::V6, None, 53),
            shown(Family::V6, None, 54),
        ]
    });
    let expected = [
        "172.30.0.1:53",
        "172.30.0.1:53 172.30.0.2:53",
        "",
        "[fd00::2]:53",
        "[fd00::1]:53 [fd00::2]:53",
        "",
    ];
    assert_eq!(shown.unwrap(), expected);
}

fn insertion(family: Family, protocol: u8, original: Tuple) -> MessageBuf {
    let mut message = MessageBuf::new();
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    message.begin((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8, flags);
    message.put_raw(&[family.number(), 0, 0, 0]);
    let reply = Tuple { source: original.destination, destination: original.source };
    for (kind, tuple) in [(CTA_TUPLE_ORIG, original), (CTA_TUPLE_REPLY, reply)] {
        message.nest(kind, |m| put_tuple(m, protocol, &tuple));
    }
    message.put_u32_be(7, 600); // CTA_TIMEOUT
    if protocol == 132 {
        // CTA_PROTOINFO, CTA_PROTOINFO_SCTP: state, and the tags of both sides.
        message.nest(4, |m| {
            m.nest(3, |m| {
                m.put_u8(1, 4);
                m.put_u32_be(2, 1);
                m.put_u32_be(3, 2);
            });
        });
    }
    message
}

#[test]
fn a_zone_of_one_direction_stays_in_its_tuple() {
    for zone_in_tuple in [false, true] {
        let mut m = message(0, Family::V4);
        let tuple = Tuple {
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "10.0.0.2:2".parse().unwrap(),
        };
        for kind in [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY] {
            m.nest(kind, |m| {
                put_tuple(m, 17, &tuple);
                if zone_in_tuple && kind == CTA_TUPLE_ORIG {
                    m.put_u16_be(CTA_TUPLE_ZONE, 7);
                }
            });
        }
        if !zone_in_tuple {
            m.put_u16_be(CTA_ZONE, 7);
        }
        m.put_u32_be(CTA_ID, 99);
        let entry = crate::netlink::messages(m.as_bytes()).find_map(decode).unwrap();
        assert_eq!((entry.zone, entry.id), (7, 99));
        let deletion = deletion(&entry);
        let deletion = crate::netlink::messages(deletion.as_bytes()).next().unwrap();
        let outer = deletion.attrs(HEADER_LEN).any(|attr| attr.kind == CTA_ZONE);
        assert_eq!(outer, !zone_in_tuple);
        let tuple = deletion.attrs(HEADER_LEN).find(|attr| attr.kind == CTA_TUPLE_ORIG).unwrap();
        assert_eq!(tuple.attrs().any(|attr| attr.kind == CTA_TUPLE_ZONE), zone_in_tuple);
    }
}
