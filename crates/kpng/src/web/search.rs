//! What somebody types to find services.

use std::net::{IpAddr, SocketAddr};

use kpng_core::local::{Consider, Place};
use kpng_core::model::{NamespacedName, Service};

/// Words that all have to fit a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Search(Vec<Word>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// Part of `namespace/name`, in lower case.
    Text(String),
    /// A port, or part of the name.
    Port(u16, String),
    /// An address of the service, or of an endpoint.
    Address(IpAddr),
    /// An address with a port of the service, or with an endpoint's address.
    AddressAndPort(IpAddr, u16),
    /// How an address of the service begins.
    Prefix(String),
}

impl Search {
    /// Reads what was typed. Everything has a meaning; nothing finds everything.
    pub(super) fn parse(typed: &str) -> Self {
        Self(typed.split_whitespace().map(|word| Word::parse(&word.to_ascii_lowercase())).collect())
    }

    /// Whether a service is meant.
    pub(super) fn finds(
        &self,
        key: &NamespacedName,
        service: &Service,
        state: &impl Consider,
        here: &Place,
    ) -> bool {
        self.0.iter().all(|word| word.fits(key, service, state, here))
    }
}

impl Word {
    fn parse(word: &str) -> Self {
        let without_protocol = match word.rsplit_once('/') {
            Some((address, "tcp" | "udp" | "sctp")) => address,
            _ => word,
        };
        let bare = without_protocol.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = without_protocol.parse::<SocketAddr>() {
            Self::AddressAndPort(address.ip().to_canonical(), address.port())
        } else if let Ok(address) = bare.parse::<IpAddr>() {
            Self::Address(address.to_canonical())
        } else if let Ok(port) = without_protocol.parse() {
            Self::Port(port, word.to_owned())
        } else if word.contains(['.', ':']) {
            // No namespace or Service has these in its name.
            Self::Prefix(bare.to_owned())
        } else {
            Self::Text(word.to_owned())
        }
    }

    fn fits(
        &self,
        key: &NamespacedName,
        service: &Service,
        state: &impl Consider,
        here: &Place,
    ) -> bool {
        match self {
            Self::Text(text) => names(key, text),
            Self::Port(port, text) => has_port(service, *port) || names(key, text),
            Self::Address(ip) => {
                addresses(service).any(|own| own == *ip) || state.endpoint_at(*ip, here).is_some()
            }
            Self::AddressAndPort(ip, port) => {
                addresses(service).any(|own| own == *ip) && has_port(service, *port)
                    || state.endpoint_at(*ip, here).is_some()
            }
            Self::Prefix(prefix) => {
                addresses(service).any(|own| own.to_string().starts_with(prefix))
            }
        }
    }
}

/// Whether `text`, in lower case as such names are, is in `namespace/name`.
fn names(key: &NamespacedName, text: &str) -> bool {
    match text.split_once('/') {
        Some((namespace, name)) => key.namespace.ends_with(namespace) && key.name.starts_with(name),
        None => key.namespace.contains(text) || key.name.contains(text),
    }
}

fn has_port(service: &Service, number: u16) -> bool {
    service.health_check_node_port == Some(number)
        || service.ports.iter().any(|port| port.port == number || port.node_port == Some(number))
}

/// Where the service is reached, node ports aside.
pub(super) fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancers = service.load_balancer_ips.iter().map(|balancer| balancer.ip);
    service.cluster_ips.iter().chain(&service.external_ips).copied().chain(balancers)
}
