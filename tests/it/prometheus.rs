//! Gates that ask a Prometheus: one that answers is believed, and without an answer nothing goes on and nothing is undone.

use crate::registry::{promote, push};
use crate::support::{Running, matrix, patiently};
use sconce_client::control_proto as pb;
use sconce_client::control_proto::RolloutState as State;
use sconce_client::{Client, Code, InferRequest, TrafficClient};
use serde_json::json;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

const MODEL: &str = "scale";

/// Answers queries as Prometheus' HTTP API does, with one answer after the other and then with the last, and notes what was asked.
struct Answering {
    url: String,
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Answering {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let answers = Arc::<Mutex<VecDeque<(u16, String)>>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (says, hears) = (Arc::clone(&answers), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let heard = request(&mut stream).await;
                hears.lock().unwrap().push(heard);
                let (status, body) = {
                    let mut says = says.lock().unwrap();
                    if says.len() > 1 { says.pop_front().unwrap() } else { says[0].clone() }
                };
                let head = format!("HTTP/1.1 {status} So\r\ncontent-length: {}\r\n\r\n", body.len());
                // Who asks may be gone.
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Self { url, answers, asked, _serving: AbortOnDropHandle::new(serving) }
    }

    fn gives(&self, answers: &[(u16, String)]) {
        *self.answers.lock().unwrap() = answers.iter().cloned().collect();
    }
}

fn number(number: &str) -> (u16, String) {
    let series = json!({ "metric": {}, "value": [1.5, number] });
    let data = json!({ "resultType": "vector", "result": [series] });
    (200, json!({ "status": "success", "data": data }).to_string())
}

fn failure() -> (u16, String) {
    let body = json!({ "status": "error", "errorType": "bad_data", "error": "parse error: no such thing" });
    (400, body.to_string())
}

/// What is asked, head and body.
async fn request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    loop {
        stream.read_buf(&mut text).await.unwrap();
        let got = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = got.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return got;
        }
    }
}

fn canary(name: &str) -> pb::StartRolloutRequest {
    let plan = json!({
        "candidate": "2",
        "strategy": { "canary": { "stages": [
            { "percent": 50.0, "min_seconds": 0, "min_samples": 5 },
            { "percent": 100.0, "min_seconds": 0, "min_samples": 5 },
        ] } },
        "gates": [{ "metric": "prometheus", "name": name, "query": "sum(rate(lost{a=\"b&c\"}[5m]))", "max": 0.5 }],
    });
    pb::StartRolloutRequest {
        model: MODEL.to_owned(),
        plan_json: plan.to_string(),
        reason: "a test".to_owned(),
        dry_run: false,
    }
}

async fn get(traffic: &TrafficClient) -> pb::Rollout {
    traffic.get_rollout(pb::GetRolloutRequest { model: MODEL.to_owned() }).await.unwrap()
}

/// Asks on until `done` says so of the rollout.
async fn until(client: &Client, traffic: &TrafficClient, done: impl Fn(&pb::Rollout) -> bool) -> pb::Rollout {
    let asking = async {
        loop {
            client.infer(InferRequest::new(MODEL).input("features", matrix(&[[1.0]]))).await.unwrap();
            let rollout = get(traffic).await;
            if done(&rollout) {
                return rollout;
            }
        }
    };
    patiently("the rollout", asking).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_gives_decides_and_what_gives_nothing_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let prometheus = Answering::start().await;
    let url = Some(prometheus.url.clone());
    let server = Running::stored(data.path(), |config| config.prometheus.url = url).await;
    let mut registry = server.registry().await;
    for factor in [1.0, 2.0] {
        push(&mut registry, MODEL, factor).await;
    }
    promote(&mut registry, MODEL, "1", "champion").await;
    let (client, traffic) = (server.client().await, server.traffic().await);

    prometheus.gives(&[failure()]);
    let refused = traffic.start_rollout(canary("losses")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("Prometheus says: parse error: no such thing"), "{refused}");
    prometheus.gives(&[number("NaN")]);
    let refused = traffic.start_rollout(canary("losses")).await.unwrap_err();
    assert!(refused.to_string().contains("it gives \"NaN\", expected a number"), "{refused}");
    prometheus.gives(&[number("0.25")]);
    // A query cannot pass for something else that gates ask about.
    let refused = traffic.start_rollout(canary("drift")).await.unwrap_err();
    assert!(refused.to_string().contains("its name is that of something else"), "{refused}");

    traffic.start_rollout(canary("losses")).await.unwrap();
    let promoted = until(&client, &traffic, |it| it.state() != State::Running).await;
    assert_eq!(promoted.state(), State::Promoted, "{promoted:?}");
    let asked = prometheus.asked.lock().unwrap().last().unwrap().clone();
    assert!(asked.starts_with("POST /prefix/api/v1/query HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with("query=sum%28rate%28lost%7Ba%3D%22b%26c%22%7D%5B5m%5D%29%29"), "{asked}");

    promote(&mut registry, MODEL, "1", "champion").await;
    // It gives a number when it is tried, and none any more: the stage stays where it is.
    prometheus.gives(&[number("0.25"), failure()]);
    traffic.start_rollout(canary("losses")).await.unwrap();
    let pending = |it: &pb::Rollout| {
        it.gates.first().is_some_and(|gate| gate.sentence.contains("gives nothing")) && it.samples > 20
    };
    let waiting = until(&client, &traffic, pending).await;
    assert_eq!((waiting.state(), waiting.stage), (State::Running, 1), "{waiting:?}");
    prometheus.gives(&[number("0.75")]);
    let ended = until(&client, &traffic, |it| it.state() != State::Running).await;
    assert_eq!(ended.state(), State::RolledBack, "{ended:?}");
    assert!(
        ended.gates[0].sentence.contains("gives 0.75; expected at most 0.5"),
        "{}",
        ended.gates[0].sentence
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_prometheus_no_gate_asks_one() {
    let data = tempfile::tempdir().unwrap();
    let server = Running::stored(data.path(), |_| {}).await;
    let mut registry = server.registry().await;
    push(&mut registry, MODEL, 1.0).await;
    push(&mut registry, MODEL, 2.0).await;
    promote(&mut registry, MODEL, "1", "champion").await;
    let refused = server.traffic().await.start_rollout(canary("losses")).await.unwrap_err();
    assert!(refused.to_string().contains("has no `prometheus.url`"), "{refused}");
    server.shutdown().await;
}
