//! Waiting longer after each failure, by a random part so that many nodes do not come at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delay before the next attempt: doubles from `min` to `max`, less up to a third.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// All is well: the next failure starts at `min` again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// How long to wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(1.0 - random() / 3.0)
    }
}

/// Evenly distributed in `[0, 1)`. Good enough for jitter, not for secrets: every [`RandomState`] of
/// the standard library has keys of its own.
pub fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let fraction = bits as f64 / (1_u64 << 53) as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        for expected in [1, 2, 4, 4] {
            let delay = backoff.next_delay();
            let expected = Duration::from_secs(expected);
            assert!(delay <= expected && delay > expected / 2, "{delay:?} of {expected:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(1));
        assert_ne!(backoff.next_delay(), Backoff::new(backoff.max, backoff.max).next_delay());
    }

    #[test]
    fn random_numbers_fill_their_interval() {
        let mean = (0..10_000).map(|_| random()).sum::<f64>() / 10_000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
