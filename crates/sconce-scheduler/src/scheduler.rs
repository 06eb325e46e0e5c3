use crate::arbiter::{AwaitsIdle, ClientId, Device, IdleSlot};
use crate::batcher::{BatchPolicy, Batcher, Dispatch, Due};
use crate::cost::{CostReport, Work};
use crate::entry::{Class, Entry, Priority, Refusal, Tenant};
use crate::worker;
use sconce_core::{
    Error, ErrorCode, ExecutionRecord, FailReason, InferOutput, LoadedModel, ModelInput, ModelStats,
    Reservation, Result,
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A prepared request on its way into the queue.
#[derive(Debug)]
pub struct Submission {
    /// What the backend executes.
    pub input: ModelInput,
    /// Who goes first.
    pub priority: Priority,
    /// Whose it is.
    pub tenant: Tenant,
    /// Whether anybody waits for its answer.
    pub class: Class,
    /// After this the answer is worthless.
    pub deadline: Option<Instant>,
    /// When the request came through the front door.
    pub arrived_at: Instant,
    /// How long its preparation took.
    pub prepare_time: Duration,
    /// Its share of the bytes in flight; comes back with the reply.
    pub reservation: Reservation,
}

/// The one reply to a request.
#[derive(Debug)]
pub struct Reply {
    /// The answer.
    pub result: Result<InferOutput>,
    /// What happened to the request; `None` when it never ran.
    pub record: Option<ExecutionRecord>,
    /// The request's share of the bytes in flight, now its answer's.
    pub reservation: Reservation,
}

/// A model version's queue and workers. Dropping it closes the queue; [`Scheduler::close`] also waits.
pub struct Scheduler {
    shared: Arc<Shared>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// What submitters and workers of one model version share.
pub(crate) struct Shared {
    pub(crate) model: Arc<dyn LoadedModel>,
    pub(crate) device: Arc<Device>,
    pub(crate) client: ClientId,
    /// Its share of the device.
    pub(crate) weight: f32,
    queue: Mutex<Queue>,
    /// Itself, as who awaits an idle device.
    this: Weak<dyn AwaitsIdle>,
    wake: Condvar,
    /// The runtime the callers wait on, if they do.
    pub(crate) runtime: Option<Handle>,
    /// Of primary and of shadow work.
    stats: [Mutex<ModelStats>; 2],
    max_rows: usize,
}

/// What a worker does next.
pub(crate) enum Turn<'a> {
    /// A batch that somebody waits for is due.
    Primary,
    /// Nobody wants this slot but shadow work.
    Shadow(IdleSlot<'a>),
    /// Closed, and nothing waits any more.
    End,
}

/// The number of the first batch of shadow work: batches of a version have each a number of their own.
const FIRST_SHADOW_BATCH: u64 = 1 << 62;

pub(crate) struct Queue {
    pub(crate) batcher: Batcher<Job>,
    /// Shadow work. It knows of no other, and no other of it.
    pub(crate) shadow: Batcher<Job>,
    closed: bool,
    /// What waits is due at once.
    hurried: bool,
    idle_workers: usize,
    /// A worker was woken and has not looked yet: it will see what arrives until then.
    waking: bool,
    next_sweep: Instant,
}

impl Queue {
    fn due(&self, now: Instant) -> Due {
        if self.hurried && !self.batcher.is_empty() { Due::Now } else { self.batcher.due(now) }
    }

    /// Takes out what will never run. That takes long in a long queue, and overload must not feed itself: at most a
    /// sixteenth of the time goes into it.
    fn sweep(&mut self, now: Instant) -> Vec<Entry<Job>> {
        if now < self.next_sweep {
            return Vec::new();
        }
        let started = Instant::now();
        let dropped = self.batcher.sweep(now, Job::abandoned);
        self.next_sweep = Instant::now() + started.elapsed() * 16;
        dropped
    }
}

/// What the batcher carries for one request.
pub(crate) struct Job {
    pub(crate) input: ModelInput,
    pub(crate) arrived_at: Instant,
    pub(crate) prepare_time: Duration,
    reply: oneshot::Sender<Reply>,
    reservation: Reservation,
}

impl Job {
    pub(crate) fn abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Sends the reply. A caller that went away meanwhile needs none.
    pub(crate) fn answer(self, result: Result<InferOutput>, record: Option<ExecutionRecord>) {
        let _ = self.reply.send(Reply { result, record, reservation: self.reservation });
    }

    /// Takes the input out for the batch; what stays is what the reply needs.
    pub(crate) fn take_input(&mut self) -> ModelInput {
        let empty = ModelInput { tensors: Vec::new(), rows: 0, row_tokens: Vec::new() };
        std::mem::replace(&mut self.input, empty)
    }
}

impl Scheduler {
    /// Starts `instances` workers (at least 1) for `model` on `device`, and waits until each has its backend. `name` is the
    /// model's, whose versions share the device as one; it is in the threads' names.
    ///
    /// # Errors
    /// `Internal` when a thread or an instance cannot be made; nothing is left running then.
    pub fn start(
        name: &str,
        model: Arc<dyn LoadedModel>,
        policy: BatchPolicy,
        device: Arc<Device>,
        instances: usize,
    ) -> Result<Self> {
        let policy = BatchPolicy { is_padded: model.is_padded(), ..policy };
        let instances = instances.max(1);
        let mut shadow = Batcher::new(
            // What waits is due at once, and waits for as long as nothing else needs its place.
            BatchPolicy { max_delay: Duration::ZERO, queue_target: Duration::ZERO, ..policy.clone() },
            instances,
        );
        shadow.number_from(FIRST_SHADOW_BATCH);
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            this: Weak::clone(this) as Weak<dyn AwaitsIdle>,
            model,
            client: device.client(name),
            weight: policy.weight,
            device,
            max_rows: policy.max_rows,
            queue: Mutex::new(Queue {
                batcher: Batcher::new(policy, instances),
                shadow,
                closed: false,
                hurried: false,
                idle_workers: 0,
                waking: false,
                next_sweep: Instant::now(),
            }),
            wake: Condvar::new(),
            runtime: Handle::try_current().ok(),
            stats: Default::default(),
        });
        let scheduler = Self { shared, workers: Mutex::new(Vec::new()) };
        for instance in 0..instances {
            if let Err(error) = scheduler.start_worker(name, instance) {
                scheduler.close();
                return Err(error);
            }
        }
        Ok(scheduler)
    }

    fn start_worker(&self, name: &str, instance: usize) -> Result<()> {
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        let worker = std::thread::Builder::new()
            .name(format!("sconce-worker-{name}-{instance}"))
            .spawn(move || worker::run(&shared, instance, &ready))
            .map_err(|error| Error::internal("a worker thread could not be started").with_source(error))?;
        self.workers().push(worker);
        is_ready.recv().unwrap_or_else(|_| Err(Error::internal("a worker ended while it started")))
    }

    /// Tells the scheduler, before its first request, what a batch took elsewhere.
    pub fn learn(&self, work: Work, time: Duration) {
        let mut queue = self.shared.queue();
        queue.batcher.observe(work, time);
        queue.shadow.observe(work, time);
    }

    /// The most time that a batch of several shadow requests should take: a batch that runs cannot be taken back, so that is what
    /// shadow work may keep others waiting. The model's quantum before this is called.
    pub fn limit_shadow(&self, max_batch: Duration) {
        self.shared.queue().shadow.set_quantum(max_batch);
    }

    /// What was learned of the time that batches take.
    pub fn cost(&self) -> CostReport {
        self.shared.queue().batcher.cost()
    }

    /// The model it runs.
    pub fn model(&self) -> &Arc<dyn LoadedModel> {
        &self.shared.model
    }

    /// Puts a request in the queue. Exactly one [`Reply`] comes through the receiver; dropping the receiver abandons the
    /// request.
    ///
    /// # Errors
    /// At once: `ResourceExhausted`, with the time after which to try again, when the queue is full or has been too long for too
    /// long; `DeadlineExceeded` when the deadline has passed or will have before there can be an answer; `InvalidArgument` for more rows than a batch may have, `Unavailable` after [`Scheduler::close`].
    pub fn submit(&self, submission: Submission) -> Result<oneshot::Receiver<Reply>> {
        let now = Instant::now();
        let Submission { input, priority, tenant, class, deadline, arrived_at, prepare_time, reservation } =
            submission;
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::deadline_exceeded());
        }
        if input.rows > self.shared.max_rows {
            return Err(Error::invalid(format!(
                "the request has {} rows, a batch at most {}",
                input.rows, self.shared.max_rows
            )));
        }
        let (reply, receiver) = oneshot::channel();
        let (rows, tokens, longest) = (input.rows, input.tokens(), input.longest());
        let job = Job { input, arrived_at, prepare_time, reply, reservation };
        let mut queue = self.shared.queue();
        if queue.closed {
            return Err(Error::new(ErrorCode::Unavailable, "the model version is being unloaded"));
        }
        let entry = Entry { ticket: job, rows, tokens, longest, priority, tenant, queued_at: now, deadline };
        if class == Class::Shadow {
            return self.submit_shadow(queue, entry).map(|()| receiver);
        }
        let mut dropped = Vec::new();
        let before = queue.due(now);
        let mut pushed = queue.batcher.push(now, entry);
        if let Err((refusal, entry)) = pushed {
            // Room may be held by requests that will never run.
            dropped = queue.sweep(now);
            pushed = if dropped.is_empty() { Err((refusal, entry)) } else { queue.batcher.push(now, entry) };
        }
        // The first in the queue needs a worker that watches the clock for it; those behind it a worker only when a batch is
        // due, or will be earlier for them.
        let wanted = match (before, queue.due(now)) {
            (_, Due::Now) | (Due::Idle, _) => true,
            (Due::At(before), Due::At(after)) => after < before,
            _ => false,
        };
        // A refused request wakes nobody, so it must not say that somebody is being woken.
        let wake =
            pushed.is_ok() && wanted && queue.idle_workers > 0 && !std::mem::replace(&mut queue.waking, true);
        drop(queue);
        self.shared.answer_dropped(dropped, Class::Primary);
        if wake {
            self.shared.wake.notify_one();
        }
        match pushed {
            Ok(shed) => {
                shed.into_iter().for_each(|entry| self.shared.give_up(entry, Class::Primary));
                Ok(receiver)
            }
            Err((refusal, _)) => Err(self.shared.refuse(refusal, Class::Primary)),
        }
    }

    /// Puts shadow work in its queue.
    fn submit_shadow(&self, mut queue: MutexGuard<'_, Queue>, entry: Entry<Job>) -> Result<()> {
        let pushed = queue.shadow.push(entry.queued_at, entry);
        let wake = pushed.is_ok() && queue.idle_workers > 0 && !std::mem::replace(&mut queue.waking, true);
        drop(queue);
        if wake {
            self.shared.wake.notify_one();
        }
        match pushed {
            Ok(shed) => {
                shed.into_iter().for_each(|entry| self.shared.give_up(entry, Class::Shadow));
                Ok(())
            }
            Err((refusal, _)) => Err(self.shared.refuse(refusal, Class::Shadow)),
        }
    }

    /// The counters so far, without shadow work.
    pub fn stats(&self) -> ModelStats {
        self.shared.stats(Class::Primary).clone()
    }

    /// The counters of shadow work.
    pub fn shadow_stats(&self) -> ModelStats {
        self.shared.stats(Class::Shadow).clone()
    }

    /// Requests that wait, without shadow work.
    pub fn queue_depth(&self) -> usize {
        self.shared.queue().batcher.len()
    }

    /// Shadow requests that wait.
    pub fn shadow_depth(&self) -> usize {
        self.shared.queue().shadow.len()
    }

    /// From now on no request waits for company, those that wait already included: for a version that will get no more.
    pub fn hurry(&self) {
        self.shared.queue().hurried = true;
        self.shared.wake.notify_all();
    }

    /// Takes no more requests, lets the workers answer what waits, and joins them. Blocks: call it off the async threads.
    pub fn close(&self) {
        self.shared.close();
        // The lock is held meanwhile: another call waits for the same.
        for worker in self.workers().drain(..) {
            // A worker that panicked outside of a batch has nothing left to give back.
            let _ = worker.join();
        }
    }

    fn workers(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// Waits until there is something to do.
    pub(crate) fn next_turn(&self) -> Turn<'_> {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            let due = queue.due(now);
            let wait = match due {
                Due::Now => return Turn::Primary,
                Due::Idle if queue.closed => return Turn::End,
                Due::Idle => None,
                Due::At(at) => Some(at.saturating_duration_since(now)),
            };
            if !queue.shadow.is_empty()
                && let Some(slot) = self.device.acquire_idle(&self.this)
            {
                return Turn::Shadow(slot);
            }
            queue.idle_workers += 1;
            queue = match wait {
                None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => self.wake.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0,
            };
            queue.idle_workers -= 1;
            // Where this thread took the core from the one that submits, requests that are there already would each get a
            // batch, and two context switches, of their own: let the submitter finish first. On a free core it is nothing.
            drop(queue);
            std::thread::yield_now();
            queue = self.queue();
            queue.waking = false;
        }
    }

    /// Whether a batch is due.
    pub(crate) fn is_due(&self) -> bool {
        self.queue().due(Instant::now()) == Due::Now
    }

    /// Composes a batch if one is due; `None` when another worker was faster. Dropped requests are answered here.
    /// `contested`: another model wants the device.
    pub(crate) fn take_batch(&self, contested: bool) -> Option<Dispatch<Job>> {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            if queue.due(now) != Due::Now {
                return None;
            }
            let mut dispatch = queue.batcher.take(now, contested, Job::abandoned);
            // The others that will never run hold memory as long as they wait.
            dispatch.dropped.append(&mut queue.sweep(now));
            if !dispatch.entries.is_empty() {
                // What did not fit is another worker's, if one sleeps: the one wake-up a push sends may have been ours.
                let left = queue.idle_workers > 0 && !queue.batcher.is_empty();
                let wake = left && !std::mem::replace(&mut queue.waking, true);
                drop(queue);
                if wake {
                    self.wake.notify_one();
                }
                self.answer_dropped(std::mem::take(&mut dispatch.dropped), Class::Primary);
                dispatch.shed.drain(..).for_each(|entry| self.give_up(entry, Class::Primary));
                return Some(dispatch);
            }
            drop(queue);
            self.answer_dropped(dispatch.dropped, Class::Primary);
            dispatch.shed.drain(..).for_each(|entry| self.give_up(entry, Class::Primary));
            queue = self.queue();
        }
    }

    /// Composes a batch of shadow work; `None` where nothing is left of it.
    pub(crate) fn take_shadow_batch(&self) -> Option<Dispatch<Job>> {
        let mut queue = self.queue();
        let mut dispatch = queue.shadow.take(Instant::now(), true, Job::abandoned);
        drop(queue);
        self.answer_dropped(std::mem::take(&mut dispatch.dropped), Class::Shadow);
        (!dispatch.entries.is_empty()).then_some(dispatch)
    }

    /// Answers requests that must not run. Their time counts as failed.
    fn answer_dropped(&self, dropped: Vec<Entry<Job>>, class: Class) {
        if dropped.is_empty() {
            return;
        }
        let mut stats = self.stats(class);
        for entry in &dropped {
            stats.add_failure(FailReason::Canceled, entry.ticket.arrived_at.elapsed());
        }
        drop(stats);
        let now = Instant::now();
        for entry in dropped {
            let is_late = entry.deadline.is_some_and(|deadline| deadline > now);
            let error =
                if is_late { too_late("there is not enough time left") } else { Error::deadline_exceeded() };
            entry.ticket.answer(Err(error), None);
        }
    }

    /// Answers a request that had to make room. Call it without the queue's lock.
    fn give_up(&self, entry: Entry<Job>, class: Class) {
        let error = Error::new(
            ErrorCode::ResourceExhausted,
            "the model is overloaded: the request was taken in, and had to make room for others",
        );
        let mut stats = self.stats(class);
        stats.add_failure(FailReason::Rejected, entry.ticket.arrived_at.elapsed());
        *stats.refusals.entry("shed").or_default() += 1;
        drop(stats);
        // When what waits now has been answered; before anything was learned, when it would have had its turn had it stayed.
        let wait = self.queue().batcher.wait(Instant::now());
        let after = wait.max(entry.queued_at.elapsed());
        entry.ticket.answer(Err(error.with_retry_after(after)), None);
    }

    fn refuse(&self, refusal: Refusal, class: Class) -> Error {
        *self.stats(class).refusals.entry(refusal.name()).or_default() += 1;
        match refusal {
            Refusal::Full { retry_after } => {
                Error::new(ErrorCode::ResourceExhausted, "the model's queue is full: try again later")
                    .with_retry_after(retry_after)
            }
            Refusal::Overloaded { wait, retry_after } => {
                let message = format!("the model is overloaded: the request would wait {}", millis(wait));
                Error::new(ErrorCode::ResourceExhausted, message).with_retry_after(retry_after)
            }
            Refusal::TooLate { estimate, allowed } => too_late(&format!(
                "the answer would take {}, and {} are left",
                millis(estimate),
                millis(allowed)
            )),
        }
    }

    /// Learns from a batch that ended. What shadow batches take is no others' estimate: they run when the machine is idle.
    pub(crate) fn finished(&self, id: u64, class: Class, work: Work, service: Option<Duration>) {
        let mut queue = self.queue();
        match class {
            Class::Shadow => queue.shadow.finished(id, work, service),
            Class::Primary => {
                queue.batcher.finished(id, work, service);
                service.into_iter().for_each(|time| queue.shadow.observe(work, time));
            }
        }
    }

    pub(crate) fn stats(&self, class: Class) -> MutexGuard<'_, ModelStats> {
        let [primary, shadow] = &self.stats;
        let stats = if class == Class::Shadow { shadow } else { primary };
        stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut queue = self.queue();
        (queue.closed, queue.hurried) = (true, true);
        let shadows = queue.shadow.sweep(Instant::now(), |_| true);
        drop(queue);
        self.wake.notify_all();
        for entry in shadows {
            let gone = Error::new(ErrorCode::Unavailable, "the model version is being unloaded");
            entry.ticket.answer(Err(gone), None);
        }
    }

    // Nothing that panics runs under these locks: a poisoned lock is still a sound one.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AwaitsIdle for Shared {
    fn may_be_idle(&self) {
        // With the lock: a worker that found the device busy either waits already or will see that it no longer is.
        drop(self.queue());
        self.wake.notify_one();
    }
}

fn too_late(why: &str) -> Error {
    Error::new(ErrorCode::DeadlineExceeded, format!("the deadline cannot be met: {why}"))
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
