//! Tenants: who calls, by a metadata key, and what each may have. Nobody proves who they are: quotas keep callers who mean
//! well from harming each other.

mod quota;

pub use quota::{Quota, Tenants};

use dashmap::{DashMap, Entry};
use http::{HeaderMap, HeaderName};
use quota::Bucket;
use sconce_core::{Error, ErrorCode, Result};
use sconce_scheduler::{Priority, Tenant};
use sconce_telemetry::metrics::TenantSample;
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Tenants that are told apart at once, [`DEFAULT`] and [`OTHER`] included.
pub(crate) const MAX_TENANTS: usize = 4096;
/// Tenants that metrics name.
const MAX_NAMED: usize = 64;
const MAX_NAME_BYTES: usize = 128;
/// Whoever gives no name.
const DEFAULT: &str = "default";
/// Whoever finds the table full; in metrics, everybody that they do not name.
const OTHER: &str = "other";
/// Between two searches of a full table for tenants to forget: somebody who makes up names must not keep it busy.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// When a tenant with all its requests in progress may find one ended.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Every tenant seen, as far as there is room.
#[derive(Debug)]
pub(crate) struct TenantTable {
    /// `None`: tenants are off.
    header: Option<HeaderName>,
    quota: Quota,
    default: Arc<Known>,
    other: Arc<Known>,
    /// The others, at most [`MAX_TENANTS`] less two.
    seen: DashMap<Box<str>, Arc<Known>>,
    /// Locked after a part of `seen`, never before.
    places: Mutex<Places>,
}

/// Which of the table's places are free.
#[derive(Debug)]
struct Places {
    next_id: u32,
    free_ids: Vec<u32>,
    named: usize,
    next_search: Instant,
}

/// A tenant.
#[derive(Debug)]
struct Known {
    name: Arc<str>,
    tenant: Tenant,
    quota: Quota,
    is_configured: bool,
    /// Whether metrics name it.
    is_named: bool,
    in_progress: AtomicUsize,
    bucket: Mutex<Bucket>,
    /// Its own, or those of all that metrics do not name.
    counts: Arc<Counts>,
}

/// Requests that were answered, refused for want of room, and came to nothing else.
#[derive(Debug, Default)]
struct Counts([AtomicU64; 3]);

const OK: usize = 0;
const REJECTED: usize = 1;
const FAILED: usize = 2;

/// Who calls. As long as it lives, its tenant is not forgotten.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Option<Arc<Known>>);

/// A request of a tenant, in progress until it was answered, or until whoever works on it lets go of it.
#[derive(Debug)]
pub(crate) struct Visit(Option<Arc<InProgress>>);

#[derive(Debug)]
struct InProgress {
    known: Arc<Known>,
    has_place: AtomicBool,
    is_counted: AtomicBool,
}

/// A tenant among others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rank {
    pub(crate) tenant: Tenant,
    best: Priority,
}

impl Rank {
    /// What a request that asks for `priority` has.
    pub(crate) fn limit(self, priority: Priority) -> Priority {
        if priority.level() < self.best.level() { self.best } else { priority }
    }
}

/// Whether `name` can be a tenant's.
fn check_name(name: &[u8]) -> Result<&str, String> {
    let good = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(name).ok().filter(|_| good);
    text.ok_or_else(|| {
        let got = sconce_core::abbreviate(&String::from_utf8_lossy(name)).to_string();
        format!("expected a name of 1 to {MAX_NAME_BYTES} visible ASCII characters, got {got:?}")
    })
}

impl TenantTable {
    /// A table of the tenants that a valid configuration names.
    pub(crate) fn new(config: &Tenants, now: Instant) -> Self {
        let others = Arc::new(Counts::default());
        let entry =
            |name: &str, id, quota, counts| Arc::new(Known::new(name, id, quota, (true, true), counts, now));
        let quota_of_other = config.quotas.get(OTHER).copied().unwrap_or(config.default);
        let table = Self {
            header: config.header.as_deref().and_then(quota::header_name),
            quota: config.default,
            default: entry(DEFAULT, 0, config.default, Arc::default()),
            other: entry(OTHER, 1, quota_of_other, others),
            seen: DashMap::new(),
            places: Mutex::new(Places { next_id: 2, free_ids: Vec::new(), named: 1, next_search: now }),
        };
        for (name, quota) in config.quotas.iter().filter(|(name, _)| *name != OTHER) {
            if let Some((id, is_named)) = table.places().take() {
                let known = table.known(name, id, *quota, (true, is_named), now);
                table.seen.insert(name.as_str().into(), known);
            }
        }
        table
    }

    /// Who calls, by the call's metadata.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is none, and for two.
    pub(crate) fn caller(&self, headers: &HeaderMap, now: Instant) -> Result<Caller> {
        let Some(header) = &self.header else { return Ok(Caller(None)) };
        let mut values = headers.get_all(header).iter();
        let Some(value) = values.next() else { return Ok(Caller(Some(Arc::clone(&self.default)))) };
        if values.next().is_some() {
            return Err(Error::invalid(format!("{header}: expected one tenant, got several")));
        }
        let name =
            check_name(value.as_bytes()).map_err(|problem| Error::invalid(format!("{header}: {problem}")))?;
        Ok(Caller(Some(self.find(name, now))))
    }

    /// Tenants in the table, and how many it has room for. None when tenants are off.
    pub(crate) fn occupancy(&self) -> (usize, usize) {
        let places = self.places();
        let taken = (places.next_id as usize).saturating_sub(places.free_ids.len());
        (self.header.as_ref().map_or(0, |_| taken), MAX_TENANTS)
    }

    /// The counters of tenants that metrics name, in order, and of all others as one.
    pub(crate) fn sample(&self) -> Vec<TenantSample> {
        if self.header.is_none() {
            return Vec::new();
        }
        let mut named: Vec<Arc<Known>> = self
            .seen
            .iter()
            .filter(|entry| entry.value().is_named)
            .map(|entry| Arc::clone(entry.value()))
            .collect();
        named.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        [&self.default].into_iter().chain(&named).chain([&self.other]).map(|known| known.sample()).collect()
    }

    fn find(&self, name: &str, now: Instant) -> Arc<Known> {
        match name {
            DEFAULT => return Arc::clone(&self.default),
            OTHER => return Arc::clone(&self.other),
            _ => {}
        }
        // The guard must be gone before the table is searched.
        let found = self.seen.get(name).map(|known| Arc::clone(&known));
        found.unwrap_or_else(|| self.newcomer(name, now))
    }

    fn newcomer(&self, name: &str, now: Instant) -> Arc<Known> {
        let mut place = self.places().take();
        if place.is_none() {
            self.forget_idle(now);
            place = self.places().take();
        }
        let Some((id, is_named)) = place else { return Arc::clone(&self.other) };
        match self.seen.entry(name.into()) {
            Entry::Vacant(vacant) => {
                let known = self.known(name, id, self.quota, (false, is_named), now);
                Arc::clone(&vacant.insert(known))
            }
            Entry::Occupied(occupied) => {
                // Another of its requests was faster.
                self.places().give_back(id, is_named);
                Arc::clone(occupied.get())
            }
        }
    }

    /// Forgets tenants that nothing is remembered of: no request of theirs is left, and they may have all that they may.
    fn forget_idle(&self, now: Instant) {
        let mut places = self.places();
        if now < places.next_search {
            return;
        }
        places.next_search = now + SEARCH_PAUSE;
        drop(places);
        self.seen.retain(|_, known| {
            // Nobody gets at one that is not held elsewhere while this part of the table is locked.
            let is_idle = !known.is_configured && Arc::strong_count(known) == 1 && known.may_have_all(now);
            if is_idle {
                self.places().give_back(known.tenant.id, known.is_named);
            }
            !is_idle
        });
    }

    fn known(
        &self,
        name: &str,
        id: u32,
        quota: Quota,
        (is_configured, is_named): (bool, bool),
        now: Instant,
    ) -> Arc<Known> {
        let counts = if is_named { Arc::default() } else { Arc::clone(&self.other.counts) };
        Arc::new(Known::new(name, id, quota, (is_configured, is_named), counts, now))
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// A free id, and whether metrics name who gets it.
    fn take(&mut self) -> Option<(u32, bool)> {
        let fresh = (self.next_id as usize) < MAX_TENANTS;
        let id = self.free_ids.pop().or_else(|| fresh.then_some(self.next_id))?;
        self.next_id = self.next_id.max(id + 1);
        let is_named = self.named < MAX_NAMED;
        self.named += usize::from(is_named);
        Some((id, is_named))
    }

    fn give_back(&mut self, id: u32, is_named: bool) {
        self.free_ids.push(id);
        self.named -= usize::from(is_named);
    }
}

impl Known {
    fn new(
        name: &str,
        id: u32,
        quota: Quota,
        (is_configured, is_named): (bool, bool),
        counts: Arc<Counts>,
        now: Instant,
    ) -> Self {
        Self {
            name: name.into(),
            tenant: Tenant { id, weight: quota.weight },
            quota,
            is_configured,
            is_named,
            in_progress: AtomicUsize::new(0),
            bucket: Mutex::new(Bucket::new(quota.max_requests_per_second, now)),
            counts,
        }
    }

    fn may_have_all(&self, now: Instant) -> bool {
        let rate = self.quota.max_requests_per_second;
        rate == 0.0 || self.bucket().is_full(rate, now)
    }

    /// Takes a place and a token.
    ///
    /// # Errors
    /// `ResourceExhausted` when there is none; nothing is taken then.
    fn enter(self: &Arc<Self>, now: Instant) -> Result<InProgress> {
        let Quota { max_concurrent, max_requests_per_second: rate, .. } = self.quota;
        let refused = |message| Error::new(ErrorCode::ResourceExhausted, message);
        let fits = |taken: usize| (max_concurrent == 0 || taken < max_concurrent).then_some(taken + 1);
        // Only the number matters and no other memory is published through it, so relaxed is enough.
        if self.in_progress.try_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            let message = format!(
                "tenant `{}` has {max_concurrent} requests in progress, its bound (max_concurrent): try again later",
                self.name
            );
            self.counts.add(REJECTED);
            return Err(refused(message).with_retry_after(RETRY_AFTER));
        }
        let entered = InProgress {
            known: Arc::clone(self),
            has_place: AtomicBool::new(true),
            is_counted: AtomicBool::new(false),
        };
        if rate > 0.0
            && let Err(wait) = self.bucket().take(rate, now)
        {
            entered.count(REJECTED);
            let message = format!(
                "tenant `{}` has made its {rate} requests a second (max_requests_per_second): try again later",
                self.name
            );
            return Err(refused(message).with_retry_after(wait));
        }
        Ok(entered)
    }

    fn sample(&self) -> TenantSample {
        let [ok, rejected, failed] = [OK, REJECTED, FAILED].map(|outcome| self.counts.of(outcome));
        TenantSample { tenant: self.name.to_string(), ok, rejected, failed }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(&self, outcome: usize) -> u64 {
        self.0.get(outcome).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn add(&self, outcome: usize) {
        if let Some(count) = self.0.get(outcome) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Caller {
    /// Lets one request in.
    ///
    /// # Errors
    /// `ResourceExhausted` when its tenant has as many in progress, or made as many a second, as it may.
    pub(crate) fn enter(&self, now: Instant) -> Result<Visit> {
        let Some(known) = &self.0 else { return Ok(Visit(None)) };
        Ok(Visit(Some(Arc::new(known.enter(now)?))))
    }
}

impl Visit {
    /// Whose request it is, and what it may ask for.
    pub(crate) fn rank(&self) -> Rank {
        let quota = self.0.as_ref().map(|visit| visit.known.quota).unwrap_or_default();
        let tenant = self.0.as_ref().map_or_else(Tenant::default, |visit| visit.known.tenant);
        // Checked with the configuration.
        Rank { tenant, best: Priority::new(quota.best_priority).unwrap_or_default() }
    }

    /// Its name; `None` when tenants are off.
    pub(crate) fn name(&self) -> Option<Arc<str>> {
        self.0.as_ref().map(|visit| Arc::clone(&visit.known.name))
    }

    /// What whoever works on the request holds: while one of these lives, the request is in progress and its tenant's id nobody
    /// else's. `None` when tenants are off.
    pub(crate) fn companion(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0.clone().map(|visit| visit as Arc<dyn Any + Send + Sync>)
    }

    /// Counts how the request ended. One that was answered is no longer in progress, even while its answer is on its way; of
    /// one that failed a part may still be executed.
    pub(crate) fn end<T>(&self, outcome: &Result<T>) {
        let Some(visit) = &self.0 else { return };
        match outcome {
            Ok(_) => {
                visit.count(OK);
                visit.leave();
            }
            Err(error) if error.code() == ErrorCode::ResourceExhausted => visit.count(REJECTED),
            Err(_) => visit.count(FAILED),
        }
    }
}

impl InProgress {
    fn count(&self, outcome: usize) {
        if !self.is_counted.swap(true, Ordering::Relaxed) {
            self.known.counts.add(outcome);
        }
    }

    fn leave(&self) {
        if self.has_place.swap(false, Ordering::Relaxed) {
            self.known.in_progress.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        // Its caller went away.
        self.count(FAILED);
        self.leave();
    }
}

#[cfg(test)]
mod tests;
