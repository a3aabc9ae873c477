//! From statements to the kernel's expressions.
//!
//! Registers are those of 4 bytes (`NFT_REG32_00` and up). A statement uses them from the first one
//! on and leaves nothing in them for the next.

use std::net::IpAddr;

use super::model::{Connection, Field, Rule, Statement, TableFamily, Verdict};
use crate::netlink::MessageBuf;

/// `NFT_REG32_00`.
const FIRST_REGISTER: u32 = 8;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const LIST_ELEMENT: u16 = 1;

const META_PRIORITY: u32 = 2;
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_IIFNAME: u32 = 6;
const META_L4PROTO: u32 = 16;

const SOCKET_TRANSPARENT: u32 = 0;
const SOCKET_WILDCARD: u32 = 2;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// `RTN_LOCAL`, as `fib … type` gives it.
const RTN_LOCAL: u32 = 2;
/// The index of `lo` in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `IPPROTO_TCP` and friends are one byte, network ports two.
const TCP_RESET: u32 = 1;
const ICMP_UNREACHABLE: u32 = 0;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`.
const NAT_ADDRESS_AND_PORT: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const NAT_FULLY_RANDOM: u32 = 0x10;

/// How a comparison shall come out (`NFT_CMP_EQ`, `NFT_CMP_NEQ`).
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Appends the expressions of `rule` as attribute `kind`.
pub(super) fn put_rule(m: &mut MessageBuf, kind: u16, family: TableFamily, rule: &Rule) {
    m.nest(kind, |m| {
        let mut encoder = Encoder { m, family };
        for statement in &rule.statements {
            encoder.statement(statement);
        }
    });
}

/// Appends a verdict as the content of a `NFTA_*_DATA` attribute.
pub(super) fn put_verdict(m: &mut MessageBuf, verdict: &Verdict) {
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    let (code, chain): (i32, _) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    m.nest(DATA_VERDICT, |m| {
        m.put_u32_be(CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            m.put_str(CHAIN, chain);
        }
    });
}

impl Field {
    /// The registers of 4 bytes that the field takes.
    pub(super) fn registers(self, family: TableFamily) -> u32 {
        match self {
            Self::Saddr | Self::Daddr | Self::OriginalDaddr => family.address_len() / 4,
            _ => 1,
        }
    }

    /// Its length in bytes, unpadded.
    pub(super) fn len(self, family: TableFamily) -> u32 {
        match self {
            Self::Saddr | Self::Daddr | Self::OriginalDaddr => family.address_len(),
            Self::L4Proto => 1,
            Self::Dport => 2,
            Self::Priority | Self::Mark | Self::Random(_) | Self::Constant(_) => 4,
        }
    }
}

struct Encoder<'a> {
    m: &'a mut MessageBuf,
    family: TableFamily,
}

impl Encoder<'_> {
    #[expect(clippy::too_many_lines, reason = "one short arm for each statement of the language")]
    fn statement(&mut self, statement: &Statement) {
        let first = FIRST_REGISTER;
        match statement {
            Statement::Connection(what) => self.connection(*what),
            Statement::InSet { key, set, negate } => {
                self.load(key);
                self.lookup(set, first, None, *negate);
            }
            Statement::L4Proto(protocol) => {
                self.meta(META_L4PROTO);
                self.compare(EQUAL, &[*protocol]);
            }
            Statement::DaddrInLoopbackNet => {
                self.payload(NETWORK_HEADER, 16, 1, first);
                self.compare(EQUAL, &[127]);
            }
            Statement::NotFromLoopback => {
                self.meta(META_IIF);
                self.compare(NOT_EQUAL, &LOOPBACK_INDEX.to_ne_bytes());
            }
            Statement::Iifname { name, prefix } => {
                self.meta(META_IIFNAME);
                let mut bytes = name.as_bytes().to_vec();
                if !prefix {
                    bytes.resize(16, 0); // IFNAMSIZ
                }
                self.compare(EQUAL, &bytes);
            }
            Statement::SourceIsLocal => {
                self.fib_source_type();
                self.compare(EQUAL, &RTN_LOCAL.to_ne_bytes());
            }
            Statement::OnceIn(modulus) => {
                self.numgen(*modulus, 0, first);
                self.compare(EQUAL, &0_u32.to_ne_bytes());
            }
            Statement::MarkHas(bit) => {
                self.meta(META_MARK);
                self.bitwise(*bit, 0);
                self.compare(EQUAL, &bit.to_ne_bytes());
            }
            Statement::SetMark(bit) => self.change_mark(!bit, *bit),
            Statement::ClearMark(bit) => self.change_mark(!bit, 0),
            Statement::MarkIs { mask, value } => {
                self.meta(META_MARK);
                self.bitwise(*mask, 0);
                self.compare(EQUAL, &value.to_ne_bytes());
            }
            Statement::MarkFrom { key, map } => {
                self.load(key);
                self.lookup(map, first, Some(first), false);
                self.set_meta(META_MARK);
            }
            Statement::SetPriority { key, map } => {
                self.load(key);
                self.lookup(map, first, Some(first), false);
                self.set_meta(META_PRIORITY);
            }
            Statement::PriorityTo(number) => {
                self.immediate(first, &number.to_ne_bytes());
                self.set_meta(META_PRIORITY);
            }
            Statement::PriorityIs(number) => {
                self.meta(META_PRIORITY);
                self.compare(EQUAL, &number.to_ne_bytes());
            }
            Statement::VerdictMap { key, map } => {
                self.load(key);
                self.lookup(map, first, Some(VERDICT_REGISTER), false);
            }
            Statement::Update { set, key, timeout } => {
                self.load(key);
                let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                self.update(set, milliseconds);
            }
            Statement::DnatMap { key, map } => {
                let target = self.load(key);
                self.lookup(map, first, Some(target), false);
                self.dnat(target);
            }
            Statement::Dnat { address, port } => {
                self.immediate(first, &octets(*address));
                self.immediate(first + self.family.address_len() / 4, &port.to_be_bytes());
                self.dnat(first);
            }
            Statement::ToTransparentSocket => {
                self.socket(SOCKET_TRANSPARENT);
                self.compare(EQUAL, &[1]);
                self.socket(SOCKET_WILDCARD);
                self.compare(EQUAL, &[0]);
            }
            Statement::Tproxy { address, port } => {
                self.immediate(first, &octets(*address));
                let port_register = first + self.family.address_len() / 4;
                self.immediate(port_register, &port.to_be_bytes());
                self.tproxy(first, port_register);
            }
            Statement::Masquerade => self.expression("masq", |m| m.put_u32_be(1, NAT_FULLY_RANDOM)),
            Statement::RejectWithReset => self.reject(TCP_RESET, 0),
            Statement::Reject => {
                // Port unreachable is code 3 in ICMP and 4 in ICMPv6.
                let code = if self.family == TableFamily::Ip { 3 } else { 4 };
                self.reject(ICMP_UNREACHABLE, code);
            }
            Statement::Verdict(verdict) => self.expression("immediate", |m| {
                m.put_u32_be(1, VERDICT_REGISTER);
                m.nest(2, |m| put_verdict(m, verdict));
            }),
        }
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut MessageBuf)) {
        self.m.nest(LIST_ELEMENT, |m| {
            m.put_str(1, name);
            m.nest(2, fill);
        });
    }

    /// Loads a key into the registers from the first on; returns the first register behind it.
    fn load(&mut self, key: &[Field]) -> u32 {
        let mut register = FIRST_REGISTER;
        for field in key {
            self.load_field(*field, register);
            register += field.registers(self.family);
        }
        register
    }

    fn load_field(&mut self, field: Field, register: u32) {
        let length = self.family.address_len();
        let (source, destination) = match self.family {
            TableFamily::Ip => (12, 16),
            TableFamily::Ip6 => (8, 24),
        };
        match field {
            Field::Saddr => self.payload(NETWORK_HEADER, source, length, register),
            Field::Daddr => self.payload(NETWORK_HEADER, destination, length, register),
            Field::Dport => self.payload(TRANSPORT_HEADER, 2, 2, register),
            Field::L4Proto => self.load_meta(META_L4PROTO, register),
            Field::OriginalDaddr => self.original_destination(register),
            Field::Priority => self.load_meta(META_PRIORITY, register),
            Field::Mark => self.load_meta(META_MARK, register),
            Field::Random(modulus) => self.numgen(modulus, 0, register),
            Field::Constant(value) => self.numgen(1, value, register),
        }
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |m| {
            m.put_u32_be(1, register);
            m.put_u32_be(2, base);
            m.put_u32_be(3, offset);
            m.put_u32_be(4, length);
        });
    }

    fn meta(&mut self, key: u32) {
        self.load_meta(key, FIRST_REGISTER);
    }

    fn load_meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |m| {
            m.put_u32_be(1, register);
            m.put_u32_be(2, key);
        });
    }

    fn numgen(&mut self, modulus: u32, offset: u32, register: u32) {
        const RANDOM: u32 = 1;
        self.expression("numgen", |m| {
            m.put_u32_be(1, register);
            m.put_u32_be(2, modulus);
            m.put_u32_be(3, RANDOM);
            m.put_u32_be(4, offset);
        });
    }

    fn fib_source_type(&mut self) {
        const ADDRESS_TYPE: u32 = 3;
        const OF_SOURCE: u32 = 1;
        self.expression("fib", |m| {
            m.put_u32_be(1, FIRST_REGISTER);
            m.put_u32_be(2, ADDRESS_TYPE);
            m.put_u32_be(3, OF_SOURCE);
        });
    }

    fn connection(&mut self, what: Connection) {
        const STATE: u32 = 0;
        const STATUS: u32 = 2;
        let (key, bit) = match what {
            Connection::Invalid => (STATE, 1),
            Connection::New => (STATE, 8),
            Connection::Dnat => (STATUS, 0x20), // IPS_DST_NAT
        };
        self.expression("ct", |m| {
            m.put_u32_be(1, FIRST_REGISTER);
            m.put_u32_be(2, key);
        });
        self.bitwise(bit, 0);
        self.compare(NOT_EQUAL, &0_u32.to_ne_bytes());
    }

    fn original_destination(&mut self, register: u32) {
        let key = match self.family {
            TableFamily::Ip => 20,  // NFT_CT_DST_IP
            TableFamily::Ip6 => 22, // NFT_CT_DST_IP6
        };
        self.expression("ct", |m| {
            m.put_u32_be(1, register);
            m.put_u32_be(2, key);
            m.put_u8(3, 0); // IP_CT_DIR_ORIGINAL
        });
    }

    /// Register = (register & mask) ^ xor.
    fn bitwise(&mut self, mask: u32, xor: u32) {
        self.expression("bitwise", |m| {
            m.put_u32_be(1, FIRST_REGISTER);
            m.put_u32_be(2, FIRST_REGISTER);
            m.put_u32_be(3, 4);
            m.nest(4, |m| m.put_bytes(DATA_VALUE, &mask.to_ne_bytes()));
            m.nest(5, |m| m.put_bytes(DATA_VALUE, &xor.to_ne_bytes()));
        });
    }

    fn change_mark(&mut self, mask: u32, xor: u32) {
        self.meta(META_MARK);
        self.bitwise(mask, xor);
        self.set_meta(META_MARK);
    }

    fn set_meta(&mut self, key: u32) {
        self.expression("meta", |m| {
            m.put_u32_be(2, key);
            m.put_u32_be(3, FIRST_REGISTER);
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |m| {
            m.put_u32_be(1, FIRST_REGISTER);
            m.put_u32_be(2, operator);
            m.nest(3, |m| m.put_bytes(DATA_VALUE, value));
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |m| {
            m.put_u32_be(1, register);
            m.nest(2, |m| m.put_bytes(DATA_VALUE, value));
        });
    }

    fn lookup(&mut self, set: &str, key: u32, into: Option<u32>, negate: bool) {
        self.expression("lookup", |m| {
            m.put_str(1, set);
            m.put_u32_be(2, key);
            if let Some(register) = into {
                m.put_u32_be(3, register);
            }
            if negate {
                m.put_u32_be(5, 1);
            }
        });
    }

    fn update(&mut self, set: &str, milliseconds: u64) {
        const UPDATE: u32 = 1;
        self.expression("dynset", |m| {
            m.put_str(1, set);
            m.put_u32_be(3, UPDATE);
            m.put_u32_be(4, FIRST_REGISTER);
            m.put_u64_be(6, milliseconds);
        });
    }

    /// Destination NAT to the address in `register` and the port in the register behind it.
    fn dnat(&mut self, register: u32) {
        const DESTINATION: u32 = 1;
        let family = u32::from(self.family.number());
        let port = register + self.family.address_len() / 4;
        self.expression("nat", |m| {
            m.put_u32_be(1, DESTINATION);
            m.put_u32_be(2, family);
            m.put_u32_be(3, register);
            m.put_u32_be(4, register);
            m.put_u32_be(5, port);
            m.put_u32_be(6, port);
            m.put_u32_be(7, NAT_ADDRESS_AND_PORT);
        });
    }

    /// What the socket is like that a packet belongs to.
    fn socket(&mut self, key: u32) {
        self.expression("socket", |m| {
            m.put_u32_be(1, key);
            m.put_u32_be(2, FIRST_REGISTER);
        });
    }

    fn tproxy(&mut self, address: u32, port: u32) {
        let family = u32::from(self.family.number());
        self.expression("tproxy", |m| {
            m.put_u32_be(1, family);
            m.put_u32_be(2, address);
            m.put_u32_be(3, port);
        });
    }

    fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", |m| {
            m.put_u32_be(1, kind);
            m.put_u8(2, code);
        });
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
