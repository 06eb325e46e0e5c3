//! A sled database with what a registry needs beside it: writes that are on disk when they are acknowledged, records larger
//! than a page, and reads that see a write whole.
//!
//! sled 0.34.7 on Linux, as far as it matters here. `db` is its log; `flush` writes what is buffered and calls
//! `sync_file_range`, which says nothing of the disk's own cache nor of the file's length: [`Store::sync`] adds `fsync`.
//! A page over 128 KiB goes to a file of its own in `blobs/`, which sled never syncs. A page holds at most 19 values, so
//! values are kept in parts of [`PART_BYTES`], and no page gets that large. `snap.*` is written when a database is opened;
//! one that was cut short by a crash keeps its ending `.generating`, and sled would take it for the newest: it is removed.
//! `conf` is written once, not atomically: so a database is made under another name and renamed.

use crate::error::damaged_store;
use crate::{RegistryError, Result, limits};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Bound;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// The first byte of every record: how it is written.
const RECORD_FORMAT: u8 = 1;
/// Bytes of a record in one value.
const PART_BYTES: usize = 5 * 1024;
/// How long sled may take to close a database after it was dropped.
const CLOSING: Duration = Duration::from_secs(5);
/// Format and number of parts, in front of the first part.
const HEADER_BYTES: usize = 3;

/// Records to be written, and removed (`None`), all or none.
pub(crate) type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

pub(crate) struct Store {
    db: sled::Db,
    /// Ours, to sync it: sled does not lend its own.
    log: File,
    folder: PathBuf,
    /// A record may be several values, so whoever reads keeps batches out.
    applied: RwLock<()>,
}

impl Store {
    /// Opens the database in `folder`, or makes one.
    pub(crate) fn open(folder: &Path, cache_bytes: u64, flush_every_ms: Option<u64>) -> Result<Self> {
        if !folder.try_exists().map_err(RegistryError::io("look for", folder))? {
            create(folder)?;
        }
        let listing = fs::read_dir(folder).map_err(RegistryError::io("read", folder))?;
        for entry in listing {
            let path = entry.map_err(RegistryError::io("read", folder))?.path();
            if path.extension().is_some_and(|extension| extension == "generating") {
                fs::remove_file(&path).map_err(RegistryError::io("remove", &path))?;
            }
        }
        let db = open_sled(folder, cache_bytes, flush_every_ms)?;
        let path = folder.join("db");
        let log = File::open(&path).map_err(RegistryError::io("open", &path))?;
        let store = Self { db, log, folder: folder.to_owned(), applied: RwLock::new(()) };
        // What opening repaired, and the snapshot that it wrote.
        store.sync()?;
        sync_folder(folder)?;
        Ok(store)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let _whole = self.applied.read().unwrap_or_else(PoisonError::into_inner);
        self.get_parts(key)
    }

    /// Records whose key begins with `prefix`, from `start` on, in order of key, until `visit` says `false`. Among keys of
    /// one prefix, those of different length must have no zero byte: else one's parts could lie between another's.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        start: Bound<&[u8]>,
        mut visit: impl FnMut(&[u8], Vec<u8>) -> Result<bool>,
    ) -> Result<()> {
        let _whole = self.applied.read().unwrap_or_else(PoisonError::into_inner);
        let start = match start {
            Bound::Excluded(key) => Bound::Excluded(part_key(key, u16::from_be_bytes([0, u8::MAX]))),
            Bound::Included(key) => Bound::Included(part_key(key, 0)),
            Bound::Unbounded => Bound::Included(prefix.to_vec()),
        };
        let mut values = self.db.range::<Vec<u8>, _>((start, Bound::Unbounded));
        while let Some(first) = values.next() {
            let (key, value) = first.map_err(|error| self.failed("read", error))?;
            if !key.starts_with(prefix) {
                break;
            }
            let key = key.get(..key.len().saturating_sub(2)).unwrap_or_default();
            let (mut record, parts) = self.first_part(key, &value)?;
            for part in 1..parts {
                let next = values.next().ok_or_else(|| self.cut_short(key))?;
                let (at, chunk) = next.map_err(|error| self.failed("read", error))?;
                if at != part_key(key, part) {
                    return Err(self.cut_short(key));
                }
                record.extend_from_slice(&chunk);
            }
            if !visit(key, record)? {
                break;
            }
        }
        Ok(())
    }

    /// Applies `batch` whole. It is visible at once, and on disk after [`Store::sync`]. `then` runs before anyone reads.
    pub(crate) fn apply(&self, batch: &Batch, then: impl FnOnce()) -> Result<()> {
        let mut parts = sled::Batch::default();
        for (key, value) in batch {
            let old = self.parts_of(key)?;
            let new = match value {
                None => 0,
                Some(value) => {
                    if value.len() > limits::RECORD_BYTES {
                        return Err(RegistryError::Exhausted(format!(
                            "record: expected up to {} bytes, got {}",
                            limits::RECORD_BYTES,
                            value.len()
                        )));
                    }
                    insert_parts(&mut parts, key, value)
                }
            };
            (new..old).for_each(|part| parts.remove(part_key(key, part)));
        }
        let _alone = self.applied.write().unwrap_or_else(PoisonError::into_inner);
        self.db.apply_batch(parts).map_err(|error| self.failed("write", error))?;
        then();
        Ok(())
    }

    /// Returns when all that was applied is on disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.db.flush().map_err(|error| self.failed("write", error))?;
        self.log.sync_all().map_err(RegistryError::io("sync", &self.folder))
    }

    /// Bytes the database takes on disk.
    pub(crate) fn disk_bytes(&self) -> Result<u64> {
        self.db.size_on_disk().map_err(|error| self.failed("measure", error))
    }

    fn get_parts(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = |part| self.db.get(part_key(key, part)).map_err(|error| self.failed("read", error));
        let Some(value) = read(0)? else { return Ok(None) };
        let (mut record, parts) = self.first_part(key, &value)?;
        for part in 1..parts {
            record.extend_from_slice(&read(part)?.ok_or_else(|| self.cut_short(key))?);
        }
        Ok(Some(record))
    }

    fn parts_of(&self, key: &[u8]) -> Result<u16> {
        let value = self.db.get(part_key(key, 0)).map_err(|error| self.failed("read", error))?;
        value.map_or(Ok(0), |value| Ok(self.first_part(key, &value)?.1))
    }

    fn first_part(&self, key: &[u8], value: &[u8]) -> Result<(Vec<u8>, u16)> {
        match value {
            [RECORD_FORMAT, high, low, record @ ..] => {
                let mut whole = Vec::with_capacity(record.len());
                whole.extend_from_slice(record);
                Ok((whole, u16::from_be_bytes([*high, *low])))
            }
            [format, _, _, ..] => Err(RegistryError::Damaged(format!(
                "{}: record {:?} is in format {format}, expected {RECORD_FORMAT}",
                self.folder.display(),
                String::from_utf8_lossy(key)
            ))),
            _ => Err(self.cut_short(key)),
        }
    }

    fn cut_short(&self, key: &[u8]) -> RegistryError {
        let key = String::from_utf8_lossy(key);
        RegistryError::Damaged(format!("{}: record {key:?} is cut short", self.folder.display()))
    }

    fn failed(&self, doing: &str, error: sled::Error) -> RegistryError {
        RegistryError::sled(doing, &self.folder, error)
    }
}

/// Syncs what stands in a folder: names of files made, renamed and removed.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(RegistryError::io("sync", folder))
}

/// Makes an empty database, whole or not at all.
fn create(folder: &Path) -> Result<()> {
    let making = folder.with_extension("making");
    if making.try_exists().map_err(RegistryError::io("look for", &making))? {
        fs::remove_dir_all(&making).map_err(RegistryError::io("remove", &making))?;
    }
    fs::create_dir(&making).map_err(RegistryError::io("make", &making))?;
    let db = open_sled(&making, 1024 * 1024, None)?;
    db.flush().map_err(|error| RegistryError::sled("write", &making, error))?;
    drop(db);
    for name in ["db", "conf"] {
        let path = making.join(name);
        let sync = || File::open(&path)?.sync_all();
        sync().map_err(RegistryError::io("sync", &path))?;
    }
    sync_folder(&making)?;
    fs::rename(&making, folder).map_err(RegistryError::io("rename", &making))?;
    sync_folder(folder.parent().unwrap_or(folder))
}

fn open_sled(folder: &Path, cache_bytes: u64, flush_every_ms: Option<u64>) -> Result<sled::Db> {
    let config = sled::Config::new().path(folder).cache_capacity(cache_bytes).flush_every_ms(flush_every_ms);
    // Some damage makes sled panic instead of answering.
    let open = || panic::catch_unwind(panic::AssertUnwindSafe(|| config.open()));
    let started = Instant::now();
    loop {
        match open() {
            // The folder is ours, so whoever still has sled's own lock is a thread of sled's that closes what this process
            // had open.
            Ok(Err(sled::Error::Io(error)))
                if error.to_string().starts_with("could not acquire lock") && started.elapsed() < CLOSING =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(result) => return result.map_err(|error| RegistryError::sled("open", folder, error)),
            Err(_) => {
                let doing = format!("open {}", folder.display());
                return Err(RegistryError::Damaged(damaged_store(&doing)));
            }
        }
    }
}

fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    [key, &part.to_be_bytes()].concat()
}

/// Adds the parts of a record to `batch`; returns how many there are.
fn insert_parts(batch: &mut sled::Batch, key: &[u8], value: &[u8]) -> u16 {
    let first_end = value.len().min(PART_BYTES - HEADER_BYTES);
    let (first, rest) = value.split_at(first_end);
    // At most `limits::RECORD_BYTES` over `PART_BYTES`, which fits.
    let parts = u16::try_from(1 + rest.len().div_ceil(PART_BYTES)).unwrap_or(u16::MAX);
    let [high, low] = parts.to_be_bytes();
    batch.insert(part_key(key, 0), [&[RECORD_FORMAT, high, low], first].concat());
    for (part, chunk) in (1..parts).zip(rest.chunks(PART_BYTES)) {
        batch.insert(part_key(key, part), chunk);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record's key and value.
    type Entry = (Vec<u8>, Vec<u8>);

    fn all(store: &Store, prefix: &[u8], start: Bound<&[u8]>) -> Vec<Entry> {
        let mut entries = Vec::new();
        let visit = |key: &[u8], value| {
            entries.push((key.to_vec(), value));
            Ok(true)
        };
        store.scan(prefix, start, visit).unwrap();
        entries
    }

    #[test]
    fn records_of_every_size_come_back_and_shrink_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db"), 1 << 20, None).unwrap();
        let seed = 7;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let edges = [0, 1, PART_BYTES - HEADER_BYTES, PART_BYTES - HEADER_BYTES + 1, 3 * PART_BYTES, 200_000];
        for round in 0..400 {
            let key = format!("k/{}", random.u8(0..20)).into_bytes();
            let value = if random.bool() {
                let mut value = vec![0; *random.choice(edges.iter()).unwrap()];
                random.fill(&mut value);
                Some(value)
            } else {
                None
            };
            match &value {
                Some(value) => drop(expected.insert(key.clone(), value.clone())),
                None => drop(expected.remove(&key)),
            }
            store.apply(&Batch::from([(key.clone(), value)]), || {}).unwrap();
            assert_eq!(store.get(&key).unwrap().as_ref(), expected.get(&key), "round {round}, seed {seed}");
        }
        let entries: Vec<Entry> = expected.into_iter().collect();
        assert_eq!(all(&store, b"k/", Bound::Unbounded), entries);
        let middle = entries.len() / 2;
        let key = &entries[middle].0;
        assert_eq!(all(&store, b"k/", Bound::Excluded(key)), entries[middle + 1..]);
        assert_eq!(all(&store, b"k/", Bound::Included(key)), entries[middle..]);
        assert_eq!(store.db.iter().count(), all_parts(&entries), "parts are left over");
        store.sync().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("db/blobs")).unwrap().count(), 0, "sled does not sync these");
        let too_large = Batch::from([(b"k/x".to_vec(), Some(vec![0; limits::RECORD_BYTES + 1]))]);
        assert!(matches!(store.apply(&too_large, || {}), Err(RegistryError::Exhausted(_))));
    }

    fn all_parts(entries: &[Entry]) -> usize {
        let parts = |(_, value): &Entry| (value.len() + HEADER_BYTES).div_ceil(PART_BYTES).max(1);
        entries.iter().map(parts).sum()
    }

    #[test]
    fn a_snapshot_that_a_crash_cut_short_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("db");
        let store = Store::open(&folder, 1 << 20, None).unwrap();
        store.apply(&Batch::from([(b"k".to_vec(), Some(b"v".to_vec()))]), || {}).unwrap();
        store.sync().unwrap();
        drop(store);
        fs::write(folder.join("snap.7FFFFFFFFFFFFFFF.generating"), b"half").unwrap();
        let store = Store::open(&folder, 1 << 20, None).unwrap();
        assert_eq!(store.get(b"k").unwrap(), Some(b"v".to_vec()));
    }

    #[test]
    fn a_database_that_is_rubbish_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("db");
        drop(Store::open(&folder, 1 << 20, None).unwrap());
        fs::write(folder.join("conf"), b"segment_size: none, and so on and so forth").unwrap();
        assert!(matches!(Store::open(&folder, 1 << 20, None), Err(RegistryError::Damaged(_))));
    }
}
