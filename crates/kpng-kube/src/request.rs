//! One request to the API server: the response's encoding and body, or what kind of failure it is.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use tokio::time::timeout;

use crate::Error;
use crate::envelope::{self, Encoding};
use crate::wire::Status;

/// What may follow a request that did not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// 401: the credentials are wrong or too old.
    #[error("the API server refuses the credentials: {0}")]
    Unauthorized(String),
    /// 403: the credentials are good and the rights are missing.
    #[error("{0}")]
    Forbidden(String),
    /// 410: the resource version or the continue token is too old.
    #[error("the API server no longer has the history that was asked for: {0}")]
    Gone(String),
    /// 409: there is such an object already.
    #[error("{0}")]
    Conflict(String),
    /// Another 4xx: this server does not take such a request.
    #[error("the API server refuses the request: {0}")]
    Refused(String),
    /// 429 or 503: try again later.
    #[error("the API server is busy: {message}")]
    Busy {
        /// The server's words.
        message: String,
        /// Not before this time.
        retry_after: Option<Duration>,
    },
    /// Another status that is no success.
    #[error("the API server failed: {0}")]
    Server(String),
    /// No answer, or one that broke off.
    #[error("{0}")]
    Connection(String),
    /// An answer that cannot be read.
    #[error(transparent)]
    Malformed(Error),
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accept {
    /// Objects and lists.
    List,
    /// A stream of events.
    Watch,
}

impl Accept {
    /// Protobuf where the server has it: about half the bytes and a fifth of the work.
    fn header(self) -> &'static str {
        match self {
            Self::List => "application/vnd.kubernetes.protobuf, application/json",
            Self::Watch => {
                "application/vnd.kubernetes.protobuf;stream=watch, application/json;stream=watch, \
                 application/json"
            }
        }
    }
}

/// A successful response.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) encoding: Encoding,
    pub(crate) body: Body,
}

/// `GET path`. The response must begin within `patience`.
pub(crate) async fn get(
    client: &Client,
    path: &str,
    accept: Accept,
    patience: Duration,
) -> Result<Opened, Failure> {
    let request = Request::get(path).header(ACCEPT, accept.header()).body(Body::empty());
    let request = request.expect("paths are made of URI characters only");
    let (response, content_type) = send(client, request, patience).await?;
    let encoding = Encoding::from_content_type(&content_type).ok_or_else(|| {
        let reason = format!("the content type {content_type:?} is neither protobuf nor JSON");
        Failure::Malformed(Error::Malformed { what: "a response", reason })
    })?;
    Ok(Opened { encoding, body: response.into_body() })
}

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// `POST` to a collection.
    Create,
    /// `PATCH` of an object, by RFC 7396.
    MergePatch,
}

/// Writes JSON. The response must begin, and go on, within `patience`.
pub(crate) async fn write(
    client: &Client,
    what: Write,
    path: &str,
    json: String,
    patience: Duration,
) -> Result<(), Failure> {
    let (method, content_type) = match what {
        Write::Create => (Method::POST, "application/json"),
        Write::MergePatch => (Method::PATCH, "application/merge-patch+json"),
    };
    let request = Request::builder().method(method).uri(path).header(ACCEPT, "application/json");
    let request = request.header(CONTENT_TYPE, content_type).body(Body::from(json.into_bytes()));
    let request = request.expect("paths are made of URI characters only");
    let (response, _) = send(client, request, patience).await?;
    collect(response.into_body(), patience).await.map(drop)
}

/// The metadata of what a list has, as JSON.
pub(crate) async fn list_metadata(
    client: &Client,
    path: &str,
    patience: Duration,
) -> Result<Bytes, Failure> {
    const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let request = Request::get(path).header(ACCEPT, METADATA).body(Body::empty());
    let request = request.expect("paths are made of URI characters only");
    let (response, _) = send(client, request, patience).await?;
    collect(response.into_body(), patience).await
}

/// A successful response, and its content type.
async fn send(
    client: &Client,
    request: Request<Body>,
    patience: Duration,
) -> Result<(Response<Body>, String), Failure> {
    let sent = timeout(patience, client.send(request)).await;
    let response = sent
        .map_err(|_| Failure::Connection(format!("no answer within {patience:?}")))?
        .map_err(|error| Failure::Connection(chain(&error)))?;
    let content_type = header(&response, CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
    if !response.status().is_success() {
        let encoding = Encoding::from_content_type(&content_type);
        return Err(refusal(response, encoding, patience).await);
    }
    Ok((response, content_type))
}

/// The next piece of a body; `None` at its end. Cancel safe.
pub(crate) async fn chunk(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::Connection(format!("the response broke off: {}", chain(&error)))
        })?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// A whole body. No two pieces may be further apart than `patience`.
pub(crate) async fn collect(mut body: Body, patience: Duration) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    let silent = |_| Failure::Connection(format!("the response stopped for {patience:?}"));
    while let Some(piece) = timeout(patience, chunk(&mut body)).await.map_err(silent)?? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

async fn refusal(
    response: Response<Body>,
    encoding: Option<Encoding>,
    patience: Duration,
) -> Failure {
    /// More than any Status has, less than a proxy's error page can hurt.
    const MAX_BODY: usize = 1 << 20;
    let code = response.status();
    let header = header(&response, RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
    let body = http_body_util::Limited::new(response.into_body(), MAX_BODY);
    let body = timeout(patience, body.collect()).await;
    let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let status = envelope::status(encoding, &body).unwrap_or_default();
    let message = if status.message.is_empty() { code.to_string() } else { status.message.clone() };
    Failure::of_status(code, &status, message, header.map(Duration::from_secs))
}

impl Failure {
    /// The failure that a `Status` in the place of an event means.
    pub(crate) fn of_event(status: &Status) -> Self {
        let code = u16::try_from(status.code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::of_status(code, status, format!("{} ({})", status.message, status.reason), None)
    }

    fn of_status(
        code: StatusCode,
        status: &Status,
        message: String,
        retry_after: Option<Duration>,
    ) -> Self {
        match code {
            StatusCode::UNAUTHORIZED => Self::Unauthorized(message),
            StatusCode::FORBIDDEN => Self::Forbidden(message),
            StatusCode::GONE => Self::Gone(message),
            StatusCode::CONFLICT => Self::Conflict(message),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let details = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
                let details = u64::try_from(details).ok().filter(|&seconds| seconds > 0);
                let retry_after = retry_after.or_else(|| details.map(Duration::from_secs));
                Self::Busy { message, retry_after }
            }
            code if code.is_client_error() => Self::Refused(message),
            _ => Self::Server(message),
        }
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// An error with everything that caused it: hyper's own messages say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some layers print their cause themselves.
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}
