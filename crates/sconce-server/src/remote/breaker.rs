//! When to stop asking a server that does not answer, and when to ask it again. Pure.

use std::time::{Duration, Instant};

/// Failures in a row after which nobody is let through.
const FAILURES: u32 = 5;
/// How long nobody is let through at first; it doubles with each probe that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A circuit breaker: closed while calls are answered, open after [`FAILURES`] in a row that were not, and after a pause half open:
/// one probe decides.
#[derive(Debug)]
pub(crate) enum Breaker {
    /// All calls may be made.
    Closed { failures: u32 },
    /// None may, until then.
    Open { until: Instant, pause: Duration },
    /// A probe is under way. If nothing was heard of it by then, another one is made.
    HalfOpen { until: Instant, pause: Duration },
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self::Closed { failures: 0 }
    }

    /// Whether a call may be made now.
    ///
    /// # Errors
    /// How long not.
    pub(crate) fn enter(&mut self, now: Instant) -> Result<(), Duration> {
        match *self {
            Self::Closed { .. } => Ok(()),
            Self::Open { until, .. } | Self::HalfOpen { until, .. } if now < until => Err(until - now),
            Self::Open { pause, .. } | Self::HalfOpen { pause, .. } => {
                *self = Self::HalfOpen { until: now + pause, pause };
                Ok(())
            }
        }
    }

    /// A call was answered, whatever the answer was.
    pub(crate) fn answered(&mut self) {
        *self = Self::new();
    }

    /// A call was not answered. `true`: that opens it.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        let pause = match *self {
            Self::Closed { failures } if failures + 1 < FAILURES => {
                *self = Self::Closed { failures: failures + 1 };
                return false;
            }
            // A call of before it opened: nothing new.
            Self::Open { .. } => return false,
            Self::Closed { .. } => FIRST_PAUSE,
            Self::HalfOpen { pause, .. } => (pause * 2).min(LONGEST_PAUSE),
        };
        *self = Self::Open { until: now + pause, pause };
        true
    }

    /// Whether calls are refused without being made.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self, Self::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_closes_with_a_probe_that_is_answered() {
        let (mut breaker, start) = (Breaker::new(), Instant::now());
        for _ in 0..3 {
            assert!((1..FAILURES).all(|_| !breaker.failed(start)));
            breaker.answered();
        }
        assert!((1..FAILURES).all(|_| !breaker.failed(start) && breaker.enter(start).is_ok()));
        assert!(breaker.failed(start) && breaker.is_open());
        assert_eq!(breaker.enter(start), Err(FIRST_PAUSE));
        assert!(!breaker.failed(start), "calls of before it opened change nothing");
        assert_eq!(breaker.enter(start), Err(FIRST_PAUSE));
        let later = start + FIRST_PAUSE;
        assert_eq!(breaker.enter(later), Ok(()));
        assert_eq!(breaker.enter(later), Err(FIRST_PAUSE), "one probe at a time");
        breaker.answered();
        assert!(!breaker.is_open() && breaker.enter(later).is_ok());
    }

    #[test]
    fn pauses_double_to_a_bound_and_a_lost_probe_is_made_again() {
        let (mut breaker, mut now) = (Breaker::new(), Instant::now());
        let _ = (0..FAILURES).map(|_| breaker.failed(now)).count();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let left = breaker.enter(now).unwrap_err();
            pauses.push(left.as_secs());
            now += left;
            breaker.enter(now).unwrap();
            // Nothing is heard of this probe; the next one finds no server either.
            now += breaker.enter(now).unwrap_err();
            breaker.enter(now).unwrap();
            assert!(breaker.failed(now));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }
}
