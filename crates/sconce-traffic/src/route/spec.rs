//! What people declare of a model's traffic, and the check of it.

use super::{Target, VariantId};
use crate::Problems;
use sconce_core::abbreviate;
use serde::{Deserialize, Serialize};

/// Variants of a split.
pub const MAX_VARIANTS: usize = 16;
/// Shadows of a model.
pub const MAX_SHADOWS: usize = 8;
/// Overrides of a model.
pub const MAX_OVERRIDES: usize = 64;
/// Bytes of a variant's label.
pub const MAX_LABEL_BYTES: usize = 64;
/// Bytes of the name of a metadata key or parameter.
pub const MAX_KEY_BYTES: usize = 128;
/// Bytes of the value of an override.
pub const MAX_VALUE_BYTES: usize = 256;
/// Bytes of a salt.
pub const MAX_SALT_BYTES: usize = 128;
/// Requests that a shadow may work on at once.
pub const MAX_SHADOW_CONCURRENCY: u32 = 1024;
/// Milliseconds that a shadow's batch may take.
pub const MAX_SHADOW_BATCH_MS: u32 = 10_000;

/// What people declare: how a model's requests are shared out. [`Route::new`](super::Route::new) checks it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Who answers, and what share each: 1 to [`MAX_VARIANTS`], which sum to 100 percent.
    pub splits: Vec<SplitSpec>,
    /// What keeps a caller with its variant. Default: each request is assigned by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// What sends a request to a variant whatever its share; the first that matches. Up to [`MAX_OVERRIDES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<OverrideSpec>,
    /// Who sees requests beside the one who answers. Up to [`MAX_SHADOWS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<ShadowSpec>,
}

/// A variant and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// The variant's label: 1 to [`MAX_LABEL_BYTES`] of `A-Z a-z 0-9 . _ -`.
    pub variant: String,
    /// Which variant it is, if its label is to change. Default: the one that has, or had, this label; else a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VariantId>,
    /// What answers: a version's number, an alias, or nothing for what answers without a table.
    pub target: String,
    /// Its share, 0 to 100 in steps of 0.01.
    pub percent: f64,
}

/// What keeps a caller with its variant: the same salt and key always give the same bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Told apart from the same key elsewhere by this. Models with the same salt treat a key alike. Default empty.
    #[serde(default)]
    pub salt: String,
    /// Whose value is the key. A request without it is assigned by itself.
    pub key: Key,
}

/// A place in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// gRPC metadata of this name, in lower case, not binary.
    Metadata(String),
    /// The request's parameter of this name: text, an integer or a boolean.
    Parameter(String),
}

/// Sends requests with one value to one variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverrideSpec {
    /// Where the value stands.
    pub key: Key,
    /// The value, whole. Integers in decimal, booleans as `true` and `false`.
    pub value: String,
    /// The label of a variant of `splits`.
    pub variant: String,
}

/// Who sees requests that another answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowSpec {
    /// The variant's label, as in [`SplitSpec`]. One that is in `splits` too has the same target there.
    pub variant: String,
    /// As in [`SplitSpec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VariantId>,
    /// As in [`SplitSpec`].
    pub target: String,
    /// The share of requests that it sees, 0 to 1. Default 1.
    #[serde(default = "one")]
    pub sample: f64,
    /// Requests it works on at once, 1 to [`MAX_SHADOW_CONCURRENCY`]. Default 4. What comes beyond is shed.
    #[serde(default = "four")]
    pub max_concurrency: u32,
    /// Milliseconds a batch of it may take, 1 to [`MAX_SHADOW_BATCH_MS`]: what a primary may have to wait for it. Default 10.
    #[serde(default = "ten")]
    pub max_batch_ms: u32,
    /// The share of its device's time it may take, above 0 to 1. Default 1: all that no primary wants.
    #[serde(default = "one")]
    pub share: f64,
}

impl ShadowSpec {
    /// One that sees every request, within the defaults.
    pub fn new(variant: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            variant: variant.into(),
            id: None,
            target: target.into(),
            sample: one(),
            max_concurrency: four(),
            max_batch_ms: ten(),
            share: one(),
        }
    }
}

fn one() -> f64 {
    1.0
}

fn four() -> u32 {
    4
}

fn ten() -> u32 {
    10
}

impl RouteSpec {
    /// Everything on `target`, under the label `variant`.
    pub fn all_to(variant: impl Into<String>, target: impl Into<String>) -> Self {
        let split = SplitSpec { variant: variant.into(), id: None, target: target.into(), percent: 100.0 };
        Self { splits: vec![split], ..Self::default() }
    }

    /// Checks everything that can be checked without knowing what came before.
    ///
    /// # Errors
    /// Every problem, with the key it is about, what was expected and what came.
    pub fn check(&self) -> Result<(), Problems> {
        let mut problems = Vec::new();
        self.check_splits(&mut problems);
        if let Some(sticky) = &self.sticky {
            check_length("sticky.salt", &sticky.salt, 0, MAX_SALT_BYTES, &mut problems);
            check_key("sticky.key", &sticky.key, &mut problems);
        }
        self.check_overrides(&mut problems);
        self.check_shadows(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    fn check_splits(&self, problems: &mut Vec<String>) {
        check_count("splits", self.splits.len(), 1, MAX_VARIANTS, problems);
        let mut sum = Some(0);
        for (at, split) in self.splits.iter().take(MAX_VARIANTS).enumerate() {
            let place = format!("splits[{at}]");
            check_variant(&place, &split.variant, &split.target, problems);
            match hundredths(split.percent) {
                Some(share) => sum = sum.map(|sum| sum + u32::from(share)),
                None => {
                    sum = None;
                    problems.push(format!(
                        "{place}.percent: expected 0 to 100 in steps of 0.01, got {}",
                        split.percent
                    ));
                }
            }
            let before = &self.splits[..at];
            if before.iter().any(|other| other.variant == split.variant) {
                problems.push(format!("{place}.variant: `{}` is named twice", abbreviate(&split.variant)));
            }
            if let Some(id) = split.id.filter(|id| before.iter().any(|other| other.id == Some(*id))) {
                problems.push(format!("{place}.id: {id} is named twice"));
            }
        }
        if let Some(sum) = sum.filter(|sum| (1..=MAX_VARIANTS).contains(&self.splits.len()) && *sum != 10_000)
        {
            problems
                .push(format!("splits: expected percents that sum to 100, got {}", f64::from(sum) / 100.0));
        }
    }

    fn check_overrides(&self, problems: &mut Vec<String>) {
        check_count("overrides", self.overrides.len(), 0, MAX_OVERRIDES, problems);
        for (at, spec) in self.overrides.iter().take(MAX_OVERRIDES).enumerate() {
            let place = format!("overrides[{at}]");
            check_key(&format!("{place}.key"), &spec.key, problems);
            check_length(&format!("{place}.value"), &spec.value, 1, MAX_VALUE_BYTES, problems);
            if !self.splits.iter().any(|split| split.variant == spec.variant) {
                let got = abbreviate(&spec.variant);
                problems.push(format!("{place}.variant: expected a variant of `splits`, got `{got}`"));
            }
            let earlier = |other: &OverrideSpec| other.key == spec.key && other.value == spec.value;
            if let Some(first) = self.overrides[..at].iter().position(earlier) {
                problems.push(format!("{place}: never matches, overrides[{first}] does before it"));
            }
        }
    }

    fn check_shadows(&self, problems: &mut Vec<String>) {
        check_count("shadows", self.shadows.len(), 0, MAX_SHADOWS, problems);
        for (at, shadow) in self.shadows.iter().take(MAX_SHADOWS).enumerate() {
            let place = format!("shadows[{at}]");
            check_variant(&place, &shadow.variant, &shadow.target, problems);
            let before = &self.shadows[..at];
            if before.iter().any(|other| other.variant == shadow.variant) {
                problems.push(format!("{place}.variant: `{}` is named twice", abbreviate(&shadow.variant)));
            }
            if let Some(id) = shadow.id.filter(|id| before.iter().any(|other| other.id == Some(*id))) {
                problems.push(format!("{place}.id: {id} is named twice"));
            }
            if let Some(split) = self.splits.iter().find(|split| split.variant == shadow.variant) {
                if split.target != shadow.target {
                    problems.push(format!(
                        "{place}.target: expected `{}` as in `splits`, got `{}`",
                        abbreviate(&split.target),
                        abbreviate(&shadow.target)
                    ));
                }
                if shadow.id.is_some() && shadow.id != split.id {
                    problems.push(format!("{place}.id: expected that of `{}` in `splits`", shadow.variant));
                }
            } else if shadow.id.is_some_and(|id| self.splits.iter().any(|split| split.id == Some(id))) {
                problems.push(format!("{place}.id: is that of another variant in `splits`"));
            }
            let mut number = |key: &str, good: bool, expected: &str, got: f64| {
                if !good {
                    problems.push(format!("{place}.{key}: expected {expected}, got {got}"));
                }
            };
            number("sample", (0.0..=1.0).contains(&shadow.sample), "0 to 1", shadow.sample);
            let concurrency = (1..=MAX_SHADOW_CONCURRENCY).contains(&shadow.max_concurrency);
            let expected = format!("1 to {MAX_SHADOW_CONCURRENCY}");
            number("max_concurrency", concurrency, &expected, shadow.max_concurrency.into());
            let batch = (1..=MAX_SHADOW_BATCH_MS).contains(&shadow.max_batch_ms);
            number("max_batch_ms", batch, &format!("1 to {MAX_SHADOW_BATCH_MS}"), shadow.max_batch_ms.into());
            number("share", shadow.share > 0.0 && shadow.share <= 1.0, "above 0 to 1", shadow.share);
        }
    }
}

/// `percent` in steps of 0.01, `None` when it is none of 0 to 100 in such steps.
pub(crate) fn hundredths(percent: f64) -> Option<u16> {
    let steps = percent * 100.0;
    let whole = steps.round();
    // Percents are decimal, floats are not: 0.07 times 100 is a little more than 7.
    ((0.0..=10_000.0).contains(&whole) && (steps - whole).abs() < 1e-6).then_some(whole as u16)
}

fn check_count(key: &str, count: usize, least: usize, most: usize, problems: &mut Vec<String>) {
    if !(least..=most).contains(&count) {
        problems.push(format!("{key}: expected {least} to {most}, got {count}"));
    }
}

fn check_length(key: &str, text: &str, least: usize, most: usize, problems: &mut Vec<String>) {
    if !(least..=most).contains(&text.len()) {
        problems.push(format!("{key}: expected {least} to {most} bytes, got {}", text.len()));
    }
}

fn check_variant(place: &str, label: &str, target: &str, problems: &mut Vec<String>) {
    if let Err(problem) = check_label(label) {
        problems.push(format!("{place}.variant: {problem}"));
    }
    if Target::parse(target).is_none() {
        problems.push(format!(
            "{place}.target: expected a version number, an alias or nothing, got `{}`",
            abbreviate(target)
        ));
    }
}

pub(crate) fn check_label(label: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "expected 1 to {MAX_LABEL_BYTES} characters of A-Z a-z 0-9 . _ -, got {:?}",
        abbreviate(label)
    ))
}

fn check_key(place: &str, key: &Key, problems: &mut Vec<String>) {
    match key {
        Key::Metadata(name) => {
            let allowed =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
            let good = (1..=MAX_KEY_BYTES).contains(&name.len()) && name.bytes().all(allowed);
            if !good || name.ends_with("-bin") {
                problems.push(format!(
                    "{place}.metadata: expected 1 to {MAX_KEY_BYTES} characters of a-z 0-9 . _ - not ending in -bin, got {:?}",
                    abbreviate(name)
                ));
            }
        }
        Key::Parameter(name) => check_length(&format!("{place}.parameter"), name, 1, MAX_KEY_BYTES, problems),
    }
}
