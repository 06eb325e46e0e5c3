//! Performance with and without labels.

use super::Run;
use super::arguments::{Arguments, Fault, number, numbers, unexpected};
use sconce_stats::performance::{
    Average, BinaryConfusion, BinarySamplingError, BusinessValue, Confusion, DECISION_THRESHOLD, Isotonic,
    Reconstruction, Regression, RollingAuc, SamplingErrors, Thresholds, average_precision, brier_score,
    calibration_error, calibration_gain, deviation_thresholds, equal_count_bins, estimate_performance,
    log_loss, multiclass_auc, multiclass_log_loss, quantile_calibration_error, ranking, regression, roc_auc,
};
use serde_json::{Map, Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    let run: Run = match test {
        "isotonic" => isotonic,
        "nannyml_calibrated_cbpe" => calibrated_estimates,
        "nannyml_cbpe" => estimates,
        "nannyml_ece" => calibration_by_quantiles,
        "nannyml_pca_reconstruction" => reconstruction,
        "nannyml_realized" => thresholds,
        "nannyml_sampling_error" => sampling_error,
        "perf_binary" => binary,
        "perf_multiclass" => multiclass,
        "perf_regression" => numbers_predicted,
        "ranking" => rankings,
        "river_rolling_metrics" => rolling,
        _ => return None,
    };
    Some(run)
}

fn binary(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (labels, scores) = (labels(arguments, "y")?, arguments.numbers("s")?);
    let counts = BinaryConfusion::at_threshold(&labels, &scores, DECISION_THRESHOLD)?;
    Ok(json!({
        "confusion": {
            "tn": counts.true_negatives,
            "fp": counts.false_positives,
            "fn": counts.false_negatives,
            "tp": counts.true_positives,
        },
        "accuracy": number(counts.accuracy()),
        "balanced_accuracy": number(counts.balanced_accuracy()),
        "precision": number(counts.precision()),
        "recall": number(counts.recall()),
        "f1": number(counts.f_score(1.0)),
        "f2": number(counts.f_score(2.0)),
        "specificity": number(counts.specificity()),
        "mcc": number(counts.matthews()),
        "kappa": number(counts.kappa()),
        "log_loss": number(log_loss(&labels, &scores)?),
        "brier": number(brier_score(&labels, &scores)?),
        "roc_auc": number(roc_auc(&labels, &scores)?),
        "average_precision": number(average_precision(&labels, &scores)?),
        "ece10": number(calibration_error(&labels, &scores, 10)?),
    }))
}

fn rolling(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (labels, scores) = (labels(arguments, "y")?, arguments.numbers("s")?);
    let (mut counts, mut auc) = (BinaryConfusion::default(), RollingAuc::new(50)?);
    for (&label, &score) in labels.iter().zip(&scores) {
        counts.update(label, score >= DECISION_THRESHOLD);
        auc.update(label, score)?;
    }
    Ok(json!({
        "accuracy": number(counts.accuracy()),
        "f1": number(counts.f_score(1.0)),
        "log_loss": number(log_loss(&labels, &scores)?),
        "mcc": number(counts.matthews()),
        "kappa": number(counts.kappa()),
        "rolling_auc_50": number(auc.auc()),
    }))
}

fn multiclass(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let labels: Vec<usize> = arguments.counts("y")?.into_iter().map(|label| label as usize).collect();
    let rows = arguments.rows("p")?;
    let mut counts = Confusion::new(rows.first().map_or(0, Vec::len))?;
    for (&label, row) in labels.iter().zip(&rows) {
        // The first of equal probabilities wins.
        let mut decision = 0;
        for (class, p) in row.iter().enumerate() {
            if *p > row[decision] {
                decision = class;
            }
        }
        counts.update(label, decision)?;
    }
    let auc = multiclass_auc(&labels, &rows)?;
    let mut results = Map::new();
    let mut put = |name: String, value: f64| results.insert(name, number(value));
    for (name, average) in
        [("macro", Average::Macro), ("micro", Average::Micro), ("weighted", Average::Weighted)]
    {
        put(format!("precision_{name}"), counts.precision(average));
        put(format!("recall_{name}"), counts.recall(average));
        put(format!("f1_{name}"), counts.f1(average));
    }
    for (name, value) in [
        ("accuracy", counts.accuracy()),
        ("log_loss", multiclass_log_loss(&labels, &rows)?),
        ("mcc", counts.matthews()),
        ("kappa", counts.kappa()),
        ("roc_auc_ovr_macro", auc.one_vs_rest),
        ("roc_auc_ovr_weighted", auc.one_vs_rest_weighted),
        ("roc_auc_ovo_macro", auc.one_vs_one),
        ("roc_auc_ovo_weighted", auc.one_vs_one_weighted),
    ] {
        put(name.to_owned(), value);
    }
    results.insert("confusion".to_owned(), counts.rows().collect());
    Ok(Value::Object(results))
}

fn numbers_predicted(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (targets, predictions) = (arguments.numbers("y")?, arguments.numbers("p")?);
    let result = regression(&targets, &predictions)?;
    Ok(json!({
        "mae": number(result.mean_absolute_error),
        "mse": number(result.mean_squared_error),
        "rmse": number(result.root_mean_squared_error),
        "r2": number(result.r_squared),
        "medae": number(result.median_absolute_error),
        "max_error": number(result.max_error),
        "mape": number(result.mean_absolute_percentage_error),
        "explained_variance": number(result.explained_variance),
        "mean_error_pred_minus_true": number(result.bias),
        "pinball_0.9": number(Regression::pinball_loss(&targets, &predictions, 0.9)?),
        "smape": number(result.symmetric_percentage_error),
        "msle": number(result.mean_squared_log_error),
    }))
}

fn rankings(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let relevance = |value: &f64| {
        let whole = value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(value);
        if whole { Ok(*value as u32) } else { Err(unexpected("users", "counts", &number(*value))) }
    };
    let rows = arguments.rows("users")?;
    let users: Result<Vec<Vec<u32>>, Fault> =
        rows.iter().map(|row| row.iter().map(relevance).collect()).collect();
    let result = ranking(&users?, arguments.count("k")? as usize)?;
    Ok(json!({
        "ndcg_linear": number(result.ndcg),
        "ndcg_exp": number(result.ndcg_exponential),
        "map": number(result.mean_average_precision),
        "mrr": number(result.mean_reciprocal_rank),
        "hit_rate": number(result.hit_rate),
        "precision": number(result.precision),
        "recall": number(result.recall),
    }))
}

fn isotonic(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let fit = Isotonic::fit(&arguments.numbers("x")?, &arguments.numbers("y")?)?;
    let (x, y) = fit.knots();
    let predict = arguments.numbers("q")?.into_iter().map(|q| fit.predict(q));
    Ok(json!({
        "knots_x": numbers(x.iter().copied()),
        "knots_y": numbers(y.iter().copied()),
        "predict": numbers(predict),
    }))
}

fn estimates(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let result =
        estimate_performance(&arguments.numbers("p")?, &arguments.numbers("s")?, DECISION_THRESHOLD)?;
    let value =
        BusinessValue { true_negative: 0.0, false_positive: -1.0, false_negative: -5.0, true_positive: 10.0 };
    Ok(json!({
        "roc_auc": number(result.roc_auc),
        "average_precision": number(result.average_precision),
        "f1": number(result.f1()),
        "precision": number(result.precision()),
        "recall": number(result.recall()),
        "specificity": number(result.specificity()),
        "accuracy": number(result.accuracy()),
        "business_value": number(result.business_value(&value)),
        "business_value_per_prediction": number(result.business_value_per_prediction(&value)),
        "confusion": {
            "tp": number(result.true_positives),
            "fp": number(result.false_positives),
            "fn": number(result.false_negatives),
            "tn": number(result.true_negatives),
        },
    }))
}

fn sampling_error(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let fitted = BinarySamplingError::fit(&labels(arguments, "y")?, &arguments.numbers("s")?)?;
    let errors = fitted.of_chunk(arguments.count("n_chunk")?)?;
    let errors = by_metric(&errors).map(|(name, error)| (name.to_owned(), number(error)));
    Ok(Value::Object(errors.into_iter().collect()))
}

fn by_metric(errors: &SamplingErrors) -> [(&'static str, f64); 6] {
    [
        ("roc_auc", errors.roc_auc),
        ("f1", errors.f1),
        ("precision", errors.precision),
        ("recall", errors.recall),
        ("specificity", errors.specificity),
        ("accuracy", errors.accuracy),
    ]
}

fn calibration_by_quantiles(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (labels, scores) = (labels(arguments, "y")?, arguments.numbers("s")?);
    let bins = arguments.count("bins")? as usize;
    let edges = equal_count_bins(scores.len(), bins)?.into_iter().map(|bin| json!([bin.start, bin.end]));
    let error = quantile_calibration_error(&labels, &scores, bins)?;
    Ok(json!({ "edges": edges.collect::<Vec<_>>(), "ece": number(error) }))
}

fn thresholds(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let multiplier = |name: &str| arguments.get(name).map(|_| arguments.number(name)).transpose();
    let result = deviation_thresholds(&arguments.numbers("values")?, multiplier("lo")?, multiplier("hi")?)?;
    Ok(json!({ "lower": result.lower.map(number), "upper": result.upper.map(number) }))
}

fn reconstruction(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let reference = arguments.rows("ref")?;
    let fitted = Reconstruction::fit(&reference, 0.65)?;
    let size = chunk_size(arguments)?;
    let mut before = Vec::new();
    for chunk in reference.chunks(size) {
        before.push(fitted.error(chunk)?.mean);
    }
    let limits = deviation_thresholds(&before, Some(3.0), Some(3.0))?;
    let (mut values, mut errors, mut alerts) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in arguments.rows("cur")?.chunks(size) {
        let error = fitted.error(chunk)?;
        values.push(number(error.mean));
        errors.push(number(error.standard_error));
        alerts.push(limits.alert(error.mean));
    }
    Ok(json!({
        "n_components": fitted.components(),
        "value": values,
        "sampling_error": errors,
        "lower_threshold": limits.lower.map(number),
        "upper_threshold": limits.upper.map(number),
        "alert": alerts,
    }))
}

/// The whole of it. Calibrated scores are few and tied, and where the gain is small the order of ties decides in the reference whether to
/// calibrate: then the file may have either, and must have one of them whole.
fn calibrated_estimates(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    /// What the order of ties moves the error by, and some more.
    const UNDECIDED: f64 = 0.02;
    let gain = calibration_gain(&labels(arguments, "ref_y")?, &arguments.numbers("ref_s")?)?;
    let Some(gain) = gain else { return estimates_of_chunks(arguments, false) };
    if (gain.before - gain.after).abs() > UNDECIDED {
        return estimates_of_chunks(arguments, gain.helps());
    }
    Ok(json!({ "any_of": [estimates_of_chunks(arguments, true)?, estimates_of_chunks(arguments, false)?] }))
}

/// Calibration if it helps, thresholds from the reference's chunks, estimates of each chunk.
fn estimates_of_chunks(arguments: &Arguments<'_>, helps: bool) -> Result<Value, Fault> {
    let (labels, scores) = (labels(arguments, "ref_y")?, arguments.numbers("ref_s")?);
    let size = chunk_size(arguments)?;
    let truth: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
    let calibrator = if helps { Some(Isotonic::fit(&scores, &truth)?) } else { None };
    let sampling = BinarySamplingError::fit(&labels, &scores)?;
    let orders = orders_of_ties(&labels, &scores)?;

    let mut realised = [const { Vec::new() }; 6];
    for (labels, scores) in labels.chunks(size).zip(scores.chunks(size)) {
        let counts = BinaryConfusion::at_threshold(labels, scores, DECISION_THRESHOLD)?;
        let (auc, f1) = (roc_auc(labels, scores)?, counts.f_score(1.0));
        let (precision, recall) = (counts.precision(), counts.recall());
        let values = [auc, f1, precision, recall, counts.specificity(), counts.accuracy()];
        realised.iter_mut().zip(values).for_each(|(metric, value)| metric.push(value));
    }
    let mut limits = Vec::new();
    for values in &realised {
        limits.push(deviation_thresholds(values, Some(3.0), Some(3.0))?.within(0.0, 1.0));
    }

    let mut estimated = [const { (Vec::new(), Vec::new(), Vec::new()) }; 6];
    let mut names = [""; 6];
    for scores in arguments.numbers("cur_s")?.chunks(size) {
        let calibrate = |score: &f64| calibrator.as_ref().map_or(*score, |fit| fit.predict(*score));
        let probabilities: Vec<f64> = scores.iter().map(calibrate).collect();
        let result = estimate_performance(&probabilities, scores, DECISION_THRESHOLD)?;
        let size_here = scores.len() as u64;
        let errors = by_metric(&sampling.of_chunk(size_here)?);
        let (precision, recall) = (result.precision(), result.recall());
        let values =
            [result.roc_auc, result.f1(), precision, recall, result.specificity(), result.accuracy()];
        for (metric, ((value, (name, error)), limits)) in
            values.into_iter().zip(errors).zip(&limits).enumerate()
        {
            names[metric] = name;
            estimated[metric].0.push(number(value));
            estimated[metric].1.push(if metric == 0 && orders.len() > 1 {
                any_order(&orders, size_here)?
            } else {
                number(error)
            });
            estimated[metric].2.push(limits.alert(value));
        }
    }
    let mut results = Map::new();
    results.insert("needs_calibration".to_owned(), json!(helps));
    for ((name, (values, errors, alerts)), Thresholds { lower, upper }) in
        names.iter().zip(estimated).zip(limits)
    {
        let metric = json!({
            "value": values,
            "sampling_error": errors,
            "lower_threshold": lower.map(number),
            "upper_threshold": upper.map(number),
            "alert": alerts,
        });
        results.insert((*name).to_owned(), metric);
    }
    Ok(Value::Object(results))
}

/// Tied scores are told apart by the reference's sort, which is not stable and has another order on every kind of processor; its sampling
/// error of ROC AUC follows that order. So all orders that the labels of ties may come in are fitted: the file's value must be exactly
/// that of one of them.
fn orders_of_ties(labels: &[bool], scores: &[f64]) -> Result<Vec<BinarySamplingError>, Fault> {
    /// With more the file says nothing any more.
    const MOST_ORDERS: usize = 1 << 14;
    let mut rows: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut orders: Vec<Vec<bool>> = vec![Vec::with_capacity(rows.len())];
    for tied in rows.chunk_by(|a, b| a.0 == b.0) {
        let positives = tied.iter().filter(|row| row.1).count();
        let arrangements = arrangements(tied.len(), positives);
        if arrangements.len().saturating_mul(orders.len()) > MOST_ORDERS {
            return Ok(Vec::new());
        }
        orders = orders
            .iter()
            .flat_map(|order| arrangements.iter().map(|arrangement| [order.as_slice(), arrangement].concat()))
            .collect();
    }
    // Only the order counts for this metric, so ranks stand in for scores.
    let ranks: Vec<f64> = (0..rows.len()).map(|rank| rank as f64 / rows.len() as f64).collect();
    orders.iter().map(|labels| Ok(BinarySamplingError::fit(labels, &ranks)?)).collect()
}

/// All ways to lay out so many labels, of which so many are positive; none if there are too many ways.
fn arrangements(size: usize, positives: usize) -> Vec<Vec<bool>> {
    if positives == 0 || positives == size {
        return vec![vec![positives > 0; size]];
    }
    if size > 12 {
        return Vec::new();
    }
    let patterns = (0_u32..1 << size).filter(|pattern| pattern.count_ones() as usize == positives);
    patterns.map(|pattern| (0..size).map(|at| pattern >> at & 1 == 1).collect()).collect()
}

fn any_order(orders: &[BinarySamplingError], predictions: u64) -> Result<Value, Fault> {
    let mut errors = Vec::new();
    for order in orders {
        errors.push(number(order.of_chunk(predictions)?.roc_auc));
    }
    Ok(json!({ "any_of": errors }))
}

/// Zeros and ones.
fn labels(arguments: &Arguments<'_>, name: &str) -> Result<Vec<bool>, Fault> {
    let label = |value: f64| match value {
        0.0 => Ok(false),
        1.0 => Ok(true),
        _ => Err(unexpected(name, "zeros and ones", &number(value))),
    };
    arguments.numbers(name)?.into_iter().map(label).collect()
}

fn chunk_size(arguments: &Arguments<'_>) -> Result<usize, Fault> {
    let size = arguments.count("chunk")? as usize;
    if size == 0 { Err(unexpected("chunk", "at least 1", &json!(size))) } else { Ok(size) }
}
