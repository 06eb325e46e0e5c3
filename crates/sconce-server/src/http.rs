//! Health and metrics over HTTP.

use crate::door::Door;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sconce_telemetry::metrics::{self, Format};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; probes and scrapers need a handful.
const MAX_CONNECTIONS: usize = 256;
/// How long a peer may take to send its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop`.
pub(crate) async fn run(
    door: Arc<Door>,
    listener: TcpListener,
    connections: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (door, stop, abort) = (Arc::clone(&door), stop.clone(), abort.clone());
        connections.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let door = Arc::clone(&door);
                async move { Ok::<_, Infallible>(answer(door, &request).await) }
            });
            let mut http1 = hyper::server::conn::http1::Builder::new();
            http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let mut connection = std::pin::pin!(http1.serve_connection(TokioIo::new(stream), service));
            // A probe that breaks off is nobody's concern.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = abort.cancelled() => {}
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        });
    }
}

async fn answer(door: Arc<Door>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n".to_owned());
    }
    match request.uri().path() {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => match door.readiness() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n")),
        },
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::of_accept(accept.unwrap_or_default());
            // With hundreds of models it takes tens of milliseconds, which are not those of a thread that serves requests.
            let text = tokio::task::spawn_blocking(move || metrics::encode(door.scrape(), format).ok());
            match text.await {
                Ok(Some(text)) => respond(StatusCode::OK, format.content_type(), text),
                _ => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics failed\n".to_owned()),
            }
        }
        _ => respond(StatusCode::NOT_FOUND, TEXT, "try /healthz, /readyz or /metrics\n".to_owned()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
