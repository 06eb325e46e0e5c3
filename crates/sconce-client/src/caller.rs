use crate::client::with_timeout;
use crate::{Code, Error, Result};
use std::time::Duration;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;

/// The metadata that names who calls.
const ACTOR: &str = "sconce-actor";

/// Who makes the calls of a control listener, and how long they may take.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    timeout: Option<Duration>,
    actor: Option<AsciiMetadataValue>,
}

impl Caller {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, actor: None }
    }

    /// # Errors
    /// `InvalidArgument` when `actor` is not printable ASCII.
    pub(crate) fn named(self, actor: &str) -> Result<Self> {
        let wrong = || Error::new(Code::InvalidArgument, "actor: expected printable ASCII");
        if !actor.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(wrong());
        }
        let actor = AsciiMetadataValue::try_from(actor).map_err(|_| wrong())?;
        Ok(Self { actor: Some(actor), ..self })
    }

    pub(crate) fn call<T>(&self, message: T) -> Request<T> {
        self.signed(with_timeout(message, self.timeout))
    }

    /// For what takes as long as it takes.
    pub(crate) fn untimed<T>(&self, message: T) -> Request<T> {
        self.signed(Request::new(message))
    }

    fn signed<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Some(actor) = &self.actor {
            request.metadata_mut().insert(ACTOR, actor.clone());
        }
        request
    }
}
