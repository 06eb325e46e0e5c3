//! Deadlines, callers that go away, models that come and go, and the end of the server.

use crate::support::{Folder, Running, Traffic, connect, framed, identity_request, matrix, patiently, until};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use sconce_client::proto::{ModelStatistics, repository_index_response::ModelIndex};
use sconce_client::{Client, Code, Error, InferRequest};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const LANES: usize = 8;

async fn clients(server: &Running, count: usize) -> Vec<Client> {
    join_all((0..count).map(|_| server.client())).await
}

async fn statistics(client: &Client, model: &str) -> ModelStatistics {
    let mut all = client.model_statistics(model, "1").await.unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn failures(statistics: &ModelStatistics) -> u64 {
    statistics.inference_stats.as_ref().unwrap().fail.as_ref().unwrap().count
}

async fn index_of(client: &Client, model: &str) -> Vec<ModelIndex> {
    let index = client.repository_index(false).await.unwrap();
    index.into_iter().filter(|entry| entry.name == model).collect()
}

async fn infer_code(client: &Client, request: InferRequest) -> Code {
    patiently("an answer", client.infer(request)).await.err().map_or(Code::Ok, |error| error.code())
}

fn linear_request(model: &str, version: &str, value: f32) -> InferRequest {
    InferRequest::new(model).version(version).input("features", matrix(&[[value]]))
}

/// The first number of an answer of a one-column model.
async fn ask_linear(client: &Client, request: InferRequest) -> Result<f32, Error> {
    let answer = client.infer(request).await?;
    Ok(answer.output("prediction").unwrap().f32_values().next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_expired_calls_are_a_thousand_deadline_exceeded() {
    let folder = Folder::new();
    // Every batch takes longer than the longest of these deadlines, so none of the calls can have an answer in time.
    folder.identity("slow/1", "instances = 1\nmax_batch_size = 1\ndelay_ms = 50");
    let server = Running::start(&folder).await;
    for timeout in ["0S", "1n", "1u", "1m"] {
        let wire = server.wire().await;
        let headers = [("grpc-timeout", timeout)];
        let calls = (0..250).map(|_| wire.infer(&headers, identity_request("slow", 1)));
        let outcomes = join_all(calls).await;
        let late = outcomes.iter().filter(|outcome| outcome.code == Code::DeadlineExceeded).count();
        assert_eq!(late, 250, "{timeout}: {outcomes:?}");
    }
    assert_eq!(infer_code(&server.client().await, identity_request("slow", 1)).await, Code::Ok);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_deadline_is_an_invalid_argument() {
    let server = Running::start(&Folder::new()).await;
    let wire = server.wire().await;
    for timeout in ["", "5", "m", "-1m", "1s", "123456789n"] {
        let outcome = wire.infer(&[("grpc-timeout", timeout)], identity_request("identity", 1)).await;
        assert_eq!(outcome.code, Code::InvalidArgument, "{timeout:?}");
    }
    let outcome = wire.infer(&[("grpc-timeout", "99999999H")], identity_request("identity", 1)).await;
    assert_eq!(outcome.code, Code::Ok);
}

/// A model that waits for a second row much longer than any test takes: what is queued stays until the test moves it.
fn waiting_for_company(folder: &Folder) {
    folder.identity("waiting/1", "instances = 1\nmax_batch_size = 2\nmax_queue_delay_ms = 60000");
}

const WAITING: &str = "sconce_queue_depth{model=\"waiting\",version=\"1\"}";

/// Asks `waiting` for two rows, a batch of their own, and checks that these two are all it ever executed.
async fn only_two_rows_reach_the_model(client: &Client) {
    assert_eq!(infer_code(client, identity_request("waiting", 2)).await, Code::Ok);
    let statistics = statistics(client, "waiting").await;
    assert_eq!((statistics.inference_count, statistics.execution_count), (2, 1));
    assert_eq!(failures(&statistics), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_caller_left_the_queue_never_reaches_the_model() {
    let folder = Folder::new();
    waiting_for_company(&folder);
    let server = Running::start(&folder).await;
    let wire = server.wire().await;
    let (mut upload, _answer) = wire.open(&[]).await;
    upload.send(framed(identity_request("waiting", 1)), true).await.unwrap();
    server.until_metric(WAITING, 1).await;
    drop(wire);
    server.until_metric("sconce_streams", 0).await;
    only_two_rows_reach_the_model(&server.client().await).await;
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_expired_in_the_queue_never_reaches_the_model() {
    let folder = Folder::new();
    waiting_for_company(&folder);
    let server = Running::start(&folder).await;
    let outcome =
        server.wire().await.infer(&[("grpc-timeout", "100m")], identity_request("waiting", 1)).await;
    assert_eq!(outcome.code, Code::DeadlineExceeded);
    only_two_rows_reach_the_model(&server.client().await).await;
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_reloads_under_traffic_drop_no_request_and_none_gets_an_outdated_answer() {
    let folder = Folder::new();
    folder.linear("scale/1", 1, &[1.0]);
    folder.linear("scale/2", 1, &[2.0]);
    let server = Running::start(&folder).await;
    // What version 2 multiplies with, as loaded for sure and as written at most.
    let (loaded, written) = (Arc::new(AtomicUsize::new(2)), Arc::new(AtomicUsize::new(2)));
    let ask = {
        let (loaded, written) = (Arc::clone(&loaded), Arc::clone(&written));
        move |client: Client, number: usize| {
            let (loaded, written) = (Arc::clone(&loaded), Arc::clone(&written));
            async move {
                let version = ["", "1", "2"][number % 3];
                let least = loaded.load(Ordering::SeqCst) as f32;
                let got = ask_linear(&client, linear_request("scale", version, 1.0)).await?;
                let most = written.load(Ordering::SeqCst) as f32;
                let expected = if version == "1" { 1.0..=1.0 } else { least..=most };
                assert!(expected.contains(&got), "version {version:?}: {got} is not in {expected:?}");
                Ok(())
            }
        }
    };
    let traffic = Traffic::start(clients(&server, LANES).await, ask);
    let admin = server.admin().await;
    for factor in 3..23 {
        traffic.flow(5 * LANES).await;
        written.store(factor, Ordering::SeqCst);
        folder.linear("scale/2", 1, &[factor as f32]);
        patiently("a load", admin.repository_load("scale")).await.unwrap();
        loaded.store(factor, Ordering::SeqCst);
    }
    traffic.flow(5 * LANES).await;
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unloaded_model_is_unavailable_until_it_is_loaded_again() {
    let folder = Folder::new();
    folder.linear("one/1", 1, &[1.0]);
    folder.linear("one/2", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    let ask = |client: Client, number: usize| async move {
        let version = ["", "1", "2"][number % 3];
        ask_linear(&client, linear_request("one", version, 1.0)).await.map(drop)
    };
    let traffic = Traffic::start(clients(&server, LANES).await, ask);
    traffic.flow(5 * LANES).await;
    patiently("an unload", admin.repository_unload("one")).await.unwrap();
    // Every lane was answered until one clean refusal ended it.
    let failures = traffic.failures().await;
    assert_eq!(failures.len(), LANES);
    for error in failures {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("`one`"), "{error}");
    }

    for version in ["", "1", "2"] {
        assert_eq!(infer_code(&client, linear_request("one", version, 1.0)).await, Code::Unavailable);
        assert!(!client.model_ready("one", version).await.unwrap());
    }
    assert_eq!(infer_code(&client, linear_request("one", "3", 1.0)).await, Code::NotFound);
    assert_eq!(infer_code(&client, identity_request("identity", 1)).await, Code::Ok);
    let states: Vec<String> = index_of(&client, "one").await.into_iter().map(|entry| entry.state).collect();
    assert_eq!(states, ["UNAVAILABLE", "UNAVAILABLE"]);
    // Unloaded on purpose: nothing is wrong with the server.
    assert_eq!(server.readiness(), Ok(()));

    admin.repository_load("one").await.unwrap();
    assert_eq!(ask_linear(&client, linear_request("one", "1", 3.0)).await.unwrap(), 3.0);
    assert_eq!(ask_linear(&client, linear_request("one", "", 3.0)).await.unwrap(), 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_at_an_unload_are_answered_first() {
    let folder = Folder::new();
    folder.identity("late/1", "instances = 1\nmax_queue_delay_ms = 60000");
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    let waiting = join_all((0..5).map(|_| infer_code(&client, identity_request("late", 1))));
    let unload = async {
        server.until_metric("sconce_queue_depth{model=\"late\",version=\"1\"}", 5).await;
        admin.repository_unload("late").await.unwrap();
        index_of(&admin, "late").await.remove(0).state
    };
    let (codes, state) = tokio::join!(waiting, unload);
    assert_eq!(codes, [Code::Ok; 5]);
    assert_eq!(state, "UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_folder_is_gone_is_gone_after_the_next_load() {
    let folder = Folder::new();
    folder.linear("one/1", 1, &[1.0]);
    folder.linear("one/2", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    assert_eq!(ask_linear(&client, linear_request("one", "", 1.0)).await.unwrap(), 2.0);
    std::fs::remove_dir_all(folder.path().join("one/2")).unwrap();
    folder.linear("one/3", 1, &[3.0]);
    admin.repository_load("one").await.unwrap();
    assert_eq!(infer_code(&client, linear_request("one", "2", 1.0)).await, Code::NotFound);
    assert_eq!(ask_linear(&client, linear_request("one", "", 1.0)).await.unwrap(), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_shutdown_requests_that_wait_are_answered() {
    let folder = Folder::new();
    folder.identity("late/1", "instances = 1\nmax_queue_delay_ms = 60000");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { infer_code(&client, identity_request("late", 1)).await })
        })
        .collect();
    server.until_metric("sconce_queue_depth{model=\"late\",version=\"1\"}", 5).await;
    server.shutdown().await;
    for code in join_all(waiting).await {
        assert_eq!(code.unwrap(), Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_during_traffic_tells_every_caller() {
    let server = Running::start(&Folder::new()).await;
    let addr = server.grpc();
    let ask =
        |client: Client, _| async move { client.infer(identity_request("identity", 1)).await.map(drop) };
    let traffic = Traffic::start(clients(&server, LANES).await, ask);
    traffic.flow(20 * LANES).await;
    server.shutdown().await;
    let failures = traffic.failures().await;
    assert_eq!(failures.len(), LANES);
    for error in failures {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
    assert_eq!(connect(addr).await.unwrap_err().code(), Code::Unavailable);
}

async fn health(addr: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap())
}

fn check_of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];

#[tokio::test(flavor = "multi_thread")]
async fn watchers_of_health_see_not_serving_when_shutdown_begins() {
    let server = Running::start(&Folder::new()).await;
    let mut watches = Vec::new();
    for service in SERVICES {
        let mut watch = health(server.grpc()).await.watch(check_of(service)).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let shutdown = tokio::spawn(server.shutdown());
    for mut watch in watches {
        let next = patiently("a change of health", watch.message()).await.unwrap().unwrap();
        assert_eq!(next.status(), ServingStatus::NotServing);
    }
    shutdown.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_an_idle_stream_and_does_not_wait_for_its_caller() {
    let server = Running::start(&Folder::new()).await;
    let client = server.client().await;
    let (_keep_open, ended) = oneshot::channel::<()>();
    let one = stream::iter([identity_request("identity", 1)]);
    let none_more = stream::once(ended).filter_map(|_| async { None });
    let mut replies = client.stream(one.chain(none_more)).await.unwrap();
    assert!(replies.next().await.unwrap().unwrap().result.is_ok());
    server.shutdown().await;
    assert!(patiently("the end of the stream", replies.next()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_cuts_off_calls_that_outlast_the_drain_timeout() {
    let server = Running::limited(&Folder::new(), |limits| limits.drain_timeout_seconds = 0).await;
    let wire = server.wire().await;
    let (mut upload, answer) = wire.open(&[]).await;
    let message = framed(identity_request("identity", 1));
    upload.send(message.slice(..message.len() - 1), false).await.unwrap();
    until("the call", async || server.metric("sconce_inflight_bytes").await > 0).await;
    server.shutdown().await;
    drop(answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_package_keeps_the_server_unready_and_the_others_served() {
    let folder = Folder::new();
    folder.linear("good/1", 1, &[2.0]);
    folder.file("broken/1", "model.toml", "family = 'no such family'");
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    assert_eq!(ask_linear(&client, linear_request("good", "", 2.0)).await.unwrap(), 4.0);
    let error = client.infer(identity_request("broken", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);

    let reason = server.readiness().unwrap_err();
    assert!(reason.contains("broken version 1") && reason.contains("model.toml"), "{reason}");
    let (status, text) = server.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains(&reason), "{text}");
    assert_eq!(server.get("/healthz").await.0, 200);
    assert!(client.server_live().await.unwrap() && !client.server_ready().await.unwrap());
    assert!(
        client.model_ready("good", "").await.unwrap() && !client.model_ready("broken", "").await.unwrap()
    );
    let mut health = health(server.grpc()).await;
    for service in SERVICES {
        let answer = health.check(check_of(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::NotServing, "{service:?}");
    }
    let [entry] = &index_of(&client, "broken").await[..] else { panic!("one version is known") };
    assert_eq!(entry.state, "UNAVAILABLE");
    assert!(entry.reason.contains("no such family"), "{}", entry.reason);

    folder.identity("broken/1", "");
    admin.repository_load("broken").await.unwrap();
    assert_eq!(infer_code(&client, identity_request("broken", 1)).await, Code::Ok);
    assert_eq!(server.get("/readyz").await.0, 200);
    let answer = health.check(check_of("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_cannot_be_loaded_takes_no_server_out_that_was_ready() {
    let folder = Folder::new();
    folder.linear("one/1", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    for broken in ["one/2", "two/1"] {
        folder.file(broken, "model.toml", "family = 'no such family'");
    }
    for name in ["one", "two"] {
        assert_eq!(admin.repository_load(name).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(server.get("/readyz").await.0, 200);
    }
    assert!(client.server_ready().await.unwrap());
    let answer = health(server.grpc()).await.check(check_of("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    // Each says for itself that it is not there, and the one beside it answers.
    assert!(client.model_ready("one", "1").await.unwrap() && !client.model_ready("one", "2").await.unwrap());
    assert!(!client.model_ready("two", "").await.unwrap());
    assert_eq!(ask_linear(&client, linear_request("one", "", 2.0)).await.unwrap(), 4.0);
    let states = [index_of(&client, "one").await, index_of(&client, "two").await].concat();
    let states: Vec<&str> = states.iter().map(|entry| entry.state.as_str()).collect();
    assert_eq!(states, ["READY", "UNAVAILABLE", "UNAVAILABLE"]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_a_broken_package_makes_the_server_ready_again() {
    let folder = Folder::new();
    for name in ["unloaded", "deleted"] {
        folder.file(&format!("{name}/1"), "model.toml", "family = 'no such family'");
    }
    let server = Running::start(&folder).await;
    let admin = server.admin().await;
    assert!(server.readiness().is_err());
    admin.repository_unload("unloaded").await.unwrap();
    std::fs::remove_dir_all(folder.path().join("deleted")).unwrap();
    assert_eq!(admin.repository_load("deleted").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(server.readiness(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_keeps_the_version_that_is_served() {
    let folder = Folder::new();
    folder.linear("one/1", 1, &[2.0]);
    let server = Running::start(&folder).await;
    let (client, admin) = (server.client().await, server.admin().await);
    assert_eq!(ask_linear(&client, linear_request("one", "", 2.0)).await.unwrap(), 4.0);
    folder.file("one/1", "model.safetensors", "no weights");
    let error = admin.repository_load("one").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("model.safetensors"), "{error}");

    assert_eq!(ask_linear(&client, linear_request("one", "1", 2.0)).await.unwrap(), 4.0);
    assert_eq!(index_of(&client, "one").await[0].state, "READY");
    assert_eq!(statistics(&client, "one").await.inference_count, 2);
    assert_eq!(server.readiness(), Ok(()));
}
