use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on bytes held at once, shared by every connection.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: AtomicUsize,
}

/// Bytes taken from a [`ByteBudget`]; dropping it gives them back. It travels with the data it stands for.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Inner>,
    bytes: usize,
}

impl ByteBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, held: AtomicUsize::new(0) }))
    }

    /// Takes `bytes`, or `None` when that would pass the limit.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        // Only the sum matters and no other memory is published through it, so relaxed is enough.
        self.0
            .held
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|&sum| sum <= self.0.limit)
            })
            .ok()
            .map(|_| Reservation { budget: Arc::clone(&self.0), bytes })
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// The most bytes that may be held at once.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::ByteBudget;

    #[test]
    fn holds_no_more_than_its_limit_and_gives_back_on_drop() {
        let budget = ByteBudget::new(100);
        let first = budget.try_reserve(60).unwrap();
        assert!(budget.try_reserve(41).is_none());
        let second = budget.try_reserve(40).unwrap();
        assert!(budget.try_reserve(1).is_none() && budget.try_reserve(usize::MAX).is_none());
        drop(first);
        assert_eq!(budget.held_bytes(), 40);
        drop(second);
        assert_eq!(budget.held_bytes(), 0);
    }
}
