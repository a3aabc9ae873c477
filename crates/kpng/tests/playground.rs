//! `kpng playground`, as people start it: it checks itself, follows its file, and leaves nothing.
#![cfg(feature = "playground")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that starts the program; what fails in it fails the test; what is skipped is said"
)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kpng_linux::rtnetlink::Rtnetlink;

const KPNG: &str = env!("CARGO_BIN_EXE_kpng");

/// A user that can do nothing.
const NOBODY: u32 = 65534;

/// `shell` enters the playground that was started last, so there is one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kpng(arguments: &[&str]) -> Command {
    let mut command = Command::new(KPNG);
    command.arg("playground").args(arguments);
    command
}

/// What it printed, for messages.
fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn scenarios() -> Vec<String> {
    let output = kpng(&["--list"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 7, "{names:?}");
    names.into_iter().map(str::to_owned).collect()
}

/// Whether namespaces can be had; why not is printed, when the environment asks to skip.
fn permitted() -> bool {
    kpng_testkit::network::Network::new(kpng_testkit::network::Topology { pods: 0, remote_pods: 0 })
        .is_some()
}

#[test]
fn every_scenario_checks_itself() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    for scenario in scenarios() {
        let output = kpng(&["--once", "--scenario", &scenario]).output().unwrap();
        assert!(output.status.success(), "{scenario}: {}", printed(&output));
        assert!(printed(&output).contains("All is as the Services say"), "{}", printed(&output));
    }
}

#[test]
fn no_connection_fails_while_pods_are_replaced() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    for backend in ["nft", "iptables", "ebpf", "userspacelin"] {
        if backend == "ebpf" && own_group().is_none() {
            continue;
        }
        let once = ["--once", "--scenario", "rolling-update", "--backend", backend];
        let output = kpng(&once).output().unwrap();
        let text = printed(&output);
        assert!(output.status.success(), "{backend}: {text}");
        let count = |line: &str| -> Option<usize> {
            let (count, rest) = line.trim().strip_prefix("✓ ")?.split_once(' ')?;
            (rest == "connections during the change, all answered").then(|| count.parse().unwrap())
        };
        let counts: Vec<_> = text.lines().filter_map(count).collect();
        // Each of four clients had one before the change began.
        assert!(counts.len() == 3 && counts.iter().all(|count| *count >= 4), "{backend}: {text}");
    }
}

/// The tour at its first step, its state file, and what is in it.
fn tour() -> (Running, PathBuf, String) {
    let playground = Running::start(kpng(&["--plain"]));
    let line = playground.wait_for("state file: ");
    let file = PathBuf::from(line.strip_prefix("state file: ").unwrap());
    playground.wait_for("tour 1/3");
    let good = fs::read_to_string(&file).unwrap();
    (playground, file, good)
}

#[test]
fn a_connection_that_fails_during_a_change_is_told() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    let (playground, file, good) = tour();
    // The client's address, where nobody listens.
    fs::write(&file, good.replace("10.180.0.2", "203.0.113.2")).unwrap();
    playground.wait_for("pod web-1 is not made: 203.0.113.2 is no address for a pod here");
    let failed = playground.wait_for(" connections during the change failed: default/web ");
    assert!(failed.ends_with(": refused"), "{failed}");
    playground.wait_for("✗ default/web ");
}

/// The program where everybody can start it: where the binary is, others may have no business.
fn for_everybody() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("kpng");
    fs::copy(KPNG, &program).unwrap();
    (directory, program)
}

#[test]
fn an_ordinary_user_plays_too() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    let (_directory, program) = for_everybody();
    for scenario in scenarios() {
        let mut command = Command::new(&program);
        command.args(["playground", "--once", "--scenario", &scenario]).current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        let text = printed(&output);
        if text.contains("cannot enter a user namespace") {
            println!("skipped: this kernel does not let ordinary users play: {text}");
            return;
        }
        assert!(output.status.success(), "{scenario}: {text}");
    }
}

/// A playground that runs, and the lines that it prints.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line that contains `what`.
    fn wait_for(&self, what: &str) -> String {
        let end = Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line has {what:?} ({error}): {seen:#?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn an_edit_is_followed_and_a_mistake_is_told_with_its_place() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    let (playground, file, good) = tour();

    fs::write(&file, good.replace("nodePort: 30080", "nodePort: 30099")).unwrap();
    playground.wait_for("default/web in force");
    playground.wait_for("192.168.0.2:30099 TCP    web-");

    fs::write(&file, good.replace("port: 80\n", "port: eighty\n")).unwrap();
    let problem = playground.wait_for("the last good state stays in force");
    assert!(problem.contains("cluster.yaml:") && problem.contains("port"), "{problem}");

    fs::write(&file, good.replace("10.180.0.2", "10.180.0.77")).unwrap();
    playground.wait_for("the state file is valid again");
    let shell =
        kpng(&["shell", "web-1", "cat", "/proc/thread-self/net/fib_trie"]).output().unwrap();
    assert!(printed(&shell).contains("10.180.0.77"), "{}", printed(&shell));
}

#[test]
fn a_shell_is_where_its_host_is() {
    let _alone = alone();
    let outside = kpng(&["shell", "client"]).output().unwrap();
    assert!(printed(&outside).contains("no playground of yours runs"), "{}", printed(&outside));
    if !permitted() {
        return;
    }
    let playground = Running::start(kpng(&["--plain", "--scenario", "affinity"]));
    playground.wait_for("affinity 1/3");
    let ask = "exec 3<>/dev/tcp/192.168.0.2/30082; cat <&3";
    let output = kpng(&["shell", "client", "bash", "-c", ask]).output().unwrap();
    assert!(printed(&output).starts_with("cart-"), "{}", printed(&output));
    assert!(printed(&output).contains(" 192.168.0.2 "), "masqueraded: {}", printed(&output));
    let nobody = kpng(&["shell", "nobody", "true"]).output().unwrap();
    assert!(!nobody.status.success());
    let text = printed(&nobody);
    assert!(text.contains("cart-0, cart-1, cart-2, client, node, visitor"), "{text}");
}

#[test]
fn a_signal_ends_it_in_order() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    let mut playground = Running::start(kpng(&["--plain"]));
    playground.wait_for("tour 1/3");
    let pid = rustix::process::Pid::from_child(&playground.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(playground.child.wait().unwrap().success());
}

/// The control group of this process, if it may make others in it; else says why not.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|words| words.get(2) == Some(&"cgroup2"));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let (Some(mount), Some(own)) = (mount, own) else {
        println!("skipped: control groups of version 2 are not mounted");
        return None;
    };
    let group = Path::new(mount[1]).join(own);
    let probe = group.join(format!("kpng-test-probe-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&probe) {
        println!("skipped: control groups cannot be made in {}: {error}", group.display());
        return None;
    }
    fs::remove_dir(&probe).unwrap();
    Some(group)
}

/// The control groups of playgrounds.
fn playground_groups(own: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(own).unwrap().map(|entry| entry.unwrap());
    let ours = |name: &OsStr| name.to_string_lossy().starts_with("kpng-playground-");
    entries.filter(|entry| ours(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// The control groups that the programs of a process are attached to, by their numbers.
fn attached_to(process: u32) -> BTreeSet<u64> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
    let of_one = |descriptor: io::Result<fs::DirEntry>| {
        // It may be closed meanwhile.
        let text = fs::read_to_string(descriptor.unwrap().path()).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("cgroup_id:")?.trim().parse().ok())
    };
    descriptors.filter_map(of_one).collect()
}

#[test]
fn programs_serve_the_sockets_of_the_playground_only() {
    let _alone = alone();
    let Some(own) = own_group() else { return };
    if !permitted() {
        return;
    }
    let before = playground_groups(&own);
    let pins = || fs::read_dir("/sys/fs/bpf").unwrap().map(|pin| pin.unwrap().file_name());
    let pins_before: BTreeSet<_> = pins().collect();
    let mut playground = Running::start(kpng(&["--plain", "--backend", "ebpf"]));
    playground.wait_for("✓ default/web      client   → 192.168.0.2:30080 TCP");

    let group = own.join(format!("kpng-playground-{}", playground.child.id()));
    let hosts = fs::metadata(group.join("hosts")).unwrap().ino();
    assert_eq!(attached_to(playground.child.id()), [hosts].into());
    assert_eq!(pins().collect::<BTreeSet<_>>(), pins_before, "others see no pins");
    let ask = "exec 3<>/dev/tcp/172.30.0.10/80; cat <&3";
    let output = kpng(&["shell", "node", "bash", "-c", ask]).output().unwrap();
    assert!(printed(&output).starts_with("web-"), "{}", printed(&output));

    // Shells keep the group, until they end too.
    let shell = kpng(&["shell", "node", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut shell = Running { child: shell, lines: std::sync::mpsc::channel().1 };
    eventually("the shell is in the group", || {
        let threads = fs::read_to_string(group.join("hosts/cgroup.threads")).unwrap();
        threads.lines().any(|thread| thread == shell.child.id().to_string())
    });
    playground.child.kill().unwrap();
    playground.child.wait().unwrap();
    assert!(group.exists(), "the shell is in it");
    shell.child.kill().unwrap();
    shell.child.wait().unwrap();
    eventually("nothing is left", || playground_groups(&own) == before);
}

#[test]
fn what_nobody_swept_is_removed_by_the_next_playground() {
    let _alone = alone();
    let Some(own) = own_group() else { return };
    if !permitted() {
        return;
    }
    let before = playground_groups(&own);
    // Numbers of processes are smaller.
    fs::create_dir_all(own.join("kpng-playground-4194305/hosts")).unwrap();
    let output = kpng(&["--once", "--backend", "ebpf"]).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    eventually("nothing is left", || playground_groups(&own) == before);
}

#[test]
fn who_may_not_make_control_groups_is_told_so() {
    let _alone = alone();
    let (directory, program) = for_everybody();
    let mut command = Command::new(&program);
    command.args(["playground", "--once", "--backend", "ebpf"]).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    } else if own_group().is_some() {
        return;
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(printed(&output).contains("takes root to make one"), "{}", printed(&output));
    drop(directory);
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "not so within 20 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a process could leave outside of itself.
#[derive(Debug, PartialEq, Eq)]
struct Surroundings {
    links: BTreeSet<String>,
    /// The file system of the state file, which is for the process only.
    mounts: Vec<String>,
}

impl Surroundings {
    fn now() -> Self {
        let links = Rtnetlink::open().unwrap().links().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mounts.lines().filter(|line| line.contains(" tmpfs kpng "));
        Self {
            links: links.into_iter().map(|link| link.name).collect(),
            mounts: ours.map(str::to_owned).collect(),
        }
    }
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    let _alone = alone();
    if !permitted() {
        return;
    }
    killed_at_any_moment("nft", || true);
}

#[test]
fn killed_at_any_moment_it_leaves_no_control_group() {
    let _alone = alone();
    let Some(own) = own_group() else { return };
    if !permitted() {
        return;
    }
    let before = playground_groups(&own);
    killed_at_any_moment("ebpf", || playground_groups(&own) == before);
}

fn killed_at_any_moment(backend: &str, is_clean: impl Fn() -> bool) {
    let directory = tempfile::tempdir().unwrap();
    let before = Surroundings::now();
    // From the first system calls to traffic in full swing.
    for moment in [0, 1, 3, 7, 15, 30, 45, 60, 80, 100, 150, 200, 300, 700, 2300] {
        let mut command = kpng(&["--plain", "--backend", backend]);
        command.current_dir(&directory).stdout(Stdio::null()).stderr(Stdio::piped());
        for variable in ["TMPDIR", "XDG_RUNTIME_DIR", "HOME"] {
            command.env(variable, directory.path());
        }
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let mut complaints = String::new();
        child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
        assert_eq!(status.code(), None, "it ended by itself: {complaints}");
        assert_eq!(Surroundings::now(), before, "after {moment} ms");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "after {moment} ms");
        eventually("nothing is left", &is_clean);
    }
}
