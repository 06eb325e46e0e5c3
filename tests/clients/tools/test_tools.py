"""Command-line clients, run as their users run them."""

import base64
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from server import setting

SERVICE = "inference.GRPCInferenceService"
FULL = bool(os.environ.get("SCONCE_FULL"))


def output_of(*command, fails=False, **options):
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **options
    )
    assert (done.returncode != 0) == fails, f"exit code {done.returncode}:\n{done.stdout}"
    return done.stdout


def grpcurl(server, *words, **options):
    # grpcurl wants its flags before the address.
    *flags, last = words
    return output_of(setting("SCONCE_GRPCURL"), "-plaintext", "-max-time", "30", *flags, server.grpc, *last.split(), **options)


def test_grpcurl_lists_and_describes(server):
    services = grpcurl(server, "list").split()
    assert SERVICE in services and "grpc.health.v1.Health" in services
    methods = grpcurl(server, f"list {SERVICE}").split()
    assert {f"{SERVICE}.{name}" for name in ("ModelInfer", "ModelStreamInfer", "ServerLive", "RepositoryIndex")} <= set(methods)
    described = grpcurl(server, f"describe {SERVICE}")
    assert "rpc ModelStreamInfer ( stream .inference.ModelInferRequest ) returns ( stream" in described
    assert "bytes raw_input_contents = 7" in grpcurl(server, "describe inference.ModelInferRequest")


def add_sub(**data):
    inputs = [{"name": name, "datatype": "FP32", "shape": [1, 16], **data.get(name, {})} for name in ("INPUT0", "INPUT1")]
    return {"model_name": "add_sub", "id": "from grpcurl", "inputs": inputs}


def infer(server, message, **options):
    return grpcurl(server, "-d", json.dumps(message), f"{SERVICE}/ModelInfer", **options)


def test_grpcurl_infers_typed(server):
    contents = {"contents": {"fp32_contents": [3.0] * 16}}
    answer = json.loads(infer(server, add_sub(INPUT0=contents, INPUT1=contents)))
    assert answer["id"] == "from grpcurl" and answer["modelVersion"] == "1"
    assert [one["contents"]["fp32Contents"] for one in answer["outputs"]] == [[6] * 16, [0] * 16]


def test_grpcurl_infers_raw(server):
    row = base64.b64encode(struct.pack("<16f", *[3.0] * 16)).decode()
    answer = json.loads(infer(server, add_sub() | {"raw_input_contents": [row, row]}))
    assert [struct.unpack("<16f", base64.b64decode(raw)) for raw in answer["rawOutputContents"]] == [(6,) * 16, (0,) * 16]


def test_grpcurl_shows_the_error(server):
    assert "NotFound" in infer(server, {"model_name": "no_such_model"}, fails=True)


def test_grpcurl_health(server):
    assert json.loads(grpcurl(server, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}


def test_k6(server):
    script = Path(__file__).parent.with_name("k6_add_sub.js")
    environment = {**os.environ, "SCONCE_GRPC": server.grpc, "SCONCE_K6_DURATION": "60s" if FULL else "5s"}
    output_of(setting("SCONCE_K6"), "run", "--quiet", "--no-usage-report", script, env=environment)


@pytest.mark.parametrize("model, flags", [
    ("add_sub", []),
    ("add_sub", ["-b", "8"]),
    ("add_sub", ["--async", "--streaming"]),
    ("breast_cancer", ["-x", "1"]),
], ids=["plain", "batched", "streaming", "version 1"])
def test_perf_analyzer(server, model, flags):
    # Any spread counts as stable: the machine is shared, and what is tested is that the client works to the end.
    output = output_of(
        setting("SCONCE_PERF_ANALYZER"), "-m", model, "-i", "grpc", "-u", server.grpc, "--measurement-interval", "1000",
        "--concurrency-range", "1:16:5" if FULL else "2", "--stability-percentage", "999", *flags,
    )
    rates = re.findall(r"Throughput: ([\d.]+) infer/sec", output)
    assert rates and all(float(rate) > 0 for rate in rates), output
    # From ModelStatistics, whose counts must have risen.
    counts = re.findall(r"Inference count: (\d+)", output)
    assert counts and all(int(count) > 0 for count in counts), output
    assert "Request concurrency" in output and "Failed" not in output, output
