//! The page on the metrics address, and the JSON behind it.
//!
//! ```text
//! /                                    the page, with page.css, page.js and icon.svg
//! /api/status                          the node, its source, and its last sync
//! /api/services?search=&page=          services, a page at a time
//! /api/services/NAMESPACE/NAME?page=   one of them, with a page of its endpoints
//! /api/changes                         what happened lately
//! /api/explain?source=&destination=…   why something happens to a packet, as `kpng explain` says it
//! ```
//!
//! Nothing can be changed here. What is asked is worked out from the store, on a thread of its own and
//! apart from the pipeline, a few questions at a time. docs/web.md is for who uses it.

mod board;
mod detail;
mod difference;
mod list;
mod search;
mod status;
#[cfg(test)]
mod tests;

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, StatusCode};
use kpng_core::model::NamespacedName;
use kpng_linux::memory::give_back;
use serde_json::{Value, json};
use tracing::debug;

use crate::admin::{Admin, Question};
use crate::health::ProxyHealth;
use crate::http::{Answer, Answering, Blocking, Handler, JSON, TEXT, answer, decode, parameters};
use crate::inspect::Inspect;
use crate::metrics::Metrics;

pub use board::Board;
pub use status::Source;

/// How many questions are worked on at once. Others wait for their turn.
const TURNS: usize = 2;

/// More than anybody types to find a service.
const MAX_SEARCH: usize = 256;

/// Nothing comes from elsewhere, goes elsewhere, stands inline, or is shown inside of another page; and
/// no text becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// What the page consists of: path, content type, content.
const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("web/page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("web/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("web/page.js")),
    ("/icon.svg", "image/svg+xml", include_str!("web/icon.svg")),
];

/// What the page shows.
#[derive(Debug)]
pub struct Web<V> {
    /// The process, as it can be asked.
    pub process: Admin<V>,
    /// What happened lately.
    pub board: Board,
    /// Where the state of the cluster comes from.
    pub source: Source,
    /// Whether the proxy does its work.
    pub health: ProxyHealth,
    /// What is counted at the ports of services.
    pub metrics: Metrics,
}

impl<V: Inspect> Web<V> {
    /// Answers for the page, and leaves all other paths to `others`.
    pub fn handler(self, others: Handler) -> Handler {
        let (web, blocking) = (Arc::new(self), Blocking::new(TURNS));
        Arc::new(move |request| {
            let path = request.uri.path();
            let file = FILES.iter().find(|(name, ..)| *name == path);
            if file.is_none() && !path.starts_with("/api/") {
                return others(request);
            }
            if let Err(Refusal(status, text)) = admit(&request, &web.process.node) {
                return at_once(answer(status, TEXT, text + "\n"));
            }
            if let Some((_, content_type, content)) = file {
                return at_once(answer(StatusCode::OK, content_type, *content));
            }
            let (web, blocking) = (Arc::clone(&web), blocking.clone());
            Box::pin(async move { guard(blocking.answer(move || web.api(&request)).await) })
        })
    }

    fn api(&self, request: &Parts) -> Answer {
        let path = request.uri.path();
        debug!(%path, "asked by the page");
        match self.find(path, request.uri.query().unwrap_or_default()) {
            Ok(value) => answer(StatusCode::OK, JSON, value.to_string() + "\n"),
            Err(Refusal(status, text)) => {
                answer(status, JSON, json!({ "error": text }).to_string() + "\n")
            }
        }
    }

    fn find(&self, path: &str, query: &str) -> Result<Value, Refusal> {
        let parameters = parameters(query);
        let steps: Vec<_> = path.split('/').skip(2).map(decode).collect();
        let steps: Vec<_> = steps.iter().map(String::as_str).collect();
        match steps[..] {
            ["status"] => Ok(self.status()),
            ["changes"] => Ok(self.board.lately().json()),
            ["services"] => {
                let typed = get(&parameters, "search").unwrap_or_default();
                if typed.len() > MAX_SEARCH {
                    let text = format!("search: more than {MAX_SEARCH} bytes");
                    return Err(Refusal(StatusCode::BAD_REQUEST, text));
                }
                let search = search::Search::parse(typed);
                Ok(list::list(&self.process, &search, page(&parameters)?)?)
            }
            ["services", namespace, name] => {
                let key = NamespacedName::new(namespace, name);
                let detail =
                    detail::detail(&self.process, &self.metrics, &key, page(&parameters)?)?;
                detail.ok_or_else(|| {
                    Refusal(StatusCode::NOT_FOUND, format!("there is no Service {key}"))
                })
            }
            ["explain"] => {
                let question = Question::explain(&parameters)
                    .map_err(|text| Refusal(StatusCode::BAD_REQUEST, text))?;
                let explained = self.process.explain(&question);
                // All that the kernel holds may have been in memory.
                give_back();
                let explained = explained?;
                let mut value = explained.json();
                value["text"] = json!(explained.to_string());
                Ok(value)
            }
            _ => {
                Err(Refusal(StatusCode::NOT_FOUND, format!("there is no {path}; see docs/web.md")))
            }
        }
    }
}

/// Why there is no answer.
struct Refusal(StatusCode, String);

/// What is not known yet.
impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}"))
    }
}

fn get<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn page(parameters: &[(String, String)]) -> Result<usize, Refusal> {
    let Some(page) = get(parameters, "page") else { return Ok(1) };
    page.parse().map_err(|_| {
        Refusal(StatusCode::BAD_REQUEST, format!("page: {page:?} is no number of a page"))
    })
}

/// Who may ask what. A page of somebody else's, whose name leads to this address (DNS rebinding), would
/// be of the same origin as ours: only names that cannot be somebody else's are answered.
fn admit(request: &Parts, node: &str) -> Result<(), Refusal> {
    if !is_own_name(request.headers.get(HOST), node) {
        let text = format!(
            "this page is for who asks for it by an IP address, as localhost, or as {node}"
        );
        return Err(Refusal(StatusCode::FORBIDDEN, text));
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        let text = "only GET: nothing can be changed here".to_owned();
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    Ok(())
}

fn is_own_name(host: Option<&HeaderValue>, node: &str) -> bool {
    // No browser leaves it out.
    let Some(host) = host else { return true };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_end_matches('.');
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(node)
}

fn at_once(answer: Answer) -> Answering {
    Box::pin(ready(guard(answer)))
}

/// Keeps browsers from making more of an answer than it is.
fn guard(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}
