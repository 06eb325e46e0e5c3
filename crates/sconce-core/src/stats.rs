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

    fn absorb(&mut self, other: &Self) {
        self.count += other.count;
        self.time += other.time;
    }
}

/// A histogram of durations with fixed bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DurationHistogram {
    counts: [u64; DurationHistogram::BOUNDS_US.len() + 1],
    total: Total,
}

impl DurationHistogram {
    /// Upper bounds of the buckets in microseconds; one more bucket holds what is longer.
    pub const BOUNDS_US: [u64; 18] = [
        50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
        2_000_000, 5_000_000, 10_000_000, 60_000_000,
    ];

    /// Adds one duration.
    pub fn add(&mut self, time: Duration) {
        let bucket = Self::BOUNDS_US.partition_point(|&bound| Duration::from_micros(bound) < time);
        self.counts[bucket] += 1;
        self.total.add(time);
    }

    fn absorb(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total.absorb(&other.total);
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
    /// Tokens of padding executed.
    pub padding_count: u64,
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
    /// Panics that the workers survived.
    pub panics: u64,
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
    }

    /// Counts a request that was answered after `total` without a batch of its own: from what was kept, or by other models.
    /// As other servers of the protocol count, it was in the queue as well, for no time.
    pub fn add_without_batch(&mut self, total: Duration) {
        self.success.add(total);
        self.request_latency.add(total);
        self.queue.add(Duration::ZERO);
    }

    /// Adds what was counted elsewhere for the same model version.
    pub fn absorb(&mut self, other: &Self) {
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
            padding_count,
            execution_count,
            batches,
            close_reasons,
            refusals,
            last_inference,
            request_latency,
            queue_latency,
            panics,
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
        totals.into_iter().for_each(|(total, more)| total.absorb(more));
        for (reason, more) in fail {
            self.fail.entry(*reason).or_default().absorb(more);
        }
        for (rows, more) in batches {
            let size = self.batches.entry(*rows).or_default();
            size.compute_input.absorb(&more.compute_input);
            size.compute_infer.absorb(&more.compute_infer);
            size.compute_output.absorb(&more.compute_output);
        }
        for (reason, more) in close_reasons {
            *self.close_reasons.entry(reason).or_default() += more;
        }
        for (reason, more) in refusals {
            *self.refusals.entry(reason).or_default() += more;
        }
        self.inference_count += inference_count;
        self.token_count += token_count;
        self.padding_count += padding_count;
        self.execution_count += execution_count;
        self.panics += panics;
        self.last_inference = self.last_inference.max(*last_inference);
        self.request_latency.absorb(request_latency);
        self.queue_latency.absorb(queue_latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        sum.absorb(&two);
        assert_eq!((sum.success.count, sum.queue.count, sum.execution_count), (1, 1, 2));
        assert_eq!((sum.queue.time, sum.cache_hit.time), (Duration::ZERO, Duration::from_millis(4)));
        assert_eq!(sum.fail[&FailReason::Other].count, 2);
        assert_eq!((sum.batches[&3].compute_infer.count, sum.request_latency.total().count), (1, 1));
        assert_eq!(sum.last_inference, two.last_inference);
        let mut other_way = two;
        other_way.absorb(&one);
        assert_eq!(sum, other_way);
    }
}
