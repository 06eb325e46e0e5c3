use crate::arbiter::Slot;
use crate::batcher::Dispatch;
use crate::cost::Work;
use crate::entry::{Class, Entry};
use crate::scheduler::{Job, Shared, Turn};
use sconce_core::{
    Backend, Batch, BatchOutput, CloseReason, Error, ExecutionRecord, FailReason, ModelInput, Result,
};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};

/// A worker's life: make the backend, say so, then run batches until the queue is closed and empty.
pub(crate) fn run(shared: &Shared, instance: usize, ready: &SyncSender<Result<()>>) {
    let mut worker =
        Worker { shared, instance, backend: None, running: VecDeque::new(), free_since: Instant::now() };
    let made = worker.make_backend();
    let failed = made.is_err();
    let _ = ready.send(made);
    if failed {
        return;
    }
    loop {
        match shared.next_turn() {
            Turn::End => break,
            Turn::Shadow(_slot) => {
                worker.submit(shared.take_shadow_batch(), None);
                while !worker.running.is_empty() {
                    worker.collect_oldest();
                }
                continue;
            }
            Turn::Primary => {}
        }
        let slot = shared.device.acquire(shared.client, shared.weight);
        loop {
            worker.fill(&slot);
            if worker.running.is_empty() {
                break;
            }
            worker.collect_oldest();
            if !slot.is_wanted() {
                slot.charge();
            } else {
                while !worker.running.is_empty() {
                    worker.collect_oldest();
                }
                if !shared.is_due() {
                    break;
                }
                slot.again();
            }
        }
    }
    worker.discard_backend();
}

struct Worker<'a> {
    shared: &'a Shared,
    instance: usize,
    /// The backend and its depth. `None` after a panic, until the next batch makes it again.
    backend: Option<(Box<dyn Backend>, usize)>,
    running: VecDeque<Running>,
    /// Since when the backend has had nothing older to do.
    free_since: Instant,
}

/// A submitted batch and who waits for it.
struct Running {
    class: Class,
    entries: Vec<Entry<Job>>,
    reason: CloseReason,
    batch_id: u64,
    queue_depth: usize,
    rows: usize,
    tokens: usize,
    started_at: Instant,
    submitted_at: Instant,
    paused: Duration,
}

impl Worker<'_> {
    /// Submits what is due until the backend has all it can hold, or a batch fails. Then the turn is over: a model that
    /// only fails must not keep the slot, and a rebuilt backend must not meet batches of the one before it.
    fn fill(&mut self, slot: &Slot<'_>) {
        let depth = self.backend.as_ref().map_or(1, |(_, depth)| *depth);
        while self.running.len() < depth {
            if !self.submit(self.shared.take_batch(slot.has_rivals()), Some(slot)) {
                return;
            }
        }
    }

    /// Starts a batch, if there is one; without a slot it is shadow work. `false`: there is none, or it failed.
    fn submit(&mut self, dispatch: Option<Dispatch<Job>>, slot: Option<&Slot<'_>>) -> bool {
        let Some(Dispatch { id: batch_id, mut entries, reason, queue_depth, .. }) = dispatch else {
            return false;
        };
        // After a panic it is made anew, which is no part of what a batch takes.
        let made = self.make_backend();
        let started_at = Instant::now();
        let inputs: Vec<ModelInput> = entries.iter_mut().map(|entry| entry.ticket.take_input()).collect();
        let batch = Batch { inputs };
        let (rows, tokens) = (batch.rows(), batch.tokens());
        let submitted_at = Instant::now();
        let checkpoint = || slot.into_iter().for_each(Slot::give_way);
        let submitted = made.and_then(|()| self.guard(|backend| backend.submit(batch, &checkpoint)));
        let class = if slot.is_some() { Class::Primary } else { Class::Shadow };
        let paused = slot.map(Slot::take_paused).unwrap_or_default();
        let running = Running {
            class,
            entries,
            reason,
            batch_id,
            queue_depth,
            rows,
            tokens,
            started_at,
            submitted_at,
            paused,
        };
        match submitted {
            Ok(()) => self.running.push_back(running),
            Err(error) => {
                self.finish(running, Err(error));
                return false;
            }
        }
        true
    }

    fn collect_oldest(&mut self) {
        let output = self.guard(|backend| backend.collect());
        if let Some(running) = self.running.pop_front() {
            self.finish(running, output);
        }
    }

    /// Calls the backend. After a panic the backend is gone, and so is all that it had in flight.
    fn guard<T>(&mut self, call: impl FnOnce(&mut dyn Backend) -> Result<T>) -> Result<T> {
        let Some((backend, _)) = &mut self.backend else {
            return Err(Error::internal("the model failed while this request's batch was in flight"));
        };
        // The backend is discarded when it unwinds, so no broken state of it is seen again.
        catch_unwind(AssertUnwindSafe(|| call(&mut **backend))).unwrap_or_else(|panic| {
            self.report(&*panic);
            self.discard_backend();
            Err(Error::internal("the model panicked on this request's batch"))
        })
    }

    fn make_backend(&mut self) -> Result<()> {
        if self.backend.is_none() {
            let make = || {
                let backend = self.shared.model.instance()?;
                let depth = backend.depth().max(1);
                Ok((backend, depth))
            };
            let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
                self.report(&*panic);
                Err(Error::internal("the model panicked while an instance was made"))
            });
            self.backend = Some(made?);
        }
        Ok(())
    }

    /// Logs and counts a panic of the model.
    fn report(&self, panic: &(dyn Any + Send)) {
        let cause = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic without a message");
        tracing::error!(
            instance = self.instance,
            cause,
            "a model panicked: its batch fails, its instance is rebuilt"
        );
        self.shared.stats(Class::Primary).panics += 1;
    }

    fn discard_backend(&mut self) {
        let backend = self.backend.take();
        // A backend that panicked may panic again on its way out.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(backend)));
    }

    /// Answers every request of a batch, each exactly once.
    fn finish(&mut self, running: Running, output: Result<BatchOutput>) {
        let finished_at = Instant::now();
        let Running {
            class,
            entries,
            reason,
            batch_id,
            queue_depth,
            rows,
            tokens,
            started_at,
            submitted_at,
            paused,
        } = running;
        let requests = entries.len();
        let output = output.and_then(|output| {
            if output.outputs.len() == requests {
                return Ok(output);
            }
            let got = output.outputs.len();
            Err(Error::internal(format!("the model answered {got} of the batch's {requests} requests")))
        });
        let padding = output.as_ref().map_or(0, |output| output.padding);
        let service = finished_at.saturating_duration_since(started_at.max(self.free_since) + paused);
        self.free_since = finished_at;
        let work = Work { rows, tokens: tokens + padding };
        let is_answered = output.as_ref().is_ok_and(|output| output.outputs.iter().any(Result::is_ok));
        self.shared.finished(batch_id, class, work, is_answered.then_some(service));
        let record = |entry: &Entry<Job>| ExecutionRecord {
            batch_id,
            instance: self.instance,
            batch_requests: requests,
            batch_rows: rows,
            batch_tokens: tokens,
            batch_padding: padding,
            close_reason: reason,
            queue_depth,
            queued_at: entry.queued_at,
            started_at,
            finished_at,
            paused,
        };
        let results: Vec<_> = match output {
            Ok(output) => {
                if let Some(error) = output.outputs.iter().find_map(|result| result.as_ref().err()) {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(
                        instance = self.instance,
                        batch_id,
                        error,
                        "a request failed in the model"
                    );
                }
                output.outputs
            }
            Err(error) => {
                tracing::error!(
                    instance = self.instance,
                    batch_id,
                    requests,
                    error = &error as &dyn std::error::Error,
                    "a batch failed"
                );
                (0..requests).map(|_| Err(error.repeat())).collect()
            }
        };

        // Counted before the answers go out: whoever has an answer finds it in the statistics, and all counts of a
        // snapshot agree.
        let sorting_out = finished_at.elapsed();
        let mut stats = self.shared.stats(class);
        let (mut answered, mut answered_rows) = (0u64, 0);
        for (entry, result) in entries.iter().zip(&results) {
            let total = finished_at.saturating_duration_since(entry.ticket.arrived_at);
            match result {
                // Nobody had this answer.
                Ok(_) if entry.expired(finished_at) || entry.ticket.abandoned() => {
                    stats.add_failure(FailReason::Canceled, total)
                }
                Ok(_) => {
                    answered += 1;
                    answered_rows += entry.rows;
                    stats.add_success(&record(entry), entry.ticket.prepare_time, total);
                    // Like the time in the backend, the batch's time is each of its requests' time.
                    stats.compute_output.add(sorting_out);
                }
                Err(error) => stats.add_failure(FailReason::of(error), total),
            }
        }
        if answered > 0 {
            stats.inference_count += answered_rows as u64;
            stats.token_count += tokens as u64;
            stats.last_inference = Some(SystemTime::now());
        }
        stats.execution_count += 1;
        stats.paused_count += u64::from(!paused.is_zero());
        *stats.close_reasons.entry(reason.name()).or_default() += 1;
        let size = stats.batches.entry(rows).or_default();
        size.compute_input.add(submitted_at.saturating_duration_since(started_at));
        size.compute_infer.add(finished_at.saturating_duration_since(submitted_at));
        size.compute_output.add(sorting_out);
        drop(stats);

        let reply = |(entry, result)| {
            let record = Some(record(&entry));
            (entry.ticket, result, record)
        };
        let replies: Vec<_> = entries.into_iter().zip(results).map(reply).collect();
        let hand_out =
            move || replies.into_iter().for_each(|(job, result, record)| job.answer(result, record));
        match &self.shared.runtime {
            // Waking callers one by one from here costs a wake-up across threads each; from their own runtime, one in
            // all. The task ends at once; a runtime that has shut down has no callers left.
            Some(runtime) if requests > 1 => drop(runtime.spawn(async move { hand_out() })),
            _ => hand_out(),
        }
    }
}
