//! What holds for every text and every state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kpng_core::explain::Here;
use kpng_core::local::{Place, localize};
use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, LoadBalancerIp, NamespacedName, Node, Protocol, Service,
    ServicePort, ServiceState, ServiceType, SlicePort, TargetPort, TrafficPolicy,
};
use kpng_core::plan::{NodeFacts, PodDetection};
use kpng_core::store::Store;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::parse_ok;
use crate::{Options, State, dump, parse, render};

const EXAMPLES: [&str; 2] = [
    include_str!("../../../../examples/cluster.yaml"),
    include_str!("../../../../examples/state.yaml"),
];

/// A piece of an example is put to another place, or replaced by something that YAML cares for.
fn mutated() -> impl Strategy<Value = String> {
    let scrap = select(
        &[
            "",
            " ",
            "\n",
            ":",
            "- ",
            "[",
            "]",
            "{",
            "}",
            "null",
            "0",
            "-1",
            "99999999999999999999",
            "1.5",
            "\"",
            "'",
            "*a",
            "&a ",
            "<<: ",
            "---\n",
            "#",
            "|",
            "!!str ",
            "\t",
            "\u{feff}",
            "é",
            "None",
            "fd00::1",
            "true",
        ][..],
    );
    let mutation = (any::<Index>(), 0_usize..40, any::<Index>(), scrap, any::<bool>());
    (select(&EXAMPLES[..]), vec(mutation, 1..4)).prop_map(|(example, mutations)| {
        let mut text: Vec<char> = example.chars().collect();
        for (at, length, from, scrap, moved) in mutations {
            let at = at.index(text.len() + 1);
            let end = (at + length).min(text.len());
            let from = from.index(text.len() + 1);
            let piece: Vec<char> = if moved {
                text[from..(from + 30).min(text.len())].to_vec()
            } else {
                scrap.chars().collect()
            };
            text.splice(at..end, piece);
        }
        text.into_iter().collect()
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
    // Of all families and few enough to collide.
    prop_oneof![
        (0..20_u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (0..20_u16).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
    ]
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    (address(), 0..=32_u8).prop_map(|(address, length)| ipnet::IpNet::new(address, length).unwrap())
}

fn name() -> impl Strategy<Value = Arc<str>> {
    select(&["a", "b", "true", "0", "1e3", "x.y-z"][..]).prop_map(Arc::from)
}

fn text() -> impl Strategy<Value = Box<str>> {
    prop_oneof![any::<String>().prop_map(Box::from), "[ -~]{1,5}".prop_map(Box::from)]
}

fn strings() -> impl Strategy<Value = BTreeMap<Box<str>, Box<str>>> {
    btree_map(text(), text(), 0..3)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(&Protocol::ALL[..])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..])
}

fn port_name() -> impl Strategy<Value = Arc<str>> {
    select(&["", "a", "b"][..]).prop_map(Arc::from)
}

fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let target = prop_oneof![
        Just(TargetPort::Unset),
        (1..=u16::MAX).prop_map(TargetPort::Number),
        select(&["a", "t"][..]).prop_map(|name| TargetPort::Name(name.into())),
    ];
    let port = (port_name(), protocol(), 1..=u16::MAX, option::of(1..=u16::MAX), target);
    vec(port, 0..4).prop_map(|ports| {
        let mut distinct: Vec<ServicePort> = Vec::new();
        for (name, protocol, port, node_port, target_port) in ports {
            let clashes = |other: &ServicePort| {
                other.protocol == protocol && (other.name == name || other.port == port)
            };
            if !distinct.iter().any(clashes) {
                distinct.push(ServicePort { name, protocol, port, node_port, target_port });
            }
        }
        distinct
    })
}

fn service() -> impl Strategy<Value = Service> {
    let types = [
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ];
    let balancers = btree_map(address(), any::<bool>(), 0..3);
    let created = prop_oneof![any::<i64>(), 0..4_000_000_000_i64];
    (
        (select(types.to_vec()), vec(address(), 0..4), vec(address(), 0..4), balancers),
        (option::of(vec(net(), 0..3)), service_ports(), policy(), policy()),
        (option::of(1..=86_400_u64), option::of(1..=u16::MAX), option::of(created)),
        (strings(), strings()),
    )
        .prop_map(|((service_type, cluster_ips, external_ips, balancers), b, c, d)| Service {
            service_type,
            cluster_ips,
            external_ips,
            load_balancer_ips: balancers
                .into_iter()
                .map(|(ip, proxied)| LoadBalancerIp { ip, proxied })
                .collect(),
            load_balancer_source_ranges: b.0,
            ports: b.1,
            internal_traffic_policy: b.2,
            external_traffic_policy: b.3,
            session_affinity: c.0.map(Duration::from_secs),
            health_check_node_port: c.1,
            created: c.2,
            labels: d.0,
            annotations: d.1,
        })
}

fn names() -> impl Strategy<Value = Box<[Arc<str>]>> {
    vec(name(), 0..3).prop_map(|mut names| {
        names.sort_unstable();
        names.into()
    })
}

fn endpoint(address: IpAddr) -> impl Strategy<Value = Endpoint> {
    let condition = any::<bool>;
    let who = (option::of(name()), option::of(name()), option::of(name()), option::of(name()));
    ((condition(), condition(), condition()), who, names(), names()).prop_map(
        move |((ready, serving, terminating), (node, zone, hostname, pod), zones, nodes)| {
            Endpoint {
                address,
                conditions: Conditions { ready, serving, terminating },
                node,
                zone,
                zone_hints: zones,
                node_hints: nodes,
                hostname: hostname.map(|name| Box::from(&*name)),
                pod: pod.map(|name| Box::from(&*name)),
            }
        },
    )
}

/// Slices in which no address occurs twice: which of two endpoints with the same address counts
/// depends on their order, which a file does not keep.
fn slices() -> impl Strategy<Value = Vec<(Arc<str>, Arc<EndpointSlice>)>> {
    let port = (port_name(), protocol(), 1..=u16::MAX)
        .prop_map(|(name, protocol, port)| SlicePort { name, protocol, port });
    let endpoints = btree_map(address(), 0..3_usize, 0..8)
        .prop_flat_map(|addresses| {
            let endpoint = |(address, slice)| (endpoint(address), Just(slice));
            addresses.into_iter().map(endpoint).collect::<Vec<_>>()
        })
        .prop_shuffle();
    (endpoints, vec(vec(port, 0..4), 3)).prop_map(|(endpoints, ports)| {
        let slice = |(index, ports)| {
            let of_slice = endpoints.iter().filter(|(_, slice)| *slice == index);
            let endpoints = of_slice.map(|(endpoint, _)| endpoint.clone()).collect();
            (format!("slice-{index}").into(), Arc::new(EndpointSlice { endpoints, ports }))
        };
        ports.into_iter().enumerate().map(slice).collect()
    })
}

fn node() -> impl Strategy<Value = Node> {
    (
        option::of(name()),
        vec(address(), 0..3),
        vec(net(), 0..3),
        any::<bool>(),
        strings(),
        strings(),
    )
        .prop_map(|(zone, internal_ips, pod_cidrs, going_away, labels, annotations)| Node {
            zone,
            internal_ips,
            pod_cidrs,
            going_away,
            labels,
            annotations,
        })
}

fn state() -> impl Strategy<Value = State> {
    let key = (name(), name()).prop_map(|(namespace, name)| NamespacedName::new(namespace, name));
    let service = (service(), slices()).prop_map(|(service, slices)| {
        Arc::new(ServiceState { service: Some(service.into()), slices })
    });
    (btree_map(key, service, 0..3), btree_map(name(), node().prop_map(Arc::new), 0..3))
        .prop_map(|(services, nodes)| State { services, nodes, here: None })
}

fn here() -> impl Strategy<Value = Here> {
    let pods = prop_oneof![
        Just(PodDetection::None),
        vec(net(), 0..3).prop_map(PodDetection::Cidrs),
        name().prop_map(PodDetection::Bridge),
        name().prop_map(PodDetection::InterfacePrefix),
    ];
    let addresses = (vec(address(), 0..3), vec(address(), 0..3), vec(address(), 0..3));
    (name(), pods, addresses, any::<bool>(), any::<bool>(), vec(net(), 0..3)).prop_map(
        |(node, pods, (primary_ips, node_ports, addresses), localhost, all, service_cidrs)| Here {
            node,
            facts: NodeFacts {
                pods,
                primary_ips,
                node_port_addresses: node_ports.into_iter().collect(),
                localhost_node_ports: localhost,
                masquerade_all: all,
                service_cidrs,
            },
            addresses: addresses.into_iter().collect(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        if let Err(problem) = parse(&text, &Options::default()) {
            prop_assert!(!problem.reason.is_empty());
        }
    }

    #[test]
    fn no_mutated_text_makes_it_panic(text in mutated()) {
        match parse(&text, &Options::default()) {
            // What was read can be written and read again.
            Ok(state) => {
                let canonical = parse_ok(&render(&state));
                prop_assert_eq!(parse_ok(&render(&canonical)), canonical);
            }
            Err(problem) => {
                let lines = text.lines().count() + 1;
                prop_assert!(problem.line as usize <= lines, "{problem}");
                prop_assert!(!problem.to_string().contains('\n'), "{problem}");
            }
        }
    }

    /// What is written is read back: Services and Nodes with all their fields, slices with what
    /// they mean at any place.
    #[test]
    fn a_rendered_state_is_read_back(state in state(), here in name(), zone in option::of(name())) {
        let text = render(&state);
        let canonical = parse_ok(&text);
        prop_assert_eq!(&canonical.nodes, &state.nodes);
        prop_assert_eq!(canonical.services.len(), state.services.len());
        let place = Place { node: here, zone };
        for (key, service) in &state.services {
            let read_back = &canonical.services[key];
            prop_assert_eq!(&read_back.service, &service.service);
            prop_assert_eq!(localize(key, read_back, &place), localize(key, service, &place));
        }
        // From then on it is the same, to the byte.
        let text = render(&canonical);
        prop_assert_eq!(&parse_ok(&text), &canonical);
        prop_assert_eq!(render(&parse_ok(&text)), text);
    }

    /// A dump is read back as it was, slices and all.
    #[test]
    fn a_dump_is_read_back_exactly(mut state in state(), here in here()) {
        for (key, service) in &mut state.services {
            // Names of slices are unique in a namespace, which the generator does not know.
            for (name, _) in &mut Arc::make_mut(service).slices {
                *name = format!("{}-{name}", key.name).into();
            }
        }
        let (nodes, services) = (state.nodes.clone(), state.services.clone());
        let text: String = dump(here.clone(), nodes, services).collect();
        state.here = Some(here);
        prop_assert_eq!(parse_ok(&text), state);
    }

    /// A store becomes equal to a state, whatever it held before.
    #[test]
    fn a_store_becomes_equal(before in state(), after in state()) {
        let (mut writer, store) = Store::new();
        let mut reader = store.reader();
        let mut seen = State::default();
        for state in [before, after] {
            // Names of slices are unique in a namespace, which the generator does not know.
            let state = parse_ok(&render(&state));
            writer.apply(state.clone().into_batch());
            reader.try_next().into_iter().for_each(|update| seen.apply(&update));
            prop_assert_eq!(&seen, &state);
            let revision = store.revision();
            prop_assert_eq!(writer.apply(state.into_batch()).changed, 0);
            prop_assert_eq!(store.revision(), revision);
        }
    }
}
