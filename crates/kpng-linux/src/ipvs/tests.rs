use std::net::SocketAddr;

use super::*;
use crate::netlink::{HEADER_LEN, attrs, messages};

/// Command lines of ipvsadm, and the bytes that it sends for them.
const CAPTURES: &str = include_str!("ipvsadm.txt");

/// `IPVS_DEST_ATTR_TUN_TYPE` to `IPVS_DEST_ATTR_TUN_FLAGS`: said by ipvsadm, not looked at by the
/// kernel unless packets are tunnelled.
const TUNNEL: [u16; 3] = [13, 14, 15];

/// What ipvsadm sends, for each time that it asks something for this command line.
fn captured(line: &str) -> Vec<Vec<u8>> {
    let lines: Vec<_> = CAPTURES.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs = lines.windows(2).filter(|pair| pair[0] == line);
    let bytes = |hex: &str| {
        let digits = hex.trim().as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    };
    pairs.map(|pair| bytes(pair[1])).collect()
}

/// The bytes of one message behind its header.
fn sent(message: &MessageBuf) -> Vec<u8> {
    let mut all = messages(message.as_bytes());
    let payload = all.next().unwrap().payload.to_vec();
    assert!(all.next().is_none() && message.len() == HEADER_LEN + payload.len());
    payload
}

fn encoded(command: &Command) -> Vec<u8> {
    let mut message = MessageBuf::new();
    message::command(&mut message, 28, command);
    sent(&message)
}

/// The attributes of attribute `nest`.
fn nested(bytes: &[u8], nest: u16) -> Vec<(u16, Vec<u8>)> {
    let nest = attrs(&bytes[4..]).find(|attr| attr.kind == nest).unwrap();
    nest.attrs().map(|attr| (attr.kind, attr.payload.to_vec())).collect()
}

fn address(protocol: u8, at: &str) -> ServiceKey {
    let at: SocketAddr = at.parse().unwrap();
    ServiceKey::Address { address: at.ip(), protocol, port: at.port() }
}

fn mark(family: Family, mark: u32) -> ServiceKey {
    ServiceKey::Mark { family, mark }
}

fn service(key: ServiceKey, scheduler: &str, persistence: Option<u64>) -> Service {
    let persistence = persistence.map(Duration::from_secs);
    Service { key, scheduler: scheduler.to_owned(), persistence, falls_back: false, tagged: false }
}

fn tagged(key: ServiceKey, scheduler: &str, persistence: Option<u64>) -> Service {
    Service { tagged: true, ..service(key, scheduler, persistence) }
}

fn falling_back(key: ServiceKey, scheduler: &str, persistence: Option<u64>) -> Service {
    Service { falls_back: true, ..tagged(key, scheduler, persistence) }
}

fn to(at: &str, weight: u32) -> Destination {
    let at: SocketAddr = at.parse().unwrap();
    Destination { address: at.ip(), port: at.port(), weight }
}

fn web() -> ServiceKey {
    address(6, "10.96.0.10:80")
}

fn dns() -> ServiceKey {
    address(17, "[fd00:96::10]:53")
}

#[cfg(target_endian = "little")]
#[test]
fn services_are_sent_as_ipvsadm_does() {
    for command in [
        Command::AddService(service(web(), "wlc", None)),
        Command::AddService(service(dns(), "rr", Some(10_800))),
        Command::AddService(service(mark(Family::V4, 1_802_502_145), "mh", None)),
        Command::AddService(service(mark(Family::V6, 1_802_502_146), "mh", None)),
        Command::SetService(service(web(), "rr", Some(60))),
        Command::AddService(tagged(address(6, "10.96.0.11:80"), "mh", None)),
        Command::AddService(tagged(dns(), "mh", Some(10_800))),
        Command::AddService(tagged(mark(Family::V4, 1_802_502_145), "rr", None)),
        Command::AddService(falling_back(address(6, "10.96.0.12:80"), "mh", Some(60))),
        Command::AddService(falling_back(address(6, "10.96.0.13:80"), "sh", None)),
    ] {
        assert_eq!(captured(&command.to_string()), [encoded(&command)], "{command}");
    }
}

/// ipvsadm repeats all of the service beside the destination; what identifies it is enough.
#[cfg(target_endian = "little")]
#[test]
fn destinations_are_sent_as_ipvsadm_does() {
    for command in [
        Command::AddDestination(web(), to("10.0.0.7:8080", 1)),
        Command::SetDestination(web(), to("10.0.0.7:8080", 0)),
        Command::AddDestination(dns(), to("[fd00::7]:5353", 3)),
        Command::AddDestination(mark(Family::V4, 1_802_502_145), to("10.0.0.7:8080", 1)),
    ] {
        let [theirs] = &captured(&command.to_string())[..] else { panic!("{command}") };
        let ours = encoded(&command);
        assert_eq!(ours[..4], theirs[..4], "{command}");
        let (mut theirs_to, ours_to) = (nested(theirs, 2), nested(&ours, 2));
        theirs_to.retain(|(kind, _)| !TUNNEL.contains(kind));
        assert_eq!(ours_to, theirs_to, "{command}");
        let (theirs_key, ours_key) = (nested(theirs, 1), nested(&ours, 1));
        assert_eq!(ours_key, theirs_key[..ours_key.len()], "{command}");
    }
}

#[cfg(target_endian = "little")]
#[test]
fn deletions_name_what_ipvsadm_names() {
    for command in [
        Command::DeleteService(web()),
        Command::DeleteService(mark(Family::V4, 1_802_502_145)),
        Command::DeleteDestination(web(), to("10.0.0.7:8080", 0)),
    ] {
        let [theirs] = &captured(&command.to_string())[..] else { panic!("{command}") };
        let ours = encoded(&command);
        assert_eq!(ours[..4], theirs[..4], "{command}");
        let (theirs_key, ours_key) = (nested(theirs, 1), nested(&ours, 1));
        assert_eq!(ours_key, theirs_key[..ours_key.len()], "{command}");
        if matches!(command, Command::DeleteDestination(..)) {
            assert_eq!(nested(&ours, 2)[..3], nested(theirs, 2)[..3], "{command}");
        }
    }
}

#[cfg(target_endian = "little")]
#[test]
fn questions_and_timeouts_are_those_of_ipvsadm() {
    let mut questions = vec![sent(&message::list_services(28))];
    let keys = [web(), dns(), mark(Family::V4, 1_802_502_145), mark(Family::V6, 1_802_502_146)];
    for key in keys {
        questions.push(sent(&message::list_destinations(28, key)));
    }
    assert_eq!(captured("-Sn"), questions);
    let timeouts = Timeouts {
        tcp: Some(Duration::from_secs(900)),
        tcp_fin: Some(Duration::from_secs(120)),
        udp: Some(Duration::from_secs(300)),
    };
    let message = message::set_timeouts(28, &timeouts);
    assert_eq!(captured("--set 900 120 300"), [sent(&message)]);
}

#[test]
fn replies_are_read_and_nonsense_is_not() {
    let web = tagged(web(), "wlc", Some(60));
    let mut message = MessageBuf::new();
    message::command(&mut message, 28, &Command::AddService(web.clone()));
    let reply = messages(message.as_bytes()).next().unwrap();
    assert_eq!(message::service(reply), Some(web));
    for length in 0..reply.payload.len() {
        let cut = crate::netlink::Message { payload: &reply.payload[..length], ..reply };
        assert_eq!(message::service(cut), None);
        assert_eq!(message::destination(cut, Family::V4), None);
    }
}

/// On a kernel with IPVS the backend's tests do more.
#[test]
fn a_kernel_without_ipvs_says_what_to_do() {
    if let Err(error) = Ipvs::open() {
        expect_test::expect![[
            "this kernel has no IPVS (generic netlink family): load its module, or use a kernel that is built with it"
        ]]
        .assert_eq(&error.to_string());
    }
}
