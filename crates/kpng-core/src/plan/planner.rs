//! Keeps a [`Plan`] equal to what the store says, one changed service at a time.
//!
//! Work is proportional to what changed: only changed services are planned again, and only a change
//! of the node's own facts plans all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Frontend, FrontendKey, NodeFacts, ServicePlan, Warning, plan_service};
use crate::local::{LocalView, Localize};
use crate::model::{NamespacedName, ServiceState};
use crate::store::Update;

/// Everything that this node's data path shall do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    facts: Arc<NodeFacts>,
    services: BTreeMap<NamespacedName, Arc<ServicePlan>>,
    owners: HashMap<FrontendKey, NamespacedName>,
    service_ports: usize,
}

impl Plan {
    /// The node's own part.
    pub fn facts(&self) -> &Arc<NodeFacts> {
        &self.facts
    }

    /// The plans of all services. Frontends are unique across them.
    pub fn services(&self) -> &BTreeMap<NamespacedName, Arc<ServicePlan>> {
        &self.services
    }

    /// The plans of all services in the order in which a cold start shall write them: cluster DNS and
    /// the API server, then those with endpoints on this node, then the rest.
    pub fn by_importance(&self) -> Vec<(&NamespacedName, &Arc<ServicePlan>)> {
        let rank = |(key, service): &(&NamespacedName, &Arc<ServicePlan>)| {
            let system = &*key.namespace == "kube-system"
                && service.ports.iter().any(|port| port.port == 53);
            let api_server = (&*key.namespace, &*key.name) == ("default", "kubernetes");
            match (system || api_server, service.has_local_endpoint) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            }
        };
        let mut services: Vec<_> = self.services.iter().collect();
        services.sort_by_key(rank);
        services
    }

    /// The plan of one service.
    pub fn service(&self, key: &NamespacedName) -> Option<&Arc<ServicePlan>> {
        self.services.get(key)
    }

    /// How many ports all services have together.
    pub fn service_ports(&self) -> usize {
        self.service_ports
    }

    /// The frontend with this key, and the service that owns it.
    pub fn owner(&self, key: &FrontendKey) -> Option<(&NamespacedName, &ServicePlan, &Frontend)> {
        let (service, plan) = self.services.get_key_value(self.owners.get(key)?)?;
        let frontend = plan.frontends.iter().find(|frontend| frontend.key() == *key)?;
        Some((service, plan, frontend))
    }
}

/// Two services claim one frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// What they claim.
    pub frontend: FrontendKey,
    /// Who has it: the older one, then the first by namespace and name.
    pub owner: NamespacedName,
    /// Who has not.
    pub loser: NamespacedName,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { frontend, owner, loser } = self;
        write!(
            f,
            "{loser} claims {frontend}, which belongs to {owner}; it is not served for {loser} until {owner} gives it up"
        )
    }
}

/// What one [`Planner::update`] changed in the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The node's facts changed.
    pub facts: bool,
    /// The services whose plans differ, sorted.
    pub services: Vec<NamespacedName>,
    /// Their plans before, where there were any.
    pub before: BTreeMap<NamespacedName, Arc<ServicePlan>>,
    /// How many services were planned, for those who watch the cost.
    pub planned: usize,
    /// Conflicts that arose.
    pub conflicts: Vec<Conflict>,
    /// Warnings that arose.
    pub warnings: Vec<(NamespacedName, Warning)>,
}

impl Changes {
    /// Adds what changed after this.
    pub fn merge(&mut self, later: Self) {
        self.facts |= later.facts;
        self.planned += later.planned;
        for (key, plan) in later.before {
            if self.services.binary_search(&key).is_err() {
                self.before.insert(key, plan);
            }
        }
        self.services.extend(later.services);
        self.conflicts.extend(later.conflicts);
        self.warnings.extend(later.warnings);
        self.services.sort_unstable();
        self.services.dedup();
        self.conflicts.sort_unstable();
        self.conflicts.dedup();
    }

    /// The plan is as it was.
    pub fn is_empty(&self) -> bool {
        !self.facts && self.services.is_empty()
    }
}

/// Computes the plan of one node from the updates of a store's reader.
#[derive(Debug)]
pub struct Planner<V = ServiceState> {
    view: LocalView<V>,
    /// What each service asks for, with the frontends that it does not own.
    wishes: BTreeMap<NamespacedName, Arc<ServicePlan>>,
    /// Who else claims a frontend; only frontends with several claimants are here.
    contested: HashMap<FrontendKey, BTreeSet<Claim>>,
    plan: Plan,
}

/// One round of planning: what was there before, and what is known of the changes already.
#[derive(Debug, Default)]
struct Pass {
    /// The plans before of the services that were published.
    plans: BTreeMap<NamespacedName, Option<Arc<ServicePlan>>>,
    /// The conflicts before at the frontends whose claimants changed.
    conflicts: BTreeMap<FrontendKey, Vec<Conflict>>,
    planned: usize,
    warnings: Vec<(NamespacedName, Warning)>,
}

/// A claimant, in the order of precedence: older first, unknown age last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: (bool, Option<i64>),
    service: NamespacedName,
}

impl Claim {
    fn new(service: &NamespacedName, plan: &ServicePlan) -> Self {
        Self { created: (plan.created.is_none(), plan.created), service: service.clone() }
    }
}

impl<V: Localize> Planner<V> {
    /// A planner for the node `node` that knows nothing yet.
    pub fn new(node: impl Into<Arc<str>>, facts: NodeFacts) -> Self {
        Self {
            view: LocalView::new(node),
            wishes: BTreeMap::new(),
            contested: HashMap::new(),
            plan: Plan { facts: Arc::new(facts), ..Plan::default() },
        }
    }

    /// The plan as of the last update.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The name of the node that is planned for.
    pub fn node(&self) -> &Arc<str> {
        &self.view.place().node
    }

    /// All conflicts that exist, sorted.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts: Vec<_> =
            self.contested.keys().flat_map(|key| self.conflicts_at(key)).collect();
        conflicts.sort_unstable();
        conflicts
    }

    /// How many claims to frontends are not met.
    pub fn conflict_count(&self) -> usize {
        self.contested.values().map(|claims| claims.len() - 1).sum()
    }

    /// Replaces the node's facts; plans everything again if they differ.
    pub fn set_facts(&mut self, facts: NodeFacts) -> Changes {
        if *self.plan.facts == facts {
            return Changes::default();
        }
        self.plan.facts = Arc::new(facts);
        let keys: Vec<_> = self.view.keys().cloned().collect();
        Changes { facts: true, ..self.replan_all(keys) }
    }

    /// Takes over what a reader said.
    pub fn update(&mut self, update: &Update<V>) -> Changes {
        let affected = self.view.update(update);
        self.replan_all(affected)
    }

    fn replan_all(&mut self, keys: impl IntoIterator<Item = NamespacedName>) -> Changes {
        let mut pass = Pass::default();
        for key in keys {
            self.replan(&key, &mut pass);
        }
        self.changes(pass)
    }

    /// What differs from before the pass. On the way a frontend may have gone back and forth.
    fn changes(&self, pass: Pass) -> Changes {
        let Pass { plans, conflicts, planned, warnings } = pass;
        let (mut services, mut replaced) = (Vec::new(), BTreeMap::new());
        for (key, old) in plans {
            if self.plan.services.get(&key) != old.as_ref() {
                replaced.extend(old.map(|old| (key.clone(), old)));
                services.push(key);
            }
        }
        let arose = |(frontend, before): (FrontendKey, Vec<Conflict>)| {
            let now = self.conflicts_at(&frontend).into_iter();
            now.filter(move |conflict| !before.contains(conflict))
        };
        let mut conflicts: Vec<_> = conflicts.into_iter().flat_map(arose).collect();
        conflicts.sort_unstable();
        Changes { facts: false, services, before: replaced, planned, conflicts, warnings }
    }

    fn replan(&mut self, key: &NamespacedName, pass: &mut Pass) {
        let local = self.view.get(key);
        let new = local.map(|local| Arc::new(plan_service(&local, &self.plan.facts)));
        pass.planned += 1;
        let old = self.wishes.get(key).cloned();
        if old == new {
            return;
        }
        if let Some(plan) = &new {
            let before = old.as_ref().map_or(&[][..], |old| &old.warnings);
            let arose = plan.warnings.iter().filter(|warning| !before.contains(warning));
            pass.warnings.extend(arose.map(|warning| (key.clone(), *warning)));
        }
        let mut affected = BTreeSet::from([key.clone()]);
        self.withdraw(key, old.as_deref(), &mut affected, pass);
        match &new {
            Some(plan) => {
                self.wishes.insert(key.clone(), Arc::clone(plan));
                self.claim(key, plan, &mut affected, pass);
            }
            None => {
                self.wishes.remove(key);
            }
        }
        for key in affected {
            self.publish(key, pass);
        }
    }

    fn withdraw(
        &mut self,
        key: &NamespacedName,
        old: Option<&ServicePlan>,
        affected: &mut BTreeSet<NamespacedName>,
        pass: &mut Pass,
    ) {
        let Some(old) = old else { return };
        for frontend in old.frontends.iter().map(Frontend::key) {
            if self.contested.contains_key(&frontend) {
                pass.conflicts.entry(frontend).or_insert_with(|| self.conflicts_at(&frontend));
            }
            if let Some(claims) = self.contested.get_mut(&frontend) {
                claims.remove(&Claim::new(key, old));
                let heir = claims.first().expect("two claimed it, one is left").service.clone();
                if claims.len() == 1 {
                    self.contested.remove(&frontend);
                }
                affected.insert(heir.clone());
                self.plan.owners.insert(frontend, heir);
            } else {
                self.plan.owners.remove(&frontend);
            }
        }
    }

    fn claim(
        &mut self,
        key: &NamespacedName,
        plan: &ServicePlan,
        affected: &mut BTreeSet<NamespacedName>,
        pass: &mut Pass,
    ) {
        for frontend in plan.frontends.iter().map(Frontend::key) {
            let Some(owner) = self.plan.owners.get(&frontend).cloned() else {
                self.plan.owners.insert(frontend, key.clone());
                continue;
            };
            pass.conflicts.entry(frontend).or_insert_with(|| self.conflicts_at(&frontend));
            let owner_claim = Claim::new(&owner, &self.wishes[&owner]);
            let claims = self.contested.entry(frontend).or_default();
            claims.insert(owner_claim);
            claims.insert(Claim::new(key, plan));
            let first = claims.first().expect("two were just put in").service.clone();
            affected.insert(owner);
            self.plan.owners.insert(frontend, first);
        }
    }

    fn conflicts_at(&self, frontend: &FrontendKey) -> Vec<Conflict> {
        let Some(claims) = self.contested.get(frontend) else { return Vec::new() };
        let mut services = claims.iter().map(|claim| &claim.service);
        let Some(owner) = services.next() else { return Vec::new() };
        let conflict = |loser: &NamespacedName| Conflict {
            frontend: *frontend,
            owner: owner.clone(),
            loser: loser.clone(),
        };
        services.map(conflict).collect()
    }

    /// Puts what `key` asks for, less the frontends of others, into the plan.
    fn publish(&mut self, key: NamespacedName, pass: &mut Pass) {
        let new = self.wishes.get(&key).map(|wish| {
            let owns = |frontend: &Frontend| self.plan.owners.get(&frontend.key()) == Some(&key);
            if wish.frontends.iter().all(owns) {
                return Arc::clone(wish);
            }
            let mut plan = ServicePlan::clone(wish);
            plan.frontends.retain(owns);
            Arc::new(plan)
        });
        let old = match &new {
            Some(plan) => self.plan.services.insert(key.clone(), Arc::clone(plan)),
            None => self.plan.services.remove(&key),
        };
        let ports = |plan: &Option<Arc<ServicePlan>>| plan.as_ref().map_or(0, |p| p.ports.len());
        self.plan.service_ports += ports(&new);
        self.plan.service_ports -= ports(&old);
        pass.plans.entry(key).or_insert(old);
    }
}
