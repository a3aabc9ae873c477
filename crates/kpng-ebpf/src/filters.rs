//! Attachments to devices by filters of the qdisc `clsact`, for kernels without tcx.
//!
//! A filter of ours is known by its place and its name, a qdisc of ours by a mark among the names of
//! attachments. A qdisc goes with its last filter if it is ours; filters of others stay as they are. Where
//! others use the older qdisc `ingress` there are filters for packets that arrive only.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use kpng_linux::rtnetlink::{BpfFilter, Direction, FilterPlace, Rtnetlink};
use rustix::io::Errno;

use crate::links::{entries, unpin};
use crate::sys::{self, Hook};
use crate::{Error, names};

/// The filters of ours in a network namespace.
#[derive(Debug)]
pub(crate) struct Filters {
    root: PathBuf,
    rtnetlink: Rtnetlink,
    /// The kinds of qdiscs, by device, as far as they are known.
    qdiscs: Option<BTreeMap<u32, String>>,
}

impl Filters {
    /// For the network namespace of the calling thread. Changes nothing.
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        Ok(Self { root, rtnetlink: Rtnetlink::open()?, qdiscs: None })
    }

    /// Devices or their qdiscs may be others now.
    pub(crate) fn look_again(&mut self) {
        self.qdiscs = None;
    }

    /// Gives the packets of a device to a program, instead of the one of ours that has them now.
    pub(crate) fn attach(
        &mut self,
        place: FilterPlace,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        if self.qdisc(place.link)?.is_none() {
            self.add_qdisc(place.link, program)?;
        }
        if !self.has_room_for(place)? {
            return Err(Error::OtherQdisc { device: place.link });
        }
        let failed = |source| Error::Filter { name: name.to_owned(), source };
        match self.rtnetlink.bpf_filter(place).map_err(failed)? {
            Some(filter) if !is_ours(&filter) => Err(Error::Occupied { place, name: filter.name }),
            _ => self.rtnetlink.set_bpf_filter(place, name, program).map_err(failed),
        }
    }

    /// The number of the program that a filter of ours gives packets to.
    pub(crate) fn program(&mut self, place: FilterPlace) -> Result<Option<u32>, Error> {
        if !self.has_room_for(place)? {
            return Ok(None);
        }
        match self.rtnetlink.bpf_filter(place) {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
            found => Ok(found?.filter(is_ours).map(|filter| filter.program)),
        }
    }

    /// Removes the filters of ours that are in other places, and the qdiscs of ours that are no use to
    /// anybody any more.
    pub(crate) fn retain(&mut self, kept: &BTreeSet<FilterPlace>) -> Result<(), Error> {
        let qdiscs = self.qdiscs()?.clone();
        for device in qdiscs.keys() {
            match self.retain_at(*device, kept) {
                // It went meanwhile, with all that was there.
                Err(Error::Kernel(error)) if error.errno() == Some(Errno::NODEV) => {}
                other => other?,
            }
        }
        let directory = self.root.join("links");
        for name in entries(&directory)? {
            let device = names::qdisc_device(&name);
            if device.is_some_and(|device| !qdiscs.contains_key(&device)) {
                unpin(&directory.join(name))?;
            }
        }
        Ok(())
    }

    fn retain_at(&mut self, device: u32, kept: &BTreeSet<FilterPlace>) -> Result<(), Error> {
        let places = DIRECTIONS.map(|direction| place(device, direction));
        for place in places.iter().filter(|place| !kept.contains(place)) {
            if self.program(*place)?.is_some() {
                self.rtnetlink.delete_filter(*place)?;
            }
        }
        let mark = names::qdisc(&self.root, device);
        if places.iter().any(|place| kept.contains(place)) || !mark.exists() {
            return Ok(());
        }
        let mut is_used = false;
        for direction in DIRECTIONS {
            is_used |= self.rtnetlink.has_filters(device, direction)?;
        }
        if !is_used {
            self.rtnetlink.delete_clsact(device)?;
        }
        // Else it is theirs from now on.
        unpin(&mark)
    }

    /// Gives a device the qdisc. The mark is there before it.
    fn add_qdisc(&mut self, device: u32, program: BorrowedFd<'_>) -> Result<(), Error> {
        let mark = names::qdisc(&self.root, device);
        unpin(&mark)?;
        let failed = |source| Error::Pin { what: "pin", path: mark.clone(), source };
        sys::pin(program, &mark).map_err(failed)?;
        if let Err(source) = self.rtnetlink.add_clsact(device) {
            unpin(&mark)?;
            return Err(Error::Filter { name: format!("the qdisc of device {device}"), source });
        }
        self.qdiscs()?.insert(device, CLSACT.to_owned());
        Ok(())
    }

    /// Whether the device has a qdisc with filters of this direction. With `ingress`, any direction would
    /// stand for packets that arrive.
    fn has_room_for(&mut self, place: FilterPlace) -> Result<bool, Error> {
        let kind = self.qdisc(place.link)?;
        Ok(kind.is_some_and(|kind| kind == CLSACT || place.direction == Direction::Ingress))
    }

    fn qdisc(&mut self, device: u32) -> Result<Option<&str>, Error> {
        Ok(self.qdiscs()?.get(&device).map(String::as_str))
    }

    fn qdiscs(&mut self) -> Result<&mut BTreeMap<u32, String>, Error> {
        let known = match self.qdiscs.take() {
            Some(known) => known,
            None => self.rtnetlink.ingress_qdiscs()?.into_iter().collect(),
        };
        Ok(self.qdiscs.insert(known))
    }
}

const CLSACT: &str = "clsact";

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The place of our filter at a device.
fn place(link: u32, direction: Direction) -> FilterPlace {
    let (priority, handle) = (names::FILTER_PRIORITY, names::FILTER_HANDLE);
    FilterPlace { link, direction, priority, handle }
}

/// The place of our filter for a hook; `None` where a hook has none.
pub(crate) fn place_of(hook: Hook) -> Option<FilterPlace> {
    match hook {
        Hook::Cgroup(_) => None,
        Hook::Ingress(device) => Some(place(device, Direction::Ingress)),
        Hook::Egress(device) => Some(place(device, Direction::Egress)),
    }
}

fn is_ours(filter: &BpfFilter) -> bool {
    [names::ETHERNET, names::BARE]
        .iter()
        .any(|programs| [programs.ingress, programs.egress].contains(&&*filter.name))
}
