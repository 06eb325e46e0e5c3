//! A registry as one stream and back, and a store that the first format wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of a test fail the test"
)]

mod support;

use sconce_core::ErrorCode;
use sconce_registry::{Digest, DocumentChange, Names, NewVersion, Registry, Together, Topic, Wanted};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use support::{by, export, import, name, number, register};

fn registry(dir: &Path) -> Registry {
    let registry = Registry::open(&dir.join("data")).unwrap();
    let mut new = NewVersion::new(name("m"));
    new.label = Some("1.0.0".into());
    let files = import(&registry, &[("weights", &[7; 3_000]), ("sub/config.json", b"{}"), ("empty", b"")]);
    registry.register(new, files, &by()).unwrap();
    register(&registry, "m", b"second");
    register(&registry, "n", b"other");
    register(&registry, "gone", b"other");
    registry.delete_model(&name("gone"), &by()).unwrap();
    registry.set_alias(&name("m"), "champion", number(2), None, false, &by()).unwrap();
    let names = Names { versions: [number(2)].into(), aliases: ["champion".to_owned()].into() };
    let value = Some((json!({ "split": [90, 10] }), names));
    let document = DocumentChange { kind: "traffic".into(), expected: None, value };
    let together = Together { documents: vec![document], alias: None };
    registry.change_together(&name("m"), together, &by()).unwrap();
    registry
}

fn backup(registry: &Registry) -> Vec<u8> {
    let mut bytes = Vec::new();
    registry.backup(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_was_backed_up_is_restored_to_the_last_byte() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    let mut bytes = Vec::new();
    let report = registry.backup(&mut bytes).unwrap();
    assert_eq!((report.blobs, report.audit_entries), (5, 7));
    let restored = dir.path().join("restored");
    let checked = Registry::restore(&restored, bytes.as_slice()).unwrap();
    assert!(
        checked.is_intact() && checked.versions == 3 && checked.blobs == 5 && checked.documents == 1,
        "{checked:?}"
    );
    assert_eq!(names(dir.path()), ["data", "restored"]);
    let again = Registry::open(&restored).unwrap();
    assert_eq!(export(&again), export(&registry));
    assert_eq!(backup(&again), bytes);
    // It goes on where it was.
    assert_eq!(register(&again, "gone", b"x").version, number(2));
    assert!(again.check().unwrap().is_intact());
    // An empty folder will do; one with something in it will not.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    Registry::restore(&empty, bytes.as_slice()).unwrap();
    let error = Registry::restore(&empty, bytes.as_slice()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FailedPrecondition, "{error}");
}

#[test]
fn a_backup_while_others_write_and_collect_is_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let registry = &registry(dir.path());
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            // Each version is gone again soon, and its content with it.
            let mut content = 0_u64;
            while !done.load(Ordering::Acquire) {
                content += 1;
                let version = register(registry, "passing", &content.to_be_bytes()).version;
                if content > 2 {
                    let old = number(version.get() - 2);
                    registry.delete_version(&name("passing"), old, &by()).unwrap();
                    registry.collect_garbage(false).unwrap();
                }
            }
        });
        let restored = (0..10).map(|round| {
            let path = dir.path().join(format!("restored{round}"));
            let report = Registry::restore(&path, backup(registry).as_slice());
            report.map(|report| report.audit.entries)
        });
        let entries: Result<Vec<u64>, _> = restored.collect();
        done.store(true, Ordering::Release);
        let entries = entries.unwrap();
        assert!(entries.is_sorted() && entries[0] < entries[9], "nothing was written meanwhile: {entries:?}");
    });
    assert!(registry.check().unwrap().is_intact());
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One entry of a tar.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    kind: tar::EntryType,
    content: Vec<u8>,
}

fn read_tar(bytes: &[u8]) -> Vec<Entry> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().raw(true).map(|entry| {
        let mut entry = entry.unwrap();
        let (name, kind) = (entry.path_bytes().into_owned(), entry.header().entry_type());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        Entry { name, kind, content }
    });
    entries.collect()
}

fn write_tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..entry.name.len()].copy_from_slice(&entry.name);
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        tar.append(&header, entry.content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_backup_that_was_tampered_with_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = read_tar(&backup(&registry(dir.path())));
    assert_eq!(good.len(), 8);
    let target = dir.path().join("restored");
    let refuse = |what: &str, bytes: &[u8], says: &str| {
        let error = Registry::restore(&target, bytes).expect_err(what);
        let refused = matches!(error.code(), ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition);
        assert!(refused && error.to_string().contains(says), "{what}: {error}");
        assert_eq!(names(dir.path()), ["data"], "{what}");
    };
    let check = |what: &str, change: &dyn Fn(&mut Vec<Entry>), says: &str| {
        let mut entries = good.clone();
        change(&mut entries);
        refuse(what, &write_tar(&entries), says);
    };
    let entry =
        |name: &str, kind, content: &[u8]| Entry { name: name.into(), kind, content: content.to_vec() };
    let regular = tar::EntryType::Regular;
    check("a path out of the folder", &|tar| tar.push(entry("../../x", regular, b"x")), "expected a content");
    check("an absolute path", &|tar| tar.push(entry("/etc/x", regular, b"x")), "expected a content");
    let nobodys = format!("blobs/{}", Digest::of(b"x"));
    check("a content of no version", &|tar| tar.push(entry(&nobodys, regular, b"x")), "expected a content");
    for kind in [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Directory,
        tar::EntryType::GNULongName,
    ] {
        check("what is no file", &|tar| tar[3].kind = kind, "expected a content");
        check("what is no file", &|tar| tar[1].kind = kind, "expected the file records");
    }
    check("a content twice", &|tar| tar.push(tar[3].clone()), "expected a content");
    check("a content missing", &|tar| drop(tar.pop()), "no content");
    check("a content too long", &|tar| tar[5].content.push(0), "bytes, got");
    let flip = |at: usize| move |tar: &mut Vec<Entry>| tar[at].content[0] ^= 1;
    let longest = (3..8).max_by_key(|at| good[*at].content.len()).unwrap();
    check("a content altered", &flip(longest), "it is");
    check("a newer format", &|tar| tar[0].content = b"sconce-registry 2\n".to_vec(), "format 2");
    check("no format", &|tar| tar[0].content.clear(), "expected `sconce-registry NUMBER`");
    check("no records", &|tar| drop(tar.remove(1)), "expected the file records");
    check("records cut short", &|tar| assert!(tar[1].content.pop().is_some()), "it is cut short");
    check("a record of 4 GB", &|tar| tar[1].content[..4].fill(0xff), "expected up to");
    check("an unknown record", &|tar| tar[1].content[4] = b'?', "unexpected record");
    let at = |tar: &[Entry], of: usize, text: &str| {
        tar[of].content.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
    };
    let alias = |tar: &mut Vec<Entry>| {
        let place = at(tar, 1, "\"version\":2,\"previous\"");
        tar[1].content[place + 10] = b'9';
    };
    check("an alias of nothing", &alias, "no such version");
    let path = |tar: &mut Vec<Entry>| {
        let place = at(tar, 1, "sub/config");
        tar[1].content[place..place + 4].copy_from_slice(b"../c");
    };
    check("a file out of the folder", &path, "starts with a dot");
    let named = |tar: &mut Vec<Entry>| {
        let place = at(tar, 1, "\"versions\":[2]");
        tar[1].content[place + 12] = b'9';
    };
    check("a document that names nothing", &named, "names version 9: no such version");
    let actor = |tar: &mut Vec<Entry>| {
        let place = at(tar, 2, "tester");
        tar[2].content[place] = b'T';
    };
    check("the audit trail altered", &actor, "entry 1 was altered");
    check("the audit trail cut", &|tar| tar[2].content.clear(), "the last entry is 0");
    let whole = write_tar(&good);
    refuse("nothing", b"", "no FORMAT");
    refuse("rubbish", &[b'x'; 2_000], "no complete backup of a registry: no tar");
    for length in [whole.len() / 3, whole.len() / 2, whole.len() - 3 * 512] {
        let error = Registry::restore(&target, &whole[..length]).expect_err("cut short");
        assert!(error.to_string().starts_with("no complete backup of a registry: "), "{error}");
        assert_eq!(names(dir.path()), ["data"], "{error}");
    }
    Registry::restore(&target, whole.as_slice()).unwrap();
}

/// Fails after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_backup_that_finds_no_room_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path());
    for room in [0, 600, 5_000] {
        let error = registry.backup(Full(room)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}");
        assert_eq!(registry.export_json(Full(room / 10)).unwrap_err().code(), ErrorCode::ResourceExhausted);
    }
    assert_eq!(names(&dir.path().join("data/artifacts/incoming")), [""; 0]);
}

/// The store in `data/store-v1.tar.gz` was made by `examples/store_v1.rs` when the format was 1.
#[test]
fn a_store_of_the_first_format_is_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let packed = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/store-v1.tar.gz")).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(dir.path()).unwrap();
    // It is from before there was a HEAD, which is made when it is opened.
    drop(Registry::open(&dir.path().join("store-v1")).unwrap());
    let registry = Registry::open(&dir.path().join("store-v1")).unwrap();
    let report = registry.check().unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.models, report.versions, report.aliases, report.audit.entries), (2, 4, 2, 15));
    assert_eq!(registry.generation(), 13);
    let fraud = registry.model(&name("fraud")).unwrap();
    assert_eq!((fraud.description.as_str(), fraud.highest_version), ("card fraud", 4));
    assert_eq!(fraud.tags["team"], "risk");
    assert_eq!(fraud.gates.min_metrics["auc"], 0.9);
    let champion = &fraud.aliases["champion"];
    assert_eq!((champion.version, champion.previous.as_slice()), (number(2), &[number(1)][..]));
    let second = registry.version_by_label(&name("fraud"), "1.1.0").unwrap();
    assert_eq!((second.version, second.metrics["auc"], second.memory_bytes), (number(2), 0.93, Some(4_096)));
    assert_eq!((second.lineage.parent, second.wanted), (Some(number(1)), Wanted::Loaded));
    assert_eq!(second.signature, support::signature());
    let checkout = registry.artifacts().checkout(&second.files).unwrap();
    assert_eq!(fs::read(checkout.path().join("sub/config.json")).unwrap(), b"{\"two\":2}");
    let feedback = registry.journal().get(Topic::Feedback, b"prediction-1", 2_000).unwrap();
    assert_eq!(feedback.as_deref(), Some(&b"{\"label\":1}"[..]));
    // It can be written.
    assert_eq!(register(&registry, "fraud", b"new").version, number(5));
    assert_eq!(register(&registry, "deleted", b"new").version, number(2));
    let value = Some((json!({ "split": [100] }), Names::default()));
    let document = DocumentChange { kind: "traffic".into(), expected: None, value };
    let together = Together { documents: vec![document], alias: None };
    assert_eq!(registry.document(&name("fraud"), "traffic").unwrap(), None);
    registry.change_together(&name("fraud"), together, &by()).unwrap();
    assert!(registry.check().unwrap().is_intact());
}
