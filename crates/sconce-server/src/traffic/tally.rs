//! What is counted of each variant of a model: for whoever looks at a route, for metrics, and as evidence for what decides on it.

use sconce_core::{DurationHistogram, Error, ModelVersion};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One variant's requests, since it was made or the server started. Only requests that a route sent there are counted.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

/// What was counted up to some time. What was counted between two times is the difference of two of these.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counts {
    /// Answered requests, from the front door to the answer.
    pub(crate) latency: DurationHistogram,
    /// The same, finer.
    pub(crate) times: Times,
    /// Failed requests by what they came to.
    pub(crate) errors: BTreeMap<&'static str, u64>,
    /// Requests by the version that the variant was for them, and what they came to, `OK` among it. The versions in the order in
    /// which they came.
    pub(crate) versions: Vec<(ModelVersion, BTreeMap<&'static str, u64>)>,
    /// Answers that people decide in its place.
    pub(crate) deferred: u64,
}

/// A variant is one version after the other: so many are told apart, the latest.
const MAX_VERSIONS: usize = 4;

impl Tally {
    /// Counts a request that went to `version` and ended after `time`.
    pub(crate) fn count<T>(&self, version: ModelVersion, outcome: &Result<T, Error>, time: Duration) {
        let mut counts = self.counts();
        let status = outcome.as_ref().err().map_or("OK", |error| error.code().name());
        *counts.of_version(version).entry(status).or_default() += 1;
        match outcome {
            Ok(_) => {
                counts.latency.add(time);
                counts.times.add(time);
            }
            Err(error) => *counts.errors.entry(error.code().name()).or_default() += 1,
        }
    }

    /// Counts that people decide an answer in its place.
    pub(crate) fn count_deferred(&self) {
        self.counts().deferred += 1;
    }

    /// What was counted so far.
    pub(crate) fn snapshot(&self) -> Counts {
        self.counts().clone()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Requests that were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.latency.total().count
    }

    fn of_version(&mut self, version: ModelVersion) -> &mut BTreeMap<&'static str, u64> {
        let at = self.versions.iter().position(|(known, _)| *known == version).unwrap_or_else(|| {
            if self.versions.len() >= MAX_VERSIONS {
                self.versions.remove(0);
            }
            self.versions.push((version, BTreeMap::new()));
            self.versions.len() - 1
        });
        &mut self.versions[at].1
    }

    /// Requests that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Durations in buckets that grow by 1/32 of a power of two: a quantile is off by 1.1 % at most. 1 µs to 134 s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Times(Box<[u64; Times::BUCKETS]>);

impl Times {
    /// Buckets of one power of two.
    const STEPS: u32 = 32;
    const BUCKETS: usize = 27 * Self::STEPS as usize;

    pub(crate) fn add(&mut self, time: Duration) {
        let us = time.as_secs_f64() * 1e6;
        // Below a microsecond the logarithm is negative, and the conversion makes that 0.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates at both ends")]
        let bucket = (us.log2() * f64::from(Self::STEPS)) as usize;
        self.0[bucket.min(Self::BUCKETS - 1)] += 1;
    }

    /// What was added since `before`, which is of the same.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        since
            .0
            .iter_mut()
            .zip(before.0.iter())
            .for_each(|(count, before)| *count = count.saturating_sub(*before));
        since
    }

    /// Takes what `other` took.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(count, more)| *count += more);
    }

    /// Times in seconds and how many there are of each; those that are none are left out.
    pub(crate) fn seconds(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(at, count)| (Self::middle(at).as_secs_f64(), *count))
    }

    /// The middle of a bucket, on the scale it is one of.
    fn middle(at: usize) -> Duration {
        let us = ((at as f64 + 0.5) / f64::from(Self::STEPS)).exp2();
        Duration::from_secs_f64(us / 1e6)
    }

    /// The time that a part `q` of all, 0 to 1, took at most; `None` where there is none.
    pub(crate) fn quantile(&self, q: f64) -> Option<Duration> {
        let total: u64 = self.0.iter().sum();
        if total == 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank from 1 to total")]
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
        let mut below = 0;
        let at = self.0.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Self::middle(at))
    }
}

impl Default for Times {
    fn default() -> Self {
        Self(Box::new([0; Self::BUCKETS]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_little() {
        let mut times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        for us in 1..=10_000_u64 {
            times.add(Duration::from_micros(us * 100));
        }
        for (q, us) in [(0.0, 100.0), (0.5, 500_000.0), (0.95, 950_000.0), (0.99, 990_000.0), (1.0, 1e6)] {
            let found = times.quantile(q).unwrap().as_secs_f64() * 1e6;
            assert!((found / us - 1.0).abs() < 0.012, "{q}: {found}, expected {us}");
        }
        let before = times.clone();
        times.add(Duration::from_millis(7));
        let mut since = times.since(&before);
        assert_eq!(since.seconds().map(|(_, count)| count).collect::<Vec<_>>(), [1]);
        assert!((since.seconds().next().unwrap().0 / 0.007 - 1.0).abs() < 0.012);
        since.merge(&before);
        assert_eq!(since, times);
        times = Times::default();
        [Duration::ZERO, Duration::from_secs(100_000)].into_iter().for_each(|time| times.add(time));
        assert!(times.quantile(0.5).unwrap() < Duration::from_micros(2));
        assert!(times.quantile(1.0).unwrap() > Duration::from_secs(130));
    }

    #[test]
    fn answers_and_failures_are_counted_apart() {
        let tally = Tally::default();
        let version = |number| ModelVersion::new(number).unwrap();
        tally.count(version(1), &Ok(()), Duration::from_millis(3));
        let before = tally.snapshot();
        tally.count::<()>(version(2), &Err(Error::invalid("no")), Duration::ZERO);
        tally.count::<()>(version(1), &Err(Error::deadline_exceeded()), Duration::ZERO);
        let counts = tally.snapshot();
        assert_eq!((before.answered(), before.failed()), (1, 0));
        assert_eq!((counts.answered(), counts.failed()), (1, 2));
        assert_eq!(counts.errors["INVALID_ARGUMENT"], 1);
        let first = BTreeMap::from([("DEADLINE_EXCEEDED", 1), ("OK", 1)]);
        assert_eq!(counts.versions, [(version(1), first), (version(2), [("INVALID_ARGUMENT", 1)].into())]);
        // Who was first makes room, and comes back as the last.
        for number in [3, 4, 5, 1] {
            tally.count(version(number), &Ok(()), Duration::ZERO);
        }
        let versions = tally.snapshot().versions;
        assert_eq!(versions.iter().map(|(it, _)| *it).collect::<Vec<_>>(), [3, 4, 5, 1].map(version));
        assert_eq!(versions[3].1, [("OK", 1)].into());
    }
}
