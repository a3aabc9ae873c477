//! What holds for all states: what arrives is what was sent, by differences as in full.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kpng_core::local::{LocalService, Place, localize};
use kpng_core::model::{
    Conditions, Endpoint, EndpointSlice, LoadBalancerIp, NamespacedName, Protocol, Service,
    ServicePort, ServiceState, ServiceType, SlicePort, TargetPort, TrafficPolicy,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Copy, Ops, unframe};
use crate::proto::localv1::Set;
use crate::wire::{
    decode_endpoint_info, decode_local_endpoints, decode_service, decode_service_info, global_ops,
    local_ops,
};

/// Of both families, and few enough to meet.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (8..12_u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (8..12_u16).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
    ]
}

fn name() -> impl Strategy<Value = Arc<str>> {
    select(&["a", "b", "c"][..]).prop_map(Arc::from)
}

fn boxed_name() -> impl Strategy<Value = Box<str>> {
    select(&["a", "b", "c/d"][..]).prop_map(Box::from)
}

/// Few, so that Services and slices often agree.
fn port_name() -> impl Strategy<Value = Arc<str>> {
    select(&["", "a"][..]).prop_map(Arc::from)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 1 => select(&Protocol::ALL[..])]
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..])
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let target = prop_oneof![
        Just(TargetPort::Unset),
        (1..4_u16).prop_map(TargetPort::Number),
        name().prop_map(TargetPort::Name),
    ];
    (port_name(), protocol(), 1..=u16::MAX, option::of(1..=u16::MAX), target).prop_map(
        |(name, protocol, port, node_port, target_port)| ServicePort {
            name,
            protocol,
            port,
            node_port,
            target_port,
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let types = [
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ];
    let balancer =
        (address(), any::<bool>()).prop_map(|(ip, proxied)| LoadBalancerIp { ip, proxied });
    let range = (address(), 0..=32_u8)
        .prop_map(|(address, length)| ipnet::IpNet::new(address, length).unwrap());
    let strings = || btree_map(boxed_name(), boxed_name(), 0..2);
    let addresses = || vec(address(), 0..3);
    (
        (select(types.to_vec()), addresses(), addresses(), vec(balancer, 0..3)),
        (option::of(vec(range, 0..3)), vec(service_port(), 0..4), policy(), policy()),
        (option::of(1..=86_400_u64), option::of(1..=u16::MAX), option::of(any::<i64>())),
        (strings(), strings()),
    )
        .prop_map(|(a, b, c, d)| Service {
            service_type: a.0,
            cluster_ips: a.1,
            external_ips: a.2,
            load_balancer_ips: a.3,
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

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let condition = |likely| prop::bool::weighted(if likely { 0.7 } else { 0.3 });
    let names = || {
        vec(name(), 0..2).prop_map(|mut names| {
            names.sort_unstable();
            Box::from(names)
        })
    };
    let who = (
        option::of(name()),
        option::of(name()),
        option::of(boxed_name()),
        option::weighted(0.7, boxed_name()),
    );
    (address(), (condition(true), condition(true), condition(false)), who, names(), names())
        .prop_map(|(address, conditions, (node, zone, hostname, pod), zone_hints, node_hints)| {
            let (ready, serving, terminating) = conditions;
            let conditions = Conditions { ready, serving, terminating };
            Endpoint { address, conditions, node, zone, zone_hints, node_hints, hostname, pod }
        })
}

fn slice() -> impl Strategy<Value = Arc<EndpointSlice>> {
    let port = (port_name(), protocol(), 1..4_u16).prop_map(|(name, protocol, port)| SlicePort {
        name,
        protocol,
        port,
    });
    (vec(endpoint(), 0..6), vec(port, 0..4))
        .prop_map(|(endpoints, ports)| EndpointSlice { endpoints, ports }.into())
}

fn state() -> impl Strategy<Value = ServiceState> {
    let slices = btree_map(name(), slice(), 0..4);
    (option::weighted(0.8, service()), slices).prop_map(|(service, slices)| ServiceState {
        service: service.map(Arc::new),
        slices: slices.into_iter().collect(),
    })
}

/// The Service `base` with everything that decides about messages of endpoints from `frame`.
fn framed(base: &Service, frame: &Service) -> Service {
    Service {
        ports: frame.ports.clone(),
        internal_traffic_policy: frame.internal_traffic_policy,
        external_traffic_policy: frame.external_traffic_policy,
        ..base.clone()
    }
}

/// A state and one that comes from it: parts stay, the same or equal, and others change.
fn change() -> impl Strategy<Value = (ServiceState, ServiceState)> {
    (state(), state(), 0..6, 0..4).prop_map(|(old, mut new, service_change, slice_change)| {
        if let (Some(before), Some(after)) = (&old.service, &new.service) {
            new.service = Some(match service_change {
                0 => Arc::clone(after),
                1 => Arc::clone(before),
                2 => Arc::new(Service::clone(before)),
                3 => framed(after, before).into(),
                _ => framed(before, after).into(),
            });
        }
        match slice_change {
            0 => {}
            1 => {
                let mut slices: BTreeMap<_, _> = new.slices.into_iter().collect();
                slices.extend(old.slices.iter().skip(1).cloned());
                new.slices = slices.into_iter().collect();
            }
            _ => new.slices = old.slices.clone(),
        }
        (old, new)
    })
}

/// A Service and its slices before and after.
type Change = (Option<ServiceState>, Option<ServiceState>);

/// Two Services, which may come and go.
fn changes() -> impl Strategy<Value = [Change; 2]> {
    let presence = || select(&[(true, true), (true, true), (true, false), (false, true)][..]);
    let one = || {
        (change(), presence()).prop_map(|((old, new), (before, after))| {
            (Some(old).filter(|_| before), Some(new).filter(|_| after))
        })
    };
    [one(), one()]
}

/// From which state to which.
type Step<'a> = (Option<&'a ServiceState>, Option<&'a ServiceState>);

fn to_old((old, _): &Change) -> Step<'_> {
    (None, old.as_ref())
}

fn old_to_new((old, new): &Change) -> Step<'_> {
    (old.as_ref(), new.as_ref())
}

fn to_new((_, new): &Change) -> Step<'_> {
    (None, new.as_ref())
}

fn nowhere((old, _): &Change) -> Step<'_> {
    (old.as_ref(), old.as_ref())
}

fn keys() -> [NamespacedName; 2] {
    // One is a prefix of the other.
    [NamespacedName::new("ns", "a"), NamespacedName::new("ns", "a-1")]
}

fn here() -> Place {
    Place { node: "a".into(), zone: Some("a".into()) }
}

fn local(key: &NamespacedName, state: Option<&ServiceState>) -> Option<LocalService> {
    localize(key, state?, &here())
}

/// Sends operations as a server does, and calls `check` after each.
fn send(copy: &mut Copy, ops: &[Ops], check: impl Fn(&Copy)) {
    for group in 0..Ops::GROUPS {
        for item in ops.iter().flat_map(|ops| unframe(ops.group(group))) {
            copy.apply(item);
            check(copy);
        }
    }
}

fn no_endpoint_without_service(copy: &Copy) {
    for (path, _) in copy.values(Set::EndpointsSet) {
        let [namespace, name, _] = *path.split('/').collect::<Vec<_>>() else {
            panic!("{path} has not three parts")
        };
        let service = format!("{namespace}/{name}");
        assert!(copy.0.contains_key(&(Set::ServicesSet, service)), "{path} has no Service");
    }
}

/// The same addresses in KPNG's order.
fn ordered(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let distinct: BTreeSet<_> =
        addresses.iter().map(|ip| (ip.is_ipv6(), ip.to_string(), *ip)).collect();
    distinct.into_iter().map(|(_, _, ip)| ip).collect()
}

/// What of a Service arrives: all but the order of addresses.
fn on_the_wire(service: &Service) -> Service {
    let balancers = |proxied: bool| {
        let ips = service.load_balancer_ips.iter().filter(|ip| ip.proxied == proxied);
        let ips = ordered(&ips.map(|ip| ip.ip).collect::<Vec<_>>()).into_iter();
        ips.map(move |ip| LoadBalancerIp { ip, proxied }).collect::<Vec<_>>()
    };
    Service {
        cluster_ips: ordered(&service.cluster_ips),
        external_ips: ordered(&service.external_ips),
        load_balancer_ips: [balancers(false), balancers(true)].concat(),
        ..service.clone()
    }
}

fn with_target_ports(mut service: Service) -> Service {
    for port in &mut service.ports {
        if port.target_port == TargetPort::Unset {
            port.target_port = TargetPort::Number(port.port);
        }
    }
    service
}

/// No message has a field from 32 up.
fn assert_kpngs(copy: &Copy) {
    for ((set, path), bytes) in &copy.0 {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (tag, wire_type) = prost::encoding::decode_key(&mut rest).unwrap();
            assert!(tag < 32, "{set:?} {path} has the field {tag}");
            let context = prost::encoding::DecodeContext::default();
            prost::encoding::skip_field(wire_type, tag, &mut rest, context).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn a_local_service_arrives(state in state()) {
        let [key, _] = keys();
        let Some(sent) = local(&key, Some(&state)) else { return Ok(()) };
        let mut copy = Copy::default();
        send(&mut copy, &[local_ops(None, Some(&sent), true)], |_| {});
        let (_, bytes) = copy.values(Set::ServicesSet).next().unwrap();
        let (arrived_key, service) = decode_service(bytes).unwrap();
        let endpoints = copy
            .values(Set::EndpointsSet)
            .flat_map(|(_, bytes)| decode_local_endpoints(bytes, &service).unwrap())
            .collect();
        let arrived = LocalService::new(arrived_key, service.into(), endpoints);
        let expected = with_target_ports(on_the_wire(&sent.service)).into();
        prop_assert_eq!(arrived, LocalService::new(key, expected, sent.endpoints));
    }

    #[test]
    fn local_differences_add_up(changes in changes(), details: bool) {
        let ops = |step: fn(&Change) -> Step<'_>| {
            let one = |(key, change): (&NamespacedName, &Change)| {
                let (old, new) = step(change);
                local_ops(local(key, old).as_ref(), local(key, new).as_ref(), details)
            };
            keys().iter().zip(&changes).map(one).collect::<Vec<_>>()
        };
        let (mut copy, mut expected) = (Copy::default(), Copy::default());
        send(&mut copy, &ops(to_old), no_endpoint_without_service);
        send(&mut copy, &ops(old_to_new), no_endpoint_without_service);
        send(&mut expected, &ops(to_new), no_endpoint_without_service);
        prop_assert_eq!(&copy, &expected);
        prop_assert!(ops(nowhere).iter().all(Ops::is_empty));
        if !details {
            assert_kpngs(&copy);
        }
    }
}

/// No endpoint is without its Service, of the keys in question.
fn no_endpoint_outlives_its_service(in_question: &[bool; 2], copy: &Copy) {
    for (path, _) in copy.values(Set::GlobalEndpointInfos) {
        for (key, in_question) in keys().iter().zip(in_question) {
            let service = format!("{}|{}||", key.namespace, key.name);
            let mine = path.starts_with(&service[..service.len() - 1]);
            let there = copy.0.contains_key(&(Set::GlobalServiceInfos, service));
            assert!(!mine || !in_question || there, "{path} has no Service");
        }
    }
}

type Slices = BTreeMap<(Arc<str>, Arc<str>), Vec<(Endpoint, Vec<SlicePort>)>>;

fn sort(slices: &mut Slices) {
    for endpoints in slices.values_mut() {
        endpoints.sort_by_key(|endpoint| format!("{endpoint:?}"));
        endpoints.dedup();
    }
}

proptest! {
    #[test]
    fn a_global_service_arrives(state in state()) {
        let [key, _] = keys();
        let mut copy = Copy::default();
        send(&mut copy, &[global_ops(&key, None, Some(&state), true)], |_| {});
        let services: Vec<_> = copy
            .values(Set::GlobalServiceInfos)
            .map(|(_, bytes)| decode_service_info(bytes).unwrap())
            .collect();
        let expected = state.service.as_ref().map(|service| (key.clone(), on_the_wire(service)));
        prop_assert_eq!(services, expected.into_iter().collect::<Vec<_>>());

        let mut arrived = Slices::new();
        for (_, bytes) in copy.values(Set::GlobalEndpointInfos) {
            let info = decode_endpoint_info(bytes).unwrap();
            prop_assert_eq!(&info.namespace, &key.namespace);
            let [endpoint] = info.endpoints.try_into().unwrap();
            let at = (info.service, info.slice);
            arrived.entry(at).or_default().push((endpoint, info.ports));
        }
        let mut expected = Slices::new();
        for (name, slice) in &state.slices {
            for endpoint in &slice.endpoints {
                let at = (Arc::clone(&key.name), Arc::clone(name));
                expected.entry(at).or_default().push((endpoint.clone(), slice.ports.clone()));
            }
        }
        sort(&mut arrived);
        sort(&mut expected);
        prop_assert_eq!(arrived, expected);
    }

    #[test]
    fn global_differences_add_up(changes in changes(), details: bool) {
        let ops = |step: fn(&Change) -> Step<'_>| {
            let one = |(key, change): (&NamespacedName, &Change)| {
                let (old, new) = step(change);
                global_ops(key, old, new, details)
            };
            keys().iter().zip(&changes).map(one).collect::<Vec<_>>()
        };
        // Slices without a Service are sent too.
        let is_whole = |state: &Option<ServiceState>| {
            state.as_ref().is_none_or(|state| state.service.is_some())
        };
        let before = changes.each_ref().map(|(old, _)| is_whole(old));
        let both = changes.each_ref().map(|(old, new)| is_whole(old) && is_whole(new));
        let after = changes.each_ref().map(|(_, new)| is_whole(new));
        let (mut copy, mut expected) = (Copy::default(), Copy::default());
        send(&mut copy, &ops(to_old), |copy| no_endpoint_outlives_its_service(&before, copy));
        send(&mut copy, &ops(old_to_new), |copy| no_endpoint_outlives_its_service(&both, copy));
        send(&mut expected, &ops(to_new), |copy| no_endpoint_outlives_its_service(&after, copy));
        prop_assert_eq!(&copy, &expected);
        prop_assert!(ops(nowhere).iter().all(Ops::is_empty));
        if !details {
            assert_kpngs(&copy);
        }
    }
}
