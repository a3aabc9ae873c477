//! The eBPF backend, with a control group and a BPF file system of its own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kpng_core::Backend;
use kpng_ebpf::{Config, Ebpf};
use rustix::mount::{UnmountFlags, unmount};

use super::Size;
use super::nft::measure_backend;
use super::table::{Figures, Limit, Target};

/// What the backend's README promises.
pub(crate) const TARGETS: &[Target] = &[
    Target { figure: "cold start, CPU ms", size: "44kx2", limit: Limit::Below(2000.0) },
    Target { figure: "RSS, MiB", size: "44kx2", limit: Limit::Below(150.0) },
    Target { figure: "replace endpoint, CPU median us", size: "", limit: Limit::Below(1000.0) },
    Target {
        figure: "replace endpoint, CPU median us",
        size: "44kx2",
        limit: Limit::TimesFirst(1.5),
    },
    Target { figure: "add/remove endpoint, CPU median us", size: "", limit: Limit::Below(1000.0) },
    Target { figure: "add/remove service, CPU median us", size: "", limit: Limit::Below(1000.0) },
];

/// Measures one size.
pub(crate) fn measure(size: Size, changes: usize) -> Result<Figures> {
    let place = Place::new()?;
    let config = Config {
        root: place.directory.join("kpng"),
        cgroup_root: Some(place.cgroup.clone()),
        ..Config::default()
    };
    measure_backend(size, changes, || Ok(Box::new(Ebpf::open(config.clone())?) as Box<dyn Backend>))
}

/// An empty control group, and an empty directory. They end with the value.
struct Place {
    cgroup: PathBuf,
    directory: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|words| words.get(2) == Some(&"cgroup2"));
        let mount = mount.context("a control group file system of version 2 is mounted")?[1];
        let name = format!("kpng-bench-{}", std::process::id());
        let cgroup = PathBuf::from(mount).join(&name);
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&cgroup).context("control groups need root")?;
        fs::create_dir(&directory)?;
        Ok(Self { cgroup, directory })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unmount(&self.directory, UnmountFlags::DETACH).unwrap_or(());
        for directory in [&self.cgroup, &self.directory] {
            fs::remove_dir(directory).unwrap_or(());
        }
    }
}
