use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::{Options, Result};
use tonic::transport::Channel;

/// A connection to the feedback of a server, on either of its listeners: what turned out to be true of predictions. Clones share it,
/// and it reconnects by itself.
///
/// The messages are those of [`control_proto`](crate::control_proto), where each field is explained.
#[derive(Debug, Clone)]
pub struct FeedbackClient {
    grpc: pb::feedback_client::FeedbackClient<Channel>,
    caller: Caller,
}

/// Every call fails with the server's status: `InvalidArgument` with what is wrong, `NotFound` for a model that is not there,
/// `FailedPrecondition` on a server without a data folder; `Unavailable` when the server cannot be reached, and `DeadlineExceeded`
/// when it took too long.
impl FeedbackClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::feedback_client::FeedbackClient::new(channel(addr, &options).await?)
            .max_decoding_message_size(options.max_message_bytes)
            .max_encoding_message_size(options.max_message_bytes);
        Ok(Self { grpc, caller: Caller::new(options.timeout) })
    }

    /// Records outcomes of predictions; they are on the server's disk when it answers. It may be called again with the same ones.
    pub async fn record(&self, request: pb::RecordFeedbackRequest) -> Result<pb::RecordFeedbackResponse> {
        Ok(self.grpc.clone().record(self.caller.call(request)).await?.into_inner())
    }

    /// What the versions of a model were worth, by the labels that came. Control listener only.
    pub async fn performance(
        &self,
        request: pb::GetPerformanceRequest,
    ) -> Result<pb::GetPerformanceResponse> {
        Ok(self.grpc.clone().get_performance(self.caller.call(request)).await?.into_inner())
    }

    /// Predictions with what is known of them, a page at a time. Control listener only.
    pub async fn list(&self, request: pb::ListFeedbackRequest) -> Result<pb::ListFeedbackResponse> {
        Ok(self.grpc.clone().list(self.caller.call(request)).await?.into_inner())
    }
}
