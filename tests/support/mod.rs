//! A server in this process, folders of models, and connections whose every frame a test chooses.

mod collector;
mod folder;
mod link;
mod receiver;
mod traffic;
mod wire;

pub(crate) use collector::{Collector, attribute};
pub(crate) use folder::{Folder, raw_safetensors};
pub(crate) use link::Link;
pub(crate) use receiver::{Posted, Receiver};
pub(crate) use traffic::Traffic;
pub(crate) use wire::{Wire, framed, framed_with_payload, read_all_but};

use sconce_client::{Client, InferRequest, Options, Tensor, TrafficClient, tensor};
use sconce_proto::sconce::registry_client::RegistryClient;
use sconce_server::{Limits, Server, ServerConfig};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// What should happen and has not by then never will: no test passes or fails on a shorter time. Shorter than the longest
/// `max_queue_delay_ms`, so that a batch that only its delay would dispatch is found missing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// A server with `identity`, `add_sub` and a folder of models, on free ports of the loopback.
pub(crate) struct Running(Server);

impl Running {
    /// Starts with the default limits.
    pub(crate) async fn start(folder: &Folder) -> Self {
        Self::limited(folder, |_| {}).await
    }

    /// Starts with the limits that `change` makes of the defaults.
    pub(crate) async fn limited(folder: &Folder, change: impl FnOnce(&mut Limits)) -> Self {
        Self::configured(folder, |config| change(&mut config.limits)).await
    }

    /// Starts with the configuration that `change` makes of the defaults.
    pub(crate) async fn configured(folder: &Folder, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = ServerConfig {
            grpc: any_port,
            admin: any_port,
            http: any_port,
            models: Some(folder.path().to_owned()),
            builtin: ["identity", "add_sub"].map(str::to_owned).to_vec(),
            ..ServerConfig::default()
        };
        change(&mut config);
        Self(Box::pin(Server::start(config)).await.unwrap())
    }

    /// Starts with a data folder, and with what `change` makes of the configuration; there is no folder of models.
    pub(crate) async fn stored(data: &Path, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = ServerConfig {
            grpc: any_port,
            admin: any_port,
            http: any_port,
            data: Some(data.to_owned()),
            ..ServerConfig::default()
        };
        change(&mut config);
        Self(Box::pin(Server::start(config)).await.unwrap())
    }

    /// The control listener's registry.
    pub(crate) async fn registry(&self) -> RegistryClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0.addresses().admin)).unwrap();
        RegistryClient::new(endpoint.connect().await.unwrap())
    }

    /// The control listener's traffic.
    pub(crate) async fn traffic(&self) -> TrafficClient {
        TrafficClient::connect(&self.control().to_string(), Options::default()).await.unwrap()
    }

    /// The inference listener's address.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.0.addresses().grpc
    }

    /// The control listener's address.
    pub(crate) fn control(&self) -> SocketAddr {
        self.0.addresses().admin
    }

    /// A new connection to the inference listener.
    pub(crate) async fn client(&self) -> Client {
        connect(self.grpc()).await.unwrap()
    }

    /// A new connection to the control listener.
    pub(crate) async fn admin(&self) -> Client {
        connect(self.0.addresses().admin).await.unwrap()
    }

    /// A new connection to the inference listener, frame by frame.
    pub(crate) async fn wire(&self) -> Wire {
        Wire::connect(self.grpc()).await
    }

    /// `GET path` on the HTTP listener: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.http().await.get(path).await
    }

    /// The metrics as `accept` wants them: content type and body.
    pub(crate) async fn scrape(&self, accept: &str) -> (String, String) {
        let (head, body) = self.http().await.request("/metrics", &format!("accept: {accept}\r\n")).await;
        let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: "));
        (content_type.unwrap().to_owned(), body)
    }

    async fn http(&self) -> Http {
        Http(BufReader::new(TcpStream::connect(self.0.addresses().http).await.unwrap()))
    }

    /// The published value of `sample`, a name with its labels: `sconce_queue_depth{model="m",version="1"}`.
    pub(crate) async fn metric(&self, sample: &str) -> u64 {
        self.http().await.metric(sample).await
    }

    /// Waits until the published value of `sample` is `value`.
    pub(crate) async fn until_metric(&self, sample: &str, value: u64) {
        let mut http = self.http().await;
        until(&format!("{sample} = {value}"), async || http.metric(sample).await == value).await;
    }

    /// Waits until no call is in progress and no byte is held: the server is as it was at the start.
    pub(crate) async fn until_idle(&self) {
        self.until_metric("sconce_streams", 0).await;
        self.until_metric("sconce_inflight_bytes", 0).await;
    }

    /// See [`Server::readiness`].
    pub(crate) fn readiness(&self) -> Result<(), String> {
        self.0.readiness()
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn shutdown(self) {
        patiently("shutdown", self.0.shutdown()).await;
    }
}

/// A connection to the HTTP listener.
struct Http(BufReader<TcpStream>);

impl Http {
    async fn get(&mut self, path: &str) -> (u16, String) {
        let (head, body) = self.request(path, "").await;
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    /// `GET path` with more header lines: the answer's head and body.
    async fn request(&mut self, path: &str, headers: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).await.unwrap() > 0, "the answer ends in its head: {head}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    async fn metric(&mut self, sample: &str) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
    }
}

/// Connects to a server.
pub(crate) async fn connect(addr: SocketAddr) -> sconce_client::Result<Client> {
    Client::connect(&addr.to_string(), Options::default()).await
}

/// `future`, which ends unless something is wrong.
pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not in {PATIENCE:?}"))
}

/// Waits until `condition` holds. Each look at it asks something, so there is nothing to sleep for between two.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    patiently(what, holds).await;
}

/// A request of `rows` rows of one number to `model`, which is an identity.
pub(crate) fn identity_request(model: &str, rows: usize) -> InferRequest {
    InferRequest::new(model).input("INPUT0", matrix(&vec![[1.5]; rows]))
}

/// Rows as an FP32 matrix.
pub(crate) fn matrix<const COLUMNS: usize>(rows: &[[f32; COLUMNS]]) -> Tensor {
    tensor::fp32(&[rows.len(), COLUMNS], rows.as_flattened()).unwrap()
}

/// A figure of this process in bytes, such as `VmRSS` (resident now) or `VmHWM` (the most it ever was).
pub(crate) fn process_memory_bytes(figure: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).unwrap();
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes * 1024
}
