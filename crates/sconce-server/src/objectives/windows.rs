//! How a model's requests ended, counted as they end, and over windows that reach back from now.

use sconce_core::ErrorCode;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets of a power of two.
const STEPS: usize = 4;
/// The first bucket is what took less than `1 << FIRST` microseconds, the last what took more than two minutes.
const FIRST: u32 = 6;
const BUCKETS: usize = 84;

/// What a window reaches back, how long each of its bins is, and how many there are. The oldest bin leaves whole, so a window
/// reaches back by up to a bin more.
const LEVELS: [(Duration, usize); WINDOWS] = [
    (Duration::from_secs(30), 10),
    (Duration::from_mins(5), 12),
    (Duration::from_mins(30), 12),
    (Duration::from_hours(6), 12),
];
pub(crate) const WINDOWS: usize = 4;
/// How long each window is: 5 minutes, an hour, 6 hours, 3 days.
pub(crate) const SPANS: [Duration; WINDOWS] =
    [Duration::from_mins(5), Duration::from_hours(1), Duration::from_hours(6), Duration::from_hours(72)];

/// One model's requests since the server knows it. Counted on the requests' way: without a lock.
#[derive(Debug)]
pub(crate) struct Ends {
    answered: [AtomicU64; BUCKETS],
    refused: AtomicU64,
    failed: AtomicU64,
}

/// How many requests ended how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    answered: [u64; BUCKETS],
    /// Requests that were wrong themselves.
    pub(crate) refused: u64,
    /// Requests that were not answered although nothing was wrong with them.
    pub(crate) failed: u64,
}

/// A model's requests over each window.
#[derive(Debug)]
pub(crate) struct Windows {
    levels: [Level; WINDOWS],
}

#[derive(Debug)]
struct Level {
    closed: VecDeque<Counts>,
    open: Counts,
    opened_at: Instant,
}

impl Default for Ends {
    fn default() -> Self {
        Self {
            answered: [const { AtomicU64::new(0) }; BUCKETS],
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }
}

impl Ends {
    /// Counts a request that ended after `time`, as `code` says. One whose caller went away says nothing of the model.
    pub(crate) fn count(&self, code: Option<ErrorCode>, time: Duration) {
        let counter = match code {
            None => &self.answered[bucket(time)],
            Some(ErrorCode::Cancelled) => return,
            Some(
                ErrorCode::Unavailable
                | ErrorCode::ResourceExhausted
                | ErrorCode::DeadlineExceeded
                | ErrorCode::Internal,
            ) => &self.failed,
            Some(_) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answered: std::array::from_fn(|bucket| of(&self.answered[bucket])),
            refused: of(&self.refused),
            failed: of(&self.failed),
        }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self { answered: [0; BUCKETS], refused: 0, failed: 0 }
    }
}

impl Counts {
    pub(crate) fn answered(&self) -> u64 {
        self.answered.iter().sum()
    }

    /// All requests.
    pub(crate) fn total(&self) -> u64 {
        self.answered() + self.refused + self.failed
    }

    /// The seconds that a part `q` of the answered requests took at most, a tenth off at most; `None` where there is none.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = q * self.answered() as f64;
        let mut below = 0.0;
        for (at, &count) in self.answered.iter().enumerate().filter(|(_, count)| **count > 0) {
            if below + count as f64 >= wanted {
                let (from, to) = bounds(at);
                return Some(from + (to - from) * ((wanted - below) / count as f64).clamp(0.0, 1.0));
            }
            below += count as f64;
        }
        None
    }

    /// How many of the answered requests took longer than `seconds`, as far as the buckets tell.
    pub(crate) fn slower(&self, seconds: f64) -> f64 {
        let of = |(at, &count): (usize, &u64)| {
            let (from, to) = bounds(at);
            count as f64 * ((to - seconds) / (to - from)).clamp(0.0, 1.0)
        };
        self.answered.iter().enumerate().map(of).sum()
    }

    /// What was counted since `earlier`; all of it if that was another count.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        if earlier.total() > self.total() {
            return self.clone();
        }
        let answered = std::array::from_fn(|at| self.answered[at].saturating_sub(earlier.answered[at]));
        let (refused, failed) =
            (self.refused - earlier.refused.min(self.refused), self.failed - earlier.failed.min(self.failed));
        Self { answered, refused, failed }
    }

    fn add(&mut self, more: &Self) {
        self.answered.iter_mut().zip(&more.answered).for_each(|(count, more)| *count += more);
        self.refused += more.refused;
        self.failed += more.failed;
    }
}

impl Windows {
    pub(crate) fn new(now: Instant) -> Self {
        let level = || Level { closed: VecDeque::new(), open: Counts::default(), opened_at: now };
        Self { levels: std::array::from_fn(|_| level()) }
    }

    /// Adds what was counted since the last time.
    pub(crate) fn add(&mut self, counts: &Counts, now: Instant) {
        for (level, (length, most)) in self.levels.iter_mut().zip(LEVELS) {
            level.turn(now, length, most);
            level.open.add(counts);
        }
    }

    /// What each window holds.
    pub(crate) fn sums(&self) -> [Counts; WINDOWS] {
        std::array::from_fn(|at| {
            let level = &self.levels[at];
            let mut sum = level.open.clone();
            level.closed.iter().for_each(|bin| sum.add(bin));
            sum
        })
    }
}

impl Level {
    fn turn(&mut self, now: Instant, length: Duration, most: usize) {
        let ended = now.saturating_duration_since(self.opened_at).as_nanos() / length.as_nanos();
        let ended = u32::try_from(ended).unwrap_or(u32::MAX);
        if ended == 0 {
            return;
        }
        self.opened_at += length.saturating_mul(ended);
        self.closed.push_back(std::mem::take(&mut self.open));
        // Nobody counted meanwhile: those bins are empty.
        let empty = usize::try_from(ended - 1).unwrap_or(most).min(most);
        self.closed.extend(std::iter::repeat_n(Counts::default(), empty));
        self.closed.drain(..self.closed.len().saturating_sub(most));
    }
}

fn bucket(time: Duration) -> usize {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1 << FIRST);
    let power = us.ilog2();
    let step = usize::try_from((us >> (power - 2)) & 3).unwrap_or(0);
    ((power - FIRST) as usize * STEPS + step).min(BUCKETS - 1)
}

/// Where a bucket begins and ends, in seconds.
fn bounds(bucket: usize) -> (f64, f64) {
    let at = |bucket: usize| {
        let power = (1_u64 << FIRST) as f64 * ((bucket / STEPS) as f64).exp2();
        power * (1.0 + (bucket % STEPS) as f64 / STEPS as f64) / 1e6
    };
    (if bucket == 0 { 0.0 } else { at(bucket) }, at(bucket + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(times_ms: impl IntoIterator<Item = u64>) -> Counts {
        let ends = Ends::default();
        times_ms.into_iter().for_each(|ms| ends.count(None, Duration::from_millis(ms)));
        ends.counts()
    }

    #[test]
    fn every_time_is_in_a_bucket_that_holds_it() {
        let mut us = 1_u64;
        while us < 130_000_000 {
            let (from, to) = bounds(bucket(Duration::from_micros(us)));
            let seconds = us as f64 / 1e6;
            assert!(from <= seconds && seconds < to, "{us} us: {from} to {to}");
            us = us * 17 / 16 + 1;
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket(Duration::ZERO), 0);
    }

    #[test]
    fn quantiles_and_what_is_slower_are_a_tenth_off_at_most() {
        let counts = counted(1..=1000);
        for (q, seconds) in [(0.5, 0.5), (0.95, 0.95), (0.99, 0.99)] {
            let found = counts.quantile(q).unwrap();
            assert!((found / seconds - 1.0).abs() < 0.1, "{q}: {found}");
            let slower = counts.slower(seconds);
            assert!((slower - 1000.0 * (1.0 - q)).abs() < 50.0, "{q}: {slower}");
        }
        assert_eq!(Counts::default().quantile(0.5), None);
        assert_eq!((counts.slower(0.0), counts.slower(1e9)), (1000.0, 0.0));
    }

    #[test]
    fn ends_are_told_apart_by_whose_they_are() {
        let ends = Ends::default();
        ends.count(None, Duration::from_millis(1));
        for code in [ErrorCode::InvalidArgument, ErrorCode::NotFound, ErrorCode::FailedPrecondition] {
            ends.count(Some(code), Duration::ZERO);
        }
        for code in [ErrorCode::Unavailable, ErrorCode::Internal] {
            ends.count(Some(code), Duration::ZERO);
        }
        ends.count(Some(ErrorCode::Cancelled), Duration::ZERO);
        let counts = ends.counts();
        assert_eq!((counts.answered(), counts.refused, counts.failed, counts.total()), (1, 3, 2, 6));
    }

    #[test]
    fn a_window_forgets_what_is_older_than_it_and_a_bin() {
        let start = Instant::now();
        let mut windows = Windows::new(start);
        windows.add(&counted([1, 2, 3]), start);
        let totals = |windows: &Windows| windows.sums().map(|counts| counts.total());
        let seconds = |seconds| start + Duration::from_secs(seconds);
        windows.add(&counted([5]), seconds(299));
        assert_eq!(totals(&windows), [4, 4, 4, 4]);
        windows.add(&Counts::default(), seconds(331));
        assert_eq!(totals(&windows), [1, 4, 4, 4]);
        windows.add(&counted([7, 7]), seconds(3600 + 301));
        assert_eq!(totals(&windows), [2, 2, 6, 6]);
        windows.add(&Counts::default(), seconds(400 * 3600));
        assert_eq!(totals(&windows), [0; 4]);
        assert!(windows.levels.iter().zip(LEVELS).all(|(level, (_, most))| level.closed.len() <= most));
    }

    #[test]
    fn a_count_that_began_anew_counts_whole() {
        let (many, few) = (counted(1..=10), counted([4, 5]));
        assert_eq!(many.since(&counted(1..=4)).total(), 6);
        assert_eq!(few.since(&many), few);
    }
}
