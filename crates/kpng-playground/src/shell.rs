//! The way into a running playground.
//!
//! A playground leaves nothing by which it could be found but its process: its hosts are threads of
//! it, each named like the host, in the host's namespace.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kpng_linux::namespace::{NetNs, join_user_namespace};

use crate::group::join_with_process;
use crate::{Error, Result};

/// So much of a thread's name the kernel keeps.
const THREAD_NAME: usize = 15;

/// Moves the calling thread, which must be the only one, to where a host is of the
/// playground that runs: the latest, when there are several.
///
/// # Errors
/// [`Error::NoPlayground`], [`Error::NoHost`], or what the kernel refuses.
pub fn enter(name: &str) -> Result<()> {
    let process = running()?;
    let hosts = hosts(&process)?;
    let kept = &name.as_bytes()[..name.len().min(THREAD_NAME)];
    let Some((_, thread)) = hosts.iter().find(|(host, _)| host.as_bytes() == kept) else {
        let hosts = hosts.into_iter().map(|(host, _)| host).collect();
        return Err(Error::NoHost { name: name.to_owned(), hosts });
    };
    // Opened before the user namespace is entered: the thread may end meanwhile.
    let path = thread.join("ns/net");
    join_with_process(&process, thread)?;
    join_user_namespace(&process.join("ns/user"))?;
    NetNs::open(&path)?.enter()?;
    Ok(())
}

/// The directory in `/proc` of the playground that was started last, by its number.
fn running() -> Result<PathBuf> {
    let own = std::process::id();
    let program = program(&words(Path::new("/proc/self")));
    let mut found = numbers(Path::new("/proc"))?;
    found.retain(|(number, path)| *number != own && is_playground(path, program.as_deref()));
    let latest = found.into_iter().max_by_key(|(number, _)| *number);
    latest.map(|(_, path)| path).ok_or(Error::NoPlayground)
}

/// Whether the process is a `program` that makes a playground, as opposed to one that enters it.
fn is_playground(process: &Path, program: Option<&OsStr>) -> bool {
    let words = words(process);
    let has = |what: &[u8]| words.iter().any(|word| word == what);
    self::program(&words).as_deref() == program
        && has(b"playground")
        && !has(b"shell")
        && hosts(process).is_ok_and(|hosts| !hosts.is_empty())
}

/// The command line of a process.
fn words(process: &Path) -> Vec<Vec<u8>> {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// The name of the program, without its directory.
fn program(words: &[Vec<u8>]) -> Option<OsString> {
    let program = Path::new(OsStr::from_bytes(words.first()?));
    program.file_name().map(OsStr::to_owned)
}

/// The hosts: threads that are in another network namespace than the process, by name.
fn hosts(process: &Path) -> Result<Vec<(String, PathBuf)>> {
    let main =
        fs::read_link(process.join("ns/net")).map_err(|source| unreadable(process, source))?;
    let mut hosts: Vec<(String, PathBuf)> = Vec::new();
    for (_, thread) in numbers(&process.join("task"))? {
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let elsewhere = fs::read_link(thread.join("ns/net")).is_ok_and(|own| own != main);
        let name = name.trim_end();
        // Threads that serve hosts have names with spaces.
        if elsewhere && !name.contains(' ') {
            hosts.push((name.to_owned(), thread));
        }
    }
    hosts.sort();
    Ok(hosts)
}

/// The entries of a directory of `/proc` that are numbers.
fn numbers(directory: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let entries = fs::read_dir(directory).map_err(|source| unreadable(directory, source))?;
    let number =
        |entry: fs::DirEntry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()));
    Ok(entries.filter_map(Result::ok).filter_map(number).collect())
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::System { what: format!("look at {}", path.display()), source }
}
