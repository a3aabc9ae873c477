//! What happens at frontends, in numbers.
//!
//! Whoever counts does so in the data path itself; here is only how it is asked for, and when it is
//! worth its cost.

use std::fmt;

use crate::plan::FrontendKey;

use super::BackendError;

/// Counts at frontends. Read from any thread, at any time; no reading waits for the owner of the
/// backend for longer than one transaction with the kernel takes.
pub trait Traffic: fmt::Debug + Send + Sync {
    /// The counts of all frontends that are counted at the moment: none when counting is off.
    ///
    /// A frontend's numbers only grow while it is there. They begin again from 0 when somebody else
    /// removes what counts. Asks the kernel, so it blocks: for milliseconds where there are a thousand
    /// frontends.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    fn read(&self) -> Result<Vec<(FrontendKey, Counts)>, BackendError>;
}

/// What happened at a frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New connections that were forwarded, and flows of UDP likewise.
    pub connections: u64,
    /// Packets that were rejected, each attempt of a client anew; `None` when nobody counts them.
    pub rejected: Option<u64>,
    /// Packets that were dropped, by policy Local or for their source, each attempt of a client anew;
    /// `None` when nobody counts them.
    pub dropped: Option<u64>,
}

/// Whether traffic is counted. Counters cost memory in the kernel for each frontend, and time series
/// of whoever collects them for each service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// While there are no more service ports than [`Counting::BOUND`].
    #[default]
    Auto,
    /// Whatever there is.
    Always,
    /// Not at all.
    Never,
}

impl Counting {
    /// Up to so many service ports are counted by themselves.
    pub const BOUND: usize = 1000;

    /// Counting that has ended begins again when there are no more service ports than this: around the
    /// bound it does not come and go.
    pub const RESUME: usize = 800;

    /// Whether to count so many service ports. `before` says whether they were counted until now, where
    /// there were any.
    pub fn counts(self, service_ports: usize, before: Option<bool>) -> bool {
        match self {
            Self::Auto if before == Some(false) => service_ports <= Self::RESUME,
            Self::Auto => service_ports <= Self::BOUND,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn around_the_bound_counting_does_not_come_and_go() {
        let auto = |ports, before| Counting::Auto.counts(ports, before);
        assert!(auto(1000, None) && auto(1000, Some(true)) && auto(800, Some(false)));
        assert!(!auto(1001, None) && !auto(1001, Some(true)) && !auto(801, Some(false)));
        assert!(Counting::Always.counts(100_000, Some(false)) && !Counting::Never.counts(0, None));
    }
}
