//! A change of the state while connections are made.
//!
//! Who is answered before and after it must be answered all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use kpng_core::model::Protocol;

use crate::World;
use crate::flow::{Expected, Flow, Seen};

/// So many connect at the same time.
const CLIENTS: usize = 4;

/// How much longer they go on: what is done after a change may disturb too.
const AFTER: Duration = Duration::from_millis(50);

/// What became of the connections that were made while the state changed, of those flows that are
/// answered before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meanwhile {
    /// How many there were.
    pub connections: usize,
    /// Those that went wrong, for people.
    pub failed: Vec<String>,
}

impl Meanwhile {
    /// In one line; nothing when nobody connected.
    pub fn summary(&self) -> Option<String> {
        let Self { connections, failed } = self;
        match failed.first() {
            _ if *connections == 0 => None,
            None => Some(format!("{connections} connections during the change, all answered")),
            Some(first) => {
                let count = failed.len();
                Some(format!(
                    "{count} of {connections} connections during the change failed: {first}"
                ))
            }
        }
    }
}

/// Whether a flow is to be asked while the state changes. A datagram may be lost without a fault: its
/// answer, when what led it to its endpoint is forgotten.
pub(crate) fn is_asked(flow: &Flow, expected: &Expected) -> bool {
    flow.protocol != Protocol::Udp && matches!(expected, Expected::Answers { .. })
}

/// Does `work` while these flows are asked without a pause. Each is told by its index with what was
/// seen of it.
pub(crate) fn ask_during<T>(
    world: &World,
    flows: &[Flow],
    work: impl FnOnce() -> T,
) -> (T, Vec<(usize, Seen)>) {
    if flows.is_empty() {
        return (work(), Vec::new());
    }
    let (is_done, (started, starts)) = (&AtomicBool::new(false), channel());
    thread::scope(|scope| {
        let client = |number: usize| {
            let started = started.clone();
            scope.spawn(move || {
                let mut all = Vec::new();
                for index in (0..flows.len()).cycle().skip(number) {
                    all.push((index, world.send(&flows[index])));
                    started.send(()).unwrap_or(());
                    if is_done.load(Ordering::Acquire) {
                        break;
                    }
                }
                all
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        // Traffic flows.
        starts.iter().take(CLIENTS).for_each(drop);
        let result = work();
        thread::sleep(AFTER);
        is_done.store(true, Ordering::Release);
        let all = clients.into_iter().flat_map(|client| {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        (result, all.collect())
    })
}
