//! What the pinned tables hold now, whoever filled them.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::layout::{
    Address, Bytes, Endpoint, Frontend, FrontendKey, MemberKey, RangeKey, TargetKey,
};
use crate::{Error, names, sys};

/// The elements of all tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// The tables that are pinned, and the kernel's numbers of them; others have no elements.
    pub(super) tables: HashMap<&'static str, u32>,
    pub(super) frontends: HashMap<FrontendKey, Frontend>,
    pub(super) targets: HashMap<TargetKey, Endpoint>,
    pub(super) members: HashSet<MemberKey>,
    pub(super) ranges: HashSet<RangeKey>,
    pub(super) addresses: HashMap<Address, Bytes<4>>,
    pub(super) pod_devices: HashSet<Bytes<4>>,
}

impl Held {
    /// Whether a program looks at these tables, and at no others with such a name.
    pub(super) fn are_used_by(&self, program: u32) -> Result<bool, Error> {
        let maps = match sys::maps_of(program) {
            // It was replaced a moment ago.
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            maps => maps.map_err(|source| Error::Running { program, source })?,
        };
        let known = |name: &str| self.tables.get(name);
        Ok(maps.iter().all(|(name, id)| known(name).is_none_or(|known| known == id)))
    }

    /// Reads everything. A table of another shape counts as not there.
    pub(super) fn read(root: &Path) -> Result<Self, Error> {
        let mut held = Self::default();
        for name in names::TABLES {
            let path = names::table(root, name);
            let failed = |source| Error::Pin { what: "open", path: path.clone(), source };
            let Some(table) = sys::pinned(&path).map_err(failed)? else { continue };
            let read = match name {
                "frontends" => extend(&table, &mut held.frontends, |key, value| (key, value)),
                "targets" => extend(&table, &mut held.targets, |key, value| (key, value)),
                "members" => extend(&table, &mut held.members, key_only),
                "ranges" => extend(&table, &mut held.ranges, key_only),
                "addresses" => extend(&table, &mut held.addresses, |key, value| (key, value)),
                _ => extend(&table, &mut held.pod_devices, key_only),
            };
            match read.and_then(|()| sys::id(table.as_fd())) {
                Ok(id) => drop(held.tables.insert(name, id)),
                Err(rustix::io::Errno::INVAL) => {}
                Err(source) => return Err(Error::Map { what: "read", name, source }),
            }
        }
        Ok(held)
    }
}

fn key_only<const K: usize>(key: Bytes<K>, _: Bytes<1>) -> Bytes<K> {
    key
}

fn extend<const K: usize, const V: usize, T>(
    table: &OwnedFd,
    to: &mut impl Extend<T>,
    element: impl Fn(Bytes<K>, Bytes<V>) -> T,
) -> Result<(), rustix::io::Errno> {
    sys::visit(table.as_fd(), |keys, values| {
        to.extend(keys.iter().zip(values).map(|(key, value)| element(*key, *value)));
    })
}
