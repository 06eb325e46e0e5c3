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
    /// The differences that the score test of Miettinen and Nurminen, "Comparative analysis of two rates", 1985, does not reject.
    Score,
    /// The same as statsmodels 0.15 has it, for comparison with results from there: one coefficient of the cubic that gives the
    /// proportions takes events for trials, so proportions may leave 0..=1, and the interval is a little off; and it is refused
    /// where that library fails, which is one time in eight.
    StatsmodelsScore,
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
/// No trials, more events than trials, `alpha` not strictly between 0 and 1; data on which [`DifferenceMethod::StatsmodelsScore`] fails.
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
        DifferenceMethod::Score => Ok(score_interval(first, second, alpha)),
        DifferenceMethod::StatsmodelsScore => statsmodels_interval(first, second, alpha),
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
        DifferenceTest::Score => score_statistic(first, second, null, second.trials),
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

/// The score statistic for the difference being `null`, the proportions estimated under it: the root of a cubic in closed form, in one
/// of whose coefficients `weight` is the second's trials. NaN if there is no such root.
fn score_statistic(first: Trials, second: Trials, null: f64, weight: u64) -> f64 {
    let (c, _, n) = first.parts();
    let (d, _, m) = second.parts();
    let (events, total) = (c + d, n + m);
    let (p, q) = if null == 0.0 {
        (events / total, events / total)
    } else {
        let square = (n + 2.0 * m) * null - total - events;
        let linear = (weight as f64 * null - total - 2.0 * d) * null + events;
        let constant = d * null * (1.0 - null);
        let third = square / (3.0 * total);
        let skew = third.powi(3) - linear * square / (6.0 * total * total) + constant / (2.0 * total);
        let size = (third * third - linear / (3.0 * total)).sqrt().copysign(skew);
        let cosine = skew / size.powi(3);
        // Rounding may carry it past 1.
        let cosine = if cosine.abs() < 1.0 + 1e-12 { cosine.clamp(-1.0, 1.0) } else { cosine };
        let q = 2.0 * size * ((PI + cosine.acos()) / 3.0).cos() - third;
        (q + null, q)
    };
    let variance = (p * (1.0 - p) / n + q * (1.0 - q) / m) * (total / (total - 1.0));
    (c / n - d / m - null) / variance.sqrt()
}

fn score_interval(first: Trials, second: Trials, alpha: f64) -> Interval {
    let critical = normal_upper_quantile(alpha / 2.0);
    let seen = first.rate() - second.rate();
    let end = |mut outside: f64| {
        let mut inside = seen;
        for _ in 0..100 {
            let middle = 0.5 * (outside + inside);
            if middle == outside || middle == inside {
                break;
            }
            let rejected = score_statistic(first, second, middle, second.trials).abs() > critical;
            if rejected { outside = middle } else { inside = middle }
        }
        inside
    };
    Interval { low: end(-1.0), high: end(1.0) }
}

/// Looked for from half beyond the upper and a quarter beyond the lower end of Wald's interval, as the reference does.
fn statsmodels_interval(first: Trials, second: Trials, alpha: f64) -> Result<Interval> {
    let wald = wald_interval(first, second, alpha, 0.0);
    let seen = first.rate() - second.rate();
    let excess = |difference: f64| {
        let statistic = score_statistic(first, second, difference, second.events);
        2.0 * normal_sf(statistic.abs()) - alpha
    };
    let high = root(excess, seen, (wald.high + 0.5 * wald.high.abs()).min(0.999_99));
    let low = root(excess, wald.low - 0.25 * wald.low.abs(), seen);
    match (low, high) {
        (Some(low), Some(high)) => Ok(Interval { low, high }),
        _ => Err(StatsError::Undefined { reason: "the search for the score interval fails" }),
    }
}

/// A root between `start` and `end` by Brent's method, "Algorithms for minimization without derivatives", 1973, to 2e-12; `None` without a
/// change of sign, or where `of` is NaN on the way.
fn root(of: impl Fn(f64) -> f64, start: f64, end: f64) -> Option<f64> {
    const CLOSE: f64 = 2e-12;
    let ((mut before, mut at), (mut f_before, mut f_at)) = ((start, end), (of(start), of(end)));
    let (mut other, mut f_other) = (before, f_before);
    let (mut last_step, mut step) = (0.0_f64, 0.0_f64);
    if f_before.is_nan() || f_at.is_nan() || f_before * f_at > 0.0 {
        return None;
    }
    for _ in 0..100 {
        if f_before != 0.0 && f_at != 0.0 && f_before.is_sign_negative() != f_at.is_sign_negative() {
            (other, f_other) = (before, f_before);
            step = at - before;
            last_step = step;
        }
        if f_other.abs() < f_at.abs() {
            (before, at, other) = (at, other, at);
            (f_before, f_at, f_other) = (f_at, f_other, f_at);
        }
        let close = (CLOSE + 4.0 * f64::EPSILON * at.abs()) / 2.0;
        let half = (other - at) / 2.0;
        if f_at == 0.0 || half.abs() < close {
            return Some(at);
        }
        let guess = if before == other {
            -f_at * (at - before) / (f_at - f_before)
        } else {
            let slope_before = (f_before - f_at) / (before - at);
            let slope_other = (f_other - f_at) / (other - at);
            -f_at * (f_other * slope_other - f_before * slope_before)
                / (slope_other * slope_before * (f_other - f_before))
        };
        let trusted = last_step.abs() > close && f_at.abs() < f_before.abs();
        if trusted && 2.0 * guess.abs() < last_step.abs().min(3.0 * half.abs() - close) {
            (last_step, step) = (step, guess);
        } else {
            (last_step, step) = (half, half);
        }
        (before, f_before) = (at, f_at);
        at += if step.abs() > close { step } else { close.copysign(half) };
        f_at = of(at);
        if f_at.is_nan() {
            return None;
        }
    }
    Some(at)
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
    fn score_intervals_are_the_published_ones() {
        // Newcombe 1998, example (a), method 6.
        let (first, second) = (Trials { events: 56, trials: 70 }, Trials { events: 48, trials: 80 });
        let interval = difference_interval(first, second, 0.05, DifferenceMethod::Score).unwrap();
        assert!(
            (interval.low - 0.0528).abs() < 5e-5 && (interval.high - 0.3382).abs() < 5e-5,
            "{interval:?}"
        );
        let (none, all) = (Trials { events: 0, trials: 10 }, Trials { events: 20, trials: 20 });
        for (first, second) in [(none, none), (none, all), (all, all), (all, none)] {
            let interval = difference_interval(first, second, 0.05, DifferenceMethod::Score).unwrap();
            assert!(interval.contains(first.rate() - second.rate()), "{interval:?}");
            assert!(
                interval.low >= -1.0 && interval.high <= 1.0 && interval.high - interval.low > 0.05,
                "{interval:?}"
            );
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
        assert!(difference_interval(all, all, 0.05, DifferenceMethod::StatsmodelsScore).is_err());
    }
}
