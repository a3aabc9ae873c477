//! The exact names, types and samples that scrapers see.

use std::time::Duration;

use expect_test::{Expect, expect};
use kpng_core::local::{LocalService, Place, localize};
use kpng_core::model::{EndpointSlice, Service};
use kpng_core::plan::Planner;
use kpng_core::store::{Batch, Change, Kind, Writer};
use kpng_testkit::fixture::{NODE, fixture};

use super::*;
use crate::http::tests::{ask, ask_at_once};

struct Fixture {
    metrics: Metrics,
    health: ProxyHealth,
    writer: Writer,
}

fn new() -> Fixture {
    let health = ProxyHealth::new(Duration::from_secs(60));
    let (writer, store) = Store::new();
    let metrics = Metrics::new(sources(&health, &store));
    Fixture { metrics, health, writer }
}

fn sources<'a>(health: &'a ProxyHealth, store: &'a Store) -> Sources<'a, model::ServiceState> {
    let (kube, client, server) = (Some(Arc::default()), Some(Arc::default()), Some(Arc::default()));
    Sources {
        health,
        store,
        kube,
        client,
        server,
        backend: None,
        traffic: None,
        counting: Counting::Auto,
    }
}

fn plan(state: &str) -> Plan {
    let fixture = fixture(state);
    let mut planner = Planner::new(NODE, fixture.facts);
    planner.update(&fixture.store.reader().try_next().unwrap());
    planner.plan().clone()
}

/// The samples whose names contain one of `parts`, sorted.
fn samples(metrics: &Metrics, parts: &[&str]) -> String {
    let text = metrics.encode();
    let wanted =
        |line: &&str| !line.starts_with('#') && parts.iter().any(|part| line.contains(part));
    let mut samples: Vec<_> = text.lines().filter(wanted).collect();
    samples.sort_unstable();
    samples.into_iter().map(|line| format!("{line}\n")).collect()
}

fn check(happens: impl FnOnce(&mut Fixture), parts: &[&str], expected: Expect) {
    let mut fixture = new();
    happens(&mut fixture);
    expected.assert_eq(&samples(&fixture.metrics, parts));
}

#[test]
fn names_and_types() {
    let text = new().metrics.encode();
    let types: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| format!("{line}\n"))
        .collect();
    expect![[r#"
        kubeproxy_sync_proxy_rules_service_changes_pending gauge
        kubeproxy_sync_proxy_rules_service_changes_total counter
        kubeproxy_sync_proxy_rules_endpoint_changes_pending gauge
        kubeproxy_sync_proxy_rules_endpoint_changes_total counter
        kpng_build_info gauge
        kpng_journal_lag gauge
        kpng_conntrack_entries gauge
        kpng_conntrack_capacity gauge
        kpng_store_services gauge
        kpng_store_nodes gauge
        kpng_store_revision gauge
        kpng_k8s_api_events_total counter
        kpng_watch_restarts_total counter
        kpng_watch_errors_total counter
        kpng_lists_total counter
        kpng_left_out_fields_total counter
        kpng_rejected_objects_total counter
        kpng_last_contact_timestamp_seconds gauge
        kpng_kubernetes_events_total counter
        kpng_api_reconnects_total counter
        kpng_api_client_connected gauge
        kpng_api_client_connects_total counter
        kpng_api_client_failures_total counter
        kpng_api_client_syncs_total counter
        kpng_api_client_operations_total counter
        kpng_api_client_rejected_values_total counter
        kpng_api_connections gauge
        kpng_api_streams gauge
        kpng_api_answers_total counter
        kpng_api_operations_total counter
        kpng_api_sent_bytes_total counter
        kpng_api_encodings_total counter
        kpng_api_refused_connections_total counter
        kpng_api_failed_handshakes_total counter
        kpng_api_denied_total counter
        process_cpu_seconds_total counter
        process_start_time_seconds gauge
        process_resident_memory_bytes gauge
        process_virtual_memory_bytes gauge
        process_open_fds gauge
        process_max_fds gauge
        kubeproxy_sync_proxy_rules_duration_seconds histogram
        kubeproxy_sync_full_proxy_rules_duration_seconds histogram
        kubeproxy_sync_partial_proxy_rules_duration_seconds histogram
        kubeproxy_sync_proxy_rules_nftables_sync_failures_total counter
        kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total counter
        kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds gauge
        kubeproxy_network_programming_duration_seconds histogram
        kubeproxy_conntrack_reconciler_deleted_entries_total counter
        kubeproxy_conntrack_reconciler_sync_duration_seconds histogram
        kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge
        kubeproxy_proxy_healthz_total counter
        kubeproxy_proxy_livez_total counter
        kpng_frontend_conflicts gauge
        kpng_sync_services histogram
        kpng_services gauge
        kpng_node_local_events_total counter
    "#]]
    .assert_eq(&types);
}

#[test]
fn bounds_of_buckets() {
    let bounds = |name: &str| {
        let Fixture { metrics, .. } = new();
        metrics.sync_done(true, Duration::ZERO, &Ok::<_, ()>(()));
        let web = plan("service d/web cluster4=cluster.1 port=http:80");
        metrics.programmed(SystemTime::now(), &web, &[NamespacedName::new("d", "web")]);
        let text = metrics.encode();
        let bound = |line: &str| {
            let (_, rest) = line.strip_prefix(name)?.split_once("_bucket{le=\"")?;
            Some(rest.split('"').next()?.to_owned())
        };
        text.lines().filter_map(bound).collect::<Vec<_>>().join(" ")
    };
    expect!["0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"].assert_eq(&bounds("kubeproxy_sync_full_proxy_rules_duration_seconds"));
    expect!["0.25 0.5 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 65 70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300 +Inf 0.25 0.5 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 65 70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300 +Inf"].assert_eq(&bounds("kubeproxy_network_programming_duration_seconds"));
}

#[test]
fn syncs() {
    let parts = &[
        "sync_proxy_rules_duration_seconds_",
        "_proxy_rules_duration_seconds_sum",
        "_proxy_rules_duration_seconds_count",
        "failures",
    ];
    check(
        |fixture| {
            let metrics = &fixture.metrics;
            metrics.sync_done(true, Duration::from_millis(1500), &Ok::<_, ()>(()));
            metrics.sync_done(false, Duration::from_micros(1500), &Ok::<_, ()>(()));
            metrics.sync_done(false, Duration::from_secs(20), &Err(()));
            metrics.cleanup_failed();
        },
        parts,
        expect![[r#"
            kpng_api_client_failures_total 0
            kubeproxy_sync_full_proxy_rules_duration_seconds_count 1
            kubeproxy_sync_full_proxy_rules_duration_seconds_sum 1.5
            kubeproxy_sync_partial_proxy_rules_duration_seconds_count 2
            kubeproxy_sync_partial_proxy_rules_duration_seconds_sum 20.0015
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="+Inf"} 3
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.001"} 0
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.002"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.008"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.016"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.032"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.064"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.128"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.256"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.512"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="1.024"} 1
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="16.384"} 2
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="2.048"} 2
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="4.096"} 2
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="8.192"} 2
            kubeproxy_sync_proxy_rules_duration_seconds_count 3
            kubeproxy_sync_proxy_rules_duration_seconds_sum 21.5015
            kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total 1
            kubeproxy_sync_proxy_rules_nftables_sync_failures_total 1
        "#]],
    );
}

#[test]
fn changes_are_pending_until_a_sync_succeeds() {
    let parts = &["_changes_"];
    let happens = |fixture: &mut Fixture| {
        fixture.metrics.changes(2, 5);
        fixture.metrics.changes(1, 0);
        fixture.metrics.sync_done(false, Duration::ZERO, &Err(()));
    };
    check(
        happens,
        parts,
        expect![[r#"
            kubeproxy_sync_proxy_rules_endpoint_changes_pending 5
            kubeproxy_sync_proxy_rules_endpoint_changes_total 5
            kubeproxy_sync_proxy_rules_service_changes_pending 3
            kubeproxy_sync_proxy_rules_service_changes_total 3
        "#]],
    );
    check(
        |fixture| {
            happens(fixture);
            fixture.metrics.sync_done(true, Duration::ZERO, &Ok::<_, ()>(()));
        },
        parts,
        expect![[r#"
            kubeproxy_sync_proxy_rules_endpoint_changes_pending 0
            kubeproxy_sync_proxy_rules_endpoint_changes_total 5
            kubeproxy_sync_proxy_rules_service_changes_pending 0
            kubeproxy_sync_proxy_rules_service_changes_total 3
        "#]],
    );
}

#[test]
fn timestamps_are_of_what_happened() {
    let Fixture { metrics, .. } = new();
    let last = || samples(&metrics, &["last_timestamp", "last_queued"]);
    assert!(last().lines().all(|line| line.ends_with(" 0.0")), "{}", last());
    let before = now();
    metrics.queued();
    metrics.sync_done(true, Duration::ZERO, &Err(()));
    let (sync, queued) = (&metrics.0.sync.last, &metrics.0.sync.last_queued);
    assert!(sync.get() == 0.0 && (before..=now()).contains(&queued.get()), "{}", last());
    metrics.sync_done(true, Duration::ZERO, &Ok::<_, ()>(()));
    assert!((before..=now()).contains(&sync.get()), "{}", last());
}

const STATE: &str = "
    service d/both cluster=cluster.1 lb=lb.1 port=a:80 port=b:81 itp=Local etp=Local
    slice d/both a=8080 b=8081
      remote1
    service d/here cluster=cluster.2 lb=lb.2 port=a:80 itp=Local etp=Local
    slice d/here a=8080
      pod1
    service d/nowhere cluster=cluster.3 lb=lb.3 port=a:80 itp=Local etp=Local
    service d/outside cluster=cluster.4 lb=lb.4 port=a:80:3004 etp=Local
    slice d/outside a=8080
      remote1
    service d/four cluster4=cluster.5 port=a:80";

#[test]
fn services_that_lack_a_local_endpoint() {
    let parts = &["no_local_endpoints", "kpng_services", "node_local_events"];
    check(
        |fixture| fixture.metrics.planned(&plan(STATE), None),
        parts,
        expect![[r#"
            kpng_node_local_events_total 5
            kpng_services 5
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external"} 3
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal"} 2
        "#]],
    );
    check(
        |fixture| {
            fixture.metrics.planned(&plan(STATE), None);
            let arrived = STATE.replace("b=8081\n      remote1", "b=8081\n      pod1");
            let gone = arrived.replace("d/outside", "d/other");
            let changed = ["both", "outside"].map(|name| NamespacedName::new("d", name));
            fixture.metrics.planned(&plan(&gone), Some(&changed));
        },
        parts,
        expect![[r#"
            kpng_node_local_events_total 7
            kpng_services 5
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external"} 0
            kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal"} 0
        "#]],
    );
}

#[test]
fn programming_is_per_family() {
    let programmed = |name: &'static str| {
        move |fixture: &mut Fixture| {
            let triggered = SystemTime::now() - Duration::from_millis(1500);
            let changed = [NamespacedName::new("d", name)];
            fixture.metrics.programmed(triggered, &plan(STATE), &changed);
        }
    };
    let parts = &[
        "programming_duration_seconds_bucket{le=\"1\"",
        "bucket{le=\"2\"",
        "programming_duration_seconds_count",
    ];
    check(
        programmed("here"),
        parts,
        expect![[r#"
            kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv4"} 0
            kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv6"} 0
            kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv4"} 1
            kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv6"} 1
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 1
        "#]],
    );
    check(
        programmed("four"),
        parts,
        expect![[r#"
            kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv4"} 0
            kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv6"} 0
            kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv4"} 1
            kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv6"} 0
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1
            kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 0
        "#]],
    );
    check(
        programmed("gone"),
        parts,
        expect![[r#"
        kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv4"} 0
        kubeproxy_network_programming_duration_seconds_bucket{le="1",ip_family="IPv6"} 0
        kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv4"} 0
        kubeproxy_network_programming_duration_seconds_bucket{le="2",ip_family="IPv6"} 0
        kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 0
        kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 0
    "#]],
    );
}

#[test]
fn a_trigger_in_the_future_is_now() {
    let Fixture { metrics, .. } = new();
    let triggered = SystemTime::now() + Duration::from_secs(3600);
    metrics.programmed(triggered, &plan(STATE), &[NamespacedName::new("d", "four")]);
    assert!(samples(&metrics, &["programming_duration_seconds_sum"]).ends_with(" 0.0\n"));
}

#[test]
fn probes_conflicts_and_conntrack() {
    check(
        |fixture| {
            let probe = fixture.health.handler();
            ask_at_once(&probe, "/healthz");
            fixture.health.set_node_eligible(false);
            ask_at_once(&probe, "/healthz");
            ask_at_once(&probe, "/livez");
            fixture.metrics.set_conflicts(3);
            fixture.metrics.conntrack_cleaned(model::Family::V6, 7, Duration::from_millis(3));
        },
        &[
            "healthz",
            "livez",
            "conflicts",
            "deleted_entries",
            "reconciler_sync_duration_seconds_count",
        ],
        expect![[r#"
            kpng_frontend_conflicts 3
            kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 0
            kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 7
            kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"} 0
            kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv6"} 1
            kubeproxy_proxy_healthz_total{code="200"} 1
            kubeproxy_proxy_healthz_total{code="503"} 1
            kubeproxy_proxy_livez_total{code="200"} 1
            kubeproxy_proxy_livez_total{code="503"} 0
        "#]],
    );
}

#[test]
fn the_journal_lags_until_it_is_in_force() {
    let lag = |fixture: &Fixture| samples(&fixture.metrics, &["journal_lag"]);
    let mut fixture = new();
    for name in ["a", "b"] {
        let mut batch = Batch::new();
        batch.set_service(NamespacedName::new("d", name), Service::default());
        fixture.writer.apply(batch);
    }
    assert_eq!(lag(&fixture), "kpng_journal_lag 2\n");
    fixture.metrics.set_synced_revision(1);
    assert_eq!(lag(&fixture), "kpng_journal_lag 1\n");
    fixture.metrics.set_synced_revision(9);
    assert_eq!(lag(&fixture), "kpng_journal_lag 0\n");
}

#[test]
fn numbers_of_the_watcher() {
    check(
        |_| {},
        &[
            "k8s_api_events",
            "watch_",
            "kpng_lists",
            "rejected",
            "left_out",
            "reconnects",
            "contact",
        ],
        expect![[r#"
            kpng_api_client_rejected_values_total 0
            kpng_api_reconnects_total 0
            kpng_k8s_api_events_total 0
            kpng_left_out_fields_total{kind="endpointslices"} 0
            kpng_left_out_fields_total{kind="nodes"} 0
            kpng_left_out_fields_total{kind="services"} 0
            kpng_lists_total{kind="endpointslices"} 0
            kpng_lists_total{kind="nodes"} 0
            kpng_lists_total{kind="services"} 0
            kpng_rejected_objects_total{kind="endpointslices",reason="no_usable_address"} 0
            kpng_rejected_objects_total{kind="endpointslices",reason="undecodable"} 0
            kpng_rejected_objects_total{kind="endpointslices",reason="unknown_type"} 0
            kpng_rejected_objects_total{kind="endpointslices",reason="unnamed"} 0
            kpng_rejected_objects_total{kind="nodes",reason="no_usable_address"} 0
            kpng_rejected_objects_total{kind="nodes",reason="undecodable"} 0
            kpng_rejected_objects_total{kind="nodes",reason="unknown_type"} 0
            kpng_rejected_objects_total{kind="nodes",reason="unnamed"} 0
            kpng_rejected_objects_total{kind="services",reason="no_usable_address"} 0
            kpng_rejected_objects_total{kind="services",reason="undecodable"} 0
            kpng_rejected_objects_total{kind="services",reason="unknown_type"} 0
            kpng_rejected_objects_total{kind="services",reason="unnamed"} 0
            kpng_watch_errors_total{kind="endpointslices"} 0
            kpng_watch_errors_total{kind="nodes"} 0
            kpng_watch_errors_total{kind="services"} 0
            kpng_watch_restarts_total{kind="endpointslices"} 0
            kpng_watch_restarts_total{kind="nodes"} 0
            kpng_watch_restarts_total{kind="services"} 0
        "#]],
    );
    let health = ProxyHealth::new(Duration::ZERO);
    let (_, store) = Store::new();
    let metrics = Metrics::new(Sources { kube: None, ..sources(&health, &store) });
    assert_eq!(
        samples(&metrics, &["k8s_api_events", "watch_"]),
        "kpng_k8s_api_events_total 0\n",
        "of any source"
    );
}

#[test]
fn the_process_and_the_build() {
    let Fixture { metrics, .. } = new();
    let names: Vec<_> = samples(&metrics, &["process_", "build_info"])
        .lines()
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect();
    let version = format!("kpng_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        names,
        [
            &version,
            "process_cpu_seconds_total",
            "process_max_fds",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_virtual_memory_bytes",
        ]
    );
}

#[test]
fn changed_objects_are_counted() {
    let (mut writer, store) = Store::new();
    let mut reader = store.reader();
    let key = |name: &str| NamespacedName::new("d", name);
    let mut step = |change: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        change(&mut batch);
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        reader.try_next().map(|update| count_changes(&update))
    };
    let slice = |ports| EndpointSlice {
        ports: vec![model::SlicePort {
            name: "".into(),
            protocol: model::Protocol::Tcp,
            port: ports,
        }],
        ..EndpointSlice::default()
    };
    let put = step(&|batch| {
        batch.set_service(key("a"), Service::default());
        batch.set_slice(key("a-1"), "a", slice(1));
        batch.set_slice(key("a-2"), "a", slice(2));
    });
    assert_eq!(put, Some((1, 2)));
    assert_eq!(step(&|batch| batch.set_slice(key("a-1"), "a", slice(3))), Some((0, 1)));
    let many = step(&|batch| {
        batch.delete_slice(key("a-1"));
        batch.set_slice(key("a-2"), "a", slice(4));
        batch.set_slice(key("a-3"), "a", slice(5));
        batch.delete_service(key("a"));
        batch.set_service(key("b"), Service::default());
    });
    assert_eq!(many, Some((2, 3)));
}

#[test]
fn changes_of_what_a_server_worked_out_are_counted() {
    let local = |service: &str, endpoints: &str| {
        let text = format!(
            "service a/b cluster=cluster.1 port=http:80 {service}\nslice a/b http=80\n{endpoints}"
        );
        let store = fixture(&text).store;
        let key = NamespacedName::new("a", "b");
        let here = Place::of(&NODE.into(), None);
        Some(Arc::new(localize(&key, &store.service(&key).unwrap(), &here).unwrap()))
    };
    let count = |old, new| LocalService::count(&Change { old, new });
    let one = "pod1";
    assert_eq!(count(None, local("", one)), (1, 1));
    assert_eq!(count(None, local("", "")), (1, 0));
    assert_eq!(count(local("", one), local("", one)), (0, 0));
    assert_eq!(count(local("", one), local("", "pod1\npod2")), (0, 1));
    assert_eq!(count(local("", one), local("affinity=10", one)), (1, 0));
    assert_eq!(count(local("", one), None), (1, 1));
}

#[tokio::test]
async fn a_process_without_a_node_tells_of_its_sources_and_its_server() {
    let health = ProxyHealth::new(Duration::from_secs(60));
    let store = fixture("service a/b").store;
    let page = without_node(sources(&health, &store));
    let text = ask(&page, "/metrics").await.into_body();
    let mut samples: Vec<_> = text
        .lines()
        .filter(|line| !["#", "process_", "kind="].iter().any(|part| line.contains(part)))
        .collect();
    samples.sort_unstable();
    expect![[r#"
        kpng_api_answers_total 0
        kpng_api_client_connected 0
        kpng_api_client_connects_total 0
        kpng_api_client_failures_total 0
        kpng_api_client_operations_total 0
        kpng_api_client_rejected_values_total 0
        kpng_api_client_syncs_total 0
        kpng_api_connections 0
        kpng_api_denied_total 0
        kpng_api_encodings_total 0
        kpng_api_failed_handshakes_total 0
        kpng_api_operations_total 0
        kpng_api_reconnects_total 0
        kpng_api_refused_connections_total 0
        kpng_api_sent_bytes_total 0
        kpng_api_streams{api="global"} 0
        kpng_api_streams{api="local"} 0
        kpng_build_info{version="0.1.0"} 1
        kpng_k8s_api_events_total 0
        kpng_kubernetes_events_total{outcome="dropped"} 0
        kpng_kubernetes_events_total{outcome="failed"} 0
        kpng_kubernetes_events_total{outcome="refused"} 0
        kpng_kubernetes_events_total{outcome="repeated"} 0
        kpng_kubernetes_events_total{outcome="said_by_others"} 0
        kpng_kubernetes_events_total{outcome="written"} 0
        kpng_node_local_events_total 0
        kpng_store_nodes 1
        kpng_store_revision 1
        kpng_store_services 1
        kubeproxy_proxy_healthz_total{code="200"} 0
        kubeproxy_proxy_healthz_total{code="503"} 0
        kubeproxy_proxy_livez_total{code="200"} 0
        kubeproxy_proxy_livez_total{code="503"} 0"#]]
    .assert_eq(&samples.join("\n"));
    assert_eq!(ask(&page, "/proxyMode").await.status().as_u16(), 404, "it is no proxy");
}

#[tokio::test]
async fn pages() {
    let Fixture { metrics, .. } = new();
    let page = async |backend, path| {
        let answer = ask(&metrics.handler(backend), path).await;
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), kind, answer.into_body())
    };
    let (status, kind, body) = page("nft", "/metrics").await;
    assert_eq!((status, &*kind), (200, "text/plain; version=0.0.4; charset=utf-8"));
    assert!(
        body.starts_with("# HELP kubeproxy_") && body.ends_with('\n') && !body.contains("# EOF")
    );
    assert_eq!(page("nft", "/proxyMode").await, (200, TEXT.into(), "nftables".into()));
    assert_eq!(page("ipvs", "/proxyMode").await.2, "ipvs");
    assert_eq!(page("nft", "/").await.0, 404);
}
