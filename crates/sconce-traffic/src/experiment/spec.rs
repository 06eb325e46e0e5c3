//! What people declare of an experiment, the check of it, and how many units it takes.

use crate::Problems;
use crate::route::{MAX_VARIANTS, check_label};
use sconce_stats::correction::Correction;
use sconce_stats::experiment::{PowerTest, group_sequential_bounds, proportions_sample_size, sample_size};
use serde::{Deserialize, Serialize};

/// Metrics of an experiment.
pub const MAX_METRICS: usize = 32;
/// Bytes of a metric's name.
pub const MAX_METRIC_BYTES: usize = 64;

/// An experiment as people declare it, before it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentSpec {
    /// The variants of the model's route that take part, the control first: at least two.
    pub arms: Vec<ArmSpec>,
    /// What is measured: 1 to [`MAX_METRICS`].
    pub metrics: Vec<MetricSpec>,
    /// When one may decide. Default: always.
    #[serde(default)]
    pub design: Design,
    /// How often any metric of any arm may be taken for different that is not. Default 0.05.
    #[serde(default = "five_percent")]
    pub alpha: f64,
    /// How p-values are corrected for how many there are; the other designs share alpha out. Default Holm's.
    #[serde(default = "holm")]
    pub correction: Correction,
    /// Moves shares to the arms that do better while it runs. Default: shares stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandit: Option<BanditSpec>,
}

/// How shares follow what the arms do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanditSpec {
    /// The goal that they follow: a conversion or a mean.
    pub metric: String,
    /// The least share of each arm, in percent of what the arms have together: 0 to 100 by their number. Default 5.
    #[serde(default = "five")]
    pub floor_percent: f64,
    /// Seconds between two moves, 1 to 30 days. Default an hour.
    #[serde(default = "hour")]
    pub every_seconds: u64,
}

/// A variant that takes part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmSpec {
    /// Its label in the route.
    pub variant: String,
    /// The share of units that it should get, beside the others' weights.
    pub weight: f64,
}

/// Something that is measured of each unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricSpec {
    /// Its name: what outcomes are sent under.
    pub name: String,
    /// What an outcome is.
    pub kind: MetricKind,
    /// Whether more is better. Default true.
    #[serde(default = "yes")]
    pub higher_is_better: bool,
    /// Makes it a guardrail: it stops the experiment once an arm is shown to be worse than the control by more than this, in
    /// the metric's unit. Default: a goal.
    #[serde(default)]
    pub max_harm: Option<f64>,
    /// Of a guardrail: whether it stops the experiment by itself, or is only told of. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub stops: bool,
}

/// What an outcome of a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// That it did something, once: units without an outcome did not.
    Conversion,
    /// A number. Units without an outcome are left out.
    Mean,
    /// A number and what was known of the unit before the experiment, which is taken off (CUPED).
    Adjusted,
    /// Two numbers: the metric is the sum of the first over the sum of the second.
    Ratio,
}

/// When one may decide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Design {
    /// Whenever one likes, by confidence sequences. Takes the most units if one would have waited anyway. No adjusted metrics or
    /// ratios but as guardrails that never stop anything.
    #[default]
    AlwaysValid,
    /// Once, after so many units of all arms together.
    Fixed {
        /// How many.
        units: u64,
    },
    /// At a few looks, by Lan and DeMets' spending of alpha.
    GroupSequential {
        /// Units of all arms together at the last look.
        units: u64,
        /// When to look, as shares of `units`, the last 1.
        looks: Vec<f64>,
    },
}

fn five_percent() -> f64 {
    0.05
}

fn holm() -> Correction {
    Correction::Holm
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_yes(flag: &bool) -> bool {
    *flag
}

fn five() -> f64 {
    5.0
}

fn hour() -> u64 {
    3_600
}

/// Between two moves of a bandit.
const MOST_SECONDS: u64 = 30 * 86_400;

/// How early looks spend less of alpha: `alpha t^2`.
pub(super) const SPENDING: f64 = 2.0;

impl ExperimentSpec {
    /// Checks it.
    ///
    /// # Errors
    /// Every problem, with the key it is about, what was expected and what came.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Vec::new();
        if !(2..=MAX_VARIANTS).contains(&self.arms.len()) {
            problems.push(format!("arms: expected 2 to {MAX_VARIANTS}, got {}", self.arms.len()));
        }
        for (at, arm) in self.arms.iter().take(MAX_VARIANTS).enumerate() {
            if let Err(problem) = check_label(&arm.variant) {
                problems.push(format!("arms[{at}].variant: {problem}"));
            }
            if self.arms[..at].iter().any(|other| other.variant == arm.variant) {
                problems.push(format!("arms[{at}].variant: `{}` is named twice", arm.variant));
            }
            if !(arm.weight > 0.0 && arm.weight.is_finite()) {
                problems.push(format!("arms[{at}].weight: expected a number above 0, got {}", arm.weight));
            }
        }
        if !(1..=MAX_METRICS).contains(&self.metrics.len()) {
            problems.push(format!("metrics: expected 1 to {MAX_METRICS}, got {}", self.metrics.len()));
        }
        for (at, metric) in self.metrics.iter().take(MAX_METRICS).enumerate() {
            let length = metric.name.len();
            if !(1..=MAX_METRIC_BYTES).contains(&length) {
                problems.push(format!(
                    "metrics[{at}].name: expected 1 to {MAX_METRIC_BYTES} bytes, got {length}"
                ));
            }
            if self.metrics[..at].iter().any(|other| other.name == metric.name) {
                problems.push(format!("metrics[{at}].name: `{}` is named twice", metric.name));
            }
            if metric.max_harm.is_none() && !metric.stops {
                problems.push(format!("metrics[{at}].stops: expected only beside max_harm"));
            }
            if let Some(harm) = metric.max_harm.filter(|harm| !(*harm >= 0.0 && harm.is_finite())) {
                problems.push(format!("metrics[{at}].max_harm: expected a number of at least 0, got {harm}"));
            }
            let sequential = matches!(metric.kind, MetricKind::Conversion | MetricKind::Mean);
            if !sequential && (metric.max_harm.is_some() || self.design == Design::AlwaysValid) {
                problems.push(format!(
                    "metrics[{at}].kind: expected conversion or mean for a guardrail and for a design that is always valid"
                ));
            }
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            problems.push(format!(
                "alpha: expected a number between 0 and 1, neither included, got {}",
                self.alpha
            ));
        }
        self.check_design(&mut problems);
        self.check_bandit(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// How many questions share alpha: each goal of each arm but the control.
    pub(super) fn questions(&self) -> usize {
        let goals = self.metrics.iter().filter(|metric| metric.max_harm.is_none()).count();
        (goals * self.arms.len().saturating_sub(1)).max(1)
    }

    fn check_bandit(&self, problems: &mut Vec<String>) {
        let Some(bandit) = &self.bandit else { return };
        let is_followed = |metric: &MetricSpec| {
            metric.name == bandit.metric
                && metric.max_harm.is_none()
                && matches!(metric.kind, MetricKind::Conversion | MetricKind::Mean)
        };
        if !self.metrics.iter().any(is_followed) {
            problems.push(format!(
                "bandit.metric: expected a goal that is a conversion or a mean, got {:?}",
                sconce_core::abbreviate(&bandit.metric)
            ));
        }
        let most = 100.0 / self.arms.len().max(1) as f64;
        if !(0.0..=most).contains(&bandit.floor_percent) {
            problems
                .push(format!("bandit.floor_percent: expected 0 to {most}, got {}", bandit.floor_percent));
        }
        if !(1..=MOST_SECONDS).contains(&bandit.every_seconds) {
            problems.push(format!(
                "bandit.every_seconds: expected 1 to {MOST_SECONDS}, got {}",
                bandit.every_seconds
            ));
        }
        // Its tests are of units that were drawn with the same shares all the time; confidence sequences of each arm are not.
        if self.design != Design::AlwaysValid {
            problems.push("bandit: expected a design that is always valid beside it".to_owned());
        }
    }

    fn check_design(&self, problems: &mut Vec<String>) {
        let (Design::Fixed { units } | Design::GroupSequential { units, .. }) = &self.design else { return };
        if *units < 2 {
            problems.push(format!("design.units: expected at least 2, got {units}"));
        }
        if let Design::GroupSequential { looks, .. } = &self.design {
            if looks.last() != Some(&1.0) {
                problems.push("design.looks: expected the last to be 1".to_owned());
            }
            if let Err(error) = group_sequential_bounds(looks, 0.05, SPENDING, 2) {
                problems.push(format!("design.looks: {error}"));
            }
        }
    }
}

/// What an experiment is to find, for [`units_needed`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// That a rate differs.
    Conversion {
        /// The control's rate.
        control: f64,
        /// The treatment's.
        treatment: f64,
    },
    /// That a mean differs.
    Mean {
        /// The difference.
        difference: f64,
        /// The standard deviation of one unit.
        deviation: f64,
    },
}

/// How many units, of control and of treatment, find `goal` with chance `power` in a fixed design with two arms, at level `alpha`,
/// with `ratio` times as many in the treatment.
///
/// # Errors
/// What is out of its range, or a goal that is no difference.
pub fn units_needed(goal: Goal, alpha: f64, power: f64, ratio: f64) -> Result<(u64, u64), Problems> {
    let units = match goal {
        Goal::Conversion { control, treatment } => {
            proportions_sample_size(control, treatment, alpha, power, ratio)
        }
        Goal::Mean { difference, deviation } => {
            sample_size(difference / deviation, alpha, power, ratio, PowerTest::T)
        }
    };
    let units = units.map_err(|error| Problems(vec![error.to_string()]))?;
    Ok((units.ceil() as u64, (units * ratio).ceil() as u64))
}
