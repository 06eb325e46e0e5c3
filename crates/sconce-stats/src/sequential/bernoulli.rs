use crate::error::{Result, in_range, open_unit, positive};
use crate::interval::Interval;
use crate::special::{beta_cdf, beta_sf, ln_beta};
use serde::{Deserialize, Serialize};

/// Which alternatives an e-process bets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Values on either side of the null hypothesis.
    Both,
    /// Values above it only; then everything at or below it is the null hypothesis.
    Above,
    /// Values below it only; then everything at or above it is the null hypothesis.
    Below,
}

/// Successes and failures of one stream, and the beta-binomial mixture over them: an e-process against any rate, and the
/// confidence sequence of the rate (Robbins, "Statistical methods related to the law of the iterated logarithm", 1970).
///
/// `E = B(a + S, b + F) / (B(a, b) p0^S (1 - p0)^F)` after S successes and F failures, with a beta prior on the rate. With one
/// side the prior is cut off at p0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BetaBinomial {
    prior: (f64, f64),
    successes: u64,
    failures: u64,
}

impl BetaBinomial {
    /// Nothing seen yet, and a beta prior of pseudo-counts `successes` and `failures`; 1 and 1 is uniform.
    ///
    /// # Errors
    /// A pseudo-count that is not above 0.
    pub fn new(successes: f64, failures: f64) -> Result<Self> {
        positive("prior successes", successes)?;
        positive("prior failures", failures)?;
        Ok(Self { prior: (successes, failures), successes: 0, failures: 0 })
    }

    /// Takes more of both.
    pub fn update(&mut self, successes: u64, failures: u64) {
        self.successes = self.successes.saturating_add(successes);
        self.failures = self.failures.saturating_add(failures);
    }

    /// Successes and failures so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.successes, self.failures)
    }

    /// The natural logarithm of the e-process for the rate being `null` (or on the other side of it than `side`).
    ///
    /// # Errors
    /// A rate that is not strictly between 0 and 1.
    pub fn log_e(&self, null: f64, side: Side) -> Result<f64> {
        open_unit("null", null)?;
        Ok(self.log_e_at(null, side))
    }

    /// The rates that are not rejected at level `alpha`: a confidence sequence.
    ///
    /// # Errors
    /// `alpha` not strictly between 0 and 1.
    pub fn interval(&self, alpha: f64) -> Result<Interval> {
        open_unit("alpha", alpha)?;
        let (s, f) = (self.successes as f64, self.failures as f64);
        let (a, b) = self.prior;
        let level = -alpha.ln();
        // The e-process is lowest at the rate that was seen, and grows to either side.
        let centre = if s + f > 0.0 { s / (s + f) } else { a / (a + b) };
        let rejected = |p: f64| self.log_e_at(p, Side::Both) >= level;
        let end = |outside: f64| {
            let (mut outside, mut inside) = (outside, centre);
            if !rejected(outside.clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON / 2.0)) {
                return outside;
            }
            for _ in 0..200 {
                let middle = 0.5 * (outside + inside);
                if middle == outside || middle == inside {
                    break;
                }
                if rejected(middle) { outside = middle } else { inside = middle }
            }
            outside
        };
        Ok(Interval { low: end(0.0), high: end(1.0) })
    }

    fn log_e_at(&self, null: f64, side: Side) -> f64 {
        let (s, f) = (self.successes as f64, self.failures as f64);
        let (a, b) = self.prior;
        let both = ln_beta(a + s, b + f) - ln_beta(a, b) - s * null.ln() - f * (-null).ln_1p();
        match side {
            Side::Both => both,
            Side::Above => both + (beta_sf(null, a + s, b + f) / beta_sf(null, a, b)).ln(),
            Side::Below => both + (beta_cdf(null, a + s, b + f) / beta_cdf(null, a, b)).ln(),
        }
    }
}

/// The counts of successes among `trials` that a beta-binomial mixture does not reject at level `alpha` for the rate `p`: from
/// `.0` to `.1`, both included.
pub(super) fn accepted_counts(trials: u64, p: f64, prior: (f64, f64), alpha: f64) -> Result<(u64, u64)> {
    open_unit("p", p)?;
    open_unit("alpha", alpha)?;
    const MOST: u64 = 1 << 52;
    in_range("trials", trials as f64, trials <= MOST, "at most 2^52")?;
    let level = -alpha.ln();
    let rejected = |successes: u64| {
        let state = BetaBinomial { prior, successes, failures: trials - successes };
        state.log_e_at(p, Side::Both) >= level
    };
    let centre = ((trials as f64 * p).round() as u64).min(trials);
    // Invariant of both searches: the outer end is rejected (or none is), the inner is not.
    let (mut outside, mut low) = (0, centre);
    if rejected(0) {
        while low - outside > 1 {
            let middle = outside + (low - outside) / 2;
            if rejected(middle) { outside = middle } else { low = middle }
        }
    } else {
        low = 0;
    }
    let (mut high, mut outside) = (centre, trials);
    if rejected(trials) {
        while outside - high > 1 {
            let middle = high + (outside - high) / 2;
            if rejected(middle) { outside = middle } else { high = middle }
        }
    } else {
        high = trials;
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequential::rejects;
    use fastrand::Rng;

    /// The share of runs in which `alarm` is ever true.
    fn alarms(rate: f64, steps: u32, alarm: impl Fn(&BetaBinomial) -> bool) -> f64 {
        let mut random = Rng::with_seed(11);
        let mut count = 0;
        for _ in 0..2_000 {
            let mut state = BetaBinomial::new(0.5, 0.5).unwrap();
            for _ in 0..steps {
                let success = u64::from(random.f64() < rate);
                state.update(success, 1 - success);
                if alarm(&state) {
                    count += 1;
                    break;
                }
            }
        }
        f64::from(count) / 2_000.0
    }

    #[test]
    fn false_alarms_of_two_thousand_null_runs_stay_below_alpha() {
        for side in [Side::Both, Side::Above, Side::Below] {
            assert!(alarms(0.3, 400, |state| rejects(state.log_e(0.3, side).unwrap(), 0.05)) <= 0.05);
        }
        // The one-sided null hypothesis holds all rates below.
        assert!(alarms(0.2, 400, |state| rejects(state.log_e(0.3, Side::Above).unwrap(), 0.05)) <= 0.05);
    }

    #[test]
    fn an_interval_holds_what_is_not_rejected() {
        let mut state = BetaBinomial::new(1.0, 1.0).unwrap();
        assert_eq!(state.interval(0.05).unwrap(), Interval { low: 0.0, high: 1.0 });
        state.update(30, 170);
        let interval = state.interval(0.05).unwrap();
        assert!(interval.low > 0.05 && interval.high < 0.3 && interval.contains(0.15), "{interval:?}");
        assert!(rejects(state.log_e(interval.low - 1e-9, Side::Both).unwrap(), 0.05));
        assert!(!rejects(state.log_e(interval.low + 1e-9, Side::Both).unwrap(), 0.05));
        let mut never = BetaBinomial::new(1.0, 1.0).unwrap();
        never.update(0, 1_000);
        let interval = never.interval(0.05).unwrap();
        assert!(interval.low == 0.0 && interval.high < 0.015, "{interval:?}");
    }

    #[test]
    fn accepted_counts_are_those_that_are_not_rejected() {
        let (low, high) = accepted_counts(1_000, 0.1, (1.0, 9.0), 0.05).unwrap();
        let rejected = |s: u64| {
            let state = BetaBinomial { prior: (1.0, 9.0), successes: s, failures: 1_000 - s };
            rejects(state.log_e(0.1, Side::Both).unwrap(), 0.05)
        };
        assert!(rejected(low - 1) && !rejected(low) && !rejected(high) && rejected(high + 1), "{low} {high}");
        assert_eq!(accepted_counts(3, 0.5, (1.0, 1.0), 0.05).unwrap(), (0, 3));
        assert_eq!(accepted_counts(0, 0.5, (1.0, 1.0), 0.05).unwrap(), (0, 0));
    }
}
