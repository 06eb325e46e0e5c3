//! The prediction log: what is logged and what is not, in files and as CloudEvents.

use crate::support::{Folder, Receiver, Running, identity_request, matrix, until};
use sconce_client::InferRequest;
use sconce_server::PredictionLogConfig;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

fn written(sink: &str) -> String {
    format!("sconce_prediction_log_records_total{{sink=\"{sink}\",status=\"written\"}}")
}

fn jsonl(dir: &Path) -> PredictionLogConfig {
    PredictionLogConfig { dir: Some(dir.to_owned()), format: "jsonl".to_owned(), ..Default::default() }
}

/// The documents of all whole files.
fn documents(dir: &Path) -> Vec<serde_json::Value> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let whole = paths.iter().filter(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
    let texts = whole.map(|path| fs::read_to_string(path).unwrap());
    texts
        .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect()
}

#[tokio::test]
async fn what_a_model_asks_for_is_logged_as_its_policy_allows_and_nothing_else() {
    let folder = Folder::new();
    let log = "[prediction_log]\nsample = 1.0\n";
    folder.identity("silent/1", "data_policy = 'all'");
    folder.identity("bare/1", log);
    folder.identity("outputs/1", &format!("data_policy = 'outputs'\n{log}"));
    folder.identity("all/1", &format!("datatype = 'BYTES'\ndata_policy = 'all'\n{log}"));
    folder.identity("large/1", &format!("data_policy = {{ inputs = true, max_tensor_bytes = 8 }}\n{log}"));
    for allow_plaintext in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let server = Running::configured(&folder, |config| {
            config.allow_plaintext = allow_plaintext;
            config.prediction_log = jsonl(dir.path());
        })
        .await;
        let client = server.client().await;
        let mut ids = Vec::new();
        for model in ["silent", "bare", "outputs", "large"] {
            let request = InferRequest::new(model).input("INPUT0", matrix(&[[f32::NAN, 0.5, f32::INFINITY]]));
            let answer = client.infer(request).await.unwrap();
            ids.push((model, answer.prediction_id().unwrap().to_owned()));
        }
        for bytes in [b"text".as_slice(), b"\xff\x00"] {
            let tensor = sconce_client::tensor::bytes(&[1, 1], &[bytes]).unwrap();
            client.infer(InferRequest::new("all").input("INPUT0", tensor)).await.unwrap();
        }
        // A request that its model refuses is logged too: 65 rows are more than it takes.
        client.infer(identity_request("outputs", 65)).await.unwrap_err();
        client.infer(identity_request("unknown", 1)).await.unwrap_err();
        server.shutdown().await;

        let documents = documents(dir.path());
        let of = |model: &str| documents.iter().filter(|d| d["model"] == model).cloned().collect::<Vec<_>>();
        assert_eq!(documents.len(), 6, "{documents:#?}");
        assert!(of("silent").is_empty());
        let [bare] = &of("bare")[..] else { panic!("{documents:#?}") };
        assert_eq!((&bare["inputs"], &bare["outputs"]), (&serde_json::json!([]), &serde_json::json!([])));
        let id = ids.iter().find(|(model, _)| *model == "bare").unwrap();
        assert_eq!((&bare["prediction_id"], &bare["status"]), (&id.1.as_str().into(), &"OK".into()));
        assert_eq!((&bare["version"], &bare["variant"]), (&1.into(), &serde_json::Value::Null));
        let [outputs, refused] = &of("outputs")[..] else { panic!("{documents:#?}") };
        assert_eq!(
            (&refused["status"], &refused["outputs"]),
            (&"INVALID_ARGUMENT".into(), &serde_json::json!([]))
        );
        if !allow_plaintext {
            for document in &documents {
                assert_eq!((&document["inputs"], &document["outputs"]), (&bare["inputs"], &bare["outputs"]));
            }
            continue;
        }
        assert_eq!(outputs["inputs"], serde_json::json!([]));
        let tensor = serde_json::json!([{
            "name": "OUTPUT0", "datatype": "FP32", "shape": [1, 3], "values": ["NaN", 0.5, "Infinity"],
        }]);
        assert_eq!(outputs["outputs"], tensor);
        let [text, raw] = &of("all")[..] else { panic!("{documents:#?}") };
        assert_eq!(text["inputs"][0]["values"], serde_json::json!(["text"]));
        assert_eq!(
            (&raw["inputs"][0]["values"], &raw["inputs"][0]["encoding"]),
            (&serde_json::json!(["ff00"]), &"hex".into())
        );
        let [large] = &of("large")[..] else { panic!("{documents:#?}") };
        assert_eq!(large["inputs"][0]["shape"], serde_json::json!([1, 3]));
        assert_eq!(large["inputs"][0]["values"], serde_json::Value::Null);
    }
}

#[tokio::test]
async fn a_share_is_logged_and_a_broken_folder_harms_no_request() {
    let start = async |dir: &Path| {
        let log = PredictionLogConfig { sample: 0.5, flush_seconds: 1, ..jsonl(dir) };
        Running::configured(&Folder::new(), |config| config.prediction_log = log).await
    };
    let ask = async |server: &Running| {
        let client = server.client().await;
        for _ in 0..400 {
            client.infer(identity_request("identity", 1)).await.unwrap();
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    ask(&server).await;
    server.shutdown().await;
    let logged = documents(dir.path()).len();
    // Ten standard deviations.
    assert!((100..300).contains(&logged), "{logged}");

    let server = start(dir.path()).await;
    fs::remove_dir_all(dir.path()).unwrap();
    ask(&server).await;
    let failed = "sconce_prediction_log_records_total{sink=\"files\",status=\"failed\"}";
    until("what cannot be written is counted", async || server.metric(failed).await > 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn events_are_sent_again_until_they_are_taken_and_a_dead_receiver_only_counts() {
    let receiver = Receiver::start([503]).await;
    let url = receiver.url();
    let server = Running::configured(&Folder::new(), |config| {
        config.prediction_log =
            PredictionLogConfig { cloudevents: Some(url), sample: 1.0, ..PredictionLogConfig::default() };
    })
    .await;
    let client = server.client().await;
    let mut ids = Vec::new();
    let header = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01";
    for _ in 0..3 {
        let request = identity_request("identity", 1).metadata("traceparent", header);
        let answer = client.infer(request.metadata("tracestate", "vendor=1")).await.unwrap();
        ids.push(answer.prediction_id().unwrap().to_owned());
    }
    server.until_metric(&written("cloudevents"), 3).await;
    let posted = receiver.posted();
    assert!(posted.len() > 1, "the first was refused");
    for posted in &posted {
        assert_eq!(posted.headers["content-type"], "application/cloudevents-batch+json; charset=utf-8");
    }
    let events: Vec<_> =
        receiver.taken().iter().flat_map(|posted| posted.json().as_array().unwrap().clone()).collect();
    assert_eq!(events.iter().map(|event| event["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    for event in &events {
        assert_eq!((&event["specversion"], &event["type"]), (&"1.0".into(), &"sconce.prediction.v1".into()));
        assert_eq!(event["data"]["prediction_id"], event["id"]);
        assert_eq!(event["source"], "/sconce/models/identity/versions/1");
        // In its caller's trace, below the request's own span.
        let parent = event["traceparent"].as_str().unwrap();
        assert!(
            parent.starts_with(&header[..36]) && parent.ends_with("-01") && parent.len() == 55,
            "{parent}"
        );
        assert!(parent != header && event["tracestate"] == "vendor=1", "{event}");
    }
    server.shutdown().await;

    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let server = Running::configured(&Folder::new(), |config| {
        config.prediction_log = PredictionLogConfig {
            cloudevents: Some(format!("http://{nobody}/")),
            sample: 1.0,
            queue: 1,
            ..PredictionLogConfig::default()
        };
    })
    .await;
    let client = server.client().await;
    let lost = "sconce_prediction_log_records_total{sink=\"cloudevents\",status=\"dropped\"}";
    until("records find no place", async || {
        client.infer(identity_request("identity", 1)).await.unwrap();
        server.metric(lost).await > 0
    })
    .await;
    server.shutdown().await;
}
