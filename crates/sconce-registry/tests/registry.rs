//! What a registry keeps, and what it refuses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of a test fail the test"
)]

mod support;

use sconce_core::ErrorCode;
use sconce_registry::{
    By, Digest, DocumentChange, Gates, Limits, Lineage, ModelUpdate, Names, NewVersion, NotWorse, Outcome,
    Registry, RegistryError, SmokeSample, Together, VersionState, VersionUpdate, Wanted, limits,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use support::{by, export, import, name, number, register, signature};

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(&dir.path().join("data")).unwrap();
    (dir, registry)
}

#[test]
fn what_was_registered_is_there_when_opened_again() {
    let (dir, registry) = registry();
    let mut new = NewVersion::new(name("fraud"));
    new.label = Some("1.2.0-rc.1".into());
    new.description = "the first".into();
    new.tags = [("team".into(), "risk".into())].into();
    new.metrics = [("auc".into(), 0.1 + 0.2)].into();
    new.lineage = Lineage { training_data: "s3://data/2026".into(), ..Lineage::default() };
    new.signature = signature();
    new.wanted = Wanted::Loaded;
    new.monitors = [("drift".into(), "x".into())].into();
    let files = import(&registry, &[("weights", b"1"), ("sub/config.json", b"{}"), ("copy", b"1")]);
    let first = registry.register(new, files, &by()).unwrap();
    assert_eq!((first.version, first.files.len()), (number(1), 3));
    let second = register(&registry, "fraud", b"2");
    registry.record_outcome(&name("fraud"), number(1), Outcome::Loaded { memory_bytes: 77 }).unwrap();
    let changed = registry.set_alias(&name("fraud"), "champion", second.version, None, false, &by()).unwrap();
    assert_eq!((changed.before, changed.after, changed.generation), (None, Some(number(2)), 3));
    let before = export(&registry);
    drop(registry);

    let registry = Registry::open(&dir.path().join("data")).unwrap();
    assert_eq!(export(&registry), before);
    assert_eq!(registry.generation(), 3);
    let stored = registry.version(&name("fraud"), number(1)).unwrap();
    assert_eq!(stored.memory_bytes, Some(77));
    assert_eq!(sconce_registry::VersionRecord { memory_bytes: None, ..stored }, first);
    for (text, meant) in [("2", 2), ("champion", 2), ("1.2.0-rc.1", 1)] {
        assert_eq!(registry.resolve(&name("fraud"), text).unwrap(), number(meant), "{text}");
    }
    let checkout = registry.artifacts().checkout(&first.files).unwrap();
    assert_eq!(fs::read(checkout.path().join("sub/config.json")).unwrap(), b"{}");
    let report = registry.check().unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.models, report.versions, report.aliases, report.blobs, report.bytes), (1, 2, 1, 3, 4));
    assert_eq!(report.audit.entries, 3);
}

#[test]
fn an_alias_moves_and_goes_back_however_many_steps() {
    let (_dir, registry) = registry();
    let model = name("m");
    (0..5_u8).for_each(|content| drop(register(&registry, "m", &[content])));
    let set = |version| registry.set_alias(&model, "champion", number(version), None, false, &by()).unwrap();
    let now = || registry.model(&model).unwrap().aliases["champion"].clone();
    for version in 1..=5 {
        set(version);
    }
    let generation = registry.generation();
    assert_eq!(set(5).generation, generation, "nothing changed");
    assert_eq!(now().previous, [1, 2, 3, 4].map(number));
    let back = registry.rollback(&model, "champion", 3, &by()).unwrap();
    assert_eq!((back.before, back.after), (Some(number(5)), Some(number(2))));
    assert_eq!(back.generation, generation + 1);
    assert_eq!((now().version, now().previous), (number(2), vec![number(1)]));
    // A version that is deleted leaves the history.
    for version in 3..=4 {
        set(version);
    }
    registry.delete_version(&model, number(3), &by()).unwrap();
    assert_eq!(registry.rollback(&model, "champion", 1, &by()).unwrap().after, Some(number(2)));
    let removed = registry.remove_alias(&model, "champion", Some(number(2)), &by()).unwrap();
    assert_eq!((removed.before, removed.after), (Some(number(2)), None));
    let actions: Vec<String> =
        registry.audit(5, 1_000).unwrap().into_iter().map(|entry| entry.body.action).collect();
    let expected =
        ["set_alias"; 5].into_iter().chain(["rollback", "set_alias", "set_alias", "delete_version"]);
    assert_eq!(actions, expected.chain(["rollback", "remove_alias"]).collect::<Vec<_>>());
    assert!(registry.verify_audit().unwrap().is_intact());
}

#[test]
fn what_traffic_goes_to_is_not_unloaded_and_no_traffic_goes_to_what_is() {
    let (_dir, registry) = registry();
    let model = name("m");
    (0..4_u8).for_each(|content| drop(register(&registry, "m", &[content])));
    let alias =
        |version| registry.set_alias(&model, "champion", number(version), None, false, &by()).map(drop);
    let unload = |version| registry.set_wanted(&model, number(version), Wanted::Unloaded, &by()).map(drop);
    let route = |kind: &str, version| {
        let names = Names { versions: [number(version)].into(), ..Names::default() };
        let value = Some((serde_json::Value::Null, names));
        let change = DocumentChange { kind: kind.into(), expected: None, value };
        let together = Together { documents: vec![change], alias: None };
        registry.change_together(&model, together, &by()).map(drop)
    };
    let code = |outcome: Result<(), RegistryError>| outcome.unwrap_err().code();
    alias(1).unwrap();
    alias(2).unwrap();
    route("route", 3).unwrap();
    // However the two meet, it is the later one that is refused.
    for version in [2, 3] {
        assert_eq!(code(unload(version)), ErrorCode::FailedPrecondition);
    }
    for version in [1, 4] {
        unload(version).unwrap();
        assert_eq!(code(alias(version)), ErrorCode::FailedPrecondition);
        assert_eq!(code(route("other", version)), ErrorCode::FailedPrecondition);
    }
    let rollback = || registry.rollback(&model, "champion", 1, &by()).map(drop);
    assert_eq!(code(rollback()), ErrorCode::FailedPrecondition);
    registry.set_wanted(&model, number(1), Wanted::Auto, &by()).unwrap();
    rollback().unwrap();
    // A model is unloaded as a whole, whatever its aliases mean; until it is loaded they stay.
    registry.set_unloaded(&model, true, &by()).unwrap();
    assert_eq!(code(alias(3)), ErrorCode::FailedPrecondition);
    registry.set_unloaded(&model, false, &by()).unwrap();
    alias(3).unwrap();
    // A version that is to be in memory brings its model back, in one step.
    registry.set_unloaded(&model, true, &by()).unwrap();
    let before = registry.generation();
    registry.set_wanted(&model, number(3), Wanted::Loaded, &by()).unwrap();
    assert_eq!((registry.generation(), registry.model(&model).unwrap().unloaded), (before + 1, false));
    alias(2).unwrap();
}

#[test]
fn a_number_is_given_once_whatever_was_deleted() {
    let (_dir, registry) = registry();
    let model = name("m");
    register(&registry, "m", b"1");
    register(&registry, "m", b"2");
    registry.delete_version(&model, number(2), &by()).unwrap();
    assert_eq!(register(&registry, "m", b"3").version, number(3));
    registry.delete_model(&model, &by()).unwrap();
    assert_eq!(registry.model(&model).unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(register(&registry, "m", b"4").version, number(4));
    let mut new = NewVersion::new(model);
    new.version = Some(number(10));
    let asked = registry.register(new, import(&registry, &[("w", b"")]), &by()).unwrap();
    assert_eq!(asked.version, number(10));
    assert!(registry.check().unwrap().is_intact());
}

#[test]
fn lists_come_in_pages() {
    let (_dir, registry) = registry();
    for model in ["b", "a", "a.b", "a-b", "c"] {
        (0..3_u8).for_each(|content| drop(register(&registry, model, &[content])));
    }
    let page = |after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(name);
        let models = registry.models(after.as_ref(), limit).unwrap();
        models.into_iter().map(|model| model.name.to_string()).collect()
    };
    assert_eq!(page(None, 2), ["a", "a-b"]);
    assert_eq!(page(Some("a-b"), 2), ["a.b", "b"]);
    assert_eq!(page(Some("bb"), 2), ["c"]);
    let versions = |after| -> Vec<u64> {
        let found = registry.versions(&name("a"), after, 2).unwrap();
        found.into_iter().map(|version| version.version.get()).collect()
    };
    assert_eq!(versions(None), [1, 2]);
    assert_eq!(versions(Some(number(2))), [3]);
}

#[test]
fn of_concurrent_promotes_that_expect_the_same_one_wins() {
    let (_dir, registry) = registry();
    (0..9_u8).for_each(|content| drop(register(&registry, "m", &[content])));
    let promote = |version| {
        let expected = Some(Some(number(1)));
        registry.set_alias(&name("m"), "champion", number(version), expected, false, &by())
    };
    registry.set_alias(&name("m"), "champion", number(1), Some(None), false, &by()).unwrap();
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (2..=9).map(|version| scope.spawn(move || promote(version))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(registry.model(&name("m")).unwrap().aliases["champion"].version, winners[0].after.unwrap());
    for lost in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(lost.code(), ErrorCode::Aborted, "{lost}");
    }
    assert!(registry.verify_audit().unwrap().is_intact());
}

#[test]
fn garbage_is_what_no_version_has_and_nobody_imports() {
    let (_dir, registry) = registry();
    register(&registry, "m", b"shared");
    register(&registry, "m", b"only in 2");
    register(&registry, "n", b"shared");
    let pending = import(&registry, &[("w", b"pending")]);
    drop(import(&registry, &[("w", b"given up")]));
    registry.delete_version(&name("m"), number(1), &by()).unwrap();
    registry.delete_version(&name("m"), number(2), &by()).unwrap();
    let found = registry.collect_garbage(true).unwrap();
    assert_eq!((found.blobs, found.bytes), (2, 17));
    assert_eq!(registry.collect_garbage(false).unwrap(), found);
    assert_eq!(registry.collect_garbage(false).unwrap().blobs, 0);
    registry.register(NewVersion::new(name("p")), pending, &by()).unwrap();
    assert!(registry.check().unwrap().is_intact());
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let (dir, registry) = registry();
    let version = register(&registry, "m", b"weights");
    register(&registry, "m", b"weights");
    let digest = version.files[0].digest.to_string();
    let path = dir.path().join("data/artifacts/blobs").join(&digest[..2]).join(&digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"wEights").unwrap();
    register(&registry, "n", b"other");
    let told = format!(
        "model `m` version 1: file `weights`, model `m` version 2: file `weights`: expected BLAKE3 {digest}, found {}; \
         pushing the same content again repairs it",
        Digest::of(b"wEights")
    );
    let report = registry.check().unwrap();
    assert!(!report.is_intact() && report.problems == [told.as_str()], "{report:?}");
    let refused = registry.artifacts().checkout(&version.files).err().unwrap();
    assert!(refused.to_string().contains("weights"), "{refused}");
    let error = registry.backup(Vec::new()).unwrap_err();
    assert_eq!((error.code(), error.to_string()), (ErrorCode::Internal, told));
    fs::remove_file(&path).unwrap();
    let error = registry.backup(Vec::new()).unwrap_err();
    assert!(error.to_string().contains("version 2: file `weights`: its content is missing"), "{error}");
    register(&registry, "m", b"weights");
    assert!(registry.check().unwrap().is_intact());
    registry.backup(Vec::new()).unwrap();
}

#[test]
fn one_registry_at_a_time() {
    let (dir, registry) = registry();
    let path = dir.path().join("data");
    let error = Registry::open(&path).err().unwrap();
    assert!(matches!(&error, RegistryError::InUse(folder) if *folder == path), "{error}");
    drop(registry);
    Registry::open(&path).unwrap();
}

#[test]
fn a_head_that_was_removed_is_told_and_not_made_anew_by_who_only_looks() {
    let (dir, registry) = registry();
    register(&registry, "m", b"x");
    drop(registry);
    let (path, head) = (dir.path().join("data"), dir.path().join("data/HEAD"));
    let intact = Registry::inspect(&path).unwrap().verify_audit().unwrap();
    assert!(intact.is_intact(), "{intact:?}");
    for (change, says) in [(None, "it is missing"), (Some("rubbish"), "it cannot be read")] {
        match change {
            None => fs::remove_file(&head).unwrap(),
            Some(text) => fs::write(&head, text).unwrap(),
        }
        for _ in 0..2 {
            let report = Registry::inspect(&path).unwrap().verify_audit().unwrap();
            assert_eq!((report.entries, report.head), (1, intact.head));
            assert!(report.problem.as_ref().unwrap().contains(says), "{report:?}");
        }
        assert_eq!(fs::read_to_string(&head).ok().as_deref(), change);
        // Who serves makes it anew, and says so as long as it is open.
        let registry = Registry::open(&path).unwrap();
        assert!(registry.lost_head().unwrap().contains(says));
        assert!(!registry.check().unwrap().is_intact() && head.exists());
        drop(registry);
        let registry = Registry::open(&path).unwrap();
        assert!(registry.lost_head().is_none() && registry.check().unwrap().is_intact());
    }
}

/// Every path below a folder, with length and time of change.
fn listing(folder: &std::path::Path) -> Vec<(String, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        found.push((path.display().to_string(), metadata.len(), metadata.modified().unwrap()));
        if metadata.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_no_registry_or_a_newer_one_is_refused_untouched() {
    let (dir, registry) = registry();
    register(&registry, "m", b"x");
    drop(registry);
    let path = dir.path().join("data");
    let check = |change: &dyn Fn(), code: ErrorCode, says: &str| {
        change();
        let before = listing(&path);
        let error = Registry::open(&path).err().unwrap();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(listing(&path), before, "{error}");
    };
    let format = path.join("FORMAT");
    fs::remove_file(path.join("LOCK")).unwrap();
    let write = |line: &'static str| {
        let format = format.clone();
        move || fs::write(&format, line).unwrap()
    };
    check(
        &write("sconce-registry 2\n"),
        ErrorCode::FailedPrecondition,
        "format 2, this version knows formats up to 1",
    );
    check(&write("something else 1\n"), ErrorCode::Internal, "expected `sconce-registry NUMBER`");
    check(&write("sconce-registry 0\n"), ErrorCode::Internal, "expected `sconce-registry NUMBER`");
    check(&write(""), ErrorCode::Internal, "expected `sconce-registry NUMBER`");
    check(
        &|| fs::remove_file(&format).unwrap(),
        ErrorCode::FailedPrecondition,
        "expected a registry or an empty folder",
    );
    fs::write(&format, "sconce-registry 1\n").unwrap();
    Registry::open(&path).unwrap();
    fs::remove_dir_all(path.join("catalogue")).unwrap();
    let error = Registry::open(&path).err().unwrap();
    assert!(error.to_string().contains("artifacts but no catalogue"), "{error}");
}

#[test]
fn what_a_crash_left_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("FORMAT.making"), "sconce-re").unwrap();
    fs::write(path.join("LOCK"), "").unwrap();
    drop(Registry::open(path).unwrap());
    fs::remove_dir_all(path.join("artifacts")).unwrap();
    fs::remove_dir_all(path.join("journal")).unwrap();
    fs::rename(path.join("catalogue"), path.join("catalogue.making")).unwrap();
    fs::write(path.join("catalogue.making/conf"), "half").unwrap();
    let registry = Registry::open(path).unwrap();
    register(&registry, "m", b"x");
    assert!(registry.check().unwrap().is_intact());
}

/// Each is refused with its code and its words, and nothing has changed.
#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let (_dir, registry) = registry();
    let (model, registry) = (name("m"), &registry);
    let mut labelled = NewVersion::new(model.clone());
    labelled.label = Some("1.0.0".into());
    registry.register(labelled, import(registry, &[("w", b"1")]), &by()).unwrap();
    (2..=5_u8).for_each(|content| drop(register(registry, "m", &[content])));
    registry.set_alias(&model, "champion", number(2), None, false, &by()).unwrap();
    registry.archive(&model, number(3), &by()).unwrap();
    let failed = Outcome::Failed { reason: "bad weights".into() };
    registry.record_outcome(&model, number(4), failed).unwrap();
    registry.delete_version(&model, number(5), &by()).unwrap();
    let before = export(registry);

    let check = |what: &str, result: Result<(), RegistryError>, code: ErrorCode, says: &str| {
        let error = result.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.to_string().contains(says) && error.to_string().len() < 600, "{what}: {error}");
        assert_eq!(export(registry), before, "{what}");
    };
    let new = |change: &dyn Fn(&mut NewVersion)| {
        let mut new = NewVersion::new(name("m"));
        change(&mut new);
        registry.register(new, import(registry, &[("w", b"w")]), &by()).map(drop)
    };
    let alias = |alias: &str, version, expected, forced, by: &By| {
        registry.set_alias(&name("m"), alias, number(version), expected, forced, by).map(drop)
    };
    let long = |bytes: usize| "x".repeat(bytes);
    let pairs =
        |count: usize| -> BTreeMap<String, String> { (0..count).map(|i| (i.to_string(), long(1))).collect() };
    let metric = |value: f64| BTreeMap::from([("auc".to_owned(), value)]);
    let edit = |description: Option<String>, tags: Option<BTreeMap<String, String>>| {
        registry.update_model(&name("m"), ModelUpdate { description, tags, gates: None }, &by()).map(drop)
    };
    let gates = |gates: Gates| {
        let say = ModelUpdate { gates: Some(gates), ..Default::default() };
        registry.update_model(&name("m"), say, &by()).map(drop)
    };
    use ErrorCode::*;

    // Names, numbers and labels.
    check("a name that leaves the folder", parse("../m"), InvalidArgument, "model name");
    check("a name with a slash", parse("a/b"), InvalidArgument, "model name");
    check("number 1 again", new(&|v| v.version = Some(number(1))), AlreadyExists, "version 1 exists");
    check("a deleted number", new(&|v| v.version = Some(number(5))), FailedPrecondition, "not above 5");
    check("a label again", new(&|v| v.label = Some("1.0.0".into())), AlreadyExists, "label 1.0.0 is taken");
    check("a label that is none", new(&|v| v.label = Some("v1".into())), InvalidArgument, "semantic version");
    check(
        "a long label",
        new(&|v| v.label = Some(format!("1.0.0-{}", long(60)))),
        InvalidArgument,
        "semantic",
    );
    let parent = |v: &mut NewVersion| v.lineage.parent = Some(number(99));
    check("a parent that is not there", new(&parent), FailedPrecondition, "no version 99");
    // Bounds of what is said.
    check("a long description", new(&|v| v.description = long(4_097)), InvalidArgument, "up to 4096 bytes");
    check("many tags", new(&|v| v.tags = pairs(65)), InvalidArgument, "up to 64");
    check(
        "a long tag",
        new(&|v| v.tags = [("k".into(), long(257))].into()),
        InvalidArgument,
        "up to 256 bytes",
    );
    check(
        "a tag without a name",
        new(&|v| v.tags = [(String::new(), long(1))].into()),
        InvalidArgument,
        "expected a name",
    );
    check(
        "a tag of two lines",
        new(&|v| v.tags = [("a\nb".into(), long(1))].into()),
        InvalidArgument,
        "control",
    );
    check("a metric that is NaN", new(&|v| v.metrics = metric(f64::NAN)), InvalidArgument, "finite");
    check("many monitors", new(&|v| v.monitors = pairs(65)), InvalidArgument, "up to 64");
    let datatype = |v: &mut NewVersion| {
        v.signature = signature();
        v.signature.inputs[0].datatype = "FLOAT".into();
    };
    check("a datatype that is none", new(&datatype), InvalidArgument, "datatype such as FP32");
    let shape = |v: &mut NewVersion| {
        v.signature = signature();
        v.signature.outputs[0].shape = vec![-2];
    };
    check("a size below -1", new(&shape), InvalidArgument, "-1 or more");
    let dimensions = |v: &mut NewVersion| {
        v.signature = signature();
        v.signature.outputs[0].shape = vec![1; 17];
    };
    check("many dimensions", new(&dimensions), InvalidArgument, "up to 16");
    check("long lineage", new(&|v| v.lineage.source = long(5_000)), InvalidArgument, "lineage.source");
    // Files.
    let none = registry.artifacts().importer(Limits::default()).finish().map(drop);
    check("no files", none, InvalidArgument, "no file");
    for path in ["../x", "/etc/passwd", "a//b", "a/./b", "", "a\\b", "a\0b", &long(513)] {
        let refused = registry.artifacts().importer(Limits::default()).file(path, 1).map(drop);
        check(path, refused, InvalidArgument, "file");
    }
    let second = |path: &str| {
        let mut importer = registry.artifacts().importer(Limits::default());
        importer.file("w", 0).unwrap().finish().unwrap();
        importer.file(path, 0).map(drop)
    };
    check("a path twice", second("w"), InvalidArgument, "w");
    check("a file below a file", second("w/x"), InvalidArgument, "w/x");
    // Who and why.
    let nobody = registry.archive(&model, number(1), &By::new(" ", "")).map(drop);
    check("nobody", nobody, InvalidArgument, "actor");
    let anyone = registry.archive(&model, number(1), &By::new(long(257), "")).map(drop);
    check("a long actor", anyone, InvalidArgument, "actor");
    check("force without reason", alias("a", 1, None, true, &By::new("me", " ")), InvalidArgument, "reason");
    // Aliases.
    for text in ["1", "", "2nd", "a/b", "é", &long(65)] {
        check(text, alias(text, 1, None, false, &by()), InvalidArgument, "alias: expected");
    }
    let cycle = limits::alias_target("champion", "champion").map(drop);
    check("an alias of itself", cycle, InvalidArgument, "cannot mean itself");
    let chain = limits::alias_target("champion", "challenger").map(drop);
    check("an alias of an alias", chain, InvalidArgument, "never an alias");
    check("no such version", alias("champion", 77, None, false, &by()), NotFound, "no version 77");
    check("an archived version", alias("champion", 3, None, false, &by()), FailedPrecondition, "is archived");
    check("a failed version", alias("champion", 4, None, false, &by()), FailedPrecondition, "bad weights");
    let raced = alias("champion", 1, Some(Some(number(1))), false, &by());
    check("a lost race", raced, Aborted, "expected it to mean version 1, it means version 2");
    check(
        "an alias that is there",
        alias("champion", 1, Some(None), false, &by()),
        Aborted,
        "expected it to mean nothing",
    );
    let back = |alias: &str, steps| registry.rollback(&name("m"), alias, steps, &by()).map(drop);
    check("no steps", back("champion", 0), InvalidArgument, "at least 1");
    check("no history", back("champion", 1), FailedPrecondition, "0 steps to go back");
    check(
        "more steps than there are numbers",
        back("champion", usize::MAX),
        FailedPrecondition,
        "0 steps to go back",
    );
    check("no such alias", back("stable", 1), NotFound, "no alias `stable`");
    let remove = |alias: &str, expected| registry.remove_alias(&name("m"), alias, expected, &by()).map(drop);
    check("removing no alias", remove("stable", None), NotFound, "no alias `stable`");
    check("removing another's", remove("champion", Some(number(1))), Aborted, "it means version 2");
    // Versions and models.
    let delete = registry.delete_version(&model, number(2), &by());
    check("deleting the champion", delete, FailedPrecondition, "alias `champion` means it");
    check("deleting nothing", registry.delete_version(&model, number(9), &by()), NotFound, "no version 9");
    check(
        "deleting a served model",
        registry.delete_model(&model, &by()),
        FailedPrecondition,
        "alias `champion`",
    );
    check("deleting no model", registry.delete_model(&name("n"), &by()), NotFound, "no such model");
    let archive = |version| registry.archive(&name("m"), number(version), &by()).map(drop);
    check("archiving the champion", archive(2), FailedPrecondition, "alias `champion` means it");
    check("archiving again", archive(3), FailedPrecondition, "is archived");
    let unarchive = registry.unarchive(&model, number(1), &by()).map(drop);
    check("unarchiving what is not", unarchive, FailedPrecondition, "not archived");
    let wanted = registry.set_wanted(&model, number(3), Wanted::Loaded, &by()).map(drop);
    check("wanting what is archived", wanted, FailedPrecondition, "is archived");
    check("a long description of a model", edit(Some(long(4_097)), None), InvalidArgument, "description");
    check("many tags of a model", edit(None, Some(pairs(65))), InvalidArgument, "tags");
    let metrics = registry
        .update_version(
            &model,
            number(1),
            VersionUpdate { metrics: metric(f64::INFINITY), ..Default::default() },
            &by(),
        )
        .map(drop);
    check("an infinite metric", metrics, InvalidArgument, "finite");
    // Gates.
    check(
        "a gate at NaN",
        gates(Gates { min_metrics: metric(f64::NAN), ..Gates::default() }),
        InvalidArgument,
        "finite",
    );
    let rule = NotWorse { by_at_most: -1.0, lower_is_better: false };
    let not_worse = BTreeMap::from([("auc".to_owned(), rule)]);
    check("a negative loss", gates(Gates { not_worse, ..Gates::default() }), InvalidArgument, "0 or more");
    let smoke = |request: &str, max_latency_ms| {
        let sample = SmokeSample { request: request.to_owned(), max_latency_ms };
        gates(Gates { smoke: vec![sample], ..Gates::default() })
    };
    check("a sample that is no JSON", smoke("{", 10), InvalidArgument, "expected JSON");
    check("a sample without time", smoke("{}", 0), InvalidArgument, "at least 1 ms");
    check("a long sample", smoke(&format!("{:?}", long(9_000)), 1), InvalidArgument, "up to 8192 bytes");
    // Reads.
    check("an empty page", registry.models(None, 0).map(drop), InvalidArgument, "1 to 1000 records");
    check("a long page", registry.audit(0, 1_001).map(drop), InvalidArgument, "1 to 1000 records");
    check(
        "versions of no model",
        registry.versions(&name("n"), None, 1).map(drop),
        NotFound,
        "no such model",
    );
    check(
        "nothing that resolves",
        registry.resolve(&model, "né").map(drop),
        InvalidArgument,
        "expected a number",
    );
    check("no such alias", registry.resolve(&model, "stable").map(drop), NotFound, "no alias");
    check("no such label", registry.resolve(&model, "9.9.9").map(drop), NotFound, "labelled 9.9.9");
    let missing = Digest::of(b"missing");
    let file = sconce_registry::FileRecord { path: "w".into(), digest: missing, bytes: 7 };
    assert!(registry.artifacts().verify(&file).is_err());
    assert!(registry.check().unwrap().is_intact());
    assert_eq!(registry.version(&model, number(3)).unwrap().state, VersionState::Archived);
}

fn parse(model: &str) -> Result<(), RegistryError> {
    Ok(sconce_core::ModelName::new(model).map(drop)?)
}

#[test]
fn a_version_of_all_that_is_allowed_is_kept_and_more_is_refused() {
    let (_dir, registry) = registry();
    let mut new = NewVersion::new(name("m"));
    let text = |bytes: usize| "t".repeat(bytes);
    new.description = text(limits::DESCRIPTION_BYTES);
    new.tags = (0..limits::TAGS).map(|tag| (format!("{tag:064}"), text(limits::VALUE_BYTES))).collect();
    new.metrics = (0..limits::METRICS).map(|metric| (format!("{metric:064}"), 0.1)).collect();
    let import = import(&registry, &[(&format!("{0}/{0}", text(limits::PATH_BYTES / 2 - 1)), b"x")]);
    let record = registry.register(new.clone(), import, &by()).unwrap();
    assert_eq!(registry.version(&name("m"), number(1)).unwrap(), record);
    let more = BTreeMap::from([("one more".to_owned(), 1.0)]);
    let refused = registry
        .update_version(&name("m"), number(1), VersionUpdate { metrics: more, ..Default::default() }, &by())
        .unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidArgument);
    assert_eq!(registry.version(&name("m"), number(1)).unwrap(), record);
    // What is written next is not kept from being written.
    register(&registry, "m", b"y");
    assert!(registry.check().unwrap().is_intact());
}
