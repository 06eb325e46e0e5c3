use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::upload::{Files, Progress};
use crate::{Code, Error, Options, Result};
use std::io::Write;
use std::path::Path;
use tonic::Streaming;
use tonic::transport::Channel;

/// A connection to the registry of a server, on its control listener. Clones share it, and it reconnects by itself.
///
/// The messages are those of [`control_proto`](crate::control_proto), where each field is explained.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    grpc: pb::registry_client::RegistryClient<Channel>,
    caller: Caller,
}

/// What a server sends one by one.
#[derive(Debug)]
pub struct Items<T>(Streaming<T>);

impl<T> Items<T> {
    pub(crate) fn new(items: Streaming<T>) -> Self {
        Self(items)
    }

    /// The next; `None` after the last.
    ///
    /// # Errors
    /// The server's status: nothing comes after it.
    pub async fn next(&mut self) -> Result<Option<T>> {
        Ok(self.0.message().await?)
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)*) => { $(
        $(#[$doc])*
        pub async fn $name(&self, request: pb::$request) -> Result<pb::$answer> {
            Ok(self.grpc.clone().$name(self.caller.call(request)).await?.into_inner())
        }
    )* };
}

/// Every call fails with the server's status: `NotFound`, `AlreadyExists`, `Aborted` and `FailedPrecondition` say what the
/// registry holds against it, and nothing was changed then; `Unavailable` when the server cannot be reached, and
/// `DeadlineExceeded` when it took too long.
impl RegistryClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it. Uploads and streams have no timeout.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::registry_client::RegistryClient::new(channel(addr, &options).await?)
            .max_decoding_message_size(options.max_message_bytes)
            .max_encoding_message_size(options.max_message_bytes);
        Ok(Self { grpc, caller: Caller::new(options.timeout) })
    }

    /// Says on each call who makes it; by default nothing is said.
    ///
    /// # Errors
    /// `InvalidArgument` when `actor` is not printable ASCII.
    pub fn actor(self, actor: &str) -> Result<Self> {
        Ok(Self { caller: self.caller.named(actor)?, ..self })
    }

    /// Registers a version from the regular files below `folder`, without hidden ones; links are followed as long as they
    /// stay in it. `progress` is called from a thread of its own, after each piece that was handed to the connection.
    ///
    /// # Errors
    /// `InvalidArgument` when a file cannot be read, is no regular file, or changed its size meanwhile; nothing is
    /// registered then.
    pub async fn register_folder(
        &self,
        header: pb::NewVersion,
        folder: &Path,
        progress: impl FnMut(Progress<'_>) + Send + 'static,
    ) -> Result<pb::Version> {
        let folder = folder.to_owned();
        let listing = tokio::task::spawn_blocking(move || Files::list(&folder)).await;
        let files = listing.map_err(|_| Error::new(Code::Internal, "listing the folder failed"))??;
        let (parts, failed) = files.send(header, progress);
        let mut grpc = self.grpc.clone();
        let answer = tokio::select! {
            answer = grpc.register(self.caller.untimed(parts)) => answer?.into_inner(),
            error = failed => return Err(error),
        };
        answer.version.ok_or_else(|| Error::malformed("the answer carries no version"))
    }

    /// Lets the server fetch and register. The last item has the versions, those before it tell how far the server is.
    pub async fn register_from(
        &self,
        request: pb::RegisterFromRequest,
    ) -> Result<Items<pb::RegisterFromResponse>> {
        Ok(Items(self.grpc.clone().register_from(self.caller.untimed(request)).await?.into_inner()))
    }

    calls! {
        /// A page of models, by name.
        list_models(ListModelsRequest) -> ListModelsResponse;
        /// A page of a model's versions, by number.
        list_versions(ListVersionsRequest) -> ListVersionsResponse;
        /// One model.
        get_model(GetModelRequest) -> Model;
        /// One version, by number, label or alias.
        get_version(GetVersionRequest) -> Version;
        /// Points an alias at a version once that is in memory and passes the model's gates. `FailedPrecondition` names the
        /// gates that it does not pass, `Aborted` says that the alias moved meanwhile.
        promote(PromoteRequest) -> PromoteResponse;
        /// Points an alias at what it pointed to before.
        rollback(RollbackRequest) -> RollbackResponse;
        /// Removes an alias.
        remove_alias(RemoveAliasRequest) -> RemoveAliasResponse;
        /// Sets what is said of a model, and its gates.
        update_model(UpdateModelRequest) -> Model;
        /// Sets what is said of a version.
        update_version(UpdateVersionRequest) -> Version;
        /// Says whether a version should be in memory.
        set_wanted(SetWantedRequest) -> Version;
        /// Takes a version out of service, or takes it back.
        archive(ArchiveRequest) -> Version;
        /// Deletes a version, or a model with all of them. `FailedPrecondition` while an alias points at one.
        delete(DeleteRequest) -> DeleteResponse;
        /// Deletes files that no version has.
        collect_garbage(CollectGarbageRequest) -> CollectGarbageResponse;
        /// A page of the audit trail.
        list_audit(ListAuditRequest) -> ListAuditResponse;
    }

    /// Changes, oldest first, and then each as it comes. It ends when the server stops.
    pub async fn watch(&self, request: pb::WatchRequest) -> Result<Items<pb::AuditEntry>> {
        Ok(Items(self.grpc.clone().watch(self.caller.untimed(request)).await?.into_inner()))
    }

    /// Recomputes the chain of the audit trail.
    pub async fn verify_audit(&self) -> Result<pb::VerifyAuditResponse> {
        Ok(self.grpc.clone().verify_audit(self.caller.call(pb::VerifyAuditRequest {})).await?.into_inner())
    }

    /// Reads everything there is, and reports what is wrong.
    pub async fn check(&self) -> Result<pb::CheckResponse> {
        Ok(self.grpc.clone().check(self.caller.call(pb::CheckRequest {})).await?.into_inner())
    }

    /// Writes a backup to `to`, and returns its bytes. What was written counts only when this returns without an error.
    ///
    /// # Errors
    /// `Unknown` when `to` fails.
    pub async fn backup(&self, to: &mut impl Write) -> Result<u64> {
        let mut chunks =
            self.grpc.clone().backup(self.caller.untimed(pb::BackupRequest {})).await?.into_inner();
        let cannot = |error| Error::new(Code::Unknown, format!("cannot write the backup: {error}"));
        let mut bytes = 0;
        while let Some(pb::BackupResponse { chunk }) = chunks.message().await? {
            to.write_all(&chunk).map_err(cannot)?;
            bytes += chunk.len() as u64;
        }
        to.flush().map_err(cannot)?;
        Ok(bytes)
    }

    /// All models, versions and changes as they were at one instant: the pieces of one JSON object. It counts only when it
    /// ended without an error.
    pub async fn export(&self) -> Result<Items<pb::ExportResponse>> {
        Ok(Items(self.grpc.clone().export(self.caller.untimed(pb::ExportRequest {})).await?.into_inner()))
    }
}
