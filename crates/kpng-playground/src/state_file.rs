//! The state file: written by the playground step by step, and by whoever edits it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kpng_file::{Options, State};

use crate::{Error, Result};

/// A state file that is looked at again and again.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    shown: PathBuf,
    /// The version that was read last.
    version: Option<Version>,
    /// The version that we wrote.
    written: Option<Version>,
    /// What we wrote was not looked at yet.
    is_new: bool,
}

/// What tells one version of the file from another without reading it.
type Version = (u64, u64, i64, i64);

impl StateFile {
    /// The file at `path`, which people reach as `shown`.
    pub fn new(path: PathBuf, shown: PathBuf) -> Self {
        Self { path, shown, version: None, written: None, is_new: false }
    }

    /// Where people find it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Writes a state. Who reads it sees either the old one or the new one.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&mut self, text: &str) -> Result<()> {
        let fail = |source| Error::Write { path: self.shown.clone(), source };
        let mut next = self.path.clone().into_os_string();
        next.push(".new");
        fs::write(&next, text).map_err(fail)?;
        self.written = Version::of(Path::new(&next));
        self.is_new = true;
        fs::rename(&next, &self.path).map_err(fail)
    }

    fn as_people_reach_it(&self, error: kpng_file::Error) -> kpng_file::Error {
        let path = self.shown.clone();
        match error {
            kpng_file::Error::Read { source, .. } => kpng_file::Error::Read { path, source },
            kpng_file::Error::Invalid { problem, .. } => {
                kpng_file::Error::Invalid { path, problem }
            }
            error => error,
        }
    }

    /// What was read last is somebody else's work, and no step was written since.
    pub fn is_edited(&self) -> bool {
        self.version != self.written && !self.is_new
    }

    /// The state, if the file has changed since the last call.
    ///
    /// # Errors
    /// [`Error::State`] with the place in the file, once for every version that is not valid.
    pub fn changed(&mut self) -> Result<Option<State>> {
        let version = Version::of(&self.path);
        self.is_new = false;
        if version.is_some() && version == self.version {
            return Ok(None);
        }
        let gone = version.is_none() && self.version.is_none();
        self.version = version;
        match kpng_file::read(&self.path, &Options::default()) {
            Ok(state) => Ok(Some(state)),
            // An editor is about to put a new one in its place; or it was said before.
            Err(kpng_file::Error::Read { .. }) if gone => Ok(None),
            Err(error) => Err(self.as_people_reach_it(error).into()),
        }
    }
}

trait Look: Sized {
    fn of(path: &Path) -> Option<Self>;
}

impl Look for Version {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "services: [{service: {name: web, ips: {clusterips: {v4: [10.0.0.1]}}}}]";

    #[test]
    fn a_change_is_seen_once_and_an_error_says_where() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.yaml");
        let mut file = StateFile::new(path.clone(), path.clone());
        file.write(STATE).unwrap();
        assert_eq!(file.changed().unwrap().unwrap().services.len(), 1);
        assert!(file.changed().unwrap().is_none());
        assert!(!file.is_edited());

        fs::write(&path, "services: [{service: {name: web, prots: []}}]").unwrap();
        let error = file.changed().unwrap_err().to_string();
        assert!(error.contains("state.yaml:1:34: services[0].service.prots"), "{error}");
        assert!(file.changed().unwrap().is_none(), "it is said once");
        assert!(file.is_edited());

        fs::remove_file(&path).unwrap();
        assert!(file.changed().unwrap_err().to_string().contains("cannot read"));
        assert!(file.changed().unwrap().is_none(), "it is said once");
        file.write(STATE).unwrap();
        assert!(!file.is_edited(), "our own work, even before it is read");
        assert!(file.changed().unwrap().is_some());
        assert!(!file.is_edited());
    }
}
