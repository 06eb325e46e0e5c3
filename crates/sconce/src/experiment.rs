//! `sconce experiment`: does a variant do better by what its users do afterwards?

use crate::control::Control;
use crate::table::plain;
use crate::{Failure, Outcome, block_on, table, text};
use sconce_client::control_proto as pb;
use sconce_traffic::experiment::{Comparison, ExperimentReport, ExperimentSpec};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start an experiment on the variants of a model's route
    Start {
        /// The model's name
        model: String,
        /// Arms, metrics and design: TOML, or JSON
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
    },
    /// Say in a sentence how it stands
    Status {
        /// The model's name
        model: String,
    },
    /// Say what came of it so far, by metric
    Report {
        /// The model's name
        model: String,
    },
    /// Stop it: what comes later does not count
    Stop {
        /// The model's name
        model: String,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
    },
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(async {
        match command {
            Command::Start { model, file, reason } => start(&control, model, &file, reason).await,
            Command::Status { model } => tell(&control, &get(&control, model).await?, false),
            Command::Report { model } => tell(&control, &get(&control, model).await?, true),
            Command::Stop { model, reason } => {
                let request = pb::StopExperimentRequest { model, reason };
                let stopped = control.traffic().await?.stop_experiment(request).await?;
                tell(&control, &stopped, false)
            }
        }
    })?;
    done.map_err(|error| control.explain(error))
}

async fn start(control: &Control, model: String, file: &Path, reason: String) -> Outcome {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(cannot)?;
    let spec: Result<ExperimentSpec, String> = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(|error| error.to_string()),
        false => toml::from_str(&text).map_err(|error| error.to_string()),
    };
    let spec = spec.map_err(|error| format!("{}: {error}", file.display()))?;
    let request = pb::StartExperimentRequest { model, spec_json: serde_json::to_string(&spec)?, reason };
    let started = control.traffic().await?.start_experiment(request).await?;
    tell(control, &started, false)
}

async fn get(control: &Control, model: String) -> Result<pb::Experiment, Failure> {
    Ok(control.traffic().await?.get_experiment(pb::GetExperimentRequest { model }).await?)
}

fn tell(control: &Control, experiment: &pb::Experiment, whole: bool) -> Outcome {
    let spec: ExperimentSpec = serde_json::from_str(&experiment.spec_json)?;
    let report: ExperimentReport = serde_json::from_str(&experiment.report_json)?;
    let document = || {
        let raw = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        json!({
            "model": experiment.model,
            "revision": experiment.revision,
            "running": experiment.running,
            "started_ms": experiment.started_ms,
            "stopped_ms": (experiment.stopped_ms != 0).then_some(experiment.stopped_ms),
            "moved_units": experiment.moved_units,
            "incomplete": experiment.incomplete,
            "stopped_because": (!experiment.stopped_because.is_empty()).then_some(&experiment.stopped_because),
            "moves": experiment.moves.iter().map(moved).collect::<Vec<_>>(),
            "spec": raw(&experiment.spec_json),
            "report": raw(&experiment.report_json),
        })
    };
    if control.print_json(document)? {
        return Ok(ExitCode::SUCCESS);
    }
    let state = if experiment.running {
        format!("runs since {}", text::time(experiment.started_ms))
    } else {
        format!("{} to {}", text::time(experiment.started_ms), text::time(experiment.stopped_ms))
    };
    say!("{}: {state} (UTC): {}", experiment.model, plain(&report.sentence))?;
    let arms: Vec<_> =
        spec.arms.iter().zip(&report.units).map(|(arm, units)| format!("{} {units}", arm.variant)).collect();
    say!("  units: {}", arms.join(", "))?;
    if !experiment.stopped_because.is_empty() {
        say!("  stopped by itself: {}", plain(&experiment.stopped_because))?;
    }
    if let Some(last) = experiment.moves.last() {
        let shares = spec.arms.iter().zip(&last.percents);
        let shares: Vec<_> = shares.map(|(arm, percent)| format!("{} {percent} %", arm.variant)).collect();
        say!("  shares since {}: {}", text::time(last.at_ms), shares.join(", "))?;
    }
    if experiment.moved_units > 0 {
        let moved = text::count(experiment.moved_units, "unit");
        say!("  {moved} came to another variant later and count for the first")?;
    }
    if experiment.incomplete {
        say!("  not all exposures are there any more: see sconce_journal_removed_total")?;
    }
    if whole && !(report.goals.is_empty() && report.guardrails.is_empty()) {
        let goals = report.goals.iter().map(|goal| row("goal", goal));
        let rows: Vec<_> = goals.chain(report.guardrails.iter().map(|it| row("guardrail", it))).collect();
        let header = ["", "metric", "variant", "difference", "from", "to", "relative", "p", "outcome"];
        say!("{}", table::render(&header, &rows).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn moved(moved: &pb::SharesMoved) -> Value {
    json!({ "at_ms": moved.at_ms, "percents": moved.percents })
}

fn row(what: &str, comparison: &Comparison) -> Vec<String> {
    let number = |number: Option<f64>| number.map_or("–".to_owned(), |number| format!("{number:.4}"));
    let outcome = serde_json::to_value(comparison.outcome).ok();
    let outcome = outcome.as_ref().and_then(Value::as_str).unwrap_or_default().replace('_', " ");
    vec![
        what.to_owned(),
        comparison.metric.clone(),
        comparison.variant.clone(),
        number(comparison.difference),
        number(comparison.interval.map(|interval| interval.low)),
        number(comparison.interval.map(|interval| interval.high)),
        comparison.relative.map_or("–".to_owned(), |it| format!("{:+.1} %", it * 100.0)),
        number(comparison.p_value),
        outcome,
    ]
}
