use super::folder::{self, Found};
use super::path::{check_path, collide};
use super::{
    Artifacts, BUFFER_BYTES, Checkout, Limits, MAX_FILES, Pin, Progress, Store, Temporary, Transfer, io_error,
};
use crate::{Digest, FileRecord, RegistryError, Result};
use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Files that are stored and on disk, and belong to no version yet. Garbage collection leaves them alone until this is
/// dropped: by then a record must name them.
#[derive(Debug)]
pub struct Import {
    artifacts: Artifacts,
    files: Vec<FileRecord>,
    #[expect(dead_code, reason = "held for its effect")]
    pins: Vec<Pin>,
}

impl Import {
    /// The files, by path.
    pub fn files(&self) -> &[FileRecord] {
        &self.files
    }

    /// The files' length together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// A folder of these files, as [`Artifacts::checkout`] makes it: to read a package before it is registered.
    ///
    /// # Errors
    /// As [`Artifacts::checkout`].
    pub fn checkout(&self) -> Result<Checkout> {
        self.artifacts.checkout(&self.files)
    }
}

/// Takes files one after the other. Dropped without [`finish`](Self::finish), nothing of it stays but blobs that the next
/// garbage collection removes.
#[derive(Debug)]
pub struct Importer {
    artifacts: Artifacts,
    limits: Limits,
    bytes: u64,
    files: Vec<FileRecord>,
    pins: Vec<Pin>,
}

impl Importer {
    pub(super) fn new(artifacts: Artifacts, limits: Limits) -> Self {
        Self { artifacts, limits, bytes: 0, files: Vec::new(), pins: Vec::new() }
    }

    /// Begins the file `path` of exactly `bytes` bytes.
    ///
    /// # Errors
    /// `Invalid` for a path that is not plain and relative, is there already, or is a folder of another;
    /// `Exhausted` when it is one file or `bytes` too many; `Io`.
    pub fn file(&mut self, path: &str, bytes: u64) -> Result<FileWriter<'_>> {
        self.admit(path, bytes)?;
        let temporary = Temporary::create(&self.artifacts.store)?;
        Ok(FileWriter {
            path: path.to_owned(),
            expected: bytes,
            written: 0,
            hasher: blake3::Hasher::new(),
            temporary,
            importer: self,
        })
    }

    /// What was taken in. All of it is on disk.
    ///
    /// # Errors
    /// `Invalid` when there is no file.
    pub fn finish(mut self) -> Result<Import> {
        if self.files.is_empty() {
            return Err(RegistryError::Invalid("there is no file to import".to_owned()));
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Import { artifacts: self.artifacts, files: self.files, pins: self.pins })
    }

    /// Bytes that may still come.
    pub(crate) fn remaining(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.bytes)
    }

    /// Copies what [`folder::list`] found, its first `transfer.limits` worth.
    pub(crate) fn copy(&mut self, found: &Found, transfer: &Transfer<'_>) -> Result<()> {
        let mut file = folder::open_regular(found)?;
        let stamp = |metadata: &Metadata| (metadata.len(), metadata.modified().ok());
        let failed = || format!("cannot read `{}`", found.path);
        let before = stamp(&file.metadata().map_err(io_error(failed))?);
        let mut writer = self.file(&found.path, before.0)?;
        let changed = || RegistryError::Invalid(format!("`{}` changed while it was read", found.path));
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            transfer.check()?;
            let n = read_some(&mut file, &mut buffer).map_err(io_error(failed))?;
            if n == 0 {
                break;
            }
            if n as u64 > before.0 - writer.written {
                return Err(changed());
            }
            writer.append(&buffer[..n])?;
            (transfer.progress)(Progress { file: &found.path, bytes: writer.written, total: Some(before.0) });
        }
        if writer.written != before.0 || stamp(&file.metadata().map_err(io_error(failed))?) != before {
            return Err(changed());
        }
        writer.finish().map(drop)
    }

    /// Takes a complete file that is on the same file system: it is renamed, not copied.
    pub(crate) fn adopt(&mut self, path: &str, temporary: &Path) -> Result<()> {
        let failed = || format!("cannot read the download of `{path}`");
        let mut file = std::fs::File::open(temporary).map_err(io_error(failed))?;
        let (digest, bytes) = hash(&mut file).map_err(io_error(failed))?;
        self.admit(path, bytes)?;
        super::seal(&file, temporary)?;
        self.publish(path, temporary, digest, bytes).map(drop)
    }

    fn admit(&self, path: &str, bytes: u64) -> Result<()> {
        check_path(path)?;
        if let Some(other) = self.files.iter().find(|file| collide(&file.path, path)) {
            return Err(RegistryError::Invalid(format!("file `{path}` collides with file `{}`", other.path)));
        }
        let most = self.limits.files.min(MAX_FILES);
        if self.files.len() >= most {
            return Err(RegistryError::Exhausted(format!(
                "file `{path}` is one more than the {most} allowed"
            )));
        }
        if bytes > self.remaining() {
            return Err(RegistryError::Exhausted(format!(
                "file `{path}` of {bytes} bytes brings the files over the {} bytes allowed",
                self.limits.bytes
            )));
        }
        Ok(())
    }

    fn publish(&mut self, path: &str, temporary: &Path, digest: Digest, bytes: u64) -> Result<FileRecord> {
        self.pins.push(Store::publish(&self.artifacts.store, temporary, digest, bytes)?);
        self.bytes += bytes;
        let record = FileRecord { path: path.to_owned(), digest, bytes };
        self.files.push(record.clone());
        Ok(record)
    }
}

/// One file on its way in. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct FileWriter<'a> {
    importer: &'a mut Importer,
    path: String,
    expected: u64,
    written: u64,
    hasher: blake3::Hasher,
    temporary: Temporary,
}

impl FileWriter<'_> {
    /// Adds `data`.
    ///
    /// # Errors
    /// `Invalid` when the file gets longer than it was said to be; `Io`.
    pub fn append(&mut self, data: &[u8]) -> Result<()> {
        if data.len() as u64 > self.expected - self.written {
            return Err(self.wrong_length("more"));
        }
        self.temporary.file.write_all(data).map_err(io_error(|| format!("cannot store `{}`", self.path)))?;
        self.hasher.update(data);
        self.written += data.len() as u64;
        Ok(())
    }

    /// Writes the file to disk and makes it visible.
    ///
    /// # Errors
    /// `Invalid` when it is shorter than it was said to be; `Io`.
    pub fn finish(self) -> Result<FileRecord> {
        if self.written != self.expected {
            return Err(self.wrong_length("fewer"));
        }
        let digest = Digest::from(self.hasher.finalize());
        super::seal(&self.temporary.file, &self.temporary.path)?;
        self.importer.publish(&self.path, &self.temporary.path, digest, self.written)
    }

    fn wrong_length(&self, came: &str) -> RegistryError {
        RegistryError::Invalid(format!("file `{}`: expected {} bytes, {came} came", self.path, self.expected))
    }
}

impl Write for FileWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data).map_err(|error| match error {
            RegistryError::Io { source, .. } => source,
            other => io::Error::other(other),
        })?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.file.flush()
    }
}

/// The digest and length of what `reader` still has.
pub(super) fn hash(reader: &mut impl Read) -> io::Result<(Digest, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = read_some(reader, &mut buffer)?;
        if n == 0 {
            return Ok((Digest::from(hasher.finalize()), hasher.count()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Reads at least one byte, or 0 at the end.
pub(crate) fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Artifacts {
    /// Copies every regular file below `from`. Hidden entries are left out; links are followed within the folder.
    ///
    /// # Errors
    /// `Invalid` for a link that leads out, a special file, a name that is no plain path, a file that changes while it
    /// is read, or an empty folder; `Exhausted` beyond `transfer.limits`; `Cancelled`; `Io`. Nothing is left visible.
    pub fn import_folder(&self, from: &Path, transfer: &Transfer<'_>) -> Result<Import> {
        let mut importer = self.importer(transfer.limits);
        for found in folder::list(from)? {
            importer.copy(&found, transfer)?;
        }
        importer.finish()
    }

    /// Takes an upload.
    pub fn importer(&self, limits: Limits) -> Importer {
        Importer::new(Self { store: Arc::clone(&self.store) }, limits)
    }
}
