use super::*;
use std::sync::atomic::AtomicUsize;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SOURCE: &str = "hf://org/name@v1";

/// A listing: names, and sizes where they are said.
fn listing(files: &[(&str, Option<usize>)]) -> Answer {
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, size)| serde_json::json!({"rfilename": name, "size": size, "blobId": "x"}))
        .collect();
    Answer::ok(serde_json::json!({"id": "org/name", "sha": COMMIT, "siblings": siblings}).to_string())
}

/// A hub whose repository has one file, served as `serve` says at its n-th request.
fn hub_of_one(
    name: &'static str,
    size: Option<usize>,
    serve: impl Fn(usize, &Request) -> Answer + Send + 'static,
) -> Server {
    let served = AtomicUsize::new(0);
    Server::start(move |request| {
        if request.path.starts_with("/api/") {
            listing(&[(name, size)])
        } else {
            serve(served.fetch_add(1, Ordering::Relaxed), request)
        }
    })
}

fn fetch(place: &Place, hub: &Server) -> Result<Import> {
    place.fetch(SOURCE, &access(&hub.url(), vec![]), Limits::default())
}

/// What a failed fetch says; nothing of it is visible.
fn refusal(place: &Place, hub: &Server) -> RegistryError {
    let error = fetch(place, hub).unwrap_err();
    assert_eq!((place.count("blobs"), place.count("incoming")), (0, 0), "{error}");
    error
}

#[test]
fn the_model_files_of_one_commit_come_and_the_token_goes_to_the_hub_alone() {
    let weights = noise(700_000);
    let far = Server::start({
        let weights = weights.clone();
        move |request| Answer::content(&weights, request)
    });
    let storage = far.url();
    let size = weights.len();
    let hub = Server::start(move |request| match request.path.as_str() {
        "/api/models/org/name/revision/v1?blobs=true" => listing(&[
            (".gitattributes", Some(3)),
            ("config.json", Some(2)),
            ("model.safetensors", Some(size)),
            ("pytorch_model.bin", Some(9)),
            ("1_Pooling/a b.json", Some(4)),
        ]),
        path => match path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) {
            Some("config.json") => Answer::status(307).header("Location", "/moved/config.json"),
            Some("1_Pooling/a%20b.json") => Answer::ok("deep"),
            Some("model.safetensors") => {
                Answer::status(302).header("Location", format!("{storage}/cdn?sig=1"))
            }
            _ if path == "/moved/config.json" => Answer::ok("{}"),
            _ => Answer::status(404),
        },
    });
    let place = Place::new();
    let seen = Mutex::new(Vec::new());
    let progress = |p: Progress<'_>| seen.lock().unwrap().push((p.file.to_owned(), p.bytes, p.total));
    let transfer =
        Transfer { limits: Limits::default(), progress: &progress, cancel: &AtomicBool::new(false) };
    let access = Access { hub_token: Some("hf_secret".to_owned()), ..access(&hub.url(), vec![]) };
    let import = Source::parse(SOURCE).unwrap().fetch(&place.artifacts, &access, &transfer).unwrap();

    assert_eq!(paths(&import), ["1_Pooling/a b.json", "config.json", "model.safetensors"]);
    assert_eq!(place.content(&import, "model.safetensors"), weights);
    assert_eq!(place.content(&import, "1_Pooling/a b.json"), b"deep");
    let token = Some("Bearer hf_secret".to_owned());
    assert!(hub.requests("").iter().all(|request| request.authorization == token));
    assert!(far.requests("").iter().all(|request| request.authorization.is_none()));
    assert!(!far.requests("").is_empty());
    assert!(!format!("{access:?}").contains("secret"));
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.last().unwrap(), &("1_Pooling/a b.json".to_owned(), 4, Some(4)));
    assert!(seen.contains(&("model.safetensors".to_owned(), size as u64, Some(size as u64))));
    assert_eq!((place.count("partial"), place.count("incoming"), place.count("blobs")), (0, 0, 3));
}

#[test]
fn a_download_that_breaks_goes_on_where_it_stopped() {
    let weights = noise(900_000);
    for ranges in [true, false] {
        let content = weights.clone();
        let hub = hub_of_one("model.safetensors", Some(weights.len()), move |n, request| {
            let whole = Request { from: None, ..request.clone() };
            let answer = Answer::content(&content, if ranges { request } else { &whole });
            if n == 0 { answer.cut(300_000) } else { answer }
        });
        let place = Place::new();
        let import = fetch(&place, &hub).unwrap();
        assert_eq!(place.content(&import, "model.safetensors"), weights, "ranges: {ranges}");
        let asked: Vec<_> = hub.requests("/resolve/").iter().map(|request| request.from).collect();
        assert_eq!(asked, [None, Some(300_000)]);
    }
}

#[test]
fn a_second_try_goes_on_where_the_first_was_given_up() {
    let weights = noise(600_000);
    let content = weights.clone();
    let hub = hub_of_one("model.safetensors", Some(weights.len()), move |n, request| match n {
        0 => Answer::content(&content, request).cut(200_000),
        1..=4 => Answer::status(503),
        _ => Answer::content(&content, request),
    });
    let place = Place::new();
    let error = refusal(&place, &hub);
    assert_eq!(error.code(), sconce_core::ErrorCode::Unavailable);
    assert!(error.to_string().contains("given up after 5 attempts"), "{error}");
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(place.count("partial"), 1);

    // Also for a process that starts later.
    let folder = place.folder;
    let artifacts = Artifacts::open(&folder.path().join("artifacts")).unwrap();
    let place = Place { folder, artifacts };
    let import = fetch(&place, &hub).unwrap();
    assert_eq!(place.content(&import, "model.safetensors"), weights);
    assert_eq!(hub.requests("/resolve/").last().unwrap().from, Some(200_000));
    assert_eq!(place.count("partial"), 0);
}

#[test]
fn progress_starts_the_count_of_attempts_again() {
    let weights = noise(1000);
    let content = weights.clone();
    let hub = hub_of_one("model.safetensors", Some(1000), move |_, request| {
        Answer::content(&content, request).cut(100)
    });
    // The last piece is exactly 100 bytes: whole.
    let place = Place::new();
    assert_eq!(place.content(&fetch(&place, &hub).unwrap(), "model.safetensors"), weights);
    assert_eq!(hub.requests("/resolve/").len(), 10);
}

#[test]
fn a_server_that_lies_about_lengths_is_refused() {
    let lengthless = |bytes| Answer { length: None, ..Answer::ok(noise(bytes)) };
    let shifted = |_: &Request| Answer {
        status: 206,
        headers: vec![("Content-Range", "bytes 50-99/100".to_owned())],
        ..Answer::ok(noise(50))
    };
    type Serve = Box<dyn Fn(usize, &Request) -> Answer + Send>;
    let cases: Vec<(Option<usize>, Serve, &str)> = vec![
        (Some(10), Box::new(|_, _| Answer::ok(noise(20))), "the listing says 10 bytes, the answer 20"),
        (Some(10), Box::new(|_, _| Answer::ok(noise(5))), "the listing says 10 bytes, the answer 5"),
        (Some(10), Box::new(move |_, _| lengthless(20)), "expected 10 bytes, more came"),
        (Some(10), Box::new(move |_, _| lengthless(5)), "the answer ended at byte 5 of 10"),
        (None, Box::new(move |_, _| lengthless(30)), "neither the listing nor the answer says how long"),
        (
            None,
            Box::new(|_, _| Answer { length: Some(1 << 60), ..Answer::ok("x") }),
            "larger than the 2000 bytes",
        ),
        (Some(1 << 60), Box::new(|_, _| Answer::ok("x")), "larger than the 2000 bytes"),
        (Some(100), Box::new(move |_, request| shifted(request)), "asked for byte 0 on, got byte 50 on"),
        (
            Some(100),
            Box::new(|_, _| Answer { status: 206, ..Answer::ok(noise(50)) }),
            "a part of the file that it does not name",
        ),
        (
            Some(10),
            Box::new(|_, _| Answer { length: Some(10), ..Answer::ok("12345") }),
            "the connection broke at byte 5",
        ),
    ];
    for (size, serve, said) in cases {
        let hub = hub_of_one("config.json", size, move |n, request| serve(n, request));
        let place = Place::new();
        let error =
            place.fetch(SOURCE, &access(&hub.url(), vec![]), Limits { bytes: 2000, files: 10 }).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
        assert_eq!((place.count("blobs"), place.count("incoming")), (0, 0), "{said}");
        let kept = fs::read_dir(place.artifacts.partial())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len());
        assert!(kept.sum::<u64>() <= 2000, "{said}");
    }
}

#[test]
fn content_that_is_not_what_the_listing_says_is_refused() {
    let right = noise(1000);
    let sha256: String = ring::digest::digest(&ring::digest::SHA256, &right)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let content = right.clone();
    let served = AtomicUsize::new(0);
    let hub = Server::start(move |request| {
        if request.path.starts_with("/api/") {
            let file = serde_json::json!({"rfilename": "model.safetensors", "size": 1000, "lfs": {"sha256": sha256, "size": 1000}});
            return Answer::ok(serde_json::json!({"sha": COMMIT, "siblings": [file]}).to_string());
        }
        let mut content = content.clone();
        if served.fetch_add(1, Ordering::Relaxed) == 0 {
            content[500] ^= 1;
        }
        Answer::content(&content, request)
    });
    let place = Place::new();
    let error = refusal(&place, &hub);
    assert!(matches!(&error, RegistryError::Corrupt { file, .. } if file == "model.safetensors"), "{error}");
    assert_eq!(place.count("partial"), 0, "nothing to go on with");
    assert_eq!(place.content(&fetch(&place, &hub).unwrap(), "model.safetensors"), right);
}

#[test]
fn hostile_listings_are_refused() {
    for name in [
        "../x.json",
        "/etc/x.json",
        "a/../../x.json",
        "a\\..\\x.json",
        "a//x.json",
        "x\u{0}.json",
        "../../.ssh/x.bin",
        "./x.json",
        "a/b/c/d/e/f/g/h/i.json",
        &"x".repeat(600),
    ] {
        let listed = name.to_owned();
        let hub = Server::start(move |_| listing(&[(&listed, Some(1))]));
        let error = refusal(&Place::new(), &hub);
        assert!(
            matches!(error, RegistryError::Invalid(_)) && error.to_string().contains("file path"),
            "{name:?}: {error}"
        );
        assert!(hub.requests("/resolve/").is_empty(), "{name:?}");
    }
    let listings = [
        r#"{"sha": "../../x", "siblings": []}"#,
        r#"{"sha": "0123456789abcdef", "siblings": []}"#,
        r#"{"sha": "0123456789abcdef", "siblings": [{"rfilename": "README.md"}]}"#,
        r#"{"siblings": []}"#,
        "not JSON",
        "",
    ];
    for text in listings {
        let hub = Server::start(move |_| Answer::ok(text));
        refusal(&Place::new(), &hub);
    }
    let twice = Server::start(|request| match request.path.as_str() {
        path if path.starts_with("/api/") => listing(&[("a.json", Some(1)), ("a.json", Some(1))]),
        _ => Answer::ok("x"),
    });
    assert!(fetch(&Place::new(), &twice).unwrap_err().to_string().contains("collides"));
    let endless = Server::start(|_| Answer::ok(vec![b' '; (16 << 20) + 1]));
    assert!(refusal(&Place::new(), &endless).to_string().contains("listing is longer"));
}

#[test]
fn redirects_that_leave_the_web_are_refused() {
    for location in ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "http://", ""] {
        let hub =
            hub_of_one("config.json", Some(1), move |_, _| Answer::status(302).header("Location", location));
        let error = refusal(&Place::new(), &hub);
        assert!(matches!(error, RegistryError::Invalid(_)), "{location:?}: {error}");
        assert!(error.to_string().contains("redirect"), "{location:?}: {error}");
    }
}

#[test]
fn what_the_hub_refuses_is_said() {
    for (status, code, asked) in [
        (404, sconce_core::ErrorCode::NotFound, 1),
        (401, sconce_core::ErrorCode::NotFound, 1),
        (418, sconce_core::ErrorCode::InvalidArgument, 1),
        (500, sconce_core::ErrorCode::Unavailable, 5),
        (429, sconce_core::ErrorCode::Unavailable, 5),
    ] {
        let hub = Server::start(move |_| Answer::status(status));
        let error = refusal(&Place::new(), &hub);
        assert_eq!(error.code(), code, "{status}: {error}");
        assert!(error.to_string().contains(SOURCE), "{status}: {error}");
        assert_eq!(hub.requests("").len(), asked, "{status}");
    }
    let place = Place::new();
    let nobody = Server::start(|_| Answer::status(500)).url();
    let error = place.fetch(SOURCE, &access(&nobody, vec![]), Limits::default()).unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::Unavailable, "{error}");
    let open = Server::start(|_| Answer::status(200));
    let error = place
        .fetch(SOURCE, &access(&open.url().replace("http", "https"), vec![]), Limits::default())
        .unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::Unavailable, "what speaks no TLS: {error}");
    let error = place.fetch(SOURCE, &access("file:///tmp", vec![]), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("endpoint"), "{error}");
}

#[test]
fn a_download_stops_when_asked_and_can_be_had_only_once_at_a_time() {
    let hub = hub_of_one("model.safetensors", Some(1 << 20), |_, request| {
        Answer::content(&noise(1 << 20), request)
    });
    let place = Place::new();
    let access = access(&hub.url(), vec![]);
    let source = Source::parse(SOURCE).unwrap();
    let cancel = AtomicBool::new(false);
    let inner = Mutex::new(None);
    let progress = |_: Progress<'_>| {
        if inner.lock().unwrap().is_none() {
            // A second caller, while the first has the file.
            *inner.lock().unwrap() = Some(Err(RegistryError::Cancelled));
            *inner.lock().unwrap() = Some(place.fetch(SOURCE, &access, Limits::default()));
        }
        cancel.store(true, Ordering::Relaxed);
    };
    let transfer = Transfer { limits: Limits::default(), progress: &progress, cancel: &cancel };
    let error = source.fetch(&place.artifacts, &access, &transfer).unwrap_err();
    assert!(matches!(error, RegistryError::Cancelled), "{error}");
    let second = inner.into_inner().unwrap().unwrap().unwrap_err();
    assert!(second.to_string().contains("is being downloaded already"), "{second}");
    assert_eq!((place.count("blobs"), place.count("incoming"), place.count("partial")), (0, 0, 1));
}

#[test]
fn old_unfinished_downloads_go() {
    let place = Place::new();
    let old = place.artifacts.partial().join("old");
    let young = place.artifacts.partial().join("young");
    fs::write(&old, b"x").unwrap();
    fs::write(&young, b"x").unwrap();
    let then = std::time::SystemTime::now() - Duration::from_secs(8 * 24 * 3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(then).unwrap();
    let hub = hub_of_one("config.json", Some(1), |_, _| Answer::ok("x"));
    fetch(&place, &hub).unwrap();
    assert!(!old.exists() && young.exists());
}
