use crate::error::{Result, in_range};
use serde::{Deserialize, Serialize};

/// How many of some trials had the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    /// Trials with the event.
    pub events: u64,
    /// All trials.
    pub trials: u64,
}

impl Trials {
    /// The share of trials with the event; NaN without trials.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.trials as f64
    }

    /// Refuses more events than trials.
    pub(crate) fn check(&self, name: &'static str) -> Result<()> {
        in_range(name, self.events as f64, self.events <= self.trials, "at most as many events as trials")
    }

    /// Refuses that, and no trials.
    pub(crate) fn check_some(&self, name: &'static str) -> Result<()> {
        in_range(name, self.trials as f64, self.trials > 0, "at least one trial")?;
        self.check(name)
    }

    /// Events, misses and trials as numbers.
    pub(crate) fn parts(&self) -> (f64, f64, f64) {
        (self.events as f64, (self.trials - self.events) as f64, self.trials as f64)
    }
}
