//! Tests of the client, against servers that do exactly what a test says.

mod faults;
mod kpng;
mod log;
mod own;
mod resume;
mod script;
