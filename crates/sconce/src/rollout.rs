//! `sconce rollout`: a candidate takes over a model's traffic, stage by stage, while the evidence holds.

use crate::control::Control;
use crate::progress::Live;
use crate::table::{self, plain};
use crate::traffic::read_text;
use crate::{Failure, Outcome, block_on, text};
use sconce_client::control_proto as pb;
use sconce_traffic::rollout::Plan;
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a command that waits for the end exits with when the candidate was not promoted. 1 is a failure of the command, 2 a wrong use.
const ROLLED_BACK: u8 = 3;
const ABORTED: u8 = 4;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Begin to move a model's traffic to a candidate, as a plan says
    Start {
        #[command(flatten)]
        plan: PlanOf,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
        /// Watch it to its end, and exit as `watch` does
        #[arg(long)]
        watch: bool,
    },
    /// Say what is wrong with a plan, or what would begin; nothing is changed
    Check(PlanOf),
    /// Say where a model's rollout stands and what its gates come to
    Status {
        /// The model's name
        model: String,
    },
    /// Watch a rollout to its end; exits with 0 when the candidate was promoted, 3 when it was rolled back, 4 when it was aborted
    Watch {
        /// The model's name
        model: String,
    },
    /// Leave the shares as they are; a broken gate still rolls back, if the plan says so
    Pause(Steer),
    /// Go on with a paused rollout
    Resume(Steer),
    /// Let the stage begin that waits for it
    Approve(Steer),
    /// Give all traffic back to the control, at once
    Abort(Steer),
}

#[derive(Debug, clap::Args)]
struct PlanOf {
    /// The model's name
    model: String,
    /// The plan, TOML or JSON; - is the standard input
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Steer {
    /// The model's name
    model: String,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

impl Steer {
    fn request(self) -> pb::SteerRolloutRequest {
        pb::SteerRolloutRequest { model: self.model, reason: self.reason }
    }
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(self::command(&control, command))?;
    done.map_err(|error| control.explain(error))
}

async fn command(control: &Control, command: Command) -> Outcome {
    // Read before the server is asked: a bad file changes nothing.
    let rollout = match command {
        Command::Start { plan, reason, watch } => {
            let request = request(plan, reason, false)?;
            let rollout = control.traffic().await?.start_rollout(request).await?;
            if watch {
                return self::watch(control, rollout.model).await;
            }
            rollout
        }
        Command::Check(plan) => {
            control.traffic().await?.start_rollout(request(plan, String::new(), true)?).await?
        }
        Command::Status { model } => {
            control.traffic().await?.get_rollout(pb::GetRolloutRequest { model }).await?
        }
        Command::Watch { model } => return watch(control, model).await,
        Command::Pause(steer) => control.traffic().await?.pause_rollout(steer.request()).await?,
        Command::Resume(steer) => control.traffic().await?.resume_rollout(steer.request()).await?,
        Command::Approve(steer) => control.traffic().await?.approve_rollout(steer.request()).await?,
        Command::Abort(steer) => control.traffic().await?.abort_rollout(steer.request()).await?,
    };
    let document = document(&rollout)?;
    if !control.print_json(|| document)? {
        say!("{}", view(&rollout))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(plan: PlanOf, reason: String, dry_run: bool) -> Result<pb::StartRolloutRequest, Failure> {
    let declared = read(&plan.plan)?;
    let plan_json = serde_json::to_string(&declared)?;
    Ok(pb::StartRolloutRequest { model: plan.model, plan_json, reason, dry_run })
}

/// A plan as a file declares it: JSON if it begins so, else TOML.
fn read(path: &Path) -> Result<Plan, Failure> {
    let text = read_text(path)?;
    let plan = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(Failure::from),
        false => toml::from_str(&text).map_err(Failure::from),
    };
    plan.map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Tells of a rollout as it goes. On a terminal one view is drawn over the one before; elsewhere each event is a line, or as JSON each
/// change.
async fn watch(control: &Control, model: String) -> Outcome {
    let mut watched = control.traffic().await?.watch_rollout(pb::GetRolloutRequest { model }).await?;
    let is_terminal = std::io::stdout().is_terminal();
    let (mut live, mut told, mut state) = (Live::default(), None, pb::RolloutState::Unspecified);
    while let Some(rollout) = watched.next().await? {
        state = rollout.state();
        if control.json {
            say!("{}", document(&rollout)?)?;
        } else if is_terminal {
            say!("{}", live.frame(&view(&rollout)))?;
        } else {
            // Of a long one the oldest are forgotten.
            let lines: Vec<String> = rollout.events.iter().map(line).collect();
            let from = lines.iter().rposition(|line| Some(line) == told.as_ref()).map_or(0, |at| at + 1);
            for line in &lines[from..] {
                say!("{line}")?;
            }
            told = lines.last().cloned();
        }
    }
    match state {
        pb::RolloutState::Promoted => Ok(ExitCode::SUCCESS),
        pb::RolloutState::RolledBack => Ok(ROLLED_BACK.into()),
        pb::RolloutState::Aborted => Ok(ABORTED.into()),
        _ => Err("the server stopped before the rollout ended: it goes on when the server is back".into()),
    }
}

fn line(event: &pb::RolloutEvent) -> String {
    let by = if event.by.is_empty() { String::new() } else { format!(" (by {})", event.by) };
    plain(&format!("{} {}{by}", text::time(event.at_ms), event.sentence))
}

/// A rollout for people.
fn view(rollout: &pb::Rollout) -> String {
    let state = state(rollout.state());
    let why = match rollout.paused_because.as_str() {
        "broken_gate" => ": a gate is broken",
        "inconclusive" => ": a stage stayed undecided",
        "operator" => ": somebody asked for it",
        _ => "",
    };
    let mut view = format!(
        "{}: version {} ({}) beside version {} ({}): {}{why}\n",
        rollout.model,
        rollout.candidate_version,
        rollout.candidate_variant,
        rollout.control_version,
        rollout.control_variant,
        state.replace('_', " "),
    );
    let mirror = if rollout.mirror { ", and sees the rest" } else { "" };
    view += &format!(
        "  stage {} of {}: {} % of requests{mirror}; {} of {} samples\n",
        rollout.stage, rollout.stages, rollout.percent, rollout.samples, rollout.min_samples
    );
    if !rollout.problem.is_empty() {
        view += &format!("  it cannot go on: {}\n", plain(&rollout.problem));
    }
    if !rollout.gates.is_empty() {
        let row = |gate: &pb::RolloutGate| {
            let mut of = gate.sentence.strip_prefix(gate.gate.as_str()).unwrap_or(&gate.sentence);
            of = of.trim_start_matches([':', ' ']);
            vec![gate.gate.clone(), gate.verdict.replace('_', " "), of.to_owned()]
        };
        let rows: Vec<_> = rollout.gates.iter().map(row).collect();
        view += &table::render(&["gate", "verdict", "evidence"], &rows);
    }
    if let Some(event) = rollout.events.last() {
        view += &format!("  {}\n", line(event));
    }
    view.trim_end().to_owned()
}

fn state(state: pb::RolloutState) -> &'static str {
    match state {
        pb::RolloutState::Running => "running",
        pb::RolloutState::AwaitingApproval => "awaiting_approval",
        pb::RolloutState::Paused => "paused",
        pb::RolloutState::Promoted => "promoted",
        pb::RolloutState::RolledBack => "rolled_back",
        pb::RolloutState::Aborted => "aborted",
        pb::RolloutState::Unspecified => "unknown",
    }
}

/// A rollout for machines.
fn document(rollout: &pb::Rollout) -> Result<Value, Failure> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let time = |ms: u64| (ms > 0).then_some(ms);
    let plan: Value = serde_json::from_str(&rollout.plan_json)?;
    Ok(json!({
        "model": rollout.model,
        "revision": time(rollout.revision),
        "state": state(rollout.state()),
        "paused_because": some(&rollout.paused_because),
        "problem": some(&rollout.problem),
        "candidate": { "version": rollout.candidate_version, "variant": rollout.candidate_variant },
        "control": { "version": rollout.control_version, "variant": rollout.control_variant },
        "stage": rollout.stage,
        "stages": rollout.stages,
        "percent": rollout.percent,
        "mirror": rollout.mirror,
        "samples": rollout.samples,
        "min_samples": rollout.min_samples,
        "started_ms": rollout.started_ms,
        "stage_since_ms": rollout.stage_since_ms,
        "ended_ms": time(rollout.ended_ms),
        "gates": rollout.gates.iter().map(gate).collect::<Vec<_>>(),
        "events": rollout.events.iter().map(event).collect::<Vec<_>>(),
        "plan": plan,
    }))
}

fn gate(gate: &pb::RolloutGate) -> Value {
    json!({
        "gate": gate.gate,
        "verdict": gate.verdict,
        "candidate": gate.candidate.as_ref().map(measured),
        "control": gate.control.as_ref().map(measured),
        "log_e": gate.log_e,
        "sentence": gate.sentence,
    })
}

fn measured(it: &pb::Measured) -> Value {
    json!({ "samples": it.samples, "estimate": it.estimate, "low": it.low, "high": it.high })
}

fn event(event: &pb::RolloutEvent) -> Value {
    json!({
        "at_ms": event.at_ms,
        "kind": event.kind,
        "stage": event.stage,
        "by": (!event.by.is_empty()).then_some(&event.by),
        "sentence": event.sentence,
        "gates": event.gates.iter().map(gate).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_told_to_people_without_repeating_itself() {
        let gate = pb::RolloutGate {
            gate: "error_rate".to_owned(),
            verdict: "not_asked".to_owned(),
            sentence: "error_rate: the candidate answers nothing yet".to_owned(),
            ..Default::default()
        };
        let event = pb::RolloutEvent {
            at_ms: 1_000,
            by: "ann".to_owned(),
            sentence: "paused:\u{7} wait".to_owned(),
            ..Default::default()
        };
        let mut rollout = pb::Rollout {
            model: "m".to_owned(),
            paused_because: "operator".to_owned(),
            candidate_version: 2,
            candidate_variant: "v2".to_owned(),
            control_version: 1,
            control_variant: "control".to_owned(),
            stage: 1,
            stages: 3,
            mirror: true,
            samples: 7,
            min_samples: 50,
            gates: vec![gate],
            events: vec![event],
            plan_json: "{}".to_owned(),
            ..Default::default()
        };
        rollout.set_state(pb::RolloutState::Paused);
        let expected = "\
m: version 2 (v2) beside version 1 (control): paused: somebody asked for it
  stage 1 of 3: 0 % of requests, and sees the rest; 7 of 50 samples
  gate        verdict    evidence
  error_rate  not asked  the candidate answers nothing yet
  1970-01-01 00:00:01 paused:\u{fffd} wait (by ann)";
        assert_eq!(view(&rollout), expected);
        let document = document(&rollout).unwrap();
        assert_eq!((&document["state"], &document["ended_ms"]), (&json!("paused"), &Value::Null));
    }
}
