//! What bytes of the maps mean, for those who compare and show them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use kpng_core::model::{Family, Protocol};

use super::{Address, Bytes, Choice, Endpoint, Frontend, FrontendKey, MemberKey, RangeKey, any};

/// A value of the map of frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundFrontend {
    /// By origin: pod, node, outside. `None` is nothing that we write.
    pub(crate) choices: [Option<Choice>; 3],
    pub(crate) affinity_seconds: u32,
    pub(crate) sources: u32,
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Bytes<N> {
        let (field, rest) = self.0.split_first_chunk().expect("structures are as long as fields");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn choice(&mut self) -> Option<Choice> {
        let (pool, count) = (self.u32(), u16::from_ne_bytes(self.take()));
        match self.take() {
            [1, masquerade @ (0 | 1)] => {
                Some(Choice::Forward { pool, count, masquerade: masquerade == 1 })
            }
            [2, 0] => Some(Choice::Reject),
            [3, 0] => Some(Choice::Drop),
            _ => None,
        }
    }
}

/// The value of a frontend.
pub(crate) fn frontend_of(value: &Frontend) -> FoundFrontend {
    let mut reader = Reader(value);
    let choices = [reader.choice(), reader.choice(), reader.choice()];
    let _service_port: Bytes<8> = reader.take();
    FoundFrontend { choices, affinity_seconds: reader.u32(), sources: reader.u32() }
}

/// An address.
pub(crate) fn address_of(address: &Address) -> IpAddr {
    Ipv6Addr::from(*address).to_canonical()
}

/// An endpoint.
pub(crate) fn endpoint_of(endpoint: &Endpoint) -> SocketAddr {
    let mut reader = Reader(endpoint);
    SocketAddr::new(address_of(&reader.take()), u16::from_be_bytes(reader.take()))
}

/// The set and the endpoint that is in it.
pub(crate) fn member_of(key: &MemberKey) -> (u64, SocketAddr) {
    let mut reader = Reader(key);
    (u64::from_ne_bytes(reader.take()), endpoint_of(&reader.take()))
}

/// The set and the range that is in it; no range when that makes no sense.
pub(crate) fn range_of(key: &RangeKey) -> (u32, Option<IpNet>) {
    let mut reader = Reader(key);
    let (length, set) = (reader.u32(), reader.u32());
    let address = address_of(&reader.take());
    let before = if address.is_ipv4() { 32 + 96 } else { 32 };
    let length = length.checked_sub(before).and_then(|length| u8::try_from(length).ok());
    (set, length.and_then(|length| IpNet::new(address, length).ok()))
}

/// What a frontend is at, for people.
pub(crate) fn frontend_text(key: &FrontendKey) -> String {
    let mut reader = Reader(key);
    let (address, port) = (reader.take(), u16::from_be_bytes(reader.take()));
    let [protocol] = reader.take();
    let protocol = Protocol::ALL.into_iter().find(|known| known.number() == protocol);
    let Some(protocol) = protocol else { return format!("{}, other ports", address_of(&address)) };
    match Family::ALL.into_iter().find(|family| any(*family) == address) {
        Some(family) => format!("{} node port {port}/{protocol}", family.name()),
        None => format!("{}/{protocol}", SocketAddr::new(address_of(&address), port)),
    }
}

impl fmt::Display for FoundFrontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (origin, choice) in ["pod", "node", "outside"].into_iter().zip(self.choices) {
            write!(f, "{comma}{origin} ")?;
            match choice {
                Some(Choice::Forward { pool, masquerade, .. }) => {
                    write!(f, "pool {pool}{}", if masquerade { " masquerade" } else { "" })?;
                }
                Some(Choice::Reject) => f.write_str("reject")?,
                Some(Choice::Drop) => f.write_str("drop")?,
                None => f.write_str("nothing that makes sense")?,
            }
            comma = ", ";
        }
        if self.affinity_seconds > 0 {
            write!(f, ", affinity {} s", self.affinity_seconds)?;
        }
        if self.sources > 0 {
            write!(f, ", from ranges {}", self.sources)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kpng_core::plan::Target;

    use super::super::{endpoint, frontend, frontend_key, member_key, range_key};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let forward = Choice::Forward { pool: 7, count: 3, masquerade: true };
        let found = frontend_of(&frontend([forward, Choice::Reject, Choice::Drop], 9, 600, 17));
        assert_eq!(found.choices, [Some(forward), Some(Choice::Reject), Some(Choice::Drop)]);
        let text =
            "pod pool 7 masquerade, node reject, outside drop, affinity 600 s, from ranges 17";
        assert_eq!(found.to_string(), text);
        for (target, range) in [("10.0.0.1:80", "10.0.0.0/8"), ("[fd00::1]:80", "fd00::/16")] {
            let at: SocketAddr = target.parse().expect("an address");
            let target = Target { address: at.ip(), port: at.port() };
            assert_eq!(endpoint_of(&endpoint(target)), at);
            assert_eq!(member_of(&member_key(1 << 63, target)), (1 << 63, at));
            let range: IpNet = range.parse().expect("a range");
            assert_eq!(range_of(&range_key(18, range)), (18, Some(range)));
            let key = frontend_key(super::super::address(at.ip()), 80, Some(Protocol::Udp));
            assert_eq!(frontend_text(&key), format!("{at}/UDP"));
            let any = frontend_key(any(Family::of(at.ip())), 80, Some(Protocol::Tcp));
            let family = Family::of(at.ip()).name();
            assert_eq!(frontend_text(&any), format!("{family} node port 80/TCP"));
            let closed = frontend_key(super::super::address(at.ip()), 0, None);
            assert_eq!(frontend_text(&closed), format!("{}, other ports", at.ip()));
        }
    }
}
