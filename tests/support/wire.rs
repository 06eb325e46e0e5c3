use super::patiently;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use prost::Message as _;
use sconce_client::{Code, InferRequest};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const INFER: &str = "inference.GRPCInferenceService/ModelInfer";
/// What a call takes of its answer without being read.
const STREAM_WINDOW: u32 = 64 << 10;

/// A connection that sends what no decent client would. Dropping it breaks the connection off.
pub(crate) struct Wire {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// The sending half of a call.
pub(crate) struct Upload(SendStream<Bytes>);

/// The receiving half of a call.
pub(crate) struct Download(ResponseFuture);

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its status.
    pub(crate) code: Code,
    /// The bytes of its messages, prefixes included.
    pub(crate) bytes: usize,
}

impl Wire {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        // Room on the connection for many answers, so that what a call does not read is its own affair.
        let mut http2 = h2::client::Builder::new();
        http2.initial_window_size(STREAM_WINDOW).initial_connection_window_size(16 << 20);
        let (requests, connection) = http2.handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move {
            // Tests see how a connection ends by what their calls end in.
            let _ = connection.await;
        });
        Self { requests, connection }
    }

    /// Opens a `ModelInfer` call with these headers beside the usual.
    pub(crate) async fn open(&self, headers: &[(&str, &str)]) -> (Upload, Download) {
        let mut request = http::Request::post(format!("http://test/{INFER}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut ready = self.requests.clone().ready().await.unwrap();
        let (answer, upload) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        (Upload(upload), Download(answer))
    }

    /// A whole `ModelInfer` call.
    pub(crate) async fn infer(&self, headers: &[(&str, &str)], request: InferRequest) -> Outcome {
        let (mut upload, answer) = self.open(headers).await;
        // A call refused early cannot be sent to the end, and that is no failure: its status tells.
        let _ = upload.send(framed(request), true).await;
        answer.outcome().await
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Upload {
    /// Sends `data` as fast as the server takes it, without copying it.
    pub(crate) async fn send(&mut self, mut data: Bytes, last: bool) -> Result<(), h2::Error> {
        while !data.is_empty() {
            self.0.reserve_capacity(data.len());
            let capacity = std::future::poll_fn(|cx| self.0.poll_capacity(cx)).await;
            let Some(capacity) = capacity.transpose()? else {
                return Err(h2::Reason::STREAM_CLOSED.into());
            };
            let piece = data.split_to(capacity.min(data.len()));
            self.0.send_data(piece, last && data.is_empty())?;
        }
        Ok(())
    }
}

impl Download {
    /// Waits for the head of the answer alone: what follows stays unread. `None`: the call goes on.
    pub(crate) async fn head(self) -> (Option<Code>, RecvStream) {
        let (head, body) = patiently("an answer", self.0).await.unwrap().into_parts();
        (status(&head.headers), body)
    }

    /// Reads the answer to its end.
    pub(crate) async fn outcome(self) -> Outcome {
        let (code, mut body) = self.head().await;
        if let Some(code) = code {
            return Outcome { code, bytes: 0 };
        }
        let mut bytes = 0;
        while let Some(data) = patiently("more of the answer", body.data()).await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes += data.len();
        }
        let trailers = patiently("the end of the answer", body.trailers()).await.unwrap();
        let code = trailers.as_ref().and_then(status).expect("an answer ends in a status");
        Outcome { code, bytes }
    }
}

/// Reads an answer of `bytes` bytes up to its last `unread` ones, and has the server keep these.
pub(crate) async fn read_all_but(body: &mut RecvStream, bytes: usize, unread: usize) {
    let mut grant = (bytes - unread).saturating_sub(STREAM_WINDOW as usize);
    let mut left = bytes - unread;
    while left > 0 {
        let data = patiently("more of the answer", body.data()).await.unwrap().unwrap();
        left -= data.len();
        let granted = grant.min(data.len());
        body.flow_control().release_capacity(granted).unwrap();
        grant -= granted;
    }
}

fn status(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// A request as it goes over the wire.
pub(crate) fn framed(request: InferRequest) -> Bytes {
    let message = request.into_message().encode_to_vec();
    [&prefix(message.len()), &message[..]].concat().into()
}

/// A request as it goes over the wire, but for the bytes of its last input: they follow, and `payload` is how many.
/// The message itself counts all of them.
pub(crate) fn framed_with_payload(request: InferRequest, payload: usize) -> Bytes {
    const RAW_INPUT_CONTENTS: u8 = 7 << 3 | 2;
    let mut message = request.into_message();
    message.raw_input_contents.pop();
    let mut head = message.encode_to_vec();
    head.push(RAW_INPUT_CONTENTS);
    prost::encode_length_delimiter(payload, &mut head).unwrap();
    [&prefix(head.len() + payload), &head[..]].concat().into()
}

fn prefix(message: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(message).unwrap().to_be_bytes();
    [0, a, b, c, d]
}
