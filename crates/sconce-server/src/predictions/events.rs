//! Records as CloudEvents over HTTP, in batches of the JSON format.

use super::Record;
use crate::post::{Message, Poster};
use crate::sink::{FLUSH_LIMIT, Inbox, Offered};
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events of one message, and their bytes before they are JSON.
const BATCH_EVENTS: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// How long an event waits for others.
const SEND_AFTER: Duration = Duration::from_secs(1);
/// How long a batch is tried again: what comes meanwhile waits.
const RETRY_FOR: Duration = Duration::from_secs(3);
const CONTENT_TYPE: &str = "application/cloudevents-batch+json; charset=utf-8";

/// Sends what comes to `url` until it is told to stop.
pub(super) fn run(url: &str, mut inbox: Inbox<Arc<Record>>) {
    let poster = match Poster::new(url) {
        Ok(poster) => poster,
        Err(error) => return inbox.failed(0, &error),
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
            let headers = || vec![("content-type", CONTENT_TYPE.to_owned())];
            let message = || Message { headers: headers(), body: body.clone() };
            match poster.deliver(&inbox, Instant::now() + RETRY_FOR, message) {
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
        let mut event = json!({
            "specversion": "1.0",
            "id": data["prediction_id"],
            "source": format!("/sconce/models/{}/versions/{}", offered.item.model, offered.item.version),
            "type": "sconce.prediction.v1",
            "subject": &*offered.item.model,
            "time": data["time"],
            "datacontenttype": "application/json",
            "data": data,
        });
        // As the extension for distributed tracing has it. B3 is none of it.
        for (name, value) in offered.item.trace.headers().filter(|(name, _)| name.starts_with("trace")) {
            event[name] = value.into();
        }
        event
    };
    serde_json::Value::from(events.iter().map(event).collect::<Vec<_>>()).to_string()
}
