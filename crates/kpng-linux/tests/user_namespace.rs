//! An ordinary user gets a network of its own: as user 65534 where the test runs as root.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]
#![expect(clippy::disallowed_methods, reason = "the test starts itself as another user")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, fs, process};

use kpng_linux::namespace::{NetNs, enter_user_namespace};
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_linux::{Error, sysctl};

const ROLE: &str = "KPNG_TEST_ROLE";
const NOBODY: u32 = 65534;

fn main() {
    match env::var(ROLE).as_deref() {
        Ok("user") => as_user(),
        Ok("threads") => with_two_threads(),
        _ => {
            run_as("user");
            run_as("threads");
        }
    }
}

/// Whether the environment asks to skip what the machine does not allow.
fn may_skip() -> bool {
    env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1")
}

/// Starts this program again, as an ordinary user where that is possible.
fn run_as(role: &str) {
    // The build directory may be closed to other users.
    let copy = env::temp_dir().join(format!("kpng-user-namespace-{}", process::id()));
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.env(ROLE, role);
    if rustix::process::geteuid().is_root() && !in_user_namespace() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let status = command.status();
    fs::remove_file(&copy).unwrap();
    assert!(status.unwrap().success(), "as {role}");
}

/// Whether this process is root only in a user namespace, and so has no other users to become.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn as_user() {
    let outside = NetNs::new();
    if rustix::process::geteuid().as_raw() == NOBODY {
        let error = outside.unwrap_err().to_string();
        assert!(error.contains("needs CAP_NET_ADMIN"), "{error}");
    }
    match enter_user_namespace() {
        Err(error @ Error::UserNamespace { .. }) if may_skip() => {
            return println!("skipped: {error}");
        }
        other => other.unwrap(),
    }
    assert!(rustix::process::geteuid().is_root());
    let mut here = Rtnetlink::open().unwrap();
    here.set_up(1).unwrap();
    let inner = NetNs::new().unwrap();
    here.add_veth("v0", "v1", &inner).unwrap();
    sysctl::set("net/ipv4/ip_forward", "1").unwrap();
    let forward = inner.run(|| {
        sysctl::set("net/ipv4/ip_forward", "0").unwrap();
        Rtnetlink::open().unwrap().link("v1").unwrap();
        sysctl::get("net/ipv4/ip_forward").unwrap()
    });
    assert_eq!(forward.unwrap(), "0");
    assert_eq!(sysctl::get("net/ipv4/ip_forward").unwrap(), "1");
}

fn with_two_threads() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || stopped.recv());
    let error = enter_user_namespace().unwrap_err().to_string();
    let expected = "cannot enter a user namespace: the process must have only one thread";
    if error != expected && may_skip() {
        return println!("skipped: {error}");
    }
    assert_eq!(error, expected);
    drop(stop);
    other.join().unwrap().unwrap_err();
}
