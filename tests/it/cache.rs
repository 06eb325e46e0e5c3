//! Answers that are kept: whose they are, when they are not given, and that equal requests run once.

use crate::support::{Folder, Running, framed, identity_request, matrix, patiently};
use futures_util::future::join_all;
use sconce_client::proto::ModelStatistics;
use sconce_client::{Client, Code, InferRequest, Tensor};

const CACHE: &str = "[response_cache]\nmax_bytes = 1048576";

async fn statistics(client: &Client, model: &str) -> ModelStatistics {
    let mut all = client.model_statistics(model, "1").await.unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Successes, hits, misses, and batches.
async fn counts(client: &Client, model: &str) -> (u64, u64, u64, u64) {
    let statistics = statistics(client, model).await;
    let counts = statistics.inference_stats.unwrap();
    let count = |total: Option<sconce_client::proto::StatisticDuration>| total.unwrap().count;
    assert_eq!(count(counts.queue), count(counts.success));
    (count(counts.success), count(counts.cache_hit), count(counts.cache_miss), statistics.execution_count)
}

fn sample(name: &str, model: &str) -> String {
    format!("{name}{{model=\"{model}\",version=\"1\"}}")
}

async fn echo(client: &Client, tensor: Tensor) {
    let answer = client.infer(InferRequest::new("echo").input("INPUT0", tensor.clone())).await.unwrap();
    assert_eq!(answer.output("OUTPUT0"), Some(&tensor));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_answer_is_given_again_counted_and_is_no_other_request_s() {
    let folder = Folder::new();
    folder.identity("echo/1", CACHE);
    folder.identity("plain/1", "");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let enabled = async |model: &str| {
        let config = client.model_config(model, "").await.unwrap();
        config.response_cache.is_some_and(|cache| cache.enable)
    };
    assert_eq!((enabled("echo").await, enabled("plain").await), (true, false));
    for round in 0..3 {
        // Of equal bytes, and of equal shapes.
        echo(&client, matrix(&[[1.0, 2.0]])).await;
        echo(&client, matrix(&[[1.0], [2.0]])).await;
        echo(&client, matrix(&[[2.0, 1.0]])).await;
        assert_eq!(counts(&client, "echo").await, (3 * (round + 1), 3 * round, 3, 3));
    }
    assert_eq!(server.metric(&sample("sconce_cache_hits_total", "echo")).await, 6);
    assert_eq!(server.metric(&sample("sconce_cache_misses_total", "echo")).await, 3);
    assert_eq!(server.metric(&sample("nv_cache_num_hits_per_model", "echo")).await, 6);
    assert_eq!(server.metric(&sample("sconce_cache_bytes_limit", "echo")).await, 1 << 20);
    assert!(server.metric(&sample("sconce_cache_bytes", "echo")).await > 3 * 8);
    // Which outputs are wanted, and how, is no part of what is kept.
    let request = || InferRequest::new("echo").input("INPUT0", matrix(&[[1.0, 2.0]]));
    let classes = client.infer(request().classification("OUTPUT0", 1)).await.unwrap();
    assert_eq!(classes.output("OUTPUT0").unwrap().shape(), [1, 1]);
    assert_eq!(counts(&client, "echo").await, (10, 7, 3, 3));
    // One that is not kept is as ever.
    client.infer(identity_request("plain", 1)).await.unwrap();
    client.infer(identity_request("plain", 1)).await.unwrap();
    assert_eq!(counts(&client, "plain").await, (2, 0, 0, 2));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_request_gets_no_kept_answer() {
    let folder = Folder::new();
    folder.identity("echo/1", CACHE);
    let server = Running::start(&folder).await;
    let wire = server.wire().await;
    assert_eq!(wire.infer(&[], identity_request("echo", 1)).await.code, Code::Ok);
    for timeout in ["0S", "1n"] {
        let headers = [("grpc-timeout", timeout)];
        let calls = (0..50).map(|_| wire.infer(&headers, identity_request("echo", 1)));
        for outcome in join_all(calls).await {
            assert_eq!(outcome.code, Code::DeadlineExceeded);
        }
    }
    assert_eq!(counts(&server.client().await, "echo").await, (1, 0, 1, 1));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_equal_requests_run_once() {
    let folder = Folder::new();
    folder.identity("slow/1", &format!("instances = 1\nmax_batch_size = 1\ndelay_ms = 200\n{CACHE}"));
    let server = Running::start(&folder).await;
    let clients = join_all((0..4).map(|_| server.client())).await;
    let ask = |number: usize| clients[number % clients.len()].infer(identity_request("slow", 1));
    let answers = patiently("the answers", join_all((0..100).map(ask))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().output("OUTPUT0"), Some(&matrix(&[[1.5]])));
    }
    assert_eq!(counts(&clients[0], "slow").await, (100, 99, 1, 1));
    server.until_idle().await;
}

/// A model that waits for a second row much longer than any test takes, and keeps its answers.
async fn waiting() -> Running {
    let folder = Folder::new();
    folder.identity(
        "waiting/1",
        &format!("instances = 1\nmax_batch_size = 2\nmax_queue_delay_ms = 60000\n{CACHE}"),
    );
    Running::start(&folder).await
}

/// Asks `waiting` what another asks already, has that one give up, and has an answer all the same.
async fn another_takes_over(server: &Running, gives_up: impl AsyncFnOnce()) {
    let misses = sample("sconce_cache_misses_total", "waiting");
    server.until_metric(&misses, 1).await;
    let client = server.client().await;
    let second = tokio::spawn(async move { client.infer(identity_request("waiting", 1)).await });
    server.until_metric("sconce_streams", 2).await;
    gives_up().await;
    server.until_metric(&misses, 2).await;
    // Nobody need wait for company any more.
    server.admin().await.repository_unload("waiting").await.unwrap();
    let answer = patiently("an answer", second).await.unwrap().unwrap();
    assert_eq!(answer.output("OUTPUT0"), Some(&matrix(&[[1.5]])));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_when_the_caller_of_the_one_that_runs_goes_away() {
    let server = waiting().await;
    let wire = server.wire().await;
    let (mut upload, _answer) = wire.open(&[]).await;
    upload.send(framed(identity_request("waiting", 1)), true).await.unwrap();
    another_takes_over(&server, async || drop(wire)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_when_the_one_that_runs_expires() {
    let server = waiting().await;
    let wire = server.wire().await;
    let first =
        tokio::spawn(
            async move { wire.infer(&[("grpc-timeout", "1S")], identity_request("waiting", 1)).await },
        );
    another_takes_over(&server, async || assert_eq!(first.await.unwrap().code, Code::DeadlineExceeded)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_not_kept() {
    let folder = Folder::new();
    folder.linear("steep/1", 2, &[3e38, 3e38]);
    folder.file("steep/1", "model.toml", CACHE);
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let ask = async |row: [f32; 2]| {
        let asked = client.infer(InferRequest::new("steep").input("features", matrix(&[row]))).await;
        asked.map_or_else(|error| error.code(), |_| Code::Ok)
    };
    for _ in 0..2 {
        assert_eq!(ask([1.0, 0.0]).await, Code::Ok);
        assert_eq!(ask([10.0, -10.0]).await, Code::Internal);
        assert_eq!(ask([1.0, f32::NAN]).await, Code::InvalidArgument);
    }
    let client = server.client().await;
    assert_eq!(counts(&client, "steep").await, (2, 1, 3, 3));
    let failed = statistics(&client, "steep").await.inference_stats.unwrap().fail.unwrap().count;
    assert_eq!(failed, 4);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_s_answers_are_its_own() {
    let folder = Folder::new();
    for (version, factor) in [("scale/1", 1.0), ("scale/2", 2.0)] {
        folder.linear(version, 1, &[factor]);
        folder.file(version, "model.toml", CACHE);
    }
    let server = Running::start(&folder).await;
    let client = server.client().await;
    let ask = async |version: &str| {
        let request = InferRequest::new("scale").version(version).input("features", matrix(&[[1.0]]));
        client.infer(request).await.unwrap().output("prediction").unwrap().f32_values().next()
    };
    for _ in 0..2 {
        assert_eq!((ask("1").await, ask("2").await, ask("").await), (Some(1.0), Some(2.0), Some(2.0)));
    }
    // The same version with other weights is another version as well.
    folder.linear("scale/2", 1, &[3.0]);
    server.admin().await.repository_load("scale").await.unwrap();
    assert_eq!((ask("1").await, ask("2").await), (Some(1.0), Some(3.0)));
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_answers_than_there_is_room_for_take_turns() {
    let folder = Folder::new();
    folder.identity("echo/1", "[response_cache]\nmax_bytes = 4096");
    let server = Running::start(&folder).await;
    let client = server.client().await;
    for round in 0..3 {
        for value in 0..40 {
            echo(&client, matrix(&[[value as f32, round as f32]])).await;
            assert!(server.metric(&sample("sconce_cache_bytes", "echo")).await <= 4096);
        }
    }
    // One that alone is over the bound is answered and not kept.
    let large = vec![[0.5; 64]; 64];
    for _ in 0..2 {
        echo(&client, matrix(&large)).await;
    }
    assert_eq!(counts(&client, "echo").await, (122, 0, 122, 122));
}
