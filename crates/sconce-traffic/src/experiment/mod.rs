//! Experiments: does a variant do better by what its units do afterwards?
//!
//! Units (users, say) stay with their variant by the route's sticky key; whoever counts sees that each unit is exposed once and has
//! one outcome of a metric. An [`Experiment`] holds sums alone, so it is small, stored as a whole, and told outcomes weeks later. Its
//! report looks at the sample ratio first: if units were not split as planned, nothing else is said.
//!
//! Goals are judged by the design that was declared, guardrails at any time by confidence sequences.

mod bandit;
mod spec;

pub use bandit::{Known, reshare, thompson_shares};
pub use spec::{
    ArmSpec, BanditSpec, Design, ExperimentSpec, Goal, MAX_METRIC_BYTES, MAX_METRICS, MetricKind, MetricSpec,
    units_needed,
};

use crate::Problems;
use sconce_stats::correction::correct;
use sconce_stats::experiment::{
    Effect, PairedMoments, SAMPLE_RATIO_ALARM, cuped, group_sequential_bounds, mean_difference,
    rate_difference, ratio_difference, relative_lift, sample_ratio,
};
use sconce_stats::proportion::{DifferenceMethod, difference_interval};
use sconce_stats::sequential::{AsymptoticMean, BetaBinomial, tuned_rho};
use sconce_stats::special::normal_quantile;
use sconce_stats::{Interval, Result, Trials};
use serde::{Deserialize, Serialize};
use spec::SPENDING;

/// Units before a mean is judged at any time: its confidence sequence holds in the limit of many.
const BURN_IN: u64 = 100;
/// Confidence sequences are narrowest after about as many units.
const TUNED_FOR: u64 = 5_000;

/// An experiment and what came of it so far. At most 16 arms and 32 metrics of a few hundred bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    spec: ExperimentSpec,
    arms: Vec<Arm>,
    /// What was decided at the looks of a group-sequential design.
    looks: Vec<Look>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Arm {
    units: u64,
    /// How many of all units were to be its, by the shares that the arms had when each came.
    expected: f64,
    metrics: Vec<Outcomes>,
}

/// Sums over the outcomes of one metric. Of a conversion the count alone matters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outcomes {
    pairs: PairedMoments,
    sequence: AsymptoticMean,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Look {
    units: u64,
    results: Vec<Comparison>,
}

/// What an experiment comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// Units of each arm, in the order of the declaration.
    pub units: Vec<u64>,
    /// Whether units were split as planned.
    pub sample_ratio: SampleRatio,
    /// What to do.
    pub advice: Advice,
    /// Each goal of each treatment; none if units were not split as planned.
    pub goals: Vec<Comparison>,
    /// Each guardrail of each treatment; none if units were not split as planned.
    pub guardrails: Vec<Comparison>,
    /// All of it in a sentence.
    pub sentence: String,
}

/// Whether units were split as planned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleRatio {
    /// Of the chi-square test; `None` before the first unit.
    pub p_value: Option<f64>,
    /// Whether it is below 0.001: then nothing else is to be believed.
    pub mismatch: bool,
}

/// What to do with an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// Find out why units were not split as planned.
    SampleRatioMismatch,
    /// Stop: a guardrail is broken.
    Stop,
    /// Go on: it is not decided, or not time to decide.
    GoOn,
    /// The time to decide has come, and this is what there is.
    Decide,
}

/// A treatment beside the control, by one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The metric.
    pub metric: String,
    /// The treatment's label.
    pub variant: String,
    /// Treatment less control; `None` before it can be computed.
    pub difference: Option<f64>,
    /// Where it lies, at the level that the design leaves for this comparison.
    pub interval: Option<Interval>,
    /// Treatment over control, less 1.
    pub relative: Option<f64>,
    /// Corrected for the number of comparisons; valid at any time in an always-valid design.
    pub p_value: Option<f64>,
    /// The share of variance that the covariate takes off.
    pub variance_reduction: Option<f64>,
    /// What follows.
    pub outcome: Outcome,
}

/// What follows of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The treatment is better. Of a guardrail: the harm is shown to be within its bound.
    Better,
    /// The treatment is worse. Of a guardrail: by more than its bound.
    Worse,
    /// Neither is shown.
    Undecided,
    /// It is not time to decide.
    TooEarly,
}

impl Experiment {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// Every problem of the declaration.
    pub fn new(spec: ExperimentSpec) -> Result<Self, Problems> {
        spec.check()?;
        let sequence = tuned_rho(spec.alpha, TUNED_FOR).and_then(AsymptoticMean::new);
        let sequence = sequence.map_err(|error| Problems(vec![error.to_string()]))?;
        let outcomes = Outcomes { pairs: PairedMoments::default(), sequence };
        let arm = Arm { units: 0, expected: 0.0, metrics: vec![outcomes; spec.metrics.len()] };
        Ok(Self { arms: vec![arm; spec.arms.len()], spec, looks: Vec::new() })
    }

    /// What was declared.
    pub fn spec(&self) -> &ExperimentSpec {
        &self.spec
    }

    /// Takes a unit that was exposed to `variant` for the first time while shares were as declared. One that takes no part changes
    /// nothing.
    pub fn expose(&mut self, variant: &str) {
        let weights: Vec<f64> = self.spec.arms.iter().map(|arm| arm.weight).collect();
        self.expose_by(variant, Some(&weights));
    }

    /// The same while the arms had `shares`, in their order; `None`: nobody knows which, so nothing follows of the sample ratio.
    pub fn expose_by(&mut self, variant: &str, shares: Option<&[f64]>) {
        let Some(at) = self.arm(variant) else { return };
        self.arms[at].units += 1;
        match shares {
            None => self.arms[at].expected += 1.0,
            Some(shares) => {
                let all: f64 = shares.iter().sum();
                self.arms.iter_mut().zip(shares).for_each(|(arm, share)| arm.expected += share / all);
            }
        }
    }

    /// Takes an outcome of a unit of `variant`. `second` is what the metric's kind says: the covariate, or the denominator.
    ///
    /// # Errors
    /// A variant or metric that takes no part, a second number that is missing, numbers that are not finite, more conversions than
    /// units.
    pub fn observe(
        &mut self,
        variant: &str,
        metric: &str,
        value: f64,
        second: Option<f64>,
    ) -> Result<(), Problems> {
        let problem = |text: String| Err(Problems(vec![text]));
        let Some(arm) = self.arm(variant) else {
            return problem(format!("variant: `{}` takes no part", sconce_core::abbreviate(variant)));
        };
        let Some(at) = self.spec.metrics.iter().position(|spec| spec.name == metric) else {
            return problem(format!("metric: there is no `{}`", sconce_core::abbreviate(metric)));
        };
        let second = match (self.spec.metrics[at].kind, second) {
            (MetricKind::Conversion | MetricKind::Mean, _) => 1.0,
            (_, Some(second)) => second,
            (_, None) => return problem(format!("metric `{metric}`: expected two numbers, got one")),
        };
        let arm = &mut self.arms[arm];
        let outcomes = &mut arm.metrics[at];
        if self.spec.metrics[at].kind == MetricKind::Conversion && outcomes.pairs.first().count() >= arm.units
        {
            return problem(format!("metric `{metric}`: all {} units have converted already", arm.units));
        }
        let taken = outcomes.pairs.update(value, second).and_then(|()| outcomes.sequence.update(value));
        taken.map_err(|error| Problems(vec![format!("metric `{metric}`: {error}")]))
    }

    /// What came of it so far. In a group-sequential design, a look that is due is taken, and remembered.
    pub fn report(&mut self) -> ExperimentReport {
        let units: Vec<u64> = self.arms.iter().map(|arm| arm.units).collect();
        let sample_ratio = self.sample_ratio();
        if sample_ratio.mismatch {
            let sentence = format!(
                "units were not split as planned: {units:?}, which happens by chance in {:.1e} of experiments",
                sample_ratio.p_value.unwrap_or(0.0)
            );
            let advice = Advice::SampleRatioMismatch;
            return ExperimentReport {
                units,
                sample_ratio,
                advice,
                goals: Vec::new(),
                guardrails: Vec::new(),
                sentence,
            };
        }
        let guardrails = self.compare(|metric| metric.max_harm.is_some(), Self::guard);
        let goals = self.goals(units.iter().sum());
        let broken = guardrails.iter().find(|guardrail| guardrail.outcome == Outcome::Worse);
        let decided = |goal: &Comparison| matches!(goal.outcome, Outcome::Better | Outcome::Worse);
        let is_time =
            goals.iter().all(|goal| goal.outcome != Outcome::TooEarly) && self.is_over(units.iter().sum());
        let (advice, sentence) = if let Some(Comparison { metric, variant, .. }) = broken {
            (Advice::Stop, format!("{variant} breaks the guardrail {metric}"))
        } else if is_time || (!goals.is_empty() && goals.iter().all(decided)) {
            let said = |goal: &Comparison| {
                let what = match goal.outcome {
                    Outcome::Better => "better",
                    Outcome::Worse => "worse",
                    Outcome::Undecided | Outcome::TooEarly => "not shown to differ",
                };
                format!("{} is {what} by {}", goal.variant, goal.metric)
            };
            (Advice::Decide, goals.iter().map(said).collect::<Vec<_>>().join(", "))
        } else {
            (Advice::GoOn, "not decided yet".to_owned())
        };
        ExperimentReport { units, sample_ratio, advice, goals, guardrails, sentence }
    }

    /// The guardrail that stops the experiment, if one of those that may is broken in `report`.
    pub fn stopped_by<'a>(&self, report: &'a ExperimentReport) -> Option<&'a Comparison> {
        let stops = |name: &str| self.spec.metrics.iter().any(|metric| metric.name == name && metric.stops);
        report.guardrails.iter().find(|it| it.outcome == Outcome::Worse && stops(&it.metric))
    }

    fn arm(&self, variant: &str) -> Option<usize> {
        self.spec.arms.iter().position(|arm| arm.variant == variant)
    }

    fn sample_ratio(&self) -> SampleRatio {
        let counts: Vec<f64> = self.arms.iter().map(|arm| arm.units as f64).collect();
        let expected: Vec<f64> = self.arms.iter().map(|arm| arm.expected).collect();
        let p_value = sample_ratio(&counts, &expected).ok().map(|test| test.p_value);
        SampleRatio { p_value, mismatch: p_value.is_some_and(|p| p < SAMPLE_RATIO_ALARM) }
    }

    /// Whether a design with an end has come to it.
    fn is_over(&self, units: u64) -> bool {
        match &self.spec.design {
            Design::AlwaysValid => false,
            Design::Fixed { units: planned } | Design::GroupSequential { units: planned, .. } => {
                units >= *planned
            }
        }
    }

    fn goals(&mut self, units: u64) -> Vec<Comparison> {
        let is_goal = |metric: &MetricSpec| metric.max_harm.is_none();
        let part = self.spec.alpha / self.spec.questions() as f64;
        match self.spec.design.clone() {
            Design::AlwaysValid => {
                self.compare(is_goal, |this, metric, arm| this.sequential(metric, arm, part))
            }
            Design::Fixed { .. } => {
                let is_over = self.is_over(units);
                let mut goals = self.compare(is_goal, |this, metric, arm| this.fixed(metric, arm, part));
                self.correct(&mut goals, is_over);
                goals
            }
            Design::GroupSequential { units: planned, looks } => {
                let due = looks.iter().filter(|look| units as f64 >= **look * planned as f64).count();
                if due > self.looks.len() {
                    // Costly, and needed a few times in an experiment.
                    let bounds = group_sequential_bounds(&looks, part, SPENDING, 2).unwrap_or_default();
                    let bound = bounds.get(due - 1).copied().unwrap_or(f64::INFINITY);
                    let results = self.compare(is_goal, |this, metric, arm| this.at_look(metric, arm, bound));
                    // A look that was missed is not made up for: its alpha is not spent, and later bounds hold all the same.
                    self.looks.resize(due, Look { units, results });
                }
                // What was decided at a look stays decided.
                let mut goals = match self.looks.last() {
                    Some(look) => look.results.clone(),
                    None => {
                        let early = |this: &Self, metric, arm| Comparison {
                            outcome: Outcome::TooEarly,
                            ..this.fixed(metric, arm, part)
                        };
                        self.compare(is_goal, early)
                    }
                };
                for (at, goal) in goals.iter_mut().enumerate() {
                    let before = self.looks.iter().filter_map(|look| look.results.get(at));
                    let decided =
                        |result: &&Comparison| matches!(result.outcome, Outcome::Better | Outcome::Worse);
                    if let Some(first) = before.clone().find(decided) {
                        goal.clone_from(first);
                    }
                }
                goals
            }
        }
    }

    /// Each metric that is wanted, of each treatment.
    fn compare(
        &self,
        wanted: impl Fn(&MetricSpec) -> bool,
        compare: impl Fn(&Self, usize, usize) -> Comparison,
    ) -> Vec<Comparison> {
        let metrics = (0..self.spec.metrics.len()).filter(|at| wanted(&self.spec.metrics[*at]));
        metrics
            .flat_map(|metric| (1..self.arms.len()).map(move |arm| (metric, arm)))
            .map(|(metric, arm)| compare(self, metric, arm))
            .collect()
    }

    fn empty(&self, metric: usize, arm: usize) -> Comparison {
        Comparison {
            metric: self.spec.metrics[metric].name.clone(),
            variant: self.spec.arms[arm].variant.clone(),
            difference: None,
            interval: None,
            relative: None,
            p_value: None,
            variance_reduction: None,
            outcome: Outcome::Undecided,
        }
    }

    fn trials(&self, metric: usize, arm: usize) -> Trials {
        let arm = &self.arms[arm];
        Trials { events: arm.metrics[metric].pairs.first().count(), trials: arm.units }
    }

    /// Control, treatment: their outcomes of a metric.
    fn sides(&self, metric: usize, arm: usize) -> (&Outcomes, &Outcomes) {
        (&self.arms[0].metrics[metric], &self.arms[arm].metrics[metric])
    }

    /// By the tests of a fixed design, its interval at level `alpha`.
    fn fixed(&self, metric: usize, arm: usize, alpha: f64) -> Comparison {
        let mut comparison = self.empty(metric, arm);
        let (control, treatment) = self.sides(metric, arm);
        let (effect, base) = match self.spec.metrics[metric].kind {
            MetricKind::Conversion => {
                let (ours, theirs) = (self.trials(metric, arm), self.trials(metric, 0));
                comparison.relative = relative_lift(theirs, ours, alpha).ok().map(|(lift, _)| lift);
                let newcombe = difference_interval(ours, theirs, alpha, DifferenceMethod::Newcombe);
                let effect = rate_difference(theirs, ours, alpha)
                    .and_then(|effect| Ok(Effect { interval: newcombe?, ..effect }));
                (effect.ok(), None)
            }
            MetricKind::Mean => {
                let effect = mean_difference(control.pairs.first(), treatment.pairs.first(), alpha);
                (effect.ok(), Some(control.pairs.first().mean()))
            }
            MetricKind::Adjusted => {
                let adjusted = cuped(&control.pairs, &treatment.pairs, alpha).ok();
                comparison.variance_reduction = adjusted.map(|adjusted| adjusted.variance_reduction);
                (adjusted.map(|adjusted| adjusted.effect), Some(control.pairs.first().mean()))
            }
            MetricKind::Ratio => {
                let ratio = ratio_difference(&control.pairs, &treatment.pairs, alpha).ok();
                (ratio.map(|ratio| ratio.effect), ratio.map(|ratio| ratio.ratios.0))
            }
        };
        if let Some(effect) = effect {
            comparison.difference = Some(effect.difference);
            comparison.interval = Some(effect.interval);
            comparison.p_value = Some(effect.p_value);
            let relative = base.map(|base| effect.difference / base).filter(|relative| relative.is_finite());
            comparison.relative = comparison.relative.or(relative);
        }
        comparison
    }

    /// Corrects the p-values of `goals`, and decides by them if it is time.
    fn correct(&self, goals: &mut [Comparison], is_over: bool) {
        // What cannot be computed counts as one more that shows nothing.
        let p_values: Vec<f64> = goals.iter().map(|goal| goal.p_value.unwrap_or(1.0)).collect();
        let corrected = correct(&p_values, self.spec.alpha, self.spec.correction).unwrap_or_default();
        for (goal, corrected) in goals.iter_mut().zip(corrected) {
            goal.p_value = goal.p_value.map(|_| corrected.p_value);
            goal.outcome = match is_over {
                false => Outcome::TooEarly,
                true if corrected.reject => self.direction(goal),
                true => Outcome::Undecided,
            };
        }
    }

    /// By a look whose bound on |z| is `bound`.
    fn at_look(&self, metric: usize, arm: usize, bound: f64) -> Comparison {
        let alpha = 2.0 * (1.0 - sconce_stats::special::normal_cdf(bound));
        let alpha = alpha.clamp(f64::MIN_POSITIVE, 0.999);
        let mut comparison = self.fixed(metric, arm, alpha);
        // The z that has the test's p-value: means have a t.
        let z = comparison.p_value.map(|p| -normal_quantile((p / 2.0).max(f64::MIN_POSITIVE)));
        if z.is_some_and(|z| z >= bound) {
            comparison.outcome = self.direction(&comparison);
        }
        comparison
    }

    /// By confidence sequences at level `alpha`, at any time.
    fn sequential(&self, metric: usize, arm: usize, alpha: f64) -> Comparison {
        let mut comparison = self.empty(metric, arm);
        let Some((difference, base)) = self.estimate(metric, arm) else { return comparison };
        comparison.difference = Some(difference);
        comparison.relative = Some(difference / base).filter(|relative| relative.is_finite());
        comparison.interval = self.sequence(metric, arm, alpha);
        let excludes_0 =
            |alpha: f64| self.sequence(metric, arm, alpha).is_some_and(|interval| !interval.contains(0.0));
        // The least level at which 0 is excluded, times how many questions share it.
        let (mut low, mut high) = (1e-12_f64, 1.0);
        for _ in 0..16 {
            let middle = (low * high).sqrt();
            if excludes_0(middle) { high = middle } else { low = middle }
        }
        comparison.p_value = Some((high * self.spec.questions() as f64).min(1.0));
        if comparison.interval.is_some_and(|interval| !interval.contains(0.0)) {
            comparison.outcome = self.direction(&comparison);
        }
        comparison
    }

    /// A guardrail, at its part of alpha.
    fn guard(&self, metric: usize, arm: usize) -> Comparison {
        let guardrails = self.spec.metrics.iter().filter(|metric| metric.max_harm.is_some()).count();
        let alpha = self.spec.alpha / (guardrails * self.arms.len().saturating_sub(1)).max(1) as f64;
        let mut comparison = self.empty(metric, arm);
        let spec = &self.spec.metrics[metric];
        comparison.difference = self.estimate(metric, arm).map(|(difference, _)| difference);
        comparison.interval = self.sequence(metric, arm, alpha);
        let (Some(interval), Some(harm)) = (comparison.interval, spec.max_harm) else { return comparison };
        let (least_harm, most_harm) = if spec.higher_is_better {
            (-interval.high, -interval.low)
        } else {
            (interval.low, interval.high)
        };
        if least_harm > harm {
            comparison.outcome = Outcome::Worse;
        } else if most_harm <= harm {
            comparison.outcome = Outcome::Better;
        }
        comparison
    }

    /// The difference, and what the control has.
    fn estimate(&self, metric: usize, arm: usize) -> Option<(f64, f64)> {
        let (control, treatment) = self.sides(metric, arm);
        let (ours, theirs) = match self.spec.metrics[metric].kind {
            MetricKind::Conversion => (self.trials(metric, arm).rate(), self.trials(metric, 0).rate()),
            _ => {
                let first = |side: &Outcomes| {
                    Some(side.pairs.first()).filter(|side| side.count() > 0).map(|m| m.mean())
                };
                (first(treatment)?, first(control)?)
            }
        };
        Some((ours - theirs, theirs)).filter(|(difference, _)| difference.is_finite())
    }

    /// Where the difference lies at all times together, at level `alpha`: each arm's confidence sequence takes a half of it.
    fn sequence(&self, metric: usize, arm: usize, alpha: f64) -> Option<Interval> {
        let side = |arm: usize| -> Option<Interval> {
            if self.spec.metrics[metric].kind == MetricKind::Conversion {
                let Trials { events, trials } = self.trials(metric, arm);
                let mut rate = BetaBinomial::new(0.5, 0.5).ok()?;
                rate.update(events, trials - events);
                return rate.interval(alpha / 2.0).ok();
            }
            let outcomes = &self.arms[arm].metrics[metric];
            let centred = outcomes.sequence.interval(alpha / 2.0).ok()?;
            (outcomes.pairs.first().count() >= BURN_IN).then(|| centred.into())
        };
        let (control, treatment) = (side(0)?, side(arm)?);
        Some(Interval { low: treatment.low - control.high, high: treatment.high - control.low })
    }

    fn direction(&self, comparison: &Comparison) -> Outcome {
        let spec = self.spec.metrics.iter().find(|spec| spec.name == comparison.metric);
        let up = comparison.difference.is_some_and(|difference| difference > 0.0);
        if spec.is_none_or(|spec| spec.higher_is_better) == up { Outcome::Better } else { Outcome::Worse }
    }
}

#[cfg(test)]
mod tests;
