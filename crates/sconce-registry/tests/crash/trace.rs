//! That a write is brought to disk before it is acknowledged, in the order of the system's calls.

use crate::support::{by, name, number, register};
use crate::{MARK, run, say};
use sconce_registry::{Registry, Topic};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The child: a few writes of each kind that there is.
pub(crate) fn write_few(dir: &Path) {
    let registry = Registry::open(dir).unwrap();
    say("open");
    for content in [&b"one"[..], b"two", b"three"] {
        register(&registry, "m", content);
        say("registered");
    }
    for version in [1, 2, 3] {
        registry.set_alias(&name("m"), "champion", number(version), None, false, &by()).unwrap();
        say("changed");
    }
    registry.rollback(&name("m"), "champion", 2, &by()).unwrap();
    say("changed");
    registry.delete_version(&name("m"), number(3), &by()).unwrap();
    say("changed");
    for key in [b"a", b"b"] {
        registry.journal().append(Topic::Feedback, key, b"x", 1).unwrap().wait().unwrap();
        say("appended");
    }
}

#[test]
fn a_write_is_synced_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let traced = dir.path().join("trace");
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!("skipped: strace is not installed, or may not trace here");
        return;
    }
    let mut strace = Command::new("strace");
    let calls = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat";
    strace.args(["-f", "-y", "-s", "64", "-e", calls, "-o"]).arg(&traced).arg(env::current_exe().unwrap());
    let said = run(strace, "few", &dir.path().join("data"));
    assert_eq!(said.len(), 11);
    let trace = fs::read_to_string(&traced).unwrap();
    let steps = steps(&trace);
    if let Err(problem) = check(&steps) {
        panic!("{problem}:\n{}", steps.join("\n"));
    }
    // The check sees what is missing.
    for removed in ["fsync db", "fsync journal", "fsync blobs", "fsync incoming"] {
        let without: Vec<&str> = steps.iter().copied().filter(|step| *step != removed).collect();
        assert!(check(&without).is_err(), "without {removed}");
    }
}

/// The calls that matter, in the order in which they ended (writes: began).
fn steps(trace: &str) -> Vec<&'static str> {
    let mut steps = Vec::new();
    let mut unfinished: BTreeMap<&str, &'static str> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("<... f") {
            steps.extend(unfinished.remove(thread).filter(|_| call.ends_with("= 0")));
            continue;
        }
        let Some(step) = step(call) else { continue };
        if step.starts_with("fsync") && call.contains("<unfinished") {
            unfinished.insert(thread, step);
        } else {
            steps.push(step);
        }
    }
    steps
}

fn step(call: &str) -> Option<&'static str> {
    let (function, arguments) = call.split_once('(')?;
    let place = |name: &str| arguments.contains(name);
    match function {
        "pwrite64" if place("/catalogue/db>") => Some("write db"),
        "fsync" | "fdatasync" if place("/catalogue/db>") => Some("fsync db"),
        "pwrite64" if place("/journal/db>") => Some("write journal"),
        "fsync" | "fdatasync" if place("/journal/db>") => Some("fsync journal"),
        "fsync" | "fdatasync" if place("/artifacts/incoming/") => Some("fsync incoming"),
        "fsync" | "fdatasync" if place("/artifacts/blobs/") => Some("fsync blobs"),
        "rename" | "renameat" | "renameat2" | "link" | "linkat" if place("/artifacts/blobs/") => {
            Some("place")
        }
        "write" if place(&format!("{MARK}open")) => Some("open"),
        "write" if place(&format!("{MARK}registered")) => Some("registered"),
        "write" if place(&format!("{MARK}changed")) => Some("changed"),
        "write" if place(&format!("{MARK}appended")) => Some("appended"),
        _ => None,
    }
}

/// Between two acknowledgements: content synced, placed, its folder synced; then the catalogue written and synced.
fn check(steps: &[&str]) -> Result<(), String> {
    let opened = steps.iter().position(|step| *step == "open").ok_or("it was not opened")?;
    let mut writes = 0;
    let mut rest = &steps[opened + 1..];
    while let Some(end) = rest.iter().position(|step| ["registered", "changed", "appended"].contains(step)) {
        let (before, said) = (&rest[..end], rest[end]);
        let last = |wanted: &str| before.iter().rposition(|step| *step == wanted);
        let order = match said {
            "registered" => &["fsync incoming", "place", "fsync blobs", "write db", "fsync db"][..],
            "appended" => &["write journal", "fsync journal"],
            _ => &["write db", "fsync db"],
        };
        let places: Vec<Option<usize>> = order.iter().map(|step| last(step)).collect();
        if places.contains(&None) || !places.is_sorted() {
            return Err(format!("write {writes} ({said}): expected {order:?}, got {before:?}"));
        }
        writes += 1;
        rest = &rest[end + 1..];
    }
    if writes == 10 { Ok(()) } else { Err(format!("{writes} writes")) }
}
