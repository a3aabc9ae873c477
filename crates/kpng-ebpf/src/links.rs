//! Attachments: programs to a control group and to devices, each pinned under a name of its own, or, on
//! kernels without tcx, set as a filter of a device.
//!
//! An attachment that is there is kept, and gets the new program; so there is no moment without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kpng_linux::rtnetlink::Link;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tracing::{info, warn};

use crate::filters::{self, Filters};
use crate::object::Object;
use crate::sys::{self, Hook};
use crate::{Attach, Config, Error, names};

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
    /// It is where it shall be, and runs the program with this number.
    Here(u32),
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
    /// How devices are attached to.
    attach: Attach,
    filters: Filters,
    /// Devices of which others' qdiscs are in the way of ours.
    unfit: BTreeSet<u32>,
    /// By name.
    attached: BTreeMap<String, (Hook, Held)>,
}

/// What holds an attachment.
#[derive(Debug)]
enum Held {
    Link(OwnedFd),
    /// A filter, and the number of its program.
    Filter(u32),
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
        let (root, filters) = (config.root.clone(), Filters::open(config.root.clone())?);
        let (attach, unfit, attached) = (config.attach, BTreeSet::new(), BTreeMap::new());
        Ok(Self { root, cgroup, cgroup_id, attach, filters, unfit, attached })
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
        self.filters.look_again();
        let mut kept: BTreeSet<String> =
            names::SOCKET_HOOKS.into_iter().map(|(name, _)| name.to_owned()).collect();
        for attachment in device_attachments(devices) {
            match self.attach_device(&attachment, object.program(attachment.program), replace) {
                // A device may go at any time; the kernel reports that, too.
                Err(error) if error.is_of_gone_device() => {}
                Err(error @ Error::OtherQdisc { device }) => {
                    if self.unfit.insert(device) {
                        warn!("{error}");
                    }
                }
                other => other?,
            }
            kept.insert(attachment.name());
        }
        self.attached.retain(|name, _| kept.contains(name));
        let held = self.attached.values();
        let places = held.filter(|(_, held)| matches!(held, Held::Filter(_)));
        let places = places.filter_map(|(hook, _)| filters::place_of(*hook)).collect();
        let is_link = |name: &String| matches!(self.attached.get(name), Some((_, Held::Link(_))));
        let directory = self.root.join("links");
        for name in entries(&directory)? {
            if !is_link(&name) && names::qdisc_device(&name).is_none() {
                unpin(&directory.join(name))?;
            }
        }
        self.filters.retain(&places)
    }

    /// Attaches a program to a device, by tcx or by a filter.
    fn attach_device(
        &mut self,
        attachment: &Attachment,
        program: BorrowedFd<'_>,
        replace: bool,
    ) -> Result<(), Error> {
        let (name, hook) = (attachment.name(), attachment.hook);
        if self.attach != Attach::Clsact {
            match self.attach_one(name.clone(), program, hook, replace) {
                Err(Error::Attach { source: Errno::INVAL, .. }) if self.attach == Attach::Auto => {
                    info!("the kernel has no tcx: programs are attached to devices by filters");
                    self.attach = Attach::Clsact;
                }
                Err(error) => return Err(error),
                Ok(()) => {
                    self.attach = Attach::Tcx;
                    return Ok(());
                }
            }
        }
        if !replace && self.is_attached(&name, hook) {
            return Ok(());
        }
        let Some(place) = filters::place_of(hook) else { return Ok(()) };
        self.filters.attach(place, attachment.program, program)?;
        let id = sys::id(program).map_err(|source| Error::Attach { name: name.clone(), source })?;
        self.attached.insert(name, (hook, Held::Filter(id)));
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
        if !replace && self.is_attached(&name, hook) {
            return Ok(());
        }
        let failed = |source| Error::Attach { name: name.clone(), source };
        let found =
            sys::pinned(&path).unwrap_or(None).or_else(|| match self.attached.remove(&name) {
                Some((_, Held::Link(link))) => Some(link),
                _ => None,
            });
        if let Some(link) = found.filter(|link| self.is_ours(link, hook))
            && sys::replace(link.as_fd(), program).is_ok()
        {
            if !path.exists() {
                sys::pin(link.as_fd(), &path).map_err(failed)?;
            }
            self.attached.insert(name, (hook, Held::Link(link)));
            return Ok(());
        }
        let link = sys::attach(program, hook, self.cgroup.as_fd()).map_err(failed)?;
        // The new one is attached already when the old one goes.
        unpin(&path)?;
        sys::pin(link.as_fd(), &path).map_err(failed)?;
        self.attached.insert(name, (hook, Held::Link(link)));
        Ok(())
    }

    fn is_ours(&self, link: &OwnedFd, hook: Hook) -> bool {
        let info = sys::link_info(link.as_fd()).ok().flatten();
        info.is_some_and(|info| hook.is_of(info, self.cgroup_id))
    }

    fn is_attached(&mut self, name: &str, hook: Hook) -> bool {
        match self.attached.get(name) {
            Some((_, Held::Link(link))) => {
                self.is_ours(link, hook) && names::link(&self.root, name).exists()
            }
            Some((_, Held::Filter(id))) => {
                let place = filters::place_of(hook);
                let found = place.map(|place| self.filters.program(place));
                found.is_some_and(|found| found.is_ok_and(|found| found == Some(*id)))
            }
            None => false,
        }
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
    pub(crate) fn state(&mut self, attachment: &Attachment) -> Result<State, Error> {
        let path = names::link(&self.root, &attachment.name());
        let failed = |source| Error::Pin { what: "open", path: path.clone(), source };
        let Some(link) = sys::pinned(&path).map_err(failed)? else {
            let place = filters::place_of(attachment.hook);
            let program = place.map(|place| self.filters.program(place)).transpose()?.flatten();
            return Ok(program.map_or(State::Missing, State::Here));
        };
        let info = sys::link_info(link.as_fd()).map_err(failed)?;
        Ok(match info.filter(|info| attachment.hook.is_of(*info, self.cgroup_id)) {
            Some(info) => State::Here(info.program),
            None => State::Elsewhere,
        })
    }

    /// The names of attachments that are there beside these.
    pub(crate) fn strangers(&self, wanted: &[Attachment]) -> Result<Vec<String>, Error> {
        let wanted: Vec<_> = wanted.iter().map(Attachment::name).collect();
        let mut names = entries(&self.root.join("links"))?;
        names.retain(|name| !wanted.contains(name) && names::qdisc_device(name).is_none());
        names.sort_unstable();
        Ok(names)
    }

    /// Whether all attachments are as they were made. A device's end with it, and so are none of
    /// them.
    pub(crate) fn are_intact(&mut self) -> bool {
        let hooks = self.attached.iter().map(|(name, (hook, _))| (name.clone(), *hook));
        let hooks: Vec<_> = hooks.collect();
        hooks.iter().all(|(name, hook)| self.is_attached(name, *hook))
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
