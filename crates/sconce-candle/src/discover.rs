use sconce_core::{ModelName, ModelVersion};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The most entries read from one folder.
const MAX_ENTRIES: usize = 65_536;

/// A package's folder, `NAME/VERSION/`. What is in it was not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The model's name.
    pub name: ModelName,
    /// The model's version.
    pub version: ModelVersion,
    /// The version's folder.
    pub dir: PathBuf,
}

/// What a folder of models holds.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Packages, by name and then version.
    pub found: Vec<Found>,
    /// What is there but cannot be a package: a bad name, a version that is no integer, a link that leads
    /// out.
    pub problems: Vec<String>,
}

/// Lists the packages `NAME/VERSION/` under `root`. Entries that start with a dot, and plain files, are
/// ignored.
///
/// # Errors
/// `root` cannot be listed.
pub fn discover(root: &Path) -> io::Result<Discovery> {
    let canonical = fs::canonicalize(root)?;
    let mut discovery = Discovery::default();
    for (file_name, dir) in subfolders(&canonical, &canonical, &mut discovery.problems)? {
        match ModelName::new(&file_name) {
            Ok(name) => discover_versions(&canonical, &dir, &name, &mut discovery),
            Err(e) => discovery.problems.push(e.to_string()),
        }
    }
    discovery.found.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    discovery.problems.sort();
    Ok(discovery)
}

fn discover_versions(root: &Path, dir: &Path, name: &ModelName, discovery: &mut Discovery) {
    let versions = match subfolders(root, dir, &mut discovery.problems) {
        Ok(versions) => versions,
        Err(e) => return discovery.problems.push(format!("{name}: cannot list: {e}")),
    };
    let before = (discovery.found.len(), discovery.problems.len());
    for (file_name, dir) in versions {
        match ModelVersion::parse(&file_name) {
            Some(version) => discovery.found.push(Found { name: name.clone(), version, dir }),
            None => discovery.problems.push(format!(
                "{name}: version folder: expected a positive integer, got {:?}",
                sconce_core::abbreviate(&file_name)
            )),
        }
    }
    if before == (discovery.found.len(), discovery.problems.len()) {
        discovery
            .problems
            .push(format!("{name}: expected a folder for each version, such as {name}/1, got none"));
    }
}

/// The folders in `dir` with their names, leaving out those that a link takes out of `root`.
fn subfolders(root: &Path, dir: &Path, problems: &mut Vec<String>) -> io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name.starts_with('.') || (!path.is_dir() && !path.is_symlink()) {
            continue;
        }
        match fs::canonicalize(&path) {
            Ok(target) if !target.starts_with(root) => {
                let shown = path.strip_prefix(root).unwrap_or(&path).display();
                problems.push(format!("{shown}: a symbolic link that leads out of the folder of models"));
            }
            Ok(target) if target.is_dir() => folders.push((name, path)),
            Ok(_) => {}
            Err(e) => problems.push(format!("{name}: cannot open: {e}")),
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_packages_and_reports_what_cannot_be_one() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        for dir in ["b/2", "b/10", "a/1", "a/latest", "bad name/1", "empty", ".git/1"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("README.md"), "x").unwrap();
        fs::write(root.path().join("a/notes.txt"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("c")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("a/7")).unwrap();
        let discovery = discover(root.path()).unwrap();
        let found: Vec<String> =
            discovery.found.iter().map(|f| format!("{}/{}", f.name, f.version)).collect();
        assert_eq!(found, ["a/1", "b/2", "b/10"]);
        let expected = [
            "a/7: a symbolic link",
            "a: version folder",
            "c: a symbolic link",
            "empty: expected",
            "model name:",
        ];
        assert_eq!(discovery.problems.len(), expected.len(), "{:?}", discovery.problems);
        for (problem, start) in discovery.problems.iter().zip(expected) {
            assert!(problem.starts_with(start), "{problem}");
        }
    }
}
