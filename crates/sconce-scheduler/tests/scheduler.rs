//! The scheduler's invariants, against a fake model that does what each test tells it.
//!
//! Nothing here sleeps so that another thread may catch up: a gate in the backend holds a batch until the test opens
//! it, and who stands in line for the device is read from [`Device::waiting`].

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of a test fail the test")]

use proptest::prelude::*;
use sconce_core::{
    Backend, Batch, BatchOutput, ByteBudget, Checkpoint, CloseReason, DataType, Error, ErrorCode, FailReason,
    InferOutput, Inputs, LoadedModel, ModelInput, ModelStats, Result, Signature, Tensor,
};
use sconce_scheduler::{BatchPolicy, Class, Device, Priority, Reply, Scheduler, Submission, Tenant, Work};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What the fake does instead of an echo.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    FailInSubmit,
    FailInCollect,
    /// Fails one request and no other of its batch.
    FailRequest,
    /// Answers as many requests as this, whatever came.
    Answer(usize),
    PanicInSubmit,
    PanicInCollect,
    /// Panics in `collect`, and again when it is dropped.
    PanicTwice,
}

/// What the fake tells the test. A request's tag is the first number of its tensor.
#[derive(Debug)]
enum Event {
    /// A batch of these tags came in.
    Submit(Vec<i64>),
    /// It stands at the gate: in `submit` at depth 1, in `collect` at depth 2.
    Run(Vec<i64>),
}

/// Echoes each request's tensor, unless `acts` says otherwise of its tag or of another one in its batch.
struct Fake {
    acts: Vec<(i64, Act)>,
    depth: usize,
    /// Which calls of `instance` fail, counted from 0; the odd ones panic.
    broken: Range<usize>,
    made: AtomicUsize,
    signature: Signature,
    events: mpsc::Sender<Event>,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Fake {
    fn act(&self, tag: i64) -> Option<Act> {
        self.acts.iter().find(|(of, _)| *of == tag).map(|(_, act)| *act)
    }

    fn run(&self, batch: &Batch) {
        // Errors: the test has seen enough, and has left the gate open.
        let _ = self.events.send(Event::Run(tags(batch)));
        let _ = self.gate.lock().unwrap().recv();
    }
}

/// What the scheduler gets; the instances share the fake with the test.
struct FakeModel(Arc<Fake>);

impl LoadedModel for FakeModel {
    fn signature(&self) -> &Signature {
        &self.0.signature
    }

    fn memory_bytes(&self) -> usize {
        0
    }

    fn prepare(&self, _: Inputs) -> Result<ModelInput> {
        Err(Error::internal("requests come prepared here"))
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        let call = self.0.made.fetch_add(1, Ordering::Relaxed);
        if self.0.broken.contains(&call) {
            if call % 2 == 1 {
                told_to_panic();
            }
            return Err(Error::internal("no instance"));
        }
        Ok(Box::new(FakeBackend {
            fake: Arc::clone(&self.0),
            submitted: VecDeque::new(),
            panic_in_drop: false,
        }))
    }
}

struct FakeBackend {
    fake: Arc<Fake>,
    submitted: VecDeque<Batch>,
    panic_in_drop: bool,
}

impl FakeBackend {
    fn act(&self, batch: &Batch) -> Option<Act> {
        batch.inputs.iter().find_map(|input| self.fake.act(tag(input)))
    }
}

impl Backend for FakeBackend {
    fn depth(&self) -> usize {
        if self.fake.depth == 0 {
            told_to_panic();
        }
        self.fake.depth
    }

    fn submit(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<()> {
        let _ = self.fake.events.send(Event::Submit(tags(&batch)));
        if self.fake.depth == 1 {
            self.fake.run(&batch);
            checkpoint();
        }
        match self.act(&batch) {
            Some(Act::FailInSubmit) => return Err(Error::internal("submit")),
            Some(Act::PanicInSubmit) => told_to_panic(),
            _ => self.submitted.push_back(batch),
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<BatchOutput> {
        let batch = self.submitted.pop_front().unwrap();
        if self.fake.depth > 1 {
            self.fake.run(&batch);
        }
        let act = self.act(&batch);
        let answer = |input: ModelInput| match self.fake.act(tag(&input)) {
            Some(Act::FailRequest) => Err(Error::internal("this one")),
            _ => Ok(InferOutput { tensors: input.tensors }),
        };
        let mut outputs: Vec<_> = batch.inputs.into_iter().map(answer).collect();
        match act {
            Some(Act::FailInCollect) => return Err(Error::internal("collect")),
            Some(Act::Answer(count)) => outputs.resize_with(count, || Err(Error::invalid("made up"))),
            Some(Act::PanicInCollect) => told_to_panic(),
            Some(Act::PanicTwice) => {
                self.panic_in_drop = true;
                told_to_panic();
            }
            _ => {}
        }
        Ok(BatchOutput { outputs, padding: 0 })
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        if self.panic_in_drop {
            told_to_panic();
        }
    }
}

/// Unlike `panic!`, this prints nothing.
fn told_to_panic() {
    resume_unwind(Box::new("told to"));
}

fn tag(input: &ModelInput) -> i64 {
    input.tensors[0].i64_values().next().unwrap()
}

fn tags(batch: &Batch) -> Vec<i64> {
    batch.inputs.iter().map(tag).collect()
}

/// How a test wants its scheduler.
struct Setup {
    name: &'static str,
    acts: Vec<(i64, Act)>,
    broken: Range<usize>,
    depth: usize,
    instances: usize,
    policy: BatchPolicy,
    device: Arc<Device>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "fake",
            acts: Vec::new(),
            broken: 0..0,
            depth: 1,
            instances: 1,
            policy: BatchPolicy { max_rows: 8, queue_depth: 100, ..BatchPolicy::default() },
            device: Arc::new(Device::new(1)),
        }
    }
}

impl Setup {
    fn acts(mut self, acts: impl IntoIterator<Item = (i64, Act)>) -> Self {
        self.acts.extend(acts);
        self
    }

    fn max_rows(mut self, rows: usize) -> Self {
        self.policy.max_rows = rows;
        self
    }

    fn start(self) -> Rig {
        self.try_start().map_err(|(error, _)| error).unwrap()
    }

    fn try_start(self) -> Result<Rig, (Error, Arc<Fake>)> {
        let (events, happened) = mpsc::channel();
        let (gate, opened) = mpsc::channel();
        let fake = Arc::new(Fake {
            acts: self.acts,
            depth: self.depth,
            broken: self.broken,
            made: AtomicUsize::new(0),
            signature: Signature { inputs: vec![], outputs: vec![], max_batch_size: self.policy.max_rows },
            events,
            gate: Mutex::new(opened),
        });
        let model = Arc::new(FakeModel(Arc::clone(&fake)));
        match Scheduler::start(self.name, model, self.policy, Arc::clone(&self.device), self.instances) {
            Ok(scheduler) => Ok(Rig { scheduler, fake, device: self.device, events: happened, gate }),
            Err(error) => Err((error, fake)),
        }
    }
}

/// A scheduler, and the test's end of its model.
struct Rig {
    scheduler: Scheduler,
    fake: Arc<Fake>,
    device: Arc<Device>,
    events: mpsc::Receiver<Event>,
    gate: mpsc::Sender<()>,
}

impl Rig {
    fn submit(&self, tag: i64) -> Answer {
        self.scheduler.submit(request(tag, 1)).unwrap()
    }

    fn submit_all(&self, tags: impl IntoIterator<Item = i64>) -> Vec<Answer> {
        tags.into_iter().map(|tag| self.submit(tag)).collect()
    }

    fn refusal(&self, submission: Submission) -> ErrorCode {
        self.scheduler.submit(submission).unwrap_err().code()
    }

    /// Submits request 0 and holds it at the gate: what comes after it waits in the queue.
    fn hold(&self) -> Answer {
        let answer = self.submit(0);
        assert_eq!(self.running(), [0]);
        answer
    }

    /// Submits a request that expires in the queue, which must be held.
    fn submit_and_let_expire(&self, tag: i64) -> Answer {
        // A machine may be so busy that the deadline passes before the request is in: then it is asked for more.
        let mut patience = Duration::from_millis(5);
        loop {
            patience *= 2;
            let deadline = Instant::now() + patience;
            if let Ok(answer) =
                self.scheduler.submit(Submission { deadline: Some(deadline), ..request(tag, 1) })
            {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                return answer;
            }
        }
    }

    /// Waits until a batch stands at the gate, and tells which.
    fn running(&self) -> Vec<i64> {
        loop {
            // The time only turns a hang into a failure.
            if let Event::Run(tags) = self.events.recv_timeout(Duration::from_secs(20)).unwrap() {
                return tags;
            }
        }
    }

    fn open_gate_once(&self) {
        self.gate.send(()).unwrap();
    }

    /// Opens the gate for good.
    fn open_gate(&mut self) {
        self.gate = mpsc::channel().0;
    }

    /// Waits until a worker stands in line for the device.
    fn wait_for_claim(&self) {
        while self.device.waiting() == 0 {
            std::thread::yield_now();
        }
    }

    /// Opens the gate for good and closes. Returns what ran that [`Self::running`] has not told, and the counters.
    fn finish(mut self) -> (Vec<Vec<i64>>, ModelStats) {
        self.open_gate();
        self.scheduler.close();
        let ran = self.events.try_iter().filter_map(|event| match event {
            Event::Run(tags) => Some(tags),
            Event::Submit(_) => None,
        });
        (ran.collect(), self.scheduler.stats())
    }
}

type Answer = oneshot::Receiver<Reply>;
type Outcome = Result<Vec<i64>, ErrorCode>;

/// A request of `rows` rows, each of them `tag`.
fn request(tag: i64, rows: usize) -> Submission {
    let data: Vec<u8> = (0..rows).flat_map(|_| tag.to_le_bytes()).collect();
    let tensor = Tensor::new(DataType::Int64, vec![rows, 1], data.into()).unwrap();
    Submission {
        input: ModelInput { tensors: vec![tensor], rows, row_tokens: vec![] },
        priority: Priority::default(),
        tenant: Tenant::default(),
        class: Class::Primary,
        deadline: None,
        arrived_at: Instant::now(),
        prepare_time: Duration::ZERO,
        reservation: ByteBudget::new(0).empty(),
    }
}

/// What the one reply comes to: the rows, or the error's code.
fn outcome(answer: Answer) -> Outcome {
    let reply = answer.blocking_recv().expect("an admitted request is answered");
    reply.result.map(|output| output.tensors[0].i64_values().collect()).map_err(|error| error.code())
}

fn outcomes(answers: Vec<Answer>) -> Vec<Outcome> {
    answers.into_iter().map(outcome).collect()
}

fn echoes(tags: impl IntoIterator<Item = i64>) -> Vec<Outcome> {
    tags.into_iter().map(|tag| Ok(vec![tag])).collect()
}

const FAILED: Outcome = Err(ErrorCode::Internal);

fn failures(stats: &ModelStats, reason: FailReason) -> u64 {
    stats.fail.get(&reason).map_or(0, |total| total.count)
}

#[test]
fn every_caller_gets_its_own_rows_and_the_record_of_its_batch() {
    let rig = Setup::default().start();
    let first = rig.hold();
    let answers =
        [(1, 2), (2, 5), (3, 1)].map(|(tag, rows)| rig.scheduler.submit(request(tag, rows)).unwrap());
    rig.open_gate_once();
    assert_eq!(rig.running(), [1, 2, 3], "in the order they came");
    rig.open_gate_once();
    assert_eq!(outcome(first), Ok(vec![0]));
    for (answer, rows) in answers.into_iter().zip([vec![1; 2], vec![2; 5], vec![3]]) {
        let reply = answer.blocking_recv().unwrap();
        let record = reply.record.unwrap();
        assert_eq!((record.batch_id, record.batch_requests, record.batch_rows), (2, 3, 8));
        assert_eq!(record.close_reason, CloseReason::Full);
        assert!(record.queued_at <= record.started_at && record.started_at <= record.finished_at);
        assert_eq!(reply.result.unwrap().tensors[0].i64_values().collect::<Vec<_>>(), rows);
    }
}

#[test]
fn a_batch_that_fails_answers_all_its_requests_and_touches_no_other() {
    for act in [Act::FailInSubmit, Act::FailInCollect, Act::Answer(0), Act::Answer(1), Act::Answer(3)] {
        let rig = Setup::default().max_rows(2).acts([(1, act)]).start();
        let before = rig.hold();
        let failed = rig.submit_all([1, 2]);
        let after = rig.submit_all([3, 4]);
        let (ran, stats) = rig.finish();
        assert_eq!(ran, [[1, 2], [3, 4]]);
        assert_eq!(outcome(before), Ok(vec![0]));
        assert_eq!(outcomes(failed), [FAILED, FAILED], "{act:?}");
        assert_eq!(outcomes(after), echoes([3, 4]));
        assert_eq!((stats.success.count, failures(&stats, FailReason::Backend), stats.panics), (3, 2, 0));
    }
}

#[test]
fn an_error_of_one_request_fails_that_request_alone() {
    let rig = Setup::default().acts([(2, Act::FailRequest)]).start();
    let first = rig.hold();
    let answers = rig.submit_all([1, 2, 3]);
    let (ran, stats) = rig.finish();
    assert_eq!(ran, [[1, 2, 3]]);
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), [Ok(vec![1]), FAILED, Ok(vec![3])]);
    assert_eq!(
        (stats.success.count, stats.inference_count, failures(&stats, FailReason::Backend)),
        (3, 3, 1)
    );
    assert_eq!(stats.compute_output.count, 3, "only what was answered was handed out");
}

#[test]
fn a_panic_fails_its_batch_alone_and_the_instance_is_rebuilt() {
    for act in [Act::PanicInSubmit, Act::PanicInCollect, Act::PanicTwice] {
        let rig = Setup::default().max_rows(2).acts([(1, act)]).start();
        let mut neighbour = Setup { device: Arc::clone(&rig.device), ..Setup::default() }.start();
        neighbour.open_gate();
        let before = rig.hold();
        let failed = rig.submit_all([1, 2]);
        let after = rig.submit_all([3, 4]);
        let beside = neighbour.submit_all([5, 6]);
        let fake = Arc::clone(&rig.fake);
        let (_, stats) = rig.finish();
        assert_eq!(outcome(before), Ok(vec![0]));
        assert_eq!(outcomes(failed), [FAILED, FAILED], "{act:?}");
        assert_eq!(outcomes(after), echoes([3, 4]));
        assert_eq!((stats.panics, fake.made.load(Ordering::Relaxed)), (1, 2), "{act:?}");

        let neighbour_made = Arc::clone(&neighbour.fake);
        let (_, stats) = neighbour.finish();
        assert_eq!(outcomes(beside), echoes([5, 6]), "another model on the device runs on");
        assert_eq!((stats.panics, neighbour_made.made.load(Ordering::Relaxed)), (0, 1));
    }
}

#[test]
fn an_instance_that_cannot_be_rebuilt_fails_each_batch_until_it_can() {
    let rig = Setup { broken: 1..3, ..Setup::default() }.max_rows(1).acts([(1, Act::PanicInSubmit)]).start();
    let before = rig.hold();
    let failed = rig.submit_all([1, 2, 3]);
    let after = rig.submit_all([4, 5]);
    let fake = Arc::clone(&rig.fake);
    let (ran, stats) = rig.finish();
    assert_eq!(ran, [[1], [4], [5]]);
    assert_eq!(outcome(before), Ok(vec![0]));
    assert_eq!(outcomes(failed), [FAILED, FAILED, FAILED]);
    assert_eq!(outcomes(after), echoes([4, 5]));
    assert_eq!((stats.panics, fake.made.load(Ordering::Relaxed)), (2, 4));
}

#[test]
fn a_scheduler_that_cannot_start_leaves_nothing_running() {
    // The second instance panics; the third fails; asking for the depth panics.
    for (broken, depth) in [(1..2, 1), (2..3, 1), (0..0, 0)] {
        let setup = Setup { broken, depth, instances: 3, ..Setup::default() };
        let (error, fake) = setup.try_start().err().unwrap();
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(Arc::strong_count(&fake), 1, "no worker holds the model any more");
    }
}

#[test]
fn an_abandoned_request_never_runs() {
    let rig = Setup::default().start();
    let first = rig.hold();
    let mut answers = rig.submit_all([1, 2, 3]);
    drop(answers.remove(1));
    let (ran, stats) = rig.finish();
    assert_eq!(ran, [[1, 3]]);
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes([1, 3]));
    assert_eq!((stats.success.count, failures(&stats, FailReason::Canceled)), (3, 1));
}

#[test]
fn a_caller_that_leaves_while_its_batch_runs_disturbs_no_other() {
    let rig = Setup::default().start();
    let first = rig.hold();
    let mut answers = rig.submit_all([1, 2]);
    rig.open_gate_once();
    assert_eq!(rig.running(), [1, 2]);
    drop(answers.remove(0));
    rig.finish();
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes([2]));
}

#[test]
fn an_expired_request_never_runs_and_is_told_so() {
    let rig = Setup::default().start();
    let first = rig.hold();
    let other = rig.submit(1);
    let expired = rig.submit_and_let_expire(2);
    let past = Submission { deadline: Some(Instant::now()), ..request(3, 1) };
    assert_eq!(rig.refusal(past), ErrorCode::DeadlineExceeded, "at once");
    let (ran, stats) = rig.finish();
    assert_eq!(ran, [[1]]);
    assert_eq!((outcome(first), outcome(other)), (Ok(vec![0]), Ok(vec![1])));
    let reply = expired.blocking_recv().unwrap();
    assert_eq!((reply.result.unwrap_err().code(), reply.record), (ErrorCode::DeadlineExceeded, None));
    assert_eq!((stats.success.count, failures(&stats, FailReason::Canceled)), (2, 1));
}

#[test]
fn a_queue_of_nothing_but_dropped_requests_runs_nothing() {
    let rig = Setup::default().start();
    let first = rig.hold();
    drop(rig.submit_all([1, 2]));
    let expired = rig.submit_and_let_expire(3);
    let (ran, stats) = rig.finish();
    assert!(ran.is_empty());
    assert_eq!((outcome(first), outcome(expired)), (Ok(vec![0]), Err(ErrorCode::DeadlineExceeded)));
    assert_eq!((stats.execution_count, failures(&stats, FailReason::Canceled)), (1, 3));
}

#[test]
fn a_full_queue_refuses_at_once_and_loses_nothing() {
    let mut setup = Setup::default();
    setup.policy.queue_depth = 2;
    let rig = setup.start();
    let first = rig.hold();
    let answers = rig.submit_all([1, 2]);
    assert_eq!(rig.refusal(request(3, 1)), ErrorCode::ResourceExhausted);
    assert_eq!(rig.scheduler.queue_depth(), 2);
    assert_eq!(rig.finish().0, [[1, 2]]);
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes([1, 2]));
}

#[test]
fn requests_that_will_never_run_make_room_in_a_full_queue() {
    let mut setup = Setup::default();
    setup.policy.queue_depth = 3;
    let rig = setup.start();
    let first = rig.hold();
    let expired = rig.submit_and_let_expire(1);
    let mut answers = rig.submit_all([2, 3]);
    drop(answers.remove(1));
    answers.extend(rig.submit_all([4, 5]));
    assert_eq!(outcome(expired), Err(ErrorCode::DeadlineExceeded), "answered when it made room");
    assert_eq!(rig.refusal(request(6, 1)), ErrorCode::ResourceExhausted);
    let (ran, stats) = rig.finish();
    assert_eq!(ran, [[2, 4, 5]]);
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes([2, 4, 5]));
    assert_eq!((stats.success.count, failures(&stats, FailReason::Canceled)), (4, 2));
}

#[test]
fn more_rows_than_a_batch_may_have_are_refused_at_once() {
    let rig = Setup::default().start();
    assert_eq!(rig.refusal(request(1, 9)), ErrorCode::InvalidArgument);
    assert_eq!(rig.scheduler.queue_depth(), 0);
}

#[test]
fn close_answers_all_that_waits_and_refuses_what_comes_after() {
    let mut setup = Setup::default().max_rows(3);
    setup.policy.max_delay = Duration::from_secs(3600);
    let mut rig = setup.start();
    let first = rig.scheduler.submit(request(0, 3)).unwrap();
    assert_eq!(rig.running(), [0]);
    // Two full batches, and one that would wait an hour for company.
    let answers = rig.submit_all(1..=7);
    rig.open_gate();
    let Rig { scheduler, fake, .. } = rig;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                scheduler.close();
                let stats = scheduler.stats();
                assert_eq!(stats.success.count, 8, "whoever closes, all is answered when close returns");
            });
        }
    });
    assert_eq!(scheduler.submit(request(8, 1)).unwrap_err().code(), ErrorCode::Unavailable);
    assert_eq!(outcome(first), Ok(vec![0; 3]));
    assert_eq!(outcomes(answers), echoes(1..=7));
    assert_eq!(Arc::strong_count(&fake), 2, "the instance is gone, the model is left");
}

#[test]
fn dropping_a_scheduler_answers_all_that_waits() {
    let rig = Setup::default().max_rows(2).start();
    let first = rig.hold();
    let answers = rig.submit_all(1..=5);
    drop(rig.scheduler);
    drop(rig.gate);
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes(1..=5));
}

#[test]
fn a_full_batch_waits_for_no_delay() {
    let mut setup = Setup::default().max_rows(2);
    setup.policy.max_delay = Duration::from_secs(3600);
    let rig = setup.start();
    let answers = rig.submit_all([1, 2, 3, 4]);
    assert_eq!((rig.running(), rig.open_gate_once(), rig.running()), (vec![1, 2], (), vec![3, 4]));
    rig.open_gate_once();
    assert_eq!(outcomes(answers), echoes([1, 2, 3, 4]));
}

#[test]
fn a_batch_without_company_runs_when_its_delay_is_over() {
    let mut setup = Setup::default();
    setup.policy.max_delay = Duration::from_millis(2);
    let rig = setup.start();
    let answer = rig.submit(1);
    rig.open_gate_once();
    let record = answer.blocking_recv().unwrap().record.unwrap();
    assert_eq!(record.close_reason, CloseReason::Delay);
    assert!(record.queue_time() >= Duration::from_millis(2));
}

#[test]
fn depth_2_keeps_two_batches_in_flight_and_answers_in_order() {
    let rig = Setup { depth: 2, ..Setup::default() }.max_rows(1).start();
    let first = rig.hold();
    let mut answers: VecDeque<_> = rig.submit_all(1..=4).into();
    let mut seen = Vec::new();
    let mut next_event = || match rig.events.recv().unwrap() {
        Event::Submit(tags) => seen.push(('s', tags[0])),
        Event::Run(tags) => {
            // The batch before it has been answered, itself and those behind it have not.
            if let Some(running) = usize::try_from(tags[0]).ok().filter(|&tag| tag > 1) {
                assert_eq!(outcome(answers.pop_front().unwrap()), Ok(vec![tags[0] - 1]));
                assert_eq!(answers.len(), 5 - running);
            }
            assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
            seen.push(('r', tags[0]));
            rig.open_gate_once();
        }
    };
    rig.open_gate_once();
    (0..8).for_each(|_| next_event());
    let (submit, run) = (|tag| ('s', tag), |tag| ('r', tag));
    assert_eq!(seen, [submit(1), submit(2), run(1), submit(3), run(2), submit(4), run(3), run(4)]);
    assert_eq!((outcome(first), outcomes(answers.into())), (Ok(vec![0]), echoes([4])));
}

#[test]
fn a_panic_at_depth_2_fails_what_was_in_flight_and_mixes_no_answers_up() {
    for (bad, act) in [(2, Act::PanicInSubmit), (1, Act::PanicInCollect), (1, Act::PanicTwice)] {
        let rig = Setup { depth: 2, ..Setup::default() }.max_rows(1).acts([(bad, act)]).start();
        let before = rig.hold();
        let failed = rig.submit_all([1, 2]);
        let after = rig.submit_all([3, 4, 5]);
        let (_, stats) = rig.finish();
        assert_eq!(outcome(before), Ok(vec![0]));
        assert_eq!(outcomes(failed), [FAILED, FAILED], "{act:?}");
        assert_eq!(outcomes(after), echoes([3, 4, 5]), "{act:?}");
        assert_eq!((stats.panics, stats.success.count), (1, 4));
    }
}

#[test]
fn an_error_at_depth_2_fails_its_batch_alone() {
    for act in [Act::FailInSubmit, Act::FailInCollect] {
        let rig = Setup { depth: 2, ..Setup::default() }.max_rows(1).acts([(2, act)]).start();
        let mut answers = vec![rig.hold()];
        answers.extend(rig.submit_all(1..=4));
        rig.finish();
        let mut expected = echoes(0..=4);
        expected[2] = FAILED;
        assert_eq!(outcomes(answers), expected, "{act:?}");
    }
}

#[test]
fn a_worker_that_waits_for_company_is_woken_for_an_earlier_deadline() {
    let mut setup = Setup::default();
    setup.policy.max_delay = Duration::from_secs(3600);
    let mut rig = setup.start();
    rig.open_gate();
    let work = Work { rows: 1, tokens: 0 };
    (0..8).for_each(|_| rig.scheduler.learn(work, Duration::from_millis(1)));
    let patient = rig.submit(1);
    let deadline = Some(Instant::now() + Duration::from_secs(3));
    let urgent = rig.scheduler.submit(Submission { deadline, ..request(2, 1) }).unwrap();
    assert_eq!(outcomes(vec![urgent, patient]), [Ok(vec![2]), Ok(vec![1])]);
}

#[test]
fn requests_that_arrive_while_the_device_is_busy_join_the_next_batch() {
    let rig = Setup::default().start();
    let neighbour = Setup { device: Arc::clone(&rig.device), ..Setup::default() }.start();
    let first = rig.hold();
    let mut answers = neighbour.submit_all([1]);
    rig.wait_for_claim();
    answers.extend(neighbour.submit_all([2, 3]));
    assert!(neighbour.events.try_recv().is_err(), "there is no slot to run in");
    rig.open_gate_once();
    assert_eq!(neighbour.running(), [1, 2, 3]);
    neighbour.open_gate_once();
    assert_eq!(outcome(first), Ok(vec![0]));
    assert_eq!(outcomes(answers), echoes([1, 2, 3]));
}

#[test]
fn two_models_on_one_slot_take_turns() {
    // A model that always fails gets its turn like any other, and no more than that.
    for act in [None, Some(Act::FailInSubmit), Some(Act::PanicInSubmit), Some(Act::PanicInCollect)] {
        let acts = (1..4).filter_map(|tag| act.map(|act| (tag, act)));
        let mut rig = Setup::default().max_rows(1).acts(acts).start();
        let mut neighbour = Setup { device: Arc::clone(&rig.device), ..Setup::default() }.max_rows(1).start();
        let mut answers = vec![rig.hold()];
        answers.extend(rig.submit_all(1..4));
        let beside = neighbour.submit_all(0..4);
        rig.wait_for_claim();
        rig.open_gate_once();
        assert_eq!(neighbour.running(), [0], "who had nothing yet is next, whatever else the first one has");
        // The first one stands in line as well; who goes when from here on is a matter of time.
        rig.wait_for_claim();
        rig.open_gate();
        neighbour.open_gate();
        assert_eq!(outcomes(beside), echoes(0..4));
        let expected = if act.is_none() { Ok(vec![1]) } else { FAILED };
        assert_eq!((outcomes(answers)[1].clone(), rig.device.waiting()), (expected, 0));
    }
}

/// Shadow work of one row.
fn shadow(tag: i64) -> Submission {
    Submission { class: Class::Shadow, ..request(tag, 1) }
}

#[test]
fn shadow_work_runs_when_nobody_wants_the_device_and_is_counted_apart() {
    let mut rig = Setup::default().start();
    let held = rig.hold();
    let shadows: Vec<Answer> = (10..13).map(|tag| rig.scheduler.submit(shadow(tag)).unwrap()).collect();
    let primaries = rig.submit_all(1..4);
    assert_eq!((rig.scheduler.queue_depth(), rig.scheduler.shadow_depth()), (3, 3));
    rig.open_gate_once();
    assert_eq!(rig.running(), [1, 2, 3], "who came later goes first, and without company");
    rig.open_gate_once();
    let first = rig.running();
    assert_eq!(first[0], 10);
    rig.open_gate();
    assert_eq!(outcome(held), Ok(vec![0]));
    assert_eq!(outcomes(primaries), echoes(1..4));
    assert_eq!(outcomes(shadows), echoes(10..13));
    let apart = rig.scheduler.shadow_stats();
    let (_, stats) = rig.finish();
    assert_eq!((stats.success.count, stats.execution_count), (4, 2));
    assert_eq!(apart.success.count, 3);
}

#[test]
fn a_model_that_had_less_goes_first_within_a_batch_and_one_that_had_as_much_does_not() {
    for has_had_as_much in [false, true] {
        let rig = Setup::default().start();
        let other = Setup { name: "other", device: Arc::clone(&rig.device), ..Setup::default() };
        let mut other = other.start();
        let use_for = |rig: &Rig, time| {
            let answer = rig.hold();
            std::thread::sleep(Duration::from_millis(time));
            rig.open_gate_once();
            assert_eq!(outcome(answer), Ok(vec![0]));
        };
        if has_had_as_much {
            use_for(&other, 100);
        }
        use_for(&rig, 30);
        let running = rig.submit(1);
        assert_eq!(rig.running(), [1]);
        let waiting = other.submit(2);
        other.wait_for_claim();
        rig.open_gate_once();
        assert_eq!(other.running(), [2]);
        if has_had_as_much {
            assert_eq!(outcome(running), Ok(vec![1]), "it ended before the other one began");
            other.open_gate();
            assert_eq!(outcome(waiting), Ok(vec![2]));
        } else {
            assert_eq!(rig.scheduler.stats().success.count, 1, "it stands still");
            other.open_gate();
            assert_eq!(outcome(waiting), Ok(vec![2]));
            assert_eq!(outcome(running), Ok(vec![1]));
        }
        assert_eq!(rig.finish().1.paused_count, u64::from(!has_had_as_much));
        assert_eq!(other.finish().1.paused_count, 0);
    }
}

#[test]
fn shadow_work_waits_for_a_device_that_another_model_uses() {
    let mut rig = Setup::default().start();
    let mut neighbour = Setup { device: Arc::clone(&rig.device), ..Setup::default() }.max_rows(1).start();
    let beside = neighbour.submit_all(0..3);
    assert_eq!(neighbour.running(), [0]);
    let answer = rig.scheduler.submit(shadow(10)).unwrap();
    for tag in 1..3 {
        neighbour.open_gate_once();
        assert_eq!(
            neighbour.running(),
            [tag],
            "whoever has requests that somebody waits for keeps the device"
        );
        assert_eq!(rig.scheduler.shadow_depth(), 1);
    }
    neighbour.open_gate();
    assert_eq!(rig.running(), [10], "it is told when the device is idle");
    // While shadow work runs, the neighbour stands in line like behind anybody's batch.
    let late = neighbour.submit(3);
    rig.wait_for_claim();
    rig.open_gate();
    assert_eq!((outcome(answer), outcome(late)), (Ok(vec![10]), Ok(vec![3])));
    assert_eq!(outcomes(beside), echoes(0..3));
}

#[test]
fn a_worker_that_waits_with_shadow_work_takes_what_somebody_waits_for_first() {
    let mut rig = Setup::default().start();
    let mut neighbour = Setup { device: Arc::clone(&rig.device), ..Setup::default() }.start();
    let held = neighbour.hold();
    let shadow = rig.scheduler.submit(shadow(10)).unwrap();
    let primary = rig.submit(1);
    rig.wait_for_claim();
    neighbour.open_gate();
    assert_eq!(rig.running(), [1]);
    rig.open_gate();
    assert_eq!((outcome(held), outcome(primary), outcome(shadow)), (Ok(vec![0]), Ok(vec![1]), Ok(vec![10])));
}

#[test]
fn a_batch_of_shadow_work_ends_before_it_takes_longer_than_it_may() {
    let mut rig = Setup::default().start();
    for rows in [1, 2, 4, 8] {
        let work = Work { rows, tokens: 0 };
        rig.scheduler.learn(work, Duration::from_millis(10 * rows as u64));
    }
    rig.scheduler.limit_shadow(Duration::from_millis(25));
    let held = rig.hold();
    let shadows: Vec<Answer> = (10..15).map(|tag| rig.scheduler.submit(shadow(tag)).unwrap()).collect();
    rig.open_gate_once();
    assert_eq!(rig.running(), [10, 11]);
    rig.open_gate();
    assert_eq!((outcome(held), outcomes(shadows)), (Ok(vec![0]), echoes(10..15)));
}

#[test]
fn shadow_work_is_shed_first_and_nobody_else_for_it() {
    let mut rig =
        Setup { policy: BatchPolicy { queue_depth: 2, ..BatchPolicy::default() }, ..Setup::default() }
            .start();
    let held = rig.hold();
    let shadows: Vec<Answer> = (10..12).map(|tag| rig.scheduler.submit(shadow(tag)).unwrap()).collect();
    assert_eq!(rig.refusal(shadow(12)), ErrorCode::ResourceExhausted);
    let primaries = rig.submit_all(1..3);
    assert_eq!(rig.refusal(request(3, 1)), ErrorCode::ResourceExhausted);
    assert_eq!(rig.scheduler.stats().refusals.get("queue_full"), Some(&1));
    assert_eq!(rig.scheduler.shadow_stats().refusals.get("queue_full"), Some(&1));
    rig.open_gate();
    assert_eq!(
        (outcome(held), outcomes(primaries), outcomes(shadows)),
        (Ok(vec![0]), echoes(1..3), echoes(10..12))
    );
}

#[test]
fn shadow_work_that_waits_at_the_end_is_told_so_and_a_panic_of_it_harms_nobody_else() {
    let rig = Setup::default().acts([(10, Act::PanicInSubmit)]).start();
    let panicked = rig.scheduler.submit(shadow(10)).unwrap();
    assert_eq!(rig.running(), [10]);
    rig.open_gate_once();
    assert_eq!(outcome(panicked), FAILED);
    let held = rig.hold();
    let waiting = rig.scheduler.submit(shadow(11)).unwrap();
    let primary = rig.submit(1);
    std::thread::scope(|scope| {
        scope.spawn(|| rig.scheduler.close());
        assert_eq!(outcome(waiting), Err(ErrorCode::Unavailable));
        rig.gate.send(()).unwrap();
        rig.gate.send(()).unwrap();
        assert_eq!((outcome(held), outcome(primary)), (Ok(vec![0]), Ok(vec![1])));
    });
    assert_eq!(rig.refusal(shadow(12)), ErrorCode::Unavailable);
}

#[derive(Debug, Clone)]
struct Planned {
    rows: usize,
    level: u64,
    act: Option<Act>,
    abandoned: bool,
}

fn planned(acts: &'static [Act]) -> impl Strategy<Value = Planned> {
    let act = prop_oneof![9 => Just(None), 1 => prop::sample::select(acts).prop_map(Some)];
    (1usize..=6, 0u64..=8, act, prop::bool::weighted(0.1)).prop_map(|(rows, level, act, abandoned)| Planned {
        rows,
        level,
        act,
        abandoned,
    })
}

/// Several threads submit `threads` to one scheduler: whoever stays gets its own rows or the failure it asked for.
fn check(
    threads: &[Vec<Planned>],
    instances: usize,
    slots: usize,
    depth: usize,
    delay: Duration,
) -> ModelStats {
    let device = Arc::new(Device::new(slots));
    let mut setup = Setup { instances, depth, device, ..Setup::default() };
    setup.policy.max_delay = delay;
    let tag = |thread: usize, index: usize| i64::try_from(thread * 1000 + index).unwrap();
    for (thread, plans) in threads.iter().enumerate() {
        let acts = plans.iter().enumerate().filter_map(|(index, plan)| Some((tag(thread, index), plan.act?)));
        setup.acts.extend(acts);
    }
    let Rig { scheduler, events, gate, .. } = setup.start();
    drop(gate);
    let budget = ByteBudget::new(usize::MAX);
    std::thread::scope(|scope| {
        for (thread, plans) in threads.iter().enumerate() {
            let (scheduler, budget) = (&scheduler, &budget);
            scope.spawn(move || {
                let mut answers = Vec::new();
                for (index, plan) in plans.iter().enumerate() {
                    let answer = scheduler.submit(Submission {
                        priority: Priority::new(plan.level).unwrap(),
                        reservation: budget.reserve(1).unwrap(),
                        ..request(tag(thread, index), plan.rows)
                    });
                    if !plan.abandoned {
                        answers.push((tag(thread, index), plan, answer.unwrap()));
                    }
                }
                for (tag, plan, answer) in answers {
                    match (outcome(answer), plan.act) {
                        (Ok(rows), None) => assert_eq!(rows, vec![tag; plan.rows]),
                        // The batch of another one's panic may have been its own.
                        (outcome, _) => assert_eq!(outcome, FAILED),
                    }
                }
            });
        }
    });
    scheduler.close();
    assert_eq!((scheduler.queue_depth(), budget.held_bytes()), (0, 0));
    let mut ran: Vec<i64> = Vec::new();
    for event in events.try_iter() {
        if let Event::Submit(tags) = event {
            ran.extend(tags);
        }
    }
    let executed = ran.len();
    ran.sort_unstable();
    ran.dedup();
    assert_eq!(ran.len(), executed, "nothing runs twice");
    scheduler.stats()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_arrives_in_whatever_order_is_answered_once_with_its_own_rows(
        threads in prop::collection::vec(prop::collection::vec(planned(&[Act::FailRequest]), 0..25), 1..5),
        (instances, slots, depth) in (1usize..4, 1usize..3, 1usize..4),
        delay_us in prop::sample::select(vec![0u64, 0, 50]),
    ) {
        let stats = check(&threads, instances, slots, depth, Duration::from_micros(delay_us));
        let all = || threads.iter().flatten();
        let count = |count: usize| u64::try_from(count).unwrap();
        let failed = failures(&stats, FailReason::Backend);
        let canceled = failures(&stats, FailReason::Canceled);
        prop_assert_eq!(stats.success.count + failed + canceled, count(all().count()));
        // An abandoned request may or may not have run before that was seen.
        let stayed = || all().filter(|plan| !plan.abandoned);
        prop_assert!(stats.success.count >= count(stayed().filter(|plan| plan.act.is_none()).count()));
        prop_assert!(failed >= count(stayed().filter(|plan| plan.act.is_some()).count()));
        prop_assert!(canceled <= count(all().filter(|plan| plan.abandoned).count()));
        prop_assert!(stats.inference_count <= count(all().map(|plan| plan.rows).sum()));
        for answered in [stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output,
                         stats.request_latency.total(), stats.queue_latency.total()] {
            prop_assert_eq!(answered.count, stats.success.count);
        }
        prop_assert_eq!(stats.execution_count, stats.close_reasons.values().sum::<u64>());
        let mut parts = [0; 3];
        for batch in stats.batches.values() {
            parts[0] += batch.compute_input.count;
            parts[1] += batch.compute_infer.count;
            parts[2] += batch.compute_output.count;
        }
        prop_assert_eq!(parts, [stats.execution_count; 3]);
        prop_assert_eq!(stats.panics, 0);
    }

    #[test]
    fn whatever_fails_and_panics_every_request_is_answered_once(
        threads in prop::collection::vec(prop::collection::vec(planned(&[
            Act::FailInSubmit, Act::FailInCollect, Act::Answer(0), Act::Answer(9),
            Act::PanicInSubmit, Act::PanicInCollect, Act::PanicTwice,
        ]), 0..25), 1..5),
        (instances, slots, depth) in (1usize..4, 1usize..3, 1usize..4),
    ) {
        let stats = check(&threads, instances, slots, depth, Duration::ZERO);
        let answered = stats.success.count + stats.fail.values().map(|total| total.count).sum::<u64>();
        prop_assert_eq!(answered, u64::try_from(threads.iter().flatten().count()).unwrap());
    }
}
