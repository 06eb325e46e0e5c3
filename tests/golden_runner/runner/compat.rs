//! Other libraries' verdicts, reproduced.

use super::Run;
use super::arguments::{Arguments, Fault, number, to_number, unexpected};
use sconce_stats::compat::evidently::{self, Column, EmbeddingMethod, Kind, Test};
use sconce_stats::compat::nannyml::{Categorical, CategoricalMethod, Numerical, NumericalMethod};
use sconce_stats::compat::{alibi, deepchecks, frouros, whylogs};
use sconce_stats::distance::mmd_unbiased;
use sconce_stats::two_sample::{Variances, t_test};

use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    Some(match test {
        "alibi_univariate" => alibi_univariate,
        "deepchecks_drift" => deepchecks_drift,
        "evidently_anderson" => |case| evidently_score(case, Test::AndersonDarling),
        "evidently_auto_select" => evidently_auto_select,
        "evidently_chisquare" => |case| evidently_score(case, Test::ChiSquare),
        "evidently_cramer_von_mises" => |case| evidently_score(case, Test::CramerVonMises),
        "evidently_dataset_drift" => evidently_dataset_drift,
        "evidently_ed" => |case| evidently_score(case, Test::EnergyDistance),
        "evidently_embeddings" => evidently_embeddings,
        "evidently_es" => |case| evidently_score(case, Test::EppsSingleton),
        "evidently_fisher_exact" => |case| evidently_score(case, Test::FisherExact),
        "evidently_g_test" => |case| evidently_score(case, Test::GTest),
        "evidently_hellinger" => |case| evidently_score(case, Test::Hellinger),
        "evidently_jensenshannon" => |case| evidently_score(case, Test::JensenShannon),
        "evidently_kl_div" => |case| evidently_score(case, Test::KullbackLeibler),
        "evidently_ks" => |case| evidently_score(case, Test::KolmogorovSmirnov),
        "evidently_mannw" => |case| evidently_score(case, Test::MannWhitney),
        "evidently_mmd_statistic" => |case| {
            let statistic = evidently::mmd_statistic(&case.numbers("ref")?, &case.numbers("cur")?)?;
            Ok(json!({ "mmd2": number(statistic) }))
        },
        "evidently_psi" => |case| evidently_score(case, Test::Psi),
        "evidently_t_test" => |case| evidently_score(case, Test::StudentT),
        "evidently_tvd_statistic" => |case| {
            let (reference, current) = (Values::of(case, "ref")?, Values::of(case, "cur")?);
            let statistic = evidently::total_variation_statistic(reference.column(), current.column())?;
            Ok(json!({ "statistic": number(statistic) }))
        },
        "evidently_wasserstein" => |case| evidently_score(case, Test::Wasserstein),
        "evidently_z" => |case| evidently_score(case, Test::Z),
        "frouros_batch" => frouros_batch,
        "nannyml_univariate" => nannyml_univariate,
        "whylogs_drift" => whylogs_drift,
        _ => return None,
    })
}

/// A column of a case; what is no text is a number, and what is missing goes with the rest.
enum Values<'a> {
    Numbers(Vec<f64>),
    Categories(Vec<Option<&'a str>>),
}

impl<'a> Values<'a> {
    fn of(case: &Arguments<'a>, name: &str) -> Result<Self, Fault> {
        Self::read(name, case.value(name)?)
    }

    fn read(name: &str, value: &'a Value) -> Result<Self, Fault> {
        let values = value.as_array().ok_or_else(|| unexpected(name, "a list", value))?;
        let number = |value: &Value| if value.is_null() { Some(f64::NAN) } else { to_number(value) };
        let category = |value: &'a Value| if value.is_null() { Some(None) } else { value.as_str().map(Some) };
        if let Some(numbers) = values.iter().map(number).collect() {
            return Ok(Self::Numbers(numbers));
        }
        let categories: Option<_> = values.iter().map(category).collect();
        categories.map(Self::Categories).ok_or_else(|| unexpected(name, "numbers or categories", value))
    }

    /// Categories, none of them missing.
    fn texts(case: &Arguments<'a>, name: &str) -> Result<Vec<&'a str>, Fault> {
        let all = || unexpected(name, "categories", &Value::Null);
        case.list(name)?.iter().map(|value| value.as_str().ok_or_else(all)).collect()
    }

    fn column(&self) -> Column<'_> {
        match self {
            Self::Numbers(values) => Column::Numerical(values),
            Self::Categories(values) => Column::Categorical(values),
        }
    }
}

fn evidently_score(case: &Arguments<'_>, test: Test) -> Result<Value, Fault> {
    let (reference, current) = (Values::of(case, "ref")?, Values::of(case, "cur")?);
    let threshold = test.threshold();
    let score = evidently::score(test, reference.column(), current.column(), threshold)?;
    Ok(json!({ "score": number(score.score), "drift": score.drifted, "threshold": threshold }))
}

fn evidently_auto_select(case: &Arguments<'_>) -> Result<Value, Fault> {
    let kind = match case.text("kind")? {
        "num" => Kind::Numerical,
        "cat" => Kind::Categorical,
        "text" => Kind::Text,
        _ => return Err(unexpected("kind", "num, cat or text", case.value("kind")?)),
    };
    let size = |name| Ok::<usize, Fault>(usize::try_from(case.count(name)?).unwrap_or(usize::MAX));
    let test = evidently::default_test(kind, size("n_ref")?, size("n_unique")?);
    Ok(json!({ "test": test.name(), "threshold": test.threshold() }))
}

fn evidently_dataset_drift(case: &Arguments<'_>) -> Result<Value, Fault> {
    let table = |name: &str| {
        let value = case.value(name)?;
        value.as_object().ok_or_else(|| unexpected(name, "named columns", value))
    };
    let (reference, current) = (table("ref")?, table("cur")?);
    let mut pairs = Vec::new();
    for (name, values) in reference {
        let now = current.get(name).ok_or_else(|| Fault::Malformed(format!("`cur` has no column {name}")))?;
        pairs.push((name, Values::read(name, values)?, Values::read(name, now)?));
    }
    let columns: Vec<_> = pairs.iter().map(|(_, then, now)| (then.column(), now.column())).collect();
    let drift = evidently::dataset_drift(&columns)?;
    let mut answer = Map::new();
    answer.insert(
        format!("DriftedColumnsCount(drift_share={})", evidently::DRIFT_SHARE),
        json!({ "count": drift.drifted_columns, "share": drift.share }),
    );
    for ((name, ..), column) in pairs.iter().zip(&drift.columns) {
        let (method, threshold) = (column.test.display_name(), column.test.threshold());
        answer.insert(
            format!("ValueDrift(column={name},method={method},threshold={threshold})"),
            number(column.score.score),
        );
    }
    Ok(Value::Object(answer))
}

fn evidently_embeddings(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (reference, current) = (case.rows("ref")?, case.rows("cur")?);
    let mut answer = Map::new();
    for (name, method) in [
        ("distance_euclidean", EmbeddingMethod::Euclidean),
        ("distance_cosine", EmbeddingMethod::Cosine),
        ("distance_cityblock", EmbeddingMethod::CityBlock),
        ("distance_chebyshev", EmbeddingMethod::Chebyshev),
        ("ratio_wasserstein", EmbeddingMethod::Ratio),
        ("mmd", EmbeddingMethod::Mmd),
    ] {
        let score = evidently::embedding_drift(method, &reference, &current)?;
        answer.insert(name.to_owned(), json!({ "score": number(score.score), "drift": score.drifted }));
    }
    Ok(Value::Object(answer))
}

fn nannyml_univariate(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (reference, current) = (Values::of(case, "ref")?, Values::of(case, "cur")?);
    let method = case.text("method")?;
    let unknown = || unexpected("method", "a method for such columns", &Value::from(method));
    let fifth = |rows: usize| (rows / 5).max(1);
    let (drift, threshold) = match (reference, current) {
        (Values::Numbers(reference), Values::Numbers(current)) => {
            let method = match method {
                "hellinger" => NumericalMethod::Hellinger,
                "jensen_shannon" => NumericalMethod::JensenShannon,
                "kolmogorov_smirnov" => NumericalMethod::KolmogorovSmirnov,
                "wasserstein" => NumericalMethod::Wasserstein,
                _ => return Err(unknown()),
            };
            let fitted = Numerical::fit(method, &reference, fifth(reference.len()))?;
            (fitted.drift(&current)?, fitted.upper_threshold())
        }
        (Values::Categories(reference), Values::Categories(current)) => {
            let method = match method {
                "chi2" => CategoricalMethod::ChiSquare,
                "hellinger" => CategoricalMethod::Hellinger,
                "jensen_shannon" => CategoricalMethod::JensenShannon,
                "l_infinity" => CategoricalMethod::LInfinity,
                _ => return Err(unknown()),
            };
            let fitted = Categorical::fit(method, &reference, fifth(reference.len()))?;
            (fitted.drift(&current)?, fitted.upper_threshold())
        }
        _ => return Err(unexpected("cur", "a column like that of the reference", case.value("cur")?)),
    };
    let mut answer = json!({
        "value": number(drift.value),
        "upper_threshold": threshold.map(number),
        "alert": drift.alert,
    });
    if let Some(p_value) = drift.p_value {
        answer["pvalue"] = number(p_value);
    }
    Ok(answer)
}

fn alibi_univariate(case: &Arguments<'_>) -> Result<Value, Fault> {
    let threshold = |threshold| match threshold {
        alibi::Threshold::One(threshold) => number(threshold),
        alibi::Threshold::Ladder(steps) => Value::Array(steps.into_iter().map(number).collect()),
    };
    if case.get("p").is_some() {
        let (found, at) = alibi::false_discovery(&case.numbers("p")?, case.number("q")?)?;
        return Ok(json!({ "drift": u8::from(found), "threshold": threshold(at) }));
    }
    let correction = match case.text("corr")? {
        "bonferroni" => alibi::Correction::Bonferroni,
        "fdr" => alibi::Correction::FalseDiscovery,
        _ => return Err(unexpected("corr", "bonferroni or fdr", case.value("corr")?)),
    };
    // Which detector a case is for, only its name says.
    let detector = match case.text("id")?.split('_').next() {
        Some("ks") => alibi::Detector::KolmogorovSmirnov,
        Some("cvm") => alibi::Detector::CramerVonMises,
        Some("chi2") => alibi::Detector::ChiSquare,
        _ => return Err(Fault::Malformed("expected a case named after its detector".to_owned())),
    };
    let drift = alibi::batch_drift(detector, &case.rows("ref")?, &case.rows("cur")?, 0.05, correction)?;
    let numbers = |values: Vec<f64>| Value::Array(values.into_iter().map(number).collect());
    Ok(json!({
        "is_drift": u8::from(drift.drifted),
        "p_val": numbers(drift.p_values),
        "distance": numbers(drift.distances),
        "threshold": threshold(drift.threshold),
    }))
}

fn frouros_batch(case: &Arguments<'_>) -> Result<Value, Fault> {
    let (reference, current) = (case.numbers("ref")?, case.numbers("cur")?);
    let distances = frouros::distances(&reference, &current)?;
    let rows = |sample: &[f64]| -> Vec<Vec<f64>> { sample.iter().map(|&value| vec![value]).collect() };
    let mmd = mmd_unbiased(&rows(&reference), &rows(&current), 1.0)?;
    let welch = t_test(&reference, &current, Variances::Any, 0.95)?;
    Ok(json!({
        "psi10": number(distances.psi),
        "hellinger10": number(distances.hellinger),
        "bhattacharyya10": number(distances.bhattacharyya),
        "hi_norm_complement10": number(distances.intersection_complement),
        "js10": number(distances.jensen_shannon),
        "kl10": number(distances.kullback_leibler),
        "mmd_sigma1": number(mmd),
        "welch": { "statistic": number(welch.statistic), "pvalue": number(welch.p_value) },
    }))
}

fn whylogs_drift(case: &Arguments<'_>) -> Result<Value, Fault> {
    let test = match case.text("algo")? {
        "hellinger" => {
            let distance = whylogs::hellinger(&case.numbers("ref")?, &case.numbers("cur")?)?;
            let category = whylogs::Category::of_hellinger(distance).name();
            return Ok(json!({ "statistic": number(distance), "pvalue": null, "category": category }));
        }
        "ks" => whylogs::kolmogorov_smirnov(&case.numbers("ref")?, &case.numbers("cur")?)?,
        "chi2" => whylogs::chi_square(&Values::texts(case, "ref")?, &Values::texts(case, "cur")?)?,
        _ => return Err(unexpected("algo", "ks, hellinger or chi2", case.value("algo")?)),
    };
    Ok(json!({
        "statistic": number(test.statistic),
        "pvalue": number(test.p_value),
        "category": whylogs::Category::of_p_value(test.p_value).name(),
    }))
}

fn deepchecks_drift(case: &Arguments<'_>) -> Result<Value, Fault> {
    if let (Ok(reference), Ok(current)) = (Values::texts(case, "ref"), Values::texts(case, "cur")) {
        return Ok(json!({
            "cramers_v": number(deepchecks::cramers_v(&reference, &current, false)?),
            "cramers_v_balanced": number(deepchecks::cramers_v(&reference, &current, true)?),
            "psi": number(deepchecks::psi(&reference, &current)?),
        }));
    }
    let (reference, current) = (case.numbers("ref")?, case.numbers("cur")?);
    Ok(json!({
        "ks": number(deepchecks::kolmogorov_smirnov_statistic(&reference, &current)?),
        "emd": number(deepchecks::earth_movers_distance(&reference, &current, 0.0)?),
        "emd_margin_0.025": number(deepchecks::earth_movers_distance(&reference, &current, 0.025)?),
    }))
}
