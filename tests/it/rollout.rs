//! Rollouts: a good candidate is promoted and a bad one rolled back, on real traffic; people may steer them; a kill at any time changes
//! nothing about where they stand.

use crate::registry::{Registry, promote, push, send, upload_of};
use crate::support::{Folder, Running, Traffic, connect, identity_request, matrix, patiently, until};
use futures_util::future::join_all;
use sconce_client::{Client, Code, Error, InferRequest, Options, TrafficClient};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::registry_client::RegistryClient;
use sconce_server::{Server, ServerConfig, StartError};
use serde_json::{Value, json};
use std::env;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use tempfile::TempDir;
use tonic::transport::Endpoint;

const MODEL: &str = "scale";

async fn start() -> (TempDir, Running, Client, Registry, TrafficClient) {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, registry, traffic) =
        (server.client().await, server.registry().await, server.traffic().await);
    (data, server, client, registry, traffic)
}

/// A server with versions that multiply by these factors, the first of them the champion.
async fn scaling(factors: &[f32]) -> (TempDir, Running, Client, Registry, TrafficClient) {
    let (data, server, client, mut registry, traffic) = start().await;
    for factor in factors {
        push(&mut registry, MODEL, *factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    (data, server, client, registry, traffic)
}

/// A server whose champion gives its input back, and whose version 2 does with more lines of `model.toml`.
async fn echoing(more: &str) -> (TempDir, Running, Registry, TrafficClient) {
    let (data, server, _, mut registry, traffic) = start().await;
    for more in ["", more] {
        let folder = Folder::new();
        folder.identity("m/1", more);
        send(&mut registry, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    (data, server, registry, traffic)
}

fn stage(percent: f64, min_samples: u64) -> Value {
    json!({ "percent": percent, "min_seconds": 0, "min_samples": min_samples })
}

fn canary(stages: &[Value], gates: &[Value]) -> Value {
    json!({ "candidate": "2", "strategy": { "canary": { "stages": stages } }, "gates": gates })
}

async fn begin(traffic: &TrafficClient, plan: &Value) -> Result<pb::Rollout, Error> {
    let request = pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        reason: "a test".to_owned(),
        dry_run: false,
    };
    traffic.start_rollout(request).await
}

async fn get(traffic: &TrafficClient) -> Result<pb::Rollout, Error> {
    traffic.get_rollout(pb::GetRolloutRequest { model: MODEL.to_owned() }).await
}

async fn route(traffic: &TrafficClient) -> Result<pb::Route, Error> {
    traffic.get_route(pb::GetRouteRequest { model: MODEL.to_owned() }).await
}

fn steering() -> pb::SteerRolloutRequest {
    pb::SteerRolloutRequest { model: MODEL.to_owned(), reason: "a test".to_owned() }
}

/// All that is said of a rollout until it has ended.
async fn watched(traffic: &TrafficClient) -> Vec<pb::Rollout> {
    let request = pb::GetRolloutRequest { model: MODEL.to_owned() };
    let mut watch = traffic.watch_rollout(request).await.unwrap();
    let mut seen = Vec::new();
    let to_its_end = async {
        while let Some(rollout) = watch.next().await.unwrap() {
            seen.push(rollout);
        }
    };
    patiently("the end of the rollout", to_its_end).await;
    seen
}

async fn champion(registry: &mut Registry) -> u64 {
    let request = pb::GetModelRequest { model: MODEL.to_owned() };
    registry.get_model(request).await.unwrap().into_inner().aliases["champion"].version
}

async fn audit(registry: &mut Registry) -> Vec<pb::AuditEntry> {
    let request = pb::ListAuditRequest { model: MODEL.to_owned(), page_size: 1_000, after: 0 };
    registry.list_audit(request).await.unwrap().into_inner().entries
}

/// The candidate's share after each change of the route, by the audit trail; `None`: there is no route.
fn shares(entries: &[pb::AuditEntry]) -> Vec<Option<f64>> {
    let changes = entries.iter().filter(|entry| entry.document == "traffic");
    let share = |entry: &pb::AuditEntry| {
        let after: Value = serde_json::from_str(&entry.after_json).ok()?;
        let splits = after["spec"]["splits"].as_array().unwrap();
        let candidate = splits.iter().find(|split| split["target"] == "2").unwrap();
        Some(candidate["percent"].as_f64().unwrap())
    };
    changes.map(share).collect()
}

fn request() -> InferRequest {
    InferRequest::new(MODEL).input("features", matrix(&[[1.0]]))
}

async fn ask(client: &Client) -> Result<String, Error> {
    Ok(client.infer(request()).await?.model_version)
}

/// Requests that never fail.
async fn flowing(server: &Running) -> Traffic {
    let lanes = join_all((0..4).map(|_| server.client())).await;
    Traffic::start(lanes, |client, _| async move { ask(&client).await.map(drop) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_candidate_goes_through_its_stages_is_promoted_and_no_request_fails() {
    let (_data, server, client, mut registry, traffic) = scaling(&[1.0, 2.0]).await;
    let lanes = flowing(&server).await;
    let gates = [
        json!({ "metric": "error_rate", "vs_control": 0.0 }),
        json!({ "metric": "success_rate", "min": 0.9 }),
        json!({ "metric": "latency", "quantile": 0.5, "max_ms": 60_000 }),
    ];
    let stages = [stage(10.0, 30), stage(50.0, 30), stage(100.0, 30)];
    let begun = begin(&traffic, &canary(&stages, &gates)).await.unwrap();
    assert_eq!((begun.state(), begun.stage, begun.stages), (pb::RolloutState::Running, 1, 3));
    assert_eq!((begun.candidate_version, begun.control_version, begun.percent), (2, 1, 10.0));
    let state = format!("sconce_rollout_state{{model=\"{MODEL}\",state=\"running\"}}");
    assert_eq!(server.metric(&state).await, 1);
    let seen = watched(&traffic).await;
    let last = seen.last().unwrap();
    assert_eq!((last.state(), last.percent), (pb::RolloutState::Promoted, 100.0), "{last:?}");
    assert!(
        last.gates.iter().all(|gate| gate.verdict == "passed" || gate.verdict == "not_asked"),
        "{last:?}"
    );
    assert!(last.events.iter().map(|event| event.kind.as_str()).eq([
        "stage_began",
        "stage_began",
        "stage_began",
        "promoted"
    ]));
    lanes.flow(50).await;
    let failures = lanes.stop().await;
    assert!(failures.is_empty(), "{failures:?}");

    // The candidate is the champion, and nothing is left of the rollout but what it says of itself.
    assert_eq!(champion(&mut registry).await, 2);
    assert_eq!(ask(&client).await.unwrap(), "2");
    assert_eq!(route(&traffic).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(&traffic).await.unwrap(), *last);
    assert_eq!(server.metric("sconce_rollouts_ended_total{end=\"promoted\"}").await, 1);
    server.until_metric("sconce_rollouts", 0).await;
    let entries = audit(&mut registry).await;
    assert_eq!(shares(&entries), [Some(10.0), Some(50.0), Some(100.0), None]);
    // The alias, the route and the rollout changed together, and the trail says who did it, and why.
    let end = &entries[entries.len() - 3..];
    assert!(
        end.iter().all(|entry| entry.generation == end[0].generation && entry.actor == "rollout"),
        "{end:?}"
    );
    assert_eq!((end[0].action.as_str(), end[0].version), ("set_alias", 2));
    assert!(end[0].reason.starts_with("2 is promoted: every gate is passed"), "{end:?}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_fails_is_rolled_back_and_the_control_answers_everything() {
    // What it is warmed up with is no 1.5.
    let (_data, server, mut registry, traffic) = echoing("panics = true\nonly_for = 1.5").await;
    let lanes = join_all((0..4).map(|_| server.client())).await;
    let lanes = Traffic::start(lanes, |client, _| async move {
        match client.infer(identity_request(MODEL, 1)).await {
            Err(error) if error.code() == Code::Internal => Ok(()),
            answered => answered.map(drop),
        }
    });
    let gate = json!({ "metric": "error_rate", "vs_control": 0.0 });
    begin(&traffic, &canary(&[stage(30.0, 1_000_000), stage(100.0, 1)], &[gate])).await.unwrap();
    let last = watched(&traffic).await.pop().unwrap();
    assert_eq!((last.state(), last.stage, last.percent), (pb::RolloutState::RolledBack, 1, 0.0), "{last:?}");
    let event = last.events.last().unwrap();
    assert!(event.sentence.starts_with("2 is rolled back: error_rate is 100.000 % of"), "{event:?}");
    assert_eq!(event.gates[0].verdict, "failed");
    assert!(event.gates[0].candidate.unwrap().low > event.gates[0].control.unwrap().high, "{event:?}");
    assert_eq!((champion(&mut registry).await, lanes.stop().await.len()), (1, 0));
    assert_eq!(route(&traffic).await.unwrap_err().code(), Code::NotFound);
    for _ in 0..20 {
        let answer = server.client().await.infer(identity_request(MODEL, 1)).await.unwrap();
        assert_eq!(answer.model_version, "1");
    }
    assert_eq!(server.metric("sconce_rollouts_ended_total{end=\"rolled_back\"}").await, 1);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_slow_or_refuses_what_the_control_takes_is_rolled_back() {
    let (_data, server, mut registry, traffic) = echoing("delay_ms = 40\nonly_for = 1.5").await;
    let lanes = join_all((0..8).map(|_| server.client())).await;
    let lanes =
        Traffic::start(
            lanes,
            |client, _| async move { client.infer(identity_request(MODEL, 1)).await.map(drop) },
        );
    // However busy the machine, it takes no less than its delay.
    let gate = json!({ "metric": "latency", "quantile": 0.5, "max_ms": 20 });
    begin(&traffic, &canary(&[stage(50.0, 1_000_000), stage(100.0, 1)], &[gate])).await.unwrap();
    let last = watched(&traffic).await.pop().unwrap();
    assert_eq!(last.state(), pb::RolloutState::RolledBack, "{last:?}");
    assert!(last.events.last().unwrap().sentence.contains("latency p50 is"), "{last:?}");
    let failures = lanes.stop().await;
    assert!(failures.is_empty(), "{failures:?}");

    // Another signature: a promotion must be allowed to it first, for it would break who asks.
    let folder = Folder::new();
    folder.linear("m/1", 1, &[1.0]);
    send(&mut registry, upload_of(MODEL, &folder.package("m/1"))).await.unwrap();
    let plan = |candidate: &str| {
        let gate = json!({ "metric": "success_rate", "vs_control": 0.05 });
        let mut plan = canary(&[stage(50.0, 1_000_000), stage(100.0, 1)], &[gate]);
        plan["candidate"] = json!(candidate);
        plan
    };
    let refused = begin(&traffic, &plan("3")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("does not pass 1 gate(s)"), "{refused}");
    let update = pb::UpdateModelRequest {
        model: MODEL.to_owned(),
        gates: Some(pb::Gates { any_signature: true, ..Default::default() }),
        ..Default::default()
    };
    registry.update_model(update).await.unwrap();
    begin(&traffic, &plan("3")).await.unwrap();
    let client = server.client().await;
    let mut refusals = 0;
    until("the end of the rollout", async || {
        match client.infer(identity_request(MODEL, 1)).await {
            Err(error) if error.code() == Code::InvalidArgument => refusals += 1,
            answered => drop(answered.unwrap()),
        }
        get(&traffic).await.unwrap().ended_ms > 0
    })
    .await;
    let last = get(&traffic).await.unwrap();
    assert_eq!(last.state(), pb::RolloutState::RolledBack, "{last:?}");
    assert!(refusals > 0 && last.events.last().unwrap().sentence.contains("success_rate"), "{last:?}");
    assert_eq!(champion(&mut registry).await, 1);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_pause_resume_approve_and_abort_and_change_nothing_under_it_by_hand() {
    let (_data, server, client, mut registry, traffic) = scaling(&[1.0, 2.0, 3.0]).await;
    let sticky = pb::Sticky {
        salt: "s".to_owned(),
        key: Some(pb::Key { from: Some(pb::key::From::Metadata("x-user".to_owned())) }),
    };
    let split =
        pb::Split { variant: "all".to_owned(), target: "champion".to_owned(), percent: 100.0, id: None };
    let spec = pb::RouteSpec { splits: vec![split], sticky: Some(sticky), ..Default::default() };
    let set = pb::SetRouteRequest { model: MODEL.to_owned(), spec: Some(spec), ..Default::default() };
    let before = traffic.set_route(set.clone()).await.unwrap();
    let mut first = stage(50.0, 1_000_000);
    first["approval"] = json!(true);
    let plan = canary(&[first, stage(100.0, 1)], &[]);

    let dry = pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        dry_run: true,
        ..Default::default()
    };
    let would = traffic.start_rollout(dry).await.unwrap();
    assert_eq!((would.revision, would.state()), (0, pb::RolloutState::AwaitingApproval));
    assert_eq!(get(&traffic).await.unwrap_err().code(), Code::NotFound);

    let begun = begin(&traffic, &plan).await.unwrap();
    assert_eq!((begun.state(), begun.percent), (pb::RolloutState::AwaitingApproval, 0.0));
    assert_eq!(begun.control_variant, "all");
    let refused = |error: Error| {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("a rollout of version 2 is under way"), "{error}");
    };
    refused(traffic.set_route(set.clone()).await.unwrap_err());
    let clear = pb::ClearRouteRequest { model: MODEL.to_owned(), ..Default::default() };
    refused(traffic.clear_route(clear).await.unwrap_err());
    refused(begin(&traffic, &plan).await.unwrap_err());
    let promotion = |alias: &str| pb::PromoteRequest {
        model: MODEL.to_owned(),
        version: "3".to_owned(),
        alias: alias.to_owned(),
        ..Default::default()
    };
    let status = registry.promote(promotion("champion")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    registry.promote(promotion("other")).await.unwrap();
    let rollback =
        pb::RollbackRequest { model: MODEL.to_owned(), alias: "champion".to_owned(), ..Default::default() };
    assert_eq!(registry.rollback(rollback).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let remove = pb::RemoveAliasRequest {
        model: MODEL.to_owned(),
        alias: "champion".to_owned(),
        ..Default::default()
    };
    assert_eq!(registry.remove_alias(remove).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let delete =
        pb::DeleteRequest { model: MODEL.to_owned(), version: "2".to_owned(), reason: String::new() };
    assert_eq!(registry.delete(delete.clone()).await.unwrap_err().code(), tonic::Code::FailedPrecondition);

    assert_eq!(traffic.resume_rollout(steering()).await.unwrap_err().code(), Code::FailedPrecondition);
    let paused = traffic.pause_rollout(steering()).await.unwrap();
    assert_eq!((paused.state(), paused.paused_because.as_str()), (pb::RolloutState::Paused, "operator"));
    let error = traffic.approve_rollout(steering()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("is paused: expected one that is awaiting approval"), "{error}");
    let resumed = traffic.resume_rollout(steering()).await.unwrap();
    assert_eq!(resumed.state(), pb::RolloutState::AwaitingApproval);
    assert_eq!(route(&traffic).await.unwrap().spec, before.spec);
    let approved = traffic.approve_rollout(steering()).await.unwrap();
    assert_eq!((approved.state(), approved.percent), (pb::RolloutState::Running, 50.0));
    assert_eq!(approved.events.iter().rev().nth(1).unwrap().by, "anonymous");

    // Users stay where they are: half of them with the control.
    let user = async |number: usize| {
        let request = request().metadata("x-user", format!("user-{number}"));
        client.infer(request).await.unwrap().model_version
    };
    let first: Vec<String> = join_all((0..60).map(user)).await;
    assert_eq!(join_all((0..60).map(user)).await, first);
    assert!(first.contains(&"1".to_owned()) && first.contains(&"2".to_owned()), "{first:?}");

    let aborted = traffic.abort_rollout(steering()).await.unwrap();
    assert_eq!((aborted.state(), aborted.percent), (pb::RolloutState::Aborted, 0.0));
    assert!(join_all((0..60).map(user)).await.iter().all(|version| version == "1"));
    assert_eq!(route(&traffic).await.unwrap().spec, before.spec);
    let error = traffic.pause_rollout(steering()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("is aborted"), "{error}");
    assert_eq!(get(&traffic).await.unwrap().state(), pb::RolloutState::Aborted);

    // Now all of it is anybody's again.
    traffic.set_route(set).await.unwrap();
    begin(&traffic, &plan).await.unwrap();
    traffic.abort_rollout(steering()).await.unwrap();
    registry.delete(delete).await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_plan_is_refused_with_all_that_is_wrong() {
    let (_data, server, _, mut registry, traffic) = scaling(&[1.0, 2.0, 3.0]).await;
    let good = canary(&[stage(50.0, 10), stage(100.0, 10)], &[]);
    let with = |key: &str, value: Value| {
        let mut plan = good.clone();
        plan[key] = value;
        plan
    };
    let gate = |gate: Value| with("gates", json!([gate]));
    let monitor = json!({ "metric": "monitor", "name": "drift" });
    for (what, plan, code, says) in [
        ("no plan", json!(7), Code::InvalidArgument, "plan: "),
        ("a key too many", with("colour", json!(1)), Code::InvalidArgument, "unknown field `colour`"),
        ("no candidate", with("candidate", json!("")), Code::InvalidArgument, "candidate: expected"),
        ("a version that is not there", with("candidate", json!("9")), Code::NotFound, "9"),
        ("an alias that is not there", with("candidate", json!("next")), Code::NotFound, "next"),
        ("the champion itself", with("candidate", json!("1")), Code::FailedPrecondition, "means already"),
        (
            "an alias without requests",
            with("alias", json!("stable")),
            Code::FailedPrecondition,
            "no alias `stable`",
        ),
        (
            "a metric that is none",
            gate(json!({ "metric": "colour" })),
            Code::InvalidArgument,
            "expected one of `error_rate`",
        ),
        (
            "a monitor that is not there",
            gate(monitor.clone()),
            Code::InvalidArgument,
            "no monitor `drift`; there are error_rate, success_rate, latency",
        ),
        (
            "a shadow that is not there",
            gate(json!({ "metric": "shadow_disagreement", "max": 0.1 })),
            Code::InvalidArgument,
            "no stage mirrors",
        ),
        (
            "labels that do not come",
            gate(json!({ "metric": "accuracy", "min": 0.1 })),
            Code::InvalidArgument,
            "no labels come",
        ),
    ] {
        let error = begin(&traffic, &plan).await.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.message().contains(says), "{what}: {error}");
    }
    let mut two = gate(monitor);
    two["strategy"] = json!({ "canary": { "stages": [stage(50.0, 1)] } });
    let error = begin(&traffic, &two).await.unwrap_err();
    assert!(error.message().contains("no monitor") && error.message().contains("the last"), "{error}");

    // What the model's route and gates do not allow.
    let splits = [("a", "1", 50.0), ("b", "3", 50.0)].map(|(variant, target, percent)| pb::Split {
        variant: variant.to_owned(),
        target: target.to_owned(),
        percent,
        id: None,
    });
    for (splits, says) in [
        (splits.to_vec(), "splits requests among several variants"),
        (
            vec![pb::Split { percent: 100.0, ..splits[0].clone() }],
            "sends requests to `1` and not to `champion`",
        ),
    ] {
        let spec = Some(pb::RouteSpec { splits, ..Default::default() });
        let set = pb::SetRouteRequest { model: MODEL.to_owned(), spec, ..Default::default() };
        traffic.set_route(set).await.unwrap();
        let error = begin(&traffic, &good).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    let clear = pb::ClearRouteRequest { model: MODEL.to_owned(), ..Default::default() };
    traffic.clear_route(clear).await.unwrap();
    let archive =
        pb::ArchiveRequest { model: MODEL.to_owned(), version: "2".to_owned(), ..Default::default() };
    registry.archive(archive).await.unwrap();
    let error = begin(&traffic, &good).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    for error in [get(&traffic).await.unwrap_err(), traffic.abort_rollout(steering()).await.unwrap_err()] {
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
    server.shutdown().await;

    let folder = Folder::new();
    folder.linear("scale/1", 1, &[1.0]);
    let server = Running::start(&folder).await;
    let error = begin(&server.traffic().await, &good).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn green_is_tried_on_mirrored_traffic_switched_to_and_back_at_once() {
    let (_data, server, client, mut registry, traffic) = scaling(&[1.0, 1.0, 2.0]).await;
    let lanes = flowing(&server).await;
    let plan = |candidate: &str, keep_blue_seconds: u64| {
        json!({
            "candidate": candidate,
            "strategy": { "blue_green": {
                "mirror_seconds": 1, "mirror_samples": 20, "keep_blue_seconds": keep_blue_seconds,
            } },
            "gates": [{ "metric": "shadow_disagreement", "max": 0.2 }],
        })
    };
    // One that answers otherwise never answers anybody.
    begin(&traffic, &plan("3", 0)).await.unwrap();
    let seen = watched(&traffic).await;
    let last = seen.last().unwrap();
    assert_eq!(last.state(), pb::RolloutState::RolledBack, "{last:?}");
    assert!(seen.iter().all(|rollout| rollout.percent == 0.0), "{seen:?}");
    assert!(last.events.last().unwrap().sentence.contains("shadow_disagreement is 100.000 %"), "{last:?}");

    begin(&traffic, &plan("2", 3_600)).await.unwrap();
    until("the switch", async || get(&traffic).await.unwrap().percent == 100.0).await;
    assert_eq!(ask(&client).await.unwrap(), "2");
    // Blue is warm, and takes over again in one swap.
    let blue = pb::GetVersionRequest { model: MODEL.to_owned(), version: "1".to_owned() };
    assert_eq!(registry.get_version(blue).await.unwrap().into_inner().state(), pb::VersionState::Ready);
    traffic.abort_rollout(steering()).await.unwrap();
    assert_eq!(ask(&client).await.unwrap(), "1");

    begin(&traffic, &plan("2", 0)).await.unwrap();
    assert_eq!(watched(&traffic).await.pop().unwrap().state(), pb::RolloutState::Promoted);
    assert_eq!((ask(&client).await.unwrap().as_str(), champion(&mut registry).await), ("2", 2));
    let failures = lanes.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    server.shutdown().await;
}

/// In front of what a child says, among what the test harness says.
const MARK: &str = "rollout: ";

/// Not a test but the server that `a_kill_at_any_stage_...` kills.
#[test]
fn child() {
    let Ok(data) = env::var("SCONCE_ROLLOUT_DATA") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Running::stored(Path::new(&data), |_| {}));
    println!("\n{MARK}{} {}", server.grpc(), server.control());
    loop {
        thread::park();
    }
}

/// A server in a process of its own; killed when dropped.
struct Killed {
    process: Child,
    client: Client,
    traffic: TrafficClient,
    registry: Registry,
}

impl Killed {
    async fn start(data: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["rollout::child", "--exact", "--nocapture"])
            .env("SCONCE_ROLLOUT_DATA", data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let addresses = said.lines().find_map(|line| line.unwrap().strip_prefix(MARK).map(str::to_owned));
        let addresses = addresses.expect("the child serves");
        let (grpc, control) = addresses.split_once(' ').unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{control}")).unwrap();
        Self {
            process,
            client: connect(grpc.parse::<SocketAddr>().unwrap()).await.unwrap(),
            traffic: TrafficClient::connect(control, Options::default()).await.unwrap(),
            registry: RegistryClient::new(endpoint.connect().await.unwrap()),
        }
    }

    /// The stage, or `None` at the end, once the rollout and the route say the same: they change together, and are asked one after the other.
    async fn stage(&self) -> Option<u32> {
        let mut stage = None;
        until("a rollout and a route that agree", async || {
            let rollout = get(&self.traffic).await.unwrap();
            let route = route(&self.traffic).await;
            let splits = route.into_iter().filter_map(|route| route.spec).flat_map(|spec| spec.splits);
            let share = splits.into_iter().find(|split| split.target == "2").map(|split| split.percent);
            match rollout.state() {
                pb::RolloutState::Running => {
                    stage = Some(rollout.stage);
                    share == Some(rollout.percent)
                }
                pb::RolloutState::Promoted => {
                    stage = None;
                    share.is_none()
                }
                state => panic!("{state:?}: {rollout:?}"),
            }
        })
        .await;
        stage
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL: it gets to do nothing more.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_stage_and_in_between_leaves_the_rollout_where_it_was() {
    const SAMPLES: u64 = 20;
    let data = tempfile::tempdir().unwrap();
    let seed = env::var("SCONCE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Killed::start(data.path()).await;
    for factor in [1.0, 2.0] {
        push(&mut server.registry, MODEL, factor).await;
    }
    promote(&mut server.registry, MODEL, "1", "champion").await;
    let stages = [stage(10.0, SAMPLES), stage(50.0, SAMPLES), stage(100.0, SAMPLES)];
    let gate = json!({ "metric": "error_rate", "vs_control": 0.0 });
    begin(&server.traffic, &canary(&stages, &[gate])).await.unwrap();
    // Nobody else can run it meanwhile.
    let config = ServerConfig { data: Some(data.path().to_owned()), ..ServerConfig::default() };
    assert!(matches!(Server::start(config).await.err(), Some(StartError::Registry(_))));

    let (mut at, mut kills) = (Some(1), 0);
    while let Some(stage) = at {
        // At once, and after a few requests: it is at the same stage.
        for requests in [0, 5] {
            for _ in 0..requests {
                ask(&server.client).await.unwrap();
            }
            drop(server);
            server = Killed::start(data.path()).await;
            kills += 1;
            let now = server.stage().await;
            assert!(now == Some(stage) || requests > 0 && now == next(stage), "{now:?} after {stage}");
            at = now;
        }
        // Around the time when it goes on: it has, or it has not.
        while at == Some(stage) {
            let enough = async || get(&server.traffic).await.unwrap().samples >= SAMPLES / 2;
            until("samples", async || {
                ask(&server.client).await.unwrap();
                enough().await || server.stage().await != Some(stage)
            })
            .await;
            for number in 0..random.usize(..2_000) {
                ask(&server.client).await.unwrap();
                // Not through two stages in one life.
                if number % 16 == 0 && server.stage().await != Some(stage) {
                    break;
                }
            }
            let before = server.stage().await;
            drop(server);
            server = Killed::start(data.path()).await;
            kills += 1;
            at = server.stage().await;
            assert!(at == before || at == before.and_then(next), "{at:?} after {before:?}");
        }
    }
    // The share went from stage to stage, each once, and each change of the rollout was made after the one before it.
    assert!(kills >= 6, "{kills}");
    let entries = audit(&mut server.registry).await;
    assert_eq!(shares(&entries), [Some(10.0), Some(50.0), Some(100.0), None]);
    assert_eq!((champion(&mut server.registry).await, ask(&server.client).await.unwrap().as_str()), (2, "2"));
    let changes: Vec<_> = entries.iter().filter(|entry| entry.document == "rollout").collect();
    for pair in changes.windows(2) {
        let before: Value = serde_json::from_str(&pair[1].before_json).unwrap();
        assert_eq!(before["revision"], pair[0].seq, "{pair:?}");
    }
    assert_eq!(changes.len(), 4, "{changes:?}");
}

/// The stage after one of three; `None`: the end.
fn next(stage: u32) -> Option<u32> {
    (stage < 3).then_some(stage + 1)
}
