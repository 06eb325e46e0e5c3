//! Experiments that the server acts on by itself: guardrails that stop one, a bandit that moves its shares.

use crate::feedback::{MODEL, WRITTEN, ask, feedback, outcome, record, split};
use crate::registry::{promote, push};
use crate::support::{Receiver, Running, until};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::outcome::Value;
use sconce_client::{Client, Code, TrafficClient};
use sconce_server::WebhookConfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// A server with two versions of a model, half of its users with each, and the webhook that it tells.
async fn start(data: &Path, hook: &Receiver) -> (Running, Client, TrafficClient) {
    let secret = data.join("secret");
    std::fs::write(&secret, format!("whsec_{}", BASE64_STANDARD.encode([7; 32]))).unwrap();
    let server = open(data, hook).await;
    let mut registry = server.registry().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    let (client, traffic) = (server.client().await, server.traffic().await);
    split(&traffic).await;
    (server, client, traffic)
}

async fn open(data: &Path, hook: &Receiver) -> Running {
    let webhook =
        WebhookConfig { url: hook.url(), secret_file: Some(data.join("secret")), ..WebhookConfig::default() };
    Running::stored(&data.join("data"), |config| config.webhooks = vec![webhook]).await
}

async fn begin(traffic: &TrafficClient, rest: serde_json::Value) -> sconce_client::Result<pb::Experiment> {
    let arms = ["old", "new"].map(|variant| json!({ "variant": variant, "weight": 1.0 }));
    let mut spec = json!({ "arms": arms });
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    let request = pb::StartExperimentRequest {
        model: MODEL.to_owned(),
        spec_json: spec.to_string(),
        reason: "a test".to_owned(),
    };
    traffic.start_experiment(request).await
}

async fn experiment(traffic: &TrafficClient) -> pb::Experiment {
    traffic.get_experiment(pb::GetExperimentRequest { model: MODEL.to_owned() }).await.unwrap()
}

/// The share of each variant, in percent.
async fn shares(traffic: &TrafficClient) -> BTreeMap<String, f64> {
    let route = traffic.get_route(pb::GetRouteRequest { model: MODEL.to_owned() }).await.unwrap();
    route.spec.unwrap().splits.into_iter().map(|split| (split.variant, split.percent)).collect()
}

async fn set_route(traffic: &TrafficClient) -> sconce_client::Result<pb::Route> {
    let route = traffic.get_route(pb::GetRouteRequest { model: MODEL.to_owned() }).await.unwrap();
    let (model, spec) = (MODEL.to_owned(), route.spec);
    traffic.set_route(pb::SetRouteRequest { model, spec, ..Default::default() }).await
}

fn told(hook: &Receiver, kind: &str) -> Vec<serde_json::Value> {
    hook.taken().iter().map(|posted| posted.json()).filter(|event| event["type"] == kind).collect()
}

/// Users `from` to `to` come once each, and what `happens` to those of a variant is recorded under `metric`. Gives the variant of each.
async fn come(
    server: &Running,
    client: &Client,
    users: std::ops::Range<usize>,
    metric: &str,
    happens: impl Fn(usize, &str) -> bool,
) -> Vec<String> {
    let (mut variants, mut outcomes) = (Vec::new(), Vec::new());
    let before = server.metric(WRITTEN).await;
    let count = users.len() as u64;
    for user in users {
        let (id, variant) = ask(client, &format!("user-{user}")).await;
        let variant = variant.unwrap();
        if happens(user, &variant) {
            outcomes.push(outcome(&id, metric, Value::Converted(true)));
        }
        variants.push(variant);
    }
    server.until_metric(WRITTEN, before + count).await;
    let sender = feedback(server.grpc()).await;
    for outcomes in outcomes.chunks(1000) {
        record(&sender, outcomes.to_vec()).await;
    }
    variants
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guardrail_that_breaks_gives_all_to_the_control_and_that_lasts() {
    let (data, hook) = (tempfile::tempdir().unwrap(), Receiver::start([]).await);
    let (server, client, traffic) = start(data.path(), &hook).await;
    let metrics = json!({ "metrics": [
        { "name": "buys", "kind": "conversion" },
        { "name": "complains", "kind": "conversion", "higher_is_better": false, "max_harm": 0.02 },
    ] });
    assert!(begin(&traffic, metrics).await.unwrap().running);
    // A rollout would move the shares.
    let plan = r#"{ "candidate": "2", "strategy": { "canary": { "stages": [{ "percent": 100 }] } } }"#;
    let request = pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_owned(),
        reason: String::new(),
        dry_run: true,
    };
    let refused = traffic.start_rollout(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("stop the experiment first"), "{refused}");

    // Four in ten complain of the new one, and one in ten of the old one.
    let complains = |user: usize, variant: &str| user % 10 < if variant == "new" { 4 } else { 1 };
    come(&server, &client, 0..400, "complains", complains).await;
    until("the experiment to be stopped", async || !experiment(&traffic).await.running).await;
    let stopped = experiment(&traffic).await;
    assert!(stopped.stopped_because.starts_with("new breaks the guardrail complains"), "{stopped:?}");
    assert_eq!(shares(&traffic).await, [("new".to_owned(), 0.0), ("old".to_owned(), 100.0)].into());
    for user in 0..20 {
        assert_eq!(ask(&client, &format!("user-{user}")).await.1.as_deref(), Some("old"));
    }
    until("it is told", async || !told(&hook, "sconce.experiment.stopped.v1").is_empty()).await;
    assert_eq!(told(&hook, "sconce.experiment.started.v1")[0]["data"]["reason"], "a test");
    let event = &told(&hook, "sconce.experiment.stopped.v1")[0];
    let data_of = |key: &str| event["data"][key].clone();
    assert_eq!(
        (data_of("cause"), data_of("metric"), data_of("variant")),
        ("guardrail".into(), "complains".into(), "new".into())
    );
    assert_eq!(
        (data_of("by"), data_of("shares")),
        ("experiment".into(), json!({ "old": 100.0, "new": 0.0 }))
    );
    assert!(data_of("low").as_f64().unwrap() > 0.02, "{event}");
    // By hand it is told as well, and nobody stands in the way any more.
    set_route(&traffic).await.unwrap();
    until("the route is told", async || told(&hook, "sconce.route.set.v1").len() == 2).await;
    server.shutdown().await;

    let server = open(data.path(), &hook).await;
    let traffic = server.traffic().await;
    assert_eq!(experiment(&traffic).await.stopped_because, stopped.stopped_because);
    assert_eq!(shares(&traffic).await["old"], 100.0);
    assert_eq!(told(&hook, "sconce.model.promoted.v1")[0]["data"]["alias"], "champion");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandit_moves_shares_to_the_better_arm_within_its_floor_over_restarts() {
    let (data, hook) = (tempfile::tempdir().unwrap(), Receiver::start([]).await);
    let (server, client, traffic) = start(data.path(), &hook).await;
    let spec = json!({
        "metrics": [{ "name": "buys", "kind": "conversion" }],
        "bandit": { "metric": "buys", "floor_percent": 10.0, "every_seconds": 1 },
    });
    begin(&traffic, spec).await.unwrap();
    let refused = set_route(&traffic).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("a bandit moves the shares"), "{refused}");

    let buys = |user: usize, variant: &str| user % 10 < if variant == "new" { 5 } else { 1 };
    let before = come(&server, &client, 0..300, "buys", buys).await;
    // Who has nine in ten has all that the floor leaves.
    until("shares to move", async || shares(&traffic).await["new"] > 85.0).await;
    let moved = shares(&traffic).await;
    assert!((moved["old"] + moved["new"] - 100.0).abs() < 1e-9 && moved["old"] >= 10.0, "{moved:?}");
    // Who was with the better one stays there; of the others some came to it.
    let mut changed = 0;
    for (user, variant) in before.iter().enumerate() {
        let now = ask(&client, &format!("user-{user}")).await.1.unwrap();
        assert!(now == *variant || (variant == "old" && now == "new"), "{variant} {now}");
        changed += usize::from(now != *variant);
    }
    assert!(changed > 0);
    until("it is told", async || !told(&hook, "sconce.experiment.shares_moved.v1").is_empty()).await;
    server.shutdown().await;

    // The next server goes on from there, and new users who come by other shares are no sample that is off.
    let server = open(data.path(), &hook).await;
    let (client, traffic) = (server.client().await, server.traffic().await);
    assert!(shares(&traffic).await["new"] > 80.0);
    come(&server, &client, 1000..1400, "buys", buys).await;
    let now = experiment(&traffic).await;
    let report: serde_json::Value = serde_json::from_str(&now.report_json).unwrap();
    assert_eq!((now.running, report["sample_ratio"]["mismatch"].clone()), (true, false.into()));
    assert!(
        !now.moves.is_empty() && now.moves.iter().all(|moved| moved.percents.iter().sum::<f64>() > 99.99)
    );
    // The worse one now does better by far: shares come back.
    let buys = |_: usize, variant: &str| variant == "old";
    come(&server, &client, 2000..4000, "buys", buys).await;
    until("shares to come back", async || shares(&traffic).await["old"] > 50.0).await;
    let stop = pb::StopExperimentRequest { model: MODEL.to_owned(), reason: String::new() };
    assert!(!traffic.stop_experiment(stop).await.unwrap().running);
    set_route(&traffic).await.unwrap();
    server.shutdown().await;
}
