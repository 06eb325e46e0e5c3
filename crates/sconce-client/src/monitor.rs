use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::{Options, Result};
use tonic::transport::Channel;

/// A connection to the monitors of a server, on its control listener. Clones share it, and it reconnects by itself.
///
/// The messages are those of [`control_proto`](crate::control_proto), where each field is explained.
#[derive(Debug, Clone)]
pub struct MonitorClient {
    grpc: pb::monitor_client::MonitorClient<Channel>,
    caller: Caller,
}

/// Every call fails with the server's status: `InvalidArgument` with what is wrong, `NotFound` for what is not there or not watched,
/// `FailedPrecondition` for a version that is not in memory and on a server without a data folder; `Unavailable` when the server cannot
/// be reached, and `DeadlineExceeded` when it took too long.
impl MonitorClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::monitor_client::MonitorClient::new(channel(addr, &options).await?)
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

    /// Watches a version from now on.
    pub async fn set_monitor(&self, request: pb::SetMonitorRequest) -> Result<pb::Monitored> {
        Ok(self.grpc.clone().set_monitor(self.caller.call(request)).await?.into_inner())
    }

    /// Watches it no more.
    pub async fn remove_monitor(&self, request: pb::RemoveMonitorRequest) -> Result<()> {
        self.grpc.clone().remove_monitor(self.caller.call(request)).await?;
        Ok(())
    }

    /// How a version stands, with its verdict.
    pub async fn get_monitor(&self, request: pb::GetMonitorRequest) -> Result<pb::Monitored> {
        Ok(self.grpc.clone().get_monitor(self.caller.call(request)).await?.into_inner())
    }

    /// Every version that is watched, or those of a model, without verdicts.
    pub async fn list_monitors(&self, request: pb::ListMonitorsRequest) -> Result<Vec<pb::Monitored>> {
        Ok(self.grpc.clone().list_monitors(self.caller.call(request)).await?.into_inner().monitors)
    }

    /// How a version stood, a page at a time.
    pub async fn history(&self, request: pb::ListMonitorHistoryRequest) -> Result<Vec<pb::MonitorEntry>> {
        Ok(self.grpc.clone().list_monitor_history(self.caller.call(request)).await?.into_inner().entries)
    }
}
