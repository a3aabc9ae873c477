//! The example clients in Go and Python, run against our server, and those who read along in Rust.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "clients/programs.rs"]
mod programs;
#[path = "clients/watching.rs"]
mod watching;

use std::fs;
use std::path::Path;

use expect_test::expect;

use cluster::Cluster;
use programs::Program;
use watching::{Rust, Watching};

const NODE: &str = "node-a";

/// What the cluster is, one after the other.
const STATES: [&str; 4] = [
    "service default/web cluster=cluster.1 port=http:80
     slice default/web http=8080
       pod1
       remote1 v6
     service default/headless port=http:80
     slice default/headless http=80
       ext7 v4",
    // Pods and others behind another port, and another Service.
    "service default/web cluster=cluster.1 port=http:80
     slice default/web http=9090
       pod1
       remote1 v6
     service default/headless port=http:80
     slice default/headless http=81
       ext7 v4
     service other/new cluster4=cluster.2 port=dns:53/UDP",
    "service default/web cluster=cluster.1 port=http:80
     slice default/web http=9090
       pod1 notready
       remote1 v6",
    "",
];

/// The client prints what a client in Rust is told, however it asks.
async fn check(program: &Program) {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", folder.path().join("kpng.sock").display());
    let listen = ["tcp://127.0.0.1:0", &socket];
    let mut cluster = Cluster::serve(&listen, STATES[0]).await;
    for target in [&cluster.host_and_port(), &socket] {
        let printed = program.run(&["-api", target, "-node", NODE, "-once"]).await;
        assert_eq!(printed, Rust::watch(target, NODE, false).await.answer().await, "{target}");
    }

    let mut transcripts = Vec::new();
    for push in [false, true] {
        cluster.becomes(STATES[0]);
        let target = cluster.host_and_port();
        let arguments = ["-api", &target, "-node", NODE, "-push"];
        let arguments = if push { &arguments[..] } else { &arguments[..4] };
        let mut watching = Watching::start(program, arguments);
        let mut rust = Rust::watch(&target, NODE, push).await;
        let mut transcript = String::new();
        for state in STATES {
            cluster.becomes(state);
            let printed = watching.answer().await;
            assert_eq!(printed, rust.answer().await, "push: {push}");
            transcript += &printed;
        }
        transcripts.push(transcript);
    }
    assert_eq!(transcripts[0], transcripts[1]);
    expect![[r#"
        reset
        + ServicesSet default/headless []
        + ServicesSet default/web [172.30.0.1 fd00:172:30::1]
        + EndpointsSet default/web/pod1 [10.180.0.1 fd00:180::1]
        + EndpointsSet default/web/remote1 [fd00:180:1::1]
        + EndpointsSet default/headless/# [198.18.0.7]
        sync
        + ServicesSet other/new [172.30.0.2]
        - EndpointsSet default/headless/#
        + EndpointsSet default/web/pod1 [10.180.0.1 fd00:180::1]
        + EndpointsSet default/web/remote1 [fd00:180:1::1]
        + EndpointsSet default/headless/# [198.18.0.7]
        sync
        - EndpointsSet default/headless/#
        - EndpointsSet default/web/pod1
        - ServicesSet other/new
        - ServicesSet default/headless
        sync
        - EndpointsSet default/web/remote1
        - ServicesSet default/web
        sync
    "#]]
    .assert_eq(&watching::without_hashes(&transcripts[0]));

    // When the server ends, so do they, in order.
    let target = cluster.host_and_port();
    let mut watching = Watching::start(program, &["-api", &target, "-node", NODE]);
    watching.answer().await;
    drop(cluster);
    watching.ends().await;
}

#[tokio::test]
async fn the_go_client_prints_what_happens() {
    if let Some(program) = programs::go_client() {
        check(&program).await;
    }
}

#[tokio::test]
async fn the_python_client_prints_what_happens() {
    if let Some(program) = programs::python_client() {
        check(&program).await;
    }
}

#[tokio::test]
async fn the_rust_client_prints_what_happens() {
    let program = programs::rust_client();
    let mut cluster = Cluster::serve(&["tcp://127.0.0.1:0"], STATES[0]).await;
    let mut watching = Watching::start(&program, &[&cluster.host_and_port(), NODE]);
    let mut transcript = watching.lines(2).await;
    for (state, lines) in STATES.into_iter().zip([0, 3, 3, 1]) {
        cluster.becomes(state);
        transcript += &watching.lines(lines).await;
    }
    expect![[r#"
        default/headless [198.18.0.7]
        default/web [10.180.0.1, fd00:180::1, fd00:180:1::1]
        default/headless [198.18.0.7]
        default/web [10.180.0.1, fd00:180::1, fd00:180:1::1]
        other/new []
        default/headless is gone
        default/web [fd00:180:1::1]
        other/new is gone
        default/web is gone
    "#]]
    .assert_eq(&transcript);
}

#[test]
fn the_generated_code_is_that_of_the_proto_files() {
    let Some(fresh) = programs::generate_go() else { return };
    let committed = programs::example("go-client");
    for package in ["localv1", "globalv1"] {
        let files = |folder: &Path| {
            let entries = fs::read_dir(folder.join(package)).unwrap();
            let mut files: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            files.sort();
            files
        };
        assert_eq!(files(&committed), files(fresh.path()), "run examples/go-client/generate.sh");
        for file in files(&committed) {
            let read =
                |folder: &Path| fs::read_to_string(folder.join(package).join(&file)).unwrap();
            assert!(
                read(&committed) == read(fresh.path()),
                "{package}/{} is outdated; run examples/go-client/generate.sh",
                file.display()
            );
        }
    }
}
