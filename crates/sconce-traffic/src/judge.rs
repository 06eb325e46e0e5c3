//! Kayenta's canary judge, for those who come from there: points of metrics in, a score out.
//!
//! It looks once, at rank sums; the gates of [`crate::rollout`] see more, and may be looked at any time. A rollout goes by its verdict
//! where that is told as the state of a monitor (`pass`, `marginal`, `fail`).

use crate::Problems;
use sconce_stats::canary::{Class, Direction, Judged, Score, ScoreVerdict, compare, score};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Metrics of a judgement.
pub const MAX_METRICS: usize = 256;
/// Points of a metric on either side; of more, the last ones count.
pub const MAX_POINTS: usize = 1_440;

/// What is judged and how. Defaults are Kayenta's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSpec {
    /// Which metrics: 1 to [`MAX_METRICS`].
    pub metrics: Vec<JudgedMetric>,
    /// The weights of groups, 0 to 100 in all. Groups without one share what is left.
    #[serde(default)]
    pub group_weights: BTreeMap<String, f64>,
    /// The score from which it passes. Default 95.
    #[serde(default = "ninety_five")]
    pub passing: f64,
    /// The score from which it is marginal. Default 75.
    #[serde(default = "seventy_five")]
    pub marginal: f64,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedMetric {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Which way it must not go. Default: neither.
    #[serde(default = "either")]
    pub direction: Direction,
    /// Whether anything but a pass fails the whole. Default false.
    #[serde(default)]
    pub critical: bool,
    /// Whether it fails without data, instead of counting for nothing. Default false.
    #[serde(default)]
    pub must_have_data: bool,
}

/// A metric's points.
#[derive(Debug, Clone, Default)]
pub struct Points {
    /// The control's.
    pub control: Vec<f64>,
    /// The candidate's.
    pub candidate: Vec<f64>,
}

/// What the judge says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The score and its verdict.
    pub score: Score,
    /// `pass`, `marginal` or `fail`: what a monitor's state would say.
    pub state: String,
    /// Each metric's class, in the order of the declaration.
    pub classes: Vec<(String, Class)>,
}

/// Of the interval of shifts.
const CONFIDENCE: f64 = 0.98;
/// Of the shift: how much of it is not yet a change.
const TOLERANCE: f64 = 0.25;

fn ninety_five() -> f64 {
    95.0
}

fn seventy_five() -> f64 {
    75.0
}

fn either() -> Direction {
    Direction::Either
}

/// Judges `points` by the names of metrics. Points that are not finite are left out; a metric without points on either side has no
/// data.
///
/// # Errors
/// Too few or too many metrics, weights or thresholds out of their range.
pub fn judge(spec: &JudgeSpec, points: &BTreeMap<String, Points>) -> Result<Judgement, Problems> {
    if !(1..=MAX_METRICS).contains(&spec.metrics.len()) {
        return Err(Problems(vec![format!(
            "metrics: expected 1 to {MAX_METRICS}, got {}",
            spec.metrics.len()
        )]));
    }
    let class = |metric: &JudgedMetric| {
        let finite = |points: &[f64]| {
            let start = points.len().saturating_sub(MAX_POINTS);
            points[start..].iter().copied().filter(|point| point.is_finite()).collect::<Vec<f64>>()
        };
        let points = points.get(&metric.name);
        let candidate = points.map_or_else(Vec::new, |points| finite(&points.candidate));
        let control = points.map_or_else(Vec::new, |points| finite(&points.control));
        let compared = compare(&candidate, &control, CONFIDENCE, TOLERANCE, metric.direction);
        match compared {
            Ok(comparison) => comparison.class,
            Err(_) if metric.must_have_data => Class::NodataFailMetric,
            Err(_) => Class::Nodata,
        }
    };
    let classes: Vec<Class> = spec.metrics.iter().map(class).collect();
    let judged = |(metric, class): (&JudgedMetric, &Class)| Judged {
        group: metric.group.clone(),
        class: *class,
        critical: metric.critical,
    };
    let judged: Vec<Judged> = spec.metrics.iter().zip(&classes).map(judged).collect();
    let score = score(&judged, &spec.group_weights, spec.passing, spec.marginal)
        .map_err(|error| Problems(vec![error.to_string()]))?;
    let state = match score.verdict {
        ScoreVerdict::Pass => "pass",
        ScoreVerdict::Marginal => "marginal",
        ScoreVerdict::Fail => "fail",
    };
    let names = spec.metrics.iter().map(|metric| metric.name.clone());
    Ok(Judgement { score, state: state.to_owned(), classes: names.zip(classes).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> JudgeSpec {
        toml::from_str(text).unwrap()
    }

    /// Points around `level`.
    fn around(level: f64) -> Vec<f64> {
        (0..60).map(|at| level + f64::from(at * 37 % 60) / 60.0).collect()
    }

    const METRICS: &str = r#"metrics = [
        { name = "errors", group = "errors", direction = "increase" },
        { name = "p99", group = "latency", direction = "increase" },
    ]"#;

    fn points(errors: f64, p99: f64) -> BTreeMap<String, Points> {
        let metric = |level: f64| Points { control: around(10.0), candidate: around(level) };
        [("errors".to_owned(), metric(errors)), ("p99".to_owned(), metric(p99))].into()
    }

    #[test]
    fn a_candidate_is_scored_by_its_groups() {
        let judgement = judge(&spec(METRICS), &points(10.0, 10.0)).unwrap();
        assert_eq!((judgement.score.score, judgement.state.as_str()), (100.0, "pass"));
        let judgement = judge(&spec(METRICS), &points(10.0, 20.0)).unwrap();
        assert_eq!((judgement.score.score, judgement.state.as_str()), (50.0, "fail"));
        assert_eq!(judgement.classes[1], ("p99".to_owned(), Class::High));
        let weighted = format!("group_weights = {{ errors = 80, latency = 20 }}\n{METRICS}");
        assert_eq!(judge(&spec(&weighted), &points(10.0, 20.0)).unwrap().state, "marginal");
        // Down is no harm where only up is.
        assert_eq!(judge(&spec(METRICS), &points(1.0, 1.0)).unwrap().state, "pass");
    }

    #[test]
    fn what_is_critical_or_has_no_data_fails_as_in_kayenta() {
        let critical = METRICS.replace("{ name = \"p99\",", "{ critical = true, name = \"p99\",");
        let weighted = format!("group_weights = {{ errors = 99, latency = 1 }}\n{critical}");
        assert_eq!(judge(&spec(&weighted), &points(10.0, 20.0)).unwrap().score.score, 0.0);
        let judgement = judge(&spec(METRICS), &BTreeMap::new()).unwrap();
        assert_eq!((judgement.state.as_str(), judgement.classes[0].1), ("fail", Class::Nodata));
        let mut half = points(10.0, 10.0);
        half.insert("p99".to_owned(), Points { control: vec![f64::NAN], candidate: vec![f64::INFINITY] });
        let must = METRICS.replace("{ name = \"p99\",", "{ must_have_data = true, name = \"p99\",");
        assert_eq!(judge(&spec(&must), &half).unwrap().classes[1].1, Class::NodataFailMetric);
    }

    #[test]
    fn work_is_bounded_and_bad_weights_are_refused() {
        let long = Points { control: vec![1.0; 100_000], candidate: vec![1.0; 100_000] };
        let points = [("errors".to_owned(), long.clone()), ("p99".to_owned(), long)].into();
        assert_eq!(judge(&spec(METRICS), &points).unwrap().state, "pass");
        let weighted = format!("group_weights = {{ errors = 80, latency = 30 }}\n{METRICS}");
        assert!(judge(&spec(&weighted), &points).is_err());
        assert!(judge(&spec("metrics = []"), &points).is_err());
    }
}
