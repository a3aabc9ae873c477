//! A page of operations on its way out: shared parts, copied piece by piece as the client takes them.

use std::sync::Arc;

use bytes::BytesMut;

use crate::wire::Ops;

/// Operations of several changes, in the order of sending: group by group, and within a group in the
/// order of the changes, but deletions in the opposite order.
#[derive(Debug)]
pub(super) struct Page {
    ops: Vec<Arc<Ops>>,
    /// Which groups are deletions.
    deletions: [bool; Ops::GROUPS],
    /// The next byte: of which group, which change in it, where.
    group: usize,
    index: usize,
    offset: usize,
}

impl Page {
    pub(super) fn new(ops: Vec<Arc<Ops>>, deletions: [bool; Ops::GROUPS]) -> Self {
        Self { ops, deletions, group: 0, index: 0, offset: 0 }
    }

    /// It says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.ops.iter().all(|ops| ops.is_empty())
    }

    /// How many operations are on it.
    pub(super) fn operations(&self) -> u64 {
        self.ops.iter().map(|ops| u64::from(ops.count())).sum()
    }

    /// How many bytes they have.
    pub(super) fn bytes(&self) -> usize {
        self.ops.iter().map(|ops| ops.len()).sum()
    }

    /// Appends to `chunk` until it has `limit` bytes. `false` when nothing is left.
    pub(super) fn pour(&mut self, chunk: &mut BytesMut, limit: usize) -> bool {
        while self.group < Ops::GROUPS {
            let Some(ops) = self.current() else {
                (self.group, self.index) = (self.group + 1, 0);
                continue;
            };
            let bytes = &ops.group(self.group)[self.offset..];
            let room = limit.saturating_sub(chunk.len());
            if bytes.len() > room {
                chunk.extend_from_slice(&bytes[..room]);
                self.offset += room;
                return true;
            }
            chunk.extend_from_slice(bytes);
            (self.index, self.offset) = (self.index + 1, 0);
        }
        false
    }

    fn current(&self) -> Option<&Ops> {
        let last = self.ops.len().checked_sub(1)?;
        let index =
            if self.deletions[self.group] { last.checked_sub(self.index)? } else { self.index };
        self.ops.get(index).map(|ops| &**ops)
    }
}
