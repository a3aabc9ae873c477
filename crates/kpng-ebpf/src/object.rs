//! The programs and maps, from the kept object into the kernel.
//!
//! Tables are made anew with each load, as large as they have to be, and filled before a program
//! that uses them is attached. States are taken over from whoever ran before.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Map, MapData};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

use crate::layout;
use crate::names::{self, STATES, State};
use crate::state::{Changes, Garbage, Sizes};
use crate::{Config, Error, sys};

/// What clang makes of `bpf/kpng.bpf.c`; a test compares.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/kpng.bpf.o");

/// Maps by name.
pub(crate) type Maps = BTreeMap<&'static str, OwnedFd>;

/// Programs with their maps.
#[derive(Debug)]
pub(crate) struct Object {
    programs: BTreeMap<&'static str, OwnedFd>,
    maps: Arc<Maps>,
    capacity: Sizes,
}

/// How many devices a table can hold.
const POD_DEVICES: usize = 4096;

/// How many elements a table shall be able to hold, given how many it holds at first.
fn capacity(elements: usize) -> usize {
    (elements + elements / 2).next_power_of_two().max(1024)
}

impl Sizes {
    fn capacity(self) -> Self {
        Self {
            frontends: capacity(self.frontends),
            targets: capacity(self.targets),
            members: capacity(self.members),
            ranges: capacity(self.ranges),
            addresses: capacity(self.addresses),
        }
    }

    /// That of a table, where it depends on the plan.
    pub(crate) fn of(self, table: &str) -> Option<usize> {
        match table {
            "frontends" => Some(self.frontends),
            "targets" => Some(self.targets),
            "members" => Some(self.members),
            "ranges" => Some(self.ranges),
            "addresses" => Some(self.addresses),
            _ => None,
        }
    }

    /// Whether tables of this capacity hold so many elements.
    pub(crate) fn holds(self, sizes: Self) -> bool {
        names::TABLES.iter().all(|table| sizes.of(table) <= self.of(table))
    }
}

impl Object {
    /// Loads the programs, with empty tables for at least so many elements.
    pub(crate) fn load(
        config: &Config,
        constants: &layout::Constants,
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let capacity = sizes.capacity();
        let constants = constants.bytes();
        let states: Vec<(&State, PathBuf)> =
            STATES.iter().map(|state| (state, names::state(&config.root, state.name))).collect();
        let mut loader = EbpfLoader::new();
        loader.override_global("config", &constants[..], true);
        for (state, path) in &states {
            let entries = config.capacity(state.name);
            forget_unfit(path, state, entries)?;
            loader.map_max_entries(state.name, entries).map_pin_path(state.name, path);
        }
        for table in names::TABLES {
            let entries = capacity.of(table).unwrap_or(POD_DEVICES);
            let entries = u32::try_from(entries).unwrap_or(u32::MAX);
            loader.map_max_entries(table, entries);
        }
        let mut ebpf =
            loader.load(OBJECT).map_err(|source| Error::Load { source: source.into() })?;
        let programs = load_programs(&mut ebpf)?;
        let maps = names::TABLES.into_iter().chain(STATES.iter().map(|state| state.name));
        let maps =
            maps.map(|name| Ok((name, map_fd(&ebpf, name)?))).collect::<Result<_, Error>>()?;
        Ok(Self { programs, maps: Arc::new(maps), capacity })
    }

    /// How many elements the tables can hold.
    pub(crate) fn capacity(&self) -> Sizes {
        self.capacity
    }

    /// A program.
    pub(crate) fn program(&self, name: &str) -> BorrowedFd<'_> {
        self.programs[name].as_fd()
    }

    /// A map.
    pub(crate) fn map(&self, name: &str) -> BorrowedFd<'_> {
        self.maps[name].as_fd()
    }

    /// All maps.
    pub(crate) fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// Writes changes, in the order in which packets may meet them.
    pub(crate) fn write(&self, changes: &Changes) -> Result<(), Error> {
        let failed = |table| move |source| Error::Map { what: "write to", name: table, source };
        let (keys, values): (Vec<_>, Vec<_>) = changes.targets.iter().copied().unzip();
        sys::update(self.map("targets"), &keys, &values).map_err(failed("targets"))?;
        self.insert("members", &changes.members)?;
        self.insert("ranges", &changes.ranges)?;
        let (keys, values): (Vec<_>, Vec<_>) =
            changes.addresses.iter().map(|(key, flags)| (*key, flags.to_ne_bytes())).unzip();
        sys::update(self.map("addresses"), &keys, &values).map_err(failed("addresses"))?;
        let (keys, values): (Vec<_>, Vec<_>) = changes.frontends.iter().copied().unzip();
        sys::update(self.map("frontends"), &keys, &values).map_err(failed("frontends"))?;
        // What one service gave up, another may have taken.
        let mut gone = changes.gone_frontends.clone();
        for key in &keys {
            gone.remove(key);
        }
        self.delete("frontends", &gone.into_iter().collect::<Vec<_>>())?;
        let gone: Vec<_> = changes.gone_members.iter().map(|(key, _)| *key).collect();
        self.delete("members", &gone)
    }

    /// Deletes what nothing refers to.
    pub(crate) fn discard(&self, garbage: &Garbage) -> Result<(), Error> {
        self.delete("targets", &garbage.targets)?;
        self.delete("members", &garbage.members)?;
        self.delete("ranges", &garbage.ranges)
    }

    /// Says which devices packets of pods come in through.
    pub(crate) fn set_pod_devices(&self, devices: &[u32]) -> Result<(), Error> {
        const TABLE: &str = "pod_devices";
        let devices: Vec<_> = devices.iter().map(|index| index.to_ne_bytes()).collect();
        self.insert(TABLE, &devices)?;
        let failed = |source| Error::Map { what: "read", name: TABLE, source };
        let mut gone = sys::keys(self.map(TABLE)).map_err(failed)?;
        gone.retain(|index| !devices.contains(index));
        self.delete(TABLE, &gone)
    }

    fn insert<const K: usize>(&self, table: &'static str, keys: &[[u8; K]]) -> Result<(), Error> {
        let ones = vec![[1_u8]; keys.len()];
        sys::update(self.map(table), keys, &ones).map_err(|source| Error::Map {
            what: "write to",
            name: table,
            source,
        })
    }

    fn delete<const K: usize>(&self, table: &'static str, keys: &[[u8; K]]) -> Result<(), Error> {
        sys::delete(self.map(table), keys).map_err(|source| Error::Map {
            what: "delete from",
            name: table,
            source,
        })
    }

    /// Shows the tables to people, by name. Those of programs that were replaced go.
    pub(crate) fn pin_tables(&self, root: &Path) -> Result<(), Error> {
        for table in names::TABLES {
            let path = names::table(root, table);
            crate::links::unpin(&path)?;
            sys::pin(self.map(table), &path).map_err(|source| Error::Pin {
                what: "pin",
                path,
                source,
            })?;
        }
        Ok(())
    }
}

/// A state of another shape, which another version made, is given up.
fn forget_unfit(path: &Path, state: &State, entries: u32) -> Result<(), Error> {
    let failed = |source| Error::Pin { what: "open", path: path.to_owned(), source };
    let Some(found) = sys::pinned(path).map_err(failed)? else { return Ok(()) };
    let info = sys::map_info(found.as_fd()).map_err(failed)?;
    if info != (state.key, state.value, entries) {
        crate::links::unpin(path)?;
    }
    Ok(())
}

fn load_programs(ebpf: &mut Ebpf) -> Result<BTreeMap<&'static str, OwnedFd>, Error> {
    let sockets = names::SOCKET_HOOKS.into_iter().map(|(name, _)| name);
    let devices = [names::ETHERNET, names::BARE];
    let all = sockets.chain(devices.iter().flat_map(|device| [device.ingress, device.egress]));
    let mut programs = BTreeMap::new();
    for name in all {
        let refused = |source| Error::Program { name, source: Box::new(source) };
        let program = ebpf.program_mut(name).ok_or(Error::Missing { name })?;
        match program {
            Program::CgroupSockAddr(program) => program.load().map_err(refused)?,
            Program::SchedClassifier(program) => program.load().map_err(refused)?,
            _ => return Err(Error::Missing { name }),
        }
        let fd = program.fd().map_err(refused)?.as_fd().try_clone_to_owned();
        programs.insert(name, fd.map_err(|source| Error::Descriptor { source })?);
    }
    Ok(programs)
}

fn map_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    let data: &MapData = match ebpf.map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data)) => data,
        _ => return Err(Error::Missing { name }),
    };
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| Error::Descriptor { source })
}
