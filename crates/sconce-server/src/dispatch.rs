//! The spine: one request from the route to its answer.

use crate::cache::{Found, Key, ResponseCache, Urgency};
use crate::models::{Models, Served, Target};
use sconce_core::{
    Error, ErrorCode, ExecutionRecord, InferOutput, Inputs, LoadedModel, ModelInput, Preparation,
    Reservation, Result, Tensor,
};
use sconce_scheduler::{Class, Priority, Scheduler, Submission, Tenant};
use sconce_telemetry::traces::Observed;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A valid request for one model version.
pub(crate) struct Job {
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) priority: Priority,
    pub(crate) arrived_at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// Its share of the bytes in flight.
    pub(crate) reservation: Reservation,
    pub(crate) tenant: Tenant,
    /// How many ensembles it is a step of, one inside another.
    pub(crate) depth: usize,
}

/// Threads for what is real work and no model's, such as tokenizing: as many at once as there are cores.
#[derive(Clone)]
pub(crate) struct PreparePool(Arc<Semaphore>);

impl PreparePool {
    pub(crate) fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads)))
    }

    /// Runs `work`: here, or on one of the threads when it `is_heavy`.
    ///
    /// # Errors
    /// What it failed with; `Internal` when it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        is_heavy: bool,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !is_heavy {
            return work();
        }
        // The semaphore is never closed; a refusal here could only come at shutdown.
        let closed = |_| Error::new(ErrorCode::Unavailable, "the server is shutting down");
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(closed)?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        done.await
            .unwrap_or_else(|error| Err(Error::internal("preparing the input failed").with_source(error)))
    }
}

/// A request whose tensors its model takes.
pub(crate) struct Request {
    pub(crate) inputs: Inputs,
    pub(crate) priority: Priority,
    pub(crate) arrived_at: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) reservation: Reservation,
    pub(crate) tenant: Tenant,
    pub(crate) depth: usize,
}

/// The most bytes of inputs that are hashed on the thread that serves their connection.
const INLINE_HASH_BYTES: usize = 256 << 10;

/// Answers a request: by its model, from what was kept, by other models, or by another server. The deadline holds at every step. The reservation comes back with
/// the answer.
///
/// # Errors
/// Whatever keeps the request from an answer. It is counted.
pub(crate) async fn infer(
    models: &Arc<Models>,
    served: &Served,
    job: Job,
    observed: &mut Observed,
) -> Result<(InferOutput, Reservation)> {
    let Job { tensors, priority, arrived_at, deadline, reservation, tenant, depth } = job;
    let _working = served.working();
    observed.deadline = deadline;
    let count = |error: &Error| served.count_failure(error, arrived_at.elapsed());
    let inputs = served.signature().check(tensors).inspect_err(count)?;
    let rows = inputs.rows();
    let request = Request { inputs, priority, arrived_at, deadline, reservation, tenant, depth };
    match (&served.target, &served.cache) {
        (Target::Model(scheduler), None) => {
            execute(&models.prepare, served, scheduler, request, observed).await
        }
        (Target::Model(scheduler), Some(cache)) => {
            Box::pin(infer_cached(&models.prepare, served, scheduler, cache, request, observed)).await
        }
        (Target::Ensemble(assembly), _) => {
            // What few requests need is not to make the future of all large: it is moved.
            let unfinished = Unfinished { served, arrived_at };
            let answer = Box::pin(assembly.run(models, request, observed)).await;
            let answer = unfinished.ended(answer).inspect_err(count)?;
            let time = arrived_at.elapsed();
            served.count_answered_elsewhere(rows, time);
            (observed.executed, observed.answered_in) = (true, Some(time));
            Ok(answer)
        }
        (Target::Remote(remote), _) => {
            let unfinished = Unfinished { served, arrived_at };
            let answer = Box::pin(remote.run(request, observed)).await;
            let answer = unfinished.ended(answer).inspect_err(count)?;
            let time = arrived_at.elapsed();
            served.count_answered_elsewhere(rows, time);
            (observed.executed, observed.answered_in) = (true, Some(time));
            Ok(answer)
        }
    }
}

/// Counts a request that nobody waits for to its end, where nobody else would.
struct Unfinished<'a> {
    served: &'a Served,
    arrived_at: Instant,
}

impl Unfinished<'_> {
    /// It came to its end.
    fn ended<T>(self, outcome: T) -> T {
        std::mem::forget(self);
        outcome
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let gone = Error::new(ErrorCode::Cancelled, "the caller went away");
        self.served.count_failure(&gone, self.arrived_at.elapsed());
    }
}

/// Answers from the cache, waits for an equal request that runs, or runs itself for those that come meanwhile.
async fn infer_cached(
    pool: &PreparePool,
    served: &Served,
    scheduler: &Scheduler,
    cache: &ResponseCache,
    request: Request,
    observed: &mut Observed,
) -> Result<(InferOutput, Reservation)> {
    let started_at = Instant::now();
    let Request { priority, arrived_at, deadline, .. } = request;
    let count = |error: &Error| served.count_failure(error, arrived_at.elapsed());
    let model = Arc::clone(scheduler.model());
    let is_large = request.inputs.bytes() > INLINE_HASH_BYTES;
    // Whoever works on the request holds its reservation, also when nobody waits for it any more.
    let hash = move || Ok((Key::of(model.signature(), &request.inputs), request));
    let hashed = within(deadline, pool.run(is_large, hash)).await;
    let (key, mut request) = hashed.flatten().inspect_err(count)?;
    let answered = async {
        let urgency = Urgency { priority, deadline };
        loop {
            let outcome = match cache.find(key, urgency, Instant::now()) {
                Found::Answer(output) => Some(Ok(output)),
                Found::Running(waiter) => within(deadline, waiter.outcome()).await?,
                Found::Nothing(lead) => return Ok(Err(lead)),
            };
            // Without an outcome whoever ran gave up for reasons of its own: now it is another's turn.
            if let Some(outcome) = outcome {
                return outcome.map(Ok).map_err(|error| error.repeat());
            }
        }
    };
    match answered.await.inspect_err(count)? {
        Err(lead) => {
            served.count_miss(started_at.elapsed());
            let answered = execute(pool, served, scheduler, request, observed).await;
            lead.end(&answered);
            answered
        }
        Ok(output) => {
            let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            let fits = if late { Err(Error::deadline_exceeded()) } else { Ok(()) };
            let bytes = output.tensors.iter().map(|tensor| tensor.data().len()).sum();
            fits.and_then(|()| request.reservation.grow_to(bytes)).inspect_err(count)?;
            let time = arrived_at.elapsed();
            served.count_hit(started_at.elapsed(), time);
            (observed.executed, observed.answered_in) = (true, Some(time));
            Ok((InferOutput::clone(&output), request.reservation))
        }
    }
}

/// What a request that nobody waits for gave.
pub(crate) struct Unseen {
    /// Outputs by name.
    pub(crate) outputs: Vec<(String, Tensor)>,
    pub(crate) reservation: Reservation,
    /// Its part of the time that its batch had the device; nothing where other models answered.
    pub(crate) device_time: Duration,
}

/// Answers a request that nobody waits for: never from what was kept, not counted as a request of its model, and while nobody else
/// wants the device. A batch with it ends before it would take longer than `max_batch`. The steps of an ensemble are not so patient.
///
/// # Errors
/// Whatever keeps it from an answer.
pub(crate) async fn unseen(
    models: &Arc<Models>,
    served: &Served,
    job: Job,
    max_batch: Duration,
    pool: &PreparePool,
    observed: &mut Observed,
) -> Result<Unseen> {
    let Job { tensors, priority, arrived_at, deadline, reservation, tenant, depth } = job;
    let _working = served.working();
    let inputs = served.signature().check(tensors)?;
    let (output, reservation) = match &served.target {
        Target::Model(scheduler) => {
            let (input, reservation) = prepare(pool, scheduler.model(), inputs, reservation).await?;
            let prepare_time = arrived_at.elapsed();
            observed.queued_at = Some(Instant::now());
            scheduler.limit_shadow(max_batch);
            let receiver = scheduler.submit(Submission {
                input,
                priority,
                deadline,
                arrived_at,
                prepare_time,
                reservation,
                tenant,
                class: Class::Shadow,
            })?;
            let reply = receiver.await.map_err(|_| Error::internal("the request was lost"))?;
            observed.record = reply.record;
            (reply.result?, reply.reservation)
        }
        Target::Ensemble(assembly) => {
            let request = Request { inputs, priority, arrived_at, deadline, reservation, tenant, depth };
            assembly.run(models, request, observed).await?
        }
        Target::Remote(remote) => {
            let request = Request { inputs, priority, arrived_at, deadline, reservation, tenant, depth };
            remote.run(request, observed).await?
        }
    };
    let part = |record: ExecutionRecord| record.execute_time().div_f64(record.batch_requests.max(1) as f64);
    let names = served.signature().outputs.iter().map(|spec| spec.name.clone());
    let outputs = names.zip(output.tensors).collect();
    observed.executed = true;
    Ok(Unseen { outputs, reservation, device_time: observed.record.map_or(Duration::ZERO, part) })
}

/// Prepares, schedules and waits. `observed` gets the times.
///
/// # Errors
/// A failure before the queue is counted here, later ones by the scheduler.
async fn execute(
    pool: &PreparePool,
    served: &Served,
    scheduler: &Scheduler,
    request: Request,
    observed: &mut Observed,
) -> Result<(InferOutput, Reservation)> {
    let Request { inputs, priority, arrived_at, deadline, reservation, tenant, .. } = request;
    let submitted = async {
        let started_at = Instant::now();
        let prepared = within(deadline, prepare(pool, scheduler.model(), inputs, reservation)).await;
        let (input, reservation) = prepared.flatten()?;
        observed.queued_at = Some(Instant::now());
        scheduler.submit(Submission {
            input,
            priority,
            deadline,
            arrived_at,
            prepare_time: started_at.elapsed(),
            reservation,
            tenant,
            class: Class::Primary,
        })
    };
    let unfinished = Unfinished { served, arrived_at };
    let submitted = unfinished.ended(submitted.await);
    let receiver = submitted.inspect_err(|error| served.count_failure(error, arrived_at.elapsed()))?;
    let reply = within(deadline, receiver).await?.map_err(|_| Error::internal("the request was lost"))?;
    observed.record = reply.record;
    let output = reply.result?;
    observed.executed = true;
    Ok((output, reply.reservation))
}

/// Inputs as what their model executes. `reservation` grows by what that takes, and to what the answer will. Whoever works on
/// the request holds it, also when nobody waits for it any more.
async fn prepare(
    pool: &PreparePool,
    model: &Arc<dyn LoadedModel>,
    inputs: Inputs,
    mut reservation: Reservation,
) -> Result<(ModelInput, Reservation)> {
    let model = Arc::clone(model);
    let Preparation { bytes, is_heavy } = model.preparation(&inputs);
    reservation.grow(bytes)?;
    reservation.grow_to(model.signature().answer_bytes(inputs.rows()))?;
    pool.run(is_heavy, move || Ok((model.prepare(inputs)?, reservation))).await
}

/// `future`, unless the deadline comes first.
pub(crate) async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T> {
    match deadline {
        None => Ok(future.await),
        Some(at) => tokio::time::timeout_at(at.into(), future).await.map_err(|_| Error::deadline_exceeded()),
    }
}
