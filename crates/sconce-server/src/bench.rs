//! What the benchmarks measure and nobody else calls.

use crate::grpc::convert;
use sconce_core::{InferOutput, Result, Signature};
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse};

/// A request's way in and its answer's way out, without the model between: the whole cost of conversion.
///
/// # Errors
/// What the front door would refuse the message for.
pub fn convert(
    signature: &Signature,
    message: ModelInferRequest,
    output: InferOutput,
) -> Result<ModelInferResponse> {
    let request = convert::request(message)?;
    request.wanted.check(signature)?;
    signature.check(request.tensors)?;
    let mut response = ModelInferResponse::default();
    request.wanted.answer(signature, output, &mut response)?;
    Ok(response)
}
