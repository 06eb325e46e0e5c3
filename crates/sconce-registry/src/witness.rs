//! A second word on how far the catalogue came, outside sled.
//!
//! Where a message in sled's log is damaged, recovery takes that for the end of the log: what came after it would be gone, and
//! nothing would say so, for the audit trail is cut at the same place. So the end of the audit trail is also written to
//! a file beside it, after each change that was synced. That file is not synced: after a power loss it may be behind, but
//! never ahead of what is on disk, so a catalogue that is behind it has lost something.

use crate::audit::{self, Head};
use crate::store::Store;
use crate::{Digest, RegistryError, Result};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) struct Witness(File);

impl Witness {
    /// Opens the file at `path`, or makes it, and holds `catalogue` against it.
    pub(crate) fn open(path: &Path, catalogue: &Store) -> Result<Self> {
        let line = match fs::read(path) {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RegistryError::io("read", path)(error)),
        };
        // A line that a power loss spoiled says nothing.
        if let Some(seen) = parse(&line) {
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
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let witness = Self(file.map_err(RegistryError::io("open", path))?);
        witness.write(audit::read_head(catalogue)?);
        Ok(witness)
    }

    /// Notes that `head` is on disk.
    pub(crate) fn write(&self, head: Head) {
        // The change is on disk whether this is or not. The line always has the same length, so it needs no new room.
        let _ = self.0.write_all_at(line(head).as_bytes(), 0);
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
