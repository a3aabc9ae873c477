//! Operations as they go over the network: encoded and framed, once for all who get them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;
use twox_hash::XxHash64;

use crate::proto::localv1::op_item::Op;
use crate::proto::localv1::{EmptyOp, OpItem, Position, Ref, Set, Value};

/// Operations that lead from one state of one thing to another.
///
/// They are `OpItem` messages, each in gRPC's framing (a byte 0 for "not compressed", then the length
/// in 4 bytes, most significant first), in groups. A server that sends all first groups of what
/// changed, then all second groups and so on, never shows a client an endpoint without its Service.
/// One allocation, shared by clones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ops {
    bytes: Bytes,
    ends: [u32; Self::GROUPS],
    count: u32,
}

impl Ops {
    /// How many groups there are; what they mean is the business of who makes them.
    pub(crate) const GROUPS: usize = 6;

    /// The framed operations of group `n`, ready to be sent.
    pub(crate) fn group(&self, n: usize) -> &[u8] {
        let start = if n == 0 { 0 } else { self.ends[n - 1] };
        &self.bytes[start as usize..self.ends[n] as usize]
    }

    /// Nothing differs.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The length of all groups in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The number of operations.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}

/// The framed operation that announces the full state.
pub(crate) fn reset() -> Bytes {
    framed(Op::Reset(EmptyOp::default()))
}

/// The framed operation that ends an answer, the earliest change of which was `triggered` then.
pub(crate) fn sync(position: Option<Position>, triggered: Option<SystemTime>) -> Bytes {
    let since_epoch = triggered.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let triggered = since_epoch.and_then(|time| i64::try_from(time.as_nanos()).ok());
    framed(Op::Sync(EmptyOp { position, triggered: triggered.unwrap_or(0) }))
}

/// When the earliest change of an answer was triggered, if its Sync says so.
pub(crate) fn triggered(sync: &EmptyOp) -> Option<SystemTime> {
    let nanoseconds = u64::try_from(sync.triggered).ok().filter(|time| *time != 0)?;
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds))
}

/// One framed operation: the value at a path, or that it is gone.
pub(super) fn single(set: Set, path: String, bytes: Option<Vec<u8>>) -> Bytes {
    framed(match bytes {
        Some(bytes) => set_op(set, path, bytes),
        None => delete_op(set, path),
    })
}

/// Encoded values by path.
pub(super) type Messages = BTreeMap<String, Vec<u8>>;

/// Which groups the changes of one kind of value go to.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    pub(super) set: usize,
    pub(super) delete: usize,
}

/// [`Ops`] in the making.
#[derive(Default)]
pub(super) struct Draft {
    groups: [Vec<u8>; Ops::GROUPS],
    count: u32,
}

impl Draft {
    /// Adds what leads from `old` to `new`, two states of a part of a set: sets ascending by path,
    /// deletes descending.
    pub(super) fn difference(&mut self, groups: Groups, set: Set, old: &Messages, new: Messages) {
        for path in old.keys().rev().filter(|path| !new.contains_key(*path)) {
            self.push(groups.delete, delete_op(set, path.clone()));
        }
        for (path, bytes) in new {
            if old.get(&path) != Some(&bytes) {
                self.push(groups.set, set_op(set, path, bytes));
            }
        }
    }

    fn push(&mut self, group: usize, op: Op) {
        frame(op, &mut self.groups[group]);
        self.count += 1;
    }

    pub(super) fn finish(self) -> Ops {
        let mut ends = [0; Ops::GROUPS];
        let mut end = 0;
        for (group, at) in self.groups.iter().zip(&mut ends) {
            end += group.len();
            *at = u32::try_from(end).expect("one Service's operations are far below 4 GiB");
        }
        Ops { bytes: self.groups.concat().into(), ends, count: self.count }
    }
}

fn set_op(set: Set, path: String, bytes: Vec<u8>) -> Op {
    Op::Set(Value { r#ref: Some(Ref { set: set.into(), path }), bytes })
}

fn delete_op(set: Set, path: String) -> Op {
    Op::Delete(Ref { set: set.into(), path })
}

fn framed(op: Op) -> Bytes {
    let mut bytes = Vec::new();
    frame(op, &mut bytes);
    bytes.into()
}

fn frame(op: Op, out: &mut Vec<u8>) {
    let item = OpItem { op: Some(op) };
    let length = u32::try_from(item.encoded_len()).expect("a message is far below 4 GiB");
    out.push(0);
    out.extend(length.to_be_bytes());
    item.encode_raw(out);
}

/// KPNG's hash of encoded messages.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}
