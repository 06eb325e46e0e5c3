use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// A kernel timer: tokio's own counts in milliseconds, too coarse to send thousands of requests a second at even gaps.
pub(crate) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(deprecated, reason = "an owned descriptor stays open as long as this holds it")]
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// Returns at `due`, at once when that is past.
    pub(crate) async fn sleep_until(&self, due: Instant) -> io::Result<()> {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            let once =
                Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: timespec(wait) };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            // Each expiry is an event of its own, read or not, and setting the timer forgets the last.
            self.0.readable().await?.clear_ready();
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// When requests are due: times since the start, endless.
pub(crate) enum Gaps {
    /// Every `gap`.
    Constant { next: Duration, gap: Duration },
    /// Exponentially distributed gaps of this mean.
    Poisson { next: Duration, mean: Duration, random: fastrand::Rng },
}

impl Iterator for Gaps {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(match self {
            Self::Constant { next, gap } => std::mem::replace(next, *next + *gap),
            Self::Poisson { next, mean, random } => {
                // 1 - x is in (0, 1], so its logarithm is finite.
                *next += mean.mul_f64(-(1.0 - random.f64()).ln());
                *next
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_rate_asked_for() {
        let gap = Duration::from_micros(100);
        let constant: Vec<_> = Gaps::Constant { next: gap, gap }.take(3).collect();
        assert_eq!(constant, [gap, gap * 2, gap * 3]);
        let random = fastrand::Rng::with_seed(7);
        let last = Gaps::Poisson { next: Duration::ZERO, mean: gap, random }.nth(99_999).unwrap();
        assert!((9.9..10.1).contains(&last.as_secs_f64()), "{last:?}");
    }
}
