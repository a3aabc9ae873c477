//! Sockets that are listened on.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use tracing::warn;

use crate::address::ListenAddress;
use crate::error::Error;

/// How many connections the kernel keeps for us: all nodes may come back at once.
const BACKLOG: u32 = 4096;

/// How long a process that was killed may listen on.
const END: Duration = Duration::from_secs(2);

/// How often to look whether a Unix socket is still there.
const LOOK: Duration = Duration::from_secs(5);

/// Who may connect to a Unix socket: its owner and its group.
const UNIX_MODE: u32 = 0o660;

/// A socket that is listened on.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A connection before anything was said.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `address` from now on.
    pub(super) async fn bind(address: &ListenAddress) -> Result<Self, Error> {
        let bound = match address {
            ListenAddress::Tcp { host, port } => {
                bind_tcp(host.as_deref(), *port).await.map(Self::Tcp)
            }
            ListenAddress::Unix(path) => listen_unix(path, UNIX_MODE).await.map(Self::Unix),
        };
        bound.map_err(|source| Error::Listen { address: address.clone(), source })
    }

    /// What is listened on, with the port that the kernel chose.
    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        Ok(match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                ListenAddress::Tcp { host: Some(address.ip().to_string()), port: address.port() }
            }
            Self::Unix(socket) => ListenAddress::Unix(socket.file.path.clone()),
        })
    }

    /// The next connection. Cancel safe.
    pub(super) async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            let (listener, file) = match self {
                Self::Unix(UnixSocket { listener, file }) => (listener, file),
                Self::Tcp(listener) => {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    return Ok(Stream::Tcp(stream));
                }
            };
            if let Ok(accepted) = timeout(LOOK, listener.accept()).await {
                return Ok(Stream::Unix(accepted?.0));
            }
            // Where another server has put its own socket, that one is meant now.
            if !file.path.exists() {
                let path = file.path.clone();
                *self = Self::Unix(listen_unix(&path, UNIX_MODE).await?);
                warn!("{} was removed, and is there again", path.display());
            }
        }
    }
}

async fn bind_tcp(host: Option<&str>, port: u16) -> io::Result<TcpListener> {
    let Some(host) = host else { return listen_everywhere(port, BACKLOG) };
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in tokio::net::lookup_host((host, port)).await? {
        result = listen(address, BACKLOG);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Listens on all addresses of both families, where the kernel has both. `backlog` connections wait in
/// the kernel. Must be called inside a tokio runtime.
///
/// # Errors
/// What the kernel says.
pub fn listen_everywhere(port: u16, backlog: u32) -> io::Result<TcpListener> {
    match listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), backlog) {
        Err(error) if lacks_ipv6(&error) => {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), backlog)
        }
        result => result,
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let lacking = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno))
}

/// Listens on one address; on `[::]` for both families. `backlog` connections wait in the kernel. Must
/// be called inside a tokio runtime.
///
/// # Errors
/// What the kernel says.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            let only_v6 = !address.ip().is_unspecified();
            rustix::net::sockopt::set_ipv6_v6only(&socket, only_v6)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// A socket file of ours, removed when it is not needed any more.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another server may have put its own there.
        if self.is_there() {
            // Who cannot remove it leaves it: the next server replaces it.
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// A Unix socket that is listened on. Its file is removed with it.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl UnixSocket {
    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// Listens on `path`. A socket file that a dead server left is replaced; it is put in place complete,
/// with its mode, so nobody gets in before. Must be called inside a tokio runtime.
///
/// # Errors
/// What the kernel says, and when another process listens there.
pub async fn listen_unix(path: &Path, mode: u32) -> io::Result<UnixSocket> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Ok(_) => await_end(path).await?,
        Err(_) => {}
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let listener = bind_temporary(&temporary, mode)?;
    let file = std::fs::metadata(&temporary).and_then(|file| {
        std::fs::rename(&temporary, path)?;
        Ok(SocketFile { path: path.to_owned(), inode: file.ino() })
    });
    let file = file.inspect_err(|_| {
        std::fs::remove_file(&temporary).ok();
    })?;
    Ok(UnixSocket { listener, file })
}

/// Waits until nobody listens on `path`: a process that was killed a moment ago may not be gone yet.
async fn await_end(path: &Path) -> io::Result<()> {
    let begun = Instant::now();
    while let Ok(stream) = UnixStream::connect(path).await {
        if begun.elapsed() > END {
            let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let process = process.map(|id| format!(" ({id})")).unwrap_or_default();
            let problem = format!("another process{process} is listening there");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, problem));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn bind_temporary(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
