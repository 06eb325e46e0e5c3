//! ViT and ResNet image classifiers: a plan, a loaded model, and a forward pass on our kernels.

mod cpu;
mod resnet;
mod vit;

use super::fields::{Fields, class_names};
use super::on_cpu::check_inner;
use super::scores::Scores;
use crate::backend::Pipeline;
use crate::device::Engine;
use crate::files::Folder;
use crate::process::image::{COLOURS, Images};
use crate::weights::Weights;
use crate::{ModelSettings, Precision, Problems};
use sconce_core::{
    Backend, DataType, DeviceId, Inputs, LoadedModel, ModelInput, Preparation, Result, Signature, TensorSpec,
};
use serde_json::Value;
use std::sync::Arc;

/// What `config.json` may say as `model_type`.
pub(crate) const MODEL_TYPES: [&str; 2] = ["vit", "resnet"];

#[derive(Debug)]
enum Config {
    Vit(vit::Config),
    Resnet(resnet::Config),
}

/// An image classifier, as a Hugging Face folder holds it.
#[derive(Debug)]
pub(crate) struct Plan {
    config: Config,
    weights: Weights,
    images: Images,
    scores: Scores,
    labels: Arc<[String]>,
}

impl Plan {
    pub(crate) fn open(folder: &Folder, settings: &ModelSettings, problems: &mut Problems) -> Option<Self> {
        check_engine(settings, problems);
        let before = problems.count();
        let Some(json) = folder.json("config.json", problems) else {
            if problems.count() == before {
                problems.push("config.json: no such file: the vision family needs it");
            }
            return None;
        };
        let mut fields = Fields { file: "config.json", json: &json, problems };
        let config = match fields.get("model_type").and_then(Value::as_str) {
            Some("vit") => vit::Config::read(&mut fields).map(Config::Vit),
            Some("resnet") => resnet::Config::read(&mut fields).map(Config::Resnet),
            _ => {
                fields.wrong("model_type", &MODEL_TYPES.join(" or "));
                None
            }
        };
        let (labels, multi_label) = (fields.labels(), fields.multi_label());
        if fields.size("num_channels", 1, 64, Some(COLOURS as u64)) != COLOURS {
            fields.wrong("num_channels", "3");
        }
        let processor = match &config {
            Some(Config::Resnet(_)) => "ConvNextImageProcessor",
            _ => "ViTImageProcessor",
        };
        let images = Images::open(folder, processor, problems);
        let weights = Weights::open(folder, problems);
        let (config, weights) = (config?, weights?);
        let ((classifier, width), inner) = match &config {
            Config::Vit(config) => (config.check(&weights, problems), config.inner()),
            Config::Resnet(config) => (config.check(&weights, problems), config.inner()),
        };
        check_inner(settings, inner, problems);
        let classes = match weights.shape(&format!("{classifier}.weight")) {
            Some(&[classes @ 1..=usize::MAX, _]) => classes,
            _ => {
                problems.push(format!("weights: tensor `{classifier}.weight` [classes, {width}] is missing"));
                return None;
            }
        };
        weights.check(&format!("{classifier}.weight"), &[classes, width], problems);
        weights.check(&format!("{classifier}.bias"), &[classes], problems);
        let labels = class_names(settings, labels.as_ref(), classes, problems);
        let images = images?;
        if let Config::Vit(config) = &config {
            config.check_sides(images.sides(), problems);
        }
        // One logit says yes or no, as Hugging Face's pipelines read it.
        let scores = if multi_label || classes == 1 { Scores::Sigmoid } else { Scores::Softmax };
        Some(Self { config, weights, images, scores, labels })
    }

    pub(crate) fn signature(&self, settings: &ModelSettings) -> Signature {
        let output = TensorSpec {
            labels: Some(Arc::clone(&self.labels)),
            ..TensorSpec::new("probabilities", DataType::Fp32, &[None, Some(self.labels.len())])
        };
        Signature {
            inputs: self.images.inputs(),
            outputs: vec![output],
            max_batch_size: settings.max_batch_size,
        }
    }
}

/// Reports a device or precision that our kernels do not compute.
fn check_engine(settings: &ModelSettings, problems: &mut Problems) {
    if settings.device != DeviceId::Cpu {
        let got = settings.device;
        problems.push(format!("model.toml: `device`: the vision family runs on `cpu` so far, got `{got}`"));
    }
    if settings.precision == Precision::F16 {
        problems.push("model.toml: `dtype`: the vision family runs in f32, bf16 or int8 so far, got f16");
    }
}

/// A loaded image classifier.
pub(crate) struct Model {
    network: Arc<cpu::Network>,
    images: Images,
    signature: Signature,
    threads: usize,
}

impl Model {
    pub(crate) fn load(plan: Plan, settings: &ModelSettings, signature: Signature) -> Result<Self, String> {
        let network = match Engine::of(settings)? {
            Engine::Cpu(precision) => Arc::new(cpu::Network::load(&plan, precision)?),
            Engine::Candle(_) => {
                return Err("the vision family runs on `cpu` in f32, bf16 or int8 so far".to_owned());
            }
        };
        Ok(Self { network, images: plan.images, signature, threads: settings.threads })
    }
}

impl LoadedModel for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn memory_bytes(&self) -> usize {
        self.network.bytes()
    }

    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.images.preparation(inputs)
    }

    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        self.images.prepare(inputs)
    }

    fn instance(&self) -> Result<Box<dyn Backend>> {
        let instance = cpu::Instance::new(Arc::clone(&self.network), self.threads);
        Ok(Box::new(Pipeline::new(instance, self.threads)?))
    }
}
