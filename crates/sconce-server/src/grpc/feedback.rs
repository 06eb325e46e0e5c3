//! `sconce.v1.Feedback`. Outcomes are recorded on either listener: the services that learn of them are those that ask for
//! predictions. What was recorded is shown on the control listener alone.

use crate::door::Door;
use crate::feedback::performance::Question;
use crate::feedback::{
    self, Exposure, Joined, LABEL, MAX_LABEL_BYTES, MAX_METRIC_BYTES, MAX_OUTCOMES, Outcome, Value, now_ms,
};
use crate::grpc::control::{Answer, answer, name, refused};
use crate::grpc::{Role, control_only};
use sconce_core::{ModelVersion, PredictionId, abbreviate};
use sconce_monitor::PerformanceSpec;
use sconce_proto::sconce as pb;
use sconce_proto::sconce::feedback_server::Feedback as Service;
use sconce_proto::sconce::outcome;
use std::sync::Arc;
use tonic::{Request, Status};

/// Problems of a call that are said.
const MAX_PROBLEMS: usize = 8;
/// Pairs of truth and decision that are worth something.
const MAX_VALUES: usize = 1024;
/// How far an outcome may lie in the future: as far as clocks may be apart.
const AHEAD_MS: u64 = 24 * 3600 * 1000;

/// The calls about outcomes.
pub(crate) struct Feedback {
    door: Arc<Door>,
    role: Role,
}

impl Feedback {
    pub(crate) fn new(door: Arc<Door>, role: Role) -> Self {
        Self { door, role }
    }
}

#[tonic::async_trait]
impl Service for Feedback {
    async fn record(
        &self,
        request: Request<pb::RecordFeedbackRequest>,
    ) -> Answer<pb::RecordFeedbackResponse> {
        let pb::RecordFeedbackRequest { model, outcomes } = request.into_inner();
        let (name, now) = (name(&model)?, now_ms());
        let outcomes = checked(outcomes, now)?;
        let done = self.door.record_outcomes(name, outcomes, now).await.map_err(refused)?;
        let feedback::Recorded { recorded, replaced, unknown } = done;
        answer(pb::RecordFeedbackResponse { recorded, replaced, unknown })
    }

    async fn list(&self, request: Request<pb::ListFeedbackRequest>) -> Answer<pb::ListFeedbackResponse> {
        control_only(&self.role, "List")?;
        let pb::ListFeedbackRequest { model, from_ms, to_ms, page_size, page_token } = request.into_inner();
        let (name, now) = (name(&model)?, now_ms());
        let to_ms = if to_ms == 0 { u64::MAX } else { to_ms };
        let after = match page_token.as_str() {
            "" => None,
            token => Some(PredictionId::parse(token).ok_or_else(|| {
                Status::invalid_argument(format!("page_token: not one of mine: {:?}", abbreviate(token)))
            })?),
        };
        let limit = match page_size {
            0 => sconce_registry::limits::PAGE,
            size => usize::try_from(size).unwrap_or(usize::MAX),
        };
        let read = move |registry: &sconce_registry::Registry| {
            registry.model(&name)?;
            feedback::joined(registry.journal(), &name, (from_ms, to_ms), after, limit, now)
        };
        let (rows, next) = self.door.models.read(read).await.map_err(refused)?;
        answer(pb::ListFeedbackResponse {
            predictions: rows.into_iter().map(joined).collect(),
            next_page_token: next.map_or_else(String::new, |id| id.to_string()),
        })
    }

    async fn get_performance(
        &self,
        request: Request<pb::GetPerformanceRequest>,
    ) -> Answer<pb::GetPerformanceResponse> {
        control_only(&self.role, "GetPerformance")?;
        let asked = request.into_inner();
        let name = name(&asked.model)?;
        self.door.models.registry().map_err(refused)?;
        let performances = self.door.performances.clone();
        let performances = performances.ok_or_else(|| Status::failed_precondition("no feedback is kept"))?;
        let version = match asked.version.clone() {
            text if text.is_empty() => None,
            text => {
                let of = name.clone();
                let read = self.door.models.read(move |registry| registry.resolve(&of, &text));
                Some(read.await.map_err(refused)?)
            }
        };
        let question = question(asked, version, performances.spec)?;
        let answered = performances.ask(name, question).await.map_err(refused)?;
        let versions = answered.reports.into_iter().map(|(version, variant, report)| {
            let report_json = serde_json::to_string(&report)
                .map_err(|error| Status::internal(format!("the report cannot be written: {error}")))?;
            Ok(pb::VersionPerformance { version, variant, report_json })
        });
        answer(pb::GetPerformanceResponse {
            versions: versions.collect::<Result<_, Status>>()?,
            predictions: answered.predictions,
            cut: answered.cut,
        })
    }
}

/// What is asked, on top of what is configured.
///
/// # Errors
/// `InvalidArgument` with what is wrong.
fn question(
    asked: pb::GetPerformanceRequest,
    version: Option<ModelVersion>,
    configured: PerformanceSpec,
) -> Result<Question, Status> {
    let pb::GetPerformanceRequest { from_ms, to_ms, cohort_ms, maturity_ms, by_variant, values, .. } = asked;
    let spec = PerformanceSpec {
        cohort_ms: if cohort_ms == 0 { configured.cohort_ms } else { cohort_ms },
        maturity_ms: maturity_ms.unwrap_or(configured.maturity_ms),
        ..configured
    };
    if values.len() > MAX_VALUES {
        let message = format!("values: expected at most {MAX_VALUES}, got {}", values.len());
        return Err(Status::invalid_argument(message));
    }
    if let Some(wrong) = values.iter().find(|it| !it.value.is_finite()) {
        let message = format!("values: expected finite numbers, got {}", wrong.value);
        return Err(Status::invalid_argument(message));
    }
    Ok(Question {
        made: (from_ms, if to_ms == 0 { u64::MAX } else { to_ms }),
        version,
        by_variant,
        spec,
        values: values.into_iter().map(|it| ((it.truth, it.decision), it.value)).collect(),
    })
}

/// What a call records, or all that is wrong with it.
pub(super) fn checked(outcomes: Vec<pb::Outcome>, now: u64) -> Result<Vec<(PredictionId, Outcome)>, Status> {
    if !(1..=MAX_OUTCOMES).contains(&outcomes.len()) {
        let message = format!("outcomes: expected 1 to {MAX_OUTCOMES}, got {}", outcomes.len());
        return Err(Status::invalid_argument(message));
    }
    let (mut taken, mut problems) = (Vec::with_capacity(outcomes.len()), Vec::new());
    for (at, outcome) in outcomes.into_iter().enumerate() {
        match check(outcome, now) {
            Ok(outcome) => taken.push(outcome),
            Err(problem) if problems.len() < MAX_PROBLEMS => {
                problems.push(format!("outcomes[{at}].{problem}"))
            }
            Err(_) => {}
        }
    }
    if problems.is_empty() { Ok(taken) } else { Err(Status::invalid_argument(problems.join("; "))) }
}

fn check(outcome: pb::Outcome, now: u64) -> Result<(PredictionId, Outcome), String> {
    let pb::Outcome { prediction_id, metric, second, at_ms, value } = outcome;
    let id = PredictionId::parse(&prediction_id).ok_or_else(|| {
        let got = abbreviate(&prediction_id);
        format!("prediction_id: expected the `prediction_id` of an answer, got {got:?}")
    })?;
    let value = match value {
        None => return Err("value: expected a label, a number or whether it converted, got none".to_owned()),
        Some(outcome::Value::Label(label)) => {
            let length = label.len();
            if !(1..=MAX_LABEL_BYTES).contains(&length) {
                return Err(format!("label: expected 1 to {MAX_LABEL_BYTES} bytes, got {length}"));
            }
            Value::Label(label)
        }
        Some(outcome::Value::Number(number)) => Value::Number(number),
        Some(outcome::Value::Converted(converted)) => Value::Converted(converted),
    };
    let numbers =
        [("second", second), ("number", if let Value::Number(it) = value { Some(it) } else { None })];
    for (what, number) in numbers {
        if let Some(number) = number.filter(|number| !number.is_finite()) {
            return Err(format!("{what}: expected a finite number, got {number}"));
        }
    }
    if second.is_some() && !matches!(value, Value::Number(_)) {
        return Err("second: expected only beside a number".to_owned());
    }
    let metric = match (metric.as_str(), &value) {
        ("", Value::Label(_)) => LABEL.to_owned(),
        ("", Value::Converted(_)) => "conversion".to_owned(),
        _ => metric,
    };
    let length = metric.len();
    if !(1..=MAX_METRIC_BYTES).contains(&length) || metric.chars().any(char::is_control) {
        let got = abbreviate(&metric);
        return Err(format!(
            "metric: expected 1 to {MAX_METRIC_BYTES} bytes without control characters, got {got:?} ({length} bytes)"
        ));
    }
    let at_ms = if at_ms == 0 { now } else { at_ms };
    if at_ms > now.saturating_add(AHEAD_MS) || id.at_ms() > now.saturating_add(AHEAD_MS) {
        let what = if at_ms > now.saturating_add(AHEAD_MS) { "at_ms" } else { "prediction_id" };
        return Err(format!("{what}: expected a time that is not more than a day ahead"));
    }
    Ok((id, Outcome { metric, value, second, at_ms }))
}

fn joined(joined: Joined) -> pb::JoinedPrediction {
    let Joined { id, exposure, outcomes } = joined;
    let outcomes = outcomes.into_iter().map(|Outcome { metric, value, second, at_ms }| pb::Outcome {
        prediction_id: id.to_string(),
        metric,
        value: Some(match value {
            Value::Label(label) => outcome::Value::Label(label),
            Value::Number(number) => outcome::Value::Number(number),
            Value::Converted(converted) => outcome::Value::Converted(converted),
        }),
        second,
        at_ms,
    });
    pb::JoinedPrediction {
        prediction_id: id.to_string(),
        at_ms: id.at_ms(),
        exposure: exposure.map(|Exposure { version, variant, chosen, unit, status, label, score }| {
            pb::Exposure { version, variant, chosen, unit, status, label: label.unwrap_or_default(), score }
        }),
        outcomes: outcomes.collect(),
    }
}
