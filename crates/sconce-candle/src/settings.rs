use crate::Problems;
use crate::device;
use crate::keys::Keys;
use sconce_core::{DataPolicy, DeferSpec, DeviceId, Keep, abbreviate};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What kind of model a package holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Gives its input back.
    Identity,
    /// Sum and difference of two inputs.
    AddSub,
    /// Dense layers over encoded columns.
    Tabular,
    /// BERT, DistilBERT, RoBERTa and XLM-RoBERTa: sentence embedding or sequence classification.
    Bert,
    /// ViT and ResNet: image classification.
    Vision,
    /// Other models, one after another or side by side.
    Ensemble,
    /// A model that another server answers.
    Remote,
}

impl Family {
    pub(crate) const WORDS: [(&str, Self); 7] = [
        ("identity", Self::Identity),
        ("add_sub", Self::AddSub),
        ("tabular", Self::Tabular),
        ("bert", Self::Bert),
        ("vision", Self::Vision),
        ("ensemble", Self::Ensemble),
        ("remote", Self::Remote),
    ];

    /// The name in `model.toml` and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::AddSub => "add_sub",
            Self::Tabular => "tabular",
            Self::Bert => "bert",
            Self::Vision => "vision",
            Self::Ensemble => "ensemble",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a model computes in. Its outputs are FP32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of an f32.
    Bf16,
    /// 16 bits, IEEE 754 half precision.
    F16,
    /// Dense layers in 8-bit integers, quantised a channel (weights) and a row (activations) at a time; the rest in f32. On the
    /// CPU alone.
    Int8,
}

impl Precision {
    const WORDS: [(&str, Self); 4] =
        [("f32", Self::F32), ("bf16", Self::Bf16), ("f16", Self::F16), ("int8", Self::Int8)];

    /// The name in `model.toml` and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// How a model is served: what `model.toml` says, or else the defaults of its family.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// What kind of model it is.
    pub family: Family,
    /// One line for people.
    pub description: String,
    /// The most rows a request, and a batch, may have. Default 64, of images 16, of a remote 4096.
    pub max_batch_size: usize,
    /// The most tokens a batch may have, for models that have tokens. Default 16384.
    pub max_batch_tokens: Option<usize>,
    /// How long the oldest request of a batch may wait for company. Default 0.
    pub max_queue_delay: Duration,
    /// The most requests that may wait. Default 1024.
    pub queue_depth: usize,
    /// When requests have waited longer than this for as long as this, new ones that would are refused. Default 1 s; zero:
    /// never.
    pub queue_target: Duration,
    /// The deadline of a request whose caller gave none. Default none.
    pub default_timeout: Option<Duration>,
    /// How many instances run side by side; the server decides when it is not given.
    pub instances: Option<usize>,
    /// Threads of each instance. Default 1.
    pub threads: usize,
    /// Its share of the device's time while other models want theirs, relative to their weights. Default 1.
    pub weight: f32,
    /// Whether each instance has `threads` cores of its own to run on. Default no.
    pub pin_cores: bool,
    /// Where it runs.
    pub device: DeviceId,
    /// What it computes in. Default f32.
    pub precision: Precision,
    /// The most bytes of answers that are kept for equal requests. Default none are.
    pub response_cache: Option<usize>,
    /// What of its tensors may leave the request path. Default nothing.
    pub data_policy: DataPolicy,
    /// The share of its requests that is logged, 0 to 1. Default what the server says.
    pub prediction_log: Option<f64>,
    /// The share of its predictions that is noted for feedback, 0 to 1. Default what the server says.
    pub feedback: Option<f64>,
    /// What is left to people. Default nothing.
    pub review: DeferSpec,
    /// The classes' names, if given.
    pub labels: Option<Vec<String>>,
    /// Figures about the model, such as its accuracy, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// Rows of a batch of images: each is as much work as a long text.
const DEFAULT_IMAGES: usize = 16;
/// The other server has a bound of its own.
const DEFAULT_REMOTE_ROWS: usize = 4096;
/// Token bound of a batch of the BERT family.
const DEFAULT_BATCH_TOKENS: usize = 16_384;
const MAX_DESCRIPTION_BYTES: usize = 4096;
const MAX_TIMEOUT_MS: f64 = 3_600_000.0;
const MAX_LABELS: usize = 1 << 20;
/// Bounds of `data_policy.max_tensor_bytes`.
const TENSOR_BYTES: RangeInclusive<usize> = 1..=64 << 20;
/// Bounds of `response_cache.max_bytes`.
const CACHE_BYTES: RangeInclusive<usize> = 1 << 10..=16 << 30;

impl ModelSettings {
    /// The defaults of `family` on `device`.
    pub(crate) fn new(family: Family, device: DeviceId) -> Self {
        let has_tokens = family == Family::Bert;
        Self {
            family,
            description: String::new(),
            max_batch_size: match family {
                Family::Vision => DEFAULT_IMAGES,
                Family::Remote => DEFAULT_REMOTE_ROWS,
                _ => 64,
            },
            max_batch_tokens: has_tokens.then_some(DEFAULT_BATCH_TOKENS),
            max_queue_delay: Duration::ZERO,
            queue_depth: 1024,
            queue_target: Duration::from_secs(1),
            default_timeout: None,
            instances: None,
            threads: 1,
            weight: 1.0,
            pin_cores: false,
            device,
            precision: Precision::F32,
            response_cache: None,
            data_policy: DataPolicy::default(),
            prediction_log: None,
            feedback: None,
            review: DeferSpec::default(),
            labels: None,
            metrics: BTreeMap::new(),
        }
    }

    /// Takes the keys every family has out of `keys`.
    pub(crate) fn read(family: Family, device: DeviceId, keys: &mut Keys, problems: &mut Problems) -> Self {
        let mut settings = Self::new(family, device);
        if let Some(text) = keys.take::<String>("description", problems) {
            if text.len() > MAX_DESCRIPTION_BYTES {
                let got = format!("expected at most {MAX_DESCRIPTION_BYTES} bytes, got {}", text.len());
                problems.push(keys.message("description", &got));
            }
            settings.description = text;
        }
        settings.data_policy = read_policy(keys, problems);
        settings.prediction_log = read_share("prediction_log", "sample", keys, problems);
        settings.feedback = read_share("feedback", "sample", keys, problems);
        settings.review = keys.take("review", problems).unwrap_or_default();
        let of_review = settings.review.problems().into_iter();
        of_review.for_each(|problem| problems.push(format!("model.toml: review: {problem}")));
        // The rest is about running a model, which an ensemble leaves to its steps; answers are kept a step at a time as well,
        // for other versions may answer the next request.
        if family == Family::Ensemble {
            settings.read_rows(keys, problems);
            settings.read_timeout(keys, problems);
            settings.metrics = keys.take("metrics", problems).unwrap_or_default();
            return settings;
        }
        if family == Family::Remote {
            settings.read_rows(keys, problems);
            settings.read_waiting(keys, problems);
            settings.metrics = keys.take("metrics", problems).unwrap_or_default();
            return settings;
        }
        settings.read_bounds(keys, problems);
        settings.read_device(keys, problems);
        if let Some(precision) = keys.take_word("dtype", &Precision::WORDS, problems) {
            settings.precision = precision;
        }
        if settings.pin_cores && settings.device != DeviceId::Cpu {
            let got = format!(
                "instances have cores of their own on device `cpu` alone, not on `{}`",
                settings.device
            );
            problems.push(keys.message("pin_cores", &got));
        }
        if settings.precision == Precision::Int8 && settings.device != DeviceId::Cpu {
            let got = format!("int8 runs on device `cpu` alone, got `{}`", settings.device);
            problems.push(keys.message("dtype", &got));
        }
        settings.response_cache = read_cache(keys, problems);
        settings.labels = keys.take("labels", problems);
        if let Some(labels) = settings.labels.as_ref().filter(|labels| labels.len() > MAX_LABELS) {
            let got = format!("expected at most {MAX_LABELS} labels, got {}", labels.len());
            problems.push(keys.message("labels", &got));
        }
        settings.metrics = keys.take("metrics", problems).unwrap_or_default();
        settings
    }

    fn read_rows(&mut self, keys: &mut Keys, problems: &mut Problems) {
        if let Some(rows) = keys.take_in("max_batch_size", 1..=65_536, problems) {
            self.max_batch_size = rows;
        }
    }

    fn read_bounds(&mut self, keys: &mut Keys, problems: &mut Problems) {
        self.read_rows(keys, problems);
        if self.family == Family::Bert
            && let Some(tokens) = keys.take_in("max_batch_tokens", 1..=1 << 24, problems)
        {
            self.max_batch_tokens = Some(tokens);
        }
        if let Some(ms) = keys.take_in("max_queue_delay_ms", 0.0..=60_000.0, problems) {
            self.max_queue_delay = Duration::from_secs_f64(ms / 1000.0);
        }
        self.read_waiting(keys, problems);
        if let Some(ms) = keys.take_in("queue_target_ms", 0.0..=60_000.0, problems) {
            self.queue_target = Duration::from_secs_f64(ms / 1000.0);
        }
        self.instances = keys.take_in("instances", 1..=1024, problems);
        if let Some(threads) = keys.take_in("threads", 1..=1024, problems) {
            self.threads = threads;
        }
        if let Some(weight) = keys.take_in("weight", 0.001..=1000.0, problems) {
            self.weight = weight;
        }
        if let Some(pin) = keys.take("pin_cores", problems) {
            self.pin_cores = pin;
        }
    }

    fn read_waiting(&mut self, keys: &mut Keys, problems: &mut Problems) {
        if let Some(requests) = keys.take_in("queue_depth", 1..=1 << 20, problems) {
            self.queue_depth = requests;
        }
        self.read_timeout(keys, problems);
    }

    fn read_timeout(&mut self, keys: &mut Keys, problems: &mut Problems) {
        if let Some(ms) = keys.take::<f64>("default_timeout_ms", problems) {
            if ms > 0.0 && ms <= MAX_TIMEOUT_MS {
                self.default_timeout = Some(Duration::from_secs_f64(ms / 1000.0));
            } else {
                let got = format!("expected more than 0 to {MAX_TIMEOUT_MS}, got {ms}");
                problems.push(keys.message("default_timeout_ms", &got));
            }
        }
    }

    fn read_device(&mut self, keys: &mut Keys, problems: &mut Problems) {
        if let Some(text) = keys.take::<String>("device", problems) {
            let parsed = text.parse().map_err(|e| format!("model.toml: {e}"));
            self.device = problems.keep(parsed).unwrap_or(self.device);
        }
        problems.keep(device::check_device(self.device).map_err(|e| e.to_string()));
    }
}

/// Takes `data_policy`: a word, or a table that says more.
fn read_policy(keys: &mut Keys, problems: &mut Problems) -> DataPolicy {
    let Some(value) = keys.take::<toml::Value>("data_policy", problems) else { return DataPolicy::default() };
    let table = match value {
        toml::Value::Table(table) => table,
        value => {
            let policy = value.as_str().and_then(DataPolicy::of_word);
            if policy.is_none() {
                let got = abbreviate(&value.to_string()).into_owned();
                let expected = format!("expected \"none\", \"outputs\", \"all\" or a table, got {got}");
                problems.push(keys.message("data_policy", &expected));
            }
            return policy.unwrap_or_default();
        }
    };
    let mut keys = Keys::new(table, "model.toml: data_policy");
    let mut policy = DataPolicy {
        inputs: read_keep("inputs", &mut keys, problems),
        outputs: read_keep("outputs", &mut keys, problems),
        ..DataPolicy::default()
    };
    if let Some(bytes) = keys.take_in("max_tensor_bytes", TENSOR_BYTES, problems) {
        policy.max_tensor_bytes = bytes;
    }
    keys.finish(problems);
    policy
}

fn read_keep(key: &'static str, keys: &mut Keys, problems: &mut Problems) -> Keep {
    match keys.take::<toml::Value>(key, problems) {
        None | Some(toml::Value::Boolean(false)) => Keep::Nothing,
        Some(toml::Value::Boolean(true)) => Keep::All,
        Some(value) => {
            let names = value.try_into::<BTreeSet<String>>();
            let expected = |_| keys.message(key, "expected true, false, or a list of names");
            problems.keep(names.map_err(expected)).map_or(Keep::Nothing, Keep::Only)
        }
    }
}

/// Takes a table of one key, which is a share.
fn read_share(
    table: &'static str,
    key: &'static str,
    keys: &mut Keys,
    problems: &mut Problems,
) -> Option<f64> {
    let mut keys = Keys::new(keys.take::<toml::Table>(table, problems)?, format!("model.toml: {table}"));
    let before = problems.count();
    let share = keys.take_in(key, 0.0..=1.0, problems);
    if share.is_none() && problems.count() == before {
        problems.push(keys.message(key, "expected a number from 0 to 1, got nothing"));
    }
    keys.finish(problems);
    share
}

/// Takes `[response_cache]`.
fn read_cache(keys: &mut Keys, problems: &mut Problems) -> Option<usize> {
    let table = keys.take::<toml::Table>("response_cache", problems)?;
    let mut keys = Keys::new(table, "model.toml: response_cache");
    let before = problems.count();
    let max_bytes = keys.take_in("max_bytes", CACHE_BYTES, problems);
    if max_bytes.is_none() && problems.count() == before {
        problems.push(keys.message("max_bytes", "expected a number of bytes, got nothing"));
    }
    keys.finish(problems);
    max_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_word_or_a_table_and_what_is_neither_keeps_nothing() {
        let read = |text: &str| {
            let (table, mut problems) = (text.parse().unwrap(), Problems::default());
            let mut keys = Keys::new(table, "model.toml");
            (read_policy(&mut keys, &mut problems), problems.count())
        };
        assert_eq!(read(""), (DataPolicy::default(), 0));
        assert_eq!(read("data_policy = 'all'"), (DataPolicy::of_word("all").unwrap(), 0));
        let (policy, 0) =
            read("[data_policy]\ninputs = ['age', 'sum']\noutputs = true\nmax_tensor_bytes = 9")
        else {
            panic!("a good policy has problems")
        };
        assert_eq!(policy.inputs, Keep::Only(["age", "sum"].map(str::to_owned).into()));
        assert_eq!((policy.outputs, policy.max_tensor_bytes), (Keep::All, 9));
        for bad in [
            "data_policy = 'some'",
            "data_policy = 5",
            "data_policy = true",
            "data_policy = { inputs = 'age' }",
            "data_policy = { outputs = [1] }",
            "data_policy = { max_tensor_bytes = 0 }",
            "data_policy = { hash = ['age'] }",
        ] {
            let (policy, problems) = read(bad);
            assert_eq!((policy.keeps_content(), problems), (false, 1), "{bad}");
        }
    }

    #[test]
    fn a_cache_has_a_bound() {
        let read = |text: &str| {
            let (table, mut problems) = (text.parse().unwrap(), Problems::default());
            let mut keys = Keys::new(table, "model.toml");
            (read_cache(&mut keys, &mut problems), problems.count())
        };
        assert_eq!(read(""), (None, 0));
        assert_eq!(read("[response_cache]\nmax_bytes = 1024"), (Some(1024), 0));
        assert_eq!(read("[response_cache]\nmax_bytes = 17179869184"), (Some(16 << 30), 0));
        for bad in ["", "max_bytes = 1023", "max_bytes = 17179869185", "max_bytes = 'all'"] {
            assert_eq!(read(&format!("[response_cache]\n{bad}")), (None, 1), "{bad}");
        }
        assert_eq!(read("[response_cache]\nmax_bytes = 2048\nmax_entries = 5"), (Some(2048), 1));
    }
}
