//! Sinks beside backends: the local view as lines of JSON, to standard output or to a program, and the
//! cluster as a file.

pub mod exec;
pub mod file;
pub mod json;
