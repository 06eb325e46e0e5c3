//! Models made of other models: one dispatch a step, those whose inputs are there side by side.
//!
//! An ensemble has no queue and no slot of a device: only its steps do, each while it runs. A step is routed when it starts, so
//! it follows aliases as any request does.

use crate::dispatch::{self, Job, Request};
use crate::models::{Models, Routed};
use crate::traffic::Asks;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sconce_core::{
    Ensemble, Error, ErrorCode, InferOutput, ModelName, Reservation, Result, Signature, Step, Tensor,
    display_shape,
};
use sconce_telemetry::traces::{Method, Observed};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::DropGuard;

/// An ensemble whose steps' models were there, and fitted, when it was loaded.
pub(crate) struct Assembly {
    ensemble: Ensemble,
    signature: Signature,
    /// The models of its steps, of their steps, and so on.
    reaches: BTreeSet<ModelName>,
    /// How many ensembles are inside one another, this one included.
    depth: usize,
    rest: Rest,
    /// Tells who waits for it when the last request has let go of it.
    _gone: DropGuard,
}

/// A tensor of the pool, once it is made and as long as somebody will use it.
struct Slot {
    tensor: Option<Tensor>,
    uses: usize,
    /// The share of the bytes in flight of the step that made it.
    held: Option<Arc<Reservation>>,
}

/// By step, the time that answers took at least, lately, once it had ended. A step that leaves less is not begun: the work would be in vain.
struct Rest(Mutex<Vec<Option<(Duration, Instant)>>>);

/// For how long an answer says how long others will take: when all are refused, one is tried again after this.
const FRESH: Duration = Duration::from_secs(1);

/// What a step made: tensors by their places in the pool, and its share of the bytes in flight.
type Made = (Vec<(usize, Tensor)>, Reservation);

impl Assembly {
    pub(crate) fn new(
        ensemble: Ensemble,
        signature: Signature,
        reaches: BTreeSet<ModelName>,
        depth: usize,
        gone: DropGuard,
    ) -> Self {
        let rest = Rest(Mutex::new(vec![None; ensemble.steps().len()]));
        Self { ensemble, signature, reaches, depth, rest, _gone: gone }
    }

    pub(crate) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(crate) fn steps(&self) -> &[Step] {
        self.ensemble.steps()
    }

    pub(crate) fn reaches(&self) -> &BTreeSet<ModelName> {
        &self.reaches
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Answers a request; `observed` gets its steps as they end. Dropping it abandons every step that waits or runs.
    ///
    /// # Errors
    /// What the first step that failed failed with, under its name; `Unavailable` for a step without a model that is ready.
    pub(crate) async fn run(
        &self,
        models: &Arc<Models>,
        request: Request,
        observed: &mut Observed,
    ) -> Result<(InferOutput, Reservation)> {
        // Loading looked at what answered then. An alias may lead elsewhere now, even back to here.
        if request.depth >= Ensemble::MAX_DEPTH {
            let message =
                format!("ensembles are steps of one another more than {} deep", Ensemble::MAX_DEPTH);
            return Err(Error::new(ErrorCode::FailedPrecondition, message));
        }
        dispatch::within(request.deadline, self.run_steps(models, request, observed)).await.flatten()
    }

    async fn run_steps(
        &self,
        models: &Arc<Models>,
        mut request: Request,
        observed: &mut Observed,
    ) -> Result<(InferOutput, Reservation)> {
        request.reservation.grow_to(self.signature.answer_bytes(request.inputs.rows()))?;
        let slot = |uses| Slot { tensor: None, uses, held: None };
        let mut pool: Vec<Slot> = self.ensemble.uses().into_iter().map(slot).collect();
        for (at, slot) in pool.iter_mut().enumerate().take(self.signature.inputs.len()) {
            slot.tensor = request.inputs.take(at);
        }
        let mut waiting: Vec<usize> = (0..self.steps().len()).collect();
        let mut ended = vec![None; self.steps().len()];
        let mut running = FuturesUnordered::new();
        loop {
            let is_ready = |index: &mut usize| {
                self.steps()[*index].inputs.iter().all(|(_, at)| pool[*at].tensor.is_some())
            };
            let ready: Vec<usize> = waiting.extract_if(.., is_ready).collect();
            for index in ready {
                running.push(self.start(models, &request, observed, &mut pool, index)?);
            }
            let Some((index, made, step)) = running.next().await else { break };
            ended[index] = Some(step.ended_at);
            observed.steps.push(step);
            let (tensors, share) = made?;
            let share = Arc::new(share);
            for (at, tensor) in tensors {
                let slot = &mut pool[at];
                if slot.uses > 0 {
                    (slot.tensor, slot.held) = (Some(tensor), Some(Arc::clone(&share)));
                }
            }
        }
        self.rest.learn(&ended, Instant::now());
        self.finish(&mut pool, request.reservation)
    }

    /// A step on its way: what it takes leaves the pool where it was the last to use it.
    fn start<'a>(
        &'a self,
        models: &'a Arc<Models>,
        request: &Request,
        parent: &Observed,
        pool: &mut [Slot],
        index: usize,
    ) -> Result<BoxFuture<'a, (usize, Result<Made>, Observed)>> {
        let step = &self.steps()[index];
        let model = &step.spec.model;
        let now = Instant::now();
        let deadline =
            self.rest.bring_forward(index, request.deadline, now).map_err(|error| failed(model, error))?;
        let mut tensors = Vec::with_capacity(step.inputs.len());
        for (input, at) in &step.inputs {
            let tensor = pool[*at].tensor.clone().ok_or_else(|| Error::internal("a tensor was let go of"))?;
            tensors.push((input.clone(), tensor));
            pool[*at].used();
        }
        // What it works on counts for it as well: it may outlive the request, which gives back its own share then.
        let bytes = tensors.iter().map(|(_, tensor)| tensor.data().len()).sum();
        let job = Job {
            tensors,
            priority: request.priority,
            arrived_at: now,
            deadline,
            reservation: request.reservation.part(bytes).map_err(|error| failed(model, error))?,
            tenant: request.tenant,
            depth: request.depth + 1,
        };
        let mut observed = parent.child(Method::Step, job.arrived_at);
        let run = async move {
            let made = run_step(models, step, job, &mut observed).await;
            observed.ended_at = Instant::now();
            observed.code = made.as_ref().err().map(Error::code);
            (index, made.map_err(|error| failed(model, error)), observed)
        };
        // Ensembles may be steps of ensembles: the type must end here.
        Ok(Box::pin(run))
    }

    /// The outputs, which the request's share of the bytes in flight stands for from here on.
    fn finish(&self, pool: &mut [Slot], mut share: Reservation) -> Result<(InferOutput, Reservation)> {
        let mut tensors = Vec::with_capacity(self.signature.outputs.len());
        for (spec, at) in self.signature.outputs.iter().zip(self.ensemble.outputs()) {
            let missing = || Error::internal(format!("no step made output `{}`", spec.name));
            let tensor = pool[*at].tensor.clone().ok_or_else(missing)?;
            if tensor.datatype() != spec.datatype || !spec.accepts(tensor.shape()) {
                return Err(Error::internal(format!(
                    "output `{}`: expected {} {}, the steps made {} {:?}",
                    spec.name,
                    spec.datatype,
                    display_shape(&spec.shape),
                    tensor.datatype(),
                    tensor.shape()
                )));
            }
            tensors.push(tensor);
        }
        let bytes = tensors.iter().map(|tensor| tensor.data().len()).sum();
        share.settle(share.bytes().max(bytes));
        Ok((InferOutput { tensors }, share))
    }
}

impl Rest {
    /// When a step must have ended for the answer to be there at `deadline`.
    ///
    /// # Errors
    /// `DeadlineExceeded` where that is over.
    fn bring_forward(&self, step: usize, deadline: Option<Instant>, now: Instant) -> Result<Option<Instant>> {
        let Some(deadline) = deadline else { return Ok(None) };
        let known = self.known().get(step).copied().flatten();
        let Some((rest, _)) = known.filter(|(_, at)| now.saturating_duration_since(*at) < FRESH) else {
            return Ok(Some(deadline));
        };
        let earlier = deadline.checked_sub(rest).filter(|at| *at > now);
        earlier.map(Some).ok_or_else(|| {
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            let (rest, left) = (millis(rest), millis(deadline.saturating_duration_since(now)));
            let message =
                format!("the deadline cannot be met: what follows this step takes {rest:.1} ms, and {left:.1} ms are left");
            Error::new(ErrorCode::DeadlineExceeded, message)
        })
    }

    /// Learns from an answer that is there, `now`, when each step ended. The least of late: what takes longer now and then, for others
    /// that wait, is no reason to refuse.
    fn learn(&self, ended: &[Option<Instant>], now: Instant) {
        for (known, ended) in self.known().iter_mut().zip(ended) {
            let Some(took) = ended.map(|at| now.saturating_duration_since(at)) else { continue };
            let fresh = known.filter(|(_, at)| now.saturating_duration_since(*at) < FRESH);
            let least =
                fresh.map_or(took, |(least, _)| took.min(least + least / 16 + Duration::from_micros(1)));
            *known = Some((least, now));
        }
    }

    // Nothing that panics runs under this lock.
    fn known(&self) -> MutexGuard<'_, Vec<Option<(Duration, Instant)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn used(&mut self) {
        self.uses -= 1;
        if self.uses == 0 {
            (self.tensor, self.held) = (None, None);
        }
    }
}

async fn run_step(models: &Arc<Models>, step: &Step, mut job: Job, observed: &mut Observed) -> Result<Made> {
    let (deadline, started_at) = (job.deadline, job.arrived_at);
    // Whose request it is a step of says nothing of the step's model: it is drawn.
    let asks = Asks::default();
    let found = models.serving(step.spec.model.as_str(), &step.spec.version, Some(&asks));
    let found = dispatch::within(deadline, found).await?;
    let Routed { served, decided, .. } = found.map_err(|error| match error.code() {
        // To the caller of the ensemble it is there, but cannot answer now.
        ErrorCode::NotFound | ErrorCode::InvalidArgument => {
            Error::new(ErrorCode::Unavailable, error.to_string())
        }
        _ => error,
    })?;
    served.used(started_at);
    // What the step's model allows itself holds where the request brings nothing.
    let default = || started_at.checked_add(served.settings.default_timeout?);
    job.deadline = job.deadline.or_else(default);
    observed.routed_at = Some(Instant::now());
    observed.target = Some(Arc::clone(&served.observed_as));
    let answered = dispatch::infer(models, &served, job, observed).await;
    if let Some(decided) = decided {
        decided.variant.tally.count(served.version, &answered, started_at.elapsed());
    }
    let (output, mut share) = answered?;
    let outputs = &served.signature().outputs;
    let mut made = Vec::with_capacity(step.outputs.len());
    for (name, at) in &step.outputs {
        let place = outputs.iter().position(|spec| spec.name == *name);
        let tensor = place.and_then(|place| output.tensors.get(place)).ok_or_else(|| {
            let version = &served.version_text;
            Error::new(ErrorCode::FailedPrecondition, format!("version {version} has no output `{name}`"))
        })?;
        made.push((*at, tensor.clone()));
    }
    share.settle(made.iter().map(|(_, tensor)| tensor.data().len()).sum());
    Ok((made, share))
}

fn failed(model: &ModelName, error: Error) -> Error {
    error.at(format_args!("step `{model}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_step_is_not_begun_when_what_follows_it_would_be_late() {
        let start = Instant::now();
        let rest = Rest(Mutex::new(vec![None; 2]));
        let until =
            |now: Instant, left: u32| rest.bring_forward(0, Some(now + left * MS), now).map(Option::unwrap);
        assert_eq!(until(start, 1).unwrap(), start + MS, "nothing is known");
        // The first step ended 50 ms before the answer, the second with it.
        rest.learn(&[Some(start), Some(start + 50 * MS)], start + 50 * MS);
        let now = start + 60 * MS;
        assert_eq!(until(now, 80).unwrap(), now + 30 * MS);
        let error = until(now, 40).unwrap_err();
        assert_eq!(error.code(), ErrorCode::DeadlineExceeded);
        assert!(error.to_string().contains("takes 50.0 ms, and 40.0 ms are left"), "{error}");
        assert_eq!(
            rest.bring_forward(1, Some(now + MS), now).unwrap(),
            Some(now + MS),
            "nothing follows the second"
        );
        assert_eq!(rest.bring_forward(0, None, now).unwrap(), None);
        // One slow answer says little, many say more; and what is old says nothing.
        rest.learn(&[Some(now), None], now + 400 * MS);
        let now = now + 400 * MS;
        assert!(until(now, 60).is_ok());
        (0..40).for_each(|_| rest.learn(&[Some(now - 400 * MS), None], now));
        assert!(until(now, 300).is_err() && until(now, 401).is_ok());
        assert!(until(now + FRESH, 1).is_ok());
    }
}
