use super::identity::{sleep, take_delay};
use crate::backend::{Forward, Pipeline};
use crate::keys::Keys;
use crate::{ModelSettings, Problems};
use sconce_core::{
    Backend, Batch, BatchOutput, Checkpoint, DataType, Error, InferOutput, Inputs, LoadedModel, ModelInput,
    Result, Signature, Tensor, TensorSpec,
};
use std::time::Duration;

/// Columns of its inputs and outputs.
const WIDTH: usize = 16;

/// Adds and subtracts two inputs. Integers wrap around.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    datatype: DataType,
    delay: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { datatype: DataType::Fp32, delay: Duration::ZERO }
    }
}

impl Plan {
    pub(crate) fn open(keys: &mut Keys, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let words = [DataType::Fp32, DataType::Int32].map(|datatype| (datatype.name(), datatype));
        let datatype = keys.take_word("datatype", &words, problems).unwrap_or(DataType::Fp32);
        let plan = Self { datatype, delay: take_delay(keys, problems) };
        (problems.count() == before).then_some(plan)
    }

    pub(crate) fn signature(&self, settings: &ModelSettings) -> Signature {
        let spec = |name: &str| TensorSpec {
            allow_nan: true,
            ..TensorSpec::new(name, self.datatype, &[None, Some(WIDTH)])
        };
        Signature {
            inputs: vec![spec("INPUT0"), spec("INPUT1")],
            outputs: vec![spec("OUTPUT0"), spec("OUTPUT1")],
            max_batch_size: settings.max_batch_size,
        }
    }
}

pub(crate) struct Model {
    plan: Plan,
    signature: Signature,
}

impl Model {
    pub(crate) fn new(plan: Plan, signature: Signature) -> Self {
        Self { plan, signature }
    }
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        0
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        let rows = inputs.rows();
        Ok(ModelInput { tensors: inputs.into_given().collect(), rows, row_tokens: Vec::new() })
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Pipeline::new(AddSub { plan: self.plan.clone() }, 1)?))
    }
}

struct AddSub {
    plan: Plan,
}

impl Forward for AddSub {
    type Pending = BatchOutput;

    fn launch(&mut self, batch: Batch, _: Checkpoint<'_>) -> Result<BatchOutput> {
        sleep(self.plan.delay);
        let outputs = batch.inputs.iter().map(|input| add_sub(&input.tensors)).collect();
        Ok(BatchOutput { outputs, padding: 0 })
    }

    fn finish(&mut self, pending: BatchOutput) -> Result<BatchOutput> {
        Ok(pending)
    }
}

fn add_sub(tensors: &[Tensor]) -> Result<InferOutput> {
    let [a, b] = tensors else { return Err(Error::internal("add_sub: expected two inputs")) };
    let (sum, difference) = match a.datatype() {
        DataType::Int32 => (
            zip(a, b, |a, b| i32::from_le_bytes(a).wrapping_add(i32::from_le_bytes(b)).to_le_bytes()),
            zip(a, b, |a, b| i32::from_le_bytes(a).wrapping_sub(i32::from_le_bytes(b)).to_le_bytes()),
        ),
        _ => (
            zip(a, b, |a, b| (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes()),
            zip(a, b, |a, b| (f32::from_le_bytes(a) - f32::from_le_bytes(b)).to_le_bytes()),
        ),
    };
    Ok(InferOutput { tensors: vec![sum?, difference?] })
}

fn zip(a: &Tensor, b: &Tensor, op: impl Fn([u8; 4], [u8; 4]) -> [u8; 4]) -> Result<Tensor> {
    let mut data = vec![0; a.data().len()];
    let pairs = a.data().as_chunks::<4>().0.iter().zip(b.data().as_chunks::<4>().0);
    for (out, (a, b)) in data.as_chunks_mut::<4>().0.iter_mut().zip(pairs) {
        *out = op(*a, *b);
    }
    Tensor::new(a.datatype(), a.shape().to_vec(), data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_around() {
        let data = |values: [i32; 2]| values.map(i32::to_le_bytes).concat().into();
        let tensor = |values| Tensor::new(DataType::Int32, vec![1, 2], data(values)).unwrap();
        let output = add_sub(&[tensor([i32::MAX, 5]), tensor([1, 7])]).unwrap();
        assert_eq!(output.tensors, [tensor([i32::MIN, 12]), tensor([i32::MAX - 1, -2])]);
    }

    #[test]
    fn adds_and_subtracts_floats() {
        let (_, model) = crate::builtin("add_sub").unwrap();
        let tensor = |value: f32| {
            let data = [value; 32].map(f32::to_le_bytes).concat().into();
            Tensor::new(DataType::Fp32, vec![2, WIDTH], data).unwrap()
        };
        let inputs = model.signature().check([("INPUT1", tensor(0.5)), ("INPUT0", tensor(2.0))]).unwrap();
        let mut backend = model.instance().unwrap();
        backend.submit(Batch { inputs: vec![model.prepare(inputs).unwrap()] }, &|| {}).unwrap();
        let output = backend.collect().unwrap().outputs.remove(0).unwrap();
        assert_eq!(output.tensors, [tensor(2.5), tensor(1.5)]);
    }
}
