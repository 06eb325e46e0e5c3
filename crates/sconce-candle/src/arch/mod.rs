//! One file or folder a family. Each has a plan (checked, not loaded), a model (loaded), and its forward pass.

mod add_sub;
mod bert;
mod ensemble;
pub(crate) mod fields;
mod identity;
mod on_candle;
mod on_cpu;
mod remote;
mod scores;
mod tabular;
mod vision;

pub(crate) use on_candle::Target;
pub use remote::Remote;
pub(crate) use vision::MODEL_TYPES as VISION_MODEL_TYPES;

use crate::Problems;
use crate::files::Folder;
use crate::keys::Keys;
use crate::{Family, ModelSettings};
use sconce_core::{DeviceId, Ensemble, LoadedModel, Signature};
use std::sync::Arc;

/// A package of some family, checked and ready to be loaded.
#[derive(Debug)]
pub(crate) enum Plan {
    Identity(identity::Plan),
    AddSub(add_sub::Plan),
    Tabular(tabular::Plan),
    Bert(Box<bert::Plan>),
    Vision(Box<vision::Plan>),
    Ensemble(Ensemble),
    Remote(Box<Remote>),
}

/// Checks the family's own keys and files.
pub(crate) fn open(
    folder: &Folder,
    settings: &ModelSettings,
    keys: &mut Keys,
    problems: &mut Problems,
) -> Option<(Signature, Plan)> {
    match settings.family {
        Family::Identity => {
            identity::Plan::open(keys, problems).map(|p| (p.signature(settings), Plan::Identity(p)))
        }
        Family::AddSub => {
            add_sub::Plan::open(keys, problems).map(|p| (p.signature(settings), Plan::AddSub(p)))
        }
        Family::Tabular => tabular::Plan::open(folder, settings, keys, problems)
            .map(|p| (p.signature(settings), Plan::Tabular(p))),
        Family::Bert => bert::Plan::open(folder, settings, keys, problems)
            .map(|p| (p.signature(settings), Plan::Bert(Box::new(p)))),
        Family::Vision => vision::Plan::open(folder, settings, problems)
            .map(|p| (p.signature(settings), Plan::Vision(Box::new(p)))),
        Family::Ensemble => {
            ensemble::open(settings, keys, problems).map(|p| (p.signature().clone(), Plan::Ensemble(p)))
        }
        Family::Remote => Remote::open(folder, settings, keys, problems)
            .map(|p| (p.signature(settings), Plan::Remote(Box::new(p)))),
    }
}

/// Reads the weights and makes the model.
pub(crate) fn load(
    plan: Plan,
    settings: &ModelSettings,
    signature: Signature,
) -> Result<Arc<dyn LoadedModel>, String> {
    Ok(match plan {
        Plan::Identity(plan) => Arc::new(identity::Model::new(plan, signature)),
        Plan::AddSub(plan) => Arc::new(add_sub::Model::new(plan, signature)),
        Plan::Tabular(plan) => Arc::new(tabular::Model::load(plan, settings, signature)?),
        Plan::Bert(plan) => Arc::new(bert::Model::load(*plan, settings, signature)?),
        Plan::Vision(plan) => Arc::new(vision::Model::load(*plan, settings, signature)?),
        Plan::Ensemble(_) => return Err("an ensemble is no model by itself: its steps are".to_owned()),
        Plan::Remote(_) => return Err("a remote model is not here to be loaded".to_owned()),
    })
}

/// A model that needs no package: `identity` (INPUT0 FP32 [-1, -1] → OUTPUT0) or `add_sub` (INPUT0 and INPUT1
/// FP32 [-1, 16] → OUTPUT0, their sum, and OUTPUT1, their difference). `None` for any other name.
pub fn builtin(name: &str) -> Option<(ModelSettings, Arc<dyn LoadedModel>)> {
    match name {
        "identity" => {
            let settings = ModelSettings::new(Family::Identity, DeviceId::Cpu);
            let plan = identity::Plan::default();
            let signature = plan.signature(&settings);
            Some((settings, Arc::new(identity::Model::new(plan, signature))))
        }
        "add_sub" => {
            let settings = ModelSettings::new(Family::AddSub, DeviceId::Cpu);
            let plan = add_sub::Plan::default();
            let signature = plan.signature(&settings);
            Some((settings, Arc::new(add_sub::Model::new(plan, signature))))
        }
        _ => None,
    }
}
