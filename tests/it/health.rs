//! The health report: a server that is well, models that keep nothing of what is expected of them, and what cannot be loaded.

use crate::support::{Folder, Running, identity_request, matrix, until};
use sconce_client::{Code, HealthClient, InferRequest, Options};
use sconce_proto::sconce as pb;
use sconce_server::ModelObjectives;
use std::time::Duration;

async fn health(server: &Running) -> HealthClient {
    HealthClient::connect(&server.control().to_string(), Options::default()).await.unwrap()
}

fn objective<'a>(report: &'a pb::HealthReport, model: &str, name: &str) -> &'a pb::SloObjective {
    let model = report.models.iter().find(|one| one.model == model).unwrap();
    model.objectives.iter().find(|one| one.name == name).unwrap()
}

/// The report once `requests` to `model` with nothing wrong about them were counted: that is when the last byte of each answer has left.
async fn counted(health: &HealthClient, model: &str, requests: u64) -> pb::HealthReport {
    let mut report = pb::HealthReport::default();
    until("the requests to be counted", async || {
        report = health.health(None).await.unwrap();
        objective(&report, model, "error_rate").windows[0].requests == requests
    })
    .await;
    report
}

fn alerts(report: &pb::HealthReport) -> Vec<(&str, &str, &str)> {
    report.alerts.iter().map(|one| (one.severity.as_str(), one.name.as_str(), one.model.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_in_time_is_healthy_and_one_that_does_not_says_who_and_how_much() {
    let folder = Folder::new();
    folder.identity("good/1", "");
    folder.identity("late/1", "delay_ms = 20");
    let server = Running::configured(&folder, |config| {
        let strict = ModelObjectives { p95_ms: Some(5.0), p99_ms: Some(60_000.0), ..Default::default() };
        config.objectives.models.insert("late".to_owned(), strict);
    })
    .await;
    let (client, health) = (server.client().await, health(&server).await);
    let before = health.health(None).await.unwrap();
    assert_eq!((before.status(), alerts(&before)), (pb::HealthStatus::Healthy, vec![]), "{before:?}");
    assert_eq!(objective(&before, "good", "p95_ms").status(), pb::SloStatus::NoData);

    for _ in 0..20 {
        client.infer(identity_request("good", 1)).await.unwrap();
    }
    let report = counted(&health, "good", 20).await;
    assert_eq!((report.status(), alerts(&report)), (pb::HealthStatus::Healthy, vec![]), "{report:?}");
    for name in ["p95_ms", "p99_ms", "error_rate", "availability"] {
        let kept = objective(&report, "good", name);
        assert_eq!(kept.status(), pb::SloStatus::Met, "{kept:?}");
        assert!(
            kept.windows.iter().all(|window| window.requests == 20 && window.burn_rate == 0.0),
            "{kept:?}"
        );
    }

    // Requests that are wrong are no fault of the model's, as in the Prometheus rules, and late answers are no errors.
    for _ in 0..10 {
        let wrong = InferRequest::new("good").input("no such input", matrix(&[[1.0]]));
        assert_eq!(client.infer(wrong).await.unwrap_err().code(), Code::InvalidArgument);
        client.infer(identity_request("late", 1)).await.unwrap();
    }
    server.until_metric("sconce_requests_total{model=\"good\",outcome=\"refused\"}", 10).await;
    let report = counted(&health, "late", 10).await;
    let critical = |model| ("critical", "SconceSloBurnFast", model);
    assert_eq!(alerts(&report), [critical("late")]);
    assert_eq!(report.status(), pb::HealthStatus::Unhealthy);
    for name in ["error_rate", "availability"] {
        let kept = objective(&report, "good", name);
        assert_eq!((kept.status(), kept.windows[0].requests), (pb::SloStatus::Met, 20), "{kept:?}");
    }
    let late = objective(&report, "late", "p95_ms");
    assert!(late.status() == pb::SloStatus::Burning && late.windows[0].value.unwrap() > 5.0, "{late:?}");
    assert_eq!(objective(&report, "late", "p99_ms").status(), pb::SloStatus::Met);
    assert!(report.alerts.iter().all(|alert| alert.since_ms > 0 && !alert.summary.is_empty()), "{report:?}");

    // What is asked about one model is about that one.
    let of_late = health.health(Some("late")).await.unwrap();
    assert_eq!((of_late.models.len(), alerts(&of_late)), (1, vec![critical("late")]));
    for (name, code) in [("none", Code::NotFound), ("../x", Code::InvalidArgument)] {
        assert_eq!(health.health(Some(name)).await.unwrap_err().code(), code, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_objective_that_is_not_kept_is_told_before_it_wakes_anybody() {
    let folder = Folder::new();
    folder.identity("slow/1", "delay_ms = 30");
    let server = Running::start(&folder).await;
    let (client, health) = (server.client().await, health(&server).await);
    for _ in 0..4 {
        let request = identity_request("slow", 1).timeout(Duration::from_millis(5));
        assert_eq!(client.infer(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    let report = counted(&health, "slow", 4).await;
    assert_eq!(objective(&report, "slow", "error_rate").status(), pb::SloStatus::Violated);
    assert_eq!((report.status(), alerts(&report)), (pb::HealthStatus::Degraded, vec![]), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_answered_in_time_or_find_no_model_count_against_availability() {
    let folder = Folder::new();
    folder.identity("slow/1", "delay_ms = 200");
    folder.file("broken/1", "model.toml", "family = \"none\"");
    let server = Running::start(&folder).await;
    let (client, health) = (server.client().await, health(&server).await);
    for _ in 0..6 {
        let request = identity_request("slow", 1).timeout(Duration::from_millis(10));
        assert_eq!(client.infer(request).await.unwrap_err().code(), Code::DeadlineExceeded);
        let error = client.infer(identity_request("broken", 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
    }
    counted(&health, "slow", 6).await;
    // Nor are they answered to whoever scrapes; also where there is no version to count.
    server
        .until_metric("sconce_predictions_total{model=\"slow\",version=\"1\",status=\"canceled\"}", 6)
        .await;
    assert_eq!(
        server.metric("sconce_predictions_total{model=\"slow\",version=\"1\",status=\"ok\"}").await,
        0
    );
    for model in ["slow", "broken"] {
        let failed = format!("sconce_requests_total{{model=\"{model}\",outcome=\"failed\"}}");
        assert_eq!(server.metric(&failed).await, 6);
    }
    let report = counted(&health, "broken", 6).await;
    for model in ["slow", "broken"] {
        let availability = objective(&report, model, "availability");
        assert_eq!(
            (availability.windows[0].requests, availability.windows[0].value),
            (6, Some(0.0)),
            "{report:?}"
        );
    }
    let names: Vec<&str> = report.components.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["server", "models", "memory.cpu", "limits", "traces"]);
    assert!(report.components[0].detail.contains("broken version 1"), "{report:?}");
    assert!(alerts(&report).contains(&("warning", "SconceLoadFailed", "broken")), "{report:?}");
    assert_eq!(report.status(), pb::HealthStatus::Unhealthy);
}
