//! What is wanted, and what has to be written when it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use kpng_core::model::{Family, NamespacedName};
use kpng_core::plan::{At, FrontendKey, NodeFacts, ServicePlan};
use kpng_linux::ipvs::ServiceKey;
use kpng_linux::nft::Element;

use crate::Config;
use crate::counters::Place;
use crate::ledger::{Commands, Ledger};
use crate::marks::{Marks, Purpose};
use crate::names::Set;
use crate::render::{self, Claim, Entry, Node, Rendered, Spot, Step};
use crate::skeleton;

/// What has to be written, in this order: services and destinations that are new, tables, addresses,
/// then what goes.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) commands: Commands,
    pub(crate) remove: Elements,
    pub(crate) add: Elements,
    pub(crate) bind: BTreeSet<IpAddr>,
    pub(crate) unbind: BTreeSet<IpAddr>,
}

/// Elements of our tables.
pub(crate) type Elements = Vec<(Family, Set, Element)>;

/// Marks that frontends had before this process, for packets of an origin.
pub(crate) type FoundMarks = HashMap<(Spot, usize), u32>;

/// Everything that is wanted.
#[derive(Debug)]
pub(crate) struct State {
    config: Config,
    facts: Arc<NodeFacts>,
    services: HashMap<NamespacedName, Rendered>,
    /// By claim, the stronger first.
    spots: HashMap<Spot, [Option<Arc<Entry>>; 2]>,
    /// Virtual addresses, and how many services have each.
    addresses: BTreeMap<IpAddr, u32>,
    marks: Marks,
    found_marks: FoundMarks,
    pub(crate) ledger: Ledger,
    /// The addresses on our link.
    bound: BTreeSet<IpAddr>,
    /// The addresses of this node's other links.
    node_addresses: BTreeSet<IpAddr>,
}

/// What was before, where a change meets it.
#[derive(Debug, Default)]
struct Before {
    /// In the order in which they were met.
    order: Vec<Spot>,
    spots: HashMap<Spot, Option<Arc<Entry>>>,
    marked: BTreeMap<ServiceKey, Option<Arc<render::Virtual>>>,
    purposes: Vec<Purpose>,
    addresses: BTreeSet<IpAddr>,
}

impl Before {
    fn meet(&mut self, spot: Spot, claims: &[Option<Arc<Entry>>; 2]) {
        self.spots.entry(spot).or_insert_with(|| {
            self.order.push(spot);
            effective(claims)
        });
    }
}

impl State {
    /// Nothing is wanted. The ledger says what the kernel has, `bound` what is on our link.
    pub(crate) fn new(
        config: &Config,
        facts: &Arc<NodeFacts>,
        ledger: Ledger,
        bound: BTreeSet<IpAddr>,
        node_addresses: BTreeSet<IpAddr>,
    ) -> Self {
        Self {
            config: config.clone(),
            facts: Arc::clone(facts),
            services: HashMap::new(),
            spots: HashMap::new(),
            addresses: BTreeMap::new(),
            marks: Marks::new(config.masquerade_mark()),
            found_marks: FoundMarks::new(),
            ledger,
            bound,
            node_addresses,
        }
    }

    /// The facts that services are rendered for.
    pub(crate) fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The whole plan, at first: services in the order of their importance.
    pub(crate) fn fill<'a>(
        &mut self,
        services: impl IntoIterator<Item = (&'a NamespacedName, &'a Arc<ServicePlan>)>,
        found_marks: FoundMarks,
        now: Instant,
    ) -> Work {
        self.found_marks = found_marks;
        let mut work = Work::default();
        let mut before = Before::default();
        for (key, plan) in services {
            self.insert(key, plan, &mut before, &mut work);
        }
        self.settle(before, now, &mut work);
        self.found_marks.clear();
        for key in self.ledger.unwanted() {
            self.ledger.set(key, None, now, &mut work.commands);
        }
        self.settle_addresses(self.bound.clone(), &mut work);
        work
    }

    /// Services that changed; those without a plan are gone.
    pub(crate) fn change<'a>(
        &mut self,
        services: impl IntoIterator<Item = (&'a NamespacedName, Option<&'a Arc<ServicePlan>>)> + Clone,
        now: Instant,
    ) -> Work {
        let mut work = Work::default();
        let mut before = Before::default();
        // A frontend may move from one service to another: so first all go, then all come.
        for (key, _) in services.clone() {
            self.remove(key, &mut before, &mut work);
        }
        for (key, plan) in services {
            if let Some(plan) = plan {
                self.insert(key, plan, &mut before, &mut work);
            }
        }
        self.settle(before, now, &mut work);
        work
    }

    /// Where the frontends of a service are.
    pub(crate) fn places(&self, service: &NamespacedName) -> Vec<Place> {
        let rendered = self.services.get(service).into_iter();
        let mut places = Vec::new();
        for (spot, claim, entry) in rendered.flat_map(|rendered| &rendered.entries) {
            let Spot { address, protocol, port } = *spot;
            let family = Family::of(address);
            let at = match claim {
                Claim::Vip => At::Vip(address),
                Claim::NodePort => At::NodePort(family),
            };
            let frontend = FrontendKey { at, protocol, port };
            places.push((spot.service_key(), *claim, frontend));
            let marks = entry.steps.iter().filter_map(|step| match step {
                Step::Forward { mark, .. } => *mark,
                Step::Reject | Step::Drop => None,
            });
            let family = render::kernel_family(family);
            places.extend(marks.map(|mark| (ServiceKey::Mark { family, mark }, *claim, frontend)));
        }
        places
    }

    /// All services.
    pub(crate) fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.services.keys()
    }

    /// What waited for its connections may go.
    pub(crate) fn settle_unused_address(&mut self, key: ServiceKey, work: &mut Work) {
        if let ServiceKey::Address { address, .. } = key {
            self.settle_addresses([address], work);
        }
    }

    /// Whether an address belongs on our link.
    pub(crate) fn is_bound(&self, address: IpAddr) -> bool {
        self.bound.contains(&address)
    }

    /// Whether a service has this virtual address.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    fn is_nodes(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address)
            || self.facts.node_port_addresses.contains(&address)
            || self.facts.primary_ips.contains(&address)
    }

    fn remove(&mut self, key: &NamespacedName, before: &mut Before, work: &mut Work) {
        let Some(old) = self.services.remove(key) else { return };
        for (spot, claim, _) in &old.entries {
            let claims = self.spots.entry(*spot).or_default();
            before.meet(*spot, claims);
            claims[*claim as usize] = None;
            if claims.iter().all(Option::is_none) {
                self.spots.remove(spot);
            }
        }
        for address in &old.addresses {
            before.addresses.insert(*address);
            if let Some(count) = self.addresses.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(address);
                }
            }
        }
        self.elements_of(&old, &mut work.remove);
        for marked in old.marked {
            before.marked.insert(marked.key, None);
            before.purposes.push(marked.purpose);
        }
    }

    fn insert(
        &mut self,
        key: &NamespacedName,
        plan: &ServicePlan,
        before: &mut Before,
        work: &mut Work,
    ) {
        let node = Node { facts: &self.facts, config: &self.config };
        let (marks, found) = (&mut self.marks, &self.found_marks);
        let mut take =
            |purpose: &Purpose, at: (Spot, usize)| marks.take(purpose, found.get(&at).copied());
        let new = render::service(key, plan, &node, &mut take);
        for (spot, claim, entry) in &new.entries {
            let claims = self.spots.entry(*spot).or_default();
            before.meet(*spot, claims);
            claims[*claim as usize] = Some(Arc::clone(entry));
        }
        for address in &new.addresses {
            before.addresses.insert(*address);
            *self.addresses.entry(*address).or_default() += 1;
        }
        for marked in &new.marked {
            before.marked.insert(marked.key, Some(Arc::clone(&marked.service)));
            before.purposes.retain(|purpose| *purpose != marked.purpose);
        }
        self.elements_of(&new, &mut work.add);
        self.services.insert(key.clone(), new);
    }

    /// Elements that a service has whoever else claims its spots.
    fn elements_of(&self, rendered: &Rendered, out: &mut Elements) {
        out.extend(rendered.shared.iter().cloned());
        for address in &rendered.addresses {
            let set = if self.is_nodes(*address) { Set::NodeIps } else { Set::ServiceIps };
            out.push((Family::of(*address), set, skeleton::address(*address)));
        }
        for (spot, claim, _) in &rendered.entries {
            if *claim == Claim::NodePort {
                let element = skeleton::address(spot.address);
                out.push((Family::of(spot.address), Set::NodeIps, element));
            }
        }
    }

    /// Finds what differs at all places that a change has met.
    fn settle(&mut self, mut before: Before, now: Instant, work: &mut Work) {
        let mut addresses = std::mem::take(&mut before.addresses);
        for spot in before.order {
            let before = before.spots.remove(&spot).flatten();
            let after = self.spots.get(&spot).and_then(effective);
            if before == after {
                continue;
            }
            let family = Family::of(spot.address);
            let elements = |entry: &Option<Arc<Entry>>| -> Elements {
                let all = entry.iter().flat_map(|entry| render::elements(&spot, entry));
                all.map(|(set, element)| (family, set, element)).collect()
            };
            work.remove.extend(elements(&before));
            work.add.extend(elements(&after));
            let wanted = after.as_ref().and_then(|entry| entry.service.as_deref());
            self.ledger.set(spot.service_key(), wanted, now, &mut work.commands);
            addresses.insert(spot.address);
        }
        for (key, wanted) in before.marked {
            self.ledger.set(key, wanted.as_deref(), now, &mut work.commands);
        }
        for purpose in before.purposes {
            self.marks.release(&purpose);
        }
        self.settle_addresses(addresses, work);
    }

    fn settle_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>, work: &mut Work) {
        for address in addresses {
            let is_used = self.addresses.contains_key(&address) || self.ledger.is_at(address);
            let is_wanted = is_used && !self.is_nodes(address) && !address.is_loopback();
            match (is_wanted, self.bound.contains(&address)) {
                (true, false) => {
                    work.bind.insert(address);
                    self.bound.insert(address);
                }
                (false, true) => {
                    work.unbind.insert(address);
                    self.bound.remove(&address);
                }
                _ => {}
            }
        }
    }
}

fn effective(claims: &[Option<Arc<Entry>>; 2]) -> Option<Arc<Entry>> {
    claims.iter().flatten().next().cloned()
}
