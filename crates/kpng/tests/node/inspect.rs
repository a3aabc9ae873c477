//! `kpng explain`, `dump`, `diff` and `check`: of a running process, and of its dump.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use kpng_testkit::network::{Host, Network};
use rustix::process::Signal;

use crate::example::{answered_by, network, state, write};
use crate::file::FLAGS;
use crate::process::{Kpng, eventually, run};

/// Runs the binary to its end in the host's namespace.
fn kpng(host: &Host, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    command.args(arguments);
    host.run(move || command.output().unwrap())
}

fn text(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text + &String::from_utf8_lossy(&output.stderr)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn start(network: &Network, input: &Path, socket: &Path) -> Kpng {
    let input = format!("--input={}", input.display());
    let socket = format!("--admin-socket={}", socket.display());
    Kpng::start(&network.node, &[&["file", &input, &socket], FLAGS].concat())
}

#[test]
fn a_running_kpng_and_its_dump_explain_alike() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [path, socket, dump] =
        ["state.yaml", "run/admin.sock", "dump.yaml"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    let running = start(&network, &path, &socket);
    running.wait_ready(&network.node);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only the owner may ask");

    let socket = format!("--admin-socket={}", socket.display());
    let node = &network.node;
    let state = kpng(node, &["dump", "state", &socket]);
    assert_eq!(code(&state), 0, "{}", text(&state));
    write(&dump, &text(&state));
    let dump = format!("--file={}", dump.display());
    for question in [
        ["10.180.0.1", "172.30.0.1:80"],
        ["10.180.0.3", "172.30.0.1:443/udp"],
        ["node", "192.168.0.2:30080"],
        ["203.0.113.2", "192.168.0.2:30080"],
        ["203.0.113.2", "192.168.1.2:30080"],
        ["192.168.1.2", "172.30.0.1:80"],
        ["203.0.113.2", "198.51.100.1:80"],
    ] {
        let by_process = text(&kpng(node, &[&["explain", &socket], &question[..]].concat()));
        let by_dump = text(&kpng(node, &[&["explain", &dump], &question[..]].concat()));
        let (plan, kernel) = by_process.split_once("kernel\n").unwrap_or((&by_process, ""));
        assert_eq!(plan, by_dump, "{question:?}");
        assert!(by_dump.contains(" on node-a: "), "{by_dump}");
        let served = by_dump.contains("forwarded to");
        assert_eq!(served, kernel.contains("service-"), "{by_process}");
        assert!(!kernel.contains("missing") && !kernel.contains("differs"), "{by_process}");
    }
    let explained = kpng(node, &["explain", &socket, "10.180.0.3", "172.30.0.1:80", "-ojson"]);
    let explained: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(explained["outcome"]["targets"][1], "10.180.0.2:8080");
    assert_eq!(explained["frontend"]["service"], "default/web");
    assert!(explained["kernel"][0].as_str().unwrap().starts_with("ip kpng service-ips"));

    for what in ["services", "plan", "ruleset", "state"] {
        let [by_process, by_dump] =
            [&socket, &dump].map(|of| text(&kpng(node, &["dump", what, of])));
        assert_eq!(by_process, by_dump, "{what}");
        assert!(by_process.contains("172.30.0.1"), "{what}: {by_process}");
    }
    // A dump is a state for `kpng file` too.
    drop(running);
    let input = Path::new(dump.trim_start_matches("--file="));
    let from_dump = start(&network, input, &folder.path().join("other.sock"));
    from_dump.wait_ready(node);
    assert!((0..20).any(|_| answered_by(network.pod(3), "pod2")));
}

#[test]
fn a_check_tells_what_is_missing() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [path, socket, dump] =
        ["state.yaml", "admin.sock", "dump.yaml"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1"]));
    let mut running = start(&network, &path, &socket);
    running.wait_ready(&network.node);
    let node = &network.node;
    let socket = format!("--admin-socket={}", socket.display());
    let equal = kpng(node, &["check", &socket]);
    assert!(code(&equal) == 0 && text(&equal).starts_with("equal"), "{}", text(&equal));
    let delete = ["nft", "delete", "element", "ip", "kpng", "cluster-ips", "{ 172.30.0.1 }"];
    // The process repairs it within a second, so now and then a check comes too late.
    eventually("a check of the running process sees it", || {
        run(node, &delete);
        let check = kpng(node, &["check", &socket, "--output=json"]);
        let seen = code(&check) == 1;
        assert_eq!(seen, text(&check).contains("cluster-ips { 172.30.0.1 }"), "{}", text(&check));
        eventually("it is repaired", || code(&kpng(node, &["check", &socket])) == 0);
        seen
    });
    // A change that is on its way is no difference.
    write(&path, &state(&["10.180.0.1", "10.180.0.2"]));
    eventually("the change has arrived", || {
        assert_eq!(code(&kpng(node, &["check", &socket])), 0);
        text(&kpng(node, &["dump", "plan", &socket])).contains("10.180.0.2")
    });
    assert_eq!(code(&kpng(node, &["check", &socket])), 0);

    write(&dump, &text(&kpng(node, &["dump", "state", &socket])));
    assert!(running.terminate().success());
    let file = format!("--file={}", dump.display());
    let check = |more: &[&str]| kpng(node, &[&["check", &file], more].concat());
    assert_eq!(code(&check(&[])), 0, "{}", text(&check(&[])));
    run(node, &delete);
    let differs = check(&[]);
    assert_eq!(code(&differs), 1, "{}", text(&differs));
    assert!(text(&differs).contains("missing: 1\n  ip kpng cluster-ips { 172.30.0.1 }"));
    assert_eq!(code(&check(&["--backend=iptables"])), 1);
    assert_eq!(code(&check(&["--backend=healthchecks"])), 2);
    let wrong = check(&["--backend=x"]);
    assert!(code(&wrong) == 2 && text(&wrong).contains("healthchecks"), "{}", text(&wrong));
    let nobody = kpng(node, &["check", &socket]);
    let words = ["--admin-socket", "--file"];
    assert_eq!(code(&nobody), 2);
    words.iter().for_each(|word| assert!(text(&nobody).contains(word), "{}", text(&nobody)));
}

#[test]
fn a_check_of_the_userspace_backend_knows_the_running_proxy() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [path, socket, dump] =
        ["state.yaml", "admin.sock", "dump.yaml"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1"]));
    let node = &network.node;
    let input = format!("--input={}", path.display());
    let socket = format!("--admin-socket={}", socket.display());
    let state_dir = format!("--state-dir={}", folder.path().display());
    let flags = ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32"];
    let command = ["file", &input, &socket, "to-local", "to-userspacelin", &state_dir];
    let mut running = Kpng::start(node, &[&command[..], &flags].concat());
    running.wait_ready(node);
    let equal = kpng(node, &["check", &socket]);
    assert!(code(&equal) == 0 && text(&equal).starts_with("equal"), "{}", text(&equal));
    let explained = text(&kpng(node, &["explain", &socket, "10.180.0.3", "172.30.0.1:80"]));
    let (_, kernel) = explained.split_once("kernel\n").unwrap();
    let element = "table ip kpng-userspace element services { 172.30.0.1 . tcp . 80 . 1 }";
    assert!(kernel.contains(element) && !kernel.contains("missing"), "{kernel}");
    let port = kernel.split_once("the proxy, at TCP port ").unwrap().1.trim();
    assert!(run(node, &["ss", "-tln"]).contains(&format!("0.0.0.0:{port} ")), "{kernel}");

    let delete = ["nft", "delete", "element", "ip", "kpng-userspace", "services"];
    let delete = [&delete[..], &["{ 172.30.0.1 . tcp . 80 . 1 }"]].concat();
    eventually("a check sees it before the process repairs it", || {
        run(node, &delete);
        let check = kpng(node, &["check", &socket]);
        let seen = code(&check) == 1;
        assert_eq!(seen, text(&check).contains(&format!("missing: 1\n  {element}")));
        eventually("it is repaired", || code(&kpng(node, &["check", &socket])) == 0);
        seen
    });

    // Another process sees the same, and that nobody serves once the proxy has ended.
    write(&dump, &text(&kpng(node, &["dump", "state", &socket])));
    let file = format!("--file={}", dump.display());
    let check = || kpng(node, &["check", &file, "--backend=userspacelin"]);
    assert_eq!(code(&check()), 0, "{}", text(&check()));
    assert!(answered_by(network.pod(3), "pod1"), "a question is no reason to give way");
    assert_eq!(code(&kpng(node, &["check", &socket])), 0);
    assert!(running.terminate().success());
    let differs = text(&check());
    assert_eq!(code(&check()), 1, "{differs}");
    assert!(differs.contains("missing: 1\n  the proxy: no process serves this node"), "{differs}");
    assert!(differs.contains("chain from-pods"), "{differs}");
}

#[test]
fn a_socket_is_of_one_process_and_stale_ones_are_replaced() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [path, socket] = ["state.yaml", "admin.sock"].map(|name| folder.path().join(name));
    write(&path, &state(&["10.180.0.1"]));
    let mut first = start(&network, &path, &socket);
    first.wait_ready(&network.node);
    let mut second = start(&network, &path, &socket);
    assert!(!second.wait().success());
    let log = second.log();
    assert!(log.contains("admin.sock") && log.contains("is listening there"), "{log}");

    first.signal(Signal::KILL);
    first.wait();
    assert!(socket.exists(), "a killed process leaves its socket");
    let mut third = start(&network, &path, &socket);
    third.wait_ready(&network.node);
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let close = "Host: kpng\r\nConnection: close\r\n\r\n";
        write!(stream, "{request} HTTP/1.1\r\n{close}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET /check").starts_with("HTTP/1.1 200"));
    assert!(ask("GET /dump/plan").contains("172.30.0.1:80/TCP -> pod: pool 0"));
    assert!(ask("POST /check").starts_with("HTTP/1.1 405"));
    assert!(ask("GET /dump/secrets").starts_with("HTTP/1.1 404"));
    let bad = ask("GET /explain?source=1.2.3");
    assert!(bad.starts_with("HTTP/1.1 400") && bad.contains("destination"), "{bad}");
    assert!(third.terminate().success());
    assert!(!socket.exists(), "it goes with its process");
}

#[test]
fn a_diff_tells_what_changes() {
    let Some(network) = network() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a.yaml", "b.yaml"].map(|name| folder.path().join(name));
    write(&a, &state(&["10.180.0.1", "10.180.0.2"]));
    let text_b = state(&["10.180.0.1", "10.180.0.3"]);
    write(&b, &text_b.replace("nodePort: 30080", "nodePort: 30081").replacen("true", "false", 1));
    let diff = |arguments: &[&str]| kpng(&network.node, &[&["diff"], arguments].concat());
    let [a, b] = [&a, &b].map(|path| path.to_str().unwrap());
    assert_eq!((code(&diff(&[a, a])), text(&diff(&[a, a]))), (0, String::new()));
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let [one, other] = ["cluster.yaml", "state.yaml"].map(|name| format!("{examples}/{name}"));
    assert_eq!(text(&diff(&[&one, &other, "--node-name=node-a"])), "", "they say the same");
    let differs = diff(&[a, b]);
    assert_eq!(code(&differs), 1);
    expect_test::expect![[r#"
        frontends
        - IPv4 node port 30080/TCP: default/web port http, spec.ports[].nodePort, externalTrafficPolicy Cluster, cluster list masqueraded
        + IPv4 node port 30081/TCP: default/web port http, spec.ports[].nodePort, externalTrafficPolicy Cluster, cluster list masqueraded
        endpoints
        ~ default/web:80/TCP 10.180.0.1:8080
            was may be chosen, node-a
            is  not ready (conditions.ready is false), node-a
        - default/web:80/TCP 10.180.0.2:8080: may be chosen, node-a
        + default/web:80/TCP 10.180.0.3:8080: may be chosen, node-a
    "#]].assert_eq(&text(&differs));
    let json: serde_json::Value = serde_json::from_slice(&diff(&[a, b, "-ojson"]).stdout).unwrap();
    assert_eq!(json["frontends"][0]["after"], serde_json::Value::Null);
    // With the eyes of a node that the file has, policy Local and hints count.
    let local = |text: &str| text.replace("spec:\n", "spec:\n  externalTrafficPolicy: Local\n");
    write(Path::new(a), &local(&state(&["10.180.0.1"])));
    write(Path::new(b), &local(&state(&["10.180.0.1"])).replace("nodeName: node-a", "nodeName: x"));
    let from_node = text(&diff(&[a, b, "--node-name=node-a"]));
    assert!(from_node.contains("~ IPv4 node port 30080/TCP"), "{from_node}");
    let from_nowhere = text(&diff(&[a, b]));
    assert!(!from_nowhere.contains("node port") && from_nowhere.contains("is  may be chosen, x"));
    let unknown = diff(&[a, b, "--node-name=y"]);
    assert!(code(&unknown) == 2 && text(&unknown).contains("it has node-a"), "{}", text(&unknown));
    let wrong = diff(&[a, "/no/such/file"]);
    assert!(code(&wrong) == 2 && text(&wrong).contains("/no/such/file"), "{}", text(&wrong));
}
