//! Special functions and the tails of distributions.

use super::Run;
use super::arguments::{Arguments, Fault, number};
use sconce_stats::special;
use serde_json::{Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    (test == "special_functions").then_some(special_functions)
}

/// One case a function; which it is shows in the names of the input.
fn special_functions(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let list = |values: Vec<f64>| Value::Array(values.into_iter().map(number).collect());
    let one = |name: &str, function: fn(f64) -> f64| -> Result<Value, Fault> {
        Ok(list(arguments.numbers(name)?.into_iter().map(function).collect()))
    };
    let two = |first: &str, second: &str, function: fn(f64, f64) -> f64| -> Result<Value, Fault> {
        let pairs = arguments.numbers(first)?.into_iter().zip(arguments.numbers(second)?);
        Ok(list(pairs.map(|(a, b)| function(a, b)).collect()))
    };
    let has = |name: &str| arguments.get(name).is_some();
    if has("z") {
        Ok(json!({ "sf": one("z", special::normal_sf)?, "cdf": one("z", special::normal_cdf)? }))
    } else if has("a") {
        let (a, b) = (arguments.numbers("a")?, arguments.numbers("b")?);
        let x = arguments.numbers("x")?;
        let values = x.iter().zip(a).zip(b).map(|((&x, a), b)| special::beta_cdf(x, a, b)).collect();
        Ok(json!({ "cdf": list(values) }))
    } else if has("t") {
        Ok(json!({ "sf": two("t", "df", special::student_t_sf)? }))
    } else if has("x") && has("df") {
        Ok(json!({ "sf": two("x", "df", special::chi_square_sf)? }))
    } else if has("n") && has("d") {
        Ok(json!({ "sf": two("n", "d", special::kolmogorov_finite_sf)? }))
    } else if has("p") && has("df") {
        Ok(json!({ "ppf": two("p", "df", special::student_t_quantile)? }))
    } else if has("p") {
        Ok(json!({ "ppf": one("p", special::normal_quantile)? }))
    } else if has("x") {
        Ok(json!({ "sf": one("x", special::kolmogorov_sf)? }))
    } else {
        Err(Fault::Malformed("expected the arguments of a function that is known".to_owned()))
    }
}
