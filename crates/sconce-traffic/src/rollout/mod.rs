//! A candidate takes over a model's traffic, stage by stage, while the evidence holds.
//!
//! A [`Plan`] is what people declare. A [`Rollout`] is a plan and its state, plain data that is stored as a whole: [`Rollout::step`]
//! looks at the evidence and says what to do. Whoever runs it stores the rollout first and acts then; after a crash
//! [`Rollout::wanted`] says what should be, so acting again changes nothing. Time is in milliseconds since 1970.
//!
//! Gates are judged by e-processes and confidence sequences: they may be looked at as often as one likes, and a candidate that is
//! no worse than the control is rolled back with at most the declared rate. Evidence about latency starts anew with each stage
//! (and with a restart of the server, which the rate does not account for).

mod gates;
mod plan;

pub use gates::{Counts, Evidence, Fact, GateVerdict, Judged, Measured};
pub use plan::{
    ACCURACY, BlueGreen, Gate, MAX_FACT_NAME_BYTES, MAX_GATES, MAX_QUERY_BYTES, MAX_SECONDS, MAX_STAGES,
    OnFailure, OnInconclusive, Plan, SHADOW_DISAGREEMENT, Stage, Strategy,
};

use crate::Problems;
use gates::{At, Memory, judge};
use sconce_core::ErrorCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Events that a rollout remembers; the oldest are forgotten.
pub const MAX_EVENTS: usize = 100;
/// Of these, the last ones keep their evidence.
const EVENTS_WITH_EVIDENCE: usize = 8;
/// Bytes of who did something and why.
const MAX_TEXT_BYTES: usize = 1_024;

/// A rollout: its plan, and how far it is. At most about half a MiB as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    plan: Plan,
    started_ms: u64,
    /// The stage it is at, from 0.
    stage: usize,
    stage_since_ms: u64,
    /// What the candidate should have now.
    percent: f64,
    mirror: bool,
    /// Somebody must approve before `stage` begins; until then the share is that of the stage before.
    awaits_approval: bool,
    paused: Option<Paused>,
    end: Option<Ended>,
    /// What the candidate answered, or saw, in this stage.
    samples: u64,
    epoch: Option<u64>,
    seen_control: Counts,
    seen_candidate: Counts,
    memories: Vec<Memory>,
    judged: Vec<Judged>,
    events: Vec<Event>,
}

/// That shares stay as they are until somebody decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Paused {
    since_ms: u64,
    why: Why,
}

/// Why a rollout is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Somebody asked for it.
    Operator,
    /// A gate is broken.
    BrokenGate,
    /// A stage stayed undecided for its longest time.
    Inconclusive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    at_ms: u64,
    how: End,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The candidate has all traffic and the alias.
    Promoted,
    /// The control has all traffic, because the plan said so.
    RolledBack,
    /// The control has all traffic, because somebody said so.
    Aborted,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// At a stage.
    Running,
    /// Before a stage that somebody must approve.
    AwaitingApproval,
    /// Until somebody decides.
    Paused(Why),
    /// Over.
    Ended(End),
}

/// What should be now. Making it so twice changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// The candidate has this share, and is a shadow beside if it mirrors.
    Share {
        /// 0 to 100.
        percent: f64,
        /// Whether it is a shadow.
        mirror: bool,
    },
    /// The alias means the candidate, and the rollout's split and shadow are gone.
    Promoted,
    /// The rollout's split and shadow are gone.
    RolledBack,
}

/// What to do, after the rollout was stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make it so.
    Make(Wanted),
    /// Tell whoever wants to know.
    Announce(Event),
}

/// Something that happened, with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at_ms: u64,
    /// What.
    pub kind: EventKind,
    /// At which stage, from 0.
    pub stage: usize,
    /// Who did it, if somebody did.
    pub by: Option<String>,
    /// All of it for people.
    pub sentence: String,
    /// What was known of each gate. Older events of a rollout lose theirs.
    pub gates: Vec<Judged>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A stage began.
    StageBegan,
    /// A stage waits for approval.
    ApprovalAsked,
    /// Somebody approved.
    Approved,
    /// It was paused.
    Paused,
    /// It goes on.
    Resumed,
    /// The candidate was promoted.
    Promoted,
    /// The candidate was rolled back.
    RolledBack,
    /// Somebody aborted it.
    Aborted,
}

/// Why a rollout does not do what somebody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rollout is {is}: expected one that is {expected}")]
pub struct WrongPhase {
    is: &'static str,
    expected: &'static str,
}

impl WrongPhase {
    /// [`ErrorCode::FailedPrecondition`].
    pub fn code(&self) -> ErrorCode {
        ErrorCode::FailedPrecondition
    }
}

impl Phase {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::AwaitingApproval => "awaiting approval",
            Self::Paused(_) => "paused",
            Self::Ended(End::Promoted) => "promoted",
            Self::Ended(End::RolledBack) => "rolled back",
            Self::Ended(End::Aborted) => "aborted",
        }
    }
}

impl Rollout {
    /// Begins `plan`, and says what to do. `known` as in [`Plan::check`].
    ///
    /// # Errors
    /// Every problem of the plan.
    pub fn start(plan: Plan, known: &BTreeSet<String>, now_ms: u64) -> Result<(Self, Vec<Action>), Problems> {
        plan.check(known)?;
        let memories = plan.gates.iter().map(Memory::new).collect();
        let mut rollout = Self {
            plan,
            started_ms: now_ms,
            stage: 0,
            stage_since_ms: now_ms,
            percent: 0.0,
            mirror: false,
            awaits_approval: false,
            paused: None,
            end: None,
            samples: 0,
            epoch: None,
            seen_control: Counts::default(),
            seen_candidate: Counts::default(),
            memories,
            judged: Vec::new(),
            events: Vec::new(),
        };
        let actions = rollout.come_to(0, now_ms, "the rollout starts");
        Ok((rollout, actions))
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match (self.end, self.paused, self.awaits_approval) {
            (Some(end), _, _) => Phase::Ended(end.how),
            (None, Some(paused), _) => Phase::Paused(paused.why),
            (None, None, true) => Phase::AwaitingApproval,
            (None, None, false) => Phase::Running,
        }
    }

    /// The stage it is at, or that waits for approval, from 0; how many there are; and what the candidate answered or saw in it.
    pub fn progress(&self) -> (usize, usize, u64) {
        (self.stage, self.plan.stages().len(), self.samples)
    }

    /// When it started, when its stage did, and when it ended.
    pub fn times_ms(&self) -> (u64, u64, Option<u64>) {
        (self.started_ms, self.stage_since_ms, self.end.map(|end| end.at_ms))
    }

    /// What was last known of each gate.
    pub fn judged(&self) -> &[Judged] {
        &self.judged
    }

    /// What happened, oldest first.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// What should be now.
    pub fn wanted(&self) -> Wanted {
        match self.end.map(|end| end.how) {
            None => Wanted::Share { percent: self.percent, mirror: self.mirror },
            Some(End::Promoted) => Wanted::Promoted,
            Some(End::RolledBack | End::Aborted) => Wanted::RolledBack,
        }
    }

    /// Looks at the evidence, moves on if it may, and says what to do. One that has ended does nothing.
    pub fn step(&mut self, now_ms: u64, evidence: &Evidence) -> Vec<Action> {
        if self.end.is_some() {
            return Vec::new();
        }
        self.absorb(evidence);
        let stages = self.plan.stages();
        let Some(stage) = stages.get(self.stage) else { return Vec::new() };
        let elapsed_ms = now_ms.saturating_sub(self.stage_since_ms);
        let enough = self.awaits_approval
            || (elapsed_ms >= stage.min_seconds.saturating_mul(1_000) && self.samples >= stage.min_samples);
        self.judge(evidence, enough, stages.len());
        let is = |verdict: GateVerdict| move |judged: &&Judged| judged.verdict == verdict;
        let broken: Vec<&Judged> = self.judged.iter().filter(is(GateVerdict::Failed)).collect();
        if !broken.is_empty() {
            let sentences: Vec<&str> = broken.iter().map(|judged| judged.sentence.as_str()).collect();
            let reason = sentences.join("; ");
            return match (self.plan.on_failure, self.paused.map(|paused| paused.why)) {
                (OnFailure::RollBack, _) => self.finish(End::RolledBack, now_ms, None, &reason),
                (OnFailure::Pause, Some(Why::BrokenGate)) => Vec::new(),
                (OnFailure::Pause, _) => self.stop(Why::BrokenGate, now_ms, None, &reason),
            };
        }
        if self.paused.is_some() || self.awaits_approval {
            return Vec::new();
        }
        if enough && self.judged.iter().find(is(GateVerdict::Pending)).is_none() {
            return self.advance(now_ms, stages.len(), "every gate is passed");
        }
        if elapsed_ms < stage.max_seconds.saturating_mul(1_000) {
            return Vec::new();
        }
        let undecided: Vec<&str> = self
            .judged
            .iter()
            .filter(is(GateVerdict::Pending))
            .map(|judged| judged.sentence.as_str())
            .collect();
        let reason = format!(
            "undecided after {} s, with {} of {} samples: {}",
            elapsed_ms / 1_000,
            self.samples,
            stage.min_samples,
            if undecided.is_empty() { "too few samples".to_owned() } else { undecided.join("; ") }
        );
        match self.plan.on_inconclusive {
            OnInconclusive::Pause => self.stop(Why::Inconclusive, now_ms, None, &reason),
            OnInconclusive::RollBack => self.finish(End::RolledBack, now_ms, None, &reason),
            OnInconclusive::Promote => self.advance(now_ms, stages.len(), &reason),
        }
    }

    /// Leaves shares as they are. Gates are still looked at, and a broken one still rolls back if the plan says so.
    ///
    /// # Errors
    /// It has ended, or is paused already.
    pub fn pause(&mut self, now_ms: u64, by: &str, reason: &str) -> Result<Vec<Action>, WrongPhase> {
        match self.phase() {
            Phase::Running | Phase::AwaitingApproval => {
                Ok(self.stop(Why::Operator, now_ms, Some(by), reason))
            }
            phase => Err(WrongPhase { is: phase.as_str(), expected: "running or awaiting approval" }),
        }
    }

    /// Goes on. The time of the pause does not count. After a broken gate or an undecided stage the evidence is gathered anew, and
    /// the stage's time begins again.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&mut self, now_ms: u64, by: &str, reason: &str) -> Result<Vec<Action>, WrongPhase> {
        let Some(paused) = self.paused.filter(|_| self.end.is_none()) else {
            return Err(WrongPhase { is: self.phase().as_str(), expected: "paused" });
        };
        self.paused = None;
        if paused.why == Why::Operator {
            self.stage_since_ms = self.stage_since_ms.saturating_add(now_ms.saturating_sub(paused.since_ms));
        } else {
            self.stage_since_ms = now_ms;
            self.samples = 0;
            self.memories = self.plan.gates.iter().map(Memory::new).collect();
        }
        let sentence = format!("resumed: {}", short(reason));
        Ok(vec![self.announce(EventKind::Resumed, now_ms, Some(by), sentence)])
    }

    /// Lets the stage begin that waits for it.
    ///
    /// # Errors
    /// None waits.
    pub fn approve(&mut self, now_ms: u64, by: &str, reason: &str) -> Result<Vec<Action>, WrongPhase> {
        if self.phase() != Phase::AwaitingApproval {
            return Err(WrongPhase { is: self.phase().as_str(), expected: "awaiting approval" });
        }
        let sentence = format!("stage {} is approved: {}", self.stage + 1, short(reason));
        let mut actions = vec![self.announce(EventKind::Approved, now_ms, Some(by), sentence)];
        actions.extend(self.begin(now_ms, "it is approved"));
        Ok(actions)
    }

    /// Gives all traffic back to the control.
    ///
    /// # Errors
    /// It has ended.
    pub fn abort(&mut self, now_ms: u64, by: &str, reason: &str) -> Result<Vec<Action>, WrongPhase> {
        match self.phase() {
            phase @ Phase::Ended(_) => {
                Err(WrongPhase { is: phase.as_str(), expected: "running, awaiting approval or paused" })
            }
            _ => Ok(self.finish(End::Aborted, now_ms, Some(by), reason)),
        }
    }

    fn absorb(&mut self, evidence: &Evidence) {
        if self.epoch != Some(evidence.epoch) {
            self.epoch = Some(evidence.epoch);
            self.seen_control = Counts::default();
            self.seen_candidate = Counts::default();
        }
        let control = evidence.control.since(&self.seen_control);
        let candidate = evidence.candidate.since(&self.seen_candidate);
        self.seen_control = evidence.control;
        self.seen_candidate = evidence.candidate;
        for (gate, memory) in self.plan.gates.iter().zip(&mut self.memories) {
            memory.absorb(gate, &control, &candidate);
        }
        let samples = if self.percent > 0.0 { candidate.requests } else { candidate.mirrored };
        self.samples = self.samples.saturating_add(samples);
    }

    fn judge(&mut self, evidence: &Evidence, enough: bool, stages: usize) {
        // What no chance decides needs no part of the rate.
        let by_chance = |gate: &&Gate| !matches!(gate, Gate::Monitor { .. } | Gate::Prometheus { .. });
        let parts = self.plan.gates.iter().filter(by_chance).count().max(1);
        let alpha = self.plan.false_rollback_rate / parts as f64;
        let at = At {
            candidate_answers: self.percent > 0.0,
            control_answers: self.percent < 100.0,
            enough,
            stages,
            alpha,
        };
        let gates = self.plan.gates.iter().zip(&self.memories);
        self.judged = gates.map(|(gate, memory)| judge(gate, memory, evidence, at)).collect();
    }

    fn advance(&mut self, now_ms: u64, stages: usize, reason: &str) -> Vec<Action> {
        let next = self.stage + 1;
        if next < stages {
            self.come_to(next, now_ms, reason)
        } else {
            self.finish(End::Promoted, now_ms, None, reason)
        }
    }

    /// Comes to `stage`: begins it, or asks for approval.
    fn come_to(&mut self, stage: usize, now_ms: u64, reason: &str) -> Vec<Action> {
        self.stage = stage;
        self.stage_since_ms = now_ms;
        self.samples = 0;
        if self.plan.stages().get(stage).is_some_and(|stage| stage.approval) {
            self.awaits_approval = true;
            let sentence = format!("stage {} waits for approval: {reason}", stage + 1);
            return vec![self.announce(EventKind::ApprovalAsked, now_ms, None, sentence)];
        }
        self.begin(now_ms, reason)
    }

    fn begin(&mut self, now_ms: u64, reason: &str) -> Vec<Action> {
        let Some(stage) = self.plan.stages().get(self.stage).cloned() else { return Vec::new() };
        self.awaits_approval = false;
        self.stage_since_ms = now_ms;
        self.samples = 0;
        self.percent = stage.percent;
        self.mirror = stage.mirror;
        let mirrors = if stage.mirror { ", and a mirror of the rest" } else { "" };
        let sentence = format!(
            "stage {} begins: {} % of requests{mirrors} go to {}, because {reason}",
            self.stage + 1,
            stage.percent,
            self.plan.candidate
        );
        vec![Action::Make(self.wanted()), self.announce(EventKind::StageBegan, now_ms, None, sentence)]
    }

    fn stop(&mut self, why: Why, now_ms: u64, by: Option<&str>, reason: &str) -> Vec<Action> {
        let since_ms = self.paused.map_or(now_ms, |paused| paused.since_ms);
        self.paused = Some(Paused { since_ms, why });
        vec![self.announce(EventKind::Paused, now_ms, by, format!("paused: {}", short(reason)))]
    }

    fn finish(&mut self, how: End, now_ms: u64, by: Option<&str>, reason: &str) -> Vec<Action> {
        self.end = Some(Ended { at_ms: now_ms, how });
        self.percent = if how == End::Promoted { 100.0 } else { 0.0 };
        self.mirror = false;
        let (kind, what) = match how {
            End::Promoted => (EventKind::Promoted, "promoted"),
            End::RolledBack => (EventKind::RolledBack, "rolled back"),
            End::Aborted => (EventKind::Aborted, "aborted"),
        };
        let sentence = format!("{} is {what}: {}", self.plan.candidate, short(reason));
        vec![Action::Make(self.wanted()), self.announce(kind, now_ms, by, sentence)]
    }

    /// Remembers an event, and says to tell of it.
    fn announce(&mut self, kind: EventKind, at_ms: u64, by: Option<&str>, sentence: String) -> Action {
        let by = by.map(|by| short(by).to_owned());
        let event = Event { at_ms, kind, stage: self.stage, by, sentence, gates: self.judged.clone() };
        if self.events.len() >= MAX_EVENTS {
            self.events.remove(0);
        }
        self.events.push(event.clone());
        let old = self.events.len().saturating_sub(EVENTS_WITH_EVIDENCE);
        self.events[..old].iter_mut().for_each(|event| event.gates.clear());
        Action::Announce(event)
    }
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests;
