//! The page on the metrics address, in a browser.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use kpng_api::address::ListenAddress;
use kpng_api::server::{Config, Server};
use kpng_core::model::{
    Endpoint, EndpointSlice, NamespacedName, Node, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use kpng_core::store::{Batch, Kind, Store};
use kpng_testkit::network::{Network, Outcome};

use crate::browser::Browser;
use crate::example::{ask, network, state, write};
use crate::file::FLAGS;
use crate::process::{Kpng, http, http_by_name, run};

const HOME: &str = "http://127.0.0.1:10249/";

fn start(network: &Network, input: &Path, more: &[&str]) -> Kpng {
    let input = format!("--input={}", input.display());
    let kpng = Kpng::start(&network.node, &[&["file", &input], FLAGS, more].concat());
    kpng.wait_ready(&network.node);
    kpng
}

fn no_complaints(browser: &Browser) {
    assert_eq!(browser.complaints(HOME), [""; 0]);
}

#[test]
fn the_page_shows_a_service_and_follows_it_without_being_loaded_again() {
    let Some(network) = network() else { return };
    let Some(browser) = Browser::start(&network.node) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    let _kpng = start(&network, &path, &["--admin-socket="]);

    browser.open(HOME);
    let list = browser.wait_text("#list", |text| text.contains("default/web"));
    for shown in ["NodePort", "172.30.0.1:80/TCP", "IPv4 node port 30080/TCP", "2 ready"] {
        assert!(list.contains(shown), "{shown} is not in {list}");
    }
    browser.wait_text("#state", |text| text.contains("1 service in force"));
    assert!(browser.text("#where").contains("node-a, nft"));

    browser.evaluate("window.sameDocument = true");
    browser.click("#list a");
    let service = browser.wait_text("#service", |text| text.contains("10.180.0.2:8080"));
    for shown in ["spec.clusterIPs", "to 2 endpoints", "this node", "may be chosen"] {
        assert!(service.contains(shown), "{shown} is not in {service}");
    }
    assert_eq!(browser.evaluate("location.hash"), "#/services/default/web");
    (0..3).for_each(|_| assert!(matches!(ask(network.pod(3)), Outcome::Answered { .. })));
    browser.wait_text("#service", |text| text.contains("traffic here: 3 new connections"));
    browser.evaluate("getSelection().selectAllChildren(document.querySelector('#service h2'))");

    let two = state(&["10.180.0.1", "10.180.0.3"]);
    write(&path, &two.replacen("ready: true", "ready: false", 1));
    let service = browser.wait_text("#service", |text| text.contains("10.180.0.3:8080"));
    assert!(!service.contains("10.180.0.2"), "{service}");
    assert!(service.contains("not ready (conditions.ready is false)"), "{service}");
    assert!(service.contains("to 1 endpoint"), "{service}");
    assert_eq!(browser.evaluate("getSelection().toString()"), "default/web", "it is left alone");

    browser.click("nav a[href='#/changes']");
    let changes = browser.wait_text("#changes", |text| text.contains("endpoints removed"));
    for shown in ["added: 10.180.0.3:8080", "removed: 10.180.0.1:8080, 10.180.0.2:8080"] {
        assert!(changes.contains(shown), "{shown} is not in {changes}");
    }
    browser.click("nav a[href='#/node']");
    let node = browser.wait_text("#node", |text| text.contains("10.0.0.0/8"));
    assert!(node.contains("complete, revision 2") && node.contains("192.168.0.2"), "{node}");
    assert_eq!(browser.evaluate("window.sameDocument"), true);

    // A link from elsewhere leads to the same.
    browser.open("about:blank");
    browser.open(&format!("{HOME}#/services/default/web"));
    browser.wait_text("#service", |text| text.contains("10.180.0.3:8080"));
    browser.open(&format!("{HOME}#/services/default/none"));
    browser.wait_text("#problem", |text| text == "there is no Service default/none");
    assert_eq!(browser.text("#service"), "");
    // The browser itself says so in its console, too.
    let complaints = browser.complaints(HOME);
    assert!(complaints.iter().all(|text| text.contains("status of 404")), "{complaints:?}");
}

#[test]
fn the_form_is_answered_as_kpng_explain_answers() {
    let Some(network) = network() else { return };
    let Some(browser) = Browser::start(&network.node) else { return };
    let folder = tempfile::tempdir().unwrap();
    let [path, socket] = ["state.yaml", "admin.sock"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    let socket = format!("--admin-socket={}", socket.display());
    let _kpng = start(&network, &path, &[&socket]);
    let explain = |question: &[&str]| {
        let program = env!("CARGO_BIN_EXE_kpng");
        run(&network.node, &[&[program, "explain", &socket], question].concat())
    };

    browser.open(&format!("{HOME}#/explain"));
    browser.wait_text("#explain h2", |text| !text.is_empty());
    browser.fill("#source", "10.180.0.3");
    browser.fill("#destination", "172.30.0.1");
    browser.fill("#port", "80");
    browser.key("Enter", 13, "\r");
    let expected = explain(&["10.180.0.3", "172.30.0.1:80"]);
    assert!(expected.contains("forwarded to one of 2") && expected.contains("service-ips"));
    let answer = browser.wait_text("#answer", |text| text.contains("forwarded to one of 2"));
    assert_eq!(answer.trim_end(), expected.trim_end());
    assert_eq!(browser.text("#command"), "kpng explain 10.180.0.3 172.30.0.1:80/TCP");
    assert_eq!(
        browser.evaluate("location.hash"),
        "#/explain?source=10.180.0.3&destination=172.30.0.1&port=80&protocol=TCP"
    );

    // Somebody else's address of the page, and an interface.
    let address = "#/explain?source=203.0.113.2&interface=eth0&destination=192.168.0.2&port=30080";
    browser.open(&format!("{HOME}{address}"));
    let expected = explain(&["203.0.113.2", "192.168.0.2:30080", "--interface=eth0"]);
    let answer = browser.wait_text("#answer", |text| text.starts_with("203.0.113.2 -> "));
    assert_eq!(answer.trim_end(), expected.trim_end());
    assert_eq!(browser.evaluate("document.querySelector('#interface').value"), "eth0");
    no_complaints(&browser);
    let markup = "try { document.body.innerHTML = '<p>'; 'written' } catch (error) { error.name }";
    assert_eq!(browser.evaluate(markup), "TypeError", "no text becomes markup");
    browser.fill("#source", "somewhere");
    browser.click("#question button");
    browser.wait_text("#problem", |text| text.contains("\"somewhere\" is no IP address"));
    assert_eq!(browser.text("#answer"), "");
}

#[test]
fn the_page_outlives_the_process_and_is_used_by_keys_alone() {
    let Some(network) = network() else { return };
    let Some(browser) = Browser::start(&network.node) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let mut kpng = start(&network, &path, &["--admin-socket="]);
    browser.open(HOME);
    browser.wait_text("#list", |text| text.contains("default/web"));
    browser.evaluate("window.sameDocument = true");
    // Links, then the field, then what is found.
    let focus =
        || browser.evaluate("document.activeElement.textContent").as_str().unwrap().to_owned();
    for name in ["Services", "Changes", "Explain", "Node", "", "default/web"] {
        browser.key("Tab", 9, "");
        assert_eq!(focus(), name);
    }
    browser.key("Enter", 13, "\r");
    browser.wait_text("#service h2", |text| text == "default/web");
    let unnamed = "[...document.querySelectorAll('input, select')]\
                   .filter((field) => field.labels.length !== 1).length";
    assert_eq!(browser.evaluate(unnamed), 0);

    assert!(kpng.terminate().success());
    browser.wait_text("#problem", |text| text.starts_with("kpng does not answer."));
    assert_eq!(browser.text("#state"), "● no answer");
    assert_eq!(browser.text("#service"), "", "it may not be so any more");
    write(&path, &state(&["10.180.0.2"]));
    let _kpng = start(&network, &path, &["--admin-socket="]);
    browser.wait_text("#service", |text| text.contains("10.180.0.2:8080"));
    assert_eq!(browser.text("#problem"), "");
    assert_eq!(browser.evaluate("window.sameDocument"), true);
}

/// So many services, with two endpoints each, in 100 namespaces.
fn large(services: usize) -> Store {
    let (mut writer, store) = Store::new();
    let mut batch = Batch::new();
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        target_port: TargetPort::Unset,
    };
    let node: Arc<str> = "node-a".into();
    for index in 0..services {
        let number = u32::try_from(index).unwrap();
        let address = |base: [u8; 4]| {
            IpAddr::from(Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + number))
        };
        let key = NamespacedName::new(format!("ns-{:02}", index % 100), format!("svc-{index:05}"));
        let service = Service {
            cluster_ips: vec![address([172, 30, 0, 0])],
            ports: vec![port.clone()],
            ..Service::default()
        };
        let endpoint =
            |base| Endpoint { node: Some(Arc::clone(&node)), ..Endpoint::at(address(base)) };
        let slice = EndpointSlice {
            endpoints: vec![endpoint([10, 1, 0, 0]), endpoint([10, 2, 0, 0])],
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        };
        batch.set_slice(key.clone(), Arc::clone(&key.name), slice);
        batch.set_service(key, service);
    }
    let internal_ips = vec![[192, 168, 0, 2].into()];
    batch.set_node(node, Node { internal_ips, ..Node::default() });
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    // Nothing changes any more, but the server goes on.
    std::mem::forget(writer);
    store
}

/// Serves a store to kpng from now on, as long as this process lives.
fn serve(store: Store, listen: ListenAddress) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config {
                listen: vec![listen],
                tls: None,
                local_api: false,
                global_api: true,
                authorization: None,
                default_node: None,
                max_connections: 1,
            };
            let server = Server::bind(config, Arc::default()).await.unwrap();
            server.run(store, std::future::pending()).await;
        });
    });
}

#[test]
fn a_page_of_44000_services_is_as_quick_as_one_of_few() {
    let Some(network) = network() else { return };
    let Some(browser) = Browser::start(&network.node) else { return };
    let folder = tempfile::tempdir().unwrap();
    let api = format!("unix://{}", folder.path().join("api.sock").display());
    serve(large(44_000), api.parse().unwrap());
    let arguments = [
        "api",
        "--api",
        &api,
        "to-local",
        "to-healthchecks",
        "--node-name=node-a",
        "--admin-socket=",
    ];
    let kpng = Kpng::start(&network.node, &arguments);
    kpng.wait_ready(&network.node);

    browser.open(HOME);
    browser.wait_text("#found", |text| text == "44,000 services");
    let rows = "document.querySelectorAll('#list tbody tr').length";
    assert_eq!(browser.evaluate(rows), 50, "the browser holds a page");
    browser.wait_text("#list .pager", |text| text.contains("page 1 of 880"));
    browser.click("#list a[rel=next]");
    browser.wait_text("#list .pager", |text| text.contains("page 2 of 880"));
    assert_eq!(browser.text("#list tbody td"), "ns-00/svc-05000");
    assert_eq!(browser.evaluate("location.hash"), "#/services?page=2");

    for (typed, found, first) in [
        ("svc-43999", "1 of 44,000 services", "ns-99/svc-43999"),
        ("172.30.0.77", "1 of 44,000 services", "ns-77/svc-00077"),
        ("10.2.4.1", "1 of 44,000 services", "ns-25/svc-01025"),
        ("172.30.1.2:80/TCP", "1 of 44,000 services", "ns-58/svc-00258"),
        ("ns-07 80", "440 of 44,000 services", "ns-07/svc-00007"),
        ("nothing", "0 of 44,000 services", ""),
        ("", "44,000 services", "ns-00/svc-00000"),
    ] {
        browser.fill("#query", typed);
        browser.wait_text("#found", |text| text == found);
        browser.wait_text("#list tbody td", |text| text == first);
        let focus = "document.activeElement.id + ' ' + document.activeElement.value";
        assert_eq!(browser.evaluate(focus), format!("query {typed}"), "typing goes on");
    }
    no_complaints(&browser);
    // What a page costs does not depend on what there is.
    let list = http(&network.node, 10249, "/api/services?page=500").unwrap();
    assert!(list.len() < 30_000, "{}", list.len());
}

#[test]
fn the_page_is_for_who_asks_by_a_name_that_is_ours_and_can_be_switched_off() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    write(&path, &state(&["10.180.0.1"]));
    let kpng = start(&network, &path, &["--admin-socket="]);
    let get = |name: &str, path: &str| http_by_name(&network.node, 10249, name, path).unwrap();
    for host in ["127.0.0.1:10249", "[::1]:10249", "localhost", "node-a:10249", "10.0.0.1"] {
        assert!(get(host, "/").contains("<!doctype html>"), "{host}");
        assert!(get(host, "/api/status").contains("\"node\":\"node-a\""), "{host}");
    }
    for host in ["evil.example:10249", "node-a.evil.example", "127.0.0.1.evil.example"] {
        for path in ["/", "/page.js", "/api/status"] {
            let refused = get(host, path);
            assert!(refused.starts_with("HTTP/1.1 403 ") && !refused.contains("script>"), "{host}");
        }
        assert!(get(host, "/metrics").contains("kubeproxy_"), "who scrapes is not asked");
    }
    drop(kpng);
    let _kpng = start(&network, &path, &["--admin-socket=", "--web=false"]);
    for path in ["/", "/page.js", "/api/status"] {
        assert!(get("localhost", path).starts_with("HTTP/1.1 404 "), "{path}");
    }
    assert!(get("localhost", "/metrics").contains("kubeproxy_"));
}
