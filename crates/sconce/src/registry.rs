use crate::control::{Control, Told};
use crate::table::plain;
use crate::{Failure, Outcome, block_on, text};
use sconce_core::ErrorCode;
use sconce_registry::{Registry, RegistryError};
use serde_json::json;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    control: Control,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read every record and every file, and say what is wrong; exit code 1 when anything is
    Check {
        /// Data folder of a server that does not run, instead of asking one that does
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Write everything but the journal, as it is at one instant, to a file
    Backup {
        file: PathBuf,
        /// Data folder of a server that does not run, instead of asking one that does
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Make a data folder of a backup; no server is asked
    Restore {
        file: PathBuf,
        /// The folder to make, missing or empty
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
    /// Print all models, versions and changes as one JSON document
    Export {
        /// The form of the document
        #[arg(default_value = "json")]
        format: Format,
        /// Data folder of a server that does not run, instead of asking one that does
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Json,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { control, command } = args;
    let done = match command {
        Command::Check { data } => check(&control, data.as_deref()),
        Command::Backup { file, data, force } => backup(&control, &file, data.as_deref(), force),
        Command::Restore { file, data } => restore(&control, &file, &data),
        Command::Export { format: Format::Json, data } => export(&control, data.as_deref()),
    };
    control.end(done)
}

/// Opens a registry that is there, to look at it; opening alone would make one.
///
/// # Errors
/// There is none; another process has it open; it is in a newer format.
pub(crate) fn open(dir: &Path) -> Result<Registry, Failure> {
    if !dir.join("FORMAT").is_file() {
        let message = format!("{}: no registry here: expected the data folder of a server", dir.display());
        return Err(Told::new(ErrorCode::NotFound.name(), message).into());
    }
    Registry::inspect(dir).map_err(|error| match error {
        RegistryError::InUse(_) => {
            let message = format!("{error}: leave out --data to ask the server that serves it");
            Told::new(error.code().name(), message).into()
        }
        other => other.into(),
    })
}

fn check(control: &Control, data: Option<&Path>) -> Outcome {
    let (models, versions, files, bytes, problems) = match data {
        Some(dir) => {
            let report = open(dir)?.check()?;
            let problems: Vec<_> = report.problems.into_iter().chain(report.audit.problem).collect();
            (report.models, report.versions, report.blobs, report.bytes, problems)
        }
        None => {
            let report = block_on(async { Ok::<_, Failure>(control.connect().await?.check().await?) })??;
            (report.models, report.versions, report.files, report.bytes, report.problems)
        }
    };
    let is_intact = problems.is_empty();
    let document = || {
        json!({
            "intact": is_intact, "models": models, "versions": versions, "files": files, "bytes": bytes,
            "problems": problems,
        })
    };
    if !control.print_json(document)? {
        problems.iter().try_for_each(|problem| say!("✗ {}", plain(problem)))?;
        let mark = match problems.len() {
            0 => "✓ in order".to_owned(),
            count => format!("✗ {}", text::count(count as u64, "problem")),
        };
        say!("{mark}: {}", held(models, versions, files, bytes))?;
    }
    Ok(if is_intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn backup(control: &Control, file: &Path, data: Option<&Path>, force: bool) -> Outcome {
    if !force && file.symlink_metadata().is_ok() {
        let message = format!("{}: is there already; --force replaces it", file.display());
        return Err(Told::new(ErrorCode::AlreadyExists.name(), message).into());
    }
    let mut partial = OsString::from(file);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_backup(control, &partial, data).and_then(|bytes| {
        fs::rename(&partial, file).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| format!("cannot sync {}: {e}", folder.display()))?;
        Ok(bytes)
    });
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&partial);
    }
    let bytes = written?;
    let shown = file.display().to_string();
    if !control.print_json(|| json!({ "file": shown, "bytes": bytes }))? {
        say!("wrote {shown}: {}", text::bytes(bytes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the bytes written, once they are on disk.
fn write_backup(control: &Control, partial: &Path, data: Option<&Path>) -> Result<u64, Failure> {
    // The source first: where there is none, nothing is made.
    let registry = data.map(open).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = match &registry {
        Some(_) => None,
        None => Some(runtime.block_on(control.connect())?),
    };
    let cannot = |e: std::io::Error| format!("cannot write {}: {e}", partial.display());
    let mut to = BufWriter::new(File::create(partial).map_err(cannot)?);
    if let Some(registry) = registry {
        registry.backup(&mut to)?;
    }
    if let Some(client) = client {
        runtime.block_on(client.backup(&mut to))?;
    }
    to.flush().map_err(cannot)?;
    to.get_ref().sync_all().map_err(cannot)?;
    Ok(to.get_ref().metadata().map_err(cannot)?.len())
}

fn restore(control: &Control, file: &Path, dir: &Path) -> Outcome {
    let from = File::open(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let report = Registry::restore(dir, BufReader::new(from))?;
    let document = || {
        json!({
            "models": report.models, "versions": report.versions, "files": report.blobs, "bytes": report.bytes,
            "audit_entries": report.audit.entries,
        })
    };
    if !control.print_json(document)? {
        say!(
            "restored into {}: {}, {} audit entries",
            dir.display(),
            held(report.models, report.versions, report.blobs, report.bytes),
            report.audit.entries
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn held(models: u64, versions: u64, files: u64, bytes: u64) -> String {
    let (models, versions) = (text::count(models, "model"), text::count(versions, "version"));
    format!("{models}, {versions}, {}, {}", text::count(files, "file"), text::bytes(bytes))
}

fn export(control: &Control, data: Option<&Path>) -> Outcome {
    let mut to = BufWriter::new(std::io::stdout().lock());
    match data {
        Some(dir) => open(dir)?.export_json(to)?,
        None => block_on(async {
            let mut pieces = control.connect().await?.export().await?;
            while let Some(piece) = pieces.next().await? {
                to.write_all(&piece.chunk)?;
            }
            Ok::<_, Failure>(to.flush()?)
        })??,
    }
    Ok(ExitCode::SUCCESS)
}
