use crate::proto::infer_parameter::ParameterChoice;
use crate::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::proto::{InferParameter, ModelInferRequest};
use sconce_core::Tensor;
use std::time::Duration;

/// One inference request, built step by step. Tensors travel raw.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    message: ModelInferRequest,
    deadline: Option<Duration>,
    metadata: Vec<(String, String)>,
}

impl InferRequest {
    /// A request to `model`, in the version that the server chooses, for every output.
    pub fn new(model: impl Into<String>) -> Self {
        let message = ModelInferRequest { model_name: model.into(), ..Default::default() };
        Self { message, deadline: None, metadata: Vec::new() }
    }

    /// Asks for one version, by its number or an alias. Empty: the server chooses.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.message.model_version = version.into();
        self
    }

    /// An id that the answer repeats.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.message.id = id.into();
        self
    }

    /// Who goes first: 1 is the highest priority, 0 the model's default.
    #[must_use]
    pub fn priority(self, priority: u64) -> Self {
        self.parameter("priority", ParameterChoice::Uint64Param(priority))
    }

    /// How long the request may wait in the model's queue, in whole microseconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
        self.parameter("timeout", ParameterChoice::Int64Param(micros))
    }

    /// How long the whole call may take (`grpc-timeout`); the server knows it too. Not for streams, where a deadline
    /// would be the stream's: use [`timeout`](Self::timeout) there.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Says something in the metadata of the call: printable ASCII under a name in lower case, or the call is refused. Not for
    /// streams, where metadata would be the stream's: use [`parameter`](Self::parameter) there.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// A parameter of the request.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: ParameterChoice) -> Self {
        self.message.parameters.insert(name.into(), parameter(value));
        self
    }

    /// Adds an input.
    #[must_use]
    pub fn input(mut self, name: impl Into<String>, tensor: Tensor) -> Self {
        self.message.inputs.push(InferInputTensor {
            name: name.into(),
            datatype: tensor.datatype().name().to_owned(),
            shape: tensor.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect(),
            ..Default::default()
        });
        self.message.raw_input_contents.push(tensor.into_data());
        self
    }

    /// Asks for this output; without any, all come.
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.message.outputs.push(InferRequestedOutputTensor { name: name.into(), ..Default::default() });
        self
    }

    /// Asks for this output as its `classes` best classes: BYTES elements `value:index[:label]`.
    #[must_use]
    pub fn classification(mut self, name: impl Into<String>, classes: u32) -> Self {
        let parameters =
            [("classification".to_owned(), parameter(ParameterChoice::Int64Param(classes.into())))];
        self.message
            .outputs
            .push(InferRequestedOutputTensor { name: name.into(), parameters: parameters.into() });
        self
    }

    /// The message as it goes out.
    pub fn into_message(self) -> ModelInferRequest {
        self.message
    }

    /// The message, how long the call may take, and its metadata.
    pub(crate) fn into_parts(self) -> (ModelInferRequest, Option<Duration>, Vec<(String, String)>) {
        (self.message, self.deadline, self.metadata)
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}
