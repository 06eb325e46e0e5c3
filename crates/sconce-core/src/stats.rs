use crate::{Error, ErrorCode, ExecutionRecord};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How often something happened, and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Times it happened.
    pub count: u64,
    /// Time in all.
    pub time: Duration,
}

impl Total {
    /// Adds one occurrence.
    pub fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    /// Adds another total.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.time += other.time;
    }
}

/// A histogram of durations with fixed bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DurationHistogram {
    counts: [u64; DurationHistogram::BUCKETS],
    total: Total,
}

impl DurationHistogram {
    /// Upper bounds of the buckets in microseconds; one more bucket holds what is longer.
    pub const BOUNDS_US: [u64; 18] = [
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
        2_000_000, 5_000_000, 10_000_000, 60_000_000,
    ];

    /// How many buckets there are.
    pub const BUCKETS: usize = Self::BOUNDS_US.len() + 1;

    /// The number of the bucket that a duration belongs to.
    pub fn bucket(time: Duration) -> usize {
        Self::BOUNDS_US.partition_point(|&bound| Duration::from_micros(bound) < time)
    }

    /// Adds one duration.
    pub fn add(&mut self, time: Duration) {
        self.counts[Self::bucket(time)] += 1;
        self.total.add(time);
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total.merge(&other.total);
    }

    /// Count and sum of all durations.
    pub fn total(&self) -> Total {
        self.total
    }

    /// `(upper bound in seconds, count in this bucket)`; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = Self::BOUNDS_US.iter().map(|&us| Duration::from_micros(us).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.counts)
    }
}

/// A histogram of sizes with fixed bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SizeHistogram {
    counts: [u64; SizeHistogram::BOUNDS.len() + 1],
    sum: u64,
}

impl SizeHistogram {
    /// Upper bounds of the buckets; one more bucket holds what is larger.
    pub const BOUNDS: [u32; 12] = [0, 1, 4, 16, 64, 128, 256, 512, 1024, 4096, 16_384, 65_536];

    /// Adds one size.
    pub fn add(&mut self, size: usize) {
        let bucket = Self::BOUNDS.partition_point(|&bound| (bound as usize) < size);
        self.counts[bucket] += 1;
        self.sum += size as u64;
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    /// How many sizes there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All sizes together.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// `(upper bound, count in this bucket)`; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        Self::BOUNDS.iter().map(|&bound| f64::from(bound)).chain([f64::INFINITY]).zip(self.counts)
    }
}

/// Why a request of a known model got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailReason {
    /// A bound was reached.
    Rejected,
    /// The deadline passed, or the caller went away.
    Canceled,
    /// The model failed.
    Backend,
    /// The request itself was wrong, or the version was not ready.
    Other,
}

impl FailReason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The reason's label value in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }

    /// The reason behind `error`.
    pub fn of(error: &Error) -> Self {
        match error.code() {
            ErrorCode::ResourceExhausted => Self::Rejected,
            ErrorCode::DeadlineExceeded | ErrorCode::Cancelled => Self::Canceled,
            ErrorCode::Internal => Self::Backend,
            _ => Self::Other,
        }
    }
}

/// Batches of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchSizeStats {
    /// Laying the batch out.
    pub compute_input: Total,
    /// Running it.
    pub compute_infer: Total,
    /// Sorting the outputs out to its requests.
    pub compute_output: Total,
}

/// Counters of one model version since it was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// Answered requests, from the front door to the answer.
    pub success: Total,
    /// Failed requests by reason.
    pub fail: BTreeMap<FailReason, Total>,
    /// Waiting in the queue.
    pub queue: Total,
    /// Preparing the input: decode, tokenize, encode.
    pub compute_input: Total,
    /// In the backend.
    pub compute_infer: Total,
    /// Sorting a batch's outputs out to its requests.
    pub compute_output: Total,
    /// Answers that were kept from an equal request, looked up or waited for.
    pub cache_hit: Total,
    /// Looking up what was not kept, and keeping its answer.
    pub cache_miss: Total,
    /// Rows answered, but for those of [`cache_hit`](Self::cache_hit).
    pub inference_count: u64,
    /// Tokens executed, without padding.
    pub token_count: u64,
    /// Batches run.
    pub execution_count: u64,
    /// Batches by rows. Bounded by the model's maximum batch size.
    pub batches: BTreeMap<usize, BatchSizeStats>,
    /// Batches by the reason they were closed for, by its name.
    pub close_reasons: BTreeMap<&'static str, u64>,
    /// Requests that the scheduler refused or gave up, by the reason's name.
    pub refusals: BTreeMap<&'static str, u64>,
    /// When the last request was answered.
    pub last_inference: Option<SystemTime>,
    /// Requests from the front door to the answer.
    pub request_latency: DurationHistogram,
    /// Requests in the queue.
    pub queue_latency: DurationHistogram,
    /// Preparing requests.
    pub prepare_latency: DurationHistogram,
    /// Requests in the backend.
    pub execute_latency: DurationHistogram,
    /// Tokens of batches, without padding; of batches that have any.
    pub batch_tokens: SizeHistogram,
    /// Tokens of padding, of the same batches.
    pub batch_padding: SizeHistogram,
    /// Batches that stood still for a while, because another model went first.
    pub paused_count: u64,
    /// Panics that the workers survived.
    pub panics: u64,
    /// The batch whose sizes were counted last: its other requests do not count them again.
    pub last_batch: u64,
}

impl ModelStats {
    /// Counts a failed request that took `time`.
    pub fn add_failure(&mut self, reason: FailReason, time: Duration) {
        self.fail.entry(reason).or_default().add(time);
    }

    /// Counts an answered request: its record, its preparation, and all its time since the front door.
    pub fn add_success(&mut self, record: &ExecutionRecord, prepare: Duration, total: Duration) {
        self.success.add(total);
        self.request_latency.add(total);
        self.queue.add(record.queue_time());
        self.queue_latency.add(record.queue_time());
        self.compute_input.add(prepare);
        self.compute_infer.add(record.execute_time());
        self.prepare_latency.add(prepare);
        self.execute_latency.add(record.execute_time());
        // The requests of a batch are counted one after the other, under one lock.
        if record.batch_tokens > 0 && self.last_batch != record.batch_id {
            self.last_batch = record.batch_id;
            self.batch_tokens.add(record.batch_tokens);
            self.batch_padding.add(record.batch_padding);
        }
    }

    /// Counts a request that was answered after `total` without a batch of its own: from what was kept, or by other models.
    /// As other servers of the protocol count, it was in the queue as well, for no time.
    pub fn add_without_batch(&mut self, total: Duration) {
        self.success.add(total);
        self.request_latency.add(total);
        self.queue.add(Duration::ZERO);
    }

    /// Adds what was counted elsewhere for the same model version.
    pub fn merge(&mut self, other: &Self) {
        // Every field by name: a new one cannot be forgotten here.
        let Self {
            success,
            fail,
            queue,
            compute_input,
            compute_infer,
            compute_output,
            cache_hit,
            cache_miss,
            inference_count,
            token_count,
            execution_count,
            batches,
            close_reasons,
            refusals,
            last_inference,
            request_latency,
            queue_latency,
            prepare_latency,
            execute_latency,
            batch_tokens,
            batch_padding,
            paused_count,
            panics,
            last_batch: _,
        } = other;
        let totals = [
            (&mut self.success, success),
            (&mut self.queue, queue),
            (&mut self.compute_input, compute_input),
            (&mut self.compute_infer, compute_infer),
            (&mut self.compute_output, compute_output),
            (&mut self.cache_hit, cache_hit),
            (&mut self.cache_miss, cache_miss),
        ];
        totals.into_iter().for_each(|(total, more)| total.merge(more));
        for (reason, more) in fail {
            self.fail.entry(*reason).or_default().merge(more);
        }
        for (rows, more) in batches {
            let size = self.batches.entry(*rows).or_default();
            size.compute_input.merge(&more.compute_input);
            size.compute_infer.merge(&more.compute_infer);
            size.compute_output.merge(&more.compute_output);
        }
        for (reason, more) in close_reasons {
            *self.close_reasons.entry(reason).or_default() += more;
        }
        for (reason, more) in refusals {
            *self.refusals.entry(reason).or_default() += more;
        }
        self.inference_count += inference_count;
        self.token_count += token_count;
        self.execution_count += execution_count;
        self.paused_count += paused_count;
        self.panics += panics;
        self.last_inference = self.last_inference.max(*last_inference);
        self.request_latency.merge(request_latency);
        self.queue_latency.merge(queue_latency);
        self.prepare_latency.merge(prepare_latency);
        self.execute_latency.merge(execute_latency);
        self.batch_tokens.merge(batch_tokens);
        self.batch_padding.merge(batch_padding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_counted_once_and_versions_add_up() {
        let now = std::time::Instant::now();
        let record = |batch_id, batch_tokens| ExecutionRecord {
            batch_id,
            instance: 0,
            batch_requests: 2,
            batch_rows: 2,
            batch_tokens,
            batch_padding: 5,
            close_reason: crate::CloseReason::Full,
            queued_at: now,
            started_at: now,
            finished_at: now + Duration::from_millis(3),
            paused: Duration::ZERO,
            queue_depth: 2,
        };
        let mut stats = ModelStats::default();
        for record in [record(1, 100), record(1, 100), record(2, 70_000), record(3, 0)] {
            stats.add_success(&record, Duration::from_millis(1), Duration::from_millis(9));
        }
        assert_eq!((stats.batch_tokens.count(), stats.batch_tokens.sum()), (2, 70_100));
        assert_eq!((stats.batch_padding.count(), stats.batch_padding.sum()), (2, 10));
        assert_eq!(stats.batch_tokens.buckets().last(), Some((f64::INFINITY, 1)));
        assert_eq!(stats.execute_latency.total().time, Duration::from_millis(12));
        stats.add_failure(FailReason::Other, Duration::ZERO);
        stats.batches.entry(2).or_default().compute_infer.add(Duration::ZERO);
        let mut both = stats.clone();
        both.merge(&stats);
        assert_eq!((both.success.count, both.prepare_latency.total().count), (8, 8));
        assert_eq!((both.fail[&FailReason::Other].count, both.batches[&2].compute_infer.count), (2, 2));
        assert_eq!((both.batch_tokens.count(), both.batch_padding.sum()), (4, 20));
    }

    #[test]
    fn a_duration_on_a_bound_belongs_under_it() {
        let mut histogram = DurationHistogram::default();
        histogram.add(Duration::from_micros(50));
        histogram.add(Duration::from_micros(51));
        histogram.add(Duration::from_secs(3600));
        let counts: Vec<u64> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!((counts[0], counts[1], counts[18]), (1, 1, 1));
        assert_eq!(histogram.total().count, 3);
    }

    #[test]
    fn what_was_counted_in_two_places_adds_up() {
        let mut one = ModelStats { execution_count: 2, ..ModelStats::default() };
        one.add_failure(FailReason::Other, Duration::from_millis(1));
        one.batches.entry(3).or_default().compute_infer.add(Duration::from_millis(2));
        let mut two = ModelStats { last_inference: Some(SystemTime::UNIX_EPOCH), ..ModelStats::default() };
        two.add_without_batch(Duration::from_millis(5));
        two.add_failure(FailReason::Other, Duration::from_millis(1));
        two.cache_hit.add(Duration::from_millis(4));
        let mut sum = one.clone();
        sum.merge(&two);
        assert_eq!((sum.success.count, sum.queue.count, sum.execution_count), (1, 1, 2));
        assert_eq!((sum.queue.time, sum.cache_hit.time), (Duration::ZERO, Duration::from_millis(4)));
        assert_eq!(sum.fail[&FailReason::Other].count, 2);
        assert_eq!((sum.batches[&3].compute_infer.count, sum.request_latency.total().count), (1, 1));
        assert_eq!(sum.last_inference, two.last_inference);
        let mut other_way = two;
        other_way.merge(&one);
        assert_eq!(sum, other_way);
    }
}
