use crate::Result;
use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, Uri, Version};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How a request ended, as an index into [`Outcome::NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome(u8);

impl Outcome {
    /// The gRPC codes in their order, and what else can happen.
    pub(crate) const NAMES: [&str; 20] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
        "TRANSPORT",
        "DROPPED",
        "UNFINISHED",
    ];
    pub(crate) const OK: Self = Self(0);
    /// The connection broke or could not be made.
    pub(crate) const TRANSPORT: Self = Self(17);
    /// Too many requests were unanswered to send this one.
    pub(crate) const DROPPED: Self = Self(18);
    /// No answer came before the generator gave up.
    pub(crate) const UNFINISHED: Self = Self(19);

    pub(crate) fn index(self) -> usize {
        self.0.into()
    }

    /// Whether the server answered.
    pub(crate) fn answered(self) -> bool {
        self.0 < Self::TRANSPORT.0
    }

    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        Some(if code < Self::TRANSPORT.0 { Self(code) } else { Self(2) })
    }
}

/// An HTTP/2 connection that sends messages encoded beforehand and looks at nothing but the status of the answers.
pub(crate) struct Connection {
    addr: SocketAddr,
    uri: Uri,
    headers: HeaderMap,
    /// `None` while it is broken.
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

type Driver = h2::client::Connection<TcpStream, Bytes>;

/// Between attempts on a connection that broke.
const RETRY: Duration = Duration::from_millis(20);
/// Room for answers on their way, so that large ones do not wait for window updates.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

impl Connection {
    /// Connects; the driver must be given to [`keep`](Self::keep). `metadata` goes with every request.
    pub(crate) async fn open(
        addr: SocketAddr,
        metadata: &[(HeaderName, HeaderValue)],
    ) -> Result<(Self, Driver)> {
        let (sender, driver) =
            dial(addr).await.map_err(|error| format!("cannot connect to {addr}: {error}"))?;
        let uri = Uri::builder()
            .scheme("http")
            .authority(addr.to_string())
            .path_and_query("/inference.GRPCInferenceService/ModelInfer")
            .build()?;
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (TE, HeaderValue::from_static("trailers")),
            (USER_AGENT, HeaderValue::from_static("sconce-loadtest")),
        ];
        let headers = headers.into_iter().chain(metadata.iter().cloned()).collect();
        Ok((Self { addr, uri, headers, sender: Mutex::new(Some(sender)) }, driver))
    }

    /// Drives the connection, and connects again whenever it breaks. Never returns.
    pub(crate) async fn keep(&self, mut driver: Driver) {
        loop {
            // How it broke shows in the requests it carried.
            let _ = driver.await;
            self.set_sender(None);
            driver = loop {
                match dial(self.addr).await {
                    Ok((sender, driver)) => {
                        self.set_sender(Some(sender));
                        break driver;
                    }
                    Err(_) => sleep(RETRY).await,
                }
            };
        }
    }

    /// Sends a length-prefixed message and waits for the whole answer. The server is told `timeout`; it is the one to keep it.
    pub(crate) async fn call(&self, message: Bytes, timeout: Option<Duration>) -> Outcome {
        match self.try_call(message, timeout).await {
            Some(outcome) => outcome,
            None => {
                // A broken connection must not become a busy loop.
                sleep(RETRY).await;
                Outcome::TRANSPORT
            }
        }
    }

    async fn try_call(&self, message: Bytes, timeout: Option<Duration>) -> Option<Outcome> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let mut sender = sender.ready().await.ok()?;
        let (response, mut stream) = sender.send_request(self.request(timeout), false).ok()?;
        stream.send_data(message, true).ok()?;
        let (head, mut body) = response.await.ok()?.into_parts();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk.ok()?.len()).ok()?;
        }
        match body.trailers().await.ok()? {
            Some(trailers) => Outcome::from_headers(&trailers),
            None => Outcome::from_headers(&head.headers),
        }
    }

    fn request(&self, timeout: Option<Duration>) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(timeout) = timeout.and_then(grpc_timeout) {
            request.headers_mut().insert("grpc-timeout", timeout);
        }
        request
    }

    fn set_sender(&self, sender: Option<SendRequest<Bytes>>) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

/// At most eight digits and a unit; no less than a microsecond, for none at all would be malformed.
fn grpc_timeout(timeout: Duration) -> Option<HeaderValue> {
    let micros = timeout.as_micros().max(1);
    let text = if micros < 100_000_000 { format!("{micros}u") } else { format!("{}m", micros / 1000) };
    HeaderValue::from_str(&text).ok()
}

async fn dial(addr: SocketAddr) -> Result<(SendRequest<Bytes>, Driver)> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false);
    Ok(builder.handshake(stream).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_well_formed() {
        let text = |timeout| grpc_timeout(timeout).unwrap().to_str().unwrap().to_owned();
        assert_eq!(text(Duration::ZERO), "1u");
        assert_eq!(text(Duration::from_millis(500)), "500000u");
        assert_eq!(text(Duration::from_secs(100)), "100000m");
    }
}
