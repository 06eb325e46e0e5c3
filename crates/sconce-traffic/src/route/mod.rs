//! Who answers a request.
//!
//! A [`RouteSpec`] is what people declare. A [`Route`] is a checked one together with what must be remembered of it: the number of
//! each variant and which of the 10,000 buckets it has. A [`RoutingTable`] is a route made ready for requests:
//! [`RoutingTable::route`] allocates nothing and takes no lock.
//!
//! In order: an explicit `model_version` of the request; the first override that matches; the sticky key; else chance.

mod buckets;
mod spec;

pub use spec::{
    Key, MAX_KEY_BYTES, MAX_LABEL_BYTES, MAX_OVERRIDES, MAX_SALT_BYTES, MAX_SHADOW_BATCH_MS,
    MAX_SHADOW_CONCURRENCY, MAX_SHADOWS, MAX_VALUE_BYTES, MAX_VARIANTS, OverrideSpec, RouteSpec, ShadowSpec,
    SplitSpec, Sticky,
};

pub(crate) use spec::{check_label, hundredths};

use crate::Problems;
use buckets::{Buckets, random_bucket, sticky_bucket};
use sconce_core::ModelVersion;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write as _;
use std::sync::Arc;

/// Variants that a route remembers the labels of, beside those it uses. The oldest are forgotten; their numbers are not used again.
pub const MAX_REMEMBERED: usize = 256;
/// Bytes of an alias.
const MAX_ALIAS_BYTES: usize = 64;

/// A variant's number within its model: given when it is first named, never to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VariantId(pub u32);

impl fmt::Display for VariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a variant is made of: the same three things `model_version` may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// What answers without a table: the alias `champion`, else the highest version that is ready.
    Default,
    /// What an alias means when the request comes.
    Alias(Arc<str>),
    /// A version.
    Version(ModelVersion),
}

impl Target {
    /// A target as it is written: nothing, a version's number, an alias. `None` when it is none of them.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        match text.as_bytes().first() {
            None => Some(Self::Default),
            Some(first) if first.is_ascii_alphabetic() => {
                let is_alias = text.len() <= MAX_ALIAS_BYTES && text.bytes().all(allowed);
                is_alias.then(|| Self::Alias(text.into()))
            }
            Some(_) => ModelVersion::parse(text).map(Self::Version),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Alias(alias) => f.write_str(alias),
            Self::Version(version) => version.fmt(f),
        }
    }
}

/// A checked [`RouteSpec`] with what must be remembered of it; this is what is stored.
///
/// At most about 150 KiB as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Route {
    spec: RouteSpec,
    buckets: Buckets,
    /// Labels by number, also of variants that are not used any more.
    labels: Vec<(VariantId, String)>,
    next_id: u32,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    spec: RouteSpec,
    buckets: Buckets,
    labels: Vec<(VariantId, String)>,
    next_id: u32,
}

impl From<Route> for Stored {
    fn from(Route { spec, buckets, labels, next_id }: Route) -> Self {
        Self { spec, buckets, labels, next_id }
    }
}

impl TryFrom<Stored> for Route {
    type Error = Problems;

    fn try_from(Stored { spec, buckets, labels, next_id }: Stored) -> Result<Self, Problems> {
        spec.check()?;
        let numbered =
            spec.names().all(|(_, id)| id.is_some_and(|id| labels.iter().any(|(known, _)| *known == id)));
        if !numbered || labels.iter().any(|(id, _)| id.0 >= next_id) {
            return Err(Problems(vec!["labels: do not fit the variants of the route".to_owned()]));
        }
        if !buckets.fit(&shares(&spec)) {
            return Err(Problems(vec!["buckets: do not fit the shares of the variants".to_owned()]));
        }
        Ok(Self { spec, buckets, labels, next_id })
    }
}

impl Route {
    /// A route as `spec` says, after `previous`: variants keep their numbers, and only those buckets change hands that must.
    ///
    /// # Errors
    /// Every problem of `spec`; a number that no variant has.
    pub fn new(mut spec: RouteSpec, previous: Option<&Self>) -> Result<Self, Problems> {
        spec.check()?;
        let mut labels = previous.map_or_else(Vec::new, |previous| previous.labels.clone());
        let mut next_id = previous.map_or(1, |previous| previous.next_id);
        let problems = identify(&mut spec, &mut labels, &mut next_id);
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let is_used = |id: VariantId| spec.names().any(|(_, used)| used == Some(id));
        let mut unused = labels.iter().filter(|(id, _)| !is_used(*id)).count();
        labels.retain(|(id, _)| {
            let forget = unused > MAX_REMEMBERED && !is_used(*id);
            unused -= usize::from(forget);
            !forget
        });
        let nobody = Buckets::default();
        let buckets = previous.map_or(&nobody, |previous| &previous.buckets).reassigned(&shares(&spec));
        Ok(Self { spec, buckets, labels, next_id })
    }

    /// What was declared, with each variant's number.
    pub fn spec(&self) -> &RouteSpec {
        &self.spec
    }
}

/// A route made ready for requests.
#[derive(Debug, Clone)]
pub struct RoutingTable {
    /// Those of the splits, in their order.
    variants: Box<[Variant]>,
    /// For each bucket, the place of its variant.
    owners: Box<[u8]>,
    /// The variant that has all buckets, if one has.
    primary: Option<u8>,
    sticky: Option<Sticky>,
    /// Overrides in their order, those in a row with one key together.
    overrides: Box<[Overrides]>,
    shadows: Box<[Shadow]>,
}

/// A key, and for each value of it the place of a variant.
type Overrides = (Key, Vec<(Box<[u8]>, u8)>);

/// One of those who may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Its number.
    pub id: VariantId,
    /// Its name for people.
    pub label: Arc<str>,
    /// What it is made of.
    pub target: Target,
}

/// One of those who see what another answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadow {
    /// Who it is.
    pub variant: Variant,
    /// As in [`ShadowSpec`].
    pub sample: f64,
    /// As in [`ShadowSpec`].
    pub max_concurrency: u32,
    /// As in [`ShadowSpec`].
    pub max_batch_ms: u32,
    /// As in [`ShadowSpec`].
    pub share: f64,
}

/// What a request says that its way may depend on.
pub trait Facts {
    /// `model_version` as the caller gave it.
    fn model_version(&self) -> &str;
    /// The first metadata value under `name`, which is in lower case.
    fn metadata(&self, name: &str) -> Option<&[u8]>;
    /// The request's parameter `name`, if it is of one of these types.
    fn parameter(&self, name: &str) -> Option<Value<'_>>;
    /// 64 random bits, the same whenever asked for the same request.
    fn random(&self) -> u64;
}

/// The value of a request's parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text.
    Text(&'a str),
    /// An integer.
    Integer(i64),
    /// A boolean.
    Boolean(bool),
}

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// Who answers. `None` when the request asked for a version itself: that is no variant's request.
    pub variant: Option<&'a Variant>,
    /// Why.
    pub reason: Reason,
    /// Who stays with the variant, where the sticky key decided: a digest of it and the salt.
    pub unit: Option<u64>,
    table: &'a RoutingTable,
    random: u64,
}

/// Why a variant answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The request asked for it.
    Version,
    /// An override matched.
    Override,
    /// The bucket of the sticky key is its.
    Sticky,
    /// Chance.
    Random,
    /// All buckets are its.
    Primary,
}

impl Reason {
    /// As it is written everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Override => "override",
            Self::Sticky => "sticky",
            Self::Random => "random",
            Self::Primary => "primary",
        }
    }
}

impl RoutingTable {
    /// The table of `route`.
    pub fn new(route: &Route) -> Self {
        let spec = &route.spec;
        let variant = |label: &str, id: Option<VariantId>, target: &str| {
            Some(Variant { id: id?, label: label.into(), target: Target::parse(target)? })
        };
        let of_split = |split: &SplitSpec| variant(&split.variant, split.id, &split.target);
        let variants: Box<[Variant]> = spec.splits.iter().filter_map(of_split).collect();
        // A route was checked: its splits are few, and every number and label that it uses is one of theirs.
        let place = |found: Option<usize>| found.and_then(|at| u8::try_from(at).ok());
        let place_of = |id: VariantId| place(variants.iter().position(|variant| variant.id == id));
        let labelled = |label: &str| place(variants.iter().position(|variant| &*variant.label == label));
        let owners: Box<[u8]> = route.buckets.owners().filter_map(place_of).collect();
        let first = owners.first().copied();
        let primary = first.filter(|first| owners.iter().all(|owner| owner == first));
        let mut overrides: Vec<Overrides> = Vec::new();
        for spec in &spec.overrides {
            let Some(at) = labelled(&spec.variant) else { continue };
            let rule = (spec.value.as_bytes().into(), at);
            match overrides.last_mut() {
                Some((key, rules)) if *key == spec.key => rules.push(rule),
                _ => overrides.push((spec.key.clone(), vec![rule])),
            }
        }
        let of_shadow = |shadow: &ShadowSpec| {
            Some(Shadow {
                variant: variant(&shadow.variant, shadow.id, &shadow.target)?,
                sample: shadow.sample,
                max_concurrency: shadow.max_concurrency,
                max_batch_ms: shadow.max_batch_ms,
                share: shadow.share,
            })
        };
        let shadows = spec.shadows.iter().filter_map(of_shadow).collect();
        Self { variants, owners, primary, sticky: spec.sticky.clone(), overrides: overrides.into(), shadows }
    }

    /// Those who may answer, in the order they were declared.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Those who see what others answered.
    pub fn shadows(&self) -> &[Shadow] {
        &self.shadows
    }

    /// The places in a request that decide: a request that says the same there goes the same way, unless chance decides.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.overrides.iter().map(|(key, _)| key).chain(self.sticky.as_ref().map(|sticky| &sticky.key))
    }

    /// What `facts` has at `key`, as it is looked at: integers in decimal, booleans as `true` and `false`.
    pub fn value(facts: &impl Facts, key: &Key) -> Option<Vec<u8>> {
        read(facts, key, <[u8]>::to_vec)
    }

    /// Where a request goes. Allocates nothing and takes no lock. About 10 ns, and 100 to 150 ns with a sticky key, which is hashed.
    pub fn route(&self, facts: &impl Facts) -> Decision<'_> {
        let (place, reason, unit) = self.choose(facts);
        let variant = place.and_then(|place| self.variants.get(usize::from(place)));
        let random = if self.shadows.is_empty() { 0 } else { facts.random() };
        Decision { variant, reason, unit, table: self, random }
    }

    fn choose(&self, facts: &impl Facts) -> (Option<u8>, Reason, Option<u64>) {
        if !facts.model_version().is_empty() {
            return (None, Reason::Version, None);
        }
        for (key, rules) in &self.overrides {
            let found = read(facts, key, |value| rules.iter().find(|(wanted, _)| **wanted == *value));
            if let Some((_, place)) = found.flatten() {
                return (Some(*place), Reason::Override, None);
            }
        }
        if self.primary.is_some() {
            return (self.primary, Reason::Primary, None);
        }
        let sticky = self.sticky.as_ref().and_then(|sticky| {
            read(facts, &sticky.key, |value| sticky_bucket(sticky.salt.as_bytes(), value))
        });
        let (bucket, reason, unit) = match sticky {
            Some((bucket, unit)) => (bucket, Reason::Sticky, Some(unit)),
            None => (random_bucket(facts.random()), Reason::Random, None),
        };
        (self.owners.get(usize::from(bucket)).copied(), reason, unit)
    }
}

impl<'a> Decision<'a> {
    /// Who sees the request beside: none when it asked for a version itself; of the others those whose sample it is in, but
    /// never who answers.
    pub fn shadows(self) -> impl Iterator<Item = &'a Shadow> {
        let of_variant = self.variant.map(|variant| variant.id);
        let random = self.random;
        let sees = move |shadow: &&Shadow| {
            let id = shadow.variant.id;
            of_variant.is_some_and(|answering| answering != id) && is_in_sample(random, id, shadow.sample)
        };
        self.table.shadows.iter().filter(sees)
    }
}

impl RouteSpec {
    /// Every variant that is named, with its number if it has one; one that is named twice, twice.
    fn names(&self) -> impl Iterator<Item = (&str, Option<VariantId>)> {
        let splits = self.splits.iter().map(|split| (split.variant.as_str(), split.id));
        splits.chain(self.shadows.iter().map(|shadow| (shadow.variant.as_str(), shadow.id)))
    }
}

fn shares(spec: &RouteSpec) -> Vec<(VariantId, u16)> {
    let share = |split: &SplitSpec| Some((split.id?, hundredths(split.percent)?));
    spec.splits.iter().filter_map(share).collect()
}

/// Gives each variant of `spec` its number: the one it names, whose label then changes; the one its label has; or a new one.
fn identify(spec: &mut RouteSpec, labels: &mut Vec<(VariantId, String)>, next_id: &mut u32) -> Vec<String> {
    let mut problems = Vec::new();
    let splits = spec.splits.iter_mut().enumerate();
    let splits = splits.map(|(at, split)| (format!("splits[{at}]"), &split.variant, &mut split.id));
    let shadows = spec.shadows.iter_mut().enumerate();
    let shadows = shadows.map(|(at, shadow)| (format!("shadows[{at}]"), &shadow.variant, &mut shadow.id));
    let mut named: Vec<_> = splits.chain(shadows).collect();
    let is_known = |id: VariantId| labels.iter().any(|(known, _)| *known == id);
    for (place, _, id) in &named {
        if let Some(id) = id.filter(|id| !is_known(*id)) {
            problems.push(format!(
                "{place}.id: expected the number of a variant of this model, got {id}; leave it out for a new one"
            ));
        }
    }
    if !problems.is_empty() {
        return problems;
    }
    // All numbers before any label: two variants may change labels with each other.
    let given: Vec<(VariantId, String)> =
        named.iter().filter_map(|(_, label, id)| Some(((**id)?, (*label).clone()))).collect();
    labels.retain(|(known, old)| !given.iter().any(|(id, label)| id == known || label == old));
    labels.extend(given);
    labels.sort();
    labels.dedup();
    for (_, label, id) in &mut named {
        let known = labels.iter().find(|(_, known)| known == *label).map(|(id, _)| *id);
        **id = Some(known.unwrap_or_else(|| {
            let new = VariantId(*next_id);
            *next_id = next_id.saturating_add(1);
            labels.push((new, (*label).clone()));
            new
        }));
    }
    problems
}

/// What `use_value` makes of the value at `key`, if there is one.
fn read<T>(facts: &impl Facts, key: &Key, use_value: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let value = match key {
        Key::Metadata(name) => return facts.metadata(name).map(use_value),
        Key::Parameter(name) => facts.parameter(name)?,
    };
    Some(match value {
        Value::Text(text) => use_value(text.as_bytes()),
        Value::Boolean(boolean) => use_value(if boolean { b"true" } else { b"false" }),
        Value::Integer(integer) => {
            // As long as the longest integer, sign included.
            let mut text = [0; 20];
            let mut rest = &mut text[..];
            let _ = write!(rest, "{integer}");
            let length = 20 - rest.len();
            use_value(&text[..length])
        }
    })
}

fn is_in_sample(random: u64, shadow: VariantId, sample: f64) -> bool {
    // Every shadow has bits of its own, so that two that see a tenth each do not see the same tenth.
    let mut bits = random ^ u64::from(shadow.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^= bits >> 31;
    const STEPS: f64 = (1_u64 << 53) as f64;
    ((bits >> 11) as f64) < sample * STEPS
}

#[cfg(test)]
mod tests;
