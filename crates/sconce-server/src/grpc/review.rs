//! `sconce.v1.Review`, on the control listener.

use crate::door::Door;
use crate::feedback::{MAX_LABEL_BYTES, Outcome, Value, now_ms};
use crate::grpc::control::{Answer, Items, actor, answer, items, name, refused};
use crate::grpc::feedback::checked;
use crate::review::{Event, Listed, Reviews, Shown};
use sconce_core::{ModelName, PredictionId, abbreviate};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::review_server::Review as Service;
use sconce_traffic::defer::{Cause, Disposition};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::{Request, Status};

/// Predictions of one answer of List: each is read with its content.
const PAGE: RangeInclusive<usize> = 1..=100;
/// Predictions that one call takes.
const COUNT: RangeInclusive<usize> = 1..=100;
/// How long they may be kept, and how long by default; seconds.
const LEASE_SECONDS: RangeInclusive<u32> = 1..=86_400;
const DEFAULT_LEASE_SECONDS: u32 = 600;
/// The metric that says who answered.
const REVIEWER: &str = "reviewer";
/// Events that wait for who watches.
const AHEAD: usize = 16;

/// The calls about what people decide.
pub(crate) struct Review {
    door: Arc<Door>,
}

impl Review {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    /// # Errors
    /// `FailedPrecondition` on a server without a registry.
    fn reviews(&self) -> Result<Arc<Reviews>, Status> {
        self.door.models.registry().map_err(refused)?;
        self.door.reviews.clone().ok_or_else(|| Status::failed_precondition("this server has no reviews"))
    }
}

#[tonic::async_trait]
impl Service for Review {
    type WatchStream = Items<pb::ReviewEvent>;

    async fn list(&self, request: Request<pb::ListReviewsRequest>) -> Answer<pb::ListReviewsResponse> {
        let pb::ListReviewsRequest { model, page_size, page_token } = request.into_inner();
        let model = some_name(&model)?;
        let limit = match page_size {
            0 => *PAGE.end(),
            size => within("page_size", usize::try_from(size).unwrap_or(usize::MAX), PAGE)?,
        };
        let after = match page_token.as_str() {
            "" => None,
            token => {
                let parsed = token
                    .rsplit_once('/')
                    .and_then(|(model, id)| Some((ModelName::new(model).ok()?, PredictionId::parse(id)?)));
                Some(parsed.ok_or_else(|| {
                    Status::invalid_argument(format!("page_token: not one of mine: {:?}", abbreviate(token)))
                })?)
            }
        };
        let listed = self.reviews()?.list(model, after, limit).await.map_err(refused)?;
        let next = listed.last().filter(|_| listed.len() == limit);
        answer(pb::ListReviewsResponse {
            next_page_token: next.map_or_else(String::new, |last| format!("{}/{}", last.model, last.id)),
            items: listed.into_iter().map(|listed| message(listed, false)).collect(),
        })
    }

    async fn claim(&self, request: Request<pb::ClaimReviewsRequest>) -> Answer<pb::ClaimReviewsResponse> {
        let by = reviewer(&request)?;
        let pb::ClaimReviewsRequest { model, count, lease_seconds } = request.into_inner();
        let count = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
        let count = within("count", count, COUNT)?;
        let seconds = if lease_seconds == 0 { DEFAULT_LEASE_SECONDS } else { lease_seconds };
        let lease = Duration::from_secs(within("lease_seconds", seconds, LEASE_SECONDS)?.into());
        let claimed = self.reviews()?.claim(name(&model)?, by, count, lease).await.map_err(refused)?;
        let items = claimed.into_iter().map(|listed| message(listed, true)).collect();
        answer(pb::ClaimReviewsResponse { items })
    }

    async fn answer(&self, request: Request<pb::AnswerReviewsRequest>) -> Answer<pb::AnswerReviewsResponse> {
        let by = reviewer(&request)?;
        let pb::AnswerReviewsRequest { model, outcomes } = request.into_inner();
        let now = now_ms();
        let (name, outcomes) = (name(&model)?, checked(outcomes, now)?);
        let ids: BTreeSet<PredictionId> = outcomes.iter().map(|(id, _)| *id).collect();
        let ids: Vec<PredictionId> = ids.into_iter().collect();
        let reviews = self.reviews()?;
        reviews.hold(name.clone(), by.clone(), ids.clone()).await.map_err(refused)?;
        let who = |id: &PredictionId| {
            let (metric, value) = (REVIEWER.to_owned(), Value::Label(by.clone()));
            (*id, Outcome { metric, value, second: None, at_ms: now })
        };
        // What is recorded and still waits after a kill is answered again: that takes the place of the first.
        let outcomes = outcomes.into_iter().chain(ids.iter().map(who)).collect();
        self.door.record_outcomes(name.clone(), outcomes, now).await.map_err(refused)?;
        let answered = ids.len() as u64;
        reviews.close(name, by, ids).await.map_err(refused)?;
        answer(pb::AnswerReviewsResponse { answered })
    }

    async fn skip(&self, request: Request<pb::SkipReviewRequest>) -> Answer<pb::SkipReviewResponse> {
        let by = reviewer(&request)?;
        let pb::SkipReviewRequest { model, prediction_id } = request.into_inner();
        let id = PredictionId::parse(&prediction_id).ok_or_else(|| {
            let got = abbreviate(&prediction_id);
            Status::invalid_argument(format!("prediction_id: expected one of an answer, got {got:?}"))
        })?;
        self.reviews()?.skip(name(&model)?, id, by).await.map_err(refused)?;
        answer(pb::SkipReviewResponse {})
    }

    async fn watch(&self, request: Request<pb::WatchReviewsRequest>) -> Answer<Self::WatchStream> {
        let model = some_name(&request.into_inner().model)?;
        let mut events = self.reviews()?.watch();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let stop = self.door.draining.clone();
        let watch = async move {
            loop {
                let received = tokio::select! {
                    received = events.recv() => received,
                    () = sender.closed() => return,
                };
                let told = match received {
                    Ok(event) if model.as_ref().is_some_and(|model| *model != event.model) => continue,
                    Ok(event) => event_message(event),
                    Err(RecvError::Lagged(_)) => {
                        pb::ReviewEvent { what: "missed".to_owned(), ..pb::ReviewEvent::default() }
                    }
                    Err(RecvError::Closed) => return,
                };
                if sender.send(Ok(told)).await.is_err() {
                    return;
                }
            }
        };
        self.door.models.tasks.spawn(async move { stop.run_until_cancelled(watch).await });
        answer(items(receiver))
    }
}

/// Who decides: an outcome's value has room for the name.
fn reviewer<T>(request: &Request<T>) -> Result<String, Status> {
    let by = actor(request)?;
    if !(1..=MAX_LABEL_BYTES).contains(&by.len()) {
        let message = format!("sconce-actor: expected 1 to {MAX_LABEL_BYTES} bytes, got {}", by.len());
        return Err(Status::invalid_argument(message));
    }
    Ok(by)
}

fn some_name(text: &str) -> Result<Option<ModelName>, Status> {
    if text.is_empty() { Ok(None) } else { name(text).map(Some) }
}

fn within<T: PartialOrd + std::fmt::Display>(
    what: &str,
    got: T,
    range: RangeInclusive<T>,
) -> Result<T, Status> {
    if range.contains(&got) {
        return Ok(got);
    }
    let message = format!("{what}: expected {} to {}, got {got}", range.start(), range.end());
    Err(Status::invalid_argument(message))
}

fn message(listed: Listed, with_content: bool) -> pb::ReviewItem {
    let Listed { model, id, expires_ms, claim, item } = listed;
    let (got, bound) = match item.disposition {
        Disposition::Defer(Cause::Confidence { got, least } | Cause::Margin { got, least }) => {
            (Some(got), Some(least))
        }
        Disposition::Defer(Cause::Outlier { score, most }) => (Some(score), Some(most)),
        _ => (None, None),
    };
    let (disposition, cause) = words(item.disposition);
    let shown = |all: Vec<Shown>| {
        let all = if with_content { all } else { Vec::new() };
        all.into_iter().map(tensor).collect()
    };
    let (claimed_by, claimed_until_ms) =
        claim.map_or_else(Default::default, |claim| (claim.by, claim.until_ms));
    pb::ReviewItem {
        model: model.to_string(),
        prediction_id: id.to_string(),
        version: item.version,
        variant: item.variant,
        at_ms: id.at_ms(),
        expires_ms,
        disposition: disposition.to_owned(),
        cause: cause.to_owned(),
        got,
        bound,
        claimed_by,
        claimed_until_ms,
        inputs: shown(item.inputs),
        outputs: shown(item.outputs),
    }
}

/// What callers and reviewers are told of what became of an answer, and why.
pub(super) fn words(disposition: Disposition) -> (&'static str, &'static str) {
    match disposition {
        Disposition::Answer => ("answered", ""),
        Disposition::Suggest => ("suggested", "assist"),
        Disposition::Defer(cause) => ("deferred", cause.as_str()),
    }
}

fn tensor(shown: Shown) -> pb::ReviewTensor {
    let Shown { name, datatype, shape, data } = shown;
    let shape = shape.into_iter().map(|size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
    let data_json = data.map_or_else(String::new, |data| serde_json::Value::from(data).to_string());
    pb::ReviewTensor { name, datatype, shape, data_json }
}

fn event_message(event: Event) -> pb::ReviewEvent {
    let Event { what, model, id, by, waiting } = event;
    pb::ReviewEvent {
        what: what.to_owned(),
        model: model.to_string(),
        prediction_id: id.to_string(),
        by,
        waiting: waiting as u64,
    }
}
