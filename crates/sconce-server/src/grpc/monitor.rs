//! `sconce.v1.Monitor`, on the control listener.

use crate::door::Door;
use crate::grpc::control::{Answer, actor, answer, name, refused};
use crate::models::CHAMPION;
use crate::monitors::{self, Entry, Glance, Settings, Standing, Stored, Watched};
use sconce_core::{Error, ModelName, ModelVersion, Result};
use sconce_monitor::{Budget, Fitted, MonitorSpec, PaneSize};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::monitor_server::Monitor as Service;
use sconce_proto::sconce::monitor_settings::Pane;
use sconce_proto::sconce::set_monitor_request::Reference;
use sconce_registry::{By, limits};
use std::sync::Arc;
use tonic::{Request, Status};

/// Rows that a reference may be learned from.
const LEARN_ROWS: std::ops::RangeInclusive<u64> = 100..=10_000_000;

/// Rows that are taken, where nobody says how many: in an hour more than any verdict needs.
const ROWS_PER_SECOND: f64 = 1000.0;

/// The calls about monitors.
pub(crate) struct Monitors {
    door: Arc<Door>,
}

impl Monitors {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    /// # Errors
    /// `FailedPrecondition` on a server without a registry.
    fn monitors(&self) -> Result<Arc<monitors::Monitors>, Status> {
        self.door.models.registry().map_err(refused)?;
        self.door.monitors.clone().ok_or_else(|| Status::failed_precondition("this server has no monitors"))
    }

    /// The version that `text` means.
    async fn version(&self, name: &ModelName, text: String) -> Result<ModelVersion, Status> {
        let (of, text) = (name.clone(), if text.is_empty() { CHAMPION.to_owned() } else { text });
        self.door.models.read(move |registry| registry.resolve(&of, &text)).await.map_err(refused)
    }

    async fn find(&self, model: &str, version: String) -> Result<Arc<Watched>, Status> {
        let name = name(model)?;
        let version = self.version(&name, version).await?;
        self.monitors()?.get(&name, version).map_err(refused)
    }
}

#[tonic::async_trait]
impl Service for Monitors {
    async fn set_monitor(&self, request: Request<pb::SetMonitorRequest>) -> Answer<pb::Monitored> {
        let actor = actor(&request)?;
        let pb::SetMonitorRequest { model, version, settings, columns, reason, reference } =
            request.into_inner();
        let name = name(&model)?;
        let stored = stored(reference, settings.unwrap_or_default(), columns).map_err(refused)?;
        let version = self.version(&name, version).await?;
        let monitors = self.monitors()?;
        let version = version.to_string();
        let serving = self.door.models.serving(name.as_str(), &version, None);
        let served = serving.await.map_err(refused)?.served;
        let set = self.door.models.read(move |_| Ok(monitors.set(&served, stored, &By::new(actor, reason))));
        let watched = set.await.and_then(|set| set).map_err(refused)?;
        answer(message(&watched, false)?)
    }

    async fn remove_monitor(
        &self,
        request: Request<pb::RemoveMonitorRequest>,
    ) -> Answer<pb::RemoveMonitorResponse> {
        let actor = actor(&request)?;
        let pb::RemoveMonitorRequest { model, version, reason } = request.into_inner();
        let watched = self.find(&model, version).await?;
        let monitors = self.monitors()?;
        let removed = self
            .door
            .models
            .read(move |_| Ok(monitors.remove(&watched.model, watched.version, &By::new(actor, reason))));
        removed.await.and_then(|removed| removed).map_err(refused)?;
        answer(pb::RemoveMonitorResponse {})
    }

    async fn get_monitor(&self, request: Request<pb::GetMonitorRequest>) -> Answer<pb::Monitored> {
        let pb::GetMonitorRequest { model, version } = request.into_inner();
        answer(message(&*self.find(&model, version).await?, true)?)
    }

    async fn list_monitors(
        &self,
        request: Request<pb::ListMonitorsRequest>,
    ) -> Answer<pb::ListMonitorsResponse> {
        let model = request.into_inner().model;
        let all = self.monitors()?.all();
        let wanted = all.iter().filter(|watched| model.is_empty() || watched.model.as_str() == model);
        let monitors = wanted.map(|watched| message(watched, false)).collect::<Result<_, _>>()?;
        answer(pb::ListMonitorsResponse { monitors })
    }

    async fn list_monitor_history(
        &self,
        request: Request<pb::ListMonitorHistoryRequest>,
    ) -> Answer<pb::ListMonitorHistoryResponse> {
        let pb::ListMonitorHistoryRequest { model, version, from_ms, page_size } = request.into_inner();
        let name = name(&model)?;
        // What stood of a version that nobody watches any more is still there.
        let version = self.version(&name, version).await?;
        let monitors = self.monitors()?;
        let limit = match page_size {
            0 => limits::PAGE,
            size => usize::try_from(size).unwrap_or(usize::MAX),
        };
        let read = self.door.models.read(move |_| monitors.history(&name, version, from_ms, limit));
        let entries = read.await.map_err(refused)?.into_iter().map(entry).collect();
        answer(pb::ListMonitorHistoryResponse { entries })
    }
}

/// How a version is to be watched.
///
/// # Errors
/// `InvalidArgument` with what is wrong.
fn stored(
    reference: Option<Reference>,
    settings: pb::MonitorSettings,
    columns: std::collections::BTreeMap<String, String>,
) -> Result<Stored> {
    let (fitted, learn_rows) = match reference {
        None => {
            return Err(Error::invalid(
                "reference: expected a fitted one, or rows to learn it from, got none",
            ));
        }
        Some(Reference::FittedJson(json)) => {
            let fitted: Result<Fitted, _> = serde_json::from_slice(&json);
            (Some(fitted.map_err(|error| Error::invalid(format!("fitted_json: {error}")))?), 0)
        }
        Some(Reference::LearnRows(rows)) if LEARN_ROWS.contains(&rows) => (None, rows),
        Some(Reference::LearnRows(rows)) => {
            let (least, most) = (LEARN_ROWS.start(), LEARN_ROWS.end());
            return Err(Error::invalid(format!("learn_rows: expected {least} to {most}, got {rows}")));
        }
    };
    let defaults = MonitorSpec::default();
    let window = MonitorSpec {
        pane: match settings.pane {
            None => defaults.pane,
            Some(Pane::PaneRows(rows)) => PaneSize::Rows(rows),
            Some(Pane::PaneMs(ms)) => PaneSize::Ms(ms),
        },
        panes: settings.panes.map_or(defaults.panes, |panes| usize::try_from(panes).unwrap_or(usize::MAX)),
        minimum_psi: settings.minimum_psi.unwrap_or(defaults.minimum_psi),
        minimum_share: settings.minimum_share.unwrap_or(defaults.minimum_share),
        max_silence_ms: settings.max_silence_ms,
    };
    let budget = settings
        .false_alarms_per_month
        .map_or_else(Budget::default, |monthly| Budget { false_alarms_per_month: monthly });
    let (sample, rows_per_second) =
        (settings.sample.unwrap_or(1.0), settings.rows_per_second.unwrap_or(ROWS_PER_SECOND));
    let settings = Settings { window, budget, sample, rows_per_second };
    Ok(Stored { settings, columns, fitted, learn_rows })
}

fn message(watched: &Watched, with_verdict: bool) -> Result<pb::Monitored, Status> {
    let Glance { standing, since_ms, rows, share, reference_rows, problem } = watched.glance();
    let unprintable = |error: serde_json::Error| Status::internal(format!("verdict: {error}"));
    let verdict =
        with_verdict.then(|| watched.verdict()).flatten().map(|verdict| serde_json::to_string(&verdict));
    let Settings { window, budget, sample, rows_per_second } = &watched.stored.settings;
    let settings = pb::MonitorSettings {
        pane: Some(match window.pane {
            PaneSize::Rows(rows) => Pane::PaneRows(rows),
            PaneSize::Ms(ms) => Pane::PaneMs(ms),
        }),
        panes: u32::try_from(window.panes).ok(),
        minimum_psi: Some(window.minimum_psi),
        minimum_share: Some(window.minimum_share),
        max_silence_ms: window.max_silence_ms,
        false_alarms_per_month: Some(budget.false_alarms_per_month),
        sample: Some(*sample),
        rows_per_second: Some(*rows_per_second),
    };
    Ok(pb::Monitored {
        model: watched.model.to_string(),
        version: watched.version.get(),
        state: state(standing).into(),
        since_ms,
        rows,
        share,
        reference_rows,
        learn_rows: watched.stored.learn_rows,
        settings: Some(settings),
        verdict_json: verdict.transpose().map_err(unprintable)?.unwrap_or_default(),
        problem: problem.unwrap_or_default(),
    })
}

fn entry(entry: Entry) -> pb::MonitorEntry {
    let Entry { at_ms, standing, rows, features, failed } = entry;
    let feature = |(feature, psi, log_evidence)| pb::DriftedFeature { feature, psi, log_evidence };
    pb::MonitorEntry {
        at_ms,
        state: state(standing).into(),
        rows,
        features: features.into_iter().map(feature).collect(),
        failed_checks: failed,
    }
}

fn state(standing: Standing) -> pb::MonitorState {
    match standing {
        Standing::Learning => pb::MonitorState::Learning,
        Standing::NotEnoughEvidence => pb::MonitorState::NotEnoughEvidence,
        Standing::Stable => pb::MonitorState::Stable,
        Standing::Drifted => pb::MonitorState::Drifted,
    }
}
