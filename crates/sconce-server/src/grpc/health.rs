//! `sconce.v1.Health`, on the control listener.

use crate::door::Door;
use crate::feedback::performance;
use crate::grpc::control::{Answer, answer, name, refused};
use crate::models::{State, UNLOADED};
use crate::monitors::{self, Glance, Watched};
use crate::objectives::{Kept, Objective, Report, SPANS, Severity, Standing};
use sconce_core::{ModelName, ModelVersion, abbreviate};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::HealthStatus;
use sconce_proto::sconce::health_server::Health as Service;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::{Request, Status};

/// The share of a bound from which on somebody should look, as in the Prometheus rules.
const NEAR: f64 = 0.8;
const NEAR_MEMORY: f64 = 0.95;

/// The calls about health.
pub(crate) struct HealthReports {
    door: Arc<Door>,
}

impl HealthReports {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl Service for HealthReports {
    async fn get_health(&self, request: Request<pb::GetHealthRequest>) -> Answer<pb::HealthReport> {
        let model = request.into_inner().model;
        let mut reports = self.door.objectives();
        if !model.is_empty() {
            let model = name(&model)?;
            reports.retain(|report| report.model == model);
            if reports.is_empty() {
                return Err(Status::not_found(format!("unknown model `{}`", abbreviate(model.as_str()))));
            }
        }
        let mut alerts = Vec::new();
        let mut components = components(&self.door, &mut alerts);
        if let Ok(registry) = self.door.models.registry() {
            let generation = registry.generation();
            let unwritable =
                self.door.models.read(|registry| Ok(registry.unwritable())).await.map_err(refused)?;
            components.push(match unwritable {
                None => component("registry", HealthStatus::Healthy, format!("generation {generation}")),
                Some(reason) => {
                    component("registry", HealthStatus::Unhealthy, format!("not writable: {reason}"))
                }
            });
        }
        reports.iter().for_each(|report| alerts.extend(burning(report)));
        if let Some(monitors) = &self.door.monitors {
            let all = monitors.all();
            let drifted = all.iter().filter_map(|watched| drifted(watched));
            let before = alerts.len();
            alerts.extend(drifted);
            let detail =
                format!("{} versions are watched, {} have drifted", all.len(), alerts.len() - before);
            components.push(component("monitors", HealthStatus::Healthy, detail));
        }
        if let Some(performances) = &self.door.performances {
            let all = performances.all();
            let before = alerts.len();
            alerts.extend(all.iter().filter_map(|(name, version, glance)| degraded(name, *version, glance)));
            let detail =
                format!("labels came for {} versions, {} do worse", all.len(), alerts.len() - before);
            components.push(component("performance", HealthStatus::Healthy, detail));
        }
        if !model.is_empty() {
            alerts.retain(|alert| alert.model.is_empty() || alert.model == model);
        }
        alerts.sort_by(|a, b| (&a.severity, &a.name, &a.model).cmp(&(&b.severity, &b.name, &b.model)));
        let of_alert = |alert: &pb::Alert| match alert.severity.as_str() {
            CRITICAL => HealthStatus::Unhealthy,
            _ => HealthStatus::Degraded,
        };
        let of_component = |component: &pb::Component| component.status();
        let of_model = |report: &Report| match report.kept.iter().any(|(kept, _)| !is_kept(kept)) {
            true => HealthStatus::Degraded,
            false => HealthStatus::Healthy,
        };
        let all = components.iter().map(of_component).chain(alerts.iter().map(of_alert));
        let all = all.chain(reports.iter().map(of_model));
        answer(pb::HealthReport {
            status: all.max().unwrap_or(HealthStatus::Healthy).into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.door.started_at.elapsed().as_secs_f64(),
            components,
            models: reports.into_iter().map(model_message).collect(),
            alerts,
        })
    }
}

const WARNING: &str = "warning";
const CRITICAL: &str = "critical";

/// What the parts of the server say; what somebody should look at goes to `alerts`.
fn components(door: &Door, alerts: &mut Vec<pb::Alert>) -> Vec<pb::Component> {
    let mut warn = |name: &str, model: String, summary: String| {
        alerts.push(pb::Alert {
            name: name.to_owned(),
            severity: WARNING.to_owned(),
            model,
            summary,
            since_ms: 0,
        });
    };
    let mut components = vec![match door.readiness() {
        Ok(()) => component("server", HealthStatus::Healthy, "ready".to_owned()),
        Err(reason) => component("server", HealthStatus::Unhealthy, format!("not ready: {reason}")),
    }];

    let (mut ready, mut waiting, mut failed) = (0, 0, 0);
    let (mut answering, mut failing) = (BTreeSet::new(), BTreeSet::new());
    for (name, version, state) in door.models.index() {
        match state {
            State::Ready(_) => {
                ready += 1;
                answering.insert(name);
            }
            State::Unavailable(reason) if reason != UNLOADED => {
                failed += 1;
                failing.insert(name.clone());
                warn(
                    "SconceLoadFailed",
                    name.to_string(),
                    format!("version {version} is not loaded: {reason}"),
                );
            }
            State::OnDemand => {
                waiting += 1;
                answering.insert(name);
            }
            _ => waiting += 1,
        }
    }
    let status = match failing.is_empty() {
        true => HealthStatus::Healthy,
        // Beside a candidate that failed another version answers.
        false if failing.is_subset(&answering) => HealthStatus::Degraded,
        false => HealthStatus::Unhealthy,
    };
    let detail = format!("{ready} versions in memory, {waiting} not, {failed} failed");
    components.push(component("models", status, detail));
    let (mut remotes, mut open) = (0, 0);
    for served in door.models.ready() {
        let (depth, most) = (served.queue_depth(), served.settings.queue_depth);
        if depth as f64 >= NEAR * most as f64 {
            let summary = format!("version {}: {depth} of {most} requests wait", served.version_text);
            warn("SconceQueueSaturated", served.name.to_string(), summary);
        }
        if let Some(remote) = served.remote() {
            remotes += 1;
            open += usize::from(remote.is_open);
        }
    }
    if remotes > 0 {
        let status = if open > 0 { HealthStatus::Degraded } else { HealthStatus::Healthy };
        components.push(component("remotes", status, format!("{open} of {remotes} do not answer")));
    }

    for (device, account) in door.models.memory() {
        let name = format!("memory.{device}");
        let Some(limit) = account.limit else {
            components.push(component(
                &name,
                HealthStatus::Healthy,
                format!("{} bytes, no bound", account.used),
            ));
            continue;
        };
        let detail = format!("{} of {limit} bytes", account.used);
        if account.used as f64 >= NEAR_MEMORY * limit as f64 {
            warn("SconceMemoryBudget", String::new(), format!("{device}: {detail} of models' memory in use"));
        }
        components.push(component(&name, HealthStatus::Healthy, detail));
    }

    let bounds = ["bytes in flight", "connections", "calls"].into_iter().zip(door.bounds());
    let near: Vec<String> = bounds
        .filter(|(_, (used, most))| *used as f64 >= NEAR * *most as f64)
        .map(|(what, (used, most))| format!("{used} of {most} {what}"))
        .collect();
    if near.is_empty() {
        components.push(component("limits", HealthStatus::Healthy, "none near".to_owned()));
    } else {
        warn("SconceNearBound", String::new(), near.join(", "));
        components.push(component("limits", HealthStatus::Degraded, near.join(", ")));
    }
    let traces = door.recorder.sample();
    let detail = format!("{} spans exported, {} dropped", traces.exported, traces.dropped);
    components.push(component("traces", HealthStatus::Healthy, detail));
    components
}

fn component(name: &str, status: HealthStatus, detail: String) -> pb::Component {
    pb::Component { name: name.to_owned(), status: status.into(), detail }
}

/// The alert of a version that sees, or says, something else than its reference.
fn drifted(watched: &Watched) -> Option<pb::Alert> {
    let Glance { standing, since_ms, .. } = watched.glance();
    if standing != monitors::Standing::Drifted {
        return None;
    }
    let verdict = watched.verdict();
    let features: Vec<&str> =
        verdict.iter().flat_map(|verdict| verdict.drifted()).take(5).map(|it| it.feature.as_str()).collect();
    let failed = verdict.as_ref().map_or(0, |verdict| verdict.failed().len());
    let what = if features.is_empty() { "no feature".to_owned() } else { features.join(", ") };
    Some(pb::Alert {
        name: "SconceDrift".to_owned(),
        severity: WARNING.to_owned(),
        model: watched.model.to_string(),
        summary: format!("version {}: {what} drifted, {failed} checks of quality failed", watched.version),
        since_ms: i64::try_from(since_ms).unwrap_or_default(),
    })
}

/// The alert of a version that does worse than it did.
fn degraded(name: &ModelName, version: ModelVersion, glance: &performance::Glance) -> Option<pb::Alert> {
    if glance.state != sconce_monitor::State::Drifted {
        return None;
    }
    let latest = glance.latest.as_ref();
    let figure = |what: &str, of: Option<(f64, Option<f64>)>| {
        let (now, then) = of?;
        Some(format!(
            "{what} {now:.3}{}",
            then.map_or_else(String::new, |then| format!(", it was {then:.3}"))
        ))
    };
    let figure = figure("accuracy", latest.and_then(|it| it.accuracy))
        .or_else(|| figure("mean absolute error", latest.and_then(|it| it.error)));
    let labelled = latest.map_or(0, |it| it.labelled);
    Some(pb::Alert {
        name: "SconceAccuracyDrop".to_owned(),
        severity: WARNING.to_owned(),
        model: name.to_string(),
        summary: format!("version {version}: {}, by {labelled} labels", figure.unwrap_or_default()),
        since_ms: i64::try_from(glance.since_ms).unwrap_or_default(),
    })
}

/// The alerts of a model's objectives.
fn burning(report: &Report) -> Vec<pb::Alert> {
    let of = |(kept, since): &(Kept, Option<SystemTime>)| {
        let Standing::Burning(severity) = kept.standing else { return None };
        let name = match severity {
            Severity::Critical => "SconceSloBurnFast",
            Severity::Warning => "SconceSloBurnSlow",
        };
        let rates: Vec<String> =
            kept.windows.iter().map(|window| format!("{:.1}", window.burn_rate)).collect();
        let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        Some(pb::Alert {
            name: name.to_owned(),
            severity: if severity == Severity::Critical { CRITICAL } else { WARNING }.to_owned(),
            model: report.model.to_string(),
            summary: format!(
                "{} {}: burns at {} times what it may over 5 minutes, an hour, 6 hours, 3 days",
                kept.objective.name(),
                bound(kept),
                rates.join(", ")
            ),
            since_ms: since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0),
        })
    };
    report.kept.iter().filter_map(of).collect()
}

/// Whether an objective is kept over every window that somebody asked in.
fn is_kept(kept: &Kept) -> bool {
    matches!(kept.standing, Standing::NoData | Standing::Met)
}

/// What an objective wants: `≤ 500`.
fn bound(kept: &Kept) -> String {
    let sign = if kept.objective == Objective::Availability { "≥" } else { "≤" };
    format!("{sign} {}", kept.target)
}

fn model_message(report: Report) -> pb::ModelHealth {
    let objective = |(kept, _): (Kept, Option<SystemTime>)| {
        let status = match kept.standing {
            Standing::NoData => pb::SloStatus::NoData,
            Standing::Met => pb::SloStatus::Met,
            Standing::Violated => pb::SloStatus::Violated,
            Standing::Burning(_) => pb::SloStatus::Burning,
        };
        let windows = kept.windows.iter().zip(SPANS).map(|(window, span)| pb::SloWindow {
            seconds: span.as_secs(),
            requests: window.requests,
            value: window.value,
            burn_rate: window.burn_rate,
        });
        pb::SloObjective {
            name: kept.objective.name().to_owned(),
            target: kept.target,
            status: status.into(),
            windows: windows.collect(),
        }
    };
    pb::ModelHealth {
        model: report.model.to_string(),
        objectives: report.kept.into_iter().map(objective).collect(),
    }
}
