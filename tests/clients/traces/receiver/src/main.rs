//! A collector of traces with Jaeger's user interface and query API. Prints where it takes spans (OTLP over gRPC) and where it
//! is looked at, `{"otlp": "host:port", "jaeger": "host:port"}`, and works until it is killed. Keeps traces in memory alone.

use otlp_embedded::{Config, State, TraceServiceImpl, TraceServiceServer, ui_app};
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let state = State::new(Config { max_length: 1000, max_memory_usage: 64 << 20 });
    let incoming = TcpIncoming::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let otlp = incoming.local_addr()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let jaeger = listener.local_addr()?;
    let service = TraceServiceServer::new(TraceServiceImpl::new(state.clone()));
    let collect = Server::builder()
        .add_service(service.accept_compressed(CompressionEncoding::Gzip))
        .serve_with_incoming(incoming);
    println!(r#"{{"otlp": "{otlp}", "jaeger": "{jaeger}"}}"#);
    tokio::select! {
        ended = collect => ended?,
        ended = axum::serve(listener, ui_app(state, "/")) => ended?,
    }
    Ok(())
}
