//! `sconce health`: how a server is, for people and for scripts.

use crate::control::Control;
use crate::table::{self, plain};
use crate::{Outcome, block_on, text};
use sconce_client::control_proto as pb;
use serde_json::{Value, json};
use std::process::ExitCode;

/// The exit code of a server that somebody should look at in working hours.
const DEGRADED: u8 = 3;
/// The exit code of one that somebody should look at now.
const UNHEALTHY: u8 = 4;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 healthy: no alert, every objective is kept; 1 it could not be asked; 3 degraded: a warning, or an objective that \
                        is not kept over some window; 4 unhealthy: a critical alert, or it does not serve all it should"
)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    /// Only this model's objectives and alerts
    model: Option<String>,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, model } = args;
    let done = block_on(async {
        let report = control.health().await?.health(model.as_deref()).await?;
        if !control.print_json(|| document(&report))? {
            tell(&report)?;
        }
        Ok(ExitCode::from(match report.status() {
            pb::HealthStatus::Healthy => 0,
            pb::HealthStatus::Degraded => DEGRADED,
            pb::HealthStatus::Unhealthy | pb::HealthStatus::Unspecified => UNHEALTHY,
        }))
    })?;
    done.map_err(|error| control.explain(error))
}

fn tell(report: &pb::HealthReport) -> Result<(), crate::Failure> {
    let up = std::time::Duration::from_secs(report.uptime_seconds as u64);
    say!("{}: sconce {}, up {}", status(report.status()), plain(&report.version), span(up.as_secs()))?;
    let rows: Vec<_> = report
        .components
        .iter()
        .map(|one| vec![one.name.clone(), status(one.status()).to_owned(), one.detail.clone()])
        .collect();
    say!("\n{}", table::render(&["part", "status", "detail"], &rows).trim_end())?;
    let asked = report.models.iter().flat_map(|model| model.objectives.iter().map(move |one| (model, one)));
    let rows: Vec<_> = asked
        .filter(|(_, one)| one.status() != pb::SloStatus::NoData)
        .map(|(model, one)| {
            let mut row = vec![model.model.clone(), one.name.clone(), figure(&one.name, Some(one.target))];
            row.push(kept(one.status()).to_owned());
            row.extend(one.windows.iter().map(|window| figure(&one.name, window.value)));
            row.push(
                one.windows
                    .iter()
                    .map(|window| format!("{:.1}", window.burn_rate))
                    .collect::<Vec<_>>()
                    .join(" "),
            );
            row
        })
        .collect();
    if !rows.is_empty() {
        let spans = report.models.iter().flat_map(|model| &model.objectives).map(|one| &one.windows).next();
        let spans: Vec<String> = spans.into_iter().flatten().map(|window| span(window.seconds)).collect();
        let mut header = vec!["model", "objective", "target", "status"];
        header.extend(spans.iter().map(String::as_str));
        header.push("burn rates");
        say!("\n{}", table::render(&header, &rows).trim_end())?;
    }
    let silent = report
        .models
        .iter()
        .filter(|model| model.objectives.iter().all(|one| one.status() == pb::SloStatus::NoData));
    match silent.count() {
        0 => {}
        count => say!("\n{} nobody asked within three days", text::count(count as u64, "model"))?,
    }
    for alert in &report.alerts {
        let model = if alert.model.is_empty() { String::new() } else { format!(" {}", plain(&alert.model)) };
        let since = u64::try_from(alert.since_ms).ok().filter(|ms| *ms > 0);
        let since = since.map_or_else(String::new, |ms| format!(" (since {} UTC)", text::time(ms)));
        say!(
            "\n! {} {}{model}: {}{since}",
            plain(&alert.severity),
            plain(&alert.name),
            plain(&alert.summary)
        )?;
    }
    Ok(())
}

fn status(status: pb::HealthStatus) -> &'static str {
    match status {
        pb::HealthStatus::Healthy => "healthy",
        pb::HealthStatus::Degraded => "degraded",
        pb::HealthStatus::Unhealthy => "unhealthy",
        pb::HealthStatus::Unspecified => "unknown",
    }
}

fn kept(status: pb::SloStatus) -> &'static str {
    match status {
        pb::SloStatus::NoData => "no data",
        pb::SloStatus::Met => "met",
        pb::SloStatus::Violated => "violated",
        pb::SloStatus::Burning => "burning",
        pb::SloStatus::Unspecified => "unknown",
    }
}

/// A value as people read it: `12.5 ms`, `99.95 %`.
fn figure(objective: &str, value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ms) if objective.ends_with("_ms") => format!("{ms:.1} ms"),
        Some(share) => format!("{:.3} %", share * 100.0),
    }
}

/// `5 min`, `3 h`, `2 d`.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn document(report: &pb::HealthReport) -> Value {
    let component = |one: &pb::Component| json!({ "name": one.name, "status": status(one.status()), "detail": one.detail });
    let window = |one: &pb::SloWindow| json!({ "seconds": one.seconds, "requests": one.requests, "value": one.value, "burn_rate": one.burn_rate });
    let objective = |one: &pb::SloObjective| {
        let windows: Vec<Value> = one.windows.iter().map(window).collect();
        json!({ "name": one.name, "target": one.target, "status": kept(one.status()), "windows": windows })
    };
    let model = |one: &pb::ModelHealth| {
        let objectives: Vec<Value> = one.objectives.iter().map(objective).collect();
        json!({ "model": one.model, "objectives": objectives })
    };
    let alert = |one: &pb::Alert| {
        json!({
            "name": one.name, "severity": one.severity, "model": one.model, "summary": one.summary,
            "since_ms": one.since_ms,
        })
    };
    json!({
        "status": status(report.status()),
        "version": report.version,
        "uptime_seconds": report.uptime_seconds,
        "components": report.components.iter().map(component).collect::<Vec<_>>(),
        "models": report.models.iter().map(model).collect::<Vec<_>>(),
        "alerts": report.alerts.iter().map(alert).collect::<Vec<_>>(),
    })
}
