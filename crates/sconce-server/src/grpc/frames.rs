//! gRPC framing of inference messages: five bytes (a flag, a big-endian length), then the message.
//!
//! The length is known before the body is, which is what lets the server bound the bytes of all messages in flight: they
//! are reserved here, or the call is refused, before anything is buffered. A message that arrives in one piece is not
//! copied.

use crate::grpc::call::Call;
use crate::observe::Observation;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use prost::Message;
use sconce_core::{ByteBudget, Error, ErrorCode, Reservation, Result};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

const PREFIX_BYTES: usize = 5;

/// How long a message may take to arrive: a slow sender must not hold its reservation, or its call's place, for ever.
pub(crate) const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// Reads the messages of one call.
pub(crate) struct MessageReader<B> {
    body: B,
    /// Received and not yet consumed.
    chunk: Bytes,
    budget: ByteBudget,
    max_message_bytes: usize,
    /// Bytes of a refused message that are still to come.
    refused_bytes: usize,
}

/// A message with its share of the budget.
pub(crate) type Received = (Bytes, Reservation);

impl<B> MessageReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    pub(crate) fn new(body: B, budget: ByteBudget, max_message_bytes: usize) -> Self {
        Self { body, chunk: Bytes::new(), budget, max_message_bytes, refused_bytes: 0 }
    }

    /// The next message, or why it alone is refused (`ResourceExhausted` over the budget); `None` at the end of the call.
    ///
    /// # Errors
    /// What ends the call: `ResourceExhausted` over the message bound, `Unimplemented` for a compressed message,
    /// `InvalidArgument` for a call that ends inside a message, `DeadlineExceeded` for a message that takes too long,
    /// `Cancelled` when the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Received>>> {
        in_time(self.skip_refused()).await?;
        while self.chunk.len() < PREFIX_BYTES {
            let Some(more) = self.receive().await? else {
                return if self.chunk.is_empty() { Ok(None) } else { Err(ended_early()) };
            };
            self.chunk = if self.chunk.is_empty() { more } else { [&self.chunk[..], &more].concat().into() };
        }
        let compressed = self.chunk.get_u8() != 0;
        let len = self.chunk.get_u32() as usize;
        if compressed {
            return Err(Error::new(
                ErrorCode::Unimplemented,
                "compressed messages are not supported: send identity",
            ));
        }
        if len > self.max_message_bytes {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("the message has {len} bytes, the limit is {}", self.max_message_bytes),
            ));
        }
        let reservation = match self.budget.reserve(len) {
            Ok(reservation) => reservation,
            Err(error) => {
                self.refused_bytes = len;
                return Ok(Some(Err(error)));
            }
        };
        let message = if self.chunk.len() >= len {
            self.chunk.split_to(len)
        } else {
            in_time(self.collect(len)).await?
        };
        Ok(Some(Ok((message, reservation))))
    }

    /// Gathers a message of `len` bytes from several chunks.
    async fn collect(&mut self, len: usize) -> Result<Bytes> {
        let mut message = BytesMut::with_capacity(len);
        message.extend_from_slice(&std::mem::take(&mut self.chunk));
        while message.len() < len {
            let Some(mut more) = self.receive().await? else { return Err(ended_early()) };
            message.extend_from_slice(&more.split_to(more.len().min(len - message.len())));
            self.chunk = more;
        }
        Ok(message.freeze())
    }

    /// Lets go of what comes of a refused message.
    async fn skip_refused(&mut self) -> Result<()> {
        loop {
            let skipped = self.chunk.len().min(self.refused_bytes);
            self.chunk.advance(skipped);
            self.refused_bytes -= skipped;
            if self.refused_bytes == 0 {
                return Ok(());
            }
            self.chunk = self.receive().await?.ok_or_else(ended_early)?;
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::new(ErrorCode::Cancelled, "the call broke off").with_source(error));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    // Trailers of a request mean nothing here.
                    Err(_) => continue,
                },
            }
        }
    }
}

fn ended_early() -> Error {
    Error::invalid("the call ended inside a message")
}

/// What comes of a message, which has a limited time for it.
async fn in_time<T>(arrival: impl Future<Output = Result<T>>) -> Result<T> {
    let arrived = tokio::time::timeout(ARRIVAL_LIMIT, arrival).await;
    arrived.unwrap_or_else(|_| {
        let message = format!("the message took longer than {ARRIVAL_LIMIT:?} to arrive");
        Err(Error::new(ErrorCode::DeadlineExceeded, message))
    })
}

/// An encoded answer with its prefix, and its share of the budget.
pub(crate) struct Encoded {
    message: BytesMut,
    reservation: Reservation,
}

/// Encodes an answer. Its request's reservation becomes its own and is held until the last byte was sent: an answer that nobody
/// reads is held like a request.
///
/// # Errors
/// `Internal` for more than a message can carry.
pub(crate) fn encode(message: impl Message, mut reservation: Reservation) -> Result<Encoded> {
    let len = message.encoded_len();
    if i32::try_from(len).is_err() {
        return Err(Error::internal(format!("the answer has {len} bytes, more than a message can carry")));
    }
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + len);
    buffer.extend_from_slice(&[0]);
    buffer.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    // The buffer has room: encoding into it cannot fail.
    let _ = message.encode(&mut buffer);
    drop(message);
    reservation.settle(len);
    Ok(Encoded { message: buffer, reservation })
}

impl Encoded {
    /// The bytes, to be handed to HTTP/2 now: from here on `call` waits for its peer to take them. The observation ends here,
    /// and is looked at when they have left.
    pub(crate) fn leave(self, call: &Arc<Call>, mut observation: Observation) -> Bytes {
        let Self { message, reservation } = self;
        call.add(message.len(), Instant::now());
        observation.ended();
        Bytes::from_owner(Answer {
            message,
            _reservation: reservation,
            call: Arc::clone(call),
            _observation: observation,
        })
    }
}

/// The trailers of a call that went well.
pub(crate) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// An answer's bytes. HTTP/2 keeps what it has not sent, so they end with the last one.
struct Answer {
    message: BytesMut,
    _reservation: Reservation,
    call: Arc<Call>,
    _observation: Observation,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.call.remove(self.message.len(), Instant::now());
    }
}

/// The body of a unary answer: one message, then the trailers.
pub(crate) struct UnaryBody {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl UnaryBody {
    pub(crate) fn new(message: Bytes) -> Self {
        Self { message: Some(message), trailers: Some(ok_trailers()) }
    }
}

impl Body for UnaryBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let message = self.message.take().map(Frame::data);
        Poll::Ready(message.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    fn reader(
        chunks: Vec<Vec<u8>>,
        budget: &ByteBudget,
    ) -> MessageReader<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        MessageReader::new(StreamBody::new(stream::iter(frames)), budget.clone(), 100)
    }

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let frame = |m: &&[u8]| [&[0][..], &u32::try_from(m.len()).unwrap().to_be_bytes(), m].concat();
        messages.iter().flat_map(frame).collect()
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let bytes = framed(&[b"one", b"", b"a longer third message"]);
        for size in 1..=bytes.len() {
            let budget = ByteBudget::new(100);
            let mut reader = reader(bytes.chunks(size).map(<[u8]>::to_vec).collect(), &budget);
            let mut got = Vec::new();
            while let Some(received) = reader.next().await.unwrap() {
                got.push(received.unwrap().0);
            }
            assert_eq!(got, [&b"one"[..], b"", b"a longer third message"], "in chunks of {size}");
            assert_eq!(budget.held_bytes(), 0);
        }
    }

    #[tokio::test]
    async fn the_length_prefix_alone_reserves_and_refuses() {
        let budget = ByteBudget::new(60);
        let mut first = reader(vec![framed(&[&[7; 50]])], &budget);
        let (_, held) = first.next().await.unwrap().unwrap().unwrap();
        // Only the prefix of the second message has come.
        let mut second = reader(vec![vec![0, 0, 0, 0, 20]], &budget);
        let refused = second.next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(refused.code(), ErrorCode::ResourceExhausted);
        let mut huge = reader(vec![vec![0, 0xff, 0xff, 0xff, 0xff]], &budget);
        assert_eq!(huge.next().await.unwrap_err().code(), ErrorCode::ResourceExhausted);
        drop(held);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[tokio::test]
    async fn a_refused_message_is_let_go_and_the_next_one_read() {
        let bytes = framed(&[&[7; 50], &[8; 70], b"after"]);
        for size in 1..=bytes.len() {
            let budget = ByteBudget::new(60);
            let mut reader = reader(bytes.chunks(size).map(<[u8]>::to_vec).collect(), &budget);
            let mut next =
                async || reader.next().await.unwrap().map(|received| received.map(|(m, _)| m.len()).ok());
            assert_eq!(
                (next().await, next().await, next().await),
                (Some(Some(50)), Some(None), Some(Some(5)))
            );
            assert_eq!(next().await, None);
            assert_eq!(budget.held_bytes(), 0);
        }
        let budget = ByteBudget::new(60);
        let mut cut = reader(vec![framed(&[&[8; 70]])[..40].to_vec()], &budget);
        assert!(cut.next().await.unwrap().unwrap().is_err());
        assert_eq!(cut.next().await.unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    #[tokio::test]
    async fn broken_framing_is_refused() {
        let budget = ByteBudget::new(100);
        let code = async |bytes: Vec<u8>| reader(vec![bytes], &budget).next().await.unwrap_err().code();
        assert_eq!(code(vec![0, 0]).await, ErrorCode::InvalidArgument);
        assert_eq!(code(vec![0, 0, 0, 0, 9, 1]).await, ErrorCode::InvalidArgument);
        assert_eq!(code(vec![1, 0, 0, 0, 1, 1]).await, ErrorCode::Unimplemented);
        assert_eq!(budget.held_bytes(), 0);
    }
}
