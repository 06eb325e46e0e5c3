//! Tests of two samples, and of counts.

use super::Run;
use super::arguments::{Arguments, Fault, number, unexpected};
use sconce_stats::counts::{Divergence, contingency, fisher_exact, goodness_of_fit};
use sconce_stats::two_sample::{
    Alternative, Continuity, MeanDifference, Method, TieRule, Variances, anderson_darling, brunner_munzel,
    cramer_von_mises, epps_singleton, kolmogorov_smirnov, kuiper, mann_whitney, t_test,
};
use sconce_stats::{Interval, StatsError, TestResult};
use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    Some(match test {
        "anderson_ksamp" => anderson_ksamp,
        "brunnermunzel" => |case| Ok(result(brunner_munzel(&case.numbers("x")?, &case.numbers("y")?)?)),
        "chi2_contingency" => chi2_contingency,
        "chisquare_power" => chisquare_power,
        "cramervonmises_2samp" => {
            |case| or_nan(cramer_von_mises(&case.numbers("x")?, &case.numbers("y")?, method(case)?))
        }
        "epps_singleton_2samp" => |case| or_nan(epps_singleton(&case.numbers("x")?, &case.numbers("y")?)),
        "fisher_exact" => fisher,
        "ks_2samp" => |case| {
            let (x, y) = (case.numbers("x")?, case.numbers("y")?);
            or_nan(kolmogorov_smirnov(&x, &y, alternative(case)?, method(case)?))
        },
        "kuiper" => |case| {
            let kuiper = kuiper(&case.numbers("x")?, &case.numbers("y")?)?;
            Ok(json!({ "v": kuiper.statistic, "lambda": kuiper.lambda, "pvalue": kuiper.p_value }))
        },
        "mannwhitneyu" => mannwhitneyu,
        "ttest_ind" => ttest_ind,
        _ => return None,
    })
}

fn result(result: TestResult) -> Value {
    json!({ "statistic": number(result.statistic), "pvalue": number(result.p_value) })
}

/// The reference answers NaN to samples that are too small, where ours are refused.
fn or_nan(outcome: Result<TestResult, StatsError>) -> Result<Value, Fault> {
    match outcome {
        Err(StatsError::TooFew { .. }) => Ok(json!({ "statistic": "NaN", "pvalue": "NaN" })),
        outcome => Ok(result(outcome?)),
    }
}

fn alternative(case: &Arguments<'_>) -> Result<Alternative, Fault> {
    match case.text_or("alternative", "two-sided")? {
        "two-sided" => Ok(Alternative::TwoSided),
        "less" => Ok(Alternative::Less),
        "greater" => Ok(Alternative::Greater),
        _ => Err(unexpected("alternative", "two-sided, less or greater", case.value("alternative")?)),
    }
}

fn method(case: &Arguments<'_>) -> Result<Method, Fault> {
    match case.text_or("method", "auto")? {
        "auto" => Ok(Method::Auto),
        "exact" => Ok(Method::Exact),
        "asymp" | "asymptotic" => Ok(Method::Asymptotic),
        _ => Err(unexpected("method", "auto, exact or asymptotic", case.value("method")?)),
    }
}

fn anderson_ksamp(case: &Arguments<'_>) -> Result<Value, Fault> {
    let ties = match case.text_or("variant", "midrank")? {
        "midrank" => TieRule::Midrank,
        // The variant for continuous data is this one where nothing is tied.
        "right" | "continuous" => TieRule::Right,
        _ => return Err(unexpected("variant", "midrank, right or continuous", case.value("variant")?)),
    };
    let mut samples = vec![case.numbers("x")?, case.numbers("y")?];
    if case.get("z").is_some() {
        samples.push(case.numbers("z")?);
    }
    let samples: Vec<&[f64]> = samples.iter().map(Vec::as_slice).collect();
    Ok(result(anderson_darling(&samples, ties)?))
}

fn mannwhitneyu(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (x, y) = (case.numbers("x")?, case.numbers("y")?);
    let continuity =
        if case.flag_or("use_continuity", true)? { Continuity::Corrected } else { Continuity::Uncorrected };
    Ok(result(mann_whitney(&x, &y, alternative(case)?, method(case)?, continuity)?))
}

fn ttest_ind(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (x, y) = (case.numbers("x")?, case.numbers("y")?);
    let test = |variances| match t_test(&x, &y, variances, 0.95) {
        // The reference answers NaN, with one degree of freedom, where there is no variance to estimate.
        Err(StatsError::TooFew { .. } | StatsError::Undefined { .. }) => {
            Ok(json!({ "statistic": "NaN", "pvalue": "NaN", "df": 1.0, "ci95": ["NaN", "NaN"] }))
        }
        Err(error) => Err(Fault::from(error)),
        Ok(MeanDifference { statistic, p_value, df, interval: Interval { low, high } }) => Ok(json!({
            "statistic": number(statistic), "pvalue": number(p_value), "df": df, "ci95": [number(low), number(high)],
        })),
    };
    Ok(json!({ "student": test(Variances::Equal)?, "welch": test(Variances::Any)? }))
}

fn chi2_contingency(case: &Arguments<'_>) -> Result<Value, Fault> {
    let table = case.rows("table")?;
    let test = |divergence, yates| -> Result<Value, Fault> {
        let test = contingency(&table, divergence, yates)?;
        Ok(json!({ "statistic": number(test.statistic), "pvalue": number(test.p_value), "dof": test.df }))
    };
    Ok(json!({
        "pearson_yates_default": test(Divergence::Pearson, true)?,
        "pearson": test(Divergence::Pearson, false)?,
        "g": test(Divergence::LikelihoodRatio, false)?,
    }))
}

fn chisquare_power(case: &Arguments<'_>) -> Result<Value, Fault> {
    let observed = case.numbers("obs")?;
    let expected = case.get("exp").map(|_| case.numbers("exp")).transpose()?;
    let mut answer = Map::new();
    for (name, divergence) in [
        ("pearson", Divergence::Pearson),
        ("g", Divergence::LikelihoodRatio),
        ("cressie_read", Divergence::CressieRead),
        ("freeman_tukey", Divergence::FreemanTukey),
    ] {
        let outcome = goodness_of_fit(&observed, expected.as_deref(), divergence);
        // The reference has NaN for a count of 0 under a negative power, where ours is refused.
        let zero = divergence == Divergence::FreemanTukey && observed.contains(&0.0);
        let value = match outcome {
            Err(StatsError::Undefined { .. }) if zero => json!({ "statistic": "NaN", "pvalue": "NaN" }),
            outcome => result(outcome?),
        };
        answer.insert(name.to_owned(), value);
    }
    Ok(Value::Object(answer))
}

fn fisher(case: &Arguments<'_>) -> Result<Value, Fault> {
    let rows = case.list("table")?;
    let shape = || unexpected("table", "two rows of two counts", &Value::Array(rows.to_vec()));
    let mut table = [[0; 2]; 2];
    if rows.len() != 2 {
        return Err(shape());
    }
    for (row, counts) in table.iter_mut().zip(case.rows("table")?) {
        let [left, right] = counts.as_slice() else { return Err(shape()) };
        let whole = |count: &f64| count.fract() == 0.0 && (0.0..=1e15).contains(count);
        if !whole(left) || !whole(right) {
            return Err(shape());
        }
        *row = [*left as u64, *right as u64];
    }
    let test = |alternative| -> Result<Value, Fault> {
        let fisher = fisher_exact(table, alternative)?;
        Ok(json!({ "odds_ratio": number(fisher.odds_ratio), "pvalue": number(fisher.p_value) }))
    };
    Ok(json!({
        "two-sided": test(Alternative::TwoSided)?,
        "less": test(Alternative::Less)?,
        "greater": test(Alternative::Greater)?,
    }))
}
