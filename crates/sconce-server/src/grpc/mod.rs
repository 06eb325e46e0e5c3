//! The gRPC listeners: accept within bounds, route calls, stop cleanly.

mod call;
mod control;
pub(crate) mod convert;
mod experiments;
mod feedback;
mod frames;
mod health;
mod inference;
mod info;
mod monitor;
mod registry;
mod review;
mod rollout;
mod status;
mod trace_settings;
mod traffic;
mod weight;

use crate::door::Door;
use call::{Call, Calls};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use info::Info;
use sconce_core::{Error, ErrorCode};
use sconce_proto::FILE_DESCRIPTOR_SET;
use sconce_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use sconce_proto::sconce::feedback_server::FeedbackServer;
use sconce_proto::sconce::health_server::HealthServer as HealthReportServer;
use sconce_proto::sconce::monitor_server::MonitorServer;
use sconce_proto::sconce::registry_server::RegistryServer;
use sconce_proto::sconce::review_server::ReviewServer;
use sconce_proto::sconce::traffic_server::TrafficServer;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

/// What a listener is for.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// Inference, health, reflection. Control calls are refused, and told where they belong.
    Inference {
        /// The control listener's address.
        control: SocketAddr,
    },
    /// The same, and control calls.
    Control,
}

/// One listener's services.
#[derive(Clone)]
pub(crate) struct Listener {
    door: Arc<Door>,
    /// Every service but the two inference calls.
    routes: Routes,
    role: Role,
    /// Connections that are told the bound was reached, instead of being served.
    refusing: Arc<Semaphore>,
}

/// Connections being refused at once; beyond it they are simply closed.
const MAX_REFUSING: usize = 64;
/// What an HTTP/2 client says first.
const PREFACE_BYTES: usize = 24;
/// How long a connection may take to open, and a refused one to read its refusal.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a peer may send ahead on one call and on one connection before it is read: the most an unread byte costs.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// Request headers of one call.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Calls in progress on one connection.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// When a call that found no place, or no room for its connection, is worth another try: places come free all the time, but
/// coming back costs a connection as well.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long after the drain began an open watch may still report.
const LAST_WORD: Duration = Duration::from_millis(200);
/// How often a connection's answers are looked at: see [`Calls::stuck`].
const LOOK_AT_ANSWERS: Duration = Duration::from_secs(10);
/// A peer that does not answer a ping within twice this is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Refuses a control call on a listener that has none, and says where it belongs.
fn control_only(role: &Role, call: &str) -> Result<(), Status> {
    match role {
        Role::Control => Ok(()),
        Role::Inference { control } => {
            Err(Status::permission_denied(format!("{call} is served on the control listener, {control}")))
        }
    }
}

impl Listener {
    pub(crate) fn new(
        door: Arc<Door>,
        role: Role,
        health: HealthServer<impl Health>,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let info = Info { door: Arc::clone(&door), role: role.clone() };
        let mut service = GrpcInferenceServiceServer::new(info);
        if matches!(role, Role::Control) {
            // A load may carry files.
            service = service.max_decoding_message_size(door.limits.max_message_bytes);
        }
        let feedback = feedback::Feedback::new(Arc::clone(&door), role.clone());
        let mut routes = Routes::new(service).add_service(FeedbackServer::new(feedback));
        if matches!(role, Role::Control) {
            let control = registry::Control::new(Arc::clone(&door));
            routes = routes.add_service(RegistryServer::new(control));
            routes =
                routes.add_service(HealthReportServer::new(health::HealthReports::new(Arc::clone(&door))));
            let monitors = monitor::Monitors::new(Arc::clone(&door));
            let monitors =
                MonitorServer::new(monitors).max_decoding_message_size(door.limits.max_message_bytes);
            routes = routes.add_service(monitors);
            routes = routes.add_service(ReviewServer::new(review::Review::new(Arc::clone(&door))));
            routes = routes.add_service(TrafficServer::new(traffic::Traffic::new(Arc::clone(&door))));
        }
        let routes = routes
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        Ok(Self { door, routes, role, refusing: Arc::new(Semaphore::new(MAX_REFUSING)) })
    }

    /// Accepts connections until `stop`; each lives on `connections` until its last call is answered, or `abort`.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        connections: TaskTracker,
        stop: CancellationToken,
        abort: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let serve = self.clone().serve(stream, stop.clone());
                    let abort = abort.clone();
                    connections.spawn(async move {
                        tokio::select! {
                            () = serve => {}
                            () = abort.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: accepting at once again would only spin.
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a connection could not be accepted"
                    );
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream, stop: CancellationToken) {
        // Without it small answers wait for the peer's acknowledgement. A socket that refuses it still works.
        let _ = stream.set_nodelay(true);
        if matches!(self.role, Role::Control) {
            return self.serve_http2(stream, stop, false).await;
        }
        match Arc::clone(&self.door.connections).try_acquire_owned() {
            Ok(_permit) => self.serve_http2(stream, stop, false).await,
            Err(_) => {
                self.door.refused.connections.fetch_add(1, Ordering::Relaxed);
                let Ok(_permit) = Arc::clone(&self.refusing).try_acquire_owned() else { return };
                let refusal = self.serve_http2(stream, stop, true);
                // Whether it read its refusal in time is the peer's business.
                let _ = tokio::time::timeout(PATIENCE, refusal).await;
            }
        }
    }

    async fn serve_http2(self, stream: TcpStream, stop: CancellationToken, refused: bool) {
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(PATIENCE, preface(&stream)) => greeted,
            () = stop.cancelled() => return,
        };
        if !matches!(greeted, Ok(Ok(()))) {
            return;
        }
        let calls = Arc::new(Calls::default());
        let watched = Arc::clone(&calls);
        let service = service_fn(move |request| {
            let (listener, calls) = (self.clone(), Arc::clone(&calls));
            async move {
                Ok::<_, Infallible>(if refused {
                    let limit = listener.door.limits.max_connections;
                    inference::refuse(&exhausted(format!("the server has {limit} connections, its limit")))
                } else {
                    listener.route(&calls, request).await
                })
            }
        });
        let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let connection = http2.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut look = tokio::time::interval(LOOK_AT_ANSWERS);
        let mut stopping = false;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = look.tick() => if watched.stuck(Instant::now()) {
                    tracing::debug!("a connection was closed: its peer does not take its answers");
                    return;
                },
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended badly");
        }
    }

    /// Refuses a service of the control listener where that is another one. A listener that does not have it would say as much
    /// without a word.
    fn control_only_service(&self, path: &str) -> Option<Status> {
        let service = path.strip_prefix('/')?.split('/').next()?;
        let Role::Inference { control } = self.role else { return None };
        let is_elsewhere = service.starts_with("sconce.v1.") && service != "sconce.v1.Feedback";
        is_elsewhere
            .then(|| Status::unimplemented(format!("{service} is served on the control listener, {control}")))
    }

    /// One call. It holds its place among all calls until its answer is sent.
    async fn route(mut self, calls: &Arc<Calls>, request: Request<Incoming>) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.door.streams).try_acquire_owned() else {
            self.door.refused.calls.fetch_add(1, Ordering::Relaxed);
            let limit = self.door.limits.max_streams;
            return inference::refuse(&exhausted(format!(
                "the server has {limit} calls in progress, its limit"
            )));
        };
        let call = Call::new(calls, place, Instant::now());
        match request.uri().path() {
            "/inference.GRPCInferenceService/ModelInfer" => {
                // On its way to its task a call is moved several times: what it needs later stays out of it.
                Box::pin(inference::unary(&self.door, &call, request)).await
            }
            "/inference.GRPCInferenceService/ModelStreamInfer" => {
                inference::streaming(self.door, call, request)
            }
            path if let Some(refused) = self.control_only_service(path) => refused.into_http(),
            _ => match self.routes.call(request).await {
                Ok(response) => {
                    let draining = self.door.draining.clone();
                    response.map(|body| held(until_drained(body, draining), call))
                }
                Err(never) => match never {},
            },
        }
    }
}

/// Waits until a client's opening bytes are all there. After them pings find out a peer that is gone; before, nothing would.
async fn preface(stream: &TcpStream) -> std::io::Result<()> {
    let mut opening = [0; PREFACE_BYTES];
    loop {
        match stream.peek(&mut opening).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            PREFACE_BYTES => return Ok(()),
            // What is there stays readable, so there is nothing to wait on but time; a whole opening comes in one segment.
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `body`, ended soon after `draining`: a health watch or a reflection stream, which its client would keep for ever, has
/// the time to say its last word.
fn until_drained(body: Body, draining: CancellationToken) -> Body {
    if body.is_end_stream() {
        // A refusal says its status in the headers, and a body after it would hide that.
        return body;
    }
    let drained = async move {
        draining.cancelled().await;
        tokio::time::sleep(LAST_WORD).await;
    };
    let state = (BodyStream::new(body), Box::pin(drained));
    Body::new(StreamBody::new(stream::unfold(Some(state), |state| async move {
        let (mut frames, mut drained) = state?;
        tokio::select! {
            biased;
            frame = frames.next() => Some((frame?, Some((frames, drained)))),
            () = &mut drained => {
                let mut trailers = HeaderMap::new();
                // Status trailers are plain text: they always make valid headers.
                let _ = Status::unavailable("the server is draining").add_header(&mut trailers);
                Some((Ok(Frame::trailers(trailers)), None))
            }
        }
    })))
}

/// `body`, holding `guard` as long as it lives.
fn held<G: Send + Unpin + 'static>(body: Body, guard: G) -> Body {
    Body::new(body.map_frame(move |frame| {
        let _held = &guard;
        frame
    }))
}

fn exhausted(message: String) -> Error {
    Error::new(ErrorCode::ResourceExhausted, format!("{message}: try again later"))
        .with_retry_after(RETRY_AFTER)
}
