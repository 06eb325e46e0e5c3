//! What people decide: predictions that a model's `[review]` leaves to them wait in the registry's journal until somebody answers, or
//! they expire. One thread owns the queue: nobody gets what another has, and what is told to be in it is on disk, many with one sync.
//!
//! Entries are `MODEL/ID`. What leaves the queue is removed, with its content. Who has what is in memory alone: a server that starts
//! again has forgotten it, and everything that waits may be claimed by anybody.

mod draft;
mod queue;

pub(crate) use draft::{Draft, Item, Shown, check};
pub(crate) use queue::Claim;

use crate::config::Review;
use crate::feedback::now_ms;
use crate::models::Served;
use queue::{Bounds, Queue};
use sconce_core::{Error, ErrorCode, ModelName, PredictionId, Result};
use sconce_registry::{Journal, Registry, RegistryError, Ticket, Topic, TopicLimits, limits};
use sconce_telemetry::metrics::{ReviewDecisions, ReviewSample};
use sconce_traffic::defer::Disposition;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};

/// Calls that wait for the thread.
const CALLS: usize = 1024;
/// Calls that share one sync of the disk.
const BATCH: usize = 256;
/// How often it is looked what has expired.
const TICK: Duration = Duration::from_secs(1);
/// Events that a watch may be behind.
const EVENTS: usize = 256;
/// Versions whose decisions are told apart; those beyond share one place.
const MAX_VERSIONS: usize = 512;
/// What an entry of the journal counts beside its key and value.
const ENTRY_BYTES: u64 = 64;
/// How long what is being answered is left to who answers, at least.
const HOLD_MS: u64 = 60_000;

/// The queue of what people decide, as everybody else sees it.
pub(crate) struct Reviews {
    calls: Mutex<Option<SyncSender<Call>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    events: broadcast::Sender<Event>,
    decisions: Mutex<BTreeMap<(String, String), ReviewDecisions>>,
    figures: Arc<Mutex<Figures>>,
    bounds: Bounds,
}

/// Works on the queue, and says what is to happen once that is on disk.
type Call = Box<dyn FnOnce(&mut Desk) -> Reply + Send>;
type Reply = Box<dyn FnOnce(&Result<()>) + Send>;

/// What happened to the queue.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) what: &'static str,
    pub(crate) model: ModelName,
    pub(crate) id: PredictionId,
    /// Empty: nobody did it.
    pub(crate) by: String,
    /// How many of the model wait now.
    pub(crate) waiting: usize,
}

/// A prediction that waits.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) model: ModelName,
    pub(crate) id: PredictionId,
    pub(crate) expires_ms: u64,
    pub(crate) claim: Option<Claim>,
    pub(crate) item: Item,
}

/// What a scrape says of the queue.
#[derive(Debug, Default)]
struct Figures {
    depths: Vec<(String, usize)>,
    /// When the one that has waited longest came, by model, in milliseconds since 1970.
    oldest: Vec<(String, u64)>,
    bytes: u64,
    ended: BTreeMap<&'static str, u64>,
}

/// What the thread works on.
struct Desk {
    registry: Arc<Registry>,
    queue: Queue,
    /// Of the last write: what was written before is on disk when that is.
    ticket: Option<Ticket>,
    events: broadcast::Sender<Event>,
    figures: Arc<Mutex<Figures>>,
}

impl Reviews {
    /// Takes up what waits, and starts the thread. Blocks.
    ///
    /// # Errors
    /// When there is no thread, or the journal cannot be read.
    pub(crate) fn start(settings: &Review, registry: Arc<Registry>) -> io::Result<Arc<Self>> {
        let time_to_live = settings.time_to_live();
        let bounds = Bounds {
            max_items: settings.max_items,
            max_bytes: settings.max_bytes,
            time_to_live_ms: u64::try_from(time_to_live.as_millis()).unwrap_or(u64::MAX),
        };
        // The queue refuses what would make the journal forget the oldest. It forgets what is old a moment before the journal would.
        let time_to_live = time_to_live + Duration::from_secs(3600);
        let limits = TopicLimits { time_to_live, max_bytes: u64::MAX };
        registry.journal().set_limits(Topic::Reviews, limits);
        let (events, _) = broadcast::channel(EVENTS);
        let figures = Arc::<Mutex<Figures>>::default();
        let queue = taken_up(registry.journal(), bounds).map_err(io::Error::other)?;
        let desk =
            Desk { registry, queue, ticket: None, events: events.clone(), figures: Arc::clone(&figures) };
        desk.publish();
        let (calls, waiting) = sync_channel(CALLS);
        let named = thread::Builder::new().name("sconce-review".to_owned());
        let thread = named.spawn(move || desk.run(&waiting))?;
        let (calls, thread) = (Mutex::new(Some(calls)), Mutex::new(Some(thread)));
        Ok(Arc::new(Self { calls, thread, events, decisions: Mutex::default(), figures, bounds }))
    }

    /// Counts what becomes of an answer.
    pub(crate) fn count(&self, served: &Served, disposition: Disposition) {
        let mut decisions = lock(&self.decisions);
        let key = (served.name.to_string(), served.version_text.clone());
        let is_known = decisions.contains_key(&key) || decisions.len() < MAX_VERSIONS;
        let key = if is_known { key } else { ("other".to_owned(), "other".to_owned()) };
        let counted = decisions.entry(key.clone()).or_insert_with(|| {
            let (model, version) = key;
            ReviewDecisions { model, version, ..ReviewDecisions::default() }
        });
        match disposition {
            Disposition::Answer => counted.answered += 1,
            Disposition::Suggest => counted.suggested += 1,
            Disposition::Defer(cause) => *counted.deferred.entry(cause.as_str()).or_default() += 1,
        }
    }

    /// Puts a prediction into the queue. It is on disk when this returns.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait, for people or for the disk; `Unavailable` after a write failed.
    pub(crate) async fn add(&self, model: ModelName, id: PredictionId, item: &Item) -> Result<()> {
        let value = item.encode()?;
        self.ask(move |desk| desk.add(&model, id, &value)).await
    }

    /// Gives `by` the oldest `count` of a model that nobody has, for `lease`.
    ///
    /// # Errors
    /// `NotFound` for the model; `Internal` when the journal cannot be read.
    pub(crate) async fn claim(
        &self,
        model: ModelName,
        by: String,
        count: usize,
        lease: Duration,
    ) -> Result<Vec<Listed>> {
        self.ask(move |desk| desk.claim(&model, &by, count, lease)).await
    }

    /// Leaves predictions to `by`, who is about to answer them.
    ///
    /// # Errors
    /// `NotFound` where one does not wait, `FailedPrecondition` where another has it: then nothing has changed.
    pub(crate) async fn hold(&self, model: ModelName, by: String, ids: Vec<PredictionId>) -> Result<()> {
        self.ask(move |desk| desk.hold(&model, &by, &ids)).await
    }

    /// Takes predictions that `by` answered out of the queue. That is on disk when this returns.
    ///
    /// # Errors
    /// `Unavailable` after a write failed.
    pub(crate) async fn close(&self, model: ModelName, by: String, ids: Vec<PredictionId>) -> Result<()> {
        self.ask(move |desk| ids.iter().try_for_each(|id| desk.remove("answered", &model, *id, &by))).await
    }

    /// `by` gives a prediction back, for others.
    ///
    /// # Errors
    /// `NotFound` where it does not wait, `FailedPrecondition` where another has it.
    pub(crate) async fn skip(&self, model: ModelName, id: PredictionId, by: String) -> Result<()> {
        self.ask(move |desk| desk.skip(&model, id, &by)).await
    }

    /// What waits behind `after`, at most `limit`.
    ///
    /// # Errors
    /// `Internal` when the journal cannot be read.
    pub(crate) async fn list(
        &self,
        model: Option<ModelName>,
        after: Option<(ModelName, PredictionId)>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        self.ask(move |desk| {
            let now_ms = now_ms();
            let after = after.as_ref().map(|(model, id)| (model, *id));
            let found = desk.queue.list(model.as_ref(), after, limit, now_ms);
            found.into_iter().filter_map(|row| desk.listed(row, now_ms).transpose()).collect()
        })
        .await
    }

    /// What happens from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// A scrape's view.
    pub(crate) fn sample(&self) -> ReviewSample {
        let decisions = lock(&self.decisions).values().cloned().collect();
        let figures = lock(&self.figures);
        ReviewSample {
            decisions,
            depths: figures.depths.clone(),
            oldest: figures.oldest.iter().map(|(model, since)| (model.clone(), waited(*since))).collect(),
            max_items: self.bounds.max_items,
            bytes: (figures.bytes, self.bounds.max_bytes),
            ended: figures.ended.iter().map(|(how, count)| (*how, *count)).collect(),
        }
    }

    /// Ends the thread, once what waits for it is done.
    pub(crate) async fn shutdown(&self) {
        drop(lock(&self.calls).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic there leaves nothing to do here.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, outcome) = oneshot::channel();
        let call: Call = Box::new(move |desk| {
            let done = work(desk);
            Box::new(move |durable: &Result<()>| {
                let durable = durable.as_ref().copied().map_err(Error::repeat);
                // Whoever asked may be gone.
                let _ = sender.send(done.and_then(|value| durable.map(|()| value)));
            })
        });
        let stopping = || Error::new(ErrorCode::Unavailable, "the server is shutting down");
        let calls = lock(&self.calls).clone().ok_or_else(stopping)?;
        calls.try_send(call).map_err(|error| match error {
            TrySendError::Full(_) => {
                let message = format!("{CALLS} calls wait for the queue of reviews already");
                Error::new(ErrorCode::ResourceExhausted, message).with_retry_after(TICK)
            }
            TrySendError::Disconnected(_) => stopping(),
        })?;
        drop(calls);
        outcome.await.map_err(|_| stopping())?
    }
}

impl Desk {
    /// Works off what comes until nobody can ask any more.
    fn run(mut self, calls: &Receiver<Call>) {
        loop {
            let first = match calls.recv_timeout(TICK) {
                Ok(call) => Some(call),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let waiting = first.into_iter().chain(calls.try_iter()).take(BATCH);
            let replies: Vec<Reply> = waiting.map(|call| call(&mut self)).collect();
            if let Err(error) = self.expire() {
                tracing::warn!(%error, "reviews that expired could not be removed");
            }
            let durable = self.ticket.take().map_or(Ok(()), |ticket| ticket.wait().map_err(Error::from));
            self.publish();
            replies.into_iter().for_each(|reply| reply(&durable));
        }
    }

    fn add(&mut self, model: &ModelName, id: PredictionId, value: &[u8]) -> Result<()> {
        let key = key(model, id);
        let bytes = entry_bytes(&key, value);
        self.queue.check_room(model, bytes).inspect_err(|_| self.ended("refused"))?;
        self.ticket = Some(self.registry.journal().append(Topic::Reviews, &key, value, now_ms())?);
        self.queue.add(model, id, bytes);
        self.tell("added", model, id, "");
        Ok(())
    }

    fn claim(&mut self, model: &ModelName, by: &str, count: usize, lease: Duration) -> Result<Vec<Listed>> {
        self.registry.model(model)?;
        let now_ms = now_ms();
        let until_ms = now_ms.saturating_add(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        let mut claimed = Vec::new();
        for id in self.queue.claim(model, by, count, (now_ms, until_ms)) {
            let claim = Claim { by: by.to_owned(), until_ms };
            claimed.extend(self.listed((model.clone(), id, Some(claim)), now_ms)?);
            self.tell("claimed", model, id, by);
        }
        Ok(claimed)
    }

    fn hold(&mut self, model: &ModelName, by: &str, ids: &[PredictionId]) -> Result<()> {
        let now_ms = now_ms();
        ids.iter().try_for_each(|id| self.queue.check(model, *id, by, now_ms))?;
        ids.iter().for_each(|id| self.queue.hold(model, *id, by, now_ms + HOLD_MS));
        Ok(())
    }

    fn skip(&mut self, model: &ModelName, id: PredictionId, by: &str) -> Result<()> {
        self.queue.check(model, id, by, now_ms())?;
        self.queue.skip(model, id, by);
        self.ended("skipped");
        self.tell("skipped", model, id, by);
        Ok(())
    }

    fn expire(&mut self) -> Result<()> {
        for (model, id) in self.queue.expired(now_ms()) {
            self.remove("expired", &model, id, "")?;
        }
        Ok(())
    }

    fn remove(&mut self, how: &'static str, model: &ModelName, id: PredictionId, by: &str) -> Result<()> {
        let removed = self.registry.journal().remove(Topic::Reviews, &key(model, id))?;
        self.ticket = removed.or(self.ticket.take());
        if self.queue.remove(model, id) {
            self.ended(how);
            self.tell(how, model, id, by);
        }
        Ok(())
    }

    /// What is stored of a prediction; `None` where that is gone.
    fn listed(
        &self,
        (model, id, claim): (ModelName, PredictionId, Option<Claim>),
        now_ms: u64,
    ) -> Result<Option<Listed>> {
        let stored = self.registry.journal().get(Topic::Reviews, &key(&model, id), now_ms)?;
        let Some(stored) = stored else { return Ok(None) };
        let expires_ms = self.queue.expires_ms(id);
        Ok(Some(Listed { item: Item::decode(&stored)?, model, id, expires_ms, claim }))
    }

    fn tell(&self, what: &'static str, model: &ModelName, id: PredictionId, by: &str) {
        let waiting = self.queue.waiting(model);
        // Nobody may watch.
        let _ = self.events.send(Event { what, model: model.clone(), id, by: by.to_owned(), waiting });
    }

    fn ended(&self, how: &'static str) {
        *lock(&self.figures).ended.entry(how).or_default() += 1;
    }

    fn publish(&self) {
        let mut figures = lock(&self.figures);
        let depths = self.queue.depths().take(MAX_VERSIONS);
        figures.depths = depths.map(|(model, depth)| (model.to_string(), depth)).collect();
        let oldest = self.queue.oldest().take(MAX_VERSIONS);
        figures.oldest = oldest.map(|(model, since)| (model.to_string(), since)).collect();
        figures.bytes = self.queue.bytes();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(model: &ModelName, id: PredictionId) -> Vec<u8> {
    format!("{model}/{id}").into_bytes()
}

fn entry_bytes(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64 + ENTRY_BYTES
}

/// What the journal says is waiting.
fn taken_up(journal: &Journal, bounds: Bounds) -> Result<Queue, RegistryError> {
    let (mut queue, mut after) = (Queue::new(bounds), Vec::new());
    loop {
        let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(&after[..]) };
        let page = journal.scan(Topic::Reviews, from, Bound::Unbounded, limits::PAGE, now_ms())?;
        for (key, value) in &page {
            let text = std::str::from_utf8(key).ok().and_then(|key| key.rsplit_once('/'));
            let parsed =
                text.and_then(|(model, id)| Some((ModelName::new(model).ok()?, PredictionId::parse(id)?)));
            let (model, id) = parsed
                .ok_or_else(|| RegistryError::Damaged("journal: a review without a prediction".to_owned()))?;
            queue.add(&model, id, entry_bytes(key, value));
        }
        if page.len() < limits::PAGE {
            return Ok(queue);
        }
        after = page.last().map(|(key, _)| key.clone()).unwrap_or_default();
    }
}

/// How long ago a time was, in seconds.
fn waited(since_ms: u64) -> f64 {
    now_ms().saturating_sub(since_ms) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_traffic::defer::Cause;

    fn item() -> Item {
        let (variant, disposition) = (String::new(), Disposition::Defer(Cause::Unknown));
        Item { version: 1, variant, disposition, inputs: Vec::new(), outputs: Vec::new() }
    }

    #[tokio::test]
    async fn what_waits_is_there_when_it_is_opened_again_and_what_expired_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let registry = || Arc::new(Registry::open(folder.path()).unwrap());
        let (model, ids) = (ModelName::new("m").unwrap(), [PredictionId::new(), PredictionId::new()]);
        let ended = |reviews: &Reviews| reviews.sample().ended;
        {
            let reviews = Reviews::start(&Review::default(), registry()).unwrap();
            for id in ids {
                reviews.add(model.clone(), id, &item()).await.unwrap();
            }
            reviews.hold(model.clone(), "anna".to_owned(), vec![ids[0]]).await.unwrap();
            reviews.close(model.clone(), "anna".to_owned(), vec![ids[0]]).await.unwrap();
            assert_eq!(ended(&reviews), [("answered", 1)]);
            reviews.shutdown().await;
            assert_eq!(reviews.list(None, None, 9).await.unwrap_err().code(), ErrorCode::Unavailable);
        }
        {
            let reviews = Reviews::start(&Review::default(), registry()).unwrap();
            let listed = reviews.list(None, None, 9).await.unwrap();
            assert_eq!((listed.len(), listed[0].id, &listed[0].item), (1, ids[1], &item()));
            assert_eq!(reviews.sample().depths, [("m".to_owned(), 1)]);
            let [(model, seconds)] = &reviews.sample().oldest[..] else { panic!() };
            assert!(model == "m" && (0.0..60.0).contains(seconds), "{seconds}");
            reviews.shutdown().await;
        }
        let registry = registry();
        let reviews =
            Reviews::start(&Review { expire_hours: 0, ..Review::default() }, Arc::clone(&registry)).unwrap();
        // It looks after each call.
        let _ = reviews.list(None, None, 9).await.unwrap();
        assert!(reviews.list(None, None, 9).await.unwrap().is_empty());
        assert_eq!((ended(&reviews), reviews.sample().bytes.0), (vec![("expired", 1)], 0));
        assert_eq!(registry.journal().stats(Topic::Reviews).entries, 0);
        reviews.shutdown().await;
    }
}
