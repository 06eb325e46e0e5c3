//! Answers that are kept for equal requests: one cache a served version, so what another version answered is never in it.
//!
//! The key is a hash of the request's tensors as they came, before they are prepared: a hit saves tokenizing and decoding as
//! well. What a caller wants of the answer (which outputs, classes, typed or raw) is made of the answer afterwards and is no
//! part of it.

use lru::LruCache;
use sconce_core::{Error, ErrorCode, InferOutput, Inputs, Reservation, Result, Signature, Tensor};
use sconce_scheduler::Priority;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// A request's inputs, hashed: two different ones have one key only if BLAKE3 collides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

/// How urgent a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Urgency {
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
}

/// Answers of one model version, bounded by bytes; the one used least recently goes first.
pub(crate) struct ResponseCache {
    max_bytes: usize,
    inner: Mutex<Inner>,
}

/// Answers, and requests that are being answered. The latter are as many as there are requests in flight at most.
struct Inner {
    kept: LruCache<Key, Kept>,
    bytes: usize,
    flights: HashMap<Key, Flight>,
    next_flight: u64,
}

#[derive(Clone)]
struct Kept {
    output: Arc<InferOutput>,
    bytes: usize,
}

/// A request that runs, for those that are equal to it.
struct Flight {
    number: u64,
    urgency: Urgency,
    outcome: watch::Receiver<Option<Outcome>>,
}

type Outcome = Result<Arc<InferOutput>, Arc<Error>>;

/// What a request finds.
pub(crate) enum Found<'a> {
    /// The answer.
    Answer(Arc<InferOutput>),
    /// An equal request that runs.
    Running(Waiter),
    /// Nothing: it runs itself, for those that come meanwhile as well.
    Nothing(Lead<'a>),
}

/// Waits for an equal request.
pub(crate) struct Waiter(watch::Receiver<Option<Outcome>>);

/// The right to run a request for all that are equal to it. Dropped, it passes to one of those that wait.
pub(crate) struct Lead<'a> {
    cache: &'a ResponseCache,
    key: Key,
    number: u64,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What an answer takes beside its tensors: its key twice over in a list and a table that may be half empty, and what allocations
/// take themselves.
const ENTRY_BYTES: usize = size_of::<Key>() + size_of::<Kept>() + 160;
/// Likewise for a tensor.
const TENSOR_BYTES: usize = size_of::<Tensor>() + 80;

impl Key {
    /// The key of a request's inputs.
    pub(crate) fn of(signature: &Signature, inputs: &Inputs) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Whatever has no fixed length goes after its length: no two requests write the same bytes.
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (index, spec) in signature.inputs.iter().enumerate() {
            let Some(tensor) = inputs.get(index) else { continue };
            part(spec.name.as_bytes());
            part(tensor.datatype().name().as_bytes());
            let shape: Vec<u8> = tensor.shape().iter().flat_map(|dim| (*dim as u64).to_le_bytes()).collect();
            part(&shape);
            part(tensor.data());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl Urgency {
    /// Whether a request of this urgency may run for one of `other`: it is served as early, or not much later than `other` can
    /// wait. Equal timeouts that were counted from slightly different times should not keep requests apart.
    fn covers(self, other: Self, now: Instant) -> bool {
        let in_time = match (self.deadline, other.deadline) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(other)) => own <= other + other.saturating_duration_since(now) / 4,
        };
        self.priority.level() <= other.priority.level() && in_time
    }
}

impl ResponseCache {
    pub(crate) fn new(max_bytes: usize) -> Self {
        let (kept, flights) = (LruCache::unbounded(), HashMap::new());
        Self { max_bytes, inner: Mutex::new(Inner { kept, bytes: 0, flights, next_flight: 0 }) }
    }

    /// Bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// The most bytes it may hold.
    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// The answer to a request, or whom to wait for, or the task of finding it.
    pub(crate) fn find(&self, key: Key, urgency: Urgency, now: Instant) -> Found<'_> {
        let mut inner = self.lock();
        if let Some(kept) = inner.kept.get(&key) {
            return Found::Answer(Arc::clone(&kept.output));
        }
        match inner.flights.get(&key) {
            Some(flight) if flight.urgency.covers(urgency, now) => {
                Found::Running(Waiter(flight.outcome.clone()))
            }
            // One that may come too late for this one is no longer waited for.
            _ => {
                let number = inner.next_flight;
                inner.next_flight += 1;
                let (outcome, receiver) = watch::channel(None);
                inner.flights.insert(key, Flight { number, urgency, outcome: receiver });
                Found::Nothing(Lead { cache: self, key, number, outcome })
            }
        }
    }

    /// Keeps an answer, unless it alone is over the bound. Gives what had to go for it.
    fn keep(&self, key: Key, output: &Arc<InferOutput>) -> Vec<Kept> {
        let bytes = bytes_of(output);
        let mut gone = Vec::new();
        if bytes > self.max_bytes {
            return gone;
        }
        let mut inner = self.lock();
        // Where two of one key ran, each brings the same.
        if let Some(before) = inner.kept.put(key, Kept { output: Arc::clone(output), bytes }) {
            inner.bytes -= before.bytes;
            gone.push(before);
        }
        inner.bytes += bytes;
        while inner.bytes > self.max_bytes {
            let Some((_, oldest)) = inner.kept.pop_lru() else { break };
            inner.bytes -= oldest.bytes;
            gone.push(oldest);
        }
        gone
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// What came of the request that runs; `None` when it gave up for reasons of its own, so that another must run.
    pub(crate) async fn outcome(mut self) -> Option<Outcome> {
        let told = self.0.wait_for(Option::is_some).await;
        told.ok().and_then(|outcome| outcome.clone())
    }
}

impl Lead<'_> {
    /// Keeps the answer, and tells it to those that wait. An error they are told as well, and it is not kept: unless it is about
    /// this request's time, caller or room alone.
    pub(crate) fn end(self, answered: &Result<(InferOutput, Reservation)>) {
        let outcome = match answered {
            Ok((output, _)) => Ok(Arc::new(owned(output))),
            // A tenant's or a queue's bounds are not another's.
            Err(error)
                if matches!(
                    error.code(),
                    ErrorCode::DeadlineExceeded | ErrorCode::Cancelled | ErrorCode::ResourceExhausted
                ) =>
            {
                return;
            }
            Err(error) => Err(Arc::new(error.repeat())),
        };
        if let Ok(output) = &outcome {
            // What goes is dropped after the lock.
            let _gone = self.cache.keep(self.key, output);
        }
        // Whoever comes from here on finds the answer, or nothing.
        self.land();
        let _ = self.outcome.send(Some(outcome));
    }

    /// Ends the flight, if no other took its place.
    fn land(&self) {
        let mut inner = self.cache.lock();
        if inner.flights.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            inner.flights.remove(&self.key);
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.land();
    }
}

/// The same answer in memory of its own: a model's tensor may be a slice of its whole batch, or of a message.
fn owned(output: &InferOutput) -> InferOutput {
    InferOutput { tensors: output.tensors.iter().map(Tensor::detached).collect() }
}

fn bytes_of(output: &InferOutput) -> usize {
    let tensor = |tensor: &Tensor| TENSOR_BYTES + size_of_val(tensor.shape()) + tensor.data().len();
    ENTRY_BYTES + output.tensors.iter().map(tensor).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;
    use sconce_core::{ByteBudget, DataType, TensorSpec};
    use std::time::Duration;

    type Named = (&'static str, DataType, Vec<usize>, Vec<u8>);

    /// Tensors that are easily taken for one another: few names, few bytes, and shapes and datatypes of equal sizes.
    fn named() -> impl Strategy<Value = Named> {
        let name = prop::sample::select(vec!["a", "ab", "b", ""]);
        let datatype = prop::sample::select(vec![DataType::Uint8, DataType::Int8, DataType::Int16]);
        let shape =
            prop::sample::select(vec![vec![1, 2], vec![2, 1], vec![2], vec![1], vec![1, 2, 1], vec![4]]);
        (name, datatype, shape).prop_flat_map(|(name, datatype, shape)| {
            let bytes = shape.iter().product::<usize>() * datatype.element_bytes().unwrap();
            let data = prop::collection::vec(0u8..2, bytes);
            data.prop_map(move |data| (name, datatype, shape.clone(), data))
        })
    }

    fn request() -> impl Strategy<Value = Vec<Named>> {
        prop::collection::vec(named(), 1..4).prop_map(|mut tensors| {
            let mut seen = std::collections::HashSet::new();
            tensors.retain(|tensor| seen.insert(tensor.0));
            let rows = tensors[0].2[0];
            tensors.retain(|tensor| tensor.2[0] == rows);
            tensors
        })
    }

    /// The key of tensors whose signature is just theirs, given in this order or the other.
    fn key(tensors: &[Named], backwards: bool) -> Key {
        let spec =
            |(name, datatype, shape, _): &Named| TensorSpec::new(*name, *datatype, &vec![None; shape.len()]);
        let signature =
            Signature { inputs: tensors.iter().map(spec).collect(), outputs: vec![], max_batch_size: 8 };
        let tensor = |(name, datatype, shape, data): &Named| {
            (*name, Tensor::new(*datatype, shape.clone(), data.clone().into()).unwrap())
        };
        let mut given: Vec<_> = tensors.iter().map(tensor).collect();
        if backwards {
            given.reverse();
        }
        Key::of(&signature, &signature.check(given).unwrap())
    }

    fn urgency(level: u64, deadline: Option<Instant>) -> Urgency {
        Urgency { priority: Priority::new(level).unwrap(), deadline }
    }

    fn output(value: u8, bytes: usize) -> InferOutput {
        InferOutput {
            tensors: vec![Tensor::new(DataType::Uint8, vec![1, bytes], vec![value; bytes].into()).unwrap()],
        }
    }

    fn answered(output: InferOutput) -> Result<(InferOutput, Reservation)> {
        Ok((output, ByteBudget::new(0).empty()))
    }

    fn lead(found: Found<'_>) -> Lead<'_> {
        match found {
            Found::Nothing(lead) => lead,
            Found::Answer(_) => panic!("an answer"),
            Found::Running(_) => panic!("one that runs"),
        }
    }

    fn waiter(found: Found<'_>) -> Waiter {
        match found {
            Found::Running(waiter) => waiter,
            _ => panic!("nothing runs"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn two_requests_have_one_key_only_if_they_are_equal(one in request(), other in request()) {
            prop_assert_eq!(key(&one, false), key(&one, true));
            // The nearest there is to it: the same bytes, of another shape or datatype.
            for tensor in 0..one.len() {
                let (mut longer, mut other_type) = (one.clone(), one.clone());
                longer[tensor].2.push(1);
                let datatype = one[tensor].1;
                other_type[tensor].1 = if datatype == DataType::Int16 { DataType::Bf16 } else { DataType::Bool };
                prop_assert_ne!(key(&one, false), key(&longer, false));
                prop_assert_ne!(key(&one, false), key(&other_type, false));
            }
            prop_assert_eq!(key(&one, false) == key(&other, false), one == other);
        }

        #[test]
        fn an_answer_is_its_own_request_s_and_the_bound_holds(
            asked in prop::collection::vec((0u8..12, 0usize..400, any::<bool>()), 1..100),
        ) {
            let cache = ResponseCache::new(2000);
            let now = Instant::now();
            for (number, extra, fails) in asked {
                match cache.find(Key([number; 32]), urgency(4, None), now) {
                    Found::Running(_) => return Err(TestCaseError::fail("nothing runs")),
                    Found::Answer(kept) => prop_assert_eq!(kept.tensors[0].data()[0], number),
                    Found::Nothing(lead) if fails => lead.end(&Err(Error::internal("no"))),
                    Found::Nothing(lead) => {
                        lead.end(&answered(output(number, 1 + extra)));
                        let found = cache.find(Key([number; 32]), urgency(4, None), now);
                        prop_assert!(matches!(found, Found::Answer(_)), "the latest is kept");
                    }
                }
                let inner = cache.lock();
                let kept: usize = inner.kept.iter().map(|(_, kept)| bytes_of(&kept.output)).sum();
                prop_assert_eq!(inner.bytes, kept);
                prop_assert!(kept <= cache.max_bytes && inner.flights.is_empty());
            }
        }
    }

    #[test]
    fn the_one_used_least_recently_goes_first_and_what_is_too_large_is_not_kept() {
        let one = bytes_of(&output(1, 10));
        let cache = ResponseCache::new(one * 2);
        let now = Instant::now();
        let find = |number: u8| cache.find(Key([number; 32]), urgency(4, None), now);
        lead(find(1)).end(&answered(output(1, 10)));
        lead(find(2)).end(&answered(output(2, 10)));
        assert!(matches!(find(1), Found::Answer(_)));
        lead(find(3)).end(&answered(output(3, 10)));
        assert!(matches!((find(1), find(3)), (Found::Answer(_), Found::Answer(_))));
        drop(lead(find(2)));
        lead(find(4)).end(&answered(output(4, 10 + one * 2)));
        drop(lead(find(4)));
        assert_eq!(cache.bytes(), one * 2);
    }

    #[test]
    fn a_kept_answer_holds_no_more_than_itself() {
        let batch = bytes::Bytes::from(vec![7; 1000]);
        let slice = Tensor::new(DataType::Uint8, vec![1, 2], batch.slice(10..12)).unwrap();
        let kept = owned(&InferOutput { tensors: vec![slice.clone()] });
        assert_eq!(kept.tensors, [slice]);
        let place = kept.tensors[0].data().as_ptr();
        assert!(!batch.as_ptr_range().contains(&place));
    }

    #[tokio::test]
    async fn an_equal_request_waits_and_gets_the_answer_or_the_error() {
        let cache = ResponseCache::new(1 << 20);
        let now = Instant::now();
        let find = || cache.find(Key([1; 32]), urgency(4, None), now);
        let running = lead(find());
        let waiters = [waiter(find()), waiter(find())];
        running.end(&Err(Error::invalid("wrong")));
        for waiter in waiters {
            let error = waiter.outcome().await.unwrap().unwrap_err();
            assert_eq!((error.code(), error.to_string()), (ErrorCode::InvalidArgument, "wrong".to_owned()));
        }
        // An error is nobody's answer later.
        let running = lead(find());
        let waiting = waiter(find());
        running.end(&answered(output(9, 1)));
        assert_eq!(*waiting.outcome().await.unwrap().unwrap(), output(9, 1));
        assert!(matches!(find(), Found::Answer(_)));
    }

    #[tokio::test]
    async fn another_takes_over_from_one_that_gave_up() {
        let cache = ResponseCache::new(1 << 20);
        let now = Instant::now();
        let find = || cache.find(Key([1; 32]), urgency(4, None), now);
        let abandoned = lead(find());
        let waiting = waiter(find());
        drop(abandoned);
        assert!(waiting.outcome().await.is_none());
        let expired = lead(find());
        let waiting = waiter(find());
        expired.end(&Err(Error::deadline_exceeded()));
        assert!(waiting.outcome().await.is_none());
        drop(lead(find()));
    }

    #[tokio::test]
    async fn the_more_urgent_do_not_wait_for_the_less_urgent() {
        let cache = ResponseCache::new(1 << 20);
        let now = Instant::now();
        let find = |level, seconds: Option<f64>| {
            let deadline = seconds.map(|seconds| now + Duration::from_secs_f64(seconds));
            cache.find(Key([1; 32]), urgency(level, deadline), now)
        };
        let slow = lead(find(4, None));
        let slow_waiter = waiter(find(5, None));
        let timely = lead(find(4, Some(10.0)));
        let _nearly_equal = waiter(find(4, Some(9.0)));
        let urgent = lead(find(1, Some(10.0)));
        // Whoever comes now waits for the most urgent, and the end of another changes nothing about that.
        timely.end(&Err(Error::internal("no")));
        let last = waiter(find(4, None));
        slow.end(&answered(output(1, 1)));
        assert!(slow_waiter.outcome().await.unwrap().is_ok());
        urgent.end(&answered(output(1, 1)));
        assert!(last.outcome().await.unwrap().is_ok());
    }
}
