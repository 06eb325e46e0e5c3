//! The vocabulary every other crate speaks: names, datatypes, tensors, signatures, requests, errors, and the one
//! boundary between the scheduler and the models ([`LoadedModel`] and [`Backend`]).
//!
//! Nothing here does I/O, reads a clock, or knows a wire format or a model framework.

mod automation;
mod budget;
mod datatype;
mod device;
mod ensemble;
mod error;
pub mod json;
mod model;
mod name;
mod policy;
mod record;
mod signature;
mod stats;
mod tensor;

pub use automation::{Automation, DeferSpec};
pub use budget::{ByteBudget, Reservation};
pub use datatype::DataType;
pub use device::DeviceId;
pub use ensemble::{Ensemble, Step, StepSpec};
pub use error::{Error, ErrorCode, Result};
pub use model::{Backend, Batch, BatchOutput, Checkpoint, InferOutput, LoadedModel, ModelInput, Preparation};
pub use name::{ModelName, ModelVersion, PredictionId, abbreviate};
pub use policy::{DataPolicy, Keep};
pub use record::{CloseReason, ExecutionRecord};
pub use signature::{Inputs, Signature, TensorSpec, display_shape};
pub use stats::{BatchSizeStats, DurationHistogram, FailReason, ModelStats, SizeHistogram, Total};
pub use tensor::{BytesElements, Tensor, check_bytes_elements};
