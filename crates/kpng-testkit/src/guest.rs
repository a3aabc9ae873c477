//! Tests in a guest: a user-mode-linux kernel that has what this machine's kernel may lack (IPVS).
//!
//! The guest is a process that sees this machine's files, read-only. It boots in two seconds, runs the
//! one test that asked for it, in the same test binary, and ends. The kernel and most of its modules
//! are Debian's package `user-mode-linux`; nf_tables of IPv4 and IPv6 is built once, from Debian's
//! source of the same kernel, by `hack/guest-modules.sh`.

use std::any::type_name;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// Set inside the guest.
const GUEST: &str = "KPNG_GUEST";

/// The kernel, a program.
const KERNEL: &str = "linux.uml";

/// Where its package has the modules, by version.
const MODULES: &str = "/usr/lib/uml/modules";

/// What `hack/guest-modules.sh` built, in order of need.
const BUILT: [&str; 13] = [
    "nf_tables",
    "nft_fib",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_reject",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_chain_nat",
    "nft_nat",
    "nft_ct",
    "nft_masq",
    "nft_numgen",
    "nft_hash",
];

/// What comes from the package before that, in order of need.
const BEFORE: [&str; 11] = [
    "lib/crc-ccitt",
    "net/ipv6/ipv6",
    "net/netfilter/nfnetlink",
    "net/ipv4/netfilter/nf_defrag_ipv4",
    "net/ipv6/netfilter/nf_defrag_ipv6",
    "net/netfilter/nf_conntrack",
    "net/netfilter/nf_nat",
    "net/netfilter/nf_conntrack_netlink",
    "net/ipv4/netfilter/nf_reject_ipv4",
    "net/ipv6/netfilter/nf_reject_ipv6",
    "drivers/net/veth",
];

/// What comes from the package after that. The guest has no `modprobe`, so nothing is loaded on demand.
/// SCTP is not among it: the test network speaks that itself.
const AFTER: [&str; 11] = [
    "drivers/net/dummy",
    "net/netfilter/ipvs/ip_vs",
    "net/netfilter/ipvs/ip_vs_rr",
    "net/netfilter/ipvs/ip_vs_wrr",
    "net/netfilter/ipvs/ip_vs_lc",
    "net/netfilter/ipvs/ip_vs_wlc",
    "net/netfilter/ipvs/ip_vs_sh",
    "net/netfilter/ipvs/ip_vs_mh",
    "net/netfilter/ipvs/ip_vs_sed",
    "net/netfilter/ipvs/ip_vs_nq",
    "net/netfilter/ipvs/ip_vs_dh",
];

/// Runs `test`, which is all of the test function that calls this, in a guest.
///
/// The environment may ask to skip it (`KPNG_SKIP_NET=1`).
///
/// # Panics
/// When there can be no guest, or the test fails in it, or takes longer than `limit`.
pub fn in_guest<F: FnOnce()>(limit: Duration, test: F) {
    static PREPARED: Once = Once::new();
    if std::env::var_os(GUEST).is_some() {
        PREPARED.call_once(load_modules);
        return test();
    }
    if skipped() {
        return;
    }
    let (output, passed) = Guest::boot(test_name::<F>()).run(limit);
    assert!(passed, "the test failed in the guest:\n{output}");
    show(&output);
}

/// Whether the code runs in the guest.
pub fn is_guest() -> bool {
    std::env::var_os(GUEST).is_some()
}

#[expect(clippy::print_stdout, reason = "the test harness shows it, when it is asked to")]
fn show(output: &str) {
    println!("{output}");
}

#[expect(clippy::print_stdout, reason = "the test harness shows it")]
fn skipped() -> bool {
    let missing = match (find_program(KERNEL), built_modules()) {
        (None, _) => format!("{KERNEL} is missing: `apt-get install user-mode-linux`"),
        (_, None) => "modules of the guest are missing: run hack/guest-modules.sh".to_owned(),
        _ => return false,
    };
    let skip = std::env::var_os("KPNG_SKIP_NET").is_some_and(|value| value == "1");
    assert!(skip, "{missing}; or set KPNG_SKIP_NET=1 to skip tests with packets");
    println!("skipped: {missing}");
    true
}

/// The test function in which the closure `F` is, by the name that the test harness has for it.
fn test_name<F>() -> &'static str {
    let name = type_name::<F>().trim_end_matches("::{{closure}}");
    name.split_once("::").map_or(name, |(_crate, test)| test)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The version of the guest's kernel.
fn version() -> Option<String> {
    let names =
        fs::read_dir(MODULES).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let key =
        |name: &String| -> Vec<u32> { name.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    names.max_by_key(key)
}

/// The folder of what `hack/guest-modules.sh` built for this kernel.
fn built_modules() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.testbin");
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let version = version()?;
    let mut folders = assets
        .into_iter()
        .chain([workspace])
        .map(|folder| folder.join("guest-modules").join(&version));
    folders.find(|folder| BUILT.iter().all(|name| folder.join(name).with_extension("ko").is_file()))
}

/// Loads what tests need, into the guest's kernel.
fn load_modules() {
    let version = version().expect("the guest was booted from the package");
    let package = Path::new(MODULES).join(version).join("kernel");
    let built = built_modules().expect("the guest was booted with them");
    let of_package = |name: &&str| package.join(name);
    let modules = BEFORE.iter().map(of_package);
    let modules = modules.chain(BUILT.iter().map(|name| built.join(name)));
    for module in modules.chain(AFTER.iter().map(of_package)) {
        let path = module.with_extension("ko");
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        rustix::system::finit_module(&file, c"", 0)
            .unwrap_or_else(|errno| panic!("cannot load {}: {errno}", path.display()));
    }
}

/// A guest that runs.
struct Guest {
    child: Child,
    /// Has the script that the guest starts.
    _folder: tempfile::TempDir,
}

/// What the script prints when the test has ended, before its exit status.
const STATUS: &str = "guest: exit status ";

impl Guest {
    #[expect(clippy::disallowed_methods, reason = "the guest is a program")]
    fn boot(test: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let init = folder.path().join("init");
        let permissions = fs::Permissions::from_mode(0o755);
        fs::write(&init, script(test)).expect("a file can be written");
        fs::set_permissions(&init, permissions).expect("it is our file");
        let child = Command::new(KERNEL)
            .args(["mem=1G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"])
            .args(["con0=null,fd:1", "con=null", "ssl=null", "loglevel=1"])
            .arg(format!("init={}", init.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("the guest's kernel starts");
        Self { child, _folder: folder }
    }

    /// What it printed, and whether the test passed.
    fn run(mut self, limit: Duration) -> (String, bool) {
        let mut stdout = self.child.stdout.take().expect("it is piped");
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout.read_to_end(&mut output);
            sender.send(()).ok();
            read.map(|_| output)
        });
        let start = Instant::now();
        let ended = receiver.recv_timeout(limit).is_ok();
        self.end();
        let output = reader.join().expect("reading does not panic").unwrap_or_default();
        let mut output = String::from_utf8_lossy(&output).replace('\r', "");
        let passed = output.contains(&format!("{STATUS}0\n")) && output.contains("1 passed");
        if !ended {
            output += &format!("\nthe guest was stopped after {:?}", start.elapsed());
        }
        (output, ended && passed)
    }

    /// Ends all processes of the guest, if it has not ended.
    fn end(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // Fails when all have ended.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}

/// What the guest's kernel starts.
fn script(test: &str) -> String {
    let binary = std::env::current_exe().expect("/proc is there");
    let folder = std::env::current_dir().expect("the folder is there");
    let assets = std::env::var("KUBEBUILDER_ASSETS").unwrap_or_default();
    let (binary, folder) = (binary.display(), folder.display());
    format!(
        "#!/bin/sh
export PATH=/usr/sbin:/sbin:/usr/bin:/bin TMPDIR=/run RUST_BACKTRACE=1 {GUEST}=1
export KUBEBUILDER_ASSETS='{assets}'
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
cd '{folder}'
'{binary}' --exact '{test}' --nocapture --test-threads=1 2>&1
echo '{STATUS}'$?
echo o >/proc/sysrq-trigger
sleep 10
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_runs_in_the_guest() {
        in_guest(Duration::from_secs(60), || {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            assert_eq!(Some(release.trim()), version().as_deref());
            assert!(Path::new("/proc/net/ip_vs").exists());
        });
    }

    #[test]
    fn a_failure_in_the_guest_is_a_failure() {
        if is_guest() {
            in_guest(Duration::ZERO, || panic!("as expected"));
        }
        if skipped() {
            return;
        }
        let (output, passed) = Guest::boot("guest::tests::a_failure_in_the_guest_is_a_failure")
            .run(Duration::from_secs(60));
        assert!(!passed && output.contains("as expected"), "{output}");
    }

    #[test]
    fn a_guest_that_does_not_end_is_stopped() {
        if is_guest() {
            std::thread::sleep(Duration::from_secs(600));
        }
        if skipped() {
            return;
        }
        let guest = Guest::boot("guest::tests::a_guest_that_does_not_end_is_stopped");
        let (output, passed) = guest.run(Duration::from_secs(1));
        assert!(!passed && output.contains("stopped after"), "{output}");
    }
}
