use super::Signal;
use crate::error::{Result, in_range, open_unit, positive};
use crate::special::normal_sf;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The running share of errors.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Rate {
    count: u64,
    mean: f64,
}

impl Rate {
    fn update(&mut self, error: bool) {
        self.count += 1;
        self.mean += (f64::from(u8::from(error)) - self.mean) / self.count as f64;
    }

    /// The standard deviation of the share.
    fn deviation(&self) -> f64 {
        (self.mean * (1.0 - self.mean) / self.count as f64).max(0.0).sqrt()
    }
}

/// The lowest share of errors so far and its deviation, by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Lowest {
    rate: f64,
    deviation: f64,
}

impl Lowest {
    fn exceeded(&self, now: f64, level: f64) -> bool {
        now > self.rate + level * self.deviation
    }
}

fn check_levels(warning: f64, drift: f64) -> Result<()> {
    positive("warning_level", warning)?;
    positive("drift_level", drift)
}

/// Drift detection method: the share of errors against its lowest value so far, in its standard deviations (Gama, Medas, Castillo
/// and Rodrigues, "Learning with drift detection", 2004).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ddm {
    warm_start: u64,
    warning_level: f64,
    drift_level: f64,
    rate: Rate,
    lowest: Option<Lowest>,
    signal: Signal,
}

impl Ddm {
    /// Nothing seen yet. The usual: 30 predictions to warm up, levels 2 and 3.
    ///
    /// # Errors
    /// A level that is not above 0.
    pub fn new(warm_start: u64, warning_level: f64, drift_level: f64) -> Result<Self> {
        check_levels(warning_level, drift_level)?;
        let (rate, signal) = (Rate::default(), Signal::default());
        Ok(Self { warm_start, warning_level, drift_level, rate, lowest: None, signal })
    }

    /// Takes whether a prediction was wrong.
    pub fn update(&mut self, error: bool) -> Signal {
        if self.signal.drift {
            (self.rate, self.lowest, self.signal) = (Rate::default(), None, Signal::default());
        }
        self.rate.update(error);
        if self.rate.count > self.warm_start {
            let deviation = self.rate.deviation();
            let now = self.rate.mean + deviation;
            let lowest = match self.lowest {
                Some(lowest) if now > lowest.rate + lowest.deviation => lowest,
                _ => Lowest { rate: self.rate.mean, deviation },
            };
            self.lowest = Some(lowest);
            let drift = lowest.exceeded(now, self.drift_level);
            self.signal = Signal { drift, warning: !drift && lowest.exceeded(now, self.warning_level) };
        }
        self.signal
    }
}

/// Early drift detection method: the distance between errors against its longest so far (Baena-García and others, "Early drift
/// detection method", 2006). Known to raise many false alarms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Eddm {
    warm_start: u64,
    alpha: f64,
    beta: f64,
    count: u64,
    last_error: u64,
    errors: u64,
    mean: f64,
    squares: f64,
    longest: f64,
    signal: Signal,
}

impl Eddm {
    /// Nothing seen yet. The usual: 30 to warm up (predictions and errors), warning at the share 0.95 of the longest distance,
    /// drift at 0.9.
    ///
    /// # Errors
    /// Shares that are not `0 < beta <= alpha`.
    pub fn new(warm_start: u64, alpha: f64, beta: f64) -> Result<Self> {
        positive("beta", beta)?;
        in_range("alpha", alpha, alpha >= beta && alpha.is_finite(), "a finite number of at least beta")?;
        let signal = Signal::default();
        let (count, last_error, errors) = (0, 0, 0);
        Ok(Self {
            warm_start,
            alpha,
            beta,
            count,
            last_error,
            errors,
            mean: 0.0,
            squares: 0.0,
            longest: -1.0,
            signal,
        })
    }

    /// Takes whether a prediction was wrong. A warning stands until the next error.
    pub fn update(&mut self, error: bool) -> Signal {
        if self.signal.drift {
            (self.count, self.last_error, self.errors) = (0, 0, 0);
            (self.mean, self.squares, self.longest, self.signal) = (0.0, 0.0, -1.0, Signal::default());
        }
        self.count += 1;
        if !error {
            return self.signal;
        }
        self.errors += 1;
        let errors = self.errors as f64;
        let distance = (self.count - self.last_error) as f64;
        let off = distance - self.mean;
        self.mean += off / errors;
        self.squares += off * (distance - self.mean);
        if self.count > self.warm_start {
            let variance = if self.errors > 1 { self.squares / (errors - 1.0) } else { 0.0 };
            let now = self.mean + 2.0 * variance.max(0.0).sqrt();
            if now > self.longest {
                self.longest = now;
            } else if self.errors > self.warm_start {
                let share = now / self.longest;
                if share < self.beta {
                    self.signal.drift = true;
                } else {
                    self.signal.warning = share < self.alpha;
                }
            }
        }
        self.last_error = self.count;
        self.signal
    }
}

/// Reactive drift detection method: [`Ddm`] that gives up on a warning that lasts too long, and on a concept that has (Barros,
/// Cabral, Gonçalves and Santos, "RDDM: reactive drift detection method", 2017), with its usual settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rddm {
    rate: Rate,
    lowest: Option<Lowest>,
    warnings: u32,
    /// The newest predictions, of which a concept that got too old is made anew.
    recent: VecDeque<bool>,
    signal: Signal,
}

impl Rddm {
    const WARNING_LEVEL: f64 = 1.773;
    const DRIFT_LEVEL: f64 = 2.258;
    const MIN_INSTANCES: u64 = 129;
    const MAX_CONCEPT: u64 = 40_000;
    const MIN_CONCEPT: usize = 7_000;
    const MAX_WARNINGS: u32 = 1_400;

    /// Nothing seen yet.
    pub fn new() -> Self {
        let signal = Signal::default();
        Self { rate: Rate::default(), lowest: None, warnings: 0, recent: VecDeque::new(), signal }
    }

    /// Takes whether a prediction was wrong.
    pub fn update(&mut self, error: bool) -> Signal {
        if self.signal.drift {
            *self = Self::new();
        }
        if self.recent.len() == Self::MIN_CONCEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(error);
        self.rate.update(error);
        if self.rate.count < Self::MIN_INSTANCES {
            self.signal = Signal::default();
            return self.signal;
        }
        let deviation = self.rate.deviation();
        let now = self.rate.mean + deviation;
        let lowest = match self.lowest {
            Some(lowest) if now >= lowest.rate + lowest.deviation => lowest,
            _ => Lowest { rate: self.rate.mean, deviation },
        };
        self.lowest = Some(lowest);
        let warning = lowest.exceeded(now, Self::WARNING_LEVEL);
        let drift =
            lowest.exceeded(now, Self::DRIFT_LEVEL) || (warning && self.warnings >= Self::MAX_WARNINGS);
        self.warnings = if warning { self.warnings + 1 } else { 0 };
        self.signal = Signal { drift, warning: warning && !drift };
        if self.rate.count >= Self::MAX_CONCEPT && !warning {
            self.shrink();
        }
        self.signal
    }

    /// Starts the concept anew from its newest predictions.
    fn shrink(&mut self) {
        (self.rate, self.lowest) = (Rate::default(), None);
        for error in &self.recent {
            self.rate.update(*error);
        }
    }
}

impl Default for Rddm {
    fn default() -> Self {
        Self::new()
    }
}

/// EWMA for concept drift detection: an exponentially weighted share of errors against the running share, with control limits for a
/// false alarm about every 400 predictions (Ross, Adams, Tasoulis and Hand, "Exponentially weighted moving average charts for
/// detecting concept drift", 2012).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ecdd {
    lambda: f64,
    warning_share: f64,
    min_instances: u64,
    rate: Rate,
    average: f64,
    signal: Signal,
}

impl Ecdd {
    /// Nothing seen yet. The usual: weight 0.2 of the newest, warnings at half the control limit, nothing before 30 predictions.
    ///
    /// # Errors
    /// `lambda` or `warning_share` not strictly between 0 and 1.
    pub fn new(lambda: f64, warning_share: f64, min_instances: u64) -> Result<Self> {
        open_unit("lambda", lambda)?;
        open_unit("warning_share", warning_share)?;
        let (rate, signal) = (Rate::default(), Signal::default());
        Ok(Self { lambda, warning_share, min_instances, rate, average: 0.0, signal })
    }

    /// Takes whether a prediction was wrong.
    pub fn update(&mut self, error: bool) -> Signal {
        if self.signal.drift {
            (self.rate, self.average) = (Rate::default(), 0.0);
        }
        self.rate.update(error);
        self.average = self.lambda * f64::from(u8::from(error)) + (1.0 - self.lambda) * self.average;
        self.signal = Signal::default();
        if self.rate.count >= self.min_instances {
            let p = self.rate.mean;
            let fading = (1.0 - self.lambda).powf(2.0 * self.rate.count as f64);
            let deviation =
                (self.lambda / (2.0 - self.lambda) * (1.0 - fading) * (p * (1.0 - p))).max(0.0).sqrt();
            // The limit's fit to simulated run lengths of 400, from the paper.
            let limit = 3.97 - 6.56 * p + 48.73 * p.powi(3) - 330.13 * p.powi(5) + 848.18 * p.powi(7);
            let above = |share: f64| self.average > p + share * limit * deviation;
            self.signal.drift = above(1.0);
            self.signal.warning = !self.signal.drift && above(self.warning_share);
        }
        self.signal
    }
}

/// Statistical test of equal proportions: the share of correct predictions in a recent window against all before it (Nishida and
/// Yamauchi, "Detecting concept drift using statistical testing", 2007).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stepd {
    window: usize,
    alpha_drift: f64,
    alpha_warning: f64,
    count: u64,
    correct: u64,
    recent: VecDeque<bool>,
    signal: Signal,
}

impl Stepd {
    /// Nothing seen yet. The usual: a window of 30 predictions, levels 0.003 and 0.05.
    ///
    /// # Errors
    /// A window of 0 or above 100,000; levels not strictly between 0 and 1.
    pub fn new(window: usize, alpha_drift: f64, alpha_warning: f64) -> Result<Self> {
        in_range("window", window as f64, (1..=100_000).contains(&window), "a number from 1 to 100,000")?;
        open_unit("alpha_drift", alpha_drift)?;
        open_unit("alpha_warning", alpha_warning)?;
        let (recent, signal) = (VecDeque::new(), Signal::default());
        Ok(Self { window, alpha_drift, alpha_warning, count: 0, correct: 0, recent, signal })
    }

    /// Takes whether a prediction was *correct*.
    pub fn update(&mut self, correct: bool) -> Signal {
        if self.signal.drift {
            (self.count, self.correct) = (0, 0);
            self.recent.clear();
        }
        self.count += 1;
        self.correct += u64::from(correct);
        if self.recent.len() == self.window {
            self.recent.pop_front();
        }
        self.recent.push_back(correct);
        self.signal = Signal::default();
        if self.count >= 2 * self.window as u64 {
            let p_value = normal_sf(self.statistic().abs());
            self.signal.drift = p_value < self.alpha_drift;
            self.signal.warning = !self.signal.drift && p_value < self.alpha_warning;
        }
        self.signal
    }

    /// z with the correction for continuity; 0 while all predictions are alike.
    fn statistic(&self) -> f64 {
        let recent = self.recent.len() as f64;
        let older = self.count as f64 - recent;
        let correct_recent = self.recent.iter().filter(|correct| **correct).count() as f64;
        let correct_older = self.correct as f64 - correct_recent;
        let p = self.correct as f64 / self.count as f64;
        if p == 0.0 || p == 1.0 {
            return 0.0;
        }
        let inverse = 1.0 / older + 1.0 / recent;
        let difference = (correct_older / older - correct_recent / recent).abs();
        (difference - 0.5 * inverse) / (p * (1.0 - p) * inverse).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// Whether there is an alarm within 100 predictions after their share of errors has jumped.
    fn is_found(mut update: impl FnMut(bool) -> Signal) -> bool {
        let mut random = Rng::with_seed(59);
        let alarms =
            (0..1_100).filter(|at| update(random.f64() < if *at < 1_000 { 0.05 } else { 0.5 }).drift);
        alarms.last().is_some_and(|at| at >= 1_000)
    }

    #[test]
    fn a_jump_of_the_error_rate_is_found_soon_after_it() {
        let mut ddm = Ddm::new(30, 2.0, 3.0).unwrap();
        let mut eddm = Eddm::new(30, 0.95, 0.9).unwrap();
        let mut rddm = Rddm::new();
        let mut ecdd = Ecdd::new(0.2, 0.5, 30).unwrap();
        let mut stepd = Stepd::new(30, 0.003, 0.05).unwrap();
        assert!(is_found(|error| ddm.update(error)));
        assert!(is_found(|error| eddm.update(error)));
        assert!(is_found(|error| rddm.update(error)));
        assert!(is_found(|error| ecdd.update(error)));
        assert!(is_found(|error| stepd.update(!error)));
    }

    #[test]
    fn streams_without_or_of_errors_only_raise_nothing() {
        for error in [false, true] {
            let mut ddm = Ddm::new(30, 2.0, 3.0).unwrap();
            let mut eddm = Eddm::new(30, 0.95, 0.9).unwrap();
            let mut ecdd = Ecdd::new(0.2, 0.5, 30).unwrap();
            let mut stepd = Stepd::new(30, 0.003, 0.05).unwrap();
            let mut rddm = Rddm::new();
            for _ in 0..500 {
                let signals = [
                    ddm.update(error),
                    eddm.update(error),
                    ecdd.update(error),
                    stepd.update(error),
                    rddm.update(error),
                ];
                assert!(signals.iter().all(|signal| !signal.drift), "{error} {signals:?}");
            }
        }
    }

    #[test]
    fn an_old_concept_is_made_anew_and_memory_stays_bounded() {
        let mut rddm = Rddm::new();
        for at in 0..100_000 {
            rddm.update(at % 10 == 0);
        }
        assert!(rddm.recent.len() == Rddm::MIN_CONCEPT && rddm.rate.count < Rddm::MAX_CONCEPT);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Ddm::new(30, 0.0, 3.0).is_err() && Eddm::new(30, 0.8, 0.9).is_err());
        assert!(Ecdd::new(1.0, 0.5, 30).is_err() && Stepd::new(0, 0.003, 0.05).is_err());
    }
}
