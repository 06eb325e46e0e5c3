//! Webhooks: what happens on this server, told over HTTP to whoever the configuration names. Each event is one CloudEvent, signed as
//! Standard Webhooks has it (<https://www.standardwebhooks.com>). Who tells never waits: an event is offered to the hooks that want
//! it, each of which has a queue and a thread of its own, and what finds no place is dropped and counted. Events are in memory alone:
//! a server that is killed has lost those it had not delivered.

use crate::config::{MAX_WEBHOOKS, Webhook};
use crate::post::{Message, Poster};
use crate::predictions::utc;
use crate::sink::{FLUSH_LIMIT, Inbox, Sink};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use ring::hmac;
use sconce_core::{ModelName, ModelVersion};
use sconce_registry::By;
use sconce_telemetry::metrics::SinkSample;
use sconce_telemetry::traces;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Events that wait for one hook.
const QUEUE: usize = 256;
/// How long after it was told an event is tried again.
const RETRY_FOR: Duration = Duration::from_secs(5 * 60);
/// What an event holds in memory beside its body, about.
const EVENT_BYTES: usize = 256;
/// Names of threads and labels of metrics: the places of the hooks in the configuration.
const NAMES: [&str; MAX_WEBHOOKS] =
    ["webhook-1", "webhook-2", "webhook-3", "webhook-4", "webhook-5", "webhook-6", "webhook-7", "webhook-8"];

/// Who is told.
pub(crate) struct Webhooks {
    hooks: Vec<Hook>,
}

/// Something that happened.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    /// What: `sconce.rollout.promoted.v1`.
    pub(crate) kind: String,
    /// The model it happened to.
    pub(crate) model: &'a ModelName,
    /// The version it is about, if it is about one.
    pub(crate) version: Option<ModelVersion>,
    /// All of it.
    pub(crate) data: Value,
}

struct Hook {
    settings: Webhook,
    sink: Sink<Arc<Told>>,
}

/// An event as it is sent.
struct Told {
    id: String,
    at: Instant,
    body: Bytes,
}

/// What signs the messages of one hook, with each of its secrets: so a receiver may change from one to the other at any time.
struct Signer(Vec<hmac::Key>);

impl Webhooks {
    /// Reads the secrets, and starts a thread for each hook. It blocks.
    ///
    /// # Errors
    /// A secret that cannot be had; when there is no thread.
    pub(crate) fn start(settings: &[Webhook]) -> io::Result<Arc<Self>> {
        let hook = |(settings, name): (&Webhook, &'static str)| {
            let secrets =
                settings.secrets().map_err(|problem| io::Error::other(format!("{name}: {problem}")))?;
            let (signer, url) = (Signer::new(&secrets), settings.url.clone());
            let sink = Sink::start(name, QUEUE, move |inbox| run(&url, &signer, inbox))?;
            Ok(Hook { settings: settings.clone(), sink })
        };
        let hooks = settings.iter().zip(NAMES).map(hook).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { hooks }))
    }

    /// Tells every hook that wants to know. Never waits.
    pub(crate) fn tell(&self, event: Event<'_>) {
        let wanting: Vec<&Hook> = self.hooks.iter().filter(|hook| hook.settings.wants(&event.kind)).collect();
        if wanting.is_empty() {
            return;
        }
        let told = Arc::new(Told::new(event));
        let bytes = EVENT_BYTES + told.body.len();
        wanting.iter().for_each(|hook| hook.sink.offer(Arc::clone(&told), bytes));
    }

    /// Tells what somebody changed by hand, and who and why.
    pub(crate) fn tell_by_hand(
        &self,
        kind: &str,
        model: &ModelName,
        version: Option<ModelVersion>,
        by: &By,
        mut data: Value,
    ) {
        data["by"] = by.actor.as_str().into();
        data["reason"] = by.reason.as_str().into();
        self.tell(Event { kind: kind.to_owned(), model, version, data });
    }

    /// A scrape's view.
    pub(crate) fn sample(&self) -> Vec<SinkSample> {
        self.hooks.iter().map(|hook| hook.sink.sample()).collect()
    }

    /// Tries once more what is left.
    pub(crate) async fn shutdown(&self) {
        futures_util::future::join_all(self.hooks.iter().map(|hook| hook.sink.shutdown())).await;
    }
}

impl Told {
    fn new(event: Event<'_>) -> Self {
        let Event { kind, model, version, data } = event;
        let id = Uuid::now_v7().to_string();
        let source = match version {
            Some(version) => format!("/sconce/models/{model}/versions/{version}"),
            None => format!("/sconce/models/{model}"),
        };
        let mut body = json!({
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": kind,
            "subject": model.as_str(),
            "time": utc(SystemTime::now()),
            "datacontenttype": "application/json",
            "data": data,
        });
        // Of the operation that it happened in, as the extension for distributed tracing has it.
        if let Some(parent) = traces::traceparent() {
            body["traceparent"] = parent.into();
        }
        Self { id, at: Instant::now(), body: body.to_string().into() }
    }
}

impl Signer {
    fn new(secrets: &[Vec<u8>]) -> Self {
        Self(secrets.iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret)).collect())
    }

    /// The message of an event at a time, in seconds since 1970: receivers refuse what was signed long ago.
    fn message(&self, id: &str, timestamp: u64, body: &Bytes) -> Message {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signature = |key| format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(key, &signed)));
        let signatures: Vec<String> = self.0.iter().map(signature).collect();
        let headers = vec![
            ("content-type", "application/cloudevents+json; charset=utf-8".to_owned()),
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ];
        Message { headers, body: body.clone() }
    }
}

/// Delivers events one after the other until it is told to stop.
fn run(url: &str, signer: &Signer, mut inbox: Inbox<Arc<Told>>) {
    let poster = match Poster::new(url) {
        Ok(poster) => poster,
        Err(error) => return inbox.failed(0, &error),
    };
    let (mut next, mut stopped_at) = (Vec::new(), None::<Instant>);
    loop {
        let goes_on = inbox.gather(&mut next, 1);
        if !inbox.pause(Duration::ZERO) {
            stopped_at.get_or_insert_with(Instant::now);
        }
        for offered in next.drain(..) {
            let Told { id, at, body } = &*offered.item;
            let message = || {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                signer.message(id, now.as_secs(), body)
            };
            let delivered = match stopped_at {
                Some(at) if at.elapsed() >= FLUSH_LIMIT => Err("the server stopped".to_owned()),
                _ => poster.deliver(&inbox, *at + RETRY_FOR, message),
            };
            match delivered {
                Ok(()) => inbox.written(1),
                Err(error) => inbox.failed(1, &error),
            }
        }
        if !goes_on {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the example of the specification's reference libraries is signed with, and another.
    #[test]
    fn messages_are_signed_with_each_secret() {
        let known = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signer = Signer::new(&[known, b"another secret of thirty-two byte".to_vec()]);
        let body = Bytes::from_static(br#"{"test": 2432232314}"#);
        let message = signer.message("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, &body);
        let header = |name| message.headers.iter().find(|header| header.0 == name).unwrap().1.as_str();
        assert_eq!(
            header("webhook-signature"),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,kVK1E7U2kFJErO1T4ou/HTBhfd2zlyCCM9J1ElyJ7o0="
        );
        assert_eq!(header("webhook-timestamp"), "1614265330");
        assert_eq!(header("webhook-id"), "msg_p5jXN8AQM9LWM0D4loKWxJek");
    }

    #[test]
    fn an_event_is_a_cloud_event() {
        let model = ModelName::new("m").unwrap();
        let event = |version| Event {
            kind: "sconce.x.v1".to_owned(),
            model: &model,
            version,
            data: json!({ "a": 1 }),
        };
        let told = Told::new(event(ModelVersion::new(3)));
        let body: Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!((&body["specversion"], &body["id"]), (&"1.0".into(), &told.id.into()));
        assert_eq!((&body["type"], &body["subject"]), (&"sconce.x.v1".into(), &"m".into()));
        assert_eq!((&body["source"], &body["data"]["a"]), (&"/sconce/models/m/versions/3".into(), &1.into()));
        let body: Value = serde_json::from_slice(&Told::new(event(None)).body).unwrap();
        assert_eq!(body["source"], "/sconce/models/m");
    }
}
