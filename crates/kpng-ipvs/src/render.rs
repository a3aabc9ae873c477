//! From the plan of one service to what IPVS and our tables shall hold for it. Pure.
//!
//! The unit is a frontend at one address, so a node port is one at each address on which node ports are
//! served. Its virtual service has one list of endpoints; where packets of some origin have another
//! list, they are marked, and the mark has a virtual service of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kpng_core::model::{Family, NamespacedName, Protocol};
use kpng_core::plan::{Action, At, Frontend, NodeFacts, PoolId, Route, ServicePlan, Target};
use kpng_linux::ipvs::ServiceKey;
use kpng_linux::nft::{Bytes, Element, Value};
use kpng_linux::rtnetlink;

use crate::Config;
use crate::marks::Purpose;
use crate::names::{ORIGINS, Set};
use crate::skeleton;

/// What a service with affinity is scheduled by: a hash of the client's address. So a client comes to
/// the same endpoint by all frontends, also by marks, whose services cannot be persistent: the kernel
/// translates no ports there.
const AFFINITY_SCHEDULER: &str = "mh";

/// To how many endpoints at most: its table has 4,093 places, and those that wait for their last
/// connections have some too.
const AFFINITY_SCHEDULER_ENDPOINTS: usize = 2000;

/// A frontend at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) address: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

impl Spot {
    /// The virtual service for packets to it.
    pub(crate) fn service_key(&self) -> ServiceKey {
        let Self { address, protocol, port } = *self;
        ServiceKey::Address { address, protocol: protocol.number(), port }
    }

    /// Its key in our sets.
    pub(crate) fn key(&self) -> Bytes {
        Bytes::EMPTY.address(self.address).protocol(self.protocol.number()).port(self.port)
    }
}

/// Who claims a spot. A virtual address comes before a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Vip = 0,
    NodePort = 1,
}

/// What a virtual service shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Virtual {
    pub(crate) scheduler: String,
    pub(crate) persistence: Option<Duration>,
    pub(crate) targets: Arc<[Target]>,
}

/// What happens to packets of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// They meet IPVS.
    Forward {
        masquerade: bool,
        /// With this mark, as their endpoints are not those of the address's service.
        mark: Option<u32>,
    },
    Reject,
    Drop,
}

/// What happens at a spot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Who may come in; `None` means everybody.
    pub(crate) sources: Option<Vec<IpNet>>,
    /// By origin, as [`ORIGINS`].
    pub(crate) steps: [Step; 3],
    /// The virtual service of the address, if anything is forwarded.
    pub(crate) service: Option<Arc<Virtual>>,
}

/// A firewall-mark service.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    pub(crate) purpose: Purpose,
    pub(crate) key: ServiceKey,
    pub(crate) service: Arc<Virtual>,
}

/// Everything for one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rendered {
    pub(crate) entries: Vec<(Spot, Claim, Arc<Entry>)>,
    pub(crate) marked: Vec<Marked>,
    /// Its virtual addresses.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Elements that belong to no single spot.
    pub(crate) shared: Vec<(Family, Set, Element)>,
}

/// What services are rendered for.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) facts: &'a NodeFacts,
    pub(crate) config: &'a Config,
}

/// Gives marks. The second argument is a frontend that had one, in the kernel's maps, before a restart.
pub(crate) type TakeMark<'a> = dyn FnMut(&Purpose, (Spot, usize)) -> Option<u32> + 'a;

/// What IPVS and our tables shall hold for a service.
pub(crate) fn service(
    key: &NamespacedName,
    plan: &ServicePlan,
    node: &Node<'_>,
    take_mark: &mut TakeMark<'_>,
) -> Rendered {
    let targets = plan.pools.iter().map(|pool| Arc::from(&*pool.targets)).collect();
    let out =
        Rendered { addresses: plan.cluster_ips.iter().copied().collect(), ..Rendered::default() };
    let mut renderer = Renderer { key, plan, node, take_mark, targets, out };
    for ip in &plan.cluster_ips {
        let element = (Family::of(*ip), Set::ClusterIps, skeleton::address(*ip));
        renderer.out.shared.push(element);
    }
    for pool in &plan.pools {
        for target in &pool.targets {
            let key = Bytes::EMPTY.address(target.address).address(target.address);
            let element = Element { key, last: None, value: Value::None };
            renderer.out.shared.push((pool.family, Set::Hairpin, element));
        }
    }
    for frontend in &plan.frontends {
        renderer.frontend(frontend);
    }
    renderer.out
}

struct Renderer<'a, 'b> {
    key: &'a NamespacedName,
    plan: &'a ServicePlan,
    node: &'a Node<'a>,
    take_mark: &'a mut TakeMark<'b>,
    /// The targets of each pool.
    targets: Vec<Arc<[Target]>>,
    out: Rendered,
}

impl Renderer<'_, '_> {
    fn frontend(&mut self, frontend: &Frontend) {
        let Frontend { at, protocol, port, .. } = *frontend;
        let spot = |address| Spot { address, protocol, port };
        match at {
            At::Vip(ip) => {
                self.out.addresses.insert(ip);
                let entry = self.entry(frontend, spot(ip));
                self.out.entries.push((spot(ip), Claim::Vip, entry));
            }
            At::NodePort(family) => {
                let addresses = node_port_addresses(self.node.facts, family);
                let Some(first) = addresses.first() else { return };
                let entry = self.entry(frontend, spot(*first));
                let at = |ip: &IpAddr| (spot(*ip), Claim::NodePort, Arc::clone(&entry));
                self.out.entries.extend(addresses.iter().map(at));
            }
        }
    }

    fn entry(&mut self, frontend: &Frontend, spot: Spot) -> Arc<Entry> {
        let actions = frontend.route.actions();
        let main = main_pool(&frontend.route);
        let mut steps = [Step::Drop; 3];
        for (index, action) in actions.into_iter().enumerate() {
            steps[index] = match action {
                Action::Reject => Step::Reject,
                Action::Drop => Step::Drop,
                Action::Forward { pool, masquerade } if Some(pool) == main => {
                    Step::Forward { masquerade, mark: None }
                }
                Action::Forward { pool, masquerade } => {
                    let alike = actions.iter().position(|other| *other == action);
                    let from = alike.unwrap_or(index);
                    let mark = self.mark(frontend, pool, masquerade, (spot, from));
                    mark.map_or(Step::Drop, |mark| Step::Forward { masquerade, mark: Some(mark) })
                }
            };
        }
        let service = main.map(|pool| Arc::new(self.virtual_service(pool, true)));
        Arc::new(Entry { sources: frontend.sources.clone(), steps, service })
    }

    /// The mark of packets of an origin to the external frontends of this port.
    fn mark(
        &mut self,
        frontend: &Frontend,
        pool: PoolId,
        masquerade: bool,
        at: (Spot, usize),
    ) -> Option<u32> {
        let family = frontend.at.family();
        let purpose = Purpose {
            service: self.key.clone(),
            service_port: frontend.service_port,
            family,
            from: ORIGINS[at.1],
            masquerade,
        };
        let mark = (self.take_mark)(&purpose, at)?;
        let key = ServiceKey::Mark { family: kernel_family(family), mark };
        if self.out.marked.iter().all(|marked| marked.key != key) {
            let service = Arc::new(self.virtual_service(pool, false));
            self.out.marked.push(Marked { purpose, key, service });
        }
        Some(mark)
    }

    fn virtual_service(&self, pool: PoolId, may_persist: bool) -> Virtual {
        let index = usize::from(pool.0);
        let affinity = self.plan.pools[index].affinity;
        let scheduler = match affinity {
            Some(_) if self.targets[index].len() <= AFFINITY_SCHEDULER_ENDPOINTS => {
                AFFINITY_SCHEDULER.to_owned()
            }
            _ => self.node.config.scheduler.clone(),
        };
        let persistence = affinity.filter(|_| may_persist);
        Virtual { scheduler, persistence, targets: Arc::clone(&self.targets[index]) }
    }
}

/// The pool that the virtual service of the address has: that of the node's own packets, which do not
/// come through any link, so that as few as can be are marked.
fn main_pool(route: &Route) -> Option<PoolId> {
    let pool = |action| match action {
        Action::Forward { pool, .. } => Some(pool),
        Action::Reject | Action::Drop => None,
    };
    pool(route.node).or_else(|| pool(route.pod)).or_else(|| pool(route.outside))
}

/// The family as the kernel's interfaces have it.
pub(crate) fn kernel_family(family: Family) -> rtnetlink::Family {
    match family {
        Family::V4 => rtnetlink::Family::V4,
        Family::V6 => rtnetlink::Family::V6,
    }
}

/// The addresses on which node ports are served.
pub(crate) fn node_port_addresses(facts: &NodeFacts, family: Family) -> Vec<IpAddr> {
    let all = facts.node_port_addresses.iter().copied();
    all.filter(|ip| Family::of(*ip) == family && !ip.is_loopback()).collect()
}

/// The elements for a spot.
pub(crate) fn elements(spot: &Spot, entry: &Entry) -> Vec<(Set, Element)> {
    let key = spot.key();
    let mut elements = Vec::new();
    let mut add = |set, value| elements.push((set, Element { key, last: None, value }));
    if entry.steps.iter().any(|step| matches!(step, Step::Forward { .. })) {
        add(Set::Services, Value::None);
    }
    if entry.sources.is_some() {
        add(Set::Guarded, Value::None);
        add(Set::Strangers, Value::None);
    }
    for (step, from) in entry.steps.iter().zip(ORIGINS) {
        match *step {
            Step::Reject => add(Set::Rejected(from), Value::None),
            Step::Drop => add(Set::Dropped(from), Value::None),
            Step::Forward { mark: Some(mark), .. } => {
                add(Set::Marks(from), Value::Data(Bytes::EMPTY.number(mark)));
            }
            Step::Forward { masquerade: true, mark: None } => {
                add(Set::Masqueraded(from), Value::None);
            }
            Step::Forward { masquerade: false, mark: None } => {}
        }
    }
    elements.extend(entry.sources.iter().flatten().map(|range| {
        let last = Some(key.address(range.broadcast()));
        let element = Element { key: key.address(range.network()), last, value: Value::None };
        (Set::SourceRanges, element)
    }));
    elements
}
