use kpng_core::backend::BackendError;
use kpng_core::plan::At;
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::address;
use prometheus_client::registry::Registry;

use super::*;

/// A backend that counts what the test says.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(FrontendKey, Counts)>>);

impl backend::Traffic for Told {
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError> {
        match &*lock(&self.0) {
            counts if counts.is_empty() => Err("nothing can be read".into()),
            counts => Ok(counts.clone()),
        }
    }
}

fn at(name: &str) -> FrontendKey {
    let at = At::Vip(address(name, kpng_core::model::Family::V4));
    FrontendKey { at, protocol: Protocol::Tcp, port: 80 }
}

struct Fixture {
    told: Arc<Told>,
    traffic: Arc<Traffic>,
}

impl Fixture {
    fn new() -> Self {
        let told = Arc::new(Told::default());
        let traffic = Arc::new(Traffic::new(Counting::Auto, Arc::clone(&told) as _));
        Self { told, traffic }
    }

    fn plan(&self, state: &str) {
        self.traffic.update(plan_of(state).plan(), None);
    }

    fn told(&self, counts: &[(&str, u64, u64)]) {
        let of = |&(name, connections, rejected): &(&str, _, _)| {
            (at(name), Counts { connections, rejected: Some(rejected), dropped: None })
        };
        *lock(&self.told.0) = counts.iter().map(of).collect();
    }

    /// The series with a number other than 0.
    fn series(&self) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OfPorts(Arc::clone(&self.traffic))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let samples = text.lines().filter(|line| line.starts_with("kpng_service_"));
        let samples = samples.filter(|line| !line.ends_with(" 0"));
        samples.map(|line| line.trim_start_matches("kpng_service_").to_owned()).collect()
    }
}

const WEB: &str = "service t/web cluster=cluster.1 ext=ext.1 port=http:80";

#[test]
fn a_service_port_has_the_sum_of_its_frontends() {
    let fixture = Fixture::new();
    fixture.plan(WEB);
    fixture.told(&[("cluster.1", 3, 1), ("ext.1", 2, 0), ("cluster.9", 7, 7)]);
    let labels = r#"{namespace="t",service="web",port="80",port_name="http",protocol="TCP"}"#;
    assert_eq!(
        fixture.series(),
        [format!("connections_total{labels} 5"), format!("rejected_packets_total{labels} 1")]
    );
}

#[test]
fn numbers_never_go_back_while_the_port_is_there() {
    let fixture = Fixture::new();
    fixture.plan(WEB);
    let connections = || {
        let series = fixture.series();
        let line = series.iter().find(|line| line.starts_with("connections"));
        line.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    };
    fixture.told(&[("cluster.1", 3, 0), ("ext.1", 10, 0)]);
    assert_eq!(connections(), 13);
    fixture.told(&[]);
    assert_eq!(connections(), 13, "it cannot be read");
    fixture.plan("service t/web cluster=cluster.1 port=http:80");
    fixture.told(&[("cluster.1", 4, 0)]);
    assert_eq!(connections(), 14, "an address went");
    fixture.told(&[("cluster.1", 2, 0)]);
    assert_eq!(connections(), 16, "it began again");
    fixture.told(&[("cluster.2", 1, 0)]);
    assert_eq!(connections(), 16, "somebody deleted what counts");
    fixture.plan("service t/other cluster=cluster.2 port=http:80");
    assert_eq!(
        fixture.series().len(),
        0,
        "the service went; what was seen before is not the next's"
    );
    fixture.told(&[("cluster.2", 5, 0)]);
    assert_eq!(connections(), 4);
}

#[test]
fn a_frontend_that_changes_hands_counts_for_who_has_it() {
    let fixture = Fixture::new();
    fixture.plan("service t/a cluster=cluster.1 ext=ext.1 port=http:80");
    fixture.told(&[("cluster.1", 1, 0), ("ext.1", 10, 0)]);
    assert_eq!(fixture.series().len(), 1);
    fixture.plan(
        "service t/a cluster=cluster.1 port=http:80
         service t/b cluster=cluster.2 ext=ext.1 port=http:80",
    );
    fixture.told(&[("cluster.1", 1, 0), ("cluster.2", 0, 0), ("ext.1", 12, 0)]);
    let series = fixture.series();
    assert!(series[0].contains("\"a\"") && series[0].ends_with(" 11"), "{series:?}");
    assert!(series[1].contains("\"b\"") && series[1].ends_with(" 2"), "{series:?}");
}
