//! How large and how full the maps are, read from the kernel when somebody asks.
//!
//! Maps are not kept alive by that: they belong to the programs that are attached.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kpng_core::backend::{Metric, Metrics};
use tracing::debug;

use crate::object::Maps;
use crate::{names, sys};

/// The maps in use, for monitoring.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    maps: Mutex<Weak<Maps>>,
}

impl Gauges {
    /// These maps are in use from now on, as long as they are.
    pub(crate) fn follow(&self, maps: &Arc<Maps>) {
        *self.maps.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(maps);
    }
}

impl Metrics for Gauges {
    fn read(&self) -> Vec<Metric> {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(maps) = maps else { return Vec::new() };
        let mut all = Vec::new();
        for (name, map) in &*maps {
            let help = "Memory of a map, in bytes";
            all.extend(bytes(map).map(|bytes| gauge("ebpf_map_bytes", help, name, bytes)));
            // Tables are filled by us, and what they hold is known without asking.
            if !names::STATES.iter().any(|state| state.name == *name) {
                continue;
            }
            match sys::map_info(map.as_fd()).and_then(|info| Ok((info.2, sys::count(map.as_fd())?)))
            {
                Ok((capacity, elements)) => {
                    let help = "Elements of a map that programs fill, outdated ones too";
                    all.push(gauge("ebpf_map_elements", help, name, elements as u64));
                    let help = "Elements that a map can hold; then the least recently used go";
                    all.push(gauge("ebpf_map_capacity", help, name, capacity.into()));
                }
                Err(errno) => debug!("cannot count the elements of map {name}: {errno}"),
            }
        }
        all
    }
}

/// The memory of a map, as the kernel says it. Before Linux 6.4 that is an estimate.
fn bytes(map: &OwnedFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[expect(clippy::cast_precision_loss, reason = "monitoring has floating point numbers")]
fn gauge(name: &'static str, help: &'static str, map: &str, value: u64) -> Metric {
    let labels = vec![("map", map.to_owned())];
    Metric { name, help, is_counter: false, labels, value: value as f64 }
}
