//! What else is worth knowing about a packet: mostly why nobody feels concerned by it.

use std::fmt;
use std::net::IpAddr;

use super::{Finding, Here, Relevant, served};
use crate::local::Consider;
use crate::model::{Family, NamespacedName, Protocol, TrafficPolicy};
use crate::plan::{At, Conflict, FrontendKey, LOCALHOST, Packet, Planner, Warning, serves_family};

/// Something worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// Another Service claims the frontend too.
    Conflict(Conflict),
    /// `loadBalancerSourceRanges` has no range of the packet's family.
    ClosedFamily(Family),
    /// The address is a load balancer's, which wants to see this traffic itself.
    ProxiedLoadBalancer(NamespacedName),
    /// The port is a node port, but none on this address of the node.
    NotOnThisAddress {
        /// Whose node port.
        service: NamespacedName,
        /// Where node ports of this family are served.
        served_at: Vec<IpAddr>,
    },
    /// The port is a node port, and the address none of this node's.
    NotOnThisNode(NamespacedName),
    /// The port is a node port, and 127.0.0.1 is not served, or not to others than this node.
    NotOnLocalhost(NamespacedName),
    /// The Service has the address, but does not live in its family.
    OtherFamily(NamespacedName, Family),
    /// Other ports or protocols of this address or this node port are served.
    Served(Vec<FrontendKey>),
    /// The destination is itself an endpoint, to which packets go without a proxy.
    Endpoint {
        /// Whose endpoint.
        service: NamespacedName,
        /// Its Pod.
        pod: Option<Box<str>>,
    },
    /// The port is where load balancers ask about a Service: kpng answers itself.
    HealthCheck(NamespacedName),
    /// The address of the frontend is a permitted source too, as the node's own address is one.
    OwnAddressPermitted,
    /// No Service has the address.
    NoService,
}

impl Note {
    /// Its name for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "conflict",
            Self::ClosedFamily(_) => "closed-family",
            Self::ProxiedLoadBalancer(_) => "proxied-load-balancer",
            Self::NotOnThisAddress { .. } => "not-on-this-address",
            Self::NotOnThisNode(_) => "not-on-this-node",
            Self::NotOnLocalhost(_) => "not-on-localhost",
            Self::OtherFamily(..) => "other-family",
            Self::Served(_) => "served",
            Self::Endpoint { .. } => "endpoint",
            Self::HealthCheck(_) => "health-check",
            Self::OwnAddressPermitted => "own-address-permitted",
            Self::NoService => "no-service",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(conflict) => write!(
                f,
                "{} claims this frontend too, but {} is older (metadata.creationTimestamp, then \
                 namespace and name)",
                conflict.loser, conflict.owner
            ),
            Self::ClosedFamily(family) => Warning::NoSourceRangeOfFamily(*family).fmt(f),
            Self::ProxiedLoadBalancer(service) => write!(
                f,
                "it is a load balancer address of {service} with ipMode Proxy \
                 (status.loadBalancer.ingress[].ipMode): the load balancer sees this traffic itself"
            ),
            Self::NotOnThisAddress { service, served_at } => {
                write!(f, "it is a node port of {service}, but not on this address: ")?;
                match &served_at[..] {
                    [] => f.write_str("--nodeport-addresses covers no address of this family"),
                    served_at => {
                        let list: Vec<_> = served_at.iter().map(ToString::to_string).collect();
                        write!(f, "--nodeport-addresses covers {}", list.join(", "))
                    }
                }
            }
            Self::NotOnThisNode(service) => write!(
                f,
                "the port is a node port of {service}, but the address is none of this node's"
            ),
            Self::NotOnLocalhost(service) => write!(
                f,
                "it is a node port of {service}, but on loopback addresses node ports are served \
                 only on 127.0.0.1, to the node itself, with --localhost-nodeports"
            ),
            Self::OtherFamily(service, family) => write!(
                f,
                "{service} has this address, but no cluster IP of family {0}, so it does not live \
                 in {0} (spec.ipFamilies)",
                family.name()
            ),
            Self::Served(served) => {
                let list: Vec<_> = served.iter().map(ToString::to_string).collect();
                write!(f, "served instead: {}", list.join(", "))
            }
            Self::Endpoint { service, pod: Some(pod) } => write!(
                f,
                "the destination is pod {pod}, an endpoint of {service}: it is reached directly"
            ),
            Self::Endpoint { service, pod: None } => {
                write!(f, "the destination is an endpoint of {service}: it is reached directly")
            }
            Self::HealthCheck(service) => write!(
                f,
                "it is the health check of {service} (spec.healthCheckNodePort), which kpng answers \
                 where it serves node ports (--nodeport-addresses): 200 while a ready endpoint is on this node, else 503"
            ),
            Self::OwnAddressPermitted => f.write_str(
                "the frontend's own address may come in too, because the node's address may: the \
                 node reaches it with either",
            ),
            Self::NoService => f.write_str(
                "no Service that kpng proxies has this address and port; it leaves alone those of \
                 type ExternalName, headless ones (clusterIP: None), and those with the label \
                 service.kubernetes.io/service-proxy-name (but see --service-proxy-name)",
            ),
        }
    }
}

impl<V: Consider> Relevant<V> {
    pub(super) fn notes(
        &self,
        packet: &Packet<'_>,
        finding: &Finding,
        planner: &Planner<V>,
        here: &Here,
    ) -> Vec<Note> {
        let Finding::Frontend(found) = finding else {
            return self.notes_on_nobody(packet, finding, planner, here);
        };
        let conflicts = planner.conflicts().into_iter();
        let mut notes: Vec<_> = conflicts
            .filter(|conflict| conflict.frontend == found.frontend)
            .map(Note::Conflict)
            .collect();
        let family = found.frontend.at.family();
        if let (At::Vip(ip), Some(sources)) = (found.frontend.at, &found.sources)
            && sources.contains(&ip.into())
        {
            notes.push(Note::OwnAddressPermitted);
        }
        let warnings = planner.plan().service(&found.service).map(|plan| &plan.warnings[..]);
        let closed = Warning::NoSourceRangeOfFamily(family);
        if !found.admitted && warnings.is_some_and(|warnings| warnings.contains(&closed)) {
            notes.push(Note::ClosedFamily(family));
        }
        notes
    }

    fn notes_on_nobody(
        &self,
        packet: &Packet<'_>,
        finding: &Finding,
        planner: &Planner<V>,
        here: &Here,
    ) -> Vec<Note> {
        let mut notes: Vec<_> = self
            .services
            .iter()
            .flat_map(|(key, state)| self.notes_on(key, state, packet, here))
            .collect();
        if *finding == Finding::Nothing {
            let family = Family::of(packet.destination);
            let served = served(planner, |key| match key.at {
                At::Vip(ip) => ip == packet.destination,
                At::NodePort(of) => {
                    (of, key.port) == (family, packet.port)
                        && key.protocol != packet.protocol
                        && here.facts.serves_node_ports_at(packet)
                }
            });
            if !served.is_empty() {
                notes.push(Note::Served(served));
            }
        }
        if notes.is_empty() && !matches!(finding, Finding::OtherPort { .. }) {
            notes.push(Note::NoService);
        }
        notes
    }

    /// Why this Service is not concerned.
    fn notes_on(
        &self,
        key: &NamespacedName,
        state: &V,
        packet: &Packet<'_>,
        here: &Here,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        let ip = packet.destination;
        let family = Family::of(ip);
        if let Some((pod, _)) = state.endpoint_at(ip, &self.place) {
            notes.push(Note::Endpoint { service: key.clone(), pod: pod.map(Box::from) });
        }
        let Some(service) = state.service() else { return notes };
        let balancers = &service.load_balancer_ips;
        if balancers.iter().any(|balancer| balancer.ip == ip && balancer.proxied) {
            notes.push(Note::ProxiedLoadBalancer(key.clone()));
        }
        let health_check = service.health_check_node_port == Some(packet.port)
            && service.external_traffic_policy == TrafficPolicy::Local;
        if health_check && packet.protocol == Protocol::Tcp && here.owns(ip) {
            notes.push(Note::HealthCheck(key.clone()));
        }
        let has_address = service.external_ips.contains(&ip)
            || balancers.iter().any(|balancer| balancer.ip == ip && !balancer.proxied);
        if !serves_family(service, family) && has_address {
            notes.push(Note::OtherFamily(key.clone(), family));
        }
        let mut ports = service.ports.iter();
        let is_node_port = ports
            .any(|port| (port.node_port, port.protocol) == (Some(packet.port), packet.protocol));
        if is_node_port && !here.owns(ip) {
            notes.push(Note::NotOnThisNode(key.clone()));
        } else if is_node_port && !here.facts.serves_node_ports_at(packet) {
            let served_at = here.facts.node_port_addresses.iter();
            let of_family = |ip: &&IpAddr| Family::of(**ip) == family;
            notes.push(match ip {
                LOCALHOST => Note::NotOnLocalhost(key.clone()),
                ip if ip.is_loopback() => Note::NotOnLocalhost(key.clone()),
                _ => Note::NotOnThisAddress {
                    service: key.clone(),
                    served_at: served_at.filter(of_family).copied().collect(),
                },
            });
        }
        notes
    }
}
