//! kpng's playground: a small cluster of network namespaces, traffic in it, and a picture of it.
//!
//! ```text
//! state file ──▶ World (a client, a node, pods)     Playground ──▶ Picture ──▶ terminal or lines
//!           └──▶ Proxy (the real pipeline)  ──plan──┘   sends real packets, and compares
//! ```
//!
//! What is shown is what packets did, never what they ought to do: the plan only says which of it is
//! right. Everything is anonymous and held by this process, so all of it ends when the process does; but a control
//! group, for a backend that needs one of its own, is swept up by another process.

mod change;
mod error;
mod flow;
mod group;
mod picture;
mod playground;
mod pods;
mod scenario;
pub mod shell;
mod state_file;
mod terminal;
mod world;

pub use change::Meanwhile;
pub use error::Error;
pub use group::{ControlGroup, sweep};
pub use picture::{Counts, Picture, Row, draw};
pub use playground::{CheckedFlow, Command, InForce, Playground, Proxy};
pub use scenario::{SCENARIOS, Scenario, Step};
pub use state_file::StateFile;
pub use terminal::show;
pub use world::World;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
