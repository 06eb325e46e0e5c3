//! New versions: sent by the caller, or fetched by the server.

use super::{records, version_message};
use crate::grpc::control::{name, refused};
use crate::models::{Models, Operation};
use sconce_candle::Package;
use sconce_core::{DeviceId, Error, Result};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::register_request::Part;
use sconce_registry::source::{Access, Source};
use sconce_registry::{
    Artifacts, By, Digest, Import, Limits, Lineage, NewVersion, Registry, RegistryError, Transfer,
    VersionRecord, Wanted,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::{Status, Streaming};

/// Parts of an upload that wait to be written.
const PARTS: usize = 8;
/// How long a caller may take from one part of an upload to the next.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a fetch tells how far it is, at most.
const TELL: Duration = Duration::from_millis(100);

/// A file of an upload, piece by piece.
enum Piece {
    File(pb::FileHeader),
    Chunk(Vec<u8>),
    /// Everything was sent.
    End,
}

/// Takes an upload in and registers it.
///
/// # Errors
/// What is wrong with it; nothing is registered then.
pub(super) async fn upload(
    models: &Arc<Models>,
    mut parts: Streaming<pb::RegisterRequest>,
    actor: String,
) -> Result<VersionRecord, Status> {
    let registry = Arc::clone(models.registry().map_err(refused)?);
    let header = match next(&mut parts).await? {
        Some(Part::Header(header)) => header,
        _ => return Err(Status::invalid_argument("expected the version's header first")),
    };
    let (new, by) = new_version(header, actor).map_err(refused)?;
    models.refuse_taken(&new.model).await.map_err(refused)?;
    let (sender, receiver) = mpsc::channel(PARTS);
    let (done, imported) = oneshot::channel();
    let device = models.default_device();
    tokio::task::spawn_blocking(move || {
        let import = receive(registry.artifacts(), receiver).and_then(|import| checked(import, device));
        let _ = done.send(import);
    });
    loop {
        let piece = match next(&mut parts).await? {
            Some(Part::File(file)) => Piece::File(file),
            Some(Part::Chunk(bytes)) => Piece::Chunk(bytes),
            Some(Part::Header(_)) => return Err(Status::invalid_argument("the header came twice")),
            None => Piece::End,
        };
        let is_end = matches!(piece, Piece::End);
        // Where nobody receives any more, the outcome says why.
        if sender.send(piece).await.is_err() || is_end {
            break;
        }
    }
    drop(sender);
    let lost = |_| Status::internal("the upload was cut off");
    let checked = imported.await.map_err(lost)?.map_err(refused)?;
    register(models, new, checked, by).await.map_err(refused)
}

async fn next(parts: &mut Streaming<pb::RegisterRequest>) -> Result<Option<Part>, Status> {
    let late = |_| Status::deadline_exceeded(format!("no part of the upload came for {PATIENCE:?}"));
    match tokio::time::timeout(PATIENCE, parts.message()).await.map_err(late)?? {
        None => Ok(None),
        Some(pb::RegisterRequest { part: Some(part) }) => Ok(Some(part)),
        Some(_) => Err(Status::invalid_argument("a part of the upload is empty")),
    }
}

/// Writes what comes. Only a whole upload is one.
fn receive(artifacts: &Artifacts, mut pieces: mpsc::Receiver<Piece>) -> Result<Import> {
    let mut importer = artifacts.importer(Limits::default());
    let mut piece = pieces.blocking_recv();
    loop {
        match piece {
            Some(Piece::File(header)) => {
                let mut file = importer.file(&header.path, header.bytes)?;
                piece = pieces.blocking_recv();
                while let Some(Piece::Chunk(bytes)) = &piece {
                    file.append(bytes)?;
                    piece = pieces.blocking_recv();
                }
                let record = file.finish()?;
                let expected = if header.digest.is_empty() { None } else { Some(digest(&header.digest)?) };
                if expected.is_some_and(|expected| expected != record.digest) {
                    let (path, expected, got) = (record.path, header.digest, record.digest);
                    return Err(Error::invalid(format!(
                        "file `{path}`: expected digest {expected}, got {got}"
                    )));
                }
            }
            Some(Piece::Chunk(_)) => return Err(Error::invalid("bytes came that belong to no file")),
            Some(Piece::End) => return Ok(importer.finish()?),
            None => return Err(Error::invalid("the upload ended early")),
        }
    }
}

/// Files that are a package which can be served, and what it takes and gives.
struct Checked {
    import: Import,
    signature: sconce_registry::SignatureRecord,
    description: String,
    metrics: std::collections::BTreeMap<String, f64>,
}

fn checked(import: Import, device: DeviceId) -> Result<Checked> {
    let checkout = import.checkout()?;
    let package = Package::open(checkout.path(), device)
        .map_err(|error| Error::new(error.code(), format!("it cannot be served: {error}")))?;
    let signature = records::signature_record(&package.signature);
    let (description, metrics) = (package.settings.description, package.settings.metrics);
    Ok(Checked { import, signature, description, metrics })
}

/// Registers checked files. What the package says of itself stands where the caller said nothing.
async fn register(
    models: &Arc<Models>,
    mut new: NewVersion,
    checked: Checked,
    by: By,
) -> Result<VersionRecord> {
    let Checked { import, signature, description, metrics } = checked;
    new.signature = signature;
    if new.description.is_empty() {
        new.description = description;
    }
    for (metric, value) in metrics {
        new.metrics.entry(metric).or_insert(value);
    }
    let name = new.model.clone();
    let change = move |registry: &Registry| registry.register(new, import, &by);
    models.change(&name, Operation::Register, change).await
}

fn new_version(header: pb::NewVersion, actor: String) -> Result<(NewVersion, By)> {
    let lineage = header.lineage.unwrap_or_default();
    let new = NewVersion {
        model: sconce_core::ModelName::new(&header.model)?,
        version: records::optional_version(header.version)?,
        label: Some(header.label).filter(|label| !label.is_empty()),
        description: header.description,
        tags: header.tags,
        metrics: header.metrics,
        lineage: Lineage {
            parent: records::optional_version(lineage.parent)?,
            training_data: lineage.training_data,
            trained_by: lineage.trained_by,
            trained_at: lineage.trained_at,
            source: lineage.source,
        },
        signature: sconce_registry::SignatureRecord::default(),
        wanted: Wanted::Auto,
        monitors: header.monitors,
    };
    Ok((new, By::new(actor, header.reason)))
}

/// Where a fetch tells how far it is.
type Told = mpsc::Sender<Result<pb::RegisterFromResponse, Status>>;

/// Fetches a source and registers what is there; tells how far it is.
///
/// # Errors
/// The server has no registry; what fails later is the stream's last item.
pub(super) fn fetch(
    models: &Arc<Models>,
    request: pb::RegisterFromRequest,
    actor: String,
    transfer: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<pb::RegisterFromResponse, Status>>, Status> {
    let registry = Arc::clone(models.registry().map_err(refused)?);
    let header = request.header.unwrap_or_default();
    if !header.model.is_empty() {
        name(&header.model)?;
    }
    let (sender, receiver) = mpsc::channel(4);
    let (models, text) = (Arc::clone(models), request.source);
    let tasks = models.tasks.clone();
    tasks.spawn(async move {
        let _transfer = transfer;
        let cancel = Arc::new(AtomicBool::new(false));
        let fetching = fetch_all(&models, registry, &text, header, actor, &sender, &cancel);
        let fetched = tokio::select! {
            fetched = fetching => fetched,
            () = sender.closed() => {
                cancel.store(true, Ordering::Relaxed);
                return;
            }
        };
        let last = match fetched {
            Ok(versions) => Ok(pb::RegisterFromResponse { versions, ..Default::default() }),
            Err(error) => Err(refused(error)),
        };
        let _ = sender.send(last).await;
    });
    Ok(receiver)
}

async fn fetch_all(
    models: &Arc<Models>,
    registry: Arc<Registry>,
    text: &str,
    header: pb::NewVersion,
    actor: String,
    told: &Told,
    cancel: &Arc<AtomicBool>,
) -> Result<Vec<pb::Version>> {
    let source_text = text.to_owned();
    let parse = move || {
        let source = Source::parse(&source_text)?;
        let versions = source.versions()?;
        Ok((source, versions))
    };
    let (source, versions) = blocking(parse).await?;
    let device = models.default_device();
    let mut registered = Vec::new();
    if versions.is_empty() {
        let (mut new, by) = new_version(header, actor)?;
        models.refuse_taken(&new.model).await?;
        if new.lineage.source.is_empty() {
            text.clone_into(&mut new.lineage.source);
        }
        let (told, cancel) = (told.clone(), Arc::clone(cancel));
        let fetch = move || {
            let transfer = Teller::new(&told);
            let import =
                source.fetch(registry.artifacts(), &Access::from_env(), &transfer.transfer(&cancel))?;
            Ok(checked(import, device))
        };
        let checked = blocking(fetch).await??;
        registered.push(register(models, new, checked, by).await?);
    } else {
        if !header.model.is_empty() {
            let message =
                format!("{text:?} holds {} versions of models with names of their own", versions.len());
            return Err(Error::invalid(format!("{message}: give no model, or the folder of one version")));
        }
        if header.version != 0 {
            return Err(Error::invalid("one number cannot be that of several versions: give none"));
        }
        for found in &versions {
            models.refuse_taken(&found.name).await?;
        }
        // All are fetched and checked before the first is registered: one that cannot be served leaves nothing half done.
        let (mut ready, mut problems) = (Vec::new(), Vec::new());
        for found in versions {
            let (header, actor, registry) = (header.clone(), actor.clone(), Arc::clone(&registry));
            let header = pb::NewVersion { model: found.name.to_string(), ..header };
            let (mut new, by) = new_version(header, actor)?;
            new.lineage.source = found.folder.display().to_string();
            let (told, cancel) = (told.clone(), Arc::clone(cancel));
            let fetch = move || {
                let transfer = Teller::new(&told);
                let import = found.fetch(registry.artifacts(), &transfer.transfer(&cancel))?;
                let checked = checked(import, device);
                Ok(checked.map_err(|error| error.at(format_args!("{}/{}", found.name, found.version))))
            };
            match blocking(fetch).await? {
                Ok(checked) => ready.push((new, checked, by)),
                Err(error) => problems.push(error),
            }
        }
        if let Some(first) = problems.first() {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let message = format!("nothing was registered: {}", all.join("; "));
            return Err(Error::new(first.code(), message));
        }
        for (new, checked, by) in ready {
            let name = new.model.clone();
            let record = register(models, new, checked, by).await.map_err(|error| {
                let before: Vec<String> = registered
                    .iter()
                    .map(|record: &VersionRecord| format!("{} {}", record.model, record.version))
                    .collect();
                let before = if before.is_empty() { "nothing".to_owned() } else { before.join(", ") };
                error.at(format_args!("registered before it: {before}; model `{name}`"))
            })?;
            registered.push(record);
        }
    }
    let messages = registered.into_iter().map(|record| {
        let models = Arc::clone(models);
        async move {
            let name = record.model.clone();
            let model = models.read(move |registry| registry.model(&name)).await?;
            Ok(version_message(&models, record, &model))
        }
    });
    futures_util::future::try_join_all(messages).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::internal("fetching panicked").with_source(error))??)
}

/// Tells progress now and then.
struct Teller {
    progress: Box<dyn Fn(sconce_registry::Progress<'_>)>,
}

impl Teller {
    fn new(told: &Told) -> Self {
        let told = told.clone();
        let last = std::cell::Cell::new(None::<Instant>);
        let progress = move |progress: sconce_registry::Progress<'_>| {
            let is_done = progress.total == Some(progress.bytes);
            if last.get().is_some_and(|at| at.elapsed() < TELL) && !is_done {
                return;
            }
            last.set(Some(Instant::now()));
            let message = pb::RegisterFromResponse {
                file: progress.file.to_owned(),
                bytes: progress.bytes,
                total_bytes: progress.total.unwrap_or(0),
                versions: Vec::new(),
            };
            // Progress that nobody takes in time is not worth waiting for.
            let _ = told.try_send(Ok(message));
        };
        Self { progress: Box::new(progress) }
    }

    fn transfer<'a>(&'a self, cancel: &'a AtomicBool) -> Transfer<'a> {
        Transfer { limits: Limits::default(), progress: &*self.progress, cancel }
    }
}

fn digest(text: &str) -> Result<Digest> {
    let wrong = || Error::invalid("digest: expected 64 hexadecimal digits in lower case");
    Digest::parse(text).ok_or_else(wrong)
}
