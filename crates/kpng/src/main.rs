//! The `kpng` command. It only parses, runs, and says in one line what went wrong.

use std::process::ExitCode;

use clap::Parser;
use kpng::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = kpng::app::failure_code(&cli.command);
    kpng::app::run(cli).unwrap_or_else(|error| {
        report(&error);
        failure
    })
}

#[expect(clippy::print_stderr, reason = "this is for the person who typed the command")]
fn report(error: &anyhow::Error) {
    let mut message = "kpng".to_owned();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors tell their cause themselves.
        if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    eprintln!("{message}");
}
