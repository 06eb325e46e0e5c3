use crate::error::{MonitorError, Result};
use crate::estimate::{Baseline, BinaryMetrics, Estimate};
use crate::verdict::{State, Verdict};
use sconce_stats::performance::DECISION_THRESHOLD;
use sconce_stats::proportion::{DifferenceMethod, difference_interval};
use sconce_stats::sequential::{EDetector, SameCells};
use sconce_stats::{Interval, Trials};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Cohorts that are kept.
pub const MAX_COHORTS: usize = 64;
/// Scores and labels of a cohort that are kept, for what counts cannot tell.
const MAX_KEPT: usize = 8_192;
/// Standard errors of the baseline by which its rate of errors is widened.
const MARGIN: f64 = 3.0;

/// How performance is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerformanceSpec {
    /// How long predictions are gathered into one cohort, in milliseconds. Default a day.
    pub cohort_ms: u64,
    /// How long after its end a cohort's labels may come: before, those that are there may be the easy ones. Default a day.
    pub maturity_ms: u64,
    /// Labels before anything is said of a cohort. Default 100.
    pub minimum_labels: u64,
    /// The least drop of accuracy that matters. Default 0.02.
    pub minimum_drop: f64,
}

impl Default for PerformanceSpec {
    fn default() -> Self {
        Self { cohort_ms: 86_400_000, maturity_ms: 86_400_000, minimum_labels: 100, minimum_drop: 0.02 }
    }
}

/// Performance of a model of two classes, with labels that come late and partly, and estimated where they have not come.
///
/// Predictions are gathered in *cohorts* by when they were made. What is said of a cohort comes with its coverage, the share of its
/// predictions whose labels came; whether it has degraded is asked of mature ones only. Beside them a detector of errors
/// takes label after label, for a fall that is sudden.
#[derive(Debug, Clone)]
pub struct Performance {
    spec: PerformanceSpec,
    baseline: Baseline,
    /// The oldest first.
    cohorts: VecDeque<Cohort>,
    errors: EDetector,
    /// When the detector found a rise of errors, the latest.
    alarm_ms: Option<u64>,
    level: f64,
}

#[derive(Debug, Clone)]
struct Cohort {
    since_ms: u64,
    predicted: u64,
    labelled: u64,
    right: u64,
    /// Of predictions: what an estimate is made from.
    scores: Vec<f64>,
    kept: (Vec<bool>, Vec<f64>),
}

/// What is said of a cohort.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CohortReport {
    /// When it began, in milliseconds since 1970.
    pub since_ms: u64,
    /// Its predictions.
    pub predicted: u64,
    /// Those with a label.
    pub labelled: u64,
    /// Their share.
    pub coverage: f64,
    /// Whether its labels have had time to come.
    pub is_mature: bool,
    /// `Drifted` is degraded; never before it is mature and has labels enough.
    pub state: State,
    /// The accuracy of all labelled predictions less the baseline's, and its 95 % interval; `None` without labels enough.
    pub difference: Option<(f64, Interval)>,
    /// By labels, of the first 8,192 that came.
    pub metrics: Option<BinaryMetrics>,
    /// Without them, of the first 8,192 predictions.
    pub estimate: Option<Estimate>,
}

/// What is said of a model's performance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerformanceReport {
    /// The latest mature cohort's with labels enough.
    pub state: State,
    /// What it is held against.
    pub baseline: BinaryMetrics,
    /// By cohort, the oldest first.
    pub cohorts: Vec<CohortReport>,
    /// When errors were found to have risen, the latest time.
    pub alarm_ms: Option<u64>,
}

impl Performance {
    /// Nothing predicted yet. `level` is how often the detector of errors may be wrong: once in `1 / level` labels.
    ///
    /// # Errors
    /// A specification or a level out of its range.
    pub fn new(baseline: Baseline, spec: PerformanceSpec, level: f64) -> Result<Self> {
        if spec.cohort_ms == 0 {
            return Err(MonitorError::unfit("cohort_ms", "at least 1", spec.cohort_ms));
        }
        for (what, value) in [("minimum_drop", spec.minimum_drop), ("level", level)] {
            if !(value > 0.0 && value < 1.0) {
                return Err(MonitorError::unfit(what, "a number between 0 and 1, neither included", value));
            }
        }
        let known = baseline.metrics.count as f64;
        let rate = 1.0 - baseline.metrics.accuracy;
        // What the baseline leaves open is no rise; one that never erred may have been lucky.
        let rate = rate.max(0.5 / known) + MARGIN * (rate * (1.0 - rate) / known).sqrt();
        let errors = EDetector::above(rate.clamp(1e-6, 0.999))?;
        Ok(Self { spec, baseline, cohorts: VecDeque::new(), errors, alarm_ms: None, level })
    }

    /// Takes a prediction that was made at `at_ms`. Those older than every cohort that is kept are not taken.
    ///
    /// # Errors
    /// A score not in 0..=1.
    pub fn predict(&mut self, score: f64, at_ms: u64) -> Result<()> {
        check(score)?;
        if let Some(cohort) = self.cohort(at_ms) {
            cohort.predicted += 1;
            if cohort.scores.len() < MAX_KEPT {
                cohort.scores.push(score);
            }
        }
        Ok(())
    }

    /// Takes the label of a prediction that was made at `at_ms` with this score; it came at `now_ms`.
    ///
    /// # Errors
    /// A score not in 0..=1.
    pub fn label(&mut self, label: bool, score: f64, at_ms: u64, now_ms: u64) -> Result<()> {
        check(score)?;
        let is_right = label == (score >= DECISION_THRESHOLD);
        self.errors.update(f64::from(u8::from(!is_right)))?;
        if self.errors.alarms(self.level) {
            self.errors.reset();
            self.alarm_ms = Some(now_ms);
        }
        if let Some(cohort) = self.cohort(at_ms) {
            cohort.labelled += 1;
            cohort.right += u64::from(is_right);
            if cohort.kept.0.len() < MAX_KEPT {
                cohort.kept.0.push(label);
                cohort.kept.1.push(score);
            }
        }
        Ok(())
    }

    /// The cohort of a time; made if it is later than the last.
    fn cohort(&mut self, at_ms: u64) -> Option<&mut Cohort> {
        let since_ms = at_ms - at_ms % self.spec.cohort_ms;
        let place = self.cohorts.partition_point(|cohort| cohort.since_ms < since_ms);
        if self.cohorts.get(place).is_none_or(|cohort| cohort.since_ms != since_ms) {
            let is_full = self.cohorts.len() == MAX_COHORTS;
            if is_full && place == 0 {
                return None;
            }
            if is_full {
                self.cohorts.pop_front();
            }
            let (scores, kept) = (Vec::new(), (Vec::new(), Vec::new()));
            let cohort = Cohort { since_ms, predicted: 0, labelled: 0, right: 0, scores, kept };
            self.cohorts.insert(place - usize::from(is_full), cohort);
        }
        let place = self.cohorts.partition_point(|cohort| cohort.since_ms < since_ms);
        self.cohorts.get_mut(place)
    }

    /// What is known at `now_ms`. A cohort has degraded if evidence at `level` says that its accuracy is another than the baseline's, and
    /// it is lower by at least the least drop that matters. `inputs`, the verdict on the rows, says how far estimates can be
    /// believed.
    ///
    /// # Errors
    /// A level that is not above 0.
    pub fn report(&self, level: f64, inputs: Option<&Verdict>, now_ms: u64) -> Result<PerformanceReport> {
        if level.is_nan() || level <= 0.0 {
            return Err(MonitorError::unfit("level", "a number above 0", level));
        }
        let cohorts = self.cohorts.iter().map(|cohort| self.judged(cohort, level, inputs, now_ms));
        let cohorts = cohorts.collect::<Result<Vec<CohortReport>>>()?;
        let judged = cohorts.iter().rev().find(|it| it.is_mature && it.difference.is_some());
        Ok(PerformanceReport {
            state: judged.map_or(State::NotEnoughEvidence, |it| it.state),
            baseline: self.baseline.metrics,
            cohorts,
            alarm_ms: self.alarm_ms,
        })
    }

    fn judged(
        &self,
        cohort: &Cohort,
        level: f64,
        inputs: Option<&Verdict>,
        now_ms: u64,
    ) -> Result<CohortReport> {
        let is_mature = now_ms
            >= cohort.since_ms.saturating_add(self.spec.cohort_ms).saturating_add(self.spec.maturity_ms);
        let known = self.baseline.metrics;
        let right = (known.accuracy * known.count as f64).round() as u64;
        let then = Trials { events: right.min(known.count), trials: known.count };
        let now = Trials { events: cohort.right, trials: cohort.labelled };
        let mut state = State::NotEnoughEvidence;
        let mut difference = None;
        if cohort.labelled >= self.spec.minimum_labels.max(1) {
            let interval = difference_interval(now, then, 0.05, DifferenceMethod::Newcombe)?;
            let counts = |it: Trials| [it.events, it.trials - it.events];
            let log_e = SameCells::new(&counts(then))?.log_e(&counts(now))?;
            let drop = now.rate() - then.rate();
            difference = Some((drop, interval));
            let least = -self.spec.minimum_drop;
            if is_mature && drop <= least && log_e >= -level.ln() {
                state = State::Drifted;
            } else if is_mature && interval.low > least {
                state = State::Stable;
            }
        }
        let (labels, scores) = &cohort.kept;
        let estimate = match &cohort.scores[..] {
            [] => None,
            scores => Some(self.baseline.estimate(scores, inputs)?),
        };
        Ok(CohortReport {
            since_ms: cohort.since_ms,
            predicted: cohort.predicted,
            labelled: cohort.labelled,
            coverage: if cohort.predicted == 0 {
                0.0
            } else {
                cohort.labelled as f64 / cohort.predicted as f64
            },
            is_mature,
            state,
            difference,
            metrics: if labels.is_empty() { None } else { Some(BinaryMetrics::of(labels, scores)?) },
            estimate,
        })
    }
}

fn check(score: f64) -> Result<()> {
    if (0.0..=1.0).contains(&score) {
        return Ok(());
    }
    Err(MonitorError::unfit("score", "a number between 0 and 1", score))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::Trust;
    use fastrand::Rng;

    /// A label and its score; the score is right about itself, but for a share of `noise`.
    fn drawn(random: &mut Rng, noise: f64) -> (bool, f64) {
        let score = random.f64();
        (if random.f64() < noise { random.bool() } else { random.f64() < score }, score)
    }

    fn performance(random: &mut Rng) -> Performance {
        let (labels, scores): (Vec<bool>, Vec<f64>) = (0..20_000).map(|_| drawn(random, 0.0)).unzip();
        let spec = PerformanceSpec { cohort_ms: 1_000, maturity_ms: 500, ..PerformanceSpec::default() };
        Performance::new(Baseline::fit(&labels, &scores).unwrap(), spec, 1e-5).unwrap()
    }

    /// Predictions of which a half is labelled, all in one cohort.
    fn feed(performance: &mut Performance, random: &mut Rng, count: usize, noise: f64, at_ms: u64) {
        for at in 0..count {
            let (label, score) = drawn(random, noise);
            performance.predict(score, at_ms).unwrap();
            if at % 2 == 0 {
                performance.label(label, score, at_ms, at_ms + 100).unwrap();
            }
        }
    }

    #[test]
    fn labels_come_late_and_only_mature_cohorts_are_judged() {
        let mut random = Rng::with_seed(71);
        let mut performance = performance(&mut random);
        feed(&mut performance, &mut random, 10_000, 0.0, 500);
        let early = performance.report(0.001, None, 1_400).unwrap();
        assert_eq!((early.state, early.cohorts[0].is_mature), (State::NotEnoughEvidence, false));
        let report = performance.report(0.001, None, 1_500).unwrap();
        let cohort = &report.cohorts[0];
        assert_eq!((report.state, cohort.coverage, report.alarm_ms), (State::Stable, 0.5, None));
        assert_eq!(cohort.estimate.as_ref().unwrap().trust, Trust::Holds);
        feed(&mut performance, &mut random, 4_000, 0.6, 1_500);
        let report = performance.report(0.001, None, 2_600).unwrap();
        assert_eq!((report.state, report.alarm_ms), (State::Drifted, Some(1_600)), "{report:#?}");
        assert!(report.cohorts[1].difference.unwrap().1.high < -0.02);
        // Few labels say nothing.
        feed(&mut performance, &mut random, 100, 0.6, 2_500);
        let report = performance.report(0.001, None, 9_000).unwrap();
        assert_eq!((report.cohorts[2].state, report.cohorts[2].difference), (State::NotEnoughEvidence, None));
    }

    #[test]
    fn without_a_change_no_cohort_degrades() {
        let mut random = Rng::with_seed(72);
        let mut performance = performance(&mut random);
        for cohort in 0..60 {
            feed(&mut performance, &mut random, 2_000, 0.0, cohort * 1_000);
        }
        let report = performance.report(0.001, None, 1 << 40).unwrap();
        assert!(report.cohorts.iter().all(|it| it.state != State::Drifted) && report.alarm_ms.is_none());
    }

    #[test]
    fn memory_is_bounded_and_wrong_input_is_refused() {
        let mut random = Rng::with_seed(73);
        let mut performance = performance(&mut random);
        for at in 0..200 {
            performance.predict(0.5, at * 1_000).unwrap();
            performance.label(true, 0.5, random.u64(..), 0).unwrap();
        }
        performance.predict(0.5, 0).unwrap();
        assert_eq!(performance.cohorts.len(), MAX_COHORTS);
        assert!(
            performance
                .cohorts
                .iter()
                .zip(performance.cohorts.iter().skip(1))
                .all(|(a, b)| a.since_ms < b.since_ms)
        );
        assert!(performance.predict(f64::NAN, 0).is_err() && performance.label(true, 2.0, 0, 0).is_err());
        assert!(performance.report(f64::NAN, None, 0).is_err());
        performance.report(0.001, None, u64::MAX).unwrap();
    }
}
