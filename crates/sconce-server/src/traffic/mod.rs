//! A model's route as requests see it: the table that decides, and what is counted of what it decided. What a route may say, and how
//! it decides, is in `sconce_traffic::route`; where it is kept and how it changes, in `models/routes.rs`.

mod tally;

pub(crate) use tally::{Counts, Tally, Times};

use crate::models::Models;
use crate::shadow::Lane;

use http::HeaderMap;
use sconce_core::{Error, Result};
use sconce_proto::inference::InferParameter;
use sconce_proto::inference::infer_parameter::ParameterChoice;
use sconce_registry::Document;
use sconce_traffic::route::{self, Facts, Key, Reason, Route, RoutingTable, Target, Value, VariantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The kind of the document that holds a route.
pub(crate) const KIND: &str = "traffic";

/// What a route may look at of a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asks<'a> {
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) parameters: Option<&'a BTreeMap<String, InferParameter>>,
}

/// A route, ready for requests. It is swapped whole; what was counted of a variant goes on.
pub(crate) struct LiveRoute {
    pub(crate) revision: u64,
    table: RoutingTable,
    /// Those that answer, in the order of the splits.
    variants: Vec<Arc<Variant>>,
    /// Those that see what others answered.
    shadows: Vec<Arc<Lane>>,
    /// The place of the one with the largest share.
    largest: usize,
}

/// One of those that answer a model's requests.
pub(crate) struct Variant {
    pub(crate) id: VariantId,
    pub(crate) label: Arc<str>,
    pub(crate) target: Target,
    pub(crate) tally: Arc<Tally>,
}

impl LiveRoute {
    /// The route in `document`. What `before` counted of the same variants goes on.
    ///
    /// # Errors
    /// `Internal` when the document holds no route.
    pub(crate) fn new(models: &Arc<Models>, document: &Document, before: Option<&Self>) -> Result<Self> {
        let route = parse(document)?;
        let table = RoutingTable::new(&route);
        let variant = |variant: &route::Variant| {
            let route::Variant { id, label, target } = variant.clone();
            let counted = before.and_then(|before| before.variant(id));
            let tally = counted.map(|variant| Arc::clone(&variant.tally)).unwrap_or_default();
            Arc::new(Variant { id, label, target, tally })
        };
        let variants = table.variants().iter().map(variant).collect();
        let lane = |shadow: &route::Shadow| {
            let before = before.and_then(|before| before.lane(shadow.variant.id));
            match before {
                Some(before) if before.shadow == *shadow => Arc::clone(before),
                _ => {
                    let before = before.map(|before| &**before);
                    Arc::new(Lane::start(models, &document.model, shadow.clone(), before))
                }
            }
        };
        let shadows = table.shadows().iter().map(lane).collect();
        let splits = route.spec().splits.iter().enumerate();
        let largest = splits.max_by(|a, b| a.1.percent.total_cmp(&b.1.percent)).map_or(0, |(at, _)| at);
        Ok(Self { revision: document.revision, table, variants, shadows, largest })
    }

    /// Who answers a request that names no version; `None` in a route that has nobody, which is none.
    pub(crate) fn decide(&self, asks: &Asks<'_>) -> Option<Decided> {
        let decision = self.table.route(&Request { asks, random: fastrand::u64(..) });
        let variant = Arc::clone(self.variant(decision.variant?.id)?);
        let (reason, unit) = (decision.reason, decision.unit);
        let lanes = decision.shadows().filter_map(|shadow| self.lane(shadow.variant.id)).cloned();
        Some(Decided { variant, reason, unit, lanes: lanes.collect() })
    }

    /// What a request says where the route looks, as text of up to [`MAX_KEY_VALUE_BYTES`].
    pub(crate) fn keys(&self, asks: &Asks<'_>) -> Vec<RouteKey> {
        let request = Request { asks, random: 0 };
        let mut keys: Vec<RouteKey> = Vec::new();
        for key in self.table.keys() {
            let (from, name) = match key {
                Key::Metadata(name) => (METADATA, name),
                Key::Parameter(name) => (PARAMETER, name),
            };
            let value = RoutingTable::value(&request, key).and_then(|value| String::from_utf8(value).ok());
            let is_new = !keys.iter().any(|key| (key.from, key.name.as_str()) == (from, name.as_str()));
            if let Some(value) = value.filter(|value| is_new && value.len() <= MAX_KEY_VALUE_BYTES) {
                keys.push(RouteKey { from, name: name.clone(), value });
            }
        }
        keys
    }

    /// What answers most requests.
    pub(crate) fn largest(&self) -> Option<&Arc<Variant>> {
        self.variants.get(self.largest)
    }

    /// The variants that answer, in the order of the splits.
    pub(crate) fn variants(&self) -> &[Arc<Variant>] {
        &self.variants
    }

    /// Those that see what others answered, in the order they were declared.
    pub(crate) fn shadows(&self) -> &[Arc<Lane>] {
        &self.shadows
    }

    fn lane(&self, id: VariantId) -> Option<&Arc<Lane>> {
        self.shadows.iter().find(|lane| lane.shadow.variant.id == id)
    }

    pub(crate) fn variant(&self, id: VariantId) -> Option<&Arc<Variant>> {
        self.variants.iter().find(|variant| variant.id == id)
    }
}

/// What a request says at a place that its route looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteKey {
    /// `metadata` or `parameter`.
    pub(crate) from: &'static str,
    pub(crate) name: String,
    pub(crate) value: String,
}

const METADATA: &str = "metadata";
const PARAMETER: &str = "parameter";
/// A longer value is not noted.
const MAX_KEY_VALUE_BYTES: usize = 1024;

/// What a route decided of a request.
pub(crate) struct Decided {
    /// Who answers.
    pub(crate) variant: Arc<Variant>,
    pub(crate) reason: Reason,
    /// Who stays with the variant by a sticky key, told from others.
    pub(crate) unit: Option<u64>,
    /// Who sees the answer.
    pub(crate) lanes: Vec<Arc<Lane>>,
}

/// A request as a route sees it.
struct Request<'a> {
    asks: &'a Asks<'a>,
    random: u64,
}

impl Facts for Request<'_> {
    /// Who names a version is not asked about.
    fn model_version(&self) -> &str {
        ""
    }

    fn metadata(&self, name: &str) -> Option<&[u8]> {
        Some(self.asks.headers?.get(name)?.as_bytes())
    }

    fn parameter(&self, name: &str) -> Option<Value<'_>> {
        match self.asks.parameters?.get(name)?.parameter_choice.as_ref()? {
            ParameterChoice::StringParam(text) => Some(Value::Text(text)),
            ParameterChoice::Int64Param(number) => Some(Value::Integer(*number)),
            ParameterChoice::Uint64Param(number) => i64::try_from(*number).ok().map(Value::Integer),
            ParameterChoice::BoolParam(truth) => Some(Value::Boolean(*truth)),
            ParameterChoice::DoubleParam(_) => None,
        }
    }

    fn random(&self) -> u64 {
        self.random
    }
}

/// The route in a document.
///
/// # Errors
/// `Internal` when it holds none.
pub(crate) fn parse(document: &Document) -> Result<Route> {
    serde::Deserialize::deserialize(&document.value).map_err(|error: serde_json::Error| {
        Error::internal(format!("model `{}`: the stored route cannot be read: {error}", document.model))
    })
}
