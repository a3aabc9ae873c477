//! A host of the virtual network: a namespace with a thread in it.
//!
//! A socket stays in the namespace where it was created, so only creating it takes the host's
//! thread; probes and servers run anywhere.

use std::net::{IpAddr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kpng_linux::namespace::NetNs;
use kpng_linux::rtnetlink::Rtnetlink;
use kpng_linux::sysctl;

use crate::server::{Server, Style};

type Job = Box<dyn FnOnce() + Send>;

/// A host of the virtual network.
#[derive(Debug)]
pub struct Host {
    name: String,
    addresses: Vec<IpAddr>,
    namespace: NetNs,
    servers: Mutex<Vec<Server>>,
    /// `None` only while the host is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// A host without interfaces, except the loopback. Its addresses are assigned later.
    pub(crate) fn new(name: &str, addresses: Vec<IpAddr>) -> Self {
        let namespace = NetNs::new().expect("a network namespace was created before");
        let inside = namespace.try_clone().expect("file descriptors are left");
        let (jobs, queue) = channel::<Job>();
        let run = move || {
            inside.enter().expect("the namespace is our own");
            queue.into_iter().for_each(|job| job());
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = Some(thread.expect("threads are left"));
        let servers = Mutex::new(Vec::new());
        let host =
            Self { name: name.to_owned(), addresses, namespace, servers, jobs: Some(jobs), thread };
        host.configure(|rtnetlink| {
            set_defaults()?;
            let loopback = rtnetlink.link("lo")?.index;
            rtnetlink.set_up(loopback)
        });
        host
    }

    /// The name, which its servers answer with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All its addresses, IPv4 first, of each family the primary one first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The primary IPv4 address.
    pub fn v4(&self) -> IpAddr {
        crate::primary(&self.addresses, std::net::Ipv4Addr::UNSPECIFIED.into())
            .expect("a host has both families")
    }

    /// The primary IPv6 address.
    pub fn v6(&self) -> IpAddr {
        crate::primary(&self.addresses, Ipv6Addr::UNSPECIFIED.into())
            .expect("a host has both families")
    }

    /// The network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Runs `f` on the host's thread and returns what it returns. A panic continues here.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = move || {
            let outcome = catch_unwind(AssertUnwindSafe(f));
            done.send(outcome).expect("the caller waits");
        };
        let jobs = self.jobs.as_ref().expect("the host is not dropped");
        jobs.send(Box::new(job)).expect("the host's thread takes jobs until it is dropped");
        let outcome = result.recv().expect("the job answers, even when it panics");
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Answers on these TCP, UDP and SCTP ports, of both families, until the host is dropped. The
    /// answer tells the host's name and the client's address.
    ///
    /// # Panics
    /// When a port is taken.
    pub fn serve(&self, ports: &[u16]) {
        self.start(ports, Style::Answer);
    }

    /// Sends back what is received on these TCP and UDP ports, of both families, and keeps TCP
    /// connections open.
    ///
    /// # Panics
    /// When a port is taken.
    pub fn serve_echo(&self, ports: &[u16]) {
        self.start(ports, Style::Echo);
    }

    /// Closes all ports and connections of the servers.
    pub fn stop_serving(&self) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn start(&self, ports: &[u16], style: Style) {
        let server = Server::start(self, ports, style);
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// Changes the host's network configuration.
    pub(crate) fn configure(
        &self,
        change: impl FnOnce(&mut Rtnetlink) -> kpng_linux::Result<()> + Send + 'static,
    ) {
        if let Err(error) = self.try_configure(change) {
            panic!("cannot configure host {}: {error} ({error:?})", self.name);
        }
    }

    /// Changes the host's network configuration, which the kernel may refuse.
    pub(crate) fn try_configure(
        &self,
        change: impl FnOnce(&mut Rtnetlink) -> kpng_linux::Result<()> + Send + 'static,
    ) -> kpng_linux::Result<()> {
        self.run(|| Rtnetlink::open().and_then(|mut rtnetlink| change(&mut rtnetlink)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_serving();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of a job was handed to its caller, so the thread ends well.
            thread.join().expect("the host's thread ends when nobody can send jobs");
        }
    }
}

/// What interfaces inherit when they are created, and what would disturb tests.
fn set_defaults() -> kpng_linux::Result<()> {
    // Addresses are usable at once.
    sysctl::set("net/ipv6/conf/default/accept_dad", "0")?;
    sysctl::set("net/ipv6/conf/default/accept_ra", "0")?;
    for conf in ["all", "default"] {
        // Packets may come back on the interface where they went out.
        sysctl::set(&format!("net/ipv4/conf/{conf}/rp_filter"), "0")?;
        sysctl::set(&format!("net/ipv4/conf/{conf}/send_redirects"), "0")?;
        sysctl::set(&format!("net/ipv4/conf/{conf}/accept_redirects"), "0")?;
        sysctl::set(&format!("net/ipv6/conf/{conf}/accept_redirects"), "0")?;
    }
    // Many refusals in a row are all reported.
    sysctl::set("net/ipv4/icmp_ratelimit", "0")?;
    sysctl::set("net/ipv6/icmp/ratelimit", "0")
}
