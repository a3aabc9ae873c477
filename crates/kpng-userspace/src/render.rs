//! From a service's plan to elements: a pure function.

use kpng_core::model::Family;
use kpng_core::plan::{Action, At, ServicePlan};
use kpng_linux::nft::{Bytes, Element, Value};

use crate::names;
use crate::routes::ORIGINS;

/// The elements of a service in one family.
pub(crate) fn service(plan: &ServicePlan, family: Family) -> Vec<(&'static str, Element)> {
    let mut elements = Vec::new();
    for ip in plan.cluster_ips.iter().filter(|ip| Family::of(**ip) == family) {
        elements.push(in_set(names::CLUSTER_IPS, Bytes::EMPTY.address(*ip)));
    }
    for frontend in plan.frontends.iter().filter(|frontend| frontend.at.family() == family) {
        let (at, sets) = match frontend.at {
            At::Vip(ip) => {
                (Bytes::EMPTY.address(ip), [names::SERVICES, names::REJECTED, names::DROPPED])
            }
            At::NodePort(_) => (
                Bytes::EMPTY,
                [names::NODE_PORTS, names::REJECTED_NODE_PORTS, names::DROPPED_NODE_PORTS],
            ),
        };
        let at = at.protocol(frontend.protocol.number()).port(frontend.port);
        for origin in ORIGINS {
            let set = match frontend.route.from(origin) {
                Action::Forward { .. } => sets[0],
                Action::Reject => sets[1],
                Action::Drop => sets[2],
            };
            elements.push(in_set(set, at.number(names::number(origin))));
        }
        if let Some(sources) = &frontend.sources {
            elements.push(in_set(names::GUARDED, at));
            elements.push(in_set(names::STRANGERS, at));
            for range in sources {
                let last = Some(at.address(range.broadcast()));
                let key = at.address(range.network());
                elements.push((names::SOURCES, Element { key, last, value: Value::None }));
            }
        }
    }
    elements
}

/// The element of a set that is a key and nothing else.
pub(crate) fn in_set(set: &'static str, key: Bytes) -> (&'static str, Element) {
    (set, Element { key, last: None, value: Value::None })
}
