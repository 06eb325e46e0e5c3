use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::{Options, Result};
use tonic::transport::Channel;

/// A connection to the health of a server, on its control listener. Clones share it, and it reconnects by itself.
#[derive(Debug, Clone)]
pub struct HealthClient {
    grpc: pb::health_client::HealthClient<Channel>,
    caller: Caller,
}

impl HealthClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::health_client::HealthClient::new(channel(addr, &options).await?)
            .max_decoding_message_size(options.max_message_bytes);
        Ok(Self { grpc, caller: Caller::new(options.timeout) })
    }

    /// How the server is now; of the models all, or only `model`.
    ///
    /// # Errors
    /// `NotFound` for a model that is not there, `Unavailable` when the server cannot be reached, `DeadlineExceeded` when it took
    /// too long.
    pub async fn health(&self, model: Option<&str>) -> Result<pb::HealthReport> {
        let request = pb::GetHealthRequest { model: model.unwrap_or_default().to_owned() };
        Ok(self.grpc.clone().get_health(self.caller.call(request)).await?.into_inner())
    }
}
