//! What may wait, and for how long it would.

use super::level::weight;
use super::{Batcher, due};
use crate::cost::{Work, duration};
use crate::entry::{Entry, Priority, Refusal, Tenant};
use crate::line::Key;
use std::time::{Duration, Instant};

/// An overload is one that lasts this long, or as long as requests may wait if that is more.
const MIN_STANDING: Duration = Duration::from_millis(100);
/// The most of its time that a request leaves for the others of its batch.
const COMPANY: f64 = 0.25;
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
    /// How long a request would wait by the cost model, in seconds, before what was learned of the pace.
    pub(super) fn expected_wait(&self, now: Instant, entry: &Entry<T>, key: Key) -> f64 {
        if self.is_empty() && self.running.len() < self.instances {
            return 0.0;
        }
        let (better, level) = match self.levels.split_at_checked(entry.priority.level() - 1) {
            Some((better, [level, ..])) => (better, level),
            _ => return 0.0,
        };
        let mut ahead = Work::default();
        better.iter().for_each(|level| ahead.add(level.work()));
        let mut seconds = if ahead == Work::default() { 0.0 } else { self.seconds(ahead) };
        // At worst all that is there goes before it; at worst as well its tenant gets no more than its share.
        let (mut own, mut others) = (Work::default(), level.work());
        let mut weights = level.weights();
        if let Some(line) = level.of_tenant(entry.tenant.id) {
            own = line.places().before(key);
            others.take(line.places().work());
            weights = (weights - line.weight()).max(0.0);
        }
        let share = 1.0 + weights / weight(entry.tenant);
        let shared = self.seconds(own) * share;
        own.add(others);
        seconds += self.seconds(own).min(shared);
        (seconds + self.remaining(now)) / self.instances as f64
    }

    /// What work takes in batches, in seconds.
    fn seconds(&self, work: Work) -> f64 {
        let rows = work.rows as f64 / self.policy.max_rows as f64;
        let tokens = self.policy.max_tokens.map_or(0.0, |max| work.tokens as f64 / max as f64);
        self.cost.in_batches(work, rows.max(tokens))
    }

    /// What is left of the batches that run, in seconds, where none can begin beside them.
    fn remaining(&self, now: Instant) -> f64 {
        if self.running.len() < self.instances {
            return 0.0;
        }
        self.running.iter().map(|(_, until)| until.saturating_duration_since(now).as_secs_f64()).sum()
    }

    /// How long a wait will be, in seconds.
    pub(super) fn paced(&self, expected: f64, priority: Priority) -> f64 {
        expected * self.paces.get(priority.level() - 1).map_or(1.0, Pace::factor)
    }

    /// Learns from the waits of a batch's requests, by priority: `(actual, expected)`. What it knew fades with every batch, so that
    /// a disturbance that is over is forgotten.
    pub(super) fn learn_pace(&mut self, waits: &[(f64, f64)]) {
        for (pace, (actual, expected)) in self.paces.iter_mut().zip(waits) {
            pace.actual = pace.actual * Pace::FORGETTING + actual;
            pace.expected = pace.expected * Pace::FORGETTING + expected;
        }
    }

    /// Why a request should not even wait.
    pub(super) fn refusal(
        &mut self,
        now: Instant,
        entry: &Entry<T>,
        work: Work,
        expected: f64,
    ) -> Option<Refusal> {
        if !self.cost.is_certain() {
            return None;
        }
        let wait = self.paced(expected, entry.priority);
        if let Some(deadline) = entry.deadline {
            let allowed = deadline.saturating_duration_since(now);
            let estimate = duration(wait) + self.cost.upper(work)?.max(self.company(allowed));
            let due = due(entry).unwrap_or(deadline).saturating_duration_since(now);
            if estimate > due && !self.may_probe(now) {
                return Some(Refusal::TooLate { estimate, allowed });
            }
        }
        let target = self.policy.queue_target.as_secs_f64();
        let is_overloaded = target > 0.0 && self.is_standing(now, target) && wait > target;
        is_overloaded
            .then(|| Refusal::Overloaded { wait: duration(wait), retry_after: duration(wait - target) })
    }

    /// The time to leave for the others of a request's batch: were each let in that has just the time to run alone, each would.
    fn company(&self, allowed: Duration) -> Duration {
        let part = |of: usize, max: usize| max as f64 / of.max(max) as f64;
        let of_rows = part(self.work.rows, self.policy.max_rows);
        let of_tokens = self.policy.max_tokens.map_or(1.0, |max| part(self.work.tokens, max));
        let batch = self.seconds(self.work) * of_rows.min(of_tokens);
        duration(batch.min(COMPANY * allowed.as_secs_f64()))
    }

    /// Whether requests have waited for longer than `target` for long: a queue that drains by itself is a good one, one that
    /// stands only adds its wait to each answer (Nichols, Jacobson: "Controlling Queue Delay", 2012).
    fn is_standing(&mut self, now: Instant, target: f64) -> bool {
        let wait = self.wait_of_all(now);
        let since = match self.standing_since {
            // A queue that is held at the target is below it now and then: that does not end an overload.
            Some(since) if wait > target / 2.0 => since,
            None if wait > target => now,
            _ => {
                self.standing_since = None;
                return false;
            }
        };
        self.standing_since = Some(since);
        now.saturating_duration_since(since) >= self.policy.queue_target.max(MIN_STANDING)
    }

    /// How long a request behind all others would wait, in seconds.
    pub(super) fn wait_of_all(&self, now: Instant) -> f64 {
        let wait = (self.seconds(self.work) + self.remaining(now)) / self.instances as f64;
        // Of those who wait, the best know best how slow the device is: nobody overtakes them.
        let best = self.levels.iter().position(|level| !level.is_empty());
        wait * best.and_then(|level| self.paces.get(level)).map_or(1.0, Pace::factor)
    }

    /// Whether an idle model should try what seems too late: if it never ran anything, it would never learn that it can.
    fn may_probe(&mut self, now: Instant) -> bool {
        let may = self.is_empty() && self.running.is_empty() && self.next_probe.is_none_or(|at| at <= now);
        if may {
            self.next_probe = Some(now + PROBE);
        }
        may
    }

    /// Makes room for a request of `priority`: of the lowest priority there is, if that is lower, one leaves as [`shed_below`] says;
    /// else one of the same priority, of the tenant with the most places for its weight, if `tenant` has fewer for its own: a queue is
    /// not full for one tenant because another filled it.
    ///
    /// [`shed_below`]: Self::shed_below
    pub(super) fn shed(&mut self, priority: Priority, tenant: Tenant) -> Option<Entry<T>> {
        if let Some(lower) = self.shed_below(priority.level()) {
            return Some(lower);
        }
        let level = self.levels.get(priority.level() - 1)?;
        let greediest = level.greediest()?;
        let own = level.of_tenant(tenant.id).map_or(0, |line| line.places().len());
        let own = (own + 1) as f64 / weight(tenant);
        let is_greedier = greediest.tenant != tenant.id && greediest.share() > own;
        let slot = greediest.places().last().filter(|_| is_greedier)?.slot;
        self.leave(slot)
    }

    /// Has requests give way, from the end of the queue, while a queue that stands is more than twice as long as it should be: an
    /// overload that nobody foresaw filled it.
    pub(super) fn shorten(&mut self, now: Instant) -> Vec<Entry<T>> {
        let mut shed = Vec::new();
        let target = self.policy.queue_target.as_secs_f64();
        if target == 0.0 || !self.cost.is_certain() || !self.is_standing(now, target) {
            return shed;
        }
        while self.len() > self.instances && self.wait_of_all(now) > 2.0 * target {
            shed.extend(self.shed_below(0));
        }
        shed
    }

    /// Of all levels after the first `level`, the last one's tenant with the most places for its weight gives up its request with the
    /// latest deadline.
    fn shed_below(&mut self, level: usize) -> Option<Entry<T>> {
        let lower = self.levels.get(level..)?;
        let level = lower.iter().rev().find(|level| !level.is_empty())?;
        let slot = level.greediest()?.places().last()?.slot;
        self.leave(slot)
    }
}
