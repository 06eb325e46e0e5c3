//! `sconce.v1.Traffic`, on the control listener.

use crate::door::Door;
use crate::grpc::control::{Answer, actor, answer, name, refused};
use crate::models::StoredRoute;
use crate::traffic::{self, Counts};
use sconce_core::{Error, ModelName, ModelVersion, Result};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::traffic_server::Traffic as Service;
use sconce_registry::By;
use sconce_traffic::route::{
    Key, OverrideSpec, Route, RouteSpec, ShadowSpec, SplitSpec, Sticky, Target, VariantId,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Status};

/// The calls about traffic.
pub(crate) struct Traffic {
    door: Arc<Door>,
}

impl Traffic {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door }
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
    async fn get_route(&self, request: Request<pb::GetRouteRequest>) -> Answer<pb::Route> {
        self.route(&name(&request.into_inner().model)?).await
    }

    async fn set_route(&self, request: Request<pb::SetRouteRequest>) -> Answer<pb::Route> {
        let actor = actor(&request)?;
        let pb::SetRouteRequest { model, spec, reason, expected_revision } = request.into_inner();
        let name = name(&model)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("spec: expected a route, got none"))?;
        let (spec, by) = (to_spec(spec).map_err(refused)?, By::new(actor, reason));
        self.door.models.set_route(&name, spec, expected_revision, by).await.map_err(refused)?;
        self.door.report_health().await;
        self.route(&name).await
    }

    async fn clear_route(&self, request: Request<pb::ClearRouteRequest>) -> Answer<pb::ClearRouteResponse> {
        let actor = actor(&request)?;
        let pb::ClearRouteRequest { model, reason, expected_revision } = request.into_inner();
        let (name, by) = (name(&model)?, By::new(actor, reason));
        let cleared = self.door.models.clear_route(&name, expected_revision, by).await.map_err(refused)?;
        answer(pb::ClearRouteResponse { generation: cleared.generation })
    }
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
        shadows: shadows.into_iter().map(to_shadow).collect::<Result<_>>()?,
    })
}

/// What is not said is as it is by default.
fn to_shadow(shadow: pb::Shadow) -> Result<ShadowSpec> {
    let pb::Shadow { variant, target, sample, max_concurrency, max_batch_ms, share, id } = shadow;
    let least = serde_json::from_value(json!({ "variant": variant, "target": target }));
    let default: ShadowSpec =
        least.map_err(|error| Error::internal("a shadow has no defaults").with_source(error))?;
    Ok(ShadowSpec {
        id: id.map(VariantId),
        sample: sample.unwrap_or(default.sample),
        max_concurrency: max_concurrency.unwrap_or(default.max_concurrency),
        max_batch_ms: max_batch_ms.unwrap_or(default.max_batch_ms),
        share: share.unwrap_or(default.share),
        ..default
    })
}

fn to_key(what: &str, key: Option<pb::Key>) -> Result<Key> {
    match key.and_then(|key| key.from) {
        Some(pb::key::From::Metadata(name)) => Ok(Key::Metadata(name)),
        Some(pb::key::From::Parameter(name)) => Ok(Key::Parameter(name)),
        None => Err(Error::invalid(format!("{what}.key: expected metadata or a parameter, got none"))),
    }
}
