//! Flags of kpng's own API: where it is served and how it is reached.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kpng_api::address::{ListenAddress, Target};
use kpng_api::client;
use kpng_api::tls::TlsFiles;

/// How to reach servers of kpng's API.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "kpng's API")]
pub struct ApiArgs {
    /// Servers that all say the same, as HOST:PORT or unix:///PATH; one is used at a time
    #[arg(
        long,
        global = true,
        value_delimiter = ',',
        default_value = "127.0.0.1:12090",
        value_name = "ADDRS"
    )]
    pub api: Vec<Target>,
    /// Private key of the certificate to show to servers
    #[arg(long, global = true, value_name = "FILE")]
    pub api_client_tls_key: Option<PathBuf>,
    /// Certificate to show to servers
    #[arg(long, global = true, value_name = "FILE")]
    pub api_client_tls_crt: Option<PathBuf>,
    /// CA that has signed the servers' certificates; with any of these files TLS is used
    /// [default: those that the system trusts]
    #[arg(long, global = true, value_name = "FILE")]
    pub api_client_tls_ca: Option<PathBuf>,
    /// The name that servers' certificates must have [default: the host of --api]
    #[arg(long, global = true, value_name = "NAME")]
    pub api_client_tls_server_name: Option<String>,
}

impl ApiArgs {
    /// What the flags say.
    pub fn config(self) -> client::Config {
        client::Config {
            targets: self.api,
            tls: TlsFiles {
                key: self.api_client_tls_key,
                cert: self.api_client_tls_crt,
                ca: self.api_client_tls_ca,
            },
            server_name: self.api_client_tls_server_name,
        }
    }
}

/// The TLS of servers of the API.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Serving kpng's API")]
pub struct ListenTlsArgs {
    /// Private key of the server's certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub listen_tls_key: Option<PathBuf>,
    /// The server's certificate; with it TLS is used
    #[arg(long, global = true, value_name = "FILE")]
    pub listen_tls_crt: Option<PathBuf>,
    /// Clients must show a certificate that this CA has signed
    #[arg(long, global = true, value_name = "FILE")]
    pub listen_tls_ca: Option<PathBuf>,
}

impl ListenTlsArgs {
    /// What the flags say.
    pub fn files(&self) -> TlsFiles {
        TlsFiles {
            key: self.listen_tls_key.clone(),
            cert: self.listen_tls_crt.clone(),
            ca: self.listen_tls_ca.clone(),
        }
    }
}

/// Flags of `to-api`.
#[derive(Clone, Debug, Args)]
pub struct ToApiArgs {
    /// Where to listen: tcp://HOST:PORT, tcp://:PORT or unix:///PATH
    #[arg(long, value_delimiter = ',', default_value = "tcp://:12090", value_name = "ADDRS")]
    pub listen: Vec<ListenAddress>,
    /// Serve what the cluster says
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub globalv1_api: bool,
    /// Serve what it means on each node
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub local_api: bool,
    /// Let a client see only the node that is the common name of its certificate, `system:node:NAME`
    /// or NAME; needs --listen-tls-ca
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub authorize_node_name: bool,
    /// Common names of clients that --authorize-node-name lets see everything
    #[arg(long, value_delimiter = ',', requires = "authorize_node_name", value_name = "NAMES")]
    pub authorize_global: Vec<String>,
    /// Connections at once; more are turned away
    #[arg(long, default_value_t = 20_000, value_parser = connections, value_name = "N")]
    pub max_connections: usize,
}

fn connections(text: &str) -> Result<usize, String> {
    // What tokio's semaphores can count.
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err(format!("{text:?} is no number from 1 to 1000000")),
    }
}

/// Flags of `watch`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct WatchArgs {
    /// Print a JSON object for each operation
    #[arg(long, global = true)]
    pub json: bool,
    /// End after the first complete state
    #[arg(long, global = true)]
    pub once: bool,
}

/// What `watch` watches.
#[derive(Clone, Debug, Subcommand)]
#[command(subcommand_value_name = "API", subcommand_help_heading = "APIs")]
pub enum WatchCommand {
    /// What the Services mean on a node
    Local {
        /// Which node [default: the host name]
        #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
        node_name: Option<String>,
    },
    /// What the cluster says
    Global,
}
