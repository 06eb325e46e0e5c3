use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Request, Response, Status};

/// A collector of traces that keeps every span it gets. Killed when dropped, with all its connections.
pub(crate) struct Collector {
    runtime: Option<Runtime>,
    addr: SocketAddr,
    spans: watch::Receiver<Vec<Span>>,
}

struct Service {
    spans: watch::Sender<Vec<Span>>,
    hangs: bool,
}

impl Collector {
    /// One that speaks OTLP over gRPC.
    pub(crate) fn grpc() -> Self {
        Self::start_grpc(false)
    }

    /// One that takes connections and messages, and never answers.
    pub(crate) fn hanging() -> Self {
        Self::start_grpc(true)
    }

    fn start_grpc(hangs: bool) -> Self {
        let (spans, kept) = watch::channel(Vec::new());
        let runtime = runtime();
        let guard = runtime.enter();
        let incoming = TcpIncoming::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        drop(guard);
        let addr = incoming.local_addr().unwrap();
        let service = TraceServiceServer::new(Service { spans, hangs });
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        runtime.spawn(server);
        Self { runtime: Some(runtime), addr, spans: kept }
    }

    /// One that speaks OTLP over HTTP/1.1.
    pub(crate) async fn http() -> Self {
        let (spans, kept) = watch::channel(Vec::new());
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = runtime();
        runtime.spawn(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let spans = spans.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    loop {
                        let mut head = String::new();
                        while !head.ends_with("\r\n\r\n") {
                            if stream.read_line(&mut head).await.unwrap() == 0 {
                                return;
                            }
                        }
                        assert!(head.starts_with("POST /v1/traces "), "{head}");
                        let head = head.to_ascii_lowercase();
                        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
                        let length =
                            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                        let mut body = vec![0; length.parse().unwrap()];
                        stream.read_exact(&mut body).await.unwrap();
                        keep(&spans, ExportTraceServiceRequest::decode(&body[..]).unwrap());
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        Self { runtime: Some(runtime), addr, spans: kept }
    }

    /// What `traces.endpoint` says.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every span so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits until the spans are as `expected`, and gives them.
    pub(crate) async fn until(&self, what: &str, expected: impl FnMut(&Vec<Span>) -> bool) -> Vec<Span> {
        let mut spans = self.spans.clone();
        let there = super::patiently(what, spans.wait_for(expected)).await;
        there.unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        keep(&self.spans, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn keep(spans: &watch::Sender<Vec<Span>>, request: ExportTraceServiceRequest) {
    for resource in request.resource_spans {
        let about = resource.resource.unwrap();
        let named = |name: &str| about.attributes.iter().any(|attribute| attribute.key == name);
        assert!(named("service.name") && named("service.version"), "{about:?}");
        let new = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.send_modify(|spans| spans.extend(new));
    }
}

/// An attribute of a span as text.
pub(crate) fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    let value = found.unwrap_or_else(|| panic!("no {name} in {span:?}")).value.as_ref().unwrap();
    match value.value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => panic!("{other:?}"),
    }
}
