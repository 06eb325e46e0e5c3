use std::time::{Duration, Instant};

/// Keeps a candidate that fails again and again from running again and again: after three failures in a row for a second, and twice
/// as long after each one more. After one that never ended for as long as at most: what hangs holds a slot of the device.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

/// Failures in a row that are borne.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Breaker {
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.open_until.is_some_and(|until| now < until)
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(more) = self.failures.checked_sub(PATIENCE) {
            self.open_until = Some(now + FIRST_PAUSE.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE));
        }
    }

    pub(super) fn hung(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.open_until = Some(now + LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_with_a_success() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        for _ in 0..2 {
            breaker.failed(now);
            assert!(!breaker.is_open(now));
        }
        breaker.failed(now);
        assert!(breaker.is_open(after(999)) && !breaker.is_open(after(1_000)));
        breaker.failed(now);
        assert!(breaker.is_open(after(1_999)) && !breaker.is_open(after(2_000)));
        (0..100).for_each(|_| breaker.failed(now));
        assert!(breaker.is_open(after(59_999)) && !breaker.is_open(after(60_000)));
        breaker.succeeded();
        breaker.failed(now);
        assert!(!breaker.is_open(now));
        breaker.hung(now);
        assert!(breaker.is_open(after(59_999)));
    }
}
