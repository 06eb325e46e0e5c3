//! Disks that are full, folders that may not be written.

use crate::support::{by, name, number, register};
use crate::{run, say};
use sconce_core::ErrorCode;
use sconce_registry::{ModelUpdate, Registry};
use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A user who owns nothing.
const NOBODY: u32 = 65_534;

/// The child: changes a description until that is refused, and ends orderly.
pub(crate) fn fill(dir: &Path) {
    let registry = Registry::open(dir).unwrap();
    let describe = |change: u64| {
        let description = Some(format!("{change} {}", "x".repeat(4_000)));
        registry.update_model(&name("m"), ModelUpdate { description, ..Default::default() }, &by())
    };
    for change in 0..5_000 {
        match describe(change) {
            Ok(_) => say(&format!("done {change}")),
            Err(error) => {
                say(&format!("refused {:?} {error}", error.code()));
                let next = describe(change).unwrap_err();
                say(&format!("then {:?} {next}", next.code()));
                // A read is answered, or refused like the write: what it needs may be what sled could not write.
                if let Err(error) = registry.version(&name("m"), number(1)) {
                    assert_eq!(error.code(), ErrorCode::ResourceExhausted, "{error}");
                }
                return;
            }
        }
    }
}

/// The child: says what opening comes to.
pub(crate) fn try_to_open(dir: &Path) {
    match Registry::open(dir) {
        Ok(_) => say("opened"),
        Err(error) => say(&format!("refused {:?} {error}", error.code())),
    }
}

/// Whether the store in `dir` is what the child `said` it is.
fn check_filled(dir: &Path, said: &[String]) {
    let done: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("done ")).collect();
    let [refused, then] = &said[done.len()..] else { panic!("it was not full: {said:?}") };
    assert!(refused.starts_with("refused ResourceExhausted"), "{refused}");
    // What the next write reads first may be what could not be written.
    let is_refused = then.starts_with("then Unavailable no more writes until the registry is opened again");
    assert!(is_refused || then.starts_with("then ResourceExhausted"), "{then}");
    let registry = Registry::open(dir).unwrap();
    let description = registry.model(&name("m")).unwrap().description;
    let kept = description.split(' ').next().unwrap().parse::<usize>().unwrap();
    let acknowledged = done.len() - 1;
    assert!(kept == acknowledged || kept == acknowledged + 1, "{kept} is there, {acknowledged} acknowledged");
    let report = registry.check().unwrap();
    assert!(report.is_intact() && report.audit.entries == kept as u64 + 2, "{report:?}");
    // There is room again.
    register(&registry, "m", b"more");
    println!("{} writes acknowledged, then: {refused}", done.len());
}

#[test]
fn a_write_that_no_file_may_hold_is_refused_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    register(&Registry::open(&path).unwrap(), "m", b"x");
    // Files may have 1.5 MB; the signal that would end the child is ignored, so that the write fails.
    let mut limited = Command::new("sh");
    limited.args(["-c", r#"trap "" XFSZ; ulimit -f 3000; exec "$0" "$@""#]).arg(env::current_exe().unwrap());
    check_filled(&path, &run(limited, "fill", &path));
}

#[test]
fn a_full_disk_refuses_a_write_and_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |options: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success())
    };
    if !mount("size=3m") {
        println!("skipped: no disk of a chosen size can be mounted here");
        return;
    }
    let path = dir.path().join("data");
    let outcome = std::panic::catch_unwind(|| {
        register(&Registry::open(&path).unwrap(), "m", b"x");
        let said = run(Command::new(env::current_exe().unwrap()), "fill", &path);
        assert!(mount("remount,size=16m"));
        check_filled(&path, &said);
    });
    assert!(Command::new("umount").arg("-l").arg(dir.path()).status().unwrap().success());
    outcome.unwrap();
}

#[test]
fn a_folder_that_may_not_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    register(&Registry::open(&path).unwrap(), "m", b"x");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(dir.path(), 0o755);
    allow(&path, 0o555);
    allow(&path.join("LOCK"), 0o444);
    allow(&empty, 0o555);
    for folder in [&path, &empty] {
        let mut command = Command::new(env::current_exe().unwrap());
        if is_root {
            // What is forbidden is not forbidden to root.
            command.uid(NOBODY);
        }
        let said = run(command, "open", folder);
        let place = folder.join("LOCK").display().to_string();
        assert!(said[0].starts_with(&format!("refused {:?}", ErrorCode::FailedPrecondition)), "{said:?}");
        assert!(said[0].contains(&place) && said[0].contains("ermission denied"), "{said:?}");
    }
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    allow(&path, 0o755);
    allow(&path.join("LOCK"), 0o644);
    assert!(Registry::open(&path).unwrap().check().unwrap().is_intact());
}
