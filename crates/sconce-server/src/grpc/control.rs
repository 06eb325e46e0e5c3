//! What the services of the control listener have in common.

use crate::grpc::status;
use futures_util::{Stream, stream};
use sconce_core::{Error, ModelName};
use std::pin::Pin;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// The metadata that names who calls.
const ACTOR: &str = "sconce-actor";

pub(super) type Answer<T> = Result<Response<T>, Status>;
pub(super) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

pub(super) fn items<T: Send + 'static>(receiver: mpsc::Receiver<Result<T, Status>>) -> Items<T> {
    Box::pin(stream::unfold(receiver, |mut receiver| async {
        let item = receiver.recv().await?;
        Some((item, receiver))
    }))
}

pub(super) fn refused(error: Error) -> Status {
    status::of(&error)
}

pub(super) fn name(text: &str) -> Result<ModelName, Status> {
    ModelName::new(text).map_err(refused)
}

/// Who calls, as they say.
pub(super) fn actor<T>(request: &Request<T>) -> Result<String, Status> {
    let Some(value) = request.metadata().get(ACTOR) else { return Ok("anonymous".to_owned()) };
    let text =
        value.to_str().map_err(|_| Status::invalid_argument(format!("{ACTOR}: expected plain text")))?;
    Ok(text.to_owned())
}
