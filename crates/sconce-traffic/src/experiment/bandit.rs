//! Shares that follow what is known of each arm.

use crate::Problems;
use crate::route::MAX_VARIANTS;
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
/// nothing is known (fewer than two units) is drawn as if it were the best. The same `seed` gives the same shares.
///
/// # Errors
/// Fewer than two arms or more than 16; a floor that is negative or more than all arms can have; more events than trials.
pub fn thompson_shares(arms: &[Known], floor_percent: f64, seed: u64) -> Result<Vec<f64>, Problems> {
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
            let value = draw(arm, uniform(&mut state));
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

/// A value of the arm's posterior, by its quantile: a uniform prior on a rate, and on a mean what the central limit theorem gives.
fn draw(arm: &Known, quantile: f64) -> f64 {
    match arm {
        Known::Rate(Trials { events, trials }) => {
            beta_quantile(quantile, *events as f64 + 1.0, (trials - events) as f64 + 1.0)
        }
        Known::Mean(moments) if moments.count() < 2 => f64::MAX * quantile,
        Known::Mean(moments) => {
            moments.mean() + (moments.variance() / moments.count() as f64).sqrt() * normal_quantile(quantile)
        }
    }
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
