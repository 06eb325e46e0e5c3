use sconce_registry::{Journal, Topic, TopicLimits};
use serde::Deserialize;
use std::time::Duration;

/// What is noted of predictions, for feedback to be joined with, and how long both stay. Only with a data folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feedback {
    /// The share of the predictions that is noted, 0 to 1, of models that say nothing themselves. Default 0; where a route has several
    /// variants answer, all are.
    pub sample: f64,
    /// Days that exposures and feedback stay. Default 30, 1 to 3650.
    pub retain_days: u64,
    /// Bytes of each of both; the oldest make room. Default 256 MiB, minimum 1 MiB.
    pub max_bytes: u64,
}

impl Default for Feedback {
    fn default() -> Self {
        Self { sample: 0.0, retain_days: 30, max_bytes: 256 << 20 }
    }
}

impl Feedback {
    /// Sets the bounds of a journal.
    pub(crate) fn apply(&self, journal: &Journal) {
        let time_to_live = Duration::from_secs(self.retain_days * 86_400);
        let limits = TopicLimits { time_to_live, max_bytes: self.max_bytes };
        for topic in [Topic::Exposures, Topic::Feedback] {
            journal.set_limits(topic, limits);
        }
    }

    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        let Self { sample, retain_days, max_bytes } = self;
        let share = (0.0..=1.0).contains(sample);
        check(share, format!("feedback.sample: expected 0 to 1, got {sample}"));
        let days = (1..=3650).contains(retain_days);
        check(days, format!("feedback.retain_days: expected 1 to 3650, got {retain_days}"));
        let bytes = (1 << 20..=1 << 40).contains(max_bytes);
        check(bytes, format!("feedback.max_bytes: expected 1048576 to 1099511627776, got {max_bytes}"));
    }
}
