//! What is asked again and again, what must come of it, and what came of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{At, Packet, Plan, Verdict};
use kpng_vnet::addresses::{BLOCKED_V4, BLOCKED_V6, CLIENT_V4, CLIENT_V6};

use crate::world::{VISITOR_INTERFACE, VISITOR_V4, VISITOR_V6, World};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sender {
    /// A pod of this node that only asks.
    Visitor,
    /// The client outside.
    Client,
    /// The client with its other address.
    Stranger,
}

impl Sender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Client => "client",
            Self::Stranger => "stranger",
        }
    }
}

/// Something that is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) service: NamespacedName,
    pub(crate) protocol: Protocol,
    pub(crate) from: Sender,
    pub(crate) to: SocketAddr,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A pod answered, and saw another source than the sender's.
    Answered {
        by: String,
        masqueraded: bool,
    },
    Refused,
    Silence,
}

/// What must become of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One of these pods answers; those that are true see a masqueraded source.
    Answers {
        pods: BTreeMap<String, bool>,
        sticky: bool,
    },
    Refused,
    Silence,
}

impl Flow {
    /// The address that it comes from.
    pub(crate) fn source(&self) -> IpAddr {
        match (self.from, Family::of(self.to.ip())) {
            (Sender::Visitor, Family::V4) => VISITOR_V4.into(),
            (Sender::Visitor, Family::V6) => VISITOR_V6.into(),
            (Sender::Client, Family::V4) => CLIENT_V4.into(),
            (Sender::Client, Family::V6) => CLIENT_V6.into(),
            (Sender::Stranger, Family::V4) => BLOCKED_V4.into(),
            (Sender::Stranger, Family::V6) => BLOCKED_V6.into(),
        }
    }

    /// What the plan says.
    pub(crate) fn expected(&self, plan: &Plan, world: &World) -> Expected {
        let inside = self.from == Sender::Visitor;
        let packet = Packet {
            source: self.source(),
            interface: Some(if inside { VISITOR_INTERFACE } else { "eth0" }),
            from_node: false,
            destination: self.to.ip(),
            protocol: self.protocol,
            port: self.to.port(),
        };
        let verdict = plan.decide(&packet);
        match &verdict {
            Verdict::Forward { pool, .. } => {
                let pod = |address| world.pod_at(address).unwrap_or("nobody").to_owned();
                let targets = pool
                    .targets
                    .iter()
                    .map(|target| (pod(target.address), verdict.masquerades(&packet, *target)));
                Expected::Answers { pods: targets.collect(), sticky: pool.affinity.is_some() }
            }
            Verdict::Reject => Expected::Refused,
            Verdict::Drop | Verdict::Pass => Expected::Silence,
        }
    }
}

impl Seen {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Answered { by, masqueraded: false } => format!("{by}, source kept"),
            Self::Answered { by, masqueraded: true } => format!("{by}, source masqueraded"),
            Self::Refused => "refused".to_owned(),
            Self::Silence => "no answer".to_owned(),
        }
    }
}

impl Expected {
    /// Whether this may be seen. Sources do not matter of a backend that cannot keep them.
    pub(crate) fn fits(&self, seen: &Seen, keeps_sources: bool) -> bool {
        match (self, seen) {
            (Self::Answers { pods, .. }, Seen::Answered { by, masqueraded }) => {
                pods.get(by).is_some_and(|expected| expected == masqueraded || !keeps_sources)
            }
            (Self::Refused, Seen::Refused) | (Self::Silence, Seen::Silence) => true,
            _ => false,
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Refused => "refused".to_owned(),
            Self::Silence => "no answer".to_owned(),
            Self::Answers { pods, sticky } => {
                let names: Vec<_> = pods.keys().map(String::as_str).collect();
                format!("{}{}", if *sticky { "always the same of " } else { "" }, names.join(", "))
            }
        }
    }
}

/// Everything that can be asked: cluster IPs by a pod, everything else from outside; and by a
/// stranger where not everybody is let in.
pub(crate) fn flows(plan: &Plan) -> Vec<Flow> {
    let mut flows = Vec::new();
    for (service, service_plan) in plan.services() {
        for frontend in &service_plan.frontends {
            let address = match frontend.at {
                At::Vip(address) => Some(address),
                At::NodePort(family) => {
                    let mut addresses = plan.facts().node_port_addresses.iter();
                    addresses.find(|address| Family::of(**address) == family).copied()
                }
            };
            let Some(address) = address else { continue };
            let inside = service_plan.cluster_ips.contains(&address);
            let stranger = frontend.sources.is_some().then_some(Sender::Stranger);
            let usual = if inside { Sender::Visitor } else { Sender::Client };
            for from in [Some(usual), stranger].into_iter().flatten() {
                let to = SocketAddr::new(address, frontend.port);
                let protocol = frontend.protocol;
                flows.push(Flow { service: service.clone(), protocol, from, to });
            }
        }
    }
    flows.sort();
    flows
}
