//! What running processes expose at `/metrics`, against docs/metrics.md; and what the dashboard and the
//! alerts under deploy/ ask for, against the same page. And the numbers of a Service's port against the
//! packets that were sent.

#![expect(clippy::disallowed_methods, reason = "the binary under test is a child process")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "metrics/deploy.rs"]
mod deploy;
#[path = "node/example.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod example;
#[path = "metrics/page.rs"]
mod page;
#[path = "node/process.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod process;
#[path = "metrics/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};

use kpng_testkit::apiserver::ApiServer;
#[cfg(feature = "ebpf")]
use kpng_testkit::bpf::BpfPlace;
use kpng_testkit::network::Host;
use serde_json::json;

use crate::example::{ask, network, state, write};
use crate::page::{Metric, page};
use crate::process::{Kpng, eventually, http};

/// Flags of a process that shares its host with none.
const FLAGS: &[&str] =
    &["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", "--admin-socket="];

fn start(host: &Host, command: &[&str], backend: &[&str]) -> Kpng {
    let kpng = Kpng::start(host, &[command, &["to-local"], backend, FLAGS].concat());
    kpng.wait_ready(host);
    kpng
}

/// What `/metrics` says on the loopback of a host.
fn scrape(host: &Host) -> String {
    let answer = http(host, 10249, "/metrics").expect("metrics are served");
    answer.split_once("\r\n\r\n").expect("an answer has a body").1.to_owned()
}

/// Metrics with their types, and the labels of their samples.
#[derive(Default)]
struct Exposed(BTreeMap<String, Metric>);

impl Exposed {
    fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
            {
                let metric = self.0.entry(name.to_owned()).or_default();
                kind.clone_into(&mut metric.kind);
            }
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = |end| name.strip_suffix(end).filter(|name| self.0.contains_key(*name));
            let of_histogram = ["_bucket", "_sum", "_count"].into_iter().find_map(family);
            let name = of_histogram.unwrap_or(name).to_owned();
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let labels = labels.split("\",").filter_map(|label| label.split_once("=\""));
            let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
            self.0
                .get_mut(&name)
                .unwrap_or_else(|| panic!("{line} has no type"))
                .labels
                .extend(labels);
        }
    }
}

/// A process of each kind: together they have everything.
#[test]
fn the_page_has_every_metric_and_no_other() {
    let Some(network) = network() else { return };
    let Some(api) = network.node.run(ApiServer::start) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (view, cluster) = (folder.path().join("view.sock"), folder.path().join("cluster.sock"));
    let (view, cluster) =
        (format!("unix://{}", view.display()), format!("unix://{}", cluster.display()));
    let mut exposed = Exposed::default();

    let kubeconfig = format!("--kubeconfig={}", api.kubeconfig_path().display());
    let api = network.node.run(move || {
        let address = json!({"type": "InternalIP", "address": "192.168.0.2"});
        api.create_node("node-a", json!({}), json!({}), json!({"addresses": [address]}));
        api.create_service("default", "web", json!({"ports": [{"name": "http", "port": 80}]}));
        api
    });
    let also = format!("--also-listen={view}");
    let mut node = start(&network.node, &["kube", &kubeconfig, &also], &["to-nft"]);
    // A stream that is open, and one that ended: their numbers are there from the beginning.
    let client = ["local", "--api", &view, "to-userspacelin"];
    let state_dir = format!("--state-dir={}", folder.path().display());
    let mut user = Kpng::start(&network.client, &[&client[..], &[&state_dir], FLAGS].concat());
    user.wait_ready(&network.client);
    exposed.add(&scrape(&network.node));
    exposed.add(&scrape(&network.client));
    assert!(user.terminate().success() && node.terminate().success());
    network.node.run(move || drop(api));

    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let input = format!("--input={}", path.display());
    let server = ["file", &input, "to-api", "--listen", &cluster];
    let server = Kpng::start(network.pod(1), &server);
    server.wait_ready(network.pod(1));
    exposed.add(&scrape(network.pod(1)));
    #[cfg(feature = "ebpf")]
    exposed.add(&with_ebpf(&network, &input));

    let documented: BTreeMap<_, _> = page();
    let names = |metrics: &BTreeMap<String, Metric>| -> BTreeSet<_> {
        metrics.iter().map(|(name, metric)| format!("{name} {}", metric.kind)).collect()
    };
    assert_eq!(names(&documented), names(&exposed.0), "docs/metrics.md, and what is exposed");
    for (name, metric) in &exposed.0 {
        // Labels that no sample has yet are taken on trust.
        if !metric.labels.is_empty() {
            assert_eq!(documented[name].labels, metric.labels, "the labels of {name}");
        }
    }
}

#[cfg(feature = "ebpf")]
fn with_ebpf(network: &kpng_testkit::network::Network, input: &str) -> String {
    let place = BpfPlace::new(network);
    let pins = format!("--bpffs-root={}", place.pins.display());
    let cgroup = format!("--cgroup-root={}", place.cgroup.display());
    let mut kpng = start(&network.node, &["file", input], &["to-ebpf", &pins, &cgroup]);
    let text = scrape(&network.node);
    assert!(kpng.terminate().success());
    text
}

/// The numbers of port 80 of the example's service.
fn numbers(text: &str) -> Option<[u64; 3]> {
    let labels = r#"{namespace="default",service="web",port="80",port_name="http",protocol="TCP"}"#;
    let number = |what: &str| {
        let start = format!("kpng_service_{what}_total{labels} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|number| number.parse().unwrap())
    };
    Some([number("connections")?, number("rejected_packets")?, number("dropped_packets")?])
}

#[test]
fn a_port_of_a_service_has_the_numbers_of_its_packets() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let input = format!("--input={}", path.display());
    let _kpng = start(&network.node, &["file", &input], &["to-nft"]);
    let found = || numbers(&scrape(&network.node));
    assert_eq!(found(), Some([0, 0, 0]));
    for _ in 0..3 {
        ask(network.pod(3));
    }
    let node_port = "192.168.0.2:30080".parse().unwrap();
    network.client.tcp(None, node_port);
    assert_eq!(found(), Some([4, 0, 0]), "at all its addresses");

    let refused = |host: &Host| ask(host) == kpng_testkit::network::Outcome::Refused;
    write(&path, &state(&[]));
    let mut rejected = 0;
    eventually("nobody is left", || {
        let is_refused = refused(network.pod(3));
        rejected += u64::from(is_refused);
        is_refused
    });
    let [connections, ..] = found().unwrap();
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    eventually("somebody is back", || {
        let is_refused = refused(network.pod(3));
        rejected += u64::from(is_refused);
        !is_refused
    });
    assert_eq!(found(), Some([connections + 1, rejected, 0]), "whatever became of the elements");

    write(&path, &state(&["10.180.0.1"]).replace("name: web, n", "name: other, n"));
    eventually("its series end with the service", || found().is_none());
}

#[test]
fn nobody_counts_when_that_is_not_wanted() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let input = format!("--input={}", path.display());
    let _kpng = start(&network.node, &["file", &input], &["to-nft", "--service-metrics=false"]);
    let text = scrape(&network.node);
    assert!(!text.contains("kpng_service_") && text.contains("kpng_services 1"), "{text}");
}
