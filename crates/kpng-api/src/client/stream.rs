//! Streams of operations.

use std::error::Error as StdError;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tonic::{Code, Response, Status, Streaming};

use crate::address::Target;
use crate::error::Error;
use crate::proto::localv1::{OpItem, WatchReq};

/// How many requests may wait until the server takes them.
const REQUESTS: usize = 4;

/// The operations of one stream, as they come. Dropping it ends the stream.
#[derive(Debug)]
pub struct OpStream<R = WatchReq> {
    requests: mpsc::Sender<R>,
    operations: Streaming<OpItem>,
    target: Target,
    /// It is a stream over TLS, and nothing has come yet.
    doubtful: bool,
}

/// The sending side of a stream's requests, and the stream of them, which begins with `first`.
pub(super) fn requests<R: Send + 'static>(
    first: R,
) -> (mpsc::Sender<R>, impl Stream<Item = R> + Send + 'static) {
    let (sender, receiver) = mpsc::channel(REQUESTS);
    let next = |(first, mut receiver): (Option<R>, mpsc::Receiver<R>)| async {
        let request = match first {
            Some(request) => request,
            None => receiver.recv().await?,
        };
        Some((request, (None, receiver)))
    };
    (sender, futures_util::stream::unfold((Some(first), receiver), next))
}

impl<R> OpStream<R> {
    /// The stream, if the server has accepted it in time.
    pub(super) fn accepted(
        requests: mpsc::Sender<R>,
        answer: Result<Result<Response<Streaming<OpItem>>, Status>, Elapsed>,
        target: &Target,
        tls: bool,
        limit: Duration,
    ) -> Result<Self, Error> {
        let target = target.clone();
        match answer {
            Ok(Ok(response)) => {
                let operations = response.into_inner();
                Ok(Self { requests, operations, target, doubtful: tls })
            }
            Ok(Err(status)) => Err(failed(target, &status, tls)),
            Err(_) => Err(Error::ConnectTimeout { target, limit }),
        }
    }

    /// The next operation; `None` when the server ends the stream. Cancel safe.
    ///
    /// # Errors
    /// When the stream breaks, or holds a message that is too long or none at all.
    pub async fn next(&mut self) -> Result<Option<OpItem>, Error> {
        let next = self.operations.message().await;
        let doubtful = std::mem::replace(&mut self.doubtful, false);
        next.map_err(|status| failed(self.target.clone(), &status, doubtful))
    }

    /// Asks for one more answer. Servers that push need it only to be asked for something else.
    ///
    /// Does nothing while several requests are still on their way.
    pub fn ask(&self, request: R) {
        // Otherwise the stream has ended, which `next` says.
        self.requests.try_send(request).ok();
    }

    /// The server.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// What h2 says of a TLS alert, whose first bytes it takes for the length of a frame.
const NOT_A_FRAME: &str = "frame with invalid size";

/// The error that a status is. With `tls`, nothing has come over a TLS connection.
fn failed(target: Target, status: &Status, tls: bool) -> Error {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    add_causes(&mut text, status);
    if text.contains(NOT_A_FRAME) {
        text.push_str(" (servers with TLS answer like this to clients without)");
    }
    // In TLS 1.3 a client has begun to talk when the server looks at its certificate.
    if tls && matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Internal) {
        text.push_str(" (this is also how a server refuses a client's certificate)");
    }
    Error::Stream { target, code: status.code(), reason: text }
}

/// An error's text, with its causes where it does not tell them.
pub(super) fn reason(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    add_causes(&mut text, error);
    text
}

fn add_causes(text: &mut String, error: &dyn StdError) {
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
}
