//! Routes as messages, and back.

use crate::Failure;
use sconce_client::control_proto as pb;
use sconce_traffic::route::{Key, OverrideSpec, RouteSpec, ShadowSpec, SplitSpec, Sticky, VariantId};

pub(crate) fn message(spec: &RouteSpec) -> pb::RouteSpec {
    let split = |split: &SplitSpec| pb::Split {
        variant: split.variant.clone(),
        target: split.target.clone(),
        percent: split.percent,
        id: split.id.map(|id| id.0),
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
        id: shadow.id.map(|id| id.0),
    };
    let sticky = spec.sticky.as_ref();
    pb::RouteSpec {
        splits: spec.splits.iter().map(split).collect(),
        sticky: sticky.map(|it| pb::Sticky { salt: it.salt.clone(), key: Some(key_message(&it.key)) }),
        overrides: spec.overrides.iter().map(override_of).collect(),
        shadows: spec.shadows.iter().map(shadow).collect(),
    }
}

fn key_message(key: &Key) -> pb::Key {
    let from = match key {
        Key::Metadata(name) => pb::key::From::Metadata(name.clone()),
        Key::Parameter(name) => pb::key::From::Parameter(name.clone()),
    };
    pb::Key { from: Some(from) }
}

/// # Errors
/// A message that no server of this version sends.
pub(crate) fn of(spec: pb::RouteSpec) -> Result<RouteSpec, Failure> {
    let key = |key: Option<pb::Key>| match key.and_then(|key| key.from) {
        Some(pb::key::From::Metadata(name)) => Ok(Key::Metadata(name)),
        Some(pb::key::From::Parameter(name)) => Ok(Key::Parameter(name)),
        None => Err("the server sent a key that is neither metadata nor a parameter"),
    };
    let split = |split: pb::Split| SplitSpec {
        variant: split.variant,
        id: split.id.map(VariantId),
        target: split.target,
        percent: split.percent,
    };
    let shadow = |shadow: pb::Shadow| ShadowSpec {
        variant: shadow.variant,
        id: shadow.id.map(VariantId),
        target: shadow.target,
        sample: shadow.sample.unwrap_or_default(),
        max_concurrency: shadow.max_concurrency.unwrap_or_default(),
        max_batch_ms: shadow.max_batch_ms.unwrap_or_default(),
        share: shadow.share.unwrap_or_default(),
    };
    let override_of = |one: pb::Override| {
        Ok::<_, Failure>(OverrideSpec { key: key(one.key)?, value: one.value, variant: one.variant })
    };
    let sticky = spec.sticky.map(|it| Ok::<_, Failure>(Sticky { salt: it.salt, key: key(it.key)? }));
    Ok(RouteSpec {
        splits: spec.splits.into_iter().map(split).collect(),
        sticky: sticky.transpose()?,
        overrides: spec.overrides.into_iter().map(override_of).collect::<Result<_, _>>()?,
        shadows: spec.shadows.into_iter().map(shadow).collect(),
    })
}
