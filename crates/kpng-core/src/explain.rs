//! Why something happens to a packet, for people and programs that ask.
//!
//! [`explain`] looks at the state of a store, plans what concerns the packet once more, and keeps the
//! reasons. What decides is [`Plan::decision`](crate::plan::Plan::decision) and the code behind plans;
//! nothing here decides anything, it only says by which rule it came about.

mod notes;
mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::local::{Consider, Considered, Excluded, Place, PortEndpoints};
use crate::model::{Family, NamespacedName, Node, Protocol, ServicePort};
use crate::plan::{
    At, Decision, Frontend, FrontendKey, NodeFacts, Origin, Packet, Plan, Planner, PodDetection,
    Policy, Target, Treatment, Verdict, policies,
};
use crate::store::{Change, Store, Update};

pub use notes::Note;

/// A node, as far as it has to be known to explain what happens there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Its name.
    pub node: Arc<str>,
    /// What plans depend on.
    pub facts: NodeFacts,
    /// All of its addresses; those of loopback go without saying.
    pub addresses: BTreeSet<IpAddr>,
}

impl Here {
    /// Whether `address` is one of this node's.
    pub fn owns(&self, address: IpAddr) -> bool {
        let facts = &self.facts;
        address.is_loopback()
            || self.addresses.contains(&address)
            || facts.primary_ips.contains(&address)
            || facts.node_port_addresses.contains(&address)
    }
}

/// The first packet of a connection, as somebody asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The source address.
    pub source: IpAddr,
    /// The interface that it comes in through, if that is known.
    pub interface: Option<Arc<str>>,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// What happens to a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was asked.
    pub query: Query,
    /// The node where the packet is.
    pub node: Arc<str>,
    /// Where the packet is taken to come from.
    pub provenance: Provenance,
    /// What decides.
    pub finding: Finding,
    /// What happens.
    pub outcome: Outcome,
    /// What else is worth knowing.
    pub notes: Vec<Note>,
}

/// Where a packet is taken to come from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// What it counts as.
    pub origin: Origin,
    /// Why.
    pub why: OriginReason,
    /// The Pod with the source address, if the state has an endpoint of it.
    pub pod: Option<Box<str>>,
}

/// Why a packet counts as coming from somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginReason {
    /// A pod: its address is in this range.
    PodCidr(IpNet),
    /// A pod: it comes in through the pods' bridge or an interface with their prefix.
    PodInterface {
        /// The name or the beginning of the name.
        name: Arc<str>,
        /// Nobody said so; but the source is an endpoint on this node.
        assumed: bool,
    },
    /// The node itself: the address is one of its own.
    OwnAddress,
    /// Neither.
    Neither {
        /// How pods of this family are told; `None` if they are not.
        detection: PodDetection,
        /// The interface was not given, and it matters.
        interface_unknown: bool,
    },
}

/// What decides about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A frontend.
    Frontend(Box<Match>),
    /// A cluster IP without this port.
    OtherPort {
        /// Whose cluster IP.
        service: NamespacedName,
        /// What is served there.
        served: Vec<FrontendKey>,
    },
    /// No Service's address, but one from the range of cluster IPs.
    Unallocated(IpNet),
    /// Nothing: it is none of our business.
    Nothing,
}

/// The frontend that a packet goes to, and what became of its Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The Service.
    pub service: NamespacedName,
    /// The frontend.
    pub frontend: FrontendKey,
    /// The port of the Service.
    pub port: ServicePort,
    /// The policy by which all packets to the frontend are treated.
    pub policy: Policy,
    /// The part of it for this packet.
    pub treatment: Treatment,
    /// Who may come in; `None` means everybody.
    pub sources: Option<Vec<IpNet>>,
    /// The packet may.
    pub admitted: bool,
    /// How long clients stick to their endpoint, if they do.
    pub affinity: Option<Duration>,
    /// All endpoints of this port and family.
    pub endpoints: PortEndpoints,
}

impl Match {
    /// Why an endpoint may not be chosen for this packet; `None` when it may.
    pub fn exclusion(&self, endpoint: &Considered) -> Option<Excluded> {
        self.treatment.list.excludes(endpoint)
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing by us.
    Pass,
    /// It goes to one of the targets.
    Forward {
        /// Where it may go, sorted.
        targets: Vec<Target>,
        /// Masqueraded whatever the target is. One that is the source itself always is.
        masquerade: bool,
    },
    /// It is refused.
    Reject,
    /// It disappears.
    Drop,
}

impl Outcome {
    /// Its name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Forward { .. } => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// Explains what happens to a packet on a node, from the state of a store. `None` while the store is
/// not complete.
///
/// It walks over all Services, and plans those that have to do with the packet.
pub fn explain<V: Consider>(store: &Store<V>, here: &Here, query: &Query) -> Option<Explanation> {
    explain_by_plan(store, here, query).map(|(explanation, _)| explanation)
}

/// The same, with the plan of the Services that have to do with the packet: what backends need to say
/// what the kernel holds for it.
pub fn explain_by_plan<V: Consider>(
    store: &Store<V>,
    here: &Here,
    query: &Query,
) -> Option<(Explanation, Plan)> {
    let relevant = Relevant::find(store, here, query)?;
    let interface = match &query.interface {
        _ if relevant.from_node => None,
        Some(name) => Some(&**name),
        // Not made on this node, whatever the interface is.
        None => Some(relevant.assumed_interface(&here.facts).unwrap_or_default()),
    };
    let Query { source, destination, protocol, port, .. } = *query;
    let from_node = relevant.from_node;
    let packet = Packet { source, interface, from_node, destination, protocol, port };

    let mut planner = Planner::new(Arc::clone(&here.node), here.facts.clone());
    planner.update(&relevant.update(&here.node));
    let decision = planner.plan().decision(&packet);
    let finding = relevant.finding(&decision, &planner, &packet);
    let notes = relevant.notes(&packet, &finding, &planner, here);
    let explanation = Explanation {
        query: query.clone(),
        node: Arc::clone(&here.node),
        provenance: relevant.provenance(&packet, query, &here.facts),
        finding,
        outcome: outcome(decision.verdict()),
        notes,
    };
    Some((explanation, planner.plan().clone()))
}

fn outcome(verdict: Verdict<'_>) -> Outcome {
    match verdict {
        Verdict::Pass => Outcome::Pass,
        Verdict::Reject => Outcome::Reject,
        Verdict::Drop => Outcome::Drop,
        Verdict::Forward { pool, masquerade, .. } => {
            Outcome::Forward { targets: pool.targets.clone(), masquerade }
        }
    }
}

/// What of a store has to do with a packet.
struct Relevant<V> {
    place: Place,
    node: Option<Arc<Node>>,
    /// The Services that have the destination as an address, or the port as a node port or for
    /// health checks, or the destination as an endpoint.
    services: Vec<(NamespacedName, Arc<V>)>,
    from_node: bool,
    /// The endpoint with the source address: its Pod, and whether it is on this node.
    source: Option<(Option<Box<str>>, bool)>,
}

impl<V: Consider> Relevant<V> {
    fn find(store: &Store<V>, here: &Here, query: &Query) -> Option<Self> {
        let node = store.node(&here.node);
        let place = Place::of(&here.node, node.as_deref());
        let from_node = here.owns(query.source);
        let mut found = Self { node, services: Vec::new(), from_node, source: None, place };
        let all = store.look_through(|key, state| found.look_at(key, state, query));
        all.then_some(found)
    }

    fn look_at(&mut self, key: &NamespacedName, state: &Arc<V>, query: &Query) {
        if let Some((pod, local)) = state.endpoint_at(query.source, &self.place) {
            self.source = Some((pod.map(Box::from), local));
        }
        let has_frontend = state.service().is_some_and(|service| {
            let ip = query.destination;
            let is_node_port = |port: &ServicePort| port.node_port == Some(query.port);
            service.cluster_ips.contains(&ip)
                || service.external_ips.contains(&ip)
                || service.load_balancer_ips.iter().any(|balancer| balancer.ip == ip)
                || service.ports.iter().any(is_node_port)
                || service.health_check_node_port == Some(query.port)
        });
        if has_frontend || state.endpoint_at(query.destination, &self.place).is_some() {
            self.services.push((key.clone(), Arc::clone(state)));
        }
    }

    /// All of it, as a reader of the store would be told.
    fn update(&self, node: &Arc<str>) -> Update<V> {
        let services = self
            .services
            .iter()
            .map(|(key, state)| (key.clone(), Change { old: None, new: Some(Arc::clone(state)) }));
        let nodes = self
            .node
            .iter()
            .map(|object| (Arc::clone(node), Change { old: None, new: Some(Arc::clone(object)) }));
        Update {
            revision: 0,
            full: true,
            complete: true,
            services: services.collect(),
            nodes: nodes.collect(),
            triggered: None,
        }
    }

    /// A name that the interface of the source must have if it is a pod of this node.
    fn assumed_interface<'f>(&self, facts: &'f NodeFacts) -> Option<&'f str> {
        match (&self.source, &facts.pods) {
            (Some((_, true)), PodDetection::Bridge(name) | PodDetection::InterfacePrefix(name)) => {
                Some(name)
            }
            _ => None,
        }
    }

    fn provenance(&self, packet: &Packet<'_>, query: &Query, facts: &NodeFacts) -> Provenance {
        let origin = facts.origin(packet);
        let detection = &facts.pods;
        let why = match (origin, detection) {
            (Origin::Node, _) => OriginReason::OwnAddress,
            (Origin::Pod, PodDetection::Cidrs(cidrs)) => {
                let mut cidrs = cidrs.iter().filter(|cidr| cidr.contains(&packet.source));
                OriginReason::PodCidr(*cidrs.next().expect("the source is in one of them"))
            }
            (Origin::Pod, PodDetection::Bridge(name) | PodDetection::InterfacePrefix(name)) => {
                let assumed = query.interface.is_none();
                OriginReason::PodInterface { name: Arc::clone(name), assumed }
            }
            (Origin::Outside | Origin::Pod, detection) => OriginReason::Neither {
                detection: match detection.works_for(Family::of(packet.source)) {
                    true => detection.clone(),
                    false => PodDetection::None,
                },
                interface_unknown: query.interface.is_none()
                    && matches!(
                        detection,
                        PodDetection::Bridge(_) | PodDetection::InterfacePrefix(_)
                    ),
            },
        };
        let pod = self.source.as_ref().and_then(|(pod, _)| pod.clone());
        Provenance { origin, why, pod }
    }

    fn finding(
        &self,
        decision: &Decision<'_>,
        planner: &Planner<V>,
        packet: &Packet<'_>,
    ) -> Finding {
        match decision {
            Decision::Frontend { service, frontend, admitted, origin, .. } => {
                let state = self.state(service);
                let local = state.localize(service, &self.place).expect("it was planned");
                let index = usize::from(frontend.service_port);
                let policies = policies(&local, planner.plan().facts());
                let policy = policies.iter().find(|(key, _)| *key == frontend.key());
                let policy = policy.expect("the same was planned").1;
                Finding::Frontend(Box::new(Match {
                    service: (*service).clone(),
                    frontend: frontend.key(),
                    port: local.service.ports[index].clone(),
                    treatment: policy.from(*origin),
                    policy,
                    sources: frontend.sources.clone(),
                    admitted: *admitted,
                    affinity: local.service.session_affinity,
                    endpoints: state.consider(index, frontend.at.family(), &self.place),
                }))
            }
            Decision::ClusterIp(service) => Finding::OtherPort {
                service: (*service).clone(),
                served: served(planner, |key| key.at == At::Vip(packet.destination)),
            },
            Decision::ServiceCidr(cidr) => Finding::Unallocated(**cidr),
            Decision::Nothing => Finding::Nothing,
        }
    }

    fn state(&self, service: &NamespacedName) -> &Arc<V> {
        let found = self.services.iter().find(|(key, _)| key == service);
        &found.expect("only these were planned").1
    }
}

/// The frontends of such keys that a plan has, sorted.
fn served<V: Consider>(
    planner: &Planner<V>,
    wanted: impl Fn(&FrontendKey) -> bool,
) -> Vec<FrontendKey> {
    let plans = planner.plan().services().values();
    let keys = plans.flat_map(|plan| plan.frontends.iter().map(Frontend::key));
    let mut served: Vec<_> = keys.filter(wanted).collect();
    served.sort_unstable();
    served
}
