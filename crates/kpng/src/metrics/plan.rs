//! What metrics say about a plan.
//!
//! Only services that have something to say are remembered.

use std::collections::{BTreeMap, BTreeSet};

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{Action, At, Plan, ServicePlan};

/// Which services have a Local traffic policy, and endpoints on other nodes only.
#[derive(Debug, Default)]
pub(super) struct WithoutLocal {
    services: BTreeMap<NamespacedName, Ports>,
    sum: Ports,
}

/// How many ports of services, by the policy that is Local.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) internal: i64,
    pub(super) external: i64,
}

impl WithoutLocal {
    pub(super) fn ports(&self) -> Ports {
        self.sum
    }

    pub(super) fn update(&mut self, plan: &Plan, changed: Option<&[NamespacedName]>) {
        match changed {
            Some(changed) => changed.iter().for_each(|key| self.set(key, plan.service(key))),
            None => {
                *self = Self::default();
                plan.services().iter().for_each(|(key, service)| self.set(key, Some(service)));
            }
        }
    }

    fn set(&mut self, key: &NamespacedName, plan: Option<&impl AsRef<ServicePlan>>) {
        if let Some(old) = self.services.remove(key) {
            self.sum.internal -= old.internal;
            self.sum.external -= old.external;
        }
        let new = plan.map(|plan| Ports::of(plan.as_ref())).unwrap_or_default();
        if new != Ports::default() {
            self.sum.internal += new.internal;
            self.sum.external += new.external;
            self.services.insert(key.clone(), new);
        }
    }
}

impl Ports {
    /// A plan drops packets only for want of a local endpoint: without any endpoint it rejects.
    fn of(plan: &ServicePlan) -> Self {
        let (mut internal, mut external) = (BTreeSet::new(), BTreeSet::new());
        for frontend in &plan.frontends {
            if frontend.route.actions().contains(&Action::Drop) {
                let is_internal =
                    matches!(frontend.at, At::Vip(ip) if plan.cluster_ips.contains(&ip));
                let ports = if is_internal { &mut internal } else { &mut external };
                ports.insert(frontend.service_port);
            }
        }
        Self { internal: count(&internal), external: count(&external) }
    }
}

fn count(ports: &BTreeSet<u16>) -> i64 {
    i64::try_from(ports.len()).expect("there are no more than 65536 ports")
}

/// The families that the services named by `changed` are served in.
pub(super) fn families(plan: &Plan, changed: &[NamespacedName]) -> BTreeSet<Family> {
    let mut families = BTreeSet::new();
    for service in changed.iter().filter_map(|key| plan.service(key)) {
        families.extend(service.frontends.iter().map(|frontend| frontend.at.family()));
        if families.len() == Family::ALL.len() {
            break;
        }
    }
    families
}
