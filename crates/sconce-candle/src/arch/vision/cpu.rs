use super::{Config, Plan, resnet, vit};
use crate::arch::on_cpu::{Buffer, for_each_group};
use crate::arch::scores::Scores;
use crate::backend::{Forward, scatter_rows};
use crate::process::image::COLOURS;
use sconce_core::{Batch, BatchOutput, Checkpoint, Error, Result};
use sconce_kernels::{Precision, Scratch};
use std::sync::Arc;

/// A classifier on our kernels.
pub(crate) struct Network {
    body: Body,
    scores: Scores,
    classes: usize,
    /// Height and width of an image.
    sides: (usize, usize),
}

enum Body {
    Vit(vit::Network),
    Resnet(resnet::Network),
}

impl Network {
    pub(crate) fn load(plan: &Plan, precision: Precision) -> Result<Self, String> {
        let sides = plan.images.sides();
        let body = match &plan.config {
            Config::Vit(config) => Body::Vit(vit::Network::load(config, &plan.weights, precision)?),
            Config::Resnet(config) => {
                Body::Resnet(resnet::Network::load(config, &plan.weights, sides, precision)?)
            }
        };
        Ok(Self { body, scores: plan.scores, classes: plan.labels.len(), sides })
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.body {
            Body::Vit(network) => network.bytes(),
            Body::Resnet(network) => network.bytes(),
        }
    }

    /// Images that go through all layers together.
    fn group(&self) -> usize {
        match &self.body {
            Body::Vit(network) => network.group(),
            Body::Resnet(_) => resnet::GROUP_IMAGES,
        }
    }

    fn forward(&self, workspace: &mut Workspace, group: Group<'_>, checkpoint: Checkpoint<'_>) {
        match &self.body {
            Body::Vit(network) => network.forward(workspace, group, checkpoint),
            Body::Resnet(network) => network.forward(workspace, group, checkpoint),
        }
    }
}

/// What one thread computes with; a network says what is in it.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) pixels: Buffer,
    pub(super) values: [Buffer; 4],
    pub(super) scratch: Scratch,
}

/// Images that go through all layers together.
pub(super) struct Group<'a> {
    pub(super) images: &'a [Pixels<'a>],
    /// A row of logits for each.
    pub(super) out: &'a mut [f32],
}

/// The values of one image in the protocol's byte layout: [3, height, width] of FP32.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a>(&'a [[u8; 4]]);

impl<'a> Pixels<'a> {
    pub(super) fn values(self) -> impl ExactSizeIterator<Item = f32> + 'a {
        self.0.iter().map(|value| f32::from_le_bytes(*value))
    }

    /// The values from `start` on, at most `count`.
    pub(super) fn part(self, start: usize, count: usize) -> Self {
        Self(&self.0[start..start + count])
    }
}

/// One worker's part: memory that every batch uses again.
pub(crate) struct Instance {
    network: Arc<Network>,
    workspaces: Vec<Workspace>,
    output: Vec<f32>,
}

impl Instance {
    pub(crate) fn new(network: Arc<Network>, threads: usize) -> Self {
        let workspaces = (0..threads).map(|_| Workspace::default()).collect();
        Self { network, workspaces, output: Vec::new() }
    }
}

/// The images of a batch, in order.
fn images(batch: &Batch, values: usize) -> Result<Vec<Pixels<'_>>> {
    let mut images = Vec::with_capacity(batch.rows());
    for input in &batch.inputs {
        let tensor = input.tensors.first().ok_or_else(|| Error::internal("a request has no pixel values"))?;
        images.extend(tensor.data().as_chunks::<4>().0.chunks_exact(values).map(Pixels));
    }
    if images.len() != batch.rows() {
        return Err(Error::internal("a request has other pixel values than rows"));
    }
    Ok(images)
}

impl Forward for Instance {
    /// The rows of each request; what they are answered is in the instance.
    type Pending = Vec<usize>;

    fn launch(&mut self, batch: Batch, checkpoint: Checkpoint<'_>) -> Result<Vec<usize>> {
        let Self { network, workspaces, output } = self;
        let images = images(&batch, COLOURS * network.sides.0 * network.sides.1)?;
        output.clear();
        output.resize(images.len() * network.classes, 0.0);
        // Groups of about equal size, as many as keep every thread at work.
        let count = images.len().div_ceil(network.group()).next_multiple_of(workspaces.len().max(1));
        let size = images.len().div_ceil(count.max(1)).max(1);
        let out = output.chunks_mut(size * network.classes);
        let groups = images.chunks(size).zip(out).map(|(images, out)| Group { images, out }).collect();
        for_each_group(workspaces, groups, checkpoint, |workspace, group| {
            network.forward(workspace, group, checkpoint)
        });
        Ok(batch.inputs.iter().map(|input| input.rows).collect())
    }

    fn finish(&mut self, request_rows: Vec<usize>) -> Result<BatchOutput> {
        let (scores, classes) = (self.network.scores, self.network.classes);
        self.output = scores.apply(std::mem::take(&mut self.output), classes);
        Ok(BatchOutput { outputs: scatter_rows(&self.output, classes, &request_rows), padding: 0 })
    }
}
