//! What can go wrong between kpng and the kernel.
//!
//! Every error names what was attempted, keeps the kernel's error number as its source, and says
//! what to do when that is known.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a system call, or of the kernel's answer to a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request, or a system call failed.
    #[error("cannot {what}{}{}", Detail(message), Hint(*errno))]
    Kernel {
        /// What was attempted, as a verb phrase ("add address 10.0.0.1/24 to veth0").
        what: String,
        /// The kernel's own explanation (extended ACK), where it gave one.
        message: Option<String>,
        /// Where in the request the offending attribute starts (extended ACK), in bytes.
        offset: Option<u32>,
        /// The kernel's error number.
        #[source]
        errno: Errno,
    },

    /// The socket's receive buffer overflowed (`ENOBUFS`): replies or notifications are lost. A
    /// request that was in flight may have been carried out, so its effect has to be read back.
    #[error("cannot {what}: the netlink receive buffer overflowed and replies are lost")]
    Overrun {
        /// What was attempted.
        what: String,
    },

    /// The kernel's tables changed while they were being listed (`NLM_F_DUMP_INTR`): the listing
    /// may lack entries or have them twice. Ask again.
    #[error("cannot {what}: the kernel's table changed while it was listed")]
    Interrupted {
        /// What was attempted.
        what: String,
    },

    /// What the kernel holds is not known, as the last write failed or there was none. All has to be
    /// written again.
    #[error("cannot {what}: it was not written completely")]
    Unknown {
        /// What was attempted.
        what: String,
    },

    /// The kernel has no generic netlink family with this name.
    #[error(
        "this kernel has no {name} (generic netlink family): load its module, or use a kernel that is \
         built with it"
    )]
    NoFamily {
        /// The name.
        name: &'static str,
    },

    /// The kernel did not answer in time.
    #[error("cannot {what}: the kernel gave no answer")]
    NoAnswer {
        /// What was attempted.
        what: String,
    },

    /// An attribute does not fit its 16-bit length. The message was not sent.
    #[error("cannot {what}: netlink attribute {kind} has {length} bytes, the limit is 65,531")]
    AttributeTooLong {
        /// What was attempted.
        what: String,
        /// The type of the attribute.
        kind: u16,
        /// The length of its payload, in bytes.
        length: usize,
    },

    /// A batch does not fit the socket's send buffer, and the buffer cannot grow to its size.
    #[error(
        "cannot {what}: {length} bytes exceed the socket's send buffer; raise net.core.wmem_max \
         to at least that, or run with CAP_NET_ADMIN"
    )]
    BatchTooLong {
        /// What was attempted.
        what: String,
        /// The length of the batch, in bytes.
        length: usize,
    },

    /// The kernel's answer is not what the protocol says.
    #[error("cannot {what}: the kernel's answer is malformed ({why})")]
    Malformed {
        /// What was attempted.
        what: String,
        /// What is wrong with the answer.
        why: &'static str,
    },

    /// The process may not have a user namespace of its own.
    #[error("cannot enter a user namespace: {hint}")]
    UserNamespace {
        /// Why, and what to do.
        hint: &'static str,
        /// The kernel's error number.
        #[source]
        errno: Errno,
    },

    /// There is no link with this name.
    #[error("no link has the name {name:?}")]
    NoLink {
        /// The name.
        name: String,
    },

    /// A file of a kernel file system (`/proc`) could not be read or written.
    #[error("cannot {what} {}{}", path.display(), advice(hint))]
    File {
        /// What was attempted, as a verb phrase that ends before the path ("read", "write 1 to").
        what: String,
        /// The file.
        path: PathBuf,
        /// What to do about it; empty when nothing is known.
        hint: &'static str,
        /// The error of the file operation.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error of a failed system call.
    pub fn kernel(what: impl fmt::Display, errno: Errno) -> Self {
        Self::Kernel { what: what.to_string(), message: None, offset: None, errno }
    }

    /// Whether the kernel refused to add an object because it is there.
    pub fn is_there_already(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Whether the kernel refused to find or delete an object because it is not there.
    pub fn is_not_there(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL))
    }

    /// Whether the kernel found a value of the request to make no sense.
    pub fn is_invalid(&self) -> bool {
        self.errno() == Some(Errno::INVAL)
    }

    /// The kernel's error number, for the variants that have one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } | Self::UserNamespace { errno, .. } => Some(*errno),
            Self::File { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }
}

/// The kernel's own words, as a suffix.
struct Detail<'a>(&'a Option<String>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(message) => write!(f, ": the kernel says \"{message}\""),
            None => Ok(()),
        }
    }
}

/// What to do about an error number, as a suffix.
struct Hint(Errno);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Errno::PERM | Errno::ACCESS => {
                f.write_str(": needs CAP_NET_ADMIN (run as root or in a user namespace)")
            }
            Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => {
                f.write_str(": this kernel lacks the feature (module not loaded or not built)")
            }
            _ => Ok(()),
        }
    }
}

fn advice(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(": {hint}") }
}
