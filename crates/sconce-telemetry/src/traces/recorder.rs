use super::access::Access;
use super::export::{Exporting, FLUSH_LIMIT, Offer, Protocol};
use super::keep::Keep;
use super::observed::Observed;
use super::operations;
use super::otlp::Head;
use super::parent::RequestTrace;
use super::send::{self, Send};
use super::spans::Clock;
use http::HeaderMap;
use opentelemetry_sdk::trace::SpanData;
use sconce_core::DurationHistogram;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, mpsc, oneshot};

/// Model versions whose exemplars are remembered.
const MAX_EXEMPLARS: usize = 512;
/// How far the thread stands back: about a tenth of a core that others want too.
const NICENESS: i32 = 10;

/// What is kept, and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The collector, `http://host:port`; `None`: no traces.
    pub endpoint: Option<String>,
    /// How spans travel.
    pub protocol: Protocol,
    /// What else each message to the collector says, such as a key it asks for.
    pub headers: HeaderMap,
    /// The share of requests whose caller decided nothing that is kept, 0 to 1.
    pub ratio: f64,
    /// A request that takes as long is kept.
    pub slow: Duration,
    /// Offers that wait at most.
    pub queue: usize,
    /// The name this server has in traces.
    pub service_name: String,
    /// Which requests get a line in the log.
    pub access: Access,
}

/// Why no recorder was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread or its runtime cannot be had.
    #[error("the traces' thread cannot be started")]
    Thread(#[from] std::io::Error),
    /// The endpoint is none.
    #[error("traces.endpoint: {0}")]
    Endpoint(String),
}

/// Decides what of the answered requests is kept, and hands it to its thread. It never waits.
#[derive(Debug)]
pub struct Recorder {
    keep: Keep,
    configured_ratio: f64,
    exports: bool,
    access: Access,
    lines: Pacer,
    offers: mpsc::Sender<Offer>,
    shared: Arc<Shared>,
    /// Stops the thread, and tells when it has ended.
    thread: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
}

/// Lets so many lines a second pass.
#[derive(Debug)]
struct Pacer {
    start: Instant,
    /// The second since the start, and how many passed in it: one number, so that both change together.
    passed: AtomicU64,
}

const LINES_A_SECOND: u64 = 200;

impl Default for Pacer {
    fn default() -> Self {
        Self { start: Instant::now(), passed: AtomicU64::new(0) }
    }
}

impl Pacer {
    fn may_write(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.start).as_secs() << 32;
        let next = |passed: u64| match passed.checked_sub(second) {
            Some(count) if count >= LINES_A_SECOND => None,
            Some(_) => Some(passed + 1),
            None => Some(second + 1),
        };
        self.passed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// What the recorder and its thread share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) wake: Notify,
    pub(crate) exported: AtomicU64,
    pub(crate) dropped: AtomicU64,
    dropped_lines: AtomicU64,
    exemplars: Mutex<Exemplars>,
}

/// A request in a bucket of a histogram that has a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exemplar {
    /// Its trace.
    pub trace_id: u128,
    /// Its time as the histogram counted it.
    pub seconds: f64,
    /// When it was answered.
    pub at: SystemTime,
}

/// The latest exemplar of each bucket of the end-to-end times, by model and version.
pub type Exemplars = HashMap<(Arc<str>, Arc<str>), [Option<Exemplar>; DurationHistogram::BUCKETS]>;

/// A recorder at the time of a scrape.
#[derive(Debug, Clone, Default)]
pub struct RecorderSample {
    /// Spans that a collector took.
    pub exported: u64,
    /// Spans that were kept and lost.
    pub dropped: u64,
    /// Log lines that were wanted and lost.
    pub dropped_lines: u64,
    /// Offers that wait, and their bound.
    pub queue: (usize, usize),
    /// See [`Exemplars`].
    pub exemplars: Exemplars,
}

impl Recorder {
    /// Starts a recorder with a thread of its own. The collector need not be there.
    ///
    /// # Errors
    /// An endpoint that is none, or no thread to be had.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, StartError> {
        let (endpoint, protocol) = (settings.endpoint.clone(), settings.protocol);
        let headers = settings.headers.clone();
        let sender = move || endpoint.map(|endpoint| send::to(&endpoint, protocol, headers)).transpose();
        let recorder = Self::with_sender(&settings, sender).await?;
        if recorder.exports {
            operations::send_to(Arc::downgrade(&recorder));
        }
        Ok(recorder)
    }

    /// `sender` is called on the thread, in its runtime.
    async fn with_sender(
        settings: &Settings,
        sender: impl FnOnce() -> Result<Option<Send>, String> + std::marker::Send + 'static,
    ) -> Result<Arc<Self>, StartError> {
        let head = Head::new(&[
            ("service.name", settings.service_name.as_str()),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        let (offers, offered) = mpsc::channel(settings.queue.max(1));
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        // A thread and a runtime of its own: what a collector does to it is not felt where requests are served.
        let thread = std::thread::Builder::new().name("sconce-traces".to_owned()).spawn(move || {
            // Where there is no core to spare, requests go before spans: these are dropped, and counted. A system that refuses it
            // treats all alike.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            runtime.block_on(async {
                match sender() {
                    Ok(send) => {
                        let _ = ready.send(Ok(()));
                        Exporting::new(send, head, offered, of_thread).run(stopped).await;
                    }
                    Err(error) => drop(ready.send(Err(StartError::Endpoint(error)))),
                }
            });
            // Looking up the collector's name may hang; nothing waits for it.
            runtime.shutdown_background();
            let _ = ended.send(());
        });
        drop(thread?);
        let lost = || StartError::Endpoint("the exporter panicked while it was made".to_owned());
        is_ready.await.unwrap_or_else(|_| Err(lost()))?;
        Ok(Arc::new(Self {
            keep: Keep::new(settings.endpoint.is_some(), settings.ratio, settings.slow),
            configured_ratio: settings.ratio,
            exports: settings.endpoint.is_some(),
            access: settings.access,
            lines: Pacer::default(),
            offers,
            shared,
            thread: Mutex::new(Some((stop, has_ended))),
        }))
    }

    /// Whether a request's spans are kept whatever becomes of it: what calls on its behalf say in their `traceparent`.
    pub fn keeps(&self, trace: &RequestTrace) -> bool {
        self.keep.enabled() && self.keep.at_the_door(trace).is_some()
    }

    /// Looks at an answered request, and offers it to the thread if it is to be kept or logged.
    pub fn observe(&self, observed: &Observed) {
        let spans = self.exports && self.keep.enabled();
        let reason = if spans || self.access == Access::Sampled { self.keep.decide(observed) } else { None };
        let spans = spans && reason.is_some();
        let wanted = self.access.wants(observed.code.is_some(), reason.is_some());
        let mut line = wanted && observed.method.is_of_a_caller();
        // An overload refuses thousands a second: to tell of each would be a load of its own. Who wants all gets all.
        if line && self.access != Access::All && !self.lines.may_write(observed.ended_at) {
            self.shared.dropped_lines.fetch_add(1, Ordering::Relaxed);
            line = false;
        }
        if !spans && !line {
            return;
        }
        if let Ok(place) = self.offers.try_reserve() {
            place.send(Offer::Request { observed: observed.clone(), reason, spans, line });
            self.shared.wake.notify_one();
            return;
        }
        self.shared.dropped.fetch_add(if spans { observed.spans_at_most() } else { 0 }, Ordering::Relaxed);
        self.shared.dropped_lines.fetch_add(u64::from(line), Ordering::Relaxed);
    }

    /// Offers the span of an operation.
    pub(crate) fn offer_operation(&self, span: SpanData) {
        if !self.keep.enabled() {
            return;
        }
        if self.offers.try_send(Offer::Operation(span)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.wake.notify_one();
    }

    /// Whether there is a collector.
    pub fn exports(&self) -> bool {
        self.exports
    }

    /// Whether requests are traced now, and the share of them that is kept.
    pub fn tracing(&self) -> (bool, f64) {
        (self.keep.enabled(), self.keep.ratio())
    }

    /// Turns tracing on or off. It cannot be turned on without a collector.
    pub fn enable(&self, enabled: bool) {
        self.keep.enable(enabled && self.exports);
    }

    /// Sets the share that is kept, 0 to 1; `None` sets it back to what was configured.
    pub fn set_ratio(&self, ratio: Option<f64>) {
        self.keep.set_ratio(ratio.unwrap_or(self.configured_ratio).clamp(0.0, 1.0));
    }

    /// A scrape's view of it.
    pub fn sample(&self) -> RecorderSample {
        let limit = self.offers.max_capacity();
        RecorderSample {
            exported: self.shared.exported.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            dropped_lines: self.shared.dropped_lines.load(Ordering::Relaxed),
            queue: (limit - self.offers.capacity(), limit),
            exemplars: self.shared.exemplars().clone(),
        }
    }

    /// Sends what is left and ends the thread. Takes a little over five seconds at most; what is left then is lost.
    pub async fn shutdown(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, ended)) = thread else { return };
        let _ = stop.send(());
        let limit = FLUSH_LIMIT + Duration::from_millis(500);
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::warn!("the last spans were not sent in time: they are lost");
        }
    }
}

impl Shared {
    /// Notes a request that its model answered and that will be exported as the exemplar of its bucket, and each of its steps:
    /// whatever became of it then, it was counted there.
    pub(crate) fn note(&self, observed: &Observed, clock: &Clock) {
        observed.steps.iter().for_each(|step| self.note(step, clock));
        let (Some(target), Some(time)) = (&observed.target, observed.counted_time()) else { return };
        let exemplar = Exemplar {
            trace_id: observed.trace.trace_id,
            seconds: time.as_secs_f64(),
            at: clock.system(observed.ended_at),
        };
        let key = (Arc::clone(&target.model), Arc::clone(&target.version));
        let mut exemplars = self.exemplars();
        if exemplars.len() >= MAX_EXEMPLARS && !exemplars.contains_key(&key) {
            // They are only the latest: soon there are others.
            exemplars.clear();
        }
        let buckets = exemplars.entry(key).or_insert([None; DurationHistogram::BUCKETS]);
        if let Some(bucket) = buckets.get_mut(DurationHistogram::bucket(time)) {
            *bucket = Some(exemplar);
        }
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn exemplars(&self) -> MutexGuard<'_, Exemplars> {
        self.exemplars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::observed::Target;
    use crate::traces::observed::tests::observed;
    use crate::traces::otlp::tests::decode;
    use crate::traces::spans::SPANS_A_REQUEST;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use sconce_core::ErrorCode;

    #[test]
    fn so_many_lines_a_second_pass() {
        let pacer = Pacer::default();
        let passed = |now| (0..1000).filter(|_| pacer.may_write(now)).count() as u64;
        let later = pacer.start + Duration::from_secs(5);
        assert_eq!(
            [passed(pacer.start), passed(pacer.start), passed(later)],
            [LINES_A_SECOND, 0, LINES_A_SECOND]
        );
        // A request that ended earlier, but is looked at later.
        assert!(!pacer.may_write(pacer.start));
    }

    /// Takes spans, or hangs for ever.
    #[derive(Debug, Clone, Default)]
    struct Collector {
        spans: Arc<Mutex<Vec<Span>>>,
        hangs: bool,
    }

    impl Collector {
        fn send(self) -> Send {
            Box::new(move |message| {
                let collector = self.clone();
                Box::pin(async move {
                    if collector.hangs {
                        std::future::pending::<()>().await;
                    }
                    collector.spans.lock().unwrap().extend(decode(&message[send::ROOM..]));
                    Ok(())
                })
            })
        }
    }

    async fn recorder(collector: &Collector, queue: usize) -> Arc<Recorder> {
        let settings = Settings {
            endpoint: Some("http://nobody:1".to_owned()),
            protocol: Protocol::Grpc,
            ratio: 1.0,
            slow: Duration::from_secs(1),
            queue,
            headers: HeaderMap::new(),
            service_name: "test".to_owned(),
            access: Access::Off,
        };
        let collector = collector.clone();
        Recorder::with_sender(&settings, move || Ok(Some(collector.send()))).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_kept_is_there_after_the_end() {
        let collector = Collector::default();
        let recorder = recorder(&collector, 100).await;
        let (first, second) = (observed(), observed());
        recorder.observe(&first);
        recorder.observe(&second);
        recorder.shutdown().await;
        let spans = collector.spans.lock().unwrap();
        // Two requests of six spans each, and their batch.
        assert_eq!(spans.len(), 13);
        let batch = spans.iter().find(|span| span.name == "batch").unwrap();
        assert_eq!((batch.links.len(), batch.dropped_links_count), (2, 0));
        let sample = recorder.sample();
        assert_eq!((sample.exported, sample.dropped), (13, 0));
        let exemplars = &sample.exemplars[&("m".into(), "1".into())];
        let exemplar = exemplars[DurationHistogram::bucket(Duration::from_millis(8))].unwrap();
        assert_eq!((exemplar.trace_id, exemplar.seconds), (second.trace.trace_id, 0.008));
    }

    #[test]
    fn whatever_its_model_answered_is_an_exemplar() {
        let (shared, clock) = (Shared::default(), Clock::now());
        let of = |model: &str| {
            let target = Arc::new(Target::new(model, "1", "cpu"));
            Observed { target: Some(target), ..observed() }
        };
        let answered_in = Some(Duration::from_millis(3));
        // From what was kept, by a step, and in an answer that came to nothing after that.
        shared.note(&Observed { record: None, answered_in, ..of("kept") }, &clock);
        shared
            .note(&Observed { record: None, answered_in, steps: vec![of("step")], ..of("ensemble") }, &clock);
        shared.note(&Observed { code: Some(ErrorCode::Internal), ..of("late") }, &clock);
        // A batch that failed answered nothing.
        let failed = Observed { executed: false, code: Some(ErrorCode::Internal), ..of("failed") };
        shared.note(&failed, &clock);
        let exemplars = shared.exemplars();
        let seconds = |model: &str| -> Vec<f64> {
            let buckets = exemplars.get(&(model.into(), "1".into())).into_iter().flatten();
            buckets.flatten().map(|exemplar| exemplar.seconds).collect()
        };
        let models = ["kept", "ensemble", "step", "late", "failed"].map(seconds);
        assert_eq!(models, [vec![0.003], vec![0.003], vec![0.008], vec![0.008], vec![]]);
    }

    #[tokio::test]
    async fn what_is_not_kept_is_not_offered() {
        let collector = Collector::default();
        let recorder = recorder(&collector, 100).await;
        recorder.set_ratio(Some(0.0));
        recorder.observe(&observed());
        recorder.set_ratio(None);
        recorder.enable(false);
        recorder.observe(&observed());
        assert_eq!(recorder.tracing(), (false, 1.0));
        recorder.shutdown().await;
        assert!(collector.spans.lock().unwrap().is_empty());
        assert_eq!(recorder.sample().dropped, 0);
    }

    #[tokio::test]
    async fn a_collector_that_hangs_costs_drops_and_a_bounded_end() {
        let recorder = recorder(&Collector { hangs: true, ..Collector::default() }, 64).await;
        let started = Instant::now();
        let offered = 20_000;
        for _ in 0..offered {
            recorder.observe(&observed());
        }
        assert!(started.elapsed() < Duration::from_secs(5), "offering waits for nobody");
        recorder.shutdown().await;
        assert!(started.elapsed() < Duration::from_secs(15));
        // All of them, or all but what no bound held back; none twice. Batches add theirs.
        let sample = recorder.sample();
        assert_eq!(sample.exported, 0);
        assert!(sample.dropped >= offered * SPANS_A_REQUEST, "{}", sample.dropped);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_none_is_an_error_at_once() {
        let settings = Settings {
            endpoint: Some("no endpoint".to_owned()),
            protocol: Protocol::Grpc,
            ratio: 1.0,
            slow: Duration::from_secs(1),
            queue: 1,
            headers: HeaderMap::new(),
            service_name: String::new(),
            access: Access::Off,
        };
        for protocol in [Protocol::Grpc, Protocol::Http] {
            let started = Recorder::start(Settings { protocol, ..settings.clone() }).await;
            assert!(matches!(started, Err(StartError::Endpoint(_))), "{protocol:?}");
        }
    }
}
