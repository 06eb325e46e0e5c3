use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Takes messages over HTTP, after it refused the first with a status each.
pub(crate) struct Receiver {
    url: String,
    posted: Arc<Mutex<Vec<Posted>>>,
    _serving: AbortOnDropHandle<()>,
}

/// A message, and what it was answered with.
#[derive(Debug, Clone)]
pub(crate) struct Posted {
    /// By lower-case names.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) status: u16,
}

impl Receiver {
    /// One that answers the first messages with these, and all others with 202.
    pub(crate) async fn start<const COUNT: usize>(refusals: [u16; COUNT]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/events", listener.local_addr().unwrap());
        let posted = Arc::<Mutex<Vec<Posted>>>::default();
        let (mut refusals, to) = (refusals.into_iter(), Arc::clone(&posted));
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (headers, body) = read(&mut stream).await;
                let status = refusals.next().unwrap_or(202);
                to.lock().unwrap().push(Posted { headers, body, status });
                let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, posted, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Where messages are to go.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// All messages so far.
    pub(crate) fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }

    /// Those that were taken.
    pub(crate) fn taken(&self) -> Vec<Posted> {
        self.posted().into_iter().filter(|posted| posted.status == 202).collect()
    }
}

impl Posted {
    /// The body, which is JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn read(stream: &mut TcpStream) -> (BTreeMap<String, String>, Vec<u8>) {
    let mut text = Vec::new();
    loop {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0, "a message is cut short");
        let Some(at) = text.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(text[..at].to_vec()).unwrap();
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<String, String> =
            headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let length: usize = headers["content-length"].parse().unwrap();
        if text.len() == at + 4 + length {
            return (headers, text[at + 4..].to_vec());
        }
    }
}
