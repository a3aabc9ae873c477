//! Where the configuration comes from when no kubeconfig is named: the environment of a process, so
//! each case is a process.

use std::process::Command;

use expect_test::{Expect, expect};
use kpng_core::store::Store;
use kpng_kube::{Config, NodeScope, Selection, Watcher};

const ACT: &str = "KPNG_TEST_ACT";
const SERVER: &str = "KPNG_TEST_SERVER";

/// In the process of a case: starts a watcher that is told to stop at once, and prints its result.
#[test]
fn act() {
    if std::env::var_os(ACT).is_none() {
        return;
    }
    let config = Config {
        kubeconfig: None,
        server: std::env::var(SERVER).ok(),
        service_proxy_name: None,
        selection: Selection::default(),
        nodes: NodeScope::All,
    };
    let (writer, _store) = Store::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let watcher = Watcher::new(config, writer).unwrap();
    match runtime.block_on(watcher.run(async {})) {
        Ok(()) => println!("result: a client"),
        Err(error) => println!("result: {error}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "the environment belongs to a process")]
fn check(environment: &[(&str, &str)], expected: Expect) {
    let program = std::env::current_exe().expect("a running test has a file");
    let output = Command::new(program)
        .args(["act", "--exact", "--nocapture"])
        .env_clear()
        .env(ACT, "1")
        .envs(environment.iter().copied())
        .output()
        .expect("the test can run itself");
    let printed = String::from_utf8_lossy(&output.stdout);
    let result = printed.lines().find_map(|line| line.strip_prefix("result: "));
    expected.assert_eq(result.unwrap_or(&printed));
}

#[test]
fn kubeconfig_then_the_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    let text = "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                contexts: [{name: x, context: {cluster: c, user: u}}]\n\
                users: [{name: u, user: {token: t}}]\ncurrent-context: x\n";
    std::fs::write(&good, text).unwrap();
    let good = good.to_str().unwrap();
    let pod = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let port = ("KUBERNETES_SERVICE_PORT", "443");

    check(
        &[],
        expect![
            "no API server to talk to: give --kubeconfig FILE, set KUBECONFIG, or run in a pod with a mounted service account (failed to read an incluster environment variable: environment variable not found)"
        ],
    );
    check(&[("KUBECONFIG", good)], expect!["a client"]);
    check(&[("KUBECONFIG", good), pod, port], expect!["a client"]);
    check(
        &[("KUBECONFIG", "/no/such/file")],
        expect![[
            r#"cannot use the kubeconfig named by the environment variable KUBECONFIG: failed to read kubeconfig from '"/no/such/file"': No such file or directory (os error 2)"#
        ]],
    );
    check(
        &[pod, port],
        expect![
            "no API server to talk to: give --kubeconfig FILE, set KUBECONFIG, or run in a pod with a mounted service account (failed to read the default namespace: No such file or directory (os error 2))"
        ],
    );
    check(&[(SERVER, "http://127.0.0.1:8001")], expect!["a client"]);
    check(
        &[(SERVER, "nowhere")],
        expect![[r#"the server "nowhere" is no URL like https://HOST:PORT"#]],
    );
}
