//! Details of plans that no packet shows: how they look, conflicts, warnings, health checks.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fmt::Write;
use std::sync::Arc;

use expect_test::{Expect, expect};
use kpng_core::local::{Place, localize};
use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{Action, At, Changes, NodeFacts, Planner, Route, ServicePlan, Target};
use kpng_core::store::{Batch, Kind, Reader, Store, Writer};
use kpng_testkit::conformance::plan_of;
use kpng_testkit::fixture::{NODE, fixture};

fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

fn list(targets: &[Target]) -> String {
    let texts = targets.iter().map(|t| std::net::SocketAddr::new(t.address, t.port).to_string());
    texts.collect::<Vec<_>>().join(" ")
}

fn action(action: Action) -> String {
    match action {
        Action::Forward { pool, masquerade } => {
            format!("pool {}{}", pool.0, if masquerade { "*" } else { "" })
        }
        Action::Reject => "reject".to_owned(),
        Action::Drop => "drop".to_owned(),
    }
}

fn route(route: &Route) -> String {
    let [pod, node, outside] = route.actions().map(action);
    match pod == node && node == outside {
        true => pod,
        false => format!("pod: {pod}, node: {node}, outside: {outside}"),
    }
}

/// A plan in a few lines; `*` means masqueraded.
fn show(plan: &ServicePlan) -> String {
    let mut out = String::new();
    for frontend in &plan.frontends {
        write!(out, "{} -> {}", frontend.key(), route(&frontend.route)).unwrap();
        if let Some(sources) = &frontend.sources {
            let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
            write!(out, ", only from [{}]", sources.join(" ")).unwrap();
        }
        writeln!(out).unwrap();
    }
    for (number, pool) in plan.pools.iter().enumerate() {
        let port = &plan.ports[usize::from(pool.service_port)].name;
        let affinity = pool.affinity.map(|time| format!(", sticky for {time:?}"));
        let targets = list(&pool.targets);
        writeln!(out, "pool {number} of {port}: {targets}{}", affinity.unwrap_or_default())
            .unwrap();
    }
    for port in plan.ports.iter().filter(|port| !port.serving.is_empty()) {
        writeln!(out, "{} is served by {}", port.name, list(&port.serving)).unwrap();
    }
    if let Some(health) = plan.health_check {
        writeln!(out, "health on {}: {} ready here", health.port, health.local_ready).unwrap();
    }
    for warning in &plan.warnings {
        writeln!(out, "warning: {warning}").unwrap();
    }
    out
}

/// Compares the plan of the service `t/web` of a cluster.
fn check(cluster: &str, expected: Expect) {
    let planner = plan_of(cluster);
    expected.assert_eq(&show(&planner.plan().services()[&name("t/web")]));
}

#[test]
fn a_service_in_both_families() {
    check(
        "service t/web cluster=cluster.1 port=http:80:30001 port=dns:53/UDP affinity=60
         slice t/web http=8080 dns=53/UDP
           pod1
           remote1",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            IPv4 node port 30001/TCP -> pool 0*
            [fd00:172:30::1]:80/TCP -> pod: pool 1, node: pool 1*, outside: pool 1*
            IPv6 node port 30001/TCP -> pool 1*
            172.30.0.1:53/UDP -> pod: pool 2, node: pool 2*, outside: pool 2*
            [fd00:172:30::1]:53/UDP -> pod: pool 3, node: pool 3*, outside: pool 3*
            pool 0 of http: 10.180.0.1:8080 10.180.1.1:8080, sticky for 60s
            pool 1 of http: [fd00:180::1]:8080 [fd00:180:1::1]:8080, sticky for 60s
            pool 2 of dns: 10.180.0.1:53 10.180.1.1:53, sticky for 60s
            pool 3 of dns: [fd00:180::1]:53 [fd00:180:1::1]:53, sticky for 60s
            dns is served by 10.180.0.1:53 10.180.1.1:53 [fd00:180::1]:53 [fd00:180:1::1]:53
        "#]],
    );
}

#[test]
fn a_service_with_policy_local_behind_a_load_balancer() {
    check(
        "service t/web cluster=cluster.1 lb=lb.1 ext=ext.1 port=http:80:30001 etp=Local health=32000 ranges=client-net
         slice t/web http=8080
           pod1
           remote1",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            198.51.100.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 1, only from [203.0.113.0/25]
            198.18.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 1
            IPv4 node port 30001/TCP -> pod: pool 0, node: pool 0*, outside: pool 1
            [fd00:172:30::1]:80/TCP -> pod: pool 2, node: pool 2*, outside: pool 2*
            [2001:db8:100::1]:80/TCP -> pod: pool 2, node: pool 2*, outside: pool 3, only from [2001:db8:203::/64]
            [2001:db8:18::1]:80/TCP -> pod: pool 2, node: pool 2*, outside: pool 3
            IPv6 node port 30001/TCP -> pod: pool 2, node: pool 2*, outside: pool 3
            pool 0 of http: 10.180.0.1:8080 10.180.1.1:8080
            pool 1 of http: 10.180.0.1:8080
            pool 2 of http: [fd00:180::1]:8080 [fd00:180:1::1]:8080
            pool 3 of http: [fd00:180::1]:8080
            health on 32000: 1 ready here
        "#]],
    );
}

#[test]
fn lists_of_the_same_endpoints_are_one_pool() {
    check(
        "service t/web cluster=cluster.1 ext=ext.1 port=http:80 etp=Local itp=Local
         slice t/web http=8080
           pod1 v4",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            198.18.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0
            [fd00:172:30::1]:80/TCP -> reject
            [2001:db8:18::1]:80/TCP -> reject
            pool 0 of http: 10.180.0.1:8080
        "#]],
    );
}

#[test]
fn a_port_twice_is_one_frontend() {
    check(
        "service t/web cluster=cluster.1 ext=cluster.1 port=a:80 port=b:80
         slice t/web a=8080 b=8081
           pod1 v4",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            [fd00:172:30::1]:80/TCP -> reject
            pool 0 of a: 10.180.0.1:8080
            pool 1 of b: 10.180.0.1:8081
        "#]],
    );
}

#[test]
fn a_service_without_addresses_asks_for_nothing() {
    check(
        "service t/web port=http:80
         slice t/web http=8080
           pod1",
        expect![[r#""#]],
    );
}

#[test]
fn udp_ports_know_all_endpoints_that_still_serve() {
    check(
        "service t/web cluster4=cluster.1 port=dns:53/UDP port=tcp:53 itp=Local
         slice t/web dns=53/UDP tcp=53
           pod1 v4
           remote1 v4
           pod2 serving-terminating v4
           pod3 terminating v4
           pod4 notready v4",
        expect![[r#"
            172.30.0.1:53/UDP -> pod: pool 1, node: pool 1*, outside: pool 1*
            172.30.0.1:53/TCP -> pod: pool 3, node: pool 3*, outside: pool 3*
            pool 0 of dns: 10.180.0.1:53 10.180.1.1:53
            pool 1 of dns: 10.180.0.1:53
            pool 2 of tcp: 10.180.0.1:53 10.180.1.1:53
            pool 3 of tcp: 10.180.0.1:53
            dns is served by 10.180.0.1:53 10.180.0.2:53 10.180.1.1:53
        "#]],
    );
}

#[test]
fn ranges_of_the_other_family_only_close_this_one() {
    check(
        "service t/web cluster=cluster.1 lb=lb.1 port=http:80 port=other:81 ranges=client-net4
         slice t/web http=8080
           pod1",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            198.51.100.1:80/TCP -> pool 0*, only from [203.0.113.0/25]
            [fd00:172:30::1]:80/TCP -> pod: pool 1, node: pool 1*, outside: pool 1*
            [2001:db8:100::1]:80/TCP -> pool 1*, only from []
            172.30.0.1:81/TCP -> reject
            198.51.100.1:81/TCP -> reject, only from [203.0.113.0/25]
            [fd00:172:30::1]:81/TCP -> reject
            [2001:db8:100::1]:81/TCP -> reject, only from []
            pool 0 of http: 10.180.0.1:8080
            pool 1 of http: [fd00:180::1]:8080
            warning: loadBalancerSourceRanges has no IPv6 range, so nobody may reach its IPv6 load balancer addresses; add a range of that family to admit clients
        "#]],
    );
}

#[test]
fn whoever_admits_the_node_admits_its_use_of_the_address() {
    check(
        "service t/web cluster=cluster.1 lb=lb.1 port=http:80 ranges=node-net
         slice t/web http=8080
           pod1 v4",
        expect![[r#"
            172.30.0.1:80/TCP -> pod: pool 0, node: pool 0*, outside: pool 0*
            198.51.100.1:80/TCP -> pool 0*, only from [192.168.0.0/24 198.51.100.1/32]
            [fd00:172:30::1]:80/TCP -> reject
            [2001:db8:100::1]:80/TCP -> reject, only from [2001:db8::/64 2001:db8:100::1/128]
            pool 0 of http: 10.180.0.1:8080
        "#]],
    );
}

#[test]
fn health_checks_count_ready_pods_of_this_node() {
    let ready = |endpoints: &str, policy: &str| {
        let cluster = format!(
            "service t/web cluster=cluster.1 lb=lb.1 port=http:80 health=32000 {policy}
             slice t/web http=8080
             {endpoints}"
        );
        let planner = plan_of(&cluster);
        planner.plan().services()[&name("t/web")].health_check.map(|health| health.local_ready)
    };
    assert_eq!(ready("", "etp=Local"), Some(0));
    assert_eq!(ready("pod1\npod2", "etp=Local"), Some(2), "a pod with two addresses is one");
    assert_eq!(ready("pod1 v4\npod2 v6", "etp=Local"), Some(1), "families are not added up");
    assert_eq!(ready("pod1\nremote1", "etp=Local"), Some(1));
    assert_eq!(ready("pod1\npod2 serving-terminating\npod3 notready", "etp=Local"), Some(1));
    assert_eq!(ready("pod1", ""), None, "only policy Local has health checks");
}

#[test]
fn endpoints_elsewhere_are_known_to_exist() {
    let fixture = fixture(
        "service t/web cluster=cluster.1 port=a:80 port=b:81 itp=Local
         slice t/web a=8080
           remote1 v4
           remote2 v6 notready",
    );
    let state = fixture.store.service(&name("t/web")).unwrap();
    let here = Place { node: NODE.into(), zone: None };
    let local = localize(&name("t/web"), &state, &here).unwrap();
    let has_any = |port, family| local.has_any(port, family);
    assert!(has_any(0, Family::V4), "policy Local drops");
    assert!(!has_any(0, Family::V6), "nothing usable: it rejects");
    assert!(!has_any(1, Family::V4), "no slice has the port");
}

/// A cluster that changes, and its planner.
struct Cluster {
    writer: Writer,
    reader: Reader,
    planner: Planner,
}

impl Cluster {
    fn new() -> Self {
        let (mut writer, store) = Store::new();
        let mut batch = Batch::new();
        Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
        writer.apply(batch);
        let mut reader = store.reader();
        let mut planner = Planner::new(NODE, NodeFacts::default());
        planner.update(&reader.try_next().unwrap());
        Self { writer, reader, planner }
    }

    fn apply(&mut self, batch: Batch) -> Changes {
        self.writer.apply(batch);
        self.planner.update(&self.reader.try_next().unwrap())
    }

    /// Sets the service `t/NAME`, given its fields in the language of fixtures.
    fn set(&mut self, service: &str, fields: &str) -> Changes {
        let key = name(&format!("t/{service}"));
        let state = fixture(&format!("service {key} {fields}")).store.service(&key).unwrap();
        let mut batch = Batch::new();
        batch.set_service(key, Arc::unwrap_or_clone(state.service.clone().unwrap()));
        self.apply(batch)
    }

    fn delete(&mut self, service: &str) -> Changes {
        let mut batch = Batch::new();
        batch.delete_service(name(&format!("t/{service}")));
        self.apply(batch)
    }

    /// Who owns port 80 of the first cluster IP.
    fn owner(&self) -> Option<String> {
        let frontend = kpng_core::plan::FrontendKey {
            at: At::Vip("172.30.0.1".parse().unwrap()),
            protocol: kpng_core::model::Protocol::Tcp,
            port: 80,
        };
        let (owner, plan, _) = self.planner.plan().owner(&frontend)?;
        let others = self.planner.plan().services().iter().filter(|(key, _)| *key != owner);
        for (_, other) in others {
            assert!(other.frontends.iter().all(|other| other.key() != frontend));
        }
        assert!(plan.frontends.iter().any(|other| other.key() == frontend));
        Some(owner.name.to_string())
    }
}

/// The services whose plans changed, and the conflicts that arose.
fn said(changes: &Changes) -> String {
    let names: Vec<_> = changes.services.iter().map(|key| &*key.name).collect();
    let conflicts = changes.conflicts.iter().map(|conflict| format!("\n{conflict}"));
    format!("{}{}", names.join(" "), conflicts.collect::<String>())
}

const OLD: &str = "cluster4=cluster.1 port=http:80 created=1";
const YOUNG: &str = "cluster4=cluster.1 port=http:80 created=2";
const AGELESS: &str = "cluster4=cluster.1 port=http:80";

#[test]
fn the_older_service_wins_whoever_comes_first() {
    let services = [("a", AGELESS), ("b", YOUNG), ("c", OLD)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut cluster = Cluster::new();
        for index in order {
            let (name, fields) = services[index];
            cluster.set(name, fields);
        }
        assert_eq!(cluster.owner().as_deref(), Some("c"), "{order:?}");
        assert_eq!(cluster.planner.conflict_count(), 2);
        cluster.delete("c");
        assert_eq!(cluster.owner().as_deref(), Some("b"), "{order:?}");
        cluster.delete("b");
        assert_eq!(cluster.owner().as_deref(), Some("a"), "unknown age comes last");
        assert_eq!(cluster.planner.conflicts(), []);
        cluster.delete("a");
        assert_eq!(cluster.owner(), None);
    }
}

#[test]
fn of_the_same_age_the_first_name_wins() {
    let mut cluster = Cluster::new();
    cluster.set("b", OLD);
    cluster.set("a", OLD);
    assert_eq!(cluster.owner().as_deref(), Some("a"));
}

#[test]
fn conflicts_are_told_when_they_arise() {
    let mut cluster = Cluster::new();
    expect!["young"].assert_eq(&said(&cluster.set("young", YOUNG)));
    expect![[r#"
        old young
        t/young claims 172.30.0.1:80/TCP, which belongs to t/old; it is not served for t/young until t/old gives it up"#]].assert_eq(&said(&cluster.set("old", OLD)));
    expect![[r#"
        third
        t/third claims 172.30.0.1:80/TCP, which belongs to t/old; it is not served for t/third until t/old gives it up"#]].assert_eq(&said(&cluster.set("third", AGELESS)));
    // Not again at every change of somebody in it.
    expect![[r#""#]].assert_eq(&said(&cluster.set("young", &format!("{YOUNG} affinity=10"))));
    // The heir has a conflict with the one that is left.
    expect![[r#"
        old young
        t/third claims 172.30.0.1:80/TCP, which belongs to t/young; it is not served for t/third until t/young gives it up"#]].assert_eq(&said(&cluster.set("old", &OLD.replace("cluster.1", "cluster.2"))));
    expect!["third"].assert_eq(&said(&cluster.delete("third")));
    // The order of age can change too: a service was deleted and made anew.
    expect![[r#"
        old young
        t/young claims 172.30.0.1:80/TCP, which belongs to t/old; it is not served for t/young until t/old gives it up"#]].assert_eq(&said(&cluster.set("old", OLD)));
    let remade = OLD.replace("created=1", "created=3");
    expect![[r#"
        old young
        t/old claims 172.30.0.1:80/TCP, which belongs to t/young; it is not served for t/old until t/young gives it up"#]].assert_eq(&said(&cluster.set("old", &remade)));
    assert_eq!(cluster.owner().as_deref(), Some("young"));
}

#[test]
fn only_what_is_contested_is_lost() {
    let mut cluster = Cluster::new();
    cluster.set("old", OLD);
    cluster.set("young", &format!("{YOUNG} port=more:81"));
    let plan = &cluster.planner.plan().services()[&name("t/young")];
    expect!["172.30.0.1:81/TCP -> reject\n"].assert_eq(&show(plan));
}

#[test]
fn warnings_are_told_when_they_arise() {
    let mut cluster = Cluster::new();
    let fields = "cluster=cluster.1 lb=lb.1 port=http:80 ranges=client-net4";
    let warned = |changes: &Changes| changes.warnings.len();
    assert_eq!(warned(&cluster.set("web", fields)), 1);
    assert_eq!(warned(&cluster.set("web", &format!("{fields} affinity=10"))), 0, "known");
    assert_eq!(warned(&cluster.set("web", &fields.replace("net4", "net"))), 0, "mended");
    assert_eq!(warned(&cluster.set("web", fields)), 1, "again");
}

#[test]
fn plans_before_a_change_are_told_also_of_several_changes() {
    let mut cluster = Cluster::new();
    let key = name("t/web");
    let ports = |cluster: &mut Cluster, more: &str| cluster.set("web", &format!("{OLD}{more}"));
    let mut since_nothing = ports(&mut cluster, "");
    assert!(since_nothing.before.is_empty(), "there was none");
    let first = Arc::clone(&cluster.planner.plan().services()[&key]);
    let mut since_first = ports(&mut cluster, " port=more:81");
    assert_eq!(since_first.before[&key], first);
    since_nothing.merge(since_first.clone());
    assert!(since_nothing.before.is_empty() && since_nothing.services == [key.clone()]);
    since_first.merge(cluster.delete("web"));
    assert_eq!((since_first.before.len(), &since_first.before[&key]), (1, &first));
}
