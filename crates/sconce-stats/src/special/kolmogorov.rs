use super::{deviance, stirling_error};
use std::f64::consts::PI;

/// Up to here the finite-n distribution is summed over all paths.
const SMALL: f64 = 140.0;
/// Up to here, and near the median, it is a matrix power; beyond, an expansion in `1 / sqrt(n)`.
const LARGEST_POWER: f64 = 100_000.0;
/// A one-sided tail of more terms than this is summed over this many of them: it is smooth, and the rule of the trapezoid
/// then exact to the last digits.
const MOST_TERMS: f64 = 8_192.0;

/// P(K > x) of the limiting Kolmogorov distribution, the law of `sqrt(n) D` as n grows.
///
/// Kolmogorov's alternating series in the tail; below 1.18 the theta-function form, of which three terms are enough.
pub fn kolmogorov_sf(x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    if x <= 0.0 {
        return 1.0;
    }
    if x < 1.18 {
        let exponent = -PI * PI / (8.0 * x * x);
        let terms: f64 = [1.0, 9.0, 25.0, 49.0].iter().map(|odd| (exponent * odd).exp()).sum();
        return (1.0 - (2.0 * PI).sqrt() / x * terms).clamp(0.0, 1.0);
    }
    let square = -2.0 * x * x;
    2.0 * ((square).exp() - (4.0 * square).exp() + (9.0 * square).exp() - (16.0 * square).exp())
}

/// P(D > d) of the two-sided one-sample Kolmogorov statistic of `n` values, `n` whole and at least 1.
///
/// The choice of methods is that of Simard and L'Ecuyer, "Computing the two-sided Kolmogorov–Smirnov distribution", 2011:
/// closed forms at the ends, a sum over paths or a matrix power (Marsaglia, Tsang and Wang) for small n, twice the one-sided
/// tail where both sides at once are unlikely (from `n d^2` of 4, or 2.2 above n = 140, on: the relative error is up to 4e-11
/// and 2e-6 there), else the expansion of Pelz and Good. The work is bounded whatever n.
pub fn kolmogorov_finite_sf(n: f64, d: f64) -> f64 {
    if d.is_nan() || !(n >= 1.0 && n.is_finite() && n.fract() == 0.0) {
        return f64::NAN;
    }
    let t = n * d;
    let square = t * d;
    if d >= 1.0 {
        0.0
    } else if t <= 0.5 {
        1.0
    } else if t <= 1.0 {
        // n! (2d - 1/n)^n, with n! / n^n by Stirling's formula.
        let ln_cdf = stirling_error(n) + 0.5 * (2.0 * PI * n).ln() - n + n * (2.0 * t - 1.0).ln();
        1.0 - ln_cdf.exp()
    } else if t >= n - 1.0 {
        (2.0 * (n * (-d).ln_1p()).exp()).min(1.0)
    } else if d >= 0.5 {
        (2.0 * one_sided_sf(n, d)).min(1.0)
    } else if n <= SMALL {
        if square <= 0.754_693 {
            1.0 - matrix_power_cdf(n, d)
        } else if square <= 4.0 {
            path_sum_sf(n, d)
        } else {
            2.0 * one_sided_sf(n, d)
        }
    } else if square >= 370.0 {
        0.0
    } else if square >= 2.2 {
        2.0 * one_sided_sf(n, d)
    } else if n <= LARGEST_POWER && n * d.powf(1.5) <= 1.4 {
        1.0 - matrix_power_cdf(n, d)
    } else {
        (1.0 - pelz_good_cdf(n, d)).clamp(0.0, 1.0)
    }
}

/// P(D+ > d): Smirnov's sum `d C(n, j) (d + j/n)^(j-1) (1 - d - j/n)^(n-j)` over j. Each term is a binomial probability with
/// success probability `d + j/n`, in Loader's form, in which the deviations from the mean, `n d` both, cancel nothing.
fn one_sided_sf(n: f64, d: f64) -> f64 {
    let t = n * d;
    let whole = stirling_error(n);
    let last = (n - t).floor();
    let term = |j: f64| {
        let failures = n - j;
        let mean = t + j;
        let expected_failures = failures - t;
        if expected_failures <= 0.0 {
            return 0.0;
        }
        let ln = whole
            - stirling_error(j)
            - stirling_error(failures)
            - deviance(j, mean, -t)
            - deviance(failures, expected_failures, t);
        t / mean * ln.exp() * (n / (2.0 * PI * j * failures)).sqrt()
    };
    // Without any below: (1 - d)^n.
    let none = (n * (-d).ln_1p()).exp();
    let stride = (last / MOST_TERMS).floor().max(1.0);
    let count = (last / stride).floor();
    let mut sum = 0.0;
    let mut step = 1.0;
    while step <= count {
        sum += term(step * stride);
        step += 1.0;
    }
    (none + stride * sum).min(1.0)
}

/// P(D <= d) as `n!/n^n` times an entry of the n-th power of a matrix: Durbin's, by Marsaglia, Tsang and Wang, 2003.
fn matrix_power_cdf(n: f64, d: f64) -> f64 {
    let k = (n * d).ceil();
    let h = k - n * d;
    let size = 2 * k as usize - 1;
    let mut base = vec![0.0; size * size];
    for i in 0..size {
        for j in 0..size.min(i + 2) {
            base[i * size + j] = 1.0;
        }
    }
    for i in 0..size {
        let power = h.powi(i as i32 + 1);
        base[i * size] -= power;
        base[(size - 1) * size + (size - 1 - i)] -= power;
    }
    base[(size - 1) * size] += if 2.0 * h > 1.0 { (2.0 * h - 1.0).powi(size as i32) } else { 0.0 };
    // Row minus column plus one, factorial.
    let mut factorials = vec![1.0; size + 1];
    for i in 1..=size {
        factorials[i] = factorials[i - 1] * i as f64;
    }
    for i in 0..size {
        for j in 0..size.min(i + 1) {
            base[i * size + j] /= factorials[i - j + 1];
        }
    }
    let (power, exponent) = matrix_power(&base, size, n as u64);
    let mut cdf = power[(k as usize - 1) * size + k as usize - 1];
    let mut scale = exponent;
    // n! / n^n, one factor at a time, kept in range.
    let mut i = 1.0;
    while i <= n {
        cdf *= i / n;
        if cdf < 1e-140 {
            cdf *= 2f64.powi(465);
            scale -= 465;
        }
        i += 1.0;
    }
    (cdf * 2f64.powi(scale.clamp(-2_000, 1_000))).clamp(0.0, 1.0)
}

/// The matrix to the power, without the power of two that is returned beside it.
fn matrix_power(base: &[f64], size: usize, mut power: u64) -> (Vec<f64>, i32) {
    let mut result: Vec<f64> =
        (0..size * size).map(|at| if at % (size + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let mut square = base.to_vec();
    let (mut exponent, mut square_exponent) = (0, 0);
    let middle = (size / 2) * size + size / 2;
    let normalise = |matrix: &mut [f64], exponent: &mut i32| {
        if matrix[middle] > 2f64.powi(465) {
            matrix.iter_mut().for_each(|entry| *entry *= 2f64.powi(-465));
            *exponent += 465;
        }
    };
    while power > 0 {
        if power & 1 == 1 {
            result = matrix_product(&result, &square, size);
            exponent += square_exponent;
            normalise(&mut result, &mut exponent);
        }
        power >>= 1;
        if power > 0 {
            square = matrix_product(&square, &square, size);
            square_exponent *= 2;
            normalise(&mut square, &mut square_exponent);
        }
    }
    (result, exponent)
}

fn matrix_product(a: &[f64], b: &[f64], size: usize) -> Vec<f64> {
    let mut product = vec![0.0; size * size];
    for (row, out) in a.chunks_exact(size).zip(product.chunks_exact_mut(size)) {
        for (factor, from) in row.iter().zip(b.chunks_exact(size)) {
            for (sum, value) in out.iter_mut().zip(from) {
                *sum += factor * value;
            }
        }
    }
    product
}

/// P(D > d) summed over the paths that leave the band: at the times at which the band's edges pass a whole number, the count
/// of values so far is binomial given the count before. Going backwards from 1, `leaves[j]` is the probability to leave the
/// band later, given the count j now: positive terms only, so that the tail keeps its digits. `O(n (n d)^2)`.
fn path_sum_sf(n: f64, d: f64) -> f64 {
    let t = n * d;
    // At k - t the count must be below k; at k + t it must have reached k + 1. Times are in units of 1/n.
    let upper = (1..=n as u32).map(|k| f64::from(k) - t).filter(|&time| time > 0.0);
    let lower = (0..n as u32).map(|k| f64::from(k) + t).filter(|&time| time < n);
    let mut times: Vec<f64> = upper.chain(lower).collect();
    times.sort_unstable_by(f64::total_cmp);
    let inside = |time: f64| {
        // The smallest and the largest count that has not left just then; at a time of either kind its own edge counts.
        let least = (time - t + 1e-9).floor() + 1.0;
        let most = (time + t + 1e-9).floor() - if is_near_whole(time + t) { 1.0 } else { 0.0 };
        (least.max(0.0), most.min(n))
    };
    let mut later: Option<(f64, f64, Vec<f64>)> = None;
    for &time in times.iter().rev() {
        let (least, most) = inside(time);
        let mut leaves = Vec::with_capacity((most - least) as usize + 1);
        let mut count = least;
        while count <= most {
            leaves.push(match &later {
                // All the rest arrives before the end, where the count is n: inside.
                None => 0.0,
                Some((next_time, first, after)) => {
                    let share = ((next_time - time) / (n - time)).clamp(0.0, 1.0);
                    leaving(n - count, share, *first - count, after)
                }
            });
            count += 1.0;
        }
        later = Some((time, least, leaves));
    }
    match later {
        Some((first_time, first, after)) => leaving(n, first_time / n, first, &after),
        None => 1.0,
    }
}

fn is_near_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-9
}

/// The probability to have left at the next time or later: of `rest` values each arrives until then with probability `share`;
/// arrivals from `first` on, one by one, lead to `after`, all others outside.
fn leaving(rest: f64, share: f64, first: f64, after: &[f64]) -> f64 {
    let (mut sum, mut arrivals, mut weight) = (0.0, 0.0, (rest * (-share).ln_1p()).exp());
    let odds = share / (1.0 - share);
    while arrivals <= rest {
        let at = arrivals - first;
        let probability = if at < 0.0 { 1.0 } else { after.get(at as usize).copied().unwrap_or(1.0) };
        sum += weight * probability;
        let beyond = at >= after.len() as f64;
        if beyond && weight < sum * 1e-18 {
            break;
        }
        weight *= (rest - arrivals) / (arrivals + 1.0) * odds;
        arrivals += 1.0;
    }
    sum
}

/// P(D <= d) to the third order in `1 / sqrt(n)`: Pelz and Good, 1976, as given by Simard and L'Ecuyer.
fn pelz_good_cdf(n: f64, d: f64) -> f64 {
    let z = n.sqrt() * d;
    let (z2, z4, z6) = (z * z, z.powi(4), z.powi(6));
    let (p2, p4, p6) = (PI.powi(2), PI.powi(4), PI.powi(6));
    let rate = p2 / (2.0 * z2);
    // Sums over the half-integers of both signs, and over the positive integers; 16 terms leave nothing.
    let (mut k0, mut k1, mut k2, mut k3) = (0.0, 0.0, 0.0, 0.0);
    let (mut k2_whole, mut k3_whole) = (0.0, 0.0);
    for k in (0..16).rev() {
        let half = f64::from(k) + 0.5;
        let (h2, h4, h6) = (half.powi(2), half.powi(4), half.powi(6));
        let weight = (-rate * h2).exp();
        k0 += weight;
        k1 += (p2 * h2 - z2) * weight;
        k2 += (6.0 * z6 + 2.0 * z4 + p2 * (2.0 * z4 - 5.0 * z2) * h2 + p4 * (1.0 - 2.0 * z2) * h4) * weight;
        k3 += (p6 * (5.0 - 30.0 * z2) * h6
            + p4 * (-60.0 * z2 + 212.0 * z4) * h4
            + p2 * (135.0 * z4 - 96.0 * z6) * h2
            - (30.0 * z6 + 90.0 * z4 * z4))
            * weight;
        let whole = f64::from(k) + 1.0;
        let (w2, w4) = (whole.powi(2), whole.powi(4));
        let weight = (-rate * w2).exp();
        k2_whole += p2 * w2 * weight;
        k3_whole += (3.0 * p2 * w2 * z2 - p4 * w4) * weight;
    }
    let half_pi = (PI / 2.0).sqrt();
    let both = 2.0 * half_pi;
    let zero = (2.0 * PI).sqrt() / z * k0;
    let first = both * k1 / (6.0 * z4);
    let second = both * (k2 / (72.0 * z6 * z) - k2_whole / (36.0 * z2 * z));
    let third = both * (k3 / (6_480.0 * z6 * z4) + k3_whole / (216.0 * z6));
    let root = n.sqrt();
    zero + (first + (second + third / root) / root) / root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_methods_agree_where_they_meet() {
        for n in [5.0_f64, 20.0, 77.0, 140.0] {
            for square in [0.3_f64, 0.754, 1.2, 2.0, 3.9] {
                let d = (square / n).sqrt();
                if d >= 0.5 || n * d <= 1.0 {
                    continue;
                }
                let (paths, power) = (path_sum_sf(n, d), 1.0 - matrix_power_cdf(n, d));
                assert!((paths - power).abs() < 1e-13, "{n} {d}: {paths} {power}");
                if square > 3.0 {
                    let one_sided = 2.0 * one_sided_sf(n, d);
                    assert!((paths / one_sided - 1.0).abs() < 1e-7, "{n} {d}: {paths} {one_sided}");
                }
            }
        }
        let (power, expansion) = (matrix_power_cdf(1_500.0, 0.021), pelz_good_cdf(1_500.0, 0.021));
        assert!((power - expansion).abs() < 1e-7, "{power} {expansion}");
    }

    #[test]
    fn a_long_sum_may_be_thinned() {
        // (n, d) with an exact sum of 20,000 and 60,000 terms.
        for (n, d) in [(20_000.0, 0.012), (60_000.0, 0.02)] {
            let whole = {
                let t = n * d;
                let term = |j: f64| {
                    let ln = stirling_error(n) - stirling_error(j) - stirling_error(n - j);
                    let ln = ln - deviance(j, t + j, -t) - deviance(n - j, n - j - t, t);
                    t / (t + j) * ln.exp() * (n / (2.0 * PI * j * (n - j))).sqrt()
                };
                (1..(n - t) as u32).map(|j| term(f64::from(j))).sum::<f64>()
            };
            let thinned = one_sided_sf(n, d);
            assert!((thinned / whole - 1.0).abs() < 1e-12, "{n} {d}: {thinned} {whole}");
        }
    }

    #[test]
    fn the_finite_distribution_is_bounded_monotone_and_total() {
        for n in [1.0_f64, 2.0, 3.0, 10.0, 140.0, 141.0, 5_000.0, 1e6, 1e12] {
            let mut last = 1.0;
            for step in 0..=400 {
                let d = f64::from(step) / 400.0 * (5.0_f64 / n.sqrt()).min(1.0);
                let sf = kolmogorov_finite_sf(n, d);
                assert!((0.0..=1.0).contains(&sf) && sf <= last + 1e-6, "{n} {d}: {sf} after {last}");
                last = sf;
            }
        }
        assert!(kolmogorov_finite_sf(0.0, 0.5).is_nan() && kolmogorov_finite_sf(1.5, 0.5).is_nan());
        assert!(kolmogorov_finite_sf(10.0, f64::NAN).is_nan());
    }

    #[test]
    fn both_forms_agree_where_they_meet() {
        let (below, above) = (kolmogorov_sf(1.18 - 1e-12), kolmogorov_sf(1.18));
        assert!((below - above).abs() < 1e-11, "{below} {above}");
        assert_eq!((kolmogorov_sf(0.0), kolmogorov_sf(1e200)), (1.0, 0.0));
    }
}
