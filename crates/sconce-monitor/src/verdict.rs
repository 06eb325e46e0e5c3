use crate::quality::Check;
use sconce_stats::Interval;
use serde::{Deserialize, Deserializer, Serialize};

/// What can be said of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// If there is a change, it is smaller than the least that matters.
    Stable,
    /// There is one, and it is at least as large as the least that matters.
    Drifted,
    /// Neither is shown yet.
    NotEnoughEvidence,
}

/// What a monitor says of its window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Drifted if any feature is or any check fails, stable if all are, else not known yet.
    pub state: State,
    /// Rows in the window.
    pub rows: u64,
    /// When its first row came, in milliseconds since 1970; `None` before it.
    pub since_ms: Option<u64>,
    /// When its last row came.
    pub until_ms: Option<u64>,
    /// The level at which evidence was held against chance.
    pub level: f64,
    /// The least effect that matters, as a stability index.
    pub minimum_psi: f64,
    /// By feature, in the order of the reference's columns.
    pub features: Vec<FeatureVerdict>,
    /// Of the data's quality.
    pub checks: Vec<Check>,
    /// The latest alarms of the streams, oldest first.
    pub alarms: Vec<Alarm>,
}

/// What is said of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureVerdict {
    /// Its name: its column's, and of a text column the descriptor's after a dot.
    pub feature: String,
    /// Stable, drifted, or neither.
    pub state: State,
    /// How far it is from the reference: the population stability index, less what chance adds to it. 0.1 is a change that
    /// one looks at, 0.25 a large one.
    pub psi: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// The natural logarithm of the evidence against no change, which holds at any look.
    pub log_evidence: f64,
    /// Rows it is about: from when it has changed, if it has, else of the whole window.
    pub rows: u64,
    /// When the first of them came, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// The reference's shares and the window's in each bin or category, the largest difference first.
    pub cells: Vec<Cell>,
    /// Of numbers.
    pub numeric: Option<Numeric>,
}

/// A bin or a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Its range or name.
    pub label: String,
    /// Its place among all, from 0: bins ascend, categories descend by frequency.
    pub place: usize,
    /// The share of the reference's rows in it.
    pub reference: f64,
    /// The share of these rows.
    pub current: f64,
}

/// Numbers then and now. Means and quantiles are NaN where there is no value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Numeric {
    /// Mean and standard deviation of the reference.
    #[serde(deserialize_with = "pair")]
    pub reference: (f64, f64),
    /// Of these rows.
    #[serde(deserialize_with = "pair")]
    pub current: (f64, f64),
    /// The reference's quantiles at 5, 25, 50, 75 and 95 %.
    #[serde(deserialize_with = "quantiles")]
    pub reference_quantiles: [f64; 5],
    /// Those of these rows, from the counts of bins: about.
    #[serde(deserialize_with = "quantiles")]
    pub current_quantiles: [f64; 5],
}

/// The shares of [`Numeric`]'s quantiles.
pub(crate) const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// A stream's detector found a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// In which feature.
    pub feature: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// With which row since the monitor began.
    pub row: u64,
}

impl Verdict {
    /// The features that have drifted, the largest change first.
    pub fn drifted(&self) -> Vec<&FeatureVerdict> {
        let mut drifted: Vec<_> = self.features.iter().filter(|it| it.state == State::Drifted).collect();
        drifted.sort_by(|a, b| b.psi.total_cmp(&a.psi));
        drifted
    }

    /// The checks that fail.
    pub fn failed(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| check.state == State::Drifted).collect()
    }
}

/// JSON has no NaN: it is `null` there.
fn pair<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(f64, f64), D::Error> {
    let (first, second) = <(Option<f64>, Option<f64>)>::deserialize(deserializer)?;
    Ok((first.unwrap_or(f64::NAN), second.unwrap_or(f64::NAN)))
}

fn quantiles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 5], D::Error> {
    Ok(<[Option<f64>; 5]>::deserialize(deserializer)?.map(|it| it.unwrap_or(f64::NAN)))
}

impl State {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Drifted => "drifted",
            Self::NotEnoughEvidence => "not enough evidence",
        }
    }
}
