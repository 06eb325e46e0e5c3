//! What the catalogue stores. Records are JSON: a newer program may add fields, which an older record then lacks and an
//! older program ignores; so every field that was not there from the first has a default.

use crate::{Digest, Gates};
use sconce_core::{ModelName, ModelVersion};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who changes something, and why: part of every audit entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// Who. 1 to 256 bytes.
    pub actor: String,
    /// Why. Up to 1,024 bytes, and not empty where something is forced.
    pub reason: String,
}

impl By {
    /// `actor`, for `reason`; checked when it is used.
    pub fn new(actor: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { actor: actor.into(), reason: reason.into() }
    }
}

/// A model: what its versions have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its name.
    pub name: ModelName,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For programs.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// The highest number a version ever had; a number is not given twice, even if its version was deleted.
    pub highest_version: u64,
    /// How many versions there are.
    #[serde(default)]
    pub version_count: u64,
    /// What traffic is routed by.
    #[serde(default)]
    pub aliases: BTreeMap<String, Alias>,
    /// What a version must meet to take an alias.
    #[serde(default)]
    pub gates: Gates,
    /// Whether nothing of it is to be in memory, whatever is said of its versions.
    #[serde(default)]
    pub unloaded: bool,
}

/// A name for a version that can move to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The version it means.
    pub version: ModelVersion,
    /// What it meant before, newest last; at most [`limits::HISTORY`](crate::limits::HISTORY). Deleted versions leave it.
    #[serde(default)]
    pub previous: Vec<ModelVersion>,
}

/// A version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its model.
    pub model: ModelName,
    /// Its number.
    pub version: ModelVersion,
    /// A name for people: a semantic version, unique in the model.
    #[serde(default)]
    pub label: Option<String>,
    /// What has become of it.
    pub state: VersionState,
    /// Whether it should run.
    #[serde(default)]
    pub wanted: Wanted,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Who registered it.
    pub created_by: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For programs.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// How well it did when it was evaluated (accuracy, auc, …); finite.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Where it comes from.
    #[serde(default)]
    pub lineage: Lineage,
    /// What it takes and gives.
    #[serde(default)]
    pub signature: SignatureRecord,
    /// What it consists of, by path.
    pub files: Vec<FileRecord>,
    /// Memory it took at its last load, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Monitors: name and what each refers to.
    #[serde(default)]
    pub monitors: BTreeMap<String, String>,
}

/// What the catalogue knows of a version's state. Whether it is loading or ready is the server's to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VersionState {
    /// It can be loaded.
    Registered,
    /// Its last load failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// Kept, but not to be loaded and not to be aliased.
    Archived,
}

/// Whether a version should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// When an alias means it, or a request asks for it.
    #[default]
    Auto,
    /// Always.
    Loaded,
    /// Never.
    Unloaded,
}

/// Where a version comes from: free text, but for the parent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Lineage {
    /// The version of the same model it was made from.
    pub parent: Option<ModelVersion>,
    /// What it was trained on.
    pub training_data: String,
    /// Who trained it.
    pub trained_by: String,
    /// When it was trained.
    pub trained_at: String,
    /// What it was imported from.
    pub source: String,
}

/// What a version takes and gives, as far as compatibility needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SignatureRecord {
    /// Inputs of every form.
    pub inputs: Vec<TensorRecord>,
    /// Outputs.
    pub outputs: Vec<TensorRecord>,
    /// The most rows of a request.
    pub max_batch_size: u64,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// The element type's name in the protocol, such as `FP32`.
    pub datatype: String,
    /// Sizes; -1 where any goes.
    pub shape: Vec<i64>,
    /// Whether a request may leave it out.
    #[serde(default)]
    pub optional: bool,
    /// The form of input it belongs to; 0 for outputs.
    #[serde(default)]
    pub form: u32,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it lies in the version's folder: relative, with `/` between names.
    pub path: String,
    /// BLAKE3 of its content.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// A version to be registered. Files come with an [`Import`](crate::Import).
#[derive(Debug, Clone, PartialEq)]
pub struct NewVersion {
    /// Its model, which is made if it does not exist.
    pub model: ModelName,
    /// Its number, higher than any the model ever had; `None`: the next.
    pub version: Option<ModelVersion>,
    /// See [`VersionRecord::label`].
    pub label: Option<String>,
    /// For people.
    pub description: String,
    /// For programs.
    pub tags: BTreeMap<String, String>,
    /// See [`VersionRecord::metrics`].
    pub metrics: BTreeMap<String, f64>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// What it takes and gives.
    pub signature: SignatureRecord,
    /// Whether it should run.
    pub wanted: Wanted,
    /// See [`VersionRecord::monitors`].
    pub monitors: BTreeMap<String, String>,
}

impl NewVersion {
    /// The next version of `model`, with nothing said about it.
    pub fn new(model: ModelName) -> Self {
        Self {
            model,
            version: None,
            label: None,
            description: String::new(),
            tags: BTreeMap::new(),
            metrics: BTreeMap::new(),
            lineage: Lineage::default(),
            signature: SignatureRecord::default(),
            wanted: Wanted::Auto,
            monitors: BTreeMap::new(),
        }
    }
}

/// What to say of a model. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelUpdate {
    /// The new description.
    pub description: Option<String>,
    /// All tags from now on.
    pub tags: Option<BTreeMap<String, String>>,
    /// What versions must meet from now on to take an alias.
    pub gates: Option<Gates>,
}

/// What to say of a version. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VersionUpdate {
    /// The new description.
    pub description: Option<String>,
    /// All tags from now on.
    pub tags: Option<BTreeMap<String, String>>,
    /// Added to the metrics there are; those of the same name are replaced.
    pub metrics: BTreeMap<String, f64>,
    /// Metrics taken away before that; each must be there.
    pub remove_metrics: Vec<String>,
    /// All monitors from now on: name and what each refers to.
    pub monitors: Option<BTreeMap<String, String>>,
}

/// How a load of a version ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in memory, and takes this much.
    Loaded {
        /// Bytes, on host and device together.
        memory_bytes: u64,
    },
    /// It could not be loaded.
    Failed {
        /// Why; cut to [`limits::REASON_BYTES`](crate::limits::REASON_BYTES).
        reason: String,
    },
}

/// An alias that is to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasMove {
    /// Which.
    pub alias: String,
    /// What it is to mean.
    pub version: ModelVersion,
    /// What it means now, if that matters; `Some(None)`: it does not exist.
    pub expected: Option<Option<ModelVersion>>,
    /// Although a gate was not met; needs a reason.
    pub forced: bool,
}

/// What a change of an alias did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// What the alias meant before.
    pub before: Option<ModelVersion>,
    /// What it means now.
    pub after: Option<ModelVersion>,
    /// The routing generation from which this holds.
    pub generation: u64,
}
