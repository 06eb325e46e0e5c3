use super::path::{MAX_DEPTH, check_path};
use super::{MAX_FILES, io_error};
use crate::{RegistryError, Result};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most entries looked at below one folder, whatever becomes of them.
const MAX_ENTRIES: usize = 8 * MAX_FILES;

/// A regular file found below a folder.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its path below the folder, separated by `/`.
    pub(crate) path: String,
    /// Where its content is, links resolved.
    pub(crate) content: PathBuf,
}

/// The regular files below `root`, by path. Hidden entries are left out; a link is followed to a regular file below
/// `root`, and also from a snapshot of a Hugging Face cache to the `blobs` beside it, where all its files are.
///
/// # Errors
/// `Invalid` for a link that leads elsewhere, a special file, a name that is no plain UTF-8, more than 1,024 files or 8
/// levels; `Io`.
pub(crate) fn list(root: &Path) -> Result<Vec<Found>> {
    walk(root, MAX_DEPTH)
}

/// As [`list`], without the folders in `root`.
///
/// # Errors
/// As [`list`].
pub(crate) fn list_flat(root: &Path) -> Result<Vec<Found>> {
    walk(root, 0)
}

fn walk(root: &Path, levels: usize) -> Result<Vec<Found>> {
    let root =
        fs::canonicalize(root).map_err(io_error(|| format!("cannot open folder {}", root.display())))?;
    let mut walk = Walk { allowed: vec![root.clone()], levels, entries: 0, found: Vec::new() };
    walk.allowed.extend(snapshot_blobs(&root));
    walk.folder(&root, "", 1)?;
    walk.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

/// Opens a file found by [`list`], if it still is a regular one.
pub(crate) fn open_regular(found: &Found) -> Result<File> {
    // A link or a named pipe put there since must neither be followed nor waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&found.content)
        .map_err(io_error(|| format!("cannot read `{}`", found.path)))?;
    let metadata = file.metadata().map_err(io_error(|| format!("cannot read `{}`", found.path)))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(RegistryError::Invalid(format!("`{}` is no regular file any more", found.path)))
    }
}

struct Walk {
    allowed: Vec<PathBuf>,
    /// Levels to descend; 0 leaves folders out.
    levels: usize,
    entries: usize,
    found: Vec<Found>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<()> {
        let failed = || format!("cannot list folder {}", folder.display());
        for entry in fs::read_dir(folder).map_err(io_error(failed))? {
            let entry = entry.map_err(io_error(failed))?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(RegistryError::Invalid(format!(
                    "the folder has more than {MAX_ENTRIES} entries"
                )));
            }
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Some(name) = name.to_str() else {
                return Err(RegistryError::Invalid(format!("file name {name:?} is not UTF-8")));
            };
            let path = format!("{prefix}{name}");
            check_path(&path)?;
            let kind = entry.file_type().map_err(io_error(|| format!("cannot read `{path}`")))?;
            if kind.is_dir() && self.levels == 0 {
                continue;
            }
            if kind.is_dir() {
                if depth == self.levels {
                    return Err(RegistryError::Invalid(format!(
                        "folder `{path}` is deeper than {} levels",
                        self.levels
                    )));
                }
                self.folder(&entry.path(), &format!("{path}/"), depth + 1)?;
            } else if kind.is_file() {
                self.add(path, entry.path())?;
            } else if kind.is_symlink() {
                let content = self.follow(&path, &entry.path())?;
                self.add(path, content)?;
            } else {
                return Err(RegistryError::Invalid(format!("`{path}` is no regular file")));
            }
        }
        Ok(())
    }

    fn follow(&self, path: &str, link: &Path) -> Result<PathBuf> {
        let target = fs::canonicalize(link).map_err(io_error(|| format!("cannot follow link `{path}`")))?;
        if !self.allowed.iter().any(|folder| target.starts_with(folder)) {
            return Err(RegistryError::Invalid(format!("link `{path}` leads out of the folder")));
        }
        if !target.is_file() {
            return Err(RegistryError::Invalid(format!("link `{path}` does not lead to a regular file")));
        }
        Ok(target)
    }

    fn add(&mut self, path: String, content: PathBuf) -> Result<()> {
        if self.found.len() == MAX_FILES {
            return Err(RegistryError::Invalid(format!("the folder has more than {MAX_FILES} files")));
        }
        self.found.push(Found { path, content });
        Ok(())
    }
}

/// `models--ORG--NAME/blobs` when `root` is `models--ORG--NAME/snapshots/REVISION`.
fn snapshot_blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    repository.file_name()?.to_str()?.starts_with("models--").then(|| repository.join("blobs"))
}
