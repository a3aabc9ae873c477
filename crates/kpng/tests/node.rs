//! The whole process on a node: the binary as a user starts it, a real API server or a file, packets
//! through a virtual network, signals, restarts and faults.

#![expect(clippy::disallowed_methods, reason = "the binary under test is a child process")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "node/api_server.rs"]
mod api_server;
#[path = "node/backends.rs"]
mod backends;
#[path = "node/browser.rs"]
mod browser;
#[path = "node/command_line.rs"]
mod command_line;
#[path = "node/events.rs"]
mod events;
#[path = "node/example.rs"]
mod example;
#[path = "node/file.rs"]
mod file;
#[path = "node/inspect.rs"]
mod inspect;
#[path = "node/ipvs.rs"]
mod ipvs;
#[path = "node/process.rs"]
mod process;
#[path = "node/remote.rs"]
mod remote;
#[path = "node/web.rs"]
mod web;
