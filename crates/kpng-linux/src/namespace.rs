//! Network and user namespaces, without child processes.
//!
//! A network namespace belongs to a thread, not to the process: code moves into one only on a
//! thread of its own, never on one that others share (a runtime's worker, for instance). Sockets
//! stay in the namespace where they were opened.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Error, Result};

/// A network namespace. It lives as long as this value, a socket, a thread or a mount holds it.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Creates a network namespace without a name. It has a loopback interface that is down.
    ///
    /// # Errors
    /// [`Error::Kernel`] without CAP_SYS_ADMIN (see [`enter_user_namespace`]).
    pub fn new() -> Result<Self> {
        on_own_thread(|| {
            unshare(UnshareFlags::NEWNET)
                .map_err(|errno| Error::kernel("create a network namespace", errno))?;
            Self::current()
        })
    }

    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Kernel`] when `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The network namespace behind `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let fail =
            |errno| Error::kernel(format_args!("open network namespace {}", path.display()), errno);
        Ok(Self { fd: fd.map_err(fail)? })
    }

    /// Another handle on the same namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the process has too many open files.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0);
        let fail = |errno| Error::kernel("duplicate the handle of a network namespace", errno);
        Ok(Self { fd: fd.map_err(fail)? })
    }

    /// Runs `f` inside the namespace, on a thread of its own, and returns what it returns. A panic
    /// of `f` continues in the caller.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the process may not enter the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            Ok(f())
        })
    }

    /// Moves the calling thread into the namespace, for good. Only for threads that the caller
    /// started for it.
    ///
    /// # Errors
    /// [`Error::Kernel`] without CAP_SYS_ADMIN in the namespace's owner.
    pub fn enter(&self) -> Result<()> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| Error::kernel("enter a network namespace", errno))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether this process may make namespaces as it is: it has CAP_SYS_ADMIN, number 21.
pub fn may_make_namespaces() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << 21 != 0)
}

/// Makes an ordinary user "root" over a network of its own: moves the process into a new user
/// namespace, where it is user and group 0, and into a new network namespace.
///
/// It must come first in `main`: the kernel moves only a process that has a single thread.
///
/// # Errors
/// [`Error::UserNamespace`] with the reason, when the kernel does not allow it.
pub fn enter_user_namespace() -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).map_err(user_namespace_refused)?;
    // Group ids can be mapped by an ordinary user only once setgroups(2) is given up.
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("0 {uid} 1"))?;
    write_map("gid_map", &format!("0 {gid} 1"))
}

/// Moves the process into the user namespace behind `path`, such as `/proc/PID/ns/user`, where it has
/// all capabilities if the namespace belongs to its user. Nothing happens when it is there already.
///
/// The kernel moves only a process that has a single thread.
///
/// # Errors
/// [`Error::Kernel`] when the namespace is somebody else's.
pub fn join_user_namespace(path: &Path) -> Result<()> {
    let fail =
        |errno| Error::kernel(format_args!("enter the user namespace {}", path.display()), errno);
    let own = rustix::fs::stat("/proc/self/ns/user").map_err(fail)?;
    let other = rustix::fs::stat(path).map_err(fail)?;
    if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino) {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    rustix::thread::move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(fail)
}

/// Puts an empty file system in memory, of at most a megabyte, over `directory`, for this process
/// only. Others find it at `/proc/PID/root/DIRECTORY`; it goes with the process, however that ends.
///
/// It must come before the process starts threads: those that are there keep what they see.
///
/// # Errors
/// [`Error::Kernel`] without CAP_SYS_ADMIN (see [`enter_user_namespace`]).
pub fn mount_private_memory(directory: &Path) -> Result<()> {
    mount_private(directory, "tmpfs", Some(c"size=1m,mode=0755"))
}

/// Puts an empty BPF file system over `directory`, for this process only: what is pinned there goes
/// with the process, and what others pinned is not seen.
///
/// It must come before the process starts threads: those that are there keep what they see.
///
/// # Errors
/// [`Error::Kernel`] without CAP_SYS_ADMIN, or when the kernel has no BPF file system.
pub fn mount_private_bpf(directory: &Path) -> Result<()> {
    mount_private(directory, "bpf", None)
}

fn mount_private(directory: &Path, kind: &str, options: Option<&CStr>) -> Result<()> {
    let what = format_args!("mount a file system {kind} on {}", directory.display());
    let fail = |errno| Error::kernel(what, errno);
    unshare(UnshareFlags::NEWNS).map_err(fail)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(fail)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("kpng", directory, kind, flags, options).map_err(fail)
}

fn write_map(file: &str, content: &str) -> Result<()> {
    let path = PathBuf::from("/proc/self").join(file);
    fs::write(path, content)
        .map_err(|error| user_namespace_refused(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

fn user_namespace_refused(errno: Errno) -> Error {
    let switch = |path: &str, value: &str| {
        fs::read_to_string(path).is_ok_and(|content| content.trim() == value)
    };
    let hint = match errno {
        Errno::INVAL => "the process must have only one thread",
        Errno::NOSPC => "the limit user.max_user_namespaces is reached",
        Errno::USERS => "user namespaces are nested too deeply",
        Errno::NOSYS => "this kernel has no user namespaces",
        _ if switch("/proc/sys/user/max_user_namespaces", "0") => {
            "they are switched off; set sysctl user.max_user_namespaces"
        }
        _ if switch("/proc/sys/kernel/unprivileged_userns_clone", "0") => {
            "they are for root only; set sysctl kernel.unprivileged_userns_clone=1"
        }
        _ if switch("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "AppArmor restricts them; set sysctl kernel.apparmor_restrict_unprivileged_userns=0 \
             or give the program a profile that allows userns"
        }
        _ => "a security module or container runtime (seccomp) forbids them; run as root",
    };
    Error::UserNamespace { hint, errno }
}

fn on_own_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, f);
        let thread = thread.map_err(|error| {
            Error::kernel("start a thread", Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
        })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[expect(unsafe_code, reason = "rustix marks unshare unsafe because of one flag, FILES")]
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    assert!(!flags.contains(UnshareFlags::FILES), "file descriptors stay shared");
    // SAFETY: the file descriptor table is not unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
