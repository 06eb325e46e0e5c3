use crate::error::{Result, finite, positive};
use serde::{Deserialize, Serialize};

/// Mixture sequential probability ratio test for the difference of two means of known variance, observed in pairs (Johari,
/// Pekelis and Walsh, "Always valid inference", 2022).
///
/// `ln L = ln(2 s / (2 s + n t)) / 2 + n^2 t d^2 / (4 s (2 s + n t))`, with s the variance of one value, t that of the normal
/// mixture over the effect, and d the difference of the means less the null hypothesis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureSprt {
    variance: f64,
    mixture: f64,
    null: f64,
    count: u64,
    sum_first: f64,
    sum_second: f64,
    p_value: f64,
}

impl MixtureSprt {
    /// `variance` of one value, variance of the `mixture` over effects (about the square of the effect that matters), and the
    /// difference `null` of second less first.
    ///
    /// # Errors
    /// A variance that is not above 0; a `null` that is not finite.
    pub fn new(variance: f64, mixture: f64, null: f64) -> Result<Self> {
        positive("variance", variance)?;
        positive("mixture", mixture)?;
        finite("null", &[null])?;
        Ok(Self { variance, mixture, null, count: 0, sum_first: 0.0, sum_second: 0.0, p_value: 1.0 })
    }

    /// Takes a pair of values.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn update(&mut self, first: f64, second: f64) -> Result<()> {
        finite("pair", &[first, second])?;
        self.count += 1;
        self.sum_first += first;
        self.sum_second += second;
        self.p_value = self.p_value.min((-self.log_e()).exp());
        Ok(())
    }

    /// The natural logarithm of the mixed likelihood ratio.
    pub fn log_e(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let n = self.count as f64;
        let off = self.sum_second / n - self.sum_first / n - self.null;
        let both = 2.0 * self.variance;
        let total = both + n * self.mixture;
        0.5 * (both / total).ln() + n * n * self.mixture * off * off / (2.0 * both * total)
    }

    /// The always-valid p-value: it never rises.
    pub fn p_value(&self) -> f64 {
        self.p_value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn false_alarms_of_two_thousand_null_runs_stay_below_alpha() {
        let mut random = Rng::with_seed(19);
        let mut normal = move || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let mut rejected = 0;
        for _ in 0..2_000 {
            let mut test = MixtureSprt::new(1.0, 0.1, 0.0).unwrap();
            for _ in 0..500 {
                test.update(normal(), normal()).unwrap();
            }
            // The p-value is the smallest so far, so looking once is looking always.
            rejected += u32::from(test.p_value() <= 0.05);
        }
        assert!(rejected <= 100, "{rejected}");
    }
}
