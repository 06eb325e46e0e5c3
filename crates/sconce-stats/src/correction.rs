//! Many tests at once: corrections of p-values, e-values, and p-values that come one at a time.

use crate::error::{Result, in_range, open_unit};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How to correct p-values for their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Family-wise error rate, any dependence.
    Bonferroni,
    /// Family-wise error rate, independent tests.
    Sidak,
    /// Bonferroni, stepping down: never worse than it.
    Holm,
    /// Šidák, stepping down.
    HolmSidak,
    /// Hochberg's step-up procedure; family-wise error rate of independent or positively dependent tests.
    Hochberg,
    /// Hommel's procedure; a little more powerful than Hochberg's.
    Hommel,
    /// False discovery rate of independent or positively dependent tests (Benjamini and Hochberg, 1995).
    BenjaminiHochberg,
    /// False discovery rate, any dependence (Benjamini and Yekutieli, 2001).
    BenjaminiYekutieli,
}

/// What a correction makes of one p-value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corrected {
    /// The p-value, corrected: it may be compared with the level.
    pub p_value: f64,
    /// Whether its null hypothesis is rejected.
    pub reject: bool,
}

/// Corrects `p_values` and rejects at level `alpha`; in the order of the input. None give none.
///
/// # Errors
/// A p-value not in 0..=1, `alpha` not strictly between 0 and 1.
pub fn correct(p_values: &[f64], alpha: f64, correction: Correction) -> Result<Vec<Corrected>> {
    open_unit("alpha", alpha)?;
    for &p in p_values {
        in_range("p_values", p, (0.0..=1.0).contains(&p), "numbers between 0 and 1")?;
    }
    let count = p_values.len();
    let total = count as f64;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&i, &j| p_values[i].total_cmp(&p_values[j]));
    let sorted: Vec<f64> = order.iter().map(|&i| p_values[i]).collect();
    // How many hypotheses are left when the i-th smallest is looked at.
    let left = |i: usize| (count - i) as f64;
    let sidak = |p: f64, tests: f64| -(tests * (-p).ln_1p()).exp_m1();
    let each = |of: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
        sorted.iter().enumerate().map(|(i, &p)| of(i, p)).collect()
    };
    let corrected = match correction {
        Correction::Bonferroni => each(&|_, p| p * total),
        Correction::Sidak => each(&|_, p| sidak(p, total)),
        Correction::Holm => running_max(each(&|i, p| p * left(i))),
        Correction::HolmSidak => running_max(each(&|i, p| sidak(p, left(i)))),
        Correction::Hochberg => running_min_from_top(each(&|i, p| p * left(i))),
        Correction::Hommel => hommel(&sorted),
        Correction::BenjaminiHochberg => running_min_from_top(each(&|i, p| p * total / (i + 1) as f64)),
        Correction::BenjaminiYekutieli => {
            let harmonic: f64 = (1..=count).map(|i| 1.0 / i as f64).sum();
            running_min_from_top(each(&|i, p| p * total * harmonic / (i + 1) as f64))
        }
    };
    let mut answers = vec![Corrected { p_value: 1.0, reject: false }; count];
    for (&place, value) in order.iter().zip(corrected) {
        answers[place] = Corrected { p_value: value.min(1.0), reject: value <= alpha };
    }
    Ok(answers)
}

fn running_max(mut values: Vec<f64>) -> Vec<f64> {
    for i in 1..values.len() {
        values[i] = values[i].max(values[i - 1]);
    }
    values
}

fn running_min_from_top(mut values: Vec<f64>) -> Vec<f64> {
    for i in (1..values.len()).rev() {
        values[i - 1] = values[i - 1].min(values[i]);
    }
    values
}

/// Hommel's adjusted p-values of sorted ones (Wright, "Adjusted p-values for simultaneous inference", 1992).
fn hommel(sorted: &[f64]) -> Vec<f64> {
    let count = sorted.len();
    let mut adjusted = sorted.to_vec();
    for size in (2..=count).rev() {
        let (lower, upper) = (count - size, &sorted[count - size..]);
        let scaled = upper.iter().enumerate().map(|(i, p)| size as f64 * p / (i + 1) as f64);
        let least = scaled.fold(f64::INFINITY, f64::min);
        for (i, value) in adjusted.iter_mut().enumerate() {
            let bound = if i < lower { least.min(size as f64 * sorted[i]) } else { least };
            *value = value.max(bound);
        }
    }
    adjusted
}

/// The e-values whose null hypotheses are rejected with a false discovery rate of at most `alpha`, under any dependence: e-BH
/// (Wang and Ramdas, "False discovery rate control with e-values", 2022). Indices into the input, ascending.
///
/// # Errors
/// An e-value that is negative or NaN, `alpha` not strictly between 0 and 1.
pub fn e_benjamini_hochberg(e_values: &[f64], alpha: f64) -> Result<Vec<usize>> {
    open_unit("alpha", alpha)?;
    for &e in e_values {
        in_range("e_values", e, e >= 0.0, "numbers of at least 0")?;
    }
    let total = e_values.len() as f64;
    let mut order: Vec<usize> = (0..e_values.len()).collect();
    order.sort_by(|&i, &j| e_values[j].total_cmp(&e_values[i]));
    let holds = |rank: usize| rank as f64 * e_values[order[rank - 1]] / total >= 1.0 / alpha;
    let rejected = (1..=order.len()).rev().find(|&rank| holds(rank)).unwrap_or(0);
    order.truncate(rejected);
    order.sort_unstable();
    Ok(order)
}

/// LORD++: tests that come one at a time, without end, with a false discovery rate of at most `alpha` (Ramdas, Yang,
/// Wainwright and Jordan, "Online control of the false discovery rate with decaying memory", 2017).
///
/// Every test gets a level that shrinks with time and grows after each rejection. It remembers the last 1,000 rejections;
/// forgetting older ones lowers levels, never raises them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LordPlusPlus {
    alpha: f64,
    wealth: f64,
    tests: u64,
    first: Option<u64>,
    /// Times of the rejections after the first, oldest first.
    later: VecDeque<u64>,
}

const MOST_REMEMBERED: usize = 1_000;

impl LordPlusPlus {
    /// Level `alpha`, of which `wealth` is there to begin with.
    ///
    /// # Errors
    /// `alpha` not strictly between 0 and 1; `wealth` not between 0 and `alpha`.
    pub fn new(alpha: f64, wealth: f64) -> Result<Self> {
        open_unit("alpha", alpha)?;
        in_range("wealth", wealth, (0.0..=alpha).contains(&wealth), "a number between 0 and alpha")?;
        Ok(Self { alpha, wealth, tests: 0, first: None, later: VecDeque::new() })
    }

    /// The level at which the next test is made.
    pub fn next_level(&self) -> f64 {
        let now = self.tests + 1;
        let first = self.first.map_or(0.0, |time| (self.alpha - self.wealth) * share(now - time));
        let later: f64 = self.later.iter().map(|time| share(now - time)).sum();
        share(now) * self.wealth + first + self.alpha * later
    }

    /// Takes the p-value of the next test, and says whether its null hypothesis is rejected.
    ///
    /// # Errors
    /// A p-value not in 0..=1.
    pub fn test(&mut self, p_value: f64) -> Result<bool> {
        in_range("p_value", p_value, (0.0..=1.0).contains(&p_value), "a number between 0 and 1")?;
        let reject = p_value <= self.next_level();
        self.tests += 1;
        if reject {
            if self.first.is_none() {
                self.first = Some(self.tests);
            } else {
                if self.later.len() == MOST_REMEMBERED {
                    self.later.pop_front();
                }
                self.later.push_back(self.tests);
            }
        }
        Ok(reject)
    }
}

/// The share of wealth spent on the j-th test after it came; they sum to 1.
fn share(j: u64) -> f64 {
    let j = j.max(1) as f64;
    0.077_208_38 * j.max(2.0).ln() / (j * j.ln().sqrt().exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn corrected_p_values_never_fall_and_order_is_kept() {
        use Correction::{
            BenjaminiHochberg, BenjaminiYekutieli, Bonferroni, Hochberg, Holm, HolmSidak, Hommel, Sidak,
        };
        let p = [0.04, 0.001, 0.5, 0.02, 0.02];
        for correction in
            [Bonferroni, Sidak, Holm, HolmSidak, Hochberg, Hommel, BenjaminiHochberg, BenjaminiYekutieli]
        {
            let corrected = correct(&p, 0.05, correction).unwrap();
            assert!(
                corrected.iter().zip(p).all(|(c, p)| c.p_value >= p && c.p_value <= 1.0),
                "{correction:?}"
            );
            assert!(corrected[1].reject && !corrected[2].reject, "{correction:?}");
            assert!(correct(&[], 0.05, correction).unwrap().is_empty());
        }
        assert!(correct(&[1.1], 0.05, Holm).is_err() && correct(&[f64::NAN], 0.05, Hommel).is_err());
    }

    #[test]
    fn null_tests_in_a_row_seldom_reject_anything() {
        let mut random = Rng::with_seed(37);
        let mut with_rejection = 0;
        for _ in 0..2_000 {
            let mut tests = LordPlusPlus::new(0.05, 0.005).unwrap();
            let any = (0..300).any(|_| tests.test(random.f64()).unwrap());
            with_rejection += u32::from(any);
        }
        assert!(with_rejection <= 100, "{with_rejection}");
    }

    #[test]
    fn memory_is_bounded_and_levels_stay_below_alpha() {
        let mut tests = LordPlusPlus::new(0.1, 0.05).unwrap();
        for _ in 0..3_000 {
            assert!(tests.test(0.0).unwrap());
        }
        assert_eq!(tests.later.len(), MOST_REMEMBERED);
        assert!(tests.next_level() <= 0.1, "{}", tests.next_level());
    }

    #[test]
    fn no_evidence_rejects_nothing() {
        assert!(e_benjamini_hochberg(&[1.0, 0.0, 2.0], 0.05).unwrap().is_empty());
        assert_eq!(e_benjamini_hochberg(&[0.0, f64::INFINITY], 0.05).unwrap(), [1]);
        assert!(
            e_benjamini_hochberg(&[-1.0], 0.05).is_err() && e_benjamini_hochberg(&[f64::NAN], 0.05).is_err()
        );
    }
}
