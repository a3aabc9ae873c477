//! What a person who types wrong things is told, and what integrators get.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::process::within;

fn kpng(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The command fails with one line on standard error that has all these words.
fn fails(arguments: &[&str], words: &[&str]) {
    let output = kpng(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    let last = errors.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
    for word in words {
        assert!(errors.contains(word), "{arguments:?}: {word:?} is not in\n{errors}");
    }
    assert!(last.len() < 400, "{last}");
}

#[test]
fn wrong_command_lines_say_what_to_do() {
    fails(&["kube", "to-local", "to-nft", "--no-such-flag"], &["--no-such-flag"]);
    fails(&["kube", "to-local", "to-nft", "--cluster-cidrs=10.0.0.0"], &["10.0.0.0", "CIDR"]);
    fails(&["kube", "to-local", "to-nft", "--masquerade-bit=32"], &["32", "0..32"]);
    fails(&["kube", "to-local", "to-nft", "--min-sync-period=fast"], &["fast", "500ms"]);
    fails(
        &["kube", "to-local", "to-nft", "--nodeport-addresses=here"],
        &["here", "primary", "all"],
    );
    fails(
        &["kube", "to-local", "to-nft", "--detect-local-mode=bridge-interface"],
        &["--pod-bridge-interface"],
    );
    fails(&["kube", "to-local", "to-nft", "--detect-local-mode=ClusterCIDR"], &["--cluster-cidrs"]);
    fails(&["kube", "--kubeconfig=/no/such/file", "to-local", "to-json"], &["/no/such/file"]);
    fails(&["kube", "to-local", "to-json"], &["--kubeconfig"]);
    fails(&["file", "--input=/no/such/file", "to-local", "to-json"], &["/no/such/file"]);
    fails(
        &["file", "--input=/no/such/file", "to-local", "to-exec", "/no/such/program"],
        &["/no/such"],
    );
    fails(&["kube", "--with-node-labels=[", "to-local", "to-json"], &["["]);
}

#[test]
fn an_error_is_told_once() {
    let output = kpng(&["kube", "--kubeconfig=/no/such/file", "to-local", "to-json"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.matches("No such file or directory").count(), 1, "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn help_version_and_completion() {
    let version = kpng(&["version"]);
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("kpng 0."));
    for shell in ["bash", "zsh", "fish"] {
        let script = kpng(&["completion", shell]);
        assert!(String::from_utf8(script.stdout).unwrap().contains("to-local"), "{shell}");
    }
    for (arguments, words) in [
        (&["--help"][..], &["kube", "file", "to-nft"][..]),
        (&["kube", "--help"], &["--kubeconfig", "to-local"]),
        (
            &["kube", "to-local", "to-nft", "--help"],
            &["--cluster-cidrs", "--dry-run", "--node-name"],
        ),
    ] {
        let help = String::from_utf8(kpng(arguments).stdout).unwrap();
        words.iter().for_each(|word| assert!(help.contains(word), "{arguments:?}: {word}\n{help}"));
    }
}

const EXAMPLE: &str =
    concat!("--input=", env!("CARGO_MANIFEST_DIR"), "/../../examples/cluster.yaml");

#[test]
fn dry_run_prints_what_nft_reads() {
    let arguments = ["file", EXAMPLE, "to-local", "to-nft", "--dry-run", "--node-name=node-a"];
    let output = kpng(&arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("table ip6 kpng"), "{text}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    let check = Command::new("nft").arg("-c").arg("-f").arg(file.path()).output().unwrap();
    assert!(check.status.success(), "{}\n{text}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn flags_may_stand_anywhere() {
    let after = kpng(&[
        "file",
        EXAMPLE,
        "to-local",
        "to-nft",
        "--dry-run",
        "--node-name=node-a",
        "--cluster-cidr=10.0.0.0/8",
    ]);
    let before = kpng(&[
        "file",
        "--cluster-cidrs=10.0.0.0/8",
        EXAMPLE,
        "--hostname-override=node-a",
        "to-local",
        "to-nft",
        "--dry-run",
    ]);
    assert!(after.status.success());
    assert_eq!(after.stdout, before.stdout);
}

#[test]
fn json_lines_come_for_each_changed_service() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let service = |name: &str, ip: &str| {
        format!("- service: {{namespace: ns, name: {name}, ips: {{clusterips: {{v4: [{ip}]}}}}}}\n")
    };
    let write = |services: &[String]| {
        let new = path.with_extension("new");
        let list =
            if services.is_empty() { " []".to_owned() } else { format!("\n{}", services.concat()) };
        std::fs::write(&new, format!("services:{list}\n")).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write(&[service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    let mut child = command
        .args(["file", "--input", path.to_str().unwrap(), "to-local", "to-json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["Service"]["Name"], "a");
    assert_eq!(next()["Service"]["IPs"]["ClusterIPs"]["V4"][0], "10.0.0.2");
    write(&[service("a", "10.0.0.1"), service("b", "10.0.0.3")]);
    let changed = next();
    assert_eq!(
        (&changed["Service"]["Name"], &changed["Service"]["IPs"]["ClusterIPs"]["V4"][0]),
        (&"b".into(), &"10.0.0.3".into())
    );
    write(&[service("a", "10.0.0.1")]);
    let deleted = next();
    assert_eq!((&deleted["Service"]["Name"], &deleted["Deleted"]), (&"b".into(), &true.into()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn exec_gives_a_new_program_the_whole_state() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("lines");
    // Ends after its first line, again and again.
    let script = format!("head -n 1 >> {}", out.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    let mut child = command
        .args(["file", EXAMPLE, "to-local", "to-exec", "--", "sh", "-c", &script])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let twice = within(Duration::from_secs(10), || {
        std::fs::read_to_string(&out).is_ok_and(|text| text.lines().count() >= 2)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let text = std::fs::read_to_string(&out).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    assert!(twice && lines[0] == lines[1], "{text}");
}
