//! Sinks for integrators: the local view as lines of JSON, to standard output or to a program.

pub mod exec;
pub mod json;
