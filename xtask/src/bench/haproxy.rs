//! HAProxy in TCP mode with splicing, as a peer of our own proxy.

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kpng_testkit::network::Host;

use super::process::cpu_time_of;

/// A running HAProxy. It ends when it is dropped.
pub(super) struct Haproxy {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Haproxy {
    /// The ports on which it listens, at all addresses of its host.
    pub(super) const PORTS: [u16; 2] = [7080, 7081];

    /// Starts it on a host, leading to these ports of `server`. `None` when it is not installed.
    #[expect(clippy::disallowed_methods, reason = "it is a peer to compare with")]
    pub(super) fn start(host: &Host, server: IpAddr, to: [u16; 2]) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("haproxy.cfg");
        let mut config = String::from(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  \
             timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n",
        );
        for (port, to) in Self::PORTS.into_iter().zip(to) {
            config += &format!("listen p{port}\n  bind :{port}\n  server s {server}:{to}\n");
        }
        fs::write(&path, config)?;
        let started = host.run(move || {
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-q").arg("-f").arg(path).stdin(Stdio::null()).spawn()
        });
        let child = match started {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            child => child.context("start haproxy")?,
        };
        std::thread::sleep(Duration::from_millis(500));
        Ok(Some(Self { child, _folder: folder }))
    }

    /// The processor time that it has used.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        cpu_time_of(self.child.id())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
