//! What becomes a Kubernetes Event, of all that the log says of a node's work.
//!
//! It is what the owner of a Service can mend, in the words of the log. Without an API server as source
//! there is nobody to tell, and the log has to do.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use kpng_core::backend::Gap;
use kpng_core::model::NamespacedName;
use kpng_core::plan::{Conflict, Warning};
use kpng_kube::{Event, Recorder, Regarding, Scope};

/// Tells the API server, where there is one.
#[derive(Clone, Debug)]
pub struct Events {
    recorder: Option<Recorder>,
    node: Arc<str>,
    backend: &'static str,
}

impl Events {
    /// Of the node `node` with the backend `backend`.
    pub fn new(recorder: Option<Recorder>, node: Arc<str>, backend: &'static str) -> Self {
        Self { recorder, node, backend }
    }

    /// A service does not get what another has.
    pub fn conflict(&self, conflict: &Conflict) {
        let Conflict { loser, owner, .. } = conflict;
        self.record(Event {
            related: Some(Regarding::Service(owner.clone())),
            ..warning(loser, "FrontendConflict", "Claim", conflict.to_string(), Scope::Cluster)
        });
    }

    /// A service is served, though perhaps not as it was meant.
    pub fn planned_with(&self, service: &NamespacedName, doubt: Warning) {
        let (reason, action) = match doubt {
            Warning::NoSourceRangeOfFamily(_) => ("NoSourceRangeOfFamily", "FilterSources"),
        };
        self.record(warning(service, reason, action, doubt.to_string(), Scope::Cluster));
    }

    /// A service needs what the backend cannot do.
    pub fn gap(&self, service: &NamespacedName, gap: &Gap) {
        let Gap { what, why } = gap;
        let note = format!("kpng's backend {} cannot do {what}: {why}", self.backend);
        self.record(warning(service, "UnsupportedByBackend", "Program", note, Scope::Cluster));
    }

    /// A service's health check node port cannot be listened on. The reason is kube-proxy's.
    pub fn health_port_failed(
        &self,
        service: &NamespacedName,
        address: SocketAddr,
        error: &io::Error,
    ) {
        let node = &self.node;
        let note = format!(
            "node {node} cannot answer health checks of {service} on {address}: {error}; load balancers \
             take the node for unhealthy until the port is free"
        );
        self.record(warning(service, HEALTH_PORT, "Listen", note, Scope::Node));
    }

    /// A service's health check node port is another's.
    pub fn health_port_taken(&self, service: &NamespacedName, port: u16, owner: &NamespacedName) {
        let note = format!(
            "healthCheckNodePort {port} belongs to {owner}; load balancers get no answer about \
             {service} until {owner} gives it up"
        );
        self.record(Event {
            related: Some(Regarding::Service(owner.clone())),
            ..warning(service, HEALTH_PORT, "Listen", note, Scope::Cluster)
        });
    }

    fn record(&self, event: Event) {
        if let Some(recorder) = &self.recorder {
            recorder.record(event);
        }
    }
}

const HEALTH_PORT: &str = "FailedToStartServiceHealthcheck";

fn warning(
    service: &NamespacedName,
    reason: &'static str,
    action: &'static str,
    note: String,
    scope: Scope,
) -> Event {
    let regarding = Regarding::Service(service.clone());
    Event { regarding, related: None, reason, action, note, scope }
}
