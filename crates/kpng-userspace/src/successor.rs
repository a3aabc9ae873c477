//! Giving way to a successor on a living node.
//!
//! The process whose rules are replaced or removed has to be told: it would take that for a
//! disturbance, and repair it. It then leaves the rules alone, and goes on with the connections that
//! it has. The socket is an abstract one, so it is one for each network namespace.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use tracing::{info, warn};

use crate::engine::Shared;

const NAME: &str = "kpng-userspacelin";

/// How long a successor waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Asks the process that serves this network namespace, if there is one, to give way.
pub(crate) fn succeed() -> io::Result<()> {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, PermissionDenied};
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) if answer == b"done\n" => return Ok(()),
            Err(error) if error.kind() == ConnectionRefused => return Ok(()),
            // It has just ended for somebody else.
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if start.elapsed() > PATIENCE {
            return Err(PermissionDenied.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask() -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect_addr(&address()?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"give way\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Waits for a successor on a thread of its own, and sets `retired` when one comes.
pub(crate) fn wait(shared: Arc<Shared>, retired: Arc<AtomicBool>) -> io::Result<()> {
    // The one before closes its socket when it has answered.
    let start = Instant::now();
    let listener = loop {
        match UnixListener::bind_addr(&address()?) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            listener => break listener?,
        }
    };
    let work = move || {
        for stream in listener.incoming() {
            match stream.and_then(|stream| give_way(stream, &shared, &retired)) {
                Ok(()) => return info!("another process serves this node now"),
                Err(error) => warn!(%error, "somebody asked us to give way, in vain"),
            }
        }
    };
    std::thread::Builder::new().name("successor".to_owned()).spawn(work)?;
    Ok(())
}

fn give_way(mut stream: UnixStream, shared: &Shared, retired: &AtomicBool) -> io::Result<()> {
    let asks = socket_peercred(&stream)?.uid;
    if !asks.is_root() && asks != geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    retired.store(true, Ordering::Release);
    shared.affinity.save();
    stream.write_all(b"done\n")
}
