//! Feedback: what was predicted and what turned out, joined, and that neither is lost.

use crate::registry::{Registry, promote, push, send, upload_of};
use crate::support::{Folder, Running, matrix};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::outcome::Value;
use sconce_client::{Client, Code, FeedbackClient, InferRequest, Options, TrafficClient};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use tempfile::TempDir;

pub(crate) const MODEL: &str = "scale";
pub(crate) const WRITTEN: &str = "sconce_exposures_total{status=\"written\"}";

async fn start() -> (TempDir, Running, Client, TrafficClient) {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let mut registry: Registry = server.registry().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    let (client, traffic) = (server.client().await, server.traffic().await);
    (data, server, client, traffic)
}

pub(crate) async fn feedback(addr: SocketAddr) -> FeedbackClient {
    FeedbackClient::connect(&addr.to_string(), Options::default()).await.unwrap()
}

/// Half to each version, by user.
pub(crate) async fn split(traffic: &TrafficClient) {
    let split = |variant: &str, target: &str| pb::Split {
        variant: variant.to_owned(),
        target: target.to_owned(),
        percent: 50.0,
        id: None,
    };
    let key = pb::Key { from: Some(pb::key::From::Metadata("x-user-id".to_owned())) };
    let spec = pb::RouteSpec {
        splits: vec![split("old", "1"), split("new", "2")],
        sticky: Some(pb::Sticky { salt: "s".to_owned(), key: Some(key) }),
        ..Default::default()
    };
    let (model, spec) = (MODEL.to_owned(), Some(spec));
    let request = pb::SetRouteRequest { model, spec, reason: String::new(), expected_revision: None };
    traffic.set_route(request).await.unwrap();
}

/// The prediction's id and its variant.
pub(crate) async fn ask(client: &Client, user: &str) -> (String, Option<String>) {
    let request = InferRequest::new(MODEL).input("features", matrix(&[[1.0]]));
    let answer = client.infer(request.metadata("x-user-id", user)).await.unwrap();
    let variant = answer.parameters.get("variant").map(|variant| match variant {
        sconce_client::Parameter::StringParam(variant) => variant.clone(),
        other => panic!("{other:?}"),
    });
    (answer.prediction_id().unwrap().to_owned(), variant)
}

pub(crate) fn outcome(id: &str, metric: &str, value: Value) -> pb::Outcome {
    pb::Outcome {
        prediction_id: id.to_owned(),
        metric: metric.to_owned(),
        value: Some(value),
        ..Default::default()
    }
}

pub(crate) async fn record(client: &FeedbackClient, outcomes: Vec<pb::Outcome>) -> (u64, u64, u64) {
    let request = pb::RecordFeedbackRequest { model: MODEL.to_owned(), outcomes };
    let done = client.record(request).await.unwrap();
    (done.recorded, done.replaced, done.unknown)
}

/// Everything, in pages of `size`.
async fn listed(client: &FeedbackClient, model: &str, size: u32) -> Vec<pb::JoinedPrediction> {
    let mut request =
        pb::ListFeedbackRequest { model: model.to_owned(), page_size: size, ..Default::default() };
    let mut all = Vec::new();
    loop {
        let page = client.list(request.clone()).await.unwrap();
        all.extend(page.predictions);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

async fn reopen(data: &Path) -> Running {
    Running::stored(data, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_turned_out_is_joined_with_what_was_predicted_over_restarts() {
    let (data, server, client, traffic) = start().await;
    // Nobody is split, and nobody asked for exposures.
    ask(&client, "nobody").await;
    split(&traffic).await;
    let mut asked = Vec::new();
    for number in 0..60 {
        let user = format!("user-{}", number % 20);
        let (id, variant) = ask(&client, &user).await;
        asked.push((id, user, variant.unwrap()));
    }
    server.until_metric(WRITTEN, 60).await;
    // Whoever asks for predictions says what came of them, on the same listener.
    let sender = feedback(server.grpc()).await;
    let outcomes = asked.iter().step_by(2).flat_map(|(id, _, _)| {
        [outcome(id, "", Value::Converted(true)), outcome(id, "revenue", Value::Number(2.5))]
    });
    assert_eq!(record(&sender, outcomes.collect()).await, (60, 0, 0));
    // Another word takes the place of the first. What is not known here is kept and counted.
    let elsewhere = "01a203af-d337-741e-a1ed-2c41e7f0794b";
    let more = vec![
        outcome(&asked[0].0, "", Value::Converted(false)),
        outcome(elsewhere, "", Value::Label("cat".to_owned())),
    ];
    assert_eq!(record(&sender, more).await, (2, 1, 1));
    for (result, count) in [("recorded", 62), ("replaced", 1), ("unknown", 1)] {
        let metric = format!("sconce_feedback_outcomes_total{{result=\"{result}\"}}");
        assert_eq!(server.metric(&metric).await, count, "{result}");
    }
    let list = sender.list(pb::ListFeedbackRequest { model: MODEL.to_owned(), ..Default::default() }).await;
    assert_eq!(list.unwrap_err().code(), Code::PermissionDenied);

    let before = listed(&feedback(server.control()).await, MODEL, 7).await;
    server.shutdown().await;
    let server = reopen(data.path()).await;
    let after = listed(&feedback(server.control()).await, MODEL, 1000).await;
    assert_eq!(before, after);
    assert_eq!(after.len(), 61);
    let mut units = BTreeMap::new();
    for row in &after {
        let Some((at, (_, user, variant))) =
            asked.iter().enumerate().find(|(_, (id, ..))| *id == row.prediction_id)
        else {
            assert_eq!((row.prediction_id.as_str(), &row.exposure), (elsewhere, &None));
            assert_eq!(row.outcomes[0].value, Some(Value::Label("cat".to_owned())));
            continue;
        };
        let exposure = row.exposure.as_ref().unwrap();
        let version = if variant == "old" { 1 } else { 2 };
        assert_eq!((&exposure.variant, exposure.version), (variant, version));
        assert_eq!((exposure.chosen.as_str(), exposure.status.as_str()), ("sticky", "OK"));
        // No policy allows that what it said is kept.
        assert_eq!(exposure.score, None);
        // A user is one unit, whoever that is.
        assert_eq!(units.entry(user.clone()).or_insert_with(|| exposure.unit.clone()), &exposure.unit);
        assert!(exposure.unit.len() == 16 && !exposure.unit.contains("user"), "{exposure:?}");
        let metrics: Vec<_> = row.outcomes.iter().map(|it| (it.metric.as_str(), it.value.clone())).collect();
        let expected =
            [("conversion", Some(Value::Converted(at != 0))), ("revenue", Some(Value::Number(2.5)))];
        assert_eq!(metrics, if at % 2 == 0 { expected.to_vec() } else { Vec::new() });
    }
    let distinct: std::collections::BTreeSet<_> = units.values().collect();
    assert_eq!(distinct.len(), 20);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_noted_where_the_policy_keeps_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |config| config.allow_plaintext = true).await;
    let mut registry = server.registry().await;
    let folder = Folder::new();
    for (model, policy) in [("kept", "outputs"), ("bare", "none")] {
        folder.demo(model, &format!("data_policy = '{policy}'\nfeedback = {{ sample = 1.0 }}"));
        send(&mut registry, upload_of(model, &folder.package(&format!("{model}/1")))).await.unwrap();
        promote(&mut registry, model, "1", "champion").await;
    }
    let client = server.client().await;
    let mut ids = Vec::new();
    for (model, rows) in [("kept", 1), ("kept", 2), ("bare", 1)] {
        let request = InferRequest::new(model).input("features", matrix(&vec![[0.5; 30]; rows]));
        let answer = client.infer(request).await.unwrap();
        let scores: Vec<f32> = answer.output("probabilities").unwrap().f32_values().collect();
        ids.push((answer.prediction_id().unwrap().to_owned(), scores));
    }
    // A request that fails is an exposure as well.
    let bad = InferRequest::new("kept").input("features", matrix(&[[0.5]]));
    assert_eq!(client.infer(bad).await.unwrap_err().code(), Code::InvalidArgument);
    server.until_metric(WRITTEN, 4).await;
    let control = feedback(server.control()).await;
    let rows = listed(&control, "kept", 0).await;
    let [one, two, failed] = &rows[..] else { panic!("{rows:?}") };
    let exposure = one.exposure.as_ref().unwrap();
    let (id, scores) = &ids[0];
    assert_eq!(&one.prediction_id, id);
    let most = scores.iter().copied().fold(0.0, f32::max);
    assert_eq!(exposure.score, Some(f64::from(most)));
    assert!(["malignant", "benign"].contains(&exposure.label.as_str()), "{exposure:?}");
    assert_eq!((exposure.variant.as_str(), exposure.chosen.as_str()), ("", ""));
    // Several rows have one id: none of them is the decision.
    assert_eq!(two.exposure.as_ref().unwrap().score, None);
    let failed = failed.exposure.as_ref().unwrap();
    assert_eq!((failed.status.as_str(), failed.score), ("INVALID_ARGUMENT", None));
    assert_eq!(listed(&control, "bare", 0).await[0].exposure.as_ref().unwrap().score, None);
    server.shutdown().await;
}

/// Each is refused whole, with all that is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn bad_feedback_is_refused_whole() {
    let (_data, server, client, _) = start().await;
    let (id, _) = ask(&client, "somebody").await;
    let sender = feedback(server.grpc()).await;
    let good = outcome(&id, "", Value::Converted(true));
    let with = |change: &dyn Fn(&mut pb::Outcome)| {
        let mut bad = good.clone();
        change(&mut bad);
        vec![good.clone(), bad]
    };
    for (outcomes, says) in [
        (vec![], "expected 1 to 1000, got 0"),
        (vec![good.clone(); 1001], "got 1001"),
        (with(&|it| it.value = None), "outcomes[1].value"),
        (with(&|it| it.prediction_id = "x".to_owned()), "outcomes[1].prediction_id"),
        (with(&|it| it.prediction_id = "not-a-uuid".repeat(9)), "outcomes[1].prediction_id"),
        // A version of the form that no answer has.
        (with(&|it| it.prediction_id = "01a203af-d337-441e-a1ed-2c41e7f0794b".to_owned()), "prediction_id"),
        (with(&|it| it.value = Some(Value::Number(f64::NAN))), "number: expected a finite number"),
        (with(&|it| it.value = Some(Value::Number(1.0))), "outcomes[1].metric"),
        (
            with(&|it| it.value = Some(Value::Label("x".repeat(257)))),
            "label: expected 1 to 256 bytes, got 257",
        ),
        (with(&|it| it.metric = "x".repeat(65)), "(65 bytes)"),
        (with(&|it| it.metric = "a\0b".to_owned()), "without control characters"),
        (with(&|it| it.second = Some(1.0)), "second: expected only beside a number"),
        (with(&|it| it.at_ms = u64::MAX), "at_ms: expected a time"),
    ] {
        let request = pb::RecordFeedbackRequest { model: MODEL.to_owned(), outcomes };
        let error = sender.record(request).await.expect_err(says);
        assert_eq!(error.code(), Code::InvalidArgument, "{says}: {error}");
        assert!(error.message().contains(says), "{says}: {error}");
    }
    assert!(listed(&feedback(server.control()).await, MODEL, 0).await.is_empty());
    let nobody = pb::RecordFeedbackRequest { model: "nobody".to_owned(), outcomes: vec![good.clone()] };
    assert_eq!(sender.record(nobody).await.unwrap_err().code(), Code::NotFound);
    // One metric more than a prediction may have.
    let many = (0..33).map(|number| outcome(&id, &format!("m{number}"), Value::Number(1.0))).collect();
    let request = pb::RecordFeedbackRequest { model: MODEL.to_owned(), outcomes: many };
    assert_eq!(sender.record(request).await.unwrap_err().code(), Code::ResourceExhausted);
    server.shutdown().await;

    let server = Running::start(&Folder::new()).await;
    let request = pb::RecordFeedbackRequest { model: "identity".to_owned(), outcomes: vec![good] };
    let refused = feedback(server.grpc()).await.record(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    server.shutdown().await;
}

/// An experiment with the metric `conversion`, whenever one looks.
async fn experiment(traffic: &TrafficClient, weights: [f64; 2]) -> sconce_client::Result<pb::Experiment> {
    let arms = [("old", weights[0]), ("new", weights[1])];
    let arms = arms.map(|(variant, weight)| serde_json::json!({ "variant": variant, "weight": weight }));
    let metrics = serde_json::json!([{ "name": "conversion", "kind": "conversion" }]);
    let spec_json = serde_json::json!({ "arms": arms, "metrics": metrics }).to_string();
    let request = pb::StartExperimentRequest { model: MODEL.to_owned(), spec_json, reason: String::new() };
    traffic.start_experiment(request).await
}

async fn report(traffic: &TrafficClient) -> (pb::Experiment, serde_json::Value) {
    let request = pb::GetExperimentRequest { model: MODEL.to_owned() };
    let experiment = traffic.get_experiment(request).await.unwrap();
    let report = serde_json::from_str(&experiment.report_json).unwrap();
    (experiment, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_experiment_finds_the_variant_whose_users_do_more_and_says_when_the_split_is_off() {
    const USERS: usize = 600;
    let (data, server, client, traffic) = start().await;
    assert_eq!(experiment(&traffic, [1.0, 1.0]).await.unwrap_err().code(), Code::FailedPrecondition);
    split(&traffic).await;
    let skewed = experiment(&traffic, [2.0, 1.0]).await.unwrap_err();
    assert!(skewed.message().contains("arms[0].weight"), "{skewed}");
    experiment(&traffic, [1.0, 1.0]).await.unwrap();
    assert_eq!(experiment(&traffic, [1.0, 1.0]).await.unwrap_err().code(), Code::FailedPrecondition);

    let sender = feedback(server.grpc()).await;
    let (mut outcomes, mut users, mut units) = (Vec::new(), Vec::new(), BTreeMap::<String, u64>::new());
    for user in 0..USERS {
        // Each comes twice, and converts the second time: of the new variant's users six in ten, of the old one's two.
        let name = format!("user-{user}");
        ask(&client, &name).await;
        let (id, variant) = ask(&client, &name).await;
        let variant = variant.unwrap();
        let converts = user % 10 < if variant == "new" { 6 } else { 2 };
        *units.entry(variant.clone()).or_default() += 1;
        users.push((name, variant));
        outcomes.push(outcome(&id, "", Value::Converted(converts)));
    }
    server.until_metric(WRITTEN, 2 * USERS as u64).await;
    let (_, before) = report(&traffic).await;
    assert_eq!((&before["advice"], &before["goals"][0]["outcome"]), (&"go_on".into(), &"undecided".into()));
    record(&sender, outcomes).await;
    let (running, after) = report(&traffic).await;
    assert_eq!(after["units"], serde_json::json!([units["old"], units["new"]]));
    assert_eq!((running.running, running.moved_units, running.incomplete), (true, 0, false));
    assert_eq!(after["sample_ratio"]["mismatch"], false);
    assert_eq!((&after["advice"], &after["goals"][0]["outcome"]), (&"decide".into(), &"better".into()));

    // It is all there after a restart, and nothing counts that comes after its end.
    let stop = pb::StopExperimentRequest { model: MODEL.to_owned(), reason: "decided".to_owned() };
    assert!(!traffic.stop_experiment(stop).await.unwrap().running);
    server.shutdown().await;
    let server = reopen(data.path()).await;
    let (client, traffic) = (server.client().await, server.traffic().await);
    for user in 0..50 {
        ask(&client, &format!("latecomer-{user}")).await;
    }
    server.until_metric(WRITTEN, 50).await;
    let (stopped, later) = report(&traffic).await;
    assert_eq!((stopped.running, &later), (false, &after));

    // A second one, to which two of three of the old variant's users never come.
    experiment(&traffic, [1.0, 1.0]).await.unwrap();
    let coming = users.iter().enumerate().filter(|(at, (_, variant))| variant == "new" || at % 3 == 0);
    let coming: Vec<_> = coming.map(|(_, (user, _))| user).collect();
    for user in &coming {
        ask(&client, user).await;
    }
    server.until_metric(WRITTEN, 50 + coming.len() as u64).await;
    let (_, skewed) = report(&traffic).await;
    assert_eq!(
        (&skewed["advice"], &skewed["goals"]),
        (&"sample_ratio_mismatch".into(), &serde_json::json!([]))
    );
    server.shutdown().await;
}
