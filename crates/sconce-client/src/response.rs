use crate::contents::raw_bytes;
use crate::proto::ModelInferResponse;
use crate::{Error, Result};
use sconce_core::{DataType, Tensor};
use std::collections::BTreeMap;

pub use crate::proto::infer_parameter::ParameterChoice as Parameter;

/// The answer to one request.
#[derive(Debug, Clone, PartialEq)]
pub struct InferResponse {
    /// The model that answered.
    pub model_name: String,
    /// Its version.
    pub model_version: String,
    /// The request's id.
    pub id: String,
    /// What the server says about the answer.
    pub parameters: BTreeMap<String, Parameter>,
    /// The tensors by name, in the server's order.
    pub outputs: Vec<(String, Tensor)>,
}

impl InferResponse {
    /// The output called `name`.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|(output, _)| output == name).map(|(_, tensor)| tensor)
    }

    /// The server's own name for this prediction.
    pub fn prediction_id(&self) -> Option<&str> {
        match self.parameters.get("prediction_id") {
            Some(Parameter::StringParam(id)) => Some(id),
            _ => None,
        }
    }

    /// # Errors
    /// `Internal` when the message's outputs and bytes do not fit together.
    pub(crate) fn from_message(message: ModelInferResponse) -> Result<Self> {
        let (described, raw) = (message.outputs.len(), message.raw_output_contents.len());
        // Some servers answer typed whatever they were asked.
        let is_typed = raw == 0 && message.outputs.iter().all(|output| output.contents.is_some());
        if described != raw && !is_typed {
            return Err(Error::malformed(format!(
                "the answer describes {described} outputs and carries {raw}"
            )));
        }
        let raw = message.raw_output_contents.into_iter().map(Some).chain(std::iter::repeat(None));
        let outputs = message
            .outputs
            .into_iter()
            .zip(raw)
            .map(|(output, data)| {
                let malformed =
                    |problem: String| Error::malformed(format!("output `{}`: {problem}", output.name));
                let datatype = DataType::from_name(&output.datatype)
                    .ok_or_else(|| malformed(format!("unknown datatype {:?}", output.datatype)))?;
                let shape = output.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>();
                let shape = shape.map_err(|_| malformed(format!("impossible shape {:?}", output.shape)))?;
                let data = match (data, output.contents) {
                    (Some(data), _) => data,
                    (None, contents) => raw_bytes(datatype, contents.unwrap_or_default())
                        .map_err(|error| malformed(error.to_string()))?,
                };
                let tensor =
                    Tensor::new(datatype, shape, data).map_err(|error| malformed(error.to_string()))?;
                Ok((output.name, tensor))
            })
            .collect::<Result<_>>()?;
        let parameters = message.parameters.into_iter();
        Ok(Self {
            model_name: message.model_name,
            model_version: message.model_version,
            id: message.id,
            parameters: parameters
                .filter_map(|(name, value)| Some((name, value.parameter_choice?)))
                .collect(),
            outputs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::InferTensorContents;
    use crate::proto::model_infer_response::InferOutputTensor;

    fn message(datatype: &str, shape: &[i64], bytes: usize) -> ModelInferResponse {
        let output = InferOutputTensor {
            name: "y".into(),
            datatype: datatype.into(),
            shape: shape.into(),
            ..Default::default()
        };
        ModelInferResponse {
            outputs: vec![output],
            raw_output_contents: vec![vec![0; bytes].into()],
            ..Default::default()
        }
    }

    #[test]
    fn tensors_come_by_name_and_lies_are_refused() {
        let answer = InferResponse::from_message(message("FP32", &[1, 2], 8)).unwrap();
        assert_eq!(answer.output("y").unwrap().shape(), [1, 2]);
        assert!(answer.output("z").is_none());
        for bad in [message("FP31", &[1, 2], 8), message("FP32", &[-1, 2], 8), message("FP32", &[1, 2], 7)] {
            assert_eq!(InferResponse::from_message(bad).unwrap_err().code(), crate::Code::Internal);
        }
        let none = ModelInferResponse { raw_output_contents: vec![], ..message("FP32", &[1, 2], 8) };
        assert!(InferResponse::from_message(none).is_err());
    }

    #[test]
    fn typed_answers_are_read_as_well() {
        let mut typed = ModelInferResponse { raw_output_contents: vec![], ..message("FP32", &[1, 2], 8) };
        let contents = InferTensorContents { fp32_contents: vec![1.5, -2.0], ..Default::default() };
        typed.outputs[0].contents = Some(contents);
        let answer = InferResponse::from_message(typed.clone()).unwrap();
        assert_eq!(answer.output("y").unwrap().f32_values().collect::<Vec<_>>(), [1.5, -2.0]);
        typed.outputs[0].shape = vec![1, 3];
        assert_eq!(InferResponse::from_message(typed).unwrap_err().code(), crate::Code::Internal);
    }
}
