//! What people and programs see of a stream.

use expect_test::{Expect, expect};
use kpng_api::proto::localv1::{
    EmptyOp, IpSet, PortMapping, Position, Protocol, Service, ServiceIPs, Value as OpValue,
};
use prost_reflect::prost::Message;

use super::*;

fn set(name: &str, port: i32) -> Op {
    let ips = IpSet { v4: vec!["10.96.0.1".to_owned()], v6: Vec::new() };
    let port = PortMapping { protocol: Protocol::Udp.into(), port, ..PortMapping::default() };
    let service = Service {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        i_ps: Some(ServiceIPs { cluster_i_ps: Some(ips), ..ServiceIPs::default() }),
        ports: vec![port],
        labels: [("b".to_owned(), "two words".to_owned()), ("a".to_owned(), String::new())].into(),
        created: Some(7),
        ..Service::default()
    };
    let path = Ref { set: Set::ServicesSet.into(), path: format!("default/{name}") };
    Op::Set(OpValue { r#ref: Some(path), bytes: service.encode_to_vec() })
}

fn delete(name: &str) -> Op {
    Op::Delete(Ref { set: Set::ServicesSet.into(), path: format!("default/{name}") })
}

fn reset() -> Op {
    Op::Reset(EmptyOp::default())
}

fn sync() -> Op {
    let position = Some(Position { instance: "i".to_owned(), revision: 3 });
    Op::Sync(EmptyOp { position, ..EmptyOp::default() })
}

fn check(printer: &mut dyn Printer, ops: &[Op], expected: &Expect) {
    let mut out = String::new();
    for op in ops {
        printer.operation(&mut out, op, Duration::from_micros(1500));
    }
    expected.assert_eq(&out);
}

#[test]
fn people_see_what_differs() {
    let mut printer = Readable::new();
    let mut begin = String::new();
    printer.requested(&mut begin, "local node-1", "127.0.0.1:12090");
    printer.received(&mut begin, SystemTime::UNIX_EPOCH);
    expect![[r#"
        < req local node-1 from 127.0.0.1:12090
        < recv at 1970-01-01T00:00:00Z
    "#]]
    .assert_eq(&begin);
    check(
        &mut printer,
        &[reset(), set("a", 80), set("b", 80), sync()],
        &expect![[r#"
        + ServicesSet default/a -> {Namespace: default, Name: a, IPs: {ClusterIPs: {V4: [10.96.0.1]}}, Ports: [{Protocol: UDP, Port: 80}], Labels: {a: "", b: "two words"}, Created: 7}
        + ServicesSet default/b -> {Namespace: default, Name: b, IPs: {ClusterIPs: {V4: [10.96.0.1]}}, Ports: [{Protocol: UDP, Port: 80}], Labels: {a: "", b: "two words"}, Created: 7}
        > sync after 1.5ms
    "#]],
    );
    check(
        &mut printer,
        &[set("a", 80), set("b", 81), delete("a"), sync()],
        &expect![[r#"
        ~ ServicesSet default/b -> {Namespace: default, Name: b, IPs: {ClusterIPs: {V4: [10.96.0.1]}}, Ports: [{Protocol: UDP, Port: 81}], Labels: {a: "", b: "two words"}, Created: 7}
        - ServicesSet default/a
        > sync after 1.5ms
    "#]],
    );
    // Other servers; the first one broke off within its answer.
    check(&mut printer, &[reset(), set("b", 81), reset()], &expect![""]);
    check(
        &mut printer,
        &[set("c", 80), sync()],
        &expect![[r#"
        + ServicesSet default/c -> {Namespace: default, Name: c, IPs: {ClusterIPs: {V4: [10.96.0.1]}}, Ports: [{Protocol: UDP, Port: 80}], Labels: {a: "", b: "two words"}, Created: 7}
        - ServicesSet default/b
        > sync after 1.5ms
    "#]],
    );
}

#[test]
fn what_is_not_understood_is_said() {
    let unknown = |set: i32, bytes: &[u8]| {
        let path = Ref { set, path: "x".to_owned() };
        Op::Set(OpValue { r#ref: Some(path), bytes: bytes.to_vec() })
    };
    let ops = [unknown(99, b"abc"), unknown(Set::ServicesSet.into(), b"\xff")];
    check(
        &mut Readable::new(),
        &ops,
        &expect![[r#"
        + 99 x -> 3 bytes that this version cannot read
        + ServicesSet x -> 1 bytes that this version cannot read
    "#]],
    );
    check(
        &mut Json::new(),
        &ops,
        &expect![[r#"
        {"op":"set","path":"x","set":"99","value":null}
        {"op":"set","path":"x","set":"ServicesSet","value":null}
    "#]],
    );
}

#[test]
fn programs_see_every_operation() {
    let ops = [reset(), set("a", 80), delete("b"), sync(), Op::Sync(EmptyOp::default())];
    check(
        &mut Json::new(),
        &ops,
        &expect![[r#"
        {"op":"reset"}
        {"op":"set","path":"default/a","set":"ServicesSet","value":{"Created":"7","IPs":{"ClusterIPs":{"V4":["10.96.0.1"]}},"Labels":{"a":"","b":"two words"},"Name":"a","Namespace":"default","Ports":[{"Port":80,"Protocol":"UDP"}]}}
        {"op":"delete","path":"default/b","set":"ServicesSet"}
        {"instance":"i","op":"sync","revision":3}
        {"op":"sync"}
    "#]],
    );
}
