//! Shares of yes among trials: intervals of one, and intervals and tests of the difference of two.
//!
//! The difference is always first less second. Formulas as in Newcombe, "Two-sided confidence intervals for the single
//! proportion" and "Interval estimation for the difference between independent proportions", both 1998.

use crate::TestResult;
use crate::error::{Result, StatsError, in_range, open_unit};
use crate::interval::Interval;
use crate::special::{beta_quantile, normal_sf, normal_upper_quantile};
use crate::trials::Trials;
use std::f64::consts::PI;

/// How to make the interval of one proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProportionMethod {
    /// Normal approximation: too short for few events, and empty for none.
    Normal,
    /// Score interval; the one to use.
    Wilson,
    /// Wilson's centre with the normal radius.
    AgrestiCoull,
    /// Exact, never too short and mostly too long.
    ClopperPearson,
    /// Equal tails of the posterior under Jeffreys' prior.
    Jeffreys,
}

/// How to make the interval of the difference of two proportions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceMethod {
    /// Normal approximation.
    Wald,
    /// From Wilson's intervals of both; the one to use.
    Newcombe,
    /// Wald's with one event and one miss added to both.
    AgrestiCaffo,
    /// The differences that the score test of Miettinen and Nurminen does not reject. It is looked for up to half beyond the
    /// upper and a quarter beyond the lower end of Wald's interval, and refused where data is too sparse for it to lie there.
    Score,
}

/// How to test the difference of two proportions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceTest {
    /// z with the variance of the pooled proportion.
    Pooled,
    /// z with the variances of both.
    Wald,
    /// Wald's with one event and one miss added to both.
    AgrestiCaffo,
    /// Score test with the correction of Miettinen and Nurminen, "Comparative analysis of two rates", 1985.
    Score,
}

/// The interval of level `1 - alpha`, within 0..=1.
///
/// # Errors
/// No trials, more events than trials, `alpha` not strictly between 0 and 1.
pub fn proportion_interval(trials: Trials, alpha: f64, method: ProportionMethod) -> Result<Interval> {
    trials.check_some("trials")?;
    open_unit("alpha", alpha)?;
    let (events, misses, n) = trials.parts();
    let p = events / n;
    let z = normal_upper_quantile(alpha / 2.0);
    let interval = match method {
        ProportionMethod::Normal => Interval::around(p, z * (p * (1.0 - p) / n).sqrt()),
        ProportionMethod::Wilson => {
            let square = z * z;
            let centre = (p + square / (2.0 * n)) / (1.0 + square / n);
            let radius = z * ((p * (1.0 - p) + square / (4.0 * n)) / n).sqrt() / (1.0 + square / n);
            Interval::around(centre, radius)
        }
        ProportionMethod::AgrestiCoull => {
            let total = n + z * z;
            let centre = (events + z * z / 2.0) / total;
            Interval::around(centre, z * (centre * (1.0 - centre) / total).sqrt())
        }
        ProportionMethod::ClopperPearson => Interval {
            low: if events == 0.0 { 0.0 } else { beta_quantile(alpha / 2.0, events, misses + 1.0) },
            high: if misses == 0.0 { 1.0 } else { beta_quantile(1.0 - alpha / 2.0, events + 1.0, misses) },
        },
        ProportionMethod::Jeffreys => Interval {
            low: beta_quantile(alpha / 2.0, events + 0.5, misses + 0.5),
            high: beta_quantile(1.0 - alpha / 2.0, events + 0.5, misses + 0.5),
        },
    };
    Ok(interval.intersection(&Interval { low: 0.0, high: 1.0 }))
}

/// The interval of level `1 - alpha` of the first proportion less the second.
///
/// # Errors
/// No trials, more events than trials, `alpha` not strictly between 0 and 1; data too sparse for [`DifferenceMethod::Score`].
pub fn difference_interval(
    first: Trials,
    second: Trials,
    alpha: f64,
    method: DifferenceMethod,
) -> Result<Interval> {
    first.check_some("first")?;
    second.check_some("second")?;
    open_unit("alpha", alpha)?;
    match method {
        DifferenceMethod::Wald => Ok(wald_interval(first, second, alpha, 0.0)),
        DifferenceMethod::AgrestiCaffo => Ok(wald_interval(first, second, alpha, 1.0)),
        DifferenceMethod::Newcombe => {
            let (p, q) = (first.rate(), second.rate());
            let of_first = proportion_interval(first, alpha, ProportionMethod::Wilson)?;
            let of_second = proportion_interval(second, alpha, ProportionMethod::Wilson)?;
            Ok(Interval {
                low: p - q - (p - of_first.low).hypot(of_second.high - q),
                high: p - q + (q - of_second.low).hypot(of_first.high - p),
            })
        }
        DifferenceMethod::Score => score_interval(first, second, alpha),
    }
}

/// The two-sided test of the first proportion less the second being `null`, a number between -1 and 1.
///
/// # Errors
/// No trials, more events than trials, a `null` out of range (or not 0 for the pooled test), or proportions without any
/// variance.
pub fn difference_test(first: Trials, second: Trials, null: f64, test: DifferenceTest) -> Result<TestResult> {
    first.check_some("first")?;
    second.check_some("second")?;
    in_range("null", null, null > -1.0 && null < 1.0, "a number between -1 and 1, neither included")?;
    let (c, _, n) = first.parts();
    let (d, _, m) = second.parts();
    let statistic = match test {
        DifferenceTest::Pooled => {
            in_range("null", null, null == 0.0, "0, for the pooled test")?;
            let pooled = (c + d) / (n + m);
            (c / n - d / m) / (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt()
        }
        DifferenceTest::Wald | DifferenceTest::AgrestiCaffo => {
            let added = if test == DifferenceTest::Wald { 0.0 } else { 1.0 };
            let (difference, error) = wald(first, second, added);
            (difference - null) / error
        }
        DifferenceTest::Score => score_statistic(first, second, null),
    };
    if statistic.is_nan() {
        return Err(StatsError::Undefined { reason: "the proportions have no variance" });
    }
    Ok(TestResult { statistic, p_value: 2.0 * normal_sf(statistic.abs()) })
}

/// The interval of level `1 - alpha` of the first proportion over the second, by the delta method on its logarithm (Katz and
/// others, 1978).
///
/// # Errors
/// Trials without events, or more events than trials; `alpha` not strictly between 0 and 1.
pub fn ratio_interval(first: Trials, second: Trials, alpha: f64) -> Result<Interval> {
    first.check_some("first")?;
    second.check_some("second")?;
    open_unit("alpha", alpha)?;
    let (c, _, n) = first.parts();
    let (d, _, m) = second.parts();
    in_range("first", c, c > 0.0, "at least one event")?;
    in_range("second", d, d > 0.0, "at least one event")?;
    let centre = (c / n / (d / m)).ln();
    let radius = normal_upper_quantile(alpha / 2.0) * (1.0 / c - 1.0 / n + 1.0 / d - 1.0 / m).sqrt();
    Ok(Interval { low: (centre - radius).exp(), high: (centre + radius).exp() })
}

/// The difference and its standard error, with `added` events and misses each.
fn wald(first: Trials, second: Trials, added: f64) -> (f64, f64) {
    let of = |trials: Trials| {
        let (events, _, n) = trials.parts();
        let n = n + 2.0 * added;
        let p = (events + added) / n;
        (p, p * (1.0 - p) / n)
    };
    let ((p, of_first), (q, of_second)) = (of(first), of(second));
    (p - q, (of_first + of_second).sqrt())
}

fn wald_interval(first: Trials, second: Trials, alpha: f64, added: f64) -> Interval {
    let (difference, error) = wald(first, second, added);
    Interval::around(difference, normal_upper_quantile(alpha / 2.0) * error)
}

/// The score statistic for the difference being `null`, the proportions estimated under it: the root of a cubic in closed form.
fn score_statistic(first: Trials, second: Trials, null: f64) -> f64 {
    let (c, _, n) = first.parts();
    let (d, _, m) = second.parts();
    let (events, total) = (c + d, n + m);
    let (p, q) = if null == 0.0 {
        (events / total, events / total)
    } else {
        let square = (n + 2.0 * m) * null - total - events;
        let linear = (d * null - total - 2.0 * d) * null + events;
        let constant = d * null * (1.0 - null);
        let third = square / (3.0 * total);
        let skew = third.powi(3) - linear * square / (6.0 * total * total) + constant / (2.0 * total);
        let size = (third * third - linear / (3.0 * total)).max(0.0).sqrt().copysign(skew);
        // Rounding may carry the cosine past 1.
        let angle = (PI + (skew / size.powi(3)).clamp(-1.0, 1.0).acos()) / 3.0;
        let q = 2.0 * size * angle.cos() - third;
        (q + null, q)
    };
    let variance = (p * (1.0 - p) / n + q * (1.0 - q) / m) * (total / (total - 1.0));
    (c / n - d / m - null) / variance.sqrt()
}

fn score_interval(first: Trials, second: Trials, alpha: f64) -> Result<Interval> {
    let wald = wald_interval(first, second, alpha, 0.0);
    let seen = first.rate() - second.rate();
    let critical = normal_upper_quantile(alpha / 2.0);
    let rejected = |difference: f64| score_statistic(first, second, difference).abs() - critical;
    let search = |outside: f64| {
        let (mut outside, mut inside) = (outside, seen);
        // NaN, without any variance, is refused as well.
        let brackets = rejected(outside) >= 0.0 && rejected(inside) <= 0.0;
        if !brackets {
            return Err(StatsError::Undefined { reason: "too few events for the score interval" });
        }
        for _ in 0..200 {
            let middle = 0.5 * (outside + inside);
            if middle == outside || middle == inside {
                break;
            }
            if rejected(middle) >= 0.0 { outside = middle } else { inside = middle }
        }
        Ok(inside)
    };
    let low = search((wald.low - 0.25 * wald.low.abs()).max(-0.999_99))?;
    let high = search((wald.high + 0.5 * wald.high.abs()).min(0.999_99))?;
    Ok(Interval { low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_one_proportion_stay_within_the_unit() {
        use ProportionMethod::{AgrestiCoull, ClopperPearson, Jeffreys, Normal, Wilson};
        for method in [Normal, Wilson, AgrestiCoull, ClopperPearson, Jeffreys] {
            for events in [0, 1, 9, 10] {
                let interval = proportion_interval(Trials { events, trials: 10 }, 0.05, method).unwrap();
                assert!(
                    interval.low >= 0.0 && interval.high <= 1.0 && interval.low <= interval.high,
                    "{method:?}"
                );
                assert!(interval.contains(events as f64 / 10.0) || method == Jeffreys, "{method:?} {events}");
            }
        }
    }

    #[test]
    fn degenerate_input_is_refused() {
        let (none, some) = (Trials { events: 0, trials: 0 }, Trials { events: 1, trials: 2 });
        assert!(proportion_interval(none, 0.05, ProportionMethod::Wilson).is_err());
        assert!(
            proportion_interval(Trials { events: 3, trials: 2 }, 0.05, ProportionMethod::Wilson).is_err()
        );
        assert!(proportion_interval(some, 0.0, ProportionMethod::Wilson).is_err());
        assert!(difference_test(some, some, 0.1, DifferenceTest::Pooled).is_err());
        let all = Trials { events: 2, trials: 2 };
        assert!(difference_test(all, all, 0.0, DifferenceTest::Wald).is_err());
        assert!(ratio_interval(Trials { events: 0, trials: 2 }, some, 0.05).is_err());
        assert!(difference_interval(all, all, 0.05, DifferenceMethod::Score).is_err());
    }
}
