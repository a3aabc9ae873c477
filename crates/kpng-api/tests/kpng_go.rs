//! Clients of Go KPNG, who know nothing of what came later: they are answered as KPNG answered them,
//! where that was right.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

#[path = "kpng_go/client.rs"]
mod client;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "kpng_go/global.rs"]
mod global;
#[path = "kpng_go/local.rs"]
mod local;

const ANY_PORT: &str = "tcp://127.0.0.1:0";
