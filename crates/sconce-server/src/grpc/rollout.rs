//! Rollouts as messages.

use crate::rollout::{Seen, verdict_name};
use sconce_core::{Error, Result};
use sconce_proto::sconce as pb;
use sconce_traffic::rollout::{End, Event, Judged, Measured, Phase, Plan, Wanted};
use serde_json::Value;

/// The plan in `json`.
///
/// # Errors
/// `InvalidArgument` when it is none.
pub(super) fn plan(json: &str) -> Result<Plan> {
    serde_json::from_str(json).map_err(|error| Error::invalid(format!("plan: {error}")))
}

pub(super) fn message(seen: &Seen) -> pb::Rollout {
    let stored = &seen.stored;
    let rollout = &stored.rollout;
    let (at, stages, samples) = rollout.progress();
    let declared = rollout.plan().stages();
    let stage = declared.get(at);
    let (percent, mirror) = match rollout.wanted() {
        Wanted::Share { percent, mirror } => (percent, mirror),
        Wanted::Promoted => (100.0, false),
        Wanted::RolledBack => (0.0, false),
    };
    let (started_ms, stage_since_ms, ended_ms) = rollout.times_ms();
    let phase = rollout.phase();
    let paused_because = match phase {
        Phase::Paused(why) => name(why),
        _ => String::new(),
    };
    pb::Rollout {
        model: seen.model.to_string(),
        revision: seen.revision,
        // Numbers and text: there is nothing in it that has no JSON.
        plan_json: serde_json::to_string(rollout.plan()).unwrap_or_default(),
        state: state(phase).into(),
        paused_because,
        problem: seen.problem.clone().unwrap_or_default(),
        candidate_version: stored.candidate.get(),
        control_version: stored.control.get(),
        candidate_variant: stored.candidate_variant.clone(),
        control_variant: stored.control_variant.clone(),
        stage: small(at + 1),
        stages: small(stages),
        percent,
        mirror,
        samples,
        min_samples: stage.map_or(0, |stage| stage.min_samples),
        min_seconds: stage.map_or(0, |stage| stage.min_seconds),
        max_seconds: stage.map_or(0, |stage| stage.max_seconds),
        started_ms,
        stage_since_ms,
        ended_ms: ended_ms.unwrap_or_default(),
        gates: rollout.judged().iter().map(gate).collect(),
        events: rollout.events().iter().map(event).collect(),
    }
}

fn state(phase: Phase) -> pb::RolloutState {
    match phase {
        Phase::Running => pb::RolloutState::Running,
        Phase::AwaitingApproval => pb::RolloutState::AwaitingApproval,
        Phase::Paused(_) => pb::RolloutState::Paused,
        Phase::Ended(End::Promoted) => pb::RolloutState::Promoted,
        Phase::Ended(End::RolledBack) => pb::RolloutState::RolledBack,
        Phase::Ended(End::Aborted) => pb::RolloutState::Aborted,
    }
}

fn gate(judged: &Judged) -> pb::RolloutGate {
    pb::RolloutGate {
        gate: judged.gate.clone(),
        verdict: verdict_name(judged.verdict).to_owned(),
        candidate: Some(measured(&judged.candidate)),
        control: judged.control.as_ref().map(measured),
        log_e: judged.log_e,
        sentence: judged.sentence.clone(),
    }
}

fn measured(it: &Measured) -> pb::Measured {
    pb::Measured { samples: it.samples, estimate: it.estimate, low: it.low, high: it.high }
}

fn event(event: &Event) -> pb::RolloutEvent {
    pb::RolloutEvent {
        at_ms: event.at_ms,
        kind: name(event.kind),
        stage: small(event.stage + 1),
        by: event.by.clone().unwrap_or_default(),
        sentence: event.sentence.clone(),
        gates: event.gates.iter().map(gate).collect(),
    }
}

/// The name of one of several, as it is stored.
fn name(one: impl serde::Serialize) -> String {
    match serde_json::to_value(one) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
