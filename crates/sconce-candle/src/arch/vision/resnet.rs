use super::cpu::{Group, Workspace};
use crate::Problems;
use crate::arch::fields::{Fields, MAX_LAYERS, MAX_SIZE};
use crate::arch::on_cpu::{Convolution, Dense};
use crate::process::image::COLOURS;
use crate::weights::Weights;
use sconce_core::Checkpoint;
use sconce_kernels::{Activation, Images, Isa, Precision, Scratch, Window};
use serde_json::Value;

/// Images that go through all layers together: the last layers have so few places that their weights would be read for
/// little, were it one.
pub(super) const GROUP_IMAGES: usize = 4;
/// What keeps a batch norm from dividing by zero.
const EPSILON: f64 = 1e-5;
/// How much narrower a bottleneck is than what goes in and out.
const REDUCTION: usize = 4;
const STEM: &str = "resnet.embedder.embedder";
const CLASSIFIER: &str = "classifier.1";
const POOL: Window = Window { size: 3, stride: 2, padding: 1 };

/// What `config.json` says of a ResNet.
#[derive(Debug)]
pub(super) struct Config {
    stem: usize,
    /// Channels and blocks of each stage.
    stages: Vec<(usize, usize)>,
    is_bottleneck: bool,
    /// Whether the first stage halves the sides.
    first_halves: bool,
    /// Whether the first convolution of a bottleneck halves the sides, rather than the second.
    early_halving: bool,
}

/// A convolution and the batch norm after it.
#[derive(Debug)]
struct Layer {
    name: String,
    channels: usize,
    columns: usize,
    window: Window,
    /// Whether negative values become zero after it, or after what is added to it.
    relu: bool,
}

/// Convolutions one after another, whose input is added to their output: as it is, or after a convolution of its own.
#[derive(Debug)]
struct Block<L> {
    layers: Vec<L>,
    shortcut: Option<L>,
}

fn window(size: usize, stride: usize) -> Window {
    Window { size, stride, padding: size / 2 }
}

impl Config {
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let before = fields.problems.count();
        let channels = fields.list("hidden_sizes", MAX_SIZE);
        let depths = fields.list("depths", MAX_LAYERS);
        if channels.len() != depths.len() {
            fields.wrong("depths", &format!("as many as `hidden_sizes`, {}", channels.len()));
        }
        let is_bottleneck = match fields.get("layer_type").map_or(Some("bottleneck"), Value::as_str) {
            Some(word @ ("basic" | "bottleneck")) => word == "bottleneck",
            _ => {
                fields.wrong("layer_type", "basic or bottleneck");
                false
            }
        };
        if fields.get("hidden_act").is_some_and(|act| act.as_str() != Some("relu")) {
            fields.wrong("hidden_act", "relu");
        }
        let config = Self {
            stem: fields.size("embedding_size", 1, MAX_SIZE, Some(64)),
            stages: channels.into_iter().zip(depths).collect(),
            is_bottleneck,
            first_halves: fields.flag("downsample_in_first_stage", false),
            early_halving: fields.flag("downsample_in_bottleneck", false),
        };
        (fields.problems.count() == before).then_some(config)
    }

    fn stem(&self) -> Layer {
        let window = window(7, 2);
        Layer { name: STEM.to_owned(), channels: COLOURS, columns: self.stem, window, relu: true }
    }

    /// Channels that come out of the last stage.
    fn width(&self) -> usize {
        self.stages.last().map_or(self.stem, |(channels, _)| *channels)
    }

    /// The most values that a convolution takes.
    pub(super) fn inner(&self) -> usize {
        let blocks =
            self.blocks().into_iter().flat_map(|block| block.layers.into_iter().chain(block.shortcut));
        let layers = blocks.chain([self.stem()]);
        layers.map(|layer| layer.window.size * layer.window.size * layer.channels).max().unwrap_or(0)
    }

    fn blocks(&self) -> Vec<Block<Layer>> {
        let (mut blocks, mut channels) = (Vec::new(), self.stem);
        for (stage, (columns, depth)) in self.stages.iter().enumerate() {
            for block in 0..*depth {
                let halves = block == 0 && (stage > 0 || self.first_halves);
                let prefix = format!("resnet.encoder.stages.{stage}.layers.{block}");
                blocks.push(self.block(&prefix, channels, *columns, if halves { 2 } else { 1 }));
                channels = *columns;
            }
        }
        blocks
    }

    fn block(&self, prefix: &str, channels: usize, columns: usize, stride: usize) -> Block<Layer> {
        // Of each convolution: its window and what comes out.
        let layers = if self.is_bottleneck {
            let narrow = columns / REDUCTION;
            let (first, second) = if self.early_halving { (stride, 1) } else { (1, stride) };
            vec![(window(1, first), narrow), (window(3, second), narrow), (window(1, 1), columns)]
        } else {
            vec![(window(3, stride), columns), (window(3, 1), columns)]
        };
        let mut own = channels;
        let layers = layers.into_iter().enumerate().map(|(index, (window, columns))| {
            let channels = std::mem::replace(&mut own, columns);
            Layer { name: format!("{prefix}.layer.{index}"), channels, columns, window, relu: true }
        });
        let shortcut = (channels != columns || stride != 1).then(|| Layer {
            name: format!("{prefix}.shortcut"),
            channels,
            columns,
            window: window(1, stride),
            relu: false,
        });
        Block { layers: layers.collect(), shortcut }
    }

    /// Checks the weights before the classifier; gives its name and what it takes.
    pub(super) fn check(&self, weights: &Weights, problems: &mut Problems) -> (&'static str, usize) {
        self.stem().check(weights, problems);
        for block in self.blocks() {
            block.layers.iter().chain(&block.shortcut).for_each(|layer| layer.check(weights, problems));
        }
        (CLASSIFIER, self.width())
    }
}

impl Fields<'_> {
    /// What each stage has: 1 to 16 integers of 1 to `most`.
    fn list(&mut self, key: &str, most: u64) -> Vec<usize> {
        let read = |value: &Value| {
            let of = |value: &Value| value.as_u64().filter(|v| (1..=most).contains(v)).map(|v| v as usize);
            value.as_array()?.iter().map(of).collect::<Option<Vec<usize>>>()
        };
        match self.get(key).and_then(read).filter(|list| (1..=16).contains(&list.len())) {
            Some(list) => list,
            None => {
                self.wrong(key, &format!("1 to 16 integers of 1 to {most}"));
                Vec::new()
            }
        }
    }
}

impl Layer {
    fn norm(&self, of: &str) -> String {
        format!("{}.normalization.{of}", self.name)
    }

    fn check(&self, weights: &Weights, problems: &mut Problems) {
        let size = self.window.size;
        let shape = [self.columns, self.channels, size, size];
        weights.check(&format!("{}.convolution.weight", self.name), &shape, problems);
        for of in ["weight", "bias", "running_mean", "running_var"] {
            weights.check(&self.norm(of), &shape[..1], problems);
        }
    }

    /// Reads it, and folds the norm into the convolution's weights and bias.
    fn load(&self, weights: &Weights, precision: Precision) -> Result<Convolution, String> {
        let values = weights.values(&format!("{}.convolution.weight", self.name))?;
        let norm = |of: &str| weights.values(&self.norm(of));
        let (gamma, beta) = (norm("weight")?, norm("bias")?);
        let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
        let scale = |column: usize| f64::from(gamma[column]) / (f64::from(variance[column]) + EPSILON).sqrt();
        let bias = (0..self.columns)
            .map(|column| (f64::from(beta[column]) - f64::from(mean[column]) * scale(column)) as f32)
            .collect();
        let (places, channels) = (self.window.size * self.window.size, self.channels);
        // From channels and then places to places and then channels.
        let mut matrix = vec![0.0; values.len()];
        let columns = matrix.chunks_exact_mut(places * channels).zip(values.chunks_exact(places * channels));
        for (column, (to, from)) in columns.enumerate() {
            let scale = scale(column);
            for (at, value) in from.iter().enumerate() {
                to[at % places * channels + at / places] = (f64::from(*value) * scale) as f32;
            }
        }
        Ok(Convolution::new(self.window, &matrix, bias, self.relu, precision))
    }
}

/// A ResNet on our kernels.
pub(super) struct Network {
    stem: Convolution,
    blocks: Vec<Block<Convolution>>,
    classifier: Dense,
    sides: (usize, usize),
    /// The most values of an image between two layers.
    most: usize,
}

/// The shape of a layer's output: height, width, channels.
type Shape = (usize, usize, usize);

fn shape_after(convolution: &Convolution, (height, width, _): Shape) -> Shape {
    let window = convolution.window();
    (window.places(height), window.places(width), convolution.columns())
}

fn values((height, width, channels): Shape) -> usize {
    height * width * channels
}

fn images(values: &[f32], (height, width, channels): Shape) -> Images<'_> {
    Images { values, height, width, channels }
}

impl Network {
    pub(super) fn load(
        config: &Config,
        weights: &Weights,
        sides: (usize, usize),
        precision: Precision,
    ) -> Result<Self, String> {
        let mut blocks = Vec::new();
        for block in config.blocks() {
            let layers: Result<_, String> = block.layers.iter().map(|l| l.load(weights, precision)).collect();
            let shortcut = block.shortcut.as_ref().map(|l| l.load(weights, precision)).transpose()?;
            blocks.push(Block { layers: layers?, shortcut });
        }
        let stem = config.stem().load(weights, precision)?;
        let mut shape = shape_after(&stem, (sides.0, sides.1, COLOURS));
        let mut most = values(shape);
        shape = pooled(shape);
        for block in &blocks {
            for layer in &block.layers {
                shape = shape_after(layer, shape);
                most = most.max(values(shape));
            }
        }
        let names = (&format!("{CLASSIFIER}.weight")[..], Some(&format!("{CLASSIFIER}.bias")[..]));
        // One row an image: whatever the layers compute in, exactness costs nothing here.
        let classifier = Dense::load(weights, &[names], Activation::None, Precision::F32)?;
        Ok(Self { stem, blocks, classifier, sides, most })
    }

    pub(super) fn bytes(&self) -> usize {
        let block = |block: &Block<Convolution>| {
            block.layers.iter().chain(&block.shortcut).map(Convolution::bytes).sum::<usize>()
        };
        self.stem.bytes() + self.classifier.bytes() + self.blocks.iter().map(block).sum::<usize>()
    }

    /// Images to logits.
    pub(super) fn forward(&self, workspace: &mut Workspace, group: Group<'_>, checkpoint: Checkpoint<'_>) {
        let rows = group.images.len();
        let (height, width) = self.sides;
        let pixels = workspace.pixels.take(rows * height * width * COLOURS);
        // From colours and then places to places and then colours.
        for (image, to) in group.images.iter().zip(pixels.chunks_exact_mut(height * width * COLOURS)) {
            for (at, value) in image.values().enumerate() {
                to[at % (height * width) * COLOURS + at / (height * width)] = value;
            }
        }
        let [mut x, mut a, mut b, own] =
            workspace.values.each_mut().map(|buffer| buffer.take(rows * self.most));
        let scratch = &mut workspace.scratch;
        let input = (height, width, COLOURS);
        let mut shape = shape_after(&self.stem, input);
        self.stem.forward(images(pixels, input), &[], &mut a[..rows * values(shape)], scratch);
        let wide = images(&a[..rows * values(shape)], shape);
        shape = pooled(shape);
        sconce_kernels::max_pool(Isa::current(), wide, POOL, &mut x[..rows * values(shape)]);
        for block in &self.blocks {
            checkpoint();
            shape = block.forward(rows, shape, [&mut *x, &mut *a, &mut *b, &mut *own], scratch);
            // The last of two layers writes to `b`, of three to `a`.
            if block.layers.len().is_multiple_of(2) {
                std::mem::swap(&mut x, &mut b);
            } else {
                std::mem::swap(&mut x, &mut a);
            }
        }
        let means = &mut a[..rows * shape.2];
        for (mean, x) in means.chunks_exact_mut(shape.2).zip(x.chunks_exact(values(shape))) {
            sconce_kernels::mean_pool(Isa::current(), x, mean);
        }
        self.classifier.forward(means, &[], group.out, scratch);
    }
}

fn pooled((height, width, channels): Shape) -> Shape {
    (POOL.places(height), POOL.places(width), channels)
}

impl Block<Convolution> {
    /// From `x` to `a` and `b` in turns; gives the shape of the last. `own` is for what is added.
    fn forward(&self, rows: usize, shape: Shape, buffers: [&mut [f32]; 4], scratch: &mut Scratch) -> Shape {
        let [x, a, b, own] = buffers;
        let input = images(&x[..rows * values(shape)], shape);
        let residual = match &self.shortcut {
            None => input.values,
            Some(shortcut) => {
                let own = &mut own[..rows * values(shape_after(shortcut, shape))];
                shortcut.forward(input, &[], own, scratch);
                own
            }
        };
        let (mut shape, mut from, mut to) = (shape, b, a);
        for (index, layer) in self.layers.iter().enumerate() {
            let x = if index == 0 { input } else { images(&from[..rows * values(shape)], shape) };
            shape = shape_after(layer, shape);
            let residual = if index + 1 == self.layers.len() { residual } else { &[] };
            layer.forward(x, residual, &mut to[..rows * values(shape)], scratch);
            std::mem::swap(&mut from, &mut to);
        }
        shape
    }
}
