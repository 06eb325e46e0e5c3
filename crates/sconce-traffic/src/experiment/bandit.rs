//! Shares that follow what is known of each arm.

use super::{ArmSpec, Experiment, MetricKind};
use crate::Problems;
use crate::route::{MAX_VARIANTS, RouteSpec};
use sconce_stats::Trials;
use sconce_stats::experiment::Moments;
use sconce_stats::special::{beta_quantile, normal_quantile};

/// Draws by which the chance of being best is found: a share is within about 1 percent of it.
const DRAWS: u64 = 2_000;

/// What is known of an arm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    /// How often its units converted.
    Rate(Trials),
    /// What its units gave.
    Mean(Moments),
}

/// The share of each arm, in percent with two decimals and a sum of 100: its chance of being the best by Thompson sampling ("On the
/// likelihood that one unknown probability exceeds another", 1933), and never less than `floor_percent`. An arm about whose mean
/// nothing is known (fewer than two units) is drawn as if it were the best. Best is the most, or the least if not `higher_is_better`. The
/// same `seed` gives the same shares.
///
/// # Errors
/// Fewer than two arms or more than 16; a floor that is negative or more than all arms can have; more events than trials.
pub fn thompson_shares(
    arms: &[Known],
    higher_is_better: bool,
    floor_percent: f64,
    seed: u64,
) -> Result<Vec<f64>, Problems> {
    let mut problems = Vec::new();
    if !(2..=MAX_VARIANTS).contains(&arms.len()) {
        problems.push(format!("arms: expected 2 to {MAX_VARIANTS}, got {}", arms.len()));
    }
    let most = 100.0 / arms.len().max(1) as f64;
    if !(0.0..=most).contains(&floor_percent) {
        problems.push(format!("floor_percent: expected 0 to {most}, got {floor_percent}"));
    }
    let is_off = |arm: &Known| matches!(arm, Known::Rate(trials) if trials.events > trials.trials);
    if let Some(at) = arms.iter().position(is_off) {
        problems.push(format!("arms[{at}]: expected at most as many conversions as units"));
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let mut state = seed;
    let mut wins = vec![0_u64; arms.len()];
    for _ in 0..DRAWS {
        let mut best = (0, f64::NEG_INFINITY);
        for (at, arm) in arms.iter().enumerate() {
            let value = draw(arm, higher_is_better, uniform(&mut state));
            if value > best.1 {
                best = (at, value);
            }
        }
        wins[best.0] += 1;
    }
    // In hundredths of a percent: the floor for each, and the rest by chance, what rounding leaves to the best.
    let floor = (floor_percent * 100.0).ceil().min((10_000.0 / arms.len() as f64).floor()) as u64;
    let rest = 10_000 - floor * arms.len() as u64;
    let mut shares: Vec<u64> = wins.iter().map(|wins| floor + rest * wins / DRAWS).collect();
    let left = 10_000 - shares.iter().sum::<u64>();
    if let Some(best) = (0..arms.len()).max_by_key(|at| wins[*at]) {
        shares[best] += left;
    }
    Ok(shares.into_iter().map(|share| share as f64 / 100.0).collect())
}

/// How good an arm is by a value of its posterior, by its quantile: a uniform prior on a rate, and on a mean what the central limit
/// theorem gives.
fn draw(arm: &Known, higher_is_better: bool, quantile: f64) -> f64 {
    let value = match arm {
        Known::Rate(Trials { events, trials }) => {
            beta_quantile(quantile, *events as f64 + 1.0, (trials - events) as f64 + 1.0)
        }
        Known::Mean(moments) if moments.count() < 2 => return f64::MAX * quantile,
        Known::Mean(moments) => {
            moments.mean() + (moments.variance() / moments.count() as f64).sqrt() * normal_quantile(quantile)
        }
    };
    if higher_is_better { value } else { -value }
}

impl Experiment {
    /// What share each arm should have by what is known now, in percent of what the arms have together, as [`thompson_shares`]; `None`
    /// where no bandit was declared, or no outcome is known: then all that arms differ in is how many units came by chance.
    ///
    /// # Errors
    /// As [`thompson_shares`].
    pub fn bandit_shares(&self, seed: u64) -> Option<Result<Vec<f64>, Problems>> {
        let bandit = self.spec.bandit.as_ref()?;
        let at = self.spec.metrics.iter().position(|metric| metric.name == bandit.metric)?;
        let metric = &self.spec.metrics[at];
        let known = |arm: usize| match metric.kind {
            MetricKind::Conversion => Known::Rate(self.trials(at, arm)),
            _ => Known::Mean(*self.arms[arm].metrics[at].pairs.first()),
        };
        let arms: Vec<Known> = (0..self.arms.len()).map(known).collect();
        if self.arms.iter().all(|arm| arm.metrics[at].pairs.first().count() == 0) {
            return None;
        }
        Some(thompson_shares(&arms, metric.higher_is_better, bandit.floor_percent, seed))
    }
}

/// `route` with `percents` of what `arms` have in it together given to each of them, in their order; what others have stays. In steps of
/// 0.01 %: what rounding leaves goes to who gets most. `None` where the route has not all arms, or they have nothing.
pub fn reshare(route: &RouteSpec, arms: &[ArmSpec], percents: &[f64]) -> Option<RouteSpec> {
    let mut route = route.clone();
    let place = |arm: &ArmSpec| route.splits.iter().position(|split| split.variant == arm.variant);
    let places: Vec<usize> = arms.iter().map(place).collect::<Option<_>>()?;
    let all: f64 = places.iter().map(|at| (route.splits[*at].percent * 100.0).round()).sum();
    let sum: f64 = percents.iter().sum();
    if all <= 0.0 || sum <= 0.0 || percents.len() != arms.len() {
        return None;
    }
    // A little more, for what is whole may have come out just below.
    let mut hundredths: Vec<f64> =
        percents.iter().map(|percent| (all * percent / sum + 1e-6).floor()).collect();
    let most = (0..arms.len()).max_by(|a, b| percents[*a].total_cmp(&percents[*b]))?;
    hundredths[most] += all - hundredths.iter().sum::<f64>();
    for (at, hundredths) in places.into_iter().zip(hundredths) {
        route.splits[at].percent = hundredths / 100.0;
    }
    Some(route)
}

/// A number between 0 and 1, neither included, by SplitMix64 (Steele, Lea and Flood, 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}
