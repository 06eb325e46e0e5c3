//! `ModelInfer` and `ModelStreamInfer`, straight on HTTP/2: framing, limits and deadlines are ours, so that bytes are
//! bounded before they are buffered and an expired deadline is DEADLINE_EXCEEDED.

use crate::dispatch::{self, Job};
use crate::door::Door;
use crate::grpc::convert;
use crate::grpc::frames::{self, ARRIVAL_LIMIT, MessageReader, UnaryBody};
use crate::grpc::status;
use crate::grpc::weight;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use prost::Message as _;
use sconce_core::{Error, ErrorCode, PredictionId, Reservation, Result};
use sconce_proto::inference::infer_parameter::ParameterChoice;
use sconce_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// Requests of one stream that are worked on at once. Replies keep the order of the requests.
const STREAM_CONCURRENCY: usize = 64;

/// Answers one `ModelInfer` call.
pub(crate) async fn unary<B>(door: &Door, request: Request<B>) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    match infer_unary(door, request).await {
        Ok(answer) => respond(tonic::body::Body::new(UnaryBody::new(answer))),
        Err(error) => refuse(&error),
    }
}

async fn infer_unary<B>(door: &Door, request: Request<B>) -> Result<Bytes>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let arrived_at = Instant::now();
    let (head, body) = request.into_parts();
    let deadline = call_deadline(&head.headers, arrived_at)?;
    let mut reader = MessageReader::new(body, door.budget.clone(), door.limits.max_message_bytes);
    let arrive_by = deadline.into_iter().chain(arrived_at.checked_add(ARRIVAL_LIMIT)).min();
    let message = dispatch::within(arrive_by, reader.next()).await.flatten().inspect_err(|error| {
        if error.code() == ErrorCode::ResourceExhausted {
            door.refused.fetch_add(1, Ordering::Relaxed);
        }
    })?;
    let (message, reservation) = message.ok_or_else(|| Error::invalid("the call carries no message"))?;
    let (request, _decoded) = decode(door, message)?;
    let response = infer(door, request, reservation, arrived_at, deadline).await?;
    frames::encode(&response, &door.budget)
}

/// Answers one `ModelStreamInfer` call: reads requests and gives replies, in order, until the caller ends the stream.
pub(crate) fn streaming<B>(door: Arc<Door>, request: Request<B>) -> Response<tonic::body::Body>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, body) = request.into_parts();
    let deadline = match call_deadline(&head.headers, Instant::now()) {
        Ok(deadline) => deadline,
        Err(error) => return refuse(&error),
    };
    let errors_end_the_stream = head.headers.get("triton_grpc_error").is_some_and(|value| value == "true");
    let reader = MessageReader::new(body, door.budget.clone(), door.limits.max_message_bytes);
    let draining = door.draining.clone();
    let replies = messages(reader, deadline)
        .take_until(async move { draining.cancelled().await })
        .map(move |message| {
            let door = Arc::clone(&door);
            // A task of its own: it comes to its end, and lets go of its model, even when the caller does not read.
            let reply =
                tokio::spawn(
                    async move { stream_reply(&door, message, deadline, errors_end_the_stream).await },
                );
            AbortOnDropHandle::new(reply)
        })
        .buffered(STREAM_CONCURRENCY)
        .map(|reply| {
            reply.unwrap_or_else(|error| Err(Error::internal("the reply was lost").with_source(error)))
        });
    respond(tonic::body::Body::new(StreamBody::new(framed(replies))))
}

/// The messages of a call; the first error, or the deadline, is the last item.
fn messages<B>(
    reader: MessageReader<B>,
    deadline: Option<Instant>,
) -> impl Stream<Item = Result<(Bytes, Reservation)>>
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
    message: Result<(Bytes, Reservation)>,
    deadline: Option<Instant>,
    errors_end_the_stream: bool,
) -> Result<Bytes> {
    let arrived_at = Instant::now();
    let (message, reservation) = message?;
    let mut id = String::new();
    let answered = async {
        let (request, _decoded) = decode(door, message)?;
        id.clone_from(&request.id);
        let response = infer(door, request, reservation, arrived_at, deadline).await?;
        encode_stream_reply(door, String::new(), response)
    };
    match answered.await {
        Err(error) if !errors_end_the_stream => {
            let message = status::of(&error).message().to_owned();
            encode_stream_reply(door, message, ModelInferResponse { id, ..ModelInferResponse::default() })
        }
        answered => answered,
    }
}

fn encode_stream_reply(
    door: &Door,
    error_message: String,
    mut response: ModelInferResponse,
) -> Result<Bytes> {
    let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    response.parameters.insert("triton_final_response".to_owned(), last);
    frames::encode(&ModelStreamInferResponse { error_message, infer_response: Some(response) }, &door.budget)
}

/// One request, from the message to the message.
async fn infer(
    door: &Door,
    mut message: ModelInferRequest,
    reservation: Reservation,
    arrived_at: Instant,
    call_deadline: Option<Instant>,
) -> Result<ModelInferResponse> {
    if door.draining.is_cancelled() {
        return Err(Error::new(ErrorCode::Unavailable, "the server is draining"));
    }
    let served = door.models.route(&message.model_name, &message.model_version)?;
    let prediction_id = PredictionId::new();
    let count = |error: &Error| served.scheduler.count_failure(error, arrived_at.elapsed());
    let request = convert::request(&mut message).inspect_err(count)?;
    request.wanted.check(served.signature()).inspect_err(count)?;
    let own_deadline = request.timeout.and_then(|timeout| arrived_at.checked_add(timeout));
    let job = Job {
        tensors: request.tensors,
        priority: request.priority,
        arrived_at,
        deadline: own_deadline.into_iter().chain(call_deadline).min(),
        reservation: Some(reservation),
    };
    let (output, _record) = dispatch::infer(&door.prepare, &served, job).await?;
    let mut response = ModelInferResponse {
        model_name: message.model_name,
        model_version: served.version_text.clone(),
        id: message.id,
        ..ModelInferResponse::default()
    };
    let prediction_id = ParameterChoice::StringParam(prediction_id.to_string());
    let prediction_id = InferParameter { parameter_choice: Some(prediction_id) };
    response.parameters.insert("prediction_id".to_owned(), prediction_id);
    request.wanted.answer(served.signature(), output, &mut response)?;
    Ok(response)
}

/// Decodes a message, with what that takes reserved first.
fn decode(door: &Door, message: Bytes) -> Result<(ModelInferRequest, Reservation)> {
    let reservation = frames::reserve(&door.budget, weight::decoded_bytes(&message))?;
    let request = ModelInferRequest::decode(message)
        .map_err(|error| Error::invalid(format!("the message is no ModelInferRequest: {error}")))?;
    Ok((request, reservation))
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
