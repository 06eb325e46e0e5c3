//! Performance by feedback: what labels say of versions is found, told and shown, and what a rollout's gates hold a candidate to.

use crate::registry::{promote, send, upload_of};
use crate::support::{Folder, Receiver, Running, matrix, patiently, until};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::RolloutState as Ended;
use sconce_client::control_proto::outcome::Value;
use sconce_client::{Client, Code, FeedbackClient, HealthClient, InferRequest, Options, TrafficClient};
use sconce_monitor::{Metrics, PerformanceReport, PerformanceSpec, State};
use sconce_proto::sconce::register_request::Part;
use sconce_server::{ServerConfig, WebhookConfig};
use serde_json::{Value as Json, json};
use std::path::Path;

const MODEL: &str = "cancer";
const NOTED: &str = "data_policy = 'outputs'\nfeedback = { sample = 1.0 }";

/// Cohorts of two seconds whose labels come at once.
fn quick(config: &mut ServerConfig) {
    config.allow_plaintext = true;
    config.performance =
        PerformanceSpec { cohort_ms: 2_000, maturity_ms: 0, minimum_drop: 0.2, ..PerformanceSpec::default() };
}

async fn start(data: &Path, change: impl FnOnce(&mut ServerConfig)) -> (Running, Client, FeedbackClient) {
    let server = Running::stored(data, |config| {
        quick(config);
        change(config);
    })
    .await;
    let client = server.client().await;
    let feedback = FeedbackClient::connect(&server.control().to_string(), Options::default()).await.unwrap();
    (server, client, feedback)
}

/// Registers a version that was right about so many of a hundred decisions.
async fn push(server: &Running, version: &str, accuracy: f64) {
    let folder = Folder::new();
    folder.demo(MODEL, NOTED);
    let mut parts = upload_of(MODEL, &folder.package(&format!("{MODEL}/{version}")));
    if let Some(Part::Header(header)) = parts.first_mut() {
        header.metrics.insert("accuracy".to_owned(), accuracy);
    }
    send(&mut server.registry().await, parts).await.unwrap();
}

/// A prediction's id, what it said, and the version.
async fn ask(client: &Client) -> (String, String, String) {
    let request = InferRequest::new(MODEL).input("features", matrix(&[[0.5; 30]]));
    let answer = client.infer(request).await.unwrap();
    let scores: Vec<f32> = answer.output("probabilities").unwrap().f32_values().collect();
    let said = if scores[0] > scores[1] { "malignant" } else { "benign" };
    (answer.prediction_id().unwrap().to_owned(), said.to_owned(), answer.model_version.clone())
}

fn other(said: &str) -> String {
    if said == "benign" { "malignant" } else { "benign" }.to_owned()
}

/// Asks `count` times, and says that what was said was right, or of every version that `is_right` says it of.
async fn ask_and_label(
    client: &Client,
    feedback: &FeedbackClient,
    count: usize,
    is_right: impl Fn(&str) -> bool,
) {
    let mut outcomes = Vec::new();
    for _ in 0..count {
        let (prediction_id, said, version) = ask(client).await;
        let label = if is_right(&version) { said } else { other(&said) };
        outcomes.push(pb::Outcome { prediction_id, value: Some(Value::Label(label)), ..Default::default() });
    }
    let request = pb::RecordFeedbackRequest { model: MODEL.to_owned(), outcomes };
    feedback.record(request).await.unwrap();
}

/// Asks and labels on until the metric says so of version 1.
async fn until_state(
    server: &Running,
    client: &Client,
    feedback: &FeedbackClient,
    is_right: bool,
    state: &str,
) {
    let sample = format!("sconce_performance_state{{model=\"{MODEL}\",version=\"1\",state=\"{state}\"}} 1");
    let stands = async {
        while !server.scrape("text/plain").await.1.lines().any(|line| line == sample) {
            ask_and_label(client, feedback, 50, |_| is_right).await;
        }
    };
    patiently(state, stands).await;
}

fn asking(model: &str) -> pb::GetPerformanceRequest {
    // All in one cohort, whenever that began.
    let cohort_ms = 1 << 50;
    pb::GetPerformanceRequest { model: model.to_owned(), cohort_ms, ..Default::default() }
}

fn reports(answer: &pb::GetPerformanceResponse) -> Vec<(u64, String, PerformanceReport)> {
    let report = |it: &pb::VersionPerformance| {
        (it.version, it.variant.clone(), serde_json::from_str(&it.report_json).unwrap())
    };
    answer.versions.iter().map(report).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_worse_is_found_told_and_shown_until_it_does_not() {
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let receiver = Receiver::start([]).await;
    let secret = elsewhere.path().join("secret");
    std::fs::write(&secret, "what only the two of us may know").unwrap();
    let events = ["sconce.performance.*", "sconce.monitor.retrain.v1"].map(str::to_owned).to_vec();
    let hook =
        WebhookConfig { url: receiver.url(), secret_file: Some(secret), events, ..WebhookConfig::default() };
    let (server, client, feedback) = start(data.path(), |config| config.webhooks = vec![hook]).await;
    push(&server, "1", 0.95).await;
    promote(&mut server.registry().await, MODEL, "1", "champion").await;

    until_state(&server, &client, &feedback, true, "stable").await;
    until_state(&server, &client, &feedback, false, "degraded").await;
    let (_, text) = server.scrape("text/plain").await;
    let baseline = format!("sconce_accuracy_baseline_ratio{{model=\"{MODEL}\",version=\"1\"}} 0.95");
    assert!(text.lines().any(|line| line == baseline), "{text}");
    let health = HealthClient::connect(&server.control().to_string(), Options::default()).await.unwrap();
    let alerts = health.health(Some(MODEL)).await.unwrap().alerts;
    let alert = alerts.iter().find(|alert| alert.name == "SconceAccuracyDrop").expect("an alert");
    assert!(alert.summary.starts_with("version 1: accuracy ") && alert.since_ms > 0, "{}", alert.summary);
    until_state(&server, &client, &feedback, true, "stable").await;
    assert!(!health.health(Some(MODEL)).await.unwrap().alerts.iter().any(|it| it.name == alert.name));

    // That it is stable is told where it was something else before.
    let told = || -> Vec<Json> {
        let told = receiver.taken().into_iter().map(|posted| posted.json());
        told.skip_while(|event| event["type"] == "sconce.performance.stable.v1").collect()
    };
    until("three events", async || told().len() == 3).await;
    let told = told();
    let kinds: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected = ["performance.degraded", "monitor.retrain", "performance.stable"];
    assert_eq!(kinds, expected.map(|kind| format!("sconce.{kind}.v1")));
    assert_eq!(told[0]["source"], format!("/sconce/models/{MODEL}/versions/1"));
    let of = |key: &str| told[0]["data"][key].as_f64().unwrap();
    assert!(
        of("accuracy") < 0.75 && of("accuracy_baseline") == 0.95 && of("labelled") >= 100.0,
        "{}",
        told[0]
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_predictions_were_worth_is_read_from_what_is_kept_by_version_and_variant() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, feedback) = start(data.path(), |_| {}).await;
    for (version, accuracy) in [("1", 0.95), ("2", 0.9)] {
        push(&server, version, accuracy).await;
    }
    promote(&mut server.registry().await, MODEL, "1", "champion").await;
    let traffic = server.traffic().await;
    split(&traffic).await;
    // Of version 1 all are right, of version 2 none; a fifth of all has no label.
    ask_and_label(&client, &feedback, 160, |version| version == "1").await;
    for _ in 0..40 {
        ask(&client).await;
    }
    server.until_metric("sconce_exposures_total{status=\"written\"}", 200).await;
    let value = |truth: &str, decision: &str, value| pb::DecisionValue {
        truth: truth.to_owned(),
        decision: decision.to_owned(),
        value,
    };
    let values = vec![
        value("benign", "malignant", -3.0),
        value("malignant", "benign", -3.0),
        value("benign", "benign", 1.0),
        value("malignant", "malignant", 1.0),
    ];
    let asked = pb::GetPerformanceRequest { by_variant: true, values, ..asking(MODEL) };
    let answer = feedback.performance(asked.clone()).await.unwrap();
    assert_eq!((answer.predictions, answer.cut), (200, false));
    let found = reports(&answer);
    let [(1, old, first), (2, new, second)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((old.as_str(), new.as_str()), ("old", "new"));
    let mut sum = (0, 0);
    for (report, accuracy, expected, worth) in [(first, 1.0, 0.95, 1.0), (second, 0.0, 0.9, -3.0)] {
        let [cohort] = &report.cohorts[..] else { panic!("{report:?}") };
        let Some(Metrics::Classes(metrics)) = &cohort.metrics else { panic!("{cohort:?}") };
        assert_eq!((metrics.accuracy, report.baseline.accuracy), (accuracy, Some(expected)));
        assert_eq!(cohort.value, Some(worth * cohort.labelled as f64));
        // The cohort is not over, so nothing is said of it yet.
        assert_eq!((cohort.is_mature, report.state), (false, State::NotEnoughEvidence));
        sum = (sum.0 + cohort.predicted, sum.1 + cohort.labelled);
    }
    assert_eq!(sum, (200, 160));
    // One version alone, by its alias; and what is not there, or no question.
    let champion = pb::GetPerformanceRequest { version: "champion".to_owned(), ..asking(MODEL) };
    let of_one = reports(&feedback.performance(champion).await.unwrap());
    assert_eq!(
        of_one.iter().map(|(version, variant, _)| (*version, variant.as_str())).collect::<Vec<_>>(),
        [(1, "")]
    );
    let later = pb::GetPerformanceRequest { from_ms: u64::MAX / 4, ..asking(MODEL) };
    assert_eq!(feedback.performance(later).await.unwrap().versions, []);
    let code = async |request| feedback.performance(request).await.unwrap_err().code();
    assert_eq!(code(asking("nobody")).await, Code::NotFound);
    assert_eq!(
        code(pb::GetPerformanceRequest { version: "9".to_owned(), ..asking(MODEL) }).await,
        Code::NotFound
    );
    let worthless = vec![value("a", "b", f64::NAN)];
    assert_eq!(
        code(pb::GetPerformanceRequest { values: worthless, ..asking(MODEL) }).await,
        Code::InvalidArgument
    );
    let outside = FeedbackClient::connect(&server.grpc().to_string(), Options::default()).await.unwrap();
    assert_eq!(outside.performance(asking(MODEL)).await.unwrap_err().code(), Code::PermissionDenied);
    // It is the same after a restart: nothing is summed up in memory.
    server.shutdown().await;
    let (server, _, feedback) = start(data.path(), |_| {}).await;
    let again = feedback.performance(asked).await.unwrap();
    let figures = |answer: &pb::GetPerformanceResponse| {
        let cohort = |(_, _, report): (u64, String, PerformanceReport)| {
            report.cohorts.into_iter().map(|it| (it.predicted, it.labelled, it.value)).collect::<Vec<_>>()
        };
        reports(answer).into_iter().map(cohort).collect::<Vec<_>>()
    };
    assert_eq!(figures(&again), figures(&answer));
    server.shutdown().await;
}

/// Half to each version.
async fn split(traffic: &TrafficClient) {
    let split = |variant: &str, target: &str| pb::Split {
        variant: variant.to_owned(),
        target: target.to_owned(),
        percent: 50.0,
        id: None,
    };
    let spec = pb::RouteSpec { splits: vec![split("old", "1"), split("new", "2")], ..Default::default() };
    let (model, spec) = (MODEL.to_owned(), Some(spec));
    let request = pb::SetRouteRequest { model, spec, reason: String::new(), expected_revision: None };
    traffic.set_route(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_held_against_numbers() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, feedback) = start(data.path(), |_| {}).await;
    let folder = Folder::new();
    folder.linear("m/1", 1, &[2.0]);
    folder.file("m/1", "model.toml", format!("family = 'tabular'\n{NOTED}"));
    let mut registry = server.registry().await;
    send(&mut registry, upload_of("double", &folder.package("m/1"))).await.unwrap();
    promote(&mut registry, "double", "1", "champion").await;
    let mut outcomes = Vec::new();
    for at in 0..10_u8 {
        let request = InferRequest::new("double").input("features", matrix(&[[f32::from(at)]]));
        let prediction_id = client.infer(request).await.unwrap().prediction_id().unwrap().to_owned();
        let truth = 2.0 * f64::from(at) + if at % 2 == 0 { 0.5 } else { -1.5 };
        let value = Some(if at == 9 { Value::Label("lots".to_owned()) } else { Value::Number(truth) });
        let metric = "label".to_owned();
        outcomes.push(pb::Outcome { prediction_id, metric, value, ..Default::default() });
    }
    let request = pb::RecordFeedbackRequest { model: "double".to_owned(), outcomes };
    feedback.record(request).await.unwrap();
    server.until_metric("sconce_exposures_total{status=\"written\"}", 10).await;
    let found = reports(&feedback.performance(asking("double")).await.unwrap());
    let [cohort] = &found[0].2.cohorts[..] else { panic!("{found:?}") };
    assert_eq!((cohort.predicted, cohort.labelled, cohort.unfit), (10, 10, 1));
    let Some(Metrics::Numbers(metrics)) = &cohort.metrics else { panic!("{cohort:?}") };
    // Five are off by 0.5, four by 1.5 the other way.
    assert!((metrics.mean_absolute_error - 8.5 / 9.0).abs() < 1e-6, "{metrics:?}");
    assert!((metrics.bias.unwrap() - 3.5 / 9.0).abs() < 1e-6, "{metrics:?}");
    server.shutdown().await;
}

fn canary() -> pb::StartRolloutRequest {
    let plan = json!({
        "candidate": "2",
        "strategy": { "canary": { "stages": [
            { "percent": 50.0, "min_seconds": 0, "min_samples": 100 },
            { "percent": 100.0, "min_seconds": 0, "min_samples": 1 },
        ] } },
        "gates": [{ "metric": "accuracy", "vs_control": 0.1, "min": 0.6 }],
    });
    pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        reason: "a test".to_owned(),
        dry_run: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_wrong_by_its_labels_is_rolled_back_and_one_that_is_right_promoted() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, feedback) = start(data.path(), |_| {}).await;
    for version in ["1", "2"] {
        push(&server, version, 0.95).await;
    }
    promote(&mut server.registry().await, MODEL, "1", "champion").await;
    let traffic = server.traffic().await;
    // Without a label there is no accuracy to ask about.
    let refused = traffic.start_rollout(canary()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("no labels come for this model"), "{refused}");
    // Labels of before the rollout are no evidence in it.
    ask_and_label(&client, &feedback, 100, |_| false).await;
    for (is_right, end) in [(false, Ended::RolledBack), (true, Ended::Promoted)] {
        let begun = async {
            // The exposures that the labels are of are on their way.
            while let Err(error) = traffic.start_rollout(canary()).await {
                assert!(error.to_string().contains("no labels come"), "{error}");
            }
        };
        patiently("the labels are known", begun).await;
        let get =
            async || traffic.get_rollout(pb::GetRolloutRequest { model: MODEL.to_owned() }).await.unwrap();
        let to_its_end = async {
            while get().await.state() == Ended::Running {
                ask_and_label(&client, &feedback, 50, |version| version == "1" || is_right).await;
            }
        };
        patiently(end.as_str_name(), to_its_end).await;
        let ended = get().await;
        assert_eq!(ended.state(), end, "{ended:?}");
        let gate = &ended.gates[0];
        assert!(gate.sentence.starts_with("accuracy is "), "{}", gate.sentence);
    }
    server.shutdown().await;
}
