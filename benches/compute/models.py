"""Writes the models every contestant gets, as ONNX files and as Sconce packages: those of all-MiniLM-L6-v2, which is there already,
and random ones.

models.py MINILM OUTPUT PART..., where a PART is minilm, mlp or vision.
"""

import itertools
import json
import pathlib
import struct
import sys

import numpy as np
import onnx
import vision
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from worker import Tensors, read_safetensors

MLP = (30, 64, 64, 2)


def write_safetensors(path: pathlib.Path, tensors: Tensors) -> None:
    header, end = {}, 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for values in tensors.values():
            file.write(values.tobytes())


class Graph:
    """An ONNX graph under construction: every method adds a node, or a constant, and gives its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, value: object, dtype: type = np.float32, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.array(value, dtype, order="C"), name)
        return name

    def dense(self, x: str, weights: Tensors, name: str) -> str:
        weight = self.constant(weights[f"{name}.weight"].T, name=f"{name}.weight")
        bias = self.constant(weights[f"{name}.bias"], name=f"{name}.bias")
        return self.node("Add", self.node("MatMul", x, weight), bias)

    def norm(self, x: str, weights: Tensors, name: str, epsilon: float) -> str:
        parameters = [self.constant(weights[f"{name}.{part}"], name=f"{name}.{part}") for part in ("weight", "bias")]
        return self.node("LayerNormalization", x, *parameters, axis=-1, epsilon=epsilon)

    def gelu(self, x: str) -> str:
        erf = self.node("Erf", self.node("Div", x, self.constant(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.constant(1))), self.constant(0.5))

    def attention(self, x: str, weights: Tensors, name: str, hidden: int, heads: int, mask: str = "") -> str:
        """Without the dense layer after it."""
        split = self.constant([0, 0, heads, hidden // heads], np.int64)
        query, key, value = (
            self.node(
                "Transpose",
                self.node("Reshape", self.dense(x, weights, f"{name}.{part}"), split),
                perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        )
        scores = self.node("Div", self.node("MatMul", query, key), self.constant((hidden / heads) ** 0.5))
        scores = self.node("Softmax", self.node("Add", scores, mask) if mask else scores, axis=-1)
        context = self.node("Transpose", self.node("MatMul", scores, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", context, self.constant([0, 0, hidden], np.int64))

    def save(self, path: pathlib.Path, inputs: dict[str, tuple[int, list[object]]], output: list[object]) -> None:
        given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
        result = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, output)
        graph = helper.make_graph(self.nodes, path.stem, given, [result], list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def bert(weights: Tensors, config: dict, path: pathlib.Path) -> None:
    """Encoder, mean of the tokens, unit length, as exporters write them: runtimes fuse what they know as they load it.

    ONNX Runtime's offline optimizer for BERT finds all its patterns in it too, but what it writes ran 5 to 15 % slower.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    graph = Graph()
    one = [graph.constant([axis], np.int64) for axis in (0, 1, 2)]

    def norm(x: str, name: str) -> str:
        return graph.norm(x, weights, name, config["layer_norm_eps"])

    def table(name: str, ids: str) -> str:
        name = f"embeddings.{name}_embeddings.weight"
        return graph.node("Gather", graph.constant(weights[name], name=name), ids)

    tokens = graph.node("Gather", graph.node("Shape", "input_ids"), graph.constant(1, np.int64), axis=0)
    tokens = graph.node("Unsqueeze", tokens, one[0])
    positions = graph.constant(np.arange(config["max_position_embeddings"])[None], np.int64)
    positions = graph.node("Slice", positions, one[0], tokens, one[1])
    embedded = graph.node("Add", table("word", "input_ids"), table("token_type", "token_type_ids"))
    x = norm(graph.node("Add", embedded, table("position", positions)), "embeddings.LayerNorm")

    mask = graph.node("Unsqueeze", graph.node("Unsqueeze", "attention_mask", one[1]), one[2])
    mask = graph.node("Sub", graph.constant(1), graph.node("Cast", mask, to=onnx.TensorProto.FLOAT))
    mask = graph.node("Mul", mask, graph.constant(-10_000))
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        context = graph.attention(x, weights, f"{name}.attention.self", hidden, heads, mask)
        out = graph.dense(context, weights, f"{name}.attention.output.dense")
        x = norm(graph.node("Add", out, x), f"{name}.attention.output.LayerNorm")
        up = graph.gelu(graph.dense(x, weights, f"{name}.intermediate.dense"))
        x = norm(graph.node("Add", graph.dense(up, weights, f"{name}.output.dense"), x), f"{name}.output.LayerNorm")

    kept = graph.node("Unsqueeze", graph.node("Cast", "attention_mask", to=onnx.TensorProto.FLOAT), one[2])
    total = graph.node("ReduceSum", graph.node("Mul", x, kept), one[1], keepdims=0)
    mean = graph.node("Div", total, graph.node("ReduceSum", kept, one[1], keepdims=0))
    graph.node("Div", mean, graph.node("ReduceL2", mean, axes=[1], keepdims=1), output="output")
    integers = (onnx.TensorProto.INT64, ["rows", "tokens"])
    names = ("input_ids", "token_type_ids", "attention_mask")
    graph.save(path, {name: integers for name in names}, ["rows", hidden])


def dense_layers(weights: Tensors, path: pathlib.Path, widths: tuple[int, ...]) -> None:
    graph, x = Graph(), "features"
    for layer in range(len(widths) - 1):
        x = graph.dense(graph.node("Relu", x) if layer else x, weights, f"layers.{layer}")
    graph.nodes[-1].output[0] = "output"
    graph.save(path, {"features": (onnx.TensorProto.FLOAT, ["rows", widths[0]])}, ["rows", widths[-1]])


def random_layers(widths: tuple[int, ...]) -> Tensors:
    random, weights = np.random.default_rng(1), {}
    for layer, (inner, columns) in enumerate(itertools.pairwise(widths)):
        weights[f"layers.{layer}.weight"] = (random.standard_normal((columns, inner)) / inner**0.5).astype(np.float32)
        weights[f"layers.{layer}.bias"] = random.standard_normal(columns).astype(np.float32)
    return weights


def main() -> None:
    minilm, output, parts = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    if "minilm" in parts:
        config = json.loads((minilm / "config.json").read_bytes())
        bert(read_safetensors(minilm / "model.safetensors"), config, output / "minilm.onnx")
        quantize_dynamic(
            output / "minilm.onnx",
            output / "minilm_int8.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    if "mlp" in parts:
        (output / "mlp").mkdir()
        weights = random_layers(MLP)
        write_safetensors(output / "mlp/model.safetensors", weights)
        dense_layers(weights, output / "mlp.onnx", MLP)
    if "vision" in parts:
        for model, logits in (("resnet", vision.resnet_graph), ("vit", vision.vit_graph)):
            weights = vision.package(model, output / model)
            write_safetensors(output / model / "model.safetensors", weights)
            graph = Graph()
            graph.node("Softmax", logits(graph, weights), axis=-1, output="output")
            pixels = (onnx.TensorProto.FLOAT, ["rows", vision.COLOURS, vision.SIDE, vision.SIDE])
            graph.save(output / f"{model}.onnx", {"pixel_values": pixels}, ["rows", vision.CLASSES])


if __name__ == "__main__":
    main()
