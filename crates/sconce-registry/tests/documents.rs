//! Documents: comparing and setting, what they keep in place, and what goes with an alias.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of a test fail the test"
)]

mod support;

use sconce_core::ErrorCode;
use sconce_registry::{AliasMove, Applied, DocumentChange, Names, Registry, RegistryError, Together, limits};
use serde_json::{Value, json};
use std::thread;
use support::{by, export, name, number, register};

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(&dir.path().join("data")).unwrap();
    for content in 1..=3_u8 {
        register(&registry, "m", &[content]);
    }
    registry.set_alias(&name("m"), "champion", number(1), None, false, &by()).unwrap();
    (dir, registry)
}

fn names(versions: &[u64], aliases: &[&str]) -> Names {
    Names {
        versions: versions.iter().copied().map(number).collect(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
    }
}

fn set(kind: &str, expected: Option<u64>, value: Value, names: Names) -> DocumentChange {
    DocumentChange { kind: kind.to_owned(), expected, value: Some((value, names)) }
}

fn apply(
    registry: &Registry,
    documents: Vec<DocumentChange>,
    alias: Option<AliasMove>,
) -> Result<Applied, RegistryError> {
    registry.change_together(&name("m"), Together { documents, alias }, &by())
}

fn champion(version: u64, expected: Option<Option<u64>>) -> Option<AliasMove> {
    let expected = expected.map(|expected| expected.map(number));
    Some(AliasMove { alias: "champion".to_owned(), version: number(version), expected, forced: false })
}

#[test]
fn what_was_set_is_there_when_opened_again_with_who_and_why() {
    let (dir, registry) = registry();
    let generation = registry.generation();
    let change = set("traffic", None, json!({ "split": [90, 10] }), names(&[2], &["champion"]));
    let first = apply(&registry, vec![change], None).unwrap();
    let document = first.documents[0].clone().unwrap();
    assert_eq!((first.generation, document.revision), (generation + 1, 5));
    let second = set("traffic", Some(5), json!(2), Names::default());
    let plan = set("rollout", None, json!({ "stage": 1 }), Names::default());
    let both = apply(&registry, vec![plan, second], champion(2, Some(Some(1)))).unwrap();
    let moved = both.alias.unwrap();
    assert_eq!((moved.before, moved.after), (Some(number(1)), Some(number(2))));
    drop(registry);

    let registry = Registry::open(&dir.path().join("data")).unwrap();
    assert_eq!(registry.generation(), generation + 2);
    let documents = registry.documents(&name("m")).unwrap();
    assert_eq!(
        documents.iter().map(|it| (it.kind.as_str(), it.revision)).collect::<Vec<_>>(),
        [("rollout", 7), ("traffic", 8)]
    );
    assert_eq!(registry.document(&name("m"), "traffic").unwrap().as_ref(), documents.get(1));
    assert_eq!(documents, both.documents.into_iter().flatten().collect::<Vec<_>>());
    assert_eq!(registry.model(&name("m")).unwrap().aliases["champion"].version, number(2));
    // An entry's number is the document's revision.
    let entries = registry.audit(4, 10).unwrap();
    let said: Vec<_> = entries
        .iter()
        .map(|entry| (entry.body.action.as_str(), entry.body.document.as_deref(), entry.body.after.clone()))
        .collect();
    assert_eq!(
        said,
        [
            ("set_document", Some("traffic"), Some(json!({ "split": [90, 10] }))),
            ("set_alias", None, Some(json!(2))),
            ("set_document", Some("rollout"), Some(json!({ "stage": 1 }))),
            ("set_document", Some("traffic"), Some(json!(2))),
        ]
    );
    assert!(
        entries.iter().all(|entry| (entry.body.actor.as_str(), &*entry.body.reason) == ("tester", "a test"))
    );
    assert_eq!(entries[3].body.before, Some(json!({ "revision": 5 })));
    let report = registry.check().unwrap();
    assert!(report.is_intact() && report.documents == 2, "{report:?}");
}

#[test]
fn of_concurrent_changes_that_expect_the_same_one_wins() {
    let (_dir, registry) = registry();
    apply(&registry, vec![set("traffic", None, json!(0), Names::default())], None).unwrap();
    let attempt = |thread: u64| {
        let change = set("traffic", Some(5), json!(thread), Names::default());
        apply(&registry, vec![change], champion(2 + thread % 2, None))
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|index| scope.spawn(move || attempt(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<&Applied> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(registry.document(&name("m"), "traffic").unwrap(), winners[0].documents[0]);
    // The alias went with the winner.
    let alias = registry.model(&name("m")).unwrap().aliases["champion"].clone();
    assert_eq!((alias.version, alias.previous), (winners[0].alias.unwrap().after.unwrap(), vec![number(1)]));
    for lost in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(lost.code(), ErrorCode::Aborted, "{lost}");
    }
    // Removed and made again it has another revision: who read the first does not take it for that.
    let remove = DocumentChange { kind: "traffic".into(), expected: Some(7), value: None };
    assert_eq!(apply(&registry, vec![remove], None).unwrap().documents, [None]);
    let again = apply(&registry, vec![set("traffic", None, json!(1), Names::default())], None).unwrap();
    assert_eq!(again.documents[0].as_ref().unwrap().revision, 9);
    assert!(registry.check().unwrap().is_intact());
}

#[test]
fn what_a_document_names_stays_while_it_names_it() {
    let (_dir, registry) = registry();
    let model = name("m");
    registry.set_alias(&model, "challenger", number(2), None, false, &by()).unwrap();
    let change = set("traffic", None, json!(0), names(&[3], &["challenger"]));
    apply(&registry, vec![change], None).unwrap();
    let refuse = |result: Result<(), RegistryError>| {
        let error = result.unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("document `traffic` names it"), "{error}");
    };
    refuse(registry.delete_version(&model, number(3), &by()));
    refuse(registry.archive(&model, number(3), &by()).map(drop));
    refuse(registry.remove_alias(&model, "challenger", None, &by()).map(drop));
    registry.set_alias(&model, "challenger", number(1), None, false, &by()).unwrap();
    let change = set("traffic", Some(6), json!(0), names(&[2], &[]));
    apply(&registry, vec![change], None).unwrap();
    registry.delete_version(&model, number(3), &by()).unwrap();
    for alias in ["champion", "challenger"] {
        registry.remove_alias(&model, alias, None, &by()).unwrap();
    }
    refuse(registry.delete_model(&model, &by()));
    let revision = registry.document(&model, "traffic").unwrap().unwrap().revision;
    apply(&registry, vec![set("traffic", Some(revision), json!(0), Names::default())], None).unwrap();
    // One that names nothing goes with its model.
    registry.delete_model(&model, &by()).unwrap();
    register(&registry, "m", b"again");
    assert_eq!(registry.documents(&model).unwrap(), []);
    assert!(registry.check().unwrap().is_intact());
}

/// Each is refused with its code and its words, and nothing has changed.
#[test]
fn a_bad_change_is_refused_whole() {
    let (_dir, registry) = registry();
    registry.archive(&name("m"), number(3), &by()).unwrap();
    apply(&registry, vec![set("traffic", None, json!(0), Names::default())], None).unwrap();
    let before = export(&registry);
    let check = |documents: Vec<DocumentChange>, alias: Option<AliasMove>, code: ErrorCode, says: &str| {
        let error = apply(&registry, documents, alias).expect_err(says);
        assert_eq!(error.code(), code, "{says}: {error}");
        assert!(error.to_string().contains(says) && error.to_string().len() < 600, "{says}: {error}");
        assert_eq!(export(&registry), before, "{says}");
    };
    let none = Names::default;
    let one = |kind: &str, expected, value| vec![set(kind, expected, value, Names::default())];
    use ErrorCode::*;
    for kind in ["", "Traffic", "1", "a/b", "a\0", &"k".repeat(33)] {
        check(one(kind, None, json!(1)), None, InvalidArgument, "document: expected 1 to 32 characters");
    }
    check(one("traffic", None, json!(1)), None, Aborted, "expected none, there is revision 6");
    check(one("traffic", Some(5), json!(1)), None, Aborted, "expected revision 5, there is revision 6");
    check(one("rollout", Some(6), json!(1)), None, Aborted, "expected revision 6, there is none");
    let remove = DocumentChange { kind: "rollout".into(), expected: None, value: None };
    check(vec![remove], None, NotFound, "no document `rollout`");
    let twice = vec![set("a", None, json!(1), none()), set("a", None, json!(2), none())];
    check(twice, None, InvalidArgument, "changed twice");
    let long = json!("x".repeat(limits::DOCUMENT_BYTES));
    check(one("a", None, long), None, InvalidArgument, "expected up to 524288 bytes");
    let named = |names| vec![set("a", None, json!(1), names)];
    check(named(names(&[9], &[])), None, NotFound, "document `a`: model `m`: no version 9");
    check(named(names(&[3], &[])), None, FailedPrecondition, "version 3 is archived");
    check(named(names(&[], &["stable"])), None, NotFound, "no alias `stable`");
    let many: Vec<u64> = (1..=65).collect();
    check(named(names(&many, &[])), None, InvalidArgument, "versions: expected up to 64, got 65");
    // The alias and the document stand or fall together.
    check(one("traffic", Some(6), json!(1)), champion(2, Some(Some(2))), Aborted, "it means version 1");
    check(one("traffic", Some(6), json!(1)), champion(3, None), FailedPrecondition, "version 3 is archived");
    check(one("traffic", Some(5), json!(1)), champion(2, None), Aborted, "there is revision 6");
    let many = (0..16).map(|kind| set(&format!("k{kind}"), None, json!(1), none())).collect();
    check(many, None, ResourceExhausted, "expected up to 16 documents");
    let nobody = registry.document(&name("n"), "traffic").unwrap_err();
    assert_eq!(nobody.code(), NotFound);
    // One of all that is allowed is kept, and the trail keeps its digest.
    let longest = json!("x".repeat(limits::DOCUMENT_BYTES - 2));
    apply(&registry, one("traffic", Some(6), longest.clone()), None).unwrap();
    assert_eq!(registry.document(&name("m"), "traffic").unwrap().unwrap().value, longest);
    let entry = registry.audit(6, 1).unwrap().remove(0);
    assert_eq!(entry.body.after.unwrap()["bytes"], limits::DOCUMENT_BYTES);
    assert!(registry.check().unwrap().is_intact());
}

#[test]
fn what_is_noted_is_no_change_that_anybody_made() {
    let (dir, registry) = registry();
    let model = name("m");
    let change = set("rollout", None, json!({ "samples": 1 }), names(&[2], &["champion"]));
    let revision = apply(&registry, vec![change], None).unwrap().documents[0].as_ref().unwrap().revision;
    let (generation, last) = (registry.generation(), registry.last_entry());
    registry.note(&model, "rollout", revision, json!({ "samples": 2 })).unwrap();
    drop(registry);

    let registry = Registry::open(&dir.path().join("data")).unwrap();
    let document = registry.document(&model, "rollout").unwrap().unwrap();
    assert_eq!((document.revision, &document.value["samples"]), (revision, &json!(2)));
    assert_eq!(document.names, names(&[2], &["champion"]));
    assert_eq!((registry.generation(), registry.last_entry()), (generation, last));
    assert!(registry.check().unwrap().problems.is_empty());
    for (kind, revision, value, code) in [
        ("rollout", revision + 1, json!(3), ErrorCode::Aborted),
        ("nothing", revision, json!(3), ErrorCode::Aborted),
        ("rollout", revision, json!("x".repeat(limits::DOCUMENT_BYTES)), ErrorCode::InvalidArgument),
    ] {
        let refused = registry.note(&model, kind, revision, value).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!(registry.document(&model, "rollout").unwrap().unwrap(), document);
}
