//! How the plan of a service changed, in terms of frontends and endpoints.

use std::net::SocketAddr;

use ipnet::IpNet;
use kpng_core::backend::Objects;
use kpng_core::plan::{Action, Frontend, ServicePlan, Target};
use serde_json::{Value, json};

/// What is there now and was not, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// The service itself came.
    pub(super) is_new: bool,
    /// The service itself went.
    pub(super) is_gone: bool,
    pub(super) frontends: Sides,
    /// Frontends whose packets are treated in another way than before.
    pub(super) changed_frontends: Objects,
    /// Endpoints that packets may be sent to.
    pub(super) endpoints: Sides,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) added: Objects,
    pub(super) removed: Objects,
}

impl Difference {
    /// From one plan of a service to the next.
    pub(super) fn between(old: Option<&ServicePlan>, new: Option<&ServicePlan>) -> Self {
        let (is_new, is_gone) = (old.is_none(), new.is_none());
        let nothing = ServicePlan::default();
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        let [old_keys, new_keys] =
            [old, new].map(|plan| sorted(plan.frontends.iter().map(Frontend::key)));
        let [old_targets, new_targets] = [old, new].map(targets);
        let mut changed_frontends = Objects::default();
        for frontend in &new.frontends {
            let before = old.frontends.iter().find(|other| other.key() == frontend.key());
            if before.is_some_and(|before| treatment(before, old) != treatment(frontend, new)) {
                changed_frontends.add(|| frontend.key().to_string());
            }
        }
        Self {
            is_new,
            is_gone,
            frontends: Sides::between(&old_keys, &new_keys, ToString::to_string),
            changed_frontends,
            endpoints: Sides::between(&old_targets, &new_targets, |target| {
                SocketAddr::new(target.address, target.port).to_string()
            }),
        }
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let is = match self {
            Self { is_new: true, .. } => "added",
            Self { is_gone: true, .. } => "removed",
            _ => "changed",
        };
        json!({
            "is": is,
            "frontends": {
                "added": objects_json(&self.frontends.added),
                "removed": objects_json(&self.frontends.removed),
                "changed": objects_json(&self.changed_frontends),
            },
            "endpoints": {
                "added": objects_json(&self.endpoints.added),
                "removed": objects_json(&self.endpoints.removed),
            },
        })
    }
}

/// How many, and the names of the first of them.
pub(super) fn objects_json(objects: &Objects) -> Value {
    json!({ "count": objects.count, "names": objects.names })
}

impl Sides {
    fn between<T: Ord>(old: &[T], new: &[T], name: impl Fn(&T) -> String) -> Self {
        let only = |these: &[T], others: &[T]| {
            let mut objects = Objects::default();
            for item in these.iter().filter(|item| others.binary_search(item).is_err()) {
                objects.add(|| name(item));
            }
            objects
        };
        Self { added: only(new, old), removed: only(old, new) }
    }
}

/// All that packets may be sent to.
fn targets(plan: &ServicePlan) -> Vec<Target> {
    sorted(plan.pools.iter().flat_map(|pool| pool.targets.iter().copied()))
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}

/// What becomes of packets to a frontend, whichever endpoints there are: refused, or forwarded with
/// or without masquerading, for how long to the same endpoint.
fn treatment<'a>(
    frontend: &'a Frontend,
    plan: &ServicePlan,
) -> (Option<&'a [IpNet]>, [Treatment; 3]) {
    let treatment = |action| match action {
        Action::Forward { pool, masquerade } => {
            Treatment::Forward { masquerade, affinity: plan.pools[usize::from(pool.0)].affinity }
        }
        Action::Reject => Treatment::Reject,
        Action::Drop => Treatment::Drop,
    };
    (frontend.sources.as_deref(), frontend.route.actions().map(treatment))
}

#[derive(PartialEq)]
enum Treatment {
    Forward { masquerade: bool, affinity: Option<std::time::Duration> },
    Reject,
    Drop,
}
