//! What can be typed: sources, sinks and their flags.
//!
//! This module is the one place that knows flags and their spellings. Flags of a source and of the
//! local side are global, so that they may stand before or after the sub-commands, as in KPNG; where
//! kube-proxy spells a flag differently, its spelling works too.

mod api;
pub mod backends;
mod inspect;
mod node;
#[cfg(feature = "playground")]
mod playground;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use kpng_api::address::ListenAddress;
use kpng_core::backend::Counting;

pub use api::{ApiArgs, ListenTlsArgs, ToApiArgs, WatchArgs, WatchCommand};
pub use backends::{BackendCommand, Chosen, Work};
pub use inspect::{
    AskArgs, CheckArgs, Destination, DiffArgs, DumpArgs, DumpWhat, ExplainArgs, PacketSource,
};
pub use node::{DetectLocalMode, NodeArgs};
#[cfg(feature = "playground")]
pub use playground::{PlaygroundArgs, PlaygroundCommand};
pub use values::{List, NodePortAddresses};

use crate::http::BindAddress;
use values::{counting, duration};

fn healthz_address(text: &str) -> Result<BindAddress, crate::http::Error> {
    BindAddress::parse(text, 10256)
}

fn metrics_address(text: &str) -> Result<BindAddress, crate::http::Error> {
    BindAddress::parse(text, 10249)
}

/// The Kubernetes service proxy.
#[derive(Debug, Parser)]
#[command(
    name = "kpng",
    version,
    about = "Kubernetes service proxy",
    long_about = "Kubernetes service proxy: learns from a SOURCE what the cluster's Services are, and \
                  makes a SINK follow.\n\n\
                  On a node:       kpng kube --kubeconfig=F to-local to-nft\n\
                  From a file:     kpng file --input F to-local to-nft\n\
                  For many nodes:  kpng kube to-api  +  kpng local --api=… to-nft\n\
                  Only to look:    kpng file --input F to-local to-nft --dry-run\n\
                  To play:         kpng playground",
    arg_required_else_help = true,
    subcommand_value_name = "SOURCE",
    subcommand_help_heading = "Sources",
    disable_help_subcommand = false
)]
pub struct Cli {
    /// Logging.
    #[command(flatten)]
    pub logging: LoggingArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Sources, and what needs none.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow a Kubernetes API server
    #[command(arg_required_else_help = true)]
    Kube {
        /// How to reach it.
        #[command(flatten)]
        kube: KubeArgs,
        /// The local side.
        #[command(flatten)]
        local: LocalArgs,
        /// Where it goes.
        #[command(subcommand)]
        sink: Sink,
    },
    /// Follow a file: KPNG's YAML or Kubernetes manifests
    #[command(arg_required_else_help = true)]
    File {
        /// Which file.
        #[command(flatten)]
        file: FileArgs,
        /// The local side.
        #[command(flatten)]
        local: LocalArgs,
        /// Where it goes.
        #[command(subcommand)]
        sink: Sink,
    },
    /// Follow what a kpng server says of the cluster
    #[command(arg_required_else_help = true)]
    Api {
        /// How to reach it.
        #[command(flatten)]
        api: ApiArgs,
        /// The local side.
        #[command(flatten)]
        local: LocalArgs,
        /// Where it goes.
        #[command(subcommand)]
        sink: Sink,
    },
    /// Follow what a kpng server has worked out for this node, for a backend
    #[command(arg_required_else_help = true, subcommand_value_name = "BACKEND")]
    Local {
        /// How to reach it.
        #[command(flatten)]
        api: ApiArgs,
        /// The local side.
        #[command(flatten)]
        local: LocalArgs,
        /// Who gets it.
        #[command(subcommand)]
        backend: BackendCommand,
    },
    /// Print what a kpng server says, operation by operation
    #[command(arg_required_else_help = true)]
    Watch {
        /// How to reach it.
        #[command(flatten)]
        api: ApiArgs,
        /// How to print it.
        #[command(flatten)]
        watch: WatchArgs,
        /// Which API.
        #[command(subcommand)]
        what: WatchCommand,
    },
    /// Say what happens to a packet on a node, and why
    #[command(arg_required_else_help = true, after_help = inspect::EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Print what a kpng knows, or would write
    #[command(arg_required_else_help = true)]
    Dump(DumpArgs),
    /// Print how two states differ, in terms of frontends and endpoints
    #[command(arg_required_else_help = true)]
    Diff(DiffArgs),
    /// See whether the kernel holds what it shall: ends with 0 if so, 1 if not, 2 if nobody can tell
    Check(CheckArgs),
    /// Play with Services and a real backend, in a network of its own: no cluster, no root
    #[cfg(feature = "playground")]
    #[command(after_help = playground::EXAMPLES)]
    Playground(PlaygroundArgs),
    /// List the backends, and what each cannot do
    Backends {
        /// In which form.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Remove everything that any backend of kpng ever wrote on this node
    Cleanup,
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Sinks of a source.
#[derive(Debug, Subcommand)]
#[command(subcommand_value_name = "SINK", subcommand_help_heading = "Sinks")]
pub enum Sink {
    /// Serve kpng's gRPC API, for many nodes
    ToApi(ToApiArgs),
    /// Write the state of the cluster into a file, which the source `file` reads
    ToFile(ToFileArgs),
    /// Work out what the Services mean on this node, for a backend
    #[command(arg_required_else_help = true, subcommand_value_name = "BACKEND")]
    ToLocal {
        /// Who gets it.
        #[command(subcommand)]
        backend: BackendCommand,
    },
}

impl Sink {
    /// Whether it does something that lasts, and is more than a look.
    pub fn goes_on(&self) -> bool {
        match self {
            Self::ToApi(_) => true,
            Self::ToFile(args) => !args.once,
            Self::ToLocal { backend } => !backend.is_look(),
        }
    }
}

/// `--output`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON value.
    Json,
    /// A table in Markdown.
    #[value(hide = true)]
    Markdown,
}

/// Logging.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// Verbosity: 0 for warnings and important events, 2 for more, 4 for debugging, 6 for everything
    #[arg(short = 'v', long = "v", global = true, default_value_t = 1, value_name = "N")]
    pub verbosity: u8,
    /// Format of log lines, which go to standard error
    #[arg(
        long,
        visible_alias = "logging-format",
        global = true,
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of `kube`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "API server")]
pub struct KubeArgs {
    /// Kubeconfig file [default: $KUBECONFIG, then the service account of the pod]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's
    #[arg(long, visible_alias = "master", global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Serve only Services whose label service.kubernetes.io/service-proxy-name has this value
    /// [default: those without the label]
    #[arg(long, global = true, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Labels of Services to keep, as globs of their keys
    #[arg(long, global = true, value_delimiter = ',', value_name = "GLOBS")]
    pub with_service_labels: Vec<String>,
    /// Annotations of Services to keep, as globs of their keys
    #[arg(long, global = true, value_delimiter = ',', value_name = "GLOBS")]
    pub with_service_annotations: Vec<String>,
    /// Labels of Nodes to keep, as globs of their keys
    #[arg(
        long,
        global = true,
        value_delimiter = ',',
        value_name = "GLOBS",
        default_value = "kubernetes.io/hostname,topology.kubernetes.io/zone,topology.kubernetes.io/region"
    )]
    pub with_node_labels: Vec<String>,
    /// Annotations of Nodes to keep, as globs of their keys
    #[arg(long, global = true, value_delimiter = ',', value_name = "GLOBS")]
    pub with_node_annotations: Vec<String>,
    /// Write Kubernetes Events about Services that cannot be served as they want to be
    #[arg(long, global = true, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_name = "BOOL")]
    pub events: bool,
}

/// Flags of `file`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "File")]
pub struct FileArgs {
    /// The file; it is read again when it changes
    #[arg(short, long, global = true, value_name = "FILE", default_value = "globalv1-state.yaml")]
    pub input: PathBuf,
}

/// Flags of `to-file`.
#[derive(Clone, Debug, Args)]
pub struct ToFileArgs {
    /// The file; it is replaced when the state changes
    #[arg(short, long, value_name = "FILE", default_value = "global-state.yaml")]
    pub output: PathBuf,
    /// Write the first complete state, and end
    #[arg(long)]
    pub once: bool,
}

/// Flags of the local side.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct LocalArgs {
    /// What the node is told about itself.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Shortest time between two updates of the kernel; changes gather meanwhile
    #[arg(
        long,
        visible_aliases = ["iptables-min-sync-period", "ipvs-min-sync-period"],
        global = true,
        value_parser = duration,
        default_value = "20ms",
        value_name = "TIME"
    )]
    pub min_sync_period: Duration,
    /// Health and metrics.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Connection tracking.
    #[command(flatten)]
    pub conntrack: ConntrackArgs,
    /// Serve what the Services mean on this node beside the backend, at tcp://HOST:PORT or unix:///PATH
    #[arg(
        long,
        global = true,
        value_delimiter = ',',
        value_name = "ADDRS",
        help_heading = "Serving kpng's API"
    )]
    pub also_listen: Vec<ListenAddress>,
    /// Where `kpng explain`, `dump` and `check` ask this process [default: /run/kpng/admin.sock, where that
    /// is possible]; empty for nowhere
    #[arg(long, global = true, value_name = "PATH", help_heading = "Asking a running kpng")]
    pub admin_socket: Option<OsString>,
    /// The TLS of that, and of `to-api`.
    #[command(flatten)]
    pub listen_tls: ListenTlsArgs,
}

/// Health and metrics.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct ServingArgs {
    /// Where /healthz, /livez and /readyz are served; empty for nowhere
    #[arg(long, global = true, default_value = "0.0.0.0:10256", value_parser = healthz_address, value_name = "ADDR:PORT")]
    pub healthz_bind_address: BindAddress,
    /// Where /metrics is served, and the page (--web); empty for nowhere
    #[arg(long, global = true, default_value = "127.0.0.1:10249", value_parser = metrics_address, value_name = "ADDR:PORT")]
    pub metrics_bind_address: BindAddress,
    /// Serve a page for people at the address of the metrics
    #[arg(long, global = true, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub web: bool,
    /// Count connections and refused packets of each service port: true, false, or auto for as long as
    /// there are no more than 1000 of them
    #[arg(long, global = true, num_args = 0..=1, default_value = "auto", default_missing_value = "true", require_equals = true, value_parser = counting, value_name = "WHEN")]
    pub service_metrics: Counting,
    /// End when one of these addresses cannot be bound, instead of trying again
    #[arg(long, global = true, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub bind_address_hard_fail: bool,
    /// How long an update may wait before the proxy calls itself unhealthy
    #[arg(long, global = true, value_parser = duration, default_value = "60s", value_name = "TIME")]
    pub health_timeout: Duration,
}

/// Connection tracking, by kube-proxy's flags. Limits are left alone unless given.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection tracking")]
pub struct ConntrackArgs {
    /// Raise the limit of tracked connections to this many per core
    #[arg(long, global = true, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Raise the limit of tracked connections to at least this
    #[arg(long, global = true, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// Timeout of idle TCP connections
    #[arg(long, global = true, value_parser = duration, value_name = "TIME")]
    pub conntrack_tcp_timeout_established: Option<Duration>,
    /// Timeout of half-closed TCP connections
    #[arg(long, global = true, value_parser = duration, value_name = "TIME")]
    pub conntrack_tcp_timeout_close_wait: Option<Duration>,
    /// Timeout of UDP flows that were not answered
    #[arg(long, global = true, value_parser = duration, value_name = "TIME")]
    pub conntrack_udp_timeout: Option<Duration>,
    /// Timeout of UDP flows that were answered
    #[arg(long, global = true, value_parser = duration, value_name = "TIME")]
    pub conntrack_udp_timeout_stream: Option<Duration>,
    /// Let packets pass that fit no connection (asymmetric routes)
    #[arg(
        long,
        visible_alias = "conntrack-tcp-be-liberal",
        global = true,
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        require_equals = true,
        value_name = "BOOL"
    )]
    pub conntrack_be_liberal: bool,
}
