use crate::Problems;
use crate::arch::fields::{Fields, MAX_LAYERS, MAX_SIZE};
use crate::weights::Weights;
use sconce_kernels::Activation;
use serde_json::Value;

/// Which of the four architectures a folder holds: they differ in names, positions and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bert,
    DistilBert,
    /// RoBERTa and XLM-RoBERTa.
    Roberta,
}

/// What `config.json` says of a BERT-like model, under one set of names.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) kind: Kind,
    pub(crate) vocab_size: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) act: Activation,
    /// Rows of the table of positions. RoBERTa leaves the first `pad_token_id + 1` unused.
    pub(crate) positions: usize,
    /// Rows of the table of token types, 0 where there is none.
    pub(crate) token_types: usize,
    pub(crate) pad_token_id: usize,
    pub(crate) epsilon: f32,
    pub(crate) multi_label: bool,
    /// Whether `architectures` names a sequence classifier.
    pub(crate) is_classifier: bool,
    /// The classes' names, in order, if `id2label` gives them.
    pub(crate) labels: Option<Vec<String>>,
}

impl Config {
    /// Reads the parsed `config.json`.
    pub(crate) fn read(json: &Value, problems: &mut Problems) -> Option<Self> {
        let kind = match json.get("model_type").and_then(Value::as_str) {
            Some("bert") => Kind::Bert,
            Some("distilbert") => Kind::DistilBert,
            Some("roberta" | "xlm-roberta") => Kind::Roberta,
            other => {
                problems.push(format!(
                    "config.json: `model_type`: expected bert, distilbert, roberta or xlm-roberta, got {:?}",
                    sconce_core::abbreviate(other.unwrap_or("nothing"))
                ));
                return None;
            }
        };
        let before = problems.count();
        let config = Fields { file: "config.json", json, problems }.config(kind);
        (problems.count() == before).then_some(config)
    }

    /// The most tokens of a row.
    pub(crate) fn max_tokens(&self) -> usize {
        match self.kind {
            Kind::Roberta => self.positions.saturating_sub(self.pad_token_id + 1),
            _ => self.positions,
        }
    }

    /// The names of this architecture's weights.
    pub(crate) fn names<'a>(&self, weights: &'a Weights) -> Names<'a> {
        Names { kind: self.kind, weights }
    }
}

impl Fields<'_> {
    fn config(&mut self, kind: Kind) -> Config {
        let distil = kind == Kind::DistilBert;
        let (hidden, layers, heads, intermediate, act) = if distil {
            ("dim", "n_layers", "n_heads", "hidden_dim", "activation")
        } else {
            ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
        };
        let architectures = self.json.get("architectures").and_then(Value::as_array);
        let is_classifier = architectures.is_some_and(|names| {
            names.iter().filter_map(Value::as_str).any(|n| n.ends_with("ForSequenceClassification"))
        });
        let config = Config {
            kind,
            vocab_size: self.size("vocab_size", 1, MAX_SIZE, None),
            hidden: self.size(hidden, 1, MAX_SIZE, None),
            layers: self.size(layers, 1, MAX_LAYERS, None),
            heads: self.size(heads, 1, MAX_SIZE, None),
            intermediate: self.size(intermediate, 1, MAX_SIZE, None),
            act: self.activation(act),
            positions: self.size("max_position_embeddings", 1, MAX_SIZE, Some(512)),
            token_types: if distil { 0 } else { self.size("type_vocab_size", 1, MAX_SIZE, Some(2)) },
            pad_token_id: self.size("pad_token_id", 0, MAX_SIZE, Some(u64::from(kind == Kind::Roberta))),
            epsilon: if distil { 1e-12 } else { self.epsilon() },
            multi_label: self.multi_label(),
            is_classifier,
            labels: self.labels(),
        };
        self.refuse_unsupported(&config);
        config
    }

    fn refuse_unsupported(&mut self, config: &Config) {
        self.check_heads(config.hidden, config.heads);
        let positions =
            self.json.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
        if positions != "absolute" {
            let got = sconce_core::abbreviate(positions);
            self.problems
                .push(format!("config.json: `position_embedding_type`: expected absolute, got {got:?}"));
        }
        if self.json.get("is_decoder").and_then(Value::as_bool) == Some(true) {
            self.problems.push("config.json: `is_decoder`: expected false: only encoders are supported");
        }
        if config.max_tokens() == 0 {
            self.problems.push(format!(
                "config.json: `max_position_embeddings`: expected more than {}, got {}",
                config.pad_token_id + 1,
                config.positions
            ));
        }
    }
}

/// The weights' names. A checkpoint may prefix them with the architecture's name, and the oldest say gamma
/// and beta.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    kind: Kind,
    weights: &'a Weights,
}

/// A dense layer's weights and bias, or a norm's gamma and beta.
pub(crate) type Pair = (String, String);

/// The names of one layer's weights.
#[derive(Debug)]
pub(crate) struct LayerNames {
    pub(crate) qkv: [Pair; 3],
    pub(crate) attention_out: Pair,
    pub(crate) attention_norm: Pair,
    pub(crate) up: Pair,
    pub(crate) down: Pair,
    pub(crate) out_norm: Pair,
}

impl Names<'_> {
    fn resolve(&self, name: &str, legacy: Option<&str>) -> String {
        let prefix = match self.kind {
            Kind::Bert => "bert",
            Kind::DistilBert => "distilbert",
            Kind::Roberta => "roberta",
        };
        let found = [Some(name), legacy].into_iter().flatten().flat_map(|name| {
            [name.to_owned(), format!("{prefix}.{name}")]
                .into_iter()
                .filter(|n| self.weights.shape(n).is_some())
        });
        found.into_iter().next().unwrap_or_else(|| name.to_owned())
    }

    fn pair(&self, prefix: &str) -> Pair {
        (self.resolve(&format!("{prefix}.weight"), None), self.resolve(&format!("{prefix}.bias"), None))
    }

    fn norm(&self, prefix: &str) -> Pair {
        let gamma = self.resolve(&format!("{prefix}.weight"), Some(&format!("{prefix}.gamma")));
        (gamma, self.resolve(&format!("{prefix}.bias"), Some(&format!("{prefix}.beta"))))
    }

    /// A table of `words`, `position` or `token_type` embeddings.
    pub(crate) fn table(&self, of: &str) -> String {
        self.resolve(&format!("embeddings.{of}_embeddings.weight"), None)
    }

    pub(crate) fn embeddings_norm(&self) -> Pair {
        self.norm("embeddings.LayerNorm")
    }

    pub(crate) fn layer(&self, index: usize) -> LayerNames {
        if self.kind == Kind::DistilBert {
            let at = |name: &str| format!("transformer.layer.{index}.{name}");
            return LayerNames {
                qkv: ["q_lin", "k_lin", "v_lin"].map(|name| self.pair(&at(&format!("attention.{name}")))),
                attention_out: self.pair(&at("attention.out_lin")),
                attention_norm: self.norm(&at("sa_layer_norm")),
                up: self.pair(&at("ffn.lin1")),
                down: self.pair(&at("ffn.lin2")),
                out_norm: self.norm(&at("output_layer_norm")),
            };
        }
        let at = |name: &str| format!("encoder.layer.{index}.{name}");
        LayerNames {
            qkv: ["query", "key", "value"].map(|name| self.pair(&at(&format!("attention.self.{name}")))),
            attention_out: self.pair(&at("attention.output.dense")),
            attention_norm: self.norm(&at("attention.output.LayerNorm")),
            up: self.pair(&at("intermediate.dense")),
            down: self.pair(&at("output.dense")),
            out_norm: self.norm(&at("output.LayerNorm")),
        }
    }

    /// The classification head: a dense layer over the first token, then the classifier.
    pub(crate) fn head(&self) -> (Pair, Pair) {
        match self.kind {
            Kind::Bert => (self.pair("pooler.dense"), self.pair("classifier")),
            Kind::DistilBert => (self.pair("pre_classifier"), self.pair("classifier")),
            Kind::Roberta => (self.pair("classifier.dense"), self.pair("classifier.out_proj")),
        }
    }
}
