//! Attachments: programs to a control group and to devices, each pinned under a name of its own.
//!
//! An attachment that is there is kept, and gets the new program; so there is no moment without one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kpng_linux::rtnetlink::Link;
use rustix::fs::{Mode, OFlags};

use crate::object::Object;
use crate::sys::{self, Hook};
use crate::{Config, Error, names};

/// A program, and where it shall be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) program: &'static str,
    pub(crate) hook: Hook,
    /// The name of the device, for people; empty for the control group.
    device: String,
}

/// What has become of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is where it shall be.
    Here,
    /// Its name stands for another one, or for one that has ended.
    Elsewhere,
    /// Nothing has its name.
    Missing,
}

/// The attachments of this process.
#[derive(Debug)]
pub(crate) struct Links {
    root: PathBuf,
    cgroup: OwnedFd,
    /// The control group's number.
    cgroup_id: u64,
    /// By the name of the pin.
    attached: BTreeMap<String, (Hook, OwnedFd)>,
}

impl Links {
    /// Opens the control group. Attaches nothing.
    pub(crate) fn open(config: &Config) -> Result<Self, Error> {
        let path = match &config.cgroup_root {
            Some(path) => path.clone(),
            None => cgroup_mount()?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |source| Error::Cgroup { path: path.clone(), source };
        let cgroup =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let cgroup_id = fs::metadata(&path).map_err(failed)?.ino();
        Ok(Self { root: config.root.clone(), cgroup, cgroup_id, attached: BTreeMap::new() })
    }

    /// Attaches the programs everywhere, or puts them into the place of those that are attached.
    pub(crate) fn attach(&mut self, object: &Object, devices: &[Link]) -> Result<(), Error> {
        for (program, hook) in names::SOCKET_HOOKS {
            self.attach_one(program.to_owned(), object.program(program), Hook::Cgroup(hook), true)?;
        }
        self.follow(object, devices, true)
    }

    /// Attaches the programs to devices that are new, and to all with `replace`; those that are gone,
    /// or are not to be attached to any more, lose theirs.
    pub(crate) fn follow(
        &mut self,
        object: &Object,
        devices: &[Link],
        replace: bool,
    ) -> Result<(), Error> {
        let mut kept: Vec<String> =
            names::SOCKET_HOOKS.into_iter().map(|(name, _)| name.to_owned()).collect();
        for attachment in device_attachments(devices) {
            let (name, hook) = (attachment.name(), attachment.hook);
            kept.push(name.clone());
            match self.attach_one(name, object.program(attachment.program), hook, replace) {
                // A device may go at any time; the kernel reports that, too.
                Err(Error::Attach { source: rustix::io::Errno::NODEV, .. }) => {}
                other => other?,
            }
        }
        self.attached.retain(|name, _| kept.contains(name));
        let directory = self.root.join("links");
        for name in entries(&directory)?.into_iter().filter(|name| !kept.contains(name)) {
            unpin(&directory.join(name))?;
        }
        Ok(())
    }

    fn attach_one(
        &mut self,
        name: String,
        program: BorrowedFd<'_>,
        hook: Hook,
        replace: bool,
    ) -> Result<(), Error> {
        let path = names::link(&self.root, &name);
        if !replace && self.attached.contains_key(&name) && self.is_attached(&name, hook) {
            return Ok(());
        }
        let failed = |source| Error::Attach { name: name.clone(), source };
        let found =
            sys::pinned(&path).unwrap_or(None).or_else(|| Some(self.attached.remove(&name)?.1));
        if let Some(link) = found.filter(|link| self.is_ours(link, hook))
            && sys::replace(link.as_fd(), program).is_ok()
        {
            if !path.exists() {
                sys::pin(link.as_fd(), &path).map_err(failed)?;
            }
            self.attached.insert(name, (hook, link));
            return Ok(());
        }
        let link = sys::attach(program, hook, self.cgroup.as_fd()).map_err(failed)?;
        // The new one is attached already when the old one goes.
        unpin(&path)?;
        sys::pin(link.as_fd(), &path).map_err(failed)?;
        self.attached.insert(name, (hook, link));
        Ok(())
    }

    fn is_ours(&self, link: &OwnedFd, hook: Hook) -> bool {
        let info = sys::link_info(link.as_fd()).ok().flatten();
        info.is_some_and(|info| hook.is_of(info, self.cgroup_id))
    }

    fn is_attached(&self, name: &str, hook: Hook) -> bool {
        let link = self.attached.get(name);
        link.is_some_and(|(_, link)| self.is_ours(link, hook))
            && names::link(&self.root, name).exists()
    }

    /// Everything that shall be attached, given these devices.
    pub(crate) fn wanted(&self, devices: &[Link]) -> Vec<Attachment> {
        let sockets = names::SOCKET_HOOKS.into_iter().map(|(program, hook)| Attachment {
            program,
            hook: Hook::Cgroup(hook),
            device: String::new(),
        });
        sockets.chain(device_attachments(devices)).collect()
    }

    /// Whether an attachment is there, whichever process made it.
    pub(crate) fn state(&self, attachment: &Attachment) -> Result<State, Error> {
        let path = names::link(&self.root, &attachment.name());
        let failed = |source| Error::Pin { what: "open", path: path.clone(), source };
        Ok(match sys::pinned(&path).map_err(failed)? {
            None => State::Missing,
            Some(link) if self.is_ours(&link, attachment.hook) => State::Here,
            Some(_) => State::Elsewhere,
        })
    }

    /// The names of attachments that are there beside these.
    pub(crate) fn strangers(&self, wanted: &[Attachment]) -> Result<Vec<String>, Error> {
        let wanted: Vec<_> = wanted.iter().map(Attachment::name).collect();
        let mut names = entries(&self.root.join("links"))?;
        names.retain(|name| !wanted.contains(name));
        names.sort_unstable();
        Ok(names)
    }

    /// Whether all attachments are as they were made. A device's end with it, and so are none of
    /// them.
    pub(crate) fn are_intact(&self) -> bool {
        self.attached.iter().all(|(name, (hook, _))| self.is_attached(name, *hook))
    }
}

impl Attachment {
    /// The name that it is pinned by.
    fn name(&self) -> String {
        match self.hook {
            Hook::Cgroup(_) => self.program.to_owned(),
            Hook::Ingress(device) | Hook::Egress(device) => format!("{}-{device}", self.program),
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program)?;
        match self.hook {
            Hook::Cgroup(_) => f.write_str(" to the control group"),
            Hook::Ingress(_) | Hook::Egress(_) => write!(f, " to device {}", self.device),
        }
    }
}

/// What shall be attached to these devices.
fn device_attachments(devices: &[Link]) -> Vec<Attachment> {
    let mut wanted = Vec::new();
    for device in devices {
        let programs = if device.is_ethernet() { names::ETHERNET } else { names::BARE };
        let mut add = |program, hook| {
            wanted.push(Attachment { program, hook, device: device.name.clone() });
        };
        if !device.is_loopback() {
            add(programs.ingress, Hook::Ingress(device.index));
        }
        add(programs.egress, Hook::Egress(device.index));
    }
    wanted
}

/// The names in a directory, none when there is no directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::File { what: "list", path: directory.to_owned(), source };
    let list = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(failed)?,
    };
    let names = list.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(failed)
}

/// Takes a name away. What is not there has none.
pub(crate) fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Where the control groups of version 2 are mounted, first of all mounts.
fn cgroup_mount() -> Result<PathBuf, Error> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let failed = |source| Error::File { what: "read", path: MOUNTS.into(), source };
    let mounts = fs::read_to_string(MOUNTS).map_err(failed)?;
    let mount = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4))?
    });
    mount.map(PathBuf::from).ok_or(Error::NoCgroup)
}
