//! What is written first when much is to be written.

use std::sync::Arc;

use kpng_core::model::NamespacedName;
use kpng_core::plan::{Plan, ServicePlan};

/// All services: cluster DNS and the API server, then those with endpoints on this node, then the
/// rest.
pub(crate) fn by_importance(plan: &Plan) -> Vec<(&NamespacedName, &Arc<ServicePlan>)> {
    let rank = |(key, service): &(&NamespacedName, &Arc<ServicePlan>)| {
        let system =
            &*key.namespace == "kube-system" && service.ports.iter().any(|port| port.port == 53);
        let api_server = (&*key.namespace, &*key.name) == ("default", "kubernetes");
        match (system || api_server, service.has_local_endpoint) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    };
    let mut services: Vec<_> = plan.services().iter().collect();
    services.sort_by_key(rank);
    services
}
