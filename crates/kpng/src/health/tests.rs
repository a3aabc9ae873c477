//! Paths, codes, bodies, and when they turn.

use expect_test::{Expect, expect};

use super::*;
use crate::http::Server;
use crate::http::tests::{ask_at_once, get};

const TIMEOUT: Duration = Duration::from_secs(60);
const STUCK: Duration = Duration::ZERO;

/// Status, content type and body of each path, times replaced.
fn shown(health: &ProxyHealth) -> String {
    let handler = health.handler();
    let mut text = String::new();
    for path in ["/healthz", "/livez", "/readyz", "/other"] {
        let answer = ask_at_once(&handler, path);
        let header = |name: &str| answer.headers().get(name).map_or("-", |v| v.to_str().unwrap());
        let status = answer.status().as_u16();
        let (kind, sniff) = (header("content-type"), header("x-content-type-options"));
        let body = without_times(answer.body());
        text += &format!("{path} {status} {kind} {sniff}\n    {}\n", body.trim_end());
    }
    text
}

/// Every time of this year or a later one is now.
fn without_times(body: &str) -> String {
    let parts = body
        .split('"')
        .map(|part| if part.starts_with("20") && part.ends_with('Z') { "now" } else { part });
    parts.collect::<Vec<_>>().join("\"")
}

fn check(timeout: Duration, happens: impl FnOnce(&ProxyHealth), expected: Expect) {
    let health = ProxyHealth::new(timeout);
    happens(&health);
    expected.assert_eq(&shown(&health));
}

#[test]
fn at_start_it_is_healthy_but_not_ready() {
    check(
        TIMEOUT,
        |_| {},
        expect![[r#"
            /healthz 200 application/json nosniff
                {"lastUpdated":"now","currentTime":"now","nodeEligible":true,"healthy":true}
            /livez 200 application/json nosniff
                {"lastUpdated":"now","currentTime":"now","healthy":true}
            /readyz 503 text/plain; charset=utf-8 -
                not ready: nothing was synced yet
            /other 404 text/plain; charset=utf-8 -
                404 page not found
        "#]],
    );
}

#[test]
fn a_stuck_update_is_unhealthy() {
    check(
        STUCK,
        |health| health.queued(),
        expect![[r#"
            /healthz 503 application/json nosniff
                {"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"now","nodeEligible":true,"healthy":false}
            /livez 503 application/json nosniff
                {"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"now","healthy":false}
            /readyz 503 text/plain; charset=utf-8 -
                not ready: nothing was synced yet
            /other 404 text/plain; charset=utf-8 -
                404 page not found
        "#]],
    );
}

#[test]
fn a_synced_update_makes_it_ready_for_good() {
    check(
        STUCK,
        |health| {
            health.queued();
            health.synced();
        },
        expect![[r#"
            /healthz 200 application/json nosniff
                {"lastUpdated":"now","currentTime":"now","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"now","healthy":true},"IPv6":{"lastUpdated":"now","healthy":true}}}
            /livez 200 application/json nosniff
                {"lastUpdated":"now","currentTime":"now","healthy":true,"status":{"IPv4":{"lastUpdated":"now","healthy":true},"IPv6":{"lastUpdated":"now","healthy":true}}}
            /readyz 200 text/plain; charset=utf-8 -
                ok
            /other 404 text/plain; charset=utf-8 -
                404 page not found
        "#]],
    );
    let health = ProxyHealth::new(STUCK);
    health.synced();
    health.queued();
    assert!(health.is_ready() && !health.is_healthy());
}

#[test]
fn a_node_that_goes_away_is_alive() {
    check(
        TIMEOUT,
        |health| health.set_node_eligible(false),
        expect![[r#"
            /healthz 503 application/json nosniff
                {"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"now","nodeEligible":false,"healthy":true}
            /livez 200 application/json nosniff
                {"lastUpdated":"now","currentTime":"now","healthy":true}
            /readyz 503 text/plain; charset=utf-8 -
                not ready: nothing was synced yet
            /other 404 text/plain; charset=utf-8 -
                404 page not found
        "#]],
    );
    let health = ProxyHealth::new(TIMEOUT);
    health.set_node_eligible(false);
    health.set_node_eligible(true);
    assert_eq!(ask_at_once(&health.handler(), "/healthz").status(), StatusCode::OK);
}

#[test]
fn an_update_may_wait_until_the_timeout() {
    let start = Instant::now();
    let state = State { waiting: Some(start), synced: None, node_eligible: true };
    let healthy_after = |waited| state.is_healthy(start + waited, TIMEOUT);
    assert!(healthy_after(Duration::ZERO));
    assert!(healthy_after(TIMEOUT - Duration::from_nanos(1)));
    assert!(!healthy_after(TIMEOUT));
    assert!(!healthy_after(TIMEOUT * 100));
    let idle = State { waiting: None, ..state };
    assert!(idle.is_healthy(start + TIMEOUT * 100, TIMEOUT));
}

#[test]
fn the_oldest_waiting_update_counts() {
    let health = ProxyHealth::new(TIMEOUT);
    let waiting = || health.state().waiting;
    health.queued();
    let first = waiting().unwrap();
    health.queued();
    assert_eq!(waiting(), Some(first));
    health.synced();
    assert_eq!(waiting(), None);
    health.queued();
    assert!(waiting().unwrap() > first);
}

#[test]
fn bodies_are_those_of_kube_proxy() {
    let at = |milliseconds| SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
    let check = |synced, healthy, eligible, expected: Expect| {
        let state = State { waiting: None, synced, node_eligible: true };
        expected.assert_eq(&state.body(healthy, eligible, at(90_000)));
    };
    let synced = Some(at(1_500));
    check(
        synced,
        true,
        Some(true),
        expect![[
            r#"{"lastUpdated":"1970-01-01T00:01:30Z","currentTime":"1970-01-01T00:01:30Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":true},"IPv6":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":true}}}"#
        ]],
    );
    check(
        synced,
        true,
        Some(false),
        expect![[
            r#"{"lastUpdated":"1970-01-01T00:00:01.5Z","currentTime":"1970-01-01T00:01:30Z","nodeEligible":false,"healthy":true,"status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":true},"IPv6":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":true}}}"#
        ]],
    );
    check(
        synced,
        false,
        None,
        expect![[
            r#"{"lastUpdated":"1970-01-01T00:00:01.5Z","currentTime":"1970-01-01T00:01:30Z","healthy":false,"status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":false},"IPv6":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":false}}}"#
        ]],
    );
    check(
        None,
        true,
        None,
        expect![[
            r#"{"lastUpdated":"1970-01-01T00:01:30Z","currentTime":"1970-01-01T00:01:30Z","healthy":true}"#
        ]],
    );
}

#[test]
fn answers_are_counted_by_code() {
    let health = ProxyHealth::new(TIMEOUT);
    let handler = health.handler();
    ask_at_once(&handler, "/healthz");
    health.set_node_eligible(false);
    for path in ["/healthz", "/healthz", "/livez"] {
        ask_at_once(&handler, path);
    }
    let (healthz, livez) = health.answers();
    let count = |of: &ByCode, code| of.get(&[("code", code)]).map(|counter| counter.get());
    assert_eq!((count(&healthz, 200), count(&healthz, 503)), (Some(1), Some(2)));
    assert_eq!((count(&livez, 200), count(&livez, 503)), (Some(1), Some(0)));
}

#[tokio::test]
async fn probes_see_it_over_the_network() {
    let health = ProxyHealth::new(TIMEOUT);
    let loopback = (std::net::Ipv6Addr::LOCALHOST, 0).into();
    let mut server = Server::start("probes", loopback, health.handler());
    let address = server.address().await.unwrap();
    let code = async |path| get(address, path).await.unwrap()[9..12].to_owned();
    assert_eq!((code("/healthz").await, code("/readyz").await), ("200".into(), "503".into()));
    health.synced();
    health.set_node_eligible(false);
    assert_eq!((code("/healthz").await, code("/readyz").await), ("503".into(), "200".into()));
    assert_eq!(code("/livez").await, "200");
}
