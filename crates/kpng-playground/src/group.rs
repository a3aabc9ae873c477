//! The control group of the playground's own node, for a backend that serves the sockets of one.
//!
//! The machine's other processes are in none of it. Nothing in the kernel removes a control group when
//! its processes are gone, so another process has to [`sweep`]: it outlives this one, however this ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::{Error, Result};

/// How its name starts; the process's number follows.
const NAME: &str = "kpng-playground-";

/// A control group with this process, and one in it for the threads of the node and its pods.
#[derive(Debug)]
pub struct ControlGroup {
    group: PathBuf,
    home: PathBuf,
}

impl ControlGroup {
    /// Where [`ControlGroup::new`] makes one: in the control group that this process is in.
    ///
    /// # Errors
    /// When control groups of version 2 are not mounted.
    pub fn place() -> Result<PathBuf> {
        Ok(of(Path::new("/proc/self"))?.join(format!("{NAME}{}", std::process::id())))
    }

    /// The control group in `place` for the sockets of the node and its pods.
    pub fn hosts(place: &Path) -> PathBuf {
        place.join("hosts")
    }

    /// Makes the control group, and moves this process into it. Nobody else may move it meanwhile.
    ///
    /// # Errors
    /// [`Error::System`] without the right to do so.
    pub fn new(place: &Path) -> Result<Self> {
        let made = Self { group: place.to_owned(), home: of(Path::new("/proc/self"))? };
        remove_abandoned(&made.home);
        let hosts = Self::hosts(place);
        let fill = || {
            fs::create_dir_all(&hosts)?;
            // Threads of one process can be in different groups below a group that has all of them.
            fs::write(hosts.join("cgroup.type"), "threaded")?;
            fs::write(place.join("cgroup.procs"), "0")
        };
        let what = || format!("make the control group {}", place.display());
        fill().map_err(|source| Error::System { what: what(), source })?;
        Ok(made)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Who sweeps tries as long as it takes.
        if fs::write(self.home.join("cgroup.procs"), "0").is_ok() {
            remove(&self.group).unwrap_or(());
        }
    }
}

/// Removes the control group in `place` as soon as nobody is in it: the playground, and shells in it.
///
/// # Errors
/// [`Error::System`] when it cannot be removed.
pub fn sweep(place: &Path) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(20);
    let what = || format!("remove the control group {}", place.display());
    loop {
        match remove(place) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(PAUSE),
            other => return other.map_err(|source| Error::System { what: what(), source }),
        }
    }
}

/// Removes those of playgrounds that ended together with who should have swept. The kernel keeps those
/// that somebody is in.
fn remove_abandoned(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(NAME));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            remove(&entry.path()).unwrap_or(());
        }
    }
}

fn remove(place: &Path) -> io::Result<()> {
    for group in [&ControlGroup::hosts(place), place] {
        match fs::remove_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Moves the calling thread into a group beside that of its process.
pub(crate) fn join_with_thread(hosts: &Path) -> Result<()> {
    join(&hosts.join("cgroup.threads"))
}

/// Moves this process into the group of a thread of `process`, if that is not where all of it is.
pub(crate) fn join_with_process(process: &Path, thread: &Path) -> Result<()> {
    let Ok(group) = of(thread) else { return Ok(()) };
    if of(process).is_ok_and(|usual| usual == group) {
        return Ok(());
    }
    join(&group.join("cgroup.procs"))
}

fn join(members: &Path) -> Result<()> {
    let what = || format!("enter the control group of {}", members.display());
    fs::write(members, "0").map_err(|source| Error::System { what: what(), source })
}

/// The directory of the control group (version 2) that a process or a thread of `/proc` is in.
fn of(task: &Path) -> Result<PathBuf> {
    let read = |path: &Path| {
        let what = || format!("read {}", path.display());
        fs::read_to_string(path).map_err(|source| Error::System { what: what(), source })
    };
    let groups = read(&task.join("cgroup"))?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let root = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4))?
    });
    match (root, own) {
        (Some(root), Some(own)) => Ok(Path::new(root).join(own)),
        _ => Err(Error::System {
            what: "find the control group of the playground".to_owned(),
            source: io::Error::new(io::ErrorKind::NotFound, "no file system cgroup2 is mounted"),
        }),
    }
}
