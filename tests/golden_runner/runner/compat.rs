//! Other libraries' verdicts, reproduced.

use super::Run;
use super::arguments::{Arguments, Fault, number, to_number, unexpected};
use sconce_stats::compat::evidently::{self, Column, EmbeddingMethod, Kind, Test};
use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    Some(match test {
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
