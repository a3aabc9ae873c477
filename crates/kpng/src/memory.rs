//! Keeps the process as small as what it holds.

use std::time::Duration;

use kpng_api::server::Stats;
use kpng_core::store::Reader;
use kpng_linux::memory::give_back;

/// From how many changed services on the memory that a change took, or left, is worth a look.
pub const LARGE_CHANGE: usize = 1000;

/// How many views are encoded in a [`ROUND`] when many clients come at once.
const CROWD: u64 = 20_000;

/// How often to look. A server has forgotten by the next round what it encoded for a crowd.
const ROUND: Duration = Duration::from_secs(10);

/// Gives memory back to the kernel after large changes, and after many clients have come to a server.
pub async fn give_back_after_peaks<V: PartialEq>(mut reader: Reader<V>, server: &Stats) -> ! {
    let (mut due, mut encodings) = (false, 0);
    loop {
        tokio::time::sleep(ROUND).await;
        let large = reader.try_next().is_some_and(|update| update.services.len() >= LARGE_CHANGE);
        let before = std::mem::replace(&mut encodings, server.encodings.get());
        let peak = large || encodings - before >= CROWD;
        if due && !peak {
            // What it does is invisible but for the memory.
            tokio::task::spawn_blocking(give_back).await.ok();
        }
        due = peak;
    }
}
