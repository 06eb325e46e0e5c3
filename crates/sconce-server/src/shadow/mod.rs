//! Shadows: candidates that see requests after these were answered, on a budget of their own. Nothing here is waited for by a
//! caller, reaches one, or takes of what callers' requests may take: what does not fit is dropped, counted and explained.
//!
//! A request is *offered* when the last byte of its answer has left. It waits in its shadow's *lane*, runs in the candidate's
//! scheduler where nobody else wants the device, and is compared with the answer on a thread of its own.

mod breaker;
mod findings;
mod run;

pub(crate) use findings::{Findings, Piece};

use crate::dispatch::PreparePool;
use crate::models::{Models, Served};
use findings::Pair;
use sconce_core::{
    ByteBudget, Error, InferOutput, ModelName, ModelVersion, PredictionId, Reservation, Result, Tensor,
};
use sconce_telemetry::traces::{Method, Observed, Recorder};
use sconce_traffic::route;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Bytes of all requests and answers that wait for shadows, run in them or wait to be compared.
const MAX_BYTES: usize = 128 << 20;
/// Requests that wait for one shadow.
const LANE_REQUESTS: usize = 256;
/// Pairs that wait to be compared.
const MAX_PAIRS: usize = 256;
/// Shadows' requests that are prepared at once.
const PREPARING: usize = 1;

/// What all shadows share.
pub(crate) struct Shadows {
    budget: ByteBudget,
    prepare: PreparePool,
    pairs: mpsc::Sender<Pair>,
}

/// One shadow of a model: where requests are offered to it. When the last who holds it lets go, it ends.
pub(crate) struct Lane {
    pub(crate) shadow: route::Shadow,
    pub(crate) findings: Arc<Findings>,
    budget: ByteBudget,
    works: mpsc::Sender<Work>,
}

/// An answered request, for every shadow that sees it.
pub(crate) struct Asked {
    pub(crate) tensors: Vec<(String, Tensor)>,
    /// The version that answered, and its outputs by name.
    pub(crate) version: ModelVersion,
    pub(crate) outputs: Vec<(String, Tensor)>,
    /// The prediction's.
    pub(crate) id: String,
    /// What all of it holds of memory.
    pub(crate) bytes: usize,
}

/// An answered request on its way to shadows: they are offered it when the time of its answer is known.
pub(crate) struct Offer {
    pub(crate) lanes: Vec<Arc<Lane>>,
    pub(crate) asked: Asked,
}

/// One request for one shadow.
struct Work {
    asked: Arc<Asked>,
    /// How long it took to be answered.
    latency: Duration,
    offered_at: Instant,
    reservation: Reservation,
    /// Who looks at what became of it.
    recorder: Arc<Recorder>,
    observed: Observed,
}

impl Shadows {
    /// Starts the thread that compares. It ends when this is dropped and everything is compared.
    ///
    /// # Errors
    /// `Internal` when it cannot be started.
    pub(crate) fn start() -> Result<Self> {
        let (pairs, mut waiting) = mpsc::channel::<Pair>(MAX_PAIRS);
        let compare = move || {
            while let Some(pair) = waiting.blocking_recv() {
                pair.compare();
            }
        };
        thread::Builder::new().name("sconce-compare".to_owned()).spawn(compare).map_err(|error| {
            Error::internal("the comparing thread could not be started").with_source(error)
        })?;
        Ok(Self { budget: ByteBudget::new(MAX_BYTES), prepare: PreparePool::new(PREPARING), pairs })
    }

    /// Bytes that shadows hold now, and the most they may.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        (self.budget.held_bytes(), self.budget.limit_bytes())
    }
}

impl Lane {
    /// Starts a shadow of `model`. What `before` found goes on, if it was the same.
    pub(crate) fn start(
        models: &Arc<Models>,
        model: &ModelName,
        shadow: route::Shadow,
        before: Option<&Self>,
    ) -> Self {
        let is_same = |before: &&Self| {
            before.shadow.variant.id == shadow.variant.id
                && before.shadow.variant.target == shadow.variant.target
        };
        let findings = before.filter(is_same).map(|before| Arc::clone(&before.findings));
        let findings = findings.unwrap_or_default();
        let (works, waiting) = mpsc::channel(LANE_REQUESTS);
        run::start(models, model, &shadow, &findings, waiting);
        Self { shadow, findings, budget: models.shadows.budget.clone(), works }
    }
}

impl Asked {
    /// A request of `bytes`, and what `served` answered.
    pub(crate) fn new(
        served: &Served,
        tensors: Vec<(String, Tensor)>,
        output: &InferOutput,
        id: PredictionId,
        bytes: usize,
    ) -> Self {
        let names = served.signature().outputs.iter().map(|spec| spec.name.clone());
        let outputs: Vec<_> = names.zip(output.tensors.iter().cloned()).collect();
        let answered: usize = outputs.iter().map(|(_, tensor)| tensor.data().len()).sum();
        let (version, id) = (served.version, id.to_string());
        Self { tensors, version, outputs, id, bytes: bytes.saturating_add(answered) }
    }
}

impl Offer {
    /// Offers the request to each of its shadows. Never waits.
    pub(crate) fn make(self, recorder: &Arc<Recorder>, primary: &Observed) {
        let latency = primary.time();
        let (asked, offered_at) = (Arc::new(self.asked), Instant::now());
        for lane in self.lanes {
            let findings = &lane.findings;
            findings.offered.fetch_add(1, Ordering::Relaxed);
            let Ok(reservation) = lane.budget.reserve(asked.bytes) else {
                findings.dropped("bytes");
                continue;
            };
            let (recorder, observed) = (Arc::clone(recorder), primary.child(Method::Shadow, offered_at));
            let work =
                Work { asked: Arc::clone(&asked), latency, offered_at, reservation, recorder, observed };
            if lane.works.try_send(work).is_err() {
                findings.dropped("queue");
            }
        }
    }
}
