//! Detectors over streams, and charts.

use super::Run;
use super::arguments::{Arguments, Fault, number, pair, unexpected};
use sconce_stats::stream::{
    Adwin, AdwinConfig, BayesianOnline, CusumChart, Ddm, DriftingSum, Ecdd, Eddm, EwmaChart, Fhddm, HddmA,
    HddmW, Kswin, KswinConfig, PageHinkley, PageHinkleyConfig, Rddm, Signal, Stepd, Sums,
};
use sconce_stats::summary::Summary;
use serde_json::{Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    let run: Run = match test {
        "frouros_streaming" => frouros,
        "river_adwin" => adwin,
        "river_ddm" => ddm,
        "river_eddm" => eddm,
        "river_fhddm" => fhddm,
        "river_hddm_a" => hddm_a,
        "river_hddm_w" => hddm_w,
        "river_kswin_deterministic" => kswin,
        "river_page_hinkley" => page_hinkley,
        "spc_charts" => charts,
        _ => return None,
    };
    Some(run)
}

fn adwin(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let usual = AdwinConfig::default();
    let mut detector = Adwin::new(AdwinConfig {
        delta: arguments.number_or("delta", usual.delta)?,
        clock: small(arguments, "clock", usual.clock)?,
        max_buckets: small(arguments, "max_buckets", usual.max_buckets)?,
        min_window: small(arguments, "min_window_length", usual.min_window)?,
        grace: small(arguments, "grace_period", usual.grace)?,
    })?;
    let mut drift_at = Vec::new();
    let (mut width, mut mean, mut squares) = (Vec::new(), Vec::new(), Vec::new());
    // The reference forgets its count when it starts anew, with the value after a detection.
    let mut detections = 0;
    for (at, value) in arguments.numbers("stream")?.into_iter().enumerate() {
        let drift = detector.update(value)?;
        detections = u32::from(drift);
        if drift {
            drift_at.push(at);
        }
        if (at + 1) % 100 == 0 {
            width.push(number(detector.width() as f64));
            mean.push(number(detector.mean()));
            squares.push(number(detector.squared_deviations()));
        }
    }
    let every100 = json!({ "width": width, "estimation": mean, "variance": squares });
    Ok(json!({ "drift_at": drift_at, "every100": every100, "n_detections": detections }))
}

fn page_hinkley(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let usual = PageHinkleyConfig::default();
    let (up, down) = match arguments.text_or("mode", "both")? {
        "both" => (true, true),
        "up" => (true, false),
        "down" => (false, true),
        _ => return Err(unexpected("mode", "both, up or down", arguments.value("mode")?)),
    };
    let mut detector = PageHinkley::new(PageHinkleyConfig {
        min_instances: arguments.count_or("min_instances", usual.min_instances)?,
        delta: arguments.number_or("delta", usual.delta)?,
        threshold: arguments.number_or("threshold", usual.threshold)?,
        alpha: arguments.number_or("alpha", usual.alpha)?,
        up,
        down,
    })?;
    let trace = trace(arguments.numbers("stream")?, |value| {
        Ok(Signal { drift: detector.update(value)?, warning: false })
    })?;
    Ok(json!({ "drift_at": trace.drift_at }))
}

fn kswin(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let mut detector = Kswin::new(KswinConfig {
        alpha: arguments.number("alpha")?,
        window: arguments.count("window_size")? as usize,
        recent: arguments.count("stat_size")? as usize,
        seed: 1,
    })?;
    let trace = trace(arguments.numbers("stream")?, |value| {
        Ok(Signal { drift: detector.update(value)?, warning: false })
    })?;
    Ok(json!({ "drift_at": trace.drift_at }))
}

fn charts(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (mean, deviation) = (arguments.number("mu0")?, arguments.number("sigma0")?);
    let mut ewma = EwmaChart::new(mean, deviation, arguments.number("lam")?, arguments.number("L")?)?;
    let mut cusum = CusumChart::new(mean, deviation, arguments.number("k")?, arguments.number("h")?)?;
    let values = arguments.numbers("x")?;
    let (mut averages, mut ewma_alarms) = (Vec::new(), Vec::new());
    let (mut above, mut below, mut cusum_alarms) = (Vec::new(), Vec::new(), Vec::new());
    for &value in &values {
        let point = ewma.update(value)?;
        averages.push(number(point.average));
        ewma_alarms.push(point.alarm);
        let point = cusum.update(value)?;
        above.push(number(point.above));
        below.push(number(point.below));
        cusum_alarms.push(point.alarm);
    }
    let summary = Summary::of(&values)?;
    let fences = summary.fences();
    Ok(json!({
        "ewma": averages,
        "ewma_alarm": ewma_alarms,
        "cusum_pos": above,
        "cusum_neg": below,
        "cusum_alarm": cusum_alarms,
        "median": number(summary.median),
        "mad_scaled": number(summary.scaled_mad),
        "iqr_fences": pair(fences.low, fences.high),
        "mean": number(summary.mean),
        "std_ddof1": number(summary.deviation),
        "skew": number(summary.skewness),
        "kurtosis_excess": number(summary.excess_kurtosis),
    }))
}

fn ddm(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let warm_start = arguments.count_or("warm_start", 30)?;
    let levels =
        (arguments.number_or("warning_threshold", 2.0)?, arguments.number_or("drift_threshold", 3.0)?);
    let mut detector = Ddm::new(warm_start, levels.0, levels.1)?;
    Ok(trace(arguments.numbers("stream")?, |value| Ok(detector.update(is_one(value)?)))?.river())
}

fn eddm(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let warm_start = arguments.count_or("warm_start", 30)?;
    let mut detector =
        Eddm::new(warm_start, arguments.number_or("alpha", 0.95)?, arguments.number_or("beta", 0.9)?)?;
    Ok(trace(arguments.numbers("stream")?, |value| Ok(detector.update(is_one(value)?)))?.river())
}

fn fhddm(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let window = arguments.count_or("sliding_window_size", 100)? as usize;
    let mut detector = Fhddm::new(window, arguments.number_or("confidence_level", 1e-6)?)?;
    // The file's ones count as correct.
    Ok(trace(arguments.numbers("stream")?, |value| Ok(detector.update(is_one(value)?)))?.river())
}

fn hddm_a(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (drift, warning) = confidences(arguments)?;
    let mut detector = HddmA::new(drift, warning, arguments.flag_or("two_sided_test", false)?)?;
    Ok(trace(arguments.numbers("stream")?, |value| Ok(detector.update(value)?))?.river())
}

fn hddm_w(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (drift, warning) = confidences(arguments)?;
    let lambda = arguments.number_or("lambda", 0.05)?;
    let mut detector = HddmW::new(drift, warning, lambda, arguments.flag_or("two_sided_test", false)?)?;
    Ok(trace(arguments.numbers("stream")?, |value| Ok(detector.update(value)?))?.river())
}

fn confidences(arguments: &Arguments<'_>) -> Result<(f64, f64), Fault> {
    Ok((arguments.number_or("drift_confidence", 0.001)?, arguments.number_or("warning_confidence", 0.005)?))
}

/// Detectors with that library's settings, by name.
fn frouros(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let sum = |kind, threshold| DriftingSum::new(kind, threshold, 30);
    let stream = || arguments.numbers("stream");
    let mut counts_warnings = true;
    let trace = match arguments.text("detector")? {
        name @ ("cusum" | "cusum_l10" | "gma" | "gma_l01" | "page_hinkley") => {
            let mut detector = match name {
                "cusum" => sum(Sums::Cusum { delta: 0.005 }, 50.0)?,
                "cusum_l10" => sum(Sums::Cusum { delta: 0.005 }, 10.0)?,
                "gma" => sum(Sums::GeometricMovingAverage { alpha: 0.99 }, 1.0)?,
                "gma_l01" => sum(Sums::GeometricMovingAverage { alpha: 0.99 }, 0.1)?,
                _ => sum(Sums::PageHinkley { delta: 0.005, alpha: 0.9999 }, 50.0)?,
            };
            trace(stream()?, |value| Ok(detector.update(value)?))?
        }
        "rddm" => {
            let mut detector = Rddm::new();
            trace(stream()?, |value| Ok(detector.update(is_one(value)?)))?
        }
        "ecdd" => {
            let mut detector = Ecdd::new(0.2, 0.5, 30)?;
            trace(stream()?, |value| Ok(detector.update(is_one(value)?)))?
        }
        "stepd" => {
            // Its warnings are not in the status that the file was made from.
            counts_warnings = false;
            let mut detector = Stepd::new(30, 0.003, 0.05)?;
            trace(arguments.numbers("stream_is_one_minus")?, |value| Ok(detector.update(!is_one(value)?)))?
        }
        "bocd" => {
            let mut detector = BayesianOnline::new(arguments.number_or("hazard", 0.01)?, 0.0, 1.0, 1.0, 30)?;
            trace(stream()?, |value| Ok(detector.update(value)?))?
        }
        _ => return Err(unexpected("detector", "the name of a detector", arguments.value("detector")?)),
    };
    let warnings = trace.warning_at.iter().filter(|at| !trace.drift_at.contains(at)).count();
    Ok(json!({ "drift_at": trace.drift_at, "warnings": if counts_warnings { warnings } else { 0 } }))
}

/// Where a detector said what.
struct Trace {
    drift_at: Vec<usize>,
    warning_at: Vec<usize>,
}

impl Trace {
    fn river(self) -> Value {
        let first = &self.warning_at[..self.warning_at.len().min(10)];
        json!({ "drift_at": self.drift_at, "warning_first10": first, "warning_count": self.warning_at.len() })
    }
}

fn trace(stream: Vec<f64>, mut update: impl FnMut(f64) -> Result<Signal, Fault>) -> Result<Trace, Fault> {
    let mut trace = Trace { drift_at: Vec::new(), warning_at: Vec::new() };
    for (at, value) in stream.into_iter().enumerate() {
        let signal = update(value)?;
        if signal.drift {
            trace.drift_at.push(at);
        }
        if signal.warning {
            trace.warning_at.push(at);
        }
    }
    Ok(trace)
}

/// Detectors of error rates take yes or no.
fn is_one(value: f64) -> Result<bool, Fault> {
    if value != 0.0 && value != 1.0 {
        return Err(unexpected("stream", "zeros and ones", &number(value)));
    }
    Ok(value == 1.0)
}

/// A count that a setting of the detector can take.
fn small(arguments: &Arguments<'_>, name: &str, default: u32) -> Result<u32, Fault> {
    let count = arguments.count_or(name, u64::from(default))?;
    u32::try_from(count).map_err(|_| unexpected(name, "a smaller count", &json!(count)))
}
