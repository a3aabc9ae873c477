//! One stream: requests in, answers out.
//!
//! KPNG's rules, and what they lacked: each request gets one answer, which ends with Sync; the first
//! comes even if there is nothing; a change that the client cannot see is no answer. An answer is
//! made while it is taken: nothing is buffered but the piece that is on its way.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use tonic::Status;

use super::feed::{Feed, Portion};
use super::page::Page;
use super::stats::Stats;
use crate::proto::localv1::Position;
use crate::wire;

/// How much is handed to a connection at once: two frames of HTTP/2's default size.
const CHUNK: usize = 32 << 10;

/// Room for Reset and Sync.
const ROOM: usize = 128;

/// What a client asks for, in either API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// Empty in the global API.
    pub(super) node: String,
    pub(super) push: bool,
    pub(super) have: Option<Position>,
    pub(super) details: bool,
}

impl Request {
    /// It has nothing that KPNG did not know.
    fn is_old(&self) -> bool {
        let Self { node: _, push, have, details } = self;
        !push && have.is_none() && !details
    }
}

/// Where requests come from.
pub(super) trait Requests: Send {
    /// The next one; `None` when the client will send no more. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<Request>, Status>> + Send;
}

/// Makes feeds of what clients ask for.
pub(super) trait Open: Send {
    type Feed: Feed;

    /// What the client shall be fed from, beginning after the revision `seen` if it is given.
    ///
    /// # Errors
    /// When the request is denied or senseless.
    fn open(&self, request: &Request, seen: Option<u64>) -> Result<Self::Feed, Status>;
}

/// One stream.
pub(super) struct Watch<R, O: Open> {
    requests: R,
    open: O,
    /// Names this server process in positions.
    instance: Arc<str>,
    stats: Arc<Stats>,
    /// What the last request asked for, and what it is fed from.
    current: Option<(Request, O::Feed)>,
    /// The client will send no more requests.
    last_request: bool,
    state: State,
    portion: Option<Sending>,
    /// When the cluster made the earliest change of the answer that is being sent.
    triggered: Option<SystemTime>,
    /// The part of an answer that is ready to be sent.
    chunk: BytesMut,
}

/// A portion on its way.
struct Sending {
    page: Page,
    /// What the client has with it, if it is the last of an answer.
    complete: Option<u64>,
}

/// Where a stream is between request and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is asked for.
    Idle,
    /// The first answer of a view is owed, from its beginning; Reset was sent.
    Begun,
    /// Another answer is owed, when there is something to say.
    Asked,
    /// A part of an answer was sent.
    Answering,
}

impl<R: Requests, O: Open> Watch<R, O> {
    pub(super) fn new(requests: R, open: O, instance: Arc<str>, stats: Arc<Stats>) -> Self {
        Self {
            requests,
            open,
            instance,
            stats,
            current: None,
            last_request: false,
            state: State::Idle,
            portion: None,
            triggered: None,
            chunk: BytesMut::new(),
        }
    }

    /// The next piece of the response. `None` at its end.
    ///
    /// # Errors
    /// What the stream ends with.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            self.pour();
            // Small parts go together, unless the next one is not there yet.
            if self.chunk.len() >= CHUNK {
                return Ok(Some(self.take()));
            }
            if self.portion.is_none() && self.state != State::Idle && self.advance()? {
                continue;
            }
            if !self.chunk.is_empty() {
                return Ok(Some(self.take()));
            }
            if !self.wait().await? {
                return Ok(None);
            }
        }
    }

    fn take(&mut self) -> Bytes {
        self.stats.bytes.add(self.chunk.len() as u64);
        // Whole, so that a stream that has nothing to say holds no buffer.
        std::mem::take(&mut self.chunk).freeze()
    }

    /// Moves the portion that is on its way into the chunk.
    fn pour(&mut self) {
        let Some(sending) = &mut self.portion else { return };
        if sending.page.pour(&mut self.chunk, CHUNK) {
            return;
        }
        if let Some(revision) = sending.complete {
            self.sync(revision);
        }
        self.portion = None;
    }

    /// Ends an answer.
    fn sync(&mut self, revision: u64) {
        let Some((request, feed)) = &self.current else { return };
        let position = request.have.is_some().then(|| self.position(feed, revision));
        let triggered = self.triggered.filter(|_| request.details);
        self.chunk.extend_from_slice(&wire::sync(position, triggered));
        self.triggered = None;
        self.stats.answers.add(1);
        self.state = if request.push { State::Asked } else { State::Idle };
    }

    fn position(&self, feed: &O::Feed, revision: u64) -> Position {
        Position { instance: format!("{}/{}", self.instance, feed.name()), revision }
    }

    /// Takes the next portion, if there is news. `false` when there is none.
    ///
    /// # Errors
    /// When an old client must begin anew: KPNG's server sent Reset at the beginning of a stream only,
    /// and some of its clients do not look at others.
    fn advance(&mut self) -> Result<bool, Status> {
        let Some((request, feed)) = &mut self.current else { return Ok(false) };
        let Some(portion) = feed.next() else { return Ok(false) };
        if portion.full && self.state != State::Begun && request.is_old() {
            return Err(Status::aborted(
                "the client is too far behind: connect again for the full state",
            ));
        }
        let Portion { full, complete, revision, triggered, head, page } = portion;
        let says_something = full || !head.is_empty() || !page.is_empty();
        if !says_something && self.state == State::Asked {
            return Ok(true); // the client cannot see what changed
        }
        self.chunk.reserve((head.len() + page.bytes() + ROOM).min(CHUNK));
        if full && self.state != State::Begun {
            self.chunk.extend_from_slice(&wire::reset());
        }
        self.chunk.extend_from_slice(&head);
        self.triggered = self.triggered.into_iter().chain(triggered).min();
        self.stats.operations.add(page.operations() + u64::from(!head.is_empty()));
        self.state = State::Answering;
        self.portion = Some(Sending { page, complete: complete.then_some(revision) });
        Ok(true)
    }

    /// Waits for what comes next: a request, or news. `false` at the end of the stream.
    async fn wait(&mut self) -> Result<bool, Status> {
        let Self { requests, current, state, last_request, .. } = self;
        let idle = *state == State::Idle;
        let pushes = current.as_ref().is_some_and(|(request, _)| request.push);
        if idle && *last_request {
            return Ok(false);
        }
        let news = async {
            match current {
                Some((_, feed)) if !idle => feed.ready().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            more = news => Ok(more),
            // What is asked while an answer is owed waits for its turn, as in KPNG.
            request = requests.next(), if idle || (pushes && !*last_request) => {
                self.accept(request?)?;
                Ok(true)
            }
        }
    }

    fn accept(&mut self, request: Option<Request>) -> Result<(), Status> {
        let Some(request) = request else {
            self.last_request = true;
            return Ok(());
        };
        if let Some((current, _)) = &mut self.current
            && (&current.node, current.details) == (&request.node, request.details)
        {
            if self.state == State::Idle {
                self.state = State::Asked;
            }
            *current = request;
            return Ok(());
        }
        self.begin(request)
    }

    /// Begins with another view.
    fn begin(&mut self, request: Request) -> Result<(), Status> {
        let mut feed = self.open.open(&request, None)?;
        let have = request.have.as_ref();
        let seen = have.filter(|have| have.instance == self.position(&feed, 0).instance);
        let seen = seen.map(|have| have.revision);
        if seen.is_some() {
            feed = self.open.open(&request, seen)?;
        }
        self.current = Some((request, feed));
        match seen {
            None => {
                self.chunk.extend_from_slice(&wire::reset());
                self.state = State::Begun;
            }
            Some(revision) => {
                // What was seen is still there: say so, or what differs.
                self.state = State::Answering;
                if !self.advance()? {
                    self.sync(revision);
                }
            }
        }
        Ok(())
    }
}
