//! Queues to threads that write, or send, what others leave behind. Who offers never waits: what finds no place is dropped and counted.

use sconce_core::{ByteBudget, Reservation};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Bytes of items that wait, of each sink.
const WAITING_BYTES: usize = 64 << 20;
/// How often a sink looks for items: a thread that waits for each would be woken for each.
const GATHER: Duration = Duration::from_millis(20);
/// How long the end may take to write what is left.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// How often a sink that fails is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A thread that writes, and the queue to it.
pub(crate) struct Sink<T> {
    name: &'static str,
    sender: SyncSender<Offered<T>>,
    queue: usize,
    waiting: ByteBudget,
    counted: Arc<Counted>,
    stop: Mutex<Option<(SyncSender<()>, oneshot::Receiver<()>)>>,
}

/// An item, and what it holds of its sink's bytes.
pub(crate) struct Offered<T> {
    pub(crate) item: T,
    _bytes: Reservation,
}

/// What became of the items of one sink.
#[derive(Debug, Default)]
struct Counted {
    written: AtomicU64,
    /// Found no place.
    dropped: AtomicU64,
    /// Were taken and could not be written.
    failed: AtomicU64,
    waiting: AtomicU64,
}

/// What a sink's thread takes items from.
pub(crate) struct Inbox<T> {
    items: Receiver<Offered<T>>,
    stop: Receiver<()>,
    counted: Arc<Counted>,
    sink: &'static str,
    /// When it last said that it fails.
    complained: Option<Instant>,
}

impl<T: Send + 'static> Sink<T> {
    /// Starts the thread `sconce-NAME`, which runs `run` to its end.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn start(
        name: &'static str,
        queue: usize,
        run: impl FnOnce(Inbox<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, items) = sync_channel(queue);
        let (stop, stopped) = sync_channel(1);
        let (ended, has_ended) = oneshot::channel();
        let counted = Arc::<Counted>::default();
        let inbox =
            Inbox { items, stop: stopped, counted: Arc::clone(&counted), sink: name, complained: None };
        thread::Builder::new().name(format!("sconce-{name}")).spawn(move || {
            run(inbox);
            let _ = ended.send(());
        })?;
        let stop = Mutex::new(Some((stop, has_ended)));
        Ok(Self { name, sender, queue, waiting: ByteBudget::new(WAITING_BYTES), counted, stop })
    }

    /// Offers an item that holds about `bytes` of memory.
    pub(crate) fn offer(&self, item: T, bytes: usize) {
        let offered = self.waiting.reserve(bytes).ok().map(|reserved| {
            self.counted.waiting.fetch_add(1, Ordering::Relaxed);
            self.sender.try_send(Offered { item, _bytes: reserved }).inspect_err(|_| {
                self.counted.waiting.fetch_sub(1, Ordering::Relaxed);
            })
        });
        if !matches!(offered, Some(Ok(()))) {
            self.counted.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A scrape's view of it.
    pub(crate) fn sample(&self) -> sconce_telemetry::metrics::SinkSample {
        let waiting = self.counted.waiting.load(Ordering::Relaxed);
        sconce_telemetry::metrics::SinkSample {
            sink: self.name,
            written: self.counted.written.load(Ordering::Relaxed),
            dropped: self.counted.dropped.load(Ordering::Relaxed),
            failed: self.counted.failed.load(Ordering::Relaxed),
            queue: (usize::try_from(waiting).unwrap_or(usize::MAX), self.queue),
        }
    }

    /// Writes what is left and ends the thread, within a little over five seconds; what is left then is lost.
    pub(crate) async fn shutdown(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, ended)) = stop else { return };
        let _ = stop.try_send(());
        drop(stop);
        if tokio::time::timeout(FLUSH_LIMIT + Duration::from_millis(500), ended).await.is_err() {
            tracing::warn!(sink = self.name, "the last items were not written in time: they are lost");
        }
    }
}

impl<T> Inbox<T> {
    /// Waits a moment, takes what is there up to `most` items in all, and says whether to go on: not once it was told to stop and
    /// nothing is left.
    pub(crate) fn gather(&self, into: &mut Vec<Offered<T>>, most: usize) -> bool {
        let mut stopping = false;
        if into.len() < most {
            stopping = !self.pause(GATHER);
        }
        while into.len() < most {
            match self.items.try_recv() {
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

    /// Waits so long, unless it is told to stop meanwhile; whether to go on.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        matches!(self.stop.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// Counts what was written.
    pub(crate) fn written(&self, items: usize) {
        self.counted.written.fetch_add(items as u64, Ordering::Relaxed);
    }

    /// Counts what could not be written, and says so, at most once a minute.
    pub(crate) fn failed(&mut self, items: usize, error: &dyn std::fmt::Display) {
        self.counted.failed.fetch_add(items as u64, Ordering::Relaxed);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            let sink = self.sink;
            tracing::warn!(sink, %error, items, "items could not be written; at most one such line a minute");
        }
    }
}
