use super::*;
use crate::artifacts::Limits;
use crate::artifacts::Progress;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tempfile::TempDir;

mod hub;
mod objects;

/// A request as a stand-in server sees it.
#[derive(Debug, Clone)]
struct Request {
    /// Path and query.
    path: String,
    /// Where `Range: bytes=N-` begins.
    from: Option<usize>,
    authorization: Option<String>,
    if_match: Option<String>,
}

/// What a stand-in server says.
#[derive(Debug, Clone, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What `Content-Length` says; none is said without.
    length: Option<usize>,
    /// The connection ends after this many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status: 200, length: Some(body.len()), body, ..Self::default() }
    }

    fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// `content`, or the part of it that was asked for.
    fn content(content: &[u8], request: &Request) -> Self {
        let Some(from) = request.from else { return Self::ok(content) };
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        Self { status: 206, headers: vec![("Content-Range", range)], ..Self::ok(&content[from..]) }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

/// An HTTP server that answers each request, on a connection of its own, as a function says.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that goes away is no failure of the server.
                if let Ok(stream) = stream
                    && let Some(request) = read_request(&stream)
                {
                    seen.lock().unwrap().push(request.clone());
                    let _ = send(stream, &answer(&request));
                }
            }
        });
        Self { address, requests, stop, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests whose path contains `part`.
    fn requests(&self, part: &str) -> Vec<Request> {
        self.requests.lock().unwrap().iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { path, from: None, authorization: None, if_match: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
            "authorization" => request.authorization = Some(value.to_owned()),
            "if-match" => request.if_match = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

fn send(mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = answer.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])
}

struct Place {
    folder: TempDir,
    artifacts: Artifacts,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let artifacts = Artifacts::open(&folder.path().join("artifacts")).unwrap();
        Self { folder, artifacts }
    }

    fn fetch(&self, source: &str, access: &Access, limits: Limits) -> Result<Import> {
        let transfer = Transfer { limits, progress: &|_| {}, cancel: &AtomicBool::new(false) };
        Source::parse(source)?.fetch(&self.artifacts, access, &transfer)
    }

    /// How many files are in the store's folder `name`.
    fn count(&self, name: &str) -> usize {
        fn below(folder: &Path) -> usize {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { below(&path) } else { 1 }).sum()
        }
        below(&self.folder.path().join("artifacts").join(name))
    }

    fn content(&self, import: &Import, path: &str) -> Vec<u8> {
        fs::read(self.artifacts.checkout(import.files()).unwrap().path().join(path)).unwrap()
    }
}

fn access(hub: &str, object_store: Vec<(String, String)>) -> Access {
    Access { hub_endpoint: hub.to_owned(), hub_token: None, object_store, retry_delay: Duration::ZERO }
}

/// Bytes that differ from place to place.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..bytes).map(|_| random.u8(..)).collect()
}

fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn paths(import: &Import) -> Vec<&str> {
    import.files().iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn sources_are_read() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().to_str().unwrap();
    assert_eq!(Source::parse(text).unwrap(), Source::Folder(folder.path().to_owned()));
    for (text, shown) in [
        ("hf://sentence-transformers/all-MiniLM-L6-v2", "hf://sentence-transformers/all-MiniLM-L6-v2@main"),
        ("hf://gpt2@refs/pr/1", "hf://gpt2@refs/pr/1"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/x/", "az://container/x/"),
    ] {
        assert_eq!(Source::parse(text).unwrap().to_string(), shown);
    }
    for bad in [
        "",
        "hf://",
        "hf://a/b/c",
        "hf://../b",
        "hf://a/b@",
        "hf://a/b@../../x",
        "hf://a/b@x?y",
        "hf://a b/c",
        "hf://a//b",
        "s3://",
        "s3:///key",
        "s3://user:key@bucket/x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/x#y",
        "file:///etc",
        "http://host/x",
        "ftp://host/x",
        "a\nb",
        &"x".repeat(5000),
        "/nowhere/at/all",
        "/etc/passwd",
    ] {
        let error = Source::parse(bad).unwrap_err().to_string();
        assert!(error.len() < 400, "{bad:?}: {error}");
    }
}

#[test]
fn a_model_repository_of_another_server_is_taken_version_by_version() {
    let root = TempDir::new().unwrap();
    write(root.path(), "resnet/config.pbtxt", b"name: \"resnet\"");
    write(root.path(), "resnet/labels.txt", b"shared");
    write(root.path(), "resnet/1/model.onnx", b"one");
    write(root.path(), "resnet/10/model.onnx", b"ten");
    write(root.path(), "resnet/10/labels.txt", b"own");
    write(root.path(), "resnet/007/model.onnx", b"no version");
    write(root.path(), "bert/2/model/weights.bin", b"two");
    write(root.path(), ".git/1/x", b"hidden");

    let source = Source::parse(root.path().to_str().unwrap()).unwrap();
    let versions = source.versions().unwrap();
    let listed: Vec<_> = versions.iter().map(|v| format!("{}/{}", v.name, v.version)).collect();
    assert_eq!(listed, ["bert/2", "resnet/1", "resnet/10"]);

    let place = Place::new();
    let transfer = Transfer { limits: Limits::default(), progress: &|_| {}, cancel: &AtomicBool::new(false) };
    let import = versions[1].fetch(&place.artifacts, &transfer).unwrap();
    assert_eq!(paths(&import), ["config.pbtxt", "labels.txt", "model.onnx"]);
    assert_eq!(place.content(&import, "labels.txt"), b"shared");
    let import = versions[2].fetch(&place.artifacts, &transfer).unwrap();
    assert_eq!(place.content(&import, "labels.txt"), b"own");
    let import = versions[0].fetch(&place.artifacts, &transfer).unwrap();
    assert_eq!(paths(&import), ["model/weights.bin"]);
    assert!(source.fetch(&place.artifacts, &access("", vec![]), &transfer).is_err());

    // A file at the top makes it one version's folder.
    write(root.path(), "model.toml", b"");
    assert!(matches!(Source::parse(root.path().to_str().unwrap()).unwrap(), Source::Folder(_)));
    // A name that is none is said, not left out.
    fs::remove_file(root.path().join("model.toml")).unwrap();
    write(root.path(), "two words/1/x", b"");
    assert!(source.versions().unwrap_err().to_string().contains("two words"));
}
