//! `sconce monitor` and `sconce drift report`: what versions of models see and say, held against a reference by a running server.

use crate::control::{Control, pair};
use crate::table::plain;
use crate::{Failure, Outcome, block_on, drift, table, text};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::monitor_settings::Pane;
use sconce_client::control_proto::set_monitor_request::Reference;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Entries of one page of a history.
const PAGE: u32 = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a reference from the data that a model was fitted on; needs no server
    Fit(drift::Fit),
    /// Watch a version of a served model, in the place of what watched it before
    Set(Box<Set>),
    /// Say how a version stands: in its window, against its reference
    Status(Version),
    /// List the versions that are watched
    List {
        /// Only those of this model
        model: Option<String>,
    },
    /// List how a version stood: at each change, and once an hour
    History {
        #[command(flatten)]
        version: Version,
        /// Only the latest: such as 90s, 30m, 12h or 7d
        #[arg(long, value_name = "TIME", value_parser = text::duration)]
        last: Option<Duration>,
    },
    /// Watch a version no more
    Remove {
        #[command(flatten)]
        version: Version,
        /// Why, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct Version {
    /// The model's name
    model: String,
    /// A version's number or an alias
    #[arg(long, value_name = "VERSION", default_value = "champion")]
    version: String,
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    version: Version,
    /// What `sconce monitor fit` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "learn")]
    reference: Option<PathBuf>,
    /// Make the reference from so many rows that come now
    #[arg(long, value_name = "ROWS")]
    learn: Option<u64>,
    /// Where a column of the reference comes from, if it is not named as the model's tensors are: `NAME`, `NAME[3]`, `NAME.mean`, …
    #[arg(long = "column", value_name = "COLUMN=SOURCE", value_parser = pair)]
    columns: Vec<(String, String)>,
    /// What a pane, a part of the window, holds: a time such as 30m or 1h, or a number of rows [default: 1h]
    #[arg(long, value_name = "TIME|ROWS", value_parser = pane)]
    pane: Option<Pane>,
    /// Panes of the window, 1 to 64 [default: 24]
    #[arg(long, value_name = "COUNT")]
    panes: Option<u32>,
    /// The least change of a feature that matters, as a stability index [default: 0.1]
    #[arg(long, value_name = "PSI")]
    min_psi: Option<f64>,
    /// The least share of rows that matters to checks of quality [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    min_share: Option<f64>,
    /// How long no row may come, such as 10m [default: as long as it likes]
    #[arg(long, value_name = "TIME", value_parser = text::duration)]
    max_silence: Option<Duration>,
    /// How many alarms a month may be false [default: 1]
    #[arg(long, value_name = "COUNT")]
    false_alarms: Option<f64>,
    /// The share of requests that is looked at, at most [default: 1]
    #[arg(long, value_name = "SHARE")]
    sample: Option<f64>,
    /// Rows that are taken a second, at most: while more come, fewer requests are looked at [default: 1000]
    #[arg(long, value_name = "ROWS")]
    rows_per_second: Option<f64>,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// `sconce drift report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    #[command(flatten)]
    control: Control,
    #[command(flatten)]
    version: Version,
    #[command(flatten)]
    form: drift::Form,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    if let Command::Fit(fit) = &command {
        return drift::fit(fit);
    }
    let done = block_on(async {
        match command {
            // It is done.
            Command::Fit(_) => Ok(ExitCode::SUCCESS),
            Command::Set(set) => self::set(&control, *set).await,
            Command::Status(version) => tell(&control, &get(&control, version).await?),
            Command::List { model } => list(&control, model).await,
            Command::History { version, last } => history(&control, version, last).await,
            Command::Remove { version: Version { model, version }, reason } => {
                let request = pb::RemoveMonitorRequest { model: model.clone(), version, reason };
                control.monitors().await?.remove_monitor(request).await?;
                if !control.print_json(|| json!({ "model": model, "removed": true }))? {
                    say!("✓ {}: watched no more", plain(&model))?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    })?;
    done.map_err(|error| control.explain(error))
}

pub(crate) fn report(args: Report) -> Outcome {
    let Report { control, version, form } = args;
    let found = block_on(get(&control, version))?.map_err(|error| control.explain(error))?;
    if found.verdict_json.is_empty() {
        return Err(format!("{}: {}", name(&found), standing(&found)).into());
    }
    let verdict = serde_json::from_str(&found.verdict_json)?;
    let reference = format!("the reference of {}", name(&found));
    let comparison = drift::Comparison::new(reference, name(&found), found.reference_rows, verdict);
    drift::tell(&comparison, &form, control.json)
}

async fn set(control: &Control, set: Set) -> Outcome {
    let Set { version: Version { model, version }, columns, reason, .. } = set;
    let reference = match (set.reference, set.learn) {
        (Some(path), _) => {
            let json =
                std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            Some(Reference::FittedJson(json))
        }
        (None, Some(rows)) => Some(Reference::LearnRows(rows)),
        (None, None) => return Err("expected --reference FILE or --learn ROWS".into()),
    };
    let settings = pb::MonitorSettings {
        pane: set.pane,
        panes: set.panes,
        minimum_psi: set.min_psi,
        minimum_share: set.min_share,
        max_silence_ms: set.max_silence.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
        false_alarms_per_month: set.false_alarms,
        sample: set.sample,
        rows_per_second: set.rows_per_second,
    };
    let request = pb::SetMonitorRequest {
        model,
        version,
        settings: Some(settings),
        columns: columns.into_iter().collect(),
        reason,
        reference,
    };
    let watched = control.monitors().await?.set_monitor(request).await?;
    if !control.print_json(|| document(&watched))? {
        say!("✓ {}: {}", name(&watched), standing(&watched))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(control: &Control, version: Version) -> Result<pb::Monitored, Failure> {
    let Version { model, version } = version;
    Ok(control.monitors().await?.get_monitor(pb::GetMonitorRequest { model, version }).await?)
}

fn tell(control: &Control, found: &pb::Monitored) -> Outcome {
    if control.print_json(|| document(found))? {
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: {} since {} (UTC)", name(found), standing(found), text::time(found.since_ms))?;
    if !found.problem.is_empty() {
        say!("  no row is taken: {}", plain(&found.problem))?;
    }
    let (rows, percent) = (text::count(found.rows, "row"), 100.0 * found.share);
    say!(
        "  {rows} taken, of {percent:.0} % of the requests now; the reference has {}",
        found.reference_rows
    )?;
    if !found.verdict_json.is_empty() {
        let verdict: sconce_monitor::Verdict = serde_json::from_str(&found.verdict_json)?;
        let drifted = verdict.drifted();
        for feature in drifted.iter().take(10) {
            say!("  drifted: {} (PSI {:.2})", plain(&feature.feature), feature.psi)?;
        }
        for check in verdict.failed() {
            let feature = check.feature.as_deref().unwrap_or("all rows");
            let (then, now) = (100.0 * check.reference, 100.0 * check.current);
            say!("  {}: {} ({then:.1} % → {now:.1} %)", check.kind.as_str(), plain(feature))?;
        }
        say!("  sconce drift report {} --version {} says all of it", plain(&found.model), found.version)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(control: &Control, model: Option<String>) -> Outcome {
    let request = pb::ListMonitorsRequest { model: model.unwrap_or_default() };
    let all = control.monitors().await?.list_monitors(request).await?;
    if control.print_json(|| all.iter().map(document).collect())? {
        return Ok(ExitCode::SUCCESS);
    }
    let row = |it: &pb::Monitored| {
        vec![
            it.model.clone(),
            it.version.to_string(),
            standing(it),
            text::time(it.since_ms),
            it.rows.to_string(),
            it.problem.clone(),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    say!(
        "{}",
        table::render(&["model", "version", "state", "since (UTC)", "rows", "problem"], &rows).trim_end()
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn history(control: &Control, version: Version, last: Option<Duration>) -> Outcome {
    let Version { model, version } = version;
    let since = last.map_or(0, |last| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.saturating_sub(last).as_millis()).unwrap_or(u64::MAX)
    });
    let client = control.monitors().await?;
    let mut request = pb::ListMonitorHistoryRequest { model, version, from_ms: since, page_size: PAGE };
    let mut entries = Vec::new();
    loop {
        let page = client.history(request.clone()).await?;
        let is_last = page.len() < PAGE as usize;
        entries.extend(page);
        match entries.last() {
            Some(last) if !is_last => request.from_ms = last.at_ms + 1,
            _ => break,
        }
    }
    let features = |it: &pb::MonitorEntry| -> Vec<String> {
        it.features.iter().map(|feature| format!("{} {:.2}", feature.feature, feature.psi)).collect()
    };
    let document = |it: &pb::MonitorEntry| {
        let feature = |feature: &pb::DriftedFeature| json!({ "feature": feature.feature, "psi": feature.psi, "log_evidence": feature.log_evidence });
        json!({
            "at_ms": it.at_ms,
            "state": state(it.state()),
            "rows": it.rows,
            "features": it.features.iter().map(feature).collect::<Vec<_>>(),
            "failed_checks": it.failed_checks,
        })
    };
    if control.print_json(|| entries.iter().map(document).collect())? {
        return Ok(ExitCode::SUCCESS);
    }
    let row = |it: &pb::MonitorEntry| {
        vec![
            text::time(it.at_ms),
            state(it.state()).replace('_', " "),
            it.rows.to_string(),
            features(it).join(", "),
            it.failed_checks.join(", "),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    say!(
        "{}",
        table::render(&["time (UTC)", "state", "rows", "drifted (PSI)", "failed checks"], &rows).trim_end()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn document(it: &pb::Monitored) -> Value {
    json!({
        "model": it.model,
        "version": it.version,
        "state": state(it.state()),
        "since_ms": it.since_ms,
        "rows": it.rows,
        "share": it.share,
        "reference_rows": it.reference_rows,
        "learn_rows": (it.learn_rows > 0).then_some(it.learn_rows),
        "problem": (!it.problem.is_empty()).then_some(&it.problem),
        "verdict": serde_json::from_str::<Value>(&it.verdict_json).unwrap_or_default(),
    })
}

fn name(it: &pb::Monitored) -> String {
    format!("{} version {}", plain(&it.model), it.version)
}

/// In words.
fn standing(it: &pb::Monitored) -> String {
    match it.state() {
        pb::MonitorState::Learning => {
            format!("learns its reference, {} of {} rows", it.reference_rows, it.learn_rows)
        }
        other => state(other).replace('_', " "),
    }
}

fn state(state: pb::MonitorState) -> &'static str {
    match state {
        pb::MonitorState::Learning => "learning",
        pb::MonitorState::NotEnoughEvidence => "not_enough_evidence",
        pb::MonitorState::Stable => "stable",
        pb::MonitorState::Drifted => "drifted",
        pb::MonitorState::Unspecified => "unknown",
    }
}

/// `1h` or `1000`.
fn pane(text: &str) -> Result<Pane, String> {
    if let Ok(rows) = text.parse() {
        return Ok(Pane::PaneRows(rows));
    }
    let time = text::duration(text).map_err(|_| "expected a number of rows, or a number and s, m, h or d")?;
    u64::try_from(time.as_millis()).map(Pane::PaneMs).map_err(|_| "expected a shorter time".to_owned())
}
