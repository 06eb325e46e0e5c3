//! The requests on their way: each when it is due, whatever became of those before it.

use super::recording::Recorded;
use super::{Recordeds, Selection, Survey};
use crate::Failure;
use crate::progress::{self, Bar};
use sconce_client::{Client, Code, InferRequest, InferResponse, Options, Parameter};
use sconce_core::{DataType, ErrorCode, Tensor};
use sconce_traffic::compare::{self, CompareSpec, Comparison, Kind, OutputSpec, Pair};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Requests that are read before they are due, beside those that are put in order.
const READ_AHEAD: usize = 256;
/// Answers that wait to be compared.
const UNCOMPARED: usize = 4096;
const MOST_OUTSTANDING: usize = 1024;
const CONCURRENCY: usize = 16;

/// How fast requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// When they came, times so much faster.
    Recorded(f64),
    /// The next when one is answered.
    Max,
}

/// `1x`, `2.5x` or `max`.
pub(super) fn pace(text: &str) -> Result<Pace, String> {
    if text == "max" {
        return Ok(Pace::Max);
    }
    let speed = text.strip_suffix('x').and_then(|number| number.parse::<f64>().ok());
    match speed.filter(|speed| (1e-3..=1e6).contains(speed)) {
        Some(speed) => Ok(Pace::Recorded(speed)),
        None => Err("expected a number from 0.001 to 1000000 with an x, such as 2x, or max".to_owned()),
    }
}

/// What is to be done with a recording.
pub(super) struct Plan {
    pub(super) server: String,
    pub(super) pace: Pace,
    pub(super) max_outstanding: Option<usize>,
    /// What the model is called there, where that is another name.
    pub(super) called: Option<String>,
    /// The version to ask for in place of the one that was asked for.
    pub(super) version: Option<String>,
    /// The outputs to ask for, by their names then and there; none: all that there are.
    pub(super) outputs: Vec<(String, String)>,
    pub(super) headers: Vec<(String, String)>,
    /// How long requests may take that had no deadline of their own.
    pub(super) deadline: Duration,
    /// What a floating-point number may differ by: so much, and so much of itself.
    pub(super) tolerance: (f64, f64),
    pub(super) decisions: bool,
    pub(super) max_different: f64,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Ran {
    pub(super) sent: u64,
    /// Were due while too many were unanswered.
    pub(super) not_sent: u64,
    /// The latest that one was sent after it was due.
    pub(super) late: Duration,
    pub(super) took: Duration,
    pub(super) models: BTreeMap<String, Judged>,
}

/// What the answers of one model come to.
pub(super) struct Judged {
    pub(super) requests: u64,
    /// Held against an answer, or a refusal, of then.
    pub(super) compared: u64,
    pub(super) different: u64,
    /// Were left to people now, so there is no answer to compare.
    pub(super) deferred: u64,
    /// Failed then for want of room or time, or because their caller went away: that says nothing of an answer.
    pub(super) unanswered_then: u64,
    /// No outputs of them were kept: whether they are answered is all that was compared.
    pub(super) without_outputs: u64,
    comparison: Comparison,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Different,
    Incomplete,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Ran {
    pub(super) fn sum(&self, of: impl Fn(&Judged) -> u64) -> u64 {
        self.models.values().map(of).sum()
    }

    pub(super) fn verdict(&self, plan: &Plan) -> Verdict {
        let (compared, different) = (self.sum(|it| it.compared), self.sum(|it| it.different));
        if different as f64 > plan.max_different * compared as f64 {
            Verdict::Different
        } else if self.not_sent > 0 || compared == self.sum(|it| it.without_outputs) {
            Verdict::Incomplete
        } else {
            Verdict::Equal
        }
    }
}

impl Judged {
    pub(super) fn report(&self) -> compare::Report {
        self.comparison.report()
    }

    fn new(plan: &Plan, of: &Recordeds) -> Result<Self, Failure> {
        let (absolute, relative) = plan.tolerance;
        let output = |(name, datatype): (&String, &DataType)| {
            let is_float =
                matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
            let spec = match (is_float, plan.decisions) {
                (true, true) => OutputSpec { absolute, relative, ..OutputSpec::default() },
                (true, false) => {
                    OutputSpec { kind: Some(Kind::Values), absolute, relative, ..OutputSpec::default() }
                }
                (false, _) => OutputSpec { absolute: 0.0, relative: 0.0, ..OutputSpec::default() },
            };
            (name.clone(), spec)
        };
        let outputs = of.outputs.iter().map(output).collect();
        let comparison = Comparison::new(CompareSpec { outputs, ..CompareSpec::default() }, 1)?;
        let (requests, compared, different, deferred) = (0, 0, 0, 0);
        let (unanswered_then, without_outputs) = (0, 0);
        Ok(Self { requests, compared, different, deferred, unanswered_then, without_outputs, comparison })
    }

    fn take(&mut self, outputs: &[(String, String)], answered: &Answered) {
        let Answered { recorded, answer, took } = answered;
        self.requests += 1;
        let is_deferred = |answer: &InferResponse| {
            let review = answer.parameters.get("review");
            matches!(review, Some(Parameter::StringParam(review)) if review == "deferred")
        };
        if answer.as_ref().is_ok_and(is_deferred) {
            self.deferred += 1;
            return;
        }
        let mut then = recorded.outputs();
        if !outputs.is_empty() {
            then.retain(|(name, _)| outputs.iter().any(|(wanted, _)| wanted == name));
        }
        let is_kept = |name: &str| then.iter().any(|(kept, _)| *kept == name);
        let now: Result<Vec<(&str, &Tensor)>, ErrorCode> = match answer {
            Ok(answer) => {
                let given = answer.outputs.iter().map(|(name, tensor)| (called(outputs, name), tensor));
                Ok(given.filter(|(name, _)| is_kept(name)).collect())
            }
            Err(code) => Err(*code),
        };
        let pair = Pair {
            id: &recorded.id,
            primary: recorded.ending.map(|()| &then[..]),
            candidate: now.as_deref().map_err(|code| *code),
            primary_latency: recorded.latency,
            candidate_latency: *took,
        };
        // Inputs are where the recording is.
        let differs = self.comparison.add(&pair, || None);
        if recorded.ending.is_err_and(is_circumstance) {
            self.unanswered_then += 1;
            return;
        }
        self.compared += 1;
        self.different += u64::from(differs);
        self.without_outputs += u64::from(recorded.ending.is_ok() && then.is_empty());
    }
}

/// What the output `there` is called in the recording.
fn called<'a>(outputs: &'a [(String, String)], there: &'a str) -> &'a str {
    outputs.iter().find(|(_, name)| name == there).map_or(there, |(name, _)| name)
}

/// Whether a failure is one of load or of its caller, and not of what was asked.
fn is_circumstance(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unavailable
            | ErrorCode::ResourceExhausted
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Cancelled
    )
}

/// A request that is due.
struct Due {
    at: Instant,
    recorded: Box<Recorded>,
}

/// A request, and its answer of now.
struct Answered {
    recorded: Box<Recorded>,
    answer: Result<InferResponse, ErrorCode>,
    /// From when it was due.
    took: Duration,
}

/// Sends what is selected, and compares what is answered.
///
/// # Errors
/// A server that cannot be reached; a recording that cannot be read any more.
pub(super) async fn run(plan: &Plan, selection: Selection, survey: &Survey) -> Result<Ran, Failure> {
    let client = Client::connect(&plan.server, Options::default()).await?;
    let (pace, first_us) = (plan.pace, survey.first_us);
    let (sender, mut due) = mpsc::channel(READ_AHEAD);
    let reader = thread::Builder::new()
        .name("sconce-replay".to_owned())
        .spawn(move || send_when_due(&selection, pace, first_us, &sender))?;
    let (answers, answered) = mpsc::channel(UNCOMPARED);
    let judged = survey.models.iter().map(|(name, of)| Ok((name.clone(), Judged::new(plan, of)?)));
    let judged = judged.collect::<Result<BTreeMap<_, _>, Failure>>()?;
    let outputs = plan.outputs.clone();
    let judge = thread::Builder::new()
        .name("sconce-compare".to_owned())
        .spawn(move || judge(judged, &outputs, answered))?;

    let usual = if plan.pace == Pace::Max { CONCURRENCY } else { MOST_OUTSTANDING };
    let most = plan.max_outstanding.unwrap_or(usual);
    let (mut ran, mut bar, began) = (Ran::default(), Bar::default(), Instant::now());
    let mut unanswered = JoinSet::new();
    while let Some(Due { at, recorded }) = due.recv().await {
        while unanswered.try_join_next().is_some() {}
        if unanswered.len() >= most {
            if plan.pace != Pace::Max {
                ran.not_sent += 1;
                continue;
            }
            unanswered.join_next().await;
        }
        let now = Instant::now();
        let at = if plan.pace == Pace::Max { now } else { at };
        ran.late = ran.late.max(now.saturating_duration_since(at));
        ran.sent += 1;
        unanswered.spawn(ask(client.clone(), request(plan, &recorded), recorded, at, answers.clone()));
        bar.show_share("requests sent", (ran.sent + ran.not_sent) as f64 / survey.requests as f64);
    }
    while unanswered.join_next().await.is_some() {}
    ran.took = began.elapsed();
    progress::clear_line();
    drop(answers);
    let gone = |_| "a thread of the replay panicked";
    reader.join().map_err(gone)??;
    ran.models = judge.join().map_err(gone)?;
    Ok(ran)
}

/// Reads ahead, and gives each request when it is due.
fn send_when_due(
    selection: &Selection,
    pace: Pace,
    first_us: i64,
    sender: &mpsc::Sender<Due>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let send = |recorded: Recorded, _| {
        let at = match pace {
            Pace::Max => start,
            Pace::Recorded(speed) => {
                let after =
                    Duration::from_micros(recorded.at_us.saturating_sub(first_us).max(0).unsigned_abs());
                start + after.div_f64(speed)
            }
        };
        thread::sleep(at.saturating_duration_since(Instant::now()));
        Ok(sender.blocking_send(Due { at, recorded: Box::new(recorded) }).is_ok())
    };
    selection.each(send, |_| {})
}

/// The request as it was, but for what the plan says.
pub(super) fn request(plan: &Plan, recorded: &Recorded) -> InferRequest {
    let model = plan.called.as_ref().unwrap_or(&recorded.model);
    let version = plan.version.as_ref().unwrap_or(&recorded.version);
    let mut request = InferRequest::new(model).version(version).id(&recorded.id);
    for (name, tensor) in recorded.inputs().unwrap_or_default() {
        request = request.input(name, tensor.clone());
    }
    request = plan.outputs.iter().fold(request, |request, (_, there)| request.output(there));
    if let Some(priority) = recorded.priority {
        request = request.priority(priority.into());
    }
    for key in &recorded.keys {
        request = match key.from.as_str() {
            "metadata" => request.metadata(&key.name, &key.value),
            _ => request.parameter(&key.name, Parameter::StringParam(key.value.clone())),
        };
    }
    let headers = plan.headers.iter();
    let request = headers.fold(request, |request, (name, value)| request.metadata(name, value));
    request.deadline(recorded.timeout.unwrap_or(plan.deadline))
}

async fn ask(
    client: Client,
    request: InferRequest,
    recorded: Box<Recorded>,
    at: Instant,
    answers: mpsc::Sender<Answered>,
) {
    let answer = client.infer(request).await.map_err(|error| code(error.code()));
    let took = at.elapsed();
    // The judge is there until the last sender is gone.
    let _ = answers.send(Answered { recorded, answer, took }).await;
}

fn judge(
    mut judged: BTreeMap<String, Judged>,
    outputs: &[(String, String)],
    mut answers: mpsc::Receiver<Answered>,
) -> BTreeMap<String, Judged> {
    while let Some(answered) = answers.blocking_recv() {
        if let Some(judged) = judged.get_mut(&answered.recorded.model) {
            judged.take(outputs, &answered);
        }
    }
    judged
}

/// A status as this server has them.
fn code(code: Code) -> ErrorCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        Code::NotFound => ErrorCode::NotFound,
        Code::Unavailable => ErrorCode::Unavailable,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::Cancelled => ErrorCode::Cancelled,
        Code::PermissionDenied | Code::Unauthenticated => ErrorCode::PermissionDenied,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        Code::AlreadyExists => ErrorCode::AlreadyExists,
        Code::Aborted => ErrorCode::Aborted,
        Code::Unimplemented => ErrorCode::Unimplemented,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => ErrorCode::Internal,
    }
}
