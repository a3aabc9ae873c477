//! The admin socket: where a running kpng is asked, by `kpng explain`, `dump` and `check`, or by curl.
//!
//! ```text
//! curl --unix-socket /run/kpng/admin.sock 'http://kpng/explain?source=10.0.0.1&destination=10.96.0.1&port=443'
//! curl --unix-socket /run/kpng/admin.sock http://kpng/dump/state
//! curl --unix-socket /run/kpng/admin.sock http://kpng/check
//! ```
//!
//! It is HTTP/1.1 on a Unix socket that only its owner may use, and nothing can be changed there. What
//! is asked is worked out from the store on a blocking thread, apart from the pipeline. Answers are
//! sent piece by piece as the client takes them.

mod client;
mod question;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::Context;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use kpng_api::server::{UnixSocket, listen_unix};
use kpng_core::explain::Here;
use kpng_core::local::Place;
use kpng_core::plan::NodeFacts;
use kpng_core::store::Store;
use kpng_linux::memory::give_back;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;

use crate::backends::Choice;
use crate::cli::{DumpWhat, Output};
use crate::http::{self, JSON, TEXT};
use crate::inspect::{Checked, Explained, Inspect, Pieces, Subject};
use crate::node_facts::Interfaces;

pub use client::ask;
pub use question::Question;

/// Where the socket is, unless flags say otherwise.
pub const DEFAULT_SOCKET: &str = "/run/kpng/admin.sock";

/// Who may connect: the owner.
const MODE: u32 = 0o600;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 8;

/// How long a check waits for changes that are on their way into the kernel, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(250);

/// Listens on `path`, in a directory that is made if it is not there.
///
/// # Errors
/// What the kernel says, and when another process listens there.
pub async fn bind(path: &Path) -> io::Result<UnixSocket> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    listen_unix(path, MODE).await
}

/// A running process, as it can be asked.
#[derive(Debug)]
pub struct Admin<V> {
    /// What is known of the cluster.
    pub store: Store<V>,
    /// The name of the node.
    pub node: Arc<str>,
    /// What is known of the node; nothing at first.
    pub facts: watch::Receiver<Option<NodeFacts>>,
    /// The backend.
    pub choice: Arc<dyn Choice>,
    /// Up to which revision of the store the kernel was made to follow.
    pub synced: Arc<AtomicU64>,
}

impl<V> Clone for Admin<V> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            node: Arc::clone(&self.node),
            facts: self.facts.clone(),
            choice: Arc::clone(&self.choice),
            synced: Arc::clone(&self.synced),
        }
    }
}

impl<V: Inspect> Admin<V> {
    /// Answers on `socket`, until it is dropped.
    pub async fn serve(self, socket: UnixSocket) {
        let mut connections = JoinSet::new();
        loop {
            let room = connections.len() < CONNECTIONS;
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = socket.accept(), if room => match accepted {
                    Ok(stream) => {
                        let admin = self.clone();
                        let service = service_fn(move |request: Request<Incoming>| {
                            let admin = admin.clone();
                            async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                        });
                        // It is closed with us, when the set is dropped.
                        connections.spawn(async move {
                            let (_open, closed) = watch::channel(false);
                            http::converse(stream, service, http::LIMITS, closed).await;
                        });
                    }
                    Err(error) => {
                        debug!(%error, "cannot accept a connection");
                        tokio::time::sleep(http::LIMITS.grace).await;
                    }
                },
            }
        }
    }

    async fn answer(self, request: &Request<Incoming>) -> Response<Stream> {
        let question = match Question::parse(request.method(), request.uri()) {
            Ok(question) => question,
            Err((status, text)) => return Stream::respond(Reply::text(status, text + "\n")),
        };
        debug!(?question, "asked by the admin socket");
        let work = move || {
            self.reply(&question).unwrap_or_else(|error| {
                Reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n"))
            })
        };
        let reply = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
            let text = format!("the answer could not be worked out: {error}\n");
            Reply::text(StatusCode::INTERNAL_SERVER_ERROR, text)
        });
        Stream::respond(reply)
    }

    fn reply(&self, question: &Question) -> anyhow::Result<Reply> {
        Ok(match question {
            Question::Explain { output, .. } => {
                let explained = self.explain(question)?;
                Reply::of(*output, explained.to_string(), || explained.json())
            }
            Question::Dump(what) => {
                let content_type = if *what == DumpWhat::Services { JSON } else { TEXT };
                let (status, pieces) = (StatusCode::OK, self.subject()?.dump(*what)?);
                Reply { status, content_type, pieces }
            }
            Question::Check(output) => {
                let checked = self.check()?;
                let reply = Reply::of(*output, checked.to_string(), || checked.json());
                Reply { status: checked.status(), ..reply }
            }
        })
    }

    /// Why something happens to the packet that `question` is about. It looks into the kernel too, so it
    /// blocks.
    ///
    /// # Errors
    /// When something is not known yet, or the question is about no packet.
    pub(crate) fn explain(&self, question: &Question) -> anyhow::Result<Explained> {
        let subject = self.subject()?;
        subject.explain(&question.query(&subject.here)?, true)
    }

    /// What is known of the node now.
    ///
    /// # Errors
    /// When that is nothing.
    pub(crate) fn facts(&self) -> anyhow::Result<NodeFacts> {
        let facts = self.facts.borrow().clone();
        facts.context("kpng does not know the node yet; try again in a moment")
    }

    /// Where the node is, as far as that is known.
    pub(crate) fn place(&self) -> Place {
        Place::of(&self.node, self.store.node(&self.node).as_deref())
    }

    /// The process as it is now.
    fn subject(&self) -> anyhow::Result<Subject<V>> {
        let facts = self.facts()?;
        let addresses = Interfaces::read()?.addresses.into_iter().map(|own| own.address).collect();
        let here = Here { node: Arc::clone(&self.node), facts, addresses };
        Ok(Subject { store: self.store.clone(), here, choice: Arc::clone(&self.choice) })
    }

    /// A difference counts when what is planned was in force before.
    fn check(&self) -> anyhow::Result<Checked> {
        let mut subject = self.subject()?;
        let mut patience = PATIENCE;
        loop {
            let before = self.settled();
            let checked = Checked(subject.check()?);
            let nothing_happened = before.is_some() && self.settled() == before;
            if patience.is_zero() || checked.is_equal() || nothing_happened {
                return Ok(checked);
            }
            std::thread::sleep(PAUSE);
            patience = patience.saturating_sub(PAUSE);
            subject = self.subject()?;
        }
    }

    /// The revision of the store, if the kernel was made to follow all of it.
    fn settled(&self) -> Option<u64> {
        let revision = self.store.revision();
        (self.synced.load(Ordering::Acquire) == revision).then_some(revision)
    }
}

/// An answer.
struct Reply {
    status: StatusCode,
    content_type: &'static str,
    pieces: Pieces,
}

impl Reply {
    fn text(status: StatusCode, text: String) -> Self {
        Self { status, content_type: TEXT, pieces: Box::new(std::iter::once(text)) }
    }

    fn of(output: Output, text: String, json: impl FnOnce() -> serde_json::Value) -> Self {
        match output {
            Output::Text | Output::Markdown => Self::text(StatusCode::OK, text),
            Output::Json => {
                Self { content_type: JSON, ..Self::text(StatusCode::OK, format!("{:#}\n", json())) }
            }
        }
    }
}

/// The body of an answer, on its way.
struct Stream(mpsc::Receiver<Bytes>);

/// About so much is sent at once.
const PIECE: usize = 64 * 1024;

impl Stream {
    fn respond(reply: Reply) -> Response<Self> {
        let (sender, receiver) = mpsc::channel(2);
        let pieces = reply.pieces;
        drop(tokio::task::spawn_blocking(move || {
            send(pieces, &sender);
            // A plan of everything, and all that the kernel holds, may have been in memory.
            give_back();
        }));
        let mut response = Response::new(Self(receiver));
        *response.status_mut() = reply.status;
        let content_type = HeaderValue::from_static(reply.content_type);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

/// Sends a text, until it or the client's patience ends.
fn send(pieces: Pieces, to: &mpsc::Sender<Bytes>) {
    let mut waiting = String::new();
    for piece in pieces {
        waiting.push_str(&piece);
        if waiting.len() >= PIECE && to.blocking_send(std::mem::take(&mut waiting).into()).is_err()
        {
            return;
        }
    }
    if !waiting.is_empty() {
        // Who has gone does not want it.
        to.blocking_send(waiting.into()).ok();
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
