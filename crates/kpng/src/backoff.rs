//! Waiting longer after each failure, by a random part so that many nodes do not come at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delay before the next attempt: doubles from `min` to `max`, less up to a third.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: RandomState,
    attempts: u64,
}

impl Backoff {
    /// Starts at `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min, random: RandomState::new(), attempts: 0 }
    }

    /// All is well: the next failure starts at `min` again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// How long to wait after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        self.attempts += 1;
        // The standard library's hasher is seeded at random: good enough for jitter.
        let percent = self.random.hash_one(self.attempts) % 33;
        delay.mul_f64(1.0 - percent as f64 / 100.0)
    }
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
    }
}
