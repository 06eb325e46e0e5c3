use serde::{Deserialize, Serialize};

/// How much a model decides by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Automation {
    /// Nothing: people decide and do not see what it says. Each of its answers goes to review, to be compared with theirs.
    Shadow,
    /// Nothing: people decide each, and see what it says.
    Assist,
    /// What it is confident of; the rest goes to people.
    Partial,
    /// Everything.
    #[default]
    Full,
}

/// What a model is trusted with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeferSpec {
    /// How much it decides by itself. Default: everything.
    #[serde(default)]
    pub automation: Automation,
    /// With partial automation: the least confidence (the highest probability of an answer's worst row), 0 to 1.
    #[serde(default)]
    pub min_confidence: Option<f64>,
    /// The least margin between the two highest probabilities, 0 to 1.
    #[serde(default)]
    pub min_margin: Option<f64>,
    /// The largest outlier score.
    #[serde(default)]
    pub max_outlier_score: Option<f64>,
    /// The states of the version's drift monitor in which everything goes to people, of [`DRIFT_STATES`](Self::DRIFT_STATES).
    /// Default: none.
    #[serde(default)]
    pub drift_states: Vec<String>,
}

impl DeferSpec {
    /// What a drift monitor may say of a version.
    pub const DRIFT_STATES: [&str; 4] = ["learning", "not_enough_evidence", "stable", "drifted"];

    /// Everything that is wrong with it, with the key it is about, what was expected and what came.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in [("min_confidence", self.min_confidence), ("min_margin", self.min_margin)] {
            if let Some(value) = value.filter(|value| !(0.0..=1.0).contains(value)) {
                problems.push(format!("{key}: expected 0 to 1, got {value}"));
            }
        }
        if self.max_outlier_score.is_some_and(f64::is_nan) {
            problems.push("max_outlier_score: expected a number, got NaN".to_owned());
        }
        let states = &self.drift_states;
        if let Some(state) = states.iter().find(|state| !Self::DRIFT_STATES.contains(&state.as_str())) {
            let (known, got) = (Self::DRIFT_STATES.join(", "), crate::abbreviate(state));
            problems.push(format!("drift_states: expected some of {known}, got {got:?}"));
        }
        let has_rule = self.min_confidence.is_some()
            || self.min_margin.is_some()
            || self.max_outlier_score.is_some()
            || !states.is_empty();
        if (self.automation == Automation::Partial) != has_rule {
            problems.push(format!(
                "automation: expected `partial` with at least one of min_confidence, min_margin, max_outlier_score and drift_states, or another without, got {:?}",
                self.automation
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let of = |json| serde_json::from_str::<DeferSpec>(json).unwrap().problems();
        let json = r#"{"min_confidence": 1.5, "min_margin": -1, "drift_states": ["drift"]}"#;
        let problems = of(json);
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert_eq!(of(r#"{"automation": "partial"}"#).len(), 1);
        for good in
            ["{}", r#"{"automation": "assist"}"#, r#"{"automation": "partial", "drift_states": ["drifted"]}"#]
        {
            assert!(of(good).is_empty(), "{good}");
        }
        assert!(serde_json::from_str::<DeferSpec>(r#"{"confidence": 0.5}"#).is_err());
    }
}
