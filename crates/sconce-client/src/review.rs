use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::{Items, Options, Result};
use tonic::transport::Channel;

/// A connection to what people decide on a server, on its control listener: predictions that wait for them, and what they say. Clones
/// share it, and it reconnects by itself.
///
/// The messages are those of [`control_proto`](crate::control_proto), where each field is explained.
#[derive(Debug, Clone)]
pub struct ReviewClient {
    grpc: pb::review_client::ReviewClient<Channel>,
    caller: Caller,
}

/// Every call fails with the server's status: `NotFound` for what does not wait (any more), `FailedPrecondition` for what somebody else
/// has and on a server without a data folder, `InvalidArgument` with what is wrong; `Unavailable` when the server cannot be reached,
/// and `DeadlineExceeded` when it took too long.
impl ReviewClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it. Streams have no timeout.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::review_client::ReviewClient::new(channel(addr, &options).await?)
            .max_decoding_message_size(options.max_message_bytes)
            .max_encoding_message_size(options.max_message_bytes);
        Ok(Self { grpc, caller: Caller::new(options.timeout) })
    }

    /// Says on each call who makes it: predictions are claimed by whoever that is.
    ///
    /// # Errors
    /// `InvalidArgument` when `actor` is not printable ASCII.
    pub fn actor(self, actor: &str) -> Result<Self> {
        Ok(Self { caller: self.caller.named(actor)?, ..self })
    }

    /// What waits, a page at a time.
    pub async fn list(&self, request: pb::ListReviewsRequest) -> Result<pb::ListReviewsResponse> {
        Ok(self.grpc.clone().list(self.caller.call(request)).await?.into_inner())
    }

    /// Takes the oldest that nobody has, for a while.
    pub async fn claim(&self, request: pb::ClaimReviewsRequest) -> Result<pb::ClaimReviewsResponse> {
        Ok(self.grpc.clone().claim(self.caller.call(request)).await?.into_inner())
    }

    /// Says what would have been right; that is on the server's disk when it answers.
    pub async fn answer(&self, request: pb::AnswerReviewsRequest) -> Result<pb::AnswerReviewsResponse> {
        Ok(self.grpc.clone().answer(self.caller.call(request)).await?.into_inner())
    }

    /// Gives one back for somebody else.
    pub async fn skip(&self, request: pb::SkipReviewRequest) -> Result<()> {
        self.grpc.clone().skip(self.caller.call(request)).await?;
        Ok(())
    }

    /// What happens to the queue from now on. It ends when the server stops.
    pub async fn watch(&self, request: pb::WatchReviewsRequest) -> Result<Items<pb::ReviewEvent>> {
        Ok(Items::new(self.grpc.clone().watch(self.caller.untimed(request)).await?.into_inner()))
    }
}
