//! The thread that turns what is offered into log lines and spans, and sends these to a collector.

use super::access;
use super::batches::{self, Batches};
use super::keep::Reason;
use super::observed::Observed;
use super::operations;
use super::otlp::{Head, Spans};
use super::recorder::Shared;
use super::send::{Send, Sent};
use super::spans::{self, Clock};
use opentelemetry_sdk::trace::SpanData;
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
/// As many are sent without waiting.
const SEND_SPANS: usize = 512;
/// Bytes of spans that wait while a message is on its way; they are the next. Half of what a gRPC server takes by default.
const MAX_PENDING_BYTES: usize = 2 << 20;
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

/// What is worth a log line, spans, or both.
#[derive(Debug)]
pub(crate) enum Offer {
    /// A request; `spans` says whether it becomes spans, `line` whether a log line.
    Request { observed: Observed, reason: Option<Reason>, spans: bool, line: bool },
    /// What was done off the requests' way.
    Operation(SpanData),
}

/// What the thread works with.
pub(crate) struct Exporting {
    send: Option<Send>,
    head: Head,
    offers: mpsc::Receiver<Offer>,
    shared: Arc<Shared>,
    clock: Clock,
    batches: Batches,
    pending: Spans,
    pending_since: Instant,
    /// Spans of the message on its way.
    sending: usize,
    complained_at: Option<Instant>,
}

impl Exporting {
    pub(crate) fn new(
        send: Option<Send>,
        head: Head,
        offers: mpsc::Receiver<Offer>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            send,
            head,
            offers,
            shared,
            clock: Clock::now(),
            batches: Batches::default(),
            pending: Spans::default(),
            pending_since: Instant::now(),
            sending: 0,
            complained_at: None,
        }
    }

    /// Works until `stop`, then sends what is left, within [`FLUSH_LIMIT`].
    pub(crate) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let shared = Arc::clone(&self.shared);
        let mut export: Option<Sent> = None;
        let mut look_at = Instant::now();
        loop {
            let waits = self.pending.count() > 0 || !self.batches.is_empty();
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
            self.batches.due(Instant::now().into_std(), &self.clock, &mut self.pending);
            if export.is_none() && self.is_due() {
                export = self.next_export();
            }
        }
        let deadline = Instant::now() + FLUSH_LIMIT;
        let flushed = tokio::time::timeout_at(deadline, self.flush(export)).await.is_ok();
        if !flushed {
            self.drop_spans(self.pending.count() + self.sending);
        }
    }

    async fn flush(&mut self, mut export: Option<Sent>) {
        self.take_offers();
        self.batches.all(&self.clock, &mut self.pending);
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
            match self.offers.try_recv() {
                Ok(Offer::Request { observed, reason, spans, line }) => {
                    if line {
                        access::write(&observed, reason);
                    }
                    if let (true, Some(reason)) = (spans, reason) {
                        self.take_kept(&observed, reason);
                    }
                }
                Ok(Offer::Operation(span)) => {
                    if self.has_room(1) {
                        operations::write(&span, &mut self.pending);
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn take_kept(&mut self, observed: &Observed, reason: Reason) {
        if !self.has_room(observed.spans_at_most()) {
            return;
        }
        let mut ran = Vec::new();
        let mut executed = |observed, ids| ran.push((observed, ids));
        spans::of_request(observed, reason, &self.clock, &mut self.pending, &mut executed);
        self.shared.note(observed, &self.clock);
        let now = Instant::now().into_std();
        for (observed, execute) in ran {
            self.batches.add(observed, execute, now, &self.clock, &mut self.pending);
        }
    }

    /// Whether so many more spans may wait for the next message; counts them as dropped where not. What one request adds is
    /// bounded, and so is what goes beyond the bound.
    fn has_room(&mut self, spans: u64) -> bool {
        if self.send.is_none() {
            return false;
        }
        if self.pending.bytes() >= MAX_PENDING_BYTES {
            self.drop_spans(usize::try_from(spans).unwrap_or(usize::MAX));
            return false;
        }
        if self.pending.count() == 0 {
            self.pending_since = Instant::now();
        }
        true
    }

    fn is_due(&self) -> bool {
        self.pending.count() >= SEND_SPANS
            || (self.pending.count() > 0 && self.pending_since.elapsed() >= SEND_AFTER)
    }

    /// The next message, if anything waits.
    fn next_export(&mut self) -> Option<Sent> {
        let send = self.send.as_ref()?;
        if self.pending.count() == 0 {
            return None;
        }
        self.sending = self.pending.count();
        let sent = send(self.pending.message(&self.head, super::send::ROOM));
        self.pending.clear();
        Some(Box::pin(async move {
            let late = |_| Err(format!("the collector did not answer within {EXPORT_TIMEOUT:?}"));
            timeout(EXPORT_TIMEOUT, sent).await.unwrap_or_else(late)
        }))
    }

    fn settle(&mut self, sent: Result<(), String>) {
        let count = std::mem::take(&mut self.sending);
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
async fn run_some(future: &mut Option<Sent>) -> Result<(), String> {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
