//! Walks rendered objects with a packet, through the hooks in the kernel's order.
//!
//! Chance is followed in every direction: the outcome is a set. A statement that cannot be followed
//! is a failure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use kpng_core::plan::Target;
use kpng_linux::nft::text::Ruleset;
use kpng_linux::nft::{
    Bytes, Connection, Data, Element, Field, HookKind, HookPoint, Rule, SetDef, Statement, Value,
    Verdict,
};

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// It goes where it was going.
    Pass,
    Reject,
    Drop,
    Forward {
        target: Target,
        masquerade: bool,
    },
}

/// The first packet of a connection, on its way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    /// `None` when this node made it.
    pub(super) interface: Option<String>,
    /// The source is an address of the node.
    pub(super) from_node: bool,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: u16,
    mark: u32,
    priority: u32,
    rewritten: bool,
    masqueraded: bool,
    /// Keys that rules have added to the dynamic set.
    remembered: Vec<Bytes>,
}

impl Packet {
    pub(super) fn new(packet: &kpng_core::plan::Packet<'_>, mark: u32) -> Self {
        Self {
            source: packet.source,
            interface: packet.interface.map(str::to_owned),
            from_node: packet.from_node,
            destination: packet.destination,
            protocol: packet.protocol.number(),
            port: packet.port,
            mark,
            priority: 0,
            rewritten: false,
            masqueraded: false,
            remembered: Vec::new(),
        }
    }
}

/// How a chain or rule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// On to the next rule.
    Next,
    /// Back to where the chain was jumped to.
    Return,
    /// Out of the hook.
    Accept,
    Drop,
    Reject,
}

/// The objects of one family.
pub(super) struct Tracer {
    chains: HashMap<String, Vec<Rule>>,
    /// Base chains by priority.
    hooks: Vec<(HookPoint, HookKind, i32, String)>,
    sets: HashMap<&'static str, (SetDef, BTreeMap<Bytes, Element>)>,
    local: BTreeSet<IpAddr>,
    /// What the dynamic set holds.
    affinity: BTreeSet<Bytes>,
    mark: u32,
}

impl Tracer {
    /// Where the node has the addresses `local`.
    pub(super) fn new(ruleset: Ruleset, local: BTreeSet<IpAddr>, mark: u32) -> Self {
        let mut hooks: Vec<_> = ruleset
            .chains
            .iter()
            .filter_map(|(chain, _)| Some((chain.hook?, chain.name.clone())))
            .map(|(hook, name)| (hook.point, hook.kind, hook.priority, name))
            .collect();
        hooks.sort_by_key(|(_, _, priority, _)| *priority);
        let mut chains = HashMap::new();
        for (chain, rules) in ruleset.chains {
            let before = chains.insert(chain.name.clone(), rules);
            assert!(before.is_none(), "two chains are called {}", chain.name);
        }
        let mut sets = HashMap::new();
        for (def, elements) in ruleset.sets {
            let mut by_key = BTreeMap::new();
            for element in elements {
                let before = by_key.insert(element.key, element);
                assert!(before.is_none(), "two elements of {} have one key: {before:?}", def.name);
            }
            sets.insert(def.name, (def, by_key));
        }
        Self { chains, hooks, sets, local, affinity: BTreeSet::new(), mark }
    }

    /// All that can become of a packet. The second time that it comes, and every further time, it
    /// must stick to what it was given, if anything was remembered.
    pub(super) fn trace(&mut self, packet: &Packet) -> BTreeSet<Fate> {
        self.affinity.clear();
        let ends = self.walk(packet);
        for (fate, end) in &ends {
            for key in &end.remembered {
                self.affinity = [*key].into();
                let again: BTreeSet<_> = self.walk(packet).into_iter().map(|end| end.0).collect();
                assert_eq!(again, [fate.clone()].into(), "the client does not stick: {packet:?}");
            }
        }
        self.affinity.clear();
        ends.into_iter().map(|(fate, _)| fate).collect()
    }

    fn walk(&self, packet: &Packet) -> Vec<(Fate, Packet)> {
        let local = |packet: &Packet| self.local.contains(&packet.destination);
        let mut done = Vec::new();
        let mut alive = vec![packet.clone()];
        if packet.interface.is_some() {
            self.hook(HookPoint::Prerouting, None, &mut alive, &mut done);
            let (mut inward, mut onward): (Vec<_>, Vec<_>) = alive.into_iter().partition(local);
            self.hook(HookPoint::Input, None, &mut inward, &mut done);
            self.hook(HookPoint::Forward, None, &mut onward, &mut done);
            self.hook(HookPoint::Postrouting, None, &mut onward, &mut done);
            alive = [inward, onward].concat();
        } else {
            self.hook(HookPoint::Output, None, &mut alive, &mut done);
            self.hook(HookPoint::Postrouting, None, &mut alive, &mut done);
            // What stays here comes in through the loopback interface; its address translation has
            // been decided.
            let (mut inward, onward): (Vec<_>, Vec<_>) = alive.into_iter().partition(local);
            inward.iter_mut().for_each(|packet| packet.interface = Some("lo".to_owned()));
            self.hook(HookPoint::Prerouting, Some(HookKind::Filter), &mut inward, &mut done);
            self.hook(HookPoint::Input, Some(HookKind::Filter), &mut inward, &mut done);
            alive = [inward, onward].concat();
        }
        done.extend(alive.into_iter().map(|packet| (self.arrival(&packet), packet)));
        done
    }

    fn arrival(&self, packet: &Packet) -> Fate {
        let Packet { destination: address, port, .. } = *packet;
        if !packet.rewritten {
            assert!(!packet.masqueraded, "a stranger is masqueraded: {packet:?}");
            return Fate::Pass;
        }
        assert_eq!(packet.priority, 0, "the class is left in the priority: {packet:?}");
        assert_eq!(packet.mark & self.mark, 0, "the mark is left: {packet:?}");
        Fate::Forward { target: Target { address, port }, masquerade: packet.masqueraded }
    }

    /// Sends packets through the chains of a hook, of one kind or all.
    fn hook(
        &self,
        point: HookPoint,
        kind: Option<HookKind>,
        alive: &mut Vec<Packet>,
        done: &mut Vec<(Fate, Packet)>,
    ) {
        for (at, of, _, chain) in &self.hooks {
            if *at != point || kind.is_some_and(|kind| kind != *of) {
                continue;
            }
            for packet in std::mem::take(alive) {
                for (end, packet) in self.chain(chain, packet, 0) {
                    match end {
                        End::Drop => done.push((Fate::Drop, packet)),
                        End::Reject => done.push((Fate::Reject, packet)),
                        End::Next | End::Return | End::Accept => alive.push(packet),
                    }
                }
            }
        }
    }

    /// Ends in anything but `Next`.
    fn chain(&self, name: &str, packet: Packet, depth: usize) -> Vec<(End, Packet)> {
        assert!(depth < 16, "the kernel allows 16 jumps in a row");
        let rules = self.chains.get(name).unwrap_or_else(|| panic!("there is no chain {name}"));
        let mut done = Vec::new();
        let mut alive = vec![packet];
        for rule in rules {
            for packet in std::mem::take(&mut alive) {
                for (end, packet) in self.rule(&rule.statements, packet, depth) {
                    match end {
                        End::Next => alive.push(packet),
                        end => done.push((end, packet)),
                    }
                }
            }
        }
        done.extend(alive.into_iter().map(|packet| (End::Return, packet)));
        done
    }

    fn rule(&self, rule: &[Statement], mut packet: Packet, depth: usize) -> Vec<(End, Packet)> {
        let [statement, rest @ ..] = rule else { return vec![(End::Next, packet)] };
        let on = |holds: bool, packet: Packet| match holds {
            true => self.rule(rest, packet, depth),
            false => vec![(End::Next, packet)],
        };
        match statement {
            Statement::OnceIn(modulus) => {
                assert!(*modulus > 0);
                let mut ends = on(true, packet.clone());
                if *modulus > 1 {
                    ends.extend(on(false, packet));
                }
                ends
            }
            Statement::SetMark(bit) => {
                packet.mark |= bit;
                on(true, packet)
            }
            Statement::ClearMark(bit) => {
                packet.mark &= !bit;
                on(true, packet)
            }
            Statement::SetPriority { key, map } => match self.data(map, &packet.key(key, 0)) {
                Some(value) => {
                    packet.priority = u32::from_ne_bytes(value.as_slice().try_into().unwrap());
                    on(true, packet)
                }
                None => on(false, packet),
            },
            Statement::PriorityTo(number) => {
                packet.priority = *number;
                on(true, packet)
            }
            Statement::PriorityIs(number) => on(packet.priority == *number, packet),
            Statement::Update { set, key, .. } => {
                assert!(self.sets[set].0.dynamic.is_some(), "{set} is not for rules to change");
                let key = packet.key(key, 0);
                packet.remembered.push(key);
                on(true, packet)
            }
            Statement::VerdictMap { key, map } => match self.value(map, &packet.key(key, 0)) {
                Some(Value::Verdict(verdict)) => self.verdict(verdict, packet, depth),
                Some(other) => panic!("{map} gives {other:?}, which is no verdict"),
                None => on(false, packet),
            },
            Statement::Verdict(verdict) => {
                assert!(rest.is_empty(), "nothing can come after {verdict:?}");
                self.verdict(verdict, packet, depth)
            }
            Statement::Dnat { address, port } => vec![packet.rewritten(*address, *port)],
            Statement::DnatMap { key, map } => self.dnat(key, map, &packet),
            Statement::Masquerade => {
                packet.masqueraded = true;
                vec![(End::Accept, packet)]
            }
            Statement::RejectWithReset => {
                assert_eq!(packet.protocol, 6, "only TCP has resets");
                vec![(End::Reject, packet)]
            }
            Statement::Reject => vec![(End::Reject, packet)],
            condition => {
                let holds = self.holds(condition, &packet);
                on(holds, packet)
            }
        }
    }

    fn holds(&self, condition: &Statement, packet: &Packet) -> bool {
        match condition {
            Statement::Connection(Connection::New) => true,
            Statement::Connection(Connection::Invalid) => false,
            Statement::Connection(Connection::Dnat) => packet.rewritten,
            Statement::InSet { key, set, negate } => self.contains(set, packet, key) != *negate,
            Statement::L4Proto(protocol) => packet.protocol == *protocol,
            Statement::DaddrInLoopbackNet => packet.destination.is_loopback(),
            Statement::NotFromLoopback => packet.interface.as_deref() != Some("lo"),
            Statement::Iifname { name, prefix } => packet
                .interface
                .as_ref()
                .is_some_and(|i| i == name || *prefix && i.starts_with(&**name)),
            Statement::SourceIsLocal => packet.from_node,
            Statement::MarkHas(bit) => packet.mark & bit == *bit,
            unknown => panic!("the tracer does not know {unknown:?}"),
        }
    }

    fn verdict(&self, verdict: &Verdict, packet: Packet, depth: usize) -> Vec<(End, Packet)> {
        let back = |end| if end == End::Return { End::Next } else { end };
        match verdict {
            Verdict::Accept => vec![(End::Accept, packet)],
            Verdict::Drop => vec![(End::Drop, packet)],
            Verdict::Return => vec![(End::Return, packet)],
            Verdict::Goto(chain) => self.chain(chain, packet, depth + 1),
            Verdict::Jump(chain) => {
                let ends = self.chain(chain, packet, depth + 1).into_iter();
                ends.map(|(end, packet)| (back(end), packet)).collect()
            }
        }
    }

    /// Every number that `numgen` can give leads to an endpoint.
    fn dnat(&self, key: &[Field], map: &str, packet: &Packet) -> Vec<(End, Packet)> {
        let modulus = key.iter().find_map(|field| match field {
            Field::Random(modulus) => Some(*modulus),
            _ => None,
        });
        let target = |number| {
            let key = packet.key(key, number);
            let value = self.data(map, &key);
            let value = value.unwrap_or_else(|| panic!("{map} has no {key:?}: {packet:?}"));
            let (address, port) = value.as_slice().split_at(value.as_slice().len() - 4);
            let address = match address.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(address).unwrap()),
                _ => IpAddr::from(<[u8; 16]>::try_from(address).unwrap()),
            };
            packet.clone().rewritten(address, u16::from_be_bytes([port[0], port[1]]))
        };
        (0..modulus.unwrap_or(1)).map(target).collect()
    }

    fn value(&self, map: &str, key: &Bytes) -> Option<&Value> {
        let (def, elements) = &self.sets[map];
        assert_ne!(def.data, Data::None, "{map} is no map");
        elements.get(key).map(|element| &element.value)
    }

    fn data(&self, map: &str, key: &Bytes) -> Option<Bytes> {
        match self.value(map, key)? {
            Value::Data(data) => Some(*data),
            other => panic!("{map} gives {other:?}, which is no data"),
        }
    }

    fn contains(&self, set: &str, packet: &Packet, fields: &[Field]) -> bool {
        let (def, elements) = &self.sets[set];
        let key = packet.key(fields, 0);
        assert_eq!(fields.len(), def.key.len(), "{set} has another key than {fields:?}");
        if def.dynamic.is_some() {
            return self.affinity.contains(&key);
        }
        if !def.interval {
            return elements.contains_key(&key);
        }
        // Each field has a range of its own.
        let lengths: Vec<_> = fields.iter().map(|field| packet.part(*field, 0).len()).collect();
        elements.values().any(|element| {
            let mut at = 0;
            let last = element.last.as_ref().expect("an interval has an end").as_slice();
            let parts = lengths.iter().map(|length| {
                let part = at..at + length;
                at += length;
                part
            });
            parts.into_iter().all(|part| {
                let (first, last) = (&element.key.as_slice()[part.clone()], &last[part.clone()]);
                (first..=last).contains(&&key.as_slice()[part])
            })
        })
    }
}

impl Packet {
    fn rewritten(mut self, address: IpAddr, port: u16) -> (End, Self) {
        assert!(!self.rewritten, "a packet is rewritten twice: {self:?}");
        (self.destination, self.port, self.rewritten) = (address, port, true);
        (End::Accept, self)
    }

    /// The key of these fields, when `numgen` gives `number`.
    fn key(&self, fields: &[Field], number: u32) -> Bytes {
        let bytes: Vec<u8> = fields.iter().flat_map(|field| self.part(*field, number)).collect();
        Bytes::from_slice(&bytes).expect("a key has 40 bytes at most")
    }

    fn part(&self, field: Field, number: u32) -> Vec<u8> {
        let address = |address| Bytes::EMPTY.address(address).as_slice().to_vec();
        match field {
            Field::Saddr => address(self.source),
            Field::Daddr => address(self.destination),
            Field::L4Proto => vec![self.protocol, 0, 0, 0],
            Field::Dport => [self.port.to_be_bytes(), [0; 2]].concat(),
            Field::Priority => self.priority.to_ne_bytes().to_vec(),
            Field::Random(_) => number.to_ne_bytes().to_vec(),
            Field::Constant(constant) => constant.to_ne_bytes().to_vec(),
            Field::OriginalDaddr | Field::Mark => panic!("no rule of ours looks at {field:?}"),
        }
    }
}
