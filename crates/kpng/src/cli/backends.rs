//! The backends' commands and flags, and what is chosen by them.

#[cfg(feature = "ipvs")]
mod ipvs;

use clap::{Args, Subcommand};

#[cfg(feature = "ipvs")]
pub use ipvs::IpvsArgs;

use super::LocalArgs;
use crate::backends::{Choice, Healthchecks};

/// Backends, and sinks for integrators.
#[derive(Debug, Subcommand)]
#[command(subcommand_help_heading = "Backends")]
pub enum BackendCommand {
    /// Program the kernel's nf_tables
    #[cfg(feature = "nft")]
    ToNft(NftArgs),
    /// Program the kernel by iptables-restore
    #[cfg(feature = "iptables")]
    ToIptables(IptablesArgs),
    /// Attach eBPF programs to sockets and devices
    #[cfg(feature = "ebpf")]
    ToEbpf(EbpfArgs),
    /// Program the kernel's IPVS
    #[cfg(feature = "ipvs")]
    ToIpvs(IpvsArgs),
    /// Proxy connections in this process, to which the kernel's nf_tables leads services
    #[cfg(feature = "userspacelin")]
    ToUserspacelin(UserspacelinArgs),
    /// Answer health check node ports only, for those who have a data path of their own
    ToHealthchecks,
    /// Print a line of JSON for each changed service
    ToJson,
    /// Give such lines to a program's standard input; it is started again when it ends
    ToExec {
        /// The program and its arguments.
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CMD"
        )]
        command: Vec<String>,
    },
}

/// What the command line chose.
#[derive(Debug)]
pub enum Chosen {
    /// A backend, and what it is to do.
    Backend(Box<dyn Choice>, Work),
    /// `to-json`.
    Json,
    /// `to-exec`, with the program and its arguments.
    Exec(Vec<String>),
}

impl BackendCommand {
    /// Whether it only prints what would be written, or removes what was.
    pub fn is_look(&self) -> bool {
        self.common().is_some_and(|common| common.dry_run || common.cleanup)
    }

    /// The flags that every backend with a data path has.
    fn common(&self) -> Option<&BackendArgs> {
        match self {
            #[cfg(feature = "nft")]
            Self::ToNft(args) => Some(&args.common),
            #[cfg(feature = "iptables")]
            Self::ToIptables(args) => Some(&args.common),
            #[cfg(feature = "ebpf")]
            Self::ToEbpf(args) => Some(&args.common),
            #[cfg(feature = "ipvs")]
            Self::ToIpvs(args) => Some(&args.common),
            #[cfg(feature = "userspacelin")]
            Self::ToUserspacelin(args) => Some(&args.common),
            Self::ToHealthchecks | Self::ToJson | Self::ToExec { .. } => None,
        }
    }

    /// What was chosen, for a node with these flags.
    #[cfg_attr(
        not(any(
            feature = "nft",
            feature = "iptables",
            feature = "ipvs",
            feature = "userspacelin"
        )),
        expect(unused_variables, reason = "they are for backends that use conntrack")
    )]
    pub fn chosen(self, local: &LocalArgs) -> Chosen {
        match self {
            #[cfg(feature = "nft")]
            Self::ToNft(args) => {
                let config = kpng_nft::Config {
                    masquerade_bit: args.common.masquerade_bit,
                    conntrack_be_liberal: local.conntrack.conntrack_be_liberal,
                    counting: local.serving.service_metrics,
                };
                args.common.chosen(config)
            }
            #[cfg(feature = "iptables")]
            Self::ToIptables(args) => {
                let config = kpng_iptables::Config {
                    masquerade_bit: args.common.masquerade_bit,
                    conntrack_be_liberal: local.conntrack.conntrack_be_liberal,
                    variant: args.iptables_variant.map(Into::into),
                };
                args.common.chosen(config)
            }
            #[cfg(feature = "ebpf")]
            Self::ToEbpf(args) => args.common.clone().chosen(args.config()),
            #[cfg(feature = "ipvs")]
            Self::ToIpvs(args) => {
                let config = args.config(local);
                args.common.chosen(config)
            }
            #[cfg(feature = "userspacelin")]
            Self::ToUserspacelin(args) => {
                let config = kpng_userspace::Config {
                    masquerade_bit: args.common.masquerade_bit,
                    conntrack_be_liberal: local.conntrack.conntrack_be_liberal,
                    max_connections: args.max_connections,
                    tcp_idle_timeout: args.tcp_idle_timeout,
                    udp_idle_timeout: args.udp_idle_timeout,
                    drain_timeout: args.drain_timeout,
                    state_dir: args.state_dir,
                    transparent: args.transparent,
                };
                args.common.chosen(config)
            }
            Self::ToHealthchecks => {
                Chosen::Backend(Box::new(Healthchecks), Work::Run { replace_kube_proxy: false })
            }
            Self::ToJson => Chosen::Json,
            Self::ToExec { command } => Chosen::Exec(command),
        }
    }
}

/// What a backend is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Remove what it ever wrote.
    Cleanup,
    /// Print what it would write.
    DryRun,
    /// Follow the source.
    Run {
        /// Then remove what kube-proxy left.
        replace_kube_proxy: bool,
    },
}

/// Flags of every backend with a data path.
#[derive(Clone, Debug, Args)]
pub struct BackendArgs {
    /// Print what would be written for the first complete state, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove everything that this backend of kpng ever wrote, and end
    #[arg(long)]
    pub cleanup: bool,
    /// When our data path is in force, remove what kube-proxy left
    #[arg(long)]
    pub replace_kube_proxy: bool,
    /// Which bit of the packet mark means "to be masqueraded"
    #[arg(
        long,
        visible_alias = "iptables-masquerade-bit",
        global = true,
        default_value_t = 14,
        value_parser = clap::value_parser!(u8).range(0..32),
        value_name = "BIT"
    )]
    pub masquerade_bit: u8,
}

impl BackendArgs {
    /// The backend `choice` with what these flags say it is to do.
    #[cfg_attr(
        not(any(
            feature = "nft",
            feature = "iptables",
            feature = "ebpf",
            feature = "ipvs",
            feature = "userspacelin"
        )),
        expect(dead_code, reason = "there is no backend with a data path")
    )]
    fn chosen(&self, choice: impl Choice + 'static) -> Chosen {
        let work = match *self {
            Self { cleanup: true, .. } => Work::Cleanup,
            Self { dry_run: true, .. } => Work::DryRun,
            Self { replace_kube_proxy, .. } => Work::Run { replace_kube_proxy },
        };
        Chosen::Backend(Box::new(choice), work)
    }
}

/// Flags of `to-nft`.
#[cfg(feature = "nft")]
#[derive(Clone, Debug, Args)]
pub struct NftArgs {
    /// Those of every backend.
    #[command(flatten)]
    pub common: BackendArgs,
}

/// Flags of `to-iptables`.
#[cfg(feature = "iptables")]
#[derive(Clone, Debug, Args)]
pub struct IptablesArgs {
    /// Those of every backend.
    #[command(flatten)]
    pub common: BackendArgs,
    /// Which iptables [default: the one that others use on this node]
    #[arg(long, value_enum, value_name = "VARIANT")]
    pub iptables_variant: Option<IptablesVariant>,
}

/// `--iptables-variant`
#[cfg(feature = "iptables")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IptablesVariant {
    /// The kernel's x_tables, by iptables-legacy.
    Legacy,
    /// The kernel's nf_tables, by iptables-nft.
    Nft,
}

#[cfg(feature = "iptables")]
impl From<IptablesVariant> for kpng_iptables::Variant {
    fn from(variant: IptablesVariant) -> Self {
        match variant {
            IptablesVariant::Legacy => Self::Legacy,
            IptablesVariant::Nft => Self::Nft,
        }
    }
}

/// Flags of `to-ebpf`.
#[cfg(feature = "ebpf")]
#[derive(Clone, Debug, Args)]
pub struct EbpfArgs {
    /// Those of every backend.
    #[command(flatten)]
    pub common: BackendArgs,
    /// The control group (version 2) whose sockets are served [default: the root of the hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<std::path::PathBuf>,
    /// Our own directory in a BPF file system, for programs and maps that outlive the process
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/kpng")]
    pub bpffs_root: std::path::PathBuf,
    /// Devices at which packets are served: names, or beginnings of names with `+` behind
    /// [default: all that are up and belong to no bridge]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub devices: Vec<String>,
    /// How programs are attached to devices
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub attach: Attach,
    /// Source ports of masqueraded connections, which nobody else may use
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535", value_parser = port_range)]
    pub snat_ports: std::ops::RangeInclusive<u16>,
    /// How many directions of connections are remembered, two for each
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1024..))]
    pub flows: u32,
}

#[cfg(feature = "ebpf")]
impl EbpfArgs {
    fn config(self) -> kpng_ebpf::Config {
        kpng_ebpf::Config {
            root: self.bpffs_root,
            cgroup_root: self.cgroup_root,
            devices: self.devices,
            attach: self.attach.into(),
            snat_ports: self.snat_ports,
            flows: self.flows,
            ..kpng_ebpf::Config::default()
        }
    }
}

/// `--attach`
#[cfg(feature = "ebpf")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Attach {
    /// By what the kernel has, tcx before clsact.
    Auto,
    /// By tcx, which Linux has since 6.6.
    Tcx,
    /// By filters of the qdisc clsact.
    Clsact,
}

#[cfg(feature = "ebpf")]
impl From<Attach> for kpng_ebpf::Attach {
    fn from(attach: Attach) -> Self {
        match attach {
            Attach::Auto => Self::Auto,
            Attach::Tcx => Self::Tcx,
            Attach::Clsact => Self::Clsact,
        }
    }
}

#[cfg(feature = "ebpf")]
fn port_range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let bounds = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)));
    match bounds {
        Some((first, last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err("two ports, the lower one first, such as 61000-65535".to_owned()),
    }
}

/// Flags of `to-userspacelin`.
#[cfg(feature = "userspacelin")]
#[derive(Clone, Debug, Args)]
pub struct UserspacelinArgs {
    /// Those of every backend.
    #[command(flatten)]
    pub common: BackendArgs,
    /// How many connections and UDP flows there may be at a time [default: half of the open files that
    /// the system allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// How long a TCP connection may be without a byte
    #[arg(long, value_parser = super::values::duration, default_value = "24h", value_name = "TIME")]
    pub tcp_idle_timeout: std::time::Duration,
    /// How long a UDP flow may be without a datagram
    #[arg(long, value_parser = super::values::duration, default_value = "60s", value_name = "TIME")]
    pub udp_idle_timeout: std::time::Duration,
    /// How long connections may go on after SIGTERM
    #[arg(long, value_parser = super::values::duration, default_value = "30s", value_name = "TIME")]
    pub drain_timeout: std::time::Duration,
    /// Where session affinity is kept over a restart
    #[arg(long, default_value = "/run/kpng", value_name = "FOLDER")]
    pub state_dir: std::path::PathBuf,
    /// Let pods of this node see clients' addresses where other backends do; it takes the next bit of the
    /// packet mark too
    #[arg(long)]
    pub transparent: bool,
}
