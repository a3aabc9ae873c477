//! Explanations as text for people.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;

use super::{Explanation, Finding, Match, OriginReason, Outcome, Provenance};
use crate::local::{Considered, HintUse, Hints};
use crate::model::{Protocol, TrafficPolicy};
use crate::plan::{FrontendKind, List, Masquerade, Origin, PodDetection};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let query = &self.query;
        let to = SocketAddr::new(query.destination, query.port);
        let (from, protocol, node) = (query.source, query.protocol, &self.node);
        writeln!(f, "{from} -> {to}/{protocol} on {node}: {}\n", self.summary())?;
        row(f, "from", &self.provenance)?;
        match &self.finding {
            Finding::Frontend(found) => self.found(found, f)?,
            Finding::OtherPort { service, served } => {
                let served: Vec<_> = served.iter().map(ToString::to_string).collect();
                let served = if served.is_empty() { "nothing".into() } else { served.join(", ") };
                row(f, "frontend", format_args!("a cluster IP of {service}, without this port"))?;
                row(f, "served", served)?;
            }
            Finding::Unallocated(cidr) => row(
                f,
                "frontend",
                format_args!("none: an address in {cidr} (--service-cidrs) that no Service has"),
            )?,
            Finding::Nothing => row(f, "frontend", "none: kpng does nothing to the packet")?,
        }
        self.notes.iter().try_for_each(|note| row(f, "note", note))
    }
}

fn row(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name:<12}{value}")
}

impl Explanation {
    /// What happens, in a few words.
    fn summary(&self) -> String {
        match &self.outcome {
            Outcome::Pass => "not ours".to_owned(),
            Outcome::Drop => "dropped".to_owned(),
            Outcome::Reject if self.query.protocol == Protocol::Tcp => {
                "rejected (TCP reset)".to_owned()
            }
            Outcome::Reject => "rejected (ICMP port unreachable)".to_owned(),
            Outcome::Forward { targets, masquerade } => {
                let itself = targets.iter().any(|target| target.address == self.query.source);
                let masquerade = match (masquerade, itself, targets.len()) {
                    (true, ..) => "masqueraded",
                    (false, true, 1) => "masqueraded (hairpin)",
                    (false, true, _) => "masqueraded only to itself (hairpin)",
                    (false, false, _) => "not masqueraded",
                };
                match &targets[..] {
                    [target] => {
                        let target = SocketAddr::new(target.address, target.port);
                        format!("forwarded to {target}, {masquerade}")
                    }
                    all => format!("forwarded to one of {} endpoints, {masquerade}", all.len()),
                }
            }
        }
    }

    fn found(&self, found: &Match, f: &mut Formatter<'_>) -> fmt::Result {
        let Match { service, frontend, port, policy, .. } = found;
        let name = if port.name.is_empty() { "" } else { ", port " };
        let kind = policy.kind.field();
        row(f, "frontend", format_args!("{frontend} of {service}{name}{} ({kind})", port.name))?;
        if let Some(sources) = &found.sources {
            let list: Vec<_> = sources.iter().map(ToString::to_string).collect();
            let list = if list.is_empty() { "nobody".to_owned() } else { list.join(", ") };
            let verdict = if found.admitted { "it is" } else { "it is not, so it is dropped" };
            let text = format!("only from {list} (spec.loadBalancerSourceRanges): {verdict}");
            row(f, "admitted", text)?;
        }
        if !found.admitted {
            return Ok(());
        }
        row(f, "policy", PolicyText(found, self.provenance.origin))?;
        if let (List::Cluster, Some(hints)) = (found.treatment.list, found.endpoints.hints) {
            topology(found, hints, f)?;
        }
        match &self.outcome {
            Outcome::Forward { masquerade, .. } => {
                let yes = if *masquerade { "yes" } else { "no" };
                row(f, "masquerade", format_args!("{yes}: {}", found.treatment.masquerade))?;
            }
            Outcome::Reject => {
                row(
                    f,
                    "rejected",
                    "no endpoint is ready, nor serving while it terminates, anywhere",
                )?;
            }
            Outcome::Drop => {
                row(f, "dropped", "no endpoint on this node may be chosen, but others exist")?;
            }
            Outcome::Pass => {}
        }
        if let Some(time) = found.affinity {
            let seconds = time.as_secs();
            let text = format!(
                "ClientIP: a client stays with its endpoint while it may be chosen, {seconds} s \
                 after its last connection (spec.sessionAffinity)"
            );
            row(f, "affinity", text)?;
        }
        self.endpoints(found, f)
    }

    fn endpoints(&self, found: &Match, f: &mut Formatter<'_>) -> fmt::Result {
        let all = &found.endpoints.endpoints;
        let may = all.iter().filter(|endpoint| found.exclusion(endpoint).is_none()).count();
        match all.len() {
            0 => row(f, "endpoints", "none")?,
            count => row(f, "endpoints", format_args!("{may} of {count} may be chosen"))?,
        }
        for endpoint in all {
            let exclusion = found.exclusion(endpoint);
            write!(
                f,
                "  {:<4}{}",
                if exclusion.is_none() { "yes" } else { "no" },
                Whose(endpoint)
            )?;
            match exclusion {
                Some(why) => write!(f, ": {why}")?,
                None if endpoint.address == self.query.source => {
                    f.write_str(": the source itself, so masqueraded (hairpin)")?;
                }
                None if !endpoint.conditions.ready => {
                    f.write_str(": serving while it terminates, as no other is ready")?;
                }
                None => {}
            }
            if !endpoint.other_ports.is_empty() {
                let port =
                    |port: &crate::model::SlicePort| format!("{:?}/{}", port.name, port.protocol);
                let ports: Vec<_> = endpoint.other_ports.iter().map(port).collect();
                write!(f, ", only {}", ports.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn topology(found: &Match, hints: Hints, f: &mut Formatter<'_>) -> fmt::Result {
    let ready =
        || found.endpoints.endpoints.iter().filter(|e| e.conditions.ready && e.port.is_some());
    let of = |has: fn(&Considered) -> bool| ready().filter(|e| has(e)).count();
    let (nodes, zones) = (of(|e| !e.node_hints.is_empty()), of(|e| !e.zone_hints.is_empty()));
    let why = |what: &str, count: usize, usage: HintUse, place: &str| match usage {
        HintUse::Applied => {
            format!(
                "only endpoints for {place} ({what}, by spec.trafficDistribution or service.kubernetes.io/topology-mode)"
            )
        }
        HintUse::Incomplete => format!(
            "{what} does not count: only {count} of {} ready endpoints have it",
            ready().count()
        ),
        HintUse::NotForUs => format!("{what} does not count: none names {place}"),
    };
    let node_text = || why("hints.forNodes", nodes, hints.nodes, "this node");
    let zone_text = || why("hints.forZones", zones, hints.zones, "this node's zone");
    match (hints.nodes, hints.zones) {
        (HintUse::Applied, _) => row(f, "topology", node_text()),
        (_, HintUse::Applied) => row(f, "topology", zone_text()),
        _ if nodes > 0 => row(f, "topology", node_text()),
        _ if zones > 0 => row(f, "topology", zone_text()),
        _ => Ok(()),
    }
}

/// The traffic policy and what follows from it.
struct PolicyText<'a>(&'a Match, Origin);

impl Display for PolicyText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(Match { policy, treatment, .. }, origin) = self;
        let field = match policy.kind {
            FrontendKind::ClusterIp => "spec.internalTrafficPolicy",
            _ => "spec.externalTrafficPolicy",
        };
        let value = match policy.traffic {
            TrafficPolicy::Cluster => "Cluster",
            TrafficPolicy::Local => "Local",
        };
        write!(f, "{field} is {value}: ")?;
        match (policy.traffic, treatment.list) {
            (TrafficPolicy::Local, List::Cluster) => {
                let who = if *origin == Origin::Pod { "pods" } else { "the node itself" };
                write!(f, "but to {who} all endpoints of the cluster are open")
            }
            (_, List::Cluster) => f.write_str("all endpoints of the cluster"),
            (_, List::Local)
                if treatment.masquerade == Masquerade::PreservesSource
                    && policy.pod.list == List::Local =>
            {
                f.write_str(
                    "endpoints on this node, for everybody but the node itself, as pods cannot be \
                     told from others (--detect-local-mode)",
                )
            }
            (_, List::Local) => f.write_str("endpoints on this node"),
        }
    }
}

/// An endpoint, and where it is.
struct Whose<'a>(&'a Considered);

impl Display for Whose<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let endpoint = self.0;
        match endpoint.port {
            Some(port) => write!(f, "{}", SocketAddr::new(endpoint.address, port))?,
            None => write!(f, "{}", endpoint.address)?,
        }
        let mut parts = Vec::new();
        parts.extend(endpoint.pod.iter().map(|pod| format!("pod {pod}")));
        match &endpoint.node {
            Some(node) if endpoint.local => parts.push(format!("{node} (this node)")),
            Some(node) => parts.push(node.to_string()),
            None if endpoint.local => parts.push("this node".to_owned()),
            None => {}
        }
        parts.extend(endpoint.zone.iter().map(|zone| format!("zone {zone}")));
        let hints = |kind: &str, names: &[std::sync::Arc<str>]| {
            (!names.is_empty()).then(|| format!("for {kind} {}", names.join("+")))
        };
        parts.extend(hints("nodes", &endpoint.node_hints));
        parts.extend(hints("zones", &endpoint.zone_hints));
        if parts.is_empty() { Ok(()) } else { write!(f, " {}", parts.join(", ")) }
    }
}

impl Display for Provenance {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self.origin {
            Origin::Pod => "a pod",
            Origin::Node => "this node",
            Origin::Outside => "outside",
        })?;
        if let Some(pod) = &self.pod {
            write!(f, " ({pod})")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl Display for OriginReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodCidr(cidr) => write!(
                f,
                "the address is in {cidr} (--cluster-cidrs, or spec.podCIDRs of the Node)"
            ),
            Self::PodInterface { name, assumed: false } => {
                write!(f, "the interface is {name} or begins so (--detect-local-mode)")
            }
            Self::PodInterface { name, assumed: true } => write!(
                f,
                "the address is an endpoint's on this node, so the interface is taken to be {name} \
                 or to begin so (--detect-local-mode); say --interface if it is another"
            ),
            Self::OwnAddress => f.write_str("the address is one of this node's"),
            Self::Neither { detection, interface_unknown } => {
                match detection {
                    PodDetection::None => f.write_str(
                        "not an address of this node; pods cannot be told from others \
                         (--detect-local-mode)",
                    )?,
                    PodDetection::Cidrs(cidrs) => {
                        let list: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
                        write!(
                            f,
                            "not an address of this node, nor in {} (--cluster-cidrs, or \
                             spec.podCIDRs of the Node)",
                            list.join(", ")
                        )?;
                    }
                    PodDetection::Bridge(name) => write!(
                        f,
                        "not an address of this node, and the interface is not {name} \
                         (--pod-bridge-interface)"
                    )?,
                    PodDetection::InterfacePrefix(prefix) => write!(
                        f,
                        "not an address of this node, and the interface does not begin with \
                         {prefix} (--pod-interface-name-prefix)"
                    )?,
                }
                if *interface_unknown {
                    f.write_str("; the interface was not given (--interface)")?;
                }
                Ok(())
            }
        }
    }
}
