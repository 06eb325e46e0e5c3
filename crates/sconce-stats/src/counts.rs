//! Tests of counts: goodness of fit, contingency tables, Fisher's exact test.

use crate::TestResult;
use crate::error::{Result, StatsError, at_least, in_range, same_length};
use crate::special::{chi_square_sf, hypergeometric_ln_pmf};
use crate::two_sample::Alternative;
use serde::{Deserialize, Serialize};

/// By how much the sums of observed and expected counts may differ, relatively: the root of a float's precision.
const SUMS_AGREE: f64 = 1.490_116_119_384_765_6e-8;
/// The largest sum of a 2×2 table in the exact test; it takes a number of steps in the order of the root of it.
const LARGEST_EXACT: u64 = 1_000_000_000_000;
/// Probabilities in the exact test that differ by less than rounding are equal.
const TIED: f64 = 1e-12;

/// Which member of the power divergence family (Cressie and Read, 1984) measures how counts fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Divergence {
    /// Pearson's chi-square.
    #[default]
    Pearson,
    /// The likelihood ratio, G.
    LikelihoodRatio,
    /// Freeman and Tukey's.
    FreemanTukey,
    /// Cressie and Read's own, with power 2/3.
    CressieRead,
}

impl Divergence {
    fn of(self, observed: f64, expected: f64) -> f64 {
        match self {
            Self::Pearson if observed == expected => 0.0,
            Self::Pearson => (observed - expected).powi(2) / expected,
            Self::LikelihoodRatio if observed == 0.0 => 0.0,
            Self::LikelihoodRatio => 2.0 * observed * (observed / expected).ln(),
            Self::FreemanTukey => -8.0 * observed * ((observed / expected).powf(-0.5) - 1.0),
            Self::CressieRead if observed == 0.0 => 0.0,
            Self::CressieRead => 1.8 * observed * ((observed / expected).powf(2.0 / 3.0) - 1.0),
        }
    }
}

/// Do the observed counts fit the expected ones, or equal ones without any? Chi-square with one degree of freedom less than
/// there are counts. Where something was seen that was not expected at all, the statistic may be infinite, and its p-value 0.
///
/// # Errors
///
/// No counts, counts that are negative or not finite, nothing expected or sums that differ, lists of different length; a 0
/// observed under [`Divergence::FreemanTukey`].
pub fn goodness_of_fit(
    observed: &[f64],
    expected: Option<&[f64]>,
    divergence: Divergence,
) -> Result<TestResult> {
    at_least("observed", observed.len(), 1)?;
    let sum = weights("observed", observed)?;
    let uniform;
    let expected = match expected {
        Some(expected) => expected,
        None => {
            uniform = vec![sum / observed.len() as f64; observed.len()];
            &uniform
        }
    };
    same_length(("observed", observed.len()), ("expected", expected.len()))?;
    let expected_sum = weights("expected", expected)?;
    if (sum - expected_sum).abs() > SUMS_AGREE * sum.min(expected_sum) {
        return Err(StatsError::Undefined { reason: "observed and expected counts differ in their sums" });
    }
    if sum == 0.0 {
        return Err(StatsError::Undefined { reason: "all counts are 0" });
    }
    let statistic: f64 = observed.iter().zip(expected).map(|(&o, &e)| divergence.of(o, e)).sum();
    if statistic.is_nan() {
        return Err(StatsError::Undefined { reason: "a count of 0 under a negative power" });
    }
    // Rounding may leave less than nothing.
    let statistic = statistic.max(0.0);
    Ok(TestResult { statistic, p_value: upper_tail(statistic, observed.len() - 1) })
}

/// What [`contingency`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Contingency {
    /// The statistic.
    pub statistic: f64,
    /// The p-value.
    pub p_value: f64,
    /// Degrees of freedom: one less than rows, times one less than columns.
    pub df: usize,
}

/// Are rows and columns of a table of counts independent? `yates` moves counts of a 2×2 table by up to a half towards what is
/// expected, which makes the chi-square distribution fit better there and the test conservative.
///
/// # Errors
///
/// No counts, rows of different length, a row or column that is all 0, counts that are negative or not finite.
pub fn contingency<R: AsRef<[f64]>>(table: &[R], divergence: Divergence, yates: bool) -> Result<Contingency> {
    at_least("rows", table.len(), 1)?;
    let columns = table[0].as_ref().len();
    at_least("columns", columns, 1)?;
    let mut column_sums = vec![0.0; columns];
    let mut row_sums = Vec::with_capacity(table.len());
    for row in table {
        let row = row.as_ref();
        same_length(("first row", columns), ("row", row.len()))?;
        row_sums.push(weights("table", row)?);
        for (sum, count) in column_sums.iter_mut().zip(row) {
            *sum += count;
        }
    }
    let total: f64 = row_sums.iter().sum();
    if row_sums.iter().chain(&column_sums).any(|&sum| sum == 0.0) {
        return Err(StatsError::Undefined { reason: "a row or a column of the table is all 0" });
    }
    let df = (table.len() - 1) * (columns - 1);
    if df == 0 {
        return Ok(Contingency { statistic: 0.0, p_value: 1.0, df });
    }
    let mut statistic = 0.0;
    for (row, row_sum) in table.iter().zip(&row_sums) {
        for (&observed, column_sum) in row.as_ref().iter().zip(&column_sums) {
            let expected = row_sum * column_sum / total;
            let observed = if yates && df == 1 {
                let off = expected - observed;
                observed + off.abs().min(0.5).copysign(off)
            } else {
                observed
            };
            statistic += divergence.of(observed, expected);
        }
    }
    if statistic.is_nan() {
        return Err(StatsError::Undefined { reason: "a count of 0 under a negative power" });
    }
    let statistic = statistic.max(0.0);
    Ok(Contingency { statistic, p_value: upper_tail(statistic, df), df })
}

/// What [`fisher_exact`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fisher {
    /// The odds of the first row's first column over those of the second row's: `a d / (b c)`; infinite for `b c = 0`.
    pub odds_ratio: f64,
    /// The p-value.
    pub p_value: f64,
}

/// Fisher's exact test of a 2×2 table, given its margins. Two-sided, all tables no more likely than the observed count;
/// [`Alternative::Less`] and [`Alternative::Greater`] say how the odds ratio compares with 1.
///
/// A row or a column of zeros says nothing: the odds ratio is NaN and the p-value 1.
///
/// # Errors
///
/// Counts of more than 10^12 in all.
pub fn fisher_exact(table: [[u64; 2]; 2], alternative: Alternative) -> Result<Fisher> {
    let [[a, b], [c, d]] = table;
    let total = [b, c, d].iter().try_fold(a, |sum, &count| sum.checked_add(count));
    let total = match total {
        Some(total) if total <= LARGEST_EXACT => total,
        _ => {
            let got = total.and_then(|total| usize::try_from(total).ok()).unwrap_or(usize::MAX);
            return Err(StatsError::TooMany { name: "table", most: LARGEST_EXACT as usize, got });
        }
    };
    let (row, column) = (a + b, a + c);
    if row == 0 || column == 0 || row == total || column == total {
        return Ok(Fisher { odds_ratio: f64::NAN, p_value: 1.0 });
    }
    let odds_ratio = (a as f64 * d as f64) / (b as f64 * c as f64);
    let table = Hypergeometric { total, row, column };
    let p_value = match alternative {
        Alternative::Less => table.at_most(a),
        Alternative::Greater => table.at_least(a),
        Alternative::TwoSided => table.as_unlikely(a),
    };
    Ok(Fisher { odds_ratio, p_value: p_value.min(1.0) })
}

/// The counts that the upper left of a 2×2 table may have, given its margins.
struct Hypergeometric {
    total: u64,
    row: u64,
    column: u64,
}

impl Hypergeometric {
    fn lowest(&self) -> u64 {
        (self.row + self.column).saturating_sub(self.total)
    }

    fn highest(&self) -> u64 {
        self.row.min(self.column)
    }

    fn mode(&self) -> u64 {
        let product = (u128::from(self.row) + 1) * (u128::from(self.column) + 1);
        ((product / (u128::from(self.total) + 2)) as u64).clamp(self.lowest(), self.highest())
    }

    fn ln_pmf(&self, count: u64) -> f64 {
        hypergeometric_ln_pmf(count as f64, self.row as f64, self.column as f64, self.total as f64)
    }

    /// The probability of `count + 1` over that of `count`.
    fn ratio(&self, count: u64) -> f64 {
        let others = self.total + count + 1 - self.row - self.column;
        (self.row - count) as f64 / (count + 1) as f64 * ((self.column - count) as f64 / others as f64)
    }

    fn at_most(&self, count: u64) -> f64 {
        if count < self.mode() {
            self.lower_tail(count)
        } else if count >= self.highest() {
            1.0
        } else {
            1.0 - self.upper_tail(count + 1)
        }
    }

    fn at_least(&self, count: u64) -> f64 {
        if count > self.mode() {
            self.upper_tail(count)
        } else if count <= self.lowest() {
            1.0
        } else {
            1.0 - self.lower_tail(count - 1)
        }
    }

    /// The sum from the lowest count to this one, which is not above the mode.
    fn lower_tail(&self, count: u64) -> f64 {
        let (mut term, mut sum) = (1.0, 1.0);
        for next in (self.lowest()..count).rev() {
            term /= self.ratio(next);
            sum += term;
            if term < sum * 1e-18 {
                break;
            }
        }
        sum * self.ln_pmf(count).exp()
    }

    /// The sum from this count, which is not below the mode, to the highest.
    fn upper_tail(&self, count: u64) -> f64 {
        let (mut term, mut sum) = (1.0, 1.0);
        for next in count..self.highest() {
            term *= self.ratio(next);
            sum += term;
            if term < sum * 1e-18 {
                break;
            }
        }
        sum * self.ln_pmf(count).exp()
    }

    /// The sum over all counts that are no more likely than this one.
    fn as_unlikely(&self, count: u64) -> f64 {
        let mode = self.mode();
        let limit = self.ln_pmf(count) + TIED;
        if self.ln_pmf(mode) <= limit {
            return 1.0;
        }
        // The nearest count on the other side of the mode that is as unlikely, by halving: there the probabilities are ordered.
        if count < mode {
            let (mut likely, mut end) = (mode, self.highest() + 1);
            while end - likely > 1 {
                let middle = likely + (end - likely) / 2;
                if self.ln_pmf(middle) <= limit { end = middle } else { likely = middle }
            }
            let other = if end <= self.highest() { self.upper_tail(end) } else { 0.0 };
            self.lower_tail(count) + other
        } else {
            let (mut start, mut likely) = (self.lowest(), mode + 1);
            // `start` counts those that are as unlikely, from the lowest on.
            while likely > start {
                let middle = start + (likely - start) / 2;
                if self.ln_pmf(middle) <= limit { start = middle + 1 } else { likely = middle }
            }
            let other = if start > self.lowest() { self.lower_tail(start - 1) } else { 0.0 };
            self.upper_tail(count) + other
        }
    }
}

fn upper_tail(statistic: f64, df: usize) -> f64 {
    if df == 0 { 1.0 } else { chi_square_sf(statistic, df as f64) }
}

/// The sum of counts that are finite and at least 0.
fn weights(name: &'static str, counts: &[f64]) -> Result<f64> {
    for &count in counts {
        in_range(name, count, count >= 0.0 && count.is_finite(), "a finite count of at least 0")?;
    }
    Ok(counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fisher_counts_tables() {
        // The lady tasting tea: 3 of 4 right, margins 4 and 4; probabilities are 1, 16, 36, 16, 1 of 70.
        let p = |table, alternative| fisher_exact(table, alternative).unwrap().p_value;
        let table = [[3, 1], [1, 3]];
        assert!((p(table, Alternative::Greater) - 17.0 / 70.0).abs() < 1e-14);
        assert!((p(table, Alternative::Less) - 69.0 / 70.0).abs() < 1e-14);
        assert!((p(table, Alternative::TwoSided) - 34.0 / 70.0).abs() < 1e-14);
        let mirrored = [[1, 3], [3, 1]];
        assert!((p(mirrored, Alternative::TwoSided) - 34.0 / 70.0).abs() < 1e-14);
        assert_eq!(p([[0, 0], [5, 3]], Alternative::TwoSided), 1.0);
    }

    #[test]
    fn fisher_takes_large_tables_and_refuses_huge_ones() {
        let half = LARGEST_EXACT / 4;
        let even = fisher_exact([[half, half], [half, half]], Alternative::TwoSided).unwrap();
        assert_eq!(even.p_value, 1.0);
        let off =
            fisher_exact([[half + 500_000, half - 500_000], [half, half]], Alternative::TwoSided).unwrap();
        // Two and a half standard errors of the count, about.
        assert!(off.p_value > 1e-5 && off.p_value < 0.5, "{off:?}");
        let lopsided = fisher_exact([[half, 0], [0, half]], Alternative::TwoSided).unwrap();
        assert_eq!(lopsided.p_value, 0.0);
        assert!(fisher_exact([[u64::MAX, 1], [1, 1]], Alternative::Less).is_err());
    }

    #[test]
    fn counts_that_do_not_add_up_are_refused() {
        let fit = |observed: &[f64], expected| goodness_of_fit(observed, expected, Divergence::Pearson);
        assert!(
            fit(&[], None).is_err() && fit(&[-1.0, 2.0], None).is_err() && fit(&[f64::NAN], None).is_err()
        );
        assert!(fit(&[4.0, 10.0], Some(&[7.0, 8.0])).is_err() && fit(&[0.0, 0.0], None).is_err());
        assert_eq!(fit(&[7.0], None).unwrap().p_value, 1.0);
        let impossible = fit(&[4.0, 10.0], Some(&[0.0, 14.0])).unwrap();
        assert_eq!((impossible.statistic, impossible.p_value), (f64::INFINITY, 0.0));
        let table = |rows: &[Vec<f64>]| contingency(rows, Divergence::LikelihoodRatio, true);
        assert!(
            table(&[vec![5.0, 0.0], vec![4.0, 0.0]]).is_err()
                && table(&[]).is_err()
                && table(&[vec![]]).is_err()
        );
        assert!(table(&[vec![1.0, 2.0], vec![1.0]]).is_err());
        assert_eq!(table(&[vec![5.0], vec![9.0]]).unwrap().df, 0);
    }
}
