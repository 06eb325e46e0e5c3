//! The spine: one request from the route to its answer.

use crate::models::Served;
use sconce_core::{Error, ErrorCode, InferOutput, ModelInput, Preparation, Reservation, Result, Tensor};
use sconce_scheduler::{Priority, Submission, Tenant};
use std::sync::Arc;
use std::time::Instant;
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
}

/// Threads for what is real work and no model's, such as tokenizing: as many at once as there are cores.
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

/// A request's tensors as what its model executes. `reservation` grows by what that takes, and to what the answer will.
/// Whoever works on the request holds it, also when nobody waits for it any more.
async fn prepare(
    pool: &PreparePool,
    served: &Served,
    tensors: Vec<(String, Tensor)>,
    mut reservation: Reservation,
) -> Result<(ModelInput, Reservation)> {
    let inputs = served.signature().check(tensors)?;
    let model = Arc::clone(served.scheduler.model());
    let Preparation { bytes, is_heavy } = model.preparation(&inputs);
    reservation.grow(bytes)?;
    reservation.grow_to(served.signature().answer_bytes(inputs.rows()))?;
    pool.run(is_heavy, move || Ok((model.prepare(inputs)?, reservation))).await
}

/// Prepares, schedules and waits. The deadline holds at every step. The reservation comes back with the answer.
///
/// # Errors
/// Whatever keeps the request from an answer; a failure before the queue is counted here, later ones by the scheduler.
pub(crate) async fn infer(
    pool: &PreparePool,
    served: &Served,
    job: Job,
) -> Result<(InferOutput, Reservation)> {
    let Job { tensors, priority, arrived_at, deadline, reservation, tenant } = job;
    let replied = async {
        let started_at = Instant::now();
        let prepared = within(deadline, prepare(pool, served, tensors, reservation)).await;
        let (input, reservation) = prepared.flatten()?;
        served.scheduler.submit(Submission {
            input,
            priority,
            deadline,
            arrived_at,
            prepare_time: started_at.elapsed(),
            reservation,
            tenant,
        })
    };
    let receiver =
        replied.await.inspect_err(|error| served.scheduler.count_failure(error, arrived_at.elapsed()))?;
    let reply = within(deadline, receiver).await?.map_err(|_| Error::internal("the request was lost"))?;
    Ok((reply.result?, reply.reservation))
}

/// `future`, unless the deadline comes first.
pub(crate) async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T> {
    match deadline {
        None => Ok(future.await),
        Some(at) => tokio::time::timeout_at(at.into(), future).await.map_err(|_| Error::deadline_exceeded()),
    }
}
