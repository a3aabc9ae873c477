//! The example that runs a small cluster, as an ordinary user and as root.

#![expect(clippy::disallowed_methods, reason = "the example is started as its reader starts it")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, fs};

const NOBODY: u32 = 65534;

/// Builds the example where this test was built, and returns its path.
fn build() -> PathBuf {
    let test = env::current_exe().expect("this program has a path");
    let profile = test.ancestors().nth(2).expect("cargo puts tests into target/PROFILE/deps");
    let target = profile.parent().expect("it is in the target directory");
    let mut cargo = Command::new(env!("CARGO"));
    // With the workspace, as with the tests: other features would be built anew.
    cargo.args(["build", "--quiet", "--workspace", "--example", "first_run", "--target-dir"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    // What cargo tells the programs that it runs would make build scripts run again.
    let told = env::vars_os().map(|(name, _)| name);
    let told = told.filter(|name| name.to_string_lossy().starts_with("CARGO_"));
    told.filter(|name| name != "CARGO_HOME").for_each(|name| {
        cargo.env_remove(name);
    });
    let status = cargo.arg(target).status().expect("cargo can be started");
    assert!(status.success(), "the example does not build");
    profile.join("examples/first_run")
}

fn check(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for line in ["api-0; saw fd00:180::1", "refused", "All as expected. Nothing is left behind."] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

/// Where user namespaces are not allowed, the example must say so in one line.
fn check_or_refused(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    if env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1") && !output.status.success() {
        assert!(errors.starts_with("first_run: cannot "), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        return;
    }
    check(output);
}

#[test]
fn the_first_run_works_as_root_and_as_an_ordinary_user() {
    let example = build();
    let run = |command: &mut Command| command.env_remove("KPNG_SKIP_NET").output().unwrap();
    check_or_refused(&run(&mut Command::new(&example)));
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // The build directory may be closed to other users.
    let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir();
    let folder = folder.expect("a temporary directory can be made");
    let copy = folder.path().join("first_run");
    fs::copy(&example, &copy).unwrap();
    check_or_refused(&run(Command::new(&copy).uid(NOBODY).gid(NOBODY)));
}
