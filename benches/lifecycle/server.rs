use crate::Result;
use clap::Args;
use sconce_client::{Client, Options};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::register_request::Part;
use sconce_proto::sconce::registry_client::RegistryClient;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

/// A server on this machine.
#[derive(Args)]
pub(crate) struct Target {
    #[arg(long)]
    pub(crate) grpc: String,
    #[arg(long)]
    pub(crate) admin: String,
    #[arg(long)]
    pub(crate) http: String,
    #[arg(long)]
    pub(crate) pid: u32,
    /// Folder of packages, by model
    #[arg(long)]
    pub(crate) packages: PathBuf,
}

/// A server and its clients.
pub(crate) struct Server<'a> {
    pub(crate) target: &'a Target,
    pub(crate) client: Client,
    pub(crate) registry: RegistryClient<Channel>,
}

impl<'a> Server<'a> {
    pub(crate) async fn of(target: &'a Target) -> Result<Self> {
        let client = Client::connect(&target.grpc, Options::default()).await?;
        let channel = Endpoint::from_shared(format!("http://{}", target.admin))?.connect().await?;
        let registry = RegistryClient::new(channel);
        Ok(Self { target, client, registry })
    }

    /// Registers the next version of `model`.
    pub(crate) async fn push(&self, model: &str, package: &str) -> Result<()> {
        let header = pb::NewVersion { model: model.to_owned(), ..Default::default() };
        let mut parts = vec![Part::Header(header)];
        for (path, content) in files(&self.target.packages.join(package))? {
            parts.push(Part::File(pb::FileHeader {
                path,
                bytes: content.len() as u64,
                digest: String::new(),
            }));
            parts.extend(content.chunks(1 << 20).map(|chunk| Part::Chunk(chunk.to_vec())));
        }
        let parts = parts.into_iter().map(|part| pb::RegisterRequest { part: Some(part) });
        self.registry.clone().register(futures_util::stream::iter(parts)).await?;
        Ok(())
    }

    pub(crate) async fn want(&self, model: &str, version: &str, wanted: pb::Wanted) -> Result<()> {
        let request = pb::SetWantedRequest {
            model: model.to_owned(),
            version: version.to_owned(),
            wanted: wanted.into(),
            ..Default::default()
        };
        self.registry.clone().set_wanted(request).await?;
        Ok(())
    }

    /// Gives the version that answers from now on, and since which routing generation.
    pub(crate) async fn promote(&self, model: &str, version: &str) -> Result<(u64, u64)> {
        let request = pb::PromoteRequest {
            model: model.to_owned(),
            version: version.to_owned(),
            alias: "champion".to_owned(),
            ..Default::default()
        };
        let promoted = self.registry.clone().promote(request).await?.into_inner();
        Ok((promoted.version, promoted.generation))
    }

    /// As [`promote`](Self::promote).
    pub(crate) async fn roll_back(&self, model: &str) -> Result<(u64, u64)> {
        let request = pb::RollbackRequest {
            model: model.to_owned(),
            alias: "champion".to_owned(),
            ..Default::default()
        };
        let back = self.registry.clone().rollback(request).await?.into_inner();
        Ok((back.version, back.generation))
    }

    /// Bytes that the process holds, after a while: threads that end give theirs back a moment later.
    pub(crate) async fn resident(&self) -> Result<u64> {
        sleep(Duration::from_millis(300)).await;
        let metrics = self.metrics().await?;
        let said = metrics.lines().find_map(|line| line.strip_prefix("sconce_resident_memory_bytes "));
        let said: f64 = said.ok_or("no `sconce_resident_memory_bytes` in /metrics")?.parse()?;
        let seen = self.status("VmRSS:")? << 10;
        if (said - seen as f64).abs() > 0.05 * seen as f64 {
            return Err(format!("/metrics says {said} bytes are resident, the system {seen}").into());
        }
        Ok(seen)
    }

    /// A number of proc(5)'s `status`.
    pub(crate) fn status(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.target.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("the server is gone")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub(crate) async fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(&self.target.http).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: sconce\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer from /metrics")?;
        Ok(body.to_owned())
    }
}

/// The files of a package: path and content.
pub(crate) fn files(package: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut folders = vec![package.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                // The registry takes none.
            } else if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                let name = path.strip_prefix(package)?.to_str().ok_or("a path that is no text")?;
                files.push((name.to_owned(), fs::read(&path)?));
            }
        }
    }
    files.sort();
    Ok(files)
}
