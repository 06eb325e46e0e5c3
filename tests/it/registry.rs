//! A server with a data folder: versions that come, take an alias, are loaded when asked for, make room, and go.

use crate::support::{Folder, Running, Traffic, matrix, patiently, until};
use futures_util::future::join_all;
use sconce_client::{Client, Code, Error, InferRequest, Parameter};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::register_request::Part;
use sconce_proto::sconce::registry_client::RegistryClient;
use sconce_server::{Server, ServerConfig};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) type Registry = RegistryClient<Channel>;

/// A header, and the files of `folder` one after the other in small chunks.
pub(crate) fn upload_of(model: &str, folder: &Path) -> Vec<Part> {
    let mut parts = vec![Part::Header(pb::NewVersion { model: model.to_owned(), ..Default::default() })];
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let content = fs::read(&file).unwrap();
        let path = file.file_name().unwrap().to_str().unwrap().to_owned();
        parts.push(Part::File(pb::FileHeader { path, bytes: content.len() as u64, digest: String::new() }));
        parts.extend(content.chunks(100).map(|chunk| Part::Chunk(chunk.to_vec())));
    }
    parts
}

pub(crate) async fn send(registry: &mut Registry, parts: Vec<Part>) -> Result<pb::Version, tonic::Status> {
    let requests = parts.into_iter().map(|part| pb::RegisterRequest { part: Some(part) });
    let answer = registry.register(futures_util::stream::iter(requests.collect::<Vec<_>>())).await?;
    Ok(answer.into_inner().version.unwrap())
}

/// Registers a version that multiplies a number by `factor`.
pub(crate) async fn push(registry: &mut Registry, model: &str, factor: f32) -> pb::Version {
    let folder = Folder::new();
    folder.linear("m/1", 1, &[factor]);
    send(registry, upload_of(model, &folder.package("m/1"))).await.unwrap()
}

fn promotion(model: &str, version: &str, alias: &str) -> pb::PromoteRequest {
    pb::PromoteRequest {
        model: model.to_owned(),
        version: version.to_owned(),
        alias: alias.to_owned(),
        ..Default::default()
    }
}

pub(crate) async fn promote(
    registry: &mut Registry,
    model: &str,
    version: &str,
    alias: &str,
) -> pb::PromoteResponse {
    registry.promote(promotion(model, version, alias)).await.unwrap().into_inner()
}

async fn version(registry: &mut Registry, model: &str, version: &str) -> Result<pb::Version, tonic::Status> {
    let request = pb::GetVersionRequest { model: model.to_owned(), version: version.to_owned() };
    Ok(registry.get_version(request).await?.into_inner())
}

async fn wanted(
    registry: &mut Registry,
    model: &str,
    version: &str,
    wanted: pb::Wanted,
) -> Result<(), tonic::Status> {
    let request = pb::SetWantedRequest {
        model: model.to_owned(),
        version: version.to_owned(),
        wanted: wanted.into(),
        reason: String::new(),
    };
    registry.set_wanted(request).await.map(drop)
}

/// What `version` of `model` makes of 1: its factor. With the version that answered and the routing generation.
async fn factor(client: &Client, model: &str, version: &str) -> Result<(f32, String, i64), Error> {
    let answer =
        client.infer(InferRequest::new(model).version(version).input("features", matrix(&[[1.0]]))).await?;
    let generation = match answer.parameters.get("routing_generation") {
        Some(Parameter::Int64Param(generation)) => *generation,
        other => panic!("no generation but {other:?}"),
    };
    let value = answer.output("prediction").unwrap().f32_values().next().unwrap();
    Ok((value, answer.model_version, generation))
}

async fn factor_code(client: &Client, model: &str, version: &str) -> (Code, String) {
    patiently("an answer", factor(client, model, version))
        .await
        .map_or_else(|error| (error.code(), error.message().to_owned()), |_| (Code::Ok, String::new()))
}

async fn start() -> (TempDir, Running, Client, Registry) {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, registry) = (server.client().await, server.registry().await);
    (data, server, client, registry)
}

async fn loads(server: &Running, status: &str) -> u64 {
    server.metric(&format!("sconce_loads_total{{status=\"{status}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_pushed_promoted_rolled_back_and_there_after_a_restart() {
    let (data, server, client, mut registry) = start().await;
    let first = push(&mut registry, "scale", 1.0).await;
    assert_eq!(
        (first.version, first.files.len(), first.signature.unwrap().inputs[0].shape.clone()),
        (1, 1, vec![-1, 1])
    );
    push(&mut registry, "scale", 2.0).await;
    // Without a champion the highest answers.
    until("version 2", async || factor(&client, "scale", "").await.is_ok_and(|(factor, ..)| factor == 2.0))
        .await;
    let promoted = promote(&mut registry, "scale", "1", "champion").await;
    assert_eq!((promoted.version, promoted.previous), (1, 0));
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    assert_eq!(factor(&client, "scale", "champion").await.unwrap().1, "1");
    // Version 2 is not needed any more, and is loaded again for whoever names it.
    until("its release", async || {
        version(&mut registry, "scale", "2").await.unwrap().state() == pb::VersionState::Registered
    })
    .await;
    assert_eq!(factor(&client, "scale", "2").await.unwrap().0, 2.0);

    let promoted = promote(&mut registry, "scale", "2", "champion").await;
    assert_eq!((promoted.version, promoted.previous), (2, 1));
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 2.0);
    let rollback =
        pb::RollbackRequest { model: "scale".into(), alias: "champion".into(), ..Default::default() };
    let back = registry.rollback(rollback.clone()).await.unwrap().into_inner();
    assert_eq!((back.version, back.previous), (1, 2));
    assert!(back.generation > promoted.generation);
    let (value, _, generation) = factor(&client, "scale", "").await.unwrap();
    assert_eq!((value, generation), (1.0, back.generation as i64));
    let error = registry.rollback(rollback).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");

    server.shutdown().await;
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, mut registry) = (server.client().await, server.registry().await);
    assert_eq!(server.readiness(), Ok(()));
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    assert_eq!(factor(&client, "scale", "2").await.unwrap().0, 2.0);
    assert_eq!(factor_code(&client, "scale", "challenger").await.0, Code::InvalidArgument);
    assert_eq!(factor_code(&client, "scale", "3").await.0, Code::NotFound);
    let verified = registry.verify_audit(pb::VerifyAuditRequest {}).await.unwrap().into_inner();
    assert_eq!((verified.entries, verified.problems), (5, vec![]));
    let check = registry.check(pb::CheckRequest {}).await.unwrap().into_inner();
    assert_eq!((check.models, check.versions, check.problems), (1, 2, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_under_traffic_fail_nothing_and_each_answer_is_one_versions() {
    const LANES: usize = 8;
    let (_data, server, client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    promote(&mut registry, "scale", "1", "champion").await;
    wanted(&mut registry, "scale", "2", pb::Wanted::Loaded).await.unwrap();
    let generation = Arc::new(AtomicI64::new(factor(&client, "scale", "").await.unwrap().2));
    let acknowledged = Arc::clone(&generation);
    let ask = move |client: Client, _| {
        let acknowledged = Arc::clone(&acknowledged);
        async move {
            let least = acknowledged.load(Ordering::SeqCst);
            let (value, version, generation) = factor(&client, "scale", "").await?;
            assert_eq!(value.to_string(), version);
            // Whoever asks after a change was acknowledged is answered by it.
            assert!(generation >= least, "{generation} came after {least}");
            Ok(())
        }
    };
    let traffic = Traffic::start(join_all((0..LANES).map(|_| server.client())).await, ask);
    for swap in 0..25 {
        let promoted = promote(&mut registry, "scale", "2", "champion").await;
        generation.store(promoted.generation as i64, Ordering::SeqCst);
        traffic.flow(LANES).await;
        // Every other time by name, every other time by history.
        let back = if swap % 2 == 0 {
            promote(&mut registry, "scale", "1", "champion").await.generation
        } else {
            let request =
                pb::RollbackRequest { model: "scale".into(), alias: "champion".into(), ..Default::default() };
            registry.rollback(request).await.unwrap().into_inner().generation
        };
        generation.store(back as i64, Ordering::SeqCst);
        traffic.flow(LANES).await;
    }
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_to_a_version_that_must_be_loaded_fail_nothing_either() {
    let (_data, server, client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    promote(&mut registry, "scale", "1", "champion").await;
    factor(&client, "scale", "").await.unwrap();
    let ask = |client: Client, number: usize| async move {
        let version = ["", "champion", "1", "2"][number % 4];
        factor(&client, "scale", version).await.map(drop)
    };
    let traffic = Traffic::start(join_all((0..4).map(|_| server.client())).await, ask);
    for _ in 0..10 {
        promote(&mut registry, "scale", "2", "champion").await;
        traffic.flow(8).await;
        promote(&mut registry, "scale", "1", "champion").await;
        traffic.flow(8).await;
    }
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_champion_the_highest_answers_once_it_is_in_memory_and_the_one_before_is_released() {
    let (_data, server, client, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    // Nothing points at it, so nothing is loaded before somebody asks.
    assert_eq!(loads(&server, "ok").await, 0);
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    let ask = |client: Client, _| async move { factor(&client, "scale", "").await.map(drop) };
    let traffic = Traffic::start(join_all((0..4).map(|_| server.client())).await, ask);
    traffic.flow(8).await;
    push(&mut registry, "scale", 2.0).await;
    until("version 2", async || factor(&client, "scale", "").await.unwrap().0 == 2.0).await;
    until("the release of version 1", async || {
        version(&mut registry, "scale", "1").await.unwrap().state() == pb::VersionState::Registered
    })
    .await;
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(loads(&server, "ok").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_callers_wait_for_one_load() {
    let (_data, server, client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    promote(&mut registry, "scale", "1", "champion").await;
    until("its release", async || {
        version(&mut registry, "scale", "2").await.unwrap().state() == pb::VersionState::Registered
    })
    .await;
    let before = loads(&server, "ok").await;
    let answers = join_all((0..100).map(|_| factor(&client, "scale", "2"))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().0 == 2.0));
    assert_eq!(loads(&server, "ok").await, before + 1);
    // Nobody need wait longer than its deadline: asked for at once it comes too late.
    wanted(&mut registry, "scale", "2", pb::Wanted::Unloaded).await.unwrap();
    assert_eq!(factor_code(&client, "scale", "2").await.0, Code::Unavailable);
    wanted(&mut registry, "scale", "2", pb::Wanted::Auto).await.unwrap();
    assert_eq!(factor_code(&client, "scale", "2").await.0, Code::Ok);
}

/// Registers a version of `columns` numbers to one, 4 bytes each in memory and a little more.
async fn push_wide(registry: &mut Registry, model: &str, columns: usize) -> pb::Version {
    let folder = Folder::new();
    folder.linear("m/1", columns, &vec![1.0; columns]);
    send(registry, upload_of(model, &folder.package("m/1"))).await.unwrap()
}

async fn ask_wide(client: &Client, model: &str, columns: usize) -> Result<(), Error> {
    let features = sconce_client::tensor::fp32(&[1, columns], &vec![1.0; columns]).unwrap();
    client.infer(InferRequest::new(model).input("features", features)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn models_beyond_the_memory_budget_take_turns_and_the_pinned_one_stays() {
    const COLUMNS: usize = 4096;
    let data = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c"];
    // How much one takes is found out first.
    let server = Running::stored(data.path(), |_| {}).await;
    let mut registry = server.registry().await;
    push_wide(&mut registry, "a", COLUMNS).await;
    let client = server.client().await;
    ask_wide(&client, "a", COLUMNS).await.unwrap();
    let one = server.metric("sconce_device_memory_bytes{device=\"cpu\"}").await;
    assert!(one >= 4 * COLUMNS as u64, "{one}");
    for name in &names[1..] {
        push_wide(&mut registry, name, COLUMNS).await;
    }
    server.shutdown().await;

    let budget = 2 * one + one / 2;
    let server = Running::stored(data.path(), |config| {
        config.model_memory_bytes = [("cpu".to_owned(), budget)].into();
    })
    .await;
    let (client, mut registry) = (server.client().await, server.registry().await);
    for round in 0..4 {
        for name in names {
            ask_wide(&client, name, COLUMNS)
                .await
                .unwrap_or_else(|error| panic!("{name}, round {round}: {error}"));
            let used = server.metric("sconce_device_memory_bytes{device=\"cpu\"}").await;
            assert!(used <= budget, "{used} of {budget}");
        }
    }
    // Two are pinned: there is no room for the third, and that is said.
    for name in ["a", "b"] {
        wanted(&mut registry, name, "1", pb::Wanted::Loaded).await.unwrap();
    }
    let error = ask_wide(&client, "c", COLUMNS).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let (used, most) =
        (format!("{:.1} kB in use", 2.0 * one as f64 / 1e3), format!("{:.1} kB", budget as f64 / 1e3));
    assert!(
        [&used, &most, "`b` version 1", "kept loaded"].iter().all(|it| error.message().contains(*it)),
        "{error}"
    );
    let error = registry.promote(promotion("c", "1", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    for name in ["a", "b"] {
        ask_wide(&client, name, COLUMNS).await.unwrap();
    }
    wanted(&mut registry, "a", "1", pb::Wanted::Unloaded).await.unwrap();
    ask_wide(&client, "c", COLUMNS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_more_aliased_versions_than_there_is_memory_for_ends_and_serves_each() {
    const COLUMNS: usize = 4096;
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let mut registry = server.registry().await;
    for alias in ["champion", "challenger", "third"] {
        let pushed = push_wide(&mut registry, "wide", COLUMNS).await;
        promote(&mut registry, "wide", &pushed.version.to_string(), alias).await;
    }
    let three = server.metric("sconce_device_memory_bytes{device=\"cpu\"}").await;
    server.shutdown().await;
    let start = async || {
        let start = Running::stored(data.path(), |config| {
            config.model_memory_bytes = [("cpu".to_owned(), three / 2)].into();
        });
        patiently("the start", start).await
    };
    // What takes the room there is: the champion, and once another is pinned that. Nothing is evicted for the rest.
    let in_memory = async |server: &Running, version: &str| {
        let line = format!("sconce_model_memory_bytes{{model=\"wide\",version=\"{version}\"}} ");
        server.get("/metrics").await.1.contains(&line)
    };
    let server = start().await;
    assert_eq!((loads(&server, "ok").await, in_memory(&server, "1").await), (1, true));
    wanted(&mut server.registry().await, "wide", "3", pb::Wanted::Loaded).await.unwrap();
    server.shutdown().await;
    let server = start().await;
    assert_eq!((loads(&server, "ok").await, in_memory(&server, "3").await), (1, true));
    wanted(&mut server.registry().await, "wide", "3", pb::Wanted::Auto).await.unwrap();
    let client = server.client().await;
    for alias in ["champion", "challenger", "third", "1", "2", "3", ""] {
        let features = sconce_client::tensor::fp32(&[1, COLUMNS], &vec![1.0; COLUMNS]).unwrap();
        let request = InferRequest::new("wide").version(alias).input("features", features);
        patiently("an answer", client.infer(request))
            .await
            .unwrap_or_else(|error| panic!("{alias}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_champion_that_cannot_be_loaded_is_tried_again_and_another_makes_the_server_ready() {
    let (data, server, _client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    promote(&mut registry, "scale", "1", "champion").await;
    promote(&mut registry, "scale", "2", "spare").await;
    server.shutdown().await;
    let first = blobs(data.path());
    let kept: Vec<Vec<u8>> = first.iter().map(|blob| fs::read(blob).unwrap()).collect();
    for blob in &first {
        fs::remove_file(blob).unwrap();
        fs::write(blob, b"nothing").unwrap();
    }
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, mut registry) = (server.client().await, server.registry().await);
    let reason = server.readiness().unwrap_err();
    assert!(reason.contains("scale version") && reason.contains("model.safetensors"), "{reason}");
    assert_eq!(factor_code(&client, "scale", "").await.0, Code::Unavailable);
    for (blob, content) in first.iter().zip(kept) {
        fs::write(blob, content).unwrap();
    }
    // Nobody asks: the server tries again by itself.
    until("readiness", async || server.readiness().is_ok()).await;
    until("an answer", async || factor(&client, "scale", "").await.is_ok()).await;
    assert_eq!(promote(&mut registry, "scale", "2", "champion").await.previous, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_only_to_what_can_be_served_and_an_aliased_version_is_not_unloaded() {
    let (_data, _server, client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    for version in ["1", "2"] {
        promote(&mut registry, "scale", version, "champion").await;
    }
    wanted(&mut registry, "scale", "1", pb::Wanted::Unloaded).await.unwrap();
    let rollback =
        pb::RollbackRequest { model: "scale".into(), alias: "champion".into(), ..Default::default() };
    let error = registry.rollback(rollback.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = wanted(&mut registry, "scale", "2", pb::Wanted::Unloaded).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 2.0);
    wanted(&mut registry, "scale", "1", pb::Wanted::Auto).await.unwrap();
    registry.rollback(rollback).await.unwrap();
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_served_otherwise_is_refused_and_a_half_wrong_update_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |config| config.builtin = vec!["identity".to_owned()]).await;
    let mut registry = server.registry().await;
    let folder = Folder::new();
    folder.linear("m/1", 1, &[1.0]);
    let error = send(&mut registry, upload_of("identity", &folder.package("m/1"))).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    push(&mut registry, "scale", 1.0).await;
    let update = pb::UpdateVersionRequest {
        model: "scale".into(),
        version: "1".into(),
        metrics: [("accuracy".to_owned(), 0.5)].into(),
        monitors: [(String::new(), "x".to_owned())].into(),
        ..Default::default()
    };
    let error = registry.update_version(update).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(version(&mut registry, "scale", "1").await.unwrap().metrics.is_empty());
}

#[tokio::test]
async fn what_is_asked_of_the_registry_is_counted_by_operation_and_outcome() {
    let (_data, server, _client, mut registry) = start().await;
    let count = async |operation: &str, status: &str| {
        let labels = format!("operation=\"{operation}\",status=\"{status}\"");
        server.metric(&format!("sconce_registry_operations_total{{{labels}}}")).await
    };
    assert_eq!(count("register", "ok").await, 0);
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    promote(&mut registry, "scale", "1", "champion").await;
    let delete = |version: &str| pb::DeleteRequest {
        model: "scale".into(),
        version: version.into(),
        ..Default::default()
    };
    // An alias means it.
    registry.delete(delete("1")).await.unwrap_err();
    registry.delete(delete("2")).await.unwrap();
    let (found, refused) = (count("read", "ok").await, count("read", "refused").await);
    version(&mut registry, "scale", "1").await.unwrap();
    version(&mut registry, "unknown", "1").await.unwrap_err();
    assert!(count("read", "ok").await > found && count("read", "refused").await > refused);
    for (operation, status, times) in [
        ("register", "ok", 2),
        ("promote", "ok", 1),
        ("delete", "ok", 1),
        ("delete", "refused", 1),
        ("delete", "failed", 0),
        ("rollback", "ok", 0),
    ] {
        assert_eq!(count(operation, status).await, times, "{operation} {status}");
    }
    let took = "sconce_registry_operation_duration_seconds_count{operation=\"delete\"}";
    assert_eq!(server.metric(took).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_keep_a_version_from_an_alias_unless_it_is_forced_with_a_reason() {
    let (_data, _server, client, mut registry) = start().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, "scale", factor).await;
    }
    let metrics = |accuracy: f64| pb::UpdateVersionRequest {
        model: "scale".into(),
        metrics: [("accuracy".to_owned(), accuracy)].into(),
        ..Default::default()
    };
    for (version, accuracy) in [("1", 0.9), ("2", 0.8)] {
        let update = pb::UpdateVersionRequest { version: version.into(), ..metrics(accuracy) };
        registry.update_version(update).await.unwrap();
    }
    let smoke = |request: &str| pb::Smoke { request_json: request.to_owned(), max_latency_ms: 0 };
    let gates = |gates: pb::Gates| pb::UpdateModelRequest {
        model: "scale".into(),
        gates: Some(gates),
        ..Default::default()
    };
    let not_worse = pb::NotWorse { by_at_most: 0.05, lower_is_better: false };
    let all = pb::Gates {
        min_metrics: [("accuracy".to_owned(), 0.5)].into(),
        not_worse: [("accuracy".to_owned(), not_worse)].into(),
        smoke: vec![smoke(
            r#"{"inputs": {"features": [[3.0]]}, "outputs": {"prediction": {"min": 0, "max": 5}}}"#,
        )],
        ..Default::default()
    };
    registry.update_model(gates(all)).await.unwrap();
    let passed = promote(&mut registry, "scale", "1", "champion").await;
    assert!(passed.gates.iter().all(|gate| gate.passed) && passed.gates.len() == 2, "{:?}", passed.gates);
    // Version 2 is worse, and answers 6 where 5 is the most.
    let error = registry.promote(promotion("scale", "2", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    for part in ["2 gate(s)", "accuracy", "smoke[0]", "got 6"] {
        assert!(error.message().contains(part), "{part} is not in {error}");
    }
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    let forced = pb::PromoteRequest { force: true, ..promotion("scale", "2", "champion") };
    let error = registry.promote(forced.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    registry.promote(pb::PromoteRequest { reason: "the label moved".into(), ..forced }).await.unwrap();
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 2.0);
    let audit = registry.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner().entries;
    let last = audit.last().unwrap();
    assert_eq!(
        (last.action.as_str(), last.forced, last.reason.as_str()),
        ("set_alias", true, "the label moved")
    );

    // Another shape is not compatible with what callers send.
    push_wide(&mut registry, "scale", 7).await;
    registry.update_model(gates(pb::Gates::default())).await.unwrap();
    let error = registry.promote(promotion("scale", "3", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    registry.update_model(gates(pb::Gates { any_signature: true, ..Default::default() })).await.unwrap();
    promote(&mut registry, "scale", "3", "champion").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_and_changes_are_refused_and_change_nothing() {
    let (_data, server, client, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    push(&mut registry, "scale", 2.0).await;
    promote(&mut registry, "scale", "1", "champion").await;
    let before = registry.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner();

    let header = |model: &str| Part::Header(pb::NewVersion { model: model.to_owned(), ..Default::default() });
    let file = |path: &str, bytes: u64| {
        Part::File(pb::FileHeader { path: path.to_owned(), bytes, ..Default::default() })
    };
    let chunk = |bytes: &[u8]| Part::Chunk(bytes.to_vec());
    let folder = Folder::new();
    folder.linear("m/1", 1, &[1.0]);
    let whole = upload_of("scale", &folder.package("m/1"));
    let with = |header: pb::NewVersion| {
        let mut parts = whole.clone();
        parts[0] = Part::Header(header);
        parts
    };
    let scale = || pb::NewVersion { model: "scale".to_owned(), ..Default::default() };
    let wrong_digest = {
        let mut parts = whole.clone();
        if let Part::File(header) = &mut parts[1] {
            header.digest = "0".repeat(64);
        }
        parts
    };
    let uploads = [
        ("nothing", vec![], Code::InvalidArgument),
        ("no header", whole[1..].to_vec(), Code::InvalidArgument),
        ("two headers", vec![header("scale"), header("scale")], Code::InvalidArgument),
        ("no file", vec![header("scale")], Code::InvalidArgument),
        ("bytes of no file", vec![header("scale"), chunk(b"x")], Code::InvalidArgument),
        ("a path that leads out", vec![header("scale"), file("../x", 1), chunk(b"x")], Code::InvalidArgument),
        ("an absolute path", vec![header("scale"), file("/x", 1), chunk(b"x")], Code::InvalidArgument),
        ("too few bytes", vec![header("scale"), file("x", 2), chunk(b"x")], Code::InvalidArgument),
        ("too many bytes", vec![header("scale"), file("x", 1), chunk(b"xx")], Code::InvalidArgument),
        ("a huge file", vec![header("scale"), file("x", u64::MAX)], Code::ResourceExhausted),
        ("one path twice", vec![header("scale"), file("x", 0), file("x", 0)], Code::InvalidArgument),
        ("no package", vec![header("scale"), file("x", 1), chunk(b"x")], Code::FailedPrecondition),
        ("another digest", wrong_digest, Code::InvalidArgument),
        ("a bad name", with(pb::NewVersion { model: "../x".into(), ..scale() }), Code::InvalidArgument),
        ("a number taken", with(pb::NewVersion { version: 1, ..scale() }), Code::AlreadyExists),
        ("a huge number", with(pb::NewVersion { version: u64::MAX, ..scale() }), Code::InvalidArgument),
        ("a bad label", with(pb::NewVersion { label: "one".into(), ..scale() }), Code::InvalidArgument),
        (
            "a metric that is none",
            with(pb::NewVersion { metrics: [("a".into(), f64::NAN)].into(), ..scale() }),
            Code::InvalidArgument,
        ),
        (
            "a huge description",
            with(pb::NewVersion { description: "x".repeat(100_000), ..scale() }),
            Code::InvalidArgument,
        ),
        (
            "a parent that is none",
            with(pb::NewVersion {
                lineage: Some(pb::Lineage { parent: 9, ..Default::default() }),
                ..scale()
            }),
            Code::FailedPrecondition,
        ),
    ];
    for (what, parts, code) in uploads {
        let error = send(&mut registry, parts).await.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
    }

    let promotions = [
        (promotion("scale", "9", "champion"), Code::NotFound),
        (promotion("scale", "none", "champion"), Code::NotFound),
        (promotion("none", "1", "champion"), Code::NotFound),
        (promotion("scale", "champion", "champion"), Code::InvalidArgument),
        (promotion("scale", "2", "7"), Code::InvalidArgument),
        (promotion("scale", "2", ""), Code::InvalidArgument),
        (promotion("scale", "2", "a b"), Code::InvalidArgument),
        (pb::PromoteRequest { expected: Some(2), ..promotion("scale", "2", "champion") }, Code::Aborted),
        (
            pb::PromoteRequest { reason: "x".repeat(10_000), ..promotion("scale", "2", "champion") },
            Code::InvalidArgument,
        ),
    ];
    for (request, code) in promotions {
        let error = registry.promote(request.clone()).await.expect_err(&format!("{request:?}"));
        assert_eq!(error.code(), code, "{request:?}: {error}");
    }
    let delete = |version: &str| pb::DeleteRequest {
        model: "scale".into(),
        version: version.into(),
        ..Default::default()
    };
    for version in ["1", "champion", ""] {
        let error = registry.delete(delete(version)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{version:?}: {error}");
    }
    let archive = pb::ArchiveRequest { model: "scale".into(), version: "1".into(), ..Default::default() };
    assert_eq!(registry.archive(archive).await.unwrap_err().code(), Code::FailedPrecondition);
    let source = |source: &str| pb::RegisterFromRequest { header: Some(scale()), source: source.to_owned() };
    for (from, code) in [
        ("/no/such/folder", Code::NotFound),
        ("ftp://example.org/x", Code::InvalidArgument),
        ("hf://../../x", Code::InvalidArgument),
        ("", Code::InvalidArgument),
    ] {
        let mut told = registry.register_from(source(from)).await.unwrap().into_inner();
        let error = told.message().await.unwrap_err();
        assert_eq!(error.code(), code, "{from:?}: {error}");
    }
    // Of several versions none is registered if one cannot be, and each that cannot be is named.
    let folder = Folder::new();
    for found in ["good/1", "bad/1", "worse/7"] {
        folder.linear(found, 1, &[1.0]);
    }
    for found in ["bad/1", "worse/7"] {
        folder.file(found, "model.toml", "family = 7");
    }
    let root = folder.path().to_str().unwrap().to_owned();
    let mut told = registry
        .register_from(pb::RegisterFromRequest { header: None, source: root })
        .await
        .unwrap()
        .into_inner();
    let error = loop {
        match told.message().await {
            Ok(progress) => assert!(progress.unwrap().versions.is_empty()),
            Err(error) => break error,
        }
    };
    let names = ["nothing was registered", "bad/1", "worse/7"];
    assert!(names.iter().all(|name| error.message().contains(name)), "{error}");
    let after = registry.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner();
    assert_eq!(after, before);
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    let check = registry.check(pb::CheckRequest {}).await.unwrap().into_inner();
    assert_eq!((check.versions, check.problems), (2, vec![]));

    // Of promotions that expect the same, one comes first.
    let race = ["1", "2"]
        .map(|version| pb::PromoteRequest { expected: Some(0), ..promotion("scale", version, "racer") });
    let outcomes = join_all(race.map(|request| {
        let mut registry = registry.clone();
        async move { registry.promote(request).await.map_err(|error| error.code()) }
    }))
    .await;
    let lost: Vec<Code> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(lost, [Code::Aborted]);
    server.until_idle().await;
}

/// The files of a data folder that hold artifacts.
fn blobs(data: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![data.join("artifacts/blobs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_a_refused_load_that_touches_nothing_else_and_is_not_tried_all_the_time() {
    let (data, server, client, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    promote(&mut registry, "scale", "1", "champion").await;
    let good = blobs(data.path());
    push(&mut registry, "scale", 2.0).await;
    let [bad] = &blobs(data.path()).into_iter().filter(|blob| !good.contains(blob)).collect::<Vec<_>>()[..]
    else {
        panic!("one file came")
    };
    let mut content = fs::read(bad).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::remove_file(bad).unwrap();
    fs::write(bad, content).unwrap();

    let error = registry.promote(promotion("scale", "2", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("model.safetensors"), "{error}");
    let failed = loads(&server, "failed").await;
    for _ in 0..50 {
        let (code, message) = factor_code(&client, "scale", "2").await;
        assert_eq!(code, Code::Unavailable);
        assert!(message.contains("model.safetensors") && message.contains("next try"), "{message}");
    }
    // One pause may have passed meanwhile, never fifty.
    assert!(loads(&server, "failed").await <= failed + 3);
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 1.0);
    assert_eq!(version(&mut registry, "scale", "2").await.unwrap().state(), pb::VersionState::Failed);
    assert_eq!(server.readiness(), Ok(()));
    // Nor is it kept in memory from now on, and found missing.
    let error = wanted(&mut registry, "scale", "2", pb::Wanted::Loaded).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("model `scale` version 2 could not be loaded"), "{error}");
    assert_eq!(version(&mut registry, "scale", "2").await.unwrap().wanted(), pb::Wanted::Auto);
    assert_eq!(server.readiness(), Ok(()));
    let check = registry.check(pb::CheckRequest {}).await.unwrap().into_inner();
    assert_eq!(check.problems.len(), 1, "{:?}", check.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_listed_in_pages_archived_deleted_and_their_files_collected() {
    let (_data, server, client, mut registry) = start().await;
    for factor in 1..=5 {
        push(&mut registry, "scale", factor as f32).await;
    }
    push(&mut registry, "other", 1.0).await;
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListModelsRequest { page_size: 1, page_token, ..Default::default() };
        let page = registry.list_models(request).await.unwrap().into_inner();
        names.extend(page.models.into_iter().map(|model| model.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["other", "scale"]);
    promote(&mut registry, "scale", "2", "champion").await;
    let archive =
        |undo| pb::ArchiveRequest { model: "scale".into(), version: "3".into(), undo, ..Default::default() };
    let archived = registry.archive(archive(false)).await.unwrap().into_inner();
    assert_eq!(archived.state(), pb::VersionState::Archived);
    assert_eq!(factor_code(&client, "scale", "3").await.0, Code::NotFound);
    let error = registry.promote(promotion("scale", "3", "challenger")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    registry.archive(archive(true)).await.unwrap();
    assert_eq!(factor(&client, "scale", "3").await.unwrap().0, 3.0);

    let delete = |version: &str| pb::DeleteRequest {
        model: "scale".into(),
        version: version.into(),
        ..Default::default()
    };
    registry.delete(delete("4")).await.unwrap();
    assert_eq!(factor_code(&client, "scale", "4").await.0, Code::NotFound);
    let listed =
        registry.list_versions(pb::ListVersionsRequest { model: "scale".into(), ..Default::default() });
    let listed: Vec<u64> = listed.await.unwrap().into_inner().versions.iter().map(|v| v.version).collect();
    assert_eq!(listed, [1, 2, 3, 5]);
    let collect = |dry_run| pb::CollectGarbageRequest { dry_run };
    let would = registry.collect_garbage(collect(true)).await.unwrap().into_inner();
    assert_eq!(would.files, 1);
    assert_eq!(registry.collect_garbage(collect(false)).await.unwrap().into_inner(), would);
    assert_eq!(registry.collect_garbage(collect(false)).await.unwrap().into_inner().files, 0);
    // A number is not given twice.
    assert_eq!(push(&mut registry, "scale", 6.0).await.version, 6);
    registry
        .remove_alias(pb::RemoveAliasRequest {
            model: "scale".into(),
            alias: "champion".into(),
            reason: String::new(),
        })
        .await
        .unwrap();
    registry.delete(delete("")).await.unwrap();
    assert_eq!(factor_code(&client, "scale", "").await.0, Code::NotFound);
    assert_eq!(factor(&client, "other", "").await.unwrap().0, 1.0);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_every_change_in_order_and_backup_and_export_are_whole_while_others_write() {
    let (_data, server, _client, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    let request = pb::WatchRequest { after: Some(0), model: String::new() };
    let mut watch = registry.watch(request).await.unwrap().into_inner();
    let mut other = registry.clone();
    let writing = tokio::spawn(async move {
        for factor in 2..8 {
            push(&mut other, "scale", factor as f32).await;
        }
    });
    let mut backup = registry.backup(pb::BackupRequest {}).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(message) = backup.message().await.unwrap() {
        bytes += message.chunk.len();
    }
    assert!(bytes > 1024, "{bytes}");
    let mut export = registry.export(pb::ExportRequest {}).await.unwrap().into_inner();
    let mut document = Vec::new();
    while let Some(message) = export.message().await.unwrap() {
        document.extend(message.chunk);
    }
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let (versions, audit) = (&document["models"][0]["versions"], &document["audit"]);
    // One instant: each version with the entry that registered it.
    assert_eq!(versions.as_array().unwrap().len(), audit.as_array().unwrap().len(), "{document}");
    assert_eq!(document["models"][0]["model"]["gates"]["any_signature"], false);
    writing.await.unwrap();
    for seq in 1..=7 {
        let entry = patiently("a change", watch.message()).await.unwrap().unwrap();
        assert_eq!((entry.seq, entry.action.as_str(), entry.version), (seq, "register", seq));
    }
    // A watch does not keep the server.
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inference_protocols_load_and_unload_work_on_the_registry() {
    let (_data, server, client, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    push(&mut registry, "scale", 2.0).await;
    promote(&mut registry, "scale", "2", "champion").await;
    wanted(&mut registry, "scale", "1", pb::Wanted::Unloaded).await.unwrap();
    let admin = server.admin().await;
    admin.repository_load("scale").await.unwrap();
    assert_eq!(factor_code(&client, "scale", "").await.0, Code::Ok);
    let of_champion = client.model_statistics("scale", "champion").await.unwrap();
    let versions: Vec<_> = of_champion.iter().map(|one| one.version.as_str()).collect();
    assert_eq!(versions, ["2"], "an alias means a version here as well");
    let before =
        registry.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner().entries.len();
    admin.repository_unload("scale").await.unwrap();
    let audit = registry.list_audit(pb::ListAuditRequest::default()).await.unwrap().into_inner().entries;
    assert_eq!(audit.len(), before + 1, "one change, however many versions there are");
    for version in ["", "1", "2"] {
        assert_eq!(factor_code(&client, "scale", version).await.0, Code::Unavailable);
    }
    // What comes meanwhile does not bring it back, and no alias moves to what cannot answer.
    push(&mut registry, "scale", 3.0).await;
    assert_eq!(factor_code(&client, "scale", "3").await.0, Code::Unavailable);
    let error = registry.promote(promotion("scale", "3", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(server.readiness(), Ok(()));
    let used = server.metric("sconce_device_memory_bytes{device=\"cpu\"}").await;
    assert_eq!(used, 0);
    admin.repository_load("scale").await.unwrap();
    assert_eq!(factor(&client, "scale", "").await.unwrap().0, 2.0);
    assert_eq!(factor_code(&client, "scale", "1").await.0, Code::Unavailable, "as it was said of this one");
    assert_eq!(admin.repository_load("none").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_data_folder_the_registry_says_so_and_a_name_may_be_in_one_place_only() {
    let folder = Folder::new();
    folder.linear("scale/1", 1, &[1.0]);
    let server = Running::start(&folder).await;
    let mut registry = server.registry().await;
    let error = send(&mut registry, upload_of("scale", &folder.package("scale/1"))).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = registry.promote(promotion("scale", "1", "champion")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = registry.export(pb::ExportRequest {}).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");

    let (data, server, _, mut registry) = start().await;
    push(&mut registry, "scale", 1.0).await;
    // The folder is held: a second server on it does not start.
    let config = |models: Option<PathBuf>| ServerConfig {
        grpc: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        http: "127.0.0.1:0".parse().unwrap(),
        data: Some(data.path().to_owned()),
        models,
        ..ServerConfig::default()
    };
    assert!(Server::start(config(None)).await.is_err());
    server.shutdown().await;
    let error = Server::start(config(Some(folder.path().to_owned()))).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("`scale`"), "{error}");
}
