//! What may wait, and for how long it would.

use super::{Batcher, key};
use crate::cost::{Work, duration};
use crate::entry::{Entry, Priority, Refusal};
use std::time::{Duration, Instant};

/// An overload is one that lasts this long, or as long as requests may wait if that is more.
const MIN_STANDING: Duration = Duration::from_millis(100);
/// How often an idle model tries what seems too late, for it may have been wrong.
const PROBE: Duration = Duration::from_secs(1);

/// Waits as they were over waits as they were expected: other models on the device, interrupted workers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    actual: f64,
    expected: f64,
}

impl Pace {
    /// What each batch of observations leaves of those before it.
    const FORGETTING: f64 = 0.95;
    /// As many seconds of waits as expected stand at the beginning.
    const PRIOR: f64 = 0.05;

    fn factor(&self) -> f64 {
        ((self.actual + Self::PRIOR) / (self.expected + Self::PRIOR)).clamp(0.2, 20.0)
    }
}

impl<T> Batcher<T> {
    /// How long a request would wait by the cost model, before what was learned of the pace.
    pub(super) fn expected_wait(&self, now: Instant, entry: &Entry<T>, seq: u64) -> Duration {
        if self.is_empty() && self.running.len() < self.instances {
            return Duration::ZERO;
        }
        let (better, level) = match self.levels.split_at_checked(entry.priority.level() - 1) {
            Some((better, [level, ..])) => (better, level),
            _ => return Duration::ZERO,
        };
        let mut ahead = Work::default();
        better.iter().for_each(|level| ahead.add(level.work));
        let mut seconds = self.seconds(ahead);
        // At worst all that is there goes before it; at worst as well its tenant gets no more than its share.
        let (mut own, mut others, mut weights) =
            (Work::default(), level.work, f64::from(entry.tenant.weight));
        for line in level.lines.iter().filter(|line| !line.line.is_empty()) {
            if line.id == entry.tenant.id {
                own = line.line.before(key(entry, seq));
                others.take(line.line.work());
            } else {
                weights += line.weight;
            }
        }
        let share = weights / f64::from(entry.tenant.weight).max(f64::MIN_POSITIVE);
        let shared = self.seconds(own) * share;
        own.add(others);
        seconds += self.seconds(own).min(shared);
        duration((seconds + self.remaining(now)) / self.instances as f64)
    }

    /// What work takes in batches, in seconds.
    fn seconds(&self, work: Work) -> f64 {
        let report = self.cost.report();
        if report.batches == 0 {
            return 0.0;
        }
        let rows = work.rows as f64 / self.policy.max_rows as f64;
        let tokens = self.policy.max_tokens.map_or(0.0, |max| work.tokens as f64 / max as f64);
        self.cost.marginal(work) + report.batch_seconds * rows.max(tokens)
    }

    /// What is left of the batches that run, in seconds, where none can begin beside them.
    fn remaining(&self, now: Instant) -> f64 {
        if self.running.len() < self.instances {
            return 0.0;
        }
        self.running.iter().map(|(_, until)| until.saturating_duration_since(now).as_secs_f64()).sum()
    }

    pub(super) fn paced(&self, expected: Duration) -> Duration {
        duration(expected.as_secs_f64() * self.pace.factor())
    }

    pub(super) fn learn_pace(&mut self, actual: f64, expected: f64) {
        if expected > 0.0 {
            self.pace.actual = self.pace.actual * Pace::FORGETTING + actual;
            self.pace.expected = self.pace.expected * Pace::FORGETTING + expected;
        }
    }

    /// Why a request should not even wait.
    pub(super) fn refusal(
        &mut self,
        now: Instant,
        entry: &Entry<T>,
        work: Work,
        expected: Duration,
    ) -> Option<Refusal> {
        let takes = self.cost.upper(work)?;
        let wait = self.paced(expected);
        if let Some(deadline) = entry.deadline {
            let (estimate, allowed) = (wait + takes, deadline.saturating_duration_since(now));
            if estimate > allowed && !self.may_probe(now) {
                return Some(Refusal::TooLate { estimate, allowed });
            }
        }
        let target = self.policy.queue_target;
        if !target.is_zero() && self.is_standing(now, target) && wait > target {
            return Some(Refusal::Overloaded { wait, retry_after: wait - target });
        }
        None
    }

    /// Whether requests have waited for longer than `target` for long: a queue that drains by itself is a good one, one that
    /// stands only adds its wait to each answer (Nichols, Jacobson: "Controlling Queue Delay", 2012).
    fn is_standing(&mut self, now: Instant, target: Duration) -> bool {
        let wait = duration((self.seconds(self.work) + self.remaining(now)) / self.instances as f64);
        let wait = self.paced(wait);
        let since = match self.standing_since {
            // A queue that is held at the target is below it now and then: that does not end an overload.
            Some(since) if wait > target / 2 => since,
            None if wait > target => now,
            _ => {
                self.standing_since = None;
                return false;
            }
        };
        self.standing_since = Some(since);
        now.saturating_duration_since(since) >= target.max(MIN_STANDING)
    }

    /// Whether an idle model should try what seems too late: if it never ran anything, it would never learn that it can.
    fn may_probe(&mut self, now: Instant) -> bool {
        let may = self.is_empty() && self.running.is_empty() && self.next_probe.is_none_or(|at| at <= now);
        if may {
            self.next_probe = Some(now + PROBE);
        }
        may
    }

    /// Makes room for a request of `priority`: of the lowest priority there is, if that is lower, the one with the latest deadline
    /// leaves.
    pub(super) fn shed(&mut self, priority: Priority) -> Option<Entry<T>> {
        let lower = self.levels.get(priority.level()..)?;
        let level = lower.iter().rev().find(|level| level.work.rows > 0)?;
        let last = level.lines.iter().filter_map(|line| line.line.last()).max_by_key(|place| place.key)?;
        self.leave(last.slot)
    }
}
