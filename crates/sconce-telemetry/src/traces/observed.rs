use super::RequestTrace;
use super::spans::SPANS_A_REQUEST;
use sconce_core::{ErrorCode, ExecutionRecord, PredictionId};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which call brought a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `ModelInfer`.
    Unary,
    /// One message of `ModelStreamInfer`.
    Stream,
    /// A step of an ensemble: part of a request, and told with it.
    Step,
    /// Shadow work: a request's inputs once more, after its answer, for another version.
    Shadow,
}

impl Method {
    /// The name in log lines.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unary => "ModelInfer",
            Self::Stream => "ModelStreamInfer",
            Self::Step => "step",
            Self::Shadow => "shadow",
        }
    }

    pub(crate) fn span_name(self) -> &'static str {
        match self {
            Self::Unary => "inference.GRPCInferenceService/ModelInfer",
            Self::Stream => "inference.GRPCInferenceService/ModelStreamInfer",
            Self::Step | Self::Shadow => self.name(),
        }
    }

    /// Whether somebody outside waits for it.
    pub(crate) fn is_of_a_caller(self) -> bool {
        matches!(self, Self::Unary | Self::Stream)
    }
}

/// The model version that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The model's name.
    pub model: Arc<str>,
    /// The version.
    pub version: Arc<str>,
    /// The device it runs on.
    pub device: Arc<str>,
    /// Tells this load of the version from every other: batch ids begin anew with each.
    pub run: u64,
}

impl Target {
    /// One load of a version.
    pub fn new(model: &str, version: &str, device: &str) -> Self {
        Self { model: model.into(), version: version.into(), device: device.into(), run: fastrand::u64(..) }
    }
}

/// The call of another server that a request became.
#[derive(Debug, Clone)]
pub struct RemoteCall {
    /// Its place in the request's trace: the other server's spans are its children.
    pub trace: RequestTrace,
    /// The other server, `HOST:PORT`.
    pub server: Arc<str>,
    /// When it was begun.
    pub started_at: Instant,
    /// When it ended; `None` for one that nobody waited for to its end.
    pub ended_at: Option<Instant>,
    /// How often it was made.
    pub attempts: u64,
    /// What it failed with.
    pub code: Option<ErrorCode>,
}

/// What is known of one request: filled as it goes, looked at after its answer.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Its place in its trace.
    pub trace: RequestTrace,
    /// How it came.
    pub method: Method,
    /// When its call, or its message of a stream, came.
    pub arrived_at: Instant,
    /// When its message was all there.
    pub received_at: Option<Instant>,
    /// When its model version was found.
    pub routed_at: Option<Instant>,
    /// When it entered the queue.
    pub queued_at: Option<Instant>,
    /// What happened to it in its batch.
    pub record: Option<ExecutionRecord>,
    /// Whether its model answered.
    pub executed: bool,
    /// How long that took, as it was counted, where no batch says so: from what was kept, by other models or by another server.
    pub answered_in: Option<Duration>,
    /// The call of another server that it became.
    pub call: Option<Box<RemoteCall>>,
    /// When its answer was handed to the connection.
    pub ended_at: Instant,
    /// When its caller stops waiting.
    pub deadline: Option<Instant>,
    /// The id its answer carries.
    pub prediction_id: Option<PredictionId>,
    /// The version that answers.
    pub target: Option<Arc<Target>>,
    /// Of a request that no version took: the model and the version that it named, abbreviated.
    pub asked: Option<Box<(String, String)>>,
    /// The variant of its model that a route sent it to.
    pub variant: Option<Arc<str>>,
    /// What it failed with.
    pub code: Option<ErrorCode>,
    /// Who asks, if that is known.
    pub tenant: Option<Arc<str>>,
    /// The steps of an ensemble that came to their end, as they did.
    pub steps: Vec<Observed>,
}

/// A part of a request's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

impl Observed {
    /// The model and the version that answer, or that were asked for.
    pub(crate) fn named(&self) -> Option<(&str, &str)> {
        let asked = self.asked.as_deref().map(|(model, version)| (model.as_str(), version.as_str()));
        self.target.as_deref().map(|target| (&*target.model, &*target.version)).or(asked)
    }

    /// A request that came now.
    pub fn new(trace: RequestTrace, method: Method, arrived_at: Instant) -> Self {
        Self {
            trace,
            method,
            arrived_at,
            received_at: None,
            routed_at: None,
            queued_at: None,
            record: None,
            executed: false,
            answered_in: None,
            call: None,
            ended_at: arrived_at,
            deadline: None,
            prediction_id: None,
            target: None,
            asked: None,
            variant: None,
            code: None,
            tenant: None,
            steps: Vec::new(),
        }
    }

    /// A step of this request's, or shadow work for it, that begins now: a child of it in its trace.
    #[must_use]
    pub fn child(&self, method: Method, arrived_at: Instant) -> Self {
        Self { tenant: self.tenant.clone(), ..Self::new(self.trace.child(), method, arrived_at) }
    }

    /// Its spans at most, those of its steps among them.
    pub(crate) fn spans_at_most(&self) -> u64 {
        let steps = self.steps.iter().map(Self::spans_at_most).sum::<u64>();
        SPANS_A_REQUEST + u64::from(self.call.is_some()) + steps
    }

    /// How long its model took to answer, as histograms count it: from the front door until then. `None` where it did not.
    pub(crate) fn counted_time(&self) -> Option<Duration> {
        let in_a_batch =
            || Some(self.record.as_ref()?.finished_at.saturating_duration_since(self.arrived_at));
        self.answered_in.or_else(in_a_batch).filter(|_| self.executed)
    }

    /// The name of the status it ended with.
    pub fn status(&self) -> &'static str {
        super::spans::status(self.code).1
    }

    /// All its time.
    pub fn time(&self) -> Duration {
        self.ended_at.saturating_duration_since(self.arrived_at)
    }

    /// Its stages in order, as far as it came. Each begins where the one before it ends, the first with the request and the last
    /// ends with it: their durations add up to its own.
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let record = self.record.as_ref();
        let answered = self.executed && self.code.is_none();
        if record.is_none() && (answered || self.call.is_some() || !self.steps.is_empty()) {
            // From the cache, by other models, or by another server: there was no queue.
            let routed = self
                .routed_at
                .unwrap_or(self.arrived_at)
                .clamp(self.arrived_at, self.ended_at.max(self.arrived_at));
            return vec![
                Stage { name: "route", start: self.arrived_at, end: routed },
                Stage { name: "execute", start: routed, end: self.ended_at.max(routed) },
            ];
        }
        let ends = [
            ("route", self.routed_at),
            ("prepare", record.map(|record| record.queued_at).or(self.queued_at)),
            ("queue", record.map(|record| record.started_at)),
            ("execute", record.map(|record| record.finished_at)),
            (if self.method.is_of_a_caller() { "encode" } else { "reply" }, None),
        ];
        let mut start = self.arrived_at;
        let mut stages = Vec::with_capacity(ends.len());
        for (name, end) in ends {
            let Some(end) = end else {
                stages.push(Stage { name, start, end: self.ended_at.max(start) });
                break;
            };
            // Times of several threads: none goes back.
            let end = end.clamp(start, self.ended_at.max(start));
            stages.push(Stage { name, start, end });
            start = end;
        }
        stages
    }

    /// The name of the stage it failed in.
    pub(crate) fn failed_stage(&self) -> Option<&'static str> {
        self.code?;
        match (self.executed, self.record.is_some()) {
            (false, true) => Some("execute"),
            _ => self.stages().last().map(|stage| stage.name),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use sconce_core::CloseReason;

    /// A request that was answered after 10 ms, all stages of 2 ms.
    pub(crate) fn observed() -> Observed {
        let at = |ms| *ORIGIN + Duration::from_millis(ms);
        let target = Target { model: "m".into(), version: "1".into(), device: "cpu".into(), run: 77 };
        Observed {
            received_at: Some(at(1)),
            routed_at: Some(at(2)),
            queued_at: Some(at(4)),
            record: Some(ExecutionRecord {
                batch_id: 5,
                instance: 1,
                batch_requests: 2,
                batch_rows: 3,
                batch_tokens: 40,
                batch_padding: 8,
                close_reason: CloseReason::Full,
                queued_at: at(4),
                started_at: at(6),
                finished_at: at(8),
                paused: Duration::ZERO,
                queue_depth: 9,
            }),
            executed: true,
            answered_in: None,
            call: None,
            ended_at: at(10),
            prediction_id: Some(PredictionId::new()),
            target: Some(Arc::new(target)),
            ..Observed::new(RequestTrace::new(None), Method::Unary, at(0))
        }
    }

    pub(crate) static ORIGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    fn names(observed: &Observed) -> Vec<&'static str> {
        observed.stages().iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn a_request_has_the_stages_it_came_to() {
        let full = observed();
        assert_eq!(names(&full), ["route", "prepare", "queue", "execute", "encode"]);
        let expired = Observed { record: None, code: Some(ErrorCode::DeadlineExceeded), ..full.clone() };
        assert_eq!(names(&expired), ["route", "prepare", "queue"]);
        assert_eq!(expired.failed_stage(), Some("queue"));
        let unknown = Observed {
            record: None,
            routed_at: None,
            queued_at: None,
            code: Some(ErrorCode::NotFound),
            ..full.clone()
        };
        assert_eq!((names(&unknown), unknown.failed_stage()), (vec!["route"], Some("route")));
        let broken = Observed { executed: false, code: Some(ErrorCode::Internal), ..full };
        assert_eq!(broken.failed_stage(), Some("execute"));
    }

    proptest! {
        /// Whatever the clocks of several threads say.
        #[test]
        fn stages_tile_the_request(times in proptest::collection::vec(0u64..100, 6), came_to in 0usize..5) {
            let at = |ms: u64| *ORIGIN + Duration::from_millis(ms);
            let mut observed = observed();
            observed.ended_at = at(times[5]).max(observed.arrived_at);
            observed.routed_at = (came_to > 0).then(|| at(times[0]));
            observed.queued_at = (came_to > 1).then(|| at(times[1]));
            observed.record = observed.record.filter(|_| came_to > 2).map(|record| ExecutionRecord {
                queued_at: at(times[2]),
                started_at: at(times[3]),
                finished_at: at(times[4]),
                ..record
            });
            let stages = observed.stages();
            let sum: Duration = stages.iter().map(|stage| stage.end - stage.start).sum();
            prop_assert_eq!(sum, observed.time());
            prop_assert_eq!(stages[0].start, observed.arrived_at);
            prop_assert!(stages.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
