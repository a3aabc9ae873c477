//! Giving way to a successor on a living node, and telling others who serves it.
//!
//! The process whose rules are replaced or removed has to be told: it would take that for a
//! disturbance, and repair it. It then leaves the rules alone, and goes on with the connections that
//! it has. Whoever compares the rules with a plan has to know the proxy's ports, and asks for them. The
//! socket is an abstract one, so it is one for each network namespace.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use tracing::{info, warn};

use crate::engine::{Ports, Shared};

const NAME: &str = "kpng-userspacelin";

/// What is asked.
const GIVE_WAY: &str = "give way\n";
const WHICH_PORTS: &str = "which ports\n";

/// No question is longer, in bytes.
const LONGEST: u64 = 64;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Asks the process that serves this network namespace, if there is one, to give way.
pub(crate) fn succeed() -> io::Result<()> {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, PermissionDenied};
    let start = Instant::now();
    loop {
        match ask(GIVE_WAY) {
            Ok(answer) if answer == "done\n" => return Ok(()),
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

/// The ports of the process that serves this network namespace; `None` when there is none.
pub(crate) fn serving() -> io::Result<Option<Ports>> {
    let answer = match ask(WHICH_PORTS) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        answer => answer?,
    };
    let mut ports = answer.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(tcp)), Some(Ok(udp))) => Ok(Some(Ports { tcp, udp })),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not tell its ports")),
    }
}

fn ask(question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect_addr(&address()?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits for a successor on a thread of its own, and sets `retired` when one comes. Until then it tells
/// whoever asks the ports.
pub(crate) fn wait(ports: Ports, shared: Arc<Shared>, retired: Arc<AtomicBool>) -> io::Result<()> {
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
            match stream.and_then(|stream| answer(stream, ports, &shared, &retired)) {
                Ok(()) if retired.load(Ordering::Acquire) => {
                    return info!("another process serves this node now");
                }
                Ok(()) => {}
                Err(error) => warn!(%error, "somebody asked who serves this node, in vain"),
            }
        }
    };
    std::thread::Builder::new().name("successor".to_owned()).spawn(work)?;
    Ok(())
}

fn answer(
    mut stream: UnixStream,
    ports: Ports,
    shared: &Shared,
    retired: &AtomicBool,
) -> io::Result<()> {
    let asks = socket_peercred(&stream)?.uid;
    if !asks.is_root() && asks != geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut question = String::new();
    BufReader::new(&stream).take(LONGEST).read_line(&mut question)?;
    match question.as_str() {
        GIVE_WAY => {
            retired.store(true, Ordering::Release);
            shared.affinity.save();
            stream.write_all(b"done\n")
        }
        WHICH_PORTS => writeln!(stream, "{} {}", ports.tcp, ports.udp),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
