//! An explanation with what the kernel holds, as text and as JSON.

use std::fmt;
use std::net::SocketAddr;

use kpng_core::backend::Capability;
use kpng_core::explain::{Explanation, Finding, Match, Outcome};
use kpng_core::local::{Considered, Excluded, HintUse, Hints};
use kpng_core::model::{Protocol, TrafficPolicy};
use kpng_core::plan::Plan;
use serde_json::{Value, json};

use crate::backends::Choice;

/// Why something happens to a packet.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What is planned.
    pub explanation: Explanation,
    /// What the kernel holds for it, line by line; `None` where nobody asked or can tell.
    pub kernel: Option<Vec<String>>,
}

/// What this machine's kernel holds for the frontend of an explanation.
pub(super) fn kernel(
    explanation: &Explanation,
    plan: &Plan,
    choice: &dyn Choice,
) -> Option<Vec<String>> {
    let Finding::Frontend(found) = &explanation.finding else { return None };
    let held = choice.open().and_then(|mut backend| {
        backend.holds(plan, &found.frontend).map_err(anyhow::Error::from_boxed)
    });
    let mut lines = held.unwrap_or_else(|error| Some(vec![format!("cannot be read: {error:#}")]));
    if found.frontend.protocol == Protocol::Sctp
        && let Some(gap) = choice.row().gaps.iter().find(|gap| gap.what == Capability::Sctp)
    {
        let line = format!("nothing: to-{} cannot do SCTP ({})", choice.row().name, gap.why);
        lines.get_or_insert_default().push(line);
    }
    lines
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explanation.fmt(f)?;
        let Some(kernel) = &self.kernel else { return Ok(()) };
        writeln!(f, "kernel")?;
        kernel.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl Explained {
    /// The same for programs. Reasons have names that stay, and texts that may change.
    pub fn json(&self) -> Value {
        let Explanation { query, node, provenance, finding, outcome, notes } = &self.explanation;
        let mut value = json!({
            "packet": {
                "source": query.source,
                "interface": query.interface.as_deref(),
                "destination": query.destination,
                "port": query.port,
                "protocol": query.protocol.name(),
            },
            "node": &**node,
            "origin": {
                "is": provenance.origin.name(),
                "pod": provenance.pod,
                "reason": provenance.why.to_string(),
            },
            "outcome": outcome_json(outcome),
            "notes": notes.iter().map(|note| reason(note.name(), note)).collect::<Vec<_>>(),
        });
        match finding {
            Finding::Frontend(found) => {
                value["frontend"] = frontend_json(found, outcome);
                value["endpoints"] = found
                    .endpoints
                    .endpoints
                    .iter()
                    .map(|endpoint| endpoint_json(found, endpoint))
                    .collect();
            }
            Finding::OtherPort { service, served } => {
                let served: Vec<_> = served.iter().map(ToString::to_string).collect();
                value["clusterIp"] = json!({ "service": service.to_string(), "served": served });
            }
            Finding::Unallocated(cidr) => value["serviceCidr"] = json!(cidr.to_string()),
            Finding::Nothing => {}
        }
        if let Some(kernel) = &self.kernel {
            value["kernel"] = json!(kernel);
        }
        value
    }
}

fn reason(name: &str, text: &impl fmt::Display) -> Value {
    json!({ "name": name, "text": text.to_string() })
}

fn outcome_json(outcome: &Outcome) -> Value {
    let mut value = json!({ "is": outcome.name() });
    if let Outcome::Forward { targets, masquerade } = outcome {
        let targets = targets.iter().map(|t| SocketAddr::new(t.address, t.port).to_string());
        value["targets"] = targets.collect();
        value["masquerade"] = json!(masquerade);
    }
    value
}

fn frontend_json(found: &Match, outcome: &Outcome) -> Value {
    let Match { service, frontend, port, policy, treatment, sources, admitted, affinity, .. } =
        found;
    let sources = sources.as_ref();
    let mut value = json!({
        "is": frontend.to_string(),
        "service": service.to_string(),
        "port": &*port.name,
        "kind": policy.kind.name(),
        "field": policy.kind.field(),
        "trafficPolicy": traffic_policy(policy.traffic),
        "sources": sources.map(|s| s.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "admitted": admitted,
        "affinitySeconds": affinity.map(|time| time.as_secs()),
        "list": treatment.list.name(),
    });
    if matches!(outcome, Outcome::Forward { .. }) {
        value["masquerade"] = reason(treatment.masquerade.name(), &treatment.masquerade);
    }
    if let Some(hints) = found.endpoints.hints {
        value["hints"] = hints_json(hints);
    }
    value
}

/// Kubernetes' name.
pub(crate) fn traffic_policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// What becomes of hints.
pub(crate) fn hints_json(hints: Hints) -> Value {
    let name = |usage| match usage {
        HintUse::Applied => "applied",
        HintUse::Incomplete => "incomplete",
        HintUse::NotForUs => "not-for-us",
    };
    json!({ "forNodes": name(hints.nodes), "forZones": name(hints.zones) })
}

fn endpoint_json(found: &Match, endpoint: &Considered) -> Value {
    let exclusion = found.exclusion(endpoint);
    let mut value = considered_json(endpoint);
    value["mayBeChosen"] = json!(exclusion.is_none());
    value["reason"] = exclusion.map(exclusion_json).into();
    value
}

/// Why an endpoint may not be chosen.
pub(crate) fn exclusion_json(why: Excluded) -> Value {
    reason(why.name(), &why)
}

/// What is known of an endpoint, whatever becomes of it.
pub(crate) fn considered_json(endpoint: &Considered) -> Value {
    let conditions = endpoint.conditions;
    let names = |names: &[std::sync::Arc<str>]| names.iter().map(ToString::to_string).collect();
    let (zones, nodes): (Vec<_>, Vec<_>) =
        (names(&endpoint.zone_hints), names(&endpoint.node_hints));
    json!({
        "address": endpoint.address,
        "port": endpoint.port,
        "slice": endpoint.slice.as_deref(),
        "pod": endpoint.pod,
        "node": endpoint.node.as_deref(),
        "local": endpoint.local,
        "zone": endpoint.zone.as_deref(),
        "forZones": zones,
        "forNodes": nodes,
        "conditions": {
            "ready": conditions.ready,
            "serving": conditions.serving,
            "terminating": conditions.terminating,
        },
    })
}
