//! Where connections go, by their original destination. One table, changed a service at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{
    Action, At, FrontendKey, LOCALHOST, NodeFacts, Origin, Plan, ServicePlan, Target,
};

/// All origins, in the order of [`Route::pools`].
pub(crate) const ORIGINS: [Origin; 3] = [Origin::Pod, Origin::Node, Origin::Outside];

/// Where the connections of one frontend go.
#[derive(Debug)]
pub(crate) struct Route {
    /// `namespace/name port protocol`: what affinity is kept for.
    pub(crate) service_port: Arc<str>,
    /// By origin; `None` where nothing is led here.
    pools: [Option<Pool>; 3],
    /// UDP flows to others are dead.
    pub(crate) serving: Arc<[Target]>,
    /// Connections and UDP flows there were. It goes on when the route is another.
    pub(crate) connections: Arc<AtomicU64>,
}

/// The targets to choose from.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) targets: Arc<[Target]>,
    pub(crate) affinity: Option<Duration>,
    /// Endpoints see an address of the node, not the client's.
    pub(crate) masquerade: bool,
}

impl Route {
    /// A connection came.
    pub(crate) fn count(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// The pool for packets of this origin.
    pub(crate) fn pool(&self, origin: Origin) -> Option<&Pool> {
        let index = ORIGINS.iter().position(|other| *other == origin)?;
        self.pools[index].as_ref()
    }
}

/// The table that connections look into.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    inner: RwLock<Inner>,
    generation: AtomicU64,
}

type Counts = HashMap<FrontendKey, Arc<AtomicU64>>;

#[derive(Debug, Default)]
struct Inner {
    facts: Arc<NodeFacts>,
    routes: HashMap<FrontendKey, Arc<Route>>,
    /// Who has the frontend, as it may move between two services in one change.
    owners: HashMap<FrontendKey, NamespacedName>,
}

impl Routes {
    /// The route of a frontend.
    pub(crate) fn find(&self, to: SocketAddr, protocol: Protocol) -> Option<Arc<Route>> {
        let inner = self.read();
        let key = |at| FrontendKey { at, protocol, port: to.port() };
        let vip = inner.routes.get(&key(At::Vip(to.ip())));
        let node_port = || {
            let family = Family::of(to.ip());
            inner
                .serves_node_ports_at(to.ip())
                .then(|| inner.routes.get(&key(At::NodePort(family))))
        };
        vip.or_else(|| node_port().flatten()).cloned()
    }

    /// Changes whenever any route does.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Everything is as this plan says.
    pub(crate) fn replace(&self, plan: &Plan) {
        let mut inner = self.write();
        let counts = inner.counts();
        *inner = Inner { facts: Arc::clone(plan.facts()), ..Inner::default() };
        for (key, service) in plan.services() {
            inner.add(key, service, &counts);
        }
        drop(inner);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// A service's plan is another now.
    pub(crate) fn change(
        &self,
        key: &NamespacedName,
        old: Option<&ServicePlan>,
        new: Option<&ServicePlan>,
    ) {
        let mut inner = self.write();
        let mut counts = HashMap::new();
        for frontend in old.iter().flat_map(|plan| &plan.frontends) {
            if let Entry::Occupied(owner) = inner.owners.entry(frontend.key())
                && owner.get() == key
            {
                owner.remove();
                let route = inner.routes.remove(&frontend.key());
                counts.extend(route.map(|r| (frontend.key(), Arc::clone(&r.connections))));
            }
        }
        if let Some(plan) = new {
            inner.add(key, plan, &counts);
        }
        drop(inner);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// How many connections there were to each frontend.
    pub(crate) fn connections(&self) -> HashMap<FrontendKey, u64> {
        let routes = &self.read().routes;
        let count = |route: &Route| route.connections.load(Ordering::Relaxed);
        routes.iter().map(|(key, route)| (*key, count(route))).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn serves_node_ports_at(&self, ip: IpAddr) -> bool {
        self.facts.node_port_addresses.contains(&ip)
            || self.facts.localhost_node_ports && ip == LOCALHOST
    }

    fn counts(&self) -> Counts {
        let of = |(key, route): (&FrontendKey, &Arc<Route>)| (*key, Arc::clone(&route.connections));
        self.routes.iter().map(of).collect()
    }

    /// Frontends that move from one service to another keep what they have counted, as those do that
    /// are in `counts`.
    fn add(&mut self, key: &NamespacedName, plan: &ServicePlan, counts: &Counts) {
        let pools: Vec<_> = plan
            .pools
            .iter()
            .map(|pool| Pool {
                targets: pool.targets.clone().into(),
                affinity: pool.affinity,
                masquerade: false,
            })
            .collect();
        for frontend in &plan.frontends {
            let service_port = frontend.service_port;
            let port = &plan.ports[usize::from(service_port)];
            let pool = |origin| match frontend.route.from(origin) {
                Action::Forward { pool, masquerade } => {
                    Some(Pool { masquerade, ..pools[usize::from(pool.0)].clone() })
                }
                Action::Reject | Action::Drop => None,
            };
            let before = self.routes.get(&frontend.key()).map(|route| &route.connections);
            let connections = before.or_else(|| counts.get(&frontend.key()));
            let route = Route {
                connections: connections.cloned().unwrap_or_default(),
                service_port: plan.port_identity(key, service_port).into(),
                pools: ORIGINS.map(pool),
                serving: port.serving.clone().into(),
            };
            self.routes.insert(frontend.key(), Arc::new(route));
            self.owners.insert(frontend.key(), key.clone());
        }
    }
}
