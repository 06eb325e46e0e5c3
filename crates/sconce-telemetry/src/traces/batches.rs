//! Brings the kept requests of a batch together: its span is made once, and links to all of them that come in time.

use super::observed::{Observed, Target};
use super::otlp::Spans;
use super::spans::{self, Clock, SpanIds};
use sconce_core::ExecutionRecord;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a batch's span waits for requests after its first. They end within moments of each other, but for answers that
/// their callers do not read.
pub(crate) const WAIT: Duration = Duration::from_millis(500);
/// Batches whose spans wait.
const MAX_OPEN: usize = 1024;
/// Links of one span; OpenTelemetry's own bound.
const MAX_LINKS: usize = 128;
/// Batches whose spans were made: a request that comes later must not make another.
const MAX_MADE: usize = 4096;

type Key = (u64, u64);

struct Open {
    target: Arc<Target>,
    record: ExecutionRecord,
    deadline: Option<Instant>,
    requests: Vec<SpanIds>,
    since: Instant,
    seen: usize,
}

#[derive(Default)]
pub(crate) struct Batches {
    open: HashMap<Key, Open>,
    /// Keys of `open`, oldest first; some are made already.
    order: VecDeque<Key>,
    made: HashSet<Key>,
    made_order: VecDeque<Key>,
}

impl Batches {
    /// Adds a kept request, whose execution has this span, to its batch. Writes the span that is to be made for it.
    pub(crate) fn add(
        &mut self,
        observed: &Observed,
        execute: SpanIds,
        now: Instant,
        clock: &Clock,
        spans: &mut Spans,
    ) {
        let (Some(target), Some(record)) = (&observed.target, &observed.record) else { return };
        let key = (target.run, record.batch_id);
        if self.made.contains(&key) {
            return;
        }
        if self.order.len() > 2 * MAX_OPEN {
            // What was made out of turn stands in it still.
            self.order.retain(|key| self.open.contains_key(key));
        }
        let open = self.open.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Open {
                target: Arc::clone(target),
                record: *record,
                deadline: None,
                requests: Vec::new(),
                since: now,
                seen: 0,
            }
        });
        open.seen += 1;
        open.deadline = open.deadline.into_iter().chain(observed.deadline).min();
        if open.requests.len() < MAX_LINKS {
            open.requests.push(execute);
        }
        if open.seen >= open.record.batch_requests {
            self.make(key, clock, spans);
        } else if self.open.len() > MAX_OPEN {
            self.make_oldest(clock, spans);
        }
    }

    /// Writes the spans of batches that have waited long enough at `now`.
    pub(crate) fn due(&mut self, now: Instant, clock: &Clock, spans: &mut Spans) {
        while let Some(key) = self.order.front() {
            match self.open.get(key) {
                Some(open) if now.saturating_duration_since(open.since) < WAIT => break,
                Some(_) => drop(self.make_oldest(clock, spans)),
                None => drop(self.order.pop_front()),
            }
        }
    }

    /// Writes the spans of all that wait.
    pub(crate) fn all(&mut self, clock: &Clock, spans: &mut Spans) {
        while self.make_oldest(clock, spans) {}
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Makes the span of the batch that waits longest; `false` when none does.
    fn make_oldest(&mut self, clock: &Clock, spans: &mut Spans) -> bool {
        while let Some(key) = self.order.pop_front() {
            if self.make(key, clock, spans) {
                return true;
            }
        }
        false
    }

    fn make(&mut self, key: Key, clock: &Clock, spans: &mut Spans) -> bool {
        let Some(Open { target, record, deadline, requests, .. }) = self.open.remove(&key) else {
            return false;
        };
        if self.order.back() == Some(&key) {
            self.order.pop_back();
        }
        self.made.insert(key);
        self.made_order.push_back(key);
        if self.made_order.len() > MAX_MADE
            && let Some(oldest) = self.made_order.pop_front()
        {
            self.made.remove(&oldest);
        }
        spans::of_batch(&target, &record, deadline, &requests, clock, spans);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::tests::{ORIGIN, observed};
    use crate::traces::otlp::tests::read;
    use opentelemetry_proto::tonic::trace::v1::Span;

    struct Check {
        batches: Batches,
        clock: Clock,
    }

    impl Check {
        fn new() -> Self {
            Self { batches: Batches::default(), clock: Clock::now() }
        }

        fn add(&mut self, batch_id: u64, requests: usize, at: Duration) -> Option<Span> {
            let mut observed = observed();
            let record = observed.record.as_mut().unwrap();
            (record.batch_id, record.batch_requests) = (batch_id, requests);
            let mut spans = Spans::default();
            self.batches.add(&observed, (1, 1), *ORIGIN + at, &self.clock, &mut spans);
            read(&spans).pop()
        }

        fn due(&mut self, at: Duration) -> Vec<Span> {
            let mut spans = Spans::default();
            self.batches.due(*ORIGIN + at, &self.clock, &mut spans);
            read(&spans)
        }
    }

    #[test]
    fn a_batch_is_made_once_when_all_are_there_or_its_time_is_up() {
        let mut check = Check::new();
        let start = Duration::ZERO;
        assert!(check.add(1, 2, start).is_none());
        assert_eq!(check.add(1, 2, start).unwrap().links.len(), 2);
        assert!(check.batches.is_empty());

        assert!(check.add(2, 3, start).is_none());
        assert!(check.add(2, 3, start).is_none());
        assert!(check.due(WAIT / 2).is_empty());
        let late = check.due(WAIT);
        assert_eq!((late.len(), late[0].links.len(), late[0].dropped_links_count), (1, 2, 1));
        // The third was late: its own span links to the batch's, which is not made again.
        assert!(check.add(2, 3, WAIT).is_none());
        assert!(check.due(3 * WAIT).is_empty() && check.batches.is_empty());
    }

    #[test]
    fn tables_are_bounded() {
        let mut check = Check::new();
        let made = (0..3 * MAX_OPEN as u64).filter_map(|id| check.add(id, 2, Duration::ZERO)).count();
        assert_eq!(made, 2 * MAX_OPEN);
        assert_eq!(check.batches.open.len(), MAX_OPEN);
        assert!(check.batches.order.len() <= MAX_OPEN + 1);
        for id in 10_000..20_000 {
            assert!(check.add(id, 1, Duration::ZERO).is_some());
        }
        assert_eq!((check.batches.made.len(), check.batches.made_order.len()), (MAX_MADE, MAX_MADE));
        assert!(check.batches.order.len() <= MAX_OPEN + 1);
        let mut rest = Spans::default();
        check.batches.all(&check.clock, &mut rest);
        assert_eq!(rest.count(), MAX_OPEN);
    }

    #[test]
    fn links_are_bounded() {
        let mut check = Check::new();
        let made = (0..1000).filter_map(|_| check.add(1, 1000, Duration::ZERO)).collect::<Vec<_>>();
        assert_eq!((made.len(), made[0].links.len()), (1, MAX_LINKS));
        assert_eq!(made[0].dropped_links_count, 1000 - MAX_LINKS as u32);
    }
}
