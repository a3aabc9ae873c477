//! Whether this proxy does its work: `/healthz`, `/livez` and `/readyz`.
//!
//! It is healthy unless an update has been waiting for longer than the timeout; having nothing to do
//! is healthy. Paths, codes and bodies are kube-proxy's (KEP-3836); `/readyz` is ours.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderValue, X_CONTENT_TYPE_OPTIONS};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::time::Instant;

use crate::http::{Answer, Handler, JSON, TEXT, answer, at_once, not_found};
use crate::rfc3339;

/// How long an update may wait before the proxy is unhealthy: twice kube-proxy's `syncPeriod`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers by status code.
pub(crate) type ByCode = Family<[(&'static str, u16); 1], Counter>;

/// The health of the proxy. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyHealth(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timeout: Duration,
    state: Mutex<State>,
    healthz: ByCode,
    livez: ByCode,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Since when the oldest update waits that is not applied yet.
    waiting: Option<Instant>,
    /// When all updates were applied last.
    synced: Option<SystemTime>,
    node_eligible: bool,
}

impl ProxyHealth {
    /// Healthy, not ready, on a node that load balancers may choose. An update that waits for
    /// `timeout` makes it unhealthy.
    pub fn new(timeout: Duration) -> Self {
        let state = State { waiting: None, synced: None, node_eligible: true };
        let [healthz, livez] = [(); 2].map(|()| {
            let answers = ByCode::default();
            for code in [200, 503] {
                drop(answers.get_or_create(&[("code", code)]));
            }
            answers
        });
        Self(Arc::new(Shared { timeout, state: Mutex::new(state), healthz, livez }))
    }

    /// An update waits, from now on unless one does already.
    pub fn queued(&self) {
        self.state().waiting.get_or_insert_with(Instant::now);
    }

    /// All updates that waited are applied. The first time makes the proxy ready.
    pub fn synced(&self) {
        let mut state = self.state();
        state.waiting = None;
        state.synced = Some(SystemTime::now());
    }

    /// Whether load balancers may choose this node; they may not while it is being deleted.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// No update has been waiting for too long. The node's eligibility does not count.
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy(Instant::now(), self.0.timeout)
    }

    /// Everything was applied at least once.
    pub fn is_ready(&self) -> bool {
        self.state().synced.is_some()
    }

    /// Answers `/healthz`, `/livez` and `/readyz`.
    pub fn handler(&self) -> Handler {
        let health = self.clone();
        at_once(move |path| match path {
            "/healthz" => health.healthz(),
            "/livez" => health.livez(),
            "/readyz" => health.readyz(),
            _ => not_found(),
        })
    }

    fn healthz(&self) -> Answer {
        let state = *self.state();
        let healthy = state.is_healthy(Instant::now(), self.0.timeout);
        let body = state.body(healthy, Some(state.node_eligible), SystemTime::now());
        probe_answer(healthy && state.node_eligible, body, &self.0.healthz)
    }

    fn livez(&self) -> Answer {
        let state = *self.state();
        let healthy = state.is_healthy(Instant::now(), self.0.timeout);
        probe_answer(healthy, state.body(healthy, None, SystemTime::now()), &self.0.livez)
    }

    fn readyz(&self) -> Answer {
        if self.is_ready() {
            return answer(StatusCode::OK, TEXT, "ok\n");
        }
        answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready: nothing was synced yet\n")
    }

    /// Answers to `/healthz` and to `/livez`, by status code.
    pub(crate) fn answers(&self) -> (ByCode, ByCode) {
        (self.0.healthz.clone(), self.0.livez.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so the state makes sense whatever happened to a holder.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_healthy(&self, now: Instant, timeout: Duration) -> bool {
        self.waiting.is_none_or(|since| now.duration_since(since) < timeout)
    }

    /// kube-proxy's answer (as of 1.36); the two families are always synced together. While all is
    /// well the last update is always recent: clients have relied on that since the days when
    /// kube-proxy synced periodically.
    fn body(&self, healthy: bool, node_eligible: Option<bool>, now: SystemTime) -> String {
        let well = healthy && node_eligible != Some(false);
        let updated = if well { Some(now) } else { self.synced };
        let [updated, now] = [updated, Some(now)].map(rfc3339::format);
        let mut body = format!("{{\"lastUpdated\":\"{updated}\",\"currentTime\":\"{now}\",");
        if let Some(eligible) = node_eligible {
            body += &format!("\"nodeEligible\":{eligible},");
        }
        body += &format!("\"healthy\":{healthy}");
        if self.synced.is_some() {
            let synced = rfc3339::format(self.synced);
            let family = format!("{{\"lastUpdated\":\"{synced}\",\"healthy\":{healthy}}}");
            body += &format!(",\"status\":{{\"IPv4\":{family},\"IPv6\":{family}}}");
        }
        body + "}"
    }
}

fn probe_answer(healthy: bool, body: String, answers: &ByCode) -> Answer {
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answers.get_or_create(&[("code", status.as_u16())]).inc();
    json_answer(status, body)
}

/// JSON that no browser takes for anything else.
pub(crate) fn json_answer(status: StatusCode, body: String) -> Answer {
    let mut answer = answer(status, JSON, body);
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests;
