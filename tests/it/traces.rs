//! Traces: requests become spans with the right parents, times and links, and no collector can harm a request.

use crate::ensemble::{chain, chain_request};
use crate::support::{
    Collector, Folder, Running, Traffic, attribute, connect, identity_request, patiently, until,
};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sconce_client::{Code, InferRequest};
use sconce_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sconce_proto::inference::trace_setting_request::SettingValue;
use sconce_proto::inference::{TraceSettingRequest, TraceSettingResponse};
use sconce_server::ServerConfig;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Endpoint;

const STAGES: [&str; 5] = ["route", "prepare", "queue", "execute", "encode"];
const DROPPED: &str = "sconce_trace_spans_dropped_total";

/// A trace of the caller's: its id, its span there, and the header that says so.
fn caller(number: u8, sampled: bool) -> (Vec<u8>, Vec<u8>, String) {
    let (trace, span) = ([number; 16], [number; 8]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let header = format!("00-{}-{}-{:02x}", hex(&trace), hex(&span), u8::from(sampled));
    (trace.to_vec(), span.to_vec(), header)
}

async fn traced(folder: &Folder, endpoint: String, change: impl FnOnce(&mut ServerConfig)) -> Running {
    Running::configured(folder, |config| {
        config.traces.endpoint = Some(endpoint);
        config.traces.ratio = 0.0;
        change(config);
    })
    .await
}

fn of_trace<'a>(spans: &'a [Span], trace_id: &[u8]) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.trace_id == trace_id).collect()
}

fn time(span: &Span) -> u64 {
    span.end_time_unix_nano - span.start_time_unix_nano
}

fn batch<'a>(spans: &'a [Span], request: &Span) -> &'a Span {
    let link = &request.links[0];
    let found = spans.iter().find(|span| span.span_id == link.span_id && span.trace_id == link.trace_id);
    found.unwrap_or_else(|| panic!("no batch of {request:?} in {spans:#?}"))
}

/// The server span of a trace and its stages, checked: the stages are its children, in order, and their times add up to its own.
fn request<'a>(spans: &'a [Span], trace_id: &[u8], stages: &[&str]) -> (&'a Span, Vec<&'a Span>) {
    let mut trace = of_trace(spans, trace_id);
    trace.sort_by_key(|span| (span.start_time_unix_nano, span.kind != SpanKind::Server as i32));
    let at = trace.iter().position(|span| span.kind == SpanKind::Server as i32);
    let server = trace.remove(at.unwrap_or_else(|| panic!("no server span in {trace:#?}")));
    for child in &trace {
        assert_eq!(child.parent_span_id, server.span_id);
    }
    // A stage that takes no time begins with the next.
    trace.sort_by_key(|span| STAGES.iter().position(|name| *name == span.name));
    assert_eq!(trace.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), stages);
    assert!(trace.windows(2).all(|pair| pair[0].end_time_unix_nano == pair[1].start_time_unix_nano));
    let sum: u64 = trace.iter().map(|span| time(span)).sum();
    let whole = time(server);
    assert!(sum.abs_diff(whole) * 20 <= whole, "the stages take {sum} ns of {whole}");
    (server, trace)
}

/// The caller's parent, the stages, and the batch and its requests linked both ways.
async fn assert_traces(collector: &Collector, change: impl FnOnce(&mut ServerConfig)) {
    let folder = Folder::new();
    // Two rows make a batch, and nothing else does for a long time.
    folder.identity("pair/1", "max_batch_size = 2\nmax_queue_delay_ms = 60000");
    let server = traced(&folder, collector.endpoint(), change).await;
    let wire = server.wire().await;
    let callers = [1, 2].map(|number| caller(number, true));
    let calls = callers.each_ref().map(|(_, _, header)| {
        let wire = &wire;
        async move {
            let headers = [("traceparent", header.as_str()), ("tracestate", "vendor=1")];
            wire.infer(&headers, identity_request("pair", 1)).await.code
        }
    });
    assert_eq!(join_all(calls).await, [Code::Ok; 2]);

    let spans = collector.until("both traces and their batch", |spans| spans.len() >= 13).await;
    assert_eq!(spans.len(), 13, "{spans:#?}");
    for (trace_id, parent, _) in &callers {
        let (server, stages) = request(&spans, trace_id, &STAGES);
        assert_eq!(server.name, "inference.GRPCInferenceService/ModelInfer");
        assert_eq!((&server.parent_span_id, server.trace_state.as_str()), (parent, "vendor=1"));
        for (name, value) in [
            ("rpc.system", "grpc"),
            ("rpc.service", "inference.GRPCInferenceService"),
            ("rpc.method", "ModelInfer"),
            ("rpc.grpc.status_code", "0"),
            ("sconce.model", "pair"),
            ("sconce.version", "1"),
            ("sconce.kept_for", "parent"),
        ] {
            assert_eq!(attribute(server, name), value, "{name}");
        }
        assert_eq!(attribute(server, "sconce.prediction_id").len(), 36);
        let execute = stages[3];
        let batch = batch(&spans, execute);
        assert!(batch.links.iter().any(|l| l.span_id == execute.span_id && l.trace_id == *trace_id));
        assert_eq!((batch.name.as_str(), batch.links.len()), ("batch", 2));
        assert!(batch.parent_span_id.is_empty(), "a batch is the root of its own trace");
        for (name, value) in [
            ("sconce.batch.rows", "2"),
            ("sconce.batch.requests", "2"),
            ("sconce.batch.close_reason", "full"),
            ("sconce.batch.queue_depth", "2"),
            ("sconce.device", "cpu"),
            ("sconce.model", "pair"),
        ] {
            assert_eq!(attribute(batch, name), value, "{name}");
        }
        assert_eq!(execute.start_time_unix_nano, batch.start_time_unix_nano);
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_trace_and_its_batch_links_to_it_and_back() {
    assert_traces(&Collector::grpc(), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_travel_over_http_too() {
    assert_traces(&Collector::http().await, |config| config.traces.protocol = "http".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_kept_and_what_its_caller_threw_away_is_not() {
    let collector = Collector::grpc();
    let folder = Folder::new();
    folder.identity("waiting/1", "max_queue_delay_ms = 60000");
    // A caller that decides against its trace is taken at its word.
    let server = traced(&folder, collector.endpoint(), |config| config.traces.ratio = 1.0).await;
    let wire = server.wire().await;
    let [unsampled, unknown, expired, cancelled] = [1, 2, 3, 4].map(|number| caller(number, false));
    let infer = async |header: &str, more: &[(&str, &str)], model: &str| {
        let headers = [&[("traceparent", header)], more].concat();
        wire.infer(&headers, identity_request(model, 1)).await.code
    };
    assert_eq!(infer(&unsampled.2, &[], "identity").await, Code::Ok);
    assert_eq!(infer(&unknown.2, &[], "nobody").await, Code::NotFound);
    assert_eq!(infer(&expired.2, &[("grpc-timeout", "20m")], "waiting").await, Code::DeadlineExceeded);
    // Its caller breaks off while it waits.
    let broken = server.wire().await;
    let (mut upload, _) = broken.open(&[("traceparent", &cancelled.2)]).await;
    upload.send(crate::support::framed(identity_request("waiting", 1)), true).await.unwrap();
    server.until_metric("sconce_inflight_requests{model=\"waiting\",version=\"1\"}", 1).await;
    drop(broken);
    collector.until("the broken call", |spans| !of_trace(spans, &cancelled.0).is_empty()).await;
    server.shutdown().await;

    let spans = collector.spans();
    assert!(of_trace(&spans, &unsampled.0).is_empty());
    let failed = [
        (&unknown, "5", "error", &STAGES[..1]),
        (&expired, "4", "deadline", &STAGES[..3]),
        (&cancelled, "1", "error", &STAGES[..3]),
    ];
    for ((trace_id, ..), code, kept_for, stages) in failed {
        let (server, stages) = request(&spans, trace_id, stages);
        assert_eq!(attribute(server, "rpc.grpc.status_code"), code);
        assert_eq!(attribute(server, "sconce.kept_for"), kept_for);
        assert_eq!(attribute(server, "sconce.partial_trace"), "true");
        // 2 is an error.
        assert_eq!(stages.last().unwrap().status.as_ref().unwrap().code, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_stream_is_a_request_of_its_callers_trace() {
    let collector = Collector::grpc();
    let server = traced(&Folder::new(), collector.endpoint(), |_| {}).await;
    let (trace_id, parent, header) = caller(1, true);
    let channel =
        Endpoint::from_shared(format!("http://{}", server.grpc())).unwrap().connect().await.unwrap();
    let messages = (0..3).map(|_| identity_request("identity", 1).into_message());
    let mut call = tonic::Request::new(stream::iter(messages.collect::<Vec<_>>()));
    call.metadata_mut().insert("traceparent", header.parse().unwrap());
    let replies = GrpcInferenceServiceClient::new(channel).model_stream_infer(call).await.unwrap();
    let replies: Vec<_> = patiently("the replies", replies.into_inner().collect()).await;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 3);
    server.shutdown().await;
    let spans = collector.spans();
    let servers: Vec<&Span> = spans
        .iter()
        .filter(|span| span.kind == SpanKind::Server as i32 && span.trace_id == trace_id)
        .collect();
    assert_eq!(servers.len(), 3);
    assert!(
        servers.iter().all(|span| span.parent_span_id == parent && span.name.ends_with("/ModelStreamInfer"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_an_ensemble_are_children_of_their_request() {
    let collector = Collector::grpc();
    let folder = Folder::new();
    chain(&folder, "twice/1", &["identity", "identity"]);
    let server = traced(&folder, collector.endpoint(), |_| {}).await;
    let (trace_id, _, header) = caller(1, true);
    let outcome = server.wire().await.infer(&[("traceparent", &header)], chain_request("twice")).await;
    assert_eq!(outcome.code, Code::Ok);
    server.shutdown().await;
    let spans = collector.spans();
    let trace = of_trace(&spans, &trace_id);
    let children = |parent: &Span| {
        let mut children: Vec<&Span> =
            trace.iter().filter(|span| span.parent_span_id == parent.span_id).copied().collect();
        children.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        children
    };
    let request = trace.iter().find(|span| span.kind == SpanKind::Server as i32).unwrap();
    let names: Vec<&str> = children(request).iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "step").count(), 2, "{names:?}");
    assert_eq!(names.len(), 4, "route, execute and the steps: {names:?}");
    let steps: Vec<&Span> = children(request).into_iter().filter(|span| span.name == "step").collect();
    assert!(
        steps[0].end_time_unix_nano <= steps[1].start_time_unix_nano,
        "the second takes what the first made"
    );
    for step in steps {
        assert_eq!(attribute(step, "sconce.model"), "identity");
        let mut names: Vec<&str> = children(step).iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["execute", "prepare", "queue", "reply", "route"]);
        let execute = children(step).into_iter().find(|span| span.name == "execute").unwrap();
        let batch = batch(&spans, execute);
        assert!(batch.links.iter().any(|link| link.span_id == execute.span_id && link.trace_id == trace_id));
    }
}

/// Nothing waits: neither for the exporter's next message nor for a batch's other requests.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_sent_before_the_server_ends() {
    let collector = Collector::grpc();
    let server = traced(&Folder::new(), collector.endpoint(), |config| config.traces.ratio = 1.0).await;
    let client = server.client().await;
    for _ in 0..50 {
        client.infer(identity_request("identity", 1)).await.unwrap();
    }
    server.until_idle().await;
    server.shutdown().await;
    let spans = collector.spans();
    let count = |wanted: fn(&&Span) -> bool| spans.iter().filter(wanted).count();
    assert_eq!(count(|span| span.kind == SpanKind::Server as i32), 50);
    assert_eq!(count(|span| span.name == "batch"), 50);
    assert_eq!(spans.len(), 50 * 7);
}

/// While it hangs, and after it was killed.
#[tokio::test(flavor = "multi_thread")]
async fn no_collector_can_harm_a_request() {
    let collector = Collector::hanging();
    let server = traced(&Folder::new(), collector.endpoint(), |config| {
        (config.traces.ratio, config.traces.queue) = (1.0, 64);
    })
    .await;
    let clients = join_all((0..4).map(|_| server.client())).await;
    let traffic = Traffic::start(clients, |client, _| async move {
        client.infer(identity_request("identity", 1)).await.map(drop)
    });
    until("drops", async || server.metric(DROPPED).await > 0).await;
    traffic.flow(500).await;
    drop(collector);
    let before = server.metric(DROPPED).await;
    until("more drops", async || server.metric(DROPPED).await > before).await;
    traffic.flow(500).await;
    assert!(traffic.stop().await.is_empty(), "a request failed");
    let ended = std::time::Instant::now();
    server.shutdown().await;
    assert!(ended.elapsed() < Duration::from_secs(20), "{:?}", ended.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_collector_serves() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let server = traced(&Folder::new(), endpoint, |config| config.traces.ratio = 1.0).await;
    let client = server.client().await;
    client.infer(identity_request("identity", 1)).await.unwrap();
    until("drops", async || server.metric(DROPPED).await > 0).await;
    client.infer(identity_request("identity", 1)).await.unwrap();
    server.shutdown().await;
}

async fn settings(
    addr: SocketAddr,
    changes: &[(&str, &str)],
) -> Result<BTreeMap<String, Vec<String>>, Status> {
    settings_of(addr, "", changes).await
}

async fn settings_of(
    addr: SocketAddr,
    model: &str,
    changes: &[(&str, &str)],
) -> Result<BTreeMap<String, Vec<String>>, Status> {
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let change = |(name, value): &(&str, &str)| {
        ((*name).to_owned(), SettingValue { value: vec![(*value).to_owned()] })
    };
    let request =
        TraceSettingRequest { settings: changes.iter().map(change).collect(), model_name: model.to_owned() };
    let answer = GrpcInferenceServiceClient::new(channel).trace_setting(request).await?;
    let TraceSettingResponse { settings } = answer.into_inner();
    Ok(settings.into_iter().map(|(name, value)| (name, value.value)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn tracing_is_set_while_the_server_runs() {
    let collector = Collector::grpc();
    let server = traced(&Folder::new(), collector.endpoint(), |_| {}).await;
    let client = server.client().await;
    let infer = async || client.infer(identity_request("identity", 1)).await.unwrap();
    let control = server.control();
    infer().await;
    let now = settings(control, &[("trace_rate", "1")]).await.unwrap();
    assert_eq!(
        (now["trace_rate"].as_slice(), now["trace_level"].as_slice()),
        (&["1".to_owned()][..], &["TIMESTAMPS".to_owned()][..])
    );
    infer().await;
    let now = settings(control, &[("trace_level", "OFF")]).await.unwrap();
    assert_eq!(now["trace_level"], ["OFF"]);
    infer().await;
    for wrong in [("trace_rate", "often"), ("trace_level", "TENSORS"), ("trace_file", "/tmp/x")] {
        // All or nothing.
        let refused = settings(control, &[("trace_level", "TIMESTAMPS"), wrong]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong:?}");
    }
    assert_eq!(settings(control, &[]).await.unwrap()["trace_level"], ["OFF"]);
    // They are the server's: of a model they can be read, and not changed.
    assert_eq!(settings_of(control, "identity", &[]).await.unwrap()["trace_rate"], ["1"]);
    let refused = settings_of(control, "identity", &[("trace_rate", "2")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("leave model_name empty"), "{refused}");
    assert_eq!(settings_of(control, "nobody", &[]).await.unwrap_err().code(), Code::NotFound);
    let elsewhere = settings(server.grpc(), &[]).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::PermissionDenied);
    server.shutdown().await;
    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.kind == SpanKind::Server as i32).count(), 1, "{spans:#?}");

    let untraced = Running::start(&Folder::new()).await;
    assert_eq!(settings(untraced.control(), &[]).await.unwrap()["trace_level"], ["OFF"]);
    let refused = settings(untraced.control(), &[("trace_level", "TIMESTAMPS")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_request_is_the_exemplar_of_its_bucket() {
    let collector = Collector::grpc();
    let server = traced(&Folder::new(), collector.endpoint(), |_| {}).await;
    let wire = server.wire().await;
    let (kept, other) = (caller(0xab, true), caller(0xcd, false));
    for (_, _, header) in [&kept, &other] {
        let outcome = wire.infer(&[("traceparent", header)], identity_request("identity", 1)).await;
        assert_eq!(outcome.code, Code::Ok);
    }
    collector.until("the trace", |spans| !of_trace(spans, &kept.0).is_empty()).await;
    let (content_type, text) = server.scrape("application/openmetrics-text; version=1.0.0").await;
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    let exemplar = format!("# {{trace_id=\"{}\"}}", "ab".repeat(16));
    let exemplars: Vec<&str> = text.lines().filter(|line| line.contains("trace_id=")).collect();
    let [line] = exemplars[..] else { panic!("{exemplars:?}") };
    assert!(
        line.starts_with("sconce_request_duration_seconds_bucket{") && line.contains(&exemplar),
        "{line}"
    );
    assert!(text.ends_with("# EOF\n"));
    let (content_type, text) = server.scrape("text/plain").await;
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    assert!(
        !text.contains("trace_id=")
            && !text.contains("# EOF")
            && !text.contains("# TYPE sconce_rows counter")
    );
    assert!(text.contains("# TYPE sconce_rows_total counter\n"));
    let answered = "{model=\"identity\",version=\"1\"} 2\n";
    for sample in [
        "sconce_prepare_duration_seconds_count",
        "sconce_queue_duration_seconds_count",
        "sconce_execute_duration_seconds_count",
        "nv_inference_count",
    ] {
        assert!(text.contains(&format!("{sample}{answered}")), "{sample}");
    }
    for sample in [
        "sconce_load_duration_seconds_count{status=\"ok\"} 2\n",
        "sconce_model_info{model=\"identity\",version=\"1\",family=\"identity\",",
        "sconce_rejected_requests_total{reason=\"calls\"} 0\n",
        "process_cpu_seconds_total ",
        "process_open_fds ",
        "sconce_runtime_workers ",
    ] {
        assert!(text.contains(&format!("\n{sample}")), "{sample} not in\n{text}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_without_a_batch_of_its_own_is_an_exemplar_too() {
    let collector = Collector::grpc();
    let folder = Folder::new();
    folder.identity("kept/1", "[response_cache]\nmax_bytes = 4096");
    chain(&folder, "twice/1", &["identity", "identity"]);
    let server = traced(&folder, collector.endpoint(), |_| {}).await;
    let wire = server.wire().await;
    let callers = [0x11, 0x22, 0x33].map(|number| caller(number, true));
    let requests = [identity_request("kept", 1), identity_request("kept", 1), chain_request("twice")];
    for ((_, _, header), request) in callers.iter().zip(requests) {
        let outcome = wire.infer(&[("traceparent", header)], request).await;
        assert_eq!(outcome.code, Code::Ok);
    }
    assert_eq!(server.metric("sconce_cache_hits_total{model=\"kept\",version=\"1\"}").await, 1);
    collector.until("the traces", |spans| callers.iter().all(|it| !of_trace(spans, &it.0).is_empty())).await;
    let (_, text) = server.scrape("application/openmetrics-text; version=1.0.0").await;
    let of = |model: &str| -> Vec<&str> {
        let bucket = format!("model=\"{model}\"");
        let lines = text.lines().filter(|line| line.contains(&bucket));
        lines.filter_map(|line| Some(line.split_once("trace_id=\"")?.1.split_once('"')?.0)).collect()
    };
    // A hit takes less than what it was kept from; in one bucket the later one stands.
    assert!(of("kept").contains(&"22".repeat(16).as_str()), "{text}");
    assert_eq!(of("twice"), ["33".repeat(16)]);
    assert!(
        !of("identity").is_empty() && of("identity").iter().all(|id| *id == "33".repeat(16)),
        "its steps"
    );
    server.shutdown().await;
}

/// Nothing of it is needed to connect.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_headers_are_ignored() {
    let server = Running::start(&Folder::new()).await;
    let wire = server.wire().await;
    for (name, value) in
        [("traceparent", "00-zz"), ("b3", "-"), ("x-b3-traceid", "1"), ("tracestate", "=,=,")]
    {
        let outcome = wire.infer(&[(name, value)], identity_request("identity", 1)).await;
        assert_eq!(outcome.code, Code::Ok, "{name}");
    }
    let request: InferRequest = identity_request("identity", 1);
    connect(server.grpc()).await.unwrap().infer(request).await.unwrap();
}
