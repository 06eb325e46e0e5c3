//! Loading remote models: there is nothing to read, but somebody to ask.

use super::loader::Instances;
use super::{Models, Served, Target};
use crate::remote::RemoteModel;
use sconce_candle::{ModelSettings, Remote};
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, Result};
use tokio_util::sync::CancellationToken;

/// Which servers remote models may be on. A package comes from anywhere; where requests are sent is for the operator to say.
#[derive(Debug, Clone, Default)]
pub(crate) struct RemoteAccess {
    /// `host:port`, in lower case, or `*` for any.
    pub(crate) hosts: Vec<String>,
    pub(crate) max_message_bytes: usize,
}

impl RemoteAccess {
    fn allows(&self, authority: &str) -> bool {
        self.hosts.iter().any(|host| host == "*" || host.eq_ignore_ascii_case(authority))
    }
}

impl Models {
    /// A remote model, once its server answered.
    ///
    /// # Errors
    /// `FailedPrecondition` for a server that is not among `remote_hosts`; else as [`RemoteModel::connect`].
    pub(super) async fn attach(
        &self,
        name: &ModelName,
        version: ModelVersion,
        settings: ModelSettings,
        remote: Remote,
    ) -> Result<Served> {
        if !self.remotes.allows(&remote.authority) {
            let message = format!(
                "requests would go to {}, which is not among the servers that the configuration names in `remote_hosts`",
                remote.authority
            );
            return Err(Error::new(ErrorCode::FailedPrecondition, message));
        }
        let gone = CancellationToken::new();
        let server = remote.url();
        let model = RemoteModel::connect(
            remote,
            &settings,
            self.remotes.max_message_bytes,
            gone.clone().drop_guard(),
        )
        .await?;
        tracing::info!(model = %name, %version, server, "a remote model answers");
        let target = Target::Remote(Box::new(model));
        Ok(Served::new(name, version, settings, Instances::default(), target, None, gone))
    }
}
