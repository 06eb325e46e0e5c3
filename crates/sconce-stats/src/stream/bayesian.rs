use super::Signal;
use crate::error::{Result, finite, open_unit, positive};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Run lengths that are kept; what is longer is counted as this long. An update takes as many steps.
const LONGEST: usize = 4_096;

/// Bayesian online change point detection of a normal mean: the distribution of how long ago the stream changed last (Adams and MacKay,
/// "Bayesian online changepoint detection", 2007). It alarms when another run length is likelier than no change at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BayesianOnline {
    hazard: f64,
    prior_mean: f64,
    prior_variance: f64,
    variance: f64,
    min_instances: u64,
    count: u64,
    /// By run length, from 0 up; the last has seen all values.
    runs: Vec<Run>,
    drifted: bool,
}

/// Values since a change this long ago: the log of the joint probability, less a constant, and the posterior of their mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Run {
    log_weight: f64,
    mean: f64,
    precision: f64,
}

impl BayesianOnline {
    /// Nothing seen yet. `hazard` is the chance of a change at a value; the mean has a normal prior, each value the known `variance`;
    /// no alarm before `min_instances` values.
    ///
    /// # Errors
    /// `hazard` not strictly between 0 and 1; a mean that is not finite; a variance that is not above 0.
    pub fn new(
        hazard: f64,
        prior_mean: f64,
        prior_variance: f64,
        variance: f64,
        min_instances: u64,
    ) -> Result<Self> {
        open_unit("hazard", hazard)?;
        finite("prior_mean", &[prior_mean])?;
        positive("prior_variance", prior_variance)?;
        positive("variance", variance)?;
        let mut detector = Self {
            hazard,
            prior_mean,
            prior_variance,
            variance,
            min_instances,
            count: 0,
            runs: Vec::new(),
            drifted: false,
        };
        detector.restart();
        Ok(detector)
    }

    /// Takes a value. There are no warnings.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<Signal> {
        finite("value", &[value])?;
        if self.drifted {
            self.restart();
        }
        self.count += 1;
        for run in &mut self.runs {
            let variance = 1.0 / run.precision + self.variance;
            let off = value - run.mean;
            run.log_weight += -0.5 * (off * off / variance + (2.0 * PI * variance).ln());
            let precision = run.precision + 1.0 / self.variance;
            run.mean = (run.mean * run.precision + value / self.variance) / precision;
            run.precision = precision;
        }
        let total = log_sum(self.runs.iter().map(|run| run.log_weight));
        let stays = (1.0 - self.hazard).ln();
        self.runs.iter_mut().for_each(|run| run.log_weight += stays);
        self.runs.insert(0, Run { log_weight: total + self.hazard.ln(), ..self.fresh() });
        if self.runs.len() > LONGEST + 1 {
            self.join_longest();
        }
        let mut likeliest = 0;
        for (at, run) in self.runs.iter().enumerate() {
            if run.log_weight > self.runs[likeliest].log_weight {
                likeliest = at;
            }
        }
        // Only differences matter: keep the weights where floats are fine.
        let highest = self.runs[likeliest].log_weight;
        if highest.is_finite() {
            self.runs.iter_mut().for_each(|run| run.log_weight -= highest);
        }
        self.drifted = self.count >= self.min_instances && likeliest + 1 != self.runs.len();
        Ok(Signal { drift: self.drifted, warning: false })
    }

    fn restart(&mut self) {
        self.count = 0;
        self.runs.clear();
        self.runs.push(self.fresh());
        self.drifted = false;
    }

    fn fresh(&self) -> Run {
        Run { log_weight: 0.0, mean: self.prior_mean, precision: 1.0 / self.prior_variance }
    }

    fn join_longest(&mut self) {
        let Some(longest) = self.runs.pop() else { return };
        if let Some(last) = self.runs.last_mut() {
            let log_weight = log_sum([last.log_weight, longest.log_weight].into_iter());
            *last = Run { log_weight, ..longest };
        }
    }
}

fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let highest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if highest == f64::NEG_INFINITY {
        return highest;
    }
    highest + logs.map(|log| (log - highest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn a_shift_of_the_mean_is_found_soon_after_it() {
        let mut random = Rng::with_seed(67);
        let mut normal = move || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let mut detector = BayesianOnline::new(0.01, 0.0, 1.0, 1.0, 30).unwrap();
        let found =
            (0..400).find(|at| detector.update(normal() + if *at < 200 { 0.0 } else { 3.0 }).unwrap().drift);
        assert!(found.is_some_and(|at| (200..215).contains(&at)), "{found:?}");
    }

    #[test]
    fn memory_is_bounded_and_wrong_input_refused() {
        let mut detector = BayesianOnline::new(1e-9, 0.0, 1.0, 1.0, 30).unwrap();
        for _ in 0..LONGEST + 500 {
            detector.update(0.0).unwrap();
        }
        assert_eq!(detector.runs.len(), LONGEST + 1);
        assert!(
            detector.update(f64::NAN).is_err()
                && detector.update(1e200).is_ok()
                && detector.update(0.0).is_ok()
        );
        assert!(BayesianOnline::new(1.0, 0.0, 1.0, 1.0, 30).is_err());
        assert!(BayesianOnline::new(0.1, 0.0, 0.0, 1.0, 30).is_err());
    }
}
