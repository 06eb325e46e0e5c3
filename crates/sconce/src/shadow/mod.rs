//! `sconce shadow`: a candidate sees the requests of a model and answers none of them.

mod page;

use crate::control::Control;
use crate::progress::Live;
use crate::traffic::{find, spec};
use crate::{Failure, Outcome, block_on, report};
use sconce_client::control_proto as pb;
use sconce_traffic::route::{RouteSpec, ShadowSpec};
use serde_json::{Value, json};
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The label of what answers where there was no route.
const PRIMARY: &str = "primary";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Let a version see a model's requests after they were answered
    Start(Start),
    /// Say how a model's shadows compare with what answers
    Report(Report),
    /// End a model's shadows, or one of them; what they have shown is forgotten
    Stop {
        /// The model's name
        model: String,
        /// Its label; all shadows when not given
        variant: Option<String>,
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        /// Why, for the audit trail
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct Start {
    /// The model's name
    model: String,
    /// What sees the requests: a version's number or an alias
    #[arg(long, value_name = "VERSION|ALIAS")]
    candidate: String,
    /// Its label [default: what --candidate says]
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// The share of requests that it sees, 0 to 1
    #[arg(long, value_name = "SHARE")]
    sample: Option<f64>,
    /// Requests that it works on at once
    #[arg(long, value_name = "N")]
    max_concurrency: Option<u32>,
    /// How long its batches may take: by so much it can delay others
    #[arg(long, value_name = "MS")]
    max_batch_ms: Option<u32>,
    /// The part of its device's time that it may use, above 0 to 1
    #[arg(long, value_name = "SHARE")]
    share: Option<f64>,
    /// Why, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct Report {
    /// The model's name
    model: String,
    /// Its label; all shadows when not given
    variant: Option<String>,
    /// Write Markdown
    #[arg(long, conflicts_with_all = ["html", "watch"])]
    md: bool,
    /// Write a page to this file, with plots and without anything that is fetched
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    html: Option<PathBuf>,
    /// Again and again, until interrupted or the last shadow ended
    #[arg(long)]
    watch: bool,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = block_on(async {
        match command {
            Command::Start(start) => self::start(&control, start).await,
            Command::Report(report) => self::report(&control, report).await,
            Command::Stop { model, variant, reason } => stop(&control, model, variant, reason).await,
        }
    })?;
    done.map_err(|error| control.explain(error))
}

async fn start(control: &Control, start: Start) -> Outcome {
    let label = start.name.unwrap_or_else(|| start.candidate.clone());
    let client = control.traffic().await?;
    let present = find(&client, &start.model).await?;
    let expected_revision = Some(present.as_ref().map_or(0, |route| route.revision));
    let mut route = match present.and_then(|route| route.spec) {
        Some(spec) => spec,
        None => spec::message(&RouteSpec::all_to(PRIMARY, "")),
    };
    route.shadows.retain(|shadow| shadow.variant != label);
    route.shadows.push(pb::Shadow {
        variant: label.clone(),
        target: start.candidate,
        sample: start.sample,
        max_concurrency: start.max_concurrency,
        max_batch_ms: start.max_batch_ms,
        share: start.share,
        id: None,
    });
    let (model, reason) = (start.model, start.reason);
    let request = pb::SetRouteRequest { model, spec: Some(route), reason, expected_revision };
    let route = client.set_route(request).await?;
    let declared = spec::of(route.spec.unwrap_or_default())?;
    let shadow = declared.shadows.iter().find(|shadow| shadow.variant == label);
    let shadow = shadow.ok_or("the server did not keep the shadow")?;
    let document = || json!({ "model": route.model, "revision": route.revision, "shadow": shadow });
    if !control.print_json(document)? {
        say!("{}: {} (target {}) {}", route.model, label, shadow.target, terms(shadow))?;
        say!("`sconce shadow report {}` says what it shows", route.model)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn terms(shadow: &ShadowSpec) -> String {
    format!(
        "sees {} % of the requests, {} at once, in batches of up to {} ms, with up to {} % of the device",
        shadow.sample * 100.0,
        shadow.max_concurrency,
        shadow.max_batch_ms,
        shadow.share * 100.0
    )
}

async fn stop(control: &Control, model: String, variant: Option<String>, reason: String) -> Outcome {
    let client = control.traffic().await?;
    let none = || {
        format!(
            "model `{model}` has no shadow{}",
            variant.as_ref().map_or(String::new(), |it| format!(" {it}"))
        )
    };
    let present = find(&client, &model).await?.ok_or_else(none)?;
    let mut route = present.spec.unwrap_or_default();
    let before = route.shadows.len();
    route.shadows.retain(|shadow| variant.as_ref().is_some_and(|variant| shadow.variant != *variant));
    let ended = before - route.shadows.len();
    if ended == 0 {
        return Err(none().into());
    }
    // What a shadow's start made goes with the last of them.
    let is_bare = route.shadows.is_empty()
        && route.sticky.is_none()
        && route.overrides.is_empty()
        && matches!(&route.splits[..], [only] if only.variant == PRIMARY && only.target.is_empty());
    let expected_revision = Some(present.revision);
    if is_bare {
        let request = pb::ClearRouteRequest { model: model.clone(), reason, expected_revision };
        client.clear_route(request).await?;
    } else {
        let request =
            pb::SetRouteRequest { model: model.clone(), spec: Some(route), reason, expected_revision };
        client.set_route(request).await?;
    }
    if !control.print_json(|| json!({ "model": model, "ended": ended }))? {
        say!("{model}: {} ended", crate::text::count(ended as u64, "shadow"))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn report(control: &Control, args: Report) -> Outcome {
    let client = control.traffic().await?;
    let (model, variant) = (args.model, args.variant.unwrap_or_default());
    if !args.watch {
        let request = pb::ShadowReportRequest { model, variant };
        let answer = client.shadow_report(request).await?;
        return tell(control, &answer, args.md, args.html.as_deref());
    }
    let mut reports = client.watch_shadow(pb::WatchShadowRequest { model, variant, interval_ms: 0 }).await?;
    let (is_terminal, mut live) = (std::io::stdout().is_terminal(), Live::default());
    while let Some(answer) = reports.next().await? {
        if control.json {
            say!("{}", Value::from(answer.shadows.iter().map(document).collect::<Result<Vec<_>, _>>()?))?;
            continue;
        }
        let lines = answer.shadows.iter().map(|shadow| Ok(page::line(shadow, &page::comparison(shadow)?)));
        let view = lines.collect::<Result<Vec<_>, Failure>>()?.join("\n");
        if is_terminal {
            say!("{}", live.frame(&view))?;
        } else {
            say!("{view}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(control: &Control, answer: &pb::ShadowReportResponse, md: bool, html: Option<&Path>) -> Outcome {
    if control.json {
        let documents = answer.shadows.iter().map(document).collect::<Result<Vec<_>, _>>()?;
        say!("{}", serde_json::to_string_pretty(&json!({ "shadows": documents }))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = page::page(&answer.shadows)?;
    match html {
        Some(path) => {
            let cannot = |error| format!("cannot write {}: {error}", path.display());
            fs::write(path, report::html(&page)).map_err(cannot)?;
            say!("wrote {}", path.display())?;
        }
        None if md => say!("{}", report::markdown(&page).trim_end())?,
        None => {
            for shadow in &answer.shadows {
                say!("{}", page::line(shadow, &page::comparison(shadow)?))?;
            }
            say!("--md, --json or --html FILE says all of it")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A shadow's report for machines.
fn document(shadow: &pb::Shadowed) -> Result<Value, Failure> {
    let comparison: Value = match shadow.comparison_json.as_str() {
        "" => Value::Null,
        text => serde_json::from_str(text)?,
    };
    Ok(json!({
        "model": shadow.model,
        "variant": shadow.variant,
        "target": shadow.target,
        "version": (shadow.version != 0).then_some(shadow.version),
        "compared_with": shadow.primaries,
        "since_ms": shadow.since_ms,
        "at_ms": shadow.at_ms,
        "offered": shadow.offered,
        "dropped": shadow.dropped,
        "compared": shadow.compared,
        "identical": shadow.identical,
        "failed": shadow.failed,
        "explanations": shadow.explanations,
        "waiting": shadow.waiting,
        "running": shadow.running,
        "primary_ms": shadow.primary_ms.as_ref().map(times),
        "candidate_ms": shadow.candidate_ms.as_ref().map(times),
        "comparison": comparison,
    }))
}

fn times(times: &pb::Quantiles) -> Value {
    json!({ "p50": times.p50, "p90": times.p90, "p95": times.p95, "p99": times.p99 })
}
