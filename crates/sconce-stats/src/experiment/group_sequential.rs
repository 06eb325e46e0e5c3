use crate::error::{Result, StatsError, at_least, in_range, open_unit, positive};
use crate::special::{normal_pdf, normal_sf, normal_upper_quantile};

/// Looks at the data.
const MOST_LOOKS: usize = 50;
/// Information between two looks, as a share of all: with less the grid would be coarse beside a step.
const LEAST_STEP: f64 = 1e-3;
/// The statistic is followed between minus this and the bound.
const REACH: f64 = 8.0;

/// The bounds of z at looks after the shares `times` of all information, so that all looks together raise a false alarm with
/// chance `alpha`: Lan and DeMets' spending function `alpha t^rho`, by the recursion of Armitage, McPherson and Rowe.
///
/// With `sides` 2 each side gets half of alpha and |z| is compared with the bound. An experiment that is looked at when it
/// pleases is better served by [`crate::sequential`].
///
/// # Errors
/// No look or more than 50; times not in 0..=1, or not rising by at least 0.001; `alpha` not strictly between 0 and 1; `rho` not
/// above 0; `sides` neither 1 nor 2.
pub fn group_sequential_bounds(times: &[f64], alpha: f64, rho: f64, sides: u8) -> Result<Vec<f64>> {
    at_least("times", times.len(), 1)?;
    if times.len() > MOST_LOOKS {
        return Err(StatsError::TooMany { name: "times", most: MOST_LOOKS, got: times.len() });
    }
    open_unit("alpha", alpha)?;
    positive("rho", rho)?;
    in_range("sides", f64::from(sides), sides == 1 || sides == 2, "1 or 2")?;
    let mut before = 0.0;
    for &time in times {
        let rises = time <= 1.0 && time - before >= LEAST_STEP;
        in_range("times", time, rises, "numbers up to 1 that rise by at least 0.001")?;
        before = time;
    }
    let level = alpha / f64::from(sides);
    let mut bounds = Vec::with_capacity(times.len());
    // The density of the score process over those that have not crossed.
    let mut alive: Option<Density> = None;
    let (mut spent, mut before) = (0.0, 0.0);
    for &time in times {
        let to_spend = level * time.powf(rho) - spent;
        let deviation = (time - before).sqrt();
        let bound = match &alive {
            None => normal_upper_quantile(to_spend).min(REACH) * time.sqrt(),
            Some(density) => density.bound(to_spend, deviation, REACH * time.sqrt()),
        };
        alive = Some(Density::next(alive.as_ref(), bound, time, deviation));
        bounds.push(bound / time.sqrt());
        spent += to_spend;
        before = time;
    }
    Ok(bounds)
}

/// A density on an even grid, an odd number of points, for Simpson's rule.
struct Density {
    low: f64,
    step: f64,
    /// Values times Simpson's weights.
    weighted: Vec<f64>,
}

impl Density {
    /// After a step of standard deviation `deviation` from `last` (from 0 at first), below `bound`.
    fn next(last: Option<&Self>, bound: f64, time: f64, deviation: f64) -> Self {
        let low = -REACH * time.sqrt();
        let panels = ((bound - low) / (0.1 * deviation)).ceil().clamp(100.0, 4_000.0);
        let panels = 2 * (panels as usize).div_ceil(2);
        let step = (bound - low) / panels as f64;
        let weighted = (0..=panels).map(|i| {
            let y = low + step * i as f64;
            let value = match last {
                None => normal_pdf(y / deviation) / deviation,
                Some(last) => last.integrate(|from| normal_pdf((y - from) / deviation) / deviation),
            };
            let weight = if i == 0 || i == panels { 1.0 } else { f64::from(2 + 2 * (i % 2) as u8) };
            value * weight * step / 3.0
        });
        Self { low, step, weighted: weighted.collect() }
    }

    fn integrate(&self, of: impl Fn(f64) -> f64) -> f64 {
        let terms = self.weighted.iter().enumerate().map(|(i, w)| w * of(self.low + self.step * i as f64));
        terms.sum()
    }

    /// Above which a step of `deviation` carries the share `to_spend`; `highest` if less than that goes above it.
    fn bound(&self, to_spend: f64, deviation: f64, highest: f64) -> f64 {
        let crossing = |bound: f64| self.integrate(|from| normal_sf((bound - from) / deviation));
        let (mut low, mut high) = (-highest, highest);
        if crossing(high) >= to_spend {
            return high;
        }
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if crossing(middle) > to_spend { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    #[test]
    fn one_look_is_the_ordinary_test() {
        let bounds = group_sequential_bounds(&[1.0], 0.05, 2.0, 2).unwrap();
        assert!((bounds[0] - 1.959_963_984_540_054).abs() < 1e-9);
    }

    #[test]
    fn all_looks_together_spend_alpha() {
        let times = [0.25, 0.5, 0.75, 1.0];
        let bounds = group_sequential_bounds(&times, 0.05, 2.0, 1).unwrap();
        let mut random = Rng::with_seed(41);
        let mut normal = move || (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let crossed = (0..20_000).filter(|_| {
            let mut score = 0.0;
            times.iter().zip(&bounds).any(|(time, bound)| {
                score += 0.5 * normal();
                score / time.sqrt() >= *bound
            })
        });
        let share = crossed.count() as f64 / 20_000.0;
        assert!((share - 0.05).abs() < 0.006, "{share}");
    }

    #[test]
    fn wrong_input_is_refused() {
        for times in [&[][..], &[0.0], &[0.5, 0.5], &[0.5, 0.4], &[1.1], &[f64::NAN]] {
            assert!(group_sequential_bounds(times, 0.05, 2.0, 1).is_err(), "{times:?}");
        }
        assert!(group_sequential_bounds(&[1.0], 0.05, 2.0, 3).is_err());
        assert!(group_sequential_bounds(&[1.0], 0.05, 0.0, 1).is_err());
    }
}
