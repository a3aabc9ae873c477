//! Flags of the commands that ask: `explain`, `dump`, `diff` and `check`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use kpng_core::model::Protocol;

use super::{NodeArgs, Output};

/// What stands at the end of the help of `explain`.
pub(super) const EXPLAIN_EXAMPLES: &str = "\
Examples:
  kpng explain 10.180.0.1 172.30.0.10:80
  kpng explain node '[fd00:172:30::20]:53/udp' --output json
  kpng explain --file dump.yaml 203.0.113.2 192.168.0.2:30080";

/// Who is asked.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Whom to ask")]
pub struct AskArgs {
    /// Ask a file instead of a running kpng: a dump, KPNG's YAML, or Kubernetes manifests
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The socket of the running kpng
    #[arg(long, value_name = "PATH", default_value = crate::admin::DEFAULT_SOCKET)]
    pub admin_socket: PathBuf,
    /// Of a file: serve only Services whose label service.kubernetes.io/service-proxy-name has this value
    #[arg(long, value_name = "NAME", requires = "file")]
    pub service_proxy_name: Option<String>,
    /// Of a file: which backend is meant; see `kpng backends`
    #[arg(long, value_name = "NAME", default_value = crate::backends::ALL[0].name)]
    pub backend: String,
    /// Of a file that is no dump: what the node is told about itself.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Where the packet comes from: an address, or `node` for the node itself
    #[arg(value_name = "SRC")]
    pub source: PacketSource,
    /// Where it goes; the protocol is TCP, UDP or SCTP
    #[arg(value_name = "DST:PORT[/PROTO]")]
    pub destination: Destination,
    /// The interface that it comes in through, where pods are told by that
    #[arg(long, value_name = "NAME")]
    pub interface: Option<Arc<str>>,
    /// In which form
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Flags of `dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// What to print
    #[arg(value_enum)]
    pub what: DumpWhat,
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// What can be dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpWhat {
    /// What the Services mean on the node: a line of JSON for each
    Services,
    /// What shall happen to packets: frontends, and where they lead
    Plan,
    /// What the backend writes, in the language of its tool
    Ruleset,
    /// Everything in one file, which `kpng explain --file`, `kpng diff` and `kpng file` read
    State,
}

impl DumpWhat {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Plan => "plan",
            Self::Ruleset => "ruleset",
            Self::State => "state",
        }
    }
}

/// Flags of `diff`.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// The state before: a dump, KPNG's YAML, or Kubernetes manifests
    pub before: PathBuf,
    /// The state after
    pub after: PathBuf,
    /// In which form
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    /// Serve only Services whose label service.kubernetes.io/service-proxy-name has this value
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Of files that are no dumps: what the node is told about itself.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// In which form
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
    /// Who is asked.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `SRC` of `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketSource {
    /// The node itself.
    Node,
    /// This address.
    Address(IpAddr),
}

impl FromStr for PacketSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "node" {
            return Ok(Self::Node);
        }
        text.parse()
            .map(|address: IpAddr| Self::Address(address.to_canonical()))
            .map_err(|_| format!("{text:?} is no IP address, nor `node`"))
    }
}

/// `DST:PORT[/PROTO]` of `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let protocol = Protocol::from_name(&protocol.to_ascii_uppercase())
            .ok_or_else(|| format!("{protocol:?} is no protocol: it is TCP, UDP or SCTP"))?;
        let address: SocketAddr = address.parse().map_err(|_| {
            format!("{address:?} is no address and port such as 10.96.0.1:80 or [fd00::1]:80")
        })?;
        Ok(Self { address: address.ip().to_canonical(), port: address.port(), protocol })
    }
}
