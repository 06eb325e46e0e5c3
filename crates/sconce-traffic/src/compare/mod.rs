//! Two models on the same requests: how far their answers are apart, and what can be said of that at any time.
//!
//! A [`Comparison`] takes pairs of answers in bounded memory: below 100 KiB an output, [`MAX_OUTPUTS`] outputs, and examples. Its
//! [`Report`] holds *findings*: questions with a margin that was declared before, answered `equal`, `different` or
//! `not_enough_evidence` by confidence sequences, so that one may look after every pair. Of a request with several rows one row,
//! drawn at random, counts as evidence, because rows of a request are not independent; all of them count in the figures.
//!
//! The work for a pair is bounded too: of an output with more than [`MAX_ELEMENTS`] elements rows at equal steps are compared, of a
//! row with more, elements at equal steps.

mod classes;
mod examples;
mod output;
mod report;
mod values;

pub use classes::MAX_CLASSES;
pub use examples::MAX_INPUT_BYTES;
pub use report::{
    ClassCount, ClassFlip, Classes, Ending, Example, Finding, Kind, Labelled, Latency, Mean, OutputReport,
    REPORT_VERSION, Report, Share, Summary, Verdict,
};

use crate::Problems;
use examples::Largest;
use output::{Output, Shown, Sizes, TUNED_FOR, mean};
use report::Counts;
use sconce_core::{ErrorCode, Tensor};
use sconce_stats::experiment::Moments;
use sconce_stats::sequential::{AsymptoticMean, BetaBinomial, Side, rejects, tuned_rho};
use sconce_stats::{Interval, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Outputs that are compared; those beyond are counted.
pub const MAX_OUTPUTS: usize = 32;
/// Elements of an output that are looked at for one pair.
pub const MAX_ELEMENTS: usize = 65_536;
/// Examples of each sort.
pub const MAX_EXAMPLES: usize = 64;
/// Pairs before a mean is judged: its confidence sequence holds in the limit of many.
const BURN_IN: u64 = 100;

/// What counts as a difference, declared before anything is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompareSpec {
    /// The share of requests that may be answered otherwise, per output. Default 0.01.
    pub max_disagreement: f64,
    /// The share of requests that may fail on the candidate alone. Default 0.01.
    pub max_failures: f64,
    /// How often any finding may ever be wrong, however often one looks. Default 0.05.
    pub alpha: f64,
    /// By the name of an output; for the others the default.
    pub outputs: BTreeMap<String, OutputSpec>,
    /// The most divergent pairs to keep, up to [`MAX_EXAMPLES`]. Default 16.
    pub keep_divergent: usize,
    /// Pairs to keep at random, up to [`MAX_EXAMPLES`]. Default 8.
    pub keep_random: usize,
}

/// What counts as a difference in one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSpec {
    /// What it is. Default: found out from the first answer. Text, booleans and single integers are labels, rows that sum to 1 a
    /// distribution, rows with `classes` scores, everything else values.
    pub kind: Option<Kind>,
    /// A value may differ by this and by `relative` of the primary's, together. Default 1e-4.
    pub absolute: f64,
    /// See `absolute`. Default 1e-3.
    pub relative: f64,
    /// How far the mean of candidate less primary may be from 0. Default: not asked.
    pub max_bias: Option<f64>,
    /// The classes' names, for scores and distributions. Default: their numbers.
    pub classes: Vec<String>,
    /// How many of the highest classes are compared. Default 5.
    pub top_k: usize,
}

impl Default for CompareSpec {
    fn default() -> Self {
        Self {
            max_disagreement: 0.01,
            max_failures: 0.01,
            alpha: 0.05,
            outputs: BTreeMap::new(),
            keep_divergent: 16,
            keep_random: 8,
        }
    }
}

impl Default for OutputSpec {
    fn default() -> Self {
        Self { kind: None, absolute: 1e-4, relative: 1e-3, max_bias: None, classes: Vec::new(), top_k: 5 }
    }
}

impl CompareSpec {
    /// Checks it.
    ///
    /// # Errors
    /// Every problem, with the key it is about, what was expected and what came.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Vec::new();
        let mut number = |key: String, good: bool, expected: &str, got: f64| {
            if !good {
                problems.push(format!("{key}: expected {expected}, got {got}"));
            }
        };
        let inside = |share: f64| share > 0.0 && share < 1.0;
        let open = "a number between 0 and 1, neither included";
        number("max_disagreement".to_owned(), inside(self.max_disagreement), open, self.max_disagreement);
        number("max_failures".to_owned(), inside(self.max_failures), open, self.max_failures);
        number("alpha".to_owned(), inside(self.alpha), open, self.alpha);
        let few = format!("0 to {MAX_EXAMPLES}");
        for (key, count) in [("keep_divergent", self.keep_divergent), ("keep_random", self.keep_random)] {
            number(key.to_owned(), count <= MAX_EXAMPLES, &few, count as f64);
        }
        let outputs = format!("up to {MAX_OUTPUTS}");
        number("outputs".to_owned(), self.outputs.len() <= MAX_OUTPUTS, &outputs, self.outputs.len() as f64);
        for (name, spec) in self.outputs.iter().take(MAX_OUTPUTS) {
            let place = |key: &str| format!("outputs.{}.{key}", sconce_core::abbreviate(name));
            let at_least_0 = |value: f64| value >= 0.0 && value.is_finite();
            number(place("absolute"), at_least_0(spec.absolute), "a number of at least 0", spec.absolute);
            number(place("relative"), at_least_0(spec.relative), "a number of at least 0", spec.relative);
            if let Some(bias) = spec.max_bias {
                number(place("max_bias"), bias > 0.0 && bias.is_finite(), "a number above 0", bias);
            }
            number(
                place("classes"),
                spec.classes.len() <= MAX_ELEMENTS,
                "up to 65536",
                spec.classes.len() as f64,
            );
            number(place("top_k"), (1..=100).contains(&spec.top_k), "1 to 100", spec.top_k as f64);
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }
}

/// What both models made of one request.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The prediction's id, for examples.
    pub id: &'a str,
    /// The primary's outputs by name, or how it failed.
    pub primary: Result<&'a [(&'a str, &'a Tensor)], ErrorCode>,
    /// The candidate's.
    pub candidate: Result<&'a [(&'a str, &'a Tensor)], ErrorCode>,
    /// How long the primary took.
    pub primary_latency: Duration,
    /// How long the candidate took.
    pub candidate_latency: Duration,
}

/// The comparison of a primary and a candidate.
#[derive(Debug, Clone)]
pub struct Comparison {
    spec: CompareSpec,
    seed: u64,
    pairs: u64,
    outputs: Vec<Output>,
    outputs_left_out: u64,
    endings: Counts,
    /// See [`Comparison::disagreement`].
    disagreement: Share,
    /// Pairs that the primary answered, by whether the candidate failed.
    failures: BetaBinomial,
    primary_latency: Sizes,
    candidate_latency: Sizes,
    slower: Share,
    excess: Sizes,
    difference: Moments,
    difference_sequence: AsymptoticMean,
    /// Both, only the primary, only the candidate, neither right.
    labelled: [u64; 4],
    divergent: Largest<f64>,
    random: Largest<u64>,
}

impl Comparison {
    /// Nothing compared yet. `seed` is for what is drawn; comparisons that are to be merged have different ones.
    ///
    /// # Errors
    /// Every problem of `spec`.
    pub fn new(spec: CompareSpec, seed: u64) -> Result<Self, Problems> {
        spec.check()?;
        let latency = || Sizes::new(0.01, 1e-6, 1e4);
        let build = |spec: &CompareSpec| -> Result<Self> {
            Ok(Self {
                seed,
                pairs: 0,
                outputs: Vec::new(),
                outputs_left_out: 0,
                endings: Counts::new(),
                disagreement: Share::default(),
                failures: BetaBinomial::new(0.5, 0.5)?,
                primary_latency: latency()?,
                candidate_latency: latency()?,
                slower: Share::default(),
                excess: latency()?,
                difference: Moments::default(),
                difference_sequence: AsymptoticMean::new(tuned_rho(spec.alpha, TUNED_FOR)?)?,
                labelled: [0; 4],
                divergent: Largest::new(spec.keep_divergent),
                random: Largest::new(spec.keep_random),
                spec: spec.clone(),
            })
        };
        build(&spec).map_err(|error| Problems(vec![error.to_string()]))
    }

    /// What counts as a difference here.
    pub fn spec(&self) -> &CompareSpec {
        &self.spec
    }

    /// Pairs so far.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Pairs that disagree, of those that the primary answered: where an output is not there, is of another form or beyond its
    /// tolerance (in the row that was drawn of the pair), and where the candidate failed.
    pub fn disagreement(&self) -> Share {
        self.disagreement
    }

    /// Takes a pair, and says whether the two differ: in how they ended, or in any row of an output that was compared. `inputs` is
    /// asked for only if the pair is kept as an example; whether the model's data policy allows that is the caller's to know.
    pub fn add(&mut self, pair: &Pair<'_>, mut inputs: impl FnMut() -> Option<String>) -> bool {
        let number = draw(self.seed).wrapping_add(self.pairs);
        self.pairs += 1;
        let ending = |result: &Result<_, ErrorCode>| result.as_ref().err().map_or("OK", |code| code.name());
        let both = (ending(&pair.primary), ending(&pair.candidate));
        *self.endings.entry(both).or_default() += 1;
        let mut differs = both.0 != both.1;
        let shown = match (pair.primary, pair.candidate) {
            (Ok(primary), Ok(candidate)) => {
                self.add_latencies(pair.primary_latency.as_secs_f64(), pair.candidate_latency.as_secs_f64());
                self.failures.update(0, 1);
                let (before, rows_before) = (self.disagreeing_outputs(), self.differing_rows());
                let shown = self.add_outputs(primary, candidate, number);
                self.disagreement.add(self.disagreeing_outputs() > before);
                differs = self.differing_rows() > rows_before;
                shown
            }
            (Ok(_), Err(_)) => {
                self.failures.update(1, 0);
                self.disagreement.add(true);
                Shown { score: 1.0, reason: "only the candidate failed" }
            }
            (Err(_), Ok(_)) => Shown { score: 1.0, reason: "only the primary failed" },
            (Err(primary), Err(candidate)) if primary != candidate => {
                Shown { score: 0.5, reason: "both failed, with another status" }
            }
            (Err(_), Err(_)) => Shown { score: 0.0, reason: "" },
        };
        let priority = draw(number ^ 0x5EED);
        let divergent = shown.score > 0.0 && self.divergent.wants(shown.score);
        let random = self.random.wants(priority);
        if !divergent && !random {
            return differs;
        }
        let id = sconce_core::abbreviate(pair.id).into_owned();
        let inputs = inputs().filter(|inputs| inputs.len() <= MAX_INPUT_BYTES);
        let example = Example { id, score: shown.score, reason: shown.reason.to_owned(), inputs };
        if divergent {
            self.divergent.add(shown.score, example.clone());
        }
        if random {
            self.random.add(priority, example);
        }
        differs
    }

    /// Takes whether both models were right about a request whose label came.
    pub fn add_label(&mut self, primary_right: bool, candidate_right: bool) {
        let at = match (primary_right, candidate_right) {
            (true, true) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        self.labelled[at] += 1;
    }

    /// Takes all that `other`, of the same declaration, took.
    ///
    /// # Errors
    /// Another declaration.
    pub fn merge(&mut self, other: &Self) -> Result<(), Problems> {
        if self.spec != other.spec {
            return Err(Problems(vec!["comparisons of different declarations do not merge".to_owned()]));
        }
        self.merge_all(other).map_err(|error| Problems(vec![error.to_string()]))
    }

    fn merge_all(&mut self, other: &Self) -> Result<()> {
        self.pairs += other.pairs;
        self.outputs_left_out += other.outputs_left_out;
        self.disagreement.merge(other.disagreement);
        for output in &other.outputs {
            match self.outputs.iter().position(|ours| ours.name == output.name) {
                Some(at) => self.outputs[at].merge(output)?,
                None if self.outputs.len() < MAX_OUTPUTS => self.outputs.push(output.clone()),
                None => self.outputs_left_out += 1,
            }
        }
        for (ending, count) in &other.endings {
            *self.endings.entry(*ending).or_default() += count;
        }
        let (failed, answered) = other.failures.counts();
        self.failures.update(failed, answered);
        self.primary_latency.merge(&other.primary_latency)?;
        self.candidate_latency.merge(&other.candidate_latency)?;
        self.slower.merge(other.slower);
        self.excess.merge(&other.excess)?;
        self.difference.merge(&other.difference);
        self.difference_sequence.merge(&other.difference_sequence)?;
        self.labelled.iter_mut().zip(other.labelled).for_each(|(ours, theirs)| *ours += theirs);
        self.divergent.merge(&other.divergent);
        self.random.merge(&other.random);
        Ok(())
    }

    fn disagreeing_outputs(&self) -> u64 {
        self.outputs.iter().map(|output| output.pairs.counts().0).sum()
    }

    fn differing_rows(&self) -> u64 {
        self.outputs.iter().map(Output::differing).sum()
    }

    fn add_latencies(&mut self, primary: f64, candidate: f64) {
        self.primary_latency.add(primary);
        self.candidate_latency.add(candidate);
        self.slower.add(candidate > primary);
        if candidate > primary {
            self.excess.add(candidate - primary);
        }
        // A duration is finite.
        let _ = self.difference.update(candidate - primary);
        let _ = self.difference_sequence.update(candidate - primary);
    }

    fn add_outputs(
        &mut self,
        primary: &[(&str, &Tensor)],
        candidate: &[(&str, &Tensor)],
        number: u64,
    ) -> Shown {
        let mut worst = Shown { score: 0.0, reason: "" };
        let find = |side: &[(&str, &Tensor)], name: &str| side.iter().position(|(other, _)| *other == name);
        let default = OutputSpec::default();
        let only_theirs = candidate.iter().filter(|(name, _)| find(primary, name).is_none());
        for (name, tensor) in primary.iter().chain(only_theirs) {
            let spec = self.spec.outputs.get(*name).unwrap_or(&default);
            let at = self.outputs.iter().position(|output| output.name == *name);
            let at = match at {
                Some(at) => at,
                None if self.outputs.len() < MAX_OUTPUTS => {
                    let kind = Output::detect(tensor, spec);
                    // The level was checked.
                    let Ok(output) = Output::new(name, kind, self.spec.alpha) else { continue };
                    self.outputs.push(output);
                    self.outputs.len() - 1
                }
                None => {
                    self.outputs_left_out += 1;
                    continue;
                }
            };
            let output = &mut self.outputs[at];
            let shown = match (find(primary, name), find(candidate, name)) {
                (Some(ours), Some(theirs)) => output.add(primary[ours].1, candidate[theirs].1, spec, number),
                _ => output.mismatch(),
            };
            if shown.score > worst.score {
                worst = shown;
            }
        }
        worst
    }

    /// What came of it so far.
    pub fn report(&self) -> Report {
        let default = OutputSpec::default();
        let spec_of = |output: &Output| self.spec.outputs.get(&output.name).unwrap_or(&default);
        let with_bias = self.outputs.iter().filter(|output| output.kind == Kind::Values);
        let biases = with_bias.clone().filter(|output| spec_of(output).max_bias.is_some()).count();
        // Each finding gets its part of the level. Outputs come with the first answer, so the parts do not change afterwards.
        let alpha = self.spec.alpha / (1 + self.outputs.len() + biases) as f64;
        let mut findings = vec![rate_finding(
            "failures of the candidate alone",
            &self.failures,
            self.spec.max_failures,
            alpha,
        )];
        for output in &self.outputs {
            let name = format!("disagreement of output {}", output.name);
            findings.push(rate_finding(&name, &output.pairs, self.spec.max_disagreement, alpha));
        }
        for output in with_bias {
            if let Some(margin) = spec_of(output).max_bias {
                findings.push(bias_finding(output, margin, alpha));
            }
        }
        Report {
            version: REPORT_VERSION,
            pairs: self.pairs,
            verdict: overall(&findings),
            findings,
            outputs: self.outputs.iter().map(|output| output.report(spec_of(output).top_k)).collect(),
            outputs_left_out: self.outputs_left_out,
            endings: self.endings.iter().map(ending).collect(),
            latency: self.latency(),
            labelled: self.labelled(),
            divergent: self.divergent.report(),
            random: self.random.report(),
        }
    }

    fn latency(&self) -> Latency {
        let centred = self.difference_sequence.interval(self.spec.alpha).ok();
        let interval = centred.filter(|_| self.difference.count() >= BURN_IN).map(Interval::from);
        Latency {
            primary: self.primary_latency.report(),
            candidate: self.candidate_latency.report(),
            slower: self.slower,
            excess: self.excess.report(),
            difference: mean(&self.difference),
            interval,
        }
    }

    fn labelled(&self) -> Option<Labelled> {
        let [both, only_primary, only_candidate, neither] = self.labelled;
        let pairs = both + only_primary + only_candidate + neither;
        // Half of the level for each share; the discordant pairs have an e-process of their own.
        let rate = |events: u64| {
            let mut rate = BetaBinomial::new(0.5, 0.5)?;
            rate.update(events, pairs - events);
            rate.interval(self.spec.alpha / 2.0)
        };
        let discordant = |events: u64, misses: u64| {
            let mut coin = BetaBinomial::new(1.0, 1.0)?;
            coin.update(events, misses);
            coin.log_e(0.5, Side::Both)
        };
        if pairs == 0 {
            return None;
        }
        let (ours, theirs) = (rate(only_primary).ok()?, rate(only_candidate).ok()?);
        let log_e = discordant(only_candidate, only_primary).ok()?;
        Some(Labelled {
            both,
            only_primary,
            only_candidate,
            neither,
            difference: Interval { low: theirs.low - ours.high, high: theirs.high - ours.low },
            log_e,
            differs: rejects(log_e, self.spec.alpha),
        })
    }
}

/// Different if anything is; equal if everything is.
fn overall(findings: &[Finding]) -> Verdict {
    let is = |verdict| move |finding: &Finding| finding.verdict == verdict;
    if findings.iter().any(is(Verdict::Different)) {
        Verdict::Different
    } else if findings.iter().all(is(Verdict::Equal)) && findings.len() > 1 {
        Verdict::Equal
    } else {
        Verdict::NotEnoughEvidence
    }
}

fn rate_finding(name: &str, rate: &BetaBinomial, margin: f64, alpha: f64) -> Finding {
    let (events, others) = rate.counts();
    let pairs = events + others;
    let interval = rate.interval(alpha).ok().filter(|_| pairs > 0);
    let verdict = match interval {
        Some(interval) if interval.high <= margin => Verdict::Equal,
        Some(interval) if interval.low > margin => Verdict::Different,
        _ => Verdict::NotEnoughEvidence,
    };
    let estimate = (pairs > 0).then(|| events as f64 / pairs as f64);
    let where_it_is = interval.map_or_else(String::new, |interval| {
        format!(", so between {:.3} % and {:.3} %", 100.0 * interval.low, 100.0 * interval.high)
    });
    let sentence = format!(
        "{name}: {events} of {pairs} pairs{where_it_is}; {} (at most {:.3} % may be)",
        said(verdict),
        100.0 * margin
    );
    Finding { name: name.to_owned(), verdict, estimate, interval, margin, alpha, pairs, sentence }
}

fn bias_finding(output: &Output, margin: f64, alpha: f64) -> Finding {
    let name = format!("bias of output {}", output.name);
    let bias = output.report(0).bias;
    let pairs = bias.map_or(0, |bias| bias.count);
    let interval = output.bias_sequence.interval(alpha).ok().filter(|_| pairs >= BURN_IN).map(Interval::from);
    let verdict = match interval {
        Some(interval) if interval.low >= -margin && interval.high <= margin => Verdict::Equal,
        Some(interval) if interval.low > margin || interval.high < -margin => Verdict::Different,
        _ => Verdict::NotEnoughEvidence,
    };
    let estimate = bias.map(|bias| bias.mean);
    let where_it_is = match (estimate, interval) {
        (Some(mean), Some(Interval { low, high })) => format!("{mean:.6}, so between {low:.6} and {high:.6}"),
        (Some(mean), None) => format!("{mean:.6}"),
        _ => "nothing yet".to_owned(),
    };
    let sentence =
        format!("{name}: {where_it_is} over {pairs} pairs; {} (at most {margin} may be)", said(verdict));
    Finding { name, verdict, estimate, interval, margin, alpha, pairs, sentence }
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "within the margin",
        Verdict::Different => "beyond the margin",
        Verdict::NotEnoughEvidence => "not enough evidence",
    }
}

fn ending((&(primary, candidate), &count): (&(&'static str, &'static str), &u64)) -> Ending {
    Ending { primary: primary.to_owned(), candidate: candidate.to_owned(), count }
}

/// Bits that look random, by a pair's number (the finalizer of SplitMix64; Steele, Lea and Flood, 2014).
fn draw(number: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
