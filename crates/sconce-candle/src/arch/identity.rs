use crate::backend::{Forward, Pipeline};
use crate::keys::Keys;
use crate::{ModelSettings, Problems};
use sconce_core::{
    Backend, Batch, BatchOutput, Checkpoint, DataType, Error, InferOutput, Inputs, LoadedModel, ModelInput,
    Result, Signature, TensorSpec, abbreviate,
};
use std::time::Duration;

/// The longest `delay_ms`.
const MAX_DELAY_MS: f64 = 60_000.0;

/// Gives its input back, whatever is in it, without copying it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    datatype: DataType,
    delay: Duration,
    /// Whether batches panic, so that tests can see what becomes of them.
    panics: bool,
    /// Only batches that begin with this number are delayed, or panic.
    only_for: Option<f64>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { datatype: DataType::Fp32, delay: Duration::ZERO, panics: false, only_for: None }
    }
}

impl Plan {
    pub(crate) fn open(keys: &mut Keys, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let mut plan = Self { delay: take_delay(keys, problems), ..Self::default() };
        plan.panics = keys.take("panics", problems).unwrap_or_default();
        plan.only_for = keys.take("only_for", problems);
        if let Some(name) = keys.take::<String>("datatype", problems) {
            let unknown = || {
                let expected = DataType::ALL.map(DataType::name).join(", ");
                keys.message("datatype", &format!("expected one of {expected}, got {:?}", abbreviate(&name)))
            };
            let parsed = DataType::from_name(&name).ok_or_else(unknown);
            plan.datatype = problems.keep(parsed).unwrap_or(plan.datatype);
        }
        (problems.count() == before).then_some(plan)
    }

    pub(crate) fn signature(&self, settings: &ModelSettings) -> Signature {
        let spec =
            |name| TensorSpec { allow_nan: true, ..TensorSpec::new(name, self.datatype, &[None, None]) };
        Signature {
            inputs: vec![spec("INPUT0")],
            outputs: vec![spec("OUTPUT0")],
            max_batch_size: settings.max_batch_size,
        }
    }
}

/// Takes `delay_ms`: how long every batch sleeps, so that tests can fill a queue.
pub(crate) fn take_delay(keys: &mut Keys, problems: &mut Problems) -> Duration {
    let ms = keys.take_in("delay_ms", 0.0..=MAX_DELAY_MS, problems).unwrap_or(0.0);
    Duration::from_secs_f64(ms / 1000.0)
}

/// Sleeps for `delay`, if there is one.
pub(crate) fn sleep(delay: Duration) {
    if !delay.is_zero() {
        std::thread::sleep(delay);
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

    fn prepare(&self, mut inputs: Inputs) -> Result<ModelInput> {
        let rows = inputs.rows();
        let tensor = inputs.take(0).ok_or_else(|| Error::invalid("input `INPUT0` is missing"))?;
        Ok(ModelInput { tensors: vec![tensor], rows, row_tokens: Vec::new() })
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(Pipeline::new(Echo { plan: self.plan.clone() }, 1)?))
    }
}

struct Echo {
    plan: Plan,
}

impl Forward for Echo {
    type Pending = BatchOutput;

    fn launch(&mut self, batch: Batch, _: Checkpoint<'_>) -> Result<BatchOutput> {
        let first = batch.inputs.first().and_then(|input| input.tensors.first());
        let begins_with =
            first.filter(|it| it.datatype() == DataType::Fp32).and_then(|it| it.f32_values().next());
        if self.plan.only_for.is_none_or(|only| begins_with.map(f64::from) == Some(only)) {
            sleep(self.plan.delay);
            if self.plan.panics {
                std::panic::resume_unwind(Box::new("it was told to panic"));
            }
        }
        let outputs =
            batch.inputs.into_iter().map(|input| Ok(InferOutput { tensors: input.tensors })).collect();
        Ok(BatchOutput { outputs, padding: 0 })
    }

    fn finish(&mut self, pending: BatchOutput) -> Result<BatchOutput> {
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use crate::builtin;
    use sconce_core::{Batch, DataType, Tensor};

    #[test]
    fn gives_back_the_very_bytes_nan_included() {
        let (settings, model) = builtin("identity").unwrap();
        assert_eq!((settings.max_batch_size, model.memory_bytes()), (64, 0));
        let data: bytes::Bytes = [f32::NAN, 1.0, f32::INFINITY, -0.0].map(f32::to_le_bytes).concat().into();
        let tensor = Tensor::new(DataType::Fp32, vec![2, 2], data.clone()).unwrap();
        let input = model.prepare(model.signature().check([("INPUT0", tensor.clone())]).unwrap()).unwrap();
        let mut backend = model.instance().unwrap();
        backend.submit(Batch { inputs: vec![input] }, &|| {}).unwrap();
        let output = backend.collect().unwrap().outputs.remove(0).unwrap();
        assert_eq!(output.tensors, [tensor]);
        assert_eq!(output.tensors[0].data().as_ptr(), data.as_ptr());
        assert!(backend.collect().is_err());
        assert!(builtin("nothing").is_none());
    }
}
