//! Content, stored once and named by its digest.
//!
//! A file is visible as `blobs/ab/abcdef…` or not at all: it is written under `incoming/`, brought to disk, and renamed.
//! What a crash leaves in `incoming/` and `checkouts/` goes at the next open; what it leaves in `blobs/` is whole, named by
//! no record, and goes with the next garbage collection. `partial/` holds downloads that a second try goes on with.

mod checkout;
mod folder;
mod import;
mod path;
#[cfg(test)]
mod tests;

pub use checkout::Checkout;
pub(crate) use folder::{list, list_flat};
pub(crate) use import::read_some;
pub use import::{FileWriter, Import, Importer};
pub(crate) use path::{MAX_PATH_BYTES, check_path};

use crate::{Digest, RegistryError, Result};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most files of one version.
pub(crate) const MAX_FILES: usize = 1024;
/// What is read and hashed at a time.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;

/// How much may be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All files together, in bytes. Default: 64 GiB.
    pub bytes: u64,
    /// Files, at most 1,024 whatever this says. Default: 1,024.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, files: MAX_FILES }
    }
}

/// How far one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's path in the version.
    pub file: &'a str,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes that will be, if that is known.
    pub total: Option<u64>,
}

/// What goes with a transfer while it runs.
pub struct Transfer<'a> {
    /// How much may come.
    pub limits: Limits,
    /// Called after each piece, on the thread that transfers.
    pub progress: &'a dyn Fn(Progress<'_>),
    /// Set by whoever wants it to stop; looked at between pieces.
    pub cancel: &'a AtomicBool,
}

impl Transfer<'_> {
    /// `Cancelled` once someone wants it to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(RegistryError::Cancelled) } else { Ok(()) }
    }
}

/// What a garbage collection removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Garbage {
    /// Files: content that no version has, and what failed imports left.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The store of all versions' files.
#[derive(Debug)]
pub struct Artifacts {
    store: Arc<Store>,
}

impl Artifacts {
    /// Opens the store in `folder`, creates what is missing, and removes what the last process left half-made. The
    /// caller holds the lock of the data folder.
    ///
    /// # Errors
    /// `Io`, naming the folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let store = Store { folder: folder.to_owned(), next: AtomicU64::new(0), state: Mutex::default() };
        for name in ["blobs", "incoming", "checkouts", "partial"] {
            let inner = folder.join(name);
            fs::create_dir_all(&inner).map_err(io_error(|| format!("cannot create {}", inner.display())))?;
        }
        let blobs = folder.join("blobs");
        for first in 0..=u8::MAX {
            let shard = blobs.join(format!("{first:02x}"));
            match fs::create_dir(&shard) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(io_error(|| format!("cannot create {}", shard.display())))?,
            }
        }
        empty(&folder.join("incoming"))?;
        empty(&folder.join("checkouts"))?;
        sync_folder(&blobs)?;
        sync_folder(folder)?;
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent)?;
        }
        Ok(Self { store: Arc::new(store) })
    }

    /// Removes, or with `dry_run` counts, the content that `live` disowns, and what failed imports left in `incoming/`.
    /// Content of an [`Import`] that still exists stays.
    ///
    /// `live` is asked while no import can end, and must answer for that moment: a set collected before would miss what
    /// was registered since. It must not call the store.
    ///
    /// # Errors
    /// What `live` returns; `Io`. What was removed before stays removed.
    pub(crate) fn collect(&self, live: &dyn Fn(&Digest) -> Result<bool>, dry_run: bool) -> Result<Garbage> {
        let mut garbage = Garbage::default();
        let blobs = self.store.folder.join("blobs");
        for shard in entries(&blobs)? {
            for entry in entries(&shard.path())? {
                // Names that are not ours are not ours to remove.
                let Some(digest) = entry.file_name().to_str().and_then(Digest::parse) else { continue };
                let state = self.store.state();
                // Held until the file is gone: nobody can find it there and count on it meanwhile, and no import can
                // end, which it does only after a record names its files.
                if !state.pins.contains_key(&digest) && !live(&digest)? {
                    garbage.remove(&entry, dry_run)?;
                }
            }
        }
        for entry in entries(&self.store.folder.join("incoming"))? {
            let state = self.store.state();
            if !state.temporaries.contains(&entry.path()) {
                garbage.remove(&entry, dry_run)?;
            }
        }
        Ok(garbage)
    }

    /// The folder of unfinished downloads.
    pub(crate) fn partial(&self) -> PathBuf {
        self.store.folder.join("partial")
    }

    /// Where `digest`'s content is, if it is.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.store.blob(digest)
    }

    /// Claims `path` for one download at a time; `None` while another has it.
    pub(crate) fn claim(&self, path: PathBuf) -> Option<Claim> {
        let fresh = self.store.state().temporaries.insert(path.clone());
        fresh.then(|| Claim { store: Arc::clone(&self.store), path })
    }
}

impl Garbage {
    fn remove(&mut self, entry: &fs::DirEntry, dry_run: bool) -> Result<()> {
        let path = entry.path();
        let failed = || format!("cannot remove {}", path.display());
        let bytes = match entry.metadata() {
            // Another collection was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io_error(failed))?.len(),
        };
        if !dry_run {
            fs::remove_file(&path).map_err(io_error(failed))?;
        }
        self.blobs += 1;
        self.bytes += bytes;
        Ok(())
    }
}

/// What all handles share.
#[derive(Debug)]
struct Store {
    folder: PathBuf,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Content that garbage collection leaves alone, and how many imports want that.
    pins: HashMap<Digest, u32>,
    /// Files being written, and folders checked out.
    temporaries: HashSet<PathBuf>,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is a single one: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join("blobs").join(&name[..2]).join(name)
    }

    /// A path in `folder` that this process uses once.
    fn fresh(&self, folder: &str) -> PathBuf {
        let path = self.folder.join(folder).join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        self.state().temporaries.insert(path.clone());
        path
    }

    fn forget(&self, path: &Path) {
        self.state().temporaries.remove(path);
    }

    /// Makes a sealed file visible as content `digest`. On return the name is on disk as well.
    fn publish(self: &Arc<Self>, temporary: &Path, digest: Digest, bytes: u64) -> Result<Pin> {
        let pin = Pin::new(self, digest);
        let blob = self.blob(&digest);
        let failed = || format!("cannot store {}", blob.display());
        if is_content(&blob, &digest, bytes) {
            fs::remove_file(temporary).map_err(io_error(failed))?;
        } else {
            // Over a damaged one as well: what comes now is known to be right.
            fs::rename(temporary, &blob).map_err(io_error(failed))?;
        }
        // Also when it was there: whoever put it may not have come this far.
        sync_folder(blob.parent().unwrap_or(&self.folder))?;
        Ok(pin)
    }
}

/// Keeps one content from garbage collection.
#[derive(Debug)]
struct Pin {
    store: Arc<Store>,
    digest: Digest,
}

impl Pin {
    fn new(store: &Arc<Store>, digest: Digest) -> Self {
        *store.state().pins.entry(digest).or_default() += 1;
        Self { store: Arc::clone(store), digest }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.store.state();
        if let Some(count) = state.pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.digest);
            }
        }
    }
}

/// A path that one download has for itself.
#[derive(Debug)]
pub(crate) struct Claim {
    store: Arc<Store>,
    path: PathBuf,
}

impl Claim {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.forget(&self.path);
    }
}

/// A file in `incoming/`; gone when dropped, unless it was renamed.
#[derive(Debug)]
struct Temporary {
    store: Arc<Store>,
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(store: &Arc<Store>) -> Result<Self> {
        let path = store.fresh("incoming");
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { store: Arc::clone(store), path, file }),
            Err(source) => {
                store.forget(&path);
                Err(RegistryError::Io { doing: format!("cannot create {}", path.display()), source })
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Not there any more when all went well; else what stays is garbage.
        let _ = fs::remove_file(&self.path);
        self.store.forget(&self.path);
    }
}

/// Makes `file` read-only and brings it to disk.
fn seal(file: &File, path: &Path) -> Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))
        .and_then(|()| file.sync_all())
        .map_err(io_error(|| format!("cannot write {}", path.display())))
}

fn is_content(blob: &Path, digest: &Digest, bytes: u64) -> bool {
    let same_length = fs::metadata(blob).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes);
    same_length
        && File::open(blob)
            .and_then(|mut file| import::hash(&mut file))
            .is_ok_and(|(found, _)| found == *digest)
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(io_error(|| format!("cannot bring folder {} to disk", folder.display())))
}

fn empty(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        let path = entry.path();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .map_err(io_error(|| format!("cannot remove {}", path.display())))?;
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(folder)
        .and_then(Iterator::collect)
        .map_err(io_error(|| format!("cannot list folder {}", folder.display())))
}

/// For `map_err`: what was being done, said only when it failed.
pub(crate) fn io_error(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> RegistryError {
    move |source| RegistryError::Io { doing: what(), source }
}
