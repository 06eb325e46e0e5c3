//! What is written often and may age. An entry is visible at once and on disk a little later, many with one sync.

use crate::store::{Batch, Store};
use crate::topic::TopicState;
use crate::{RegistryError, Result, Topic, TopicLimits, TopicStats, limits};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What sled may keep of the journal in memory.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// How often sled moves what is left of mostly empty segments of its log. Entries come and go here, so without it the file
/// would grow; that it syncs as well is no harm, for nothing is acknowledged by it.
const CLEAN_EVERY_MS: u64 = 5_000;
/// How long an entry may wait for others before all are brought to disk.
const GROUP: Duration = Duration::from_millis(20);
/// How often what has expired is removed while nothing is appended.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Most entries that wait for the disk, and their bytes.
const PENDING: u64 = 65_536;
const PENDING_BYTES: u64 = 32 * 1024 * 1024;
/// Most entries that expired and are removed by one append.
const EXPIRED_AT_ONCE: usize = 16;
/// What an entry counts beside its key and value.
const ENTRY_BYTES: u64 = 64;
/// Bytes of a key; none of them zero.
pub const KEY_BYTES: usize = 256;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 64 * 1024;

/// Entries by topic and key. Dropping it brings to disk what was appended.
pub struct Journal {
    store: Arc<Store>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// An entry that was appended.
#[must_use = "the entry is on disk only when `wait` returned"]
pub struct Ticket {
    shared: Arc<Shared>,
    number: u64,
}

/// Apart from the store, so that a ticket does not keep that open.
struct Shared {
    state: Mutex<State>,
    /// Something is to be brought to disk.
    work: Condvar,
    /// Something was, or cannot be.
    done: Condvar,
}

struct State {
    topics: [TopicState; Topic::ALL.len()],
    /// Tickets given, and how many of them are on disk.
    appended: u64,
    durable: u64,
    /// The order of entries of the same time.
    next_order: u64,
    pending_bytes: u64,
    hurry: bool,
    closing: bool,
    failed: Option<String>,
}

/// Where an entry stands in the order of a topic.
struct Place {
    index: Vec<u8>,
    at_ms: u64,
    bytes: u64,
    key: Vec<u8>,
}

impl Journal {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let store = Store::open(folder, CACHE_BYTES, Some(CLEAN_EVERY_MS))?;
        let mut state = State {
            topics: Default::default(),
            appended: 0,
            durable: 0,
            next_order: 0,
            pending_bytes: 0,
            hurry: false,
            closing: false,
            failed: None,
        };
        for (topic, counted) in Topic::ALL.iter().zip(&mut state.topics) {
            counted.front = order_key(*topic, u64::MAX, u64::MAX);
            store.scan(&order_prefix(*topic), Bound::Unbounded, |index, stored| {
                let place = Place::parse(index, &stored)?;
                if counted.stats.entries == 0 {
                    counted.front = index.to_vec();
                }
                counted.stats.entries += 1;
                counted.stats.bytes += place.bytes;
                state.next_order = state.next_order.max(place.order() + 1);
                Ok(true)
            })?;
        }
        let store = Arc::new(store);
        let shared =
            Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() });
        let theirs = (Arc::clone(&shared), Arc::clone(&store));
        let named = thread::Builder::new().name("sconce-journal".to_owned());
        let thread = named.spawn(move || theirs.0.run(&theirs.1));
        let thread = thread.map_err(RegistryError::io("start a thread for", folder))?;
        Ok(Self { store, shared, thread: Some(thread) })
    }

    /// Sets the bounds of a topic, from the next append on.
    pub fn set_limits(&self, topic: Topic, limits: TopicLimits) {
        self.shared.lock().topics[topic.index()].limits = limits;
    }

    /// What there is of a topic.
    pub fn stats(&self, topic: Topic) -> TopicStats {
        self.shared.lock().topics[topic.index()].stats
    }

    /// Appends `value` under `key` (1 to [`KEY_BYTES`] bytes, none zero), in place of what was there, at `now_ms`
    /// (milliseconds since 1970). Visible at once; on disk within some 20 ms, when [`Ticket::wait`] returns.
    ///
    /// # Errors
    /// `InvalidArgument` for a key or value that is too long; `ResourceExhausted` when it is larger than its topic may be, or
    /// too much waits for the disk; `Unavailable` after a write failed.
    pub fn append(&self, topic: Topic, key: &[u8], value: &[u8], now_ms: u64) -> Result<Ticket> {
        check(key, value)?;
        let store = &self.store;
        let mut state = self.shared.lock();
        if let Some(reason) = &state.failed {
            return Err(RegistryError::Unwritable(reason.clone()));
        }
        if state.appended - state.durable >= PENDING || state.pending_bytes >= PENDING_BYTES {
            return Err(RegistryError::Exhausted("journal: too much waits for the disk".to_owned()));
        }
        let TopicState { limits, mut stats, mut front } = state.topics[topic.index()].clone();
        let bytes = key.len() as u64 + value.len() as u64 + ENTRY_BYTES;
        if bytes > limits.max_bytes {
            let message = format!("journal: an entry of {bytes} bytes, where {} may be", limits.max_bytes);
            return Err(RegistryError::Exhausted(message));
        }
        let mut batch = Batch::new();
        let mut replaced = None;
        if let Some(old) = store.get(&record_key(topic, key))? {
            let (at_ms, order, old) = parse_record(&old)?;
            let index = order_key(topic, at_ms, order);
            stats.entries -= 1;
            stats.bytes = stats.bytes.saturating_sub(key.len() as u64 + old.len() as u64 + ENTRY_BYTES);
            batch.insert(index.clone(), None);
            replaced = Some(index);
        }
        let mut expired = 0;
        let start = front.clone();
        store.scan(&order_prefix(topic), Bound::Included(&start), |index, stored| {
            if replaced.as_deref() == Some(index) {
                return Ok(true);
            }
            front = index.to_vec();
            let place = Place::parse(index, &stored)?;
            let old = is_expired(place.at_ms, limits, now_ms) && expired < EXPIRED_AT_ONCE;
            let full = stats.bytes + bytes > limits.max_bytes;
            if !old && !full {
                return Ok(false);
            }
            if old {
                expired += 1;
            }
            place.remove(topic, &mut batch, &mut stats, old);
            Ok(true)
        })?;
        let order = state.next_order;
        let record = [&now_ms.to_be_bytes(), &order.to_be_bytes(), value].concat();
        batch.insert(record_key(topic, key), Some(record));
        let size = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
        let index = order_key(topic, now_ms, order);
        front = front.min(index.clone());
        batch.insert(index, Some([&size, key].concat()));
        stats.entries += 1;
        stats.bytes += bytes;
        if let Err(error) = store.apply(&batch, || {}) {
            state.failed = Some(error.to_string());
            return Err(error);
        }
        state.topics[topic.index()] = TopicState { limits, stats, front };
        state.next_order += 1;
        state.appended += 1;
        state.pending_bytes += bytes;
        let number = state.appended;
        drop(state);
        self.shared.work.notify_one();
        Ok(Ticket { shared: Arc::clone(&self.shared), number })
    }

    /// Removes what is under `key`, if there is something: gone at once, and on disk like an append.
    ///
    /// # Errors
    /// `Unavailable` after a write failed; `Internal` when the entry cannot be read.
    pub fn remove(&self, topic: Topic, key: &[u8]) -> Result<Option<Ticket>> {
        let mut state = self.shared.lock();
        if let Some(reason) = &state.failed {
            return Err(RegistryError::Unwritable(reason.clone()));
        }
        let Some(stored) = self.store.get(&record_key(topic, key))? else { return Ok(None) };
        let (at_ms, order, value) = parse_record(&stored)?;
        let mut batch = Batch::new();
        batch.insert(record_key(topic, key), None);
        batch.insert(order_key(topic, at_ms, order), None);
        if let Err(error) = self.store.apply(&batch, || {}) {
            state.failed = Some(error.to_string());
            return Err(error);
        }
        let stats = &mut state.topics[topic.index()].stats;
        stats.entries = stats.entries.saturating_sub(1);
        stats.bytes = stats.bytes.saturating_sub(key.len() as u64 + value.len() as u64 + ENTRY_BYTES);
        state.appended += 1;
        let number = state.appended;
        drop(state);
        self.shared.work.notify_one();
        Ok(Some(Ticket { shared: Arc::clone(&self.shared), number }))
    }

    /// The value under `key`, unless it expired before `now_ms`.
    ///
    /// # Errors
    /// `Internal` when it cannot be read.
    pub fn get(&self, topic: Topic, key: &[u8], now_ms: u64) -> Result<Option<Vec<u8>>> {
        let limits = self.shared.lock().topics[topic.index()].limits;
        let Some(stored) = self.store.get(&record_key(topic, key))? else { return Ok(None) };
        let (at_ms, _, value) = parse_record(&stored)?;
        Ok((!is_expired(at_ms, limits, now_ms)).then(|| value.to_vec()))
    }

    /// Keys and values from `from` to `to`, by key, at most `limit` (1 to [`limits::PAGE`]), without what expired before
    /// `now_ms`.
    ///
    /// # Errors
    /// `InvalidArgument` for another limit; `Internal` when an entry cannot be read.
    pub fn scan(
        &self,
        topic: Topic,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
        now_ms: u64,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let limit = limits::page(limit)?;
        let bounds = self.shared.lock().topics[topic.index()].limits;
        let prefix = record_key(topic, &[]);
        let start = from.map(|key| record_key(topic, key));
        let mut found = Vec::new();
        self.store.scan(&prefix, start.as_ref().map(Vec::as_slice), |key, stored| {
            let key = &key[prefix.len()..];
            let inside = match to {
                Bound::Included(to) => key <= to,
                Bound::Excluded(to) => key < to,
                Bound::Unbounded => true,
            };
            if !inside {
                return Ok(false);
            }
            let (at_ms, _, value) = parse_record(&stored)?;
            if !is_expired(at_ms, bounds, now_ms) {
                found.push((key.to_vec(), value.to_vec()));
            }
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    /// Removes everything that expired before `now_ms`; returns how many entries. The journal's thread does so each minute.
    ///
    /// # Errors
    /// `Unavailable` after a write failed; `Internal` when an entry cannot be read.
    pub fn sweep(&self, now_ms: u64) -> Result<u64> {
        self.shared.sweep(&self.store, now_ms)
    }

    /// Returns when all that was appended is on disk.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be brought there.
    pub fn sync(&self) -> Result<()> {
        let mut state = self.shared.lock();
        state.hurry = true;
        self.shared.work.notify_one();
        let number = state.appended;
        self.shared.wait(state, number)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic there leaves nothing to do here.
            let _ = thread.join();
        }
    }
}

impl Ticket {
    /// Returns when the entry is on disk.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be brought there.
    pub fn wait(self) -> Result<()> {
        self.shared.wait(self.shared.lock(), self.number)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, state: MutexGuard<'_, State>, number: u64) -> Result<()> {
        let waits = |state: &mut State| state.durable < number && state.failed.is_none();
        let state = self.done.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(reason) if state.durable < number => Err(RegistryError::Unwritable(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Brings to disk what is appended, until the journal is dropped.
    fn run(&self, store: &Store) {
        let mut state = self.lock();
        loop {
            let idle = |state: &mut State| state.appended == state.durable && !state.closing;
            let (waited, slept) = self
                .work
                .wait_timeout_while(state, SWEEP_EVERY, idle)
                .unwrap_or_else(PoisonError::into_inner);
            state = waited;
            if slept.timed_out() {
                drop(state);
                // What cannot be removed now can be in a minute; a write that fails is told to whoever appends.
                let _ = self.sweep(store, wall_clock_ms());
                state = self.lock();
                continue;
            }
            if state.appended == state.durable || state.failed.is_some() {
                return;
            }
            let others =
                |state: &mut State| !state.closing && !state.hurry && state.pending_bytes < PENDING_BYTES / 2;
            let waited = self.work.wait_timeout_while(state, GROUP, others);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let number = state.appended;
            let bytes = state.pending_bytes;
            state.hurry = false;
            drop(state);
            let synced = store.sync();
            state = self.lock();
            match synced {
                Ok(()) => {
                    state.durable = number;
                    state.pending_bytes -= bytes;
                }
                Err(error) => state.failed = Some(error.to_string()),
            }
            self.done.notify_all();
        }
    }

    fn sweep(&self, store: &Store, now_ms: u64) -> Result<u64> {
        let mut removed = 0;
        for topic in Topic::ALL {
            loop {
                let mut state = self.lock();
                if let Some(reason) = &state.failed {
                    return Err(RegistryError::Unwritable(reason.clone()));
                }
                let TopicState { limits, mut stats, mut front } = state.topics[topic.index()].clone();
                let start = front.clone();
                let mut batch = Batch::new();
                let before = stats.expired;
                store.scan(&order_prefix(topic), Bound::Included(&start), |index, stored| {
                    front = index.to_vec();
                    let place = Place::parse(index, &stored)?;
                    let go_on = is_expired(place.at_ms, limits, now_ms) && batch.len() < 1_000;
                    if go_on {
                        place.remove(topic, &mut batch, &mut stats, true);
                    }
                    Ok(go_on)
                })?;
                if batch.is_empty() {
                    break;
                }
                if let Err(error) = store.apply(&batch, || {}) {
                    state.failed = Some(error.to_string());
                    return Err(error);
                }
                removed += stats.expired - before;
                state.topics[topic.index()] = TopicState { limits, stats, front };
                state.appended += 1;
                self.work.notify_one();
            }
        }
        Ok(removed)
    }
}

impl Place {
    /// Reads a place from what is stored under [`order_key`]: size, then key.
    fn parse(index: &[u8], stored: &[u8]) -> Result<Self> {
        let cut_short = || RegistryError::damaged("journal: an entry is cut short");
        let (size, key) = stored.split_first_chunk::<4>().ok_or_else(cut_short)?;
        let at_ms = index.get(2..10).and_then(|at| at.try_into().ok()).ok_or_else(cut_short)?;
        if index.len() != 18 {
            return Err(cut_short());
        }
        let bytes = u64::from(u32::from_be_bytes(*size));
        Ok(Self { index: index.to_vec(), at_ms: u64::from_be_bytes(at_ms), bytes, key: key.to_vec() })
    }

    fn order(&self) -> u64 {
        self.index.last_chunk::<8>().map_or(0, |order| u64::from_be_bytes(*order))
    }

    fn remove(self, topic: Topic, batch: &mut Batch, stats: &mut TopicStats, expired: bool) {
        batch.insert(record_key(topic, &self.key), None);
        batch.insert(self.index, None);
        stats.entries = stats.entries.saturating_sub(1);
        stats.bytes = stats.bytes.saturating_sub(self.bytes);
        *(if expired { &mut stats.expired } else { &mut stats.evicted }) += 1;
    }
}

fn check(key: &[u8], value: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES || key.contains(&0) {
        let message =
            format!("journal: expected a key of 1 to {KEY_BYTES} bytes that are not zero, got {}", key.len());
        return Err(RegistryError::Invalid(message));
    }
    if value.len() > VALUE_BYTES {
        let message = format!("journal: expected a value of up to {VALUE_BYTES} bytes, got {}", value.len());
        return Err(RegistryError::Invalid(message));
    }
    Ok(())
}

fn is_expired(at_ms: u64, limits: TopicLimits, now_ms: u64) -> bool {
    u128::from(now_ms) >= u128::from(at_ms) + limits.time_to_live.as_millis()
}

fn record_key(topic: Topic, key: &[u8]) -> Vec<u8> {
    [&[b'r', topic.tag()], key].concat()
}

fn order_prefix(topic: Topic) -> [u8; 2] {
    [b'o', topic.tag()]
}

fn order_key(topic: Topic, at_ms: u64, order: u64) -> Vec<u8> {
    [&order_prefix(topic)[..], &at_ms.to_be_bytes(), &order.to_be_bytes()].concat()
}

fn parse_record(stored: &[u8]) -> Result<(u64, u64, &[u8])> {
    let parse = || {
        let (at_ms, rest) = stored.split_first_chunk::<8>()?;
        let (order, value) = rest.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*at_ms), u64::from_be_bytes(*order), value))
    };
    parse().ok_or_else(|| RegistryError::damaged("journal: an entry is cut short"))
}

fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
