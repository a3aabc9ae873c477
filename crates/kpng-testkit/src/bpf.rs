//! What tests of BPF programs need of the machine: a control group and a BPF file system of their own.
//!
//! Both are removed when the value is dropped. Only the node and its pods are in the control group:
//! in reality, other hosts are not on this machine. Tests run one after the other, as a process is in
//! one control group.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::network::Network;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A control group with the threads of a node and its pods, and a place for pins.
#[derive(Debug)]
pub struct BpfPlace {
    /// The control group that programs are attached to.
    pub cgroup: PathBuf,
    /// The directory for pins. It is not there yet, and its parent is an empty directory.
    pub pins: PathBuf,
    group: PathBuf,
    home: PathBuf,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl BpfPlace {
    /// Makes both, and moves the threads of the node and its pods.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn new(network: &Network) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let root = hierarchy();
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let home = root.join(own.expect("there are control groups of version 2"));
        let group = root.join(format!("kpng-test-{}", std::process::id()));
        // Threads of one process can be in different groups below a group that has all of them.
        let cgroup = group.join("hosts");
        fs::create_dir_all(&cgroup).expect("root may make control groups");
        write(&cgroup.join("cgroup.type"), "threaded");
        write(&group.join("cgroup.procs"), &std::process::id().to_string());
        let hosts = network.pods.iter().chain([&network.node]);
        let hosts: Vec<_> = hosts.map(crate::network::Host::name).collect();
        for task in fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if hosts.contains(&name.trim()) {
                let moved = fs::write(cgroup.join("cgroup.threads"), task.file_name().as_bytes());
                // A host of a test that ends at this moment.
                let gone =
                    |error: &io::Error| error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
                assert!(moved.as_ref().err().is_none_or(gone), "{moved:?}");
            }
        }
        let directory = tempfile::tempdir().expect("there is room for an empty directory");
        let pins = directory.path().join("kpng");
        Self { cgroup, pins, group, home, directory, _alone: alone }
    }
}

impl Drop for BpfPlace {
    fn drop(&mut self) {
        write(&self.home.join("cgroup.procs"), &std::process::id().to_string());
        for group in [&self.cgroup, &self.group] {
            // The last threads may still be on their way out.
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        // Nobody may have mounted anything.
        unmount(self.directory.path(), UnmountFlags::DETACH).unwrap_or(());
    }
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut mount = mount.filter(|words| words.get(2) == Some(&"cgroup2"));
    PathBuf::from(mount.next().expect("control groups of version 2 are mounted")[1])
}
