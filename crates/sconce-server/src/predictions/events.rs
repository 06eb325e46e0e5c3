//! Records as CloudEvents over HTTP, in batches of the JSON format.

use super::{Record, check_url};
use crate::sink::{FLUSH_LIMIT, Inbox, Offered};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// Events of one message, and their bytes before they are JSON.
const BATCH_EVENTS: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// How long an event waits for others.
const SEND_AFTER: Duration = Duration::from_secs(1);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often a batch is tried, and the first pause, which doubles.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// What is read of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// Sends what comes to `url` until it is told to stop.
pub(super) fn run(url: &str, mut inbox: Inbox<Arc<Record>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, uri) = match (runtime, check_url(url)) {
        (Ok(runtime), Ok(uri)) => (runtime, uri),
        (Err(error), _) => return inbox.failed(0, &error),
        (_, Err(error)) => return inbox.failed(0, &error),
    };
    let mut pending: Vec<Offered<Arc<Record>>> = Vec::new();
    let (mut since, mut stopped_at) = (Instant::now(), None::<Instant>);
    loop {
        if pending.is_empty() {
            since = Instant::now();
        }
        let go_on = inbox.gather(&mut pending, BATCH_EVENTS);
        if !go_on {
            stopped_at.get_or_insert_with(Instant::now);
        }
        let bytes = || pending.iter().map(|offered| offered.item.bytes()).sum::<usize>();
        let due = !go_on
            || pending.len() >= BATCH_EVENTS
            || since.elapsed() >= SEND_AFTER
            || bytes() >= BATCH_BYTES;
        if due && !pending.is_empty() {
            let events = std::mem::take(&mut pending);
            let body = Bytes::from(batch(&events));
            // At the end there is one attempt, and no time for pauses.
            let attempts = if stopped_at.is_some() { 1 } else { ATTEMPTS };
            match runtime.block_on(deliver(&uri, &body, attempts)) {
                Ok(()) => inbox.written(events.len()),
                Err(error) => inbox.failed(events.len(), &error),
            }
        }
        if !go_on || stopped_at.is_some_and(|at| at.elapsed() >= FLUSH_LIMIT) {
            return;
        }
    }
}

/// Events as their specification (version 1.0) has a batch in JSON.
fn batch(events: &[Offered<Arc<Record>>]) -> String {
    let event = |offered: &Offered<Arc<Record>>| {
        let data = offered.item.to_json();
        json!({
            "specversion": "1.0",
            "id": data["prediction_id"],
            "source": format!("/sconce/models/{}/versions/{}", offered.item.model, offered.item.version),
            "type": "sconce.prediction.v1",
            "subject": &*offered.item.model,
            "time": data["time"],
            "datacontenttype": "application/json",
            "data": data,
        })
    };
    serde_json::Value::from(events.iter().map(event).collect::<Vec<_>>()).to_string()
}

async fn deliver(uri: &Uri, body: &Bytes, attempts: u32) -> Result<(), String> {
    let mut pause = PAUSE;
    for attempt in 1..=attempts {
        let error = match tokio::time::timeout(ATTEMPT, post(uri, body)).await {
            Ok(Ok(status)) if status.is_success() => return Ok(()),
            Ok(Ok(status)) => {
                let again = status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                if !again {
                    return Err(format!("{uri} answered {status}"));
                }
                format!("{uri} answered {status}")
            }
            Ok(Err(error)) => format!("{uri}: {error}"),
            Err(_) => format!("{uri} did not answer within {ATTEMPT:?}"),
        };
        if attempt == attempts {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(())
}

/// One message on a connection of its own; a batch a second at most is no reason to keep one.
async fn post(uri: &Uri, body: &Bytes) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/cloudevents-batch+json; charset=utf-8")
        .body(Full::new(body.clone()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    // Whoever answers at length has answered all the same.
    let _ = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    Ok(status)
}
