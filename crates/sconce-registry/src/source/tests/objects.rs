use super::*;
use std::net::Shutdown;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicUsize;

fn s3(endpoint: &str) -> Access {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    access(
        "",
        vec![
            option("AWS_ENDPOINT_URL", endpoint),
            option("AWS_ALLOW_HTTP", "true"),
            option("AWS_REGION", "us-east-1"),
            option("AWS_ACCESS_KEY_ID", "AKEXAMPLES3S"),
            option("AWS_SECRET_ACCESS_KEY", "SKEXAMPLES3S"),
            option("AWS_PROFILE", "ignored"),
        ],
    )
}

/// A bucket as its listing shows it: keys with lengths.
fn listing(objects: &[(&str, usize)]) -> Answer {
    let objects: String = objects
        .iter()
        .map(|(key, size)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>&quot;e&quot;</ETag><Size>{size}</Size></Contents>"
            )
        })
        .collect();
    Answer::ok(format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
    ))
}

fn object(content: &[u8], request: &Request) -> Answer {
    Answer::content(content, request)
        .header("ETag", "\"e\"")
        .header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
}

#[test]
fn everything_below_a_prefix_comes_and_what_stands_for_folders_does_not() {
    let weights = noise(500_000);
    let content = weights.clone();
    let cut = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        if request.path.contains("list-type=2") {
            assert!(request.path.contains("prefix=models%2Fm%2F"), "{}", request.path);
            return listing(&[
                ("models/m/", 0),
                ("models/m/sub/", 0),
                ("models/m/sub/config.json", 2),
                ("models/m/weights", 500_000),
                ("models/m/empty", 0),
                ("models/m/.hidden", 3),
            ]);
        }
        match request.path.as_str() {
            "/b/models/m/sub/config.json" => object(b"{}", request),
            "/b/models/m/empty" => object(b"", request),
            "/b/models/m/weights" => {
                let answer = object(&content, request);
                if cut.fetch_add(1, Ordering::Relaxed) == 0 { answer.cut(123_456) } else { answer }
            }
            _ => Answer::status(404),
        }
    });
    let place = Place::new();
    let import = place.fetch("s3://b/models/m", &s3(&server.url()), Limits::default()).unwrap();
    assert_eq!(paths(&import), ["empty", "sub/config.json", "weights"]);
    assert_eq!(place.content(&import, "weights"), weights);
    let weights = server.requests("/weights");
    assert!(weights.len() > 1 && weights.iter().all(|request| request.if_match.as_deref() == Some("\"e\"")));
    assert!(weights.iter().any(|request| request.path.ends_with("weights")));
    assert_eq!((place.count("partial"), place.count("incoming")), (0, 0));
}

#[test]
fn what_a_store_should_not_say_is_refused() {
    type Listed = &'static [(&'static str, usize)];
    type Serve = fn(&Request) -> Answer;
    let cases: [(Listed, Serve, &str); 8] = [
        (&[], |_| Answer::status(404), "nothing below this prefix"),
        (&[("m/../../x", 1)], |_| Answer::ok("x"), ".."),
        (&[("m/a\\b", 1)], |_| Answer::ok("x"), "backslash"),
        (&[("m/a", 3000)], |_| Answer::ok("x"), "larger than the 2000 bytes"),
        (&[("m/a", 1), ("m/b", 1), ("m/c", 1)], |_| Answer::ok("x"), "more than the 2 files"),
        (&[("m/a", 10)], |request| object(&noise(20), request), "the listing says 10 bytes, the answer 20"),
        (&[("m/a", 10)], |_| Answer::status(412), "changed while it was downloaded"),
        (&[("m/a", 10)], |_| Answer::status(404), "m/a"),
    ];
    for (objects, serve, said) in cases {
        let listed: Vec<_> = objects.to_vec();
        let server = Server::start(move |request| {
            if request.path.contains("list-type=2") { listing(&listed) } else { serve(request) }
        });
        let place = Place::new();
        let error =
            place.fetch("s3://b/m", &s3(&server.url()), Limits { bytes: 2000, files: 2 }).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
        assert_eq!((place.count("blobs"), place.count("incoming")), (0, 0), "{said}");
        assert!(!error.to_string().contains("SKEXAMPLES3S"), "{error}");
    }
}

#[test]
fn other_stores_are_prepared_from_their_settings() {
    let transfer = Transfer { limits: Limits::default(), progress: &|_| {}, cancel: &AtomicBool::new(true) };
    let place = Place::new();
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let azure =
        vec![option("AZURE_STORAGE_ACCOUNT_NAME", "account"), option("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")];
    let google = vec![option("GOOGLE_SKIP_SIGNATURE", "true")];
    for (url, settings) in [("az://container/m", azure), ("gs://bucket/m", google)] {
        let error = Source::parse(url)
            .unwrap()
            .fetch(&place.artifacts, &access("", settings), &transfer)
            .unwrap_err();
        assert!(matches!(error, RegistryError::Cancelled), "{url}: {error}");
    }
    let error =
        Source::parse("az://container/m").unwrap().fetch(&place.artifacts, &access("", vec![]), &transfer);
    assert!(matches!(error, Err(RegistryError::Invalid(_))), "an account is missing");
    let open = Server::start(|_| Answer::status(200));
    let error =
        place.fetch("s3://b/m", &s3(&open.url().replace("http", "https")), Limits::default()).unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::Unavailable, "what speaks no TLS: {error}");
}

/// A server that speaks S3, of the program that `SCONCE_S3_SERVER` names (s3s-fs), with a folder for each bucket.
struct Real {
    child: Child,
    address: SocketAddr,
}

impl Real {
    fn start(buckets: &Path) -> Option<Self> {
        let Some(program) = std::env::var_os("SCONCE_S3_SERVER") else {
            println!("skipped: SCONCE_S3_SERVER names no s3s-fs");
            return None;
        };
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--access-key", "AKEXAMPLES3S", "--secret-key", "SKEXAMPLES3S"])
            .arg(buckets)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while TcpStream::connect(address).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended");
            std::thread::yield_now();
        }
        Some(Self { child, address })
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Passes connections on to `to`, and breaks the first that has brought `after` bytes back.
fn breaking(to: SocketAddr, after: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let broken = Arc::new(AtomicUsize::new(0));
    let breaks = Arc::clone(&broken);
    // Ends with the test's process; it waits for connections until then.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut into);
                let _ = into.shutdown(Shutdown::Both);
            });
            let breaks = Arc::clone(&breaks);
            std::thread::spawn(move || {
                let (mut passed, mut buffer) = (0, [0; 8192]);
                while let Ok(n) = std::io::Read::read(&mut server, &mut buffer)
                    && n > 0
                {
                    passed += n;
                    if passed > after && breaks.fetch_add(1, Ordering::Relaxed) == 0 {
                        break;
                    }
                    if client.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    (address, broken)
}

#[test]
fn a_real_server_that_speaks_s3_is_read_and_gone_on_with() {
    let buckets = TempDir::new().unwrap();
    let weights = noise(3_000_000);
    write(buckets.path(), "models/minilm/v1/model.safetensors", &weights);
    write(buckets.path(), "models/minilm/v1/1_Pooling/config.json", b"{}");
    write(buckets.path(), "models/other/config.json", b"no");
    let Some(server) = Real::start(buckets.path()) else { return };
    let (address, broken) = breaking(server.address, 1_000_000);
    let place = Place::new();
    let source = "s3://models/minilm/v1";
    let import = place.fetch(source, &s3(&format!("http://{address}")), Limits::default()).unwrap();
    assert_eq!(paths(&import), ["1_Pooling/config.json", "model.safetensors"]);
    assert_eq!(place.content(&import, "model.safetensors"), weights);
    assert!(broken.load(Ordering::Relaxed) > 0, "the connection broke once");

    let direct = s3(&format!("http://{}", server.address));
    let error = place.fetch("s3://models/nothing", &direct, Limits::default()).unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::NotFound, "{error}");
    let error = place.fetch("s3://absent/x", &direct, Limits::default()).unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    let mut wrong = direct;
    wrong.object_store[4].1 = "wrong".to_owned();
    let error = place.fetch(source, &wrong, Limits::default()).unwrap_err();
    assert!(!error.to_string().contains("wrong"), "{error}");
}
