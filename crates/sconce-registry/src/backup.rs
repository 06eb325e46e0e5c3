//! A registry as one stream and back, without its journal. The stream is a tar: `FORMAT`, `records`, `audit` (keys and
//! values, each after its length), and `blobs/DIGEST` for every content. It is as large as what it holds, so reading one
//! writes no more than was read.

use crate::folder::{format_line, parse_format};
use crate::registry::{decode, key};
use crate::store::{Batch, sync_folder};
use crate::{
    CheckReport, Digest, FileRecord, Limits, Registry, RegistryError, Result, VersionRecord, audit, limits,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::PoisonError;

/// Bytes of the longest key, with room.
const KEY_BYTES: usize = 1_024;
/// Records written with one batch when they are restored.
const BATCH: usize = 256;
/// What a backup holds of the catalogue, beside the audit trail.
const RECORDS: [&[u8]; 7] =
    [key::GENERATION, audit::HEAD, key::MODELS, key::VERSIONS, key::LABELS, key::DOCUMENTS, key::DELETED];

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BackupReport {
    /// Records.
    pub records: u64,
    /// Audit entries.
    pub audit_entries: u64,
    /// Contents.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Keeps contents from garbage collection.
pub(crate) struct Held<'a> {
    registry: &'a Registry,
    digests: Vec<Digest>,
}

impl Registry {
    /// Writes the registry as it is at one instant to `to`; changes wait only while records are copied to a temporary file.
    /// Every content is held against its digest. The journal is not in it.
    ///
    /// # Errors
    /// `Internal` when something cannot be read, is damaged, or `to` fails; `Unavailable` after a failed write.
    pub fn backup(&self, to: impl Write) -> Result<BackupReport> {
        let mut report = BackupReport::default();
        let (records, audit, files, _held) = {
            let _writer = self.begin()?;
            let (mut records, mut audit) = (self.scratch()?, self.scratch()?);
            for prefix in RECORDS {
                report.records += self.copy_records(prefix, &mut records)?;
            }
            report.audit_entries = self.copy_records(audit::ENTRIES, &mut audit)?;
            let mut files = BTreeMap::new();
            self.each_version(|version| {
                files.extend(version.files.into_iter().map(|file| (file.digest, file)));
                Ok(())
            })?;
            let held = self.hold(files.keys().copied().collect());
            (records, audit, files, held)
        };
        let mut tar = tar::Builder::new(to);
        let line = format_line();
        append(&mut tar, "FORMAT", line.len() as u64, line.as_bytes())?;
        for (name, file) in [("records", records), ("audit", audit)] {
            let path = Path::new(name);
            let mut file =
                file.into_inner().map_err(|error| RegistryError::io("write", path)(error.into_error()))?;
            let bytes = file.stream_position().map_err(RegistryError::io("write", path))?;
            file.rewind().map_err(RegistryError::io("read", path))?;
            append(&mut tar, name, bytes, BufReader::new(file).take(bytes))?;
        }
        for file in files.into_values() {
            self.append_blob(&mut tar, &file)?;
            report.blobs += 1;
            report.bytes += file.bytes;
        }
        let mut to = tar.into_inner().map_err(RegistryError::io("write", Path::new("the backup")))?;
        to.flush().map_err(RegistryError::io("write", Path::new("the backup")))?;
        Ok(report)
    }

    /// Makes a registry of a backup in `dir`, which must be missing or empty. It appears there whole, on disk and checked, or
    /// not at all; only its owner may enter it. A crash may leave a folder `.restoring-…` beside it.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is something in `dir`, or the backup is in a newer format; `InvalidArgument` when it is
    /// no backup or a damaged one; `ResourceExhausted` or `Internal` when it cannot be written.
    pub fn restore(dir: &Path, from: impl Read) -> Result<CheckReport> {
        if !is_missing_or_empty(dir)? {
            let message = format!("{}: expected a missing or empty folder to restore into", dir.display());
            return Err(RegistryError::Precondition(message));
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let making = tempfile::Builder::new().prefix(".restoring-").tempdir_in(parent);
        let making = making.map_err(RegistryError::io("make a folder in", parent))?;
        let registry = Self::open(making.path())?;
        registry.read_backup(from)?;
        let report = registry.check()?;
        if let Some(problem) = report.problems.first().or(report.audit.problem.as_ref()) {
            return Err(bad(problem));
        }
        drop(registry);
        for name in ["catalogue", "journal"] {
            sync_files(&making.path().join(name))?;
        }
        sync_folder(making.path())?;
        fs::rename(making.path(), dir).map_err(RegistryError::io("rename to", dir))?;
        // It has another name now: there is nothing to remove.
        let _ = making.keep();
        sync_folder(parent)?;
        Ok(report)
    }

    /// Writes everything the catalogue says at one instant to `to`, as one JSON object: `format`, `generation`, `models` (each
    /// with its `versions` and `documents`) and `audit`.
    ///
    /// # Errors
    /// `Internal` when something cannot be read, or `to` fails.
    pub fn export_json(&self, mut to: impl Write) -> Result<()> {
        let path = Path::new("the export");
        let mut scratch = self.scratch()?;
        {
            let _writer = self.hold_writer();
            self.write_json(&mut scratch)?;
        }
        let file = scratch.into_inner().map_err(|error| RegistryError::io("write", path)(error.into_error()));
        let mut file = file?;
        let mut copy = || {
            file.rewind()?;
            io::copy(&mut file, &mut to)?;
            to.flush()
        };
        copy().map_err(RegistryError::io("write", path))
    }

    pub(crate) fn hold(&self, digests: Vec<Digest>) -> Held<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &digests {
            *held.entry(*digest).or_default() += 1;
        }
        Held { registry: self, digests }
    }

    /// A file without a name, on the disk that the registry is on.
    fn scratch(&self) -> Result<BufWriter<File>> {
        let folder = self.folder.artifacts().join("incoming");
        let file = tempfile::tempfile_in(&folder).map_err(RegistryError::io("make a file in", &folder))?;
        Ok(BufWriter::new(file))
    }

    fn copy_records(&self, prefix: &[u8], to: &mut impl Write) -> Result<u64> {
        let mut copied = 0;
        self.catalogue.scan(prefix, Bound::Unbounded, |key, value| {
            let mut write = |bytes: &[u8]| {
                // A record is at most `limits::RECORD_BYTES`.
                to.write_all(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes())?;
                to.write_all(bytes)
            };
            write(key)
                .and_then(|()| write(&value))
                .map_err(RegistryError::io("write", Path::new("records")))?;
            copied += 1;
            Ok(true)
        })?;
        Ok(copied)
    }

    fn append_blob(&self, tar: &mut tar::Builder<impl Write>, file: &FileRecord) -> Result<()> {
        let path = self.artifacts.blob(&file.digest);
        let damaged = |detail: String| {
            let told = self.tell_damage(&BTreeMap::from([(file.digest, detail)]));
            told.map_or_else(|error| error, |told| RegistryError::Damaged(told.concat()))
        };
        let open = || {
            let content = File::open(&path)?;
            Ok::<_, io::Error>((content.metadata()?.len(), content))
        };
        let (bytes, content) = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("its content is missing".to_owned()));
            }
            other => other.map_err(RegistryError::io("read", &path))?,
        };
        if bytes != file.bytes {
            return Err(damaged(format!("expected {} bytes, found {bytes}", file.bytes)));
        }
        let mut content = Hashing { inner: content.take(bytes), hasher: blake3::Hasher::new() };
        append(tar, &format!("blobs/{}", file.digest), bytes, &mut content)?;
        let found = Digest::from(content.hasher.finalize());
        if found != file.digest {
            return Err(damaged(format!("expected BLAKE3 {}, found {found}", file.digest)));
        }
        Ok(())
    }

    fn read_backup(&self, from: impl Read) -> Result<()> {
        let mut archive = tar::Archive::new(from);
        // What comes after a colon is of the file itself, which may be anything.
        let cause = |error: &io::Error| error.to_string().split(':').next().unwrap_or_default().to_owned();
        let not_tar = |error: io::Error| bad(&format!("no tar, or not all of one ({})", cause(&error)));
        // Raw: nothing is interpreted beyond a header, so names and sizes are what they are.
        let mut entries = archive.entries().map_err(not_tar)?.raw(true);
        for name in ["FORMAT", "records", "audit"] {
            let mut entry = entries.next().ok_or_else(|| bad(&format!("no {name}")))?.map_err(not_tar)?;
            if entry.header().entry_type() != tar::EntryType::Regular
                || *entry.path_bytes() != *name.as_bytes()
            {
                return Err(bad(&format!("expected the file {name}, got {}", show(&entry))));
            }
            if name == "FORMAT" {
                let mut line = Vec::new();
                entry.take(64).read_to_end(&mut line).map_err(not_tar)?;
                parse_format(&line, Path::new("the backup")).map_err(|error| match error {
                    RegistryError::Damaged(message) => RegistryError::Invalid(message),
                    other => other,
                })?;
            } else {
                let allowed = if name == "audit" { &[audit::ENTRIES][..] } else { &RECORDS };
                self.read_records(&mut entry, allowed)?;
            }
        }
        self.catalogue.sync()?;
        let mut missing = BTreeMap::new();
        self.catalogue.scan(key::VERSIONS, Bound::Unbounded, |_, stored| {
            let version: VersionRecord =
                decode("a version", &stored).map_err(|error| bad(&error.to_string()))?;
            missing.extend(version.files.into_iter().map(|file| (file.digest, file.bytes)));
            Ok(true)
        })?;
        for entry in entries {
            self.read_blob(entry.map_err(not_tar)?, &mut missing)?;
        }
        match missing.first_key_value() {
            Some((digest, _)) => Err(bad(&format!("no content {digest}"))),
            None => Ok(()),
        }
    }

    fn read_records(&self, from: &mut impl Read, allowed: &[&[u8]]) -> Result<()> {
        let mut from = BufReader::new(from);
        let mut batch = Batch::new();
        while let Some(key) = read_frame(&mut from, KEY_BYTES)? {
            let value = read_frame(&mut from, limits::RECORD_BYTES)?.ok_or_else(|| bad("it is cut short"))?;
            if !allowed.iter().any(|prefix| key.starts_with(prefix)) {
                return Err(bad(&format!("unexpected record {:?}", String::from_utf8_lossy(&key))));
            }
            batch.insert(key, Some(value));
            if batch.len() >= BATCH {
                self.catalogue.apply(&std::mem::take(&mut batch), || {})?;
            }
        }
        self.catalogue.apply(&batch, || {})
    }

    /// Takes a content that a version has; whatever else is refused.
    fn read_blob(
        &self,
        mut entry: tar::Entry<'_, impl Read>,
        missing: &mut BTreeMap<Digest, u64>,
    ) -> Result<()> {
        let name = entry.path_bytes().into_owned();
        let digest = name.strip_prefix(b"blobs/").and_then(|name| std::str::from_utf8(name).ok());
        let digest = digest.and_then(Digest::parse);
        let known = digest.and_then(|digest| Some((digest, missing.remove(&digest)?)));
        let Some((digest, bytes)) = known.filter(|_| entry.header().entry_type() == tar::EntryType::Regular)
        else {
            return Err(bad(&format!("expected a content that a version has, got {}", show(&entry))));
        };
        if entry.size() != bytes {
            return Err(bad(&format!("content {digest}: expected {bytes} bytes, got {}", entry.size())));
        }
        let mut importer = self.artifacts.importer(Limits::default());
        let mut writer = importer.file("content", bytes)?;
        let copied = io::copy(&mut entry, &mut writer)
            .map_err(RegistryError::io("restore", Path::new(&digest.to_string())))?;
        if copied != bytes {
            return Err(bad("it is cut short"));
        }
        let written = writer.finish()?;
        importer.finish()?;
        if (written.digest, written.bytes) != (digest, bytes) {
            return Err(bad(&format!("content {digest}: it is {}", written.digest)));
        }
        Ok(())
    }

    fn write_json(&self, to: &mut impl Write) -> Result<()> {
        let failed = |error: io::Error| RegistryError::io("write", Path::new("the export"))(error);
        write!(to, "{{\"format\":1,\"generation\":{},\"models\":[", self.generation()).map_err(failed)?;
        let mut after = None;
        let mut first = true;
        while let Some(model) = self.models(after.as_ref(), 1)?.pop() {
            let separator = if std::mem::take(&mut first) { "" } else { "," };
            write!(to, "{separator}\n{{\"model\":{},\"versions\":[", json(&model)?).map_err(failed)?;
            let mut separator = "";
            self.catalogue.scan(&key::versions(&model.name), Bound::Unbounded, |_, stored| {
                let version: VersionRecord = decode("a version", &stored)?;
                write!(to, "{separator}\n{}", json(&version)?).map_err(failed)?;
                separator = ",";
                Ok(true)
            })?;
            write!(to, "],\"documents\":{}}}", json(&self.documents(&model.name)?)?).map_err(failed)?;
            after = Some(model.name);
        }
        to.write_all(b"],\"audit\":[").map_err(failed)?;
        let mut separator = "";
        self.catalogue.scan(audit::ENTRIES, Bound::Unbounded, |_, stored| {
            let entry = audit::parse(&stored)?;
            let (body, hash) = (json(&entry.body)?, entry.hash);
            write!(to, "{separator}\n{{\"entry\":{body},\"hash\":\"{hash}\"}}").map_err(failed)?;
            separator = ",";
            Ok(true)
        })?;
        to.write_all(b"]}\n").map_err(failed)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.registry.held.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &self.digests {
            if let Some(count) = held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    held.remove(digest);
                }
            }
        }
    }
}

/// Reads and hashes.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).map_err(RegistryError::io("write", Path::new("the backup")))
}

/// The next length and as many bytes, or `None` at the end.
fn read_frame(from: &mut impl Read, most: usize) -> Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match from.read(length.get_mut(filled..).unwrap_or_default()).map_err(|e| bad(&e.to_string()))? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(bad("it is cut short")),
            read => filled += read,
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        return Err(bad(&format!("a record of {length} bytes, expected up to {most}")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).map_err(|error| bad(&format!("it is cut short ({error})")))?;
    Ok(Some(bytes))
}

fn json(record: &impl Serialize) -> Result<String> {
    serde_json::to_string(record).map_err(RegistryError::damaged)
}

fn bad(problem: &str) -> RegistryError {
    RegistryError::Invalid(format!("no complete backup of a registry: {problem}"))
}

fn show(entry: &tar::Entry<'_, impl Read>) -> String {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    format!("{:?} ({:?})", sconce_core::abbreviate(&path), entry.header().entry_type())
}

fn is_missing_or_empty(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(RegistryError::io("read", dir)(error)),
    }
}

fn sync_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(RegistryError::io("read", folder))? {
        let path = entry.map_err(RegistryError::io("read", folder))?.path();
        if path.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(RegistryError::io("sync", &path))?;
        }
    }
    sync_folder(folder)
}
