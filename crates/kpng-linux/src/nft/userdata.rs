//! What nft keeps beside an object for its own use: TLVs that the kernel stores and never reads.
//!
//! Written so that `nft list` shows declarations by `typeof`, numbers in the right byte order, and
//! comments. The numbers are libnftnl's and nft's (tried against nft 1.0.6).

use super::model::{Data, Field, SetDef, TableFamily};

const SET_KEY_BYTEORDER: u8 = 0;
const SET_DATA_BYTEORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_COMMENT: u8 = 7;

const BYTEORDER_NONE: u32 = 0;
const BYTEORDER_HOST: u32 = 1;
const BYTEORDER_BIG_ENDIAN: u32 = 2;

const TYPEOF_EXPRESSION: u8 = 0;
const TYPEOF_DATA: u8 = 1;

const EXPRESSION_PAYLOAD: u32 = 7;
const EXPRESSION_META: u32 = 9;
const EXPRESSION_CONCAT: u32 = 13;
const EXPRESSION_NUMGEN: u32 = 23;

/// A TLV of our own in a rule: the fingerprint of its expressions. nft skips types it does not know.
const RULE_FINGERPRINT: u8 = 0x6b;

/// The userdata of a set.
pub(super) fn of_set(family: TableFamily, set: &SetDef) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, SET_KEY_BYTEORDER, byteorder(&set.key));
    if let Data::Fields(fields) = &set.data {
        number(&mut out, SET_DATA_BYTEORDER, byteorder(fields));
    }
    tlv(&mut out, SET_KEY_TYPEOF, &type_of(family, &set.key));
    if let Data::Fields(fields) = &set.data {
        tlv(&mut out, SET_DATA_TYPEOF, &type_of(family, fields));
    }
    let mut comment = set.comment.as_bytes().to_vec();
    comment.push(0);
    tlv(&mut out, SET_COMMENT, &comment);
    out
}

/// The userdata of a rule with this fingerprint.
pub(super) fn of_rule(fingerprint: u64) -> Vec<u8> {
    let mut out = Vec::new();
    tlv(&mut out, RULE_FINGERPRINT, &fingerprint.to_ne_bytes());
    out
}

/// The fingerprint that [`of_rule`] wrote.
pub(super) fn fingerprint(mut userdata: &[u8]) -> Option<u64> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == RULE_FINGERPRINT {
            return value.try_into().ok().map(u64::from_ne_bytes);
        }
        userdata = rest;
    }
    None
}

fn byteorder(fields: &[Field]) -> u32 {
    match fields {
        [Field::Priority | Field::Mark | Field::Random(_) | Field::Constant(_)] => BYTEORDER_HOST,
        [_] => BYTEORDER_BIG_ENDIAN,
        _ => BYTEORDER_NONE,
    }
}

fn type_of(family: TableFamily, fields: &[Field]) -> Vec<u8> {
    if let [field] = fields {
        return type_of_field(family, *field);
    }
    let mut parts = Vec::new();
    for (index, field) in (0..).zip(fields) {
        tlv(&mut parts, index, &type_of_field(family, *field));
    }
    expression(EXPRESSION_CONCAT, &parts)
}

fn type_of_field(family: TableFamily, field: Field) -> Vec<u8> {
    let payload = |protocol: u32, field: u32| {
        let mut data = Vec::new();
        number(&mut data, 0, protocol);
        number(&mut data, 1, field);
        expression(EXPRESSION_PAYLOAD, &data)
    };
    let meta = |key: u32| {
        let mut data = Vec::new();
        number(&mut data, 0, key);
        expression(EXPRESSION_META, &data)
    };
    // Protocols and fields by nft's numbers: 12 is `ip`, 13 is `ip6`, 11 is `th`.
    match (field, family) {
        (Field::Saddr, TableFamily::Ip) => payload(12, 11),
        (Field::Daddr | Field::OriginalDaddr, TableFamily::Ip) => payload(12, 12),
        (Field::Saddr, TableFamily::Ip6) => payload(13, 8),
        (Field::Daddr | Field::OriginalDaddr, TableFamily::Ip6) => payload(13, 9),
        (Field::Dport, _) => payload(11, 2),
        (Field::L4Proto, _) => meta(16),
        (Field::Priority, _) => meta(2),
        (Field::Mark, _) => meta(3),
        (Field::Random(_) | Field::Constant(_), _) => {
            let mut data = Vec::new();
            number(&mut data, 0, 1); // random
            number(&mut data, 1, 2); // mod 2, for any modulus
            number(&mut data, 2, 0); // offset
            expression(EXPRESSION_NUMGEN, &data)
        }
    }
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, TYPEOF_EXPRESSION, kind);
    tlv(&mut out, TYPEOF_DATA, data);
    out
}

fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
    tlv(out, kind, &value.to_ne_bytes());
}

fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.push(u8::try_from(value.len()).expect("no comment or typeof of ours is over 255 bytes"));
    out.extend_from_slice(value);
}
