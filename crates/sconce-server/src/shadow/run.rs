//! A shadow's lane: takes what was offered, runs as much of it as the shadow may, and hands on what came of it.

use super::breaker::Breaker;
use super::findings::{Findings, Pair};
use super::{Asked, Work};
use crate::dispatch::{self, Job, Unseen};
use crate::models::{Models, Served};
use sconce_core::{Error, ErrorCode, ModelName, Reservation, Tensor};
use sconce_scheduler::{Priority, Tenant};
use sconce_traffic::route;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What waited longer than this says nothing of now.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a candidate may take: longer, and it counts as hanging.
const LONGEST_RUN: Duration = Duration::from_secs(10);

/// Begins to work off what comes in `waiting`, until whoever offers is gone or the server stops.
pub(super) fn start(
    models: &Arc<Models>,
    model: &ModelName,
    shadow: &route::Shadow,
    findings: &Arc<Findings>,
    waiting: mpsc::Receiver<Work>,
) {
    let runner = Runner {
        models: Arc::clone(models),
        model: model.clone(),
        shadow: shadow.clone(),
        findings: Arc::clone(findings),
    };
    let stop = models.stopping();
    models.tasks.spawn(async move { stop.run_until_cancelled(work_off(Arc::new(runner), waiting)).await });
}

struct Runner {
    models: Arc<Models>,
    model: ModelName,
    shadow: route::Shadow,
    findings: Arc<Findings>,
}

/// How a request ended, as far as its lane minds.
enum Ended {
    /// It was answered, or refused for want of room; it took so much time of the device.
    Well(Duration),
    Failed,
    Hung,
}

async fn work_off(runner: Arc<Runner>, mut waiting: mpsc::Receiver<Work>) {
    let findings = Arc::clone(&runner.findings);
    let most = runner.shadow.max_concurrency as usize;
    let (mut running, mut breaker) = (JoinSet::new(), Breaker::default());
    // When the shadow has had no more than its share of the device's time.
    let mut even_at = Instant::now();
    loop {
        findings.waiting.store(waiting.len(), Ordering::Relaxed);
        findings.running.store(running.len(), Ordering::Relaxed);
        let now = Instant::now();
        let is_even = even_at <= now;
        tokio::select! {
            biased;
            Some(ended) = running.join_next(), if !running.is_empty() => match ended {
                Ok(Ended::Well(time)) => {
                    breaker.succeeded();
                    // What was not used before is no credit.
                    even_at = even_at.max(now - Duration::from_millis(100)) + time.div_f64(runner.shadow.share) - time;
                }
                Ok(Ended::Failed) => breaker.failed(Instant::now()),
                Ok(Ended::Hung) => breaker.hung(Instant::now()),
                Err(error) => {
                    let error = Error::internal("preparing or running it panicked").with_source(error);
                    findings.failed(&error);
                    breaker.failed(Instant::now());
                }
            },
            work = waiting.recv(), if running.len() < most && is_even => {
                let Some(work) = work else { break };
                if breaker.is_open(now) {
                    findings.dropped("held_back");
                } else if work.offered_at.elapsed() > LONGEST_WAIT {
                    findings.dropped("waited");
                } else {
                    let runner = Arc::clone(&runner);
                    running.spawn(async move { runner.run(work).await });
                }
            }
            () = tokio::time::sleep_until(even_at.into()), if !is_even => {}
        }
    }
    // Nobody offers any more: what runs is still counted.
    while running.join_next().await.is_some() {}
}

impl Runner {
    /// Has the candidate answer one request.
    async fn run(&self, work: Work) -> Ended {
        let Work { asked, latency, reservation, recorder, mut observed, .. } = work;
        let served = match self.models.in_memory(&self.model, &self.shadow.variant.target) {
            Ok(served) => served,
            Err(error) => {
                self.findings.explain(&error);
                self.findings.dropped("not_ready");
                return Ended::Well(Duration::ZERO);
            }
        };
        let shadows = &self.models.shadows;
        // What it holds is counted as long as it is there, whoever holds it.
        let held = Arc::new(reservation);
        let job = Job {
            tensors: asked.tensors.clone(),
            priority: Priority::LOWEST,
            arrived_at: Instant::now(),
            deadline: Some(Instant::now() + LONGEST_RUN),
            reservation: shadows.budget.empty(),
            tenant: Tenant::default(),
            depth: 0,
        };
        let (started_at, deadline) = (job.arrived_at, job.deadline);
        (observed.routed_at, observed.target) = (Some(started_at), Some(Arc::clone(&served.observed_as)));
        observed.variant = Some(Arc::clone(&self.shadow.variant.label));
        let max_batch = Duration::from_millis(self.shadow.max_batch_ms.into());
        let ran = dispatch::unseen(&self.models, &served, job, max_batch, &shadows.prepare, &mut observed);
        let ran = dispatch::within(deadline, ran).await.flatten();
        (observed.ended_at, observed.code) = (Instant::now(), ran.as_ref().err().map(Error::code));
        recorder.observe(&observed);
        let taken = started_at.elapsed();
        match ran {
            Err(error) if self.is_for_want_of_room(&error, &served, taken) => {
                self.findings.explain(&error);
                self.findings.dropped("shed");
                Ended::Well(Duration::ZERO)
            }
            Err(error) => {
                self.findings.failed(&error);
                let outputs = Err(error.code());
                self.hand_on(asked, latency, &served, (outputs, taken), (held, None)).await;
                if taken >= LONGEST_RUN { Ended::Hung } else { Ended::Failed }
            }
            Ok(Unseen { outputs, reservation, device_time }) => {
                let held = (held, Some(reservation));
                self.hand_on(asked, latency, &served, (Ok(outputs), taken), held).await;
                Ended::Well(device_time)
            }
        }
    }

    /// Whether a request was not run because others want what it would take: that says nothing against the candidate.
    fn is_for_want_of_room(&self, error: &Error, served: &Served, taken: Duration) -> bool {
        match error.code() {
            ErrorCode::ResourceExhausted => true,
            // Either its turn would not have come in time, or it did not come: then all that this shadow runs still waits.
            ErrorCode::DeadlineExceeded => {
                let running = self.findings.running.load(Ordering::Relaxed);
                taken < LONGEST_RUN || served.shadow_depth() >= running.max(1)
            }
            _ => false,
        }
    }

    /// Hands on what is to be compared.
    async fn hand_on(
        &self,
        asked: Arc<Asked>,
        latency: Duration,
        served: &Served,
        (outputs, taken): (Result<Vec<(String, Tensor)>, ErrorCode>, Duration),
        held: (Arc<Reservation>, Option<Reservation>),
    ) {
        let (findings, version) = (Arc::clone(&self.findings), served.version);
        let pair = Pair { findings, asked, latency, version, outputs, taken, _held: held };
        // The thread that compares ends last: without it there is nobody to tell.
        let _ = self.models.shadows.pairs.send(pair).await;
    }
}
