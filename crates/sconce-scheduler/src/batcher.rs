use sconce_core::{CloseReason, Error, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How requests become batches. Every field is validated where the configuration is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPolicy {
    /// The most rows in a batch, at least 1.
    pub max_rows: usize,
    /// The most tokens in a batch. A single request beyond it runs alone.
    pub max_tokens: Option<usize>,
    /// How long a batch may wait for company. Zero: a free worker takes what waits.
    pub max_delay: Duration,
    /// The most requests that wait, at least 1.
    pub queue_depth: usize,
}

/// A request's priority: 1 is served first, [`Priority::LEVELS`] last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(usize);

impl Priority {
    /// How many priorities there are.
    pub const LEVELS: usize = 8;

    /// Priority `level`; 0 means the default.
    ///
    /// # Errors
    /// `InvalidArgument` above [`Self::LEVELS`].
    pub fn new(level: u64) -> Result<Self> {
        match usize::try_from(level) {
            Ok(0) => Ok(Self::default()),
            Ok(level) if level <= Self::LEVELS => Ok(Self(level)),
            _ => Err(Error::invalid(format!(
                "priority: expected 0 (default) to {}, got {level}",
                Self::LEVELS
            ))),
        }
    }

    /// The level, 1 to [`Self::LEVELS`].
    pub fn level(self) -> usize {
        self.0
    }
}

impl Default for Priority {
    /// The middle, so that callers can ask for better and for worse.
    fn default() -> Self {
        Self(Self::LEVELS / 2)
    }
}

/// One waiting request.
#[derive(Debug)]
pub struct Entry<T> {
    /// What the caller wants back.
    pub ticket: T,
    /// Rows, at least 1 and at most [`BatchPolicy::max_rows`].
    pub rows: usize,
    /// Tokens, 0 for models without.
    pub tokens: usize,
    /// Served before entries of a lower priority.
    pub priority: Priority,
    /// When it entered the queue.
    pub queued_at: Instant,
    /// After this its answer is worthless.
    pub deadline: Option<Instant>,
}

impl<T> Entry<T> {
    fn expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
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
    /// What runs, best priority first, first come first served within one.
    pub entries: Vec<Entry<T>>,
    /// Expired or abandoned: must not run.
    pub dropped: Vec<Entry<T>>,
    /// Why the batch was closed.
    pub reason: CloseReason,
}

/// The queue of one model version and the rule by which it becomes batches. A pure state machine: it reads no clock.
#[derive(Debug)]
pub struct Batcher<T> {
    policy: BatchPolicy,
    levels: [VecDeque<Entry<T>>; Priority::LEVELS],
    entries: usize,
    rows: usize,
    tokens: usize,
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub fn new(policy: BatchPolicy) -> Self {
        Self { policy, levels: std::array::from_fn(|_| VecDeque::new()), entries: 0, rows: 0, tokens: 0 }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Adds a request.
    ///
    /// # Errors
    /// Gives it back when the queue is full.
    pub fn push(&mut self, entry: Entry<T>) -> Result<(), Entry<T>> {
        if self.entries >= self.policy.queue_depth {
            return Err(entry);
        }
        self.entries += 1;
        self.rows += entry.rows;
        self.tokens += entry.tokens;
        self.levels[entry.priority.level() - 1].push_back(entry);
        Ok(())
    }

    /// Whether a batch should be composed.
    pub fn due(&self, now: Instant) -> Due {
        if self.is_empty() {
            return Due::Idle;
        }
        if self.policy.max_delay.is_zero() || self.is_full() {
            return Due::Now;
        }
        let oldest = self.levels.iter().filter_map(|level| level.front()).map(|entry| entry.queued_at).min();
        match oldest.map(|oldest| oldest + self.policy.max_delay) {
            Some(at) if at > now => Due::At(at),
            _ => Due::Now,
        }
    }

    /// Composes a batch of what waits, up to the bounds. `abandoned` tells whether a caller went away.
    pub fn take(&mut self, now: Instant, abandoned: impl Fn(&T) -> bool) -> Dispatch<T> {
        let mut entries = Vec::with_capacity(self.entries.min(self.policy.max_rows));
        let mut dropped = Vec::new();
        let (mut rows, mut tokens) = (0, 0);
        let mut full = false;
        'levels: for level in &mut self.levels {
            while let Some(entry) = level.front() {
                let fits = rows + entry.rows <= self.policy.max_rows
                    && (entries.is_empty()
                        || self.policy.max_tokens.is_none_or(|max| tokens + entry.tokens <= max));
                let drop = entry.expired(now) || abandoned(&entry.ticket);
                if !drop && !fits {
                    full = true;
                    break 'levels;
                }
                let Some(entry) = level.pop_front() else { break };
                self.entries -= 1;
                self.rows -= entry.rows;
                self.tokens -= entry.tokens;
                if drop {
                    dropped.push(entry);
                } else {
                    rows += entry.rows;
                    tokens += entry.tokens;
                    entries.push(entry);
                }
            }
        }
        let full = full
            || rows == self.policy.max_rows
            || self.policy.max_tokens.is_some_and(|max| !entries.is_empty() && tokens >= max);
        let reason = if full {
            CloseReason::Full
        } else if self.policy.max_delay.is_zero() {
            CloseReason::FreeWorker
        } else {
            CloseReason::Delay
        };
        Dispatch { entries, dropped, reason }
    }

    /// Takes out what must not run, wherever it stands.
    pub fn sweep(&mut self, now: Instant, abandoned: impl Fn(&T) -> bool) -> Vec<Entry<T>> {
        let mut dropped = Vec::new();
        for level in &mut self.levels {
            for _ in 0..level.len() {
                let Some(entry) = level.pop_front() else { break };
                if entry.expired(now) || abandoned(&entry.ticket) {
                    self.entries -= 1;
                    self.rows -= entry.rows;
                    self.tokens -= entry.tokens;
                    dropped.push(entry);
                } else {
                    level.push_back(entry);
                }
            }
        }
        dropped
    }

    fn is_full(&self) -> bool {
        self.rows >= self.policy.max_rows || self.policy.max_tokens.is_some_and(|max| self.tokens >= max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: BatchPolicy =
        BatchPolicy { max_rows: 4, max_tokens: None, max_delay: Duration::ZERO, queue_depth: 100 };

    fn entry(ticket: u32, rows: usize, at: Instant) -> Entry<u32> {
        Entry { ticket, rows, tokens: 0, priority: Priority::default(), queued_at: at, deadline: None }
    }

    fn tickets(entries: &[Entry<u32>]) -> Vec<u32> {
        entries.iter().map(|entry| entry.ticket).collect()
    }

    #[test]
    fn a_free_worker_takes_what_waits() {
        let now = Instant::now();
        let mut batcher = Batcher::new(POLICY);
        assert_eq!(batcher.due(now), Due::Idle);
        batcher.push(entry(1, 1, now)).unwrap();
        batcher.push(entry(2, 2, now)).unwrap();
        assert_eq!(batcher.due(now), Due::Now);
        let batch = batcher.take(now, |_| false);
        assert_eq!((tickets(&batch.entries), batch.reason), (vec![1, 2], CloseReason::FreeWorker));
        assert!(batcher.is_empty());
    }

    #[test]
    fn rows_and_tokens_bound_a_batch_and_order_holds() {
        let now = Instant::now();
        let mut batcher = Batcher::new(BatchPolicy { max_tokens: Some(10), ..POLICY });
        for (ticket, rows, tokens) in [(1, 3, 1), (2, 2, 1), (3, 1, 9), (4, 1, 1), (5, 1, 50), (6, 1, 1)] {
            batcher.push(Entry { tokens, ..entry(ticket, rows, now) }).unwrap();
        }
        let batches: Vec<_> = std::iter::from_fn(|| {
            let batch = batcher.take(now, |_| false);
            (!batch.entries.is_empty()).then(|| (tickets(&batch.entries), batch.reason))
        })
        .collect();
        let full = CloseReason::Full;
        // 3 would overfill the tokens of 2's batch, 5 is over the bound by itself and runs alone.
        assert_eq!(
            batches,
            [
                (vec![1], full),
                (vec![2, 3], full),
                (vec![4], full),
                (vec![5], full),
                (vec![6], CloseReason::FreeWorker)
            ]
        );
    }

    #[test]
    fn a_delay_waits_for_company_and_no_longer() {
        let now = Instant::now();
        let delay = Duration::from_millis(5);
        let mut batcher = Batcher::new(BatchPolicy { max_delay: delay, ..POLICY });
        batcher.push(entry(1, 1, now)).unwrap();
        assert_eq!(batcher.due(now), Due::At(now + delay));
        assert_eq!(batcher.due(now + delay), Due::Now);
        assert_eq!(batcher.take(now + delay, |_| false).reason, CloseReason::Delay);
        batcher.push(entry(2, 4, now)).unwrap();
        assert_eq!(batcher.due(now), Due::Now, "a full batch waits for nobody");

        let mut batcher = Batcher::new(BatchPolicy { max_tokens: Some(10), max_delay: delay, ..POLICY });
        batcher.push(Entry { tokens: 10, ..entry(1, 1, now) }).unwrap();
        assert_eq!(batcher.due(now), Due::Now);
        assert_eq!(batcher.take(now, |_| false).reason, CloseReason::Full, "of tokens");
    }

    #[test]
    fn better_priorities_go_first() {
        let now = Instant::now();
        let mut batcher = Batcher::new(POLICY);
        for (ticket, level) in [(1, 0), (2, 8), (3, 1), (4, 4), (5, 1)] {
            batcher.push(Entry { priority: Priority::new(level).unwrap(), ..entry(ticket, 1, now) }).unwrap();
        }
        assert_eq!(tickets(&batcher.take(now, |_| false).entries), [3, 5, 1, 4]);
        assert!(Priority::new(9).is_err());
    }

    #[test]
    fn expired_and_abandoned_requests_never_run() {
        let now = Instant::now();
        let mut batcher = Batcher::new(POLICY);
        batcher.push(Entry { deadline: Some(now), ..entry(1, 1, now) }).unwrap();
        batcher.push(entry(2, 4, now)).unwrap();
        batcher.push(Entry { deadline: Some(now + Duration::from_secs(1)), ..entry(3, 1, now) }).unwrap();
        let batch = batcher.take(now, |&ticket| ticket == 2);
        assert_eq!((tickets(&batch.entries), tickets(&batch.dropped)), (vec![3], vec![1, 2]));
    }

    #[test]
    fn a_full_queue_gives_back_and_a_sweep_makes_room() {
        let now = Instant::now();
        let mut batcher = Batcher::new(BatchPolicy { queue_depth: 2, ..POLICY });
        batcher.push(entry(1, 1, now)).unwrap();
        batcher.push(entry(2, 1, now)).unwrap();
        assert_eq!(batcher.push(entry(3, 1, now)).unwrap_err().ticket, 3);
        assert_eq!(tickets(&batcher.sweep(now, |&ticket| ticket == 1)), [1]);
        batcher.push(entry(3, 1, now)).unwrap();
        assert_eq!(tickets(&batcher.take(now, |_| false).entries), [2, 3]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { rows: usize, tokens: usize, level: u64, deadline_ms: Option<u64> },
        Advance(u64),
        Abandon(prop::sample::Index),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1usize..=4, 0usize..20, 0u64..=8, prop::option::of(0u64..20))
                .prop_map(|(rows, tokens, level, deadline_ms)| Step::Push { rows, tokens, level, deadline_ms }),
            2 => (0u64..10).prop_map(Step::Advance),
            1 => any::<prop::sample::Index>().prop_map(Step::Abandon),
            2 => Just(Step::Take),
        ]
    }

    proptest! {
        /// Nothing is lost, nothing comes out twice, bounds hold, and within a priority the order is that of arrival.
        #[test]
        fn everything_comes_out_exactly_once(steps in prop::collection::vec(step(), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut batcher = Batcher::new(BatchPolicy { max_tokens: Some(30), queue_depth: 20, ..POLICY });
            let (mut pushed, mut seen, mut abandoned) = (Vec::new(), Vec::new(), std::collections::HashSet::new());
            let mut last_run = [None::<u32>; Priority::LEVELS + 1];
            let mut check = |batch: Dispatch<u32>, now: Instant, abandoned: &std::collections::HashSet<u32>| {
                let rows: usize = batch.entries.iter().map(|e| e.rows).sum();
                let tokens: usize = batch.entries.iter().map(|e| e.tokens).sum();
                assert!(rows <= 4 && (tokens <= 30 || batch.entries.len() == 1));
                for e in &batch.entries {
                    assert!(!abandoned.contains(&e.ticket) && e.deadline.is_none_or(|d| d > now));
                    assert!(last_run[e.priority.level()].is_none_or(|last| last < e.ticket));
                    last_run[e.priority.level()] = Some(e.ticket);
                }
                assert!(batch.entries.is_sorted_by_key(|e| e.priority));
                seen.extend(batch.entries.iter().chain(&batch.dropped).map(|e| e.ticket));
            };
            for step in steps {
                match step {
                    Step::Push { rows, tokens, level, deadline_ms } => {
                        let ticket = u32::try_from(pushed.len()).unwrap();
                        let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
                        let priority = Priority::new(level).unwrap();
                        let entry = Entry { ticket, rows, tokens, priority, queued_at: now, deadline };
                        if batcher.push(entry).is_ok() { pushed.push(ticket) }
                    }
                    Step::Advance(ms) => now += Duration::from_millis(ms),
                    Step::Abandon(index) => if !pushed.is_empty() { abandoned.insert(*index.get(&pushed)); },
                    Step::Take => check(batcher.take(now, |t| abandoned.contains(t)), now, &abandoned),
                }
            }
            while !batcher.is_empty() {
                check(batcher.take(now, |t| abandoned.contains(t)), now, &abandoned);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, pushed);
            prop_assert_eq!((batcher.rows, batcher.tokens), (0, 0));
        }
    }
}
