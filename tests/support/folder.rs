use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder of models, gone when dropped. A package is named by its place in it: `name/version`.
pub(crate) struct Folder(TempDir);

impl Folder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A package's own folder, made if there was none.
    pub(crate) fn package(&self, package: &str) -> PathBuf {
        let path = self.path().join(package);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes a file of a package.
    pub(crate) fn file(&self, package: &str, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.package(package).join(name), content).unwrap();
    }

    /// A package that gives its input back, with more lines of `model.toml`.
    pub(crate) fn identity(&self, package: &str, more: &str) {
        self.file(package, "model.toml", format!("family = 'identity'\n{more}"));
    }

    /// A package that multiplies each row of `inputs` numbers with `weights`, [outputs, inputs] row by row.
    pub(crate) fn linear(&self, package: &str, inputs: usize, weights: &[f32]) {
        let (outputs, bytes) = (weights.len() / inputs, weights.len() * 4);
        let header = format!(
            r#"{{"layers.0.weight":{{"dtype":"F32","shape":[{outputs},{inputs}],"data_offsets":[0,{bytes}]}}}}"#
        );
        let data: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        self.file(package, "model.safetensors", raw_safetensors(&header, &data));
    }

    /// Copies the files of `source` into a package.
    pub(crate) fn copy(&self, package: &str, source: &Path) {
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            let target = self.package(package).join(entry.file_name());
            assert!(entry.file_type().unwrap().is_file(), "{entry:?}");
            fs::copy(entry.path(), target).unwrap();
        }
    }

    /// The demo's two versions of its model under another name, with more lines of `model.toml`.
    pub(crate) fn demo(&self, name: &str, more: &str) {
        for version in ["1", "2"] {
            let source = repository().join("crates/sconce/demo/breast_cancer").join(version);
            let package = format!("{name}/{version}");
            self.copy(&package, &source);
            let own = fs::read_to_string(source.join("model.toml")).unwrap();
            self.file(&package, "model.toml", format!("{more}\n{own}"));
        }
    }

    /// A small BERT classifier.
    pub(crate) fn bert(&self, package: &str) {
        self.copy(package, &repository().join("crates/sconce-candle/tests/data/bert_classification"));
    }
}

/// The repository's root.
fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A safetensors file of this header and this data, true or not.
pub(crate) fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let length = u64::try_from(header.len()).unwrap();
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}
