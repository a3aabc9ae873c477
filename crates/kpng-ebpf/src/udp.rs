//! Ends UDP sockets that are connected to an endpoint that a service does not have any more.
//!
//! Such a socket would go on sending to nobody for ever: nothing tells it, and its packets are not
//! looked at. Its application gets `ECONNABORTED`. Only sockets that our programs sent there end.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use kpng_core::plan::Target;
use kpng_linux::namespace::NetNs;
use kpng_linux::sock_diag::{ConnectedSocket, SockDiag};
use tracing::{debug, warn};

use crate::layout::{self, Endpoint, Frontend, MemberKey};
use crate::object::Object;
use crate::{Error, sys};

/// What it takes to end sockets, apart from everybody else.
struct Ending {
    gone: Vec<(MemberKey, Target)>,
    peers: OwnedFd,
    frontends: OwnedFd,
}

/// Ends the sockets that are connected to endpoints that are gone, in all network namespaces, in the
/// background: looking for these takes time in proportion to the threads on the node.
pub(crate) fn end_sockets(object: &Object, gone: &[(MemberKey, Target)]) -> Result<(), Error> {
    if gone.is_empty() {
        return Ok(());
    }
    let failed = |source: io::Error| Error::Descriptor { source };
    let ending = Ending {
        gone: gone.to_vec(),
        peers: object.map("peers").try_clone_to_owned().map_err(failed)?,
        frontends: object.map("frontends").try_clone_to_owned().map_err(failed)?,
    };
    let thread = thread::Builder::new().name("udp".into()).spawn(move || ending.run());
    thread.map(drop).map_err(failed)
}

impl Ending {
    fn run(&self) {
        let mut ended = 0;
        for path in namespaces() {
            // Its last process may be gone meanwhile.
            let Ok(namespace) = NetNs::open(&path) else { continue };
            match namespace.run(|| self.end_here()) {
                Ok(Ok(count)) => ended += count,
                Ok(Err(error)) | Err(error) => {
                    warn!("cannot end UDP sockets to endpoints that are gone: {error}");
                }
            }
        }
        debug!("ended {ended} UDP sockets to endpoints that are gone");
    }

    fn end_here(&self) -> kpng_linux::Result<usize> {
        let mut diag = SockDiag::open()?;
        let mut ended = 0;
        for (member, target) in &self.gone {
            let to = SocketAddr::new(target.address, target.port);
            for socket in diag.udp_sockets_to(to)? {
                if self.is_ours(&socket, member, *target) && diag.destroy_udp(&socket)? {
                    ended += 1;
                }
            }
        }
        Ok(ended)
    }

    /// Our programs sent it there, for the service port that has lost the endpoint.
    fn is_ours(&self, socket: &ConnectedSocket, member: &MemberKey, target: Target) -> bool {
        let key = layout::peer_key(socket.cookie, target);
        let frontend: Endpoint = match sys::lookup(self.peers.as_fd(), &key) {
            Ok(Some(frontend)) => frontend,
            _ => return false,
        };
        let key = layout::udp_frontend_key(&frontend);
        let now: Option<Frontend> = sys::lookup(self.frontends.as_fd(), &key).unwrap_or(None);
        now.is_none_or(|now| layout::is_of_service_port(&now, member))
    }
}

/// A path for each network namespace that some thread is in.
fn namespaces() -> Vec<PathBuf> {
    let (mut seen, mut paths) = (BTreeSet::new(), Vec::new());
    let list = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    for process in list("/proc") {
        let tasks = process.path().join("task");
        for task in list(&tasks.to_string_lossy()) {
            let path = task.path().join("ns/net");
            if fs::metadata(&path).is_ok_and(|namespace| seen.insert(namespace.ino())) {
                paths.push(path);
            }
        }
    }
    paths
}
