//! What runs together.

use super::level::{Level, TenantLine};
use super::{Batcher, Dispatch, PATIENCE, RIVALRY, WINDOW, Waiting, due, forget_gone};
use crate::cost::{Work, duration};
use crate::entry::{Entry, Priority};
use crate::line::Key;
use sconce_core::CloseReason;
use std::time::{Duration, Instant};

/// What has waited for long gets this part of all rows.
const PATIENT_PART: f64 = 0.25;
/// While others want the device, a batch is long enough when what any batch takes, however small, is this part of its time: a longer
/// one would gain no more than that.
const OVERHEAD: f64 = 0.05;
/// The same for requests of several tenants in one batch: each waits for the others'.
const OVERHEAD_TOGETHER: f64 = 0.1;
/// Whatever the quantum, a batch may take this much of what its first request takes alone.
const FREE_RIDE: f64 = 1.25;
/// Waits below this, in seconds, say nothing about how good expectations are.
const MIN_WAIT: f64 = 1e-3;

/// A batch while it is composed.
struct Draft<T> {
    entries: Vec<Entry<T>>,
    work: Work,
    longest: usize,
    /// The earliest deadline of those that can meet theirs.
    deadline: Option<Instant>,
    quantum: Option<Quantum>,
    /// By level and line, the last of the line's requests that did not fit, all of those before it included.
    passed: Option<(usize, usize, Key)>,
    /// Why the first request that did not fit did not.
    reason: Option<CloseReason>,
    /// By priority, the waits of its requests, and what was expected of them.
    waits: [(f64, f64); Priority::LEVELS],
    /// What requests wait for company, at most.
    max_delay: f64,
}

impl<T> Draft<T> {
    fn waited(&mut self, now: Instant, entry: &Entry<T>, expected: f64) {
        let Some(wait) = self.waits.get_mut(entry.priority.level() - 1) else { return };
        if expected >= MIN_WAIT {
            let waited = now.saturating_duration_since(entry.queued_at).as_secs_f64();
            // A wait for company is no slowness.
            wait.0 += (waited - self.max_delay).max(waited.min(expected));
            wait.1 += expected;
        }
    }
}

/// How long a batch may be while others want the device.
#[derive(Clone, Copy)]
struct Quantum {
    /// Of one tenant.
    own: Duration,
    /// Of several.
    together: Duration,
}

enum Next {
    Fits(usize),
    Drop(usize),
    None,
}

impl<T> Batcher<T> {
    /// Composes a batch of what waits. `contested`: another model wants the device. `abandoned` tells whether a caller went away.
    pub fn take(&mut self, now: Instant, contested: bool, abandoned: impl Fn(&T) -> bool) -> Dispatch<T> {
        let id = self.next_batch;
        let queue_depth = self.len();
        // A priority that nobody asks for any more would keep those that left.
        self.arrivals.iter_mut().for_each(|arrivals| forget_gone(arrivals, &self.waiting));
        let rivals = self.tenants.others_at().is_some_and(|at| now.saturating_duration_since(at) < RIVALRY);
        let mut draft = Draft {
            // One allocation a batch: it leaves with the batch.
            entries: Vec::with_capacity(queue_depth.min(self.policy.max_rows)),
            work: Work::default(),
            longest: 0,
            deadline: None,
            quantum: (contested || rivals).then(|| self.quantum()),
            passed: None,
            reason: None,
            waits: [(0.0, 0.0); Priority::LEVELS],
            max_delay: self.policy.max_delay.as_secs_f64(),
        };
        let mut dropped = Vec::new();
        let shed = self.shorten(now);
        self.learn_from_oldest(now, &mut draft);
        self.take_patient(now, &mut draft, &mut dropped, &abandoned);
        let mut window = WINDOW;
        while draft.work.rows < self.policy.max_rows {
            let Some((level, line)) = self.next_line() else { break };
            match self.next_fit(now, &mut draft, level, line, &mut window, &abandoned) {
                Next::Fits(slot) => self.move_into(&mut draft, now, slot),
                Next::Drop(slot) => dropped.extend(self.give_up(&mut draft, now, slot)),
                Next::None if window == 0 => break,
                Next::None => self.levels[level].pass(line),
            }
        }
        self.levels.iter_mut().for_each(Level::pass_none);
        let is_full = draft.work.rows >= self.policy.max_rows
            || self
                .policy
                .max_tokens
                .is_some_and(|max| !draft.entries.is_empty() && draft.work.tokens >= max);
        let reason = match draft.reason {
            _ if is_full => CloseReason::Full,
            Some(reason) => reason,
            None if self.policy.max_delay.is_zero() => CloseReason::FreeWorker,
            None => CloseReason::Delay,
        };
        if !draft.entries.is_empty() {
            self.next_batch += 1;
            let part = PATIENT_PART * draft.work.rows as f64;
            self.patient_rows = (self.patient_rows + part).min(part);
            let takes = self.cost.estimate(draft.work).unwrap_or_default();
            self.running.push((id, now + takes));
        }
        if !draft.entries.is_empty() || !dropped.is_empty() {
            self.learn_pace(&draft.waits);
        }
        Dispatch { id, entries: draft.entries, dropped, shed, reason, queue_depth }
    }

    /// As long as longer batches would gain something, and no longer than the policy says.
    fn quantum(&self) -> Quantum {
        let most = self.policy.quantum;
        if !self.cost.is_certain() {
            return Quantum { own: most, together: most };
        }
        let enough = |overhead| most.min(duration(self.cost.report().batch_seconds / overhead));
        Quantum { own: enough(OVERHEAD), together: enough(OVERHEAD_TOGETHER) }
    }

    /// What has waited for long goes first, up to a part of all rows: with batches of one row, into each fourth.
    fn take_patient(
        &mut self,
        now: Instant,
        draft: &mut Draft<T>,
        dropped: &mut Vec<Entry<T>>,
        abandoned: &impl Fn(&T) -> bool,
    ) {
        // By priority, whether what is first there does not fit.
        let mut passed = [false; Priority::LEVELS];
        while self.patient_rows > 0.0 {
            let Some((level, slot)) = self.most_patient(now, &passed) else { return };
            let Some(waiting) = self.waiting.get(slot) else { return };
            if self.is_gone(now, waiting, abandoned) {
                dropped.extend(self.give_up(draft, now, slot));
            } else if self.misfit(now, draft, waiting).is_none() {
                self.patient_rows -= waiting.entry.rows as f64;
                self.move_into(draft, now, slot);
            } else {
                passed[level] = true;
            }
        }
    }

    /// Of those who wait behind better priorities the one that has waited longest, if that is long: its level and slot. Whoever waits
    /// behind its like has its share: only better priorities can starve it.
    fn most_patient(&mut self, now: Instant, passed: &[bool; Priority::LEVELS]) -> Option<(usize, usize)> {
        let best = self.levels.iter().position(|level| !level.is_empty())?;
        let waiting = &self.waiting;
        let levels = self.arrivals.iter_mut().zip(passed).enumerate().skip(best + 1);
        let first = levels.filter(|(_, (_, passed))| !**passed).filter_map(|(level, (arrivals, _))| {
            forget_gone(arrivals, waiting);
            let (seq, slot) = *arrivals.front()?;
            Some((seq, level, slot))
        });
        let (_, level, slot) = first.min()?;
        let waited = now.saturating_duration_since(self.waiting.get(slot)?.entry.queued_at);
        (waited >= PATIENCE).then_some((level, slot))
    }

    /// The line that is next: of the best priority, the tenant that had the least of its share.
    fn next_line(&self) -> Option<(usize, usize)> {
        self.levels.iter().enumerate().find_map(|(at, level)| Some((at, level.next()?)))
    }

    /// The first request of a line, if it fits, or else the largest of those behind it that does.
    fn next_fit(
        &self,
        now: Instant,
        draft: &mut Draft<T>,
        level: usize,
        line: usize,
        window: &mut usize,
        abandoned: &impl Fn(&T) -> bool,
    ) -> Next {
        let passed =
            draft.passed.filter(|passed| (passed.0, passed.1) == (level, line)).map(|passed| passed.2);
        let mut best: Option<(Work, usize)> = None;
        let Some(places) = self.levels.get(level).and_then(|level| level.line(line)).map(TenantLine::places)
        else {
            return Next::None;
        };
        // What did not fit will not fit into a larger batch.
        for place in places.from(passed) {
            let Some(waiting) = self.waiting.get(place.slot) else { continue };
            if self.is_gone(now, waiting, abandoned) {
                return Next::Drop(place.slot);
            }
            match self.misfit(now, draft, waiting) {
                None if draft.reason.is_none() || self.policy.is_padded => return Next::Fits(place.slot),
                None => {
                    let size = |work: Work| (work.tokens, work.rows);
                    if best.is_none_or(|(work, _)| size(work) < size(place.work)) {
                        best = Some((place.work, place.slot));
                    }
                }
                Some(reason) => {
                    draft.reason.get_or_insert(reason);
                    if best.is_none() {
                        draft.passed = Some((level, line, place.key));
                    }
                }
            }
            if *window == 0 {
                break;
            }
            *window -= 1;
        }
        best.map_or(Next::None, |(_, slot)| Next::Fits(slot))
    }

    /// Whether a request must not run.
    pub(super) fn is_gone(
        &self,
        now: Instant,
        waiting: &Waiting<T>,
        abandoned: &impl Fn(&T) -> bool,
    ) -> bool {
        let entry = &waiting.entry;
        if entry.expired(now) || abandoned(&entry.ticket) {
            return true;
        }
        // What comes too late only keeps others waiting; where there are no others, the estimate is put to the test.
        let deadline = entry.deadline.filter(|_| self.len() > 1);
        deadline.is_some_and(|deadline| {
            self.cost.is_certain()
                && self.cost.estimate(waiting.work).is_some_and(|takes| now + takes > deadline)
        })
    }

    /// Why a request does not fit into a batch. One alone always does.
    fn misfit(&self, now: Instant, draft: &Draft<T>, waiting: &Waiting<T>) -> Option<CloseReason> {
        if draft.entries.is_empty() {
            return None;
        }
        let merged = self.merged(draft, waiting);
        let too_many = merged.rows > self.policy.max_rows;
        if too_many || self.policy.max_tokens.is_some_and(|max| merged.tokens > max) {
            return Some(CloseReason::Full);
        }
        if self.policy.is_padded && !self.is_worth_padding(draft, waiting, merged) {
            return Some(CloseReason::Full);
        }
        let deadline = draft.deadline.into_iter().chain(due(&waiting.entry)).min();
        if deadline.is_some_and(|at| self.cost.upper(merged).is_some_and(|takes| now + takes > at)) {
            return Some(CloseReason::Deadline);
        }
        let quantum = draft.quantum?;
        let is_mixed = draft.entries.iter().any(|entry| entry.tenant.id != waiting.entry.tenant.id);
        let most = if is_mixed { quantum.together } else { quantum.own };
        let takes = self.cost.estimate(merged)?;
        // Where the first takes long by itself, others hardly wait longer for those that cost little more.
        let anyway =
            || draft.entries.first().and_then(|first| self.cost.estimate(first.work(self.policy.is_padded)));
        let is_long = takes > most && anyway().is_none_or(|alone| takes > alone.mul_f64(FREE_RIDE));
        is_long.then_some(CloseReason::Quantum)
    }

    fn merged(&self, draft: &Draft<T>, waiting: &Waiting<T>) -> Work {
        let rows = draft.work.rows + waiting.entry.rows;
        let tokens = if self.policy.is_padded {
            rows * draft.longest.max(waiting.entry.longest)
        } else {
            draft.work.tokens + waiting.work.tokens
        };
        Work { rows, tokens }
    }

    /// Whether one padded batch takes no longer than two. Before anything was learned: whether both are of about one length.
    fn is_worth_padding(&self, draft: &Draft<T>, waiting: &Waiting<T>, merged: Work) -> bool {
        match [draft.work, waiting.work, merged].map(|work| self.cost.upper(work)) {
            [Some(one), Some(other), Some(both)] => both <= one + other,
            _ => {
                let bucket = |tokens: usize| tokens.next_power_of_two();
                bucket(draft.longest) == bucket(waiting.entry.longest)
            }
        }
    }

    /// What waits for longer than it should already says so, not only once it runs; unless others of its line overtook it.
    fn learn_from_oldest(&self, now: Instant, draft: &mut Draft<T>) {
        let Some(Waiting { entry, expected, key, line, .. }) = self.oldest() else { return };
        let line = self.levels.get(entry.priority.level() - 1).and_then(|level| level.line(*line));
        let is_first = line.and_then(|line| line.places().first()).is_some_and(|first| first.key == *key);
        let waited = now.saturating_duration_since(entry.queued_at).as_secs_f64();
        if is_first && waited > self.paced(*expected, entry.priority) {
            draft.waited(now, entry, *expected);
        }
    }

    /// Takes a request out that will not run. Its wait counts as well: those who run had the shorter ones.
    fn give_up(&mut self, draft: &mut Draft<T>, now: Instant, slot: usize) -> Option<Entry<T>> {
        let expected = self.waiting.get(slot)?.expected;
        let entry = self.leave(slot)?;
        draft.waited(now, &entry, expected);
        Some(entry)
    }

    /// Moves a request into the batch, and charges its tenant.
    fn move_into(&mut self, draft: &mut Draft<T>, now: Instant, slot: usize) {
        let Some(waiting) = self.waiting.get(slot) else { return };
        let merged = self.merged(draft, waiting);
        let (expected, deadline) = (waiting.expected, due(&waiting.entry));
        let takes = || self.cost.upper(waiting.work).unwrap_or_default();
        let met = deadline.filter(|at| now + takes() <= *at);
        let (priority, line) = (waiting.entry.priority, waiting.line);
        let seconds = self.cost.marginal(waiting.work);
        if let Some(level) = self.levels.get_mut(priority.level() - 1) {
            level.charge(line, seconds);
        }
        let Some(entry) = self.leave(slot) else { return };
        // Whoever is served is there, also one whose further requests are refused meanwhile.
        self.tenants.saw(entry.tenant.id, now);
        draft.waited(now, &entry, expected);
        draft.work = merged;
        draft.longest = draft.longest.max(entry.longest);
        draft.deadline = draft.deadline.into_iter().chain(met).min();
        draft.entries.push(entry);
    }
}
