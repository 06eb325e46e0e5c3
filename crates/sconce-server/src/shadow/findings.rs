//! What a shadow has shown.

use super::Asked;
use crate::traffic::Times;
use sconce_core::{DataType, Error, ErrorCode, ModelVersion, Reservation, Tensor};
use sconce_traffic::compare::{self, CompareSpec, Comparison};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// What the last failures said.
const EXPLANATIONS: usize = 8;
/// Pieces of the agreement over time; when there are as many, two become one.
const PIECES: usize = 120;
/// Powers of ten that differences are told apart by.
const EXPONENTS: std::ops::RangeInclusive<i32> = -12..=12;
/// Versions of the primary that are told apart.
const PRIMARIES: usize = 16;

/// What a shadow has shown, and what became of what was offered to it. It is bounded, however much that is.
pub(crate) struct Findings {
    pub(crate) since: SystemTime,
    /// Answered requests that it was to see.
    pub(crate) offered: AtomicU64,
    pub(crate) waiting: AtomicUsize,
    pub(crate) running: AtomicUsize,
    found: Mutex<Found>,
    /// Of this version of the candidate with what answered.
    comparison: Mutex<Option<(ModelVersion, Comparison)>>,
}

/// What was found up to some time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// The version of the candidate that this is about.
    pub(crate) version: Option<ModelVersion>,
    /// How many of its answers were compared with those of each version.
    pub(crate) primaries: BTreeMap<ModelVersion, u64>,
    /// What never ran, by the reason.
    pub(crate) dropped: BTreeMap<&'static str, u64>,
    /// What failed, by what it came to.
    pub(crate) failed: BTreeMap<&'static str, u64>,
    /// What was said of it, the latest last, each once in a row.
    pub(crate) explanations: VecDeque<String>,
    /// Answers that were compared.
    pub(crate) compared: u64,
    /// Those that were the same to the last bit.
    pub(crate) identical: u64,
    /// How long the primary and the candidate took for them.
    pub(crate) latency: [Times; 2],
    /// By the power of ten that their largest absolute difference is at most; [`i32::MIN`] where there is none.
    pub(crate) differences: BTreeMap<i32, u64>,
    /// What was compared, and identical, over time: at most [`PIECES`], each of as many pairs as those before it.
    pub(crate) agreement: Vec<Piece>,
    /// Pairs of a piece.
    piece_pairs: u64,
}

/// A piece of the agreement over time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) since: SystemTime,
    pub(crate) compared: u64,
    pub(crate) identical: u64,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            since: SystemTime::now(),
            offered: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            found: Mutex::default(),
            comparison: Mutex::default(),
        }
    }
}

impl Findings {
    pub(crate) fn snapshot(&self) -> Found {
        self.found().clone()
    }

    /// How the answers compare; `None` before there is one.
    pub(crate) fn comparison(&self) -> Option<compare::Report> {
        let comparison = self.comparison.lock().unwrap_or_else(PoisonError::into_inner);
        comparison.as_ref().map(|(_, comparison)| comparison.report())
    }

    /// Compared requests, and those of them that disagree, as far as they are about the candidate there is.
    pub(crate) fn disagreement(&self) -> compare::Share {
        let comparison = self.comparison.lock().unwrap_or_else(PoisonError::into_inner);
        comparison.as_ref().map(|(_, comparison)| comparison.disagreement()).unwrap_or_default()
    }

    /// Counts a request that was offered and will not run.
    pub(super) fn dropped(&self, reason: &'static str) {
        *self.found().dropped.entry(reason).or_default() += 1;
    }

    /// Counts a request that ran and failed.
    pub(super) fn failed(&self, error: &Error) {
        self.explain(error);
        *self.found().failed.entry(error.code().name()).or_default() += 1;
    }

    /// Keeps what an error says.
    pub(super) fn explain(&self, error: &Error) {
        let mut found = self.found();
        let text = format!("{}: {error}", error.code().name());
        if found.explanations.back() == Some(&text) {
            return;
        }
        if found.explanations.len() >= EXPLANATIONS {
            found.explanations.pop_front();
        }
        found.explanations.push_back(text);
    }

    fn compare(
        &self,
        asked: &Asked,
        (primary_latency, candidate_latency): (Duration, Duration),
        version: ModelVersion,
        outputs: &Result<Vec<(String, Tensor)>, ErrorCode>,
    ) {
        let mut comparison = self.comparison.lock().unwrap_or_else(PoisonError::into_inner);
        if comparison.as_ref().is_none_or(|(of, _)| *of != version) {
            // What counts as a difference by default is in order: there are no problems to tell of.
            let new = Comparison::new(CompareSpec::default(), fastrand::u64(..));
            *comparison = new.ok().map(|new| (version, new));
        }
        let Some((_, comparison)) = comparison.as_mut() else { return };
        let primary = by_name(&asked.outputs);
        let candidate = outputs.as_ref().map(|outputs| by_name(outputs)).map_err(|code| *code);
        let pair = compare::Pair {
            id: &asked.id,
            primary: Ok(&primary),
            candidate: candidate.as_deref().map_err(|code| *code),
            primary_latency,
            candidate_latency,
        };
        // Inputs stay where they are until a model can say that they may be kept.
        comparison.add(&pair, || None);
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn add_to_agreement(&mut self, identical: bool) {
        let is_full = self.agreement.last().is_none_or(|piece| piece.compared >= self.piece_pairs.max(1));
        if is_full && self.agreement.len() >= PIECES {
            self.piece_pairs = 2 * self.piece_pairs.max(1);
            let pairs = self.agreement.chunks(2).map(|pair| {
                let sum = |of: fn(&Piece) -> u64| pair.iter().map(of).sum();
                let since = pair.first().map_or(SystemTime::UNIX_EPOCH, |piece| piece.since);
                Piece { since, compared: sum(|it| it.compared), identical: sum(|it| it.identical) }
            });
            self.agreement = pairs.collect();
        }
        if is_full {
            self.agreement.push(Piece { since: SystemTime::now(), compared: 0, identical: 0 });
        }
        if let Some(piece) = self.agreement.last_mut() {
            piece.compared += 1;
            piece.identical += u64::from(identical);
        }
    }
}

/// The largest absolute difference of the numbers of two answers of the same form; `None` where they have another, or are no FP32.
fn largest_difference(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> Option<f64> {
    let mut largest = None;
    for ((name, a), (other, b)) in a.iter().zip(b) {
        if name != other
            || a.datatype() != DataType::Fp32
            || b.datatype() != DataType::Fp32
            || a.shape() != b.shape()
        {
            continue;
        }
        let differences = a.f32_values().zip(b.f32_values()).map(|(a, b)| f64::from((a - b).abs()));
        let most = differences.fold(0.0, f64::max);
        largest = Some(largest.map_or(most, |largest: f64| largest.max(most)));
    }
    largest
}

fn by_name(outputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    outputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// The power of ten that a difference is at most.
fn exponent(difference: f64) -> i32 {
    if difference == 0.0 {
        return i32::MIN;
    }
    // NaN and infinity become the largest, or the least, by the conversion.
    #[expect(clippy::cast_possible_truncation, reason = "it saturates, and is bounded")]
    let exponent = difference.log10().ceil() as i32;
    exponent.clamp(*EXPONENTS.start(), *EXPONENTS.end())
}

/// An answer, and what the candidate made of the same request.
pub(super) struct Pair {
    pub(super) findings: Arc<Findings>,
    pub(super) asked: Arc<Asked>,
    /// How long the primary took.
    pub(super) latency: Duration,
    /// The candidate's version.
    pub(super) version: ModelVersion,
    /// The candidate's outputs by name, or how it failed, and how long that took.
    pub(super) outputs: Result<Vec<(String, Tensor)>, ErrorCode>,
    pub(super) taken: Duration,
    /// What both hold of the shadows' bytes.
    pub(super) _held: (Arc<Reservation>, Option<Reservation>),
}

impl Pair {
    /// Compares the two, whatever they are.
    pub(super) fn compare(self) {
        let findings = Arc::clone(&self.findings);
        if panic::catch_unwind(AssertUnwindSafe(|| self.compare_or_panic())).is_err() {
            findings.failed(&Error::internal("the comparison panicked"));
        }
    }

    fn compare_or_panic(self) {
        let Self { findings, asked, latency, version, outputs, taken, _held } = self;
        findings.compare(&asked, (latency, taken), version, &outputs);
        let Ok(outputs) = outputs else { return };
        let identical = asked.outputs == outputs;
        let difference = if identical { Some(0.0) } else { largest_difference(&asked.outputs, &outputs) };
        let mut found = findings.found();
        if found.version.is_some_and(|before| before != version) {
            // Another candidate: what was found of the one before is not true of it.
            let Found { dropped, failed, explanations, .. } = std::mem::take(&mut *found);
            *found = Found { dropped, failed, explanations, ..Found::default() };
        }
        found.version = Some(version);
        found.compared += 1;
        found.identical += u64::from(identical);
        if let Some(difference) = difference {
            *found.differences.entry(exponent(difference)).or_default() += 1;
        }
        found.add_to_agreement(identical);
        found.latency[0].add(latency);
        found.latency[1].add(taken);
        if found.primaries.len() < PRIMARIES || found.primaries.contains_key(&asked.version) {
            *found.primaries.entry(asked.version).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Vec<(String, Tensor)> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        vec![("y".to_owned(), Tensor::new(DataType::Fp32, vec![values.len()], bytes.into()).unwrap())]
    }

    fn compare(findings: &Arc<Findings>, version: u64, a: &[f32], b: &[f32]) {
        let budget = sconce_core::ByteBudget::new(0);
        let asked = Asked {
            tensors: Vec::new(),
            version: ModelVersion::new(1).unwrap(),
            outputs: tensor(a),
            id: String::new(),
            bytes: 0,
        };
        Pair {
            findings: Arc::clone(findings),
            asked: Arc::new(asked),
            latency: Duration::from_millis(1),
            version: ModelVersion::new(version).unwrap(),
            outputs: Ok(tensor(b)),
            taken: Duration::from_millis(2),
            _held: (Arc::new(budget.empty()), None),
        }
        .compare();
    }

    #[test]
    fn differences_are_told_apart_by_powers_of_ten() {
        let findings = Arc::new(Findings::default());
        for (a, b) in [
            ([1.0, 2.0], [1.0, 2.0]),
            ([1.0, 2.0], [1.0, 2.5]),
            ([1.0, 2.0], [1.0, 52.0]),
            ([1.0, f32::NAN], [1.0, 2.0]),
        ] {
            compare(&findings, 2, &a, &b);
        }
        let found = findings.snapshot();
        assert_eq!((found.compared, found.identical), (4, 1));
        assert_eq!(found.differences, [(i32::MIN, 2), (0, 1), (2, 1)].into());
        assert_eq!(found.primaries, [(ModelVersion::new(1).unwrap(), 4)].into());
        // Another candidate begins anew; what became of requests goes on.
        findings.dropped("queue");
        compare(&findings, 3, &[1.0], &[1.0]);
        let found = findings.snapshot();
        assert_eq!((found.compared, found.identical, found.dropped["queue"]), (1, 1, 1));
    }

    #[test]
    fn agreement_over_time_is_bounded_and_loses_nothing() {
        let mut found = Found::default();
        (0..10_000).for_each(|number| found.add_to_agreement(number % 4 == 0));
        assert!((PIECES / 2..=PIECES).contains(&found.agreement.len()), "{}", found.agreement.len());
        let sum = |of: fn(&Piece) -> u64| found.agreement.iter().map(of).sum::<u64>();
        assert_eq!((sum(|it| it.compared), sum(|it| it.identical)), (10_000, 2_500));
        assert!(found.agreement.is_sorted_by_key(|piece| piece.since));
    }

    #[test]
    fn what_was_said_is_bounded_and_not_repeated() {
        let findings = Findings::default();
        for number in 0..100 {
            findings.failed(&Error::internal(format!("number {}", number / 2)));
        }
        let found = findings.snapshot();
        assert_eq!(found.failed["INTERNAL"], 100);
        assert_eq!(found.explanations.len(), EXPLANATIONS);
        assert_eq!(found.explanations.back().unwrap(), "INTERNAL: number 49");
    }
}
