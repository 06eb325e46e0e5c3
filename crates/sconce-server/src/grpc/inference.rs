//! `ModelInfer` and `ModelStreamInfer`, straight on HTTP/2: framing, limits and deadlines are ours, so that bytes are
//! bounded before they are buffered and an expired deadline is DEADLINE_EXCEEDED.

use crate::dispatch::{self, Job};
use crate::door::Door;
use crate::grpc::call::Call;
use crate::grpc::convert;
use crate::grpc::frames::{self, ARRIVAL_LIMIT, Encoded, MessageReader, Received, UnaryBody};
use crate::grpc::review::words;
use crate::grpc::status;
use crate::grpc::weight;
use crate::models::{Routed, Served};
use crate::observe::{self, Observation};
use crate::review::Draft;
use crate::shadow::{Asked, Offer};
use crate::tenants::{Caller, Rank, Visit};
use crate::traffic::Asks;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use prost::Message as _;
use sconce_core::{Automation, Error, ErrorCode, InferOutput, PredictionId, Reservation, Result, abbreviate};
use sconce_proto::inference::infer_parameter::ParameterChoice;
use sconce_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use sconce_scheduler::Priority;
use sconce_telemetry::traces::{Method, RequestTrace};
use sconce_traffic::defer::Disposition;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// Requests of one stream that are worked on at once. Replies keep the order of the requests.
const STREAM_CONCURRENCY: usize = 64;
/// The largest message that is decoded and checked on the thread that serves its connection.
const INLINE_MESSAGE_BYTES: usize = 256 << 10;

/// Answers one `ModelInfer` call.
pub(crate) async fn unary<B>(
    door: &Door,
    call: &Arc<Call>,
    request: Request<B>,
) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let arrived_at = Instant::now();
    let trace = observe::trace_of(request.headers());
    let mut observation = Observation::new(&door.recorder, trace, Method::Unary, arrived_at);
    match infer_unary(door, request, arrived_at, &mut observation).await {
        Ok(answer) => respond(tonic::body::Body::new(UnaryBody::new(answer.leave(call, observation)))),
        Err(error) => {
            observation.failed(&error);
            refuse(&error)
        }
    }
}

async fn infer_unary<B>(
    door: &Door,
    request: Request<B>,
    arrived_at: Instant,
    observation: &mut Observation,
) -> Result<Encoded>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, body) = request.into_parts();
    let deadline = call_deadline(&head.headers, arrived_at)?;
    let visit = enter(door, &door.tenants.caller(&head.headers, arrived_at)?, arrived_at)?;
    observation.tenant = visit.name();
    // Where it is, for it is large, and would be moved to where it is awaited.
    let answered = pin!(async {
        let mut reader = MessageReader::new(body, door.budget.clone(), door.limits.max_message_bytes);
        let arrive_by = deadline.into_iter().chain(arrived_at.checked_add(ARRIVAL_LIMIT)).min();
        let received = match dispatch::within(arrive_by, reader.next()).await.flatten() {
            Ok(Some(received)) => received,
            Ok(None) => Err(Error::invalid("the call carries no message")),
            Err(error) => Err(error),
        };
        (observation.received_at, observation.deadline) = (Some(Instant::now()), deadline);
        let (request, reservation) = decode(door, received, &visit, deadline).await?;
        let (response, reservation) =
            infer(door, &head.headers, request, reservation, visit.rank(), observation).await?;
        frames::encode(response, reservation)
    });
    let answered = answered.await;
    visit.end(&answered);
    answered
}

/// Lets a request of `caller` in, before anything of it was decoded.
///
/// # Errors
/// `ResourceExhausted` over its tenant's quota.
fn enter(door: &Door, caller: &Caller, now: Instant) -> Result<Visit> {
    caller.enter(now).inspect_err(|_| {
        door.refused.tenants.fetch_add(1, Ordering::Relaxed);
    })
}

/// Answers one `ModelStreamInfer` call: reads requests and gives replies, in order, until the caller ends the stream.
pub(crate) fn streaming<B>(
    door: Arc<Door>,
    call: Arc<Call>,
    request: Request<B>,
) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, body) = request.into_parts();
    let arrived_at = Instant::now();
    let trace = observe::trace_of(&head.headers);
    let entered = call_deadline(&head.headers, arrived_at)
        .and_then(|deadline| Ok((deadline, door.tenants.caller(&head.headers, arrived_at)?)));
    let (deadline, caller) = match entered {
        Ok(entered) => entered,
        Err(error) => {
            Observation::new(&door.recorder, trace, Method::Stream, arrived_at).failed(&error);
            return refuse(&error);
        }
    };
    let headers = Arc::new(head.headers);
    let errors_end_the_stream = headers.get("triton_grpc_error").is_some_and(|value| value == "true");
    let reader = MessageReader::new(body, door.budget.clone(), door.limits.max_message_bytes);
    let draining = door.draining.clone();
    let replies = messages(reader, deadline)
        .take_until(async move { draining.cancelled().await })
        .map(move |message| {
            let (door, caller, trace) = (Arc::clone(&door), caller.clone(), trace.sibling());
            let headers = Arc::clone(&headers);
            // A task of its own: it comes to its end, and lets go of its model, even when the caller does not read.
            let reply = tokio::spawn(async move {
                stream_reply(&door, &headers, &caller, message, trace, deadline, errors_end_the_stream).await
            });
            AbortOnDropHandle::new(reply)
        })
        .buffered(STREAM_CONCURRENCY)
        .map(|reply| {
            reply.unwrap_or_else(|error| Err(Error::internal("the reply was lost").with_source(error)))
        })
        // A reply that waits for those before it keeps nobody waiting but us.
        .map(move |reply| reply.map(|(encoded, observation)| encoded.leave(&call, observation)));
    respond(tonic::body::Body::new(StreamBody::new(framed(replies))))
}

/// The messages of a call. What ends it, or the deadline, is the last item's error; an item's own error says why that message
/// alone is refused.
fn messages<B>(
    reader: MessageReader<B>,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<Result<Received>>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        match dispatch::within(deadline, reader.next()).await.flatten() {
            Ok(None) => None,
            Ok(Some(message)) => Some((Ok(message), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Replies as frames of the answer, closed by the trailers. The first error ends the stream.
fn framed(
    replies: impl Stream<Item = Result<Bytes>> + Send,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    stream::unfold(Some(Box::pin(replies)), |replies| async move {
        let mut replies = replies?;
        let trailers = match replies.next().await {
            Some(Ok(reply)) => return Some((Ok(Frame::data(reply)), Some(replies))),
            Some(Err(error)) => {
                let mut trailers = HeaderMap::new();
                // Status trailers are plain text: they always make valid headers.
                let _ = status::of(&error).add_header(&mut trailers);
                trailers
            }
            None => frames::ok_trailers(),
        };
        Some((Ok(Frame::trailers(trailers)), None))
    })
}

async fn stream_reply(
    door: &Door,
    headers: &HeaderMap,
    caller: &Caller,
    message: Result<Result<Received>>,
    trace: RequestTrace,
    deadline: Option<Instant>,
    errors_end_the_stream: bool,
) -> Result<(Encoded, Observation)> {
    let arrived_at = Instant::now();
    let mut observation = Observation::new(&door.recorder, trace, Method::Stream, arrived_at);
    observation.deadline = deadline;
    let received = message.inspect_err(|error| observation.failed(error))?;
    let mut id = String::new();
    let answered = async {
        let visit = enter(door, caller, arrived_at)?;
        observation.tenant = visit.name();
        let answered = async {
            let (request, reservation) = decode(door, received, &visit, deadline).await?;
            id.clone_from(&request.id);
            infer(door, headers, request, reservation, visit.rank(), &mut observation).await
        };
        let answered = answered.await;
        visit.end(&answered);
        answered
    };
    let (error_message, mut response, reservation) = match answered.await {
        Ok((response, reservation)) => (String::new(), response, reservation),
        Err(error) => {
            observation.failed(&error);
            if errors_end_the_stream {
                return Err(error);
            }
            let mut response = ModelInferResponse { id, ..ModelInferResponse::default() };
            if let (ErrorCode::ResourceExhausted, Some(after)) = (error.code(), error.retry_after()) {
                // Where only this message is refused there are no trailers to say it in.
                let after = ParameterChoice::Int64Param(status::pushback_ms(after));
                let after = InferParameter { parameter_choice: Some(after) };
                response.parameters.insert("retry_after_ms".to_owned(), after);
            }
            (status::of(&error).message().to_owned(), response, door.budget.empty())
        }
    };
    let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    response.parameters.insert("triton_final_response".to_owned(), last);
    let reply = ModelStreamInferResponse { error_message, infer_response: Some(response) };
    let encoded = frames::encode(reply, reservation).inspect_err(|error| observation.failed(error))?;
    Ok((encoded, observation))
}

/// One request, from the message to the message. Its reservation comes back with the answer.
async fn infer(
    door: &Door,
    headers: &HeaderMap,
    message: ModelInferRequest,
    reservation: Reservation,
    rank: Rank,
    observation: &mut Observation,
) -> Result<(ModelInferResponse, Reservation)> {
    let (arrived_at, call_deadline) = (observation.arrived_at, observation.deadline);
    if door.draining.is_cancelled() {
        return Err(Error::new(ErrorCode::Unavailable, "the server is draining"));
    }
    observation.ends = door.models.ends(&message.model_name);
    let asks = Asks { headers: Some(headers), parameters: Some(&message.parameters) };
    let found = door.models.serving(&message.model_name, &message.model_version, Some(&asks));
    let routed = dispatch::within(call_deadline, found).await.flatten().inspect_err(|_| {
        let (model, version) = (abbreviate(&message.model_name), abbreviate(&message.model_version));
        observation.asked = Some(Box::new((model.to_string(), version.to_string())));
    })?;
    let Some(decided) = &routed.decided else {
        return infer_by(door, &routed, headers, message, reservation, rank, observation).await;
    };
    observation.variant = Some(Arc::clone(&decided.variant.label));
    let answered = infer_by(door, &routed, headers, message, reservation, rank, observation).await;
    decided.variant.tally.count(routed.served.version, &answered, arrived_at.elapsed());
    if answered.is_ok() && observation.is_deferred {
        decided.variant.tally.count_deferred();
    }
    answered
}

/// One request that was routed.
async fn infer_by(
    door: &Door,
    routed: &Routed,
    headers: &HeaderMap,
    message: ModelInferRequest,
    reservation: Reservation,
    rank: Rank,
    observation: &mut Observation,
) -> Result<(ModelInferResponse, Reservation)> {
    let (arrived_at, call_deadline) = (observation.arrived_at, observation.deadline);
    let Routed { served, generation, decided } = routed;
    served.used(arrived_at);
    let prediction_id = PredictionId::new();
    observation.routed_at = Some(Instant::now());
    observation.target = Some(Arc::clone(&served.observed_as));
    observation.prediction_id = Some(prediction_id);
    observation.draft = door.predictions.draft(served, prediction_id);
    if let Some(draft) = &mut observation.draft {
        draft.request.version.clone_from(&message.model_version);
        if decided.is_some()
            && let Some(route) = door.models.live_route(&message.model_name)
        {
            let asks = Asks { headers: Some(headers), parameters: Some(&message.parameters) };
            draft.request.keys = door.content.keys(&served.settings.data_policy, route.keys(&asks));
        }
    }
    let exposures = door.exposures.as_ref();
    observation.exposure =
        exposures.and_then(|exposures| exposures.draft(served, decided.as_deref(), prediction_id));
    let monitors = door.monitors.as_ref();
    observation.seen = monitors.and_then(|monitors| monitors.draft(served, prediction_id));
    let count = |error: &Error| served.count_failure(error, arrived_at.elapsed());
    let is_large = reservation.bytes() > INLINE_MESSAGE_BYTES;
    // Whoever works on the request holds its reservation, also when nobody waits for it any more.
    let work = move || Ok((convert::request(message)?, reservation));
    let converted = dispatch::within(call_deadline, door.prepare.run(is_large, work)).await;
    let (request, reservation) = converted.flatten().inspect_err(count)?;
    if let Some(draft) = &mut observation.draft {
        draft.asked(&door.content, served, &request.tensors);
        let of_call = call_deadline.map(|deadline| deadline.saturating_duration_since(arrived_at));
        draft.request.timeout = request.timeout.into_iter().chain(of_call).min();
        let is_asked = request.priority != Priority::default();
        draft.request.priority = u8::try_from(request.priority.level()).ok().filter(|_| is_asked);
    }
    if let Some(seen) = &mut observation.seen {
        seen.asked(served, &request.tensors);
    }
    let undecided = Draft::new(&door.content, served, &request.tensors);
    request.wanted.check(served.signature()).inspect_err(count)?;
    let default = served.settings.default_timeout.filter(|_| call_deadline.is_none());
    let own_deadline = request.timeout.or(default).and_then(|timeout| arrived_at.checked_add(timeout));
    let shadowed = decided.as_ref().filter(|decided| !decided.lanes.is_empty());
    let shadowed =
        shadowed.map(|decided| (decided.lanes.clone(), request.tensors.clone(), reservation.bytes()));
    let job = Job {
        tensors: request.tensors,
        priority: rank.limit(request.priority),
        arrived_at,
        deadline: own_deadline.into_iter().chain(call_deadline).min(),
        reservation,
        tenant: rank.tenant,
        depth: 0,
    };
    let deadline = job.deadline;
    let (output, reservation) = dispatch::infer(&door.models, served, job, observation).await?;
    if let Some(draft) = &mut observation.draft {
        draft.answered(&door.content, served, &output.tensors);
    }
    if let Some(exposure) = &mut observation.exposure {
        exposure.answered(&door.content, served, &output);
    }
    if let Some(seen) = &mut observation.seen {
        seen.answered(served, &output.tensors);
    }
    if let Some((lanes, tensors, bytes)) = shadowed {
        let asked = Asked::new(served, tensors, &output, prediction_id, bytes);
        observation.offer = Some(Box::new(Offer { lanes, asked }));
    }
    let disposition = match undecided {
        None => Disposition::Answer,
        Some(draft) => {
            // An answer that says it is for people says so once that is on disk.
            let left = leave_to_people(door, served, observation, draft, prediction_id, &output);
            dispatch::within(deadline, Box::pin(left)).await.flatten()?
        }
    };
    let mut response = ModelInferResponse {
        model_name: served.name.to_string(),
        model_version: served.version_text.clone(),
        id: request.id,
        ..ModelInferResponse::default()
    };
    let prediction_id = ParameterChoice::StringParam(prediction_id.to_string());
    let prediction_id = InferParameter { parameter_choice: Some(prediction_id) };
    response.parameters.insert("prediction_id".to_owned(), prediction_id);
    if let Some(decided) = decided {
        let variant = ParameterChoice::StringParam(decided.variant.label.to_string());
        let variant = InferParameter { parameter_choice: Some(variant) };
        response.parameters.insert("variant".to_owned(), variant);
    }
    if *generation > 0 {
        let generation = ParameterChoice::Int64Param(i64::try_from(*generation).unwrap_or(i64::MAX));
        let generation = InferParameter { parameter_choice: Some(generation) };
        response.parameters.insert("routing_generation".to_owned(), generation);
    }
    if disposition != Disposition::Answer {
        let (what, cause) = words(disposition);
        observation.is_deferred = matches!(disposition, Disposition::Defer(_));
        if let Some(draft) = &mut observation.draft {
            draft.review = Some(what);
        }
        for (name, text) in [("review", what), ("review_cause", cause)] {
            let text =
                InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())) };
            response.parameters.insert(name.to_owned(), text);
        }
    }
    // What people decide in the model's place its caller does not see.
    if !matches!(disposition, Disposition::Defer(_)) {
        request.wanted.answer(served.signature(), output, &mut response)?;
    }
    Ok((response, reservation))
}

/// Decides what becomes of an answer, and puts it into the queue if that is for people.
///
/// # Errors
/// As [`Reviews::add`](crate::review::Reviews::add); then it is not there.
async fn leave_to_people(
    door: &Door,
    served: &Served,
    observation: &mut Observation,
    draft: Draft,
    id: PredictionId,
    output: &InferOutput,
) -> Result<Disposition> {
    // A version that leaves something to people is not loaded where there is no queue.
    let Some(reviews) = &door.reviews else { return Ok(Disposition::Answer) };
    let disposition = draft.decide(door.monitors.as_deref(), served, output);
    if disposition != Disposition::Answer {
        let item = draft.item(&door.content, served, observation.variant.as_deref(), disposition, output);
        reviews.add(served.name.clone(), id, &item).await?;
    }
    // Labels come for what people decide. Of what a model is not sure of alone they would say that it is worse than it is: that counts
    // for what people decided, not for what it did.
    let is_withheld = served.settings.review.automation == Automation::Partial
        && matches!(disposition, Disposition::Defer(_));
    if let Some(exposure) = observation.exposure.as_mut().filter(|_| is_withheld) {
        exposure.withhold();
    }
    reviews.count(served, disposition);
    Ok(disposition)
}

/// Decodes a message, with what that takes reserved first. From here on its bytes and its place among its tenant's requests go
/// together.
async fn decode(
    door: &Door,
    received: Result<Received>,
    visit: &Visit,
    deadline: Option<Instant>,
) -> Result<(ModelInferRequest, Reservation)> {
    let decoded = async {
        let (message, mut reservation) = received?;
        if let Some(companion) = visit.companion() {
            reservation.accompany(companion);
        }
        let is_large = message.len() > INLINE_MESSAGE_BYTES;
        let work = move || {
            reservation.grow(weight::decoded_bytes(&message)?)?;
            let request = ModelInferRequest::decode(message)
                .map_err(|error| Error::invalid(format!("the message is no ModelInferRequest: {error}")))?;
            Ok((request, reservation))
        };
        door.prepare.run(is_large, work).await
    };
    dispatch::within(deadline, decoded).await.flatten().inspect_err(|error| {
        if error.code() == ErrorCode::ResourceExhausted {
            door.refused.bytes.fetch_add(1, Ordering::Relaxed);
        }
    })
}

fn respond(body: tonic::body::Body) -> Response<tonic::body::Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer that is only a status.
pub(crate) fn refuse(error: &Error) -> Response<tonic::body::Body> {
    status::of(error).into_http()
}

/// When the caller stops waiting, from `grpc-timeout`: up to eight digits and a unit.
fn call_deadline(headers: &HeaderMap, arrived_at: Instant) -> Result<Option<Instant>> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let timeout =
        value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
            Error::invalid("grpc-timeout: expected one to eight digits and one of H M S m u n")
        })?;
    // A deadline beyond what the clock can say is none.
    Ok(arrived_at.checked_add(timeout))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_parsed_as_the_protocol_says() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("m", None),
            ("5", None),
            ("-5m", None),
            ("123456789m", None),
            ("5é", None),
            ("é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text:?}");
        }
    }
}
