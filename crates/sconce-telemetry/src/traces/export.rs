//! The thread that turns what is offered into log lines and spans, and sends these to a collector.

use super::access;
use super::batches::{self, Batches};
use super::keep::Reason;
use super::observed::Observed;
use super::recorder::Shared;
use super::spans::{self, Clock, SPANS_A_REQUEST};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// How long one export may take. A collector that takes longer is as good as none.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end may take to send what is left.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// Offers are looked at this often at most, so that a busy server wakes this thread seldom.
const GATHER: Duration = Duration::from_millis(20);
/// How long a span waits for others to be sent with.
const SEND_AFTER: Duration = Duration::from_millis(500);
/// As many are sent without waiting, and this many at most in one message.
const SEND_SPANS: usize = 512;
const MAX_SPANS_A_MESSAGE: usize = 2048;
/// Spans that wait while a message is on its way.
const MAX_PENDING: usize = 8192;
/// How often a collector that takes nothing is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How spans travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
    /// OTLP over HTTP, in protobuf.
    Http,
}

impl FromStr for Protocol {
    type Err = String;

    /// `grpc` or `http`; `http/protobuf` is what OpenTelemetry's variables call the latter.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http" | "http/protobuf" => Ok(Self::Http),
            _ => Err(format!("traces protocol: expected grpc or http, got {text:?}")),
        }
    }
}

/// An exporter to `endpoint`, which is not connected to yet. To be called in the runtime that will drive it.
pub(crate) fn otlp(endpoint: &str, protocol: Protocol, service_name: &str) -> Result<Otlp, String> {
    let endpoint = endpoint.trim_end_matches('/');
    let built = match protocol {
        Protocol::Grpc => {
            Otlp::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build()
        }
        Protocol::Http => {
            let has_path = endpoint.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
            let endpoint = if has_path { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") };
            Otlp::builder().with_http().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build()
        }
    };
    let mut exporter = built.map_err(|error| error.to_string())?;
    let about = [
        KeyValue::new("service.name", service_name.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    exporter.set_resource(&Resource::builder_empty().with_attributes(about).build());
    Ok(exporter)
}

/// A request that is worth a log line, spans, or both.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) observed: Observed,
    pub(crate) reason: Option<Reason>,
    pub(crate) spans: bool,
    pub(crate) line: bool,
}

/// A message on its way: how many spans it carries, and what came of it.
type Export = Pin<Box<dyn Future<Output = (usize, Result<(), String>)>>>;

/// What the thread works with.
pub(crate) struct Exporting<E> {
    exporter: Option<Arc<E>>,
    offers: mpsc::Receiver<Offer>,
    shared: Arc<Shared>,
    clock: Clock,
    scope: InstrumentationScope,
    batches: Batches,
    pending: Vec<SpanData>,
    pending_since: Instant,
    /// Spans of the message on its way.
    sending: usize,
    complained_at: Option<Instant>,
}

impl<E: SpanExporter + 'static> Exporting<E> {
    pub(crate) fn new(exporter: Option<E>, offers: mpsc::Receiver<Offer>, shared: Arc<Shared>) -> Self {
        Self {
            exporter: exporter.map(Arc::new),
            offers,
            shared,
            clock: Clock::now(),
            scope: InstrumentationScope::builder("sconce").build(),
            batches: Batches::default(),
            pending: Vec::new(),
            pending_since: Instant::now(),
            sending: 0,
            complained_at: None,
        }
    }

    /// Works until `stop`, then sends what is left, within [`FLUSH_LIMIT`].
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let shared = Arc::clone(&self.shared);
        let mut export: Option<Export> = None;
        let mut look_at = Instant::now();
        loop {
            let waits = !self.pending.is_empty() || !self.batches.is_empty();
            let due = Instant::now() + SEND_AFTER.min(batches::WAIT) / 2;
            tokio::select! {
                // Told to stop, or forgotten.
                _ = &mut stop => break,
                sent = run_some(&mut export) => {
                    export = None;
                    self.settle(sent);
                }
                () = async { sleep_until(look_at).await; shared.wake.notified().await } => {}
                () = sleep_until(due), if waits => {}
            }
            self.take_offers();
            look_at = Instant::now() + GATHER;
            let made = self.batches.due(Instant::now().into_std(), &self.clock, &self.scope);
            self.pend(made);
            if export.is_none() && self.is_due() {
                export = self.next_export();
            }
        }
        let deadline = Instant::now() + FLUSH_LIMIT;
        let flushed = tokio::time::timeout_at(deadline, self.flush(export)).await.is_ok();
        if !flushed {
            self.drop_spans(self.pending.len() + self.sending);
        }
    }

    async fn flush(&mut self, mut export: Option<Export>) {
        self.take_offers();
        let made = self.batches.all(&self.clock, &self.scope);
        self.pend(made);
        loop {
            if let Some(running) = export.take() {
                let sent = running.await;
                self.settle(sent);
            }
            export = self.next_export();
            if export.is_none() {
                return;
            }
        }
    }

    /// Takes what is offered now; what comes meanwhile has its turn later.
    fn take_offers(&mut self) {
        for _ in 0..self.offers.len() {
            let Ok(Offer { observed, reason, spans, line }) = self.offers.try_recv() else { return };
            if line {
                access::write(&observed, reason);
            }
            if let (true, Some(reason)) = (spans, reason) {
                self.take_kept(&observed, reason);
            }
        }
    }

    fn take_kept(&mut self, observed: &Observed, reason: Reason) {
        if self.pending.len() + SPANS_A_REQUEST as usize > MAX_PENDING {
            return self.drop_spans(SPANS_A_REQUEST as usize);
        }
        let spans = spans::of_request(observed, reason, &self.clock, &self.scope);
        let execute = spans::executed(&spans);
        if !self.pend(spans) {
            return;
        }
        self.shared.note(observed, &self.clock);
        if let Some(execute) = execute {
            let now = Instant::now().into_std();
            let made = self.batches.add(observed, execute, now, &self.clock, &self.scope);
            self.pend(made.into_iter().collect());
        }
    }

    /// Lets spans wait for the next message; drops them, `false`, when too many do.
    fn pend(&mut self, spans: Vec<SpanData>) -> bool {
        if self.exporter.is_none() {
            return false;
        }
        if self.pending.len() + spans.len() > MAX_PENDING {
            self.drop_spans(spans.len());
            return false;
        }
        if self.pending.is_empty() {
            self.pending_since = Instant::now();
        }
        self.pending.extend(spans);
        true
    }

    fn is_due(&self) -> bool {
        self.pending.len() >= SEND_SPANS
            || (!self.pending.is_empty() && self.pending_since.elapsed() >= SEND_AFTER)
    }

    /// The next message, if anything waits.
    fn next_export(&mut self) -> Option<Export> {
        let exporter = Arc::clone(self.exporter.as_ref()?);
        let count = self.pending.len().min(MAX_SPANS_A_MESSAGE);
        if count == 0 {
            return None;
        }
        let spans: Vec<SpanData> = self.pending.drain(..count).collect();
        self.sending = count;
        Some(Box::pin(async move {
            let sent = match timeout(EXPORT_TIMEOUT, exporter.export(spans)).await {
                Ok(sent) => sent.map_err(|error| error.to_string()),
                Err(_) => Err(format!("the collector did not answer within {EXPORT_TIMEOUT:?}")),
            };
            (count, sent)
        }))
    }

    fn settle(&mut self, (count, sent): (usize, Result<(), String>)) {
        self.sending = 0;
        let Err(error) = sent else {
            self.shared.exported.fetch_add(count as u64, Ordering::Relaxed);
            return;
        };
        self.drop_spans(count);
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained_at = Some(Instant::now());
            let dropped = self.shared.dropped.load(Ordering::Relaxed);
            tracing::warn!(error, dropped, "spans could not be exported; at most one such line a minute");
        }
    }

    fn drop_spans(&self, count: usize) {
        self.shared.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// `future`'s outcome, or for ever nothing.
async fn run_some(future: &mut Option<Export>) -> (usize, Result<(), String>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
