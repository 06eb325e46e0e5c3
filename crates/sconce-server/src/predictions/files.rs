//! Records in files that rotate. While one is written its name ends in `.open`, so no reader takes it for a whole one. Beside an open
//! Parquet file lies what would end it after its last row group; a server that finds both, because another was killed, ends it so.

use super::parquet::Writer;
use super::record::{Record, utc};
use crate::config::PredictionLog as Settings;
use crate::sink::{Inbox, Offered};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Records, and bytes of them, that are written together at most.
const GROUP_RECORDS: usize = 4096;
const GROUP_BYTES: usize = 8 << 20;
/// Row groups of a file: the end of the file lists each, and is written anew with each.
const MAX_GROUPS: usize = 64;
/// How often what is too old or too much is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
const PREFIX: &str = "predictions-";
const OPEN: &str = ".open";
const FOOTER: &str = ".footer";

/// The folder of one log.
pub(super) struct Files {
    dir: PathBuf,
    lines: bool,
    flush_after: Duration,
    max_bytes: u64,
    max_age: Duration,
    retain_bytes: u64,
    retain_for: Duration,
    open: Option<Open>,
    /// Held as long as this server writes here.
    _lock: File,
}

/// A file that is being written.
struct Open {
    path: PathBuf,
    since: Instant,
    bytes: u64,
    form: Form,
}

enum Form {
    Parquet(Box<Writer>),
    Lines(File),
}

impl Files {
    /// Opens `dir`, made if it is not there, and makes whole what was left open in it.
    pub(super) fn open(dir: &Path, settings: &Settings) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("LOCK"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::other("another server writes there"),
        })?;
        for name in names(dir)?.filter(|name| name.ends_with(OPEN)) {
            recover(dir, &name)?;
        }
        for name in names(dir)?.filter(|name| name.ends_with(FOOTER) || name.ends_with(".new")) {
            fs::remove_file(dir.join(name))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            lines: settings.format == "jsonl",
            flush_after: Duration::from_secs(settings.flush_seconds),
            max_bytes: settings.max_file_bytes,
            max_age: Duration::from_secs(settings.max_file_seconds),
            retain_bytes: settings.retain_bytes,
            retain_for: Duration::from_secs(settings.retain_days * 86_400),
            open: None,
            _lock: lock,
        })
    }

    /// Writes what comes until it is told to stop.
    pub(super) fn run(mut self, mut inbox: Inbox<Arc<Record>>) {
        let mut pending: Vec<Offered<Arc<Record>>> = Vec::new();
        let mut since = Instant::now();
        let mut swept: Option<Instant> = None;
        loop {
            if pending.is_empty() {
                since = Instant::now();
            }
            let go_on = inbox.gather(&mut pending, GROUP_RECORDS);
            let bytes = || pending.iter().map(|offered| offered.item.bytes()).sum::<usize>();
            let due = !pending.is_empty()
                && (!go_on
                    || pending.len() >= GROUP_RECORDS
                    || since.elapsed() >= self.flush_after
                    || bytes() >= GROUP_BYTES);
            if due {
                let records: Vec<&Record> = pending.iter().map(|offered| &*offered.item).collect();
                match self.write(&records) {
                    Ok(()) => inbox.written(records.len()),
                    Err(error) => {
                        inbox.failed(records.len(), &error);
                        self.give_up();
                    }
                }
                pending.clear();
            }
            let is_old = |open: &Open| open.since.elapsed() >= self.max_age;
            if (self.open.as_ref().is_some_and(is_old) || !go_on)
                && let Err(error) = self.close()
            {
                inbox.failed(0, &error);
                self.give_up();
            }
            if !go_on {
                return;
            }
            if swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
                swept = Some(Instant::now());
                if let Err(error) = self.sweep(SystemTime::now()) {
                    inbox.failed(0, &error);
                }
            }
        }
    }

    /// Writes records and brings them to disk.
    fn write(&mut self, records: &[&Record]) -> Result<(), Failure> {
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::create(&self.dir, self.lines)?),
        };
        open.write(records)?;
        if open.bytes >= self.max_bytes || open.groups() >= MAX_GROUPS {
            self.close()?;
            self.sweep(SystemTime::now())?;
        }
        Ok(())
    }

    /// Ends the open file and gives it its name.
    fn close(&mut self) -> Result<(), Failure> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { path, form, .. } = open;
        match form {
            Form::Parquet(writer) => writer.finish()?.sync_all()?,
            Form::Lines(file) => file.sync_all()?,
        }
        Ok(publish(&path)?)
    }

    /// Ends the open file after what is known to be good of it.
    fn give_up(&mut self) {
        let Some(open) = self.open.take() else { return };
        let name = open.path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        drop(open);
        // What cannot be ended now is when a server starts.
        let _ = name.map(|name| recover(&self.dir, &name));
    }

    /// Deletes whole files, the oldest first, that are too old or too much.
    fn sweep(&self, now: SystemTime) -> io::Result<()> {
        let mut files = Vec::new();
        for name in names(&self.dir)?.filter(|name| name.ends_with(".parquet") || name.ends_with(".jsonl")) {
            let about = fs::metadata(self.dir.join(&name))?;
            files.push((name, about.len(), about.modified()?));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (name, bytes, modified) in files {
            let age = now.duration_since(modified).unwrap_or_default();
            if total > self.retain_bytes || age > self.retain_for {
                fs::remove_file(self.dir.join(name))?;
                total -= bytes;
            }
        }
        Ok(())
    }
}

impl Open {
    fn create(dir: &Path, lines: bool) -> Result<Self, Failure> {
        let started: String = utc(SystemTime::now()).chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let kind = if lines { "jsonl" } else { "parquet" };
        let path = dir.join(format!("{PREFIX}{started}.{kind}{OPEN}"));
        let file = File::create_new(&path)?;
        sync_folder(&path)?;
        let form = if lines { Form::Lines(file) } else { Form::Parquet(Box::new(Writer::new(file)?)) };
        Ok(Self { path, since: Instant::now(), bytes: 0, form })
    }

    fn write(&mut self, records: &[&Record]) -> Result<(), Failure> {
        match &mut self.form {
            Form::Parquet(writer) => {
                let (bytes, footer) = writer.write(records)?;
                writer.file().sync_data()?;
                let end = [&bytes.to_le_bytes()[..], &footer].concat();
                let path = suffixed(&self.path, FOOTER);
                let new = suffixed(&path, ".new");
                let mut file = File::create(&new)?;
                file.write_all(&end)?;
                file.sync_data()?;
                fs::rename(&new, &path)?;
                sync_folder(&path)?;
                self.bytes = bytes;
            }
            Form::Lines(file) => {
                let mut text = Vec::new();
                for record in records {
                    serde_json::to_writer(&mut text, &record.to_json()).map_err(io::Error::from)?;
                    text.push(b'\n');
                }
                file.write_all(&text)?;
                file.sync_data()?;
                self.bytes += text.len() as u64;
            }
        }
        Ok(())
    }

    fn groups(&self) -> usize {
        match &self.form {
            Form::Parquet(writer) => writer.groups(),
            Form::Lines(_) => 0,
        }
    }
}

/// Why records could not be written.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the log's folder: {0}")]
    Io(#[from] io::Error),
    #[error("Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
}

/// Ends a file that was left open after its last good record, and gives it its name; deletes it where there is none.
fn recover(dir: &Path, name: &str) -> io::Result<()> {
    let path = dir.join(name);
    let good = if name.ends_with(&format!(".jsonl{OPEN}")) {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let end = last_line_end(&mut file)?;
        file.set_len(end)?;
        file.sync_all()?;
        end > 0
    } else {
        match fs::read(suffixed(&path, FOOTER)) {
            Ok(end) => {
                let Some((bytes, footer)) = end.split_first_chunk::<8>() else {
                    return Err(io::Error::other(format!("{name}{FOOTER} is cut short")));
                };
                let mut file = OpenOptions::new().write(true).open(&path)?;
                file.set_len(u64::from_le_bytes(*bytes))?;
                file.seek(SeekFrom::End(0))?;
                file.write_all(footer)?;
                file.sync_all()?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        }
    };
    if good { publish(&path) } else { fs::remove_file(&path) }
}

/// Gives a whole file its name.
fn publish(path: &Path) -> io::Result<()> {
    let whole = path.with_extension("");
    fs::rename(path, &whole)?;
    sync_folder(path)?;
    match fs::remove_file(suffixed(path, FOOTER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Brings the names in the folder of `path` to disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Bytes up to the end of the last whole line.
fn last_line_end(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut piece = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(piece.len() as u64);
        let part = &mut piece[..usize::try_from(end - start).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Names of the log's files in `dir`.
fn names(dir: &Path) -> io::Result<impl Iterator<Item = String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(PREFIX)));
    }
    Ok(names.into_iter())
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::predictions::Request;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use sconce_core::{DataPolicy, DataType, PredictionId, Tensor};
    use sconce_telemetry::traces::RequestTrace;

    fn record(number: u8) -> Record {
        let tensor = Tensor::new(DataType::Uint8, vec![1, 2], vec![number; 2].into()).unwrap();
        let inputs = [("x".to_owned(), tensor)];
        Record {
            trace: RequestTrace::new(None),
            id: PredictionId::new(),
            at: SystemTime::now(),
            model: "m".into(),
            version: "3".into(),
            variant: None,
            tenant: Some("t".into()),
            status: "OK",
            latency: Duration::from_micros(7),
            inputs: Content::new(true).inputs("m", &DataPolicy::of_word("all").unwrap(), &inputs),
            outputs: Vec::new(),
            review: None,
            request: Request::default(),
        }
    }

    fn settings(format: &str) -> Settings {
        Settings { format: format.to_owned(), ..Settings::default() }
    }

    fn listed(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = names(dir).unwrap().collect();
        names.sort();
        names
    }

    fn rows(path: &Path) -> usize {
        let name = path.to_str().unwrap();
        if name.ends_with(".jsonl") {
            return fs::read_to_string(path).unwrap().lines().count();
        }
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        let rows = reader.get_row_iter(None).unwrap().inspect(|row| assert!(row.is_ok())).count();
        assert_eq!(i64::try_from(rows).unwrap(), reader.metadata().file_metadata().num_rows());
        rows
    }

    /// A server that is killed leaves the file as it is, with whatever it had begun behind it.
    #[test]
    fn what_was_flushed_is_whole_after_a_kill_and_what_was_begun_is_gone() {
        for (format, kind) in [("parquet", ".parquet"), ("jsonl", ".jsonl")] {
            let dir = tempfile::tempdir().unwrap();
            let mut files = Files::open(dir.path(), &settings(format)).unwrap();
            let records = [1, 2, 3, 4, 5].map(record);
            files.write(&[&records[0], &records[1]]).unwrap();
            files.write(&[&records[2]]).unwrap();
            let open = listed(dir.path()).remove(0);
            assert!(open.ends_with(&format!("{kind}{OPEN}")), "{open}");
            // Killed in the middle of the next flush, and before anything of it was noted.
            let mut torn = OpenOptions::new().append(true).open(dir.path().join(&open)).unwrap();
            torn.write_all(b"half a row group").unwrap();
            drop(files);
            let again = Files::open(dir.path(), &settings(format)).unwrap();
            let [whole] = &listed(dir.path())[..] else { panic!("{:?}", listed(dir.path())) };
            assert!(whole.ends_with(kind), "{whole}");
            assert_eq!(rows(&dir.path().join(whole)), 3, "{format}");
            drop(again);
            // Killed before anything was flushed: nothing is left.
            fs::write(dir.path().join(format!("{PREFIX}x{kind}{OPEN}")), "begun").unwrap();
            drop(Files::open(dir.path(), &settings(format)).unwrap());
            assert_eq!(listed(dir.path()).len(), 1);
        }
    }

    #[test]
    fn files_rotate_by_size_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let few = Settings { max_file_bytes: 1, retain_bytes: 0, ..settings("parquet") };
        let mut files = Files::open(dir.path(), &few).unwrap();
        files.write(&[&record(1)]).unwrap();
        assert!(listed(dir.path()).is_empty(), "no room for any");
        files.retain_bytes = u64::MAX;
        for number in 0..3 {
            files.write(&[&record(number)]).unwrap();
        }
        let names = listed(dir.path());
        assert_eq!(names.len(), 3);
        let size = |name: &String| fs::metadata(dir.path().join(name)).unwrap().len();
        files.retain_bytes = size(&names[1]) + size(&names[2]);
        files.sweep(SystemTime::now()).unwrap();
        assert_eq!(listed(dir.path()), names[1..]);
        files.sweep(SystemTime::now() + files.retain_for + Duration::from_secs(1)).unwrap();
        assert!(listed(dir.path()).is_empty());
    }

    #[test]
    fn two_servers_do_not_write_to_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Files::open(dir.path(), &settings("parquet")).unwrap();
        assert!(Files::open(dir.path(), &settings("parquet")).is_err());
        drop(first);
        Files::open(dir.path(), &settings("parquet")).unwrap();
    }
}
