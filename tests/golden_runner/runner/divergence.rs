//! Distances between distributions, and bins.

use super::Run;
use super::arguments::{Arguments, Fault, number};
use sconce_stats::StatsError;
use sconce_stats::bins::{BinRule, QuantileRule, bin_edges, histogram, quantile};
use sconce_stats::distance::{
    Weighted, energy, hellinger, jensen_shannon, kullback_leibler, largest_difference,
    least_squares_density_difference, median_bandwidth, mmd_biased, mmd_linear_time, mmd_unbiased,
    population_stability, total_variation, wasserstein,
};
use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    Some(match test {
        "bins_quantiles" => bins_quantiles,
        "divergences" => divergences,
        "multivariate_mmd_lsdd" => multivariate_mmd_lsdd,
        "psi_recommended" => psi_recommended,
        "wasserstein_energy" => wasserstein_energy,
        _ => return None,
    })
}

fn wasserstein_energy(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (x, y) = (case.numbers("x")?, case.numbers("y")?);
    let weights = |name: &str| case.get(name).map(|_| case.numbers(name)).transpose();
    let (u, v) = (weights("u")?, weights("v")?);
    let x = Weighted { values: &x, weights: u.as_deref() };
    let y = Weighted { values: &y, weights: v.as_deref() };
    match (wasserstein(x, y), energy(x, y)) {
        // The reference passes NaN on, where ours is refused.
        (Err(StatsError::NotFinite { got, .. }), _) if got.is_nan() => {
            Ok(json!({ "wasserstein": "NaN", "energy": "NaN" }))
        }
        (wasserstein, energy) => {
            Ok(json!({ "wasserstein": number(wasserstein?), "energy": number(energy?) }))
        }
    }
}

fn divergences(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (p, q) = (case.numbers("p")?, case.numbers("q")?);
    // The reference answers NaN to weights that add up to 0, where ours are refused.
    let distance = |outcome| match outcome {
        Err(StatsError::Undefined { .. }) => Ok(json!("NaN")),
        outcome => outcome.map(number),
    };
    let in_bits = jensen_shannon(&p, &q).map(|distance| distance / std::f64::consts::LN_2.sqrt());
    Ok(json!({
        "js_e": distance(jensen_shannon(&p, &q))?,
        "js_2": distance(in_bits)?,
        "kl_pq": distance(kullback_leibler(&p, &q))?,
        "kl_qp": distance(kullback_leibler(&q, &p))?,
        "tvd": distance(total_variation(&p, &q))?,
        "linf": distance(largest_difference(&p, &q))?,
        "hellinger": distance(hellinger(&p, &q))?,
    }))
}

fn bins_quantiles(case: &Arguments<'_>) -> Result<Value, Fault> {
    let x = case.numbers("x")?;
    let mut answer = Map::new();
    for (name, rule) in [
        ("sturges", BinRule::Sturges),
        ("doane", BinRule::Doane),
        ("fd", BinRule::FreedmanDiaconis),
        ("scott", BinRule::Scott),
        ("sqrt", BinRule::SquareRoot),
        ("rice", BinRule::Rice),
        ("auto", BinRule::Auto),
    ] {
        let edges = bin_edges(&x, rule)?;
        let counts = histogram(&x, &edges)?;
        answer.insert(name.to_owned(), json!({ "edges": edges, "counts": counts }));
    }
    for (name, rule, at) in [
        (
            "quantile_linear",
            QuantileRule::Linear,
            &["0", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "1"][..],
        ),
        ("quantile_median_unbiased", QuantileRule::MedianUnbiased, &["0.05", "0.5", "0.95"]),
    ] {
        let mut quantiles = Map::new();
        for q in at {
            let value = quantile(&x, q.parse().unwrap_or(f64::NAN), rule)?;
            quantiles.insert((*q).to_owned(), number(value));
        }
        answer.insert(name.to_owned(), Value::Object(quantiles));
    }
    Ok(Value::Object(answer))
}

fn psi_recommended(case: &Arguments<'_>) -> Result<Value, Fault> {
    let bins = usize::try_from(case.count("bins")?).unwrap_or(usize::MAX);
    let psi = population_stability(&case.numbers("ref")?, &case.numbers("cur")?, bins, case.number("a")?)?;
    Ok(json!({
        "edges": psi.edges,
        "ref_counts": psi.reference_counts,
        "cur_counts": psi.current_counts,
        "psi": number(psi.psi),
        "chi2_null_p": number(psi.p_value),
    }))
}

fn multivariate_mmd_lsdd(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (x, y, centers) = (case.rows("x")?, case.rows("y")?, case.rows("centers")?);
    let (sigma, penalty) = (case.number("sigma")?, case.number("lam")?);
    let linear = mmd_linear_time(&x, &y, sigma)?;
    Ok(json!({
        "alibi_median_sigma": number(median_bandwidth(&x, &y)?),
        "mmd2_unbiased": number(mmd_unbiased(&x, &y, sigma)?),
        "mmd2_biased": number(mmd_biased(&x, &y, sigma)?),
        "mmd2_linear_time": number(linear.mmd),
        "mmd2_linear_var": number(linear.variance),
        "lsdd": number(least_squares_density_difference(&x, &y, &centers, sigma, penalty)?),
    }))
}
