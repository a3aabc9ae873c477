//! The limit of the `recent` match, in which clients' addresses stick to endpoints.

use std::collections::BTreeSet;

use kpng_core::model::NamespacedName;
use kpng_core::plan::ServicePlan;

/// Where the kernel tells how many addresses a list holds. It is fixed when the module is loaded.
const LIMIT: &str = "/sys/module/xt_recent/parameters/ip_list_tot";

/// With fewer addresses than this for each endpoint, people should know.
const SMALL: u64 = 10_000;

/// The kernel's limit of addresses for each endpoint of a service with affinity; when it is
/// reached, the client that was not seen for longest is forgotten. `None` when it is not told.
pub(crate) fn limit() -> Option<u64> {
    std::fs::read_to_string(LIMIT).ok()?.trim().parse().ok()
}

/// Whether clients stick to one of several endpoints of the service.
pub(crate) fn needs_lists(plan: &ServicePlan) -> bool {
    plan.pools.iter().any(|pool| pool.affinity.is_some() && pool.targets.len() > 1)
}

/// What an operator should know about the limit.
pub(crate) fn warning(limit: Option<u64>, sticky: &BTreeSet<NamespacedName>) -> Option<String> {
    let first = sticky.first()?;
    let clients = match limit {
        Some(limit) if limit >= SMALL => return None,
        Some(limit) => format!("{limit} clients of each endpoint only"),
        None => format!("the number of clients that {LIMIT} tells, which cannot be read here"),
    };
    Some(format!(
        "services with ClientIP affinity ({}, such as {first}): the kernel keeps it for {clients}; \
         with more, those not seen for longest lose it. Load the module with a higher limit: \
         options xt_recent ip_list_tot={SMALL} in /etc/modprobe.d, before anything uses it",
        sticky.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_is_named_when_it_matters() {
        let nobody = BTreeSet::new();
        let sticky = BTreeSet::from([NamespacedName::new("shop", "web")]);
        assert_eq!(warning(Some(100), &nobody), None);
        assert_eq!(warning(Some(20_000), &sticky), None);
        assert!(warning(None, &sticky).is_some_and(|text| text.contains(LIMIT)));
        let text = warning(Some(100), &sticky).expect("100 is small");
        assert!(text.contains("shop/web") && text.contains("for 100 clients"), "{text}");
    }
}
