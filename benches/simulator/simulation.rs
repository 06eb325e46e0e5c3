//! One device, its models' batchers and workers, in virtual time: the real batcher and arbiter, and the rules by which workers use
//! them.

use crate::lengths::normal;
use crate::policy::Policy;
use crate::trace::Arrival;
use sconce_scheduler::{
    Arbiter, BatchPolicy, Batcher, Claim, ClientId, Device, Dispatch, Due, Entry, Priority, Rivals, Tenant,
    Ticket, Work,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a batch takes in truth, seconds: all-MiniLM-L6-v2 in f32 on one core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) batch: f64,
    pub(crate) row: f64,
    pub(crate) token: f64,
}

impl Cost {
    pub(crate) const MINILM: Self = Self { batch: 0.5e-3, row: 0.02e-3, token: 0.115e-3 };
    /// The same where lengths are equal and not short: a batch gains four percent there.
    pub(crate) const EVEN: Self = Self { batch: 0.12e-3, ..Self::MINILM };

    /// Without its part of what a batch takes however small.
    pub(crate) fn of_row(self, tokens: usize) -> f64 {
        self.row + self.token * tokens as f64
    }

    /// On a part of the device.
    pub(crate) fn on(self, part: f64) -> Self {
        Self { batch: self.batch / part, row: self.row / part, token: self.token / part }
    }

    fn of_batch(self, work: Work) -> f64 {
        self.batch + self.row * work.rows as f64 + self.token * work.tokens as f64
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// Answered so long after it came.
    Answered(Duration),
    /// Refused when it came.
    Refused,
    /// Thrown out of the queue.
    Dropped,
    /// Not before the simulation ended, so long after it came.
    Waiting(Duration),
}

/// What ran in a simulation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// One for each arrival.
    pub(crate) ends: Vec<End>,
    pub(crate) batches: u64,
    pub(crate) tokens: u64,
    pub(crate) padding: u64,
}

/// The line for the device's one slot.
enum Slots {
    Fair(Arbiter),
    /// Who came first: the holder is the first.
    Fifo(VecDeque<usize>),
}

enum Worker {
    Idle,
    Waiting(Option<Ticket>),
    Running { until: Duration, service: Duration, batch: Dispatch<usize>, work: Work },
}

struct Model {
    batcher: Batcher<usize>,
    client: ClientId,
    worker: Worker,
}

/// A simulation in progress.
pub(crate) struct Simulation<'a> {
    arrivals: &'a [Arrival],
    policy: Policy,
    cost: Cost,
    slo: Duration,
    /// The virtual clock's zero: a time like any other, and nothing depends on which.
    start: Instant,
    now: Duration,
    models: Vec<Model>,
    slots: Slots,
    rivals: Rivals<usize, Duration>,
    slot_since: Duration,
    next_sweep: Duration,
    /// Of the service times.
    random: fastrand::Rng,
    outcome: Outcome,
}

/// For how long another model that asked for the device counts as still there: as the device has it.
const RIVALRY: Duration = Duration::from_secs(1);
/// How often a second of computing someone else takes the core.
const STALLS: f64 = 0.1;
/// What a full queue is searched for is sought this often.
const SWEEP: Duration = Duration::from_millis(1);

/// Runs `arrivals` to the end, and what then waits for as long as `slo`.
pub(crate) fn simulate(
    arrivals: &[Arrival],
    models: usize,
    policy: Policy,
    batching: &BatchPolicy,
    cost: Cost,
    slo: Duration,
    seed: u64,
) -> Outcome {
    let device = Device::new(1);
    let model = |number: usize| {
        let mut batcher = Batcher::new(batching.clone(), 1);
        // As the server's warm-up.
        let warm = Work { rows: 1, tokens: 16 };
        batcher.observe(warm, Duration::from_secs_f64(cost.of_batch(warm)));
        Model { batcher, client: device.client(&number.to_string()), worker: Worker::Idle }
    };
    let slots = if policy.is_fair() { Slots::Fair(Arbiter::new(1)) } else { Slots::Fifo(VecDeque::new()) };
    let simulation = Simulation {
        arrivals,
        policy,
        cost,
        slo,
        start: Instant::now(),
        now: Duration::ZERO,
        models: (0..models).map(model).collect(),
        slots,
        rivals: Rivals::default(),
        slot_since: Duration::ZERO,
        next_sweep: Duration::ZERO,
        random: fastrand::Rng::with_seed(seed),
        outcome: Outcome { ends: vec![End::Waiting(Duration::ZERO); arrivals.len()], ..Outcome::default() },
    };
    simulation.run()
}

impl Simulation<'_> {
    fn run(mut self) -> Outcome {
        let end = self.arrivals.last().map_or(Duration::ZERO, |last| last.at) + self.slo;
        let mut next = 0;
        loop {
            let arrives = self.arrivals.get(next).map(|arrival| arrival.at);
            match (arrives, self.next_event()) {
                (Some(at), event) if event.is_none_or(|(event, _)| at <= event) => {
                    self.now = at;
                    self.arrive(next);
                    next += 1;
                }
                (_, Some((at, model))) if at <= end => {
                    self.now = at;
                    self.wake(model);
                }
                _ => break,
            }
        }
        for (outcome, arrival) in self.outcome.ends.iter_mut().zip(self.arrivals) {
            if let End::Waiting(waited) = outcome {
                *waited = end - arrival.at;
            }
        }
        self.outcome
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// When a batch ends or an idle worker's is due, and of which model.
    fn next_event(&self) -> Option<(Duration, usize)> {
        let events = self.models.iter().enumerate().filter_map(|(at, model)| match &model.worker {
            Worker::Running { until, .. } => Some((*until, at)),
            Worker::Idle => match model.batcher.due(self.instant()) {
                Due::Now => Some((self.now, at)),
                Due::At(due) => Some((due.saturating_duration_since(self.start), at)),
                Due::Idle => None,
            },
            Worker::Waiting(_) => None,
        });
        events.min()
    }

    fn arrive(&mut self, index: usize) {
        let Arrival { model, tenant, tokens, .. } = self.arrivals[index];
        let now = self.instant();
        let knows = self.policy.knows_deadlines();
        let entry = Entry {
            ticket: index,
            rows: 1,
            tokens,
            longest: tokens,
            priority: Priority::default(),
            tenant: Tenant { id: if self.policy.is_fair() { tenant } else { 0 }, weight: 1.0 },
            queued_at: now,
            deadline: knows.then_some(now + self.slo),
        };
        let model = &mut self.models[model];
        let mut gone = Vec::new();
        let mut pushed = model.batcher.push(now, entry);
        if let Err((_, entry)) = pushed {
            // As the scheduler does: room may be held by what will never run.
            if self.next_sweep <= self.now {
                self.next_sweep = self.now + SWEEP;
                gone = model.batcher.sweep(now, |_| false);
            }
            pushed = model.batcher.push(now, entry);
        }
        match pushed {
            Ok(shed) => gone.extend(shed),
            Err(_) => self.outcome.ends[index] = End::Refused,
        }
        self.drop_all(gone);
    }

    fn drop_all(&mut self, entries: Vec<Entry<usize>>) {
        for Entry { ticket, .. } in entries {
            self.outcome.ends[ticket] = End::Dropped;
        }
    }

    /// What a worker does when its batch has ended, or one is due.
    fn wake(&mut self, model: usize) {
        match std::mem::replace(&mut self.models[model].worker, Worker::Idle) {
            Worker::Running { service, batch, work, .. } => {
                self.models[model].batcher.finished(batch.id, work, Some(service));
                for Entry { ticket, .. } in batch.entries {
                    self.outcome.ends[ticket] = End::Answered(self.now - self.arrivals[ticket].at);
                }
                // It keeps the slot as long as nobody else wants it and there is work, and else stands in line again before it
                // gives the slot back.
                let wanted = self.models.iter().any(|model| matches!(model.worker, Worker::Waiting(_)));
                let is_due = self.models[model].batcher.due(self.instant()) == Due::Now;
                if wanted && is_due {
                    self.enter(model);
                }
                if !wanted {
                    self.charge(model);
                }
                if wanted || !self.start_batch(model) {
                    self.release(model);
                }
            }
            Worker::Idle => self.claim(model),
            waiting @ Worker::Waiting(_) => self.models[model].worker = waiting,
        }
    }

    fn claim(&mut self, model: usize) {
        if self.enter(model) {
            self.granted(model);
        }
    }

    /// Stands in line. `true`: the slot is free, and the model's.
    fn enter(&mut self, model: usize) -> bool {
        self.rivals.saw(model, self.now);
        let ticket = match &mut self.slots {
            Slots::Fair(arbiter) => match arbiter.claim(self.models[model].client) {
                Claim::Granted => return true,
                Claim::Wait(ticket) => Some(ticket),
            },
            Slots::Fifo(line) => {
                line.push_back(model);
                if line.len() == 1 {
                    return true;
                }
                None
            }
        };
        self.models[model].worker = Worker::Waiting(ticket);
        false
    }

    fn granted(&mut self, model: usize) {
        self.slot_since = self.now;
        self.models[model].worker = Worker::Idle;
        if !self.start_batch(model) {
            self.release(model);
        }
    }

    /// What it used alone counts while it keeps the slot.
    fn charge(&mut self, model: usize) {
        let used = self.now - std::mem::replace(&mut self.slot_since, self.now);
        self.rivals.saw(model, self.now);
        if let Slots::Fair(arbiter) = &mut self.slots {
            arbiter.charge(self.models[model].client, 1.0, used);
        }
    }

    fn release(&mut self, model: usize) {
        let used = self.now - self.slot_since;
        let next = match &mut self.slots {
            Slots::Fair(arbiter) => {
                let granted = arbiter.release(self.models[model].client, 1.0, used);
                let holds =
                    |model: &Model| matches!(model.worker, Worker::Waiting(ticket) if ticket == granted);
                granted.and_then(|_| self.models.iter().position(holds))
            }
            Slots::Fifo(line) => {
                line.pop_front();
                line.front().copied()
            }
        };
        if let Some(next) = next {
            self.granted(next);
        }
    }

    /// Composes a batch and starts it. `false`: there is none.
    fn start_batch(&mut self, model: usize) -> bool {
        let has_rivals = self.rivals.of(model).is_some_and(|at| self.now - at < RIVALRY);
        let (now, contested) = (self.instant(), has_rivals && self.policy.is_fair());
        let is_expired = |index: &usize| self.arrivals[*index].at + self.slo <= self.now;
        let drops = self.policy.drops_expired();
        let batcher = &mut self.models[model].batcher;
        let (mut gone, mut found) = (Vec::new(), None);
        while found.is_none() && batcher.due(now) == Due::Now {
            let mut batch = batcher.take(now, contested, |index| drops && is_expired(index));
            gone.append(&mut batch.dropped);
            gone.append(&mut batch.shed);
            found = (!batch.entries.is_empty()).then_some(batch);
        }
        if self.policy.knows_deadlines() {
            gone.append(&mut batcher.sweep(now, |_| false));
        }
        self.drop_all(gone);
        let Some(batch) = found else { return false };
        let rows = batch.entries.len();
        let tokens: usize = batch.entries.iter().map(|entry| entry.tokens).sum();
        let longest = batch.entries.iter().map(|entry| entry.longest).max().unwrap_or_default();
        let work = Work { rows, tokens: if self.policy.pads() { rows * longest } else { tokens } };
        self.outcome.batches += 1;
        self.outcome.tokens += tokens as u64;
        self.outcome.padding += (work.tokens - tokens) as u64;
        // A few percent more or less, and now and then someone else has the core for a moment, however the time is cut into batches.
        let takes = self.cost.of_batch(work) * (0.05 * normal(&mut self.random)).exp();
        let stall = if self.random.f64() < STALLS * takes { 20e-3 } else { 0.0 };
        let service = Duration::from_secs_f64(takes + stall);
        self.models[model].worker = Worker::Running { until: self.now + service, service, batch, work };
        true
    }
}
