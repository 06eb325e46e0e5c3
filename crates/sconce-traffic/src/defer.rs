//! Who decides: the model, or people.
//!
//! A [`DeferSpec`] says how far a model is trusted, and [`decide`] what becomes of one answer.

use sconce_core::{Automation, DeferSpec};
use serde::{Deserialize, Serialize};

/// What is known of one answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signals<'a> {
    /// The probabilities of each row, if the answer has such; see [`Confidence::of_rows`].
    pub confidence: Option<Confidence>,
    /// How far from what the model knows the input lies.
    pub outlier_score: Option<f64>,
    /// The state of the model's drift monitors, if it has any.
    pub drift_state: Option<&'a str>,
}

/// How sure a model is of an answer: of its least sure row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Confidence {
    /// The highest probability of a row.
    pub highest: f64,
    /// How far it is above the second highest.
    pub margin: f64,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// It goes out.
    Answer,
    /// It goes out as a suggestion, and to review: people decide.
    Suggest,
    /// It goes to review, and the caller is told that people decide.
    Defer(Cause),
}

/// Why an answer is for people.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The model decides nothing.
    Shadow,
    /// The model's inputs have drifted.
    Drift,
    /// The input is unlike what the model knows.
    Outlier {
        /// Its score.
        score: f64,
        /// The largest that is accepted.
        most: f64,
    },
    /// The model is not sure enough.
    Confidence {
        /// How sure it is.
        got: f64,
        /// The least that is accepted.
        least: f64,
    },
    /// Another answer is nearly as likely.
    Margin {
        /// By how much this one is likelier.
        got: f64,
        /// The least that is accepted.
        least: f64,
    },
    /// What the decision needs is not there, or is no number: then people decide.
    Unknown,
}

impl Cause {
    /// Its name, as a label of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Drift => "drift",
            Self::Outlier { .. } => "outlier",
            Self::Confidence { .. } => "confidence",
            Self::Margin { .. } => "margin",
            Self::Unknown => "unknown",
        }
    }
}

impl Confidence {
    /// The confidence of rows of `width` probabilities; of `width` 1, each is that of a yes, and 1 less it that of a no. `None` without
    /// rows.
    pub fn of_rows(probabilities: &[f64], width: usize) -> Option<Self> {
        let of_row = |row: &[f64]| {
            let (mut first, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
            let no = [1.0 - row[0]];
            let rest = if row.len() == 1 { &no[..] } else { &[] };
            for &value in row.iter().chain(rest) {
                // NaN must not look like confidence.
                if value.is_nan() {
                    return Self { highest: f64::NAN, margin: f64::NAN };
                }
                if value > first {
                    (first, second) = (value, first);
                } else if value > second {
                    second = value;
                }
            }
            Self { highest: first, margin: first - second }
        };
        let least = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) };
        let rows = probabilities.chunks_exact(width.max(1)).map(of_row);
        rows.reduce(|a, b| Self { highest: least(a.highest, b.highest), margin: least(a.margin, b.margin) })
    }
}

/// What becomes of an answer. What is asked for and not known defers it.
pub fn decide(spec: &DeferSpec, signals: &Signals<'_>) -> Disposition {
    match spec.automation {
        Automation::Full => Disposition::Answer,
        Automation::Assist => Disposition::Suggest,
        Automation::Shadow => Disposition::Defer(Cause::Shadow),
        Automation::Partial => cause(spec, signals).map_or(Disposition::Answer, Disposition::Defer),
    }
}

fn cause(spec: &DeferSpec, signals: &Signals<'_>) -> Option<Cause> {
    if !spec.drift_states.is_empty() {
        match signals.drift_state {
            None => return Some(Cause::Unknown),
            Some(state) if spec.drift_states.iter().any(|drift| drift == state) => {
                return Some(Cause::Drift);
            }
            Some(_) => {}
        }
    }
    if let Some(most) = spec.max_outlier_score {
        match signals.outlier_score.filter(|score| !score.is_nan()) {
            None => return Some(Cause::Unknown),
            Some(score) if score > most => return Some(Cause::Outlier { score, most }),
            Some(_) => {}
        }
    }
    let confidence = signals.confidence;
    let known = |value: Option<f64>| value.filter(|value| !value.is_nan());
    if let Some(least) = spec.min_confidence {
        match known(confidence.map(|confidence| confidence.highest)) {
            None => return Some(Cause::Unknown),
            Some(got) if got < least => return Some(Cause::Confidence { got, least }),
            Some(_) => {}
        }
    }
    if let Some(least) = spec.min_margin {
        match known(confidence.map(|confidence| confidence.margin)) {
            None => return Some(Cause::Unknown),
            Some(got) if got < least => return Some(Cause::Margin { got, least }),
            Some(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> DeferSpec {
        let spec: DeferSpec = toml::from_str(text).unwrap();
        assert!(spec.problems().is_empty(), "{:?}", spec.problems());
        spec
    }

    fn sure(highest: f64, margin: f64) -> Signals<'static> {
        Signals { confidence: Some(Confidence { highest, margin }), ..Signals::default() }
    }

    #[test]
    fn degrees_of_automation_decide_for_everything_alike() {
        let nothing = Signals::default();
        assert_eq!(decide(&spec(""), &nothing), Disposition::Answer);
        assert_eq!(decide(&spec("automation = \"assist\""), &nothing), Disposition::Suggest);
        assert_eq!(decide(&spec("automation = \"shadow\""), &nothing), Disposition::Defer(Cause::Shadow));
    }

    #[test]
    fn each_rule_defers_what_is_below_it_and_what_is_not_known() {
        let of = |rule: &str, signals: Signals<'_>| match decide(
            &spec(&format!("automation = \"partial\"\n{rule}")),
            &signals,
        ) {
            Disposition::Defer(cause) => cause.as_str(),
            _ => "answer",
        };
        assert_eq!(of("min_confidence = 0.9", sure(0.9, 0.8)), "answer");
        assert_eq!(of("min_confidence = 0.9", sure(0.89, 0.8)), "confidence");
        assert_eq!(of("min_confidence = 0.9", sure(f64::NAN, 0.8)), "unknown");
        assert_eq!(of("min_confidence = 0.9", Signals::default()), "unknown");
        assert_eq!(of("min_margin = 0.5", sure(0.6, 0.5)), "answer");
        assert_eq!(of("min_margin = 0.5", sure(0.6, 0.2)), "margin");
        let outlier = |score| Signals { outlier_score: Some(score), ..Signals::default() };
        assert_eq!(of("max_outlier_score = 3", outlier(3.0)), "answer");
        assert_eq!(of("max_outlier_score = 3", outlier(f64::INFINITY)), "outlier");
        assert_eq!(of("max_outlier_score = 3", outlier(f64::NAN)), "unknown");
        let drift = |state| Signals { drift_state: Some(state), ..sure(1.0, 1.0) };
        assert_eq!(of("drift_states = [\"drifted\"]", drift("stable")), "answer");
        assert_eq!(of("drift_states = [\"drifted\"]\nmin_confidence = 0.1", drift("drifted")), "drift");
        assert_eq!(of("drift_states = [\"drifted\"]", sure(1.0, 1.0)), "unknown");
    }

    #[test]
    fn an_answer_is_as_sure_as_its_least_sure_row() {
        let confidence =
            |values: &[f64], width| Confidence::of_rows(values, width).map(|c| (c.highest, c.margin));
        assert_eq!(confidence(&[0.75, 0.25, 0.0, 0.5, 0.25, 0.25], 3), Some((0.5, 0.25)));
        assert_eq!(confidence(&[0.25], 1), Some((0.75, 0.5)));
        assert_eq!(confidence(&[0.5, 0.5], 2), Some((0.5, 0.0)));
        assert_eq!(confidence(&[], 2), None);
        let (highest, margin) = confidence(&[0.9, 0.1, f64::NAN, 0.1, 0.8, 0.2], 2).unwrap();
        assert!(highest.is_nan() && margin.is_nan());
    }
}
