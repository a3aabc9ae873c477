//! The core of kpng: values, and pure functions from one to the next.

pub mod model;
pub mod store;
