//! Experiments: proportions, power, corrections, group-sequential bounds.

use super::arguments::{Arguments, Fault, as_count, number, numbers, pair, unexpected};
use super::{Run, refusal};
use sconce_stats::correction::{Correction, LordPlusPlus, correct, e_benjamini_hochberg};
use sconce_stats::experiment::{
    PairedMoments, PowerTest, SAMPLE_RATIO_ALARM, cuped, group_sequential_bounds, power, rate_difference,
    ratio_difference, sample_ratio, sample_size,
};
use sconce_stats::proportion::{
    DifferenceMethod, DifferenceTest, ProportionMethod, difference_interval, difference_test,
    proportion_interval, ratio_interval,
};
use sconce_stats::{Interval, StatsError, TestResult, Trials};
use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    let run: Run = match test {
        "ab_cuped_ratio" => cuped_and_ratio,
        "ab_group_sequential" => group_sequential,
        "ab_srm" => sample_ratio_mismatch,
        "ab_ztest_confidence" => z_test,
        "multipletests" => multiple_tests,
        "online_fdr" => online_fdr,
        "power" => power_and_size,
        "proportions" => proportions,
        _ => return None,
    };
    Some(run)
}

fn proportions(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let first = Trials { events: arguments.count("c1")?, trials: arguments.count("n1")? };
    let second = Trials { events: arguments.count("c2")?, trials: arguments.count("n2")? };
    let mut results = Map::new();
    let mut put = |name: &str, result: Result<Value, StatsError>| {
        results.insert(name.to_owned(), result.unwrap_or_else(|error| refusal(&error)));
    };
    let ends = |interval: Interval| pair(interval.low, interval.high);
    let test =
        |test: TestResult| json!({ "statistic": number(test.statistic), "pvalue": number(test.p_value) });
    for (name, method) in [
        ("ci1_normal", ProportionMethod::Normal),
        ("ci1_wilson", ProportionMethod::Wilson),
        ("ci1_agresti_coull", ProportionMethod::AgrestiCoull),
        ("ci1_beta", ProportionMethod::ClopperPearson),
        ("ci1_jeffreys", ProportionMethod::Jeffreys),
    ] {
        put(name, proportion_interval(first, 0.05, method).map(ends));
    }
    for (name, method) in [
        ("diff_ci_wald", DifferenceMethod::Wald),
        ("diff_ci_newcomb", DifferenceMethod::Newcombe),
        ("diff_ci_agresti-caffo", DifferenceMethod::AgrestiCaffo),
        ("diff_ci_score", DifferenceMethod::StatsmodelsScore),
    ] {
        put(name, difference_interval(first, second, 0.05, method).map(ends));
    }
    for (name, kind) in [
        ("ztest_pooled", DifferenceTest::Pooled),
        ("test_wald", DifferenceTest::Wald),
        ("test_agresti-caffo", DifferenceTest::AgrestiCaffo),
        ("test_score", DifferenceTest::Score),
    ] {
        put(name, difference_test(first, second, 0.0, kind).map(test));
    }
    put("ratio_ci_log", ratio_interval(first, second, 0.05).map(ends));
    Ok(Value::Object(results))
}

fn power_and_size(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (effect, alpha) = (arguments.number("effect")?, arguments.number("alpha")?);
    let (wanted, ratio) = (arguments.number("power")?, arguments.number("ratio")?);
    let size = |test| sample_size(effect, alpha, wanted, ratio, test).map(number);
    let at_200 = |test| power(effect, 200.0, alpha, ratio, test).map(number);
    Ok(json!({
        "z_n1": size(PowerTest::Z)?,
        "t_n1": size(PowerTest::T)?,
        "z_power_at_200": at_200(PowerTest::Z)?,
        "t_power_at_200": at_200(PowerTest::T)?,
    }))
}

fn multiple_tests(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (p, alpha) = (arguments.numbers("p")?, arguments.number("alpha")?);
    let mut results = Map::new();
    for (name, correction) in [
        ("bonferroni", Correction::Bonferroni),
        ("sidak", Correction::Sidak),
        ("holm", Correction::Holm),
        ("holm-sidak", Correction::HolmSidak),
        ("simes-hochberg", Correction::Hochberg),
        ("hommel", Correction::Hommel),
        ("fdr_bh", Correction::BenjaminiHochberg),
        ("fdr_by", Correction::BenjaminiYekutieli),
    ] {
        let corrected = correct(&p, alpha, correction)?;
        let reject: Vec<bool> = corrected.iter().map(|test| test.reject).collect();
        let p_values = numbers(corrected.iter().map(|test| test.p_value));
        results.insert(name.to_owned(), json!({ "reject": reject, "pvals_corrected": p_values }));
    }
    Ok(Value::Object(results))
}

/// P-values that come one at a time, or e-values all at once: the input says which.
fn online_fdr(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let alpha = arguments.number("alpha")?;
    if arguments.get("e").is_some() {
        return Ok(json!({ "reject": e_benjamini_hochberg(&arguments.numbers("e")?, alpha)? }));
    }
    let mut tests = LordPlusPlus::new(alpha, arguments.number("w0")?)?;
    let (mut levels, mut reject) = (Vec::new(), Vec::new());
    for p in arguments.numbers("p")? {
        levels.push(number(tests.next_level()));
        reject.push(tests.test(p)?);
    }
    Ok(json!({ "levels": levels, "reject": reject }))
}

fn sample_ratio_mismatch(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let test = sample_ratio(&arguments.numbers("counts")?, &arguments.numbers("weights")?)?;
    let alarm = test.p_value < SAMPLE_RATIO_ALARM;
    Ok(json!({ "statistic": number(test.statistic), "pvalue": number(test.p_value), "srm": alarm }))
}

fn z_test(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (events, trials) = (arguments.counts("success")?, arguments.counts("total")?);
    let variant = |index: usize| match (events.get(index), trials.get(index)) {
        (Some(&events), Some(&trials)) => Ok(Trials { events, trials }),
        _ => Err(Fault::Malformed("expected `success` and `total` of two variants".to_owned())),
    };
    let effect = rate_difference(variant(0)?, variant(1)?, 0.05)?;
    Ok(json!({
        "difference": number(effect.difference),
        "ci": pair(effect.interval.low, effect.interval.high),
        "pvalue": number(effect.p_value),
    }))
}

fn cuped_and_ratio(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let side = |first: &str, second: &str| -> Result<PairedMoments, Fault> {
        let (a, b) = (arguments.numbers(first)?, arguments.numbers(second)?);
        if a.len() != b.len() {
            return Err(Fault::Malformed(format!("expected `{first}` and `{second}` to be equally long")));
        }
        let mut moments = PairedMoments::default();
        for (a, b) in a.into_iter().zip(b) {
            moments.update(a, b)?;
        }
        Ok(moments)
    };
    if arguments.get("yc").is_some() {
        let adjusted = cuped(&side("yc", "xc")?, &side("yt", "xt")?, 0.05)?;
        let effect = adjusted.effect;
        return Ok(json!({
            "theta": number(adjusted.theta),
            "diff": number(effect.difference),
            "t": number(effect.statistic),
            "df": number(effect.df),
            "pvalue": number(effect.p_value),
            "ci95": pair(effect.interval.low, effect.interval.high),
            "var_reduction": number(adjusted.variance_reduction),
        }));
    }
    let ratio = ratio_difference(&side("nc", "dc")?, &side("nt", "dt")?, 0.05)?;
    Ok(json!({
        "ratio_c": number(ratio.ratios.0),
        "ratio_t": number(ratio.ratios.1),
        "var_c": number(ratio.variances.0),
        "var_t": number(ratio.variances.1),
        "z": number(ratio.effect.statistic),
        "pvalue": number(ratio.effect.p_value),
        "ci95": pair(ratio.effect.interval.low, ratio.effect.interval.high),
    }))
}

fn group_sequential(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let sides = as_count("sides", arguments.value("sides")?)?;
    let sides = u8::try_from(sides).map_err(|_| unexpected("sides", "1 or 2", &json!(sides)))?;
    let (alpha, rho) = (arguments.number("alpha")?, arguments.number("rho")?);
    Ok(json!({ "z": numbers(group_sequential_bounds(&arguments.numbers("t")?, alpha, rho, sides)?) }))
}
