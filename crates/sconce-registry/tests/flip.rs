//! A disk that gives back something else than was written.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail the test")]

mod support;

use sconce_registry::Registry;
use std::fs;
use std::path::Path;
use support::{by, export, name, number, register};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Wherever a bit of the catalogue's log is flipped, what is lost is found out: sled alone would go on with an older state.
#[test]
fn a_bit_flipped_in_the_catalogue_is_never_an_older_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let registry = Registry::open(&path).unwrap();
    (0..20_u8).for_each(|content| drop(register(&registry, "m", &[content])));
    for version in 1..=20 {
        registry.set_alias(&name("m"), "champion", number(version), None, false, &by()).unwrap();
    }
    let expected = export(&registry);
    drop(registry);
    let seed = 5;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = 0;
    for flip in 0..30 {
        if flip == 20 {
            // From now on with what sled writes when it opens.
            drop(Registry::open(&path).unwrap());
        }
        let damaged = dir.path().join("damaged");
        copy(&path, &damaged);
        let log = damaged.join("catalogue/db");
        let mut bytes = fs::read(&log).unwrap();
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[random.usize(..written)] ^= 1 << random.u8(0..8);
        fs::write(&log, bytes).unwrap();
        let opened = Registry::open(&damaged);
        if let Err(error) = &opened {
            assert!(!error.to_string().contains("backtrace"), "{error}");
        }
        let intact = opened.ok().filter(|registry| {
            let report = registry.check();
            report.is_ok_and(|report| report.is_intact())
        });
        match intact {
            None => found += 1,
            Some(registry) => assert_eq!(export(&registry), expected, "flip {flip}, seed {seed}"),
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(found > 20, "{found} of 30");
    assert_eq!(export(&Registry::open(&path).unwrap()), expected);
}
