use crate::Result;
use bytes::Bytes;
use h2::SendStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use std::io::Write as _;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

/// An empty message with its prefix.
const EMPTY: &[u8] = &[0; 5];

/// Takes every gRPC call and answers it with an empty message, until the process is killed: a collector that costs next to
/// nothing.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        println!("listening on {}", listener.local_addr()?);
        std::io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            // A peer that breaks off has what it wanted.
            tokio::spawn(async move { drop(connection(stream).await) });
        }
    })
}

async fn connection(stream: TcpStream) -> Result<(), h2::Error> {
    let mut builder = server::Builder::new();
    builder.initial_window_size(16 << 20).initial_connection_window_size(16 << 20);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::spawn(async move { drop(answer(request, respond).await) });
    }
    Ok(())
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut reply: SendStream<Bytes> = respond.send_response(head, false)?;
    reply.send_data(Bytes::from_static(EMPTY), false)?;
    reply.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]))
}
