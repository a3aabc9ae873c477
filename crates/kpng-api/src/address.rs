//! Where servers listen, and how clients name them.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;

/// Where a server listens (KPNG's `--listen`): `tcp://HOST:PORT`, `tcp://:PORT` for all addresses of
/// both families, or `unix:///PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP port.
    Tcp {
        /// An address, or a name that has one; `None` for all addresses.
        host: Option<String>,
        /// The port; the kernel chooses one for 0.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = match text.split_once("://") {
            Some(("tcp", rest)) => host_and_port(rest).map(|(host, port)| {
                let host = (!host.is_empty()).then(|| host.to_owned());
                Self::Tcp { host, port }
            }),
            Some(("unix", path)) => socket_path(path).map(Self::Unix),
            _ => Err("give tcp://HOST:PORT, tcp://:PORT or unix:///PATH"),
        };
        parsed.map_err(|problem| Error::Address { address: text.to_owned(), problem })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => {
                write!(f, "tcp://{}", HostAndPort(host.as_deref().unwrap_or_default(), *port))
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A server to connect to, by grpc-go's names: `HOST:PORT`, `[IPV6]:PORT`, `dns:///HOST:PORT`,
/// `unix:///PATH`, `unix:PATH`; and by the server's own: `tcp://HOST:PORT`, `unix://PATH`.
///
/// A name is resolved at each attempt to connect, and all its addresses are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp {
        /// An address or a name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = if let Some(path) = text.strip_prefix("unix:") {
            socket_path(path.strip_prefix("//").unwrap_or(path)).map(Self::Unix)
        } else {
            let prefixes = ["tcp://", "dns:///", "dns:"];
            let rest = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
            tcp_target(rest.unwrap_or(text))
        };
        parsed.map_err(|problem| Error::Address { address: text.to_owned(), problem })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => HostAndPort(host, *port).fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

fn tcp_target(text: &str) -> Result<Target, &'static str> {
    if text.contains('/') {
        return Err("give HOST:PORT, tcp://HOST:PORT, dns:///HOST:PORT or unix:///PATH");
    }
    match host_and_port(text)? {
        ("", _) => Err("the host is missing"),
        (_, 0) => Err("nothing can be reached at port 0"),
        (host, port) => Ok(Target::Tcp { host: host.to_owned(), port }),
    }
}

/// Shown so that it can be read back.
struct HostAndPort<'a>(&'a str, u16);

impl fmt::Display for HostAndPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The host, which may be empty, and the port.
fn host_and_port(text: &str) -> Result<(&str, u16), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    let host = if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("a bracket is missing")?;
        // The zone of a link local address is the resolver's business.
        let (address, _zone) = inner.split_once('%').unwrap_or((inner, ""));
        address.parse::<Ipv6Addr>().map_err(|_| "there is no IPv6 address between the brackets")?;
        inner
    } else if host.contains(':') {
        return Err("an IPv6 address is written like [::1]:PORT");
    } else if host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        host
    } else {
        return Err("the host is neither an address nor a name");
    };
    // A sign would be accepted otherwise.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| port.parse().ok()).flatten();
    Ok((host, port.ok_or("the port is no number up to 65535")?))
}

fn socket_path(path: &str) -> Result<PathBuf, &'static str> {
    let is_file = !path.ends_with('/') && Path::new(path).file_name().is_some();
    if is_file { Ok(path.into()) } else { Err("there is no path of a socket after unix://") }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Parses each text, shows what it means, and that this is read back as the same.
    fn check<T>(texts: &[&str], expected: Expect)
    where
        T: FromStr<Err = Error> + fmt::Display + fmt::Debug + PartialEq,
    {
        let mut shown = String::new();
        for text in texts {
            let line = match text.parse::<T>() {
                Ok(address) => {
                    assert_eq!(address.to_string().parse::<T>().unwrap(), address);
                    format!("{text} = {address}\n")
                }
                Err(error) => format!("{error}\n"),
            };
            shown += &line;
        }
        expected.assert_eq(&shown);
    }

    #[test]
    fn servers_listen_on_ports_and_sockets() {
        check::<ListenAddress>(
            &[
                "tcp://:12090",
                "tcp://127.0.0.1:12090",
                "tcp://[::1]:12090",
                "tcp://[fe80::1%eth0]:1",
                "tcp://[::]:0",
                "tcp://node-1.example:1",
                "unix:///run/kpng.sock",
                "unix://relative.sock",
            ],
            expect![[r"
                tcp://:12090 = tcp://:12090
                tcp://127.0.0.1:12090 = tcp://127.0.0.1:12090
                tcp://[::1]:12090 = tcp://[::1]:12090
                tcp://[fe80::1%eth0]:1 = tcp://[fe80::1%eth0]:1
                tcp://[::]:0 = tcp://[::]:0
                tcp://node-1.example:1 = tcp://node-1.example:1
                unix:///run/kpng.sock = unix:///run/kpng.sock
                unix://relative.sock = unix://relative.sock
            "]],
        );
    }

    #[test]
    fn servers_do_not_listen_on_nonsense() {
        check::<ListenAddress>(
            &[
                "",
                ":12090",
                "udp://:1",
                "tcp://",
                "tcp://host",
                "tcp://host:",
                "tcp://host:+1",
                "tcp://host:65536",
                "tcp://::1:80",
                "tcp://[::1:80",
                "tcp://[host]:80",
                "tcp://a/b:80",
                "unix://",
                "unix:///run/",
            ],
            expect![[r#"
                bad address "": give tcp://HOST:PORT, tcp://:PORT or unix:///PATH
                bad address ":12090": give tcp://HOST:PORT, tcp://:PORT or unix:///PATH
                bad address "udp://:1": give tcp://HOST:PORT, tcp://:PORT or unix:///PATH
                bad address "tcp://": the port is missing
                bad address "tcp://host": the port is missing
                bad address "tcp://host:": the port is no number up to 65535
                bad address "tcp://host:+1": the port is no number up to 65535
                bad address "tcp://host:65536": the port is no number up to 65535
                bad address "tcp://::1:80": an IPv6 address is written like [::1]:PORT
                bad address "tcp://[::1:80": a bracket is missing
                bad address "tcp://[host]:80": there is no IPv6 address between the brackets
                bad address "tcp://a/b:80": the host is neither an address nor a name
                bad address "unix://": there is no path of a socket after unix://
                bad address "unix:///run/": there is no path of a socket after unix://
            "#]],
        );
    }

    #[test]
    fn clients_name_servers_as_grpc_does() {
        check::<Target>(
            &[
                "127.0.0.1:12090",
                "kpng.kube-system.svc:12090",
                "[::1]:12090",
                "tcp://host:1",
                "dns:///host:1",
                "dns:host:1",
                "unix:///run/kpng.sock",
                "unix:/run/kpng.sock",
                "unix:relative.sock",
                "unix://relative.sock",
            ],
            expect![[r"
                127.0.0.1:12090 = 127.0.0.1:12090
                kpng.kube-system.svc:12090 = kpng.kube-system.svc:12090
                [::1]:12090 = [::1]:12090
                tcp://host:1 = host:1
                dns:///host:1 = host:1
                dns:host:1 = host:1
                unix:///run/kpng.sock = unix:///run/kpng.sock
                unix:/run/kpng.sock = unix:///run/kpng.sock
                unix:relative.sock = unix://relative.sock
                unix://relative.sock = unix://relative.sock
            "]],
        );
    }

    #[test]
    fn clients_do_not_connect_to_nonsense() {
        check::<Target>(
            &[
                "",
                "host",
                ":12090",
                "tcp://:12090",
                "host:0",
                "::1:80",
                "http://host:1",
                "dns://resolver/host:1",
                "unix:",
                "unix:///",
            ],
            expect![[r#"
                bad address "": the port is missing
                bad address "host": the port is missing
                bad address ":12090": the host is missing
                bad address "tcp://:12090": the host is missing
                bad address "host:0": nothing can be reached at port 0
                bad address "::1:80": an IPv6 address is written like [::1]:PORT
                bad address "http://host:1": give HOST:PORT, tcp://HOST:PORT, dns:///HOST:PORT or unix:///PATH
                bad address "dns://resolver/host:1": give HOST:PORT, tcp://HOST:PORT, dns:///HOST:PORT or unix:///PATH
                bad address "unix:": there is no path of a socket after unix://
                bad address "unix:///": there is no path of a socket after unix://
            "#]],
        );
    }
}
