//! Tests against the running kernel, each in network namespaces of its own.
//!
//! They need CAP_NET_ADMIN and CAP_SYS_ADMIN, as root or in a user namespace. Without them they
//! fail, unless `KPNG_SKIP_NET=1` asks to skip them.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

use kpng_linux::namespace::NetNs;

#[path = "kernel/conntrack.rs"]
mod conntrack;
#[path = "kernel/insertion.rs"]
mod insertion;
#[path = "kernel/namespace.rs"]
mod namespace;
#[path = "kernel/rtnetlink.rs"]
mod rtnetlink;
#[path = "kernel/sysctl.rs"]
mod sysctl;

/// Runs `test` in a new network namespace.
fn in_namespace(test: impl FnOnce() + Send) {
    if let Some(namespace) = namespace() {
        namespace.run(test).unwrap();
    }
}

/// A new network namespace, or `None` when the test is to be skipped.
fn namespace() -> Option<NetNs> {
    match NetNs::new() {
        Ok(namespace) => Some(namespace),
        Err(error) if std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}, or set KPNG_SKIP_NET=1 to skip this test"),
    }
}

/// Runs a command in the calling thread's namespace and returns what it prints.
fn output(command: &[&str]) -> String {
    #[expect(clippy::disallowed_methods, reason = "the kernel's own tools are the oracle")]
    let output = std::process::Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
