//! Messages over HTTP to whoever is to be told, from the threads of sinks.

use crate::sink::Inbox;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sconce_core::{Error, Result};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_util::task::AbortOnDropHandle;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The first pause between two attempts, and the longest: each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What is read of an answer.
const ANSWER_BYTES: usize = 64 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where one sink's messages go. It blocks, so it belongs to that sink's thread.
pub(crate) struct Poster {
    runtime: Runtime,
    uri: Uri,
}

/// A message: what it says of itself, and its bytes.
pub(crate) struct Message {
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

/// Why a message was not taken.
#[derive(Debug)]
struct Refusal {
    why: String,
    may_pass: bool,
}

impl Poster {
    /// # Errors
    /// A `url` as [`check_url`] refuses it; a system that has no more file descriptors.
    pub(crate) fn new(url: &str) -> Result<Self> {
        let uri = check_url(url)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::internal("there is no runtime").with_source(error))?;
        Ok(Self { runtime, uri })
    }

    /// Posts what `message` gives, which is asked anew for each attempt: at least once, and after failures that may pass again until
    /// the time is `until`. The pauses in between double. Once the sink is told to stop there are no more pauses, and one last attempt.
    ///
    /// # Errors
    /// What the last attempt failed with.
    pub(crate) fn deliver<T>(
        &self,
        inbox: &Inbox<T>,
        until: Instant,
        message: impl Fn() -> Message,
    ) -> Result<(), String> {
        let mut goes_on = inbox.pause(Duration::ZERO);
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(refusal) = self.runtime.block_on(self.attempt(message())) else { return Ok(()) };
            if !refusal.may_pass || !goes_on || Instant::now() >= until {
                return Err(refusal.why);
            }
            goes_on = inbox.pause(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, message: Message) -> Result<(), Refusal> {
        let to = address(&self.uri);
        match tokio::time::timeout(ATTEMPT, self.post(message)).await {
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => {
                let passing = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
                let may_pass = passing || status.is_server_error();
                Err(Refusal { why: format!("{to} answered {status}"), may_pass })
            }
            Ok(Err(error)) => Err(Refusal { why: format!("{to}: {error}"), may_pass: true }),
            Err(_) => Err(Refusal { why: format!("{to} did not answer within {ATTEMPT:?}"), may_pass: true }),
        }
    }

    async fn post(&self, message: Message) -> Result<StatusCode, BoxError> {
        let headers = message.headers.into_iter();
        let request = headers.fold(Request::builder().method(Method::POST), |request, (name, value)| {
            request.header(name, value)
        });
        Ok(exchange(&self.uri, request.body(Full::new(message.body))?).await?.0)
    }
}

/// Sends a request to `uri` on a connection of its own, for a few a second at most are no reason to keep one; gives the answer's
/// status and up to 64 KiB of its body. Of a longer one, which is an answer all the same, nothing.
///
/// # Errors
/// What kept it from being answered.
pub(crate) async fn exchange(
    uri: &Uri,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), BoxError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    request.headers_mut().insert(header::HOST, address(uri).parse()?);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    Ok((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
}

/// Host and port. The rest of a URL may hold what only the two of them are to know, so no log has it.
fn address(uri: &Uri) -> &str {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    authority.rsplit_once('@').map_or(authority, |(_, address)| address)
}

/// The place that `url` names.
///
/// # Errors
/// `InvalidArgument` where it names none that is reached over plain HTTP.
pub(crate) fn check_url(url: &str) -> Result<Uri> {
    let uri = url.parse::<Uri>().ok();
    let fits = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
    fits.ok_or_else(|| {
        Error::invalid(format!("expected http://host:port/path, got {:?}", sconce_core::abbreviate(url)))
    })
}
