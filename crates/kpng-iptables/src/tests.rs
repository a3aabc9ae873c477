//! The backend without a kernel: what it would write, and what a packet would meet.

mod growth;
mod incremental;
mod kernel;
mod packets;
mod random;
mod text;
