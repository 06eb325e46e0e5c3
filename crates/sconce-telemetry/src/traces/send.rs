//! The way of a message to a collector: OTLP over gRPC or HTTP, on one kind of client.

use super::export::Protocol;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::pin::Pin;
use std::time::Duration;

/// What of a message stands before it: gRPC's flag and its length.
pub(crate) const ROOM: usize = 5;
/// The most that is read of a collector's answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A connection that answers no ping for this long is given up.
const PING_EVERY: Duration = Duration::from_secs(10);
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Sends a message that begins with [`ROOM`] bytes for this module.
pub(crate) type Send = Box<dyn Fn(Vec<u8>) -> Sent>;
/// What became of a message.
pub(crate) type Sent = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A way to `endpoint`, which is not connected to yet; each message carries `headers`. To be called in the runtime that will drive it.
///
/// # Errors
/// What was expected of an endpoint, and what came.
pub(crate) fn to(endpoint: &str, protocol: Protocol, headers: HeaderMap) -> Result<Send, String> {
    let trimmed = endpoint.trim_end_matches('/');
    let has_path = trimmed.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let path = match protocol {
        Protocol::Grpc => EXPORT,
        Protocol::Http if has_path => "",
        Protocol::Http => "/v1/traces",
    };
    let uri: Uri = format!("{trimmed}{path}").parse().map_err(|error| format!("{endpoint:?}: {error}"))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(format!("expected http://host:port, got {endpoint:?}"));
    }
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_only(protocol == Protocol::Grpc)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_EVERY)
        .build_http::<Full<Bytes>>();
    Ok(Box::new(move |message| {
        let request = request(&uri, protocol, &headers, message);
        let client = client.clone();
        Box::pin(async move {
            let answer = client.request(request).await.map_err(|error| chain(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| chain(&*error))?;
            if !head.status.is_success() {
                return Err(format!("the collector answered {}", head.status));
            }
            match protocol {
                Protocol::Http => Ok(()),
                Protocol::Grpc => grpc_status(&head.headers, body.trailers()),
            }
        })
    }))
}

fn request(uri: &Uri, protocol: Protocol, headers: &HeaderMap, mut message: Vec<u8>) -> Request<Full<Bytes>> {
    let length = u32::try_from(message.len() - ROOM).unwrap_or(u32::MAX);
    message[1..ROOM].copy_from_slice(&length.to_be_bytes());
    let message = Bytes::from(message);
    let (content_type, body) = match protocol {
        Protocol::Grpc => ("application/grpc", message),
        Protocol::Http => ("application/x-protobuf", message.slice(ROOM..)),
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    request.headers_mut().clone_from(headers);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if protocol == Protocol::Grpc {
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
    request
}

/// A gRPC call's outcome. An answer without a message has its status among the headers.
fn grpc_status(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Result<(), String> {
    let text = |name| {
        let value = trailers.and_then(|trailers| trailers.get(name)).or_else(|| headers.get(name));
        value.and_then(|value| value.to_str().ok())
    };
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or("no message");
            Err(format!("the collector answered with gRPC status {code}: {message}"))
        }
        None => Err("the collector answered without a gRPC status".to_owned()),
    }
}

/// An error and what caused it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_in_the_trailers_or_the_headers() {
        let with = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            let pairs = pairs.iter().map(|(name, value)| (*name, *value));
            pairs.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
        };
        let none = HeaderMap::new();
        assert_eq!(grpc_status(&none, Some(&with(&[("grpc-status", "0")]))), Ok(()));
        let refused = with(&[("grpc-status", "8"), ("grpc-message", "too large")]);
        assert!(grpc_status(&refused, None).unwrap_err().ends_with("8: too large"));
        assert!(grpc_status(&none, None).is_err());
    }

    #[test]
    fn messages_are_framed_for_grpc_alone() {
        let uri = Uri::from_static("http://collector:4317/x");
        let said = HeaderMap::from_iter([("x-tenant".parse().unwrap(), HeaderValue::from_static("me"))]);
        let body = |protocol| {
            let request = request(&uri, protocol, &said, vec![0, 0, 0, 0, 0, 7, 7, 7]);
            assert!(request.headers()["x-tenant"] == "me" && request.headers().contains_key(CONTENT_TYPE));
            futures_now(request.into_body().collect()).to_bytes()
        };
        assert_eq!(body(Protocol::Grpc)[..], [0, 0, 0, 0, 3, 7, 7, 7]);
        assert_eq!(body(Protocol::Http)[..], [7, 7, 7]);
    }

    fn futures_now<T, E: std::fmt::Debug>(future: impl Future<Output = Result<T, E>>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap()
    }
}
