use crate::error::{Result, StatsError, at_least, in_range, same_length};

/// The Jensen–Shannon distance, in [0, sqrt(ln 2)]: the square root of the mean divergence, in nats, of either distribution
/// from their middle. In base 2, where its range is [0, 1], it is this over `sqrt(ln 2)`.
///
/// Like all distances here it takes weights, which need not add up to 1.
///
/// # Errors
///
/// Weights that are none, negative, not finite or all 0; lists of different length.
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> Result<f64> {
    let mut sum = 0.0;
    for (p, q) in shares(p, q)? {
        let middle = (p + q) / 2.0;
        sum += entropy(p, middle) + entropy(q, middle);
    }
    // Rounding may leave less than nothing.
    Ok((sum / 2.0).max(0.0).sqrt())
}

/// The Kullback–Leibler divergence of `p` from `q`, in nats: infinite where `q` rules out what `p` does not.
///
/// # Errors
///
/// As [`jensen_shannon`].
pub fn kullback_leibler(p: &[f64], q: &[f64]) -> Result<f64> {
    Ok(shares(p, q)?.map(|(p, q)| entropy(p, q)).sum())
}

/// Jeffreys' divergence, in nats: [`kullback_leibler`] both ways. Over bins it is the plain population stability index, infinite
/// where only one of the bins is empty; [`super::population_stability`] is not, and says what size alone explains.
///
/// # Errors
///
/// As [`jensen_shannon`].
pub fn jeffreys(p: &[f64], q: &[f64]) -> Result<f64> {
    Ok(shares(p, q)?.map(|(p, q)| if p == q { 0.0 } else { (p - q) * (p / q).ln() }).sum())
}

/// The total variation distance, in [0, 1]: half the sum of the differences.
///
/// # Errors
///
/// As [`jensen_shannon`].
pub fn total_variation(p: &[f64], q: &[f64]) -> Result<f64> {
    Ok(shares(p, q)?.map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0)
}

/// The L-infinity distance, in [0, 1]: the largest difference.
///
/// # Errors
///
/// As [`jensen_shannon`].
pub fn largest_difference(p: &[f64], q: &[f64]) -> Result<f64> {
    Ok(shares(p, q)?.map(|(p, q)| (p - q).abs()).fold(0.0, f64::max))
}

/// The Hellinger distance, in [0, 1].
///
/// # Errors
///
/// As [`jensen_shannon`].
pub fn hellinger(p: &[f64], q: &[f64]) -> Result<f64> {
    let sum: f64 = shares(p, q)?.map(|(p, q)| (p.sqrt() - q.sqrt()).powi(2)).sum();
    Ok((sum / 2.0).sqrt())
}

/// `p ln(p / q)`, 0 where p is.
fn entropy(p: f64, q: f64) -> f64 {
    if p > 0.0 { p * (p / q).ln() } else { 0.0 }
}

/// Both lists as shares of their sums, side by side.
fn shares<'a>(p: &'a [f64], q: &'a [f64]) -> Result<impl Iterator<Item = (f64, f64)> + 'a> {
    same_length(("p", p.len()), ("q", q.len()))?;
    at_least("p", p.len(), 1)?;
    let total = |name, weights: &[f64]| {
        for &weight in weights {
            in_range(name, weight, weight >= 0.0, "a weight of at least 0")?;
        }
        let total: f64 = weights.iter().sum();
        if total == 0.0 || !total.is_finite() {
            return Err(StatsError::Undefined { reason: "the weights add up to 0, or not to a finite sum" });
        }
        Ok(total)
    };
    let (of_p, of_q) = (total("p", p)?, total("q", q)?);
    Ok(p.iter().zip(q).map(move |(&p, &q)| (p / of_p, q / of_q)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_symmetric_and_at_their_ends_where_they_should() {
        let (p, q) = ([1.0, 0.0, 3.0], [2.0, 2.0, 0.0]);
        for distance in [jensen_shannon, total_variation, largest_difference, hellinger] {
            assert_eq!(distance(&p, &p).unwrap(), 0.0);
            assert!((distance(&p, &q).unwrap() - distance(&q, &p).unwrap()).abs() < 1e-15);
            assert!(distance(&[1.0, 0.0], &[0.0, 1.0]).unwrap() > 0.8);
        }
        assert_eq!(kullback_leibler(&p, &q).unwrap(), f64::INFINITY);
        assert_eq!(jeffreys(&p, &q).unwrap(), f64::INFINITY);
        let (p, q) = ([1.0, 3.0], [2.0, 2.0]);
        let both = kullback_leibler(&p, &q).unwrap() + kullback_leibler(&q, &p).unwrap();
        assert!((jeffreys(&p, &q).unwrap() - both).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for bad in [&[][..], &[0.0, 0.0], &[-1.0, 2.0], &[f64::NAN, 1.0], &[f64::INFINITY, 1.0], &[1.0]] {
            assert!(jensen_shannon(bad, &[0.5, 0.5]).is_err(), "{bad:?}");
        }
        assert!(hellinger(&[], &[]).is_err());
    }
}
