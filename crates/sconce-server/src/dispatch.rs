//! The spine: one request from the route to its answer.

use crate::models::Served;
use sconce_core::{
    Error, ErrorCode, ExecutionRecord, InferOutput, ModelInput, Preparation, Reservation, Result, Tensor,
};
use sconce_scheduler::{Priority, Submission};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// A valid request for one model version.
pub(crate) struct Job {
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) priority: Priority,
    pub(crate) arrived_at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The received bytes that `tensors` point into.
    pub(crate) reservation: Option<Reservation>,
}

/// Threads for preparation that is real work, such as tokenizing: as many at once as there are cores.
pub(crate) struct PreparePool(Arc<Semaphore>);

impl PreparePool {
    pub(crate) fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads)))
    }

    async fn prepare(&self, served: &Served, tensors: Vec<(String, Tensor)>) -> Result<ModelInput> {
        let inputs = served.signature().check(tensors)?;
        let model = served.scheduler.model();
        if model.preparation() == Preparation::Inline {
            return model.prepare(inputs);
        }
        // The semaphore is never closed; a refusal here could only come at shutdown.
        let closed = |_| Error::new(ErrorCode::Unavailable, "the server is shutting down");
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(closed)?;
        let model = Arc::clone(model);
        let prepared = tokio::task::spawn_blocking(move || {
            let prepared = model.prepare(inputs);
            drop(permit);
            prepared
        });
        prepared
            .await
            .unwrap_or_else(|error| Err(Error::internal("preparing the input failed").with_source(error)))
    }
}

/// Prepares, schedules and waits. The deadline holds at every step.
///
/// # Errors
/// Whatever keeps the request from an answer; a failure before the queue is counted here, later ones by the scheduler.
pub(crate) async fn infer(
    pool: &PreparePool,
    served: &Served,
    job: Job,
) -> Result<(InferOutput, Option<ExecutionRecord>)> {
    let (arrived_at, deadline) = (job.arrived_at, job.deadline);
    let replied = async {
        let started_at = Instant::now();
        let input = within(deadline, pool.prepare(served, job.tensors)).await??;
        served.scheduler.submit(Submission {
            input,
            priority: job.priority,
            deadline,
            arrived_at,
            prepare_time: started_at.elapsed(),
            reservation: job.reservation,
        })
    };
    let receiver =
        replied.await.inspect_err(|error| served.scheduler.count_failure(error, arrived_at.elapsed()))?;
    let reply = within(deadline, receiver).await?.map_err(|_| Error::internal("the request was lost"))?;
    Ok((reply.result?, reply.record))
}

/// `future`, unless the deadline comes first.
pub(crate) async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T> {
    match deadline {
        None => Ok(future.await),
        Some(at) => tokio::time::timeout_at(at.into(), future).await.map_err(|_| Error::deadline_exceeded()),
    }
}
