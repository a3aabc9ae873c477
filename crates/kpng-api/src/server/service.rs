//! gRPC over HTTP: which path leads where, and how a stream becomes a response.
//!
//! The two Watch methods write their messages themselves: they are encoded already, and shared.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request as HttpRequest, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use kpng_core::local::Localize;
use tokio::sync::watch as channel;
use tonic::body::Body;
use tonic::codec::Codec as _;
use tonic::codec::Streaming;
use tonic::service::Routes;
use tonic::{Status, codegen::Service as _};
use tonic_prost::ProstCodec;

use super::authorization::{Authorization, Peer};
use super::feed::{GlobalFeed, GlobalViews, LocalFeed, LocalViews};
use super::stats::{Present, Stats, Which};
use super::watch::{Open, Request, Requests, Watch};
use crate::proto::globalv1::GlobalWatchReq;
use crate::proto::localv1::WatchReq;

/// Longest request that is read. A real one has a few dozen bytes.
const MAX_REQUEST: usize = 16 << 10;

/// How long a stream may go without a first request.
const FIRST_REQUEST: Duration = Duration::from_secs(60);

/// What all connections share.
pub(super) struct Shared<V: Localize> {
    pub(super) local: Option<Arc<LocalViews<V>>>,
    pub(super) global: Option<Arc<GlobalViews>>,
    /// Health and reflection.
    pub(super) routes: Routes,
    pub(super) instance: Arc<str>,
    pub(super) authorization: Option<Authorization>,
    pub(super) default_node: Option<Arc<str>>,
    /// The store holds the view of this node, and no other.
    pub(super) only_node: Option<Arc<str>>,
    pub(super) stats: Arc<Stats>,
    /// Whether the server is ending.
    pub(super) closing: tokio::sync::watch::Receiver<bool>,
}

/// Answers one call.
pub(super) async fn call<V: Localize>(
    shared: Arc<Shared<V>>,
    peer: Peer,
    ending: Ending,
    request: HttpRequest<Incoming>,
) -> Response<Body> {
    match request.uri().path() {
        "/localv1.Sets/Watch" if shared.local.is_some() => {
            let open = LocalOpen { shared: Arc::clone(&shared), peer };
            respond::<WatchReq, _>(request, open, &shared, ending, |stats| &stats.local_streams)
        }
        "/globalv1.Sets/Watch" if shared.global.is_some() => {
            let open = GlobalOpen { shared: Arc::clone(&shared), peer };
            respond::<GlobalWatchReq, _>(request, open, &shared, ending, |stats| {
                &stats.global_streams
            })
        }
        _ => {
            let mut routes = shared.routes.clone();
            match routes.call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    }
}

fn respond<M, O>(
    request: HttpRequest<Incoming>,
    open: O,
    shared: &Shared<impl Localize>,
    ending: Ending,
    count: Which,
) -> Response<Body>
where
    M: prost::Message + Default + Into<Request> + Send + 'static,
    O: Open + 'static,
    O::Feed: 'static,
{
    if let Err(refusal) = check_headers(request.headers()) {
        return refusal.into_http();
    }
    let decoder = ProstCodec::<(), M>::default().decoder();
    let streaming = Streaming::new_request(decoder, request.into_body(), None, Some(MAX_REQUEST));
    let requests = FromClient::<M> { streaming, first: true };
    let (stats, instance) = (Arc::clone(&shared.stats), Arc::clone(&shared.instance));
    let stream = Box::new(Stream {
        _present: Present::new(&stats, count),
        watch: Watch::new(requests, open, instance, stats),
        ending,
    });
    let body = stream::unfold(Some(stream), |stream| async { Some(stream?.piece().await) });
    let mut response = Response::new(Body::new(StreamBody::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Says why all streams of a connection end.
#[derive(Clone, Debug)]
pub(super) struct Ending(pub(super) channel::Receiver<Option<Status>>);

impl Ending {
    /// The status that they end with.
    async fn wait(&mut self) -> Status {
        if self.0.wait_for(Option::is_some).await.is_err() {
            // The connection is gone, and so are its streams.
            std::future::pending::<()>().await;
        }
        self.0.borrow().clone().unwrap_or_else(|| Status::ok(""))
    }
}

/// A response that is being made.
struct Stream<R, O: Open> {
    watch: Watch<R, O>,
    ending: Ending,
    _present: Present,
}

impl<R: Requests, O: Open> Stream<R, O> {
    /// The next piece, and what makes the one after it.
    async fn piece(mut self: Box<Self>) -> (Result<Frame<Bytes>, Status>, Option<Box<Self>>) {
        let next = tokio::select! {
            biased;
            status = self.ending.wait() => Err(status),
            next = self.watch.next() => next,
        };
        match next {
            Ok(Some(bytes)) => (Ok(Frame::data(bytes)), Some(self)),
            Ok(None) => (Ok(Frame::trailers(trailers(&Status::ok("")))), None),
            Err(status) => (Ok(Frame::trailers(trailers(&status))), None),
        }
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its message cannot be sent; its code can.
        let code = Status::new(status.code(), "");
        code.add_header(&mut trailers).expect("a code alone is a valid header");
    }
    trailers
}

fn check_headers(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get("grpc-encoding") {
        Some(encoding) if encoding != "identity" => {
            let mut status = Status::unimplemented("requests must not be compressed");
            status.metadata_mut().insert(
                "grpc-accept-encoding",
                tonic::metadata::MetadataValue::from_static("identity"),
            );
            Err(status)
        }
        _ => Ok(()),
    }
}

/// Requests as they come from a client.
struct FromClient<M> {
    streaming: Streaming<M>,
    first: bool,
}

impl<M: Into<Request> + Send + 'static> Requests for FromClient<M> {
    async fn next(&mut self) -> Result<Option<Request>, Status> {
        let message = if self.first {
            let first = tokio::time::timeout(FIRST_REQUEST, self.streaming.message());
            first.await.map_err(|_| Status::deadline_exceeded("no request came"))?
        } else {
            self.streaming.message().await
        };
        self.first = false;
        Ok(message?.map(Into::into))
    }
}

impl From<WatchReq> for Request {
    fn from(request: WatchReq) -> Self {
        let WatchReq { node_name, push, have, details } = request;
        Self { node: node_name, push, have, details }
    }
}

impl From<GlobalWatchReq> for Request {
    fn from(request: GlobalWatchReq) -> Self {
        let GlobalWatchReq { push, have, details } = request;
        Self { node: String::new(), push, have, details }
    }
}

/// The longest name that Kubernetes allows.
const MAX_NAME: usize = 253;

struct LocalOpen<V: Localize> {
    shared: Arc<Shared<V>>,
    peer: Peer,
}

impl<V: Localize> Open for LocalOpen<V> {
    type Feed = LocalFeed<V>;

    fn open(&self, request: &Request, seen: Option<u64>) -> Result<Self::Feed, Status> {
        let node = match (&*request.node, &self.shared.default_node) {
            ("", Some(default)) => Arc::clone(default),
            (name, _) if name.len() > MAX_NAME => {
                return Err(Status::invalid_argument("NodeName is longer than 253 bytes"));
            }
            (name, _) => name.into(),
        };
        if let Some(authorization) = &self.shared.authorization {
            authorization
                .check_node(&self.peer, &node)
                .inspect_err(|_| self.shared.stats.denied.add(1))?;
        }
        if let Some(own) = &self.shared.only_node
            && *own != node
        {
            let problem = format!("this server knows only what Services mean on node {own:?}");
            return Err(Status::not_found(problem));
        }
        let views =
            self.shared.local.as_ref().ok_or_else(|| Status::unimplemented("not served"))?;
        Ok(LocalFeed::new(views, node, request.details, seen))
    }
}

struct GlobalOpen<V: Localize> {
    shared: Arc<Shared<V>>,
    peer: Peer,
}

impl<V: Localize> Open for GlobalOpen<V> {
    type Feed = GlobalFeed;

    fn open(&self, request: &Request, seen: Option<u64>) -> Result<Self::Feed, Status> {
        if let Some(authorization) = &self.shared.authorization {
            authorization
                .check_global(&self.peer)
                .inspect_err(|_| self.shared.stats.denied.add(1))?;
        }
        let views =
            self.shared.global.as_ref().ok_or_else(|| Status::unimplemented("not served"))?;
        Ok(GlobalFeed::new(views, request.details, seen))
    }
}
