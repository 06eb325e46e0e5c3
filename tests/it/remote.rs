//! Models that another server answers: what comes through, and what becomes of a request when the other server does not answer.

use crate::support::{
    Collector, Folder, Link, Running, attribute, identity_request, matrix, patiently, until,
};
use futures_util::future::join_all;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sconce_client::{Code, InferRequest, tensor};
use std::net::SocketAddr;

const TENSORS: &str = "[[inputs]]\nname = 'INPUT0'\ndatatype = 'FP32'\nshape = [-1, -1]\n\
                       [[outputs]]\nname = 'OUTPUT0'\ndatatype = 'FP32'\nshape = [-1, -1]\n";

/// A package whose model `model` is at `addr`.
fn remote(folder: &Folder, package: &str, addr: SocketAddr, model: &str, more: &str, tensors: &str) {
    let text = format!(
        "family = 'remote'\nqueue_depth = 2\n[remote]\nurl = 'http://{addr}'\nmodel = '{model}'\n{more}\n{tensors}"
    );
    folder.file(package, "model.toml", text);
}

/// A server whose remote models may be anywhere.
async fn front(folder: &Folder) -> Running {
    Running::configured(folder, |config| config.remote_hosts = vec!["*".to_owned()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_answers_as_the_model_over_there_does() {
    let folder = Folder::new();
    folder.bert("texts/1");
    folder.linear("double/1", 1, &[2.0]);
    let back = Running::start(&folder).await;
    let fronts = Folder::new();
    for model in ["texts", "double", "add_sub"] {
        let version = if model == "texts" { "version = '1'" } else { "" };
        remote(&fronts, &format!("far-{model}/1"), back.grpc(), model, version, "");
    }
    let front = front(&fronts).await;
    assert_eq!(front.readiness(), Ok(()));
    let (near, far) = (front.client().await, back.client().await);
    let sixteen = || tensor::fp32(&[2, 16], &(0..32).map(|n| n as f32).collect::<Vec<_>>()).unwrap();
    let texts = || tensor::bytes(&[2], &["a good film", "a very bad one"]).unwrap();
    let request = |kind: &str, model: &str| match kind {
        "texts" => InferRequest::new(model).input("text", texts()),
        "double" => InferRequest::new(model).input("features", matrix(&[[1.5], [-3.25]])),
        _ => InferRequest::new(model).input("INPUT0", sixteen()).input("INPUT1", sixteen()),
    };
    for model in ["texts", "double", "add_sub"] {
        let (there, here) = (
            far.infer(request(model, model)).await,
            near.infer(request(model, &format!("far-{model}"))).await,
        );
        let (there, here) = (there.unwrap(), here.unwrap());
        assert!(!there.outputs.is_empty());
        assert_eq!(here.outputs, there.outputs, "{model}");
        assert!(here.prediction_id().is_some_and(|id| Some(id) != there.prediction_id()));
    }
    let metadata = near.model_metadata("far-texts", "").await.unwrap();
    let original = far.model_metadata("texts", "").await.unwrap();
    assert_eq!((metadata.inputs, metadata.outputs), (original.inputs, original.outputs));
    assert_eq!(near.model_config("far-texts", "").await.unwrap().platform, "remote");
    let counted = near.model_statistics("far-texts", "1").await.unwrap().remove(0).inference_stats.unwrap();
    assert_eq!(counted.success.unwrap().count, 1);
    // What is wrong with a request is said here before it is sent, or over there.
    let wrong = near.infer(InferRequest::new("far-add_sub").input("INPUT0", sixteen())).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("INPUT1"), "{wrong}");
    let long = tensor::bytes(&[1], &["long ".repeat(60_000)]).unwrap();
    let wrong = near.infer(InferRequest::new("far-texts").input("text", long)).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("bytes"), "{wrong}");
    front.until_idle().await;
    front.shutdown().await;
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_only_where_the_configuration_says() {
    let back = Running::start(&Folder::new()).await;
    let (fronts, elsewhere) = (Folder::new(), SocketAddr::from(([127, 0, 0, 1], 9)));
    remote(&fronts, "here/1", back.grpc(), "identity", "", "");
    remote(&fronts, "there/1", elsewhere, "identity", "", "");
    let allowed = back.grpc().to_string();
    let front = Running::configured(&fronts, |config| config.remote_hosts = vec![allowed]).await;
    let problem = front.readiness().unwrap_err();
    assert!(problem.contains("there") && problem.contains("remote_hosts"), "{problem}");
    let client = front.client().await;
    client.infer(identity_request("here", 1)).await.unwrap();
    assert_eq!(client.infer(identity_request("there", 1)).await.unwrap_err().code(), Code::Unavailable);
    front.shutdown().await;
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_soon_not_asked_any_more_and_asked_again_when_it_is_back() {
    let back = Running::start(&Folder::new()).await;
    let link = Link::to(back.grpc()).await;
    let fronts = Folder::new();
    remote(&fronts, "far/1", link.addr(), "identity", "retries = 1", TENSORS);
    let front = front(&fronts).await;
    let client = front.client().await;
    client.infer(identity_request("far", 1)).await.unwrap();

    link.cut();
    let open = r#"sconce_remote_open{model="far",version="1"}"#;
    until("the breaker opens", async || {
        assert_eq!(client.infer(identity_request("far", 1)).await.unwrap_err().code(), Code::Unavailable);
        front.metric(open).await == 1
    })
    .await;
    let refusal = client.infer(identity_request("far", 1)).await.unwrap_err();
    assert!(refusal.message().contains("does not answer"), "{refusal}");
    assert!(front.metric(r#"sconce_remote_retries_total{model="far",version="1"}"#).await > 0);

    link.restore();
    until("an answer", async || client.infer(identity_request("far", 1)).await.is_ok()).await;
    assert_eq!(front.metric(open).await, 0);
    front.until_idle().await;
    front.shutdown().await;
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_holds_nobody_longer_than_the_call_may_take_and_nobody_else() {
    let back = Running::start(&Folder::new()).await;
    let link = Link::to(back.grpc()).await;
    let fronts = Folder::new();
    remote(&fronts, "far/1", link.addr(), "identity", "timeout_ms = 1500\nmax_concurrency = 4", TENSORS);
    let front = front(&fronts).await;
    let client = front.client().await;
    client.infer(identity_request("far", 1)).await.unwrap();

    link.hang();
    // Four are on their way, two wait, and for two there is no room.
    let calls = (0..8).map(|_| client.infer(identity_request("far", 1)));
    let codes = patiently("refusals", join_all(calls)).await;
    let mut codes: Vec<Code> = codes.into_iter().map(|outcome| outcome.unwrap_err().code()).collect();
    codes.sort_by_key(|code| *code as i32);
    let count = |code: Code| codes.iter().filter(|found| **found == code).count();
    assert_eq!((count(Code::DeadlineExceeded), count(Code::ResourceExhausted)), (6, 2), "{codes:?}");
    // The model next to it is none the worse.
    client.infer(identity_request("identity", 1)).await.unwrap();
    assert_eq!(front.metric(r#"sconce_remote_open{model="far",version="1"}"#).await, 1);

    link.restore();
    until("an answer", async || client.infer(identity_request("far", 1)).await.is_ok()).await;
    front.until_idle().await;
    front.shutdown().await;
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_as_agreed_is_an_internal_error() {
    let backs = Folder::new();
    backs.linear("model/1", 1, &[2.0]);
    let back = Running::start(&backs).await;
    let fronts = Folder::new();
    remote(&fronts, "far/1", back.grpc(), "model", "", "");
    let front = front(&fronts).await;
    let (client, request) =
        (front.client().await, || InferRequest::new("far").input("features", matrix(&[[1.5]])));
    client.infer(request()).await.unwrap();
    // Over there it comes to give two numbers for one.
    backs.linear("model/1", 1, &[2.0, 3.0]);
    back.admin().await.repository_load("model").await.unwrap();
    let error = client.infer(request()).await.unwrap_err();
    assert!(error.code() == Code::Internal && error.message().contains("expected FP32 [-1, 1]"), "{error}");
    front.until_idle().await;
    front.shutdown().await;
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_over_there() {
    let collector = Collector::grpc();
    let back = Running::configured(&Folder::new(), |config| {
        config.traces.endpoint = Some(collector.endpoint());
        config.traces.ratio = 0.0;
    })
    .await;
    let fronts = Folder::new();
    remote(&fronts, "far/1", back.grpc(), "identity", "", "");
    let front = front(&fronts).await;
    let header = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01";
    let request = identity_request("far", 1).metadata("traceparent", header);
    front.client().await.infer(request).await.unwrap();
    let spans =
        collector.until("the trace", |spans| spans.iter().any(|span| span.name.contains("ModelInfer"))).await;
    let server = spans.iter().find(|span| span.name.contains("ModelInfer")).unwrap();
    assert_eq!(server.trace_id, (1..=16).collect::<Vec<u8>>());
    assert!(!server.parent_span_id.is_empty() && server.parent_span_id != [0x11; 8]);
    assert_eq!(attribute(server, "sconce.model"), "identity");
    front.shutdown().await;

    // What is kept here by its share, and leaves the decision open, is kept over there; a caller that speaks B3 is understood there.
    let here = Collector::grpc();
    let front = Running::configured(&fronts, |config| {
        config.remote_hosts = vec!["*".to_owned()];
        config.traces.endpoint = Some(here.endpoint());
        config.traces.ratio = 1.0;
    })
    .await;
    let header = "2102030405060708090a0b0c0d0e0f10-2112131415161718";
    front.client().await.infer(identity_request("far", 1).metadata("b3", header)).await.unwrap();
    let trace_id: Vec<u8> = std::iter::once(0x21).chain(2..=16).collect();
    let is_ours = |span: &Span| span.trace_id == trace_id && span.name.contains("ModelInfer");
    let spans = collector.until("the trace of B3", |spans| spans.iter().any(is_ours)).await;
    let there = spans.iter().find(|span| is_ours(span)).unwrap();
    // Here the call is a span of its own, in the execution that it was, and over there its child.
    front.shutdown().await;
    let spans = here.spans();
    let of_kind =
        |kind: SpanKind| spans.iter().find(|span| is_ours(span) && span.kind == kind as i32).unwrap();
    let (server, call) = (of_kind(SpanKind::Server), of_kind(SpanKind::Client));
    let execute = spans.iter().find(|span| span.span_id == call.parent_span_id).unwrap();
    assert_eq!((execute.name.as_str(), &execute.parent_span_id), ("execute", &server.span_id));
    assert_eq!(there.parent_span_id, call.span_id);
    assert!(execute.start_time_unix_nano <= call.start_time_unix_nano);
    assert!(call.end_time_unix_nano <= execute.end_time_unix_nano);
    let (host, port) = (back.grpc().ip().to_string(), back.grpc().port().to_string());
    for (name, value) in [
        ("rpc.system", "grpc"),
        ("rpc.grpc.status_code", "0"),
        ("server.address", &host),
        ("server.port", &port),
        ("sconce.remote.attempts", "1"),
    ] {
        assert_eq!(attribute(call, name), value, "{name}");
    }
    back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_finds_no_server_is_told_with_each_try() {
    let collector = Collector::grpc();
    let back = Running::start(&Folder::new()).await;
    let link = Link::to(back.grpc()).await;
    let fronts = Folder::new();
    remote(&fronts, "far/1", link.addr(), "identity", "retries = 2", TENSORS);
    let front = Running::configured(&fronts, |config| {
        config.remote_hosts = vec!["*".to_owned()];
        config.traces.endpoint = Some(collector.endpoint());
        config.traces.ratio = 0.0;
    })
    .await;
    link.cut();
    let error = front.client().await.infer(identity_request("far", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    front.shutdown().await;
    let spans = collector.spans();
    let call = spans.iter().find(|span| span.kind == SpanKind::Client as i32).unwrap();
    assert_eq!(
        (attribute(call, "rpc.grpc.status_code"), attribute(call, "sconce.remote.attempts")),
        ("14".into(), "3".into())
    );
    // 2 is an error, there and in what it was a part of.
    let execute = spans.iter().find(|span| span.span_id == call.parent_span_id).unwrap();
    assert!([call, execute].iter().all(|span| span.status.as_ref().unwrap().code == 2), "{spans:#?}");
    back.shutdown().await;
}
