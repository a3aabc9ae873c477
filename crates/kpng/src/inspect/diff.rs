//! How two states differ, in terms of frontends and endpoints: what `kpng diff` prints.
//!
//! Each side is put into sentences about its frontends and endpoints, by the code that explains
//! packets; what differs are the sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use kpng_core::explain::Here;
use kpng_core::local::{Considered, Excluded, Place};
use kpng_core::model::{Family, NamespacedName, Service, ServicePort, TrafficPolicy};
use kpng_core::plan::{Action, Frontend, FrontendKey, FrontendKind, Policy, policies};
use serde_json::{Value, json};

use super::{Inspect, Subject, not_complete};

/// How two states differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Frontends that came, went or changed, sorted.
    pub frontends: Vec<Change>,
    /// Endpoints of service ports that came, went or changed, sorted.
    pub endpoints: Vec<Change>,
}

/// Something that is not in both states alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub what: String,
    /// What is to be said of it in the first state, if it is there.
    pub before: Option<String>,
    /// The same in the second.
    pub after: Option<String>,
}

impl Difference {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.endpoints.is_empty()
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let list = |changes: &[Change]| -> Value {
            let change = |Change { what, before, after }: &Change| json!({ "what": what, "before": before, "after": after });
            changes.iter().map(change).collect()
        };
        json!({ "frontends": list(&self.frontends), "endpoints": list(&self.endpoints) })
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, changes) in [("frontends", &self.frontends), ("endpoints", &self.endpoints)] {
            if changes.is_empty() {
                continue;
            }
            writeln!(f, "{title}")?;
            for Change { what, before, after } in changes {
                match (before, after) {
                    (None, Some(after)) => writeln!(f, "+ {what}: {after}")?,
                    (Some(before), None) => writeln!(f, "- {what}: {before}")?,
                    (before, after) => {
                        writeln!(f, "~ {what}")?;
                        before.iter().try_for_each(|text| writeln!(f, "    was {text}"))?;
                        after.iter().try_for_each(|text| writeln!(f, "    is  {text}"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// How `after` differs from `before`.
///
/// # Errors
/// When one of them is not complete.
pub fn diff<V: Inspect>(before: &Subject<V>, after: &Subject<V>) -> anyhow::Result<Difference> {
    let (before, after) = (Sentences::about(before)?, Sentences::about(after)?);
    Ok(Difference {
        frontends: changes(&before.frontends, &after.frontends),
        endpoints: changes(&before.endpoints, &after.endpoints),
    })
}

fn changes<K: Ord + Display>(
    before: &BTreeMap<K, String>,
    after: &BTreeMap<K, String>,
) -> Vec<Change> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = keys.into_iter().filter(|key| before.get(key) != after.get(key));
    let change = |key: &K| Change {
        what: key.to_string(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    };
    differs.map(change).collect()
}

/// What is to be said about a state.
#[derive(Default)]
struct Sentences {
    frontends: BTreeMap<FrontendKey, String>,
    endpoints: BTreeMap<EndpointKey, String>,
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EndpointKey {
    service: NamespacedName,
    /// Of the service port: its number and protocol.
    service_port: String,
    address: IpAddr,
    port: Option<u16>,
}

impl Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, service_port, address, port } = self;
        write!(f, "{service}:{service_port} ")?;
        match port {
            Some(port) => SocketAddr::new(*address, *port).fmt(f),
            None => address.fmt(f),
        }
    }
}

impl Sentences {
    fn about<V: Inspect>(subject: &Subject<V>) -> anyhow::Result<Self> {
        let here = &subject.here;
        let plan = subject.plan()?;
        let snapshot = subject.store.snapshot().ok_or_else(not_complete)?;
        let place = Place::of(&here.node, snapshot.nodes.get(&here.node).map(|node| &**node));
        let mut sentences = Self::default();
        for (key, state) in &snapshot.services {
            let Some(local) = state.localize(key, &place) else { continue };
            let service = &*local.service;
            let planned = plan.service(key).context("all Services were planned")?;
            let policies: BTreeMap<_, _> = policies(&local, &here.facts).into_iter().collect();
            for frontend in &planned.frontends {
                let policy = policies[&frontend.key()];
                let text = frontend_text(key, service, frontend, &policy, !here.node.is_empty());
                sentences.frontends.insert(frontend.key(), text);
            }
            for (index, port) in service.ports.iter().enumerate() {
                for family in Family::ALL {
                    let considered = state.consider(index, family, &place);
                    sentences.add_endpoints(key, port, considered.endpoints, here);
                }
            }
        }
        Ok(sentences)
    }

    fn add_endpoints(
        &mut self,
        service: &NamespacedName,
        port: &ServicePort,
        endpoints: Vec<Considered>,
        here: &Here,
    ) {
        // Of several entries with one address and port only one counts.
        let counts = |e: &Considered| e.not_in_cluster != Some(Excluded::Duplicate);
        for mut endpoint in endpoints.into_iter().filter(counts) {
            if here.node.is_empty() {
                endpoint.not_in_local = endpoint.not_in_cluster;
            }
            let key = EndpointKey {
                service: service.clone(),
                service_port: format!("{}/{}", port.port, port.protocol),
                address: endpoint.address,
                port: endpoint.port,
            };
            self.endpoints.insert(key, endpoint_text(&endpoint));
        }
    }
}

fn frontend_text(
    key: &NamespacedName,
    service: &Service,
    frontend: &Frontend,
    policy: &Policy,
    from_node: bool,
) -> String {
    let port = &service.ports[usize::from(frontend.service_port)];
    let name = if port.name.is_empty() { "" } else { " port " };
    let field = match policy.kind {
        FrontendKind::ClusterIp => "internalTrafficPolicy",
        _ => "externalTrafficPolicy",
    };
    let value = match policy.traffic {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    };
    let mut text = format!("{key}{name}{}, {}, {field} {value}", port.name, policy.kind.field());
    let treatments = policy.treatments().into_iter().zip(frontend.route.actions());
    let treatments: Vec<_> = treatments
        .map(|(treatment, action)| match action {
            Action::Forward { masquerade: true, .. } => {
                format!("{} list masqueraded", treatment.list.name())
            }
            Action::Forward { .. } => format!("{} list", treatment.list.name()),
            // Which endpoints are local is a question of the node.
            Action::Drop if !from_node => format!("{} list", treatment.list.name()),
            Action::Reject => "reject".to_owned(),
            Action::Drop => "drop".to_owned(),
        })
        .collect();
    if treatments.iter().all(|other| *other == treatments[0]) {
        text += &format!(", {}", treatments[0]);
    } else {
        let [pod, node, outside] = [0, 1, 2].map(|index| &treatments[index]);
        text += &format!(", pod: {pod}, node: {node}, outside: {outside}");
    }
    if let Some(sources) = &frontend.sources {
        let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
        text += &format!(", only from [{}]", sources.join(" "));
    }
    if let Some(timeout) = service.session_affinity {
        text += &format!(", clients stick for {} s", timeout.as_secs());
    }
    text
}

fn endpoint_text(endpoint: &Considered) -> String {
    let mut text = match endpoint.not_in_cluster {
        None => "may be chosen".to_owned(),
        Some(why) => why.to_string(),
    };
    match endpoint.not_in_local {
        Some(Excluded::NoLocalList) => {}
        same if same == endpoint.not_in_cluster => {}
        None => text += "; by policy Local: may be chosen",
        Some(why) => text += &format!("; by policy Local: {why}"),
    }
    let pod = endpoint.pod.iter().map(|pod| format!(", pod {pod}"));
    let node = endpoint.node.iter().map(|node| format!(", {node}"));
    text.extend(pod.chain(node));
    for (kind, names) in [("nodes", &endpoint.node_hints), ("zones", &endpoint.zone_hints)] {
        if !names.is_empty() {
            text += &format!(", for {kind} {}", names.join("+"));
        }
    }
    text
}
