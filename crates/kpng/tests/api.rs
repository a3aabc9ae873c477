//! kpng's API between processes: servers, nodes, relays and observers, as a user starts them.

#![expect(clippy::disallowed_methods, reason = "the binary under test is a child process")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "api/command_line.rs"]
mod command_line;
#[path = "api/crowd.rs"]
mod crowd;
#[path = "api/files.rs"]
mod files;
#[path = "api/follow.rs"]
mod follow;
#[path = "api/process.rs"]
mod process;
#[path = "api/tls.rs"]
mod tls;
#[path = "api/watch.rs"]
mod watch;
