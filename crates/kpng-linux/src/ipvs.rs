//! IPVS: virtual services and their destinations, by generic netlink.
//!
//! What is forwarded here is translated (`masq`, as `ipvsadm -m`): the kernel rewrites destination
//! address and port. Of what the kernel can do beside, only what is there is shown.

mod message;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::genetlink;
use crate::netlink::{MessageBuf, Protocol, Socket};
use crate::rtnetlink::Family;
use crate::{Error, Result};

/// The name of the family.
const FAMILY: &str = "IPVS";

/// How many commands go to the kernel in one datagram at most.
const COMMANDS_PER_DATAGRAM: usize = 256;

/// What identifies a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceKey {
    /// Packets to this address, protocol (`IPPROTO_*`) and port.
    Address {
        /// The destination address.
        address: IpAddr,
        /// The protocol's number.
        protocol: u8,
        /// The destination port.
        port: u16,
    },
    /// Packets of this family whose mark is exactly this, which comes before the address.
    Mark {
        /// The family of the packets.
        family: Family,
        /// The mark, not 0.
        mark: u32,
    },
}

impl ServiceKey {
    /// The family of its packets.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Mark { family, .. } => *family,
        }
    }
}

impl fmt::Display for ServiceKey {
    /// As ipvsadm's options say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, protocol, port } => {
                let option = match protocol {
                    6 => "-t",
                    17 => "-u",
                    _ => "--sctp-service",
                };
                write!(f, "{option} {}", SocketAddr::new(*address, *port))
            }
            Self::Mark { family: Family::V4, mark } => write!(f, "-f {mark}"),
            Self::Mark { family: Family::V6, mark } => write!(f, "-f {mark} -6"),
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What identifies it.
    pub key: ServiceKey,
    /// The name of its scheduler.
    pub scheduler: String,
    /// How long a client stays with its destination, in whole seconds.
    pub persistence: Option<Duration>,
    /// Of the schedulers `sh` and `mh`: a client whose destination has the weight 0 gets another one,
    /// instead of a refusal (`IP_VS_SVC_F_SCHED1`).
    pub falls_back: bool,
    /// It has `flag-3` (`IP_VS_SVC_F_SCHED3`), which the kernel keeps and no scheduler looks at: for
    /// owners who want to know their services again.
    pub tagged: bool,
}

impl fmt::Display for Service {
    /// As ipvsadm's options say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -s {}", self.key, self.scheduler)?;
        if let Some(time) = self.persistence {
            write!(f, " -p {}", time.as_secs())?;
        }
        match (self.falls_back, self.tagged) {
            (false, false) => Ok(()),
            (false, true) => f.write_str(" -b flag-3"),
            (true, false) => write!(f, " -b {}-fallback", self.scheduler),
            (true, true) => write!(f, " -b {}-fallback,flag-3", self.scheduler),
        }
    }
}

/// Where a virtual service sends packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address, of the family of the service.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// How much it gets. With 0 only packets of the connections that it has.
    pub weight: u32,
}

impl fmt::Display for Destination {
    /// As ipvsadm's options say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-r {} -m -w {}", SocketAddr::new(self.address, self.port), self.weight)
    }
}

/// A destination as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundDestination {
    /// It.
    pub destination: Destination,
    /// Packets for it are translated, as those of all destinations that are made here.
    pub is_translated: bool,
    /// How many connections it has, of whatever state.
    pub connections: u32,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Adds a virtual service that is not there.
    AddService(Service),
    /// Changes one that is there. Its connections stay.
    SetService(Service),
    /// Deletes one with all its destinations.
    DeleteService(ServiceKey),
    /// Adds a destination that is not there.
    AddDestination(ServiceKey, Destination),
    /// Changes the weight of one that is there. Its connections stay.
    SetDestination(ServiceKey, Destination),
    /// Deletes a destination.
    DeleteDestination(ServiceKey, Destination),
}

impl fmt::Display for Command {
    /// As a line of `ipvsadm -R`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "-A {service}"),
            Self::SetService(service) => write!(f, "-E {service}"),
            Self::DeleteService(key) => write!(f, "-D {key}"),
            Self::AddDestination(key, to) => write!(f, "-a {key} {to}"),
            Self::SetDestination(key, to) => write!(f, "-e {key} {to}"),
            Self::DeleteDestination(key, to) => {
                write!(f, "-d {key} -r {}", SocketAddr::new(to.address, to.port))
            }
        }
    }
}

/// How long IPVS remembers connections without packets. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: Option<Duration>,
    /// TCP connections of which one side has ended.
    pub tcp_fin: Option<Duration>,
    /// UDP flows.
    pub udp: Option<Duration>,
}

/// A connection to the kernel's IPVS.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Opens a connection to the network namespace of the calling thread. The kernel loads the module
    /// `ip_vs` for it.
    ///
    /// # Errors
    /// [`Error::NoFamily`] when this kernel has no IPVS.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::open(Protocol::Generic, 0)?;
        let family = genetlink::family(&mut socket, FAMILY)?;
        Ok(Self { socket, family })
    }

    /// All virtual services.
    ///
    /// # Errors
    /// As [`Socket::list`].
    pub fn services(&mut self) -> Result<Vec<Service>> {
        let mut request = message::list_services(self.family);
        self.socket.list(&"list virtual services", &mut request, message::service)
    }

    /// How many connections each virtual service was given since it is there.
    ///
    /// # Errors
    /// As [`Socket::list`].
    pub fn connections(&mut self) -> Result<Vec<(ServiceKey, u64)>> {
        let mut request = message::list_services(self.family);
        let what = "list what virtual services have counted";
        self.socket.list(&what, &mut request, message::connections)
    }

    /// The virtual service with this key, if there is one.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn service(&mut self, key: ServiceKey) -> Result<Option<Service>> {
        let mut request = message::get_service(self.family, key);
        let mut found = None;
        let what = format_args!("find virtual service {key}");
        let result = self.socket.query(&what, &mut request, |reply| {
            found = message::service(reply);
            Ok(())
        });
        match result {
            Err(error) if error.is_not_there() => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// The destinations of a virtual service; none when there is no such service.
    ///
    /// # Errors
    /// As [`Socket::list`].
    pub fn destinations(&mut self, key: ServiceKey) -> Result<Vec<FoundDestination>> {
        let mut request = message::list_destinations(self.family, key);
        let what = format_args!("list the destinations of virtual service {key}");
        let decode = |reply: crate::netlink::Message<'_>| message::destination(reply, key.family());
        self.socket.list(&what, &mut request, decode)
    }

    /// Carries out commands in order. Each is a change of its own: those around one that the kernel
    /// refuses are carried out. Gives the refusals, with the number of the command.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel's answers are not to be had.
    pub fn apply(&mut self, commands: &[Command]) -> Result<Vec<(usize, Error)>> {
        let mut refused = Vec::new();
        let mut request = MessageBuf::new();
        for (round, commands) in commands.chunks(COMMANDS_PER_DATAGRAM).enumerate() {
            request.clear();
            for command in commands {
                message::command(&mut request, self.family, command);
            }
            let name = |number: usize| format!("change IPVS ({})", commands[number]);
            self.socket.request_each(&name, &mut request, |number, error| {
                refused.push((round * COMMANDS_PER_DATAGRAM + number, error));
            })?;
        }
        Ok(refused)
    }

    /// Sets the timeouts of connections, of the whole network namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        let mut request = message::set_timeouts(self.family, timeouts);
        self.socket.request(&"set the timeouts of IPVS", &mut request)
    }
}
