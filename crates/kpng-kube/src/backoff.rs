//! How long to wait before the next attempt: longer each time, and never the same for two nodes.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Doubling delays with jitter. Starts over when an attempt lasted.
#[derive(Debug)]
pub(crate) struct Backoff {
    bounds: Bounds,
    next: Duration,
}

/// The limits of a [`Backoff`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The first delay, at least.
    pub(crate) min: Duration,
    /// No delay is longer.
    pub(crate) max: Duration,
    /// An attempt that lasted this long was a success.
    pub(crate) healthy: Duration,
}

impl Backoff {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, next: bounds.min }
    }

    /// The delay after an attempt that began at `started`. Between one and two times the nominal
    /// one, so that the nodes of a cluster do not come back all at once.
    pub(crate) fn after(&mut self, started: Instant) -> Duration {
        if started.elapsed() >= self.bounds.healthy {
            self.next = self.bounds.min;
        }
        let delay = self.next.mul_f64(1.0 + random());
        self.next = (self.next * 2).min(self.bounds.max / 2);
        delay
    }
}

/// Evenly distributed in `[0, 1)`. Every [`RandomState`] has keys of its own.
pub(crate) fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    // 53 bits fit into the mantissa.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let fraction = bits as f64 / (1_u64 << 53) as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn delays_double_up_to_the_limit_and_differ() {
        let healthy = Duration::from_secs(3600);
        let bounds = Bounds { min: seconds(0.8), max: seconds(30.0), healthy };
        let now = Instant::now();
        let mut backoff = Backoff::new(bounds);
        for nominal in [0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0] {
            let delay = backoff.after(now);
            assert!((seconds(nominal)..seconds(nominal * 2.0)).contains(&delay), "{delay:?}");
        }
        assert_ne!(backoff.after(now), backoff.after(now));
    }

    #[test]
    fn a_healthy_attempt_starts_over() {
        let bounds = Bounds { min: seconds(1.0), max: seconds(30.0), healthy: Duration::ZERO };
        let mut backoff = Backoff::new(bounds);
        for _ in 0..5 {
            assert!(backoff.after(Instant::now()) < seconds(2.0));
        }
    }

    #[test]
    fn random_numbers_fill_their_interval() {
        let mean = (0..10_000).map(|_| random()).sum::<f64>() / 10_000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
