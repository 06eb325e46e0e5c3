use crate::{Error, ErrorCode, Result};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// When bytes that were refused are worth another try: most requests take less.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A bound on bytes held at once, shared by every connection.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    held: AtomicUsize,
}

/// Bytes taken from a [`ByteBudget`]; dropping it gives them back. It travels with the data it stands for: a request while it
/// is read, prepared and executed, then its answer until that has left.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Inner>,
    bytes: usize,
    companion: Option<Arc<dyn Any + Send + Sync>>,
}

impl ByteBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, held: AtomicUsize::new(0) }))
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// `ResourceExhausted` when that would pass the limit.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation> {
        let mut reservation = self.empty();
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    /// A reservation of nothing.
    pub fn empty(&self) -> Reservation {
        Reservation { budget: Arc::clone(&self.0), bytes: 0, companion: None }
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

impl Reservation {
    /// How many bytes it stands for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `bytes` from the same budget for a part of the request that ends by itself.
    ///
    /// # Errors
    /// As [`grow`](Self::grow); this one stays as it was.
    pub fn part(&self, bytes: usize) -> Result<Self> {
        let mut part = Self { budget: Arc::clone(&self.budget), bytes: 0, companion: self.companion.clone() };
        part.grow(bytes)?;
        Ok(part)
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// `ResourceExhausted` when that would pass the limit; it stays as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<()> {
        let Inner { limit, held } = &*self.budget;
        let fitting = |held: usize| held.checked_add(bytes).filter(|sum| sum <= limit);
        // Only the sum matters and no other memory is published through it, so relaxed is enough.
        if held.try_update(Ordering::Relaxed, Ordering::Relaxed, fitting).is_err() {
            let total = self.bytes.saturating_add(bytes);
            let refused = |message| Error::new(ErrorCode::ResourceExhausted, message);
            return Err(if total > *limit {
                // It will never fit.
                refused(format!(
                    "the request takes {total} bytes in all, the limit of bytes in flight is {limit}"
                ))
            } else {
                refused(format!(
                    "{bytes} bytes more would pass the limit of {limit} bytes in flight: try again later"
                ))
                .with_retry_after(RETRY_AFTER)
            });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Keeps `companion` for as long as it lives, whoever holds it then: for what must not end before the request's last
    /// trace has.
    pub fn accompany(&mut self, companion: Arc<dyn Any + Send + Sync>) {
        self.companion = Some(companion);
    }

    /// Takes what is missing to `bytes`.
    ///
    /// # Errors
    /// As [`grow`](Self::grow).
    pub fn grow_to(&mut self, bytes: usize) -> Result<()> {
        self.grow(bytes.saturating_sub(self.bytes))
    }

    /// Makes it stand for `bytes`, past the limit if need be: for what is there already, such as the answer of a request
    /// that was executed. Nothing new is let in until the sum is below the limit again.
    pub fn settle(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.budget.held.fetch_add(more, Ordering::Relaxed),
            None => self.budget.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
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
    use std::sync::Arc;

    #[test]
    fn holds_no_more_than_its_limit_and_gives_back_on_drop() {
        let budget = ByteBudget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_err());
        let second = budget.reserve(40).unwrap();
        assert!(budget.reserve(1).is_err() && budget.reserve(usize::MAX).is_err());
        assert!(first.grow(1).is_err() && first.grow(usize::MAX).is_err() && first.grow_to(61).is_err());
        assert!(first.grow_to(10).is_ok());
        assert_eq!(budget.held_bytes(), 100);
        drop(second);
        assert!(first.part(41).is_err());
        drop(first.part(40).unwrap());
        assert!(first.grow(40).is_ok());
        assert_eq!(budget.held_bytes(), 100);
        drop(first);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn only_what_may_fit_later_is_worth_another_try() {
        let budget = ByteBudget::new(100);
        let held = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).unwrap_err().retry_after().is_some());
        assert_eq!(budget.reserve(101).unwrap_err().retry_after(), None);
        drop(held);
    }

    #[test]
    fn a_companion_ends_with_the_reservation() {
        let companion = Arc::new(());
        let mut reservation = ByteBudget::new(100).reserve(10).unwrap();
        reservation.accompany(Arc::<()>::clone(&companion));
        reservation.settle(50);
        assert_eq!(Arc::strong_count(&companion), 2);
        drop(reservation);
        assert_eq!(Arc::strong_count(&companion), 1);
    }

    #[test]
    fn what_is_there_already_counts_even_past_the_limit() {
        let budget = ByteBudget::new(100);
        let mut answer = budget.reserve(60).unwrap();
        answer.settle(150);
        assert_eq!(budget.held_bytes(), 150);
        assert!(budget.reserve(0).is_err());
        answer.settle(30);
        assert_eq!(budget.held_bytes(), 30);
        assert!(budget.reserve(70).is_ok());
        drop(answer);
        assert_eq!(budget.held_bytes(), 0);
    }
}
