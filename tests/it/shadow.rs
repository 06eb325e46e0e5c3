//! Shadows: what they show, and that callers notice nothing of them, whatever becomes of them.

use crate::registry::{Registry, promote, push, send, upload_of};
use crate::support::{Folder, Running, Traffic, identity_request, matrix, patiently, until};
use futures_util::future::join_all;
use sconce_client::{Client, Code, InferRequest, TrafficClient};
use sconce_proto::sconce as pb;
use tempfile::TempDir;

const MODEL: &str = "seen";

async fn start() -> (TempDir, Running, Client, Registry, TrafficClient) {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, registry, traffic) =
        (server.client().await, server.registry().await, server.traffic().await);
    (data, server, client, registry, traffic)
}

/// Registers a version that gives its input back, with more lines of `model.toml`.
async fn push_identity(registry: &mut Registry, more: &str) {
    let folder = Folder::new();
    folder.identity("m/1", more);
    send(registry, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
}

/// All requests to the champion, and a shadow of version 2.
fn shadowed(shadow: pb::Shadow) -> pb::RouteSpec {
    let split =
        pb::Split { variant: "primary".to_owned(), target: "champion".to_owned(), percent: 100.0, id: None };
    pb::RouteSpec { splits: vec![split], shadows: vec![shadow], ..Default::default() }
}

fn shadow() -> pb::Shadow {
    pb::Shadow { variant: "candidate".to_owned(), target: "2".to_owned(), ..Default::default() }
}

async fn set(traffic: &TrafficClient, spec: pb::RouteSpec) -> pb::Route {
    let request = pb::SetRouteRequest { model: MODEL.to_owned(), spec: Some(spec), ..Default::default() };
    traffic.set_route(request).await.unwrap()
}

async fn report(traffic: &TrafficClient) -> pb::Shadowed {
    let request = pb::ShadowReportRequest { model: MODEL.to_owned(), variant: String::new() };
    traffic.shadow_report(request).await.unwrap().shadows.remove(0)
}

/// What became of all that was offered, when it became something.
async fn settled(traffic: &TrafficClient, offered: u64) -> pb::Shadowed {
    let ended = |it: &pb::Shadowed| it.compared + sum(&it.dropped) + sum(&it.failed);
    until("everything offered to end", async || {
        let report = report(traffic).await;
        report.offered == offered && ended(&report) == offered
    })
    .await;
    report(traffic).await
}

fn sum(counts: &std::collections::BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

async fn ready(registry: &mut Registry, version: &str) {
    let request = pb::GetVersionRequest { model: MODEL.to_owned(), version: version.to_owned() };
    until("the candidate", async || {
        registry.get_version(request.clone()).await.unwrap().into_inner().state() == pb::VersionState::Ready
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_sees_every_request_and_answers_none() {
    let (_data, server, client, mut registry, traffic) = start().await;
    for factor in [1.0, 1.5] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    let ask = async |value: f32| {
        let answer =
            client.infer(InferRequest::new(MODEL).input("features", matrix(&[[value]]))).await.unwrap();
        assert_eq!(answer.model_version, "1");
        assert_eq!(answer.output("prediction").unwrap().f32_values().next(), Some(value));
    };
    ask(1.0).await;
    set(&traffic, shadowed(shadow())).await;
    ready(&mut registry, "2").await;
    // One after the other, so that there is room for each.
    for number in 1..=40_u64 {
        ask(if number % 4 == 0 { 0.0 } else { 2.0 }).await;
        settled(&traffic, number).await;
    }
    let seen = report(&traffic).await;
    assert_eq!((seen.version, &seen.primaries), (2, &[(1, 40)].into()));
    assert_eq!((seen.compared, seen.identical, seen.waiting, seen.running), (40, 10, 0, 0), "{seen:?}");
    // What it comes to by output: three in four are beyond any tolerance.
    let comparison: serde_json::Value = serde_json::from_str(&seen.comparison_json).unwrap();
    assert_eq!(
        (&comparison["pairs"], &comparison["verdict"]),
        (&40.into(), &"different".into()),
        "{comparison}"
    );
    // 2 and 3 are 1 apart, and 0 is 0.
    assert_eq!(seen.differences, [(i32::MIN, 10), (0, 30)].into());
    assert!(seen.primary_ms.unwrap().p50 > 0.0 && seen.candidate_ms.unwrap().p50 > 0.0);
    let compared = format!("sconce_shadow_compared_total{{model=\"{MODEL}\",variant=\"candidate\"}}");
    assert_eq!(server.metric(&compared).await, 40);
    server.until_metric("sconce_shadow_bytes", 0).await;

    let sampled = pb::Shadow { sample: Some(0.25), ..shadow() };
    set(&traffic, shadowed(sampled)).await;
    for _ in 0..400 {
        ask(2.0).await;
    }
    // Binomial with p = 0.25 of 400, beside the 40 from before: 100 ± 5.8 standard deviations.
    let seen = report(&traffic).await;
    assert!((90..=190).contains(&seen.offered), "{}", seen.offered);

    // Watched until the last shadow is gone.
    let request =
        pb::WatchShadowRequest { model: MODEL.to_owned(), variant: String::new(), interval_ms: 100 };
    let mut watched = traffic.watch_shadow(request).await.unwrap();
    assert_eq!(watched.next().await.unwrap().unwrap().shadows.len(), 1);
    traffic
        .clear_route(pb::ClearRouteRequest { model: MODEL.to_owned(), ..Default::default() })
        .await
        .unwrap();
    let ended = async { while watched.next().await.unwrap().is_some() {} };
    patiently("the end of the watch", ended).await;
    let request = pb::ShadowReportRequest { model: MODEL.to_owned(), variant: String::new() };
    assert_eq!(traffic.shadow_report(request).await.unwrap_err().code(), Code::NotFound);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_panics_is_counted_and_held_back_and_callers_notice_nothing() {
    let (_data, server, client, mut registry, traffic) = start().await;
    push_identity(&mut registry, "").await;
    // What it is warmed up with is no 1.5.
    push_identity(&mut registry, "panics = true\nonly_for = 1.5").await;
    promote(&mut registry, MODEL, "1", "champion").await;
    set(&traffic, shadowed(shadow())).await;
    ready(&mut registry, "2").await;
    let mut asked = 0;
    until("a shadow that is held back", async || {
        let answer = client.infer(identity_request(MODEL, 1)).await.unwrap();
        assert_eq!(answer.model_version, "1");
        asked += 1;
        settled(&traffic, asked).await.dropped.contains_key("held_back")
    })
    .await;
    let seen = report(&traffic).await;
    assert!(seen.compared == 0 && seen.failed["INTERNAL"] >= 3, "{seen:?}");
    assert!(seen.explanations.iter().any(|why| why.starts_with("INTERNAL: ")), "{seen:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_hangs_is_given_up_and_callers_notice_nothing() {
    let (_data, server, _, mut registry, traffic) = start().await;
    push_identity(&mut registry, "").await;
    push_identity(&mut registry, "delay_ms = 12000\nonly_for = 1.5\ninstances = 1").await;
    promote(&mut registry, MODEL, "1", "champion").await;
    set(&traffic, shadowed(shadow())).await;
    ready(&mut registry, "2").await;
    let lanes = join_all((0..2).map(|_| server.client())).await;
    let flowing = Traffic::start(lanes, |client, _| async move {
        let answer = client.infer(identity_request(MODEL, 1)).await?;
        assert_eq!(answer.model_version, "1");
        Ok(())
    });
    until("a shadow that was given up", async || {
        report(&traffic).await.failed.contains_key("DEADLINE_EXCEEDED")
    })
    .await;
    flowing.flow(50).await;
    let failures = flowing.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    let seen = report(&traffic).await;
    assert_eq!(seen.compared, 0, "{seen:?}");
    // No room for most, and none is let at it any more.
    assert!(seen.dropped.contains_key("queue") && seen.dropped.contains_key("held_back"), "{seen:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_answers_garbage_or_is_not_there_is_told_of() {
    let (_data, server, client, mut registry, traffic) = start().await;
    push(&mut registry, MODEL, 1.0).await;
    // Of another form altogether.
    let folder = Folder::new();
    folder.linear("m/1", 1, &[f32::MAX, -1.0]);
    send(&mut registry, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    // What cannot be loaded, and what takes another input.
    let folder = Folder::new();
    folder.linear("m/1", 2, &[1.0, 1.0]);
    send(&mut registry, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    promote(&mut registry, MODEL, "1", "champion").await;
    let target = |target: &str| shadowed(pb::Shadow { target: target.to_owned(), ..shadow() });
    let ask = async || {
        let request = InferRequest::new(MODEL).input("features", matrix(&[[2.0]]));
        assert_eq!(client.infer(request).await.unwrap().model_version, "1");
    };
    set(&traffic, target("2")).await;
    ready(&mut registry, "2").await;
    for number in 1..=5 {
        ask().await;
        settled(&traffic, number).await;
    }
    let seen = report(&traffic).await;
    assert!(seen.identical == 0 && seen.compared + sum(&seen.failed) + sum(&seen.dropped) == 5, "{seen:?}");

    // Another candidate is another report.
    set(&traffic, target("3")).await;
    ready(&mut registry, "3").await;
    for number in 1..=5 {
        ask().await;
        settled(&traffic, number).await;
    }
    let seen = report(&traffic).await;
    assert!(seen.compared == 0 && seen.failed["INVALID_ARGUMENT"] >= 3, "{seen:?}");
    assert!(seen.explanations[0].contains("features"), "{seen:?}");
    server.shutdown().await;
}
