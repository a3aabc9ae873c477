//! What can be wrong with a file. Every message names the file, and the place in it if there is one.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was read but says something that cannot be.
    #[error("{}:{problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: Problem,
    },
}

/// What is wrong with a text, and where.
///
/// Displays as `LINE:COLUMN: FIELD: REASON`, so that the name of a file and a colon can be put in
/// front, as compilers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1; 0 when it is not known.
    pub line: u32,
    /// In characters, counted from 1; 0 when it is not known.
    pub column: u32,
    /// The path of the field, like `services[3].service.ports[0].port`; empty when the problem is
    /// no single field.
    pub field: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, field, reason } = self;
        write!(f, "{line}:{column}: ")?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        f.write_str(reason)
    }
}

impl std::error::Error for Problem {}
