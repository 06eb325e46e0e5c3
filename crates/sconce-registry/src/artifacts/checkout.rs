use super::import::hash;
use super::path::check_path;
use super::{Artifacts, MAX_FILES, Store, io_error};
use crate::{Digest, FileRecord, RegistryError, Result};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder of one version's files, for as long as something loads them. They are the stored files themselves: read, never
/// written. Dropped, the folder is gone.
#[derive(Debug)]
pub struct Checkout {
    folder: PathBuf,
    store: Arc<Store>,
}

impl Checkout {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next open.
        let _ = fs::remove_dir_all(&self.folder);
        self.store.forget(&self.folder);
    }
}

impl Artifacts {
    /// A new folder of `files`, each compared with its digest first. Hard links where the file system has them, copies
    /// elsewhere; it cannot be told from outside which.
    ///
    /// # Errors
    /// `Corrupt` for a file that is missing or is not what was registered: with its path, both lengths or both digests;
    /// `Invalid` for a path that is not plain; `Io`.
    pub fn checkout(&self, files: &[FileRecord]) -> Result<Checkout> {
        if files.len() > MAX_FILES {
            return Err(RegistryError::Invalid(format!("a version has at most {MAX_FILES} files")));
        }
        let folder = self.store.fresh("checkouts");
        let checkout = Checkout { folder, store: Arc::clone(&self.store) };
        fs::create_dir(&checkout.folder)
            .map_err(io_error(|| format!("cannot create {}", checkout.folder.display())))?;
        for file in files {
            check_path(&file.path)?;
            let target = checkout.folder.join(&file.path);
            let failed = || format!("cannot check out `{}`", file.path);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(io_error(failed))?;
            }
            self.verify(file)?;
            place(&self.store.blob(&file.digest), &target, file).map_err(io_error(failed))?;
        }
        Ok(checkout)
    }

    /// Reads `file`'s content and compares it with its digest.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or is not what was registered; `Io`.
    pub fn verify(&self, file: &FileRecord) -> Result<()> {
        let failed = || format!("cannot read `{}`", file.path);
        let mut blob = match File::open(self.store.blob(&file.digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt(file, format!("its content, BLAKE3 {}, is missing", file.digest)));
            }
            other => other.map_err(io_error(failed))?,
        };
        // A length that differs spares reading a large file to its end.
        let bytes = blob.metadata().map_err(io_error(failed))?.len();
        if bytes != file.bytes {
            return Err(corrupt(file, format!("expected {} bytes, found {bytes}", file.bytes)));
        }
        let (found, _) = hash(&mut blob).map_err(io_error(failed))?;
        if found != file.digest {
            return Err(corrupt(file, different(&file.digest, &found)));
        }
        Ok(())
    }
}

fn place(blob: &Path, target: &Path, file: &FileRecord) -> io::Result<()> {
    match fs::hard_link(blob, target) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            // No links here: another file system, one without them, or a file that has as many as it may.
            fs::copy(blob, target)?;
            let (found, _) = hash(&mut File::open(target)?)?;
            if found == file.digest { Ok(()) } else { Err(io::Error::other(different(&file.digest, &found))) }
        }
        other => other,
    }
}

fn different(expected: &Digest, found: &Digest) -> String {
    format!("expected BLAKE3 {expected}, found {found}")
}

fn corrupt(file: &FileRecord, detail: String) -> RegistryError {
    RegistryError::Corrupt { file: file.path.clone(), detail }
}
