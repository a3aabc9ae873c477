//! Tests of the client, against servers that do exactly what a test says.

mod faults;
mod kpng;
mod resume;
mod script;
