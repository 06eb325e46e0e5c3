//! Tenants and their quotas, what an overload tells its callers, default deadlines, and instances with cores of their own.

use crate::support::{Folder, Running, framed, identity_request, matrix, patiently, until};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use sconce_client::{Code, DataType, InferRequest, Tensor};
use sconce_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sconce_proto::inference::infer_parameter::ParameterChoice;
use sconce_proto::inference::{ModelInferResponse, ServerMetadataRequest};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const TENANT: &str = "x-tenant-id";
const WAITING: &str = "sconce_queue_depth{model=\"waiting\",version=\"1\"}";

/// A server with tenants that may have what `quotas` says.
async fn with_tenants(folder: &Folder, quotas: &str) -> Running {
    let tenants = toml::from_str(&format!("header = '{TENANT}'\n{quotas}")).unwrap();
    Running::configured(folder, |config| config.tenants = tenants).await
}

/// A client that sees metadata and sets no deadline of its own.
#[derive(Clone)]
struct Plain(GrpcInferenceServiceClient<Channel>);

impl Plain {
    async fn connect(server: &Running) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc())).unwrap();
        Self(GrpcInferenceServiceClient::new(endpoint.connect().await.unwrap()))
    }

    /// An answer to a request with these headers.
    async fn infer(
        &self,
        headers: &[(&'static str, &str)],
        request: InferRequest,
    ) -> Result<ModelInferResponse, Status> {
        let mut call = Request::new(request.into_message());
        add(call.metadata_mut(), headers);
        let answer = patiently("an answer", self.0.clone().model_infer(call)).await;
        answer.map(tonic::Response::into_inner)
    }

    /// The same for a tenant, of the model `identity`.
    async fn ask(&self, tenant: &str) -> Result<(), Status> {
        self.infer(&[(TENANT, tenant)], identity_request("identity", 1)).await.map(drop)
    }

    /// The replies to a stream of requests, and how it ended.
    async fn stream(
        &self,
        headers: &[(&'static str, &str)],
        requests: Vec<InferRequest>,
    ) -> (Vec<Result<ModelInferResponse, ModelInferResponse>>, Result<(), Status>) {
        let mut call = Request::new(stream::iter(requests.into_iter().map(InferRequest::into_message)));
        add(call.metadata_mut(), headers);
        let mut answers = match patiently("a stream", self.0.clone().model_stream_infer(call)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return (Vec::new(), Err(status)),
        };
        let mut replies = Vec::new();
        loop {
            match patiently("a reply", answers.message()).await {
                Ok(Some(reply)) => {
                    let response = reply.infer_response.unwrap();
                    replies.push(if reply.error_message.is_empty() { Ok(response) } else { Err(response) });
                }
                Ok(None) => return (replies, Ok(())),
                Err(status) => return (replies, Err(status)),
            }
        }
    }
}

fn add(metadata: &mut MetadataMap, headers: &[(&'static str, &str)]) {
    for (name, value) in headers {
        metadata.append(*name, value.parse().unwrap());
    }
}

/// What a refusal tells a machine: milliseconds and seconds until another try.
fn hints(status: &Status) -> Option<(u64, u64)> {
    let number = |name| Some(status.metadata().get(name)?.to_str().unwrap().parse().unwrap());
    Some((number("grpc-retry-pushback-ms")?, number("retry-after")?))
}

/// That `status` refuses for want of room, says so, and says when to come back.
fn assert_overload(status: &Status, part: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains(part), "{part:?} is not in {status}");
    let (millis, seconds) = hints(status).unwrap_or_else(|| panic!("no hint: {status:?}"));
    assert!(millis >= 1 && seconds == millis.div_ceil(1000), "{millis} ms, {seconds} s");
}

async fn counted(server: &Running, tenant: &str, status: &str) -> u64 {
    let sample = format!("sconce_tenant_requests_total{{tenant=\"{tenant}\",status=\"{status}\"}}");
    server.metric(&sample).await
}

/// A model that waits for a second row longer than any test takes.
fn waiting(folder: &Folder, more: &str) {
    let toml = format!("instances = 1\nmax_batch_size = 2\nmax_queue_delay_ms = 60000\n{more}");
    folder.identity("waiting/1", &toml);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_of_requests_may_come_at_once_and_then_the_rate_holds() {
    const RATE: usize = 20;
    let quota = format!("[quotas.acme]\nmax_requests_per_second = {RATE}");
    let server = with_tenants(&Folder::new(), &quota).await;
    let client = Plain::connect(&server).await;
    let start = Instant::now();
    let outcomes = join_all((0..60).map(|_| client.ask("acme"))).await;
    let refused: Vec<Status> = outcomes.into_iter().filter_map(Result::err).collect();
    let most = RATE + (start.elapsed().as_secs_f64() * RATE as f64) as usize + 1;
    let answered = 60 - refused.len();
    assert!((RATE..=most).contains(&answered), "{answered} of 60 answered, expected {RATE} to {most}");
    for status in &refused {
        assert_overload(status, "tenant `acme` has made its 20 requests a second");
        assert!(hints(status).unwrap().0 <= 51, "{status:?}");
    }
    // Others do not notice, and the next token comes.
    for tenant in ["other-tenant", "acme-2"] {
        client.ask(tenant).await.unwrap();
    }
    until("a token", async || client.ask("acme").await.is_ok()).await;
    assert!(counted(&server, "acme", "rejected").await >= refused.len() as u64);
    assert!(server.metric("sconce_refused_requests_total").await >= refused.len() as u64);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_progress_are_bounded_and_a_place_comes_back_with_the_answer() {
    let folder = Folder::new();
    waiting(&folder, "");
    let server = with_tenants(&folder, "[quotas.acme]\nmax_concurrent = 1").await;
    let client = Plain::connect(&server).await;
    for round in 1..=3u64 {
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.infer(&[(TENANT, "acme")], identity_request("waiting", 1)).await }
        });
        server.until_metric(WAITING, 1).await;
        assert_overload(&client.ask("acme").await.unwrap_err(), "`acme` has 1 requests in progress");
        // A stream of its counts like its calls: each message by itself.
        let requests = vec![identity_request("identity", 1); 2];
        let (replies, end) = client.stream(&[(TENANT, "acme")], requests).await;
        assert!(end.is_ok() && replies.len() == 2);
        for reply in replies {
            let refusal = reply.unwrap_err();
            let after = refusal.parameters.get("retry_after_ms").unwrap().parameter_choice.clone();
            assert!(matches!(after, Some(ParameterChoice::Int64Param(1..))), "{after:?}");
        }
        // The company it waited for.
        client.infer(&[(TENANT, "somebody")], identity_request("waiting", 1)).await.unwrap();
        patiently("the first answer", first).await.unwrap().unwrap();
        client.ask("acme").await.unwrap();
        assert_eq!(counted(&server, "acme", "ok").await, 2 * round);
        assert_eq!(counted(&server, "acme", "rejected").await, 3 * round);
        assert_eq!(counted(&server, "somebody", "ok").await, round);
    }
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_comes_back_after_each_kind_of_failure() {
    let folder = Folder::new();
    waiting(&folder, "");
    folder.linear("steep/1", 1, &[2.0]);
    let server = with_tenants(&folder, "[quotas.acme]\nmax_concurrent = 1").await;
    let client = Plain::connect(&server).await;
    let steep = || InferRequest::new("steep").input("features", matrix(&[[f32::MAX]]));
    for _ in 0..3 {
        for (request, code) in [
            (identity_request("nobody", 1), Code::NotFound),
            (identity_request("identity", 1000), Code::InvalidArgument),
            (InferRequest::new("identity"), Code::InvalidArgument),
            (steep(), Code::Internal),
        ] {
            let status = client.infer(&[(TENANT, "acme")], request.clone()).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
            let (replies, end) = client.stream(&[(TENANT, "acme")], vec![request]).await;
            assert!(end.is_ok() && replies[0].is_err());
        }
    }
    assert_eq!(counted(&server, "acme", "failed").await, 24);
    client.ask("acme").await.unwrap();
    assert_eq!(counted(&server, "acme", "rejected").await, 0);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_comes_back_when_what_an_abandoned_request_left_behind_is_done() {
    let folder = Folder::new();
    folder.identity("slow/1", "instances = 1\nmax_batch_size = 1\ndelay_ms = 300");
    let server = with_tenants(&folder, "[quotas.acme]\nmax_concurrent = 2").await;
    let client = Plain::connect(&server).await;
    let wire = server.wire().await;
    let mut calls = Vec::new();
    for _ in 0..2 {
        let (mut upload, answer) = wire.open(&[(TENANT, "acme")]).await;
        upload.send(framed(identity_request("slow", 1)), true).await.unwrap();
        calls.push((upload, answer));
    }
    // One runs and one waits.
    server.until_metric("sconce_queue_depth{model=\"slow\",version=\"1\"}", 1).await;
    assert_overload(&client.ask("acme").await.unwrap_err(), "2 requests in progress");
    drop((wire, calls));
    until("a place", async || client.ask("acme").await.is_ok()).await;
    until("both places", async || {
        join_all([client.ask("acme"), client.ask("acme")]).await.iter().all(Result::is_ok)
    })
    .await;
    assert_eq!(counted(&server, "acme", "failed").await, 2);
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_quota_or_no_name_has_the_default() {
    let folder = Folder::new();
    waiting(&folder, "");
    let server = with_tenants(&folder, "default = { max_requests_per_second = 0.001 }\n[quotas.acme]").await;
    let client = Plain::connect(&server).await;
    let nameless = || client.infer(&[], identity_request("identity", 1));
    for tenant in ["one", "two"] {
        client.ask(tenant).await.unwrap();
        assert_overload(&client.ask(tenant).await.unwrap_err(), &format!("tenant `{tenant}`"));
    }
    nameless().await.unwrap();
    let refused = nameless().await.unwrap_err();
    assert_overload(&refused, "tenant `default`");
    assert!(hints(&refused).unwrap().1 > 900, "{refused:?}");
    for _ in 0..5 {
        client.ask("acme").await.unwrap();
    }
    assert_eq!(server.metric("sconce_tenants").await, 5, "default, other, acme, one and two");
    assert_eq!(counted(&server, "default", "rejected").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_an_invalid_argument() {
    let server = with_tenants(&Folder::new(), "").await;
    let client = Plain::connect(&server).await;
    let too_long = "a".repeat(129);
    for bad in ["", "a b", &too_long] {
        let status = client.ask(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}");
        assert!(status.message().starts_with("x-tenant-id: expected a name"), "{status}");
        let (_, end) = client.stream(&[(TENANT, bad)], vec![identity_request("identity", 1)]).await;
        assert_eq!(end.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    let two = [(TENANT, "a"), (TENANT, "b")];
    let status = client.infer(&two, identity_request("identity", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    client.ask(&too_long[1..]).await.unwrap();

    // Without a key nobody looks at names.
    let server = Running::start(&Folder::new()).await;
    let client = Plain::connect(&server).await;
    client.ask("a b").await.unwrap();
    assert_eq!(server.metric("sconce_tenants").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tenants_than_there_is_room_for_share_a_place_and_metrics_stay_bounded() {
    const ROOM: usize = 4096;
    // Whoever has made a request is remembered for a quarter of an hour.
    let quota =
        "default = { max_requests_per_second = 0.001 }\n[quotas.other]\nmax_requests_per_second = 0.001";
    let server = with_tenants(&Folder::new(), quota).await;
    let client = Plain::connect(&server).await;
    let mut refused = Vec::new();
    for from in (0..ROOM + 100).step_by(64) {
        let names: Vec<String> = (from..(from + 64).min(ROOM + 100)).map(|n| format!("tenant-{n}")).collect();
        let outcomes = join_all(names.iter().map(|name| client.ask(name))).await;
        refused.extend(outcomes.into_iter().filter_map(Result::err));
    }
    // Two places are those of `default` and `other`; one newcomer had what those who share may have.
    assert_eq!(refused.len(), 100 + 2 - 1);
    refused.iter().for_each(|status| assert_overload(status, "tenant `other`"));
    assert_eq!(server.metric("sconce_tenants").await, ROOM as u64);
    assert_eq!(server.metric("sconce_tenants_limit").await, ROOM as u64);
    let (_, text) = server.get("/metrics").await;
    let series = text.lines().filter(|line| line.starts_with("sconce_tenant_requests_total{"));
    assert_eq!(series.count(), 65 * 3);
    let named = 63;
    assert_eq!(counted(&server, "other", "ok").await, (ROOM - 2 - named + 1) as u64);
    client.ask("tenant-0").await.unwrap_err();
    server.until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_overload_says_when_to_come_back_and_what_never_fits_does_not() {
    const MIB: usize = 1 << 20;
    let folder = Folder::new();
    waiting(&folder, "queue_depth = 1");
    folder.linear("tall/1", 1, &[1.0; 40_000]);
    let server = Running::limited(&folder, |limits| {
        limits.max_message_bytes = 2 * MIB;
        limits.max_inflight_bytes = 2 * MIB;
        limits.max_streams = 4;
        limits.max_connections = 4;
    })
    .await;
    let client = Plain::connect(&server).await;
    let ask = |request| client.infer(&[], request);

    // The model's queue: one request waits.
    let wire = server.wire().await;
    let (mut upload, _waits) = wire.open(&[]).await;
    upload.send(framed(identity_request("waiting", 1)), true).await.unwrap();
    server.until_metric(WAITING, 1).await;
    assert_overload(&ask(identity_request("waiting", 1)).await.unwrap_err(), "queue is full");
    // The same in a stream: with the reply, and, if that is how its caller wants it, in the trailers that end it.
    let (replies, end) = client.stream(&[], vec![identity_request("waiting", 1)]).await;
    assert!(end.is_ok());
    assert!(replies[0].as_ref().unwrap_err().parameters.contains_key("retry_after_ms"));
    let requests = vec![identity_request("identity", 1), identity_request("waiting", 1)];
    let (replies, end) = client.stream(&[("triton_grpc_error", "true")], requests).await;
    assert!(replies.len() == 1 && replies[0].is_ok());
    assert_overload(&end.unwrap_err(), "queue is full");

    // Bytes in flight: another call's message is on its way.
    let payload = |bytes: usize| {
        let tensor = Tensor::new(DataType::Fp32, vec![1, bytes / 4], Bytes::from(vec![0; bytes])).unwrap();
        InferRequest::new("identity").input("INPUT0", tensor)
    };
    let (mut upload, half_sent) = wire.open(&[]).await;
    upload.send(framed(payload(3 * MIB / 2)).slice(..1000), false).await.unwrap();
    until("bytes in flight", async || server.metric("sconce_inflight_bytes").await > 1 << 20).await;
    assert_overload(&ask(payload(MIB)).await.unwrap_err(), "bytes in flight");
    drop((upload, half_sent));
    until("their end", async || server.metric("sconce_inflight_bytes").await < 1 << 20).await;
    // Never: over the bound of a message; and an answer of 10 MiB, more than all that may be in flight.
    let tall = InferRequest::new("tall").input("features", matrix(&[[1.0]; 64]));
    for request in [payload(2 * MIB), tall] {
        let status = ask(request).await.map(drop).unwrap_err();
        assert_eq!((status.code(), hints(&status)), (Code::ResourceExhausted, None), "{status}");
    }

    // Calls.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(wire.open(&[]).await);
    }
    server.until_metric("sconce_streams", 4).await;
    assert_overload(&ask(identity_request("identity", 1)).await.unwrap_err(), "4 calls");
    let (_, end) = client.stream(&[], Vec::new()).await;
    assert_overload(&end.unwrap_err(), "4 calls");
    let status = client.0.clone().server_metadata(ServerMetadataRequest {}).await.unwrap_err();
    assert_overload(&status, "4 calls");
    drop((held, wire));
    server.until_metric("sconce_streams", 0).await;

    // Connections.
    server.until_metric("sconce_connections", 1).await;
    let others = [server.client().await, server.client().await, server.client().await];
    for other in &others {
        assert!(other.server_live().await.unwrap());
    }
    let refused = Plain::connect(&server).await;
    assert_overload(&refused.ask("").await.unwrap_err(), "4 connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_has_a_deadline_for_requests_without_one() {
    let folder = Folder::new();
    let keys = "instances = 1\nmax_batch_size = 3\nmax_queue_delay_ms = 60000";
    folder.identity("waiting/1", &format!("{keys}\ndefault_timeout_ms = 100\nqueue_target_ms = 2500"));
    let server = Running::start(&folder).await;
    let client = Plain::connect(&server).await;
    // Who says how long keeps it, in either way.
    let long = [
        (vec![("grpc-timeout", "40S")], identity_request("waiting", 1)),
        (vec![], identity_request("waiting", 1).timeout(Duration::from_secs(40))),
    ];
    let mut patient = Vec::new();
    for (number, (headers, request)) in (1..).zip(long) {
        let client = client.clone();
        patient.push(tokio::spawn(async move { client.infer(&headers, request).await }));
        server.until_metric(WAITING, number).await;
    }
    // With three more rows a batch is full; the earliest deadline goes first. One more fills that of those who wait.
    let start = Instant::now();
    let status = client.infer(&[], identity_request("waiting", 3)).await.err();
    assert!(status.is_none() || start.elapsed() >= Duration::from_millis(100), "{status:?}");
    client.infer(&[("grpc-timeout", "40S")], identity_request("waiting", 1)).await.unwrap();
    for patient in patient {
        patiently("a patient answer", patient).await.unwrap().unwrap();
    }
    let status = client.infer(&[], identity_request("waiting", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let (replies, end) = client.stream(&[], vec![identity_request("waiting", 1)]).await;
    assert!(end.is_ok() && replies[0].is_err());

    let config = server.client().await.model_config("waiting", "1").await.unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("default_timeout_microseconds: 100000"), "{shown}");
    assert_eq!(config.parameters["queue_target_ms"].string_value, "2500");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_in_time_is_refused_at_once_with_the_estimate() {
    let folder = Folder::new();
    folder.identity("slow/1", "delay_ms = 60\ninstances = 1");
    let server = Running::start(&folder).await;
    let client = Plain::connect(&server).await;
    for _ in 0..10 {
        client.infer(&[], identity_request("slow", 1)).await.unwrap();
    }
    let deadline = "sconce_queue_refusals_total{model=\"slow\",version=\"1\",reason=\"deadline\"}";
    let refused = async || {
        // An idle model tries what seems too late once a second.
        let status = client.infer(&[], identity_request("slow", 1).timeout(Duration::from_millis(20))).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        status.message().starts_with("the deadline cannot be met: the answer would take ")
            && status.message().ends_with(" ms are left")
    };
    until("a refusal", refused).await;
    assert!(server.metric(deadline).await >= 1);
    server.shutdown().await;
}

/// Worker threads whose name starts so, with the cores they may use.
#[cfg(target_os = "linux")]
fn cores_of(worker: &str) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let cores = threads.filter_map(|thread| {
        let thread = thread.unwrap().path();
        // A thread may end while it is looked at.
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let status = std::fs::read_to_string(thread.join("status")).ok()?;
        let cores =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        name.starts_with(worker).then_some(cores)
    });
    cores.collect()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn pinned_instances_have_cores_of_their_own_and_others_have_all() {
    // Of a thread's name the system keeps 15 bytes: `sconce-worker-` and one of the model's, which no other test's has.
    let folder = Folder::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    folder.identity("Q/1", &format!("instances = {cores}\npin_cores = true"));
    folder.identity("Z/1", "instances = 2");
    let server = Running::start(&folder).await;
    let pinned = cores_of("sconce-worker-Q");
    assert_eq!(pinned.len(), cores);
    let distinct: BTreeSet<&String> = pinned.iter().collect();
    assert_eq!(distinct.len(), cores, "{pinned:?}");
    assert!(pinned.iter().all(|list| list.parse::<usize>().is_ok()), "one core each: {pinned:?}");
    let free = cores_of("sconce-worker-Z");
    assert_eq!(free.len(), 2);
    assert!(free.iter().all(|list| cores == 1 || list.parse::<usize>().is_err()), "{free:?}");

    let config = server.client().await.model_config("Q", "1").await.unwrap();
    let mut told: Vec<&str> = config.parameters["cores"].string_value.split(" | ").collect();
    told.sort_unstable();
    assert_eq!(told, distinct.into_iter().map(String::as_str).collect::<Vec<_>>());
    // Loaded again beside itself, it has the same again, and answers.
    let admin = server.admin().await;
    patiently("a load", admin.repository_load("Q")).await.unwrap();
    let client = server.client().await;
    assert!(client.infer(identity_request("Q", 1)).await.is_ok());
    until("the replaced workers' end", async || cores_of("sconce-worker-Q").len() == cores).await;
    let again: BTreeSet<String> = cores_of("sconce-worker-Q").into_iter().collect();
    assert_eq!(again.len(), cores);
}
