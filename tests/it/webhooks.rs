//! Webhooks: what happens to a rollout is told, signed, until it is taken; who is told harms nobody.

use crate::registry::{Registry, promote, push};
use crate::support::{Posted, Receiver, Running, until};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use ring::hmac;
use sconce_client::TrafficClient;
use sconce_proto::sconce as pb;
use sconce_server::WebhookConfig;
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const MODEL: &str = "scale";
const SECRET: &[u8] = b"what only the two of us may know";

fn hook(url: String, secret: &Path, events: &[&str]) -> WebhookConfig {
    WebhookConfig {
        url,
        secret_file: Some(secret.to_owned()),
        events: events.iter().map(|event| (*event).to_owned()).collect(),
        ..WebhookConfig::default()
    }
}

fn secret(dir: &Path) -> PathBuf {
    let path = dir.join("secret");
    fs::write(&path, format!("whsec_{}\n", BASE64_STANDARD.encode(SECRET))).unwrap();
    path
}

/// A server with two versions of a model, the first of them the champion.
async fn start(data: &Path, webhooks: Vec<WebhookConfig>) -> (Running, Registry, TrafficClient) {
    let server = Running::stored(data, |config| config.webhooks = webhooks).await;
    let (mut registry, traffic) = (server.registry().await, server.traffic().await);
    push(&mut registry, MODEL, 1.0).await;
    push(&mut registry, MODEL, 2.0).await;
    promote(&mut registry, MODEL, "1", "champion").await;
    (server, registry, traffic)
}

/// Begins a rollout that nobody's requests take on, pauses it and aborts it.
async fn begun_paused_and_aborted(traffic: &TrafficClient) {
    let plan = json!({
        "candidate": "2",
        "strategy": { "canary": { "stages": [{ "percent": 10.0, "min_samples": 5 }, { "percent": 100.0 }] } },
        "gates": [{ "metric": "error_rate", "max": 0.1 }],
    });
    let request = pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        reason: "a test".to_owned(),
        dry_run: false,
    };
    traffic.start_rollout(request).await.unwrap();
    let steer = || pb::SteerRolloutRequest { model: MODEL.to_owned(), reason: "a test".to_owned() };
    traffic.pause_rollout(steer()).await.unwrap();
    traffic.abort_rollout(steer()).await.unwrap();
}

fn kinds(posted: &[Posted]) -> Vec<String> {
    posted.iter().map(|posted| posted.json()["type"].as_str().unwrap().to_owned()).collect()
}

fn check_signature(posted: &Posted) {
    let (id, timestamp) = (&posted.headers["webhook-id"], &posted.headers["webhook-timestamp"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(timestamp.parse().unwrap()) < 300, "{timestamp}");
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &posted.body].concat();
    let signature = posted.headers["webhook-signature"].strip_prefix("v1,").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    hmac::verify(&key, &signed, &BASE64_STANDARD.decode(signature).unwrap()).unwrap();
    assert_eq!(posted.json()["id"], id.as_str());
    assert_eq!(posted.headers["content-type"], "application/cloudevents+json; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_told_in_order_signed_and_again_until_it_is_taken() {
    let data = tempfile::tempdir().unwrap();
    let (all, ends, spoiled) =
        (Receiver::start([500, 429]).await, Receiver::start([]).await, Receiver::start([400]).await);
    let secret = secret(data.path());
    let of_rollouts = ["sconce.rollout.*"];
    let webhooks = vec![
        hook(all.url(), &secret, &of_rollouts),
        hook(ends.url(), &secret, &["sconce.other.*", "sconce.rollout.aborted.v1"]),
        hook(spoiled.url(), &secret, &[]),
        hook(ends.url(), &secret, &["sconce.other.*"]),
    ];
    let (server, _registry, traffic) = start(&data.path().join("data"), webhooks).await;
    begun_paused_and_aborted(&traffic).await;
    let count = |hook: u8, status: &str| {
        format!("sconce_webhook_events_total{{hook=\"webhook-{hook}\",status=\"{status}\"}}")
    };
    server.until_metric(&count(1, "written"), 3).await;
    server.until_metric(&count(2, "written"), 1).await;
    // What a receiver says is wrong is wrong the next time too.
    server.until_metric(&count(3, "written"), 3).await;
    assert_eq!(server.metric(&count(3, "failed")).await, 1);
    assert_eq!(server.metric(&count(4, "written")).await, 0);

    let events = all.taken();
    let told = ["stage_began", "paused", "aborted"].map(|kind| format!("sconce.rollout.{kind}.v1"));
    assert_eq!(kinds(&events), told);
    assert_eq!(kinds(&ends.posted()), told[2..]);
    // Who wants all is told of the promotion by hand as well: that is what was refused.
    let all_of_it = [vec!["sconce.model.promoted.v1".to_owned()], told.to_vec()].concat();
    assert_eq!(kinds(&spoiled.posted()), all_of_it);
    // Tried again it is the same event, and signed anew.
    let posted = all.posted();
    assert_eq!(posted.iter().map(|posted| posted.status).collect::<Vec<_>>(), [500, 429, 202, 202, 202]);
    assert!(posted[..2].iter().all(|one| one.body == posted[2].body), "{posted:?}");
    posted.iter().chain(&ends.posted()).for_each(check_signature);

    let [began, paused, aborted] = [0, 1, 2].map(|at: usize| events[at].json());
    assert_eq!((&began["specversion"], &began["subject"]), (&"1.0".into(), &MODEL.into()));
    assert_eq!(began["source"], "/sconce/models/scale/versions/2");
    let state = |event: &Value| {
        let data = &event["data"];
        ["state", "stage", "stages", "percent", "candidate_version", "control_version"]
            .map(|key| data[key].clone())
    };
    assert_eq!(state(&began), [json!("running"), 1.into(), 2.into(), 10.0.into(), 2.into(), 1.into()]);
    assert_eq!(state(&paused), [json!("paused"), 1.into(), 2.into(), 10.0.into(), 2.into(), 1.into()]);
    assert_eq!(state(&aborted), [json!("aborted"), 1.into(), 2.into(), 0.0.into(), 2.into(), 1.into()]);
    let said = traffic.get_rollout(pb::GetRolloutRequest { model: MODEL.to_owned() }).await.unwrap();
    for (event, told) in said.events.iter().zip([began, paused, aborted]) {
        assert_eq!(
            (&told["data"]["sentence"], &told["data"]["at_ms"]),
            (&event.sentence.as_str().into(), &event.at_ms.into())
        );
        assert_eq!(told["data"]["gates"].as_array().unwrap().len(), event.gates.len());
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_dead_or_hangs_harms_nobody() {
    let data = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    // Connections are made, and nobody answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (receiver, secret) = (Receiver::start([]).await, secret(data.path()));
    let hanging = format!("http://{}/", silent.local_addr().unwrap());
    let urls = [format!("http://{nobody}/"), hanging, receiver.url()];
    let webhooks = urls.into_iter().map(|url| hook(url, &secret, &[])).collect();
    let (server, _registry, traffic) = start(&data.path().join("data"), webhooks).await;
    for _ in 0..3 {
        begun_paused_and_aborted(&traffic).await;
    }
    until("who answers is told everything", async || receiver.taken().len() == 10).await;
    for hook in ["webhook-1", "webhook-2"] {
        // The first is being tried.
        let waiting = format!("sconce_webhook_queue_depth{{hook=\"{hook}\"}}");
        assert!(server.metric(&waiting).await >= 8);
        let written = format!("sconce_webhook_events_total{{hook=\"{hook}\",status=\"written\"}}");
        assert_eq!(server.metric(&written).await, 0);
    }
    server.shutdown().await;
}
