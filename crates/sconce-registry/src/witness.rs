//! A second word on how far the catalogue came, outside sled.
//!
//! Where a message in sled's log is damaged, recovery takes that for the end of the log: what came after it would be gone, and
//! nothing would say so, for the audit trail is cut at the same place. So the end of the audit trail is also written to
//! a file beside it, after each change that was synced. That file is not synced: after a power loss it may be behind, but
//! never ahead of what is on disk, so a catalogue that is behind it has lost something.

use crate::audit::{self, Head};
use crate::store::Store;
use crate::store::sync_folder;
use crate::{Digest, RegistryError, Result};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) struct Witness {
    /// Where it is noted; none where nothing is to be written.
    file: Option<File>,
    /// That there was none, although there should have been.
    pub(crate) lost: Option<String>,
}

impl Witness {
    /// Opens the file at `path`, or makes it, and holds `catalogue` against it.
    pub(crate) fn open(path: &Path, catalogue: &Store) -> Result<Self> {
        let Self { lost, .. } = Self::read(path, catalogue)?;
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let file = file.map_err(RegistryError::io("open", path))?;
        let witness = Self { file: Some(file), lost };
        witness.write(audit::read_head(catalogue)?);
        // That it is there is brought to disk, once: that it is not has to mean something.
        if let Some(file) = &witness.file {
            file.sync_all().map_err(RegistryError::io("sync", path))?;
        }
        sync_folder(path.parent().unwrap_or(path))?;
        Ok(witness)
    }

    /// Holds `catalogue` against the file at `path`, and leaves it as it is.
    pub(crate) fn read(path: &Path, catalogue: &Store) -> Result<Self> {
        let (line, found) = match fs::read(path) {
            Ok(line) => (line, "cannot be read"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), "is missing"),
            Err(error) => return Err(RegistryError::io("read", path)(error)),
        };
        let seen = parse(&line);
        if let Some(seen) = seen {
            let stored = catalogue.get(&audit::entry_key(seen.seq))?;
            let found = stored.as_deref().map(audit::parse).transpose()?.map(|entry| entry.hash);
            if seen.seq > 0 && found != Some(seen.hash) {
                return Err(RegistryError::Damaged(format!(
                    "{}: change {} was acknowledged and is not in the catalogue: it is damaged, restore a backup",
                    path.display(),
                    seen.seq
                )));
            }
        }
        let stored = audit::read_head(catalogue)?.seq;
        let lost = (seen.is_none() && stored > 0).then(|| {
            format!(
                "{}: it {found}, so nothing shows that the {stored} changes there are were all there were: hold the hash of \
                 the last against a copy kept elsewhere, or restore a backup",
                path.display()
            )
        });
        Ok(Self { file: None, lost })
    }

    /// Notes that `head` is on disk.
    pub(crate) fn write(&self, head: Head) {
        // The change is on disk whether this is or not. The line always has the same length, so it needs no new room.
        if let Some(file) = &self.file {
            let _ = file.write_all_at(line(head).as_bytes(), 0);
        }
    }
}

fn line(head: Head) -> String {
    let said = format!("{:020} {}", head.seq, head.hash);
    let check = Digest::of(said.as_bytes());
    format!("{said} {check}\n")
}

fn parse(written: &[u8]) -> Option<Head> {
    let (seq, rest) = std::str::from_utf8(written).ok()?.split_once(' ')?;
    let head = Head { seq: seq.parse().ok()?, hash: Digest::parse(rest.get(..64)?)? };
    (line(head).as_bytes() == written).then_some(head)
}
