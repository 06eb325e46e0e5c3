//! The prediction log: what was asked and answered, as the models' data policies allow, for people who look at it later. A request
//! never waits for it: its record is offered after its answer has left, and what finds no place is dropped and counted.

mod events;
mod files;
mod parquet;
mod record;

pub(crate) use record::{Record, Request, Values, utc};

use crate::config::PredictionLog as Settings;
use crate::content::{Content, Kept};
use crate::models::Served;
use crate::sink::Sink;
use sconce_core::{PredictionId, Tensor};
use sconce_telemetry::metrics::SinkSample;
use sconce_telemetry::traces::Observed;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

/// Where records go. Without sinks nothing is recorded.
pub(crate) struct PredictionLog {
    /// The share of the requests to a model that says nothing itself.
    sample: f64,
    sinks: Vec<Sink<Arc<Record>>>,
}

/// One request on its way to the log.
pub(crate) struct Draft {
    log: Arc<PredictionLog>,
    /// What was asked beside the tensors.
    pub(crate) request: Request,
    inputs: Vec<Kept>,
    outputs: Vec<Kept>,
    /// Whether people decide, where the answer said so.
    pub(crate) review: Option<&'static str>,
}

impl PredictionLog {
    /// Opens the sinks, each with a thread of its own. What an earlier server left half written is made whole first.
    ///
    /// # Errors
    /// A folder that cannot be had, or that another server writes to.
    pub(crate) fn open(settings: &Settings) -> io::Result<Arc<Self>> {
        let mut sinks = Vec::new();
        if let Some(dir) = &settings.dir {
            let writer = files::Files::open(dir, settings)?;
            sinks.push(Sink::start("files", settings.queue, move |inbox| writer.run(inbox))?);
        }
        if let Some(url) = settings.cloudevents.clone() {
            sinks.push(Sink::start("cloudevents", settings.queue, move |inbox| events::run(&url, inbox))?);
        }
        Ok(Arc::new(Self { sample: settings.sample, sinks }))
    }

    /// A draft of a request's record, if it is to be logged. Which ones are follows from their ids alone.
    pub(crate) fn draft(self: &Arc<Self>, served: &Served, id: PredictionId) -> Option<Box<Draft>> {
        if self.sinks.is_empty() {
            return None;
        }
        let sample = served.settings.prediction_log.unwrap_or(self.sample);
        let draft = || Draft {
            log: Arc::clone(self),
            request: Request::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            review: None,
        };
        (id.share() < sample).then(|| Box::new(draft()))
    }

    /// A scrape's view of the sinks.
    pub(crate) fn sinks(&self) -> Vec<SinkSample> {
        self.sinks.iter().map(Sink::sample).collect()
    }

    /// Writes what is left.
    pub(crate) async fn shutdown(&self) {
        futures_util::future::join_all(self.sinks.iter().map(Sink::shutdown)).await;
    }

    fn offer(&self, record: Record) {
        let (bytes, record) = (record.bytes(), Arc::new(record));
        self.sinks.iter().for_each(|sink| sink.offer(Arc::clone(&record), bytes));
    }
}

impl Draft {
    /// Notes what may be kept of the request.
    pub(crate) fn asked(&mut self, content: &Content, served: &Served, tensors: &[(String, Tensor)]) {
        self.request.inputs = tensors.len();
        self.inputs = content.inputs(served.name.as_str(), &served.settings.data_policy, tensors);
    }

    /// Notes what may be kept of the answer.
    pub(crate) fn answered(&mut self, content: &Content, served: &Served, tensors: &[Tensor]) {
        let policy = &served.settings.data_policy;
        self.outputs = content.outputs(served.name.as_str(), policy, served.signature(), tensors);
    }

    /// Offers the record of a request that has ended.
    pub(crate) fn offer(self, observed: &Observed) {
        let (Some(id), Some(target)) = (observed.prediction_id, &observed.target) else { return };
        let detached = |kept: Vec<Kept>| kept.into_iter().map(Kept::detached).collect();
        self.log.offer(Record {
            id,
            trace: observed.trace.clone(),
            at: SystemTime::now()
                .checked_sub(observed.arrived_at.elapsed())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            model: Arc::clone(&target.model),
            version: Arc::clone(&target.version),
            variant: observed.variant.clone(),
            tenant: observed.tenant.clone(),
            status: observed.status(),
            latency: observed.time(),
            request: self.request,
            review: self.review,
            inputs: detached(self.inputs),
            // A failed request has none, whatever its model gave.
            outputs: if observed.code.is_none() { detached(self.outputs) } else { Vec::new() },
        });
    }
}
