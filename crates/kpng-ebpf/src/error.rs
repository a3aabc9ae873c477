//! What can go wrong.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::programs::ProgramError;
use kpng_linux::rtnetlink::FilterPlace;
use rustix::io::Errno;

/// What can go wrong. Every error names the object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something that has nothing to do with BPF.
    #[error(transparent)]
    Kernel(#[from] kpng_linux::Error),
    /// There is no control group hierarchy of version 2.
    #[error("no control group file system of version 2 is mounted: mount one, or name a group")]
    NoCgroup,
    /// The control group cannot be opened.
    #[error("cannot open control group {}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory of the BPF file system, or of /proc.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An object has no BPF file system to be kept in.
    #[error("cannot {what} {}: it takes root (CAP_BPF and CAP_NET_ADMIN)", path.display())]
    Pin {
        /// What was attempted.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The programs and maps cannot be loaded.
    #[error("cannot create the maps: it takes root (CAP_BPF and CAP_NET_ADMIN)")]
    Load {
        /// Why.
        #[source]
        source: Box<EbpfError>,
    },
    /// The kernel does not accept a program.
    #[error("cannot load program {name}: it takes Linux 5.18 or newer")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program that is attached cannot be looked at.
    #[error("cannot ask which maps program {program} uses: it takes root (CAP_SYS_ADMIN)")]
    Running {
        /// The kernel's number of it.
        program: u32,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The object that this crate was built with is not the one that it expects.
    #[error("the object has no {name}: it was built from other sources")]
    Missing {
        /// The program or map.
        name: &'static str,
    },
    /// A program cannot be attached.
    #[error("cannot attach {name}: by tcx, devices take Linux 6.6 or newer")]
    Attach {
        /// The name of the attachment.
        name: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A filter cannot be set.
    #[error(
        "cannot attach {name} by a filter: it takes CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
    )]
    Filter {
        /// The program.
        name: String,
        /// Why.
        #[source]
        source: kpng_linux::Error,
    },
    /// A filter of somebody else is where ours shall be.
    #[error("the {place} is {name:?}, which is not ours: give it another priority")]
    Occupied {
        /// Where it is.
        place: FilterPlace,
        /// Its name.
        name: String,
    },
    /// A device has the qdisc `ingress`, which has no filters for packets that leave.
    #[error(
        "device {device} has the qdisc ingress: replace it by clsact, which can do what it can"
    )]
    OtherQdisc {
        /// Its index.
        device: u32,
    },
    /// A map cannot be read or written.
    #[error("cannot {what} map {name}")]
    Map {
        /// What was attempted.
        what: &'static str,
        /// The map.
        name: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The process has too many open files.
    #[error("cannot keep a BPF object open")]
    Descriptor {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not number network namespaces.
    #[error("cannot identify the node's network namespace: it takes Linux 5.14 or newer")]
    NetworkNamespace {
        /// Why.
        #[source]
        source: Errno,
    },
}

impl Error {
    /// What could not be done was for a device that is not there any more.
    pub(crate) fn is_of_gone_device(&self) -> bool {
        let errno = match self {
            Self::Attach { source, .. } => Some(*source),
            Self::Filter { source, .. } => source.errno(),
            _ => None,
        };
        errno == Some(Errno::NODEV)
    }
}
