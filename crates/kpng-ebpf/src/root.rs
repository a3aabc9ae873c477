//! The directory in which everything of ours is pinned: made, and removed with all that is in it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::links::{entries, unpin};
use crate::{Error, names};

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FILE_SYSTEM: i64 = 0xcafe_4a11;

/// Makes the directories. Where no BPF file system is mounted, one is, at the parent directory.
pub(crate) fn prepare(root: &Path) -> Result<(), Error> {
    let parent = root.parent().unwrap_or(root);
    if !is_bpf(parent)? {
        let failed = |errno: rustix::io::Errno| Error::File {
            what: "mount a BPF file system at",
            path: parent.to_owned(),
            source: errno.into(),
        };
        mount("bpf", parent, "bpf", MountFlags::empty(), None).map_err(failed)?;
    }
    for directory in names::DIRECTORIES {
        let path = root.join(directory);
        fs::create_dir_all(&path).map_err(|source| Error::File { what: "create", path, source })?;
    }
    Ok(())
}

fn is_bpf(path: &Path) -> Result<bool, Error> {
    let failed = |errno: rustix::io::Errno| Error::File {
        what: "look at",
        path: path.to_owned(),
        source: errno.into(),
    };
    Ok(rustix::fs::statfs(path).map_err(failed)?.f_type == BPF_FILE_SYSTEM)
}

/// Removes everything: an attachment ends with its last name. The file system stays, others use it.
pub(crate) fn remove(root: &Path) -> Result<(), Error> {
    let mut problem = Ok(());
    let mut note = |outcome: Result<(), Error>| {
        if problem.is_ok() {
            problem = outcome;
        }
    };
    // Attachments first: what they lead to is not looked at any more.
    for directory in names::DIRECTORIES.into_iter().rev() {
        let path = root.join(directory);
        match entries(&path) {
            Ok(names) => names.iter().for_each(|name| note(unpin(&path.join(name)))),
            Err(error) => note(Err(error)),
        }
        note(remove_directory(&path));
    }
    note(remove_directory(root));
    problem
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
