use super::*;
use crate::FileRecord;
use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;
use std::sync::Barrier;
use tempfile::TempDir;

fn store() -> (TempDir, Artifacts) {
    let folder = TempDir::new().unwrap();
    let artifacts = Artifacts::open(&folder.path().join("artifacts")).unwrap();
    (folder, artifacts)
}

fn folder_of(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn import(artifacts: &Artifacts, from: &Path) -> Result<Import> {
    import_within(artifacts, from, Limits::default())
}

fn import_within(artifacts: &Artifacts, from: &Path, limits: Limits) -> Result<Import> {
    let transfer = Transfer { limits, progress: &|_| {}, cancel: &AtomicBool::new(false) };
    artifacts.import_folder(from, &transfer)
}

/// Every file below the store's folder `name`.
fn files_in(artifacts: &Artifacts, name: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![artifacts.store.folder.join(name)];
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder).unwrap() {
            if entry.file_type().unwrap().is_dir() { &mut folders } else { &mut files }.push(entry.path());
        }
    }
    files
}

fn refusal(result: Result<Import>, artifacts: &Artifacts) -> String {
    let message = result.unwrap_err().to_string();
    assert!(files_in(artifacts, "incoming").is_empty(), "{message}: something was left");
    message
}

#[test]
fn a_folder_comes_back_as_it_was_and_content_is_stored_once() {
    let (_data, artifacts) = store();
    let large = vec![7; 3 * BUFFER_BYTES + 5];
    let from = folder_of(&[
        ("model.toml", b"x"),
        ("1/weights", &large),
        ("1/again", &large),
        ("empty", b""),
        (".git/config", b"no"),
        ("1/.cache", b"no"),
    ]);
    symlink("../model.toml", from.path().join("1/link.toml")).unwrap();

    let seen = RefCell::new(Vec::new());
    let progress = |p: Progress<'_>| seen.borrow_mut().push((p.file.to_owned(), p.bytes, p.total));
    let transfer =
        Transfer { limits: Limits::default(), progress: &progress, cancel: &AtomicBool::new(false) };
    let import = artifacts.import_folder(from.path(), &transfer).unwrap();

    let paths: Vec<_> = import.files().iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["1/again", "1/link.toml", "1/weights", "empty", "model.toml"]);
    assert_eq!(import.files()[4].digest.to_string(), blake3::hash(b"x").to_hex().as_str());
    assert_eq!(import.bytes(), 2 * large.len() as u64 + 2);
    assert_eq!(files_in(&artifacts, "blobs").len(), 3, "identical files are stored once");
    assert!(
        files_in(&artifacts, "blobs").iter().all(|blob| fs::metadata(blob).unwrap().mode() & 0o777 == 0o444)
    );
    assert!(files_in(&artifacts, "incoming").is_empty());
    let total = large.len() as u64;
    assert!(seen.borrow().contains(&("1/weights".to_owned(), 2 * BUFFER_BYTES as u64, Some(total))));

    let checkout = artifacts.checkout(import.files()).unwrap();
    assert_eq!(fs::read(checkout.path().join("1/weights")).unwrap(), large);
    assert_eq!(fs::read(checkout.path().join("1/link.toml")).unwrap(), b"x");
    assert_eq!(fs::read(checkout.path().join("empty")).unwrap(), b"");
    assert!(!checkout.path().join(".git").exists());
    let linked = fs::metadata(checkout.path().join("1/weights")).unwrap();
    assert_eq!(linked.ino(), fs::metadata(artifacts.blob(&import.files()[0].digest)).unwrap().ino());
    let path = checkout.path().to_owned();
    drop(checkout);
    assert!(!path.exists());
    assert!(artifacts.blob(&import.files()[0].digest).exists(), "only the link is gone");
}

#[test]
fn links_and_special_files_that_do_not_belong_are_refused_by_name() {
    let (_data, artifacts) = store();
    let secret = folder_of(&[("secret", b"s")]);
    let from = folder_of(&[("model.toml", b"x"), ("inner/file", b"y")]);
    let link = from.path().join("inner/link");
    for (target, said) in [
        (secret.path().join("secret"), "link `inner/link` leads out"),
        (PathBuf::from("../../../../../../../../etc/passwd"), "link `inner/link` leads out"),
        (from.path().join("inner"), "does not lead to a regular file"),
        (PathBuf::from("nowhere"), "cannot follow link `inner/link`"),
        (PathBuf::from("link"), "cannot follow link `inner/link`"),
    ] {
        symlink(&target, &link).unwrap();
        let message = refusal(import(&artifacts, from.path()), &artifacts);
        assert!(message.contains(said), "{target:?}: {message}");
        fs::remove_file(&link).unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    let message = refusal(import(&artifacts, from.path()), &artifacts);
    assert!(message.contains("`socket` is no regular file"), "{message}");
    drop(socket);
}

#[test]
fn a_snapshot_of_a_cache_is_followed_to_its_blobs_and_no_further() {
    let (_data, artifacts) = store();
    let cache = folder_of(&[("models--a--b/blobs/0123", b"content"), ("models--a--c/blobs/4567", b"other")]);
    let snapshot = cache.path().join("models--a--b/snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    symlink("../../blobs/0123", snapshot.join("config.json")).unwrap();
    assert_eq!(import(&artifacts, &snapshot).unwrap().files()[0].bytes, 7);
    symlink("../../../models--a--c/blobs/4567", snapshot.join("other.json")).unwrap();
    let message = refusal(import(&artifacts, &snapshot), &artifacts);
    assert!(message.contains("link `other.json` leads out"), "{message}");
}

#[test]
fn what_is_too_much_is_refused() {
    let (_data, artifacts) = store();
    let many: Vec<String> = (0..=MAX_FILES).map(|i| format!("f{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let message = refusal(import(&artifacts, folder_of(&many).path()), &artifacts);
    assert!(message.contains("more than 1024 files"), "{message}");

    let deep = folder_of(&[("1/2/3/4/5/6/7/8/file", b"x")]);
    assert!(refusal(import(&artifacts, deep.path()), &artifacts).contains("deeper than 8 levels"));
    let odd = folder_of(&[("a\\b", b"x")]);
    assert!(refusal(import(&artifacts, odd.path()), &artifacts).contains("backslash"));
    let nothing = folder_of(&[(".hidden", b"x")]);
    assert!(refusal(import(&artifacts, nothing.path()), &artifacts).contains("no file"));
    let absent = nothing.path().join("absent");
    assert!(refusal(import(&artifacts, &absent), &artifacts).contains("absent"));

    let two = folder_of(&[("a", b"12345"), ("b", b"12345")]);
    let exact = Limits { bytes: 10, files: 2 };
    assert!(import_within(&artifacts, two.path(), exact).is_ok());
    for limits in [Limits { bytes: 9, ..exact }, Limits { files: 1, ..exact }] {
        let error = import_within(&artifacts, two.path(), limits).unwrap_err();
        assert!(matches!(error, RegistryError::Exhausted(_)) && error.to_string().contains("`b`"), "{error}");
    }
    let cancelled = Transfer { limits: exact, progress: &|_| {}, cancel: &AtomicBool::new(true) };
    assert!(matches!(artifacts.import_folder(two.path(), &cancelled), Err(RegistryError::Cancelled)));
    assert!(files_in(&artifacts, "incoming").is_empty());
}

#[test]
fn a_file_that_changes_while_it_is_read_is_caught() {
    for longer in [true, false] {
        let (_data, artifacts) = store();
        let from = folder_of(&[("weights", &vec![1; 2 * BUFFER_BYTES])]);
        let path = from.path().join("weights");
        // The first megabyte was read when this is called.
        let progress = |p: Progress<'_>| {
            if p.bytes == BUFFER_BYTES as u64 {
                let length = if longer { 3 * BUFFER_BYTES } else { BUFFER_BYTES + 7 };
                OpenOptions::new().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
            }
        };
        let transfer =
            Transfer { limits: Limits::default(), progress: &progress, cancel: &AtomicBool::new(false) };
        let message = refusal(artifacts.import_folder(from.path(), &transfer), &artifacts);
        assert!(message.contains("`weights` changed while it was read"), "{message}");
        assert!(files_in(&artifacts, "blobs").is_empty());
    }
}

#[test]
fn an_upload_is_what_it_said_it_would_be() {
    let (_data, artifacts) = store();
    let mut importer = artifacts.importer(Limits { bytes: 10, files: 3 });
    let mut file = importer.file("a/b", 3).unwrap();
    file.write_all(b"12").unwrap();
    assert!(file.append(b"34").unwrap_err().to_string().contains("expected 3 bytes, more came"));
    file.write_all(b"3").unwrap();
    assert_eq!(file.finish().unwrap().digest.to_string(), blake3::hash(b"123").to_hex().as_str());

    let mut short = importer.file("short", 3).unwrap();
    short.append(b"1").unwrap();
    assert!(short.finish().unwrap_err().to_string().contains("expected 3 bytes, fewer came"));
    for path in ["../x", "/etc/passwd", "a/b", "a", "a/b/c", ""] {
        assert!(matches!(importer.file(path, 1), Err(RegistryError::Invalid(_))), "{path:?}");
    }
    assert!(matches!(importer.file("large", 8), Err(RegistryError::Exhausted(_))));
    assert!(matches!(importer.file("huge", u64::MAX), Err(RegistryError::Exhausted(_))));
    drop(importer.file("left", 1).unwrap());
    let import = importer.finish().unwrap();
    assert_eq!(import.files().len(), 1);
    assert!(files_in(&artifacts, "incoming").is_empty());
    assert!(artifacts.importer(Limits::default()).finish().is_err());
}

#[test]
fn a_flipped_bit_is_refused_by_name_and_the_right_content_heals_it() {
    let (_data, artifacts) = store();
    let from = folder_of(&[("config.json", b"{}"), ("weights", b"0123456789")]);
    let stored = import(&artifacts, from.path()).unwrap();
    let record = stored.files()[1].clone();
    let damage = |content: &[u8]| {
        let blob = artifacts.blob(&record.digest);
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, content).unwrap();
    };
    let message = || match artifacts.checkout(stored.files()) {
        Err(error @ RegistryError::Corrupt { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };

    damage(b"0123456788");
    let expected = format!(
        "file `weights`: expected BLAKE3 {}, found {}",
        record.digest,
        blake3::hash(b"0123456788").to_hex()
    );
    assert_eq!(message(), expected);
    assert!(artifacts.verify(&record).is_err() && artifacts.verify(&stored.files()[0]).is_ok());
    assert!(entries(&artifacts.store.folder.join("checkouts")).unwrap().is_empty(), "nothing is left");
    damage(b"012345678");
    assert_eq!(message(), "file `weights`: expected 10 bytes, found 9");
    import(&artifacts, from.path()).unwrap();
    assert!(artifacts.checkout(stored.files()).is_ok(), "importing it again put it right");

    fs::remove_file(artifacts.blob(&record.digest)).unwrap();
    assert!(message().contains(&format!("its content, BLAKE3 {}, is missing", record.digest)));
    let hostile = FileRecord { path: "../../escape".to_owned(), ..stored.files()[0].clone() };
    assert!(matches!(artifacts.checkout(&[hostile]), Err(RegistryError::Invalid(_))));
}

#[test]
fn opening_removes_what_a_crash_left() {
    let (data, artifacts) = store();
    let stored = import(&artifacts, folder_of(&[("a", b"x")]).path()).unwrap();
    let folder = data.path().join("artifacts");
    // What is there when the process dies with a file half written and a version being loaded.
    fs::write(folder.join("incoming/77"), b"half").unwrap();
    fs::create_dir_all(folder.join("checkouts/78/sub")).unwrap();
    fs::hard_link(artifacts.blob(&stored.files()[0].digest), folder.join("checkouts/78/sub/a")).unwrap();
    fs::write(folder.join("partial/note"), b"stays").unwrap();

    let reopened = Artifacts::open(&folder).unwrap();
    assert!(files_in(&reopened, "incoming").is_empty());
    assert!(entries(&folder.join("checkouts")).unwrap().is_empty());
    assert_eq!(files_in(&reopened, "partial").len(), 1);
    reopened.verify(&stored.files()[0]).unwrap();
}

#[test]
fn garbage_is_what_nobody_names() {
    let (_data, artifacts) = store();
    let kept = import(&artifacts, folder_of(&[("a", b"kept")]).path()).unwrap();
    let keep = kept.files()[0].digest;
    let pinned = import(&artifacts, folder_of(&[("a", b"pinned")]).path()).unwrap();
    drop(import(&artifacts, folder_of(&[("a", b"garbage"), ("b", b"kept")]).path()).unwrap());
    fs::write(artifacts.store.folder.join("incoming/77"), b"orphan").unwrap();
    let foreign = artifacts.store.folder.join("blobs/00/notes.txt");
    fs::write(&foreign, b"not ours").unwrap();
    drop(kept);

    let mut importer = artifacts.importer(Limits::default());
    let mut under_way = importer.file("a", 5).unwrap();
    under_way.append(b"12").unwrap();
    let live = |digest: &Digest| Ok(*digest == keep);
    let expected = Garbage { blobs: 2, bytes: 13 };
    assert_eq!(artifacts.collect(&live, true).unwrap(), expected);
    assert_eq!(files_in(&artifacts, "blobs").len(), 4, "a dry run removes nothing");
    assert_eq!(artifacts.collect(&live, false).unwrap(), expected);
    assert_eq!(artifacts.collect(&live, false).unwrap(), Garbage::default());
    under_way.append(b"345").unwrap();
    under_way.finish().unwrap();

    artifacts.checkout(pinned.files()).unwrap();
    drop(pinned);
    drop(importer);
    assert_eq!(artifacts.collect(&live, false).unwrap().blobs, 2);
    assert!(artifacts.blob(&keep).exists() && foreign.exists());

    let failing = |_: &Digest| Err(RegistryError::Invalid("unreadable".to_owned()));
    assert!(artifacts.collect(&failing, false).is_err());
    assert!(artifacts.blob(&keep).exists(), "in doubt everything stays");
}

#[test]
fn many_imports_of_one_content_and_collections_between_them_lose_nothing() {
    let (_data, artifacts) = store();
    let registered = Mutex::new(HashSet::new());
    let start = Barrier::new(5);
    let live = |digest: &Digest| {
        let live = registered.lock().unwrap().contains(digest);
        if !live {
            // Time for an import to come between the answer and what is made of it.
            (0..20).for_each(|_| std::thread::yield_now());
        }
        Ok(live)
    };
    std::thread::scope(|scope| {
        let importers = [0, 1, 2, 3].map(|importer| {
            let (artifacts, registered, start) = (&artifacts, &registered, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..30 {
                    let own = format!("{importer} {round}");
                    let from = folder_of(&[("shared", &vec![3; 100_000]), ("own", own.as_bytes())]);
                    let import = import(artifacts, from.path()).unwrap();
                    // Pinned: there whatever the collector does meanwhile.
                    artifacts.checkout(import.files()).unwrap();
                    if round % 3 == 0 {
                        registered.lock().unwrap().insert(import.files()[0].digest);
                    }
                }
            })
        });
        start.wait();
        while importers.iter().any(|importer| !importer.is_finished()) {
            artifacts.collect(&live, false).unwrap();
        }
    });
    let registered_digests = registered.lock().unwrap().clone();
    assert_eq!(registered_digests.len(), 4 * 10);
    for digest in &registered_digests {
        assert!(artifacts.blob(digest).exists(), "{digest} was registered before its pin ended, and is gone");
    }
    artifacts.collect(&live, false).unwrap();
    assert_eq!(files_in(&artifacts, "blobs").len(), registered_digests.len());
    assert!(files_in(&artifacts, "incoming").is_empty());
    let state = artifacts.store.state();
    assert!(state.pins.is_empty() && state.temporaries.is_empty(), "{state:?}");
}

#[test]
fn a_copy_stands_in_where_links_are_not_to_be_had() {
    let Some(disk) = small_disk("a_copy_stands_in_where_links_are_not_to_be_had", "size=8m") else { return };
    // The checkouts are on another file system than the content.
    let data = TempDir::new().unwrap();
    let folder = data.path().join("artifacts");
    fs::create_dir(&folder).unwrap();
    symlink(&disk, folder.join("checkouts")).unwrap();
    let artifacts = Artifacts::open(&folder).unwrap();
    let stored = import(&artifacts, folder_of(&[("a", b"content")]).path()).unwrap();
    let checkout = artifacts.checkout(stored.files()).unwrap();
    assert_eq!(fs::read(checkout.path().join("a")).unwrap(), b"content");
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(&checkout.path().join("a")), device(&folder));
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let Some(disk) = small_disk("a_full_disk_is_said_and_nothing_is_left", "size=1m") else { return };
    let artifacts = Artifacts::open(&disk.join("artifacts")).unwrap();
    let small = import(&artifacts, folder_of(&[("small", b"x")]).path()).unwrap();
    let error = import(&artifacts, folder_of(&[("large", &vec![1; 2 << 20])]).path()).unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::ResourceExhausted);
    assert!(error.to_string().contains("cannot store `large`: No space left on device"), "{error}");
    assert!(files_in(&artifacts, "incoming").is_empty());
    assert_eq!(files_in(&artifacts, "blobs").len(), 1);
    // The room is there again, and what was there is whole.
    let fits = import(&artifacts, folder_of(&[("fits", &vec![2; 200_000])]).path()).unwrap();
    artifacts.checkout(fits.files()).unwrap();
    artifacts.checkout(small.files()).unwrap();
}

#[test]
fn a_read_only_folder_is_said() {
    let Some(disk) = small_disk("a_read_only_folder_is_said", "size=1m") else { return };
    let artifacts = Artifacts::open(&disk.join("artifacts")).unwrap();
    let stored = import(&artifacts, folder_of(&[("a", b"x")]).path()).unwrap();
    let from = folder_of(&[("b", b"y")]);
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk).status().unwrap().success());
    let error = import(&artifacts, from.path()).unwrap_err();
    assert_eq!(error.code(), sconce_core::ErrorCode::FailedPrecondition);
    assert!(error.to_string().contains("incoming"), "{error}");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    let error = artifacts.checkout(stored.files()).unwrap_err();
    assert!(error.to_string().contains("checkouts"), "{error}");
    artifacts.verify(&stored.files()[0]).unwrap();
    let error = Artifacts::open(&disk.join("other")).unwrap_err();
    assert!(error.to_string().contains("Read-only file system"), "{error}");
}

/// A file system of its own for the test `name`: the test runs again inside a mount namespace, where this returns the
/// mounted folder. `None` outside, once that run has passed, or where the kernel grants no such namespace.
fn small_disk(name: &str, options: &str) -> Option<PathBuf> {
    const INSIDE: &str = "SCONCE_TEST_DISK";
    if let Some(disk) = std::env::var_os(INSIDE) {
        return Some(disk.into());
    }
    let isolated = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command
    };
    let folder = TempDir::new().unwrap();
    let mount = "mount -t tmpfs -o \"$1\" tmpfs \"$2\"";
    let probe = isolated(mount).arg(options).arg(folder.path()).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        println!("{name}: skipped, no mount namespace is to be had here");
        return None;
    }
    let output = isolated(&format!("{mount} && exec \"$3\" --exact \"$4\""))
        .arg(options)
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("artifacts::tests::{name}"))
        .env(INSIDE, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}
