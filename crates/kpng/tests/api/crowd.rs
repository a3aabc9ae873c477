//! Clients that come in crowds and do nothing.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::process::{Folder, Kpng, QUIET};

/// Raises the limit of open files, for both sides, and says how many connections it allows.
fn room_for(connections: u64) -> u64 {
    const OTHERS: u64 = 500;
    let limits = getrlimit(Resource::Nofile);
    let maximum = limits.maximum.unwrap_or(u64::MAX);
    let wanted = (connections + OTHERS).min(maximum);
    if limits.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: limits.maximum };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
    connections.min(maximum - OTHERS)
}

#[test]
fn ten_thousand_connections_that_do_nothing_disturb_nobody() {
    let count = room_for(10_000);
    if count < 10_000 {
        eprintln!("open files are limited: {count} connections instead of 10,000");
    }
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1")]);
    let server = Kpng::serve(&state, "tcp://127.0.0.1:0");
    let address = server.address();
    let target = address.strip_prefix("tcp://").unwrap();
    let node = Kpng::start(
        &[&["local", "--api", target, "to-json", "--node-name=node-a"][..], &QUIET].concat(),
    );
    node.line();
    let before = server.resident_kib();

    let target: SocketAddr = target.parse().unwrap();
    let crowd: Vec<_> = (0..count).map(|_| TcpStream::connect(target).unwrap()).collect();
    let begun = Instant::now();
    folder.write_state(&[("a", "10.0.0.2")]);
    assert!(node.line().contains("10.0.0.2"));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let another = Kpng::start(
        &[&["local", "--api", &target.to_string(), "to-json", "--node-name=b"][..], &QUIET]
            .concat(),
    );
    assert!(another.line().contains("10.0.0.2"));

    let per_connection = (server.resident_kib() - before) as f64 / count as f64;
    assert!(per_connection < 32.0, "{per_connection} KiB for each connection");
    drop(crowd);
    folder.write_state(&[("a", "10.0.0.3")]);
    assert!(node.line().contains("10.0.0.3"));
    assert!(!server.log().contains("WARN"), "{}", server.log());
}
