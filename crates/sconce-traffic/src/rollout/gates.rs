//! What the evidence says of each gate.

use super::plan::Gate;
use sconce_stats::sequential::{BetaBinomial, SafeTwoByTwo, Side, rejects};
use sconce_stats::sketch::LogSketch;
use sconce_stats::{Interval, Trials};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Confidence sequences of quantiles are narrowest after about as many requests.
const TUNED_FOR: u64 = 5_000;

/// What is known when a rollout's controller looks.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Changes whenever the counts of this start again at 0: with a restart of the server.
    pub epoch: u64,
    /// The control's counts.
    pub control: Counts,
    /// The candidate's counts.
    pub candidate: Counts,
    /// The control's latencies in seconds since the stage began (or since the epoch did, if later).
    pub control_latency: Option<LogSketch>,
    /// The candidate's.
    pub candidate_latency: Option<LogSketch>,
    /// Monitors and queries by name. What is not here is not known now.
    pub facts: BTreeMap<String, Fact>,
}

impl Evidence {
    /// Latencies by how often each was counted, in seconds from 1 µs to 1,000 s.
    pub fn latencies(counted: impl IntoIterator<Item = (f64, u64)>) -> Option<LogSketch> {
        let mut sketch = LogSketch::new(0.01, 1e-6, 1e3).ok()?;
        for (seconds, times) in counted {
            sketch.update_times(seconds, times).ok()?;
        }
        Some(sketch)
    }
}

/// Counts of one variant since the epoch began. They never fall within one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that it answered.
    pub requests: u64,
    /// Of these, those that failed through no fault of the caller.
    pub errors: u64,
    /// Of these, those that succeeded.
    pub successes: u64,
    /// Answers with a label.
    pub labelled: u64,
    /// Of these, those that were right.
    pub right: u64,
    /// Of the successes, those that people decide in its place.
    #[serde(default)]
    pub deferred: u64,
    /// Mirrored requests that were compared; the candidate's.
    pub mirrored: u64,
    /// Of these, those that disagreed.
    pub disagreeing: u64,
}

/// What a monitor or a query says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Fact {
    /// A number.
    Value(f64),
    /// A state.
    State(String),
}

/// What a gate comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateVerdict {
    /// It holds.
    Passed,
    /// It is broken.
    Failed,
    /// The evidence says neither.
    Pending,
    /// There is nothing to hold the candidate against at this stage.
    NotAsked,
}

/// A gate with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// See [`Gate::name`].
    pub gate: String,
    /// What it comes to.
    pub verdict: GateVerdict,
    /// What was measured of the candidate.
    pub candidate: Measured,
    /// What was measured of the control, if it matters.
    pub control: Option<Measured>,
    /// The natural logarithm of the e-process against the candidate being no worse, where there is one.
    pub log_e: Option<f64>,
    /// The share of the false rollback rate that this gate has.
    pub alpha: f64,
    /// A monitor's state.
    pub state: Option<String>,
    /// All of it for people.
    pub sentence: String,
}

/// A measured quantity, and where it lies at all times together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it rests on.
    pub samples: u64,
    /// The estimate: a share, seconds, or a query's value.
    pub estimate: Option<f64>,
    /// It is no less, as far as is known.
    pub low: Option<f64>,
    /// It is no more, as far as is known.
    pub high: Option<f64>,
}

/// What is remembered of a gate: the evidence of all epochs so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// Candidate against control, where that is asked.
    versus: Option<SafeTwoByTwo>,
    candidate: Trials,
    control: Trials,
}

/// Which way is worse.
#[derive(Clone, Copy, PartialEq)]
enum Worse {
    Higher,
    Lower,
}

/// A gate about a share.
struct RateGate {
    worse: Worse,
    bound: Option<f64>,
    vs_control: Option<f64>,
    proof: bool,
    /// Events and trials of a variant's counts.
    trials: fn(&Counts) -> Trials,
}

impl Memory {
    pub(super) fn new(gate: &Gate) -> Self {
        let none = Trials { events: 0, trials: 0 };
        let versus = rate_gate(gate).filter(|rate| rate.vs_control == Some(0.0)).map(|rate| {
            SafeTwoByTwo::new(if rate.worse == Worse::Higher { Side::Above } else { Side::Below })
        });
        Self { versus, candidate: none, control: none }
    }

    /// Takes what came since the last look.
    pub(super) fn absorb(&mut self, gate: &Gate, control: &Counts, candidate: &Counts) {
        let Some(rate) = rate_gate(gate) else { return };
        let (control, candidate) = ((rate.trials)(control), (rate.trials)(candidate));
        if let Some(versus) = &mut self.versus {
            // Counts that contradict themselves are no evidence.
            let _ = versus.update(control, candidate);
        }
        add(&mut self.control, control);
        add(&mut self.candidate, candidate);
    }
}

impl Counts {
    /// What came since `before`, of the same epoch.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            successes: self.successes.saturating_sub(before.successes),
            labelled: self.labelled.saturating_sub(before.labelled),
            right: self.right.saturating_sub(before.right),
            deferred: self.deferred.saturating_sub(before.deferred),
            mirrored: self.mirrored.saturating_sub(before.mirrored),
            disagreeing: self.disagreeing.saturating_sub(before.disagreeing),
        }
    }
}

/// How a stage is.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    /// The candidate answers requests.
    pub(super) candidate_answers: bool,
    /// The control does.
    pub(super) control_answers: bool,
    /// The stage has its least time and samples.
    pub(super) enough: bool,
    /// How many stages there are: evidence of latency starts anew with each.
    pub(super) stages: usize,
    /// The share of the false rollback rate that a gate has.
    pub(super) alpha: f64,
}

/// Judges `gate`.
pub(super) fn judge(gate: &Gate, memory: &Memory, evidence: &Evidence, at: At) -> Judged {
    let At { enough, alpha, stages, .. } = at;
    let has_control = at.control_answers && at.candidate_answers;
    if !at.candidate_answers && memory.candidate.trials == 0 && is_about_answers(gate) {
        let sentence = format!("{}: the candidate answers nothing yet", gate.name());
        return judged(gate, GateVerdict::NotAsked, Measured::default(), alpha, sentence);
    }
    if at.candidate_answers && memory.candidate.trials == 0 && matches!(gate, Gate::ShadowDisagreement { .. })
    {
        let sentence = format!("{}: nothing is mirrored", gate.name());
        return judged(gate, GateVerdict::NotAsked, Measured::default(), alpha, sentence);
    }
    match gate {
        Gate::Latency { quantile, max_ms, vs_control, proof } => {
            let question = Latency {
                quantile: *quantile,
                max: max_ms.map(|ms| ms / 1e3),
                vs_control: vs_control.filter(|_| has_control),
                proof: *proof,
            };
            question.judge(gate, evidence, enough, alpha, stages)
        }
        Gate::Monitor { name, pass } => {
            let state = match evidence.facts.get(name) {
                Some(Fact::State(state)) => Some(state.clone()),
                Some(Fact::Value(value)) => Some(value.to_string()),
                None => None,
            };
            let verdict = match &state {
                None => GateVerdict::Pending,
                Some(state) if pass.contains(state) => GateVerdict::Passed,
                Some(_) => GateVerdict::Failed,
            };
            let said = state.as_deref().map_or("says nothing".to_owned(), |state| format!("says {state}"));
            let sentence = format!("{} {said}; expected {}", gate.name(), pass.join(" or "));
            Judged { state, ..judged(gate, verdict, Measured::default(), alpha, sentence) }
        }
        Gate::Prometheus { name, min, max, .. } => {
            let value = match evidence.facts.get(name) {
                Some(Fact::Value(value)) if value.is_finite() => Some(*value),
                _ => None,
            };
            let within =
                |value: f64| min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max);
            let verdict = match value {
                None => GateVerdict::Pending,
                Some(value) if within(value) => GateVerdict::Passed,
                Some(_) => GateVerdict::Failed,
            };
            let said = value.map_or("gives nothing".to_owned(), |value| format!("gives {value}"));
            let bound = |word: &str, bound: &Option<f64>| bound.map(|bound| format!("{word} {bound}"));
            let bounds: Vec<String> =
                [bound("at least", min), bound("at most", max)].into_iter().flatten().collect();
            let sentence = format!("{} {said}; expected {}", gate.name(), bounds.join(" and "));
            let measured = Measured { samples: 1, estimate: value, low: value, high: value };
            judged(gate, verdict, measured, alpha, sentence)
        }
        Gate::ErrorRate { .. }
        | Gate::SuccessRate { .. }
        | Gate::Accuracy { .. }
        | Gate::Deferred { .. }
        | Gate::ShadowDisagreement { .. } => match rate_gate(gate) {
            Some(rate) => rate.judge(gate, memory, (has_control, enough), alpha),
            None => judged(gate, GateVerdict::NotAsked, Measured::default(), alpha, String::new()),
        },
    }
}

fn is_about_answers(gate: &Gate) -> bool {
    !matches!(gate, Gate::ShadowDisagreement { .. } | Gate::Monitor { .. } | Gate::Prometheus { .. })
}

fn judged(gate: &Gate, verdict: GateVerdict, candidate: Measured, alpha: f64, sentence: String) -> Judged {
    Judged { gate: gate.name(), verdict, candidate, control: None, log_e: None, alpha, state: None, sentence }
}

fn rate_gate(gate: &Gate) -> Option<RateGate> {
    Some(match gate {
        Gate::ErrorRate { max, vs_control, proof } => RateGate {
            worse: Worse::Higher,
            bound: *max,
            vs_control: *vs_control,
            proof: *proof,
            trials: |counts| Trials { events: counts.errors.min(counts.requests), trials: counts.requests },
        },
        Gate::SuccessRate { min, vs_control, proof } => RateGate {
            worse: Worse::Lower,
            bound: *min,
            vs_control: *vs_control,
            proof: *proof,
            trials: |counts| Trials {
                events: counts.successes.min(counts.requests),
                trials: counts.requests,
            },
        },
        Gate::Accuracy { min, vs_control, proof } => RateGate {
            worse: Worse::Lower,
            bound: *min,
            vs_control: *vs_control,
            proof: *proof,
            trials: |counts| Trials { events: counts.right.min(counts.labelled), trials: counts.labelled },
        },
        Gate::Deferred { max, vs_control, proof } => RateGate {
            worse: Worse::Higher,
            bound: *max,
            vs_control: *vs_control,
            proof: *proof,
            trials: |counts| Trials {
                events: counts.deferred.min(counts.successes),
                trials: counts.successes,
            },
        },
        Gate::ShadowDisagreement { max, proof } => RateGate {
            worse: Worse::Higher,
            bound: Some(*max),
            vs_control: None,
            proof: *proof,
            trials: |counts| Trials {
                events: counts.disagreeing.min(counts.mirrored),
                trials: counts.mirrored,
            },
        },
        Gate::Latency { .. } | Gate::Monitor { .. } | Gate::Prometheus { .. } => return None,
    })
}

impl RateGate {
    fn judge(&self, gate: &Gate, memory: &Memory, (has_control, enough): (bool, bool), alpha: f64) -> Judged {
        let asks_control = self.vs_control.filter(|_| has_control);
        let questions = usize::from(self.bound.is_some()) + usize::from(self.vs_control.is_some());
        let part = alpha / questions.max(1) as f64;
        if self.bound.is_none() && asks_control.is_none() {
            let sentence = format!("{}: the control answers nothing any more", gate.name());
            return judged(gate, GateVerdict::NotAsked, measured(memory.candidate, part), alpha, sentence);
        }
        let mut verdicts = Vec::new();
        let mut said = Vec::new();
        let percent = |share: f64| format!("{:.3} %", 100.0 * share);
        let candidate = measured(memory.candidate, part);
        if let Some(bound) = self.bound {
            verdicts.push(self.verdict(candidate, bound, enough));
            let word = if self.worse == Worse::Higher { "at most" } else { "at least" };
            said.push(format!("expected {word} {}", percent(bound)));
        }
        let (mut control, mut log_e) = (None, None);
        if let Some(margin) = asks_control {
            // Two tests share the level: intervals that lie apart, which see at once what is far worse, and the e-process, which
            // sees small differences sooner but learns a block late. Of an interval's part each side takes a half.
            log_e = memory.versus.as_ref().map(SafeTwoByTwo::log_e);
            let apart = if log_e.is_some() { part / 2.0 } else { part };
            let (ours, theirs) =
                (measured(memory.candidate, apart / 2.0), measured(memory.control, apart / 2.0));
            let is_worse = log_e.is_some_and(|log_e| rejects(log_e, part / 2.0));
            verdicts.push(if is_worse {
                GateVerdict::Failed
            } else {
                self.versus(ours, theirs, margin, enough)
            });
            let word = if self.worse == Worse::Higher { "more" } else { "less" };
            let rate = theirs.estimate.map_or("nothing".to_owned(), percent);
            said.push(format!(
                "expected at most {} {word} than the control's {rate} of {} requests",
                percent(margin),
                theirs.samples
            ));
            control = Some(theirs);
        }
        let verdict = worst(&verdicts);
        let rate = candidate.estimate.map_or("nothing".to_owned(), percent);
        let mut sentence =
            format!("{} is {rate} of {} requests; {}", gate.name(), candidate.samples, said.join(", and "));
        if let Some(log_e) = log_e {
            sentence.push_str(&format!(
                "; evidence against it {:.1}, {:.1} would do",
                log_e.exp(),
                1.0 / part
            ));
        }
        Judged { control, log_e, ..judged(gate, verdict, candidate, alpha, sentence) }
    }

    fn verdict(&self, rate: Measured, bound: f64, enough: bool) -> GateVerdict {
        let (Some(low), Some(high), Some(estimate)) = (rate.low, rate.high, rate.estimate) else {
            return GateVerdict::Pending;
        };
        match self.worse {
            Worse::Higher => decide(low > bound, high <= bound, estimate <= bound, enough, self.proof),
            Worse::Lower => decide(high < bound, low >= bound, estimate >= bound, enough, self.proof),
        }
    }

    fn versus(&self, ours: Measured, theirs: Measured, margin: f64, enough: bool) -> GateVerdict {
        let sign = if self.worse == Worse::Higher { 1.0 } else { -1.0 };
        let difference = |ours: Option<f64>, theirs: Option<f64>| Some(sign * (ours? - theirs?));
        let (least, most) = match self.worse {
            Worse::Higher => (difference(ours.low, theirs.high), difference(ours.high, theirs.low)),
            Worse::Lower => (difference(ours.high, theirs.low), difference(ours.low, theirs.high)),
        };
        let (Some(least), Some(most), Some(estimate)) =
            (least, most, difference(ours.estimate, theirs.estimate))
        else {
            return GateVerdict::Pending;
        };
        // With no margin at all every estimate that is a hair worse would keep the gate from passing; there the e-process decides.
        let within = if margin == 0.0 { true } else { estimate <= margin };
        decide(least > margin, most <= margin, within, enough, self.proof)
    }
}

/// A gate about a quantile of latency.
struct Latency {
    quantile: f64,
    max: Option<f64>,
    vs_control: Option<f64>,
    proof: bool,
}

impl Latency {
    fn judge(&self, gate: &Gate, evidence: &Evidence, enough: bool, alpha: f64, looks: usize) -> Judged {
        let Gate::Latency { max_ms, vs_control, .. } = gate else {
            return judged(gate, GateVerdict::NotAsked, Measured::default(), alpha, String::new());
        };
        let questions = usize::from(max_ms.is_some()) + usize::from(vs_control.is_some());
        let part = alpha / (questions.max(1) * looks.max(1)) as f64;
        let quantile = |sketch: &Option<LogSketch>, alpha: f64| {
            sketch
                .as_ref()
                .map_or(Measured::default(), |sketch| measured_quantile(sketch, self.quantile, alpha))
        };
        let candidate = quantile(&evidence.candidate_latency, part);
        if self.max.is_none() && self.vs_control.is_none() {
            let sentence = format!("{}: the control answers nothing any more", gate.name());
            return judged(gate, GateVerdict::NotAsked, candidate, alpha, sentence);
        }
        let milliseconds = |seconds: f64| format!("{:.2} ms", 1e3 * seconds);
        let mut verdicts = Vec::new();
        let mut said = Vec::new();
        if let Some(max) = self.max {
            let beyond = candidate.low.is_some_and(|low| low > max);
            let proven = candidate.high.is_some_and(|high| high <= max);
            let within = candidate.estimate.is_some_and(|estimate| estimate <= max);
            verdicts.push(decide(beyond, proven, within, enough, self.proof));
            said.push(format!("expected at most {}", milliseconds(max)));
        }
        let mut control = None;
        if let Some(ratio) = self.vs_control {
            let ours = quantile(&evidence.candidate_latency, part / 2.0);
            let theirs = quantile(&evidence.control_latency, part / 2.0);
            let compare = |ours: Option<f64>, theirs: Option<f64>, holds: fn(f64, f64) -> bool| {
                ours.zip(theirs).is_some_and(|(ours, theirs)| holds(ours, ratio * theirs))
            };
            let beyond = compare(ours.low, theirs.high, |ours, most| ours > most);
            let proven = compare(ours.high, theirs.low, |ours, most| ours <= most);
            let within = compare(ours.estimate, theirs.estimate, |ours, most| ours <= most);
            verdicts.push(decide(beyond, proven, within, enough, self.proof));
            said.push(format!(
                "expected at most {ratio} times the control's {} of {} requests",
                theirs.estimate.map_or("nothing".to_owned(), milliseconds),
                theirs.samples
            ));
            control = Some(theirs);
        }
        let sentence = format!(
            "{} is {} of {} requests; {}",
            gate.name(),
            candidate.estimate.map_or("nothing".to_owned(), milliseconds),
            candidate.samples,
            said.join(", and ")
        );
        Judged { control, ..judged(gate, worst(&verdicts), candidate, alpha, sentence) }
    }
}

fn decide(beyond: bool, proven: bool, within: bool, enough: bool, proof: bool) -> GateVerdict {
    match (beyond, proof) {
        (true, _) => GateVerdict::Failed,
        (false, true) if proven && enough => GateVerdict::Passed,
        (false, false) if within && enough => GateVerdict::Passed,
        _ => GateVerdict::Pending,
    }
}

fn worst(verdicts: &[GateVerdict]) -> GateVerdict {
    if verdicts.contains(&GateVerdict::Failed) {
        GateVerdict::Failed
    } else if verdicts.iter().all(|verdict| *verdict == GateVerdict::Passed) {
        GateVerdict::Passed
    } else {
        GateVerdict::Pending
    }
}

fn measured(trials: Trials, alpha: f64) -> Measured {
    let interval = BetaBinomial::new(0.5, 0.5).and_then(|mut rate| {
        rate.update(trials.events, trials.trials - trials.events);
        rate.interval(alpha)
    });
    let interval = interval.ok().filter(|_| trials.trials > 0);
    Measured {
        samples: trials.trials,
        estimate: (trials.trials > 0).then(|| trials.rate()),
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high),
    }
}

fn measured_quantile(sketch: &LogSketch, quantile: f64, alpha: f64) -> Measured {
    let interval: Option<Interval> = sketch.quantile_interval(quantile, alpha, TUNED_FOR).ok();
    Measured {
        samples: sketch.count(),
        estimate: sketch.quantile(quantile).ok().flatten(),
        low: interval.map(|interval| interval.low),
        high: interval.map(|interval| interval.high).filter(|high| high.is_finite()),
    }
}

fn add(sum: &mut Trials, more: Trials) {
    sum.events = sum.events.saturating_add(more.events);
    sum.trials = sum.trials.saturating_add(more.trials);
}
