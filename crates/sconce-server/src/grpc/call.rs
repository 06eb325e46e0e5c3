//! Calls in progress: each has its place among all calls, and its answers are watched until they have left.
//!
//! HTTP/2 keeps what the peer does not take. A peer that keeps its connection alive and takes nothing would hold its share of
//! the bytes in flight for ever, so its connection is closed after a while.

use slab::Slab;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// How long a call's answers may wait without one of them leaving, and the bytes of all answers on its connection for which they
/// have a second more.
const PATIENCE: Duration = Duration::from_secs(60);
const BYTES_A_SECOND: usize = 256 << 10;

/// The calls of one connection.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<Slab<Unsent>>);

/// What of a call's answers has not left.
#[derive(Debug)]
struct Unsent {
    bytes: usize,
    /// When the first of them was handed over, or the one before it left.
    since: Instant,
}

/// A call in progress. It ends when its handler has returned and its last answer has left.
#[derive(Debug)]
pub(crate) struct Call {
    calls: Arc<Calls>,
    key: usize,
    _place: OwnedSemaphorePermit,
}

impl Calls {
    /// Whether some call's answers wait for longer than the peer is given to take them.
    pub(crate) fn stuck(&self, now: Instant) -> bool {
        let calls = self.lock();
        let bytes: usize = calls.iter().map(|(_, unsent)| unsent.bytes).sum();
        let allowed = PATIENCE + Duration::from_secs((bytes / BYTES_A_SECOND) as u64);
        calls
            .iter()
            .any(|(_, unsent)| unsent.bytes > 0 && now.saturating_duration_since(unsent.since) > allowed)
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn lock(&self) -> MutexGuard<'_, Slab<Unsent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// A call that began `now` and holds its `place` among all.
    pub(crate) fn new(calls: &Arc<Calls>, place: OwnedSemaphorePermit, now: Instant) -> Arc<Self> {
        let key = calls.lock().insert(Unsent { bytes: 0, since: now });
        Arc::new(Self { calls: Arc::clone(calls), key, _place: place })
    }

    /// An answer of `bytes` is on its way out.
    pub(crate) fn add(&self, bytes: usize, now: Instant) {
        if let Some(unsent) = self.calls.lock().get_mut(self.key) {
            if unsent.bytes == 0 {
                unsent.since = now;
            }
            unsent.bytes += bytes;
        }
    }

    /// An answer of `bytes` has left.
    pub(crate) fn remove(&self, bytes: usize, now: Instant) {
        if let Some(unsent) = self.calls.lock().get_mut(self.key) {
            unsent.since = now;
            unsent.bytes -= bytes;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.lock().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[test]
    fn a_call_is_stuck_when_none_of_its_answers_leaves() {
        let (calls, places) = (Arc::new(Calls::default()), Arc::new(Semaphore::new(2)));
        let call = |now| Call::new(&calls, Arc::clone(&places).try_acquire_owned().unwrap(), now);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        // Without an answer a call may take as long as it likes.
        let slow = call(at(0));
        let streaming = call(at(0));
        assert!(!calls.stuck(at(1000)));
        streaming.add(100, at(1000));
        streaming.add(100, at(1050));
        assert!(!calls.stuck(at(1060)) && calls.stuck(at(1061)));
        // One that leaves gives the others their time.
        streaming.remove(100, at(1061));
        assert!(!calls.stuck(at(1121)) && calls.stuck(at(1122)));
        streaming.remove(100, at(1122));
        assert!(!calls.stuck(at(5000)));
        // A large answer has longer, and so has what shares the connection with it.
        slow.add(64 << 20, at(5000));
        streaming.add(100, at(5000));
        assert!(!calls.stuck(at(5316)) && calls.stuck(at(5317)));
        streaming.remove(100, at(5317));
        drop(slow);
        assert!(!calls.stuck(at(9000)));
        assert_eq!(places.available_permits(), 1);
        drop(streaming);
        assert!(calls.lock().is_empty());
    }
}
