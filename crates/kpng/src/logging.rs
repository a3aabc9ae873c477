//! Log lines: structured, on standard error, and few when nothing changes.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::{LogFormat, LoggingArgs};

/// Starts logging for the process.
///
/// # Panics
/// When logging has been started before.
pub fn start(args: &LoggingArgs) {
    let level = match args.verbosity {
        0 => LevelFilter::WARN,
        1..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Libraries speak up for people who debug them, and are quiet otherwise.
    let libraries = if args.verbosity >= 8 { LevelFilter::DEBUG } else { LevelFilter::WARN };
    let filter = Targets::new().with_default(libraries).with_target("kpng", level);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => {
            registry
                .with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal()))
                .init();
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
}
