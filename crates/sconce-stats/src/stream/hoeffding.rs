use super::Signal;
use crate::error::{Result, in_range, open_unit};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

fn check(value: f64) -> Result<()> {
    in_range("value", value, (0.0..=1.0).contains(&value), "a number between 0 and 1")
}

/// A mean of so many values.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Mean {
    count: u64,
    mean: f64,
}

impl Mean {
    fn update(&mut self, value: f64) {
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
    }
}

/// Hoeffding's bound on averages: the mean of values in 0..=1 against its most favourable earlier value (Frías-Blanco and others,
/// "Online and non-parametric drift detection methods based on Hoeffding's bounds", 2015; A-test).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HddmA {
    drift_confidence: f64,
    warning_confidence: f64,
    two_sided: bool,
    all: Mean,
    lowest: Mean,
    highest: Mean,
    signal: Signal,
}

impl HddmA {
    /// Nothing seen yet. The usual: confidence 0.001 and 0.005, rises only.
    ///
    /// # Errors
    /// A confidence not strictly between 0 and 1.
    pub fn new(drift_confidence: f64, warning_confidence: f64, two_sided: bool) -> Result<Self> {
        open_unit("drift_confidence", drift_confidence)?;
        open_unit("warning_confidence", warning_confidence)?;
        let none = Mean::default();
        let (all, lowest, highest, signal) = (none, none, none, Signal::default());
        Ok(Self { drift_confidence, warning_confidence, two_sided, all, lowest, highest, signal })
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value outside 0..=1.
    pub fn update(&mut self, value: f64) -> Result<Signal> {
        check(value)?;
        if self.signal.drift {
            (self.all, self.lowest, self.highest) = Default::default();
        }
        self.all.update(value);
        if self.lowest.count == 0 {
            (self.lowest, self.highest) = (self.all, self.all);
        }
        let reach = |mean: Mean| ((1.0 / self.drift_confidence).ln() / (2.0 * mean.count as f64)).sqrt();
        if self.lowest.mean + reach(self.lowest) >= self.all.mean + reach(self.all) {
            self.lowest = self.all;
        }
        if self.highest.mean - reach(self.highest) <= self.all.mean - reach(self.all) {
            self.highest = self.all;
        }
        let rose = |confidence| self.moved(self.lowest, 1.0, confidence);
        let fell = |confidence| self.two_sided && self.moved(self.highest, -1.0, confidence);
        let (drift, warning) = (self.drift_confidence, self.warning_confidence);
        self.signal = Signal {
            drift: rose(drift) || fell(drift),
            warning: (!rose(drift) && rose(warning)) || (!fell(drift) && fell(warning)),
        };
        Ok(self.signal)
    }

    fn moved(&self, from: Mean, direction: f64, confidence: f64) -> bool {
        if from.count == self.all.count {
            return false;
        }
        let (all, before) = (self.all.count as f64, from.count as f64);
        let weight = (all - before) / before * (1.0 / all);
        direction * (self.all.mean - from.mean) >= (weight / 2.0 * (2.0 / confidence).ln()).sqrt()
    }
}

/// An exponentially weighted mean and its independent bounded conditions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Weighted {
    mean: Option<f64>,
    bound: f64,
}

impl Weighted {
    const NONE: Self = Self { mean: None, bound: 1.0 };

    fn update(&mut self, value: f64, lambda: f64) {
        self.mean = Some(self.mean.map_or(value, |mean| lambda * value + (1.0 - lambda) * mean));
        self.bound = lambda * lambda + (1.0 - lambda) * (1.0 - lambda) * self.bound;
    }
}

/// McDiarmid's bound on exponentially weighted averages: as [`HddmA`], quicker to see a sudden change (W-test of the same paper).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HddmW {
    drift_confidence: f64,
    warning_confidence: f64,
    lambda: f64,
    two_sided: bool,
    all: Weighted,
    /// Before and after the cut that is best for a rise, and its bound.
    rise: (Weighted, Weighted, f64),
    fall: (Weighted, Weighted, f64),
    signal: Signal,
}

impl HddmW {
    /// Nothing seen yet. The usual: confidence 0.001 and 0.005, weight 0.05 of the newest, rises only.
    ///
    /// # Errors
    /// A confidence or weight not strictly between 0 and 1.
    pub fn new(drift_confidence: f64, warning_confidence: f64, lambda: f64, two_sided: bool) -> Result<Self> {
        open_unit("drift_confidence", drift_confidence)?;
        open_unit("warning_confidence", warning_confidence)?;
        open_unit("lambda", lambda)?;
        Ok(Self {
            drift_confidence,
            warning_confidence,
            lambda,
            two_sided,
            all: Weighted::NONE,
            rise: (Weighted::NONE, Weighted::NONE, f64::INFINITY),
            fall: (Weighted::NONE, Weighted::NONE, f64::NEG_INFINITY),
            signal: Signal::default(),
        })
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value outside 0..=1.
    pub fn update(&mut self, value: f64) -> Result<Signal> {
        check(value)?;
        if self.signal.drift {
            *self = Self::new(self.drift_confidence, self.warning_confidence, self.lambda, self.two_sided)?;
        }
        self.all.update(value, self.lambda);
        let mean = self.all.mean.unwrap_or(value);
        let reach = mcdiarmid(self.all.bound, self.drift_confidence);
        if mean + reach < self.rise.2 {
            self.rise = (self.all, Weighted::NONE, mean + reach);
        } else {
            self.rise.1.update(value, self.lambda);
        }
        if mean - reach > self.fall.2 {
            self.fall = (self.all, Weighted::NONE, mean - reach);
        } else {
            self.fall.1.update(value, self.lambda);
        }
        let rose = |confidence| differ(self.rise.0, self.rise.1, confidence);
        let fell = |confidence| self.two_sided && differ(self.fall.1, self.fall.0, confidence);
        let (drift, warning) = (self.drift_confidence, self.warning_confidence);
        self.signal = Signal {
            drift: rose(drift) || fell(drift),
            warning: (!rose(drift) && rose(warning)) || (!fell(drift) && fell(warning)),
        };
        Ok(self.signal)
    }
}

fn mcdiarmid(bound: f64, confidence: f64) -> f64 {
    (bound * (1.0 / confidence).ln() / 2.0).sqrt()
}

/// Whether `higher` lies above `lower` by more than chance; never while one is empty.
fn differ(lower: Weighted, higher: Weighted, confidence: f64) -> bool {
    let (Some(low), Some(high)) = (lower.mean, higher.mean) else { return false };
    high - low > mcdiarmid(lower.bound + higher.bound, confidence)
}

/// Fast Hoeffding drift detection method: the share of *correct* predictions in a window against its highest so far (Pesaranghader and
/// Viktor, "Fast Hoeffding drift detection method for evolving data streams", 2016).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fhddm {
    window: usize,
    reach: f64,
    recent: VecDeque<bool>,
    correct: usize,
    highest: f64,
    drifted: bool,
}

impl Fhddm {
    /// Nothing seen yet. The usual: a window of 100 predictions, confidence 1e-6.
    ///
    /// # Errors
    /// A window of 0 or above 100,000; `confidence` not strictly between 0 and 1.
    pub fn new(window: usize, confidence: f64) -> Result<Self> {
        in_range("window", window as f64, (1..=100_000).contains(&window), "a number from 1 to 100,000")?;
        open_unit("confidence", confidence)?;
        let reach = ((1.0 / confidence).ln() / (2.0 * window as f64)).sqrt();
        Ok(Self { window, reach, recent: VecDeque::new(), correct: 0, highest: 0.0, drifted: false })
    }

    /// Takes whether a prediction was *correct*: it alarms when their share falls. Given errors, it would find improvement. There are
    /// no warnings.
    pub fn update(&mut self, correct: bool) -> Signal {
        if self.drifted {
            self.recent.clear();
            (self.correct, self.highest, self.drifted) = (0, 0.0, false);
        }
        self.recent.push_back(correct);
        self.correct += usize::from(correct);
        if self.recent.len() == self.window {
            let share = self.correct as f64 / self.window as f64;
            self.highest = self.highest.max(share);
            self.drifted = self.highest - share > self.reach;
            let oldest = self.recent.pop_front().unwrap_or(false);
            self.correct -= usize::from(oldest);
        }
        Signal { drift: self.drifted, warning: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    fn first(mut update: impl FnMut(f64) -> Signal) -> Option<usize> {
        let mut random = Rng::with_seed(61);
        (0..2_000).find(|at| {
            let rate = if *at < 1_000 { 0.1 } else { 0.6 };
            update(f64::from(u8::from(random.f64() < rate))).drift
        })
    }

    #[test]
    fn a_rise_is_found_and_a_fall_where_it_is_looked_for() {
        let rise = |two_sided| {
            let (mut a, mut w) = (
                HddmA::new(0.001, 0.005, two_sided).unwrap(),
                HddmW::new(0.001, 0.005, 0.05, two_sided).unwrap(),
            );
            [first(|value| a.update(value).unwrap()), first(|value| w.update(value).unwrap())]
        };
        let fall = |two_sided| {
            let (mut a, mut w) = (
                HddmA::new(0.001, 0.005, two_sided).unwrap(),
                HddmW::new(0.001, 0.005, 0.05, two_sided).unwrap(),
            );
            [first(|value| a.update(1.0 - value).unwrap()), first(|value| w.update(1.0 - value).unwrap())]
        };
        let soon = |found: Option<usize>| found.is_some_and(|at| (1_000..1_100).contains(&at));
        assert!(rise(false).into_iter().all(soon) && rise(true).into_iter().all(soon));
        assert!(fall(true).into_iter().all(soon) && fall(false).into_iter().all(|found| !soon(found)));
        let mut window = Fhddm::new(100, 1e-6).unwrap();
        assert!(soon(first(|value| window.update(value == 0.0))));
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(HddmA::new(0.0, 0.005, false).is_err() && HddmW::new(0.001, 0.005, 1.0, false).is_err());
        assert!(HddmA::new(0.001, 0.005, false).unwrap().update(2.0).is_err());
        assert!(HddmW::new(0.001, 0.005, 0.05, false).unwrap().update(f64::NAN).is_err());
        assert!(Fhddm::new(0, 1e-6).is_err() && Fhddm::new(1 << 40, 1e-6).is_err());
    }
}
