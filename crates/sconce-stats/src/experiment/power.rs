use crate::error::{Result, StatsError, finite, in_range, open_unit, positive};
use crate::special::{noncentral_t_sf, normal_cdf, normal_sf, normal_upper_quantile, student_t_quantile};

/// The two-sided test whose power is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerTest {
    /// Two means with a known variance.
    Z,
    /// Two means with a common variance that is estimated.
    T,
}

/// The chance that the test at level `alpha` finds an `effect` (a difference in standard deviations) with `units` in the control
/// and `ratio` times as many in the treatment.
///
/// # Errors
/// An effect that is not finite; `units` or `ratio` not above 0, or too few for a variance; `alpha` not strictly between 0 and
/// 1.
pub fn power(effect: f64, units: f64, alpha: f64, ratio: f64, test: PowerTest) -> Result<f64> {
    finite("effect", &[effect])?;
    positive("units", units)?;
    positive("ratio", ratio)?;
    open_unit("alpha", alpha)?;
    let df = units * (1.0 + ratio) - 2.0;
    if test == PowerTest::T {
        in_range("units", units, df > 0.0, "more than two units in both together")?;
    }
    Ok(power_of(effect, units, alpha, ratio, test))
}

/// The units in the control, as a real number to be rounded up, with which [`power`] is `power`.
///
/// # Errors
/// As [`power`]; an effect of 0, or one so small that it takes more than 1e12 units; `power` not between `alpha` and 1.
pub fn sample_size(effect: f64, alpha: f64, power: f64, ratio: f64, test: PowerTest) -> Result<f64> {
    const MOST: f64 = 1e12;
    finite("effect", &[effect])?;
    positive("ratio", ratio)?;
    open_unit("alpha", alpha)?;
    open_unit("power", power)?;
    in_range("power", power, power > alpha, "a number above alpha")?;
    // With fewer there is no variance; a hair above, power is alpha.
    let least = if test == PowerTest::T { (2.0 + 1e-6) / (1.0 + ratio) } else { 1e-9 };
    let reaches = |units: f64| power_of(effect, units, alpha, ratio, test) >= power;
    let (mut low, mut high) = (least, least.max(2.0));
    while !reaches(high) {
        low = high;
        high *= 4.0;
        if high > MOST {
            return Err(StatsError::OutOfRange {
                name: "effect",
                expected: "one that 1e12 units find",
                got: effect,
            });
        }
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if reaches(middle) {
            high = middle
        } else {
            low = middle
        }
        if high - low <= 1e-12 * high {
            break;
        }
    }
    Ok(0.5 * (low + high))
}

/// The units in the control with which a two-sided test at level `alpha` finds rates `control` and `treatment` to differ with
/// chance `power`, with `ratio` times as many in the treatment: `(z + z')^2 (p (1-p) + q (1-q) / ratio) / (p - q)^2`.
///
/// # Errors
/// Rates, `alpha` or `power` not strictly between 0 and 1; equal rates; `ratio` not above 0.
pub fn proportions_sample_size(
    control: f64,
    treatment: f64,
    alpha: f64,
    power: f64,
    ratio: f64,
) -> Result<f64> {
    open_unit("control", control)?;
    open_unit("treatment", treatment)?;
    open_unit("alpha", alpha)?;
    open_unit("power", power)?;
    positive("ratio", ratio)?;
    in_range("treatment", treatment, treatment != control, "another rate than the control's")?;
    let z = normal_upper_quantile(alpha / 2.0) + normal_upper_quantile(1.0 - power);
    let variance = control * (1.0 - control) + treatment * (1.0 - treatment) / ratio;
    let difference = treatment - control;
    Ok(z * z * variance / (difference * difference))
}

fn power_of(effect: f64, units: f64, alpha: f64, ratio: f64, test: PowerTest) -> f64 {
    let shift = effect * (units * ratio / (1.0 + ratio)).sqrt();
    match test {
        PowerTest::Z => {
            let critical = normal_upper_quantile(alpha / 2.0);
            normal_sf(critical - shift) + normal_cdf(-critical - shift)
        }
        PowerTest::T => {
            let df = units * (1.0 + ratio) - 2.0;
            let critical = student_t_quantile(1.0 - alpha / 2.0, df);
            // The lower tail at -t is the upper at t of the mirrored distribution.
            noncentral_t_sf(critical, df, shift) + noncentral_t_sf(critical, df, -shift)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_size_inverts_power() {
        for test in [PowerTest::Z, PowerTest::T] {
            for (effect, ratio) in [(0.05, 1.0), (0.3, 2.0), (2.5, 0.5)] {
                let units = sample_size(effect, 0.05, 0.8, ratio, test).unwrap();
                let reached = power(effect, units, 0.05, ratio, test).unwrap();
                assert!((reached - 0.8).abs() < 1e-6, "{test:?} {effect}: {units} {reached}");
            }
        }
    }

    #[test]
    fn impossible_questions_are_refused() {
        assert!(sample_size(0.0, 0.05, 0.8, 1.0, PowerTest::Z).is_err());
        assert!(sample_size(0.1, 0.05, 0.01, 1.0, PowerTest::Z).is_err());
        assert!(power(0.1, 0.5, 0.05, 1.0, PowerTest::T).is_err());
        assert!(proportions_sample_size(0.1, 0.1, 0.05, 0.8, 1.0).is_err());
        assert_eq!(proportions_sample_size(0.10, 0.12, 0.05, 0.8, 1.0).unwrap().ceil(), 3839.0);
    }
}
