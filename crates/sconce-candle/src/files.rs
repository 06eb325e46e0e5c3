use crate::Problems;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// The most bytes a JSON or TOML file, or a tokenizer, may have.
pub(crate) const MAX_TEXT_FILE_BYTES: u64 = 64 << 20;
/// The most bytes a weights file may have.
pub(crate) const MAX_WEIGHTS_FILE_BYTES: u64 = 64 << 30;
/// The most entries a package folder may have, and how deep they may lie.
const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 8;

/// A package's folder. Every file of a package is opened through it, so nothing outside is ever read.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        let root = fs::canonicalize(dir).map_err(|e| format!("cannot open the package folder: {e}"))?;
        if root.is_dir() { Ok(Self { root }) } else { Err("the package is not a folder".to_owned()) }
    }

    /// Reports every entry that is neither a folder nor a regular file, or that leads out of the package.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let mut left = MAX_ENTRIES;
        self.check_entries(&self.root, MAX_DEPTH, &mut left, problems);
    }

    fn check_entries(&self, dir: &Path, depth: usize, left: &mut usize, problems: &mut Problems) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) => return problems.push(format!("{}: cannot list: {e}", self.relative(dir))),
        };
        for path in entries.filter_map(|entry| entry.ok().map(|e| e.path())) {
            if *left == 0 {
                return problems.push(format!("the package has more than {MAX_ENTRIES} entries"));
            }
            *left -= 1;
            let name = self.relative(&path);
            match self.resolve(&path) {
                Err(problem) => problems.push(format!("{name}: {problem}")),
                // A link to a folder is not followed: what it leads to is in the package and is checked
                // there.
                Ok((target, meta)) if meta.is_dir() && !path.is_symlink() => {
                    if depth == 0 {
                        return problems.push(format!("{name}: folders are nested deeper than {MAX_DEPTH}"));
                    }
                    self.check_entries(&target, depth - 1, left, problems);
                }
                Ok((_, meta)) if meta.is_dir() || meta.is_file() => {}
                Ok(_) => problems.push(format!("{name}: not a regular file")),
            }
        }
    }

    fn resolve(&self, path: &Path) -> Result<(PathBuf, fs::Metadata), String> {
        let target = fs::canonicalize(path).map_err(|e| format!("cannot open: {e}"))?;
        if !target.starts_with(&self.root) {
            return Err("a symbolic link that leads out of the package".to_owned());
        }
        let meta = fs::metadata(&target).map_err(|e| format!("cannot open: {e}"))?;
        Ok((target, meta))
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Opens the file `name`, of at most `max_bytes`; `None` when there is none. Also returns its size in
    /// bytes.
    pub(crate) fn file(&self, name: &str, max_bytes: u64) -> Result<Option<(File, u64)>, String> {
        if name.is_empty() || !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!("{name:?}: not a path inside the package"));
        }
        let path = self.root.join(name);
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{name}: cannot open: {e}")),
            Ok(_) => {}
        }
        let (target, meta) = self.resolve(&path).map_err(|problem| format!("{name}: {problem}"))?;
        // Checked before opening: opening a pipe would wait for a writer.
        if !meta.is_file() {
            return Err(format!("{name}: not a regular file"));
        }
        let file = File::open(target).map_err(|e| format!("{name}: cannot open: {e}"))?;
        let bytes = file.metadata().map_err(|e| format!("{name}: cannot open: {e}"))?.len();
        if bytes > max_bytes {
            return Err(format!("{name}: expected at most {max_bytes} bytes, got {bytes}"));
        }
        Ok(Some((file, bytes)))
    }

    /// The content of the text file `name`; `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let Some((file, bytes)) = self.file(name, MAX_TEXT_FILE_BYTES)? else { return Ok(None) };
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        let read = file.take(MAX_TEXT_FILE_BYTES).read_to_end(&mut content);
        read.map_err(|e| format!("{name}: cannot read: {e}"))?;
        Ok(Some(content))
    }

    /// The JSON file `name`, reporting what is wrong with it; `None` when there is none or it is wrong.
    pub(crate) fn json(&self, name: &str, problems: &mut Problems) -> Option<serde_json::Value> {
        let content = problems.keep(self.read(name))??;
        problems.keep(serde_json::from_slice(&content).map_err(|e| format!("{name}: not valid JSON: {e}")))
    }

    /// Bytes of all [`safetensors`](Self::safetensors) files.
    pub(crate) fn weights_bytes(&self) -> u64 {
        let bytes = |name: String| fs::metadata(self.root.join(name)).map_or(0, |meta| meta.len());
        self.safetensors().into_iter().map(bytes).sum()
    }

    /// Names of the `.safetensors` files at the top of the package, sorted.
    pub(crate) fn safetensors(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter(|name| name.ends_with(".safetensors") && !name.starts_with('.')).collect();
        names.sort();
        names
    }
}
