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
    /// Rows answered.
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
}
