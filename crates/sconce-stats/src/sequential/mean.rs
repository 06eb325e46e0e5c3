use crate::error::{Result, finite, in_range, open_unit, positive};
use crate::interval::Interval;
use serde::{Deserialize, Serialize};

/// An interval as its centre and what it reaches to either side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Centred {
    /// The middle.
    pub centre: f64,
    /// The reach; infinite before the first observation.
    pub radius: f64,
}

impl From<Centred> for Interval {
    fn from(centred: Centred) -> Self {
        Self::around(centred.centre, centred.radius)
    }
}

/// The `rho` with which [`AsymptoticMean`] and [`SubGaussianMean`] are narrowest after about `observations`, at level `alpha`:
/// `sqrt((2 ln(1/alpha) + ln(1 + 2 ln(1/alpha))) / n)` (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, 2024, appendix B.2).
///
/// # Errors
/// `alpha` not strictly between 0 and 1; no observations.
pub fn tuned_rho(alpha: f64, observations: u64) -> Result<f64> {
    open_unit("alpha", alpha)?;
    in_range("observations", observations as f64, observations > 0, "at least 1")?;
    let twice = -2.0 * alpha.ln();
    Ok(((twice + twice.ln_1p()) / observations as f64).sqrt())
}

/// Asymptotic confidence sequence of a mean, with no bound on the values: valid in the limit of many observations, as the
/// central limit theorem is (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
/// confidence sequences", 2024, theorem 2.2).
///
/// Its radius is 0 while all values are equal, the first included: give it a burn-in, or use [`BoundedMean`] where bounds are
/// known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AsymptoticMean {
    rho: f64,
    count: u64,
    mean: f64,
    squares: f64,
}

impl AsymptoticMean {
    /// Nothing seen yet; see [`tuned_rho`].
    ///
    /// # Errors
    /// `rho` that is not above 0.
    pub fn new(rho: f64) -> Result<Self> {
        positive("rho", rho)?;
        Ok(Self { rho, count: 0, mean: 0.0, squares: 0.0 })
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<()> {
        finite("value", &[value])?;
        self.count += 1;
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (value - self.mean);
        Ok(())
    }

    /// Takes all that `other` took, as if it had come after.
    ///
    /// # Errors
    /// Another `rho`.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        in_range("rho", other.rho, other.rho == self.rho, "the same")?;
        if other.count == 0 {
            return Ok(());
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let off = other.mean - self.mean;
        self.mean += off * m / (n + m);
        self.squares += other.squares + off * off * n * m / (n + m);
        self.count += other.count;
        Ok(())
    }

    /// The interval of level `1 - alpha`.
    ///
    /// # Errors
    /// `alpha` not strictly between 0 and 1.
    pub fn interval(&self, alpha: f64) -> Result<Centred> {
        open_unit("alpha", alpha)?;
        if self.count == 0 {
            return Ok(Centred { centre: 0.0, radius: f64::INFINITY });
        }
        let n = self.count as f64;
        let rho_square = self.rho * self.rho;
        let mixed = n * rho_square + 1.0;
        let bound = (2.0 * mixed / (n * n * rho_square) * (mixed.sqrt() / alpha).ln()).sqrt();
        Ok(Centred { centre: self.mean, radius: (self.squares / n).max(0.0).sqrt() * bound })
    }
}

/// Confidence sequence of the mean of sub-Gaussian values, by the normal mixture (Robbins 1970; Howard, Ramdas, McAuliffe and
/// Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021, equation 14).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubGaussianMean {
    /// The variance proxy of one value.
    proxy: f64,
    rho: f64,
    count: u64,
    mean: f64,
}

impl SubGaussianMean {
    /// Nothing seen yet. `scale` is the sub-Gaussian parameter, the standard deviation for normal values and half of the range
    /// for bounded ones. See [`tuned_rho`] for `rho`.
    ///
    /// # Errors
    /// `scale` or `rho` that is not above 0.
    pub fn new(scale: f64, rho: f64) -> Result<Self> {
        positive("scale", scale)?;
        positive("rho", rho)?;
        Ok(Self { proxy: scale * scale, rho, count: 0, mean: 0.0 })
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, value: f64) -> Result<()> {
        finite("value", &[value])?;
        self.count += 1;
        self.mean += (value - self.mean) / self.count as f64;
        Ok(())
    }

    /// The interval of level `1 - alpha`.
    ///
    /// # Errors
    /// `alpha` not strictly between 0 and 1.
    pub fn interval(&self, alpha: f64) -> Result<Centred> {
        open_unit("alpha", alpha)?;
        if self.count == 0 {
            return Ok(Centred { centre: 0.0, radius: f64::INFINITY });
        }
        let n = self.count as f64;
        let prior = self.proxy / (self.rho * self.rho);
        let total = n * self.proxy + prior;
        let radius = (total * (total / (prior * alpha * alpha)).ln()).sqrt() / n;
        Ok(Centred { centre: self.mean, radius })
    }

    /// The natural logarithm of the e-process for the mean being `null`: `s^2 / (2 (V + r)) - ln((V + r) / r) / 2`.
    pub fn log_e(&self, null: f64) -> f64 {
        let n = self.count as f64;
        let prior = self.proxy / (self.rho * self.rho);
        let total = n * self.proxy + prior;
        let sum = n * (self.mean - null);
        sum * sum / (2.0 * total) - 0.5 * (total / prior).ln()
    }
}

/// Confidence sequence of the mean of bounded values, by the predictable plug-in empirical-Bernstein bound: it narrows with the
/// spread that is seen (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024, theorem 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundedMean {
    low: f64,
    high: f64,
    /// `ln(2 / alpha)`.
    level: f64,
    count: u64,
    /// Of values moved to 0..=1.
    sum: f64,
    squares: f64,
    mean: f64,
    variance: f64,
    weights: f64,
    weighted: f64,
    spent: f64,
}

impl BoundedMean {
    /// Nothing seen yet of values between `low` and `high`, at level `1 - alpha`, on which its bets depend.
    ///
    /// # Errors
    /// Bounds that are not finite and in order; `alpha` not strictly between 0 and 1.
    pub fn new(low: f64, high: f64, alpha: f64) -> Result<Self> {
        finite("bounds", &[low, high, high - low])?;
        in_range("high", high, high > low, "a number above the lower bound")?;
        open_unit("alpha", alpha)?;
        Ok(Self {
            low,
            high,
            level: (2.0 / alpha).ln(),
            count: 0,
            sum: 0.0,
            squares: 0.0,
            mean: 0.5,
            variance: 0.25,
            weights: 0.0,
            weighted: 0.0,
            spent: 0.0,
        })
    }

    /// Takes a value.
    ///
    /// # Errors
    /// A value outside the bounds.
    pub fn update(&mut self, value: f64) -> Result<()> {
        in_range("value", value, value >= self.low && value <= self.high, "a number within the bounds")?;
        self.add(value);
        Ok(())
    }

    /// Takes a value that is known to lie within the bounds.
    pub(super) fn add(&mut self, value: f64) {
        let x = (value - self.low) / (self.high - self.low);
        self.count += 1;
        let t = self.count as f64;
        let bet = (2.0 * self.level / (self.variance * t * t.ln_1p())).sqrt().min(0.5);
        let surprise = 4.0 * (x - self.mean) * (x - self.mean);
        self.weights += bet;
        self.weighted += bet * x;
        self.spent += surprise * (-(-bet).ln_1p() - bet) / 4.0;
        self.sum += x;
        self.mean = (0.5 + self.sum) / (t + 1.0);
        self.squares += (x - self.mean) * (x - self.mean);
        self.variance = (0.25 + self.squares) / (t + 1.0);
    }

    /// The interval, not yet cut off at the bounds. Its centre weights early values more than the mean does.
    pub fn centred(&self) -> Centred {
        if self.count == 0 {
            return Centred { centre: 0.5 * (self.low + self.high), radius: f64::INFINITY };
        }
        let range = self.high - self.low;
        Centred {
            centre: self.low + range * (self.weighted / self.weights),
            radius: range * ((self.level + self.spent) / self.weights),
        }
    }

    /// The interval, within the bounds.
    pub fn interval(&self) -> Interval {
        Interval::from(self.centred()).intersection(&Interval { low: self.low, high: self.high })
    }

    /// How many values were seen, and their mean; NaN before the first.
    pub fn mean(&self) -> (u64, f64) {
        (self.count, self.low + (self.high - self.low) * (self.sum / self.count as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// The share of 2,000 runs in which an interval ever misses `truth`.
    fn missed(
        truth: f64,
        steps: usize,
        mut run: impl FnMut(&mut Rng, usize, &mut dyn FnMut(Interval)),
    ) -> f64 {
        let mut random = Rng::with_seed(17);
        let mut count = 0;
        for _ in 0..2_000 {
            let mut miss = false;
            run(&mut random, steps, &mut |interval| miss |= !interval.contains(truth));
            count += u32::from(miss);
        }
        f64::from(count) / 2_000.0
    }

    fn normal(random: &mut Rng) -> f64 {
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    }

    #[test]
    fn merged_asymptotic_means_are_one_of_all_values() {
        let values: Vec<f64> = (0..100).map(|at| f64::from(at * 37 % 101)).collect();
        let of = |values: &[f64], rho: f64| {
            let mut mean = AsymptoticMean::new(rho).unwrap();
            values.iter().for_each(|value| mean.update(*value).unwrap());
            mean
        };
        let mut merged = of(&values[..30], 0.2);
        merged.merge(&of(&[], 0.2)).unwrap();
        merged.merge(&of(&values[30..], 0.2)).unwrap();
        let (merged, whole) = (merged.interval(0.05).unwrap(), of(&values, 0.2).interval(0.05).unwrap());
        assert!((merged.centre - whole.centre).abs() < 1e-9 && (merged.radius - whole.radius).abs() < 1e-9);
        assert!(of(&values, 0.2).merge(&of(&values, 0.3)).is_err());
    }

    #[test]
    fn bounded_means_are_missed_in_at_most_alpha_of_the_runs_ever() {
        for rate in [0.02, 0.5] {
            let share = missed(rate, 500, |random, steps, see| {
                let mut state = BoundedMean::new(0.0, 1.0, 0.05).unwrap();
                for _ in 0..steps {
                    state.update(f64::from(u8::from(random.f64() < rate))).unwrap();
                    see(state.interval());
                }
            });
            assert!(share <= 0.05, "{rate}: {share}");
        }
    }

    #[test]
    fn normal_means_are_missed_in_at_most_alpha_of_the_runs_ever() {
        let rho = tuned_rho(0.05, 200).unwrap();
        let share = missed(0.0, 500, |random, steps, see| {
            let mut state = SubGaussianMean::new(1.0, rho).unwrap();
            for _ in 0..steps {
                state.update(normal(random)).unwrap();
                let interval = Interval::from(state.interval(0.05).unwrap());
                assert_eq!(interval.contains(0.0), state.log_e(0.0) <= 20_f64.ln());
                see(interval);
            }
        });
        assert!(share <= 0.05, "{share}");
    }

    #[test]
    fn asymptotic_means_hold_after_a_burn_in() {
        let rho = tuned_rho(0.05, 500).unwrap();
        let share = missed(0.0, 1_000, |random, steps, see| {
            let mut state = AsymptoticMean::new(rho).unwrap();
            for step in 0..steps {
                state.update(normal(random)).unwrap();
                if step >= 100 {
                    see(state.interval(0.05).unwrap().into());
                }
            }
        });
        assert!(share <= 0.05, "{share}");
    }

    #[test]
    fn intervals_narrow_with_the_spread() {
        let radius = |spread: f64| {
            let mut state = BoundedMean::new(-1.0, 1.0, 0.05).unwrap();
            let mut random = Rng::with_seed(3);
            for _ in 0..2_000 {
                state.update(spread * (random.f64() - 0.5)).unwrap();
            }
            state.centred().radius
        };
        assert!(radius(0.1) < 0.4 * radius(2.0), "{} {}", radius(0.1), radius(2.0));
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(
            BoundedMean::new(1.0, 1.0, 0.05).is_err() && BoundedMean::new(0.0, f64::INFINITY, 0.05).is_err()
        );
        let mut bounded = BoundedMean::new(0.0, 1.0, 0.05).unwrap();
        assert!(bounded.update(1.1).is_err() && bounded.update(f64::NAN).is_err());
        assert!(AsymptoticMean::new(0.0).is_err() && SubGaussianMean::new(1.0, f64::NAN).is_err());
        assert!(AsymptoticMean::new(1.0).unwrap().update(f64::INFINITY).is_err());
        assert!(tuned_rho(0.05, 0).is_err());
    }
}
