//! The data folder: which format it is in, and that one process at a time has it.

use crate::store::sync_folder;
use crate::{RegistryError, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The newest format this program reads, and the one it writes.
pub(crate) const FORMAT: u64 = 1;
const FORMAT_NAME: &str = "sconce-registry";
/// A process that was just ended, or is between its fork and its exec, may have the lock for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A data folder that this process has to itself until it is dropped.
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes `path`, made if it is missing. Reads the format before anything is written or opened.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let known = read_format(path)?;
        if known.is_none() {
            fs::create_dir_all(path).map_err(RegistryError::io("make", path))?;
            check_unused(path)?;
        }
        let lock_path = path.join("LOCK");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(RegistryError::io("open", &lock_path))?;
        let asked = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => return Err(RegistryError::InUse(path.to_owned())),
                Err(TryLockError::Error(error)) => return Err(RegistryError::io("lock", &lock_path)(error)),
            }
        }
        if known.is_none() {
            write_format(path)?;
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        let lost = !exists(&folder.catalogue())? && exists(&folder.artifacts())?;
        if lost {
            let message = format!("{}: it has artifacts but no catalogue", path.display());
            return Err(RegistryError::Damaged(message));
        }
        Ok(folder)
    }

    pub(crate) fn head(&self) -> PathBuf {
        self.path.join("HEAD")
    }

    pub(crate) fn catalogue(&self) -> PathBuf {
        self.path.join("catalogue")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }
}

/// The line that says which format something is in.
pub(crate) fn format_line() -> String {
    format!("{FORMAT_NAME} {FORMAT}\n")
}

/// Reads such a line; refuses formats of later programs. `of` is named in errors.
pub(crate) fn parse_format(line: &[u8], of: &Path) -> Result<()> {
    let number = std::str::from_utf8(line).ok().and_then(|line| {
        let (name, number) = line.trim_end().split_once(' ')?;
        number.parse::<u64>().ok().filter(|number| name == FORMAT_NAME && *number > 0)
    });
    match number {
        Some(found) if found > FORMAT => {
            Err(RegistryError::NewerFormat { folder: of.to_owned(), found, known: FORMAT })
        }
        Some(_) => Ok(()),
        None => Err(RegistryError::Damaged(format!(
            "{}: expected `{FORMAT_NAME} NUMBER`, which says the format of a registry",
            of.display()
        ))),
    }
}

fn read_format(folder: &Path) -> Result<Option<()>> {
    let path = folder.join("FORMAT");
    let mut line = Vec::new();
    match File::open(&path).and_then(|file| file.take(64).read_to_end(&mut line)) {
        Ok(_) => parse_format(&line, &path).map(Some).map_err(|error| match error {
            RegistryError::NewerFormat { found, known, .. } => {
                RegistryError::NewerFormat { folder: folder.to_owned(), found, known }
            }
            other => other,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RegistryError::io("read", &path)(error)),
    }
}

/// A folder without FORMAT is taken only if nothing lies in it but what a crash before its FORMAT was written leaves.
fn check_unused(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(RegistryError::io("read", folder))? {
        let name = entry.map_err(RegistryError::io("read", folder))?.file_name();
        if !["LOCK", "FORMAT.making", "lost+found"].iter().any(|known| name == *known) {
            return Err(RegistryError::Precondition(format!(
                "{}: expected a registry or an empty folder: it has no FORMAT, but {name:?}",
                folder.display()
            )));
        }
    }
    Ok(())
}

fn write_format(folder: &Path) -> Result<()> {
    let (making, path) = (folder.join("FORMAT.making"), folder.join("FORMAT"));
    let write = || {
        let mut file = File::create(&making)?;
        file.write_all(format_line().as_bytes())?;
        file.sync_all()?;
        fs::rename(&making, &path)
    };
    write().map_err(RegistryError::io("write", &path))?;
    sync_folder(folder)?;
    // The folder itself may be new.
    folder.canonicalize().ok().and_then(|path| path.parent().map(sync_folder)).unwrap_or(Ok(()))
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(RegistryError::io("look for", path))
}
