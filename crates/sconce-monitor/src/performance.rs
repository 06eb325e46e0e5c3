use crate::error::{MonitorError, Result};
use crate::estimate::{Baseline, Estimate};
use crate::verdict::{State, Verdict};
use sconce_stats::Interval;
use sconce_stats::performance::{
    Average, Confusion, average_precision, brier_score, calibration_error, log_loss, regression, roc_auc,
};
use sconce_stats::sequential::{AsymptoticMean, BetaBinomial, tuned_rho};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Cohorts that are kept: the latest.
pub const MAX_COHORTS: usize = 100;
/// Classes that are told apart; all others are one.
pub const MAX_CLASSES: usize = 64;
/// What all others are called.
pub const OTHERS: &str = "(others)";
/// Predictions of a cohort that are kept, evenly spread over it, for what counts cannot tell.
const MAX_KEPT: usize = 4_096;
/// Bins of the expected calibration error.
const CALIBRATION_BINS: usize = 10;
/// The level at which a cohort is shown to be as good as the baseline. That is no alarm, so it costs nothing of the alarms' level.
const STABLE_LEVEL: f64 = 0.05;
/// Confidence sequences of mean errors are narrowest after about as many labels.
const TUNED_FOR: u64 = 1_000;

/// How performance is followed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerformanceSpec {
    /// How long predictions are gathered into one cohort, in milliseconds. Default a day.
    pub cohort_ms: u64,
    /// How long after its end a cohort's labels may come: before, those that are there may be the easy ones. Default a day.
    pub maturity_ms: u64,
    /// Labels before anything is said of a cohort. Default 100.
    pub minimum_labels: u64,
    /// The least fall of accuracy that matters. Default 0.02.
    pub minimum_drop: f64,
    /// The least rise of the mean absolute error that matters, as a part of the baseline's. Default 0.1.
    pub minimum_rise: f64,
}

impl PerformanceSpec {
    /// # Errors
    /// What is out of its range.
    pub fn check(&self) -> Result<()> {
        if self.cohort_ms == 0 {
            return Err(MonitorError::unfit("cohort_ms", "at least 1", self.cohort_ms));
        }
        for (what, value) in [("minimum_drop", self.minimum_drop), ("minimum_rise", self.minimum_rise)] {
            if !(value > 0.0 && value < 1.0) {
                return Err(MonitorError::unfit(what, "a number between 0 and 1, neither included", value));
            }
        }
        Ok(())
    }
}

impl Default for PerformanceSpec {
    fn default() -> Self {
        let day = 86_400_000;
        let (minimum_drop, minimum_rise) = (0.02, 0.1);
        Self { cohort_ms: day, maturity_ms: day, minimum_labels: 100, minimum_drop, minimum_rise }
    }
}

/// What a version was worth before it served.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// The share of decisions that were right.
    pub accuracy: Option<f64>,
    /// By how much numbers were off.
    pub mean_absolute_error: Option<f64>,
    /// How scores of two classes were calibrated: estimates are made from that.
    #[serde(skip)]
    pub baseline: Option<Baseline>,
}

/// What a model said of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Said<'a> {
    /// The likeliest class, and its probability.
    Class(&'a str, f64),
    /// A number.
    Number(f64),
}

/// What turned out to be true of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Truth<'a> {
    /// The class.
    Class(&'a str),
    /// The number. Of a model of classes it is one: `1` for 1.0.
    Number(f64),
}

/// Performance of a model of classes or of numbers, with labels that come late and partly, and estimated where they have not come.
///
/// Predictions are gathered in *cohorts* by when they were made. What is said of a cohort comes with its coverage, the share of its
/// predictions whose labels came; whether it has degraded is asked of mature ones only.
#[derive(Debug, Clone)]
pub struct Performance {
    spec: PerformanceSpec,
    known: Known,
    classes: Vec<String>,
    /// How many of them the model itself names.
    named: usize,
    places: HashMap<String, u16>,
    cohorts: BTreeMap<u64, Cohort>,
    /// What a decision is worth, by truth and decision.
    values: BTreeMap<(String, String), f64>,
}

#[derive(Debug, Clone)]
struct Cohort {
    predicted: u64,
    labelled: u64,
    unfit: u64,
    right: u64,
    /// By truth and decision.
    counts: BTreeMap<(u16, u16), u64>,
    /// What was said of rows with a label or without: the class, and its probability.
    said: Kept<(u16, f64)>,
    /// The truth, what was said and its probability.
    classes: Kept<(u16, u16, f64)>,
    /// The truth and what was said.
    numbers: Kept<(f64, f64)>,
    errors: AsymptoticMean,
}

/// The first of them all, then every second, every fourth: as many as there is room for.
#[derive(Debug, Clone)]
struct Kept<T> {
    items: Vec<T>,
    every: u64,
    seen: u64,
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
    /// Labels that cannot be held against what was said: a text where a number was.
    pub unfit: u64,
    /// Whether its labels have had time to come.
    pub is_mature: bool,
    /// `Drifted` is degraded; never before it is mature and has labels enough.
    pub state: State,
    /// By labels.
    pub metrics: Option<Metrics>,
    /// What the labelled decisions were worth together, where that was asked.
    pub value: Option<f64>,
    /// Without labels.
    pub estimate: Option<Estimate>,
}

/// What labels say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Metrics {
    /// Of classes.
    Classes(ClassMetrics),
    /// Of numbers.
    Numbers(NumberMetrics),
}

/// Metrics of classes. `None`: it cannot be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// The share of decisions that were right.
    pub accuracy: f64,
    /// Where the accuracy lies at the level of the report, however often one looks.
    pub interval: Interval,
    /// Of two classes the positive one's, of more the mean over the classes, like recall and F1.
    pub precision: f64,
    /// The share of those of a class that were found.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Matthews' correlation of decisions and labels.
    pub matthews: Option<f64>,
    /// The expected calibration error of the decisions' probabilities, over ten bins.
    pub calibration_error: Option<f64>,
    /// What only two classes have.
    pub two: Option<TwoClasses>,
    /// The classes that occurred.
    pub classes: Vec<String>,
    /// How often each was true (row) and said (column).
    pub confusion: Vec<Vec<u64>>,
}

/// What the scores of two classes are worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TwoClasses {
    /// The class whose probability is the score: the second that the model names, else the one that sorts last.
    pub positive: String,
    /// The area under the ROC curve.
    pub roc_auc: Option<f64>,
    /// The area under the curve of precision and recall, as average precision.
    pub average_precision: Option<f64>,
    /// The mean logarithmic loss.
    pub log_loss: Option<f64>,
    /// The mean squared difference of score and label.
    pub brier: Option<f64>,
}

/// Metrics of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NumberMetrics {
    /// By how much predictions are off.
    pub mean_absolute_error: f64,
    /// Where that lies at the level of the report, however often one looks.
    pub interval: Interval,
    /// The root of the mean squared error.
    pub root_mean_squared_error: Option<f64>,
    /// Relative to the truth.
    pub mean_absolute_percentage_error: Option<f64>,
    /// Prediction less truth.
    pub bias: Option<f64>,
    /// The share of the truth's variance that is explained.
    pub r_squared: Option<f64>,
}

/// What is said of a version's performance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerformanceReport {
    /// The latest mature cohort's with labels enough.
    pub state: State,
    /// Since when, of cohorts one behind the other.
    pub since_ms: Option<u64>,
    /// What it is held against.
    pub baseline: Known,
    /// By cohort, the oldest first.
    pub cohorts: Vec<CohortReport>,
}

impl Performance {
    /// Nothing predicted yet. `classes` are those that the model names, in its order; others are learned as they come.
    ///
    /// # Errors
    /// A specification out of its range, or a baseline that is no accuracy or no error.
    pub fn new(spec: PerformanceSpec, known: Known, classes: &[String]) -> Result<Self> {
        spec.check()?;
        if let Some(accuracy) = known.accuracy.filter(|it| !(0.0..=1.0).contains(it)) {
            return Err(MonitorError::unfit("accuracy", "a number from 0 to 1", accuracy));
        }
        if let Some(error) = known.mean_absolute_error.filter(|it| !(*it >= 0.0 && it.is_finite())) {
            return Err(MonitorError::unfit("mean_absolute_error", "a number of at least 0", error));
        }
        let (places, cohorts, values) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut performance = Self { spec, known, classes: Vec::new(), named: 0, places, cohorts, values };
        for class in classes {
            performance.place(class);
        }
        performance.named = classes.len();
        Ok(performance)
    }

    /// Adds up what decisions are worth: business value, by the truth and what was said; 0 where nothing is said of a pair.
    pub fn value(mut self, values: BTreeMap<(String, String), f64>) -> Self {
        self.values = values;
        self
    }

    /// Takes a prediction that was made at `at_ms`, with its label if that is known. Those older than every cohort that is kept are
    /// not taken.
    ///
    /// # Errors
    /// A probability not in 0..=1, a number that is not finite.
    pub fn take(&mut self, at_ms: u64, said: Said<'_>, truth: Option<Truth<'_>>) -> Result<()> {
        match said {
            Said::Class(_, probability) if !(0.0..=1.0).contains(&probability) => {
                return Err(MonitorError::unfit("probability", "a number from 0 to 1", probability));
            }
            Said::Number(number) if !number.is_finite() => {
                return Err(MonitorError::unfit("prediction", "a finite number", number));
            }
            _ => {}
        }
        let pair = match (said, truth) {
            (Said::Class(..), Some(Truth::Class(truth))) => Some(self.place(truth)),
            (Said::Class(..), Some(Truth::Number(truth))) => Some(self.place(&truth.to_string())),
            _ => None,
        };
        let decision = if let Said::Class(class, _) = said { self.place(class) } else { 0 };
        let Some(cohort) = self.cohort(at_ms)? else { return Ok(()) };
        cohort.predicted += 1;
        cohort.labelled += u64::from(truth.is_some());
        match (said, truth) {
            (Said::Class(_, probability), _) => {
                cohort.said.push((decision, probability));
                if let Some(truth) = pair {
                    cohort.right += u64::from(truth == decision);
                    *cohort.counts.entry((truth, decision)).or_default() += 1;
                    cohort.classes.push((truth, decision, probability));
                }
            }
            (Said::Number(said), Some(Truth::Number(truth))) if truth.is_finite() => {
                cohort.numbers.push((truth, said));
                cohort.errors.update((truth - said).abs())?;
            }
            (Said::Number(_), Some(_)) => cohort.unfit += 1,
            (Said::Number(_), None) => {}
        }
        Ok(())
    }

    /// What is known at `now_ms`. A cohort has degraded if its accuracy is below the baseline's whatever the labels' chance, once in
    /// `1 / level` cohorts, and by at least the least drop that matters; with numbers, if their mean absolute error has risen so. `inputs`,
    /// the verdict on the latest rows, says how far the last cohort's estimate can be believed.
    ///
    /// # Errors
    /// A level not strictly between 0 and 1.
    pub fn report(&self, level: f64, inputs: Option<&Verdict>, now_ms: u64) -> Result<PerformanceReport> {
        let last = self.cohorts.keys().next_back();
        let judged = |(since_ms, cohort): (&u64, &Cohort)| {
            let inputs = inputs.filter(|_| Some(since_ms) == last);
            self.judged(*since_ms, cohort, level, inputs, now_ms)
        };
        let cohorts = self.cohorts.iter().map(judged).collect::<Result<Vec<CohortReport>>>()?;
        let known = cohorts.iter().rev().filter(|it| it.state != State::NotEnoughEvidence);
        let state = known.clone().next().map_or(State::NotEnoughEvidence, |it| it.state);
        let since_ms = known.take_while(|it| it.state == state).last().map(|it| it.since_ms);
        Ok(PerformanceReport { state, since_ms, baseline: self.known.clone(), cohorts })
    }

    /// The place of a class: the last for those that are too many.
    fn place(&mut self, class: &str) -> u16 {
        if let Some(place) = self.places.get(class) {
            return *place;
        }
        let is_last = self.classes.len() >= MAX_CLASSES;
        if !is_last {
            let place = u16::try_from(self.classes.len()).unwrap_or(u16::MAX);
            self.classes.push(class.to_owned());
            self.places.insert(class.to_owned(), place);
            return place;
        }
        if self.classes.len() == MAX_CLASSES {
            self.classes.push(OTHERS.to_owned());
        }
        MAX_CLASSES as u16
    }

    /// The cohort of a time; made if there is none.
    fn cohort(&mut self, at_ms: u64) -> Result<Option<&mut Cohort>> {
        let since_ms = at_ms - at_ms % self.spec.cohort_ms;
        if !self.cohorts.contains_key(&since_ms) {
            if self.cohorts.len() == MAX_COHORTS {
                if self.cohorts.keys().next().is_some_and(|oldest| since_ms < *oldest) {
                    return Ok(None);
                }
                self.cohorts.pop_first();
            }
            self.cohorts.insert(since_ms, Cohort::new()?);
        }
        Ok(self.cohorts.get_mut(&since_ms))
    }

    fn judged(
        &self,
        since_ms: u64,
        cohort: &Cohort,
        level: f64,
        inputs: Option<&Verdict>,
        now_ms: u64,
    ) -> Result<CohortReport> {
        let end_ms = since_ms.saturating_add(self.spec.cohort_ms);
        let is_mature = now_ms >= end_ms.saturating_add(self.spec.maturity_ms);
        let metrics = self.metrics(cohort, level)?;
        let has_enough = is_mature && cohort.labelled >= self.spec.minimum_labels.max(1);
        let state = match (&metrics, self.known.accuracy, self.known.mean_absolute_error) {
            (Some(Metrics::Classes(it)), Some(then), _) if has_enough => {
                let least = then - self.spec.minimum_drop;
                let is_as_good = cohort.rate(STABLE_LEVEL)?.low > least;
                judge(it.interval.high < then && it.accuracy <= least, is_as_good)
            }
            (Some(Metrics::Numbers(it)), _, Some(then)) if has_enough => {
                let most = then * (1.0 + self.spec.minimum_rise);
                let is_as_good = Interval::from(cohort.errors.interval(STABLE_LEVEL)?).high < most;
                judge(it.interval.low > then && it.mean_absolute_error >= most, is_as_good)
            }
            _ => State::NotEnoughEvidence,
        };
        Ok(CohortReport {
            since_ms,
            predicted: cohort.predicted,
            labelled: cohort.labelled,
            coverage: cohort.labelled as f64 / cohort.predicted.max(1) as f64,
            unfit: cohort.unfit,
            is_mature,
            state,
            metrics,
            value: (!self.values.is_empty()).then(|| self.worth(cohort)),
            estimate: self.estimate(cohort, inputs)?,
        })
    }

    fn worth(&self, cohort: &Cohort) -> f64 {
        let count = |((truth, said), each): (&(String, String), &f64)| {
            let pair = (*self.places.get(truth)?, *self.places.get(said)?);
            Some(*each * *cohort.counts.get(&pair)? as f64)
        };
        self.values.iter().filter_map(count).sum()
    }

    fn metrics(&self, cohort: &Cohort, level: f64) -> Result<Option<Metrics>> {
        if !cohort.numbers.items.is_empty() {
            return Ok(Some(Metrics::Numbers(cohort.number_metrics(level)?)));
        }
        if cohort.counts.is_empty() {
            return Ok(None);
        }
        let mut places: Vec<u16> = cohort.counts.keys().flat_map(|(truth, said)| [*truth, *said]).collect();
        // The others last, as they were found; else as the model names them, else by name.
        places.sort_unstable_by_key(|place| self.order(*place));
        places.dedup();
        let positive = self.positive(&places);
        let at = |place: u16| places.iter().position(|it| *it == place).unwrap_or_default();
        let mut confusion = Confusion::new(places.len().max(2))?;
        for ((truth, said), count) in &cohort.counts {
            confusion.update_times(at(*truth), at(*said), *count)?;
        }
        let kept = &cohort.classes.items;
        let right: Vec<bool> = kept.iter().map(|(truth, said, _)| truth == said).collect();
        let sure: Vec<f64> = kept.iter().map(|(.., probability)| *probability).collect();
        let average = |of: fn(&Confusion, Average) -> f64| of(&confusion, Average::Macro);
        let (mut precision, mut recall, mut f1) =
            (average(Confusion::precision), average(Confusion::recall), average(Confusion::f1));
        if let Some(positive) = positive {
            let of = |truth: Option<u16>, said: Option<u16>| {
                let counted = cohort.counts.iter().filter(|((t, s), _)| {
                    truth.is_none_or(|truth| truth == *t) && said.is_none_or(|said| said == *s)
                });
                counted.map(|(_, count)| *count as f64).sum::<f64>()
            };
            let ratio = |part: f64, all: f64| if all == 0.0 { 0.0 } else { part / all };
            let (positive, found) = (Some(positive), of(Some(positive), Some(positive)));
            (precision, recall) = (ratio(found, of(None, positive)), ratio(found, of(positive, None)));
            f1 = ratio(2.0 * found, of(None, positive) + of(positive, None));
        }
        Ok(Some(Metrics::Classes(ClassMetrics {
            accuracy: cohort.right as f64 / cohort.labelled as f64,
            interval: cohort.rate(level)?,
            precision,
            recall,
            f1,
            matthews: finite(confusion.matthews()),
            calibration_error: finite(calibration_error(&right, &sure, CALIBRATION_BINS)?),
            two: positive.map(|positive| self.two(cohort, positive)).transpose()?,
            classes: places
                .iter()
                .filter_map(|place| self.classes.get(usize::from(*place)).cloned())
                .collect(),
            confusion: confusion.rows().take(places.len()).map(|row| row[..places.len()].to_vec()).collect(),
        })))
    }

    fn order(&self, place: u16) -> (bool, usize, &str) {
        let at = usize::from(place);
        let class = self.classes.get(at).map_or("", String::as_str);
        if at < self.named { (false, at, "") } else { (at == MAX_CLASSES, self.named, class) }
    }

    /// The class whose probability is the score, where there are two.
    fn positive(&self, places: &[u16]) -> Option<u16> {
        match (self.named, places) {
            (2, places) if places.iter().all(|place| *place < 2) => Some(1),
            (0, [_, last]) => Some(*last),
            _ => None,
        }
    }

    fn two(&self, cohort: &Cohort, positive: u16) -> Result<TwoClasses> {
        let kept = &cohort.classes.items;
        let labels: Vec<bool> = kept.iter().map(|(truth, ..)| *truth == positive).collect();
        let scores: Vec<f64> = kept.iter().map(|(_, said, it)| score(*said == positive, *it)).collect();
        Ok(TwoClasses {
            positive: self.classes.get(usize::from(positive)).cloned().unwrap_or_default(),
            roc_auc: finite(roc_auc(&labels, &scores)?),
            average_precision: finite(average_precision(&labels, &scores)?),
            log_loss: finite(log_loss(&labels, &scores)?),
            brier: finite(brier_score(&labels, &scores)?),
        })
    }

    fn estimate(&self, cohort: &Cohort, inputs: Option<&Verdict>) -> Result<Option<Estimate>> {
        let mut places: Vec<u16> = cohort.said.items.iter().map(|(said, _)| *said).collect();
        places.extend(cohort.counts.keys().map(|(truth, _)| *truth));
        places.sort_unstable_by_key(|place| self.order(*place));
        places.dedup();
        let (Some(baseline), Some(positive)) = (&self.known.baseline, self.positive(&places)) else {
            return Ok(None);
        };
        let said = cohort.said.items.iter();
        let scores: Vec<f64> = said.map(|(said, it)| score(*said == positive, *it)).collect();
        Ok(if scores.is_empty() { None } else { Some(baseline.estimate(&scores, inputs)?) })
    }
}

impl Cohort {
    fn new() -> Result<Self> {
        Ok(Self {
            predicted: 0,
            labelled: 0,
            unfit: 0,
            right: 0,
            counts: BTreeMap::new(),
            said: Kept::new(),
            classes: Kept::new(),
            numbers: Kept::new(),
            errors: AsymptoticMean::new(tuned_rho(0.05, TUNED_FOR)?)?,
        })
    }

    /// Where the share of right decisions lies, however often one looks.
    fn rate(&self, level: f64) -> Result<Interval> {
        let mut rate = BetaBinomial::new(0.5, 0.5)?;
        rate.update(self.right, self.labelled - self.right);
        Ok(rate.interval(level)?)
    }

    fn number_metrics(&self, level: f64) -> Result<NumberMetrics> {
        let (truths, said): (Vec<f64>, Vec<f64>) = self.numbers.items.iter().copied().unzip();
        let all = regression(&truths, &said).ok();
        let errors = self.errors.interval(level)?;
        Ok(NumberMetrics {
            mean_absolute_error: errors.centre,
            interval: errors.into(),
            root_mean_squared_error: all.as_ref().and_then(|all| finite(all.root_mean_squared_error)),
            mean_absolute_percentage_error: all
                .as_ref()
                .and_then(|all| finite(all.mean_absolute_percentage_error)),
            bias: all.as_ref().and_then(|all| finite(all.bias)),
            r_squared: all.as_ref().and_then(|all| finite(all.r_squared)),
        })
    }
}

impl<T> Kept<T> {
    fn new() -> Self {
        Self { items: Vec::new(), every: 1, seen: 0 }
    }

    fn push(&mut self, item: T) {
        if self.seen.is_multiple_of(self.every) {
            if self.items.len() == MAX_KEPT {
                let mut at = 0_usize;
                self.items.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
                self.every *= 2;
            }
            if self.seen.is_multiple_of(self.every) {
                self.items.push(item);
            }
        }
        self.seen += 1;
    }
}

fn judge(is_worse: bool, is_as_good: bool) -> State {
    match (is_worse, is_as_good) {
        (true, _) => State::Drifted,
        (_, true) => State::Stable,
        _ => State::NotEnoughEvidence,
    }
}

/// The probability of the positive class.
fn score(is_positive: bool, probability: f64) -> f64 {
    if is_positive { probability } else { 1.0 - probability }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::Trust;
    use fastrand::Rng;

    fn spec() -> PerformanceSpec {
        PerformanceSpec { cohort_ms: 1_000, maturity_ms: 500, ..PerformanceSpec::default() }
    }

    /// A label and its score; the score is right about itself, but for a share of `noise`.
    fn drawn(random: &mut Rng, noise: f64) -> (bool, f64) {
        let score = random.f64();
        (if random.f64() < noise { random.bool() } else { random.f64() < score }, score)
    }

    fn performance(random: &mut Rng) -> Performance {
        let (labels, scores): (Vec<bool>, Vec<f64>) = (0..20_000).map(|_| drawn(random, 0.0)).unzip();
        let baseline = Baseline::fit(&labels, &scores).unwrap();
        let accuracy = Some(baseline.metrics.accuracy);
        let known = Known { accuracy, baseline: Some(baseline), ..Known::default() };
        Performance::new(spec(), known, &[]).unwrap()
    }

    /// Predictions of which a half is labelled, all in one cohort.
    fn feed(performance: &mut Performance, random: &mut Rng, count: usize, noise: f64, at_ms: u64) {
        for at in 0..count {
            let (label, score) = drawn(random, noise);
            let name = |yes: bool| if yes { "yes" } else { "no" };
            let said = Said::Class(name(score >= 0.5), score.max(1.0 - score));
            let truth = (at % 2 == 0).then(|| Truth::Class(name(label)));
            performance.take(at_ms, said, truth).unwrap();
        }
    }

    #[test]
    fn labels_come_late_and_only_mature_cohorts_are_judged() {
        let mut random = Rng::with_seed(71);
        let mut performance = performance(&mut random);
        feed(&mut performance, &mut random, 20_000, 0.0, 500);
        let early = performance.report(0.001, None, 1_400).unwrap();
        assert_eq!((early.state, early.cohorts[0].is_mature), (State::NotEnoughEvidence, false));
        let report = performance.report(0.001, None, 1_500).unwrap();
        let cohort = &report.cohorts[0];
        assert_eq!((report.state, report.since_ms, cohort.coverage), (State::Stable, Some(0), 0.5));
        let Some(Metrics::Classes(metrics)) = &cohort.metrics else { panic!("{cohort:?}") };
        let estimate = cohort.estimate.as_ref().unwrap();
        assert_eq!((estimate.trust, estimate.count), (Trust::Holds, 2_500), "every eighth of 20,000 is kept");
        assert!(estimate.accuracy.band.contains(metrics.accuracy), "{estimate:?} {metrics:?}");
        let two = metrics.two.as_ref().unwrap();
        // Of a score that is right about itself: 1/2 + 1/3 of the area, 3/4 of the decisions, a Brier score of 1/6.
        assert_eq!((two.positive.as_str(), &metrics.classes[..]), ("yes", &["no".into(), "yes".into()][..]));
        for (what, got, expected) in [
            ("accuracy", metrics.accuracy, 0.75),
            ("precision", metrics.precision, 0.75),
            ("roc_auc", two.roc_auc.unwrap(), 5.0 / 6.0),
            ("brier", two.brier.unwrap(), 1.0 / 6.0),
            ("log_loss", two.log_loss.unwrap(), 0.5),
        ] {
            assert!((got - expected).abs() < 0.02, "{what}: {got}");
        }
        assert_eq!(metrics.confusion.iter().flatten().sum::<u64>(), 10_000);
        feed(&mut performance, &mut random, 4_000, 0.6, 1_500);
        feed(&mut performance, &mut random, 4_000, 0.6, 2_500);
        let report = performance.report(0.001, None, 3_600).unwrap();
        assert_eq!((report.state, report.since_ms), (State::Drifted, Some(1_000)), "{report:#?}");
        // Few labels say nothing.
        feed(&mut performance, &mut random, 100, 0.6, 4_500);
        let report = performance.report(0.001, None, 9_000).unwrap();
        assert_eq!((report.cohorts[3].state, report.state), (State::NotEnoughEvidence, State::Drifted));
    }

    #[test]
    fn without_a_change_no_cohort_degrades() {
        let mut random = Rng::with_seed(72);
        let mut performance = performance(&mut random);
        for cohort in 0..100 {
            feed(&mut performance, &mut random, 2_000, 0.0, cohort * 1_000);
        }
        let report = performance.report(0.001, None, 1 << 40).unwrap();
        assert_eq!(report.cohorts.len(), 100);
        assert!(report.cohorts.iter().all(|it| it.state != State::Drifted));
    }

    #[test]
    fn numbers_degrade_when_errors_rise_and_never_by_chance() {
        let mut random = Rng::with_seed(74);
        let known = Known { mean_absolute_error: Some(0.5), ..Known::default() };
        let mut performance = Performance::new(spec(), known, &[]).unwrap();
        for cohort in 0..100_u64 {
            let most = if cohort == 99 { 1.3 } else { 1.0 };
            for _ in 0..1_000 {
                let truth = random.f64() * 10.0;
                let said = truth + most * (2.0 * random.f64() - 1.0);
                performance.take(cohort * 1_000, Said::Number(said), Some(Truth::Number(truth))).unwrap();
            }
        }
        let report = performance.report(0.001, None, 1 << 40).unwrap();
        assert!(report.cohorts[..99].iter().all(|it| it.state != State::Drifted));
        assert_eq!((report.state, report.since_ms), (State::Drifted, Some(99_000)));
        let Some(Metrics::Numbers(metrics)) = &report.cohorts[99].metrics else { panic!("no numbers") };
        // Errors are uniform up to 1.3.
        let root = metrics.root_mean_squared_error.unwrap();
        assert!(
            (metrics.mean_absolute_error - 0.65).abs() < 0.03 && (root - 0.75).abs() < 0.03,
            "{metrics:?}"
        );
        // A text is no number.
        performance.take(200_000, Said::Number(1.0), Some(Truth::Class("a"))).unwrap();
        let report = performance.report(0.001, None, 1 << 40).unwrap();
        assert_eq!((report.cohorts[99].unfit, &report.cohorts[99].metrics), (1, &None));
    }

    #[test]
    fn many_classes_are_counted_like_any_and_too_many_are_one() {
        let classes = ["a", "b", "c"].map(str::to_owned);
        let pair = |truth: &str, said: &str, worth| ((truth.to_owned(), said.to_owned()), worth);
        let values = [pair("c", "c", 2.0), pair("a", "c", -7.0), pair("z", "z", 100.0)].into();
        let mut performance = Performance::new(spec(), Known::default(), &classes).unwrap().value(values);
        for (truth, said, times) in [("c", "c", 5), ("a", "c", 2), ("b", "b", 3)] {
            for _ in 0..times {
                performance.take(1, Said::Class(said, 0.9), Some(Truth::Class(truth))).unwrap();
            }
        }
        let of = |performance: &Performance| {
            let report = performance.report(0.001, None, 1 << 40).unwrap();
            match report.cohorts.into_iter().next_back().unwrap().metrics {
                Some(Metrics::Classes(metrics)) => (report.state, metrics),
                other => panic!("{other:?}"),
            }
        };
        let (state, metrics) = of(&performance);
        let report = performance.report(0.001, None, 1 << 40).unwrap();
        assert_eq!(report.cohorts[0].value, Some(5.0 * 2.0 - 2.0 * 7.0));
        // Nothing to hold it against.
        assert_eq!((state, metrics.accuracy, metrics.two), (State::NotEnoughEvidence, 0.8, None));
        assert_eq!(metrics.confusion, [[0, 0, 2], [0, 3, 0], [0, 0, 5]]);
        // (0 + 1 + 5/7) / 3.
        assert!((metrics.precision - 12.0 / 21.0).abs() < 1e-12);
        for class in 0..200 {
            let class = class.to_string();
            performance.take(5_000, Said::Class(&class, 0.9), Some(Truth::Class(&class))).unwrap();
        }
        let (_, metrics) = of(&performance);
        assert_eq!((metrics.classes.len(), metrics.classes.last().unwrap().as_str()), (62, OTHERS));
        // A class that is a number is the same as text.
        performance.take(9_000, Said::Class("1", 0.6), Some(Truth::Number(1.0))).unwrap();
        assert_eq!(of(&performance).1.accuracy, 1.0);
    }

    #[test]
    fn memory_is_bounded_and_wrong_input_is_refused() {
        let mut random = Rng::with_seed(73);
        let mut performance = performance(&mut random);
        for at in 0..1_000 {
            performance.take(at * 1_000, Said::Class("no", 0.5), None).unwrap();
        }
        performance.take(0, Said::Class("no", 0.5), None).unwrap();
        assert_eq!((performance.cohorts.len(), performance.cohorts.contains_key(&0)), (MAX_COHORTS, false));
        for _ in 0..100_000 {
            performance.take(999_000, Said::Class("no", 0.5), Some(Truth::Class("no"))).unwrap();
        }
        let last = &performance.cohorts[&999_000];
        assert!(last.classes.items.len() <= MAX_KEPT && last.said.items.len() <= MAX_KEPT);
        assert!(last.classes.items.len() > MAX_KEPT / 2);
        assert!(performance.take(0, Said::Class("no", f64::NAN), None).is_err());
        assert!(performance.take(0, Said::Number(f64::INFINITY), None).is_err());
        assert!(performance.report(f64::NAN, None, 0).is_err());
        performance.report(0.001, None, u64::MAX).unwrap();
        let new = |spec: PerformanceSpec, known: Known| Performance::new(spec, known, &[]);
        assert!(new(PerformanceSpec { cohort_ms: 0, ..spec() }, Known::default()).is_err());
        assert!(new(PerformanceSpec { minimum_drop: f64::NAN, ..spec() }, Known::default()).is_err());
        assert!(new(spec(), Known { accuracy: Some(1.5), ..Known::default() }).is_err());
    }
}
