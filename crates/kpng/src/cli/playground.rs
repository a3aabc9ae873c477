//! Flags of `playground`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What stands at the end of the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  kpng playground
  kpng playground --scenario rolling-update
  kpng playground --state cluster.yaml --backend iptables
  kpng playground shell client            # in another terminal: a shell where the client is
  kpng playground shell web-0 ip route";

/// Flags of `playground`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlaygroundArgs {
    /// Something else than to play.
    #[command(subcommand)]
    pub command: Option<PlaygroundCommand>,
    /// Which backend serves the node; see `kpng backends`
    #[arg(long, value_name = "NAME", default_value = crate::backends::ALL[0].name)]
    pub backend: String,
    /// Which guided scenario; see --list [default: tour]
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<String>,
    /// The state file. One that exists is shown as it is; else the scenario is written to it
    /// [default: a file in memory, which goes with the playground]
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Print lines instead of drawing on the terminal, and go through the scenario by itself
    #[arg(long)]
    pub plain: bool,
    /// Go through the scenario, compare everything with the plan, and end: with 0 if all is right
    #[arg(long)]
    pub once: bool,
    /// List the scenarios
    #[arg(long)]
    pub list: bool,
}

/// Commands of `playground`.
#[derive(Clone, Debug, Subcommand)]
pub enum PlaygroundCommand {
    /// Run a shell, or a command, where a host of the running playground is
    Shell {
        /// client, node, visitor, or the name of a pod
        host: String,
        /// The command and its arguments [default: $SHELL]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Wait for the end of standard input, then remove a control group when nobody is in it
    #[command(hide = true)]
    Sweep {
        /// Its directory
        group: PathBuf,
    },
}
