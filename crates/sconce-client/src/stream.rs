use crate::proto::ModelStreamInferResponse;
use crate::{Code, Error, InferResponse, Result};
use tonic::Streaming;

/// The replies of one stream, in the order of its requests.
#[derive(Debug)]
pub struct InferStream(Streaming<ModelStreamInferResponse>);

/// The reply to one request of a stream.
#[derive(Debug)]
pub struct StreamReply {
    /// The request's id.
    pub id: String,
    /// The answer, or why this request has none. Over a stream the server sends errors without a code: it is `Unknown`.
    pub result: Result<InferResponse>,
}

impl InferStream {
    pub(crate) fn new(replies: Streaming<ModelStreamInferResponse>) -> Self {
        Self(replies)
    }

    /// The next reply; `None` once every request is answered and the request side has ended.
    ///
    /// # Errors
    /// The stream itself broke: no more replies will come.
    pub async fn next(&mut self) -> Result<Option<StreamReply>> {
        let Some(message) = self.0.message().await? else { return Ok(None) };
        let response = message.infer_response.unwrap_or_default();
        let id = response.id.clone();
        let result = if message.error_message.is_empty() {
            InferResponse::from_message(response)
        } else {
            Err(Error::new(Code::Unknown, message.error_message))
        };
        Ok(Some(StreamReply { id, result }))
    }
}
