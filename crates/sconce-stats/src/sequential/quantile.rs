use super::bernoulli::accepted_counts;
use crate::error::{Result, in_range, open_unit};

/// Ranks between which a quantile lies; see [`quantile_ranks`]. Ranks count from 1, the smallest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantileRanks {
    /// The quantile is at least the value of this rank; 0 if nothing bounds it from below yet.
    pub low: u64,
    /// The quantile is at most the value of this rank; one more than there are values if nothing bounds it from above yet.
    pub high: u64,
}

/// The ranks, among `count` values so far, between which the quantile `p` lies at all times together with probability
/// `1 - alpha`: a confidence sequence for a quantile of any distribution, ties included.
///
/// Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification",
/// Bernoulli 28(3), 2022, theorem 1, with its beta-binomial boundary: the number of values at or below the quantile is a
/// binomial path of rate at least p (below it: at most p), and the counts that the beta-binomial mixture does not reject bound
/// the ranks. The mixture is tuned to be narrowest after about `tuned_for` values.
///
/// # Errors
/// `p` or `alpha` not strictly between 0 and 1; `tuned_for` of 0; more than 2^52 values.
pub fn quantile_ranks(count: u64, p: f64, alpha: f64, tuned_for: u64) -> Result<QuantileRanks> {
    open_unit("p", p)?;
    open_unit("alpha", alpha)?;
    in_range("tuned_for", tuned_for as f64, tuned_for > 0, "at least 1")?;
    let twice = -2.0 * alpha.ln();
    let size = (tuned_for as f64 / (twice + twice.ln_1p())).max(1.0);
    let (low, high) = accepted_counts(count, p, (p * size, (1.0 - p) * size), alpha)?;
    // At least `low` values lie at or below the quantile; at most `high` lie below it.
    Ok(QuantileRanks { low, high: high + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// The share of 2,000 runs in which the ranks ever miss the quantile `p` of values drawn by `draw`, looked at after every
    /// value.
    fn missed(p: f64, truth: f64, steps: u64, draw: impl Fn(&mut Rng) -> f64) -> f64 {
        let mut random = Rng::with_seed(31);
        let ranks: Vec<_> = (0..=steps).map(|n| quantile_ranks(n, p, 0.05, 200).unwrap()).collect();
        let mut count = 0;
        for _ in 0..2_000 {
            let (mut below, mut at_or_below, mut miss) = (0, 0, false);
            for n in 1..=steps {
                let value = draw(&mut random);
                below += u64::from(value < truth);
                at_or_below += u64::from(value <= truth);
                let QuantileRanks { low, high } = ranks[n as usize];
                // The value of rank k is at most the truth if at least k values are; at least, if fewer than k lie below.
                miss |= at_or_below < low || below >= high;
            }
            count += u32::from(miss);
        }
        f64::from(count) / 2_000.0
    }

    #[test]
    fn quantiles_are_missed_in_at_most_alpha_of_the_runs_ever() {
        let uniform = |random: &mut Rng| random.f64();
        for p in [0.5, 0.95, 0.99] {
            let share = missed(p, p, 1_000, uniform);
            assert!(share <= 0.05, "{p}: {share}");
        }
        // With ties: a die, whose median is 3.
        let share = missed(0.5, 3.0, 500, |random| f64::from(random.u8(1..=6)));
        assert!(share <= 0.05, "{share}");
    }

    #[test]
    fn ranks_close_in_on_the_quantile() {
        let far = quantile_ranks(50, 0.99, 0.05, 1_000).unwrap();
        assert_eq!(far.high, 51, "{far:?}");
        let near = quantile_ranks(1_000_000, 0.99, 0.05, 1_000_000).unwrap();
        assert!(near.low > 989_500 && near.high < 990_500, "{near:?}");
        assert!(quantile_ranks(10, 1.0, 0.05, 10).is_err() && quantile_ranks(10, 0.5, 0.05, 0).is_err());
    }
}
