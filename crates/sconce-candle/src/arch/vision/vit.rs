use super::cpu::{Group, Pixels, Workspace};
use crate::Problems;
use crate::arch::fields::{Fields, MAX_LAYERS, MAX_SIZE};
use crate::arch::on_cpu::{Dense, Norm};
use crate::process::image::COLOURS;
use crate::weights::Weights;
use sconce_core::Checkpoint;
use sconce_kernels::{Activation, Isa, Precision, Scratch};

/// Tokens that go through all layers together, or those of one image if they are more: so few that what a layer writes
/// is in the second-level cache when the next one reads it.
const GROUP_TOKENS: usize = 240;
const CLASS_TOKEN: &str = "vit.embeddings.cls_token";
const POSITIONS: &str = "vit.embeddings.position_embeddings";
const PATCHES: &str = "vit.embeddings.patch_embeddings.projection";
const LAST_NORM: &str = "vit.layernorm";
const CLASSIFIER: &str = "classifier";

/// What `config.json` says of a ViT.
#[derive(Debug)]
pub(super) struct Config {
    hidden: usize,
    layers: usize,
    heads: usize,
    intermediate: usize,
    act: Activation,
    epsilon: f32,
    /// Places along a side of an image, and of a patch.
    image: usize,
    patch: usize,
    qkv_bias: bool,
}

/// The names of one layer's weights, without `.weight` and `.bias`.
struct Names {
    before: String,
    qkv: [String; 3],
    attention_out: String,
    after: String,
    up: String,
    down: String,
}

impl Names {
    fn new(index: usize) -> Self {
        let at = |name: &str| format!("vit.encoder.layer.{index}.{name}");
        Self {
            before: at("layernorm_before"),
            qkv: ["query", "key", "value"].map(|name| at(&format!("attention.attention.{name}"))),
            attention_out: at("attention.output.dense"),
            after: at("layernorm_after"),
            up: at("intermediate.dense"),
            down: at("output.dense"),
        }
    }
}

impl Config {
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let before = fields.problems.count();
        let config = Self {
            hidden: fields.size("hidden_size", 1, MAX_SIZE, None),
            layers: fields.size("num_hidden_layers", 1, MAX_LAYERS, None),
            heads: fields.size("num_attention_heads", 1, MAX_SIZE, None),
            intermediate: fields.size("intermediate_size", 1, MAX_SIZE, None),
            act: fields.activation("hidden_act"),
            epsilon: fields.epsilon(),
            image: fields.size("image_size", 1, 4096, Some(224)),
            patch: fields.size("patch_size", 1, 4096, Some(16)),
            qkv_bias: fields.flag("qkv_bias", true),
        };
        fields.check_heads(config.hidden, config.heads);
        if config.patch > config.image {
            fields.wrong("patch_size", &format!("at most the image's {}", config.image));
        }
        (fields.problems.count() == before).then_some(config)
    }

    /// Patches along a side. What is left over at the right and below is not looked at.
    fn patches(&self) -> usize {
        self.image / self.patch
    }

    fn patch_values(&self) -> usize {
        COLOURS * self.patch * self.patch
    }

    /// The most values that a layer takes.
    pub(super) fn inner(&self) -> usize {
        self.hidden.max(self.intermediate).max(self.patch_values())
    }

    fn tokens(&self) -> usize {
        self.patches() * self.patches() + 1
    }

    /// Reports a preprocessor that makes other images than the model takes.
    pub(super) fn check_sides(&self, (height, width): (usize, usize), problems: &mut Problems) {
        let image = self.image;
        if (height, width) != (image, image) {
            problems.push(format!(
                "preprocessor_config.json: expected images of {image} by {image} as config.json has them, \
                 got {width} by {height}"
            ));
        }
    }

    /// Checks the weights before the classifier; gives its name and what it takes.
    pub(super) fn check(&self, weights: &Weights, problems: &mut Problems) -> (&'static str, usize) {
        let (hidden, patch) = (self.hidden, self.patch);
        weights.check(CLASS_TOKEN, &[1, 1, hidden], problems);
        weights.check(POSITIONS, &[1, self.tokens(), hidden], problems);
        let mut pair = |name: &str, shape: &[usize], bias: bool| {
            weights.check(&format!("{name}.weight"), shape, problems);
            if bias {
                weights.check(&format!("{name}.bias"), &shape[..1], problems);
            }
        };
        pair(PATCHES, &[hidden, COLOURS, patch, patch], true);
        for names in (0..self.layers).map(Names::new) {
            pair(&names.before, &[hidden], true);
            names.qkv.iter().for_each(|name| pair(name, &[hidden, hidden], self.qkv_bias));
            pair(&names.attention_out, &[hidden, hidden], true);
            pair(&names.after, &[hidden], true);
            pair(&names.up, &[self.intermediate, hidden], true);
            pair(&names.down, &[hidden, self.intermediate], true);
        }
        pair(LAST_NORM, &[hidden], true);
        (CLASSIFIER, hidden)
    }
}

/// A ViT on our kernels.
pub(super) struct Network {
    patches: Dense,
    /// Of the first token: its own embedding and its position's.
    class_token: Vec<f32>,
    /// Of the patches.
    positions: Vec<f32>,
    layers: Vec<Layer>,
    norm: Norm,
    classifier: Dense,
    hidden: usize,
    heads: usize,
    /// Places along a side of an image, and of a patch.
    image: usize,
    patch: usize,
    tokens: usize,
}

struct Layer {
    before: Norm,
    qkv: Dense,
    attention_out: Dense,
    after: Norm,
    up: Dense,
    down: Dense,
}

impl Network {
    pub(super) fn load(config: &Config, weights: &Weights, precision: Precision) -> Result<Self, String> {
        let load = |names: &[String], bias: bool, activation, precision| {
            let names: Vec<(String, Option<String>)> = names
                .iter()
                .map(|name| (format!("{name}.weight"), bias.then(|| format!("{name}.bias"))))
                .collect();
            let names: Vec<_> = names.iter().map(|(weight, bias)| (&weight[..], bias.as_deref())).collect();
            Dense::load(weights, &names, activation, precision)
        };
        let dense = |name: &str, activation| load(&[name.to_owned()], true, activation, precision);
        let norm = |name: &str| {
            Norm::load(weights, (&format!("{name}.weight"), &format!("{name}.bias")), config.epsilon)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for names in (0..config.layers).map(Names::new) {
            layers.push(Layer {
                before: norm(&names.before)?,
                qkv: load(&names.qkv, config.qkv_bias, Activation::None, precision)?,
                attention_out: dense(&names.attention_out, Activation::None)?,
                after: norm(&names.after)?,
                up: dense(&names.up, config.act)?,
                down: dense(&names.down, Activation::None)?,
            });
        }
        let (matrix, bias) =
            (weights.values(&format!("{PATCHES}.weight"))?, weights.values(&format!("{PATCHES}.bias"))?);
        let mut positions = weights.values(POSITIONS)?;
        let mut class_token = weights.values(CLASS_TOKEN)?;
        let first = positions.drain(..config.hidden.min(positions.len()));
        class_token.iter_mut().zip(first).for_each(|(value, position)| *value += position);
        Ok(Self {
            patches: Dense::new(&matrix, config.patch_values(), bias, precision),
            class_token,
            positions,
            layers,
            norm: norm(LAST_NORM)?,
            // One row an image: whatever the layers compute in, exactness costs nothing here.
            classifier: load(&[CLASSIFIER.to_owned()], true, Activation::None, Precision::F32)?,
            hidden: config.hidden,
            heads: config.heads,
            image: config.image,
            patch: config.patch,
            tokens: config.tokens(),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let tables = (self.class_token.len() + self.positions.len()) * size_of::<f32>();
        let dense = self.patches.bytes() + self.classifier.bytes();
        tables + dense + self.norm.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }

    /// Images that go through all layers together.
    pub(super) fn group(&self) -> usize {
        (GROUP_TOKENS / self.tokens).max(1)
    }

    /// Images to logits.
    pub(super) fn forward(&self, workspace: &mut Workspace, group: Group<'_>, checkpoint: Checkpoint<'_>) {
        let (hidden, rows) = (self.hidden, group.images.len());
        let count = rows * self.tokens * hidden;
        let widest = |layer: &Layer| layer.qkv.columns().max(layer.up.columns());
        let wide = self.layers.iter().map(widest).max().unwrap_or(0);
        let patches = workspace.pixels.take((self.tokens - 1) * COLOURS * self.patch * self.patch);
        let [x, y, context, inner] = &mut workspace.values;
        let (x, y, context) = (x.take(count), y.take(count), context.take(count));
        let inner = inner.take(rows * self.tokens * wide);
        let scratch = &mut workspace.scratch;
        for (image, x) in group.images.iter().zip(x.chunks_exact_mut(self.tokens * hidden)) {
            self.gather(*image, patches);
            let (first, rest) = x.split_at_mut(hidden);
            first.copy_from_slice(&self.class_token);
            self.patches.forward(patches, &self.positions, rest, scratch);
        }
        for layer in &self.layers {
            layer.forward([&mut *x, &mut *y, &mut *context, &mut *inner], self, scratch, checkpoint);
        }
        let first = &mut context[..rows * hidden];
        for (first, x) in first.chunks_exact_mut(hidden).zip(x.chunks_exact(self.tokens * hidden)) {
            first.copy_from_slice(&x[..hidden]);
        }
        self.norm.apply(first);
        self.classifier.forward(first, &[], group.out, scratch);
    }

    /// The values of each patch one after another, as the weights have them: colours, lines, places.
    fn gather(&self, image: Pixels<'_>, patches: &mut [f32]) {
        let (side, size) = (self.image / self.patch, self.patch);
        for (index, patch) in patches.chunks_exact_mut(COLOURS * size * size).enumerate() {
            let (top, left) = (index / side * size, index % side * size);
            for (line, to) in patch.chunks_exact_mut(size).enumerate() {
                let at = (line / size * self.image + top + line % size) * self.image + left;
                to.iter_mut().zip(image.part(at, size).values()).for_each(|(to, value)| *to = value);
            }
        }
    }
}

impl Layer {
    /// From `x` to `x`.
    fn forward(
        &self,
        values: [&mut [f32]; 4],
        of: &Network,
        scratch: &mut Scratch,
        checkpoint: Checkpoint<'_>,
    ) {
        let [x, y, context, wide] = values;
        let Network { hidden, heads, tokens, .. } = *of;
        let count = x.len() / hidden;
        y.copy_from_slice(x);
        self.before.apply(y);
        let qkv = &mut wide[..count * 3 * hidden];
        self.qkv.forward(y, &[], qkv, scratch);
        checkpoint();
        let images = qkv.chunks_exact(tokens * 3 * hidden).zip(context.chunks_exact_mut(tokens * hidden));
        for (qkv, out) in images {
            sconce_kernels::attention(Isa::current(), qkv, hidden, heads, out, scratch);
        }
        checkpoint();
        self.attention_out.forward(context, x, y, scratch);
        context.copy_from_slice(y);
        self.after.apply(context);
        let inner = &mut wide[..count * self.up.columns()];
        self.up.forward(context, &[], inner, scratch);
        checkpoint();
        self.down.forward(inner, y, x, scratch);
        checkpoint();
    }

    fn bytes(&self) -> usize {
        let dense = [&self.qkv, &self.attention_out, &self.up, &self.down].map(Dense::bytes);
        dense.iter().sum::<usize>() + self.before.bytes() + self.after.bytes()
    }
}
