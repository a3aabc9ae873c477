//! Which pods a state asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kpng_core::model::{Endpoint, EndpointSlice, ServiceState};
use kpng_file::State;

/// More are not made: each takes threads and file descriptors.
pub(crate) const MAX_PODS: usize = 64;

/// A pod that endpoints tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// At most one address per family, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// It runs on this node.
    pub(crate) here: bool,
    /// What it listens on.
    pub(crate) ports: BTreeSet<u16>,
}

/// The pods by name: the one that the endpoint's `targetRef` has, else its address.
pub(crate) fn pods(state: &State, node: &str) -> BTreeMap<String, Pod> {
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    let mut names: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (endpoint, slice, service) in endpoints(state) {
        let address = endpoint.address;
        let named = endpoint.pod.as_deref().filter(|name| is_usable(name));
        let wanted = named.map_or_else(|| address.to_string(), str::to_owned);
        let other = |pod: &Pod| {
            pod.addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4() && *a != address)
        };
        let name = names.entry(address).or_insert_with(|| {
            // Pods of two namespaces may have one name.
            if pods.get(&wanted).is_some_and(other) { address.to_string() } else { wanted }
        });
        let pod = pods.entry(name.clone()).or_insert_with(|| Pod {
            addresses: Vec::new(),
            here: endpoint.node.as_deref().is_none_or(|on| on == node),
            ports: BTreeSet::new(),
        });
        if !pod.addresses.contains(&address) {
            pod.addresses.push(address);
            pod.addresses.sort();
        }
        let named = |name: &str| {
            service.service.iter().flat_map(|s| &s.ports).any(|port| &*port.name == name)
        };
        let ports = slice.ports.iter().filter(|port| named(&port.name) && port.port != 0);
        pod.ports.extend(ports.map(|port| port.port));
    }
    pods
}

/// The name of an object of Kubernetes, and of none of the hosts that are always there.
fn is_usable(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    !name.is_empty() && name.chars().all(fits) && !["client", "node", "visitor"].contains(&name)
}

fn endpoints(state: &State) -> impl Iterator<Item = (&Endpoint, &EndpointSlice, &ServiceState)> {
    state.services.values().flat_map(|service| {
        service.slices.iter().flat_map(move |(_, slice)| {
            slice.endpoints.iter().map(move |endpoint| (endpoint, &**slice, &**service))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::SCENARIOS;

    #[test]
    fn endpoints_become_pods_with_their_ports() {
        let text = SCENARIOS[0].steps[0].0;
        let state = kpng_file::parse(text, &kpng_file::Options::default()).unwrap();
        let pods = pods(&state, "node-a");
        let names: Vec<_> = pods.keys().map(String::as_str).collect();
        assert_eq!(names, ["dns-0", "web-0", "web-1"]);
        assert!(pods.values().all(|pod| pod.here && pod.ports == [8080].into()));
    }
}
