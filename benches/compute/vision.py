"""ResNet-50 and ViT-B/16 with random weights, as benches/compute/run gives them to every contestant: a Sconce package, which is a
Hugging Face folder, an ONNX file, and a function on torch tensors. All end in the probabilities of 1000 classes.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from models import Graph

Tensors = dict[str, np.ndarray]

TITLES = {"resnet": "ResNet-50", "vit": "ViT-B/16"}
SIDE, COLOURS, CLASSES = 224, 3, 1000
PIXELS = COLOURS * SIDE * SIDE
NORM = 1e-5
"""What keeps ResNet's batch norm from dividing by zero."""
RESNET = {
    "model_type": "resnet",
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "num_channels": COLOURS,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": SIDE,
    "patch_size": 16,
    "num_channels": COLOURS,
}
PROCESSOR = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PROCESSORS = {
    "resnet": PROCESSOR | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIDE}},
    "vit": PROCESSOR | {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}},
}


class Convolution(NamedTuple):
    """One with a batch norm after it, of images of `side` by `side`."""

    name: str
    side: int
    channels: int
    columns: int
    size: int
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.size // 2

    @property
    def operations(self) -> int:
        return 2 * (self.side // self.stride) ** 2 * self.columns * self.channels * self.size**2


class Block(NamedTuple):
    """Convolutions whose input is added to their output, as it is or after the shortcut's."""

    layers: list[Convolution]
    shortcut: Convolution | None


STEM = Convolution("resnet.embedder.embedder", SIDE, COLOURS, 64, 7, 2)


def blocks() -> Iterator[Block]:
    side, channels = SIDE // 4, STEM.columns
    for stage, (columns, depth) in enumerate(zip(RESNET["hidden_sizes"], RESNET["depths"])):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            prefix, narrow, below = f"resnet.encoder.stages.{stage}.layers.{block}", columns // 4, side // stride
            layers = [
                Convolution(f"{prefix}.layer.0", side, channels, narrow, 1),
                Convolution(f"{prefix}.layer.1", side, narrow, narrow, 3, stride),
                Convolution(f"{prefix}.layer.2", below, narrow, columns, 1),
            ]
            shortcut = Convolution(f"{prefix}.shortcut", side, channels, columns, 1, stride)
            yield Block(layers, None if block else shortcut)
            side, channels = below, columns


def convolutions() -> Iterator[Convolution]:
    yield STEM
    for block in blocks():
        yield from block.layers
        if block.shortcut:
            yield block.shortcut


def gigaflops(model: str) -> float:
    """Billions of operations of an image, multiplications and additions apart, without what is not a product."""
    if model == "resnet":
        return (sum(layer.operations for layer in convolutions()) + 2 * RESNET["hidden_sizes"][-1] * CLASSES) / 1e9
    hidden, inner, patches = VIT["hidden_size"], VIT["intermediate_size"], (SIDE // VIT["patch_size"]) ** 2
    tokens = patches + 1
    layer = tokens * (2 * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * tokens)
    embedding = 2 * patches * hidden * COLOURS * VIT["patch_size"] ** 2
    return (VIT["num_hidden_layers"] * layer + embedding + 2 * hidden * CLASSES) / 1e9


def random_resnet() -> Tensors:
    """So that values neither grow nor fade from block to block, and that no class is sure."""
    random, weights = np.random.default_rng(1), {}
    for layer in convolutions():
        shape = (layer.columns, layer.channels, layer.size, layer.size)
        scale = (2 / (layer.channels * layer.size**2)) ** 0.5
        weights[f"{layer.name}.convolution.weight"] = random.standard_normal(shape, np.float32) * np.float32(scale)
        gain = 0.3 if layer.name.endswith("layer.2") else 1
        uniform = {"weight": (0.8, 1.2), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.8, 1.2)}
        for part, (low, high) in uniform.items():
            values = random.uniform(low, high, layer.columns) * (gain if part in ("weight", "bias") else 1)
            weights[f"{layer.name}.normalization.{part}"] = values.astype(np.float32)
    width = RESNET["hidden_sizes"][-1]
    weights["classifier.1.weight"] = random.standard_normal((CLASSES, width), np.float32) * np.float32(0.02)
    weights["classifier.1.bias"] = np.zeros(CLASSES, np.float32)
    return weights


def random_vit() -> Tensors:
    random, weights = np.random.default_rng(1), {}
    hidden, inner, patch = VIT["hidden_size"], VIT["intermediate_size"], VIT["patch_size"]

    def pair(name: str, *shape: int) -> None:
        scale = np.float32(np.prod(shape[1:]) ** -0.5)
        weights[f"{name}.weight"] = random.standard_normal(shape, np.float32) * scale
        weights[f"{name}.bias"] = random.standard_normal(shape[0], np.float32) * np.float32(0.1)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = random.uniform(0.8, 1.2, hidden).astype(np.float32)
        weights[f"{name}.bias"] = random.uniform(-0.2, 0.2, hidden).astype(np.float32)

    weights["vit.embeddings.cls_token"] = random.standard_normal((1, 1, hidden), np.float32)
    positions = (SIDE // patch) ** 2 + 1
    weights["vit.embeddings.position_embeddings"] = random.standard_normal((1, positions, hidden), np.float32)
    pair("vit.embeddings.patch_embeddings.projection", hidden, COLOURS, patch, patch)
    for layer in range(VIT["num_hidden_layers"]):
        name = f"vit.encoder.layer.{layer}"
        norm(f"{name}.layernorm_before")
        for part in ("query", "key", "value"):
            pair(f"{name}.attention.attention.{part}", hidden, hidden)
        pair(f"{name}.attention.output.dense", hidden, hidden)
        norm(f"{name}.layernorm_after")
        pair(f"{name}.intermediate.dense", inner, hidden)
        pair(f"{name}.output.dense", hidden, inner)
    norm("vit.layernorm")
    pair("classifier", CLASSES, hidden)
    return weights


def folded(weights: Tensors, layer: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """The convolution's weights and bias with its batch norm in them, as exporters and optimizers write it."""
    norm = {part: weights[f"{layer.name}.normalization.{part}"].astype(np.float64) for part in ("weight", "bias")}
    mean, variance = (weights[f"{layer.name}.normalization.running_{part}"] for part in ("mean", "var"))
    scale = norm["weight"] / np.sqrt(variance.astype(np.float64) + NORM)
    weight = weights[f"{layer.name}.convolution.weight"] * scale[:, None, None, None]
    return weight.astype(np.float32), (norm["bias"] - mean * scale).astype(np.float32)


def resnet_graph(graph: "Graph", weights: Tensors) -> str:
    def convolve(x: str, layer: Convolution) -> str:
        weight, bias = folded(weights, layer)
        parameters = graph.constant(weight, name=f"{layer.name}.weight"), graph.constant(bias, name=f"{layer.name}.bias")
        attributes = {"kernel_shape": [layer.size] * 2, "strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
        return graph.node("Conv", x, *parameters, **attributes)

    x = graph.node("Relu", convolve("pixel_values", STEM))
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for block in blocks():
        added = convolve(x, block.shortcut) if block.shortcut else x
        for layer in block.layers[:-1]:
            x = graph.node("Relu", convolve(x, layer))
        x = graph.node("Relu", graph.node("Add", convolve(x, block.layers[-1]), added))
    return graph.dense(graph.node("Flatten", graph.node("GlobalAveragePool", x)), weights, "classifier.1")


def vit_graph(graph: "Graph", weights: Tensors) -> str:
    hidden, heads, patch, epsilon = (VIT[key] for key in ("hidden_size", "num_attention_heads", "patch_size", "layer_norm_eps"))
    name = "vit.embeddings.patch_embeddings.projection"
    parameters = [graph.constant(weights[f"{name}.{part}"], name=f"{name}.{part}") for part in ("weight", "bias")]
    x = graph.node("Conv", "pixel_values", *parameters, kernel_shape=[patch] * 2, strides=[patch] * 2)
    x = graph.node("Reshape", x, graph.constant([0, hidden, -1], np.int64))
    x = graph.node("Transpose", x, perm=[0, 2, 1])
    # The class token's place is zero before what is added to it.
    x = graph.node("Pad", x, graph.constant([0, 1, 0, 0, 0, 0], np.int64))
    added = weights["vit.embeddings.position_embeddings"].copy()
    added[:, :1] += weights["vit.embeddings.cls_token"]
    x = graph.node("Add", x, graph.constant(added, name="vit.embeddings"))
    for layer in range(VIT["num_hidden_layers"]):
        name = f"vit.encoder.layer.{layer}"
        y = graph.norm(x, weights, f"{name}.layernorm_before", epsilon)
        y = graph.attention(y, weights, f"{name}.attention.attention", hidden, heads)
        x = graph.node("Add", graph.dense(y, weights, f"{name}.attention.output.dense"), x)
        y = graph.norm(x, weights, f"{name}.layernorm_after", epsilon)
        y = graph.gelu(graph.dense(y, weights, f"{name}.intermediate.dense"))
        x = graph.node("Add", graph.dense(y, weights, f"{name}.output.dense"), x)
    first = graph.node("Gather", x, graph.constant(0, np.int64), axis=1)
    return graph.dense(graph.norm(first, weights, "vit.layernorm", epsilon), weights, "classifier")


def package(model: str, folder: pathlib.Path) -> Tensors:
    """Writes the package but for its weights, which it gives."""
    folder.mkdir()
    config, weights = (RESNET, random_resnet()) if model == "resnet" else (VIT, random_vit())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[model]))
    return weights


def torch_forward(model: str, stored: Tensors, dtype: "torch.dtype") -> Callable[["torch.Tensor"], "torch.Tensor"]:
    """As the ONNX graphs, with what PyTorch runs fastest: batch norms folded, channels last, one product for query, key and value."""
    import torch
    from torch.nn import functional

    def tensor(values: np.ndarray) -> "torch.Tensor":
        return torch.tensor(values, dtype=dtype)

    def dense(x: "torch.Tensor", name: str) -> "torch.Tensor":
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    weights = {name: tensor(values) for name, values in stored.items() if "convolution" not in name}
    last = torch.channels_last
    if model == "resnet":
        parameters = {layer.name: [tensor(values) for values in folded(stored, layer)] for layer in convolutions()}
        for weight_and_bias in parameters.values():
            weight_and_bias[0] = weight_and_bias[0].to(memory_format=last)

        def convolve(x: "torch.Tensor", layer: Convolution) -> "torch.Tensor":
            return functional.conv2d(x, *parameters[layer.name], stride=layer.stride, padding=layer.padding)

        steps = list(blocks())

        def resnet(pixels: "torch.Tensor") -> "torch.Tensor":
            x = convolve(pixels.to(dtype, memory_format=last), STEM).relu_()
            x = functional.max_pool2d(x, 3, 2, 1)
            for block in steps:
                added = convolve(x, block.shortcut) if block.shortcut else x
                for layer in block.layers[:-1]:
                    x = convolve(x, layer).relu_()
                x = convolve(x, block.layers[-1]).add_(added).relu_()
            return dense(x.mean((2, 3)), "classifier.1").float().softmax(-1)

        return resnet

    hidden, heads, patch, epsilon = (VIT[key] for key in ("hidden_size", "num_attention_heads", "patch_size", "layer_norm_eps"))
    layers = [f"vit.encoder.layer.{layer}" for layer in range(VIT["num_hidden_layers"])]
    for layer in layers:
        for part in ("weight", "bias"):
            names = (f"{layer}.attention.attention.{name}.{part}" for name in ("query", "key", "value"))
            weights[f"{layer}.qkv.{part}"] = torch.cat([weights.pop(name) for name in names])

    def norm(x: "torch.Tensor", name: str) -> "torch.Tensor":
        return functional.layer_norm(x, (hidden,), weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    def vit(pixels: "torch.Tensor") -> "torch.Tensor":
        name, rows = "vit.embeddings.patch_embeddings.projection", len(pixels)
        x = functional.conv2d(pixels.to(dtype), weights[f"{name}.weight"], weights[f"{name}.bias"], stride=patch)
        x = torch.cat([weights["vit.embeddings.cls_token"].expand(rows, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + weights["vit.embeddings.position_embeddings"]
        for layer in layers:
            qkv = dense(norm(x, f"{layer}.layernorm_before"), f"{layer}.qkv")
            qkv = qkv.view(rows, -1, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            context = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(rows, -1, hidden)
            x = dense(context, f"{layer}.attention.output.dense") + x
            up = functional.gelu(dense(norm(x, f"{layer}.layernorm_after"), f"{layer}.intermediate.dense"))
            x = dense(up, f"{layer}.output.dense") + x
        return dense(norm(x[:, 0], "vit.layernorm"), "classifier").float().softmax(-1)

    return vit
