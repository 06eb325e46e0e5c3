//! What a comparison comes to: typed, so that RPC, JSON, Markdown and HTML say the same. No number in it is NaN or infinite.

use sconce_stats::Interval;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Report`]'s form.
pub const REPORT_VERSION: u32 = 1;

/// What came of comparing two models on the same requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// Pairs of answers, those with an error among them.
    pub pairs: u64,
    /// Overall: different if anything is, equal only if everything is.
    pub verdict: Verdict,
    /// One finding for each question that was asked, the overall verdict's reasons.
    pub findings: Vec<Finding>,
    /// By output, in the order they first came.
    pub outputs: Vec<OutputReport>,
    /// Outputs beyond those that are compared.
    pub outputs_left_out: u64,
    /// How answers ended, by primary and candidate: `OK` or the name of a status.
    pub endings: Vec<Ending>,
    /// How long they took.
    pub latency: Latency,
    /// Against labels, if any came.
    pub labelled: Option<Labelled>,
    /// The most divergent, worst first.
    pub divergent: Vec<Example>,
    /// Some at random.
    pub random: Vec<Example>,
}

/// What the evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The difference lies within the margin.
    Equal,
    /// The difference lies beyond the margin.
    Different,
    /// Neither is shown yet.
    NotEnoughEvidence,
}

/// A question, and what the evidence says to it at any time, however often one looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What is measured, such as `disagreement of output probs`.
    pub name: String,
    /// What follows.
    pub verdict: Verdict,
    /// What was measured.
    pub estimate: Option<f64>,
    /// Where the truth lies, at level `1 - alpha` at all times together.
    pub interval: Option<Interval>,
    /// The margin it is held against: from 0 to it, or either side of 0.
    pub margin: f64,
    /// The level of this finding: that of the comparison, shared among all its findings.
    pub alpha: f64,
    /// Pairs it rests on.
    pub pairs: u64,
    /// The same for people.
    pub sentence: String,
}

/// What an output is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Numbers: differences count, within a tolerance.
    Values,
    /// Rows of probabilities.
    Distribution,
    /// Rows of one score a class.
    Scores,
    /// One class a row, as text or as an integer.
    Labels,
}

/// An output's comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// What it was taken for.
    pub kind: Kind,
    /// Rows that were compared, of those that came.
    pub rows: Share,
    /// Answers whose datatypes or shapes differ, or that one model did not give, of all.
    pub mismatched: Share,
    /// Rows that disagree: another label or top class, or a value beyond the tolerance.
    pub disagreeing: Share,
    /// `|candidate - primary|` of the elements.
    pub absolute: Option<Summary>,
    /// `|candidate - primary| / |primary|` of the elements whose primary is not 0.
    pub relative: Option<Summary>,
    /// Elements beyond the tolerance.
    pub breaches: Share,
    /// Elements that are NaN or infinite in one answer and not alike in the other.
    pub not_finite: u64,
    /// Candidate less primary, of the elements of a pair: what a regression is off by.
    pub bias: Option<Mean>,
    /// Of rows of at least two elements.
    pub cosine: Option<Mean>,
    /// Kullback–Leibler divergence of the primary from the candidate, in nats, where it is finite.
    pub kl: Option<Mean>,
    /// Rows where it is infinite: the candidate rules out what the primary does not.
    pub kl_infinite: u64,
    /// Jensen–Shannon distance, from 0 to 0.833.
    pub js: Option<Mean>,
    /// Rows with the same top class.
    pub top1: Share,
    /// How many of the `k` highest classes are the same, as a mean share.
    pub top_k: Option<Mean>,
    /// The `k` of `top_k`.
    pub k: usize,
    /// Classes of both.
    pub classes: Option<Classes>,
}

/// Some of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Those that have it.
    pub count: u64,
    /// All.
    pub of: u64,
}

impl Share {
    /// Counts one, which has it or not.
    pub(super) fn add(&mut self, has: bool) {
        self.count += u64::from(has);
        self.of += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.of += other.of;
    }

    /// `count / of`; `None` of nothing.
    pub fn rate(self) -> Option<f64> {
        (self.of > 0).then(|| self.count as f64 / self.of as f64)
    }
}

/// Values of at least 0, summed up. Quantiles within 2 percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half lie below it.
    pub p50: f64,
    /// 90 percent.
    pub p90: f64,
    /// 99 percent.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// A mean with its spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation; 0 of one.
    pub deviation: f64,
}

/// The classes of both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classes {
    /// How often each was given, the most frequent first. `other` are those beyond the first 64 that came.
    pub classes: Vec<ClassCount>,
    /// The confusion matrix between the two models: cells that are not 0, the largest first.
    pub cells: Vec<ClassFlip>,
}

/// How often a class was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// Its name, or its number.
    pub class: String,
    /// By the primary.
    pub primary: u64,
    /// By the candidate.
    pub candidate: u64,
}

/// A cell of a confusion matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassFlip {
    /// What the primary gave.
    pub primary: String,
    /// What the candidate gave.
    pub candidate: String,
    /// How often.
    pub count: u64,
}

/// How both answers of a pair ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// `OK`, or the name of a status.
    pub primary: String,
    /// The same of the candidate.
    pub candidate: String,
    /// How often.
    pub count: u64,
}

/// How long answers took, in seconds, where both models answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The primary.
    pub primary: Option<Summary>,
    /// The candidate.
    pub candidate: Option<Summary>,
    /// Pairs where the candidate took longer.
    pub slower: Share,
    /// By how much it took longer where it did.
    pub excess: Option<Summary>,
    /// Candidate less primary, with an interval that holds at all times in the limit of many pairs.
    pub difference: Option<Mean>,
    /// Where the mean of the difference lies.
    pub interval: Option<Interval>,
}

/// Right and wrong of both, where the label came.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// Both right.
    pub both: u64,
    /// Only the primary right.
    pub only_primary: u64,
    /// Only the candidate right.
    pub only_candidate: u64,
    /// Neither.
    pub neither: u64,
    /// Candidate's accuracy less the primary's: where it lies at all times.
    pub difference: Interval,
    /// The natural logarithm of the e-process for both being right equally often: McNemar's question, at any time.
    pub log_e: f64,
    /// Whether that is enough to say that they are not.
    pub differs: bool,
}

/// A pair worth a look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The prediction's id.
    pub id: String,
    /// 0 where nothing differs, 1 where all does.
    pub score: f64,
    /// What differs most.
    pub reason: String,
    /// The inputs, if they may be kept and are short enough.
    pub inputs: Option<String>,
}

pub(super) type Counts = BTreeMap<(&'static str, &'static str), u64>;
