//! Monitors in a server: a reference is learned or given, a change of what comes is found, told and noted, and its end as well.

use crate::registry::{promote, push};
use crate::support::{Receiver, Running, connect, matrix, patiently, until};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::MonitorState as State;
use sconce_client::control_proto::monitor_settings::Pane;
use sconce_client::control_proto::set_monitor_request::Reference;
use sconce_client::{Client, Code, HealthClient, InferRequest, MonitorClient, Options};
use sconce_monitor::{ColumnKind, ColumnSpec, Fitted, Reference as Known, Value, Verdict};
use sconce_server::WebhookConfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const MODEL: &str = "scale";

/// A server whose model multiplies a number, with a second version that nobody asks.
async fn start(data: &Path, webhooks: Vec<WebhookConfig>) -> (Running, Client, MonitorClient) {
    let server = Running::stored(data, |config| config.webhooks = webhooks).await;
    let mut registry = server.registry().await;
    for factor in [2.0, 3.0] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    let client = server.client().await;
    let monitors = monitors(&server).await;
    (server, client, monitors)
}

async fn monitors(server: &Running) -> MonitorClient {
    let client = MonitorClient::connect(&server.control().to_string(), Options::default()).await.unwrap();
    client.actor("a test").unwrap()
}

/// Values that are about normal, and never the same.
struct Values(fastrand::Rng);

impl Values {
    fn next(&mut self) -> f32 {
        (0..12).map(|_| self.0.f32()).sum::<f32>() - 6.0
    }

    /// Asks for `requests` answers of 50 rows each, whose values are `shift` higher.
    async fn ask(&mut self, client: &Client, requests: usize, shift: f32) {
        for _ in 0..requests {
            let rows: Vec<[f32; 1]> = (0..50).map(|_| [self.next() + shift]).collect();
            client.infer(InferRequest::new(MODEL).input("features", matrix(&rows))).await.unwrap();
        }
    }
}

fn settings() -> pb::MonitorSettings {
    pb::MonitorSettings {
        pane: Some(Pane::PaneRows(500)),
        panes: Some(4),
        rows_per_second: Some(1e9),
        ..Default::default()
    }
}

fn setting(reference: Reference) -> pb::SetMonitorRequest {
    pb::SetMonitorRequest {
        model: MODEL.to_owned(),
        settings: Some(settings()),
        reference: Some(reference),
        ..Default::default()
    }
}

async fn get(monitors: &MonitorClient) -> pb::Monitored {
    let request = pb::GetMonitorRequest { model: MODEL.to_owned(), version: String::new() };
    monitors.get_monitor(request).await.unwrap()
}

/// Asks on until the version stands so.
async fn until_state(
    monitors: &MonitorClient,
    values: &mut Values,
    client: &Client,
    shift: f32,
    state: State,
) {
    let stands = async {
        while get(monitors).await.state() != state {
            values.ask(client, 4, shift).await;
        }
    };
    patiently(state.as_str_name(), stands).await;
}

async fn history(monitors: &MonitorClient) -> Vec<pb::MonitorEntry> {
    let request = pb::ListMonitorHistoryRequest { model: MODEL.to_owned(), ..Default::default() };
    monitors.history(request).await.unwrap()
}

fn states(history: &[pb::MonitorEntry]) -> Vec<State> {
    history.iter().map(pb::MonitorEntry::state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drift_is_learned_of_found_told_noted_and_over() {
    let data = tempfile::tempdir().unwrap();
    let receiver = Receiver::start([500]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let secret = elsewhere.path().join("secret");
    std::fs::write(&secret, "what only the two of us may know").unwrap();
    let events = vec!["sconce.monitor.*".to_owned()];
    let hook =
        WebhookConfig { url: receiver.url(), secret_file: Some(secret), events, ..WebhookConfig::default() };
    let (server, client, monitors) = start(data.path(), vec![hook]).await;
    let mut values = Values(fastrand::Rng::with_seed(11));
    let set = monitors.set_monitor(setting(Reference::LearnRows(2_000))).await.unwrap();
    assert_eq!((set.state(), set.version, set.learn_rows), (State::Learning, 1, 2_000));
    values.ask(&client, 41, 0.0).await;
    let learned = async || get(&monitors).await.state() != State::Learning;
    until("a reference", learned).await;
    assert_eq!(get(&monitors).await.reference_rows, 2_000);

    until_state(&monitors, &mut values, &client, 0.0, State::Stable).await;
    let sample = format!("sconce_drift_state{{model=\"{MODEL}\",version=\"1\",state=\"drifted\"}} 1");
    let drifted = async || server.scrape("text/plain").await.1.lines().any(|line| line == sample);
    assert!(!drifted().await);
    until_state(&monitors, &mut values, &client, 1.5, State::Drifted).await;
    assert!(drifted().await);
    let found = get(&monitors).await;
    let verdict: Verdict = serde_json::from_str(&found.verdict_json).unwrap();
    let features: Vec<&str> = verdict.drifted().iter().map(|feature| feature.feature.as_str()).collect();
    assert_eq!(features.len(), 2, "what comes and what is answered: {features:?}");
    let health = HealthClient::connect(&server.control().to_string(), Options::default()).await.unwrap();
    let alerts = health.health(Some(MODEL)).await.unwrap().alerts;
    let alert = alerts.iter().find(|alert| alert.name == "SconceDrift").expect("an alert");
    assert!(alert.summary.starts_with("version 1: ") && alert.since_ms > 0, "{}", alert.summary);

    // Who is to know is told of what changed, and that it may be time to fit the model anew.
    until("three events", async || receiver.taken().len() == 3).await;
    let events: Vec<_> = receiver.taken().iter().map(|posted| posted.json()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["stable", "drifted", "retrain"].map(|what| format!("sconce.monitor.{what}.v1")));
    assert_eq!(events[1]["source"], format!("/sconce/models/{MODEL}/versions/1"));
    assert!(events[2]["data"]["features"][0]["psi"].as_f64().unwrap() > 0.25, "{}", events[2]);

    // What happened is noted, and how it is watched is as well: over a restart.
    let before = history(&monitors).await;
    assert_eq!(states(&before), [State::Stable, State::Drifted]);
    assert!(before[1].features.iter().any(|feature| feature.psi > 0.25), "{:?}", before[1]);
    server.shutdown().await;
    let server = Running::stored(data.path(), |_| {}).await;
    let (client, monitors) = (server.client().await, self::monitors(&server).await);
    assert_eq!(history(&monitors).await, before);
    let after = get(&monitors).await;
    assert_eq!((after.state(), after.rows, after.reference_rows), (State::NotEnoughEvidence, 0, 2_000));
    assert_eq!(after.settings, found.settings);
    until_state(&monitors, &mut values, &client, 0.0, State::Stable).await;
    let now = history(&monitors).await;
    assert_eq!(states(&now), [State::Stable, State::Drifted, State::Stable]);

    // A version that is deleted is watched no more.
    let request = pb::RemoveMonitorRequest { model: MODEL.to_owned(), ..Default::default() };
    monitors.remove_monitor(request.clone()).await.unwrap();
    assert_eq!(monitors.remove_monitor(request).await.unwrap_err().code(), Code::NotFound);
    assert!(monitors.list_monitors(pb::ListMonitorsRequest::default()).await.unwrap().is_empty());
    let mut second = setting(Reference::LearnRows(100));
    second.version = "2".to_owned();
    monitors.set_monitor(second).await.unwrap();
    let delete = pb::DeleteRequest { model: MODEL.to_owned(), version: "2".to_owned(), ..Default::default() };
    server.registry().await.delete(delete).await.unwrap();
    let gone = async || monitors.list_monitors(pb::ListMonitorsRequest::default()).await.unwrap().is_empty();
    until("nothing to watch", gone).await;
}

/// A reference of one numeric column.
fn fitted(column: &str) -> Vec<u8> {
    let spec = ColumnSpec { name: column.to_owned(), kind: ColumnKind::Numeric };
    let mut reference = Known::new(&[spec]).unwrap();
    let mut values = Values(fastrand::Rng::with_seed(3));
    (0..5_000).for_each(|_| reference.update(&[Value::Number(values.next().into())]).unwrap());
    serde_json::to_vec(&Fitted { reference, baseline: None }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_from_a_file_is_held_against_the_tensor_that_is_named() {
    let data = tempfile::tempdir().unwrap();
    let (_server, client, monitors) = start(data.path(), Vec::new()).await;
    let mut request = setting(Reference::FittedJson(fitted("age")));
    let refused = monitors.set_monitor(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("`age`") && refused.message().contains("features"), "{refused}");
    request.columns = BTreeMap::from([("age".to_owned(), "features".to_owned())]);
    monitors.set_monitor(request).await.unwrap();
    let mut values = Values(fastrand::Rng::with_seed(12));
    until_state(&monitors, &mut values, &client, 0.0, State::Stable).await;
    until_state(&monitors, &mut values, &client, 4.0, State::Drifted).await;
    let verdict: Verdict = serde_json::from_str(&get(&monitors).await.verdict_json).unwrap();
    let failed: Vec<_> = verdict.failed().iter().map(|check| check.kind.as_str()).collect();
    assert_eq!(failed, ["out of range"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_drifts_is_rolled_back() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, monitors) = start(data.path(), Vec::new()).await;
    let traffic = server.traffic().await;
    let plan = json!({
        "candidate": "2",
        "strategy": { "canary": { "stages": [{ "percent": 50, "min_seconds": 0, "min_samples": 10 }, { "percent": 100 }] } },
        "gates": [{ "metric": "monitor", "name": "drift", "pass": ["stable"] }],
    });
    let (model, plan_json) = (MODEL.to_owned(), plan.to_string());
    let request = pb::StartRolloutRequest { model, plan_json, ..Default::default() };
    let refused = traffic.start_rollout(request.clone()).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("no monitor `drift`"));
    let mut set = setting(Reference::FittedJson(fitted("features")));
    set.version = "2".to_owned();
    monitors.set_monitor(set).await.unwrap();
    traffic.start_rollout(request).await.unwrap();
    let mut values = Values(fastrand::Rng::with_seed(13));
    let rollout =
        async || traffic.get_rollout(pb::GetRolloutRequest { model: MODEL.to_owned() }).await.unwrap();
    let to_its_end = async {
        while rollout().await.state() == pb::RolloutState::Running {
            values.ask(&client, 4, 4.0).await;
        }
    };
    patiently("the end of the rollout", to_its_end).await;
    let ended = rollout().await;
    assert_eq!(ended.state(), pb::RolloutState::RolledBack);
    assert!(ended.gates[0].sentence.contains("says drifted"), "{}", ended.gates[0].sentence);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_refused_with_the_reason() {
    let data = tempfile::tempdir().unwrap();
    let (server, client, monitors) = start(data.path(), Vec::new()).await;
    type Change = fn(&mut pb::SetMonitorRequest);
    let cases: [(Change, Code, &str); 15] = [
        (|it| it.model = "other".to_owned(), Code::NotFound, "other"),
        (|it| it.model = "../x".to_owned(), Code::InvalidArgument, "model"),
        (|it| it.version = "9".to_owned(), Code::NotFound, "9"),
        (|it| it.version = "none".to_owned(), Code::NotFound, "none"),
        (|it| it.reference = None, Code::InvalidArgument, "reference: expected"),
        (|it| it.reference = Some(Reference::LearnRows(99)), Code::InvalidArgument, "expected 100 to"),
        (
            |it| it.reference = Some(Reference::FittedJson(b"{}".to_vec())),
            Code::InvalidArgument,
            "fitted_json",
        ),
        (|it| it.reference = Some(Reference::FittedJson(vec![0xff])), Code::InvalidArgument, "fitted_json"),
        (|it| it.settings.as_mut().unwrap().panes = Some(65), Code::InvalidArgument, "panes"),
        (|it| it.settings.as_mut().unwrap().pane = Some(Pane::PaneMs(0)), Code::InvalidArgument, "pane"),
        (|it| it.settings.as_mut().unwrap().sample = Some(f64::NAN), Code::InvalidArgument, "sample"),
        (
            |it| it.settings.as_mut().unwrap().rows_per_second = Some(0.0),
            Code::InvalidArgument,
            "rows_per_second",
        ),
        (|it| it.settings.as_mut().unwrap().minimum_psi = Some(-1.0), Code::InvalidArgument, "minimum_psi"),
        (
            |it| it.settings.as_mut().unwrap().false_alarms_per_month = Some(0.0),
            Code::InvalidArgument,
            "false_alarms_per_month",
        ),
        (
            |it| it.columns = BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            Code::InvalidArgument,
            "columns",
        ),
    ];
    for (change, code, says) in cases {
        let mut request = setting(Reference::LearnRows(100));
        change(&mut request);
        let refused = monitors.set_monitor(request).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(says), "{says}: {refused}");
    }
    assert!(monitors.list_monitors(pb::ListMonitorsRequest::default()).await.unwrap().is_empty());
    // Not where predictions are asked for, and not without a data folder.
    let elsewhere = MonitorClient::connect(&server.grpc().to_string(), Options::default()).await.unwrap();
    let refused = elsewhere.list_monitors(pb::ListMonitorsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("sconce.v1.Monitor is served on the control listener"), "{refused}");
    drop(client);
    let folder = crate::support::Folder::new();
    let bare = Running::start(&folder).await;
    connect(bare.grpc()).await.unwrap();
    let monitors = self::monitors(&bare).await;
    let refused = monitors.list_monitors(pb::ListMonitorsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
