//! SIGTERM and SIGINT end the process cleanly; a second one ends it at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Says when to end. Clones wait for the same end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Listens to the signals from now on.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            let name = received(&mut signals).await;
            info!(signal = name, "ending; what is in force stays");
            sender.send_replace(true);
            received(&mut signals).await;
            end_at_once();
        });
        Ok(Self(receiver))
    }

    /// Completes when the process shall end.
    pub async fn wait(mut self) {
        // Who sends only goes when the process does.
        if self.0.wait_for(|end| *end).await.is_err() {
            std::future::pending().await
        }
    }
}

async fn received([terminate, interrupt]: &mut [Signal; 2]) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[expect(clippy::exit, reason = "who sends a second signal does not want to wait")]
fn end_at_once() -> ! {
    std::process::exit(130)
}
