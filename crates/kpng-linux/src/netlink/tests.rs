use std::time::Duration;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::Error;

const RTM_GETLINK: u16 = libc::RTM_GETLINK;
const IFINFO_LEN: usize = 16;

fn hex(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(4).map(word).collect::<Vec<_>>().join(" ")
}

fn check_encoding(fill: impl FnOnce(&mut MessageBuf), expected: Expect) {
    let mut m = MessageBuf::new();
    m.begin(0x0102, 0);
    fill(&mut m);
    assert_eq!(messages(m.as_bytes()).count(), 1);
    expected.assert_eq(&hex(&m.as_bytes()[HEADER_LEN..]));
}

#[cfg(target_endian = "little")]
#[test]
fn attributes_are_aligned_and_have_their_byte_order() {
    check_encoding(|m| m.put_flag(1), expect!["04000100"]);
    check_encoding(|m| m.put_u8(1, 0xab), expect!["05000100 ab000000"]);
    check_encoding(|m| m.put_u16(1, 0x0102), expect!["06000100 02010000"]);
    check_encoding(|m| m.put_u16_be(1, 0x0102), expect!["06000100 01020000"]);
    check_encoding(|m| m.put_u32(1, 1), expect!["08000100 01000000"]);
    check_encoding(|m| m.put_u32_be(1, 1), expect!["08000100 00000001"]);
    check_encoding(|m| m.put_u64_be(1, 1), expect!["0c000100 00000000 00000001"]);
    check_encoding(|m| m.put_str(1, "lo"), expect!["07000100 6c6f0000"]);
    check_encoding(
        |m| {
            m.put_raw(&[1, 2, 3]);
            m.nest(2, |m| {
                m.put_u8(1, 9);
                m.nest(3, |m| m.put_flag(4));
            });
        },
        expect!["01020300 14000280 05000100 09000000 08000380 04000400"],
    );
}

#[test]
fn lengths_are_right_after_every_step() {
    let mut m = MessageBuf::new();
    m.begin(1, 0);
    assert_eq!(messages(m.as_bytes()).map(|m| m.payload.len()).collect::<Vec<_>>(), [0]);
    m.put_u8(1, 1);
    m.begin(2, libc::NLM_F_ACK as u16);
    m.put_u32(1, 1);
    m.number(7);
    let summary: Vec<_> =
        messages(m.as_bytes()).map(|m| (m.kind, m.flags, m.sequence, m.payload.len())).collect();
    assert_eq!(summary, [(1, 1, 7, 8), (2, 5, 8, 8)]);
    m.clear();
    assert!(m.is_empty() && m.messages() == 0);
}

#[test]
fn an_attribute_over_64_kib_is_an_error_and_is_not_sent() {
    let longest = vec![0; MAX_PAYLOAD];
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();

    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    m.put_bytes(1, &longest);
    assert!(m.too_long().is_none());
    m.put_bytes(2, &vec![0; MAX_PAYLOAD + 1]);
    let error = socket.send_batch(&"try", &mut m).unwrap_err();
    expect!["cannot try: netlink attribute 2 has 65532 bytes, the limit is 65,531"]
        .assert_eq(&error.to_string());

    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    let nest = m.open(5);
    m.put_bytes(1, &longest[..MAX_PAYLOAD - 7]);
    assert_eq!(m.payload_len(&nest), MAX_PAYLOAD - 3);
    m.put_flag(2);
    m.close(nest);
    let error = socket.send_batch(&"try", &mut m).unwrap_err();
    expect!["cannot try: netlink attribute 5 has 65532 bytes, the limit is 65,531"]
        .assert_eq(&error.to_string());
}

#[test]
fn the_kernel_lists_the_loopback_interface() {
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();
    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    m.put_raw(&[0; IFINFO_LEN]);
    for _ in 0..2 {
        let names = socket
            .list(&"list links", &mut m, |entry| {
                entry.attrs(IFINFO_LEN).find(|attr| attr.kind == 3)?.str().map(str::to_owned)
            })
            .unwrap();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
    }
}

#[test]
fn a_refusal_has_number_and_reason() {
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();
    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    m.put_raw(&[0; IFINFO_LEN]);
    m.put_str(3, "no-such-link");
    let error = socket.request(&"find link no-such-link", &mut m).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NODEV));
    expect!["cannot find link no-such-link"].assert_eq(&error.to_string());

    let mut m = MessageBuf::new();
    m.begin(libc::RTM_GETADDR, 0);
    m.put_raw(&[libc::AF_INET as u8, 1, 1, 1, 0, 0, 0, 0]);
    m.put_u32(0x3fff, 1);
    let error = socket.request(&"ask", &mut m).unwrap_err();
    assert!(matches!(error, Error::Kernel { .. }), "{error:?}");

    // A later request on the same socket meets none of the former answers.
    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    m.put_raw(&[0; IFINFO_LEN]);
    m.put_str(3, "lo");
    let mut replies = 0;
    let count = |_: Message<'_>| {
        replies += 1;
        Ok(())
    };
    socket.query(&"find lo", &mut m, count).unwrap();
    assert_eq!(replies, 1);
}

#[test]
fn a_refusal_among_several_requests_is_reported_and_the_rest_is_not_mixed_up() {
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();
    let find = |names: &[&str]| {
        let mut m = MessageBuf::new();
        for name in names {
            m.begin(RTM_GETLINK, 0);
            m.put_raw(&[0; IFINFO_LEN]);
            m.put_str(3, name);
        }
        m
    };
    let mut replies = 0;
    let count = |_: Message<'_>| {
        replies += 1;
        Ok(())
    };
    socket.query(&"find links", &mut find(&["lo", "lo", "lo"]), count).unwrap();
    assert_eq!(replies, 3);
    for names in [["none", "lo"], ["lo", "none"]] {
        let error = socket.request(&"find links", &mut find(&names)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NODEV), "{names:?}");
        socket.request(&"find links", &mut find(&["lo"])).unwrap();
    }
}

#[test]
fn after_an_error_of_the_visitor_the_socket_is_usable() {
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();
    let mut m = MessageBuf::new();
    m.begin(RTM_GETLINK, 0);
    m.put_raw(&[0; IFINFO_LEN]);
    let stop = |_: Message<'_>| Err(Error::kernel("visit", Errno::CANCELED));
    let error = socket.dump(&"list links", &mut m, stop).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::CANCELED));
    assert!(!socket.list(&"list links", &mut m, |_| Some(())).unwrap().is_empty());
}

#[test]
fn a_batch_larger_than_the_send_buffer_goes_in_one_datagram() {
    let mut socket = Socket::open(Protocol::Route, 0).unwrap();
    let mut batch = MessageBuf::new();
    for _ in 0..80_000 {
        batch.begin(libc::NLMSG_NOOP as u16, 0);
        batch.put_raw(&[0; 112]);
    }
    batch.begin(RTM_GETLINK, libc::NLM_F_ACK as u16);
    batch.put_raw(&[0; IFINFO_LEN]);
    batch.put_str(3, "lo");
    assert!(batch.len() > 9 << 20);
    let first = match socket.send_batch(&"send 10 MiB", &mut batch) {
        // Allowed where the process may not exceed net.core.wmem_max.
        Err(Error::BatchTooLong { length, .. }) => return assert_eq!(length, batch.len()),
        other => other.unwrap(),
    };
    let mut buffer = vec![0; RECEIVE_BUFFER];
    let mut answers = Vec::new();
    while socket.wait(Duration::from_millis(100)).unwrap() {
        let datagram = socket.recv(&mut buffer).unwrap().unwrap();
        answers.extend(messages(datagram).map(|m| (m.kind, m.sequence, m.acknowledgement())));
    }
    let last = first + 80_000;
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert_eq!((answers[0].0, answers[0].1), (libc::RTM_NEWLINK, last));
    assert_eq!((answers[1].1, &answers[1].2), (last, &Some(Ok(()))));
    assert_eq!(socket.recv(&mut buffer).unwrap(), None);
}

#[test]
fn extended_acks_are_read_capped_and_whole() {
    let text = |capped: bool| {
        let mut ack = MessageBuf::new();
        let capped = if capped { 0x100 } else { 0 };
        ack.begin(libc::NLMSG_ERROR as u16, 0x200 | capped);
        let mut body = (-libc::EINVAL).to_ne_bytes().to_vec();
        let request_len: u32 = 24;
        body.extend_from_slice(&request_len.to_ne_bytes());
        body.extend_from_slice(&[0; 12]);
        if capped == 0 {
            body.extend_from_slice(&[0xff; 8]);
        }
        ack.put_raw(&body);
        ack.put_str(1, "bad thing");
        ack.put_u32(2, 20);
        messages(ack.as_bytes()).next().unwrap().acknowledgement().unwrap().unwrap_err()
    };
    let expected =
        Refusal { errno: Errno::INVAL, message: Some("bad thing".into()), offset: Some(20) };
    assert_eq!(text(true), expected);
    assert_eq!(text(false), expected);
}

proptest! {
    #[test]
    fn decoding_never_panics_and_ends(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        walk(attrs(&bytes), 0);
        for message in messages(&bytes) {
            let _outcome = message.acknowledgement();
            walk(message.attrs(message.payload.len() / 2), 0);
        }
    }

    /// Random bytes seldom have plausible lengths, so damage a valid message too.
    #[test]
    fn damaged_messages_do_not_panic(at in 0_usize..80, byte in any::<u8>(), cut in 0_usize..80) {
        let mut m = MessageBuf::new();
        m.begin(libc::NLMSG_ERROR as u16, 0x200);
        m.put_raw(&[0; 20]);
        m.nest(1, |m| { m.put_str(1, "text"); m.nest(2, |m| m.put_u64_be(3, 1)); });
        let mut bytes = m.as_bytes().to_vec();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length - cut % length);
        for message in messages(&bytes) {
            let _outcome = message.acknowledgement();
            walk(message.attrs(20), 0);
        }
    }

    #[test]
    fn what_was_put_is_read(payloads in proptest::collection::vec(
        (0_u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..64)), 0..20)) {
        let mut m = MessageBuf::new();
        m.begin(1, 0);
        m.nest(9, |m| for (kind, payload) in &payloads { m.put_bytes(*kind, payload); });
        let nest = messages(m.as_bytes()).next().unwrap().attrs(0).next().unwrap();
        prop_assert_eq!(nest.kind, 9);
        let read: Vec<_> = nest.attrs().map(|a| (a.kind, a.payload.to_vec())).collect();
        prop_assert_eq!(read, payloads);
    }
}

fn walk(attrs: Attrs<'_>, depth: usize) {
    for attr in attrs {
        let _readers = (attr.u8(), attr.u16(), attr.u16_be(), attr.u32(), attr.u32_be());
        let _more = (attr.u64_be(), attr.str(), attr.ip());
        if depth < 8 {
            walk(attr.attrs(), depth + 1);
        }
    }
}
