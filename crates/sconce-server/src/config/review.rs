use serde::Deserialize;
use std::time::Duration;

/// The queue of predictions that models' `[review]` leaves to people. Only with a data folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Review {
    /// Predictions of one model that wait. One more is refused. Default 10,000, 1 to 1,000,000.
    pub max_items: usize,
    /// Bytes of all that wait, with what is kept of their content. Default 256 MiB, minimum 1 MiB.
    pub max_bytes: u64,
    /// Hours that one waits; then it leaves unanswered. Default 168, 1 to 8760.
    pub expire_hours: u64,
}

impl Default for Review {
    fn default() -> Self {
        Self { max_items: 10_000, max_bytes: 256 << 20, expire_hours: 168 }
    }
}

impl Review {
    pub(crate) fn time_to_live(&self) -> Duration {
        Duration::from_secs(self.expire_hours * 3600)
    }

    /// Calls `check` with each condition, and what is wrong where it does not hold.
    pub(super) fn check(&self, check: &mut impl FnMut(bool, String)) {
        let Self { max_items, max_bytes, expire_hours } = self;
        let items = (1..=1_000_000).contains(max_items);
        check(items, format!("review.max_items: expected 1 to 1000000, got {max_items}"));
        let bytes = (1 << 20..=1 << 40).contains(max_bytes);
        check(bytes, format!("review.max_bytes: expected 1048576 to 1099511627776, got {max_bytes}"));
        let hours = (1..=8760).contains(expire_hours);
        check(hours, format!("review.expire_hours: expected 1 to 8760, got {expire_hours}"));
    }
}
