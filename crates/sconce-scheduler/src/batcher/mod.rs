mod admit;
mod compose;
mod level;
#[cfg(test)]
mod tests;
mod turns;

use crate::arbiter::Rivals;
use crate::cost::{CostModel, CostReport, Work, duration};
use crate::entry::{Entry, Priority, Refusal};
use crate::line::{Key, Place};
use admit::Pace;
use level::Level;
use sconce_core::CloseReason;
use slab::Slab;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How requests become batches. Every field is validated where the configuration is read.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchPolicy {
    /// The most rows in a batch, at least 1.
    pub max_rows: usize,
    /// The most tokens in a batch. A single request beyond it runs alone.
    pub max_tokens: Option<usize>,
    /// How long a batch may wait for company. Zero: a free worker takes what waits.
    pub max_delay: Duration,
    /// The most requests that wait, at least 1.
    pub queue_depth: usize,
    /// What requests may wait at most while more come than can be answered. Zero: until the queue is full.
    pub queue_target: Duration,
    /// The most time a batch of several requests should take while another tenant, or another model of the device, is active. It is
    /// shorter where longer ones would gain little.
    pub quantum: Duration,
    /// Whether the backend pads each row to a batch's longest.
    pub is_padded: bool,
    /// The model's share of its device's time while others want theirs, relative to their weights: more than 0.
    pub weight: f32,
}

impl Default for BatchPolicy {
    /// Batches of up to 64 rows of whatever waits, a queue of 1024 requests, no wait over a second, a quantum of 10 ms.
    fn default() -> Self {
        Self {
            max_rows: 64,
            max_tokens: None,
            max_delay: Duration::ZERO,
            queue_depth: 1024,
            queue_target: Duration::from_secs(1),
            quantum: Duration::from_millis(10),
            is_padded: false,
            weight: 1.0,
        }
    }
}

/// Whether a batch should be composed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// At this time, if nothing arrives before.
    At(Instant),
    /// Nothing waits.
    Idle,
}

/// A composed batch. `entries` is empty when everything that waited was dropped.
#[derive(Debug)]
pub struct Dispatch<T> {
    /// Its number, from 1. [`Batcher::finished`] must be told of each that has entries.
    pub id: u64,
    /// What runs.
    pub entries: Vec<Entry<T>>,
    /// Must not run: expired, abandoned, or too late however soon it ran.
    pub dropped: Vec<Entry<T>>,
    /// Gave way: the queue stood, and they stood at its end.
    pub shed: Vec<Entry<T>>,
    /// Why the batch was closed.
    pub reason: CloseReason,
    /// Requests that waited before it was composed.
    pub queue_depth: usize,
}

/// The queue of one model version and the rules by which it becomes batches. A pure state machine: it reads no clock.
///
/// - Better priorities go first; within one, tenants share by their weights; of a tenant's requests the one with the earliest
///   deadline goes first.
/// - What has waited for [`PATIENCE`] gets a part of all rows, whatever its priority: nothing starves.
/// - A request that does not fit lets the next ones pass that do, and is the first of the next batch.
/// - A batch does not grow beyond what lets each of its requests answer in time, nor, while others want the device, beyond a
///   quantum of time, nor beyond what is worth its while.
/// - What cannot be answered in time is refused when it comes ([`Refusal`]), by what batches took so far ([`CostModel`]).
#[derive(Debug)]
pub struct Batcher<T> {
    policy: BatchPolicy,
    /// Batches that can run at once.
    instances: usize,
    waiting: Slab<Waiting<T>>,
    levels: [Level; Priority::LEVELS],
    /// By priority and arrival, with slots; those that have left are still in it until they come to the front.
    arrivals: [VecDeque<(u64, usize)>; Priority::LEVELS],
    next_seq: u64,
    next_batch: u64,
    /// When the first request came: keys count from there.
    epoch: Option<Instant>,
    /// Of all that waits.
    work: Work,
    cost: CostModel,
    /// By priority: requests wait longer for being overtaken, and those who overtake must not be taken to.
    paces: [Pace; Priority::LEVELS],
    /// Batches that run: number, and when it should have ended.
    running: Vec<(u64, Instant)>,
    /// Since when requests have waited for longer than they should.
    standing_since: Option<Instant>,
    /// When an idle model may next try a request that seems too late.
    next_probe: Option<Instant>,
    tenants: Rivals<u32, Instant>,
    /// Rows that what has waited for long may still have.
    patient_rows: f64,
}

/// From this wait on a request is served whatever its priority.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// A request without a deadline is ordered as if it had this long.
const UNHURRIED: Duration = Duration::from_secs(10);
/// How many requests may be looked at for one that fits in place of one that does not, in all of a batch's lines.
const WINDOW: usize = 64;
/// For how long someone who came counts as still there.
pub(crate) const RIVALRY: Duration = Duration::from_secs(1);
/// Of the time that a tenant, or a model, could have had and did not ask for, it may ask for this much later, over its weight: what comes
/// now and then need not take turns with what always comes ("Borrowed-virtual-time scheduling", Duda, Cheriton 1999).
pub(crate) const CREDIT: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Waiting<T> {
    entry: Entry<T>,
    seq: u64,
    work: Work,
    key: Key,
    /// Its line among its level's.
    line: usize,
    /// How many seconds it should wait if all goes as the cost model says.
    expected: f64,
}

/// The part of a request's time for what is not seen here: its way here and back, a core that is taken away.
const ON_ITS_WAY: f64 = 0.1;

/// When a batch should have ended for the answer to be there in time.
fn due<T>(entry: &Entry<T>) -> Option<Instant> {
    let deadline = entry.deadline?;
    deadline.checked_sub(deadline.saturating_duration_since(entry.queued_at).mul_f64(ON_ITS_WAY))
}

impl<T> Batcher<T> {
    /// An empty queue of a model with `instances` workers.
    pub fn new(policy: BatchPolicy, instances: usize) -> Self {
        Self {
            policy,
            instances: instances.max(1),
            waiting: Slab::new(),
            levels: std::array::from_fn(|_| Level::default()),
            arrivals: std::array::from_fn(|_| VecDeque::new()),
            next_seq: 0,
            next_batch: 1,
            epoch: None,
            work: Work::default(),
            cost: CostModel::default(),
            paces: std::array::from_fn(|_| Pace::default()),
            running: Vec::with_capacity(instances),
            standing_since: None,
            next_probe: None,
            tenants: Rivals::default(),
            patient_rows: 0.0,
        }
    }

    /// From now on batches are numbered from `first`.
    pub(crate) fn number_from(&mut self, first: u64) {
        self.next_batch = first;
    }

    /// From now on this is the most time that a batch of several requests should take while others want the device.
    pub(crate) fn set_quantum(&mut self, quantum: Duration) {
        self.policy.quantum = quantum;
    }

    /// How long a request behind all others would wait.
    pub fn wait(&self, now: Instant) -> Duration {
        duration(self.wait_of_all(now))
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What was learned of the time that batches take.
    pub fn cost(&self) -> CostReport {
        self.cost.report()
    }

    /// Learns from a batch that ran elsewhere, at warm-up.
    pub fn observe(&mut self, work: Work, time: Duration) {
        self.cost.observe(work, time);
    }

    /// Where a request belongs in its line. Deadlines that were over when the first request came are all alike, and those that are far
    /// away are none: whoever has one waits no longer for it.
    fn key(&self, entry: &Entry<T>, seq: u64) -> Key {
        let unhurried = entry.queued_at + UNHURRIED;
        let at = entry.deadline.map_or(unhurried, |deadline| deadline.min(unhurried));
        let after = self.epoch.map_or(Duration::ZERO, |epoch| at.saturating_duration_since(epoch));
        (after.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(after.subsec_nanos())), seq)
    }

    /// Adds a request, or gives it back with the reason. In a full queue it may take the place of one of a lower priority, or of a tenant
    /// that has more than its share of the places, which is returned.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn push(&mut self, now: Instant, entry: Entry<T>) -> Result<Option<Entry<T>>, (Refusal, Entry<T>)> {
        let seq = self.next_seq;
        let work = entry.work(self.policy.is_padded);
        self.epoch.get_or_insert(now);
        let key = self.key(&entry, seq);
        let expected = self.expected_wait(now, &entry, key);
        if let Some(refusal) = self.refusal(now, &entry, work, expected) {
            return Err((refusal, entry));
        }
        let shed =
            if self.len() < self.policy.queue_depth { None } else { self.shed(entry.priority, entry.tenant) };
        if shed.is_none() && self.len() >= self.policy.queue_depth {
            return Err((
                Refusal::Full { retry_after: duration(self.paced(expected, entry.priority)) },
                entry,
            ));
        }
        self.next_seq += 1;
        self.tenants.saw(entry.tenant.id, now);
        let (tenant, priority) = (entry.tenant, entry.priority);
        let Some(level) = self.levels.get_mut(priority.level() - 1) else { return Ok(shed) };
        let slot = self.waiting.vacant_key();
        let line = level.insert(tenant, Place { key, slot, work });
        self.waiting.insert(Waiting { entry, seq, work, key, line, expected });
        self.remember_arrival(seq, slot, priority);
        self.work.add(work);
        Ok(shed)
    }

    /// Whether a batch should be composed.
    pub fn due(&self, now: Instant) -> Due {
        if self.is_empty() {
            return Due::Idle;
        }
        if self.policy.max_delay.is_zero() || self.is_full() {
            return Due::Now;
        }
        let mut at = self.oldest().map_or(now, |waiting| waiting.entry.queued_at + self.policy.max_delay);
        // Company is not worth a deadline.
        let lines = self.levels.iter().filter(|level| !level.is_empty()).flat_map(Level::waiting);
        for waiting in lines.filter_map(|line| self.waiting.get(line.places().first()?.slot)) {
            // One that has expired is in no hurry.
            let due = due(&waiting.entry).filter(|_| !waiting.entry.expired(now));
            let takes = self.cost.upper(waiting.work);
            let latest = due.zip(takes).and_then(|(due, takes)| due.checked_sub(takes));
            at = latest.into_iter().fold(at, Instant::min);
        }
        if at > now { Due::At(at) } else { Due::Now }
    }

    /// The batch `id` has ended. `service` is the time it had the backend to itself; `None` for one that failed.
    pub fn finished(&mut self, id: u64, work: Work, service: Option<Duration>) {
        self.running.retain(|(running, _)| *running != id);
        if let Some(time) = service {
            self.cost.observe(work, time);
        }
    }

    /// Takes out what must not run, wherever it stands: also what would be late however soon it ran.
    pub fn sweep(&mut self, now: Instant, abandoned: impl Fn(&T) -> bool) -> Vec<Entry<T>> {
        let gone = |waiting: &Waiting<T>| self.is_gone(now, waiting, &abandoned);
        let slots: Vec<usize> =
            self.waiting.iter().filter(|(_, waiting)| gone(waiting)).map(|(slot, _)| slot).collect();
        slots.into_iter().filter_map(|slot| self.leave(slot)).collect()
    }

    fn remember_arrival(&mut self, seq: u64, slot: usize, priority: Priority) {
        let (waiting, most) = (&self.waiting, 2 * self.waiting.len() + WINDOW);
        let Some(arrivals) = self.arrivals.get_mut(priority.level() - 1) else { return };
        forget_gone(arrivals, waiting);
        // Behind one that waits for long, those that left pile up.
        if arrivals.len() > most {
            arrivals.retain(|&(seq, slot)| is_there(waiting, seq, slot));
        }
        arrivals.push_back((seq, slot));
    }

    /// Of a level's requests the one that came first.
    fn oldest_of(&self, level: usize) -> Option<&Waiting<T>> {
        let there = |&&(seq, slot): &&(u64, usize)| is_there(&self.waiting, seq, slot);
        let (_, slot) = self.arrivals.get(level)?.iter().find(there)?;
        self.waiting.get(*slot)
    }

    /// Of all requests the one that came first.
    fn oldest(&self) -> Option<&Waiting<T>> {
        (0..Priority::LEVELS).filter_map(|level| self.oldest_of(level)).min_by_key(|waiting| waiting.seq)
    }

    /// Takes a request out of the queue.
    fn leave(&mut self, slot: usize) -> Option<Entry<T>> {
        let waiting = self.waiting.try_remove(slot)?;
        let Waiting { entry, work, key, line, .. } = waiting;
        self.work.take(work);
        if let Some(level) = self.levels.get_mut(entry.priority.level() - 1) {
            level.remove(line, &Place { key, slot, work });
        }
        Some(entry)
    }

    fn is_full(&self) -> bool {
        self.work.rows >= self.policy.max_rows
            || self.policy.max_tokens.is_some_and(|max| self.work.tokens >= max)
    }
}

/// Whether the request that came as number `seq` is the one in `slot` still.
fn is_there<T>(waiting: &Slab<Waiting<T>>, seq: u64, slot: usize) -> bool {
    waiting.get(slot).is_some_and(|waiting| waiting.seq == seq)
}

fn forget_gone<T>(arrivals: &mut VecDeque<(u64, usize)>, waiting: &Slab<Waiting<T>>) {
    while arrivals.front().is_some_and(|&(seq, slot)| !is_there(waiting, seq, slot)) {
        arrivals.pop_front();
    }
}
