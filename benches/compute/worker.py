"""One contestant of benches/compute/run: a runtime with one model. The protocol is described in compute.py.

worker.py RUNTIME PRECISION MODEL THREADS MODELS MINILM
"""

import json
import pathlib
import statistics
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import vision

Tensors = dict[str, np.ndarray]


class Task(NamedTuple):
    """A batch with its inputs in place: what is measured is `run` alone, and `read` gives what it computed."""

    run: Callable[[], object]
    read: Callable[[], np.ndarray]


class Setup(NamedTuple):
    precision: str
    model: str
    threads: int
    models: pathlib.Path
    minilm: pathlib.Path


def read_safetensors(path: pathlib.Path) -> Tensors:
    """Its f32 tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    body = memoryview(content)[8 + length :]
    tensors = {}
    for name, info in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__" and info["dtype"] == "F32":
            begin, end = info["data_offsets"]
            tensors[name] = np.frombuffer(body[begin:end], np.float32).reshape(info["shape"])
    return tensors


def make_inputs(model: str, lengths: list[int]) -> Tensors:
    """Rows of one length, the short ones padded. Every contestant makes the same ids."""
    rows, columns = np.ogrid[: len(lengths), : max(lengths)]
    mask = columns < np.array(lengths)[:, None]
    ids = np.where(mask, 1000 + (rows * 7919 + columns * 104_729) % 28_000, 0)
    if model != "minilm":
        values = ((ids - 15_000) / 15_000).astype(np.float32)
        if model in vision.TITLES:
            return {"pixel_values": values.reshape(-1, vision.COLOURS, vision.SIDE, vision.SIDE)}
        return {"features": values}
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask.astype(np.int64)}


def onnxruntime(setup: Setup) -> Callable[[Tensors], Task]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setup.threads, 1
    name = setup.model if setup.precision == "f32" else f"{setup.model}_{setup.precision}"
    session = onnxruntime.InferenceSession(setup.models / f"{name}.onnx", options, providers=["CPUExecutionProvider"])

    def prepare(inputs: Tensors) -> Task:
        binding = session.io_binding()
        for name, values in inputs.items():
            binding.bind_cpu_input(name, values)
        binding.bind_output("output")
        return Task(lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0])

    return prepare


def openvino(setup: Setup) -> Callable[[Tensors], Task]:
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": setup.precision,
        "INFERENCE_NUM_THREADS": setup.threads,
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(setup.models / f"{setup.model}.onnx"), "CPU", options)

    def prepare(inputs: Tensors) -> Task:
        request = compiled.create_infer_request()
        for name, values in inputs.items():
            request.set_tensor(name, openvino.Tensor(values, shared_memory=True))
        return Task(request.infer, lambda: request.get_output_tensor().data)

    return prepare


def torch(setup: Setup) -> Callable[[Tensors], Task]:
    import torch
    from torch.nn import functional

    torch.set_num_threads(setup.threads)
    torch.set_grad_enabled(False)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[setup.precision]
    folder = setup.minilm if setup.model == "minilm" else setup.models / setup.model
    stored = read_safetensors(folder / "model.safetensors")
    if setup.model in vision.TITLES:
        return torch_tasks(vision.torch_forward(setup.model, stored, dtype))
    weights = {name: torch.tensor(values, dtype=dtype) for name, values in stored.items()}

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def mlp(features: torch.Tensor) -> torch.Tensor:
        x = dense(features.to(dtype), "layers.0")
        for layer in range(1, len(weights) // 2):
            x = dense(functional.relu(x), f"layers.{layer}")
        return x

    if setup.model == "minilm":
        config = json.loads((folder / "config.json").read_bytes())
        hidden, heads, epsilon = (config[key] for key in ("hidden_size", "num_attention_heads", "layer_norm_eps"))
        layers = [f"encoder.layer.{layer}" for layer in range(config["num_hidden_layers"])]
        for layer in layers:
            for part in ("weight", "bias"):
                names = (f"{layer}.attention.self.{name}.{part}" for name in ("query", "key", "value"))
                weights[f"{layer}.qkv.{part}"] = torch.cat([weights.pop(name) for name in names])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (hidden,), weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    def bert(ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, tokens = ids.shape
        tables = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
        x = tables["word"][ids] + tables["token_type"][types] + tables["position"][:tokens]
        x = norm(x, "embeddings.LayerNorm")
        kept = None if mask.all() else mask.bool()[:, None, None, :]
        for layer in layers:
            qkv = dense(x, f"{layer}.qkv").view(rows, tokens, 3, heads, hidden // heads)
            context = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=kept)
            context = context.transpose(1, 2).reshape(rows, tokens, hidden)
            x = norm(dense(context, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
            up = functional.gelu(dense(x, f"{layer}.intermediate.dense"))
            x = norm(dense(up, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
        x, mask = x.float(), mask[:, :, None].float()
        return functional.normalize((x * mask).sum(1) / mask.sum(1))

    return torch_tasks(bert if setup.model == "minilm" else mlp)


def torch_tasks(forward: Callable) -> Callable[[Tensors], Task]:
    import torch

    def prepare(inputs: Tensors) -> Task:
        tensors = [torch.from_numpy(values) for values in inputs.values()]
        return Task(lambda: forward(*tensors), lambda: forward(*tensors).float().numpy())

    return prepare


def measure(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds: the median of the runs that `seconds` have time for, without the first unless it alone takes them."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 2 or time.perf_counter() < start + seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        if times[0] > seconds:
            return times[0] * 1000
    return statistics.median(times[1:]) * 1000


def main() -> None:
    runtime, precision, model, threads, models, minilm = sys.argv[1:]
    load = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[runtime]
    prepare = load(Setup(precision, model, int(threads), pathlib.Path(models), pathlib.Path(minilm)))
    for line in sys.stdin:
        seconds, *lengths = line.split()
        # Named, so that it outlives the task: runtimes read it where it is.
        inputs = make_inputs(model, [int(length) for length in lengths])
        task = prepare(inputs)
        if float(seconds) > 0:
            reply = {"ms": measure(task.run, float(seconds))}
        else:
            task.run()
            reply = {"values": task.read().ravel().tolist()}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
