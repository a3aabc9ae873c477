//! Work for answers that may block, which therefore has a thread of its own and takes turns.
//!
//! A turn ends with the work itself, not with the patience of who asked for it: so there are never more
//! threads at it than turns, whatever clients do.

use std::sync::Arc;

use hyper::StatusCode;
use tokio::sync::Semaphore;

use super::{Answer, TEXT, answer};

/// So many pieces of work at once; more wait for their turn. Clones share them.
#[derive(Clone, Debug)]
pub struct Blocking(Arc<Semaphore>);

impl Blocking {
    /// `turns` at once.
    pub fn new(turns: usize) -> Self {
        Self(Arc::new(Semaphore::new(turns)))
    }

    /// The answer that `work` makes. If it panics, that is the answer.
    pub async fn answer(&self, work: impl FnOnce() -> Answer + Send + 'static) -> Answer {
        let turn = Arc::clone(&self.0).acquire_owned().await;
        let work = move || {
            let _turn = turn.expect("it is never closed");
            work()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            let text = format!("the answer could not be worked out: {error}\n");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
        })
    }
}
