//! `to-exec`: the lines of `to-json` to a program's standard input.
//!
//! The program is started again when it ends, with back-off, and then gets the whole state: it needs
//! to remember nothing.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kpng_core::backoff::Backoff;
use kpng_core::local::Localize;
use kpng_core::store::Store;
use tracing::{info, warn};

use super::json;

/// A program that ran this long was well: the next failure is the first again.
const HEALTHY: Duration = Duration::from_secs(30);

/// Keeps `command` running with the local view of `node` on its standard input, until `shutdown`
/// completes. Then its standard input is closed, and it has five seconds to end.
///
/// # Errors
/// When the program cannot be started in the first place.
pub async fn run<V: Localize>(
    store: &Store<V>,
    node: Arc<str>,
    command: &[String],
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut started_before = false;
    loop {
        let started = Instant::now();
        match start(command) {
            Ok(mut child) => {
                started_before = true;
                info!(program = command[0], "started the program");
                let mut input = child.stdin.take().expect("standard input is a pipe");
                let lines = json::run(
                    store.reader(),
                    Arc::clone(&node),
                    &mut input,
                    std::future::pending(),
                );
                tokio::select! {
                    () = &mut shutdown => {
                        drop(input);
                        stop(child).await;
                        return Ok(());
                    }
                    status = child.wait() => match status {
                        Ok(status) => warn!(program = command[0], %status, "the program ended"),
                        Err(error) => warn!(program = command[0], %error, "the program is lost"),
                    },
                    written = lines => {
                        if written.is_ok() {
                            drop(input);
                            stop(child).await;
                            return Ok(()); // the source is gone
                        }
                        warn!(program = command[0], "the program closed its standard input");
                        stop(child).await;
                    }
                }
            }
            Err(error) if started_before => {
                warn!(program = command[0], %error, "cannot start the program again");
            }
            Err(error) => {
                let program = &command[0];
                return Err(anyhow::Error::new(error).context(format!(
                    "cannot start {program:?}: check that it exists and is executable"
                )));
            }
        }
        if started.elapsed() > HEALTHY {
            backoff.reset();
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "to start a program is what to-exec is for")]
fn start(command: &[String]) -> std::io::Result<tokio::process::Child> {
    tokio::process::Command::from(std::process::Command::new(&command[0]))
        .args(&command[1..])
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

async fn stop(mut child: tokio::process::Child) {
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        warn!(%error, "cannot end the program");
    }
}
