//! Nodes that follow a server, through its death, and through others that follow it.

use serde_json::Value;

use crate::process::{Folder, Kpng, QUIET, example, free_port, http, output, within};

fn follow(api: &str, flags: &[&str]) -> Kpng {
    Kpng::start(&[&["local", "--api", api, "to-json", "--node-name=node-a"], flags].concat())
}

/// The name of the Service in a line of `to-json`, its address, and whether it is gone.
fn told(line: &Value) -> (String, Option<String>, bool) {
    let service = &line["Service"];
    (
        service["Name"].as_str().unwrap().to_owned(),
        service["IPs"]["ClusterIPs"]["V4"][0].as_str().map(str::to_owned),
        line["Deleted"] == true,
    )
}

fn there(name: &str, ip: &str) -> (String, Option<String>, bool) {
    (name.to_owned(), Some(ip.to_owned()), false)
}

fn gone(name: &str) -> (String, Option<String>, bool) {
    (name.to_owned(), None, true)
}

#[test]
fn a_node_outlives_its_server_and_hears_only_what_changed() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    let api = folder.socket("api.sock");
    let server = Kpng::serve(&state, &api);
    let node = follow(&api, &[]);
    assert_eq!(told(&node.json()), there("a", "10.0.0.1"));
    assert_eq!(told(&node.json()), there("b", "10.0.0.2"));
    folder.write_state(&[("a", "10.0.0.1"), ("b", "10.0.0.3")]);
    assert_eq!(told(&node.json()), there("b", "10.0.0.3"));

    server.kill();
    node.wait_for_log("stays in force");
    let server = Kpng::serve(&state, &api);
    node.no_line();
    folder.write_state(&[("a", "10.0.0.4"), ("b", "10.0.0.3")]);
    assert_eq!(told(&node.json()), there("a", "10.0.0.4"));

    server.kill();
    folder.write_state(&[]);
    let _server = Kpng::serve(&state, &api);
    assert_eq!(told(&node.json()), gone("a"), "the state was emptied while there was no server");
    assert_eq!(told(&node.json()), gone("b"));
    node.no_line();
    node.terminate();
}

#[test]
fn a_node_goes_on_with_another_server() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1")]);
    let servers = ["one.sock", "two.sock"].map(|name| Kpng::serve(&state, &folder.socket(name)));
    let both = format!("{},{}", folder.socket("one.sock"), folder.socket("two.sock"));
    let node = follow(&both, &[]);
    assert_eq!(told(&node.json()), there("a", "10.0.0.1"));
    node.wait_for_log("following");
    let [one, two] = servers;
    let _left = if node.log().contains("one.sock") {
        one.kill();
        two
    } else {
        two.kill();
        one
    };
    folder.write_state(&[("a", "10.0.0.2")]);
    assert_eq!(told(&node.json()), there("a", "10.0.0.2"));
}

#[test]
fn relays_say_what_they_were_told() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1")]);
    let mut servers = vec![Kpng::serve(&state, "tcp://127.0.0.1:0")];
    let mut api = servers[0].address();
    for _ in 0..2 {
        let listen = "--listen=tcp://127.0.0.1:0";
        let relay = Kpng::start(&[&["api", "--api", &api, "to-api", listen][..], &QUIET].concat());
        api = relay.address();
        servers.push(relay);
    }
    let node = follow(&api, &[]);
    assert_eq!(told(&node.json()), there("a", "10.0.0.1"));
    folder.write_state(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    assert_eq!(told(&node.json()), there("b", "10.0.0.2"));
    folder.write_state(&[("b", "10.0.0.2")]);
    assert_eq!(told(&node.json()), gone("a"));
    node.no_line();
}

#[test]
fn rules_are_those_of_a_node_that_watches_itself() {
    let folder = Folder::new();
    for (number, file) in ["cluster.yaml", "state.yaml"].into_iter().enumerate() {
        let [api, second] = ["api", "second"].map(|name| folder.socket(&format!("{name}{number}")));
        let _server = Kpng::serve(&example(file), &api);
        let relay = ["api", "--api", &api, "to-api", "--listen", &second];
        let _relay = Kpng::start(&[&relay[..], &QUIET].concat());
        let input = format!("--input={}", example(file).display());
        for node in ["node-a", "node-b"] {
            let flags = ["to-nft", "--dry-run", "--cluster-cidrs=10.0.0.0/8", "--node-name", node];
            let rules = |source: &[&str]| output(&[source, &flags].concat());
            let expected = rules(&["file", &input, "to-local"]);
            assert!(expected.contains("172.30.0.10"), "{expected}");
            assert_eq!(rules(&["local", "--api", &api]), expected, "{file} on {node}");
            assert_eq!(rules(&["api", "--api", &api, "to-local"]), expected, "{file} on {node}");
            assert_eq!(rules(&["local", "--api", &second]), expected, "{file} on {node}");
        }
    }
}

#[test]
fn a_local_backend_serves_others_beside_it() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1")]);
    let input = format!("--input={}", state.display());
    let [first, second] = ["first.sock", "second.sock"].map(|name| folder.socket(name));
    let of_file = Kpng::start(&[
        "file",
        &input,
        "--node-name=node-a",
        "to-local",
        "to-json",
        "--also-listen",
        &first,
    ]);
    of_file.wait_for_log("listening address=");
    let of_server = follow(&first, &["--also-listen", &second]);
    of_server.wait_for_log("listening address=");
    // Who names no node means the one that is served.
    let last = Kpng::start(&["local", "--api", &second, "to-json", "--node-name="]);
    let all = [&of_file, &of_server, &last];
    for process in all {
        assert_eq!(told(&process.json()), there("a", "10.0.0.1"));
    }
    folder.write_state(&[("a", "10.0.0.2")]);
    for process in all {
        assert_eq!(told(&process.json()), there("a", "10.0.0.2"));
    }

    let nodes = output(&["watch", "local", "--api", &first, "--once", "--json", "--node-name="]);
    assert!(nodes.contains("10.0.0.2"), "{nodes}");
    of_file.terminate();
    assert!(!folder.path("first.sock").exists(), "the socket goes with the process");
    of_server.wait_for_log("stays in force");
}

#[test]
fn a_server_is_ready_when_its_state_is_complete_and_counts_what_it_does() {
    let folder = Folder::new();
    let api = folder.socket("api.sock");
    let [upstream, health, metrics] =
        ["upstream.sock".to_owned(), free_port().to_string(), free_port().to_string()];
    let upstream = folder.socket(&upstream);
    let _relay = Kpng::start(&[
        "api",
        "--api",
        &upstream,
        "to-api",
        "--listen",
        &api,
        &format!("--healthz-bind-address=127.0.0.1:{health}"),
        &format!("--metrics-bind-address=127.0.0.1:{metrics}"),
    ]);
    let ready = || http(health.parse().unwrap(), "/readyz").unwrap_or_default();
    assert!(within(|| ready().contains(" 503 ")), "{}", ready());
    let _upstream = Kpng::serve(&folder.write_state(&[("a", "10.0.0.1")]), &upstream);
    assert!(within(|| ready().contains(" 200 ")), "{}", ready());

    let node = follow(&api, &[]);
    node.line();
    let metrics = http(metrics.parse().unwrap(), "/metrics").unwrap_or_default();
    for sample in [
        "kpng_store_services 1",
        "kpng_api_client_connected 1",
        "kpng_api_client_syncs_total 1",
        "kpng_api_connections 1",
        "kpng_api_streams{api=\"local\"} 1",
        "kpng_api_answers_total 1",
        "kpng_api_operations_total 1",
    ] {
        assert!(metrics.contains(&format!("{sample}\n")), "{sample} is not in\n{metrics}");
    }
}
