//! Real sockets on loopback addresses, and plans of real states.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::time::Duration;

use expect_test::{Expect, expect};
use kpng_core::plan::Planner;
use kpng_testkit::fixture::{NODE, fixture};

use super::*;
use crate::http::tests::{Log, get};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The plan of a state; node ports are on `addresses`.
fn plan(addresses: &[IpAddr], state: &str) -> Plan {
    let mut fixture = fixture(state);
    fixture.facts.node_port_addresses = addresses.iter().copied().collect();
    let mut planner = Planner::new(NODE, fixture.facts);
    planner.update(&fixture.store.reader().try_next().unwrap());
    planner.plan().clone()
}

/// A Service that asks for a health check on `port`, and its ready endpoints.
fn service(name: &str, port: u16, endpoints: &str) -> String {
    let service = format!("service ns/{name} etp=Local lb=lb.1 port=http:80:3001 health={port}");
    let endpoints = endpoints.split_whitespace().map(|name| format!("\n{name}"));
    format!("{service}\nslice ns/{name} http=8080{}\n", endpoints.collect::<String>())
}

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("ns", name)
}

fn free_port() -> u16 {
    TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap().port()
}

fn nobody_to_tell() -> Events {
    Events::new(None, NODE.into(), "none")
}

fn new() -> ServiceHealth {
    ServiceHealth::new(ProxyHealth::new(Duration::from_secs(60)), nobody_to_tell())
}

/// The answer, as soon as something listens.
async fn ask(ip: IpAddr, port: u16) -> String {
    for _ in 0..500 {
        if let Ok(answer) = get(SocketAddr::new(ip, port), "/any/path").await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing listens on {ip} port {port}");
}

/// Status code, service, and how many endpoints.
async fn ask_briefly(ip: IpAddr, port: u16) -> String {
    let answer = ask(ip, port).await;
    let field = |name: &str| {
        let (_, rest) = answer.split_once(&format!("\"{name}\": ")).unwrap();
        rest.split([',', '\n']).next().unwrap().trim_matches('"').to_owned()
    };
    format!("{} {} {}", &answer[9..12], field("name"), field("localEndpoints"))
}

async fn is_closed(ip: IpAddr, port: u16) -> bool {
    tokio::task::yield_now().await;
    tokio::net::TcpStream::connect((ip, port)).await.is_err()
}

fn check(local_ready: u32, proxy_healthy: bool, expected: Expect) {
    let shown = Shown { service: key("n"), local_ready };
    let answer = answer(&shown, proxy_healthy);
    let mut text = format!("{}\n", answer.status().as_u16());
    for (name, value) in answer.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    expected.assert_eq(&(text + &answer.body().replace('\t', "<tab>") + "<end>"));
}

#[test]
fn answers_are_kube_proxys() {
    check(
        2,
        true,
        expect![[r#"
            200
            content-type: application/json
            x-content-type-options: nosniff
            x-load-balancing-endpoint-weight: 2
            {
            <tab>"service": {
            <tab><tab>"namespace": "ns",
            <tab><tab>"name": "n"
            <tab>},
            <tab>"localEndpoints": 2,
            <tab>"serviceProxyHealthy": true
            }<end>"#]],
    );
    check(
        0,
        true,
        expect![[r#"
            503
            content-type: application/json
            x-content-type-options: nosniff
            x-load-balancing-endpoint-weight: 0
            {
            <tab>"service": {
            <tab><tab>"namespace": "ns",
            <tab><tab>"name": "n"
            <tab>},
            <tab>"localEndpoints": 0,
            <tab>"serviceProxyHealthy": true
            }<end>"#]],
    );
    check(
        1,
        false,
        expect![[r#"
            503
            content-type: application/json
            x-content-type-options: nosniff
            x-load-balancing-endpoint-weight: 1
            {
            <tab>"service": {
            <tab><tab>"namespace": "ns",
            <tab><tab>"name": "n"
            <tab>},
            <tab>"localEndpoints": 1,
            <tab>"serviceProxyHealthy": false
            }<end>"#]],
    );
}

#[test]
fn names_cannot_break_the_json() {
    let shown = Shown { service: NamespacedName::new("a\"b", "c\\\u{1}é"), local_ready: 1 };
    let body: serde_json::Value = serde_json::from_str(answer(&shown, true).body()).unwrap();
    assert_eq!(body["service"]["namespace"], "a\"b");
    assert_eq!(body["service"]["name"], "c\\\u{1}é");
}

#[tokio::test]
async fn it_follows_local_ready_endpoints_in_both_families() {
    let port = free_port();
    let mut health = new();
    health.update(&plan(&[V4, V6], &service("web", port, "pod1 pod2 remote1")), None);
    for ip in [V4, V6] {
        assert_eq!(ask_briefly(ip, port).await, "200 web 2");
    }
    let terminating =
        service("web", port, "pod1 remote1").replace("pod1", "pod1 serving-terminating");
    for (state, expected) in [
        (service("web", port, "pod1"), "200 web 1"),
        (terminating, "503 web 0"),
        (service("web", port, "remote1"), "503 web 0"),
        (service("web", port, "pod1 pod2 pod3"), "200 web 3"),
    ] {
        health.update(&plan(&[V4, V6], &state), Some(&[key("web")]));
        for ip in [V4, V6] {
            assert_eq!(ask_briefly(ip, port).await, expected);
        }
    }
}

#[tokio::test]
async fn an_unhealthy_proxy_makes_every_service_unhealthy_but_a_leaving_node_does_not() {
    let port = free_port();
    let proxy = ProxyHealth::new(Duration::ZERO);
    let mut health = ServiceHealth::new(proxy.clone(), nobody_to_tell());
    health.update(&plan(&[V4], &service("web", port, "pod1")), None);
    proxy.set_node_eligible(false);
    assert!(ask(V4, port).await.starts_with("HTTP/1.1 200 "));
    proxy.queued();
    let answer = ask(V4, port).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\"serviceProxyHealthy\": false"), "{answer}");
    proxy.synced();
    assert!(ask(V4, port).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_changed_port_closes_the_old_one_and_a_removed_service_all() {
    let (old, new_port) = (free_port(), free_port());
    let mut health = new();
    health.update(&plan(&[V4], &service("web", old, "pod1")), None);
    assert_eq!(ask_briefly(V4, old).await, "200 web 1");
    health.update(&plan(&[V4], &service("web", new_port, "pod1")), Some(&[key("web")]));
    assert!(is_closed(V4, old).await);
    assert_eq!(ask_briefly(V4, new_port).await, "200 web 1");
    let cluster_policy = service("web", new_port, "pod1").replace("etp=Local ", "");
    health.update(&plan(&[V4], &cluster_policy), Some(&[key("web")]));
    assert!(is_closed(V4, new_port).await);
    health.update(&plan(&[V4], &service("web", old, "pod1")), None);
    assert_eq!(ask_briefly(V4, old).await, "200 web 1");
    health.update(&plan(&[V4], ""), None);
    assert!(is_closed(V4, old).await);
    assert_eq!(health.ports().count(), 0);
}

#[tokio::test]
async fn ports_can_change_hands_within_one_update() {
    let (a, b) = (free_port(), free_port());
    let mut health = new();
    health.update(&plan(&[V4], &(service("x", a, "pod1") + &service("y", b, "pod1 pod2"))), None);
    assert_eq!(ask_briefly(V4, a).await, "200 x 1");
    let swapped = service("x", b, "pod1") + &service("y", a, "pod1 pod2");
    health.update(&plan(&[V4], &swapped), Some(&[key("x"), key("y")]));
    assert_eq!(ask_briefly(V4, a).await, "200 y 2");
    assert_eq!(ask_briefly(V4, b).await, "200 x 1");
}

#[tokio::test]
async fn the_first_of_two_services_keeps_a_port_until_it_goes() {
    let port = free_port();
    let mut health = new();
    let (late, early) = (service("late", port, "pod1"), service("early", port, "pod1 pod2"));
    let both = late.clone() + &early;
    health.update(&plan(&[V4], &late), None);
    let (log, _guard) = Log::capture();
    health.update(&plan(&[V4], &both), Some(&[key("early")]));
    assert_eq!(ask_briefly(V4, port).await, "200 late 1");
    // Also when all are told again, and when the one that waits changes.
    health.update(&plan(&[V4], &both), None);
    assert_eq!(ask_briefly(V4, port).await, "200 late 1");
    let changed = late + &service("early", port, "pod1 pod2 pod3");
    health.update(&plan(&[V4], &changed), Some(&[key("early")]));
    assert_eq!(ask_briefly(V4, port).await, "200 late 1");
    let report = format!("WARN healthCheckNodePort {port} belongs to ns/late; ");
    assert!(log.text().trim_start().starts_with(&report), "{}", log.text());
    assert_eq!(log.text().lines().count(), 1, "{}", log.text());
    let alone = service("early", port, "pod1 pod2 pod3");
    health.update(&plan(&[V4], &alone), Some(&[key("late")]));
    assert_eq!(ask_briefly(V4, port).await, "200 early 3");
}

#[tokio::test]
async fn it_moves_when_the_addresses_of_the_node_do() {
    let port = free_port();
    let mut health = new();
    let state = service("web", port, "pod1");
    health.update(&plan(&[V4], &state), None);
    assert_eq!(ask_briefly(V4, port).await, "200 web 1");
    health.update(&plan(&[V6], &state), Some(&[]));
    assert_eq!(ask_briefly(V6, port).await, "200 web 1");
    assert!(is_closed(V4, port).await);
    let link_local = "fe80::1".parse().unwrap();
    health.update(&plan(&[V4, V6, link_local], &state), Some(&[]));
    assert_eq!(ask_briefly(V4, port).await, "200 web 1");
    assert_eq!(health.ports[&port].servers.keys().collect::<Vec<_>>(), [&V4, &V6]);
}

#[tokio::test]
async fn a_taken_port_is_served_when_it_is_free_and_holds_nothing_else_up() {
    let taken = TcpListener::bind((V4, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = free_port();
    let mut health = new();
    let state = service("web", port, "pod1") + &service("other", other, "pod1");
    health.update(&plan(&[V4], &state), None);
    assert_eq!(ask_briefly(V4, other).await, "200 other 1");
    drop(taken);
    assert_eq!(ask_briefly(V4, port).await, "200 web 1");
}

#[tokio::test]
async fn dropping_it_closes_all_ports() {
    let port = free_port();
    let mut health = new();
    health.update(&plan(&[V4], &service("web", port, "pod1")), None);
    assert_eq!(ask_briefly(V4, port).await, "200 web 1");
    drop(health);
    assert!(is_closed(V4, port).await);
}

#[tokio::test]
async fn only_named_services_are_looked_at() {
    let port = free_port();
    let mut health = new();
    health.update(&plan(&[V4], &service("web", port, "pod1")), None);
    let two = service("web", port, "pod1 pod2") + &service("new", free_port(), "pod1");
    health.update(&plan(&[V4], &two), Some(&[key("unrelated")]));
    assert_eq!(ask_briefly(V4, port).await, "200 web 1");
    assert_eq!(health.ports().collect::<Vec<_>>(), [(port, &key("web"))]);
}
