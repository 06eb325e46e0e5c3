//! `sconce.v1.Registry`, on the control listener.

mod records;
mod register;

use crate::door::Door;
use crate::grpc::control::{Answer, Items, actor, answer, items, name, refused};
use crate::grpc::status;
use crate::models::{Models, Operation, check_smoke};
use prost::Message as _;
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, abbreviate};
use sconce_proto::sconce as pb;
use sconce_proto::sconce::registry_server::Registry as Service;
use sconce_registry::{
    By, Changed, ModelRecord, ModelUpdate, Registry, RegistryError, VersionRecord, VersionUpdate, Wanted,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Request, Status, Streaming};

/// The registry's calls.
pub(crate) struct Control {
    door: Arc<Door>,
    /// Each holds a thread as long as it lasts.
    transfers: Arc<Semaphore>,
}

/// Uploads, fetches, backups and exports at once.
const MAX_TRANSFERS: usize = 8;
/// Bytes of a page, past which it ends early.
const PAGE_BYTES: usize = 2 << 20;

/// Items of a page that asks for no number, and the most of one that does.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Records read at once while a page is filled.
const READ: usize = 100;
/// When a transfer that found no place is worth another try.
const TRANSFER_RETRY: Duration = Duration::from_secs(5);
/// Bytes of a backup or an export in one message.
const CHUNK_BYTES: usize = 256 << 10;

impl Control {
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self { door, transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)) }
    }

    fn transfer(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| {
            let message = format!("{MAX_TRANSFERS} uploads, fetches, backups and exports are under way");
            let full = Error::new(ErrorCode::ResourceExhausted, message);
            status::of(&full.with_retry_after(TRANSFER_RETRY))
        };
        Arc::clone(&self.transfers).try_acquire_owned().map_err(full)
    }

    fn models(&self) -> &Arc<Models> {
        &self.door.models
    }

    /// Reads the registry.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, Status> {
        self.models().read(read).await.map_err(refused)
    }

    /// Changes a version and answers with it.
    async fn change_version(
        &self,
        model: &str,
        version: String,
        operation: Operation,
        change: impl FnOnce(&Registry, &ModelName, ModelVersion) -> Result<VersionRecord, RegistryError>
        + Send
        + 'static,
    ) -> Answer<pb::Version> {
        let name = name(model)?;
        let of = name.clone();
        let change = move |registry: &Registry| change(registry, &of, registry.resolve(&of, &version)?);
        let record = self.models().change(&name, operation, change).await.map_err(refused)?;
        self.door.report_health().await;
        answer(self.version_message(record).await?)
    }

    /// Sends what `write` writes, in chunks.
    fn stream_of<T: Send + 'static>(
        &self,
        message: fn(Vec<u8>) -> T,
        write: impl FnOnce(&Registry, &mut dyn Write) -> Result<(), RegistryError> + Send + 'static,
    ) -> Answer<Items<T>> {
        let registry = Arc::clone(self.models().registry().map_err(refused)?);
        let transfer = self.transfer()?;
        let (sender, receiver) = mpsc::channel(4);
        // It ends when it is done or when nobody reads it any more.
        self.models().tasks.spawn_blocking(move || {
            let _transfer = transfer;
            let mut writer = BufWriter::with_capacity(CHUNK_BYTES, Chunks { sender: &sender, message });
            if let Err(error) = write(&registry, &mut writer) {
                let _ = sender.blocking_send(Err(refused(error.into())));
            }
        });
        answer(items(receiver))
    }

    /// Tells webhooks of an alias that somebody moved.
    fn tell_moved(&self, what: &str, model: &ModelName, alias: &str, changed: &Changed, by: &By) {
        let data = json!({
            "alias": alias,
            "version": changed.after.map(ModelVersion::get),
            "previous": changed.before.map(ModelVersion::get),
            "generation": changed.generation,
        });
        let kind = format!("sconce.model.{what}.v1");
        self.door.webhooks.tell_by_hand(&kind, model, changed.after, by, data);
    }

    async fn version_message(&self, record: VersionRecord) -> Result<pb::Version, Status> {
        let name = record.model.clone();
        let model = self.read(move |registry| registry.model(&name)).await?;
        Ok(version_message(self.models(), record, &model))
    }
}

fn version_message(models: &Models, record: VersionRecord, model: &ModelRecord) -> pb::Version {
    let live = models.live_state(&record.model, record.version);
    let aliases = model.aliases.iter().filter(|(_, alias)| alias.version == record.version);
    let aliases = aliases.map(|(name, _)| name.clone()).collect();
    records::version(record, live, aliases)
}

#[tonic::async_trait]
impl Service for Control {
    type RegisterFromStream = Items<pb::RegisterFromResponse>;
    type WatchStream = Items<pb::AuditEntry>;
    type BackupStream = Items<pb::BackupResponse>;
    type ExportStream = Items<pb::ExportResponse>;

    async fn register(
        &self,
        request: Request<Streaming<pb::RegisterRequest>>,
    ) -> Answer<pb::RegisterResponse> {
        let _transfer = self.transfer()?;
        let actor = actor(&request)?;
        let record = register::upload(self.models(), request.into_inner(), actor).await?;
        answer(pb::RegisterResponse { version: Some(self.version_message(record).await?) })
    }

    async fn register_from(
        &self,
        request: Request<pb::RegisterFromRequest>,
    ) -> Answer<Self::RegisterFromStream> {
        let actor = actor(&request)?;
        let receiver = register::fetch(self.models(), request.into_inner(), actor, self.transfer()?)?;
        answer(items(receiver))
    }

    async fn list_models(&self, request: Request<pb::ListModelsRequest>) -> Answer<pb::ListModelsResponse> {
        let request = request.into_inner();
        let limit = page_size(request.page_size)?;
        let tags = wanted_tags(&request.tags)?;
        let mut after = match request.page_token.as_str() {
            "" => None,
            token => Some(name(token)?),
        };
        let read = move |registry: &Registry| {
            let mut models = Vec::new();
            let mut bytes = 0;
            loop {
                let page = registry.models(after.as_ref(), READ)?;
                let is_last = page.len() < READ;
                for model in page {
                    after = Some(model.name.clone());
                    if !model.name.as_str().contains(&request.name_contains) || !has_tags(&model.tags, &tags)
                    {
                        continue;
                    }
                    let message = records::model(model);
                    bytes += message.encoded_len();
                    models.push(message);
                    if models.len() == limit || bytes > PAGE_BYTES {
                        return Ok((models, after, registry.generation()));
                    }
                }
                if is_last {
                    return Ok((models, None, registry.generation()));
                }
            }
        };
        let (models, next, generation) = self.read(read).await?;
        let next_page_token = next.map_or_else(String::new, |name| name.to_string());
        answer(pb::ListModelsResponse { models, next_page_token, generation })
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Answer<pb::ListVersionsResponse> {
        let request = request.into_inner();
        let (name, limit) = (name(&request.model)?, page_size(request.page_size)?);
        let tags = wanted_tags(&request.tags)?;
        let states: Vec<pb::VersionState> = request.states().collect();
        let mut after = match request.page_token.as_str() {
            "" => None,
            token => Some(ModelVersion::parse(token).ok_or_else(|| {
                Status::invalid_argument(format!("page_token: not one of mine: {:?}", abbreviate(token)))
            })?),
        };
        let models = Arc::clone(self.models());
        let read = move |registry: &Registry| {
            let model = registry.model(&name)?;
            let mut versions = Vec::new();
            let mut bytes = 0;
            loop {
                let page = registry.versions(&name, after, READ)?;
                let is_last = page.len() < READ;
                for record in page {
                    after = Some(record.version);
                    if !has_tags(&record.tags, &tags) {
                        continue;
                    }
                    let message = version_message(&models, record, &model);
                    if !states.is_empty() && !states.contains(&message.state()) {
                        continue;
                    }
                    bytes += message.encoded_len();
                    versions.push(message);
                    if versions.len() == limit || bytes > PAGE_BYTES {
                        return Ok((versions, after));
                    }
                }
                if is_last {
                    return Ok((versions, None));
                }
            }
        };
        let (versions, next) = self.read(read).await?;
        let next_page_token = next.map_or_else(String::new, |version| version.to_string());
        answer(pb::ListVersionsResponse { versions, next_page_token })
    }

    async fn get_model(&self, request: Request<pb::GetModelRequest>) -> Answer<pb::Model> {
        let name = name(&request.into_inner().model)?;
        answer(records::model(self.read(move |registry| registry.model(&name)).await?))
    }

    async fn get_version(&self, request: Request<pb::GetVersionRequest>) -> Answer<pb::Version> {
        let pb::GetVersionRequest { model, version } = request.into_inner();
        let name = name(&model)?;
        let read = move |registry: &Registry| registry.version(&name, registry.resolve(&name, &version)?);
        let record = self.read(read).await?;
        answer(self.version_message(record).await?)
    }

    async fn promote(&self, request: Request<pb::PromoteRequest>) -> Answer<pb::PromoteResponse> {
        let actor = actor(&request)?;
        let request = request.into_inner();
        let name = name(&request.model)?;
        if request.version == request.alias {
            let alias = abbreviate(&request.alias);
            return Err(Status::invalid_argument(format!("alias {alias:?} cannot point at itself")));
        }
        let expected = request.expected.map(records::optional_version).transpose().map_err(refused)?;
        let by = By::new(actor, request.reason);
        let promoted = self.models().promote(
            &name,
            &request.version,
            &request.alias,
            expected,
            request.force,
            by.clone(),
        );
        let promoted = promoted.await.map_err(refused)?;
        self.tell_moved("promoted", &name, &request.alias, &promoted.changed, &by);
        self.door.report_health().await;
        answer(pb::PromoteResponse {
            version: promoted.changed.after.map_or(0, ModelVersion::get),
            previous: promoted.changed.before.map_or(0, ModelVersion::get),
            generation: promoted.changed.generation,
            gates: promoted.verdicts.into_iter().map(records::gate_result).collect(),
        })
    }

    async fn rollback(&self, request: Request<pb::RollbackRequest>) -> Answer<pb::RollbackResponse> {
        let actor = actor(&request)?;
        let pb::RollbackRequest { model, alias, steps, reason } = request.into_inner();
        let name = name(&model)?;
        let steps = steps.max(1) as usize;
        let by = By::new(actor, reason);
        let changed = self.models().rollback(&name, &alias, steps, by.clone()).await;
        let changed = changed.map_err(refused)?;
        self.tell_moved("rolled_back", &name, &alias, &changed, &by);
        answer(pb::RollbackResponse {
            version: changed.after.map_or(0, ModelVersion::get),
            previous: changed.before.map_or(0, ModelVersion::get),
            generation: changed.generation,
        })
    }

    async fn remove_alias(
        &self,
        request: Request<pb::RemoveAliasRequest>,
    ) -> Answer<pb::RemoveAliasResponse> {
        let actor = actor(&request)?;
        let pb::RemoveAliasRequest { model, alias, reason } = request.into_inner();
        let name = name(&model)?;
        let (of, by) = (name.clone(), By::new(actor, reason));
        let change = move |registry: &Registry| registry.remove_alias(&of, &alias, None, &by);
        let changed = self.models().change(&name, Operation::RemoveAlias, change).await.map_err(refused)?;
        answer(pb::RemoveAliasResponse { generation: changed.generation })
    }

    async fn update_model(&self, request: Request<pb::UpdateModelRequest>) -> Answer<pb::Model> {
        let actor = actor(&request)?;
        let pb::UpdateModelRequest { model, description, tags, set_tags, gates, reason } =
            request.into_inner();
        let name = name(&model)?;
        let (of, by) = (name.clone(), By::new(actor, reason));
        let said =
            ModelUpdate { description, tags: set_tags.then_some(tags), gates: gates.map(records::to_gates) };
        let samples = said.gates.iter().flat_map(|gates| &gates.smoke);
        samples.into_iter().try_for_each(check_smoke).map_err(refused)?;
        let change = move |registry: &Registry| registry.update_model(&of, said, &by);
        let record = self.models().change(&name, Operation::Update, change).await.map_err(refused)?;
        answer(records::model(record))
    }

    async fn update_version(&self, request: Request<pb::UpdateVersionRequest>) -> Answer<pb::Version> {
        let actor = actor(&request)?;
        let request = request.into_inner();
        let by = By::new(actor, request.reason);
        let said = VersionUpdate {
            description: request.description,
            tags: request.set_tags.then_some(request.tags),
            metrics: request.metrics,
            remove_metrics: request.remove_metrics,
            monitors: Some(request.monitors).filter(|monitors| !monitors.is_empty()),
        };
        let change = move |registry: &Registry, name: &ModelName, version: ModelVersion| {
            registry.update_version(name, version, said, &by)
        };
        self.change_version(&request.model, request.version, Operation::Update, change).await
    }

    async fn set_wanted(&self, request: Request<pb::SetWantedRequest>) -> Answer<pb::Version> {
        let actor = actor(&request)?;
        let request = request.into_inner();
        let name = name(&request.model)?;
        let wanted = match request.wanted() {
            pb::Wanted::Auto => Wanted::Auto,
            pb::Wanted::Loaded => Wanted::Loaded,
            pb::Wanted::Unloaded => Wanted::Unloaded,
            pb::Wanted::Unspecified => {
                return Err(Status::invalid_argument("wanted: expected auto, loaded or unloaded, got none"));
            }
        };
        let (of, text) = (name.clone(), request.version);
        let version = self.read(move |registry| registry.resolve(&of, &text)).await?;
        let by = By::new(actor, request.reason);
        self.models().set_wanted(&name, version, wanted, by).await.map_err(refused)?;
        self.door.report_health().await;
        let record = self.read(move |registry| registry.version(&name, version)).await?;
        answer(self.version_message(record).await?)
    }

    async fn archive(&self, request: Request<pb::ArchiveRequest>) -> Answer<pb::Version> {
        let actor = actor(&request)?;
        let pb::ArchiveRequest { model, version, reason, undo } = request.into_inner();
        let by = By::new(actor, reason);
        let change = move |registry: &Registry, name: &ModelName, version: ModelVersion| {
            if undo { registry.unarchive(name, version, &by) } else { registry.archive(name, version, &by) }
        };
        self.change_version(&model, version, Operation::Archive, change).await
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<pb::DeleteResponse> {
        let actor = actor(&request)?;
        let pb::DeleteRequest { model, version, reason } = request.into_inner();
        let name = name(&model)?;
        let (of, by) = (name.clone(), By::new(actor, reason));
        let change = move |registry: &Registry| {
            if version.is_empty() {
                let versions = registry.model(&of)?.version_count;
                registry.delete_model(&of, &by)?;
                return Ok(versions);
            }
            registry.delete_version(&of, registry.resolve(&of, &version)?, &by)?;
            Ok(1)
        };
        let versions = self.models().change(&name, Operation::Delete, change).await.map_err(refused)?;
        self.door.report_health().await;
        answer(pb::DeleteResponse { versions: u32::try_from(versions).unwrap_or(u32::MAX) })
    }

    async fn collect_garbage(
        &self,
        request: Request<pb::CollectGarbageRequest>,
    ) -> Answer<pb::CollectGarbageResponse> {
        let dry_run = request.into_inner().dry_run;
        let garbage = self.read(move |registry| registry.collect_garbage(dry_run)).await?;
        answer(pb::CollectGarbageResponse { files: garbage.blobs, bytes: garbage.bytes })
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        let pb::WatchRequest { after, model } = request.into_inner();
        let wanted = match model.as_str() {
            "" => None,
            model => Some(name(model)?),
        };
        let changes = self.models().changes();
        let after = match after {
            Some(after) => after,
            None => self.read(|registry| Ok(registry.last_entry())).await?,
        };
        let (models, stop) = (Arc::clone(self.models()), self.door.draining.clone());
        let (sender, receiver) = mpsc::channel(16);
        let tasks = &self.models().tasks;
        tasks.spawn(async move {
            let watching = watch(&models, changes, after, wanted, sender);
            stop.run_until_cancelled(watching).await;
        });
        answer(items(receiver))
    }

    async fn list_audit(&self, request: Request<pb::ListAuditRequest>) -> Answer<pb::ListAuditResponse> {
        let pb::ListAuditRequest { mut after, page_size: size, model } = request.into_inner();
        let limit = page_size(size)?;
        let wanted = match model.as_str() {
            "" => None,
            model => Some(name(model)?),
        };
        let read = move |registry: &Registry| {
            let mut entries = Vec::new();
            let mut bytes = 0;
            loop {
                let page = registry.audit(after, READ)?;
                let is_last = page.len() < READ;
                for entry in page {
                    after = entry.body.seq;
                    if wanted.as_ref().is_none_or(|name| *name == entry.body.model) {
                        let message = records::audit_entry(entry);
                        bytes += message.encoded_len();
                        entries.push(message);
                    }
                    if entries.len() == limit || bytes > PAGE_BYTES {
                        return Ok((entries, after));
                    }
                }
                if is_last {
                    return Ok((entries, 0));
                }
            }
        };
        let (entries, next_after) = self.read(read).await?;
        answer(pb::ListAuditResponse { entries, next_after })
    }

    async fn verify_audit(&self, _: Request<pb::VerifyAuditRequest>) -> Answer<pb::VerifyAuditResponse> {
        let report = self.read(Registry::verify_audit).await?;
        answer(pb::VerifyAuditResponse {
            entries: report.entries,
            head: report.head.to_string(),
            problems: report.problem.into_iter().collect(),
        })
    }

    async fn check(&self, _: Request<pb::CheckRequest>) -> Answer<pb::CheckResponse> {
        let report = self.read(Registry::check).await?;
        answer(pb::CheckResponse {
            models: report.models,
            versions: report.versions,
            files: report.blobs,
            bytes: report.bytes,
            problems: report.problems.into_iter().chain(report.audit.problem).collect(),
        })
    }

    async fn backup(&self, _: Request<pb::BackupRequest>) -> Answer<Self::BackupStream> {
        self.stream_of(|chunk| pb::BackupResponse { chunk }, |registry, to| registry.backup(to).map(drop))
    }

    async fn export(&self, _: Request<pb::ExportRequest>) -> Answer<Self::ExportStream> {
        self.stream_of(|chunk| pb::ExportResponse { chunk }, |registry, to| registry.export_json(to))
    }
}

/// Bytes as messages of a stream.
struct Chunks<'a, T> {
    sender: &'a mpsc::Sender<Result<T, Status>>,
    message: fn(Vec<u8>) -> T,
}

impl<T> Write for Chunks<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let closed = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the caller went away");
        self.sender.blocking_send(Ok((self.message)(bytes.to_vec()))).map_err(closed)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends entries behind `after`, and then each as it comes, until nobody reads them any more.
async fn watch(
    models: &Models,
    mut changes: tokio::sync::watch::Receiver<u64>,
    mut after: u64,
    wanted: Option<ModelName>,
    sender: mpsc::Sender<Result<pb::AuditEntry, Status>>,
) {
    loop {
        changes.mark_unchanged();
        loop {
            let entries = match models.read(move |registry| registry.audit(after, READ)).await {
                Ok(entries) => entries,
                Err(error) => {
                    let _ = sender.send(Err(refused(error))).await;
                    return;
                }
            };
            let is_last = entries.len() < READ;
            for entry in entries {
                after = entry.body.seq;
                let is_wanted = wanted.as_ref().is_none_or(|name| *name == entry.body.model);
                if is_wanted && sender.send(Ok(records::audit_entry(entry))).await.is_err() {
                    return;
                }
            }
            if is_last {
                break;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

fn page_size(size: u32) -> Result<usize, Status> {
    match size as usize {
        0 => Ok(PAGE),
        size if size <= MAX_PAGE => Ok(size),
        size => Err(Status::invalid_argument(format!("page_size: expected at most {MAX_PAGE}, got {size}"))),
    }
}

/// `key=value` each.
fn wanted_tags(tags: &[String]) -> Result<Vec<(String, String)>, Status> {
    let pair = |tag: &String| {
        let pair = tag.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| {
            Status::invalid_argument(format!("tags: expected key=value, got {:?}", abbreviate(tag)))
        })
    };
    tags.iter().map(pair).collect()
}

fn has_tags(tags: &BTreeMap<String, String>, wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|(key, value)| tags.get(key) == Some(value))
}
