//! `sconce.v1.Traffic`, on the control listener.

use crate::door::Door;
use crate::grpc::control::{Answer, Items, actor, answer, items, name, refused};
use crate::grpc::experiments;
use crate::grpc::rollout;
use crate::models::{Models, StoredRoute};
use crate::rollout::Steer;
use crate::shadow::{Lane, Piece};
use crate::traffic::{self, Counts, Times};
use sconce_core::{Error, ModelName, ModelVersion, Result, abbreviate};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::traffic_server::Traffic as Service;
use sconce_registry::By;
use sconce_traffic::route::{
    Key, OverrideSpec, Route, RouteSpec, ShadowSpec, SplitSpec, Sticky, Target, VariantId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tonic::{Request, Status};

/// How often a report is sent to who watches, and how often at most.
const WATCH: Duration = Duration::from_secs(1);
const SHORTEST_WATCH: Duration = Duration::from_millis(100);

/// The calls about traffic.
pub(crate) struct Traffic {
    door: Arc<Door>,
}

impl Traffic {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    fn report(&self, model: &str, variant: &str) -> Result<pb::ShadowReportResponse, Status> {
        self.door.models.registry().map_err(refused)?;
        let none = || {
            let which =
                if variant.is_empty() { String::new() } else { format!(" `{}`", abbreviate(variant)) };
            Status::not_found(format!("model `{}` has no shadow{which}", abbreviate(model)))
        };
        report(&self.door.models, &name(model)?, variant).ok_or_else(none)
    }

    async fn steer(&self, request: Request<pb::SteerRolloutRequest>, steer: Steer) -> Answer<pb::Rollout> {
        let actor = actor(&request)?;
        let pb::SteerRolloutRequest { model, reason } = request.into_inner();
        let (name, by) = (name(&model)?, By::new(actor, reason));
        let seen = self.door.rollouts.steer(&name, steer, by).await.map_err(refused)?;
        answer(rollout::message(&seen))
    }

    /// The route of `name` as it is now.
    async fn route(&self, name: &ModelName) -> Answer<pb::Route> {
        let stored = self.door.models.stored_route(name).await.map_err(refused)?;
        let route = traffic::parse(&stored.document).map_err(refused)?;
        let live = self.door.models.live_route(name.as_str());
        let counts = |id: VariantId| {
            let variant = live.as_ref().and_then(|live| live.variant(id));
            variant.map(|variant| variant.tally.snapshot()).unwrap_or_default()
        };
        let variants = route.spec().splits.iter().map(|split| {
            let counts = split.id.map(counts).unwrap_or_default();
            variant(split, &stored, counts)
        });
        answer(pb::Route {
            model: name.to_string(),
            revision: stored.document.revision,
            variants: variants.collect(),
            spec: Some(spec_message(&route)),
            generation: stored.generation,
        })
    }
}

#[tonic::async_trait]
impl Service for Traffic {
    type WatchShadowStream = Items<pb::ShadowReportResponse>;
    type WatchRolloutStream = Items<pb::Rollout>;

    async fn get_route(&self, request: Request<pb::GetRouteRequest>) -> Answer<pb::Route> {
        self.route(&name(&request.into_inner().model)?).await
    }

    async fn set_route(&self, request: Request<pb::SetRouteRequest>) -> Answer<pb::Route> {
        let actor = actor(&request)?;
        let pb::SetRouteRequest { model, spec, reason, expected_revision } = request.into_inner();
        let name = name(&model)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("spec: expected a route, got none"))?;
        let (spec, by) = (to_spec(spec).map_err(refused)?, By::new(actor, reason));
        let shares: Map<String, Value> =
            spec.splits.iter().map(|split| (split.variant.clone(), split.percent.into())).collect();
        let set = self.door.models.set_route(&name, spec, expected_revision, by.clone()).await;
        let set = set.map_err(refused)?;
        let data = json!({ "shares": shares, "generation": set.generation });
        self.door.webhooks.tell_by_hand("sconce.route.set.v1", &name, None, &by, data);
        self.door.report_health().await;
        self.route(&name).await
    }

    async fn clear_route(&self, request: Request<pb::ClearRouteRequest>) -> Answer<pb::ClearRouteResponse> {
        let actor = actor(&request)?;
        let pb::ClearRouteRequest { model, reason, expected_revision } = request.into_inner();
        let (name, by) = (name(&model)?, By::new(actor, reason));
        let cleared = self.door.models.clear_route(&name, expected_revision, by.clone()).await;
        let cleared = cleared.map_err(refused)?;
        let data = json!({ "generation": cleared.generation });
        self.door.webhooks.tell_by_hand("sconce.route.cleared.v1", &name, None, &by, data);
        answer(pb::ClearRouteResponse { generation: cleared.generation })
    }

    async fn start_experiment(&self, request: Request<pb::StartExperimentRequest>) -> Answer<pb::Experiment> {
        let actor = actor(&request)?;
        experiments::start(&self.door, request.into_inner(), actor).await
    }

    async fn get_experiment(&self, request: Request<pb::GetExperimentRequest>) -> Answer<pb::Experiment> {
        experiments::get(&self.door, &request.into_inner().model).await
    }

    async fn stop_experiment(&self, request: Request<pb::StopExperimentRequest>) -> Answer<pb::Experiment> {
        let actor = actor(&request)?;
        experiments::stop(&self.door, request.into_inner(), actor).await
    }

    async fn shadow_report(
        &self,
        request: Request<pb::ShadowReportRequest>,
    ) -> Answer<pb::ShadowReportResponse> {
        let pb::ShadowReportRequest { model, variant } = request.into_inner();
        answer(self.report(&model, &variant)?)
    }

    async fn watch_shadow(
        &self,
        request: Request<pb::WatchShadowRequest>,
    ) -> Answer<Self::WatchShadowStream> {
        let pb::WatchShadowRequest { model, variant, interval_ms } = request.into_inner();
        let interval = match interval_ms {
            0 => WATCH,
            ms => Duration::from_millis(ms.into()).max(SHORTEST_WATCH),
        };
        // Who watches what is not there is told so at once.
        self.report(&model, &variant)?;
        let (models, name) = (Arc::clone(&self.door.models), name(&model)?);
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.door.draining.clone();
        let watch = async move {
            let mut tick = tokio::time::interval(interval);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = sender.closed() => return,
                }
                let Some(report) = report(&models, &name, &variant) else { return };
                if sender.send(Ok(report)).await.is_err() {
                    return;
                }
            }
        };
        self.door.models.tasks.spawn(async move { stop.run_until_cancelled(watch).await });
        answer(items(receiver))
    }

    async fn start_rollout(&self, request: Request<pb::StartRolloutRequest>) -> Answer<pb::Rollout> {
        let actor = actor(&request)?;
        let pb::StartRolloutRequest { model, plan_json, reason, dry_run } = request.into_inner();
        let (name, plan) = (name(&model)?, rollout::plan(&plan_json).map_err(refused)?);
        let started = self.door.rollouts.start(&name, plan, By::new(actor, reason), dry_run).await;
        self.door.report_health().await;
        let seen = started.map_err(refused)?;
        answer(rollout::message(&seen))
    }

    async fn get_rollout(&self, request: Request<pb::GetRolloutRequest>) -> Answer<pb::Rollout> {
        let name = name(&request.into_inner().model)?;
        let seen = self.door.rollouts.get(&name).await.map_err(refused)?;
        answer(rollout::message(&seen))
    }

    async fn watch_rollout(
        &self,
        request: Request<pb::GetRolloutRequest>,
    ) -> Answer<Self::WatchRolloutStream> {
        let name = name(&request.into_inner().model)?;
        let mut seen = self.door.rollouts.watch(&name).await.map_err(refused)?;
        let (sender, receiver) = mpsc::channel(1);
        let stop = self.door.draining.clone();
        let watch = async move {
            loop {
                tokio::select! {
                    // Whoever ran it is gone.
                    changed = seen.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                let now = Arc::clone(&seen.borrow_and_update());
                if sender.send(Ok(rollout::message(&now))).await.is_err() || now.stored.has_ended() {
                    return;
                }
            }
        };
        self.door.models.tasks.spawn(async move { stop.run_until_cancelled(watch).await });
        answer(items(receiver))
    }

    async fn pause_rollout(&self, request: Request<pb::SteerRolloutRequest>) -> Answer<pb::Rollout> {
        self.steer(request, Steer::Pause).await
    }

    async fn resume_rollout(&self, request: Request<pb::SteerRolloutRequest>) -> Answer<pb::Rollout> {
        self.steer(request, Steer::Resume).await
    }

    async fn approve_rollout(&self, request: Request<pb::SteerRolloutRequest>) -> Answer<pb::Rollout> {
        self.steer(request, Steer::Approve).await
    }

    async fn abort_rollout(&self, request: Request<pb::SteerRolloutRequest>) -> Answer<pb::Rollout> {
        self.steer(request, Steer::Abort).await
    }
}

/// What the shadows of a route have shown; `None` where there is none that is asked for.
fn report(models: &Models, name: &ModelName, variant: &str) -> Option<pb::ShadowReportResponse> {
    let route = models.live_route(name.as_str())?;
    let lanes =
        route.shadows().iter().filter(|lane| variant.is_empty() || *lane.shadow.variant.label == *variant);
    let shadows: Vec<_> = lanes.map(|lane| shadowed(name, lane)).collect();
    (!shadows.is_empty()).then_some(pb::ShadowReportResponse { shadows })
}

fn shadowed(name: &ModelName, lane: &Lane) -> pb::Shadowed {
    let findings = &lane.findings;
    let found = findings.snapshot();
    // Numbers and text: there is nothing in it that has no JSON.
    let comparison = findings.comparison().and_then(|report| serde_json::to_string(&report).ok());
    let counts = |counts: BTreeMap<&'static str, u64>| {
        counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
    };
    let piece = |piece: &Piece| pb::Agreement {
        at_ms: millis(piece.since),
        compared: piece.compared,
        identical: piece.identical,
    };
    pb::Shadowed {
        model: name.to_string(),
        variant: lane.shadow.variant.label.to_string(),
        target: lane.shadow.variant.target.to_string(),
        version: found.version.map_or(0, ModelVersion::get),
        primaries: found.primaries.iter().map(|(version, count)| (version.get(), *count)).collect(),
        since_ms: millis(findings.since),
        at_ms: millis(SystemTime::now()),
        offered: findings.offered.load(Ordering::Relaxed),
        dropped: counts(found.dropped),
        failed: counts(found.failed),
        explanations: found.explanations.into(),
        compared: found.compared,
        identical: found.identical,
        waiting: findings.waiting.load(Ordering::Relaxed) as u64,
        running: findings.running.load(Ordering::Relaxed) as u64,
        primary_ms: quantiles(&found.latency[0]),
        candidate_ms: quantiles(&found.latency[1]),
        differences: found.differences,
        agreement: found.agreement.iter().map(piece).collect(),
        comparison_json: comparison.unwrap_or_default(),
    }
}

fn quantiles(times: &Times) -> Option<pb::Quantiles> {
    let ms = |q| times.quantile(q).map(|time: Duration| time.as_secs_f64() * 1e3);
    Some(pb::Quantiles { p50: ms(0.5)?, p90: ms(0.9)?, p95: ms(0.95)?, p99: ms(0.99)? })
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn variant(split: &SplitSpec, stored: &StoredRoute, counts: Counts) -> pb::Variant {
    let alias = |alias: &str| stored.model.aliases.get(alias).map(|alias| alias.version);
    let version = match Target::parse(&split.target) {
        Some(Target::Version(version)) => Some(version),
        Some(Target::Alias(name)) => alias(&name),
        Some(Target::Default) => alias(crate::models::CHAMPION),
        None => None,
    };
    let millis = |q| counts.times.quantile(q).map_or(0.0, |time: Duration| time.as_secs_f64() * 1e3);
    pb::Variant {
        id: split.id.map_or(0, |id| id.0),
        variant: split.variant.clone(),
        target: split.target.clone(),
        version: version.map_or(0, ModelVersion::get),
        answered: counts.answered(),
        failed: counts.failed(),
        p50_ms: millis(0.5),
        p95_ms: millis(0.95),
        p99_ms: millis(0.99),
        failed_by_code: counts.errors.into_iter().map(|(code, count)| (code.to_owned(), count)).collect(),
    }
}

fn spec_message(route: &Route) -> pb::RouteSpec {
    let RouteSpec { splits, sticky, overrides, shadows } = route.spec();
    let id = |id: Option<VariantId>| id.map(|id| id.0);
    let split = |split: &SplitSpec| pb::Split {
        variant: split.variant.clone(),
        target: split.target.clone(),
        percent: split.percent,
        id: id(split.id),
    };
    let override_of = |one: &OverrideSpec| pb::Override {
        key: Some(key_message(&one.key)),
        value: one.value.clone(),
        variant: one.variant.clone(),
    };
    let shadow = |shadow: &ShadowSpec| pb::Shadow {
        variant: shadow.variant.clone(),
        target: shadow.target.clone(),
        sample: Some(shadow.sample),
        max_concurrency: Some(shadow.max_concurrency),
        max_batch_ms: Some(shadow.max_batch_ms),
        share: Some(shadow.share),
        id: id(shadow.id),
    };
    let sticky = sticky.as_ref();
    pb::RouteSpec {
        splits: splits.iter().map(split).collect(),
        sticky: sticky.map(|it| pb::Sticky { salt: it.salt.clone(), key: Some(key_message(&it.key)) }),
        overrides: overrides.iter().map(override_of).collect(),
        shadows: shadows.iter().map(shadow).collect(),
    }
}

fn key_message(key: &Key) -> pb::Key {
    let from = match key {
        Key::Metadata(name) => pb::key::From::Metadata(name.clone()),
        Key::Parameter(name) => pb::key::From::Parameter(name.clone()),
    };
    pb::Key { from: Some(from) }
}

/// What a message declares, as far as it can be read; whether it makes sense is checked as a whole.
///
/// # Errors
/// `InvalidArgument` for a key that says nothing.
fn to_spec(spec: pb::RouteSpec) -> Result<RouteSpec> {
    let pb::RouteSpec { splits, sticky, overrides, shadows } = spec;
    let split = |pb::Split { variant, target, percent, id }| SplitSpec {
        variant,
        id: id.map(VariantId),
        target,
        percent,
    };
    let sticky =
        sticky.map(|pb::Sticky { salt, key }| Ok::<_, Error>(Sticky { salt, key: to_key("sticky", key)? }));
    let override_of = |pb::Override { key, value, variant }| {
        Ok::<_, Error>(OverrideSpec { key: to_key("override", key)?, value, variant })
    };
    Ok(RouteSpec {
        splits: splits.into_iter().map(split).collect(),
        sticky: sticky.transpose()?,
        overrides: overrides.into_iter().map(override_of).collect::<Result<_>>()?,
        shadows: shadows.into_iter().map(to_shadow).collect(),
    })
}

/// What is not said is as it is by default.
fn to_shadow(shadow: pb::Shadow) -> ShadowSpec {
    let pb::Shadow { variant, target, sample, max_concurrency, max_batch_ms, share, id } = shadow;
    let default = ShadowSpec::new(variant, target);
    ShadowSpec {
        id: id.map(VariantId),
        sample: sample.unwrap_or(default.sample),
        max_concurrency: max_concurrency.unwrap_or(default.max_concurrency),
        max_batch_ms: max_batch_ms.unwrap_or(default.max_batch_ms),
        share: share.unwrap_or(default.share),
        ..default
    }
}

fn to_key(what: &str, key: Option<pb::Key>) -> Result<Key> {
    match key.and_then(|key| key.from) {
        Some(pb::key::From::Metadata(name)) => Ok(Key::Metadata(name)),
        Some(pb::key::From::Parameter(name)) => Ok(Key::Parameter(name)),
        None => Err(Error::invalid(format!("{what}.key: expected metadata or a parameter, got none"))),
    }
}
