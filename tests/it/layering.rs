//! Who may import whom: the table of the design, held against the manifests.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use std::collections::BTreeSet;
use std::fs;
use toml::{Table, Value};

/// Each crate, and what it may import of the others beside `sconce-core`, which is everybody's.
const MAY_IMPORT: [(&str, &[&str]); 13] = [
    ("sconce-proto", &[]),
    ("sconce-core", &[]),
    ("sconce-client", &["sconce-proto"]),
    ("sconce-scheduler", &[]),
    ("sconce-kernels", &[]),
    ("sconce-candle", &["sconce-kernels"]),
    ("sconce-registry", &[]),
    ("sconce-stats", &[]),
    ("sconce-traffic", &["sconce-stats"]),
    ("sconce-monitor", &["sconce-stats"]),
    ("sconce-telemetry", &[]),
    (
        "sconce-server",
        &[
            "sconce-candle",
            "sconce-client",
            "sconce-monitor",
            "sconce-proto",
            "sconce-registry",
            "sconce-scheduler",
            "sconce-telemetry",
            "sconce-traffic",
        ],
    ),
    (
        "sconce",
        &[
            "sconce-candle",
            "sconce-client",
            "sconce-monitor",
            "sconce-registry",
            "sconce-server",
            "sconce-traffic",
        ],
    ),
];

/// Not part of the product: they may import anything of it.
const BESIDE: [&str; 3] = ["sconce-tests", "sconce-benches", "sconce-loadtest"];

/// Crates of others by the start of their name, and the only ones of ours that may name them, in any role.
const RESERVED: [(&str, &[&str]); 3] = [
    ("sled", &["sconce-registry"]),
    ("statrs", &["sconce-stats"]),
    ("candle-", &["sconce-candle", "sconce-kernels"]),
];

/// The only crate with `unsafe`, so the only one that does not forbid it.
const WITH_UNSAFE: &str = "sconce-kernels";

fn metadata() -> Metadata {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = MetadataCommand::new();
    command.manifest_path(root).no_deps().other_options(vec!["--offline".to_owned()]);
    let metadata = command.exec().unwrap();
    let names: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert!(names.is_superset(&["sconce", "sconce-core", "sconce-server"].into()), "{names:?}");
    metadata
}

/// What the table has against `name` importing `imports`.
fn forbidden_imports(name: &str, imports: &[&str]) -> Vec<String> {
    if BESIDE.contains(&name) {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name}: the table does not know this crate")];
    };
    let ours = imports.iter().filter(|import| import.starts_with("sconce"));
    let forbidden = ours.filter(|import| **import != "sconce-core" && !allowed.contains(import));
    forbidden.map(|import| format!("{name} imports {import}")).collect()
}

/// What speaks against `name` naming the crates of others among `imports`.
fn reserved_imports(name: &str, imports: &[&str]) -> Vec<String> {
    let reserved = |import: &str| {
        let owners = RESERVED.iter().find(|(start, _)| import.starts_with(start)).map(|(_, owners)| owners);
        owners.is_some_and(|owners| !owners.contains(&name))
    };
    imports.iter().filter(|import| reserved(import)).map(|import| format!("{name} names {import}")).collect()
}

/// Names of what `package` depends on, in any role or only as what it is built of.
fn dependencies(package: &Package, any_role: bool) -> Vec<&str> {
    let counts = |kind| any_role || kind == DependencyKind::Normal;
    package.dependencies.iter().filter(|d| counts(d.kind)).map(|d| d.name.as_str()).collect()
}

fn inherits_lints(manifest: &Table) -> bool {
    let inherited = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    inherited.and_then(Value::as_bool) == Some(true)
}

#[test]
fn every_crate_imports_only_what_the_table_allows() {
    let metadata = metadata();
    let problems: Vec<String> = metadata
        .packages
        .iter()
        .flat_map(|package| forbidden_imports(&package.name, &dependencies(package, false)))
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn sled_statrs_and_candle_are_named_only_where_they_belong() {
    let metadata = metadata();
    let problems: Vec<String> = metadata
        .packages
        .iter()
        .flat_map(|package| reserved_imports(&package.name, &dependencies(package, true)))
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn unsafe_code_is_forbidden_in_every_crate_but_the_kernels() {
    let metadata = metadata();
    let read = |path: &str| fs::read_to_string(path).unwrap().parse::<Table>().unwrap();
    let root = read(metadata.workspace_root.join("Cargo.toml").as_str());
    let lint = &root["workspace"]["lints"]["rust"]["unsafe_code"];
    assert_eq!(lint.as_str(), Some("forbid"));
    for package in metadata.packages.iter().filter(|package| package.name != WITH_UNSAFE) {
        let manifest = read(package.manifest_path.as_str());
        assert!(inherits_lints(&manifest), "{}: expected [lints] workspace = true", package.name);
    }
}

#[test]
fn the_checks_find_what_they_look_for() {
    let check = |problems: Vec<String>, expected: &[&str]| assert_eq!(problems, expected);
    check(forbidden_imports("sconce-server", &["sconce-core", "sconce-candle", "tokio"]), &[]);
    check(forbidden_imports("sconce-tests", &["sconce-scheduler"]), &[]);
    check(
        forbidden_imports("sconce-scheduler", &["sconce-candle", "sconce-core"]),
        &["sconce-scheduler imports sconce-candle"],
    );
    check(forbidden_imports("sconce-core", &["sconce-proto"]), &["sconce-core imports sconce-proto"]);
    check(forbidden_imports("sconce-new", &[]), &["sconce-new: the table does not know this crate"]);
    check(reserved_imports("sconce-registry", &["sled"]), &[]);
    check(reserved_imports("sconce-tests", &["sled", "tokio"]), &["sconce-tests names sled"]);
    check(reserved_imports("sconce-server", &["candle-core"]), &["sconce-server names candle-core"]);
    let manifest = |text: &str| text.parse::<Table>().unwrap();
    assert!(inherits_lints(&manifest("[lints]\nworkspace = true")));
    assert!(!inherits_lints(&manifest("[lints.rust]\nunsafe_code = 'warn'")));
    assert!(!inherits_lints(&manifest("[package]\nname = 'x'")));
}
