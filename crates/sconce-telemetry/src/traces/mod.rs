//! Traces of requests, and one log line for each that the policy wants.
//!
//! On the request's way only ids and times are written down ([`Observed`]). After its answer was handed to the connection a
//! [`Recorder`] decides whether it is kept; what is kept is *offered* to one thread, which makes spans of it, brings the requests
//! of a batch together, and exports. What does not fit is dropped and counted: nothing here ever waits for a collector.

mod access;
mod batches;
mod export;
mod keep;
mod observed;
mod operations;
mod otlp;
mod parent;
mod recorder;
mod send;
mod spans;

pub use access::Access;
pub use export::Protocol;
pub use keep::Reason;
pub use observed::{Method, Observed, RemoteCall, Target};
pub(crate) use operations::layer;
pub use operations::{OPERATION, traceparent};
pub use parent::RequestTrace;
pub use recorder::{Exemplar, Exemplars, Recorder, RecorderSample, Settings, StartError};
