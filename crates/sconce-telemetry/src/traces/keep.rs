//! Which requests become spans. Decided after the answer, when it is known what became of them.

use super::{Observed, RequestTrace};
use sconce_core::ErrorCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Why a request's spans are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The caller keeps its trace.
    Parent,
    /// It is one of the share that is kept anyway.
    Ratio,
    /// It failed.
    Error,
    /// Its deadline passed.
    Deadline,
    /// It took long.
    Slow,
}

impl Reason {
    /// The name in spans and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::Ratio => "ratio",
            Self::Error => "error",
            Self::Deadline => "deadline",
            Self::Slow => "slow",
        }
    }
}

/// The rule. What changes at run time is read without a lock.
#[derive(Debug)]
pub(crate) struct Keep {
    enabled: AtomicBool,
    /// The ratio's bits.
    ratio: AtomicU64,
    slow: Duration,
}

impl Keep {
    pub(crate) fn new(enabled: bool, ratio: f64, slow: Duration) -> Self {
        Self { enabled: AtomicBool::new(enabled), ratio: AtomicU64::new(ratio.to_bits()), slow }
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    pub(crate) fn ratio(&self) -> f64 {
        f64::from_bits(self.ratio.load(Ordering::Relaxed))
    }

    pub(crate) fn set_ratio(&self, ratio: f64) {
        self.ratio.store(ratio.to_bits(), Ordering::Relaxed);
    }

    /// What is known before the answer: the caller's word, and without it the ratio. A caller that decided against its trace is
    /// taken at its word; a share of all requests would else be traces without a beginning.
    pub(crate) fn at_the_door(&self, trace: &RequestTrace) -> Option<Reason> {
        match trace.sampled {
            Some(true) => Some(Reason::Parent),
            Some(false) => None,
            None => within(trace.trace_id, self.ratio()).then_some(Reason::Ratio),
        }
    }

    /// Whether to keep an answered request, and why.
    pub(crate) fn decide(&self, observed: &Observed) -> Option<Reason> {
        if let Some(reason) = self.at_the_door(&observed.trace) {
            return Some(reason);
        }
        let late = observed.deadline.is_some_and(|deadline| observed.ended_at > deadline);
        match observed.code {
            Some(ErrorCode::DeadlineExceeded) => Some(Reason::Deadline),
            Some(_) => Some(Reason::Error),
            None if late => Some(Reason::Deadline),
            None => (observed.time() >= self.slow).then_some(Reason::Slow),
        }
    }
}

/// Whether a trace is in the share of `ratio`: by its id, so that everybody who asks gets the same answer. The rule is that of
/// OpenTelemetry's `TraceIdRatioBased`.
fn within(trace_id: u128, ratio: f64) -> bool {
    const RANGE: f64 = (1u64 << 63) as f64;
    let low = trace_id as u64 >> 1;
    // As a float the largest ids are as large as the range.
    ratio >= 1.0 || (low as f64) < ratio * RANGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::tests::observed;
    use std::time::Instant;

    const SLOW: Duration = Duration::from_secs(1);

    fn with(ratio: f64, change: impl FnOnce(&mut Observed)) -> Option<Reason> {
        let mut observed = observed();
        change(&mut observed);
        Keep::new(true, ratio, SLOW).decide(&observed)
    }

    #[test]
    fn each_reason_keeps() {
        assert_eq!(with(0.0, |_| {}), None);
        assert_eq!(with(1.0, |_| {}), Some(Reason::Ratio));
        assert_eq!(with(0.0, |o| o.trace.sampled = Some(true)), Some(Reason::Parent));
        assert_eq!(with(0.0, |o| o.code = Some(ErrorCode::Internal)), Some(Reason::Error));
        assert_eq!(with(0.0, |o| o.code = Some(ErrorCode::DeadlineExceeded)), Some(Reason::Deadline));
        assert_eq!(with(0.0, |o| o.deadline = Some(o.arrived_at)), Some(Reason::Deadline));
        assert_eq!(with(0.0, |o| o.ended_at = o.arrived_at + SLOW), Some(Reason::Slow));
        assert_eq!(with(0.0, |o| o.ended_at = o.arrived_at + SLOW - Duration::from_nanos(1)), None);
    }

    #[test]
    fn a_caller_that_decided_against_it_is_taken_at_its_word_until_something_goes_wrong() {
        assert_eq!(with(1.0, |o| o.trace.sampled = Some(false)), None);
        let failed = |o: &mut Observed| {
            o.trace.sampled = Some(false);
            o.code = Some(ErrorCode::Internal);
        };
        assert_eq!(with(1.0, failed), Some(Reason::Error));
    }

    #[test]
    fn the_ratio_is_a_share_of_ids_and_the_same_for_everybody() {
        let mut random = fastrand::Rng::with_seed(7);
        let ids: Vec<u128> = (0..100_000).map(|_| random.u128(1..)).collect();
        for ratio in [0.0, 0.01, 0.3, 1.0] {
            let kept = ids.iter().filter(|id| within(**id, ratio)).count() as f64 / ids.len() as f64;
            assert!((kept - ratio).abs() < 0.005, "{ratio}: {kept}");
        }
        // A larger share holds every smaller one.
        assert!(ids.iter().all(|id| !within(*id, 0.01) || within(*id, 0.3)));
        assert!(within(u128::MAX, 1.0) && !within(1, 0.0));
    }

    #[test]
    fn settings_change_at_run_time() {
        let keep = Keep::new(true, 0.0, SLOW);
        let mut observed = observed();
        assert_eq!(keep.decide(&observed), None);
        keep.set_ratio(1.0);
        assert_eq!(keep.decide(&observed), Some(Reason::Ratio));
        observed.arrived_at = Instant::now();
        keep.enable(false);
        assert!(!keep.enabled());
    }
}
