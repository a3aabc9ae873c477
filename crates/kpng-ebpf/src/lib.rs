//! The eBPF backend: services at the sockets of pods and node, and in packets from elsewhere.
