//! What the scheduler costs a request when the model costs nothing.

#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macros are public; a bench that fails should stop"
)]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sconce_core::{
    Backend, Batch, BatchOutput, ByteBudget, Checkpoint, Error, InferOutput, Inputs, LoadedModel, ModelInput,
    Result, Signature,
};
use sconce_scheduler::{
    BatchPolicy, Batcher, Class, Device, Due, Entry, Priority, Scheduler, Submission, Tenant, Work,
};
use std::hint::black_box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const QUEUED: usize = 10_000;
/// What each batch is said to be and to take.
const WORK: Work = Work { rows: 1, tokens: 0 };
const TIME: Duration = Duration::from_nanos(100);

fn policy(max_rows: usize) -> BatchPolicy {
    BatchPolicy { max_rows, queue_depth: QUEUED, queue_target: Duration::ZERO, ..BatchPolicy::default() }
}

fn entry(now: Instant) -> Entry<()> {
    let (priority, tenant) = (Priority::default(), Tenant::default());
    Entry { ticket: (), rows: 1, tokens: 0, longest: 0, priority, tenant, queued_at: now, deadline: None }
}

/// A request into the queue and out of it again, in batches of 1 and 64.
fn push_and_take(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher/push_and_take");
    let now = Instant::now();
    for requests in [1, 64] {
        let mut batcher = Batcher::new(policy(requests), 1);
        group.throughput(Throughput::Elements(requests as u64));
        group.bench_function(BenchmarkId::from_parameter(requests), |bencher| {
            bencher.iter(|| {
                for _ in 0..requests {
                    let _ = black_box(batcher.push(now, black_box(entry(now))));
                }
                let batch = batcher.take(now, false, |()| false);
                batcher.finished(batch.id, WORK, Some(TIME));
                black_box(batch)
            });
        });
    }
    group.finish();
}

/// With 10,000 requests in the queue: whether a batch is due, composing it, and composing it with its requests back in the queue.
fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher/10000_queued");
    let now = Instant::now();
    for (name, max_delay) in [("due", Duration::ZERO), ("due_with_delay", Duration::from_secs(1))] {
        let mut batcher = Batcher::new(BatchPolicy { max_delay, ..policy(2 * QUEUED) }, 1);
        (0..QUEUED).for_each(|_| drop(batcher.push(now, entry(now))));
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_ne!(batcher.due(black_box(now)), Due::Idle))
        });
    }
    let alike = |_: usize| entry(now);
    // Of many tenants, and each with a deadline: nothing comes in the order in which it leaves.
    let of_tenants = |tenants: usize| {
        move |at: usize| Entry {
            tenant: Tenant { id: (at % tenants) as u32, weight: 1.0 },
            deadline: Some(now + Duration::from_secs(5) + Duration::from_micros((at * 7919 % QUEUED) as u64)),
            ..entry(now)
        }
    };
    let (some, most) = (of_tenants(16), of_tenants(4096));
    type Make<'a> = &'a dyn Fn(usize) -> Entry<()>;
    for requests in [1, 64] {
        for (name, make) in [("alike", &alike as Make<'_>), ("16_tenants", &some), ("4096_tenants", &most)] {
            let mut batcher = Batcher::new(policy(requests), 1);
            (0..100).for_each(|_| batcher.observe(WORK, TIME));
            (0..QUEUED).for_each(|at| drop(batcher.push(now, make(at))));
            let mut round = || {
                let started = Instant::now();
                let batch = batcher.take(now, false, |()| false);
                let took = started.elapsed();
                batcher.finished(batch.id, WORK, Some(TIME));
                for entry in batch.entries {
                    let _ = black_box(batcher.push(now, entry));
                }
                took
            };
            group.bench_function(BenchmarkId::new(format!("take/{name}"), requests), |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| round()).sum());
            });
            group.bench_function(
                BenchmarkId::new(format!("take_and_push_back/{name}"), requests),
                |bencher| {
                    bencher.iter(&mut round);
                },
            );
        }
    }
    group.finish();
}

/// Answers at once, with nothing; `gate` holds it while a bench fills the queue.
struct NoOp {
    signature: Signature,
    gate: Arc<Mutex<()>>,
}

struct NoOpBackend {
    gate: Arc<Mutex<()>>,
    requests: usize,
}

impl LoadedModel for NoOp {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        0
    }

    fn prepare(&self, _: Inputs) -> Result<ModelInput> {
        Err(Error::internal("requests come prepared here"))
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(NoOpBackend { gate: Arc::clone(&self.gate), requests: 0 }))
    }
}

impl Backend for NoOpBackend {
    fn submit(&mut self, batch: Batch, _: Checkpoint<'_>) -> Result<()> {
        drop(lock(&self.gate));
        self.requests = batch.inputs.len();
        Ok(())
    }

    fn collect(&mut self) -> Result<BatchOutput> {
        let outputs = (0..self.requests).map(|_| Ok(InferOutput { tensors: Vec::new() })).collect();
        Ok(BatchOutput { outputs, padding: 0 })
    }
}

fn lock(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(gate: &Arc<Mutex<()>>, max_delay: Duration) -> Scheduler {
    let signature = Signature { inputs: Vec::new(), outputs: Vec::new(), max_batch_size: 64 };
    let model = Arc::new(NoOp { signature, gate: Arc::clone(gate) });
    let device = Arc::new(Device::new(1));
    Scheduler::start("bench", model, BatchPolicy { max_delay, ..policy(64) }, device, 1)
        .expect("a no-op starts")
}

fn submission() -> Submission {
    Submission {
        input: ModelInput { tensors: Vec::new(), rows: 1, row_tokens: Vec::new() },
        priority: Priority::default(),
        tenant: Tenant::default(),
        class: Class::Primary,
        deadline: None,
        arrived_at: Instant::now(),
        prepare_time: Duration::ZERO,
        reservation: ByteBudget::new(0).empty(),
    }
}

/// From `submit` to the reply through a worker thread, with 1 and 64 requests in flight; and 64 that wait for one another
/// under a queue delay and fill a batch.
fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler/round_trip");
    for (name, in_flight, max_delay) in
        [("1", 1, Duration::ZERO), ("64", 64, Duration::ZERO), ("64_delayed", 64, Duration::from_secs(3600))]
    {
        let scheduler = start(&Arc::default(), max_delay);
        group.throughput(Throughput::Elements(in_flight as u64));
        group.bench_function(name, |bencher| {
            let mut answers = Vec::with_capacity(in_flight);
            bencher.iter(|| {
                answers
                    .extend((0..in_flight).map(|_| scheduler.submit(submission()).expect("there is room")));
                for answer in answers.drain(..) {
                    let _ = black_box(answer.blocking_recv().expect("every request is answered"));
                }
            });
        });
        scheduler.close();
    }
    group.finish();
}

/// Being turned away from a queue of 10,000: overload must stay cheap.
fn refusal(criterion: &mut Criterion) {
    let gate = Arc::default();
    let scheduler = start(&gate, Duration::ZERO);
    let closed = lock(&gate);
    // Held in the backend, or still waiting for it: either way the queue fills up behind it.
    let mut answers: Vec<_> = (0..=QUEUED).map_while(|_| scheduler.submit(submission()).ok()).collect();
    while let Ok(answer) = scheduler.submit(submission()) {
        answers.push(answer);
    }
    criterion.bench_function("scheduler/refusal_at_10000_queued", |bencher| {
        bencher.iter_batched(
            submission,
            |submission| black_box(scheduler.submit(submission).is_err()),
            BatchSize::SmallInput,
        );
    });
    drop(closed);
    scheduler.close();
}

criterion_group!(benches, push_and_take, decide, round_trip, refusal);
criterion_main!(benches);
