//! The prediction log: what was asked and answered, as the models' data policies allow, for people who look at it later. A request
//! never waits for it: its record is offered after its answer has left, and what finds no place is dropped and counted.

mod events;
mod files;
mod parquet;
mod record;

pub(crate) use record::Record;

use crate::config::PredictionLog as Settings;
use crate::content::{Content, Kept};
use crate::models::Served;
use sconce_core::{ByteBudget, Error, PredictionId, Result, Tensor};
use sconce_telemetry::metrics::PredictionLogSample;
use sconce_telemetry::traces::Observed;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Bytes of records that wait, of each sink.
const WAITING_BYTES: usize = 64 << 20;
/// How often a sink looks for records: a thread that waits for each would be woken for each.
const GATHER: Duration = Duration::from_millis(20);
/// How long the end may take to write what is left.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// How often a sink that fails is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Where records go. Without sinks nothing is recorded.
pub(crate) struct PredictionLog {
    /// The share of the requests to a model that says nothing itself.
    sample: f64,
    sinks: Vec<Sink>,
}

/// One request on its way to the log.
pub(crate) struct Draft {
    log: Arc<PredictionLog>,
    inputs: Vec<Kept>,
    outputs: Vec<Kept>,
}

struct Sink {
    name: &'static str,
    sender: SyncSender<Offered>,
    queue: usize,
    waiting: ByteBudget,
    counted: Arc<Counted>,
    stop: Mutex<Option<(SyncSender<()>, oneshot::Receiver<()>)>>,
}

/// A record, and what it holds of its sink's bytes.
pub(crate) struct Offered {
    record: Arc<Record>,
    _bytes: sconce_core::Reservation,
}

/// What became of the records of one sink.
#[derive(Debug, Default)]
struct Counted {
    written: AtomicU64,
    /// Found no place.
    dropped: AtomicU64,
    /// Were taken and could not be written.
    failed: AtomicU64,
    waiting: AtomicU64,
}

/// What a sink's thread takes records from.
struct Inbox {
    records: Receiver<Offered>,
    stop: Receiver<()>,
    counted: Arc<Counted>,
    /// When it last said that it fails.
    complained: Option<std::time::Instant>,
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
        let draft = || Box::new(Draft { log: Arc::clone(self), inputs: Vec::new(), outputs: Vec::new() });
        (id.share() < sample).then(draft)
    }

    /// A scrape's view of the sinks.
    pub(crate) fn sinks(&self) -> Vec<PredictionLogSample> {
        let of = |sink: &Sink| PredictionLogSample {
            sink: sink.name,
            written: sink.counted.written.load(Ordering::Relaxed),
            dropped: sink.counted.dropped.load(Ordering::Relaxed),
            failed: sink.counted.failed.load(Ordering::Relaxed),
            queue: (
                usize::try_from(sink.counted.waiting.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
                sink.queue,
            ),
        };
        self.sinks.iter().map(of).collect()
    }

    /// Writes what is left and ends the threads, within a little over five seconds; what is left then is lost.
    pub(crate) async fn shutdown(&self) {
        let stops = self.sinks.iter().filter_map(|sink| {
            let (stop, ended) = sink.stop.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let _ = stop.try_send(());
            Some(ended)
        });
        let ends = futures_util::future::join_all(stops.collect::<Vec<_>>());
        if tokio::time::timeout(FLUSH_LIMIT + Duration::from_millis(500), ends).await.is_err() {
            tracing::warn!("the last records of the prediction log were not written in time: they are lost");
        }
    }

    fn offer(&self, record: Record) {
        let (bytes, record) = (record.bytes(), Arc::new(record));
        for sink in &self.sinks {
            let offered = sink.waiting.reserve(bytes).ok().map(|reserved| {
                sink.counted.waiting.fetch_add(1, Ordering::Relaxed);
                let offered = Offered { record: Arc::clone(&record), _bytes: reserved };
                sink.sender.try_send(offered).inspect_err(|_| {
                    sink.counted.waiting.fetch_sub(1, Ordering::Relaxed);
                })
            });
            if !matches!(offered, Some(Ok(()))) {
                sink.counted.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Draft {
    /// Notes what may be kept of the request.
    pub(crate) fn asked(&mut self, content: &Content, served: &Served, tensors: &[(String, Tensor)]) {
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
            at: SystemTime::now()
                .checked_sub(observed.arrived_at.elapsed())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            model: Arc::clone(&target.model),
            version: Arc::clone(&target.version),
            variant: observed.variant.clone(),
            tenant: observed.tenant.clone(),
            status: observed.status(),
            latency: observed.time(),
            inputs: detached(self.inputs),
            // A failed request has none, whatever its model gave.
            outputs: if observed.code.is_none() { detached(self.outputs) } else { Vec::new() },
        });
    }
}

impl Sink {
    fn start(name: &'static str, queue: usize, run: impl FnOnce(Inbox) + Send + 'static) -> io::Result<Self> {
        let (sender, records) = sync_channel(queue);
        let (stop, stopped) = sync_channel(1);
        let (ended, has_ended) = oneshot::channel();
        let counted = Arc::<Counted>::default();
        let inbox = Inbox { records, stop: stopped, counted: Arc::clone(&counted), complained: None };
        thread::Builder::new().name(format!("sconce-log-{name}")).spawn(move || {
            run(inbox);
            let _ = ended.send(());
        })?;
        let stop = Mutex::new(Some((stop, has_ended)));
        Ok(Self { name, sender, queue, waiting: ByteBudget::new(WAITING_BYTES), counted, stop })
    }
}

impl Inbox {
    /// Waits a moment, takes what is there up to `most` records, and says whether to go on: not once it was told to stop and
    /// nothing is left.
    fn gather(&self, into: &mut Vec<Offered>, most: usize) -> bool {
        let stopping = if into.len() < most {
            !matches!(self.stop.recv_timeout(GATHER), Err(std::sync::mpsc::RecvTimeoutError::Timeout))
        } else {
            false
        };
        while into.len() < most {
            match self.records.try_recv() {
                Ok(offered) => {
                    self.counted.waiting.fetch_sub(1, Ordering::Relaxed);
                    into.push(offered);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return !stopping,
            }
        }
        // Told to stop with more left: the channel to stop is closed by then, so the next call says it again.
        true
    }

    fn written(&self, records: usize) {
        self.counted.written.fetch_add(records as u64, Ordering::Relaxed);
    }

    fn failed(&mut self, records: usize, error: &dyn std::fmt::Display) {
        self.counted.failed.fetch_add(records as u64, Ordering::Relaxed);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(std::time::Instant::now());
            tracing::warn!(%error, records, "predictions could not be logged; at most one such line a minute");
        }
    }
}

/// What is wrong with where predictions are to go.
pub(crate) fn check_url(url: &str) -> Result<http::Uri> {
    let uri = url.parse::<http::Uri>().ok();
    let fits = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    fits.ok_or_else(|| {
        Error::invalid(format!("expected http://host:port/path, got {:?}", sconce_core::abbreviate(url)))
    })
}
