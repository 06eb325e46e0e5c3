use super::Access;
use crate::artifacts::{Artifacts, Importer, Progress, Transfer, io_error, read_some};
use crate::{RegistryError, Result};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Attempts in a row that bring nothing new before a download is given up.
const MAX_ATTEMPTS: u32 = 5;
/// The longest wait between attempts.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// How long an unfinished download is kept.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How much all unfinished downloads together may keep, in bytes.
const MAX_PARTIAL_BYTES: u64 = 64 << 30;
const BUFFER_BYTES: usize = 256 << 10;

/// A file on another server.
pub(super) struct RemoteFile<'a> {
    /// Its path in the version.
    pub(super) path: &'a str,
    /// What names this very content: place, and revision or tag.
    pub(super) identity: String,
    /// Its length, if the listing says.
    pub(super) bytes: Option<u64>,
    /// SHA-256 of its content, in hexadecimal, if the listing says.
    pub(super) sha256: Option<&'a str>,
}

/// What a server sends.
pub(super) struct Body<'a> {
    /// Where in the file it begins.
    pub(super) start: u64,
    /// The whole file's length, if the server says.
    pub(super) total: Option<u64>,
    pub(super) content: Box<dyn Read + 'a>,
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// The next may not.
    Passing(RegistryError),
    /// The next will too.
    Lasting(RegistryError),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Lasting(error)
    }
}

/// Downloads into one import.
pub(super) struct Download<'a> {
    pub(super) artifacts: &'a Artifacts,
    pub(super) access: &'a Access,
    pub(super) transfer: &'a Transfer<'a>,
}

impl Download<'_> {
    /// Brings `file` into `importer`. `open` asks the server for the content from an offset on.
    pub(super) fn file<'b>(
        &self,
        importer: &mut Importer,
        file: &RemoteFile<'_>,
        mut open: impl FnMut(u64) -> Result<Body<'b>, Failure>,
    ) -> Result<()> {
        prune(self.artifacts);
        let most = importer.remaining();
        if file.bytes.is_some_and(|bytes| bytes > most) {
            return Err(too_much(file, most));
        }
        // What a machine wrote before it went down may be longer than what reached its disk: each start of the machine
        // begins anew.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let key = blake3::hash(format!("{boot}\n{}\n{:?}", file.identity, file.bytes).as_bytes()).to_hex();
        let claim = self.artifacts.claim(self.artifacts.partial().join(key.as_str())).ok_or_else(|| {
            let what = format!("`{}` is being downloaded already: try again when that has ended", file.path);
            RegistryError::Remote { what, source: None }
        })?;
        let failed = || format!("cannot store `{}`", file.path);
        // Complete, it was made read-only; it is still here when the process ended before it was renamed.
        let _ = fs::set_permissions(claim.path(), Permissions::from_mode(0o600));
        let mut partial = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(claim.path())
            .map_err(io_error(failed))?;
        let mut here = partial.seek(SeekFrom::End(0)).map_err(io_error(failed))?;
        // Of unknown length, it cannot be told whether all of it is here already.
        if file.bytes.is_none_or(|bytes| here > bytes) {
            here = restart(&mut partial).map_err(io_error(failed))?;
        }
        self.attempt(file.path, || {
            let before = here;
            let outcome = self.receive(file, most, &mut partial, &mut here, &mut open);
            (outcome, here > before)
        })?;
        if let Some(expected) = file.sha256 {
            let found = sha256(&mut partial).map_err(io_error(failed))?;
            if !found.eq_ignore_ascii_case(expected) {
                // Going on with it would never end well.
                let _ = fs::remove_file(claim.path());
                let detail = format!("the listing says SHA-256 {expected}, what came has {found}");
                return Err(RegistryError::Corrupt { file: file.path.to_owned(), detail });
            }
        }
        importer.adopt(file.path, claim.path())
    }

    /// Repeats `attempt` until it succeeds, fails for good, or has brought nothing new five times in a row. It returns
    /// its outcome and whether it brought something.
    pub(super) fn attempt<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> (Result<T, Failure>, bool),
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            self.transfer.check()?;
            let (outcome, advanced) = attempt();
            match outcome {
                Ok(done) => return Ok(done),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error)) => {
                    // Asked to stop while it waited, a reader fails like this.
                    self.transfer.check()?;
                    failures = if advanced { 1 } else { failures + 1 };
                    if failures == MAX_ATTEMPTS {
                        let what = format!("{what}: given up after {MAX_ATTEMPTS} attempts: {error}");
                        return Err(RegistryError::Remote { what, source: Some(Box::new(error)) });
                    }
                    self.wait(self.access.retry_delay * 2u32.pow(failures - 1))?;
                }
            }
        }
    }

    /// One attempt: from `here` to the end.
    fn receive<'b>(
        &self,
        file: &RemoteFile<'_>,
        most: u64,
        partial: &mut File,
        here: &mut u64,
        open: &mut impl FnMut(u64) -> Result<Body<'b>, Failure>,
    ) -> Result<(), Failure> {
        let failed = || format!("cannot store `{}`", file.path);
        if file.bytes == Some(*here) {
            return Ok(());
        }
        let mut body = open(*here)?;
        if body.start != *here {
            if body.start != 0 {
                let what = format!("`{}`: asked for byte {here} on, got byte {} on", file.path, body.start);
                return Err(RegistryError::Invalid(what).into());
            }
            *here = restart(partial).map_err(io_error(failed))?;
        }
        if let (Some(said), Some(total)) = (file.bytes, body.total)
            && said != total
        {
            let what = format!("`{}`: the listing says {said} bytes, the answer {total}", file.path);
            return Err(RegistryError::Invalid(what).into());
        }
        // Without a length, a connection that breaks looks like the end.
        let total = file.bytes.or(body.total).ok_or_else(|| {
            let what = format!("`{}`: neither the listing nor the answer says how long it is", file.path);
            RegistryError::Invalid(what)
        })?;
        if total > most {
            return Err(too_much(file, most).into());
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.transfer.check()?;
            let n = match read_some(&mut body.content, &mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(source) => {
                    let what = format!("`{}`: the connection broke at byte {here}", file.path);
                    return Err(Failure::Passing(RegistryError::Remote {
                        what,
                        source: Some(Box::new(source)),
                    }));
                }
            };
            if n as u64 > total.saturating_sub(*here) {
                let what = format!("`{}`: expected {total} bytes, more came", file.path);
                return Err(RegistryError::Invalid(what).into());
            }
            partial.write_all(&buffer[..n]).map_err(io_error(failed))?;
            *here += n as u64;
            (self.transfer.progress)(Progress { file: file.path, bytes: *here, total: Some(total) });
        }
        if *here < total {
            let what = format!("`{}`: the answer ended at byte {here} of {total}", file.path);
            return Err(Failure::Passing(RegistryError::Remote { what, source: None }));
        }
        Ok(())
    }

    fn wait(&self, delay: Duration) -> Result<()> {
        let end = Instant::now() + delay.min(MAX_DELAY);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.transfer.check()?;
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

fn too_much(file: &RemoteFile<'_>, most: u64) -> RegistryError {
    RegistryError::Exhausted(format!("`{}` is larger than the {most} bytes that may still come", file.path))
}

fn restart(partial: &mut File) -> std::io::Result<u64> {
    partial.set_len(0)?;
    partial.seek(SeekFrom::Start(0))
}

fn sha256(file: &mut File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = read_some(file, &mut buffer)?;
        if n == 0 {
            return Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..n]);
    }
}

/// Removes unfinished downloads that are old, and the oldest of what is too much. One that cannot be removed is tried
/// again with the next download.
fn prune(artifacts: &Artifacts) {
    let Ok(entries) = fs::read_dir(artifacts.partial()) else { return };
    let mut kept: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    kept.sort();
    let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
    for (modified, length, path) in kept {
        let old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > MAX_AGE);
        if (old || bytes > MAX_PARTIAL_BYTES) && remove_unclaimed(artifacts, &path) {
            bytes -= length;
        }
    }
}

fn remove_unclaimed(artifacts: &Artifacts, path: &Path) -> bool {
    artifacts.claim(path.to_owned()).is_some_and(|claim| fs::remove_file(claim.path()).is_ok())
}
